"""The transport under boto3: secret fields of a client's calls inside an Exchange."""

import io
from collections.abc import Iterator
from typing import Any, NoReturn

import botocore.exceptions
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.httpsession import Timeout, URLLib3Session, get_cert_path, mask_proxy_url

from tapeseal.transport import current, refuse_placeholder
from tapeseal.transport.wire import Route, WireError, tls_context


def protect_boto3(client: Any) -> None:
    """Make a boto3 KMS client send and receive by this package inside an Exchange; again does nothing.

    The client's own settings hold: endpoint, CA bundle, client certificate, HTTP proxy (CONNECT),
    connect_timeout and read_timeout (here for the whole of an answer, not for each piece of it),
    retries. Failures are botocore's own exceptions: EndpointConnectionError, ConnectTimeoutError,
    ReadTimeoutError, ConnectionClosedError, SSLError, ProxyConnectionError, and HTTPClientError
    where an answer was refused.

    Raises:
        TypeError: the client is not boto3's, or does not talk HTTP as boto3's do by default.
    """
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    if not isinstance(session, URLLib3Session):
        raise TypeError("secrets can be kept from a boto3 client with botocore's own HTTP session")

    def send(request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
        return _send(session, request)

    events = client.meta.events
    service = client.meta.service_model.service_id.hyphenize()
    # First, so that the signer finds the digest, and nobody else sends the request.
    events.register_first(f"request-created.{service}", _set_digest, "tapeseal-digest")
    events.register_first(f"before-send.{service}", send, "tapeseal-send")


def _set_digest(request: AWSRequest, **_: Any) -> None:
    exchange = current()
    if exchange is None:
        return
    digest = exchange.digest(request.data)
    if digest is not None:
        # The signer takes it as the digest of the body; it would else be the placeholder's.
        request.headers["X-Amz-Content-SHA256"] = digest


def _send(session: Any, request: AWSPreparedRequest) -> AWSResponse | None:
    exchange = current()
    if exchange is None:
        refuse_placeholder(request.body)
        return None
    proxy = session._proxy_config.proxy_url_for(request.url)
    try:
        route = _route(session, request, proxy)
        reply = exchange.attempt(request.method, request.url, request.headers, request.body, route)
    except WireError as error:
        _raise(error.with_traceback(None), request.url, proxy)
    return AWSResponse(request.url, reply.status, reply.headers, _Body(reply.body))


def _route(session: Any, request: AWSPreparedRequest, proxy: str | None) -> Route:
    timeout = session._timeout
    if not isinstance(timeout, Timeout):
        timeout = Timeout(connect=timeout, read=timeout)
    read_timeout = (request.context or {}).get("read_timeout")
    return Route(
        tls=tls_context(
            get_cert_path(session._verify) if session._verify else False,
            (session._cert_file, session._key_file) if session._cert_file else None,
        ),
        proxy=proxy,
        connect_timeout=timeout.connect_timeout,
        read_timeout=timeout.read_timeout if read_timeout is None else read_timeout,
    )


class _Body(io.BytesIO):
    def stream(self) -> Iterator[bytes]:
        yield self.read()


def _raise(error: WireError, url: str, proxy: str | None) -> NoReturn:
    exceptions = botocore.exceptions
    match error.kind:
        case "connect":
            raise exceptions.EndpointConnectionError(endpoint_url=url, error=error) from None
        case "connect timeout":
            raise exceptions.ConnectTimeoutError(endpoint_url=url, error=error) from None
        case "read timeout":
            raise exceptions.ReadTimeoutError(endpoint_url=url, error=error) from None
        case "closed":
            raise exceptions.ConnectionClosedError(endpoint_url=url, error=error) from None
        case "tls":
            raise exceptions.SSLError(endpoint_url=url, error=error) from None
        case "proxy":
            masked = mask_proxy_url(proxy)
            raise exceptions.ProxyConnectionError(proxy_url=masked, error=error) from None
        case "answer":
            raise exceptions.HTTPClientError(error=error) from None
