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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tapeseal import audit
from tapeseal._core import SecretBuffer
from tapeseal.errors import AccessDeniedError, CertificateError, ServiceUnavailableError
from tapeseal.files import StrPath, new_file, sync_directory, write_all
from tapeseal.secret import Secret
from tapeseal.vault.file_set import FileSet
from tapeseal.vault.pki import (
    MOST_DAYS,
    VALIDITY_DAYS,
    IssuedCertificate,
    Pki,
    check_chain,
    is_issued_by,
    make_request,
    missing_names,
    serial_text,
)
from tapeseal.vault.private_keys import (
    TLS_KEY_TYPES,
    TlsKey,
    key_type_of,
    load_tls_key,
    make_tls_key,
)
from tapeseal.vault.reload import Reload, check_owner
from tapeseal.vault.session import VaultSession

RENEW_BEFORE_DAYS: Final = 30

PRIVATE_KEY: Final = "privkey.pem"
CERTIFICATE: Final = "cert.pem"
CHAIN: Final = "chain.pem"
FULL_CHAIN: Final = "fullchain.pem"
ORDER: Final = "certificate.json"

_RELOADED = "reloaded"
_MOST_KEY_BYTES = 1 << 16
_JSON_TYPES: Final[dict[str, Any]] = {
    "alt_names": list,
    "ip_addresses": list,
    "days": (int, float),
    "renew_before_days": (int, float),
    "reload": (dict, type(None)),
}


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
        if not self.role or not self.common_name or not 0 < self.days < MOST_DAYS:
            raise ValueError("an order names a role, a common name and a positive number of days")
        if not 0 <= self.renew_before_days < MOST_DAYS:
            raise ValueError("a certificate is renewed 0 days or more before it ends")

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
            for name, value in values.items():
                if not isinstance(value, _JSON_TYPES.get(name, str)):
                    raise TypeError(f"{name} is of another type")
                if isinstance(value, list):
                    values[name] = tuple(value)
            if values.get("reload") is not None:
                hook = values["reload"]
                if not isinstance(hook.get("command", []), list):
                    raise TypeError("the command of a hook is a list")
                hook["command"] = tuple(hook.get("command", ()))
                values["reload"] = Reload(**hook)
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
            check_owner(file.fileno(), str(name))
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                check_owner(fd, str(self.path))
            finally:
                os.close(fd)
            try:
                self.order = CertificateOrder.from_json(file.read())
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    @classmethod
    def create(cls, path: StrPath, order: CertificateOrder) -> Self:
        """Write an order to a directory, which is made where it is not there.

        In place of an order that is there it counts from the next renewal on.
        """
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
        """Whether it is time to renew it: it ends soon, it is not what the order says, or there is none."""
        certificate = self._in_use()
        return certificate is None or not self._serves(certificate, at)

    def _in_use(self) -> x509.Certificate | None:
        """Return the certificate in use; one that cannot be read is none."""
        try:
            return self.certificate()
        except (OSError, ValueError):
            return None

    def _serves(self, certificate: x509.Certificate, at: datetime.datetime | None = None) -> bool:
        """Whether a certificate is what the order says, and not yet to be renewed."""
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        before = min(datetime.timedelta(days=self.order.renew_before_days), (end - start) / 3)
        return (
            not missing_names(certificate, self.order.names)
            and key_type_of(certificate.public_key()) == self.order.key_type
            and (at or datetime.datetime.now(datetime.UTC)) < end - before
        )

    def renew(self, session: VaultSession, *, force: bool = False) -> Renewal:
        """Renew the certificate if it is due, or make the first; go on with what a run before has begun.

        While it runs it has a lock on the directory, the hook included.

        Args:
            session: its token needs what docs/pki.md calls the policy of an issuer.
            force: renew it though it is not due.

        Raises:
            CertificateError: Vault refused, or what it signed does not hold: the old set stays. Or the hook failed:
                the new set stays, and the next call runs the hook again.
            AccessDeniedError, ServiceUnavailableError: as VaultSession.request(); the old set stays.
            PermissionError: a file of the old set has an owner whom this process cannot give a file.
            BlockingIOError: another run is at it.
        """
        with self.files.lock():
            before = self._in_use()
            serves = before is not None and self._serves(before)
            if before is not None and serves and not force and self.files.pending() is None:
                return self._finish(before, before, [], "current")
            with audit.operation("pki.renew", str(self.path)) as entry:
                warnings: list[str] = []
                certificate = self._complete_set(Pki(session, self.order.mount), warnings)
                self.files.publish()
                entry.version = serial_text(certificate.serial_number)
            return self._finish(before, certificate, warnings, "renewed")

    def roll_back(self) -> None:
        """Make the previous set the current one again, and run the hook.

        Raises:
            FileNotFoundError: there is none.
            CertificateError: the hook failed.
            BlockingIOError: another run is at it.
        """
        with self.files.lock():
            self.files.roll_back()
            self._reload()

    def _complete_set(self, pki: Pki, warnings: list[str]) -> x509.Certificate:
        """Complete the pending set, and return its certificate."""
        trusted: list[x509.Certificate] = []
        if self.order.ca_file:
            trusted = x509.load_pem_x509_certificates(Path(self.order.ca_file).read_bytes())
        pending = self.files.begin()
        key_path, certificate_path = pending / PRIVATE_KEY, pending / CERTIFICATE
        begun = key_path.exists()
        if not begun:
            pem, key = make_tls_key(self.order.key_type)
            with pem, pem.buffer as buffer:
                self.files.write(PRIVATE_KEY, buffer, private=True)
        else:
            key = _read_key(key_path)
        if not certificate_path.exists():
            request = make_request(
                key,
                self.order.common_name,
                alt_names=self.order.alt_names,
                ip_addresses=self.order.ip_addresses,
            )
            issued = self._find(pki, request, warnings) if begun else None
            if issued is None:
                issued = pki.sign(self.order.role, request, days=self.order.days)
                warnings += issued.warnings
            whole = [issued.certificate, *issued.chain]
            self.files.write(CHAIN, _pem(whole[1:]), private=False)
            sent = [each for each in whole if each.issuer != each.subject]
            self.files.write(FULL_CHAIN, _pem(sent), private=False)
            # The last, for it says that the others are there.
            self.files.write(CERTIFICATE, _pem(whole[:1]), private=False)
        certificate = _read_certificate(pending)
        if begun and not self._serves(certificate):
            self._give_up(pki, certificate, warnings)
            return self._complete_set(pki, warnings)
        # As they are on the disk, which is what its users will read.
        chain = x509.load_pem_x509_certificates((pending / CHAIN).read_bytes())
        key = _read_key(key_path)
        try:
            check_chain(certificate, chain, key=key, names=self.order.names, trusted=trusted)
        except CertificateError:
            # Another one would hold no better, unless the engine has got another issuer since.
            if not begun or is_issued_by(certificate, pki.chain()[0]):
                raise
            self._give_up(pki, certificate, warnings)
            return self._complete_set(pki, warnings)
        return certificate

    def _find(
        self, pki: Pki, request: x509.CertificateSigningRequest, warnings: list[str]
    ) -> IssuedCertificate | None:
        """Return the certificate that a run which was killed may have had signed."""
        try:
            return pki.find(request)
        except AccessDeniedError:
            warnings.append(
                f"a run before this one may have had a certificate for {self.order.common_name} signed, which this "
                "token may not look for; it is of no use to anybody, for its key is here"
            )
            return None

    def _give_up(self, pki: Pki, certificate: x509.Certificate, warnings: list[str]) -> None:
        """Revoke a certificate that was made for an order or by an issuer as it was before, and begin anew."""
        try:
            pki.revoke(certificate)
        except (AccessDeniedError, CertificateError, ServiceUnavailableError) as error:
            # A server whose issuer is gone fails. It would stand in the way for ever; its key goes, so it is no use.
            serial = serial_text(certificate.serial_number)
            warnings.append(f"{serial}, which was never in use, could not be revoked: {error}")
        self.files.discard()

    def _finish(
        self,
        before: x509.Certificate | None,
        certificate: x509.Certificate,
        warnings: list[str],
        state: str,
    ) -> Renewal:
        self.files.prune()
        if self._reload() and state == "current":
            state = "reloaded"
        return Renewal(
            path=str(self.path),
            state=state,
            serial=serial_text(certificate.serial_number),
            not_after=certificate.not_valid_after_utc,
            previous_serial=None
            if before is None or state != "renewed"
            else serial_text(before.serial_number),
            warnings=warnings,
        )

    def _reload(self) -> bool:
        """Run the hook if its program has not been told of the current set; return whether it was run."""
        current = self.files.current()
        if self.order.reload is None or current is None:
            return False
        if self.files.target(_RELOADED) == current:
            return False
        self.order.reload.run()
        self.files.link(_RELOADED, current)
        return True


def find_certificates(path: StrPath, on_error: Callable[[OSError], Any]) -> list[str]:
    """Return the directories at or below a path that hold the order of a certificate.

    Args:
        path: where to look.
        on_error: is called for what cannot be looked into; the search goes on.
    """
    return sorted(folder for folder, _, names in os.walk(path, onerror=on_error) if ORDER in names)


def _read_certificate(directory: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / CERTIFICATE).read_bytes())


def _read_key(path: Path) -> TlsKey:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if not 0 < size <= _MOST_KEY_BYTES:
            raise ValueError(f"{path} is no private key")
        with Secret(SecretBuffer.read(fd, size)) as pem:
            return load_tls_key(pem)
    finally:
        os.close(fd)


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)
