"""A batch of records to be sealed one by one: what every subject of the question `rows` is given and must return."""

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from benchmarks.harness import Job, Settings

KEY = b"32 bytes of key that is public.."
NONCE_SIZE, TAG_SIZE = 12, 16
LARGE = 20  # batches in a large one: starting a thread must not be most of what two threads take


class AnyAESGCM(Protocol):
    """An implementation of AES-256-GCM."""

    def decrypt(self, nonce: Any, data: Any, associated_data: Any) -> bytes:
        """Verify and decrypt."""


class Batch:
    """Records of random bytes, and where they go: nonce (a counter), ciphertext and tag, row after row, in one array.

    Attributes:
        records: (count, size) bytes.
        sealed: (count, size + 28) bytes.
        opened: (count, size) bytes, zeros to begin with.
    """

    def __init__(self, settings: Settings, size: int, share: float = 1) -> None:
        whole = min(settings.row_records, settings.row_bytes // size)
        self.count = max(2, round(whole * share))
        random = np.random.default_rng(size)
        self.records = random.integers(0, 256, (self.count, size), np.uint8)
        self.sealed = np.zeros((self.count, NONCE_SIZE + size + TAG_SIZE), np.uint8)
        self.opened = np.zeros_like(self.records)
        # The first after another process ran finds cold caches, which matters less where a call takes long.
        self.calls = max(3, min(10, 20_000_000 // self.records.nbytes))

    def job(self, seal: Callable[[], object], unseal: Callable[[], object], opening: bool) -> Job:
        """Check both ways and return the job of one of them."""
        seal()
        unseal()
        assert np.array_equal(self.records, self.opened)
        return Job(unseal if opening else seal, self.records.nbytes, self.count, calls=self.calls)

    def check(self, key: AnyAESGCM) -> None:
        """Have another implementation open every sealed row."""
        nonces = {row[:NONCE_SIZE].tobytes() for row in self.sealed}
        assert len(nonces) == self.count
        for record, row in zip(self.records, self.sealed, strict=True):
            nonce, rest = row[:NONCE_SIZE].tobytes(), row[NONCE_SIZE:].tobytes()
            assert record.tobytes() == key.decrypt(nonce, rest, b"")

    # What a Python program must do around a library that takes one message a call, done for all rows at once.

    def plain(self, part: slice) -> list[bytes]:
        """Return records as bytes."""
        return _as_bytes(self.records[part])

    def number(self, part: slice) -> list[bytes]:
        """Write the nonces of rows that are to be sealed and return them."""
        rows = self.sealed[part]
        counters = np.arange(part.start, part.start + len(rows), dtype=">u8")
        rows[:, :4] = 0
        rows[:, 4:NONCE_SIZE] = counters.view(np.uint8).reshape(-1, 8)
        return self.nonces(part)

    def nonces(self, part: slice) -> list[bytes]:
        """Return the nonces of sealed rows."""
        return _as_bytes(self.sealed[part, :NONCE_SIZE])

    def rest(self, part: slice) -> list[bytes]:
        """Return ciphertexts with tags."""
        return _as_bytes(self.sealed[part, NONCE_SIZE:])

    def whole(self, part: slice) -> list[bytes]:
        """Return sealed rows."""
        return _as_bytes(self.sealed[part])

    def store(self, part: slice, sealed: Iterable[bytes]) -> None:
        """Put together ciphertexts with tags, or whole rows."""
        rows = self.sealed[part]
        made = np.frombuffer(b"".join(sealed), np.uint8).reshape(len(rows), -1)
        rows[:, rows.shape[1] - made.shape[1] :] = made

    def store_opened(self, part: slice, opened: Iterable[bytes]) -> None:
        """Put together plaintexts."""
        rows = self.opened[part]
        rows[:] = np.frombuffer(b"".join(opened), np.uint8).reshape(rows.shape)

    def job_by_parts(
        self,
        seal: Callable[[slice], None],
        unseal: Callable[[slice], None],
        *,
        opening: bool,
        threads: int,
        key: AnyAESGCM | None = None,
    ) -> Job:
        """Return the job of functions that do a part of the rows; each thread calls them with one.

        The rows are checked with `key` if there is one.
        """
        edges = [self.count * i // threads for i in range(threads + 1)]
        parts = [slice(start, stop) for start, stop in pairwise(edges)]
        pool = ThreadPoolExecutor(threads)
        self.calls = 3
        _keep_freed_memory()

        def all_parts(work: Callable[[slice], None]) -> Callable[[], object]:
            if threads == 1:
                return lambda: work(parts[0])
            return lambda: list(pool.map(work, parts))

        job = self.job(all_parts(seal), all_parts(unseal), opening)
        if key is not None:
            self.check(key)
        return job


def _keep_freed_memory() -> None:
    # Else glibc gives it back to the system, for one library and not for another, and each batch faults it in anew:
    # that made messages of 64 KiB take four times as long.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, size in ((-1, 2**28), (-3, 2**25)):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, size)


def _as_bytes(rows: NDArray[np.uint8]) -> list[bytes]:
    whole = np.ascontiguousarray(rows)
    items: list[bytes] = whole.view(f"V{whole.shape[1]}").ravel().tolist()
    return items


def reference() -> AnyAESGCM:
    """The implementation that checks the others: that of `cryptography`."""
    return AESGCM(KEY)
