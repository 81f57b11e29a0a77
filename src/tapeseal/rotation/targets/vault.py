"""The target "vault": a path of KV v2, for those who read it there and not where the kind stores it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.errors import RotationError
from tapeseal.rotation.commands import no_part
from tapeseal.rotation.kinds.stored import SETTINGS, api_path, ask, wipe
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
        self._path = api_path(settings["path"], "data")
        self._members: Mapping[str, str] | None = settings["members"]
        if self._members is not None and not self._members:
            raise ValueError("members names no part of the credential")

    def deploy(self, credential: "Credential", rotation: "Rotation") -> None:
        """Write the members."""
        members = self._members or {name: name for name in credential}
        for part in members.values():
            if part not in credential:
                raise RotationError(f"{self._path}: {no_part(part, credential)}")
        data = {name: credential[part] for name, part in members.items()}
        vault = rotation.services.vault
        answer = ask(vault, "GET", self._path, secret=("data.data.*",))
        if answer is None:
            ask(vault, "POST", self._path, {"data": data}, idempotent=True)
            return
        found = answer["data"]["data"]
        try:
            same = all(found.get(name) == value for name, value in data.items())
        finally:
            wipe(found)
        if not same:
            ask(vault, "PATCH", self._path, {"data": data}, idempotent=True)

    def calls(self) -> list[str]:
        """Name the requests."""
        return [f"GET {self._path}", f"PATCH {self._path}"]
