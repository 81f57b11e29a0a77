"""Fleets of tapes: rewrapping all of them, stopping and going on, and finding those that a key opens."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tapeseal
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


def kill_at_random(folder: Path, paths: list[str], seed: int) -> list[int]:
    """Rewrap in a child that is killed, and return the generations then."""
    program = (
        "import sys, tapeseal\n"
        "from tapeseal.fleet import rewrap_fleet, find_tapes\n"
        "old, new = tapeseal.keyring('local:' + sys.argv[1]), tapeseal.keyring('local:' + sys.argv[2])\n"
        "print('ready', flush=True)\n"
        "for each in rewrap_fleet(find_tapes([sys.argv[3]]), keyring=old, to=new, journal=sys.argv[4]):\n"
        "    assert each.state != 'failed', each\n"
    )
    arguments = [folder / "old.key", folder / "new.key", folder / "tapes", folder / "journal"]
    child = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(seed * 0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    return [tapeseal.inspect(path).generation for path in paths]


@pytest.mark.slow
def test_killed_runs_go_on(tmp_path: Path) -> None:
    """kill -9 at any time leaves every tape open to one of the keyrings, and the next run goes on from there."""
    for name in ("old.key", "new.key"):
        create_key_file(tmp_path / name)
    old, new = LocalKeyring(tmp_path / "old.key"), LocalKeyring(tmp_path / "new.key")
    paths = make_tapes(tmp_path / "tapes", old, 300)
    bodies = [body(path) for path in paths]
    seen = set()
    for seed in range(20):
        generations = kill_at_random(tmp_path, paths, seed)
        seen.add(sum(generations))
        assert {opens(path, old) + opens(path, new) for path in paths} == {1}
    assert len(seen) > 1
    rest = list(rewrap_fleet(paths, keyring=old, to=new, journal=tmp_path / "journal"))
    assert {result.state for result in rest} <= {"rewrapped", "skipped"}
    assert [opens(path, new) for path in paths] == [True] * 300
    assert [body(path) for path in paths] == bodies


@pytest.mark.skipif(not shutil.which("strace"), reason="strace counts what is written")
def test_bytes_written(tmp_path: Path, move: Move) -> None:
    """A rewrap writes at most 16 KiB of a tape."""
    old, new = move
    (path,) = make_tapes(tmp_path, old, 1)
    program = (
        "import sys, tapeseal\n"
        "from tapeseal.fleet import rewrap_fleet\n"
        "keyrings = [tapeseal.keyring('local:' + path) for path in sys.argv[1:3]]\n"
        "(done,) = rewrap_fleet([sys.argv[3]], keyring=keyrings[0], to=keyrings[1])\n"
        "assert done.state == 'rewrapped', done\n"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=write,pwrite64,writev,pwritev", "-o", str(trace)]
    ran = subprocess.run(
        [*command, sys.executable, "-c", program, old.path, new.path, path], capture_output=True
    )
    if ran.returncode != 0 and b"ptrace" in ran.stderr:
        pytest.skip("the system does not allow ptrace")
    assert ran.returncode == 0, ran.stderr
    writes = [line for line in trace.read_text().splitlines() if path in line]
    written = [int(line.rpartition("= ")[2]) for line in writes]
    assert 0 < sum(written) <= 16384


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
