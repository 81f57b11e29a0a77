"""HTTP whose secret fields land in a SecretBuffer, under boto3 and hvac.

A caller opens an Exchange and makes one call with a protected client inside it:

    protect_boto3(client)                                # tapeseal.transport.aws, once
    with Exchange() as exchange:
        answer = client.generate_data_key(KeyId=…)       # answer["Plaintext"] == PLACEHOLDER
        data_key = DataKey(exchange.take("Plaintext"))

    client = hvac.Client(url, adapter=SecretAdapter)     # tapeseal.transport.vault
    with Exchange(send=data_key.secret) as exchange:
        client.secrets.transit.encrypt_data(name, plaintext=PLACEHOLDER_TEXT)

Inside, a request goes out and its answer comes in through this package's own HTTP/1.1 client
(`wire`), which keeps both in SecretBuffers: PLACEHOLDER in a request becomes `send` on its way, and
a field of an answer whose name ends in "plaintext" (any case) becomes the placeholder, so that no
Python object ever holds the secret. All else stays with the library: credentials, signatures,
endpoints, retries, proxies and certificates, its exceptions. An Exchange belongs to the thread (to
be exact the `contextvars` context) that entered it; any number of threads may share a client.
Outside an Exchange a protected client goes its ordinary way, secret fields and all.
"""

import contextlib
import contextvars
import hashlib
import json
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Final, NamedTuple, Self

from tapeseal._core import SecretBuffer
from tapeseal.errors import ServiceUnavailableError
from tapeseal.transport import wire
from tapeseal.transport.scanner import PLACEHOLDER, PLACEHOLDER_TEXT, Field, redact, redact_error

__all__ = ["PLACEHOLDER", "PLACEHOLDER_TEXT", "Exchange"]

_current: contextvars.ContextVar["Exchange | None"] = contextvars.ContextVar(
    "tapeseal.transport", default=None
)

_OF_THE_WIRE: Final = {"content-length", "transfer-encoding", "connection", "keep-alive"}


class Reply(NamedTuple):
    """An answer without its secret: what the library above is given."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class Exchange:
    """The secrets of one call: what goes out in place of the placeholder, and what came in.

    A context manager. What was not taken is wiped on exit; `send` stays its owner's. Attempts that
    the library repeats belong to the same Exchange; of several answers the last one's field counts.

    Args:
        send: what PLACEHOLDER (to boto3) or PLACEHOLDER_TEXT (to hvac) stands for in the request;
            it must occur there exactly once.
        deadline: a `time.monotonic()` at which every attempt fails, whatever the library's own
            timeouts say; the library may raise later where it waits between attempts.

    Raises:
        RuntimeError: on leaving without another exception, `send` was never sent: the client is not
            protected, and its service may have been given the placeholder.
    """

    def __init__(self, send: SecretBuffer | None = None, *, deadline: float | None = None) -> None:
        self._send = send
        self._deadline = deadline
        self._sent = False
        self._received: dict[str, SecretBuffer] = {}
        self._token: contextvars.Token[Exchange | None] | None = None

    def take(self, name: str) -> SecretBuffer:
        """Return the secret field of the answer, decoded from base64; the caller owns it from here on.

        Args:
            name: the field exactly as the service spells it: "Plaintext" for KMS, "plaintext" for
                Transit, where it is a member of "data".

        Raises:
            ServiceUnavailableError: the last answer had no such field, or it was no base64.
        """
        secret = self._received.pop(name, None)
        if secret is None:
            raise ServiceUnavailableError(
                f"the answer holds no {name}, or one that is not base64: try again, and ask whoever"
                " runs the service or what stands before it"
            )
        return secret

    def __enter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError("an Exchange is for one call, and was entered already")
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
        self._forget()
        if exc_type is None and self._send is not None and not self._sent:
            raise RuntimeError("the secret was never sent: the client is not a protected one")

    def __repr__(self) -> str:
        return "<Exchange>"

    def digest(self, body: object) -> str | None:
        """Return the SHA-256, in hex, of a request's body with its secret in place; None without one."""
        parts = self._parts(body)
        if len(parts) == 1:
            return None
        digest = hashlib.sha256()
        try:
            for part in parts:
                if isinstance(part, bytes):
                    digest.update(part)
                else:
                    with part, memoryview(part) as view:
                        digest.update(view)
        finally:
            _wipe(parts)
        return digest.hexdigest()

    def attempt(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str | bytes],
        body: object,
        route: wire.Route,
    ) -> Reply:
        """Send a request of the library's with the secret in place, and keep the one of its answer.

        Raises:
            WireError: there was no whole answer, or it was refused.
            ValueError: the request cannot be sent.
        """
        self._forget()
        parts = self._parts(body)
        has_secret = len(parts) > 1
        self._sent = self._sent or has_secret
        try:
            answer = wire.send(method, url, headers, parts, route, self._deadline)
        finally:
            _wipe(parts)
        with contextlib.closing(answer.buffer):
            return self._receive(answer, echo=has_secret)

    def _parts(self, body: object) -> list[bytes | SecretBuffer]:
        text = body.encode() if isinstance(body, str) else b"" if body is None else body
        if not isinstance(text, bytes):
            raise ValueError("a request inside an Exchange has its body in one piece")
        if self._send is None:
            refuse_placeholder(text)
            return [text]
        pieces = text.split(PLACEHOLDER_TEXT.encode())
        if len(pieces) > 2:
            raise ValueError("the placeholder is more than once in one request")
        return [pieces[0]] if len(pieces) == 1 else [pieces[0], self._send.to_base64(), pieces[1]]

    def _receive(self, answer: wire.Answer, *, echo: bool) -> Reply:
        start, stop = answer.start, answer.stop
        with answer.buffer, memoryview(answer.buffer) as view:
            try:
                if not answer.whole:
                    raise ValueError("it is too long")
                if start == stop:
                    body = b""
                elif answer.status >= 300:
                    body = redact_error(view, start, stop, echo=echo)
                else:
                    body, field = redact(view, start, stop)
                    if field is not None:
                        self._keep(answer.buffer, field)
            except ValueError as problem:
                if answer.status < 300:
                    raise wire.WireError("answer", f"the answer was refused: {problem}") from None
                note = f"the body of this answer was left out: {problem}"
                body = json.dumps({"errors": [note], "message": note}).encode()
        headers = [each for each in answer.headers if each[0].lower() not in _OF_THE_WIRE]
        headers.append(("Content-Length", str(len(body))))
        return Reply(answer.status, answer.reason, headers, body)

    def _keep(self, buffer: SecretBuffer, field: Field) -> None:
        try:
            secret = SecretBuffer.from_base64(buffer, field.start, field.stop)
        except ValueError:  # take() says so
            return
        self._received[field.name] = secret

    def _forget(self) -> None:
        _wipe(self._received.values())
        self._received.clear()


def current() -> Exchange | None:
    """Return the Exchange that this thread is in."""
    return _current.get()


def refuse_placeholder(body: object) -> None:
    """Raise ValueError where a request would carry the placeholder itself, as if it were the secret."""
    text = body.encode() if isinstance(body, str) else body
    if isinstance(text, bytes) and PLACEHOLDER_TEXT.encode() in text:
        raise ValueError("a request holds the placeholder, but no Exchange here has its secret")


def _wipe(parts: Iterable[bytes | SecretBuffer]) -> None:
    for part in parts:
        if isinstance(part, SecretBuffer):
            part.close()
