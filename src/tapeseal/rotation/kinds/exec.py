"""The kind "exec": each step is a command of the plan's, for what no other kind knows."""

import json
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.errors import RotationError
from tapeseal.rotation.commands import credential_of, run_command
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal._core import SecretBuffer
    from tapeseal.rotation.plan import PlannedSecret

_OPTIONAL = Setting(list, default=None)


class Exec:
    """Runs commands, as tapeseal.rotation.commands has them.

    They find in their environment TAPESEAL_SECRET, the name of the secret, and, all but `live`, TAPESEAL_ROTATION, the
    id of the rotation, TAPESEAL_OLD_VERSION, and TAPESEAL_VERSION once `store` has said it.

    `generate` prints the new credential, `old` the one before, as JSON objects of texts. `store` gets the new one, and
    prints {"version": "…"}, or nothing: then the version is the id of the rotation. `live` prints {"version": "…",
    "made": "2026-11-27T09:00:00Z", "expires": …}, of which all but the version may be left out, or nothing where there
    is no credential yet. `discard` and `revoke` get nothing; they know by the versions and the id what to end.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "live": Setting(list),
        "generate": Setting(list),
        "store": _OPTIONAL,
        "old": _OPTIONAL,
        "discard": Setting(list),
        "revoke": Setting(list),
        "timeout": Setting(timedelta, default=timedelta(minutes=1)),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Run `live`."""
        answer = _object(_run("live", secret, {}), "live")
        if answer is None:
            return None
        try:
            made, expires = (
                None if answer.get(name) is None else datetime.fromisoformat(answer[name])
                for name in ("made", "expires")
            )
            version = answer["version"]
            if not isinstance(version, str | int):
                raise ValueError
        except (TypeError, ValueError, LookupError):
            raise RotationError(
                'live printed no {"version": "…", "made": "2026-11-27T09:00:00Z", "expires": …}'
            ) from None
        return Live(str(version), _in_utc(made), _in_utc(expires))

    def generate(self, rotation: Rotation) -> Credential:
        """Run `generate`."""
        return _credential("generate", rotation)

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Run `store` with the new credential."""
        rotation.facts["version"] = rotation.id
        if rotation.secret.options["store"] is not None:
            printed = _run("store", rotation.secret, _variables(rotation), credential)
            answer = _object(printed, "store")
            if answer is not None:
                version = answer.get("version")
                if not isinstance(version, str | int):
                    raise RotationError('store printed no {"version": "…"}')
                rotation.facts["version"] = str(version)

    def old(self, rotation: Rotation) -> Credential:
        """Run `old`; without it there is nothing to deploy again."""
        return {} if rotation.secret.options["old"] is None else _credential("old", rotation)

    def discard(self, rotation: Rotation) -> None:
        """Run `discard`."""
        _discard_output(_run("discard", rotation.secret, _variables(rotation)))

    def revoke(self, rotation: Rotation) -> None:
        """Run `revoke`."""
        _discard_output(_run("revoke", rotation.secret, _variables(rotation)))

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the commands."""
        return [
            f"run {' '.join(secret.options[step])}"
            for step in ("live", "generate", "store", "old", "revoke")
            if secret.options[step] is not None
        ]


def _variables(rotation: Rotation) -> dict[str, str]:
    variables = {"TAPESEAL_ROTATION": rotation.id}
    for name in ("old_version", "version"):
        if rotation.facts.get(name) is not None:
            variables[f"TAPESEAL_{name.upper()}"] = str(rotation.facts[name])
    return variables


def _run(
    step: str,
    secret: "PlannedSecret",
    variables: Mapping[str, str],
    credential: Credential | None = None,
) -> "SecretBuffer | None":
    return run_command(
        secret.options[step],
        credential=credential,
        variables={"TAPESEAL_SECRET": secret.name, **variables},
        seconds=secret.options["timeout"].total_seconds(),
    )


def _credential(step: str, rotation: Rotation) -> Credential:
    printed = _run(step, rotation.secret, _variables(rotation))
    if printed is None:
        return {}
    with closing(printed):
        try:
            return credential_of(printed)
        except ValueError as error:
            problem = str(error)
    raise RotationError(f"what {step} printed cannot be used: {problem}")


def _object(printed: "SecretBuffer | None", step: str) -> dict[str, Any] | None:
    """Read what is not secret."""
    if printed is None:
        return None
    with closing(printed), printed:
        try:
            answer = json.loads(bytes(memoryview(printed)))
        except ValueError:
            answer = None
    if not isinstance(answer, dict):
        raise RotationError(f"what {step} printed is no JSON object")
    return answer


def _discard_output(printed: "SecretBuffer | None") -> None:
    if printed is not None:
        printed.close()


def _in_utc(time: datetime | None) -> datetime | None:
    if time is None:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
