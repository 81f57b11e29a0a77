"""Settings of a plan: which members a table may have, of which type, and all that is wrong with one at once."""

import functools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tapeseal.files import StrPath

REQUIRED: Final = object()
"""The default of a setting that has none."""

_NAMES: Final[Mapping[type, str]] = {
    str: "a text",
    int: "a whole number",
    bool: "true or false",
    list: "a list of texts",
    dict: "a table of texts",
    timedelta: 'a duration such as "90d", "12h", "15m" or "30s"',
    Path: "a path",
}
_DURATION: Final = re.compile(
    r"(?=[0-9])([0-9]{1,5}w)?([0-9]{1,5}d)?([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?"
)
_PART: Final = re.compile(r"([0-9]+)([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Setting:
    """One setting: its type and its default.

    Args:
        type: str, int, bool, list (of texts), dict (texts by name), timedelta (written as "90d") or Path (taken from
            the directory of the plan).
        default: what it is where the plan does not say; REQUIRED: the plan must.
        choices: the texts it may be; empty: any but the empty one.
        least: of a number the least.
        zero: of a duration, whether it may be none at all.
        names: whether it says which secret is meant: it stays what it is while a rotation is open.
    """

    type: type
    default: Any = REQUIRED
    choices: Sequence[str] = ()
    least: int = 0
    zero: bool = False
    names: bool = False


def parse_duration(text: str) -> timedelta:
    """Read a duration such as "90d" or "1h30m".

    Raises:
        ValueError: it is none.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is not {_NAMES[timedelta]}")
    parts = {_UNITS[unit]: int(number) for number, unit in _PART.findall(text)}
    return timedelta(**parts)


def duration_text(duration: timedelta) -> str:
    """Return a duration as a plan has it."""
    seconds = int(duration.total_seconds())
    text = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def read_settings(
    table: Mapping[str, Any],
    settings: Mapping[str, Setting],
    *,
    place: str,
    directory: StrPath = ".",
    problems: list[str],
) -> dict[str, Any]:
    """Check a table against its settings and fill in the defaults.

    Args:
        table: as it was read from TOML.
        settings: by name, those it may have.
        place: where the table stands, for what is said of problems.
        directory: where relative paths start.
        problems: each thing that is wrong is added: a place, a colon, and what and how to mend it.

    Returns:
        Each setting by its name; a wrong one is left out.
    """
    found = {}
    for name in sorted(table.keys() - settings.keys()):
        known = ", ".join(sorted(settings)) or "none"
        problems.append(f"{place}: there is no setting {name!r}; those here are: {known}")
    for name, setting in settings.items():
        if name not in table:
            if setting.default is REQUIRED:
                problems.append(f"{place}: {name} is missing: {_NAMES[setting.type]}")
            else:
                found[name] = setting.default
            continue
        try:
            found[name] = _value(table[name], setting, directory)
        except ValueError as error:
            problems.append(f"{place}: {name} {error}")
    return found


def _value(value: Any, setting: Setting, directory: StrPath) -> Any:
    wanted = setting.type
    if wanted is timedelta and isinstance(value, str):
        with suppress(ValueError):
            duration = parse_duration(value)
            if duration or setting.zero:
                return duration
    elif wanted is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(directory) / expanded(value)
    elif wanted is str and isinstance(value, str) and value:
        if not setting.choices or value in setting.choices:
            return value
        raise ValueError(f"is one of {', '.join(setting.choices)}, not {value!r}")
    elif wanted is int and isinstance(value, int) and not isinstance(value, bool):
        if value >= setting.least:
            return value
        raise ValueError(f"is {setting.least} or more, not {value}")
    elif (
        (wanted is bool and isinstance(value, bool))
        or (wanted is list and isinstance(value, list) and _texts(value) and value)
        or (wanted is dict and isinstance(value, dict) and _texts(value.values()))
    ):
        return value
    raise ValueError(f"is {_NAMES[wanted]}, not {_shown(value)}")


def expanded(path: str) -> Path:
    """Return a path with the directory for its ~.

    Raises:
        ValueError: nobody of that name has one.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~ and the name of somebody who is not known here") from None


def _texts(values: Any) -> bool:
    return all(isinstance(each, str) for each in values)


def _shown(value: Any) -> str:
    """Name a wrong value by its type, for somebody may have put a secret where it does not belong."""
    names = {
        str: "this text" if value else "an empty one",
        bool: "true or false",
        int: "a number",
        float: "a number with a point",
    }
    names |= {list: "such a list" if value else "an empty one", dict: "such a table"}
    return names.get(type(value), f"a {type(value).__name__}")


def load_class(registry: Mapping[str, str], name: str, what: str) -> Any:
    """Return the class that a registry names "MODULE:CLASS".

    Raises:
        ValueError: the registry has no such name.
    """
    if name not in registry:
        raise ValueError(f"there is no {what} {name!r}; those are: {', '.join(registry)}")
    return _loaded(registry[name])


@functools.cache
def _loaded(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
