"""tapeseal demo."""

import contextlib
import errno
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

import tapeseal
from tapeseal import header
from tapeseal.cli import demo_writer, options, output
from tapeseal.cli.keys import key_uri
from tapeseal.cli.orderflow import MBO, SESSION_SECONDS, SESSION_START, generate
from tapeseal.keyrings import local

_SEED = 20261124
_MIDDAY = SESSION_START + SESSION_SECONDS * 500_000_000
_MINUTE = 60_000_000_000
_NAME_WIDTH = 11
_COLOURS = {"kill -9": "not dim red", "forger": "not dim red", "verified": "not dim green"}


@dataclass
class _Timing:
    """What one part of the demo took."""

    what: str
    records: int
    bytes: int
    seconds: float


@click.command()
@click.option(
    "--records",
    "count",
    metavar="N",
    type=click.IntRange(100_000, 100_000_000),
    default=4_000_000,
    show_default=True,
    help="Orders to record, 56 bytes each; needs about 120 bytes of disk and of memory for each.",
)
@click.option(
    "--directory", metavar="DIR", type=click.Path(), help="Work in DIR, and leave the files there."
)
@click.option("--keep", is_flag=True, help="Leave the files of the temporary directory there.")
@options.as_json
def demo(count: int, directory: str | None, keep: bool, as_json: bool) -> None:
    """Show the main job on made-up order flow: record, be killed, resume, slice, rotate, verify.

    Needs nothing: no server, no account, no key. Everything happens in a temporary directory
    that is removed in the end.
    """
    console = Console(highlight=False, quiet=as_json)
    with _working_directory(directory, keep) as place:
        report = _Demo(console, place, count).run()
        kept = str(place) if keep or directory is not None else None
        if as_json:
            output.as_json({**report, "directory": kept})
        else:
            _show_next(console, kept)


@contextlib.contextmanager
def _working_directory(directory: str | None, keep: bool) -> Iterator[Path]:
    if directory is not None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        yield Path(directory)
        return
    place = Path(tempfile.mkdtemp(prefix="tapeseal-demo-"))
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place)


class _Demo:
    def __init__(self, console: Console, place: Path, count: int) -> None:
        self._console = console
        self._count = count
        self._tape = place / "orders.tape"
        self._key_file = place / "orders.key"
        self._timings: list[_Timing] = []

    def run(self) -> dict[str, Any]:
        """Run all parts and return what they found."""
        self._console.print(
            Rule(
                f"[bold]tapeseal[/] {version('tapeseal')} · {tapeseal.openssl_version()} · "
                f"{os.cpu_count()} CPUs",
                style="dim",
            )
        )
        report: dict[str, Any] = {
            "tapeseal": version("tapeseal"),
            "openssl": tapeseal.openssl_version(),
            "records": self._count,
            "record_size": MBO.itemsize,
            "seed": _SEED,
        }
        # Under this name nobody else has the feed, and it is gone with the process.
        with tempfile.TemporaryFile(dir=self._tape.parent) as feed_file:
            report["key"] = self._make_key()
            feed = self._make_feed(feed_file)
            report["crash"] = self._record_and_kill(feed, feed_file)
            report["resume"] = anchor = self._resume(feed, feed_file)
            report["slice"] = self._slice(feed)
        report["rotation"] = self._rotate()
        report["forgery"] = self._forge()
        report["verification"] = self._verify(tapeseal.Anchor.parse(anchor["anchor"]))
        report["timings"] = [asdict(timing) for timing in self._timings]
        self._show_timings()
        return report

    def _head(self, number: int, title: str) -> None:
        self._console.print()
        self._console.print(Text.assemble((f" {number} ", "reverse cyan"), " ", (title, "bold")))

    def _facts(self, *facts: tuple[str, str]) -> None:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", min_width=_NAME_WIDTH)
        grid.add_column(overflow="fold")
        for name, text in facts:
            grid.add_row(Text(name, _COLOURS.get(name, "")), Text(text))
        self._console.print(Padding(grid, (0, 0, 0, 4), expand=False))

    def _keyring(self) -> tapeseal.LocalKeyring:
        return tapeseal.LocalKeyring(self._key_file)

    def _make_key(self) -> str:
        self._head(1, "Make a key")
        key_id = local.create_key_file(self._key_file)
        mode = self._key_file.stat().st_mode & 0o777
        self._facts(("key file", f"{self._key_file.name}, mode {mode:04o}, holds key {key_id}"))
        return key_id

    def _make_feed(self, file: IO[bytes]) -> np.ndarray[Any, np.dtype[Any]]:
        with self._console.status(f"making up {self._count:,} orders"):
            start = time.perf_counter()
            records = generate(_SEED, self._count)
            seconds = time.perf_counter() - start
            file.write(records.view(np.uint8).data)
            file.flush()
        self._head(2, "Record, and be killed")
        kinds = ", ".join(
            f"{share:.0%} {name}"
            for name, share in (
                (name, float(np.mean(records["action"] == action)))
                for name, action in (
                    ("add", b"A"),
                    ("cancel", b"C"),
                    ("modify", b"M"),
                    ("trade", b"T"),
                    ("fill", b"F"),
                )
            )
        )
        instruments = len(np.unique(records["instrument_id"]))
        self._facts(
            (
                "feed",
                f"{output.counted(self._count, 'records')} of {MBO.itemsize} bytes, made up in "
                f"{output.duration(seconds)}: {instruments} instruments, {SESSION_SECONDS / 3600:g} hours; {kinds}",
            )
        )
        return np.memmap(file, MBO, mode="r")

    @contextlib.contextmanager
    def _writer(self, feed_file: IO[bytes], until: int) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                demo_writer.__name__,
                str(self._tape),
                str(self._key_file),
                str(feed_file.fileno()),
                str(until),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[feed_file.fileno()],
            text=True,
        )
        with process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise

    def _record_and_kill(
        self, feed: np.ndarray[Any, np.dtype[Any]], feed_file: IO[bytes]
    ) -> dict[str, Any]:
        if self._tape.exists():
            raise FileExistsError(errno.EEXIST, "the file exists", str(self._tape))
        line = ""
        with self._writer(feed_file, self._count * 3 // 4) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line.split()[0]) >= self._count // 2:
                    break
            time.sleep(0.0007)  # Into the midst of its work, not right after a flush.
            process.send_signal(signal.SIGKILL)
            # What it still said before it died counts too.
            line = [line, *process.stdout][-1]
        if process.returncode != -signal.SIGKILL or not line:
            raise ChildProcessError(f"the recording process ended by itself: {process.returncode}")
        flushed, seconds = int(line.split()[0]), float(line.split()[1])
        with tapeseal.open(self._tape, keyring=self._keyring()) as tape:
            found, sealed, torn_bytes = len(tape), tape.sealed, tape.torn_bytes
            equal = _same(tape, feed)
        _must(equal and found >= flushed, "every flushed record is there")
        self._timings.append(_Timing("append and flush", flushed, flushed * MBO.itemsize, seconds))
        self._facts(
            (
                "writer",
                f"a process of its own: appends {demo_writer.BATCH_RECORDS:,} records at a time, flushes "
                f"after each {demo_writer.BATCH_RECORDS * demo_writer.BATCHES_A_FLUSH:,}",
            ),
            ("kill -9", f"after flush() had returned for {flushed:,} records"),
            (
                "in the tape",
                f"those and {found - flushed:,} more, each authentic and equal to the feed's; the tape "
                f"is {'sealed' if sealed else 'open'}, {output.counted(torn_bytes, 'bytes')} torn",
            ),
        )
        return {
            "flushed": flushed,
            "found": found,
            "equal": equal,
            "torn_bytes": torn_bytes,
            "seconds": seconds,
        }

    def _resume(self, feed: np.ndarray[Any, np.dtype[Any]], feed_file: IO[bytes]) -> dict[str, Any]:
        with tapeseal.open(self._tape, keyring=self._keyring()) as tape:
            before = len(tape)
        with self._writer(feed_file, self._count) as process:
            assert process.stdout is not None
            lines = process.stdout.readlines()
        if process.returncode != 0:
            raise ChildProcessError(f"the recording process failed: {process.returncode}")
        items, seconds, close_seconds, anchor = lines[-1].split()
        added = int(items) - before
        first = self._timings[-1]
        self._timings[-1] = _Timing(
            first.what,
            first.records + added,
            first.bytes + added * MBO.itemsize,
            first.seconds + float(seconds),
        )
        size = self._tape.stat().st_size
        self._timings.append(_Timing("seal and fsync", 0, size, float(close_seconds)))
        start = time.perf_counter()
        with tapeseal.open(self._tape, keyring=self._keyring()) as tape:
            for _ in tape.batches(262_144):
                pass
            self._timings.append(
                _Timing("read it all", len(tape), feed.nbytes, time.perf_counter() - start)
            )
            equal = len(tape) == len(feed) and _same(tape, feed)
            segments = tape.anchor.segments
        _must(equal, "the tape is the feed")
        self._head(3, "Resume")
        self._facts(
            ("writer", f"a new process goes on with record {before:,} and seals the tape"),
            (
                "in the tape",
                f"{int(items):,} records, equal to the feed's, in {segments} segments: each opening "
                "for writing has a key of its own",
            ),
            (
                "size",
                f"{output.size(size)}, {100 * (size / feed.nbytes - 1):.2f} % over the records",
            ),
        )
        return {
            "resumed_at": before,
            "items": int(items),
            "equal": equal,
            "segments": segments,
            "size": size,
            "anchor": anchor,
        }

    def _slice(self, feed: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
        with tapeseal.open(self._tape, keyring=self._keyring()) as tape:
            tape.between("ts_event", 0, 1)
            before = _bytes_read()
            start = time.perf_counter()
            found = tape.between("ts_event", _MIDDAY, _MIDDAY + _MINUTE)
            seconds = time.perf_counter() - start
            after = _bytes_read()
            frames = tape.anchor.frames
            times = []
            for position in np.random.default_rng(_SEED).integers(0, len(tape), 200).tolist():
                start = time.perf_counter()
                tape[position]
                times.append(time.perf_counter() - start)
        stamps = feed["ts_event"]
        expected = int(np.count_nonzero((stamps >= _MIDDAY) & (stamps < _MIDDAY + _MINUTE)))
        _must(len(found) == expected, "the slice is that of the feed")
        single = float(np.median(times))
        self._timings.append(_Timing("slice of a minute", len(found), found.nbytes, seconds))
        self._timings.append(_Timing("one record, median", 1, MBO.itemsize, single))
        self._head(4, "Slice by time")
        minute = datetime.fromtimestamp(_MIDDAY // 1_000_000_000, UTC)
        read = None if before is None or after is None else after - before
        facts = [
            (
                "between",
                f"ts_event from {minute:%H:%M} for a minute: {len(found):,} records in "
                f"{output.duration(seconds)}",
            )
        ]
        if read is not None:
            size = self._tape.stat().st_size
            facts.append(
                (
                    "read",
                    f"{output.size(read)} of {output.size(size)}: the index says which of the "
                    f"{frames:,} frames can hold such times",
                )
            )
        self._facts(*facts)
        return {"records": len(found), "seconds": seconds, "bytes_read": read, "frames": frames}

    def _rotate(self) -> dict[str, Any]:
        old = self._keyring()
        before = self._body_digest()
        start = time.perf_counter()
        new_key = local.add_key(self._key_file)
        generation = tapeseal.rewrap(self._tape, keyring=old, to=self._keyring())
        seconds = time.perf_counter() - start
        after = self._body_digest()
        _must(before == after, "the body is untouched")
        recipients = [recipient.key for recipient in tapeseal.inspect(self._tape).recipients]
        self._timings.append(_Timing("rotate the key", 0, 0, seconds))
        self._head(5, "Rotate the key")
        self._facts(
            (
                "new key",
                f"{new_key}; the tape is rewrapped for it alone: generation {generation}",
            ),
            ("body", f"sha256 {before[:24]}... before"),
            ("", f"sha256 {after[:24]}... after: not a byte of it was written"),
        )
        return {
            "key": new_key,
            "recipients": recipients,
            "generation": generation,
            "seconds": seconds,
            "body_sha256_before": before,
            "body_sha256_after": after,
        }

    def _body_digest(self) -> str:
        with self._tape.open("rb") as file:
            file.seek(header.read_file(file.fileno()).body)
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _forge(self) -> dict[str, Any]:
        offset = self._tape.stat().st_size // 3
        self._flip(offset)
        try:
            found = tapeseal.verify(self._tape, keyring=self._keyring())
        finally:
            self._flip(offset)
        _must(found.state == "damaged", "a flipped bit is found")
        self._head(6, "Be attacked")
        problem = found.problems[0]
        self._facts(
            ("forger", f"flips one bit of byte {offset:,}"),
            (
                "verify",
                f"{found.state}: {problem.text}, the one at byte {problem.offset:,}; then the bit is put back",
            ),
        )
        return {
            "flipped": offset,
            "state": found.state,
            "problems": [problem._asdict() for problem in found.problems],
        }

    def _flip(self, offset: int) -> None:
        with self._tape.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    def _verify(self, anchor: tapeseal.Anchor) -> dict[str, Any]:
        start = time.perf_counter()
        found = tapeseal.verify(self._tape, keyring=self._keyring(), anchor=anchor)
        seconds = time.perf_counter() - start
        _must(found.ok and found.state == "sealed", "the tape verifies")
        self._timings.append(_Timing("verify", found.items, found.items * MBO.itemsize, seconds))
        self._head(7, "Verify")
        self._facts(
            (
                "verified",
                f"{found.state}: {found.items:,} records in {found.frames:,} frames are authentic, "
                "and the tape goes on from the anchor that close() gave",
            )
        )
        return {"state": found.state, "frames": found.frames, "problems": []}

    def _show_timings(self) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("what it took")
        for name in ("records", "size", "time", "rate", "a record"):
            table.add_column(name, justify="right")
        for each in self._timings:
            table.add_row(
                each.what,
                f"{each.records:,}" if each.records else "",
                output.size(each.bytes) if each.bytes else "",
                output.duration(each.seconds),
                output.rate(each.bytes, each.seconds) if each.records > 1 else "",
                f"{each.seconds / each.records * 1e9:,.0f} ns" if each.records > 1 else "",
            )
        self._console.print()
        self._console.print(Padding(table, (0, 0, 0, 1), expand=False))


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise RuntimeError(f"the demo found that this does not hold: {what}")


def _same(tape: tapeseal.TapeReader, feed: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Whether each record of the tape is that of the feed at its place."""
    first = 0
    for batch in tape.batches(262_144):
        part = feed[first : first + len(batch)]
        if not np.array_equal(batch.view(np.uint8), part.view(np.uint8)):
            return False
        first += len(batch)
    return first == len(tape)


def _bytes_read() -> int | None:
    """Return how many bytes this process has read so far, None where the system does not say."""
    try:
        text = Path("/proc/self/io").read_text()
    except OSError:
        return None
    return int(text.split("rchar:")[1].split()[0])


def _show_next(console: Console, kept: str | None) -> None:
    place = kept or "demo"
    tape, uri = shlex.quote(f"{place}/orders.tape"), shlex.quote(key_uri(f"{place}/orders.key"))
    lines = [
        f"tapeseal inspect {tape}",
        f"tapeseal cat {tape} -k {uri} --records :3",
        "tapeseal keygen my.key",
        "tapeseal encrypt FILE -k local:my.key",
    ]
    if kept is None:
        lines.insert(0, f"tapeseal demo --directory {shlex.quote(place)}")
    console.print(Rule("[bold]try next[/]", style="dim"))
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
