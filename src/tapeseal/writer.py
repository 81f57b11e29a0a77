"""Writing tapes: records or bytes in, sealed frames at the file's end out."""

from __future__ import annotations

import io
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from tapeseal import audit, files, layout
from tapeseal._core import AESGCM, check_process, copy_into, process_epoch
from tapeseal.body import Anchor, Body, Mark, Scratch, frame_bounds, in_parallel
from tapeseal.errors import LimitError, TapeChangedError, TapesealError
from tapeseal.layout import FRAME_OVERHEAD, SEGMENT_HEADER_SIZE, Index, Run

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Frames are sealed and written in groups of about this many bytes: source and target stay in a core's L2 cache.
GROUP_SIZE = 256 * 1024
# Two threads gain nothing on less.
PARALLEL_GROUP_SIZE = 2 * 1024 * 1024

# Called with (commitment of the segment, first frame, frames) before each seal: tests count nonces by it.
seal_hook: Callable[[bytes, int, int], None] | None = None


class Output:
    """The end of a tape's file."""

    def __init__(self, fd: int, path: str, *, new: bool = False) -> None:
        self.fd = fd
        self.path = path
        # Whether the file's name still has to be made durable.
        self._new = new

    def write(self, data: memoryview, offset: int) -> None:
        """Write data at offset, which must be the file's end: nobody else may have cut or written the file."""
        self.check(offset)
        files.pwrite_all(self.fd, data, offset)

    def check(self, offset: int) -> None:
        """Raise TapeChangedError unless the file ends at offset."""
        size = os.fstat(self.fd).st_size
        if size != offset:
            raise TapeChangedError(
                f"{self.path} has {size} bytes where its writer left {offset}: somebody else changed it"
            )

    def cut(self, offset: int) -> None:
        """Cut off whatever a failed write left behind offset."""
        size = os.fstat(self.fd).st_size
        if size < offset:
            raise TapeChangedError(
                f"{self.path} was cut to {size} bytes while its writer was at {offset}"
            )
        os.ftruncate(self.fd, offset)

    def sync(self) -> None:
        """Make what was written durable, and at first the file's name."""
        os.fsync(self.fd)
        if self._new:
            files.sync_directory(self.path)
            self._new = False

    def unlock(self) -> None:
        """Give up the lock, also where a fork holds the file open."""
        if self.fd >= 0:
            files.unlock(self.fd)

    def close(self) -> None:
        """Give up the file; closing again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class StreamOutput(Output):
    """A binary stream, such as standard output: written in order, never cut, left open."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.path = str(getattr(stream, "name", "the stream"))
        self._stream = stream

    def write(self, data: memoryview, offset: int) -> None:
        """Write data; offset is where it stands in the tape."""
        files.write_stream(self._stream, data)

    def cut(self, offset: int) -> None:
        """Refuse: what has gone into a stream has gone."""
        raise TapeChangedError(f"writing to {self.path} failed, and a stream cannot be cut back")

    def sync(self) -> None:
        """Hand everything to the system; more is for the other end."""
        self._stream.flush()

    def unlock(self) -> None:
        """Do nothing: a stream has no lock."""

    def close(self) -> None:
        """Leave the stream to its owner."""


class FrameWriter:
    """Seals frames at the end of one tape; what TapeWriter and ByteWriter share. Items are records or bytes.

    One file has one writer. Its methods may be called from several threads, one waits for the other. In a forked
    child they raise ForkError.

    Every change is a transaction on the file: where sealing or writing fails, or is interrupted, the file is cut
    back to where it was and the next frame opens a new segment, so that no nonce is ever used twice and nothing that
    was written before is lost.

    Args:
        output: where the tape goes; this object owns its descriptor.
        body: what the tape has; its end is the file's end.
        threads: how many may share the sealing of a large append.
        cut: where the caller saved what it cut off a damaged tape.
    """

    def __init__(self, output: Output, body: Body, threads: int, cut: Path | None = None) -> None:
        self.path = output.path
        """The file's name."""
        self.tape_id = body.header.tape_id
        """The 16 random bytes that name the tape."""
        self.encryption_context = dict(body.header.content.encryption_context)
        """The public pairs bound to the tape."""
        self.cut = cut
        """Where recover=True saved the bytes it cut off; None: it cut nothing."""
        self._output = output
        self._body = body
        self._threads = threads
        self.item_size = body.item_size
        self._frame_items = body.frame_items
        # Plaintext of the frame that fills up. It is kept until the frame is written.
        self._plain = np.empty(body.frame_items * body.item_size, np.uint8)
        self._spare = np.empty_like(self._plain)
        self._fill = 0
        step = len(self._plain) + FRAME_OVERHEAD
        group = PARALLEL_GROUP_SIZE if threads > 1 else GROUP_SIZE
        self._group_frames = max(1, group // step)
        self._sealed: memoryview | None = None
        # The key of the segment that the next frame goes to; None: that frame opens a new one.
        self._key: AESGCM | None = None
        self._allowance = body.data_key.allowance
        self._index_by = body.header.content.index_by
        # Bounds of each frame since this writer took over; before: those of the tape it goes on with.
        self._bounds = bytearray()
        self._frames_before = body.frames
        self._bounds_before = body.bounds if body.sealed else None
        self._sealed_size = os.fstat(body.fd).st_size if body.sealed else 0
        # Set while nonces may have been used for frames that the body does not list.
        self._unfinished: tuple[Mark, int] | None = None
        self._failed = False
        self._closed = False
        self._lock = threading.Lock()
        self._epoch = process_epoch()

    @property
    def items(self) -> int:
        """Items appended to the tape in all, flushed or not."""
        return self._written.items + self._fill

    @property
    def size(self) -> int:
        """Bytes of the file that are written."""
        return self._written.end

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    @property
    def anchor(self) -> Anchor:
        """How far the tape has come; what is not flushed is not in it."""
        return self._body.anchor_at(self._written)

    @property
    def _written(self) -> Mark:
        """What the tape has for good: an unfinished transaction will be undone."""
        unfinished = self._unfinished
        return self._body.mark() if unfinished is None else unfinished[0]

    def put(self, source: Buffer, items: int) -> None:
        """Take a contiguous buffer of whole items: into the frame that fills up, or out where a frame gets full."""
        check_process(self._epoch)
        with self._lock:
            if self._closed:
                raise ValueError("the tape is closed")
            fill = self._fill
            allowance = self._allowance
            if fill + items < self._frame_items:
                # A frame is counted when it begins, as a full one; so what was appended can always be flushed.
                if allowance is not None and (allowance.spent is not None or not fill) and items:
                    allowance.take(1, len(self._plain))
                copy_into(self._plain, fill * self.item_size, source)
                self._fill = fill + items
                return
            view = memoryview(np.frombuffer(source, np.uint8))
            size = self.item_size
            if allowance is not None:
                frames = -(-(fill + items) // self._frame_items) - (fill > 0)
                allowance.take(frames, frames * len(self._plain))
            self._begin()
            taken = 0
            if fill:
                taken = self._frame_items - fill
                copy_into(self._plain, fill * size, view[: taken * size])
                self._seal(memoryview(self._plain), self._frame_items)
            whole = (items - taken) // self._frame_items * self._frame_items
            if whole:
                self._seal(view[taken * size : (taken + whole) * size], whole)
            copy_into(self._spare, 0, view[(taken + whole) * size :])
            # Nothing is called between these lines, so no interrupt comes between them: the records are either all
            # in, or undone with the old plaintext still there.
            self._plain, self._spare = self._spare, self._plain
            self._fill = items - taken - whole
            self._unfinished = None

    def put_from(
        self, read: Callable[[memoryview, int], None], items: int, done: Callable[[int], None]
    ) -> None:
        """Seal items that `read` gives, on all threads, each of which writes at the place of what it has sealed.

        For a new file that has no name yet, and nothing appended: a crash leaves holes, which readers take for damage.

        Args:
            read: fills a buffer with plaintext from a byte of it on; several threads call it.
            items: how many there are.
            done: called with the bytes of plaintext that were sealed and written, by one thread at a time.
        """
        check_process(self._epoch)
        body = self._body
        scratch, plain_scratch = Scratch(), Scratch()
        guard = threading.Lock()
        with self._lock:
            body.data_key.charge(-(-items // self._frame_items), items * self.item_size)
            self._begin()
            while items:
                count = min(
                    items,
                    layout.MAX_SEGMENT_SIZE
                    // self.item_size
                    // self._frame_items
                    * self._frame_items,
                )
                first_run, end = len(body.runs), body.end
                self._output.write(memoryview(self._new_segment()), end)
                self._consume(count)
                key = self._key
                assert key is not None
                bounds: dict[int, bytes] = {}

                def portion(
                    run: Run,
                    first: int,
                    last: int,
                    key: AESGCM = key,
                    bounds: dict[int, bytes] = bounds,
                ) -> None:
                    group = (last - first) * run.items
                    plain = plain_scratch.take(group * self.item_size)
                    read(plain, (run.first_item + first * run.items) * self.item_size)
                    if self._index_by is not None:
                        records = np.frombuffer(plain, body.header.content.dtype)
                        bounds[run.first_frame + first] = frame_bounds(
                            records, self._index_by, run.items
                        )
                    sealed = scratch.take((last - first) * run.step)
                    key.seal_frames(
                        sealed,
                        plain,
                        count=group,
                        item_size=self.item_size,
                        frame_items=run.items,
                        first=run.first_item + first * run.items,
                        index=run.first_frame + first,
                    )
                    files.pwrite_all(self._output.fd, sealed, run.offset + first * run.step)
                    with guard:
                        done(len(plain))

                in_parallel(portion, body.portions_of(body.runs[first_run:]), self._threads)
                self._bounds += b"".join(bounds[number] for number in sorted(bounds))
                items -= count
            self._unfinished = None

    def flush(self, sync: bool = False) -> None:
        """Seal and write everything appended so far: a reader sees it when this returns.

        Args:
            sync: make it durable as well (fsync of the file, and of its directory the first time).

        Raises:
            OSError: the disk is full or failed. What was flushed before is untouched, what was not is still here:
                flush again when there is room.
        """
        check_process(self._epoch)
        with self._lock:
            if self._closed:
                raise ValueError("the tape is closed")
            self._flush()
            if sync:
                self._sync()

    def _flush(self) -> None:
        if self._fill:
            self._begin()
            used = self._fill * self.item_size
            self._seal(memoryview(self._plain)[:used], self._fill)
            self._fill = 0
            self._unfinished = None
            if self._allowance is not None:
                self._allowance.give_back(len(self._plain) - used)

    def _sync(self) -> None:
        try:
            self._output.sync()
        except OSError:
            # The kernel may have dropped the pages that it could not write; only reopening tells what is there.
            self._failed = True
            raise

    def _begin(self) -> None:
        self._check_failed()
        if self._unfinished is not None:
            self._undo()
        sealed = self._body.sealed
        if sealed:
            self._check_sealed_end()
        before = (self._body.mark(), len(self._bounds))
        # Nothing is called, so no interrupt comes, until the body is an open one: to undo this cuts off the index.
        self._unfinished = before
        if sealed:
            # The index goes before anything is added; until new frames are there the tape is an open one.
            self._body.bounds = self._body.index_commitment = None
            self._output.cut(self._body.end)
            self._sync()

    def _check_failed(self) -> None:
        if self._failed:
            raise TapeChangedError(
                f"{self._output.path}: an earlier failure left the file unknown; open it anew"
            )

    def _check_sealed_end(self) -> None:
        try:
            self._output.check(self._sealed_size)
        except TapeChangedError:
            self._failed = True
            raise

    def _undo(self) -> None:
        """Return file and body to where the last transaction began; the next frame opens a new segment."""
        assert self._unfinished is not None
        mark, bounds = self._unfinished
        self._key = None
        self._body.reset(mark)
        del self._bounds[bounds:]
        try:
            self._output.cut(mark.end)
        except TapeChangedError:
            self._failed = True
            raise
        self._unfinished = None

    def _seal(self, source: memoryview, items: int) -> None:
        """Seal items into frames, all but the last of them full, and write them; part of a transaction."""
        try:
            if self._index_by is not None:
                records = np.frombuffer(source, self._body.header.content.dtype)
                self._bounds += frame_bounds(records, self._index_by, self._frame_items)
            size = self.item_size
            group = self._group_frames * self._frame_items
            for start in range(0, items, group):
                count = min(group, items - start)
                self._seal_group(source[start * size : (start + count) * size], count)
        except OSError:
            # Cut back at once, so that a full disk gets its room back. Where even that fails the next call tries.
            try:
                self._undo()
            except (OSError, TapeChangedError):
                pass
            raise
        except TapeChangedError:
            self._failed = True
            raise

    def _seal_group(self, source: memoryview, count: int) -> None:
        body = self._body
        frames = -(-count // self._frame_items)
        if self._sealed is None:
            step = len(self._plain) + FRAME_OVERHEAD
            self._sealed = memoryview(
                np.empty(SEGMENT_HEADER_SIZE + self._group_frames * step, np.uint8)
            )
        start = body.end
        used = 0
        if self._key is None or self._segment_full(frames, count):
            self._sealed[:SEGMENT_HEADER_SIZE] = self._new_segment()
            used = SEGMENT_HEADER_SIZE
        segment = body.segments[-1]
        key = self._key
        assert key is not None
        first = body.items
        index = segment.frames
        self._consume(count)
        used += key.seal_frames(
            self._sealed[used:],
            source,
            count=count,
            item_size=self.item_size,
            frame_items=self._frame_items,
            first=first,
            index=index,
            threads=self._threads,
        )
        self._output.write(self._sealed[:used], start)

    def _consume(self, count: int) -> None:
        """Give the next numbers to the frames of `count` items: before anything is sealed under them."""
        segment = self._body.segments[-1]
        whole, rest = divmod(count, self._frame_items)
        if whole:
            self._body.add_frames(self._frame_items, whole)
        if rest:
            self._body.add_frames(rest, 1)
        if seal_hook is not None:
            seal_hook(segment.commitment, segment.frames, whole + (rest > 0))

    def _segment_full(self, frames: int, count: int) -> bool:
        segment = self._body.segments[-1]
        written = self._body.end - segment.offset
        return (
            segment.frames + frames > layout.MAX_SEGMENT_FRAMES
            or written + count * self.item_size > layout.MAX_SEGMENT_SIZE
        )

    def _new_segment(self) -> bytes:
        """Begin a data segment and return its header, which goes to the end of the file."""
        body = self._body
        if len(body.segments) >= 1 << 32:
            raise LimitError("a tape has at most 2**32 segments")
        fields = body.next_fields(layout.DATA_SEGMENT, secrets.token_bytes(32))
        key, commitment = body.data_key.segment_key(body.header.tape_id, fields)
        body.add_segment(commitment, key)
        self._key = key
        return fields + commitment

    def close(self, seal: bool = True) -> Anchor:
        """Flush, seal the tape with its index, make it durable, and give up the file and its lock.

        Args:
            seal: False leaves the tape open: readers take it, but cannot tell whether its end is the true end.

        Returns:
            The anchor, to be kept elsewhere and given to verify() later.

        Raises:
            OSError: the disk is full or failed. The tape is still open then: close it again, or close(seal=False).
            TapeChangedError: somebody else changed the file, or an earlier fsync failed; close(seal=False) gives
                it up as it is.
            AuditError: the tape is closed and safe, and the audit log could not take its anchor.
        """
        check_process(self._epoch)
        with self._lock:
            was_closed = self._closed
            if not self._closed:
                if seal:
                    self._check_failed()
                if not self._failed:
                    self._flush()
                    if self._unfinished is not None:
                        self._undo()
                    if seal and not self._body.sealed:
                        self._write_index()
                    self._sync()
            self._release()
            anchor = self.anchor
        if not was_closed:
            # Last, so that a log that fails costs no record.
            action = "tape.close" if anchor.index is None else "tape.seal"
            with audit.operation(
                action, os.path.abspath(self.path), tape_id=self.tape_id.hex(), anchor=str(anchor)
            ):
                pass
        return anchor

    def _release(self) -> None:
        """Give up keys, lock and file; done again, it ends what an interrupt left half done."""
        self._closed = True
        self._key = None
        self._body.close()
        if process_epoch() == self._epoch:
            self._output.unlock()
        self._output.close()

    def _write_index(self) -> None:
        body = self._body
        if self._index_by is not None and self._bounds_before is None:
            self._bounds_before = self._read_bounds()
        bounds = (self._bounds_before or b"") + self._bounds
        text = layout.build_index(Index(body.frames, body.items, body.segments, body.runs, bounds))
        frame_size = body.header.content.frame_size
        fields = body.next_fields(layout.INDEX_SEGMENT, secrets.token_bytes(32))
        key, commitment = body.data_key.segment_key(body.header.tape_id, fields)
        frames = max(1, -(-len(text) // frame_size))
        sealed = memoryview(
            bytearray(
                SEGMENT_HEADER_SIZE + len(text) + frames * FRAME_OVERHEAD + layout.TRAILER_SIZE
            )
        )
        # The trailer must not reach the disk before what it stands for: a power cut would leave a damaged tape.
        self._sync()
        self._begin()
        sealed[:SEGMENT_HEADER_SIZE] = fields + commitment
        if seal_hook is not None:
            seal_hook(commitment, 0, frames)
        key.seal_frames(
            sealed[SEGMENT_HEADER_SIZE : -layout.TRAILER_SIZE], text, count=len(text), item_size=1,
            frame_items=frame_size, first=0, index=0, final=True, threads=self._threads,
        )  # fmt: skip
        sealed[-layout.TRAILER_SIZE :] = layout.build_trailer(body.end)
        size = body.end + len(sealed)
        try:
            self._output.write(sealed, body.end)
            # Nothing is called between these lines, so no interrupt leaves an index that the body does not know of.
            self._sealed_size = size
            body.index_commitment = commitment
            self._unfinished = None
        except OSError:
            try:
                self._undo()
            except (OSError, TapeChangedError):
                pass
            raise
        except TapeChangedError:
            self._failed = True
            raise

    def _read_bounds(self) -> bytes:
        """Compute the bounds of the frames that were there before this writer: their tape had no index."""
        assert self._index_by is not None
        dtype = self._body.header.content.dtype
        bounds = []
        left = self._frames_before
        for run in self._body.runs:
            for place in range(min(left, run.frames)):
                plain = self._body.open_frames(run, place, place + 1)
                bounds.append(frame_bounds(np.frombuffer(plain, dtype), self._index_by, run.items))
            left -= min(left, run.frames)
        return b"".join(bounds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Sealed, or where an exception came through left open; the file is given up either way.
        try:
            if exc_value is None:
                self.close()
            else:
                self._close_after(exc_value)
        except BaseException as error:
            self._close_after(error)
            raise
        finally:
            self.__del__()

    def _close_after(self, error: BaseException) -> None:
        """Flush and leave the tape open; what else goes wrong does not hide the first error."""
        try:
            self.close(seal=False)
        except (OSError, TapesealError) as another:
            error.add_note(f"{self.path}: what was not flushed is lost: {another}")

    def __del__(self) -> None:
        # Dropped without close(): like a crash, the tape stays open and what was not flushed is lost.
        if hasattr(self, "_epoch"):
            self._release()

    def __reduce__(self) -> str:
        raise TypeError("a tape that is being written is neither pickled nor copied")


class TapeWriter(FrameWriter):
    """A tape of records open for writing; made by tapeseal.open()."""

    def __init__(self, output: Output, body: Body, threads: int, cut: Path | None = None) -> None:
        super().__init__(output, body, threads, cut)
        dtype = body.header.content.dtype
        assert dtype is not None
        self.dtype = dtype
        """Of the records."""
        self.index_by = body.header.content.index_by
        """The field whose smallest and largest value in each frame go into the index, or None."""

    def append(self, records: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Append records: all of them or, where this raises, none.

        They are readable after the next flush(), or when the frame they are in is full.

        Args:
            records: one-dimensional array, or a single record, of exactly the tape's dtype.

        Raises:
            TypeError: another dtype.
            ValueError: more dimensions than one, or the tape is closed.
            OSError: the disk is full or failed; records of earlier calls are safe: append again when there is room.
            TapeChangedError: somebody else changed the file.
            LimitError: a limit of the format, or of a DataKeyReserve for this tape's key; what was appended before
                can be flushed and sealed.
            ForkError: this process is a fork of the one that opened the tape.
        """
        if (
            records.__class__ is not np.ndarray
            or records.dtype is not self.dtype
            or records.ndim != 1
            or not records.flags.c_contiguous
        ):
            records = self._checked(records)
        self.put(records, len(records))

    def _checked(self, records: Any) -> np.ndarray[Any, np.dtype[Any]]:
        array = np.asarray(records)
        if array.dtype != self.dtype:
            raise TypeError(f"the tape holds records of dtype {self.dtype}, not {array.dtype}")
        if array.ndim > 1:
            raise ValueError(f"records are a one-dimensional array, not one of shape {array.shape}")
        array = array.reshape(-1)
        if array.flags.c_contiguous:
            return array
        # As plain bytes: copying structures numpy leaves whatever stood in memory in their padding.
        return np.ascontiguousarray(array.view(np.dtype((np.void, self.dtype.itemsize))))

    def __len__(self) -> int:
        return self.items


class ByteWriter(FrameWriter, io.BufferedIOBase):  # type: ignore[misc]  # close() returns the anchor
    """A tape of bytes open for writing, as a binary file object; made by tapeseal.open().

    write() appends, flush() makes what was written readable, close() seals. Leaving `with` by an exception, or
    dropping the object, leaves the tape open.
    """

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Buffer) -> int:
        """Append a contiguous buffer's bytes and return how many; errors as TapeWriter.append()."""
        with memoryview(data) as view:
            size = view.nbytes
        self.put(data, size)
        return size

    def tell(self) -> int:
        """Return how many bytes the tape has, flushed or not."""
        return self.items
