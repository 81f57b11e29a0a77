"""VaultSession: logged in to a Vault or an OpenBao, whatever happens to tokens and nodes."""

import logging
import math
import queue
import random
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import hvac
import requests
from hvac.exceptions import (
    Forbidden,
    InternalServerError,
    InvalidRequest,
    Unauthorized,
    VaultError,
)
from requests.utils import get_environ_proxies

from tapeseal import audit
from tapeseal._core import check_process, process_epoch
from tapeseal.closing import Closing
from tapeseal.datakey import first_few
from tapeseal.errors import (
    AccessDeniedError,
    OutcomeUnknownError,
    ServiceUnavailableError,
    TapesealError,
)
from tapeseal.files import StrPath
from tapeseal.secret import Secret
from tapeseal.transport import Exchange
from tapeseal.vault.connection import (
    CONNECT_SECONDS,
    SessionAdapter,
    TlsSender,
    bare,
    check_address,
    diagnose,
    said_by,
    tls_context,
)
from tapeseal.vault.environment import from_environment
from tapeseal.vault.logins import SECRET_FIELDS, Login, Token, TokenFile

T = TypeVar("T")

logger = logging.getLogger("tapeseal.vault")

_DEADLINE = 10.0
_MAX_ANSWER = 1 << 21
_TIMEOUT = 3.0

# Between two rounds over the addresses, and between two tries of the background to renew.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_FIRST_RENEWAL_PAUSE, _LONGEST_RENEWAL_PAUSE = 0.25, 30.0


class TokenState(NamedTuple):
    """Which of its tokens a session has, and until when. Leases end with the token that they were made under."""

    number: int
    """How many tokens the session has had, this one included; 0 before its first login."""
    expires: float
    """The `time.monotonic()` of its end if it is not renewed, as far as is known; infinite if it has none."""


class _Lease:
    """A token and how long it is good for. It stands for the token in frames, whose values tracebacks may show."""

    __slots__ = ("expires", "number", "renew_at", "renewable", "seconds", "token")

    def __init__(self, token: str, seconds: float, renewable: bool, since: float) -> None:
        self.token = token
        self.seconds = seconds or math.inf
        self.renewable = renewable
        self.number = 0
        self.expires = since + self.seconds
        self.renew_at = since + self.seconds * 2 / 3 * random.uniform(0.9, 1.1)


class VaultSession(Closing):
    """Calls a Vault or an OpenBao, logged in, over all the nodes of a cluster.

    It logs in at the first call. A daemon thread renews the token when two thirds of its time have passed, and logs
    in anew where it cannot be renewed any further; while Vault is away, the token is kept until it has truly
    expired. Threads may share a session. A process that was forked opens its own: there, calls raise ForkError.

    What an argument leaves open, the variables of Vault's command line say (docs/vault.md): BAO_ADDR or VAULT_ADDR,
    BAO_TOKEN or VAULT_TOKEN and so on, and ~/.vault-token.

    Args:
        address: URL, or those of all nodes of a cluster; https://, or http:// to this machine itself.
        login: how to get a token, one of tapeseal.vault.logins.
        namespace: of the login and of all calls; "" for none.
        ca_file: certificates in PEM, or a directory of such files, that the server's is checked against. Without,
            and without a variable, those of the system count.
        client_certificate: paths of a certificate and its key in PEM, or of one file with both.
        minimum_tls: the least version of TLS.
        timeout: seconds for a node to give a whole answer, after which it is given up and the next one asked.
        deadline: seconds for one call in all: login, failover and repetitions.

    Raises:
        ValueError: an address, a file or a variable that cannot be used.
    """

    def __init__(
        self,
        address: str | Sequence[str] | None = None,
        *,
        login: Login | Token | TokenFile | None = None,
        namespace: str | None = None,
        ca_file: StrPath | None = None,
        client_certificate: StrPath | tuple[StrPath, StrPath] | None = None,
        minimum_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        timeout: float | None = None,
        deadline: float = _DEADLINE,
    ) -> None:
        environment = from_environment()
        addresses = [address] if isinstance(address, str) else address or environment.addresses
        self.addresses = tuple(check_address(each) for each in addresses)
        self.deadline = deadline
        self._login = login or environment.login
        self._namespace = environment.namespace if namespace is None else namespace
        self._timeout = timeout or environment.timeout or _TIMEOUT
        self._proxies = _proxies(self.addresses, environment.proxy)
        self._tls = None
        if any(each.startswith("https:") for each in self.addresses):
            self._tls = tls_context(
                environment.ca_file if ca_file is None else str(ca_file),
                environment.ca_data if ca_file is None else None,
                _pair(client_certificate) or environment.client_certificate,
                minimum_tls,
            )
        self._server_name = environment.server_name
        self._preferred = 0
        self._client = self._new_client()
        self._lease: _Lease | None = None
        self._stamp: object = None
        self._login_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Tells the background that there is something new to look at. A finalizer may do that at any moment, and
        # an Event is not made for it.
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._closed = False
        self._epoch = process_epoch()
        weakref.finalize(self, self._news.put, None).atexit = False

    # What users call

    @property
    def client(self) -> hvac.Client:
        """The hvac client, logged in, for everything else; the session keeps its token and its address current.

        It tries one node, once. A redirect and every status from 400 on are exceptions of hvac's, without the body
        of the answer.

        Raises:
            AccessDeniedError, ServiceUnavailableError: no login.
        """
        self._enter(lambda: self._ready(time.monotonic() + self.deadline))
        return self._client

    def call(
        self,
        function: Callable[[hvac.Client], T],
        *,
        idempotent: bool = True,
        deadline: float | None = None,
    ) -> T:
        """Run a function that makes one call with the client given to it, on a node that can serve it.

        A node that cannot be reached, is sealed, overloaded, a standby or gives no whole answer is passed over for
        the next, and all are tried again, with growing pauses, until the deadline. A token that is no longer valid
        is replaced by a new login. What the server answers otherwise is the caller's: an exception of hvac's,
        without frames and without the body of the answer.

        Args:
            function: takes the session's hvac.Client; may be run several times. An Exchange is opened in it, not
                around the call.
            idempotent: False for what must not happen twice: it is repeated only where the server certainly has
                not done it.
            deadline: seconds, instead of the session's.

        Raises:
            ServiceUnavailableError: no node could serve it.
            OutcomeUnknownError: it is not idempotent, and whether it happened is unknown.
            AccessDeniedError: the login was refused, the token is no longer valid, or a policy forbids the call.
            ForkError: the session was opened in the process that forked this one.
            ValueError: the session is closed.
        """
        end = time.monotonic() + (self.deadline if deadline is None else deadline)
        return self._enter(lambda: self._call(function, idempotent, end))

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        secret: Sequence[str] = (),
        idempotent: bool | None = None,
        wrap_ttl: str | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        login: bool = True,
    ) -> dict[str, Any]:
        """Make one request of Vault's HTTP API; failover, login and errors as in call().

        Secrets stay out of Python objects: a `Secret` anywhere in the body is sent from its own memory, and those in
        the answer become `Secret`s on their way in.

        Args:
            method: "GET", "LIST", "POST", "PUT", "PATCH" (as a merge patch) or "DELETE".
            path: what follows /v1/.
            body: the members of a JSON object.
            secret: which members of the answer are secret, as names joined by dots: "data.password". Each becomes a
                Secret: a string its text, any other value its JSON text. "data.data.*" means every member of
                data.data, or every element. A member whose name ends in "plaintext" is one unasked. What the answer
                lacks, null and "" stay as they are.
            idempotent: as for call(); None: all but POST and PATCH are.
            wrap_ttl: have Vault wrap the answer under a token of one use, for that long, such as "60s".
            timeout: seconds for a node to answer, instead of the session's.
            deadline: seconds, instead of the session's.
            login: False for what needs no token, such as sys/init, sys/unseal or auth/approle/login; a refusal is then
                hvac's Forbidden.

        Returns:
            The JSON object of the answer; empty where it has no body.
        """
        headers = {"X-Vault-Wrap-TTL": wrap_ttl} if wrap_ttl else {}
        if method == "PATCH":
            headers["Content-Type"] = "application/merge-patch+json"
        if idempotent is None:
            idempotent = method not in ("POST", "PATCH")
        end = time.monotonic() + (self.deadline if deadline is None else deadline)
        patterns = [tuple(each.split(".")) for each in secret]
        options = {} if timeout is None else {"timeout": (CONNECT_SECONDS, timeout)}

        def send(client: hvac.Client) -> dict[str, Any]:
            with Exchange(
                secret=patterns, deadline=end, most=_MAX_ANSWER, once=not idempotent
            ) as exchange:
                fields = None if body is None else _with_stand_ins(body, exchange)
                answer = client.adapter.request(
                    method, f"/v1/{path}", headers, json=fields, **options
                )
                if not isinstance(answer, dict):
                    return {}
                for place, text in exchange.take_all().items():
                    parent: Any = answer
                    for each in place[:-1]:
                        parent = parent[each]
                    parent[place[-1]] = Secret(text)
                return answer

        def without_token() -> dict[str, Any]:
            self._check()
            with self._other_client() as client:
                return self._send(send, client, idempotent, end)

        if not login:
            return self._enter(without_token)
        return self._enter(lambda: self._call(send, idempotent, end))

    @property
    def token_state(self) -> TokenState:
        """Which token the session has; makes no request."""
        lease = self._lease
        return TokenState(0, math.inf) if lease is None else TokenState(lease.number, lease.expires)

    def close(self, revoke: bool = False) -> None:
        """Stop the background and forget the token; closing again does nothing.

        Args:
            revoke: end the token and all its leases at the server too.

        Raises:
            ServiceUnavailableError, AccessDeniedError: it could not be revoked; the session is closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        if process_epoch() != self._epoch:
            return
        try:
            if revoke:
                self._enter(self._revoke)
        finally:
            self._stop.set()
            self._news.put(None)
            if self._thread is not None:
                self._thread.join()
            self._lease = None
            self._client.adapter.token = None
            self._client.adapter.close()

    def __repr__(self) -> str:
        return f"<VaultSession {', '.join(self.addresses)} by {type(self._login).__name__}>"

    def __reduce__(self) -> str:
        raise TypeError("a VaultSession is neither pickled nor copied")

    def _enter(self, function: Callable[[], T]) -> T:
        """Run what may raise from frames that hold secrets, and raise it without those frames."""
        caught: Exception
        try:
            return function()
        except (VaultError, requests.RequestException, TapesealError) as error:
            caught = bare(error)
        try:
            raise caught
        finally:
            del caught  # Whose traceback holds this frame.

    @property
    def _name(self) -> str:
        return f"Vault at {first_few(self.addresses)}"

    def _check(self) -> None:
        check_process(self._epoch)
        if self._closed:
            raise ValueError("the session is closed")

    # Calls

    def _call(self, function: Callable[[hvac.Client], T], idempotent: bool, end: float) -> T:
        lease = self._ready(end)
        new = False
        while True:
            try:
                return self._send(function, self._client, idempotent, end)
            except (Forbidden, Unauthorized) as error:
                refused = f"{_path_of(error)} was refused: {said_by(error)}"
            valid = new or self._is_valid(end)
            if self._lease is not None and self._lease.token != lease.token:
                # Another thread has replaced the token meanwhile.
                lease = self._lease
            elif valid:
                raise AccessDeniedError(
                    f"{self._name}: {refused}; the token is valid, so its policies forbid this"
                )
            else:
                lease, new = self._replace(lease, end), True

    def _send(
        self,
        function: Callable[[hvac.Client], T],
        client: hvac.Client,
        idempotent: bool,
        end: float,
    ) -> T:
        """Run the function on one node after the other until one serves it."""
        problems: dict[str, str] = {}
        hopeless: set[str] = set()
        tries = 0
        while True:
            address = client.adapter.base_uri = self.addresses[self._preferred]
            try:
                with client.adapter.until(end):
                    return function(client)
            except (VaultError, requests.RequestException) as error:
                failure = diagnose(error)
                if failure is None:
                    raise
            problem = f"{address} {failure.reason}"
            # That the time ran out during a try tells less than what the node answered before.
            if address not in problems or time.monotonic() < end:
                problems[address] = problem
            if not idempotent and not failure.harmless:
                raise OutcomeUnknownError(
                    f"{problem}; whether it has done what it was asked to is unknown, so "
                    "it is not asked again"
                )
            (hopeless.add if failure.hopeless else hopeless.discard)(address)
            self._pass_over(address, failure.leader)
            tries += 1
            # A round over all nodes goes without a pause: one of them may serve at once.
            rounds, within = divmod(tries, len(self.addresses))
            pause = 0.0
            if within == 0:
                growing = _FIRST_PAUSE * 2.0 ** min(rounds - 1, 10)
                pause = min(growing, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            if len(hopeless) == len(self.addresses) or time.monotonic() + pause >= end:
                raise ServiceUnavailableError(
                    f"no Vault served the call in time: {first_few(list(problems.values()))}"
                )
            if pause and self._stop.wait(pause):
                raise ValueError("the session is closed")

    def _pass_over(self, address: str, leader: str) -> None:
        """Prefer another node to this one, if it is preferred: the one that it names, if we know it, or the next."""
        at = self._preferred
        if self.addresses[at] == address:
            known = leader in self.addresses and leader != address
            to = self.addresses.index(leader) if known else (at + 1) % len(self.addresses)
            self._preferred = to
            self._client.adapter.base_uri = self.addresses[to]

    def _new_client(self, token: str = "") -> hvac.Client:
        http = requests.Session()
        # Otherwise REQUESTS_CA_BUNDLE would decide whom to trust, and .netrc what to send along.
        http.trust_env = False
        http.proxies = self._proxies
        if self._tls is not None:
            http.mount("https://", TlsSender(self._tls, self._server_name))
        return hvac.Client(
            self.addresses[self._preferred],
            token=token,
            cert=(),
            verify=True,
            timeout=self._timeout,
            session=http,
            namespace=self._namespace,
            allow_redirects=False,
            adapter=SessionAdapter,
        )

    @contextmanager
    def _other_client(self, token: str = "") -> Iterator[hvac.Client]:
        """Make a client for what is not to be asked with the session's token."""
        client = self._new_client(token)
        try:
            yield client
        finally:
            client.adapter.close()

    # Tokens

    def _ready(self, end: float) -> _Lease:
        """Return a token that is good as far as we know."""
        self._check()
        lease = self._lease
        if lease is None or self._is_spent(lease):
            return self._replace(lease, end)
        return lease

    def _is_spent(self, lease: _Lease) -> bool:
        if isinstance(self._login, TokenFile):
            stamp = self._login.stamp()
            if stamp is None or stamp == self._stamp:
                return False
            try:
                if self._login.read() != lease.token:
                    return True
            except AccessDeniedError:
                return False  # Somebody is writing it; the present token may well do.
            self._stamp = stamp
            return False
        # That of a Token is for the server to refuse: there is no other.
        return not isinstance(self._login, Token) and time.monotonic() >= lease.expires

    def _is_valid(self, end: float) -> bool:
        """Tell whether the present token may at least look at itself."""
        try:
            self._send(lambda client: client.auth.token.lookup_self(), self._client, True, end)
        except VaultError:
            return False
        return True

    def _replace(self, old: _Lease | None, end: float) -> _Lease:
        """Log in, or take what another thread got meanwhile."""
        if not self._login_lock.acquire(timeout=max(end - time.monotonic(), 0)):
            raise ServiceUnavailableError(
                f"{self._name}: no login in time: another thread is still at it"
            )
        try:
            self._check()
            if self._lease is not None and (old is None or self._lease.token != old.token):
                return self._lease
            return self._log_in(old, end)
        finally:
            self._login_lock.release()

    def _log_in(self, old: _Lease | None, end: float) -> _Lease:
        if isinstance(self._login, (Token, TokenFile)):
            if isinstance(self._login, TokenFile):
                self._stamp = self._login.stamp()
            token = self._login.read()
            if old is not None and old.token == token:
                raise AccessDeniedError(
                    f"{self._name}: the token is no longer valid: it has expired, or was revoked or used up"
                )
            lease = self._look_up(token, end)
        else:
            lease = self._post_login(self._login, end)
        self._adopt(lease)
        return lease

    def _look_up(self, token: str, end: float) -> _Lease:
        since = time.monotonic()
        unknown = _Lease(token, 0.0, False, since)
        try:
            with self._other_client(token) as client:
                answer = self._send(lambda c: c.auth.token.lookup_self(), client, True, end)
        except (Forbidden, Unauthorized):
            # Not valid, or not allowed to look at itself: the call that follows will tell.
            return unknown
        except VaultError as error:
            raise AccessDeniedError(
                f"{self._name}: the token is no use: {said_by(error)}"
            ) from None
        data = _member(answer, "data")
        seconds = _seconds(data.get("ttl"))
        if not seconds and data.get("expire_time"):
            seconds = 1.0  # The last second is cut to 0, which otherwise stands for ever.
        return _Lease(token, seconds, data.get("renewable") is True, since)

    def _post_login(self, login: Login, end: float) -> _Lease:
        with audit.operation("vault.login", first_few(self.addresses)) as entry:
            path, fields = login.request(_Wrapping(self, end))
            entry.details["path"] = f"auth/{path}"
            since = time.monotonic()
            try:
                with self._other_client() as client:
                    answer = self._send(
                        lambda c: c.adapter.post(f"/v1/auth/{path}", json=fields), client, True, end
                    )
            except VaultError as error:
                said = said_by(error, hide=[fields.get(name, "") for name in SECRET_FIELDS])
                raise AccessDeniedError(
                    f"{self._name}: the login at auth/{path} was refused: {said}"
                ) from None
            logger.info("logged in at auth/%s of %s", path, self.addresses[self._preferred])
            return self._lease_of(answer, since)

    def _lease_of(self, answer: object, since: float) -> _Lease:
        auth = _member(answer, "auth")
        token = auth.get("client_token")
        if not token and auth.get("mfa_requirement"):
            raise AccessDeniedError(
                f"{self._name}: the login asks for a second factor, which is not supported"
            )
        if not isinstance(token, str) or not token:
            raise ServiceUnavailableError(f"{self._name}: the answer to a login holds no token")
        renewable = auth.get("renewable") is True
        return _Lease(token, _seconds(auth.get("lease_duration")), renewable, since)

    def _adopt(self, lease: _Lease) -> None:
        old = self._lease
        lease.number = 1 if old is None else old.number + (old.token != lease.token)
        self._lease = lease
        self._client.adapter.token = lease.token
        if self._thread is None and lease.expires < math.inf:
            self._thread = threading.Thread(
                target=_tend, args=(weakref.ref(self), self._news), daemon=True
            )
            self._thread.name = f"tapeseal {self}"
            self._thread.start()
        self._news.put(None)

    def _revoke(self) -> None:
        if self._lease is None:
            return
        with audit.operation("vault.revoke", first_few(self.addresses)), self._login_lock:
            if self._lease is not None:
                end = time.monotonic() + self.deadline
                try:
                    self._send(lambda c: c.auth.token.revoke_self(), self._client, True, end)
                except VaultError as error:
                    raise AccessDeniedError(
                        f"{self._name}: the token was not revoked: {said_by(error)}"
                    ) from None

    # The background

    def _tend_lease(self) -> float | None:
        """Renew the token if it is time; return the seconds until there is something to do, None for never."""
        lease = self._lease
        if lease is None or lease.renew_at == math.inf:
            return None
        wait = lease.renew_at - time.monotonic()
        if wait > 0:
            return wait
        with audit.operation("vault.renew", first_few(self.addresses)), self._login_lock:
            if self._lease is lease and not self._closed:
                self._renew(lease, time.monotonic() + self.deadline)
        return 0.0

    def _renew(self, lease: _Lease, end: float) -> None:
        """Renew the token, or log in anew where it is not renewed for as long as it was made for."""
        fixed = isinstance(self._login, (Token, TokenFile))
        renewed = None

        def renew(client: hvac.Client) -> object:
            try:
                return client.auth.token.renew_self()
            except InternalServerError as error:
                # Among other things, OpenBao's answer at the end of the max TTL.
                if not fixed or "past the max TTL" in said_by(error):
                    raise InvalidRequest(errors=error.errors) from None
                raise

        if lease.renewable:
            since = time.monotonic()
            try:
                answer = self._send(renew, self._client, True, end)
            except VaultError as error:
                logger.info("%s: the token is not renewed: %s", self._name, said_by(error))
            else:
                renewed = self._lease_of(answer, since)
                # Servers count in whole seconds.
                if renewed.seconds > lease.seconds - 1:
                    renewed.seconds = max(renewed.seconds, lease.seconds)
                    self._adopt(renewed)
                    return
        if fixed:
            kept = renewed or lease
            kept.renewable, kept.renew_at = False, math.inf
            self._adopt(kept)
            logger.warning(
                "%s: the token cannot be renewed any further; it expires in %.0f s",
                self._name,
                kept.expires - time.monotonic(),
            )
        else:
            self._log_in(lease, end)


def _tend(reference: "weakref.ref[VaultSession]", news: "queue.SimpleQueue[None]") -> None:
    """Renew a session's token for as long as there is the session."""
    failures = 0
    while True:
        session = reference()
        if session is None or session._closed:
            return
        try:
            wait = session._tend_lease()
            failures = 0 if wait else failures
        except Exception as error:  # Whatever it is, the next try may go well.
            if session._stop.is_set():
                return
            problem = str(error) if isinstance(error, TapesealError) else type(error).__name__
            longest = _FIRST_RENEWAL_PAUSE * 2.0 ** min(failures, 10)
            wait = min(longest, _LONGEST_RENEWAL_PAUSE) * random.uniform(0.5, 1.0)
            failures += 1
            lease = session._lease
            left = max(lease.expires - time.monotonic(), 0) if lease else 0
            logger.warning("%s; the present token has %.0f s left", problem, left)
        del session
        try:
            news.get(timeout=wait)
        except queue.Empty:
            pass


class _Wrapping:
    """Answers of Vault wrapped under a token of one use."""

    def __init__(self, session: VaultSession, end: float) -> None:
        self._session = session
        self._end = end

    def wrapped_path(self, token: str) -> str | None:
        """Return the path whose answer this token wraps, None where it wraps nothing (any more)."""
        data = self._post("lookup", "", {"token": token}, idempotent=True)
        return None if data is None else str(data.get("creation_path"))

    def unwrap(self, token: str) -> Mapping[str, Any] | None:
        """Return the data that this token wraps, which works once, and None thereafter."""
        # Asked again after an answer was lost, it would look like a theft.
        return self._post("unwrap", token, {}, idempotent=False)

    def _post(
        self, what: str, token: str, fields: Mapping[str, str], idempotent: bool
    ) -> Mapping[str, Any] | None:
        def post(client: hvac.Client) -> Any:
            return client.adapter.post(f"/v1/sys/wrapping/{what}", json=fields)

        try:
            with self._session._other_client(token) as client:
                answer = self._session._send(post, client, idempotent, self._end)
        except (InvalidRequest, Forbidden):
            return None
        except VaultError as error:
            raise AccessDeniedError(f"{self._session._name}: no {what}: {said_by(error)}") from None
        return _member(answer, "data")


def _with_stand_ins(value: Any, exchange: Exchange) -> Any:
    """Return a body with a stand-in for each Secret in it."""
    if isinstance(value, Secret):
        return exchange.stand_in(value.buffer)
    if isinstance(value, Mapping):
        return {name: _with_stand_ins(each, exchange) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_stand_ins(each, exchange) for each in value]
    return value


def _member(answer: object, name: str) -> Mapping[str, Any]:
    """Return a member of an answer; hvac hands back a Response where the body is no JSON."""
    member = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(member, dict):
        raise ServiceUnavailableError(f"an answer of Vault is empty or holds no {name!r}")
    return member


def _seconds(value: object) -> float:
    """Return a time to live; 0 stands for ever, as with the root token."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise ServiceUnavailableError("an answer of Vault holds no time to live")
    return float(value)


def _proxies(addresses: Sequence[str], proxy: str | None) -> dict[str, str]:
    """Return the HTTP proxy of each address, by default the environment's, as requests keys them."""
    found = {}
    for address in addresses:
        parts = urlsplit(address)
        of_environment = get_environ_proxies(address)
        of_address = proxy or of_environment.get(parts.scheme) or of_environment.get("all")
        if of_address:
            found[f"{parts.scheme}://{parts.hostname}"] = of_address
    return found


def _path_of(error: VaultError) -> str:
    path = str(error.url).partition("/v1/")[2]
    return f"{str(error.method).upper()} {path}"


def _pair(
    certificate: StrPath | tuple[StrPath, StrPath] | None,
) -> tuple[str, str | None] | None:
    if isinstance(certificate, tuple):
        return str(certificate[0]), str(certificate[1])
    return None if certificate is None else (str(certificate), None)
