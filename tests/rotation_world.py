"""A small world to rotate in: a service on disk whose accounts are files, a KV path, a target and a check over them.

It stands for a service that takes two credentials at once. Each account is a file named after the rotation that made it
and holding the password; what is there, is alive. `log` has a line for each account ever made. Files in the service's
directory make trouble: `down`, it is out of service; `trusted`, it accepts the account named there alone; `undead`, it
accepts what was ended; `revoke-fails`; `old-lost`, the old password is not to be had.
"""

import contextlib
import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from hvac.exceptions import InvalidPath

from tapeseal.errors import RotationError, ServiceUnavailableError, VerificationError
from tapeseal.files import new_file, write_all
from tapeseal.rotation import checks, kinds, targets
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.plan import PlannedSecret
from tapeseal.rotation.settings import Setting
from tapeseal.secret import Secret

CANARY = "canary-of-the-rotation"
"""All passwords start with it."""


def register() -> None:
    """Have plans know the kind, the target and the check "accounts"."""
    kinds.KINDS["accounts"] = "rotation_world:Accounts"
    targets.TARGETS["accounts"] = "rotation_world:AccountsTarget"
    checks.CHECKS["accounts"] = "rotation_world:AccountsCheck"


class Service:
    """The service's directory."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "alive").mkdir(exist_ok=True)

    def check(self) -> None:
        """Fail while the service is down."""
        if (self.directory / "down").exists():
            raise ServiceUnavailableError("the service is down")

    def alive(self) -> list[str]:
        """Return the accounts that are alive."""
        return sorted(path.name for path in (self.directory / "alive").iterdir())

    def password(self, account: str) -> str:
        """Return the password of an account."""
        return (self.directory / "alive" / account).read_text()

    def deployed(self) -> str:
        """Return the password that is deployed."""
        path = self.directory / "deployed"
        return path.read_text() if path.exists() else ""

    def trouble(self, name: str, text: str = "") -> None:
        """Make trouble, see the module."""
        (self.directory / name).write_text(text)

    def mend(self, name: str) -> None:
        """End a trouble."""
        (self.directory / name).unlink()

    def made(self) -> list[str]:
        """Return the rotations of all accounts that were ever made."""
        path = self.directory / "log"
        return path.read_text().split() if path.exists() else []


class Accounts:
    """Rotates an account, whose password is in KV at `path`."""

    settings: ClassVar[Mapping[str, Setting]] = {"service": Setting(Path), "path": Setting(str)}

    def live(self, secret: PlannedSecret, services: Services) -> Live | None:
        _service(secret).check()
        with contextlib.suppress(InvalidPath):
            answer = services.vault.request("GET", _kv(secret), secret=("data.data.password",))
            answer["data"]["data"]["password"].close()
            metadata = answer["data"]["metadata"]
            return Live(str(metadata["version"]), datetime.fromisoformat(metadata["created_time"]))
        return None

    def generate(self, rotation: Rotation) -> Credential:
        service = _service(rotation.secret)
        service.check()
        for account in service.alive():
            if account.startswith(rotation.id):
                (service.directory / "alive" / account).unlink()
        account = f"{rotation.id}-{secrets.token_hex(2)}"
        with open(service.directory / "log", "a") as log:
            log.write(rotation.id + "\n")
        password = bytearray(f"{CANARY}-{secrets.token_hex(8)}".encode())
        (service.directory / "alive" / account).write_bytes(password)
        rotation.facts["account"] = account
        return {"password": Secret.take(password), "account": _secret(account)}

    def store(self, rotation: Rotation, credential: Credential) -> None:
        _service(rotation.secret).check()
        vault = rotation.services.vault
        before = int(rotation.facts["old_version"] or 0)
        latest = _read(rotation)
        if latest is None or latest["account"].expose() != credential["account"].expose():
            body = {"data": dict(credential), "options": {"cas": before}}
            vault.request("POST", _kv(rotation.secret), body, idempotent=True)
        rotation.facts["version"] = str(before + 1)

    def old(self, rotation: Rotation) -> Credential:
        if (_service(rotation.secret).directory / "old-lost").exists():
            return {}
        return _read(rotation, rotation.facts["old_version"]) or {}

    def discard(self, rotation: Rotation) -> None:
        service = _service(rotation.secret)
        service.check()
        latest = _read(rotation)
        if latest is not None and latest["account"].expose().startswith(rotation.id):
            # Consumers find the old one as the newest version.
            old = self.old(rotation)
            if old:
                body = {"data": dict(old)}
                rotation.services.vault.request("POST", _kv(rotation.secret), body, idempotent=True)
            else:
                path = _kv(rotation.secret).replace("/data/", "/metadata/")
                rotation.services.vault.request("DELETE", path)
        for account in service.alive():
            if account.startswith(rotation.id):
                (service.directory / "alive" / account).unlink()

    def revoke(self, rotation: Rotation) -> None:
        service = _service(rotation.secret)
        service.check()
        if (service.directory / "revoke-fails").exists():
            raise RotationError("no account is ended today")
        for account in service.alive():
            if account != rotation.facts["account"]:
                (service.directory / "alive" / account).unlink()

    def calls(self, secret: PlannedSecret) -> list[str]:
        return ["make an account", f"POST {_kv(secret)}", "end the old account"]


class AccountsTarget:
    """A file with the password."""

    settings: ClassVar[Mapping[str, Setting]] = {}

    def __init__(self, settings: Mapping[str, Any], secret: PlannedSecret) -> None:
        self._service = _service(secret)

    def deploy(self, credential: Credential, rotation: Rotation) -> None:
        path = self._service.directory / "deployed"
        with (
            new_file(path, 0o600, replace=True) as fd,
            credential["password"].buffer as buffer,
            memoryview(buffer) as view,
        ):
            write_all(fd, view)

    def calls(self) -> list[str]:
        return [f"write {self._service.directory / 'deployed'}"]


class AccountsCheck:
    """A login."""

    settings: ClassVar[Mapping[str, Setting]] = {}

    def __init__(self, settings: Mapping[str, Any], secret: PlannedSecret) -> None:
        self._service = _service(secret)
        self._name = secret.name

    def accepts(self, credential: Credential) -> None:
        self._service.check()
        account, password = credential["account"].expose(), credential["password"].expose()
        trusted = self._service.directory / "trusted"
        if trusted.exists() and account != trusted.read_text():
            raise VerificationError(f"login of {account} with {password} refused")
        if self.refuses(credential):
            raise VerificationError(f"there is no account {account} with {password}")

    def refuses(self, credential: Credential) -> bool:
        self._service.check()
        account, password = credential["account"].expose(), credential["password"].expose()
        if (self._service.directory / "undead").exists():
            return False
        return account not in self._service.alive() or self._service.password(account) != password

    def calls(self) -> list[str]:
        return [f"log in to {self._service.directory}"]


def _service(secret: PlannedSecret) -> Service:
    return Service(secret.options["service"])


def _kv(secret: PlannedSecret) -> str:
    mount, _, path = secret.options["path"].partition("/")
    return f"{mount}/data/{path}"


def _secret(text: str) -> Secret:
    return Secret.take(bytearray(text.encode()))


def _read(rotation: Rotation, version: object = None) -> dict[str, Secret] | None:
    if version == "0":
        return None
    path = _kv(rotation.secret) + (f"?version={version}" if version else "")
    try:
        answer = rotation.services.vault.request("GET", path, secret=("data.data.*",))
    except InvalidPath:
        return None
    found: dict[str, Secret] = answer["data"]["data"]
    return found


PLAN = """
[secret.{name}]
kind = "accounts"
tier = "application"
owner = "execution desk"
settle = "0s"
monitor = "0s"
deadline = "5s"
{more}
[secret.{name}.options]
service = "{service}"
path = "{path}"
[[secret.{name}.deploy]]
type = "accounts"
[[secret.{name}.verify]]
type = "accounts"
"""


def write_plan(path: Path, *names: str, more: str = "", common: str = "", tail: str = "") -> Path:
    """Write a plan of accounts, each with a service of its own beside it and a path of its own in KV.

    Args:
        path: of the plan.
        names: of the secrets.
        more: settings of each of them.
        common: settings of the table rotation.
        tail: further tables.
    """
    prefix = secrets.token_hex(4)
    text = f'[rotation]\nstaging = "secret/{prefix}-staging"\nconsumers = "secret/{prefix}-consumers"\n{common}\n'
    for name in names:
        text += PLAN.format(
            name=name, service=path.parent / name, path=f"secret/{prefix}/{name}", more=more
        )
    path.write_text(text + tail)
    return path
