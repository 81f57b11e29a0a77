"""`tapeseal doctor`: what is wrong with a real set-up is found, the fix it names mends it, and a sound one passes."""

import contextlib
import json
import os
import re
import shlex
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import rotation_world as world
import tapeseal
from servers.bao import ROOT_TOKEN, Server, SingleServer, dev_server, program, tls_server
from servers.kms import REGION, KmsServer, make_clients_once
from support import start_child
from tapeseal import break_glass
from tapeseal.audit_log.anchors import append_to
from tapeseal.audit_log.log import AuditLog, create_log
from tapeseal.cli import app
from tapeseal.doctor import Finding, Report, SetUp, checks, examine, machine, policies
from tapeseal.keyrings import local, public_key
from tapeseal.keyrings.any_of import AnyOf
from tapeseal.keyrings.local import LocalKeyring, create_key_file
from tapeseal.keyrings.public_key import PublicKeyKeyring, create_key_pair
from tapeseal.rotation.journal import Journal, Known, Record
from tapeseal.secret import Secret

ROOT = Path(__file__).parents[1]
NOW = datetime.now(UTC)

world.register()


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own: no variables of Vault, AWS and the audit log, and an empty home."""
    for name in list(os.environ):
        if name.startswith(("VAULT_", "BAO_", "AWS_", "TAPESEAL_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


def found(check: str, set_up: SetUp | None = None, subject: str | None = None) -> list[Finding]:
    """Return what a check finds, about a subject or at all; it must have been made."""
    report = examine(set_up or SetUp(), only=[check])
    assert [check] == report.looked_at, report
    return [each for each in report.findings if subject in (None, each.subject)]


def one(check: str, set_up: SetUp | None = None, subject: str | None = None) -> Finding:
    """Return the only finding of a check about a subject."""
    (finding,) = found(check, set_up, subject)
    assert check == finding.check
    return finding


# Vault


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an engine of each kind."""
    home = tmp_path_factory.mktemp("doctor-bao")
    config = f'audit "file" "main" {{\n  options {{\n    file_path = "{home}/audit.log"\n  }}\n}}\n'
    with dev_server(home, config) as server:
        (home / "bin").mkdir()
        for name in ("vault", "bao"):
            (home / "bin" / name).symlink_to(program())
        for engine in ("transit", "database", "pki"):
            server.admin.sys.enable_secrets_engine(engine)
        server.admin.sys.enable_auth_method("approle")
        yield server


@pytest.fixture
def as_root(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The environment of the administrator of `server`."""
    monkeypatch.setenv("BAO_ADDR", server.address)
    monkeypatch.setenv("BAO_TOKEN", server.token)
    monkeypatch.setenv("PATH", f"{server.directory / 'bin'}:{os.environ['PATH']}")
    return server


def run(command: str) -> str:
    """Run a fix as a shell does."""
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout


def write(server: Server, path: str, **body: Any) -> Any:
    """Write to a path as the administrator."""
    return server.admin.adapter.post(f"/v1/{path}", json=body)


def key(name: str, **config: Any) -> Callable[[Server], object]:
    """Return what makes a Transit key."""

    def make(server: Server) -> None:
        write(server, f"transit/keys/{name}", auto_rotate_period="2160h")
        if config:
            write(server, f"transit/keys/{name}/config", **config)

    return make


def role(name: str, **config: Any) -> Callable[[Server], object]:
    """Return what makes an AppRole."""
    return lambda server: write(server, f"auth/approle/role/{name}", **config)


def database_role(name: str, **config: Any) -> Callable[[Server], object]:
    """Return what makes a database role."""
    statements = ["CREATE ROLE x"]
    return lambda server: write(
        server, f"database/roles/{name}", db_name="db", creation_statements=statements, **config
    )


def mount(kind: str, path: str, **options: Any) -> Callable[[Server], object]:
    """Return what mounts a secrets engine."""
    return lambda server: server.admin.sys.enable_secrets_engine(kind, path=path, **options)


@pytest.mark.server
@pytest.mark.parametrize(
    ("check", "make", "subject", "severity", "text"),
    [
        (
            "vault.transit",
            key("to-delete", deletion_allowed=True),
            "transit/keys/to-delete",
            "warning",
            "it can be deleted",
        ),
        (
            "vault.transit",
            key("by-hand", auto_rotate_period=0),
            "transit/keys/by-hand",
            "info",
            "Vault does not rotate it by itself",
        ),
        (
            "vault.approles",
            role("for-ever"),
            "auth/approle/role/for-ever",
            "warning",
            "its secret ids never end",
        ),
        (
            "vault.approles",
            role(
                "open", bind_secret_id=False, token_bound_cidrs="127.0.0.1/32", secret_id_ttl="1h"
            ),
            "auth/approle/role/open",
            "warning",
            "its role id alone logs in",
        ),
        (
            "vault.auth-ttl",
            lambda server: server.admin.sys.enable_auth_method(
                "userpass", path="people", config={"max_lease_ttl": "2000h"}
            ),
            "auth/people",
            "warning",
            "its tokens are good for up to 83 days",
        ),
        (
            "vault.kv",
            mount("kv", "old", options={"version": "1"}),
            "old",
            "warning",
            "it is of version 1",
        ),
        (
            "vault.kv",
            lambda server: write(server, "secret/config", max_versions=1000),
            "secret",
            "info",
            "it keeps 1,000 versions of each secret",
        ),
        (
            "vault.database",
            database_role("long", max_ttl="100h"),
            "database/roles/long",
            "warning",
            "its credentials are good for up to 4 days",
        ),
        (
            "vault.database",
            database_role("open"),
            "database/roles/open",
            "warning",
            "its credentials have no max_ttl of their own",
        ),
    ],
)
def test_vault(
    as_root: Server,
    check: str,
    make: Callable[[Server], object],
    subject: str,
    severity: str,
    text: str,
) -> None:
    """What is wrong in a Vault is found, and the command that is named mends it."""
    assert [] == found(check, subject=subject)
    make(as_root)
    finding = one(check, subject=subject)
    assert (severity, text) == (finding.severity, finding.found)
    run(finding.command)
    if check == "vault.kv":
        # Version 2 is made of version 1 in the background.
        assert (
            "2"
            == as_root.admin.sys.list_mounted_secrets_engines()["data"][f"{subject}/"]["options"][
                "version"
            ]
        )
    assert [] == found(check, subject=subject)


@pytest.mark.server
def test_old_transit_key(as_root: Server) -> None:
    """A key that nothing has rotated for 90 days is found, and the fix makes a version and has Vault make more."""
    write(as_root, "transit/keys/ages")
    write(as_root, "transit/keys/signs", type="ecdsa-p256", auto_rotate_period="2160h")
    later = SetUp(now=NOW + timedelta(days=100))
    assert "info" == one("vault.transit", subject="transit/keys/ages").severity
    finding = one("vault.transit", later, "transit/keys/ages")
    assert "its latest version (1) is 100 days old, and nothing rotates it" == finding.found
    assert [] == found("vault.transit", later, "transit/keys/signs")
    run(finding.command)
    assert 2 == as_root.admin.secrets.transit.read_key("ages")["data"]["latest_version"]
    assert [] == found("vault.transit", later, "transit/keys/ages")


@pytest.mark.server
def test_transit_key_that_leaves(as_root: Server) -> None:
    """A key that can be exported is found, and so are old versions that still open; the latter the fix retires."""
    write(as_root, "transit/keys/leaves", exportable=True, auto_rotate_period="2160h")
    finding = one("vault.transit", subject="transit/keys/leaves")
    assert "it can be exported, which cannot be taken back" == finding.found
    key("many")(as_root)
    for _ in range(5):
        write(as_root, "transit/keys/many/rotate")
    finding = one("vault.transit", subject="transit/keys/many")
    assert "versions from 1 on still open; the latest is 6" == finding.found
    run(finding.command)
    assert [] == found("vault.transit", subject="transit/keys/many")


@pytest.mark.server
def test_what_several_checks_lack(as_root: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What several checks may not see is told once, and none of them counts as made."""
    monkeypatch.setenv("BAO_TOKEN", as_root.make_token("default", ttl="1h"))
    report = examine(SetUp(), only=["vault.transit", "vault.kv", "vault.database"])
    assert ["sys/mounts"] == [each.subject for each in report.findings]
    assert [] == report.looked_at
    assert 3 == len(report.not_looked_at)


@pytest.mark.server
def test_no_audit_device(as_root: Server, bao: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without an audit device is found; one with it is not."""
    assert [] == found("vault.audit")
    monkeypatch.setenv("BAO_ADDR", bao.address)
    finding = one("vault.audit")
    assert ("serious", "there is no audit device") == (finding.severity, finding.found)


@pytest.mark.server
def test_own_token(as_root: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is root, has no end, is an orphan or lives long is found; one of an hour is not."""

    def says(**options: Any) -> list[tuple[str, str]]:
        if options:
            monkeypatch.setenv("BAO_TOKEN", as_root.make_token("default", **options))
        return [(each.severity, each.found) for each in found("vault.own-token")]

    assert [("serious", "it is a root token")] == says()
    assert [] == says(ttl="1h")
    as_root.admin.sys.tune_auth_method("token", max_lease_ttl="2000h")
    try:
        assert [("warning", "it is good for 42 days")] == says(ttl="1000h")
    finally:
        as_root.admin.sys.tune_auth_method("token", max_lease_ttl="768h")
    orphan = "it is an orphan: it outlives whoever made it"
    assert [("info", orphan)] == says(ttl="1h", no_parent=True)


@pytest.mark.server
def test_tokens_without_an_end(as_root: Server) -> None:
    """Another root token is found by its accessor, and the fix revokes it; the caller's own is not listed."""
    made = as_root.admin.auth.token.create(policies=["root"], display_name="forgotten")["auth"]
    subject = f"accessor {made['accessor']}"
    finding = one("vault.tokens", subject=subject)
    assert "serious" == finding.severity
    assert f"a root token (token-forgotten) of {NOW:%Y-%m-%d} that never expires" == finding.found
    assert made["client_token"] not in str(finding)
    run(finding.command)
    assert [] == found("vault.tokens")


@pytest.mark.server
def test_address_and_tls(
    as_root: Server,
    bao_tls: SingleServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plain HTTP is found, and TLS 1.2; a listener of TLS 1.3 is not."""
    finding = one("vault.address")
    assert ("info", "it is http://, to this machine itself") == (
        finding.severity,
        finding.found,
    )
    assert [] == found("vault.tls")
    with tls_server(tmp_path, tls="tls12") as old:
        assert old.ca_file is not None
        monkeypatch.setenv("BAO_ADDR", old.address)
        monkeypatch.setenv("BAO_CACERT", old.ca_file)
        monkeypatch.setenv("BAO_TOKEN", old.token)
        assert "it agrees to TLS 1.2, and not to 1.3" == one("vault.tls").found
        assert [] == found("vault.address")
        # Such a server is looked at all the same.
        assert 1 == len(found("vault.audit"))
    monkeypatch.setenv("BAO_ADDR", bao_tls.address)
    assert [] == found("vault.tls")


def test_http_to_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """An http:// address of another machine is serious, and nothing is sent there."""
    monkeypatch.setenv("BAO_ADDR", "http://vault.example:8200")
    report = examine(SetUp(), only=["vault"])
    assert ["vault.address", "vault.tls", "vault.certificate"] == report.looked_at[:3]
    serious, unseen = report.findings
    assert ("serious", "it is http://") == (serious.severity, serious.found)
    assert "vault.not-seen" == unseen.check
    assert "use https://" in unseen.found


@pytest.mark.server
def test_certificate_near_its_end(bao_tls: SingleServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that ends soon, or has ended, is found; long before it is not."""
    monkeypatch.setenv("BAO_ADDR", bao_tls.address)
    finding = one("vault.certificate")
    assert "serious" == finding.severity
    assert re.fullmatch(r"it ends on \d{4}-\d\d-\d\d, in (2 days|\d+ hours)", finding.found)
    warned = one("vault.certificate", SetUp(now=NOW - timedelta(days=20)))
    assert "warning" == warned.severity
    assert [] == found("vault.certificate", SetUp(now=NOW - timedelta(days=40)))
    assert "it ended on" in one("vault.certificate", SetUp(now=NOW + timedelta(days=9))).found


def listener(directory: Path, private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """Start a listener that shows a self-signed certificate of a key, to whoever comes; return its address."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=300))
        .sign(private, hashes.SHA256())
    )
    path = directory / f"{type(private).__name__}{private.key_size}.pem"
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(path)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)
            except OSError:
                pass
        listening.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"https://127.0.0.1:{listening.getsockname()[1]}"


def test_short_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener with a key of RSA 1024 is found; one with P-256 is not."""
    monkeypatch.setenv("BAO_ADDR", listener(tmp_path, rsa.generate_private_key(65537, 1024)))
    assert "its key has 1024 bits" == one("vault.certificate").found
    monkeypatch.setenv("BAO_ADDR", listener(tmp_path, ec.generate_private_key(ec.SECP256R1())))
    assert [] == found("vault.certificate")


@pytest.mark.server
def test_seal(as_root: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single share that opens Vault is found; the fix, with that share given, makes it three of five."""
    with tls_server(tmp_path) as single:
        assert single.ca_file is not None
        monkeypatch.setenv("BAO_ADDR", single.address)
        monkeypatch.setenv("BAO_CACERT", single.ca_file)
        monkeypatch.setenv("BAO_TOKEN", single.token)
        finding = one("vault.seal")
        assert ("serious", "1 of 1 unseal shares opens it") == (finding.severity, finding.found)
        said = run(finding.command)
        nonce = re.findall(r"Nonce +(\S+)", said)[0]
        run(f"bao operator rotate-keys -nonce={nonce} {single.unseal_key}")
        assert [] == found("vault.seal")


@pytest.mark.server
def test_pki(as_root: Server) -> None:
    """An authority near its end is found; long before it is not."""
    write(as_root, "pki/root/generate/internal", common_name="Old Root", ttl="700h")
    (finding,) = (f for f in found("vault.pki") if "issuer" in f.subject)
    assert "pki: issuer CN=Old Root" == finding.subject
    assert re.fullmatch(r"it ends on [-0-9]+, in 29 days", finding.found)
    long_before = SetUp(now=NOW - timedelta(days=200))
    assert [] == found("vault.pki", long_before)


@pytest.mark.server
def test_certificates_of_pki(as_root: Server) -> None:
    """A certificate near its end is found until there is a successor, or it is revoked."""
    as_root.admin.sys.enable_secrets_engine(
        "pki", path="pki-long", config={"max_lease_ttl": "9000h"}
    )
    write(as_root, "pki-long/root/generate/internal", common_name="Root", ttl="9000h")
    write(as_root, "pki-long/roles/desk", allow_any_name=True, max_ttl="8000h", no_store=False)
    issue = {"common_name": "desk", "ttl": "1600h"}
    write(as_root, "pki-long/issue/desk", **issue)
    soon = SetUp(now=NOW + timedelta(days=50))
    finding = one("vault.pki", soon, "pki-long: CN=desk")
    assert "in 17 days" in finding.found
    assert [] == found("vault.pki", subject="pki-long: CN=desk")
    serial = finding.command.split()[-1]
    write(as_root, "pki-long/issue/desk", **{**issue, "ttl": "3000h"})
    assert [] == found("vault.pki", soon, "pki-long: CN=desk")
    other = {"common_name": "other", "ttl": "1600h"}
    write(as_root, "pki-long/issue/desk", **other)
    finding = one("vault.pki", soon, "pki-long: CN=other")
    assert serial not in finding.command
    assert 0 == app.run(shlex.split(finding.command)[1:])
    assert [] == found("vault.pki", soon, "pki-long: CN=other")


@pytest.mark.parametrize(
    ("rules", "severity", "text"),
    [
        ('path "*" { capabilities = ["read"] }', "serious", '"*" grants read on every mount'),
        (
            'path "+/data/*" { capabilities = ["read", "list"] }',
            "serious",
            '"+/data/*" grants list, read on every mount',
        ),
        (
            'path "sec*" { capabilities = ["read"] }',
            "serious",
            '"sec*" grants read on every mount of such a name',
        ),
        ('path "/*" { policy = "write" }', "serious", '"/*" grants create, delete'),
        ('path "sys/*" { capabilities = ["update"] }', "serious", "writes policies"),
        ('path "sys/policies/acl/+" { capabilities = ["create"] }', "serious", "writes policies"),
        ('path "sys/policy/*" { policy = "sudo" }', "serious", "writes policies"),
        ('path "sys/auth/*" { capabilities = ["create", "sudo"] }', "serious", "mounts and tunes"),
        (
            'path "sys/audit/*" { capabilities = ["delete", "sudo"] }',
            "serious",
            "audit devices off",
        ),
        ('path "auth/*" { capabilities = ["update"] }', "serious", "makes logins with policies"),
        ('path "auth/people/users/*" { capabilities = ["create"] }', "serious", "makes logins"),
        ('path "auth/+/role/+" { capabilities = ["patch"] }', "serious", "makes logins"),
        (
            'path "auth/approle/role/+/secret-id" { capabilities = ["update"] }',
            "warning",
            "logs in as every role",
        ),
        ('path "sys/raw/x" { capabilities = ["update", "sudo"] }', "warning", "has sudo"),
        (
            '{"path": {"sys/policies/acl/*": {"capabilities": ["update"]}}}',
            "serious",
            "writes policies",
        ),
        (
            '# path "a"\n/* path "b" {} */ name = "n" // x\npath "*" {\n  # {\n  capabilities = ["read",]\n}',
            "serious",
            '"*" grants read',
        ),
    ],
)
@pytest.mark.server
def test_wide_policy(as_root: Server, rules: str, severity: str, text: str) -> None:
    """What a policy grants beyond need is found in each form that the server takes."""
    as_root.policy("wide", rules)
    finding = one("vault.policies", subject="wide")
    assert severity == finding.severity
    assert text in finding.found
    as_root.admin.sys.delete_policy("wide")
    assert [] == found("vault.policies", subject="wide")


@pytest.mark.parametrize(
    "rules",
    [
        'path "secret/data/*" { capabilities = ["read"] }',
        'path "*" { capabilities = ["deny"] }',
        'path "sys/policies/acl/*" { capabilities = ["read", "list"] }',
        'path "sys/policies/acl/desk-*" { capabilities = ["read"] }',
        'path "sys/audit" { capabilities = ["read", "sudo"] }',
        'path "auth/approle/role/desk/secret-id" { capabilities = ["update"] }',
        'path "auth/approle/role/+/secret-id" { capabilities = ["update"] min_wrapping_ttl = "1s" }',
        'path "sys/leases/revoke-prefix/*" { capabilities = ["update", "sudo"] }',
        'path "transit/encrypt/a" { capabilities = ["update"] allowed_parameters = { "*" = [] } }',
    ],
)
@pytest.mark.server
def test_narrow_policy(as_root: Server, rules: str) -> None:
    """What somebody may well need is not found."""
    as_root.policy("narrow", rules)
    assert [] == found("vault.policies", subject="narrow")


@pytest.mark.parametrize(
    "text", ['path "a" {', 'path "a" { capabilities = <<EOF', '{"path": 1}', '{"a": ', "%"]
)
def test_no_policy(text: str) -> None:
    """What is no policy is an error, and not an empty one."""
    with pytest.raises(ValueError):
        policies.parse(text)


@pytest.mark.server
def test_policy_of_break_glass(as_root: Server) -> None:
    """The policy for emergencies is as wide as it has to be, which is told and no more."""
    as_root.policy("break-glass", 'path "*" { capabilities = ["sudo"] }')
    assert "info" == one("vault.policies", subject="break-glass").severity


# What it may see


def documented(language: str) -> str:
    """Return the block of docs/doctor.md in a language."""
    page = ROOT / "docs" / "doctor.md"
    if not page.exists():
        pytest.skip("docs/ is not beside these tests")
    (text,) = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    return str(text)


@pytest.fixture(scope="module")
def furnished(server: Server) -> Server:
    """The server with something to see in each of its engines."""
    key("seen")(server)
    role("seen", secret_id_ttl="1h")(server)
    database_role("seen", max_ttl="1h")(server)
    server.admin.sys.enable_secrets_engine("pki", path="pki-seen")
    write(server, "pki-seen/root/generate/internal", common_name="Seen Root", ttl="700h")
    return server


def as_doctor(
    server: Server, policy: str, monkeypatch: pytest.MonkeyPatch, only: str = "vault"
) -> Report:
    """Look at a server under a policy alone."""
    server.policy("doctor", policy)
    token = server.make_token("doctor", ttl="10m", no_default_policy=True)
    monkeypatch.setenv("BAO_ADDR", server.address)
    monkeypatch.setenv("BAO_TOKEN", token)
    try:
        return examine(SetUp(), only=[only])
    finally:
        server.admin.auth.token.revoke(token)


def unseen(report: Report) -> list[Finding]:
    """Return the findings about what could not be looked at."""
    return [each for each in report.findings if "could not be looked at" in each.found]


@pytest.mark.parametrize(
    ("language", "template"), [("hcl", "policies/doctor.hcl"), ("json", "aws/doctor.json")]
)
def test_templates_agree_with_the_docs(language: str, template: str) -> None:
    """What `tapeseal init` writes allows what the page says, and nothing else."""
    text = (resources.files("tapeseal.templates") / "files" / template).read_text()
    page = documented(language)
    if language == "hcl":
        assert page == text.partition("\n\n")[2]
    else:
        (ours,), (theirs,) = (json.loads(each)["Statement"] for each in (text, page))
        assert sorted(theirs["Action"]) == ours["Action"]


@pytest.mark.server
def test_policy_of_the_docs(furnished: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy in docs/doctor.md lets every check be made, and is not found wide itself."""
    more = documented("hcl").replace('"pki/', '"pki-seen/')
    # What other tests have mounted.
    extra = "".join(
        f'path "{path}" {{ capabilities = ["read", "list"] }}\n' for path in ("pki-long/*", "old/*")
    )
    report = as_doctor(furnished, documented("hcl") + more + extra, monkeypatch)
    assert [] == unseen(report)
    assert {} == report.not_looked_at
    assert [each.name for each in checks() if each.area == "vault"] == report.looked_at
    assert [] == [each for each in report.findings if each.subject == "doctor"]


RULES = re.findall(r'path "([^"]+)"', (ROOT / "docs" / "doctor.md").read_text())


@pytest.mark.server
@pytest.mark.parametrize("path", RULES)
def test_policy_with_less(furnished: Server, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Without one of its rules the doctor says what it could not see, and the rule that it takes."""
    rules = {rule.path: rule for rule in policies.parse(documented("hcl"))}
    listed = ", ".join(f'"{each}"' for each in rules.pop(path).capabilities)
    less = re.sub(rf'path "{re.escape(path)}" \{{[^}}]*\}}', "", documented("hcl"))
    report = as_doctor(furnished, less, monkeypatch)
    if path == "auth/token/lookup-self":
        assert "vault.not-seen" in [each.check for each in report.findings]
        return
    (finding,) = (each for each in unseen(report) if each.subject == path)
    (capabilities,) = re.findall(r"\[(.*)\]", finding.fix)
    assert set(listed.split(", ")) == set(capabilities.split(", "))
    # What is said to be missing is all that is missing.
    added = as_doctor(
        furnished, f"{less}\n{finding.fix.partition(': ')[2]}", monkeypatch, finding.check
    )
    assert [] == [each for each in unseen(added) if each.subject == path]


@pytest.mark.server
def test_vault_that_is_away(
    bao_tls: SingleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Vault that is down or sealed, or a token that it refuses, is one finding, and the other areas go on."""
    monkeypatch.setenv("BAO_ADDR", f"https://127.0.0.1:{socket_port()}")
    monkeypatch.setenv("BAO_TOKEN", "x")
    # Who does not answer is given up soon; the server that answers, below, may take its time.
    with monkeypatch.context() as hurried:
        hurried.setattr("tapeseal.doctor.vault.SECONDS", 1.0)
        report = examine(SetUp(), only=["vault", "environment"])
    (away,) = (each for each in report.findings if each.check == "vault.not-seen")
    assert "refuses connections" in away.found
    assert "environment.token" in report.looked_at
    assert "vault.audit" in report.not_looked_at
    assert bao_tls.ca_file is not None
    monkeypatch.setenv("BAO_ADDR", bao_tls.address)
    monkeypatch.setenv("BAO_CACERT", bao_tls.ca_file)
    (refused,) = (
        each
        for each in examine(SetUp(), only=["vault.own-token"]).findings
        if each.check == "vault.not-seen"
    )
    assert "vault login" == refused.command


@pytest.mark.server
def test_vault_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Vault that takes connections and never answers is given up when the time for it is over."""
    monkeypatch.setattr("tapeseal.doctor.vault.SECONDS", 0.6)
    with dev_server(tmp_path) as hung:
        monkeypatch.setenv("BAO_ADDR", hung.address)
        monkeypatch.setenv("BAO_TOKEN", hung.token)
        hung.pause()
        try:
            report = examine(SetUp(), only=["vault"])
        finally:
            hung.resume()
    assert ["vault.not-seen"] == [each.check for each in report.at_least("warning")]
    assert "vault.audit" in report.not_looked_at


ENGINES = {f"{kind}/": {"type": kind} for kind in ("transit", "kv", "pki", "database")}


class Nonsense(BaseHTTPRequestHandler):
    """Answers whatever is asked with what no Vault says, or fails at a path."""

    answers: ClassVar[list[object]] = []
    fails_at = ""

    def answer(self) -> None:
        """Give the next answer, over and over."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps(self.answers[0]).encode()
        self.send_response(500 if self.fails_at and self.path.endswith(self.fails_at) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Answer a read."""
        self.answer()

    def do_LIST(self) -> None:
        """Answer a list."""
        self.answer()

    def do_POST(self) -> None:
        """Answer a look-up by POST."""
        self.answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def nonsense(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Nonsense]]:
    """A server that the environment takes for a Vault."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Nonsense)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("BAO_ADDR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("BAO_TOKEN", "x")
    yield Nonsense
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "data",
    [
        {"keys": 5},
        {"keys": [None, {}]},
        {**ENGINES, "keys": ["\x1b[2J"], "policy": "}{", "ttl": "x", "certificate": "x"},
        {**ENGINES, "approle/": {"type": "approle"}, "keys": ["a"], "latest_version": "x"},
    ],
)
def test_vault_that_talks_nonsense(nonsense: type[Nonsense], data: dict[str, Any]) -> None:
    """Whatever Vault answers, each check is made, or said not to have been."""
    nonsense.answers = [{"data": data}]
    report = examine(SetUp(), only=["vault"])
    named = {check.name for check in checks() if check.area == "vault"}
    assert named == {*report.looked_at, *report.not_looked_at}
    assert 0 < len(report.findings)


def test_vault_that_fails_at_a_path(
    nonsense: type[Nonsense], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Vault answers but fails at one thing, the others are looked at."""
    monkeypatch.setattr("tapeseal.doctor.vault.SECONDS", 3.0)
    nonsense.answers = [{"data": {"sealed": False, "ttl": 3600}}]
    monkeypatch.setattr(nonsense, "fails_at", "sys/audit")
    report = examine(SetUp(), only=["vault.audit", "vault.own-token"])
    assert ["vault.own-token"] == report.looked_at
    (finding,) = report.findings
    assert ("vault.audit", "sys/audit") == (finding.check, finding.subject)


def test_listener_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that sends a byte now and then is given up when the time for it is over."""
    listening = socket.create_server(("127.0.0.1", 0))
    given_up = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            # The start of a record of the handshake that is never whole.
            for byte in b"\x16\x03\x03\x40\x00" + bytes(2000):
                connection.send(bytes([byte]))
                if given_up.wait(0.02):
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    monkeypatch.setattr("tapeseal.doctor.vault.SECONDS", 0.3)
    monkeypatch.setenv("BAO_ADDR", f"https://127.0.0.1:{listening.getsockname()[1]}")
    monkeypatch.setenv("BAO_TOKEN", "x")
    report = examine(SetUp(), only=["vault.certificate"])
    given_up.set()
    thread.join()
    listening.close()
    assert ["vault.certificate"] == list(report.not_looked_at)


def socket_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# AWS KMS


@pytest.fixture(scope="module")
def allow(kms: KmsServer) -> Callable[[dict[str, Any]], dict[str, str]]:
    """Gives the one user of these tests a policy, and returns the variables of that user."""
    user = kms.environment()
    name, iam = f"user{kms._users}", kms.client("iam")

    def change(policy: dict[str, Any]) -> dict[str, str]:
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        return user

    return change


@pytest.fixture
def as_aws(
    kms: KmsServer,
    allow: Callable[[dict[str, Any]], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> KmsServer:
    """The environment of a user under the policy of docs/doctor.md, and of a KMS on loopback."""
    make_clients_once(monkeypatch)
    for name, value in allow(json.loads(documented("json"))).items():
        monkeypatch.setenv(name, value)
    return kms


def at_kms(kms: KmsServer, key: str) -> SetUp:
    """Return a set-up with a key of KMS."""
    return SetUp(keyrings=(f"aws-kms:{key}?region={REGION}&endpoint_url={kms.address}",))


@pytest.mark.server
def test_kms_rotation(as_aws: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that KMS does not rotate is found until the fix was run by somebody who may."""
    set_up = at_kms(as_aws, as_aws.make_key())
    finding = one("kms.rotation", set_up)
    assert f"KMS does not rotate it; its material is of {NOW:%Y-%m-%d}" == finding.found
    with monkeypatch.context() as admin:
        for name, value in as_aws.admin_user.items():
            admin.setenv(name, value)
        assert 0 == app.run(shlex.split(finding.command)[1:])
    assert [] == found("kms.rotation", set_up)
    signing = as_aws.make_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
    assert [] == found("kms.rotation", at_kms(as_aws, signing))


@pytest.mark.server
def test_kms_state(as_aws: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is disabled, about to be deleted or not there is found; an enabled one is not."""
    arn = as_aws.make_key()
    set_up = at_kms(as_aws, arn)
    assert [] == found("kms.state", set_up)
    as_aws.admin.disable_key(KeyId=arn)
    finding = one("kms.state", set_up)
    assert ("serious", "its state is Disabled") == (finding.severity, finding.found)
    as_aws.admin.enable_key(KeyId=arn)
    as_aws.admin.schedule_key_deletion(KeyId=arn, PendingWindowInDays=7)
    finding = one("kms.state", set_up)
    assert f"it will be deleted on {NOW + timedelta(days=7):%Y-%m-%d}" == finding.found
    as_aws.admin.cancel_key_deletion(KeyId=arn)
    as_aws.admin.enable_key(KeyId=arn)
    assert [] == found("kms.state", set_up)
    for (
        name,
        value,
    ) in as_aws.admin_user.items():  # moto tells a key that is not there to nobody else
        monkeypatch.setenv(name, value)
    missing = f"{arn[:-4]}0000"
    assert "serious" == one("kms.state", at_kms(as_aws, missing)).severity


@pytest.mark.server
@pytest.mark.parametrize(
    ("statement", "open_to_all"),
    [
        ({"Principal": "*"}, True),
        ({"Principal": {"AWS": ["arn:aws:iam::123456789012:root", "*"]}}, True),
        ({"Principal": "*", "Condition": {"StringEquals": {"kms:CallerAccount": "1"}}}, False),
        ({"Principal": "*", "Effect": "Deny"}, False),
        ({"Principal": {"AWS": "arn:aws:iam::123456789012:role/recorder"}}, False),
    ],
)
def test_kms_policy(as_aws: KmsServer, statement: dict[str, Any], open_to_all: bool) -> None:
    """A key policy that lets everybody in is found, with a condition it is not."""
    arn = as_aws.make_key()
    whole = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*", **statement}
    document = json.dumps({"Version": "2012-10-17", "Statement": [whole]})
    as_aws.admin.put_key_policy(KeyId=arn, PolicyName="default", Policy=document)
    texts = [each.found for each in found("kms.policy", at_kms(as_aws, arn))]
    assert texts == (["its policy allows kms:Decrypt to everybody"] if open_to_all else [])


@pytest.mark.server
@pytest.mark.parametrize(
    ("action", "check"),
    [
        ("kms:DescribeKey", "kms.state"),
        ("kms:GetKeyRotationStatus", "kms.rotation"),
        ("kms:ListKeyRotations", "kms.rotation"),
        ("kms:GetKeyPolicy", "kms.policy"),
    ],
)
def test_kms_with_less(
    as_aws: KmsServer,
    allow: Callable[[dict[str, Any]], dict[str, str]],
    action: str,
    check: str,
) -> None:
    """Without an action of the documented policy the doctor says what it could not see, and names the action."""
    set_up = at_kms(as_aws, as_aws.make_key())
    assert [] == unseen(examine(set_up, only=["kms"]))
    policy = json.loads(documented("json"))
    policy["Statement"][0]["Action"].remove(action)
    allow(policy)
    missing = unseen(examine(set_up, only=[check]))
    assert [check] == [each.check for each in missing]
    assert action in missing[0].fix


@pytest.mark.server
def test_kms_endpoint(as_aws: KmsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KMS by http is found, and one of another machine is not called; KMS's own address is no finding."""
    arn = as_aws.make_key()
    assert "info" == one("kms.endpoint", at_kms(as_aws, arn)).severity
    assert [] == found("kms.endpoint", SetUp(keyrings=(f"aws-kms:{arn}",)))
    elsewhere = SetUp(keyrings=(f"aws-kms:{arn}?endpoint_url=http://kms.example",))
    assert "serious" == one("kms.endpoint", elsewhere).severity
    report = examine(elsewhere, only=["kms"])
    assert ["kms.endpoint"] == report.looked_at
    assert "kms.not-seen" in [each.check for each in report.findings]
    away = SetUp(keyrings=(f"aws-kms:{arn}?endpoint_url=http://127.0.0.1:{socket_port()}",))
    both = replace(away, keyrings=(*away.keyrings, *at_kms(as_aws, arn).keyrings))
    report = examine(away, only=["kms.state", "kms.rotation"])
    assert ["kms.state", "kms.rotation"] == list(report.not_looked_at)
    assert ["kms.state"] == [each.check for each in report.findings]  # once
    # A region that is away keeps no other from being looked at.
    assert ["kms.rotation"] == examine(both, only=["kms.rotation"]).looked_at


# Files


def home() -> Path:
    """Return the home of the test's user."""
    return Path(os.environ["HOME"])


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A key file of the user's alone."""
    create_key_file(tmp_path / "my.key")
    return tmp_path / "my.key"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
@pytest.mark.parametrize("name", ["my.key", "home/.vault-token", "pair"])
def test_file_that_others_may_read(tmp_path: Path, key_file: Path, name: str, mode: int) -> None:
    """A key or a token that others may read or write is found, and the fix closes it."""
    create_key_pair(tmp_path / "pair")
    (tmp_path / name).touch(0o600)
    set_up = SetUp(keyrings=(f"local:{key_file}", f"public-key:{tmp_path / 'pair'}"))
    assert [] == found("file.mode", set_up)
    (tmp_path / name).chmod(mode)
    finding = one("file.mode", set_up)
    assert ("serious", str(tmp_path / name)) == (finding.severity, finding.subject)
    assert f"by others (mode {mode:04o})" in finding.found
    run(finding.command)
    assert [] == found("file.mode", set_up)
    assert 0o600 == (tmp_path / name).stat().st_mode & 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_file_of_another_user(tmp_path: Path, key_file: Path) -> None:
    """A key file, or a directory over it, that belongs to another user is found until it is taken back."""
    set_up = SetUp(keyrings=(f"local:{key_file}",))
    for check, path in (("file.owner", key_file), ("file.directory", tmp_path)):
        assert [] == found(check, set_up)
        os.chown(path, 54321, -1)
        finding = one(check, set_up)
        assert str(path) == finding.subject
        assert "another user (uid 54321)" in finding.found
        run(finding.command)
        assert [] == found(check, set_up)


def test_directory_that_others_may_write(tmp_path: Path) -> None:
    """A directory on the way to a key that others may write is found, also behind a link; a sticky one is not."""
    (tmp_path / "open" / "closed").mkdir(parents=True)
    create_key_file(tmp_path / "open" / "closed" / "my.key")
    (tmp_path / "my.key").symlink_to(tmp_path / "open" / "closed" / "my.key")
    (tmp_path / "open").chmod(0o1777)
    set_up = SetUp(keyrings=(f"local:{tmp_path / 'my.key'}",))
    assert [] == found("file.directory", set_up)
    (tmp_path / "open").chmod(0o777)
    finding = one("file.directory", set_up)
    assert str(tmp_path / "open") == finding.subject
    run(finding.command)
    assert [] == found("file.directory", set_up)


def test_key_without_passphrase(
    tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key file, or private half, under no passphrase is told; one under a passphrase, or a public half, is not."""
    create_key_pair(tmp_path / "pair")
    pair = f"public-key:{tmp_path / 'pair'}"
    bare = SetUp(keyrings=(f"local:{key_file}", pair, f"{pair}.pub"))
    told = found("file.passphrase", bare)
    assert [str(key_file), str(tmp_path / "pair")] == [each.subject for each in told]
    assert {"info"} == {each.severity for each in told}
    for module in (local, public_key):
        monkeypatch.setattr(module, "LOG2_N", 10)  # so that it takes no time
    create_key_file(tmp_path / "sealed.key", b"a passphrase of the tests")
    create_key_pair(tmp_path / "sealed", b"a passphrase of the tests")
    sealed = (f"local:{tmp_path / 'sealed.key'}", f"public-key:{tmp_path / 'sealed'}")
    assert [] == found("file.passphrase", SetUp(keyrings=sealed))


def test_missing_file(tmp_path: Path) -> None:
    """A file that is named and is not there could not be looked at, and is no sound one."""
    report = examine(SetUp(keyrings=(f"local:{tmp_path / 'none'}",)), only=["file.mode"])
    assert [] == report.looked_at
    assert "the key file could not be looked at: No such file" in report.findings[0].found


def test_plan_and_log_that_others_may_write(tmp_path: Path, key_file: Path) -> None:
    """Who may write the plan runs commands by it; who may read it learns no secret."""
    path = plan(tmp_path)
    path.chmod(0o644)
    create_log(tmp_path / "audit.log", keyring=LocalKeyring(key_file), mode=0o660)
    Journal(tmp_path / "rotation.db").close()
    set_up = SetUp(plan=str(path), audit_log=str(tmp_path / "audit.log"))
    assert [] == found("file.mode", set_up)
    path.chmod(0o666)
    (tmp_path / "audit.log").chmod(0o664)
    (tmp_path / "rotation.db").chmod(0o644)
    findings = found("file.mode", set_up)
    assert {str(path), str(tmp_path / "audit.log"), str(tmp_path / "rotation.db")} == {
        each.subject for each in findings
    }
    for each in findings:
        run(each.command)
    assert [] == found("file.mode", set_up)


# Machine and environment


def limited(*limits: str) -> dict[str, Any]:
    """Return the report of a process with limits that a shell sets, and without the right to go past them."""
    command = shlex.join(
        [sys.executable, "-m", "tapeseal", "doctor", "--only", "machine", "--json"]
    )
    if os.geteuid() == 0:
        command = f"setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock {command}"
    script = "; ".join([*limits, f"exec {command}"])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_limits() -> None:
    """Too little memory to lock, and core dumps, are found; the fixes mend both."""
    checks = ("machine.locked-memory", "machine.core-dumps")
    report = limited("ulimit -c 1000", "ulimit -S -l 64")
    findings = [each for each in report["findings"] if each["check"] in checks]
    assert {"it may lock 65,536 bytes of memory", "it may dump core, of 512,000 bytes"} == {
        each["found"] for each in findings
    }
    assert 1 == report["exit_code"]
    mended = limited("ulimit -c 1000", "ulimit -S -l 64", *(each["command"] for each in findings))
    assert [] == [each for each in mended["findings"] if each["check"] in checks]


def test_swap(tmp_path: Path) -> None:
    """Swap on a disk is told; encrypted by dm-crypt, or in memory, it is not. The files are as Linux writes them."""
    proc = tmp_path / "proc"
    proc.mkdir()
    header = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    lines = [
        "/dev/sda2                               partition\t8388604\t\t0\t\t-2\n",
        "/dev/dm-1                               partition\t8388604\t\t0\t\t-3\n",
        "/dev/zram0                              partition\t8388604\t\t0\t\t100\n",
    ]
    (proc / "swaps").write_text(header + "".join(lines))
    uuid = tmp_path / "sys" / "block" / "dm-1" / "dm" / "uuid"
    uuid.parent.mkdir(parents=True)
    uuid.write_text("CRYPT-PLAIN-swap\n")
    here = machine.Machine(proc, tmp_path / "sys")
    look = machine.MachineLook(here, tapeseal.openssl_version(), False)
    swap = machine.CHECKS["machine.swap"].function
    assert ["/dev/sda2"] == [each.subject for each in swap(look)]
    (proc / "swaps").write_text(header + "".join(lines[1:]))
    assert [] == list(swap(look))
    (proc / "swaps").unlink()
    assert [] == list(swap(look))
    assert 1 == len(look.unseen)


def test_openssl() -> None:
    """An OpenSSL that gets no fixes any more is found, whose it is told; the one in use is where it is one."""
    check = machine.CHECKS["machine.openssl"].function
    old = machine.MachineLook(machine.Machine(), "OpenSSL 3.0.17 1 Jul 2025", True)
    (problem,) = check(old)
    assert "it is the system's, and older than 3.5" == problem.found
    major, minor = map(int, tapeseal.openssl_version().split()[1].split(".")[:2])
    assert ((major, minor) < (3, 5)) == (found("machine.openssl") != [])


@pytest.mark.parametrize(
    ("check", "name", "value", "severity"),
    [
        ("environment.token", "VAULT_TOKEN", "hvs.of-the-tests", "info"),
        ("environment.token", "BAO_TOKEN", "s.of-the-tests", "info"),
        ("environment.aws-key", "AWS_SECRET_ACCESS_KEY", "of-the-tests", "info"),
        ("environment.skip-verify", "VAULT_SKIP_VERIFY", "true", "serious"),
        ("environment.skip-verify", "BAO_SKIP_VERIFY", "1", "serious"),
    ],
)
def test_environment(
    monkeypatch: pytest.MonkeyPatch, check: str, name: str, value: str, severity: str
) -> None:
    """A secret in a variable, and a switch that ends TLS, are found by the name alone; without it nothing is."""
    assert [] == found(check)
    monkeypatch.setenv(name, value)
    finding = one(check)
    assert (severity, name) == (finding.severity, finding.subject)
    assert "of-the-tests" not in str(finding)
    monkeypatch.delenv(name)
    assert [] == found(check)


def test_skip_verify_and_vault(monkeypatch: pytest.MonkeyPatch) -> None:
    """With VAULT_SKIP_VERIFY Vault is not looked at, and that is told too."""
    monkeypatch.setenv("VAULT_ADDR", "https://127.0.0.1:1")
    monkeypatch.setenv("VAULT_SKIP_VERIFY", "1")
    report = examine(SetUp(), only=["vault.own-token", "environment"])
    assert {"vault.own-token"} == set(report.not_looked_at)
    assert ["environment.skip-verify", "vault.not-seen"] == [each.check for each in report.findings]


# Plan


PLAN = """
[secret.binance]
kind = "accounts"
owner = "execution desk"
tier = "application"
schedule = "30d"
monitor = "0s"
settle = "0s"
{consumers}
options = {{ service = "{directory}/service", path = "secret/{name}" }}
deploy = [{{ type = "accounts" }}]
{verify}
{window}
"""


def plan(
    directory: Path,
    *,
    consumers: str = "",
    verify: str = 'verify = [{ type = "accounts" }]',
    window: str = "",
) -> Path:
    """Write a plan of one secret, and return its path."""
    path = directory / "plan.toml"
    world.Service(directory / "service")
    name = f"doctor-{os.urandom(4).hex()}"
    text = PLAN.format(
        directory=directory, name=name, consumers=consumers, verify=verify, window=window
    )
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.mark.server
def test_overdue_secret(tmp_path: Path, bao: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret nobody has asked about is told, an overdue one is found, and the fixes ask and rotate."""
    monkeypatch.setenv("BAO_ADDR", bao.address)
    monkeypatch.setenv("BAO_TOKEN", bao.token)
    path = plan(tmp_path)
    set_up = SetUp(plan=str(path))
    finding = one("plan.overdue", set_up)
    assert ("info", "how old it is, nobody has asked yet") == (finding.severity, finding.found)
    # Looking leaves no journal behind.
    assert not (tmp_path / "rotation.db").exists()
    assert 0 == app.run(shlex.split(finding.command)[1:])
    made = NOW - timedelta(days=45)
    with Journal(tmp_path / "rotation.db") as journal:
        journal.note({"binance": Known(version="1", made=made, seen=NOW)})
    finding = one("plan.overdue", set_up)
    assert f"it is overdue since {made + timedelta(days=30):%Y-%m-%d}" == finding.found
    assert 0 == app.run(shlex.split(finding.command)[1:])
    assert [] == found("plan.overdue", SetUp(plan=str(path)))


def note(journal: Journal, record: Record) -> None:
    """Write how far a rotation has come."""
    journal.write(record, "end", step=record.step, now=NOW.timestamp())


def test_failed_rotation(tmp_path: Path) -> None:
    """A rotation that failed, and one that somebody must look at, are found with what they said."""
    path = plan(tmp_path)
    with Journal(tmp_path / "rotation.db") as journal:
        old = NOW - timedelta(days=45)
        journal.note({"binance": Known(version="1", made=old, seen=NOW, failures=2)})
        record = Record("r1", "binance", "accounts", "verify", started=NOW.timestamp())
        journal.begin(replace(record, error="the service is down"))
    finding = one("plan.waiting", SetUp(plan=str(path)))
    assert ("warning", "the service is down") == (finding.severity, finding.found)
    with Journal(tmp_path / "rotation.db") as journal:
        ended = replace(record, state="rolled back", error="the target refuses it")
        note(journal, ended)
    assert [] == found("plan.waiting", SetUp(plan=str(path)))
    assert "its rotation failed" in one("plan.overdue", SetUp(plan=str(path))).found


def test_waiting_for_consumers(tmp_path: Path) -> None:
    """Consumers that are not on the new version are named, serious once their grace is over."""
    path = plan(tmp_path, consumers='consumers = ["gw7", "recorder"]')
    with Journal(tmp_path / "rotation.db") as journal:
        record = Record("r1", "binance", "accounts", "revoke", "waiting", waiting=["gw7"])
        journal.begin(record)
    finding = one("plan.waiting", SetUp(plan=str(path)))
    assert ("warning", "the new version is not yet used by gw7") == (
        finding.severity,
        finding.found,
    )
    with Journal(tmp_path / "rotation.db") as journal:
        note(journal, replace(record, alarm="gw7 was not seen"))
    assert "serious" == one("plan.waiting", SetUp(plan=str(path))).severity
    with Journal(tmp_path / "rotation.db") as journal:
        note(journal, replace(record, state="finished", waiting=[]))
    assert [] == found("plan.waiting", SetUp(plan=str(path)))


def test_what_a_plan_lacks(tmp_path: Path) -> None:
    """No verification, no consumers and a window that never opens are found; a whole secret is not."""
    window = '[secret.binance.window]\nhours = "20:00-20:02"'
    lacking = SetUp(plan=str(plan(tmp_path, verify="", window=window)))
    assert "warning" == one("plan.verification", lacking).severity
    assert "info" == one("plan.consumers", lacking).severity
    finding = one("plan.windows", lacking)
    assert "it is never open for as long as the deadline" == finding.found
    whole = SetUp(plan=str(plan(tmp_path, consumers='consumers = ["gw7"]')))
    for check in ("plan.verification", "plan.consumers", "plan.windows"):
        assert [] == found(check, whole)


def test_no_plan(tmp_path: Path) -> None:
    """A plan that cannot be read is one finding, and its checks were not made."""
    path = tmp_path / "plan.toml"
    path.write_text("[secret.x]\nkind = 'none'\n")
    report = examine(SetUp(plan=str(path)), only=["plan"])
    assert ["plan.not-seen"] == [each.check for each in report.findings]
    assert [] == report.looked_at


# Audit log, break-glass, tapes, configuration


class LocalSigner:
    """Signs with a key of its own, as one of KMS or Transit does."""

    key = "vault-transit:transit/tests"
    algorithm = "ecdsa-p256-sha256"

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def sign(self, message: bytes) -> bytes:
        """Return the signature."""
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def public_key(self) -> bytes:
        """Return the public half."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def test_audit_log(tmp_path: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No log, one without its head and one that nobody anchors are found; an anchored one is not."""
    assert "warning" == one("audit.enabled").severity
    log, anchors = str(tmp_path / "audit.log"), str(tmp_path / "anchors")
    keyring = LocalKeyring(key_file)
    create_log(log, keyring=keyring)
    monkeypatch.setenv("TAPESEAL_AUDIT", log)
    assert [] == found("audit.enabled")
    assert [] == found("audit.head")
    assert "no file of its anchors is known here" == one("audit.anchored").found
    Path(anchors).touch()
    kept = SetUp(anchors=anchors)
    assert f"{anchors} has no anchor of it" == one("audit.anchored", kept).found
    with AuditLog(log, keyring=keyring) as opened:
        append_to(anchors)(opened.anchor().signed(LocalSigner()))
    assert [] == found("audit.anchored", kept)
    later = replace(kept, now=NOW + timedelta(days=9))
    assert "its newest anchor is 9 days old" == one("audit.anchored", later).found
    Path(f"{log}.head").unlink()
    assert "serious" == one("audit.head").severity


def test_no_audit_log(tmp_path: Path) -> None:
    """What is no audit log could not be looked at."""
    (tmp_path / "audit.log").write_text("x\n")
    report = examine(SetUp(audit_log=str(tmp_path / "audit.log")), only=["audit.head"])
    assert "the log could not be read" in report.findings[0].found
    assert [] == report.looked_at


@pytest.fixture
def ceremony(tmp_path: Path) -> Path:
    """A package of two custodians, with its drill, and their keys."""
    for name in ("alice", "bob"):
        create_key_pair(tmp_path / name)
    keyrings = {name: PublicKeyKeyring(tmp_path / f"{name}.pub") for name in ("alice", "bob")}
    with Secret.take(bytearray(b"of the tests")) as token:
        break_glass.seal(tmp_path / "vault.glass", {"token": token}, keyrings, 2, seconds=600)
    return tmp_path / "vault.glass"


def test_old_package(ceremony: Path) -> None:
    """A package of half a year ago is found."""
    set_up = SetUp(packages=(str(ceremony),))
    assert [] == found("break-glass.age", set_up)
    old = replace(set_up, now=NOW + timedelta(days=190))
    assert "it was sealed 190 days ago" == one("break-glass.age", old).found


def test_drill(
    tmp_path: Path, ceremony: Path, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package without a drill is found until one is in the audit log, and a quarter later again."""
    log = str(tmp_path / "audit.log")
    keyring = LocalKeyring(key_file)
    create_log(log, keyring=keyring)
    set_up = SetUp(packages=(str(ceremony),), audit_log=log)
    finding = one("break-glass.drill", set_up)
    assert "no drill is in the audit log of the last 92 days" == finding.found
    drill = shlex.split(finding.command)[3]
    asked, approvals = tmp_path / "request", [tmp_path / "a", tmp_path / "b"]
    with AuditLog(log, keyring=keyring) as opened:
        tapeseal.audit.start(opened)
        try:
            shown = break_glass.request(drill, asked, reason="drill", seconds=60, requester="x@y")
            for name, out in zip(("alice", "bob"), approvals, strict=True):
                half = PublicKeyKeyring(tmp_path / name)
                break_glass.approve(drill, asked, half, out, fingerprint=shown)
            break_glass.open_package(drill, asked, approvals).close()
        finally:
            tapeseal.audit.stop()
        assert [] == found("break-glass.drill", set_up)
        opened.roll()
    assert [] == found("break-glass.drill", set_up)
    assert 1 == len(found("break-glass.drill", replace(set_up, now=NOW + timedelta(days=93))))
    report = examine(replace(set_up, audit_log=None), only=["break-glass.drill"])
    assert "cannot be told without the audit log" in report.findings[0].found


@pytest.mark.server
def test_pending_tape(
    tmp_path: Path, key_file: Path, kms: KmsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tape with a pending recipient is found, and the fix wraps for it."""
    for name, value in kms.admin_user.items():
        monkeypatch.setenv(name, value)
    uri = f"aws-kms:{kms.make_key()}?region={REGION}&endpoint_url={kms.address}&max_attempts=1"
    both = AnyOf([LocalKeyring(key_file), tapeseal.keyring(uri)], minimum=1)
    (tmp_path / "day").write_bytes(b"x" * 100)
    kms.faults({"action": None, "code": "KMSInternalException", "status": 500})
    try:
        tapeseal.encrypt_file(tmp_path / "day", tmp_path / "day.tape", keyring=both)
    finally:
        kms.faults()
    set_up = SetUp(tapes=(str(tmp_path),))
    finding = one("tape.pending", set_up)
    assert str(tmp_path / "day.tape") == finding.subject
    keyrings = shlex.join(["-k", f"local:{key_file}", "-k", uri])
    assert 0 == app.run(shlex.split(finding.command.replace("-k KEYRING", keyrings))[1:])
    assert [] == found("tape.pending", SetUp(tapes=(str(tmp_path),)))


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_unsealed_tape(tmp_path: Path, key_file: Path, mode: str) -> None:
    """A tape whose writer died is found a day later, and the program that is named seals it."""
    path = tmp_path / "day's.tape"
    writer = start_child(
        """
        import os, sys, numpy, tapeseal
        path, mode, key = sys.argv[1:]
        dtype = {"dtype": "<u8"} if mode == "w" else {}
        tape = tapeseal.open(path, mode, keyring=tapeseal.keyring(f"local:{key}"), **dtype)
        (tape.append(numpy.arange(9, dtype="<u8")) if dtype else tape.write(b"x" * 999))
        tape.flush()
        os._exit(0)
        """,
        path,
        mode,
        key_file,
    )
    with writer:
        assert 0 == writer.wait(60)
    assert [] == found("tape.unsealed", SetUp(tapes=(str(tmp_path),)))
    later = SetUp(tapes=(str(tmp_path),), now=NOW + timedelta(days=3))
    finding = one("tape.unsealed", later)
    assert "it was written 3 days ago, and never sealed" == finding.found
    command = finding.command.replace("KEYRING", f"local:{key_file}")
    run(command.replace("python3", sys.executable, 1))
    assert [] == found("tape.unsealed", replace(later, packages=()))
    assert tapeseal.verify(path, keyring=LocalKeyring(key_file)).ok


def test_secret_in_configuration(tmp_path: Path) -> None:
    """A password in a file of configuration is found by its place, and never shown."""
    path = tmp_path / "recorder.toml"
    database = "postgresql://desk:hunter2pass@db/trades"  # tapeseal: no secret
    path.write_text(f'venue = "binance"\ndatabase = "{database}"\n')
    set_up = SetUp(configuration=(str(tmp_path),))
    findings = found("config.secrets", set_up)
    assert {f"{path}:2"} == {each.subject for each in findings}
    assert "hunter2pass" not in str(findings)
    path.write_text('venue = "binance"\n')
    assert [] == found("config.secrets", set_up)


# The whole


def test_every_check_is_documented() -> None:
    """The table in docs/doctor.md is the checks, in their words and their order."""
    page = ROOT / "docs" / "doctor.md"
    if not page.exists():
        pytest.skip("docs/ is not beside these tests")
    rows = re.findall(
        r"^\| `([a-z-]+\.[a-z-]+)` \| (.*) \| (.*) \|$", page.read_text(), re.MULTILINE
    )
    assert [(each.name, each.looks_at, each.why) for each in checks()] == rows


def test_list(capfd: pytest.CaptureFixture[str]) -> None:
    """--list explains every check."""
    assert 0 == app.run(["doctor", "--list"])
    shown = capfd.readouterr().out
    for each in checks():
        assert f"{each.name}\n    {each.looks_at}\n    {each.why}\n" in shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--only", "audit.enabled"], 1),
        (["--only", "audit.enabled", "--fail-on", "serious"], 0),
        (["--only", "audit.enabled", "--fail-on", "never"], 0),
        (["--only", "audit.enabled", "--skip", "audit.enabled:TAPESEAL_*"], 0),
        (["--only", "environment"], 0),
        (["--only", "tape"], 3),
        (["--only", "nothing"], 2),
        (["--skip", "vault.nothing:x"], 2),
        (["--plan", "/nowhere"], 2),
        (["-k", "nothing:x"], 2),
        (["--fail-on", "nothing"], 2),
    ],
)
def test_exit_code(arguments: list[str], code: int) -> None:
    """The exit code says whether something was found, and whether anything could be looked at."""
    assert code == app.run(["doctor", *arguments])


def test_json(capfd: pytest.CaptureFixture[str]) -> None:
    """The JSON has everything, the worst first."""
    os.environ["VAULT_SKIP_VERIFY"] = "1"
    try:
        code = app.run(["doctor", "--only", "environment", "--only", "audit", "--json"])
    finally:
        del os.environ["VAULT_SKIP_VERIFY"]
    report = json.loads(capfd.readouterr().out)
    assert 1 == code == report["exit_code"]
    assert ["serious", "warning"] == [each["severity"] for each in report["findings"]]
    assert {"check", "severity", "subject", "found", "why", "fix", "command"} == set(
        report["findings"][0]
    )
    assert "environment.token" in report["looked_at"]
    assert {} == report["not_looked_at"]
    assert [] == report["not_asked"]


def test_report(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the report a fix stands in one line, however narrow the terminal, and what is foreign is printable."""
    monkeypatch.setenv("COLUMNS", "50")
    app.run(["doctor", "--only", "audit", "--package", __file__, "--only", "break-glass"])
    shown = capfd.readouterr().out
    command = "tapeseal audit create LOG -k KEYRING && export TAPESEAL_AUDIT=LOG"
    assert f"$ {command} TAPESEAL_AUDIT_KEYRING=KEYRING\n" in shown
    assert all(len(line) <= 50 for line in shown.splitlines() if "$" not in line)
    assert "0 serious, 2 warnings, 0 info, by 3 checks" in shown
    assert [] == [line for line in shown.splitlines() if line != line.rstrip()]


@pytest.mark.server
def test_no_secret_is_shown(as_root: Server, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither the token nor anything that Vault keeps is in the report."""
    as_root.admin.secrets.kv.v2.create_or_update_secret("x", {"k": "canary-of-the-doctor"})
    app.run(["doctor"])
    app.run(["doctor", "--json"])
    shown = "".join(capfd.readouterr())
    assert ROOT_TOKEN not in shown
    assert "canary-of-the-doctor" not in shown
    assert "it is a root token" in shown
