"""An exchange, as far as API keys go: HTTPS on loopback that issues, accepts and refuses them, several alive at once.

    with Exchange(directory) as exchange:
        key_id, key = exchange.issue("by hand")
        ...                                     # GET /orders with X-API-Key: 200 while the key is alive, 401 after

Who has the admin's key (Authorization: Bearer) administers the keys: POST /keys {"label": …} answers {"id": 7, "label":
…, "key": …} with more that nobody asked for, GET /keys {"keys": [{"id": 7, "label": …}]}, DELETE /keys/7 204, or 404
where there is none.
"""

import http.server
import json
import re
import secrets
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from servers.certs import Authority

_LINGER_NONE = struct.pack("ii", 1, 0)  # close() then sends a reset


class Key(NamedTuple):
    """A key that was issued."""

    label: str
    key: str


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    exchange: "Exchange"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        line = f"{self.command} {self.path}"
        exchange = self.exchange
        failure = exchange._take_failure(line)
        if failure == "before":
            return self._reset()
        if isinstance(failure, int):
            return self._answer(failure, {"error": "out of service"})
        status, document = self._do(body)
        if failure == "after":
            return self._reset()
        return self._answer(status, document)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _do(self, body: bytes) -> tuple[int, Any]:
        exchange = self.exchange
        if self.path == "/orders":
            accepted = exchange.accepts(self.headers.get("X-API-Key", ""))
            return (200, {"orders": []}) if accepted else (401, {"error": "invalid API key"})
        admin = self.headers.get("Authorization", "")
        if not secrets.compare_digest(admin, f"Bearer {exchange.admin_key}"):
            return 401, {"error": "invalid credential of an administrator"}
        if (self.command, self.path) == ("POST", "/keys"):
            label = json.loads(body)["label"]
            key_id, key = exchange.issue(label)
            return 201, {
                "id": key_id,
                "label": label,
                "key": key,
                "limits": {"orders": 50.5},
                "plaintext": "not asked for",
            }
        if (self.command, self.path) == ("GET", "/keys"):
            keys = [{"id": key_id, "label": key.label} for key_id, key in exchange.alive.items()]
            return 200, {"keys": keys}
        if self.command == "DELETE" and (found := re.fullmatch(r"/keys/(\d+)", self.path)):
            return (204, None) if exchange.alive.pop(int(found[1]), None) else (404, {})
        return 404, {"error": "no such path"}

    def _answer(self, status: int, document: Any) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is no news."""


class Exchange:
    """See the module.

    Attributes:
        address: its URL.
        ca_file: what its certificate is checked against.
        admin_key: who has it administers the keys.
        alive: the keys that are accepted, by their ids.
        shared: says which keys are accepted beside those, where both sides read them in a Vault.
        issued: how many keys it has issued.
        seen: "METHOD /path" of each request.
    """

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory / "exchange-tls", "exchange authority")
        self.ca_file = authority.ca_file
        self.admin_key = f"admin-{secrets.token_urlsafe(24)}"
        self.alive: dict[int, Key] = {}
        self.shared: Callable[[], set[str]] | None = None
        self.issued = 0
        self.seen: list[str] = []
        self._lock = threading.Lock()
        self._failures: list[tuple[str, str | int]] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue_server())
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"exchange": self}))
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.address = f"https://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def issue(self, label: str) -> tuple[int, str]:
        """Issue a key and return its id and itself."""
        with self._lock:
            self.issued += 1
            key_id = self.issued
            key = f"key-{secrets.token_urlsafe(32)}"
            self.alive[key_id] = Key(label, key)
        return key_id, key

    def accepts(self, key: str) -> bool:
        """Whether a key is accepted."""
        if any(secrets.compare_digest(key, each.key) for each in list(self.alive.values())):
            return True
        return self.shared is not None and key in self.shared()

    def fail(self, pattern: str, how: str | int) -> None:
        """Let the next request whose "METHOD /path" the pattern is found in fail.

        Args:
            pattern: regular expression.
            how: "before": reset the connection, with nothing done; "after": do it, and answer nothing; or a status.
        """
        with self._lock:
            self._failures.append((pattern, how))

    def _take_failure(self, line: str) -> str | int | None:
        with self._lock:
            self.seen.append(line)
            for each in self._failures:
                if re.search(each[0], line):
                    self._failures.remove(each)
                    return each[1]
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
