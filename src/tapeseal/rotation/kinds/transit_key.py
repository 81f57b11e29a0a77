"""The kind "transit-key": a key of a Transit engine, which never leaves it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.tapes import TAPES, check_tapes, rewrap_exposed, with_others
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret
    from tapeseal.vault.transit import Transit


class TransitKey:
    """Makes a new version of a key. The old ones go on opening what they made, until the revoke.

    The version is the key's latest, which its users read at MOUNT/keys/NAME: who keeps ciphertexts has them rewrapped
    before it acknowledges. The revoke rewraps the `tapes`, and raises min_decryption_version to the new version. There
    is no way back from a new version, and none is needed: a rollback leaves it there, beside the old one.
    """

    settings: ClassVar[Mapping[str, Setting]] = {"key": Setting(str, names=True), **TAPES}

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the latest version."""
        transit, name = _transit(secret, services)
        key = transit.read_key(name)
        return Live(str(key.latest_version), key.created.get(key.latest_version))

    def generate(self, rotation: Rotation) -> Credential:
        """Make a version, unless there is one since the rotation began."""
        transit, name = _transit(rotation.secret, rotation.services)
        latest = transit.read_key(name).latest_version
        if str(latest) == rotation.facts["old_version"]:
            latest = transit.rotate_key(name)
        rotation.facts["version"] = str(latest)
        return {}

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Do nothing: the latest version is the one that encrypts."""

    def old(self, rotation: Rotation) -> Credential:
        """Return nothing: the key never leaves the engine."""
        return {}

    def discard(self, rotation: Rotation) -> None:
        """Do nothing: both versions stay."""

    def revoke(self, rotation: Rotation) -> None:
        """Rewrap what the old versions wrapped, and have the engine open nothing of theirs any more."""
        from tapeseal.fleet import Condition
        from tapeseal.keyrings.vault_transit import VaultTransitKeyring
        from tapeseal.vault.transit import PROVIDER

        options = rotation.secret.options
        version = str(rotation.facts["version"])
        transit, name = _transit(rotation.secret, rotation.services)
        if options["tapes"]:
            keyring = VaultTransitKeyring(options["key"], rotation.services.vault)
            conditions = [
                Condition("provider", "=", PROVIDER),
                Condition("key", "=", options["key"]),
                Condition("version", "<", version),
            ]
            to = with_others(keyring, options["recipients"])
            rotation.facts["rewrapped"] = rewrap_exposed(
                options["tapes"], conditions, keyring=keyring, to=to
            )
        transit.configure_key(name, min_decryption_version=int(version))

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls of a rotation."""
        from tapeseal.vault.transit import split_key

        options = secret.options
        check_tapes(options["tapes"])
        mount, name = split_key(options["key"])
        read = f"GET {mount}/keys/{name}"
        return [
            read,
            read,
            read,
            f"POST {mount}/keys/{name}/rotate",
            *(f"rewrap {each}" for each in options["tapes"]),
            f"POST {mount}/keys/{name}/config",
        ]


def _transit(secret: "PlannedSecret", services: Services) -> "tuple[Transit, str]":
    from tapeseal.vault.transit import Transit, split_key

    mount, name = split_key(secret.options["key"])
    return Transit(services.vault, mount), name
