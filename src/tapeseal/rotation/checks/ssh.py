"""The check "ssh": a login to an sshd by ssh, whose agent gets the private key over a pipe."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tapeseal.errors import (
    CommandError,
    RotationError,
    ServiceUnavailableError,
    VerificationError,
)
from tapeseal.rotation.commands import no_part, run_command
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential
    from tapeseal.rotation.plan import PlannedSecret

_REFUSED: Final = re.compile(r"Permission denied|Too many authentication failures")
_FAILED: Final = 255  # ssh's own code; every other one is the command's.


class SshCheck:
    """Logs in with the part `private_key`, and `certificate` where there is one, and runs a command.

    The private key goes to an agent of its own and never to a file. `known_hosts` says which host keys are trusted.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "host": Setting(str),
        "port": Setting(int, default=22, least=1),
        "user": Setting(str),
        "known_hosts": Setting(Path),
        "command": Setting(str, default="true"),
        "timeout": Setting(timedelta, default=timedelta(seconds=20)),
    }

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        for name in ("host", "user"):
            if settings[name].startswith("-"):
                raise ValueError(f"{name} begins with a minus sign")
        self._settings = settings
        self._where = f"{settings['user']}@{settings['host']}:{settings['port']}"
        self._seconds = settings["timeout"].total_seconds()

    def accepts(self, credential: "Credential") -> None:
        """Log in."""
        if "private_key" not in credential:
            raise VerificationError(no_part("private_key", credential))
        with _agent() as socket:
            variables = {"SSH_AUTH_SOCK": str(socket), "LC_ALL": "C"}
            try:
                run_command(
                    ["ssh-add", "-q", "-"],
                    credential=credential,
                    part="private_key",
                    variables=variables,
                    seconds=self._seconds,
                )
            except CommandError as error:
                raise VerificationError(f"the private key is none: {error.said}") from None
            self._log_in(credential, socket, variables)

    def _log_in(self, credential: "Credential", socket: Path, variables: Mapping[str, str]) -> None:
        settings = self._settings
        options = {
            "User": settings["user"],
            "Port": str(settings["port"]),
            "UserKnownHostsFile": str(settings["known_hosts"]),
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "IdentityAgent": str(socket),
            "IdentityFile": "none",
            "PreferredAuthentications": "publickey",
            "BatchMode": "yes",
            "ConnectTimeout": str(int(self._seconds)),
            "ControlPath": "none",
            "LogLevel": "ERROR",
        }
        if "certificate" in credential:
            # Which is as public as the public key.
            path = socket.with_name("certificate.pub")
            path.write_text(credential["certificate"].expose())
            options["CertificateFile"] = str(path)
        command = ["ssh", "-F", "none", *(f"-o{name}={value}" for name, value in options.items())]
        try:
            printed = run_command(
                [*command, settings["host"], settings["command"]],
                variables=variables,
                seconds=self._seconds,
            )
        except CommandError as error:
            if error.code == _FAILED and not _REFUSED.search(error.said):
                raise ServiceUnavailableError(f"{self._where}: {error.said}") from None
            raise VerificationError(f"{self._where}: {error.said or error}") from None
        if printed is not None:
            printed.close()

    def refuses(self, credential: "Credential") -> bool:
        """Return whether the login is refused."""
        try:
            self.accepts(credential)
        except VerificationError:
            return True
        return False

    def calls(self) -> list[str]:
        """Name the login."""
        return [f"log in to {self._where} by ssh"]


@contextmanager
def _agent() -> Iterator[Path]:
    """Run an ssh-agent, and yield the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="tapeseal-") as directory:
        socket = Path(directory) / "agent"
        try:
            agent = subprocess.Popen(
                ["ssh-agent", "-D", "-a", str(socket)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise RotationError(
                f"ssh-agent cannot be run: {os.strerror(error.errno or 0)}"
            ) from None
        with agent:
            try:
                assert agent.stdout is not None
                # It says where it listens as soon as it does.
                if not agent.stdout.readline():
                    raise RotationError("ssh-agent did not start")
                yield socket
            finally:
                agent.terminate()
