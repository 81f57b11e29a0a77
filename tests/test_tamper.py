"""Small tapes changed in every way an attacker or a rotten disk can: never a wrong record, never a byte lost.

The oracle is `History`: every file that writers with the key ever left, forks of the tape included. A changed file may
be read as sealed, open or torn only where it is the beginning of one of those; everything else is damaged.
"""

import contextlib
import itertools
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tapeseal
from support import Block, blocks

RECORD = np.dtype("<u4")
BODY = 8192


def stream(start: int, stop: int, mark: int = 0) -> np.ndarray:
    """Return records that say which they are, and of which fork."""
    return (np.arange(start, stop) + (mark << 24)).astype(RECORD)


class State(NamedTuple):
    """A file as a writer left it, and its records."""

    data: bytes
    records: np.ndarray


class History(NamedTuple):
    """What writers with the key left of one tape and its forks, the longest states alone."""

    states: list[State]

    def beginning(self, data: bytes) -> State | None:
        """Return a state that begins with these bytes."""
        return next((state for state in self.states if state.data.startswith(data)), None)


class Tapes(NamedTuple):
    """A sealed tape, an open one, and what is spliced into them."""

    sealed: State
    open: State
    history: History
    fork: State
    sealed_fork: State
    other: State
    other_sealed: State


def record(
    path: Path,
    keyring: Any,
    sessions: list[list[int]],
    mark: int = 0,
    seal: bool = True,
    **options: Any,
) -> State:
    """Append frames of so many records each, a segment for each session."""
    for session in sessions:
        with tapeseal.open(path, "a", keyring=keyring, **options) as tape:
            for count in session:
                tape.append(stream(len(tape), len(tape) + count, mark))
                tape.flush()
            tape.close(seal=seal and session is sessions[-1])
    with tapeseal.open(path, keyring=keyring) as back:
        return State(path.read_bytes(), back[:])


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory, keyring: Any) -> Tapes:
    """Tapes of three segments of a few short frames; forks that part after the second segment."""
    folder = tmp_path_factory.mktemp("tapes")
    new = {"dtype": RECORD, "frame_size": 4096}
    path = folder / "tape"
    base = record(path, keyring, [[5, 5, 3], [4, 5]], seal=False, **new).data
    opened = record(path, keyring, [[5, 2, 2]], seal=False)
    sealed = record(path, keyring, [[]])
    path.write_bytes(base)
    fork = record(path, keyring, [[5, 2, 2]], mark=1, seal=False)
    sealed_fork = record(path, keyring, [[]])
    path.unlink()
    other = record(path, keyring, [[5, 5, 3], [4, 5], [5, 2, 2]], mark=2, seal=False, **new)
    other_sealed = record(path, keyring, [[]])
    assert len(sealed.data) == len(other_sealed.data)
    history = History([sealed, opened, sealed_fork, fork])
    return Tapes(sealed, opened, history, fork, sealed_fork, other, other_sealed)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder in memory where the system has one: these tests write many small files."""
    import tempfile

    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


class Judge:
    """Puts changed files before the library and compares what comes with the history."""

    def __init__(self, place: Path, keyring: Any, history: History) -> None:
        self.path = place / "changed.tape"
        self.keyring = keyring
        self.history = history

    def __call__(self, data: bytes, append: bool = True) -> str:
        """Check everything of one file, and return its state as verify() names it."""
        self.path.write_bytes(data)
        found = tapeseal.verify(self.path, keyring=self.keyring)
        assert found.ok == (found.state != "damaged")
        assert all(0 <= problem.offset <= len(data) for problem in found.problems)
        legal = self.history.beginning(data)
        if legal is None:
            assert found.state == "damaged"
            assert found.anchor is None
            assert not self.reads_whole(data)
        else:
            self.check_legal(data, legal, found)
        if append:
            self.check_append(data, legal is None)
        return found.state

    def reads_whole(self, data: bytes) -> bool:
        """Read all there is of a changed file: whatever comes must be what the tape held at that place."""
        try:
            tape = tapeseal.open(self.path, keyring=self.keyring)
        except tapeseal.DamagedError as error:
            self.check_offset(error, 0, data)
            self.check_recovered(data)
            return False
        with tape:
            true = self.long_enough(tape)
            try:
                whole = tape[:]
            except tapeseal.DamagedError as error:
                self.check_offset(error, BODY, data)
            else:
                # The frames are whole; then what is wrong stands behind them.
                assert any((whole == records[: len(whole)]).all() for records in true)
                return tape.sealed
            self.check_records(tape, true)
        return False

    def long_enough(self, tape: Any) -> list[np.ndarray]:
        true = [state.records for state in self.history.states if len(state.records) >= len(tape)]
        assert true
        return true

    def check_offset(self, error: tapeseal.DamagedError, start: int, data: bytes) -> None:
        """The offset of damage lies inside the file."""
        assert start <= error.offset <= len(data)

    def check_records(self, tape: Any, true: list[np.ndarray]) -> None:
        """Read record for record: a wrong one never comes."""
        for position in range(len(tape)):
            try:
                found = tape[position]
            except tapeseal.DamagedError:
                continue
            assert any(records[position] == found for records in true)

    def check_recovered(self, data: bytes) -> None:
        """With recover=True what stands before the damage is there."""
        with tapeseal.open(self.path, keyring=self.keyring, recover=True) as tape:
            self.check_records(tape, self.long_enough(tape))
            assert not tape.sealed

    def check_legal(self, data: bytes, legal: State, found: Any) -> None:
        """A file that is the beginning of one that was: its outcome follows from where it ends."""
        cuts = blocks(legal.data)
        kept = [
            block
            for block in cuts
            if block.stop <= len(data) and block.kind in ("copy", "segment", "frame")
        ]
        end = kept[-1].stop
        frames = sum(block.kind == "frame" for block in kept)
        sealed = len(data) == len(legal.data) and cuts[-1].kind == "trailer"
        state = "sealed" if sealed else "open" if end == len(data) else "torn"
        torn = 0 if sealed else len(data) - end
        assert (state, torn, frames) == (found.state, found.torn_bytes, found.frames)
        with tapeseal.open(self.path, keyring=self.keyring) as tape:
            assert (sealed, torn, found.items) == (tape.sealed, tape.torn_bytes, len(tape))
            assert (legal.records[: len(tape)] == tape[:]).all()

    def check_append(self, data: bytes, damaged: bool) -> None:
        """ "a" refuses what it finds damaged, and with recover=True saves what it cuts off; not a byte is lost."""
        try:
            tape = tapeseal.open(self.path, "a", keyring=self.keyring)
        except tapeseal.DamagedError:
            assert damaged
            assert data == self.path.read_bytes()
            tape = tapeseal.open(self.path, "a", keyring=self.keyring, recover=True)
            assert tape.cut is not None
            tape.close(seal=False)
            kept, saved = self.path.read_bytes(), tape.cut.read_bytes()
            tape.cut.unlink()
            assert data == kept + saved
            with tapeseal.open(self.path, keyring=self.keyring) as back:
                assert (0, len(tape)) == (back.torn_bytes, len(back))
                self.check_records(back, self.long_enough(back))
        else:
            tape.close(seal=False)
            assert tape.cut is None
            kept = self.path.read_bytes()
            assert data.startswith(kept)
            if damaged:
                # Of a frame that is not its segment's last only reading it tells.
                assert data == kept
        assert [self.path] == list(self.path.parent.iterdir())


@pytest.fixture(scope="module")
def judge(place: Path, keyring: Any, tapes: Tapes) -> Judge:
    """A judge of changes to the tapes."""
    return Judge(place, keyring, tapes.history)


def parts(state: State) -> list[tuple[Block, bytes]]:
    """Return the blocks of a tape's body with their bytes."""
    return [(block, state.data[block.start : block.stop]) for block in blocks(state.data)[2:]]


def joined(state: State, pieces: list[bytes]) -> bytes:
    """Return a file of a tape's header and these blocks."""
    return state.data[:BODY] + b"".join(pieces)


def segments(state: State) -> list[list[bytes]]:
    """Return a tape's data segments, each a list of its header and frames."""
    found: list[list[bytes]] = []
    for block, data in parts(state):
        if block.kind == "segment":
            found.append([])
        if block.kind in ("segment", "frame"):
            found[-1].append(data)
    return found


def tail(state: State) -> list[bytes]:
    """Return index and trailer of a sealed tape."""
    return [data for block, data in parts(state) if block.kind in ("index", "trailer")]


KINDS = ["sealed", "open"]
# What takes seconds for each kind.
KINDS_SLOWLY = ["sealed", pytest.param("open", marks=pytest.mark.slow)]
# Of another tape the sealed one differs by its end alone.
SOURCES = [
    "other",
    "sealed_fork",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("fork", "other_sealed")),
]


def test_the_tapes_are_what_the_tests_need(tapes: Tapes, judge: Judge) -> None:
    """Three segments of two and three frames, unchanged tapes sealed and open."""
    assert [4, 3, 4] == [len(segment) for segment in segments(tapes.sealed)]
    assert ["sealed", "open", "sealed", "open"] == [
        judge(state.data) for state in tapes.history.states
    ]


# Bits


def flip(
    judge: Judge, state: State, bits: Iterator[int] | range, append_every: int = 1
) -> set[str]:
    """Judge a tape with one bit flipped at a time; return the states that came."""
    data = bytearray(state.data)
    found = set()
    for number, bit in enumerate(bits):
        data[bit // 8] ^= 1 << bit % 8
        found.add(judge(bytes(data), append=number % append_every == 0))
        data[bit // 8] ^= 1 << bit % 8
    return found


@pytest.mark.parametrize("kind", KINDS_SLOWLY)
def test_bits_of_the_body(judge: Judge, tapes: Tapes, kind: str) -> None:
    """A bit of each third byte of segments, frames, index and trailer: flipped, the tape is damaged."""
    state = getattr(tapes, kind)
    # Each of the eight in turn.
    bits = range(8 * BODY, 8 * len(state.data), 25)
    assert {"damaged"} == flip(judge, state, bits, append_every=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_single_bit_of_the_body(judge: Judge, tapes: Tapes, kind: str) -> None:
    """The same for all eight bits of each byte, appending included."""
    state = getattr(tapes, kind)
    assert {"damaged"} == flip(judge, state, range(8 * BODY, 8 * len(state.data)))


def check_header_bits(judge: Judge, state: State, bits: Iterator[int] | range) -> None:
    """A flipped bit of either header copy: the tape reads as before, and verify() says which copy is rotten."""
    data = bytearray(state.data)
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
        judge.path.write_bytes(data)
        with tapeseal.open(judge.path, keyring=judge.keyring) as tape:
            assert (state.records == tape[:]).all()
        found = tapeseal.verify(judge.path, keyring=judge.keyring)
        assert [bit // 8 // 4096 * 4096] == [problem.offset for problem in found.problems]
        assert (False, "sealed") == (found.ok, found.state)
        data[bit // 8] ^= 1 << bit % 8


def used_bits(state: State) -> int:
    """Return how many bits of a header copy are used."""
    return 8 * (96 + sum(int.from_bytes(state.data[at : at + 4], "little") for at in (40, 44)))


@pytest.mark.slow
def test_bits_of_the_header_copies(judge: Judge, tapes: Tapes) -> None:
    """Many bits of both copies, those of the fixed part all."""
    used = used_bits(tapes.sealed)
    for start in (0, 8 * 4096):
        check_header_bits(judge, tapes.sealed, range(start, start + 8 * 96, 3))
        check_header_bits(judge, tapes.sealed, range(start + 8 * 96, start + used, 23))
        check_header_bits(judge, tapes.sealed, range(start + used, start + 8 * 4096, 1999))


@pytest.mark.slow
def test_every_bit_of_the_header_copies(judge: Judge, tapes: Tapes) -> None:
    """Each single bit of both copies."""
    check_header_bits(judge, tapes.sealed, range(8 * BODY))


def reseal(copy: bytes) -> bytes:
    """Give a changed header copy the CRC that makes it look intact: no key is needed for that."""
    return copy[:60] + struct.pack("<I", zlib.crc32(copy[:60] + bytes(4) + copy[64:])) + copy[64:]


@pytest.mark.parametrize(
    ("which", "step"),
    [
        ("first", 3),
        ("second", 7),
        ("both", 3),
        *(pytest.param(which, 1, marks=pytest.mark.slow) for which in ("first", "second", "both")),
    ],
)
def test_bits_of_a_forged_header(judge: Judge, tapes: Tapes, which: str, step: int) -> None:
    """With the CRC made right, a flipped bit of copy 0 or of both is found by MAC, wrap or comparison."""
    original = tapes.sealed.data
    size = len(original)
    errors = (
        tapeseal.DamagedError,
        tapeseal.KeyUnavailableError,
        tapeseal.NotATapeError,
        ValueError,
    )
    used = used_bits(tapes.sealed)
    for bit in (*range(0, used, step), *range(used, 8 * 4096, 997 * step)):
        if 8 * 60 <= bit < 8 * 64:
            continue
        copy = bytearray(original[:4096])
        copy[bit // 8] ^= 1 << bit % 8
        forged = reseal(bytes(copy))
        data = {"first": forged + original[4096:], "second": original[:4096] + forged + original[8192:],
                "both": forged + forged + original[8192:]}[which]  # fmt: skip
        judge.path.write_bytes(data)
        # A copy whose magic or size is another one is no copy at all: that is rot, and the other one counts.
        no_copy = bit < 64 or 96 <= bit < 128
        if which == "second" or (which == "first" and no_copy):
            try:
                with tapeseal.open(judge.path, keyring=judge.keyring) as tape:
                    assert (tapes.sealed.records == tape[:]).all()
            except tapeseal.DamagedError as error:
                judge.check_offset(error, 4096, data[:BODY])
                assert which == "second"
            found = tapeseal.verify(judge.path, keyring=judge.keyring)
            assert not found.ok
            with pytest.raises(tapeseal.DamagedError) if not no_copy else contextlib.nullcontext():
                tapeseal.rewrap(judge.path, keyring=judge.keyring, to=judge.keyring)
        else:
            with pytest.raises(errors):
                tapeseal.open(judge.path, keyring=judge.keyring)
            with pytest.raises(errors):
                tapeseal.open(judge.path, "a", keyring=judge.keyring, recover=True)
            assert data == judge.path.read_bytes()
        assert judge.path.stat().st_size == size


# Lengths


@pytest.mark.parametrize("kind", KINDS_SLOWLY)
def test_every_length_of_the_body(judge: Judge, tapes: Tapes, kind: str) -> None:
    """A tape cut at each length is torn or open, has the records of the frames that are whole, and goes on."""
    data = getattr(tapes, kind).data
    for size in range(BODY, len(data) + 1):
        judge(data[:size], append=size % 4 == 0)


def check_short(judge: Judge, data: bytes) -> None:
    """A file that is shorter than its header is no tape, or damaged where the magic stands."""
    judge.path.write_bytes(data)
    error = tapeseal.DamagedError if len(data) >= 8 else tapeseal.NotATapeError
    for mode in ("r", "a", "rb", "ab"):
        for recover in (False, True):
            with pytest.raises(error) as caught:
                tapeseal.open(judge.path, mode, keyring=judge.keyring, recover=recover)
            assert caught.type is error
    assert data == judge.path.read_bytes()


def test_lengths_of_the_header(judge: Judge, tapes: Tapes) -> None:
    """A tape cut inside its header is refused and left as it is."""
    for size in (*range(100), *range(100, BODY, 127), 4095, 4096, 4097, *range(BODY - 3, BODY)):
        check_short(judge, tapes.sealed.data[:size])


@pytest.mark.slow
def test_every_length_of_the_header(judge: Judge, tapes: Tapes) -> None:
    """The same for each length."""
    for size in range(BODY):
        check_short(judge, tapes.sealed.data[:size])


@pytest.mark.parametrize("kind", KINDS)
def test_tails_of_zeros(judge: Judge, tapes: Tapes, kind: str) -> None:
    """Zeros from a block's start to the end are a torn tail, as a file system leaves after a crash."""
    data = getattr(tapes, kind).data
    cuts = blocks(data)
    starts = {block.start for block in cuts[2:]} | {len(tapes.open.data)}
    for zeros in (1, 23, 24, 111, 112, 500):
        for size in (*starts, *range(BODY + 3, len(data), 37)):
            changed = data[:size] + bytes(zeros)
            judge.path.write_bytes(changed)
            found = tapeseal.verify(judge.path, keyring=judge.keyring)
            if size in starts and size <= len(tapes.open.data):
                assert ("torn", zeros) == (found.state, found.torn_bytes)
                tapeseal.open(judge.path, "a", keyring=judge.keyring).close(seal=False)
                assert data[:size] == judge.path.read_bytes()
            elif size > len(tapes.open.data):
                # In the index: what stands there is torn where it ends with its frame, or damaged.
                assert found.state in ("torn", "damaged")
            else:
                assert found.state in ("torn", "damaged")
                assert found.items <= len(tapes.open.records)
            with tapeseal.open(judge.path, keyring=judge.keyring, recover=True) as tape:
                judge.check_records(tape, [tapes.open.records])


def test_sealed_tapes_that_were_cut_are_not_decrypted(judge: Judge, tapes: Tapes) -> None:
    """decrypt_file refuses a sealed tape cut at any length, and leaves nothing under the output's name."""
    target = judge.path.parent / "plain.npy"
    data = tapes.sealed.data
    refusals = (tapeseal.UnsealedError, tapeseal.DamagedError, tapeseal.NotATapeError)
    for size in (*range(0, BODY, 509), *range(BODY, len(data))):
        judge.path.write_bytes(data[:size])
        with pytest.raises(refusals):
            tapeseal.decrypt_file(judge.path, target, keyring=judge.keyring)
        assert [judge.path] == list(judge.path.parent.iterdir())
    judge.path.write_bytes(data)
    tapeseal.decrypt_file(judge.path, target, keyring=judge.keyring)
    assert (tapes.sealed.records == np.load(target)).all()
    target.unlink()


@pytest.mark.parametrize("kind", KINDS_SLOWLY)
def test_damaged_tapes_are_not_decrypted(judge: Judge, tapes: Tapes, kind: str) -> None:
    """decrypt_file leaves nothing under the output's name for a tape with any changed byte, unsealed=True or not."""
    target = judge.path.parent / "plain.npy"
    data = bytearray(getattr(tapes, kind).data)
    for offset in range(BODY, len(data)):
        data[offset] ^= 0x10
        judge.path.write_bytes(data)
        data[offset] ^= 0x10
        with pytest.raises(tapeseal.DamagedError):
            tapeseal.decrypt_file(judge.path, target, keyring=judge.keyring, unsealed=True)
        assert [judge.path] == list(judge.path.parent.iterdir())


# Blocks


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_blocks_swapped(judge: Judge, tapes: Tapes, kind: str) -> None:
    """Each pair of frames, segment headers, index and trailer in each other's place is damage."""
    state = getattr(tapes, kind)
    pieces = [data for _, data in parts(state)]
    for a, b in itertools.combinations(range(len(pieces)), 2):
        changed = list(pieces)
        changed[a], changed[b] = changed[b], changed[a]
        assert judge(joined(state, changed)) == "damaged"


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_segments_swapped(judge: Judge, tapes: Tapes, kind: str) -> None:
    """Each pair of whole segments in each other's place is damage."""
    state = getattr(tapes, kind)
    pieces = [b"".join(segment) for segment in segments(state)]
    for a, b in itertools.combinations(range(len(pieces)), 2):
        changed = list(pieces)
        changed[a], changed[b] = changed[b], changed[a]
        assert judge(joined(state, changed + tail(state))) == "damaged"


@pytest.mark.parametrize("kind", KINDS_SLOWLY)
def test_every_block_removed_or_repeated(judge: Judge, tapes: Tapes, kind: str) -> None:
    """Each block left out, or put in once more at every place; only the loss of an open tape's end is not seen."""
    state = getattr(tapes, kind)
    pieces = [data for _, data in parts(state)]
    for number, piece in enumerate(pieces):
        judge(joined(state, pieces[:number] + pieces[number + 1 :]))
        for place in range(len(pieces) + 1):
            assert judge(joined(state, [*pieces[:place], piece, *pieces[place:]])) == "damaged"


@pytest.mark.parametrize("kind", KINDS)
def test_every_segment_removed_or_repeated(judge: Judge, tapes: Tapes, kind: str) -> None:
    """Each whole segment left out, or put in once more at every place."""
    state = getattr(tapes, kind)
    pieces = [b"".join(segment) for segment in segments(state)]
    end = tail(state)
    for number, piece in enumerate(pieces):
        left = judge(joined(state, pieces[:number] + pieces[number + 1 :] + end))
        assert left == ("open" if kind == "open" and number == 2 else "damaged")
        for place in range(len(pieces) + 1):
            assert (
                judge(joined(state, [*pieces[:place], piece, *pieces[place:], *end])) == "damaged"
            )


@pytest.mark.parametrize("kind", KINDS_SLOWLY)
@pytest.mark.parametrize("source", SOURCES)
def test_blocks_of_other_tapes(judge: Judge, tapes: Tapes, kind: str, source: str) -> None:
    """Each block of another tape, and of a fork of this one, in the place of each block and between all."""
    state, donor = getattr(tapes, kind), getattr(tapes, source)
    pieces = [data for _, data in parts(state)]
    for _, foreign in parts(donor):
        if foreign in pieces:
            continue
        for place in range(len(pieces)):
            assert (
                judge(joined(state, [*pieces[:place], foreign, *pieces[place + 1 :]])) == "damaged"
            )
            assert judge(joined(state, [*pieces[:place], foreign, *pieces[place:]])) == "damaged"


@pytest.mark.parametrize("kind", KINDS_SLOWLY)
@pytest.mark.parametrize("source", SOURCES)
def test_tails_of_other_tapes(judge: Judge, tapes: Tapes, kind: str, source: str) -> None:
    """One tape's beginning and another's end: damage, unless that is just what the fork was."""
    state, donor = getattr(tapes, kind), getattr(tapes, source)
    ours, theirs = ([data for _, data in parts(tape)] for tape in (state, donor))
    outcomes = {
        judge(joined(state, ours[:a] + theirs[b:]))
        for a in range(len(ours) + 1)
        for b in range(len(theirs) + 1)
    }
    assert outcomes <= {"damaged", "open", "sealed", "torn"}
    assert "damaged" in outcomes


@pytest.mark.parametrize("source", ["other", "fork"])
def test_segments_of_other_tapes(judge: Judge, tapes: Tapes, source: str) -> None:
    """A whole segment of another tape in the place of each, sealed and open; a fork's fits where it parted only."""
    donor = getattr(tapes, source)
    theirs = [b"".join(segment) for segment in segments(donor)]
    for state in (tapes.sealed, tapes.open):
        ours = [b"".join(segment) for segment in segments(state)]
        for a, b in itertools.product(range(3), range(3)):
            changed = joined(state, [*ours[:a], theirs[b], *ours[a + 1 :], *tail(state)])
            outcome = judge(changed)
            legal = changed in (tapes.fork.data, tapes.sealed.data, tapes.open.data)
            assert legal == (outcome != "damaged")


def test_headers_of_other_tapes(judge: Judge, tapes: Tapes) -> None:
    """A body under another tape's header is damage."""
    for state, donor in (
        (tapes.sealed, tapes.other),
        (tapes.open, tapes.other),
        (tapes.other, tapes.open),
    ):
        judge.path.write_bytes(donor.data[:BODY] + state.data[BODY:])
        with pytest.raises(tapeseal.DamagedError) as caught:
            tapeseal.open(judge.path, keyring=judge.keyring)
        assert caught.value.offset >= BODY
        with tapeseal.open(judge.path, keyring=judge.keyring, recover=True) as tape:
            assert len(tape) == 0


def test_a_retracted_frame_put_back(place: Path, keyring: Any) -> None:
    """A frame that its writer cut off and did not count any more comes back nowhere."""
    path = place / "retracted"
    record(path, keyring, [[5, 5]], seal=False, dtype=RECORD, frame_size=4096)
    kept = path.read_bytes()
    with tapeseal.open(path, "a", keyring=keyring) as tape:
        tape.append(stream(10, 15))
        tape.flush()
        before = path.read_bytes()
        tape.append(stream(15, 18, 9))
        tape.flush()
        retracted = path.read_bytes()[len(before) :]
        tape.close(seal=False)
    with tapeseal.open(path, keyring=keyring) as back:
        older = State(path.read_bytes(), back[:])
    path.write_bytes(before)
    opened = record(path, keyring, [[2, 3]], mark=0, seal=False)
    sealed = record(path, keyring, [[]])
    path.unlink()
    judge = Judge(place, keyring, History([sealed, opened, older]))
    assert kept == opened.data[: len(kept)]
    for state in (opened, sealed):
        for at in [block.start for block in blocks(state.data)[2:]] + [len(state.data)]:
            assert judge(state.data[:at] + retracted + state.data[at:]) == "damaged"
            # Where it stood, and with all that came after it gone, that is an older copy of the tape.
            outcome = judge(state.data[:at] + retracted)
            assert outcome == ("open" if at == len(before) else "damaged")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sealed", "open"])
def test_trailers_anywhere(judge: Judge, tapes: Tapes, kind: str) -> None:
    """A trailer in mid-file, twice, or made up with any offset is damage; none of it is cut off unasked."""
    state = getattr(tapes, kind)
    data = state.data
    starts = [block.start for block in blocks(data)][::3]
    pieces = [piece for _, piece in parts(state)]
    # Not 1: that would begin a segment header of which the file has a part, which is a torn tail.
    size = len(data)
    made_up = [0, 4096, *starts, size, size - 16, size + 1, 1 << 40, 1 << 63, (1 << 64) - 1]
    for offset in made_up:
        trailer = struct.pack("<Q8s", offset, b"TAPEEND\0")
        if trailer == data[-16:]:
            trailer = struct.pack("<Q8s", offset, b"TAPEENE\0")
        assert judge(data + trailer) == "damaged"
        if kind == "sealed":
            assert judge(data[:-16] + trailer) == "damaged"
        for place in range(len(pieces)):
            assert judge(joined(state, [*pieces[:place], trailer, *pieces[place:]])) == "damaged"
            if trailer.endswith(b"TAPEEND\0"):
                assert judge(joined(state, [*pieces[:place], trailer])) == "damaged"


def test_something_behind_the_trailer(judge: Judge, tapes: Tapes) -> None:
    """Whatever follows a trailer is damage: bytes, zeros, frames, an index, another trailer."""
    data = tapes.sealed.data
    pieces = [piece for _, piece in parts(tapes.sealed)]
    for more in (b"x", b"\0", bytes(16), bytes(5000), b"\2" + bytes(23), *pieces, data):
        assert judge(data + more) == "damaged"


def test_older_indexes(judge: Judge, tapes: Tapes, place: Path, keyring: Any) -> None:
    """The index of an earlier seal, or of a fork's, at the end of a tape that went on is damage."""
    path = place / "older"
    early = record(path, keyring, [[3, 2]], dtype=RECORD, frame_size=4096)
    late = record(path, keyring, [[4]])
    path.unlink()
    stranger = Judge(place, keyring, History([early, late]))
    early_end, late_end = (b"".join(tail(state)) for state in (early, late))
    late_body = late.data[: -len(late_end)]
    assert stranger(late.data) == "sealed"
    for end in (early_end, early_end + late_end, late_end + early_end, early_end[:-16] + late_end[-16:],
                early_end[:-16] + struct.pack("<Q", len(late_body)) + b"TAPEEND\0"):  # fmt: skip
        assert stranger(late_body + end) == "damaged"
    theirs = b"".join(tail(tapes.sealed_fork))
    assert judge(tapes.open.data + theirs) == "damaged"
    assert judge(tapes.fork.data + b"".join(tail(tapes.sealed))) == "damaged"


# Header copies by different hands


def test_copies_of_different_tapes(judge: Judge, tapes: Tapes) -> None:
    """Two intact copies that are not of one tape are damage, whichever is whose."""
    ours, theirs = tapes.sealed.data, tapes.other_sealed.data
    for data in (theirs[:4096] + ours[4096:], ours[:4096] + theirs[4096:8192] + ours[8192:]):
        judge.path.write_bytes(data)
        for mode in ("r", "a"):
            with pytest.raises(tapeseal.DamagedError, match="different tapes") as caught:
                tapeseal.open(judge.path, mode, keyring=judge.keyring, recover=True)
            assert caught.value.offset == 4096
        assert tapeseal.verify(judge.path, keyring=judge.keyring).state == "damaged"
        with pytest.raises(tapeseal.DamagedError):
            tapeseal.rewrap(judge.path, keyring=judge.keyring, to=judge.keyring)
        assert data == judge.path.read_bytes()


def test_every_instant_of_a_rewrap(
    judge: Judge, tapes: Tapes, keyring: Any, other_keyring: Any
) -> None:
    """A rewrap that stopped anywhere leaves a tape that the old or the new keyring opens, and that can be rewrapped."""
    old = tapes.sealed.data
    judge.path.write_bytes(old)
    tapeseal.rewrap(judge.path, keyring=keyring, to=other_keyring)
    new = judge.path.read_bytes()
    assert old[BODY:] == new[BODY:]
    # Copy 1 is written first, then copy 0; of a page any part may have reached the disk.
    cuts = (0, 1, 100, 700, 4095, 4096)
    instants = [old[: 4096 + n] + new[4096 + n : 8192] for n in cuts]
    instants += [old[:4096] + new[4096 : 4096 + n] + old[4096 + n : 8192] for n in cuts]
    instants += [new[:n] + old[n:4096] + new[4096:8192] for n in cuts]
    instants += [old[:n] + new[n:4096] + new[4096:8192] for n in cuts]
    for header in instants:
        opened = []
        for ring in (keyring, other_keyring):
            judge.path.write_bytes(header + old[BODY:])
            try:
                with tapeseal.open(judge.path, keyring=ring) as tape:
                    assert (tapes.sealed.records == tape[:]).all()
                    opened.append(ring)
            except tapeseal.KeyUnavailableError:
                continue
            assert tapeseal.rewrap(judge.path, keyring=ring, to=keyring) in (2, 3)
            assert tapeseal.verify(judge.path, keyring=keyring).problems == []
        assert len(opened) == 1


@pytest.mark.parametrize("generation", [0, 2, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_forged_generation(judge: Judge, tapes: Tapes, generation: int) -> None:
    """A copy that claims any generation, with a right CRC, gains nothing: it is forged, and the body stays as it is."""
    data = tapes.sealed.data
    forged = reseal(data[:32] + struct.pack("<Q", generation) + data[40:4096])
    over = generation >= 1 << 63
    # In the first place it is what is read, and its MAC is wrong: the other copy is not tried.
    judge.path.write_bytes(forged + data[4096:])
    with pytest.raises(tapeseal.DamagedError, match="generation" if over else "MAC") as caught:
        tapeseal.open(judge.path, keyring=judge.keyring)
    assert caught.value.offset == (32 if over else 0)
    # In the second it is not read unless the first is rotten; verify() and rewrap see it.
    judge.path.write_bytes(data[:4096] + forged + data[BODY:])
    if over:
        with pytest.raises(tapeseal.DamagedError):
            tapeseal.open(judge.path, keyring=judge.keyring)
    else:
        with tapeseal.open(judge.path, keyring=judge.keyring) as tape:
            assert (tapes.sealed.records == tape[:]).all()
    assert not tapeseal.verify(judge.path, keyring=judge.keyring).ok
    for by_copy in (False, True):
        with pytest.raises(tapeseal.DamagedError):
            tapeseal.rewrap(judge.path, keyring=judge.keyring, to=judge.keyring, copy=by_copy)
    assert data[:4096] + forged + data[BODY:] == judge.path.read_bytes()
    # And where the first is rotten too, it is refused.
    judge.path.write_bytes(b"TAPESEAL" + bytes(4088) + forged + data[BODY:])
    with pytest.raises(tapeseal.DamagedError):
        tapeseal.open(judge.path, keyring=judge.keyring)


# The command line


def run(*arguments: object) -> tuple[int, str, str]:
    """Run the command line and return its exit code and what it wrote."""
    command = [sys.executable, "-m", "tapeseal", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_exit_codes(tapes: Tapes, tmp_path: Path, key_file: str) -> None:
    """Damage, forgery and cuts are exit code 1 for whoever reads, and leave no output."""
    path, out = tmp_path / "x.tape", tmp_path / "x.npy"
    key = ("-k", f"local:{key_file}")
    whole = tapes.sealed.data
    middle = bytearray(whole)
    middle[BODY + 112 + 30] ^= 1
    spliced = joined(
        tapes.sealed,
        [d for _, d in parts(tapes.sealed)][:-5] + [d for _, d in parts(tapes.other)][-3:],
    )
    damaged = {
        "a bit": bytes(middle),
        "a splice": spliced,
        "behind the trailer": whole + b"x",
        "a forged header": reseal(whole[:32] + b"\2" + whole[33:4096]) + whole[4096:],
        "different copies": tapes.other.data[:4096] + whole[4096:],
        "a short header": whole[:5000],
        "no tape": b"hello" * 5000,
    }
    for number, (name, data) in enumerate(damaged.items()):
        path.write_bytes(data)
        command = [("verify", path), ("decrypt", path, "-o", out), ("cat", path)][number % 3]
        code, _, complaint = run(*command, *key)
        assert (name, 1) == (name, code)
        assert complaint
        assert "Traceback" not in complaint
        assert not out.exists()
        assert data == path.read_bytes()
    path.write_bytes(whole[: len(tapes.open.data) - 1])
    assert run("decrypt", path, *key, "-o", out)[0] == 1
    assert not out.exists()
    assert run("verify", path, *key)[0] == 1
    assert run("verify", path, *key, "--unsealed")[0] == 0
    path.write_bytes(whole)
    assert run("verify", path, *key)[0] == 0
    assert run("decrypt", path, *key, "-o", out)[0] == 0
    assert (tapes.sealed.records == np.load(out)).all()
