"""Opening tapes, and replacing the recipients of one."""

import contextlib
import errno
import io
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import DTypeLike

from tapeseal import audit, files, header, layout
from tapeseal.body import Body
from tapeseal.datakey import Keyring
from tapeseal.errors import DamagedError
from tapeseal.files import StrPath
from tapeseal.layout import Content
from tapeseal.reader import ByteReader, TapeReader
from tapeseal.writer import ByteWriter, FrameWriter, Output, TapeWriter

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

    def go_on() -> tuple[Output, Body, Path | None]:
        def check(content: Content) -> None:
            _check_same(content, kind, record_type, encryption_context, index_by)

        return _audited(
            "tape.append", name, lambda: _open_to_append(name, keyring, expect, recover, check)
        )

    def start() -> tuple[Output, Body, Path | None]:
        if (record_type is None) != (kind == "bytes"):
            raise ValueError(
                "a new tape of records needs a dtype"
                if kind == "records"
                else "bytes have no dtype"
            )
        return _audited(
            "tape.create",
            name,
            lambda: create(
                name,
                keyring,
                kind,
                record_type,
                frame_size,
                index_by,
                encryption_context or {},
                replace=mode[0] == "w",
            ),
        )

    if mode[0] != "a":
        opened = start()
    elif os.path.lexists(name):
        opened = go_on()
    else:
        try:
            opened = start()
        except FileExistsError:
            opened = go_on()
    output, body, cut = opened
    try:
        return (TapeWriter if kind == "records" else ByteWriter)(output, body, threads, cut)
    except BaseException:
        body.close()
        output.close()
        raise


def _audited(
    action: str, path: str, opening: Callable[[], tuple[Output, Body, Path | None]]
) -> tuple[Output, Body, Path | None]:
    """Open a tape for its writer and record that; what cannot be recorded is given up again."""
    with contextlib.ExitStack() as stack:
        with audit.operation(action, os.path.abspath(path)) as entry:
            output, body, cut = opening()
            stack.callback(output.close)
            stack.callback(body.close)
            entry.details["tape_id"] = body.header.tape_id.hex()
        stack.pop_all()
    return output, body, cut


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
        with audit.operation("tape.read", os.path.abspath(path)) as entry:
            body = load(fd, keyring, expect, recover)[0]
            entry.details["tape_id"] = body.header.tape_id.hex()
        return TapeReader(path, body, threads)
    except BaseException:
        os.close(fd)
        raise


def load(
    fd: int,
    keyring: Keyring,
    expect: Mapping[str, str] | None,
    recover: bool,
    *,
    check: Callable[[Content], None] | None = None,
    walk: bool = False,
) -> tuple[Body, DamagedError | None]:
    """Authenticate the tape in an open file and find its blocks.

    Args:
        fd: the file.
        keyring, expect, recover: as open() takes them.
        check: raises where the tape is not one that the caller can use.
        walk: look at each block, also where an index says where they are.

    Returns:
        The body, and with `recover` the damage that was met: the body then ends before it.
    """
    found = header.read_file(fd)
    if found.copy.copies != layout.FILE_COPIES:
        raise ValueError("this is a blob, not a tape: tapeseal.decrypt() opens it")
    body = Body(fd, found, header.unlock(found, keyring, expect))
    try:
        if check is not None:
            check(found.content)
        start = body.mark()
        try:
            if walk:
                body.walk(os.fstat(fd).st_size)
            else:
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
) -> tuple[Output, Body, None]:
    """Make a new tape of no items and lock it for its writer; arguments and errors as open()."""
    if not replace and os.path.lexists(path):
        # Before the keyring is asked for a key, which may cost a call over the network.
        raise FileExistsError(errno.EEXIST, "the file exists", path)
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
        try:
            kept = _make_file(path, raw, made.body, replace)
        except FileExistsError:
            if not replace:
                raise
            # Another writer was quicker; where it still is at it, its lock refuses this one.
            kept = _make_file(path, raw, made.body, replace)
        return Output(kept, path, new=True), Body(kept, made, data_key), None
    except BaseException:
        data_key.close()
        raise


def _make_file(path: str, raw: bytes, body: int, replace: bool) -> int:
    """Make the file of a new tape, in the place of one that is there with `replace`; return its locked descriptor."""
    target = os.path.realpath(path) if replace else path
    there = replace and os.path.exists(target)
    with contextlib.ExitStack() as stack:
        if there:
            # Held until the new file has the name, so that no writer begins with the old one.
            stack.enter_context(_locked(target, _whole))
        with files.new_file(target, 0o666, replace=there) as fd:
            files.pwrite_all(fd, raw, 0)
            files.lock(fd, body, 0, path)
            if there:
                os.fsync(fd)
            # The lock is of the open file, which this shares.
            return os.dup(fd)


def _open_locked(path: str, part: Callable[[int], tuple[int, int]]) -> int:
    """Open a file and lock the part of it, (start, size), that `part` gives for its descriptor."""
    while True:
        fd = open_file(path, os.O_RDWR)
        try:
            files.lock(fd, *part(fd), path)
            # Another file may have taken its name before the lock was there.
            if files.has_name(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _whole(fd: int) -> tuple[int, int]:
    return 0, 0


def _header_part(fd: int) -> tuple[int, int]:
    return 0, header.read_file(fd).body


def _body_part(fd: int) -> tuple[int, int]:
    return header.read_file(fd).body, 0


@contextlib.contextmanager
def _locked(path: str, part: Callable[[int], tuple[int, int]]) -> Iterator[int]:
    fd = _open_locked(path, part)
    try:
        yield fd
    finally:
        files.unlock(fd)
        os.close(fd)


def _open_to_append(
    path: str,
    keyring: Keyring,
    expect: Mapping[str, str] | None,
    recover: bool,
    check: Callable[[Content], None],
) -> tuple[Output, Body, Path | None]:
    fd = _open_locked(path, _body_part)
    try:
        body, damage = load(fd, keyring, expect, recover, check=check, walk=True)
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
    content: Content,
    kind: str,
    dtype: np.dtype[Any] | None,
    encryption_context: Mapping[str, str] | None,
    index_by: str | None,
) -> None:
    """Raise ValueError where what the caller states of an existing tape is not so."""
    for what, stated, found in (
        ("kind", kind, content.kind),
        ("dtype", dtype, content.dtype),
        ("encryption_context", None if encryption_context is None else dict(encryption_context),
         content.encryption_context),
        ("index_by", index_by, content.index_by),
    ):  # fmt: skip
        if stated is not None and stated != found:
            raise ValueError(f"the tape's {what} is {found}, not {stated}")


def rewrap(
    path: StrPath,
    *,
    keyring: Keyring,
    to: Keyring | None = None,
    complete: bool = False,
    copy: bool = False,
) -> int:
    """Replace the recipients of a tape: wrap its data key anew for `to`, for nobody else.

    In place, in the header alone, also while a recorder appends to the tape; a crash at any instant leaves it open to
    the old recipients or the new ones. This takes no key away from whoever had it: what an old recipient could read,
    or has copied, it still can.

    Args:
        path: the tape.
        keyring: opens it now.
        to: opens it from now on.
        complete: in place of `to`: keep the recipients, and wrap for those that are pending and `keyring`'s; others
            stay pending. A tape that has none is left as it is.
        copy: where the new recipients do not fit into the header, write a copy of the tape with a larger one and put
            it in the tape's place; refused while the tape is being written.

    Returns:
        The header's new generation.

    Raises:
        LimitError: they do not fit, and `copy` is False.
        TapeLockedError: another rewrap, or with `copy` a writer, has the tape.
        DamagedError, KeyUnavailableError, OSError: as open(); the tape is as it was.
    """
    if (to is None) != complete:
        raise ValueError("a rewrap takes either `to` or complete=True")
    name = os.fspath(path)
    with (
        audit.operation("tape.rewrap", os.path.abspath(name)) as entry,
        _locked(name, _whole if copy else _header_part) as fd,
    ):
        if copy:
            entry.version = generation = _rewrap_copy(name, fd, keyring, to)
        else:
            entry.version = generation = header.replace_recipients(fd, keyring, to)
        return generation


def _rewrap_copy(path: str, fd: int, keyring: Keyring, to: Keyring | None) -> int:
    body, _ = load(fd, keyring, None, False)
    with body.data_key as data_key:
        old = body.header
        generation = header.next_generation(data_key, old)
        recipients = header.new_recipients(data_key, old, keyring, to)
        if recipients is None:
            return generation - 1
        size = layout.file_copy_size(old.copy.content, recipients)
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
                # Under the key that is at hand: not everyone who wraps can unwrap.
                duplicate = os.dup(copy)
                try:
                    writer_body = Body(duplicate, header.read_file(duplicate), data_key)
                    writer_body.load()
                    writer = FrameWriter(Output(duplicate, path), writer_body, 1)
                except BaseException:
                    os.close(duplicate)
                    raise
                writer.close()
                if not shift:
                    # Nothing has moved, so the old index holds too, and a signature over it with it.
                    index = files.pread_exact(fd, os.fstat(fd).st_size - body.end, body.end)
                    files.pwrite_all(copy, index, body.end)
                    os.ftruncate(copy, body.end + len(index))
            os.fsync(copy)
        files.sync_directory(path)
    return generation
