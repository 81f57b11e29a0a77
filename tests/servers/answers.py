"""A server on loopback that answers every request with the same bytes: what a service must not be believed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class Answers:
    """The server.

    Attributes:
        address: its URL.
        answer: head and body of every answer.
    """

    def __init__(self) -> None:
        answers = self
        self.answer = b""

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.wfile.write(answers.answer)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def set(
        self,
        body: object,
        status: int = 200,
        size: int | None = None,
        kind: str = "application/x-amz-json-1.1",
        headers: str = "",
    ) -> None:
        """Answer with a body from here on: bytes, or what becomes JSON."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        size = len(body) if size is None else size
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{headers}Content-Length: {size}"
        self.answer = head.encode() + b"\r\n\r\n" + body

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
