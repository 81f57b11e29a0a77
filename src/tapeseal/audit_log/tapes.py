"""Tapes against the anchors of an audit log: one that was cut, put back to an earlier state or taken away is found."""

import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tapeseal.audit_log.check import TapeRecord
from tapeseal.datakey import Keyring
from tapeseal.errors import TapesealError
from tapeseal.files import StrPath
from tapeseal.fleet import find_tapes
from tapeseal.verification import Inspection, inspect, verify


class TapeCheck(NamedTuple):
    """What became of one tape."""

    path: str
    tape_id: str
    """In hexadecimal digits; empty where no header tells it."""
    state: str
    """"whole": it has all that the log says; "unknown": the log does not know it; "cut": it lost something since, or
    was put back; "damaged": it is, in another way; "missing": the log knows it, and it is not there."""
    text: str = ""
    """What is wrong."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. A tape that the log does not know may be anybody's."""
        return self.state in ("whole", "unknown")


def check_tapes(
    records: Mapping[bytes, TapeRecord],
    names: Iterable[StrPath],
    *,
    keyring: Keyring | None = None,
) -> Iterator[TapeCheck]:
    """Compare tapes with the newest anchor of each that an audit log holds.

    Args:
        records: what verify_log() found, `found.tapes`.
        names: tapes, directories and patterns, as find_tapes() takes them. What the log says to stand under one of
            them must be there.
        keyring: opens the tapes: all of each is authenticated. None: their headers and the number of their frames are
            compared, which needs no key, and which somebody who knows the format can fake.

    Yields:
        Each tape that was found, then those that are missing.
    """
    given = [os.fspath(name) for name in names]
    seen: set[bytes] = set()
    for name in given:
        try:
            for path in find_tapes([name]):
                yield _check(path, records, keyring, seen)
        except FileNotFoundError:
            continue  # Whether something should be there the log says.
    roots = [(os.path.abspath(name), os.path.realpath(name)) for name in given]
    for tape_id, record in records.items():
        if tape_id not in seen and _is_meant(record.path, roots):
            yield TapeCheck(
                record.path,
                tape_id.hex(),
                "missing",
                f"it was there at {record.time} with {record.anchor.items} items, and is not any more",
            )


def _is_meant(path: str, roots: Iterable[tuple[str, str]]) -> bool:
    """Whether one of the names stands for a tape that stood there: as they are written, or where links lead now."""
    if "\0" in path:
        return False  # No file has such a name.
    tapes = os.path.abspath(path), os.path.realpath(path)
    return any(
        tape == root
        or tape.startswith(f"{root.rstrip(os.sep)}{os.sep}")
        or _fits(tape.split(os.sep), root.split(os.sep))
        for pair in roots
        for tape, root in zip(tapes, pair, strict=True)
    )


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether glob finds a path by a pattern, both in their parts."""
    if not pattern:
        return not path
    if pattern[0] == "**" and _fits(path, pattern[1:]):
        return True
    if not path or (path[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    if pattern[0] == "**":
        return _fits(path[1:], pattern)
    return fnmatch.fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _check(
    path: str, records: Mapping[bytes, TapeRecord], keyring: Keyring | None, seen: set[bytes]
) -> TapeCheck:
    try:
        found = inspect(path)
    except (TapesealError, OSError) as error:
        return TapeCheck(path, "", "damaged", str(error))
    name = found.tape_id.hex()
    seen.add(found.tape_id)
    record = records.get(found.tape_id)
    if record is None:
        return TapeCheck(path, name, "unknown")
    if keyring is None:
        lacks = _lacks(found, record)
        return TapeCheck(path, name, "cut" if lacks else "whole", lacks)
    try:
        verification = verify(path, keyring=keyring, anchor=record.anchor)
    except (TapesealError, OSError) as error:
        return TapeCheck(path, name, "damaged", str(error))
    if verification.ok:
        return TapeCheck(path, name, "whole")
    lost = [each for each in verification.problems if "the anchor does not hold" in each.text]
    first = (lost or verification.problems)[0]
    return TapeCheck(
        path, name, "cut" if lost else "damaged", f"{first.text} (at byte {first.offset})"
    )


def _lacks(found: Inspection, record: TapeRecord) -> str:
    """Return what a tape has less than its anchor says, by its plain headers; empty where it has all."""
    anchor = record.anchor
    for what, has, had in (
        ("segments", found.segments, anchor.segments),
        ("frames", found.frames, anchor.frames),
        (found.kind, found.items, anchor.items),
    ):
        if has < had:
            return f"it has {has} {what}, and had {had} at {record.time}"
    if anchor.index is not None and found.items == anchor.items and not found.sealed:
        return f"it is not sealed any more, as it was at {record.time}"
    return ""
