"""What several test modules share: records, child processes, the blocks of a tape, a count of nonces."""

import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tapeseal import writer

TESTS = Path(__file__).parent
_PACKAGE = Path(writer.__file__).parent
SHARED = TESTS.parents[1] / "shared"

TICK = np.dtype([("number", "<u8"), ("price", "<f8")])
"""Records of 16 bytes: 256 of them fill a frame of 4096 bytes."""

ORDER = np.dtype(
    [
        ("length", "u1"),
        ("rtype", "u1"),
        ("publisher_id", "<u2"),
        ("instrument_id", "<u4"),
        ("ts_event", "<u8"),
        ("order_id", "<u8"),
        ("price", "<i8"),
        ("size", "<u4"),
        ("flags", "u1"),
        ("channel_id", "u1"),
        ("action", "S1"),
        ("side", "S1"),
        ("ts_recv", "<u8"),
        ("ts_in_delta", "<i4"),
        ("sequence", "<u4"),
    ]
)
"""Market-by-order records of 56 bytes."""


def ticks(start: int, stop: int) -> np.ndarray:
    """Return the records number start to stop (not included) of one stream."""
    records = np.zeros(stop - start, TICK)
    records["number"] = np.arange(start, stop)
    records["price"] = records["number"] * 0.25
    return records


def orders(start: int, stop: int) -> np.ndarray:
    """Return the records number start to stop (not included) of a made-up order flow."""
    number = np.arange(start, stop, dtype=np.uint64)
    records = np.zeros(stop - start, ORDER)
    records["length"], records["rtype"], records["publisher_id"] = 14, 160, 1
    records["ts_event"] = 1_703_422_805_243_925_307 + number * 1000
    records["order_id"] = number * np.uint64(0x9E3779B97F4A7C15)
    records["price"] = 4_799_000_000_000 + (number % 97).astype(np.int64) * 250_000_000
    records["size"], records["sequence"] = number % 50 + 1, number % (1 << 32)
    records["action"], records["side"] = b"A", b"B"
    return records


def order_stream() -> np.ndarray:
    """Return the real order records where they are at hand, made-up ones otherwise."""
    path = SHARED / "data" / "esh4-20231225-mbo.npy"
    return np.load(path, mmap_mode="r") if path.exists() else orders(0, 68_792)


def _command(code: str, arguments: Iterable[object], flags: Iterable[str] = ()) -> dict[str, Any]:
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
    return {
        "args": [sys.executable, *flags, "-c", textwrap.dedent(code), *map(str, arguments)],
        "env": {**os.environ, "PYTHONPATH": path},
        "text": True,
    }


def child(
    code: str, *arguments: object, flags: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program text in a Python of its own; tests/ is on its path."""
    return subprocess.run(
        **_command(code, arguments, flags), capture_output=True, timeout=300, check=False
    )


def start_child(code: str, *arguments: object, stdin: int | None = None) -> subprocess.Popen[str]:
    """Start what child() runs, its standard output in a pipe."""
    return subprocess.Popen(**_command(code, arguments), stdin=stdin, stdout=subprocess.PIPE)


class NonceLog:
    """The (commitment, frame) pairs that writers sealed under; a second use of one is an error."""

    def __init__(self) -> None:
        self.used: set[tuple[bytes, int]] = set()
        self.reused: list[tuple[bytes, int]] = []

    def __call__(self, commitment: bytes, first: int, frames: int) -> None:
        """Note the frames first to first + frames of a segment."""
        for index in range(first, first + frames):
            if (commitment, index) in self.used:
                self.reused.append((commitment, index))
            self.used.add((commitment, index))


@contextmanager
def nonce_log() -> Iterator[NonceLog]:
    """Count the nonces of all writers of this process."""
    log = NonceLog()
    before, writer.seal_hook = writer.seal_hook, log
    try:
        yield log
    finally:
        writer.seal_hook = before
    assert log.reused == []


class Block(NamedTuple):
    """A piece of a tape's file: a header copy, segment header, frame, index (with its frames) or trailer."""

    kind: str
    start: int
    stop: int


def blocks(data: bytes) -> list[Block]:
    """Cut a whole tape at its block boundaries, by its plain headers alone."""
    copy_size = int.from_bytes(data[12:16], "little")
    found = [Block("copy", 0, copy_size), Block("copy", copy_size, 2 * copy_size)]
    at = 2 * copy_size
    while at < len(data):
        kind = data[at]
        if kind == 1:
            block = Block("segment", at, at + 112)
        elif kind in (2, 3):
            block = Block("frame", at, at + 40 + int.from_bytes(data[at + 16 : at + 20], "little"))
        elif kind == 4:
            block = Block("index", at, len(data) - 16)
        else:
            block = Block("trailer", at, len(data))
        found.append(block)
        at = block.stop
    assert at == len(data)
    return found


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return ""


def leaks(error: BaseException | None, secrets: Iterable[str]) -> set[str]:
    """Return which secrets an error, its causes or a frame of ours in its traceback shows."""
    found: set[str] = set()
    seen: set[int] = set()
    pending = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        pending += [each.__cause__, each.__context__]
        shown = [str(each), repr(each), repr(each.args), repr(vars(each))]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
                shown += map(_safe_repr, frame.f_locals.values())
                for value in frame.f_locals.values():
                    shown += map(_safe_repr, getattr(value, "__dict__", {}).values())
        found |= {secret for secret in secrets for text in shown if secret in text}
    return found
