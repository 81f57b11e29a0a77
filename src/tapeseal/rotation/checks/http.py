"""The check "http": a request with the credential in a header."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.errors import VerificationError
from tapeseal.rotation.commands import no_part
from tapeseal.rotation.http import Reply, check_url, request
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential
    from tapeseal.rotation.plan import PlannedSecret


class HttpCheck:
    """Sends a part of the credential in a header, after `prefix`; a status of 2xx takes it, 401 and 403 refuse it."""

    settings: ClassVar[Mapping[str, Setting]] = {
        "url": Setting(str),
        "method": Setting(str, default="GET", choices=("GET", "HEAD", "POST")),
        "header": Setting(str, default="Authorization"),
        "prefix": Setting(str, default=None),
        "part": Setting(str, default="key"),
        "ca_file": Setting(Path, default=None),
        "timeout": Setting(timedelta, default=timedelta(seconds=10)),
    }

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        check_url(settings["url"])
        self._settings = settings

    def accepts(self, credential: "Credential") -> None:
        """Send the request."""
        reply = self._send(credential)
        if not reply.done:
            what = "refuses the credential" if reply.refused else "answers"
            raise VerificationError(f"{self._settings['url']} {what} ({reply.status})")

    def refuses(self, credential: "Credential") -> bool:
        """Return whether the answer is 401 or 403."""
        return self._send(credential).refused

    def _send(self, credential: "Credential") -> Reply:
        settings = self._settings
        if settings["part"] not in credential:
            raise VerificationError(no_part(settings["part"], credential))
        prefix = (settings["prefix"] or "").encode()
        return request(
            settings["method"],
            settings["url"],
            secret_headers={settings["header"]: [prefix, credential[settings["part"]].buffer]},
            ca_file=settings["ca_file"],
            seconds=settings["timeout"].total_seconds(),
        )

    def calls(self) -> list[str]:
        """Name the request."""
        return [f"{self._settings['method']} {self._settings['url']}"]
