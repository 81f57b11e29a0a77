"""The format: vectors, the reader written from the page alone, the page itself, round trips and hostile headers."""

import ast
import fnmatch
import functools
import hashlib
import inspect
import json
import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import format_reader
import format_texts
import make_vectors
import tapeseal
from format_reader import Result
from format_writer import RECORD, WRAPPING_KEY, Tape, content, key_id, records, to_json
from tapeseal import blob, body, header, layout
from tapeseal.errors import (
    ContextMismatchError,
    DamagedError,
    KeyUnavailableError,
    NotATapeError,
    TapesealError,
)
from tapeseal.keyrings.local import LocalKeyring
from tapeseal.layout import Content, Index, Recipient, Run, SegmentEntry
from tapeseal.tape import open_reader

VECTORS = Path(__file__).parent / "vectors"
PAGE = Path(__file__).parents[1] / "docs" / "format.md"
NAMES = sorted(path.name for path in VECTORS.iterdir())
CREATED = "2026-11-23T14:30:00Z"


class Vector(NamedTuple):
    """A test vector as section 12 of the page describes it."""

    head: dict[str, str]
    data: bytes

    @property
    def expected(self) -> Result:
        """What must come of it, its items by their digest."""
        offset = self.head.get("offset")
        return Result(
            self.head["expect"],
            bytes.fromhex(self.head["plaintext"]),
            int(self.head.get("torn", "0")),
            None if offset is None else int(offset),
            [int(number) for number in self.head.get("rotten", "").split()],
        )

    @property
    def is_blob(self) -> bool:
        """Which profile the reader is told to open."""
        return self.head["profile"] == "blob"

    @property
    def expect_context(self) -> dict[str, str]:
        """The pairs that the reader is told to expect."""
        return json.loads(self.head.get("expect-context", "{}"))


@functools.cache
def vector(name: str) -> Vector:
    """Read a vector."""
    text, _, data = (VECTORS / name).read_bytes().partition(b"\n\n")
    head = dict(line.split(": ", 1) for line in text.decode().split("\n"))
    return Vector(head, zlib.decompress(data) if "compressed" in head else data)


def digest(result: Result) -> Result:
    """Put the digest of a result's items in their place."""
    return result._replace(plain=hashlib.sha256(result.plain).digest())


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> LocalKeyring:
    """The keyring that the vectors are for."""
    path = tmp_path_factory.mktemp("vectors") / "key"
    line = f"key {key_id(WRAPPING_KEY)} created={CREATED} secret={WRAPPING_KEY.hex()}"
    path.write_text(f"tapeseal-keys v1\n{line}\n")
    path.chmod(0o600)
    return LocalKeyring(path)


def read_by_page(data: bytes, expect: dict[str, str] | None = None) -> Result:
    """Read with the reader written from the page."""
    return format_reader.Reader(data).read({key_id(WRAPPING_KEY): WRAPPING_KEY}, expect or {})


OUTCOMES = {
    NotATapeError: "not-a-tape",
    KeyUnavailableError: "key",
    ContextMismatchError: "context",
}


def read_by_library(
    path: Path,
    keyring: LocalKeyring,
    expect: dict[str, str] | None = None,
    *,
    is_blob: bool = False,
) -> Result:
    """Read with the library; of a damaged file, what recover=True gives."""
    try:
        if is_blob:
            plain = tapeseal.decrypt(path.read_bytes(), keyring=keyring, expect=expect)
            return Result("sealed", plain, 0, None, [])
        return read_file(path, keyring, expect)
    except DamagedError as error:
        return Result("damaged", b"", 0, error.offset, [])
    except tuple(OUTCOMES) as error:
        return Result(OUTCOMES[type(error)], b"", 0, None, [])


def read_file(path: Path, keyring: LocalKeyring, expect: dict[str, str] | None) -> Result:
    damage = None
    try:
        tape = open_reader(str(path), keyring, expect, recover=False, threads=1)
    except DamagedError as error:
        damage = error
        tape = open_reader(str(path), keyring, expect, recover=True, threads=1)
    with tape:
        rotten = [problem.offset for problem in tape._body.header.problems]
        try:
            plain = tape[:].tobytes()
        except DamagedError as error:
            damage = damage or error
            plain = b"".join(items_before_damage(tape))
        if damage is not None:
            return Result("damaged", plain, 0, damage.offset, rotten)
        state = "sealed" if tape.sealed else "torn" if tape.torn_bytes else "open"
        return Result(state, plain, tape.torn_bytes, None, rotten)


def items_before_damage(tape: tapeseal.TapeReader) -> Iterator[bytes]:
    try:
        for number in range(len(tape)):
            yield tape[number : number + 1].tobytes()
    except DamagedError:
        pass


# Vectors


def test_vectors_are_as_published() -> None:
    """The program makes each vector that is stored, as it is stored, and no other."""
    made = make_vectors.vectors()
    assert sorted(made) == NAMES
    stored = {name: (VECTORS / name).read_bytes() for name in NAMES}
    assert [name for name, one in made.items() if not make_vectors.same(stored[name], one)] == []


def test_vectors_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program writes what is missing, and replaces a vector only when it is told to."""
    monkeypatch.setattr(make_vectors, "FOLDER", tmp_path)
    monkeypatch.setattr(make_vectors, "GROUPS", [make_vectors.not_tapes])
    assert make_vectors.main([]) == 0
    path = tmp_path / "not-a-tape-zeros-file"
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    assert make_vectors.main([]) == 1
    assert path.read_bytes() == whole + b"x"
    assert "--replace not-a-tape-zeros-file" in capsys.readouterr().out
    assert make_vectors.main(["--replace", path.name]) == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", NAMES)
def test_page_reader(name: str) -> None:
    """The reader written from the page alone comes to the outcome that the vector states."""
    one = vector(name)
    assert digest(read_by_page(one.data, one.expect_context)) == one.expected


@pytest.mark.parametrize("name", NAMES)
def test_library(name: str, keyring: LocalKeyring, tmp_path: Path) -> None:
    """The library comes to the outcome that the vector states."""
    one = vector(name)
    path = tmp_path / "tape"
    path.write_bytes(one.data)
    found = read_by_library(path, keyring, one.expect_context, is_blob=one.is_blob)
    expected = one.expected
    if found.offset is not None and not found.plain:
        # An error from the header on tells no more than its offset.
        expected = expected._replace(rotten=found.rotten)
    assert digest(found) == expected


@pytest.mark.parametrize("name", NAMES)
def test_verify(name: str, keyring: LocalKeyring, tmp_path: Path) -> None:
    """verify() comes to the same outcome, and lists the damage and every rotten copy."""
    one = vector(name)
    path = tmp_path / "tape"
    path.write_bytes(one.data)
    expected = one.expected
    if expected.outcome in OUTCOMES.values():
        with pytest.raises(tuple(OUTCOMES)):
            tapeseal.verify(path, keyring=keyring, expect=one.expect_context)
        return
    found = tapeseal.verify(path, keyring=keyring, expect=one.expect_context)
    assert (found.state, found.torn_bytes) == (expected.outcome, expected.torn) or (
        found.state == "damaged" == expected.outcome
    )
    listed = {problem.offset for problem in found.problems}
    if expected.outcome == "damaged":
        assert expected.offset in listed
    else:
        assert found.items == int(one.head["items"])
        unread = {4096} if name == "copies-second-mac" else set()
        assert listed == set(expected.rotten) | unread


@pytest.mark.parametrize("name", [name for name in NAMES if not vector(name).is_blob])
def test_append(name: str, keyring: LocalKeyring, tmp_path: Path) -> None:
    """Appending goes on behind what is whole, refuses damage it meets, and loses no byte of a damaged tape."""
    one = vector(name)
    path = tmp_path / "tape"
    path.write_bytes(one.data)
    expected = one.expected
    mode = "ab" if b'"kind":"bytes"' in one.data[: 1 << 20] else "a"
    try:
        with tapeseal.open(path, mode, keyring=keyring, expect=one.expect_context) as tape:
            end = tape.size
            more = b"x" if mode == "ab" else np.zeros(1, tape.dtype).tobytes()
            tape.write(more) if mode == "ab" else tape.append(np.frombuffer(more, tape.dtype))
    except TapesealError:
        assert path.read_bytes() == one.data
        refused = True
    else:
        refused = False
        assert path.read_bytes().startswith(one.data[:end])
    if expected.outcome in ("sealed", "open", "torn"):
        again = read_by_page(path.read_bytes(), one.expect_context)
        before, added = again.plain[: -len(more)], again.plain[-len(more) :]
        assert (refused, again.outcome, added) == (False, "sealed", more)
        assert digest(again._replace(plain=before)).plain == expected.plain
    elif not refused:
        # Damage that only reading meets: the frame is still there, and still damaged.
        again = read_by_page(path.read_bytes(), one.expect_context)
        assert expected.offset is not None
        assert expected.offset < end
        assert (again.outcome, again.offset) == ("damaged", expected.offset)


DAMAGED_FILES = [
    name for name in NAMES if not vector(name).is_blob and vector(name).head["expect"] == "damaged"
]


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_recover(name: str, keyring: LocalKeyring, tmp_path: Path) -> None:
    """Told to recover, appending keeps what reading gives, and saves all it cuts."""
    one = vector(name)
    path = tmp_path / "tape"
    path.write_bytes(one.data)
    mode = "ab" if b'"kind":"bytes"' in one.data[: 1 << 20] else "a"
    try:
        tape = tapeseal.open(path, mode, keyring=keyring, recover=True)
    except DamagedError:
        # In the header, where there is nothing to go on from.
        assert int(one.head["items"]) == 0
        assert path.read_bytes() == one.data
        return
    with tape:
        cut = b"" if tape.cut is None else tape.cut.read_bytes()
    if tape.cut is not None:
        kept = path.read_bytes()[: len(one.data) - len(cut)]
        assert kept + cut == one.data
    again = read_by_page(path.read_bytes())
    if tape.cut is not None:
        # Appending does not go by the index, so it may keep more than reading by it gives.
        assert again.outcome == "sealed"
        items = int(one.head["items"]) * tape.item_size
        assert hashlib.sha256(again.plain[:items]).digest() == one.expected.plain


# Every refusal has a vector

# Functions that refuse what a caller gives, and no bytes; and refusals of a file that changes while it is read.
WRITING = {
    "build_header", "file_copy_size", "dtype_to_json", "build_content", "build_recipients", "create",
    "replace_recipients", "next_generation", "parse", "in_parallel",
}  # fmt: skip
RACES = ("was cut while it was read", "the file ends inside")
USES = ("this is a tape, not a blob", "this is the header of")


def raise_lines(error: BaseException | None) -> Iterator[tuple[str, int]]:
    """Where an exception, and those it came of, went through."""
    while error is not None:
        trace: TracebackType | None = error.__traceback__
        while trace is not None:
            yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
            trace = trace.tb_next
        error = error.__context__


def test_every_refusal_has_a_vector(keyring: LocalKeyring, tmp_path: Path) -> None:
    """There is no `raise` for what bytes can say that no vector reaches."""
    reached: set[tuple[str, int]] = set()
    path = tmp_path / "tape"
    for name in NAMES:
        one = vector(name)
        path.write_bytes(one.data)
        ways: list[Callable[[], Any]] = []
        if one.is_blob:
            ways.append(
                lambda one=one: tapeseal.decrypt(
                    one.data, keyring=keyring, expect=one.expect_context
                )
            )
        else:
            ways.append(lambda one=one: read_all(path, keyring, one.expect_context))
            if one.head["expect"] == "damaged":
                ways.append(lambda: tapeseal.open(path, "a", keyring=keyring).close())
        for way in ways:
            try:
                way()
            except (TapesealError, ValueError) as error:
                reached.update(raise_lines(error))
    missed = []
    for module in (layout, header, body, blob):
        source = inspect.getsource(module)
        for function in ast.walk(ast.parse(source)):
            if not isinstance(function, ast.FunctionDef) or function.name in WRITING:
                continue
            for node in ast.walk(function):
                if not isinstance(node, ast.Raise) or node.exc is None:
                    continue
                text = ast.unparse(node)
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                if any(note in text for note in (*RACES, *USES)) or "RecursionError" in text:
                    continue
                if not any((module.__file__, line) in reached for line in lines):
                    missed.append(f"{module.__name__}:{node.lineno}: {text}")
    assert missed == []


def read_all(path: Path, keyring: LocalKeyring, expect: dict[str, str]) -> None:
    with open_reader(str(path), keyring, expect, recover=False, threads=1) as tape:
        tape[:]


# The page


def page() -> str:
    """The text of docs/format.md."""
    if not PAGE.exists():
        pytest.skip("docs/format.md is not beside these tests")
    return PAGE.read_text()


def tables(text: str) -> list[list[list[str]]]:
    """The tables of offset, bytes, field and value in a Markdown text, without their heads."""
    found = re.findall(r"(?m)^\| offset \| bytes \| field .*\n\|.*\n((?:\|.*\n)+)", text)
    return [
        [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()]
        for table in found
    ]


def test_tables_are_those_of_layout() -> None:
    """The page states the byte layouts with the very tables in the docstring of layout.py."""
    assert layout.__doc__ is not None
    assert len(tables(layout.__doc__)) == 7
    assert tables(layout.__doc__) == tables(page())


def rows(number: int, **sizes: int) -> dict[str, tuple[int, int]]:
    """Offset and size of each field in a table of layout.py; `sizes` are those that depend on other fields."""
    assert layout.__doc__ is not None
    found: dict[str, tuple[int, int]] = {}
    end = 0
    for offset, size, name, *_ in tables(layout.__doc__)[number]:
        start = end if offset == "after them" else eval(offset, {}, sizes)
        length = sizes.get(name, 0) if not size.isdigit() else int(size)
        # Without a gap, so that nothing is left unsaid.
        assert start == end, name
        end = start + length
        found[f"{name} again" if name in found else name] = (start, length)
    return found


def check_rows(block: bytes, expected: dict[str, bytes | int], number: int, **sizes: int) -> None:
    """Compare a block that the library made with each row of its table."""
    fields = rows(number, **sizes)
    assert fields.keys() == expected.keys()
    found = {name: block[start : start + size] for name, (start, size) in fields.items()}
    wanted = {
        name: value.to_bytes(fields[name][1], "little") if isinstance(value, int) else value
        for name, value in expected.items()
    }
    assert found == wanted
    assert sum(size for _, size in fields.values()) == len(block)


def test_header_table() -> None:
    """Each row of the header's table is where the library puts it."""
    texts = b'{"content": 1}', b'["recipients"]'
    mac = bytes(range(32))
    signed = layout.build_header(b"0123456789abcdef", 7, *texts, 2, 4096)
    copy = layout.seal_header(signed, mac)
    expected: dict[str, bytes | int] = {
        "magic": b"TAPESEAL",
        "version": 1,
        "suite": 1,
        "copy_size": 4096,
        "tape_id": b"0123456789abcdef",
        "generation": 7,
        "content_size": len(texts[0]),
        "recipients_size": len(texts[1]),
        "copies": 2,
        "reserved": bytes(11),
        "crc": zlib.crc32(copy[:60] + bytes(4) + copy[64:]),
        "mac": mac,
        "content": texts[0],
        "recipients": texts[1],
        "padding": bytes(4096 - 96 - 28),
    }
    sizes = {"content": 14, "content_size": 14, "recipients": 14, "padding": 4096 - 96 - 28}
    check_rows(copy, expected, 0, **sizes)


def test_segment_table() -> None:
    """Each row of the segment header's table is where the library puts it."""
    prev, salt, commitment = b"p" * 32, b"s" * 32, b"c" * 32
    fields = layout.build_segment_fields(4, 3, 1 << 40, prev, salt)
    expected: dict[str, bytes | int] = {
        "type": 4,
        "reserved": bytes(3),
        "number": 3,
        "prev_frames": 1 << 40,
        "prev": prev,
        "salt": salt,
        "commitment": commitment,
    }
    check_rows(fields + commitment, expected, 1)
    assert layout.parse_segment(fields + commitment, 0) == (
        4,
        3,
        1 << 40,
        prev,
        salt,
        commitment,
        fields,
    )


def test_frame_table() -> None:
    """Each row of the frame's table is where the core puts it."""
    key = tapeseal._core.AESGCM(tapeseal._core.SecretBuffer.take(bytearray(WRAPPING_KEY)))
    frame = bytearray(24 + 10 + 16)
    key.seal_frames(
        frame, b"0123456789", count=5, item_size=2, frame_items=5, first=1 << 33, index=1 << 20
    )
    nonce = struct.pack(">IQ", 0, 1 << 20)
    sealed = format_reader.AESGCM(WRAPPING_KEY).encrypt(nonce, b"0123456789", bytes(frame[:24]))
    expected: dict[str, bytes | int] = {
        "type": 2,
        "reserved": bytes(3),
        "count": 5,
        "first": 1 << 33,
        "sealed_size": 10,
        "reserved again": bytes(4),
        "ciphertext": sealed[:10],
        "tag": sealed[10:],
    }
    check_rows(bytes(frame), expected, 2, sealed_size=10, ciphertext=10)


def test_index_tables() -> None:
    """Each row of the tables of the index and the trailer is where the library puts it."""
    segment, run = SegmentEntry(8192, 6, b"c" * 32), Run(0, 3, 1, 4, 8304, 5, 79)
    text = layout.build_index(Index(5, 17, [segment], [run], b"bounds"))
    counts = {"segment_count": 1, "run_count": 1, "total_frames": 5, "total_items": 17}
    entries = {"segments": text[24:72], "runs": text[72:120], "bounds": b"bounds"}
    check_rows(text, counts | entries, 3, segments=48, runs=48, bounds=6)
    check_rows(text[24:72], {"offset": 8192, "frames": 6, "commitment": b"c" * 32}, 4)
    names = ("segment", "count", "first_frame", "first_item", "offset", "frames", "step")
    check_rows(text[72:120], dict(zip(names, run, strict=True)), 5)
    check_rows(layout.build_trailer(1 << 50), {"offset": 1 << 50, "magic": b"TAPEEND\0"}, 6)


def test_page_names_every_refusal() -> None:
    """Section 10 of the page names each vector that is damaged, and none that is not there."""
    section = page().partition("## 10.")[2].partition("## 11.")[0]
    cells = [row.split("|")[-2] for row in section.splitlines() if row.startswith("| ")]
    patterns = set(re.findall(r"`([a-z0-9*-]+)`", " ".join(cells)))
    damaged = {name for name in NAMES if vector(name).head["expect"] == "damaged"}
    assert {pattern for pattern in patterns if not fnmatch.filter(damaged, pattern)} == set()
    assert (
        damaged - {name for pattern in patterns for name in fnmatch.filter(damaged, pattern)}
        == set()
    )


def listing(section: str, after: str) -> dict[int, bytes]:
    """What the first listing behind some text says stands at each offset: digits, and remarks behind them."""
    lines = section[section.index(after) :].partition("```\n")[2].partition("```")[0].splitlines()
    found: dict[int, bytes] = {}
    offset = 0
    for line in lines:
        offset = int(line[:5]) if line[:5].strip() else offset
        found[offset] = found.get(offset, b"") + bytes.fromhex(line[7:55].strip().rstrip("…"))
    return found


def test_page_example() -> None:
    """The example on the page is the vector that it names, and what derives on the way is right."""
    section = page().partition("## 11.")[2].partition("## 12.")[0]
    data = vector("blob-message").data
    texts = section.partition("```json\n")[2].partition("```")[0].replace("\n", "").encode()
    listed = listing(section, "blob-message")
    assert (texts.startswith(listed[96]), listed[243] in texts) == (True, True)
    whole = b"".join(value for offset, value in listed.items() if offset < 96) + texts
    assert whole + b"".join(value for offset, value in listed.items() if offset > 243) == data
    assert {
        offset: data[offset : offset + len(value)] for offset, value in listed.items()
    } == listed

    tape = Tape("blob-message", content(encryption_context={"desk": "eq-us"}), copy_size=0)
    derived = dict(
        re.findall(r"(?m)^(W|[a-z].*?)  +([0-9a-f ]+)$", section.partition("What derives")[2])
    )
    binding = layout.wrap_binding({"desk": "eq-us"})
    fields = data[383 : 383 + 80]
    assert {name: bytes.fromhex(value) for name, value in derived.items()} == {
        "W": binding,
        "wrapping nonce": tape.random(f"wrap {key_id(WRAPPING_KEY)}", 12),
        "data key": tape.data_key,
        "key of the MAC": tape.expand("header", tape.tape_id, 32),
        "key of segment 0": tape.expand("segment", tape.tape_id + fields, 64)[:32],
        "nonce of frame 0": bytes(12),
    }


def test_page_index_example() -> None:
    """The index on the page is that of the vector it names, and so are the offsets."""
    section = page().partition("## 11.")[2].partition("## 12.")[0]
    tape, blocks = make_vectors.sample("sealed-records")
    listed = listing(section, "An index:")
    assert b"".join(listed.values()) == tape.index_text()
    assert {at: tape.index_text()[at : at + len(value)] for at, value in listed.items()} == listed
    text = " ".join(section.partition("An index:")[2].partition("```")[0].split())
    offsets = [int(number) for number in re.findall(r"\b[89]\d{3}\b", text)]
    index = len(tape.data)
    end = len(vector("sealed-records").data)
    assert offsets == [*blocks, index, index + 112, end - 16]


# Round trips

PLAIN_TYPES = st.one_of(
    st.sampled_from(["?", "i1", "u1", "S1", "V7", "S20"]),
    st.builds(
        "{}{}".format,
        st.sampled_from("<>"),
        st.sampled_from(
            [
                "i2",
                "i4",
                "i8",
                "u2",
                "u4",
                "u8",
                "f2",
                "f4",
                "f8",
                "c8",
                "c16",
                "U3",
                "m8",
                "M8",
                "M8[ns]",
                "m8[25s]",
            ]
        ),
    ),
).map(np.dtype)


def structures(inner: st.SearchStrategy[np.dtype]) -> st.SearchStrategy[np.dtype]:
    """Structures of fields of the inner types, sub-arrays among them, packed or with padding."""
    shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
    fields = st.lists(st.tuples(inner, shapes, st.integers(0, 3)), min_size=1, max_size=5)

    def build(
        parts: list[tuple[np.dtype, tuple[int, ...], int]], names: list[str], tail: int
    ) -> np.dtype:
        offsets, formats, end = [], [], 0
        for kind, shape, gap in parts:
            formats.append(np.dtype((kind, shape)) if shape else kind)
            offsets.append(end + gap)
            end += gap + formats[-1].itemsize
        spec = {
            "names": names[: len(parts)],
            "formats": formats,
            "offsets": offsets,
            "itemsize": end + tail,
        }
        return np.dtype(spec)

    names = st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
        min_size=5,
        max_size=5,
        unique=True,
    )
    return st.builds(build, fields, names, st.integers(0, 4))


DTYPES = st.one_of(PLAIN_TYPES, structures(st.one_of(PLAIN_TYPES, structures(PLAIN_TYPES))))


def without_surrogates(limit: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=limit)


CONTEXTS = st.dictionaries(
    without_surrogates(8).filter(lambda key: not key.startswith("tapeseal:")),
    without_surrogates(8),
    max_size=5,
)


@given(DTYPES)
@example(np.dtype([("a", "<u8"), ("b", "u1")], align=True))
def test_dtype_round_trip(dtype: np.dtype) -> None:
    """A dtype comes back as it was, through JSON, with the size that the page says it has."""
    described = json.loads(json.dumps(layout.dtype_to_json(dtype)))
    back = layout.dtype_from_json(described)
    assert back == dtype
    assert back.itemsize == dtype.itemsize
    assert layout.dtype_to_json(back) == described
    assert format_texts.type_size(described, 0, []) == dtype.itemsize


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype(object),
        np.dtype([("a", object)]),
        np.dtype([("a", [("b", object)])]),
        np.dtype([(("title", "a"), "<u4")]),
        np.dtype({"names": ["a", "b"], "formats": ["<u4", "<u4"], "offsets": [0, 2]}),
        np.dtype({"names": ["a", "b"], "formats": ["<u4", "<u4"], "offsets": [4, 0]}),
        np.dtype(("<u4", (2,))),
        np.dtype("S0"),
        np.dtype("V0"),
        np.dtype([]),
        np.dtype([("a", "U0")]),
        np.dtype("g"),
        np.dtype("G"),
        np.dtype((np.void, (1 << 20) + 1)),
        np.dtype([(f"f{number}", "u1") for number in range(1025)]),
        np.dtype([("a", "u1", (1 << 10, (1 << 10) + 1))]),
    ],
    ids=str,
)
def test_dtype_refused(dtype: np.dtype) -> None:
    """A dtype that the format cannot say is refused when a tape is made."""
    with pytest.raises(ValueError):
        layout.dtype_to_json(dtype)


@given(st.data(), DTYPES, CONTEXTS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_content_round_trip(data: st.DataObject, dtype: np.dtype, context: dict[str, str]) -> None:
    """A content comes back as it was, and the reader written from the page takes it for the same."""
    kind = data.draw(st.sampled_from(["records", "bytes", "rows"]))
    plain = None if kind == "bytes" or (kind == "rows" and data.draw(st.booleans())) else dtype
    size = data.draw(st.integers(max(4096, dtype.itemsize), 1 << 26))
    fields = [
        name
        for name in (dtype.names or ())
        if dtype[name].subdtype is None and dtype[name].kind in "iufmM" and kind == "records"
    ]
    index_by = data.draw(st.sampled_from([None, *fields]))
    made = Content(CREATED, kind, plain, size, index_by, context)
    text = layout.build_content(made)
    assert layout.parse_content(text, 0) == made
    bound_size = 0 if index_by is None else dtype[index_by].itemsize
    assert format_texts.parse_content(text, 0) == (kind, size, made.item_size, bound_size, context)


WRAPPED = st.one_of(st.none(), without_surrogates(20))
SHARES = st.one_of(st.none(), st.tuples(st.integers(0, 2**32 - 1), st.just(3), st.integers(1, 255)))
RECIPIENTS = st.lists(
    st.one_of(
        st.builds(
            Recipient, without_surrogates(8), without_surrogates(8), WRAPPED, st.none(), SHARES
        ),
        st.builds(
            Recipient,
            st.just("vault-transit"),
            without_surrogates(8),
            WRAPPED,
            st.sampled_from(["context", "associated_data"]),
            SHARES,
        ),
    ),
    min_size=1,
    max_size=64,
)


@given(RECIPIENTS)
def test_recipients_round_trip(recipients: list[Recipient]) -> None:
    """Recipients come back as they were, and the reader written from the page takes them."""
    text = layout.build_recipients(recipients)
    assert layout.parse_recipients(text, 0) == recipients
    assert len(format_texts.parse_recipients(text, 0)) == len(recipients)


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**63 - 1),
    st.binary(max_size=3000),
    st.binary(max_size=3000),
)
def test_header_round_trip(tape_id: bytes, generation: int, first: bytes, second: bytes) -> None:
    """A header copy comes back as it was, in either profile."""
    for copies, size in (
        (1, 96 + len(first) + len(second)),
        (2, layout.file_copy_size(first, second)),
    ):
        signed = layout.build_header(tape_id, generation, first, second, copies, size)
        copy = layout.parse_header(layout.seal_header(signed, bytes(32)), 0)
        assert copy is not None
        assert copy == (size, tape_id, generation, copies, bytes(32), signed[:60], first, second)
        assert copy.signed == signed


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(min_size=32, max_size=32))
def test_segment_round_trip(number: int, prev_frames: int, prev: bytes) -> None:
    """A segment header comes back as it was."""
    fields = layout.build_segment_fields(1, number, prev_frames, prev, prev[::-1])
    parsed = layout.parse_segment(fields + prev, 0)
    assert parsed == (1, number, prev_frames, prev, prev[::-1], prev, fields)


@given(
    st.lists(st.lists(st.tuples(st.integers(1, 512), st.integers(1, 9)), max_size=4), max_size=5),
    st.sampled_from([None, "x"]),
    st.integers(8192, 1 << 40),
)
def test_index_round_trip(
    groups: list[list[tuple[int, int]]], index_by: str | None, start: int
) -> None:
    """An index of any segments and runs comes back as it was."""
    dtype = np.dtype([("x", "<i4"), ("y", "<f4")])
    segments, runs = [], []
    at, items, frames = start, 0, 0
    for number, group in enumerate(groups):
        segment_at, inside, last = at, 0, 0
        at += 112
        for count, many in group:
            if count == last:
                continue
            runs.append(Run(number, count, inside, items, at, many, count * 8 + 40))
            inside, items, last = inside + many, items + many * count, count
            at += many * (count * 8 + 40)
        segments.append(SegmentEntry(segment_at, inside, bytes([number]) * 32))
        frames += inside
    bounds = bytes(8 * frames) if index_by else b""
    made = Index(frames, items, segments, runs, bounds)
    parsed = layout.parse_index(
        layout.build_index(made), Content(CREATED, "records", dtype, 4096, index_by, {}), start, at
    )
    assert parsed == made


@given(st.integers(0, 2**64 - 1))
def test_trailer_round_trip(offset: int) -> None:
    """A trailer comes back as it was."""
    assert layout.parse_trailer(layout.build_trailer(offset)) == offset


@given(CONTEXTS)
def test_context_encoding(context: dict[str, str]) -> None:
    """The encoding of an encryption context is the page's, whatever order its pairs come in."""
    backward = dict(reversed(context.items()))
    assert (
        layout.encode_context(backward)
        == layout.encode_context(context)
        == format_texts.encode(context)
    )


# The library and the reader of the page against each other


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int]]:
    """What is done to a tape: records appended, flushes, closing with and without a seal, opening again."""
    steps = st.one_of(
        st.tuples(st.just("append"), st.integers(0, 700)),
        st.tuples(st.sampled_from(["flush", "seal", "leave"]), st.just(0)),
    )
    return draw(st.lists(steps, max_size=12))


@given(histories(), st.sampled_from([None, "ts", "price"]), CONTEXTS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_page_reader_reads_what_the_library_wrote(
    keyring: LocalKeyring,
    tmp_path: Path,
    history: list[tuple[str, int]],
    index_by: str | None,
    context: dict[str, str],
) -> None:
    """A tape that the library wrote, resumed and sealed reads the same with the reader written from the page."""
    path = tmp_path / "tape"
    path.unlink(missing_ok=True)
    dtype = layout.dtype_from_json(RECORD)
    options: dict[str, Any] = {"dtype": dtype, "frame_size": 4096, "keyring": keyring}
    options |= {"index_by": index_by, "encryption_context": context}
    written = b""
    tape = tapeseal.open(path, "a", **options)
    sealed_items = -1
    for step, count in [*history, ("seal", 0)]:
        if step == "append":
            more = make_vectors.orders(count, len(written) // 13)
            written += more
            tape.append(np.frombuffer(more, dtype))
        elif step == "flush":
            tape.flush()
        else:
            tape.close(seal=step == "seal")
            if step == "seal":
                sealed_items = len(written)
            # A tape that was sealed and got nothing more is left as it was.
            state = "sealed" if sealed_items == len(written) else "open"
            expected = Result(state, written, 0, None, [])
            assert read_by_page(path.read_bytes(), context) == expected
            tape = tapeseal.open(path, "a", **options)
    tape.close()
    tapeseal.rewrap(path, keyring=keyring, to=keyring)
    assert read_by_page(path.read_bytes(), context) == Result("sealed", written, 0, None, [])


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 65535, 65536, 65537, 131072, 200_000])
def test_page_reader_reads_blobs(keyring: LocalKeyring, size: int) -> None:
    """A blob that the library made reads the same with the reader written from the page."""
    message = (bytes(range(251)) * (size // 251 + 1))[:size]
    sealed = tapeseal.encrypt(message, keyring=keyring, encryption_context={"a": "b"})
    assert read_by_page(sealed, {"a": "b"}) == Result("sealed", message, 0, None, [])


WHOLE = [
    name
    for name in NAMES
    if vector(name).head["expect"] in ("sealed", "open", "torn")
    and len(vector(name).data) < 1 << 16
]


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_readers_agree_on_changed_inputs(
    data: st.DataObject, keyring: LocalKeyring, tmp_path: Path
) -> None:
    """Of an input that was changed in one place, the library and the reader of the page make the same."""
    one = vector(data.draw(st.sampled_from(WHOLE)))
    raw = bytearray(one.data)
    # Most of a file is padding: half of the changes go to the fields, the texts and the body.
    start = 0 if one.is_blob else 2 * int.from_bytes(raw[12:16], "little")
    places = st.one_of(
        st.integers(0, len(raw) - 1), st.integers(min(start, len(raw) - 1), len(raw) - 1)
    )
    at = data.draw(places)
    how = data.draw(st.sampled_from(["set", "flip", "cut", "remove", "insert"]))
    if how == "set":
        raw[at] = data.draw(st.integers(0, 255))
    elif how == "flip":
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del raw[at:]
    elif how == "remove":
        del raw[at : at + data.draw(st.integers(1, 200))]
    else:
        raw[at:at] = data.draw(st.binary(max_size=40))
    path = tmp_path / "tape"
    path.write_bytes(raw)
    expected = read_by_page(bytes(raw), one.expect_context)
    found = read_by_library(path, keyring, one.expect_context, is_blob=one.is_blob)
    try:
        state = tapeseal.verify(path, keyring=keyring, expect=one.expect_context).state
    except tuple(OUTCOMES) as error:
        state = OUTCOMES[type(error)]
    assert state == expected.outcome
    if state == "damaged":
        # One change makes several things wrong, of which each may meet another one first; neither tells an untruth.
        assert vector_plain(one).startswith(found.plain)
        assert vector_plain(one).startswith(expected.plain)
    elif state in OUTCOMES.values():
        assert found.outcome == expected.outcome
    else:
        assert found == expected


def vector_plain(one: Vector) -> bytes:
    return read_by_page(one.data, one.expect_context).plain


TEXTS = [
    to_json(records(index_by="ts")),
    to_json(content(encryption_context={"a": "b"})),
    to_json(make_vectors.NESTED),
]
ENTRIES = [
    to_json(
        [
            {"provider": "local", "key": "a", "wrapped": "b"},
            {"provider": "x", "key": "y", "pending": True},
        ]
    ),
    to_json(
        [{"provider": "vault-transit", "key": "a/b", "wrapped": "vault:v1:x", "binding": "context"}]
    ),
    to_json(
        [
            {
                "provider": "p",
                "key": "k",
                "wrapped": "w",
                "share": {"group": 1, "threshold": 2, "index": 3},
            }
        ]
    ),
]
PIECES = st.sampled_from(
    [b'"', b",", b"[", b"]", b"{", b"}", b":", b"0", b"-1", b"1.0", b"1e9", b"null", b"true", b"\\", b"\\ud800", b" ",
     b"\xff", b"\xc3\xa9", b'"a"', b"<", b">", b"|", b"[]", b"{}", b"\x00", b"NaN", b"999999999999999999999"]
)  # fmt: skip


@given(
    st.sampled_from(TEXTS + ENTRIES),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 5), PIECES), max_size=3),
)
@settings(max_examples=500)
def test_parsers_agree_on_changed_texts(text: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    """A text that was changed anywhere is taken or refused by both parsers alike, and refused in one way only."""
    for at, size, piece in changes:
        text = text[:at] + piece + text[at + size :]
    for library, other in (
        (layout.parse_content, format_texts.parse_content),
        (layout.parse_recipients, format_texts.parse_recipients),
    ):
        verdicts = []
        for parse, refusal in ((library, DamagedError), (other, format_texts.Stop)):
            try:
                parse(text, 7)
                verdicts.append(None)
            except refusal as error:
                verdicts.append(error.offset)
        assert verdicts[0] == verdicts[1]


# Hostile headers

MIB = 1 << 20


def hostile_copy(text: bytes, entries: bytes, copies: int = 1, size: int | None = None) -> bytes:
    """A header copy of two texts, with a CRC that holds."""
    tape = Tape("hostile", text, recipients=entries, copy_size=size if copies == 2 and size else 0)
    return tape.copy(copies=copies)


def hostile() -> dict[str, bytes]:
    """Inputs made to cost memory or time."""
    right, entries = to_json(content()), to_json([{"provider": "x", "key": "y", "wrapped": "z"}])
    half = MIB - 5000
    texts = {
        "string": b'{"a":"' + b"x" * half + b'"}',
        "wide-string": b'{"a":"\xf0\x9f\x98\x80' + b"x" * half + b'"}',
        "escapes": b'{"a":"' + b"\\ud83d\\ude00" * (half // 12) + b'"}',
        "lone-surrogates": b'{"a":"' + b"\\ud83d" * (half // 6) + b'"}',
        "backslashes": b'{"a":"' + b"\\\\" * (half // 2) + b'"}',
        "deep": b"[" * 8192 + b"]" * 8192,
        "deep-open": b"[" * 8192,
        "too-deep": b"[" * half,
        "objects": b'{"a":' * 8191 + b"1" + b"}" * 8191,
        "same-names": b"{" + b",".join([b'"a":1'] * 8000) + b"}",
        "names": b"{" + b",".join(b'"%d":1' % number for number in range(8000)) + b"}",
        "spaces": b" " * half + right[:-1],
        "number": b"[" + b"9" * half + b"]",
        "strings": b'""' * (half // 2),
        "quotes": b'"' * half,
        "fields": to_json(content(kind="rows", dtype=[[f"f{n}", "|u1"] for n in range(2700)])),
        "type": to_json(content(kind="rows", dtype=[["a", "x" * half]])),
        "huge-array": to_json(content(kind="rows", dtype=[["a", "|u1", [2**62, 2**62]]])),
        "huge-type": to_json(content(kind="rows", dtype="|V9999999")),
        "nested-arrays": to_json(
            content(
                kind="rows", dtype=[["a", [["b", [["c", "|u1", [1 << 20]]], [1 << 20]]], [1 << 20]]]
            )
        ),
    }
    made = {name: hostile_copy(text, entries) for name, text in texts.items()}
    million = b"[" + b",".join([b"{}"] * ((MIB - 4096) // 3 - 1)) + b"]"
    made["recipients"] = hostile_copy(right, million)
    made["long-recipient"] = hostile_copy(
        right, to_json([{"provider": "x", "key": "y", "wrapped": "z" * half}])
    )
    large = hostile_copy(texts["wide-string"], b'["' + b"x" * half + b'"]', 2, 2 * MIB)
    made["two-large-copies"] = large * 2
    made["two-zero-copies"] = hostile_copy(right, entries, 2, 2 * MIB) + bytes(2 * MIB)
    copy = hostile_copy(right, entries, 2, 4096)
    for name, field in (("sizes", struct.pack("<II", 2**32 - 1, 2**32 - 1)), ("copy-size", None)):
        changed = bytearray(copy)
        if field is None:
            changed[12:16] = b"\xff" * 4
        else:
            changed[40:48] = field
        changed[60:64] = struct.pack("<I", zlib.crc32(changed[:60] + bytes(4) + changed[64:]))
        made[name] = bytes(changed)
    changed = bytearray(copy)
    changed[32:40] = b"\xff" * 8
    changed[60:64] = struct.pack("<I", zlib.crc32(changed[:60] + bytes(4) + changed[64:]))
    made["generation"] = bytes(changed)
    fakes = bytearray(2 * MIB + 96)
    for offset in range(4096, 2 * MIB + 1, 4096):
        fakes[offset : offset + 96] = copy[:12] + struct.pack("<I", offset) + copy[16:96]
    made["second-copies"] = bytes(fakes)
    almost = bytearray(fakes)
    for offset in range(4096, 2 * MIB, 4096):
        almost[offset + 12] = 1
    made["second-copies-almost"] = bytes(almost)
    return made


HOSTILE = hostile()


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_header(name: str, tmp_path: Path) -> None:
    """A header made to cost memory is refused, and within 10 MiB."""
    path = tmp_path / "hostile"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    try:
        # What two-zero-copies says is right; what it holds is 4 MiB of padding.
        if name == "two-zero-copies":
            tapeseal.inspect(path)
        else:
            with pytest.raises(DamagedError):
                tapeseal.inspect(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 10 * MIB


def test_unknown_recipients_cost_nothing(keyring: LocalKeyring) -> None:
    """Of 64 entries of other providers a reader says that none is its own."""
    entries = [{"provider": "x", "key": str(number), "wrapped": "z" * 8192} for number in range(64)]
    tape = Tape("many", content(), recipients=entries, copy_size=0)
    tape.header()
    with pytest.raises(KeyUnavailableError):
        tapeseal.decrypt(bytes(tape.data), keyring=keyring)
