"""The command and its subcommands, each loaded when it is called."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

import click

from tapeseal import audit, errors
from tapeseal.cli import failures
from tapeseal.cli.groups import LazyGroup

# Here and not in the modules, so that --help loads none of them.
_COMMANDS = {
    "demo": ("demo", "Show the main job on made-up order flow; needs nothing."),
    "keygen": ("keys", "Make a key file, or add a key to one."),
    "encrypt": ("tapes", "Encrypt files into sealed tapes."),
    "decrypt": ("tapes", "Decrypt tapes."),
    "inspect": ("tapes", "Say what tapes say of themselves; needs no key."),
    "verify": ("tapes", "Authenticate all of a tape."),
    "cat": ("cat", "Write records of a tape as CSV, JSON lines or .npy."),
    "rewrap": ("tapes", "Replace the recipients of tapes; the body stays as it is."),
    "sign": ("signing", "Sign a statement over tapes with a key of KMS or Transit."),
    "verify-signature": ("signing", "Check a signed statement over tapes; needs no data key."),
    "secrets": ("secrets", "Read, write and inject secrets of a Vault."),
    "vault": ("vault", "Credentials, certificates, keys and set-up of a Vault."),
    "kms": ("kms", "Keys of AWS KMS: use, rotation, inventory."),
    "rotate": ("rotation", "Rotate secrets by a plan."),
    "audit": ("audit", "Verify, anchor and report on the audit log."),
    "break-glass": ("break_glass", "Sealed emergency access under a quorum of custodians."),
    "init": ("templates", "Write the configuration of a new set-up."),
    "doctor": ("doctor", "Look at a set-up and say what to mend."),
    "completion": ("completion", "Print the script that completes this command in a shell."),
}


_Outcome = int | Callable[[], NoReturn]
"""What a command comes to: an exit code, or what has another program take the place of this one."""


class _ReaderGoneError(Exception):
    """Nobody reads standard output any more. Of a BrokenPipeError click would make exit code 1."""


class _Top(LazyGroup):
    commands_by_name = _COMMANDS

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGoneError from None


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    from tapeseal import openssl_version

    click.echo(f"tapeseal {version('tapeseal')}, {openssl_version()}")
    ctx.exit()


_EPILOG = """\b
Exit codes:
  0    done
  1    a tape is damaged, forged, unsealed or not the expected one
  2    usage, a missing input, an output that exists
  3    a key, the disk or a service could not be had
\b
Of several files each is tried; the code is that of the worst, in the order
1, 3, 2. 130 is an interrupt, 141 a reader that went away, 70 a bug.
TAPESEAL_DEBUG=1 shows where an error came from.
"""


@click.group(
    cls=_Top,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of tapeseal and its OpenSSL.",
)
@click.pass_context
def cli(ctx: click.Context) -> int | None:
    """Envelope encryption for order and market-data records and trade archives.

    A tape is an encrypted file of records or bytes: appended to at the speed of the cipher,
    resumed after a crash, read in slices. A KEYRING says where its key comes from:
    local:my.key is a key file made by `tapeseal keygen my.key`.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return failures.USAGE
    return None


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command with its arguments, those of the process where None; return its exit code."""
    if sys.stdout is None:
        # What is opened next would become standard output.
        failures.say("standard output is closed", "error")
        return failures.UNAVAILABLE
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names are bytes; what is none of the terminal's characters must not end a report.
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would flush what is still in the buffer once more at exit, and fail in its own way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return failures.BROKEN_PIPE
        return code or failures.report(error, "standard output")
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        outcome = _outcome(arguments)
        if isinstance(outcome, int):
            return outcome
        _close_log()
        outcome()
    except _ReaderGoneError:
        return failures.BROKEN_PIPE
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error, click.Abort) and error.__context__ is not None:
            # Behind a question that nobody answered, which has no line end.
            click.echo(err=True)
            if isinstance(error.__context__, EOFError):
                failures.say("standard input has no answer to this", "error")
                return failures.USAGE
        failures.say("interrupted")
        return failures.INTERRUPTED
    except Exception as error:
        return failures.report(error)


def _outcome(arguments: Sequence[str] | None) -> _Outcome:
    names = [] if audit.active() is None else _command_names(arguments)
    if not names:
        return _main(arguments)
    try:
        return _audited_main(arguments, names)
    except errors.AuditError as error:
        if names[0] != "audit":
            raise
        # What looks at the log must work where the log does not.
        failures.say(str(error), "warning")
        audit.stop()
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> _Outcome:
    outcome: Any = cli.main(arguments, prog_name="tapeseal", standalone_mode=False)
    return outcome if isinstance(outcome, int) or callable(outcome) else failures.OK


def _audited_main(arguments: Sequence[str] | None, names: Sequence[str]) -> _Outcome:
    """Run the command, and have it recorded: its name alone, for an argument may be anything."""
    with audit.operation("command.run", " ".join(["tapeseal", *names])) as entry:
        outcome: _Outcome
        try:
            outcome = _main(arguments)
        except _ReaderGoneError:
            outcome = failures.BROKEN_PIPE
        if isinstance(outcome, int) and outcome:
            entry.result = f"exit {outcome}"
        return outcome


def _close_log() -> None:
    """Have the log on the disk before another program takes the place of this one."""
    log = audit.active()
    if log is not None:
        from tapeseal.audit_log.log import AuditLog

        if isinstance(log, AuditLog):
            with contextlib.suppress(errors.AuditError):
                log.close()


def _command_names(arguments: Sequence[str] | None) -> list[str]:
    """Return the names of the command in the arguments, with those of its groups; none where only help is asked for."""
    names: list[str] = []
    command: click.Command = cli
    for each in sys.argv[1:] if arguments is None else arguments:
        if each in ("-h", "--help", "--version"):
            return []
        if not isinstance(command, click.Group) or each.startswith("-"):
            continue
        found = command.get_command(click.Context(command), each)
        if found is None:
            break
        names.append(each)
        command = found
    return [] if names[:1] == ["completion"] else names


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    failures.say(str(message), "warning")
