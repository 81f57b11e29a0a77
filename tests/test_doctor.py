"""`tapeseal doctor`: what is wrong with a real set-up is found, the fix it names mends it, and a sound one passes."""

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
from pathlib import Path
from typing import Any

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
    run(finding.fix.partition(", or ")[0])
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
    run(finding.fix)
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
    run(finding.fix.partition("then: ")[2])
    assert [] == found("vault.transit", subject="transit/keys/many")


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
    run(finding.fix)
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
    assert ("warning", "it is http://, to this machine itself") == (
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
        said = run(finding.fix.partition(";")[0])
        nonce = re.findall(r"Nonce +(\S+)", said)[0]
        run(f"bao operator rotate-keys -nonce={nonce} {single.unseal_key}")
        assert [] == found("vault.seal")


@pytest.mark.server
def test_pki(as_root: Server) -> None:
    """An authority and a certificate near their ends are found; where there is a successor, or a revocation, neither."""
    write(as_root, "pki/root/generate/internal", common_name="Old Root", ttl="700h")
    write(as_root, "pki/roles/desk", allow_any_name=True, max_ttl="690h", no_store=False)
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
    serial = finding.fix.split()[-1]
    write(as_root, "pki-long/issue/desk", **{**issue, "ttl": "3000h"})
    assert [] == found("vault.pki", soon, "pki-long: CN=desk")
    other = {"common_name": "other", "ttl": "1600h"}
    write(as_root, "pki-long/issue/desk", **other)
    finding = one("vault.pki", soon, "pki-long: CN=other")
    assert serial not in finding.fix
    assert 0 == app.run(shlex.split(finding.fix.partition("revoke it: ")[2])[1:])
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


def as_doctor(server: Server, policy: str, monkeypatch: pytest.MonkeyPatch) -> Report:
    """Look at a server under a policy alone."""
    server.policy("doctor", policy)
    token = server.make_token("doctor", ttl="10m", no_default_policy=True)
    monkeypatch.setenv("BAO_ADDR", server.address)
    monkeypatch.setenv("BAO_TOKEN", token)
    try:
        return examine(SetUp(), only=["vault"])
    finally:
        server.admin.auth.token.revoke(token)


def unseen(report: Report) -> list[Finding]:
    """Return the findings about what could not be looked at."""
    return [each for each in report.findings if "could not be looked at" in each.found]


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
    fixes = [each.fix for each in unseen(report) if each.subject == path]
    assert fixes
    (capabilities,) = {re.findall(r"\[(.*)\]", fix)[0] for fix in fixes}
    assert set(listed.split(", ")) == set(capabilities.split(", "))
    # What is said to be missing is all that is missing.
    added = as_doctor(furnished, f"{less}\n{fixes[0].partition(': ')[2]}", monkeypatch)
    assert [] == [each for each in unseen(added) if each.subject == path]
