"""What a plan and its journal say of each secret: how old it is, when it is due, what is in the way."""

from dataclasses import dataclass
from datetime import datetime

from tapeseal.rotation.journal import (
    BY_COMMAND,
    OPEN_STATES,
    ROLLED_BACK,
    Journal,
    Known,
    Record,
    utc,
)
from tapeseal.rotation.plan import Plan, PlannedSecret
from tapeseal.rotation.schedule import Calendars, due


@dataclass(frozen=True)
class Status:
    """One secret. Times are in UTC."""

    secret: PlannedSecret
    state: str
    """That of its open rotation; otherwise "ok", "due", "overdue" (due for longer than a window makes it wait),
    "failed" (rolled back, to be tried again; where somebody had it rolled back only once it is due), or "unknown":
    nobody has asked its service yet."""
    known: Known
    due: datetime | None
    """None: unknown."""
    begins: datetime | None
    """When its next rotation may begin; None: unknown, or not within a year."""
    record: Record | None
    """Its latest rotation."""

    @property
    def alarm(self) -> str:
        """What somebody must look at, "" for nothing."""
        if self.record is None:
            return ""
        if self.record.state == ROLLED_BACK:
            # What is compromised is in use still, whether it is due or not.
            looked_at = self.state == "failed" or self.record.emergency
            return self.record.error if looked_at else ""
        return self.record.alarm or (self.record.error if self.record.open else "")


def statuses(plan: Plan, journal: Journal, calendars: Calendars, now: datetime) -> list[Status]:
    """Return the status of each secret of a plan, in its order. No service is asked."""
    known, records = journal.known(), journal.records()
    return [
        _status(plan, secret, known.get(name, Known()), records, calendars, now)
        for name, secret in plan.secrets.items()
    ]


def _status(
    plan: Plan,
    secret: PlannedSecret,
    known: Known,
    records: dict[str, Record],
    calendars: Calendars,
    now: datetime,
) -> Status:
    record = records.get(secret.name)
    is_open = record is not None and record.state in OPEN_STATES
    if known.seen is None:
        return Status(
            secret, record.state if record and is_open else "unknown", known, None, None, record
        )
    when = due(known.made, known.expires, secret.schedule, secret.before, now=now)
    earliest = max(when, now, known.retry or now)
    for pair in plan.pairs_of(secret.name):
        for other in pair.members:
            last = None if other == secret.name else records.get(other)
            if last is not None:
                until = utc(last.updated)
                assert until is not None
                earliest = max(earliest, until + pair.offset)
    begins = calendars.opening(secret.window, earliest, secret.deadline)
    if record is not None and is_open:
        state = record.state
    elif (
        known.failures
        and record is not None
        and record.state == ROLLED_BACK
        and record.error != BY_COMMAND
    ):
        state = "failed"
    elif when > now:
        state = "ok"
    elif known.failures:
        state = "failed"
    else:
        # Due is what waits for its first window since; it is overdue when that went by.
        first = calendars.opening(secret.window, when, secret.deadline)
        state = "overdue" if first is not None and first + secret.deadline < now else "due"
    return Status(secret, state, known, when, begins, record)
