"""What the engine asks of each kind of secret.

A rotation goes through six steps: generate, store, deploy, verify, revoke, monitor. A kind does what differs between
kinds: it makes the new credential, puts it in its place, ends the old one or the new one. The engine does the rest:
it keeps the journal, stages a new credential in Vault so that a crash loses none, deploys to targets, runs the checks,
waits for consumers.

Each method may be called again with the same rotation after a crash at any instant, and then finds what the call
before has done instead of doing it twice: by the id of the rotation, which it leaves on everything that it makes
(custom metadata, a display name, a comment).

Each kind stands in a module of its own, which is cheap to import: what it needs beyond the standard library is imported
in its methods.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from tapeseal.rotation.settings import Setting, load_class
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret
    from tapeseal.vault.session import VaultSession

KINDS: Final[dict[str, str]] = {
    "api-key": "tapeseal.rotation.kinds.api_key:ApiKey",
    "database-static-role": "tapeseal.rotation.kinds.database:StaticRole",
    "database-users": "tapeseal.rotation.kinds.database:AlternatingUsers",
    "service-account": "tapeseal.rotation.kinds.service_account:ServiceAccount",
    "tls-certificate": "tapeseal.rotation.kinds.tls_certificate:TlsCertificate",
    "ssh-key": "tapeseal.rotation.kinds.ssh_key:SshKey",
    "transit-key": "tapeseal.rotation.kinds.transit_key:TransitKey",
    "kms-key": "tapeseal.rotation.kinds.kms_key:KmsKey",
    "tape-recipients": "tapeseal.rotation.kinds.tape_recipients:TapeRecipients",
    "exec": "tapeseal.rotation.kinds.exec:Exec",
}
"""By `kind`, module and class."""

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
    so nothing secret. From the start, "old_version" is what live() gave before the rotation; None: there was nothing.
    generate() sets "version", or store() does.
    """


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
    """One kind of secret; made without arguments, and used by many threads.

    `rotation.secret.options` holds its settings from the plan, checked, with the defaults filled in.

    A step raises ServiceUnavailableError where it may go well later: it is tried again, with the same rotation. Any
    other error ends the rotation, and has it rolled back; its text holds nothing secret.
    """

    settings: ClassVar[Mapping[str, Setting]]
    """What the table of a secret in the plan may have as `options`."""

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
        """Undo generate() and store(): the old credential is the current one, and the new one is ended.

        Either may have come to nothing, or to half of what it does.

        Raises:
            IrreversibleError: the old credential is dead, so the new one stays: it is deployed again.
        """

    def revoke(self, rotation: Rotation) -> None:
        """End the old credential at its service."""

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name every call of a rotation in their order, for a dry run: "PUT transit/keys/day/rotate".

        It asks nobody, and the plan calls it for each of its secrets.

        Raises:
            ValueError: the options of the secret do not go together.
        """


def make_kind(name: str) -> Kind:
    """Return the kind of a name.

    Raises:
        ValueError: there is none.
    """
    made: Kind = load_class(KINDS, name, "kind")()
    return made
