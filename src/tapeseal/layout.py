"""The tape format as bytes and tuples: header copies, segments, frames, index, trailer (docs/format.md).

Nothing here holds a key, touches a file or decrypts: `build_*` makes bytes, `parse_*` checks every rule that bytes
alone can break and raises `DamagedError` with the offset of what it refuses.

A header copy:

| offset | bytes | field | value |
| --- | --- | --- | --- |
| 0 | 8 | magic | `TAPESEAL` in ASCII |
| 8 | 2 | version | u16: 1 |
| 10 | 2 | suite | u16: 1 (HKDF-SHA-512, AES-256-GCM, HMAC-SHA-256) |
| 12 | 4 | copy_size | u32: size of this copy with its padding, 96 to 2 MiB |
| 16 | 16 | tape_id | random, made with the tape |
| 32 | 8 | generation | u64: 1 in a new tape and 1 more with each rewrap, below 2^63; nothing depends on it |
| 40 | 4 | content_size | u32: bytes of content, at most 1 MiB |
| 44 | 4 | recipients_size | u32: bytes of recipients, at most 1 MiB - 4096 |
| 48 | 1 | copies | u8: 1 in a blob, 2 in a file |
| 49 | 11 | reserved | zeros |
| 60 | 4 | crc | u32: CRC-32, as zlib and gzip compute it, of the whole copy with these four bytes taken as zeros |
| 64 | 32 | mac | HMAC-SHA-256 under Expand("header", tape_id, 32), section 3 |
| 96 | content_size | content | JSON text |
| 96 + content_size | recipients_size | recipients | JSON text |
| after them | to copy_size | padding | zeros; none in a blob |

A segment header:

| offset | bytes | field | value |
| --- | --- | --- | --- |
| 0 | 1 | type | u8: 1 for data, 4 for the index |
| 1 | 3 | reserved | zeros |
| 4 | 4 | number | u32: 0, 1, 2, … in the order of the file; the index has the next after the data segments' |
| 8 | 8 | prev_frames | u64: how many frames the data segment before this one has; 0 in the first |
| 16 | 32 | prev | the commitment of the data segment before this one; SHA-256 of the bytes of content in the first |
| 48 | 32 | salt | random |
| 80 | 32 | commitment | section 4 |

A frame:

| offset | bytes | field | value |
| --- | --- | --- | --- |
| 0 | 1 | type | u8: 2; 3 for the final frame of a blob or of an index |
| 1 | 3 | reserved | zeros |
| 4 | 4 | count | u32: items in the frame |
| 8 | 8 | first | u64: number of its first item in the tape, from 0; in an index: in the text of that index |
| 16 | 4 | sealed_size | u32: bytes of ciphertext |
| 20 | 4 | reserved | zeros |
| 24 | sealed_size | ciphertext | |
| 24 + sealed_size | 16 | tag | |

The text of an index:

| offset | bytes | field | value |
| --- | --- | --- | --- |
| 0 | 4 | segment_count | u32: data segments |
| 4 | 4 | run_count | u32: runs |
| 8 | 8 | total_frames | u64: frames of all data segments |
| 16 | 8 | total_items | u64: items of all data segments |
| 24 | 48 each | segments | one entry for each data segment |
| after them | 48 each | runs | one entry for each run |
| after them | two values of the field each | bounds | where index_by is not null, one entry for each frame |

A segment's entry in it:

| offset | bytes | field | value |
| --- | --- | --- | --- |
| 0 | 8 | offset | u64: where the segment header stands in the file |
| 8 | 8 | frames | u64: frames of the segment |
| 16 | 32 | commitment | as in the segment header |

A run's entry:

| offset | bytes | field | value |
| --- | --- | --- | --- |
| 0 | 4 | segment | u32: number of the segment |
| 4 | 4 | count | u32: items of each of its frames |
| 8 | 8 | first_frame | u64: number of its first frame in the segment |
| 16 | 8 | first_item | u64: number of the first item of that frame |
| 24 | 8 | offset | u64: where that frame's header stands in the file |
| 32 | 8 | frames | u64: how many frames |
| 40 | 8 | step | u64: bytes from one frame to the next, count times item size, plus 40 |

The trailer:

| offset | bytes | field | value |
| --- | --- | --- | --- |
| 0 | 8 | offset | u64: where the header of the index segment stands |
| 8 | 8 | magic | `TAPEEND` in ASCII and a zero |
"""

import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tapeseal.errors import DamagedError

MAGIC = b"TAPESEAL"
VERSION = 1
SUITE = 1

KEY_SIZE = 32
TAG_SIZE = 16
FRAME_HEADER_SIZE = 24
FRAME_OVERHEAD = FRAME_HEADER_SIZE + TAG_SIZE
SEGMENT_HEADER_SIZE = 112
SEGMENT_FIELDS_SIZE = 80
TRAILER_SIZE = 16
HEADER_PREFIX_SIZE = 96

HEADER_ALIGNMENT = 4096
MAX_COPY_SIZE = 2 << 20
MAX_CONTENT_SIZE = 1 << 20
MAX_RECIPIENTS_SIZE = (1 << 20) - 4096
MAX_JSON_MARKS = 8192
MAX_JSON_DEPTH = 8
MAX_GENERATION = 1 << 63
MAX_RECIPIENTS = 64
MAX_WRAPPED_SIZE = 8192
MAX_CONTEXT_PAIRS = 64
MAX_CONTEXT_SIZE = 8192
MAX_FIELDS = 1024
MAX_ITEM_SIZE = 1 << 20
MIN_FRAME_SIZE = 4096
MAX_FRAME_SIZE = 1 << 26
DEFAULT_FRAME_SIZE = 65536
MAX_SEGMENT_FRAMES = 1 << 32
MAX_SEGMENT_SIZE = 1 << 40

DATA_SEGMENT = 1
FRAME = 2
FINAL_FRAME = 3
INDEX_SEGMENT = 4

BLOB_COPIES = 1
FILE_COPIES = 2

KINDS = ("records", "bytes", "rows")
RESERVED_PREFIX = "tapeseal:"

_HEADER = struct.Struct("<8sHHI16sQIIB11sI32s")
_CRC_OFFSET = 60
_SIGNED_SIZE = 60
_SEGMENT = struct.Struct("<B3sIQ32s32s32s")
_FRAME = struct.Struct("<B3sIQI4s")
_TRAILER = struct.Struct("<Q8s")
_TRAILER_MAGIC = b"TAPEEND\0"
_INDEX_HEAD = struct.Struct("<IIQQ")
_INDEX_SEGMENT = struct.Struct("<QQ32s")
_INDEX_RUN = struct.Struct("<IIQQQQQ")


def encode_context(pairs: Mapping[str, str]) -> bytes:
    """Return the one byte string of an encryption context: sorted, length-prefixed pairs (FORMAT 2)."""
    encoded = sorted((key.encode(), value.encode()) for key, value in pairs.items())
    return b"".join(struct.pack("<I", len(part)) + part for pair in encoded for part in pair)


def wrap_binding(encryption_context: Mapping[str, str]) -> bytes:
    """Return W, the associated data that binds a wrapped key to its encryption context (FORMAT 3)."""
    return b"tapeseal/v1 wrap\0" + encode_context(encryption_context)


def check_context(pairs: Mapping[str, str]) -> None:
    """Raise ValueError where the pairs are no encryption context: see the limits in docs/format.md."""
    if len(pairs) > MAX_CONTEXT_PAIRS:
        raise ValueError(f"encryption context: {len(pairs)} pairs; {MAX_CONTEXT_PAIRS} are allowed")
    for key, value in pairs.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError("encryption context: keys and values must be strings")
        if key.startswith(RESERVED_PREFIX):
            raise ValueError(f"encryption context: keys must not begin with {RESERVED_PREFIX!r}")
    size = len(encode_context(pairs))
    if size > MAX_CONTEXT_SIZE:
        raise ValueError(
            f"encryption context: {size} bytes encoded; {MAX_CONTEXT_SIZE} are allowed"
        )


class Recipient(NamedTuple):
    """One wrapping of the data key, as the header holds it."""

    provider: str
    """Who wraps: "local", "aws-kms", "vault-transit" or "public-key"; readers skip others."""
    key: str
    """Which of the provider's wrapping keys; only ever selects a key that the reader configured."""
    wrapped: str | None
    """The wrapped key as the provider writes it; None: pending, to be added by a rewrap."""
    binding: str | None = None
    """vault-transit alone: how the encryption context is bound, "context" or "associated_data"."""
    share: tuple[int, int, int] | None = None
    """(group, threshold, index) where a Shamir share is wrapped instead of the key."""


class Content(NamedTuple):
    """The part of a header that never changes."""

    created: str
    kind: str
    dtype: np.dtype[Any] | None
    frame_size: int
    index_by: str | None
    encryption_context: dict[str, str]

    @property
    def item_size(self) -> int:
        """Bytes of one record; 1 where the tape is of bytes."""
        return 1 if self.dtype is None else self.dtype.itemsize

    @property
    def frame_items(self) -> int:
        """Records (bytes) of a full frame."""
        return self.frame_size // self.item_size


class HeaderCopy(NamedTuple):
    """One intact header copy; `content` and `recipients` are the texts as they stand in the file."""

    copy_size: int
    tape_id: bytes
    generation: int
    copies: int
    mac: bytes
    fields: bytes
    """Its first 60 bytes."""
    content: bytes
    recipients: bytes

    @property
    def signed(self) -> bytes:
        """What the MAC is computed over."""
        return self.fields + self.content + self.recipients


class SegmentHeader(NamedTuple):
    """What a segment header says; `fields` are its first 80 bytes, from which the key derives."""

    type: int
    number: int
    prev_frames: int
    prev: bytes
    salt: bytes
    commitment: bytes
    fields: bytes


class SegmentEntry(NamedTuple):
    """A data segment as the index lists it."""

    offset: int
    frames: int
    commitment: bytes


class Run(NamedTuple):
    """Consecutive frames of one segment that have the same number of items."""

    segment: int
    items: int
    """Of each frame."""
    first_frame: int
    first_item: int
    offset: int
    frames: int
    step: int


class Index(NamedTuple):
    """The index of a sealed tape."""

    total_frames: int
    total_items: int
    segments: list[SegmentEntry]
    runs: list[Run]
    bounds: bytes
    """With index_by: two values a frame, the smallest and the largest, as stored in a record."""


# Header copies


def build_header(
    tape_id: bytes, generation: int, content: bytes, recipients: bytes, copies: int, copy_size: int
) -> bytes:
    """Return a header's first 60 bytes and both texts: what the MAC covers, and what seal_header() completes."""
    if len(recipients) > MAX_RECIPIENTS_SIZE or len(content) > MAX_CONTENT_SIZE:
        raise ValueError("the header's texts are over their limits")
    prefix = _HEADER.pack(
        MAGIC, VERSION, SUITE, copy_size, tape_id, generation, len(content), len(recipients), copies,
        bytes(11), 0, bytes(32),
    )  # fmt: skip
    return prefix[:_SIGNED_SIZE] + content + recipients


def seal_header(signed: bytes, mac: bytes) -> bytes:
    """Return the header copy of what build_header() gave: MAC, padding and CRC added."""
    copy_size = int.from_bytes(signed[12:16], "little")
    text = signed[_SIGNED_SIZE:]
    padding = bytes(copy_size - HEADER_PREFIX_SIZE - len(text))
    rest = mac + text + padding
    crc = zlib.crc32(rest, zlib.crc32(signed[:_SIGNED_SIZE] + bytes(4)))
    return signed[:_SIGNED_SIZE] + struct.pack("<I", crc) + rest


def file_copy_size(content: bytes, recipients: bytes) -> int:
    """Return the size of each copy of a new file: at least half of it free for later recipients."""
    used = HEADER_PREFIX_SIZE + len(content) + len(recipients)
    wanted = -(-2 * used // HEADER_ALIGNMENT) * HEADER_ALIGNMENT
    if used > MAX_COPY_SIZE:
        raise ValueError(f"the header needs {used} bytes; {MAX_COPY_SIZE} are allowed")
    return min(wanted, MAX_COPY_SIZE)


def stated_copy_size(prefix: bytes) -> int | None:
    """Return the copy size that a header's first 16 bytes state, None where no header of ours stands there."""
    if len(prefix) < HEADER_PREFIX_SIZE or prefix[:8] != MAGIC:
        return None
    copy_size = int.from_bytes(prefix[12:16], "little")
    return copy_size if HEADER_PREFIX_SIZE <= copy_size <= MAX_COPY_SIZE else None


def parse_header(copy: bytes, offset: int) -> HeaderCopy | None:
    """Return the header copy that `copy` holds, None where it is rotten (its CRC or sizes do not hold).

    Raises:
        DamagedError: an intact copy that says what this version does not know.
    """
    size = stated_copy_size(copy)
    if size is None or size != len(copy):
        return None
    (_, version, suite, _, tape_id, generation, content_size, recipients_size, copies, reserved, crc, mac) = (
        _HEADER.unpack_from(copy)
    )  # fmt: skip
    if zlib.crc32(memoryview(copy)[64:], zlib.crc32(copy[:_CRC_OFFSET] + bytes(4))) != crc:
        return None
    if version != VERSION:
        raise DamagedError(f"tape version {version} is not known, only {VERSION}", offset + 8)
    if suite != SUITE:
        raise DamagedError(f"cipher suite {suite} is not known, only {SUITE}", offset + 10)
    if generation >= MAX_GENERATION:
        raise DamagedError("the header's generation is over 2**63", offset + 32)
    if content_size > MAX_CONTENT_SIZE:
        raise DamagedError(
            f"the header's content of {content_size} bytes is over its limit", offset + 40
        )
    if recipients_size > MAX_RECIPIENTS_SIZE:
        raise DamagedError(
            f"the header's recipients of {recipients_size} bytes are over the limit", offset + 44
        )
    if copies not in (BLOB_COPIES, FILE_COPIES):
        raise DamagedError(f"a header with {copies} copies is not known", offset + 48)
    if any(reserved):
        raise DamagedError("a reserved byte of the header is not zero", offset + 49)
    end = HEADER_PREFIX_SIZE + content_size + recipients_size
    if end > size:
        raise DamagedError("the header's texts are longer than its copy", offset + 40)
    if copies == BLOB_COPIES and end != size:
        raise DamagedError("a blob's header is padded", offset + 12)
    if copies == FILE_COPIES and size % HEADER_ALIGNMENT:
        raise DamagedError(
            f"a copy size of {size} is no multiple of {HEADER_ALIGNMENT}", offset + 12
        )
    if copy.count(0, end) != size - end:
        raise DamagedError("the header's padding is not zero", offset + end)
    content = copy[HEADER_PREFIX_SIZE : HEADER_PREFIX_SIZE + content_size]
    recipients = copy[HEADER_PREFIX_SIZE + content_size : end]
    return HeaderCopy(
        size, tape_id, generation, copies, mac, copy[:_SIGNED_SIZE], content, recipients
    )


# The two texts


def unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object, as json.loads() takes it for `object_pairs_hook`.

    Raises:
        ValueError: a name stands twice.
    """
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice")
    return members


def no_float(text: str) -> Any:
    """Raise ValueError, as json.loads() takes it for `parse_float` and `parse_constant`."""
    raise ValueError("a number is not whole")


def _check_parsed(value: Any, depth: int = 1) -> None:
    """Raise ValueError for lists and maps too deep in each other, and for lone surrogates, which JSON can escape."""
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
        for part in value:
            _check_parsed(part, depth + 1)
        for part in value.values() if isinstance(value, dict) else ():
            _check_parsed(part, depth + 1)


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def _check_depth(text: bytes) -> None:
    """Raise ValueError for so many levels that the parser, which recurses, might overflow a small stack."""
    depth = 0
    if text.count(b"[") + text.count(b"{") > 256:
        for mark in re.findall(rb"[][{}]", _STRING.sub(b"", text)):
            depth += 1 if mark in b"[{" else -1
            if depth > MAX_JSON_DEPTH:
                raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")


def _parse_json(text: bytes, what: str, offset: int) -> Any:
    # Counted before anything is parsed: bounds the objects and the depth that the parser can be made to build.
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > MAX_JSON_MARKS:
        raise DamagedError(f"{what}: over {MAX_JSON_MARKS} of the characters , [ {{", offset)
    try:
        _check_depth(text)
        value = json.loads(
            text.decode(),
            object_pairs_hook=unique_members,
            parse_float=no_float,
            parse_constant=no_float,
        )
        _check_parsed(value)
    except (ValueError, RecursionError) as error:
        reason = "it is not UTF-8 JSON" if isinstance(error, UnicodeError) else str(error)
        raise DamagedError(f"{what}: {reason}", offset) from None
    return value


def _dump_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


_PLAIN = re.compile(
    r"\|b1|\|[iu]1|[<>](?:[iu][248]|f[248]|c8|c16)|\|[SV][1-9][0-9]{0,6}|[<>]U[1-9][0-9]{0,6}"
    r"|[<>][mM]8(?:\[(?:[1-9][0-9]{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)


def dtype_to_json(dtype: np.dtype[Any]) -> Any:
    """Return what a header says of a dtype.

    Raises:
        ValueError: a dtype that cannot be stored: objects, titles, zero sizes, overlapping fields and the like.
    """
    if dtype.hasobject:
        raise ValueError(
            f"dtype {dtype}: object fields hold pointers, not values, and cannot be stored"
        )
    if dtype.names is None:
        if dtype.subdtype is not None:
            raise ValueError(f"dtype {dtype}: a sub-array belongs in a field")
        described: Any = dtype.str
    else:
        # numpy's descr of a nested dtype with titles or overlaps raises ValueError by itself.
        described = json.loads(json.dumps(dtype.descr))
    back = dtype_from_json(described)
    if back != dtype:
        raise ValueError(f"dtype {dtype}: it cannot be described exactly (titles or metadata)")
    return described


def dtype_from_json(described: Any) -> np.dtype[Any]:
    """Return the dtype that a header describes, padding and sub-arrays included.

    Raises:
        ValueError: something that dtype_to_json() does not write.
    """
    count = 0

    def field(entry: Any) -> tuple[str, Any, int]:
        nonlocal count
        count += 1
        if count > MAX_FIELDS:
            raise ValueError(f"over {MAX_FIELDS} fields")
        if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[0], str):
            raise ValueError("a field is not [name, type] or [name, type, shape]")
        kind = one(entry[1])
        if entry[0] == "" and not (
            isinstance(entry[1], str) and entry[1].startswith("|V") and len(entry) == 2
        ):
            raise ValueError("a field without a name is not padding")
        if len(entry) == 3:
            shape = entry[2]
            if not isinstance(shape, list) or not 1 <= len(shape) <= 32:
                raise ValueError("a sub-array's shape is not a list")
            size = kind.itemsize
            for extent in shape:
                if type(extent) is not int or extent < 1:
                    raise ValueError("a sub-array's extent is not a whole number above 0")
                size *= extent
                if size > MAX_ITEM_SIZE:
                    raise ValueError(f"a record is over {MAX_ITEM_SIZE} bytes")
            kind = np.dtype((kind, tuple(shape)))
        return entry[0], kind, kind.itemsize

    def one(value: Any) -> np.dtype[Any]:
        if isinstance(value, str):
            if not _PLAIN.fullmatch(value):
                raise ValueError(f"the type {value[:32]!r} is not known")
            plain = np.dtype(value)
            if plain.itemsize > MAX_ITEM_SIZE:
                raise ValueError(f"a record is over {MAX_ITEM_SIZE} bytes")
            return plain
        if not isinstance(value, list) or not value:
            raise ValueError("a dtype is neither a string nor a list of fields")
        names, formats, offsets, offset = [], [], [], 0
        for entry in value:
            name, kind, size = field(entry)
            if name:
                names.append(name)
                formats.append(kind)
                offsets.append(offset)
            offset += size
            if offset > MAX_ITEM_SIZE:
                raise ValueError(f"a record is over {MAX_ITEM_SIZE} bytes")
        if not names:
            raise ValueError("a structure has no fields")
        if len(set(names)) != len(names):
            raise ValueError("two fields have one name")
        return np.dtype(
            {"names": names, "formats": formats, "offsets": offsets, "itemsize": offset}
        )

    return one(described)


def check_index_by(dtype: np.dtype[Any] | None, index_by: str | None) -> None:
    """Raise ValueError unless index_by is None or a scalar field of kind i, u, f, m or M of the dtype."""
    if index_by is None:
        return
    fields = None if dtype is None else dtype.fields
    if fields is None or index_by not in fields:
        raise ValueError(f"index_by {index_by[:64]!r} is no field of the records")
    kind = fields[index_by][0]
    if kind.subdtype is not None or kind.kind not in "iufmM":
        raise ValueError(f"index_by {index_by[:64]!r} is not a number or a time but {kind}")


_CREATED = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z")
_CONTENT_MEMBERS = {
    "created",
    "kind",
    "dtype",
    "frame_size",
    "index_by",
    "codec",
    "encryption_context",
}


def build_content(content: Content) -> bytes:
    """Return the content text of a header; parse_content() reads it back, and checks it on the way."""
    check_context(content.encryption_context)
    text = _dump_json(
        {
            "created": content.created,
            "kind": content.kind,
            "dtype": None if content.dtype is None else dtype_to_json(content.dtype),
            "frame_size": content.frame_size,
            "index_by": content.index_by,
            "codec": None,
            "encryption_context": dict(content.encryption_context),
        }
    )
    try:
        parse_content(text, 0)
    except DamagedError as error:
        raise ValueError(error.problem) from None
    return text


def parse_content(text: bytes, offset: int) -> Content:
    """Return what the content text of a header says; `offset` is where it stands.

    Raises:
        DamagedError: anything in it that FORMAT 3 does not allow.
    """
    members = _parse_json(text, "the header's content", offset)
    try:
        if not isinstance(members, dict) or members.keys() != _CONTENT_MEMBERS:
            raise ValueError("its members are not the seven of version 1")
        created, kind, frame_size = members["created"], members["kind"], members["frame_size"]
        if not isinstance(created, str) or not _CREATED.fullmatch(created):
            raise ValueError("created is not a time like 2026-11-23T14:30:00Z")
        if kind not in KINDS:
            raise ValueError("kind is not records, bytes or rows")
        if members["codec"] is not None:
            raise ValueError("its codec is not known")
        described = members["dtype"]
        if (described is None and kind == "records") or (described is not None and kind == "bytes"):
            raise ValueError(f"dtype does not go with kind {kind}")
        dtype = None if described is None else dtype_from_json(described)
        if type(frame_size) is not int or not MIN_FRAME_SIZE <= frame_size <= MAX_FRAME_SIZE:
            raise ValueError(f"frame_size is not {MIN_FRAME_SIZE} to {MAX_FRAME_SIZE}")
        if dtype is not None and dtype.itemsize > frame_size:
            raise ValueError("frame_size is less than a record")
        index_by = members["index_by"]
        if index_by is not None and (not isinstance(index_by, str) or kind != "records"):
            raise ValueError("index_by is not a field's name")
        check_index_by(dtype, index_by)
        context = members["encryption_context"]
        if not isinstance(context, dict):
            raise ValueError("encryption_context is not a map")
        check_context(context)
    except ValueError as error:
        raise DamagedError(f"the header's content: {error}", offset) from None
    return Content(created, kind, dtype, frame_size, index_by, context)


_SHARE_MEMBERS = {"group", "threshold", "index"}


def build_recipients(recipients: Sequence[Recipient]) -> bytes:
    """Return the recipients text of a header; checked as parse_recipients() does."""
    entries = []
    for recipient in recipients:
        entry: dict[str, Any] = {"provider": recipient.provider, "key": recipient.key}
        if recipient.wrapped is None:
            entry["pending"] = True
        else:
            entry["wrapped"] = recipient.wrapped
        if recipient.binding is not None:
            entry["binding"] = recipient.binding
        if recipient.share is not None:
            entry["share"] = dict(
                zip(("group", "threshold", "index"), recipient.share, strict=True)
            )
        entries.append(entry)
    text = _dump_json(entries)
    try:
        parse_recipients(text, 0)
    except DamagedError as error:
        raise ValueError(error.problem) from None
    if len(text) > MAX_RECIPIENTS_SIZE:
        raise ValueError(
            f"the recipients need {len(text)} bytes; {MAX_RECIPIENTS_SIZE} are allowed"
        )
    return text


def parse_recipients(text: bytes, offset: int) -> list[Recipient]:
    """Return the recipients that a header names; `offset` is where their text stands.

    Raises:
        DamagedError: anything in it that FORMAT 3 does not allow.
    """
    entries = _parse_json(text, "the header's recipients", offset)
    try:
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_RECIPIENTS:
            raise ValueError(f"they are not a list of 1 to {MAX_RECIPIENTS}")
        recipients = [_parse_recipient(entry) for entry in entries]
        thresholds: dict[int, int] = {}
        for recipient in recipients:
            if recipient.share is not None:
                group, threshold, _ = recipient.share
                if thresholds.setdefault(group, threshold) != threshold:
                    raise ValueError("the shares of one group have two thresholds")
    except ValueError as error:
        raise DamagedError(f"the header's recipients: {error}", offset) from None
    return recipients


def _parse_recipient(entry: Any) -> Recipient:
    if not isinstance(entry, dict):
        raise ValueError("one is not a map")
    needed = {"provider", "key", "pending" if "pending" in entry else "wrapped"}
    allowed = needed | {"share"}
    if entry.get("provider") == "vault-transit":
        allowed |= {"binding"}
        if "wrapped" in needed:
            needed |= {"binding"}
    if not needed <= entry.keys() <= allowed:
        raise ValueError("the members of one are not provider, key, and wrapped or pending")
    if not all(isinstance(entry[name], str) for name in needed - {"pending"}):
        raise ValueError("a member of one is not a string")
    if "pending" in entry and entry["pending"] is not True:
        raise ValueError("pending is not true")
    wrapped = entry.get("wrapped")
    if wrapped is not None and len(wrapped.encode()) > MAX_WRAPPED_SIZE:
        raise ValueError(f"a wrapped key is over {MAX_WRAPPED_SIZE} bytes")
    binding = entry.get("binding")
    if "binding" in entry and binding not in ("context", "associated_data"):
        raise ValueError("binding is not context or associated_data")
    share = None
    if "share" in entry:
        members = entry["share"]
        if not isinstance(members, dict) or members.keys() != _SHARE_MEMBERS:
            raise ValueError("a share is not group, threshold and index")
        share = (members["group"], members["threshold"], members["index"])
        if not all(type(number) is int for number in share):
            raise ValueError("a number of a share is not whole")
        if not (0 <= share[0] < 1 << 32 and 1 <= share[1] <= 255 and 1 <= share[2] <= 255):
            raise ValueError("a number of a share is out of range")
    return Recipient(entry["provider"], entry["key"], wrapped, binding, share)


# Segments, frames, trailer


def build_segment_fields(
    type: int, number: int, prev_frames: int, prev: bytes, salt: bytes
) -> bytes:
    """Return the first 80 bytes of a segment header, from which its key and commitment derive."""
    return _SEGMENT.pack(type, bytes(3), number, prev_frames, prev, salt, bytes(32))[
        :SEGMENT_FIELDS_SIZE
    ]


def parse_segment(header: bytes, offset: int) -> SegmentHeader:
    """Return what the 112 bytes of a segment header say.

    Raises:
        DamagedError: an unknown type, or a reserved byte that is not zero.
    """
    type, reserved, number, prev_frames, prev, salt, commitment = _SEGMENT.unpack(header)
    if type not in (DATA_SEGMENT, INDEX_SEGMENT):
        raise DamagedError(f"a block of unknown type {type}", offset)
    if any(reserved):
        raise DamagedError("a reserved byte of a segment header is not zero", offset)
    return SegmentHeader(
        type, number, prev_frames, prev, salt, commitment, bytes(header[:SEGMENT_FIELDS_SIZE])
    )


def parse_frame(buffer: bytes | memoryview, at: int) -> tuple[int, int, int, int, bool]:
    """Return (type, count, first, sealed_size, clean) of the frame header at buffer[at:].

    clean says that its reserved bytes are zero.
    """
    type, reserved, count, first, sealed_size, reserved_too = _FRAME.unpack_from(buffer, at)
    return type, count, first, sealed_size, not (any(reserved) or any(reserved_too))


def build_trailer(index_offset: int) -> bytes:
    """Return the 16 bytes that end a sealed tape."""
    return _TRAILER.pack(index_offset, _TRAILER_MAGIC)


def parse_trailer(trailer: bytes) -> int | None:
    """Return the offset of the index segment, None where the 16 bytes are no trailer."""
    offset, magic = _TRAILER.unpack(trailer)
    return int(offset) if magic == _TRAILER_MAGIC else None


# Index


def build_index(index: Index) -> bytes:
    """Return the index text, which the frames of the index segment carry."""
    return b"".join(
        (
            _INDEX_HEAD.pack(
                len(index.segments), len(index.runs), index.total_frames, index.total_items
            ),
            *(_INDEX_SEGMENT.pack(*segment) for segment in index.segments),
            *(_INDEX_RUN.pack(*run) for run in index.runs),
            index.bounds,
        )
    )


def parse_index(text: bytes, content: Content, body: int, end: int) -> Index:
    """Return the index that `text` holds, for a tape whose data lies in the file from `body` to `end`.

    Raises:
        DamagedError: counts that do not fit the text, or runs that are not contiguous, in order and inside the file.
    """

    def refuse(problem: str) -> DamagedError:
        return DamagedError(f"the index: {problem}", end)

    if len(text) < _INDEX_HEAD.size:
        raise refuse("it is too short")
    segment_count, run_count, total_frames, total_items = _INDEX_HEAD.unpack_from(text)
    value_size = 0
    if content.index_by is not None and content.dtype is not None:
        value_size = content.dtype[content.index_by].itemsize
    runs_at = _INDEX_HEAD.size + segment_count * _INDEX_SEGMENT.size
    bounds_at = runs_at + run_count * _INDEX_RUN.size
    if len(text) != bounds_at + 2 * value_size * total_frames:
        raise refuse("its size is not what its counts say")
    segments = [
        SegmentEntry(*entry)
        for entry in _INDEX_SEGMENT.iter_unpack(text[_INDEX_HEAD.size : runs_at])
    ]
    runs = [Run(*entry) for entry in _INDEX_RUN.iter_unpack(text[runs_at:bounds_at])]

    frames = items = 0
    position = body
    pending = iter(runs)
    run = next(pending, None)
    for number, segment in enumerate(segments):
        if segment.offset != position:
            raise refuse(f"segment {number} does not follow the one before")
        position += SEGMENT_HEADER_SIZE
        in_segment = last_count = 0
        while run is not None and run.segment == number:
            if not 1 <= run.items <= content.frame_items or run.frames < 1:
                raise refuse("a run is empty or over the frame size")
            if run.step != run.items * content.item_size + FRAME_OVERHEAD:
                raise refuse("a run's step is not its frames' size")
            if (run.first_frame, run.first_item, run.offset) != (in_segment, items, position):
                raise refuse("a run does not follow the one before")
            if run.items == last_count:
                raise refuse("two runs should be one")
            last_count = run.items
            in_segment += run.frames
            items += run.frames * run.items
            position += run.frames * run.step
            if position > end:
                raise refuse("a run reaches past the data")
            run = next(pending, None)
        if in_segment != segment.frames or in_segment > MAX_SEGMENT_FRAMES:
            raise refuse(f"segment {number} has another number of frames than its runs")
        frames += in_segment
    if run is not None or position != end or (frames, items) != (total_frames, total_items):
        raise refuse("its totals are not those of its runs")
    return Index(total_frames, total_items, segments, runs, text[bounds_at:])
