"""Signed statements over sets of tapes (docs/signing.md)."""

import base64
import contextlib
import datetime
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from tapeseal import audit, files, header, layout
from tapeseal.errors import (
    DamagedError,
    SignatureError,
    TapeChangedError,
    TapesealError,
    UnsealedError,
)
from tapeseal.files import StrPath
from tapeseal.fleet import check_several, find_tapes
from tapeseal.header import Header
from tapeseal.layout import FRAME_OVERHEAD, SEGMENT_HEADER_SIZE
from tapeseal.signature import Signer, algorithm_of, check_signature, fingerprint
from tapeseal.signing import tree
from tapeseal.signing.tree import Part
from tapeseal.tape import default_threads, open_file
from tapeseal.verification import count_blocks

PREFIX: Final = b"tapeseal/v1 statement\0"
"""What stands before a statement where it is signed, so that no signature of something else is one of a statement."""

MAX_STATEMENT_SIZE: Final = 64 << 20
MAX_NAME_SIZE: Final = 4096

_TYPE = "tapeseal statement"
_VERSION = 1
_MAX_SIZE = 1 << 63

Progress = Callable[[int, int | None], None]


class Tree(NamedTuple):
    """A part of a tape, by its size in bytes and the root of the tree over it."""

    size: int
    root: bytes


@dataclass(frozen=True)
class SignedTape:
    """A tape as a statement holds it."""

    name: str
    """Its path, relative to what was named when it was signed, with "/" between the parts."""
    tape_id: bytes
    kind: str
    """"records" or "bytes"."""
    items: int
    """Records, or bytes where the kind is bytes, as the headers of the frames say."""
    content: bytes
    """SHA-256 of the content text of the header."""
    copy_size: int
    """Bytes of each header copy."""
    data: Tree
    """The data segments."""
    index: Tree | None
    """Index and trailer; None: the tape was open."""


@dataclass(frozen=True)
class Statement:
    """What was signed."""

    created: str
    """When, in UTC: "2026-11-27T16:05:00Z"."""
    key: str
    """The signer's name for its key: "aws-kms:arn:…"."""
    algorithm: str
    """One of tapeseal.signature.ALGORITHMS."""
    public_key: str
    """Fingerprint of the key's public half: SHA-256 of its SubjectPublicKeyInfo, in hex."""
    tapes: tuple[SignedTape, ...]


@dataclass(frozen=True)
class Finding:
    """What became of one tape since it was signed."""

    state: str
    """"same"; "grown": an open tape that has more now; or what is wrong: "changed", "renamed", "missing", "extra",
    "unreadable"."""
    name: str | None
    """As signed; None: it was not."""
    path: str | None
    """Where it was found; None: nowhere."""
    notes: tuple[str, ...] = ()
    """What there is to say about it."""

    @property
    def ok(self) -> bool:
        """Whether all that was signed is there."""
        return self.state in ("same", "grown")


@dataclass(frozen=True)
class StatementVerification:
    """What verify_statement() found."""

    statement: Statement
    findings: list[Finding]
    """The tapes of the statement in its order, then what is not in it."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.ok for finding in self.findings)


# Signing


def sign_statement(
    paths: Iterable[StrPath],
    signer: Signer,
    *,
    unsealed: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Sign a statement over tapes: their names, identities, and a SHA-256 tree over the ciphertext of each.

    No data key is needed, and none is proved to open them: what is signed is that these bytes were there. The
    statement survives a rewrap, since it does not cover the recipients.

    Args:
        paths: tapes, directories and patterns, as for tapeseal.fleet.find_tapes(); a tape that a directory or a pattern
            stands for goes by its path relative to that, another one by its file's name.
        signer: of tapeseal.signing.signer().
        unsealed: take open tapes too, each up to its present end.
        threads: how many hash; None: one for each processor, up to 8.
        progress: called with the bytes done and in all.

    Returns:
        The statement, as a file holds it.

    Raises:
        UnsealedError: a tape was never closed.
        NotATapeError, DamagedError: a file is no tape, or its plain parts do not fit together.
        ValueError: there are no tapes; two have one name, or one identity; a file is a blob; a name is no UTF-8.
        TapeChangedError: a file changed while it was read.
        KeyUnavailableError: the signer could not sign.
    """
    named = _named(paths)
    if not named:
        raise ValueError("there is no tape to sign")
    total = sum(os.stat(path).st_size for path, _ in named)
    bar = None if progress is None else lambda done: progress(min(done, total), total)
    tapes: list[SignedTape] = []
    with (
        audit.operation("statement.sign", signer.key, tapes=len(named)) as entry,
        contextlib.ExitStack() as stack,
    ):

        def measured() -> Iterator[tuple[_Tape, list[Part]]]:
            for path, name in named:
                try:
                    tape = stack.enter_context(_Tape(path, name))
                    tape.measure(unsealed)
                except (TapesealError, OSError, ValueError) as error:
                    raise _about(error, path) from None
                yield tape, tape.parts()

        for tape, roots in tree.hash_trees(measured(), threads or default_threads(), bar):
            if isinstance(roots, Exception):
                raise _about(roots, tape.path)
            if tape.changed:
                problem = "the file changed while it was read; sign it when it is done"
                raise TapeChangedError(f"{tape.path}: {problem}")
            tapes.append(tape.signed(roots))
            tape.close()
        _check_distinct(tapes)
        text, signature = _signed(tuple(tapes), signer)
        made = b"%b\n%b\n" % (text, base64.b64encode(signature))
        entry.details["sha256"] = hashlib.sha256(made).hexdigest()
    return made


def _signed(tapes: tuple[SignedTape, ...], signer: Signer) -> tuple[bytes, bytes]:
    """Return the text of a statement and its signature."""
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    while True:
        public_key = signer.public_key()
        key = signer.key, signer.algorithm, fingerprint(public_key)
        text = _build(Statement(created, *key, tapes))
        signature = signer.sign(PREFIX + text)
        # It may have gone on to a new version of its key, which is not the one in the text.
        if signer.public_key() == public_key:
            check_signature(public_key, signer.algorithm, PREFIX + text, signature)
            return text, signature


def _named(paths: Iterable[StrPath]) -> list[tuple[str, str]]:
    """Return the tapes that are meant with their names, sorted by these."""
    check_several(paths)
    found: dict[str, tuple[str, str]] = {}
    for given in paths:
        each = base = os.fspath(given)
        if not os.path.isdir(each):
            while glob.has_magic(base) and not os.path.lexists(base):
                base = os.path.dirname(base)
            base = base if base != each else os.path.dirname(each)
        for path in find_tapes([each]):
            name = PurePosixPath(os.path.relpath(path, base or ".")).as_posix()
            found.setdefault(os.path.realpath(path), (path, _check_name(name)))
    return sorted(found.values(), key=lambda each: each[1].encode())


def _check_name(name: str) -> str:
    """Return a name that may stand in a statement.

    Raises:
        ValueError: it may not: no verifier is to be led anywhere by it.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(
            f"the name {os.fsencode(name)!r} is no UTF-8, so no statement can hold it"
        ) from None
    if not 1 <= size <= MAX_NAME_SIZE or "\0" in name or {"", ".", ".."} & set(name.split("/")):
        raise ValueError(f"the name {name[:64]!r} is not a plain path below a directory")
    return name


def _check_distinct(tapes: Iterable[SignedTape]) -> None:
    """Raise ValueError where two tapes have one name or one identity."""
    names: set[str] = set()
    ids: dict[bytes, str] = {}
    for tape in tapes:
        if tape.name in names:
            raise ValueError(f"two tapes go by the name {tape.name}: name the directory above both")
        if tape.tape_id in ids:
            raise ValueError(f"{ids[tape.tape_id]} and {tape.name} are copies of one tape")
        names.add(tape.name)
        ids[tape.tape_id] = tape.name


def _about(error: Exception, path: str) -> Exception:
    """Return an error that says which file it is about."""
    if isinstance(error, OSError):
        error.filename = error.filename or path
        return error
    if isinstance(error, DamagedError):
        return DamagedError(f"{path}: {error.problem}", error.offset)
    return type(error)(f"{path}: {error}")


class _Tape:
    """A tape's file, of which parts are hashed."""

    def __init__(self, path: str, name: str = "") -> None:
        self.path = path
        self.name = name
        self.fd = open_file(path, os.O_RDONLY)
        try:
            self.header: Header = header.read_file(self.fd)
            if self.header.copy.copies != layout.FILE_COPIES:
                raise ValueError("a blob, which is one message, is no tape and is not signed")
            self._before = os.fstat(self.fd)
            self.size = self._before.st_size
            trailer = files.pread_exact(
                self.fd, layout.TRAILER_SIZE, self.size - layout.TRAILER_SIZE
            )
            index = layout.parse_trailer(trailer) if len(trailer) == layout.TRAILER_SIZE else None
            if index is not None and not self.header.body <= index < self.size:
                raise DamagedError(
                    "the trailer says that the index is where it cannot be", self.size
                )
        except BaseException:
            os.close(self.fd)
            raise
        self.sealed = index is not None
        self.end = self.size if index is None else index
        """Where the data ends; of an open tape, perhaps in the middle of a block."""
        self.items = 0

    @property
    def data_size(self) -> int:
        return self.end - self.header.body

    def measure(self, unsealed: bool) -> None:
        """Find the end of the last whole block of data, and count the items."""
        if not (self.sealed or unsealed):
            raise UnsealedError(
                "the tape was never closed; close it, or have it signed up to its present end"
            )
        segments, frames, self.items, end = count_blocks(self.fd, self.header, self.end)
        counted = segments * SEGMENT_HEADER_SIZE + frames * FRAME_OVERHEAD
        counted += self.items * self.header.content.item_size
        if end - self.header.body != counted:
            raise DamagedError(
                "its frames hold other sizes than their counts say", self.header.body
            )
        if self.sealed and end != self.end:
            raise DamagedError("its data ends before the index that its trailer names", end)
        self.end = end

    def parts(self) -> list[Part]:
        data = Part(self.fd, self.header.body, self.data_size)
        return [data, Part(self.fd, self.end, self.size - self.end)] if self.sealed else [data]

    @property
    def changed(self) -> bool:
        """Whether the file was written since it was opened, other than by appending to an open tape."""
        now = os.fstat(self.fd)
        if not self.sealed:
            return now.st_size < self.end
        return (now.st_size, now.st_mtime_ns) != (self.size, self._before.st_mtime_ns)

    def signed(self, roots: list[bytes]) -> SignedTape:
        found = self.header
        index = Tree(self.size - self.end, roots[1]) if self.sealed else None
        return SignedTape(
            self.name,
            found.tape_id,
            found.content.kind,
            self.items,
            hashlib.sha256(found.copy.content).digest(),
            found.copy.copy_size,
            Tree(self.data_size, roots[0]),
            index,
        )

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> "_Tape":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# The text


def _build(statement: Statement) -> bytes:
    """Return the one line of JSON that is signed."""

    def of_tree(part: Tree) -> dict[str, Any]:
        return {"size": part.size, "root": part.root.hex()}

    tapes = [
        {
            "name": tape.name,
            "tape_id": tape.tape_id.hex(),
            "kind": tape.kind,
            "items": tape.items,
            "content": tape.content.hex(),
            "copy_size": tape.copy_size,
            "data": of_tree(tape.data),
            "index": None if tape.index is None else of_tree(tape.index),
        }
        for tape in statement.tapes
    ]
    signer = {
        "key": statement.key,
        "algorithm": statement.algorithm,
        "public_key": statement.public_key,
    }
    document = {
        "type": _TYPE,
        "version": _VERSION,
        "created": statement.created,
        "signer": signer,
        "tapes": tapes,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def open_statement(statement: bytes, public_key: bytes) -> Statement:
    """Check the signature of a statement, and return what it says.

    Nothing in it is parsed before it is authentic, and nothing in it says by which key or algorithm it is checked.

    Args:
        statement: what sign_statement() gave.
        public_key: SubjectPublicKeyInfo or certificate in PEM, from a place that whoever may change the statement
            cannot change.

    Raises:
        SignatureError: it was changed, or another key signed it, or it is none.
        ValueError: the public key is none that can be used.
    """
    algorithm = algorithm_of(public_key)
    if len(statement) > MAX_STATEMENT_SIZE:
        raise SignatureError(f"a statement has {MAX_STATEMENT_SIZE} bytes at most")
    lines = statement.split(b"\n")
    if len(lines) != 3 or lines[2]:
        raise SignatureError(
            "this is no statement, which is a line of JSON and a line with its signature"
        )
    text, encoded, _ = lines
    try:
        signature = base64.b64decode(encoded, validate=True)
    except ValueError:
        signature = b""
    if base64.b64encode(signature) != encoded:
        raise SignatureError("the statement's signature is not in base64")
    check_signature(public_key, algorithm, PREFIX + text, signature)
    found = _parse(text)
    if (found.algorithm, found.public_key) != (algorithm, fingerprint(public_key)):
        raise SignatureError("the statement names another key or algorithm than it is signed by")
    return found


_HEX = re.compile("(?:[0-9a-f]{2})+")
_CREATED = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z")


def _parse(text: bytes) -> Statement:
    try:
        document = json.loads(
            text.decode(),
            object_pairs_hook=layout.unique_members,
            parse_float=layout.no_float,
            parse_constant=layout.no_float,
        )
        members = _object(document, "type", "version", "created", "signer", "tapes")
        if members["type"] != _TYPE or _number(members["version"]) != _VERSION:
            raise ValueError("it is of another type or version")
        signer = _object(members["signer"], "key", "algorithm", "public_key")
        tapes = members["tapes"]
        if not isinstance(tapes, list):
            raise ValueError("tapes is no list")
        created = _text(members["created"])
        if not _CREATED.fullmatch(created):
            raise ValueError("created is no time")
        found = Statement(
            created,
            _text(signer["key"]),
            _text(signer["algorithm"]),
            _bytes(signer["public_key"], 32).hex(),
            tuple(map(_parse_tape, tapes)),
        )
        _check_distinct(found.tapes)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    else:
        return found
    raise SignatureError(f"the statement is signed, and is none that this version knows: {problem}")


def _parse_tape(entry: Any) -> SignedTape:
    names = ("name", "tape_id", "kind", "items", "content", "copy_size", "data", "index")
    members = _object(entry, *names)
    if members["kind"] not in ("records", "bytes"):
        raise ValueError("a tape's kind is not known")
    return SignedTape(
        _check_name(_text(members["name"])),
        _bytes(members["tape_id"], 16),
        members["kind"],
        _number(members["items"]),
        _bytes(members["content"], 32),
        _number(members["copy_size"]),
        _tree(members["data"]),
        None if members["index"] is None else _tree(members["index"]),
    )


def _tree(entry: Any) -> Tree:
    members = _object(entry, "size", "root")
    return Tree(_number(members["size"]), _bytes(members["root"], 32))


def _object(value: Any, *names: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(names):
        raise ValueError(f"an object has other members than {', '.join(names)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text is none")
    return value


def _bytes(value: Any, size: int) -> bytes:
    if not isinstance(value, str) or len(value) != 2 * size or not _HEX.fullmatch(value):
        raise ValueError(f"a value is not {size} bytes in hex")
    return bytes.fromhex(value)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_SIZE:
        raise ValueError("a number is none")
    return value


# Checking


def verify_statement(
    statement: bytes,
    paths: Iterable[StrPath],
    public_key: bytes,
    *,
    partial: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> StatementVerification:
    """Check a signed statement, and that tapes are what it says; no data key is needed.

    Tapes are told by their identities. A name in the statement opens no file: it is compared with the end of the path.

    Args:
        statement, public_key: as for open_statement().
        paths: where the tapes are: files, directories and patterns, as for tapeseal.fleet.find_tapes().
        partial: let tapes of the statement be absent.
        threads: how many hash; None: one for each processor, up to 8.
        progress: called with the bytes done and in all.

    Raises:
        SignatureError, ValueError: as open_statement().
        FileNotFoundError: there is no tape in a directory, or no file that a pattern fits.
    """
    with audit.operation("statement.verify", fingerprint(public_key)) as entry:
        entry.details["sha256"] = hashlib.sha256(statement).hexdigest()
        signed = open_statement(statement, public_key)
        found = list(find_tapes(paths))
        total = sum(os.stat(path).st_size for path in found if os.path.exists(path))
        bar = None if progress is None else lambda done: progress(min(done, total), total)
        findings = _compare(signed, found, partial, threads or default_threads(), bar)
        wrong = sum(not finding.ok for finding in findings)
        if wrong:
            entry.details["wrong"], entry.result = wrong, "mismatch"
    return StatementVerification(signed, findings)


def _compare(
    statement: Statement,
    paths: list[str],
    partial: bool,
    threads: int,
    progress: Callable[[int], None] | None,
) -> list[Finding]:
    by_id = {tape.tape_id: tape for tape in statement.tapes}
    of_tapes: dict[bytes, list[Finding]] = {}
    others: list[Finding] = []
    with contextlib.ExitStack() as stack:

        def opened() -> Iterator[tuple[_Tape | Finding, list[Part]]]:
            for path in paths:
                try:
                    tape = stack.enter_context(_Tape(path))
                except (TapesealError, OSError, ValueError) as error:
                    yield Finding("unreadable", None, path, (_said(error),)), []
                    continue
                signed = by_id.get(tape.header.tape_id)
                if signed is None:
                    tape.close()
                    yield Finding("extra", None, path, ("it is not in the statement",)), []
                    continue
                yield tape, _covered(tape, signed)

        for each, roots in tree.hash_trees(opened(), threads, progress):
            if isinstance(each, Finding):
                others.append(each)
                continue
            with each as tape:
                signed = by_id[tape.header.tape_id]
                of_tapes.setdefault(signed.tape_id, []).append(_judge(tape, signed, roots))
    findings = []
    for signed in statement.tapes:
        copies = of_tapes.get(signed.tape_id, [])
        if not copies:
            if not partial:
                findings.append(Finding("missing", signed.name, None, ("it is not there",)))
            continue
        best = next((each for each in copies if each.ok), copies[0])
        findings.append(best)
        others += [
            Finding("extra", None, each.path, (f"it is another copy of {signed.name}",))
            for each in copies
            if each is not best
        ]
    return findings + sorted(others, key=lambda each: each.path or "")


def _covered(tape: _Tape, signed: SignedTape) -> list[Part]:
    """Return the parts of a tape to be hashed: none where its data is too short, the index where it can be the same."""
    body = tape.header.body
    if tape.data_size < signed.data.size:
        return []
    parts = [Part(tape.fd, body, signed.data.size)]
    if signed.index is not None and tape.sealed and tape.header.copy.copy_size == signed.copy_size:
        parts.append(Part(tape.fd, tape.end, tape.size - tape.end))
    return parts


def _judge(tape: _Tape, signed: SignedTape, roots: list[bytes] | Exception) -> Finding:
    if isinstance(roots, Exception):
        return Finding("unreadable", signed.name, tape.path, (_said(roots),))
    problems = []
    notes = []
    more = tape.data_size - signed.data.size
    if hashlib.sha256(tape.header.copy.content).digest() != signed.content:
        problems.append("its header says other things")
    if more < 0:
        problems.append(f"{-more:,} bytes of its data are missing")
    elif roots[0] != signed.data.root:
        problems.append("its data is not what was signed")
    if signed.index is None:
        if more > 0:
            notes.append(f"it has grown by {more:,} bytes since")
    elif not tape.sealed:
        problems.append("its index is gone: it was sealed, and is open now")
    elif more > 0:
        problems.append(f"it has {more:,} bytes of data more than when it was sealed")
    elif len(roots) == 2:
        if Tree(tape.size - tape.end, roots[1]) != signed.index:
            problems.append("its index is not what was signed")
    elif not more:
        notes.append("it was rewrapped into a copy since, whose index is new and not covered")
    if problems and tape.changed:
        problems.append("it changed while it was read")
    renamed = not _goes_by(tape.path, signed.name)
    if renamed:
        notes.append(f"it was signed as {signed.name}")
    state = "changed" if problems else "renamed" if renamed else "same"
    if state == "same" and signed.index is None and more > 0:
        state = "grown"
    return Finding(state, signed.name, tape.path, (*problems, *notes))


def _goes_by(path: str, name: str) -> bool:
    """Return whether a path ends in a name, part by part."""
    parts = name.split("/")
    return os.path.abspath(path).split("/")[-len(parts) :] == parts


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
