"""Verifying an audit log: whatever was changed, removed, moved, added, cut or put back is found."""

import contextlib
import json
import os
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import tapeseal
from audit_logs import entries, kinds, make_log, put_back, record, recording, save, verified
from tapeseal import audit
from tapeseal.audit_log import chain
from tapeseal.audit_log.anchors import (
    AnchorSchedule,
    LogAnchor,
    append_to,
    newest,
    read_anchors,
)
from tapeseal.audit_log.check import verify_log
from tapeseal.audit_log.log import AuditLog, create_log, file_path, head_path
from tapeseal.audit_log.tapes import check_tapes
from tapeseal.errors import KeyUnavailableError, SignatureError
from tapeseal.keyrings.local import LocalKeyring

if TYPE_CHECKING:
    from servers.bao import Server
    from servers.kms import KmsServer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a log can be made."""
    return tmp_path / "audit.log"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Leave no log behind that takes other tests' operations."""
    yield
    audit.stop()


def write_lines(path: Path, lines: list[bytes]) -> None:
    """Put lines in the place of a log's."""
    path.write_bytes(b"".join(lines))


# Every single change of a log


def changes(lines: list[bytes], seed: int) -> Iterator[tuple[str, set[str], list[bytes]]]:
    """Yield what can be done to each line but the header: its name, the kinds of problems expected first, the lines."""
    dice = random.Random(seed)
    for at in range(1, len(lines)):
        is_last = at == len(lines) - 1
        yield "removed", {"cut" if is_last else "removed"}, lines[:at] + lines[at + 1 :]
        yield "cut", {"cut"}, lines[:at]
        piece = lines[at][: dice.randrange(1, len(lines[at]))]
        yield "cut inside", {"cut"}, [*lines[:at], piece]
        changed = bytearray(lines[at])
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(7)
        yield (
            "one bit",
            {"changed", "reordered", "removed", "added", "cut"},
            [*lines[:at], bytes(changed), *lines[at + 1 :]],
        )
        text = lines[at].replace(b'"result":"done"', b'"result":"dona"')
        yield "edited", {"changed"}, [*lines[:at], text, *lines[at + 1 :]]
        if not is_last:
            swapped = [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]
            yield "swapped", {"reordered"}, swapped
        other = dice.choice([each for each in range(1, len(lines)) if each != at])
        moved = list(lines)
        moved[at], moved[other] = moved[other], moved[at]
        yield "swapped afar", {"reordered"}, moved
        yield "doubled", {"added"}, [*lines[: at + 1], lines[at], *lines[at + 1 :]]
        yield "elsewhere again", {"added", "reordered"}, [*lines[:at], lines[other], *lines[at:]]


def find_all_changes(path: Path, keyring: LocalKeyring, count: int) -> Counter[str]:
    """Do every single thing to a log, see that each is found and named, and count them."""
    make_log(path, keyring, count)
    saved = save(path)
    done: Counter[str] = Counter()
    for name, expected, lines in changes(saved[0].splitlines(keepends=True), count):
        write_lines(path, lines)
        found = verify_log(path, keyring=keyring)
        assert found.problems, f"{name} was missed"
        assert found.problems[0].kind in expected, (name, found.problems[:3])
        assert len(found.problems) <= 3, (name, found.problems[:5])
        done[name] += 1
    put_back(path, saved)
    verified(path, keyring)
    return done


def test_every_change_of_a_log_is_found(path: Path, keyring: LocalKeyring) -> None:
    """Every edit, removal, swap, cut and repetition of a line is found, and called what it is."""
    done = find_all_changes(path, keyring, 40)
    assert {40, 39} == set(done.values())


@pytest.mark.slow
def test_every_change_of_a_thousand_lines_is_found(path: Path, keyring: LocalKeyring) -> None:
    """The same of a log of 1,000 lines."""
    done = find_all_changes(path, keyring, 1000)
    assert {1000, 999} == set(done.values())


def test_every_byte_of_a_line_counts(path: Path, keyring: LocalKeyring) -> None:
    """Whichever byte of a line is changed, its newline and its MAC among them, that is found."""
    make_log(path, keyring, 4)
    saved = save(path)
    start = saved[0].index(b'{"sequence":2')
    stop = saved[0].index(b"\n", start) + 1
    missed = []
    for at in range(start, stop):
        for new in {10, saved[0][at] ^ 0x20, saved[0][at] ^ 1} - {saved[0][at]}:
            path.write_bytes(saved[0][:at] + bytes([new]) + saved[0][at + 1 :])
            if verify_log(path, keyring=keyring).ok:
                missed.append((at - start, new))
    assert [] == missed


def test_where_it_is(path: Path, keyring: LocalKeyring) -> None:
    """A problem names file, line and entry; what follows it is looked at all the same."""
    make_log(path, keyring, 30)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b"binance", b"kraken_")
    del lines[20:22]
    write_lines(path, lines)
    found = verify_log(path, keyring=keyring)
    assert [
        (str(path), 6, "changed", "entry 5 is not as it was written"),
        (str(path), 21, "removed", "entries 20 to 21 are gone, before entry 22"),
    ] == [tuple(each) for each in found.problems]
    assert (26, 1, 30) == (found.entries, found.unchecked, found.last)


@pytest.mark.parametrize("place", range(0, 900, 7))
def test_every_header_counts(path: Path, keyring: LocalKeyring, place: int) -> None:
    """A header of which one byte was changed is a forged one, or names a key that the keyring has not."""
    make_log(path, keyring, 2)
    data = bytearray(path.read_bytes())
    size = data.index(b"\n")
    data[place * size // 900] ^= 1
    path.write_bytes(data)
    try:
        found = kinds(path, keyring)
    except KeyUnavailableError:
        return
    assert "header" in found


def test_lines_of_another_log(path: Path, keyring: LocalKeyring) -> None:
    """Lines of another log under the same keyring are none of this one's."""
    make_log(path, keyring, 8)
    other = make_log(path.with_name("other"), keyring, 8)
    mine, its = (each.read_bytes().splitlines(keepends=True) for each in (path, other))
    write_lines(path, [*mine[:4], *its[4:]])
    assert {"changed"} == set(kinds(path, keyring)) - {"head"}
    write_lines(path, [its[0], *mine[1:]])
    assert not verify_log(path, keyring=keyring).ok
    write_lines(path, [mine[0].replace(mine[0][60:92], its[0][60:92]), *its[1:]])
    assert "header" in kinds(path, keyring)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\x00",
        b"{}",
        b"[" * 100_000,
        b'{"sequence":5,"sequence":6}',
        b'{"sequence":99999999999999999999999,"mac":"' + b"0" * 64 + b'"}',
        b'{"sequence":5,"mac":"' + b"0" * 64 + b'"}',
        b'{"sequence":5,"mac":"' + b"F" * 64 + b'"}',
        b"x" * (5 << 20),
    ],
    ids=["empty", "no UTF-8", "object", "deep", "twice", "large", "no MAC", "capitals", "long"],
)
@pytest.mark.parametrize("how", ["added", "in place"])
def test_foreign_lines(path: Path, keyring: LocalKeyring, line: bytes, how: str) -> None:
    """Whatever is put between the lines of a log is found, and the lines behind it are looked at."""
    make_log(path, keyring, 10)
    lines = path.read_bytes().splitlines(keepends=True)
    write_lines(path, [*lines[:5], line + b"\n", *lines[5 if how == "added" else 6 :]])
    found = verify_log(path, keyring=keyring)
    assert ["added" if how == "added" else "changed"] == [each.kind for each in found.problems]
    assert 10 == found.last


def test_many_problems_end(
    path: Path, keyring: LocalKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a log that is nothing but problems the first are listed, and it says that there are more."""
    monkeypatch.setattr("tapeseal.audit_log.check.MAX_PROBLEMS", 50)
    make_log(path, keyring, 2)
    with path.open("ab") as file:
        file.write(b"garbage\n" * 1000)
    found = verify_log(path, keyring=keyring)
    assert 50 <= len(found.problems) <= 53
    assert "more that is wrong" in found.problems[50].text


def test_another_keyring(path: Path, keyring: LocalKeyring, other_keyring: LocalKeyring) -> None:
    """Without the log's key nothing is said of it."""
    make_log(path, keyring, 2)
    with pytest.raises(KeyUnavailableError):
        verify_log(path, keyring=other_keyring)


def test_while_it_is_written(path: Path, keyring: LocalKeyring) -> None:
    """A log can be verified by another opening while a writer has it open."""
    create_log(path, keyring=keyring)
    with AuditLog(path, keyring=keyring) as log:
        for turn in range(20):
            audit.start(log)
            record(3)
            audit.stop()
            assert 1 + 3 * (turn + 1) == verified(path, keyring).entries


def test_cut_while_a_line_without_end_is_passed_over(path: Path, keyring: LocalKeyring) -> None:
    """A file that becomes shorter while it is read, in the middle of what is no line, is read to its end."""
    make_log(path, keyring, 5)
    with open(path, "ab") as file:
        file.write(b"x" * (8 << 20))

    def cut(done: int, total: int | None) -> None:
        if done >= 5 << 20:
            os.truncate(path, 5 << 20)

    found = verify_log(path, keyring=keyring, progress=cut)
    assert (5, False) == (found.entries, found.ok)


def test_each_authentic_line_is_handed_out(path: Path, keyring: LocalKeyring) -> None:
    """Who reads along gets the authentic lines alone, those out of place too."""
    make_log(path, keyring, 10)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3], lines[7] = lines[7], lines[3]
    lines[5] = lines[5].replace(b"binance", b"kraken_")
    write_lines(path, lines)
    seen: list[int] = []
    verify_log(path, keyring=keyring, each=lambda line: seen.append(json.loads(line)["sequence"]))
    assert {1, 2, 3, 6, 7, 8, 9, 10} <= set(seen)
    assert 5 not in seen


def test_a_forged_line_out_of_place_is_not_handed_out(path: Path, keyring: LocalKeyring) -> None:
    """What stands behind entries that follow it, and nothing proves, is not among the authentic ones."""
    make_log(path, keyring, 12)
    lines = path.read_bytes().splitlines(keepends=True)
    forged = lines[6].replace(b"binance", b"kraken_")
    write_lines(path, [*lines[:5], *lines[9:11], forged, *lines[11:]])
    seen: list[bytes] = []
    found = verify_log(path, keyring=keyring, each=seen.append)
    assert ["removed", "reordered"] == [each.kind for each in found.problems]
    # Of entry 9 and of the forged one the entry before is gone.
    assert (7, 2) == (found.entries, found.unchecked)
    assert not any(b"kraken_" in each for each in seen)


def append_body(path: Path, keyring: LocalKeyring, body: bytes) -> None:
    """Write an entry as one does who has the log's key: the chain is right, what it says need not be."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    parsed = chain.parse_header(header)
    last = chain.split_line(lines[-1][:-1])
    assert last is not None
    with contextlib.closing(chain.unlock(parsed, keyring)) as key:
        mac = key.entry(last[1], body)
        with path.open("ab") as file:
            file.write(chain.build_line(body, mac))
        head = chain.Head(1, len(lines) + 1, path.stat().st_size, mac)
        Path(head_path(path)).write_bytes(chain.build_head(parsed.log_id, head, key))


_ANCHOR = b'"anchor":"tapeseal-anchor:00112233445566778899aabbccddeeff:1:1:1:-:-"'


@pytest.mark.parametrize(
    "body",
    [
        b'"action":"audit.head"',
        b'"action":"audit.lost","details":[]',
        b'"action":"audit.torn","details":{"offset":NaN}',
        b'"action":"audit.cut","details":{"mac":"\\ud800"}',
        b'"action":"audit.x","x":' + b"[" * 60_000,
        b'"x":' + b"9" * 10_000 + b',"action":"audit.x"',
        b'"action":"audit.x","action":"audit.head',
        b'"action":"tape.seal","result":"done","subject":1,"time":"","details":{' + _ANCHOR + b"}",
        b'"action":"tape.seal","result":"done","subject":"/\\u0000","time":"","details":{'
        + _ANCHOR
        + b"}",
        b'"action":"tape.seal","result":"done","details":{"anchor":[],"x":{' + _ANCHOR + b"}}",
        b'"action":"tape.seal","result":"done","details":{"anchor":"tapeseal-anchor:\xff"}',
    ],
)
def test_what_a_holder_of_the_key_wrote_is_read(
    path: Path, keyring: LocalKeyring, body: bytes
) -> None:
    """An entry whose MAC is right, and which says nothing that makes sense, keeps nobody from verifying the others."""
    make_log(path, keyring, 3)
    append_body(path, keyring, b'{"sequence":4,' + body)
    found = verify_log(path, keyring=keyring)
    assert 4 == found.entries
    assert {"head"} >= {each.kind for each in found.problems}
    assert not any(check_tapes(found.tapes, [path.parent]))


@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("of", ["log", "head", "file before"])
def test_what_is_no_file(path: Path, keyring: LocalKeyring, of: str, kind: str) -> None:
    """A pipe or a folder in the place of a file of the log is a problem there, and nothing is waited for."""
    with recording(path, keyring) as log:
        record(1)
        log.roll()
        record(1)
    target = {"log": path, "head": head_path(path), "file before": file_path(path, 1)}[of]
    os.unlink(target)
    (os.mkfifo if kind == "pipe" else os.mkdir)(target)
    found = verify_log(path, keyring=keyring)
    assert ("head" if of == "head" else "header") == found.problems[0].kind


@pytest.mark.parametrize("size", [200_000, 9 << 20])
def test_a_long_line_without_end(path: Path, keyring: LocalKeyring, size: int) -> None:
    """Bytes that are no line, however many, are what a writer found, and it says which."""
    make_log(path, keyring, 3)
    with path.open("ab") as file:
        file.write(b"\0" * size)
    with recording(path, keyring):
        record(1)
    found = verify_log(path, keyring=keyring)
    assert ([], ["torn"], 6) == (found.problems, [n.kind for n in found.notices], found.entries)


# Files of one log


@pytest.fixture
def rolled(path: Path, keyring: LocalKeyring) -> Path:
    """A log of four files, five entries each but the first, which has six."""
    create_log(path, keyring=keyring)
    with recording(path, keyring) as log:
        for _ in range(3):
            record(5)
            log.roll()
        record(5)
    assert 21 == verified(path, keyring).entries
    return path


def test_an_earlier_file_is_gone(rolled: Path, keyring: LocalKeyring) -> None:
    """A file that is missing at the start or in the middle is found; what is left is verified."""
    first, second = (Path(file_path(rolled, number)) for number in (1, 2))
    aside = second.with_name("aside")
    second.rename(aside)
    assert ["removed"] == kinds(rolled, keyring)
    aside.rename(second)
    first.unlink()
    assert ["removed"] == kinds(rolled, keyring)
    assert [] == kinds(rolled, keyring, from_file=2)
    assert [] == kinds(rolled, keyring, from_file=4)


def test_an_earlier_file_was_cut(rolled: Path, keyring: LocalKeyring) -> None:
    """An earlier file without its last lines is found, at the next one's header."""
    second = Path(file_path(rolled, 2))
    write_lines(second, second.read_bytes().splitlines(keepends=True)[:-2])
    found = verify_log(rolled, keyring=keyring)
    assert ["cut"] == [each.kind for each in found.problems]
    assert "entries 10 to 11" in found.problems[0].text


def test_the_last_line_of_an_earlier_file_was_changed(rolled: Path, keyring: LocalKeyring) -> None:
    """So is one whose last line was changed."""
    second = Path(file_path(rolled, 2))
    second.write_bytes(second.read_bytes()[:-70] + b"0" * 20 + second.read_bytes()[-50:])
    assert "changed" in kinds(rolled, keyring)


def test_files_change_places(rolled: Path, keyring: LocalKeyring) -> None:
    """Files under each other's names are found."""
    second, third = (Path(file_path(rolled, number)) for number in (2, 3))
    swapped = second.read_bytes(), third.read_bytes()
    third.write_bytes(swapped[0])
    second.write_bytes(swapped[1])
    assert not verify_log(rolled, keyring=keyring).ok


def test_the_present_file_is_gone(rolled: Path, keyring: LocalKeyring) -> None:
    """Without its present file a log is cut."""
    rolled.unlink()
    assert "cut" in kinds(rolled, keyring)


def test_an_older_file_in_the_place_of_the_present_one(rolled: Path, keyring: LocalKeyring) -> None:
    """An earlier file under the log's name is found by the head, also when a writer has gone on with it."""
    os.replace(file_path(rolled, 3), rolled)
    assert not verify_log(rolled, keyring=keyring).ok
    with recording(rolled, keyring):
        record(2)
    found = verify_log(rolled, keyring=keyring)
    assert "cut" in {each.kind for each in found.problems}


def forge_head(path: Path, log_id: str, head: chain.Head) -> None:
    """Write a head as one does who has no key."""
    log = log_id.encode()
    text = (
        b"tapeseal-audit-head v1 log=%s file=%010d sequence=%020d size=%020d mac=%s head-mac=%s\n"
    )
    numbers = head.file, head.sequence, head.size
    Path(head_path(path)).write_bytes(text % (log, *numbers, head.mac.hex().encode(), b"0" * 64))


@pytest.mark.parametrize("of", [3, 4])
@pytest.mark.parametrize("then", ["nothing", "other entries"])
def test_a_forged_head_of_a_log_of_several_files(
    rolled: Path, keyring: LocalKeyring, of: int, then: str
) -> None:
    """No head that somebody without the key makes hides a cut, not even one that says to be of the file before."""
    lines = rolled.read_bytes().splitlines(keepends=True)
    write_lines(rolled, lines[:2])
    header = chain.parse_header(lines[0])
    last = header.previous if of == 3 else header.mac
    assert last is not None
    forge_head(rolled, header.log_id.hex(), chain.Head(of, header.sequence, len(lines[0]), last))
    if then == "other entries":
        with recording(rolled, keyring):
            record(2)
    assert ["head"] == kinds(rolled, keyring)


def test_a_head_of_an_earlier_file(rolled: Path, keyring: LocalKeyring) -> None:
    """A head that was right two files ago is not that of a log that was cut since."""
    head = Path(head_path(rolled))
    raw = head.read_bytes()
    with recording(rolled, keyring) as log:
        log.roll()
        record(1)
        log.roll()
        record(1)
    head.write_bytes(raw)
    lines = rolled.read_bytes().splitlines(keepends=True)
    write_lines(rolled, lines[:1])
    assert ["head"] == kinds(rolled, keyring)
    with recording(rolled, keyring):
        record(1)
    assert ["head"] == kinds(rolled, keyring)


@pytest.mark.parametrize("then", ["nothing", "other entries"])
def test_a_head_by_the_key_of_an_earlier_file(
    path: Path, keyring: LocalKeyring, other_keyring: LocalKeyring, then: str
) -> None:
    """Who has only the key from before a roll to another one cannot hide that the new file was cut."""
    both = tapeseal.AnyOf([other_keyring, keyring])
    create_log(path, keyring=keyring)
    with recording(path, both) as log:
        record(3)
        log.roll(other_keyring)
        record(6)
    lines = path.read_bytes().splitlines(keepends=True)
    write_lines(path, lines[:4])
    old = chain.parse_header(Path(file_path(path, 1)).read_bytes().splitlines(keepends=True)[0])
    split = chain.split_line(lines[3][:-1])
    assert split is not None
    head = chain.Head(2, 7, path.stat().st_size, split[1])
    forged = chain.build_head(old.log_id, head, chain.unlock(old, keyring))
    Path(head_path(path)).write_bytes(forged)
    if then == "other entries":
        with recording(path, both):
            record(2)
    assert ["head"] == kinds(path, both)


# Anchors


class LocalSigner:
    """A signer whose key is here."""

    def __init__(self, algorithm: str = "ed25519") -> None:
        self.key = f"test:{algorithm}"
        self.algorithm = algorithm
        self._key: Any = (
            ed25519.Ed25519PrivateKey.generate()
            if algorithm == "ed25519"
            else ec.generate_private_key(ec.SECP256R1())
        )

    def sign(self, message: bytes) -> bytes:
        if self.algorithm == "ed25519":
            return self._key.sign(message)
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def public_key(self) -> bytes:
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


@pytest.fixture
def signer() -> LocalSigner:
    """A signer of anchors."""
    return LocalSigner()


def make_anchor(path: Path, keyring: LocalKeyring, signer: LocalSigner) -> LogAnchor:
    """Sign an anchor of a log as it is."""
    with AuditLog(path, keyring=keyring) as log:
        return log.anchor().signed(signer)


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256-sha256"])
def test_anchor_reads_back(
    path: Path, keyring: LocalKeyring, tmp_path: Path, algorithm: str
) -> None:
    """An anchor is one line that reads as it was; the public key alone checks it."""
    signer = LocalSigner(algorithm)
    make_log(path, keyring, 5)
    anchor = make_anchor(path, keyring, signer)
    append_to(tmp_path / "anchors")(anchor)
    append_to(tmp_path / "anchors")(anchor)
    assert [anchor] * 2 == list(
        read_anchors(tmp_path / "anchors", [LocalSigner().public_key(), signer.public_key()])
    )
    assert ("\n" not in str(anchor), 5, f"test:{algorithm}") == (True, anchor.sequence, anchor.key)
    assert {anchor.log_id: anchor} == newest([anchor])


def test_forged_anchors(
    path: Path, keyring: LocalKeyring, signer: LocalSigner, tmp_path: Path
) -> None:
    """Whatever is changed of an anchor is found by its signature, or is no anchor any more."""
    make_log(path, keyring, 5)
    text = str(make_anchor(path, keyring, signer))
    file = tmp_path / "anchors"
    for at in range(len(text)):
        changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        file.write_text(changed)
        with pytest.raises((ValueError, SignatureError)):
            list(read_anchors(file, [signer.public_key()]))
    file.write_text(text)
    with pytest.raises(SignatureError, match="not signed by a key that was given"):
        list(read_anchors(file, [LocalSigner().public_key()]))


def _weird(text: str) -> Iterator[bytes]:
    """Yield lines that read like an anchor and are none."""
    members = json.loads(text)
    for name, value in members.items():
        yield text.replace("{", f'{{"{name}":{json.dumps(value)},', 1).encode()
        for other in ("1" * 5000, "NaN", "1e999", "true", "null", "[]", '"\\ud800"', "-1", "1.0"):
            changed = text.replace(json.dumps(value), other, 1)
            yield changed.encode()
    yield text.replace('"key":', '"key":' + "[" * 10_000).encode()
    yield text.replace("{", '{"more":1,', 1).encode()
    yield text.replace(":", ": ").encode()
    yield b"\xef\xbb\xbf" + text.encode()
    yield text.encode("utf-16")
    yield text.encode() + b"\0"
    yield (text + text).encode()
    yield text.replace(members["mac"], members["mac"].upper()).encode()
    yield b"[" * (1 << 20)
    yield text[:-5].encode()


def test_what_is_no_anchor(
    path: Path, keyring: LocalKeyring, signer: LocalSigner, tmp_path: Path
) -> None:
    """An anchor has but one form: whatever else is in the place of one ends the reading, and its line is named."""
    make_log(path, keyring, 5)
    text = str(make_anchor(path, keyring, signer))
    file = tmp_path / "anchors"
    for line in _weird(text):
        file.write_bytes(f"{text}\n".encode() + line + b"\n")
        with pytest.raises((ValueError, SignatureError)) as refused:
            list(read_anchors(file, [signer.public_key()]))
        said = refused.value.args[0].removeprefix(f"{file}, line 2: ")
        assert said.startswith(("not an anchor of an audit log", "the anchor is not signed")), line
    file.write_bytes(f"{text}\r\n\n{text}".encode())
    assert 2 == len(list(read_anchors(file, [signer.public_key()])))


def test_no_anchors_at_all(tmp_path: Path, signer: LocalSigner) -> None:
    """A file without any anchor is not one by which a log passes."""
    file = tmp_path / "anchors"
    file.write_bytes(b"\n")
    with pytest.raises(ValueError, match="holds no anchor"):
        list(read_anchors(file, [signer.public_key()]))


def test_anchors_on_a_full_disk(
    path: Path, keyring: LocalKeyring, signer: LocalSigner, tmp_path: Path
) -> None:
    """An anchor for which there is no room leaves no piece, and one behind a piece stands on a line of its own."""
    make_log(path, keyring, 5)
    anchor = make_anchor(path, keyring, signer)
    file = tmp_path / "anchors"
    keep = append_to(file)
    keep(anchor)
    size = file.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            keep(anchor)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert size == file.stat().st_size
    keep(anchor)
    assert [anchor] * 2 == list(read_anchors(file, [signer.public_key()]))
    file.write_text("torn")
    keep(anchor)
    assert f"torn\n{anchor}\n" == file.read_text()


def test_anchors_of_another_log(
    path: Path, keyring: LocalKeyring, signer: LocalSigner, tmp_path: Path
) -> None:
    """An anchor of another log under the same keyring is none of this one, whatever entry it names."""
    make_log(path, keyring, 5)
    other = make_anchor(make_log(tmp_path / "other", keyring, 5), keyring, signer)
    mine = make_anchor(path, keyring, signer)
    replayed = replace(mine, log_id=other.log_id)
    append_to(tmp_path / "anchors")(replayed)
    with pytest.raises(SignatureError):
        list(read_anchors(tmp_path / "anchors", [signer.public_key()]))
    found = verify_log(path, keyring=keyring, anchors=[mine, other])
    assert (["anchor"], 1) == ([each.kind for each in found.problems], found.anchors)


def test_anchors_from_a_later_file_on(
    path: Path, keyring: LocalKeyring, signer: LocalSigner
) -> None:
    """Where earlier files are not read, an anchor of their end is met by what follows; others are not looked at."""
    create_log(path, keyring=keyring)
    with recording(path, keyring) as log:
        record(2)
        before = log.anchor().signed(signer)
        record(2)
        end = log.anchor().signed(signer)
        log.roll()
        start = log.anchor().signed(signer)
        record(2)
    found = verified(path, keyring, anchors=[before, end, start])
    assert 3 == found.anchors
    later = verify_log(path, keyring=keyring, anchors=[before, end, start], from_file=2)
    assert ([], [], 2) == (later.problems, later.notices, later.anchors)
    forged = replace(end, mac=bytes(32))
    assert ["anchor"] == kinds(path, keyring, anchors=[forged], from_file=2)
    none = verify_log(path, keyring=keyring, anchors=[before], from_file=2)
    assert ([], ["anchor"], 0) == (none.problems, [n.kind for n in none.notices], none.anchors)


def test_a_log_that_goes_on_meets_its_anchors(
    path: Path, keyring: LocalKeyring, signer: LocalSigner
) -> None:
    """Anchors of a log hold for it for ever, through changes of the file; one before the first entry too."""
    create_log(path, keyring=keyring)
    anchors = [make_anchor(path, keyring, signer)]
    with recording(path, keyring) as log:
        for _ in range(3):
            record(2)
            anchors.append(log.anchor().signed(signer))
            log.roll()
            anchors.append(log.anchor().signed(signer))
    found = verified(path, keyring, anchors=anchors)
    assert len(anchors) == found.anchors


@pytest.mark.parametrize("then", ["nothing", "other entries"])
def test_a_log_that_was_put_back(
    path: Path, keyring: LocalKeyring, signer: LocalSigner, then: str
) -> None:
    """A log put back together with its head verifies by itself, and does not meet a later anchor."""
    make_log(path, keyring, 5)
    saved = save(path)
    early = make_anchor(path, keyring, signer)
    with recording(path, keyring):
        record(5)
    late = make_anchor(path, keyring, signer)
    put_back(path, saved)
    if then == "other entries":
        with recording(path, keyring):
            record(20)
    assert [] == kinds(path, keyring)
    found = verify_log(path, keyring=keyring, anchors=[early, late])
    assert (["anchor"], 1) == ([each.kind for each in found.problems], found.anchors)


def test_a_log_that_was_replaced(path: Path, keyring: LocalKeyring, signer: LocalSigner) -> None:
    """A new log in the place of another does not meet the anchors of that one."""
    make_log(path, keyring, 5)
    anchor = make_anchor(path, keyring, signer)
    for each in list(path.parent.iterdir()):
        each.unlink()
    make_log(path, keyring, 9)
    found = verify_log(path, keyring=keyring, anchors=[anchor])
    assert ["anchor"] == [each.kind for each in found.problems]
    assert "is of another log" in found.problems[0].text


def test_a_holder_of_the_key_cannot_rewrite_what_was_anchored(
    path: Path, keyring: LocalKeyring, signer: LocalSigner
) -> None:
    """Who has the log's key can forge a chain that verifies; not one that meets an anchor."""
    make_log(path, keyring, 6)
    anchor = make_anchor(path, keyring, signer)
    lines = path.read_bytes().splitlines()
    header = chain.parse_header(lines[0] + b"\n")
    key = chain.unlock(header, keyring)
    mac, forged = header.mac, [lines[0] + b"\n"]
    for line in lines[1:]:
        body = line[: -chain.TAIL_SIZE].replace(b"binance", b"kraken_")
        mac = key.entry(mac, body)
        forged.append(chain.build_line(body, mac))
    write_lines(path, forged)
    head = chain.Head(1, 6, path.stat().st_size, mac)
    Path(head_path(path)).write_bytes(chain.build_head(header.log_id, head, key))
    assert [] == kinds(path, keyring)
    assert ["anchor"] == kinds(path, keyring, anchors=[anchor])


def test_a_schedule_of_anchors(
    path: Path, keyring: LocalKeyring, signer: LocalSigner, tmp_path: Path
) -> None:
    """An open log has anchors signed by itself, after so long or so many entries."""
    file = tmp_path / "anchors"
    schedule = AnchorSchedule(signer, append_to(file), seconds=0.05)
    with recording(path, keyring, anchors=schedule, sync_seconds=0.01):
        record(1)
        deadline = time.monotonic() + 10
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    found = verified(path, keyring, anchors=read_anchors(file, [signer.public_key()]))
    assert found.anchors >= 1


def test_a_signer_that_fails(path: Path, keyring: LocalKeyring, signer: LocalSigner) -> None:
    """An anchor that could not be signed is recorded as such, and holds nothing up."""

    def fail(anchor: LogAnchor) -> None:
        raise OSError("no space")

    schedule = AnchorSchedule(signer, fail, seconds=0.05)
    with recording(path, keyring, anchors=schedule, sync_seconds=0.01):
        record(1)
        deadline = time.monotonic() + 10
        while "audit.anchor" not in path.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
    failed = [each for each in entries(path) if each["action"] == "audit.anchor"]
    assert "OSError" == failed[0]["result"]


@pytest.mark.server
def test_anchors_by_transit(
    path: Path, keyring: LocalKeyring, bao: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    """An anchor signed by a key of a Transit engine is checked with its public half, without the server."""
    from tapeseal.signing import signer as signer_of

    mount = f"audit-{os.urandom(4).hex()}"
    bao.admin.sys.enable_secrets_engine("transit", path=mount)
    bao.admin.adapter.post(f"/v1/{mount}/keys/day", json={"type": "ecdsa-p256"})
    monkeypatch.setenv("VAULT_ADDR", bao.address)
    monkeypatch.setenv("VAULT_TOKEN", bao.token)
    signer = signer_of(f"vault-transit:{mount}/day")
    make_log(path, keyring, 5)
    with AuditLog(path, keyring=keyring) as log:
        anchor = LogAnchor.parse(str(log.anchor().signed(signer)))
    anchor.check(signer.public_key())
    assert 1 == verified(path, keyring, anchors=[anchor]).anchors


@pytest.mark.server
@pytest.mark.parametrize(
    "spec", ["ECC_NIST_P256", pytest.param("ECC_NIST_P384", marks=pytest.mark.slow), "RSA_2048"]
)
def test_anchors_by_kms(
    path: Path, keyring: LocalKeyring, kms: "KmsServer", monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    """A key of KMS signs on a schedule; its public half finds without KMS what came back, and no other key's does."""
    from servers.kms import make_clients_once
    from tapeseal.signing import signer as signer_of

    make_clients_once(monkeypatch)
    for name, value in kms.admin_user.items():
        monkeypatch.setenv(name, value)
    signer, other = (
        signer_of(
            f"aws-kms:{kms.make_key(KeySpec=spec, KeyUsage='SIGN_VERIFY')}"
            f"?endpoint_url={kms.address}&read_timeout=30"
        )
        for _ in range(2)
    )
    public, of_other = signer.public_key(), other.public_key()
    kept = path.parent / "anchors"
    make_log(path, keyring, 5)
    saved = save(path)
    schedule = AnchorSchedule(signer, append_to(kept), seconds=0.05)
    with recording(path, keyring, anchors=schedule, sync_seconds=0.01):
        record(7)
        deadline = time.monotonic() + 30
        while not kept.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    for name in kms.admin_user:
        monkeypatch.delenv(name)
    assert verified(path, keyring, anchors=read_anchors(kept, [of_other, public])).anchors >= 1
    with pytest.raises(
        SignatureError, match="not signed by a key that was given; it names aws-kms:"
    ):
        list(read_anchors(kept, [of_other]))
    put_back(path, saved)
    assert {"anchor"} == set(kinds(path, keyring, anchors=read_anchors(kept, [public])))


# Tapes


RECORDS = np.arange(60_000, dtype="<u8")


@pytest.fixture
def tapes(path: Path, keyring: LocalKeyring) -> Path:
    """A folder of three tapes that a log has the anchors of, and of one that it knows nothing of."""
    folder = path.parent / "tapes"
    folder.mkdir()
    with recording(path, keyring):
        for name in ("a", "b", "c"):
            with tapeseal.open(folder / f"{name}.tape", "x", keyring=keyring, dtype="<u8") as tape:
                tape.append(RECORDS)
    with tapeseal.open(folder / "z.tape", "x", keyring=keyring, dtype="<u8") as tape:
        tape.append(RECORDS)
    return folder


def states(path: Path, folder: Path, keyring: LocalKeyring, quick: bool) -> dict[str, str]:
    """Return what became of each tape by its name."""
    found = verified(path, keyring)
    checks = check_tapes(found.tapes, [folder], keyring=None if quick else keyring)
    return {Path(each.path).name.removesuffix(".tape"): each.state for each in checks}


WHOLE = {"a": "whole", "b": "whole", "c": "whole", "z": "unknown"}


@pytest.mark.parametrize("quick", [False, True])
def test_tapes_as_the_log_says(path: Path, keyring: LocalKeyring, tapes: Path, quick: bool) -> None:
    """Tapes that have all that the log says are whole; one that grew since is too."""
    assert states(path, tapes, keyring, quick) == WHOLE
    with tapeseal.open(tapes / "b.tape", "a", keyring=keyring) as tape:
        tape.append(RECORDS[:10])
    assert states(path, tapes, keyring, quick) == WHOLE


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("what", ["cut", "put back", "missing"])
def test_tapes_that_lost_something(
    path: Path, keyring: LocalKeyring, tapes: Path, what: str, quick: bool
) -> None:
    """A tape that was cut, put back to an earlier state or taken away is found, without its keys too."""
    tape = tapes / "b.tape"
    if what == "put back":
        before = tape.read_bytes()
        with recording(path, keyring), tapeseal.open(tape, "a", keyring=keyring) as writer:
            writer.append(RECORDS)
        assert states(path, tapes, keyring, quick) == WHOLE
        tape.write_bytes(before)
    elif what == "cut":
        data = tape.read_bytes()
        inspection = tapeseal.inspect(tape)
        with tape.open("r+b") as file:
            file.truncate(len(data) // 2)
        assert inspection.frames > tapeseal.inspect(tape).frames
    else:
        tape.unlink()
    state = "missing" if what == "missing" else "cut"
    assert states(path, tapes, keyring, quick) == {**WHOLE, "b": state}


def test_a_tape_that_was_unsealed_by_a_cut(path: Path, keyring: LocalKeyring, tapes: Path) -> None:
    """A tape that lost its index alone, and no frame, is found."""
    tape = tapes / "b.tape"
    with tape.open("r+b") as file:
        file.truncate(tape.stat().st_size - 16)
    assert "cut" == states(path, tapes, keyring, True)["b"]
    assert states(path, tapes, keyring, False)["b"] in ("cut", "damaged")


def test_a_tape_that_was_moved(path: Path, keyring: LocalKeyring, tapes: Path) -> None:
    """A tape is known by its identity: under another name it is the same, and one that is elsewhere is missing."""
    (tapes / "b.tape").rename(tapes / "renamed.tape")
    (tapes / "c.tape").rename(tapes.parent / "c.tape")
    found = verified(path, keyring)
    checks = list(check_tapes(found.tapes, [tapes]))
    assert {"renamed.tape": "whole", "c.tape": "missing"} == {
        Path(each.path).name: each.state
        for each in checks
        if Path(each.path).name in ("renamed.tape", "c.tape")
    }
    assert all(each.ok for each in check_tapes(found.tapes, [tapes, tapes.parent / "c.tape"]))


def test_a_folder_of_tapes_behind_a_link(path: Path, keyring: LocalKeyring, tapes: Path) -> None:
    """A link in the place of a folder hides no tape that is missing from there."""
    found = verified(path, keyring)
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "tapes").mkdir()
    archive = path.parent / "archive"
    archive.mkdir()
    tapes.rename(elsewhere / "taken")
    tapes.symlink_to(elsewhere / "tapes")
    for name in (path.parent / "tapes", f"{path.parent}/tap*/*.tape", f"{path.parent}/tapes/**"):
        assert ["missing"] * 3 == [each.state for each in check_tapes(found.tapes, [name])]
    assert [] == list(check_tapes(found.tapes, [archive, f"{path.parent}/*.tape"]))


@pytest.mark.parametrize("pattern", ["*.tape", "[a-c].tape", "../t*/?.tape", "../**/b.tape"])
def test_a_tape_that_a_pattern_does_not_find(
    path: Path, keyring: LocalKeyring, tapes: Path, pattern: str
) -> None:
    """A tape is missing by a pattern too, if that would find it where the log says that it was."""
    found = verified(path, keyring)
    (tapes / "b.tape").unlink()
    (tapes / ".hidden").mkdir()
    (tapes / "c.tape").rename(tapes / ".hidden" / "c.tape")
    checks = list(check_tapes(found.tapes, [str(tapes / pattern), tapes / ".hidden"]))
    assert ["b.tape"] == [Path(each.path).name for each in checks if each.state == "missing"]


def test_a_damaged_tape(path: Path, keyring: LocalKeyring, tapes: Path) -> None:
    """A tape whose frames were changed is damaged, which only its keys show; one without a header is always."""
    data = bytearray((tapes / "a.tape").read_bytes())
    data[-40_000] ^= 1
    (tapes / "a.tape").write_bytes(data)
    assert {"a": "damaged"} == {
        name: state
        for name, state in states(path, tapes, keyring, False).items()
        if state == "damaged"
    }
    for copy in (0, int.from_bytes(data[12:16], "little")):
        data[copy + 60] ^= 1
    (tapes / "a.tape").write_bytes(data)
    checks = check_tapes(verified(path, keyring).tapes, [tapes])
    assert ["damaged", "missing"] == [
        each.state for each in checks if each.path == str(tapes / "a.tape")
    ]


def test_sealed_files_and_recorders_are_known(
    path: Path, keyring: LocalKeyring, tmp_path: Path
) -> None:
    """Tapes that encrypt_file() and a Recorder seal are in the log too; a rewrap into a copy keeps them known."""
    source = tmp_path / "plain"
    source.write_bytes(b"x" * 100_000)
    folder = tmp_path / "tapes"
    folder.mkdir()
    with recording(path, keyring):
        tapeseal.encrypt_file(source, folder / "file.tape", keyring=keyring)
        with tapeseal.Recorder(
            folder / "r.tape", keyring=keyring, dtype="<u8", roll_size=100_000
        ) as recorder:
            for _ in range(4):
                recorder.append(RECORDS)
        tapeseal.rewrap(folder / "file.tape", keyring=keyring, to=keyring, copy=True)
    checks = list(check_tapes(verified(path, keyring).tapes, [folder], keyring=keyring))
    assert 5 == len(checks)
    assert {"whole"} == {each.state for each in checks}
