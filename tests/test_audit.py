"""The audit log: what an entry says, who writes it at once with others, what a crash or a full disk leaves."""

import contextlib
import errno
import fcntl
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import tapeseal
from audit_logs import (
    check_as_documented,
    entries,
    kinds,
    make_log,
    put_back,
    record,
    recording,
    save,
    verified,
)
from support import child, leaks, start_child
from tapeseal import audit
from tapeseal.audit_log import chain, sinks
from tapeseal.audit_log import log as log_module
from tapeseal.audit_log.check import verify_log
from tapeseal.audit_log.log import AuditLog, create_log, file_path, head_path
from tapeseal.audit_log.report import parse_entry
from tapeseal.audit_log.sinks import OpenTelemetrySink, SyslogSink
from tapeseal.errors import (
    AuditError,
    DamagedError,
    ForkError,
    KeyUnavailableError,
    ServiceUnavailableError,
)
from tapeseal.keyrings.local import LocalKeyring, add_key, create_key_file

if TYPE_CHECKING:
    from servers.bao import Server

CANARY = "hunter2-canary-8f1c"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a log can be made."""
    return tmp_path / "audit.log"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Leave no log behind that takes other tests' operations."""
    yield
    audit.stop()


def actions(path: Path) -> list[str]:
    """Return what the entries of a log did."""
    return [each["action"] for each in entries(path)]


# Entries


def test_without_a_log_nothing_happens() -> None:
    """An operation without a log runs its body, and an exception passes."""
    with audit.operation("kv.read", "secret/a", note="b") as entry:
        entry.version = 3
    with pytest.raises(KeyError), audit.operation("kv.read", "secret/a"):
        raise KeyError


@pytest.mark.parametrize(
    ("subject", "details"),
    [
        (b"secret/a", {}),
        (tapeseal.Secret.take(bytearray(b"x")), {}),
        ("secret/a", {"note": tapeseal.Secret.take(bytearray(b"x"))}),
        ("secret/a", {"note": b"x"}),
        ("secret/a", {"note": 1.5}),
        ("secret/a", {"note": ["x"]}),
    ],
)
def test_only_text_and_whole_numbers(subject: Any, details: dict[str, Any]) -> None:
    """A subject or a detail that may be a secret is refused, also without a log."""
    with pytest.raises(TypeError, match="text or a whole number"):
        audit.operation("kv.read", subject, **details)


def test_entry(path: Path, keyring: LocalKeyring) -> None:
    """An entry says who did what to which version and how it ended; the number counts from 1."""
    with (
        recording(path, keyring, identity="oms"),
        audit.operation("kv.read", "secret/a", mount="secret", cas=4, none=None) as entry,
    ):
        entry.version = 3
    opened, found = entries(path)
    assert ("audit.open", 1) == (opened["action"], opened["sequence"])
    assert (
        time.time() - 60
        < time.mktime(time.strptime(found["time"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
    )
    del found["time"], found["seconds"], found["mac"]
    assert {
        "sequence": 2,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": log_module._user_name(os.geteuid()),
        "identity": "oms",
        "program": log_module.program(),
        "action": "kv.read",
        "subject": "secret/a",
        "version": 3,
        "result": "done",
        "details": {"mount": "secret", "cas": 4, "none": None},
    } == {name: value for name, value in found.items() if name != "login"}


def test_failure_is_named_not_quoted(path: Path, keyring: LocalKeyring) -> None:
    """Of an exception its kind is recorded, and nothing of what it says."""
    with recording(path, keyring):
        for error in (
            KeyError(CANARY),
            tapeseal.AccessDeniedError(CANARY),
            KeyboardInterrupt(CANARY),
        ):
            with contextlib.suppress(BaseException), audit.operation("kv.read", "secret/a"):
                raise error
    assert ["KeyError", "AccessDeniedError", "KeyboardInterrupt"] == [
        each["result"] for each in entries(path)[1:]
    ]
    assert CANARY not in path.read_text()


def test_a_result_of_the_body_stays(path: Path, keyring: LocalKeyring) -> None:
    """What the body says of the result stands, unless an exception says otherwise."""
    with recording(path, keyring):
        with audit.operation("tape.verify", "a") as entry:
            entry.result = "damaged"
        with contextlib.suppress(ValueError), audit.operation("tape.verify", "a") as entry:
            entry.result = "damaged"
            raise ValueError
    assert ["damaged", "ValueError"] == [each["result"] for each in entries(path)[1:]]


@pytest.mark.parametrize(
    "text",
    [
        "a\nb",
        'a","mac":"' + "0" * 64 + '"}\n{"sequence":9',
        "caf\udce9",
        "\x00\x1b[2J",
        "é\u202e",
        "",
    ],
)
def test_text_makes_no_line(path: Path, keyring: LocalKeyring, text: str) -> None:
    """Whatever a subject or a detail holds, an entry is one line, and reads as it was."""
    with recording(path, keyring), audit.operation("kv.read", text, note=text):
        pass
    (found,) = entries(path)[1:]
    assert (text, text) == (found["subject"], found["details"]["note"])
    verified(path, keyring)


def test_long_text_is_cut(path: Path, keyring: LocalKeyring) -> None:
    """Text over 1024 characters is cut and says so; details beyond a measure are dropped; a line fits its limit."""
    with recording(path, keyring):
        with audit.operation("kv.read", "\u20ac" * 5000):
            pass
        with audit.operation(
            "kv.read", "a", **{f"d{number}": "\u20ac" * 1000 for number in range(40)}
        ):
            pass
    first, second = entries(path)[1:]
    assert "\u20ac" * 1024 + "… (+3976)" == first["subject"]
    assert {"dropped": 40} == second["details"]
    verified(path, keyring)


def test_no_entry_is_too_long_to_be_read(
    path: Path, keyring: LocalKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long everything is that goes into an entry, a report finds it, and a datagram holds it."""
    long = "\N{GRINNING FACE}" * 10_000
    monkeypatch.setattr(sys, "argv", [long])
    monkeypatch.setenv("SUDO_USER", long)
    with (
        recording(path, keyring, identity=long),
        audit.operation(long, long, **{long: long, "a": "\x00" * 2000}) as entry,
    ):
        entry.version = entry.result = long
    lines = path.read_bytes().splitlines()[1:]
    assert [2, 2] == [len(lines), sum(parse_entry(each) is not None for each in lines)]
    header = (
        200  # Of a syslog message, and those of UDP and IP: a datagram has at most 65,535 bytes.
    )
    assert max(map(len, lines)) < min(chain.MAX_LINE_SIZE, 65_535 - header)
    verified(path, keyring)


def test_a_detail_that_is_no_text(path: Path, keyring: LocalKeyring) -> None:
    """Of a value that gets into the details later, and is none, only the type is recorded."""
    secret = tapeseal.Secret.take(bytearray(CANARY.encode()))
    with recording(path, keyring), audit.operation("kv.read", "a") as entry:
        entry.details["value"] = secret  # type: ignore[assignment]
        entry.version = CANARY.encode()  # type: ignore[assignment]
    (found,) = entries(path)[1:]
    assert ({"value": "<Secret>"}, "<bytes>") == (found["details"], found["version"])
    assert CANARY not in path.read_text()


def test_login_behind_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who became another user by sudo is named too, where the kernel does not know it better."""
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr(Path, "read_text", lambda self: "4294967295")
    assert "alice" == log_module._login_name(0)
    monkeypatch.setattr(Path, "read_text", lambda self: "0")
    assert None is log_module._login_name(0)
    assert "root" == log_module._login_name(1000)


# The file


def test_format_is_as_documented(path: Path, keyring: LocalKeyring) -> None:
    """A reader written from docs/audit.md finds every MAC of header, entries and head."""
    make_log(path, keyring, 20)
    assert 20 == check_as_documented(path, keyring)


def test_only_the_owner(path: Path, keyring: LocalKeyring) -> None:
    """Log and head are their owner's alone, whatever the umask; or also the group's."""
    before = os.umask(0)
    try:
        create_log(path, keyring=keyring)
        create_log(path.with_name("shared"), keyring=keyring, mode=0o660)
    finally:
        os.umask(before)
    assert [0o600, 0o600, 0o660, 0o660] == [
        stat.S_IMODE(os.stat(each).st_mode)
        for name in (path, path.with_name("shared"))
        for each in (name, head_path(name))
    ]


@pytest.mark.parametrize(
    "more", [{"roll_size": 0}, {"roll_seconds": 0}, {"mode": 0o644}, {"mode": 0o400}]
)
def test_create_refuses(path: Path, keyring: LocalKeyring, more: dict[str, int]) -> None:
    """Limits below 1 and modes that let others in, or the owner out, are refused, and nothing is made."""
    with pytest.raises(ValueError):
        create_log(path, keyring=keyring, **more)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize("left", ["head", "earlier file"])
def test_create_refuses_what_is_left_of_a_log(path: Path, keyring: LocalKeyring, left: str) -> None:
    """Where a log was taken away none is made in its place as long as its head or an earlier file tells of it."""
    make_log(path, keyring, 3)
    with AuditLog(path, keyring=keyring) as log:
        earlier = log.roll()
    path.unlink()
    os.unlink(earlier if left == "head" else head_path(path))
    before = [(each, each.read_bytes()) for each in path.parent.iterdir()]
    with pytest.raises(FileExistsError):
        create_log(path, keyring=keyring)
    assert before == [(each, each.read_bytes()) for each in path.parent.iterdir()]


def test_create_never_overwrites(path: Path, keyring: LocalKeyring) -> None:
    """What stands at the path stays, and so does its head."""
    make_log(path, keyring, 3)
    before = save(path)
    with pytest.raises(FileExistsError):
        create_log(path, keyring=keyring)
    assert before == save(path)


def test_a_log_that_is_not_there(path: Path, keyring: LocalKeyring) -> None:
    """A missing log is an error, and no new one is made in its place."""
    with pytest.raises(FileNotFoundError, match="somebody took it away"):
        AuditLog(path, keyring=keyring)
    assert [] == list(path.parent.iterdir())


@pytest.mark.parametrize("which", ["symlink", "hard link", "fifo", "mode"])
@pytest.mark.parametrize("of", ["log", "head"])
def test_only_a_file_of_its_own(path: Path, keyring: LocalKeyring, which: str, of: str) -> None:
    """A link, a pipe, or a file that is open to everybody is refused as log and as head; nothing is written."""
    make_log(path, keyring, 3)
    target = path if of == "log" else Path(head_path(path))
    aside = target.with_name("aside")
    if which == "symlink":
        target.rename(aside)
        target.symlink_to(aside)
    elif which == "hard link":
        os.link(target, aside)
    elif which == "fifo":
        target.unlink()
        os.mkfifo(target)
    else:
        target.chmod(0o604)
    before = None if which == "fifo" else target.read_bytes()
    with pytest.raises((AuditError, OSError)) as caught, recording(path, keyring):
        record(1)
    assert which in ("fifo",) or isinstance(caught.value, AuditError)
    assert which == "fifo" or before == target.read_bytes()


@pytest.mark.parametrize("of", ["log", "head"])
def test_a_link_under_a_running_writer(path: Path, keyring: LocalKeyring, of: str) -> None:
    """A writer that finds a link in the place of its own file writes nothing, though it leads to that very file."""
    target = path if of == "log" else Path(head_path(path))
    aside = target.with_name("aside")
    create_log(path, keyring=keyring)
    with recording(path, keyring):
        record(3)
        target.rename(aside)
        target.symlink_to(aside)
        before = target.read_bytes()
        with pytest.raises(AuditError, match="symbolic link"):
            record(1)
        assert before == target.read_bytes()
        target.unlink()
        aside.rename(target)
        record(1)
    found = verify_log(path, keyring=keyring)
    assert (True, []) == (found.ok, list(found.problems))


def test_another_keyring(path: Path, keyring: LocalKeyring, other_keyring: LocalKeyring) -> None:
    """Who cannot unwrap the log's key cannot write it."""
    create_log(path, keyring=keyring)
    with pytest.raises(KeyUnavailableError):
        AuditLog(path, keyring=other_keyring)


def test_foreign_files_are_no_logs(path: Path, keyring: LocalKeyring) -> None:
    """A file that does not start as a log is refused, and left as it is."""
    path.write_bytes(b"root:x:0:0\n")
    path.chmod(0o600)
    with pytest.raises(DamagedError, match="not the first line of an audit log"):
        AuditLog(path, keyring=keyring)
    assert b"root:x:0:0\n" == path.read_bytes()


# Many writers


_WRITER = """
    import sys
    from tapeseal import audit
    from tapeseal.audit_log.log import AuditLog
    with AuditLog(sys.argv[1], keyring=f"local:{sys.argv[2]}", sync_seconds=None) as log:
        audit.start(log)
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(int(sys.argv[3])):
            with audit.operation("kv.read", f"secret/{number}"):
                pass
            if len(sys.argv) > 4:
                print(number, flush=True)
"""


def start_writer(path: Path, key_file: str, count: int, *more: str) -> subprocess.Popen[str]:
    """Start a process that writes entries when it gets a line."""
    return start_child(_WRITER, path, key_file, count, *more, stdin=subprocess.PIPE)


@pytest.mark.parametrize("roll_size", [None, pytest.param(40_000, marks=pytest.mark.slow)])
def test_processes_write_one_chain(
    path: Path, keyring: LocalKeyring, key_file: str, roll_size: int | None
) -> None:
    """Eight processes that write at once make one chain, through changes of the file too, and lose nothing."""
    create_log(path, keyring=keyring, roll_size=roll_size)
    writers = [start_writer(path, key_file, 150) for _ in range(8)]
    for writer in writers:
        assert writer.stdout is not None
        assert "ready\n" == writer.stdout.readline()
    for writer in writers:
        writer.communicate(input="\n", timeout=60)
    found = verified(path, keyring)
    assert 8 * 151 == found.entries
    assert (roll_size is None) == (len(found.files) == 1)


def test_threads_write_one_chain(path: Path, keyring: LocalKeyring) -> None:
    """Threads share a log, and each entry is in the file when its operation ends."""
    seen: list[int] = []

    def work(number: int) -> None:
        for turn in range(50):
            with audit.operation("kv.read", f"secret/{number}/{turn}"):
                pass
            seen.append(f'"secret/{number}/{turn}"' in path.read_text())

    with recording(path, keyring, sync_seconds=0):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [True] * 600 == seen
    assert 601 == verified(path, keyring).entries


def test_two_logs_in_one_process(path: Path, keyring: LocalKeyring) -> None:
    """Two openings in one process take turns as two processes do."""
    create_log(path, keyring=keyring)
    with AuditLog(path, keyring=keyring) as one, AuditLog(path, keyring=keyring) as other:
        for turn in range(20):
            audit.start(one if turn % 3 else other)
            record(1)
    assert 22 == verified(path, keyring).entries


def test_a_lock_that_is_held(
    path: Path, keyring: LocalKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another process holds the log for too long the operation ends with an error; its entry comes later."""
    monkeypatch.setattr(log_module, "LOCK_SECONDS", 0.05)
    with recording(path, keyring):
        record(1)
        with open(head_path(path), "rb") as head:
            fcntl.flock(head, fcntl.LOCK_EX)
            with pytest.raises(AuditError, match=r"held.*the operation itself is over"):
                record(1, subject="secret/late")
            with pytest.raises(AuditError, match="the operation was not begun"):
                record(1, subject="secret/never")
        record(1)
    assert ["secret/late"] == [each["subject"] for each in entries(path)[2:3]]
    assert "secret/never" not in path.read_text()
    verified(path, keyring)


# Crashes


@pytest.mark.slow
def test_killed_writers_leave_a_valid_log(path: Path, keyring: LocalKeyring, key_file: str) -> None:
    """After kill -9 at any instant the log verifies, and holds every entry whose operation had ended."""
    create_log(path, keyring=keyring, roll_size=30_000)
    dice = random.Random(3)
    ended: dict[int, set[str]] = {}
    for _ in range(4):
        writers = [start_writer(path, key_file, 10**6, "say") for _ in range(2)]
        for writer in writers:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdout.readline()
            writer.stdin.write("\n")
            writer.stdin.flush()
        time.sleep(dice.uniform(0.01, 0.05))
        for writer in writers:
            writer.kill()
            said, _ = writer.communicate()
            whole = said.splitlines()[: said.count("\n")]
            ended[writer.pid] = {f"secret/{each}" for each in whole}
        found = verified(path, keyring)
    assert len(found.files) > 1
    written: dict[int, set[str]] = {}

    def take(line: bytes) -> None:
        entry = json.loads(line)
        written.setdefault(entry["pid"], set()).add(entry["subject"])

    verify_log(path, keyring=keyring, each=take)
    assert {pid: set() for pid in ended} == {
        pid: subjects - written.get(pid, set()) for pid, subjects in ended.items()
    }


def killed_at(call: int, half: bool, path: Path, key_file: str) -> bool:
    """Write to a log in a fork that dies before a call to the system, or in the middle of it; False: it did not."""
    pid = os.fork()
    if pid == 0:
        made = 0

        def deadly(function: Any) -> Any:
            def run(*arguments: Any, **more: Any) -> Any:
                nonlocal made
                made += 1
                if made == call:
                    # What pwrite() writes is the head: within one page, so never half of it.
                    if half and function.__name__ == "write":
                        function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **more)

            return run

        for name in ("write", "pwrite", "rename", "fsync", "fdatasync", "ftruncate", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        with contextlib.suppress(BaseException):
            with AuditLog(path, keyring=f"local:{key_file}", sync_seconds=0) as log:
                audit.start(log)
                record(2, subject="secret/first")
                log.roll()
                record(2, subject="secret/second")
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize(
    "half",
    [
        pytest.param(False, id="before it", marks=pytest.mark.slow),
        pytest.param(True, id="in the middle"),
    ],
)
def test_killed_at_every_call(path: Path, keyring: LocalKeyring, key_file: str, half: bool) -> None:
    """A writer that dies at any call to the system leaves a log that verifies and goes on."""
    create_log(path, keyring=keyring)
    call = 0
    while True:
        call += 1
        if not killed_at(call, half, path, key_file):
            break
        found = verify_log(path, keyring=keyring)
        # Between the two renamings of a roll alone the file has not its name.
        assert [] == found.problems or (not path.exists() and "is gone" in found.problems[0].text)
        with recording(path, keyring):
            record(1)
        found = verify_log(path, keyring=keyring)
        assert ([], found.last) == (found.problems, found.entries)
    assert call > 15
    assert half == ("torn" in {each.kind for each in found.notices})


def test_killed_between_entry_and_head(path: Path, keyring: LocalKeyring) -> None:
    """A writer that dies before it updates the head has written its entry: the log verifies, and goes on."""
    make_log(path, keyring, 5)
    head = Path(head_path(path)).read_bytes()
    with recording(path, keyring):
        record(3)
    Path(head_path(path)).write_bytes(head)
    assert 9 == verified(path, keyring).entries
    with recording(path, keyring):
        record(1)
    assert 11 == verified(path, keyring).entries


@pytest.mark.parametrize("cut", [1, 40, -3, -2])
def test_a_torn_line_is_kept(path: Path, keyring: LocalKeyring, cut: int) -> None:
    """A line that a crash cut short stays as it is; the chain goes on behind it, and says what it found."""
    make_log(path, keyring, 5)
    head = Path(head_path(path)).read_bytes()
    with recording(path, keyring):
        record(1)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[6][:cut]
    path.write_bytes(b"".join(lines[:6]) + torn)
    Path(head_path(path)).write_bytes(head)
    found = verify_log(path, keyring=keyring)
    assert ([], ["torn"]) == (found.problems, [each.kind for each in found.notices])
    with recording(path, keyring):
        record(2)
    assert torn + b"\n" in path.read_bytes()
    found = verify_log(path, keyring=keyring)
    assert ([], ["torn"], 9) == (
        found.problems,
        [each.kind for each in found.notices],
        found.entries,
    )
    assert "audit.torn" in path.read_text()


def test_a_line_without_its_newline(path: Path, keyring: LocalKeyring) -> None:
    """An entry of which a crash kept the newline alone is an entry."""
    make_log(path, keyring, 3)
    head = Path(head_path(path)).read_bytes()
    with recording(path, keyring):
        record(1)
    path.write_bytes(path.read_bytes()[:-1])
    Path(head_path(path)).write_bytes(head)
    assert 5 == verified(path, keyring).entries
    with recording(path, keyring):
        record(1)
    assert 7 == verified(path, keyring).entries
    assert "audit.torn" not in path.read_text()


def test_what_somebody_appended_is_kept_and_reported(path: Path, keyring: LocalKeyring) -> None:
    """Lines that the log did not write stay too, and are a problem."""
    make_log(path, keyring, 3)
    with path.open("ab") as file:
        file.write(b'{"sequence":4,"note":"trust me"}\n')
    with recording(path, keyring):
        record(1)
    assert b"trust me" in path.read_bytes()
    assert ["added"] == kinds(path, keyring)


def test_a_cut_that_a_writer_found(path: Path, keyring: LocalKeyring) -> None:
    """A writer goes on behind a log that was cut, and the hole stays to be seen for ever."""
    make_log(path, keyring, 8)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]))
    with recording(path, keyring):
        record(4)
    found = verify_log(path, keyring=keyring)
    assert ["cut"] == [each.kind for each in found.problems]
    assert "entries 6 to 8 are gone" in found.problems[0].text
    # The note, the opening and four more.
    assert (5 + 6, 14) == (found.entries, found.last)


def test_a_cut_inside_a_line_that_a_writer_found(path: Path, keyring: LocalKeyring) -> None:
    """The same where the cut left a piece of a line."""
    make_log(path, keyring, 8)
    path.write_bytes(path.read_bytes()[:-100])
    with recording(path, keyring):
        record(4)
    assert {"changed", "cut"} == set(kinds(path, keyring))


@pytest.mark.parametrize("state", ["missing", "empty", "forged", "of another log"])
def test_a_head_that_is_not_its_own(path: Path, keyring: LocalKeyring, state: str) -> None:
    """Without an authentic head the end cannot be told: that is a problem, now and when a writer has gone on."""
    make_log(path, keyring, 5)
    head = Path(head_path(path))
    if state == "missing":
        head.unlink()
    elif state == "empty":
        head.write_bytes(b"")
    elif state == "forged":
        head.write_bytes(head.read_bytes().replace(b"sequence=", b"sequence=", 1)[:-3] + b"00\n")
    else:
        other = make_log(path.with_name("other"), keyring, 5)
        head.write_bytes(Path(head_path(other)).read_bytes())
    assert ["head"] == kinds(path, keyring)
    with recording(path, keyring):
        record(2)
    found = verify_log(path, keyring=keyring)
    assert (["head"], 9) == ([each.kind for each in found.problems], found.entries)


def test_a_head_taken_away_from_a_running_writer(path: Path, keyring: LocalKeyring) -> None:
    """A writer notices that the head was removed under it, or that the log was."""
    with recording(path, keyring):
        record(2)
        os.unlink(head_path(path))
        record(2)
        assert "audit.head" in actions(path)
        path.rename(path.with_name("gone"))
        with pytest.raises(AuditError, match="takes no entry"):
            record(1)


@pytest.mark.parametrize("how", ["in place", "by renaming", "after it was rolled"])
def test_put_back_under_a_running_writer(path: Path, keyring: LocalKeyring, how: str) -> None:
    """A writer remembers how far it came: a log and a head that are put back together under it are a cut, for ever."""
    with recording(path, keyring) as log:
        record(3)
        saved = save(path)
        if how == "after it was rolled":
            log.roll()
        record(5)
        if how == "after it was rolled":
            os.replace(file_path(path, 1), path)
        elif how == "by renaming":
            for target in (path, Path(head_path(path))):
                copy = Path(shutil.copy2(target, f"{target}.copy"))
                copy.rename(target)
        put_back(path, saved)
        record(2)
    found = verify_log(path, keyring=keyring)
    assert ["cut"] == [each.kind for each in found.problems]
    assert "entries 5 to 9 are gone" in found.problems[0].text
    assert (4 + 3, 12) == (found.entries, found.last)


def test_a_copy_in_its_place(path: Path, keyring: LocalKeyring) -> None:
    """Writers go on in a copy that takes the log's place, and in one of the head; what is lacking there is a cut."""
    with recording(path, keyring):
        record(2)
        for target in (path, Path(head_path(path))):
            Path(shutil.copy2(target, f"{target}.copy")).rename(target)
            record(1)
    assert 5 == verified(path, keyring).entries
    with recording(path, keyring):
        copy = Path(shutil.copy2(path, f"{path}.copy"))
        record(3)
        copy.rename(path)
        record(1)
    assert ["cut"] == kinds(path, keyring)


def test_another_log_in_its_place(path: Path, keyring: LocalKeyring) -> None:
    """A running writer refuses another log, even one under the same keyring; nothing of it is changed."""
    other = make_log(path.with_name("other"), keyring, 3)
    with recording(path, keyring):
        record(2)
        put_back(path, save(other))
        path.unlink()
        path.write_bytes(other.read_bytes())
        path.chmod(0o600)
        with pytest.raises(AuditError, match="another audit log was put in the place"):
            record(1)
    assert other.read_bytes() == path.read_bytes()


# Full disks


_FULL = """
    import resource, sys
    from tapeseal import audit
    from tapeseal.audit_log.log import AuditLog
    from tapeseal.errors import AuditError
    import os
    path = sys.argv[1]
    with AuditLog(path, keyring=f"local:{sys.argv[2]}", strict=sys.argv[3] == "strict") as log:
        audit.start(log)
        with audit.operation("kv.read", "secret/before"): pass
        size = os.path.getsize(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, resource.RLIM_INFINITY))
        done = []
        for name in ("first", "second"):
            try:
                with audit.operation("kv.read", f"secret/{name}"):
                    done.append(name)
                print(name, "went on")
            except AuditError as error:
                print(name, "raised:", str(error).rpartition("; ")[2])
        print("done:", *done)
        print("grew:", os.path.getsize(path) - size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with audit.operation("kv.read", "secret/after"): pass
"""


@pytest.mark.parametrize(
    ("policy", "said", "subjects"),
    [
        (
            "strict",
            "first raised: the operation itself is over\nsecond raised: the operation was not begun\ndone: first\n",
            ["before", "first", "after"],
        ),
        (
            "lenient",
            "first went on\nsecond went on\ndone: first second\n",
            ["before", "first", "second", "after"],
        ),
    ],
)
def test_full_disk(
    path: Path, keyring: LocalKeyring, key_file: str, policy: str, said: str, subjects: list[str]
) -> None:
    """On a full disk a strict log ends operations, a lenient one lets them go on; entries come when there is room."""
    create_log(path, keyring=keyring)
    done = child(_FULL, path, key_file, policy)
    assert f"{said}grew: 0\n" == done.stdout
    assert [f"secret/{each}" for each in subjects] == [
        each["subject"] for each in entries(path)[1:]
    ]
    verified(path, keyring)


def test_entries_that_were_lost_are_counted(
    path: Path, keyring: LocalKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that cannot be written keeps so many entries; of those before them it says how many they were."""
    monkeypatch.setattr(log_module, "MAX_UNWRITTEN", 5)
    monkeypatch.setattr(log_module, "LOCK_SECONDS", 0.01)
    with recording(path, keyring, strict=False):
        record(1)
        with open(head_path(path), "rb") as head:
            fcntl.flock(head, fcntl.LOCK_EX)
            record(9, subject="secret/waiting")
        record(1)
    found = verify_log(path, keyring=keyring)
    assert ([], ["lost"]) == (found.problems, [each.kind for each in found.notices])
    assert "4 operations were not recorded" in found.notices[0].text
    assert ["audit.open", "kv.read", "audit.lost", *["kv.read"] * 6] == actions(path)


# Files


def test_rolled_by_size(path: Path, keyring: LocalKeyring) -> None:
    """A log goes on in a new file at its size, and the chain goes through all of them."""
    create_log(path, keyring=keyring, roll_size=2000)
    with recording(path, keyring):
        record(40)
    found = verified(path, keyring)
    assert 41 == found.entries
    assert [file_path(path, number) for number in range(1, len(found.files))] == found.files[:-1]
    assert all(os.path.getsize(name) < 2400 for name in found.files)
    assert {0o600} == {stat.S_IMODE(os.stat(name).st_mode) for name in found.files}


@pytest.mark.parametrize("days", [1, -1])
def test_rolled_by_time(
    path: Path, keyring: LocalKeyring, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """A log begins a new file with the first entry of another day, later or earlier, and none behind an empty one."""
    create_log(path, keyring=keyring, roll_seconds=86400)
    with recording(path, keyring):
        record(2)
        now = time.time()
        monkeypatch.setattr(log_module.time, "time", lambda: now + 86400 * days)
        record(2)
        record(1)
    assert 2 == len(verified(path, keyring).files)


def test_other_writers_follow(path: Path, keyring: LocalKeyring) -> None:
    """A writer whose file another one rolled goes on in the new one."""
    create_log(path, keyring=keyring)
    with AuditLog(path, keyring=keyring) as one, AuditLog(path, keyring=keyring) as other:
        for log in (one, other, one):
            audit.start(log)
            record(2)
            assert os.path.exists(log.roll())
        audit.start(other)
        record(1)
    found = verified(path, keyring)
    assert (4, 2 + 7) == (len(found.files), found.entries)


@pytest.mark.parametrize("when", ["before the new name", "before the head"])
@pytest.mark.parametrize("to", ["the same key", "a new key"])
def test_killed_while_rolling(
    path: Path, keyring: LocalKeyring, key_file: str, when: str, to: str
) -> None:
    """A writer that dies while it rolls leaves the old file or the new one, and the log goes on."""
    make_log(path, keyring, 4)
    head = Path(head_path(path)).read_bytes()
    with AuditLog(path, keyring=keyring) as log:
        old = log.roll(keyring if to == "a new key" else None)
    if when == "before the new name":
        path.rename(f"{path}.new")
    Path(head_path(path)).write_bytes(head)
    assert kinds(path, keyring) in ([], ["cut"])
    if when == "before the head" and to == "the same key":
        assert [] == kinds(path, keyring, from_file=2)
    with recording(path, keyring):
        record(2)
    assert 7 == verified(path, keyring).entries
    assert (when == "before the head") == os.path.exists(old)


class Away:
    """A keyring that needs a service for keys which another one wrapped, and the service is away for a while."""

    def __init__(self, always: LocalKeyring, sometimes: LocalKeyring) -> None:
        self.always, self.sometimes = always, sometimes
        self.is_there = False

    def unwrap(self, *arguments: Any) -> Any:
        try:
            return self.always.unwrap(*arguments)
        except KeyUnavailableError:
            if self.is_there:
                return self.sometimes.unwrap(*arguments)
            raise ServiceUnavailableError("it is away") from None


def test_killed_while_rolling_and_the_old_key_is_away(
    path: Path, keyring: LocalKeyring, other_keyring: LocalKeyring
) -> None:
    """A head that only the old key can tell from a forged one waits for the service that has it."""
    make_log(path, keyring, 4)
    head = Path(head_path(path)).read_bytes()
    with AuditLog(path, keyring=keyring) as log:
        log.roll(other_keyring)
    Path(head_path(path)).write_bytes(head)
    both = Away(other_keyring, keyring)
    with recording(path, both):
        with pytest.raises(AuditError, match="it is away"):
            record(1)
        both.is_there = True
        record(1)
    both.is_there = True
    assert 4 + 3 == verified(path, both).entries


def test_killed_between_entry_and_head_and_then_while_rolling(
    path: Path, keyring: LocalKeyring, key_file: str
) -> None:
    """A writer that dies while it rolls a log whose head is behind, since another died before, does it no harm."""
    make_log(path, keyring, 4)
    head = Path(head_path(path)).read_bytes()
    with recording(path, keyring):
        record(1)
    Path(head_path(path)).write_bytes(head)
    pid = os.fork()
    if pid == 0:
        rename = os.rename

        def deadly(source: Any, target: Any) -> None:
            rename(source, target)
            if target == str(path):
                os.kill(os.getpid(), signal.SIGKILL)

        with contextlib.suppress(BaseException):
            os.rename = deadly
            AuditLog(path, keyring=f"local:{key_file}").roll()
        os._exit(1)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert 6 == verified(path, keyring).entries
    with recording(path, keyring):
        record(1)
    assert (8, 2) == (verified(path, keyring).entries, len(verified(path, keyring).files))


@pytest.mark.parametrize("cut", [1, 40, -1])
@pytest.mark.parametrize("how", ["due", "asked for"])
def test_torn_and_rolled(path: Path, keyring: LocalKeyring, cut: int, how: str) -> None:
    """A file whose last line a crash cut short says so before the next one is begun."""
    create_log(path, keyring=keyring, roll_size=1800 if how == "due" else None)
    make_log(path, keyring, 4)
    head = Path(head_path(path)).read_bytes()
    with recording(path, keyring):
        record(1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:cut])
    Path(head_path(path)).write_bytes(head)
    with recording(path, keyring) as log:
        if how == "asked for":
            log.roll()
        record(4)
    found = verify_log(path, keyring=keyring)
    assert [] == found.problems
    assert ([] if cut == -1 else ["torn"]) == [each.kind for each in found.notices]
    assert 2 <= len(found.files)


def test_rolled_to_another_keyring(
    path: Path, keyring: LocalKeyring, other_keyring: LocalKeyring
) -> None:
    """A new file can have a key that who has the old one cannot unwrap; who has both goes on, and verifies."""
    both = tapeseal.AnyOf([other_keyring, keyring])
    create_log(path, keyring=keyring)
    with AuditLog(path, keyring=keyring) as old, AuditLog(path, keyring=both) as new:
        audit.start(old)
        record(2)
        audit.start(new)
        record(2)
        new.roll(other_keyring)
        record(2)
        audit.start(old)
        with pytest.raises(AuditError, match="no recipient is one of ours"):
            record(1)
        audit.stop()
    assert 8 == verified(path, both).entries
    with pytest.raises(KeyUnavailableError):
        verify_log(path, keyring=keyring)


def test_rolled_to_another_keyring_while_it_is_recorded(
    path: Path, keyring: LocalKeyring, other_keyring: LocalKeyring
) -> None:
    """Whoever rolls a log can make the new key while the process records that in the same log by another object."""
    both = tapeseal.AnyOf([other_keyring, keyring])
    create_log(path, keyring=keyring)
    with recording(path, both), AuditLog(path, keyring=both) as other:
        other.roll(other_keyring)
    assert ["audit.open", "key.unwrap", "key.generate"] == [
        each["action"] for each in entries(Path(file_path(path, 1)))
    ]
    verified(path, both)


def test_rolled_to_a_key_that_comes_later(path: Path, tmp_path: Path) -> None:
    """A writer that lacks the new file's key goes on once its key file has it."""
    old, new = str(tmp_path / "old.key"), str(tmp_path / "new.key")
    create_key_file(old)
    shutil.copy2(old, new)
    add_key(new)
    create_log(path, keyring=LocalKeyring(old))
    with recording(path, f"local:{old}") as log:
        record(1)
        audit.stop()
        with AuditLog(path, keyring=f"local:{new}") as other:
            other.roll(LocalKeyring(new))
        audit.start(log)
        with pytest.raises(AuditError):
            record(1)
        os.replace(new, old)
        record(1)
    assert 4 == verified(path, LocalKeyring(old)).entries


def test_rolling_never_overwrites(path: Path, keyring: LocalKeyring) -> None:
    """What stands where the old file is to go stays, and the log goes on in its present file."""
    create_log(path, keyring=keyring, roll_size=1500)
    make_log(path, keyring, 3)
    Path(file_path(path, 1)).write_text("mine")
    with AuditLog(path, keyring=keyring) as log, pytest.raises(AuditError, match="stands where"):
        log.roll()
    with recording(path, keyring):
        record(10)
    assert "mine" == Path(file_path(path, 1)).read_text()
    os.unlink(file_path(path, 1))
    assert 14 == verified(path, keyring).entries
    with recording(path, keyring):
        record(1)
    assert 2 == len(verified(path, keyring).files)


def test_many_files(path: Path, keyring: LocalKeyring) -> None:
    """A log of more files than a process may open is verified."""
    create_log(path, keyring=keyring, roll_size=1)
    with recording(path, keyring):
        record(60)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, limits[1]))
    try:
        assert 60 == len(verified(path, keyring).files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_disk_that_fails_to_sync_at_once(
    path: Path, keyring: LocalKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the disk with each entry is told where it fails; the entry is in the file once."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with recording(path, keyring, sync_seconds=0):
        with monkeypatch.context() as patch:
            patch.setattr(log_module.os, "fdatasync", fail)
            with pytest.raises(AuditError, match=r"Input/output error.*is over"):
                record(1, subject="secret/once")
        record(1)
    assert 1 == [each["subject"] for each in entries(path)].count("secret/once")
    verified(path, keyring)


def test_a_disk_that_fails_to_sync(
    path: Path, keyring: LocalKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries that could not be made durable are in the file, and it says so."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with recording(path, keyring, sync_seconds=0.01), monkeypatch.context() as patch:
        patch.setattr(log_module.os, "fdatasync", fail)
        record(2)
        deadline = time.monotonic() + 10
        while "audit.unsynced" not in actions(path) and time.monotonic() < deadline:
            time.sleep(0.02)
            record(1)
    found = verify_log(path, keyring=keyring)
    assert [] == found.problems
    assert "unsynced" in {each.kind for each in found.notices}


# Forks


def test_fork_opens_the_log_again(path: Path, keyring: LocalKeyring, key_file: str) -> None:
    """A fork of a process whose log has the URI of a keyring records too."""
    create_log(path, keyring=keyring)
    with AuditLog(path, keyring=f"local:{key_file}") as log:
        audit.start(log)
        record(2)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=record, args=(20,)) for _ in range(3)]
        for each in children:
            each.start()
        record(20)
        for each in children:
            each.join(30)
            assert 0 == each.exitcode
    assert 1 + 22 + 3 * 21 == verified(path, keyring).entries
    assert 4 == len({each["pid"] for each in entries(path)})


def test_fork_with_a_keyring_is_refused(path: Path, keyring: LocalKeyring) -> None:
    """A fork of a process whose log has a keyring object records nothing, and says so before it does anything."""
    with recording(path, keyring) as log:
        record(1)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with audit.operation("kv.read", "secret/a"):
                    code = 2
            except ForkError:
                code = 0 if log._key is None else 3
            os._exit(code)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        record(1)
    assert 3 == verified(path, keyring).entries


def test_fork_of_a_lenient_log(path: Path, keyring: LocalKeyring) -> None:
    """A fork of a process whose log is lenient goes on without entries where it cannot open the log."""
    with recording(path, keyring, strict=False) as log:
        record(1)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                record(3)
                os._exit(log.lost)
            os._exit(99)
        assert 3 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert 2 == verified(path, keyring).entries


def test_a_fork_keeps_no_lock(path: Path, keyring: LocalKeyring, key_file: str) -> None:
    """A writer that dies with the lock in its hand does not leave it to its forks."""
    create_log(path, keyring=keyring)
    code = """
        import fcntl, os, sys, time
        from tapeseal import audit
        from tapeseal.audit_log.log import AuditLog
        log = AuditLog(sys.argv[1], keyring=f"local:{sys.argv[2]}")
        audit.start(log)
        with audit.operation("kv.read", "secret/a"): pass
        fcntl.flock(log._head_fd, fcntl.LOCK_EX)
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(60)
        time.sleep(60)
    """
    parent = start_child(code, path, key_file)
    assert parent.stdout is not None
    fork = int(parent.stdout.readline())
    try:
        parent.kill()
        with recording(path, keyring):
            record(1)
    finally:
        os.kill(fork, signal.SIGKILL)
        parent.communicate()
    verified(path, keyring)


# Sinks


def receive(sock: socket.socket, count: int) -> list[str]:
    """Return so many datagrams."""
    sock.settimeout(10)
    return [sock.recv(1 << 16).decode() for _ in range(count)]


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_syslog_datagrams(path: Path, keyring: LocalKeyring, tmp_path: Path, kind: str) -> None:
    """Each entry goes to syslog as a message of RFC 5424, a warning where the operation failed."""
    if kind == "unix":
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = str(tmp_path / "syslog")
        server.bind(address)
    else:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{server.getsockname()[1]}"
    with server, recording(path, keyring, sinks=[SyslogSink(address)]):
        record(1)
        with contextlib.suppress(KeyError), audit.operation("kv.read", "secret/a\nb"):
            raise KeyError
        _, done, failed = receive(server, 3)
    lines = path.read_text().splitlines()
    entry = json.loads(lines[2])
    assert (
        f"<85>1 {entry['time'][:26]}Z {entry['host']} tapeseal {os.getpid()} audit - {lines[2]}"
        == done
    )
    assert failed.startswith("<84>1 ")
    assert failed.endswith(lines[3])


def test_a_message_too_long_for_a_datagram(path: Path, keyring: LocalKeyring) -> None:
    """An entry that no datagram holds is sent as far as one does, and those behind it as they are."""
    make_log(path, keyring, 2)
    line = path.read_bytes().splitlines()[2]
    long = line.replace(b"secret/", b"secret/" + b"a" * 70_000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        sink = SyslogSink(f"udp://127.0.0.1:{server.getsockname()[1]}")
        with contextlib.closing(sink):
            sink.send(long)
            sink.send(line)
            first, second = receive(server, 2)
    assert (first.startswith("<85>1 "), "secret/aaaa" in first) == (True, True)
    assert second.endswith(f" audit - {line.decode()}")


def test_sinks_by_name(path: Path, keyring: LocalKeyring, tmp_path: Path) -> None:
    """A sink can be named as in the environment; a name of none is refused before anything is opened."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "syslog"))
        with recording(path, keyring, sinks=[f"syslog:{tmp_path / 'syslog'}"]):
            record(1)
            assert path.read_text().splitlines()[2] in receive(server, 2)[1]
    with pytest.raises(ValueError, match="'foo' is no sink"):
        AuditLog(path, keyring=keyring, sinks=["foo"])


def test_syslog_over_tcp(path: Path, keyring: LocalKeyring) -> None:
    """Over TCP the length goes before each message, and a connection that breaks is made anew."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        sink = SyslogSink(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        with recording(path, keyring, sinks=[sink]):
            record(1)
            first, _ = server.accept()
            with first, first.makefile("rb") as stream:
                for line in path.read_bytes().splitlines()[1:]:
                    size = int(b"".join(iter(lambda: stream.read(1), b" ")))
                    assert stream.read(size).endswith(b" audit - " + line)
            # The other end is gone: the first entry after it may be lost with the connection, none after that.
            record(1)
            time.sleep(0.05)
            record(1)
            second, _ = server.accept()
            with second:
                second.settimeout(10)
                assert b" audit - " in second.recv(1 << 16)
    verified(path, keyring)


def test_a_sink_that_fails_harms_nothing(
    path: Path,
    keyring: LocalKeyring,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sink that is away holds no operation up; what waits is sent when it is back, what is too much is counted."""
    monkeypatch.setattr(sinks, "MAX_WAITING", 20)
    monkeypatch.setattr(sinks, "_LONGEST_PAUSE", 0.1)
    address = str(tmp_path / "syslog")
    with (
        caplog.at_level(logging.WARNING, "tapeseal.audit"),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
        recording(path, keyring, sinks=[SyslogSink(address)]) as log,
    ):
        record(40)
        # At least one try has failed before the sink is there.
        deadline = time.monotonic() + 10
        while not log.sink_failures()[f"syslog:{address}"][0] and time.monotonic() < deadline:
            time.sleep(0.01)
        server.bind(address)
        sent = receive(server, 20)
        failures, dropped = log.sink_failures()[f"syslog:{address}"]
        deadline = time.monotonic() + 10
        while "audit.sink_works" not in actions(path) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert failures > 0
    assert dropped >= 21
    assert '"subject":"secret/api-keys/binance"' in sent[1]
    assert {"audit.sink_failed", "audit.sink_works"} <= set(actions(path))
    assert "fails" in caplog.text
    assert "works again" in caplog.text
    verified(path, keyring)


@pytest.mark.parametrize(
    "address", ["host:514", "udp://host", "tls://host:1", "udp://host:x", "tcp://h:1/x"]
)
def test_no_address_of_a_syslog(address: str) -> None:
    """What is no address of a syslog is refused at once."""
    with pytest.raises(ValueError, match="is no address of a syslog"):
        SyslogSink(address)


def test_opentelemetry(path: Path, keyring: LocalKeyring) -> None:
    """Each entry becomes a log record of OpenTelemetry, with its members as attributes."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    with recording(path, keyring, sinks=[OpenTelemetrySink(provider)]):
        with audit.operation("kv.read", "secret/a", mount="secret") as entry:
            entry.version = 3
        with contextlib.suppress(KeyError), audit.operation("kv.read", "secret/b"):
            raise KeyError
    provider.shutdown()
    _, done, failed = [each.log_record for each in exporter.get_finished_logs()]
    written = entries(path)
    assert done.attributes is not None
    assert ("secret/a", 3, "secret", "done") == tuple(
        done.attributes[f"tapeseal.{name}"]
        for name in ("subject", "version", "details.mount", "result")
    )
    assert "kv.read secret/a: done" == done.body
    assert written[1]["time"][20:29] == f"{done.timestamp % 10**9:09d}"
    assert ("INFO", "WARN") == (done.severity_text, failed.severity_text)


# What the library records


def test_tapes_record_what_is_done_with_them(
    path: Path, keyring: LocalKeyring, tmp_path: Path
) -> None:
    """Opening, sealing, reading, verifying and rewrapping a tape are recorded, with its anchor, and no batch is."""
    tape = tmp_path / "day.tape"
    records = np.arange(1000, dtype="<u8")
    with recording(path, keyring):
        with tapeseal.open(tape, "x", keyring=keyring, dtype=records.dtype) as writer:
            for _ in range(50):
                writer.append(records)
                writer.flush()
        with tapeseal.open(tape, keyring=keyring) as reader:
            for _ in range(50):
                reader[5]
        tapeseal.verify(tape, keyring=keyring)
        tapeseal.rewrap(tape, keyring=keyring, to=keyring)
        appended = tapeseal.open(tape, "a", keyring=keyring)
        appended.close(seal=False)
        appended.close()
    done = [each["action"] for each in entries(path)[1:]]
    assert [
        *("key.generate", "tape.create", "tape.seal"),
        *("key.unwrap", "tape.read"),
        *("key.unwrap", "tape.verify"),
        *("key.unwrap", "key.wrap", "tape.rewrap"),
        *("key.unwrap", "tape.append", "tape.seal"),
    ] == done
    sealed = next(each for each in entries(path) if each["action"] == "tape.seal")
    assert str(tape) == sealed["subject"]
    anchor = tapeseal.Anchor.parse(sealed["details"]["anchor"])
    assert (writer.tape_id, 50_000) == (anchor.tape_id, anchor.items)


def test_files_blobs_and_rows_are_recorded(
    path: Path, keyring: LocalKeyring, other_keyring: LocalKeyring, tmp_path: Path
) -> None:
    """So are whole files, blobs, rows and key files; what fails is recorded by the name of its error."""
    plain = tmp_path / "plain"
    plain.write_bytes(b"data")
    records = np.arange(10, dtype="<u8")
    with recording(path, keyring):
        tapeseal.encrypt_file(plain, tmp_path / "t", keyring=keyring)
        tapeseal.decrypt_file(tmp_path / "t", tmp_path / "again", keyring=keyring)
        blob = tapeseal.encrypt(b"data", keyring=keyring)
        tapeseal.decrypt(blob, keyring=keyring)
        rows = tapeseal.RowEncryptor(keyring, dtype=records.dtype)
        for _ in range(20):
            sealed = rows.encrypt(records)
        tapeseal.RowDecryptor(rows.header, keyring=keyring).decrypt(sealed)
        create_key_file(tmp_path / "k")
        add_key(tmp_path / "k")
        with pytest.raises(KeyUnavailableError):
            tapeseal.decrypt(blob, keyring=other_keyring)
        with pytest.raises(FileNotFoundError):
            tapeseal.decrypt_file(tmp_path / "none", tmp_path / "x", keyring=keyring)
    found = [(each["action"], each["result"]) for each in entries(path)[1:]]
    assert [
        *("key.generate", "tape.seal", "tape.encrypt", "key.unwrap", "tape.decrypt"),
        *("key.generate", "blob.encrypt", "key.unwrap", "blob.decrypt"),
        *("key.generate", "rows.create", "key.unwrap", "rows.read"),
        *("key_file.create", "key_file.add"),
    ] == [action for action, result in found if result == "done"]
    assert [
        ("blob.decrypt", "KeyUnavailableError"),
        ("tape.decrypt", "FileNotFoundError"),
    ] == found[-2:]


def test_a_log_that_fails_costs_no_record(
    path: Path, keyring: LocalKeyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tape is sealed before its entry is written: where that fails the tape is safe all the same."""
    monkeypatch.setattr(log_module, "LOCK_SECONDS", 0.05)
    tape = tmp_path / "day.tape"
    records = np.arange(1000, dtype="<u8")
    with recording(path, keyring):
        writer = tapeseal.open(tape, "x", keyring=keyring, dtype=records.dtype)
        writer.append(records)
        with open(head_path(path), "rb") as head:
            fcntl.flock(head, fcntl.LOCK_EX)
            with pytest.raises(AuditError):
                tapeseal.open(tmp_path / "other.tape", "x", keyring=keyring, dtype=records.dtype)
            with pytest.raises(AuditError):
                writer.close()
        writer.close()
    assert not (tmp_path / "other.tape").exists()
    with tapeseal.open(tape, keyring=keyring) as reader:
        assert reader.sealed
        assert records.tobytes() == reader[:].tobytes()


def test_a_tape_that_cannot_be_recorded_is_given_up(
    path: Path, keyring: LocalKeyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer whose opening could not be recorded leaves no lock behind."""
    tape = tmp_path / "day.tape"
    with tapeseal.open(tape, "x", keyring=keyring, dtype="<u8") as writer:
        writer.append(np.arange(5, dtype="<u8"))

    def refuse(self: AuditLog, entry: audit.operation) -> None:
        raise AuditError("no")

    with recording(path, keyring):
        with monkeypatch.context() as patch:
            patch.setattr(AuditLog, "append", refuse)
            with pytest.raises(AuditError):
                tapeseal.open(tape, "a", keyring=keyring)
        tapeseal.open(tape, "a", keyring=keyring).close()


def test_reserve_is_recorded(path: Path, key_file: str, tmp_path: Path) -> None:
    """A reserve's refills are recorded, and its exhaustion once, however often it is asked."""
    from tapeseal.errors import ServiceUnavailableError

    class Failing(LocalKeyring):
        away = False

        def generate(self, encryption_context: Any) -> Any:
            if self.away:
                raise ServiceUnavailableError("away")
            return super().generate(encryption_context)

    failing = Failing(key_file)
    with (
        recording(path, LocalKeyring(key_file)),
        tapeseal.DataKeyReserve(failing, ready=1, max_messages=1) as reserve,
    ):
        tapeseal.encrypt(b"1", keyring=reserve)
        failing.away = True
        for _ in range(20):
            with contextlib.suppress(tapeseal.KeyUnavailableError):
                tapeseal.encrypt(b"2", keyring=reserve)
    found = [(each["action"], each["result"]) for each in entries(path)]
    assert ("reserve.refill", "done") in found
    # Twice where a key that was on its way came in between.
    assert 1 <= found.count(("reserve.exhausted", "ReserveExhaustedError")) <= 2


@pytest.mark.server
def test_vault_is_recorded(path: Path, keyring: LocalKeyring, bao: "Server") -> None:
    """Logins, their refusals, uses of a Transit key with its version, and revocations are recorded, no secret is."""
    from tapeseal.keyrings.vault_transit import VaultTransitKeyring
    from tapeseal.vault.logins import AppRole
    from tapeseal.vault.session import VaultSession

    mount = f"audit-{os.urandom(4).hex()}"
    bao.admin.sys.enable_secrets_engine("transit", path=mount)
    bao.admin.adapter.post(f"/v1/{mount}/keys/day", json={"derived": True})
    bao.admin.adapter.post(f"/v1/{mount}/keys/day/rotate")
    bao.admin.sys.enable_auth_method("approle", path=mount)
    policy = bao.policy(
        mount, f'path "{mount}/*" {{ capabilities = ["create", "read", "update"] }}'
    )
    bao.admin.adapter.post(
        f"/v1/auth/{mount}/role/r", json={"token_policies": [policy], "token_ttl": "60s"}
    )
    role_id = bao.admin.adapter.get(f"/v1/auth/{mount}/role/r/role-id")["data"]["role_id"]
    secret_id = bao.admin.adapter.post(f"/v1/auth/{mount}/role/r/secret-id")["data"]["secret_id"]
    with recording(path, keyring):
        login = AppRole(role_id, secret_id, mount=mount)
        with VaultSession(bao.address, login=login) as session:
            transit = VaultTransitKeyring(f"{mount}/day", session)
            blob = tapeseal.encrypt(b"data", keyring=transit)
            tapeseal.decrypt(blob, keyring=transit)
            session.close(revoke=True)
        with (
            VaultSession(bao.address, login=AppRole(role_id, CANARY, mount=mount)) as session,
            pytest.raises(tapeseal.AccessDeniedError) as caught,
        ):
            session.client  # noqa: B018
    found = [(each["action"], each.get("version"), each["result"]) for each in entries(path)[1:]]
    assert [
        ("vault.login", None, "done"),
        ("key.generate", 2, "done"),
        ("blob.encrypt", None, "done"),
        ("key.unwrap", 2, "done"),
        ("blob.decrypt", None, "done"),
        ("vault.revoke", None, "done"),
        ("vault.login", None, "AccessDeniedError"),
    ] == found
    assert f"auth/{mount}/login" == entries(path)[1]["details"]["path"]
    text = path.read_text()
    assert set() == {each for each in (CANARY, secret_id) if each in text}
    assert set() == leaks(caught.value, [CANARY, secret_id])


# The environment


def test_environment_names_the_log(path: Path, keyring: LocalKeyring, key_file: str) -> None:
    """A process whose environment names a log records there, from its first operation on; it opens it when it does."""
    create_log(path, keyring=keyring)
    code = """
        import os, tapeseal
        print(os.path.getsize(os.environ["TAPESEAL_AUDIT"]) < 1000, tapeseal.audit.active() is None)
        keyring = tapeseal.keyring(f"local:{os.environ['KEY']}")
        tapeseal.encrypt(b"", keyring=keyring)
        if os.fork() == 0:
            tapeseal.encrypt(b"", keyring=tapeseal.keyring(f"local:{os.environ['KEY']}"))
            os._exit(0)
        os.wait()
    """
    done = run_with(code, path, key_file, TAPESEAL_AUDIT_IDENTITY="oms")
    assert ("", "True False\n") == (done.stderr, done.stdout)
    assert ["audit.open", "key.generate", "blob.encrypt"] * 2 == actions(path)
    assert {"oms"} == {each["identity"] for each in entries(path)}
    verified(path, keyring)


def run_with(code: str, path: Path, key_file: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program text with a log in its environment."""
    names = {
        "TAPESEAL_AUDIT": str(path),
        "TAPESEAL_AUDIT_KEYRING": f"local:{key_file}",
        "KEY": key_file,
        **more,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        return child(code)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"TAPESEAL_AUDIT": "/nowhere/audit.log"}, "there is no audit log"),
        ({"TAPESEAL_AUDIT_KEYRING": ""}, "TAPESEAL_AUDIT_KEYRING names no keyring"),
        ({"TAPESEAL_AUDIT_SYNC": "often"}, "TAPESEAL_AUDIT_SYNC is seconds or none"),
        ({"TAPESEAL_AUDIT_STRICT": "maybe"}, "TAPESEAL_AUDIT_STRICT is 0 or 1"),
        ({"TAPESEAL_AUDIT_SINKS": "email"}, "is no sink of an audit log"),
    ],
)
def test_environment_that_names_no_log(
    path: Path, keyring: LocalKeyring, key_file: str, more: dict[str, str], said: str
) -> None:
    """A log that cannot be opened ends every operation before it begins; where it is not strict, none."""
    create_log(path, keyring=keyring)
    code = """
        import os, tapeseal
        keyring = tapeseal.keyring(f"local:{os.environ['KEY']}")
        try:
            tapeseal.encrypt(b"", keyring=keyring)
            print("went on")
        except tapeseal.AuditError as error:
            print(error)
    """
    assert said in run_with(code, path, key_file, **more).stdout
    if "TAPESEAL_AUDIT_STRICT" not in more:
        done = run_with(code, path, key_file, **more, TAPESEAL_AUDIT_STRICT="0")
        assert "went on\n" == done.stdout
        assert said in done.stderr


def test_neither_pickled_nor_shown(path: Path, keyring: LocalKeyring) -> None:
    """A log shows its path and nothing of its key."""
    create_log(path, keyring=keyring)
    with AuditLog(path, keyring=keyring) as log:
        assert f"<AuditLog {path}>" == repr(log)
        with pytest.raises(TypeError):
            log.__reduce__()
