"""What the engine asks of each kind of secret.

A rotation goes through six steps: generate, store, deploy, verify, revoke, monitor. A kind does what differs between
kinds: it makes the new credential, puts it in its place, ends the old one or the new one. The engine does the rest:
it keeps the journal, stages a new credential in Vault so that a crash loses none, deploys to targets, runs the checks,
waits for consumers.

Each method may be called again with the same rotation after a crash at any instant, and then finds what the call
before has done instead of doing it twice: by the id of the rotation, which it leaves on everything that it makes
(custom metadata, a display name, a comment).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret
    from tapeseal.vault.session import VaultSession

Credential = Mapping[str, Secret]
"""The parts of a credential by their names, such as "username" and "password"; empty where there is nothing secret to
hand out, as with a key that never leaves its service."""


class Services(Protocol):
    """The services of a plan, each opened at first use and shared by all rotations."""

    @property
    def vault(self) -> "VaultSession":
        """The session with the Vault of the plan."""

    def aws(self, service: str) -> Any:
        """A boto3 client."""


@dataclass
class Rotation:
    """One rotation of one secret."""

    id: str
    """Random; marks what this rotation makes."""
    secret: "PlannedSecret"
    services: Services
    facts: dict[str, str | int | None] = field(default_factory=dict)
    """What the steps have noted for those after them: versions, serial numbers, accessors; journaled after each step,
    so nothing secret."""


@dataclass(frozen=True)
class Live:
    """What is in use now."""

    version: str
    """As consumers acknowledge it: the version in KV, a serial number, a user's name."""
    made: datetime | None = None
    """When it was made, in UTC; None: the service does not know."""
    expires: datetime | None = None
    """When it ends by itself."""


class Kind(Protocol):
    """One kind of secret. `rotation.secret.options` holds its settings from the plan."""

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Say what is in use now; None where there is nothing yet."""

    def generate(self, rotation: Rotation) -> Credential:
        """Make the new credential, alive beside the old one wherever the service allows two.

        What an earlier, interrupted try of the same rotation made, and nobody has, is ended first.
        """

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Put the new credential where consumers read it, and note its version as facts["version"]."""

    def old(self, rotation: Rotation) -> Credential:
        """Return the credential from before the rotation, to deploy it again or to see it refused; may be empty."""

    def discard(self, rotation: Rotation) -> None:
        """Undo generate() and store(): the old credential is the current one, and the new one is ended."""

    def revoke(self, rotation: Rotation) -> None:
        """End the old credential at its service."""

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name every call of a rotation in their order, for a dry run: "PUT transit/keys/day/rotate"."""
