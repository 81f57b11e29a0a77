"""DatabaseCredentials: a credential under a lease of Vault's, renewed, replaced in time and revoked at the end."""

import logging
import math
import queue
import random
import re
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from hvac.exceptions import VaultError

from tapeseal import audit
from tapeseal._core import check_process, process_epoch
from tapeseal.closing import Closing
from tapeseal.errors import (
    CredentialError,
    OutcomeUnknownError,
    ServiceUnavailableError,
    TapesealError,
)
from tapeseal.secret import Secret
from tapeseal.vault.connection import bare, said_by
from tapeseal.vault.session import TokenState, VaultSession

logger = logging.getLogger("tapeseal.vault")

# When to renew, as a part of the time to live: always before two thirds, and not all at the same moment.
_EARLIEST_RENEWAL, _LATEST_RENEWAL = 0.5, 0.65
# With this part of its time left, what could not be renewed is replaced.
_LAST_PART = 1 / 6
_DEFAULT_OVERLAP = 1 / 3

# So many credentials at once, and then one in each interval; that is shorter where leases live for less than four.
_BURST = 5
_INTERVAL, _LEAST_INTERVAL = 60.0, 0.5

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
# How often to see whether the session has another token, and for how long to trust that a password stands.
_LOOK_SECONDS = 1.0
_LONGEST_TRUST = 60.0

_PATH = re.compile(r"[^/\s?#%]+(/[^/\s?#%]+)+")
_ENDED = re.compile("lease not found|invalid lease|lease expired")
_FIXED = re.compile("lease is not renewable")


@dataclass(frozen=True, slots=True, eq=False)
class Credential:
    """A user of the database and its password; the password is wiped some time after another took its place."""

    username: str
    password: Secret
    lease_id: str | None
    """By which Vault knows it; None for that of a static role."""


class LeaseStatus(NamedTuple):
    """What can be said of credentials without saying the password."""

    path: str
    username: str
    lease_id: str | None
    seconds_left: float | None
    """Until the lease ends if it is not renewed; None for a static role."""
    made: int
    """Requests for a credential, those that failed or whose answer was lost included."""
    renewals: int
    lost: int
    """Requests whose answer was lost: each may have left a lease that nobody knows."""
    unrevoked: int
    """Leases that could not be revoked, so that they end by themselves."""
    problem: str | None
    """Why the last try to renew or to replace it failed; None if it did not."""


class _Held:
    """A credential and how long it is good for.

    Attributes:
        since: the `time.monotonic()` at which it was asked for.
        seconds: the time to live it was made with.
        expires: the `time.monotonic()` at which its lease ends.
        parent: the number of the token it was made under, which it does not outlive.
        parent_expires: the `time.monotonic()` at which that ends, as it was known last.
        last: whether it will not be renewed for any longer; from renew_at on it is to be replaced.
        ended: whether Vault has said that the lease is no more.
        refused: whether the database was seen to refuse it.
        remind_at, revoke_at: once it was replaced, when its consumers are told once more, and when it is over.
    """

    __slots__ = (
        *("credential", "since", "seconds", "expires", "parent", "parent_expires"),
        *("renew_at", "last", "ended", "refused", "remind_at", "revoke_at"),
    )

    def __init__(
        self, credential: Credential, seconds: float, since: float, parent: TokenState
    ) -> None:
        self.credential = credential
        self.since = since
        self.seconds = seconds
        self.expires = math.inf if credential.lease_id is None else since + seconds
        self.parent, self.parent_expires = parent
        self.renew_at = since
        self.last = False
        self.ended = False
        self.refused = False
        self.remind_at = self.revoke_at = math.inf

    @property
    def last_part(self) -> float:
        """The `time.monotonic()` from which on it is replaced rather than renewed."""
        return self.expires - self.seconds * _LAST_PART


class DatabaseCredentials(Closing):
    """Keeps a credential of a database engine: whoever asks for it gets one that is valid.

        with DatabaseCredentials(session, "database/creds/reader") as credentials:
            pool = ConnectionPool("host=db dbname=trades", kwargs=credentials.connect_kwargs)
            credentials.on_change(pool.drain)

    A daemon thread renews the lease before two thirds of its time have passed. It gets a new credential when the
    lease comes to its max TTL, when the session has logged in anew (a lease ends with the token it was made under),
    when the lease was revoked, and when it could not be renewed until little of it was left. The one before stays
    valid for `overlap` seconds more, and is then revoked. While Vault is away the credential is kept until it has
    truly expired; tries come with growing pauses, and no more than five new credentials at once and one a minute.

    Of a static role the password is read again when Vault was to change it, and at least once a minute. The one
    before ends with the change.

    Threads may share it. A process that was forked makes its own: there, calls raise ForkError.

    Args:
        session: stays open for longer than this. Its policies: docs/leases.md.
        path: MOUNT/creds/ROLE, or MOUNT/static-creds/ROLE. Other engines whose answers hold a username and a
            password under a lease, such as RabbitMQ's, will do too.
        overlap: seconds for which a replaced credential stays valid, for connections that are open and for who has
            taken it and not yet logged in; a third of the time to live if not given. It is shorter where the lease
            ends sooner.

    Raises:
        CredentialError: Vault has no such role, or what it gives is no credential.
        AccessDeniedError, ServiceUnavailableError: as VaultSession.request() does.
        ValueError: a path or an overlap that cannot be one.
    """

    def __init__(self, session: VaultSession, path: str, *, overlap: float | None = None) -> None:
        if not _PATH.fullmatch(path):
            raise ValueError(f"{path!r} is not a path such as database/creds/ROLE")
        if overlap is not None and not overlap >= 0:
            raise ValueError(f"overlap must be seconds from 0 on, not {overlap}")
        self.path = path
        self._session = session
        self._is_static = path.split("/")[-2] == "static-creds"
        self._overlap = overlap
        self._allowance = _BURST - 1.0
        self._allowed_since = time.monotonic()
        self._made = self._renewals = self._lost = self._unrevoked = 0
        self._problem: TapesealError | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._changed = threading.Condition()
        # The background's own.
        self._replaced: list[_Held] = []
        self._not_before = 0.0
        self._failures = self._looks = 0
        self._closed = False
        self._epoch = process_epoch()
        self._held = self._get()
        # A finalizer may put something in at any moment, and an Event is not made for it.
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        weakref.finalize(self, self._news.put, None).atexit = False
        self._thread = threading.Thread(
            target=_tend, args=(weakref.ref(self), self._news), daemon=True
        )
        self._thread.name = f"tapeseal {self}"
        self._thread.start()

    # What users call

    def current(self) -> Credential:
        """Return the credential to log in with now; makes no request.

        Raises:
            ServiceUnavailableError, AccessDeniedError, CredentialError: it has expired, and the message says why
                there is no other.
            ForkError: it was made in the process that forked this one.
            ValueError: it is closed.
        """
        self._check()
        held = self._held
        if time.monotonic() >= held.expires:
            raise self._failure("the credential has expired")
        return held.credential

    def connect_kwargs(self) -> dict[str, str]:
        """Return the user and the password as psycopg.connect() takes them, and the `kwargs` of a psycopg_pool.

        The password is a Python string then, of which a copy stays in memory until that is used again.

        Raises:
            As current() does.
        """
        while True:
            credential = self.current()
            try:
                return {"user": credential.username, "password": credential.password.expose()}
            except ValueError:
                # Wiped, as this thread slept for longer than the overlap.
                if credential is self._held.credential:
                    raise

    def replace(self, credential: Credential, *, deadline: float | None = None) -> Credential:
        """Get another credential in place of one that the database has refused; return the one to use now.

        For what Vault does not tell by itself: its lease was revoked, its user dropped, a static role rotated out of
        turn. However many threads ask, one new credential is made; none if there is another one already.

        Args:
            credential: what current() returned.
            deadline: seconds, instead of the session's.

        Raises:
            ServiceUnavailableError, AccessDeniedError, CredentialError: there was no other in time.
            ForkError, ValueError: as for current().
        """
        self._check()
        end = time.monotonic() + (self._session.deadline if deadline is None else deadline)
        with self._changed:
            held = self._held
            if held.credential is credential:
                held.refused = True
                self._news.put(None)
            while self._held.credential is credential:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise self._failure("the credential was refused")
                self._check()
        return self.current()

    def on_change(self, function: Callable[[], object]) -> None:
        """Have a function called, in the background thread, after each change of the credential.

        For what keeps connections open: those of a pool that were opened before lose their rights when the overlap
        is over, so they are to be replaced until then. Halfway through the overlap it is called once more, for
        connections that were just being opened at the first time. What it raises is logged.
        """
        self._callbacks.append(function)

    def status(self) -> LeaseStatus:
        """Return where things stand; makes no request."""
        self._check()
        held = self._held
        left = None if held.expires == math.inf else max(held.expires - time.monotonic(), 0.0)
        problem = None if self._problem is None else str(self._problem)
        return LeaseStatus(
            self.path,
            held.credential.username,
            held.credential.lease_id,
            left,
            self._made,
            self._renewals,
            self._lost,
            self._unrevoked,
            problem,
        )

    def close(self) -> int:
        """Revoke all its leases, wipe the passwords and stop the background; closing again does nothing.

        Returns:
            How many leases were not revoked, as Vault was away or a policy forbids it. The log says which; they end
            by themselves.
        """
        if self._closed:
            return self._unrevoked
        self._closed = True
        if process_epoch() != self._epoch:
            return 0
        self._news.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()
        end = time.monotonic() + self._session.deadline
        for held in [*self._replaced, self._held]:
            if held.expires > time.monotonic():
                self._try_to_revoke(held, end)
            held.credential.password.close()
        self._replaced.clear()
        with self._changed:
            self._changed.notify_all()
        return self._unrevoked

    def __repr__(self) -> str:
        return f"<DatabaseCredentials {self.path}>"

    def __reduce__(self) -> str:
        raise TypeError("DatabaseCredentials are neither pickled nor copied")

    def _check(self) -> None:
        check_process(self._epoch)
        if self._closed:
            raise ValueError("the credentials are closed")

    def _failure(self, what: str) -> TapesealError:
        problem = self._problem
        if problem is None:
            return ServiceUnavailableError(f"{self.path}: {what}, and there is no other yet")
        return type(problem)(f"{self.path}: {what}, and there is no other: {problem}")

    # Requests

    def _get(self) -> _Held:
        """Ask Vault for a credential."""
        parent = self._session.token_state
        since = time.monotonic()
        self._made += 1
        action = "lease.read" if self._is_static else "lease.issue"
        try:
            with audit.operation(action, self.path) as entry:
                # What makes a credential is a GET all the same.
                answer = self._session.request(
                    "GET", self.path, idempotent=self._is_static, secret=("data.password",)
                )
                held = self._held_of(answer, since, parent)
                entry.version = held.credential.lease_id
        except VaultError as error:
            said = said_by(error)
            raise CredentialError(f"{self.path}: Vault gives no credential: {said}") from None
        except OutcomeUnknownError:
            self._lost += 1
            logger.warning(
                "%s: the answer to a request was lost. The lease that it may have left is not renewed: it ends with"
                " its time to live, or with the session's token",
                self.path,
            )
            raise
        return held

    def _held_of(self, answer: dict[str, Any], since: float, parent: TokenState) -> _Held:
        data = answer.get("data")
        data = data if isinstance(data, dict) else {}
        username, password, lease_id = data.get("username"), data.get("password"), None
        seconds = data.get("ttl")
        if not self._is_static:
            lease_id, seconds = answer.get("lease_id"), answer.get("lease_duration")
        if (
            not isinstance(username, str)
            or not isinstance(password, Secret)
            or (not self._is_static and (not isinstance(lease_id, str) or not lease_id))
            or not _is_seconds(seconds)
        ):
            raise CredentialError(
                f"{self.path}: Vault's answer is no credential: it lacks a username, a password or a lease"
            )
        # The session's very first call is made under the token that it logs in for. Where it logs in during a later
        # one, either token may be the parent: to take the new one for it may cost an outage, the old one a credential.
        if parent.number == 0:
            parent = self._session.token_state
        held = _Held(Credential(username, password, lease_id), float(seconds), since, parent)
        if self._is_static:
            held.renew_at = since + min(held.seconds, _LONGEST_TRUST)
        else:
            held.last = answer.get("renewable") is not True
            self._plan_renewal(held, since)
        return held

    def _plan_renewal(self, held: _Held, since: float) -> None:
        wait = held.seconds * random.uniform(_EARLIEST_RENEWAL, _LATEST_RENEWAL)
        # The session may learn of another token, as in a file, only by a call; this is one.
        token_left = held.parent_expires - since
        if token_left > 0:
            wait = min(wait, max(token_left / 2, _LOOK_SECONDS))
        held.renew_at = since + wait

    def _spend(self, held: _Held) -> None:
        """Take one off the new credentials that may be made now."""
        life = min(held.seconds, held.parent_expires - held.since)
        interval = max(min(_INTERVAL, life / 4), _LEAST_INTERVAL)
        now = time.monotonic()
        self._allowance = min(
            self._allowance + (now - self._allowed_since) / interval, float(_BURST)
        )
        self._allowed_since = now
        if self._allowance < 1:
            raise ServiceUnavailableError(
                f"{self.path}: too many credentials were made lately; the next one can be asked for in "
                f"{(1 - self._allowance) * interval:.0f} s"
            )
        self._allowance -= 1

    def _renew(self, held: _Held) -> None:
        since = time.monotonic()
        # In the last part of its time it is to be replaced.
        deadline = min(self._session.deadline, held.last_part - since)
        try:
            answer = self._post("renew", held, deadline)
        except VaultError as error:
            said = said_by(error)
            if not _ENDED.search(said) and not _FIXED.search(said):
                # The database cannot be reached, or does not know the user.
                raise ServiceUnavailableError(
                    f"{self.path}: the lease is not renewed: {said}"
                ) from None
            held.ended = _ENDED.search(said) is not None
            held.last, held.renew_at = True, since
            return
        seconds = answer.get("lease_duration")
        if not _is_seconds(seconds):
            raise ServiceUnavailableError("an answer of Vault holds no time to live")
        self._renewals += 1
        held.expires = since + seconds
        # Servers count in whole seconds.
        if seconds > held.seconds - 1 and answer.get("renewable") is True:
            self._plan_renewal(held, since)
        else:
            held.last, held.renew_at = True, since

    def _try_to_revoke(self, held: _Held, end: float) -> None:
        """Revoke a lease; where that cannot be, take note that it ends by itself."""
        if held.credential.lease_id is None:
            return
        try:
            self._revoke(held, max(end - time.monotonic(), 0.0))
        except (TapesealError, ValueError) as error:
            self._unrevoked += 1
            logger.warning(
                "%s: the lease of %s was not revoked, and ends in %.0f s: %s",
                self.path,
                held.credential.username,
                max(held.expires - time.monotonic(), 0),
                error,
            )

    def _revoke(self, held: _Held, deadline: float) -> None:
        try:
            self._post("revoke", held, deadline)
        except VaultError as error:
            said = said_by(error)
            if not _ENDED.search(said):
                raise ServiceUnavailableError(
                    f"{self.path}: the lease is not revoked: {said}"
                ) from None

    def _post(self, verb: str, held: _Held, deadline: float) -> dict[str, Any]:
        lease_id = held.credential.lease_id
        with audit.operation(f"lease.{verb}", self.path) as entry:
            entry.version = lease_id
            return self._session.request(
                "POST",
                f"sys/leases/{verb}",
                {"lease_id": lease_id},
                idempotent=True,
                deadline=deadline,
            )

    # The background

    def _tend(self) -> float:
        """Do what is due; return the seconds until there is something to do."""
        now = time.monotonic()
        self._tend_replaced(now)
        if now >= self._not_before:
            held = self._held
            try:
                self._tend_held(held, now)
                self._failures, self._problem = 0, None
            except Exception as error:  # Whatever it is, the next try may go well.
                if held.ended:
                    held.expires = min(held.expires, now)
                self._note(error)
                self._not_before = time.monotonic() + self._pause(held, now)
        now = time.monotonic()
        next_try = self._not_before if self._not_before > now else self._held.renew_at
        due = min([next_try, *(min(each.remind_at, each.revoke_at) for each in self._replaced)])
        return min(max(due - now, 0.0), _LOOK_SECONDS)

    def _tend_held(self, held: _Held, now: float) -> None:
        if self._is_static:
            if held.refused or now >= held.renew_at:
                self._read_again(held)
        elif reason := self._why_replaced(held, now):
            self._spend(held)
            self._take(self._get(), reason)
        elif now >= held.renew_at:
            self._renew(held)

    def _why_replaced(self, held: _Held, now: float) -> str | None:
        if held.refused:
            return "the database has refused the one before"
        if held.ended or now >= held.expires:
            return "the lease of the one before has ended"
        number, expires = self._session.token_state
        if held.parent != number:
            held.expires = min(held.expires, held.parent_expires)
            return "the session has another token"
        held.parent_expires = expires
        if held.last and now >= held.renew_at:
            return "the lease of the one before is not renewed any further"
        if now >= held.last_part:
            return "the one before could not be renewed"
        return None

    def _pause(self, held: _Held, began: float) -> float:
        """Return how long to wait after the failure of what began then."""
        longest = _FIRST_PAUSE * 2.0 ** min(self._failures, 10)
        self._failures += 1
        pause = min(longest, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)
        if began < held.last_part:
            # What could not be renewed gets its chance to be replaced.
            return max(min(pause, held.last_part - time.monotonic()), 0.0)
        return pause

    def _note(self, error: Exception) -> None:
        if isinstance(error, TapesealError):
            bare(error)
            self._problem = error
        else:
            text = str(error) if isinstance(error, ValueError) else type(error).__name__
            self._problem = ServiceUnavailableError(text)
        left = self._held.expires - time.monotonic()
        logger.warning(
            "%s; the present credential has %s left",
            self._problem,
            "no time" if left <= 0 else "no end" if left == math.inf else f"{left:.0f} s",
        )

    def _read_again(self, held: _Held) -> None:
        """Read the password of a static role, and take it if it is another one."""
        found = self._get()
        same = found.credential.username == held.credential.username
        if not same or found.credential.password != held.credential.password:
            self._take(found, "Vault has changed it")
            return
        found.credential.password.close()
        # Vault may be some seconds late; or it cannot change it, as the database is away.
        self._looks = self._looks + 1 if found.seconds < 1 else 0
        pause = min(_FIRST_PAUSE * 2.0 ** min(self._looks, 10), _LONGEST_PAUSE)
        held.renew_at = max(found.renew_at, time.monotonic() + pause)
        if held.refused:
            raise CredentialError(f"{self.path}: Vault still gives the one that was refused")

    def _take(self, held: _Held, reason: str) -> None:
        """Make another credential the current one, and give the one before some more time."""
        before = self._held
        overlap = before.seconds * _DEFAULT_OVERLAP if self._overlap is None else self._overlap
        now = time.monotonic()
        if now < before.expires < now + overlap < math.inf:
            logger.warning(
                "%s: the credential before ends in %.0f s, which is less than the overlap of %.0f s",
                self.path,
                before.expires - now,
                overlap,
            )
        before.revoke_at = max(min(now + overlap, before.expires), now)
        before.remind_at = (now + before.revoke_at) / 2
        self._replaced.append(before)
        with self._changed:
            self._held = held
            self._changed.notify_all()
        logger.info("%s: %s is the user now: %s", self.path, held.credential.username, reason)
        self._tell()

    def _tell(self) -> None:
        for function in self._callbacks:
            try:
                function()
            # SystemExit, too, would end the background without a word.
            except BaseException:
                logger.exception("%s: what is called on a change has failed", self.path)

    def _tend_replaced(self, now: float) -> None:
        """Revoke those whose overlap is over; what fails is tried again until the lease has ended."""
        if any(held.remind_at <= now for held in self._replaced):
            for held in self._replaced:
                held.remind_at = math.inf if held.remind_at <= now else held.remind_at
            self._tell()
        for held in [held for held in self._replaced if held.revoke_at <= now]:
            if held.credential.lease_id is not None and now < held.expires:
                try:
                    self._revoke(held, self._session.deadline)
                except Exception as error:  # As for the present one.
                    logger.warning(
                        "%s: the lease of %s is not revoked yet, and ends in %.0f s: %s",
                        self.path,
                        held.credential.username,
                        held.expires - now,
                        error,
                    )
                    held.revoke_at = now + _LONGEST_PAUSE * random.uniform(0.5, 1.0)
                    continue
            held.credential.password.close()
            self._replaced.remove(held)


def _is_seconds(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def _tend(reference: "weakref.ref[DatabaseCredentials]", news: "queue.SimpleQueue[None]") -> None:
    """Keep credentials alive for as long as there is the object."""
    while True:
        credentials = reference()
        if credentials is None or credentials._closed:
            return
        wait = credentials._tend()
        del credentials
        try:
            news.get(timeout=wait)
        except queue.Empty:
            pass
