"""Writers that test_crash.py kills: for each line of JSON on standard input this program forks one and kills it.

Forking spares the imports, so that a kill costs milliseconds. Keyring and tape are opened in the fork.
"""

import json
import os
import random
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import tapeseal
from support import SHARED
from tapeseal import writer
from tapeseal.cli import orderflow

Report = Callable[..., None]

# The package loads these on first use; a fork would be killed while it does.
tapeseal.open, tapeseal.rewrap, tapeseal.LocalKeyring, tapeseal.Recorder  # noqa: B018

# Longer than any start takes on a busy machine; only a writer that hangs gets there.
PATIENCE = 60

SEAL = struct.Struct("<32sQQQ8x")
"""An entry of the log: commitment, first frame, frames, run. Its 64 bytes lie within one page, and a kill cuts a write
between pages alone."""


def _day() -> np.ndarray:
    path = SHARED / "data" / "esh4-20231225-mbo.npy"
    if not path.exists():
        return orderflow.generate(7, 68_792)
    records = np.load(path)
    return records.astype(orderflow.MBO, copy=False)


DAY = _day()
"""Real order records where they are at hand, made-up ones otherwise."""


def stream(start: int, stop: int) -> np.ndarray:
    """Return the records number start to stop (not included) of an endless stream: day after day, numbered."""
    number = np.arange(start, stop)
    records = DAY[number % len(DAY)]
    records["sequence"] = number
    return records


class SealLog:
    """A seal_hook that writes down what is going to be sealed, in a file that many processes add to."""

    def __init__(self, path: str | Path, run: int) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._run = run

    def __call__(self, commitment: bytes, first: int, frames: int) -> None:
        """Add an entry."""
        assert os.write(self._fd, SEAL.pack(commitment, first, frames, self._run)) == SEAL.size

    def close(self) -> None:
        """Give up the file."""
        os.close(self._fd)


def batch_sizes(chance: random.Random) -> Iterator[int]:
    """Say how many records come next: mostly a few, but of one writer in four up to many frames, which a kill tears."""
    low, high = chance.choice([(0, 2.3), (0, 2.3), (0, 2.3), (2.5, 4.5)])
    while True:
        yield int(10 ** chance.uniform(low, high))


def open_tape(task: dict[str, Any]) -> tapeseal.TapeWriter:
    """Make the tape or go on with it."""
    return tapeseal.open(
        task["path"], "a", keyring=tapeseal.LocalKeyring(task["keys"][0]), dtype=DAY.dtype, **task["options"]
    )  # fmt: skip


def record(task: dict[str, Any], chance: random.Random, report: Report) -> None:
    """Append to a tape for ever, and flush now and then."""
    tape = open_tape(task)
    report(flushed=len(tape))
    for count in batch_sizes(chance):
        tape.append(stream(len(tape), len(tape) + count))
        if chance.random() < 0.4:
            tape.flush(sync=chance.random() < 0.01)
            if chance.random() < 0.05:
                report(flushed=len(tape), anchor=str(tape.anchor))
            else:
                report(flushed=len(tape))


def seal(task: dict[str, Any], chance: random.Random, report: Report) -> None:
    """Make or open a tape, append a little and close it, mostly sealed, for ever."""
    report()
    sizes = batch_sizes(chance)
    while True:
        tape = open_tape(task)
        report(flushed=len(tape))
        for _ in range(chance.randrange(4)):
            count = next(sizes)
            tape.append(stream(len(tape), len(tape) + count))
            if chance.random() < 0.5:
                tape.flush()
                report(flushed=len(tape))
        anchor = tape.close(seal=chance.random() < 0.8)
        report(flushed=anchor.items, anchor=str(anchor))


def rewrap(task: dict[str, Any], chance: random.Random, report: Report) -> None:
    """Rewrap a tape to the second keyring, back to the first, and so on."""
    now, to = (tapeseal.LocalKeyring(path) for path in task["keys"])
    report()
    while True:
        report(generation=tapeseal.rewrap(task["path"], keyring=now, to=to, copy=task["copy"]))
        now, to = to, now


def roll(task: dict[str, Any], chance: random.Random, report: Report) -> None:
    """Record into rolling tapes for ever, from the record number task["start"] on."""
    report()
    recorder = tapeseal.Recorder(
        os.path.join(task["path"], "%Y", "{feed}.tape"),
        keyring=tapeseal.LocalKeyring(task["keys"][0]),
        dtype=DAY.dtype,
        fields={"feed": "cme"},
        on_close=lambda path, anchor: report(path=path, anchor=str(anchor)),
        **task["options"],
    )
    at = task["start"]
    for count in batch_sizes(chance):
        recorder.append(stream(at, at + count))
        at += count
        if chance.random() < 0.4:
            recorder.flush()
            report(flushed=at)


WORK = {"record": record, "seal": seal, "rewrap": rewrap, "roll": roll}


def run(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Start task["work"], kill it task["seconds"] after its first report, and return all it reported."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(task, writing)
    os.close(writing)
    select.select([reading], [], [], PATIENCE)
    time.sleep(task["seconds"])
    os.kill(child, signal.SIGKILL)
    with os.fdopen(reading, "rb") as pipe:
        reports = [json.loads(line) for line in pipe]
    os.waitpid(child, 0)
    return reports


def _work(task: dict[str, Any], pipe: int) -> NoReturn:
    def report(**what: Any) -> None:
        os.write(pipe, (json.dumps(what) + "\n").encode())

    try:
        writer.seal_hook = SealLog(task["log"], task["run"])
        WORK[task["work"]](task, random.Random(task["seed"]), report)
    except BaseException:
        report(error=traceback.format_exc()[-3000:])
    os._exit(1)


def main() -> None:
    """Answer each task with a line: what its writer reported."""
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
