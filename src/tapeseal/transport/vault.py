"""The transport under hvac: secret fields of a client's calls inside an Exchange."""

import io
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from hvac.adapters import JSONAdapter
from hvac.exceptions import VaultError
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH, select_proxy

from tapeseal.transport import Exchange, current, refuse_placeholder
from tapeseal.transport.scanner import redact_error
from tapeseal.transport.wire import Kind, Route, WireError, origin, tls_context

_EXCEPTIONS: dict[Kind, type[requests.RequestException]] = {
    "connect": requests.ConnectionError,
    "connect timeout": requests.ConnectTimeout,
    "tls": requests.exceptions.SSLError,
    "proxy": requests.exceptions.ProxyError,
    "read timeout": requests.ReadTimeout,
    "closed": requests.ConnectionError,
    "answer": requests.ConnectionError,
}


class SecretAdapter(JSONAdapter):  # type: ignore[misc] # hvac has no types
    """hvac's JSONAdapter that sends and receives by this package inside an Exchange.

    For `hvac.Client(adapter=SecretAdapter)`; a client that exists already is not turned into one,
    for its `secrets` and `auth` keep the adapter they began with. The client's own settings hold:
    verify, cert, timeout (its read half here for the whole of an answer), proxies (CONNECT),
    namespace. Failures on the way are requests' own exceptions, ConnectionError where an answer was
    refused; their first argument is the transport's WireError.

    Two things differ outside an Exchange too. An exception of hvac's holds the `errors` list of the
    answer, capped, and none of the rest of its body but `json`, without its secrets (hvac's own
    holds the whole body, plaintexts of a batch included), and also a `status`. And a redirect never
    takes the token elsewhere: one that SecretSender refuses, or any where allow_redirects is off,
    raises hvac's UnexpectedError, with a `location` (hvac would hand it back as an answer).

    Raises:
        TypeError: the client's requests.Session was given a transport of its own, which is no
            SecretSender.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for scheme in ("https://", "http://"):
            sender = self.session.get_adapter(scheme + urlsplit(self.base_uri).netloc)
            if type(sender) is HTTPAdapter:
                # Not mount(), which for a moment has no adapter at all for other threads.
                self.session.adapters[scheme] = SecretSender(max_retries=sender.max_retries)
            elif not isinstance(sender, SecretSender):
                raise TypeError("an hvac client with a transport of its own cannot keep secrets")

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        raise_exception: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Send a request and return its answer; see JSONAdapter."""
        headers = dict(headers or {})
        answer = super().request(method, url, headers, raise_exception=False, **kwargs)
        if isinstance(answer, requests.Response):
            if answer.is_redirect:
                raise _error(answer, "it redirects, which this client does not follow")
            if not answer.ok and raise_exception and not self.ignore_exceptions:
                raise _error(answer)
        return answer


class SecretSender(HTTPAdapter):
    """A transport of requests that sends and receives by this package inside an Exchange.

    It follows redirects of status 307 and 308 to the same address alone, inside an Exchange or not:
    requests would send Vault's token, and the body, wherever a redirect points.
    """

    def route(
        self, url: str, verify: bool | str, cert: Any, proxies: Mapping[str, str] | None
    ) -> Route:
        """Return how an Exchange reaches a URL; a subclass with TLS of its own says so here.

        The timeouts are set by the caller; other arguments are those of send().
        """
        bundle = DEFAULT_CA_BUNDLE_PATH if verify is True else verify or False
        certificate = (cert, None) if isinstance(cert, str) else cert or None
        return Route(tls_context(bundle, certificate), proxy=select_proxy(url, dict(proxies or {})))

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request and return its answer; see HTTPAdapter.

        Raises:
            UnexpectedError: the answer is a redirect to another address.
        """
        exchange = current()
        if exchange is None:
            refuse_placeholder(request.body)
            response = super().send(request, stream, timeout, verify, cert, proxies)
        else:
            connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
            try:
                route = self.route(request.url or "", verify, cert, proxies)
                route = route._replace(connect_timeout=connect, read_timeout=read)
                response = self._exchange(exchange, request, route)
            except WireError as error:
                raise _EXCEPTIONS[error.kind](error.with_traceback(None)) from None
        if response.is_redirect:
            target = urljoin(response.url, response.headers["Location"])
            if response.status_code not in (307, 308) or not _same_address(response.url, target):
                response.close()
                raise _error(response, "it redirects to another address, which is not followed")
        return response

    def _exchange(
        self, exchange: Exchange, request: requests.PreparedRequest, route: Route
    ) -> requests.Response:
        url = request.url or ""
        headers = {**request.headers, "Accept-Encoding": "identity"}
        reply = exchange.attempt(request.method or "", url, headers, request.body, route)
        response = requests.Response()
        response.status_code = reply.status
        response.reason = reply.reason
        response.headers = CaseInsensitiveDict(reply.headers)
        response.raw = io.BytesIO(reply.body)
        response.encoding = "utf-8"
        response.url = url
        response.request = request
        response.connection = self
        return response


def _same_address(url: str, other: str) -> bool:
    try:
        return origin(url) == origin(other)
    except ValueError:
        return False


def _error(answer: requests.Response, problem: str | None = None) -> VaultError:
    """Make hvac's exception of an answer, without what it must not hold."""
    errors = document = None
    try:
        with memoryview(answer.content) as view:
            document = json.loads(redact_error(view, 0, len(view)))
        errors = document["errors"]
    except (ValueError, KeyError):
        pass
    if problem is not None or not isinstance(errors, list):
        errors = None
        problem = problem or "no list of errors"
    else:
        errors = [_printable(error) for error in errors[:8] if isinstance(error, str)]
    error = VaultError.from_status(
        answer.status_code,
        problem and f"status {answer.status_code}: {problem}",
        errors=errors,
        method=answer.request.method,
        url=answer.url,
        json=document,
    )
    error.status = answer.status_code
    error.location = answer.headers.get("Location", "")
    return error


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text[:500])
