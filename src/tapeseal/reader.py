"""Reading tapes: slices, ranges of a field, batches, a tape that is still being written, bytes as a file object."""

from __future__ import annotations

import contextlib
import io
import operator
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np

from tapeseal._core import check_process, process_epoch
from tapeseal.body import Anchor, Body
from tapeseal.closing import Closing
from tapeseal.errors import DamagedError, TapeChangedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Records = np.ndarray[Any, np.dtype[Any]]


class TapeReader(Closing):
    """A tape of records open for reading; made by tapeseal.open().

    It acts like a one-dimensional array whose parts are read and opened when they are asked for; what it returns is
    always the caller's own copy, and every byte of it was authenticated. Several threads may share it, and one may
    close it while others read: they get what they asked for. In a forked child it refuses with ForkError.
    """

    def __init__(self, path: str, body: Body, threads: int) -> None:
        self._body = body
        self._threads = threads
        content = body.header.content
        self.path = path
        """The file's name."""
        self.kind = content.kind
        """"records" or "bytes"."""
        self.dtype: np.dtype[Any] = np.dtype(np.uint8) if content.dtype is None else content.dtype
        """Of the records."""
        # Copying structures numpy leaves out their padding, and concatenating it makes native byte orders.
        self._plain_dtype = np.dtype((np.void, self.dtype.itemsize))
        self.encryption_context = dict(content.encryption_context)
        """The public pairs bound to the tape."""
        self.created = content.created
        """When the tape was made, in UTC: "2026-11-23T14:30:00Z"."""
        self.index_by = content.index_by
        """The field whose smallest and largest value in each frame stand in the index, or None."""
        self.frame_size = content.frame_size
        """Bytes of plaintext in a full frame, at most."""
        self.tape_id = body.header.tape_id
        """The 16 random bytes that name the tape."""
        # Not the body's, which counts frames before it has authenticated them.
        self._length = body.items
        self._closed = False
        self._descriptor = [body.fd]
        # One entry for each read that runs now, of any thread.
        self._running: set[object] = set()
        self._refreshing = threading.Lock()
        self._epoch = process_epoch()

    @property
    def sealed(self) -> bool:
        """Whether the tape was closed: its end is then the true end."""
        return self._body.sealed

    @property
    def torn_bytes(self) -> int:
        """Bytes at the end that a crash left unfinished; they hold nothing that flush() had returned for."""
        return self._body.torn_bytes

    @property
    def anchor(self) -> Anchor:
        """How far the tape has come."""
        check_process(self._epoch)
        with self._refreshing:
            return self._body.anchor

    @property
    def shape(self) -> tuple[int]:
        """As an array has it."""
        return (len(self),)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, item: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, item: slice) -> Records: ...
    def __getitem__(self, item: SupportsIndex | slice) -> Any:
        """Return one record, or the records of a slice with any step, as numpy does.

        Raises:
            IndexError: no such record.
            DamagedError: a frame that is needed is not authentic.
        """
        if isinstance(item, slice):
            chosen = range(*item.indices(len(self)))
            if len(chosen) == 0:
                return np.empty(0, self.dtype)
            backward = chosen.step < 0
            if backward:
                chosen = chosen[::-1]
            picked = (
                self._read(chosen.start, chosen.stop) if chosen.step == 1 else self._pick(chosen)
            )
            return picked[::-1] if backward else picked
        position = operator.index(item)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"record {item} of a tape of {len(self)}")
        return self._pick(range(position, position + 1))[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Records:
        if copy is False:
            raise ValueError("a tape cannot be an array without a copy")
        return np.asarray(self[:], dtype)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches():
            yield from batch

    def _read(self, start: int, stop: int) -> Records:
        with self._reading() as body:
            records = np.empty(stop - start, self.dtype)
            if stop > start:
                body.read(start, stop, memoryview(records.view(np.uint8)), self._threads)
            return records

    def _pick(self, chosen: range) -> Records:
        """Read the records of an ascending range, opening no frame that holds none of them."""
        records = np.empty(len(chosen), self._plain_dtype)
        done = 0
        with self._reading() as body:
            while done < len(chosen):
                position = chosen[done]
                first, plain = body.frame_at(position)
                frame = np.frombuffer(plain, self._plain_dtype)
                part = frame[position - first :: chosen.step][: len(chosen) - done]
                records[done : done + len(part)] = part
                done += len(part)
        return records.view(self.dtype)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Body]:
        """Keep file and keys for one read: after close() the number of the file may be that of another one."""
        me = object()
        try:
            self._running.add(me)
            # In this order, as close() first says that it closes and then looks for what runs: one sees the other.
            self._check_open()
            yield self._body
        finally:
            self._running.discard(me)
            if self._closed and not self._running:
                self._release()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the tape is closed")

    def batches(self, size: int = 65536) -> Iterator[Records]:
        """Iterate over all records in arrays of `size` records, the last one shorter.

        Raises:
            DamagedError: on reaching a frame that is not authentic.
        """
        if size < 1:
            raise ValueError(f"a batch has at least 1 record, not {size}")
        for start in range(0, len(self), size):
            yield self._read(start, min(start + size, len(self)))

    def between(self, field: str, start: Any, end: Any) -> Records:
        """Return the records whose field is start or more and less than end, in the order of the tape.

        On a sealed tape with index_by=field only frames that can hold such records are opened; otherwise all are.
        NaN and NaT are in no range.

        Args:
            field: a field of the records that can be compared.
            start, end: values as the field has them, or for times anything that numpy takes as one.

        Raises:
            ValueError: no such field.
            DamagedError: a frame that is needed is not authentic.
        """
        self._check_open()
        if self.dtype.names is None or field not in self.dtype.names:
            raise ValueError(
                f"{field!r} is no field of the records: they have {', '.join(self.dtype.names or ())}"
            )
        kind = self.dtype[field]
        if kind.kind in "mM":
            start, end = np.asarray(start, kind.kind + "8"), np.asarray(end, kind.kind + "8")
        found = [np.empty(0, self._plain_dtype)]
        for low, high in self._candidates(field, start, end):
            records = self._read(low, high)
            values = records[field]
            found.append(records.view(self._plain_dtype)[(values >= start) & (values < end)])
        return np.concatenate(found).view(self.dtype)

    def _candidates(self, field: str, start: Any, end: Any) -> Iterator[tuple[int, int]]:
        """Ranges of records, each of bounded size, that hold all records between start and end."""
        body = self._body
        size = max(1, (16 << 20) // self.dtype.itemsize)
        if field != self.index_by or body.bounds is None:
            spans = [(0, len(self))]
        else:
            bounds = np.frombuffer(body.bounds, self.dtype[field]).reshape(-1, 2)
            wanted = (bounds[:, 1] >= start) & (bounds[:, 0] < end)
            edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
            first_frames = np.cumsum([0] + [run.frames for run in body.runs])

            def item(frame: int) -> int:
                """Return the number of the first record of a frame, counted over the whole tape."""
                number = int(np.searchsorted(first_frames, frame, "right")) - 1
                if number == len(body.runs):
                    return body.items
                run = body.runs[number]
                return run.first_item + (frame - int(first_frames[number])) * run.items

            spans = [(item(int(a)), item(int(b))) for a, b in edges.reshape(-1, 2)]
        for low, high in spans:
            for begin in range(low, high, size):
                yield begin, min(begin + size, high)

    def follow(
        self, poll_seconds: float = 0.02, idle_seconds: float | None = None
    ) -> Iterator[Records]:
        """Iterate over all records from the first on, waiting for those still to be written.

        Ends when the tape is sealed and all of it was delivered.

        Args:
            poll_seconds: how long to sleep before looking again.
            idle_seconds: end also after so long without a new record; None: wait for ever.

        Raises:
            TapeChangedError: the file lost records that were delivered.
            DamagedError: something does not verify.
        """
        delivered = 0
        idle_since = time.monotonic()
        while True:
            length, sealed = self._refresh()
            if delivered < length:
                for start in range(delivered, length, 65536):
                    yield self._read(start, min(start + 65536, length))
                delivered = length
                idle_since = time.monotonic()
                continue
            idle = time.monotonic() - idle_since
            if sealed or (idle_seconds is not None and idle >= idle_seconds):
                return
            time.sleep(poll_seconds)

    def _refresh(self) -> tuple[int, bool]:
        """Take in what was written since the last look; return how many items there are, and whether these are all."""
        check_process(self._epoch)
        with self._reading() as body, self._refreshing:
            if not body.sealed:
                self._look(body)
            self._length = body.items
            return self._length, body.sealed

    def _look(self, body: Body) -> None:
        """Walk over what is new; raise where what was known is no longer there."""
        # A writer that cuts back and writes anew can be met in between; what is really damaged stays so.
        for attempt in range(3):
            # Its writer may have cut it back: nothing of it was delivered.
            body.drop_empty_segment()
            before = body.mark()
            size = os.fstat(body.fd).st_size
            problem = None
            if size >= body.end:
                try:
                    body.walk(size)
                except DamagedError as error:
                    body.reset(before)
                    problem = error
                if body.frames > before.frames or body.sealed:
                    # Frames of the same segment, or a segment that states how many frames are before it.
                    return
            self._check_last(size)
            if problem is None:
                return
            if attempt == 2:
                raise problem
            time.sleep(0.01)

    def _check_last(self, size: int) -> None:
        """Raise TapeChangedError where the last frame is no longer what it was."""
        try:
            if size >= self._body.end:
                if self._body.frames:
                    self._body.open_last()
                return
        except DamagedError:
            pass
        raise TapeChangedError(
            f"{self.path} was cut or written over: records that were read are gone from it"
        )

    def close(self) -> None:
        """Close the file and drop the keys; closing again does nothing.

        Where other threads are reading, the last of them to end does it.
        """
        self._closed = True
        if not self._running:
            self._release()

    def _release(self) -> None:
        self._body.close()
        self._body.fd = -1
        # Of two threads that come here together, one gets the descriptor.
        with contextlib.suppress(IndexError):
            os.close(self._descriptor.pop())

    def __del__(self) -> None:
        if hasattr(self, "_epoch"):
            self._closed = True
            self._release()

    def __repr__(self) -> str:
        return f"<TapeReader {self.path!r}: {len(self)} {self.kind}>"

    def __reduce__(self) -> str:
        raise TypeError("an open tape is neither pickled nor copied: open it where it is needed")


class ByteReader(io.RawIOBase):
    """The raw side of the file object that tapeseal.open(path, "rb") gives; seekable."""

    def __init__(self, tape: TapeReader) -> None:
        self.tape = tape
        """What the tape says of itself: sealed, torn_bytes, anchor, encryption_context."""
        self.name = tape.path
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the plaintext."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position in the plaintext and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self.tape)}.get(
            whence
        )
        if base is None or base + offset < 0:
            raise ValueError(f"cannot seek to {offset} with whence {whence}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Read and open the next bytes into a writable buffer and return how many, 0 at the end."""
        with self.tape._reading() as body, memoryview(buffer).cast("B") as target:
            stop = min(self._position + len(target), len(self.tape))
            size = max(0, stop - self._position)
            if size:
                body.read(self._position, stop, target[:size], self.tape._threads)
                self._position = stop
        return size

    def close(self) -> None:
        """Close the tape too."""
        if not self.closed:
            super().close()
            self.tape.close()
