"""`tapeseal break-glass` and `tapeseal vault init`: the ceremony by commands, and what is rotated after it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tapeseal.cli import app
from tapeseal.keyrings.public_key import create_key_pair
from tapeseal.rotation.journal import Journal

if TYPE_CHECKING:
    from servers.bao import Server

CANARY = "canary-of-break-glass-cli-3e"
NAMES = ("alice", "bob", "carol")


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `tapeseal break-glass` in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = app.run(["break-glass", *map(str, arguments)])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the keys of three custodians: NAME and NAME.pub."""
    directory = tmp_path_factory.mktemp("custodians-cli")
    for name in NAMES:
        create_key_pair(directory / name)
    return directory


@pytest.fixture
def package(run: Run, halves: Path, tmp_path: Path) -> Path:
    """A package of one secret for two of three custodians."""
    (tmp_path / "token").write_text(CANARY)
    path = tmp_path / "vault.glass"
    custodians = [each for name in NAMES for each in ("--custodian", f"{name}={halves / name}.pub")]
    result = run(
        "seal",
        path,
        "--threshold",
        2,
        "--for",
        "10m",
        *custodians,
        "--secret",
        f"token=@{tmp_path / 'token'}",
    )
    assert (0, "") == (result.code, result.err)
    assert "any 2 of alice, bob, carol" in result.out
    return path


def ceremony(run: Run, package: Path, halves: Path, seconds: str = "60s") -> tuple[Path, list[str]]:
    """Ask and have two custodians approve; return the request, and the options that name the approvals."""
    directory = package.parent
    asked = run(
        "request", package, "-o", directory / "r", "--reason", "outage", "--for", seconds, "--json"
    )
    fingerprint = json.loads(asked.out)["fingerprint"]
    approvals = []
    for name in NAMES[:2]:
        path = directory / f"{name}.approval"
        key = f"public-key:{halves / name}"
        result = run(
            "approve", package, directory / "r", "-k", key, "-o", path, "--fingerprint", fingerprint
        )
        assert 0 == result.code, result
        assert "outage" in result.out
        approvals += ["-a", str(path)]
    return directory / "r", approvals


def real(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `tapeseal break-glass` in a process of its own."""
    command = [sys.executable, "-m", "tapeseal", "break-glass", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_command_runs_with_what_was_sealed(run: Run, package: Path, halves: Path) -> None:
    """With enough approvals the command gets the secret, as a variable and as a file; its exit code is ours."""
    request, approvals = ceremony(run, package, halves)
    script = 'echo "$TOKEN $(cat "$FILE") $(stat -c %a "$FILE")"; exit 5'
    done = real(
        "open",
        package,
        request,
        *approvals,
        "--env",
        "TOKEN=token",
        "--file",
        "FILE=token",
        "--",
        "sh",
        "-c",
        script,
    )
    assert (5, f"{CANARY} {CANARY} 600\n") == (done.returncode, done.stdout), done.stderr
    assert "is open for" in done.stderr
    assert CANARY not in done.stderr


def test_the_command_ends_with_the_time(run: Run, package: Path, halves: Path) -> None:
    """When the time granted is over, the command is ended."""
    request, approvals = ceremony(run, package, halves, "1s")
    begun = time.monotonic()
    done = real("open", package, request, *approvals, "--env", "T=token", "--", "sleep", "60")
    assert 128 + signal.SIGTERM == done.returncode
    assert "the time granted was over" in done.stderr
    assert time.monotonic() - begun < 60


def test_too_few_approvals(run: Run, package: Path, halves: Path) -> None:
    """With one approval no command is run."""
    request, approvals = ceremony(run, package, halves)
    done = real(
        "open", package, request, *approvals[:2], "--env", "T=token", "--", "sh", "-c", "echo ran"
    )
    assert (3, "") == (done.returncode, done.stdout)
    assert "2 custodians have to approve" in done.stderr


def test_a_wrong_fingerprint(run: Run, package: Path, halves: Path, tmp_path: Path) -> None:
    """A custodian who was told another fingerprint grants nothing."""
    ceremony(run, package, halves)
    key = f"public-key:{halves / 'carol'}"
    result = run(
        "approve", package, tmp_path / "r", "-k", key, "-o", tmp_path / "c", "--fingerprint", "AAAA"
    )
    assert 3 == result.code
    assert not (tmp_path / "c").exists()


def test_drill(run: Run, package: Path, halves: Path) -> None:
    """A drill says who answered and how long it took; it runs no command."""
    drill = Path(f"{package}.drill")
    request, approvals = ceremony(run, drill, halves)
    result = run("open", drill, request, *approvals)
    assert 0 == result.code, result
    assert "alice and bob opened it" in result.out
    report = json.loads(run("open", drill, request, *approvals, "--json").out)
    assert (["alice", "bob"], "vault.glass") == (report["approved_by"], report["package"])
    assert 2 == run("open", drill, request, *approvals, "--env", "A=token", "--", "true").code


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--", "true"], "for a command"),
        (["--env", "T=token"], "for a command"),
        (["--env", "T", "--", "true"], "NAME=SECRET"),
        (["--env", "T=token", "--env", "T=token", "--", "true"], "T is given twice"),
        (["--env", "T=token", "--file", "T=token", "--", "true"], "T is given twice"),
        (["--env", "T=none", "--", "true"], "there is no 'none' in the package; there is token"),
        (["--env", "T=token", "--", "no-such-program"], "no such command"),
    ],
)
def test_usage(run: Run, package: Path, halves: Path, arguments: list[str], problem: str) -> None:
    """What cannot be meant is said before anything is handed out."""
    request, approvals = ceremony(run, package, halves)
    result = run("open", package, request, *approvals, *arguments)
    assert 2 == result.code, result
    assert problem in result.err


PLAN = """
[rotation]
state = "rotation.db"

[secret.vault-admin]
kind = "api-key"
tier = "root"
owner = "security"
monitor = "0s"

[secret.vault-admin.options]
path = "secret/PATH"
"""


@pytest.fixture
def opening(
    request: pytest.FixtureRequest,
    run: Run,
    bao: "Server",
    halves: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[list[object], str]:
    """The options that open an approved package, for a time, whose secret is in a plan; and where that is in KV."""
    path = f"break-glass-{os.urandom(4).hex()}"
    bao.admin.secrets.kv.v2.create_or_update_secret(path, {"key": CANARY})
    (tmp_path / "rotation.toml").write_text(PLAN.replace("PATH", path))
    monkeypatch.setenv("VAULT_ADDR", bao.address)
    monkeypatch.setenv("VAULT_TOKEN", bao.token)
    package = tmp_path / "p.glass"
    custodians = [each for name in NAMES for each in ("--custodian", f"{name}={halves / name}.pub")]
    arguments = [
        "--threshold",
        2,
        *custodians,
        "--text",
        f"token={CANARY}",
        "--opens",
        "vault-admin",
    ]
    assert 0 == run("seal", package, *arguments).code
    asked, approvals = ceremony(run, package, halves, getattr(request, "param", "60s"))
    plan = ["--plan", tmp_path / "rotation.toml", "--env", "T=token"]
    return [package, asked, *approvals, *plan], path


def version(bao: "Server", path: str) -> int:
    """Return the newest version of a secret."""
    return int(bao.admin.secrets.kv.v2.read_secret_metadata(path)["data"]["current_version"])


@pytest.mark.server
def test_what_was_opened_is_rotated(bao: "Server", opening: tuple[list[object], str]) -> None:
    """When the command has ended, what the package opened is another secret."""
    arguments, path = opening
    done = real("open", *arguments, "--", "sh", "-c", 'echo "$T"')
    assert (0, CANARY) == (done.returncode, done.stdout.partition("\n")[0]), done.stderr
    assert 2 == version(bao, path)
    assert "rotating vault-admin" in done.stderr


@contextmanager
def running(arguments: list[object]) -> Iterator[subprocess.Popen[bytes]]:
    """Have a package open, in a session of its own, until its command is told to end."""
    command = [sys.executable, "-m", "tapeseal", "break-glass", "open", *map(str, arguments)]
    with subprocess.Popen(
        [*command, "--", "sh", "-c", "echo; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def run_due(tmp_path: Path) -> None:
    """Do what a runner does that comes by."""
    assert 0 == app.run(["rotate", "run", "--due", "--plan", str(tmp_path / "rotation.toml")])


@pytest.mark.server
@pytest.mark.parametrize("opening", ["5s"], indirect=True)
def test_what_was_opened_is_rotated_whatever_becomes_of_us(
    bao: "Server", opening: tuple[list[object], str], run: Run, tmp_path: Path
) -> None:
    """Where this process is killed while the command runs, a runner rotates all the same once the time is over."""
    arguments, path = opening
    with running(arguments) as process:
        assert 1 == version(bao, path)
        os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while version(bao, path) == 1 and time.monotonic() < end:
        run_due(tmp_path)
    assert 2 == version(bao, path)
    run_due(tmp_path)
    assert 2 == version(bao, path)


@pytest.mark.server
def test_a_runner_waits_for_the_end_of_the_access(
    bao: "Server", opening: tuple[list[object], str], tmp_path: Path
) -> None:
    """What was opened is rotated after it, and not before by a runner that comes by, or has the journal."""
    arguments, path = opening
    with running(arguments) as process:
        run_due(tmp_path)
        assert 1 == version(bao, path)
        with Journal(tmp_path / "rotation.db") as journal, journal.running():
            process.communicate(b"\n")
        assert 0 == process.returncode
    assert 1 == version(bao, path)
    run_due(tmp_path)
    assert 2 == version(bao, path)


@pytest.mark.server
@pytest.mark.parametrize("opening", ["5s"], indirect=True)
def test_each_opening_is_followed_by_a_rotation(
    bao: "Server", opening: tuple[list[object], str], tmp_path: Path
) -> None:
    """Of two openings at once the one that ends well does not answer for the one that is killed."""
    arguments, path = opening
    with running(arguments) as first, running(arguments) as second:
        os.killpg(second.pid, signal.SIGKILL)
        first.communicate(b"\n")
    assert 2 == version(bao, path)
    end = time.monotonic() + 60
    while version(bao, path) == 2 and time.monotonic() < end:
        run_due(tmp_path)
    assert 3 == version(bao, path)


@pytest.mark.server
def test_who_lacks_approvals_makes_nothing_due(
    bao: "Server", opening: tuple[list[object], str], run: Run, tmp_path: Path
) -> None:
    """A package that stays closed leaves its secrets as they are."""
    arguments, _ = opening
    opened_with, with_plan = arguments[:6], arguments[6:]
    approval = Path(str(arguments[5]))
    approval.write_text(approval.read_text().replace('"share": 2', '"share": 3'))
    for approved, code in ((opened_with[:4], 3), (opened_with, 1)):
        assert code == run("open", *approved, *with_plan, "--", "true").code
    with Journal(tmp_path / "rotation.db") as journal:
        assert [] == journal.requests(math.inf)


@pytest.mark.parametrize(
    ("event", "asked"), [("sqlite3.connect", []), ("subprocess.Popen", ["vault-admin"])]
)
def test_killed_on_the_way_to_the_command(
    run: Run, halves: Path, tmp_path: Path, event: str, asked: list[str]
) -> None:
    """Killed before the rotation is asked for, nothing was handed out; killed before anything was, it is asked for."""
    (tmp_path / "rotation.toml").write_text(PLAN)
    path = tmp_path / "p.glass"
    custodians = [each for name in NAMES for each in ("--custodian", f"{name}={halves / name}.pub")]
    run("seal", path, "--threshold", 2, *custodians, "--text", "token=x", "--opens", "vault-admin")
    request, approvals = ceremony(run, path, halves)
    script = """if True:
        import os, signal, sys
        from tapeseal.cli import app

        def kill(event, arguments):
            if event == sys.argv[1]:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        app.run(["break-glass", "open", *sys.argv[2:]])
    """
    options = ["--plan", tmp_path / "rotation.toml", "--env", "T=token", "--", "sh", "-c", "echo"]
    command = [sys.executable, "-c", script, event, path, request, *approvals, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=60, check=False)
    assert (-signal.SIGKILL, b"") == (done.returncode, done.stdout), done.stderr
    with Journal(tmp_path / "rotation.db") as journal:
        assert asked == [each.secret for each in journal.requests(math.inf)]
        assert [] == journal.requests(time.time())


def test_what_it_opens_needs_a_plan(run: Run, halves: Path, tmp_path: Path) -> None:
    """A package that gives access to secrets of a plan is not opened without it, nor with one that lacks them."""
    path = tmp_path / "p.glass"
    custodians = [each for name in NAMES for each in ("--custodian", f"{name}={halves / name}.pub")]
    run("seal", path, "--threshold", 2, *custodians, "--text", "token=x", "--opens", "vault-admin")
    request, approvals = ceremony(run, path, halves)
    arguments = ("open", path, request, *approvals, "--env", "T=token")
    result = run(*arguments, "--", "true")
    assert (2, True) == (result.code, "has to be rotated afterwards" in result.err)
    (tmp_path / "other.toml").write_text("[rotation]\n")
    result = run(*arguments, "--plan", tmp_path / "other.toml", "--", "true")
    assert (2, True) == (result.code, "no secret vault-admin" in result.err)


def test_no_value_in_arguments(run: Run, halves: Path, tmp_path: Path) -> None:
    """A value as an argument is refused, and not repeated."""
    custodians = [each for name in NAMES for each in ("--custodian", f"{name}={halves / name}.pub")]
    result = run(
        "seal", tmp_path / "p", "--threshold", 2, *custodians, "--secret", f"token={CANARY}"
    )
    assert (2, False) == (result.code, CANARY in result.err + result.out)
    assert os.listdir(tmp_path) == []
