"""Anchors of an audit log: signed statements of how far it had come, kept where its writers cannot change them."""

import base64
import binascii
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from tapeseal.audit_log import chain
from tapeseal.errors import SignatureError
from tapeseal.files import StrPath
from tapeseal.signature import ALGORITHMS, Signer, check_signature

MAX_FILE_SIZE: Final = 64 << 20
"""Bytes of a file of anchors."""

_TITLE = "audit anchor"
_MESSAGE = b"tapeseal audit anchor v1\0"


@dataclass(frozen=True)
class LogAnchor:
    """How far an audit log had come: its entry `sequence` of file `file` had this MAC."""

    log_id: bytes
    """16 bytes."""
    file: int
    sequence: int
    """0: it had none yet, and the MAC is that of the header."""
    mac: bytes
    """32 bytes."""
    time: str = ""
    """When it was signed, in UTC, by the signing machine's clock."""
    key: str = ""
    """The signing key's name, as its signer gives it; only informs."""
    algorithm: str = ""
    """One of tapeseal.signature.ALGORITHMS."""
    signature: bytes = b""

    @property
    def message(self) -> bytes:
        """What is signed."""
        return _MESSAGE + json.dumps(self._fields(), separators=(",", ":")).encode()

    def _fields(self) -> dict[str, str | int]:
        return {
            "tapeseal": _TITLE,
            "format": 1,
            "log": self.log_id.hex(),
            "file": self.file,
            "sequence": self.sequence,
            "mac": self.mac.hex(),
            "time": self.time,
            "key": self.key,
            "algorithm": self.algorithm,
        }

    def signed(self, signer: Signer) -> "LogAnchor":
        """Return the anchor with the time, and a signature over all of it."""
        stated = replace(
            self,
            time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            key=signer.key,
            algorithm=signer.algorithm,
        )
        return replace(stated, signature=signer.sign(stated.message))

    def check(self, public_key: bytes) -> None:
        """Check the signature; the key is in PEM, as check_signature() takes it.

        Raises:
            SignatureError: another key signed it, or it was changed.
        """
        check_signature(public_key, self.algorithm, self.message, self.signature)

    def __str__(self) -> str:
        """Return one line of JSON, as parse() reads it."""
        fields = {**self._fields(), "signature": base64.b64encode(self.signature).decode()}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str | bytes) -> "LogAnchor":
        """Read the line that str() gave.

        Raises:
            ValueError: it is none.
        """
        fields = chain.parse_object(text.encode() if isinstance(text, str) else text)
        try:
            if fields is None or fields.get("tapeseal") != _TITLE or fields.get("format") != 1:
                raise ValueError
            anchor = cls(
                bytes.fromhex(fields["log"]),
                fields["file"],
                fields["sequence"],
                bytes.fromhex(fields["mac"]),
                fields["time"],
                fields["key"],
                fields["algorithm"],
                base64.b64decode(fields["signature"], validate=True),
            )
            datetime.strptime(anchor.time, "%Y-%m-%dT%H:%M:%SZ")
            line = text if isinstance(text, str) else text.decode()
            if str(anchor) != line.strip() or anchor.algorithm not in ALGORITHMS:
                raise ValueError
            if len(anchor.log_id) != 16 or len(anchor.mac) != chain.MAC_SIZE:
                raise ValueError
            if type(anchor.file) is not int or type(anchor.sequence) is not int:
                raise ValueError
            if min(anchor.file - 1, anchor.sequence) < 0 or not isinstance(anchor.key, str):
                raise ValueError
        except (ValueError, TypeError, LookupError, binascii.Error):
            raise ValueError("not an anchor of an audit log") from None
        return anchor


@dataclass(frozen=True)
class AnchorSchedule:
    """When an open AuditLog has an anchor signed, and who keeps it: after the first of the two, where entries came."""

    signer: Signer
    keep: Callable[[LogAnchor], None]
    """Takes each signed anchor; append_to() makes one that writes them to a file."""
    seconds: float = 3600.0
    entries: int = 100_000

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.entries < 100:
            raise ValueError(
                "anchors are signed every so many seconds above 0, or 100 entries and more"
            )


def append_to(path: StrPath) -> Callable[[LogAnchor], None]:
    """Return what appends anchors to a file, one a line and durably; it should be on another machine's disk."""

    def keep(anchor: LogAnchor) -> None:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            line = f"{anchor}\n".encode()
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                line = b"\n" + line  # A crash cut the last line.
            written = os.write(fd, line)
            if written < len(line):
                # Our own bytes alone, lest a piece of a line keeps others from being read.
                end = os.lseek(fd, 0, os.SEEK_CUR)
                if os.fstat(fd).st_size == end:
                    os.ftruncate(fd, end - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
            os.fsync(fd)
        finally:
            os.close(fd)

    return keep


def read_anchors(path: StrPath, public_keys: Iterable[bytes]) -> Iterator[LogAnchor]:
    """Yield the anchors of a file, one a line, each of them signed by one of the keys.

    Raises:
        ValueError: a line is no anchor, and the text names it; or there is none.
        SignatureError: none of the keys signed one.
    """
    keys = list(public_keys)
    size, is_empty = 0, True
    with open(path, "rb") as file:
        lines = iter(lambda: file.readline(chain.MAX_LINE_SIZE), b"")
        for number, line in enumerate(lines, 1):
            size += len(line)
            if size > MAX_FILE_SIZE:
                raise ValueError(f"{os.fspath(path)} has over {MAX_FILE_SIZE} bytes")
            if not line.strip():
                continue
            is_empty = False
            try:
                anchor = LogAnchor.parse(line)
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
            if not any(_is_by(anchor, key) for key in keys):
                raise SignatureError(
                    f"{os.fspath(path)}, line {number}: the anchor is not signed by a key that was given; it "
                    f"names {anchor.key}"
                )
            yield anchor
    if is_empty:
        raise ValueError(f"{os.fspath(path)} holds no anchor")


def _is_by(anchor: LogAnchor, key: bytes) -> bool:
    try:
        anchor.check(key)
    except (SignatureError, ValueError):  # of another kind of key
        return False
    return True


def newest(anchors: Iterable[LogAnchor]) -> Mapping[bytes, LogAnchor]:
    """Return the last anchor of each log by its id."""
    found: dict[bytes, LogAnchor] = {}
    for anchor in anchors:
        known = found.get(anchor.log_id)
        if known is None or anchor.sequence >= known.sequence:
            found[anchor.log_id] = anchor
    return found
