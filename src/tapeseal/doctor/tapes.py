"""Checks of tapes: recipients that are still to be wrapped for, and tapes that nobody sealed."""

import contextlib
import os
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tapeseal.doctor.findings import Checks, Look, Problem, SetUp, days, registrar

if TYPE_CHECKING:
    from tapeseal.header import Header

SECONDS: Final = 60.0
MAX_TAPES: Final = 100_000
MAX_UNSEALED_SECONDS: Final = 86400

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)


class TapesLook(Look):
    """Tapes and folders of them, each read once and only its header and end."""

    def __init__(self, set_up: SetUp) -> None:
        super().__init__("tapes", SECONDS)
        self.names = set_up.tapes
        self.now = set_up.now

    def tapes(self) -> Iterator[tuple[str, "Header", bool, float]]:
        """Yield the path, the header, whether it is sealed, and the time of the last write of each tape."""
        yield from self.once("tapes", lambda: list(self._read()))

    def _read(self) -> Iterator[tuple[str, "Header", bool, float]]:
        from itertools import islice

        from tapeseal import header, layout
        from tapeseal.errors import TapesealError
        from tapeseal.files import pread_exact
        from tapeseal.fleet import find_tapes
        from tapeseal.tape import open_file

        for name in self.names:
            try:
                paths = find_tapes([name])
                for path in islice(paths, MAX_TAPES):
                    self.left()
                    try:
                        fd = open_file(path, os.O_RDONLY)
                        try:
                            found = header.read_file(fd)
                            status = os.fstat(fd)
                            start = status.st_size - layout.TRAILER_SIZE
                            end = pread_exact(fd, layout.TRAILER_SIZE, start)
                        finally:
                            os.close(fd)
                    except (OSError, TapesealError) as error:
                        said = getattr(error, "strerror", None) or str(error)
                        verify = f"tapeseal verify {shlex.quote(path)} -k KEYRING"
                        self.not_seen(path, path, f"it could not be read: {said}", command=verify)
                        continue
                    is_blob = found.copy.copies != layout.FILE_COPIES
                    sealed = is_blob or layout.parse_trailer(end) is not None
                    self.seen += 1
                    yield path, found, sealed, status.st_mtime
                if next(paths, None) is not None:
                    limit = f"only the first {MAX_TAPES:,} tapes were looked at"
                    self.not_seen(f"more of {name}", name, limit, "Give it in parts.")
            except FileNotFoundError:  # A folder without tapes.
                self.seen += 1


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[TapesLook | None]:
    """Look at the tapes of the set-up."""
    yield TapesLook(set_up) if set_up.tapes else None


@check(
    "tape.pending",
    "Tapes with recipients that are still pending.",
    "Who is pending cannot open the tape; if it is the escrow, nobody can when the other key is gone.",
)
def _pending(look: TapesLook) -> Iterator[Problem]:
    for path, found, _, _ in look.tapes():
        pending = [
            f"{each.provider}:{each.key}" for each in found.recipients if each.wrapped is None
        ]
        if pending:
            yield Problem(
                "warning",
                path,
                f"still pending: {', '.join(pending)}",
                command=f"tapeseal rewrap {shlex.quote(path)} -k KEYRING --complete",
            )


@check(
    "tape.unsealed",
    "Tapes that nobody has written for a day, and nobody sealed.",
    "Of such a tape nobody can tell whether its end was cut off.",
)
def _unsealed(look: TapesLook) -> Iterator[Problem]:
    for path, found, sealed, written in look.tapes():
        age = look.now.timestamp() - written
        if not sealed and age > MAX_UNSEALED_SECONDS:
            yield Problem(
                "warning",
                path,
                f"it was written {days(age)} ago, and never sealed",
                command=f"python3 -c {shlex.quote(_seal(path, found))}",
            )


def _seal(path: str, found: "Header") -> str:
    """Return a program that seals a tape, which is: to open it for appending, and close it."""
    mode = "ab" if found.content.kind == "bytes" else "a"
    return (
        f"import tapeseal; tapeseal.open({path!r}, {mode!r}, keyring=tapeseal.keyring('KEYRING'),"
        " recover=True).close()"
    )
