"""Requests of HTTP whose secrets stay in key memory: in headers and in the body, and in what is answered."""

import json
import re
import ssl
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from tapeseal._core import SecretBuffer
from tapeseal.errors import RotationError, ServiceUnavailableError
from tapeseal.rotation.commands import unescaped
from tapeseal.secret import Secret
from tapeseal.transport import wire

_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|::1")
_MEMBER = re.compile(rb'"((?:[^"\\]|\\.)*+)"(?:[ \t\r\n]*+:[ \t\r\n]*+(?:"((?:[^"\\]|\\.)*+)")?)?')

_UNAUTHORIZED: Final = (401, 403)
_BUSY: Final = (408, 425, 429)


class Reply(NamedTuple):
    """An answer: its JSON with "" for each secret member, and those; None where it has none or is none."""

    status: int
    document: Any
    secrets: dict[str, Secret]

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
    secret: Collection[str] = (),
    ca_file: Path | None = None,
    seconds: float = 10.0,
) -> Reply:
    """Send one request, on a connection of its own, so that it is never sent twice.

    Args:
        method: of HTTP.
        url: as check_url() lets it pass.
        headers: beside those that say what a body is.
        secret_headers: their values, in parts.
        body: a JSON document, in parts.
        secret: the names of members of the answer, at any depth, whose texts become Secrets.
        ca_file: what the server's certificate is checked against; None: what the system trusts.
        seconds: how long it may take.

    Raises:
        ServiceUnavailableError: there was no whole answer, or one that asks to come again.
        RotationError: the answer is none that such a request can have.
    """
    host = urlsplit(url).netloc
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise RotationError(f"{ca_file}: {error.strerror or 'no certificates in PEM'}") from None
    context.set_alpn_protocols(["http/1.1"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    content = {"content-type": "application/json"} if body else {}
    headers = {"accept": "application/json", **content, **(headers or {})}
    problem = ""
    try:
        answer = wire.send(
            method,
            url,
            headers,
            body,
            wire.Route(context),
            time.monotonic() + seconds,
            secret_headers=secret_headers,
        )
    except wire.WireError as error:
        problem = f"{method} {url}: {error}"
    if problem:
        raise ServiceUnavailableError(problem)
    with closing(answer.buffer), answer.buffer, memoryview(answer.buffer) as view:
        if answer.status >= 500 or answer.status in _BUSY:
            raise ServiceUnavailableError(f"{method} {url}: {host} answers {answer.status}")
        document, secrets = None, dict[str, Secret]()
        if answer.whole and answer.start < answer.stop:
            document, secrets = take_members(view[answer.start : answer.stop], secret)
    return Reply(answer.status, document, secrets)


def take_members(view: memoryview, names: Collection[str]) -> tuple[Any, dict[str, Secret]]:
    """Take secrets out of a JSON document.

    Args:
        view: its text.
        names: of members; those whose values are texts are taken, the first of each name.

    Returns:
        The document with "" in their place, and the secrets; None where it is not JSON.
    """
    pieces: list[bytes] = []
    secrets: dict[str, Secret] = {}
    at = 0
    for found in _MEMBER.finditer(view):
        if found[2] is None or bytes(found[1]).decode(errors="replace") not in names:
            continue
        name = bytes(found[1]).decode()
        start, stop = found.span(2)
        pieces.append(bytes(view[at:start]))
        at = stop
        if name not in secrets and start < stop:
            secrets[name] = unescaped(view[start:stop], name)
    pieces.append(bytes(view[at:]))
    try:
        return json.loads(b"".join(pieces)), secrets
    except ValueError:
        pass
    for each in secrets.values():
        each.close()
    return None, {}
