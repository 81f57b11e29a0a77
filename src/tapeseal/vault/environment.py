"""The variables and the token file that the command lines of Vault and OpenBao read."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from tapeseal.vault.logins import Token, TokenFile

DEFAULT_ADDRESS = "https://127.0.0.1:8200"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[smhd]))+")
_TRUE = {"1", "t", "true"}


class Environment(NamedTuple):
    """What the environment says about a Vault; see from_environment()."""

    addresses: list[str]
    login: Token | TokenFile
    namespace: str
    ca_file: str | None
    ca_data: str | None
    client_certificate: tuple[str, str | None] | None
    server_name: str | None
    proxy: str | None
    timeout: float | None


def from_environment(variables: Mapping[str, str] = os.environ) -> Environment:
    """Read the variables; BAO_NAME goes before VAULT_NAME, even where it is empty.

    ADDR (here also several, with commas between them), AGENT_ADDR, TOKEN (otherwise ~/.vault-token),
    NAMESPACE, CACERT, CACERT_BYTES, CAPATH, CLIENT_CERT, CLIENT_KEY, TLS_SERVER_NAME, CLIENT_TIMEOUT,
    PROXY_ADDR and HTTP_PROXY.

    Raises:
        ValueError: SKIP_VERIFY is set, or a duration cannot be read.
    """

    def get(name: str) -> str | None:
        return variables.get(f"BAO_{name}", variables.get(f"VAULT_{name}", "")) or None

    if (get("SKIP_VERIFY") or "").lower() in _TRUE:
        raise ValueError(
            "VAULT_SKIP_VERIFY is set, but certificates are always checked here: unset it, and name the CA "
            "by VAULT_CACERT"
        )
    token, certificate = get("TOKEN"), get("CLIENT_CERT")
    ca_file, ca_data = get("CACERT"), get("CACERT_BYTES")
    if ca_file is None and ca_data is None:
        ca_file = get("CAPATH")
    return Environment(
        addresses=(get("AGENT_ADDR") or get("ADDR") or DEFAULT_ADDRESS).split(","),
        login=TokenFile() if token is None else Token(token),
        namespace=get("NAMESPACE") or "",
        ca_file=ca_file,
        ca_data=None if ca_file else ca_data,
        client_certificate=None if certificate is None else (certificate, get("CLIENT_KEY")),
        server_name=get("TLS_SERVER_NAME"),
        proxy=get("PROXY_ADDR") or get("HTTP_PROXY"),
        timeout=_seconds("CLIENT_TIMEOUT", get("CLIENT_TIMEOUT")),
    )


def _seconds(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        seconds = float(text)
    elif _DURATION.fullmatch(text):
        parts = re.findall(r"([0-9.]+)([a-z]+)", text)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    else:
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f"VAULT_{name} is a number of seconds, or a duration like 1m30s")
    return seconds
