"""Tapes as their users see them: modes, indexing, ranges, following, locks, full disks, interrupts, anchors, blobs."""

import copy
import errno
import functools
import gc
import io
import itertools
import logging
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import tapeseal
from support import ORDER, TICK, NonceLog, child, nonce_log, orders, start_child, ticks
from tapeseal import writer as writer_module

FRAME = 4096
FRAME_TICKS = FRAME // TICK.itemsize

in_one_folder = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test's tape goes."""
    return tmp_path / "day.tape"


@pytest.fixture
def make(path: Path, keyring: Any) -> Callable[..., Path]:
    """Makes a tape of ticks from the pieces that are appended, each flushed."""

    def made(*pieces: np.ndarray, seal: bool = True, **options: Any) -> Path:
        dtype = pieces[0].dtype if pieces else TICK
        tape = tapeseal.open(
            path, "w", keyring=keyring, dtype=dtype, **{"frame_size": FRAME, **options}
        )
        for piece in pieces:
            tape.append(piece)
            tape.flush()
        tape.close(seal=seal)
        return path

    return made


def same(expected: np.ndarray, actual: np.ndarray) -> bool:
    """Whether two arrays hold the same bytes under the same dtype."""
    return bool(expected.dtype == actual.dtype and expected.tobytes() == actual.tobytes())


def read(path: Path, keyring: Any, **options: Any) -> np.ndarray:
    """Return all records of a tape."""
    with tapeseal.open(path, keyring=keyring, **options) as tape:
        return tape[:]


# Modes


def test_write_then_read(path: Path, keyring: Any) -> None:
    """What is appended to a sealed tape is what is read."""
    with tapeseal.open(
        path, "w", keyring=keyring, dtype=ORDER, encryption_context={"desk": "eq-us"}
    ) as tape:
        tape.append(orders(0, 10_000))
        assert len(tape) == 10_000
    with tapeseal.open(path, keyring=keyring) as tape:
        assert same(orders(0, 10_000), tape[:])
        assert (10_000, True, 0) == (len(tape), tape.sealed, tape.torn_bytes)
        assert (ORDER, {"desk": "eq-us"}, "records") == (
            tape.dtype,
            tape.encryption_context,
            tape.kind,
        )
        assert (str(path), 65536, None) == (tape.path, tape.frame_size, tape.index_by)
    assert tape.closed


@pytest.mark.parametrize("mode", ["w", "x", "a"])
def test_writing_modes_make_a_tape(path: Path, keyring: Any, mode: str) -> None:
    """Each mode that writes makes a tape where there is none."""
    with tapeseal.open(path, mode, keyring=keyring, dtype=TICK) as tape:
        tape.append(ticks(0, 5))
    assert same(ticks(0, 5), read(path, keyring))


def test_w_starts_anew(make: Any, keyring: Any) -> None:
    """ "w" takes the place of a tape, with its permissions, under a new key."""
    path = make(ticks(0, 1000))
    before = tapeseal.inspect(path).tape_id
    path.chmod(0o640)
    with tapeseal.open(path, "w", keyring=keyring, dtype=ORDER) as tape:
        tape.append(orders(0, 3))
    assert same(orders(0, 3), read(path, keyring))
    assert before != tapeseal.inspect(path).tape_id
    assert path.stat().st_mode & 0o777 == 0o640


def test_w_replaces_what_a_link_points_to(make: Any, keyring: Any, tmp_path: Path) -> None:
    """ "w" through a symbolic link replaces the file, not the link."""
    path = make(ticks(0, 10))
    link = tmp_path / "link.tape"
    link.symlink_to(path)
    tapeseal.open(link, "w", keyring=keyring, dtype=TICK).close()
    assert link.is_symlink()
    assert len(read(path, keyring)) == 0


def test_w_keeps_the_old_tape_where_it_cannot_start(
    make: Any, keyring: Any, other_keyring: Any
) -> None:
    """A "w" that fails leaves the tape that was there, and no other file."""
    path = make(ticks(0, 10))
    for wrong in (
        {"dtype": object},
        {"dtype": TICK, "frame_size": 1},
        {"dtype": TICK, "index_by": "nothing"},
    ):
        with pytest.raises(ValueError):
            tapeseal.open(path, "w", keyring=keyring, **wrong)
    assert same(ticks(0, 10), read(path, keyring))
    assert [path] == list(path.parent.iterdir())


def test_x_refuses_an_existing_file(path: Path, keyring: Any) -> None:
    """ "x" leaves whatever is there as it is."""
    path.write_bytes(b"something")
    with pytest.raises(FileExistsError):
        tapeseal.open(path, "x", keyring=keyring, dtype=TICK)
    assert path.read_bytes() == b"something"
    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize("seal", [True, False])
def test_a_goes_on(make: Any, keyring: Any, seal: bool) -> None:
    """ "a" goes on with a sealed tape and with an open one."""
    path = make(ticks(0, 700), seal=seal)
    for start in (700, 1000, 1256):
        with tapeseal.open(path, "a", keyring=keyring) as tape:
            assert (start, TICK) == (len(tape), tape.dtype)
            tape.append(ticks(start, start + 300 - start % 100))
            count = len(tape)
        assert same(ticks(0, count), read(path, keyring))
        if count >= 1256:
            break
    assert tapeseal.verify(path, keyring=keyring).state == "sealed"


def test_a_changes_nothing_without_records(make: Any, keyring: Any) -> None:
    """Opening a sealed tape to append and closing it again leaves every byte."""
    path = make(ticks(0, 700), index_by="number")
    before = path.read_bytes()
    with tapeseal.open(path, "a", keyring=keyring) as tape:
        tape.flush(sync=True)
        tape.append(ticks(0, 0))
    assert before == path.read_bytes()


@pytest.mark.parametrize(
    "stated",
    [
        {"dtype": ORDER},
        {"encryption_context": {"desk": "eu"}},
        {"encryption_context": {}},
        {"index_by": "price"},
    ],
)
def test_a_refuses_another_tape_than_stated(
    make: Any, keyring: Any, stated: dict[str, Any]
) -> None:
    """What is stated of an existing tape must be so, or nothing of it is touched."""
    path = make(ticks(0, 700), seal=False, encryption_context={"desk": "us"})
    with open(path, "ab") as file:
        file.write(bytes(100))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="the tape's"):
        tapeseal.open(path, "a", keyring=keyring, **stated)
    with pytest.raises(ValueError, match="the tape's kind"):
        tapeseal.open(path, "ab", keyring=keyring)
    assert before == path.read_bytes()
    tapeseal.open(path, "a", keyring=keyring, dtype=TICK, encryption_context={"desk": "us"}).close()


def test_wrong_calls(path: Path, keyring: Any, make: Any) -> None:
    """Modes that are none, dtypes that are missing or too many, files that are missing."""
    for mode in ("", "rw", "r+", "br", "R", "b", "wx", "rt"):
        with pytest.raises(ValueError, match="mode"):
            tapeseal.open(path, mode, keyring=keyring)
    for mode in ("w", "x", "a"):
        with pytest.raises(ValueError, match="dtype"):
            tapeseal.open(path, mode, keyring=keyring)
        with pytest.raises((ValueError, TypeError)):
            tapeseal.open(path, f"{mode}b", keyring=keyring, dtype=TICK)
    for mode in ("r", "rb"):
        with pytest.raises(FileNotFoundError):
            tapeseal.open(path, mode, keyring=keyring)
    assert list(path.parent.iterdir()) == []
    make(ticks(0, 1))
    with pytest.raises(ValueError, match="'r'"):
        tapeseal.open(path, "rb", keyring=keyring)


@pytest.mark.parametrize("mode", ["r", "w", "a"])
def test_not_regular_files(tmp_path: Path, keyring: Any, mode: str) -> None:
    """A pipe or a directory is no tape, and nobody waits for it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path, Path("/dev/null")):
        with pytest.raises(OSError, match=r"regular|directory"):
            tapeseal.open(place, mode, keyring=keyring, dtype=TICK)
    assert pipe.is_fifo()


def test_missing_directory(tmp_path: Path, keyring: Any) -> None:
    """A tape in a directory that is not there is FileNotFoundError, in every mode."""
    for mode in ("r", "w", "x", "a"):
        with pytest.raises(FileNotFoundError):
            tapeseal.open(tmp_path / "no" / "tape", mode, keyring=keyring, dtype=TICK)


@pytest.mark.parametrize("content", [b"", b"T", b"TAPESEAL", b"hello world" * 1000, bytes(20000)])
@pytest.mark.parametrize("mode", ["r", "a", "rb", "ab"])
def test_not_a_tape(path: Path, keyring: Any, content: bytes, mode: str) -> None:
    """A file of something else is refused and not touched."""
    path.write_bytes(content)
    error = tapeseal.DamagedError if content.startswith(b"TAPESEAL") else tapeseal.NotATapeError
    with pytest.raises(error):
        tapeseal.open(path, mode, keyring=keyring)
    assert content == path.read_bytes()


def test_an_empty_tape(make: Any, keyring: Any) -> None:
    """A tape of no records is one, open and sealed, and grows later."""
    for seal in (False, True):
        path = make(seal=seal)
        with tapeseal.open(path, keyring=keyring) as tape:
            assert (0, seal, 0) == (len(tape), tape.sealed, tape.torn_bytes)
            assert same(np.empty(0, TICK), tape[:])
            assert same(np.empty(0, TICK), tape.between("number", 0, 9))
            assert list(tape) == list(tape.batches()) == []
            for position in (0, -1):
                with pytest.raises(IndexError):
                    tape[position]
        with tapeseal.open(path, "a", keyring=keyring) as more:
            more.append(ticks(0, 3))
        assert same(ticks(0, 3), read(path, keyring))


# Appending


STREAM = ticks(0, 40_000)
PIECES = st.lists(
    st.tuples(
        st.one_of(
            st.integers(0, 3),
            st.sampled_from(
                [FRAME_TICKS - 1, FRAME_TICKS, FRAME_TICKS + 1, 2 * FRAME_TICKS, 10_000]
            ),
            st.integers(0, 600),
        ),
        st.sampled_from(["append", "append", "flush", "reopen", "seal"]),
    ),
    max_size=12,
)


@in_one_folder
@given(
    pieces=PIECES,
    index_by=st.sampled_from([None, "number", "price"]),
    threads=st.sampled_from([1, 2]),
)
def test_any_appends_make_the_stream(
    path: Path, keyring: Any, pieces: list[tuple[int, str]], index_by: str | None, threads: int
) -> None:
    """However a stream is cut into appends, flushes and openings, the tape holds it, and verify() agrees."""
    with nonce_log():
        tape = tapeseal.open(
            path,
            "w",
            keyring=keyring,
            dtype=TICK,
            frame_size=FRAME,
            index_by=index_by,
            threads=threads,
        )
        done = 0
        for count, then in pieces:
            count = min(count, len(STREAM) - done)
            tape.append(STREAM[done : done + count])
            done += count
            assert len(tape) == done
            if then != "append":
                tape.flush()
                assert same(STREAM[:done], read(path, keyring))
            if then in ("reopen", "seal"):
                tape.close(seal=then == "seal")
                tape = tapeseal.open(path, "a", keyring=keyring, threads=threads)
        anchor = tape.close()
    found = tapeseal.verify(path, keyring=keyring, anchor=anchor)
    assert ("sealed", [], done, anchor) == (found.state, found.problems, found.items, found.anchor)
    assert same(STREAM[:done], read(path, keyring))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_append(path: Path, keyring: Any, threads: int) -> None:
    """An append of many groups of frames, from several threads too, is the stream."""
    stream = orders(0, 200_000)
    with tapeseal.open(path, "w", keyring=keyring, dtype=ORDER, threads=threads) as tape:
        for start, stop in ((0, 7), (7, 150_001), (150_001, 200_000)):
            tape.append(stream[start:stop])
    for readers in (1, 3):
        assert same(stream, read(path, keyring, threads=readers))


def test_what_append_takes(path: Path, keyring: Any) -> None:
    """Arrays of any memory layout, single records, and subclasses are taken; the caller's array stays as it is."""
    stream = ticks(0, 100)
    backwards = stream[::-1].copy()
    read_only = stream[20:30].copy()
    read_only.flags.writeable = False
    with tapeseal.open(path, "w", keyring=keyring, dtype=TICK) as tape:
        tape.append(stream[:10])
        tape.append(np.repeat(stream[10:20], 2)[::2])
        tape.append(read_only)
        tape.append(backwards[::-1][30:40])
        tape.append(stream[40])
        tape.append(stream[41:42].reshape(()))
        tape.append(stream[42:50].view(np.recarray))
        tape.append(np.asfortranarray(stream[50:60]))
        tape.append(stream[60:100].astype(np.dtype(TICK.descr)))
    assert same(stream, read(path, keyring))
    assert same(ticks(0, 100), stream)


def test_what_append_refuses(path: Path, keyring: Any) -> None:
    """Another dtype is TypeError, more dimensions ValueError; the tape goes on."""
    stream = ticks(0, 10)
    with tapeseal.open(path, "w", keyring=keyring, dtype=TICK) as tape:
        for wrong in (
            orders(0, 3), stream["number"], [1, 2], None, b"bytes", stream.astype(TICK.newbyteorder(">")),
            stream[["number"]], stream.astype([("a", "<u8"), ("b", "<f8")]),
        ):  # fmt: skip
            with pytest.raises(TypeError, match="dtype"):
                tape.append(wrong)
        with pytest.raises(ValueError, match="one-dimensional"):
            tape.append(stream.reshape(2, 5))
        tape.append(stream)
    assert same(stream, read(path, keyring))


def test_the_callers_array_can_change_after_append(path: Path, keyring: Any) -> None:
    """append() keeps nothing of the array it was given."""
    with tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME) as tape:
        for start in range(0, 1000, 100):
            records = ticks(start, start + 100)
            tape.append(records)
            records["number"] = 0
    assert same(ticks(0, 1000), read(path, keyring))


def test_flush_makes_readable(path: Path, keyring: Any) -> None:
    """What was flushed can be read, and nothing that was not unless its frame was full."""
    with tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME) as tape:
        tape.append(ticks(0, 5))
        assert len(read(path, keyring)) == 0
        tape.flush()
        assert same(ticks(0, 5), read(path, keyring))
        tape.append(ticks(5, 5 + FRAME_TICKS))
        assert same(ticks(0, 5 + FRAME_TICKS), read(path, keyring))
        size = tape.size
        tape.flush(sync=True)
        assert size == tape.size == path.stat().st_size


def test_closed_tapes(make: Any, keyring: Any) -> None:
    """A closed tape answers what it was and refuses the rest; closing again gives the same anchor."""
    path = make(ticks(0, 300))
    tape = tapeseal.open(path, "a", keyring=keyring)
    tape.append(ticks(300, 310))
    anchor = tape.close()
    assert anchor == tape.close() == tape.close(seal=False) == tape.anchor
    for use in (lambda: tape.append(ticks(0, 1)), tape.flush):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert (310, True) == (len(tape), tape.closed)
    back = tapeseal.open(path, keyring=keyring)
    back.close()
    back.close()
    for use in (
        lambda: back[0], lambda: back[:5], lambda: back[::2], lambda: back.between("number", 1, 2),
        lambda: next(back.batches()), lambda: next(back.follow()), lambda: list(back),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="closed"):
            use()


def test_an_exception_leaves_the_tape_open(path: Path, keyring: Any) -> None:
    """An exception inside `with` keeps the records but does not seal."""
    tape = tapeseal.open(path, "w", keyring=keyring, dtype=TICK)

    def record() -> None:
        with tape:
            tape.append(ticks(0, 5))
            raise KeyError

    with pytest.raises(KeyError):
        record()
    assert tape.closed
    with tapeseal.open(path, keyring=keyring) as back:
        assert (False, 0) == (back.sealed, back.torn_bytes)
        assert same(ticks(0, 5), back[:])


def test_a_dropped_writer_loses_only_what_was_not_flushed(path: Path, keyring: Any) -> None:
    """A writer that nobody closes gives up its lock; the tape is as after a crash."""
    tape = tapeseal.open(path, "w", keyring=keyring, dtype=TICK)
    tape.append(ticks(0, 5))
    tape.flush()
    tape.append(ticks(5, 9))
    del tape
    gc.collect()
    with tapeseal.open(path, "a", keyring=keyring) as again:
        assert len(again) == 5


def test_open_tapes_are_not_copied(make: Any, keyring: Any) -> None:
    """Readers and writers are neither pickled nor copied."""
    path = make(ticks(0, 5))
    with (
        tapeseal.open(path, keyring=keyring) as back,
        tapeseal.open(path, "a", keyring=keyring) as tape,
    ):
        for held in (back, tape):
            for leak in (copy.copy, copy.deepcopy, pickle.dumps):
                with pytest.raises(TypeError, match="copied"):
                    leak(held)


# Indexing


@pytest.fixture(scope="module")
def odd_tape(keyring: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tape of 2000 ticks in frames of many sizes and several segments."""
    path = tmp_path_factory.mktemp("odd") / "odd.tape"
    rng = random.Random(1)
    done = 0
    while done < 2000:
        with tapeseal.open(path, "a", keyring=keyring, dtype=TICK, frame_size=FRAME) as tape:
            for _ in range(rng.randrange(8)):
                count = min(rng.choice([1, 2, 30, 30, 30, 256, 300]), 2000 - done)
                tape.append(ticks(done, done + count))
                tape.flush()
                done += count
    with tapeseal.open(path, keyring=keyring) as back:
        assert back.anchor.segments > 3
        yield back


EDGES = st.one_of(
    st.none(), st.integers(-2100, 2100), st.sampled_from([0, 1, 255, 256, 257, 1999, 2000, 2001])
)


@given(
    EDGES,
    EDGES,
    st.one_of(st.none(), st.integers(-300, 300).filter(bool), st.sampled_from([-1, 1, 2, -2])),
)
@example(None, None, -1)
@example(-1, -2001, -1)
@example(2000, None, None)
def test_slices_are_numpys(
    odd_tape: Any, start: int | None, stop: int | None, step: int | None
) -> None:
    """Every slice of a tape is that slice of the array, and the caller's own."""
    found = odd_tape[start:stop:step]
    assert same(ticks(0, 2000)[start:stop:step], found)
    assert found.flags.writeable


@given(st.one_of(st.integers(-2000, 1999), st.integers(0, 1999).map(np.int32), st.booleans()))
def test_records_are_numpys(odd_tape: Any, position: Any) -> None:
    """Every record of a tape is that record of the array."""
    found = odd_tape[position]
    assert type(found) is np.void
    assert ticks(0, 2000)[int(position)] == found


@pytest.mark.parametrize("position", [2000, -2001, 1 << 70, -(1 << 70)])
def test_no_such_record(odd_tape: Any, position: int) -> None:
    """A record outside the tape is IndexError."""
    with pytest.raises(IndexError, match="2000"):
        odd_tape[position]


@pytest.mark.parametrize("position", [1.0, "number", None, ..., (0, 1), [0, 1], np.arange(3)])
def test_no_such_index(odd_tape: Any, position: Any) -> None:
    """What is neither an integer nor a slice is TypeError."""
    with pytest.raises(TypeError):
        odd_tape[position]


def test_a_zero_step_is_refused(odd_tape: Any) -> None:
    """A step of zero is ValueError, as everywhere."""
    with pytest.raises(ValueError, match="zero"):
        odd_tape[::0]


@pytest.mark.parametrize("size", [1, 7, 256, 1999, 2000, 2001, 65536])
def test_batches(odd_tape: Any, size: int) -> None:
    """Batches have the size asked for, the last one the rest, and are the tape together."""
    batches = list(odd_tape.batches(size))
    assert [min(size, 2000 - start) for start in range(0, 2000, size)] == [
        len(batch) for batch in batches
    ]
    assert same(ticks(0, 2000), np.concatenate(batches))


def test_as_a_sequence(odd_tape: Any) -> None:
    """A tape iterates, has a length and a shape, and becomes an array."""
    assert ticks(0, 2000).tolist() == [record.item() for record in odd_tape]
    assert same(ticks(0, 2000), np.asarray(odd_tape))
    assert (2000, (2000,)) == (len(odd_tape), odd_tape.shape)
    for size in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            next(odd_tape.batches(size))
    with pytest.raises(ValueError, match="copy"):
        np.array(odd_tape, copy=False)


# Ranges of a field


RANGE_TYPES = ["<i8", ">i4", "u1", "<u8", "<f8", ">f4", "<f2", "<M8[ns]", ">M8[D]", "<m8[us]"]


def values_of(kind: np.dtype) -> st.SearchStrategy:
    """Values of a field type, few enough to collide, the special ones among them."""
    if kind.kind in "mM":
        unit = np.datetime_data(kind)[0]
        scalar = np.timedelta64 if kind.kind == "m" else np.datetime64
        return st.one_of(
            st.integers(-20, 20).map(lambda n: scalar(n, unit)), st.just(scalar("NaT"))
        )
    if kind.kind == "f":
        special = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0])
        return st.one_of(st.integers(-20, 20).map(lambda n: n / 2), special).map(kind.type)
    low, high = (0, 20) if kind.kind == "u" else (-20, 20)
    limits = st.sampled_from([np.iinfo(kind).min, np.iinfo(kind).max])
    return st.one_of(st.integers(low, high), limits).map(kind.type)


@pytest.mark.parametrize("kind", RANGE_TYPES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(data=st.data())
def test_between_is_a_mask(path: Path, keyring: Any, kind: str, data: st.DataObject) -> None:
    """between() is what a mask over all records gives: with index and without, sealed and open, NaN and NaT too."""
    field = np.dtype(kind)
    # One byte of padding in front, so that the field is not aligned.
    dtype = np.dtype([("pad", "u1"), ("at", field), ("fill", "V500")])
    values = data.draw(st.lists(values_of(field), max_size=60))
    start, end = data.draw(values_of(field)), data.draw(values_of(field))
    cuts = data.draw(st.lists(st.integers(1, 20), max_size=6))
    records = np.zeros(len(values), dtype)
    records["at"] = np.array(values, field)
    records["pad"] = np.arange(len(values))
    with np.errstate(invalid="ignore"):
        expected = records[(records["at"] >= start) & (records["at"] < end)]
    for index_by in ("at", None):
        tape = tapeseal.open(
            path, "w", keyring=keyring, dtype=dtype, frame_size=FRAME, index_by=index_by
        )
        done = 0
        for cut in [*cuts, len(values)]:
            tape.append(records[done : done + cut])
            tape.flush()
            done += cut
        tape.close(seal=False)
        with tapeseal.open(path, keyring=keyring) as back:
            assert same(expected, back.between("at", start, end))
        tapeseal.open(path, "a", keyring=keyring).close()
        with tapeseal.open(path, keyring=keyring) as back:
            assert back.sealed
            assert same(expected, back.between("at", start, end))
        assert tapeseal.verify(path, keyring=keyring).problems == []


def test_between_opens_only_frames_in_range(make: Any, keyring: Any) -> None:
    """With an index a damaged frame outside the range does not matter; without one it does."""
    for index_by, found in (("number", True), (None, False)):
        path = make(ticks(0, 2560), index_by=index_by)
        data = bytearray(path.read_bytes())
        data[2 * 4096 + 112 + 5 * (FRAME + 40) + 100] ^= 1
        path.write_bytes(data)
        with tapeseal.open(path, keyring=keyring) as tape:
            for low, high in ((0, 1280), (1536, 2560), (200, 300)):
                if found:
                    assert same(ticks(low, high), tape.between("number", low, high))
                else:
                    with pytest.raises(tapeseal.DamagedError):
                        tape.between("number", low, high)
            with pytest.raises(tapeseal.DamagedError):
                tape.between("number", 1279, 1281)


def test_between_takes_times(path: Path, keyring: Any) -> None:
    """Times may be given as anything numpy takes as one."""
    dtype = np.dtype([("at", "<M8[ns]"), ("n", "<i4")])
    records = np.zeros(1000, dtype)
    records["at"] = np.datetime64("2026-11-23T14:30:00", "ns") + np.arange(1000) * np.timedelta64(
        1, "s"
    )
    with tapeseal.open(path, "w", keyring=keyring, dtype=dtype, index_by="at") as tape:
        tape.append(records)
    with tapeseal.open(path, keyring=keyring) as tape:
        for start, end in (
            ("2026-11-23T14:31", "2026-11-23T14:32"),
            (np.datetime64("2026-11-23T14:31:00"), np.datetime64("2026-11-23T14:32:00.000", "ms")),
            (records["at"][60], records["at"][120]),
            (
                records["at"][60].item() // 1 and np.datetime64(records["at"][60]),
                "2026-11-23T14:32",
            ),
        ):
            assert same(records[60:120], tape.between("at", start, end))


def test_between_without_such_a_field(make: Any, keyring: Any) -> None:
    """A field that is not there is ValueError."""
    with tapeseal.open(make(ticks(0, 5)), keyring=keyring) as tape:
        for field in ("nothing", "", None, 0):
            with pytest.raises(ValueError, match="no field"):
                tape.between(field, 0, 1)


@pytest.mark.parametrize("index_by", ["nothing", "text", "pair", "flag", "sub", "", 3])
def test_fields_that_cannot_be_indexed(path: Path, keyring: Any, index_by: Any) -> None:
    """index_by names a scalar number or time."""
    dtype = [
        ("text", "S4"),
        ("pair", "<i4", (2,)),
        ("flag", "?"),
        ("sub", [("n", "<i4")]),
        ("n", "<i4"),
    ]
    with pytest.raises(ValueError, match="index_by"):
        tapeseal.open(path, "w", keyring=keyring, dtype=dtype, index_by=index_by)
    assert not path.exists()


# Record types


LEAVES = st.sampled_from(
    ["?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">u8", "<f2", ">f4", "<f8", "<c8", ">c16", "S1", "S7", "<U3",
     ">U2", "V1", "V5", "<M8[ns]", ">M8[D]", "<M8", "<m8[25us]", ">m8[h]"]
)  # fmt: skip
ODD_NAMES = ["a", "b", "price", "ts event", "f0", "é", "日", "{", '"', "\\"]
NAMES = st.one_of(
    st.sampled_from(ODD_NAMES), st.text(min_size=1, max_size=3).filter(str.isprintable)
)


@st.composite
def structures(draw: Any, depth: int = 3) -> np.dtype:
    """Structured dtypes: nested, with sub-arrays, with padding between, before and after the fields."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    formats, offsets, offset = [], [], 0
    for _ in names:
        kind = np.dtype(draw(st.one_of(LEAVES, structures(depth - 1)) if depth > 1 else LEAVES))
        shape = draw(
            st.one_of(st.just(()), st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple))
        )
        kind = np.dtype((kind, shape)) if shape else kind
        offset += draw(st.sampled_from([0, 0, 0, 1, 3]))
        formats.append(kind)
        offsets.append(offset)
        offset += kind.itemsize
    size = offset + draw(st.sampled_from([0, 0, 2]))
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=100,
)
@given(
    dtype=st.one_of(structures(), LEAVES.map(np.dtype)),
    count=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_dtypes_come_back(path: Path, keyring: Any, dtype: np.dtype, count: int, seed: int) -> None:
    """A tape's dtype is exactly the one it was made with, and so are the records' bytes where they mean something."""
    data = random.Random(seed).randbytes(count * dtype.itemsize)
    records = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
    with tapeseal.open(path, "w", keyring=keyring, dtype=dtype, frame_size=1 << 16) as tape:
        tape.append(records[: count // 2])
        tape.append(records[count // 2 :])
    with tapeseal.open(path, keyring=keyring) as back:
        assert (dtype, dtype.itemsize, dtype.fields) == (
            back.dtype,
            back.dtype.itemsize,
            back.dtype.fields,
        )
        assert data == back[:].tobytes()
        assert data == back[::-1][::-1].tobytes()


def test_aligned_structures_come_back(path: Path, keyring: Any) -> None:
    """A C structure's layout, with its compiler's padding, comes back."""
    dtype = np.dtype([("flag", "u1"), ("price", "<f8"), ("size", "<u2")], align=True)
    records = np.zeros(10, dtype)
    records["price"] = np.arange(10)
    with tapeseal.open(path, "w", keyring=keyring, dtype=dtype) as tape:
        tape.append(records)
    found = read(path, keyring)
    assert (24, {name: field[:2] for name, field in dtype.fields.items()}) == (
        found.dtype.itemsize,
        {name: field[:2] for name, field in found.dtype.fields.items()},
    )
    assert (records == found).all()


@pytest.mark.parametrize(
    "dtype",
    [
        object,
        [("a", object)],
        [("a", [("b", "O", (2,))])],
        "V0",
        "S0",
        "U",
        [],
        [("a", "<i4", (0,))],
        np.dtype(("<i4", (3,))),
        np.longdouble,
        np.clongdouble,
        [(("title", "a"), "<i4")],
        {"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [0, 2]},
        {"names": ["a", "b"], "formats": ["<i4", "<i4"], "offsets": [4, 0]},
        f"V{(1 << 20) + 1}",
        [("a", "V1048576"), ("b", "u1")],
        [(f"f{n}", "u1") for n in range(1025)],
    ],
)
def test_dtypes_that_cannot_be_stored(path: Path, keyring: Any, dtype: Any) -> None:
    """Objects, titles, overlaps, sizes of zero or over the limits are refused before there is a file."""
    with pytest.raises((ValueError, TypeError)):
        tapeseal.open(path, "w", keyring=keyring, dtype=dtype, frame_size=1 << 26)
    assert not path.exists()


@pytest.mark.parametrize("dtype", ["<i4", "S5", "<M8[s]", "?", "V16"])
def test_plain_dtypes(path: Path, keyring: Any, dtype: str) -> None:
    """Records need not be structures."""
    records = np.frombuffer(bytes(range(80)) * 4, dtype)
    with tapeseal.open(path, "w", keyring=keyring, dtype=dtype) as tape:
        tape.append(records)
    with tapeseal.open(path, keyring=keyring) as back:
        assert same(records, back[:])
        assert same(records[::3], back[::3])
        with pytest.raises(ValueError, match="no field"):
            back.between("f0", 0, 1)


@pytest.mark.parametrize("frame_size", [4096, 4097, 65536, 1 << 26])
def test_frame_sizes(path: Path, keyring: Any, frame_size: int) -> None:
    """Frames hold as many whole records as fit their size."""
    stream = orders(0, 5000)
    with tapeseal.open(path, "w", keyring=keyring, dtype=ORDER, frame_size=frame_size) as tape:
        tape.append(stream)
    assert same(stream, read(path, keyring))
    assert -(-5000 // (frame_size // 56)) == tapeseal.inspect(path).frames


@pytest.mark.parametrize(
    ("frame_size", "dtype"),
    [(4095, TICK), ((1 << 26) + 1, TICK), (0, TICK), (4096, "V4097"), (4096.0, TICK), (None, TICK)],
)
def test_frame_sizes_that_cannot_be(path: Path, keyring: Any, frame_size: Any, dtype: Any) -> None:
    """A frame size outside the limits, or smaller than a record, is refused."""
    with pytest.raises((ValueError, TypeError)):
        tapeseal.open(path, "w", keyring=keyring, dtype=dtype, frame_size=frame_size)
    assert not path.exists()


# Tapes of bytes


@in_one_folder
@given(
    pieces=st.lists(
        st.one_of(st.integers(0, 50), st.sampled_from([4095, 4096, 4097, 20_000])), max_size=8
    ),
    reads=st.lists(
        st.tuples(
            st.sampled_from(["read", "seek", "seek end", "seek cur"]), st.integers(0, 30_000)
        ),
        max_size=12,
    ),
)
def test_bytes_are_a_file(
    path: Path, keyring: Any, pieces: list[int], reads: list[tuple[str, int]]
) -> None:
    """A tape of bytes reads and seeks as the same bytes in memory do."""
    rng = random.Random(3)
    model = io.BytesIO()
    with tapeseal.open(path, "wb", keyring=keyring, frame_size=FRAME) as file:
        for size in pieces:
            data = rng.randbytes(size)
            assert file.write(data) == model.write(data)
            assert file.tell() == model.tell()
            if size % 3 == 0:
                file.flush()
    model.seek(0)
    with tapeseal.open(path, "rb", keyring=keyring) as file:
        assert file.raw.tape.sealed
        for what, number in reads:
            if what == "read":
                assert model.read(number) == file.read(number)
            elif what == "seek":
                assert model.seek(number) == file.seek(number)
            elif what == "seek end":
                number = -min(number, len(model.getvalue()))
                assert model.seek(number, os.SEEK_END) == file.seek(number, os.SEEK_END)
            else:
                number = max(number - 15_000, -model.tell())
                assert model.seek(number + model.tell()) == file.seek(number, os.SEEK_CUR)
            assert model.tell() == file.tell()
        assert model.read() == file.read()


def test_bytes_go_on(path: Path, keyring: Any) -> None:
    """ "ab" goes on, "xb" refuses, "wb" starts anew; lines and text work as on any file."""
    with tapeseal.open(path, "ab", keyring=keyring) as file:
        file.write(b"first\nsecond\n")
    with pytest.raises(FileExistsError):
        tapeseal.open(path, "xb", keyring=keyring)
    with tapeseal.open(path, "ab", keyring=keyring) as file:
        assert file.tell() == 13
        file.writelines([b"third", memoryview(b"\n"), bytearray(b"")])
    with io.TextIOWrapper(tapeseal.open(path, "rb", keyring=keyring)) as text:
        assert ["first\n", "second\n", "third\n"] == list(text)
    with tapeseal.open(path, "wb", keyring=keyring) as file:
        assert (True, False, False) == (file.writable(), file.readable(), file.seekable())
    with tapeseal.open(path, "rb", keyring=keyring) as file:
        assert file.read() == b""


def test_byte_writers_misused(path: Path, keyring: Any) -> None:
    """What is no contiguous buffer is refused, and so is reading, seeking and writing after close."""
    file = tapeseal.open(path, "wb", keyring=keyring)
    for wrong, error in (
        ("text", TypeError),
        (None, TypeError),
        (memoryview(b"abcd")[::2], BufferError),
    ):
        with pytest.raises(error):
            file.write(wrong)
    for use in (file.read, lambda: file.seek(0), file.truncate, file.fileno):
        with pytest.raises(OSError):
            use()
    assert file.write(np.arange(3, dtype="<u2")) == 6
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"x")
    with tapeseal.open(path, "rb", keyring=keyring) as back:
        assert back.read() == b"\0\0\1\0\2\0"
        with pytest.raises(ValueError, match="seek"):
            back.raw.seek(-1)
        with pytest.raises(io.UnsupportedOperation):
            back.write(b"x")
    with pytest.raises(ValueError, match="closed"):
        back.read()


# Following


def collect(batches: Iterator[np.ndarray]) -> np.ndarray:
    """Return all records that an iterator gives."""
    return np.concatenate([np.empty(0, TICK), *batches])


def test_follow_a_thread(path: Path, keyring: Any) -> None:
    """A follower gets every record of a writer in another thread, in order and once, and ends with the seal."""
    rng = random.Random(5)
    tape = tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME)

    def write() -> None:
        done = 0
        with tape:
            while done < 20_000:
                count = rng.choice([1, 10, 255, 256, 1000])
                tape.append(ticks(done, done + count))
                done += count
                if rng.random() < 0.3:
                    tape.flush()
                if rng.random() < 0.2:
                    time.sleep(0.001)

    with tapeseal.open(path, keyring=keyring) as back:
        thread = threading.Thread(target=write)
        thread.start()
        found = collect(back.follow(poll_seconds=0.001))
        thread.join()
        assert back.sealed
    assert same(ticks(0, len(tape)), found)


def test_follow_a_process_that_comes_and_goes(path: Path, keyring: Any, key_file: str) -> None:
    """A follower goes on over the segments of a writer that is killed and started again."""
    code = """
        import os, sys, tapeseal
        from support import TICK, ticks
        keyring = tapeseal.keyring("local:" + sys.argv[1])
        tape = tapeseal.open(sys.argv[2], "a", keyring=keyring, dtype=TICK, frame_size=4096)
        for _ in range(20):
            tape.append(ticks(len(tape), len(tape) + 77))
            tape.flush()
        if sys.argv[3] == "die":
            tape.append(ticks(len(tape), len(tape) + 100))
            os.kill(os.getpid(), 9)
        tape.close()
    """
    tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME).close(seal=False)
    codes = []

    def write() -> None:
        codes.extend(child(code, key_file, path, end).returncode for end in ("die", "die", "close"))

    thread = threading.Thread(target=write)
    with tapeseal.open(path, keyring=keyring) as back:
        thread.start()
        found = collect(back.follow())
        thread.join()
    assert [-signal.SIGKILL, -signal.SIGKILL, 0] == codes
    assert same(ticks(0, 3 * 20 * 77), found)


def test_follow_ends_when_idle(make: Any, keyring: Any) -> None:
    """idle_seconds ends a follower of a tape that nobody writes; what is there is delivered first."""
    path = make(ticks(0, 300), ticks(300, 301), seal=False)
    with tapeseal.open(path, keyring=keyring) as back:
        assert same(ticks(0, 301), collect(back.follow(poll_seconds=0.001, idle_seconds=0.01)))
        assert not back.sealed


def test_follow_a_sealed_tape(make: Any, keyring: Any) -> None:
    """A sealed tape is delivered and that is all; following twice gives it twice."""
    with tapeseal.open(make(ticks(0, 300)), keyring=keyring) as back:
        for _ in range(2):
            assert same(ticks(0, 300), collect(back.follow()))


def test_follow_a_torn_tail(make: Any, keyring: Any) -> None:
    """A frame of which a part is there is waited for, and delivered when the rest has come."""
    path = make(ticks(0, 300), seal=False)
    whole = path.read_bytes()
    last = 40 + (300 - FRAME_TICKS) * 16
    path.write_bytes(whole[: -last + 1])
    with tapeseal.open(path, keyring=keyring) as back:
        follower = back.follow(poll_seconds=0, idle_seconds=0)
        assert same(ticks(0, 256), next(follower))
        for size in range(len(whole) - last + 2, len(whole), 97):
            path.write_bytes(whole[:size])
            assert list(back.follow(poll_seconds=0, idle_seconds=0)) != []
            assert len(back) == 256
            assert size - (len(whole) - last) == back.torn_bytes
        path.write_bytes(whole)
        assert same(ticks(0, 300), collect(back.follow(poll_seconds=0, idle_seconds=0)))


@pytest.mark.parametrize("left", [0, 8192, 8192 + 112, -1, -45])
def test_follow_a_file_that_shrinks(make: Any, keyring: Any, left: int) -> None:
    """A file cut below what was delivered is TapeChangedError."""
    path = make(ticks(0, 300), seal=False)
    with tapeseal.open(path, keyring=keyring) as back:
        follower = back.follow(poll_seconds=0)
        assert same(ticks(0, 300), next(follower))
        os.truncate(path, left if left >= 0 else path.stat().st_size + left)
        with pytest.raises(tapeseal.TapeChangedError):
            next(follower)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Have this process write no file beyond `size` bytes: a write to there is short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


GROUP_TICKS = writer_module.GROUP_SIZE // (FRAME + 40) * FRAME_TICKS


@pytest.mark.parametrize("after", [1, 20, 300, 3 * GROUP_TICKS])
@pytest.mark.parametrize("seal", [True, False])
def test_follow_a_writer_that_retracts(path: Path, keyring: Any, after: int, seal: bool) -> None:
    """Where a writer must cut back frames that a follower had seen, the follower is told, however long the tape is."""
    tape = tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME, threads=1)
    tape.append(ticks(0, 10))
    tape.flush()
    with tapeseal.open(path, keyring=keyring) as back:
        follower = back.follow(poll_seconds=0)
        assert same(ticks(0, 10), next(follower))
        seen = []

        def hook(commitment: bytes, first: int, frames: int) -> None:
            if first > 1:
                seen.append(next(follower))

        writer_module.seal_hook = hook
        try:
            with (
                file_size_limit(path.stat().st_size + writer_module.GROUP_SIZE + 5000),
                pytest.raises(OSError),
            ):
                tape.append(ticks(10, 10 + 2 * GROUP_TICKS))
        finally:
            writer_module.seal_hook = None
        assert len(tape) == 10
        assert [GROUP_TICKS] == [len(batch) for batch in seen]
        tape.append(ticks(10, 10 + after))
        tape.close(seal=seal)
        with pytest.raises(tapeseal.TapeChangedError):
            next(follower)
    assert same(ticks(0, 10 + after), read(path, keyring))


def test_follow_past_what_it_had_not_seen(path: Path, keyring: Any) -> None:
    """A writer that cuts back what no follower had seen disturbs none."""
    tape = tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME)
    with tapeseal.open(path, keyring=keyring) as back:
        done = 0
        for _ in range(5):
            tape.append(ticks(done, done + 100))
            tape.flush()
            done += 100
            assert len(collect(back.follow(poll_seconds=0, idle_seconds=0))) == done
            for room in (100, 112, 150, 4000):
                with file_size_limit(path.stat().st_size + room), pytest.raises(OSError):
                    tape.append(ticks(done, done + 5000))
                back._refresh()
                assert len(back) == done
        tape.append(ticks(done, done + 5000))
        tape.close()
        assert same(ticks(0, done + 5000), collect(back.follow()))


def test_a_lone_segment_header_may_be_replaced(make: Any, keyring: Any) -> None:
    """A segment of which a follower saw nothing but the header may be cut and begun anew."""
    path = make(ticks(0, 10), seal=False)
    before = path.read_bytes()
    heads = []
    for _ in range(2):
        path.write_bytes(before)
        with tapeseal.open(path, "a", keyring=keyring) as tape:
            tape.append(ticks(10, 30))
            tape.flush()
            heads.append(path.read_bytes())
    path.write_bytes(heads[0][: len(before) + 112])
    with tapeseal.open(path, keyring=keyring) as back:
        assert len(collect(back.follow(poll_seconds=0, idle_seconds=0))) == 10
        path.write_bytes(heads[1])
        assert same(ticks(0, 30), collect(back.follow(poll_seconds=0, idle_seconds=0)))


@pytest.mark.parametrize(
    ("seed", "rounds"), [(0, 40), *(pytest.param(n, 150, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_readers_never_mind_a_writer(
    path: Path, keyring: Any, key_file: str, seed: int, rounds: int
) -> None:
    """Whoever opens a tape that is sealed, resumed and appended to at that moment gets a prefix of the stream."""
    code = """
        import random, sys, time, tapeseal
        from support import TICK, ticks
        keyring = tapeseal.keyring("local:" + sys.argv[1])
        rng = random.Random(int(sys.argv[3]))
        for _ in range(int(sys.argv[4])):
            with tapeseal.open(sys.argv[2], "a", keyring=keyring) as tape:
                for _ in range(rng.randrange(3)):
                    tape.append(ticks(len(tape), len(tape) + rng.choice([1, 100, 300, 5000])))
                    tape.flush()
                if rng.random() < 0.2:
                    tape.close(seal=False)
    """
    tapeseal.open(
        path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME, index_by="number"
    ).close()
    process = start_child(code, key_file, path, seed, rounds)
    seen = 0
    while process.poll() is None:
        with tapeseal.open(path, keyring=keyring) as back:
            count = len(back)
            assert count >= seen
            seen = count
            assert same(ticks(max(0, count - 300), count), back[max(0, count - 300) :])
    process.communicate()
    assert process.returncode == 0
    assert tapeseal.verify(path, keyring=keyring).ok


# Locks


def test_one_writer_alone(make: Any, keyring: Any) -> None:
    """A second writer is refused, in this process and in another, whatever its mode; then it is let in."""
    path = make(ticks(0, 5))
    other = """
        import sys, tapeseal
        from support import TICK
        try:
            tapeseal.open(sys.argv[2], sys.argv[3], keyring=tapeseal.keyring("local:" + sys.argv[1]), dtype=TICK)
        except tapeseal.TapeLockedError as error:
            print("locked")
    """
    with tapeseal.open(path, "a", keyring=keyring) as tape:
        for mode in ("a", "w"):
            with pytest.raises(tapeseal.TapeLockedError):
                tapeseal.open(path, mode, keyring=keyring, dtype=TICK)
            assert child(other, keyring.path, path, mode).stdout == "locked\n"
        assert same(ticks(0, 5), read(path, keyring))
        tape.append(ticks(5, 9))
    with tapeseal.open(path, "a", keyring=keyring) as tape:
        tape.append(ticks(9, 12))
    assert same(ticks(0, 12), read(path, keyring))
    assert issubclass(tapeseal.TapeLockedError, BlockingIOError)


@pytest.mark.parametrize("mode", ["w", "x", "wb"])
def test_a_new_tape_is_locked_from_the_start(path: Path, keyring: Any, mode: str) -> None:
    """Nobody gets between making a tape and writing it."""
    options = {} if mode == "wb" else {"dtype": TICK}
    with (
        tapeseal.open(path, mode, keyring=keyring, **options),
        pytest.raises(tapeseal.TapeLockedError),
    ):
        tapeseal.open(path, "ab" if mode == "wb" else "a", keyring=keyring)


def test_a_fork_does_not_keep_the_lock(path: Path, keyring: Any) -> None:
    """When the writer closes, the next one gets the lock, though a forked child still has the file open."""
    done = child(
        """
        import os, sys, warnings, tapeseal
        from support import TICK, ticks
        warnings.simplefilter("ignore", DeprecationWarning)
        keyring = tapeseal.keyring("local:" + sys.argv[1])
        tape = tapeseal.open(sys.argv[2], "w", keyring=keyring, dtype=TICK)
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(into)
            os.read(out, 1)
            os._exit(0)
        os.close(out)
        tape.append(ticks(0, 3))
        tape.close()
        with tapeseal.open(sys.argv[2], "a", keyring=keyring) as tape:
            tape.append(ticks(3, 5))
        os.close(into)
        os.waitpid(pid, 0)
        print(len(tape))
        """,
        keyring.path,
        path,
    )
    assert ("5\n", "") == (done.stdout, done.stderr)


def test_a_dropped_fork_does_not_free_the_lock(path: Path, keyring: Any) -> None:
    """A child that drops its parent's writer leaves the parent's lock in place."""
    done = child(
        """
        import os, sys, warnings, tapeseal
        from support import TICK, ticks
        warnings.simplefilter("ignore", DeprecationWarning)
        keyring = tapeseal.keyring("local:" + sys.argv[1])
        tape = tapeseal.open(sys.argv[2], "w", keyring=keyring, dtype=TICK)
        if os.fork() == 0:
            del tape
            sys.exit()
        os.wait()
        try:
            tapeseal.open(sys.argv[2], "a", keyring=keyring)
        except tapeseal.TapeLockedError:
            print("locked")
        tape.append(ticks(0, 3))
        tape.close()
        """,
        keyring.path,
        path,
    )
    assert ("locked\n", "") == (done.stdout, done.stderr)


@pytest.mark.slow
def test_many_writers_and_copies_lose_nothing(path: Path, keyring: Any, key_file: str) -> None:
    """Writers that contend for a tape while a rewrap puts copies in its place lose no record that was flushed."""
    tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME).close(seal=False)
    code = """
        import random, sys, time, tapeseal
        from support import TICK, ticks
        keyring = tapeseal.keyring("local:" + sys.argv[1])
        rng = random.Random(int(sys.argv[3]))
        flushed = 0
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                with tapeseal.open(sys.argv[2], "a", keyring=keyring) as tape:
                    tape.append(ticks(len(tape), len(tape) + 1))
                    tape.flush()
                    flushed += 1
                    if rng.random() < 0.8:
                        tape.close(seal=False)
            except tapeseal.TapeLockedError:
                time.sleep(rng.random() / 1000)
        print(flushed)
    """
    writers = [start_child(code, key_file, path, number) for number in range(2)]
    copies = 0
    while any(process.poll() is None for process in writers):
        try:
            tapeseal.rewrap(path, keyring=keyring, to=keyring, copy=copies % 4 < 3)
            copies += 1
        except tapeseal.TapeLockedError:
            time.sleep(0.001)
    flushed = [int(process.communicate()[0]) for process in writers]
    assert [0, 0] == [process.returncode for process in writers]
    assert all(flushed)
    assert copies > 0
    assert same(ticks(0, sum(flushed)), read(path, keyring))
    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize("mode", ["w", "a"])
def test_who_comes_at_the_same_time(tmp_path: Path, keyring: Any, mode: str) -> None:
    """Of writers that make one tape at one moment, exactly one has it; the others are refused or come after."""
    barrier = threading.Barrier(4)

    def begin(path: Path, tapes: list[Any], refused: list[int]) -> None:
        barrier.wait()
        try:
            tapes.append(tapeseal.open(path, mode, keyring=keyring, dtype=TICK))
        except tapeseal.TapeLockedError:
            refused.append(1)

    for attempt in range(10):
        path = tmp_path / f"{attempt}.tape"
        tapes: list[Any] = []
        refused: list[int] = []
        threads = [threading.Thread(target=begin, args=(path, tapes, refused)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (1, 3) == (len(tapes), len(refused))
        tapes[0].append(ticks(0, 4))
        tapes[0].close()
        assert same(ticks(0, 4), read(path, keyring))


# Rewrapping


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("kind", ["records", "bytes"])
def test_rewrap(
    path: Path, keyring: Any, other_keyring: Any, kind: str, copy: bool, seal: bool
) -> None:
    """After a rewrap the new keyring opens the tape and the old one does not; the body is the same."""
    mode, options = (
        ("w", {"dtype": TICK, "index_by": "number"}) if kind == "records" else ("wb", {})
    )
    tape = tapeseal.open(
        path, mode, keyring=keyring, frame_size=FRAME, encryption_context={"a": "b"}, **options
    )
    tape.append(ticks(0, 1000)) if kind == "records" else tape.write(bytes(20_000))
    before = tape.close(seal=seal)
    body = path.read_bytes()[8192:]
    path.chmod(0o640)
    assert tapeseal.rewrap(path, keyring=keyring, to=other_keyring, copy=copy) == 2
    assert tapeseal.inspect(path).generation == 2
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(tapeseal.KeyUnavailableError):
        tapeseal.verify(path, keyring=keyring)
    found = tapeseal.verify(path, keyring=other_keyring, anchor=None if copy and seal else before)
    assert ("sealed" if seal else "open", []) == (found.state, found.problems)
    if not (copy and seal):
        assert body == path.read_bytes()[8192:]
    if kind == "records":
        assert same(ticks(0, 1000), read(path, other_keyring))
    else:
        with tapeseal.open(path, "rb", keyring=other_keyring) as file:
            assert bytes(20_000) == file.read()
    assert [path] == list(path.parent.iterdir())


def test_rewrap_during_a_recording(path: Path, keyring: Any, other_keyring: Any) -> None:
    """Rewraps in place do not disturb a writer; one by copy is refused until it is done."""
    tape = tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME)
    stop = threading.Event()
    generations = []

    def rewrap() -> None:
        rings = itertools.cycle([(keyring, other_keyring), (other_keyring, keyring)])
        for (old, new), _ in zip(rings, range(40), strict=False):
            generations.append(tapeseal.rewrap(path, keyring=old, to=new))
        stop.set()

    thread = threading.Thread(target=rewrap)
    thread.start()
    done = 0
    while not stop.is_set() or done < 5000:
        tape.append(ticks(done, done + 33))
        tape.flush()
        done += 33
        if done == 3300:
            with pytest.raises(tapeseal.TapeLockedError):
                tapeseal.rewrap(path, keyring=keyring, to=keyring, copy=True)
    thread.join()
    anchor = tape.close()
    assert list(range(2, 42)) == generations
    assert tapeseal.verify(path, keyring=keyring, anchor=anchor).ok
    assert same(ticks(0, done), read(path, keyring))
    assert tapeseal.rewrap(path, keyring=keyring, to=keyring, copy=True) == 42


def test_rewrap_by_a_stranger_changes_nothing(make: Any, keyring: Any, other_keyring: Any) -> None:
    """Who cannot open a tape cannot rewrap it."""
    path = make(ticks(0, 10))
    before = path.read_bytes()
    for by_copy in (True, False):
        with pytest.raises(tapeseal.KeyUnavailableError):
            tapeseal.rewrap(path, keyring=other_keyring, to=other_keyring, copy=by_copy)
    assert before == path.read_bytes()


def test_recipients_that_do_not_fit(make: Any, keyring: Any, other_keyring: Any) -> None:
    """Where the header has no room for the recipients a rewrap in place refuses, and one by copy makes room."""
    path = make(ticks(0, 1000), index_by="number")
    before = path.read_bytes()
    many = tapeseal.AnyOf([other_keyring] * 60)
    with pytest.raises(tapeseal.LimitError, match="copy"):
        tapeseal.rewrap(path, keyring=keyring, to=many)
    assert before == path.read_bytes()
    assert tapeseal.rewrap(path, keyring=keyring, to=many, copy=True) == 2
    assert len(tapeseal.inspect(path).recipients) == 60
    assert tapeseal.verify(path, keyring=other_keyring).state == "sealed"
    assert same(ticks(0, 1000), read(path, other_keyring))
    too_many = tapeseal.AnyOf([other_keyring] * 65)
    for by_copy in (True, False):
        with pytest.raises(ValueError, match="64"):
            tapeseal.rewrap(path, keyring=other_keyring, to=too_many, copy=by_copy)
    assert tapeseal.rewrap(path, keyring=other_keyring, to=keyring) == 3


def test_rewrap_repairs_a_rotten_copy(make: Any, keyring: Any, other_keyring: Any) -> None:
    """A tape with one rotten header copy is read, verify() says so, and a rewrap mends it."""
    for offset in (500, 4096 + 500):
        path = make(ticks(0, 10))
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)
        assert same(ticks(0, 10), read(path, keyring))
        found = tapeseal.verify(path, keyring=keyring)
        assert [offset // 4096 * 4096] == [problem.offset for problem in found.problems]
        assert tapeseal.inspect(path).copies_intact == 1
        tapeseal.rewrap(path, keyring=keyring, to=other_keyring)
        assert tapeseal.verify(path, keyring=other_keyring).problems == []
        assert tapeseal.inspect(path).copies_intact == 2


# Full and failing disks


@in_one_folder
@given(
    seed=st.integers(0, 1 << 32),
    index_by=st.sampled_from([None, "number"]),
    threads=st.sampled_from([1, 2]),
)
def test_a_full_disk_loses_nothing(
    path: Path, keyring: Any, seed: int, index_by: str | None, threads: int
) -> None:
    """Whenever the disk is full, short writes included: what was flushed stays, an append is in whole or not at all."""
    rng = random.Random(seed)
    path.unlink(missing_ok=True)
    failures = set()
    with nonce_log():
        tape = tapeseal.open(
            path,
            "w",
            keyring=keyring,
            dtype=TICK,
            frame_size=FRAME,
            index_by=index_by,
            threads=threads,
        )
        for _ in range(rng.randrange(1, 25)):
            before = len(tape)
            count = rng.choice([1, 100, 255, 256, 257, 3000, 40_000])
            room = rng.choice([0, 1, 111, 112, 113, 4000, 4136, 4248, 70_000, 300_000])
            action = rng.choice(["append", "append", "flush", "close", "reopen"])
            with file_size_limit(path.stat().st_size + room):
                try:
                    if action == "append":
                        tape.append(ticks(before, before + count))
                        before += count
                    elif action == "flush":
                        tape.flush(sync=rng.random() < 0.1)
                    else:
                        tape.close(seal=action == "close")
                        tape = None
                except OSError as error:
                    failures.add(error.errno)
            if tape is None:
                tape = tapeseal.open(path, "a", keyring=keyring, threads=threads)
            assert before == len(tape)
            visible = read(path, keyring)
            assert tape.anchor.items == len(visible)
            assert same(ticks(0, len(visible)), visible)
            if action == "flush" and rng.random() < 0.5:
                tape.flush()
                assert before == len(read(path, keyring))
        anchor = tape.close()
    assert failures <= {errno.EFBIG}
    found = tapeseal.verify(path, keyring=keyring, anchor=anchor)
    assert ("sealed", []) == (found.state, found.problems)
    assert same(ticks(0, len(tape)), read(path, keyring))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, keyring: Any) -> None:
    """On a full disk append, flush and close raise ENOSPC; with room again the tape goes on, sealed and whole."""
    path, ballast = small_disk / "day.tape", small_disk / "ballast"

    def fill_up() -> None:
        with open(ballast, "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def record_until_full() -> None:
        while True:
            tape.append(ticks(len(tape), len(tape) + 777))

    with nonce_log() as log:
        tape = tapeseal.open(
            path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME, index_by="number"
        )
        for room in (60_000, 30_000, 10_000, 100_000):
            ballast.write_bytes(bytes(max(0, 262_144 - path.stat().st_size - room)))
            with pytest.raises(OSError, match="No space"):
                record_until_full()
            done = len(tape)
            with pytest.raises(OSError, match="No space"):
                fill_up()
            with pytest.raises(OSError, match="No space"):
                tape.append(ticks(done, done + 20_000))
            assert len(tape) == done
            visible = read(path, keyring)
            assert done - len(visible) < FRAME_TICKS
            assert same(ticks(0, len(visible)), visible)
            ballast.unlink()
            tape.flush()
            assert same(ticks(0, done), read(path, keyring))
        tape.append(ticks(done, done + 100))
        anchor = tape.close()
        assert len(log.used) > 40
    assert tapeseal.verify(path, keyring=keyring, anchor=anchor).state == "sealed"
    assert same(ticks(0, done + 100), read(path, keyring))


def test_encrypt_to_a_full_disk(small_disk: Path, keyring: Any, tmp_path: Path) -> None:
    """encrypt_file and decrypt_file to a full disk leave no file behind."""
    source, sealed = tmp_path / "source", tmp_path / "sealed"
    source.write_bytes(bytes(1_000_000))
    tapeseal.encrypt_file(source, sealed, keyring=keyring)
    for act, origin in ((tapeseal.encrypt_file, source), (tapeseal.decrypt_file, sealed)):
        with pytest.raises(OSError, match="No space"):
            act(origin, small_disk / "target", keyring=keyring)
        assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("act", ["encrypt", "decrypt records", "decrypt bytes", "decrypt blob"])
def test_streams_that_take_a_part_only(tmp_path: Path, keyring: Any, act: str) -> None:
    """A short write to an unbuffered stream is gone on with, so that a full disk is an error and not a shorter file."""
    source, sealed, target = tmp_path / "source", tmp_path / "sealed", tmp_path / "target"
    if act == "decrypt records":
        source = tmp_path / "source.npy"
        np.save(source, ticks(0, 10_000))
    else:
        source.write_bytes(bytes(160_000))
    tapeseal.encrypt_file(source, sealed, keyring=keyring)
    if act == "decrypt blob":
        sealed.write_bytes(tapeseal.encrypt(bytes(160_000), keyring=keyring))
    change, origin = tapeseal.decrypt_file, sealed
    if act == "encrypt":
        change, origin = tapeseal.encrypt_file, source
    with (
        open(target, "wb", buffering=0) as stream,
        file_size_limit(100_000),
        pytest.raises(OSError) as caught,
    ):
        change(origin, stream, keyring=keyring)
    assert caught.value.errno == errno.EFBIG


def test_a_disk_that_fails_to_sync(path: Path, keyring: Any) -> None:
    """After a failed fsync nothing pretends to be durable: close() refuses, close(seal=False) gives the file up."""
    done = child(
        """
        import ctypes, errno, os, platform, struct, sys, tapeseal
        from support import TICK, ticks

        def fail_fsync():
            # A seccomp filter: fsync gives EIO from here on, everything else goes on.
            number = {"x86_64": 74, "aarch64": 82}[platform.machine()]
            program = b"".join(struct.pack("HBBI", *op) for op in (
                (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno.EIO), (0x06, 0, 0, 0x7FFF0000)))
            buffer = ctypes.create_string_buffer(program, len(program))
            filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
            libc = ctypes.CDLL(None)
            if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, filter, 0, 0):
                print("no seccomp")
                sys.exit()

        keyring = tapeseal.keyring("local:" + sys.argv[1])
        first = tapeseal.open(sys.argv[2], "w", keyring=keyring, dtype=TICK)
        second = tapeseal.open(sys.argv[2] + "2", "w", keyring=keyring, dtype=TICK)
        first.append(ticks(0, 10)); second.append(ticks(0, 10))
        fail_fsync()
        def result(use):
            try:
                use()
                return "done"
            except Exception as error:
                return type(error).__name__
        print(result(first.close), result(first.close), result(lambda: first.append(ticks(10, 5000))))
        print(result(lambda: second.flush(sync=True)), result(second.close), result(second.flush))
        print(result(lambda: first.close(seal=False)), result(lambda: second.close(seal=False)))
        """,
        keyring.path,
        path,
    )
    if done.stdout == "no seccomp\n":
        pytest.skip("no seccomp here")
    assert ("", done.stdout) == (
        done.stderr,
        "OSError TapeChangedError TapeChangedError\nOSError TapeChangedError done\ndone done\n",
    )
    for name in (path, f"{path}2"):
        assert same(ticks(0, 10), read(Path(name), keyring))


FOREIGN = b"something foreign"


@pytest.mark.parametrize("fill", [0, 1, 255, 256, 300])
@pytest.mark.parametrize("use", ["append", "flush", "close", "with"])
@pytest.mark.parametrize("resumed", ["new", "open", "sealed"])
def test_a_file_that_somebody_else_wrote(
    make: Any, keyring: Any, fill: int, use: str, resumed: str
) -> None:
    """A writer whose file has grown stops, and leaves every byte of it, whatever is tried then."""
    path = make(ticks(0, 256), seal=resumed == "sealed")
    tape = tapeseal.open(
        path, "w" if resumed == "new" else "a", keyring=keyring, dtype=TICK, frame_size=FRAME
    )
    tape.append(ticks(len(tape), len(tape) + fill))
    with open(path, "ab") as file:
        file.write(FOREIGN)
    before = path.read_bytes()
    errors = []
    for act in (
        {
            "append": lambda: tape.append(ticks(0, 1000)),
            "flush": tape.flush,
            "close": tape.close,
            "with": lambda: tape.__exit__(None, None, None),
        }[use],
        tape.flush,
        tape.close,
        lambda: tape.__exit__(None, None, None),
        lambda: tape.close(seal=False),
    ):
        try:
            act()
        except (tapeseal.TapeChangedError, ValueError) as error:
            errors.append(error)
    tape.__exit__(ValueError, None, None)
    assert before == path.read_bytes()
    # A sealed tape that got nothing new is closed as it is; any other is not called closed.
    written = bool(fill) or use == "append" or resumed != "sealed"
    assert written == any(isinstance(error, tapeseal.TapeChangedError) for error in errors)


def test_a_file_that_somebody_else_cut(make: Any, keyring: Any) -> None:
    """A writer whose file has shrunk stops."""
    path = make(ticks(0, 300), seal=False)
    tape = tapeseal.open(path, "a", keyring=keyring)
    os.truncate(path, 9000)
    for use in (lambda: tape.append(ticks(300, 1000)), tape.flush, tape.close):
        tape._fill or tape.append(ticks(300, 301))
        with pytest.raises(tapeseal.TapeChangedError):
            use()
    tape.close(seal=False)
    assert path.stat().st_size == 9000


# Interrupts


@pytest.fixture
def interrupted() -> Iterator[Callable[[random.Random, Callable[[], Any]], bool]]:
    """Does something that is interrupted at a random instant; returns whether that was before its end."""
    rung = []

    def ring(signum: int, frame: object) -> None:
        rung.append(1)
        raise KeyboardInterrupt

    def interrupt(rng: random.Random, act: Callable[[], Any], longest: float = 2e-3) -> bool:
        rung.clear()
        finished = False
        try:
            try:
                delay = longest * rng.choice([0.005, 0.05, 0.25, 1]) * (0.2 + rng.random())
                signal.setitimer(signal.ITIMER_REAL, delay)
                act()
                finished = True
                # numpy itself swallows an interrupt that comes while it makes a dtype.
                while not rung:
                    time.sleep(0.001)
            except Exception:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise
        except KeyboardInterrupt:
            pass
        return not finished

    before = signal.signal(signal.SIGALRM, ring)
    # An interrupt in a callback of the garbage collector would be swallowed, and reported.
    gc.disable()
    yield interrupt
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seed", [1, pytest.param(range(2, 40), marks=pytest.mark.slow)])
def test_interrupts_lose_and_repeat_nothing(
    tmp_path: Path, keyring: Any, interrupted: Any, seed: int | range
) -> None:
    """KeyboardInterrupt at any instant: an append is in or not, what was flushed stays, no nonce is used again."""
    for number in [seed] if isinstance(seed, int) else seed:
        rng = random.Random(number)
        path = tmp_path / f"{number}.tape"
        index_by = rng.choice([None, "number"])
        hits = 0
        with nonce_log() as log:
            tape = tapeseal.open(
                path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME, index_by=index_by
            )
            flushed = 0
            for _ in range(400):
                before = len(tape)
                count = rng.choice([1, 100, 256, 1000, 20_000, 60_000])
                action = rng.choice(["append"] * 6 + ["flush", "sync", "close", "open"])
                records = ticks(before, before + count)
                act = {
                    "append": functools.partial(tape.append, records),
                    "flush": tape.flush,
                    "sync": functools.partial(tape.flush, sync=True),
                    "close": tape.close,
                    "open": functools.partial(tape.close, seal=False),
                }[action]
                hit = interrupted(rng, act)
                hits += hit
                assert len(tape) in ((before, before + count) if action == "append" else (before,))
                if not hit:
                    assert action != "append" or len(tape) == before + count
                    flushed = flushed if action == "append" else before
                if tape.closed or (action in ("close", "open") and not hit):
                    tape.close(seal=False)
                    tape = tapeseal.open(path, "a", keyring=keyring)
                    assert len(tape) >= flushed
                    if not hit:
                        assert len(tape) == before
            anchor = tape.close()
            count = len(tape)
        assert hits > 20
        assert len(log.used) > 100
        assert count == anchor.items
        found = tapeseal.verify(path, keyring=keyring, anchor=anchor)
        assert ("sealed", []) == (found.state, found.problems)
        assert same(ticks(0, count), read(path, keyring))


def at_work() -> list[str]:
    """Return what functions of the library other threads are in."""
    stacks = [
        [frame for frame, _ in traceback.walk_stack(top)]
        for ident, top in sys._current_frames().items()
        if ident != threading.get_ident()
    ]
    return [
        frame.f_code.co_name
        for stack in stacks
        for frame in stack
        if frame.f_code.co_name == "portion"
    ]


# Where Python cannot raise an interrupt, in callbacks, or closes a file late for it, it warns.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("act", ["read", "decrypt", "encrypt"])
def test_interrupts_leave_no_thread_behind(
    tmp_path: Path, keyring: Any, interrupted: Any, act: str
) -> None:
    """When a call of several threads was interrupted none of them works on, and no part of an output stands there."""
    source, sealed, target = tmp_path / "source.npy", tmp_path / "sealed", tmp_path / "target"
    np.save(source, ticks(0, 400_000))
    tapeseal.encrypt_file(source, sealed, keyring=keyring)
    rng = random.Random(act)
    hits = 0
    with tapeseal.open(sealed, keyring=keyring, threads=4) as tape:
        use = {
            "read": functools.partial(tape.__getitem__, slice(None)),
            "decrypt": functools.partial(
                tapeseal.decrypt_file, sealed, target, keyring=keyring, threads=4
            ),
            "encrypt": functools.partial(
                tapeseal.encrypt_file, source, target, keyring=keyring, threads=4
            ),
        }[act]
        for _ in range(60):
            hit = interrupted(rng, use, longest=2e-2)
            assert [] == at_work()
            hits += hit
            if target.exists():
                # The interrupt came when all was done.
                assert (
                    target.stat().st_size == (source if act == "decrypt" else sealed).stat().st_size
                )
                target.unlink()
        assert same(ticks(0, 400_000), tape[:])
    assert hits > 10


def test_an_interrupt_while_the_index_goes(
    make: Any, keyring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt in the fsync after the index was cut off leaves a tape that is sealed again by close()."""
    path = make(ticks(0, 300), index_by="number")
    tape = tapeseal.open(path, "a", keyring=keyring)
    fsync = os.fsync

    def interrupt(fd: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tape.append(ticks(300, 1000))
    assert len(tape) == 300
    anchor = tape.close()
    found = tapeseal.verify(path, keyring=keyring, anchor=anchor)
    assert ("sealed", [], 300) == (found.state, found.problems, found.items)


# Anchors


def test_anchor_text(make: Any, keyring: Any) -> None:
    """An anchor is one line of text and back; anything else is no anchor."""
    path = make(ticks(0, 300), seal=False)
    with tapeseal.open(path, keyring=keyring) as back:
        anchors = [back.anchor]
    tape = tapeseal.open(path, "a", keyring=keyring)
    anchors += [tape.anchor, tape.close()]
    anchors.append(tapeseal.open(path.with_name("empty"), "w", keyring=keyring, dtype=TICK).anchor)
    for anchor in anchors:
        text = str(anchor)
        assert anchor == tapeseal.Anchor.parse(text) == tapeseal.Anchor.parse(f" {text}\n")
        assert text.isprintable()
        for wrong in (
            "",
            text[:-1],
            text + "0",
            text.upper(),
            text.replace(":", " "),
            text.replace(":1:", ":01:"),
        ):
            if wrong != text:
                with pytest.raises(ValueError, match="not an anchor"):
                    tapeseal.Anchor.parse(wrong)


def test_anchors_hold_while_a_tape_grows(path: Path, keyring: Any) -> None:
    """Every anchor of a tape's life holds for every later state of it, and for none of the earlier ones."""
    states: list[tuple[bytes, tapeseal.Anchor]] = []
    tape = tapeseal.open(path, "w", keyring=keyring, dtype=TICK, frame_size=FRAME)
    done = 0
    for count, then in (
        (5, ""),
        (300, ""),
        (1, "seal"),
        (700, ""),
        (0, "open"),
        (256, "seal"),
        (2, "seal"),
    ):
        tape.append(ticks(done, done + count))
        done += count
        tape.flush()
        states.append((path.read_bytes(), tape.anchor))
        if then:
            anchor = tape.close(seal=then == "seal")
            states.append((path.read_bytes(), anchor))
            tape = tapeseal.open(path, "a", keyring=keyring)
    tape.close()
    for age, (content, _) in enumerate(states):
        path.write_bytes(content)
        for anchor_age, (_, anchor) in enumerate(states):
            found = tapeseal.verify(path, keyring=keyring, anchor=anchor)
            older = anchor_age <= age or anchor == states[age][1]
            # A state that is later only by its seal holds for an unsealed tape's anchor and the other way not.
            assert older == found.ok, (age, anchor_age, found.problems)
            assert found.state in ("open", "sealed")


def test_anchors_tell_forks_and_other_tapes(make: Any, keyring: Any) -> None:
    """A tape that went another way since the anchor, or is another tape, does not hold it."""
    path = make(ticks(0, 300), seal=False)
    base = path.read_bytes()
    forks = []
    for number in range(2):
        path.write_bytes(base)
        with tapeseal.open(path, "a", keyring=keyring) as tape:
            tape.append(ticks(300, 600 + number))
        forks.append((path.read_bytes(), tape.close()))
    for here, (content, _) in enumerate(forks):
        path.write_bytes(content)
        for there, (_, anchor) in enumerate(forks):
            assert (here == there) == tapeseal.verify(path, keyring=keyring, anchor=anchor).ok
    make(ticks(0, 601))
    found = tapeseal.verify(path, keyring=keyring, anchor=forks[0][1])
    assert (False, "sealed") == (found.ok, found.state)


# Keys and contexts


def test_a_wrong_keyring(make: Any, other_keyring: Any) -> None:
    """A keyring without the key is KeyUnavailableError everywhere, and the tape stays as it is."""
    path = make(ticks(0, 10))
    before = path.read_bytes()
    for use in (
        lambda: tapeseal.open(path, keyring=other_keyring),
        lambda: tapeseal.open(path, "a", keyring=other_keyring),
        lambda: tapeseal.open(path, "a", keyring=other_keyring, recover=True),
        lambda: tapeseal.verify(path, keyring=other_keyring),
        lambda: tapeseal.decrypt_file(path, path.with_name("out"), keyring=other_keyring),
    ):
        with pytest.raises(tapeseal.KeyUnavailableError):
            use()
    assert before == path.read_bytes()
    assert [path] == list(path.parent.iterdir())


def test_expect(make: Any, keyring: Any) -> None:
    """A tape that lacks a pair the reader expects is refused, and its key is not even asked for."""
    path = make(ticks(0, 10), encryption_context={"desk": "eq-us", "day": "mon"})
    for pairs in ({}, {"desk": "eq-us"}, {"day": "mon", "desk": "eq-us"}):
        assert same(ticks(0, 10), read(path, keyring, expect=pairs))
        tapeseal.open(path, "a", keyring=keyring, expect=pairs).close()
        assert tapeseal.verify(path, keyring=keyring, expect=pairs).ok
    for pairs in (
        {"desk": "eq-eu"},
        {"Desk": "eq-us"},
        {"desk": "eq-us", "night": ""},
        {"desk": ""},
    ):
        for use in (
            lambda pairs=pairs: tapeseal.open(path, keyring=keyring, expect=pairs),
            lambda pairs=pairs: tapeseal.open(path, "a", keyring=keyring, expect=pairs),
            lambda pairs=pairs: tapeseal.verify(path, keyring=keyring, expect=pairs),
            lambda pairs=pairs: tapeseal.decrypt_file(
                path, path.with_name("out"), keyring=keyring, expect=pairs
            ),
        ):
            with pytest.raises(tapeseal.ContextMismatchError):
                use()
    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize(
    "context",
    [
        {"tapeseal:x": "y"},
        {"a": 1},
        {1: "a"},
        {"a": None},
        {"a": "\udc80"},
        {str(n): "" for n in range(65)},
        {"a": "b" * 8192},
    ],
)
def test_contexts_that_cannot_be(path: Path, keyring: Any, context: Any) -> None:
    """Reserved keys, other types, lone surrogates and sizes over the limits are ValueError."""
    with pytest.raises(ValueError):
        tapeseal.open(path, "w", keyring=keyring, dtype=TICK, encryption_context=context)
    with pytest.raises(ValueError):
        tapeseal.encrypt(b"x", keyring=keyring, encryption_context=context)
    assert not path.exists()


KEYS = st.text(max_size=9).filter(lambda key: not key.startswith("tapeseal:"))


@given(context=st.dictionaries(KEYS, st.text(max_size=9), max_size=9))
def test_contexts_come_back(keyring: Any, context: dict[str, str]) -> None:
    """Any encryption context of text is bound to a blob, which opens."""
    try:
        blob = tapeseal.encrypt(b"x", keyring=keyring, encryption_context=context)
    except ValueError:
        # Lone surrogates are text to Python and not to UTF-8.
        assert any(
            "\ud800" <= c <= "\udfff" for pair in context.items() for part in pair for c in part
        )
    else:
        assert tapeseal.decrypt(blob, keyring=keyring, expect=context) == b"x"


# Blobs


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 65535, 65536, 65537, 131072, 200_000])
def test_blobs(keyring: Any, size: int) -> None:
    """A message of any length comes back, of any kind of buffer, under a key of its own."""
    data = os.urandom(size)
    blob = tapeseal.encrypt(data, keyring=keyring, encryption_context={"cell": "7"})
    frames = max(1, -(-size // 65536))
    assert data == tapeseal.decrypt(blob, keyring=keyring)
    assert data == tapeseal.decrypt(
        memoryview(bytearray(blob)), keyring=keyring, expect={"cell": "7"}
    )
    assert blob != tapeseal.encrypt(data, keyring=keyring, encryption_context={"cell": "7"})
    assert len(blob) - size - 40 * frames < 700
    assert data == tapeseal.decrypt(
        tapeseal.encrypt(np.frombuffer(data, np.uint8), keyring=keyring), keyring=keyring
    )


def test_every_changed_bit_of_a_blob_is_refused(keyring: Any) -> None:
    """Each flipped bit of a blob is found, by its name; and so is each cut and each addition."""
    blob = tapeseal.encrypt(b"message", keyring=keyring)
    named = (tapeseal.DamagedError, tapeseal.NotATapeError)
    for bit in range(8 * len(blob)):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(named):
            tapeseal.decrypt(changed, keyring=keyring)
    for size in range(len(blob)):
        with pytest.raises(named):
            tapeseal.decrypt(blob[:size], keyring=keyring)
    for more in (b"\0", b"x" * 30, blob):
        with pytest.raises(tapeseal.DamagedError):
            tapeseal.decrypt(blob + more, keyring=keyring)


def test_blobs_have_one_order(keyring: Any) -> None:
    """The frames of a blob can be neither swapped, repeated, left out nor taken from another blob."""
    blob, other = (tapeseal.encrypt(os.urandom(200_000), keyring=keyring) for _ in range(2))
    start = len(blob) - (200_000 + 4 * 40) - 112
    head, segment = blob[:start], blob[start : start + 112]
    cuts = [start + 112 + n * 65576 for n in range(4)] + [len(blob)]
    frames = [blob[a:b] for a, b in itertools.pairwise(cuts)]
    foreign = [other[a:b] for a, b in itertools.pairwise(cuts)]
    assert len(tapeseal.decrypt(head + segment + b"".join(frames), keyring=keyring)) == 200_000
    a, b, c, last = frames
    for order in (
        [b, a, c, last], [a, b, last, c], [a, b, c], [a, b, c, c, last], [a, b, c, last, last], [a, c, last], [last],
        [], [a, b, foreign[2], last], [a, b, c, foreign[3]], foreign, [a, b, c, last, segment, a],
    ):  # fmt: skip
        with pytest.raises(tapeseal.DamagedError):
            tapeseal.decrypt(head + segment + b"".join(order), keyring=keyring)
    foreign_segment = other[start : start + 112]
    for order in (
        [foreign_segment, *foreign],
        [foreign_segment, *frames],
        [segment, segment, *frames],
    ):
        with pytest.raises(tapeseal.DamagedError):
            tapeseal.decrypt(head + b"".join(order), keyring=keyring)


def test_blobs_and_tapes_are_told_apart(make: Any, keyring: Any, other_keyring: Any) -> None:
    """A tape is no blob, a blob no tape, and neither opens with a stranger's keyring or for another context."""
    path = make(ticks(0, 10))
    blob = tapeseal.encrypt(b"x", keyring=keyring, encryption_context={"a": "b"})
    with pytest.raises(ValueError, match=r"tapeseal\.open"):
        tapeseal.decrypt(path.read_bytes(), keyring=keyring)
    path.write_bytes(blob)
    for mode in ("r", "a", "rb", "ab"):
        with pytest.raises(ValueError, match=r"tapeseal\.decrypt"):
            tapeseal.open(path, mode, keyring=keyring)
    for by_copy in (True, False):
        with pytest.raises(ValueError, match="blob"):
            tapeseal.rewrap(path, keyring=keyring, to=keyring, copy=by_copy)
    assert blob == path.read_bytes()
    with pytest.raises(tapeseal.KeyUnavailableError):
        tapeseal.decrypt(blob, keyring=other_keyring)
    with pytest.raises(tapeseal.ContextMismatchError):
        tapeseal.decrypt(blob, keyring=keyring, expect={"a": "c"})
    for wrong in ("text", None, 5):
        with pytest.raises(TypeError):
            tapeseal.encrypt(wrong, keyring=keyring)
        with pytest.raises(TypeError):
            tapeseal.decrypt(wrong, keyring=keyring)


# Recorders


def recorded(folder: Path, keyring: Any) -> np.ndarray:
    """Return what the tapes of a folder hold, in the order of their first records."""
    found = [read(path, keyring) for path in folder.rglob("*.tape")]
    found = [records for records in found if len(records)]
    return np.concatenate(
        [np.empty(0, TICK), *sorted(found, key=lambda records: records["number"][0])]
    )


def test_a_recorder_rolls_by_size(tmp_path: Path, keyring: Any) -> None:
    """A tape that is large enough is followed by the next; all are sealed, told of, and hold the stream."""
    closed: list[tuple[str, tapeseal.Anchor]] = []
    with tapeseal.Recorder(
        tmp_path / "%Y%m%d/{feed}-%H%M.tape", keyring=keyring, dtype=TICK, frame_size=FRAME, roll_size=30_000,
        fields={"feed": "es"}, index_by="number", encryption_context={"desk": "us"},
        on_close=lambda path, anchor: closed.append((path, anchor)),
    ) as recorder:  # fmt: skip
        for start in range(0, 20_000, 100):
            recorder.append(ticks(start, start + 100))
    assert same(ticks(0, 20_000), recorded(tmp_path, keyring))
    paths = sorted(tmp_path.rglob("*.tape"))
    assert sorted(map(str, paths)) == sorted(path for path, _ in closed)
    assert len(paths) > 8
    for path, anchor in closed:
        found = tapeseal.verify(path, keyring=keyring, anchor=anchor, expect={"desk": "us"})
        assert ("sealed", []) == (found.state, found.problems)
        assert Path(path).stat().st_size < 50_000
        assert Path(path).name.startswith("es-")


def test_a_recorder_rolls_by_time(tmp_path: Path, keyring: Any) -> None:
    """A tape of an earlier time slot is followed by the next, under that slot's name, in UTC."""
    with tapeseal.Recorder(
        tmp_path / "%H%M%S.tape", keyring=keyring, dtype=TICK, roll_seconds=1
    ) as recorder:
        first, done = recorder.path, 0
        names = {first}
        while len(names) < 3:
            recorder.append(ticks(done, done + 1))
            done += 1
            names.add(recorder.path)
            time.sleep(0.01)
    assert same(ticks(0, done), recorded(tmp_path, keyring))
    stamps = sorted(Path(name).stem for name in names)
    assert [path.stem for path in sorted(tmp_path.iterdir())] == stamps
    for path in tmp_path.iterdir():
        made = tapeseal.inspect(path).created
        assert abs(int(made[17:19]) - int(path.stem[4:6])) in (0, 1, 59)
        assert made[11:13] == path.stem[:2]


def test_a_recorder_takes_the_next_free_name(tmp_path: Path, keyring: Any) -> None:
    """A name that is taken, by whatever, is left alone."""
    (tmp_path / "day.tape").write_bytes(b"taken")
    (tmp_path / "day-2.tape").write_bytes(b"taken too")
    paths = []
    for _ in range(3):
        with tapeseal.Recorder(tmp_path / "day.tape", keyring=keyring, dtype=TICK) as recorder:
            recorder.append(ticks(0, 3))
            paths.append(Path(recorder.path).name)
    assert ["day-1.tape", "day-3.tape", "day-4.tape"] == paths
    assert (tmp_path / "day.tape").read_bytes() == b"taken"
    assert (tmp_path / "day-2.tape").read_bytes() == b"taken too"


def test_two_recorders_of_one_template(tmp_path: Path, keyring: Any) -> None:
    """Recorders that share a template, in several threads, share no tape and lose nothing."""

    def record(number: int) -> None:
        with tapeseal.Recorder(
            tmp_path / "x.tape", keyring=keyring, dtype=TICK, frame_size=FRAME, roll_size=9000
        ) as r:
            for start in range(number * 3000, number * 3000 + 3000, 50):
                r.append(ticks(start, start + 50))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = recorded(tmp_path, keyring)
    assert list(range(12_000)) == sorted(found["number"].tolist())


def test_a_recorders_flush_reaches_the_tape_before(
    tmp_path: Path, keyring: Any, key_file: str
) -> None:
    """After flush() a kill loses nothing, also of what is in a tape that was just rolled away."""
    code = """
        import os, sys, threading, tapeseal
        from support import TICK, ticks
        keyring = tapeseal.keyring("local:" + sys.argv[1])
        recorder = tapeseal.Recorder(sys.argv[2] + "/day.tape", keyring=keyring, dtype=TICK, roll_size=1)
        # The thread that seals gets no further than its start.
        threading.Thread.run = lambda self: threading.Event().wait()
        recorder.append(ticks(0, 5))
        recorder.append(ticks(5, 9))
        recorder.append(ticks(9, 12))
        recorder.flush()
        os.kill(os.getpid(), 9)
    """
    assert child(code, key_file, tmp_path).returncode == -signal.SIGKILL
    assert same(ticks(0, 12), recorded(tmp_path, keyring))


def test_a_recorder_after_a_crash(tmp_path: Path, keyring: Any, key_file: str) -> None:
    """A recorder that is killed and started again goes on in a new tape, and what it had flushed is there."""
    code = """
        import os, sys, tapeseal
        from support import TICK, ticks
        keyring = tapeseal.keyring("local:" + sys.argv[1])
        first = int(sys.argv[3])
        recorder = tapeseal.Recorder(
            sys.argv[2] + "/day.tape", keyring=keyring, dtype=TICK, frame_size=4096, roll_size=20000)
        for start in range(first, first + 4000, 80):
            recorder.append(ticks(start, start + 80))
        recorder.flush(sync=True)
        os.kill(os.getpid(), 9)
    """
    for first in (0, 4000, 8000):
        assert child(code, key_file, tmp_path, first).returncode == -signal.SIGKILL
    assert same(ticks(0, 12_000), recorded(tmp_path, keyring))
    states = [tapeseal.verify(path, keyring=keyring).state for path in tmp_path.iterdir()]
    assert (3, {"open", "sealed"}) == (states.count("open"), set(states))


def test_a_recorder_tells_of_errors_behind(
    tmp_path: Path, keyring: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong in the background comes out of the next call, once, and is logged."""

    def fail(path: str, anchor: tapeseal.Anchor) -> None:
        if path.endswith("day.tape"):
            raise RuntimeError("no room in the register")

    recorder = tapeseal.Recorder(
        tmp_path / "day.tape",
        keyring=keyring,
        dtype=TICK,
        frame_size=FRAME,
        roll_size=1,
        on_close=fail,
    )
    recorder.append(ticks(0, 3))

    def go_on() -> None:
        while True:
            recorder.append(ticks(3, 4))
            recorder.flush()
            time.sleep(0.001)

    with caplog.at_level(logging.CRITICAL), pytest.raises(RuntimeError, match="register"):
        go_on()
    recorder.append(ticks(3, 4))
    recorder.close()
    recorder.close()
    for use in (lambda: recorder.append(ticks(0, 1)), recorder.flush):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_recorder_on_a_full_disk(tmp_path: Path, keyring: Any) -> None:
    """An append that fails is not in, whether it was to roll or not, and recording goes on when there is room."""
    recorder = tapeseal.Recorder(
        tmp_path / "day.tape", keyring=keyring, dtype=TICK, frame_size=FRAME, roll_size=20_000
    )
    done = 0
    failures = set()
    for room in (0, 5000, 9000, 13_000, 100, 30_000):
        with file_size_limit(Path(recorder.path).stat().st_size + room):
            for _ in range(5):
                try:
                    recorder.append(ticks(done, done + 300))
                    done += 300
                except OSError as error:
                    failures.add(error.errno)
            recorder._wait()
        recorder._errors.clear()
        recorder.append(ticks(done, done + 300))
        done += 300
    recorder.close()
    assert failures == {errno.EFBIG}
    assert same(ticks(0, done), recorded(tmp_path, keyring))


@pytest.mark.parametrize(
    "wrong",
    [
        {"roll_size": 0},
        {"roll_seconds": 0},
        {"roll_size": -1},
        {"template": "{nothing}.tape"},
        {"template": "{0}.tape"},
    ],
)
def test_recorders_that_cannot_be(tmp_path: Path, keyring: Any, wrong: dict[str, Any]) -> None:
    """Limits below 1 and names without a field are ValueError, and make no file."""
    template = tmp_path / wrong.pop("template", "day.tape")
    with pytest.raises(ValueError):
        tapeseal.Recorder(template, keyring=keyring, dtype=TICK, **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_recorder_left_by_an_exception(tmp_path: Path, keyring: Any) -> None:
    """An exception inside `with` keeps the records and does not seal the present tape."""
    recorder = tapeseal.Recorder(tmp_path / "day.tape", keyring=keyring, dtype=TICK)

    def record() -> None:
        with recorder:
            recorder.append(ticks(0, 5))
            raise KeyError

    with pytest.raises(KeyError):
        record()
    with tapeseal.open(tmp_path / "day.tape", keyring=keyring) as back:
        assert not back.sealed
        assert same(ticks(0, 5), back[:])


def test_nonce_log_notices() -> None:
    """The count that these tests rely on does notice a nonce that is used again."""
    log = NonceLog()
    log(b"a", 0, 3)
    log(b"b", 0, 3)
    log(b"a", 2, 2)
    assert [(b"a", 2)] == log.reused
