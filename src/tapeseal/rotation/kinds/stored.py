"""The secret of KV v2 that consumers read, as rotations write it.

A version that a rotation writes has a member `rotation`, the rotation's id, beside those of the credential: a crash can
come between a write and whatever would note it, and the id is how the next try knows its own. Other members stay as
they are. Consumers acknowledge the number of the version.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from tapeseal.errors import IrreversibleError, RotationError
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.settings import Setting
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret
    from tapeseal.vault.session import VaultSession

MARK: Final = "rotation"
"""The member that names the rotation that wrote a version."""

SETTINGS: Final[Mapping[str, Setting]] = {"path": Setting(str)}
"""Where the secret is: MOUNT/PATH, of which the mount is the first part."""

FIRST: Final = "0"
"""The version of what is in use, but not yet in KV."""

_STALE = "check-and-set parameter did not match"


def ask(
    session: "VaultSession",
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    secret: tuple[str, ...] = (),
    idempotent: bool | None = None,
) -> dict[str, Any] | None:
    """Make a request of VaultSession.request(); None where there is no such thing.

    Raises:
        RotationError: the server takes the request for wrong, and would again.
        ServiceUnavailableError, AccessDeniedError: as there.
    """
    from hvac.exceptions import InvalidPath, VaultError

    from tapeseal.vault.connection import said_by

    try:
        return session.request(method, path, body, secret=secret, idempotent=idempotent)
    except VaultError as error:
        # A mount that is not there says so; a path in it that is not there says nothing.
        if isinstance(error, InvalidPath) and not error.errors:
            return None
        problem = said_by(error)
    raise RotationError(f"{method} {path}: the server says: {problem}")


def known(answer: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """Return the data of an answer.

    Raises:
        RotationError: there is none; `what` names what is not there.
    """
    data = None if answer is None else answer.get("data")
    if not isinstance(data, dict):
        raise RotationError(f"there is no {what}")
    return data


def instant(text: object) -> datetime | None:
    """Return a time as Vault writes one, in UTC; None where it stands for never."""
    if not isinstance(text, str) or not text or text.startswith("0001-"):
        return None
    return datetime.fromisoformat(text).astimezone(UTC)


def wipe(credential: Mapping[str, Any]) -> None:
    """Close every Secret of a credential."""
    for each in credential.values():
        if isinstance(each, Secret):
            each.close()


class Stored:
    """The secret of KV v2 that a planned secret's options name."""

    def __init__(self, secret: "PlannedSecret", services: Services) -> None:
        self._services = services
        self.name: str = secret.options["path"]

    def metadata(self) -> dict[str, Any]:
        """Return what the store says of the secret; `current_version` is 0 before the first one."""
        answer = ask(self._services.vault, "GET", api_path(self.name, "metadata"))
        return {"current_version": 0} if answer is None else known(answer, f"secret {self.name}")

    def live(self) -> Live | None:
        """Return the current version; None where there is none, or where it was deleted."""
        metadata = self.metadata()
        number = str(metadata["current_version"])
        version = metadata.get("versions", {}).get(number)
        if version is None or version["destroyed"]:
            return None
        expires = instant(version["deletion_time"])
        if expires is not None and expires <= datetime.now(UTC):
            return None
        return Live(number, instant(version["created_time"]), expires)

    @contextmanager
    def read(self, version: int | str | None = None) -> Iterator[dict[str, Secret] | None]:
        """Read a version, the current one where None; its members are wiped in the end. None: it is not there."""
        query = "" if version is None else f"?version={version}"
        path = api_path(self.name, "data") + query
        answer = ask(self._services.vault, "GET", path, secret=("data.data.*",))
        members = None if answer is None else answer["data"]["data"]
        try:
            yield members
        finally:
            wipe(members or {})

    def write(self, rotation: Rotation, members: Mapping[str, Secret | str]) -> None:
        """Write the next version, if this rotation has not yet, and note it as facts["version"].

        Raises:
            RotationError: somebody else wrote one since the rotation began.
        """
        for _ in range(2):
            current = self.metadata()["current_version"]
            with self.read() as found:
                if _is_of(found, rotation):
                    rotation.facts["version"] = str(current)
                    return
                before = _before(rotation)
                if before != (None if found is None else str(current)):
                    raise RotationError(
                        f"{self.name} was changed by somebody else since the rotation began: version "
                        f"{before or 'none'} was current then, now it is {current}"
                    )
            version = self._put(current, {**members, MARK: rotation.id}, new=before is None)
            if version is not None:
                rotation.facts["version"] = str(version)
                return
            # A write whose answer was lost went through: the next look finds it.
        raise RotationError(f"{self.name} is changed by somebody else at the same time")

    def _put(self, current: int, members: Mapping[str, Any], *, new: bool) -> int | None:
        """Write members beside those there are, and return the version; None where `current` is not any more."""
        method = "POST" if new else "PATCH"
        body = {"options": {"cas": current}, "data": members}
        try:
            answer = ask(
                self._services.vault,
                method,
                api_path(self.name, "data"),
                body,
                # Not twice: the server compares the number first.
                idempotent=True,
            )
        except RotationError as error:
            if _STALE in str(error):
                return None
            raise
        return int(known(answer, f"secret {self.name} any more")["version"])

    def old(self, rotation: Rotation, names: tuple[str, ...]) -> Credential:
        """Return members of the version before the rotation; none where that was destroyed."""
        before = _before(rotation)
        if before is None:
            return {}
        with self.read(before) as found:
            return {name: found.pop(name) for name in names if found and name in found}

    def restore(self, rotation: Rotation) -> None:
        """Make the members before the rotation the current ones again, and destroy what the rotation wrote.

        Raises:
            IrreversibleError: the version before is not there any more.
        """
        before = _before(rotation)
        for _ in range(2):
            current = self.metadata()["current_version"]
            for version in range(current, int(before or 0), -1):
                with self.read(version) as made:
                    if made is None or not _is_of(made, rotation):
                        continue
                    if (
                        before is not None
                        and version == current
                        and not self._put_back(before, current, made)
                    ):
                        break  # A write whose answer was lost went through, or somebody else's came between.
                self.destroy(version)
            else:
                return
        raise RotationError(f"{self.name} is changed by somebody else at the same time")

    def _put_back(self, before: int | str, current: int, made: Mapping[str, Secret]) -> bool:
        """Give all that differs the value that it had; False where `current` is not the current version any more."""
        with self.read(before) as found:
            if found is None:
                raise IrreversibleError(
                    f"version {before} of {self.name} is gone, so the new one stays"
                )
            members = {
                name: found.get(name)
                for name in made.keys() | found.keys()
                if made.get(name) != found.get(name)
            }
            return self._put(current, members, new=False) is not None

    def note(self, facts: Mapping[str, str]) -> None:
        """Set some of the secret's custom metadata."""
        path = api_path(self.name, "metadata")
        body = {"custom_metadata": facts}
        if ask(self._services.vault, "PATCH", path, body, idempotent=True) is None:
            # There is no version yet.
            ask(self._services.vault, "POST", path, body, idempotent=True)

    def destroy_old(self, rotation: Rotation) -> None:
        """Destroy the version before the rotation; its number stays in the metadata."""
        before = _before(rotation)
        if before is not None:
            self.destroy(before)

    def destroy(self, version: int | str) -> None:
        """Destroy a version; again does nothing."""
        path = api_path(self.name, "destroy")
        ask(self._services.vault, "PUT", path, {"versions": [int(version)]})


def _before(rotation: Rotation) -> str | None:
    """Return the number of the version before; None where there was none, of which "0" too is the number."""
    before = rotation.facts.get("old_version")
    return None if before in (None, FIRST) else str(before)


def _is_of(members: Mapping[str, Secret] | None, rotation: Rotation) -> bool:
    mark = None if members is None else members.get(MARK)
    return mark is not None and mark.expose() == rotation.id


def read_text(members: Mapping[str, Secret] | None, name: str) -> str | None:
    """Return a member that is not secret, such as the id of a key."""
    found = None if members is None else members.get(name)
    with contextlib.suppress(ValueError):
        return None if found is None else found.expose()
    return None


def api_path(path: str, what: str) -> str:
    """Return the path in the API of what a store has of a secret: its "data", its "metadata", or "destroy".

    Raises:
        ValueError: it is no MOUNT/PATH.
    """
    mount, slash, rest = path.partition("/")
    if not mount or not slash or not rest:
        raise ValueError(f"the path of a secret in KV is MOUNT/PATH, not {path!r}")
    return f"{mount}/{what}/{rest}"


def live_calls(options: Mapping[str, Any]) -> list[str]:
    """Name the calls of Stored.live()."""
    return [f"GET {api_path(options['path'], 'metadata')}"]


def write_calls(options: Mapping[str, Any]) -> list[str]:
    """Name the calls of Stored.write() where there is a version already; the first one is a POST."""
    data = api_path(options["path"], "data")
    return [*live_calls(options), f"GET {data}", f"PATCH {data}"]


def old_calls(options: Mapping[str, Any]) -> list[str]:
    """Name the calls of Stored.old(); … stands for what only the server knows."""
    return [f"GET {api_path(options['path'], 'data')}?version=…"]
