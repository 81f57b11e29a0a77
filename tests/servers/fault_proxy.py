"""An HTTP proxy on loopback before one server, which fails as it is told to.

    with FaultProxy(server.address, ca_file=server.ca_file, certificate=(pem, key)) as proxy:
        proxy.fault("POST /v1/transit", status=503, body={"errors": ["Vault is sealed"]}, times=1)
        ...                                        # a client of proxy.address

Not a proxy in the sense of HTTP_PROXY: clients take it for the server.
"""

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

LINGER_NONE = struct.pack("ii", 1, 0)  # close() then sends a reset
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Fault(NamedTuple):
    """What happens to the requests whose "METHOD /path x-amz-target" the pattern is found in."""

    pattern: str
    status: int | None = None
    """Answer so, without asking the server; with `body` (bytes, or what becomes JSON) and `headers`."""
    body: Any = b""
    headers: Mapping[str, str] = {}
    delay: float = 0.0
    """Seconds before anything else happens."""
    hang: bool = False
    """Never answer."""
    reset: str | None = None
    """"before" asking the server, or "after" it did what it was asked."""
    truncate: int | None = None
    """Close after so many bytes of the body of the answer."""
    replace: Mapping[bytes, bytes] = {}
    """Change the body of the answer."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: "FaultProxy"
    upstream: http.client.HTTPConnection | None = None

    def setup(self) -> None:
        super().setup()
        self.proxy._connections.add(self.connection)

    def finish(self) -> None:
        self.proxy._connections.discard(self.connection)
        if self.upstream is not None:
            self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            super().handle()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        line = f"{self.command} {self.path} {self.headers.get('X-Amz-Target', '')}".rstrip()
        fault = self.proxy._take(line)
        time.sleep(fault.delay)
        if fault.hang:
            self.proxy._closing.wait()
        if fault.hang or fault.reset == "before":
            return self._reset()
        if fault.status is not None:
            content = (
                fault.body if isinstance(fault.body, bytes) else json.dumps(fault.body).encode()
            )
            headers = {"Content-Type": "application/json", **fault.headers}
            return self._answer(fault.status, headers, content)
        status, headers, content = self._ask(body)
        if fault.reset == "after":
            return self._reset()
        for old, new in fault.replace.items():
            content = content.replace(old, new)
        return self._answer(status, headers, content, fault.truncate)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.upstream is None:
            self.upstream = self.proxy._connect()
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            self.upstream.putheader(name, value)
        self.upstream.endheaders(body)
        response = self.upstream.getresponse()
        return response.status, dict(response.getheaders()), response.read()

    def _answer(
        self, status: int, headers: Mapping[str, str], body: bytes, truncate: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:truncate])
        self.close_connection = truncate is not None

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away, or does not like the certificate, is no news."""


class FaultProxy:
    """See the module.

    Args:
        upstream: URL of the server.
        ca_file: what the server's certificate is checked against.
        certificate: files of certificate and key, to speak TLS with clients.

    Attributes:
        address: its own URL.
        seen: "METHOD /path x-amz-target" of each request, in the order of arrival.
    """

    def __init__(
        self,
        upstream: str,
        ca_file: str | None = None,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        self._upstream = urlsplit(upstream)
        self._client_tls = ssl.create_default_context(cafile=ca_file) if ca_file else None
        self._server_tls = None
        if certificate is not None:
            self._server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._server_tls.load_cert_chain(*certificate)
        self._faults: list[tuple[Fault, list[int]]] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None
        self._port = 0
        self.seen: list[str] = []
        self.accept()
        scheme = "http" if certificate is None else "https"
        self.address = f"{scheme}://127.0.0.1:{self._port}"

    def fault(self, pattern: str, *, times: int | None = None, **what: Any) -> None:
        """Let the next requests with the pattern fail; the fault told last goes first.

        Args:
            pattern: regular expression, see Fault.
            times: how many; None: until clear().
            what: the fields of Fault.
        """
        with self._lock:
            left = [1 << 30 if times is None else times]
            self._faults.insert(0, (Fault(pattern, **what), left))

    def clear(self) -> None:
        """Let all requests through again, and forget those seen."""
        with self._lock:
            self._faults.clear()
            self.seen.clear()

    def refuse(self) -> None:
        """Refuse connections, and reset those there are."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
                connection.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        """Listen, on the same port as before."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        server = _Server(("127.0.0.1", self._port), handler)
        server.daemon_threads = True
        if self._server_tls is not None:
            # The handshake comes with the first read, in the connection's own thread.
            server.socket = self._server_tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server, self._port = server, server.server_port
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self.refuse()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._upstream.hostname or "", self._upstream.port
        if self._client_tls is None:
            return http.client.HTTPConnection(host, port, timeout=60)
        return http.client.HTTPSConnection(host, port, timeout=60, context=self._client_tls)

    def _take(self, line: str) -> Fault:
        with self._lock:
            self.seen.append(line)
            for fault, left in self._faults:
                if left[0] > 0 and re.search(fault.pattern, line):
                    left[0] -= 1
                    return fault
        return Fault("")
