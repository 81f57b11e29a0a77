"""tapeseal rotate: plan, run, serve, status, rollback, acknowledge."""

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tapeseal.cli import failures, options, output

if TYPE_CHECKING:
    from tapeseal.rotation.compromise import Compromise
    from tapeseal.rotation.engine import Engine, Outcome
    from tapeseal.rotation.journal import Journal
    from tapeseal.rotation.plan import Plan
    from tapeseal.rotation.schedule import Calendars
    from tapeseal.rotation.status import Status

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _plan_option(command: _Command) -> _Command:
    return click.option(
        "-p",
        "--plan",
        "path",
        metavar="FILE",
        default="rotation.toml",
        show_default=True,
        type=click.Path(),
        help="The plan.",
    )(command)


@click.group()
def rotate() -> None:
    """Rotate the secrets of a plan: new ones are verified against their targets before old ones end.

    The Vault is the one that the variables of its own command line name: VAULT_ADDR or BAO_ADDR, VAULT_TOKEN or
    BAO_TOKEN and so on, or ~/.vault-token. docs/rotation.md has the plan.
    """


@contextlib.contextmanager
def _opened(path: str) -> "Iterator[tuple[Plan, Journal, Calendars]]":
    """Open a plan, its journal and the calendars that are kept there."""
    from tapeseal.rotation.journal import Journal
    from tapeseal.rotation.plan import check_windows, read_plan
    from tapeseal.rotation.schedule import Calendars

    with _problems():
        plan = read_plan(path)
    with Journal(plan.state) as journal:
        calendars = Calendars(journal)
        with _problems():
            check_windows(plan, calendars)
        yield plan, journal, calendars


@contextlib.contextmanager
def _problems() -> Iterator[None]:
    """Say what is wrong with a plan, a line each, and end the command."""
    from tapeseal.errors import PlanError

    try:
        yield
    except PlanError as error:
        shown = error.problems[:50]
        for problem in shown:
            failures.say(f"{error.path}: {problem}", "error")
        if len(error.problems) > len(shown):
            failures.say(f"{error.path}: {len(error.problems) - len(shown)} problems more", "error")
        click.get_current_context().exit(failures.USAGE)


@contextlib.contextmanager
def _engine(path: str) -> "Iterator[Engine]":
    """Open all that works on rotations, without being the runner yet."""
    import logging

    from tapeseal.rotation.engine import Engine
    from tapeseal.rotation.services import PlanServices

    # What is worth saying is in the report.
    logging.getLogger("tapeseal").addHandler(logging.NullHandler())
    with _opened(path) as (plan, journal, calendars), PlanServices() as services:
        _ = services.vault  # A wrong variable is said now, and not of a rotation.
        yield Engine(plan, journal, services, calendars=calendars)


def _parse_duration(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> timedelta | None:
    from tapeseal.rotation.settings import parse_duration

    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@rotate.command()
@_plan_option
@click.option("--refresh", is_flag=True, help="Ask the services first what is in use.")
@options.as_json
def plan(path: str, refresh: bool, as_json: bool) -> int:
    """Check the plan, and say when each secret changes next.

    "begins" is the first moment at or after the due date at which its window is open.
    """
    return _show(path, (), refresh, as_json, _plan_row, sort=True)


@rotate.command()
@click.argument("names", metavar="[SECRET]...", nargs=-1)
@_plan_option
@click.option("--refresh", is_flag=True, help="Ask the services first what is in use.")
@options.as_json
def status(names: tuple[str, ...], path: str, refresh: bool, as_json: bool) -> int:
    """Say how old each secret is and what is in the way of its rotation.

    Of a SECRET that is named the events of its latest rotation are shown too. The exit code is 3 where somebody must
    look at something: a consumer that stays on an old version, a rotation that failed, an overdue secret.
    """
    return _show(path, names, refresh, as_json, _status_row)


def _show(
    path: str,
    names: Sequence[str],
    refresh: bool,
    as_json: bool,
    row: "Callable[[Status, datetime], list[str]]",
    *,
    sort: bool = False,
) -> int:
    from tapeseal.rotation.status import statuses

    codes = [failures.OK]
    if refresh:
        with _engine(path) as engine:
            for outcome in engine.refresh(names or engine.plan.secrets):
                failures.say(f"{outcome.secret}: {outcome.error}", "error")
                codes.append(failures.UNAVAILABLE)
    with _opened(path) as (plan, journal, calendars):
        now = datetime.now(UTC)
        found = statuses(plan, journal, calendars, now)
        for name in names:
            if name not in plan.secrets:
                raise click.UsageError(f"there is no secret {name!r} in {path}")
        found = [each for each in found if not names or each.secret.name in names]
        if sort:
            latest = datetime.max.replace(tzinfo=UTC)
            found.sort(key=lambda each: each.begins or each.due or latest)
        if as_json:
            for each in found:
                output.as_json(_status_json(each, journal if names else None))
        else:
            output.table([row(each, now) for each in found], _HEADERS[row])
            for each in found:
                if each.alarm:
                    output.line(f"{each.secret.name}: {each.alarm}")
            if names:
                _show_events(found, journal)
    if not sort and any(each.alarm or each.state == "overdue" for each in found):
        codes.append(failures.UNAVAILABLE)
    return failures.worst(codes)


def _show_events(found: "list[Status]", journal: "Journal") -> None:
    for each in found:
        if each.record is None:
            continue
        reason = f", an emergency: {each.record.reason}" if each.record.emergency else ""
        output.line()
        version = each.record.facts.get("version")
        to = "" if version is None else f" to version {version}"
        output.line(f"rotation {each.record.id} of {each.secret.name}{to}{reason}")
        events = journal.events(each.record.id)
        for what, group in itertools.groupby(events, key=lambda event: event[1:]):
            times = [_time(datetime.fromtimestamp(at, UTC), True) for at, *_ in group]
            more = f" ({len(times)} times, until {times[-1]})" if len(times) > 1 else ""
            output.line(f"  {times[0]}  {' '.join(what[:2])}{more}  {what[2]}".rstrip())


def _plan_row(each: "Status", now: datetime) -> list[str]:
    from tapeseal.rotation.settings import duration_text

    secret = each.secret
    window = ", ".join(secret.window.markets)
    return [
        secret.name,
        secret.kind,
        secret.tier,
        secret.owner,
        duration_text(secret.schedule),
        _time(each.due) if each.due else "unknown: --refresh",
        _time(each.begins) if each.begins else "",
        f"{window} closed" if window else "as set" if not secret.window.always else "any",
    ]


def _status_row(each: "Status", now: datetime) -> list[str]:
    secret, known, record = each.secret, each.known, each.record
    waiting = ", ".join(record.waiting) if record is not None and record.open else ""
    state = each.state
    if record is not None and record.open:
        if waiting or state in ("running", "rolling back"):
            state += f": {waiting or record.step}"
        if record.held is not None:
            state += f", held until {_time(datetime.fromtimestamp(record.held, UTC))}"
    return [
        secret.name,
        secret.kind,
        secret.tier,
        secret.owner,
        known.version or "",
        _age(now - known.made) if known.made else "",
        _time(each.due) if each.due else "",
        f"{state} (!)" if each.alarm else state,
    ]


_HEADERS: dict[Any, list[str]] = {
    _plan_row: ["secret", "kind", "tier", "owner", "schedule", "due", "begins", "window"],
    _status_row: ["secret", "kind", "tier", "owner", "version", "age", "due", "state"],
}


def _status_json(each: "Status", journal: "Journal | None") -> dict[str, Any]:
    secret, known, record = each.secret, each.known, each.record
    report: dict[str, Any] = {
        "secret": secret.name,
        "kind": secret.kind,
        "tier": secret.tier,
        "owner": secret.owner,
        "state": each.state,
        "version": known.version,
        "made": _iso(known.made),
        "expires": _iso(known.expires),
        "due": _iso(each.due),
        "begins": _iso(each.begins),
        "last_success": _iso(known.succeeded),
        "failures": known.failures,
        "alarm": each.alarm or None,
    }
    if record is not None:
        report["rotation"] = {
            "id": record.id,
            "state": record.state,
            "step": record.step,
            "version": record.facts.get("version"),
            "emergency": record.emergency,
            "started": _iso(datetime.fromtimestamp(record.started, UTC)),
            "waiting": record.waiting if record.open else [],
            "error": record.error or None,
        }
        if journal is not None:
            report["rotation"]["events"] = [
                {
                    "at": _iso(datetime.fromtimestamp(at, UTC)),
                    "step": step,
                    "event": event,
                    "detail": detail,
                }
                for at, step, event, detail in journal.events(record.id)
            ]
    return report


def _time(when: datetime, seconds: bool = False) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="seconds").replace("+00:00", "Z")


def _age(age: timedelta) -> str:
    hours = int(age.total_seconds() // 3600)
    return f"{hours // 24}d" if hours >= 48 else f"{hours}h"


@rotate.command()
@click.argument("names", metavar="[SECRET]...", nargs=-1)
@_plan_option
@click.option(
    "--due",
    is_flag=True,
    help="All that is due and whose window is open, and all that is open; for cron.",
)
@click.option(
    "--compromised",
    metavar="CLUE",
    multiple=True,
    help="Rotate at once all that a compromise touched, and say which tapes it exposed: key=NAME, provider=NAME,"
    " version<NUMBER of a wrapping key, or path=, host=, owner=, consumer=, secret= of secrets; * and ? stand for what"
    " they do in a shell. Several clues about a wrapping key must all hold.",
)
@click.option("--dry-run", is_flag=True, help="Only say every call that it would make.")
@click.option(
    "--take-over",
    is_flag=True,
    help="Go on with a rotation whose journal is lost, from what it keeps in Vault. Only when its runner is gone.",
)
@click.option(
    "--wait",
    metavar="DURATION",
    callback=_parse_duration,
    help="Stay until the rotations end, so long at most, such as 30m.",
)
@options.as_json
def run(
    names: tuple[str, ...],
    path: str,
    due: bool,
    compromised: tuple[str, ...],
    dry_run: bool,
    take_over: bool,
    wait: timedelta | None,
    as_json: bool,
) -> int:
    """Rotate each SECRET now, or what is due.

    A rotation that must wait, for consumers or for its window, is left open, and the next run goes on with it. So does
    a run after a crash. The exit code is 3 where something failed or needs a look.

    \b
      tapeseal rotate run --due
      tapeseal rotate run binance-key --wait 10m
      tapeseal rotate run --compromised key=transit/days --compromised 'version<3'

    --compromised rotates whatever the hour: it heeds no window, waits for no consumer, and ends the old secret at once.

    While a daemon has the journal it is given the names, and does the rest; --wait looks on.
    """
    chosen = [bool(names), due, bool(compromised)]
    if sum(chosen) != 1:
        raise click.UsageError("give the names of secrets, or --due, or --compromised")
    if take_over and (not names or dry_run):
        raise click.UsageError("--take-over is for secrets by their names")
    from tapeseal.rotation.compromise import Compromise

    with _engine(path) as engine:
        code = failures.OK
        reason = ""
        if compromised:
            try:
                compromise = Compromise.parse(compromised)
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            names = tuple(compromise.secrets(engine.plan))
            reason = f"compromised: {compromise}"
            if not names:
                failures.say(f"no secret of {path} has to do with {compromise}", "error")
                code = failures.UNAVAILABLE
        for name in names:
            if name not in engine.plan.secrets:
                raise click.UsageError(f"there is no secret {name!r} in {path}")
        if dry_run:
            code = failures.worst([code, _dry_run(engine, names, reason, as_json)])
        elif names or due:
            code = _rotate(engine, names, due, reason, take_over, wait, as_json)
        if compromised:
            # After the rotation: reading thousands of tapes takes time that it has not.
            code = failures.worst([code, _report_tapes(compromise, engine.plan, as_json)])
    return code


def _dry_run(engine: "Engine", names: Sequence[str], reason: str, as_json: bool) -> int:
    if not names and not reason:
        engine.refresh()
        names = list(dict.fromkeys([*engine.unfinished(), *engine.due_now()]))
    for name in names:
        calls = engine.calls(name)
        held = None if reason else engine.held(engine.plan.secrets[name], engine.now())
        if as_json:
            when = None if held is None else _iso(held.held)
            output.as_json({"secret": name, "held": when, "calls": calls})
            continue
        output.line(f"{name}{'' if held is None else f': {_held_text(held)}'}")
        for call in calls:
            output.line(f"  {call}")
    return failures.OK


def _rotate(
    engine: "Engine",
    names: Sequence[str],
    due: bool,
    reason: str,
    take_over: bool,
    wait: timedelta | None,
    as_json: bool,
) -> int:
    from tapeseal.rotation.journal import EMERGENCY, ROTATE

    if reason:
        failures.say(
            f"{output.counted(len(names), 'secrets')} rotated at once, whatever their windows"
        )
    last: dict[str, Outcome] = {}
    try:
        with engine:
            if take_over:
                return _report((engine.take_over(name) for name in names), as_json)
            held_code = failures.OK if due else failures.UNAVAILABLE
            found = engine.run_due() if due else engine.rotate(names, reason=reason)
            code = _report(_noted(found, last), as_json, held_code)
            if wait is not None:
                _wait(engine, names, wait, last, as_json)
                code = failures.worst(_code(each, held_code) for each in last.values())
            return code
    except BlockingIOError:
        if due or take_over:
            raise
    asked = time.time()
    for name in names:
        engine.journal.ask(EMERGENCY if reason else ROTATE, name, reason, asked)
        if as_json:
            output.as_json({"secret": name, "state": "asked"})
        else:
            output.line(f"{name}: the runner that has the journal was asked")
    return failures.OK if wait is None else _wait_for_runner(engine, names, wait, asked, as_json)


def _wait_for_runner(
    engine: "Engine", names: Sequence[str], wait: timedelta, asked: float, as_json: bool
) -> int:
    """Look on until the runner that was asked has done it or the time is over; show what became of each."""
    from tapeseal.rotation.engine import Outcome

    end = time.monotonic() + wait.total_seconds()
    while True:
        waiting = {each.secret for each in engine.journal.requests(time.time())}
        records = engine.journal.records()
        left = [
            name for name in names if name in waiting or (name in records and records[name].open)
        ]
        if not left or time.monotonic() >= end:
            break
        time.sleep(0.2)
    found = []
    for name in names:
        record = records.get(name)
        if record is not None and (record.open or record.updated >= asked):
            found.append(Outcome(name, record.state, record, error=record.error))
        else:
            text = "the runner has not begun: its window may be closed, or its pair busy"
            found.append(Outcome(name, "failed", error=text))
    return _report(found, as_json)


def _noted(outcomes: "Iterable[Outcome]", last: "dict[str, Outcome]") -> "Iterator[Outcome]":
    for each in outcomes:
        last[each.secret] = each
        yield each


def _wait(
    engine: "Engine",
    names: Sequence[str],
    wait: timedelta,
    last: "dict[str, Outcome]",
    as_json: bool,
) -> None:
    """Go on with what is open until it ends or the time is over; note and show what became of each."""
    end = time.monotonic() + wait.total_seconds()
    still: dict[str, Outcome] = {}
    while time.monotonic() < end:
        records = engine.journal.records(open_only=True)
        left = [
            name for name in records if name in engine.plan.secrets and (not names or name in names)
        ]
        if not left:
            break
        time.sleep(min(1.0, max(end - time.monotonic(), 0.0)))
        still = {}
        for each in _noted(engine.rotate(left), last):
            if each.record is not None and each.record.open:
                still[each.secret] = each
            else:
                _report([each], as_json)
    _report(still.values(), as_json)


def _report(outcomes: "Iterable[Outcome]", as_json: bool, held_code: int = failures.OK) -> int:
    codes = []
    for each in outcomes:
        record = each.record
        codes.append(_code(each, held_code))
        version = record.facts.get("version") if record is not None else None
        problem = each.error or (record.alarm if record is not None else "")
        if as_json:
            output.as_json(
                {
                    "secret": each.secret,
                    "state": each.state,
                    "rotation": record.id if record else None,
                    "step": record.step if record and record.open else None,
                    "version": version,
                    "waiting": record.waiting if record and record.open else [],
                    "held": _iso(each.held),
                    "error": problem or None,
                }
            )
            continue
        text = each.state
        if each.state == "held" or each.held is not None:
            text = _held_text(each)
        elif record is not None and record.open and record.waiting:
            text = f"waiting for {', '.join(record.waiting)}"
        elif each.state in ("running", "rolling back") and record is not None:
            text = f"{each.state}, at {record.step}"
        elif each.state == "finished":
            text = f"finished, version {version}"
        output.line(f"{each.secret}: {text}{f': {problem}' if problem else ''}")
    return failures.worst(codes)


def _code(outcome: "Outcome", held_code: int = failures.OK) -> int:
    if outcome.alarm:
        return failures.UNAVAILABLE
    return held_code if outcome.state == "held" else failures.OK


def _held_text(outcome: "Outcome") -> str:
    if outcome.held is None:
        return "held: no window within a year, or another of its pair is being rotated"
    return f"held until {_time(outcome.held)} UTC"


def _report_tapes(compromise: "Compromise", plan: "Plan", as_json: bool) -> int:
    codes = []
    tapes = 0
    for each in compromise.tapes(plan):
        if isinstance(each, tuple):
            codes.append(failures.report(each[1], each[0], as_json=as_json))
            continue
        tapes += 1
        if as_json:
            output.as_json(
                {"tape": each.path, "items": each.inspection.items, "kind": each.inspection.kind, "alone": each.alone}
            )  # fmt: skip
        else:
            holds = output.counted(each.inspection.items, each.inspection.kind)
            output.line(
                f"exposed: {each.path}: {holds}{'' if each.alone else ', a share of it only'}"
            )
    if compromise.conditions:
        unread = f", {len(codes)} could not be read" if codes else ""
        failures.say(f"{output.counted(tapes, 'tapes')} exposed{unread}")
    return failures.worst(codes)


@rotate.command()
@_plan_option
@click.option("--metrics", metavar="HOST:PORT", help="Instead of the plan's address.")
def serve(path: str, metrics: str | None) -> int:
    """Rotate what is due, until SIGTERM, and serve metrics for Prometheus.

    SIGTERM ends it once each rotation is at the end of its step; the next start goes on. SIGHUP has it read the plan
    again.
    """
    import logging

    from tapeseal.rotation.service import Daemon

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    with _problems():
        daemon = Daemon(path, metrics=metrics)
    with daemon:
        signal.signal(signal.SIGTERM, lambda *_: daemon.stop())
        signal.signal(signal.SIGINT, lambda *_: daemon.stop())
        signal.signal(signal.SIGHUP, lambda *_: daemon.reload())
        output.line(f"metrics at port {daemon.port}", err=True)
        daemon.run()
    return failures.OK


@rotate.command()
@click.argument("name", metavar="SECRET")
@_plan_option
@options.as_json
def rollback(name: str, path: str, as_json: bool) -> int:
    """Go back to the old SECRET, while that is still alive.

    It is deployed again and seen to be accepted; then the new one is ended. After the revoke there is no way back.
    """
    from tapeseal.rotation.journal import ROLLBACK

    with _engine(path) as engine:
        if name not in engine.plan.secrets:
            raise click.UsageError(f"there is no secret {name!r} in {path}")
        try:
            with engine:
                outcome = engine.rollback(name)
        except BlockingIOError:
            engine.journal.ask(ROLLBACK, name, "", time.time())
            if as_json:
                output.as_json({"secret": name, "state": "asked"})
            else:
                output.line(f"{name}: the runner that has the journal was asked")
            return failures.OK
        _report([outcome], as_json)
        return failures.OK if outcome.state == "rolled back" else failures.UNAVAILABLE


@rotate.command()
@click.argument("secret")
@click.argument("consumer")
@click.argument("version")
@click.option(
    "--path",
    metavar="PATH",
    help="Where in KV consumers acknowledge: `consumers` in the plan. [secret/tapeseal-consumers]",
)
@options.as_json
def acknowledge(secret: str, consumer: str, version: str, path: str | None, as_json: bool) -> None:
    """Say that CONSUMER uses VERSION of SECRET and no older one; the rotation waits for that.

    A consumer does so when it has taken up a new version, and at each start.
    """
    from tapeseal.rotation import consumers
    from tapeseal.rotation.plan import CONSUMERS
    from tapeseal.vault.session import VaultSession

    where = path or CONSUMERS
    with VaultSession() as vault:
        consumers.acknowledge(vault, secret, consumer, version, path=where)
    if as_json:
        output.as_json({"secret": secret, "consumer": consumer, "version": version})
    else:
        output.line(f"{secret}: {consumer} is on version {version}")
