"""tapeseal secrets run, render: secrets on their way to a program, past arguments and Python objects."""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from tapeseal.cli.child import Child, as_variable
from tapeseal.cli.kv import Place, stores
from tapeseal.files import new_file, write_all
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.vault.kv import KeyValue, SecretVersion

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"\$\$\{|\$\{([^}|\n]*)(?:\|([a-z0-9]+))?\}")
_MAX_TEMPLATE = 1 << 22


class _Reader:
    """Reads each secret once, and gives members of it."""

    def __init__(self, store: Callable[[str], "KeyValue"], stack: ExitStack) -> None:
        self._store = store
        self._stack = stack
        self._read: dict[str, SecretVersion] = {}

    def __call__(self, place: Place) -> Secret | None:
        path = f"{place.mount}/{place.path}"
        if path not in self._read:
            found = self._store(place.mount).read(place.path)
            self._read[path] = self._stack.enter_context(found)
        assert place.member is not None
        return self._read[path][place.member]


def _pairs(texts: Sequence[str]) -> dict[str, Place]:
    pairs: dict[str, Place] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise click.UsageError(f"{text!r} is not NAME=PATH#MEMBER")
        if name in pairs:
            raise click.UsageError(f"{name} is given twice")
        pairs[name] = Place(place, member=True)
    return pairs


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--env",
    "env",
    metavar="NAME=PATH#MEMBER",
    multiple=True,
    help="Put a value into the command's environment; can be given several times.",
)
@click.option(
    "--file",
    "files",
    metavar="NAME=PATH#MEMBER",
    multiple=True,
    help="Put a value into a file in memory that NAME names; can be given several times.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    env: tuple[str, ...], files: tuple[str, ...], command: tuple[str, ...]
) -> int | Callable[[], NoReturn]:
    """Run a command with secrets in its environment, or in files for its eyes alone.

    \b
      tapeseal secrets run --env API_KEY=secret/api-keys/binance#key -- recorder
      tapeseal secrets run --file TLS_KEY=secret/gateway/tls#key -- gateway

    The command takes the place of this process, which leaves nothing in memory. With --file this process stays: it
    passes signals on, returns the command's exit code, and removes the files when that ends. They are of mode 0600,
    in a directory of their own in memory ($XDG_RUNTIME_DIR, or /dev/shm).

    An environment can be read by the same user and root (/proc/PID/environ), and is passed on to every further child;
    a file is not.
    """
    variables, in_files = _pairs(env), _pairs(files)
    for name in variables.keys() & in_files.keys():
        raise click.UsageError(f"{name} is given twice")
    child = Child.find(command)
    environment: dict[str, str] = dict(os.environ)
    with ExitStack() as stack:
        read = _Reader(stack.enter_context(stores()), stack)
        for name, place in variables.items():
            value = read(place)
            environment[name] = "" if value is None else as_variable(value)
            if "\0" in environment[name]:
                raise click.UsageError(
                    f"{place} has a zero byte, which no environment can: use --file"
                )
        if not in_files:
            # Once all that is open here is closed.
            return functools.partial(child.take_place, environment)
        directory = stack.enter_context(memory_directory())
        for name, place in in_files.items():
            path = directory / name
            with new_file(path, 0o600, replace=False) as fd:
                _write(fd, read(place))
            environment[name] = str(path)
        return child.run(environment)


@contextmanager
def memory_directory() -> Iterator[Path]:
    """Make a directory in memory, for this user alone; it is gone in the end.

    One that a killed process left behind is removed by the next.
    """
    memory = Path(os.environ.get("XDG_RUNTIME_DIR") or "/dev/shm")
    for old in memory.glob("tapeseal-[0-9]*-*"):
        with contextlib.suppress(OSError), _locked(old, fcntl.LOCK_NB) as status:
            if status.st_uid == os.geteuid():
                shutil.rmtree(old)
    with ExitStack() as stack:
        while True:
            try:
                directory = Path(tempfile.mkdtemp(prefix=f"tapeseal-{os.getpid()}-", dir=memory))
            except OSError as error:
                error.strerror = f"no place for a file in memory: {error.strerror}"
                raise
            # Another run may have come between, and taken it for left behind.
            with contextlib.suppress(FileNotFoundError):
                stack.enter_context(_locked(directory))
                if directory.exists():
                    break
        try:
            yield directory
        finally:
            shutil.rmtree(directory)


@contextmanager
def _locked(directory: Path, flags: int = 0) -> Iterator[os.stat_result]:
    """Hold the lock of a directory, which says that its process is alive; a process id may be another's by now.

    A container may see no process of those that share its memory, and be number 1 itself, as the one before it was.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | flags)
        yield os.fstat(fd)
    finally:
        os.close(fd)


def _write(fd: int, value: Secret | None) -> None:
    if value is not None:
        with value.buffer as buffer, memoryview(buffer) as view:
            write_all(fd, view)


def _in_json(value: Secret) -> Secret:
    from tapeseal.transport.scanner import in_string

    return Secret(in_string(value.buffer, of_any=True))


def _in_base64(value: Secret) -> Secret:
    return Secret(value.buffer.to_base64())


_FILTERS: dict[str, Callable[[Secret], Secret]] = {"json": _in_json, "base64": _in_base64}


@click.command()
@click.argument("template", type=click.Path(dir_okay=False))
@click.option(
    "-o", "--output", "out", metavar="OUT", type=click.Path(), required=True,
    help="The file, of mode 0600, which takes the place of one that is there; - for standard output.",
)  # fmt: skip
def render(template: str, out: str) -> None:
    """Fill secrets into the template of a configuration file.

    \b
      ${secret/binance#key}          the value as it is
      ${secret/binance#key|json}     as between the double quotes of JSON, TOML or YAML
      ${secret/binance#key|base64}   in base64
      $${                            stands for ${ itself

    All of it is read before anything is written; where a member is missing, nothing is.
    """
    with open(template, encoding="utf-8", newline="") as file:
        text = file.read(_MAX_TEMPLATE + 1)
    if len(text) > _MAX_TEMPLATE:
        raise click.UsageError(f"{template} has more than {_MAX_TEMPLATE} characters")
    with ExitStack() as stack:
        read: _Reader | None = None
        parts: list[bytes | Secret] = []
        at = 0

        def literal(stop: int) -> bytes:
            between = text[at:stop]
            if "${" in between:
                line = text.count("\n", 0, at + between.index("${")) + 1
                raise click.UsageError(f"{template}:{line}: a reference has no end")
            return between.encode()

        for found in _REFERENCE.finditer(text):
            parts.append(literal(found.start()))
            at = found.end()
            if found[0] == "$${":
                parts.append(b"${")
                continue
            line = text.count("\n", 0, found.start()) + 1
            try:
                place = Place(found[1], member=True)
                write = None if found[2] is None else _FILTERS[found[2]]
            except KeyError:
                raise click.UsageError(
                    f"{template}:{line}: there is no filter {found[2]!r}; there are {', '.join(_FILTERS)}"
                ) from None
            except ValueError as error:
                raise click.UsageError(f"{template}:{line}: {error}") from None
            read = read or _Reader(stack.enter_context(stores()), stack)
            value = read(place)
            if value is not None:
                parts.append(value if write is None else stack.enter_context(write(value)))
        parts.append(literal(len(text)))
        if out == "-":
            sys.stdout.flush()
            _write_parts(sys.stdout.fileno(), parts)
            return
        with new_file(out, 0o600, replace=True) as fd:
            os.fchmod(fd, 0o600)
            _write_parts(fd, parts)
            os.fsync(fd)


def _write_parts(fd: int, parts: Sequence[bytes | Secret]) -> None:
    for part in parts:
        if isinstance(part, Secret):
            _write(fd, part)
        else:
            write_all(fd, part)
