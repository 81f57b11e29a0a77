"""A small HTTP/1.1 client: what it sends and receives stands in SecretBuffers, and in none besides.

TLS is Python's ssl, which reads into and writes from a buffer of ours directly; OpenSSL wipes its
own (SSL_OP_CLEANSE_PLAINTEXT). Connections are kept and shared by all threads, not with a fork.
"""

import atexit
import base64
import contextlib
import functools
import os
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

from tapeseal import _core
from tapeseal._core import SecretBuffer

MAX_ANSWER: Final = 1 << 16
"""The most bytes of an answer, head and all, where a caller does not take more."""

IDLE_SECONDS: Final = 30
"""How long a connection is kept for the next request."""

MAX_IDLE: Final = 10
"""The most connections kept to one address."""

OP_CLEANSE_PLAINTEXT: Final = 0x2  # which Python 3.11 has no name for

_MAX_HEAD = 1 << 15
_MAX_LINE = 1024
_HEAD_END = re.compile(rb"\r\n\r\n")
_LINE_END = re.compile(rb"\r\n")
_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t -~\x80-\xff]*))?")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*+")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*+(?:;[\t -~]*+)?")
_LENGTH = re.compile(r"[0-9]{1,10}")
_TARGET = re.compile(r"[!-~]+")

# What belongs to the connection, or follows from the body, is this module's to say.
_OURS = {"connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"}

Kind: TypeAlias = Literal[
    "connect", "connect timeout", "tls", "proxy", "read timeout", "closed", "answer"
]


class WireError(Exception):
    """A request that got no whole answer; `kind` says how far it came, "answer" that it was refused.

    Of "connect", "connect timeout" and "proxy" nothing was sent; `__cause__` is what the system or
    OpenSSL said of the connection. The exceptions of the libraries above hold it, without the
    frames of its traceback, where tokens are.
    """

    def __init__(self, kind: Kind, problem: str) -> None:
        super().__init__(problem)
        self.kind = kind


class TlsFileError(WireError):
    """A file of certificates or of a key, which a connection needs, cannot be used: nothing was sent."""

    def __init__(self, problem: str) -> None:
        super().__init__("tls", problem)


class _TooLongError(WireError):
    def __init__(self, most: int) -> None:
        super().__init__("answer", f"the answer is longer than {most} bytes")


class Route(NamedTuple):
    """How to reach a server: the settings of the library above.

    `tls` is for https; `server_name` is what its certificate must hold, None for the host of the
    URL; `proxy` the URL of an HTTP proxy; timeouts are in seconds, None for no limit, the read
    timeout for all that follows the connection.
    """

    tls: ssl.SSLContext
    server_name: str | None = None
    proxy: str | None = None
    connect_timeout: float | None = None
    read_timeout: float | None = None


class Answer(NamedTuple):
    """An answer; its body stands in buffer[start:stop]. The caller closes the buffer."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    buffer: SecretBuffer
    start: int
    stop: int
    whole: bool  # False: an error's body was too long, and was left out


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int

    @property
    def name(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"
        )


def tls_context(verify: str | bool, certificate: tuple[str, str | None] | None) -> ssl.SSLContext:
    """Return a TLS context, the same one for the same files unless they were renewed.

    Args:
        verify: a CA file or directory; False: no certificate is checked at all.
        certificate: the files of the client's certificate and key.

    Raises:
        TlsFileError: a file cannot be used.
    """
    paths = [path for path in (verify, *(certificate or ())) if isinstance(path, str)]
    try:
        stamps = tuple((os.stat(path).st_mtime_ns, os.stat(path).st_ino) for path in paths)
        return _cached_context(verify, certificate, stamps)
    except OSError as error:
        raise TlsFileError(f"a certificate's file cannot be used: {error}") from None


@functools.lru_cache(maxsize=16)
def _cached_context(
    verify: str | bool,
    certificate: tuple[str, str | None] | None,
    stamps: tuple[tuple[int, int], ...],
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    if not isinstance(verify, str):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif os.path.isdir(verify):
        context.load_verify_locations(capath=verify)
    else:
        context.load_verify_locations(cafile=verify)
    if certificate is not None:
        # A question for a passphrase on the terminal would hang a service.
        context.load_cert_chain(*certificate, password="")
    return context


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an http or https URL; ValueError where it is none."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https") or not parts.hostname or not parts.hostname.isascii():
        raise ValueError("an address starts with http:// or https:// and a host's name")
    return _Origin(scheme, parts.hostname, parts.port or (443 if scheme == "https" else 80))


def send(
    method: str,
    url: str,
    headers: Mapping[str, str | bytes],
    body: Sequence[bytes | SecretBuffer],
    route: Route,
    deadline: float | None = None,
    *,
    most: int = MAX_ANSWER,
    once: bool = False,
    secret_headers: Mapping[str, Sequence[bytes | SecretBuffer]] | None = None,
) -> Answer:
    """Send a request, its body and secret headers in parts, and return the answer; redirects are not followed.

    On a kept connection that turns out closed before any answer, it is sent once more on a new one.

    Args:
        most: bytes of an answer, head and all.
        once: do not send it again, whatever the connection turns out to be.

    Raises:
        WireError: no whole answer in time, or one that is not HTTP or too long.
        ValueError: the URL or a header cannot be sent.
    """
    server = _Origin(*origin(url))
    head = _head(method, url, server, headers, body)
    lines = _secret_lines(secret_headers or {})
    request = _assemble([head, *lines, b"\r\n", *body])
    try:
        key = (server, route.tls, route.server_name, route.proxy)
        while True:
            connection = _pool.take(key)
            kept = connection is not None
            if connection is None:
                connection = _Connection(server, route, _earliest(route.connect_timeout, deadline))
            by = _earliest(route.read_timeout, deadline)
            try:
                answer, reusable = connection.exchange(
                    request, by, most, head_only=method == "HEAD"
                )
            except WireError as problem:
                connection.close()
                if kept and not once and problem.kind == "closed" and not connection.heard:
                    continue
                raise
            except BaseException:
                connection.close()
                raise
            if reusable:
                _pool.give(key, connection)
            else:
                connection.close()
            return answer
    finally:
        request.close()


def _head(
    method: str,
    url: str,
    server: _Origin,
    headers: Mapping[str, str | bytes],
    body: Sequence[bytes | SecretBuffer],
) -> bytes:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not _TARGET.fullmatch(target) or not _TARGET.fullmatch(method) or "@" in parts.netloc:
        raise ValueError("an address or a method that HTTP cannot carry")
    lines = [f"{method} {target} HTTP/1.1"]
    named = {"host": server.name, "accept-encoding": "identity"}
    for name, value in headers.items():
        text = value if isinstance(value, str) else value.decode("latin-1")
        line = f"{name}: {text}"
        if not _HEADER.fullmatch(line) or name.lower() == "transfer-encoding":
            raise ValueError(f"the header {name[:100]!r} cannot be sent")
        if name.lower() == "host":
            named["host"] = text
        elif name.lower() not in _OURS:
            lines.append(line)
            named.pop(name.lower(), None)
    lines += [f"{name}: {value}" for name, value in named.items()]
    size = sum(len(part) for part in body)
    if size or method not in ("GET", "HEAD"):
        lines.append(f"content-length: {size}")
    return "\r\n".join([*lines, ""]).encode("latin-1")


def _secret_lines(
    headers: Mapping[str, Sequence[bytes | SecretBuffer]],
) -> list[bytes | SecretBuffer]:
    lines: list[bytes | SecretBuffer] = []
    for name, parts in headers.items():
        if not _HEADER.fullmatch(f"{name}: x") or name.lower() in _OURS | {"transfer-encoding"}:
            raise ValueError(f"the header {name[:100]!r} cannot be sent")
        for part in parts:
            if isinstance(part, bytes):
                sound = _VALUE.fullmatch(part) is not None
            else:
                with part, memoryview(part) as view:
                    sound = _VALUE.fullmatch(view) is not None
            if not sound:
                raise ValueError(f"what the header {name[:100]!r} would hold cannot be in one")
        lines += [f"{name}: ".encode("latin-1"), *parts, b"\r\n"]
    return lines


def _assemble(parts: Sequence[bytes | SecretBuffer]) -> SecretBuffer:
    request = SecretBuffer(sum(len(part) for part in parts), writable=True)
    with request:
        at = 0
        for part in parts:
            if isinstance(part, bytes):
                at += _core.copy_into(request, at, part)
            else:
                with part:
                    at += _core.copy_into(request, at, part)
    return request


class _Connection:
    """One connection, used by one request at a time."""

    def __init__(self, server: _Origin, route: Route, by: float | None) -> None:
        self.heard = False
        """Whether any byte of an answer to the last request arrived."""
        self.idle_since = 0.0
        self._server = server
        try:
            self._socket = _connect(server, route, by)
        except TimeoutError:
            problem = f"no connection to {server.name} in time"
            raise WireError("connect timeout", problem) from None
        except ssl.SSLError as error:
            problem = f"{server.name}: {error}"
            raise WireError("tls", problem) from error.with_traceback(None)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of the DNS
            problem = f"no connection to {server.name}: {error}"
            raise WireError("connect", problem) from error.with_traceback(None)

    def exchange(
        self, request: SecretBuffer, by: float | None, most: int, *, head_only: bool
    ) -> tuple[Answer, bool]:
        """Send a request and return its answer, and whether the connection can be used again."""
        self.heard = False
        with request, memoryview(request) as view:
            self._send(view, by)
        reader = _Reader(self, by, most)
        try:
            return reader.read(head_only=head_only)
        except BaseException:
            reader.buffer.close()
            raise
        finally:
            reader.release()

    def _send(self, view: memoryview, by: float | None) -> None:
        at = 0
        with self._errors():
            while at < len(view):
                self._socket.settimeout(_left(by))
                at += self._socket.send(view[at:])

    def receive(self, view: memoryview, by: float | None) -> int:
        """Read some bytes to a buffer and return how many, 0 at the end."""
        with self._errors():
            self._socket.settimeout(_left(by))
            count = self._socket.recv_into(view)
        self.heard = self.heard or count > 0
        return count

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        name = self._server.name
        try:
            yield
        except TimeoutError:
            raise WireError("read timeout", f"{name} gave no whole answer in time") from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            raise WireError("closed", f"{name} closed the connection") from None
        except ssl.SSLError as error:
            raise WireError("tls", f"{name}: {error}") from None
        except OSError as error:
            raise WireError("closed", f"{name}: {error}") from None

    def quiet(self) -> bool:
        """Whether a kept connection is still open, with nothing sent that nobody asked for."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._socket.close()


class _Reader:
    """Reads one answer into a buffer that grows; the pieces of a chunked body are put together in place."""

    def __init__(self, connection: _Connection, by: float | None, most: int) -> None:
        self._connection = connection
        self._by = by
        self._most = most
        self._have = 0
        self._take(SecretBuffer(min(most, MAX_ANSWER), writable=True))

    def _take(self, buffer: SecretBuffer) -> None:
        self.buffer = buffer
        buffer.__enter__()
        self._view = memoryview(buffer)

    def release(self) -> None:
        """Leave the buffer to whoever has the answer."""
        self._view.release()
        self.buffer.__exit__(None, None, None)

    def _grow(self, least: int) -> None:
        old = self.buffer
        if least > self._most:
            raise _TooLongError(self._most)
        larger = SecretBuffer(min(self._most, max(least, 2 * len(old))), writable=True)
        with larger:
            _core.copy_into(larger, 0, self._view[: self._have])
        self.release()
        old.close()
        self._take(larger)

    def read(self, *, head_only: bool) -> tuple[Answer, bool]:
        """Return the answer, which is in `buffer`, and whether the connection can be used again."""
        start = 0
        status = 100
        for _ in range(4):  # at most three of kind 1xx before
            at = start
            start = self._find(_HEAD_END, at, _MAX_HEAD) + 4
            version, status, reason, headers = _parse_head(bytes(self._view[at : start - 4]))
            if status >= 200:
                break
        if status < 200 or status == 101:
            raise WireError("answer", f"the answer is a {status}")
        named = _framing(headers)
        end = stop = start  # of the message, and of the body that is left of it
        whole = True
        reusable = version == 1 and "close" not in named["connection"].lower()
        try:
            if head_only or status in (204, 304):
                pass
            elif "transfer-encoding" in named:
                end, stop = self._chunks(start)
            elif "content-length" in named:
                end = stop = start + int(named["content-length"])
                self._need(end)
            else:
                # Until the connection ends, which anyone can make it do: whoever parses the body
                # finds out whether that was its end.
                reusable = False
                while self._more():
                    pass
                end = stop = self._have
        except _TooLongError:
            # An error's status says enough; the rest is some proxy's page.
            if status < 400:
                raise
            end = stop = start
            whole = False
        reusable = reusable and end == self._have
        return Answer(status, reason, headers, self.buffer, start, stop, whole), reusable

    def _more(self) -> bool:
        if self._have == len(self._view):
            self._grow(self._have + 1)
        count = self._connection.receive(self._view[self._have :], self._by)
        self._have += count
        return count > 0

    def _need(self, stop: int) -> None:
        if stop > len(self._view):
            self._grow(stop)
        while self._have < stop:
            if not self._more():
                raise WireError("closed", "the connection ended before the answer did")

    def _find(self, pattern: re.Pattern[bytes], start: int, most: int) -> int:
        """Return where the pattern's first match from start on begins, at most so many bytes further."""
        while True:
            found = pattern.search(self._view, start, min(self._have, start + most))
            if found is not None:
                return found.start()
            if self._have >= start + most:
                raise WireError("answer", f"the answer has a head or line of over {most} bytes")
            self._need(self._have + 1)

    def _chunks(self, at: int) -> tuple[int, int]:
        stop = at
        while True:
            end = self._find(_LINE_END, at, _MAX_LINE)
            line = _CHUNK.fullmatch(self._view, at, end)
            if line is None:
                raise WireError("answer", "the answer has a chunk of no size")
            size = int(bytes(self._view[at : line.end(1)]), 16)
            at = end + 2
            if size == 0:
                break
            self._need(at + size + 2)
            if bytes(self._view[at + size : at + size + 2]) != b"\r\n":
                raise WireError("answer", "the answer has a chunk of another size than it says")
            self._view[stop : stop + size] = self._view[at : at + size]
            stop += size
            at += size + 2
        while (end := self._find(_LINE_END, at, _MAX_LINE)) > at:  # trailers, of no use to us
            at = end + 2
        return at + 2, stop


def _parse_head(head: bytes) -> tuple[int, int, str, list[tuple[str, str]]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    status = _STATUS.fullmatch(first)
    fields = [_HEADER.fullmatch(line) for line in lines]
    if status is None or len(fields) > 100:
        raise WireError("answer", "the answer is no HTTP")
    headers = []
    for field in fields:
        if field is None:
            raise WireError("answer", "the answer has a header that is none")
        headers.append((field[1], field[2]))
    return int(status[1]), int(status[2]), status[3] or "", headers


def _framing(headers: list[tuple[str, str]]) -> dict[str, str]:
    """Return the headers that say where the body ends and in what form it is, once each."""
    named = {"connection": ""}
    for header, value in headers:
        name = header.lower()
        if name == "connection":
            named[name] += f",{value}"
        elif name in ("content-length", "transfer-encoding", "content-encoding"):
            if name in named:
                raise WireError("answer", f"the answer has more than one {name}")
            named[name] = value
    if (
        ("transfer-encoding" in named and "content-length" in named)
        or named.get("transfer-encoding", "chunked").lower() != "chunked"
        or named.get("content-encoding", "identity").lower() != "identity"
        or not _LENGTH.fullmatch(named.get("content-length", "0"))
    ):
        raise WireError("answer", "the answer comes in a form that was not asked for")
    return named


def _connect(server: _Origin, route: Route, by: float | None) -> socket.socket:
    sock = (
        _open(server.host, server.port, by)
        if route.proxy is None
        else _open_through(route.proxy, server, by)
    )
    if server.scheme == "http":
        return sock
    try:
        route.tls.options |= OP_CLEANSE_PLAINTEXT
        sock.settimeout(_left(by))
        return route.tls.wrap_socket(sock, server_hostname=route.server_name or server.host)
    except BaseException:
        sock.close()
        raise


def _open(host: str, port: int, by: float | None) -> socket.socket:
    problem = OSError("the name has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(by))
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem


def _open_through(proxy: str, server: _Origin, by: float | None) -> socket.socket:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise WireError(
            "proxy", "secrets go through an http:// proxy only, not one of another kind"
        )
    if server.scheme != "https":
        raise WireError("proxy", "secrets go through a proxy to an https:// address only")
    target = f"{server.host}:{server.port}" if ":" not in server.host else server.name
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login).decode('ascii')}")
    sock = None
    try:
        sock = _open(parts.hostname, parts.port or 80, by)
        sock.settimeout(_left(by))
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        answer = b""
        # Nothing can follow the head: in TLS it is for us to speak first.
        while b"\r\n\r\n" not in answer and len(answer) < _MAX_HEAD:
            sock.settimeout(_left(by))
            piece = sock.recv(4096)
            if not piece:
                break
            answer += piece
        head, end, rest = answer.partition(b"\r\n\r\n")
        if not end or rest:
            raise WireError("proxy", "the proxy gave no answer to CONNECT")
        status = _parse_head(head)[1]
        if not 200 <= status < 300:
            raise WireError("proxy", f"the proxy refused with status {status}")
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, (OSError, UnicodeError)) and not isinstance(error, TimeoutError):
            raise WireError("proxy", f"no connection to the proxy: {error}") from None
        if isinstance(error, WireError):
            raise WireError("proxy", str(error)) from None
        raise
    return sock


_Key: TypeAlias = tuple[object, ...]


class _Pool:
    """Kept connections, for all threads of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[_Key, list[_Connection]] = {}

    def take(self, key: _Key) -> _Connection | None:
        """Return the connection used last, or None."""
        while True:
            with self._lock:
                kept = self._kept.get(key)
                if not kept:
                    return None
                connection = kept.pop()
            if time.monotonic() - connection.idle_since < IDLE_SECONDS and connection.quiet():
                return connection
            connection.close()

    def give(self, key: _Key, connection: _Connection) -> None:
        """Keep a connection for the next one; those kept too long, to any address, are closed."""
        connection.idle_since = time.monotonic()
        closed = []
        with self._lock:
            kept = self._kept.setdefault(key, [])
            kept.append(connection)
            if len(kept) > MAX_IDLE:
                closed.append(kept.pop(0))
            for each in list(self._kept):
                while self._kept[each]:
                    if connection.idle_since - self._kept[each][0].idle_since < IDLE_SECONDS:
                        break
                    closed.append(self._kept[each].pop(0))
                if not self._kept[each]:
                    del self._kept[each]
        for old in closed:
            old.close()

    def clear(self) -> None:
        """Close every kept connection; the other process of a fork keeps its own end of each."""
        with self._lock:
            kept = [each for connections in self._kept.values() for each in connections]
            self._kept.clear()
        for connection in kept:
            connection.close()

    def after_fork(self) -> None:
        """Part with what the parent goes on using, whoever held the lock there."""
        self._lock = threading.Lock()
        self.clear()


_pool = _Pool()
atexit.register(_pool.clear)
os.register_at_fork(after_in_child=_pool.after_fork)


def _earliest(seconds: float | None, deadline: float | None) -> float | None:
    times = [] if seconds is None else [time.monotonic() + seconds]
    return min([*times, *([] if deadline is None else [deadline])], default=None)


def _left(by: float | None) -> float | None:
    if by is None:
        return None
    left = by - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
