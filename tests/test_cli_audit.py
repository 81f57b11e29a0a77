"""tapeseal audit: what its commands print, leave behind and return."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

import audit_sample
import tapeseal
from audit_logs import entries
from tapeseal import audit
from tapeseal.audit_log.environment import EnvironmentLog
from tapeseal.audit_log.log import AuditLog
from tapeseal.cli import app
from test_cli import Result, Run, start

if TYPE_CHECKING:
    from servers.bao import Server


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command in this process, and return what it printed and its code."""

    def run(*arguments: object) -> Result:
        capfdbinary.readouterr()
        code = app.run([str(argument) for argument in arguments])
        printed = capfdbinary.readouterr()
        return Result(code, printed.out, printed.err.decode())

    return run


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> Path:
    """A new log under audit.key, with a key file k beside it; the working directory is theirs."""
    monkeypatch.chdir(tmp_path)
    assert 0 == run("keygen", "audit.key").code
    assert 0 == run("keygen", "k").code
    assert 0 == run("audit", "create", "audit.log", "-k", "local:audit.key").code
    return tmp_path / "audit.log"


@pytest.fixture
def environment(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, and this process and those that it starts record there, as with the environment's log."""
    monkeypatch.setenv("TAPESEAL_AUDIT", str(log))
    monkeypatch.setenv("TAPESEAL_AUDIT_KEYRING", f"local:{log.parent / 'audit.key'}")
    monkeypatch.setenv("TAPESEAL_AUDIT_IDENTITY", "nightly")
    audit.start(EnvironmentLog())
    yield log
    opened = audit.active()
    audit.stop()
    if isinstance(opened, AuditLog):
        opened.close()


def used(log: Path, count: int = 5) -> None:
    """Write entries."""
    with AuditLog(log, keyring="local:audit.key") as opened:
        audit.start(opened)
        for number in range(count):
            with audit.operation("kv.read", f"secret/{number}") as entry:
                entry.version = number


def test_create(log: Path, run: Run) -> None:
    """A log is made for its owner alone, or for a group; what is there is never overwritten."""
    assert 0o600 == stat.S_IMODE(log.stat().st_mode)
    again = run("audit", "create", "audit.log", "-k", "local:audit.key")
    assert (2, "file exists" in again.err) == (again.code, True)
    made = run(
        *("audit", "create", "b", "-k", "local:audit.key", "--daily", "--roll-size", 10**6),
        *("--group", "--json"),
    )
    header = json.loads(Path("b").read_text())
    assert (made.report["id"], 86400, 10**6) == (
        header["log"],
        header["roll_seconds"],
        header["roll_size"],
    )
    assert 0o660 == stat.S_IMODE(os.stat("b").st_mode)


def test_verify(log: Path, run: Run) -> None:
    """Verify says how many entries are authentic; of a changed log what is wrong, with exit code 1."""
    used(log)
    good = run("audit", "verify", "audit.log", "-k", "local:audit.key")
    assert (0, b"audit.log: 6 entries, all of it authentic\n") == (good.code, good.out)
    report = run("audit", "verify", "audit.log", "-k", "local:audit.key", "--json").report
    assert (True, 6, 6, []) == (report["ok"], report["entries"], report["last"], report["problems"])
    log.write_bytes(log.read_bytes().replace(b"secret/2", b"secret/9"))
    bad = run("audit", "verify", "audit.log", "-k", "local:audit.key")
    assert (1, b"audit.log:5: changed: entry 4 is not as it was written") == (
        bad.code,
        bad.out.splitlines()[0],
    )
    assert "1 problem found" in bad.err
    report = run("audit", "verify", "audit.log", "-k", "local:audit.key", "--json").report
    assert (False, "changed", 5) == (
        report["ok"],
        report["problems"][0]["kind"],
        report["problems"][0]["line"],
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["verify", "none", "-k", "local:audit.key"], 2, "No such file"),
        (["verify", "audit.log", "-k", "local:k"], 3, "no recipient is one of ours"),
        (["verify", "audit.log"], 2, "Missing option '-k'"),
        (["verify", "audit.log", "-k", "local:audit.key", "--anchors", "a"], 2, "go together"),
        (["verify", "audit.log", "-k", "local:audit.key", "--tape-keyring", "local:k"], 2, "is for --tapes"),
        (["report", "audit.log", "--since", "yesterday"], 2, "is no time"),
        (["report", "audit.log", "--hours", "19-7"], 2, "are no hours"),
        (["report", "audit.log", "--timezone", "Mars/Base"], 2, "no time zone"),
        (["anchor", "audit.log", "-k", "local:audit.key", "--signer", "rsa:x"], 2, "signer"),
        (["create", "none/x", "-k", "local:audit.key"], 2, "No such file"),
    ],
)  # fmt: skip
def test_usage(log: Path, run: Run, arguments: list[str], code: int, said: str) -> None:
    """What is missing or makes no sense is named, and nothing is changed."""
    before = log.read_bytes()
    done = run("audit", *arguments)
    assert (code, True) == (done.code, said in done.err)
    assert before == log.read_bytes()


def test_anchors_and_tapes(log: Path, run: Run) -> None:
    """Verify takes anchors from a file with the signer's public key, and compares tapes."""
    key = ed25519.Ed25519PrivateKey.generate()

    class Signer:
        key = "test:1"
        algorithm = "ed25519"
        sign = staticmethod(lambda message: globals_key.sign(message))

    globals_key = key
    Path("pub.pem").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    Path("x").write_text("data")
    with AuditLog(log, keyring="local:audit.key") as opened:
        audit.start(opened)
        tapeseal.encrypt_file("x", "x.tape", keyring=tapeseal.keyring("local:k"))
        Path("anchors").write_text(f"{opened.anchor().signed(Signer())}\n")
    options = (
        *("-k", "local:audit.key", "--anchors", "anchors", "--public-key", "pub.pem"),
        *("--tapes", "."),
    )
    for more in ((), ("--tape-keyring", "local:k")):
        good = run("audit", "verify", "audit.log", *options, *more)
        assert 0 == good.code
        assert b"1 anchor met, 1 of 1 tape as the log says" in good.out
    os.truncate("x.tape", os.path.getsize("x.tape") - 60)
    cut = run("audit", "verify", "audit.log", *options)
    assert (1, True) == (cut.code, b"x.tape: cut: it " in cut.out)
    os.unlink("x.tape")
    gone = run("audit", "verify", "audit.log", *options, "--json")
    assert (1, "missing") == (gone.code, gone.report["tapes"][0]["state"])
    Path("pub.pem").write_text("nothing")
    assert 1 == run("audit", "verify", "audit.log", *options).code


@pytest.mark.server
def test_anchor_by_transit(
    log: Path, run: Run, bao: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    """An anchor is signed by a key of Transit, kept in a file and in KV, and verified without the server."""
    mount = f"audit-{os.urandom(4).hex()}"
    bao.admin.sys.enable_secrets_engine("transit", path=mount)
    bao.admin.adapter.post(f"/v1/{mount}/keys/day", json={"type": "ed25519"})
    monkeypatch.setenv("VAULT_ADDR", bao.address)
    monkeypatch.setenv("VAULT_TOKEN", bao.token)
    used(log)
    from tapeseal.signing import signer

    Path("pub.pem").write_bytes(signer(f"vault-transit:{mount}/day").public_key())
    for to in ("anchors", f"kv:secret/{mount}/anchor"):
        made = run(
            *("audit", "anchor", "audit.log", "-k", "local:audit.key"),
            *("--signer", f"vault-transit:{mount}/day", "--to", to),
        )
        assert 0 == made.code
    kept = bao.admin.secrets.kv.v2.read_secret_version(
        f"{mount}/anchor", mount_point="secret", raise_on_deleted_version=True
    )
    Path("anchors").write_text(f"{Path('anchors').read_text()}{kept['data']['data']['anchor']}\n")
    monkeypatch.delenv("VAULT_ADDR")
    good = run(
        *("audit", "verify", "audit.log", "-k", "local:audit.key"),
        *("--anchors", "anchors", "--public-key", "pub.pem"),
    )
    assert (0, True) == (good.code, b"2 anchors met" in good.out)


def test_roll(log: Path, run: Run) -> None:
    """A log is rolled, also to a new key; both keyrings verify it then."""
    used(log)
    assert 0 == run("audit", "roll", "audit.log", "-k", "local:audit.key").code
    rolled = run("audit", "roll", "audit.log", "-k", "local:audit.key", "--to", "local:k", "--json")
    assert f"{log}.000002" == rolled.report["previous"]
    both = ("-k", "local:audit.key", "-k", "local:k")
    good = run("audit", "verify", "audit.log", *both)
    assert (0, True) == (good.code, b"6 entries, all of it authentic, in 3 files" in good.out)
    assert 3 == run("audit", "verify", "audit.log", "-k", "local:audit.key").code
    assert 0 == run("audit", "verify", "audit.log", "-k", "local:k", "--from-file", 3).code


def test_show(log: Path, run: Run) -> None:
    """Show writes entries, those that are asked for, as lines or as they are."""
    used(log)
    shown = run("audit", "show", "audit.log", "-k", "local:audit.key", "--action", "kv", "-n", 2)
    lines = shown.out.decode().splitlines()
    assert ["kv.read secret/3 version 3", "kv.read secret/4 version 4"] == [
        each.partition(": ")[2] for each in lines
    ]
    raw = run("audit", "show", "audit.log", "-k", "local:audit.key", "--subject", "/2", "--json")
    assert [entries(log)[3]] == [json.loads(each) for each in raw.out.splitlines()]
    assert b"" == run("audit", "show", "audit.log", "-k", "local:audit.key", "--failed").out
    assert b"" == run("audit", "show", "audit.log", "-k", "local:audit.key", "--who", "nobody").out
    unverified = run("audit", "show", "audit.log", "--since", "1h")
    assert (0, True) == (unverified.code, "nothing of the log was authenticated" in unverified.err)
    assert 6 == len(unverified.out.splitlines())
    log.write_bytes(log.read_bytes()[:-200])
    assert 1 == run("audit", "show", "audit.log", "-k", "local:audit.key").code


def test_nothing_acts_on_a_terminal(log: Path, run: Run) -> None:
    """Whatever stands in a log, and whoever wrote it there, nothing of it but text comes to a terminal."""
    nasty = "\x1b[2J\x9b2J\r\n\u202e[bold]\U0001f600"
    with AuditLog(log, keyring="local:audit.key", identity=nasty) as opened:
        audit.start(opened)
        with audit.operation(f"kv.{nasty}", nasty) as entry:
            entry.version = entry.result = nasty
    forged = entries(log)[1]
    with log.open("ab") as file:
        file.write(json.dumps(forged, ensure_ascii=False).encode().replace(b",", b",\r") + b"\n")
    for arguments in (
        ["report"],
        ["show"],
        ["show", "--json"],
        ["report", "-k", "local:audit.key"],
        ["show", "-k", "local:audit.key"],
        ["verify", "-k", "local:audit.key"],
    ):
        shown = run("audit", arguments[0], "audit.log", *arguments[1:])
        text = shown.out.decode() + shown.err
        assert text.replace("\n", "").isprintable(), arguments
        assert arguments[0] == "verify" or "[bold]" in text


def test_show_goes_by_the_order(log: Path, run: Run) -> None:
    """What a clock that was put back wrote is shown where it stands."""
    used(log, 1)
    early = {**entries(log)[1], "time": "1999-01-01T00:00:00.000000000Z", "subject": "put back"}
    with log.open("ab") as file:
        file.write(json.dumps(early).encode() + b"\n")
    shown = run("audit", "show", "audit.log", "--since", "1h").out.decode()
    assert "put back" in shown.splitlines()[-1]


def test_report(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report comes as tables, as JSON and as one page; what fails to verify is said, with exit code 1."""
    monkeypatch.chdir(tmp_path)
    path, key_file = audit_sample.write_sample(tmp_path, days=20)
    common = ("audit", "report", path.name, "-k", f"local:{key_file}", "--plan", "plan.toml")
    more = ("--until", "2026-11-27T11:00", "--unused-days", 5)
    table = run(*common, *more)
    assert 0 == table.code
    text = table.out.decode()
    for each in (
        "Rotation (11)",
        "Failed attempts",
        "Unlike before",
        "Unused",
        "Who used what",
        "overdue",
        "never",
    ):
        assert each in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    report = run(*common, *more, "--json").report
    assert (True, report["entries"]) == (
        report["verified"],
        sum(day["done"] + day["failed"] for day in report["days"]),
    )
    page = run(*common, *more, "--html", "report.html")
    assert (0, True) == (page.code, Path("report.html").read_text().startswith("<!doctype html>"))
    assert 2 == run(*common, "--html", "report.html").code
    assert b"<!doctype html>" == run(*common, *more, "--html", "-").out[:15]
    path.write_bytes(path.read_bytes().replace(b"binance", b"kraken_", 1))
    bad = run(*common, *more)
    assert (1, True) == (bad.code, "does not verify" in bad.err)
    assert "DOES NOT VERIFY" in bad.out.decode()


def test_report_with_long_versions(log: Path, run: Run) -> None:
    """However long versions are, it is said what was used."""
    with AuditLog(log, keyring="local:audit.key") as opened:
        audit.start(opened)
        for number in range(4):
            with audit.operation("pki.issue", "pki/gateway") as entry:
                entry.version = ":".join([f"{number:02x}"] * 20)
    text = run("audit", "report", "audit.log", "-k", "local:audit.key").out.decode()
    assert "pki/gateway" in text[text.index("Who used what") :]


# The environment


def test_commands_are_recorded(environment: Path, run: Run) -> None:
    """Each command is an entry: by whom, its name, how it ended, and none of its arguments."""
    Path("x").write_text("data")
    done = start("encrypt", "x", "-k", "local:k")
    assert (0, "") == (done.code, done.err)
    assert "tapeseal" == entries(environment)[-1]["program"]
    assert 3 == run("decrypt", "x.tape", "-k", "local:audit.key", "-o", "canary-argument").code
    assert 2 == run("inspect", "canary-argument").code
    assert 2 == run("audit", "verify", "canary-argument", "--since").code
    assert 0 == run("encrypt", "--help").code
    assert 0 == run("--version").code
    assert [
        ("tapeseal encrypt", "done", "nightly"),
        ("tapeseal decrypt", "exit 3", "nightly"),
        ("tapeseal inspect", "exit 2", "nightly"),
        ("tapeseal audit verify", "NoSuchOption", "nightly"),
    ] == [
        (each["subject"], each["result"], each["identity"])
        for each in entries(environment)
        if each["action"] == "command.run"
    ]
    decrypt = next(each for each in entries(environment) if each["action"] == "tape.decrypt")
    assert "KeyUnavailableError" == decrypt["result"]
    assert all(
        "canary-argument" not in json.dumps(each)
        for each in entries(environment)
        if each["action"] == "command.run"
    )


def test_a_reader_that_goes_away(environment: Path) -> None:
    """A command whose output nobody reads to the end, as with `head`, is an entry with its code."""
    Path("big").write_bytes(bytes(3_000_000))
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = start(
            "encrypt", "big", "-o", "-", "-k", "local:k", stdout=pipe, stderr=subprocess.PIPE
        )
    assert (141, "") == (done.code, done.err)
    (last,) = (each for each in entries(environment) if each["action"] == "command.run")
    assert "exit 141" == last["result"]


def test_audit_commands_take_the_log_from_there(environment: Path, run: Run) -> None:
    """The commands of the group take log and keyring from the environment, and record themselves."""
    assert 0 == run("audit", "verify").code
    assert b"command.run tapeseal audit verify" in run("audit", "show").out
    assert 0 == run("audit", "report").code


def test_a_log_that_is_gone(environment: Path, run: Run) -> None:
    """Without its log no command does anything; those that look at logs do all the same, and warn."""
    Path("x").write_text("data")
    environment.rename("aside")
    Path("audit.log.head").rename("aside.head")
    refused = run("encrypt", "x", "-k", "local:k")
    assert (3, True) == (refused.code, "there is no audit log" in refused.err)
    assert not Path("x.tape").exists()
    looked = run("audit", "show", "aside")
    assert (0, True) == (looked.code, "warning: the audit log" in looked.err)
    assert 0 == run("--help").code
