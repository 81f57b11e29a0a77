"""Commands of a plan, and the kind `exec`: credentials over pipes, and a full rotation by scripts."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rotation_world import CANARY
from servers.bao import Server
from support import leaks
from tapeseal._core import SecretBuffer
from tapeseal.errors import RotationError, ServiceUnavailableError
from tapeseal.rotation.commands import credential_of, json_of, run_command
from tapeseal.rotation.engine import Engine
from tapeseal.rotation.journal import Journal
from tapeseal.rotation.kinds import make_kind
from tapeseal.rotation.plan import Plan, read_plan
from tapeseal.rotation.redaction import without
from tapeseal.rotation.services import PlanServices
from tapeseal.secret import Secret
from tapeseal.vault import Token, VaultSession

TEXTS = ["plain", 'quote " and \\ and /', "line\nline\t\x01", "ümläut €", "😀 𝄞", "\x7f"]


def secret(text: str) -> Secret:
    return Secret.take(bytearray(text.encode()))


def content(buffer: SecretBuffer | None) -> bytes:
    assert buffer is not None
    with buffer, memoryview(buffer) as view:
        return bytes(view)


@pytest.mark.parametrize("text", TEXTS)
def test_credential_as_json(text: str) -> None:
    """What is written as JSON in key memory is what json would read, and is read back as it was."""
    written = json_of({"password": secret(text), 'na"me': secret("x")})
    assert {"password": text, 'na"me': "x"} == json.loads(content(written))
    read = credential_of(written)
    assert {"password": text, 'na"me': "x"} == {name: each.expose() for name, each in read.items()}
    escaped = SecretBuffer.take(bytearray(json.dumps({"password": text}).encode()))
    assert text == credential_of(escaped)["password"].expose()


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[]", "null", '"a"', "{", '{"a": "b"', '{"a": "b",}', '{"a": "b"} {}', '{"a" "b"}'),
        *('{"a": 1}', '{"a": null}', '{"a": {"b": "c"}}', '{"a": ""}', '{"a": "b", "a": "c"}'),
        *(r'{"a": "\ud800"}', r'{"a": "\x"}', '{"a": "\n"}', r'{"a": "\u12"}', '{a: "b"}'),
        *('{"a": "bxq-zz" "bxq-zz"}', '{"a": "bxq-zz", 1}', '{"a": "bxq-zz", "c": ""}'),
        r'{"a": "bxq-zz\ud800"}',
    ],
)
def test_no_credential(text: str) -> None:
    """Anything else than an object of texts is refused, and its text is not in the error."""
    with pytest.raises(ValueError) as caught:
        credential_of(SecretBuffer.take(bytearray(text.encode())))
    assert set() == leaks(caught.value, ["\\ud800", "bxq-zz"])


def test_credential_on_standard_input(tmp_path: Path) -> None:
    """A command gets the credential by a pipe, and has nothing of it in arguments and environment."""
    script = (
        "cat; tr '\\0' '\\n' < /proc/self/environ > $1; tr '\\0' '\\n' < /proc/$$/cmdline >> $1"
    )
    seen = tmp_path / "seen"
    printed = run_command(
        ["sh", "-c", script, "sh", str(seen)],
        credential={"password": secret(CANARY)},
        variables={"TAPESEAL_SECRET": "db"},
        seconds=10,
    )
    assert {"password": CANARY} == json.loads(content(printed))
    assert "TAPESEAL_SECRET=db" in seen.read_text()
    assert CANARY not in seen.read_text()


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("echo one >&2; echo two >&2; exit 3", RotationError, "sh ended with code 3: two"),
        ("exit 75", ServiceUnavailableError, "sh ended with code 75"),
        ("kill -9 $$", RotationError, "sh was ended by signal 9"),
        ("cat >&2; exit 1", RotationError, 'sh ended with code 1: {"password":"…"}'),
        ("sleep 60", ServiceUnavailableError, "sh did not end within 0 seconds"),
        ("sleep 60 & exit 0", ServiceUnavailableError, "sh did not end within 0 seconds"),
        ("head -c 300000 /dev/zero", RotationError, "sh printed more than"),
    ],
)
def test_command_that_fails(script: str, error: type[Exception], said: str) -> None:
    """How a command ended decides whether it is tried again; what it said is shown without the credential."""
    start = time.monotonic()
    with pytest.raises(error) as caught:
        run_command(["sh", "-c", script], credential={"password": secret(CANARY)}, seconds=0.3)
    assert said in str(caught.value)
    assert set() == leaks(caught.value, [CANARY])
    assert time.monotonic() - start < 30


def test_command_that_is_not_there() -> None:
    """A program that is missing is named."""
    with pytest.raises(RotationError, match="nowhere cannot be run: No such file"):
        run_command(["/nowhere"], seconds=1)


def test_command_that_reads_nothing() -> None:
    """A command may leave its standard input alone, however long that is."""
    credential = {"password": secret("x" * 200_000)}
    assert run_command(["true"], credential=credential, seconds=10) is None


def test_texts_without_credentials() -> None:
    """Each part of a credential is taken out of a text, short ones excepted, and what looks like one."""
    credential = {"password": secret("correct-horse"), "user": secret("app")}
    assert "login of app with … failed: …" == without(
        "login of app with correct-horse\nfailed:\tcorrect-horse", credential
    )
    assert "token …" == without("token " + "A" * 40)
    closed = secret("battery-staple")
    closed.close()
    assert "battery-staple" == without("battery-staple", {"password": closed})


# A rotation by scripts: accounts are files in alive/, the current one's name is in current/N.
SCRIPT = """
case $1 in
live)
    n=$(ls current | sort -n | tail -1)
    [ -z "$n" ] || echo "{\\"version\\": \\"$n\\", \\"made\\": \\"$(date -ur current/$n +%FT%TZ)\\"}"
    ;;
generate)
    rm -f alive/$TAPESEAL_ROTATION
    echo $TAPESEAL_ROTATION >> log
    echo CANARY-$(od -An -N8 -tx1 /dev/urandom | tr -d ' ') > alive/$TAPESEAL_ROTATION
    echo "{\\"account\\": \\"$TAPESEAL_ROTATION\\", \\"password\\": \\"$(cat alive/$TAPESEAL_ROTATION)\\"}"
    ;;
store)
    account=$(sed 's/.*"account":"\\([^"]*\\)".*/\\1/')
    n=$((${TAPESEAL_OLD_VERSION:-0} + 1))
    echo $account > current/$n
    echo "{\\"version\\": $n}"
    ;;
old)
    [ -z "$TAPESEAL_OLD_VERSION" ] && exit 0
    account=$(cat current/$TAPESEAL_OLD_VERSION)
    echo "{\\"account\\": \\"$account\\", \\"password\\": \\"$(cat alive/$account)\\"}"
    ;;
discard)
    for each in current/*; do
        [ "$(cat $each)" = "$TAPESEAL_ROTATION" ] && rm $each
    done
    rm -f alive/$TAPESEAL_ROTATION
    ;;
revoke)
    [ -e current/$TAPESEAL_OLD_VERSION ] || exit 0
    rm -f alive/$(cat current/$TAPESEAL_OLD_VERSION)
    ;;
esac
"""


def exec_plan(directory: Path, prefix: str) -> Plan:
    """Write the scripts and a plan over them."""
    for name in ("alive", "current"):
        (directory / name).mkdir()
    (directory / "script").write_text(f"cd {directory}\n" + SCRIPT.replace("CANARY", CANARY))
    commands = "\n".join(
        f'{step} = ["sh", "{directory}/script", "{step}"]'
        for step in ("live", "generate", "store", "old", "discard", "revoke")
    )
    (directory / "rotation.toml").write_text(
        f'[rotation]\nstaging = "secret/{prefix}-staging"\nconsumers = "secret/{prefix}-consumers"\n'
        '[secret.db]\nkind = "exec"\ntier = "application"\nowner = "desk"\nmonitor = "0s"\n'
        f"[secret.db.options]\n{commands}\n"
    )
    return read_plan(directory / "rotation.toml")


@pytest.mark.server
def test_rotation_by_commands(bao: Server, tmp_path: Path) -> None:
    """Scripts alone take a secret through a rotation, and a discarded one leaves nothing."""
    plan = exec_plan(tmp_path, os.urandom(4).hex())

    def alive() -> list[str]:
        return [each.name for each in (tmp_path / "alive").iterdir()]

    with (
        VaultSession(bao.address, login=Token(bao.token)) as vault,
        Journal(plan.state) as journal,
        Engine(plan, journal, PlanServices(vault)) as engine,
    ):
        for version in ("1", "2", "3"):
            (outcome,) = engine.rotate(["db"])
            assert outcome.record is not None
            assert ("finished", version) == (outcome.state, outcome.record.facts["version"])
            assert [outcome.record.id] == alive()
        script = tmp_path / "script"
        script.write_text(script.read_text().replace("store)", "store) cat >&2; exit 1;; x)"))
        before = alive()
        (outcome,) = engine.rotate(["db"])
        assert "rolled back" == outcome.state
        assert "ended with code 1" in outcome.error
        assert CANARY not in outcome.error
        assert before == alive()
    assert 3 == len(list((tmp_path / "current").iterdir()))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 1", "no JSON object"),
        ("echo '{}'", 'printed no {"version"'),
        ("echo '{\"version\": null}'", 'printed no {"version"'),
        ('echo \'{"version": "1", "made": "yesterday"}\'', 'printed no {"version"'),
    ],
)
def test_live_that_makes_no_sense(script: str, said: str) -> None:
    """What `live` prints is checked."""
    from tapeseal.rotation.plan import PlannedSecret

    options: dict[str, Any] = {"live": ["sh", "-c", script], "timeout": PlannedSecret.deadline}
    with pytest.raises(RotationError, match="live") as caught:
        make_kind("exec").live(PlannedSecret("db", "exec", options), PlanServices())
    assert said in str(caught.value)
