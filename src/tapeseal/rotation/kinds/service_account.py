"""The kind "service-account": the secret id of an AppRole, by which a service logs in to Vault."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.stored import (
    SETTINGS,
    Stored,
    ask,
    destroy_calls,
    known,
    live_calls,
    old_calls,
    read_text,
    write_calls,
)
from tapeseal.rotation.settings import Setting
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret

_ACCESSOR: Final = "secret_id_accessor"


class ServiceAccount:
    """Makes secret ids, whose metadata name their rotation, and destroys them by their accessors.

    The members of the credential, and of the secret in KV, are `role_id`, `secret_id` and `secret_id_accessor`. Tokens
    that a service got by a secret id outlive it, until their own end.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        **SETTINGS,
        "role": Setting(str, names=True),
        "auth_mount": Setting(str, default="approle", names=True),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the current version in KV."""
        return Stored(secret, services).live()

    def generate(self, rotation: Rotation) -> Credential:
        """Make a secret id; one that an interrupted try left behind is destroyed first."""
        vault = rotation.services.vault
        role = _role(rotation.secret.options)
        role_id = known(ask(vault, "GET", f"{role}/role-id"), f"AppRole {role}")["role_id"]
        self._destroy_own(rotation)
        # The lease of a secret id that expires by itself is a setting of the role.
        made = known(
            ask(
                vault,
                "POST",
                f"{role}/secret-id",
                {"metadata": json.dumps({"rotation": rotation.id})},
                secret=("data.secret_id",),
                idempotent=False,
            ),
            f"AppRole {role}",
        )
        return {
            "role_id": Secret.take(bytearray(role_id.encode())),
            "secret_id": made["secret_id"],
            _ACCESSOR: Secret.take(bytearray(made[_ACCESSOR].encode())),
        }

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Write the next version in KV."""
        Stored(rotation.secret, rotation.services).write(rotation, credential)

    def old(self, rotation: Rotation) -> Credential:
        """Read the version before."""
        names = ("role_id", "secret_id", _ACCESSOR)
        return Stored(rotation.secret, rotation.services).old(rotation, names)

    def discard(self, rotation: Rotation) -> None:
        """Put back the version before, then destroy the new secret id."""
        Stored(rotation.secret, rotation.services).restore(rotation)
        self._destroy_own(rotation)

    def revoke(self, rotation: Rotation) -> None:
        """Destroy the old secret id, and its version in KV."""
        stored = Stored(rotation.secret, rotation.services)
        before = rotation.facts.get("old_version")
        if before is None:
            return
        with stored.read(before) as found:
            accessor = read_text(found, _ACCESSOR)
            secret_id = None if found is None else found.get("secret_id")
            if accessor is None and secret_id is not None:
                accessor = self._accessor_of(rotation, secret_id)
        if accessor is not None and self._look_up(rotation, accessor) is not None:
            self._destroy(rotation, accessor)
        stored.destroy_old(rotation, "secret_id")

    def _accessor_of(self, rotation: Rotation, secret_id: Secret) -> str | None:
        """Return the accessor of a secret id that somebody else wrote to KV; None: it is none any more."""
        path = f"{_role(rotation.secret.options)}/secret-id/lookup"
        answer = ask(
            rotation.services.vault, "POST", path, {"secret_id": secret_id}, idempotent=True
        )
        return None if not answer else str(answer["data"][_ACCESSOR])

    def _destroy_own(self, rotation: Rotation) -> None:
        for accessor in self._accessors(rotation):
            found = self._look_up(rotation, accessor)
            if found is not None and (found.get("metadata") or {}).get("rotation") == rotation.id:
                self._destroy(rotation, accessor)

    def _accessors(self, rotation: Rotation) -> Iterator[str]:
        path = f"{_role(rotation.secret.options)}/secret-id"
        answer = ask(rotation.services.vault, "LIST", path)
        if answer is not None:
            yield from answer["data"]["keys"]

    def _look_up(self, rotation: Rotation, accessor: str) -> dict[str, Any] | None:
        path = f"{_role(rotation.secret.options)}/secret-id-accessor/lookup"
        answer = ask(rotation.services.vault, "POST", path, {_ACCESSOR: accessor}, idempotent=True)
        # Vault's 404 of an accessor that is gone has a body, in which there is only an error.
        return None if answer is None else known(answer, f"accessor at {path}")

    def _destroy(self, rotation: Rotation, accessor: str) -> None:
        path = f"{_role(rotation.secret.options)}/secret-id-accessor/destroy"
        # Of one that is gone the server makes a failure of its own, which a session would wait out.
        ask(rotation.services.vault, "POST", path, {_ACCESSOR: accessor}, idempotent=False)

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls of a rotation; the accessors are looked up one by one."""
        options = secret.options
        role = _role(options)
        return [
            *live_calls(options),
            f"GET {role}/role-id",
            f"LIST {role}/secret-id",
            f"POST {role}/secret-id-accessor/lookup",
            f"POST {role}/secret-id",
            *write_calls(options),
            *old_calls(options),
            *old_calls(options),
            f"POST {role}/secret-id-accessor/lookup",
            f"POST {role}/secret-id-accessor/destroy",
            *destroy_calls(options),
        ]


def _role(options: Mapping[str, Any]) -> str:
    return f"auth/{options['auth_mount']}/role/{options['role']}"
