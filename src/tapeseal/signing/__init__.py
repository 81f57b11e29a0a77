"""Signers, whose keys never leave AWS KMS or a Vault, and statements over tapes that they sign (docs/signing.md)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tapeseal.errors import ServiceUnavailableError, SignatureError, WrappingKeyError
from tapeseal.keyrings import parse_uri
from tapeseal.signature import Signer, check_signature
from tapeseal.signing.statement import (
    Finding,
    SignedTape,
    Statement,
    StatementVerification,
    open_statement,
    sign_statement,
    verify_statement,
)

if TYPE_CHECKING:
    from tapeseal.kms import Kms
    from tapeseal.vault.transit import Transit, TransitKey

__all__ = [
    "Finding",
    "KmsSigner",
    "SignedTape",
    "Statement",
    "StatementVerification",
    "TransitSigner",
    "open_statement",
    "sign_statement",
    "signer",
    "verify_statement",
]


def signer(uri: str) -> Signer:
    """Make the signer that a URI names.

    `aws-kms:KEY?region=REGION` is an asymmetric key of AWS KMS, with further settings as for KmsSigner.
    `vault-transit:MOUNT/NAME` is one of a Transit engine, see TransitSigner; address and login are the environment's,
    or given as `?address=`, `namespace=`, `ca_file=` and `token_file=`.

    Args:
        uri: percent signs and separators as in the URI of a keyring.

    Raises:
        ValueError: it is no such URI, or the provider has no such parameter.
        KeyUnavailableError: the key cannot be had.
    """
    provider, address, parameters = parse_uri(uri, ("aws-kms", "vault-transit"), "signer")
    if provider == "aws-kms":
        return _kms_signer(address, parameters)
    return _transit_signer(address, parameters)


def _kms_signer(key: str, parameters: Mapping[str, str]) -> Signer:
    from tapeseal.kms import PARAMETERS, Kms, options, parse_arn

    settings = options(parameters, PARAMETERS, "signer")
    arn = parse_arn(key)
    if arn is not None:
        settings.setdefault("region", arn.region)
    return KmsSigner(Kms(**settings), key)


def _transit_signer(key: str, parameters: Mapping[str, str]) -> Signer:
    from tapeseal.keyrings.vault_transit import session_of
    from tapeseal.vault.transit import Transit, split_key

    mount, name = split_key(key)
    return TransitSigner(Transit(session_of(parameters, "signer"), mount), name)


class KmsSigner:
    """Signs with an asymmetric key of AWS KMS: ECDSA on P-256 and P-384, RSA-PSS.

    An alias is resolved when the signer is made, and means that key from then on. Threads may share a signer.

    Args:
        kms: the connection.
        key: id, ARN, alias or ARN of an alias.

    Raises:
        WrappingKeyError: the key makes no such signatures; and all that Kms.public_key() raises.
    """

    def __init__(self, kms: "Kms", key: str) -> None:
        self._kms = kms
        found = kms.public_key(key)
        if found.algorithm is None:
            raise WrappingKeyError(
                f"aws-kms:{key}: it takes a key of usage SIGN_VERIFY, ECC_NIST_P256, ECC_NIST_P384 or RSA, "
                f"and this one is {found.specification} for {found.usage}"
            )
        self.key = f"aws-kms:{found.key}"
        self.algorithm = found.algorithm
        self._arn = found.key
        self._public_key = found.pem

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message of any length; it was checked here.

        Raises:
            ServiceUnavailableError: KMS gave no answer, or no signature of this message by this key; and all that
                Kms.sign() raises.
        """
        signature = self._kms.sign(self._arn, message, self.algorithm)
        _check_own(self.key, self._public_key, self.algorithm, message, signature)
        return signature

    def public_key(self) -> bytes:
        """Return the public half, a SubjectPublicKeyInfo in PEM."""
        return self._public_key

    def __repr__(self) -> str:
        return f"<KmsSigner {self.key}>"

    def __reduce__(self) -> str:
        raise TypeError("a KmsSigner is neither pickled nor copied")


class TransitSigner:
    """Signs with a key of a Transit engine: ECDSA on P-256 and P-384, Ed25519, RSA-PSS.

    It signs by the version that was the latest when it was made, as long as the server lets it; where that one is
    retired it goes on with the latest, and public_key() is that one's. Threads may share a signer.

    Args:
        transit: the engine.
        name: of the key.

    Raises:
        WrappingKeyError: the key makes no such signatures; and all that Transit.read_key() raises.
    """

    def __init__(self, transit: "Transit", name: str) -> None:
        self._transit = transit
        self._name = name
        self.key = f"vault-transit:{transit.mount}/{name}"
        self.algorithm, version, public_key = self._latest()
        self._current = version, public_key

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message; it was checked here.

        Args:
            message: of any length, for an Ed25519 key up to 16 MiB.

        Raises:
            ServiceUnavailableError: no server gave an answer, or one without a signature of this message by this key;
                and all that Transit.sign() raises.
        """
        version, public_key = self._current
        try:
            made = self._transit.sign(self._name, message, self.algorithm, version=version)
        except WrappingKeyError:
            _, latest, public_key = self._latest()
            if latest == version:
                raise
            version = latest
            made = self._transit.sign(self._name, message, self.algorithm, version=version)
            self._current = latest, public_key
        if made.version != version:
            raise ServiceUnavailableError(
                f"{self.key}: asked for a signature by version {version} the server gave one by version {made.version}"
            )
        _check_own(self.key, public_key, self.algorithm, message, made.signature)
        return made.signature

    def public_key(self) -> bytes:
        """Return the public half, a SubjectPublicKeyInfo in PEM."""
        return self._current[1]

    def _latest(self) -> tuple[str, int, bytes]:
        found: TransitKey = self._transit.read_key(self._name)
        public_key = found.public_keys.get(found.latest_version)
        if found.algorithm is None or public_key is None:
            raise WrappingKeyError(
                f"{self.key}: it takes a key of type ecdsa-p256, ecdsa-p384, ed25519 or rsa, not derived, "
                f"and this one is {found.type}{', derived' if found.derived else ''}"
            )
        return found.algorithm, found.latest_version, public_key

    def __repr__(self) -> str:
        return f"<TransitSigner {self.key}>"

    def __reduce__(self) -> str:
        raise TypeError("a TransitSigner is neither pickled nor copied")


def _check_own(
    key: str, public_key: bytes, algorithm: str, message: bytes, signature: bytes
) -> None:
    try:
        check_signature(public_key, algorithm, message, signature)
    except SignatureError:
        pass
    else:
        return
    raise ServiceUnavailableError(
        f"{key}: what the service gave is no signature of this message by its key; try again, and ask "
        "whoever runs it or what stands before it"
    )
