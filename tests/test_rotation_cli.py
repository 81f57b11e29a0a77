"""tapeseal rotate: what it prints, its exit codes, the daemon."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import rotation_world as world
import tapeseal
from rotation_world import CANARY, Service, write_plan
from servers.bao import Server, wait_for
from tapeseal.cli import app
from tapeseal.rotation.journal import Journal
from tapeseal.rotation.plan import read_plan
from test_rotation_exec import exec_plan

world.register()


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def reports(self) -> list[dict[str, Any]]:
        """The lines of its output, which are JSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = app.run(["rotate", *map(str, arguments)])
        printed = capfd.readouterr()
        assert CANARY not in printed.out + printed.err
        return Result(code, printed.out, printed.err)

    return run


@pytest.fixture
def vault(bao: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, named by variables."""
    for name in os.environ:
        if name.startswith(("VAULT_", "BAO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VAULT_ADDR", bao.address)
    monkeypatch.setenv("VAULT_TOKEN", bao.token)
    return bao


def test_plan_without_a_vault(run: Run) -> None:
    """A plan is checked, and its dates are told as far as they are known, without any service."""
    write_plan(Path("rotation.toml"), "db", "cache", more='window = { markets = ["XNYS"] }')
    result = run("plan")
    assert 0 == result.code
    assert re.search(
        r"db +accounts +application +execution desk +90d +unknown: --refresh", result.out
    )
    (first, _) = run("plan", "--json").reports
    assert ("db", "unknown", None) == (first["secret"], first["state"], first["due"])


def test_plan_whose_journal_has_no_place(run: Run, tmp_path: Path) -> None:
    """A journal in a directory that is not there is an error that names the directory and the setting."""
    Path("rotation.toml").write_text(
        f'[rotation]\nstate = "{tmp_path}/none/rotation.db"\nstaging = "secret/staging"\n'
        'consumers = "secret/consumers"\n'
        '[secret.key]\nkind = "api-key"\ntier = "root"\nowner = "desk"\noptions = { path = "secret/key" }\n'
    )
    result = run("plan")
    assert 2 == result.code
    assert f"{tmp_path}/none: there is no such directory for the journal" in result.err
    assert "`state` of the plan" in result.err


def test_the_plan_of_the_page(run: Run) -> None:
    """The plan of docs/rotation.md is one as it stands there."""
    page = Path(__file__).parents[1] / "docs" / "rotation.md"
    if not page.exists():
        pytest.skip("docs/rotation.md is not beside these tests")
    plan = page.read_text().partition("```toml\n")[2].partition("```")[0]
    Path("rotation.toml").write_text(plan)
    result = run("plan")
    assert (0, "") == (result.code, result.err)
    assert "binance-backup-key" in result.out


def test_plan_that_is_none(run: Run) -> None:
    """All that is wrong is said at once, and the code is that of a usage error."""
    write_plan(Path("rotation.toml"), "db", more='colour = "blue"\nsize = 3')
    result = run("plan")
    assert 2 == result.code
    assert "there is no setting 'colour'" in result.err
    assert "there is no setting 'size'" in result.err
    assert 2 == run("plan", "-p", "nowhere.toml").code


@pytest.mark.server
def test_run_and_status(run: Run, vault: Server) -> None:
    """A rotation is reported, and the status knows of it afterwards."""
    write_plan(Path("rotation.toml"), "db", "cache")
    result = run("run", "db")
    assert (0, "db: finished, version 1\n") == (result.code, result.out)
    (report,) = run("run", "db", "--json").reports
    assert ("db", "finished", "2", None) == tuple(
        report[name] for name in ("secret", "state", "version", "error")
    )
    result = run("status")
    assert 0 == result.code
    assert re.search(r"db .* 2 +0h .* ok\n", result.out)
    assert re.search(r"cache .* unknown\n", result.out)
    (report,) = run("status", "db", "--json").reports
    assert ["begin", "end"] == [each["event"] for each in report["rotation"]["events"][:2]]
    assert "deploy end" in run("status", "db").out
    assert 2 == run("status", "nothing").code
    result = run("plan", "--refresh")
    assert (0, 1) == (result.code, result.out.count("unknown") + 1)


@pytest.mark.server
def test_run_due(run: Run, vault: Server) -> None:
    """What is due is rotated, and then nothing is."""
    write_plan(Path("rotation.toml"), "db", "cache")
    result = run("run", "--due")
    assert (0, {"db: finished, version 1", "cache: finished, version 1"}) == (
        result.code,
        set(result.out.splitlines()),
    )
    assert (0, "") == run("run", "--due")[:2]


@pytest.mark.server
def test_failure_has_a_code(run: Run, vault: Server, tmp_path: Path) -> None:
    """A rotation that was rolled back ends with code 3, and so does the status until it is mended."""
    write_plan(Path("rotation.toml"), "db")
    run("run", "db")
    service = Service(tmp_path / "db")
    service.trouble("trusted", service.alive()[0])
    result = run("run", "db")
    assert 3 == result.code
    assert result.out.startswith("db: rolled back: login of")
    status = run("status")
    assert (3, True) == (status.code, "failed (!)" in status.out)
    service.mend("trusted")
    assert 0 == run("run", "db").code
    assert 0 == run("status").code


@pytest.mark.server
def test_consumers_and_rollback(run: Run, vault: Server) -> None:
    """A rotation waits for its consumers, who acknowledge by a command; until then it can be rolled back."""
    path = write_plan(Path("rotation.toml"), "db", more='consumers = ["recorder"]\ngrace = "0s"')
    where = read_plan(path).consumers
    run("run", "db")
    result = run("run", "db")
    assert (3, True) == (result.code, result.out.startswith("db: waiting for recorder: not on the"))
    assert 3 == run("status").code
    assert "waiting: recorder (!)" in run("status").out
    assert " of db to version 2\n" in run("status", "db").out
    assert (0, "db: rolled back: rolled back by command\n") == run("rollback", "db")[:2]
    assert 0 == run("status").code
    assert 3 == run("rollback", "db").code
    run("run", "db")
    result = run("acknowledge", "db", "recorder", "4", "--path", where)
    assert (0, "db: recorder is on version 4\n") == (result.code, result.out)
    assert (0, "db: finished, version 4\n") == run("run", "db", "--wait", "5s")[:2]
    assert 2 == run("acknowledge", "../db", "recorder", "4").code


@pytest.mark.server
def test_waiting_ends_with_what_is_still_open(run: Run, vault: Server, tmp_path: Path) -> None:
    """Where the time is over before a rotation is, the last word is what stands in its way, and code 3."""
    path = write_plan(Path("rotation.toml"), "db", more='consumers = ["recorder"]\ngrace = "1s"')
    run("run", "db")
    result = run("run", "db", "--wait", "2s")
    first, last = result.out.splitlines()
    assert "db: waiting for recorder" == first
    assert last.startswith("db: waiting for recorder: not on the new version by now")
    assert 3 == result.code
    where = read_plan(path).consumers
    run("acknowledge", "db", "recorder", "2", "--path", where)
    service = Service(tmp_path / "db")
    service.trouble("revoke-fails")
    result = run("run", "db", "--wait", "3s")
    assert 3 == result.code
    assert re.search(r"revoke fail \([2-9] times, until ", run("status", "db").out)


@pytest.mark.server
def test_dry_run(run: Run, vault: Server, tmp_path: Path) -> None:
    """Every call is named, and none is made."""
    write_plan(Path("rotation.toml"), "db", more='consumers = ["recorder"]')
    result = run("run", "db", "--dry-run")
    lines = [line.strip() for line in result.out.splitlines()]
    found = [
        next(number for number, line in enumerate(lines) if text in line)
        for text in ("claim: POST", "make an account", "with the new", "deployed", "log in", "recorder", "DELETE")
    ]  # fmt: skip
    assert sorted(found) == found
    assert [] == Service(tmp_path / "db").made()
    (report,) = run("run", "--due", "--dry-run", "--json").reports
    assert ("db", None, len(lines) - 1) == (
        report["secret"],
        report["held"],
        len(report["calls"]),
    )
    assert [] == Service(tmp_path / "db").made()


@pytest.mark.server
@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "db", "--due"],
        ["run", "--due", "--compromised", "secret=db"],
        ["run", "--due", "--take-over"],
        ["run", "--compromised", "colour=blue"],
        ["run", "nothing"],
        ["run", "db", "--wait", "soon"],
        ["rollback", "nothing"],
    ],
)
def test_usage(run: Run, vault: Server, arguments: list[str]) -> None:
    """What makes no sense is refused, and nothing is done."""
    write_plan(Path("rotation.toml"), "db")
    assert 2 == run(*arguments).code
    assert [] == Service("db").made()


@pytest.mark.server
def test_held_by_its_window(run: Run, vault: Server) -> None:
    """A secret by name outside its window is not rotated, and the code says so."""
    day = time.strftime("%a", time.gmtime(time.time() + 3 * 86400)).lower()
    write_plan(Path("rotation.toml"), "db", more=f'window = {{ days = ["{day}"] }}')
    result = run("run", "db")
    assert (3, True) == (result.code, result.out.startswith("db: held until 20"))
    assert (0, "") == run("run", "--due")[:2]


@pytest.mark.server
def test_compromised_key(run: Run, vault: Server, tmp_path: Path, key_file: str) -> None:
    """All that a key touched is rotated at once, and the tapes that it opens are named."""
    name = f"local:{key_file}"
    (tmp_path / "tapes").mkdir()
    np.save(tmp_path / "day.npy", np.arange(100))
    keyring = tapeseal.keyring(name)
    tapeseal.encrypt_file(tmp_path / "day.npy", tmp_path / "tapes/day.tape", keyring=keyring)
    (key,) = [each.key for each in tapeseal.inspect(tmp_path / "tapes/day.tape").recipients]
    day = time.strftime("%a", time.gmtime(time.time() + 3 * 86400)).lower()
    more = f'consumers = ["recorder"]\nwindow = {{ days = ["{day}"] }}'
    path = write_plan(
        Path("rotation.toml"), "db", "cache", more=more, common='tapes = ["tapes", "gone"]'
    )
    path.write_text(path.read_text().replace(read_plan(path).secrets["db"].options["path"], key))
    vault.admin.sys.enable_secrets_engine(
        "kv", path=key, options={"version": "2"}
    ) if "/" not in key else None
    result = run("run", "--dry-run", "--compromised", f"key={key}")
    assert result.out.startswith("db\n")
    assert "tapes/day.tape: 100 records" in result.out
    assert "1 tape exposed, 1 could not be read" in result.err
    result = run("run", "--compromised", "secret=cache", "--json")
    assert [("cache", "finished")] == [(each["secret"], each["state"]) for each in result.reports]
    assert "whatever their windows" in result.err
    (report,) = run("status", "cache", "--json").reports
    assert report["rotation"]["emergency"]
    assert "an emergency: compromised: secret=cache" in run("status", "cache").out
    for more_arguments in ([], ["--dry-run"]):
        result = run("run", "--compromised", "host=gw8", *more_arguments)
        assert (3, "") == result[:2]
        assert "no secret of rotation.toml has to do with host=gw8" in result.err


@pytest.mark.server
def test_take_over(run: Run, vault: Server) -> None:
    """A rotation whose journal is lost is taken over by its claim."""
    write_plan(Path("rotation.toml"), "db", more='consumers = ["recorder"]')
    run("run", "db")
    run("run", "db")
    os.unlink("rotation.db")
    result = run("run", "db")
    assert 3 == result.code
    assert "--take-over" in result.out
    for name in ("rotation.db", "rotation.db-wal", "rotation.db-shm"):
        Path(name).unlink(missing_ok=True)
    assert (0, "db: waiting for recorder\n") == run("run", "db", "--take-over")[:2]


@pytest.mark.server
def test_vault_that_cannot_be_used(
    run: Run, vault: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that make no sense are a usage error, before anything is done."""
    write_plan(Path("rotation.toml"), "db")
    monkeypatch.setenv("VAULT_ADDR", "http://vault.example:8200")
    result = run("run", "db")
    assert 2 == result.code
    assert "use https://" in result.err


def test_journal_that_is_none(run: Run) -> None:
    """Another file is not taken for a journal, and is left as it was."""
    write_plan(Path("rotation.toml"), "db")
    for content in (b"notes", b"SQLite format 3\0" + bytes(84), b"x" * 5000):
        Path("rotation.db").write_bytes(content)
        result = run("status")
        assert result.code in (2, 3)
        assert "rotation.db" in result.err
        assert content == Path("rotation.db").read_bytes()


# The daemon


@pytest.fixture
def daemon(vault: Server, tmp_path: Path) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Start `rotate serve` in the directory of the test, and return its process."""
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tapeseal", "rotate", "serve", "--metrics", "127.0.0.1:0"],
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.wait()
        assert each.stderr is not None
        each.stderr.close()


def scrape(process: "subprocess.Popen[str]") -> Callable[[], dict[str, float]]:
    """Return what reads the metrics of a daemon."""
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(r"metrics at port (\d+)\n", line)
    assert found is not None, line

    def read() -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert CANARY not in text
        values = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                values[re.sub(r'\{.*secret="(\w+)".*\}', r"(\1)", name)] = float(value)
        return values

    return read


@pytest.mark.server
def test_daemon(daemon: Callable[[], "subprocess.Popen[str]"], run: Run, tmp_path: Path) -> None:
    """It rotates what is due, serves metrics, does what others ask for, reads its plan again, and ends well."""
    plan = exec_plan(tmp_path, os.urandom(4).hex())
    path = tmp_path / "rotation.toml"
    path.write_text(path.read_text().replace('"desk"', '"desk"\nconsumers = ["recorder"]'))
    process = daemon()
    read = scrape(process)
    prefix = "tapeseal_rotation_"

    def has(name: str, value: float) -> Callable[[], bool]:
        return lambda: read().get(f"{prefix}{name}") == value

    wait_for(
        "the first rotation", lambda: read().get(f"{prefix}last_success_timestamp_seconds(db)")
    )
    assert 0 == read()[f"{prefix}alarm(db)"]
    assert (0, "db: the runner that has the journal was asked\n") == run("run", "db")[:2]
    wait_for("the consumer", has("waiting_consumers(db)", 1))
    assert 3 == run("run", "--due").code
    assert 0 == run("rollback", "db").code
    wait_for("the rollback", has("failures(db)", 1))
    result = run("run", "--compromised", "secret=db", "--wait", "30s")
    assert (0, True) == (result.code, "\ndb: finished, version " in result.out)
    assert has("failures(db)", 0)()
    path.write_text(path.read_text().replace("secret.db", "secret.cache"))
    process.send_signal(signal.SIGHUP)
    wait_for("the new plan", lambda: f"{prefix}alarm(cache)" in read())
    path.write_text("[broken")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(30)
    assert process.stderr is not None
    assert CANARY not in process.stderr.read()
    with Journal(plan.state) as journal:
        assert [] == journal.requests(time.time())


@pytest.mark.server
@pytest.mark.parametrize(
    ("sign", "code", "step"),
    [
        (signal.SIGTERM, 0, "store"),
        pytest.param(signal.SIGKILL, -9, "generate", marks=pytest.mark.slow),
    ],
)
def test_daemon_that_is_ended(
    daemon: Callable[[], "subprocess.Popen[str]"],
    run: Run,
    tmp_path: Path,
    sign: int,
    code: int,
    step: str,
) -> None:
    """SIGTERM lets the step under way end, `kill -9` does not; either way the next run goes on from there."""
    exec_plan(tmp_path, os.urandom(4).hex())
    script = tmp_path / "script"
    # The daemon may take its time to see the signal, on a busy machine.
    waits = "touch begun; until [ -e go ]; do sleep 0.05; done; sleep 3"
    script.write_text(script.read_text().replace("generate)", f"generate) {waits}"))
    process = daemon()
    wait_for("the step", (tmp_path / "begun").exists)
    process.send_signal(sign)
    if sign == signal.SIGKILL:
        assert code == process.wait(30)
        # The command goes on, and nobody else begins until it has ended.
        waiting = run("run", "--due")
        assert 3 == waiting.code
        assert "a command of one that was killed" in waiting.err
    (tmp_path / "go").touch()
    assert code == process.wait(30)
    (report,) = run("status", "--json").reports
    assert ("running", step) == (report["rotation"]["state"], report["rotation"]["step"])
    done = wait_for("the command's end", lambda: (it := run("run", "--due")).code != 3 and it)
    assert (0, "db: finished, version 1\n") == done[:2]
    assert [report["rotation"]["id"]] == [each.name for each in (tmp_path / "alive").iterdir()]


@pytest.mark.server
def test_one_daemon(daemon: Callable[[], "subprocess.Popen[str]"], tmp_path: Path) -> None:
    """A second daemon on the same journal ends at once."""
    exec_plan(tmp_path, os.urandom(4).hex())
    scrape(daemon())
    second = daemon()
    assert 3 == second.wait(30)
    assert second.stderr is not None
    assert "another runner has the journal" in second.stderr.read()
