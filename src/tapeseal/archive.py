"""Whole files: encrypt_file() and decrypt_file()."""

import contextlib
import errno
import io
import os
import shutil
import stat
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from tapeseal import audit, blob, files, header, layout
from tapeseal.body import Anchor, Body, Scratch, in_parallel
from tapeseal.datakey import Keyring
from tapeseal.errors import UnsealedError
from tapeseal.files import StrPath
from tapeseal.layout import Run
from tapeseal.tape import default_threads, load, open_file
from tapeseal.writer import ByteWriter, FrameWriter, Output, StreamOutput, TapeWriter

Progress = Callable[[int, int | None], None]

# Read, sealed and written at a time.
_CHUNK_SIZE = 2 * 1024 * 1024


def encrypt_file(
    source: StrPath | IO[bytes],
    target: StrPath | IO[bytes],
    *,
    keyring: Keyring,
    encryption_context: Mapping[str, str] | None = None,
    index_by: str | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Anchor:
    """Encrypt a file into a sealed tape: of records where its name ends in .npy, otherwise of bytes.

    Args:
        source: a path, or a binary file object that is read to its end.
        target: a path where nothing exists yet, or a binary file object. A path gets its name only when all is
            there and on disk.
        keyring: makes and wraps the data key.
        encryption_context: public pairs, bound to the tape's key and header.
        index_by: for records, a field as tapeseal.open() takes it.
        progress: called with the bytes read so far and in all, None where that is not known.
        threads: as tapeseal.open() takes it.

    Returns:
        The tape's anchor.

    Raises:
        FileExistsError: target exists.
        ValueError: a .npy file that holds no one-dimensional array of a dtype that can be stored.
        KeyUnavailableError: the keyring could not make a data key.
        OSError: reading or writing failed; nothing stands under target.
    """
    threads = default_threads() if threads is None else max(1, threads)
    with (
        audit.operation("tape.encrypt", _name(target), source=_name(source)) as entry,
        contextlib.ExitStack() as stack,
    ):
        stream: Any = source
        if isinstance(source, str | os.PathLike):
            stream = stack.enter_context(io.FileIO(source))
        left = _bytes_left(stream)
        dtype = None
        if str(getattr(stream, "name", "")).endswith(".npy"):
            dtype, left = _read_npy_header(stream)
        raw, data_key, made = header.create(
            keyring,
            kind="bytes" if dtype is None else "records",
            dtype=dtype,
            frame_size=layout.DEFAULT_FRAME_SIZE,
            index_by=index_by,
            encryption_context=encryption_context or {},
            copies=layout.FILE_COPIES,
        )
        stack.callback(data_key.close)
        entry.details["tape_id"] = made.tape_id.hex()
        if isinstance(target, str | os.PathLike):
            fd = stack.enter_context(files.new_file(target, 0o666, replace=False))
            output = Output(os.dup(fd), os.fspath(target))
        else:
            fd, output = -1, StreamOutput(target)
        output.write(memoryview(raw), 0)
        body = Body(fd, made, data_key)
        with (ByteWriter if dtype is None else TapeWriter)(output, body, threads) as writer:
            # Of files that the kernel makes up the size is 0, whatever they hold.
            if left and fd >= 0:
                _seal_file(stream, left, writer, progress)
            else:
                _seal_stream(stream, left, writer, progress)
            anchor = writer.close()
    if isinstance(target, str | os.PathLike):
        files.sync_directory(target)
    return anchor


def _name(file: StrPath | IO[bytes]) -> str:
    """Return what the audit log calls a file."""
    if isinstance(file, str | os.PathLike):
        return os.path.abspath(file)
    return str(getattr(file, "name", "a stream"))


def _seal_file(stream: Any, size: int, writer: FrameWriter, progress: Progress | None) -> None:
    """Seal the `size` bytes that a regular file has left, from several places of it at once."""
    fd, start = stream.fileno(), stream.tell()
    sealed = 0

    def read(target: memoryview, offset: int) -> None:
        if files.pread_into(fd, target, start + offset) < len(target):
            raise OSError(errno.EIO, "the file was cut while it was read", stream.name)

    def done(more: int) -> None:
        nonlocal sealed
        sealed += more
        if progress is not None:
            progress(sealed, size)

    if os.fstat(fd).st_size - start != size:
        raise ValueError(
            f"{stream.name}: the file does not hold the {size} bytes of records of its header"
        )
    writer.put_from(read, size // writer.item_size, done)


def _seal_stream(
    stream: Any, size: int | None, writer: FrameWriter, progress: Progress | None
) -> None:
    """Seal what a stream gives to its end; `size`, where it is known, is how much that must be."""
    buffer = memoryview(np.empty(_CHUNK_SIZE // writer.item_size * writer.item_size, np.uint8))
    done, have = 0, len(buffer)
    while have == len(buffer):
        have = 0
        while have < len(buffer) and (got := stream.readinto(buffer[have:])):
            have += got
        if have % writer.item_size:
            raise ValueError(f"{stream.name}: the file ends inside a record")
        writer.put(buffer[:have], have // writer.item_size)
        done += have
        if progress is not None:
            progress(done, size)
    if writer.item_size > 1 and done != size:
        raise ValueError(
            f"{stream.name}: the file has {done} bytes of records where its header says {size}"
        )


def _bytes_left(stream: Any) -> int | None:
    """Return how many bytes a regular file still has, None for anything else."""
    try:
        status = os.fstat(stream.fileno())
        return status.st_size - stream.tell() if stat.S_ISREG(status.st_mode) else None
    except (OSError, AttributeError, ValueError):
        return None


def _read_npy_header(stream: Any) -> tuple[np.dtype[Any], int]:
    """Read the header of a .npy file; return its dtype and how many bytes follow."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            # Version 3 is version 2 in UTF-8, which numpy reads by a private function alone.
            read = np.lib.format._read_array_header  # type: ignore[attr-defined]
            shape, _, dtype = read(stream, version=version)
        else:
            shape, _, dtype = read(stream)
    except ValueError as error:
        raise ValueError(f"{stream.name}: not a .npy file: {error}") from None
    if len(shape) != 1 or dtype.subdtype is not None:
        raise ValueError(
            f"{stream.name}: a tape holds a one-dimensional array, not one of shape {shape}"
        )
    return dtype, shape[0] * dtype.itemsize


def decrypt_file(
    source: StrPath | IO[bytes],
    target: StrPath | IO[bytes],
    *,
    keyring: Keyring,
    expect: Mapping[str, str] | None = None,
    unsealed: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
) -> None:
    """Decrypt a tape into a file: a tape of records into a .npy file, a tape or blob of bytes into those bytes.

    Args:
        source: a path, or a binary file object; one that cannot seek is first copied, as it is, to a temporary file.
        target: a path where nothing exists yet, or a binary file object. A path gets its name only when all of it
            was authenticated and written; its permissions are 0600.
        keyring: unwraps the data key.
        expect: pairs that the encryption context must have.
        unsealed: take a tape that was never closed, up to its last authentic frame.
        progress: called with the bytes decrypted so far and in all.
        threads: as tapeseal.open() takes it.

    Raises:
        UnsealedError: the tape was never closed, so it may have been cut, and `unsealed` is False.
        FileExistsError: target exists.
        DamagedError, NotATapeError, ContextMismatchError, KeyUnavailableError: as tapeseal.open().
        OSError: reading or writing failed; nothing stands under target.
    """
    threads = default_threads() if threads is None else max(1, threads)
    with (
        audit.operation("tape.decrypt", _name(source), target=_name(target)) as entry,
        contextlib.ExitStack() as stack,
    ):
        fd = _open_source(source, stack)
        found = header.read_file(fd)
        entry.details["tape_id"] = found.tape_id.hex()
        if found.copy.copies == layout.BLOB_COPIES:
            whole = files.pread_exact(fd, os.fstat(fd).st_size, 0)
            plain = blob.decrypt(whole, keyring=keyring, expect=expect)
            if isinstance(target, str | os.PathLike):
                with files.new_file(target, 0o600, replace=False) as out:
                    files.pwrite_all(out, plain, 0)
            else:
                files.write_stream(target, plain)
            return
        body, _ = load(fd, keyring, expect, False)
        stack.callback(body.close)
        if not (body.sealed or unsealed):
            raise UnsealedError(
                "the tape was never closed, so whether records are missing at its end cannot be told; "
                "give unsealed=True (--unsealed) to take what is there"
            )
        dtype = body.header.content.dtype
        start = b"" if dtype is None else npy_header(dtype, body.items)
        if isinstance(target, str | os.PathLike):
            with files.new_file(target, 0o600, replace=False) as out:
                files.pwrite_all(out, start, 0)
                _copy_to_file(body, out, len(start), progress, threads)
        else:
            files.write_stream(target, start)
            _copy_to_stream(body, target, progress, threads)
            target.flush()


def _open_source(source: StrPath | IO[bytes], stack: contextlib.ExitStack) -> int:
    """Return a descriptor of a regular file with the source's bytes."""
    if isinstance(source, str | os.PathLike):
        fd = open_file(os.fspath(source), os.O_RDONLY)
        stack.callback(os.close, fd)
        return fd
    import tempfile  # Not at import: it is seldom needed, and costs milliseconds.

    spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    shutil.copyfileobj(source, spool, _CHUNK_SIZE)
    spool.flush()
    return spool.fileno()


def npy_header(dtype: np.dtype[Any], items: int) -> bytes:
    """Return what a .npy file of `items` records starts with."""
    fields = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (items,),
    }
    start = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(start, fields)
    except ValueError:
        # Over 64 KiB, or names that Latin-1 lacks: version 3.0, which numpy reads but has no public writer of.
        text = repr(fields).encode()
        padding = -(8 + 4 + len(text) + 1) % 64
        size = (len(text) + padding + 1).to_bytes(4, "little")
        return np.lib.format.magic(3, 0) + size + text + b" " * padding + b"\n"
    return start.getvalue()


def _copy_to_file(body: Body, fd: int, start: int, progress: Progress | None, threads: int) -> None:
    """Open all frames and write each group at its place, several at a time: nothing is under the final name yet."""
    scratch = Scratch()
    guard = threading.Lock()
    total = body.items * body.item_size
    done = 0

    def portion(run: Run, first: int, last: int) -> None:
        nonlocal done
        plain = scratch.take((last - first) * run.items * body.item_size)
        body.open_frames(run, first, last, plain)
        files.pwrite_all(fd, plain, start + (run.first_item + first * run.items) * body.item_size)
        with guard:
            done += len(plain)
            if progress is not None:
                progress(done, total)

    in_parallel(portion, body.portions_of(body.runs), threads)


def _copy_to_stream(body: Body, stream: IO[bytes], progress: Progress | None, threads: int) -> None:
    total = body.items * body.item_size
    items = max(1, 2 * _CHUNK_SIZE // body.item_size)
    buffer = memoryview(np.empty(items * body.item_size, np.uint8))
    for first in range(0, body.items, items):
        last = min(first + items, body.items)
        plain = buffer[: (last - first) * body.item_size]
        body.read(first, last, plain, threads)
        files.write_stream(stream, plain)
        if progress is not None:
            progress(last * body.item_size, total)
