"""Read a stretch of a day's tapes into pandas.

    python examples/day_to_pandas.py archive.key recordings/20261123 2026-11-23T14:30 2026-11-23T14:35

Only the frames that hold the stretch are read and decrypted.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

import tapeseal


def read(key_file: str, directory: str, start: str, end: str) -> pd.DataFrame:
    """Return the records of all tapes in a directory from start to end, which is not included."""
    keyring = tapeseal.keyring(f"local:{key_file}")
    parts = []
    for path in sorted(Path(directory).glob("*.tape")):
        with tapeseal.open(path, keyring=keyring) as tape:
            parts.append(
                tape.between("ts_event", np.datetime64(start, "ns"), np.datetime64(end, "ns"))
            )
    return pd.DataFrame(np.concatenate(parts)).set_index("ts_event").sort_index()


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    quotes = read(*sys.argv[1:])
    print(f"{len(quotes)} records")
    print(quotes.describe())
