"""The kind "tls-certificate": a private key made here, and a certificate that a PKI engine of Vault signs."""

import hashlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tapeseal.errors import RotationError
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.stored import (
    SETTINGS,
    Stored,
    destroy_calls,
    live_calls,
    note_calls,
    old_calls,
    read_text,
    write_calls,
)
from tapeseal.rotation.settings import Setting
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from cryptography import x509

    from tapeseal.rotation.plan import PlannedSecret
    from tapeseal.vault.pki import Pki

logger = logging.getLogger("tapeseal.rotation")

_PARTS: Final = ("certificate", "ca_chain", "private_key", "serial_number")


class TlsCertificate:
    """Keeps key and certificate in KV, where servers and clients read them, and revokes the old certificate.

    The parts are `private_key` (PKCS #8), `certificate` (with those between it and the root behind it, as servers show
    it), `ca_chain` (all above it), each in PEM, and `serial_number`, as Vault writes one. The private key has never
    been in the engine. Before that is asked, the secret's metadata get the hash of the public key, by which a
    certificate whose answer was lost is found and revoked.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        **SETTINGS,
        "pki_mount": Setting(str, default="pki", names=True),
        "role": Setting(str),
        "common_name": Setting(str),
        "alt_names": Setting(list, default=[]),
        "ip_addresses": Setting(list, default=[]),
        "days": Setting(int, default=365, least=1),
        "key_type": Setting(str, default="ec-256"),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the current version in KV, and when its certificate ends."""
        from cryptography import x509

        stored = Stored(secret, services)
        live = stored.live()
        if live is None:
            return None
        with stored.read(live.version) as found:
            certificate = read_text(found, "certificate")
        try:
            expires = x509.load_pem_x509_certificate(
                (certificate or "").encode()
            ).not_valid_after_utc
        except ValueError:
            raise RotationError(f"{stored.name} holds no certificate in PEM") from None
        return Live(live.version, live.made, expires)

    def generate(self, rotation: Rotation) -> Credential:
        """Have a new key's certificate signed; one that an interrupted try left behind is revoked first."""
        from tapeseal.vault.pki import make_request
        from tapeseal.vault.private_keys import make_tls_key

        options = rotation.secret.options
        self._revoke_own(rotation)
        # What discard() revokes by it is not the one that is made now.
        rotation.facts.pop("serial_number", None)
        private_key, key = make_tls_key(options["key_type"])
        try:
            request = make_request(
                key,
                options["common_name"],
                alt_names=options["alt_names"],
                ip_addresses=options["ip_addresses"],
            )
            Stored(rotation.secret, rotation.services).note(
                {"rotation_step": rotation.id, "public_key": _fingerprint(request.public_key())}
            )
            issued = _pki(rotation).sign(options["role"], request, days=options["days"])
        except BaseException:
            private_key.close()
            raise
        rotation.facts["serial_number"] = issued.serial
        between = [each for each in issued.chain if each.subject != each.issuer]
        texts = {
            "certificate": _pem([issued.certificate, *between]),
            "ca_chain": _pem(issued.chain),
            "serial_number": issued.serial.encode(),
        }
        credential = {name: Secret.take(bytearray(text)) for name, text in texts.items()}
        return {**credential, "private_key": private_key}

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Write the next version in KV."""
        Stored(rotation.secret, rotation.services).write(rotation, credential)

    def old(self, rotation: Rotation) -> Credential:
        """Read the version before."""
        return Stored(rotation.secret, rotation.services).old(rotation, _PARTS)

    def discard(self, rotation: Rotation) -> None:
        """Put back the version before, then revoke the new certificate."""
        Stored(rotation.secret, rotation.services).restore(rotation)
        serial = rotation.facts.get("serial_number")
        if serial is None:
            self._revoke_own(rotation)
        else:
            _revoke(rotation, str(serial))

    def revoke(self, rotation: Rotation) -> None:
        """Revoke the old certificate, and destroy its version in KV."""
        stored = Stored(rotation.secret, rotation.services)
        before = rotation.facts.get("old_version")
        if before is None:
            return
        with stored.read(before) as found:
            serial = _serial_number(found)
            if found is not None and serial is None:
                raise RotationError(
                    f"version {before} of {stored.name} holds no certificate in PEM"
                )
        if serial is not None:
            _revoke(rotation, serial)
        stored.destroy_old(rotation, "private_key")

    def _revoke_own(self, rotation: Rotation) -> None:
        """Revoke what an interrupted try of this rotation had signed, for its private key is nobody's."""
        note = Stored(rotation.secret, rotation.services).noted()
        if note.get("rotation_step") != rotation.id:
            return
        pki = _pki(rotation)
        for listed in pki.certificates(common_name=rotation.secret.options["common_name"]):
            if listed.revoked:
                continue
            public_key = pki.certificate(listed.serial).public_key()
            if _fingerprint(public_key) == note["public_key"]:
                _revoke(rotation, listed.serial)

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls of a rotation."""
        from tapeseal.vault.private_keys import TLS_KEY_TYPES

        options = secret.options
        if options["key_type"] not in TLS_KEY_TYPES:
            raise ValueError(f"key_type is one of {', '.join(TLS_KEY_TYPES)}")
        mount = options["pki_mount"]
        return [
            *live_calls(options),
            *old_calls(options),
            *live_calls(options),
            *note_calls(options),
            f"POST {mount}/sign/{options['role']}",
            *write_calls(options),
            *old_calls(options),
            *old_calls(options),
            f"POST {mount}/revoke",
            f"GET {mount}/crl/rotate",
            f"GET {mount}/cert/…",
            f"GET {mount}/issuer/…/crl",
            f"GET {mount}/issuer/…/json",
            *destroy_calls(options),
        ]


def _pki(rotation: Rotation) -> "Pki":
    from tapeseal.vault.pki import Pki

    return Pki(rotation.services.vault, rotation.secret.options["pki_mount"])


def _revoke(rotation: Rotation, serial: str) -> None:
    """Revoke a certificate, and say so if those who look into the CRL do not see it yet."""
    if not _pki(rotation).revoke(serial).in_crl:
        logger.warning(
            "%s: certificate %s is revoked, and the CRL does not name it yet: a policy has to let this token "
            "read %s/crl/rotate",
            rotation.secret.name,
            serial,
            rotation.secret.options["pki_mount"],
        )


def _fingerprint(public_key: Any) -> str:
    from tapeseal.vault.pki import public_bytes

    return hashlib.sha256(public_bytes(public_key)).hexdigest()


def _pem(certificates: "list[x509.Certificate]") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _serial_number(members: Mapping[str, Secret | None] | None) -> str | None:
    """Return the serial number of a version's certificate; None: there is none in it."""
    from cryptography import x509

    from tapeseal.vault.pki import serial_text

    text = read_text(members, "certificate")
    try:
        return serial_text(x509.load_pem_x509_certificate((text or "").encode()).serial_number)
    except ValueError:
        return None
