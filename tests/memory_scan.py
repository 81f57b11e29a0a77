"""Looks for keys in the memory of another process, and in its core dump.

A key is looked for in pieces of at least 16 bytes, so that half a copy counts too: as it is, in base64, in
hexadecimal, and as the round keys that AES-256 expands it to. Needs Linux.
"""

import base64
import os
import re
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from support import TESTS

_PIECE = 1 << 20
_MOST = 64  # bytes of the longest needle


class Hit(NamedTuple):
    """A form of a key, and whether its pages are locked and left out of core dumps."""

    key: str
    form: str
    protected: bool


def _sbox() -> bytes:
    """Return the S-box of FIPS 197, 5.1.1: the inverse in GF(2^8), then an affine map."""
    exponents, logarithms = [0] * 255, [0] * 256
    element = 1
    for power in range(255):
        exponents[power], logarithms[element] = element, power
        element ^= (element << 1) ^ (0x11B if element & 0x80 else 0)  # times 3, a generator
    box = bytearray()
    for value in range(256):
        inverse = exponents[-logarithms[value] % 255] if value else 0
        turned = inverse * 0x101  # so that a shift is a rotation
        box.append((inverse ^ turned >> 4 ^ turned >> 5 ^ turned >> 6 ^ turned >> 7 ^ 0x63) & 255)
    return bytes(box)


_SBOX = _sbox()


def round_keys(key: bytes) -> list[bytes]:
    """Return the 15 round keys of AES-256, 16 bytes each (FIPS 197, 5.2); the first two are the key itself."""
    words = [key[at : at + 4] for at in range(0, 32, 4)]
    for number in range(8, 60):
        word = words[-1]
        if number % 8 == 0:
            word = (word[1:] + word[:1]).translate(_SBOX)
            word = bytes([word[0] ^ 1 << (number // 8 - 1)]) + word[1:]
        elif number % 8 == 4:
            word = word.translate(_SBOX)
        words.append(bytes(a ^ b for a, b in zip(words[-8], word, strict=True)))
    return [b"".join(words[at : at + 4]) for at in range(0, 60, 4)]


def forms(key: bytes) -> dict[str, list[bytes]]:
    """Return the needles that show each form of a key; any one of them shows it."""
    schedule = round_keys(key)[2:]
    text = base64.b64encode(key)
    digits = key.hex().encode()
    return {
        "raw": [key[:16], key[16:]],
        "base64": [text[:20], text[20:40], base64.urlsafe_b64encode(key)[:40]],
        "hex": [digits[:32], digits[32:], digits[:32].upper(), digits[32:].upper()],
        # Code without instructions for AES keeps its words in the byte order of the machine.
        "schedule": schedule
        + [np.frombuffer(each, ">u4").astype("<u4").tobytes() for each in schedule],
    }


class Scanner:
    """Looks for keys by their names; all of them in one pass over the memory."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._needles: dict[bytes, set[tuple[str, str]]] = {}
        for name, key in keys.items():
            for form, needles in forms(key).items():
                for needle in needles:
                    self._needles.setdefault(needle, set()).add((name, form))
        self._by_start: dict[int, list[bytes]] = {}
        self._starts_with = np.zeros(1 << 16, bool)
        for needle in self._needles:
            self._by_start.setdefault(int.from_bytes(needle[:8], "little"), []).append(needle)
            self._starts_with[int.from_bytes(needle[:2], "little")] = True
        self._starts = np.array(sorted(self._by_start), np.uint64)

    def process(self, pid: int) -> set[Hit]:
        """Return what stands in the memory of a process; the test is skipped where that may not be read."""
        found = set()
        try:
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                for start, stop, protected in _regions(pid):
                    for at in range(start, stop, _PIECE):
                        memory.seek(at)
                        try:
                            piece = memory.read(min(_PIECE + _MOST, stop - at))
                        except OSError:  # a page of a file that is shorter by now
                            continue
                        for needle in self._find(np.frombuffer(piece, np.uint8)):
                            found.add((needle, protected))
        except PermissionError:
            pytest.skip("the memory of another process may not be read here")
        return self._hits(found)

    def core(self, pid: int, directory: Path, *, registers: bool = True) -> set[Hit]:
        """Return what stands in a core dump of a process, made by gcore in a directory and deleted again.

        The test is skipped where gcore is missing or may not look at the process.

        Args:
            pid: the process.
            directory: where the dump goes, some 100 MB.
            registers: whether to look at the registers too, which a dump holds beside the memory.
        """
        program = shutil.which("gcore")
        if program is None:
            pytest.skip("gcore, of the package gdb, is not installed")
        done = subprocess.run(
            [program, "-o", str(directory / "core"), str(pid)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        path = directory / f"core.{pid}"
        found = set()
        try:
            if done.returncode != 0 or not path.exists():
                pytest.skip(f"gcore made none: {done.stderr.strip()[-300:]}")
            content = np.fromfile(path, np.uint8)
        finally:
            path.unlink(missing_ok=True)
        if not registers:
            for start, size in _notes(content):
                content[start : start + size] = 0
        for at in range(0, len(content), _PIECE):
            for needle in self._find(content[at : at + _PIECE + _MOST]):
                found.add((needle, False))
        return self._hits(found)

    def _find(self, piece: NDArray[np.uint8]) -> Iterator[bytes]:
        """Yield the needles that start in the first _PIECE bytes of a piece, once for each time."""
        for offset in (0, 1):
            pairs = piece[offset : offset + (len(piece) - offset) // 2 * 2].view("<u2")
            at = np.flatnonzero(self._starts_with[pairs]) * 2 + offset
            at = at[(at <= len(piece) - 16) & (at < _PIECE)]
            if not len(at):
                continue
            windows = np.lib.stride_tricks.sliding_window_view(piece, 8)[at]
            starts = np.ascontiguousarray(windows).view("<u8").ravel()
            known = np.isin(starts, self._starts)
            for position, start in zip(at[known].tolist(), starts[known].tolist(), strict=True):
                for needle in self._by_start[start]:
                    if piece[position : position + len(needle)].tobytes() == needle:
                        yield needle

    def _hits(self, found: set[tuple[bytes, bool]]) -> set[Hit]:
        return {
            Hit(name, form, protected)
            for needle, protected in found
            for name, form in self._needles[needle]
        }


def _regions(pid: int) -> list[tuple[int, int, bool]]:
    """Return where the readable memory of a process is, and whether it is locked and not dumped."""
    found = []
    region = None
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if header := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)", line):
            start, stop, access, name = header.groups()
            readable = "r" in access and not name.startswith(("[vvar", "[vsyscall"))
            region = (int(start, 16), int(stop, 16)) if readable else None
        elif line.startswith("VmFlags:") and region is not None:
            found.append((*region, {"lo", "dd"} <= set(line.split())))
    return found


def _notes(core: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return where the notes of a 64-bit core dump are, which hold the registers, and their sizes."""
    (table,) = struct.unpack_from("<Q", core, 32)
    size, count = struct.unpack_from("<HH", core, 54)
    found = []
    for at in range(table, table + count * size, size):
        kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", core, at)
        if kind == 4:
            found.append((start, length))
    return found


# Before each program: says where it is, and waits to be told to go on.
_STAGES = """
import ctypes, gc, sys, threading
from pathlib import Path

# So that a debugger may look which did not start this process, where the system asks for that.
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(2**64 - 1), 0, 0, 0)

def stage(name):
    print(name, flush=True)
    sys.stdin.readline()
"""


class Child:
    """A program of ours that stops where it is looked at."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.pid = process.pid

    def write(self, data: bytes) -> None:
        """Send the program bytes on its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    def wait_for(self, stage: str) -> None:
        """Wait until the program says that it is there."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline().decode() == f"{stage}\n"

    def go_on_to(self, stage: str) -> None:
        """Let the program go on, to its next stage."""
        self.write(b"\n")
        self.wait_for(stage)


@contextmanager
def child(program: str, *arguments: object, **variables: str) -> Iterator[Child]:
    """Run a program that calls stage(name) where it is to be looked at; it ends well if the block does."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
    process = subprocess.Popen(
        [sys.executable, "-c", _STAGES + textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, **variables, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    with process:
        try:
            yield (looked_at := Child(process))
            looked_at.write(b"\n")
            assert process.wait(60) == 0
        finally:
            process.kill()
