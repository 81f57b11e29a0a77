"""Sessions with a Vault or an OpenBao, the ways to log in to one, and what is had from it."""

from tapeseal.vault.lease import Credential, DatabaseCredentials, LeaseStatus
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
    "Credential",
    "DatabaseCredentials",
    "Jwt",
    "Kubernetes",
    "Ldap",
    "LeaseStatus",
    "Token",
    "TokenFile",
    "Userpass",
    "VaultSession",
]
