"""A made-up but lifelike day of orders, the same for the same seed: what `tapeseal demo` records."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MBO = np.dtype(
    [
        ("length", "u1"),
        ("rtype", "u1"),
        ("publisher_id", "<u2"),
        ("instrument_id", "<u4"),
        ("ts_event", "<u8"),
        ("order_id", "<u8"),
        ("price", "<i8"),
        ("size", "<u4"),
        ("flags", "u1"),
        ("channel_id", "u1"),
        ("action", "S1"),
        ("side", "S1"),
        ("ts_recv", "<u8"),
        ("ts_in_delta", "<i4"),
        ("sequence", "<u4"),
    ]
)
"""One market-by-order record of 56 bytes: times in nanoseconds since 1970, prices in units of 1e-9."""

SESSION_START = 1_795_530_600_000_000_000
"""Tuesday, 2026-11-24, 14:30 UTC: New York opens."""
SESSION_SECONDS = 23_400

# The lives an order can have, how many in a hundred, and when in its life each step comes. T is the trade as the
# incoming order sees it, F the fill of the resting one, whose removal C follows at the same nanosecond.
_LIVES = (
    (b"AC", 55, (0.0, 1.0)),
    (b"AMC", 20, (0.0, 0.5, 1.0)),
    (b"AMMC", 10, (0.0, 0.3, 0.6, 1.0)),
    (b"ATFC", 15, (0.0, 1.0, 1.0, 1.0)),
)
_TRADED = 3
_STEPS = np.array([len(steps) for steps, _, _ in _LIVES])
_SHARES = np.cumsum([share for _, share, _ in _LIVES]) / 100
_ACTIONS = np.array([list(steps.ljust(4)) for steps, _, _ in _LIVES], dtype="u1")
_WHEN = np.array([times + (1.0,) * (4 - len(times)) for _, _, times in _LIVES], dtype="f4")

# Of each instrument: its number, price in units of 1e-9, tick, and how much of the flow is its own.
_INSTRUMENTS = np.array([17077, 20631, 12904, 41190], dtype="u4")
_PRICES = np.array([4_800, 17_025, 2_050, 37_800], dtype="i8") * 1_000_000_000
_TICKS = np.array([250_000_000, 250_000_000, 100_000_000, 1_000_000_000], dtype="i8")
_FLOW = np.cumsum([0.52, 0.27, 0.12, 0.09])
_SIZES = np.array(
    [1] * 12 + [2] * 4 + [3, 3, 4, 5, 5, 8, 10, 10, 15, 20, 25, 40, 50, 100], dtype="u4"
)


def generate(seed: int, count: int, start: int = SESSION_START) -> NDArray[Any]:
    """Return `count` records of one trading session, in order of ts_event; the same for the same arguments.

    Orders are added, modified, cancelled and filled around prices that walk at random, in bursts, and more often
    near the open and the close.

    Args:
        seed: 0 or more.
        count: records, 0 or more; about 130 bytes of memory are taken for each meanwhile.
        start: the open, nanoseconds since 1970.
    """
    random = np.random.default_rng(seed)
    # A life has 2.7 steps on average, so these are more than enough; what is over is what the close cuts off.
    lives = count * 2 // 5 + 64
    life = np.searchsorted(_SHARES, random.random(lives, dtype="f4")).astype("u1")
    instrument = np.searchsorted(_FLOW, random.random(lives, dtype="f4")).astype("u1")
    is_ask = random.random(lives, dtype="f4") < 0.5

    # Time first passes in lives begun: most orders end soon, some stay for a long time.
    lifetime = np.exp(random.standard_normal(lives, dtype="f4") * 2 + 4)
    steps = _STEPS[life]
    order = np.repeat(np.arange(lives, dtype="u4"), steps)
    ends = np.cumsum(steps)
    step = (np.arange(len(order)) - np.repeat(ends - steps, steps)).astype("u1")
    position = order + lifetime[order] * _WHEN[life[order], step].astype("f8")
    # Stable, so that the steps of one fill stay together.
    sequence = np.argsort(position, kind="stable")[:count]
    del position
    order, step = order[sequence], step[sequence]
    del sequence
    action = _ACTIONS[life[order], step]
    traded = action == ord("T")
    at_once = (life[order] == _TRADED) & (step > 1)  # the same nanosecond as the record before

    records = np.zeros(count, dtype=MBO)
    records["length"] = MBO.itemsize // 4
    records["rtype"] = 160
    records["publisher_id"] = 1
    records["instrument_id"] = _INSTRUMENTS[instrument[order]]
    records["channel_id"] = instrument[order]
    records["action"] = action.view("S1")
    # Of a trade, side and number are those of the incoming order.
    records["side"] = np.where(is_ask[order] ^ traded, ord("A"), ord("B")).astype("u1").view("S1")
    records["order_id"] = 6_412_777_000_000 + order.astype("u8") * 2 + traded
    records["flags"] = np.where(traded | (action == ord("F")), 0, 130)
    records["price"] = _prices(random, life, instrument, is_ask, order, step, traded)
    records["size"] = random.choice(_SIZES, lives)[order]

    ts_event = _times(random, at_once) + start
    records["ts_event"] = ts_event
    latency = 85_000 + random.standard_exponential(count, dtype="f4") * 35_000
    records["ts_recv"] = np.maximum.accumulate(ts_event + latency.astype("i8"))
    records["ts_in_delta"] = 12_700 + random.standard_exponential(count, dtype="f4") * 3_000
    records["sequence"] = 4_957 + np.cumsum(~at_once)
    return records


def _prices(
    random: np.random.Generator,
    life: NDArray[Any],
    instrument: NDArray[Any],
    is_ask: NDArray[Any],
    order: NDArray[Any],
    step: NDArray[Any],
    traded: NDArray[Any],
) -> NDArray[Any]:
    """Return the price of each record: of an order around its instrument's price when it came."""
    middle = np.empty(len(order), dtype="i4")
    moves = (random.random(len(order), dtype="f4") * 3 - 1.5).round().astype("i4") * traded
    for number in range(len(_INSTRUMENTS)):
        mine = instrument[order] == number
        middle[mine] = np.cumsum(moves[mine])
    begins = step == 0
    ticks = np.zeros(len(life), dtype="i4")
    ticks[order[begins]] = middle[begins]
    distance = random.geometric(0.25, len(life)).astype("i4")
    distance[life == _TRADED] = 1
    ticks += np.where(is_ask, distance, 1 - distance)
    # Each modification so far has moved the order a tick towards the middle.
    modified = step * ((life == 1) | (life == 2))[order]
    modified = np.minimum(modified, (life[order]).astype("u1")).astype("i4")
    at = ticks[order] - np.where(is_ask[order], modified, -modified)
    prices: NDArray[Any] = _PRICES[instrument[order]] + at * _TICKS[instrument[order]]
    return prices


def _times(random: np.random.Generator, at_once: NDArray[Any]) -> NDArray[Any]:
    """Return nanoseconds since the open, never falling: bursts of microseconds within a day shaped like a U."""
    count = len(at_once)
    in_burst = random.random(count, dtype="f4") < 0.7
    pauses = random.standard_exponential(count, dtype="f4") ** 2
    pauses[in_burst | at_once] = 0
    within = np.exp(random.standard_normal(count, dtype="f4") * 1.5 + 8).astype("i8")
    within[~in_burst | at_once] = 0
    within = np.cumsum(within)
    clock = np.cumsum(pauses, dtype="f8")
    # The rate at the share u of the day is 1 + 5 (2u - 1)^4; this inverts its integral.
    grid = np.linspace(0, 1, 4097)
    elapsed = (grid + ((2 * grid - 1) ** 5 + 1) / 2) / 2
    longest = SESSION_SECONDS * 1_000_000_000 - (int(within[-1]) if count else 0)
    share = np.interp(clock / (clock[-1] if count and clock[-1] else 1), elapsed, grid)
    times: NDArray[Any] = (share * longest).astype("i8") + within
    return times
