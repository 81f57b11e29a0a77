"""Files as tapes need them: exact positioned reads and writes, record locks, new files without partial ones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tapeseal.errors import TapeLockedError

if TYPE_CHECKING:
    from typing_extensions import Buffer

StrPath = str | os.PathLike[str]


def pread_exact(fd: int, size: int, offset: int) -> bytes:
    """Read `size` bytes at `offset`, fewer where the file ends before."""
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def pread_into(fd: int, target: memoryview, offset: int) -> int:
    """Fill `target` with the bytes at `offset` and return how many there were before the file ended."""
    have = os.preadv(fd, [target], offset)
    while 0 < have < len(target):
        more = os.preadv(fd, [target[have:]], offset + have)
        if more == 0:
            break
        have += more
    return have


def pwrite_all(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`, going on after short writes."""
    with memoryview(data) as view:
        done = os.pwrite(fd, view, offset)
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)


def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data` to a file or pipe, going on after short writes."""
    with memoryview(data) as view:
        done = os.write(fd, view)
        while done < len(view):
            done += os.write(fd, view[done:])


def write_stream(stream: IO[bytes], data: Buffer) -> None:
    """Write all of `data` to a binary stream, going on after the short writes of an unbuffered one."""
    if not isinstance(stream, io.RawIOBase):
        stream.write(data)
        return
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            written = stream.write(view[done:])
            if written is None:
                raise BlockingIOError(errno.EAGAIN, "the stream would block", done)
            done += written


def sync_directory(path: StrPath) -> None:
    """Make the entry of `path` in its directory durable."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# struct flock of 64-bit systems: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def lock(fd: int, start: int, size: int, what: str) -> None:
    """Take an exclusive lock of the bytes from `start`, `size` of them or, with 0, all that follow.

    The lock is of the open file description, so it ends when the last descriptor of it is closed, and two
    openings in one process exclude each other too. Where the system has only process locks, those are taken.

    Raises:
        TapeLockedError: someone else holds a part of it.
    """
    try:
        if hasattr(fcntl, "F_OFD_SETLK"):
            fcntl.fcntl(
                fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, size, 0)
            )
        else:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, size, start)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise TapeLockedError(errno.EAGAIN, f"{what} is open for writing elsewhere") from None


def unlock(fd: int) -> None:
    """Give up all locks of an open file: a fork that inherited the descriptor would keep them otherwise."""
    if hasattr(fcntl, "F_OFD_SETLK"):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
    else:
        fcntl.lockf(fd, fcntl.LOCK_UN)


def has_name(fd: int, path: StrPath) -> bool:
    """Whether an open file is the one that stands under `path` now."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def new_file(
    path: StrPath, mode: int, *, replace: bool, temporary: Path | None = None
) -> Iterator[int]:
    """Open a new file for reading and writing under a temporary name; give it its own name when the body ends.

    An exception in the body removes it, so nothing partial ever stands under `path`. The descriptor is closed in the
    end; os.dup() keeps the file open. The body makes the contents durable where that matters.

    Args:
        path: the name it gets.
        mode: permission bits, less the umask.
        replace: take the place of an existing file, with its permission bits; otherwise that is a FileExistsError,
            before or after the body.
        temporary: the name until then, in the same directory and of no existing file; None: a random one beside.
    """
    target = Path(os.path.realpath(path) if replace else path)
    before = None
    if os.path.lexists(target):
        if not replace:
            raise FileExistsError(errno.EEXIST, "the file exists", str(target))
        before = target.stat()
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "not a regular file, so it is not replaced", str(target))
    if temporary is None:
        temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    fd = -1
    # The opening too: an interrupt can come when it has made the file.
    try:
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT, os.strerror(errno.ENOENT), str(target.parent)
            ) from None
        if before is not None:
            os.fchmod(fd, stat.S_IMODE(before.st_mode))
        yield fd
        if replace:
            os.replace(temporary, target)
        else:
            _rename_new(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if fd >= 0:
            os.close(fd)


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename, but never over an existing file."""
    try:
        os.link(temporary, target)
    except OSError as error:
        # Some file systems have no hard links; there the check and the rename are two steps.
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "the file exists", str(target)) from None
        os.rename(temporary, target)
    else:
        temporary.unlink()
