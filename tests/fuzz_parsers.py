"""Feeds one parser with what a coverage-guided fuzzer makes up: `python tests/fuzz_parsers.py TARGET FOLDER [OPTION]…`.

Seeds, most of them from the test vectors, go to the folder, and so does every input that reaches something new; the
options are libFuzzer's. It ends when a parser makes anything else of an input than what docs/format.md says: where the
second reader, which was written from that page alone, can take the input too, the two must agree.
"""

import contextlib
import copy
import hashlib
import hmac
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import atheris

import format_reader
import format_texts
from format_reader import Result
from format_writer import (
    OTHER_WRAPPING_KEY,
    WRAPPING_KEY,
    Tape,
    content,
    derive,
    key_id,
    orders,
    records,
)

with atheris.instrument_imports(include=["tapeseal"]):
    import tapeseal
    from tapeseal import header, layout
    from tapeseal.errors import DamagedError, KeyUnavailableError, NotATapeError
    from tapeseal.keyrings.local import LocalKeyring
    from tapeseal.tape import open_reader

FOLDER = Path(__file__).parent / "vectors"
# Larger ones would make for few runs in a second.
MAX_SIZE = 24 * 1024
KEY_LINE = f"key {key_id(WRAPPING_KEY)} created=2026-11-23T14:30:00Z secret={WRAPPING_KEY.hex()}\n"
KEY_FILE = f"tapeseal-keys v1\n# a comment\n\n{KEY_LINE}".encode()


class Vector(NamedTuple):
    """A test vector, as section 12 of docs/format.md describes it."""

    name: str
    head: dict[str, str]
    data: bytes


def read_vectors() -> list[Vector]:
    """Return all vectors but the large ones."""
    found = []
    for path in sorted(FOLDER.iterdir()):
        text, _, data = path.read_bytes().partition(b"\n\n")
        head = dict(line.split(": ", 1) for line in text.decode().split("\n"))
        data = zlib.decompress(data) if "compressed" in head else data
        if len(data) <= MAX_SIZE:
            found.append(Vector(path.name, head, data))
    return found


class MemoryFile:
    """A file that no disk holds, written anew for each input."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("fuzz")
        os.fchmod(self.fd, 0o600)
        self.path = f"/proc/self/fd/{self.fd}"

    def put(self, data: bytes) -> str:
        """Make it hold the data, and return its path."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)
        return self.path


FILE = MemoryFile()
KEYRING = LocalKeyring(FILE.put(KEY_FILE))


# The texts of a header, and headers


def check_text(text: bytes, parse: Callable, build: Callable, by_page: Callable) -> None:
    """Both readers take or refuse the text; what was parsed can be built, and is the same when parsed again."""
    try:
        parsed = parse(text, 0)
    except DamagedError:
        parsed = None
    try:
        by_page(text, 0)
        refused = False
    except format_texts.Stop:
        refused = True
    assert (parsed is None) == refused
    if parsed is not None:
        assert parse(build(parsed), 0) == parsed


def check_content(text: bytes) -> None:
    """The content of a header."""
    check_text(text, layout.parse_content, layout.build_content, format_texts.parse_content)


def check_recipients(text: bytes) -> None:
    """The recipients of a header."""
    check_text(
        text, layout.parse_recipients, layout.build_recipients, format_texts.parse_recipients
    )


def texts(data: bytes) -> tuple[int, int]:
    """Return where the content of a header at the start ends by its own account, and where its recipients do."""
    content_size, recipients_size = struct.unpack_from("<II", data.ljust(48, b"\0"), 40)
    end = layout.HEADER_PREFIX_SIZE + content_size
    return end, end + recipients_size


def content_seeds() -> Iterator[bytes]:
    """The contents of the vectors."""
    return (data[96 : texts(data)[0]] for _, _, data in VECTORS)


def recipients_seeds() -> Iterator[bytes]:
    """The recipients of the vectors."""
    return (data[texts(data)[0] : texts(data)[1]] for _, _, data in VECTORS)


def repair_crc(data: bytearray, at: int, size: int) -> None:
    """Give a header copy a CRC that holds."""
    if 96 <= size <= len(data) - at:
        data[at + 60 : at + 64] = bytes(4)
        data[at + 60 : at + 64] = struct.pack("<I", zlib.crc32(data[at : at + size]))


def check_header(data: bytes) -> None:
    """A header: the input as it is, and as the fields and texts of copies with right sizes and CRCs."""
    whole = bytearray(data.ljust(96, b"\0"))
    copies = 2 if whole[48] == layout.FILE_COPIES else 1
    if copies == 2:
        whole += bytes(-len(whole) % layout.HEADER_ALIGNMENT)
    whole[:16] = struct.pack("<8sHHI", layout.MAGIC, 1, 1, len(whole))
    repair_crc(whole, 0, len(whole))
    for raw in (data, bytes(whole * copies)):
        try:
            found = header.read(lambda size, offset, raw=raw: raw[offset : offset + size], len(raw))
        except (NotATapeError, DamagedError):
            continue
        assert raw[found.offset : found.offset + 60] == found.copy.fields
        assert layout.build_content(found.content)
        assert layout.build_recipients(found.recipients)


def header_seeds() -> Iterator[bytes]:
    """The first header copies of the vectors, without their padding."""
    return (data[: texts(data)[1]] for _, _, data in VECTORS)


# The index


class Unsealed(NamedTuple):
    """A tape that has everything but its index."""

    tape: Tape
    content: layout.Content
    text: bytes
    """Of the right index."""


def unsealed_tapes() -> list[Unsealed]:
    """Return one with bounds, one of bytes, and one of several segments and runs."""
    indexed = Tape("fuzz-bounds", records(index_by="ts"), item_size=13)
    plain = Tape("fuzz-bytes", content())
    several = Tape("fuzz-runs", records(), item_size=13)
    for tape in (indexed, plain, several):
        tape.header()
    indexed.segment()
    for first, count in ((0, 4), (4, 4), (8, 1)):
        indexed.frame(orders(count, first))
    bounds = struct.pack("<6Q", 1000, 1003, 1004, 1007, 1008, 1008)
    plain.segment()
    plain.frame(b"bytes of a tape")
    for first, count in ((0, 1), (1, 2), (3, 2), (5, 1)):
        if first in (0, 3):
            several.segment()
        several.frame(orders(count, first))
    return [
        Unsealed(tape, layout.parse_content(tape.content, 0), text)
        for tape, text in (
            (indexed, indexed.index_text(bounds)),
            (plain, plain.index_text()),
            (several, several.index_text()),
        )
    ]


UNSEALED = unsealed_tapes()


def check_index(data: bytes) -> None:
    """An index, authentic whatever it says: it is refused, or leads to nothing but right records."""
    if not data:
        return
    tape, made, _ = UNSEALED[data[0] % len(UNSEALED)]
    text = data[1:]
    try:
        index = layout.parse_index(text, made, 8192, len(tape.data))
    except DamagedError:
        return
    assert layout.build_index(index) == text
    sealed = copy.deepcopy(tape)
    sealed.finish(text)
    with (
        contextlib.suppress(DamagedError),
        open_reader(FILE.put(sealed.data), KEYRING, None, threads=1) as reader,
    ):
        assert reader[:].tobytes() == tape.plain
        if made.index_by is not None:
            wanted = reader[:]
            found = reader.between(made.index_by, 1002, 1007)
            assert set(found.tolist()) <= {one for one in wanted.tolist() if 1002 <= one[0] < 1007}


def index_seeds() -> Iterator[bytes]:
    """The right indices."""
    return (bytes([number]) + one.text for number, one in enumerate(UNSEALED))


# Whole tapes and blobs


class Base(NamedTuple):
    """A tape or blob to be changed."""

    data: bytes
    fields: list[int]
    """The offsets in its header that hold fields or texts: most of a header is padding."""
    body: range
    """The offsets behind its header."""
    right: bytes | None
    """All of its items; None where they cannot all be read."""
    data_key: bytes


def bases(profile: str) -> list[Base]:
    """Return the vectors of one profile, as what is to be changed."""
    found = []
    for name, head, data in VECTORS:
        if head["profile"] == profile and len(data) > layout.HEADER_PREFIX_SIZE:
            size = layout.stated_copy_size(data) or 0
            used = min(texts(data)[1], len(data))
            fields = [at for start in {0, size} for at in range(start, start + used)]
            body = range(min(size * (2 if profile == "file" else 1), len(data) - 1), len(data))
            result = read_by_page(data)
            right = result.plain if result.outcome in ("sealed", "open", "torn") else None
            found.append(Base(data, fields, body, right, Tape(name, content()).data_key))
    return found


NUMBERS = [0, 1, 2, 0xFF, 0x1000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]
STEP = struct.Struct("<BHH")
REPAIR_CRC, REPAIR_MAC = 1, 2


def changed(base: Base, program: bytes) -> bytes:
    """Return a tape or blob as a program changes it: a byte of flags, then how, where and a value for each step."""
    data = bytearray(base.data)
    for how, place, value in STEP.iter_unpack(program[1 : 1 + (len(program) - 1) // 5 * 5]):
        places = base.fields if how & 1 else base.body
        at = min(places[place % len(places)], len(data))
        number = NUMBERS[value % len(NUMBERS)].to_bytes(8, "little")
        source = base.body[value % len(base.body)]
        size, new = {
            0: (1, bytes([value & 0xFF])),
            1: (1, bytes([data[at] ^ 1 << value % 8]) if at < len(data) else b""),
            2: (4, number[:4]),
            3: (8, number),
            4: (len(data), b""),
            5: (value % 200, b""),
            6: (0, bytes(value % 200)),
            7: (0, base.data[source : source + 200]),
        }[how >> 1 & 7]
        data[at : at + size] = new
    copy_size = layout.stated_copy_size(data) or len(data)
    for at in (0, copy_size):
        if program[0] & REPAIR_MAC:
            repair_mac(data, at, base.data_key)
        if program[0] & REPAIR_CRC:
            repair_crc(data, at, copy_size)
    return bytes(data)


def repair_mac(data: bytearray, at: int, data_key: bytes) -> None:
    """Give a header copy the MAC that whoever has the data key could give it."""
    one = bytes(data[at:])
    if len(one) >= 96:
        signed = one[:60] + one[96 : texts(one)[1]]
        info = b"tapeseal/v1 header\0" + struct.pack("<H", 1) + one[16:32]
        data[at + 64 : at + 96] = hmac.digest(derive(data_key, info, 32), signed, "sha256")


def read_by_page(data: bytes) -> Result:
    """Read with the reader that was written from the page."""
    return format_reader.Reader(data).read({key_id(WRAPPING_KEY): WRAPPING_KEY}, {})


def read_tape(path: str) -> Result:
    """Read with the library; of a damaged tape, what stands before the damage."""
    try:
        with open_reader(path, KEYRING, None, recover=False, threads=1) as tape:
            plain = tape[:].tobytes()
            state = "sealed" if tape.sealed else "torn" if tape.torn_bytes else "open"
            return Result(state, plain, tape.torn_bytes, None, [])
    except NotATapeError:
        return Result("not-a-tape", b"", 0, None, [])
    except KeyUnavailableError:
        return Result("key", b"", 0, None, [])
    except DamagedError as error:
        offset = error.offset
    plain = b""
    with (
        contextlib.suppress(DamagedError),
        open_reader(path, KEYRING, None, recover=True, threads=1) as tape,
    ):
        for number in range(len(tape)):
            plain += tape[number : number + 1].tobytes()
    return Result("damaged", plain, 0, offset, [])


def check_tape(data: bytes) -> None:
    """A tape: what one reader makes of it the other makes of it, and verify() says; never an item that is not right."""
    base = TAPES[int.from_bytes(data[:2], "little") % len(TAPES)]
    raw = changed(base, data[2:] or b"\0")
    path = FILE.put(raw)
    with contextlib.suppress(NotATapeError, DamagedError):
        assert tapeseal.inspect(path).size == len(raw)
    if raw[48:49] == b"\1":
        # What says that it is a blob is one; check_blob() is for those.
        return
    expected = read_by_page(raw)
    found = read_tape(path)
    try:
        verified = tapeseal.verify(path, keyring=KEYRING, threads=1).state
    except (NotATapeError, KeyUnavailableError):
        verified = found.outcome
    assert verified == expected.outcome
    if verified == "damaged":
        # Several things can be wrong, either reader may meet another one first, and a segment without a frame is none
        # that the library reads.
        right = found.plain if base.right is None else base.right
        assert right.startswith(found.plain)
        assert found.outcome == "damaged" or (found.outcome == "sealed" and found.plain == right)
    else:
        assert found._replace(rotten=expected.rotten) == expected
        assert base.right is None or base.right.startswith(found.plain)


def check_blob(data: bytes) -> None:
    """A blob: the two readers agree, and what is released is right and all of it."""
    base = BLOBS[int.from_bytes(data[:2], "little") % len(BLOBS)]
    raw = changed(base, data[2:] or b"\0")
    try:
        plain = tapeseal.decrypt(raw, keyring=KEYRING)
        found = Result("sealed", plain, 0, None, [])
    except NotATapeError:
        found = Result("not-a-tape", b"", 0, None, [])
    except KeyUnavailableError:
        found = Result("key", b"", 0, None, [])
    except DamagedError as error:
        found = Result("damaged", b"", 0, error.offset, [])
    except ValueError as error:
        if str(error).startswith("this is "):
            # The documented refusals of what is whole and no blob of bytes.
            return
        raise
    expected = read_by_page(raw)
    assert found.outcome == expected.outcome
    if found.outcome == "sealed":
        assert found.plain == expected.plain
        assert base.right is None or found.plain == base.right


def program_seeds(count: int) -> Iterator[bytes]:
    """Each base as it is, and each kind of step on some."""
    for number in range(count):
        yield struct.pack("<HB", number, 0)
    for how in range(16):
        for place in (0, 41, 50, 130, 300):
            program = STEP.pack(how, place, place)
            yield struct.pack("<HB", how * 7 + place, place % 4) + program


# Key files


def check_key_file(data: bytes) -> None:
    """A key file: it is refused by name, or has keys whose ids stand in it."""
    try:
        keyring = LocalKeyring(FILE.put(data))
    except KeyUnavailableError:
        return
    assert keyring.key_ids
    for one in keyring.key_ids:
        assert f"key {one} ".encode() in data


def key_file_seeds() -> Iterator[bytes]:
    """Key files of either kind."""
    sealed = f"key {'ab' * 8} created=2026-11-23T14:30:00Z scrypt=17:8:1:{'cd' * 16} sealed={'ef' * 60}\n"
    other = f"key {key_id(OTHER_WRAPPING_KEY)} created=2025-01-01T00:00:00Z secret={OTHER_WRAPPING_KEY.hex()}\n"
    yield KEY_FILE
    yield KEY_FILE + other.encode()
    yield f"tapeseal-keys v1\n{sealed}".encode()
    yield f"tapeseal-keys v1\n{sealed}{sealed.replace('ab', '12', 1)}# end\n".encode()


# What the fuzzer puts into texts, as a dictionary of libFuzzer's has it.
WORDS = [
    r"\"", r"\\", r"\\ud800", ",", ":", "[", "]", "{", "}", "[]", "{}", "0", "-1", "1.0", "1e9", "255", "4294967296",
    "null", "true", "NaN", r"\xff", r"\xc3\xa9", "<u8", ">f4", "|S1", "|V3", "<M8[ns]", "<m8[25s]", r"\"pending\":true",
    r"\"provider\":\"vault-transit\"", r"\"binding\":\"context\"", r"\"codec\":null", r"\"kind\":\"rows\"",
    r"\"share\":{\"group\":1,\"threshold\":2,\"index\":3}", r"\x0a", "# ", "key ", " created=", " secret=", " scrypt=",
    " sealed=", "TAPESEAL",
]  # fmt: skip


class Target(NamedTuple):
    """What is fuzzed, and the inputs it starts from."""

    check: Callable[[bytes], None]
    seeds: Iterable[bytes]
    max_size: int
    """Of an input, in bytes."""


VECTORS = read_vectors()
TAPES, BLOBS = bases("file"), bases("blob")
TARGETS = {
    "header": Target(check_header, header_seeds(), 4096),
    "content": Target(check_content, content_seeds(), 4096),
    "recipients": Target(check_recipients, recipients_seeds(), 4096),
    "index": Target(check_index, index_seeds(), 1024),
    "tape": Target(check_tape, program_seeds(len(TAPES)), 43),
    "blob": Target(check_blob, program_seeds(len(BLOBS)), 43),
    "keyfile": Target(check_key_file, key_file_seeds(), 2048),
}


def main() -> None:
    """Write the seeds and fuzz; does not return."""
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(TARGETS)} FOLDER [OPTION of libFuzzer]...")
    target = TARGETS[sys.argv[1]]
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    words = Path(f"{folder}.words")
    words.write_text("".join(f'"{word}"\n' for word in WORDS))
    options = [f"-max_len={target.max_size}", "-len_control=0", f"-dict={words}", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], *options], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
