"""Files that hold keys: secret ones, that nobody but their owner may have access to, and public ones."""

import contextlib
import os
import shlex
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tapeseal.errors import KeyUnavailableError


class PrivateKind(NamedTuple):
    """A kind of file that nobody but its owner may have access to; a public one others may read."""

    name: str
    flags: int
    kinds: tuple[Callable[[int], bool], ...]
    kinds_text: str
    if_missing: str
    public: bool = False


# Opened without waiting, so that a pipe is refused and not waited for.
KEY_FILE = PrivateKind(
    "key file",
    os.O_NONBLOCK,
    (stat.S_ISREG,),
    "regular file",
    "make one with: tapeseal keygen {path}",
)
# Either half stands at a path that a user gives. Which one it is its content says.
PUBLIC_HALF = PrivateKind(
    "key file",
    os.O_NONBLOCK,
    (stat.S_ISREG,),
    "regular file",
    "make one with: tapeseal keygen --public {path}",
    public=True,
)
PRIVATE_HALF = PUBLIC_HALF._replace(public=False)
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
    """Open a file for reading that check_private() lets pass."""
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
        check_private(fd, path, kind)
        yield fd
    finally:
        os.close(fd)


def check_private(fd: int, path: str, kind: PrivateKind) -> None:
    """Refuse an open file unless it belongs to this user, or root, and is closed to all others.

    One that is public they may read.
    """
    quoted = shlex.quote(path)
    # Of the file itself, wherever symlinks led: Kubernetes mounts secrets behind some.
    status = os.fstat(fd)
    if not any(is_kind(status.st_mode) for is_kind in kind.kinds):
        raise KeyUnavailableError(f"the {kind.name} {path} is no {kind.kinds_text}")
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyUnavailableError(
            f"the {kind.name} {path} belongs to another user (uid {status.st_uid}), who could "
            f"change it; run as that user, or: chown {os.geteuid()} {quoted}"
        )
    mode = stat.S_IMODE(status.st_mode)
    if kind.public and mode & 0o022:
        # Who puts another key in its place can open what is encrypted from then on.
        raise KeyUnavailableError(
            f"the {kind.name} {path} can be changed by others (mode {mode:04o}); "
            f"run: chmod go-w {quoted}"
        )
    if not kind.public and mode & 0o077:
        raise KeyUnavailableError(
            f"the {kind.name} {path} is not its owner's alone (mode {mode:04o}); "
            f"run: chmod 600 {quoted}"
        )
