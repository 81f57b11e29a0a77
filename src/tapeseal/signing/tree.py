"""A SHA-256 tree over a part of a file, as in RFC 6962, section 2.1 (docs/signing.md)."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

from tapeseal import files
from tapeseal.errors import TapeChangedError

T = TypeVar("T")

LEAF_SIZE: Final = 1 << 20

# What is read at a time: it is still in a core's own cache when it is hashed.
_PIECE = 1 << 18
_RUN_LEAVES = 16


class Part(NamedTuple):
    """Bytes of an open file."""

    fd: int
    start: int
    size: int


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root of a tree from the hashes of its leaves."""
    if not leaves:
        return hashlib.sha256().digest()
    while len(leaves) > 1:
        # The last of an odd number goes up as it is, which gives the tree of RFC 6962.
        pairs = zip(leaves[::2], leaves[1::2], strict=False)
        above = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
        leaves = [*above, *leaves[len(leaves) & ~1 :]]
    return leaves[0]


def hash_trees(
    items: Iterable[tuple[T, Sequence[Part]]],
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[T, list[bytes] | Exception]]:
    """Yield each item with the roots of its parts, in their order.

    Several parts are read at once, and a large one by several threads.

    Args:
        items: taken one after the other, ahead of what is yielded; their files stay open until then.
        threads: how many hash.
        progress: called with the bytes done so far.

    Yields:
        In place of the roots, a TapeChangedError where a file ends before its part, or the OSError of reading it.
    """
    done = 0
    items = iter(items)
    more = True
    running: deque[tuple[T, list[list[Future[bytes]]]]] = deque()
    waiting = 0
    with ThreadPoolExecutor(threads, "tapeseal-hash") as pool:
        try:
            while True:
                while more and waiting < 4 * threads:
                    item = next(items, None)
                    if item is None:
                        more = False
                        break
                    trees = [[pool.submit(_leaves, run) for run in _runs(part)] for part in item[1]]
                    running.append((item[0], trees))
                    # One without parts counts too, for it may hold a file open.
                    waiting += max(1, sum(map(len, trees)))
                if not running:
                    return
                found: list[bytes] | Exception
                try:
                    found = []
                    for futures in running[0][1]:
                        leaves: list[bytes] = []
                        for future in futures:
                            digests = future.result()
                            leaves += (digests[at : at + 32] for at in range(0, len(digests), 32))
                            done += len(digests) // 32 * LEAF_SIZE
                            if progress is not None:
                                progress(done)
                        found.append(root(leaves))
                except (TapeChangedError, OSError) as error:
                    found = error.with_traceback(None)
                payload, trees = running.popleft()
                waiting -= max(1, sum(map(len, trees)))
                yield payload, found
        finally:
            for _, trees in running:
                for futures in trees:
                    for future in futures:
                        future.cancel()


def _runs(part: Part) -> Iterator[Part]:
    """Cut a part into runs of whole leaves, a thousand at most or so."""
    size = LEAF_SIZE * max(_RUN_LEAVES, part.size // LEAF_SIZE // 1024)
    for at in range(0, part.size, size):
        yield Part(part.fd, part.start + at, min(size, part.size - at))


def _leaves(run: Part) -> bytes:
    """Return the hashes of the leaves of a run, one after the other."""
    digests = []
    with memoryview(bytearray(min(_PIECE, run.size))) as buffer:
        for start in range(0, run.size, LEAF_SIZE):
            leaf = hashlib.sha256(b"\x00")
            for at in range(start, min(start + LEAF_SIZE, run.size), _PIECE):
                with buffer[: min(_PIECE, run.size - at)] as piece:
                    if files.pread_into(run.fd, piece, run.start + at) != len(piece):
                        raise TapeChangedError("the file became shorter while it was read")
                    leaf.update(piece)
            digests.append(leaf.digest())
    return b"".join(digests)
