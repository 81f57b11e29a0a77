"""A certificate on disk that is renewed in time: private key, certificate and chain as one set, and who must reload.

    DIRECTORY/certificate.json              what to ask for: CertificateOrder
    DIRECTORY/current/privkey.pem           the private key, for its owner alone; made here, and never sent
    DIRECTORY/current/fullchain.pem         the certificate and those above it, but for the root
    DIRECTORY/current/cert.pem, chain.pem   the same apart
    DIRECTORY/previous, pending, reloaded   see file_set, and below

How `current` is replaced, and why as it is, stands in `file_set`. The steps of a renewal, each durable before the next:

1. a new private key in the pending set
2. Vault signs it
3. certificate and chain, checked together with the key as it is on disk, in the pending set
4. the pending set becomes the current one, by one rename
5. the reload hook; `reloaded` then leads to the set that its program has

A run that was killed is gone on with by the next. After 1 and 2 the certificate is looked up by its public key, so
that none is left that nobody knows; after 3 there is nothing to ask; after 4 only the hook is run.
"""

import datetime
import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tapeseal import audit
from tapeseal._core import SecretBuffer
from tapeseal.errors import AccessDeniedError, CertificateError
from tapeseal.files import StrPath, new_file, sync_directory, write_all
from tapeseal.secret import Secret
from tapeseal.vault.file_set import FileSet
from tapeseal.vault.pki import VALIDITY_DAYS, Pki, check_chain, make_request, serial_text
from tapeseal.vault.private_keys import TLS_KEY_TYPES, load_tls_key, make_tls_key
from tapeseal.vault.session import VaultSession

RENEW_BEFORE_DAYS: Final = 30

PRIVATE_KEY: Final = "privkey.pem"
CERTIFICATE: Final = "cert.pem"
CHAIN: Final = "chain.pem"
FULL_CHAIN: Final = "fullchain.pem"
ORDER: Final = "certificate.json"

_RELOADED = "reloaded"
_MOST_KEY_BYTES = 1 << 16
_SIGNALS = ("HUP", "USR1", "USR2", "TERM", "WINCH")


@dataclass(frozen=True)
class Reload:
    """How the program that uses a certificate is told of a new one: a command, or a signal.

    Raises:
        ValueError: it is not one of the two.
    """

    command: Sequence[str] = ()
    """A program and its arguments; it runs without a shell, and without the tokens in this process's environment."""
    pid_file: str = ""
    """A file with the process id to which the signal goes."""
    signal: str = "HUP"
    seconds: float = 60
    """How long the command may take."""

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.pid_file):
            raise ValueError("a reload hook is either a command or a pid file")
        if isinstance(self.command, str):
            raise ValueError("the command of a reload hook is a list: a program and its arguments")
        if self.signal not in _SIGNALS:
            raise ValueError(f"the signal of a reload hook is one of {', '.join(_SIGNALS)}")

    def run(self) -> None:
        """Tell it.

        Raises:
            CertificateError: the command failed, or there is no such process.
        """
        problem = self._run_command() if self.command else self._send_signal()
        if problem:
            raise CertificateError(f"the new certificate is in place, but {problem}")

    def _run_command(self) -> str:
        secret = ("VAULT_TOKEN", "BAO_TOKEN")
        environment = {name: value for name, value in os.environ.items() if name not in secret}
        try:
            process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return f"{self.command[0]} did not start: {error.strerror}"
        try:
            code = process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"{self.command[0]} was not done within {self.seconds:g} s"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return f"{self.command[0]} failed with {code}" if code else ""

    def _send_signal(self) -> str:
        try:
            with open(self.pid_file, "rb") as file:
                # Who can write it says which process gets a signal from this user.
                _check_owner(file.fileno(), self.pid_file)
                text = file.read(32).strip()
            pid = int(text)
            if pid < 2:
                raise ValueError
            os.kill(pid, getattr(signal, f"SIG{self.signal}"))
        except ValueError:
            return f"{self.pid_file} holds no process id"
        except OSError as error:
            return f"no signal could be sent by {self.pid_file}: {error.strerror}"
        return ""


@dataclass(frozen=True)
class CertificateOrder:
    """What a certificate is to be, now and at each renewal.

    Raises:
        ValueError: a value cannot be used.
    """

    role: str
    """A role of the engine."""
    common_name: str
    alt_names: Sequence[str] = ()
    """Further DNS names."""
    ip_addresses: Sequence[str] = ()
    mount: str = "pki"
    """The path of the engine."""
    days: float = VALIDITY_DAYS
    """How long it is valid."""
    renew_before_days: float = RENEW_BEFORE_DAYS
    """It is renewed so long before it ends, or when a third of its time is left, if that is later."""
    key_type: str = "ec-256"
    """One of TLS_KEY_TYPES."""
    ca_file: str = ""
    """Roots in PEM that its chain must lead to; without, the end of the chain that Vault hands out counts."""
    reload: Reload | None = None

    def __post_init__(self) -> None:
        if self.key_type not in TLS_KEY_TYPES:
            raise ValueError(f"{self.key_type!r} is no type of key: {', '.join(TLS_KEY_TYPES)}")
        if not self.role or not self.common_name or self.days <= 0:
            raise ValueError("an order names a role, a common name and a positive number of days")

    @property
    def names(self) -> list[str]:
        """All its names, the common name first."""
        return [self.common_name, *self.alt_names, *self.ip_addresses]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read what to_json() has written.

        Raises:
            ValueError: it is no order.
        """
        try:
            values = json.loads(text)
            if values.get("reload") is not None:
                values["reload"] = Reload(**values["reload"])
            for each in fields(cls):
                expected: tuple[type, ...] = type(each.default), int
                if each.name in ("role", "common_name", "reload"):
                    continue
                if isinstance(each.default, tuple):
                    values[each.name] = tuple(values.get(each.name, ()))
                elif not isinstance(values.get(each.name, each.default), expected):
                    raise TypeError(f"{each.name} is a {type(each.default).__name__}")
            return cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no order of a certificate: {error}") from None

    def to_json(self) -> str:
        """Return it as a JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class Renewal:
    """What became of a renewal."""

    path: str
    state: str
    """"renewed"; "reloaded": only the hook was still to be run; "current": there was nothing to do."""
    serial: str
    not_after: datetime.datetime
    previous_serial: str | None = None
    """Of the certificate that was replaced, which is valid until it ends or is revoked."""
    warnings: list[str] = field(default_factory=list)


class CertificateDirectory:
    """A directory with one certificate.

    Args:
        path: of the directory.

    Raises:
        FileNotFoundError: there is no order in it; create() makes one.
        ValueError: what is there is no order.
        PermissionError: others could change the order, and so the hook that is run.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(os.path.abspath(path))
        self.files = FileSet(self.path)
        name = self.path / ORDER
        with open(name, "rb") as file:
            _check_owner(file.fileno(), str(name))
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _check_owner(fd, str(self.path))
            finally:
                os.close(fd)
            try:
                self.order = CertificateOrder.from_json(file.read())
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    @classmethod
    def create(cls, path: StrPath, order: CertificateOrder) -> Self:
        """Write an order to a directory, made where it is not there. An order before counts from the next renewal on."""
        directory = Path(path)
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with new_file(directory / ORDER, 0o644, replace=True) as fd:
            write_all(fd, order.to_json().encode())
            os.fsync(fd)
        sync_directory(directory / ORDER)
        return cls(directory)

    def certificate(self) -> x509.Certificate | None:
        """Return the certificate in use, None before the first."""
        current = self.files.current()
        return None if current is None else _read_certificate(current)

    def due(self, at: datetime.datetime | None = None) -> bool:
        """Whether it is time to renew it: it ends soon, it is not what the order says, or there is none.

        A set in use that cannot be read counts as none.
        """
        try:
            certificate = self.certificate()
            return certificate is None or not self._serves(certificate, at)
        except (OSError, ValueError):
            return True

    def _serves(self, certificate: x509.Certificate, at: datetime.datetime | None = None) -> bool:
        """Whether a certificate is what the order says, and not yet to be renewed."""
        now = at or datetime.datetime.now(datetime.UTC)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        before = min(datetime.timedelta(days=self.order.renew_before_days), (end - start) / 3)
        try:
            check_chain(certificate, [certificate], names=self.order.names, at=now)
        except CertificateError:
            return False
        return now < end - before

    def renew(self, session: VaultSession, *, force: bool = False) -> Renewal:
        """Renew the certificate if it is due, or make the first; go on with what a run before has begun.

        While it runs it has a lock on the directory, the hook included.

        Args:
            session: its token needs what docs/pki.md calls the policy of an issuer.
            force: renew it though it is not due.

        Raises:
            CertificateError: Vault refused; what it signed does not hold, and the old set stays; or the hook failed,
                and is run again by the next call.
            AccessDeniedError, ServiceUnavailableError: as VaultSession.request(); the old set stays.
            PermissionError: a file of the old set has an owner whom this process cannot give a file.
            BlockingIOError: another run is at it.
        """
        with self.files.lock():
            self.files.prune()
            before = self.certificate() if self.files.current() else None
            if self.files.pending() is None and not force and not self.due():
                return self._after(before, before, [], "current")
            with audit.operation("pki.renew", str(self.path)) as entry:
                warnings: list[str] = []
                certificate = self._make_set(Pki(session, self.order.mount), warnings)
                self.files.publish()
                entry.version = serial_text(certificate.serial_number)
            self.files.prune()
            return self._after(before, certificate, warnings, "renewed")
