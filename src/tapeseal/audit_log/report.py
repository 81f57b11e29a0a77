"""What an audit log tells: who used what, what is overdue or unused, what failed, what is unlike before."""

import heapq
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

from tapeseal.audit_log import chain
from tapeseal.audit_log.log import earlier_files
from tapeseal.files import StrPath
from tapeseal.rotation.plan import PlannedSecret

UNUSED_DAYS: Final = 90
NEW_DAYS: Final = 7
"""A pair of user and secret is new for so long."""
SOON_DAYS: Final = 14
"""A rotation is due soon this long before."""

# What is used, and can go unused: not tapes, commands and what the log says of itself.
_NO_SECRETS = ("audit.", "command.", "tape.", "blob.", "rows.", "reserve.", "vault.", "doctor.")
_TIME = re.compile(r"(?:19[7-9]\d|[2-8]\d{3})-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", re.ASCII)

_MOST_DAYS = 3660
"""Over a longer time, as where somebody's clock was wrong, days without operations are left out."""

# A minute is a burst with this many operations, and so many times what is usual for who did them.
_BURST, _BURST_TIMES = 30, 8
# Who worked on so many days, and at an hour on less than this share of them, seldom works at that hour. By days, for
# one night of many operations is still one night.
_ENOUGH_DAYS, _SELDOM = 10, 0.1


@dataclass
class Use:
    """What one did with one subject."""

    who: str
    subject: str
    count: int = 0
    failed: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    """How often each; usual_actions() has them in that order."""
    versions: list[str] = field(default_factory=list)
    """The last four, the newest last."""
    hosts: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)
    first: str = ""
    """In the period, in UTC."""
    last: str = ""

    def usual_actions(self) -> list[str]:
        """Return what was done, the most frequent first."""
        return sorted(self.actions, key=lambda each: (-self.actions[each], each))


@dataclass
class Person:
    """Who did something: a service or a person."""

    who: str
    count: int = 0
    failed: int = 0
    subjects: int = 0
    first: str = ""
    last: str = ""


@dataclass
class Failure:
    """The failures of one kind."""

    who: str
    action: str
    subject: str
    result: str
    count: int = 0
    first: str = ""
    last: str = ""


@dataclass
class Due:
    """A secret of the plan, and when it changed last."""

    name: str
    kind: str
    owner: str
    tier: str
    every_days: float
    last: str | None
    """The end of its last rotation; None: the log has none."""
    version: str | None
    due: str | None
    days: float | None
    """How many days it is late; below 0: how many are left."""
    state: str
    """"overdue", "soon", "fine", or "never"."""


@dataclass
class Unused:
    """A secret that nobody has used for long."""

    subject: str
    last: str
    days: float
    """How long ago that was."""
    who: str
    """Who used it last."""


@dataclass
class Pattern:
    """Something unlike before."""

    kind: str
    """"new": who never used this before; "off-hours": at an hour at which this one seldom works; "burst": many times
    more in a minute than is usual."""
    who: str
    subject: str
    count: int
    first: str
    last: str
    text: str


@dataclass
class Day:
    """What happened on a day."""

    day: str
    done: int = 0
    failed: int = 0


@dataclass
class Report:
    """All of it; `as_json()` is what --json prints."""

    log_id: str
    since: str
    until: str
    zone: str
    verified: bool | None
    """Whether every entry was authenticated; None: no key was given."""
    problems: list[str]
    """What verify_log() found wrong."""
    entries: int
    """In the period."""
    failed: int
    unreadable: int
    """Lines that are no entries."""
    people: list[Person]
    uses: list[Use]
    subjects: int
    overdue: list[Due]
    unused: list[Unused]
    failures: list[Failure]
    patterns: list[Pattern]
    days: list[Day]
    hours: list[list[int]]
    """Operations by day of the week, Monday first, and hour."""
    actions: list[tuple[str, int, int]]
    """Parts of tapeseal ("kv"), how often, and how often in vain."""

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return asdict(self)


@dataclass
class Settings:
    """What a report looks at."""

    since: datetime | None = None
    """None: from the first entry on."""
    until: datetime | None = None
    """None: to now."""
    unused_days: float = UNUSED_DAYS
    hours: tuple[int, int] = (7, 19)
    """Working hours, from and until."""
    zone: tzinfo = UTC
    """Of hours and days."""


@dataclass
class _Last:
    time: str
    who: str


class ReportBuilder:
    """Takes the lines of a log one by one, and makes the report in the end.

    Args:
        settings: what is looked at.
        plan: the secrets of a rotation plan by their names.
    """

    def __init__(self, settings: Settings, plan: Mapping[str, PlannedSecret] | None = None) -> None:
        self._settings = settings
        self._plan = plan or {}
        self._until = settings.until or datetime.now(UTC)
        self._since_text = "" if settings.since is None else time_text(settings.since)
        self._until_text = time_text(self._until)
        self._entries = self._failed = self._unreadable = 0
        self._begin = ""
        self._is_begun = False
        self._people: dict[str, Person] = {}
        self._uses: dict[tuple[str, str], Use] = {}
        self._failures: dict[tuple[str, str, str, str], Failure] = {}
        self._pairs: dict[tuple[str, str], str] = {}
        self._last_use: dict[str, _Last] = {}
        self._days: dict[str, Day] = {}
        self._hours = [[0] * 24 for _ in range(7)]
        self._actions: dict[str, list[int]] = {}
        self._local: dict[str, tuple[str, int, int]] = {}
        self._rhythm: dict[str, _Rhythm] = {}
        self._revoked: set[str] = set()
        self._rotated: dict[str, tuple[str, str | None]] = {}

    def add(self, line: bytes) -> None:
        """Take an entry's line; one that is no entry is counted."""
        entry = parse_entry(line)
        if entry is None:
            self._unreadable += 1
            return
        time, action = entry["time"], entry["action"]
        if time > self._until_text and self._settings.until is not None:
            return
        self._begin = self._begin or time
        if action.startswith("audit."):
            return
        who, subject, result = _who(entry), entry["subject"], entry["result"]
        done = result == "done"
        is_secret = not action.startswith(_NO_SECRETS)
        if action.startswith("rotation."):
            self._rotation(entry)
        if is_secret and done and not action.startswith("rotation."):
            self._last_use[subject] = _Last(time, who)
        pair = (who, subject)
        if is_secret:
            self._pairs.setdefault(pair, time)
        # What stands behind an entry of the period is of it too: whoever puts back the clock hides nothing.
        if time < self._since_text and not self._is_begun:
            return
        self._is_begun = self._is_begun or time <= self._until_text
        self._entries += 1
        self._failed += not done
        day, weekday, hour = self._place(time)
        of_day = self._days.setdefault(day, Day(day))
        if done:
            of_day.done += 1
        else:
            of_day.failed += 1
        self._hours[weekday][hour] += 1
        part = self._actions.setdefault(action.partition(".")[0], [0, 0])
        part[0] += 1
        part[1] += not done
        person = self._people.setdefault(who, Person(who, first=time))
        person.count += 1
        person.failed += not done
        person.last = time
        use = self._uses.get(pair)
        if use is None:
            use = self._uses[pair] = Use(who, subject, first=time)
            person.subjects += 1
        use.count += 1
        use.failed += not done
        use.actions[action] = use.actions.get(action, 0) + 1
        use.last = time
        _remember(use.hosts, entry["host"])
        _remember(use.programs, entry["program"])
        if entry.get("version") is not None:
            _remember(use.versions, str(entry["version"]))
        if not done:
            key = (who, action, subject, result)
            failure = self._failures.setdefault(key, Failure(*key, first=time))
            failure.count += 1
            failure.last = time
        rhythm = self._rhythm.setdefault(who, _Rhythm())
        rhythm.add(time, subject, day, (weekday > 4, hour))

    def _rotation(self, entry: Mapping[str, Any]) -> None:
        """Note the end of a rotation that went through: one that ended the old credential, and so cannot go back."""
        rotation = str(entry["details"].get("rotation", ""))
        step = entry["action"].removeprefix("rotation.")
        if entry["result"] != "done":
            return
        if step == "revoke":
            self._revoked.add(rotation)
        elif step == "clean" and rotation in self._revoked:
            version = entry.get("version")
            known = None if version is None else str(version)
            self._rotated[entry["subject"]] = (entry["time"], known)

    def _place(self, time: str) -> tuple[str, int, int]:
        """Return day, day of the week and hour of a time where the settings have them."""
        key = time[:15]  # Ten minutes: no zone changes within.
        place = self._local.get(key)
        if place is None:
            moment = datetime.fromisoformat(f"{key}0:00+00:00").astimezone(self._settings.zone)
            place = (f"{moment:%Y-%m-%d}", moment.weekday(), moment.hour)
            self._local[key] = place
        return place

    def report(
        self, *, log_id: str = "", verified: bool | None = None, problems: Sequence[str] = ()
    ) -> Report:
        """Return the report of all that was added."""
        return Report(
            log_id=log_id,
            since=self._since_text or self._begin or self._until_text,
            until=self._until_text,
            zone=str(self._settings.zone),
            verified=verified,
            problems=list(problems),
            entries=self._entries,
            failed=self._failed,
            unreadable=self._unreadable,
            people=sorted(self._people.values(), key=lambda each: (-each.count, each.who)),
            uses=sorted(self._uses.values(), key=lambda each: (-each.count, each.who)),
            subjects=len({subject for who, subject in self._uses if (who, subject) in self._pairs}),
            overdue=self._due(),
            unused=self._unused(),
            failures=sorted(self._failures.values(), key=lambda each: (-each.count, each.last)),
            patterns=[*self._new(), *self._off_hours(), *self._bursts()],
            days=self._all_days(),
            hours=self._hours,
            actions=sorted(
                ((name, count, failed) for name, (count, failed) in self._actions.items()),
                key=lambda each: -each[1],
            ),
        )

    def _all_days(self) -> list[Day]:
        if not self._days:
            return []
        day, last = (datetime.fromisoformat(each) for each in (min(self._days), max(self._days)))
        if (last - day).days > _MOST_DAYS:
            return [self._days[each] for each in sorted(self._days)]
        found = []
        while day <= last:
            name = f"{day:%Y-%m-%d}"
            found.append(self._days.get(name, Day(name)))
            day += timedelta(days=1)
        return found

    def _due(self) -> list[Due]:
        found = []
        for secret in self._plan.values():
            last, version = self._rotated.get(secret.name, (None, None))
            due, days, state = None, None, "never"
            if last is not None:
                end = _moment(last) + secret.schedule
                due, days = time_text(end), (self._until - end) / timedelta(days=1)
                state = "overdue" if days > 0 else "soon" if days > -SOON_DAYS else "fine"
            every = secret.schedule / timedelta(days=1)
            found.append(
                Due(secret.name, secret.kind, secret.owner, secret.tier, every, last, version, due, days, state)
            )  # fmt: skip
        order = ("overdue", "never", "soon", "fine")
        return sorted(
            found, key=lambda each: (order.index(each.state), -(each.days or 0), each.name)
        )

    def _unused(self) -> list[Unused]:
        found = []
        for subject, last in self._last_use.items():
            days = (self._until - _moment(last.time)) / timedelta(days=1)
            if days >= self._settings.unused_days:
                found.append(Unused(subject, last.time, days, last.who))
        return sorted(found, key=lambda each: (-each.days, each.subject))

    def _new(self) -> list[Pattern]:
        """Who used something for the first time, where the log reaches back far enough to tell."""
        edge = time_text(self._until - timedelta(days=NEW_DAYS))
        if not self._begin or self._begin >= edge:
            return []
        found = []
        for (who, subject), first in self._pairs.items():
            use = self._uses.get((who, subject))
            if first < edge or use is None:
                continue
            found.append(
                Pattern(
                    "new",
                    who,
                    subject,
                    use.count,
                    use.first,
                    use.last,
                    f"first seen on {first[:10]}",
                )
            )
        return sorted(found, key=lambda each: each.first, reverse=True)

    def _off_hours(self) -> list[Pattern]:
        start, stop = self._settings.hours
        edge = time_text(self._until - timedelta(days=NEW_DAYS))
        found = []
        for who, rhythm in self._rhythm.items():
            if len(rhythm.days) < _ENOUGH_DAYS:
                continue
            for (is_weekend, hour), at in rhythm.hours.items():
                is_off = is_weekend or not start <= hour < stop
                if not is_off or at.days >= _SELDOM * len(rhythm.days) or at.last < edge:
                    continue
                days = "1 day" if at.days == 1 else f"{at.days} days"
                text = f"{at.count} from {hour:02d}:00 to {(hour + 1) % 24:02d}:00, on {days} of {len(rhythm.days)}"
                found.append(
                    Pattern("off-hours", who, at.subject, at.count, at.first, at.last, text)
                )
        return sorted(found, key=lambda each: each.last, reverse=True)

    def _bursts(self) -> list[Pattern]:
        found = []
        for who, rhythm in self._rhythm.items():
            usual = rhythm.usual()
            for count, minute, subject in rhythm.top():
                if count >= _BURST and count >= _BURST_TIMES * usual:
                    text = (
                        f"{count} in a minute, where {usual} {'is' if usual == 1 else 'are'} usual"
                    )
                    first, last = f"{minute}:00.000000000Z", f"{minute}:59.999999999Z"
                    found.append(Pattern("burst", who, subject, count, first, last, text))
        return sorted(found, key=lambda each: each.first, reverse=True)


@dataclass
class _Hour:
    """What one did at an hour of the day."""

    first: str
    count: int = 0
    days: int = 0
    day: str = ""
    last: str = ""
    subject: str = ""


class _Rhythm:
    """How often one does something in a minute, and when."""

    def __init__(self) -> None:
        self.days: set[str] = set()
        self.hours: dict[tuple[bool, int], _Hour] = {}
        """By whether it was at a weekend, and the hour."""
        self._minute = ""
        self._in_minute: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()
        self._top: list[tuple[int, str, str]] = []

    def add(self, time: str, subject: str, day: str, hour: tuple[bool, int]) -> None:
        """Take note of one operation."""
        self.days.add(day)
        at = self.hours.setdefault(hour, _Hour(time))
        at.count += 1
        if at.day != day:
            at.days, at.day = at.days + 1, day
        at.last, at.subject = time, subject
        if time[:16] != self._minute:
            self._end_minute()
            self._minute = time[:16]
        self._in_minute[subject] += 1

    def _end_minute(self) -> None:
        count = self._in_minute.total()
        if count:
            self._sizes[count] += 1
            entry = (count, self._minute, self._in_minute.most_common(1)[0][0])
            (heapq.heappush if len(self._top) < 10 else heapq.heappushpop)(self._top, entry)
        self._in_minute.clear()

    def usual(self) -> int:
        """Return the median of the minutes in which anything was done."""
        self._end_minute()
        half, passed = self._sizes.total() / 2, 0
        for size in sorted(self._sizes):
            passed += self._sizes[size]
            if passed >= half:
                return size
        return 0

    def top(self) -> list[tuple[int, str, str]]:
        """Return the fullest minutes: how many, when, and what of most."""
        return sorted(self._top, reverse=True)


def parse_entry(line: bytes) -> dict[str, Any] | None:
    """Return an entry of a line; None where it is none."""
    # What is not ASCII, or a terminal could act on, the log did not write.
    if len(line) > chain.MAX_LINE_SIZE or not (line.isascii() and line.decode().isprintable()):
        return None
    parsed = chain.parse_object(line)
    if parsed is None:
        return None
    found = {"details": {}, **parsed}
    texts = ("time", "host", "user", "program", "action", "subject", "result")
    if not all(isinstance(found.get(name), str) for name in texts):
        return None
    try:
        if not _TIME.fullmatch(found["time"]):
            return None
        _moment(found["time"])
    except ValueError:
        return None
    if not isinstance(found.get("version"), str | int | None):
        return None
    if not isinstance(found["details"], dict):
        return None
    for name in ("identity", "login"):
        if not isinstance(found.get(name), str | None):
            return None
    return found


def _who(entry: Mapping[str, Any]) -> str:
    """Return who it was, as reports name one."""
    who = str(entry["user"])
    if entry.get("login"):
        who = f"{entry['login']} as {who}"
    return f"{entry['identity']} ({who})" if entry.get("identity") else who


def _remember(known: list[str], value: str, most: int = 4) -> None:
    if known and known[-1] == value:
        return
    if value in known:
        known.remove(value)
    known.append(value)
    del known[:-most]


def time_text(moment: datetime) -> str:
    """Return a time as entries have it."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}000Z"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(f"{text[:26]}+00:00")


def _open_at_once(path: str, flags: int) -> int:
    # A pipe in a file's place is empty, and is not waited for.
    return os.open(path, flags | os.O_NONBLOCK)


def read_lines(path: StrPath) -> Iterator[bytes]:
    """Yield the lines of all files of a log but their headers, nothing of it authenticated; newlines are cut off."""
    for name in [*(name for _, name in earlier_files(path)), os.fspath(path)]:
        with open(name, "rb", opener=_open_at_once) as file:
            file.readline(chain.MAX_HEADER_SIZE)
            while line := file.readline(chain.MAX_HEADER_SIZE):
                yield line.rstrip(b"\n")
