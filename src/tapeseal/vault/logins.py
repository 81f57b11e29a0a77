"""How a session gets its token: one class for each auth method.

A secret is given as text, or as the `Path` of a file that is read again at each login, so that what
rotates it need not tell anyone. None of these shows its secret in repr(), and none is pickled.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from tapeseal.errors import AccessDeniedError

_MAX_SECRET_SIZE = 1 << 16

SECRET_FIELDS = ("secret_id", "password", "jwt")
"""What of a login's fields no error may repeat."""

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Where Kubernetes puts the token of a pod's service account."""


class Unwrapper(Protocol):
    """What a login may ask of Vault before it logs in; errors are the session's."""

    def wrapped_path(self, token: str) -> str | None:
        """Return the path whose answer this token wraps, None where it wraps nothing (any more)."""

    def unwrap(self, token: str) -> Mapping[str, Any] | None:
        """Return the data that this token wraps, which works once, and None thereafter."""


class Login(Protocol):
    """A way to get a token by posting something."""

    def request(self, vault: Unwrapper) -> tuple[str, dict[str, str]]:
        """Return the path under /v1/auth/ and the fields to post.

        Raises:
            AccessDeniedError: there is nothing to log in with.
        """


class _Unpickled:
    """The base of what holds a secret."""

    def __reduce__(self) -> str:
        raise TypeError(f"a {type(self).__name__} is neither pickled nor copied")


def read_secret(secret: str | Path, what: str) -> str:
    """Return a secret without white space around it, from its file where that is given.

    Raises:
        AccessDeniedError: the file cannot be read, or there is no secret in it.
    """
    text = None if isinstance(secret, Path) else secret.strip()
    problem = "is empty, or not printable text"
    if isinstance(secret, Path):
        what = f"the file of the {what}, {secret},"
        try:
            with open(secret.expanduser(), encoding="utf-8") as file:
                text = file.read(_MAX_SECRET_SIZE).strip()
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        except UnicodeDecodeError:
            pass
    else:
        what = f"the {what}"
    if text and text.isprintable():
        return text
    del secret, text
    raise AccessDeniedError(f"{what} {problem}")


@dataclasses.dataclass(frozen=True)
class Token(_Unpickled):
    """A token that somebody else made. It is renewed while it can be; then nothing replaces it."""

    token: str = dataclasses.field(repr=False)

    def read(self) -> str:
        """Return the token; errors as read_secret()."""
        return read_secret(self.token, "token")


@dataclasses.dataclass(frozen=True)
class TokenFile(_Unpickled):
    """A token in a file, as `vault login` and a Vault Agent's sink write it; read again when it changes."""

    path: Path = Path("~/.vault-token")

    def read(self) -> str:
        """Return the token; errors as read_secret()."""
        return read_secret(self.path, "token")

    def stamp(self) -> object:
        """Return what differs when the file was changed or replaced; None where there is none."""
        try:
            status = self.path.expanduser().stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


@dataclasses.dataclass
class AppRole(_Unpickled):
    """An AppRole's role id and secret id.

    A wrapped secret id is what `vault write -wrap-ttl=60s -f auth/approle/role/NAME/secret-id` prints as
    wrapping_token. The session unwraps it once, and keeps what was in it for later logins; a file that holds
    another one then is unwrapped anew. That it cannot be unwrapped is an alarm: it expired, or somebody else
    has unwrapped it and has the secret id.

    Args:
        role_id: text, or the path of its file.
        secret_id: text, or the path of its file; None for a role that binds no secret id.
        wrapped: secret_id is a wrapping token.
        mount: where the auth method is mounted.
    """

    role_id: str | Path
    secret_id: str | Path | None = dataclasses.field(repr=False, default=None)
    wrapped: bool = False
    mount: str = "approle"
    _unwrapped: tuple[str, str] | None = dataclasses.field(init=False, repr=False, default=None)

    def request(self, vault: Unwrapper) -> tuple[str, dict[str, str]]:
        """Return the path under /v1/auth/ and the fields to post."""
        fields = {"role_id": read_secret(self.role_id, "role id")}
        if self.secret_id is not None:
            secret_id = read_secret(self.secret_id, "secret id")
            fields["secret_id"] = self._unwrap(secret_id, vault) if self.wrapped else secret_id
        return f"{_path(self.mount)}/login", fields

    def _unwrap(self, token: str, vault: Unwrapper) -> str:
        if self._unwrapped is not None and self._unwrapped[0] == token:
            return self._unwrapped[1]
        # Looking first costs nothing and leaves it wrapped: who swapped the token for one that wraps something
        # of his own learns nothing, and is noticed.
        path = vault.wrapped_path(token)
        data = None
        if path is not None:
            wanted = rf"(?:.+/)?auth/{re.escape(self.mount.strip('/'))}/role/[^/]+/secret-id"
            if not re.fullmatch(wanted, path):
                raise AccessDeniedError(
                    "ALARM: the wrapping token wraps no secret id of "
                    f"auth/{self.mount}: somebody has replaced it"
                )
            data = vault.unwrap(token)
        if data is None:
            raise AccessDeniedError(
                "ALARM: the wrapping token of the secret id is spent or expired. Unless it is merely old, "
                "somebody else has unwrapped the secret id: have it destroyed, and a new one made"
            )
        secret_id = data.get("secret_id")
        if not isinstance(secret_id, str) or not secret_id:
            raise AccessDeniedError("what the wrapping token wraps holds no secret id")
        self._unwrapped = token, secret_id
        return secret_id


@dataclasses.dataclass(frozen=True)
class Kubernetes(_Unpickled):
    """The service account of a pod, whose token Kubernetes replaces in its file."""

    role: str
    jwt: str | Path = dataclasses.field(repr=False, default=SERVICE_ACCOUNT)
    mount: str = "kubernetes"

    def request(self, vault: Unwrapper) -> tuple[str, dict[str, str]]:
        """Return the path under /v1/auth/ and the fields to post."""
        jwt = read_secret(self.jwt, "service account's token")
        return f"{_path(self.mount)}/login", {"role": self.role, "jwt": jwt}


@dataclasses.dataclass(frozen=True)
class Jwt(_Unpickled):
    """A JSON web token that some other system signed, for a role of the jwt method."""

    role: str
    jwt: str | Path = dataclasses.field(repr=False)
    mount: str = "jwt"

    def request(self, vault: Unwrapper) -> tuple[str, dict[str, str]]:
        """Return the path under /v1/auth/ and the fields to post."""
        jwt = read_secret(self.jwt, "JSON web token")
        return f"{_path(self.mount)}/login", {"role": self.role, "jwt": jwt}


@dataclasses.dataclass(frozen=True)
class Userpass(_Unpickled):
    """A user name and password of the userpass method."""

    username: str
    password: str | Path = dataclasses.field(repr=False)
    mount: str = "userpass"

    def request(self, vault: Unwrapper) -> tuple[str, dict[str, str]]:
        """Return the path under /v1/auth/ and the fields to post."""
        password = read_secret(self.password, "password")
        return f"{_path(self.mount)}/login/{quote(self.username, safe='')}", {"password": password}


@dataclasses.dataclass(frozen=True)
class Ldap(Userpass):
    """A user name and password that Vault checks against a directory."""

    mount: str = "ldap"


@dataclasses.dataclass(frozen=True)
class Certificate(_Unpickled):
    """The session's client certificate.

    Args:
        role: which of the method's certificate roles; None: any that matches.
        mount: where the auth method is mounted.
    """

    role: str | None = None
    mount: str = "cert"

    def request(self, vault: Unwrapper) -> tuple[str, dict[str, str]]:
        """Return the path under /v1/auth/ and the fields to post."""
        return f"{_path(self.mount)}/login", {} if self.role is None else {"name": self.role}


def _path(mount: str) -> str:
    return quote(mount.strip("/"))
