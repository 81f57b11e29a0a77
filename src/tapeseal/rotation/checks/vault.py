"""The check "vault": a login to Vault by the secret id of an AppRole."""

from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.errors import VerificationError
from tapeseal.rotation.commands import json_of, no_part
from tapeseal.rotation.http import check_url, request
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.http import Reply
    from tapeseal.rotation.kinds import Credential
    from tapeseal.rotation.plan import PlannedSecret

_PARTS = ("role_id", "secret_id")
_TOKEN = "client_token"


class VaultCheck:
    """Logs in at `auth_mount` by the parts `role_id` and `secret_id`, and revokes the token that it gets.

    `address` is the URL of a Vault, whose certificate is checked against `ca_file`, or what the system trusts.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "address": Setting(str),
        "ca_file": Setting(Path, default=None),
        "namespace": Setting(str, default=None),
        "auth_mount": Setting(str, default="approle"),
        "timeout": Setting(timedelta, default=timedelta(seconds=10)),
    }

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        self._settings = settings
        self._url = f"{check_url(settings['address']).rstrip('/')}/v1/auth"
        self._login = f"{self._url}/{settings['auth_mount']}/login"
        namespace = settings["namespace"]
        self._headers = {} if namespace is None else {"x-vault-namespace": namespace}

    def accepts(self, credential: "Credential") -> None:
        """Log in."""
        status = self._log_in(credential)
        if status != 200:
            raise VerificationError(f"{self._login} refuses the credential ({status})")

    def refuses(self, credential: "Credential") -> bool:
        """Return whether a login is refused."""
        # 400 is Vault's answer to a secret id that is none, or none any more.
        return self._log_in(credential) in (400, 401, 403)

    def _log_in(self, credential: "Credential") -> int:
        for part in _PARTS:
            if part not in credential:
                raise VerificationError(no_part(part, credential))
        with closing(json_of({part: credential[part] for part in _PARTS})) as body:
            reply = self._post(self._login, body=[body], secret=[("auth", _TOKEN)])
        token = reply.secrets.get(_TOKEN)
        if token is not None:
            with token:
                headers = {"x-vault-token": [token.buffer]}
                self._post(f"{self._url}/token/revoke-self", secret_headers=headers)
        return reply.status

    def _post(self, url: str, **arguments: Any) -> "Reply":
        return request(
            "POST",
            url,
            headers=self._headers,
            ca_file=self._settings["ca_file"],
            seconds=self._settings["timeout"].total_seconds(),
            **arguments,
        )

    def calls(self) -> list[str]:
        """Name the requests."""
        return [f"POST {self._login}", f"POST {self._url}/token/revoke-self"]
