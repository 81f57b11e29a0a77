"""The transport: what it takes from hostile and broken servers, what the libraries see, where secrets stand."""

import base64
import hashlib
import json
import os
import re
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tapeseal
from servers.certs import Authority
from support import leaks
from tapeseal._core import SecretBuffer
from tapeseal.errors import ServiceUnavailableError
from tapeseal.transport import PLACEHOLDER, PLACEHOLDER_TEXT, Exchange, wire
from tapeseal.transport.scanner import in_string, redact

boto3 = pytest.importorskip("boto3")
hvac = pytest.importorskip("hvac")
import botocore.exceptions  # noqa: E402
import requests  # noqa: E402
from botocore.auth import SigV4Auth  # noqa: E402
from botocore.awsrequest import AWSRequest  # noqa: E402
from botocore.config import Config  # noqa: E402
from botocore.credentials import Credentials  # noqa: E402

from tapeseal.transport.aws import protect_boto3  # noqa: E402
from tapeseal.transport.vault import SecretAdapter, SecretSender  # noqa: E402
from tapeseal.vault.connection import diagnose  # noqa: E402

if TYPE_CHECKING:
    from servers.bao import SingleServer
    from servers.kms import KmsServer

SESSION = boto3.session.Session()  # which keeps what it read of a service

KEY = bytes(range(200, 232))  # with + and / in its base64
KEY_TEXT = base64.b64encode(KEY).decode()
KEY_ARN = "arn:aws:kms:us-east-1:123456789012:key/1"
TOKEN = "hvs.token-of-the-test"
DATA_KEY = json.dumps({"CiphertextBlob": "d3JhcHBlZA==", "KeyId": KEY_ARN, "Plaintext": KEY_TEXT})
TRANSIT = json.dumps({"data": {"ciphertext": "vault:v1:eA==", "plaintext": KEY_TEXT}})


def secret(content: bytes) -> SecretBuffer:
    return SecretBuffer.take(bytearray(content))


def content(buffer: SecretBuffer) -> bytes:
    with buffer, memoryview(buffer) as view:
        return bytes(view)


def answer(body: str | bytes, status: str = "200 OK", *headers: str) -> bytes:
    """Return an HTTP answer."""
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(body: str, size: int, *trailers: str) -> bytes:
    """Return an HTTP answer in chunks of a size."""
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    text = "".join(f"{len(chunk):x};a=b\r\n{chunk}\r\n" for chunk in chunks)
    lines = ["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "", text + "0", *trailers, "", ""]
    return "\r\n".join(lines).encode()


Handler = Callable[[socket.socket], object]


class Service:
    """A server on loopback that answers as a test says.

    An answer of bytes is sent; a callable gets the connection, which ends afterwards.

    Attributes:
        requests: head and body of each.
        connections: how many there were.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.answers: list[bytes | Handler] = []
        self.default: bytes | Handler = answer(DATA_KEY)
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join()

    def respond(self, head: bytes, body: bytes) -> bytes | Handler:
        """Return the next answer."""
        return self.answers.pop(0) if self.answers else self.default

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self._open.append(connection)
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=[connection])
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            with connection, connection.makefile("rb") as stream:
                while first := stream.readline():
                    head = first + b"".join(iter(lambda: stream.readline() or b"\r\n", b"\r\n"))
                    size = re.search(rb"(?i)^content-length: *([0-9]+)", head, re.MULTILINE)
                    self.requests.append((head, stream.read(int(size[1]) if size else 0)))
                    reply = self.respond(*self.requests[-1])
                    if not isinstance(reply, bytes):
                        reply(connection)
                        return
                    connection.sendall(reply)
        except OSError:
            pass
        finally:
            connection.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def server_tls(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue_server())
    return context


@pytest.fixture
def service(server_tls: ssl.SSLContext) -> Iterator[Service]:
    made = Service(server_tls)
    yield made
    wire._pool.clear()
    made.close()


def kms_client(url: str, ca_file: str | bool, **config: Any) -> Any:
    """Return a protected KMS client."""
    options = {"connect_timeout": 5, "read_timeout": 5, "retries": {"total_max_attempts": 1}}
    client = SESSION.client(
        "kms",
        region_name="us-east-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret of the test",
        endpoint_url=url,
        verify=ca_file,
        config=Config(**{**options, **config}),
    )
    protect_boto3(client)
    return client


def vault_client(url: str, ca_file: str | None, **options: Any) -> Any:
    """Return an hvac client over SecretAdapter."""
    options = {"timeout": 5, "token": TOKEN, "adapter": SecretAdapter, **options}
    return hvac.Client(url, verify=ca_file or True, **options)


@pytest.fixture
def kms_of(service: Service, authority: Authority) -> Any:
    return kms_client(service.url, authority.ca_file)


@pytest.fixture
def vault_of(service: Service, authority: Authority) -> Any:
    service.default = answer(TRANSIT, "200 OK", "Content-Type: application/json")
    client = vault_client(service.url, authority.ca_file)
    yield client
    client.adapter.close()


def generate(client: Any) -> bytes:
    """Return the secret of a KMS answer; the answer itself must not have it."""
    with Exchange() as exchange:
        reply = client.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
        assert reply["Plaintext"] == PLACEHOLDER
        assert reply["CiphertextBlob"] == b"wrapped"
        taken = exchange.take("Plaintext")
    with taken:
        return content(taken)


def data_key(client: Any) -> bytes:
    """Return the secret of a Transit answer; the answer itself must not have it."""
    with Exchange() as exchange:
        reply = client.secrets.transit.generate_data_key("orders", "plaintext")
        assert reply["data"]["plaintext"] == PLACEHOLDER_TEXT
        taken = exchange.take("plaintext")
    with taken:
        return content(taken)


# The answers


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_chunked_answers(service: Service, kms_of: Any, size: int) -> None:
    """A chunked answer is put together, its extensions and trailers are ignored, and the connection is used again."""
    service.answers = [chunked(DATA_KEY, size, "Trailer: 1"), chunked(DATA_KEY, size)]
    assert generate(kms_of) == KEY
    assert generate(kms_of) == KEY
    assert service.connections == 1


def test_answer_byte_by_byte(service: Service, kms_of: Any) -> None:
    """Where the network cuts an answer makes no difference."""

    def trickle(connection: socket.socket) -> None:
        for byte in chunked(DATA_KEY, 50):
            connection.sendall(bytes([byte]))

    service.answers = [trickle]
    assert generate(kms_of) == KEY


def test_answer_to_the_end_of_the_connection(service: Service, kms_of: Any) -> None:
    """An answer without a length ends with its connection, and counts if it is whole JSON."""
    old = b"HTTP/1.0 200 OK\r\n\r\n" + DATA_KEY.encode()
    service.answers = [lambda connection: connection.sendall(old)]
    assert generate(kms_of) == KEY
    service.answers = [lambda connection: connection.sendall(old[:-1])]
    with pytest.raises(botocore.exceptions.HTTPClientError, match="no JSON"):
        generate(kms_of)


def test_informational_answers_are_passed_over(service: Service, kms_of: Any) -> None:
    """Answers of kind 1xx come before the one that counts."""
    service.answers = [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(DATA_KEY)]
    assert generate(kms_of) == KEY


HOSTILE = {
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a folded header": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a header without a name": b"HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 0\r\n\r\n",
    "a NUL": b"HTTP/1.1 200 OK\r\nA: \0\r\nContent-Length: 0\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "two lengths": answer(DATA_KEY, "200 OK", "Content-Length: 3"),
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}",
    "length and chunks": answer(DATA_KEY, "200 OK", "Transfer-Encoding: chunked"),
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "compressed": answer(b"x", "200 OK", "Content-Encoding: gzip"),
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n",
    "a huge chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nx",
    "a chunk that lies": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "a long chunk line": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 2000,
    "a long head": b"HTTP/1.1 200 OK\r\nA: " + b"a" * 70_000,
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    "a long body": b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n",
    "a body without end": b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 70_000,
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "hints for ever": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10,
    "no JSON": answer("<html>"),
    "an array": answer("[]"),
    "a cut body": answer(DATA_KEY[:-20]),
    "a repeated member": answer('{"Plaintext": "AAAA", "Plaintext": "AAAA"}'),
    "a repeated name": answer('{"a": 1, "a": 2}'),
    "two secrets": answer('{"Plaintext": "AAAA", "plaintext": "AAAA"}'),
    "a secret deeper": answer('{"a": {"Plaintext": "AAAA"}}'),
    "a secret that is an array": answer('{"Plaintext": ["AAAA"]}'),
    "a name in disguise": answer('{"a": [{"Pl\\u0061intext": "AAAA"}]}'),
    "deep nesting": answer("[" * 60_000),
    "another encoding": answer(DATA_KEY.encode("utf-16")),
    "bytes that are no text": answer(b'{"a": "\xff"}'),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_are_refused(service: Service, kms_of: Any, hostile: bytes) -> None:
    """What is not an HTTP answer of a JSON object with at most one secret is refused, and the next call works."""
    service.answers = [lambda connection: connection.sendall(hostile)]
    with pytest.raises(botocore.exceptions.HTTPClientError) as caught:
        generate(kms_of)
    shown = "".join(traceback.format_exception(caught.value))
    assert "AAAA" not in shown
    assert KEY_TEXT[:20] not in shown
    assert generate(kms_of) == KEY


def rst(connection: socket.socket) -> None:
    """Reset a connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def cut(length: int, *, reset: bool = False) -> Handler:
    """Return a handler that ends the connection within the answer."""

    def handler(connection: socket.socket) -> None:
        connection.sendall(answer(DATA_KEY)[:length])
        if reset:
            rst(connection)

    return handler


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("length", [0, 1, 30, 100])
def test_cut_answers(service: Service, kms_of: Any, length: int, reset: bool) -> None:
    """A connection that ends before its answer does is botocore's ConnectionClosedError."""
    service.answers = [cut(length, reset=reset)]
    with pytest.raises(botocore.exceptions.ConnectionClosedError):
        generate(kms_of)


def test_the_librarys_retries_go_on(
    service: Service, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut answer, a refused one, a throttled call and an error of the server are tried again by botocore."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the attempts
    retries = {"total_max_attempts": 5, "mode": "standard"}
    client = kms_client(service.url, authority.ca_file, retries=retries)
    throttled = '{"__type": "ThrottlingException", "message": "slow down"}'
    service.answers = [
        cut(100),
        answer("<html>"),
        answer(throttled, "400 Bad Request"),
        answer("", "500 Internal Server Error"),
    ]
    assert generate(client) == KEY
    assert len(service.requests) == 5


def test_no_secret_of_an_earlier_attempt_is_left(service: Service, kms_of: Any) -> None:
    """The secret is the last answer's, or there is none: it must belong to the other fields."""
    with Exchange() as exchange:
        kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
        service.answers = [answer('{"CiphertextBlob": "b3RoZXI="}')]
        kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
        with pytest.raises(ServiceUnavailableError, match="holds no Plaintext"):
            exchange.take("Plaintext")


@pytest.mark.parametrize(
    "value", ['""', "null", '"AAA"', '"AA=="\n', '"AB=="', '"AA A"', '"AAAA\\n"', '"AA\\u00e9A"']
)
def test_secrets_that_are_none(service: Service, kms_of: Any, value: str) -> None:
    """A secret that is empty, null or not canonical base64 is as good as absent."""
    service.answers = [answer(f'{{"Plaintext": {value}}}')]
    ok = value.startswith('"AA=="')
    with Exchange() as exchange:
        kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
        if ok:
            exchange.take("Plaintext").close()
        with pytest.raises(ServiceUnavailableError, match="holds no Plaintext"):
            exchange.take("Plaintext")


def test_errors_are_the_librarys(service: Service, kms_of: Any) -> None:
    """An error's status and message arrive, and a secret in it does not."""
    body = {"__type": "DisabledException", "message": "it is off", "Plaintext": KEY_TEXT}
    service.answers = [answer(json.dumps(body), "400 Bad Request", "x-amzn-RequestId: 7")]
    with Exchange(), pytest.raises(kms_of.exceptions.DisabledException, match="it is off") as error:
        kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
    assert error.value.response["ResponseMetadata"]["RequestId"] == "7"
    assert KEY_TEXT not in repr(error.value.response)


@pytest.mark.parametrize("body", ["<html>" + "secret " * 10, "x" * 70_000], ids=["page", "long"])
def test_pages_of_proxies_are_left_out(service: Service, kms_of: Any, body: str) -> None:
    """An error whose body is no JSON, or too long, keeps its status alone."""
    service.answers = [answer(body, "403 Forbidden")]
    with Exchange(), pytest.raises(botocore.exceptions.ClientError, match="left out") as error:
        kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert "secret" not in str(error.value)


# Times and connections


def test_read_timeout_is_for_the_whole_answer(service: Service, authority: Authority) -> None:
    """A server that sends a byte now and then does not hold a call for longer than read_timeout."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        for byte in answer(DATA_KEY):
            connection.sendall(bytes([byte]))
            if stop.wait(0.1):
                return

    client = kms_client(service.url, authority.ca_file, read_timeout=0.5)
    service.answers = [drip]
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        generate(client)
    stop.set()
    assert generate(client) == KEY


def test_deadline(service: Service, kms_of: Any) -> None:
    """The deadline of an Exchange ends a wait that the library's own timeouts would not."""
    release = threading.Event()
    service.answers = [lambda connection: release.wait(30)]
    with (
        pytest.raises(botocore.exceptions.ReadTimeoutError),
        Exchange(deadline=time.monotonic() + 0.3),
    ):
        kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
    with (
        pytest.raises(botocore.exceptions.ConnectTimeoutError),
        Exchange(deadline=time.monotonic()),
    ):
        kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
    release.set()


def test_connect_timeout(authority: Authority) -> None:
    """A server that never speaks TLS is botocore's ConnectTimeoutError."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        client = kms_client(url, authority.ca_file, connect_timeout=0.3)
        with pytest.raises(botocore.exceptions.ConnectTimeoutError):
            generate(client)
    with pytest.raises(botocore.exceptions.EndpointConnectionError):
        generate(client)


def test_connections_are_kept(service: Service, kms_of: Any, vault_of: Any) -> None:
    """Calls one after the other take one connection, whoever makes them."""
    service.answers = [answer(DATA_KEY)] * 3
    for _ in range(3):
        assert generate(kms_of) == KEY
    assert service.connections == 1


@pytest.mark.parametrize("header", ["Connection: close", "Connection: Keep-Alive, Close"])
def test_connections_that_close_are_not_kept(service: Service, kms_of: Any, header: str) -> None:
    """A server that says close is not asked again on that connection."""
    service.answers = [answer(DATA_KEY, "200 OK", header)] * 2
    assert generate(kms_of) == KEY
    assert generate(kms_of) == KEY
    assert service.connections == 2


def test_bytes_that_nobody_asked_for_end_a_connection(service: Service, kms_of: Any) -> None:
    """What follows an answer is never taken for the next one."""
    service.answers = [answer(DATA_KEY) + answer('{"CiphertextBlob": "Zm9yZ2Vk"}')]
    assert generate(kms_of) == KEY
    assert generate(kms_of) == KEY
    assert service.connections == 2


def test_kept_connection_that_was_closed(service: Service, kms_of: Any) -> None:
    """A server that closes a kept connection, at once or when the next request comes, costs no failed call."""

    def then_close(connection: socket.socket) -> None:
        connection.sendall(answer(DATA_KEY))

    service.answers = [then_close]
    assert generate(kms_of) == KEY
    service.answers = [answer(DATA_KEY), cut(0), answer(DATA_KEY), cut(0, reset=True)]
    assert generate(kms_of) == KEY
    assert generate(kms_of) == KEY
    assert generate(kms_of) == KEY
    assert len(service.requests) == 6


def test_old_connections_are_closed(
    service: Service, kms_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was not used for IDLE_SECONDS is not used again."""
    assert generate(kms_of) == KEY
    monkeypatch.setattr(wire, "IDLE_SECONDS", 0)
    assert generate(kms_of) == KEY
    assert service.connections == 2
    assert wire._pool._kept == {}


def echo(head: bytes, body: bytes) -> bytes:
    """Answer a request with the plaintext that it holds."""
    return answer(json.dumps({"Plaintext": json.loads(body)["Plaintext"]}))


def test_threads_share_a_client(service: Service, kms_of: Any) -> None:
    """Eight threads with a client in common each get the secret of their own call, and nobody else's."""

    def call(number: bytes) -> bytes:
        with secret(number) as sent, Exchange(send=sent) as exchange:
            kms_of.encrypt(KeyId=KEY_ARN, Plaintext=PLACEHOLDER)
            with exchange.take("Plaintext") as taken:
                return content(taken)

    service.respond = echo  # type: ignore[method-assign]
    numbers = [struct.pack("<Q", number) * 4 for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert numbers == list(pool.map(call, numbers))
    assert service.connections <= 8


def test_forks_share_no_connection(service: Service, kms_of: Any) -> None:
    """A child makes its own connection, and the parent's goes on."""
    assert generate(kms_of) == KEY
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if generate(kms_of) == KEY and not wire._pool._lock.locked() else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert generate(kms_of) == KEY
    assert service.connections == 2


def test_fork_within_an_exchange(service: Service, kms_of: Any) -> None:
    """A child cannot send its parent's secret."""
    with secret(KEY) as sent, Exchange(send=sent):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                kms_of.encrypt(KeyId=KEY_ARN, Plaintext=PLACEHOLDER)
            except tapeseal.ForkError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        kms_of.encrypt(KeyId=KEY_ARN, Plaintext=PLACEHOLDER)
    assert len(service.requests) == 1


# TLS


def test_untrusted_certificates(service: Service, tmp_path: Path) -> None:
    """A server under another authority, a missing bundle and a certificate for another name are refused."""
    other = Authority(tmp_path / "other").ca_file
    with pytest.raises(botocore.exceptions.SSLError, match="certificate verify failed"):
        generate(kms_client(service.url, other))
    with pytest.raises(botocore.exceptions.SSLError, match="file cannot be used"):
        generate(kms_client(service.url, str(tmp_path / "none.pem")))
    with pytest.raises(requests.exceptions.SSLError, match="certificate verify failed") as error:
        data_key(vault_client(service.url, other))
    assert isinstance(error.value.args[0].__cause__, ssl.SSLCertVerificationError)
    assert service.requests == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bundle_that_cannot_be_read(
    service: Service, tmp_path: Path, content: str | None
) -> None:
    """It is named, and known that nothing was sent, so that nothing counts as done perhaps."""
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(requests.exceptions.SSLError) as error:
        data_key(vault_client(service.url, str(bundle)))
    failure = diagnose(error.value)
    assert failure is not None
    assert failure.reason.startswith("was not asked: a certificate's file cannot be used: ")
    assert content is not None or str(bundle) in failure.reason
    assert (True, True) == (failure.harmless, failure.hopeless)
    assert service.requests == []


def test_certificate_of_another_name(service: Service, authority: Authority) -> None:
    """The certificate must be for the host of the address."""
    route = wire.Route(wire.tls_context(authority.ca_file, None), server_name="127.0.0.2")
    with Exchange() as exchange, pytest.raises(wire.WireError, match="IP address") as error:
        exchange.attempt("GET", service.url, {}, None, route)
    assert error.value.kind == "tls"


def test_verification_turned_off_by_the_library(service: Service) -> None:
    """verify=False means here what it means in boto3."""
    assert generate(kms_client(service.url, False)) == KEY


@pytest.mark.parametrize("library", ["boto3", "hvac"])
def test_client_certificates(authority: Authority, library: str) -> None:
    """The library's client certificate is shown to the server; without one it refuses."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue_server())
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    service = Service(context)
    certificate = authority.issue_client("trader")
    try:
        if library == "boto3":
            assert (
                generate(kms_client(service.url, authority.ca_file, client_cert=certificate)) == KEY
            )
            with pytest.raises(botocore.exceptions.BotoCoreError):
                generate(kms_client(service.url, authority.ca_file))
        else:
            service.default = answer(TRANSIT)
            with hvac_closing(
                vault_client(service.url, authority.ca_file, cert=certificate)
            ) as client:
                assert data_key(client) == KEY
            with (
                hvac_closing(vault_client(service.url, authority.ca_file)) as client,
                pytest.raises(requests.ConnectionError),
            ):
                data_key(client)
    finally:
        wire._pool.clear()
        service.close()


@contextmanager
def hvac_closing(client: Any) -> Iterator[Any]:
    try:
        yield client
    finally:
        client.adapter.close()


def test_tls_context_wipes_its_buffers_and_follows_renewed_files(
    service: Service, authority: Authority, tmp_path: Path, kms_of: Any
) -> None:
    """OpenSSL is told to wipe plaintext; a context is made anew when a file of it changes."""
    generate(kms_of)
    context = wire.tls_context(authority.ca_file, None)
    assert context.options & wire.OP_CLEANSE_PLAINTEXT
    assert wire.tls_context(authority.ca_file, None) is context
    copy = tmp_path / "ca.pem"
    copy.write_bytes(Path(authority.ca_file).read_bytes())
    first = wire.tls_context(str(copy), None)
    os.utime(copy, (1, 1))
    assert wire.tls_context(str(copy), None) is not first


# Proxies


@contextmanager
def proxy(reply: bytes, upstream: str) -> Iterator[tuple[str, list[bytes]]]:
    """Run an HTTP proxy for one CONNECT, and yield its address and what it was asked."""
    asked: list[bytes] = []
    port = int(upstream.rpartition(":")[2])

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                piece = connection.recv(1)
                if not piece:
                    return
                head += piece
            asked.append(head)
            connection.sendall(reply)
            if b" 200 " not in reply:
                return
            with socket.create_connection(("127.0.0.1", port)) as server:
                pairs = {connection: server, server: connection}
                while pairs:
                    for ready in select.select(list(pairs), [], [])[0]:
                        data = ready.recv(65536)
                        if not data:
                            return
                        pairs[ready].sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", asked
        finally:
            wire._pool.clear()
            thread.join()


def test_proxies_are_passed_by_connect(service: Service, authority: Authority) -> None:
    """A proxy sees the address and its own password, and neither key nor token."""
    with proxy(b"HTTP/1.1 200 Connection established\r\n\r\n", service.url) as (address, asked):
        client = kms_client(
            service.url, authority.ca_file, proxies={"https": f"http://me:pass%20word@{address}"}
        )
        assert generate(client) == KEY
    host = service.url.removeprefix("https://")
    login = base64.b64encode(b"me:pass word").decode()
    assert asked == [
        f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n"
        f"Proxy-Authorization: Basic {login}\r\n\r\n".encode()
    ]


@pytest.mark.parametrize("reply", [b"HTTP/1.1 407 Who are you\r\n\r\n", b"no\r\n\r\n", b""])
def test_proxies_that_refuse(service: Service, authority: Authority, reply: bytes) -> None:
    """A proxy's refusal is the library's ProxyError, without the password in its URL."""
    with proxy(reply, service.url) as (address, _):
        client = kms_client(
            service.url, authority.ca_file, proxies={"https": f"http://me:hush@{address}"}
        )
        with pytest.raises(botocore.exceptions.ProxyConnectionError) as error:
            generate(client)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("kind", ["https://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_other_proxies_are_refused(service: Service, authority: Authority, kind: str) -> None:
    """A proxy of another kind is named as the problem."""
    with (
        hvac_closing(
            vault_client(service.url, authority.ca_file, proxies={"https": kind})
        ) as client,
        pytest.raises(requests.exceptions.ProxyError, match="http:// proxy only"),
    ):
        data_key(client)


# Requests that carry a secret


def verify_signature(head: bytes, body: bytes, url: str) -> bool:
    """Tell whether a request's signature is that of its body, by botocore's signer."""
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if line)
    headers = {name.lower(): value for name, value in headers.items()}
    signed = re.search(r"SignedHeaders=([^,]+), Signature=([0-9a-f]{64})", headers["authorization"])
    assert signed is not None
    request = AWSRequest("POST", url + first.split(" ")[1], data=body)
    headers["x-amz-content-sha256"] = hashlib.sha256(body).hexdigest()
    for name in signed[1].split(";"):
        request.headers[name] = headers[name]
    signer = SigV4Auth(Credentials("AKIDEXAMPLE", "secret of the test"), "kms", "us-east-1")
    request.context["timestamp"] = headers["x-amz-date"]
    canonical = signer.canonical_request(request)
    return signer.signature(signer.string_to_sign(request, canonical), request) == signed[2]


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 3000])
def test_kms_requests_are_signed_for_their_true_body(
    service: Service, kms_of: Any, size: int
) -> None:
    """The server gets the secret, under a signature and a length that fit it."""
    sent = os.urandom(size)
    service.default = answer('{"CiphertextBlob": "eA=="}')
    with secret(sent) as plaintext, Exchange(send=plaintext):
        kms_of.encrypt(KeyId=KEY_ARN, Plaintext=PLACEHOLDER, EncryptionContext={"desk": "eq-us"})
        assert content(plaintext) == sent
    head, body = service.requests[0]
    expected = {
        "KeyId": KEY_ARN,
        "Plaintext": base64.b64encode(sent).decode(),
        "EncryptionContext": {"desk": "eq-us"},
    }
    assert expected == json.loads(body)
    assert verify_signature(head, body, service.url)
    blank = body.replace(base64.b64encode(sent), PLACEHOLDER_TEXT.encode())
    assert not verify_signature(head, blank, service.url)


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_secret_that_was_never_sent(service: Service, authority: Authority) -> None:
    """A client that is not protected sends the placeholder, and the Exchange says so."""
    service.default = answer('{"CiphertextBlob": "eA=="}')
    client = SESSION.client(
        "kms",
        region_name="us-east-1",
        endpoint_url=service.url,
        verify=authority.ca_file,
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    with (
        pytest.raises(RuntimeError, match="was never sent"),
        secret(KEY) as plaintext,
        Exchange(send=plaintext),
    ):
        client.encrypt(KeyId=KEY_ARN, Plaintext=PLACEHOLDER)


def test_errors_that_echo_the_secret(service: Service, kms_of: Any) -> None:
    """An error's text that repeats what was sent has it left out."""
    service.answers = [answer(json.dumps({"message": f"what is {KEY_TEXT}?"}), "400 Bad Request")]
    with (
        pytest.raises(botocore.exceptions.ClientError, match=r"what is \.\.\.\?"),
        secret(KEY) as plaintext,
        Exchange(send=plaintext),
    ):
        kms_of.encrypt(KeyId=KEY_ARN, Plaintext=PLACEHOLDER)


# hvac


def test_vault_headers_and_body(service: Service, vault_of: Any) -> None:
    """Token, namespace and other headers go out as hvac has them, and those of the answer come back."""
    service.default = answer(
        '{"data": {"ciphertext": "x"}}', "200 OK", "X-Vault-Index: 7", "Set-Cookie: a=b"
    )
    vault_of.adapter.namespace = "team"
    with secret(KEY) as plaintext, Exchange(send=plaintext):
        reply = vault_of.adapter.post(
            "/v1/transit/encrypt/orders",
            json={"plaintext": PLACEHOLDER_TEXT},
            headers={"X-Vault-Index": "6"},
        )
    assert reply == {"data": {"ciphertext": "x"}}
    head, body = service.requests[0]
    assert json.loads(body) == {"plaintext": KEY_TEXT}
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /v1/transit/encrypt/orders http/1.1"
    for line in (
        f"x-vault-token: {TOKEN}",
        "x-vault-namespace: team",
        "x-vault-index: 6",
        "x-vault-request: true",
        "accept-encoding: identity",
        f"content-length: {len(body)}",
        f"host: {service.url.removeprefix('https://')}",
    ):
        assert lines.count(line) == 1


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "InvalidRequest"),
        (403, "Forbidden"),
        (404, "InvalidPath"),
        (412, "UnexpectedError"),
        (429, "RateLimitExceeded"),
        (503, "VaultDown"),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_hvac_errors(service: Service, vault_of: Any, status: int, name: str, inside: bool) -> None:
    """hvac's exceptions have the errors of the answer and its status, and no secret of it."""
    document = {
        "errors": ["it is\0 " + "long " * 200],
        "data": {"batch_results": [{"plaintext": KEY_TEXT}, {"plaintext": KEY_TEXT}]},
    }
    service.default = answer(json.dumps(document), f"{status} X", "Content-Type: application/json")
    with (
        pytest.raises(getattr(hvac.exceptions, name), match=r"it is\? long") as error,
        Exchange() if inside else nothing(),
    ):
        vault_of.secrets.transit.decrypt_data("orders", batch_input=[{"ciphertext": "x"}])
    assert error.value.status == status
    assert len(str(error.value)) < 700
    assert KEY_TEXT not in repr(vars(error.value)) + repr(error.value.args)


@pytest.mark.parametrize("inside", [True, False])
def test_hvac_errors_without_a_list(service: Service, vault_of: Any, inside: bool) -> None:
    """An error without a list of errors, as hvac raises it, holds nothing of the body."""
    for body in ("<html>secret", '{"data": {"plaintext": "c2VjcmV0"}}', '{"errors": "secret"}'):
        service.default = answer(body, "400 Bad Request", "Content-Type: application/json")
        with (
            pytest.raises(hvac.exceptions.InvalidRequest) as error,
            Exchange() if inside else nothing(),
        ):
            vault_of.secrets.transit.read_key("orders")
        assert "secret" not in str(error.value)
        assert "c2VjcmV0" not in repr(vars(error.value))


@pytest.mark.parametrize("inside", [True, False])
def test_redirects(
    service: Service, server_tls: ssl.SSLContext, vault_of: Any, inside: bool
) -> None:
    """A redirect to the same address is followed with body and token; any other is refused, and nothing goes there."""
    other = Service(server_tls)
    try:
        with secret(KEY) as plaintext:
            for location in ("/v1/x", service.url + "/v1/x"):
                service.answers = [answer("", "307 X", f"Location: {location}")]
                if inside:
                    with Exchange(send=plaintext):
                        vault_of.adapter.post("/v1/y", json={"plaintext": PLACEHOLDER_TEXT})
                    assert json.loads(service.requests[-1][1]) == {"plaintext": KEY_TEXT}
                else:
                    vault_of.adapter.post("/v1/y", json={"a": 1})
                assert service.requests[-1][0].startswith(b"POST /v1/x ")
                assert TOKEN.encode() in service.requests[-1][0]
            for status, location in [
                (307, other.url),
                (307, "//" + other.url.removeprefix("https://")),
                (308, service.url.replace("https", "http")),
                (307, "ftp://127.0.0.1/"),
                (302, service.url + "/v1/x"),
            ]:
                service.answers = [answer("", f"{status} X", f"Location: {location}")]
                with (
                    pytest.raises(hvac.exceptions.UnexpectedError, match="redirects") as error,
                    Exchange(send=plaintext) if inside else nothing(),
                ):
                    vault_of.adapter.post(
                        "/v1/y", json={"plaintext": PLACEHOLDER_TEXT if inside else "a"}
                    )
                assert (error.value.status, error.value.location) == (status, location)
        assert other.requests == []
        vault_of.adapter.allow_redirects = False
        service.answers = [answer("", "307 X", "Location: /v1/x")]
        with pytest.raises(hvac.exceptions.UnexpectedError, match="does not follow"):
            vault_of.adapter.post("/v1/y", json={"a": 1})
    finally:
        other.close()


def test_redirects_without_end(service: Service, vault_of: Any) -> None:
    """A server that always redirects is given up."""
    service.default = answer("", "307 X", "Location: /v1/x")
    with pytest.raises(requests.TooManyRedirects), Exchange():
        data_key(vault_of)


def test_hvac_failures_are_requests(service: Service, vault_of: Any) -> None:
    """A cut, a refused and a late answer are exceptions of requests', without the token."""
    vault_of.adapter._kwargs["timeout"] = (5, 0.3)
    release = threading.Event()
    for handler, expected in [
        (cut(10), requests.ConnectionError),
        (answer("<html>"), requests.ConnectionError),
        (lambda connection: release.wait(30), requests.ReadTimeout),
    ]:
        service.answers = [handler]
        with pytest.raises(expected) as error:
            data_key(vault_of)
        assert TOKEN not in "".join(traceback.format_exception(error.value))
        assert error.value.request is None
        assert isinstance(error.value.args[0], wire.WireError)
        assert error.value.args[0].__traceback__ is None
    release.set()
    assert data_key(vault_of) == KEY


def test_hvac_client_that_exists(service: Service, authority: Authority) -> None:
    """An existing client can be protected; one with a transport of its own cannot, unless it is a SecretSender."""
    service.default = answer(TRANSIT)
    with hvac_closing(hvac.Client(service.url, token=TOKEN, verify=authority.ca_file)) as client:
        client.adapter = SecretAdapter.from_adapter(client.adapter)
        assert data_key(client) == KEY
        client.adapter = SecretAdapter.from_adapter(client.adapter)
        assert data_key(client) == KEY

    class Own(requests.adapters.HTTPAdapter):
        pass

    class OwnSender(SecretSender):
        def route(self, url: str, verify: Any, cert: Any, proxies: Any) -> wire.Route:
            return wire.Route(wire.tls_context(authority.ca_file, None), server_name="localhost")

    with requests.Session() as session:
        session.mount("https://", Own())
        with pytest.raises(TypeError, match="transport of its own"):
            vault_client(service.url, None, session=session)
        session.mount("https://", OwnSender())
        assert data_key(vault_client(service.url, None, session=session)) == KEY


# The exchange


def test_outside_of_an_exchange_all_is_as_ever(
    service: Service, kms_of: Any, vault_of: Any
) -> None:
    """A protected client without an Exchange gives what it always gave."""
    service.answers = [answer(DATA_KEY)]
    reply = kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
    assert reply["Plaintext"] == KEY
    kms_of.close()
    reply = vault_of.secrets.transit.generate_data_key("orders", "plaintext")
    assert reply["data"]["plaintext"] == KEY_TEXT


def test_exchange_wipes_what_was_not_taken(service: Service, kms_of: Any) -> None:
    """Leaving an Exchange closes the secret that nobody took, and leaves the sent one alone."""
    service.respond = echo  # type: ignore[method-assign]
    with secret(KEY) as plaintext:
        with Exchange(send=plaintext) as exchange:
            kms_of.encrypt(KeyId=KEY_ARN, Plaintext=PLACEHOLDER)
            held = exchange._received[("Plaintext",)]
            assert not held.closed
        assert held.closed
        assert not plaintext.closed
    with pytest.raises(RuntimeError, match="entered already"), exchange:
        pass


def test_exchanges_nest(service: Service, kms_of: Any) -> None:
    """The innermost Exchange is the one that counts, and the outer one again after it."""
    with Exchange() as outer:
        with Exchange() as inner:
            kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
            inner.take("Plaintext").close()
        with pytest.raises(ServiceUnavailableError):
            outer.take("Plaintext")
        kms_of.generate_data_key(KeyId=KEY_ARN, KeySpec="AES_256")
        outer.take("Plaintext").close()


def test_protect_boto3_twice_and_wrongly(kms_of: Any, service: Service) -> None:
    """Protecting again changes nothing; what is no boto3 client is refused."""
    protect_boto3(kms_of)
    assert generate(kms_of) == KEY
    assert len(service.requests) == 1
    with pytest.raises(TypeError, match="botocore's own HTTP session"):
        protect_boto3(object())


def test_requests_that_cannot_be_sent(service: Service, authority: Authority) -> None:
    """A header, address or body that HTTP/1.1 cannot carry is refused before anything is sent."""
    route = wire.Route(wire.tls_context(authority.ca_file, None))
    for url, headers, body in [
        (service.url, {"A": "b\r\nC: d"}, None),
        (service.url, {"A b": "c"}, None),
        (service.url, {"A": "\u20ac"}, None),
        (service.url, {"Transfer-Encoding": "chunked"}, None),
        (service.url + "/a b", {}, None),
        (service.url.replace("https://", "https://me:pass@"), {}, None),
        ("ftp://127.0.0.1", {}, None),
        (service.url, {}, iter([b"a"])),
    ]:
        with Exchange() as exchange, pytest.raises(ValueError):
            exchange.attempt("POST", url, headers, body, route)
    assert service.requests == []


# The scanner


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def redacted(text: bytes) -> tuple[bytes, bytes | None]:
    """Return what redact() leaves of a text, and its secret."""
    buffer = bytearray(text)
    with memoryview(buffer) as view:
        left, fields = redact(view, 0, len(text))
    return left, bytes(buffer[fields[0].start : fields[0].stop]) if fields else None


@settings(max_examples=30)
@given(
    st.dictionaries(st.text().filter(lambda name: not name.casefold().endswith("plaintext")), JSON),
    st.binary(min_size=1),
    st.booleans(),
    st.booleans(),
)
def test_scanner_finds_the_secret(
    document: dict[str, Any], content: bytes, inner: bool, ascii_only: bool
) -> None:
    """Whatever JSON stands around it, the secret is found, and all else stays as it is."""
    held = base64.b64encode(content).decode()

    def has_secret(value: Any) -> bool:
        if isinstance(value, dict):
            return any(
                name.casefold().endswith("plaintext") or has_secret(each)
                for name, each in value.items()
            )
        return isinstance(value, list) and any(map(has_secret, value))

    document = {name: value for name, value in document.items() if not has_secret(value)}
    if inner:
        full = {**document, "data": {"plaintext": held, "x": "y"}}
        blank = {**document, "data": {"plaintext": PLACEHOLDER_TEXT, "x": "y"}}
    else:
        full = {**document, "Plaintext": held}
        blank = {**document, "Plaintext": PLACEHOLDER_TEXT}
    text, found = redacted(json.dumps(full, ensure_ascii=ascii_only).encode("utf-8", "replace"))
    assert found == held.encode()
    assert json.loads(text) == json.loads(
        json.dumps(blank, ensure_ascii=ascii_only).encode("utf-8", "replace")
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"ab\/cd", b"ab/cd"),
        (r"\u002b\u002F\u003d", b"+/="),
        (r"\u0041\u0042AB\/", b"ABAB/"),
        (r"\u20ac", "€".encode()),
        (r"\ud83d\ude00\u00e9", "😀é".encode()),
        (r"a\"b", b'a"b'),
        (r"\\\\", b"\\\\"),
    ],
)
def test_escapes_in_a_secret(written: str, meant: bytes) -> None:
    """Escapes of JSON are resolved."""
    assert meant == redacted(f'{{"plaintext": "{written}", "b": 1}}'.encode())[1]


def taken(text: str | bytes, *patterns: str) -> tuple[Any, dict[str, str]]:
    """Return the document that redact() leaves of a text, and the secrets at some places by those."""
    buffer = bytearray(text if isinstance(text, bytes) else text.encode())
    with memoryview(buffer) as view:
        left, fields = redact(view, 0, len(buffer), [tuple(each.split(".")) for each in patterns])
    return json.loads(left), {
        ".".join(map(str, each.place)): buffer[each.start : each.stop].decode() for each in fields
    }


@settings(max_examples=40)
@given(st.dictionaries(st.text(min_size=1), JSON, min_size=1), JSON, st.booleans())
def test_scanner_takes_what_stands_at_a_place(
    held: dict[str, Any], around: Any, ascii_only: bool
) -> None:
    """Members at a place are taken, strings as their text and others as they are written; all else stays."""

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and value != ""

    def meant(value: Any) -> str:
        return value if is_text(value) else json.dumps(value, ensure_ascii=ascii_only)

    document = {"before": around, "data": {"data": held, "x": around}, "after": around}
    text = json.dumps(document, ensure_ascii=ascii_only)
    assume("plaintext" not in text.casefold())
    assume(not any(0xD800 <= ord(each) < 0xE000 for each in json.loads(text).__repr__()))
    assume(r"\ud" not in text.lower())
    left, found = taken(text, "data.data.*")
    stay = (None, "")
    assert {
        f"data.data.{name}": meant(each) for name, each in held.items() if each not in stay
    } == (found)
    blank = {name: each if each in stay else PLACEHOLDER_TEXT for name, each in held.items()}
    assert {**document, "data": {"data": blank, "x": around}} == left


@pytest.mark.parametrize(
    ("text", "pattern", "found"),
    [
        ('{"auth": {"client_token": "s.1"}}', "auth.client_token", {"auth.client_token": "s.1"}),
        ('{"data": {"password": "p", "username": "u"}}', "data.password", {"data.password": "p"}),
        ('{"data": {"keys": ["a", "b"]}}', "data.keys.*", {"data.keys.0": "a", "data.keys.1": "b"}),
        ('{"d": [{"p": "a"}, {}, {"p": "b"}]}', "d.*.p", {"d.0.p": "a", "d.2.p": "b"}),
        ('{"data": {"data": {"a": {"b": ["\\n", "]"]}}}}', "data.data.*", {"data.data.a": '{"b": ["\\n", "]"]}'}),
        ('{"data": {"data": {"pin": 1234}}}', "data.data.*", {"data.data.pin": "1234"}),
        ('{"data": {"data": {"on": true}}}', "data.data.*", {"data.data.on": "true"}),
        ('{"data": null}', "data.data.*", {}),
        ('{"data": {"data": null}}', "data.data.*", {}),
        ('{"data": {"data": "x"}}', "data.data.*", {}),
        ('{"data": [[{"k": "v"}]]}', "data.*.*.k", {"data.0.0.k": "v"}),
        ('{"password": "o", "data": {"password": "p"}}', "data.password", {"data.password": "p"}),
    ],
)  # fmt: skip
def test_places(text: str, pattern: str, found: dict[str, str]) -> None:
    """A pattern means one depth, and * any one member or element."""
    assert found == taken(text, pattern)[1]


@pytest.mark.parametrize(
    "text",
    [
        '{"data": {"data": {"k": "a", "k": "b"}}}',
        '{"data": {"data": {"k": "\\ud800"}}}',
        '{"data": {"data": {"k": "\\ud800\\u0041"}}}',
        '{"data": {"data": {"k": [1, 2}}}}',
        '{"data": {"data": {"k": "a"',
        '{"data": {"data": {"k": {"a": 1}',
        '{"data": {"data": {"k": "a"}}]',
        '{"data": {"data": {"k" "a"}}}',
        '{"data": {"data": {"k": "a"}}} {}',
        '[{"data": 1}]',
        '"data"',
        "",
        '{"x": ' * 70 + "1" + "}" * 70,
        b'{"data": {"data": {"k\xff": "a"}}}',
        b'{"data": {"data": {"k": "\xff"}}}',
        b'{"data": {"data": {"k": {"a": "\xff"}}}}',
        '{"data": {"data": {"k": "\\x"}}}',
        '{"data": {"data": {"k": "\\u00"}}}',
        '{"data": {"data": {"k": "\n"}}}',
        '{"data": {"data": {"k": tru}}}',
        '{"data": {"data": {"k": 01}}}',
        '{"data": {"data": {"k": {"a" 1}}}}',
        '{"data": {"data": {"k": [1 2]}}}',
        '{"data": {"data": {"k": [1, {2: 3}]}}}',
        '{"data": {"data": {"k": ' + "[" * 9999 + "]" * 9999 + "}}}",
    ],
)
def test_hostile_texts_are_refused(text: str | bytes) -> None:
    """What is no JSON, repeats a member, nests too deep or is no Unicode is refused, and no secret is in the error."""
    with pytest.raises(ValueError) as caught:
        taken(text, "data.data.*")
    assert "ud800" not in str(caught.value)


NAMES = st.sampled_from(["a", "b", "data", "xPlainText", 'k"q', "é", ""])
PATTERNS = st.lists(
    st.lists(st.sampled_from(["a", "b", "data", "*"]), min_size=1, max_size=3).map(tuple),
    max_size=3,
)
CHANGES = st.tuples(
    st.floats(0, 1),
    st.sampled_from("=+-"),
    st.sampled_from(list(b'{}[],:"\\ \n\0u0a\xc3\xff-1eN/')),
)


def reference(
    value: Any, place: tuple[str | int, ...], patterns: list[tuple[str, ...]], found: dict[Any, Any]
) -> Any:
    """Return a document as redact() is to leave it, and fill in what it is to find; by json's own objects."""
    asked = any(
        len(place) == len(each) and all(a in ("*", b) for a, b in zip(each, place, strict=True))
        for each in patterns
    )
    named = bool(place) and str(place[-1]).casefold().endswith("plaintext")
    if (asked or named) and value not in (None, ""):
        if not asked and not isinstance(value, str):
            raise ValueError
        found[place] = value
        return PLACEHOLDER_TEXT
    if isinstance(value, dict):
        return {
            name: reference(each, (*place, name), patterns, found) for name, each in value.items()
        }
    if isinstance(value, list):
        return [reference(each, (*place, at), patterns, found) for at, each in enumerate(value)]
    return value


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, whose members all differ."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


@settings(max_examples=100)
@given(
    st.dictionaries(
        NAMES,
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    ),
    PATTERNS,
    st.booleans(),
    st.lists(CHANGES, max_size=3),
)
def test_scanner_and_json_agree(
    document: dict[str, Any],
    patterns: list[tuple[str, ...]],
    ascii_only: bool,
    changes: list[tuple[float, str, int]],
) -> None:
    """What json refuses is refused, changed as it may be; of all else the same is found, and the same is left."""
    text = bytearray(json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "replace"))
    for where, how, byte in changes:
        at = int(where * len(text))
        text[at : at + (how != "+")] = b"" if how == "-" else bytes([byte])
    found: dict[Any, Any] = {}
    try:
        meant = json.loads(text.decode(), object_pairs_hook=without_repeats)
        meant = reference(meant if isinstance(meant, dict) else 1 / 0, (), patterns, found)
        "".join(each for each in found.values() if isinstance(each, str)).encode()
    except (ValueError, ZeroDivisionError):
        with memoryview(text) as view, pytest.raises(ValueError):
            redact(view, 0, len(text), patterns)
        return
    with memoryview(text) as view:
        left, fields = redact(view, 0, len(text), patterns)
    assert meant == json.loads(left)
    got = {each.place: (each, text[each.start : each.stop].decode()) for each in fields}
    assert found == {
        place: each if field.is_string else json.loads(each) for place, (field, each) in got.items()
    }


@settings(max_examples=100)
@given(
    st.text(min_size=1).filter(lambda text: not any(0xD800 <= ord(each) < 0xE000 for each in text))
)
def test_a_secret_is_sent_as_json_has_it(text: str) -> None:
    """Any text in Unicode arrives as it was."""
    written = in_string(secret(text.encode()))
    assert text == json.loads(b'"%b"' % content(written))


@pytest.mark.parametrize(
    "text", [b"\xff", b"a\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
)
def test_a_secret_that_is_no_text_is_not_sent(text: bytes) -> None:
    """A server would put something else in its place, and say nothing."""
    with pytest.raises(ValueError, match="UTF-8"):
        in_string(secret(text))


def test_secrets_stand_in_and_are_blanked(service: Service, vault_of: Any) -> None:
    """Several secrets of one request arrive; an error that repeats one of them shows none."""
    texts = ['pass"word\n<a>', "x" * 50, "€"]
    said = json.dumps(f"bad {texts[0]} or {texts[1]}: {texts[2]}, sorry", ensure_ascii=False)
    # As Go writes them.
    said = said.replace("<", "\\u003c").replace(">", "\\u003e")
    service.answers = [answer(f'{{"errors": [{said}]}}', "400 Bad")]
    with Exchange(secret=[]) as exchange:
        names = [exchange.stand_in(secret(each.encode())) for each in texts]
        with pytest.raises(hvac.exceptions.InvalidRequest, match="sorry") as caught:
            vault_of.adapter.post("/v1/x", json={"a": names[0], "b": [names[1], {"c": names[2]}]})
    sent = json.loads(service.requests[-1][1])
    assert {"a": texts[0], "b": [texts[1], {"c": texts[2]}]} == sent
    assert set() == leaks(caught.value, ["pass", *texts])


def test_long_errors_are_not_searched_for_secrets(service: Service, vault_of: Any) -> None:
    """The search would take a second for each secret: of a body this long the status says enough."""
    service.answers = [answer(json.dumps({"errors": ["x" * 100_000 + "hunter2"]}), "400 Bad")]
    with Exchange(secret=[], most=1 << 21) as exchange:
        name = exchange.stand_in(secret(b"hunter2"))
        with pytest.raises(hvac.exceptions.InvalidRequest, match="left out: it is too long"):
            vault_of.adapter.post("/v1/x", json={"a": name})


def test_a_stand_in_that_was_not_sent_is_told(vault_of: Any) -> None:
    """A secret that went nowhere is an error of the caller's."""
    with pytest.raises(RuntimeError, match="never sent"), Exchange() as exchange:
        exchange.stand_in(secret(KEY))


def test_large_answers_where_they_are_asked_for(service: Service, vault_of: Any) -> None:
    """An answer grows up to the limit of its Exchange, and no further."""
    body = json.dumps({"data": {"data": {"k": "x" * 300_000}}})
    for most, fits in ((400_000, True), (300_000, False)):
        service.answers = [answer(body)]
        with Exchange(secret=[("data", "data", "*")], most=most) as exchange:
            if fits:
                vault_of.adapter.get("/v1/x")
                (text,) = exchange.take_all().values()
                assert 300_000 == len(text)
                text.close()
            else:
                with pytest.raises(requests.ConnectionError, match="longer than 300000 bytes"):
                    vault_of.adapter.get("/v1/x")


# Memory


PROGRAM = """
import sys
import boto3, hvac
from tapeseal.transport import PLACEHOLDER, PLACEHOLDER_TEXT, Exchange
from tapeseal.transport.aws import protect_boto3
from tapeseal.transport.vault import SecretAdapter

url, ca_file = sys.argv[1:]
kms = boto3.client("kms", region_name="us-east-1", endpoint_url=url, verify=ca_file,
                   aws_access_key_id="a", aws_secret_access_key="b")
protect_boto3(kms)
vault = hvac.Client(url, token="t", verify=ca_file, adapter=SecretAdapter)

def pause(what):
    print(what, flush=True)
    sys.stdin.readline()

with Exchange() as exchange:
    kms.generate_data_key(KeyId="1", KeySpec="AES_256")
    first = exchange.take("Plaintext")
with Exchange(send=first):
    kms.encrypt(KeyId="1", Plaintext=PLACEHOLDER)
with Exchange() as exchange:
    vault.secrets.transit.generate_data_key("orders", "plaintext")
    second = exchange.take("plaintext")
with Exchange(send=second):
    vault.secrets.transit.encrypt_data("orders", plaintext=PLACEHOLDER_TEXT)
try:
    with Exchange():
        kms.decrypt(CiphertextBlob=b"1")
except kms.exceptions.InvalidCiphertextException as error:
    kept = error
pause("in use")
first.close()
second.close()
pause("closed")
"""


def find(pid: int, needles: dict[str, bytes]) -> set[tuple[str, bool]]:
    """Return what stands in the memory of a process, and whether in pages that are locked and not dumped."""
    regions = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)", line):
            region = int(found[1], 16), int(found[2], 16), found[3], found[4]
        elif line.startswith("VmFlags:"):
            regions.append((*region, {"dd", "lo"} <= set(line.split())))
    hits = set()
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, stop, access, name, protected in regions:
            if "r" in access and name not in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                memory.seek(start)
                held = memory.read(stop - start)
                hits |= {(what, protected) for what, needle in needles.items() if needle in held}
    return hits


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/mem")
@pytest.mark.parametrize(
    "version",
    [pytest.param(ssl.TLSVersion.TLSv1_2, marks=pytest.mark.slow), ssl.TLSVersion.TLSv1_3],
)
def test_memory(authority: Authority, version: ssl.TLSVersion) -> None:
    """Another process finds a key that came over TLS, and went back, in a SecretBuffer's pages alone, later nowhere."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue_server())
    context.maximum_version = version
    service = Service(context)
    first, second = os.urandom(32), os.urandom(32)
    needles = {
        f"{name} {form}": text
        for name, key in (("first", first), ("second", second))
        for form, text in (
            ("raw", key[:16]),
            ("raw end", key[16:]),
            ("base64", base64.b64encode(key)[:20]),
            ("base64 end", base64.b64encode(key)[20:]),
            ("hex", key.hex().encode()[:32]),
        )
    }
    texts = [base64.b64encode(key).decode() for key in (first, second)]
    error = {"__type": "InvalidCiphertextException", "message": "no", "Plaintext": texts[0]}
    service.answers = [
        answer(json.dumps({"CiphertextBlob": "eA==", "Plaintext": texts[0]})),
        answer(json.dumps({"CiphertextBlob": "eA=="})),
        chunked(json.dumps({"data": {"ciphertext": "vault:v1:x", "plaintext": texts[1]}}), 31),
        answer(json.dumps({"data": {"ciphertext": "vault:v1:x"}})),
        answer(json.dumps(error), "400 Bad Request"),
    ]
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, service.url, authority.ca_file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            assert child.stdout.readline() == "in use\n"
            assert find(child.pid, needles) == {
                (f"{name} {end}", True)
                for name in ("first", "second")
                for end in ("raw", "raw end")
            }
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "closed\n"
            assert find(child.pid, needles) == set()
            child.stdin.close()
        assert child.returncode == 0
    finally:
        child.kill()
        service.close()
    assert [json.loads(body)["Plaintext"] for _, body in service.requests[1:2]] == texts[:1]
    assert [json.loads(body)["plaintext"] for _, body in service.requests[3:4]] == texts[1:]


# Real servers


@pytest.mark.server
def test_vault(bao_tls: "SingleServer") -> None:
    """A real server makes a data key, wraps one of ours, and opens both, over TLS."""
    admin = bao_tls.admin
    if "transport/" not in admin.sys.list_mounted_secrets_engines()["data"]:
        admin.sys.enable_secrets_engine("transit", path="transport")
    admin.secrets.transit.create_key("orders", mount_point="transport")
    client = vault_client(bao_tls.address, bao_tls.ca_file, token=bao_tls.token)
    transit = client.secrets.transit
    with hvac_closing(client):
        with Exchange() as exchange:
            made = transit.generate_data_key("orders", "plaintext", mount_point="transport")
            made_key = exchange.take("plaintext")
        with secret(KEY) as ours, Exchange(send=ours):
            wrapped = transit.encrypt_data(
                "orders", plaintext=PLACEHOLDER_TEXT, mount_point="transport"
            )
        for ciphertext, expected in [
            (made["data"]["ciphertext"], made_key),
            (wrapped["data"]["ciphertext"], secret(KEY)),
        ]:
            with Exchange() as exchange:
                transit.decrypt_data("orders", ciphertext, mount_point="transport")
                with exchange.take("plaintext") as opened, expected:
                    assert content(opened) == content(expected)
        with (
            pytest.raises(hvac.exceptions.InvalidRequest, match="authentication failed"),
            Exchange(),
        ):
            transit.decrypt_data(
                "orders",
                "vault:v1:" + base64.b64encode(bytes(60)).decode(),
                mount_point="transport",
            )


@pytest.mark.server
def test_kms(kms: "KmsServer") -> None:
    """A real HTTP service makes a data key, wraps one of ours, and opens both."""
    key = kms.make_key()
    client = kms.client(user=kms.admin_user)
    protect_boto3(client)
    with Exchange() as exchange:
        made = client.generate_data_key(KeyId=key, KeySpec="AES_256")
        made_key = exchange.take("Plaintext")
    with secret(KEY) as ours, Exchange(send=ours):
        wrapped = client.encrypt(KeyId=key, Plaintext=PLACEHOLDER)
    for ciphertext, expected in [
        (made["CiphertextBlob"], made_key),
        (wrapped["CiphertextBlob"], secret(KEY)),
    ]:
        with Exchange() as exchange:
            client.decrypt(KeyId=key, CiphertextBlob=ciphertext)
            with exchange.take("Plaintext") as opened, expected:
                assert content(opened) == content(expected)
    with pytest.raises(client.exceptions.InvalidCiphertextException), Exchange():
        client.decrypt(KeyId=key, CiphertextBlob=bytes(100))
    client.close()
