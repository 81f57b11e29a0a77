"""A tape's body: its segments and runs of frames, found by the index or by a walk, and the opening of frames.

Readers, writers and verify() all see a tape through `Body`. A *frame* here is addressed by its run and its place in
it; a *position* is the number of an item (record or byte) in the tape.
"""

import _thread
import bisect
import functools
import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from tapeseal import files, layout
from tapeseal._core import AESGCM
from tapeseal.datakey import DataKey
from tapeseal.errors import DamagedError, InvalidTag
from tapeseal.header import Header
from tapeseal.layout import FRAME_OVERHEAD, SEGMENT_HEADER_SIZE, TRAILER_SIZE, Run, SegmentEntry

# What one thread reads and opens at a time: with its plaintext it stays in a core's L2 cache.
PORTION_SIZE = 512 * 1024
# Below this a second thread costs more than it brings.
PARALLEL_SIZE = 4 * 1024 * 1024
_WINDOW_SIZE = 4096
# A reader that opens a tape while its writer cuts it back looks again so often.
_LOAD_ATTEMPTS = 10


@dataclass(frozen=True)
class Anchor:
    """How far a tape had come at some instant: to be kept elsewhere, and given to verify() later.

    `str(anchor)` is one line of text that `Anchor.parse` reads.
    """

    tape_id: bytes
    """16 bytes."""
    segments: int
    """Data segments."""
    frames: int
    """Frames in all of them."""
    items: int
    """Records, or bytes where the tape is of bytes."""
    commitment: bytes
    """Of the last data segment, 32 bytes; empty where there is none."""
    index: bytes | None
    """Commitment of the index segment, 32 bytes; None: the tape was not sealed."""

    def __str__(self) -> str:
        parts = (
            self.tape_id.hex(), str(self.segments), str(self.frames), str(self.items),
            self.commitment.hex() or "-", "-" if self.index is None else self.index.hex(),
        )  # fmt: skip
        return "tapeseal-anchor:" + ":".join(parts)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text that str() gave.

        Raises:
            ValueError: it is not such a text.
        """
        try:
            label, tape_id, segments, frames, items, commitment, index = text.strip().split(":")
            anchor = cls(
                bytes.fromhex(tape_id),
                int(segments),
                int(frames),
                int(items),
                b"" if commitment == "-" else bytes.fromhex(commitment),
                None if index == "-" else bytes.fromhex(index),
            )
            sizes = (
                len(anchor.tape_id),
                len(anchor.commitment or bytes(32)),
                len(anchor.index or b""),
            )
            if (
                label != "tapeseal-anchor"
                or str(anchor) != text.strip()
                or sizes != (16, 32, 0 if anchor.index is None else 32)
                or min(anchor.segments, anchor.frames, anchor.items) < 0
            ):
                raise ValueError
        except ValueError:
            raise ValueError(
                "not an anchor: it should be tapeseal-anchor: and six parts between colons"
            ) from None
        return anchor


class Scratch(threading.local):
    """Memory of each thread's own, used again and again."""

    _memory = memoryview(b"")

    def take(self, size: int) -> memoryview:
        """Return `size` bytes; the thread's next call hands out the same ones."""
        if len(self._memory) < size:
            self._memory = memoryview(np.empty(size, np.uint8))
        return self._memory[:size]


class Mark(NamedTuple):
    """A state of a Body to return to."""

    segments: int
    last_segment: SegmentEntry | None
    runs: int
    last_run: Run | None
    frames: int
    items: int
    end: int


class Body:
    """The blocks of one tape up to `end`, authenticated as FORMAT 6 asks, and the keys to open them.

    Args:
        fd: the file, open for reading; the Body does not close it.
        header: its authenticated header.
        data_key: the Body derives segment keys from it, and closes it.
    """

    def __init__(self, fd: int, header: Header, data_key: DataKey) -> None:
        self.fd = fd
        self.header = header
        self.data_key = data_key
        self.item_size = header.content.item_size
        self.frame_items = header.content.frame_items
        self.segments: list[SegmentEntry] = []
        self.runs: list[Run] = []
        self.frames = 0
        self.items = 0
        self.end = header.body
        self.torn_bytes = 0
        self.bounds: bytes | None = None
        """Of a sealed tape: each frame's smallest and largest value of index_by."""
        self.index_commitment: bytes | None = None
        """Of a sealed tape; None: the tape is open."""
        self._starts: list[int] = []
        self._keys: dict[int, AESGCM] = {}
        self._scratch = Scratch()

    @property
    def sealed(self) -> bool:
        """Whether the tape ends with an authentic index."""
        return self.index_commitment is not None

    @property
    def anchor(self) -> Anchor:
        """How far the tape has come."""
        return self.anchor_at(self.mark())

    def anchor_at(self, mark: Mark) -> Anchor:
        """Return how far the tape had come at a state that mark() gave."""
        last = b"" if mark.last_segment is None else mark.last_segment.commitment
        return Anchor(
            self.header.tape_id, mark.segments, mark.frames, mark.items, last, self.index_commitment
        )

    def close(self) -> None:
        """Drop all keys."""
        self.data_key.close()
        self._keys.clear()

    # What is there

    def mark(self) -> Mark:
        """Return the present state."""
        return Mark(
            len(self.segments),
            self.segments[-1] if self.segments else None,
            len(self.runs),
            self.runs[-1] if self.runs else None,
            self.frames,
            self.items,
            self.end,
        )

    def reset(self, mark: Mark) -> None:
        """Return to an earlier state that mark() gave; later blocks are forgotten."""
        del self.segments[mark.segments :], self.runs[mark.runs :], self._starts[mark.runs :]
        if mark.last_segment is not None:
            self.segments[-1] = mark.last_segment
        if mark.last_run is not None:
            self.runs[-1] = mark.last_run
        self.frames, self.items, self.end = mark.frames, mark.items, mark.end
        for number in [number for number in self._keys if number >= mark.segments]:
            del self._keys[number]

    def next_fields(self, type: int, salt: bytes) -> bytes:
        """Return the first 80 bytes of the header of the segment that would come next."""
        prev, prev_frames = self._previous(len(self.segments))
        return layout.build_segment_fields(type, len(self.segments), prev_frames, prev, salt)

    def _previous(self, number: int) -> tuple[bytes, int]:
        if number == 0:
            return hashlib.sha256(self.header.copy.content).digest(), 0
        before = self.segments[number - 1]
        return before.commitment, before.frames

    def add_segment(self, commitment: bytes, key: AESGCM) -> None:
        """Add an empty data segment whose header stands at `end`."""
        self._keys[len(self.segments)] = key
        self.segments.append(SegmentEntry(self.end, 0, commitment))
        self.end += SEGMENT_HEADER_SIZE

    def add_frames(self, count: int, frames: int) -> None:
        """Add frames of `count` items each at `end` to the last segment; runs stay maximal."""
        step = count * self.item_size + FRAME_OVERHEAD
        number = len(self.segments) - 1
        segment = self.segments[-1]
        last = self.runs[-1] if self.runs else None
        if last is not None and last.segment == number and last.items == count:
            self.runs[-1] = last._replace(frames=last.frames + frames)
        else:
            self.runs.append(Run(number, count, segment.frames, self.items, self.end, frames, step))
            self._starts.append(self.items)
        self.segments[-1] = segment._replace(frames=segment.frames + frames)
        self.frames += frames
        self.items += frames * count
        self.end += frames * step

    def drop_last_frame(self) -> None:
        """Forget the last frame."""
        run = self.runs[-1]
        if run.frames == 1:
            del self.runs[-1], self._starts[-1]
        else:
            self.runs[-1] = run._replace(frames=run.frames - 1)
        segment = self.segments[-1]
        self.segments[-1] = segment._replace(frames=segment.frames - 1)
        self.frames -= 1
        self.items -= run.items
        self.end -= run.step

    def drop_empty_segment(self) -> None:
        """Forget the last segment where it has no frame."""
        if self.segments and not self.segments[-1].frames:
            self.end = self.segments.pop().offset
            self._keys.pop(len(self.segments), None)

    # Finding it

    def load(self, *, authenticate: bool = True) -> None:
        """Find all blocks: by the index where the tape is sealed, otherwise by a walk as walk() does it.

        Raises:
            DamagedError: something does not verify; what stands before it is found and authenticated.
        """
        start = self.mark()
        for _ in range(_LOAD_ATTEMPTS):
            size = os.fstat(self.fd).st_size
            try:
                self._load(size, authenticate)
                return
            except DamagedError:
                # Of a tape that a writer has cut meanwhile, parts of two states were seen.
                if os.fstat(self.fd).st_size == size:
                    raise
                self.reset(start)
        self._load(os.fstat(self.fd).st_size, authenticate)

    def _load(self, size: int, authenticate: bool) -> None:
        index_at = self._trailer(size) if size >= self.end + TRAILER_SIZE else None
        if index_at is None:
            self.walk(size, authenticate=authenticate)
        elif not self.end <= index_at <= size - TRAILER_SIZE - SEGMENT_HEADER_SIZE:
            raise DamagedError("the trailer points outside the body", size - TRAILER_SIZE)
        else:
            self._load_index(index_at, size - TRAILER_SIZE)

    def _trailer(self, size: int) -> int | None:
        """Return what the trailer at the end of a file of `size` bytes points to, None where there is no trailer."""
        trailer = files.pread_exact(self.fd, TRAILER_SIZE, size - TRAILER_SIZE)
        if len(trailer) < TRAILER_SIZE:
            raise DamagedError("the file was cut while it was read", size - TRAILER_SIZE)
        return layout.parse_trailer(trailer)

    def _load_index(self, start: int, stop: int) -> None:
        raw = self._read_segment_header(start)
        header = layout.parse_segment(raw, start)
        if header.type != layout.INDEX_SEGMENT:
            raise DamagedError("the trailer points to no index segment", start)
        key, commitment = self.data_key.segment_key(self.header.tape_id, header.fields)
        if not hmac.compare_digest(commitment, header.commitment):
            raise DamagedError("the index segment's commitment is wrong", start)
        text, end, complete = self._index_text(key, start + SEGMENT_HEADER_SIZE, stop)
        if not complete or end != stop:
            raise DamagedError("the index segment does not end at the trailer", min(end, stop))
        index = layout.parse_index(text, self.header.content, self.header.body, start)
        self.segments, self.runs = index.segments, index.runs
        self._starts = [run.first_item for run in index.runs]
        self.frames, self.items, self.end = index.total_frames, index.total_items, start
        if raw[: layout.SEGMENT_FIELDS_SIZE] != self.next_fields(layout.INDEX_SEGMENT, header.salt):
            raise DamagedError("the index segment does not follow the segment before it", start)
        self.bounds, self.index_commitment = index.bounds, commitment

    def _read_segment_header(self, at: int) -> bytes:
        raw = files.pread_exact(self.fd, SEGMENT_HEADER_SIZE, at)
        if len(raw) < SEGMENT_HEADER_SIZE:
            raise DamagedError("the file ends inside a segment header", at)
        return raw

    def _index_text(self, key: AESGCM, at: int, size: int) -> tuple[bytes, int, bool]:
        """Open the frames of an index segment; return their text, where they end, and whether the final one was met."""
        frame_size = self.header.content.frame_size
        text = bytearray()
        number = 0
        while True:
            head = files.pread_exact(self.fd, layout.FRAME_HEADER_SIZE, at)
            if len(head) < layout.FRAME_HEADER_SIZE or at + layout.FRAME_HEADER_SIZE > size:
                return bytes(text), at, False
            if not any(head) and _all_zeros(self.fd, at, size):
                return bytes(text), at, False
            type, count, _, sealed_size, clean = layout.parse_frame(head, 0)
            final = type == layout.FINAL_FRAME
            if (
                not clean
                or type not in (layout.FRAME, layout.FINAL_FRAME)
                or count != sealed_size
                or not (0 if final else 1) <= count <= frame_size
            ):
                raise DamagedError("a frame header of the index is wrong", at)
            end = at + FRAME_OVERHEAD + sealed_size
            if end > size:
                return bytes(text), at, False
            frame = files.pread_exact(self.fd, end - at, at)
            if len(frame) < end - at:
                return bytes(text), at, False
            plain = bytearray(count)
            try:
                key.open_frames(
                    plain, frame, count=count, item_size=1, frame_items=frame_size, first=len(text), index=number,
                    final=final,
                )  # fmt: skip
            except InvalidTag:
                raise DamagedError("a frame of the index is not authentic", at) from None
            text += plain
            at = end
            number += 1
            if final:
                return bytes(text), at, True

    def walk(self, size: int, *, authenticate: bool = True) -> None:
        """Go on over the block headers from `end` to `size`; sets torn_bytes, and the index where one is met.

        Args:
            size: bytes of the file to look at.
            authenticate: open the last frame of each segment too, among those that are new.

        Raises:
            DamagedError: something does not verify. What stands before it is found, and `end` is where it starts.
        """
        self.torn_bytes = 0
        known = self.frames
        frame_items, item_size = self.frame_items, self.item_size
        position = self.end
        expected = self.items
        # Frames of one count in a row, not yet added.
        count, frames = 0, 0
        window, window_at = b"", position

        def add() -> None:
            nonlocal frames
            if frames:
                self.add_frames(count, frames)
                frames = 0

        def damaged(problem: str) -> DamagedError:
            add()
            if authenticate:
                self._authenticate_last(known)
            return DamagedError(problem, position)

        while True:
            left = size - position
            if left < layout.FRAME_HEADER_SIZE:
                break
            at = position - window_at
            if at + layout.FRAME_HEADER_SIZE > len(window):
                window, window_at, at = (
                    files.pread_exact(self.fd, _WINDOW_SIZE, position),
                    position,
                    0,
                )
                if len(window) < layout.FRAME_HEADER_SIZE:
                    break
            type, items, first, sealed_size, clean = layout.parse_frame(window, at)
            if type == layout.FRAME and self.segments:
                if not clean:
                    raise damaged("a reserved byte of a frame header is not zero")
                if not 1 <= items <= frame_items or sealed_size != items * item_size:
                    raise damaged("a frame's size is over its limit or not that of its items")
                if left < FRAME_OVERHEAD + sealed_size:
                    break
                if first != expected:
                    raise damaged(f"a frame starts with item {first} where {expected} comes next")
                if items != count:
                    add()
                    count = items
                frames += 1
                expected += items
                position += FRAME_OVERHEAD + sealed_size
                continue
            add()
            if type in (layout.DATA_SEGMENT, layout.INDEX_SEGMENT):
                if any(window[at + 1 : at + 4]):
                    raise damaged("a reserved byte of a segment header is not zero")
                if left < SEGMENT_HEADER_SIZE:
                    break
                if authenticate:
                    self._authenticate_last(known)
                sealed = self._walk_segment(position, size)
                if sealed is None:
                    position = self.end
                    count = 0
                    continue
                if sealed:
                    return
                break
            if _all_zeros(self.fd, position, size):
                break
            if type == layout.FRAME:
                raise damaged("a frame stands before any segment")
            raise damaged(f"a block of unknown type {type}")
        add()
        if authenticate:
            self._authenticate_last(known)
        self.torn_bytes = size - self.end
        if self.torn_bytes >= TRAILER_SIZE and self._trailer(size) is not None:
            # What may be left of a sealed tape is not cut unasked.
            raise DamagedError("a trailer ends what is no index", self.end)

    def _walk_segment(self, at: int, size: int) -> bool | None:
        """Take the segment whose header stands at `at`.

        Returns:
            None for a data segment, otherwise whether the index and its trailer are whole.
        """
        header = layout.parse_segment(self._read_segment_header(at), at)
        prev, prev_frames = self._previous(len(self.segments))
        if (header.number, header.prev, header.prev_frames) != (
            len(self.segments),
            prev,
            prev_frames,
        ):
            raise DamagedError("a segment does not follow the one before it", at)
        key, commitment = self.data_key.segment_key(self.header.tape_id, header.fields)
        if not hmac.compare_digest(commitment, header.commitment):
            raise DamagedError("a segment's commitment is wrong", at)
        if header.type == layout.DATA_SEGMENT:
            self.add_segment(commitment, key)
            return None
        text, end, complete = self._index_text(key, at + SEGMENT_HEADER_SIZE, size)
        if not complete or size - end < TRAILER_SIZE or _all_zeros(self.fd, end, size):
            return False
        if files.pread_exact(self.fd, TRAILER_SIZE, end) != layout.build_trailer(at):
            raise DamagedError("something else than a trailer follows the index", end)
        if size > end + TRAILER_SIZE:
            raise DamagedError("something follows the trailer", end + TRAILER_SIZE)
        index = layout.parse_index(text, self.header.content, self.header.body, at)
        if (index.segments, index.runs) != (self.segments, self.runs):
            raise DamagedError("the index is not that of the frames before it", at)
        self.bounds, self.index_commitment = index.bounds, commitment
        return True

    def _authenticate_last(self, known: int) -> None:
        """Open the last frame of the last segment, unless it is one of the first `known` frames of the tape.

        Raises:
            DamagedError: it is not authentic; it is forgotten, and so are those before it up to one that is.
        """
        failed: DamagedError | None = None
        while self.frames > known and self.segments[-1].frames:
            try:
                self.open_last()
                break
            except DamagedError as error:
                failed = failed or error
                self.drop_last_frame()
        if failed is not None:
            raise failed

    def open_last(self) -> None:
        """Open the last frame; there must be one.

        Raises:
            DamagedError: it is not authentic.
        """
        run = self.runs[-1]
        self.open_frames(run, run.frames - 1, run.frames)

    # Opening it

    def segment_key(self, number: int) -> AESGCM:
        """Return the key of a data segment, derived and compared with the commitment known of it.

        Raises:
            DamagedError: the header that stands there is not the one the tape was found with.
        """
        key = self._keys.get(number)
        if key is None:
            entry = self.segments[number]
            header = layout.parse_segment(self._read_segment_header(entry.offset), entry.offset)
            prev, prev_frames = self._previous(number)
            expected = (layout.DATA_SEGMENT, number, prev, prev_frames)
            if (header.type, header.number, header.prev, header.prev_frames) != expected:
                raise DamagedError("a segment does not follow the one before it", entry.offset)
            key, commitment = self.data_key.segment_key(self.header.tape_id, header.fields)
            if not (
                hmac.compare_digest(commitment, header.commitment)
                and hmac.compare_digest(commitment, entry.commitment)
            ):
                raise DamagedError("a segment's commitment is wrong", entry.offset)
            self._keys[number] = key
        return key

    def open_frames(
        self, run: Run, start: int, stop: int, target: memoryview | None = None
    ) -> memoryview:
        """Read and open the frames start to stop (not included) of a run.

        Args:
            run: the run.
            start, stop: frames counted from the run's first; at least one.
            target: where the plaintext goes, of exactly its size; None: into scratch memory, for one frame alone.

        Returns:
            The plaintext: target, or scratch memory that the next call overwrites.

        Raises:
            DamagedError: a frame is not authentic; nothing of it is released.
        """
        frames = stop - start
        sealed = self._scratch.take(frames * run.step)
        offset = run.offset + start * run.step
        have = files.pread_into(self.fd, sealed, offset)
        if have < len(sealed):
            raise DamagedError("the file ends inside a frame", offset + have // run.step * run.step)
        try:
            self.segment_key(run.segment).open_frames(
                target,
                sealed,
                count=frames * run.items,
                item_size=self.item_size,
                frame_items=run.items,
                first=run.first_item + start * run.items,
                index=run.first_frame + start,
            )
        except InvalidTag as error:
            raise DamagedError(
                "a frame is not authentic", offset + error.index * run.step
            ) from None
        return sealed[layout.FRAME_HEADER_SIZE : -layout.TAG_SIZE] if target is None else target

    def run_at(self, position: int) -> int:
        """Return the number of the run that holds an item."""
        return bisect.bisect_right(self._starts, position) - 1

    def frame_at(self, position: int) -> tuple[int, memoryview]:
        """Open the frame that holds an item; return its first item's number and its plaintext, in scratch memory."""
        run = self.runs[self.run_at(position)]
        place = (position - run.first_item) // run.items
        return run.first_item + place * run.items, self.open_frames(run, place, place + 1)

    def read(self, start: int, stop: int, target: memoryview, threads: int) -> None:
        """Read and open the items start to stop (not included) into `target`, which has exactly their size.

        Raises:
            DamagedError: at the first frame, in the order of the tape, that is not authentic.
        """
        size = self.item_size

        def portion(run: Run, first: int, last: int) -> None:
            """Read the frames first to last (not included) of a run, all or in part between start and stop."""
            begin = run.first_item + first * run.items
            end = run.first_item + last * run.items
            if start <= begin and end <= stop:
                self.open_frames(
                    run, first, last, target[(begin - start) * size : (end - start) * size]
                )
                return
            plain = self.open_frames(run, first, last)
            low, high = max(start, begin), min(stop, end)
            target[(low - start) * size : (high - start) * size] = plain[
                (low - begin) * size : (high - begin) * size
            ]

        portions = self._portions(start, stop)
        if threads < 2 or (stop - start) * size < PARALLEL_SIZE:
            for work in portions:
                portion(*work)
        else:
            in_parallel(portion, portions, threads)

    def _portions(self, start: int, stop: int) -> Iterator[tuple[Run, int, int]]:
        """Cut the items start to stop into groups of frames: whole ones together, those at the edges alone."""
        number = self.run_at(start)
        while start < stop:
            run = self.runs[number]
            place = (start - run.first_item) // run.items
            last = min(run.frames, -(-(stop - run.first_item) // run.items))
            while place < last:
                begin = run.first_item + place * run.items
                whole = 0
                if begin >= start:
                    whole = min(
                        (stop - begin) // run.items, last - place, max(1, PORTION_SIZE // run.step)
                    )
                yield run, place, place + max(1, whole)
                place += max(1, whole)
            number += 1
            start = run.first_item + last * run.items

    def portions_of(self, runs: Iterable[Run]) -> Iterator[tuple[Run, int, int]]:
        """Cut all frames of some runs into groups that fit a core's cache."""
        for run in runs:
            frames = max(1, PORTION_SIZE // run.step)
            for start in range(0, run.frames, frames):
                yield run, start, min(start + frames, run.frames)


def in_parallel(
    do: Callable[[Run, int, int], None], portions: Iterator[tuple[Run, int, int]], threads: int
) -> None:
    """Call `do` for every portion on several threads, this one counted; of several errors raise the first in order."""
    guard = threading.Lock()
    failures: list[tuple[int, BaseException]] = []
    numbered = enumerate(portions)

    def work() -> None:
        number = -1
        try:
            while not failures:
                with guard:
                    number, portion = next(numbered, (-1, None))
                if portion is None:
                    return
                do(*portion)
        except BaseException as error:
            failures.append((number, error))

    def work_aside(end: _thread.LockType) -> None:
        try:
            work()
        finally:
            end.release()

    # What the others work with is the caller's, so an interrupt is raised only when they have ended. Python runs
    # handlers of signals between the lines of its own functions, those of Thread and Event too, which may then start or
    # wait for ever; so all threads are started in one call of C, and each end is a lock that is held until then.
    ends = [_thread.allocate_lock() for _ in range(threads - 1)]
    for end in ends:
        end.acquire()
    started: list[int] = []
    start = functools.partial(_thread.start_new_thread, work_aside)
    waiting = True
    while waiting:
        try:
            if not failures:
                started.extend(map(start, zip(ends, strict=True)))
                work()
            for end in ends[: len(started)]:
                with end:
                    pass
            waiting = False
        except BaseException as error:
            failures.append((-1, error))
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]


def _all_zeros(fd: int, start: int, stop: int) -> bool:
    """Whether a file holds nothing but zeros, and something, from start to stop."""
    position = start
    while position < stop:
        piece = files.pread_exact(fd, min(1 << 20, stop - position), position)
        if not piece or piece.count(0) != len(piece):
            return False
        position += len(piece)
    return start < stop


def frame_bounds(records: np.ndarray[Any, np.dtype[Any]], field: str, frame_items: int) -> bytes:
    """Return the smallest and largest value of a field in each frame of `frame_items` records, as stored.

    NaN and NaT take no part; a frame of nothing else stores its first record's value for both (FORMAT 6).
    """
    values = records[field]
    smallest, largest = (
        (np.minimum, np.maximum) if values.dtype.kind in "iu" else (np.fmin, np.fmax)
    )
    frames = -(-len(values) // frame_items)
    whole = len(values) // frame_items
    bounds = np.empty((frames, 2), values.dtype)
    with np.errstate(invalid="ignore"):
        if whole:
            square = values[: whole * frame_items].reshape(whole, frame_items)
            bounds[:whole, 0] = smallest.reduce(square, axis=1)
            bounds[:whole, 1] = largest.reduce(square, axis=1)
        if whole < frames:
            bounds[whole, 0] = smallest.reduce(values[whole * frame_items :])
            bounds[whole, 1] = largest.reduce(values[whole * frame_items :])
    if values.dtype.kind not in "iu":
        nothing = np.isnat(bounds[:, 0]) if values.dtype.kind in "mM" else np.isnan(bounds[:, 0])
        bounds[nothing] = values[::frame_items][nothing, None]
    return bounds.tobytes()
