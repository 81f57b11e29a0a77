"""tapeseal cat."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
import numpy as np

import tapeseal
from tapeseal.archive import npy_header
from tapeseal.cli import failures, options
from tapeseal.tape import default_threads, open_reader

Records = np.ndarray[Any, np.dtype[Any]]

_BATCH_BYTES = 4 * 1024 * 1024


@click.command()
@click.argument("file", type=click.Path())
@options.keyring
@options.records
@click.option(
    "--between",
    nargs=3,
    metavar="FIELD A B",
    help="Records whose FIELD is A or more and less than B.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl", "npy"]),
    help="How records are written. [csv]",
)
@options.expect
def cat(
    file: str,
    keyrings: tuple[str, ...],
    chosen: slice | None,
    between: tuple[str, str, str] | None,
    form: str | None,
    expect: dict[str, str],
) -> int:
    """Write the records of a tape to standard output; of a tape of bytes, the bytes.

    Times are written in ISO 8601, fields of bytes (S) as text, whole numbers with all their digits.
    In JSON what is no number is the string NaN, Infinity or -Infinity.

    For --between A and B are written as FIELD is; a time like 2026-11-23T14:30 is taken for datetime64
    fields, and for whole-number fields as nanoseconds since 1970, in UTC.

    \b
      tapeseal cat day.tape -k local:my.key --records -5:
      tapeseal cat day.tape -k local:my.key --format jsonl \\
          --between ts_event 2026-11-24T15:00 2026-11-24T15:01
    """
    ctx = click.get_current_context()
    if chosen is not None and between is not None:
        raise click.UsageError("--records and --between do not go together", ctx)
    with open_reader(file, tapeseal.keyring(keyrings), expect, threads=default_threads()) as tape:
        if tape.kind == "bytes" and (form is not None or between is not None):
            raise click.UsageError(
                f"{file} is a tape of bytes: --format and --between are for records", ctx
            )
        if not tape.sealed:
            failures.say(f"{file} was never closed: more may have been at its end", "note")
        if between is None:
            count, batches = _slices(tape, chosen or slice(None))
        else:
            field, *bounds = between
            if field not in (tape.dtype.names or ()):
                raise click.UsageError(f"{field!r} is no field of {file}", ctx)
            start, end = (_bound(text, tape.dtype[field], ctx) for text in bounds)
            records = tape.between(field, start, end)
            count, batches = len(records), iter([records])
        out = sys.stdout.buffer
        if tape.kind == "bytes":
            for batch in batches:
                out.write(np.ascontiguousarray(batch).data)
        else:
            _WRITERS[form or "csv"](out, tape.dtype, count, batches)
        out.flush()
    return failures.OK


def _slices(tape: tapeseal.TapeReader, chosen: slice) -> tuple[int, Iterator[Records]]:
    """Return how many records a slice has, and the records in batches of bounded size."""
    positions = range(*chosen.indices(len(tape)))
    size = max(1, _BATCH_BYTES // tape.dtype.itemsize)

    def batches() -> Iterator[Records]:
        for first in range(0, len(positions), size):
            part = positions[first : first + size]
            # Of a slice that ends before the first record Python writes the end as None.
            yield tape[part.start : None if part.stop < 0 else part.stop : part.step]

    return len(positions), batches()


_OFFSET = re.compile(r"(?:Z|([+-])(\d\d):?(\d\d))$")


def _bound(text: str, kind: np.dtype[Any], ctx: click.Context) -> Any:
    """Return an end of --between as the field has it."""
    try:
        if kind.kind in "iu":
            return int(text) if re.fullmatch(r"[-+]?\d+", text) else int(_time(text).astype("i8"))
        if kind.kind == "f":
            return float(text)
        if kind.kind in "mM":
            # A whole number is in the field's own unit; of a time, at least where it cannot be a year.
            if kind.kind == "m" or re.fullmatch(r"[-+]?\d{5,}", text):
                return np.array(int(text), "i8").view(kind.newbyteorder("="))[()]
            return _time(text)
        if kind.kind == "S":
            return text.encode()
        if kind.kind == "U":
            return text
    except ValueError:
        raise click.UsageError(f"{text!r} is no value of a field of type {kind}", ctx) from None
    raise click.UsageError(f"a field of type {kind} has no order", ctx)


def _time(text: str) -> np.datetime64:
    zone = _OFFSET.search(text) if "T" in text or " " in text else None
    if zone is None:
        return np.datetime64(text, "ns")
    minutes = 0
    if zone[1]:
        minutes = int(zone[1] + "1") * (60 * int(zone[2]) + int(zone[3]))
    return np.datetime64(text[: zone.start()], "ns") - np.timedelta64(minutes, "m")


# Records as text: each field becomes a list of Python values, a batch at a time.

Column = Callable[[Records], list[Any]]


def _leaf(kind: np.dtype[Any]) -> Column:
    """Return what turns an array of one plain type into values that print exactly."""
    if kind.kind == "M":
        return lambda values: [
            None if text == "NaT" else text for text in np.datetime_as_string(values).tolist()
        ]
    if kind.kind == "m":
        return lambda values: [
            None if absent else number
            for number, absent in zip(
                values.astype("i8").tolist(), np.isnat(values).tolist(), strict=True
            )
        ]
    if kind.kind == "S":
        return lambda values: [each.decode("utf-8", "backslashreplace") for each in values.tolist()]
    if kind.kind == "V":
        return lambda values: [bytes(each).hex() for each in values]
    if kind.kind == "c":
        return lambda values: [str(each) for each in values.tolist()]
    return lambda values: values.tolist()


def _columns(
    kind: np.dtype[Any], name: str, pick: Callable[[Records], Records]
) -> Iterator[tuple[str, Column]]:
    """Return the plain columns of a dtype, of nested fields and sub-arrays one each: a.b, c[0]."""
    if kind.subdtype is not None:
        base, shape = kind.subdtype
        for place in np.ndindex(*shape):
            label = f"{name}[{','.join(map(str, place))}]"
            yield from _columns(base, label, lambda rows, p=place: pick(rows)[(slice(None), *p)])  # type: ignore[misc]
    elif kind.names is not None:
        for field in kind.names:
            label = f"{name}.{field}" if name else field
            yield from _columns(kind[field], label, lambda rows, f=field: pick(rows)[f])  # type: ignore[misc]
    else:
        leaf = _leaf(kind)
        yield name or "value", lambda rows: leaf(pick(rows))


def _write_csv(out: Any, dtype: np.dtype[Any], count: int, batches: Iterable[Records]) -> None:
    columns = list(_columns(dtype, "", lambda rows: rows))
    text = io.TextIOWrapper(out, "utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([name for name, _ in columns])
        for batch in _small(batches):
            writer.writerows(zip(*(column(batch) for _, column in columns), strict=True))
    finally:
        text.detach()


def _write_jsonl(out: Any, dtype: np.dtype[Any], count: int, batches: Iterable[Records]) -> None:
    dump = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
    values = _values(dtype)
    for batch in _small(batches):
        out.write("".join([f"{dump(each)}\n" for each in values(batch)]).encode())


def _values(kind: np.dtype[Any]) -> Column:
    """Return what turns an array into values for JSON: objects for structures, lists for sub-arrays."""
    if kind.subdtype is not None:
        base, shape = kind.subdtype
        inner = _values(base)

        def arrays(rows: Records) -> list[Any]:
            flat = inner(rows.reshape(-1, *rows.shape[1 + len(shape) :]))
            for extent in reversed(shape):
                flat = [flat[at : at + extent] for at in range(0, len(flat), extent)]
            return flat

        return arrays
    if kind.names is not None:
        names = kind.names
        fields = [_values(kind[name]) for name in names]
        return lambda rows: [
            dict(zip(names, row, strict=True))
            for row in zip(
                *(field(rows[name]) for name, field in zip(names, fields, strict=True)), strict=True
            )
        ]
    leaf = _leaf(kind)
    if kind.kind == "f":
        return lambda rows: [
            each if math.isfinite(each) else _NO_NUMBER[str(each)] for each in leaf(rows)
        ]
    return leaf


# As the JSON mapping of Protocol Buffers has them.
_NO_NUMBER = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _small(batches: Iterable[Records]) -> Iterator[Records]:
    """Cut batches so that their values as Python objects stay small."""
    for batch in batches:
        for first in range(0, len(batch), 8192):
            yield batch[first : first + 8192]


def _write_npy(out: Any, dtype: np.dtype[Any], count: int, batches: Iterable[Records]) -> None:
    out.write(npy_header(dtype, count))
    for batch in batches:
        out.write(np.ascontiguousarray(batch).view(np.uint8).data)


_WRITERS = {"csv": _write_csv, "jsonl": _write_jsonl, "npy": _write_npy}
