"""Record a feed into tapes that roll every hour, and survive a crash.

    python examples/record_feed.py archive.key recordings/

Make the key first: tapeseal keygen archive.key
"""

import sys
import time
from collections.abc import Iterator

import numpy as np

import tapeseal

QUOTE = np.dtype(
    [
        ("ts_event", "<M8[ns]"),
        ("instrument", "<u4"),
        ("bid", "<i8"),
        ("ask", "<i8"),
        ("size", "<u4"),
    ]
)


def feed(seconds: float) -> Iterator[np.ndarray]:
    """Stand in for a market-data handler: a batch of quotes every millisecond or so."""
    rng = np.random.default_rng(7)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        quotes = np.zeros(int(rng.integers(1, 500)), QUOTE)
        quotes["ts_event"] = np.datetime64(time.time_ns(), "ns")
        quotes["bid"] = 4_800_000 + rng.integers(-50, 50, len(quotes))
        quotes["ask"] = quotes["bid"] + 25
        quotes["size"] = rng.integers(1, 100, len(quotes))
        yield quotes
        time.sleep(0.001)


def main(key_file: str, directory: str, seconds: float = 3.0) -> None:
    """Record for some seconds, with a flush twice a second."""
    recorder = tapeseal.Recorder(
        f"{directory}/%Y%m%d/{{feed}}-%H%M.tape",
        keyring=tapeseal.keyring(f"local:{key_file}"),
        dtype=QUOTE,
        encryption_context={"desk": "index-futures", "feed": "demo"},
        index_by="ts_event",
        fields={"feed": "demo"},
        roll_seconds=3600,
        # Keep the anchors apart from the tapes: they show later that nothing was cut off.
        on_close=lambda path, anchor: print(f"sealed {path}\n{anchor}"),
    )
    with recorder:
        flushed = time.monotonic()
        for quotes in feed(seconds):
            recorder.append(quotes)
            if time.monotonic() - flushed > 0.5:
                # What was flushed survives a crash of this process; sync=True also one of the machine.
                recorder.flush()
                flushed = time.monotonic()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
