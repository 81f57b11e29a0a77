"""`tapeseal secrets`: values go in and come out by files, pipes and environments, never by arguments."""

import base64
import fcntl
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

pytest.importorskip("hvac")

from memory_scan import Scanner
from tapeseal.cli import app

if TYPE_CHECKING:
    from servers.bao import Server

CANARY = "canary-of-cli-secrets-41fa-0b7e3"  # 32 bytes, as the scanner wants them


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def environment(bao: "Server", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment that names the server, for this process and its children."""
    monkeypatch.setenv("VAULT_ADDR", bao.address)
    monkeypatch.setenv("VAULT_TOKEN", bao.token)
    monkeypatch.setenv("HOME", str(tmp_path))
    return dict(os.environ)


@pytest.fixture
def run(environment: dict[str, str], capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `tapeseal secrets` in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = app.run(["secrets", *map(str, arguments)])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def path() -> str:
    """A path that no other test has."""
    return f"secret/cli-{os.urandom(6).hex()}/exchange"


def real(
    environment: dict[str, str], *arguments: object, data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `tapeseal secrets` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tapeseal", "secrets", *map(str, arguments)],
        input=data,
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def written(run: Run, path: str, tmp_path: Path) -> str:
    """A secret with a value and a name."""
    (tmp_path / "value").write_text(f"{CANARY}\n")
    assert 0 == run("put", path, f"key=@{tmp_path / 'value'}", "--text", "user=desk").code
    return path


@pytest.mark.server
def test_put_and_get(run: Run, written: str) -> None:
    """A value comes out as it went in, alone; a secret without a member shows names."""
    assert (0, CANARY, "") == run("get", f"{written}#key")
    shown = run("get", written)
    assert CANARY not in shown.out
    assert ["  key", "  user"] == shown.out.splitlines()[1:]
    report = json.loads(run("get", written, "--json").out)
    assert (1, ["key", "user"]) == (report["version"], report["members"])
    report = json.loads(run("get", f"{written}#key", "--json").out)
    assert CANARY not in json.dumps(report)


@pytest.mark.server
def test_sources(environment: dict[str, str], run: Run, path: str) -> None:
    """Standard input and the generator are sources; one line end is taken off."""
    done = real(environment, "put", path, "a=-", "b=generate", "c=generate:64", data=b"x\n\n")
    assert (0, b"") == (done.returncode, done.stderr)
    assert "x\n" == run("get", f"{path}#a").out
    lengths = [len(run("get", f"{path}#{name}").out) for name in "bc"]
    assert [40, 64] == lengths
    assert run("get", f"{path}#b").out.isalnum()


@pytest.mark.server
@pytest.mark.parametrize("command", ["put", "patch"])
def test_a_value_as_an_argument_is_refused(run: Run, path: str, command: str) -> None:
    """A value given as an argument is refused, and not repeated."""
    result = run(command, path, f"key={CANARY}")
    assert 2 == result.code
    assert "every user of the machine can read" in result.err
    assert CANARY not in result.out + result.err


@pytest.mark.server
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["get", "nowhere"], "is not MOUNT/PATH"),
        (["get", "secret/a#"], "is not MOUNT/PATH"),
        (["put", "secret/a#b", "k=generate"], "no #"),
        (["put", "secret/a"], "no member was given"),
        (["put", "secret/a", "k=generate", "k=generate"], "given twice"),
        (["put", "secret/a", "k=@/dev/null"], "is empty"),
        (["put", "secret/a", "k=@/nowhere"], "No such file"),
        (["put", "secret/a", "k=generate:5"], "16 characters"),
        (["metadata", "secret/a", "--delete-after", "9" * 12 + "d"], "is no time"),
        (["destroy", "secret/a", "--yes"], "which versions"),
        (["run", "--env", "A", "--", "true"], "NAME=PATH#MEMBER"),
        (["run", "--env", "A=secret/a", "--", "true"], "lacks the member"),
        (["run", "--env", "A=secret/a#b", "--file", "A=secret/a#b", "--", "true"], "given twice"),
        (["run", "--env", "A=secret/a#b", "--", "no-such-program"], "no such command"),
    ],
)
def test_usage(run: Run, arguments: list[str], problem: str) -> None:
    """What cannot be meant is said, with exit code 2."""
    result = run(*arguments)
    assert 2 == result.code, result
    assert problem in result.err


@pytest.mark.server
def test_questions_that_nobody_answers(
    environment: dict[str, str], written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no terminal, what would be asked for is named, and what to give in its place."""

    def detached(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "tapeseal", "secrets", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )

    done = detached("put", written, "key=?")
    assert 2 == done.returncode
    assert "no terminal to ask for key: give key=@FILE or key=-" in done.stderr
    done = detached("destroy", written, "--version", "1")
    assert 2 == done.returncode
    assert done.stderr.endswith("\ntapeseal: error: standard input has no answer to this\n")


@pytest.mark.server
def test_what_is_not_there(run: Run, written: str) -> None:
    """A secret or member that is not there is exit code 3, and its names are said."""
    result = run("get", f"{written}#none")
    assert 3 == result.code
    assert "no member 'none'; it has key, user" in result.err
    assert 3 == run("get", written + "x").code


@pytest.mark.server
def test_life_of_a_secret(run: Run, written: str) -> None:
    """Versions are patched, deleted, undeleted, destroyed and forgotten; metadata is shown and changed."""
    assert 0 == run("patch", written, "key=generate", "--remove", "user", "--cas", "1").code
    assert 3 == run("patch", written, "key=generate", "--cas", "1").code
    assert ["key"] == json.loads(run("get", written, "--json").out)["members"]
    assert 0 == run("delete", written).code
    assert 3 == run("get", f"{written}#key").code
    assert 0 == run("undelete", written, "--version", "2").code
    assert 0 == run("destroy", written, "--version", "1", "--yes").code
    changed = run(
        "metadata",
        written,
        "--set",
        "owner=desk",
        "--delete-after",
        "90d",
        "--cas-required",
        "--json",
    )
    report = json.loads(changed.out)
    assert ({"owner": "desk"}, 90 * 86400, True) == (
        report["custom_metadata"],
        report["delete_after_seconds"],
        report["cas_required"],
    )
    assert [True, False] == [each["destroyed"] for each in report["versions"]]
    shown = run("metadata", written).out
    assert "version 1" in shown
    assert "  deleted after    90 days\n" in shown
    folder = written.rpartition("/")[0]
    assert "exchange\n" == run("list", folder).out
    assert f"{written}\n" == run("list", "-r", folder).out
    assert 0 == run("forget", written, "--yes").code
    assert "" == run("list", folder).out


@pytest.mark.server
def test_run_in_the_environment(environment: dict[str, str], written: str) -> None:
    """The command gets the value, and its arguments, process id and exit code are its own."""
    script = 'echo "$KEY $1 $$"; exit 7'
    arguments = [sys.executable, "-m", "tapeseal", "secrets", "run", "--env", f"KEY={written}#key"]
    process = subprocess.Popen(
        [*arguments, "--", "sh", "-c", script, "name", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = process.communicate(timeout=60)
    assert (7, f"{CANARY} --json {process.pid}\n") == (process.returncode, out)


@pytest.mark.server
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_run_hands_on_no_signals_of_ours(environment: dict[str, str], written: str) -> None:
    """The command ignores what this process was started to ignore, and nothing else; no exit code is lost."""
    script = "import os, signal, sys; {}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    look = "grep SigIgn /proc/self/status; exit 7"

    def ignored(option: str, *numbers: int) -> int:
        lines = "; ".join(f"signal.signal({each:d}, signal.SIG_IGN)" for each in numbers) or "pass"
        command = ["-m", "tapeseal", "secrets", "run", option, f"KEY={written}#key"]
        done = subprocess.run(
            [sys.executable, "-c", script.format(lines), *command, "--", "sh", "-c", look],
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (7, b"") == (done.returncode, done.stderr)
        # Those of POSIX: what libc uses itself, from 32 on, may be ignored where the tests run.
        return int(done.stdout.split()[1], 16) & 0x7FFFFFFF

    assert [0, 0] == [ignored("--env"), ignored("--file")]
    assert 0 == ignored("--file", signal.SIGCHLD)
    assert 1 << signal.SIGHUP - 1 == ignored("--file", signal.SIGHUP)


@pytest.mark.server
@pytest.mark.parametrize("option", ["--env", "--file"])
def test_run_in_any_locale(
    environment: dict[str, str], run: Run, path: str, tmp_path: Path, option: str
) -> None:
    """The command gets the value in UTF-8, whatever the locale says."""
    (tmp_path / "value").write_text("p\xe4ss\u20ac", encoding="utf-8")
    assert 0 == run("put", path, f"key=@{tmp_path / 'value'}").code
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    script = 'printf %s "$KEY"' if option == "--env" else 'cat "$KEY"'
    done = real(environment | plain, "run", option, f"KEY={path}#key", "--", "sh", "-c", script)
    assert ("p\xe4ss\u20ac".encode(), b"") == (done.stdout, done.stderr)


@pytest.mark.server
def test_run_is_recorded(environment: dict[str, str], written: str, tmp_path: Path) -> None:
    """The audit log says that the command was run, though it took the place of the process; and that it was not."""

    def tapeseal(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tapeseal", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    log, keyring = tmp_path / "audit.log", f"local:{tmp_path / 'audit.key'}"
    assert 0 == tapeseal("keygen", tmp_path / "audit.key").returncode
    assert 0 == tapeseal("audit", "create", log, "-k", keyring).returncode
    environment |= {"TAPESEAL_AUDIT": str(log), "TAPESEAL_AUDIT_KEYRING": keyring}
    command = ["secrets", "run", "--env", f"KEY={written}#key", "--"]
    assert 0 == tapeseal(*command, "true").returncode
    shown = tapeseal("audit", "show").stdout
    assert 1 == shown.count("command.run tapeseal secrets run")
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x7fELF")
    bad.chmod(0o755)
    done = tapeseal(*command, bad)
    assert (3, True) == (done.returncode, "Exec format error" in done.stderr)


@pytest.mark.server
def test_run_with_a_file(environment: dict[str, str], written: str, tmp_path: Path) -> None:
    """The file is the user's alone, in memory, and gone when the command has ended."""
    script = 'stat -c "%a %n" "$KEY"; stat -f -c %T "$KEY"; stat -c %a "$(dirname "$KEY")"; cat "$KEY"; exit 3'
    done = real(environment, "run", "--file", f"KEY={written}#key", "--", "sh", "-c", script)
    assert (3, b"") == (done.returncode, done.stderr)
    mode, kind, outer, value = done.stdout.decode().splitlines()
    mode, file = mode.split()
    assert ("600", "tmpfs", "700", CANARY) == (mode, kind, outer, value)
    assert not Path(file).parent.exists()


@pytest.mark.server
def test_run_passes_signals_on_and_sweeps(environment: dict[str, str], written: str) -> None:
    """A signal ends the command and then the files; those of a killed run go with the next one."""
    script = "import os, time; print(os.environ['KEY'], flush=True); time.sleep(60)"
    command = [sys.executable, "-m", "tapeseal", "secrets", "run", "--file", f"KEY={written}#key"]

    def begin() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [*command, "--", sys.executable, "-c", script],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    process, file = begin()
    assert file.exists()
    process.terminate()
    with process:
        assert 128 + signal.SIGTERM == process.wait(60)
    assert not file.exists()
    process, file = begin()
    os.killpg(process.pid, signal.SIGKILL)
    with process:
        process.wait(60)
    assert file.exists()
    assert 0 == real(environment, "run", "--file", f"K={written}#key", "--", "true").returncode
    assert not file.parent.exists()


@pytest.mark.server
def test_sweep_goes_by_locks(environment: dict[str, str], written: str, tmp_path: Path) -> None:
    """What a killed run left goes though its process id is another's, and what one of another container holds stays."""
    memory = tmp_path / "memory"
    left, held = memory / f"tapeseal-{os.getpid()}-left", memory / "tapeseal-999999999-held"
    left.mkdir(parents=True)
    held.mkdir()
    environment["XDG_RUNTIME_DIR"] = str(memory)
    fd = os.open(held, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = real(environment, "run", "--file", f"K={written}#key", "--", "true")
    finally:
        os.close(fd)
    assert (0, b"") == (done.returncode, done.stderr)
    assert [held] == list(memory.iterdir())


@pytest.mark.server
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_is_left_in_memory(environment: dict[str, str], written: str) -> None:
    """While the command runs, the process that gave it a file has no copy of the value outside key memory."""
    script = "import time; print(flush=True); time.sleep(30)"
    command = [sys.executable, "-m", "tapeseal", "secrets", "run", "--file", f"KEY={written}#key"]
    with subprocess.Popen(
        [*command, "--", sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        hits = Scanner({"value": CANARY.encode()}).process(process.pid)
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        variables = Path(f"/proc/{process.pid}/environ").read_bytes()
        process.terminate()
    assert {hit for hit in hits if not hit.protected} == set()
    assert CANARY.encode() not in arguments + variables


@pytest.mark.server
def test_render(run: Run, written: str, tmp_path: Path) -> None:
    """References are filled in, with the escapes that they ask for; the file is the user's alone."""
    template, out = tmp_path / "config.in", tmp_path / "config"
    template.write_text(
        f'key = "${{{written}#key|json}}"\nuser = ${{{written}#user}}\nb = ${{{written}#key|base64}}\n$${{HOME}} $x\n'
    )
    out.write_text("old")
    out.chmod(0o644)
    assert (0, "", "") == run("render", template, "-o", out)
    expected = f'key = "{CANARY}"\nuser = desk\nb = {base64.b64encode(CANARY.encode()).decode()}\n${{HOME}} $x\n'
    assert expected == out.read_text()
    assert 0o600 == out.stat().st_mode & 0o777
    assert expected == run("render", template, "-o", "-").out
    assert {"config", "config.in", "value"} == {each.name for each in tmp_path.iterdir()}


@pytest.mark.server
@pytest.mark.parametrize(
    "value",
    [
        "\"\\\n\r\t'#: ${x}",
        "\0\x01\x1b",
        "a\x7fb",
        "a \x85 b\x9f",
        "a \u2028 b",
        "\ufffe",
        "\U0001f511/",
    ],
    ids=ascii,
)
def test_render_for_json_toml_and_yaml(run: Run, path: str, tmp_path: Path, value: str) -> None:
    """Any text comes out of each of the three as it was."""
    yaml = pytest.importorskip("yaml")
    (tmp_path / "value").write_text(value, encoding="utf-8", newline="")
    assert 0 == run("put", path, f"key=@{tmp_path / 'value'}").code
    template, out = tmp_path / "config.in", tmp_path / "config"
    template.write_text(f'"${{{path}#key|json}}"')
    assert 0 == run("render", template, "-o", out).code
    text = out.read_text(encoding="utf-8")
    assert value == json.loads(text)
    assert {"k": value} == tomllib.loads(f"k = {text}\n")
    assert {"k": value} == yaml.safe_load(f"k: {text}\n")


@pytest.mark.server
def test_render_keeps_the_rest(run: Run, written: str, tmp_path: Path) -> None:
    """What is no reference comes out byte by byte."""
    template, out = tmp_path / "config.in", tmp_path / "config"
    template.write_bytes(f"a\r\n$$${{{{ {{ ${{{written}#user}}\r\n".encode())
    assert (0, "", "") == run("render", template, "-o", out)
    assert b"a\r\n$${{ { desk\r\n" == out.read_bytes()


@pytest.mark.server
@pytest.mark.parametrize(
    ("text", "code", "problem"),
    [
        ("a\n${PATH#none}", 3, "no member 'none'"),
        ("a\n${PATHx#key}", 3, "there is no secret"),
        ("a\n${PATH}", 2, ":2: "),
        ("a\n${}", 2, ":2: "),
        ("a\n${PATH#key|sql}", 2, "no filter 'sql'"),
        ("a\nb ${PATH#key", 2, ":2: a reference has no end"),
    ],
)
def test_render_writes_all_or_nothing(
    run: Run, written: str, tmp_path: Path, text: str, code: int, problem: str
) -> None:
    """Where a reference cannot be filled in, the file that was there stays as it is."""
    template, out = tmp_path / "config.in", tmp_path / "config"
    template.write_text(text.replace("PATH", written))
    out.write_text("old")
    result = run("render", template, "-o", out)
    assert code == result.code, result
    assert problem in result.err
    assert "old" == out.read_text()


PLANTED = {
    "vault.txt": "token = hvs.CAESIJ" + "0aZ" * 12,
    "old.txt": "VAULT_TOKEN=s." + "a1B2c3D4" * 3,
    "aws.py": 'key = "AKIA' + "IOSFODNN7QWERTYU" + '"',
    "key.pem": "-----BEGIN EC PRIVATE KEY-----\nMHc=\n",
    "archive.key": "tapeseal-keys v1\n",
    "db.toml": 'url = "postgresql://trades:' + "hunter2hunter2" + '@db/trades"',
    "conf.py": 'password = "' + "correct-horse-battery" + '"',
    "typed.py": 'password: "Secret" = "' + "correct-horse-battery" + '"',
    "bytes.py": 'password: "Secret" = b"' + "correct-horse-battery" + '"',
    "table.py": 'LOGIN = {"password": "' + "CorrectHorseBattery" + '"}',
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one clean file."""
    root = tmp_path / "repository"
    root.mkdir()
    subprocess.run(["git", "init", "-q", root], check=True)
    (root / ".gitignore").write_text("ignored\n")
    (root / "clean.py").write_text(
        'import os\nTOKEN = os.environ["TOKEN"]\nDIGEST = "' + "ab12" * 16 + '"\n'
    )
    return root


@pytest.mark.parametrize("name", PLANTED)
def test_scan_finds(
    repository: Path, capfd: pytest.CaptureFixture[str], name: str, tmp_path: Path
) -> None:
    """What looks like a secret is found with its place, and not shown."""
    assert 0 == app.run(["secrets", "scan", str(repository)])
    assert ("", "") == capfd.readouterr()
    (repository / name).write_text(PLANTED[name])
    assert 1 == app.run(["secrets", "scan", str(repository)])
    out, err = capfd.readouterr()
    assert f"{repository / name}:1: " in out
    for word in PLANTED[name].replace('"', " ").split():
        assert len(word) < 16 or word not in out + err
    assert 1 == app.run(["secrets", "scan", "--json", str(repository / name)])
    assert 1 == json.loads(capfd.readouterr().out.splitlines()[0])["line"]


def test_scan_passes_over(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What git ignores, what a comment allows, what is no text and what is a type is no finding."""
    (repository / "ignored").write_text(PLANTED["key.pem"])
    (repository / "allowed.py").write_text(PLANTED["conf.py"] + "  # tapeseal: no secret\n")
    (repository / "binary").write_bytes(b"\0" + PLANTED["aws.py"].encode())
    (repository / "types.py").write_text(
        'def login(secret: "Sequence[Pattern] | None" = None): ...\n'
    )
    assert 0 == app.run(["secrets", "scan", str(repository)])
    assert 2 == app.run(["secrets", "scan", str(repository / "nowhere")])


@pytest.mark.slow
def test_this_repository_is_clean() -> None:
    """No secret is in this project's own files, but for what tests and documents make up."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    from tapeseal.cli.scan import scan_files, tracked_files

    places = [str(root / name) for name in ("src", "_core", "benchmarks", "examples", "setup.py")]
    assert [] == list(scan_files(list(tracked_files(places))))


def test_errors_show_no_value() -> None:
    """An error of the command line about a value shows neither it nor a part of it."""
    import click

    from tapeseal.cli.kv import _from_source

    with pytest.raises(click.UsageError) as caught:
        _from_source("key", CANARY)
    assert CANARY not in str(caught.value)
