"""tapeseal secrets get, put, patch, list, metadata, delete, undelete, destroy, forget."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tapeseal._core import SecretBuffer
from tapeseal.cli import options, output
from tapeseal.files import write_all
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.vault.kv import KeyValue

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MAX_VALUE = 1 << 20
_DURATION = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Place:
    """Where a secret is: PATH, or PATH#MEMBER."""

    def __init__(self, text: str, *, member: bool | None) -> None:
        path, mark, name = text.partition("#")
        mount, slash, rest = path.partition("/")
        if not mount or not slash or not rest or (mark and not name):
            raise ValueError(f"{text!r} is not MOUNT/PATH" + ("" if member is False else "#MEMBER"))
        if member is not None and member != bool(mark):
            what = "lacks the member: MOUNT/PATH#MEMBER" if member else "is of a whole secret: no #"
            raise ValueError(f"{text!r} {what}")
        self.mount, self.path, self.member = mount, rest, name or None

    def __str__(self) -> str:
        return f"{self.mount}/{self.path}" + (f"#{self.member}" if self.member else "")


@contextmanager
def stores() -> Iterator[Callable[[str], "KeyValue"]]:
    """Give what returns the store of a mount, all over one session of the environment's."""
    from tapeseal.vault.kv import KeyValue
    from tapeseal.vault.session import VaultSession  # Which take a while, for hvac.

    made: dict[str, KeyValue] = {}
    with VaultSession() as session:
        yield lambda mount: made.setdefault(mount, KeyValue(session, mount))


def _place(command: _Command) -> _Command:
    return click.argument("path", metavar="PATH")(command)


def _versions(command: _Command) -> _Command:
    return click.option(
        "--version",
        "versions",
        metavar="N",
        type=click.IntRange(1),
        multiple=True,
        help="Which version; can be given several times.",
    )(command)


def _cas(command: _Command) -> _Command:
    return click.option(
        "--cas",
        metavar="N",
        type=click.IntRange(0),
        help="Write only if N is the newest version now; 0: if there is none.",
    )(command)


@click.command()
@_place
@click.option("--version", metavar="N", type=click.IntRange(1), help="Not the newest version.")
@options.as_json
def get(path: str, version: int | None, as_json: bool) -> None:
    """Print the value of PATH#MEMBER, and nothing else; of PATH, which members it has.

    \b
      tapeseal secrets get secret/api-keys/binance
      tapeseal secrets get secret/api-keys/binance#key | ssh-add -

    A value goes to standard output as it is, with a line end where that is a terminal. --json reports what is
    known of the version, and no value.
    """
    place = Place(path, member=None)
    with stores() as store, store(place.mount).read(place.path, version) as found:
        if place.member is not None and not as_json:
            value = found[place.member]
            if value is not None:
                with value.buffer as buffer, memoryview(buffer) as view:
                    write_all(sys.stdout.fileno(), view)
            if sys.stdout.isatty():
                output.line()
            return
        report = {
            "path": found.path,
            "version": found.version,
            "created": found.created.isoformat(),
            "members": sorted(found),
            "custom_metadata": dict(found.custom),
        }
    if as_json:
        output.as_json(report)
    else:
        output.line(f"{report['path']}: version {report['version']}, {report['created']}")
        for member in sorted(found):
            output.line(f"  {member}")


_SOURCES = """
    Where each MEMBER comes from:

    \b
      MEMBER=@FILE        the bytes of a file, less one line end at its end
      MEMBER=-            the same of standard input
      MEMBER=?            asked for on the terminal, twice
      MEMBER=generate     40 random letters and digits; generate:N for N of them
"""


@click.command(help="Write a new version of PATH that has exactly these members.\n" + _SOURCES)
@_place
@click.argument("members", metavar="MEMBER=SOURCE...", nargs=-1)
@click.option(
    "--text",
    "texts",
    metavar="MEMBER=TEXT",
    multiple=True,
    help="A member that is not secret, such as a user's name; can be given several times.",
)
@_cas
@options.as_json
def put(
    path: str, members: tuple[str, ...], texts: tuple[str, ...], cas: int | None, as_json: bool
) -> None:
    """Write a new version."""
    place = Place(path, member=False)
    with gathered(members, texts) as values, stores() as store:
        _written(place, store(place.mount).write(place.path, values, cas=cas), as_json)


@click.command(help="Write a new version of PATH in which some members are changed.\n" + _SOURCES)
@_place
@click.argument("members", metavar="MEMBER=SOURCE...", nargs=-1)
@click.option("--text", "texts", metavar="MEMBER=TEXT", multiple=True, help="Not secret.")
@click.option("--remove", metavar="MEMBER", multiple=True, help="Can be given several times.")
@_cas
@options.as_json
def patch(
    path: str,
    members: tuple[str, ...],
    texts: tuple[str, ...],
    remove: tuple[str, ...],
    cas: int | None,
    as_json: bool,
) -> None:
    """Write a new version in which some members are changed."""
    place = Place(path, member=False)
    with gathered(members, texts, bool(remove)) as values, stores() as store:
        for name in remove:
            if name in values:
                raise click.UsageError(f"{name} is to be set and removed")
        changes = {**values, **dict.fromkeys(remove)}
        _written(place, store(place.mount).patch(place.path, changes, cas=cas), as_json)


def _written(place: Place, version: int, as_json: bool) -> None:
    if as_json:
        output.as_json({"path": str(place), "version": version})
    else:
        output.line(f"{place}: wrote version {version}")


@contextmanager
def gathered(
    members: Sequence[str], texts: Sequence[str], may_be_empty: bool = False
) -> Iterator[dict[str, Secret | str]]:
    """Give the values of members, from their sources; they are wiped in the end."""
    if not members and not texts and not may_be_empty:
        raise click.UsageError(
            "no member was given: MEMBER=@FILE, MEMBER=-, MEMBER=?, MEMBER=generate"
        )
    values: dict[str, Secret | str] = {}
    with ExitStack() as stack:
        for text in members:
            name, equals, source = text.partition("=")
            if not name or not equals:
                raise click.UsageError(f"{name!r} is not MEMBER=SOURCE")
            if name in values:
                raise click.UsageError(f"{name} is given twice")
            # Not looked at any further where it is none: it may be the secret itself.
            values[name] = stack.enter_context(_from_source(name, source))
        for text in texts:
            name, equals, value = text.partition("=")
            if not name or not equals or name in values:
                raise click.UsageError(f"{name!r} is given twice, or is not MEMBER=TEXT")
            values[name] = value
        yield values


def _from_source(name: str, source: str) -> Secret:
    length = re.fullmatch(r"generate(?::(\d{1,4}))?", source)
    if length is not None:
        return Secret.generate(int(length[1] or 40))
    if source == "-":
        return _read(0, f"standard input, for {name},")
    if source == "?":
        from tapeseal.keyrings.passphrase import has_terminal, passphrase_from_terminal

        if not has_terminal():
            raise click.UsageError(
                f"there is no terminal to ask for {name}: give {name}=@FILE or {name}=-"
            )
        return Secret(passphrase_from_terminal(f"{name}: ", confirm=True))
    if source.startswith("@"):
        fd = os.open(source[1:], os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read(fd, source[1:])
        finally:
            os.close(fd)
    raise click.UsageError(
        f"the value of {name} is given as an argument, which every user of the machine can read: "
        f"give {name}=@FILE, {name}=- or {name}=?, or --text for what is not secret"
    )


def _read(fd: int, what: str) -> Secret:
    """Read a value to its end, without a line end there."""
    with (
        contextlib.closing(SecretBuffer(_MAX_VALUE + 1, writable=True)) as room,
        room,
        memoryview(room) as view,
    ):
        done = 0
        while done < len(view) and (count := os.readv(fd, [view[done:]])):
            done += count
        if done > _MAX_VALUE:
            raise click.UsageError(f"{what} has more than {_MAX_VALUE} bytes")
        if done and view[done - 1] == ord("\n"):
            done -= 1
        if not done:
            raise click.UsageError(f"{what} is empty")
        return Secret.take(view[:done])


@click.command()
@click.argument("path", metavar="PATH")
@click.option("-r", "--recursive", is_flag=True, help="Go into folders, and name whole paths.")
@options.as_json
def list(path: str, recursive: bool, as_json: bool) -> None:
    """List the secrets under PATH: a mount, or a folder in one."""
    mount, _, folder = path.strip("/").partition("/")
    with stores() as store:
        for name in store(mount).list(folder, recursive=recursive):
            whole = f"{mount}/{name}" if recursive else name
            if as_json:
                output.as_json({"path": whole})
            else:
                output.line(whole)


@click.command()
@_place
@click.option(
    "--max-versions", metavar="N", type=click.IntRange(0), help="Keep N; 0: as the mount."
)
@click.option("--cas-required/--no-cas-required", default=None, help="Refuse writes without --cas.")
@click.option(
    "--delete-after", metavar="TIME", help="Delete versions by themselves: 90d; 0s: never."
)
@click.option(
    "--set",
    "custom",
    metavar="NAME=TEXT",
    multiple=True,
    help="Custom metadata, in the place of all there is; can be given several times.",
)
@options.as_json
def metadata(
    path: str,
    max_versions: int | None,
    cas_required: bool | None,
    delete_after: str | None,
    custom: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what is known of a secret without its values; with options, change that first."""
    place = Place(path, member=False)
    changes: dict[str, Any] = {
        "max_versions": max_versions,
        "cas_required": cas_required,
        "delete_after": None if delete_after is None else _duration(delete_after),
        "custom": dict(each.partition("=")[::2] for each in custom) or None,
    }
    with stores() as store:
        if any(each is not None for each in changes.values()):
            store(place.mount).configure(place.path, **changes)
        found = store(place.mount).metadata(place.path)
    if as_json:
        output.as_json(
            {
                "path": str(place),
                "current_version": found.current,
                "oldest_version": found.oldest,
                "created": found.created.isoformat(),
                "updated": found.updated.isoformat(),
                "max_versions": found.max_versions,
                "cas_required": found.cas_required,
                "delete_after_seconds": found.delete_after and found.delete_after.total_seconds(),
                "custom_metadata": dict(found.custom),
                "versions": [
                    {
                        "version": each.number,
                        "created": each.created.isoformat(),
                        "deleted": each.deleted and each.deleted.isoformat(),
                        "destroyed": each.destroyed,
                    }
                    for each in found.versions.values()
                ],
            }
        )
        return
    output.line(str(place))
    output.rows(
        [
            ("current version", str(found.current)),
            ("updated", f"{found.updated:%Y-%m-%d %H:%M:%S} UTC"),
            ("versions kept", str(found.max_versions or "as the mount says")),
            ("check-and-set", "required" if found.cas_required else "not required"),
            ("deleted after", str(found.delete_after or "never").removesuffix(", 0:00:00")),
            *sorted(found.custom.items()),
        ]
    )
    for each in found.versions.values():
        state = "destroyed" if each.destroyed else "deleted" if each.deleted else ""
        output.line(
            f"  version {each.number}  {each.created:%Y-%m-%d %H:%M:%S} UTC  {state}".rstrip()
        )


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is not None:
        with contextlib.suppress(OverflowError):
            return timedelta(**{_UNITS[found[2]]: int(found[1])})
    raise click.UsageError(f"{text!r} is no time: 90d, 12h, 30m or 20s")


@click.command()
@_place
@_versions
def delete(path: str, versions: tuple[int, ...]) -> None:
    """Delete versions of PATH, the newest one where none is named; `undelete` takes that back."""
    place = Place(path, member=False)
    with stores() as store:
        store(place.mount).delete(place.path, versions)
    output.line(f"{place}: deleted {_named(versions) or 'the newest version'}")


@click.command()
@_place
@_versions
def undelete(path: str, versions: tuple[int, ...]) -> None:
    """Take back the deletion of versions of PATH."""
    place = Place(path, member=False)
    _need(versions)
    with stores() as store:
        store(place.mount).undelete(place.path, versions)
    output.line(f"{place}: {_named(versions)} can be read again")


@click.command()
@_place
@_versions
@click.confirmation_option(prompt="Destroyed values cannot be had back. Destroy them?")
def destroy(path: str, versions: tuple[int, ...]) -> None:
    """Destroy the values of versions of PATH for good."""
    place = Place(path, member=False)
    _need(versions)
    with stores() as store:
        store(place.mount).destroy(place.path, versions)
    output.line(f"{place}: destroyed {_named(versions)}")


@click.command()
@_place
@click.confirmation_option(prompt="All versions and metadata are lost. Forget the secret?")
def forget(path: str) -> None:
    """Destroy PATH with all its versions and metadata."""
    place = Place(path, member=False)
    with stores() as store:
        store(place.mount).forget(place.path)
    output.line(f"{place}: forgotten")


def _need(versions: tuple[int, ...]) -> None:
    if not versions:
        raise click.UsageError("which versions? give --version N")


def _named(versions: tuple[int, ...]) -> str:
    return ", ".join(f"version {each}" for each in versions)
