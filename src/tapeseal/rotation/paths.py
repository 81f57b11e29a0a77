"""What rotations keep in a KV store of Vault, version 2: read, written with check-and-set, deleted whole."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tapeseal.errors import RotationError

if TYPE_CHECKING:
    from tapeseal.vault.session import VaultSession


class Entry(NamedTuple):
    """What stands at a path."""

    data: dict[str, Any]
    version: int
    written: datetime
    """By the server's clock."""


def read(vault: "VaultSession", path: str, *, secret: Sequence[str] = ()) -> Entry | None:
    """Return what stands at a path, None for nothing.

    Args:
        vault: the session.
        path: MOUNT/PATH; the mount is the first part.
        secret: the members of the data that are secret, as VaultSession.request() has them.
    """
    found = read_or_version(vault, path, secret=secret)
    return found if isinstance(found, Entry) else None


def read_or_version(vault: "VaultSession", path: str, *, secret: Sequence[str] = ()) -> Entry | int:
    """Return what stands at a path; for nothing, the number of the version that was deleted there, or 0."""
    from hvac.exceptions import InvalidPath

    try:
        answer = vault.request(
            "GET", api_path(path, "data"), secret=[f"data.data.{name}" for name in secret]
        )
    except InvalidPath as error:
        try:
            return int(error.json["data"]["metadata"]["version"])
        except (AttributeError, LookupError, TypeError, ValueError):
            return 0
    try:
        data, metadata = answer["data"]["data"], answer["data"]["metadata"]
        return Entry(
            dict(data), int(metadata["version"]), datetime.fromisoformat(metadata["created_time"])
        )
    except (LookupError, TypeError, ValueError):
        raise RotationError(
            f"what Vault has at {path} is no KV secret: is its mount of version 2?"
        ) from None


class Written(NamedTuple):
    """What was written: its version, and when, by the server's clock."""

    version: int
    written: datetime


def write(
    vault: "VaultSession", path: str, data: Mapping[str, Any], *, after: int | None
) -> Written | None:
    """Write to a path.

    Args:
        vault: the session.
        path: MOUNT/PATH.
        data: may hold Secrets.
        after: the version that must stand there now, 0 for none at all; None: whatever it is.

    Returns:
        None: another version stands there. It may be this very write, where its first answer was lost.
    """
    from hvac.exceptions import InvalidPath, InvalidRequest

    body: dict[str, Any] = {"data": data}
    if after is not None:
        body["options"] = {"cas": after}
    try:
        # With check-and-set a second try does no harm; without, it writes the same again.
        answer = vault.request("POST", api_path(path, "data"), body, idempotent=True)
        made = answer["data"]
        return Written(int(made["version"]), datetime.fromisoformat(made["created_time"]))
    except InvalidRequest as error:
        if after is not None and "check-and-set" in str(error):
            return None
        problem = "refused"
    except InvalidPath:
        problem = "no KV store of version 2 is mounted there"
    except (LookupError, TypeError, ValueError):
        problem = "the answer has no version: is its mount of version 2?"
    raise RotationError(f"Vault did not take what was to be written at {path}: {problem}")


def delete(vault: "VaultSession", path: str) -> None:
    """Delete all versions at a path, and every trace; where there is nothing, nothing happens."""
    from hvac.exceptions import InvalidPath

    try:
        vault.request("DELETE", api_path(path, "metadata"))
    except InvalidPath:
        pass


def api_path(path: str, what: str) -> str:
    """Return the path in Vault's API of the "data" or "metadata" of MOUNT/PATH, or of what does "destroy".

    Raises:
        ValueError: it is no MOUNT/PATH.
    """
    mount, slash, rest = path.partition("/")
    if not mount or not slash or not rest:
        raise ValueError(f"the path of a secret in KV is MOUNT/PATH, not {path!r}")
    return f"{mount}/{what}/{rest}"
