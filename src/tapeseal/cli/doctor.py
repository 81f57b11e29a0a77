"""tapeseal doctor."""

import dataclasses
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tapeseal.cli import failures, output
from tapeseal.cli.failures import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tapeseal.doctor import Finding, Report

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STYLES: Final = {"serious": "bold red", "warning": "yellow", "info": "cyan"}
_INDENT: Final = len("serious") + 2
_ASK: Final = {
    "vault": "VAULT_ADDR",
    "kms": "-k aws-kms:KEY, --plan",
    "plan": "--plan",
    "break-glass": "--package",
    "tape": "--tapes",
    "config": "--config",
}


def _list(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from tapeseal.doctor import checks

    for check in checks():
        output.line(check.name)
        output.line(f"    {check.looks_at}")
        output.line(f"    {check.why}")
    ctx.exit()


def _path(name: str, help_text: str, *, several: bool = False) -> Callable[[_Command], _Command]:
    return click.option(
        name, metavar="PATH", multiple=several, type=click.Path(exists=True), help=help_text
    )


@click.command(context_settings={"max_content_width": 100})
@click.option(
    "-k",
    "--keyring",
    "keyrings",
    metavar="KEYRING",
    multiple=True,
    help="Look at its key file, or at its key in AWS KMS.",
)
@_path("--plan", "Look at this rotation plan and its journal.")
@_path("--audit", "Look at this audit log, not at that of TAPESEAL_AUDIT.")
@_path("--anchors", "The file that keeps its anchors.")
@_path("--package", "Look at this break-glass package.", several=True)
@_path("--tapes", "Look at this tape, or at those in a folder.", several=True)
@_path("--config", "Look for secrets in this file, or in a folder.", several=True)
@click.option(
    "--only", metavar="CHECK", multiple=True, help="Only this check, or those of an area: vault."
)
@click.option(
    "--skip",
    metavar="CHECK[:SUBJECT]",
    multiple=True,
    help="Not this check or area, or not for this subject; * stands for any text.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["info", "warning", "serious", "never"]),
    default="warning",
    show_default=True,
    help="The exit code is 1 from this severity on.",
)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list,
    help="Explain each check.",
)
@click.option("--json", "as_json", is_flag=True, help="Report as one JSON object.")
def doctor(
    keyrings: tuple[str, ...],
    plan: str | None,
    audit: str | None,
    anchors: str | None,
    package: tuple[str, ...],
    tapes: tuple[str, ...],
    config: tuple[str, ...],
    only: tuple[str, ...],
    skip: tuple[str, ...],
    fail_on: str,
    as_json: bool,
) -> int:
    """Look at a set-up, and say what to mend. Changes nothing.

    \b
      tapeseal doctor
      tapeseal doctor --plan rotation.toml --tapes /archive --config /etc/recorder
      tapeseal doctor --only vault --skip vault.policies:break-glass --json

    Looks at this machine, its environment and token files, and at the Vault that VAULT_ADDR or BAO_ADDR names, with
    the caller's token: docs/doctor.md has the policy for it. What it may not see it says, and what that takes.

    The exit code is 1 where something is found, and 3 where nothing could be looked at.
    """
    from tapeseal.doctor import SetUp, examine

    report = examine(
        SetUp(
            keyrings=keyrings,
            plan=plan,
            audit_log=audit,
            anchors=anchors,
            packages=package,
            tapes=tapes,
            configuration=config,
        ),
        only=only,
        skip=skip,
    )
    code = failures.OK
    if not report.looked_at:
        code = failures.UNAVAILABLE
    elif fail_on != "never" and report.at_least(fail_on):
        code = failures.DAMAGED
    if as_json:
        output.as_json({**dataclasses.asdict(report), "exit_code": code})
    else:
        _show(report)
    return code


def _show(report: "Report") -> None:
    from rich.console import Console

    console = Console(width=_width(), highlight=False, emoji=False, markup=False)
    for finding in report.findings:
        _show_finding(finding, console)
    _show_summary(report, console)


def _width() -> int:
    """Return the columns of the terminal, or 100; longer lines are not read any more."""
    return min(shutil.get_terminal_size((100, 24)).columns, 110)


def _show_finding(finding: "Finding", console: "Console") -> None:
    from rich.text import Text

    def show(mark: Text, text: str, style: str = "", more: str = "") -> None:
        _print(console, Text.assemble((printable(text), style), (more, "dim")), mark)

    severity = Text(finding.severity, _STYLES[finding.severity])
    show(severity, finding.subject, "bold", f"  {finding.check}")
    show(Text(), finding.found)
    show(Text(), finding.why, "dim")
    if finding.fix:
        show(Text("       →", "green"), finding.fix)
    if finding.command:
        # Not broken into lines, so that it can be copied.
        command = printable(finding.command)
        console.print(Text.assemble("       $ ", (command, "green")), soft_wrap=True)
    console.print()


def _print(console: "Console", text: "Text", mark: "Text | None" = None) -> None:
    """Print a text in lines of the console's width, indented behind a mark where there is one."""
    from rich.text import Text

    indent = 0 if mark is None else _INDENT
    mark = mark or Text()
    mark.pad_right(indent - len(mark))
    for part in text.wrap(console, console.width - indent):
        line = mark + part
        line.rstrip()
        console.print(line)
        mark = Text(" " * indent)


def _show_summary(report: "Report", console: "Console") -> None:
    from rich.text import Text

    from tapeseal.doctor import SEVERITIES

    line = Text()
    for severity in reversed(SEVERITIES):
        number = sum(each.severity == severity for each in report.findings)
        plural = "s" if severity == "warning" and number != 1 else ""
        line.append(f"{number} {severity}{plural}", _STYLES[severity] if number else "dim")
        line.append(", ")
    line.append(f"by {output.counted(len(report.looked_at), 'check')}")
    _print(console, line)
    if report.not_looked_at:
        names = ", ".join(report.not_looked_at)
        _print(console, Text(f"Could not be made: {names}.", "yellow"))
    if report.not_asked:
        areas = "; ".join(f"{each} ({_ASK[each]})" for each in report.not_asked)
        _print(console, Text(f"Not asked for: {areas}.", "dim"))
