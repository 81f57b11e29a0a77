"""tapeseal break-glass."""

import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from tapeseal import audit
from tapeseal.cli import failures, options, output
from tapeseal.cli.child import Child, as_variable
from tapeseal.cli.injection import memory_directory
from tapeseal.cli.kv import gathered
from tapeseal.cli.vault_init import custodians, public_keys, threshold
from tapeseal.errors import DamagedError
from tapeseal.files import new_file, write_all

if TYPE_CHECKING:
    from tapeseal.break_glass import Opened, Package, Request
    from tapeseal.rotation.journal import Request as Asked
    from tapeseal.rotation.plan import Plan
    from tapeseal.secret import Secret

_DURATION = re.compile(r"(\d{1,6})([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no time: 30m, 1h or 90s", ctx, param)
    return int(found[1]) * _UNITS[found[2]]


_package = click.argument("package", type=click.Path(dir_okay=False))
_request = click.argument("request", type=click.Path(dir_okay=False))
_plan = click.option(
    "-p",
    "--plan",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="The rotation plan of what the package opens.",
)


@click.group()
def break_glass() -> None:
    """Emergency access that custodians open together, for one reason and a limited time.

    A package is sealed for custodians; whoever needs it makes a request, custodians approve that on
    their own machines, and with enough approvals it opens. What it opens is rotated afterwards.
    Beside each package stands its drill, PACKAGE.drill: the same ceremony, with nothing in it.
    """


@break_glass.command()
@_package
@custodians
@threshold
@click.option(
    "--secret",
    "secrets",
    metavar="NAME=SOURCE",
    multiple=True,
    help="What is sealed, from @FILE, - (standard input), ? (asked for) or generate; given once for each.",
)
@click.option("--text", "texts", metavar="NAME=TEXT", multiple=True, help="The same, not secret.")
@click.option(
    "--opens",
    metavar="SECRET",
    multiple=True,
    help="A secret of the rotation plan that it gives access to, to be rotated once it was opened.",
)
@click.option(
    "--for", "seconds", metavar="TIME", callback=_seconds, default="1h", show_default=True,
    help="The longest that access is granted.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="Of the package.  [that of the file]")
@options.as_json
def seal(
    package: str,
    custodians: tuple[str, ...],
    threshold: int,
    secrets: tuple[str, ...],
    texts: tuple[str, ...],
    opens: tuple[str, ...],
    seconds: int,
    name: str | None,
    as_json: bool,
) -> None:
    """Seal secrets into PACKAGE, in the place of one that is there, so that any M custodians open it together."""
    from tapeseal.break_glass import Package
    from tapeseal.break_glass import seal as make
    from tapeseal.secret import Secret

    with gathered(secrets, texts) as values, ExitStack() as stack:
        kept = {
            each: value
            if isinstance(value, Secret)
            else stack.enter_context(Secret.take(bytearray(value.encode())))
            for each, value in values.items()
        }
        keys = public_keys(custodians)
        make(package, kept, keys, threshold, name=name, opens=opens, seconds=seconds)
    _show(Package.read(package), as_json)


@break_glass.command()
@_package
@options.as_json
def inspect(package: str, as_json: bool) -> None:
    """Say what PACKAGE says of itself; needs no key."""
    from tapeseal.break_glass import Package

    _show(Package.read(package), as_json)


def _show(package: "Package", as_json: bool) -> None:
    if as_json:
        output.as_json(
            {
                "package": package.path,
                "id": package.id,
                "name": package.name,
                "drill": package.drill,
                "opens": list(package.opens),
                "seconds": package.seconds,
                "custodians": list(package.custodians),
                "threshold": package.threshold,
            }
        )
        return
    output.line(f"{package.path}: {package.name}{', a drill' if package.drill else ''}")
    names = ", ".join(package.custodians)
    output.rows(
        [
            ("opened by", f"any {package.threshold} of {names}"),
            ("for at most", output.duration(package.seconds)),
            ("gives access to", ", ".join(package.opens) or "nothing in a rotation plan"),
        ]
    )


@break_glass.command()
@_package
@click.option("-o", "--output", "out", metavar="REQUEST", type=click.Path(), required=True)
@click.option(
    "--reason", metavar="TEXT", required=True, help="Why; a ticket's number belongs here."
)
@click.option(
    "--for", "seconds", metavar="TIME", callback=_seconds, help="How long.  [as long as it grants]"
)
@options.as_json
def request(package: str, out: str, reason: str, seconds: int | None, as_json: bool) -> None:
    """Ask for what is in PACKAGE, or in PACKAGE.drill.

    REQUEST goes to the custodians; REQUEST.key stays here, for it is what opens. Tell each custodian the
    fingerprint in person or over the telephone: it is how they know the request for yours.
    """
    from tapeseal.break_glass import request as make

    fingerprint = make(package, out, reason=reason, seconds=seconds)
    if as_json:
        output.as_json({"request": out, "key_file": f"{out}.key", "fingerprint": fingerprint})
        return
    output.line(f"{out}: for the custodians; {out}.key stays here")
    output.line(f"fingerprint, to be told them and not sent: {fingerprint}")


@break_glass.command()
@_package
@_request
@click.option(
    "-k", "--keyring", metavar="KEYRING", required=True, help="Your own: public-key:alice.key."
)
@click.option("-o", "--output", "out", metavar="APPROVAL", type=click.Path(), required=True)
@click.option(
    "--fingerprint",
    metavar="TEXT",
    help="What the requester told you; asked for on the terminal where it is not given.",
)
@options.as_json
def approve(
    package: str, request: str, keyring: str, out: str, fingerprint: str | None, as_json: bool
) -> None:
    """Grant REQUEST, as a custodian of PACKAGE: your share goes into APPROVAL, for that request alone."""
    import tapeseal
    from tapeseal.break_glass import approve as grant

    def told(found: "Package", asked: "Request") -> str:
        if not as_json:
            _show_request(found, asked)
        if fingerprint is not None:
            return fingerprint
        return str(click.prompt("Fingerprint, as the requester told you", err=True))

    name = grant(package, request, tapeseal.keyring(keyring), out, fingerprint=told)
    if as_json:
        output.as_json({"approval": out, "custodian": name, "request": request})
    else:
        output.line(f"{out}: approved by {name}; send it to the requester")


def _show_request(package: "Package", request: "Request") -> None:
    output.line(
        f"{request.requester} asks for {request.name}{' (a drill)' if request.drill else ''}"
    )
    output.rows(
        [
            ("reason", request.reason),
            ("for", output.duration(request.seconds)),
            ("made", request.made),
            ("gives access to", ", ".join(package.opens) or "nothing in a rotation plan"),
        ]
    )


@break_glass.command(name="open", context_settings={"ignore_unknown_options": True})
@_package
@_request
@click.option(
    "-a", "--approval", "approvals", metavar="APPROVAL", multiple=True, required=True,
    type=click.Path(dir_okay=False), help="Given once for each custodian.",
)  # fmt: skip
@click.option("--env", "env", metavar="NAME=SECRET", multiple=True, help="A secret as a variable.")
@click.option(
    "--file",
    "files",
    metavar="NAME=SECRET",
    multiple=True,
    help="In a file in memory that NAME names.",
)
@_plan
@options.as_json
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def open_(
    package: str,
    request: str,
    approvals: tuple[str, ...],
    env: tuple[str, ...],
    files: tuple[str, ...],
    plan: str | None,
    as_json: bool,
    command: tuple[str, ...],
) -> int:
    """Open PACKAGE and run COMMAND with what is in it, until the time granted is over.

    \b
      tapeseal break-glass open vault.glass vault.request \\
          -a alice.approval -a bob.approval \\
          --env VAULT_TOKEN=token --plan rotation.toml -- bash

    What the package opens is rotated, by the plan, when the command has ended; whatever becomes of this process, when
    the time granted is over. Of a drill nothing is handed out, and no command is run.
    """
    from tapeseal.break_glass import Package, open_package

    found = Package.read(package)
    variables, in_files = _pairs(env), _pairs(files)
    for each in variables.keys() & in_files.keys():
        raise click.UsageError(f"{each} is given twice")
    if found.drill:
        if command or variables or in_files:
            raise click.UsageError("a drill holds nothing, so it runs no command")
        begun = time.monotonic()
        with open_package(package, request, approvals) as opened:
            return _report_drill(opened, time.monotonic() - begun, as_json)
    if not command or not (variables or in_files):
        raise click.UsageError("a package is opened for a command: --env NAME=SECRET -- COMMAND")
    if found.opens and plan is None:
        raise click.UsageError(
            f"what the package opens has to be rotated afterwards, by a plan: --plan FILE for {', '.join(found.opens)}"
        )
    child = Child.find(command)
    if audit.active() is None:
        failures.say("no audit log records this: TAPESEAL_AUDIT names none", "warning")
    with ExitStack() as stack:
        reason = f"break-glass {found.name} was opened"
        asked: list[Asked] = []
        planned = None if plan is None else _planned(plan, found.opens)
        opened = stack.enter_context(open_package(package, request, approvals))
        if opened.package != found:
            # What it opens was read before anything of it was authentic.
            raise DamagedError(f"{package} was changed while it was opened", 0)
        for secret in in_files.values():
            _secret(opened, secret)
        environment = dict(os.environ)
        for name, secret in variables.items():
            environment[name] = as_variable(_secret(opened, secret))
            if "\0" in environment[name]:
                raise click.UsageError(
                    f"{secret} has a zero byte, which no environment can: use --file"
                )
        if planned is not None:
            # Nothing has been handed out yet; and who has not the approvals makes nothing due.
            asked = _ask(planned, found.opens, reason, opened.seconds_left)
        if in_files:
            directory = stack.enter_context(memory_directory())
            for name, secret in in_files.items():
                with (
                    new_file(directory / name, 0o600, replace=False) as fd,
                    _secret(opened, secret).buffer as buffer,
                    memoryview(buffer) as view,
                ):
                    write_all(fd, view)
                environment[name] = str(directory / name)
        failures.say(
            f"{found.name} is open for {output.duration(opened.seconds_left)}, approved by "
            f"{', '.join(opened.approved_by)}",
            "break-glass",
        )
        code = child.run(environment, opened.seconds_left)
        if opened.seconds_left == 0:
            failures.say("the time granted was over, so the command was ended", "break-glass")
    if planned is not None and found.opens:
        failures.say(f"rotating {', '.join(found.opens)}", "break-glass")
        asked = _ask(planned, found.opens, reason, 0.0, instead_of=asked)
        rotated = _rotate(planned.path, asked, reason)
        return code or rotated
    return code


def _report_drill(opened: "Opened", seconds: float, as_json: bool) -> int:
    made = datetime.fromisoformat(opened.request.made)
    waited = (datetime.now(UTC) - made).total_seconds()
    if as_json:
        output.as_json(
            {
                "package": opened.package.name,
                "approved_by": list(opened.approved_by),
                "seconds_since_request": round(waited, 1),
            }
        )
    else:
        names = " and ".join(opened.approved_by)
        output.line(f"The drill of {opened.package.name} went well: {names} opened it,")
        output.line(f"{output.duration(waited)} after it was asked for. Nothing was handed out.")
    return failures.OK


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, secret = text.partition("=")
        if not _VARIABLE.fullmatch(name) or not equals or not secret:
            raise click.UsageError(f"{text!r} is not NAME=SECRET")
        if name in pairs:
            raise click.UsageError(f"{name} is given twice")
        pairs[name] = secret
    return pairs


def _secret(opened: "Opened", name: str) -> "Secret":
    if name not in list(opened):
        raise click.UsageError(f"there is no {name!r} in the package; there is {', '.join(opened)}")
    return opened[name]


def _planned(path: str, names: Sequence[str]) -> "Plan":
    from tapeseal.rotation.plan import read_plan

    plan = read_plan(path)
    unknown = [name for name in names if name not in plan.secrets]
    if unknown:
        raise click.UsageError(f"{path} has no secret {', '.join(unknown)}")
    return plan


def _ask(
    plan: "Plan",
    names: Sequence[str],
    reason: str,
    seconds: float,
    instead_of: "Sequence[Asked]" = (),
) -> "list[Asked]":
    """Leave requests for rotations in so many seconds, which stand whatever becomes of this process."""
    from tapeseal.rotation.journal import EMERGENCY, Journal

    with Journal(plan.state) as journal:
        at = time.time() + seconds
        asked = [journal.ask(EMERGENCY, name, reason, at) for name in names]
        for each in instead_of:
            journal.answer(each)
    return asked


def _rotate(path: str, asked: "Sequence[Asked]", reason: str) -> int:
    """Rotate what was opened; what fails stays asked for, and the next run goes on with it."""
    from tapeseal.cli.rotation import _engine, _report

    with _engine(path) as engine:
        try:
            with engine:
                outcomes = list(engine.rotate([each.secret for each in asked], reason=reason))
                done = {each.secret for each in outcomes if not each.alarm}
                # Its own alone: another opening of this package may go on yet.
                for each in asked:
                    if each.secret in done:
                        engine.journal.answer(each)
        except BlockingIOError:
            failures.say("the runner that has the journal was asked", "break-glass")
            return failures.OK
    return _report(outcomes, as_json=False)
