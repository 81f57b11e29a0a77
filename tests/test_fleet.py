"""Fleets of tapes: rewrapping all of them, stopping and going on, and finding those that a key opens."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tapeseal
from support import child, start_child
from tapeseal import fleet
from tapeseal.errors import DamagedError, KeyUnavailableError, NotATapeError
from tapeseal.fleet import Condition, blast_radius, find_tapes, rewrap_fleet
from tapeseal.keyrings.local import LocalKeyring, create_key_file
from tapeseal.layout import Recipient

RECORDS = np.arange(100, dtype="<u8")


def make_tapes(folder: Path, keyring: tapeseal.Keyring, count: int) -> list[str]:
    """Write tapes of RECORDS, half of them in a folder below."""
    (folder / "below").mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / ("below" if number % 2 else ".") / f"{number}.tape"
        with tapeseal.open(path, "x", keyring=keyring, dtype=RECORDS.dtype) as tape:
            tape.append(RECORDS)
        paths.append(str(path))
    return sorted(paths)


def body(path: str) -> bytes:
    """Return a tape's bytes behind its header copies of 4 KiB."""
    return Path(path).read_bytes()[8192:]


def opens(path: str, keyring: tapeseal.Keyring) -> bool:
    """Whether a keyring opens a tape, and finds in it what was written."""
    try:
        with tapeseal.open(path, keyring=keyring) as tape:
            return tape[:].tobytes() == RECORDS.tobytes()
    except KeyUnavailableError:
        return False


def states(results: list[fleet.Rewrapped]) -> dict[str, int]:
    """Count the outcomes."""
    return dict(Counter(result.state for result in results))


@pytest.fixture(scope="module")
def move(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalKeyring, LocalKeyring]:
    """Two keyrings of which neither opens what is the other's."""
    folder = tmp_path_factory.mktemp("move")
    for name in ("old.key", "new.key"):
        create_key_file(folder / name)
    return LocalKeyring(folder / "old.key"), LocalKeyring(folder / "new.key")


Move = tuple[LocalKeyring, LocalKeyring]


def test_one_name_is_no_list_of_names(tmp_path: Path) -> None:
    """A path in the place of a list is refused: its first character may be the root of the file system."""
    with pytest.raises(TypeError, match="a list of names"):
        next(find_tapes(str(tmp_path)))


def test_all_are_rewrapped(tmp_path: Path, move: Move) -> None:
    """Each tape opens to the new keyring alone, and not a byte of its body changed."""
    old, new = move
    paths = make_tapes(tmp_path, old, 12)
    bodies = [body(path) for path in paths]
    found = sorted(rewrap_fleet(paths, keyring=old, to=new), key=lambda result: result.path)
    assert [fleet.Rewrapped(path, "rewrapped", 2) for path in paths] == found
    assert [body(path) for path in paths] == bodies
    assert [opens(path, new) for path in paths] == [True] * 12
    assert [opens(path, old) for path in paths] == [False] * 12


def test_dry_run_changes_nothing(tmp_path: Path, move: Move) -> None:
    """A dry run says what could be done, and leaves every byte."""
    old, new = move
    paths = make_tapes(tmp_path, old, 3)
    tapeseal.rewrap(paths[0], keyring=old, to=new)
    before = [Path(path).read_bytes() for path in paths]
    found = {
        result.path: result for result in rewrap_fleet(paths, keyring=old, to=new, dry_run=True)
    }
    assert [found[path].state for path in paths] == ["failed", "planned", "planned"]
    assert isinstance(found[paths[0]].error, KeyUnavailableError)
    assert [Path(path).read_bytes() for path in paths] == before


def test_a_bad_tape_leaves_the_others_alone(tmp_path: Path, move: Move) -> None:
    """Damaged, foreign and missing files fail by themselves, and are as they were."""
    old, new = move
    paths = make_tapes(tmp_path, old, 6)
    damaged = Path(paths[2])
    raw = bytearray(damaged.read_bytes())
    raw[100] ^= 1
    raw[4096 + 100] ^= 1
    damaged.write_bytes(raw)
    blob = tmp_path / "cell"
    blob.write_bytes(tapeseal.encrypt(b"x", keyring=old))
    missing, text = str(tmp_path / "missing.tape"), tmp_path / "notes"
    text.write_text("no tape")
    everything = [*paths, str(blob), missing, str(text)]
    found = {result.path: result for result in rewrap_fleet(everything, keyring=old, to=new)}
    failed = {
        path: type(result.error) for path, result in found.items() if result.state == "failed"
    }
    assert failed == {
        str(damaged): DamagedError,
        str(blob): ValueError,
        missing: FileNotFoundError,
        str(text): NotATapeError,
    }
    assert damaged.read_bytes() == raw
    assert sum(opens(path, new) for path in paths if path != str(damaged)) == 5


def test_journal_skips_what_was_done(tmp_path: Path, move: Move) -> None:
    """A second run with the journal does the rest, and a tape that was put back since."""
    old, new = move
    paths = make_tapes(tmp_path, old, 6)
    kept = Path(paths[0]).read_bytes()
    journal = tmp_path / "journal"
    first = list(rewrap_fleet(paths[:4], keyring=old, to=new, journal=journal))
    assert states(first) == {"rewrapped": 4}
    Path(paths[0]).write_bytes(kept)
    second = list(rewrap_fleet(paths, keyring=old, to=new, journal=journal))
    assert states(second) == {"rewrapped": 3, "skipped": 3}
    assert [opens(path, new) for path in paths] == [True] * 6
    assert journal.stat().st_mode & 0o777 == 0o600


def test_moved_tapes_are_skipped_without_a_journal(tmp_path: Path, move: Move) -> None:
    """What only the new keyring opens, and names none but its keys, was done before."""
    old, new = move
    paths = make_tapes(tmp_path, old, 4)
    list(rewrap_fleet(paths[:2], keyring=old, to=new))
    assert states(list(rewrap_fleet(paths, keyring=old, to=new))) == {"skipped": 2, "rewrapped": 2}


def test_forged_recipients_are_not_skipped(tmp_path: Path, move: Move) -> None:
    """A header that only claims to be the new keyring's fails: nobody may hide a tape from the move."""
    old, new = move
    (path,) = make_tapes(tmp_path, old, 1)
    other = tmp_path / "other.tape"
    with tapeseal.open(other, "x", keyring=new, dtype=RECORDS.dtype) as tape:
        tape.append(RECORDS)
    raw = bytearray(other.read_bytes())
    raw[16:32] = Path(path).read_bytes()[16:32]
    Path(path).write_bytes(raw)
    (result,) = rewrap_fleet([path], keyring=old, to=new)
    assert result.state == "failed"


@pytest.mark.parametrize("cut", range(1, 90, 11))
def test_journal_cut_by_a_crash(tmp_path: Path, move: Move, cut: int) -> None:
    """A journal that ends in the middle of a line counts up to there."""
    old, new = move
    paths = make_tapes(tmp_path, old, 2)
    journal = tmp_path / "journal"
    list(rewrap_fleet(paths, keyring=old, to=new, journal=journal))
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-cut])
    assert states(list(rewrap_fleet(paths, keyring=old, to=new, journal=journal))) == {"skipped": 2}
    for line in journal.read_text().splitlines():
        json.loads(line)


def test_journal_of_another_move(tmp_path: Path, move: Move) -> None:
    """A journal serves the move that it was made for, and nothing that is no journal is written to."""
    old, new = move
    paths = make_tapes(tmp_path, old, 1)
    journal = tmp_path / "journal"
    list(rewrap_fleet(paths, keyring=old, to=new, journal=journal))
    with pytest.raises(ValueError, match="of another move"):
        list(rewrap_fleet(paths, keyring=new, to=old, journal=journal))
    for text in ("precious\n", "precious", '["journal"]\n', '{"journal": 1}\n{}\n'):
        journal.write_text(text)
        with pytest.raises(ValueError, match="not the journal"):
            list(rewrap_fleet(paths, keyring=new, to=old, journal=journal))
        assert journal.read_text() == text


def test_one_run_a_journal(tmp_path: Path, move: Move) -> None:
    """Two runs at once cannot share a journal."""
    old, new = move
    paths = make_tapes(tmp_path, old, 2)
    running = rewrap_fleet(paths, keyring=old, to=new, journal=tmp_path / "journal")
    next(running)
    with pytest.raises(BlockingIOError, match="another run"):
        list(rewrap_fleet(paths, keyring=old, to=new, journal=tmp_path / "journal"))
    running.close()


def test_stopping_ends_what_has_begun(tmp_path: Path, move: Move) -> None:
    """A run that is given up leaves each tape whole, of the old keyring or of the new one."""
    old, new = move
    paths = make_tapes(tmp_path, old, 40)
    running = rewrap_fleet(paths, keyring=old, to=new)
    next(running)
    running.close()
    assert {opens(path, old) + opens(path, new) for path in paths} == {1}
    done = states(list(rewrap_fleet(paths, keyring=old, to=new)))
    assert sum(done.values()) == 40
    assert "failed" not in done


REWRAP = """
import sys, tapeseal
from tapeseal.fleet import find_tapes, rewrap_fleet

old, new = (tapeseal.keyring("local:" + path) for path in sys.argv[1:3])
journal, threads = sys.argv[4], int(sys.argv[5])
print("ready", flush=True)
for each in rewrap_fleet(
    find_tapes([sys.argv[3]]), keyring=old, to=new, journal=journal, threads=threads
):
    assert each.state != "failed", each
"""


def done_tapes(journal: Path) -> list[str]:
    """Return the tapes that a journal names; what a kill cut counts for nothing."""
    lines = journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []
    return [json.loads(line)["path"] for line in lines]


@pytest.mark.slow
def test_killed_runs_go_on(tmp_path: Path, move: Move) -> None:
    """kill -9 at any time leaves every tape open to one of the keyrings, and the next run goes on from there."""
    old, new = move
    paths = make_tapes(tmp_path / "tapes", old, 300)
    bodies = [body(path) for path in paths]
    journal = tmp_path / "journal"
    chance = random.Random(1)
    in_the_midst, moves = 0, 0
    for _ in range(40):
        running = start_child(REWRAP, old.path, new.path, tmp_path / "tapes", journal, 4)
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(chance.uniform(0, 0.06))
        running.kill()
        running.wait()
        running.stdout.close()
        moved = {path for path in paths if opens(path, new)}
        assert {path for path in paths if opens(path, old)} == set(paths) - moved
        assert set(done_tapes(journal)) <= moved
        assert [body(path) for path in paths] == bodies
        in_the_midst += 0 < len(moved) < len(paths)
        if len(moved) == len(paths):
            # There is nothing left for the next kill to hit: all the way back.
            old, new = new, old
            journal.unlink()
            moves += 1
    assert in_the_midst > 0
    rest = list(rewrap_fleet(paths, keyring=old, to=new, journal=journal))
    assert {result.state for result in rest} <= {"rewrapped", "skipped"}
    assert [opens(path, new) for path in paths] == [True] * 300
    assert [body(path) for path in paths] == bodies


def traced(command: list[object], trace: list[object]) -> int:
    """Run Python's `command` under strace, which must be there and allowed, and return its status."""
    try:
        ran = subprocess.run(
            ["strace", "-f", "-o", *map(str, trace), sys.executable, "-c", *map(str, command)],
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("strace is not there")
    if b"ptrace" in ran.stderr:
        pytest.skip("the system does not allow ptrace")
    assert ran.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), ran.stderr
    return ran.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "times"), [("pwrite64", 4), ("fsync", 4), ("write", 2), ("ftruncate", 1)]
)
def test_killed_before_every_call(tmp_path: Path, move: Move, call: str, times: int) -> None:
    """A kill before each single write or sync of a run leaves each tape open, and the next run does the rest."""
    old, new = move
    # Of each tape two header copies are written and synced, and a line of the journal; the last run is not killed.
    for number in range(1, times + 2):
        folder = tmp_path / str(number)
        paths = make_tapes(folder / "tapes", old, 2)
        bodies = [body(path) for path in paths]
        journal = folder / "journal"
        # Its first line is another thread's, and strace counts each thread's calls.
        list(rewrap_fleet([], keyring=old, to=new, journal=journal))
        trace: list[object] = [folder / "trace", "-e", f"trace={call}"]
        trace += ["-e", f"inject={call}:error=EINTR:signal=SIGKILL:when={number}"]
        for path in (*paths, journal):
            trace += ["-P", path]
        status = traced([REWRAP, old.path, new.path, folder / "tapes", journal, 1], trace)
        assert (number <= times) == (status != 0)
        moved = {path for path in paths if opens(path, new)}
        assert {path for path in paths if opens(path, old)} == set(paths) - moved
        assert set(done_tapes(journal)) <= moved
        rest = Counter(states(list(rewrap_fleet(paths, keyring=old, to=new, journal=journal))))
        assert Counter(rewrapped=2 - len(moved), skipped=len(moved)) == rest
        assert [opens(path, new) for path in paths] == [True] * 2
        assert [body(path) for path in paths] == bodies


def test_bytes_written(tmp_path: Path, move: Move) -> None:
    """A rewrap writes at most 16 KiB of a tape."""
    old, new = move
    (path,) = make_tapes(tmp_path, old, 1)
    trace = tmp_path / "trace"
    wanted = [trace, "-y", "-e", "trace=write,pwrite64,writev,pwritev"]
    assert 0 == traced([REWRAP, old.path, new.path, tmp_path, tmp_path / "journal", 1], wanted)
    writes = [line for line in trace.read_text().splitlines() if path in line.partition(",")[0]]
    written = [int(line.rpartition("= ")[2]) for line in writes]
    assert 0 < sum(written) <= 16384
    assert opens(path, new)


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="reads /proc/self/io")
@pytest.mark.parametrize("torn", [False, True])
def test_bytes_written_in_all(tmp_path: Path, move: Move, torn: bool) -> None:
    """All that a run writes, its journal too, is at most 16 KiB a tape, also where a header copy is torn."""
    old, new = move
    paths = make_tapes(tmp_path / "tapes", old, 50)
    for path in paths * torn:
        with open(path, "r+b") as file:
            file.write(bytes(100))
    count = """
        def written():
            return int(dict(line.split(": ") for line in open("/proc/self/io"))["wchar"])

        before = written()
    """
    program = f"{textwrap.dedent(count)}{REWRAP}\nprint(written() - before)"
    ran = child(program, old.path, new.path, tmp_path / "tapes", tmp_path / "journal", 2)
    assert "" == ran.stderr
    ready, written = ran.stdout.split()
    assert 50 * 2 * 4096 < int(written) - len(ready) <= 50 * 16384
    assert [opens(path, new) for path in paths] == [True] * 50


def test_find_tapes(tmp_path: Path, move: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories, patterns and names give each tape once, and no other file of a directory."""
    paths = make_tapes(tmp_path / "tapes", move[0], 4)
    (tmp_path / "tapes" / "notes.txt").write_text("no tape")
    (tmp_path / "tapes" / "again.tape").symlink_to(paths[0])
    os.mkfifo(tmp_path / "tapes" / "fifo")
    assert sorted(find_tapes([tmp_path / "tapes"])) == paths
    assert sorted(find_tapes([tmp_path / "tapes", *paths])) == paths
    monkeypatch.chdir(tmp_path)
    assert [Path(path).name for path in find_tapes(["tapes/below/*.tape"])] == ["1.tape", "3.tape"]
    assert len(list(find_tapes(["tapes/**/*.tape"]))) == 4
    assert list(find_tapes(["missing"])) == ["missing"]


@pytest.mark.parametrize("name", ["empty", "nothing*"])
def test_find_no_tapes(tmp_path: Path, name: str) -> None:
    """A directory or a pattern without a tape is an error, and no silent success."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no tape in"):
        list(find_tapes([tmp_path / name]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("key=transit/day", [True, True, False, False]),
        ("key!=transit/day", [False, False, True, True]),
        ("key=transit/*", [True, True, False, False]),
        ("provider=local", [False, False, True, False]),
        ("version<2", [True, False, False, False]),
        ("version <= 12", [True, True, False, False]),
        ("version=12", [False, True, False, False]),
        ("version>=1", [True, True, False, False]),
        ("version!=1", [False, True, False, False]),
    ],
)
def test_conditions(text: str, expected: list[bool]) -> None:
    """A condition holds for what it says, and versions are numbers."""
    recipients = [
        Recipient("vault-transit", "transit/day", "vault:v1:AAAA", "context"),
        Recipient("vault-transit", "transit/day", "vault:v12:AAAA", "context"),
        Recipient("local", "0123456789abcdef", "vault"),
        Recipient("aws-kms", "arn:aws:kms:us-east-1:1:key/a", "AAAA"),
    ]
    assert [Condition.parse(text).holds(recipient) for recipient in recipients] == expected


@pytest.mark.parametrize(
    "text", ["", "key", "key<a", "version=x", "version<", "colour=red", "key="]
)
def test_bad_conditions(text: str) -> None:
    """What is no condition is refused."""
    with pytest.raises(ValueError, match=r"condition|version|compared"):
        Condition.parse(text)


def test_blast_radius(tmp_path: Path, move: Move) -> None:
    """The tapes that a key opens are found, with what they hold, by their headers; no other is."""
    old, new = move
    paths = make_tapes(tmp_path, old, 6)
    list(rewrap_fleet(paths[:2], keyring=old, to=new))
    list(rewrap_fleet(paths[2:3], keyring=old, to=tapeseal.AnyOf([old, new])))
    (tmp_path / "notes").write_text("no tape")
    condition = Condition.parse(f"key={new.key_ids[-1]}")
    found = list(blast_radius([*paths, str(tmp_path / "notes")], [condition]))
    errors = [each for each in found if isinstance(each, tuple)]
    exposed = sorted(each.path for each in found if not isinstance(each, tuple))
    assert exposed == paths[:3]
    assert [(path, type(error)) for path, error in errors] == [
        (str(tmp_path / "notes"), NotATapeError)
    ]
    assert sum(each.inspection.items for each in found if not isinstance(each, tuple)) == 300
    assert all(each.alone for each in found if not isinstance(each, tuple))


def test_conditions_hold_for_one_recipient(tmp_path: Path, move: Move) -> None:
    """Two conditions that two recipients meet, each one of them, are not met."""
    old, new = move
    paths = make_tapes(tmp_path, tapeseal.AnyOf([old, new]), 1)
    parse: Callable[[str], Condition] = Condition.parse
    both = [parse(f"key={old.key_ids[-1]}"), parse(f"key={new.key_ids[-1]}")]
    assert list(blast_radius(paths, both)) == []
