"""The check "exec": a command that tries the credential."""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.errors import CommandError, VerificationError
from tapeseal.rotation.commands import run_command
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential
    from tapeseal.rotation.plan import PlannedSecret


class ExecCheck:
    """Runs a command as tapeseal.rotation.commands has them: 0 takes the credential, 75 could not ask, others refuse.

    It gets the credential as a JSON object of texts, or `part` of it as it is, and finds TAPESEAL_SECRET, the secret's
    name, in its environment.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "command": Setting(list),
        "part": Setting(str, default=None),
        "timeout": Setting(timedelta, default=timedelta(minutes=1)),
    }

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        self._command: list[str] = settings["command"]
        self._part: str | None = settings["part"]
        self._seconds = settings["timeout"].total_seconds()
        self._variables = {"TAPESEAL_SECRET": secret.name}

    def accepts(self, credential: "Credential") -> None:
        """Run the command."""
        try:
            self._run(credential)
        except CommandError as error:
            raise VerificationError(str(error)) from None

    def refuses(self, credential: "Credential") -> bool:
        """Run the command, and return whether it says no."""
        try:
            self._run(credential)
        except CommandError as error:
            if error.code < 0:
                raise  # A command that dies says nothing.
            return True
        return False

    def _run(self, credential: "Credential") -> None:
        printed = run_command(
            self._command,
            credential=credential,
            part=self._part,
            variables=self._variables,
            seconds=self._seconds,
        )
        if printed is not None:
            printed.close()

    def calls(self) -> list[str]:
        """Name the command."""
        return [f"run {' '.join(self._command)}"]
