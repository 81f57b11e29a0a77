"""The audit log that the environment names: of every process with TAPESEAL_AUDIT, whatever program it runs.

TAPESEAL_AUDIT is the path of the log, TAPESEAL_AUDIT_KEYRING the URI of what unwraps its key, or several with blanks
between them. Without need: TAPESEAL_AUDIT_IDENTITY says who this is, TAPESEAL_AUDIT_SINKS names sinks with blanks
between them, TAPESEAL_AUDIT_SYNC is `sync_seconds` ("none" for None), and TAPESEAL_AUDIT_STRICT=0 goes on where the log
takes no entry.
"""

import atexit
import contextlib
import os
import threading

from tapeseal import audit
from tapeseal.audit import operation
from tapeseal.audit_log.log import AuditLog, logger
from tapeseal.audit_log.sinks import sink
from tapeseal.errors import AuditError, TapesealError


class EnvironmentLog:
    """Opens the log that the environment names with the first operation, and takes its place from there on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opener = 0
        self._warned = False

    def check(self) -> None:
        """Open the log; AuditError where it cannot be."""
        if self._opener == threading.get_ident():
            return  # It is the unwrapping of the log's own key.
        try:
            log = self._opened()
        except (TapesealError, OSError, ValueError, ModuleNotFoundError) as error:
            path = os.environ.get("TAPESEAL_AUDIT")
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            text = f"the audit log {path} could not be opened: {said}"
            if os.environ.get("TAPESEAL_AUDIT_STRICT") != "0":
                raise AuditError(f"{text}; the operation was not begun") from None
            if not self._warned:
                self._warned = True
                logger.error("%s; nothing is recorded", text)
        else:
            log.check()

    def append(self, entry: operation) -> None:
        """Take the entry of an operation that began when the log was not open yet."""
        log = audit.active()
        if self._opener != threading.get_ident() and isinstance(log, AuditLog):
            log.append(entry)

    def _after_fork(self) -> None:
        # Another thread may have held it.
        self._lock, self._opener = threading.Lock(), 0

    def _opened(self) -> audit.Log:
        with self._lock:
            active = audit.active()
            if active is not None and active is not self:
                return active
            self._opener = threading.get_ident()
            try:
                log = open_from_environment()
            finally:
                self._opener = 0
            audit.start(log)
            atexit.register(_close, log)
            return log


def open_from_environment() -> AuditLog:
    """Open the log that the environment names.

    Raises:
        ValueError: a variable is missing, or has no such value.
        Others as AuditLog.
    """
    keyring = os.environ.get("TAPESEAL_AUDIT_KEYRING", "").split()
    if not keyring:
        raise ValueError("TAPESEAL_AUDIT_KEYRING names no keyring for it")
    strict = os.environ.get("TAPESEAL_AUDIT_STRICT", "1")
    if strict not in ("0", "1"):
        raise ValueError(f"TAPESEAL_AUDIT_STRICT is 0 or 1, not {strict!r}")
    sync = os.environ.get("TAPESEAL_AUDIT_SYNC", "1")
    try:
        sync_seconds = None if sync == "none" else float(sync)
        if sync_seconds is not None and not 0 <= sync_seconds < 1e6:
            raise ValueError
    except ValueError:
        raise ValueError(f"TAPESEAL_AUDIT_SYNC is seconds or none, not {sync!r}") from None
    return AuditLog(
        os.environ["TAPESEAL_AUDIT"],
        keyring=keyring,
        identity=os.environ.get("TAPESEAL_AUDIT_IDENTITY"),
        sync_seconds=sync_seconds,
        strict=strict == "1",
        sinks=[sink(each) for each in os.environ.get("TAPESEAL_AUDIT_SINKS", "").split()],
    )


def start() -> None:
    """Have the process's operations go to the log that the environment names; it is opened with the first."""
    log = EnvironmentLog()
    audit.start(log)
    os.register_at_fork(after_in_child=log._after_fork)


def _close(log: AuditLog) -> None:
    with contextlib.suppress(AuditError):
        log.close()
