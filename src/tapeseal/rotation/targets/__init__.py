"""Where new credentials are deployed: files, commands, paths of a Vault, Kubernetes secrets.

Each target stands in a module of its own, which is cheap to import: what it needs beyond the standard library is
imported in its methods.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from tapeseal.rotation.settings import Setting, load_class

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential, Rotation
    from tapeseal.rotation.plan import PlannedSecret

TARGETS: Final[dict[str, str]] = {
    "file": "tapeseal.rotation.targets.file:FileTarget",
    "exec": "tapeseal.rotation.targets.exec:ExecTarget",
    "vault": "tapeseal.rotation.targets.vault:VaultTarget",
    "kubernetes": "tapeseal.rotation.targets.kubernetes:KubernetesTarget",
}
"""By `type`, module and class."""


class Target(Protocol):
    """One place a credential is deployed to.

    Made of the settings and the secret it is for: the settings are those that `settings` declares, checked, with the
    defaults filled in; a ValueError says which do not go together. Making one talks to nobody.
    """

    settings: ClassVar[Mapping[str, Setting]]
    """What its table in the plan may have beside `type`."""

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None: ...

    def deploy(self, credential: "Credential", rotation: "Rotation") -> None:
        """Put a credential there in place of the one before, all of it or nothing; again does no harm.

        It is the old credential in a rollback.

        Raises:
            ServiceUnavailableError: try again later.
            TapesealError, OSError: it cannot be deployed; the text says what the target said, without the credential.
        """

    def calls(self) -> list[str]:
        """Name every call of deploy() in their order, for a dry run: "write /etc/desk/password"."""


def make_target(settings: Mapping[str, Any], secret: "PlannedSecret") -> Target:
    """Return the target that a table of the plan stands for; the plan has checked it.

    Args:
        settings: one of `secret.deploy`.
        secret: whose.

    Raises:
        ValueError: there is no such type, or the settings do not go together.
    """
    made: Target = load_class(TARGETS, settings["type"], "type of target")(settings, secret)
    return made
