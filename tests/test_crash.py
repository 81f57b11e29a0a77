"""Writers killed by `kill -9`, or interrupted: what was flushed is there, all goes on, no nonce is used twice."""

import gc
import itertools
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import tapeseal
from crash_writer import DAY, SEAL, SealLog, stream
from support import TESTS, TICK, nonce_log, ticks
from tapeseal import writer
from tapeseal.keyrings.local import create_key_file

CONTEXT = {f"pair {number}": "x" * 100 for number in range(60)}
"""Makes header copies of several pages, so that a kill can tear one."""

MANY = 1_000_000
"""Records after which a new tape begins, so that looking at all of them stays quick."""


def kills(fast: int, slow: int) -> Any:
    """Run a test with a few kills, and with many as a slow test."""
    return pytest.mark.parametrize("kills", [fast, pytest.param(slow, marks=pytest.mark.slow)])


class Killer:
    """Lets writers run for random times, and keeps count of what they used up."""

    def __init__(self, process: subprocess.Popen[str], log: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self._process = process
        self._log = log
        self._runs = 0
        # Where each salt stands: a tape and an offset in it.
        self._salts: dict[bytes, tuple[bytes, int]] = {}

    def kill(self, work: str, path: Path, *keys: str, **task: Any) -> list[dict[str, Any]]:
        """Run one of crash_writer's writers for up to 60 ms; return its reports."""
        self._runs += 1
        task |= {
            "work": work,
            "path": str(path),
            "keys": keys,
            "log": str(self._log),
            "run": self._runs,
            "seed": self.chance.getrandbits(64),
            "seconds": self.chance.uniform(0, 0.06),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        reports = json.loads(self._process.stdout.readline())
        assert reports, "the writer hung"
        assert [] == [report["error"] for report in reports if "error" in report]
        return reports

    def log_own(self) -> SealLog:
        """Count what this process seals from now on as another run."""
        self._runs += 1
        writer.seal_hook = SealLog(self._log, self._runs)
        return writer.seal_hook

    def check_salts(self, path: Path) -> None:
        """No segment of a tape has the salt of any other segment seen so far."""
        data = path.read_bytes()
        tape_id = tapeseal.inspect(path).tape_id
        for offset in segments(data):
            salt = data[offset + 48 : offset + 80]
            assert (tape_id, offset) == self._salts.setdefault(salt, (tape_id, offset))

    def check_nonces(self) -> None:
        """No two runs sealed under one key, and none sealed twice under one key and nonce."""
        runs = defaultdict(set)
        frames = defaultdict(list)
        for commitment, first, count, run in SEAL.iter_unpack(self._log.read_bytes()):
            runs[commitment].add(run)
            frames[commitment].append((first, first + count))
        assert runs
        assert {} == {commitment: used for commitment, used in runs.items() if len(used) > 1}
        for spans in frames.values():
            spans.sort()
            assert [] == [
                (before, after)
                for before, after in itertools.pairwise(spans)
                if after[0] < before[1]
            ]


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    """A running crash_writer.py."""
    with subprocess.Popen(
        [sys.executable, TESTS / "crash_writer.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Its forks must be of a process of one thread.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait() == 0


@pytest.fixture
def killer(process: subprocess.Popen[str], tmp_path: Path) -> Iterator[Killer]:
    """A Killer with a seed that is printed, or that CRASH_SEED says."""
    seed = int(os.environ.get("CRASH_SEED") or random.SystemRandom().getrandbits(32))
    print(f"CRASH_SEED={seed}")
    before = writer.seal_hook
    made = Killer(process, tmp_path / "sealed.log", seed)
    try:
        yield made
        made.check_nonces()
    finally:
        writer.seal_hook = before


@pytest.fixture
def key_files(tmp_path: Path) -> list[str]:
    """The paths of two key files."""
    paths = [str(tmp_path / "old.key"), str(tmp_path / "new.key")]
    for path in paths:
        create_key_file(path)
    return paths


def segments(data: bytes) -> Iterator[int]:
    """Where the segment headers of a tape stand, up to its torn end."""
    at = 2 * int.from_bytes(data[12:16], "little")
    while at < len(data):
        if data[at] in (2, 3):
            at += 40 + int.from_bytes(data[at + 16 : at + 20], "little")
            continue
        if data[at] not in (1, 4) or at + 112 > len(data):
            return
        yield at
        at += 112


def last(reports: list[dict[str, Any]], what: str) -> Any:
    """Return what was last reported of something, None if nothing."""
    return next((report[what] for report in reversed(reports) if what in report), None)


def check(path: Path, keyring: Any, start: int = 0) -> tapeseal.Verification:
    """Demand a tape without a fault, of the stream's records from number start on."""
    found = tapeseal.verify(path, keyring=keyring)
    assert [] == found.problems
    assert found.state in ("sealed", "open", "torn")
    with tapeseal.open(path, keyring=keyring) as tape:
        assert (found.items, found.torn_bytes) == (len(tape), tape.torn_bytes)
        at = start
        for records in tape.batches():
            assert np.array_equal(stream(at, at + len(records)), records)
            at += len(records)
        assert found.items == at - start
    return found


def check_anchor(path: Path, keyring: Any, text: str | None) -> None:
    """Demand that a tape goes on from an anchor that its writer had got; its index may be gone again by now."""
    if text is not None:
        anchor = replace(tapeseal.Anchor.parse(text), index=None)
        assert [] == tapeseal.verify(path, keyring=keyring, anchor=anchor).problems


def finish(killer: Killer, path: Path, keyring: Any, items: int) -> None:
    """Go on with a tape in this process, seal it, and demand all of it."""
    log = killer.log_own()
    with tapeseal.open(path, "a", keyring=keyring) as tape:
        assert items == len(tape)
        tape.append(stream(items, items + 1000))
        anchor = tape.close()
    log.close()
    found = check(path, keyring)
    assert ("sealed", items + 1000, anchor) == (found.state, found.items, found.anchor)
    assert tapeseal.verify(path, keyring=keyring, anchor=anchor).ok
    killer.check_salts(path)


def options(killer: Killer) -> dict[str, Any]:
    """Return how one tape is written."""
    return {
        "frame_size": killer.chance.choice([4096, 65536]),
        "index_by": killer.chance.choice([None, "ts_event"]),
        "threads": killer.chance.choice([1, 2]),
    }


@kills(8, 300)
def test_recording(killer: Killer, tmp_path: Path, key_file: str, keyring: Any, kills: int) -> None:
    """All flushed records are there, nothing else than the stream's beginning, and the next writer goes on."""
    path = tmp_path / "day.tape"
    for number in range(kills):
        if not path.exists():
            how, before, writers = options(killer), 0, 0
        reports = killer.kill("record", path, key_file, options=how)
        assert before == reports[0]["flushed"]
        found = check(path, keyring)
        assert last(reports, "flushed") <= found.items
        check_anchor(path, keyring, last(reports, "anchor"))
        killer.check_salts(path)
        assert found.state in ("open", "torn")
        before = found.items
        writers += 1
        if writers == 20 or before > MANY or number == kills - 1:
            finish(killer, path, keyring, before)
            path.unlink()


@kills(12, 150)
def test_sealing_and_resuming(
    killer: Killer, tmp_path: Path, key_file: str, keyring: Any, kills: int
) -> None:
    """Flushed records outlive a kill while a tape is made, sealed, or opened again, its index cut off."""
    closed = 0
    for number in range(kills):
        if number % 6 == 0:
            path, how, before = tmp_path / f"{number}.tape", options(killer), 0
        reports = killer.kill("seal", path, key_file, options=how)
        flushed = last(reports, "flushed")
        assert before == next((report["flushed"] for report in reports[1:]), before)
        closed += sum("anchor" in report for report in reports)
        if path.exists():
            found = check(path, keyring)
            assert (flushed or before) <= found.items
            check_anchor(path, keyring, last(reports, "anchor"))
            killer.check_salts(path)
            before = found.items
        else:
            assert flushed is None
        if path.exists() and (number % 6 == 5 or number == kills - 1):
            finish(killer, path, keyring, before)
    assert closed > 0


@pytest.mark.parametrize("copy", [False, True], ids=["in place", "copy"])
@kills(12, 150)
def test_rewrapping(
    killer: Killer, tmp_path: Path, key_files: list[str], kills: int, copy: bool
) -> None:
    """The old keys or the new ones open the tape, and the next rewrap makes its header whole."""
    path = tmp_path / "day.tape"
    rings = [tapeseal.LocalKeyring(key) for key in key_files]
    log = killer.log_own()
    # In place, a recorder goes on all the while.
    recorder = tapeseal.open(
        path, "w", keyring=rings[0], dtype=DAY.dtype, encryption_context=CONTEXT, frame_size=4096
    )
    recorder.append(stream(0, 500))
    recorder.flush()
    if copy:
        recorder.close()
    generation = 1
    done = 0
    for _ in range(kills):
        reports = killer.kill("rewrap", path, *key_files, copy=copy)
        told = last(reports, "generation") or generation
        done += told - generation
        if not copy:
            recorder.append(stream(len(recorder), len(recorder) + 50))
            recorder.flush()
        # One rewrap more than was told may have come to its end.
        new = tapeseal.inspect(path).generation
        assert new in (told, told + 1)
        ring = rings[(new - generation) % 2]
        other = rings[(new - generation + 1) % 2]
        with pytest.raises(tapeseal.KeyUnavailableError):
            tapeseal.open(path, keyring=other)
        with tapeseal.open(path, keyring=ring) as tape:
            assert np.array_equal(stream(0, len(recorder)), tape[:])

        generation = tapeseal.rewrap(path, keyring=ring, to=rings[0])
        whole = tapeseal.inspect(path)
        assert (2, generation) == (whole.copies_intact, whole.generation)
        data = path.read_bytes()
        size = int.from_bytes(data[12:16], "little")
        assert data[:size] == data[size : 2 * size]
        found = check(path, rings[0])
        assert (len(recorder), "sealed" if copy else "open") == (found.items, found.state)
        killer.check_salts(path)
    assert done > 0
    recorder.close()
    log.close()
    assert ("sealed", len(recorder)) == (check(path, rings[0]).state, check(path, rings[0]).items)


@kills(12, 150)
def test_rolling(killer: Killer, tmp_path: Path, key_file: str, keyring: Any, kills: int) -> None:
    """Every tape that a killed recorder left opens, and together they hold all that was flushed, in order."""
    rolled = 0
    for number in range(kills):
        if number % 5 == 0:
            directory, how, before = tmp_path / str(number), options(killer), 0
            how["roll_size"] = killer.chance.choice([20_000, 200_000])
        reports = killer.kill("roll", directory, key_file, options=how, start=before)
        anchors = {report["path"]: report["anchor"] for report in reports if "path" in report}
        tapes = []
        for path in directory.glob("*/*.tape"):
            with tapeseal.open(path, keyring=keyring) as tape:
                if len(tape):
                    tapes.append((int(tape[0]["sequence"]), path))
                else:
                    assert str(path) not in anchors
        at = 0
        for start, path in sorted(tapes):
            assert at == start
            found = check(path, keyring, start)
            at += found.items
            killer.check_salts(path)
            if str(path) in anchors:
                anchor = tapeseal.Anchor.parse(anchors[str(path)])
                assert ("sealed", anchor) == (found.state, found.anchor)
        assert (last(reports, "flushed") or before) <= at
        rolled += len(anchors)
        before = at
    assert rolled > 0


def interrupt(act: Callable[[], object], at: int) -> str | None:
    """Raise KeyboardInterrupt at the given call or return, where Python looks for signals; return where that was."""
    seen = 0
    where = None

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal seen, where
        if event in ("call", "c_return") and "tapeseal" in frame.f_globals.get("__name__", ""):
            seen += 1
            if seen == at:
                where = f"{frame.f_code.co_qualname}:{frame.f_lineno} {event}"
                raise KeyboardInterrupt

    # The garbage collector would swallow an interrupt in what it calls.
    gc.disable()
    sys.setprofile(profile)
    try:
        act()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
        gc.enable()
    return where


@pytest.mark.parametrize(
    "sealed",
    [pytest.param(False, id="open"), pytest.param(True, id="sealed", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "action", ["append", "flush", pytest.param("close", marks=pytest.mark.slow)]
)
def test_interrupted_at_every_call(tmp_path: Path, keyring: Any, action: str, sealed: bool) -> None:
    """After an interrupt anywhere inside a writer, the same writer goes on, and nothing is lost or sealed twice."""
    path = tmp_path / "day.tape"
    for at in itertools.count(1):
        with nonce_log():
            tape = tapeseal.open(
                path,
                "w",
                keyring=keyring,
                dtype=TICK,
                frame_size=4096,
                index_by="number",
                threads=1,
            )
            tape.append(ticks(0, 300))
            if sealed:
                tape.close()
                tape = tapeseal.open(path, "a", keyring=keyring)
            if action != "append":
                tape.append(ticks(300, 310))
            before = len(tape)
            act = {
                "append": lambda tape=tape: tape.append(ticks(300, 900)),
                "flush": tape.flush,
                "close": tape.close,
            }[action]
            where = interrupt(act, at)
            if where is None:
                tape.close()
                break
            print(where)
            after = len(tape)
            assert after in (before, 900 if action == "append" else before)
            if tape.closed:
                tape.close()
                tape = tapeseal.open(path, "a", keyring=keyring)
                assert after == len(tape)
            tape.append(ticks(after, after + 500))
            anchor = tape.close()
        found = tapeseal.verify(path, keyring=keyring, anchor=anchor)
        assert ("sealed", []) == (found.state, found.problems)
        with tapeseal.open(path, keyring=keyring) as whole:
            assert np.array_equal(ticks(0, after + 500), whole[:])
    assert at > 20
