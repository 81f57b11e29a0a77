"""The kind "tape-recipients": who can open a fleet of tapes."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from tapeseal.errors import ServiceUnavailableError
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.tapes import check_tapes, found_tapes, name_of, recipients_of
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret


class TapeRecipients:
    """Rewraps tapes from old recipients to new ones, and proves of each tape that they open it.

    `opens` and `recipients` are URIs of keyrings: the old ones and the new ones. The store wraps each tape for both,
    and the revoke for the new ones alone, so no reader is locked out before it was seen on its new key. The version is
    a digest of the recipients that the tapes have, as version_of() gives it.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "tapes": Setting(list),
        "opens": Setting(list),
        "recipients": Setting(list),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the digest of the recipients; None where there is no tape."""
        paths = found_tapes(secret.options["tapes"])
        return Live(version_of(paths)) if paths else None

    def generate(self, rotation: Rotation) -> Credential:
        """Do nothing: the new keys are there."""
        return {}

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Wrap every tape for the old and the new recipients."""
        options = rotation.secret.options
        _rewrap(rotation, _union(options["recipients"], options["opens"]))
        rotation.facts["version"] = version_of(found_tapes(options["tapes"]))

    def old(self, rotation: Rotation) -> Credential:
        """Return nothing: the keys are their owners'."""
        return {}

    def discard(self, rotation: Rotation) -> None:
        """Wrap every tape for the old recipients alone."""
        _rewrap(rotation, rotation.secret.options["opens"])

    def revoke(self, rotation: Rotation) -> None:
        """Wrap every tape for the new recipients alone."""
        _rewrap(rotation, rotation.secret.options["recipients"])

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the rewraps."""
        options = secret.options
        check_tapes(options["tapes"])
        both = _union(options["recipients"], options["opens"])
        return [
            f"rewrap {each} to {', '.join(uris)}"
            for uris in (both, options["recipients"])
            for each in options["tapes"]
        ]


def version_of(paths: Sequence[str]) -> str:
    """Return a digest of the recipients that tapes have: what a reader acknowledges once it can open them by its key.

    Args:
        paths: as find_tapes() gives them.

    Raises:
        TapesealError, OSError: one cannot be read.
    """
    names = {name for path in paths for name in recipients_of(path)}
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def _rewrap(rotation: Rotation, uris: Sequence[str]) -> None:
    """Wrap the tapes for the keyrings of URIs and nobody else; those that are so already stay as they are."""
    from tapeseal.fleet import rewrap_fleet
    from tapeseal.keyrings import keyring

    options = rotation.secret.options
    opener, to = keyring(_union(options["recipients"], options["opens"])), keyring(uris)
    wanted = {name_of(each) for each in to.pending()}
    paths = [path for path in found_tapes(options["tapes"]) if recipients_of(path) != wanted]
    problems, unproven = [], 0
    for done in rewrap_fleet(paths, keyring=opener, to=to):
        unproven += done.state == "unproven"
        if done.state == "failed":
            problems.append(f"{done.path}: {done.error}")
    rotation.facts["unproven"] = unproven
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ServiceUnavailableError(f"not all tapes are rewrapped: {problems[0]}{more}")


def _union(*lists: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(each for every in lists for each in every))
