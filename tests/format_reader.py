"""A second reader of tapes and blobs, written from docs/format.md alone, on `cryptography` and the standard library.

It is the proof that the page is complete. It takes the whole input into memory, and opens every frame. The texts of a
header are format_texts.py's.
"""

import base64
import contextlib
import hashlib
import hmac
import struct
import zlib
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from format_texts import Stop, encode, need, parse_content, parse_recipients


class Result(NamedTuple):
    """What came of an input."""

    outcome: str
    plain: bytes
    torn: int
    offset: int | None
    rotten: list[int]


HEADER = struct.Struct("<8sHHI16sQIIB11sI32s")


class Copy(NamedTuple):
    size: int
    tape_id: bytes
    copies: int
    content: bytes
    recipients: bytes
    signed: bytes
    mac: bytes


def stated_size(data: bytes, at: int) -> int:
    """The copy_size of the copy at an offset, 0 where none stands."""
    size = int.from_bytes(data[at + 12 : at + 16], "little")
    return (
        size
        if data[at : at + 8] == b"TAPESEAL" and 96 <= size <= min(2 << 20, len(data) - at)
        else 0
    )


def read_copy(data: bytes, at: int) -> Copy | None:
    """The copy at an offset, None where it is not readable."""
    raw = data[at : at + stated_size(data, at)]
    if not raw:
        return None
    _, version, suite, size, tape_id, generation, content, recipients, copies, zeros, crc, mac = (
        HEADER.unpack(raw[:96])
    )
    if zlib.crc32(raw[:60] + bytes(4) + raw[64:]) != crc:
        return None
    end = 96 + content + recipients
    need(version == 1, at + 8)
    need(suite == 1, at + 10)
    need(generation < 1 << 63, at + 32)
    need(content <= 1 << 20, at + 40)
    need(recipients <= (1 << 20) - 4096, at + 44)
    need(copies in (1, 2), at + 48)
    need(not any(zeros), at + 49)
    need(end <= size, at + 40)
    need(end == size if copies == 1 else size % 4096 == 0, at + 12)
    need(not any(raw[end:]), at + end)
    texts = raw[96 : 96 + content], raw[96 + content : end]
    return Copy(size, tape_id, copies, *texts, raw[:60] + raw[96:end], mac)


def unwrap(entries: list[dict[str, Any]], keys: dict[str, bytes], binding: bytes, at: int) -> bytes:
    """The data key, from the first entry that opens."""
    ours = [entry for entry in entries if entry["provider"] == "local" and entry["key"] in keys]
    ours = [entry for entry in ours if "wrapped" in entry and "share" not in entry]
    need(ours, None, "key")
    for entry in ours:
        with contextlib.suppress(ValueError, InvalidTag):
            wrapped = base64.b64decode(entry["wrapped"], validate=True)
            if len(wrapped) == 60 and base64.b64encode(wrapped).decode() == entry["wrapped"]:
                return AESGCM(keys[entry["key"]]).decrypt(wrapped[:12], wrapped[12:], binding)
    raise Stop(at)


class Reader:
    """Reads one input, with the wrapping keys of the provider `local` by their ids."""

    def __init__(self, data: bytes) -> None:
        self.data, self.end = data, len(data)
        self.rotten: list[int] = []
        self.plain = bytearray()

    def read(self, keys: dict[str, bytes], expect: dict[str, str]) -> Result:
        torn, offset = 0, None
        try:
            self.read_header(keys, expect)
            outcome, torn = self.read_blob() if self.copies == 1 else self.read_file()
        except Stop as stop:
            outcome, offset = stop.outcome, stop.offset
        return Result(outcome, bytes(self.plain), torn, offset, self.rotten)

    def read_header(self, keys: dict[str, bytes], expect: dict[str, str]) -> None:
        data = self.data
        at, copy = 0, read_copy(data, 0)
        if copy is None:
            starts = range(4096, min(2 << 20, self.end - 96) + 1, 4096)
            named = (at for at in starts if data[at : at + 8] == b"TAPESEAL" and data[at + 48] == 2)
            at = next(
                (at for at in named if int.from_bytes(data[at + 12 : at + 16], "little") == at), 0
            )
            need(at or data[:8] == b"TAPESEAL", None, "not-a-tape")
            copy = read_copy(data, at) if at else None
            self.rotten.append(0)
            if copy is None:
                self.rotten.clear()
                raise Stop(0)
        content_at = at + 96
        kind, self.frame_size, self.item_size, self.bound_size, context = parse_content(
            copy.content, content_at
        )
        entries = parse_recipients(copy.recipients, content_at + len(copy.content))
        need(kind != ("records" if copy.copies == 1 else "rows"), content_at)
        self.copies, self.tape_id, self.body = copy.copies, copy.tape_id, copy.copies * copy.size
        need(self.end >= self.body, self.end)
        if copy.copies == 2 and at == 0:
            second = read_copy(data, copy.size)
            if second is None:
                self.rotten.append(copy.size)
            else:
                lasting = [(c.size, c.tape_id, c.copies, c.content) for c in (copy, second)]
                need(lasting[0] == lasting[1], copy.size)
        need(all(context.get(name) == value for name, value in expect.items()), None, "context")
        self.data_key = unwrap(entries, keys, b"tapeseal/v1 wrap\0" + encode(context), at)
        mac = hmac.digest(self.expand("header", self.tape_id, 32), copy.signed, "sha256")
        need(hmac.compare_digest(mac, copy.mac), at)
        self.first_prev = hashlib.sha256(copy.content).digest()

    def expand(self, label: str, rest: bytes, size: int) -> bytes:
        info = f"tapeseal/v1 {label}\0".encode() + b"\1\0" + rest
        return HKDFExpand(SHA512(), size, info).derive(self.data_key)

    def derive(self, at: int) -> tuple[bytes, bytes]:
        """Key and commitment of the segment at an offset."""
        header = self.data[at : at + 112]
        derived = self.expand("segment", self.tape_id + header[:80], 64)
        need(hmac.compare_digest(derived[32:], header[80:]), at)
        return derived[:32], derived[32:]

    def segment(self, at: int, types: bytes, *before: Any) -> tuple[bytes, bytes]:
        """The same, once type, reserved bytes and what stood before it were compared."""
        type, zeros, *found = struct.unpack("<B3sIQ32s", self.data[at : at + 48])
        need(type in types and zeros == bytes(3) and found == list(before), at)
        return self.derive(at)

    def frame(
        self, at: int, end: int, types: bytes, item_size: int, key: bytes, number: int, first: int
    ) -> tuple[int, bytes, int] | None:
        """Type, plaintext and end of the frame at an offset, None where it goes past `end`."""
        header = self.data[at : at + 24]
        type, zeros, count, place, size, more = struct.unpack("<B3sIQI4s", header)
        need(type in types and zeros + more == bytes(7) and size == count * item_size, at)
        need(size <= self.frame_size and (count or type == 3), at)
        stop = at + 40 + size
        if stop > end:
            return None
        need(place == first, at)
        try:
            nonce = struct.pack(">IQ", 0, number)
            return type, AESGCM(key).decrypt(nonce, self.data[at + 24 : stop], header), stop
        except InvalidTag:
            raise Stop(at) from None

    def text(self, at: int, end: int, key: bytes) -> tuple[bytes, int, bool]:
        """What the frames up to a final one hold, where they end, and whether the final one was there."""
        text, number = b"", 0
        while end - at >= 24 and any(self.data[at:end]):
            frame = self.frame(at, end, b"\2\3", 1, key, number, len(text))
            if frame is None:
                break
            type, plain, at = frame
            text, number = text + plain, number + 1
            if type == 3:
                return text, at, True
        return text, at, False

    def read_blob(self) -> tuple[str, int]:
        need(self.end >= self.body + 112, self.body)
        key, _ = self.segment(self.body, b"\1", 0, 0, self.first_prev)
        plain, stop, final = self.text(self.body + 112, self.end, key)
        need(final and stop == self.end, stop)
        self.plain += plain
        return "sealed", 0

    def read_file(self) -> tuple[str, int]:
        if self.end < self.body + 16 or self.data[-8:] != b"TAPEEND\0":
            return self.walk()
        try:
            segments, runs = self.load_index(int.from_bytes(self.data[-16:-8], "little"))
        except Stop:
            with contextlib.suppress(Stop):
                self.walk()
            raise
        before = [0, self.first_prev]
        for number, (at, frames, commitment) in enumerate(segments):
            key, derived = self.segment(at, b"\1", number, *before)
            need(derived == commitment, at)
            before = [frames, commitment]
            for _, count, place, first, start, many, step in (
                run for run in runs if run[0] == number
            ):
                for i in range(many):
                    at = start + i * step
                    frame = self.frame(
                        at, at + step, b"\2", self.item_size, key, place + i, first + i * count
                    )
                    need(frame is not None and frame[2] == at + step, at)
                    self.plain += frame[1]
        return "sealed", 0

    def load_index(self, index: int) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """The entries of segments and runs."""
        end = self.end - 16
        need(self.body <= index <= end - 112, end)
        need(self.data[index : index + 4] == b"\4\0\0\0", index)
        text, stop, final = self.text(index + 112, end, self.derive(index)[0])
        need(final and stop == end, stop)
        need(len(text) >= 24, index)
        segment_count, run_count, total_frames, total_items = struct.unpack("<IIQQ", text[:24])
        runs_at = 24 + 48 * segment_count
        bounds_at = runs_at + 48 * run_count
        need(len(text) == bounds_at + 2 * self.bound_size * total_frames, index)
        segments = list(struct.iter_unpack("<QQ32s", text[24:runs_at]))
        runs = list(struct.iter_unpack("<IIQQQQQ", text[runs_at:bounds_at]))
        at, item, all_frames, left = self.body, 0, 0, runs
        for number, (offset, frames, _) in enumerate(segments):
            need(offset == at and frames <= 1 << 32, index)
            at, frame, last = at + 112, 0, 0
            while left and left[0][0] == number:
                (_, count, *place, many, step), left = left[0], left[1:]
                size = count * self.item_size
                need(many and count not in (0, last) and size <= self.frame_size, index)
                need(step == size + 40 and place == [frame, item, at], index)
                at, item, frame, last = at + many * step, item + many * count, frame + many, count
            need(frame == frames, index)
            all_frames += frames
        need(not left and (at, all_frames, item) == (index, total_frames, total_items), index)
        before = segments[-1][1:] if segments else (0, self.first_prev)
        self.segment(index, b"\4", len(segments), *before)
        return segments, runs

    def walk(self) -> tuple[str, int]:
        data, end, at = self.data, self.end, self.body
        number, frames, prev, key = 0, 0, self.first_prev, b""
        while end - at >= 24:
            if data[at] == 2 and number:
                items = len(self.plain) // self.item_size
                frame = self.frame(at, end, b"\2", self.item_size, key, frames, items)
                if frame is None:
                    break
                _, plain, at = frame
                self.plain += plain
                frames += 1
            elif data[at] in (1, 4):
                need(not any(data[at + 1 : at + 4]), at)
                if end - at < 112:
                    break
                key, prev = self.segment(at, b"\1\4", number, frames, prev)
                if data[at] == 4:
                    _, stop, final = self.text(at + 112, end, key)
                    if final and end - stop >= 16 and any(data[stop:]):
                        # A trailer at the end of the file was dealt with in read_file().
                        raise Stop(
                            stop + 16 * data.startswith(struct.pack("<Q8s", at, b"TAPEEND\0"), stop)
                        )
                    break
                number, frames, at = number + 1, 0, at + 112
            else:
                need(not any(data[at:]), at)
                break
        return ("torn" if end > at else "open"), end - at
