"""tapeseal vault credentials."""

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tapeseal.cli import failures, options, output
from tapeseal.cli.child import Child, as_variable
from tapeseal.cli.injection import memory_directory
from tapeseal.errors import CredentialError
from tapeseal.files import new_file, write_all

if TYPE_CHECKING:
    from tapeseal.vault.lease import Credential, LeaseStatus

_SERVICE = "tapeseal"


@click.command()
@click.argument("path")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--user-env",
    metavar="NAME",
    default="PGUSER",
    show_default=True,
    help="Put the username there.",
)
@click.option(
    "--password-env",
    metavar="NAME",
    default="PGPASSWORD",
    show_default=True,
    help="Put the password there.",
)
@click.option(
    "--service-file",
    is_flag=True,
    help="Put both into a file in memory that PGSERVICEFILE names, in place of the variables.",
)
@options.as_json
def credentials(
    path: str,
    command: tuple[str, ...],
    user_env: str,
    password_env: str,
    service_file: bool,
    as_json: bool,
) -> int:
    """Run a command with a credential of a database, which is renewed until it ends and then revoked.

    \b
      tapeseal vault credentials database/creds/reader -- psql -h db trades
      tapeseal vault credentials --service-file database/creds/writer -- recorder

    PATH is MOUNT/creds/ROLE, or MOUNT/static-creds/ROLE. Signals go to the command, and its exit code is that of
    this one (128 + N where signal N has ended it).

    A variable cannot change while the command runs, so its credential ends with the role's max TTL. With
    --service-file each new credential is written to the file, and whatever uses libpq (psql, psycopg) takes it for its
    next connection.

    With --json one line on standard error says what was issued, one what took its place, one how it ended.
    """
    from tapeseal.vault import DatabaseCredentials, VaultSession  # Which take a while, for hvac.

    child = Child.find(command)
    if service_file and "PGSERVICE" in os.environ:
        raise click.UsageError(
            "PGSERVICE is set, and would not count; set PGHOST, PGPORT and PGDATABASE instead"
        )
    # What cannot be replaced where it is used lives as long as it can.
    overlap = None if service_file else math.inf
    with (
        VaultSession() as session,
        DatabaseCredentials(session, path, overlap=overlap) as held,
        memory_directory() if service_file else contextlib.nullcontext() as directory,
    ):
        known = held.current()
        if directory is None:
            environment = {
                user_env: known.username,
                password_env: as_variable(known.password),
            }
        else:
            file = directory / "pg_service.conf"
            _write(file, known)
            environment = {"PGSERVICEFILE": str(file), "PGSERVICE": _SERVICE}

        def say(event: str, status: "LeaseStatus", **more: int) -> None:
            if as_json:
                output.as_json({"event": event, **status._asdict(), **more}, err=True)

        def change() -> None:
            nonlocal known
            credential = held.current()
            if credential is known:
                return  # We are told twice.
            if directory is None:
                failures.say(f"{path}: the command goes on with the credential before", "warning")
            else:
                _write(file, credential)
            known = credential
            say("replaced", held.status())

        say("issued", held.status())
        held.on_change(change)
        change()
        code = child.run(os.environ | environment)
        status = held.status()
        unrevoked = held.close()
        say("ended", status._replace(unrevoked=unrevoked), exit_code=code)
        if unrevoked:
            failures.say(f"{path}: {output.counted(unrevoked, 'lease')} not revoked", "warning")
    return code


def _write(file: Path, credential: "Credential") -> None:
    with (
        credential.password.buffer as buffer,
        memoryview(buffer) as password,
        new_file(file, 0o600, replace=True) as fd,
    ):
        if "\n" in credential.username or ord("\n") in password:
            raise CredentialError("the credential has a line break, which no service file can hold")
        if credential.username[-1:].isspace() or bytes(password[-1:]).isspace():
            # libpq cuts it off.
            raise CredentialError("the credential ends in a blank, which no service file can hold")
        write_all(fd, f"[{_SERVICE}]\nuser={credential.username}\npassword=".encode())
        write_all(fd, password)
        write_all(fd, b"\n")
