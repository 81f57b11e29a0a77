"""When rotations may happen: windows between market sessions over a year, hours, due dates."""

import warnings
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import exchange_calendars
import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tapeseal.rotation.journal import Journal
from tapeseal.rotation.schedule import DAYS, Calendars, Window, due

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture(scope="module")
def calendars() -> Calendars:
    """Calendars from the first of January on."""
    return Calendars(now=lambda: NOW)


def sessions(market: str) -> list[tuple[datetime, datetime]]:
    """Return a year's sessions as the package has them, not as we keep them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of pandas, about the package.
        calendar = exchange_calendars.get_calendar(market, start="2025-12-20", end="2027-01-31")
    return [
        (opened.to_pydatetime(), closed.to_pydatetime())
        for opened, closed in zip(calendar.opens, calendar.closes, strict=True)
    ]


@pytest.mark.parametrize("market", ["XNYS", "CMES", "XETR"])
@pytest.mark.parametrize("hours", [None, (time(20), time(6)), (time(9), time(17))])
def test_no_rotation_inside_a_session(
    calendars: Calendars, market: str, hours: tuple[time, time] | None
) -> None:
    """From every second hour of a year, the next opening lies with all its length between two sessions."""
    window = Window(markets=(market,), hours=hours, zone=NEW_YORK)
    length = timedelta(minutes=20)
    of_market = sessions(market)
    at, openings = NOW, set()
    while at < NOW + timedelta(days=365):
        opening = calendars.opening(window, at, length)
        assert opening is not None
        assert opening >= at
        openings.add(opening)
        at += timedelta(hours=2)
    number = 0
    for opening in sorted(openings):
        while of_market[number][1] <= opening:
            number += 1
        assert opening + length <= of_market[number][0], (opening, of_market[number])
    assert len(openings) > 50


def test_no_rotation_inside_any_session(calendars: Calendars) -> None:
    """Of several markets all must be closed."""
    window = Window(markets=("XNYS", "CMES", "XETR"), margin=timedelta(minutes=30))
    length = timedelta(minutes=10)
    spans = [span for market in window.markets for span in sessions(market)]
    at = NOW
    while at < NOW + timedelta(days=365):
        opening = calendars.opening(window, at, length)
        assert opening is not None
        for opened, closed in spans:
            assert opening + length + window.margin <= opened or closed + window.margin <= opening
        at = max(at, opening) + timedelta(hours=7)


@settings(max_examples=100)
@given(
    st.sampled_from(["XNYS", "CMES", "XETR"]),
    st.integers(0, 365 * 24 * 60),
    st.integers(1, 12 * 60),
    st.integers(0, 120),
)
def test_opening_is_the_first(market: str, start: int, length: int, margin: int) -> None:
    """A minute before the opening the window was not open for as long, unless that is when the search began."""
    calendars = _CALENDARS
    window = Window(markets=(market,), margin=timedelta(minutes=margin))
    after, needed = NOW + timedelta(minutes=start), timedelta(minutes=length)
    opening = calendars.opening(window, after, needed)
    assert opening is not None
    assert calendars.is_open(window, opening, needed)
    before = opening - timedelta(minutes=1)
    assert before < after or not calendars.is_open(window, before, needed)


_CALENDARS = Calendars(now=lambda: NOW)


def test_early_closes_and_holidays(calendars: Calendars) -> None:
    """A half day opens the window early, a holiday all day; CME's Globex has an hour of its own."""
    length = timedelta(minutes=10)

    def opening(market: str, *at: int) -> datetime | None:
        return calendars.opening(Window(markets=(market,)), datetime(2026, *at, tzinfo=UTC), length)

    # The day after Thanksgiving New York closes at 13:00, 18:00 in UTC.
    assert datetime(2026, 11, 27, 18, tzinfo=UTC) == opening("XNYS", 11, 27, 15)
    assert datetime(2026, 11, 26, 15, tzinfo=UTC) == opening("XNYS", 11, 26, 15)
    # Globex trades from Sunday evening to Friday without a day's end between, then not until Sunday.
    assert datetime(2026, 6, 12, 22, tzinfo=UTC) == opening("CMES", 6, 8, 12)
    assert datetime(2026, 6, 13, 12, tzinfo=UTC) == opening("CMES", 6, 13, 12)
    # Whit Monday is a trading day in Frankfurt, New Year's Day is none.
    assert datetime(2026, 5, 25, 15, 30, tzinfo=UTC) == opening("XETR", 5, 25, 10)
    assert datetime(2026, 1, 1, 10, tzinfo=UTC) == opening("XETR", 1, 1, 10)


def test_hours_follow_the_clock_of_their_zone(calendars: Calendars) -> None:
    """Nine in New York is another hour of UTC in summer."""
    window = Window(hours=(time(9), time(17)), zone=NEW_YORK)
    for month, hour in ((1, 14), (7, 13)):
        at = datetime(2026, month, 5, tzinfo=UTC)
        assert datetime(2026, month, 5, hour, tzinfo=UTC) == calendars.opening(
            window, at, timedelta(minutes=5)
        )


def test_hours_past_midnight_belong_to_the_day_they_began_on(calendars: Calendars) -> None:
    """Saturday's night lasts until Sunday morning, and does not begin on Friday."""
    window = Window(days=("sat",), hours=(time(22), time(4)))
    friday = datetime(2026, 6, 12, 23, tzinfo=UTC)
    saturday = datetime(2026, 6, 13, 22, tzinfo=UTC)
    sunday = datetime(2026, 6, 14, 3, tzinfo=UTC)
    length = timedelta(minutes=30)
    assert saturday == calendars.opening(window, friday, length)
    assert sunday == calendars.opening(window, sunday, length)
    assert saturday + timedelta(days=7) == calendars.opening(
        window, sunday + timedelta(minutes=45), length
    )


def test_days_without_hours_are_whole(calendars: Calendars) -> None:
    """Days that follow each other make one window."""
    window = Window(days=("sat", "sun"))
    at = datetime(2026, 6, 13, 23, 50, tzinfo=UTC)
    assert at == calendars.opening(window, at, timedelta(hours=2))


def test_any_time(calendars: Calendars) -> None:
    """A window that says nothing is open."""
    assert NOW == calendars.opening(Window(), NOW, timedelta(days=1))
    assert DAYS == Window().days


def test_beyond_what_calendars_know(calendars: Calendars) -> None:
    """More than a year ahead nobody knows the sessions, so no date is made up."""
    at = NOW + timedelta(days=420)
    assert calendars.opening(Window(markets=("XNYS",)), at, timedelta(minutes=5)) is None


def test_markets_known_for_a_year_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where holidays are announced a year at a time, windows are found up to there, and the package is asked once."""
    calls = []
    get_calendar = exchange_calendars.get_calendar

    def counting(*arguments: object, **settings: object) -> object:
        calls.append(settings)
        return get_calendar(*arguments, **settings)

    monkeypatch.setattr(exchange_calendars, "get_calendar", counting)
    window, minutes = Window(markets=("XSHG",)), timedelta(minutes=5)
    present = [now := datetime(2026, 6, 1, 3, tzinfo=UTC)]
    calendars = Calendars(now=lambda: present[0])
    known_until = datetime.fromtimestamp(calendars.sessions("XSHG").until, UTC)
    if known_until > now + timedelta(days=370):
        pytest.skip("this release of exchange_calendars knows XSHG further ahead")
    opening = calendars.opening(window, now, minutes)
    assert opening is not None
    assert now < opening < known_until
    assert calendars.opening(window, known_until, minutes) is None
    assert 2 == len(calls)
    present[0] = known_until + timedelta(days=40)
    assert calendars.opening(window, present[0], minutes) is None
    with pytest.raises(ValueError, match="cannot tell the sessions of XSHG"):
        Calendars(now=lambda: present[0]).opening(window, present[0], minutes)


def test_calendars_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was loaded once is read from the journal by the next process, until it is too old."""
    window = Window(markets=("XNYS",))
    later = [timedelta()]

    def opening() -> datetime | None:
        with Journal(tmp_path / "rotation.db") as journal:
            calendars = Calendars(journal, lambda: NOW + later[0])
            return calendars.opening(window, NOW + later[0], timedelta(minutes=5))

    first = opening()
    with monkeypatch.context() as patch:
        patch.setattr(exchange_calendars, "get_calendar", None)
        assert first == opening()
        later[0] = timedelta(days=60)
        with pytest.raises(TypeError):
            opening()
    assert opening() is not None


@pytest.mark.parametrize(
    ("made", "expires", "before", "expected"),
    [
        (0, None, None, 90),
        (0, 365, None, 90),
        (0, 60, None, 40),
        (0, 100, None, 70),
        (None, 100, None, 70),
        (0, 60, 10, 50),
        (None, None, None, 33),
    ],
)
def test_due(made: int | None, expires: int | None, before: int | None, expected: int) -> None:
    """A secret is due at its age, or before its end by 30 days or a third of its life; of unknown age, now."""

    def day(number: int | None) -> datetime | None:
        return None if number is None else NOW + timedelta(days=number)

    early = None if before is None else timedelta(days=before)
    now = NOW + timedelta(days=33)
    assert day(expected) == due(day(made), day(expires), timedelta(days=90), early, now=now)
