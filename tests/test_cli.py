"""The command line: what it prints, what it leaves behind, and its exit codes."""

import csv
import io
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest

import tapeseal
from tapeseal import errors
from tapeseal.cli import app, failures, output
from tapeseal.header import read_file
from tapeseal.keyrings.local import create_key_file

COMMAND = (sys.executable, "-m", "tapeseal")

TRADE = np.dtype(
    [
        ("ts", "<M8[ns]"),
        ("number", ">u8"),
        ("price", "<f8"),
        ("side", "S1"),
        ("venue", "<U4"),
        ("depth", "<i4", (2,)),
        ("fee", [("rate", "<f4"), ("flat", "?")]),
        ("raw", "V2"),
        ("age", "<m8[us]"),
    ]
)


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: bytes
    err: str

    @property
    def report(self) -> dict:
        """The only line of its output, which is JSON."""
        (line,) = self.out.splitlines()
        return json.loads(line)


Run = Callable[..., Result]


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command in this process, which is quick, and return what it printed and its code."""

    def run(*arguments: object) -> Result:
        capfdbinary.readouterr()
        code = app.run([str(argument) for argument in arguments])
        printed = capfdbinary.readouterr()
        return Result(code, printed.out, printed.err.decode())

    return run


def start(*arguments: object, data: bytes = b"", **more: object) -> Result:
    """Run the real command in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=None if "stdin" in more else data,
        capture_output="stdout" not in more,
        timeout=60,
        **more,
    )
    return Result(done.returncode, done.stdout or b"", (done.stderr or b"").decode())


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key file; the working directory is the one it is in."""
    monkeypatch.chdir(tmp_path)
    create_key_file("k")
    return tmp_path / "k"


@pytest.fixture
def trades() -> np.ndarray:
    """A thousand records with a field of each kind."""
    random = np.random.default_rng(5)
    trades = np.zeros(1000, TRADE)
    trades["ts"] = np.datetime64("2026-11-24T14:30:00.000000001", "ns") + np.arange(1000) * 10**9
    trades["ts"][7] = "NaT"
    trades["number"] = np.arange(1000, dtype="u8") + np.uint64(2**63)
    trades["price"] = random.normal(100, 1, 1000)
    trades["price"][:3] = [np.nan, np.inf, -np.inf]
    trades["side"] = random.choice([b"B", b"S", b"\xff"], 1000)
    trades["venue"] = random.choice(["XNAS", 'a"b', "é,"], 1000)
    trades["depth"] = random.integers(-9, 9, (1000, 2))
    trades["fee"]["rate"] = random.random(1000)
    trades["fee"]["flat"] = random.random(1000) < 0.5
    trades["raw"] = np.frombuffer(random.bytes(2000), "V2")
    trades["age"] = np.arange(1000).astype("m8[us]")
    return trades


@pytest.fixture
def trade_tape(key_file: Path, trades: np.ndarray) -> Path:
    """A sealed tape of the trades, in frames of about 50."""
    with tapeseal.open(
        "t.tape",
        "x",
        keyring=tapeseal.LocalKeyring("k"),
        dtype=TRADE,
        encryption_context={"desk": "eq"},
        index_by="ts",
        frame_size=4096,
    ) as tape:
        tape.append(trades)
    return key_file.parent / "t.tape"


def open_tape(path: str, records: np.ndarray) -> None:
    """Leave a tape as a crash does: flushed, never sealed."""
    tape = tapeseal.open(path, "x", keyring=tapeseal.LocalKeyring("k"), dtype=records.dtype)
    tape.append(records)
    tape.close(seal=False)


def flip(path: Path | str, offset: int) -> None:
    """Change one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


# Encrypting and decrypting files


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 300_000])
def test_bytes_come_back(run: Run, key_file: Path, size: int) -> None:
    """A file becomes FILE.tape and, decrypted, the same file."""
    data = np.random.default_rng(size).bytes(size)
    Path("a.bin").write_bytes(data)
    assert run("encrypt", "a.bin", "-k", "local:k").code == 0
    Path("a.bin").unlink()
    assert run("decrypt", "a.bin.tape", "-k", "local:k").code == 0
    assert Path("a.bin").read_bytes() == data


def test_records_come_back(run: Run, key_file: Path, trades: np.ndarray) -> None:
    """A .npy file becomes a tape of its records, and decrypted the same .npy file."""
    np.save("t.npy", trades)
    before = Path("t.npy").read_bytes()
    done = run("encrypt", "t.npy", "-k", "local:k", "-c", "desk=eq", "--index-by", "ts", "--json")
    assert done.report["kind"] == "records"
    assert done.report["items"] == 1000
    with tapeseal.open("t.npy.tape", keyring=tapeseal.LocalKeyring("k")) as tape:
        assert (tape.dtype, tape.index_by) == (TRADE, "ts")
        assert tape.encryption_context == {"desk": "eq"}
    assert run("decrypt", "t.npy.tape", "-k", "local:k", "-o", "back.npy").code == 0
    assert Path("back.npy").read_bytes() == before


def test_a_tape_of_records_decrypts_to_a_npy_file(run: Run, trade_tape: Path) -> None:
    """Where the tape's name does not end in .npy.tape the suffix .npy is added."""
    assert run("decrypt", "t.tape", "-k", "local:k").code == 0
    assert len(np.load("t.npy")) == 1000


def test_blobs_decrypt_too(run: Run, key_file: Path) -> None:
    """What tapeseal.encrypt() gave is decrypted as a tape is."""
    blob = tapeseal.encrypt(b"message", keyring=tapeseal.LocalKeyring("k"))
    Path("m.tape").write_bytes(blob)
    assert run("decrypt", "m.tape", "-k", "local:k").code == 0
    assert Path("m").read_bytes() == b"message"


def test_several_files_go_into_a_directory(run: Run, key_file: Path) -> None:
    """With -o DIR each file keeps its name there, and so does each decrypted one."""
    for name in ("a", "b"):
        Path(name).write_text(name)
    Path("tapes").mkdir()
    assert run("encrypt", "a", "b", "-k", "local:k", "-o", "tapes/").code == 0
    Path("plain").mkdir()
    assert run("decrypt", "tapes/a.tape", "tapes/b.tape", "-k", "local:k", "-o", "plain").code == 0
    assert Path("plain/a").read_text() == "a"
    assert Path("plain/b").read_text() == "b"


def test_several_files_need_a_directory(run: Run, key_file: Path) -> None:
    """Two files never go to one name."""
    Path("a").write_text("a")
    Path("b").write_text("b")
    done = run("encrypt", "a", "b", "-k", "local:k", "-o", "one.tape")
    assert done.code == 2
    assert "several files need a directory" in done.err
    assert not Path("one.tape").exists()


def test_recipients_of_all_keyrings(run: Run, key_file: Path) -> None:
    """Given several keyrings, each of them alone opens the tape."""
    create_key_file("other")
    Path("a").write_text("a")
    assert run("encrypt", "a", "-k", "local:k", "-k", "local:other").code == 0
    for number, uri in enumerate(["local:k", "local:other"]):
        assert run("decrypt", "a.tape", "-k", uri, "-o", f"out{number}").code == 0


def test_pipes(key_file: Path) -> None:
    """Standard input and output are named -, and are the default of each other."""
    data = np.random.default_rng(1).bytes(200_000)
    sealed = start("encrypt", "-", "-k", "local:k", data=data)
    assert sealed.code == 0
    assert sealed.out.startswith(b"TAPESEAL")
    assert "tapeseal-anchor:" in sealed.err
    opened = start("decrypt", "-", "-k", "local:k", data=sealed.out)
    assert opened == Result(0, data, "")


def test_a_file_to_standard_output(run: Run, key_file: Path) -> None:
    """With -o - a file goes to standard output, and the report elsewhere."""
    Path("a").write_bytes(b"abc")
    sealed = run("encrypt", "a", "-k", "local:k", "-o", "-")
    Path("a.tape").write_bytes(sealed.out)
    assert run("decrypt", "a.tape", "-k", "local:k", "-o", "-").out == b"abc"


def test_no_tape_on_a_terminal(key_file: Path) -> None:
    """A tape is not written to a terminal."""
    Path("a").write_bytes(b"abc")
    controller, terminal = pty.openpty()
    with os.fdopen(controller), os.fdopen(terminal, "wb") as screen:
        done = subprocess.run(
            [*COMMAND, "encrypt", "a", "-k", "local:k", "-o", "-"],
            stdout=screen,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        assert done.returncode == 2
        assert b"not written to a terminal" in done.stderr
        assert not select.select([controller], [], [], 0)[0]


@pytest.mark.parametrize("command", ["encrypt", "decrypt", "keygen"])
def test_existing_outputs_are_refused(run: Run, key_file: Path, command: str) -> None:
    """An output that exists is a usage error and stays as it is."""
    Path("a").write_text("a")
    run("encrypt", "a", "-k", "local:k")
    target = {"encrypt": "a.tape", "decrypt": "a", "keygen": "k"}[command]
    before = Path(target).read_bytes()
    arguments = {
        "encrypt": ["a", "-k", "local:k"],
        "decrypt": ["a.tape", "-k", "local:k"],
        "keygen": ["k"],
    }[command]
    done = run(command, *arguments)
    assert done.code == 2
    assert "exists" in done.err
    assert Path(target).read_bytes() == before
    assert sorted(os.listdir()) == ["a", "a.tape", "k"]


def test_outputs_are_the_owners_alone(run: Run, key_file: Path) -> None:
    """Key files and plaintext have mode 0600 whatever the umask."""
    Path("a").write_text("a")
    run("encrypt", "a", "-k", "local:k")
    run("decrypt", "a.tape", "-k", "local:k", "-o", "b")
    run("keygen", "new")
    for name in ("b", "new"):
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600


# What decrypt refuses


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a key file k and a sealed tape s.tape of two segments and several frames."""
    place = tmp_path_factory.mktemp("small")
    create_key_file(place / "k")
    keyring = tapeseal.LocalKeyring(place / "k")
    for part in (b"one", b"two"):
        with tapeseal.open(place / "s.tape", "ab", keyring=keyring, frame_size=4096) as tape:
            for _ in range(3):
                tape.write(part * 20)
                tape.flush()
    return place


def _decrypt_cut(run: Run, small: Path, place: Path, length: int) -> None:
    """Decrypt the first `length` bytes of the tape, once as is and once --unsealed."""
    whole = (small / "s.tape").read_bytes()
    text = b"one" * 60 + b"two" * 60
    cut, out = place / "cut.tape", place / "out"
    cut.write_bytes(whole[:length])
    done = run("decrypt", cut, "-k", f"local:{small / 'k'}", "-o", out)
    assert done.code == 1
    assert done.err.startswith("tapeseal: error: ")
    assert os.listdir(place) == ["cut.tape"]
    done = run("decrypt", cut, "-k", f"local:{small / 'k'}", "-o", out, "--unsealed")
    assert done.code in (0, 1)
    assert out.exists() == (done.code == 0)
    if done.code == 0:
        assert text.startswith(out.read_bytes())
        out.unlink()
    cut.unlink()


def _body(small: Path) -> int:
    with open(small / "s.tape", "rb") as file:
        return read_file(file.fileno()).body


def test_a_cut_tape_is_refused(run: Run, small: Path, tmp_path: Path) -> None:
    """A sealed tape cut anywhere never decrypts with exit code 0 unless --unsealed; then it gives what is left."""
    size = (small / "s.tape").stat().st_size
    body = _body(small)
    lengths = {0, 1, 95, 96, 4095, 4096, body - 1, body, body + 1, *range(size - 20, size)}
    for length in sorted(lengths | set(range(body, size, 17))):
        _decrypt_cut(run, small, tmp_path, length)


@pytest.mark.slow
def test_a_tape_cut_at_any_length_is_refused(run: Run, small: Path, tmp_path: Path) -> None:
    """As above, with each length."""
    for length in range((small / "s.tape").stat().st_size):
        _decrypt_cut(run, small, tmp_path, length)


def test_a_cut_tape_is_refused_from_a_pipe(small: Path) -> None:
    """The real command, fed a cut tape by a pipe, says 1 and gives nothing."""
    whole = (small / "s.tape").read_bytes()
    done = start("decrypt", "-", "-k", f"local:{small / 'k'}", data=whole[:-16])
    assert done.code == 1
    assert done.out == b""
    assert "--unsealed" in done.err


def test_damage_leaves_no_output(run: Run, small: Path, tmp_path: Path) -> None:
    """A changed frame is found before anything has the output's name."""
    tape = tmp_path / "s.tape"
    tape.write_bytes((small / "s.tape").read_bytes())
    flip(tape, _body(small) + 112 + 24 + 10)
    done = run("decrypt", tape, "-k", f"local:{small / 'k'}", "-o", tmp_path / "out")
    assert done.code == 1
    assert f"at byte {_body(small) + 112}" in done.err
    assert os.listdir(tmp_path) == ["s.tape"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs to be root")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_no_output(key_file: Path, tiny_disk: Path) -> None:
    """Where the disk gets full encrypt and decrypt fail with 3 and leave nothing."""
    Path("a").write_bytes(bytes(3_000_000))
    done = start("encrypt", "a", "-k", "local:k", "-o", tiny_disk / "a.tape")
    assert (done.code, os.listdir(tiny_disk)) == (3, [])
    assert "No space left on device" in done.err
    assert start("encrypt", "a", "-k", "local:k").code == 0
    done = start("decrypt", "a.tape", "-k", "local:k", "-o", tiny_disk / "a")
    assert (done.code, os.listdir(tiny_disk)) == (3, [])
    assert "No space left on device" in done.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.parametrize("command", ["decrypt -o -", "cat", "encrypt -o -", "verify", "inspect"])
def test_a_full_standard_output(trade_tape: Path, command: str) -> None:
    """Output that could not be written is an error, said in one line."""
    keyring = [] if command == "inspect" else ["-k", "local:k"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *command.split(), "t.tape", *keyring],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode == 3
    assert done.stderr.decode().count("\n") == 1
    assert b"No space left on device" in done.stderr


def test_closed_streams(key_file: Path) -> None:
    """Without standard output nothing is done; without standard error the code still tells."""
    Path("a").write_text("a")
    command = " ".join([*COMMAND, "encrypt", "a", "-k", "local:k"])
    done = subprocess.run(f"{command} >&-", shell=True, capture_output=True, timeout=60)
    assert done.returncode == 3
    assert done.stderr == b"tapeseal: error: standard output is closed\n"
    assert not Path("a.tape").exists()
    for redirect in ("2>&-", "2>/dev/full"):
        done = subprocess.run(f"{command}x {redirect}", shell=True, timeout=60)
        assert done.returncode == 3


# Exit codes


def test_exit_codes(run: Run, trade_tape: Path, trades: np.ndarray) -> None:
    """Damage is 1, usage 2, and what could not be had 3."""
    create_key_file("other")
    open_tape("open.tape", trades)
    Path("text.tape").write_text("no tape at all")
    Path("damaged.tape").write_bytes(Path("t.tape").read_bytes())
    flip("damaged.tape", 20_000)
    Path("public").write_bytes(Path("k").read_bytes())
    Path("public").chmod(0o644)
    blob = tapeseal.encrypt(b"", keyring=tapeseal.LocalKeyring("k"))
    Path("blob.tape").write_bytes(blob)
    expected = {
        "verify t.tape -k local:k": 0,
        "verify t.tape -k local:k --expect desk=eq": 0,
        "verify open.tape -k local:k --unsealed": 0,
        "decrypt open.tape -k local:k -o o.npy --unsealed": 0,
        "decrypt damaged.tape -k local:k": 1,
        "verify damaged.tape -k local:k": 1,
        "cat damaged.tape -k local:k": 1,
        "verify open.tape -k local:k": 1,
        "decrypt open.tape -k local:k": 1,
        "inspect text.tape": 1,
        "decrypt text.tape -k local:k": 1,
        "decrypt t.tape -k local:k --expect desk=fx": 1,
        "rewrap damaged.tape -k local:k --to local:other --copy": 1,
        "decrypt missing.tape -k local:k": 2,
        "inspect missing.tape": 2,
        "inspect .": 3,
        "decrypt t.tape": 2,
        "decrypt t.tape -k local:k -c a": 2,
        "decrypt k -k local:k": 2,
        "encrypt k -k local:k --index-by ts": 2,
        "encrypt k -k nowhere:k": 2,
        "encrypt k -k local:k -c a": 2,
        "encrypt k -k local:k -c a=1 -c a=2": 2,
        "encrypt k -k local:k -c tapeseal:a=1": 2,
        "cat blob.tape -k local:k": 2,
        "cat t.tape -k local:k --records x": 2,
        "cat t.tape -k local:k --records ::0": 2,
        "cat t.tape -k local:k --records :1 --between ts 1 2": 2,
        "cat t.tape -k local:k --between size 1 2": 2,
        "cat t.tape -k local:k --between ts soon later": 2,
        "cat t.tape -k local:k --between raw 1 2": 2,
        "verify t.tape open.tape -k local:k --anchor tapeseal-anchor:": 2,
        "frob": 2,
        "inspect": 2,
        "": 2,
        "decrypt t.tape -k local:other -o o": 3,
        "decrypt t.tape -k local:missing -o o": 3,
        "decrypt t.tape -k local:public -o o": 3,
        "keygen no/such/directory/key": 2,
        "keygen missing --add": 3,
    }
    found = {line: run(*line.split()).code for line in expected}
    assert found == expected


def test_an_error_is_one_line(run: Run, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback is shown unless TAPESEAL_DEBUG asks for it."""
    done = run("inspect", "missing.tape")
    assert done.err == "tapeseal: error: missing.tape: No such file or directory\n"
    monkeypatch.setenv("TAPESEAL_DEBUG", "1")
    done = run("inspect", "missing.tape")
    assert "Traceback (most recent call last)" in done.err


def test_usage_errors_name_the_help(run: Run) -> None:
    """A usage error says where the options are listed."""
    done = run("inspect", "--frob")
    assert done.err.startswith("tapeseal: error: No such option")
    assert done.err.endswith("; see tapeseal inspect --help\n")


def test_a_locked_tape(run: Run, trade_tape: Path) -> None:
    """What another process holds could not be had."""
    with tapeseal.open("t.tape", "a", keyring=tapeseal.LocalKeyring("k")):
        done = run("rewrap", "t.tape", "-k", "local:k", "--to", "local:k", "--copy")
    assert done.code == 3
    assert "t.tape" in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DamagedError("x", 1), 1),
        (errors.NotATapeError("x"), 1),
        (errors.UnsealedError("x"), 1),
        (errors.InvalidTag(), 1),
        (errors.ContextMismatchError("x"), 1),
        (click.UsageError("x"), 2),
        (FileNotFoundError(2, "x"), 2),
        (FileExistsError(17, "x"), 2),
        (errors.LimitError("x"), 2),
        (ValueError("x"), 2),
        (errors.KeyUnavailableError("x"), 3),
        (errors.PassphraseError("x"), 3),
        (errors.TapeLockedError(11, "x"), 3),
        (errors.TapeChangedError("x"), 3),
        (errors.ForkError("x"), 3),
        (OSError(28, "x"), 3),
        (PermissionError(13, "x"), 3),
        (MemoryError(), 3),
        (KeyError("x"), 70),
    ],
)
def test_code_of_each_error(error: Exception, code: int) -> None:
    """Each kind of error has its exit code; one that nobody thought of is not taken for damage."""
    assert failures.exit_code(error) == code


def test_the_worst_code_wins() -> None:
    """Of several files damage is worse than a missing key, and that than usage."""
    assert failures.worst([]) == 0
    assert failures.worst([0, 2]) == 2
    assert failures.worst([3, 2, 0]) == 3
    assert failures.worst([2, 1, 3]) == 1


def test_several_files_go_on_past_a_failure(run: Run, trade_tape: Path) -> None:
    """A file that fails does not keep the others from being done."""
    Path("text").write_text("no tape")
    done = run("verify", "missing", "text", "t.tape", "-k", "local:k", "--json")
    reports = [json.loads(line) for line in done.out.splitlines()]
    assert [report.get("exit_code", 0) for report in reports] == [2, 1, 0]
    assert [report["file"] for report in reports] == ["missing", "text", "t.tape"]
    assert reports[2]["ok"] is True
    assert done.code == 1


def test_an_interrupt(key_file: Path) -> None:
    """Control-C ends the command with 130, in one line, and leaves no output."""
    process = subprocess.Popen(
        [*COMMAND, "encrypt", "-", "-k", "local:k", "-o", "a.tape"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(bytes(5_000_000))
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        text = process.stderr.read().decode()
    assert process.returncode == 130
    assert text.split() == ["tapeseal:", "interrupted"]
    assert os.listdir() == ["k"]


@pytest.mark.parametrize("command", ["cat t.tape", "decrypt t.tape -o -", "encrypt big -o -"])
def test_a_reader_that_goes_away(trade_tape: Path, command: str) -> None:
    """The other end of a pipe may close it: the command says nothing and exits as from SIGPIPE."""
    Path("big").write_bytes(bytes(3_000_000))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = start(*command.split(), "-k", "local:k", stdout=pipe, stderr=subprocess.PIPE)
    assert (done.code, done.err) == (141, "")


# inspect, verify, rewrap, keygen


def test_inspect_needs_no_key(run: Run, trade_tape: Path) -> None:
    """It says what the header says."""
    Path("k").unlink()
    report = run("inspect", "t.tape", "--json").report
    assert report["profile"] == "file"
    assert report["kind"] == "records"
    assert report["items"] == 1000
    assert report["sealed"] is True
    assert report["index_by"] == "ts"
    assert report["encryption_context"] == {"desk": "eq"}
    assert report["recipients"][0]["provider"] == "local"
    assert report["dtype"][0] == ["ts", "<M8[ns]"]
    text = run("inspect", "t.tape").out.decode()
    assert f"1,000 records of {TRADE.itemsize} bytes" in text
    assert "desk=eq" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_foreign_header_cannot_act_on_the_terminal(run: Run, key_file: Path) -> None:
    """Control characters of a header are shown, not sent."""
    Path("a").write_text("a")
    run("encrypt", "a", "-k", "local:k", "-c", "desk=\x1b]0;owned\x07\u202e")
    done = run("inspect", "a.tape")
    assert b"\x1b" not in done.out
    assert rb"desk=\x1b]0;owned\x07\u202e" in done.out


def test_verify_lists_all_damage(run: Run, trade_tape: Path) -> None:
    """Each damaged frame is listed with its offset, and nothing else."""
    step = 4096 // TRADE.itemsize * TRADE.itemsize + 40
    with trade_tape.open("rb") as file:
        first = read_file(file.fileno()).body + 112
    for frame in (3, 11):
        flip("t.tape", first + frame * step + 24)
    done = run("verify", "t.tape", "-k", "local:k")
    assert done.code == 1
    offsets = [int(found) for found in re.findall(rb"at byte (\d+):", done.out)]
    assert offsets == [first + 3 * step, first + 11 * step]
    report = run("verify", "t.tape", "-k", "local:k", "--json").report
    assert (report["ok"], report["state"], report["anchor"]) == (False, "damaged", None)
    assert [problem["offset"] for problem in report["problems"]] == offsets


@pytest.mark.parametrize("as_file", [False, True])
def test_verify_takes_an_anchor(
    run: Run, key_file: Path, trades: np.ndarray, as_file: bool
) -> None:
    """A tape put back to an earlier state does not meet the anchor of the later one."""
    keyring = tapeseal.LocalKeyring("k")
    with tapeseal.open("t.tape", "x", keyring=keyring, dtype=TRADE) as tape:
        tape.append(trades)
    earlier = Path("t.tape").read_bytes()
    old = run("verify", "t.tape", "-k", "local:k", "--json").report["anchor"]
    with tapeseal.open("t.tape", "a", keyring=keyring) as tape:
        tape.append(trades)
    new = run("verify", "t.tape", "-k", "local:k", "--json").report["anchor"]

    def verify(anchor: str) -> Result:
        Path("anchor").write_text(f"{anchor}\n")
        return run("verify", "t.tape", "-k", "local:k", "--anchor", "anchor" if as_file else anchor)

    assert verify(old).code == 0
    assert verify(new).code == 0
    Path("t.tape").write_bytes(earlier)
    assert verify(old).code == 0
    back = verify(new)
    assert back.code == 1
    assert b"the anchor does not hold" in back.out


def test_encrypt_gives_the_anchor(run: Run, key_file: Path) -> None:
    """The anchor that encrypt prints is the tape's."""
    Path("a").write_text("a")
    printed = run("encrypt", "a", "-k", "local:k").out.decode().split()[-1]
    assert run("verify", "a.tape", "-k", "local:k", "--anchor", printed).code == 0


def test_rotating_a_key(run: Run, trade_tape: Path) -> None:
    """After keygen --add and rewrap a key file with the new key alone opens the tape; the body is untouched."""
    with trade_tape.open("rb") as file:
        body = read_file(file.fileno()).body
    before = trade_tape.read_bytes()[body:]
    added = run("keygen", "k", "--add", "--json").report
    assert added["added"] is True
    done = run("rewrap", "t.tape", "-k", "local:k", "--to", "local:k", "--json")
    assert done.report == {"file": "t.tape", "state": "rewrapped", "generation": 2}
    assert trade_tape.read_bytes()[body:] == before
    lines = Path("k").read_text().splitlines(keepends=True)
    Path("new").touch(0o600)
    Path("new").write_text(lines[0] + lines[-1])
    assert added["key"] in lines[-1]
    assert run("verify", "t.tape", "-k", "local:new").code == 0


def test_rewrapping_many(run: Run, trade_tape: Path) -> None:
    """A tape that cannot be rewrapped does not stop the rest; the summary counts."""
    create_key_file("other")
    for name in ("b.tape", "c.tape"):
        Path(name).write_bytes(trade_tape.read_bytes())
    with trade_tape.open("rb") as file:
        copy_size = read_file(file.fileno()).body // 2
    flip("b.tape", 64)
    flip("b.tape", copy_size + 64)
    names = ["t.tape", "b.tape", "missing.tape", "c.tape"]
    done = run("rewrap", *names, "-k", "local:k", "--to", "local:other")
    assert done.code == 1
    assert "2 of 4 tapes rewrapped, 2 failed" in done.err
    assert run("verify", "t.tape", "c.tape", "-k", "local:other").code == 0


def test_rewrapping_a_directory(run: Run, trade_tape: Path) -> None:
    """A directory or a quoted pattern stands for its tapes, and a journal lets the next run pass over what is done."""
    create_key_file("other")
    Path("archive/day").mkdir(parents=True)
    for name in ("archive/a.tape", "archive/day/b.tape"):
        Path(name).write_bytes(trade_tape.read_bytes())
    Path("archive/notes").write_text("no tape")
    move = ["-k", "local:k", "--to", "local:other", "--journal", "journal"]
    dry = run("rewrap", "archive", *move, "--dry-run")
    assert (dry.code, b"would be rewrapped" in dry.out) == (0, True)
    first = run("rewrap", "archive/**/b.tape", *move)
    assert (first.code, b"archive/day/b.tape: rewrapped, generation 2" in first.out) == (0, True)
    second = run("rewrap", "archive", *move, "--json")
    reports = [json.loads(line) for line in second.out.splitlines()]
    assert [(each["file"], each["state"]) for each in reports[:-1]] == [
        ("archive/a.tape", "rewrapped"),
        ("archive/day/b.tape", "skipped"),
    ]
    summary = {name: reports[-1][name] for name in ("tapes", "rewrapped", "skipped", "failed")}
    assert summary == {"tapes": 2, "rewrapped": 1, "skipped": 1, "failed": 0}
    assert run("rewrap", "nothing*", *move).code == 2


def test_blast_radius(run: Run, trade_tape: Path, trades: np.ndarray) -> None:
    """inspect --where lists what a key opens, and how many records that is."""
    added = run("keygen", "other", "--json").report
    Path("archive").mkdir()
    for name in ("a", "b", "c"):
        Path(f"archive/{name}.tape").write_bytes(trade_tape.read_bytes())
    run("rewrap", "archive/b.tape", "archive/c.tape", "-k", "local:k", "--to", "local:other")
    found = run("inspect", "archive", "--where", f"key={added['key']}", "--json")
    reports = [json.loads(line) for line in found.out.splitlines()]
    assert [each["file"] for each in reports[:-1]] == ["archive/b.tape", "archive/c.tape"]
    assert (reports[-1]["tapes"], reports[-1]["records"]) == (2, 2 * len(trades))
    text = run("inspect", "archive", "--where", "provider=aws-kms")
    assert (text.code, text.out) == (0, b"")
    assert "0 tapes: nothing" in text.err
    assert run("inspect", "archive", "--where", "colour=red").code == 2


def test_recipients_that_do_not_fit(run: Run, trade_tape: Path, trades: np.ndarray) -> None:
    """Recipients that do not fit into the header go with --copy, which the message says."""
    many = []
    for number in range(40):
        create_key_file(f"k{number}")
        many += ["--to", f"local:k{number}"]
    done = run("rewrap", "t.tape", "-k", "local:k", *many)
    assert done.code == 2
    assert "--copy" in done.err
    assert run("rewrap", "t.tape", "-k", "local:k", *many, "--copy").code == 0
    with tapeseal.open("t.tape", keyring=tapeseal.LocalKeyring("k39")) as tape:
        assert tape[:].tobytes() == trades.tobytes()


def test_keygen_says_how_to_use_the_key(run: Run, key_file: Path) -> None:
    """The keyring it names is the one to give with -k, also for a name that needs quoting."""
    made = run("keygen", "odd?name%41", "--json").report
    assert made["keyring"] == "local:odd%3Fname%2541"
    Path("a").write_text("a")
    assert run("encrypt", "a", "-k", made["keyring"]).code == 0


def test_a_passphrase(run: Run, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key under a passphrase opens with it alone, read from a file or, if asked, the environment."""
    Path("right").touch(0o600)
    Path("right").write_text("correct horse\n")
    Path("wrong").touch(0o600)
    Path("wrong").write_text("battery staple\n")
    monkeypatch.setenv("PASSPHRASE", "correct horse")
    assert run("keygen", "p", "--passphrase-file", "right").code == 0
    assert run("keygen", "p", "--add", "--passphrase-env", "PASSPHRASE").code == 0
    Path("a").write_text("a")
    assert run("encrypt", "a", "-k", "local:p?passphrase_file=right").code == 0
    assert run("verify", "a.tape", "-k", "local:p?passphrase_env=PASSPHRASE").code == 0
    assert run("verify", "a.tape", "-k", "local:p?passphrase_file=wrong").code == 3
    with open("right", "rb") as file:
        assert run("verify", "a.tape", "-k", f"local:p?passphrase_fd={file.fileno()}").code == 0


def test_keygen_takes_one_passphrase_source(run: Run, key_file: Path) -> None:
    """Two sources of the passphrase are a usage error, and make no file."""
    assert run("keygen", "p", "--passphrase", "--passphrase-env", "PASSPHRASE").code == 2
    assert not Path("p").exists()


def test_adding_under_a_passphrase_to_a_plain_file(run: Run, key_file: Path) -> None:
    """A passphrase for a file whose keys are under none is refused, not ignored."""
    Path("right").touch(0o600)
    Path("right").write_text("correct horse")
    before = key_file.read_bytes()
    assert run("keygen", "k", "--add", "--passphrase-file", "right").code == 3
    assert key_file.read_bytes() == before


_ON_A_TERMINAL = """
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def _typed(arguments: list[str], *lines: str) -> tuple[int, str]:
    """Run the command on a terminal of its own, type a line at each prompt; return its code and the screen."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ON_A_TERMINAL, *COMMAND, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    answers = list(lines)
    seen = b""
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while select.select([process.stdout], [], [], 60)[0]:
                more = process.stdout.read(4096)
                if not more:
                    break
                seen += more
                if answers and seen.count(b": ") > len(lines) - len(answers):
                    process.stdin.write(answers.pop(0).encode() + b"\n")
        finally:
            process.stdin.close()
            process.terminate()
    return process.returncode, seen.decode()


def test_a_passphrase_is_asked_for_twice(key_file: Path) -> None:
    """On a terminal keygen asks twice, shows nothing of what is typed, and refuses two different ones."""
    code, seen = _typed(["keygen", "p", "--passphrase"], "correct horse", "correct horse")
    assert code == 0
    assert "The same again" in seen
    assert "horse" not in seen
    code, seen = _typed(["keygen", "q", "--passphrase"], "correct horse", "battery staple")
    assert code == 3
    assert not Path("q").exists()


# cat


def _csv(text: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.decode(), newline="")))


def test_csv_is_exact(run: Run, trade_tape: Path, trades: np.ndarray) -> None:
    """Each field of each record comes back from the CSV as it was."""
    head, *rows = _csv(run("cat", "t.tape", "-k", "local:k").out)
    names = "ts number price side venue depth[0] depth[1] fee.rate fee.flat raw age"
    assert head == names.split()
    assert len(rows) == 1000
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    stamps = ["NaT" if text == "" else text for text in columns["ts"]]
    np.testing.assert_array_equal(np.array(stamps, "M8[ns]"), trades["ts"])
    assert [int(text) for text in columns["number"]] == trades["number"].tolist()
    np.testing.assert_array_equal([float(text) for text in columns["price"]], trades["price"])
    texts = {"B": b"B", "S": b"S", r"\xff": b"\xff"}
    assert [texts[text] for text in columns["side"]] == trades["side"].tolist()
    assert list(columns["venue"]) == trades["venue"].tolist()
    for place in (0, 1):
        numbers = [int(text) for text in columns[f"depth[{place}]"]]
        assert numbers == trades["depth"][:, place].tolist()
    rates = np.array([float(text) for text in columns["fee.rate"]], "<f4")
    np.testing.assert_array_equal(rates, trades["fee"]["rate"])
    assert list(columns["fee.flat"]) == [str(flat) for flat in trades["fee"]["flat"]]
    assert [bytes.fromhex(text) for text in columns["raw"]] == [bytes(raw) for raw in trades["raw"]]
    assert [int(text) for text in columns["age"]] == list(range(1000))


def test_json_lines(run: Run, trade_tape: Path, trades: np.ndarray) -> None:
    """Each record is one strict JSON object, nested as its dtype is."""
    done = run("cat", "t.tape", "-k", "local:k", "--format", "jsonl")

    def refuse(text: str) -> None:
        raise ValueError(text)

    rows = [json.loads(line, parse_constant=refuse) for line in done.out.splitlines()]
    assert len(rows) == 1000
    assert [row["price"] for row in rows[:3]] == ["NaN", "Infinity", "-Infinity"]
    assert rows[7]["ts"] is None
    last = trades[-1]
    assert rows[-1] == {
        "ts": "2026-11-24T14:46:39.000000001",
        "number": 2**63 + 999,
        "price": float(last["price"]),
        "side": last["side"].decode("utf-8", "backslashreplace"),
        "venue": str(last["venue"]),
        "depth": last["depth"].tolist(),
        "fee": {"rate": float(last["fee"]["rate"]), "flat": bool(last["fee"]["flat"])},
        "raw": bytes(last["raw"]).hex(),
        "age": 999,
    }


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        (":5", slice(5)),
        ("995:", slice(995, None)),
        ("-3:", slice(-3, None)),
        ("::-1", slice(None, None, -1)),
        ("900:100:-7", slice(900, 100, -7)),
        ("7", slice(7, 8)),
        ("-1", slice(-1, None)),
        ("600:500", slice(0)),
        ("0:2000", slice(None)),
    ],
)
def test_slices(run: Run, trade_tape: Path, trades: np.ndarray, text: str, chosen: slice) -> None:
    """--records takes what Python takes between brackets."""
    done = run("cat", "t.tape", "-k", "local:k", "--records", text, "--format", "npy")
    found = np.load(io.BytesIO(done.out))
    assert found.dtype == TRADE
    assert found.tobytes() == trades[chosen].tobytes()


@pytest.mark.parametrize(
    ("bounds", "first", "count"),
    [
        (("ts", "2026-11-24T14:31", "2026-11-24T14:32"), 60, 60),
        (("ts", "2026-11-24T14:31Z", "2026-11-24T16:32+02:00"), 60, 60),
        (("ts", "1795530660000000001", "1795530661000000001"), 60, 1),
        (("number", str(2**63 + 10), str(2**63 + 20)), 10, 10),
        (("age", "5", "9"), 5, 4),
    ],
)
def test_between(
    run: Run, trade_tape: Path, trades: np.ndarray, bounds: tuple[str, ...], first: int, count: int
) -> None:
    """--between takes its ends as the field is written; the later end is not included."""
    done = run("cat", "t.tape", "-k", "local:k", "--format", "npy", "--between", *bounds)
    assert np.load(io.BytesIO(done.out)).tobytes() == trades[first : first + count].tobytes()


def test_times_in_whole_number_fields(run: Run, key_file: Path, order_records: np.ndarray) -> None:
    """A time for a field of whole numbers is nanoseconds since 1970."""
    np.save("day.npy", order_records)
    run("encrypt", "day.npy", "-k", "local:k", "--index-by", "ts_event")
    start, end = "2023-12-25T23:00", "2023-12-25T23:01"
    done = run("cat", "day.npy.tape", "-k", "local:k", "--between", "ts_event", start, end)
    low, high = (np.datetime64(text, "ns").astype("i8") for text in (start, end))
    stamps = order_records["ts_event"]
    expected = order_records[(stamps >= low) & (stamps < high)]
    head, *rows = _csv(done.out)
    assert len(rows) > 0
    column = head.index("ts_event")
    assert [int(row[column]) for row in rows] == expected["ts_event"].tolist()


def test_cat_of_bytes(run: Run, key_file: Path) -> None:
    """A tape of bytes gives its bytes; --records counts bytes, --format is refused."""
    data = np.random.default_rng(2).bytes(100_000)
    Path("a").write_bytes(data)
    run("encrypt", "a", "-k", "local:k")
    assert run("cat", "a.tape", "-k", "local:k").out == data
    assert run("cat", "a.tape", "-k", "local:k", "--records", "10:20").out == data[10:20]
    assert run("cat", "a.tape", "-k", "local:k", "--records", "20:10:-1").out == data[20:10:-1]
    assert run("cat", "a.tape", "-k", "local:k", "--format", "csv").code == 2


def test_cat_of_plain_numbers(run: Run, key_file: Path) -> None:
    """Records without fields are one column, or bare JSON values."""
    np.save("n.npy", np.array([1.5, -2.0, np.nan]))
    run("encrypt", "n.npy", "-k", "local:k")
    assert run("cat", "n.npy.tape", "-k", "local:k").out == b"value\n1.5\n-2.0\nnan\n"
    done = run("cat", "n.npy.tape", "-k", "local:k", "--format", "jsonl")
    assert done.out == b'1.5\n-2.0\n"NaN"\n'


def test_cat_of_an_open_tape(run: Run, key_file: Path, trades: np.ndarray) -> None:
    """A tape that is not sealed is read, with a note that more may have been there."""
    open_tape("o.tape", trades)
    done = run("cat", "o.tape", "-k", "local:k", "--format", "npy")
    assert done.code == 0
    assert np.load(io.BytesIO(done.out)).tobytes() == trades.tobytes()
    assert "never closed" in done.err


def test_damage_in_the_middle_of_cat(run: Run, trade_tape: Path, trades: np.ndarray) -> None:
    """What comes out before damage is met is authentic; the exit code says that it is not all."""
    flip("t.tape", trade_tape.stat().st_size // 2)
    done = run("cat", "t.tape", "-k", "local:k")
    assert done.code == 1
    assert "at byte" in done.err
    assert len(_csv(done.out)) < 1001


# Secrets


def test_no_key_in_any_output(run: Run, trade_tape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command prints a secret, not as text, not in an error, not with TAPESEAL_DEBUG."""
    monkeypatch.setenv("TAPESEAL_DEBUG", "1")
    Path("phrase").touch(0o600)
    Path("phrase").write_text("correct-horse-battery")
    run("keygen", "p", "--passphrase-file", "phrase")
    Path("damaged.tape").write_bytes(trade_tape.read_bytes())
    flip("damaged.tape", 200)
    Path("a").write_text("a")
    Path("broken").write_bytes(Path("k").read_bytes()[:-9])
    Path("broken").chmod(0o600)
    lines = [
        "keygen new",
        "keygen k",
        "keygen k --add",
        "keygen k --add --passphrase-file phrase",
        "keygen p --add --passphrase-file phrase --json",
        "encrypt a -k local:k --json",
        "decrypt a.tape -k local:p?passphrase_file=phrase",
        "decrypt damaged.tape -k local:k",
        "decrypt t.tape -k local:broken",
        "inspect t.tape",
        "inspect t.tape --json",
        "verify t.tape -k local:k",
        "verify t.tape -k local:new -k local:broken",
        "rewrap t.tape -k local:k --to local:new --json",
        "cat t.tape -k local:k",
    ]
    printed = ""
    for line in lines:
        done = run(*line.split())
        printed += f"{done.out.decode()}{done.err}"
    assert "Traceback" in printed
    secrets = re.findall("secret=([0-9a-f]{64})", Path("k").read_text() + Path("new").read_text())
    assert len(secrets) == 3
    for secret in ["correct-horse-battery", *secrets]:
        assert secret not in printed
        assert secret[:16] not in printed


# The program


def test_version(run: Run) -> None:
    """--version names both libraries."""
    done = run("--version")
    assert done.out.decode().startswith("tapeseal ")
    assert tapeseal.openssl_version() in done.out.decode()


def test_help_lists_each_command(run: Run) -> None:
    """The list of commands is right without loading any."""
    listed = run("--help").out.decode()
    context = click.Context(app.cli)
    for name in app.cli.list_commands(context):
        command = app.cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert f"  {name} " in listed
        shown = run(name, "--help")
        assert shown.code == 0
        assert max(map(len, shown.out.decode().splitlines())) <= 80


def test_help_loads_little() -> None:
    """--help loads no command and not rich."""
    code = (
        "import sys; from tapeseal.cli.app import run; run(['--help']); "
        "print(*[n for n in sys.modules if n.startswith(('rich', 'tapeseal.cli.'))], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = ["tapeseal.cli.app", "tapeseal.cli.failures", "tapeseal.cli.groups"]
    assert sorted(done.stderr.split()) == loaded


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra(missing: str) -> None:
    """Where click or rich is missing the message says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; import tapeseal.cli; tapeseal.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        f"tapeseal: error: the command line needs {missing}: pip install 'tapeseal[cli]'\n"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    """Each shell gets a script that asks this command."""
    done = run("completion", shell)
    assert done.code == 0
    assert f"_TAPESEAL_COMPLETE={shell}_complete" in done.out.decode()


def test_completion() -> None:
    """What a script asks for is answered."""
    environment = {
        **os.environ,
        "_TAPESEAL_COMPLETE": "bash_complete",
        "COMP_WORDS": "tapeseal enc",
        "COMP_CWORD": "1",
    }
    done = start(env=environment)
    assert done.out.decode().split() == ["plain,encrypt"]


def test_progress_on_a_terminal_alone(key_file: Path) -> None:
    """A bar goes to a terminal on standard error; in a pipe and with --json there is none."""
    Path("big").write_bytes(bytes(20_000_000))
    encrypt = [*COMMAND, "encrypt", "big", "-k", "local:k", "-o"]
    for out, options, expected in (("1", [], True), ("2", ["--json"], False)):
        controller, terminal = pty.openpty()
        environment = {**os.environ, "TERM": "xterm"}
        done = subprocess.run(
            [*encrypt, out, *options], stderr=terminal, capture_output=False, timeout=60,
            stdout=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        assert done.returncode == 0
        shown = bool(select.select([controller], [], [], 0)[0])
        assert shown == expected
        os.close(controller)
        os.close(terminal)
    assert start("encrypt", "big", "-k", "local:k", "-o", "3").err == ""


@pytest.mark.skipif(sys.platform == "darwin", reason="there all names are UTF-8")
def test_names_that_are_not_text(key_file: Path) -> None:
    """A file name of any bytes goes through, in a terminal that knows ASCII alone too."""
    name = os.fsdecode(b"a\xff\xc3\xa9")
    Path(name).write_text("a")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert start("encrypt", name, "-k", "local:k", env=environment).code == 0
    assert start("verify", f"{name}.tape", "-k", "local:k", env=environment).code == 0
    assert (
        start("decrypt", "-", "-k", "local:k", data=Path(f"{name}.tape").read_bytes()).out == b"a"
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (224_000_000, "224 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    """Sizes have three digits and a decimal unit."""
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.3, "12.3 s"), (1.0, "1 s"), (0.0574, "57.4 ms"), (0.5, "500 ms"), (0.000_0257, "25.7 µs")],
)
def test_durations(seconds: float, text: str) -> None:
    """Times have three digits and a unit that suits them."""
    assert output.duration(seconds) == text
