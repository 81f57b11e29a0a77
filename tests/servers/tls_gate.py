"""A server on loopback that lets in who shows a client certificate of a CA that its CRL does not name.

    with TlsGate(directory, read) as gate:     # read() returns CA and CRL in PEM, here a PKI engine's
        assert gate.admits(certificate, private_key)

The CRL is read anew at most five times a second. A client in TLS 1.3 learns that it was refused from the alert that
comes after its own part of the handshake; one that is let in gets the end of the connection.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from servers.certs import Authority

_AGE_SECONDS = 0.2


class TlsGate:
    """See the module.

    Attributes:
        port: on 127.0.0.1; its certificate is one of localhost.
        ca_file: what that is checked against.
    """

    def __init__(self, directory: Path, read: Callable[[], str]) -> None:
        authority = Authority(directory / "gate-tls", "gate authority")
        self.ca_file = authority.ca_file
        self._certificate = authority.issue_server()
        self._trusted = directory / "gate-trusted.pem"
        self._directory = directory
        self._read = read
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._since = 0.0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def refresh(self) -> None:
        """Have the next connection read the CRL."""
        with self._lock:
            self._since = 0.0

    def admits(self, certificate: str, private_key: str) -> bool:
        """Try to get in."""
        path = self._directory / "gate-client.pem"
        path.touch(0o600)
        path.write_text(f"{private_key}\n{certificate}\n")
        context = ssl.create_default_context(cafile=self.ca_file)
        context.load_cert_chain(path)
        path.unlink()
        try:
            enter(context, self.port)
        except ssl.SSLError as error:
            if "ALERT" not in (error.reason or ""):
                raise
            return False
        return True

    def _of_now(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None or time.monotonic() - self._since > _AGE_SECONDS:
                self._trusted.write_text(self._read())
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*self._certificate)
                context.load_verify_locations(cafile=self._trusted)
                context.verify_mode = ssl.CERT_REQUIRED
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
                self._context, self._since = context, time.monotonic()
            return self._context

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with (
            contextlib.suppress(OSError),
            connection,
            self._of_now().wrap_socket(connection, server_side=True) as tls,
        ):
            tls.recv(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def enter(context: ssl.SSLContext, port: int) -> None:
    """Get in; an SSLError with an alert in its reason says that the server does not let this certificate in."""
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_WR)
        try:
            connection.recv(1)
        except ssl.SSLError as error:
            # Of a stream that was cut short by us.
            if not isinstance(error, ssl.SSLEOFError) and "DECODE_ERROR" not in str(error):
                raise
