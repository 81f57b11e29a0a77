"""Requests of HTTP whose secrets stay in key memory: in headers and in the body, and in what is answered."""

import json
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from tapeseal._core import SecretBuffer
from tapeseal.errors import RotationError, ServiceUnavailableError
from tapeseal.secret import Secret
from tapeseal.transport import wire
from tapeseal.transport.scanner import Pattern, redact

_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|::1")
_UNAUTHORIZED: Final = (401, 403)
_BUSY: Final = (408, 425, 429)


class Reply(NamedTuple):
    """An answer."""

    status: int
    document: Any
    """Its JSON, with a placeholder for each secret; None where that was not asked for, or there is none."""
    secrets: dict[str, Secret]
    """By the names of their members."""

    @property
    def refused(self) -> bool:
        """Whether it says that the credential is not good."""
        return self.status in _UNAUTHORIZED

    @property
    def done(self) -> bool:
        """Whether it says that all went well."""
        return 200 <= self.status < 300


def check_url(url: str) -> str:
    """Return a URL that secrets may be sent to.

    Raises:
        ValueError: it is no https:// URL of a host, nor an http:// one of this machine itself.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"{parts.scheme or 'that'}: is no URL like https://exchange.example/keys")
    if parts.scheme == "http" and not _LOOPBACK.fullmatch(parts.hostname):
        raise ValueError(
            f"http:// shows every secret on the wire to {parts.hostname}: use https://"
        )
    return url


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    secret_headers: Mapping[str, Sequence[bytes | SecretBuffer]] | None = None,
    body: Sequence[bytes | SecretBuffer] = (),
    secret: Sequence[Pattern] | None = None,
    ca_file: Path | None = None,
    seconds: float = 10.0,
) -> Reply:
    """Send one request, once.

    Args:
        method: of HTTP.
        url: as check_url() lets it pass.
        headers: beside those that say what a body is.
        secret_headers: their values, in parts.
        body: a JSON document, in parts.
        secret: where an answer of 2xx, which is then a JSON object, has secrets; None: its body is of no interest.
        ca_file: what the server's certificate is checked against; None: what the system trusts.
        seconds: how long it may take.

    Raises:
        ServiceUnavailableError: there was no whole answer, or one that asks to come again.
        RotationError: the answer is none that such a request can have.
    """
    content = {"content-type": "application/json"} if body else {}
    failure: RotationError | ServiceUnavailableError
    try:
        answer = wire.send(
            method,
            url,
            {"accept": "application/json", **content, **(headers or {})},
            body,
            wire.Route(_tls(None if ca_file is None else str(ca_file))),
            time.monotonic() + seconds,
            once=True,
            secret_headers=secret_headers,
        )
    except wire.WireError as error:
        failure = ServiceUnavailableError(f"{method} {url}: {error}")
    except ValueError as error:
        failure = RotationError(f"{method} {url} cannot be sent: {error}")
    else:
        return _reply(answer, f"{method} {url}", secret)
    raise failure


def _reply(answer: wire.Answer, what: str, secret: Sequence[Pattern] | None) -> Reply:
    with closing(answer.buffer), answer.buffer, memoryview(answer.buffer) as view:
        if answer.status >= 500 or answer.status in _BUSY:
            raise ServiceUnavailableError(f"{what} answers {answer.status}")
        if secret is None or not 200 <= answer.status < 300 or answer.start == answer.stop:
            return Reply(answer.status, None, {})
        try:
            text, fields = redact(view, answer.start, answer.stop, secret)
        except ValueError as error:
            problem = f"the answer to {what}: {error}"
        else:
            secrets = {
                str(each.place[-1]): Secret(SecretBuffer.take(view[each.start : each.stop]))
                for each in fields
            }
            return Reply(answer.status, json.loads(text), secrets)
    raise RotationError(problem)


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        problem = error.strerror or "there are no certificates in PEM in it"
    else:
        context.set_alpn_protocols(["http/1.1"])
        return context
    raise RotationError(f"{ca_file}: {problem}")
