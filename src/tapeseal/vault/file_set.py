"""Files that belong together, such as a key and its certificate, replaced as a whole.

    DIRECTORY/20261127T105343Z-9f2c/   a set: its files, each written once
    DIRECTORY/current                  symlink to the set in use
    DIRECTORY/previous                 symlink to the one before it
    DIRECTORY/pending                  symlink to the one being made; it becomes `current` by one rename

Why so: no file system replaces two files at once, but a rename replaces one symlink at once. Files written in an order,
and checked by the reader, would leave a time in which the new key stands beside the old certificate, and a crash in
that time would leave them so. Here a crash leaves the old set or the new one, whole.

A reader that resolves `current` once (FileSet.current, `readlink -f`) and opens its files below what it got has one
set: that stays unchanged, and stands until two more have come after it. A reader that opens two paths
through `current` can get the files of two sets if `current` moves between its two calls. That is why whoever
replaces a set holds the lock until its readers have been told to reload: during a reload nothing moves.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tapeseal.files import StrPath, sync_directory, write_all

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CURRENT, _PREVIOUS, _PENDING = "current", "previous", "pending"
_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")


class FileSet:
    """The sets of one directory.

    Args:
        directory: made by lock() where it is not there. Whatever else it holds is left alone.
    """

    def __init__(self, directory: StrPath) -> None:
        self.directory = Path(os.path.abspath(directory))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let nobody else change the directory meanwhile.

        Raises:
            BlockingIOError: somebody else is at it.
        """
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    error.errno, "another run is at work on it", str(self.directory)
                ) from None
            yield
        finally:
            os.close(fd)

    def current(self) -> Path | None:
        """Return the directory of the set in use, which never changes; None before the first."""
        return self.target(_CURRENT)

    def previous(self) -> Path | None:
        """Return the directory of the set before, None where there is none."""
        return self.target(_PREVIOUS)

    def pending(self) -> Path | None:
        """Return the directory of the set that a run has begun and not finished, None where there is none."""
        return self.target(_PENDING)

    def target(self, name: str) -> Path | None:
        """Return the set that a symlink of the directory leads to, None where there is no such link.

        Raises:
            FileExistsError: something else has its name.
        """
        path = self.directory / name
        try:
            set_name = os.readlink(path)
        except FileNotFoundError:
            return None
        except OSError:
            set_name = ""
        if not _NAME.fullmatch(set_name):
            raise FileExistsError(errno.EEXIST, "this is no link to a set of files here", str(path))
        return self.directory / set_name

    # What only the holder of the lock may do

    def begin(self) -> Path:
        """Begin a set and return its directory: the one that a run before has begun, if there is one."""
        before, found = self.current(), self.pending()
        if found is not None and found.is_dir():
            return found
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
        made = self.directory / name
        made.mkdir(mode=0o755)
        if before is not None:
            _copy_access(before, made)
        self.link(_PENDING, made)
        return made

    def write(self, name: str, data: "Buffer", *, private: bool) -> None:
        """Write a file of the pending set, whole or not at all, and make it durable.

        It gets owner and permissions of the current set's file of that name.

        Args:
            name: of the file.
            data: its contents.
            private: it holds a secret: mode 0600 where there is no file yet, and never one that others have.

        Raises:
            PermissionError: the file before belongs to somebody to whom this process cannot give one.
        """
        pending = self.pending()
        assert pending is not None
        path, temporary = pending / name, pending / f".{name}.part"
        before = self.current()
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600 if private else 0o644)
        try:
            write_all(fd, data)
            with contextlib.suppress(FileNotFoundError):
                if before is not None:
                    _copy_access(before / name, fd, without=0o007 if private else 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
        sync_directory(path)

    def publish(self) -> None:
        """Make the pending set the current one, and the current one the previous."""
        pending, current = self.pending(), self.current()
        assert pending is not None
        if current is not None:
            self.link(_PREVIOUS, current)
        os.rename(self.directory / _PENDING, self.directory / _CURRENT)
        sync_directory(self.directory / _CURRENT)

    def roll_back(self) -> None:
        """Make the previous set the current one again.

        Raises:
            FileNotFoundError: there is none.
        """
        previous = self.previous()
        if previous is None or not previous.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, "there is no previous set", str(self.directory / _PREVIOUS)
            )
        self.link(_CURRENT, previous)

    def discard(self) -> None:
        """Give up the pending set."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory / _PENDING)
        self.prune()

    def prune(self) -> None:
        """Delete the sets that no link leads to."""
        wanted = {self.current(), self.previous(), self.pending()}
        for path in self.directory.iterdir():
            if _NAME.fullmatch(path.name) and path not in wanted:
                shutil.rmtree(path)

    def link(self, name: str, target: Path) -> None:
        """Have a symlink of the directory lead to a set, at once, and make that durable."""
        temporary = self.directory / f".{name}.part"
        temporary.unlink(missing_ok=True)
        os.symlink(target.name, temporary)
        os.rename(temporary, self.directory / name)
        sync_directory(temporary)


def _copy_access(source: Path, target: int | Path, without: int = 0) -> None:
    """Give a file the owner, group and permission bits of another."""
    wanted, have = os.stat(source), os.stat(target)
    if (wanted.st_uid, wanted.st_gid) != (have.st_uid, have.st_gid):
        try:
            os.chown(target, wanted.st_uid, wanted.st_gid)
        except PermissionError as error:
            raise PermissionError(
                error.errno,
                f"it belongs to uid {wanted.st_uid}, gid {wanted.st_gid}, to whom this user cannot give a file",
                str(source),
            ) from None
    os.chmod(target, stat.S_IMODE(wanted.st_mode) & ~without)
