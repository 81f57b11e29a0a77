"""Reserves of data keys: limits, outages, threads, forks and what is left in memory."""

import copy
import itertools
import logging
import os
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapeseal
from memory_scan import Scanner, child
from support import TICK, blocks, ticks
from tapeseal import _core, reserve
from tapeseal.datakey import DataKey
from tapeseal.errors import (
    AccessDeniedError,
    ContextMismatchError,
    ForkError,
    InvalidTag,
    KeyUnavailableError,
    LimitError,
    ReserveExhaustedError,
    ServiceUnavailableError,
)
from tapeseal.layout import Recipient
from tapeseal.reserve import DataKeyReserve, OutageBudget

THREADS = 8
FRAME = 4096
FRAME_ITEMS = FRAME // TICK.itemsize
CONTEXT = {"desk": "eq-us"}


class Service:
    """A keyring over a key file in the place of a service: it counts its calls, and can be away, slow or hang."""

    def __init__(self, keyring: tapeseal.Keyring) -> None:
        self.keyring = keyring
        self.calls: Counter[str] = Counter()
        self.together = 0
        self.error: Exception | None = None
        self.errors: list[BaseException] = []
        self.answers = threading.Event()
        self.answers.set()
        self.made: list[DataKey] = []
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        return self._call("generate", self.keyring.generate, encryption_context)

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        return self._call("wrap", self.keyring.wrap, data_key, encryption_context)

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        return self._call("unwrap", self.keyring.unwrap, recipients, encryption_context)

    def pending(self) -> list[Recipient]:
        return self.keyring.pending()

    def _call(self, name: str, do: Callable[..., Any], *arguments: Any) -> Any:
        with self._lock:
            self.calls[name] += 1
            self._running[name] += 1
            self.together = max(self.together, self._running[name])
        try:
            assert self.answers.wait(60)
            for error in (*self.errors, self.error):
                if error is not None:
                    del self.errors[:1]
                    raise error
            made = do(*arguments)
            self.made += [made[0]] if name == "generate" else [made] * (name == "unwrap")
            return made
        finally:
            with self._lock:
                self._running[name] -= 1


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, keys: DataKeyReserve, seconds: float) -> None:
        """Let so many seconds pass, at least one, and wait until the reserve has looked at the clock."""
        with keys._changed:
            self.now += seconds
            keys._changed.notify_all()
        until(lambda: keys._samples[-1][0] == self.now)


@pytest.fixture
def service(keyring: Any) -> Service:
    """A service that is there."""
    return Service(keyring)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all reserves of the test."""
    made = Clock()
    monkeypatch.setattr(DataKeyReserve, "clock", made)
    return made


@pytest.fixture
def make(service: Service) -> Iterator[Callable[..., DataKeyReserve]]:
    """Make reserves over the service that are closed after the test."""
    made: list[DataKeyReserve] = []

    def make(**options: Any) -> DataKeyReserve:
        made.append(DataKeyReserve(service, CONTEXT, **options))
        return made[-1]

    yield make
    service.answers.set()
    for each in made:
        each.close()


def until(condition: Callable[[], object]) -> None:
    """Wait for the threads of a reserve; the deadline only ends a test that hangs."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "this never came"
        time.sleep(0.0002)


def full(keys: DataKeyReserve) -> bool:
    """Whether the reserve has all the keys it wants."""
    with keys._changed:
        return keys._fresh(keys.clock()) == keys.ready + 1 and keys._asked_at is None


def open_tape(path: Path, keys: DataKeyReserve, mode: str = "x", **options: Any) -> Any:
    """Open a tape of TICK records in frames of FRAME bytes."""
    options = {"dtype": TICK, "frame_size": FRAME, "encryption_context": CONTEXT, **options}
    return tapeseal.open(path, mode, keyring=keys, **options)


def recorder(template: Path, keys: DataKeyReserve, **options: Any) -> tapeseal.Recorder:
    """Make a recorder of such tapes."""
    options = {"dtype": TICK, "frame_size": FRAME, "encryption_context": CONTEXT, **options}
    return tapeseal.Recorder(template, keyring=keys, **options)


def recorded(folder: Path, keyring: Any) -> list[int]:
    """Return the numbers of all records in the tapes of a folder, sorted."""
    found: list[int] = []
    for path in folder.glob("*.tape"):
        with tapeseal.open(path, keyring=keyring) as tape:
            found += tape[:]["number"].tolist()
    return sorted(found)


def wrapped_key(path: Path) -> str | None:
    """Return what names the data key of a tape."""
    return tapeseal.inspect(path).recipients[0].wrapped


def usage(folder: Path, keyring: Any) -> dict[Any, tuple[int, int, int]]:
    """Return for each data key of a folder's tapes (tapes, frames, bytes of records), as the files have them."""
    found: dict[Any, tuple[int, int, int]] = {}
    for path in folder.glob("*.tape"):
        tapes, frames, size = found.get(wrapped_key(path), (0, 0, 0))
        with tapeseal.open(path, keyring=keyring) as tape:
            frames += tape.anchor.frames
            size += len(tape) * TICK.itemsize
        found[wrapped_key(path)] = (tapes + 1, frames, size)
    return found


def together(do: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Call do(number) in so many threads that begin together, and return what each gave."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait()
        return do(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


# Sharing


@pytest.mark.slow
def test_a_thousand_tapes_cost_few_calls(
    tmp_path: Path, service: Service, make: Any, keyring: Any
) -> None:
    """1,000 tapes take at most 10 calls to be written, none more to be read, and as few in another reserve."""
    keys = make()
    for number in range(1000):
        tape = open_tape(tmp_path / f"{number}.tape", keys)
        tape.append(ticks(number, number + 1))
        tape.flush()
        del tape  # Without waiting for the disk.
    assert list(range(1000)) == recorded(tmp_path, keys)
    assert service.calls.total() <= 10
    assert 0 == service.calls["unwrap"]
    service.calls.clear()
    assert list(range(1000)) == recorded(tmp_path, make())
    until(lambda: service.calls["generate"] == 3)
    assert service.calls.total() <= 10
    assert list(range(1000)) == recorded(tmp_path, keyring)


def test_tapes_of_one_key_derive_different_keys(tmp_path: Path, make: Any) -> None:
    """Tapes that share a data key share nothing that a file shows."""
    keys = make()
    for name in "ab":
        with open_tape(tmp_path / name, keys) as tape:
            tape.append(ticks(0, 300))
    assert wrapped_key(tmp_path / "a") == wrapped_key(tmp_path / "b")
    shown = []
    for name in "ab":
        data = (tmp_path / name).read_bytes()
        frame = next(block for block in blocks(data) if block.kind == "frame")
        shown.append(data[frame.start + 24 : frame.stop])
    words = [{text[at : at + 8] for at in range(len(text) - 7)} for text in shown]
    assert set() == words[0] & words[1]


def test_closing_a_tape_leaves_the_key_to_others(tmp_path: Path, make: Any) -> None:
    """A tape that is closed, or dropped, takes no other tape's key along; the last close wipes it."""
    keys = make()
    one, other = (open_tape(tmp_path / name, keys) for name in "ab")
    secret = other._body.data_key.secret
    one.append(ticks(0, 300))
    one.close()
    with pytest.raises(ValueError, match="closed"):
        _ = one._body.data_key.secret
    dropped = open_tape(tmp_path / "c", keys)
    del dropped
    other.append(ticks(0, 300))
    keys.close()
    assert not secret.closed
    other.flush()
    other.close()
    assert secret.closed


def test_a_shared_data_key_is_wiped_once() -> None:
    """Closing one of several twice counts once; the last to go wipes, whichever it is."""
    first = DataKey.generate()
    secret = first.secret
    second, third = first.share(), first.share()
    for each in (second, second, first, first):
        each.close()
    assert not secret.closed
    assert third.header_mac(bytes(16), b"") == third.share().header_mac(bytes(16), b"")
    fourth = third.share()
    third.close()
    fourth.close()
    assert secret.closed


def test_blobs_and_rows(make: Any, keyring: Any) -> None:
    """Blobs and rows take a reserve wherever they take a keyring."""
    keys = make()
    options: dict[str, Any] = {"encryption_context": CONTEXT}
    blob = tapeseal.encrypt(b"an order", keyring=keys, **options)
    assert b"an order" == tapeseal.decrypt(blob, keyring=keys)
    assert b"an order" == tapeseal.decrypt(blob, keyring=keyring)
    rows = tapeseal.RowEncryptor(keys, dtype=TICK, **options)
    sealed = rows.encrypt(ticks(0, 10))
    for each in (keys, keyring):
        opened = tapeseal.RowDecryptor(rows.header, keyring=each).decrypt(sealed)
        assert ticks(0, 10).tobytes() == opened.tobytes()


def test_rewrap_through_a_reserve(
    tmp_path: Path, make: Any, service: Service, other_keyring: Any
) -> None:
    """A reserve opens for a rewrap, and wraps for one, and names its recipients."""
    keys = make()
    with open_tape(tmp_path / "a", keys) as tape:
        tape.append(ticks(0, 10))
    tapeseal.rewrap(tmp_path / "a", keyring=keys, to=other_keyring)
    tapeseal.rewrap(tmp_path / "a", keyring=other_keyring, to=keys)
    assert 1 == service.calls["wrap"]
    assert keys.pending() == service.pending()
    with tapeseal.open(tmp_path / "a", keyring=keys) as tape:
        assert 10 == len(tape)


# Limits


@pytest.mark.parametrize("limit", [{"max_messages": 23}, {"max_bytes": 23 * FRAME + 100}])
def test_threads_and_recorders_never_exceed_a_keys_limits(
    tmp_path: Path, make: Any, keyring: Any, limit: dict[str, int]
) -> None:
    """Eight recorders on one reserve: as the files have it, no key did more than it may, and no record is lost."""
    keys = make(ready=4, **limit)
    each = 12_000

    def patiently(do: Callable[[], Any]) -> Any:
        while True:
            try:
                return do()
            except ReserveExhaustedError:
                time.sleep(0.001)  # New keys come as fast as this machine makes them.

    def record(number: int) -> None:
        with patiently(lambda: recorder(tmp_path / f"{number}.tape", keys)) as tapes:
            start, stop = number * each, (number + 1) * each
            for first, size in zip(itertools.count(), itertools.cycle((1, 30, 256, 700))):
                if start == stop:
                    return
                records = ticks(start, min(stop, start + size))
                patiently(lambda records=records: tapes.append(records))
                start = min(stop, start + size)
                if first % 7 == 0:
                    tapes.flush()

    together(record)
    assert list(range(THREADS * each)) == recorded(tmp_path, keyring)
    used = usage(tmp_path, keyring)
    assert len(used) > 5
    assert max(frames for _, frames, _ in used.values()) <= keys.max_messages
    assert max(size for _, _, size in used.values()) <= keys.max_bytes
    assert max(tapes for tapes, _, _ in used.values()) > 1


def test_a_tape_at_its_keys_limit(tmp_path: Path, make: Any, keyring: Any) -> None:
    """The append that goes past a limit raises and takes nothing; all before it is flushed, sealed and readable."""
    keys = make(max_messages=3)
    with open_tape(tmp_path / "a", keys) as tape:
        tape.append(ticks(0, 2 * FRAME_ITEMS + 5))
        for records in (ticks(0, FRAME_ITEMS), ticks(0, 1)):
            with pytest.raises(LimitError, match="has encrypted its 3 messages"):
                tape.append(records)
        tape.flush()
        with pytest.raises(LimitError, match="has encrypted its 3 messages"):
            tape.append(ticks(0, 1))
        assert 2 * FRAME_ITEMS + 5 == len(tape)
    found = tapeseal.verify(tmp_path / "a", keyring=keyring)
    assert ("sealed", [], 3) == (
        found.state,
        found.problems,
        tapeseal.Anchor.parse(str(found.anchor)).frames,
    )
    with open_tape(tmp_path / "b", keys) as tape:
        tape.append(ticks(0, 1))
    assert wrapped_key(tmp_path / "a") != wrapped_key(tmp_path / "b")


def test_what_is_flushed_early_is_counted_as_it_is(tmp_path: Path, make: Any) -> None:
    """A frame counts as a full one only until it is flushed, and empty appends do not count."""
    keys = make(max_bytes=10 * FRAME)
    with open_tape(tmp_path / "a", keys) as tape:
        allowance = tape._body.data_key.allowance
        for start in range(50):
            tape.append(ticks(0, 0))
            tape.append(ticks(start, start + 1))
            tape.append(ticks(0, 0))
            assert 10 * FRAME - start * TICK.itemsize - FRAME == allowance.bytes
            tape.flush()
        assert 10 * FRAME - 50 * TICK.itemsize == allowance.bytes
        assert keys.max_messages - 50 == allowance.messages


def test_more_than_any_key_takes(tmp_path: Path, make: Any, service: Service) -> None:
    """An append larger than a key's whole limit is refused as such, and costs no key."""
    keys = make(max_bytes=4 * FRAME)
    until(lambda: full(keys))
    with recorder(tmp_path / "a.tape", keys) as tapes:
        with pytest.raises(ValueError, match="a frame counts as a full one"):
            tapes.append(ticks(0, 4 * FRAME_ITEMS + 1))
        tapes.append(ticks(0, 4 * FRAME_ITEMS))
    with pytest.raises(ValueError, match="max_bytes=16384"):
        tapeseal.encrypt(bytes(4 * FRAME + 1), keyring=keys, encryption_context=CONTEXT)
    assert ["a.tape"] == [path.name for path in tmp_path.iterdir()]
    assert 3 == service.calls["generate"]


def test_recorders_roll_at_the_limit(tmp_path: Path, make: Any, keyring: Any) -> None:
    """A recorder goes on in a new tape under another key; each tape is sealed and told of."""
    keys = make(max_messages=10)
    closed: list[str] = []
    with recorder(
        tmp_path / "a.tape", keys, on_close=lambda path, anchor: closed.append(path)
    ) as tapes:
        for start in range(0, 8000, 100):
            until(lambda: keys.stats()["ready_keys"] > 1)
            tapes.append(ticks(start, start + 100))
    assert list(range(8000)) == recorded(tmp_path, keyring)
    assert sorted(map(str, tmp_path.iterdir())) == sorted(closed)
    assert {"sealed"} == {
        tapeseal.verify(path, keyring=keyring).state for path in tmp_path.iterdir()
    }
    assert {(1, 10)} == {used[:2] for used in usage(tmp_path, keyring).values()} - {
        (1, -(-8000 // FRAME_ITEMS) % 10)
    }


def test_rows_never_exceed_a_keys_limits(make: Any) -> None:
    """Rows in eight threads, of one size and of various: no key seals more than it may, no nonce comes twice."""
    keys = make(ready=4, max_messages=1000, max_bytes=1 << 20)
    sealed: list[tuple[bytes, bytes]] = []
    taken: Counter[int] = Counter()
    guard = threading.Lock()
    encryptors: dict[str, Any] = {}

    def encryptor(kind: str, broken: Any) -> Any:
        with guard:
            while encryptors.get(kind) is broken:
                try:
                    encryptors[kind] = tapeseal.RowEncryptor(
                        keys, dtype=TICK if kind == "fixed" else None, encryption_context=CONTEXT
                    )
                except ReserveExhaustedError:
                    time.sleep(0.001)
            return encryptors[kind]

    def seal(number: int) -> None:
        kind = "fixed" if number % 2 else "various"
        rows = encryptor(kind, None)
        for count in [1, 7, 30] * 40:
            while True:
                try:
                    if kind == "fixed":
                        nonces = [row.tobytes()[:12] for row in rows.encrypt(ticks(0, count))]
                    else:
                        offsets, data = rows.encrypt([b"row"] * count)
                        nonces = [bytes(data[at : at + 12]) for at in offsets[:-1]]
                    break
                except LimitError:
                    rows = encryptor(kind, rows)
            with guard:
                taken[id(rows._allowance)] += count
                sealed.extend((rows.header, nonce) for nonce in nonces)
                kept.append(rows)

    kept: list[Any] = []
    together(seal)
    assert THREADS * 40 * 38 == len(sealed) == len(set(sealed))
    assert max(taken.values()) <= 1000
    assert len(taken) > 5


def test_a_rows_counter_goes_on(make: Any) -> None:
    """Rows are numbered without a gap, however the allowance comes."""
    rows = tapeseal.RowEncryptor(make(max_messages=100), dtype=TICK, encryption_context=CONTEXT)
    counters = []
    for count in (3, 5, 20, 1, 0, 40, 31):
        sealed = rows.encrypt(ticks(0, count))
        counters += [int.from_bytes(row.tobytes()[4:12], "big") for row in sealed]
        assert len(counters) == rows.count
    assert list(range(100)) == counters
    with pytest.raises(LimitError, match="100 messages"):
        rows.encrypt(ticks(0, 1))


def test_a_blob_goes_to_the_next_key(make: Any) -> None:
    """encrypt() never fails because the key in use has too little left."""
    keys = make(max_messages=3)
    for _ in range(20):
        until(lambda: keys.stats()["ready_keys"] > 1)
        tapeseal.encrypt(bytes(100_000), keyring=keys, encryption_context=CONTEXT)


def test_encrypt_file_is_counted(tmp_path: Path, make: Any) -> None:
    """A whole file is counted before it is sealed."""
    keys = make(max_bytes=1 << 20)
    (tmp_path / "source").write_bytes(bytes(700_000))
    options: dict[str, Any] = {"keyring": keys, "encryption_context": CONTEXT}
    tapeseal.encrypt_file(tmp_path / "source", tmp_path / "a", **options)
    with pytest.raises(LimitError, match="1048576 bytes"):
        tapeseal.encrypt_file(tmp_path / "source", tmp_path / "b", **options)
    assert not (tmp_path / "b").exists()
    tapeseal.encrypt_file(tmp_path / "source", tmp_path / "b", **options)
    assert wrapped_key(tmp_path / "a") != wrapped_key(tmp_path / "b")


def test_age(tmp_path: Path, make: Any, clock: Clock) -> None:
    """A key at its age takes nothing more, not even into a frame that was begun; what it took is flushed."""
    keys = make(max_age_seconds=100)
    with open_tape(tmp_path / "a", keys) as begun, open_tape(tmp_path / "b", keys) as fresh:
        rows = tapeseal.RowEncryptor(keys, dtype=TICK, encryption_context=CONTEXT)
        begun.append(ticks(0, 1))
        rows.encrypt(ticks(0, 1))
        clock.now += 99.9
        begun.append(ticks(1, 2))
        fresh.append(ticks(0, FRAME_ITEMS))
        clock.now += 0.2
        with pytest.raises(LimitError, match="is 100 seconds old"):
            fresh.append(ticks(0, 1))  # Its own look at the clock, whatever the threads are at.
        for append in (begun.append, rows.encrypt):
            with pytest.raises(LimitError, match="is 100 seconds old"):
                append(ticks(0, 1))
        begun.flush()
        assert 2 == len(begun)


def test_age_is_seen_by_the_watch_alone(tmp_path: Path, make: Any, clock: Clock) -> None:
    """A frame that fills up slowly is closed to further records once its key is too old, with nobody else about."""
    keys = make(max_age_seconds=100)
    with open_tape(tmp_path / "a", keys) as tape:
        tape.append(ticks(0, 1))
        clock.advance(keys, 100)
        until(lambda: tape._body.data_key.allowance.spent)
        with pytest.raises(LimitError, match="is 100 seconds old"):
            tape.append(ticks(0, 1))


def test_going_on_with_a_tape_does_not_start_its_key_anew(
    tmp_path: Path, make: Any, clock: Clock, service: Service
) -> None:
    """A key that is spent stays spent when its tape is opened again, also after it had to be unwrapped anew."""
    keys = make(max_messages=2, unwrap_max_age_seconds=50)
    with open_tape(tmp_path / "a", keys) as tape:
        tape.append(ticks(0, 2 * FRAME_ITEMS))
    for calls in (0, 1):
        with (
            open_tape(tmp_path / "a", keys, "a") as tape,
            pytest.raises(LimitError, match="2 messages"),
        ):
            tape.append(ticks(0, 1))
        assert calls == service.calls["unwrap"]
        clock.advance(keys, 51)


def test_a_key_of_others_is_counted_from_its_unwrapping(
    tmp_path: Path, make: Any, keyring: Any
) -> None:
    """A tape that was made without the reserve is gone on with under the same limits."""
    with open_tape(tmp_path / "a", keyring) as tape:
        tape.append(ticks(0, 1))
    keys = make(max_messages=2)
    with open_tape(tmp_path / "a", keys, "a") as tape:
        tape.append(ticks(0, 2 * FRAME_ITEMS))
        with pytest.raises(LimitError, match="2 messages"):
            tape.append(ticks(0, 1))


# Refilling


def test_keys_are_replaced_before_they_expire(
    tmp_path: Path, make: Any, clock: Clock, service: Service
) -> None:
    """At half of their age all keys are new ones; new tapes take these, the old tape goes on under its own."""
    keys = make(max_age_seconds=1000)
    until(lambda: full(keys))
    with open_tape(tmp_path / "a", keys) as tape:
        old, first = tape._body.data_key.secret, keys.outage_budget
        assert OutageBudget(1000, 3 << 40, 0) == first
        clock.advance(keys, 249)
        time.sleep(0.01)
        assert 3 == service.calls["generate"]
        clock.advance(keys, 251)
        until(lambda: service.calls["generate"] == 6 and full(keys))
        assert 1000 == keys.outage_budget.seconds
        assert not old.closed
        tape.append(ticks(0, 1))
        with open_tape(tmp_path / "b", keys) as other:
            assert old is not other._body.data_key.secret
    assert wrapped_key(tmp_path / "a") != wrapped_key(tmp_path / "b")
    assert not old.closed  # It is kept to read what it has written,
    clock.advance(keys, 3101)
    until(lambda: old.closed)  # for a while.


def test_one_call_at_a_time(make: Any, service: Service) -> None:
    """Eight threads that want the first key get the same one, and one call at a time fetches keys."""
    service.answers.clear()
    keys = make()
    threading.Timer(0.05, service.answers.set).start()
    made = together(lambda _: keys.generate(CONTEXT))
    assert 1 == len({recipients[0].wrapped for _, recipients in made})
    assert 1 == len({data_key.secret for data_key, _ in made})
    until(lambda: full(keys))
    assert (3, 1) == (service.calls["generate"], service.together)


def test_the_first_error_is_the_keyrings(make: Any, service: Service) -> None:
    """Before there was a key, its error comes out as it is, to each thread; then the reserve fills by itself."""
    service.error = AccessDeniedError("the token of kv-recorder was revoked")
    keys = make()

    def fail(_: int) -> BaseException:
        with pytest.raises(
            AccessDeniedError, match=r"^the token of kv-recorder was revoked$"
        ) as info:
            keys.generate(CONTEXT)
        return info.value

    assert THREADS == len({id(error) for error in together(fail)})
    service.error = None
    until(lambda: keys.stats()["ready_keys"])
    keys.generate(CONTEXT)[0].close()


def test_unexpected_errors_do_not_end_the_threads(
    make: Any, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that is not ours counts as a failure too; its text, which nobody checked, goes to no log."""
    service.error = RuntimeError("hvs.secret-token")
    keys = make()
    with pytest.raises(RuntimeError, match="hvs"):
        keys.generate(CONTEXT)
    until(lambda: "seconds: RuntimeError" in caplog.text)
    service.error = None
    until(lambda: full(keys))
    assert "hvs" not in caplog.text


def test_retries_are_bounded(make: Any, service: Service, clock: Clock) -> None:
    """A service that is away for a quarter of an hour is asked a limited number of times, and soon after it is back."""
    service.error = ServiceUnavailableError("nobody there")
    keys = make()
    until(lambda: service.calls["generate"] == 1)
    for _ in range(900):
        clock.advance(keys, 1)
        until(lambda: not keys._is_due(clock.now))
    assert 900 / 30 <= service.calls["generate"] <= 900 / 15 + 10
    service.error = None
    clock.advance(keys, 30)
    until(lambda: full(keys))


# Outages


def test_ten_minutes_without_the_service(
    tmp_path: Path, make: Any, service: Service, clock: Clock, keyring: Any
) -> None:
    """A recorder that appends all the time, and rolls too, gets through ten minutes of outage with no record lost."""
    keys = make(max_bytes=100 * FRAME)
    done = 0
    with recorder(tmp_path / "a.tape", keys, roll_size=20 * FRAME) as tapes:
        until(lambda: full(keys))
        service.error = ServiceUnavailableError("nobody there")
        for _ in range(600):
            for _ in range(10):
                tapes.append(ticks(done, done + 10))
                done += 10
            clock.advance(keys, 1)
    assert list(range(60_000)) == recorded(tmp_path, keyring)
    assert len(usage(tmp_path, keyring)) > 1
    assert service.calls["generate"] > 10


def test_the_end_of_the_budget_and_after(
    tmp_path: Path,
    make: Any,
    service: Service,
    clock: Clock,
    keyring: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the end of the budget appends fail with the one error and take nothing; then they go on by themselves."""
    caplog.set_level(logging.INFO, "tapeseal")
    keys = make(max_age_seconds=1200)
    done, errors = 0, []

    def second() -> None:
        nonlocal done
        try:
            tapes.append(ticks(done, done + 10))
            done += 10
        except KeyUnavailableError as error:
            errors.append(error)
        clock.advance(keys, 1)

    with recorder(tmp_path / "a.tape", keys) as tapes:
        until(lambda: full(keys))
        caplog.clear()
        service.error = ServiceUnavailableError("the KMS does not answer")
        stated = keys.outage_budget.seconds
        assert 1200 == stated
        for _ in range(1400):
            second()
        assert 1200 * 10 == done
        assert {ReserveExhaustedError} == set(map(type, errors))
        assert 200 == len(errors)
        assert "ServiceUnavailableError: the KMS does not answer" in str(errors[-1])
        assert 0 == keys.outage_budget.seconds
        assert 1 == len(list(tmp_path.iterdir()))
        service.error = None
        clock.advance(keys, 30)
        until(lambda: full(keys))
        errors.clear()
        for _ in range(100):
            second()
        assert [] == errors
        tapes.flush()
    assert list(range(done)) == recorded(tmp_path, keyring)
    until(lambda: "gives data keys again" in caplog.text)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ["WARNING", "ERROR", "INFO"] == list(dict.fromkeys(level for level, _ in lines))
    assert 4 <= len(lines) <= 16
    assert all("outage budget: " in text for level, text in lines if level != "INFO")
    assert all("KMS does not answer" in text for level, text in lines if level != "INFO")


def test_the_budget_at_the_present_rate(tmp_path: Path, make: Any, clock: Clock) -> None:
    """The budget counts bytes and messages left, and lasts as long as those do at the rate of the last minute."""
    keys = make(max_age_seconds=1000, max_bytes=100 * FRAME, ready=1)
    until(lambda: full(keys))
    with open_tape(tmp_path / "a", keys) as tape:
        for _ in range(50):
            tape.append(ticks(0, FRAME_ITEMS))
            clock.advance(keys, 1)
        budget = keys.outage_budget
        assert (150 * FRAME, FRAME) == (budget.bytes, round(budget.bytes_per_second))
        assert 150 == round(budget.seconds)
        stats = keys.stats()
        assert (budget.seconds, budget.bytes) == (
            stats["outage_budget_seconds"],
            stats["outage_budget_bytes"],
        )
        for _ in range(60):
            clock.advance(keys, 1)
        assert OutageBudget(1000 - 110, 150 * FRAME, 0) == keys.outage_budget
    assert all(isinstance(value, int | float) for value in keys.stats().values())


def test_metrics(make: Any, clock: Clock, service: Service) -> None:
    """Prometheus reads every number of every reserve, without a call to the service."""
    prometheus = pytest.importorskip("prometheus_client")
    one, other = make(max_age_seconds=1000, max_bytes=FRAME, ready=1), make(ready=3)
    until(lambda: full(one) and full(other))
    calls = service.calls.total()
    registry = prometheus.CollectorRegistry()
    registry.register(tapeseal.ReserveCollector({"eq-us": one, "eq-eu": other}))
    for name, keys in (("eq-us", one), ("eq-eu", other)):
        samples = {
            what: [
                registry.get_sample_value(f"tapeseal_reserve_{what}{end}", {"reserve": name})
                for end in ("", "_total")
            ]
            for what in keys.stats()
        }
        assert keys.stats() == {
            what: total if value is None else value for what, (value, total) in samples.items()
        }
    text = prometheus.generate_latest(registry).decode()
    assert 'tapeseal_reserve_outage_budget_bytes{reserve="eq-us"} 8192.0' in text
    assert calls == service.calls.total()


def test_a_service_that_hangs(
    tmp_path: Path, make: Any, service: Service, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """While the service gives no answer at all, keys age, the budget is told and appends do not wait."""
    keys = make(max_age_seconds=100)
    until(lambda: full(keys))
    with open_tape(tmp_path / "a", keys) as tape:
        service.answers.clear()
        tape.append(ticks(0, 1))
        clock.advance(keys, 60)
        until(lambda: service.calls["generate"] == 4)
        clock.advance(keys, 10)
        until(lambda: "outage budget: 30 seconds" in caplog.text)
        assert "no answer so far" in caplog.text
        assert 10 == keys.stats()["failing_seconds"]
        open_tape(tmp_path / "b", keys).close()
        clock.advance(keys, 30)
        until(lambda: "outage budget: 0 seconds" in caplog.text)
        with pytest.raises(LimitError):
            tape.append(ticks(0, 1))
        with pytest.raises(
            ReserveExhaustedError, match=r"none for 40 seconds \(no answer so far\)"
        ):
            keys.generate(CONTEXT)


def test_used_up_faster_than_filled(make: Any, service: Service) -> None:
    """With the service there, a reserve whose keys are all used up says that its limits are too small."""
    keys = make(max_messages=1, ready=1)
    until(lambda: full(keys))
    service.answers.clear()
    for _ in range(2):
        keys.generate(CONTEXT)[0].charge(1, 1)
        with pytest.raises(LimitError):
            keys.generate(CONTEXT)[0].charge(1, 1)
    with pytest.raises(ReserveExhaustedError, match="raise max_bytes"):
        keys.generate(CONTEXT)


# Unwrapping


def wrapped(keyring: Any, count: int = 1) -> list[list[Recipient]]:
    """Return the recipients of so many data keys."""
    made = []
    for _ in range(count):
        data_key, recipients = keyring.generate(CONTEXT)
        data_key.close()
        made.append(recipients)
    return made


def test_unwrapping_is_limited_by_uses(make: Any, service: Service, keyring: Any) -> None:
    """A key is given out so often, then the service is asked again."""
    keys = make(unwrap_max_uses=3)
    [recipients] = wrapped(keyring)
    for use in range(9):
        keys.unwrap(recipients, CONTEXT).close()
        assert use // 3 + 1 == service.calls["unwrap"]
    stats = keys.stats()
    assert (3, 6) == (stats["unwrapped"], stats["unwrap_hits"])


def test_unwrapping_is_limited_by_age(
    make: Any, service: Service, keyring: Any, clock: Clock
) -> None:
    """A key is wiped when its time is over, without anyone asking for it."""
    keys = make(unwrap_max_age_seconds=10)
    [recipients] = wrapped(keyring)
    with keys.unwrap(recipients, CONTEXT) as data_key:
        secret = data_key.secret
    clock.advance(keys, 9)
    keys.unwrap(recipients, CONTEXT).close()
    assert (1, False) == (service.calls["unwrap"], secret.closed)
    clock.advance(keys, 1)
    until(lambda: secret.closed)
    keys.unwrap(recipients, CONTEXT).close()
    assert 2 == service.calls["unwrap"]


def test_unwrapped_keys_are_limited_in_number(
    make: Any, service: Service, keyring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many keys the one that was used longest ago is wiped."""
    keys = make()
    until(lambda: full(keys))
    monkeypatch.setattr(reserve, "MAX_UNWRAPPED", 4)
    all_recipients = wrapped(keyring, 6)
    secrets = []
    for recipients in all_recipients:
        with keys.unwrap(recipients, CONTEXT) as data_key:
            secrets.append(data_key.secret)
        keys.unwrap(all_recipients[0], CONTEXT).close()
    assert [False, True, True, False, False, False] == [secret.closed for secret in secrets]
    assert 6 == service.calls["unwrap"]
    keys.unwrap(all_recipients[0], CONTEXT).close()
    assert 6 == service.calls["unwrap"]
    assert 4 == len(keys._unwrapped)


def test_keys_that_are_remembered_are_limited_in_number(
    make: Any, keyring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key whose use can no longer be counted encrypts no more."""
    keys = make()
    until(lambda: full(keys))
    monkeypatch.setattr(reserve, "MAX_REMEMBERED", 5)
    opened = [keys.unwrap(recipients, CONTEXT) for recipients in wrapped(keyring, 7)]
    until(lambda: len(keys._allowances) <= 5)
    with pytest.raises(LimitError, match="followed by 5 others"):
        opened[0].charge(1, 1)
    assert full(keys)  # However many come, the keys in use stay.
    for each in opened:
        each.close()


def test_unwrapping_is_asked_for_once(make: Any, service: Service, keyring: Any) -> None:
    """Eight threads that open tapes of one key ask once; where that fails each gets the error, of its own."""
    keys = make()
    until(lambda: full(keys))
    [recipients], [others] = wrapped(keyring), wrapped(keyring)
    service.answers.clear()
    threading.Timer(0.2, service.answers.set).start()
    secrets = {data_key.secret for data_key in together(lambda _: keys.unwrap(recipients, CONTEXT))}
    assert (1, 1) == (len(secrets), service.calls["unwrap"])

    service.error = ServiceUnavailableError("nobody there")
    service.answers.clear()
    threading.Timer(0.2, service.answers.set).start()

    def fail(_: int) -> BaseException:
        with pytest.raises(ServiceUnavailableError, match=r"^nobody there$") as info:
            keys.unwrap(others, CONTEXT)
        return info.value

    assert THREADS == len({id(error) for error in together(fail)})
    assert 2 == service.calls["unwrap"]
    service.error = None
    keys.unwrap(others, CONTEXT).close()


def test_an_interrupted_call_is_made_again(make: Any, service: Service, keyring: Any) -> None:
    """A thread that waits for a call which ends by an interrupt makes the call itself."""
    keys = make()
    until(lambda: full(keys))
    [recipients] = wrapped(keyring)
    service.answers.clear()
    service.errors = [KeyboardInterrupt()]
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(keys.unwrap, recipients, CONTEXT)
        until(lambda: service.calls["unwrap"] == 1)
        second = threads.submit(keys.unwrap, recipients, CONTEXT)
        time.sleep(0.05)  # Until it waits, most likely.
        service.answers.set()
        assert isinstance(first.exception(), KeyboardInterrupt)
        second.result().close()
    assert 2 == service.calls["unwrap"]
    assert {} == keys._flights


def test_forged_tapes(tmp_path: Path, make: Any, service: Service) -> None:
    """What is kept opens only what it was wrapped as: a changed wrapped key or header goes the whole way, and fails."""
    keys = make()
    with open_tape(tmp_path / "a", keys) as tape:
        tape.append(ticks(0, 10))
    recipient = tapeseal.inspect(tmp_path / "a").recipients[0]
    assert recipient.wrapped is not None
    flipped = recipient.wrapped[:40] + ("A" if recipient.wrapped[40] != "A" else "B")
    forged = recipient._replace(wrapped=flipped + recipient.wrapped[41:])
    for calls in (1, 2):
        with pytest.raises(InvalidTag):
            keys.unwrap([forged], CONTEXT)
        assert calls == service.calls["unwrap"]  # No failure is kept: someone may have mended it.
    keys.unwrap([recipient], CONTEXT).close()
    assert 2 == service.calls["unwrap"]


def test_only_one_encryption_context(tmp_path: Path, make: Any, keyring: Any) -> None:
    """Another encryption context is refused with a text that says what to do, before anything is asked."""
    keys = make()
    [recipients] = wrapped(keyring)
    with keyring.generate(CONTEXT)[0] as data_key:
        for use in (
            lambda context: keys.generate(context),
            lambda context: keys.wrap(data_key, context),
            lambda context: keys.unwrap(recipients, context),
            lambda context: open_tape(tmp_path / "a", keys, encryption_context=context),
            lambda context: tapeseal.RowEncryptor(keys, encryption_context=context),
        ):
            for context in ({}, {"desk": "fx"}, {**CONTEXT, "more": "1"}):
                with pytest.raises(ContextMismatchError, match="each needs a reserve of its own"):
                    use(context)
    assert [] == list(tmp_path.iterdir())


# Ends


def test_close_wipes(tmp_path: Path, make: Any, service: Service, keyring: Any) -> None:
    """close() wipes every key that no tape has open, stops the threads, and says so to whoever comes after."""
    keys = make()
    until(lambda: full(keys))
    tape = open_tape(tmp_path / "a", keys)
    rows = tapeseal.RowEncryptor(keys, dtype=TICK, encryption_context=CONTEXT)
    tape.append(ticks(0, 1))
    keys.unwrap(wrapped(keyring)[0], CONTEXT).close()
    kept = tape._body.data_key.secret
    secrets = [data_key._secret for data_key in service.made]
    keys.close()
    keys.close()
    assert [False] * 2 == [thread.is_alive() for thread in keys._threads]
    assert 4 == len(secrets)
    assert {True: 3, False: 1} == Counter(secret.closed for secret in secrets)
    assert not kept.closed
    for append in (tape.append, rows.encrypt):
        with pytest.raises(LimitError, match="a reserve that was closed"):
            append(ticks(0, 1))
    tape.close()
    assert kept.closed
    for use in (
        lambda: keys.generate(CONTEXT),
        lambda: keys.unwrap(wrapped(keyring)[0], CONTEXT),
        lambda: open_tape(tmp_path / "b", keys),
    ):
        with pytest.raises(ValueError, match="the reserve is closed"):
            use()
    with tapeseal.open(tmp_path / "a", keyring=keyring) as reader:
        assert 1 == len(reader)


def test_close_while_the_service_is_asked(make: Any, service: Service, keyring: Any) -> None:
    """What a call under way brings after close() is wiped, and who waits for it is told."""
    service.answers.clear()
    keys = make()
    [recipients] = wrapped(keyring)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(keys.generate, CONTEXT)
        opened = threads.submit(keys.unwrap, recipients, CONTEXT)
        until(lambda: service.calls.total() == 2)
        closing = threads.submit(keys.close)
        until(lambda: keys._closed)
        with pytest.raises(ValueError, match="the reserve is closed"):
            first.result()
        service.answers.set()
        with pytest.raises(ValueError, match="the reserve is closed"):
            opened.result()
        closing.result()
    assert [True, True] == [data_key.secret.closed for data_key in service.made]


def test_a_broken_keyring_leaves_no_key(make: Any, service: Service, keyring: Any) -> None:
    """Where the keyring's recipients cannot be, the data key that came with them is wiped."""
    service.keyring = BrokenKeyring(keyring)
    keys = make()
    with pytest.raises(ValueError, match="wrapped"):
        keys.generate(CONTEXT)
    assert {True} == {data_key.secret.closed for data_key in service.made}


class BrokenKeyring:
    """A keyring whose wrapped keys are longer than the format allows."""

    def __init__(self, keyring: Any) -> None:
        self.keyring = keyring

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        data_key, [recipient] = self.keyring.generate(encryption_context)
        return data_key, [recipient._replace(wrapped="A" * 10_000)]


def test_construction(service: Service) -> None:
    """Limits are above 0, the encryption context is one, and no thread starts for what cannot be."""
    before = threading.active_count()
    for name in (
        "ready", "max_age_seconds", "max_bytes", "max_messages", "unwrap_max_age_seconds", "unwrap_max_uses",
    ):  # fmt: skip
        for wrong in (0, -1, float("nan")):
            with pytest.raises(ValueError, match=f"^{name} must be above 0$"):
                DataKeyReserve(service, CONTEXT, **{name: wrong})
    with pytest.raises(ValueError, match="tapeseal:"):
        DataKeyReserve(service, {"tapeseal:v1": "wrap"})
    assert before == threading.active_count()
    with DataKeyReserve(service) as keys:
        keys.generate({})[0].close()
        assert "<DataKeyReserve of " in repr(keys)
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="neither pickled nor copied"):
                attempt(keys)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_notices(tmp_path: Path, make: Any, keyring: Any) -> None:
    """In a fork all but close() raises ForkError at once, also with a lock held, and the parent goes on."""
    keys = make()
    until(lambda: full(keys))
    tape = open_tape(tmp_path / "a", keys)
    rows = tapeseal.RowEncryptor(keys, dtype=TICK, encryption_context=CONTEXT)
    [recipients] = wrapped(keyring)
    data_key = keys.unwrap(recipients, CONTEXT)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with keys._changed:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = os.fork()
    if child == 0:
        problems = 0
        for use in (
            lambda: keys.generate(CONTEXT),
            lambda: keys.unwrap(recipients, CONTEXT),
            lambda: keys.wrap(data_key, CONTEXT),
            lambda: keys.outage_budget,
            lambda: keys.stats(),
            lambda: tape.append(ticks(0, 1)),
            lambda: tape.append(ticks(0, FRAME_ITEMS)),
            lambda: rows.encrypt(ticks(0, 1)),
            lambda: data_key.charge(1, 1),
        ):
            try:
                use()
                problems += 1
            except ForkError:
                pass
        keys.close()
        os._exit(problems)
    done.set()
    holder.join()
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    data_key.close()
    tape.append(ticks(0, 10))
    tape.close()
    assert rows.encrypt(ticks(0, 1)).nbytes == TICK.itemsize + 28


PROGRAM = """
import logging
import numpy as np
import tapeseal

logging.disable()
path, directory = sys.argv[1:]
told = open(f"{directory}/complements", "w")

class Service:
    def __init__(self):
        self.keyring = tapeseal.LocalKeyring(path)
        self.error = None

    def generate(self, context):
        if self.error:
            raise self.error
        data_key, recipients = self.keyring.generate(context)
        # The complement, so that telling a key leaves no copy of it here.
        with data_key.secret as secret, memoryview(secret) as view:
            told.write(bytes(byte ^ 255 for byte in view).hex() + "\\n")
        return data_key, recipients

    def unwrap(self, recipients, context):
        return self.keyring.unwrap(recipients, context)

service = Service()
reserve = tapeseal.DataKeyReserve(service, max_messages=3)
while reserve.stats()["ready_keys"] < 3:
    pass
tapes = [tapeseal.open(f"{directory}/{n}", "x", keyring=reserve, dtype="<u8") for n in range(3)]
rows = tapeseal.RowEncryptor(reserve, dtype="<u8")
for tape in tapes:
    tape.append(np.arange(10, dtype="<u8"))
    tape.flush()
reading = tapeseal.DataKeyReserve(service)
with tapeseal.open(f"{directory}/0", keyring=reading) as tape:
    tape[:]
service.error = tapeseal.ServiceUnavailableError("nobody there")
errors = []
def fail(do):
    try:
        do()
    except tapeseal.TapesealError as error:
        errors.append(error)
fail(lambda: tapes[0].append(np.arange(10, dtype="<u8")))
fail(lambda: rows.encrypt(np.arange(10, dtype="<u8")))
while not errors or not isinstance(errors[-1], tapeseal.ReserveExhaustedError):
    fail(lambda: tapeseal.encrypt(bytes(100), keyring=reserve))
assert {type(error).__name__ for error in errors} == {"LimitError", "ReserveExhaustedError"}
told.flush()
stage("in use")
for tape in tapes:
    tape.close()
reserve.close()
reading.close()
stage("closed")
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not _core.KEY_SCHEDULES_PROTECTED, reason="reads /proc/PID/mem"
)
def test_memory(tmp_path: Path, key_file: str) -> None:
    """Keys stand in locked, undumped pages alone; after close() none is left, whatever errors are still held."""
    with child(PROGRAM, key_file, tmp_path) as user:
        user.wait_for("in use")
        told = (tmp_path / "complements").read_text().split()
        assert len(told) >= 3
        scanner = Scanner(
            {str(n): bytes(b ^ 255 for b in bytes.fromhex(t)) for n, t in enumerate(told)}
        )
        in_use = scanner.process(user.pid)
        assert in_use
        assert {hit for hit in in_use if not hit.protected} == set()
        user.go_on_to("closed")
        assert scanner.process(user.pid) == set()


def test_errors_hold_no_key(tmp_path: Path, make: Any, service: Service) -> None:
    """No error, nor any frame of its traceback, holds the bytes of a key in a Python object."""
    keys = make(max_messages=1)
    data_key = keys.generate(CONTEXT)[0]
    with data_key.secret as secret, memoryview(secret) as view:
        raw = bytes(view)
    errors: list[BaseException] = []
    for use in (
        lambda: data_key.charge(1, 1) or data_key.charge(1, 1),
        lambda: keys.unwrap([Recipient("local", "0011223344556677", "AAAA")], CONTEXT),
        lambda: keys.generate({}),
    ):
        with pytest.raises(tapeseal.TapesealError) as info:
            use()
        errors.append(info.value)
    for error in errors:
        assert raw.hex() not in repr(error)
        traceback = error.__traceback__
        assert traceback is not None
        traceback = traceback.tb_next
        while traceback is not None:
            for value in traceback.tb_frame.f_locals.values():
                assert not isinstance(value, bytes | bytearray) or raw not in value
            traceback = traceback.tb_next
    data_key.close()


def test_a_reserve_among_several_keyrings(tmp_path: Path, make: Any, keyring: Any) -> None:
    """Several keyrings, one of them a reserve, wrap the shared key too, and its limits hold."""
    keys = make(max_messages=2)
    other = tapeseal.AnyOf([keys, keyring])
    with tapeseal.open(
        tmp_path / "a", "x", keyring=other, dtype=TICK, frame_size=FRAME, encryption_context=CONTEXT
    ) as tape:
        tape.append(np.zeros(2 * FRAME_ITEMS, TICK))
        with pytest.raises(LimitError, match="2 messages"):
            tape.append(ticks(0, 1))
    assert 2 == len(tapeseal.inspect(tmp_path / "a").recipients)


# Real services


@pytest.fixture
def kms_ring(kms: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A keyring over a key of KMS, as a user who may do everything."""
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring

    for name, value in kms.admin_user.items():
        monkeypatch.setenv(name, value)
    yield AwsKmsKeyring(
        kms.make_key(),
        endpoint_url=kms.address,
        max_attempts=1,
        connect_timeout=10,
        read_timeout=30,
    )
    kms.faults()


@contextmanager
def transit_ring(server: Any, addresses: list[str], deadline: float) -> Iterator[Any]:
    """Give a keyring over a new key of a Transit engine."""
    from tapeseal.keyrings.vault_transit import VaultTransitKeyring
    from tapeseal.vault.logins import Token
    from tapeseal.vault.session import VaultSession

    mount = f"transit-{os.urandom(4).hex()}"
    server.admin.sys.enable_secrets_engine("transit", path=mount)
    server.admin.adapter.post(f"/v1/{mount}/keys/data", json={"derived": True})
    with VaultSession(
        addresses,
        login=Token(server.token),
        ca_file=server.ca_file,
        namespace="",
        deadline=deadline,
    ) as session:
        yield VaultTransitKeyring(f"{mount}/data", session)


@pytest.mark.server
@pytest.mark.slow
def test_kms_and_vault_away(
    tmp_path: Path, kms: Any, kms_ring: Any, bao_tls: Any, clock: Clock
) -> None:
    """KMS throttles all calls, then Vault is sealed, then both for ten minutes: nothing is lost, and all comes back."""
    done = 0

    def record(seconds: int) -> None:
        nonlocal done
        for _ in range(seconds):
            tapes.append(ticks(done, done + 100))
            done += 100
            clock.advance(keys, 1)

    def throttle() -> None:
        kms.faults({"action": None, "code": "ThrottlingException", "message": "Rate exceeded"})

    with transit_ring(bao_tls, [bao_tls.address], 1.0) as vault_ring:
        both = tapeseal.AnyOf([kms_ring, vault_ring])
        with (
            DataKeyReserve(both, CONTEXT, max_age_seconds=1400, max_bytes=1 << 20) as keys,
            recorder(tmp_path / "a.tape", keys, roll_size=1 << 18) as tapes,
        ):
            until(lambda: full(keys))
            throttle()
            record(400)
            kms.faults()
            clock.advance(keys, 30)
            until(lambda: full(keys))
            bao_tls.seal()
            try:
                record(400)
            finally:
                bao_tls.unseal()
            clock.advance(keys, 30)
            until(lambda: full(keys))
            throttle()
            bao_tls.seal()
            try:
                record(600)
                assert keys.stats()["generate_failures"] > 0
            finally:
                bao_tls.unseal()
            kms.faults()
            clock.advance(keys, 30)
            until(lambda: full(keys))
        for ring in (kms_ring, vault_ring):
            assert list(range(done)) == recorded(tmp_path, ring)
    assert len(usage(tmp_path, kms_ring)) > 2


@pytest.mark.server
@pytest.mark.slow
def test_a_thousand_tapes_of_kms(tmp_path: Path, kms: Any, kms_ring: Any) -> None:
    """What KMS itself was asked for a thousand tapes, written and read."""
    kms.take_calls()
    with DataKeyReserve(kms_ring, CONTEXT) as keys:
        for number in range(1000):
            tape = open_tape(tmp_path / f"{number}.tape", keys)
            tape.append(ticks(number, number + 1))
            tape.flush()
            del tape
        until(lambda: full(keys))
        assert list(range(1000)) == recorded(tmp_path, keys)
    with DataKeyReserve(kms_ring, CONTEXT) as keys:
        assert list(range(1000)) == recorded(tmp_path, keys)
    assert len(kms.take_calls()) <= 10


@pytest.mark.server
def test_a_disabled_key(kms: Any, kms_ring: Any) -> None:
    """The keyring's own error tells what is wrong before the first key, and what ends the reserve after it."""
    [key] = kms_ring.keys
    with DataKeyReserve(kms_ring, CONTEXT, max_messages=1, ready=1) as keys:
        until(lambda: full(keys))
        kms.admin.disable_key(KeyId=key)
        with DataKeyReserve(kms_ring, CONTEXT) as others, pytest.raises(tapeseal.WrappingKeyError):
            others.generate(CONTEXT)

        def use_up() -> None:
            while True:
                try:
                    keys.generate(CONTEXT)[0].charge(1, 1)
                except LimitError:
                    continue

        with pytest.raises(ReserveExhaustedError):
            use_up()
        until(lambda: keys.stats()["generate_failures"])
        with pytest.raises(ReserveExhaustedError, match="WrappingKeyError"):
            use_up()
        kms.admin.enable_key(KeyId=key)
        until(lambda: full(keys))


@pytest.mark.server
@pytest.mark.slow
def test_the_active_node_dies(tmp_path: Path, bao_cluster: Any) -> None:
    """A recorder over a cluster goes on while its active node is killed and another one takes over."""
    done = 0
    active = bao_cluster.active()
    addresses = sorted(bao_cluster.addresses, key=active.address.__ne__)
    with transit_ring(active, addresses, 2.0) as ring:
        with (
            DataKeyReserve(ring, CONTEXT, max_messages=100_000) as keys,
            recorder(tmp_path / "a.tape", keys) as tapes,
        ):
            until(lambda: full(keys))
            before = keys.stats()["generated"]
            active.kill()
            keys.generate(CONTEXT)[0].charge(99_000, 0)
            while keys.stats()["generated"] == before:
                tapes.append(ticks(done, done + 100))
                tapes.flush()
                done += 100
                time.sleep(0.001)
        assert list(range(done)) == recorded(tmp_path, ring)
    assert 2 <= len(list(tmp_path.iterdir()))
