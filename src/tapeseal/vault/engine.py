"""What the clients of secrets engines share: requests below a mount, and refusals as errors of ours."""

from collections.abc import Mapping, Sequence
from typing import Any

from hvac.exceptions import InvalidPath, VaultError

from tapeseal.errors import CertificateError, ServiceUnavailableError
from tapeseal.transport.foreign_text import plain
from tapeseal.vault.connection import said_by
from tapeseal.vault.session import VaultSession

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


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

    def names(self, path: str) -> list[str]:
        """Return what a LIST of a path names; nothing where there is none."""
        try:
            return [str(each) for each in member(self.request("LIST", path), "keys", list)]
        except NotThereError:
            return []

    def mounted(
        self, kind: str, config: Mapping[str, Any], done: list[str]
    ) -> Mapping[str, Any] | None:
        """Mount the engine where it is not, and say so in `done`; return how it was mounted before.

        Raises:
            CertificateError: at its path there is an engine of another type.
        """
        mounts = request(self.session, "GET", "sys/mounts")
        mount: Mapping[str, Any] | None = mounts.get("data", {}).get(f"{self.mount}/")
        if mount is None:
            body = {"type": kind, "config": config}
            request(self.session, "POST", f"sys/mounts/{self.mount}", body)
            done.append(f"mounted an engine at {self.mount}")
        elif mount["type"] != kind:
            raise CertificateError(
                f"at {self.mount} there is an engine of the type {mount['type']}"
            )
        return mount

    def write(self, path: str, wanted: Mapping[str, Any], done: list[str]) -> None:
        """Write parameters, if they are not as they should be, and say so in `done`."""
        try:
            have = self.request("GET", path).get("data", {})
        except NotThereError:
            have = {}
        if not all(_same(have.get(name), value) for name, value in wanted.items()):
            self.request("POST", path, wanted, idempotent=True)
            done.append(f"wrote {self.mount}/{path}")


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


def _same(have: Any, wanted: Any) -> bool:
    """Whether a parameter that was read is one to be written: the server has times in seconds, and splits lists."""
    if isinstance(have, list):
        wanted = wanted.split(",") if isinstance(wanted, str) else list(wanted)
    elif isinstance(have, int) and isinstance(wanted, str) and wanted[:-1].isdecimal():
        wanted = int(wanted[:-1]) * _UNITS.get(wanted[-1], 0)
    return bool(have == wanted)
