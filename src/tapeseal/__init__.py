"""Envelope encryption for high-volume order and market-data records and trade archives.

A tape is an append-only, encrypted file of fixed-size records or of bytes, sealed at the speed of the cipher and read
in slices. A keyring wraps the key of each tape. Start with `keyring`, `open`, `encrypt` and `decrypt`.

What one release wrote, every later one reads.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tapeseal._core import openssl_version
from tapeseal.archive import decrypt_file, encrypt_file
from tapeseal.blob import decrypt, encrypt
from tapeseal.body import Anchor
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import (
    AccessDeniedError,
    AuditError,
    CertificateError,
    CiphertextError,
    ContextMismatchError,
    CredentialError,
    DamagedError,
    ForkError,
    InvalidTag,
    IrreversibleError,
    KeyUnavailableError,
    LimitError,
    NotATapeError,
    OutcomeUnknownError,
    PassphraseError,
    PlanError,
    ReserveExhaustedError,
    RotationError,
    ServiceUnavailableError,
    SignatureError,
    TapeChangedError,
    TapeLockedError,
    TapesealError,
    UnlockedMemoryWarning,
    UnsealedError,
    VerificationError,
    WrappedKeyError,
    WrappingKeyError,
)
from tapeseal.header import Problem
from tapeseal.keyrings import keyring
from tapeseal.keyrings.any_of import AnyOf
from tapeseal.keyrings.local import LocalKeyring
from tapeseal.keyrings.quorum import Quorum
from tapeseal.layout import Recipient
from tapeseal.reader import ByteReader, TapeReader
from tapeseal.recorder import Recorder
from tapeseal.reserve import DataKeyReserve
from tapeseal.rows import RowDecryptor, RowEncryptor
from tapeseal.secret import Secret
from tapeseal.tape import open, rewrap
from tapeseal.verification import Inspection, Verification, inspect, verify
from tapeseal.writer import ByteWriter, TapeWriter

if TYPE_CHECKING:
    from tapeseal.audit_log.log import AuditLog
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring
    from tapeseal.keyrings.public_key import PublicKeyKeyring
    from tapeseal.keyrings.vault_transit import VaultTransitKeyring
    from tapeseal.kms import Kms
    from tapeseal.metrics import ReserveCollector
    from tapeseal.signing import sign_statement, signer, verify_statement
    from tapeseal.vault.certificate_directory import CertificateDirectory
    from tapeseal.vault.lease import DatabaseCredentials
    from tapeseal.vault.pki import Pki
    from tapeseal.vault.session import VaultSession
    from tapeseal.vault.ssh import Ssh
    from tapeseal.vault.transit import Transit

# Loaded on first use, for what they need is an extra or takes long to load; the same names stand
# above for type checkers.
_LAZY = {
    "AuditLog": "tapeseal.audit_log.log",
    "AwsKmsKeyring": "tapeseal.keyrings.aws_kms",
    "CertificateDirectory": "tapeseal.vault.certificate_directory",
    "DatabaseCredentials": "tapeseal.vault.lease",
    "Pki": "tapeseal.vault.pki",
    "PublicKeyKeyring": "tapeseal.keyrings.public_key",
    "ReserveCollector": "tapeseal.metrics",
    "Ssh": "tapeseal.vault.ssh",
    "Kms": "tapeseal.kms",
    "Transit": "tapeseal.vault.transit",
    "VaultSession": "tapeseal.vault.session",
    "VaultTransitKeyring": "tapeseal.keyrings.vault_transit",
    "sign_statement": "tapeseal.signing",
    "signer": "tapeseal.signing",
    "verify_statement": "tapeseal.signing",
}

__all__ = [
    "AccessDeniedError",
    "Anchor",
    "AnyOf",
    "AuditError",
    "AuditLog",
    "AwsKmsKeyring",
    "ByteReader",
    "ByteWriter",
    "CertificateDirectory",
    "CertificateError",
    "CiphertextError",
    "ContextMismatchError",
    "CredentialError",
    "DamagedError",
    "DataKey",
    "DataKeyReserve",
    "DatabaseCredentials",
    "ForkError",
    "Inspection",
    "InvalidTag",
    "IrreversibleError",
    "KeyUnavailableError",
    "Keyring",
    "Kms",
    "LimitError",
    "LocalKeyring",
    "NotATapeError",
    "OutcomeUnknownError",
    "PassphraseError",
    "Pki",
    "PlanError",
    "Problem",
    "PublicKeyKeyring",
    "Quorum",
    "Recipient",
    "Recorder",
    "ReserveCollector",
    "ReserveExhaustedError",
    "RotationError",
    "RowDecryptor",
    "RowEncryptor",
    "Secret",
    "ServiceUnavailableError",
    "SignatureError",
    "Ssh",
    "TapeChangedError",
    "TapeLockedError",
    "TapeReader",
    "TapeWriter",
    "TapesealError",
    "Transit",
    "UnlockedMemoryWarning",
    "UnsealedError",
    "VaultSession",
    "VaultTransitKeyring",
    "Verification",
    "VerificationError",
    "WrappedKeyError",
    "WrappingKeyError",
    "decrypt",
    "decrypt_file",
    "encrypt",
    "encrypt_file",
    "inspect",
    "keyring",
    "open",
    "openssl_version",
    "rewrap",
    "sign_statement",
    "signer",
    "verify",
    "verify_statement",
]


if os.environ.get("TAPESEAL_AUDIT"):
    # Here and not in `audit`, which stands below the keyrings that open the log.
    import_module("tapeseal.audit_log.environment").start()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
