"""HTTP whose secret fields land in a SecretBuffer, under boto3 and hvac.

A caller opens an Exchange and makes one call with a protected client inside it:

    protect_boto3(client)                                # tapeseal.transport.aws, once
    with Exchange() as exchange:
        answer = client.generate_data_key(KeyId=…)       # answer["Plaintext"] == PLACEHOLDER
        data_key = DataKey(exchange.take("Plaintext"))

    client = hvac.Client(url, adapter=SecretAdapter)     # tapeseal.transport.vault
    with Exchange(send=data_key.secret) as exchange:
        client.secrets.transit.encrypt_data(name, plaintext=PLACEHOLDER_TEXT)

    with Exchange(secret=[("data", "data", "*")]) as exchange:
        client.adapter.post(path, json={"password": exchange.stand_in(password)})
        texts = exchange.take_all()                      # {("data", "data", "key"): SecretBuffer}

Inside, a request goes out and its answer comes in through this package's own HTTP/1.1 client
(`wire`), which keeps both in SecretBuffers: a stand-in in a request becomes its secret on its way,
and a field of an answer whose name ends in "plaintext" (any case), or that stands where the Exchange
says, becomes the placeholder, so that no Python object ever holds the secret. All else stays with
the library: credentials, signatures, endpoints, retries, proxies and certificates, its exceptions.
An Exchange belongs to the thread (to be exact the `contextvars` context) that entered it; any number
of threads may share a client. Outside an Exchange a protected client goes its ordinary way, secret
fields and all.
"""

import contextlib
import contextvars
import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeAlias

from tapeseal._core import SecretBuffer
from tapeseal.errors import ServiceUnavailableError
from tapeseal.transport import wire
from tapeseal.transport.scanner import (
    PLACEHOLDER,
    PLACEHOLDER_TEXT,
    Pattern,
    Place,
    in_string,
    redact,
    redact_error,
)

__all__ = ["PLACEHOLDER", "PLACEHOLDER_TEXT", "Exchange", "PlainExchange"]

_Writer: TypeAlias = Callable[[SecretBuffer], SecretBuffer]

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
    """The secrets of one call: what goes out in place of stand-ins, and what came in.

    A context manager. What was not taken is wiped on exit; what is sent stays its owner's. Attempts
    that the library repeats belong to the same Exchange; of several answers the last one's secrets
    count.

    Args:
        send: what PLACEHOLDER (to boto3) or PLACEHOLDER_TEXT (to hvac) stands for in the request, in
            base64; it must occur there exactly once. stand_in() is for what goes out as text.
        secret: where the answer has secrets, each a tuple of the names of members on the way, "*"
            for any; besides, each member whose name ends in "plaintext" is one. None: there is one
            such member.
        deadline: a `time.monotonic()` at which every attempt fails, whatever the library's own
            timeouts say; the library may raise later where it waits between attempts.
        most: bytes of an answer.
        once: the request is sent at most once: not again on another connection where one turns out to be
            closed, nor where the library tries again.

    Raises:
        RuntimeError: on leaving without another exception, a secret was never sent: the client is not
            protected, and its service may have been given the placeholder.
    """

    def __init__(
        self,
        send: SecretBuffer | None = None,
        *,
        secret: Sequence[Pattern] | None = None,
        deadline: float | None = None,
        most: int = wire.MAX_ANSWER,
        once: bool = False,
    ) -> None:
        self._outgoing: dict[bytes, tuple[SecretBuffer, _Writer]] = {}
        if send is not None:
            self._outgoing[PLACEHOLDER_TEXT.encode()] = send, SecretBuffer.to_base64
        self._patterns = secret
        self._deadline = deadline
        self._most = most
        self._once = once
        self._attempted = False
        self._unsent = set(self._outgoing)
        self._received: dict[Place, SecretBuffer] = {}
        self._token: contextvars.Token[Exchange | None] | None = None

    def stand_in(self, secret: SecretBuffer) -> str:
        """Return what stands, as a whole JSON string in the request, for a secret text in UTF-8.

        Raises:
            ValueError: on sending, that the text is no UTF-8.
        """
        name = f"tapeseal-secret-{secrets.token_hex(16)}"
        self._outgoing[name.encode()] = secret, in_string
        self._unsent.add(name.encode())
        return name

    def take(self, name: str) -> SecretBuffer:
        """Return the secret field of the answer, decoded from base64; the caller owns it from here on.

        Args:
            name: the field exactly as the service spells it: "Plaintext" for KMS, "plaintext" for
                Transit, where it is a member of "data".

        Raises:
            ServiceUnavailableError: the last answer had no such field, or it was no base64.
        """
        text = self._received.pop((name,), None) or self._received.pop(("data", name), None)
        if text is not None:
            with contextlib.closing(text):
                try:
                    return SecretBuffer.from_base64(text, 0, len(text))
                except ValueError:
                    pass
        raise ServiceUnavailableError(
            f"the answer holds no {name}, or one that is not base64: try again, and ask whoever"
            " runs the service or what stands before it"
        )

    def take_all(self) -> dict[Place, SecretBuffer]:
        """Return the texts of all secrets of the answer by where they stood; the caller owns them from here on."""
        taken, self._received = self._received, {}
        return taken

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
        if exc_type is None and self._unsent:
            raise RuntimeError("the secret was never sent: the client is not a protected one")

    def __repr__(self) -> str:
        return "<Exchange>"

    def digest(self, body: object) -> str | None:
        """Return the SHA-256, in hex, of a request's body with its secrets in place; None without one."""
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
        """Send a request of the library's with the secrets in place, and keep those of its answer.

        Raises:
            WireError: there was no whole answer, or it was refused.
            ValueError: the request cannot be sent.
        """
        self._forget()
        if self._once and self._attempted:
            raise wire.WireError(
                "closed", "the first try got no answer, and there is no second one"
            )
        self._attempted = True
        parts = self._parts(body)
        try:
            answer = wire.send(
                method,
                url,
                headers,
                parts,
                route,
                self._deadline,
                most=self._most,
                once=self._once,
            )
            with contextlib.closing(answer.buffer):
                return self._receive(
                    answer, [part for part in parts if not isinstance(part, bytes)]
                )
        finally:
            _wipe(parts)

    def _parts(self, body: object) -> list[bytes | SecretBuffer]:
        """Return a request's body cut at its stand-ins, with a secret as it is sent in the place of each."""
        text = body.encode() if isinstance(body, str) else b"" if body is None else body
        if not isinstance(text, bytes):
            raise ValueError("a request inside an Exchange has its body in one piece")
        found = [(text.find(name), name) for name in self._outgoing if name in text]
        if any(text.count(name) > 1 for _, name in found):
            raise ValueError("a stand-in is more than once in one request")
        if PLACEHOLDER_TEXT.encode() not in self._outgoing:
            refuse_placeholder(text)
        parts: list[bytes | SecretBuffer] = []
        done = 0
        try:
            for at, name in sorted(found):
                secret, write = self._outgoing[name]
                parts += [text[done:at], write(secret)]
                done = at + len(name)
                self._unsent.discard(name)
        except BaseException:
            _wipe(parts)
            raise
        return [*parts, text[done:]]

    def _receive(self, answer: wire.Answer, sent: Sequence[SecretBuffer]) -> Reply:
        start, stop = answer.start, answer.stop
        with answer.buffer, memoryview(answer.buffer) as view:
            try:
                # To look through much for what was sent takes longer than a deadline.
                if not answer.whole or (answer.status >= 300 and stop - start > wire.MAX_ANSWER):
                    raise ValueError("it is too long")
                if start == stop:
                    body = b""
                elif answer.status >= 300:
                    body = redact_error(view, start, stop, patterns=self._patterns, sent=sent)
                else:
                    body, fields = redact(view, start, stop, self._patterns)
                    for each in fields:
                        text = SecretBuffer.take(view[each.start : each.stop])
                        self._received[each.place] = text
            except ValueError as problem:
                if answer.status < 300:
                    raise wire.WireError("answer", f"the answer was refused: {problem}") from None
                note = f"the body of this answer was left out: {problem}"
                body = json.dumps({"errors": [note], "message": note}).encode()
        return _reply(answer, body)

    def _forget(self) -> None:
        _wipe(self._received.values())
        self._received.clear()


class PlainExchange(Exchange):
    """An Exchange without secrets, for its deadline: the answer stays as it is.

    Other clients have a timeout for each piece of an answer, and wait for ever for a server that sends one at a time.
    """

    def _receive(self, answer: wire.Answer, sent: Sequence[SecretBuffer]) -> Reply:
        with answer.buffer, memoryview(answer.buffer) as view:
            return _reply(answer, bytes(view[answer.start : answer.stop]))


def current() -> Exchange | None:
    """Return the Exchange that this thread is in."""
    return _current.get()


def refuse_placeholder(body: object) -> None:
    """Raise ValueError where a request would carry the placeholder itself, as if it were the secret."""
    text = body.encode() if isinstance(body, str) else body
    if isinstance(text, bytes) and PLACEHOLDER_TEXT.encode() in text:
        raise ValueError("a request holds the placeholder, but no Exchange here has its secret")


def _reply(answer: wire.Answer, body: bytes) -> Reply:
    headers = [each for each in answer.headers if each[0].lower() not in _OF_THE_WIRE]
    headers.append(("Content-Length", str(len(body))))
    return Reply(answer.status, answer.reason, headers, body)


def _wipe(parts: Iterable[bytes | SecretBuffer]) -> None:
    for part in parts:
        if isinstance(part, SecretBuffer):
            part.close()
