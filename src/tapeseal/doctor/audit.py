"""Checks of the audit log: that there is one, and that its anchors are new."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from tapeseal.doctor.findings import Checks, Look, Problem, SetUp, days, registrar

if TYPE_CHECKING:
    from tapeseal.audit_log.anchors import LogAnchor

MAX_ANCHOR_AGE_SECONDS: Final = 86400

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)


class AuditLook(Look):
    """The audit log that the set-up or the environment names."""

    def __init__(self, set_up: SetUp) -> None:
        super().__init__("the audit log", 30.0)
        self.path = set_up.log
        self.anchors = set_up.anchors
        self.now = set_up.now

    def log_id(self) -> bytes | None:
        """Return the log's id, None where it cannot be read; nothing is authenticated."""
        from tapeseal.audit_log.log import read_header
        from tapeseal.errors import TapesealError

        assert self.path is not None
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = read_header(fd).log_id
            finally:
                os.close(fd)
        except (OSError, TapesealError) as error:
            said = getattr(error, "strerror", None) or str(error)
            path = shlex.quote(self.path)
            self.not_seen(
                self.path,
                self.path,
                f"the log could not be read: {said}",
                "Run it as a user who may read it.",
                f"tapeseal audit verify {path} -k KEYRING",
            )
            return None
        self.seen += 1
        return found

    def newest_anchor(self, log_id: bytes) -> "LogAnchor | None":
        """Return the newest anchor of a log that the file of anchors holds."""
        from tapeseal.audit_log.anchors import MAX_FILE_SIZE, LogAnchor, newest

        assert self.anchors is not None
        found = []
        try:
            with open(self.anchors, "rb") as file:
                for line in file.read(MAX_FILE_SIZE).splitlines():
                    with contextlib.suppress(
                        ValueError
                    ):  # `tapeseal audit verify` tells what is none.
                        found.append(LogAnchor.parse(line))
        except OSError as error:
            self.not_seen(
                self.anchors,
                self.anchors,
                f"the anchors could not be read: {error.strerror}",
                command=f"ls -l {shlex.quote(self.anchors)}",
            )
            return None
        return newest(found).get(log_id)


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[AuditLook | None]:
    """Look at the audit log."""
    yield AuditLook(set_up)


@check(
    "audit.enabled",
    "No audit log of the key and secret operations on this machine.",
    "Without one nobody can tell who used which key and secret.",
)
def _enabled(audit: AuditLook) -> Iterator[Problem]:
    audit.seen += 1
    if audit.path is None:
        yield Problem(
            "warning",
            "TAPESEAL_AUDIT",
            "it names no audit log",
            "Make one, and name it in the environment of everything that uses keys.",
            "tapeseal audit create LOG -k KEYRING && export TAPESEAL_AUDIT=LOG TAPESEAL_AUDIT_KEYRING=KEYRING",
        )


@check(
    "audit.head",
    "An audit log without its head.",
    "Without the head a cut tail is not found until the next anchor.",
)
def _head(audit: AuditLook) -> Iterator[Problem]:
    if audit.path is None:
        audit.seen += 1
    elif audit.log_id() is not None and not os.path.exists(f"{audit.path}.head"):
        yield Problem(
            "serious",
            audit.path,
            f"there is no {audit.path}.head",
            "Find out who removed it.",
            f"tapeseal audit verify {shlex.quote(audit.path)} -k KEYRING --anchors FILE",
        )


@check(
    "audit.anchored",
    "An audit log without an anchor of the last day.",
    "Whoever has the log's key can rewrite everything after the last anchor.",
)
def _anchored(audit: AuditLook) -> Iterator[Problem]:
    if audit.path is None:
        audit.seen += 1
        return
    path = shlex.quote(audit.path)
    log_id = audit.log_id()
    if log_id is None:
        return
    kept = audit.anchors or "FILE"
    command = f"tapeseal audit anchor {path} -k KEYRING --signer SIGNER --to {shlex.quote(kept)}"
    fix = "Have one signed every hour, by cron."
    if audit.anchors is None:
        yield Problem(
            "warning",
            audit.path,
            "no file of its anchors is known here",
            f"{fix} Give the file by --anchors.",
            command,
        )
        return
    newest = audit.newest_anchor(log_id)
    if newest is None:
        if not audit.unseen:
            yield Problem(
                "warning", audit.path, f"{audit.anchors} has no anchor of it", fix, command
            )
        return
    signed = datetime.strptime(newest.time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    age = (audit.now - signed).total_seconds()
    if age > MAX_ANCHOR_AGE_SECONDS:
        yield Problem("warning", audit.path, f"its newest anchor is {days(age)} old", fix, command)
