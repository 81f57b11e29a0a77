"""Checks of rotations against real targets: what they take, what they refuse, and what cannot be asked."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rotations import check, credential
from servers.bao import Server, SingleServer, free_ports
from servers.certs import Authority
from servers.exchange import Exchange
from servers.fault_proxy import FaultProxy
from servers.sshd import Sshd, make_key, sshd_server
from support import leaks
from tapeseal.errors import RotationError, ServiceUnavailableError, VerificationError

if TYPE_CHECKING:
    from servers.postgres import Postgres

PASSWORD = "c4nary-0f-the-checks"


def port_of_nobody() -> int:
    """Return a port on which nothing listens."""
    return free_ports(1)


# PostgreSQL


def postgres_check(postgres: "Postgres", **settings: Any) -> Any:
    """Return a check of a cluster."""
    return check(
        "postgres",
        **{"host": postgres.host, "port": postgres.port, "sslmode": "disable", **settings},
    )


@pytest.fixture
def user(postgres: "Postgres") -> str:
    """A role of the cluster with the password."""
    name = f"check_{os.urandom(4).hex()}"
    postgres.make_role(name, PASSWORD)
    return name


@pytest.mark.server
def test_postgres(postgres: "Postgres", user: str) -> None:
    """A login is taken by the right password alone; the user may also be the plan's."""
    made = postgres_check(postgres)
    made.accepts(credential(username=user, password=PASSWORD))
    assert made.refuses(credential(username=user, password="wrong-password"))
    assert made.refuses(credential(username="nobody-at-all", password=PASSWORD))
    named = postgres_check(postgres, username=user)
    assert not named.refuses(credential(password=PASSWORD))
    with pytest.raises(VerificationError, match="password authentication failed") as caught:
        made.accepts(credential(username=user, password=PASSWORD + "!"))
    assert set() == leaks(caught.value, [PASSWORD])


@pytest.mark.server
def test_postgres_parts(postgres: "Postgres") -> None:
    """A credential that is no login is not tried."""
    with pytest.raises(VerificationError, match="needs the parts username and password, not key"):
        postgres_check(postgres).accepts(credential(key=PASSWORD))


def test_postgres_is_down() -> None:
    """A server that is not there has refused nobody."""
    made = check("postgres", host="127.0.0.1", port=port_of_nobody(), sslmode="disable")
    with pytest.raises(ServiceUnavailableError, match="Connection refused") as caught:
        made.refuses(credential(username="desk", password=PASSWORD))
    assert set() == leaks(caught.value, [PASSWORD])


def test_postgres_in_the_clear() -> None:
    """TLS is left out on this machine alone."""
    with pytest.raises(ValueError, match="sslmode is verify-full"):
        check("postgres", host="db.example", sslmode="disable")


@pytest.mark.server
def test_postgres_leaves_no_password(postgres: "Postgres", user: str) -> None:
    """After a login, the memory of this process holds no copy of the password outside of key memory."""
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from rotations import check
        from tapeseal._core import SecretBuffer
        from tapeseal.secret import Secret

        made = check("postgres", host="127.0.0.1", port=int(sys.argv[2]), sslmode="disable")
        # Read into key memory from a pipe, as from Vault.
        password = Secret(SecretBuffer.read(0, 64))
        with password:
            made.accepts({"username": Secret.take(bytearray(sys.argv[3].encode())), "password": password})
        print("done", flush=True)
        sys.stdin.close()
        import time
        time.sleep(60)
    """
    password = os.urandom(32).hex()
    postgres.execute(f"ALTER ROLE \"{user}\" PASSWORD '{password}'")
    assert_not_in_memory(code, password, str(Path(__file__).parent), postgres.port, user)


def assert_not_in_memory(code: str, secret: str, *arguments: object) -> None:
    """Run a program that reads a secret of 64 characters and prints "done"; fail if its memory then holds it."""
    import textwrap

    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(secret.encode())
            process.stdin.flush()
            assert b"done\n" == process.stdout.readline()
            found = memory_of(process.pid).find(secret[:24].encode())
        finally:
            process.kill()
    assert -1 == found


def memory_of(pid: int) -> bytes:
    """Return all that a process has in its memory and may write to."""
    pieces = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, permissions = line.split()[:2]
            if permissions.startswith("rw"):
                start, stop = (int(each, 16) for each in place.split("-"))
                memory.seek(start)
                try:
                    pieces.append(memory.read(stop - start))
                except OSError:
                    continue
    return b"".join(pieces)


def test_memory_shows_a_secret() -> None:
    """The search of a process's memory finds a secret that is in it."""
    code = "import sys, time; kept = sys.stdin.read(64); print('done', flush=True); time.sleep(60)"
    with pytest.raises(AssertionError):
        assert_not_in_memory(code, os.urandom(32).hex())


# HTTP


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """An exchange."""
    with Exchange(tmp_path_factory.mktemp("exchange")) as made:
        yield made


def http_check(exchange: Exchange, **settings: Any) -> Any:
    """Return a check of an exchange."""
    return check(
        "http",
        **{
            "url": f"{exchange.address}/orders",
            "header": "X-API-Key",
            "ca_file": exchange.ca_file,
            **settings,
        },
    )


def test_http(exchange: Exchange) -> None:
    """A key is taken while it is alive, over TLS that is checked."""
    key_id, key = exchange.issue("check")
    made = http_check(exchange)
    made.accepts(credential(key=key))
    assert not made.refuses(credential(key=key))
    del exchange.alive[key_id]
    assert made.refuses(credential(key=key))
    with pytest.raises(
        VerificationError, match=r"/orders refuses the credential \(401\)"
    ) as caught:
        made.accepts(credential(key=key))
    assert set() == leaks(caught.value, [key])


def test_http_prefix(exchange: Exchange) -> None:
    """What stands before the key in the header is the plan's."""
    settings = {"url": f"{exchange.address}/keys", "header": "Authorization", "prefix": "Bearer "}
    http_check(exchange, **settings).accepts(credential(key=exchange.admin_key))


@pytest.mark.parametrize(
    ("how", "problem"), [(503, "answers 503"), ("before", "ended before"), (429, "answers 429")]
)
def test_http_cannot_be_asked(exchange: Exchange, how: Any, problem: str) -> None:
    """An exchange that is out of service has refused nobody."""
    exchange.fail("GET /orders", how)
    with pytest.raises(ServiceUnavailableError, match=problem):
        http_check(exchange).refuses(credential(key=PASSWORD))


def test_http_of_somebody_else(exchange: Exchange, tmp_path: Path) -> None:
    """A key is not shown to a server with a certificate that is not trusted."""
    other = Authority(tmp_path).ca_file
    before = len(exchange.seen)
    with pytest.raises(ServiceUnavailableError, match="certificate verify failed") as caught:
        http_check(exchange, ca_file=other).accepts(credential(key=PASSWORD))
    assert set() == leaks(caught.value, [PASSWORD])
    assert before == len(exchange.seen)


@pytest.mark.parametrize("key", ["a\r\nX-Admin: yes", "a\nb", "a\0b"])
def test_http_header_of_two_lines(exchange: Exchange, key: str) -> None:
    """A key that would end its header is not sent."""
    before = len(exchange.seen)
    with pytest.raises(RotationError, match="cannot be in one") as caught:
        http_check(exchange).accepts(credential(key=key))
    assert set() == leaks(caught.value, [key])
    assert before == len(exchange.seen)


@pytest.mark.parametrize(
    "url", ["http://exchange.example/", "exchange.example", "ftp://x/", "https://a:b@c/"]
)
def test_http_url(exchange: Exchange, url: str) -> None:
    """A key goes over https alone."""
    with pytest.raises(ValueError, match="https://"):
        http_check(exchange, url=url)


def test_http_leaves_no_key(exchange: Exchange) -> None:
    """After a request, the memory of this process holds no copy of the key outside of key memory."""
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from rotations import check
        from tapeseal._core import SecretBuffer
        from tapeseal.secret import Secret

        made = check("http", url=sys.argv[2], header="X-API-Key", ca_file=sys.argv[3])
        with Secret(SecretBuffer.read(0, 64)) as key:
            assert made.refuses({"key": key})
        print("done", flush=True)
        import time
        time.sleep(60)
    """
    assert_not_in_memory(
        code,
        os.urandom(32).hex(),
        str(Path(__file__).parent),
        f"{exchange.address}/orders",
        exchange.ca_file,
    )


# Commands


@pytest.mark.parametrize(("code", "refused"), [(0, False), (1, True), (3, True)])
def test_exec(code: int, refused: bool) -> None:
    """What a command ends with is the answer; it gets the credential on its standard input."""
    program = f"import json, sys; assert json.load(sys.stdin) == {{'key': {PASSWORD!r}}}; sys.exit({code})"
    made = check("exec", command=[sys.executable, "-c", program])
    assert refused == made.refuses(credential(key=PASSWORD))
    if refused:
        with pytest.raises(VerificationError, match=f"ended with code {code}"):
            made.accepts(credential(key=PASSWORD))


@pytest.mark.parametrize("command", [["sh", "-c", "exit 75"], ["sh", "-c", "kill -9 $$"]])
def test_exec_does_not_know(command: list[str]) -> None:
    """A command that could not ask, or that dies, has refused nobody."""
    with pytest.raises(Exception, match=r"code 75|signal 9") as caught:
        check("exec", command=command).refuses(credential(key=PASSWORD))
    assert not isinstance(caught.value, VerificationError)


# SSH


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd."""
    with sshd_server(tmp_path_factory.mktemp("sshd")) as made:
        yield made


def ssh_check(sshd: Sshd, host_key: str | None = None, **settings: Any) -> Any:
    """Return a check of an sshd."""
    known_hosts = sshd.directory / "known_hosts_of_checks"
    public = host_key or sshd.host_key.with_name("host_key.pub").read_text()
    known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {public}")
    return check(
        "ssh",
        **{
            "host": "127.0.0.1",
            "port": sshd.port,
            "user": sshd.user,
            "known_hosts": str(known_hosts),
            **settings,
        },
    )


@pytest.mark.server
def test_ssh(sshd: Sshd, tmp_path: Path) -> None:
    """A key is taken while it is authorized; no file ever holds its private half."""
    public = make_key(tmp_path / "key")
    parts = credential(private_key=(tmp_path / "key").read_text(), public_key=public)
    sshd.authorized_keys.write_text(public)
    ssh_check(sshd).accepts(parts)
    sshd.authorized_keys.write_text("")
    with pytest.raises(VerificationError, match="Permission denied") as caught:
        ssh_check(sshd).accepts(parts)
    assert set() == leaks(caught.value, [(tmp_path / "key").read_text()[100:140]])
    assert ssh_check(sshd).refuses(parts)
    sshd.authorized_keys.write_text(public)
    with pytest.raises(VerificationError, match=r"false|code 1"):
        ssh_check(sshd, command="false").accepts(parts)


@pytest.mark.server
def test_ssh_to_another_host(sshd: Sshd, tmp_path: Path) -> None:
    """A host whose key is not the known one has refused nobody."""
    other = make_key(tmp_path / "other")
    public = make_key(tmp_path / "key")
    parts = credential(private_key=(tmp_path / "key").read_text(), public_key=public)
    with pytest.raises(ServiceUnavailableError, match="Host key verification failed"):
        ssh_check(sshd, host_key=other).refuses(parts)


@pytest.mark.server
def test_ssh_without_key(sshd: Sshd) -> None:
    """What is no private key is not tried."""
    with pytest.raises(VerificationError, match="the private key is none") as caught:
        ssh_check(sshd).accepts(credential(private_key=PASSWORD))
    assert set() == leaks(caught.value, [PASSWORD])


# TLS


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """The port of a server that shows tls/server.pem, whatever that is at the time."""
    import socket
    import ssl

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(
                tmp_path / "tls" / "server.pem", tmp_path / "tls" / "server.key"
            )
            try:
                context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_tls_server(tmp_path: Path, tls_port: int) -> None:
    """A server shows the new certificate, or another: then it refuses it."""
    authority = Authority(tmp_path / "tls")
    authority.issue_server()

    def issued() -> Any:
        return credential(
            certificate=(tmp_path / "tls" / "server.pem").read_text(),
            private_key=(tmp_path / "tls" / "server.key").read_text(),
        )

    old = issued()
    made = check(
        "tls", host="127.0.0.1", port=tls_port, server_name="localhost", ca_file=authority.ca_file
    )
    made.accepts(old)
    assert not made.refuses(old)
    authority.issue_server()
    assert made.refuses(old)
    with pytest.raises(VerificationError, match=r"shows the certificate .* not the new one"):
        made.accepts(old)
    made.accepts(issued())


def test_tls_server_is_not_trusted(tmp_path: Path, tls_port: int) -> None:
    """A server that nobody would trust does not take its new certificate."""
    Authority(tmp_path / "tls").issue_server()
    parts = credential(
        certificate=(tmp_path / "tls" / "server.pem").read_text(), private_key=PASSWORD
    )
    made = check("tls", host="127.0.0.1", port=tls_port, ca_file=Authority(tmp_path / "o").ca_file)
    with pytest.raises(VerificationError, match="not trusted"):
        made.accepts(parts)


def test_tls_cannot_be_asked(tmp_path: Path) -> None:
    """A server that is not there has refused nobody."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue_server()
    parts = credential(certificate=Path(certificate).read_text(), private_key=Path(key).read_text())
    for role in ("server", "client"):
        made = check(
            "tls", host="127.0.0.1", port=port_of_nobody(), role=role, ca_file=authority.ca_file
        )
        with pytest.raises(ServiceUnavailableError, match="Connection refused"):
            made.refuses(parts)


# Vault


@pytest.mark.server
def test_vault(bao_tls: SingleServer) -> None:
    """A secret id is taken while it is there; the token of the check is revoked."""
    mount = f"check-{os.urandom(4).hex()}"
    bao_tls.admin.sys.enable_auth_method("approle", path=mount)
    post, role = bao_tls.admin.adapter.post, f"/v1/auth/{mount}/role/desk"
    post(role, json={"token_policies": ["default"]})
    parts = {
        "role_id": bao_tls.admin.adapter.get(f"{role}/role-id")["data"]["role_id"],
        "secret_id": post(f"{role}/secret-id")["data"]["secret_id"],
    }
    tokens = len(accessors(bao_tls))
    made = check("vault", address=bao_tls.address, ca_file=bao_tls.ca_file, auth_mount=mount)
    made.accepts(credential(**parts))
    assert not made.refuses(credential(**parts))
    assert tokens == len(accessors(bao_tls))
    post(f"{role}/secret-id/destroy", json={"secret_id": parts["secret_id"]})
    assert made.refuses(credential(**parts))
    with pytest.raises(VerificationError, match=r"login refuses the credential \(400\)") as caught:
        made.accepts(credential(**parts))
    assert set() == leaks(caught.value, [parts["secret_id"]])


def accessors(server: Server) -> list[str]:
    """Return the accessors of all tokens."""
    found: list[str] = server.admin.adapter.list("/v1/auth/token/accessors")["data"]["keys"]
    return found


@pytest.mark.server
def test_vault_is_sealed(bao: Server) -> None:
    """A Vault that is sealed has refused nobody."""
    with FaultProxy(bao.address) as proxy:
        proxy.fault("login", status=503, body={"errors": ["Vault is sealed"]})
        with pytest.raises(ServiceUnavailableError, match="answers 503"):
            check("vault", address=proxy.address).refuses(
                credential(role_id="role", secret_id=PASSWORD)
            )
