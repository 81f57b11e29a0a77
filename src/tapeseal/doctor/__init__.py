"""Looks at a set-up, and says what to mend; changes nothing (docs/doctor.md)."""

import fnmatch
import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tapeseal.doctor.findings import (
    NOT_SEEN,
    SEVERITIES,
    Check,
    Finding,
    GoneError,
    Look,
    Problem,
    SetUp,
)

__all__ = ["SEVERITIES", "Check", "Finding", "Report", "SetUp", "checks", "examine"]

_AREAS: Final[Mapping[str, str]] = {
    "vault": "tapeseal.doctor.vault",
    "kms": "tapeseal.doctor.kms",
    "file": "tapeseal.doctor.local_files",
    "machine": "tapeseal.doctor.machine",
    "environment": "tapeseal.doctor.environment",
    "plan": "tapeseal.doctor.rotation",
    "audit": "tapeseal.doctor.audit",
    "break-glass": "tapeseal.doctor.break_glass",
    "tape": "tapeseal.doctor.tapes",
    "config": "tapeseal.doctor.configuration",
}
"""By area, the module with its CHECKS and look()."""


@dataclass
class Report:
    """What examine() found."""

    findings: list[Finding] = field(default_factory=list)
    """The worst first."""
    looked_at: list[str] = field(default_factory=list)
    """The checks that were made, in part at least."""
    not_looked_at: dict[str, str] = field(default_factory=dict)
    """The checks that could not be made, and why."""
    not_asked: list[str] = field(default_factory=list)
    """The areas of which the set-up has nothing."""

    def at_least(self, severity: str) -> list[Finding]:
        """Return the findings of a severity or a worse one."""
        least = SEVERITIES.index(severity)
        return [each for each in self.findings if SEVERITIES.index(each.severity) >= least]


def checks() -> list[Check]:
    """Return all checks, area by area."""
    return [
        check
        for module in _AREAS.values()
        for check in importlib.import_module(module).CHECKS.values()
    ]


def examine(set_up: SetUp, *, only: Sequence[str] = (), skip: Sequence[str] = ()) -> Report:
    """Look at a set-up.

    Args:
        set_up: what to look at.
        only: names of checks, or of areas; none: all of them. `*` stands for any text.
        skip: what to leave out of these: CHECK, AREA or CHECK:SUBJECT.

    Raises:
        ValueError: there is no such check.
    """
    _check_names([*only, *skip])
    report = Report()
    for area, module in _AREAS.items():
        chosen = [
            check
            for check in importlib.import_module(module).CHECKS.values()
            if (not only or _is_named(check, only)) and not _is_named(check, skip)
        ]
        if chosen:
            _examine(area, module, chosen, set_up, report)
    report.findings = [
        each
        for each in report.findings
        if not any(
            fnmatch.fnmatchcase(each.check, name)
            or fnmatch.fnmatchcase(f"{each.check}:{each.subject}", name)
            for name in skip
        )
    ]
    report.findings.sort(key=lambda each: -SEVERITIES.index(each.severity))
    return report


def _examine(
    area: str, module: str, chosen: Iterable[Check], set_up: SetUp, report: Report
) -> None:
    gone: GoneError | None = None
    try:
        with importlib.import_module(module).look(set_up) as look:
            if look is None:
                report.not_asked.append(area)
                return
            for check in chosen:
                if gone is None:
                    gone = _run(check, look, report)
                if gone is not None:
                    report.not_looked_at[check.name] = str(gone)
    except GoneError as error:
        gone = error
        report.not_looked_at |= {check.name: str(error) for check in chosen}
    if gone is not None:
        problem = Problem("warning", area, str(gone), gone.fix, gone.command, NOT_SEEN)
        report.findings.append(_finding(f"{area}.not-seen", problem))


def _run(check: Check, look: Look, report: Report) -> GoneError | None:
    """Make a check, and add what it finds to the report; return why nothing more can be seen, if that is so."""
    gone = None
    seen = False
    before = look.seen
    look.unseen.clear()
    try:
        for problem in check.function(look):
            seen = True
            report.findings.append(_finding(check.name, problem, check.why))
    except GoneError as error:
        gone = error
    except Exception as error:
        # What a service answers is not ours to know, and the other checks are to be made all the same.
        text = f"the check failed: {type(error).__name__}"
        look.not_seen(check.name, check.area, text, "Report it; TAPESEAL_DEBUG=1 shows where.")
        if os.environ.get("TAPESEAL_DEBUG"):
            raise
    for each in look.unseen.values():
        # Several checks may lack the same thing.
        if not any(
            each == (f.severity, f.subject, f.found, f.fix, f.command, f.why)
            for f in report.findings
        ):
            report.findings.append(_finding(check.name, each))
    if seen or look.seen > before or not (look.unseen or gone):
        report.looked_at.append(check.name)
    elif gone is None:
        report.not_looked_at[check.name] = "; ".join(each.found for each in look.unseen.values())
    return gone


def _finding(check: str, problem: Problem, why: str = "") -> Finding:
    severity, subject, found, fix, command, own = problem
    return Finding(check, severity, subject, found, own or why, fix, command)


def _is_named(check: Check, names: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(check.name, name) or check.area == name
        for name in names
        if ":" not in name
    )


def _check_names(names: Iterable[str]) -> None:
    known = checks()
    for name in names:
        pattern = name.partition(":")[0]
        unseen = pattern.removesuffix(".not-seen")
        if unseen not in _AREAS and not any(_is_named(check, [pattern]) for check in known):
            raise ValueError(f"there is no check {pattern!r}; those are: tapeseal doctor --list")
