"""Signatures by a key that never leaves its service, and how anybody checks them."""

import hashlib
from typing import Any, Final, Protocol

from tapeseal.errors import SignatureError

ALGORITHMS: Final = (
    "ecdsa-p256-sha256",
    "ecdsa-p384-sha384",
    "rsa-pss-sha256",
    "ed25519",
)
"""ECDSA signatures are in DER; those of RSA have a salt as long as the hash."""


class Signer(Protocol):
    """What signs with a key of a KMS or a Vault."""

    key: str
    """The key's name, as the URI of a keyring names one: "vault-transit:transit/day"."""

    algorithm: str
    """One of ALGORITHMS."""

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message of any length, which is hashed here."""

    def public_key(self) -> bytes:
        """Return the public half, a SubjectPublicKeyInfo in PEM."""


def algorithm_of(public_key: bytes) -> str:
    """Return the one of ALGORITHMS that a key signs by.

    Args:
        public_key: SubjectPublicKeyInfo or certificate in PEM.

    Raises:
        ValueError: it is no such key, or one of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    match _load(public_key):
        case ec.EllipticCurvePublicKey() as key if key.curve.name == "secp256r1":
            return "ecdsa-p256-sha256"
        case ec.EllipticCurvePublicKey() as key if key.curve.name == "secp384r1":
            return "ecdsa-p384-sha384"
        case rsa.RSAPublicKey():
            return "rsa-pss-sha256"
        case ed25519.Ed25519PublicKey():
            return "ed25519"
    raise ValueError(
        f"a public key of this kind makes none of the signatures {', '.join(ALGORITHMS)}"
    )


def fingerprint(public_key: bytes) -> str:
    """Return the SHA-256, in hex, of a key's SubjectPublicKeyInfo in DER; arguments and errors as algorithm_of()."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key: Any = _load(public_key)
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def _load(public_key: bytes) -> object:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        if b"CERTIFICATE" in public_key:
            return x509.load_pem_x509_certificate(public_key).public_key()
        return serialization.load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise ValueError("the public key is neither a key nor a certificate in PEM")


def check_signature(public_key: bytes, algorithm: str, message: bytes, signature: bytes) -> None:
    """Check a signature without any service.

    Args:
        public_key: SubjectPublicKeyInfo or certificate in PEM.
        algorithm: one of ALGORITHMS.

    Raises:
        SignatureError: the signature is not of this message by this key.
        ValueError: the key or the algorithm cannot be used, or the key is of another kind than the algorithm.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    key = _load(public_key)
    try:
        match key, algorithm:
            case ec.EllipticCurvePublicKey(), "ecdsa-p256-sha256" if key.curve.name == "secp256r1":
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            case ec.EllipticCurvePublicKey(), "ecdsa-p384-sha384" if key.curve.name == "secp384r1":
                key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
            case rsa.RSAPublicKey(), "rsa-pss-sha256":
                sha256 = hashes.SHA256()
                pss = padding.PSS(padding.MGF1(sha256), salt_length=sha256.digest_size)
                key.verify(signature, message, pss, sha256)
            case ed25519.Ed25519PublicKey(), "ed25519":
                key.verify(signature, message)
            case _:
                raise ValueError(
                    f"a key of this kind makes no signatures of the kind {algorithm!r}"
                )
    except InvalidSignature:
        raise SignatureError("the signature is not one of this message by this key") from None
