"""How consumers say which version of a secret they use: each writes to a path of its own in KV."""

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from tapeseal import audit
from tapeseal.rotation import paths
from tapeseal.rotation.plan import CONSUMERS, NAME

if TYPE_CHECKING:
    from tapeseal.vault.session import VaultSession


def acknowledge(
    vault: "VaultSession", secret: str, consumer: str, version: str | int, *, path: str = CONSUMERS
) -> None:
    """Say that a consumer uses a version of a secret, and no older one any more.

    It writes {"version": …} to PATH/SECRET/CONSUMER, which a policy should let this consumer alone do. Call it when the
    new version is in use, and at each start.

    Args:
        vault: the consumer's own session.
        secret: its name in the plan.
        consumer: its name in the plan.
        version: as the kind of secret counts: the version in KV, a serial number, a user's name.
        path: the plan's `consumers`.

    Raises:
        ValueError: a name that no plan can have.
        RotationError: Vault did not take it.
        ServiceUnavailableError, AccessDeniedError: as for VaultSession.call().
    """
    for name in (secret, consumer):
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a secret or a consumer")
    with audit.operation("rotation.acknowledge", secret, consumer=consumer) as entry:
        entry.version = version
        paths.write(vault, f"{path}/{secret}/{consumer}", {"version": str(version)}, after=None)


def missing(
    vault: "VaultSession",
    secret: str,
    consumers: Iterable[str],
    version: str,
    since: datetime,
    *,
    path: str = CONSUMERS,
) -> list[str]:
    """Return the consumers that were not yet seen on a version.

    Args:
        vault: a session that may read them.
        secret: its name in the plan.
        consumers: their names.
        version: the one they must be on.
        since: when the rotation began, by the server's clock: what was said before counts for nothing, for versions can
            come again, such as the names of two users that take turns.
        path: the plan's `consumers`.
    """
    found = []
    for consumer in consumers:
        entry = paths.read(vault, f"{path}/{secret}/{consumer}")
        if entry is None or entry.data.get("version") != version or entry.written < since:
            found.append(consumer)
    return found
