"""What shows that a target takes a credential, or takes it no more: a login, a request, a command.

Each check stands in a module of its own, which is cheap to import: what it needs beyond the standard library is
imported in its methods.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from tapeseal.rotation.settings import Setting, load_class

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential
    from tapeseal.rotation.plan import PlannedSecret

CHECKS: Final[dict[str, str]] = {
    "postgres": "tapeseal.rotation.checks.postgres:PostgresCheck",
    "http": "tapeseal.rotation.checks.http:HttpCheck",
    "exec": "tapeseal.rotation.checks.exec:ExecCheck",
    "ssh": "tapeseal.rotation.checks.ssh:SshCheck",
    "tls": "tapeseal.rotation.checks.tls:TlsCheck",
    "vault": "tapeseal.rotation.checks.vault:VaultCheck",
}
"""By `type`, module and class."""


class Check(Protocol):
    """One way to try a credential at its target.

    Made of the settings and the secret it is for: the settings are those that `settings` declares, checked, with the
    defaults filled in; a ValueError says which do not go together. Making one talks to nobody.
    """

    settings: ClassVar[Mapping[str, Setting]]
    """What its table in the plan may have beside `type`."""

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None: ...

    def accepts(self, credential: "Credential") -> None:
        """Have the target take the credential.

        Raises:
            VerificationError: it does not; the text says what it said, without the credential.
            ServiceUnavailableError: it could not be asked; try again later.
        """

    def refuses(self, credential: "Credential") -> bool:
        """Return whether the target refuses the credential, the old one after it was revoked.

        Raises:
            ServiceUnavailableError: it could not be asked, which is no refusal.
        """

    def calls(self) -> list[str]:
        """Name every call of accepts() in their order, for a dry run: "log in to PostgreSQL at db:5432"."""


def make_check(settings: Mapping[str, Any], secret: "PlannedSecret") -> Check:
    """Return the check that a table of the plan stands for; the plan has checked it.

    Args:
        settings: one of `secret.verify`.
        secret: whose.

    Raises:
        ValueError: there is no such type, or the settings do not go together.
    """
    made: Check = load_class(CHECKS, settings["type"], "type of check")(settings, secret)
    return made
