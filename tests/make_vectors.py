"""Makes the test vectors: `python tests/make_vectors.py` writes those that are missing from tests/vectors/.

A vector that was published is never changed. One that would come out differently is an error, unless it is named:
`python tests/make_vectors.py --replace NAME…`. Section 12 of docs/format.md says what a vector looks like.
"""

import hashlib
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from format_writer import (
    OTHER_WRAPPING_KEY,
    RECORD,
    WRAPPING_KEY,
    Tape,
    content,
    key_id,
    orders,
    records,
    to_json,
)

FOLDER = Path(__file__).parent / "vectors"
RECORD_SIZE = 13


@dataclass
class Vector:
    """One input, and what must come of it."""

    name: str
    expect: str
    comment: str
    data: bytes
    plain: bytes = b""
    item_size: int = 1
    torn: int | None = None
    offset: int | None = None
    rotten: list[int] = field(default_factory=list)
    profile: str = "file"
    expect_context: dict[str, str] | None = None

    @property
    def compressed(self) -> bool:
        """Whether the file holds it compressed: header copies are mostly zeros."""
        return len(self.data) > 8192

    def head(self) -> dict[str, str]:
        """The lines of text."""
        lines: dict[str, Any] = {
            "expect": self.expect,
            "profile": self.profile,
            "items": len(self.plain) // self.item_size,
            "plaintext": hashlib.sha256(self.plain).hexdigest(),
            "torn": self.torn,
            "offset": self.offset,
            "rotten": " ".join(map(str, self.rotten)) or None,
            "wrapping-key": WRAPPING_KEY.hex(),
            "key-id": key_id(WRAPPING_KEY),
            "expect-context": self.expect_context and json.dumps(self.expect_context),
            "compressed": "zlib" if self.compressed else None,
            "comment": self.comment,
        }
        return {name: str(value) for name, value in lines.items() if value is not None}

    def file(self) -> bytes:
        """The whole file."""
        head = "".join(f"{name}: {value}\n" for name, value in self.head().items())
        return f"{head}\n".encode() + (
            zlib.compress(self.data, 9) if self.compressed else self.data
        )


def vector(tape: Tape, expect: str, comment: str, **more: Any) -> Vector:
    """What was made of a tape: all of its items can be read, unless `plain` says otherwise."""
    more = {
        "plain": bytes(tape.plain),
        "item_size": tape.item_size,
        "profile": "file" if tape.copy_size else "blob",
    } | more
    return Vector(tape.name, expect, comment, bytes(tape.data), **more)


def damaged(tape: Tape, offset: int, comment: str, items: int = 0, **more: Any) -> Vector:
    """A tape that is damaged at the offset, after so many items."""
    plain = bytes(tape.plain[: items * tape.item_size])
    return vector(tape, "damaged", comment, offset=offset, plain=plain, **more)


def tape_of_records(name: str, text: Any = None, **more: Any) -> Tape:
    """A tape of records that has its header."""
    tape = Tape(name, records() if text is None else text, **{"item_size": RECORD_SIZE} | more)
    tape.header()
    return tape


def sample(name: str, text: Any = None, **more: Any) -> tuple[Tape, list[int]]:
    """An open tape of 8 records, and where its blocks stand: segment, frame of 3, frame of 3, segment, frame of 2."""
    tape = tape_of_records(name, text, **more)
    blocks = [tape.segment(), tape.frame(orders(3)), tape.frame(orders(3, 3))]
    return tape, [*blocks, tape.segment(), tape.frame(orders(2, 6))]


def flip(tape: Tape, offset: int) -> None:
    """Change one bit."""
    tape.data[offset] ^= 1


# Tapes that are whole


def sealed() -> Iterator[Vector]:
    """Sealed files."""
    tape, _ = sample("sealed-records")
    tape.finish()
    yield vector(tape, "sealed", "records in two segments, short frames of 3, 3 and 2")

    tape = tape_of_records("sealed-full-frames", records("<u8"), item_size=8)
    tape.segment()
    for start in (0, 512):
        tape.frame(struct.pack("<512Q", *range(start, start + 512)))
    tape.frame(struct.pack("<Q", 1024))
    tape.finish()
    yield vector(
        tape, "sealed", "a plain dtype; frames of exactly frame_size bytes, then one of one record"
    )

    tape = tape_of_records("sealed-one-full-frame", records("<u8"), item_size=8)
    tape.segment()
    tape.frame(struct.pack("<512Q", *range(512)))
    tape.finish()
    yield vector(tape, "sealed", "the records fill one frame exactly, and no empty one follows")

    tape = tape_of_records("sealed-runs")
    for counts in ((1, 1, 2, 2, 2, 1), (1,), (1, 315, 1)):
        tape.segment()
        for count in counts:
            tape.frame(orders(count, tape.items))
    tape.finish()
    yield vector(
        tape,
        "sealed",
        "runs end where the count changes and where a segment ends; 315 records fill a frame",
    )

    tape = tape_of_records("sealed-segments-without-frames")
    for count in (0, 2, 0, 0, 1, 0):
        tape.segment()
        if count:
            tape.frame(orders(count, tape.items))
    tape.finish()
    yield vector(
        tape, "sealed", "segments without a frame at the start, in the middle and at the end"
    )

    tape = tape_of_records("sealed-empty")
    tape.finish()
    yield vector(tape, "sealed", "no data segment: the index segment is number 0")

    tape = tape_of_records("sealed-long-index")
    tape.segment()
    for number in range(90):
        tape.frame(orders(1 + number % 2, tape.items))
    tape.finish()
    yield vector(tape, "sealed", "an index of more than one frame")

    tape, _ = sample("sealed-index-in-pieces")
    at = tape.segment(4)
    text = tape.index_text()
    for start, end, kind in (
        (0, 1, 2),
        (1, 100, 2),
        (100, len(text), 2),
        (len(text), len(text), 3),
    ):
        tape.add(tape.seal(text[start:end], 1, start, type=kind))
    tape.trailer(at)
    yield vector(tape, "sealed", "an index in short frames, the final one empty")

    tape = Tape("sealed-bytes", content())
    tape.header()
    tape.segment()
    tape.frame(tape.random("bytes", 4096))
    tape.frame(b"a short frame")
    tape.finish()
    yield vector(tape, "sealed", "a tape of bytes")

    tape = tape_of_records("sealed-nested", records(NESTED, frame_size=5000), item_size=55)
    tape.segment()
    tape.frame(tape.random("frame 0", 55 * 3))
    tape.finish()
    yield vector(
        tape,
        "sealed",
        "a structure with padding, inner structures, sub-arrays and both byte orders",
    )

    tape = tape_of_records(
        "sealed-deep", records([["a", [["b", [["c", "<u2", [2, 2]]]]]]]), item_size=8
    )
    tape.segment()
    tape.frame(bytes(range(16)))
    tape.finish()
    yield vector(tape, "sealed", "a dtype as deep as the limit of 8 allows")

    for kind in (
        "|b1",
        "|i1",
        ">i8",
        "<u2",
        ">f2",
        "<f4",
        "<c8",
        ">c16",
        "|S3",
        ">U3",
        "|V5",
        "<m8",
        ">M8[10ms]",
    ):
        size = int("".join(c for c in kind.partition("[")[0] if c.isdigit())) * (
            4 if "U" in kind else 1
        )
        name = kind[1:].replace("[", "-").replace("]", "").lower()
        tape = Tape(f"sealed-type-{name}", records(kind), item_size=size)
        tape.header()
        tape.segment()
        tape.frame(bytes(5 * size) if "U" in kind else tape.random("records", 5 * size))
        tape.finish()
        yield vector(tape, "sealed", f"records of type {kind}")

    text = b'\n{"kind" : "records" , "dt\\u0079pe":[["\\u00e9\\ud83d\\ude00","<u2"]],"created":"2026-11-23T14:30:00Z",'
    text += b'"codec":null,"frame_size":4096, "index_by":"\xc3\xa9\xf0\x9f\x98\x80","encryption_context":{}}\r\n\t'
    tape = Tape("sealed-free-json", text, item_size=2)
    tape.header()
    tape.segment()
    tape.frame(b"\1\0\2\0")
    tape.finish(tape.index_text(b"\1\0\2\0"))
    yield vector(
        tape, "sealed", "content with white space and escapes, its members in another order"
    )

    context = {
        "z": "",
        "": "empty",
        "é": "ü",
        "\U0001f600": "x",
        "\uffff": "sorted by UTF-8, not by UTF-16",
    }
    tape = tape_of_records("sealed-context", records(encryption_context=context))
    tape.segment()
    tape.frame(orders(1))
    tape.finish()
    yield vector(
        tape, "sealed", "an encryption context; a pair of it is expected", expect_context={"é": "ü"}
    )


NESTED = [
    ["ts", ">M8[ns]"],
    ["", "|V3"],
    ["levels", [["price", "<f8"], ["", "|V2"], ["size", ">u2"]], [2]],
    ["tags", "|S2", [2, 3]],
    ["note", "|V4"],
    ["", "|V4"],
]


def bounds() -> Iterator[Vector]:
    """Sealed files with index_by."""
    nan, other_nan = struct.pack("<Q", 0x7FF8000000000000), struct.pack("<Q", 0xFFF8000000001234)
    one, two = struct.pack("<d", 1.0), struct.pack("<d", -2.0)
    frames = [
        (one + nan + two + one, two + one),
        (other_nan + nan, other_nan * 2),
        (nan + one, one * 2),
    ]
    yield with_bounds(
        "bounds-float", "<f8", 8, frames, "NaN takes no part; a frame of nothing else has its first"
    )

    nat, early, late = (
        struct.pack(">q", value) for value in (-(2**63), -5, 1_700_000_000_000_000_000)
    )
    frames = [(late + nat + early, early + late), (nat + nat, nat * 2), (early, early * 2)]
    yield with_bounds(
        "bounds-time", ">M8[ns]", 8, frames, "NaT takes no part; big-endian, in nanoseconds"
    )

    small, large = struct.pack(">i", -1), struct.pack(">i", 256)
    frames = [(large + small, small + large), (small * 3, small * 2)]
    yield with_bounds("bounds-integer", ">i4", 4, frames, "signed integers, big-endian")

    tape = tape_of_records("bounds-empty", records(index_by="ts"))
    tape.segment()
    tape.finish()
    yield vector(tape, "sealed", "index_by and not a single frame")


def with_bounds(
    name: str, kind: str, size: int, frames: list[tuple[bytes, bytes]], comment: str
) -> Vector:
    """A tape whose records are one field of `kind` and one byte; of each frame its values and their bounds."""
    tape = tape_of_records(
        name, records([["x", kind], ["y", "|u1"]], index_by="x"), item_size=size + 1
    )
    tape.segment()
    for values, _ in frames:
        tape.frame(b"".join(values[i : i + size] + b"y" for i in range(0, len(values), size)))
    tape.finish(tape.index_text(b"".join(pair for _, pair in frames)))
    return vector(tape, "sealed", comment)


def not_sealed() -> Iterator[Vector]:
    """Files that are open or torn."""
    tape = tape_of_records("open-headers-only")
    yield vector(tape, "open", "two header copies and nothing else")
    tape = tape_of_records("open-segment-only")
    tape.segment()
    yield vector(tape, "open", "a segment without a frame")
    tape, _ = sample("open-records")
    yield vector(tape, "open", "ends behind a frame")
    tape, _ = sample("open-empty-segment-last")
    tape.segment()
    yield vector(tape, "open", "ends behind a segment header")
    tape = Tape("open-bytes", content())
    tape.header()
    tape.segment()
    tape.frame(b"some bytes")
    yield vector(tape, "open", "a tape of bytes")

    tails = {
        "one-byte": (b"\xff", "a single byte, of any value"),
        "header-part": (b"\xff" * 23, "23 bytes, one less than a frame header has, of any value"),
        "zeros": (bytes(100), "zeros"),
        "few-zeros": (bytes(5), "5 zeros"),
    }
    for name, (tail, comment) in tails.items():
        tape, _ = sample(f"torn-{name}")
        tape.add(tail)
        yield vector(tape, "torn", f"tail: {comment}", torn=len(tail))

    for name, size, comment in (
        ("frame-no-ciphertext", 24, "a frame header"),
        ("frame-ciphertext", 40, "a frame header and some of the ciphertext"),
        ("frame-tag", 24 + 2 * RECORD_SIZE + 15, "a frame without the last byte of its tag"),
    ):
        tape, _ = sample(f"torn-{name}")
        tape.add(tape.seal(orders(2, 8), RECORD_SIZE, 8)[:size])
        yield vector(tape, "torn", f"tail: {comment}", torn=size)

    tape, _ = sample("torn-frame-first")
    tape.add(tape.seal(orders(2, 8), RECORD_SIZE, 99)[:60])
    yield vector(
        tape,
        "torn",
        "tail: a frame that is cut short and has a wrong number of its first record",
        torn=60,
    )

    for size in (24, 111):
        tape, _ = sample(f"torn-segment-{size}")
        at = tape.segment()
        tape.segments.pop()
        del tape.data[at + size :]
        yield vector(tape, "torn", f"tail: {size} bytes of a segment header", torn=size)
    tape = tape_of_records("torn-first-segment")
    tape.segment()
    del tape.data[-50:]
    yield vector(tape, "torn", "tail: the first segment header, cut short", torn=62)

    # The index of the sample: 112 bytes of header, then one frame of 40 bytes and 24 + 4 * 48 of text.
    whole = 112 + 40 + 216
    for name, size, comment in (
        ("index-header", 60, "an index segment header, cut short"),
        ("index-no-frame", 112, "an index segment header alone"),
        ("index-frame-header", 130, "an index that ends in a frame header"),
        ("index-frame", whole - 1, "an index without the last byte of its final frame"),
        ("index-no-trailer", whole, "an index without its trailer"),
        ("index-part-of-trailer", whole + 15, "an index and 15 bytes of its trailer"),
    ):
        tape, _ = sample(f"torn-{name}")
        at = tape.finish()
        del tape.data[at + size :]
        yield vector(tape, "torn", f"tail: {comment}", torn=size)
    for name, size, zeros, comment in (
        ("index-zeros", whole, 500, "an index and then zeros"),
        ("index-few-zeros", whole, 3, "an index and then 3 zeros"),
        ("index-zeros-inside", 112, 500, "an index segment header and then zeros"),
    ):
        tape, _ = sample(f"torn-{name}")
        at = tape.finish()
        del tape.data[at + size :]
        tape.add(bytes(zeros))
        yield vector(tape, "torn", f"tail: {comment}", torn=size + zeros)


def copies() -> Iterator[Vector]:
    """Which header copy is taken."""
    for size in (8192, 2 << 20):
        tape, _ = sample(f"copies-of-{size}", copy_size=size)
        tape.finish()
        yield vector(tape, "sealed", f"header copies of {size} bytes")
    for name, offsets, rotten, comment in (
        ("rotten-0", [200], [0], "a changed byte in copy 0; copy 1 is taken"),
        ("rotten-0-magic", [0], [0], "copy 0 without its magic; copy 1 is found by its place"),
        ("rotten-0-size", [13], [0], "copy 0 with another copy_size; copy 1 is found by its place"),
        ("rotten-0-padding", [4095], [0], "a changed byte in the padding of copy 0"),
        ("rotten-1", [4096 + 50], [4096], "a changed byte in copy 1"),
    ):
        tape, _ = sample(f"copies-{name}")
        for offset in offsets:
            flip(tape, offset)
        yield vector(tape, "open", comment, rotten=rotten)
    tape, _ = sample("copies-rotten-0-large", copy_size=3 * 4096)
    flip(tape, 8)
    yield vector(
        tape, "open", "copy 0 is rotten; copy 1 stands at the third multiple of 4096", rotten=[0]
    )
    tape = Tape("copies-decoy-ignored", records(), item_size=RECORD_SIZE, copy_size=8192)
    tape.header(
        tape.copy(
            padding=bytes(4096 - 96 - len(tape.content + tape.recipients)) + tape.copy()[:96], crc=1
        ),
        tape.copy(),
    )
    yield vector(
        tape, "open", "copy 0 is rotten and holds the fields of a copy of another size", rotten=[0]
    )

    for name, rotten in (("copies-rewrap-interrupted", False), ("copies-rewrap-torn", True)):
        tape = Tape(name, records(), item_size=RECORD_SIZE)
        old, new = [tape.recipient(OTHER_WRAPPING_KEY)], [tape.recipient()]
        first = tape.copy(recipients=old if rotten else new)
        tape.header(first, tape.copy(recipients=new if rotten else old, generation=2))
        tape.segment()
        tape.frame(orders(2))
        if rotten:
            flip(tape, 300)
        comment = "a rewrap ended in writing copy 0; copy 1 has the new recipients"
        if not rotten:
            comment = (
                "a rewrap ended between the copies; copy 0 has the old recipients, and is taken"
            )
        yield vector(tape, "open", comment, rotten=[0] if rotten else [])
    tape = Tape("copies-second-mac", records(), item_size=RECORD_SIZE)
    tape.header(tape.copy(), tape.copy(mac=bytes(32)))
    yield vector(
        tape, "open", "copy 1 is intact and has a wrong MAC, which reading does not look at"
    )
    tape = Tape("copies-second-recipients", records(), item_size=RECORD_SIZE)
    tape.header(tape.copy(), tape.copy(recipients=b"[no JSON"))
    yield vector(
        tape, "open", "copy 1 is intact, and its recipients, which reading does not parse, are none"
    )


def keys() -> Iterator[Vector]:
    """Recipients, and readers without a key."""
    others = [
        {"provider": "unheard-of", "key": "x", "wrapped": "y"},
        {"provider": "aws-kms", "key": "arn:aws:kms:us-east-1:1:key/2", "wrapped": "AAAA"},
        {
            "provider": "vault-transit",
            "key": "transit/a",
            "wrapped": "vault:v1:AAAA",
            "binding": "context",
        },
        {
            "provider": "vault-transit",
            "key": "transit/b",
            "wrapped": "vault:v1:AAAA",
            "binding": "associated_data",
        },
        {"provider": "vault-transit", "key": "transit/c", "pending": True},
        {"provider": "public-key", "key": "rsa:00", "wrapped": ""},
    ]
    share = {"share": {"group": 0, "threshold": 2, "index": 1}}

    def blob(name: str, entries: Any) -> Tape:
        tape = Tape(name, content(), copy_size=0)
        tape.recipients = to_json(entries(tape))
        tape.header()
        tape.segment()
        tape.frame(b"a message", type=3)
        return tape

    yes = {
        "unknown-first": (
            lambda t: [*others, t.recipient()],
            "six entries of other providers come first",
        ),
        "pending-first": (
            lambda t: [{"provider": "local", "key": "later", "pending": True}, t.recipient()],
            "a pending entry comes first",
        ),
        "share-ignored": (
            lambda t: [
                t.recipient(**share),
                t.recipient(**share | {"wrapped": "x"}),
                t.recipient(),
            ],
            "entries with a share are skipped by a reader that gathers none",
        ),
        "other-key-first": (
            lambda t: [t.recipient(OTHER_WRAPPING_KEY), t.recipient()],
            "an entry of a key that the reader lacks comes first",
        ),
        "second-opens": (
            lambda t: [
                t.recipient(wrapped=t.recipient(OTHER_WRAPPING_KEY)["wrapped"]),
                t.recipient(),
            ],
            "of two entries of one key the second opens",
        ),
        "sixty-four": (
            lambda t: [others[0]] * 63 + [t.recipient()],
            "as many entries as there can be",
        ),
    }
    for name, (entries, comment) in yes.items():
        yield vector(blob(f"keys-{name}", entries), "sealed", comment)
    no = {
        "none": (lambda t: others, "no entry is of the reader's provider"),
        "other-key": (
            lambda t: [t.recipient(OTHER_WRAPPING_KEY)],
            "the only entry is of another key",
        ),
        "pending": (
            lambda t: [{"provider": "local", "key": key_id(WRAPPING_KEY), "pending": True}],
            "the reader's entry is pending",
        ),
        "share": (lambda t: [t.recipient(**share)], "the reader's entry is a share"),
    }
    for name, (entries, comment) in no.items():
        yield vector(blob(f"keys-{name}", entries), "key", comment, plain=b"")

    forged = {
        "changed": (
            lambda t: [t.recipient(wrapped="A" + t.recipient()["wrapped"][1:])],
            "the wrapped key was changed",
        ),
        "short": (lambda t: [t.recipient(wrapped="AAAA")], "what is wrapped is too short"),
        "no-base64": (
            lambda t: [t.recipient(wrapped="*" + t.recipient()["wrapped"])],
            "wrapped is no base64",
        ),
        "loose-base64": (
            lambda t: [t.recipient(wrapped="\n" + t.recipient()["wrapped"])],
            "wrapped is base64 with a line break before it",
        ),
    }
    for name, (entries, comment) in forged.items():
        yield damaged(blob(f"wrapped-{name}", entries), 0, comment)
    tape = Tape("wrapped-other-context", content(encryption_context={"desk": "eq-us"}), copy_size=0)
    tape.content = tape.content.replace(b"eq-us", b"eq-uk")
    tape.header()
    yield damaged(
        tape, 0, "the encryption context is another than the key was wrapped with; the MAC is right"
    )

    for name, expect in (("missing", {"firm": "x"}), ("other-value", {"desk": "eq-uk"})):
        tape = Tape(f"context-{name}", content(encryption_context={"desk": "eq-us"}), copy_size=0)
        tape.header()
        tape.segment()
        tape.frame(b"a message", type=3)
        comment = f"the reader expects {json.dumps(expect)}"
        yield vector(tape, "context", comment, plain=b"", expect_context=expect)


def blobs() -> Iterator[Vector]:
    """Blobs that are whole."""
    for size in (0, 1, 65536, 65537):
        tape = Tape(f"blob-{size}", content(frame_size=65536), copy_size=0)
        tape.header()
        tape.segment()
        plain = tape.random("message", size)
        starts = range(0, max(size, 1), 65536)
        for start in starts:
            tape.frame(plain[start : start + 65536], type=3 if start == starts[-1] else 2)
        yield vector(tape, "sealed", f"a blob of {size} bytes in frames of 65536")
    tape = Tape("blob-message", content(encryption_context={"desk": "eq-us"}), copy_size=0)
    tape.header()
    tape.segment()
    tape.frame(b"hello, tape", type=3)
    yield vector(tape, "sealed", "the example of docs/format.md", expect_context={"desk": "eq-us"})
    tape = Tape("blob-empty-final-frame", content(), copy_size=0)
    tape.header()
    tape.segment()
    tape.frame(tape.random("message", 4096))
    tape.frame(b"", type=3)
    yield vector(tape, "sealed", "a full frame and then an empty final one")
    tape = Tape("blob-short-frames", content(), copy_size=0)
    tape.header()
    tape.segment()
    for size in (5, 5, 1, 4096, 5, 5):
        tape.frame(tape.random(f"frame {len(tape.data)}", size))
    tape.frame(b"final", type=3)
    yield vector(tape, "sealed", "frames of several sizes")


# What is refused


def not_tapes() -> Iterator[Vector]:
    """Inputs without a header."""
    for name, data, comment in (
        ("empty", b"", "nothing"),
        ("part-of-magic", b"TAPESEA", "seven bytes"),
        ("zeros", bytes(9000), "zeros"),
        ("other", b"\x93NUMPY" + bytes(200), "something else"),
    ):
        for profile in ("file", "blob") if name != "zeros" else ("file",):
            yield Vector(
                f"not-a-tape-{name}-{profile}", "not-a-tape", comment, data, profile=profile
            )
    tape, _ = sample("not-a-tape-second-copy-elsewhere")
    del tape.data[:5]
    yield vector(
        tape,
        "not-a-tape",
        "a tape without its first five bytes: no copy is in its place",
        plain=b"",
    )


def header_fields() -> Iterator[Vector]:
    """Headers that are intact and say what version 1 does not know."""
    big = 1 << 20
    for name, offset, fields, comment in (
        ("version", 8, {"version": 2}, "version 2"),
        ("suite", 10, {"suite": 2}, "suite 2"),
        ("generation", 32, {"generation": 1 << 63}, "generation 2^63"),
        ("content-size", 40, {"content_size": big + 1}, "content_size over 1 MiB"),
        (
            "recipients-size",
            44,
            {"recipients_size": big - 4095},
            "recipients_size over 1 MiB - 4096",
        ),
        ("copies-0", 48, {"copies": 0}, "no copies"),
        ("copies-3", 48, {"copies": 3}, "three copies"),
        ("reserved", 49, {"reserved": bytes(10) + b"\1"}, "a reserved byte that is not zero"),
        ("texts", 40, {"content_size": 5000}, "texts longer than their copy"),
        ("file-alignment", 12, {"copies": 2}, "a file whose copy_size is no multiple of 4096"),
    ):
        tape = Tape(f"header-{name}", content(), copy_size=0)
        tape.header(tape.copy(**fields))
        yield damaged(tape, offset, comment)
    tape = Tape("header-blob-padded", content(), copy_size=0)
    texts = len(tape.content + tape.recipients)
    tape.header(tape.copy(padding=bytes(7), copy_size=96 + texts + 7))
    yield damaged(tape, 12, "a blob with padding")
    tape = Tape("header-padding", content())
    tape.header(tape.copy(padding=bytes(100) + b"\1"), tape.copy())
    yield damaged(tape, 96 + texts, "padding that is not zero; the offset is that of the padding")
    for size in (95, (2 << 20) + 4096):
        tape = Tape(f"header-copy-size-{size}", content())
        tape.header(tape.copy(copy_size=size), tape.copy(copy_size=size))
        yield damaged(tape, 0, f"a copy_size of {size}: no copy is readable")
    tape = Tape("header-version-second-right", content())
    tape.header(tape.copy(version=2), tape.copy())
    yield damaged(tape, 8, "version 2 in copy 0: copy 1 does not take its place")

    for name, change, offset, comment in (
        (
            "both-rotten",
            lambda d: d[:100] + b"?" + d[101:4196] + b"?" + d[4197:],
            0,
            "both copies are rotten",
        ),
        ("cut-in-copy-0", lambda d: d[:1000], 0, "ends inside copy 0"),
        ("cut-in-fields", lambda d: d[:95], 0, "ends inside the fields of copy 0"),
        ("cut-after-magic", lambda d: d[:8], 0, "the magic alone"),
        ("cut-in-copy-1", lambda d: d[:5000], 5000, "ends inside copy 1"),
        ("cut-before-copy-1", lambda d: d[:4096], 4096, "ends behind copy 0"),
        (
            "no-magic",
            lambda d: bytes(8) + d[8:4196] + b"?" + d[4197:],
            0,
            "copy 0 without its magic, copy 1 rotten",
        ),
    ):
        tape = Tape(f"header-{name}", content())
        tape.header()
        tape.data = bytearray(change(bytes(tape.data)))
        yield damaged(tape, offset, comment)
    tape = Tape("header-decoy", content(), copy_size=8192)
    decoy = Tape("header-decoy", content()).copy()
    padding = bytes(4096 - 96 - len(tape.content + tape.recipients)) + decoy
    tape.header(
        tape.copy(padding=padding[: 8192 - 96 - len(tape.content + tape.recipients)], crc=1),
        tape.copy(),
    )
    flip(tape, 4096 + 70)
    yield damaged(
        tape,
        0,
        "copy 0 is rotten; a rotten copy at 4096 is the only one tried, and not the one at 8192",
    )

    other = Tape("another tape", content())
    for name, second, offset, comment in (
        ("other-tape", other.copy(), 4096, "copy 1 is that of another tape"),
        ("other-content", None, 4096, "copy 1 has another content"),
        ("other-size", None, 4096, "copy 1 has another copy_size"),
        ("other-copies", None, 4096, "copy 1 is a blob's"),
        ("second-version", None, 4096 + 8, "copy 1 is intact and of version 2"),
    ):
        tape = Tape(f"header-{name}", content())
        first = tape.copy()
        if name == "other-content":
            tape.content = tape.content.replace(b"14:30", b"14:31")
            second = tape.copy()
        elif name == "other-size":
            tape.copy_size = 8192
            second = tape.copy()
        elif name == "other-copies":
            tape.copy_size = 0
            second = tape.copy()
            second += bytes(4096 - len(second))
        elif name == "second-version":
            second = tape.copy(version=2)
        tape.header(first, second)
        tape.copy_size = 4096
        yield damaged(tape, offset, comment)

    tape = Tape("header-rows-in-file", content(kind="rows"))
    tape.header()
    yield damaged(tape, 96, "a file of kind rows")
    tape = Tape("header-records-in-blob", records(), copy_size=0)
    tape.header()
    yield damaged(tape, 96, "a blob of kind records")
    tape = Tape("header-mac", content())
    tape.header(tape.copy(mac=bytes(32)), tape.copy())
    yield damaged(tape, 0, "a wrong MAC in copy 0: copy 1 does not take its place")
    tape = Tape("header-mac-second", content())
    tape.header(tape.copy(crc=0), tape.copy(mac=bytes(32)))
    yield damaged(tape, 4096, "copy 0 is rotten, and copy 1 has a wrong MAC", rotten=[0])
    tape = Tape("header-mac-recipients", content(), copy_size=0)
    right = tape.copy(recipients=[tape.recipient()])
    added = [tape.recipient(), {"provider": "x", "key": "y", "pending": True}]
    tape.header(tape.copy(recipients=added, mac=right[64:96]))
    yield damaged(tape, 0, "an entry was added by somebody without the data key")


def json_texts() -> Iterator[Vector]:
    """JSON that is refused, in content; the same rules hold for recipients."""
    right = to_json(content())
    for name, text, comment in (
        ("marks", right[:-1] + b',"x":[' + b"," * 8192 + b"]}", "over 8192 marks"),
        (
            "marks-in-string",
            right[:-1] + b',"x":"' + b"{" * 8192 + b'"}',
            "over 8192 marks, in a string",
        ),
        ("depth", right[:-1] + b',"x":[[[[[[[[]]]]]]]]}', "nested 9 deep"),
        ("very-deep", b"[" * 8192, "nested 8192 deep, and no end"),
        ("utf-8", right.replace(b"bytes", b"byt\xe9s"), "no UTF-8"),
        (
            "utf-8-surrogate",
            right.replace(b"bytes", b"\xed\xa0\x80"),
            "a surrogate encoded in UTF-8",
        ),
        ("bom", b"\xef\xbb\xbf" + right, "a byte order mark"),
        ("surrogate", right.replace(b"bytes", b"\\ud800"), "half of a surrogate pair"),
        (
            "surrogate-name",
            right.replace(b'{"cr', b'{"\\udc00":1,"cr'),
            "half of a surrogate pair in a name",
        ),
        ("empty", b"", "nothing"),
        ("trailing", right + b" 1", "something behind the value"),
        ("comma", right[:-1] + b",}", "a comma too many"),
        ("control", right.replace(b"bytes", b"by\ntes"), "a line break in a string"),
        ("twice", right.replace(b'{"cr', b'{"kind":"bytes","cr'), "a name twice"),
        (
            "twice-escaped",
            right.replace(b'{"cr', b'{"k\\u0069nd":"bytes","cr'),
            "a name twice, once with an escape",
        ),
        (
            "twice-inside",
            right.replace(b":{}", b':{"a":"b","a":"b"}'),
            "a name twice in an inner object",
        ),
        ("fraction", right.replace(b"4096", b"4096.0"), "a number with a fraction"),
        ("exponent", right.replace(b"4096", b"5e3"), "a number with an exponent"),
        ("overflow", right.replace(b"4096", b"1e999"), "a number with an exponent that overflows"),
        ("nan", right.replace(b"4096", b"NaN"), "NaN"),
        ("infinity", right.replace(b"4096", b"-Infinity"), "an infinity"),
        ("long-number", right.replace(b"4096", b"9" * 5000), "a number of 5000 digits"),
    ):
        tape = Tape(f"json-{name}", text, copy_size=0)
        tape.header()
        yield damaged(tape, 96, comment)
    tape = Tape(
        "json-recipients",
        content(),
        recipients=b'[{"provider":"x","key":"y","key":"y"}]',
        copy_size=0,
    )
    tape.header()
    yield damaged(tape, 96 + len(tape.content), "a name twice in recipients")


def contents() -> Iterator[Vector]:
    """Contents that are refused. Those with a dtype are of kind rows, which a blob's header can have."""
    cases: dict[str, tuple[Any, str]] = {
        "no-object": ([], "an array"),
        "missing": ({k: v for k, v in content().items() if k != "codec"}, "a member is missing"),
        "unknown": (content(more=1), "a member that is not known"),
        "created": (content(created="2026-11-23 14:30:00Z"), "created is no such time"),
        "created-type": (content(created=1795444200), "created is a number"),
        "kind": (content(kind="record"), "a kind that is not known"),
        "kind-type": (content(kind=["bytes"]), "kind is an array"),
        "codec": (content(codec="zstd"), "a codec"),
        "bytes-dtype": (content(dtype="|u1"), "kind bytes with a dtype"),
        "frame-size-small": (content(frame_size=4095), "frame_size 4095"),
        "frame-size-large": (content(frame_size=2**26 + 1), "frame_size 2^26 + 1"),
        "frame-size-true": (content(frame_size=True), "frame_size is true"),
        "frame-size-string": (content(frame_size="4096"), "frame_size is a string"),
        "frame-size-record": (
            content(kind="rows", dtype="|V4097"),
            "a record larger than frame_size",
        ),
        "bytes-index-by": (content(index_by="ts"), "index_by with kind bytes"),
        "rows-index-by": (
            content(kind="rows", dtype=RECORD, index_by="ts"),
            "index_by with kind rows",
        ),
        "context-type": (content(encryption_context=[]), "an encryption context that is no object"),
        "context-pairs": (content(encryption_context={str(i): "" for i in range(65)}), "65 pairs"),
        "context-value": (content(encryption_context={"a": 1}), "a value that is no string"),
        "context-reserved": (
            content(encryption_context={"tapeseal:x": ""}),
            "a key that starts with tapeseal:",
        ),
        "context-size": (content(encryption_context={"a": "x" * 8184}), "8193 bytes encoded"),
    }
    cases["frame-size-record"][0]["encryption_context"] = {}
    for name, (text, comment) in cases.items():
        tape = Tape(f"content-{name}", text, copy_size=0)
        tape.header()
        yield damaged(tape, 96, comment)
    for name, text, comment in (
        ("records-no-dtype", records(None), "kind records without a dtype"),
        ("index-by-type", records(index_by=0), "index_by is a number"),
        ("index-by-unknown", records(index_by="price "), "index_by names no field"),
        (
            "index-by-padding",
            records([["a", "<u8"], ["", "|V8"]], index_by=""),
            "index_by names padding",
        ),
        ("index-by-plain", records("<u8", index_by="ts"), "index_by, and records without fields"),
        ("index-by-text", records(index_by="side"), "index_by names a text"),
        ("index-by-bool", records([["a", "|b1"]], index_by="a"), "index_by names a boolean"),
        (
            "index-by-array",
            records([["a", "<u8", [2]]], index_by="a"),
            "index_by names a sub-array",
        ),
    ):
        tape = Tape(f"content-{name}", text)
        tape.header()
        yield damaged(tape, 96, comment)
    many = [[f"f{i}", "|u1"] for i in range(1024)]
    dtypes: dict[str, tuple[Any, str]] = {
        "number": (8, "a number"),
        "empty": ([], "no fields"),
        "object": ("|O", "a type that is not known"),
        "order": ("|u4", "a type without a byte order"),
        "native": ("=u4", "a type of native byte order"),
        "small-order": ("<u1", "one byte with a byte order"),
        "size": ("<u3", "an integer of 3 bytes"),
        "zero": ("|S0", "a size of zero"),
        "leading-zero": ("|S04", "a size with a leading zero"),
        "unit": ("<M8[fortnight]", "a unit that is not known"),
        "plain-large": ("|V1048577", "a plain type over 2^20 bytes"),
        "text-large": ("<U262145", "a text over 2^20 bytes"),
        "fields": ([*many, ["x", "|u1"]], "1025 fields"),
        "fields-inside": ([["a", many]], "1025 fields, an inner structure's among them"),
        "field-object": ([{"name": "a"}], "a field that is no array"),
        "field-short": ([["a"]], "a field of one part"),
        "field-long": ([["a", "<u8", [1], 0]], "a field of four parts"),
        "field-title": ([[["title", "a"], "<u8"]], "a field with a title"),
        "nameless": ([["", "<u8"], ["a", "<u8"]], "a field without a name that is no padding"),
        "padding-shape": ([["", "|V1", [2]], ["a", "<u8"]], "padding with a shape"),
        "padding-structure": ([["", [["a", "|u1"]]], ["b", "<u8"]], "a structure without a name"),
        "padding-only": ([["", "|V8"]], "padding alone"),
        "twice": ([["a", "<u8"], ["a", "<u8"]], "a name twice"),
        "shape-number": ([["a", "<u8", 2]], "a shape that is no array"),
        "shape-empty": ([["a", "<u8", []]], "a shape of nothing"),
        "shape-long": ([["a", "|u1", [1] * 33]], "a shape of 33 numbers"),
        "extent-zero": ([["a", "<u8", [0]]], "an extent of 0"),
        "extent-true": ([["a", "<u8", [True]]], "an extent of true"),
        "array-large": ([["a", "|u1", [1024, 1025]]], "a sub-array over 2^20 bytes"),
        "large": ([["a", "|V1048576"], ["b", "|u1"]], "a structure over 2^20 bytes"),
    }
    for name, (dtype, comment) in dtypes.items():
        tape = Tape(
            f"dtype-{name}", content(kind="rows", dtype=dtype, frame_size=2**21), copy_size=0
        )
        tape.header()
        yield damaged(tape, 96, comment)


def recipients() -> Iterator[Vector]:
    """Recipients that are refused."""
    entry = {"provider": "x", "key": "y", "wrapped": "z"}
    share = {"group": 0, "threshold": 2, "index": 1}
    pending = {"provider": "x", "key": "y", "pending": True}
    vault = entry | {"provider": "vault-transit"}
    for name, entries, comment in (
        ("object", entry, "an object"),
        ("empty", [], "no entry"),
        ("many", [pending] * 65, "65 entries"),
        ("entry", ["x"], "an entry that is no object"),
        ("missing", [{"provider": "x", "key": "y"}], "an entry with neither wrapped nor pending"),
        ("missing-key", [{"provider": "x", "wrapped": "z"}], "an entry without key"),
        ("both", [entry | {"pending": True}], "an entry with wrapped and pending"),
        ("unknown", [entry | {"more": 1}], "a member that is not known"),
        ("provider-type", [entry | {"provider": None}], "provider is null"),
        ("key-type", [entry | {"key": 1}], "key is a number"),
        ("wrapped-type", [entry | {"wrapped": ["z"]}], "wrapped is an array"),
        (
            "wrapped-long",
            [entry | {"wrapped": "é" * 4097}],
            "wrapped has 8194 bytes, in 4097 characters",
        ),
        ("pending-false", [pending | {"pending": False}], "pending is false"),
        (
            "binding-elsewhere",
            [entry | {"binding": "context"}],
            "binding in an entry of another provider",
        ),
        ("binding-missing", [vault], "no binding in an entry of vault-transit"),
        ("binding-unknown", [vault | {"binding": "x"}], "a binding that is not known"),
        ("binding-type", [vault | {"binding": ["context"]}], "binding is an array"),
        ("share-type", [entry | {"share": [0, 2, 1]}], "share is an array"),
        (
            "share-missing",
            [entry | {"share": {"group": 0, "index": 1}}],
            "a share without threshold",
        ),
        ("share-string", [entry | {"share": share | {"group": "0"}}], "a group that is a string"),
        ("share-true", [entry | {"share": share | {"index": True}}], "an index that is true"),
        ("share-group", [entry | {"share": share | {"group": 2**32}}], "group 2^32"),
        ("share-group-negative", [entry | {"share": share | {"group": -1}}], "group -1"),
        ("share-threshold", [entry | {"share": share | {"threshold": 0}}], "threshold 0"),
        ("share-threshold-large", [entry | {"share": share | {"threshold": 256}}], "threshold 256"),
        ("share-index", [entry | {"share": share | {"index": 0}}], "index 0"),
        ("share-index-large", [entry | {"share": share | {"index": 256}}], "index 256"),
        (
            "share-thresholds",
            [entry | {"share": share}, entry | {"share": share | {"threshold": 3}}],
            "two thresholds in one group",
        ),
    ):
        tape = Tape(f"recipients-{name}", content(), recipients=entries, copy_size=0)
        tape.header()
        yield damaged(tape, 96 + len(tape.content), comment)


def bodies() -> Iterator[Vector]:
    """Blocks that are refused when a file is walked."""
    tape = tape_of_records("block-first-frame")
    tape.key = bytes(32)
    at = tape.add(tape.seal(orders(1), RECORD_SIZE, 0))
    yield damaged(tape, at, "a frame before any segment")
    for kind in (0, 3, 5, 255):
        tape, _ = sample(f"block-type-{kind}")
        at = tape.add(tape.seal(orders(1, 8), RECORD_SIZE, 8, type=kind))
        comment = "a final frame in a data segment" if kind == 3 else f"a block of type {kind}"
        yield damaged(tape, at, comment, 8)
    tape, _ = sample("block-zeros-inside")
    at = tape.add(bytes(300))
    tape.segment()
    yield damaged(tape, at, "zeros, and then something else", 8)

    for name, fields, comment in (
        ("reserved", {"reserved": b"\0\0\1"}, "a reserved byte that is not zero"),
        ("number", {"number": 3}, "a number that was left out"),
        ("number-again", {"number": 1}, "a number that was there"),
        ("prev-frames", {"prev_frames": 2}, "another number of frames than the segment before has"),
        ("prev", {"prev": bytes(32)}, "prev is not the commitment of the segment before"),
        ("commitment", {"commitment": bytes(32)}, "a commitment that does not derive"),
    ):
        tape, _ = sample(f"segment-{name}")
        at = tape.segment(**fields)
        tape.add(tape.seal(orders(1, 8), RECORD_SIZE, 8))
        yield damaged(tape, at, comment, 8)
    tape = tape_of_records("segment-first-prev")
    at = tape.segment(prev=bytes(32))
    yield damaged(tape, at, "prev of the first segment is not the digest of content")
    tape, blocks = sample("segment-last")
    flip(tape, blocks[3] + 60)
    del tape.data[blocks[4] :]
    yield damaged(tape, blocks[3], "a whole segment header at the end with another salt", 6)
    tape, _ = sample("segment-reserved-cut")
    at = tape.segment(reserved=b"\1\0\0")
    del tape.data[at + 60 :]
    yield damaged(
        tape, at, "a segment header that is cut short and has a reserved byte that is not zero", 8
    )
    tape, blocks = sample("segment-removed")
    tape.segment()
    tape.frame(orders(1, 8))
    del tape.data[blocks[3] : blocks[4] + 66]
    yield damaged(tape, blocks[3], "the segment in the middle was taken out", 6)

    for name, fields, comment in (
        ("reserved", {"reserved": b"\1\0\0"}, "a reserved byte that is not zero"),
        (
            "reserved-end",
            {"reserved_2": b"\0\0\0\1"},
            "a reserved byte at the header's end that is not zero",
        ),
        ("count-0", {"count": 0, "sealed_size": 0}, "no items"),
        ("count-over", {"count": 316, "sealed_size": 316 * 13}, "more items than a frame can have"),
        (
            "count-huge",
            {"count": 2**32 - 1, "sealed_size": 2**32 - 1},
            "sizes far beyond the end of the file",
        ),
        ("size", {"sealed_size": 14}, "a size that is not that of its items"),
        ("first", {"first": 9}, "the wrong number of its first item"),
        ("number", {"number": 7}, "sealed with another frame's nonce"),
    ):
        tape, _ = sample(f"frame-{name}")
        at = tape.add(tape.seal(orders(1, 8), RECORD_SIZE, 8, **fields))
        yield damaged(tape, at, comment, 8)
    tape, blocks = sample("frame-changed")
    flip(tape, blocks[1] + 30)
    yield damaged(
        tape,
        blocks[1],
        "a changed byte of ciphertext, in a frame that is not the last of its segment",
    )
    tape, blocks = sample("frame-changed-second")
    flip(tape, blocks[2] + 30)
    yield damaged(
        tape, blocks[2], "a changed byte of ciphertext, in the last frame of a segment", 3
    )
    tape, blocks = sample("frame-tag")
    flip(tape, len(tape.data) - 1)
    yield damaged(tape, blocks[4], "a changed byte of the last tag", 6)
    tape, blocks = sample("frame-swapped")
    first, second = tape.data[blocks[1] : blocks[2]], tape.data[blocks[2] : blocks[3]]
    tape.data[blocks[1] : blocks[3]] = second + first
    yield damaged(tape, blocks[1], "two frames have changed places")
    tape, blocks = sample("frame-repeated")
    at = tape.add(tape.data[blocks[4] :])
    yield damaged(tape, at, "the last frame once more", 8)
    tape, blocks = sample("frame-removed")
    del tape.data[blocks[1] : blocks[2]]
    yield damaged(tape, blocks[1], "a frame was taken out")
    tape = tape_of_records("frame-swapped-contents")
    tape.segment()
    first, second, third = [tape.frame(orders(3, start)) for start in (0, 3, 6)]
    contents = tape.data[first + 24 : second], tape.data[second + 24 : third]
    tape.data[second + 24 : third], tape.data[first + 24 : second] = contents
    yield damaged(tape, first, "two ciphertexts with their tags have changed places")


def sealed_bodies() -> Iterator[Vector]:
    """Blocks of a sealed file that are not what the index says."""
    tape, blocks = sample("sealed-frame-changed")
    tape.finish()
    flip(tape, blocks[2] + 24)
    yield damaged(tape, blocks[2], "a changed byte of ciphertext", 3)
    tape, blocks = sample("sealed-frame-header-changed")
    tape.finish()
    flip(tape, blocks[4] + 4)
    yield damaged(tape, blocks[4], "a changed count", 6)
    tape, blocks = sample("sealed-frame-past-the-end")
    tape.finish()
    tape.data[blocks[4] + 4 : blocks[4] + 8] = struct.pack("<I", 315)
    tape.data[blocks[4] + 16 : blocks[4] + 20] = struct.pack("<I", 315 * RECORD_SIZE)
    yield damaged(
        tape,
        blocks[4],
        "a frame made to end behind the file's end; no torn tail, as there is a trailer",
        6,
    )
    tape, blocks = sample("sealed-segment-changed")
    tape.finish()
    flip(tape, blocks[3] + 50)
    yield damaged(tape, blocks[3], "a changed salt", 6)
    for name, fields, comment in (
        ("type", {}, "an unknown type in a segment header"),
        ("reserved", {"reserved": b"\1\0\0"}, "a reserved byte that is not zero"),
        ("number", {"number": 7}, "a segment's number"),
        ("prev", {"prev": bytes(32)}, "a segment's prev"),
        ("prev-frames", {"prev_frames": 2}, "a segment's prev_frames"),
    ):
        tape = tape_of_records(f"sealed-segment-{name}")
        tape.segment()
        tape.frame(orders(3))
        at = tape.segment(**fields)
        tape.frame(orders(2, 3))
        tape.finish()
        if name == "type":
            tape.data[at] = 7
        yield damaged(tape, at, f"{comment}; the index is right", 3)
    tape, blocks = sample("sealed-other-commitment")
    tape.finish(tape.index_text(segments=[(*tape.segments[0][:2], bytes(32)), tape.segments[1]]))
    yield damaged(tape, blocks[0], "the index has another commitment for the first segment")
    tape = tape_of_records("sealed-other-counts")
    tape.segment()
    at = tape.frame(orders(2))
    tape.frame(orders(4, 2))
    tape.finish(tape.index_text(runs=[(0, 3, 0, 0, at, 2, 3 * RECORD_SIZE + 40)]))
    yield damaged(tape, at, "the index says 3 and 3 where the frames have 2 and 4 records")


def indexes() -> Iterator[Vector]:
    """Indexes and trailers that are refused."""

    def make(
        name: str,
        comment: str,
        text: Any = None,
        size: int = 4096,
        index_by: str | None = None,
        **fields: Any,
    ) -> Vector:
        tape, _ = sample(f"index-{name}", records(index_by=index_by))
        at = tape.finish(b"" if text is None else text(tape), size=size, **fields)
        return damaged(tape, at, comment, 8)

    def run(number: int, **values: int) -> Any:
        """The text with other values in a run."""
        names = ("segment", "count", "first_frame", "first_item", "offset", "frames", "step")

        def text(tape: Tape) -> bytes:
            old = dict(zip(names, tape.runs[number], strict=True))
            changed = tuple((old | {n: old[n] + v for n, v in values.items()}).values())
            return tape.index_text(runs=[*tape.runs[:number], changed, *tape.runs[number + 1 :]])

        return text

    yield make("commitment", "a commitment that does not derive", commitment=bytes(32))
    yield make("reserved", "a reserved byte that is not zero", reserved=b"\0\1\0")
    yield make("number", "another number", number=1)
    yield make("prev", "prev is not the commitment of the last segment", prev=bytes(32))
    yield make("prev-frames", "another number of frames than the last segment has", prev_frames=2)
    yield make("short", "a text of 23 bytes", lambda tape: tape.index_text()[:23])
    yield make("long", "a text longer than its counts say", lambda tape: tape.index_text(b"x"))
    yield make(
        "counts", "counts far beyond the text", lambda tape: b"\xff" * 8 + tape.index_text()[8:]
    )
    yield make(
        "frames-huge", "2^63 frames", lambda tape: tape.index_text(frames=1 << 63), index_by="ts"
    )
    yield make("no-bounds", "index_by, and no bounds", index_by="ts")
    yield make("bounds", "bounds, and no index_by", lambda tape: tape.index_text(bytes(48)))
    yield make(
        "segment-offset",
        "a segment's offset",
        lambda tape: tape.index_text(segments=[tape.segments[0], (1, *tape.segments[1][1:])]),
    )
    yield make(
        "segment-frames",
        "a segment's number of frames",
        lambda tape: tape.index_text(
            segments=[(tape.segments[0][0], 3, tape.segments[0][2]), tape.segments[1]]
        ),
    )
    yield make("run-count-0", "a run of frames without items", run(1, count=-2, step=-26))
    yield make(
        "run-count-over",
        "a run of frames over frame_size",
        run(1, count=314, step=314 * RECORD_SIZE),
    )
    yield make("run-empty", "a run without frames", run(1, frames=-1))
    yield make("run-step", "a run's step", run(0, step=1))
    yield make("run-first-frame", "a run's first frame", run(1, first_frame=1))
    yield make("run-first-item", "a run's first item", run(1, first_item=1))
    yield make("run-offset", "a run's offset", run(1, offset=1))
    yield make("run-past", "a run that reaches past the data", run(1, frames=1000))
    yield make("run-frames-huge", "a run of 2^64 - 1 frames", run(1, frames=2**64 - 2))
    yield make("run-frames", "a run with a frame less", run(0, frames=-1))
    yield make("run-segment", "a run of a segment that is not there", run(1, segment=1))
    yield make(
        "run-order", "runs in another order", lambda tape: tape.index_text(runs=tape.runs[::-1])
    )

    def split(tape: Tape) -> bytes:
        segment, count, frame, item, at, _, step = tape.runs[0]
        halves = [
            (segment, count, frame, item, at, 1, step),
            (segment, count, 1, count, at + step, 1, step),
        ]
        return tape.index_text(runs=[*halves, tape.runs[1]])

    yield make("run-split", "two runs that should be one", split)
    yield make(
        "segment-missing",
        "an index without the last segment",
        lambda tape: tape.index_text(
            segments=tape.segments[:1], runs=tape.runs[:1], frames=2, items=6
        ),
    )
    yield make("total-frames", "another total of frames", lambda tape: tape.index_text(frames=4))
    yield make("total-items", "another total of items", lambda tape: tape.index_text(items=9))

    for name, fields, comment in (
        ("type", {"type": 1}, "type 1"),
        ("reserved", {"type": 3, "reserved": b"\0\0\1"}, "a reserved byte that is not zero"),
        (
            "reserved-end",
            {"type": 3, "reserved_2": b"\1\0\0\0"},
            "another reserved byte that is not zero",
        ),
        ("size", {"type": 3, "count": 215}, "a count that is not its size"),
        ("first", {"type": 3, "first": 1}, "the wrong number of its first byte"),
        ("number", {"type": 3, "number": 1}, "sealed with another frame's nonce"),
        ("not-final", {"type": 2}, "no final frame"),
    ):
        for way in ("", "-walked") if name in ("size", "first") else ("",):
            tape, _ = sample(f"index-frame-{name}{way}")
            index = tape.segment(4)
            at = tape.add(tape.seal(tape.index_text(), 1, 0, **fields))
            if name == "not-final":
                at = len(tape.data)
            if way:
                tape.add(b"no trailer")
            else:
                tape.trailer(index)
            yield damaged(
                tape,
                at,
                f"an index frame: {comment}{', without a trailer behind it' if way else ''}",
                8,
            )
    tape, _ = sample("index-frame-empty")
    index = tape.segment(4)
    at = tape.add(tape.seal(b"", 1, 0))
    tape.add(tape.seal(tape.index_text(), 1, 0, type=3))
    tape.trailer(index)
    yield damaged(tape, at, "an index frame: no bytes, and not final", 8)
    tape = tape_of_records("index-frame-over")
    tape.segment()
    for number in range(90):
        tape.frame(orders(1 + number % 2, tape.items))
    at = tape.finish(size=8192)
    yield damaged(tape, at + 112, "an index frame: more bytes than frame_size", tape.items)
    tape, _ = sample("index-frame-changed")
    at = tape.finish()
    flip(tape, at + 112 + 24)
    yield damaged(tape, at + 112, "an index frame: a changed byte of ciphertext", 8)

    tape, _ = sample("index-cut")
    at = tape.index()
    del tape.data[-5:]
    tape.trailer(at)
    yield damaged(tape, at + 112, "the final frame ends behind the start of the trailer", 8)
    for name, gap, comment in (
        ("gap", b"1234567", "seven bytes between the index and the trailer"),
        ("zeros", bytes(64), "zeros between the index and the trailer"),
        ("trailer-twice", None, "the trailer twice"),
    ):
        tape, _ = sample(f"index-{name}")
        at = tape.index()
        end = len(tape.data)
        tape.trailer(at)
        if gap is None:
            tape.trailer(at)
        else:
            tape.data[end:end] = gap
        yield damaged(tape, end, comment, 8)
    tape, _ = sample("index-zeros-for-final")
    index = tape.index(size=100, final=False)
    at = tape.add(bytes(64))
    tape.trailer(index)
    yield damaged(tape, at, "zeros in place of the final frame, and then the trailer", 8)

    for name, offset, comment in (
        ("before-body", lambda blocks, size: 8191, "the trailer points before the body"),
        (
            "past",
            lambda blocks, size: size - 16 - 111,
            "the trailer points to where no segment header fits",
        ),
        ("huge", lambda blocks, size: 2**64 - 1, "the trailer points far past the end"),
    ):
        tape, blocks = sample(f"trailer-{name}")
        tape.index()
        at = tape.trailer(offset(blocks, len(tape.data) + 16))
        yield damaged(tape, at, comment, 8)
    for name, block, comment in (
        ("to-data", 3, "the trailer points to a data segment"),
        ("to-frame", 1, "the trailer points to a frame"),
    ):
        tape, blocks = sample(f"trailer-{name}")
        tape.index()
        tape.trailer(blocks[block])
        yield damaged(tape, blocks[block], comment, 8)
    tape, blocks = sample("trailer-without-index")
    tape.trailer(blocks[3])
    yield damaged(tape, blocks[3], "a trailer and no index", 8)
    for name, change, comment in (
        (
            "changed",
            lambda tape: flip(tape, len(tape.data) - 1),
            "a trailer whose magic was changed",
        ),
        (
            "other",
            lambda tape: tape.data.__setitem__(slice(-16, None), b"x" * 16),
            "no trailer but 16 other bytes",
        ),
    ):
        tape, _ = sample(f"trailer-{name}")
        tape.finish()
        change(tape)
        yield damaged(tape, len(tape.data) - 16, comment, 8)
    for name, more, comment in (
        ("one-byte", b"\0", "a zero behind the trailer"),
        ("zeros", bytes(4096), "zeros behind the trailer"),
        ("segment", None, "a segment behind the trailer"),
    ):
        tape, _ = sample(f"after-trailer-{name}")
        tape.finish()
        end = len(tape.data)
        if more is None:
            tape.segment()
            tape.add(tape.seal(orders(1, 8), RECORD_SIZE, 8))
        else:
            tape.add(more)
        yield damaged(tape, end, comment, 8)


def blob_bodies() -> Iterator[Vector]:
    """Blobs that are refused."""

    def start(name: str, **fields: Any) -> tuple[Tape, int]:
        tape = Tape(f"blob-{name}", content(), copy_size=0)
        tape.header()
        return tape, tape.segment(**fields)

    tape = Tape("blob-header-only", content(), copy_size=0)
    tape.header()
    yield damaged(tape, len(tape.data), "a header and nothing behind it")
    tape, at = start("segment-cut")
    del tape.data[-1]
    yield damaged(tape, at, "ends inside the segment header")
    for name, fields, comment in (
        ("segment-unknown", {"type": 2}, "a block of type 2 in place of the segment"),
        ("segment-index", {"type": 4}, "an index segment"),
        (
            "segment-reserved",
            {"reserved": b"\1\0\0"},
            "a reserved byte of the segment header that is not zero",
        ),
        ("segment-number", {"number": 1}, "segment number 1"),
        ("segment-prev-frames", {"prev_frames": 1}, "frames before the first segment"),
        ("segment-prev", {"prev": bytes(32)}, "prev is not the digest of content"),
        ("segment-commitment", {"commitment": bytes(32)}, "a commitment that does not derive"),
    ):
        tape, at = start(name, **fields)
        tape.add(tape.seal(b"message", 1, 0, type=3))
        yield damaged(tape, at, comment)
    for name, fields, comment in (
        ("frame-type", {"type": 1}, "a block of type 1 in place of a frame"),
        ("frame-reserved", {"type": 3, "reserved": b"\0\1\0"}, "a reserved byte that is not zero"),
        (
            "frame-reserved-end",
            {"type": 3, "reserved_2": b"\0\0\0\1"},
            "another reserved byte that is not zero",
        ),
        ("frame-size", {"type": 3, "count": 6}, "a count that is not its size"),
        (
            "frame-over",
            {"type": 3, "count": 4097, "sealed_size": 4097},
            "more than frame_size bytes",
        ),
        ("frame-first", {"type": 3, "first": 1}, "the wrong number of its first byte"),
        ("frame-number", {"type": 3, "number": 1}, "sealed with another frame's nonce"),
    ):
        tape, _ = start(name)
        at = tape.add(tape.seal(b"message", 1, 0, **fields))
        yield damaged(tape, at, comment)
    tape, _ = start("frame-empty")
    at = tape.add(tape.seal(b"", 1, 0))
    tape.add(tape.seal(b"message", 1, 0, type=3))
    yield damaged(tape, at, "an empty frame that is not final")
    tape, _ = start("frame-changed")
    tape.add(tape.seal(b"first", 1, 0))
    at = tape.add(tape.seal(b"other", 1, 5))
    tape.add(tape.seal(b"final", 1, 10, type=3))
    flip(tape, at + 25)
    yield damaged(tape, at, "a changed byte of ciphertext in the second of three frames")
    tape, _ = start("frame-header-changed")
    at = tape.add(tape.seal(b"message", 1, 0, type=2))
    tape.data[at] = 3
    yield damaged(tape, at, "a frame that was made to look final")
    for name, left, comment in (
        ("no-frame", 0, "no frame"),
        ("cut-in-frame-header", 23, "ends inside a frame header"),
        ("cut-in-frame", 46, "ends inside a frame"),
    ):
        tape, _ = start(name)
        at = tape.add(tape.seal(b"message", 1, 0, type=3)[:left])
        yield damaged(tape, at, comment)
    tape, _ = start("no-final-frame")
    tape.add(tape.seal(b"message", 1, 0))
    yield damaged(tape, len(tape.data), "no final frame")
    for name, more in (("zero", b"\0"), ("frame", None)):
        tape, _ = start(f"after-final-{name}")
        tape.add(tape.seal(b"message", 1, 0, type=3))
        at = tape.add(more or tape.seal(b"again", 1, 7, type=3))
        yield damaged(tape, at, "something behind the final frame")


GROUPS = [
    sealed, bounds, not_sealed, copies, keys, blobs, not_tapes, header_fields, json_texts, contents, recipients,
    bodies, sealed_bodies, indexes, blob_bodies,
]  # fmt: skip


def vectors() -> dict[str, Vector]:
    """All of them, by name."""
    made: dict[str, Vector] = {}
    for group in GROUPS:
        for one in group():
            if one.name in made:
                raise ValueError(f"two vectors have the name {one.name}")
            made[one.name] = one
    return made


def main(arguments: list[str]) -> int:
    """Write the vectors that are missing, and those to replace."""
    replace = set(arguments[1:]) if arguments[:1] == ["--replace"] else set()
    if arguments and not replace:
        print(__doc__)
        return 2
    made = vectors()
    FOLDER.mkdir(exist_ok=True)
    changed = []
    for name, one in made.items():
        path = FOLDER / name
        if not path.exists() or name in replace:
            path.write_bytes(one.file())
            print(f"wrote {name}")
        elif not same(path.read_bytes(), one):
            changed.append(name)
    for name in changed:
        print(f"{name} would be another than it was; to replace it: --replace {name}")
    unknown = {path.name for path in FOLDER.iterdir()} - made.keys()
    for name in sorted(unknown):
        print(f"{name} is made by nothing here")
    return 1 if changed or unknown else 0


def same(stored: bytes, one: Vector) -> bool:
    """Whether a stored vector is the one; what is compressed may be so in other ways."""
    if not one.compressed:
        return stored == one.file()
    head, _, body = stored.partition(b"\n\n")
    stream = zlib.decompressobj()
    data = stream.decompress(body)
    return (head, data, stream.unused_data) == (one.file().partition(b"\n\n")[0], one.data, b"")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
