"""Tapes that a retired wrapping key opens: rewrapped, and proven to be open without it."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tapeseal.errors import RotationError, ServiceUnavailableError
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.datakey import Keyring
    from tapeseal.fleet import Condition
    from tapeseal.layout import Recipient

TAPES: Final = {
    "tapes": Setting(list, default=[]),
    "recipients": Setting(list, default=[]),
}
"""`tapes` are the files, folders and patterns, absolute ones, of the tapes that the key wraps; `recipients` the URIs of
the other keyrings that they are wrapped for."""


def check_tapes(tapes: Sequence[str]) -> None:
    """Raise ValueError unless all are absolute."""
    for each in tapes:
        if not os.path.isabs(each):
            raise ValueError(f"tapes are absolute paths or patterns, not {each!r}")


def with_others(key: "Keyring", uris: Sequence[str]) -> "Keyring":
    """Return a keyring over a key and those that URIs name."""
    from tapeseal.keyrings import keyring
    from tapeseal.keyrings.any_of import AnyOf

    return AnyOf([key, *(keyring(uri) for uri in uris)]) if uris else key


def rewrap_exposed(
    tapes: Sequence[str], conditions: "Sequence[Condition]", *, keyring: "Keyring", to: "Keyring"
) -> int:
    """Rewrap the tapes that a key opens, and return how many; what is done is not done again.

    Args:
        tapes: as find_tapes() takes them.
        conditions: what makes a recipient of a tape one that is to go.
        keyring: opens them now.
        to: opens them from now on.

    Raises:
        RotationError: a tape has other recipients, who would be locked out.
        ServiceUnavailableError: some could not be rewrapped now.
    """
    from tapeseal.fleet import blast_radius, rewrap_fleet

    if not tapes:
        return 0
    paths, problems = [], []
    wanted = {name_of(each) for each in to.pending()}
    for found in blast_radius(found_tapes(tapes), conditions):
        if isinstance(found, tuple):
            problems.append(f"{found[0]}: {found[1]}")
            continue
        others = recipients_of(found.path) - wanted - {name_of(each) for each in found.recipients}
        if others:
            raise RotationError(
                f"{found.path} is wrapped for {', '.join(sorted(others))} too, which the plan does not name: add it to "
                "recipients, or it could not be opened by that any more"
            )
        paths.append(found.path)
    problems += [
        f"{done.path}: {done.error}"
        for done in rewrap_fleet(paths, keyring=keyring, to=to)
        if done.state == "failed"
    ]
    # What was written meanwhile may have begun under the old key.
    left = [
        found[0] if isinstance(found, tuple) else found.path
        for found in blast_radius(found_tapes(tapes), conditions)
    ]
    if problems or left:
        text = problems[0] if problems else f"{left[0]} is still wrapped by it"
        more = max(len(problems), len(left)) - 1
        raise ServiceUnavailableError(
            f"not all tapes are free of the old key: {text}"
            + (f", and {more} more" if more > 0 else "")
        )
    return len(paths)


def found_tapes(tapes: Sequence[str]) -> list[str]:
    """Name the files that are meant, as find_tapes() does; that there are none is no error."""
    from tapeseal.fleet import find_tapes

    found: list[str] = []
    for each in tapes:
        try:
            found += find_tapes([each])
        except FileNotFoundError:
            continue
    return list(dict.fromkeys(found))


def recipients_of(path: str) -> set[str]:
    """Name the recipients of a tape, PROVIDER:KEY each, as its header has them."""
    from tapeseal import header
    from tapeseal.tape import open_file

    fd = open_file(path, os.O_RDONLY)
    try:
        return {name_of(each) for each in header.read_file(fd).recipients}
    finally:
        os.close(fd)


def name_of(recipient: "Recipient") -> str:
    """Return a recipient's PROVIDER:KEY."""
    return f"{recipient.provider}:{recipient.key}"
