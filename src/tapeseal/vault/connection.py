"""One request to one Vault: TLS as the session wants it, and what a failure means for the next try."""

import base64
import json
import os
import re
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import requests
from hvac.exceptions import VaultError
from requests.utils import select_proxy

from tapeseal.transport import PlainExchange, current
from tapeseal.transport.foreign_text import plain
from tapeseal.transport.vault import SecretAdapter, SecretSender
from tapeseal.transport.wire import Route, TlsFileError, WireError

CONNECT_SECONDS: Final = 1.0
_LEAST_SECONDS = 0.05
_MAX_ANSWER = 1 << 26
_LOOPBACK = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|::1")

# Statuses that say that this node did nothing, and that another, or the same a little later, may.
_NOT_HERE: Final[Mapping[int, str]] = {
    412: "is behind: it has not yet what another node wrote (412)",
    429: "has too much to do, or is a standby (429)",
    472: "is a standby of disaster recovery (472)",
    473: "is a performance standby (473)",
    501: "is not initialised (501)",
}
_BROKEN: Final = (
    requests.exceptions.ConnectionError,
    requests.exceptions.Timeout,
    requests.exceptions.ChunkedEncodingError,
)
_NOTHING_DONE = re.compile("Vault is sealed|active cluster node not found")
# A KV store in the moments after its node became active, or standby of another one: a 400.
_NOT_YET = re.compile("will be unavailable for a brief period")


def check_address(address: str) -> str:
    """Return an address of a Vault as the session keeps it.

    Raises:
        ValueError: it is no https:// URL of a host, nor an http:// one of this machine itself.
    """
    parts = urlsplit(address.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError("the address of a Vault is a URL like https://vault.example:8200")
    if parts.scheme == "http" and not _LOOPBACK.fullmatch(parts.hostname):
        raise ValueError(
            f"the address of Vault at {parts.hostname} is http://, which shows every token and key on "
            "the wire: use https://"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def tls_context(
    ca_file: str | None,
    ca_data: str | None,
    client_certificate: tuple[str, str | None] | None,
    minimum: ssl.TLSVersion,
) -> ssl.SSLContext:
    """Return a context that always checks certificates.

    Args:
        ca_file: file of certificates in PEM, or a directory of such files; None: the system's.
        ca_data: certificates in PEM.
        client_certificate: files of the certificate and of its key, None where the first has both.
        minimum: the least version of TLS.

    Raises:
        ValueError: a file cannot be used.
    """
    path = ca_file or "of VAULT_CACERT_BYTES"
    try:
        if ca_file is None:
            context = ssl.create_default_context(cadata=ca_data)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            # OpenSSL itself finds a directory's files only by hashed names.
            files = sorted(Path(ca_file).iterdir()) if os.path.isdir(ca_file) else [ca_file]
            for path in map(str, files):
                context.load_verify_locations(cafile=path)
        context.minimum_version = minimum
        if client_certificate is not None:
            path, key = client_certificate
            # Asking for a passphrase on the terminal would hang a service.
            context.load_cert_chain(path, key, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"the certificate file {path} cannot be used: {reason}") from None
    return context


class SessionAdapter(SecretAdapter):
    """The transport's adapter of hvac with a session's deadlines, which finds what it wrote on every node.

    A standby answers reads by itself, and may lag behind what the active node has taken. The index of the last write
    goes along, and a standby that is not as far passes the request on to the active node.

    Args:
        timeout: seconds for a whole answer after which a request fails.
    """

    def __init__(self, *args: Any, timeout: float, **kwargs: Any) -> None:
        super().__init__(*args, timeout=timeout, **kwargs)
        self._timeout = timeout
        self._of_thread = threading.local()
        self._written: tuple[int, str] = (0, "")
        self.session.hooks["response"].append(self._remember)

    @contextmanager
    def until(self, end: float) -> Iterator[None]:
        """Have this thread's requests answered by this `time.monotonic()`, or fail."""
        before = getattr(self._of_thread, "end", None)
        self._of_thread.end = end
        try:
            yield
        finally:
            self._of_thread.end = before

    def _remember(self, answer: requests.Response, **_: Any) -> None:
        index = answer.headers.get("X-Vault-Index", "")
        if answer.request.method in ("GET", "LIST", "HEAD") or not index:
            return
        # Threads may get their answers in another order than the server gave them.
        written = max(self._written, (_number(index), index))
        self._written = written

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        raise_exception: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Send a request to base_uri; see SecretAdapter."""
        end = getattr(self._of_thread, "end", None)
        left = self._timeout if end is None else end - time.monotonic()
        limits = (min(CONNECT_SECONDS, left), min(self._timeout, left))
        kwargs.setdefault("timeout", tuple(max(limit, _LEAST_SECONDS) for limit in limits))
        if self._written[1]:
            consistent = {
                "X-Vault-Index": self._written[1],
                "X-Vault-Inconsistent": "forward-active-node",
            }
            headers = {**consistent, **(headers or {})}
        # An answer that is read in pieces, such as a snapshot, is as long as it is.
        if end is None or current() is not None or kwargs.get("stream"):
            return super().request(method, url, headers, raise_exception, **kwargs)
        once = method.upper() not in ("GET", "LIST", "HEAD")
        with PlainExchange(deadline=end, most=_MAX_ANSWER, once=once):
            return super().request(method, url, headers, raise_exception, **kwargs)


def _number(index: str) -> int:
    """Return the place of a write among all, as X-Vault-Index has it in base64 of JSON; 0 where it has it otherwise."""
    try:
        return int(json.loads(base64.b64decode(index))["value"])
    except (ValueError, TypeError, LookupError):
        return 0


class TlsSender(SecretSender):
    """The transport's sender that checks servers as a session wants it, whatever `verify` and the environment say.

    Args:
        tls: the context of every connection.
        server_name: what certificates must hold; None: the host of the address.
    """

    def __init__(self, tls: ssl.SSLContext, server_name: str | None) -> None:
        self._tls = tls
        self._server_name = server_name
        super().__init__()

    def route(
        self, url: str, verify: bool | str, cert: Any, proxies: Mapping[str, str] | None
    ) -> Route:
        """Return how an Exchange reaches a URL."""
        proxy = select_proxy(url, dict(proxies or {}))
        return Route(self._tls, server_name=self._server_name, proxy=proxy)

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return host and TLS settings of the connection for a request outside an Exchange."""
        parts = urlsplit(request.url or "")
        host = {"scheme": parts.scheme, "host": parts.hostname, "port": parts.port}
        tls: dict[str, Any] = {"ssl_context": self._tls, "cert_reqs": "CERT_REQUIRED"}
        if self._server_name is not None:
            tls |= {"server_hostname": self._server_name, "assert_hostname": self._server_name}
        return host, tls

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave the connection as it is: requests would add its own bundle to what is trusted."""


class Failure(NamedTuple):
    """Why a try failed, where another may not."""

    reason: str
    """To follow the address in a sentence."""
    harmless: bool = True
    """Nothing was done: the same call can be made again whatever it is."""
    hopeless: bool = False
    """Waiting will not help."""
    leader: str = ""
    """The address that it named instead."""


def diagnose(error: VaultError | requests.RequestException) -> Failure | None:
    """Tell why a try failed; None where the server did answer, and the answer is the caller's affair."""
    if isinstance(error, VaultError):
        return _of_status(error)
    if not isinstance(error, _BROKEN):
        return None
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            problem = cause.verify_message or "not valid"
            return Failure(f"has a certificate that is not trusted: {problem}", hopeless=True)
        if isinstance(cause, TlsFileError):
            return Failure(f"was not asked: {cause}", hopeless=True)
    if isinstance(error, requests.exceptions.SSLError):
        reason = next((c.reason for c in causes if isinstance(c, ssl.SSLError) and c.reason), "TLS")
        return Failure(f"does not agree on TLS: {reason}", harmless=False)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return Failure("takes no connection in time")
    if isinstance(error, requests.exceptions.ReadTimeout):
        return Failure("gives no answer in time", harmless=False)
    names = {type(cause).__name__ for cause in causes}  # urllib3's own are known by name alone
    if names & {"gaierror", "NameResolutionError"}:
        return Failure("is no known host")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return Failure("refuses connections")
    if "NewConnectionError" in names or "connect" in [getattr(c, "kind", "") for c in causes]:
        return Failure("cannot be reached")
    return Failure("broke off", harmless=False)


def _of_status(error: VaultError) -> Failure | None:
    status: int = getattr(error, "status", 0)
    said = said_by(error)
    if 300 <= status < 400:
        parts = urlsplit(getattr(error, "location", ""))
        leader = f"{parts.scheme}://{parts.netloc.lower()}"
        return Failure(f"sends us elsewhere, to {plain(leader)} ({status})", leader=leader)
    if status in _NOT_HERE:
        return Failure(_NOT_HERE[status])
    if status == 400 and _NOT_YET.search(said):
        return Failure(f"is not ready yet: {said}")
    if status >= 500:
        problem = "is out of service" if status == 503 else "failed"
        # Vault's own words: a proxy's 503 may come after it has passed the request on.
        return Failure(f"{problem} ({status}): {said}", harmless=bool(_NOTHING_DONE.search(said)))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those in it.

    urllib3's are in `args` of those of requests, and have a `reason`; those of the transport have a __context__,
    which elsewhere may be what the caller was handling.
    """
    pending: list[Any] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            pending += [*each.args, getattr(each, "reason", None), each.__cause__]
            if isinstance(each, WireError) or isinstance(each.__context__, WireError):
                pending.append(each.__context__)


def said_by(error: VaultError, hide: Iterable[str] = ()) -> str:
    """Return the server's own words in an exception of hvac's, cut, and without the strings to hide."""
    errors = error.errors if isinstance(error.errors, list) else []
    text = "; ".join(each for each in errors if isinstance(each, str)) or "no reason given"
    for each in hide:
        if each:
            text = text.replace(each, "…")
    return plain(text)


def bare(error: Exception) -> Exception:
    """Return an exception without the frames and causes it has by now, which hold tokens and bodies."""
    error.__cause__ = error.__context__ = None
    if isinstance(error, requests.RequestException):
        error.request = error.response = None
    return error.with_traceback(None)
