"""The kind "tape-recipients": who can open a fleet of tapes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from tapeseal.errors import ServiceUnavailableError
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.stored import FIRST, SETTINGS, Stored, live_calls, write_calls
from tapeseal.rotation.kinds.tapes import check_tapes, found_tapes, name_of, recipients_of
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.datakey import Keyring
    from tapeseal.rotation.plan import PlannedSecret


class TapeRecipients:
    """Rewraps tapes from old recipients to new ones, and proves of each tape that they open it.

    `opens` and `recipients` are URIs of keyrings: the old ones and the new ones. The store wraps each tape for both,
    and then writes the names of the new ones, PROVIDER:KEY each, to the member `recipients` of the secret in KV, which
    has nothing secret in it: readers go over to such a key, and acknowledge the version. The revoke wraps each tape for
    the new ones alone.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        **SETTINGS,
        "tapes": Setting(list),
        "opens": Setting(list),
        "recipients": Setting(list),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the current version in KV; before the first rotation, "0" where there are tapes."""
        live = Stored(secret, services).live()
        if live is None and found_tapes(secret.options["tapes"]):
            return Live(FIRST)
        return live

    def generate(self, rotation: Rotation) -> Credential:
        """Do nothing: the new keys are there."""
        return {}

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Wrap every tape for the old and the new recipients, then say in KV who the new ones are."""
        options = rotation.secret.options
        self._rewrap(rotation, _union(options["recipients"], options["opens"]))
        names = " ".join(sorted(_names(options["recipients"])))
        Stored(rotation.secret, rotation.services).write(rotation, {"recipients": names})

    def old(self, rotation: Rotation) -> Credential:
        """Return nothing: the keys are their owners'."""
        return {}

    def discard(self, rotation: Rotation) -> None:
        """Put back the version before in KV, and wrap every tape for the old recipients alone."""
        Stored(rotation.secret, rotation.services).restore(rotation)
        self._rewrap(rotation, rotation.secret.options["opens"])

    def revoke(self, rotation: Rotation) -> None:
        """Wrap every tape for the new recipients alone."""
        self._rewrap(rotation, rotation.secret.options["recipients"])

    def _rewrap(self, rotation: Rotation, uris: Sequence[str]) -> None:
        """Wrap the tapes for the keyrings of URIs and nobody else; those that are so already stay as they are."""
        from tapeseal.fleet import rewrap_fleet

        options = rotation.secret.options
        wanted = _names(uris)
        paths = [path for path in found_tapes(options["tapes"]) if recipients_of(path) != wanted]
        opener = _keyring(_union(options["recipients"], options["opens"]))
        problems, unproven = [], 0
        for done in rewrap_fleet(paths, keyring=opener, to=_keyring(uris)):
            unproven += done.state == "unproven"
            if done.state == "failed":
                problems.append(f"{done.path}: {done.error}")
        rotation.facts["rewrapped"] = len(paths) - len(problems)
        rotation.facts["unproven"] = unproven
        if problems:
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            raise ServiceUnavailableError(f"not all tapes are rewrapped: {problems[0]}{more}")

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls and the rewraps."""
        options = secret.options
        check_tapes(options["tapes"])
        both, new = (
            [f"rewrap {each} to {', '.join(uris)}" for each in options["tapes"]]
            for uris in (_union(options["recipients"], options["opens"]), options["recipients"])
        )
        return [*live_calls(options), *both, *write_calls(options), *new]


def _keyring(uris: Sequence[str]) -> "Keyring":
    from tapeseal.keyrings import keyring

    return keyring(uris)


def _names(uris: Sequence[str]) -> set[str]:
    """Name the recipients that the keyrings of URIs wrap for."""
    return {name_of(each) for each in _keyring(uris).pending()}


def _union(*lists: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(each for every in lists for each in every))
