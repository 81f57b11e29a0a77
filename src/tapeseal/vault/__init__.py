"""Sessions with a Vault or an OpenBao, and the ways to log in to one."""

from tapeseal.vault.logins import (
    AppRole,
    Certificate,
    Jwt,
    Kubernetes,
    Ldap,
    Token,
    TokenFile,
    Userpass,
)
from tapeseal.vault.session import VaultSession

__all__ = [
    "AppRole",
    "Certificate",
    "Jwt",
    "Kubernetes",
    "Ldap",
    "Token",
    "TokenFile",
    "Userpass",
    "VaultSession",
]
