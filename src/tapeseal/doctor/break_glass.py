"""Checks of break-glass packages: that they are new, and that their opening was practised."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from tapeseal.doctor.findings import Checks, Look, Problem, SetUp, days, registrar

if TYPE_CHECKING:
    from tapeseal.break_glass import Package

MAX_AGE: Final = timedelta(days=180)
MAX_UNPRACTISED: Final = timedelta(days=92)
MAX_LOG_SIZE: Final = 256 << 20
"""Bytes of the audit log, from its end on, that are searched for drills."""

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)

_OPENED: Final = b'"action":"break-glass.open"'


class PackagesLook(Look):
    """The packages, and what the audit log has of drills. Nothing is authenticated: verify does that."""

    def __init__(self, set_up: SetUp) -> None:
        super().__init__("break-glass packages", 60.0)
        self.paths = set_up.packages
        self.log = set_up.log
        self.now = set_up.now

    def packages(self) -> Iterator[tuple["Package", datetime]]:
        """Yield each package with when it was sealed; those that cannot be read are noted."""
        from tapeseal import header
        from tapeseal.break_glass import Package
        from tapeseal.errors import TapesealError

        for path in self.paths:
            try:
                package = Package.read(path)
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    created = header.read_file(fd).content.created
                finally:
                    os.close(fd)
            except (OSError, TapesealError) as error:
                said = getattr(error, "strerror", None) or str(error)
                self.not_seen(
                    path,
                    path,
                    f"it could not be read: {said}",
                    "Seal it anew: docs/break-glass.md.",
                )
                continue
            self.seen += 1
            yield package, datetime.fromisoformat(created).astimezone(UTC)

    @cached_property
    def drills(self) -> dict[str, datetime]:
        """When each package, by its name, was last opened in a drill, within MAX_UNPRACTISED."""
        from tapeseal.audit_log.chain import parse_object

        found: dict[str, datetime] = {}
        since = self.now - MAX_UNPRACTISED
        left = MAX_LOG_SIZE
        for path in self._logs():
            self.left()
            status = os.stat(path)
            # A file that was last written before has nothing newer.
            if left <= 0 or status.st_mtime < since.timestamp():
                break
            with open(path, "rb") as file:
                file.seek(max(0, status.st_size - left))
                for line in file:
                    entry = parse_object(line) if _OPENED in line else None
                    drill = None if entry is None else _drill(entry)
                    if drill is not None and drill[1] > found.get(drill[0], since):
                        found[drill[0]] = drill[1]
            left -= status.st_size
        return found

    def _logs(self) -> Iterator[str]:
        """Yield the files of the log, the newest first."""
        assert self.log is not None
        yield self.log
        folder, name = os.path.split(os.path.abspath(self.log))
        earlier = [
            each
            for each in os.listdir(folder)
            if each.startswith(f"{name}.") and each[len(name) + 1 :].isdecimal()
        ]
        yield from (os.path.join(folder, each) for each in sorted(earlier, reverse=True))


def _drill(entry: Any) -> tuple[str, datetime] | None:
    """Return the package and the time of an entry of a drill that went well."""
    details = entry.get("details")
    if not isinstance(details, dict) or details.get("drill") != 1 or entry.get("result") != "done":
        return None
    try:
        return str(entry["subject"]), datetime.fromisoformat(entry["time"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError):
        return None


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[PackagesLook | None]:
    """Look at the packages of the set-up."""
    yield PackagesLook(set_up) if set_up.packages else None


@check(
    "break-glass.age",
    "Packages that were sealed over 180 days ago.",
    "Access that has changed since, or custodians who have left, are found out in the emergency.",
)
def _age(look: PackagesLook) -> Iterator[Problem]:
    for package, created in look.packages():
        age = look.now - created
        if age > MAX_AGE:
            yield Problem(
                "warning",
                package.path,
                f"it was sealed {days(age.total_seconds())} ago",
                f"Rotate what it holds, and seal it anew, for any {package.threshold} of"
                f" {', '.join(package.custodians)}: docs/break-glass.md.",
            )


@check(
    "break-glass.drill",
    "Packages whose opening nobody has practised in the last quarter.",
    "What was never practised takes hours when minutes count.",
)
def _drills(look: PackagesLook) -> Iterator[Problem]:
    for package, _ in look.packages():
        if look.log is None:
            look.not_seen(
                "the audit log",
                package.path,
                "whether a drill was held cannot be told without the audit log",
                "Give it by --audit.",
            )
            return
        try:
            practised = package.name in look.drills
        except OSError as error:
            look.not_seen(
                look.log, look.log, f"it could not be read: {error.strerror}", "Run it as its user."
            )
            return
        if not practised:
            path = shlex.quote(package.path if package.drill else f"{package.path}.drill")
            yield Problem(
                "warning",
                package.path,
                "no drill is in the audit log of the last 92 days",
                "Hold one: request, approve, open (docs/runbook.md).",
                f"tapeseal break-glass request {path} --reason drill -o REQUEST",
            )
