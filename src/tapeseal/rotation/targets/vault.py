"""The target "vault": a path of KV v2, for those who read it there and not where the kind stores it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.errors import (
    RotationError,
    SecretDeletedError,
    SecretNotFoundError,
    ServiceUnavailableError,
    VersionConflictError,
)
from tapeseal.rotation.commands import no_part
from tapeseal.rotation.kinds.stored import SETTINGS
from tapeseal.rotation.paths import api_path
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential, Rotation
    from tapeseal.rotation.plan import PlannedSecret


class VaultTarget:
    """Sets members of a secret in KV, which keeps its others, and writes no version where nothing changes.

    `members` says by their names which part of the credential each gets; without it, all of them by their own.
    """

    settings: ClassVar[Mapping[str, Setting]] = {**SETTINGS, "members": Setting(dict, default=None)}

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        self._name: str = settings["path"]
        self._calls = api_path(self._name, "data")
        self._members: Mapping[str, str] | None = settings["members"]
        if self._members is not None and not self._members:
            raise ValueError("members names no part of the credential")

    def deploy(self, credential: "Credential", rotation: "Rotation") -> None:
        """Write the members."""
        from tapeseal.vault.kv import KeyValue

        members = self._members or {name: name for name in credential}
        for part in members.values():
            if part not in credential:
                raise RotationError(f"{self._name}: {no_part(part, credential)}")
        data = {name: credential[part] for name, part in members.items()}
        mount, _, path = self._name.partition("/")
        store = KeyValue(rotation.services.vault, mount)
        try:
            with store.read(path) as found:
                before = found.version
                if all(found.get(name) == value for name, value in data.items()):
                    return
            store.patch(path, data, cas=before)
        except SecretDeletedError as error:
            store.write(path, data, cas=error.version)
        except SecretNotFoundError:
            store.write(path, data, cas=0)
        except VersionConflictError as error:
            raise ServiceUnavailableError(f"{error}: it is looked at once more") from None

    def calls(self) -> list[str]:
        """Name the requests."""
        return [f"GET {self._calls}", f"PATCH {self._calls}"]
