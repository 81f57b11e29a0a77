"""Seeded market-by-order records, the same for every library."""

import numpy as np
import numpy.typing as npt

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


def market_by_order(count: int, seed: int = 1) -> npt.NDArray[np.void]:
    """Make `count` records shaped like a session of one busy future.

    The proportions (events of several records, order sizes, actions, distance from the touch, delays) are those of a
    session of CME's E-mini S&P 500, so that what compresses is compressed as in life.
    """
    random = np.random.default_rng(seed)
    records = np.zeros(count, MBO)
    starts_event = random.random(count) < 0.7
    gaps = np.where(starts_event, random.lognormal(10, 2.5, count), 0)
    records["length"] = MBO.itemsize // 4
    records["rtype"] = 160
    records["publisher_id"] = 1
    records["instrument_id"] = 17077
    records["ts_event"] = 1_703_462_400_000_000_000 + np.cumsum(gaps).astype(np.uint64)
    records["ts_recv"] = records["ts_event"] + random.lognormal(11.6, 0.2, count).astype(np.uint64)
    records["ts_in_delta"] = random.normal(15_300, 400, count)
    records["sequence"] = np.cumsum(starts_event)

    action = random.choice(5, count, p=[0.425, 0.262, 0.178, 0.092, 0.043])
    records["action"] = np.array([b"A", b"C", b"M", b"F", b"T"])[action]
    bid = random.random(count) < 0.53
    records["side"] = np.where(bid, b"B", b"A")
    records["flags"] = np.where(starts_event, 130, 0)
    records["size"] = random.geometric(0.6, count)
    # Most orders are at the touch, a few far from it.
    middle = 19_240 + np.cumsum(random.choice([-1, 0, 1], count, p=[0.01, 0.98, 0.01]))
    away = random.geometric(0.3, count) + (random.random(count) < 0.05) * random.integers(0, 400, count)
    records["price"] = (middle + np.where(bid, -away, away)) * 250_000_000
    # An order that is not new is one of those added shortly before.
    added = np.cumsum(action == 0)
    age = np.where(action == 0, 0, random.geometric(0.002, count))
    records["order_id"] = 6_412_777_162_812 + np.maximum(added - age, 0)
    return records
