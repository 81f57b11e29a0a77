"""A short reader of tapes, written from docs/format.md alone; comments name its sections."""

import base64
import hmac
import json
import struct
import zlib
from contextlib import suppress
from hashlib import sha256
from itertools import groupby
from types import SimpleNamespace

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

NAMES = "magic version suite size id generation content recipients copies reserved crc mac"
# 3, 4, 5: in the last two, a reserved field is taken together with the number before it
HEADER, SEGMENT, FRAME = map(struct.Struct, ("<8sHHI16sQIIB11sI32s", "<IIQ32s", "<IIQQ"))


class Refused(ValueError):
    """The input is damaged, not a tape, in another context, or no key opens it."""


def need(condition, what, error=Refused):  # EOFError stands for a torn tail
    if not condition:
        raise error(what)


class Tape:
    def __init__(self, data, wrapping_keys, expected):  # 3.2, 3.3
        self.data, self.header = data, self.find_header(data)
        header, (content, entries) = self.header, map(json.loads, self.header.texts)
        kind, by, self.frame_size = content["kind"], content["index_by"], content["frame_size"]
        need(kind == "bytes" or (kind == "records" and header.copies == 2), "kind")
        dtype = np.lib.format.descr_to_dtype("|V1" if kind == "bytes" else content["dtype"])
        need(by is None or (type(by) is str and dtype[by].kind in "iufmM"), "index_by")
        self.item, self.bound = dtype.itemsize, 0 if by is None else dtype[by].itemsize
        need(expected.items() <= content["encryption_context"].items(), "encryption context")
        self.key = self.unwrap(entries, content["encryption_context"], wrapping_keys)
        mac = hmac.digest(self.expand(b"header", b"", 32), header.signed, "sha256")
        need(hmac.compare_digest(mac, header.mac), "MAC")
        self.segments, self.frames, self.parts = [[0, 0, sha256(header.texts[0]).digest()]], [], []
        self.whole = header.copies == 1 or data[2 * header.size :][-16:][8:] == b"TAPEEND\0"

    def header_at(self, data, at):  # 3.1
        fields = HEADER.unpack(data[at : at + 96].ljust(96, b"\0"))
        copy = SimpleNamespace(at=at, **dict(zip(NAMES.split(), fields, strict=True)))
        raw, middle = data[at : at + copy.size], 96 + copy.content
        end = middle + copy.recipients
        copy.texts, copy.is_tape = (raw[96:middle], raw[middle:end]), copy.magic == b"TAPESEAL"
        copy.signed, copy.padding, copy.end = raw[:60] + raw[96:end], raw[end:], end
        whole = copy.is_tape and 96 <= copy.size == len(raw) <= 2**21
        copy.readable = whole and zlib.crc32(raw[:60] + bytes(4) + raw[64:]) == copy.crc
        return copy

    def find_header(self, data):  # 3.1, 10.1
        copy = self.header_at(data, 0)
        if not copy.readable:
            copies = [self.header_at(data, at) for at in range(4096, 2**21 + 1, 4096)]
            copy = next((c for c in copies if c.is_tape and (c.copies, c.size) == (2, c.at)), copy)
        need(copy.readable, "no header copy")
        other = self.header_at(data, copy.size) if copy.copies == 2 else None
        for each in (copy, other) if other and other.readable else (copy,):
            fixed = each.version, each.suite, any(each.reserved + each.padding)
            need(fixed == (1, 1, False) and each.generation < 2**63, "version, suite, zeros")
            need(each.content <= 2**20 and each.recipients <= 2**20 - 4096, "size of a text")
            need(each.end <= each.size and each.copies in (1, 2), "texts do not fit, or copies")
            need(each.size % 4096 == 0 if each.copies == 2 else not each.padding, "copy_size")
            same = each.size, each.id, each.copies, each.texts[0]
            need(same == (copy.size, copy.id, copy.copies, copy.texts[0]), "copies that differ")
        need(len(data) >= copy.size * copy.copies, "no second copy")
        return copy

    def expand(self, label, rest, size):  # 2
        info = b"tapeseal/v1 " + label + b"\0\1\0" + self.header.id + rest
        return HKDFExpand(SHA512(), size, info).derive(self.key)

    def unwrap(self, entries, context, wrapping_keys):  # 2, 3.3
        parts = [part.encode() for pair in sorted(context.items()) for part in pair]
        encoded = b"".join(struct.pack("<I", len(part)) + part for part in parts)
        for entry in [each for each in entries if "wrapped" in each and "share" not in each]:
            if entry["provider"] == "local" and entry["key"] in wrapping_keys:
                with suppress(ValueError, InvalidTag):  # a later entry may open
                    raw, key = base64.b64decode(entry["wrapped"]), wrapping_keys[entry["key"]]
                    text = base64.b64encode(raw).decode()
                    need(text == entry["wrapped"] and len(raw) == 60, "wrapped")
                    return AESGCM(key).decrypt(raw[:12], raw[12:], b"tapeseal/v1 wrap\0" + encoded)
        raise Refused("no key, or none opens")

    def open_segment(self, at, kind):  # 4
        head, (_, frames, prev) = self.data[at : at + 112], self.segments[-1]
        need(head[:48] == SEGMENT.pack(kind, len(self.segments) - 1, frames, prev), "segment")
        key = self.expand(b"segment", head[:80], 64)
        need(hmac.compare_digest(key[32:], head[80:]), "commitment")
        return AESGCM(key[:32])

    def open_frame(self, at, cipher, number, first, item, kinds):  # 5, 6.1
        kind, count, stated, size = FRAME.unpack_from(self.data, at)
        allowed = kind in kinds and (count or kind == 3)
        need(allowed and count * item == size <= self.frame_size, "frame header")
        end, nonce = at + 24 + size + 16, struct.pack(">IQ", 0, number)
        need(end <= len(self.data), "cut frame", EOFError)
        need(stated == first, "first item")
        return kind, cipher.decrypt(nonce, self.data[at + 24 : end], self.data[at : at + 24]), end

    def open_to_final(self, at, cipher):  # 5, 6: the frames of a blob or an index
        text, kind, number = b"", 2, 0
        while kind != 3:
            need(len(self.data) - at >= 24 and any(self.data[at:]), "no final frame", EOFError)
            kind, part, at = self.open_frame(at, cipher, number, len(text), 1, (2, 3))
            text, number = text + part, number + 1
        return text, self.data[at:]

    def walk(self):  # 6.1
        at, cipher, items, kind = self.header.size * self.header.copies, None, 0, 1
        if self.header.copies == 1:
            *self.parts, rest = self.open_to_final(at + 112, self.open_segment(at, 1))
            return "open" if rest else "sealed"
        while at < len(self.data) and kind != 4:
            need(len(self.data) - at >= 24 and any(self.data[at:]), "tail", EOFError)
            kind, number = self.data[at], self.segments[-1][1]
            if kind == 2 and cipher:
                _, part, end = self.open_frame(at, cipher, number, items, self.item, (2,))
                count, self.segments[-1][1] = len(part) // self.item, number + 1
                self.frames.append((len(self.segments) - 2, count, number, items, at))
                self.parts, at, items = [*self.parts, part], end, items + count
                continue
            need(kind in (1, 4) and not any(self.data[at + 1 : at + 4]), "type of a block")
            need(len(self.data) - at >= 112, "cut segment header", EOFError)
            cipher = self.open_segment(at, kind)
            if kind == 1:
                self.segments.append([at, 0, self.data[at + 80 : at + 112]])
                at += 112
        if kind != 4:
            return "open"
        text, rest = self.open_to_final(at + 112, cipher)
        need(len(rest) >= 16 and any(rest), "no trailer", EOFError)
        runs = [list(run) for _, run in groupby(self.frames, key=lambda frame: frame[:2])]  # 6
        known = struct.pack("<IIQQ", len(self.segments) - 1, len(runs), len(self.frames), items)
        known += b"".join(struct.pack("<QQ32s", *segment) for segment in self.segments[1:])
        for run in runs:
            known += struct.pack("<IIQQQQQ", *run[0], len(run), run[0][1] * self.item + 40)
        need(rest == struct.pack("<Q8s", at, b"TAPEEND\0") and text.startswith(known), "index")
        need(len(text) == len(known) + 2 * self.bound * len(self.frames), "bounds")
        return "sealed"


def read(data, wrapping_keys, expected=()):  # checks few rules of the header's texts
    try:
        tape = Tape(data, wrapping_keys, dict(expected))
        state = tape.walk()
    except EOFError:
        state = "torn"
    except (AttributeError, InvalidTag, LookupError, RecursionError, TypeError, ValueError) as why:
        raise Refused(str(why)) from why
    need(state == "sealed" or not tape.whole, "what is not sealed and should be")
    return state, b"".join(tape.parts)
