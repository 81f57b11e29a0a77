"""The lines of an audit log, what chains them, and the head beside it (docs/audit.md, section Format)."""

import contextlib
import hmac
import json
import re
import socket
import time
from binascii import hexlify
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple

from tapeseal import _core, layout
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import DamagedError, InvalidTag
from tapeseal.layout import Recipient

MAC_SIZE: Final = 32
MAX_LINE_SIZE: Final = 1 << 16
"""Bytes of an entry's line with its newline."""
MAX_HEADER_SIZE: Final = 1 << 20

_MAC: Final = b',"mac":"'
_END: Final = b'"}'
TAIL_SIZE: Final = len(_MAC) + 2 * MAC_SIZE + len(_END)
"""Bytes of a line from the comma before its MAC on, without the newline."""

_HEX = re.compile(rb"[0-9a-f]{64}")
_SEQUENCE = re.compile(rb'\{"sequence":(0|[1-9][0-9]{0,18}),')
_TITLE = "audit log"
_HEAD = b"tapeseal-audit-head v1 log=%b file=%010d sequence=%020d size=%020d mac=%b head-mac="
_HEAD_PATTERN = re.compile(
    rb"(tapeseal-audit-head v1 log=([0-9a-f]{32}) file=([0-9]{10}) sequence=([0-9]{20})"
    rb" size=([0-9]{20}) mac=([0-9a-f]{64}) head-mac=)([0-9a-f]{64})\n"
)
_HEAD_END: Final = 2 * MAC_SIZE + 1  # its MAC and the newline
HEAD_SIZE: Final = len(_HEAD % (b"0" * 32, 0, 0, 0, b"0" * 64)) + _HEAD_END


class ChainKey:
    """The key of one log: it computes the MACs of header, entries and head.

    Args:
        data_key: what the header wraps; closed here.
        log_id: 16 bytes.
    """

    def __init__(self, data_key: DataKey, log_id: bytes) -> None:
        with data_key:
            key = _core.hkdf_expand(data_key.secret, b"tapeseal/v1 audit\0" + log_id, 32)
        with contextlib.closing(key):
            self._hmac = _core.HMAC(key)

    def header(self, body: bytes) -> bytes:
        """Return the MAC of a header."""
        return self._hmac.digest(b"header\0" + body)

    def entry(self, previous: bytes, body: bytes) -> bytes:
        """Return the MAC of an entry after the line whose MAC is given."""
        return self._hmac.digest(b"entry\0" + previous + body)

    def head(self, text: bytes) -> bytes:
        """Return the MAC of a head."""
        return self._hmac.digest(b"head\0" + text)

    def close(self) -> None:
        """Wipe the key."""
        self._hmac.close()


def build_line(body: bytes, mac: bytes) -> bytes:
    """Return the line of a body, with its newline."""
    return b"%b%b%b%b\n" % (body, _MAC, hexlify(mac), _END)


def split_line(line: bytes) -> tuple[bytes, bytes] | None:
    """Return body and MAC of a line without its newline; None where it does not end as one does."""
    if line[-TAIL_SIZE : -TAIL_SIZE + len(_MAC)] != _MAC or line[-len(_END) :] != _END:
        return None
    text = line[-TAIL_SIZE + len(_MAC) : -len(_END)]
    # fromhex() takes capital letters and blanks too, and a line has but one form.
    if not _HEX.fullmatch(text):
        return None
    return line[:-TAIL_SIZE], bytes.fromhex(text.decode())


def sequence_of(line: bytes) -> int | None:
    """Return the number that a line says it has; None where it says none."""
    found = _SEQUENCE.match(line)
    return None if found is None else int(found[1])


# The header


@dataclass(frozen=True)
class LogHeader:
    """The first line of each file of a log."""

    log_id: bytes
    """16 random bytes, the same in all files of a log."""
    file: int
    """1 for the first file of a log."""
    sequence: int
    """The number of the last entry before this file; 0 in the first file."""
    previous: bytes | None
    """The MAC of the line before it: of that entry or, where the file before has none, of its header."""
    created: str
    """In UTC, to the second."""
    host: str
    roll_size: int | None
    """From how many bytes on the next file is begun."""
    roll_seconds: int | None
    """The next file is begun when the time, in seconds since 1970, passes a multiple of this."""
    recipients: list[Recipient]
    """Who can unwrap the log's key."""
    mac: bytes = b""
    """Of the line itself."""
    size: int = 0
    """Bytes of the line with its newline."""
    body: bytes = b""
    """What the MAC is of."""

    def sealed(self, key: ChainKey) -> tuple["LogHeader", bytes]:
        """Return the header as it is parsed again, and its line."""
        fields = {
            "tapeseal": _TITLE,
            "format": 1,
            "log": self.log_id.hex(),
            "file": self.file,
            "sequence": self.sequence,
            "previous": None if self.previous is None else self.previous.hex(),
            "created": self.created,
            "host": self.host,
            "roll_size": self.roll_size,
            "roll_seconds": self.roll_seconds,
            "recipients": json.loads(layout.build_recipients(self.recipients)),
        }
        body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
        line = build_line(body, key.header(body))
        return parse_header(line), line


_MEMBERS = {
    "tapeseal": str,
    "format": int,
    "log": str,
    "file": int,
    "sequence": int,
    "previous": str | None,
    "created": str,
    "host": str,
    "roll_size": int | None,
    "roll_seconds": int | None,
    "recipients": list,
    "mac": str,
}


def encryption_context(log_id: bytes) -> dict[str, str]:
    """Return the public pairs bound to the wrapped key of a log."""
    return {"purpose": _TITLE, "log": log_id.hex()}


def new_key(keyring: Keyring, log_id: bytes) -> tuple[ChainKey, list[Recipient]]:
    """Make a key for a log, wrapped by a keyring."""
    data_key, recipients = keyring.generate(encryption_context(log_id))
    return ChainKey(data_key, log_id), recipients


def first_header(
    log_id: bytes, roll_size: int | None, roll_seconds: int | None, recipients: list[Recipient]
) -> LogHeader:
    """Return the header of a new log's first file."""
    return LogHeader(
        log_id,
        file=1,
        sequence=0,
        previous=None,
        created=now_text(),
        host=socket.gethostname(),
        roll_size=roll_size,
        roll_seconds=roll_seconds,
        recipients=recipients,
    )


def next_header(header: LogHeader, head: "Head", recipients: list[Recipient]) -> LogHeader:
    """Return the header of the file that follows one of which this is the end."""
    return replace(
        header,
        file=header.file + 1,
        sequence=head.sequence,
        previous=head.mac,
        created=now_text(),
        host=socket.gethostname(),
        recipients=recipients,
    )


def now_text() -> str:
    """Return the time as headers have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time()))


def parse_header(line: bytes) -> LogHeader:
    """Read the first line of a file; nothing of it is authenticated.

    Raises:
        DamagedError: it is not the header of an audit log.
    """
    split = split_line(line[:-1])
    fields = parse_object(line)
    if split is None or line[-1:] != b"\n" or fields is None or fields.get("tapeseal") != _TITLE:
        raise DamagedError("this is not the first line of an audit log", 0)
    if fields.get("format") != 1:
        raise DamagedError("the audit log is of a later format than this version reads", 0)
    if fields.keys() != _MEMBERS.keys() or not all(
        isinstance(fields[name], kind) and not isinstance(fields[name], bool)
        for name, kind in _MEMBERS.items()
    ):
        raise DamagedError("the header of the audit log was changed", 0)
    recipients = layout.parse_recipients(json.dumps(fields["recipients"]).encode(), 0)
    try:
        log_id = bytes.fromhex(fields["log"])
        previous = None if fields["previous"] is None else bytes.fromhex(fields["previous"])
        datetime.strptime(fields["created"], "%Y-%m-%dT%H:%M:%SZ")
        if len(log_id) != 16 or (previous is not None and len(previous) != MAC_SIZE):
            raise ValueError
        if (fields["file"] == 1) != (previous is None):
            raise ValueError
        numbers = (fields["file"] - 1, fields["sequence"])
        rolls = [each for each in (fields["roll_size"], fields["roll_seconds"]) if each is not None]
        if min(numbers) < 0 or min(rolls, default=1) < 1:
            raise ValueError
    except ValueError:
        raise DamagedError("the header of the audit log was changed", 0) from None
    return LogHeader(
        log_id,
        fields["file"],
        fields["sequence"],
        previous,
        fields["created"],
        fields["host"],
        fields["roll_size"],
        fields["roll_seconds"],
        recipients,
        split[1],
        len(line),
        split[0],
    )


def unlock(header: LogHeader, keyring: Keyring) -> ChainKey:
    """Unwrap a log's key, and authenticate its header.

    Raises:
        KeyUnavailableError: the keyring has no key for it.
        DamagedError: header or wrapped key were changed.
    """
    try:
        data_key = keyring.unwrap(header.recipients, encryption_context(header.log_id))
    except InvalidTag:
        raise DamagedError(
            "the header is forged: its wrapped key does not open, so it or the log's id was changed",
            0,
        ) from None
    key = ChainKey(data_key, header.log_id)
    if not hmac.compare_digest(key.header(header.body), header.mac):
        key.close()
        raise DamagedError("the header is forged: its MAC is wrong", 0)
    return key


# The head


class Head(NamedTuple):
    """How far a log has come: what the file beside it says."""

    file: int
    sequence: int
    size: int
    """Bytes of that file."""
    mac: bytes
    """Of its last line."""


def build_head(log_id: bytes, head: Head, key: ChainKey) -> bytes:
    """Return the bytes of the file beside the log."""
    text = _HEAD % (hexlify(log_id), head.file, head.sequence, head.size, hexlify(head.mac))
    return b"%b%b\n" % (text, hexlify(key.head(text)))


def parse_head(text: bytes) -> tuple[bytes, Head] | None:
    """Return a log's id and what its head says, not authenticated; None where it is no head."""
    found = _HEAD_PATTERN.fullmatch(text)
    if found is None:
        return None
    log_id, file, sequence, size, mac = found.groups()[1:6]
    head = Head(int(file), int(sequence), int(size), bytes.fromhex(mac.decode()))
    return bytes.fromhex(log_id.decode()), head


def check_head(text: bytes, log_id: bytes, key: ChainKey) -> Head | None:
    """Return what a log's head says; None where it is not an authentic one of this log."""
    parsed = parse_head(text)
    if parsed is None or parsed[0] != log_id:
        return None
    mac = hexlify(key.head(text[:-_HEAD_END]))
    return parsed[1] if hmac.compare_digest(mac, text[-_HEAD_END:-1]) else None


# Reading without a key


def parse_object(line: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object of a line; None where it is none, or names a member twice."""
    try:
        value = json.loads(line, object_pairs_hook=layout.unique_members)
    except (ValueError, RecursionError):  # UnicodeDecodeError among them
        return None
    return value if isinstance(value, dict) else None
