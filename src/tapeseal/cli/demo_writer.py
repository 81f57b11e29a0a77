"""The recording process of `tapeseal demo`: it is killed once, and started again to go on.

Standard output gets a line after each flush: how many records are in the tape, and the seconds it took to append
and flush them; at the end the seconds it took to seal the tape, and its anchor.
"""

import mmap
import os
import sys
import time

import numpy as np

import tapeseal
from tapeseal.cli.orderflow import MBO

BATCH_RECORDS = 1_000
BATCHES_A_FLUSH = 16


def main(path: str, key_file: str, feed_fd: int, until: int) -> None:
    """Record the feed from where the tape ends up to record `until`; seal the tape at the end of the feed."""
    feed = np.frombuffer(mmap.mmap(feed_fd, 0, prot=mmap.PROT_READ), MBO)
    # As with a real feed the records are in memory when they are recorded.
    np.max(feed.view(np.uint8)[:: mmap.PAGESIZE])
    keyring = tapeseal.LocalKeyring(key_file)
    with tapeseal.open(
        path,
        "a",
        keyring=keyring,
        dtype=MBO,
        encryption_context={"feed": "demo"},
        index_by="ts_event",
    ) as tape:
        start = time.perf_counter()
        for number, first in enumerate(range(len(tape), until, BATCH_RECORDS), 1):
            tape.append(feed[first : min(first + BATCH_RECORDS, until)])
            if number % BATCHES_A_FLUSH == 0:
                tape.flush()
                _say(len(tape), time.perf_counter() - start)
        if until < len(feed):
            # Here it waits to be killed, or for the end of the demo, should that have been killed.
            sys.stdin.read()
            os._exit(1)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        anchor = tape.close()
        _say(anchor.items, seconds, time.perf_counter() - start, str(anchor))


def _say(*parts: object) -> None:
    # One write, so that a kill leaves a whole line or none.
    os.write(1, (" ".join(map(str, parts)) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
