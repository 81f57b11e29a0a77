"""tapeseal encrypt, decrypt, inspect, verify, rewrap."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import click

import tapeseal
from tapeseal import header, layout
from tapeseal.cli import failures, options, output

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SUFFIX = ".tape"
_ANCHOR_PREFIX = "tapeseal-anchor:"


def _output_option(default: str) -> Callable[[_Command], _Command]:
    return click.option(
        "-o",
        "--output",
        "out",
        metavar="OUT",
        type=click.Path(),
        help=f"A new file, an existing directory (or NAME/), or - for standard output. [{default}]",
    )


def _target(out: str | None, default: str, many: bool) -> str:
    """Return where the output of one file goes, - for standard output."""
    if out is None:
        return default
    if out == "-" or not (out.endswith("/") or os.path.isdir(out)):
        if many:
            raise click.UsageError(
                "several files need a directory as -o", click.get_current_context()
            )
        return out
    if default == "-":
        raise click.UsageError(
            "standard input has no name: give the name of a file as -o", click.get_current_context()
        )
    return os.path.join(out, os.path.basename(default))


def _streams(file: str, target: str) -> tuple[str | IO[bytes], str | IO[bytes]]:
    # Unbuffered, for a buffer that another thread waits on cannot be given up at exit.
    return (
        open(0, "rb", buffering=0, closefd=False) if file == "-" else file,
        sys.stdout.buffer if target == "-" else target,
    )


def _show_anchor(anchor: tapeseal.Anchor, *, err: bool = False) -> None:
    output.line(f"  {anchor}", err=err)


@click.command()
@options.files
@options.keyring
@_output_option("FILE.tape")
@options.context
@click.option(
    "--index-by",
    metavar="FIELD",
    help="Of a .npy file, the field by whose values slices are to be found.",
)
@options.as_json
def encrypt(
    files: tuple[str, ...],
    keyrings: tuple[str, ...],
    out: str | None,
    context: dict[str, str],
    index_by: str | None,
    as_json: bool,
) -> int:
    """Encrypt each FILE (- is standard input) into a sealed tape.

    A .npy file becomes a tape of its records, anything else one of bytes. An existing output is
    refused, and an output stands under its name only when it is complete.

    What is printed last is the tape's anchor. Kept elsewhere and given to `tapeseal verify --anchor`,
    it tells whether the tape was put back to an earlier state.

    \b
      tapeseal encrypt day.npy -k local:my.key -c desk=eq-us --index-by ts_event
      pg_dump trades | tapeseal encrypt - -k local:my.key -o trades.tape
    """
    keyring = tapeseal.keyring(keyrings)

    def one(file: str) -> None:
        target = _target(out, "-" if file == "-" else file + _SUFFIX, len(files) > 1)
        if target == "-" and sys.stdout.isatty():
            raise click.UsageError("a tape is not written to a terminal: give -o", ctx)
        if index_by is not None and not file.endswith(".npy"):
            raise click.UsageError(f"{file}: --index-by is for .npy files", ctx)
        start = time.perf_counter()
        with output.Progress(file, enabled=not as_json) as bar:
            anchor = tapeseal.encrypt_file(
                *_streams(file, target),
                keyring=keyring,
                encryption_context=context,
                index_by=index_by,
                progress=bar,
            )
        seconds = time.perf_counter() - start
        kind = "records" if file.endswith(".npy") else "bytes"
        to_stderr = target == "-"
        if as_json:
            output.as_json(
                {
                    "file": file,
                    "output": target,
                    "kind": kind,
                    "items": anchor.items,
                    "bytes": bar.done,
                    "seconds": round(seconds, 6),
                    "anchor": str(anchor),
                },
                err=to_stderr,
            )
        else:
            items = f"{output.counted(anchor.items, 'records')}, " if kind == "records" else ""
            output.line(
                f"{target}: sealed, {items}{output.size(bar.done)} in {output.duration(seconds)},"
                f" {output.rate(bar.done, seconds)}",
                err=to_stderr,
            )
            _show_anchor(anchor, err=to_stderr)

    ctx = click.get_current_context()
    return failures.each(files, one, as_json=as_json)


@click.command()
@options.files
@options.keyring
@_output_option("FILE without .tape")
@click.option(
    "--unsealed",
    is_flag=True,
    help="Take a tape that was never closed too, up to the last record that is there.",
)
@options.expect
@options.as_json
def decrypt(
    files: tuple[str, ...],
    keyrings: tuple[str, ...],
    out: str | None,
    unsealed: bool,
    expect: dict[str, str],
    as_json: bool,
) -> int:
    """Decrypt each FILE (- is standard input), a tape or a blob.

    A tape of records becomes a .npy file. An existing output is refused, and nothing stands
    under the output's name before all of it was authenticated.

    A tape that was never closed is refused (exit code 1) unless --unsealed: whether its end was
    cut off cannot be told.
    """
    keyring = tapeseal.keyring(keyrings)
    ctx = click.get_current_context()

    def default_target(file: str) -> str:
        if file == "-":
            return "-"
        name = file.removesuffix(_SUFFIX)
        if name == file or not os.path.basename(name):
            raise click.UsageError(f"{file} does not end in {_SUFFIX}: give -o", ctx)
        if not name.endswith(".npy"):
            with open(file, "rb", buffering=0) as opened:
                if header.read_file(opened.fileno()).content.kind == "records":
                    name += ".npy"
        return name

    def one(file: str) -> None:
        if out is None or out.endswith("/") or os.path.isdir(out):
            target = _target(out, default_target(file), len(files) > 1)
        else:
            target = _target(out, "", len(files) > 1)
        start = time.perf_counter()
        with output.Progress(file, enabled=not as_json) as bar:
            source, sink = _streams(file, target)
            tapeseal.decrypt_file(
                source, sink, keyring=keyring, expect=expect, unsealed=unsealed, progress=bar
            )
        seconds = time.perf_counter() - start
        if target == "-":
            return
        size = os.path.getsize(target)
        if as_json:
            output.as_json(
                {"file": file, "output": target, "bytes": size, "seconds": round(seconds, 6)}
            )
        else:
            output.line(
                f"{target}: {output.size(size)} in {output.duration(seconds)},"
                f" {output.rate(size, seconds)}"
            )

    return failures.each(files, one, as_json=as_json)


@click.command()
@options.files
@options.as_json
def inspect(files: tuple[str, ...], as_json: bool) -> int:
    """Say what each FILE, a tape or a blob, says of itself.

    No key is needed, and nothing of it is authenticated: `tapeseal verify` does that.
    """

    def one(file: str) -> None:
        found = tapeseal.inspect(file)
        dtype = None if found.dtype is None else layout.dtype_to_json(found.dtype)
        if as_json:
            report: dict[str, Any] = {"file": file}
            for field in dataclasses.fields(found):
                report[field.name] = getattr(found, field.name)
            report["tape_id"] = found.tape_id.hex()
            report["dtype"] = dtype
            report["recipients"] = [
                {name: value for name, value in recipient._asdict().items() if value is not None}
                for recipient in found.recipients
            ]
            output.as_json(report)
            return
        state = "sealed" if found.sealed else "not sealed"
        if found.torn_bytes:
            state += f", {output.counted(found.torn_bytes, 'bytes')} in no whole block"
        holds = output.counted(found.items, found.kind)
        if found.dtype is not None:
            holds += f" of {output.counted(found.dtype.itemsize, 'bytes')}"
        copies = 2 if found.profile == "file" else 1
        pairs = [
            ("profile", found.profile if found.profile == "blob" else f"file, {state}"),
            ("tape id", found.tape_id.hex()),
            ("created", found.created),
            ("holds", holds),
            (
                "in",
                f"{output.counted(found.frames, 'frames')} of {output.size(found.frame_size)} or less, "
                f"{output.counted(found.segments, 'segments')}",
            ),
            ("size", f"{found.size:,} bytes"),
        ]
        if isinstance(dtype, list):
            pairs += _wrapped("fields", [_field_text(entry) for entry in dtype])
        elif dtype is not None:
            pairs.append(("dtype", dtype))
        if found.index_by is not None:
            pairs.append(("index by", found.index_by))
        for number, (name, value) in enumerate(found.encryption_context.items()):
            pairs.append(("" if number else "context", f"{name}={value}"))
        for number, each in enumerate(found.recipients):
            pending = " (pending)" if each.wrapped is None else ""
            pairs.append(("" if number else "recipients", f"{each.provider}:{each.key}{pending}"))
        pairs.append(
            (
                "header",
                f"generation {found.generation}, {found.copies_intact} of {copies} copies intact",
            )
        )
        output.line(file)
        output.rows(pairs)

    return failures.each(files, one, as_json=as_json)


def _field_text(entry: list[Any]) -> str:
    name, kind = entry[0] or "(padding)", entry[1] if isinstance(entry[1], str) else "{...}"
    return f"{name} {kind.lstrip('|')}{entry[2] if len(entry) == 3 else ''}"


def _wrapped(name: str, texts: list[str], width: int = 64) -> list[tuple[str, str]]:
    lines = [""]
    for text in texts:
        if lines[-1] and len(lines[-1]) + len(text) > width:
            lines.append("")
        lines[-1] += f"{text}, "
    lines[-1] = lines[-1].removesuffix(", ")
    return [("" if number else name, text.rstrip()) for number, text in enumerate(lines)]


def _parse_anchor(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    text = value
    if not value.startswith(_ANCHOR_PREFIX):
        try:
            with Path(value).open(encoding="utf-8", errors="replace") as file:
                text = next((line for line in file.read(65536).splitlines() if line.strip()), "")
        except OSError as error:
            raise click.BadParameter(f"{value}: {error.strerror}", ctx, param) from None
    try:
        return tapeseal.Anchor.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@options.files
@options.keyring
@click.option(
    "--anchor",
    metavar="A",
    callback=_parse_anchor,
    help="An anchor of the tape from earlier, or the name of a file that holds one: refuse a tape"
    " that has lost anything since then.",
)
@click.option("--unsealed", is_flag=True, help="Let a tape that was never closed pass too.")
@options.expect
@options.as_json
def verify(
    files: tuple[str, ...],
    keyrings: tuple[str, ...],
    anchor: tapeseal.Anchor | None,
    unsealed: bool,
    expect: dict[str, str],
    as_json: bool,
) -> int:
    """Authenticate all of each FILE and list everything that is wrong with it.

    Exit code 1 where anything is, and for a tape that was never closed unless --unsealed. What is
    printed last is the tape's anchor.
    """
    if anchor is not None and len(files) > 1:
        raise click.UsageError("an anchor is of one tape", click.get_current_context())
    keyring = tapeseal.keyring(keyrings)

    def one(file: str) -> int:
        with output.Progress(file, enabled=not as_json) as bar:
            found = tapeseal.verify(
                file, keyring=keyring, anchor=anchor, expect=expect, progress=bar
            )
        passed = found.ok and (unsealed or found.state == "sealed")
        if as_json:
            report = dataclasses.asdict(found)
            report["problems"] = [problem._asdict() for problem in found.problems]
            report["anchor"] = None if found.anchor is None else str(found.anchor)
            output.as_json({"file": file, "ok": passed, **report})
        else:
            parts = [found.state]
            if found.ok:
                parts.append("all of it authentic")
            if found.torn_bytes:
                parts.append(f"{output.counted(found.torn_bytes, 'bytes')} torn off at the end")
            parts += [
                output.counted(found.items, "items"),
                output.counted(found.frames, "frames"),
                output.counted(found.segments, "segments"),
            ]
            output.line(f"{file}: {', '.join(parts)}")
            for problem in found.problems:
                output.line(f"  at byte {problem.offset}: {problem.text}")
            if found.anchor is not None:
                _show_anchor(found.anchor)
        if not found.ok:
            failures.say(
                f"{file}: {output.counted(len(found.problems), 'problems')} found", "error"
            )
        elif not passed:
            failures.say(
                f"{file}: the tape was never closed, so it may have been cut; --unsealed lets it pass",
                "error",
            )
        return failures.OK if passed else failures.DAMAGED

    return failures.each(files, one, as_json=as_json)


@click.command()
@options.files
@options.keyring
@click.option(
    "--to",
    metavar="NEW",
    multiple=True,
    required=True,
    help="The keyring that opens the tapes from now on. Can be given several times.",
)
@click.option(
    "--copy",
    is_flag=True,
    help="Write a copy with a larger header and put it in the tape's place: for recipients that"
    " do not fit in.",
)
@options.as_json
def rewrap(
    files: tuple[str, ...],
    keyrings: tuple[str, ...],
    to: tuple[str, ...],
    copy: bool,
    as_json: bool,
) -> int:
    """Replace the recipients of each FILE: wrap its data key for NEW, and for nobody else.

    Only the header is written, also while a recorder appends; a crash leaves the tape open to the
    old recipients or to the new ones. No key is taken away from who had it: what an old recipient
    has copied it can still read.

    \b
      tapeseal keygen my.key --add
      tapeseal rewrap *.tape -k local:my.key --to local:my.key
    """
    keyring = tapeseal.keyring(keyrings)
    new = tapeseal.keyring(to)
    done = 0

    def one(file: str) -> None:
        nonlocal done
        generation = tapeseal.rewrap(file, keyring=keyring, to=new, copy=copy)
        done += 1
        if as_json:
            output.as_json({"file": file, "generation": generation})
        else:
            of_many = f" ({done} of {len(files)})" if len(files) > 1 else ""
            output.line(f"{file}: rewrapped, generation {generation}{of_many}")

    code = failures.each(files, one, as_json=as_json)
    if len(files) > 1 and not as_json:
        failed = len(files) - done
        failures.say(
            f"{done} of {len(files)} tapes rewrapped" + (f", {failed} failed" if failed else "")
        )
    return code
