"""Rolling tapes: a recorder that starts a new tape by size or by time, and closes the old one behind its back."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from tapeseal import layout, tape
from tapeseal.body import Anchor
from tapeseal.datakey import Keyring
from tapeseal.errors import LimitError
from tapeseal.files import StrPath
from tapeseal.writer import TapeWriter

logger = logging.getLogger("tapeseal.recorder")


class Recorder:
    """Records into one tape after the other.

    A tape is rolled before the append that finds it too large, too old or at a limit of its data key (see
    DataKeyReserve); nothing is split. The old tape is sealed and made durable by a thread of the recorder's, so an
    append never waits for it. Several threads may share a recorder.

    Args:
        template: path with strftime codes, filled in from the time (UTC) at which the tape starts, and {names} of
            `fields`: "%Y%m%d/{feed}-%H%M.tape". Directories are made. An existing file is never touched: the next
            free of name-1, name-2 and so on is taken.
        keyring: makes and wraps the data key of each tape.
        dtype: of the records.
        encryption_context, index_by, frame_size, threads: as tapeseal.open() takes them.
        roll_size: start a new tape when the present one has this many bytes; None: never by size.
        roll_seconds: start a new tape whenever the time (seconds since 1970, UTC) passes a multiple of this; None:
            never by time.
        fields: values of the template's {names}.
        on_close: called with path and anchor of each tape that was sealed, in the recorder's thread.

    Raises:
        ValueError: a limit below 1, or a name in the template without a field.
        Others as tapeseal.open(), for the first tape.
    """

    def __init__(
        self,
        template: StrPath,
        *,
        keyring: Keyring,
        dtype: DTypeLike,
        encryption_context: Mapping[str, str] | None = None,
        index_by: str | None = None,
        frame_size: int = layout.DEFAULT_FRAME_SIZE,
        threads: int | None = None,
        roll_size: int | None = None,
        roll_seconds: float | None = None,
        fields: Mapping[str, str] | None = None,
        on_close: Callable[[str, Anchor], None] | None = None,
    ) -> None:
        self._closed = True
        if (1 if roll_size is None else roll_size) < 1 or (
            1 if roll_seconds is None else roll_seconds
        ) <= 0:
            raise ValueError("roll_size and roll_seconds must be above 0")
        self._template = os.fspath(template)
        self._fields = dict(fields or {})
        self._keyring = keyring
        self._dtype = np.dtype(dtype)
        self._encryption_context = encryption_context
        self._index_by = index_by
        self._frame_size = frame_size
        self._threads = threads
        self._roll_size = roll_size
        self._roll_seconds = roll_seconds
        self._on_close = on_close
        self._lock = threading.Lock()
        self._closing: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._open_next()
        self._closed = False

    @property
    def path(self) -> str:
        """The file of the present tape."""
        return self._tape.path

    def append(self, records: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Append records, to a new tape where the present one is due; all of them or, where this raises, none.

        Raises:
            As TapeWriter.append(), and once what went wrong while an earlier tape was sealed in the background; that
            tape is then open, not sealed, and holds all that was flushed. As tapeseal.open(), where a new tape is
            due: the next append tries again.
        """
        with self._lock:
            self._check()
            if self._due():
                self._roll()
            while True:
                try:
                    self._tape.append(records)
                    return
                except LimitError:
                    # Again where other tapes were quicker to use up the next data key; in the end there is none left.
                    self._roll()

    def flush(self, sync: bool = False) -> None:
        """Make everything appended readable, with sync durable; errors as append()."""
        with self._lock:
            self._check()
            self._tape.flush(sync)
            if sync:
                # Sealing makes the earlier tapes durable.
                self._wait()
                self._check()

    def _wait(self) -> None:
        for thread in self._closing:
            thread.join()

    def _check(self) -> None:
        if self._closed:
            raise ValueError("the recorder is closed")
        if self._errors:
            raise self._errors.pop(0)

    def _due(self) -> bool:
        if self._roll_size is not None and self._tape.size >= self._roll_size:
            return True
        return self._roll_at is not None and time.time() >= self._roll_at

    def _roll(self) -> None:
        old = self._tape
        # Now, not behind: what flush() returns for must be readable, in whichever tape it is.
        old.flush()
        self._open_next()
        self._close_behind(old)

    def _open_next(self) -> None:
        now = time.time()
        name = time.strftime(self._template, time.gmtime(now))
        try:
            wanted = Path(name.format_map(self._fields))
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"the template {self._template!r} names {error}, for which there is no field"
            ) from None
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            path = (
                wanted
                if number == 0
                else wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
            )
            try:
                self._tape: TapeWriter = tape.open(
                    path,
                    "x",
                    keyring=self._keyring,
                    dtype=self._dtype,
                    encryption_context=self._encryption_context,
                    index_by=self._index_by,
                    frame_size=self._frame_size,
                    threads=self._threads,
                )
                break
            except FileExistsError:
                continue
        self._roll_at = None
        if self._roll_seconds is not None:
            self._roll_at = (now // self._roll_seconds + 1) * self._roll_seconds

    def _close_behind(self, old: TapeWriter) -> None:
        """Seal a tape in a thread of its own: closings wait for the disk, and one must not hold up the next."""
        self._closing = [thread for thread in self._closing if thread.is_alive()]
        thread = threading.Thread(
            target=self._close_tape, args=(old,), name=f"tapeseal closing {old.path}"
        )
        self._closing.append(thread)
        thread.start()

    def _close_tape(self, old: TapeWriter) -> None:
        try:
            with old:
                anchor = old.close()
            if self._on_close is not None:
                self._on_close(old.path, anchor)
        except BaseException as error:
            logger.error("sealing %s failed: %s", old.path, error)
            self._errors.append(error)

    def close(self, seal: bool = True) -> None:
        """Seal the present tape and wait until all are sealed; closing again does nothing.

        Args:
            seal: False leaves the present tape open.

        Raises:
            What went wrong first, as append(); every file is given up all the same.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if seal:
                    self._close_tape(self._tape)
                else:
                    self._tape.close(seal=False)
            finally:
                self._wait()
            if self._errors:
                raise self._errors.pop(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(seal=exc_type is None)
