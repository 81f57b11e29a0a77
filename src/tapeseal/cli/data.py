"""Small data that commands read and write whole: plaintexts, ciphertexts, signatures, keys."""

import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tapeseal._core import SecretBuffer, wipe
from tapeseal.files import new_file, pwrite_all, sync_directory, write_all

if TYPE_CHECKING:
    from typing_extensions import Buffer

_Command = TypeVar("_Command", bound=Callable[..., Any])


def file(command: _Command) -> _Command:
    """Add FILE, standard input by default."""
    return click.argument("file", metavar="[FILE]", default="-", type=click.Path())(command)


def out(command: _Command) -> _Command:
    """Add -o."""
    return click.option(
        "-o",
        "--output",
        "out",
        metavar="OUT",
        default="-",
        type=click.Path(),
        help="A new file, or - for standard output. [-]",
    )(command)


def read(path: str, limit: int) -> bytes:
    """Read all of a file, or of standard input where it is "-".

    Raises:
        ValueError: it has more bytes than the limit; no more than that were read.
    """
    with open(0 if path == "-" else path, "rb", closefd=path != "-") as opened:
        content = opened.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path}: it has more than {limit:,} bytes")
    return content


def read_secret(path: str, limit: int) -> SecretBuffer:
    """Read all of a file, as read() does, into key memory; no Python object keeps a copy."""
    buffer = bytearray(limit + 1)
    fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with memoryview(buffer) as view:
            size = 0
            while size <= limit and (got := os.readv(fd, [view[size:]])):
                size += got
            if size > limit:
                raise ValueError(f"{path}: it has more than {limit:,} bytes")
            return SecretBuffer.take(view[:size])
    finally:
        wipe(buffer)
        if path != "-":
            os.close(fd)


def write(path: str, content: "Buffer", *, secret: bool = False) -> None:
    """Write all of a new file, or to standard output where it is "-".

    Args:
        path: an existing file is refused, and none is there before it is whole.
        content: goes past Python's own buffers.
        secret: nobody but the owner may have access to the file.
    """
    if path == "-":
        sys.stdout.flush()
        write_all(sys.stdout.fileno(), content)
        return
    with new_file(path, 0o600 if secret else 0o666, replace=False) as fd:
        pwrite_all(fd, content, 0)
        os.fsync(fd)
    sync_directory(path)


def write_secret(path: str, content: SecretBuffer) -> None:
    """Write the bytes of a secret as write() does, and wipe it."""
    try:
        with content, memoryview(content) as view:
            write(path, view, secret=True)
    finally:
        content.close()


def check_new(path: str) -> None:
    """Raise FileExistsError where an output exists, before anything is done for it."""
    if path != "-" and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "the file exists", path)


def check_no_terminal(path: str, what: str) -> None:
    """Raise click.UsageError where bytes that are no text would go to a terminal."""
    if path == "-" and sys.stdout.isatty():
        raise click.UsageError(
            f"{what} is not written to a terminal: give -o", click.get_current_context()
        )
