"""The kinds of database passwords, which Vault's static roles hold.

"database-users" is the one to prefer: two users, of whom one is idle. A rotation changes the idle one's password and
makes that user the current one; the other stays as it was until every consumer is seen on the new one. With
"database-static-role", the one user's old password is dead from the moment that there is a new one.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from tapeseal.errors import IrreversibleError, RotationError
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.stored import (
    SETTINGS,
    Stored,
    ask,
    known,
    live_calls,
    note_calls,
    old_calls,
    read_text,
    write_calls,
)
from tapeseal.rotation.settings import Setting
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret


class StaticRole:
    """Has Vault change the password of a static role's user.

    Consumers read DATABASE_MOUNT/static-creds/ROLE, and acknowledge its last_vault_rotation.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "database_mount": Setting(str, default="database", names=True),
        "role": Setting(str, names=True),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return when the password was last changed, which is its version."""
        options = secret.options
        last = _last_rotation(services, options["database_mount"], options["role"])
        return Live(last, datetime.fromisoformat(last))

    def generate(self, rotation: Rotation) -> Credential:
        """Have the password changed, unless it was since the rotation began; the old one is dead from here on."""
        mount, role = _static_role(rotation)
        if _last_rotation(rotation.services, mount, role) == rotation.facts["old_version"]:
            _rotate(rotation.services, mount, role)
        return _credential(rotation.services, mount, role)

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Note the version: Vault serves it already."""
        mount, role = _static_role(rotation)
        rotation.facts["version"] = _last_rotation(rotation.services, mount, role)

    def old(self, rotation: Rotation) -> Credential:
        """Return nothing: nobody has the old password any more."""
        return {}

    def discard(self, rotation: Rotation) -> None:
        """Leave the old password where it was not changed yet."""
        mount, role = _static_role(rotation)
        if _last_rotation(rotation.services, mount, role) != rotation.facts["old_version"]:
            raise IrreversibleError(
                f"the old password of {mount}/static-creds/{role} is dead, so the new one stays: see why the "
                "target does not take it, and rotate again"
            )

    def revoke(self, rotation: Rotation) -> None:
        """Do nothing: the old password died with the new one's birth."""

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls of a rotation."""
        mount, role = secret.options["database_mount"], secret.options["role"]
        look = f"GET {mount}/static-roles/{role}"
        return [
            look,
            look,
            f"POST {mount}/rotate-role/{role}",
            f"GET {mount}/static-creds/{role}",
            look,
        ]


class AlternatingUsers:
    """Changes the password of the idle one of two static roles' users, and makes it the current one.

    The secret in KV says which is current: `role`, and its `username`. The password is not in it: consumers read it at
    DATABASE_MOUNT/static-creds/ROLE, so that they also get one that Vault has changed by itself. They acknowledge the
    version in KV.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        **SETTINGS,
        "database_mount": Setting(str, default="database", names=True),
        "roles": Setting(list, names=True),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the current version in KV."""
        _roles(secret)
        return Stored(secret, services).live()

    def generate(self, rotation: Rotation) -> Credential:
        """Have the idle user's password changed, once for this rotation."""
        mount = rotation.secret.options["database_mount"]
        new, _ = self._new_and_old(rotation)
        self._rotate_once(rotation, new, "generate")
        return _credential(rotation.services, mount, new)

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Write to KV which user is current."""
        new, _ = self._new_and_old(rotation)
        members: dict[str, Secret | str] = {"role": new, "username": credential["username"]}
        Stored(rotation.secret, rotation.services).write(rotation, members)

    def old(self, rotation: Rotation) -> Credential:
        """Read the other user's password, unless this rotation has ended that."""
        _, old = self._new_and_old(rotation)
        if old is None or self._is_rotated(rotation, old, "revoke"):
            return {}
        mount = rotation.secret.options["database_mount"]
        return _credential(rotation.services, mount, old)

    def discard(self, rotation: Rotation) -> None:
        """Make the other user the current one again, and end the password that this rotation has made."""
        new, _ = self._new_and_old(rotation)
        Stored(rotation.secret, rotation.services).restore(rotation)
        self._rotate_once(rotation, new, "discard")

    def revoke(self, rotation: Rotation) -> None:
        """End the password of the user who is idle now; Vault keeps one that nobody is told."""
        _, old = self._new_and_old(rotation)
        if old is not None:
            self._rotate_once(rotation, old, "revoke")

    def _new_and_old(self, rotation: Rotation) -> tuple[str, str | None]:
        """Return the role that becomes the current one, and the one that was before the rotation, if any."""
        facts = rotation.facts
        first, second = _roles(rotation.secret)
        before = facts.get("old_version")
        if before is not None and "old_role" not in facts:
            with Stored(rotation.secret, rotation.services).read(before) as found:
                old = read_text(found, "role")
            if old not in (first, second):
                raise RotationError(
                    f"version {before} in KV names neither {first} nor {second} as the current role"
                )
            facts["old_role"] = old
        if before is None or facts["old_role"] == second:
            return first, None if before is None else second
        return second, first

    def _rotate_once(self, rotation: Rotation, role: str, step: str) -> None:
        """Have Vault change a role's password, once for this step of the rotation.

        Before, the secret's metadata get a note of the last change: whoever finds another one than that knows that
        it has happened, although its answer was lost.
        """
        if self._is_rotated(rotation, role, step):
            return
        mount = rotation.secret.options["database_mount"]
        last = _last_rotation(rotation.services, mount, role)
        Stored(rotation.secret, rotation.services).note(
            {"rotation_step": _step(rotation, step), "rotation_before": last}
        )
        _rotate(rotation.services, mount, role)

    def _is_rotated(self, rotation: Rotation, role: str, step: str) -> bool:
        note = Stored(rotation.secret, rotation.services).noted()
        if note.get("rotation_step") != _step(rotation, step):
            return False
        mount = rotation.secret.options["database_mount"]
        return bool(note["rotation_before"] != _last_rotation(rotation.services, mount, role))

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls of a rotation."""
        options = secret.options
        mount = options["database_mount"]
        rotate = [
            *live_calls(options),
            f"GET {mount}/static-roles/…",
            *note_calls(options),
            f"POST {mount}/rotate-role/…",
        ]
        _roles(secret)
        return [
            *live_calls(options),
            *old_calls(options),
            *rotate,
            f"GET {mount}/static-creds/…",
            *write_calls(options),
            *live_calls(options),
            f"GET {mount}/static-creds/…",
            *rotate,
        ]


def _step(rotation: Rotation, step: str) -> str:
    return f"{rotation.id} {step}"


def _roles(secret: "PlannedSecret") -> tuple[str, str]:
    roles = secret.options["roles"]
    if len(set(roles)) != 2:
        raise ValueError("roles are the names of two static roles, one for each user")
    return roles[0], roles[1]


def _static_role(rotation: Rotation) -> tuple[str, str]:
    return rotation.secret.options["database_mount"], rotation.secret.options["role"]


def _last_rotation(services: Services, mount: str, role: str) -> str:
    answer = ask(services.vault, "GET", f"{mount}/static-roles/{role}")
    return str(known(answer, f"static role {role} in {mount}")["last_vault_rotation"])


def _rotate(services: Services, mount: str, role: str) -> None:
    ask(services.vault, "POST", f"{mount}/rotate-role/{role}", idempotent=False)


def _credential(services: Services, mount: str, role: str) -> Credential:
    path = f"{mount}/static-creds/{role}"
    data = known(
        ask(services.vault, "GET", path, secret=("data.password",)),
        f"static role {role} in {mount}",
    )
    return {
        "username": Secret.take(bytearray(data["username"].encode())),
        "password": data["password"],
    }
