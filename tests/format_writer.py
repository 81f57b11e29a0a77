"""A second writer of tapes and blobs, on `cryptography` alone: what docs/format.md says, and on demand what it forbids.

It makes the test vectors. Nothing in it is random: keys, salts and nonces derive from the tape's name. Each step takes
the values to write instead of the right ones, and MACs, commitments and tags are then computed over those, so that a
vector is wrong in one thing only.
"""

import base64
import hashlib
import hmac
import json
import struct
import zlib
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

WRAPPING_KEY = bytes(range(32))
OTHER_WRAPPING_KEY = bytes(range(32, 64))
RECORD = [["ts", "<u8"], ["price", "<i4"], ["side", "|S1"]]


def derive(key: bytes, info: bytes, size: int) -> bytes:
    """HKDF-Expand with SHA-512."""
    return HKDFExpand(SHA512(), size, info).derive(key)


def key_id(wrapping_key: bytes) -> str:
    """The id of a wrapping key in a key file."""
    return derive(wrapping_key, b"tapeseal/v1 key id\0", 8).hex()


def to_json(value: Any) -> bytes:
    """A text of a header; bytes are taken as they are."""
    if isinstance(value, bytes):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def content(**members: Any) -> dict[str, Any]:
    """The content of a header, of bytes unless the members say otherwise."""
    return {
        "created": "2026-11-23T14:30:00Z",
        "kind": "bytes",
        "dtype": None,
        "frame_size": 4096,
        "index_by": None,
        "codec": None,
        "encryption_context": {},
    } | members


def records(dtype: Any = RECORD, **members: Any) -> dict[str, Any]:
    """The content of a header, of records."""
    return content(kind="records", dtype=dtype, **members)


def order(number: int) -> bytes:
    """Record `number` of a tape of the dtype RECORD, 13 bytes."""
    return struct.pack(
        "<Qi1s", 1_000 + number, 100 - number % 7, b"BA"[number % 2 : number % 2 + 1]
    )


def orders(count: int, first: int = 0) -> bytes:
    """That many records."""
    return b"".join(map(order, range(first, first + count)))


class Tape:
    """The bytes of one tape or blob, made step by step; each step returns the offset at which its block stands.

    Args:
        name: of the vector; what would be random derives from it.
        text: the content, as an object or as the very bytes.
        item_size: of a record.
        recipients: as an object or the very bytes; None: the wrapping key above.
        copy_size: of a file; 0: a blob.
    """

    def __init__(
        self,
        name: str,
        text: Any,
        *,
        item_size: int = 1,
        recipients: Any = None,
        copy_size: int = 4096,
    ) -> None:
        self.name = name
        self.data_key = self.random("data key", 32)
        self.tape_id = self.random("tape id", 16)
        self.content = to_json(text)
        self.context = text["encryption_context"] if isinstance(text, dict) else {}
        if not isinstance(self.context, dict):
            self.context = {}
        self.recipients = to_json([self.recipient()] if recipients is None else recipients)
        self.item_size = item_size
        self.copy_size = copy_size
        self.data = bytearray()
        self.items = 0
        self.plain = bytearray()
        # As the index has them: (offset, frames, commitment),
        # and (segment, count, first frame, first item, offset, frames, step).
        self.segments: list[tuple[Any, ...]] = []
        self.runs: list[tuple[Any, ...]] = []
        self.key = bytes(32)
        self.frames = 0

    def random(self, what: str, size: int) -> bytes:
        """Bytes that are the same each time."""
        return hashlib.shake_256(f"{self.name}: {what}".encode()).digest(size)

    def expand(self, label: str, rest: bytes, size: int) -> bytes:
        """Section 2."""
        return derive(
            self.data_key, f"tapeseal/v1 {label}\0".encode() + struct.pack("<H", 1) + rest, size
        )

    def recipient(self, key: bytes = WRAPPING_KEY, **members: Any) -> dict[str, Any]:
        """An entry for the data key under a wrapping key."""
        pairs = sorted(
            (k.encode(), v.encode()) for k, v in self.context.items() if isinstance(v, str)
        )
        binding = b"tapeseal/v1 wrap\0"
        binding += b"".join(struct.pack("<I", len(part)) + part for pair in pairs for part in pair)
        nonce = self.random(f"wrap {key_id(key)}", 12)
        wrapped = nonce + AESGCM(key).encrypt(nonce, self.data_key, binding)
        text = base64.b64encode(wrapped).decode()
        return {"provider": "local", "key": key_id(key), "wrapped": text} | members

    def copy(
        self,
        *,
        recipients: Any = None,
        mac: bytes = b"",
        crc: int | None = None,
        padding: bytes = b"",
        **fields: Any,
    ) -> bytes:
        """One header copy."""
        texts = self.content + (self.recipients if recipients is None else to_json(recipients))
        right = {
            "magic": b"TAPESEAL",
            "version": 1,
            "suite": 1,
            "copy_size": self.copy_size or 96 + len(texts),
            "tape_id": self.tape_id,
            "generation": 1,
            "content_size": len(self.content),
            "recipients_size": len(texts) - len(self.content),
            "copies": 2 if self.copy_size else 1,
            "reserved": bytes(11),
        }
        signed = struct.pack("<8sHHI16sQIIB11s", *(right | fields).values())
        key = self.expand("header", self.tape_id, 32)
        mac = mac or hmac.digest(key, signed + texts, "sha256")
        rest = (mac + texts + padding).ljust(self.copy_size - 64, b"\0")
        crc = zlib.crc32(signed + bytes(4) + rest) if crc is None else crc
        return signed + struct.pack("<I", crc) + rest

    def header(self, *copies: bytes) -> int:
        """The header: these copies, or the right ones."""
        return self.add(b"".join(copies) or self.copy() * (2 if self.copy_size else 1))

    def add(self, block: bytes) -> int:
        """Any bytes."""
        self.data += block
        return len(self.data) - len(block)

    def segment(self, type: int = 1, *, commitment: bytes = b"", **fields: Any) -> int:
        """A segment header; the frames that follow are sealed under its key."""
        before = (
            self.segments[-1] if self.segments else (0, 0, hashlib.sha256(self.content).digest())
        )
        right = {
            "type": type,
            "reserved": bytes(3),
            "number": len(self.segments),
            "prev_frames": before[1],
            "prev": before[2],
            "salt": self.random(f"salt {len(self.segments)} {type}", 32),
        }
        header = struct.pack("<B3sIQ32s32s", *(right | fields).values())
        derived = self.expand("segment", self.tape_id + header, 64)
        self.key, self.frames = derived[:32], 0
        if type == 1:
            self.segments.append((len(self.data), 0, derived[32:]))
        return self.add(header + (commitment or derived[32:]))

    def seal(
        self,
        plain: bytes,
        item_size: int,
        first: int,
        /,
        *,
        number: int | None = None,
        **fields: Any,
    ) -> bytes:
        """A frame."""
        right = {
            "type": 2,
            "reserved": bytes(3),
            "count": len(plain) // item_size,
            "first": first,
            "sealed_size": len(plain),
            "reserved_2": bytes(4),
        }
        header = struct.pack("<B3sIQI4s", *(right | fields).values())
        nonce = struct.pack(">IQ", 0, self.frames if number is None else number)
        self.frames += 1
        return header + AESGCM(self.key).encrypt(nonce, plain, header)

    def frame(self, plain: bytes, **fields: Any) -> int:
        """A data frame, which takes its place in the index."""
        count = len(plain) // self.item_size
        place = self.frames
        at = self.add(self.seal(plain, self.item_size, self.items, **fields))
        segment = len(self.segments) - 1
        if self.runs and self.runs[-1][:2] == (segment, count):
            self.runs[-1] = (*self.runs[-1][:5], self.runs[-1][5] + 1, self.runs[-1][6])
        else:
            self.runs.append((segment, count, place, self.items, at, 1, len(plain) + 40))
        offset, frames, commitment = self.segments[-1]
        self.segments[-1] = (offset, frames + 1, commitment)
        self.items += count
        self.plain += plain
        return at

    def index_text(
        self,
        bounds: bytes = b"",
        *,
        segments: list[tuple[Any, ...]] | None = None,
        runs: list[tuple[Any, ...]] | None = None,
        frames: int | None = None,
        items: int | None = None,
    ) -> bytes:
        """The text of the index of all that was written, or of what is given."""
        segments = self.segments if segments is None else segments
        runs = self.runs if runs is None else runs
        frames = sum(segment[1] for segment in self.segments) if frames is None else frames
        items = self.items if items is None else items
        return b"".join(
            [
                struct.pack("<IIQQ", len(segments), len(runs), frames, items),
                *(struct.pack("<QQ32s", *segment) for segment in segments),
                *(struct.pack("<IIQQQQQ", *run) for run in runs),
                bounds,
            ]
        )

    def index(
        self, text: bytes = b"", *, size: int = 4096, final: bool = True, **fields: Any
    ) -> int:
        """The index segment, in frames of `size` bytes of its text."""
        text = text or self.index_text()
        at = self.segment(4, **fields)
        starts = range(0, len(text), size)
        for start in starts:
            kind = 3 if final and start == starts[-1] else 2
            self.add(self.seal(text[start : start + size], 1, start, type=kind))
        return at

    def trailer(self, offset: int) -> int:
        """The trailer."""
        return self.add(struct.pack("<Q8s", offset, b"TAPEEND\0"))

    def finish(self, text: bytes = b"", **fields: Any) -> int:
        """Index and trailer; returns where the index stands."""
        at = self.index(text, **fields)
        self.trailer(at)
        return at
