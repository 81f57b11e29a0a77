"""Options that several commands share."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _parse_pairs(
    ctx: click.Context, param: click.Parameter, texts: Sequence[str]
) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", ctx, param)
        if name in pairs:
            raise click.BadParameter(f"the name {name!r} stands twice", ctx, param)
        pairs[name] = value
    return pairs


def _parse_slice(ctx: click.Context, param: click.Parameter, text: str | None) -> slice | None:
    if text is None:
        return None
    if not re.fullmatch(r"[-+]?\d+|[-+]?\d*:[-+]?\d*(:[-+]?\d*)?", text):
        raise click.BadParameter(f"{text!r} is not A:B or A:B:S", ctx, param)
    if ":" not in text:
        number = int(text)
        return slice(number, number + 1 or None)
    parts = [int(part) if part else None for part in text.split(":")]
    if len(parts) == 3 and parts[2] == 0:
        raise click.BadParameter("the step is not 0", ctx, param)
    return slice(*parts)


def files(command: _Command) -> _Command:
    """Add FILE..., at least one."""
    return click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())(
        command
    )


def keyring(command: _Command) -> _Command:
    """Add -k."""
    return click.option(
        "-k",
        "--keyring",
        "keyrings",
        metavar="KEYRING",
        multiple=True,
        required=True,
        help="Where the key comes from, such as local:my.key; given several times, any of them"
        " opens, or those that hold shares of it together, and all of them are recipients.",
    )(command)


def context(command: _Command) -> _Command:
    """Add -c."""
    return click.option(
        "-c",
        "--context",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_parse_pairs,
        help="A public pair of the encryption context, bound to what is encrypted; can be given several times.",
    )(command)


def expect(command: _Command) -> _Command:
    """Add --expect."""
    return click.option(
        "--expect",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_parse_pairs,
        help="Refuse a tape whose encryption context lacks this pair; can be given several times.",
    )(command)


def records(command: _Command) -> _Command:
    """Add --records."""
    return click.option(
        "--records",
        "chosen",
        metavar="A:B[:S]",
        callback=_parse_slice,
        help="Records A up to B, not included, each S-th of them; as Python slices, also from the end.",
    )(command)


def as_json(command: _Command) -> _Command:
    """Add --json."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Report as JSON, one object a line and file."
    )(command)
