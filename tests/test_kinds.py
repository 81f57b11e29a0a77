"""What kinds of secrets refuse: settings that do not go together, secrets changed by others, foreign answers."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tapeseal
from rotations import TestServices, credential, exposed, planned, rotation
from servers.bao import Server
from servers.exchange import Exchange
from support import leaks
from tapeseal.errors import (
    AccessDeniedError,
    IrreversibleError,
    RotationError,
    ServiceUnavailableError,
    VaultRefusedError,
)
from tapeseal.keyrings.local import create_key_file
from tapeseal.rotation.kinds import Kind, Rotation, make_kind
from tapeseal.vault.pki import Pki

KEY = "c4nary-0f-the-kinds"


# Settings


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("api-key", {"path": "desk"}, "MOUNT/PATH, not 'desk'"),
        ("api-key", {"path": "secret/desk", "issuer": "http", "admin": "secret/a"}, "needs url"),
        ("api-key", {"path": "secret/desk", "issuer": "exec"}, "needs create and list and revoke"),
        (
            "api-key",
            {"path": "secret/desk", "url": "https://x/"},
            "url is not for the issuer 'random'",
        ),
        (
            "api-key",
            {
                "path": "secret/desk",
                "issuer": "http",
                "admin": "secret/a",
                "url": "http://x.example/",
            },
            "use https://",
        ),
        ("database-users", {"path": "secret/desk", "roles": ["a"]}, "two static roles"),
        ("database-users", {"path": "secret/desk", "roles": ["a", "a"]}, "two static roles"),
        (
            "tls-certificate",
            {"path": "secret/d", "role": "r", "common_name": "d.test", "key_type": "dsa"},
            "key_type is one of ec-256",
        ),
        ("ssh-key", {"path": "secret/desk"}, "a role, or authorized_keys"),
        (
            "ssh-key",
            {"path": "secret/desk", "role": "r", "principals": ["desk"]},
            "role and revoked_keys go together",
        ),
        ("transit-key", {"key": "day"}, "MOUNT/NAME"),
        ("transit-key", {"key": "transit/day", "tapes": ["tapes"]}, "absolute paths"),
        ("kms-key", {"key": "1234", "replace": "key"}, "key is an alias"),
        ("kms-key", {"key": "alias/day", "tapes": ["/tapes"]}, "leave them out"),
    ],
)
def test_settings_do_not_go_together(kind: str, options: dict[str, Any], problem: str) -> None:
    """What the settings of a kind lack is said when the plan is read."""
    with pytest.raises(ValueError, match=problem):
        make_kind(kind).calls(planned(kind, **options))


# Secrets in KV


@pytest.fixture
def stored(bao: Server) -> tuple[Kind, Rotation, Callable[..., None]]:
    """A kind with a key in KV, a rotation of it, and what writes its version by hand."""
    path = f"kinds-{os.urandom(4).hex()}"
    secret = planned("api-key", path=f"secret/{path}")

    def write(**members: Any) -> None:
        bao.admin.adapter.post(f"/v1/secret/data/{path}", json={"data": members})

    return make_kind("api-key"), rotation(secret, TestServices(bao)), write


def begin(kind: Kind, made: Rotation) -> None:
    """Note what is in use, as the engine does."""
    live = kind.live(made.secret, made.services)
    made.facts["old_version"] = None if live is None else live.version


def current(kind: Kind, made: Rotation) -> str | None:
    """Return the current version."""
    live = kind.live(made.secret, made.services)
    return None if live is None else live.version


@pytest.mark.server
def test_other_members_stay(bao: Server, stored: Any) -> None:
    """A rotation, and its rollback, leave members alone that are not the credential's, of whatever type."""
    kind, made, write = stored
    others = {"url": "https://x", "limit": 50.5, "tags": ["a"], "on": True}
    write(key="old", **others)
    begin(kind, made)
    kind.store(made, credential(key=KEY))
    data = bao.admin.adapter.get(f"/v1/secret/data/{made.secret.options['path'].split('/')[1]}")
    assert {"key": KEY, "rotation": made.id, **others} == data["data"]["data"]
    kind.discard(made)
    data = bao.admin.adapter.get(f"/v1/secret/data/{made.secret.options['path'].split('/')[1]}")
    assert {"key": "old", **others} == data["data"]["data"]
    assert "3" == current(kind, made)


@pytest.mark.server
def test_store_again(stored: Any) -> None:
    """A store that is done again, because its end was never noted, writes no second version."""
    kind, made, write = stored
    write(key="old")
    begin(kind, made)
    kind.store(made, credential(key=KEY))
    del made.facts["version"]
    kind.store(made, credential(key=KEY))
    assert ("2", "2") == (made.facts["version"], current(kind, made))


@pytest.mark.server
@pytest.mark.parametrize("first", [True, False])
def test_somebody_else_writes(stored: Any, first: bool) -> None:
    """A version that somebody else has written meanwhile is theirs: it stays, and the rotation ends."""
    kind, made, write = stored
    if not first:
        write(key="old")
    begin(kind, made)
    write(key="by hand")
    with pytest.raises(RotationError, match="changed by somebody else since") as caught:
        kind.store(made, credential(key=KEY))
    assert set() == leaks(caught.value, [KEY, "by hand"])
    kind.discard(made)
    assert ("1" if first else "2") == current(kind, made)


@pytest.mark.server
def test_somebody_else_writes_after(bao: Server, stored: Any) -> None:
    """What somebody else wrote after the rotation stays in a rollback; what the rotation wrote does not."""
    kind, made, write = stored
    write(key="old")
    begin(kind, made)
    kind.store(made, credential(key=KEY))
    write(key="by hand")
    kind.discard(made)
    assert "3" == current(kind, made)
    path = made.secret.options["path"].partition("/")[2]
    versions = bao.admin.adapter.get(f"/v1/secret/metadata/{path}")["data"]["versions"]
    assert [False, True, False] == [versions[each]["destroyed"] for each in "123"]


@pytest.mark.server
def test_nothing_to_go_back_to(bao: Server, stored: Any) -> None:
    """Where the version before is gone, the new one stays."""
    kind, made, write = stored
    write(key="old")
    begin(kind, made)
    kind.store(made, credential(key=KEY))
    path = made.secret.options["path"].partition("/")[2]
    bao.admin.adapter.put(f"/v1/secret/destroy/{path}", json={"versions": [1]})
    with pytest.raises(IrreversibleError, match=r"version 1 of .* is gone"):
        kind.discard(made)
    assert ("2", {}) == (current(kind, made), kind.old(made))


@pytest.mark.server
def test_first_version_goes(stored: Any) -> None:
    """A rollback of the very first rotation leaves nothing."""
    kind, made, _ = stored
    begin(kind, made)
    kind.store(made, credential(key=KEY))
    kind.discard(made)
    kind.discard(made)
    assert current(kind, made) is None


@pytest.mark.server
def test_revoke_ends_every_version_with_the_old_key(bao: Server, stored: Any) -> None:
    """Whoever takes the key of any version that is there takes the old one no more, and still that of others."""
    kind, made, write = stored
    write(key="another")
    write(key="old")
    write(key="old", url="https://x")
    begin(kind, made)
    kind.store(made, credential(key=KEY))
    kind.revoke(made)
    path = made.secret.options["path"].partition("/")[2]
    versions = bao.admin.adapter.get(f"/v1/secret/metadata/{path}")["data"]["versions"]
    assert [False, True, True, False] == [versions[each]["destroyed"] for each in "1234"]


@pytest.mark.server
def test_no_kv_store(bao: Server) -> None:
    """A mount that is not there is an error, not a secret that there is not yet."""
    with pytest.raises(VaultRefusedError, match="no handler for route"):
        make_kind("api-key").live(planned("api-key", path="nowhere/desk"), TestServices(bao))


# Issuers


@pytest.fixture
def issued(bao: Server, tmp_path: Path) -> Iterator[tuple[Kind, Rotation, Exchange]]:
    """A key that an exchange issues, a rotation of it, and the exchange."""
    path = f"issued-{os.urandom(4).hex()}"
    with Exchange(tmp_path) as exchange:
        bao.admin.adapter.post(
            f"/v1/secret/data/{path}-admin", json={"data": {"key": exchange.admin_key}}
        )
        secret = planned(
            "api-key",
            path=f"secret/{path}",
            issuer="http",
            url=f"{exchange.address}/keys",
            ca_file=exchange.ca_file,
            admin=f"secret/{path}-admin",
        )
        yield make_kind("api-key"), rotation(secret, TestServices(bao)), exchange


@pytest.mark.server
def test_interrupted_issue(issued: Any) -> None:
    """A key whose answer was lost is ended before another one is issued; keys of others stay."""
    kind, made, exchange = issued
    theirs, _ = exchange.issue("of somebody else")
    begin(kind, made)
    exchange.fail("POST /keys", "after")
    with pytest.raises(ServiceUnavailableError):
        kind.generate(made)
    assert 2 == len(exchange.alive)
    found = exposed(kind.generate(made))
    assert found is not None
    assert {theirs, int(found["id"])} == set(exchange.alive)
    assert exchange.accepts(found["key"])
    assert {"id", "key"} == found.keys()


@pytest.mark.server
@pytest.mark.parametrize("is_listed", [True, False])
def test_late_issue(issued: Any, is_listed: bool) -> None:
    """A key that is issued late, after another try, is ended too, unless the new one is not to be told from it."""
    kind, made, exchange = issued
    first, _ = exchange.issue("before")
    theirs, _ = exchange.issue("of somebody else")
    begin(kind, made)
    kind.store(made, credential(key=KEY, id=str(first)))
    made.id = "fedcba9876543210"
    begin(kind, made)
    exchange.fail("POST /keys", "before")
    with pytest.raises(ServiceUnavailableError):
        kind.generate(made)
    new = exposed(kind.generate(made))
    assert new is not None
    late, _ = exchange.issue(made.id)
    kind.store(made, credential(**new))
    if not is_listed:
        made.facts["key_id"] = "00" + new["id"]
    kind.revoke(made)
    kept = {theirs, int(new["id"])} | (set() if is_listed else {late})
    assert kept == set(exchange.alive)


@pytest.mark.server
def test_admin_is_refused(issued: Any) -> None:
    """An administrator's key that the exchange refuses is named by its path, and not shown."""
    kind, made, exchange = issued
    shown, exchange.admin_key = exchange.admin_key, "another"
    with pytest.raises(
        AccessDeniedError, match=r"GET .*/keys is refused \(401\): see secret/"
    ) as caught:
        kind.generate(made)
    assert set() == leaks(caught.value, [shown])


@pytest.mark.server
def test_answer_without_key(issued: Any) -> None:
    """An issuer that answers without a part of the key is no such issuer."""
    kind, made, _ = issued
    options = {**made.secret.options, "parts": ["key", "secret"]}
    made.secret = planned(
        "api-key",
        **{k: str(v) if k == "ca_file" else v for k, v in options.items() if v is not None},
    )
    with pytest.raises(RotationError, match="holds no secret"):
        kind.generate(made)


@pytest.mark.server
def test_old_key_without_id(bao: Server, issued: Any) -> None:
    """An old key that KV has no id of is not forgotten: somebody must end it."""
    kind, made, _ = issued
    path = made.secret.options["path"].partition("/")[2]
    bao.admin.adapter.post(f"/v1/secret/data/{path}", json={"data": {"key": KEY}})
    begin(kind, made)
    kind.store(made, kind.generate(made))
    with pytest.raises(RotationError, match=r"has no member 'id'.* by hand") as caught:
        kind.revoke(made)
    assert set() == leaks(caught.value, [KEY])


# Certificates


@pytest.mark.server
def test_interrupted_signing(bao: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate whose answer was lost is found by its key and revoked; others of its name are not."""
    mount = f"pki-{os.urandom(4).hex()}"
    post = bao.admin.adapter.post
    bao.admin.sys.enable_secrets_engine("pki", path=mount)
    post(f"/v1/{mount}/root/generate/internal", json={"common_name": "root", "key_type": "ec"})
    post(f"/v1/{mount}/roles/desk", json={"allow_any_name": True, "key_type": "any"})
    theirs = post(
        f"/v1/{mount}/issue/desk",
        json={"common_name": "feed.test", "key_type": "ec", "key_bits": 256, "ttl": "1h"},
    )["data"]
    secret = planned(
        "tls-certificate",
        path=f"secret/{mount}",
        pki_mount=mount,
        role="desk",
        common_name="feed.test",
        days=7,
    )
    kind, made = make_kind("tls-certificate"), rotation(secret, TestServices(bao))
    begin(kind, made)
    lost = exposed(kind.generate(made))
    assert lost is not None
    # The process ends, and with it the private key; the next one knows nothing.
    again = rotation(secret, TestServices(bao), old_version=None)
    found = exposed(kind.generate(again))
    assert found is not None
    revoked = {
        name: bool(bao.admin.adapter.get(f"/v1/{mount}/cert/{serial}")["data"]["revocation_time"])
        for name, serial in {
            "theirs": theirs["serial_number"],
            "lost": lost["serial_number"],
            "new": found["serial_number"],
        }.items()
    }
    assert {"theirs": False, "lost": True, "new": False} == revoked
    # It never came into the claim either, and of the next one the answer is lost.
    sign, signed = Pki.sign, []

    def sign_in_vain(*arguments: Any, **settings: Any) -> None:
        signed.append(sign(*arguments, **settings).serial)
        raise ServiceUnavailableError("the answer is lost")

    monkeypatch.setattr(Pki, "sign", sign_in_vain)
    with pytest.raises(ServiceUnavailableError):
        kind.generate(again)
    kind.discard(again)
    for serial in (found["serial_number"], *signed):
        answer = bao.admin.adapter.get(f"/v1/{mount}/cert/{serial}")
        assert answer["data"]["revocation_time"]


@pytest.mark.server
def test_a_certificate_that_the_crl_does_not_name(
    bao: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the policy does not let the CRL be made anew, the rotation says that the old certificate is in none."""
    mount = f"pki-{os.urandom(4).hex()}"
    post = bao.admin.adapter.post
    bao.admin.sys.enable_secrets_engine("pki", path=mount)
    post(f"/v1/{mount}/root/generate/internal", json={"common_name": "root", "key_type": "ec"})
    post(f"/v1/{mount}/roles/desk", json={"allow_any_name": True, "key_type": "any"})
    post(f"/v1/{mount}/config/crl", json={"auto_rebuild": True, "enable_delta": False})
    secret = planned(
        "tls-certificate",
        path=f"secret/{mount}",
        pki_mount=mount,
        role="desk",
        common_name="feed.test",
        days=7,
    )
    rules = f'path "{mount}/*" {{ capabilities = ["create", "read", "update", "list"] }}\n'
    rules += 'path "secret/*" { capabilities = ["create", "read", "update", "patch"] }\n'
    narrow = f'path "{mount}/crl/rotate" {{ capabilities = ["deny"] }}\n'
    kind = make_kind("tls-certificate")
    for name, text in (("wide", rules), ("narrow", rules + narrow)):
        token = bao.make_token(bao.policy(f"{mount}-{name}", text))
        made = rotation(secret, TestServices(bao, token))
        begin(kind, made)
        assert kind.generate(made) is not None
        kind.discard(made)
        assert (name == "narrow") == ("the CRL does not name it yet" in caplog.text)
    assert f"read {mount}/crl/rotate" in caplog.text


# Tapes


@pytest.mark.server
def test_tape_of_others(bao: Server, tmp_path: Path) -> None:
    """A tape that somebody else can open too is not rewrapped without them."""
    import io

    from tapeseal.keyrings import keyring
    from tapeseal.keyrings.any_of import AnyOf
    from tapeseal.keyrings.vault_transit import VaultTransitKeyring

    mount = f"transit-{os.urandom(4).hex()}"
    bao.admin.sys.enable_secrets_engine("transit", path=mount)
    bao.admin.adapter.post(f"/v1/{mount}/keys/day", json={})
    create_key_file(tmp_path / "escrow.key")
    escrow = f"local:{tmp_path / 'escrow.key'}"
    both = AnyOf([VaultTransitKeyring(f"{mount}/day", bao.admin), keyring(escrow)])
    tape = tmp_path / "tapes" / "day.tape"
    tape.parent.mkdir()
    tapeseal.encrypt_file(io.BytesIO(b"trades"), tape, keyring=both)
    kind = make_kind("transit-key")
    options = {"key": f"{mount}/day", "tapes": [str(tape.parent)]}
    made = rotation(planned("transit-key", **options), TestServices(bao))
    begin(kind, made)
    kind.generate(made)
    with pytest.raises(RotationError, match=r"is wrapped for local:\w+ too"):
        kind.revoke(made)
    made.secret = planned("transit-key", **options, recipients=[escrow])
    kind.revoke(made)
    assert 1 == made.facts["rewrapped"]
    out = io.BytesIO()
    tapeseal.decrypt_file(tape, out, keyring=keyring(escrow))
    assert b"trades" == out.getvalue()
