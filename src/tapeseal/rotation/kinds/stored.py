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

from tapeseal.errors import (
    IrreversibleError,
    RotationError,
    SecretNotFoundError,
    VaultRefusedError,
    VersionConflictError,
)
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.paths import api_path
from tapeseal.rotation.settings import Setting
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret
    from tapeseal.vault.kv import Metadata, SecretVersion
    from tapeseal.vault.session import VaultSession

MARK: Final = "rotation"
"""The member that names the rotation that wrote a version."""

SETTINGS: Final[Mapping[str, Setting]] = {"path": Setting(str, names=True)}
"""Where the secret is: MOUNT/PATH, of which the mount is the first part."""

FIRST: Final = "0"
"""The version of what is in use, but not yet in KV."""


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
        VaultRefusedError: the server takes the request for wrong, and would again.
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
        problem, status = said_by(error), int(getattr(error, "status", 0))
    raise VaultRefusedError(f"{method} {path}: the server says: {problem}", status)


def known(answer: Mapping[str, Any] | None, what: str) -> dict[str, Any]:
    """Return the data of an answer.

    Raises:
        RotationError: there is none; `what` names what is not there.
    """
    data = None if answer is None else answer.get("data")
    if not isinstance(data, dict):
        raise RotationError(f"there is no {what}")
    return data


def wipe(credential: Mapping[str, Any]) -> None:
    """Close every Secret of a credential."""
    for each in credential.values():
        if isinstance(each, Secret):
            each.close()


class Stored:
    """The secret of KV v2 that a planned secret's options name."""

    def __init__(self, secret: "PlannedSecret", services: Services) -> None:
        from tapeseal.vault.kv import KeyValue

        self.name: str = secret.options["path"]
        mount, _, self._path = self.name.partition("/")
        self._store = KeyValue(services.vault, mount)

    def metadata(self) -> "Metadata | None":
        """Return what the store says of the secret; None where there never was one."""
        try:
            return self._store.metadata(self._path)
        except SecretNotFoundError:
            return None

    def live(self) -> Live | None:
        """Return the current version; None where there is none, or where it was deleted."""
        metadata = self.metadata()
        version = None if metadata is None else metadata.versions.get(metadata.current)
        if version is None or version.destroyed:
            return None
        if version.deleted is not None and version.deleted <= datetime.now(UTC):
            return None
        return Live(str(version.number), version.created, version.deleted)

    @contextmanager
    def read(self, version: int | str | None = None) -> "Iterator[SecretVersion | None]":
        """Read a version, the current one where None; its members are wiped in the end. None: it is not there."""
        try:
            found = self._store.read(self._path, None if version is None else int(version))
        except SecretNotFoundError:
            yield None
            return
        with found:
            yield found

    def write(self, rotation: Rotation, members: Mapping[str, Secret | str]) -> None:
        """Write the next version, if this rotation has not yet, and note it as facts["version"].

        Raises:
            RotationError: somebody else wrote one since the rotation began.
        """
        before = _before(rotation)
        with self.read() as found:
            if _is_of(found, rotation):
                assert found is not None
                rotation.facts["version"] = str(found.version)
                return
            now = None if found is None else str(found.version)
        try:
            if before != now:
                raise VersionConflictError
            marked = {**members, MARK: rotation.id}
            if before is None:
                # A version that was deleted counts, too.
                metadata = self.metadata()
                current = 0 if metadata is None else metadata.current
                version = self._store.write(self._path, marked, cas=current)
            else:
                version = self._store.patch(self._path, marked, cas=int(before))
        except VersionConflictError:
            pass
        else:
            rotation.facts["version"] = str(version)
            return
        raise RotationError(
            f"{self.name} was changed by somebody else since the rotation began: its version then was "
            f"{before or 'none'}"
        )

    def old(self, rotation: Rotation, names: tuple[str, ...]) -> Credential:
        """Return members of the version before the rotation; none where that was destroyed."""
        before = _before(rotation)
        if before is None:
            return {}
        with self.read(before) as found:
            wanted = {name: found.get(name) for name in names} if found is not None else {}
            return {name: each.copy() for name, each in wanted.items() if each is not None}

    def restore(self, rotation: Rotation) -> None:
        """Make the members before the rotation the current ones again, and destroy what the rotation wrote.

        Raises:
            IrreversibleError: the version before is not there any more.
        """
        before = _before(rotation)
        metadata = self.metadata()
        current = 0 if metadata is None else metadata.current
        for version in range(current, int(before or 0), -1):
            with self.read(version) as made:
                if made is None or not _is_of(made, rotation):
                    continue
                if before is not None and version == current:
                    self._put_back(before, current, made)
            self._store.destroy(self._path, [version])

    def _put_back(self, before: str, current: int, made: "SecretVersion") -> None:
        """Give all that differs the value that it had."""
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
            # Where somebody else wrote one in between, that is the current one, and stays.
            with contextlib.suppress(VersionConflictError):
                self._store.patch(self._path, members, cas=current)

    def note(self, facts: Mapping[str, str]) -> None:
        """Set some of the secret's custom metadata."""
        metadata = self.metadata()
        custom = {} if metadata is None else metadata.custom
        self._store.configure(self._path, custom={**custom, **facts})

    def noted(self) -> Mapping[str, str]:
        """Return the secret's custom metadata."""
        metadata = self.metadata()
        return {} if metadata is None else metadata.custom

    def destroy_old(self, rotation: Rotation, name: str) -> None:
        """Destroy the version before the rotation; its number stays in the metadata.

        So are earlier ones that have the same value of a member: of a rollback, which has put it back as a version of
        its own, or of somebody who changed other members.
        """
        before = _before(rotation)
        if before is None:
            return
        metadata = self.metadata()
        earlier = [
            version.number
            for version in (() if metadata is None else metadata.versions.values())
            if version.number < int(before) and not version.destroyed
        ]
        if earlier:
            with self.read(before) as old:
                value = None if old is None else old.get(name)
                earlier = [each for each in earlier if self._has(each, name, value)]
        self._store.destroy(self._path, [*earlier, int(before)])

    def _has(self, version: int, name: str, value: Secret | None) -> bool:
        with self.read(version) as found:
            return value is not None and found is not None and found.get(name) == value


def _before(rotation: Rotation) -> str | None:
    """Return the number of the version before; None where there was none, of which "0" too is the number."""
    before = rotation.facts.get("old_version")
    return None if before in (None, FIRST) else str(before)


def _is_of(members: "Mapping[str, Secret | None] | None", rotation: Rotation) -> bool:
    mark = None if members is None else members.get(MARK)
    return mark is not None and mark.expose() == rotation.id


def read_text(members: "Mapping[str, Secret | None] | None", name: str) -> str | None:
    """Return a member that is not secret, such as the id of a key."""
    found = None if members is None else members.get(name)
    with contextlib.suppress(ValueError):
        return None if found is None else found.expose()
    return None


def live_calls(options: Mapping[str, Any]) -> list[str]:
    """Name the calls of Stored.live()."""
    return [f"GET {api_path(options['path'], 'metadata')}"]


def note_calls(options: Mapping[str, Any]) -> list[str]:
    """Name the calls of Stored.note()."""
    path = api_path(options["path"], "metadata")
    return [f"GET {path}", f"POST {path}"]


def write_calls(options: Mapping[str, Any]) -> list[str]:
    """Name the calls of Stored.write() where there is a version already; the first one is a POST."""
    data = api_path(options["path"], "data")
    return [f"GET {data}", f"PATCH {data}"]


def destroy_calls(options: Mapping[str, Any]) -> list[str]:
    """Name the calls of Stored.destroy_old() where no earlier version is left."""
    path = options["path"]
    return [f"GET {api_path(path, 'metadata')}", f"PUT {api_path(path, 'destroy')}"]


def old_calls(options: Mapping[str, Any]) -> list[str]:
    """Name the calls of Stored.old(); … stands for what only the server knows."""
    return [f"GET {api_path(options['path'], 'data')}?version=…"]
