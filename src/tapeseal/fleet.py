"""Many tapes at once: new recipients for all of them, and which of them a wrapping key opens."""

import collections
import concurrent.futures
import contextlib
import fcntl
import fnmatch
import glob
import itertools
import json
import operator
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar

from tapeseal import files, header
from tapeseal.datakey import Keyring
from tapeseal.errors import DamagedError, KeyUnavailableError, TapesealError
from tapeseal.files import StrPath
from tapeseal.layout import Recipient
from tapeseal.tape import open_file, rewrap
from tapeseal.verification import Inspection, inspect

_Result = TypeVar("_Result")

_JOURNAL = "tapeseal rewrap journal v1"


def check_several(names: Iterable[StrPath]) -> None:
    """Raise TypeError for one name in the place of a list, for each character of it would be taken for a name."""
    if isinstance(names, str | bytes):
        raise TypeError("tapes are given as a list of names, not as one name")


def find_tapes(names: Iterable[StrPath]) -> Iterator[str]:
    """Name the files that are meant, each once.

    A directory stands for the tapes in it and below it: the files that start as one does; symlinks there are not
    followed. A name of no file that has one of `*?[` in it is a pattern, in which `**` stands for any folders.
    Everything else stands for itself.

    Raises:
        FileNotFoundError: there is no tape in a directory, or no file that a pattern fits.
        TypeError: it is one name, not a list of names.
    """
    check_several(names)
    seen = set()
    for each in names:
        name = os.fspath(each)
        found = [name]
        if os.path.isdir(name):
            found = [
                path
                for folder, _, entries in os.walk(name)
                for path in (os.path.join(folder, entry) for entry in sorted(entries))
                if not os.path.islink(path) and _is_tape(path)
            ]
        elif not os.path.lexists(name) and glob.has_magic(name):
            found = sorted(path for path in glob.iglob(name, recursive=True) if _is_tape(path))
        if not found:
            raise FileNotFoundError(f"there is no tape in {name}")
        for path in found:
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                yield path


def _is_tape(path: str) -> bool:
    """Whether a file starts as a tape does, or has its second header copy where the first one is rotten."""
    if not os.path.isfile(path):
        return False
    try:
        fd = open_file(path, os.O_RDONLY)
    except OSError:
        return True  # It is named, so that whoever works on it says what is wrong.
    try:
        header.read_file(fd)
    except DamagedError:
        return True
    except TapesealError:
        return False
    finally:
        os.close(fd)
    return True


@dataclass(frozen=True)
class Rewrapped:
    """What became of one tape of a fleet."""

    path: str
    state: str
    """"rewrapped"; "unproven": rewrapped, and the new keyring alone cannot open it, such as a public key; "skipped": it
    was done before, or nothing was pending; "planned": a dry run found that it could be done; "failed"."""
    generation: int | None = None
    """The header's, new where the tape was rewrapped."""
    error: Exception | None = None
    """Why it failed, or is unproven."""
    pending: list[str] = field(default_factory=list)
    """The recipients that it still lacks, PROVIDER:KEY each."""


def rewrap_fleet(
    paths: Iterable[StrPath],
    *,
    keyring: Keyring,
    to: Keyring | None = None,
    complete: bool = False,
    copy: bool = False,
    journal: StrPath | None = None,
    dry_run: bool = False,
    threads: int = 4,
) -> Iterator[Rewrapped]:
    """Rewrap many tapes, several at once, and prove of each that the new recipients open it.

    A tape that fails leaves the others alone, and is as it was. Stopping, or a crash, leaves every tape open to the old
    recipients or to the new ones. The same call goes on from there: tapes that the journal names, and those that
    only the new recipients have, are skipped.

    Args:
        paths: tapes, as find_tapes() gives them.
        keyring: opens them now; tapeseal.rewrap() says what becomes of old recipients.
        to: opens them from now on.
        complete: in place of `to`, as for tapeseal.rewrap().
        copy: as for tapeseal.rewrap().
        journal: a file that lists what was done, made where it is not there. One is for one move: a finished one is
            deleted, or kept as evidence, and the next move starts with another.
        dry_run: open each tape and change nothing; the service of `to` is not asked.
        threads: how many tapes at once; each may wait for a disk and for services.

    Yields:
        What became of each tape, in their order.

    Raises:
        ValueError: the journal is of another move, or is no journal.
        BlockingIOError: another run has the journal.
    """
    with contextlib.ExitStack() as stack:
        names = _names(to)
        done = None if journal is None else stack.enter_context(_Journal(journal, names))
        reader = keyring if to is None else to

        def one(path: str) -> Rewrapped:
            try:
                found = _read_header(path)
                if done is not None and done.has(path, found):
                    return Rewrapped(path, "skipped", found.copy.generation)
                if dry_run:
                    header.unlock(found, keyring).close()
                    return Rewrapped(path, "planned", found.copy.generation)
                try:
                    generation = rewrap(path, keyring=keyring, to=to, complete=complete, copy=copy)
                except KeyUnavailableError:
                    # A run that was killed had come as far as this tape, though not its journal.
                    if _sorted_names(found.recipients) != names:
                        raise
                    generation = found.copy.generation
                    if _proof(found, keyring, generation) is None or _proof(
                        found, reader, generation
                    ):
                        raise
                    return Rewrapped(path, "skipped", generation)
                after = _read_header(path)
                unproven = _proof(after, reader, generation)
                if done is not None:
                    done.add(path, found.tape_id, generation)
            except (TapesealError, OSError, ValueError) as error:
                return Rewrapped(path, "failed", error=error.with_traceback(None))
            state = "rewrapped" if unproven is None else "unproven"
            if generation == found.copy.generation:
                state = "skipped"  # Nothing was pending.
            pending = [
                f"{each.provider}:{each.key}" for each in after.recipients if each.wrapped is None
            ]
            return Rewrapped(path, state, generation, unproven, pending)

        yield from _each(paths, one, threads)


def _each(
    paths: Iterable[StrPath], work: Callable[[str], _Result], threads: int
) -> Iterator[_Result]:
    """Yield what the work gives for each path, in their order, several at once; what has begun is always ended."""
    left = (os.fspath(path) for path in paths)
    with concurrent.futures.ThreadPoolExecutor(threads, "tapeseal-fleet") as pool:
        running = collections.deque(
            pool.submit(work, path) for path in itertools.islice(left, 8 * threads)
        )
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(work, path) for path in itertools.islice(left, 1))
        finally:
            for future in running:
                future.cancel()


def _read_header(path: str) -> header.Header:
    fd = open_file(path, os.O_RDONLY)
    try:
        return header.read_file(fd)
    finally:
        os.close(fd)


def _proof(found: header.Header, keyring: Keyring, generation: int) -> KeyUnavailableError | None:
    """Check that both header copies are whole and authentic under the key that a keyring unwraps.

    Returns:
        None, or why the keyring could not open it: that is no fault of the tape.

    Raises:
        DamagedError: a copy is not, or is not of this generation.
    """
    if found.problems:
        raise DamagedError("a header copy is not whole after the rewrap", found.problems[0].offset)
    if found.copy.generation != generation:
        raise DamagedError("somebody else rewrapped the tape meanwhile", 0)
    try:
        with header.unlock(found, keyring) as data_key:
            header.next_generation(data_key, found)  # Authenticates the other copy too.
    except KeyUnavailableError as error:
        return error.with_traceback(None)
    return None


def _names(keyring: Keyring | None) -> list[list[Any]] | None:
    """Name the recipients that a keyring wraps for; None where only a service knows them."""
    if keyring is None:
        return None
    try:
        return _sorted_names(keyring.pending())
    except KeyUnavailableError:
        return None


def _sorted_names(recipients: Iterable[Recipient]) -> list[list[Any]]:
    return sorted([each.provider, each.key, list(each.share or ())] for each in recipients)


class _Journal:
    """What a run has done: a line of JSON each, after one that says whom the tapes are for.

    A line cut by a crash counts for nothing. A tape counts as done while its header is as the line says, so neither a
    restored tape nor one that was rewrapped since is passed over.
    """

    def __init__(self, path: StrPath, names: list[list[Any]] | None) -> None:
        self._path = os.path.abspath(path)
        self._lock = threading.Lock()
        self._done: dict[str, tuple[str, int]] = {}
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read({"journal": _JOURNAL, "to": names})
        except BlockingIOError as error:
            os.close(self._fd)
            raise BlockingIOError(error.errno, "another run has the journal", self._path) from None
        except BaseException:
            os.close(self._fd)
            raise

    def _read(self, first: dict[str, Any]) -> None:
        with open(self._fd, "rb", closefd=False) as file:
            text = file.read()
        whole = text.rpartition(b"\n")[0]
        lines = whole.split(b"\n") if whole else []
        try:
            if lines and json.loads(lines[0]) != first:
                if json.loads(lines[0])["journal"] != _JOURNAL:
                    raise ValueError
                raise ValueError(
                    f"the journal {self._path} is of another move: give one of its own, or delete it"
                )
            for line in lines[1:]:
                entry = json.loads(line)
                self._done[entry["path"]] = (entry["tape_id"], entry["generation"])
        except (ValueError, TypeError, LookupError) as error:
            if "another move" in str(error):
                raise
            raise ValueError(f"{self._path} is not the journal of a rewrap") from None
        if not lines and text and not json.dumps(first).encode().startswith(text):
            raise ValueError(f"{self._path} is not the journal of a rewrap")
        os.ftruncate(self._fd, len(whole) + 1 if whole else 0)
        if not lines:
            self._write(first)

    def _write(self, entry: dict[str, Any]) -> None:
        files.write_all(self._fd, json.dumps(entry).encode() + b"\n")

    def has(self, path: str, found: header.Header) -> bool:
        """Whether a tape was done, and is as it was then."""
        return self._done.get(os.path.abspath(path)) == (
            found.tape_id.hex(),
            found.copy.generation,
        )

    def add(self, path: str, tape_id: bytes, generation: int) -> None:
        """Note that a tape was done. A crash of the machine may lose the note, and only that."""
        with self._lock:
            self._write(
                {
                    "path": os.path.abspath(path),
                    "tape_id": tape_id.hex(),
                    "generation": generation,
                }
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


# Blast radius

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_CONDITION = re.compile(r"(provider|key|version)\s*(!=|<=|>=|=|<|>)\s*(.+)")
_VERSION = re.compile(r"vault:v(\d{1,18}):")


class Condition(NamedTuple):
    """What a recipient must be for a compromised key to open its tape."""

    field: str
    """"provider", "key", or "version" (of the wrapping key; only Vault Transit's wraps say theirs)."""
    operator: str
    """One of = != < <= > >=; of provider and key the first two, and `*`, `?` and `[…]` stand for what they do in a
    shell."""
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `key=…`, `provider!=…`, `version<…`.

        Raises:
            ValueError: it is none of these.
        """
        found = _CONDITION.fullmatch(text.strip())
        if found is None:
            raise ValueError(
                f"{text!r} is not a condition: provider=NAME, key=NAME or version<NUMBER, with = != < <= > >="
            )
        condition = cls(*found.groups())
        if condition.field == "version":
            if not re.fullmatch(r"\d{1,18}", condition.value):
                raise ValueError(f"{text!r}: a version is a whole number")
        elif condition.operator not in ("=", "!="):
            raise ValueError(f"{text!r}: a {condition.field} is compared by = or !=")
        return condition

    def holds(self, recipient: Recipient) -> bool:
        """Whether a recipient meets it; one without a version meets none about versions."""
        if self.field == "version":
            found = _VERSION.match(recipient.wrapped or "")
            if found is None:
                return False
            return _OPERATORS[self.operator](int(found[1]), int(self.value))
        have = recipient.provider if self.field == "provider" else recipient.key
        return fnmatch.fnmatchcase(have, self.value) == (self.operator == "=")


@dataclass(frozen=True)
class Exposed:
    """A tape that a wrapping key opens, by what its header says; nothing of it is authenticated."""

    path: str
    recipients: list[Recipient]
    """Those that meet the conditions."""
    alone: bool
    """Whether one of them opens it; otherwise they are shares, and too few of one group."""
    inspection: Inspection


def blast_radius(
    paths: Iterable[StrPath], conditions: Iterable[Condition], *, threads: int = 4
) -> Iterator[Exposed | tuple[str, Exception]]:
    """Find the tapes that a wrapping key, or a version of it, opens. No key is needed.

    Args:
        paths: tapes and blobs, as find_tapes() gives them.
        conditions: all must hold for one and the same recipient. Pending recipients open nothing yet.
        threads: how many files at once.

    Yields:
        Each such tape, in their order; of a file that cannot be read its path and the error.
    """
    wanted = list(conditions)

    def one(path: str) -> Exposed | tuple[str, Exception] | None:
        try:
            exposed = [
                recipient
                for recipient in _read_header(path).recipients
                if recipient.wrapped is not None and all(each.holds(recipient) for each in wanted)
            ]
            return Exposed(path, exposed, _suffice(exposed), inspect(path)) if exposed else None
        except (TapesealError, OSError) as error:
            return path, error.with_traceback(None)

    for found in _each(paths, one, threads):
        if found is not None:
            yield found


def _suffice(recipients: list[Recipient]) -> bool:
    """Whether the recipients open a tape: one by itself, or enough shares of one group."""
    shares: dict[int, tuple[int, set[int]]] = {}
    for recipient in recipients:
        if recipient.share is None:
            return True
        group, threshold, index = recipient.share
        shares.setdefault(group, (threshold, set()))[1].add(index)
    return any(len(indices) >= threshold for threshold, indices in shares.values())
