"""Opening tapes, and replacing the recipients of one."""

import errno
import io
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import DTypeLike

from tapeseal import files, header, layout
from tapeseal.body import Body
from tapeseal.datakey import Keyring
from tapeseal.errors import DamagedError
from tapeseal.files import StrPath
from tapeseal.reader import ByteReader, TapeReader
from tapeseal.writer import ByteWriter, Output, TapeWriter

MODES = ("r", "w", "x", "a", "rb", "wb", "xb", "ab")


@overload
def open(
    path: StrPath,
    mode: Literal["r"] = "r",
    *,
    keyring: Keyring,
    expect: Mapping[str, str] | None = None,
    recover: bool = False,
    threads: int | None = None,
) -> TapeReader: ...
@overload
def open(
    path: StrPath,
    mode: Literal["w", "x", "a"],
    *,
    keyring: Keyring,
    dtype: DTypeLike | None = None,
    encryption_context: Mapping[str, str] | None = None,
    index_by: str | None = None,
    frame_size: int = layout.DEFAULT_FRAME_SIZE,
    expect: Mapping[str, str] | None = None,
    recover: bool = False,
    threads: int | None = None,
) -> TapeWriter: ...
@overload
def open(
    path: StrPath,
    mode: Literal["rb"],
    *,
    keyring: Keyring,
    expect: Mapping[str, str] | None = None,
    recover: bool = False,
    threads: int | None = None,
) -> io.BufferedReader: ...
@overload
def open(
    path: StrPath,
    mode: Literal["wb", "xb", "ab"],
    *,
    keyring: Keyring,
    encryption_context: Mapping[str, str] | None = None,
    frame_size: int = layout.DEFAULT_FRAME_SIZE,
    expect: Mapping[str, str] | None = None,
    recover: bool = False,
    threads: int | None = None,
) -> ByteWriter: ...
def open(
    path: StrPath,
    mode: str = "r",
    *,
    keyring: Keyring,
    dtype: DTypeLike | None = None,
    encryption_context: Mapping[str, str] | None = None,
    index_by: str | None = None,
    frame_size: int = layout.DEFAULT_FRAME_SIZE,
    expect: Mapping[str, str] | None = None,
    recover: bool = False,
    threads: int | None = None,
) -> TapeReader | TapeWriter | io.BufferedReader | ByteWriter:
    """Open a tape.

    Modes mean what they mean elsewhere in Python: "r" reads, "w" starts a tape anew in the place of an existing
    file, "x" makes one and refuses an existing file, "a" goes on with a tape, after a crash too, or makes one. Without
    "b" the tape is of records, with "b" it is of bytes and what is returned is a binary file object.

    Args:
        path: the file.
        mode: one of r w x a rb wb xb ab.
        keyring: what wraps or unwraps the tape's data key.
        dtype: of the records of a new tape; where "a" finds a tape it must be that tape's, or None.
        encryption_context: public pairs, bound to a new tape's key and header; where "a" finds a tape they must be
            that tape's, or None.
        index_by: a scalar field, of numbers or times, by which between() finds records of the sealed tape without
            reading all; new tapes alone.
        frame_size: bytes of plaintext that are sealed together, 4096 to 2**26; new tapes alone.
        expect: pairs that the encryption context of an existing tape must have.
        recover: go past damage: reading takes what stands before it, "a" saves what it cuts off in a file beside the
            tape (its `cut` attribute) and goes on.
        threads: how many may share the work of one call; None: one for each CPU this process may use, 8 at most.

    Returns:
        A TapeReader ("r"), a TapeWriter ("w", "x", "a"), an io.BufferedReader ("rb"; its `raw.tape` is a TapeReader)
        or a ByteWriter ("wb", "xb", "ab").

    Raises:
        ValueError: a mode, dtype, context or size that cannot be.
        FileNotFoundError, FileExistsError, OSError: as the built-in open() raises them.
        NotATapeError: the file is not a tape.
        DamagedError: the tape is damaged or forged; with its offset.
        ContextMismatchError: a pair of `expect` is missing.
        KeyUnavailableError: the keyring has no key for this tape.
        TapeLockedError: another writer has the tape open.
    """
    if mode not in MODES:
        raise ValueError(f"mode is one of {' '.join(MODES)}, not {mode!r}")
    name = os.fspath(path)
    kind = "bytes" if mode.endswith("b") else "records"
    threads = default_threads() if threads is None else max(1, threads)
    if mode[0] == "r":
        tape = open_reader(name, keyring, expect, recover=recover, threads=threads)
        if tape.kind != kind:
            tape.close()
            raise ValueError(
                f"{name} is a tape of {tape.kind}: open it with {'rb' if kind == 'records' else 'r'!r}"
            )
        return io.BufferedReader(ByteReader(tape), 4 * tape.frame_size) if kind == "bytes" else tape

    record_type = None if dtype is None else np.dtype(dtype)
    output, body, cut = None, None, None
    if mode[0] == "a":
        try:
            output, body, cut = _open_to_append(name, keyring, expect, recover)
        except FileNotFoundError:
            pass
        else:
            try:
                _check_same(body, kind, record_type, encryption_context, index_by)
            except ValueError:
                body.close()
                os.close(output.fd)
                raise
    if output is None or body is None:
        if (record_type is None) != (kind == "bytes"):
            raise ValueError(
                "a new tape of records needs a dtype"
                if kind == "records"
                else "bytes have no dtype"
            )
        output, body = create(
            name,
            keyring,
            kind,
            record_type,
            frame_size,
            index_by,
            encryption_context or {},
            replace=mode[0] == "w",
        )
    return (TapeWriter if kind == "records" else ByteWriter)(output, body, threads, cut)


def default_threads() -> int:
    """Return how many threads one call may use when nobody says."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(8, usable)


def open_file(path: str, flags: int) -> int:
    """Open a file that may hold a tape; anything but a regular file is refused."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "a tape is a regular file", path)
    return fd


def open_reader(
    path: str,
    keyring: Keyring,
    expect: Mapping[str, str] | None,
    *,
    recover: bool = False,
    threads: int = 1,
) -> TapeReader:
    """Open a tape of any kind for reading; arguments and errors as open()."""
    fd = open_file(path, os.O_RDONLY)
    try:
        return TapeReader(path, load(fd, keyring, expect, recover)[0], threads)
    except BaseException:
        os.close(fd)
        raise


def load(
    fd: int, keyring: Keyring, expect: Mapping[str, str] | None, recover: bool
) -> tuple[Body, DamagedError | None]:
    """Authenticate the tape in an open file and find its blocks.

    Returns:
        The body, and with `recover` the damage that was met: the body then ends before it.
    """
    found = header.read_file(fd)
    if found.copy.copies != layout.FILE_COPIES:
        raise ValueError("this is a blob, not a tape: tapeseal.decrypt() opens it")
    body = Body(fd, found, header.unlock(found, keyring, expect))
    try:
        start = body.mark()
        try:
            body.load()
            return body, None
        except DamagedError as damage:
            if not recover:
                raise
            body.reset(start)
            size = os.fstat(fd).st_size
            try:
                body.walk(size)
            except DamagedError:
                body.torn_bytes = size - body.end
            return body, damage
    except BaseException:
        body.close()
        raise


def create(
    path: str,
    keyring: Keyring,
    kind: str,
    dtype: np.dtype[Any] | None,
    frame_size: int,
    index_by: str | None,
    encryption_context: Mapping[str, str],
    *,
    replace: bool,
) -> tuple[Output, Body]:
    """Make a new tape of no items and lock it for its writer; arguments and errors as open()."""
    raw, data_key, made = header.create(
        keyring,
        kind=kind,
        dtype=dtype,
        frame_size=frame_size,
        index_by=index_by,
        encryption_context=encryption_context,
        copies=layout.FILE_COPIES,
    )
    try:
        if replace:
            _refuse_locked(path)
        with files.new_file(path, 0o666, replace=replace) as fd:
            files.pwrite_all(fd, raw, 0)
            files.lock(fd, made.body, 0, path)
            if replace:
                os.fsync(fd)
            # The lock is of the open file, which this shares.
            kept = os.dup(fd)
        return Output(kept, path, new=True), Body(kept, made, data_key)
    except BaseException:
        data_key.close()
        raise


def _refuse_locked(path: str) -> None:
    """Raise TapeLockedError where an existing file is being written as a tape."""
    try:
        fd = open_file(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        files.lock(fd, 0, 0, path)
    finally:
        os.close(fd)


def _open_to_append(
    path: str, keyring: Keyring, expect: Mapping[str, str] | None, recover: bool
) -> tuple[Output, Body, Path | None]:
    fd = open_file(path, os.O_RDWR)
    try:
        files.lock(fd, header.read_file(fd).body, 0, path)
        body, damage = load(fd, keyring, expect, recover)
        try:
            cut = None
            size = os.fstat(fd).st_size
            if damage is not None:
                cut = _save_rest(fd, path, body.end, size)
            if body.torn_bytes:
                os.ftruncate(fd, body.end)
                os.fsync(fd)
                body.torn_bytes = 0
            # The index of a sealed tape goes when the first new frame comes.
            return Output(fd, path), body, cut
        except BaseException:
            body.close()
            raise
    except BaseException:
        os.close(fd)
        raise


def _save_rest(fd: int, path: str, start: int, size: int) -> Path:
    """Copy the bytes from start on into a new file beside the tape, durably, and return its name."""
    saved = Path(f"{path}.cut-{start}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    number = 0
    while os.path.lexists(saved):
        number += 1
        saved = saved.with_name(f"{saved.name}-{number}")
    with files.new_file(saved, 0o600, replace=False) as copy:
        for offset in range(start, size, 1 << 20):
            piece = files.pread_exact(fd, min(1 << 20, size - offset), offset)
            files.pwrite_all(copy, piece, offset - start)
        os.fsync(copy)
    files.sync_directory(saved)
    return saved


def _check_same(
    body: Body,
    kind: str,
    dtype: np.dtype[Any] | None,
    encryption_context: Mapping[str, str] | None,
    index_by: str | None,
) -> None:
    """Raise ValueError where what the caller states of an existing tape is not so."""
    content = body.header.content
    for what, stated, found in (
        ("kind", kind, content.kind),
        ("dtype", dtype, content.dtype),
        ("encryption_context", None if encryption_context is None else dict(encryption_context),
         content.encryption_context),
        ("index_by", index_by, content.index_by),
    ):  # fmt: skip
        if stated is not None and stated != found:
            raise ValueError(f"the tape's {what} is {found}, not {stated}")


def rewrap(path: StrPath, *, keyring: Keyring, to: Keyring, copy: bool = False) -> int:
    """Replace the recipients of a tape: wrap its data key anew for `to`, for nobody else.

    In place, in the header alone, also while a recorder appends to the tape; a crash at any instant leaves it open to
    the old recipients or the new ones. This takes no key away from whoever had it: what an old recipient could read,
    or has copied, it still can.

    Args:
        path: the tape.
        keyring: opens it now.
        to: opens it from now on.
        copy: where the new recipients do not fit into the header, write a copy of the tape with a larger one and put
            it in the tape's place; refused while the tape is being written.

    Returns:
        The header's new generation.

    Raises:
        LimitError: they do not fit, and `copy` is False.
        TapeLockedError: another rewrap, or with `copy` a writer, has the tape.
        DamagedError, KeyUnavailableError, OSError: as open(); the tape is as it was.
    """
    name = os.fspath(path)
    fd = open_file(name, os.O_RDWR)
    try:
        if copy:
            return _rewrap_copy(name, fd, keyring, to)
        return header.replace_recipients(fd, keyring, to)
    finally:
        os.close(fd)


def _rewrap_copy(path: str, fd: int, keyring: Keyring, to: Keyring) -> int:
    files.lock(fd, 0, 0, path)
    body, _ = load(fd, keyring, None, False)
    with body.data_key as data_key:
        old = body.header
        recipients = layout.build_recipients(to.wrap(data_key, old.content.encryption_context))
        size = layout.file_copy_size(old.copy.content, recipients)
        generation = old.copy.generation + 1
        grown = old.copy._replace(copy_size=size)
        raw = header.build(data_key, grown, recipients, generation)
        with files.new_file(path, 0o600, replace=True) as copy:
            files.pwrite_all(copy, raw + raw, 0)
            shift = 2 * size - old.body
            for offset in range(old.body, body.end, 1 << 20):
                piece = files.pread_exact(fd, min(1 << 20, body.end - offset), offset)
                files.pwrite_all(copy, piece, offset + shift)
            if body.sealed:
                # The index holds offsets, so it is made anew; writing it also proves the copy.
                duplicate = os.dup(copy)
                writer_body, _ = load(duplicate, to, None, False)
                TapeWriter(Output(duplicate, path), writer_body, 1).close()
            os.fsync(copy)
        files.sync_directory(path)
    return generation
