"""When a secret may change: windows between the sessions of markets, and when it is due."""

import bisect
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tapeseal.rotation.settings import Setting, read_settings

if TYPE_CHECKING:
    from tapeseal.rotation.journal import Journal

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

SCHEDULES: Final[Mapping[str, timedelta]] = {
    "api-key": timedelta(days=90),
    "database-static-role": timedelta(days=60),
    "database-users": timedelta(days=60),
    "service-account": timedelta(days=30),
    "tls-certificate": timedelta(days=365),
    "ssh-key": timedelta(days=180),
    "transit-key": timedelta(days=90),
    "kms-key": timedelta(days=365),
    "tape-recipients": timedelta(days=365),
    "exec": timedelta(days=90),
}
"""How old a secret of a kind gets where the plan does not say."""

BEFORE_END: Final = timedelta(days=30)
"""What has an end of its own is due this long before it, or with two thirds of its life over, whichever is later."""

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_DAY = timedelta(days=1)

HORIZON: Final = timedelta(days=400)
"""How far ahead windows are looked for."""
_BEHIND = timedelta(days=10)


@dataclass(frozen=True)
class Window:
    """When a secret may change; by default at any time."""

    markets: tuple[str, ...] = ()
    """Never while one of these is open: names of exchange_calendars, such as "XNYS", "CMES", "XETR"."""
    margin: timedelta = timedelta()
    """Nor this long before it opens or after it closes."""
    days: tuple[str, ...] = DAYS
    """The days on which it may begin."""
    hours: tuple[time, time] | None = None
    """From and until when on such a day; past midnight where the end is not after the start."""
    zone: tzinfo = UTC
    """Of days and hours."""

    @property
    def always(self) -> bool:
        """Whether it is any time at all."""
        return not self.markets and self.days == DAYS and self.hours is None


ANY_TIME: Final = Window()

WINDOW_SETTINGS: Final[Mapping[str, Setting]] = {
    "markets": Setting(list, default=[]),
    "margin": Setting(timedelta, default=timedelta(), zero=True),
    "days": Setting(list, default=list(DAYS)),
    "hours": Setting(str, default=None),
    "timezone": Setting(str, default="UTC"),
}


def read_window(table: Mapping[str, Any], place: str, problems: list[str]) -> Window:
    """Read a window of a plan; what is wrong is added to the problems."""
    found = read_settings(table, WINDOW_SETTINGS, place=place, problems=problems)
    days = tuple(found.get("days", DAYS))
    if not set(days) <= set(DAYS):
        problems.append(f"{place}: days are {', '.join(DAYS)}")
        days = DAYS
    hours = None
    if found.get("hours") is not None:
        parts = _HOURS.fullmatch(found["hours"])
        if parts is None:
            problems.append(f'{place}: hours are like "20:00-06:00", not {found["hours"]!r}')
        else:
            first, minute, last, end = map(int, parts.groups())
            hours = time(first, minute), time(last, end)
    zone: tzinfo = UTC
    try:
        if found.get("timezone", "UTC") != "UTC":
            zone = ZoneInfo(found["timezone"])
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.append(
            f'{place}: there is no timezone {found["timezone"]!r}; one is "America/New_York"'
        )
    return Window(
        tuple(found.get("markets", ())),
        found.get("margin", timedelta()),
        tuple(day for day in DAYS if day in days),
        hours,
        zone,
    )


@dataclass(frozen=True)
class Sessions:
    """The sessions of a market, those that follow each other without a pause as one."""

    opens: list[float]
    closes: list[float]
    """In seconds of Unix time, `opens` included, `closes` not."""
    until: float
    """How far they are known."""


class Calendars:
    """The sessions of markets, by exchange_calendars, which takes a while to load: they are kept in the journal too.

    Args:
        journal: where they are kept; None: nowhere.
        now: the present in UTC.
    """

    def __init__(
        self, journal: "Journal | None" = None, now: Callable[[], datetime] | None = None
    ) -> None:
        self._journal = journal
        self._now = now or (lambda: datetime.now(UTC))
        self._sessions: dict[str, Sessions] = {}
        self._loaded: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def sessions(self, market: str) -> Sessions:
        """Return the sessions of a market from some days ago until more than a year from now.

        Raises:
            ValueError: there is no such market, or nobody knows its sessions.
            ModuleNotFoundError: exchange_calendars is not installed.
        """
        with self._lock:
            return self._known(market, self._now())

    def _known(self, market: str, now: datetime) -> Sessions:
        found = self._sessions.get(market)
        if found is None and self._journal is not None:
            found = self._journal.calendar(market, _package_version(), (now - _BEHIND).timestamp())
        # Of a market that nobody knows further ahead a day's look is enough.
        is_short = found is None or found.until < (now + HORIZON - 30 * _DAY).timestamp()
        if found is None or (
            is_short and not timedelta() <= now - self._loaded.get(market, now - _DAY) < _DAY
        ):
            self._loaded[market] = now
            try:
                loaded = _load(market, now)
            except ValueError:
                # Behind the last day that anybody knows: what was known of the past stays.
                if found is None:
                    raise
            else:
                found = loaded
                if self._journal is not None:
                    self._journal.keep_calendar(
                        market, _package_version(), (now - 2 * _BEHIND).timestamp(), found
                    )
        self._sessions[market] = found
        return found

    def opening(self, window: Window, after: datetime, length: timedelta) -> datetime | None:
        """Return the first moment from which on a window stays open for some time.

        Args:
            window: see there.
            after: not before that.
            length: for how long.

        Returns:
            None: there is none within some 13 months from now.
        """
        if window.always:
            return after
        limit = self._now() + HORIZON
        at = after
        markets = [self.sessions(market) for market in window.markets]
        while at < limit:
            start = at
            hours = _hours_open(window, at, length)
            if hours is None:
                return None
            at = hours
            for each in markets:
                if at.timestamp() >= each.until:
                    return None
                at = _after_sessions(each, at, length, window.margin)
            if at == start:
                return at
        return None

    def is_open(self, window: Window, at: datetime, length: timedelta) -> bool:
        """Whether a window is open for some time from then on."""
        return self.opening(window, at, length) == at


def _after_sessions(
    sessions: Sessions, at: datetime, length: timedelta, margin: timedelta
) -> datetime:
    """Return the first moment at or after `at` from which on the market is closed long enough."""
    around = margin.total_seconds()
    start, needed = at.timestamp(), length.total_seconds()
    number = bisect.bisect_right(sessions.closes, start - around)
    while number < len(sessions.opens) and sessions.opens[number] - around < start + needed:
        start = max(start, sessions.closes[number] + around)
        number += 1
    return at if start == at.timestamp() else datetime.fromtimestamp(start, UTC)


def _hours_open(window: Window, at: datetime, length: timedelta) -> datetime | None:
    """Return the first moment at or after `at` from which on days and hours allow that length."""
    if window.days == DAYS and window.hours is None:
        return at
    today = at.astimezone(window.zone).date()
    span: tuple[datetime, datetime] | None = None
    # Two weeks: of days that are all named, as with two that follow each other, many may make one span.
    for number in range(-1, 16):
        day = today + number * _DAY
        if DAYS[day.weekday()] not in window.days:
            continue
        start, end = _span(window, day)
        if span is not None and span[1] >= start:
            start = span[0]
        span = start, end
        begin = max(start, at)
        if begin + length <= end:
            return begin
    return None


def _span(window: Window, day: date) -> tuple[datetime, datetime]:
    first, last = window.hours or (time(), time())
    until = day if first < last else day + _DAY
    return tuple(
        datetime.combine(on, of, window.zone).astimezone(UTC)
        for on, of in ((day, first), (until, last))
    )  # type: ignore[return-value]


def _package_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("exchange_calendars")
    except PackageNotFoundError:
        return ""


def _load(market: str, now: datetime) -> Sessions:
    import exchange_calendars

    first, last = now - 2 * _BEHIND, now + HORIZON
    try:
        with warnings.catch_warnings():
            # Of pandas, about how the package uses it.
            warnings.simplefilter("ignore")
            start, end = first.date().isoformat(), last.date().isoformat()
            try:
                calendar = exchange_calendars.get_calendar(market, start=start, end=end)
            except ValueError:
                # Some countries announce their holidays a year at a time: up to where those are known.
                calendar = exchange_calendars.get_calendar(market, start=start)
            opens_nanos, closes_nanos = (
                calendar.opens_nanos.tolist(),
                calendar.closes_nanos.tolist(),
            )
    except exchange_calendars.errors.InvalidCalendarName:
        raise ValueError(
            f"there is no market {market!r} in exchange_calendars; some are XNYS, CMES, XETR, XLON, XTKS"
        ) from None
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"exchange_calendars cannot tell the sessions of {market} from now on: {error}"
        ) from None
    opens: list[float] = []
    closes: list[float] = []
    for opened, closed in zip(opens_nanos, closes_nanos, strict=True):
        if closes and closes[-1] >= opened / 1e9:
            closes[-1] = closed / 1e9
        else:
            opens.append(opened / 1e9)
            closes.append(closed / 1e9)
    # Of the days after its last session nothing is known, for a longer calendar might have one there.
    return Sessions(opens, closes, closes[-1] if closes else 0.0)


def due(
    made: datetime | None,
    expires: datetime | None,
    schedule: timedelta,
    before: timedelta | None,
    *,
    now: datetime,
) -> datetime:
    """Return when a secret is due.

    Args:
        made: when it was made; None: nobody knows, so that it is due now, unless its end is known.
        expires: when it ends by itself; None: it does not.
        schedule: how old it may get.
        before: how long before its end; None: as BEFORE_END has it.
        now: the present.
    """
    ends = []
    if made is not None:
        ends.append(made + schedule)
    if expires is not None:
        early = BEFORE_END if before is None else before
        if before is None and made is not None:
            early = min(BEFORE_END, (expires - made) / 3)
        ends.append(expires - early)
    return min(ends, default=now)
