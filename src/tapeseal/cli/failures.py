"""What errors mean to a shell: one line on standard error and an exit code."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable

import click

from tapeseal import errors

OK = 0
DAMAGED = 1
USAGE = 2
UNAVAILABLE = 3
BUG = 70
INTERRUPTED = 130
BROKEN_PIPE = 141  # 128 + SIGPIPE: what a shell says of any program whose reader went away.

# Damage is what nobody may miss; a usage error is mended by who made it.
_BADNESS = (OK, USAGE, UNAVAILABLE, BUG, DAMAGED)

_DAMAGED = (
    errors.DamagedError,
    errors.NotATapeError,
    errors.UnsealedError,
    errors.InvalidTag,
    errors.ContextMismatchError,
    errors.SignatureError,
)
_USAGE = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    errors.LimitError,
    ModuleNotFoundError,  # Of an extra, which its text names.
    ValueError,
)


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error leads to."""
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, _DAMAGED):
        return DAMAGED
    if isinstance(error, errors.KeyUnavailableError):
        return UNAVAILABLE
    if isinstance(error, _USAGE):
        return USAGE
    if isinstance(error, errors.TapesealError | OSError | MemoryError):
        return UNAVAILABLE
    return BUG


def worst(codes: Iterable[int]) -> int:
    """Return the exit code of several, OK of none."""
    return max(codes, key=_BADNESS.index, default=OK)


def printable(text: str) -> str:
    """Return text without what a terminal would act on: names in a foreign file are anyone's to choose."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "replace").decode()
        for each in text
    )


def say(text: str, what: str | None = None) -> None:
    """Write one line to standard error."""
    # Where standard error is full or closed the exit code has to do.
    with contextlib.suppress(OSError):
        click.echo(f"tapeseal: {what + ': ' if what else ''}{printable(text)}", err=True)


def describe(error: BaseException, file: str | None = None) -> str:
    """Return one line that says what happened, and to which file."""
    if isinstance(error, click.UsageError):
        hint = f"; see {error.ctx.command_path} --help" if error.ctx is not None else ""
        return error.format_message().removesuffix(".") + hint
    if isinstance(error, click.ClickException):
        return error.format_message()
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if isinstance(error.filename, str | bytes):
            text = f"{os.fsdecode(error.filename)}: {text}"
    elif isinstance(error, MemoryError):
        text = "out of memory"
    elif isinstance(error, errors.LimitError):
        text = text.replace("rewrap into a copy of the file", "give --copy")
    if exit_code(error) == BUG:
        text = f"a bug of tapeseal: {type(error).__name__}: {text}; TAPESEAL_DEBUG=1 shows where"
    return text if file is None or file in text else f"{file}: {text}"


def report(error: BaseException, file: str | None = None, *, as_json: bool = False) -> int:
    """Say what happened and return its exit code."""
    code = exit_code(error)
    text = describe(error, file)
    if os.environ.get("TAPESEAL_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    say(text, "error")
    if as_json:
        click.echo(json.dumps({"file": file, "error": text, "exit_code": code}))
    return code


def each(files: Iterable[str], work: Callable[[str], int | None], *, as_json: bool = False) -> int:
    """Do the work for each file, going on past those that fail; return the exit code of the worst."""
    codes = []
    for file in files:
        try:
            codes.append(work(file) or OK)
        except BrokenPipeError:
            raise
        except Exception as error:
            codes.append(report(error, file, as_json=as_json))
    return worst(codes)
