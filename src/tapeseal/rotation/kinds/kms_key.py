"""The kind "kms-key": a key of AWS KMS, which never leaves it."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from tapeseal.errors import ServiceUnavailableError
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.tapes import TAPES, check_tapes, rewrap_exposed, with_others
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.kms import Kms
    from tapeseal.rotation.plan import PlannedSecret

_MADE_BY: Final = "tapeseal:made-by-rotation"
_REPLACED_BY: Final = "tapeseal:replaced-by-rotation"
_WAIT_SECONDS: Final = 20.0


class KmsKey:
    """Makes new material for a key ("material"), or puts a new key behind an alias ("key").

    "material": KMS rotates the key on demand, once for each rotation; the version is how many materials the key has
    had. KMS keeps all of them for what they encrypted, so there is nothing to revoke, and nothing to go back from.

    "key": a key of the same kind, policy and tags is made, and the alias moved to it; its ARN is the version. The
    revoke rewraps the `tapes`, and disables the old key, which can be enabled again: nothing is ever deleted. Who keeps
    other ciphertexts has them encrypted anew before it acknowledges. Grants are not copied.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "key": Setting(str, names=True),
        "replace": Setting(str, default="material", choices=("material", "key"), names=True),
        **TAPES,
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the number of materials, or the key behind the alias."""
        kms = _kms(services)
        found = kms.describe(secret.options["key"])
        if secret.options["replace"] == "key":
            return Live(found.key, found.created)
        return Live(str(len(kms.rotations(found.key)) + 1), found.rotated or found.created)

    def generate(self, rotation: Rotation) -> Credential:
        """Make the new material, or the new key, once for this rotation."""
        facts, options = rotation.facts, rotation.secret.options
        kms = _kms(rotation.services)
        if options["replace"] == "material":
            key = kms.describe(options["key"]).key
            facts["version"] = self._rotate(kms, key, str(facts["old_version"]))
        else:
            facts["version"] = self._made(kms, rotation) or self._make(kms, rotation)
        return {}

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Move the alias to the new key."""
        options = rotation.secret.options
        if options["replace"] == "key":
            _kms(rotation.services).update_alias(options["key"], str(rotation.facts["version"]))

    def old(self, rotation: Rotation) -> Credential:
        """Return nothing: the key never leaves KMS."""
        return {}

    def discard(self, rotation: Rotation) -> None:
        """Move the alias back, and disable the new key; new material stays, beside the old."""
        options = rotation.secret.options
        if options["replace"] == "key":
            kms = _kms(rotation.services)
            kms.update_alias(options["key"], str(rotation.facts["old_version"]))
            made = self._made(kms, rotation)
            if made is not None:
                kms.disable(made)

    def revoke(self, rotation: Rotation) -> None:
        """Rewrap what the old key wrapped, and disable it."""
        from tapeseal.fleet import Condition
        from tapeseal.keyrings.aws_kms import AwsKmsKeyring

        options = rotation.secret.options
        if options["replace"] == "material":
            return
        old, new = str(rotation.facts["old_version"]), str(rotation.facts["version"])
        client = rotation.services.aws("kms")
        if options["tapes"]:
            to = with_others(AwsKmsKeyring(new, client=client), options["recipients"])
            rotation.facts["rewrapped"] = rewrap_exposed(
                options["tapes"],
                [Condition("provider", "=", "aws-kms"), Condition("key", "=", old)],
                keyring=AwsKmsKeyring([new, old], client=client),
                to=to,
            )
        _kms(rotation.services).disable(old)

    def _rotate(self, kms: "Kms", key: str, before: str) -> str:
        end = time.monotonic() + _WAIT_SECONDS
        asked = False
        while True:
            version = str(len(kms.rotations(key)) + 1)
            if version != before:
                return version
            if not asked and kms.rotation(key).on_demand_since is None:
                kms.rotate(key)
            asked = True
            if time.monotonic() >= end:
                raise ServiceUnavailableError(f"aws-kms:{key}: KMS is still at the rotation")
            time.sleep(0.2)

    def _made(self, kms: "Kms", rotation: Rotation) -> str | None:
        """Return the key that an interrupted try of this rotation has made; of several, all but one are disabled."""
        old = str(rotation.facts["old_version"])
        if kms.tags(old).get(_REPLACED_BY) != rotation.id:
            return None
        made = sorted(
            found.key
            for found in kms.inventory()
            if found.manager == "CUSTOMER"
            and found.problem is None
            and kms.tags(found.key).get(_MADE_BY) == rotation.id
        )
        for each in made[1:]:
            kms.disable(each)
        return made[0] if made else None

    def _make(self, kms: "Kms", rotation: Rotation) -> str:
        old = str(rotation.facts["old_version"])
        # First of all: who finds it on the old key looks for a new one that has the id.
        kms.tag(old, {_REPLACED_BY: rotation.id})
        return kms.create_key_like(old, tags={_MADE_BY: rotation.id})

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls of a rotation."""
        options = secret.options
        check_tapes(options["tapes"])
        describe = ["DescribeKey", "GetKeyRotationStatus", "ListKeyRotations"]
        if options["replace"] == "material":
            if options["tapes"]:
                raise ValueError("tapes need no rewrap where the key stays: leave them out")
            return [
                *(*describe, "ListKeyRotations"),
                *(*describe, "ListKeyRotations"),
                *("GetKeyRotationStatus", "RotateKeyOnDemand", "ListKeyRotations"),
            ]
        if not options["key"].startswith("alias/"):
            raise ValueError('key is an alias, "alias/NAME": a new key is put behind it')
        return [
            *(*describe, "ListResourceTags", "TagResource"),
            *(*describe, "GetKeyPolicy", "ListResourceTags", "CreateKey"),
            "UpdateAlias",
            *(f"rewrap {each}" for each in options["tapes"]),
            "DisableKey",
        ]


def _kms(services: Services) -> "Kms":
    from tapeseal.kms import Kms

    return Kms(client=services.aws("kms"))
