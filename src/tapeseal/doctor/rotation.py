"""Checks of a rotation plan and its journal."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from tapeseal.doctor.findings import Checks, GoneError, Look, Problem, SetUp, registrar
from tapeseal.rotation.journal import Journal
from tapeseal.rotation.schedule import Calendars, Sessions

if TYPE_CHECKING:
    from tapeseal.rotation.plan import Plan
    from tapeseal.rotation.status import Status

SECONDS: Final = 60.0

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)


class _ReadJournal(Journal):
    """A journal in which looking leaves nothing behind."""

    def keep_calendar(self, market: str, package: str, first: float, sessions: Sessions) -> None:
        """Keep nothing."""


class PlanLook(Look):
    """A plan, with what its journal says of each secret."""

    def __init__(self, plan: "Plan", journal: Journal | None, set_up: SetUp) -> None:
        super().__init__("the plan", SECONDS)
        self.plan = plan
        self.now = set_up.now
        self._journal = journal
        self._calendars = Calendars(journal)

    @cached_property
    def windows(self) -> Mapping[str, str]:
        """Why the window of a secret is of no use, by its name."""
        found = {}
        known: dict[object, str] = {}
        for name, secret in self.plan.secrets.items():
            key = secret.window, secret.deadline
            if key not in known:
                self.left()
                known[key] = ""
                try:
                    if self._calendars.opening(secret.window, self.now, secret.deadline) is None:
                        known[key] = "it is never open for as long as the deadline"
                except (ValueError, ModuleNotFoundError) as error:
                    known[key] = str(error)
            if known[key]:
                found[name] = known[key]
        return found

    @cached_property
    def statuses(self) -> "list[Status]":
        """What the journal says of each secret whose window is of use; nothing where there is no journal yet."""
        from tapeseal.rotation.status import statuses

        if self._journal is None:
            return []
        usable = {
            name: each for name, each in self.plan.secrets.items() if name not in self.windows
        }
        plan = replace(self.plan, secrets=usable)
        return statuses(plan, self._journal, self._calendars, self.now)

    def command(self, *words: str) -> str:
        """Return a command of `tapeseal rotate` for this plan."""
        return shlex.join(["tapeseal", "rotate", *words, "--plan", self.plan.path])


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[PlanLook | None]:
    """Look at the plan of the set-up."""
    plan = set_up.read_plan
    if plan is None:
        yield None
        return
    if isinstance(plan, ValueError):
        raise GoneError(
            str(plan),
            "Mend what it names.",
            shlex.join(["tapeseal", "rotate", "plan", "--plan", str(set_up.plan)]),
        )
    with contextlib.ExitStack() as stack:
        journal = None
        # Opening makes one where there is none, and this is to leave nothing behind.
        if plan.state.exists() and plan.state.stat().st_size:
            try:
                journal = stack.enter_context(_ReadJournal(plan.state))
            except (OSError, ValueError) as error:
                raise GoneError(
                    f"the journal could not be read: {error}",
                    "Run it as the user of the rotations.",
                ) from None
        yield PlanLook(plan, journal, set_up)


@check(
    "plan.overdue",
    "Secrets that are overdue, whose rotation failed, or of which nobody knows how old they are.",
    "The longer a secret lives, the more have seen it, and the longer a stolen one works.",
)
def _overdue(plan: PlanLook) -> Iterator[Problem]:
    plan.seen += 1
    known = {each.secret.name: each for each in plan.statuses}
    for name in plan.plan.secrets:
        status = known.get(name)
        if status is None or status.state == "unknown":
            yield Problem(
                "info",
                name,
                "how old it is, nobody has asked yet",
                command=plan.command("plan", "--refresh"),
            )
        elif status.state in ("overdue", "failed"):
            since = "" if status.due is None else f" since {status.due:%Y-%m-%d}"
            text = f"it is overdue{since}"
            if status.state == "failed":
                text = f"its rotation failed, and it is due{since}: {status.alarm}"
            yield Problem("serious", name, text, command=plan.command("run", name))


@check(
    "plan.waiting",
    "Rotations that wait for consumers, or need somebody.",
    "Until each consumer has the new version, the old secret stays alive.",
)
def _waiting(plan: PlanLook) -> Iterator[Problem]:
    plan.seen += 1
    for status in plan.statuses:
        record = status.record
        if record is None or not record.open:
            continue
        if record.waiting:
            yield Problem(
                "serious" if record.alarm else "warning",
                status.secret.name,
                f"the new version is not yet used by {', '.join(record.waiting)}",
                "Have them read the new version, or go back to the old one.",
                plan.command("rollback", status.secret.name),
            )
        elif record.alarm or record.error:
            yield Problem(
                "serious" if record.alarm else "warning",
                status.secret.name,
                record.alarm or record.error,
                command=plan.command("status", status.secret.name),
            )


@check(
    "plan.verification",
    "Secrets that no check verifies against their target.",
    "A new secret that the target does not take is found out by trading.",
)
def _verification(plan: PlanLook) -> Iterator[Problem]:
    plan.seen += 1
    for name, secret in plan.plan.secrets.items():
        # What never leaves its service is verified by the service that makes it.
        if not secret.verify and secret.kind not in ("transit-key", "kms-key", "tape-recipients"):
            yield Problem(
                "warning",
                name,
                "nothing verifies it",
                f"Add to {plan.plan.path}: [[secret.{name}.verify]]",
            )


@check(
    "plan.consumers",
    "Secrets that name no consumer.",
    "The old one is ended while somebody may still use it.",
)
def _consumers(plan: PlanLook) -> Iterator[Problem]:
    plan.seen += 1
    for name, secret in plan.plan.secrets.items():
        if not secret.consumers and secret.kind not in ("kms-key", "tape-recipients"):
            yield Problem(
                "info",
                name,
                "it names no consumer",
                f'Add to [secret.{name}] in {plan.plan.path}: consumers = ["…"]',
            )


@check(
    "plan.windows",
    "Windows that never open for long enough, or name no market.",
    "Such a secret never changes.",
)
def _windows(plan: PlanLook) -> Iterator[Problem]:
    plan.seen += 1
    for name, text in plan.windows.items():
        yield Problem(
            "serious",
            name,
            text,
            f"Widen [secret.{name}.window] in {plan.plan.path}, or shorten its deadline.",
        )
