"""The target "exec": a command that gets the credential on its standard input."""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.rotation.commands import run_command
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential, Rotation
    from tapeseal.rotation.plan import PlannedSecret


class ExecTarget:
    """Runs a command as tapeseal.rotation.commands has them.

    It gets the credential as a JSON object of texts, or `part` of it as it is, and finds TAPESEAL_SECRET, the secret's
    name, and TAPESEAL_ROTATION, the rotation's id, in its environment.
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

    def deploy(self, credential: "Credential", rotation: "Rotation") -> None:
        """Run the command."""
        printed = run_command(
            self._command,
            credential=credential,
            part=self._part,
            variables={"TAPESEAL_SECRET": rotation.secret.name, "TAPESEAL_ROTATION": rotation.id},
            seconds=self._seconds,
        )
        if printed is not None:
            printed.close()

    def calls(self) -> list[str]:
        """Name the command."""
        return [f"run {' '.join(self._command)}"]
