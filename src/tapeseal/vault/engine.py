"""What the clients of secrets engines share: requests below a mount, and refusals as errors of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from hvac.exceptions import InvalidPath, VaultError

from tapeseal.errors import CertificateError, ServiceUnavailableError
from tapeseal.transport.foreign_text import plain
from tapeseal.vault.connection import said_by
from tapeseal.vault.session import VaultSession


class NotThereError(CertificateError):
    """What a path names is not there, or the path is none of this server's."""


class Engine:
    """An engine that issues certificates.

    Args:
        session: its token needs the policies that the engine's page in docs/ names.
        mount: the path of the engine.
    """

    def __init__(self, session: VaultSession, mount: str) -> None:
        self.session = session
        self.mount = mount.strip("/")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.mount} of {self.session!r}>"

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        secret: Sequence[str] = (),
        idempotent: bool | None = None,
    ) -> dict[str, Any]:
        """Make a request below the mount; see VaultSession.request().

        Raises:
            CertificateError: the engine refuses it.
        """
        return request(self.session, method, f"{self.mount}/{path}", body, secret, idempotent)

    def keys(self, path: str) -> list[str]:
        """Return what a LIST of a path names; nothing where there is none."""
        try:
            return [str(each) for each in member(self.request("LIST", path), "keys", list)]
        except NotThereError:
            return []


def request(
    session: VaultSession,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    secret: Sequence[str] = (),
    idempotent: bool | None = None,
) -> dict[str, Any]:
    """Make a request of a session, with what the server refuses as a CertificateError."""
    try:
        return session.request(method, path, body, secret=secret, idempotent=idempotent)
    except InvalidPath as error:
        refused: CertificateError = NotThereError(
            f"Vault has nothing at {path}" + (f": {said_by(error)}" if error.errors else "")
        )
    except VaultError as error:
        refused = CertificateError(f"Vault refuses {method} {path}: {said_by(error)}")
    raise refused


def member(answer: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return a member of the data of an answer.

    Raises:
        ServiceUnavailableError: it has none of that kind.
    """
    data = answer.get("data")
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind):
        raise ServiceUnavailableError(f"an answer of Vault holds no {name}")
    return value


def warnings_in(answer: Mapping[str, Any]) -> list[str]:
    """Return what the server says beside its answer."""
    found = answer.get("warnings")
    return [plain(str(each)) for each in found] if isinstance(found, list) else []
