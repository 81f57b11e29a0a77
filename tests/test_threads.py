"""What threads share: a reader, a key, a writer, a recorder. Each gives several threads what it gives one."""

import gc
import itertools
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import aead

import tapeseal
from support import TICK, nonce_log, orders, ticks
from tapeseal._core import AESGCM, SecretBuffer

THREADS = 8
RECORDS = orders(0, 90_000)
"""5 MB, so that a reading of all of them is shared among the threads of a reader, where it has several."""
FRAME = 4096


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    """Let Python go from thread to thread as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(do: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Call do(number) in so many threads that begin together, and return what each gave."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait()
        return do(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, keyring: Any) -> Path:
    """A sealed tape of RECORDS in frames of many sizes and in two segments."""
    path = tmp_path_factory.mktemp("threads") / "day.tape"
    options: dict[str, Any] = {"keyring": keyring, "dtype": RECORDS.dtype}
    with tapeseal.open(path, "x", **options, index_by="ts_event", frame_size=FRAME) as tape:
        for start in range(0, 1000, 10):
            tape.append(RECORDS[start : start + 10])
            tape.flush()
        tape.append(RECORDS[1000:50_000])
    with tapeseal.open(path, "a", **options) as tape:
        tape.append(RECORDS[50_000:])
    return path


# One reader


def some_slice(tape: tapeseal.TapeReader, chance: random.Random) -> bool:
    """Whether a random slice is that of the array."""
    start = chance.randrange(len(RECORDS))
    stop = start + chance.choice([1, 50, 3000])
    return tape[start:stop].tobytes() == RECORDS[start:stop].tobytes()


def all_records(tape: tapeseal.TapeReader, chance: random.Random) -> bool:
    """Whether all records are those of the array."""
    return tape[:].tobytes() == RECORDS.tobytes()


def one_record(tape: tapeseal.TapeReader, chance: random.Random) -> bool:
    """Whether a record, counted from either end, is that of the array."""
    number = chance.randrange(-len(RECORDS), len(RECORDS))
    return tape[number].tobytes() == RECORDS[number].tobytes()


def stepped(tape: tapeseal.TapeReader, chance: random.Random) -> bool:
    """Whether a slice with a step, forward or backward, is that of the array."""
    chosen = slice(chance.randrange(500), chance.randrange(1000, 4000), chance.choice([2, 71, 300]))
    if chance.random() < 0.5:
        chosen = slice(chosen.stop, chosen.start, -chosen.step)
    return tape[chosen].tobytes() == RECORDS[chosen].tobytes()


def between(tape: tapeseal.TapeReader, chance: random.Random) -> bool:
    """Whether the records of a range of times are those of the array."""
    times = RECORDS["ts_event"]
    first = chance.randrange(len(RECORDS) - 800)
    found = tape.between("ts_event", times[first], times[first + 700])
    return found.tobytes() == RECORDS[first : first + 700].tobytes()


def batches(tape: tapeseal.TapeReader, chance: random.Random) -> bool:
    """Whether the first batches are those of the array."""
    size = chance.choice([7, 73, 5000])
    return all(
        batch.tobytes() == RECORDS[number * size : (number + 1) * size].tobytes()
        for number, batch in enumerate(itertools.islice(tape.batches(size), 5))
    )


WAYS = [some_slice, one_record, stepped, between, batches, all_records]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_a_reader(path: Path, keyring: Any, threads: int) -> None:
    """Eight threads that read one tape in every way get what the array of its records gives."""
    with tapeseal.open(path, keyring=keyring, threads=threads) as tape:

        def read(number: int) -> list[str]:
            chance = random.Random(number)
            ways = chance.choices(WAYS, [8, 8, 8, 4, 4, 1], k=100)
            return [way.__name__ for way in ways if not way(tape, chance)]

        assert together(read) == [[]] * THREADS


def test_threads_share_a_byte_stream(tmp_path: Path, keyring: Any) -> None:
    """Of a tape of bytes that eight threads read as one stream, each piece comes to one of them."""
    path = tmp_path / "stream"
    numbers = np.arange(100_000, dtype="<u8")
    with tapeseal.open(path, "xb", keyring=keyring, frame_size=FRAME) as writer:
        writer.write(numbers)
    with tapeseal.open(path, "rb", keyring=keyring) as reader:
        found = together(lambda number: list(iter(lambda: reader.read(1000), b"")))
    pieces = [np.frombuffer(piece, "<u8") for piece in itertools.chain(*found)]
    pieces.sort(key=lambda piece: piece[0])
    assert np.concatenate(pieces).tobytes() == numbers.tobytes()


def test_closing_while_others_read(path: Path, keyring: Any, tmp_path: Path) -> None:
    """Who reads while another thread closes the tape gets right records or is told, whatever is opened next."""
    other = tmp_path / "other"
    other.write_bytes(bytes(path.stat().st_size))
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    for attempt in range(30):
        tape = tapeseal.open(path, keyring=keyring, threads=1 + attempt % 2)
        reading = threading.Semaphore(0)

        def act(number: int, tape: Any = tape, reading: Any = reading) -> list[int]:
            if number == 0:
                for _ in range(20):
                    reading.acquire()
                tape.close()
                # The lowest free number is taken: that of the tape's file, were it closed too early.
                return [os.open(other, os.O_RDONLY) for _ in range(3)]
            chance = random.Random(number)
            while True:
                try:
                    assert chance.choices(WAYS, [8, 8, 8, 1, 1, 1])[0](tape, chance)
                except ValueError as error:
                    assert str(error) == "the tape is closed"  # noqa: PT017
                    reading.release(20)
                    return []
                reading.release()

        for descriptor in together(act)[0]:
            os.close(descriptor)
        # Fewer where something of an earlier test was collected meanwhile.
        assert before >= len(os.listdir("/dev/fd"))


def test_threads_share_a_follower(tmp_path: Path, keyring: Any) -> None:
    """Threads that follow and slice one reader while its tape is written get every record, in order and once."""
    path = tmp_path / "day.tape"
    expected = ticks(0, 40_000)
    writer = tapeseal.open(path, "x", keyring=keyring, dtype=TICK, frame_size=FRAME)
    with writer, tapeseal.open(path, keyring=keyring) as tape:

        def act(number: int) -> bool:
            if number == 0:
                for start in range(0, len(expected), 50):
                    writer.append(expected[start : start + 50])
                    writer.flush()
                writer.close()
                return True
            if number < 5:
                return b"".join(map(np.ndarray.tobytes, tape.follow(0))) == expected.tobytes()
            while not tape.sealed:
                length = len(tape)
                assert tape[length // 2 : length].tobytes() == (
                    expected[length // 2 : length].tobytes()
                )
                items = tape.anchor.items
                assert ticks(0, items).tobytes() == tape[:items].tobytes()
            return True

        assert together(act) == [True] * THREADS


# One key


def test_threads_share_a_key() -> None:
    """Eight threads that seal and open under one key, one message or many frames, get what one gets."""
    raw = random.Random(1).randbytes(32)
    key = AESGCM(SecretBuffer.take(bytearray(raw)))
    reference = aead.AESGCM(raw)

    def use(number: int) -> list[int]:
        chance = random.Random(number)
        wrong = []
        for attempt in range(100):
            nonce = bytes([number, attempt]).ljust(12, b"\0")
            size = chance.choice([0, 16, 1000, 70_000])
            plain, bound = chance.randbytes(size), chance.randbytes(attempt)
            sealed = key.encrypt(nonce, plain, bound)
            if sealed != reference.encrypt(nonce, plain, bound):
                wrong.append(attempt)
            if key.decrypt(nonce, sealed, bound) != plain:
                wrong.append(attempt)
            frames = bytearray(size + 40 * max(1, -(-size // FRAME)))
            options: dict[str, Any] = {
                "count": size, "item_size": 1, "frame_items": FRAME, "first": 0, "index": 100 * attempt,
                "final": True, "threads": 1 + attempt % 2,
            }  # fmt: skip
            key.seal_frames(frames, plain, **options)
            # The nonce of a frame is its number; its header is bound.
            first_nonce = (100 * attempt).to_bytes(12, "big")
            head, body = bytes(frames[:24]), bytes(frames[24 : 40 + min(size, FRAME)])
            if reference.decrypt(first_nonce, body, head) != plain[:FRAME]:
                wrong.append(attempt)
            opened = bytearray(size)
            key.open_frames(opened, frames, **options)
            if opened != plain:
                wrong.append(attempt)
        return wrong

    assert together(use) == [[]] * THREADS


# One writer


def batch(thread: int, number: int) -> np.ndarray:
    """Return a batch that no other is like: its records say whose it is, and which of its records they are."""
    size = random.Random(1000 * thread + number).choice([1, 3, 100, 256, 700])
    records = np.zeros(size, TICK)
    records["number"] = (1000 * thread + number << 20) + np.arange(size)
    return records


def batches_of(records: np.ndarray) -> list[tuple[int, int]]:
    """Return the batches that records are made of, as (thread, number); each must be whole and in one piece."""
    found = []
    position = 0
    while position < len(records):
        thread, number = divmod(int(records["number"][position]) >> 20, 1000)
        expected = batch(thread, number)
        assert records[position : position + len(expected)].tobytes() == expected.tobytes()
        found.append((thread, number))
        position += len(expected)
    return found


BATCHES = 200


def append_all(target: Any) -> None:
    """Append every batch of eight threads, each thread its own in order, with flushes in between."""

    def append(thread: int) -> None:
        chance = random.Random(thread)
        for number in range(BATCHES):
            target.append(batch(thread, number))
            if chance.random() < 0.2:
                target.flush()

    together(append)


def check_order(found: list[tuple[int, int]]) -> None:
    """Each thread's batches come in the order in which it appended them."""
    for thread in range(THREADS):
        numbers = [number for one, number in found if one == thread]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_a_writer(tmp_path: Path, keyring: Any, threads: int) -> None:
    """Of what eight threads append to one tape, each batch is there once, in one piece and in its thread's order."""
    path = tmp_path / "day.tape"
    options: dict[str, Any] = {"keyring": keyring, "threads": threads}
    with (
        nonce_log(),
        tapeseal.open(
            path, "x", dtype=TICK, frame_size=FRAME, index_by="number", **options
        ) as tape,
    ):
        append_all(tape)
    assert tapeseal.verify(path, keyring=keyring).problems == []
    with tapeseal.open(path, **options) as reader:
        found = batches_of(reader[:])
    assert sorted(found) == list(itertools.product(range(THREADS), range(BATCHES)))
    check_order(found)


def test_threads_share_a_recorder(tmp_path: Path, keyring: Any) -> None:
    """Of what eight threads append to one recorder, each batch is in one of its tapes, once and in one piece."""
    anchors = {}
    with (
        nonce_log(),
        tapeseal.Recorder(
            tmp_path / "day.tape", keyring=keyring, dtype=TICK, frame_size=FRAME, roll_size=200_000,
            on_close=anchors.__setitem__,
        ) as recorder,
    ):  # fmt: skip
        append_all(recorder)
    found = []
    for path, anchor in anchors.items():
        with tapeseal.open(path, keyring=keyring) as tape:
            assert anchor == tape.anchor
            there = batches_of(tape[:])
        check_order(there)
        found += there
    assert len(anchors) > 5
    assert {str(path) for path in tmp_path.iterdir()} == set(anchors)
    assert sorted(found) == list(itertools.product(range(THREADS), range(BATCHES)))
