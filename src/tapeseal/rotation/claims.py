"""The claim of a rotation: an entry in Vault that says who rotates a secret, and keeps its credentials meanwhile.

Its first version names the rotation, and is written where nothing stands yet. So two hosts, each with a journal of
its own, never rotate one secret at once. Its second version holds the new credential, written as soon as there is
one: after a crash it is read back instead of generated again. Before the revoke the old credential is added, which is
then tried until it is refused. At the end the whole entry is deleted.
"""

import socket
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from tapeseal.errors import RotationError
from tapeseal.rotation import paths
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.vault.session import VaultSession

_SINCE: Final = "since"

Facts = dict[str, str | int | None]


class Claim:
    """The claim of one rotation.

    Args:
        vault: the session.
        path: where it stands.
        rotation: the id.
    """

    def __init__(self, vault: "VaultSession", path: str, rotation: str) -> None:
        self.path = path
        self.rotation = rotation
        self.facts: Facts = {}
        """What was noted beside the credential."""
        self.new: dict[str, Secret] | None = None
        """The new credential, None where none was kept."""
        self.old: dict[str, Secret] | None = None
        """The old credential, from the revoke on."""
        self.since: datetime | None = None
        """When it was first written, by the server's clock: since then the rotation is on."""
        self._vault = vault
        self._version = 0
        self._deleted = 0
        """The version that somebody deleted, of which the path has kept the number, and the ones before."""

    @property
    def known(self) -> bool:
        """Whether it was read or written by now."""
        return self._version > 0

    def read(self) -> bool:
        """Read it and return whether there is one.

        Raises:
            RotationError: it is another rotation's.
        """
        entry = paths.read_or_version(self._vault, self.path, secret=("new.*", "old.*"))
        if isinstance(entry, int):
            self._version, self._deleted = 0, entry
            return False
        new, old = (_credential(entry.data.get(name)) for name in ("new", "old"))
        if entry.data.get("rotation") != self.rotation:
            _close(new, old)
            raise RotationError(
                f"another runner, on {entry.data.get('host')}, is at the rotation {entry.data.get('rotation')} of this"
                f" secret: end it there; where that journal is lost, take the rotation over (rotate run --take-over)"
            )
        self.close()
        facts = entry.data.get("facts")
        self.facts = dict(facts) if isinstance(facts, dict) else {}
        self.new, self.old = new, old
        self.since, self._version = _time(entry.data.get(_SINCE)) or entry.written, entry.version
        return True

    def take_over(self) -> None:
        """Be the rotation that has the claim, whoever's it was.

        Raises:
            RotationError: there is none.
        """
        entry = paths.read(self._vault, self.path, secret=("new.*", "old.*"))
        if entry is None:
            raise RotationError(f"no rotation is under way: there is nothing at {self.path}")
        _close(*(_credential(entry.data.get(name)) for name in ("new", "old")))
        self.rotation = str(entry.data.get("rotation"))
        self.read()

    def write(self) -> None:
        """Write it, facts and credentials with it.

        Raises:
            RotationError: another rotation was faster.
        """
        data: dict[str, Any] = {
            "rotation": self.rotation,
            "host": socket.gethostname(),
            "facts": self.facts,
        }
        if self.since is not None:
            data[_SINCE] = self.since.isoformat()
        if self.new is not None:
            data["new"] = self.new
        if self.old is not None:
            data["old"] = self.old
        before = self._version or self._deleted
        written = paths.write(self._vault, self.path, data, after=before)
        if written is None:
            # Ours, if an answer was lost; read() tells.
            mine = Claim(self._vault, self.path, self.rotation)
            there = mine.read()
            mine.close()
            if not there or mine._version != before + 1:
                raise RotationError(f"somebody else has changed {self.path} meanwhile")
            self.since = mine.since
        elif self.since is None:
            self.since = written.written
        self._version = before + 1

    def delete(self) -> None:
        """Delete it with all its versions, unless it is another rotation's."""
        if not self.known:
            try:
                self.read()
            except RotationError:
                return
        if self.known or self._deleted:
            paths.delete(self._vault, self.path)
        self._version = self._deleted = 0
        self.close()

    def close(self) -> None:
        """Wipe the credentials."""
        _close(self.new, self.old)
        self.new = self.old = None


def _credential(value: Any) -> dict[str, Secret] | None:
    if not isinstance(value, Mapping):
        return None
    return {name: each for name, each in value.items() if isinstance(each, Secret)}


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def _close(*credentials: Mapping[str, Secret] | None) -> None:
    for credential in credentials:
        for secret in (credential or {}).values():
            secret.close()
