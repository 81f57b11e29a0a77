"""Certificates of a real PKI engine: issued, renewed on disk as a set, revoked, and refused by TLS and openssl then."""

import contextlib
import datetime
import json
import math
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from memory_scan import Scanner, child
from servers.bao import Server, free_ports, wait_for
from servers.fault_proxy import FaultProxy
from support import child as run_child
from support import leaks
from tapeseal.cli import app
from tapeseal.errors import (
    AccessDeniedError,
    CertificateError,
    ServiceUnavailableError,
    SignatureError,
)
from tapeseal.secret import Secret
from tapeseal.vault import Token, VaultSession
from tapeseal.vault.authority import host_role, set_up_authority
from tapeseal.vault.certificate_directory import (
    CertificateDirectory,
    CertificateOrder,
    find_certificates,
)
from tapeseal.vault.pki import (
    Pki,
    check_chain,
    check_crl,
    make_request,
    missing_names,
    serial_text,
    write_crl,
)
from tapeseal.vault.private_keys import TLS_KEY_TYPES, load_tls_key, make_tls_key
from tapeseal.vault.reload import Reload

ROOT, MOUNT, ROLE = "desk/pki-root", "desk/pki", "feeds"
NAME = "a.feeds.example.com"
DOCS = Path(__file__).parents[1] / "docs" / "pki.md"

pytestmark = pytest.mark.server


def documented(title: str, mount: str = MOUNT) -> str:
    """Return a policy of docs/pki.md for another mount."""
    if not DOCS.exists():
        pytest.skip(f"{DOCS.name} is not beside these tests")
    found = re.search(rf"\*\*{title}\*\*.*?```hcl\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    return re.sub(r'(path "(?:sys/mounts/)?)pki\b', rf"\g<1>{mount}", found[1])


def token_of(server: Server, *titles: str, mount: str = MOUNT) -> str:
    """Return a token with policies of docs/pki.md and no other."""
    names = [
        server.policy(f"{mount.replace('/', '-')}-{title}", documented(title, mount))
        for title in titles
    ]
    return server.make_token(*names, no_default_policy=True)


@pytest.fixture(scope="module")
def server(bao: Server) -> Server:
    """A server with a root, an intermediate that it signed, and a role."""
    with VaultSession(bao.address, login=Token(bao.token)) as session:
        root = Pki(session, ROOT)
        set_up_authority(root, "Desk Root")
        roles = {ROLE: host_role(["feeds.example.com"])}
        set_up_authority(Pki(session, MOUNT), "Desk Trading", parent=root, roles=roles)
    return bao


@pytest.fixture
def issuer(server: Server) -> Iterator[VaultSession]:
    """A session under the policy of an issuer."""
    with VaultSession(server.address, login=Token(token_of(server, "issuer"))) as session:
        yield session


@pytest.fixture
def pki(server: Server) -> Iterator[Pki]:
    """The engine, with the root token."""
    with VaultSession(server.address, login=Token(server.token)) as session:
        yield Pki(session, MOUNT)


@pytest.fixture
def lossy(server: Server) -> Iterator[tuple[FaultProxy, Pki]]:
    """The engine behind a proxy."""
    with (
        FaultProxy(server.address) as proxy,
        VaultSession(proxy.address, login=Token(server.token), deadline=1) as session,
    ):
        yield proxy, Pki(session, MOUNT)


def order(**more: Any) -> CertificateOrder:
    """Return an order of the role."""
    return CertificateOrder(**{"role": ROLE, "common_name": NAME, "mount": MOUNT, **more})


def openssl(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run openssl; without it the test skips, in CI it fails."""
    if shutil.which("openssl") is None:
        assert not os.environ.get("CI"), "openssl is not installed"
        pytest.skip("openssl is not installed")
    return subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=30, check=False
    )


def verifies(directory: Path) -> bool:
    """Whether openssl takes a set for whole: chain, and a private key that is the certificate's."""
    chain = openssl("verify", "-CAfile", directory / "chain.pem", directory / "cert.pem")
    of_key = openssl("pkey", "-in", directory / "privkey.pem", "-pubout")
    of_certificate = openssl("x509", "-in", directory / "cert.pem", "-noout", "-pubkey")
    assert of_key.stdout.startswith("-----BEGIN PUBLIC KEY-----"), of_key.stderr
    return chain.returncode == 0 and of_key.stdout == of_certificate.stdout


def write(path: Path, *parts: x509.Certificate | Secret) -> Path:
    """Write certificates and keys to one file."""
    with path.open("wb") as file:
        for part in parts:
            if isinstance(part, Secret):
                with part.buffer as buffer, memoryview(buffer) as view:
                    file.write(view)
            else:
                file.write(part.public_bytes(Encoding.PEM))
    return path


# The authority


def test_set_up_again(pki: Pki, server: Server) -> None:
    """A set-up that is there is left alone; a role that differs is written."""
    root = Pki(pki.session, ROOT)
    assert [] == set_up_authority(root, "Desk Root")
    roles = {ROLE: host_role(["feeds.example.com"])}
    assert [] == set_up_authority(pki, "Desk Trading", parent=root, roles=roles)
    more = {"other": {"allow_any_name": True, "max_ttl": "2h", "key_type": "ec"}}
    done = set_up_authority(pki, "Desk Trading", parent=root, roles={**roles, **more})
    assert [f"wrote {MOUNT}/roles/other"] == done
    more["other"]["max_ttl"] = "3h"
    assert [f"wrote {MOUNT}/roles/other"] == set_up_authority(
        pki, "Desk Trading", parent=root, roles=more
    )
    assert [] == set_up_authority(pki, "Desk Trading", parent=root, roles=more)
    chain = pki.chain()
    assert ["CN=Desk Trading", "CN=Desk Root"] == [each.subject.rfc4514_string() for each in chain]
    urls = {"crl_distribution_points": ["http://crl.example/crl"]}
    assert [f"wrote {MOUNT}/config/urls"] == set_up_authority(
        pki, "Desk Trading", parent=root, urls=urls
    )
    assert [] == set_up_authority(pki, "Desk Trading", parent=root, urls=urls)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"common_name": "Somebody Else"}, "another one"),
        ({"common_name": "Desk Trading", "parent": None}, "another parent"),
    ],
)
def test_set_up_over_another(pki: Pki, arguments: Any, problem: str) -> None:
    """An authority is never taken for another one of the same name in the engine."""
    arguments = {"parent": Pki(pki.session, ROOT), **arguments}
    with pytest.raises(CertificateError, match=problem):
        set_up_authority(pki, **arguments)


def test_set_up_over_another_engine(pki: Pki) -> None:
    """What is no PKI engine is not touched."""
    with pytest.raises(CertificateError, match="of the type kv"):
        set_up_authority(Pki(pki.session, "secret"), "Desk Trading")


LOST = (
    "POST /v1/sys/mounts/",
    "POST .*/config/crl",
    "POST .*/root/generate/internal",
    "POST .*/keys/generate/internal",
    "POST .*/intermediate/generate/existing",
    "POST .*/root/sign-intermediate",
    "POST .*/intermediate/set-signed",
    "POST .*/issuer/",
    "POST .*/config/issuers",
    "POST .*/roles/",
)


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=[pytest.mark.slow] if n % 3 else []) for n in range(len(LOST))],
)
def test_set_up_goes_on(server: Server, lossy: tuple[FaultProxy, Pki], number: int) -> None:
    """Whichever answer is lost, the same call goes on, and nothing is made twice."""
    proxy, _ = lossy
    root = Pki(lossy[1].session, f"lost{number}/root")
    pki = Pki(root.session, f"lost{number}/pki")
    proxy.fault(LOST[number], reset="after", times=1)

    def set_up() -> list[str]:
        done = set_up_authority(root, "Lost Root")
        roles = {ROLE: host_role(["example.com"])}
        return done + set_up_authority(pki, "Lost Trading", parent=root, roles=roles)

    with contextlib.suppress(ServiceUnavailableError):
        set_up()
    set_up()
    assert [] == set_up()
    assert ["Lost Root", "Lost Trading"] == sorted(each.common_name for each in root.certificates())
    assert [1, 1] == [len(engine.names("keys")) for engine in (root, pki)]
    # An intermediate has the certificate of its root beside its own.
    assert [1, 2] == [len(engine.names("issuers")) for engine in (root, pki)]
    key, key_object = make_tls_key("ec-256")
    with key:
        assert pki.sign(ROLE, make_request(key_object, "x.example.com")).chain


def test_policy_of_an_authority(server: Server) -> None:
    """The documented policy is enough to set up a root and what it signs."""
    server.policy("authority-root", documented("authority", "own/root"))
    server.policy("authority-pki", documented("authority", "own/pki"))
    token = server.make_token("authority-root", "authority-pki", no_default_policy=True)
    with VaultSession(server.address, login=Token(token)) as session:
        root, pki = Pki(session, "own/root"), Pki(session, "own/pki")
        for _ in range(2):
            set_up_authority(root, "Own Root")
            roles = {"r": host_role(["example.com"])}
            done = set_up_authority(pki, "Own", parent=root, roles=roles)
        assert [] == done
        # Another one beside, which becomes the default.
        set_up_authority(pki, "Own", parent=root, issuer="next")
        assert pki.chain("next") == pki.chain() != pki.chain("ca")
        with pytest.raises(AccessDeniedError):
            Pki(session, MOUNT).names("keys")


def test_replacing_a_root(pki: Pki) -> None:
    """A new root beside the old one, and under it a new intermediate; the old set-up still holds."""
    root, under = Pki(pki.session, "next/root"), Pki(pki.session, "next/pki")
    set_up_authority(root, "Root 1", issuer="1")
    set_up_authority(under, "Trading 1", parent=root, issuer="1")
    set_up_authority(root, "Root 2", issuer="2")
    set_up_authority(under, "Trading 2", parent=root, issuer="2")
    assert ["CN=Trading 2", "CN=Root 2"] == [
        each.subject.rfc4514_string() for each in under.chain()
    ]
    assert [f"wrote {each.mount}/config/issuers" for each in (root, under)] == [
        *set_up_authority(root, "Root 1", issuer="1"),
        *set_up_authority(under, "Trading 1", parent=root, issuer="1"),
    ]


# Certificates


@pytest.mark.parametrize(
    "key_type",
    [
        pytest.param(each, marks=[pytest.mark.slow] if each in ("rsa-3072", "rsa-4096") else [])
        for each in TLS_KEY_TYPES
    ],
)
def test_made_keys(tmp_path: Path, key_type: str) -> None:
    """A private key that is made here is one to openssl, and to the parser."""
    pem, key = make_tls_key(key_type)
    with pem:
        path = write(tmp_path / "key.pem", pem)
        checked = openssl("pkey", "-in", path, "-check", "-noout", "-text")
        assert (0, True) == (checked.returncode, "Key is valid" in checked.stdout), checked.stderr
        assert f"{key_type.partition('-')[2]} bit" in checked.stdout
        assert key.public_key() == load_tls_key(pem).public_key()


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "-----" * 4]
)
def test_bad_keys(text: str) -> None:
    """What is no private key is refused, without showing it."""
    with Secret.take(bytearray(text.encode() or b" ")) as pem, pytest.raises(ValueError):
        load_tls_key(pem)


MADE_HERE = """
    from tapeseal.vault.pki import make_request
    from tapeseal.vault.private_keys import load_tls_key, make_tls_key
    pem, key = make_tls_key("ec-256")
    make_request(key, "a.example.com")
    load_tls_key(pem)
    del key
"""
MADE_BY_VAULT = """
    from tapeseal.vault import Token, VaultSession
    from tapeseal.vault.pki import Pki
    session = VaultSession(sys.argv[2], login=Token(sys.argv[3]))
    issued = Pki(session, "desk/pki").issue("feeds", "a.feeds.example.com", key_type="ec-256")
    pem = issued.private_key
"""
WRITTEN = """
    with pem.buffer as buffer, open(sys.argv[1], "xb", buffering=0) as file:
        file.write(buffer)
    stage("made")
    pem.close()
    gc.collect()
    stage("closed")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [
        pytest.param(MADE_HERE, id="here"),
        pytest.param(MADE_BY_VAULT, id="by Vault"),
    ],
)
def test_keys_leave_nothing_behind(tmp_path: Path, server: Server, program: str) -> None:
    """Once it is closed, no text or bytes of an elliptic-curve key are left in the process that had and wrote it.

    docs/pki.md says what may be: the number that `cryptography` parses it by, which has its last byte first.
    """
    path = tmp_path / "key.pem"
    with child(program + WRITTEN, path, server.address, server.token) as looked_at:
        looked_at.wait_for("made")
        text = openssl("pkey", "-in", path, "-noout", "-text").stdout
        digits = re.search(r"priv:\n([0-9a-f:\s]+)pub:", text)
        assert digits is not None
        key = bytes.fromhex(re.sub(r"[:\s]", "", digits[1]).zfill(64)[-64:])
        found = Scanner({"key": key})
        assert {("base64", True)} == {
            (hit.form, hit.protected) for hit in found.process(looked_at.pid)
        }
        looked_at.go_on_to("closed")
        assert set() == found.process(looked_at.pid)


def test_issue(tmp_path: Path, pki: Pki) -> None:
    """Vault's own key comes as a Secret, and fits a certificate that openssl verifies for all its names."""
    issued = pki.issue(
        ROLE,
        NAME,
        alt_names=["b.feeds.example.com"],
        ip_addresses=["127.0.0.1", "::1"],
        key_type="ec-256",
    )
    assert issued.private_key is not None
    assert "BEGIN" not in repr(issued)
    assert [] == issued.warnings
    days = issued.certificate.not_valid_after_utc - issued.certificate.not_valid_before_utc
    assert 365 == days.days
    with issued.private_key:
        write(tmp_path / "privkey.pem", issued.private_key)
    write(tmp_path / "cert.pem", issued.certificate)
    write(tmp_path / "chain.pem", *issued.chain)
    assert verifies(tmp_path)
    text = openssl("x509", "-in", tmp_path / "cert.pem", "-noout", "-text").stdout
    assert "DNS:a.feeds.example.com, DNS:b.feeds.example.com, IP Address:127.0.0.1" in text
    assert issued.serial == serial_text(pki.certificate(issued.serial).serial_number)


@pytest.mark.parametrize("key_type", ["ec-256", "ec-384", "rsa-2048"])
def test_sign(tmp_path: Path, issuer: VaultSession, key_type: str) -> None:
    """A key that stays here gets a certificate, under the policy of an issuer."""
    pem, key = make_tls_key(key_type)
    with pem:
        write(tmp_path / "privkey.pem", pem)
    signed = Pki(issuer, MOUNT).sign(ROLE, make_request(key, NAME, ip_addresses=["10.0.0.1"]))
    write(tmp_path / "cert.pem", signed.certificate)
    write(tmp_path / "chain.pem", *signed.chain)
    assert verifies(tmp_path)
    assert (None, []) == (signed.private_key, signed.warnings)


def test_cut_validity_is_told(pki: Pki) -> None:
    """A validity that the role cuts is a warning, of the server's and of ours."""
    pem, key = make_tls_key("ec-256")
    pem.close()
    signed = pki.sign(ROLE, make_request(key, NAME), days=1000)
    assert any("maxTTL is being used" in each for each in signed.warnings)
    assert any(each.endswith("not for 1000 days") for each in signed.warnings)


@pytest.mark.parametrize(
    ("role", "name", "problem"),
    [
        (ROLE, "a.elsewhere.com", "not allowed by this role"),
        ("nobody", NAME, "unknown role"),
    ],
)
def test_refusals(pki: Pki, role: str, name: str, problem: str) -> None:
    """What a role does not allow is a CertificateError with the server's reason."""
    pem, key = make_tls_key("ec-256")
    with pem, pytest.raises(CertificateError, match=problem) as caught:
        pki.sign(role, make_request(key, name))
    assert set() == leaks(caught.value, [str(pki.session._client.token)])
    with pytest.raises(CertificateError, match=problem):
        pki.issue(role, name, key_type="ec-256")


@pytest.mark.parametrize("days", [0, -1, math.inf, math.nan])
def test_validity_that_is_none(pki: Pki, days: float) -> None:
    """A time that is none is never asked for."""
    with pytest.raises(ValueError, match="positive number of days"):
        pki.issue(ROLE, NAME, days=days)


def test_least_policy(server: Server, issuer: VaultSession) -> None:
    """An issuer can neither have Vault make keys, nor use other roles, nor revoke."""
    pki = Pki(issuer, MOUNT)
    pem, key = make_tls_key("ec-256")
    pem.close()
    with pytest.raises(AccessDeniedError):
        pki.issue(ROLE, NAME, key_type="ec-256")
    with pytest.raises(AccessDeniedError):
        pki.sign("other", make_request(key, NAME))
    with pytest.raises(AccessDeniedError):
        pki.revoke(pki.sign(ROLE, make_request(key, NAME)).certificate)


def test_lost_answer_of_issue(lossy: tuple[FaultProxy, Pki]) -> None:
    """A certificate whose answer was lost is found by its name and its time, and revoked."""
    proxy, pki = lossy
    name = f"orphan-{os.urandom(4).hex()}.feeds.example.com"
    start = datetime.datetime.now(datetime.UTC)
    proxy.fault("/issue/", reset="after", times=1)
    with pytest.raises(ServiceUnavailableError):
        pki.issue(ROLE, name, key_type="ec-256")
    later = start + datetime.timedelta(hours=1)
    assert [] == pki.certificates(common_name=name, since=later)
    (orphan,) = pki.certificates(common_name=name, since=start)
    assert (False, [name]) == (orphan.revoked, orphan.names)
    pki.revoke(orphan.serial)
    assert [True] == [each.revoked for each in pki.certificates(common_name=name)]


def test_lost_answer_of_sign(lossy: tuple[FaultProxy, Pki]) -> None:
    """A certificate for a key of ours whose answer was lost is found by the key, and can be used."""
    proxy, pki = lossy
    pem, key = make_tls_key("ec-256")
    pem.close()
    request = make_request(key, NAME)
    assert pki.find(request) is None
    proxy.fault("/sign/", reset="after", times=1)
    with pytest.raises(ServiceUnavailableError):
        pki.sign(ROLE, request)
    found = pki.find(request)
    assert found is not None
    check_chain(found.certificate, found.chain, key=key, names=[NAME])
    pki.revoke(found.certificate)
    assert pki.find(request) is None


def test_list_without_details(lossy: tuple[FaultProxy, Pki]) -> None:
    """Where the server has no list with details, as HashiCorp's, the same comes from each certificate."""
    proxy, pki = lossy
    pem, key = make_tls_key("ec-256")
    pem.close()
    pki.revoke(pki.sign(ROLE, make_request(key, NAME)).certificate)
    expected = {each.serial: each for each in pki.certificates()}
    proxy.fault("/certs/detailed", status=405, body={"errors": ["unsupported operation"]})
    assert expected == {each.serial: each for each in pki.certificates()}


# What is checked before a certificate counts


def signed_for(pki: Pki, name: str = NAME, **more: Any) -> tuple[Any, Any]:
    """Return a key and its certificate."""
    pem, key = make_tls_key("ec-256")
    pem.close()
    return key, pki.sign(ROLE, make_request(key, name), **more)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"key": make_tls_key("ec-256")[1]}, "not for this private key"),
        ({"names": [NAME, "b.feeds.example.com"]}, "not for b.feeds.example.com"),
        ({"names": ["10.0.0.1"]}, "not for 10.0.0.1"),
        ({"at": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)}, "does not hold"),
        ({"at": datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC)}, "does not hold"),
        ({"chain": []}, "without a chain"),
        ({"trusted": "other"}, "does not hold"),
        ({"chain": "other"}, "does not hold"),
    ],
)
def test_check_chain(pki: Pki, change: dict[str, Any], problem: str) -> None:
    """Another key, name, time or root is refused, each with its reason."""
    key, signed = signed_for(pki)
    other = Pki(pki.session, "desk/other")
    set_up_authority(other, "Other Root")
    arguments = {"chain": signed.chain, "key": key, "names": [NAME]}
    check_chain(signed.certificate, **arguments)
    check_chain(signed.certificate, **arguments, trusted=signed.chain[-1:])
    foreign = {name: other.chain() for name, value in change.items() if value == "other"}
    with pytest.raises(CertificateError, match=problem):
        check_chain(signed.certificate, **{**arguments, **change, **foreign})


def test_names_where_clients_look(pki: Pki) -> None:
    """A DNS name that is the common name alone, which no client takes any more, counts as missing."""
    role = {**host_role(["feeds.example.com"]), "use_csr_sans": False}
    pki.write("roles/no-names", role, [])
    pem, key = make_tls_key("ec-256")
    pem.close()
    # Asked for beside the request, they are there.
    assert pki.sign("no-names", make_request(key, NAME)).chain
    fields = {"common_name": NAME, "exclude_cn_from_sans": True, "key_type": "ec"}
    answer = pki.request("POST", f"issue/{ROLE}", fields)
    bare = x509.load_pem_x509_certificate(answer["data"]["certificate"].encode())
    assert [NAME] == missing_names(bare, [NAME])


def test_certificates_of_either_use(pki: Pki) -> None:
    """A certificate for servers alone, or for clients alone, passes the check of its chain."""
    for flag in ("server_flag", "client_flag"):
        role = {**host_role(["feeds.example.com"]), flag: False}
        pki.write(f"roles/no-{flag.replace('_', '-')}", role, [])
        pem, key = make_tls_key("ec-256")
        pem.close()
        assert pki.sign(f"no-{flag.replace('_', '-')}", make_request(key, NAME)).chain


def test_a_forged_answer(lossy: tuple[FaultProxy, Pki]) -> None:
    """A certificate of another key in the answer is refused, and named so that it can be revoked."""
    proxy, pki = lossy
    _, other = signed_for(pki)
    text = other.certificate.public_bytes(Encoding.PEM).decode().strip()
    body = {
        "data": {
            "certificate": text,
            "ca_chain": [each.public_bytes(Encoding.PEM).decode() for each in other.chain],
        }
    }
    proxy.fault("/sign/", status=200, body=body)
    with pytest.raises(CertificateError, match=f"not for this private key.*{other.serial}"):
        signed_for(pki)


# Revocation


def test_crl(tmp_path: Path, pki: Pki) -> None:
    """A revoked certificate is in the CRL at once, and openssl refuses it; another one passes."""
    _, kept = signed_for(pki)
    _, lost = signed_for(pki)
    revocation = pki.revoke(lost.certificate)
    assert revocation.in_crl
    assert revocation == pki.revoke(lost.serial)
    crl = pki.crl()
    assert (True, False) == (lost.serial in crl.revoked, kept.serial in crl.revoked)
    write(tmp_path / "chain.pem", *kept.chain)
    write_crl(tmp_path / "crl.pem", crl)
    check = ("-crl_check", "-CRLfile", tmp_path / "crl.pem", "-CAfile", tmp_path / "chain.pem")
    for signed, code in ((kept, 0), (lost, 2)):
        write(tmp_path / "cert.pem", signed.certificate)
        done = openssl("verify", *check, tmp_path / "cert.pem")
        assert (code, code == 2) == (done.returncode, "certificate revoked" in done.stderr)


def test_revoker(server: Server, pki: Pki) -> None:
    """The documented policy is enough to list and to revoke, and for no more."""
    _, signed = signed_for(pki)
    with VaultSession(server.address, login=Token(token_of(server, "revoker"))) as session:
        revoker = Pki(session, MOUNT)
        (listed,) = [each for each in revoker.certificates() if each.serial == signed.serial]
        assert revoker.revoke(listed.serial).in_crl
        assert signed.serial in revoker.crl().revoked
        with pytest.raises(AccessDeniedError):
            signed_for(revoker)


def test_crl_that_is_not_rebuilt(server: Server, pki: Pki) -> None:
    """Where the token may not have the CRL built, revoke() says that it does not name the certificate yet."""
    rules = f'path "{MOUNT}/revoke" {{ capabilities = ["update"] }}'
    token = server.make_token(server.policy("only-revoke", rules), no_default_policy=True)
    _, signed = signed_for(pki)
    with VaultSession(server.address, login=Token(token)) as session:
        assert not Pki(session, MOUNT).revoke(signed.serial).in_crl
    assert pki.revoke(signed.serial).in_crl


def test_revoke_what_is_not_stored(pki: Pki) -> None:
    """A certificate of a role that stores none is revoked by itself."""
    pki.write("roles/unstored", {**host_role(["feeds.example.com"]), "no_store": True}, [])
    pem, key = make_tls_key("ec-256")
    pem.close()
    signed = pki.sign("unstored", make_request(key, NAME))
    with pytest.raises(CertificateError, match="not found"):
        pki.revoke(signed.serial)
    assert pki.revoke(signed.certificate).in_crl


def test_revoke_unknown(pki: Pki) -> None:
    """A serial number that the engine does not know is an error."""
    with pytest.raises(CertificateError, match="not found"):
        pki.revoke("00:11:22")
    with pytest.raises(CertificateError, match="nothing at"):
        pki.certificate("00:11:22")


def test_bad_crl(tmp_path: Path, pki: Pki) -> None:
    """A CRL of somebody else, a changed one, an old one, an outdated one and none at all are refused."""
    crl = pki.crl()
    issuer, root = pki.chain()
    with pytest.raises(SignatureError):
        check_crl(crl.pem, root)
    der = bytearray(x509.load_pem_x509_crl(crl.pem).public_bytes(Encoding.DER))
    der[-1] ^= 1
    changed = x509.load_der_x509_crl(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(SignatureError):
        check_crl(changed, issuer)
    with pytest.raises(CertificateError, match="out of date"):
        check_crl(crl.pem, issuer, at=crl.next_update)
    with pytest.raises(CertificateError, match="no CRL"):
        check_crl(b"-----BEGIN X509 CRL-----", issuer)
    _, signed = signed_for(pki)
    pki.revoke(signed.certificate)
    write_crl(tmp_path / "crl.pem", pki.crl())
    with pytest.raises(CertificateError, match="older"):
        write_crl(tmp_path / "crl.pem", crl)
    assert signed.serial in check_crl((tmp_path / "crl.pem").read_bytes(), issuer).revoked


class TlsServer(NamedTuple):
    """An `openssl s_server` that asks clients for a certificate."""

    port: int
    chain: Path

    def shakes_hands(self, client: Path) -> bool:
        """Whether a client with this certificate (and its key beside) is let in."""
        context = ssl.create_default_context(cafile=str(self.chain))
        context.load_cert_chain(client / "fullchain.pem", client / "privkey.pem")
        try:
            with (
                socket.create_connection(("127.0.0.1", self.port), 10) as plain,
                context.wrap_socket(plain, server_hostname=NAME) as connection,
            ):
                # In TLS 1.3 the client hears only with the first answer that the server refused it.
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.recv(1) != b""
        except (ssl.SSLError, ConnectionError):
            return False


@contextlib.contextmanager
def tls_server(directory: Path, crl: Path) -> Iterator[TlsServer]:
    """Run a server with a set's certificate that refuses what the CRL revokes."""
    openssl("version")
    port = free_ports(1)
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-quiet"]
    command += ["-cert", str(directory / "fullchain.pem"), "-key", str(directory / "privkey.pem")]
    command += ["-cert_chain", str(directory / "fullchain.pem")]
    command += ["-CAfile", str(directory / "chain.pem"), "-Verify", "3", "-verify_return_error"]
    command += ["-crl_check", "-CRL", str(crl)]

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_for("the TLS server", answers)
            yield TlsServer(port, directory / "chain.pem")
        finally:
            process.kill()


def test_a_tls_server_refuses_revoked_clients(tmp_path: Path, pki: Pki) -> None:
    """A TLS server with the CRL lets a client in until its certificate is revoked, and others still."""
    for name in ("server", "client", "other"):
        CertificateDirectory.create(tmp_path / name, order()).renew(pki.session)
    current = {name: tmp_path / name / "current" for name in ("server", "client", "other")}
    write_crl(tmp_path / "crl.pem", pki.crl())
    with tls_server(current["server"], tmp_path / "crl.pem") as server:
        assert [True, True] == [server.shakes_hands(current[each]) for each in ("client", "other")]
    pki.revoke(x509.load_pem_x509_certificate((current["client"] / "cert.pem").read_bytes()))
    write_crl(tmp_path / "crl.pem", pki.crl())
    with tls_server(current["server"], tmp_path / "crl.pem") as server:
        assert [False, True] == [server.shakes_hands(current[each]) for each in ("client", "other")]


# On disk


@pytest.fixture
def directory(tmp_path: Path, issuer: VaultSession) -> CertificateDirectory:
    """A directory with its first certificate."""
    made = CertificateDirectory.create(tmp_path / "tls", order())
    made.renew(issuer)
    return made


def set_of(directory: CertificateDirectory) -> Path:
    """Return the directory of the set in use."""
    found = directory.files.current()
    assert found is not None
    return found


def test_first_and_next(tmp_path: Path, issuer: VaultSession) -> None:
    """The first certificate comes at once, the next only when it is due or forced; two sets stay."""
    made = CertificateDirectory.create(tmp_path / "tls", order(alt_names=("b.feeds.example.com",)))
    assert made.due()
    first = made.renew(issuer)
    assert ("renewed", None, []) == (first.state, first.previous_serial, first.warnings)
    assert verifies(set_of(made))
    assert {
        "privkey.pem": 0o600,
        "cert.pem": 0o644,
        "chain.pem": 0o644,
        "fullchain.pem": 0o644,
    } == {path.name: stat.S_IMODE(path.stat().st_mode) for path in set_of(made).iterdir()}
    again = made.renew(issuer)
    assert ("current", first.serial, None) == (again.state, again.serial, again.previous_serial)
    sets = [set_of(made)]
    for _ in range(3):
        forced = made.renew(issuer, force=True)
        assert ("renewed", True) == (forced.state, verifies(set_of(made)))
        sets.append(set_of(made))
    assert sorted(sets[-2:]) == sorted(
        path for path in made.path.iterdir() if path.name[0] == "2" and not path.is_symlink()
    )
    assert sets[-2] == made.files.previous()
    sent = x509.load_pem_x509_certificates((set_of(made) / "fullchain.pem").read_bytes())
    assert ["CN=Desk Trading"] == [each.subject.rfc4514_string() for each in sent[1:]]


@pytest.mark.parametrize(
    ("days", "left", "due"),
    [(365, 31, False), (365, 29.9, True), (365, -1, True), (9, 3.1, False), (9, 2.9, True)],
)
def test_due(tmp_path: Path, issuer: VaultSession, days: float, left: float, due: bool) -> None:
    """It is due 30 days before its end, or when a third of a short life is left."""
    made = CertificateDirectory.create(tmp_path / "tls", order(days=days))
    renewal = made.renew(issuer)
    assert due == made.due(renewal.not_after - datetime.timedelta(days=left))


@pytest.mark.parametrize(
    "change", [{"alt_names": ("c.feeds.example.com",)}, {"key_type": "ec-384"}]
)
def test_due_by_another_order(
    directory: CertificateDirectory, change: Any, issuer: VaultSession
) -> None:
    """An order with another name or type of key makes the certificate due."""
    changed = CertificateDirectory.create(directory.path, order(**change))
    assert (False, True) == (directory.due(), changed.due())
    assert "renewed" == changed.renew(issuer).state
    assert (False, True) == (changed.due(), verifies(set_of(changed)))


def test_cut_renewals_are_told(tmp_path: Path, issuer: VaultSession) -> None:
    """A validity that the role cuts is told, and the renewal goes by what it truly is."""
    made = CertificateDirectory.create(tmp_path / "tls", order(days=1000))
    renewal = made.renew(issuer)
    assert any("not for 1000 days" in each for each in renewal.warnings)
    assert not made.due()


@pytest.mark.parametrize("mode", [0o640, 0o644])
def test_access_is_kept(directory: CertificateDirectory, issuer: VaultSession, mode: int) -> None:
    """New files have owner and mode of the old ones, except that no key becomes readable by all."""
    key, certificate = (set_of(directory) / name for name in ("privkey.pem", "cert.pem"))
    key.chmod(mode)
    certificate.chmod(0o400)
    set_of(directory).chmod(0o750)
    owner = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(key, *owner)
    directory.renew(issuer, force=True)
    status = (set_of(directory) / "privkey.pem").stat()
    assert (*owner, 0o640) == (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    assert 0o400 == stat.S_IMODE((set_of(directory) / "cert.pem").stat().st_mode)
    assert 0o750 == stat.S_IMODE(set_of(directory).stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_access_that_cannot_be_kept(server: Server) -> None:
    """Where a file belongs to somebody else, and this user cannot give him one, the old set stays."""
    code = """
        import os, sys
        from pathlib import Path
        from tapeseal.vault import Token, VaultSession
        from tapeseal.vault.certificate_directory import CertificateDirectory, CertificateOrder
        address, token, path = sys.argv[1:4]
        order = CertificateOrder("feeds", "a.feeds.example.com", mount="desk/pki")
        with VaultSession(address, login=Token(token)) as session:
            # Loads what a renewal needs: who is root no more may not be able to.
            CertificateDirectory.create(path + "/root", order).renew(session)
            path += "/other"
            os.mkdir(path)
            os.chown(path, 65534, 65534)
            os.setegid(65534), os.seteuid(65534)
            made = CertificateDirectory.create(path, order)
            made.renew(session)
            before = made.files.current()
            os.seteuid(0)
            os.chown(before / "privkey.pem", 0, 0)
            os.seteuid(65534)
            try:
                made.renew(session, force=True)
            except PermissionError as error:
                print(error)
            print(made.files.current() == before)
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        done = run_child(code, server.address, token_of(server, "issuer"), name)
    assert (0, "") == (done.returncode, done.stderr)
    assert re.search(r"belongs to uid 0, gid 0.*privkey.pem'\nTrue\n$", done.stdout), done.stdout


def test_other_things_are_left_alone(directory: CertificateDirectory, issuer: VaultSession) -> None:
    """Renewals delete sets of their own, and nothing else that stands in the directory."""
    (directory.path / "notes").mkdir()
    (directory.path / "notes" / "file").write_text("kept")
    (directory.path / "dhparam.pem").write_text("kept")
    for _ in range(3):
        directory.renew(issuer, force=True)
    assert "kept" == (directory.path / "notes" / "file").read_text()
    assert "kept" == (directory.path / "dhparam.pem").read_text()


@pytest.mark.parametrize("kind", ["directory", "file", "symlink"])
def test_a_foreign_current(tmp_path: Path, issuer: VaultSession, kind: str) -> None:
    """Where something else has the name of the link, nothing is replaced."""
    made = CertificateDirectory.create(tmp_path / "tls", order())
    current = made.path / "current"
    if kind == "directory":
        current.mkdir()
    elif kind == "file":
        current.write_text("mine")
    else:
        current.symlink_to("/etc")
    with pytest.raises(FileExistsError):
        made.renew(issuer)
    assert {"certificate.json", "current"} == {path.name for path in made.path.iterdir()}


def test_readers_see_one_set(directory: CertificateDirectory, issuer: VaultSession) -> None:
    """A reader that resolves the link once never has a key that does not fit its certificate."""
    stop, reads, misfits = threading.Event(), [0], []

    def read() -> None:
        while not stop.is_set():
            files = Path(os.path.realpath(directory.path / "current"))
            with Secret.take(bytearray((files / "privkey.pem").read_bytes())) as pem:
                key = load_tls_key(pem).public_key()
            chain = x509.load_pem_x509_certificates((files / "fullchain.pem").read_bytes())
            if key != chain[0].public_key():
                misfits.append(files)
            reads[0] += 1

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(8):
            directory.renew(issuer, force=True)
    finally:
        stop.set()
        thread.join()
    assert [] == misfits
    assert reads[0] > 8


def test_roll_back(directory: CertificateDirectory, issuer: VaultSession) -> None:
    """The set before can be made the current one again, and the next renewal goes on from there."""
    first = set_of(directory)
    directory.renew(issuer, force=True)
    directory.roll_back()
    assert (first, True) == (set_of(directory), verifies(set_of(directory)))
    directory.renew(issuer, force=True)
    assert first == directory.files.previous()
    with pytest.raises(FileNotFoundError, match="no previous"):
        CertificateDirectory.create(directory.path.parent / "new", order()).roll_back()


def test_one_run_at_a_time(directory: CertificateDirectory, issuer: VaultSession) -> None:
    """A second run beside the first is refused, and changes nothing."""
    before = set_of(directory)
    with directory.files.lock(), pytest.raises(BlockingIOError, match="another run"):
        directory.renew(issuer, force=True)
    assert before == set_of(directory)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "body": {"errors": ["Vault is sealed"]}},
        {"reset": "before"},
        {"truncate": 40},
    ],
)
def test_an_outage_leaves_the_old_set(
    tmp_path: Path, lossy: tuple[FaultProxy, Pki], fault: Any
) -> None:
    """While Vault is away the old set stays; the next run finishes, with the same key."""
    proxy, pki = lossy
    made = CertificateDirectory.create(tmp_path / "tls", order())
    made.renew(pki.session)
    before, log = set_of(made), (set_of(made) / "privkey.pem").read_text()
    proxy.fault("/sign/", **fault)
    with pytest.raises(ServiceUnavailableError) as caught:
        made.renew(pki.session, force=True)
    assert (before, True) == (set_of(made), verifies(before))
    pending = made.files.pending()
    assert pending is not None
    key = (pending / "privkey.pem").read_text()
    lines = [line for text in (key, log) for line in text.splitlines()[1:-1]]
    assert set() == leaks(caught.value, lines)
    proxy.clear()
    assert "renewed" == made.renew(pki.session).state
    assert key == (set_of(made) / "privkey.pem").read_text()


def test_a_root_of_ones_own(tmp_path: Path, pki: Pki, issuer: VaultSession) -> None:
    """With a file of roots a chain that leads elsewhere never replaces anything."""
    other = Pki(pki.session, "desk/other")
    set_up_authority(other, "Other Root")
    write(tmp_path / "wrong.pem", *other.chain())
    write(tmp_path / "right.pem", pki.chain()[-1])
    made = CertificateDirectory.create(tmp_path / "tls", order(ca_file=str(tmp_path / "right.pem")))
    first = made.renew(issuer).serial
    made = CertificateDirectory.create(tmp_path / "tls", order(ca_file=str(tmp_path / "wrong.pem")))
    for _ in range(2):
        with pytest.raises(CertificateError, match="does not hold"):
            made.renew(issuer, force=True)
    assert first == serial_text(
        x509.load_pem_x509_certificate((set_of(made) / "cert.pem").read_bytes()).serial_number
    )
    # Mended, it goes on with the same certificate: none more was signed.
    made = CertificateDirectory.create(tmp_path / "tls", order(ca_file=str(tmp_path / "right.pem")))
    assert "renewed" == made.renew(issuer).state


def test_pending_of_another_issuer(tmp_path: Path, pki: Pki) -> None:
    """Where it was Vault that had the wrong issuer, mending that is enough: what it had signed is given up."""
    session, mount = pki.session, f"desk/mended-{os.urandom(4).hex()}"
    roles = {ROLE: host_role(["feeds.example.com"])}
    set_up_authority(Pki(session, mount), "Wrong Root", roles=roles)
    write(tmp_path / "right.pem", pki.chain()[-1])
    asked = order(mount=mount, ca_file=str(tmp_path / "right.pem"))
    made = CertificateDirectory.create(tmp_path / "tls", asked)
    for _ in range(2):
        with pytest.raises(CertificateError, match="does not hold"):
            made.renew(session)
    assert 1 == len(Pki(session, mount).certificates(common_name=NAME))
    session.request("DELETE", f"sys/mounts/{mount}")
    root = Pki(session, ROOT)
    set_up_authority(Pki(session, mount), "Right Issuer", parent=root, roles=roles)
    session.deadline = 2  # The server fails to revoke what its issuers have not signed.
    assert "renewed" == made.renew(session).state
    assert verifies(set_of(made))


def test_pending_for_another_order(tmp_path: Path, lossy: tuple[FaultProxy, Pki]) -> None:
    """A certificate that was signed for an order as it was before is revoked, and never used."""
    proxy, pki = lossy
    name = f"n-{os.urandom(4).hex()}.feeds.example.com"
    made = CertificateDirectory.create(tmp_path / "tls", order(common_name=name))
    proxy.fault("/sign/", reset="after", times=1)
    with pytest.raises(ServiceUnavailableError):
        made.renew(pki.session)
    more = order(common_name=name, alt_names=("d.feeds.example.com",))
    made = CertificateDirectory.create(tmp_path / "tls", more)
    assert "renewed" == made.renew(pki.session).state
    assert [False, True] == sorted(each.revoked for each in pki.certificates(common_name=name))
    assert verifies(set_of(made))


# The hook


def test_hook(tmp_path: Path, issuer: VaultSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook runs once for each new set, when that is in place, and sees no token."""
    log = tmp_path / "log"
    tls = tmp_path / "tls"
    script = f'readlink {tls}/current >> {log}; env >> {log}; test -z "$VAULT_TOKEN$BAO_TOKEN"'
    monkeypatch.setenv("VAULT_TOKEN", "canary-1")
    monkeypatch.setenv("BAO_TOKEN", "canary-2")
    made = CertificateDirectory.create(tls, order(reload=Reload(["sh", "-c", script])))
    for force in (False, False, True):
        made.renew(issuer, force=force)
    names = [
        line for line in log.read_text().splitlines() if re.fullmatch(r"\d{8}T\d{6}Z-\w{4}", line)
    ]
    assert [each.name for each in (made.files.previous(), set_of(made)) if each] == names
    assert "canary" not in log.read_text()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["false"], "failed with 1"),
        (["/nonexistent"], "did not start"),
        (["sleep", "60"], "was not done within 0.2 s"),
    ],
)
def test_a_hook_that_fails(
    tmp_path: Path, issuer: VaultSession, command: list[str], problem: str
) -> None:
    """A hook that fails is an error, the new set stays, and the next run tries the hook again."""
    hook = Reload(command, seconds=0.2)
    made = CertificateDirectory.create(tmp_path / "tls", order(reload=hook))
    for _ in range(2):
        with pytest.raises(CertificateError, match=f"in place, but {command[0]} {problem}"):
            made.renew(issuer)
        serial = serial_text(made.certificate().serial_number)
    mended = CertificateDirectory.create(tmp_path / "tls", order(reload=Reload(["true"])))
    done = [mended.renew(issuer) for _ in range(2)]
    assert [("reloaded", serial), ("current", serial)] == [
        (each.state, each.serial) for each in done
    ]


def test_signal(tmp_path: Path, directory: CertificateDirectory, issuer: VaultSession) -> None:
    """The process in a pid file gets its signal; a file that others can write, or no process, is an error."""
    got = tmp_path / "got"
    program = [
        "sh",
        "-c",
        f"trap 'touch {got}; exit' USR1; touch {tmp_path}/ready; while :; do sleep 0.02; done",
    ]
    pid_file = tmp_path / "pid"
    hook = Reload(pid_file=str(pid_file), signal="USR1")
    made = CertificateDirectory.create(directory.path, order(reload=hook))
    with subprocess.Popen(program) as process:
        try:
            wait_for("the program", (tmp_path / "ready").exists)
            pid_file.write_text(f"{process.pid}\n")
            pid_file.chmod(0o666)
            with pytest.raises(CertificateError, match="others can change it"):
                made.renew(issuer)
            assert not got.exists()
            pid_file.chmod(0o644)
            assert "reloaded" == made.renew(issuer).state
            wait_for("the signal", got.exists)
        finally:
            process.kill()
    for text in ("", "1", "-5", "word"):
        pid_file.write_text(text)
        with pytest.raises(CertificateError, match="holds no process id"):
            made.renew(issuer, force=True)
    pid_file.unlink()
    with pytest.raises(CertificateError, match="No such file"):
        made.renew(issuer)


@pytest.mark.parametrize("what", ["order", "directory"])
def test_an_order_that_others_can_write(directory: CertificateDirectory, what: str) -> None:
    """Who can write the order could have anything run: it is refused."""
    path = directory.path / "certificate.json" if what == "order" else directory.path
    path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(PermissionError, match="others can change it"):
        CertificateDirectory(directory.path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"role": "a"}',
        '{"role": "a", "common_name": "b", "colour": "red"}',
        '{"role": "a", "common_name": "b", "days": "365"}',
        '{"role": "a", "common_name": "b", "days": -1}',
        '{"role": "a", "common_name": "b", "days": NaN}',
        '{"role": "a", "common_name": "b", "days": 1e300}',
        '{"role": "a", "common_name": "b", "renew_before_days": -5}',
        '{"role": "a", "common_name": "b", "renew_before_days": NaN}',
        '{"role": "a", "common_name": "b", "alt_names": "c"}',
        '{"role": "a", "common_name": "b", "key_type": "dsa-1024"}',
        '{"role": "a", "common_name": "b", "reload": "touch x"}',
        '{"role": "a", "common_name": "b", "reload": {}}',
        '{"role": "a", "common_name": "b", "reload": {"command": "touch x"}}',
        '{"role": "a", "common_name": "b", "reload": {"command": [1]}}',
        '{"role": "a", "common_name": "b", "reload": {"command": ["y"], "seconds": "60"}}',
        '{"role": "a", "common_name": "b", "reload": {"command": ["y"], "seconds": -1}}',
        '{"role": "a", "common_name": "b", "reload": {"pid_file": "x", "signal": "KILL"}}',
        '{"role": "a", "common_name": "b", "reload": {"pid_file": "x", "command": ["y"]}}',
    ],
)
def test_bad_orders(tmp_path: Path, text: str) -> None:
    """A file that is no order is refused, with its name."""
    (tmp_path / "certificate.json").write_text(text)
    with pytest.raises(ValueError, match=r"certificate\.json: this is no order"):
        CertificateDirectory(tmp_path)


def test_orders_last(tmp_path: Path) -> None:
    """An order is read as it was written."""
    wanted = order(alt_names=("b.example",), ip_addresses=("::1",), reload=Reload(("a", "b")))
    assert wanted == CertificateDirectory.create(tmp_path / "x" / "y", wanted).order
    assert [str(tmp_path / "x" / "y")] == find_certificates(tmp_path, print)


# Killed

RENEW = """
    import json, os, signal, subprocess, sys
    from pathlib import Path
    from tapeseal.vault import Token, VaultSession, session
    from tapeseal.vault.certificate_directory import CertificateDirectory

    address, token, path, log = sys.argv[1:5]
    CALLS = ("open", "write", "fsync", "rename", "symlink", "mkdir", "unlink", "chmod", "chown", "rmdir")

    def run(number):
        # A kill before each call that changes something, before and after each request, and around the hook.
        left = [number]

        def count():
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(function):
            def call(*arguments, **more):
                count()
                return function(*arguments, **more)
            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        request = VaultSession.request

        def requested(*arguments, **more):
            count()
            answer = request(*arguments, **more)
            count()
            return answer

        VaultSession.request = requested
        subprocess.Popen.wait = counted(subprocess.Popen.wait)
        with VaultSession(address, login=Token(token)) as vault:
            CertificateDirectory(path).renew(vault, force=number > 0)
        count()

    def forked(number):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                run(number)
                code = 0
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def state():
        current = os.path.realpath(Path(path, "current"))
        return [current, *(Path(current, name).read_text() for name in ("privkey.pem", "cert.pem", "fullchain.pem"))]

    for number in range(1, 10_000):
        code = forked(number)
        with open(log, "a") as file:
            print(json.dumps({"code": code, "killed": state(), "hook": Path(path, "../hook").read_text()}), file=file)
        if not code:
            break
        code = forked(-1)
        with open(log, "a") as file:
            print(json.dumps({"code": code, "after": state(), "hook": Path(path, "../hook").read_text()}), file=file)
"""


def fits(state: list[str]) -> bool:
    """Whether key, certificate and chain are one set."""
    _, key, certificate, chain = state
    with Secret.take(bytearray(key.encode())) as pem:
        of_key = load_tls_key(pem).public_key()
    own = x509.load_pem_x509_certificate(certificate.encode())
    return of_key == own.public_key() and chain.startswith(certificate)


@pytest.mark.slow
def test_killed_at_every_step(tmp_path: Path, server: Server, pki: Pki) -> None:
    """kill -9 at any point leaves the old set or the new one, whole; the next run finishes, and none is left unlisted.

    After a run that was killed and the one that goes on, the hook has been told of the current set, and each
    certificate that Vault signed was in place once.
    """
    name = f"kill-{os.urandom(4).hex()}.feeds.example.com"
    hook = Reload(["sh", "-c", f"readlink {tmp_path}/tls/current > {tmp_path}/hook"])
    made = CertificateDirectory.create(tmp_path / "tls", order(common_name=name, reload=hook))
    made.renew(pki.session)
    token = token_of(server, "issuer")
    done = run_child(RENEW, server.address, token, made.path, tmp_path / "log")
    assert (0, "") == (done.returncode, done.stderr)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    runs, last = lines[:-1], lines[-1]
    assert (0, True) == (last["code"], len(runs) > 60)
    assert {-9} == {each["code"] for each in runs[::2]}
    assert {0} == {each["code"] for each in runs[1::2]}
    states = [each.get("killed") or each["after"] for each in lines]
    assert [True] * len(lines) == [fits(each) for each in states]
    for killed, after in zip(runs[::2], runs[1::2], strict=True):
        assert after["hook"].strip() == Path(after["after"][0]).name, killed
    used = {serial_text(made.certificate().serial_number)} | {
        serial_text(x509.load_pem_x509_certificate(each[2].encode()).serial_number)
        for each in states
    }
    first = pki.certificates(common_name=name)[-1].serial
    assert used | {first} == {each.serial for each in pki.certificates(common_name=name)}
    assert 2 == len(
        [path for path in made.path.iterdir() if path.is_dir() and not path.is_symlink()]
    )


# The command line


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server
) -> Callable[..., tuple[int, list[str], str]]:
    """Run a command of `tapeseal vault pki` with the root token; return its code, lines and errors."""
    monkeypatch.setenv("VAULT_ADDR", server.address)
    monkeypatch.setenv("VAULT_TOKEN", server.token)

    def run(*arguments: object) -> tuple[int, list[str], str]:
        code = app.run(["vault", "pki", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return run


def test_commands(tmp_path: Path, run: Any) -> None:
    """An authority is set up, certificates come, are listed, renewed when due, revoked, and are in the CRL."""
    mount = "desk/cli"
    root = ["setup", "CLI Root", "--mount", f"{mount}-root", "--json"]
    assert 0 == run(*root)[0]
    setup = [
        "setup",
        "CLI",
        "--mount",
        mount,
        "--parent",
        f"{mount}-root",
        "--hosts",
        "web=example.com",
    ]
    (tmp_path / "roles.toml").write_text(
        '[other]\nallow_any_name = true\nmax_ttl = "30d"\nkey_type = "ec"\n'
    )
    code, lines, errors = run(
        *setup, "--roles", tmp_path / "roles.toml", "--crl-url", "http://crl.example/"
    )
    assert (0, "") == (code, errors)
    assert f"wrote {mount}/roles/other" in lines
    assert (0, [json.dumps({"mount": mount, "done": []})], "") == run(
        *setup, "--roles", tmp_path / "roles.toml", "--crl-url", "http://crl.example/", "--json"
    )
    code, _, errors = run(*setup[:1], "Other", *setup[2:])
    assert (3, True) == (code, "is another one, CN=CLI: under another name" in errors)
    code, _, errors = run("revoke", tmp_path / "none.pem", "--mount", mount)
    assert (2, True) == (code, "none.pem is neither a file nor a serial number" in errors)
    issue = [
        "issue",
        tmp_path / "all" / "web",
        "--role",
        "web",
        "--name",
        "w.example.com",
        "--mount",
        mount,
    ]
    issue += ["--reload", f"touch '{tmp_path}/reloaded'", "--ip", "127.0.0.1", "--json"]
    code, lines, errors = run(*issue)
    first = json.loads(lines[0])
    assert (0, "renewed", "", True) == (
        code,
        first["state"],
        errors,
        (tmp_path / "reloaded").exists(),
    )
    assert verifies(tmp_path / "all" / "web" / "current")
    code, lines, errors = run(
        "issue", tmp_path / "all" / "other", "--role", "other", "--name", "o", "--mount", mount
    )
    assert (0, 1) == (code, len(lines))
    assert "valid for 30 days, 0:00:30, not for 365 days" in errors
    code, lines, _ = run("renew", "--due", tmp_path / "all", "--json")
    assert (0, ["current", "current"]) == (code, [json.loads(line)["state"] for line in lines])
    code, lines, _ = run("renew", tmp_path / "all" / "web", "--json")
    second = json.loads(lines[0])
    assert ("renewed", first["serial"]) == (second["state"], second["previous_serial"])
    code, lines, _ = run("list", "--mount", mount, "--name", "w.example.com", "--json")
    assert [second["serial"], first["serial"]] == sorted(
        (json.loads(line)["serial"] for line in lines),
        key=[second["serial"], first["serial"]].index,
    )
    code, lines, _ = run(
        "revoke", "--mount", mount, tmp_path / "all/web/previous/cert.pem", "--json"
    )
    revoked = json.loads(lines[0])
    assert (0, first["serial"], True) == (code, revoked["serial"], revoked["in_crl"])
    code, lines, _ = run("crl", "--mount", mount, "--out", tmp_path / "crl.pem", "--json")
    assert (0, [first["serial"]]) == (code, list(json.loads(lines[0])["revoked"]))
    assert b"BEGIN X509 CRL" in (tmp_path / "crl.pem").read_bytes()
    for command in (("list",), ("crl",), ("revoke", second["serial"].replace(":", "").upper())):
        code, lines, errors = run(*command, "--mount", mount)
        assert (0, "", True) == (code, errors, bool(lines)), command


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["renew", "{}"], 2, "certificate.json"),
        (["renew", "--due", "{}"], 2, "no certificate at or below"),
        (["renew", "--due", "{}/none"], 2, "No such file"),
        (
            ["issue", "{}/x", "--role", ROLE, "--name", "x.elsewhere.com", "--mount", MOUNT],
            3,
            "not allowed",
        ),
        (
            ["issue", "{}/x", "--role", ROLE, "--name", NAME, "--key-type", "dsa"],
            2,
            "no type of key",
        ),
        (
            ["issue", "{}/x", "--role", ROLE, "--name", NAME, "--reload", "a", "--pid-file", "b"],
            2,
            "either",
        ),
        (["revoke", "00:11", "--mount", MOUNT], 3, "not found"),
        (["revoke", "no/cert.pem", "--mount", MOUNT], 2, "no/cert.pem is neither a file nor"),
        (["setup", "X", "--hosts", "web"], 2, "not ROLE=NAME"),
        (["setup", "X", "--roles", "{}/none"], 2, "No such file"),
        (["crl", "--mount", "desk/none"], 3, "nothing at"),
    ],
)
def test_command_errors(
    tmp_path: Path, run: Any, arguments: list[str], code: int, problem: str
) -> None:
    """What fails says why, with the exit codes of the command line."""
    found, _, errors = run(*(each.format(tmp_path) for each in arguments))
    assert (code, True) == (found, problem in errors), errors


def test_due_goes_on_past_failures(tmp_path: Path, run: Any, issuer: VaultSession) -> None:
    """`renew --due` renews what it can, and its exit code tells that something failed."""
    CertificateDirectory.create(tmp_path / "a", order(role="nobody"))
    CertificateDirectory.create(tmp_path / "b" / "c", order())
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "certificate.json").write_text("{}")
    code, lines, errors = run("renew", "--due", tmp_path, "--json")
    reports = [json.loads(line) for line in lines]
    assert 3 == code
    assert ["renewed"] == [each["state"] for each in reports if "state" in each]
    assert {str(tmp_path / "a"), str(tmp_path / "d")} == {
        each["file"] for each in reports if "error" in each
    }
    assert ("unknown role" in errors, "no order" in errors) == (True, True)
