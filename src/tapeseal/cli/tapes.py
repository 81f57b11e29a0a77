"""tapeseal encrypt, decrypt, inspect, verify, rewrap."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import click

import tapeseal
from tapeseal import fleet, header, layout
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


def _parse_conditions(
    ctx: click.Context, param: click.Parameter, texts: Sequence[str]
) -> list[fleet.Condition]:
    try:
        return [fleet.Condition.parse(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@options.files
@click.option(
    "--where",
    metavar="CONDITION",
    multiple=True,
    callback=_parse_conditions,
    help="Only list the tapes that have a recipient with key=NAME, provider=NAME or version<NUMBER (or = != <= > >="
    " in place of <), and count what they hold. Given several times, one recipient must meet all. In names, * and ?"
    " stand for what they do in a shell.",
)
@options.as_json
def inspect(files: tuple[str, ...], where: list[fleet.Condition], as_json: bool) -> int:
    """Say what each FILE, a tape or a blob, says of itself.

    No key is needed, and nothing of it is authenticated: `tapeseal verify` does that.

    With --where FILE may be a directory too, or a quoted pattern, and the answer is what a wrapping key opens: after
    a compromise, or before a version of it is retired.

    \b
      tapeseal inspect /archive --where key=transit/days --where 'version<3'
    """
    if where:
        return _blast_radius(files, where, as_json)

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
            notes = ["pending"] if each.wrapped is None else []
            if each.share is not None:
                group, threshold, index = each.share
                notes.append(f"share {index} of group {group}, any {threshold} open")
            note = f" ({', '.join(notes)})" if notes else ""
            pairs.append(("" if number else "recipients", f"{each.provider}:{each.key}{note}"))
        pairs.append(
            (
                "header",
                f"generation {found.generation}, {found.copies_intact} of {copies} copies intact",
            )
        )
        output.line(file)
        output.rows(pairs)

    return failures.each(files, one, as_json=as_json)


def _blast_radius(files: tuple[str, ...], where: list[fleet.Condition], as_json: bool) -> int:
    codes: list[int] = []
    tapes = 0
    items: dict[str, int] = {"records": 0, "bytes": 0}
    size = 0
    for each in fleet.blast_radius(_find_tapes(files, codes, as_json), where):
        if isinstance(each, tuple):
            path, error = each
            codes.append(failures.report(error, path, as_json=as_json))
            continue
        found = each.inspection
        kind = "records" if found.kind == "records" else "bytes"
        tapes, size, items[kind] = tapes + 1, size + found.size, items[kind] + found.items
        names = [f"{recipient.provider}:{recipient.key}" for recipient in each.recipients]
        if as_json:
            output.as_json(
                {"file": each.path, "tape_id": found.tape_id.hex(), "kind": found.kind, "items": found.items,
                 "size": found.size, "recipients": names, "alone": each.alone}
            )  # fmt: skip
        else:
            shares = "" if each.alone else ", a share of it only"
            output.line(
                f"{each.path}: {output.counted(found.items, found.kind)}, {', '.join(names)}{shares}"
            )
    if as_json:
        output.as_json({"tapes": tapes, **items, "size": size, "unreadable": len(codes)})
    else:
        holds = [output.counted(count, kind) for kind, count in items.items() if count]
        unreadable = f", {len(codes)} could not be read" if codes else ""
        failures.say(
            f"{output.counted(tapes, 'tapes')}: {', '.join(holds) or 'nothing'}{unreadable}"
        )
    return failures.worst(codes)


def _find_tapes(files: tuple[str, ...], codes: list[int], as_json: bool) -> Iterator[str]:
    """Yield the tapes that each name stands for; a name without any is reported, and its code added."""
    seen: set[str] = set()
    for file in files:
        try:
            for path in fleet.find_tapes([file]):
                if path not in seen:
                    seen.add(path)
                    yield path
        except OSError as error:
            codes.append(failures.report(error, file, as_json=as_json))


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
    help="The keyring that opens the tapes from now on. Can be given several times.",
)
@click.option(
    "--complete",
    is_flag=True,
    help="In place of --to: keep the recipients, and wrap for those that are pending and of a KEYRING.",
)
@click.option(
    "--copy",
    is_flag=True,
    help="Write a copy with a larger header and put it in the tape's place: for recipients that"
    " do not fit in.",
)
@click.option(
    "--journal",
    metavar="JOURNAL",
    type=click.Path(),
    help="Note in this file what is done, and pass over what a run that was stopped had done.",
)
@click.option("--dry-run", is_flag=True, help="Open each tape, and change nothing.")
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="So many tapes at once: more where a service is far away.",
)
@options.as_json
def rewrap(
    files: tuple[str, ...],
    keyrings: tuple[str, ...],
    to: tuple[str, ...],
    complete: bool,
    copy: bool,
    journal: str | None,
    dry_run: bool,
    jobs: int,
    as_json: bool,
) -> int:
    """Replace the recipients of each FILE: wrap its data key for NEW, and for nobody else.

    Only the header is written, also while a recorder appends; a crash leaves the tape open to the
    old recipients or to the new ones. No key is taken away from who had it: what an old recipient
    has copied it can still read.

    \b
      tapeseal keygen my.key --add
      tapeseal rewrap *.tape -k local:my.key --to local:my.key

    A tape that was made while a service was away may have recipients that are still pending. With
    --complete the data key, opened with one KEYRING, is wrapped for those of the others too.

    \b
      tapeseal rewrap *.tape -k local:my.key -k aws-kms:alias/archive --complete

    FILE may be a directory, which stands for all tapes in and below it, or a quoted pattern such as
    '/archive/2024*/**/*.tape'. Each tape is opened again with NEW when it is done. A run that was stopped goes on when
    the same command is given again; with --journal without opening again what is done.

    \b
      tapeseal rewrap /archive -k local:old --to local:new --journal move.log
    """
    if complete == bool(to):
        raise click.UsageError("give either --to or --complete", click.get_current_context())
    keyring = tapeseal.keyring(keyrings)
    new = tapeseal.keyring(to) if to else None
    counts = dict.fromkeys(("rewrapped", "unproven", "skipped", "planned", "failed"), 0)
    codes: list[int] = []
    start = time.perf_counter()
    results = fleet.rewrap_fleet(
        _find_tapes(files, codes, as_json),
        keyring=keyring,
        to=new,
        complete=complete,
        copy=copy,
        journal=journal,
        dry_run=dry_run,
        threads=jobs,
    )
    for each in results:
        counts[each.state] += 1
        if each.state == "failed":
            assert each.error is not None
            codes.append(failures.report(each.error, each.path, as_json=as_json))
        elif as_json:
            more: dict[str, Any] = {} if each.error is None else {"error": str(each.error)}
            if complete:
                more["pending"] = each.pending
            output.as_json(
                {"file": each.path, "state": each.state, "generation": each.generation, **more}
            )
        else:
            output.line(f"{each.path}: {_rewrapped_text(each)}")
    counts["failed"] = len(codes)
    seconds = time.perf_counter() - start
    total = sum(counts.values())
    if as_json:
        if total > 1:
            output.as_json({"tapes": total, **counts, "seconds": round(seconds, 6)})
    elif total > 1:
        done = counts["rewrapped"] + counts["unproven"]
        others = [
            f"{count} {state}" for state, count in counts.items() if count and state != "rewrapped"
        ]
        rate = f" in {output.duration(seconds)}, {done / seconds:,.0f} a second" if done else ""
        failures.say(
            f"{done} of {total} tapes rewrapped{''.join(', ' + text for text in others)}{rate}"
        )
    return failures.worst(codes)


def _rewrapped_text(result: fleet.Rewrapped) -> str:
    text = {
        "planned": "opens, and would be rewrapped",
        "skipped": f"nothing to do, generation {result.generation}",
    }.get(result.state, f"rewrapped, generation {result.generation}")
    if result.error is not None:
        text += f", not opened again: {result.error}"
    return text + (f", still pending: {', '.join(result.pending)}" if result.pending else "")
