"""How commands show what they do: quantities, lines, JSON, progress."""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from tapeseal.cli.failures import printable

if TYPE_CHECKING:
    from rich.progress import Progress as _Bars


def size(count: float) -> str:
    """Return a number of bytes as people read it, in decimal units."""
    unit = "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 99.95 else f"{count:.1f} {unit}"


def rate(count: float, seconds: float) -> str:
    """Return bytes a second, in GB/s where that says something."""
    each_second = count / max(seconds, 1e-9)
    return f"{each_second / 1e9:.2f} GB/s" if each_second >= 1e8 else f"{size(each_second)}/s"


def duration(seconds: float) -> str:
    """Return a time with a unit that suits it."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995 or unit == "µs":
            value = seconds * factor
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.3g} {unit}"
    raise AssertionError


def counted(number: int, thing: str) -> str:
    """Return "1 frame", "2,000 frames"; "bytes" and "records" come as plurals too."""
    thing = thing.removesuffix("s")
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def line(text: str = "", *, err: bool = False) -> None:
    """Write one line of a report."""
    click.echo(printable(text), err=err)


def rows(pairs: list[tuple[str, str]]) -> None:
    """Write names and values, one pair a line, the values below each other."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        line(f"  {name:{width}}  {value}")


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Write rows of texts below each other under a header; thousands of them in no time."""
    texts = [[printable(text) for text in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in texts)
    click.echo("\n".join(lines))


def as_json(report: dict[str, Any], *, err: bool = False) -> None:
    """Write a report as one line of JSON."""
    click.echo(json.dumps(report), err=err)


class Progress:
    """A bar with rate and remaining time on standard error, where that is a terminal.

    Called with the bytes done and in all, from any thread; it shows itself with the first call, so that a passphrase
    can be asked for before.
    """

    def __init__(self, label: str, *, enabled: bool = True) -> None:
        self.done = 0
        """Bytes done so far."""
        self._label = label if len(label) <= 24 else f"...{label[-21:]}"
        self._enabled = enabled and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bars: _Bars | None = None
        self._due = 0.0
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int | None) -> None:
        """Take note of how far the work has come."""
        self.done = done
        # A bar that moves more often than one sees costs time that the cipher could have.
        if not self._enabled or (time.monotonic() < self._due and done != total):
            return
        with self._lock:
            self._due = time.monotonic() + 0.05
            if self._bars is None:
                self._bars = self._start(total)
            self._bars.update(self._bars.task_ids[0], completed=done)

    def _start(self, total: int | None) -> "_Bars":
        from rich import progress
        from rich.console import Console

        bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=None),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bars.add_task(printable(self._label), total=total)
        bars.start()
        return bars

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
