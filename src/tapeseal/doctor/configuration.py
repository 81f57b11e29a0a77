"""Checks of files of configuration: that no secret stands in them."""

import contextlib
import shlex
from collections.abc import Iterator
from typing import Final

from tapeseal.doctor.findings import Checks, GoneError, Look, Problem, SetUp, registrar

SECONDS: Final = 120.0

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)


class ConfigurationLook(Look):
    """Files, and folders as git knows them."""

    def __init__(self, set_up: SetUp) -> None:
        super().__init__("the configuration", SECONDS)
        self.names = set_up.configuration


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[ConfigurationLook | None]:
    """Look at the files of configuration of the set-up."""
    yield ConfigurationLook(set_up) if set_up.configuration else None


@check(
    "config.secrets",
    "Texts in files of configuration that look like a key, a token or a password.",
    "Such files are copied, backed up and committed, and everybody on the machine reads them.",
)
def _secrets(look: ConfigurationLook) -> Iterator[Problem]:
    from tapeseal.doctor.scan import scan_files, tracked_files

    for path in tracked_files(look.names):
        look.left()
        try:
            found = list(scan_files([path]))
        except ModuleNotFoundError as error:
            raise GoneError(
                f"the rules need {error.name}", command="pip install 'tapeseal[cli]'"
            ) from None
        except OSError as error:
            quoted = shlex.quote(path)
            look.not_seen(
                path, path, f"it could not be read: {error.strerror}", command=f"ls -l {quoted}"
            )
            continue
        look.seen += 1
        for number in sorted({each.line for each in found}):
            kinds = ", ".join(each.kind for each in found if each.line == number)
            yield Problem(
                "serious",
                f"{path}:{number}",
                f"it looks like a secret: {kinds}",
                "Rotate it, keep the new one in Vault, and have the program get it from there. What is no secret"
                " gets a comment in its line: tapeseal: no secret",
                "tapeseal secrets run --env NAME=MOUNT/PATH#MEMBER -- PROGRAM",
            )
