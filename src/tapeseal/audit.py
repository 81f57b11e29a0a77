"""What the library records of key and secret operations, and where to: never a value (docs/audit.md).

The log itself is `tapeseal.audit_log`, which stands above everything that calls this.
"""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self

from tapeseal.errors import AuditError


class operation:  # noqa: N801 # reads as `with audit.operation(...)`
    """Records an operation in the process's audit log, where there is one, with how it ended.

        with audit.operation("kv.read", "secret/api-keys/binance") as entry:
            ...
            entry.version = 3

    The result is "done", or the name of the exception that left the body: never its text, which nobody has looked at.
    An operation of which the log cannot take an entry is not begun; one that was done, and whose entry the log then
    could not take, raises after the fact, and the entry is kept and written first when the log can again.

    Args:
        action: what is done: the part of tapeseal, a dot and a verb, such as "kv.read".
        subject: what it is done to: the name of a key, the path of a secret; never a value.
        details: further facts, none of them secret; more can be added to `details` in the body.

    Raises:
        TypeError: an argument is neither text nor a whole number; it may be a secret.
        AuditError: the log cannot take an entry.
    """

    __slots__ = ("_log", "_start", "action", "details", "result", "seconds", "subject", "version")

    def __init__(self, action: str, subject: str, **details: str | int | None) -> None:
        if not isinstance(subject, str):
            raise _no_text("the subject", subject)
        for name, value in details.items():
            if value is not None and not isinstance(value, str | int):
                raise _no_text(f"the detail {name}", value)
        self.action = action
        self.subject = subject
        self.details = details
        self.version: str | int | None = None
        """Which version of the subject was used or made."""
        self.result: str | None = None
        """How it ended; what the body sets here stands in place of "done"."""
        self.seconds = 0.0
        """How long it took."""
        self._log = _log

    def __enter__(self) -> Self:
        if self._log is not None:
            try:
                self._log.check()
            except AuditError:
                if not _regardless.get():
                    raise
            self._start = time.monotonic_ns()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._log is not None:
            self.seconds = (time.monotonic_ns() - self._start) / 1e9
            if exc_type is not None:
                self.result = exc_type.__name__
            elif self.result is None:
                self.result = "done"
            try:
                self._log.append(self)
            except AuditError:
                if not _regardless.get():
                    raise


def _no_text(what: str, value: object) -> TypeError:
    return TypeError(
        f"{what} of an audited operation is text or a whole number, not {type(value).__name__}"
    )


_regardless = ContextVar("tapeseal audit regardless", default=False)


@contextlib.contextmanager
def regardless() -> Iterator[None]:
    """Where the log cannot take an entry, do what the body does all the same: it is lost for good otherwise.

    The entries are kept, as those of operations that were done, and written first when the log can again.
    """
    token = _regardless.set(True)
    try:
        yield
    finally:
        _regardless.reset(token)


class Log(Protocol):
    """What takes the entries; tapeseal.audit_log.AuditLog."""

    def check(self) -> None:
        """Raise AuditError where an entry could not be taken now, before anything is done."""

    def append(self, entry: operation) -> None:
        """Take the entry of an operation that has ended; errors as check()."""


_log: Log | None = None


def start(log: Log) -> None:
    """Record the operations of this process in a log from now on, in place of the one before."""
    global _log
    _log = log


def stop() -> None:
    """Record nothing any more. The log stays open."""
    global _log
    _log = None


def active() -> Log | None:
    """Return the log that takes the operations of this process, None where there is none."""
    return _log
