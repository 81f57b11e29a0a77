"""What a check is, what it finds, and how an area is looked at."""

import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from tapeseal.rotation.plan import Plan, PlannedSecret

T = TypeVar("T")

SEVERITIES: Final = ("info", "warning", "serious")
"""From the least on: what is good to know; what is to be mended; what is to be mended today."""

NOT_SEEN: Final = "What is not looked at may be wrong without anybody knowing."


class Problem(NamedTuple):
    """What a check found wrong with a subject."""

    severity: str
    """One of SEVERITIES."""
    subject: str
    """What it is about: a path, a key, a policy."""
    found: str
    """What was seen there."""
    fix: str = ""
    """The change that mends it, where no command does, or what to know of the command."""
    command: str = ""
    """The command that mends it, to be copied. What is to be filled in stands in capitals."""
    why: str = ""
    """Why it matters, where that is not what the check says."""


@dataclass(frozen=True)
class Finding:
    """A problem as the report has it."""

    check: str
    severity: str
    subject: str
    found: str
    why: str
    fix: str
    command: str


@dataclass(frozen=True)
class Check:
    """One thing that is looked at. Its name is AREA.NAME."""

    name: str
    looks_at: str
    """What it looks at and finds wrong, in one sentence."""
    why: str
    """Why that matters, in one sentence."""
    function: "Function"
    """Takes what its area's look() yields."""

    @property
    def area(self) -> str:
        """The first part of the name."""
        return self.name.partition(".")[0]


Checks = dict[str, Check]


Function = Callable[[Any], Iterator[Problem]]


def registrar(checks: Checks) -> Callable[[str, str, str], Callable[[Function], Function]]:
    """Return the decorator that adds a function to the checks of an area: @check(name, looks_at, why)."""

    def check(name: str, looks_at: str, why: str) -> Callable[[Function], Function]:
        def add(function: Function) -> Function:
            checks[name] = Check(name, looks_at, why, function)
            return function

        return add

    return check


class GoneError(Exception):
    """An area cannot be looked at any further; the text says why."""

    def __init__(self, reason: str, fix: str = "", command: str = "") -> None:
        super().__init__(reason)
        self.fix = fix
        self.command = command


class Look:
    """The base of what the checks of an area look at: notes what could not be seen, and keeps to a deadline.

    Args:
        what: its name in sentences, such as "Vault".
        seconds: for the area as a whole.
    """

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        self.unseen: dict[str, Problem] = {}
        """What was not seen, by what is missing."""
        self.seen = 0
        """How many things were seen."""
        self._asked: dict[Hashable, tuple[Any, dict[str, Problem], int]] = {}
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            GoneError: none is.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise GoneError(
                f"{self.what} was not looked at to the end: the {self._seconds:.0f} s for it were over",
                f"Run it again where {self.what} answers faster, or choose checks by --only.",
            )
        return left

    def once(self, key: Hashable, ask: Callable[[], T]) -> T:
        """Ask the first time, and have the same answer thereafter, with what could not be seen of it."""
        if key not in self._asked:
            before, self.unseen = self.unseen, {}
            count = self.seen
            try:
                answer = ask()
                self._asked[key] = answer, self.unseen, self.seen - count
            finally:
                self.unseen, self.seen = before, count
        answer, unseen, seen = self._asked[key]
        self.unseen = {**unseen, **self.unseen}
        self.seen += seen
        return answer

    def not_seen(
        self, missing: str, subject: str, found: str, fix: str = "", command: str = ""
    ) -> None:
        """Note that something could not be seen; the same thing is noted once."""
        problem = Problem("warning", subject, found, fix, command, NOT_SEEN)
        self.unseen.setdefault(missing, problem)


@dataclass(frozen=True)
class SetUp:
    """What is to be looked at. The machine, and the services that the environment names, always are."""

    keyrings: tuple[str, ...] = ()
    """URIs of keyrings: their key files, and their keys at AWS KMS."""
    plan: str | None = None
    """The rotation plan, and its journal."""
    audit_log: str | None = None
    """The audit log; None: that of TAPESEAL_AUDIT."""
    anchors: str | None = None
    """The file that keeps the log's anchors."""
    packages: tuple[str, ...] = ()
    """Break-glass packages."""
    tapes: tuple[str, ...] = ()
    """Tapes, and folders of them."""
    configuration: tuple[str, ...] = ()
    """Files, and folders, that should hold no secret."""
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    """The present, in UTC; another one tells what will be found then."""

    @cached_property
    def read_plan(self) -> "Plan | ValueError | None":
        """The plan, or why it is none; None: there is none."""
        from tapeseal.rotation.plan import read_plan

        try:
            return None if self.plan is None else read_plan(self.plan)
        except ValueError as error:
            return error
        except OSError as error:
            return ValueError(f"{self.plan} could not be read: {error.strerror}")

    @property
    def planned(self) -> "Iterable[PlannedSecret]":
        """The secrets of the plan, none where it cannot be read."""
        from tapeseal.rotation.plan import Plan

        return self.read_plan.secrets.values() if isinstance(self.read_plan, Plan) else ()

    @property
    def log(self) -> str | None:
        """The path of the audit log; None: there is none."""
        return self.audit_log or os.environ.get("TAPESEAL_AUDIT") or None


def days(seconds: float) -> str:
    """Return a time as people read it, in whole days, or hours where it is less than two days."""
    count, unit = (seconds / 86400, "day") if seconds >= 2 * 86400 else (seconds / 3600, "hour")
    return f"{count:.0f} {unit}{'' if round(count) == 1 else 's'}"
