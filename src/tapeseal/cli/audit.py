"""tapeseal audit: create, verify, anchor, report, show, roll."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from tapeseal.cli import failures, options, output

if TYPE_CHECKING:
    from tapeseal.audit_log.anchors import LogAnchor
    from tapeseal.audit_log.check import LogVerification
    from tapeseal.audit_log.report import Report
    from tapeseal.audit_log.tapes import TapeCheck
    from tapeseal.datakey import Keyring

_Command = TypeVar("_Command", bound=Callable[..., Any])

_AGO = re.compile(r"(\d{1,6})(d|h|m)")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_HOURS = re.compile(r"(\d{1,2})-(\d{1,2})")
_MAX_KEY = 1 << 16


def _log(command: _Command) -> _Command:
    return click.argument("log", envvar="TAPESEAL_AUDIT", type=click.Path())(command)


def _keyring(required: bool) -> Callable[[_Command], _Command]:
    more = "" if required else " Without, nothing that is read is authenticated."
    return click.option(
        "-k",
        "--keyring",
        "keyrings",
        metavar="KEYRING",
        multiple=True,
        required=required,
        envvar="TAPESEAL_AUDIT_KEYRING",
        help=f"What unwraps the log's key, such as local:audit.key; given several times, any of them.{more}",
    )


def _parse_time(ctx: click.Context, param: click.Parameter, text: str | None) -> datetime | None:
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no time: 2026-11-27, 2026-11-27T08:00, or 30d, 12h, 15m for so long ago",
            ctx,
            param,
        ) from None
    return moment.replace(tzinfo=moment.tzinfo or UTC)


def _parse_hours(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, int]:
    found = _HOURS.fullmatch(text)
    if found is None or not int(found[1]) < int(found[2]) <= 24:
        raise click.BadParameter(f"{text!r} are no hours, such as 7-19", ctx, param)
    return int(found[1]), int(found[2])


def _parse_zone(ctx: click.Context, param: click.Parameter, text: str) -> tzinfo:
    if text == "UTC":
        return UTC
    try:
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError):
        raise click.BadParameter(f"there is no time zone {text!r}", ctx, param) from None


def _period(command: _Command) -> _Command:
    for name, what in (("--until", "up to"), ("--since", "from")):
        command = click.option(
            name,
            metavar="TIME",
            callback=_parse_time,
            help=f"Only {what} this time, in UTC: 2026-11-27, 2026-11-27T08:00, or 30d, 12h, 15m for so long ago.",
        )(command)
    return command


@click.group()
def audit() -> None:
    """The audit log: every key and secret operation, chained so that no change of it goes unnoticed.

    A process with TAPESEAL_AUDIT=LOG and TAPESEAL_AUDIT_KEYRING=KEYRING in its environment records there, whatever
    program it runs; these commands take both from there too. docs/audit.md has the rest.
    """


def _unwrapping(keyrings: Sequence[str]) -> "Keyring":
    import tapeseal

    return tapeseal.keyring(keyrings)


# create, roll


@audit.command()
@_log
@_keyring(True)
@click.option(
    "--roll-size", metavar="BYTES", type=click.IntRange(1), help="Begin a new file at this size."
)
@click.option("--daily", is_flag=True, help="Begin a new file each day, at midnight UTC.")
@click.option("--group", is_flag=True, help="Let the group of the file write it too (mode 0660).")
@options.as_json
def create(
    log: str,
    keyrings: tuple[str, ...],
    roll_size: int | None,
    daily: bool,
    group: bool,
    as_json: bool,
) -> None:
    """Make a new, empty log, for its owner alone, and its head LOG.head.

    \b
      tapeseal keygen audit.key
      tapeseal audit create audit.log -k local:audit.key --daily
      export TAPESEAL_AUDIT=$PWD/audit.log
      export TAPESEAL_AUDIT_KEYRING=local:$PWD/audit.key

    Whoever writes the log must be able to unwrap its key, and could forge it from the last anchor on: have anchors
    signed by a key that the writers do not have (tapeseal audit anchor).
    """
    from tapeseal.audit_log.log import create_log

    log_id = create_log(
        log,
        keyring=_unwrapping(keyrings),
        roll_size=roll_size,
        roll_seconds=86400 if daily else None,
        mode=0o660 if group else 0o600,
    )
    if as_json:
        output.as_json({"log": log, "id": log_id})
    else:
        output.line(f"{log}: made log {log_id}")


@audit.command()
@_log
@_keyring(True)
@click.option(
    "--to", metavar="NEW", multiple=True, help="Wrap a new key for the new file, by this keyring."
)
@options.as_json
def roll(log: str, keyrings: tuple[str, ...], to: tuple[str, ...], as_json: bool) -> None:
    """Begin the log's next file; the present one becomes LOG.NUMBER, and the chain goes on.

    With --to the new file gets a new key: after somebody left who had the old one. Whoever writes the log must be able
    to unwrap it too, so give running processes both KEYRINGs first.
    """
    from tapeseal.audit_log.log import AuditLog

    with AuditLog(log, keyring=_unwrapping(keyrings)) as opened:
        old = opened.roll(_unwrapping(to) if to else None)
    if as_json:
        output.as_json({"log": log, "previous": old})
    else:
        output.line(f"{log}: a new file; the one before is {old}")


# anchor


@audit.command()
@_log
@_keyring(True)
@click.option(
    "--signer",
    metavar="SIGNER",
    required=True,
    help="What signs, such as aws-kms:alias/audit?region=us-east-1 or vault-transit:transit/audit.",
)
@click.option(
    "--to",
    metavar="TARGET",
    default="-",
    show_default=True,
    help="A file that the anchor is appended to, best on another machine's disk; kv:MOUNT/PATH, a secret of Vault's"
    " KV of which it becomes a version; or - for standard output.",
)
def anchor(log: str, keyrings: tuple[str, ...], signer: str, to: str) -> None:
    """Have a statement signed of how far the log has come, and keep it elsewhere; to be run on a schedule.

    \b
      tapeseal audit anchor audit.log -k local:audit.key \\
        --signer vault-transit:transit/audit --to /mnt/audit/anchors
      tapeseal vault transit public-key transit/audit -o audit.pem
      tapeseal audit verify audit.log -k local:audit.key \\
        --anchors /mnt/audit/anchors --public-key audit.pem

    Whoever holds the log's key can rewrite what came after the last anchor, and nothing before it.
    """
    from tapeseal import signing
    from tapeseal.audit_log.anchors import append_to
    from tapeseal.audit_log.log import AuditLog

    made_by = signing.signer(signer)
    with AuditLog(log, keyring=_unwrapping(keyrings)) as opened:
        signed = opened.anchor().signed(made_by)
    if to.startswith("kv:"):
        _keep_in_kv(to.removeprefix("kv:"), signed)
    elif to != "-":
        append_to(to)(signed)
    click.echo(str(signed))


def _keep_in_kv(path: str, signed: "LogAnchor") -> None:
    mount, slash, name = path.partition("/")
    if not (mount and slash and name):
        raise click.UsageError("a secret of KV is named kv:MOUNT/PATH", click.get_current_context())
    import tapeseal

    with tapeseal.VaultSession() as session:
        session.request("POST", f"{mount}/data/{name}", {"data": {"anchor": str(signed)}})


# verify


@audit.command()
@_log
@_keyring(True)
@click.option(
    "--anchors",
    "anchor_files",
    metavar="FILE",
    multiple=True,
    type=click.Path(),
    help="Anchors of the log that were kept elsewhere, one a line; a log that was put back to before one is refused.",
)
@click.option(
    "--public-key",
    "public_keys",
    metavar="PEM",
    multiple=True,
    type=click.Path(),
    help="The public key, or certificate, that signed the anchors.",
)
@click.option(
    "--tapes",
    metavar="PATH",
    multiple=True,
    type=click.Path(),
    help="Compare these tapes, directories or patterns with the anchors of tapes in the log.",
)
@click.option(
    "--tape-keyring",
    "tape_keyrings",
    metavar="KEYRING",
    multiple=True,
    help="Opens the tapes, so that all of each is authenticated; without, their headers and counts are compared.",
)
@click.option(
    "--from-file",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    help="Begin with the log's file N: those before are elsewhere, or were examined.",
)
@options.as_json
def verify(
    log: str,
    keyrings: tuple[str, ...],
    anchor_files: tuple[str, ...],
    public_keys: tuple[str, ...],
    tapes: tuple[str, ...],
    tape_keyrings: tuple[str, ...],
    from_file: int,
    as_json: bool,
) -> int:
    """Authenticate every entry of the log, offline, and list everything that is wrong with it.

    Found are changed, removed, moved and foreign entries, a cut end (by the head LOG.head), and with --anchors a log
    that was put back together with its head, or replaced. With --tapes too: tapes that were cut, put back to an
    earlier state or taken away. Exit code 1 where anything is wrong.
    """
    from tapeseal.audit_log.anchors import read_anchors
    from tapeseal.audit_log.check import verify_log
    from tapeseal.audit_log.tapes import check_tapes

    context = click.get_current_context()
    if bool(anchor_files) != bool(public_keys):
        raise click.UsageError("--anchors and --public-key go together", context)
    if tape_keyrings and not tapes:
        raise click.UsageError("--tape-keyring is for --tapes", context)
    keys = [_read_key(path) for path in public_keys]
    anchors = [each for path in anchor_files for each in read_anchors(path, keys)]
    with output.Progress(log, enabled=not as_json) as bar:
        found = verify_log(
            log, keyring=_unwrapping(keyrings), anchors=anchors, from_file=from_file, progress=bar
        )
    checks: list[TapeCheck] = []
    if tapes:
        keyring = _unwrapping(tape_keyrings) if tape_keyrings else None
        checks = list(check_tapes(found.tapes, tapes, keyring=keyring))
    passed = found.ok and all(each.ok for each in checks)
    if as_json:
        output.as_json(
            {
                "log": log,
                "ok": passed,
                "id": found.log_id,
                "files": found.files,
                "entries": found.entries,
                "last": found.last,
                "unchecked": found.unchecked,
                "anchors": found.anchors,
                "problems": [each._asdict() for each in found.problems],
                "notices": [each._asdict() for each in found.notices],
                "tapes": [{**each._asdict(), "ok": each.ok} for each in checks],
            }
        )
    else:
        _show_verification(log, found, checks)
    if not passed:
        wrong = len(found.problems) + sum(not each.ok for each in checks)
        failures.say(f"{log}: {output.counted(wrong, 'problems')} found", "error")
    return failures.OK if passed else failures.DAMAGED


def _read_key(path: str) -> bytes:
    from tapeseal.cli import data

    return data.read(path, _MAX_KEY)


def _show_verification(log: str, found: "LogVerification", checks: "Sequence[TapeCheck]") -> None:
    for kind, problems in (("", found.problems), ("notice: ", found.notices)):
        for each in problems:
            place = f"{each.file}:{each.line}" if each.line else each.file
            output.line(f"{place}: {kind}{each.kind}: {each.text}")
    for tape in checks:
        if tape.state != "whole":
            output.line(f"{tape.path}: {tape.state}{': ' + tape.text if tape.text else ''}")
    count = "1 entry" if found.entries == 1 else f"{found.entries:,} entries"
    parts = [f"{count}, all of it authentic" if found.ok else f"{count} authentic"]
    if found.unchecked:
        parts.append(f"{found.unchecked:,} that nothing proves any more")
    if len(found.files) > 1:
        parts.append(f"in {len(found.files)} files")
    if found.anchors:
        parts.append(f"{output.counted(found.anchors, 'anchors')} met")
    if checks:
        whole = sum(each.state == "whole" for each in checks)
        parts.append(f"{whole} of {output.counted(len(checks), 'tapes')} as the log says")
    output.line(f"{log}: {', '.join(parts)}")


# report


@audit.command()
@_log
@_keyring(False)
@_period
@click.option(
    "--plan",
    metavar="FILE",
    type=click.Path(),
    help="A rotation plan: its secrets are listed with the age that the log tells.",
)
@click.option(
    "--unused-days",
    metavar="N",
    type=click.FloatRange(0),
    default=90,
    show_default=True,
    help="List keys and secrets that nobody used for so long.",
)
@click.option(
    "--hours",
    metavar="A-B",
    default="7-19",
    show_default=True,
    callback=_parse_hours,
    help="The working hours.",
)
@click.option(
    "--timezone",
    "zone",
    metavar="ZONE",
    default="UTC",
    show_default=True,
    callback=_parse_zone,
    help="Of hours and days, such as America/New_York.",
)
@click.option(
    "--html",
    metavar="OUT",
    type=click.Path(),
    help="Write the report as one page to a new file, or - .",
)
@options.as_json
def report(
    log: str,
    keyrings: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    plan: str | None,
    unused_days: float,
    hours: tuple[int, int],
    zone: tzinfo,
    html: str | None,
    as_json: bool,
) -> int:
    """Say who used what, what is overdue, unused or failed, and what is unlike before.

    The log is verified as it is read, where a KEYRING is given; exit code 1 where it does not verify, with the report
    all the same.

    \b
      tapeseal audit report audit.log -k local:audit.key \\
        --since 90d --plan rotation.toml --html report.html
    """
    from tapeseal.audit_log.report import ReportBuilder, Settings
    from tapeseal.rotation.plan import read_plan

    if html is not None:
        from tapeseal.cli import data

        data.check_new(html)
    settings = Settings(since, until, unused_days, hours, zone)
    builder = ReportBuilder(settings, None if plan is None else read_plan(plan).secrets)
    log_id, verified, problems = _feed(log, keyrings, builder.add, not as_json)
    made = builder.report(log_id=log_id, verified=verified, problems=problems)
    if html is not None:
        from tapeseal.audit_log.page import build_page

        data.write(html, build_page(made).encode())
    if as_json:
        output.as_json(made.as_json(), err=html == "-")
    elif html != "-":
        if html is None:
            _show_report(made)
        else:
            output.line(
                f"{html}: {output.counted(made.entries, 'operations')}, {made.failed:,} failed"
            )
    if verified is False:
        failures.say(f"{log} does not verify: {output.counted(len(problems), 'problems')}", "error")
        return failures.DAMAGED
    return failures.OK


def _feed(
    log: str, keyrings: Sequence[str], take: Callable[[bytes], None], show: bool
) -> tuple[str, bool | None, list[str]]:
    """Give the lines of a log to a function; return the log's id, whether it verifies, and the problems."""
    from tapeseal.audit_log.check import verify_log
    from tapeseal.audit_log.report import read_lines

    if not keyrings:
        for line in read_lines(log):
            take(line)
        failures.say("no keyring was given: nothing of the log was authenticated", "warning")
        return "", None, []
    with output.Progress(log, enabled=show) as bar:
        found = verify_log(log, keyring=_unwrapping(keyrings), each=take, progress=bar)
    problems = [
        f"{each.file}:{each.line}: {each.text}" if each.line else f"{each.file}: {each.text}"
        for each in found.problems
    ]
    return found.log_id, found.ok, problems


def _show_report(made: "Report") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # In a pipe nobody sees where lines break, and a file is read in something wider than 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160)

    def table(
        title: str, columns: Sequence[str], rows: Iterator[Sequence[object]], of: int
    ) -> None:
        if not of:
            return
        shown = Table(
            title=f"{title} ({of})",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for column in columns:
            shown.add_column(
                column.lstrip("#"),
                justify="right" if column.startswith("#") else "left",
                no_wrap=column.startswith("#") or column in ("Last", "Due", "Last used"),
                overflow="fold",
            )
        for number, row in enumerate(rows):
            if number == _MOST_ROWS:
                break
            # As text: what stands in a log is no markup.
            shown.add_row(*(Text(failures.printable(str(cell))) for cell in row))
        console.print(shown)
        if of > _MOST_ROWS:
            output.line(f"and {of - _MOST_ROWS} more: --json or --html has them")
        output.line()

    state = {None: "not verified", True: "verified", False: "DOES NOT VERIFY"}[made.verified]
    output.line(
        f"{made.since[:10]} to {made.until[:10]}: {output.counted(made.entries, 'operations')}, {made.failed:,} failed,"
        f" {len(made.people)} services and people, {made.subjects} keys and secrets; the log is {state}"
    )
    if made.unreadable:
        output.line(f"{output.counted(made.unreadable, 'lines')} could not be read")
    output.line()
    table(
        "Problems of the log", ["Problem"], ((each,) for each in made.problems), len(made.problems)
    )
    table(
        "Rotation",
        ["Secret", "Kind", "Owner", "State", "#Days late", "Last", "Due"],
        (
            (d.name, d.kind, d.owner, d.state, "" if d.days is None else f"{d.days:.0f}",
             (d.last or "")[:10], (d.due or "")[:10])
            for d in made.overdue
        ),
        len(made.overdue),
    )  # fmt: skip
    table(
        "Failed attempts",
        ["Who", "Operation", "What", "Ended with", "#Times", "Last"],
        (
            (f.who, f.action, f.subject, f.result, f"{f.count:,}", _short(f.last))
            for f in made.failures
        ),
        len(made.failures),
    )
    table(
        "Unlike before",
        ["Pattern", "Who", "What", "How", "Last"],
        ((p.kind, p.who, p.subject, p.text, _short(p.last)) for p in made.patterns),
        len(made.patterns),
    )
    table(
        "Unused",
        ["Key or secret", "#Days", "Last used", "By"],
        ((u.subject, f"{u.days:.0f}", _short(u.last), u.who) for u in made.unused),
        len(made.unused),
    )
    table(
        "Who used what",
        ["Who", "What", "How", "#Times", "#Failed", "Versions", "Last"],
        (
            (u.who, u.subject, ", ".join(u.usual_actions()[:3]), f"{u.count:,}",
             f"{u.failed:,}", ", ".join(u.versions), _short(u.last))
            for u in made.uses
        ),
        len(made.uses),
    )  # fmt: skip


_MOST_ROWS = 40


def _short(time: str) -> str:
    return f"{time[:10]} {time[11:16]}"


# show


@audit.command()
@_log
@_keyring(False)
@_period
@click.option("-n", "--last", metavar="N", type=click.IntRange(1), help="Only the last N of them.")
@click.option("--who", metavar="NAME", help="Only by this user, login or identity.")
@click.option("--action", metavar="NAME", help="Only this: kv.read, or kv for all of that part.")
@click.option("--subject", metavar="TEXT", help="Only of subjects that hold this text.")
@click.option("--failed", is_flag=True, help="Only what failed.")
@click.option("--json", "as_json", is_flag=True, help="Write the entries' own lines, of JSON.")
def show(
    log: str,
    keyrings: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    last: int | None,
    who: str | None,
    action: str | None,
    subject: str | None,
    failed: bool,
    as_json: bool,
) -> int:
    """Show entries, one a line.

    \b
      tapeseal audit show audit.log -k local:audit.key --since 1h --failed
    """
    import collections

    from tapeseal.audit_log.report import parse_entry, time_text

    kept: collections.deque[tuple[bytes, dict[str, Any]]] = collections.deque(maxlen=last)
    now = time_text(datetime.now(UTC))
    is_begun = False
    start = "" if since is None else time_text(since)
    stop = "~" if until is None else time_text(until)

    def write(line: bytes, entry: dict[str, Any]) -> None:
        if as_json:
            sys.stdout.buffer.write(line + b"\n")
            return
        by = "/".join(str(entry[name]) for name in ("identity", "login", "user") if entry.get(name))
        version = "" if entry.get("version") is None else f" version {entry['version']}"
        result = "" if entry["result"] == "done" else f": {entry['result']}"
        output.line(
            f"{_short(entry['time'])}:{entry['time'][17:23]} {by}@{entry['host']} {entry['program']}:"
            f" {entry['action']} {entry['subject']}{version}{result}"
        )

    def take(line: bytes) -> None:
        entry = parse_entry(line)
        nonlocal is_begun
        # As in a report: what stands behind an entry of the period is of it too.
        if entry is None or entry["time"] > stop or (entry["time"] < start and not is_begun):
            return
        is_begun = is_begun or entry["time"] <= now
        if failed and entry["result"] == "done":
            return
        if who is not None and who not in (
            entry.get("identity"),
            entry.get("login"),
            entry["user"],
        ):
            return
        if action is not None and action not in (
            entry["action"],
            entry["action"].partition(".")[0],
        ):
            return
        if subject is not None and subject not in entry["subject"]:
            return
        if last is None:
            write(line, entry)
        else:
            kept.append((line, entry))

    _, verified, problems = _feed(log, keyrings, take, show=not as_json)
    for line, entry in kept:
        write(line, entry)
    if verified is False:
        failures.say(f"{log} does not verify: {problems[0]}", "error")
        return failures.DAMAGED
    return failures.OK
