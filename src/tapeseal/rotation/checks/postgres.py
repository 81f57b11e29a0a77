"""The check "postgres": a login to PostgreSQL."""

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tapeseal.errors import VerificationError
from tapeseal.rotation.isolated import run_isolated
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential
    from tapeseal.rotation.plan import PlannedSecret

_LOOPBACK: Final = re.compile(r"localhost|127(?:\.[0-9]{1,3}){3}|::1")


class PostgresCheck:
    """Logs in with the parts `username` and `password`, in a process of its own, and asks SELECT 1.

    `username` is for credentials that have none. The server's certificate is checked against `ca_file`, or what the
    system trusts; sslmode "disable" is for this machine itself.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "host": Setting(str),
        "port": Setting(int, default=5432, least=1),
        "database": Setting(str, default="postgres"),
        "username": Setting(str, default=None),
        "sslmode": Setting(str, default="verify-full", choices=("verify-full", "disable")),
        "ca_file": Setting(Path, default=None),
        "timeout": Setting(timedelta, default=timedelta(seconds=10)),
    }

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        host = settings["host"]
        if settings["sslmode"] == "disable" and not _LOOPBACK.fullmatch(host):
            raise ValueError(f"sslmode is verify-full, for {host} is another machine")
        self._seconds = int(settings["timeout"].total_seconds())
        ca_file: str | None = None
        if settings["sslmode"] != "disable":
            ca_file = str(settings["ca_file"] or "system")
        self._settings = {
            "host": host,
            "port": settings["port"],
            "database": settings["database"],
            "username": settings["username"],
            "sslmode": settings["sslmode"],
            "ca_file": ca_file,
            "seconds": self._seconds,
        }

    def accepts(self, credential: "Credential") -> None:
        """Log in."""
        parts = {name: credential[name] for name in ("username", "password") if name in credential}
        missing = {"username", "password"} - parts.keys()
        if missing - ({"username"} if self._settings["username"] else set()):
            raise VerificationError(
                f"a login to PostgreSQL needs the parts username and password, not {', '.join(credential)}"
            )
        # The child's own limit comes first, and says what it was at.
        run_isolated("postgres", self._settings, parts, self._seconds + 5)

    def refuses(self, credential: "Credential") -> bool:
        """Return whether a login fails."""
        try:
            self.accepts(credential)
        except VerificationError:
            return True
        return False

    def calls(self) -> list[str]:
        """Name the login."""
        settings = self._settings
        return [
            f"log in to PostgreSQL at {settings['host']}:{settings['port']}/{settings['database']}"
        ]
