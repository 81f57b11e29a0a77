"""Certificates of a PKI engine: issued, signed, listed, revoked, and checked before anybody relies on them."""

import contextlib
import datetime
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from tapeseal import audit
from tapeseal.errors import (
    AccessDeniedError,
    CertificateError,
    ServiceUnavailableError,
    SignatureError,
)
from tapeseal.files import StrPath, new_file, sync_directory, write_all
from tapeseal.secret import Secret
from tapeseal.vault.engine import Engine, member, warnings_in
from tapeseal.vault.private_keys import TlsKey, load_tls_key
from tapeseal.vault.session import VaultSession

VALIDITY_DAYS: Final = 365
MOST_DAYS: Final = 1e5

_BACKDATED = datetime.timedelta(minutes=5)
_HOST = re.compile(r"(?:\*\.)?(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}")


@dataclass(frozen=True)
class IssuedCertificate:
    """A certificate as the engine hands it out, checked."""

    certificate: x509.Certificate
    chain: list[x509.Certificate]
    """From its issuer up, as far as the engine knows it."""
    private_key: Secret | None = None
    """PKCS #8 in PEM, where the engine made it; the caller closes it."""
    warnings: list[str] = field(default_factory=list)
    """What is not as it was asked for, such as a validity that a role cut."""

    @property
    def serial(self) -> str:
        """Its serial number, as Vault writes one."""
        return serial_text(self.certificate.serial_number)


@dataclass(frozen=True)
class ListedCertificate:
    """A certificate in an engine's store."""

    serial: str
    common_name: str
    names: list[str]
    """Its DNS names."""
    not_before: datetime.datetime
    not_after: datetime.datetime
    revoked: bool


@dataclass(frozen=True)
class Revocation:
    """A certificate that no longer counts."""

    serial: str
    time: datetime.datetime
    in_crl: bool
    """Whether the CRL that the engine hands out now names it."""


@dataclass(frozen=True)
class RevocationList:
    """A CRL whose signature was checked."""

    pem: bytes
    number: int
    this_update: datetime.datetime
    next_update: datetime.datetime
    revoked: Mapping[str, datetime.datetime]
    """Serial numbers, and when each was revoked."""


class Pki(Engine):
    """A PKI engine. Each method raises what VaultSession.request() raises, and CertificateError for a refusal.

    Args:
        session: its token needs the policies that docs/pki.md names.
        mount: the path of the engine.
    """

    def __init__(self, session: VaultSession, mount: str = "pki") -> None:
        super().__init__(session, mount)

    def issue(
        self,
        role: str,
        common_name: str,
        *,
        alt_names: Sequence[str] = (),
        ip_addresses: Sequence[str] = (),
        days: float = VALIDITY_DAYS,
        key_type: str | None = None,
    ) -> IssuedCertificate:
        """Have the engine make a private key and a certificate. With sign() the key never leaves this machine.

        Where the answer is lost the key is lost with it, and the certificate is valid until someone finds it by
        certificates() and revokes it.

        Args:
            role: a role of the engine; it says which names and which validity are allowed.
            common_name: the first name; a DNS name, or what else the role allows.
            alt_names: further DNS names.
            ip_addresses: its IP addresses.
            days: how long it is to be valid.
            key_type: one of TLS_KEY_TYPES, for a role that leaves it open.

        Raises:
            CertificateError: the role does not allow it or is not there, or what came is not what was asked for.
            ServiceUnavailableError: also where it is unknown whether a certificate was made.
        """
        names = [common_name, *alt_names, *ip_addresses]
        with audit.operation("pki.issue", f"{self.mount}/{role}", common_name=common_name) as entry:
            body = _asked(common_name, alt_names, ip_addresses, days)
            body["private_key_format"] = "pkcs8"  # tapeseal: no secret
            if key_type is not None:
                body["key_type"], _, body["key_bits"] = key_type.partition("-")
            answer = self.request("POST", f"issue/{role}", body, secret=("data.private_key",))
            key: Secret = member(answer, "private_key", Secret)
            with contextlib.ExitStack() as stack:
                stack.callback(key.close)
                issued = _issued(answer, days, key)
                _check(issued, _loaded(key), names)
                stack.pop_all()
            entry.version = issued.serial
            return issued

    def sign(
        self, role: str, request: x509.CertificateSigningRequest, *, days: float = VALIDITY_DAYS
    ) -> IssuedCertificate:
        """Have a certificate signed for a key of ours.

        Args:
            role: as for issue().
            request: as make_request() makes one; it holds the names.
            days: how long the certificate is to be valid.

        Raises:
            CertificateError, ServiceUnavailableError: as for issue().
        """
        common_name, alt_names, ip_addresses = _names_of(request)
        with audit.operation("pki.sign", f"{self.mount}/{role}", common_name=common_name) as entry:
            body = _asked(common_name, alt_names, ip_addresses, days)
            body["csr"] = request.public_bytes(Encoding.PEM).decode()
            issued = _issued(self.request("POST", f"sign/{role}", body), days, None)
            names = [common_name, *alt_names, *ip_addresses]
            _check(issued, request.public_key(), names)
            entry.version = issued.serial
            return issued

    def revoke(self, certificate: str | x509.Certificate) -> Revocation:
        """Revoke a certificate, and have the CRL name it at once; doing it again is no error.

        Args:
            certificate: it, or its serial number as Vault writes one. A role with `no_store` needs the former.

        Raises:
            CertificateError: the engine does not know it.
        """
        if isinstance(certificate, x509.Certificate):
            serial = serial_text(certificate.serial_number)
            body = {"certificate": certificate.public_bytes(Encoding.PEM).decode()}
        else:
            serial = certificate.lower().replace("-", ":")
            body = {"serial_number": serial}
        with audit.operation("pki.revoke", self.mount, serial=serial) as entry:
            entry.version = serial
            answer = self.request("POST", "revoke", body, idempotent=True)
            time = datetime.datetime.fromtimestamp(
                member(answer, "revocation_time", int), datetime.UTC
            )
            try:
                # An engine that builds its CRL at intervals would name it only hours later.
                self.request("GET", "crl/rotate")
                issuer = self.request("GET", f"cert/{serial}")["data"].get("issuer_id")
                revoked = self.crl(issuer or "default").revoked
            except (AccessDeniedError, CertificateError):
                return Revocation(serial, time, in_crl=False)
            return Revocation(serial, time, in_crl=serial in revoked)

    def certificate(self, serial: str) -> x509.Certificate:
        """Return a certificate from the engine's store.

        Raises:
            CertificateError: there is none with that serial number.
        """
        return _parsed(member(self.request("GET", f"cert/{serial}"), "certificate", str))

    def certificates(
        self, *, common_name: str | None = None, since: datetime.datetime | None = None
    ) -> list[ListedCertificate]:
        """List the certificates in the engine's store, the newest first.

        This finds a certificate whose answer was lost: its common name is known, and when it was asked for.

        Args:
            common_name: list only those that have it.
            since: list only those that were made from then on, or up to five minutes before, for roles backdate theirs.
        """
        revoked = set(self.names("certs/revoked"))
        found = []
        for serial, about in self._details():
            listed = ListedCertificate(
                serial,
                about["common_name"],
                about.get("dns_names") or [],
                datetime.datetime.fromisoformat(about["not_before"]),
                datetime.datetime.fromisoformat(about["not_after"]),
                serial in revoked,
            )
            if common_name in (None, listed.common_name) and (
                since is None or listed.not_before >= since - _BACKDATED
            ):
                found.append(listed)
        return sorted(found, key=lambda each: each.not_before, reverse=True)

    def _details(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        try:
            answer = self.request("LIST", "certs/detailed")
        except CertificateError:
            pass  # There is none at all, or the server is HashiCorp's, which has no such list.
        else:
            yield from member(answer, "key_info", dict).items()
            return
        for serial in self.names("certs"):
            certificate = self.certificate(serial)
            common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            yield (
                serial,
                {
                    "common_name": common_names[0].value if common_names else "",
                    "dns_names": _alternatives(certificate)[0],
                    "not_before": certificate.not_valid_before_utc.isoformat(),
                    "not_after": certificate.not_valid_after_utc.isoformat(),
                },
            )

    def find(self, request: x509.CertificateSigningRequest) -> IssuedCertificate | None:
        """Return the newest certificate for a request whose answer was lost; None where there is none in force.

        It is known by its public key, whose private half is here: so it can be used, and need not be revoked.

        Args:
            request: what sign() was given.
        """
        public_key = public_bytes(request.public_key())
        now = datetime.datetime.now(datetime.UTC)
        for listed in self.certificates(common_name=_names_of(request)[0]):
            if listed.revoked or listed.not_after <= now:
                continue
            certificate = self.certificate(listed.serial)
            if public_bytes(certificate.public_key()) == public_key:
                return IssuedCertificate(certificate, self.chain_of(certificate))
        return None

    def chain_of(self, certificate: x509.Certificate) -> list[x509.Certificate]:
        """Return the certificate of the issuer here that signed a certificate, and those above it.

        Raises:
            CertificateError: none of them did.
        """
        for issuer in self.names("issuers"):
            chain = self.chain(issuer)
            if is_issued_by(certificate, chain[0]):
                return chain
        raise CertificateError(
            f"none of the issuers at {self.mount} has signed {serial_text(certificate.serial_number)}"
        )

    def crl(self, issuer: str = "default") -> RevocationList:
        """Fetch an issuer's CRL and check it. That needs no policy.

        Args:
            issuer: its name or id.

        Raises:
            SignatureError: the issuer did not sign it.
            CertificateError: it is out of date, or no CRL.
        """
        text = member(self.request("GET", f"issuer/{issuer}/crl"), "crl", str)
        return check_crl(text.encode(), self.chain(issuer)[0])

    def chain(self, issuer: str = "default") -> list[x509.Certificate]:
        """Return an issuer's certificate and those above it. That needs no policy."""
        answer = self.request("GET", f"issuer/{issuer}/json")
        return [_parsed(each) for each in member(answer, "ca_chain", list)]


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether an issuer has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def make_request(
    key: TlsKey,
    common_name: str,
    *,
    alt_names: Sequence[str] = (),
    ip_addresses: Sequence[str] = (),
) -> x509.CertificateSigningRequest:
    """Make a request for a certificate (CSR); the names are as for Pki.issue().

    Raises:
        ValueError: a name cannot stand in a certificate.
    """
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys([common_name, *alt_names]):
        if _HOST.fullmatch(name):
            names.append(x509.DNSName(name))
        elif name != common_name:
            raise ValueError(f"{name!r} is no DNS name")
    names += [x509.IPAddress(ipaddress.ip_address(each)) for each in ip_addresses]
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


def check_chain(
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
    *,
    key: Any = None,
    names: Sequence[str] = (),
    trusted: Sequence[x509.Certificate] = (),
    at: datetime.datetime | None = None,
) -> None:
    """Check a certificate of a server or a client as one who meets it would, except for what it may be used for.

    Args:
        certificate: it.
        chain: those above it, from its issuer up.
        key: a private or public key that must be its.
        names: that must be in it, as missing_names() takes them.
        trusted: what the chain must lead to; without, its own end: then it proves to be whole, not to be anyone's.
        at: when it must be valid; None: now.

    Raises:
        CertificateError: it does not hold.
    """
    if key is not None:
        public_key = key.public_key() if hasattr(key, "public_key") else key
        if public_bytes(public_key) != public_bytes(certificate.public_key()):
            raise CertificateError("the certificate is not for this private key")
    missing = missing_names(certificate, names)
    if missing:
        raise CertificateError(f"the certificate is not for {', '.join(missing)}")
    anchors = [*trusted] or [*chain[-1:]]
    if not anchors:
        raise CertificateError("the certificate came without a chain")
    builder = verification.PolicyBuilder().store(verification.Store(anchors))
    builder = builder.time(at or datetime.datetime.now(datetime.UTC))
    builder = builder.extension_policies(
        ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
        ee_policy=verification.ExtensionPolicy.permit_all(),
    )
    try:
        builder.build_client_verifier().verify(certificate, list(chain))
    except (verification.VerificationError, ValueError) as error:
        problem = str(error).partition("\n")[0]
    else:
        return
    raise CertificateError(f"the chain of the certificate does not hold: {problem}")


def missing_names(certificate: x509.Certificate, names: Sequence[str]) -> list[str]:
    """Return which of some names a certificate is not for.

    DNS names and IP addresses count where clients look for them, among its alternative names; others may be its common
    name.
    """
    hosts, addresses = _alternatives(certificate)
    common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    others = {str(each.value) for each in common_names if not _HOST.fullmatch(str(each.value))}
    have = {*(each.lower() for each in hosts), *addresses, *others}
    return [name for name in names if not {name, name.lower(), _address(name)} & have]


def check_crl(
    pem: bytes, issuer: x509.Certificate, at: datetime.datetime | None = None
) -> RevocationList:
    """Check a CRL in PEM.

    Args:
        pem: it.
        issuer: whose it must be.
        at: when it must be in date; None: now.

    Raises:
        SignatureError: the issuer did not sign it.
        CertificateError: it is out of date, or no CRL.
    """
    try:
        crl = x509.load_pem_x509_crl(pem)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, x509.ExtensionNotFound):
        raise CertificateError("this is no CRL in PEM, or has no number") from None
    public_key: Any = issuer.public_key()
    if crl.issuer != issuer.subject or not crl.is_signature_valid(public_key):
        raise SignatureError(f"the CRL is not signed by {issuer.subject.rfc4514_string()}")
    next_update = crl.next_update_utc
    if next_update is None or next_update <= (at or datetime.datetime.now(datetime.UTC)):
        raise CertificateError(f"the CRL is out of date: the next was due {next_update}")
    revoked = {serial_text(each.serial_number): each.revocation_date_utc for each in crl}
    return RevocationList(pem, number, crl.last_update_utc, next_update, revoked)


def write_crl(path: StrPath, crl: RevocationList) -> None:
    """Write a CRL to a file in PEM, in place of an older one of the same issuer.

    Raises:
        CertificateError: the one that is there is newer: somebody hands out an old one, in which less is revoked.
    """
    before = 0
    with contextlib.suppress(OSError, ValueError, x509.ExtensionNotFound):
        have = x509.load_pem_x509_crl(Path(path).read_bytes())
        if have.issuer == x509.load_pem_x509_crl(crl.pem).issuer:
            before = have.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    if before > crl.number:
        raise CertificateError(
            f"the CRL number {crl.number} is older than the one in {path}, number {before}"
        )
    with new_file(path, 0o644, replace=True) as fd:
        write_all(fd, crl.pem)
        os.fsync(fd)
    sync_directory(path)


def serial_text(serial: int) -> str:
    """Return a serial number as Vault writes one: pairs of hexadecimal digits with colons between them."""
    return serial.to_bytes((serial.bit_length() + 7) // 8 or 1).hex(":")


def public_bytes(key: Any) -> bytes:
    """Return a public key in DER, to compare it."""
    found: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found


def _asked(
    common_name: str, alt_names: Sequence[str], ip_addresses: Sequence[str], days: float
) -> dict[str, Any]:
    for name in (*alt_names, *ip_addresses):
        if "," in name:
            raise ValueError(f"{name!r} is not one name")
    if not 0 < days < MOST_DAYS:
        raise ValueError(f"a certificate is valid for a positive number of days, not {days}")
    return {
        "common_name": common_name,
        "alt_names": ",".join(alt_names),
        "ip_sans": ",".join(ip_addresses),
        "ttl": f"{max(int(days * 86400), 1)}s",
    }


def _issued(answer: Mapping[str, Any], days: float, key: Secret | None) -> IssuedCertificate:
    certificate = _parsed(member(answer, "certificate", str))
    above = answer["data"].get("ca_chain") or [member(answer, "issuing_ca", str)]
    # Names are sent beside the request too, for a role that does not take them from there; one that does says so.
    found = [each for each in warnings_in(answer) if "use_csr_" not in each]
    valid = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if valid.total_seconds() < int(days * 86400):
        found.append(f"the certificate is valid for {valid}, not for {days:g} days")
    return IssuedCertificate(certificate, [_parsed(each) for each in above], key, found)


def _check(issued: IssuedCertificate, key: Any, names: Sequence[str]) -> None:
    try:
        check_chain(issued.certificate, issued.chain, key=key, names=names)
    except CertificateError as error:
        problem = str(error)
    else:
        return
    raise CertificateError(f"{problem}; it is valid all the same until {issued.serial} is revoked")


def _parsed(pem: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, AttributeError):
        raise ServiceUnavailableError("an answer of Vault holds no certificate") from None


def _loaded(key: Secret) -> TlsKey:
    try:
        return load_tls_key(key)
    except ValueError as error:
        raise CertificateError(f"the private key from Vault is no use: {error}") from None


def _names_of(request: x509.CertificateSigningRequest) -> tuple[str, list[str], list[str]]:
    """Return the common name of a request, its other DNS names and its IP addresses."""
    found = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not found:
        raise ValueError("the request has no common name")
    common_name = str(found[0].value)
    hosts, addresses = _alternatives(request)
    return common_name, [each for each in hosts if each != common_name], addresses


def _alternatives(
    holder: x509.Certificate | x509.CertificateSigningRequest,
) -> tuple[list[str], list[str]]:
    """Return the DNS names and the IP addresses of a certificate or a request."""
    try:
        names = holder.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    addresses = names.get_values_for_type(x509.IPAddress)
    return names.get_values_for_type(x509.DNSName), [str(each) for each in addresses]


def _address(name: str) -> str:
    """Return an IP address in its shortest form, other names as they are."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name
