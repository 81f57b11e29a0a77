"""Files that hold secrets, and that nobody but their owner may have access to."""

import contextlib
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tapeseal.errors import KeyUnavailableError


class PrivateKind(NamedTuple):
    """A kind of file that nobody but its owner may have access to."""

    name: str
    flags: int
    kinds: tuple[Callable[[int], bool], ...]
    kinds_text: str
    if_missing: str


# Opened without waiting, so that a pipe is refused and not waited for.
KEY_FILE = PrivateKind(
    "key file",
    os.O_NONBLOCK,
    (stat.S_ISREG,),
    "regular file",
    "make one with: tapeseal keygen {path}",
)
# A pipe is what a shell gives for <(command).
PASSPHRASE_FILE = PrivateKind(
    "passphrase file",
    0,
    (stat.S_ISREG, stat.S_ISFIFO),
    "regular file or pipe",
    "is the path right?",
)


@contextlib.contextmanager
def open_private(path: str, kind: PrivateKind) -> Iterator[int]:
    """Open a file for reading that belongs to this user, or root, and is closed to all others."""
    quoted = shlex.quote(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | kind.flags)
    except FileNotFoundError:
        hint = kind.if_missing.format(path=quoted)
        raise KeyUnavailableError(f"there is no {kind.name} {path}; {hint}") from None
    except OSError as error:
        raise KeyUnavailableError(
            f"the {kind.name} {path} could not be opened: {error.strerror}"
        ) from None
    try:
        # Of the file itself, wherever symlinks led: Kubernetes mounts secrets behind some.
        status = os.fstat(fd)
        if not any(is_kind(status.st_mode) for is_kind in kind.kinds):
            raise KeyUnavailableError(f"the {kind.name} {path} is no {kind.kinds_text}")
        if status.st_uid not in (os.geteuid(), 0):
            raise KeyUnavailableError(
                f"the {kind.name} {path} belongs to another user (uid {status.st_uid}), who could "
                f"change it; run as that user, or: chown {os.geteuid()} {quoted}"
            )
        if status.st_mode & 0o077:
            raise KeyUnavailableError(
                f"the {kind.name} {path} is not its owner's alone "
                f"(mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 600 {quoted}"
            )
        yield fd
    finally:
        os.close(fd)
