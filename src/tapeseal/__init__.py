"""Envelope encryption for high-volume order and market-data records and trade archives.

A tape is an append-only, encrypted file of fixed-size records or of bytes, sealed at the speed of the cipher and read
in slices. A keyring wraps the key of each tape. Start with `keyring`, `open`, `encrypt` and `decrypt`.

What one release wrote, every later one reads.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tapeseal._core import openssl_version
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

if TYPE_CHECKING:
    from tapeseal.archive import decrypt_file, encrypt_file
    from tapeseal.audit_log.log import AuditLog
    from tapeseal.blob import decrypt, encrypt
    from tapeseal.body import Anchor
    from tapeseal.datakey import DataKey, Keyring
    from tapeseal.header import Problem
    from tapeseal.keyrings import keyring
    from tapeseal.keyrings.any_of import AnyOf
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring
    from tapeseal.keyrings.local import LocalKeyring
    from tapeseal.keyrings.public_key import PublicKeyKeyring
    from tapeseal.keyrings.quorum import Quorum
    from tapeseal.keyrings.vault_transit import VaultTransitKeyring
    from tapeseal.kms import Kms
    from tapeseal.layout import Recipient
    from tapeseal.metrics import ReserveCollector
    from tapeseal.reader import ByteReader, TapeReader
    from tapeseal.recorder import Recorder
    from tapeseal.reserve import DataKeyReserve
    from tapeseal.rows import RowDecryptor, RowEncryptor
    from tapeseal.secret import Secret
    from tapeseal.signing import sign_statement, signer, verify_statement
    from tapeseal.tape import open, rewrap
    from tapeseal.vault.certificate_directory import CertificateDirectory
    from tapeseal.vault.lease import DatabaseCredentials
    from tapeseal.vault.pki import Pki
    from tapeseal.vault.session import VaultSession
    from tapeseal.vault.ssh import Ssh
    from tapeseal.vault.transit import Transit
    from tapeseal.verification import Inspection, Verification, inspect, verify
    from tapeseal.writer import ByteWriter, TapeWriter

# Loaded on first use: a command of the command line needs few of them, and what some need is an extra or takes long to
# load. The same names stand above for type checkers.
_LAZY = {
    "Anchor": "tapeseal.body",
    "AnyOf": "tapeseal.keyrings.any_of",
    "AuditLog": "tapeseal.audit_log.log",
    "AwsKmsKeyring": "tapeseal.keyrings.aws_kms",
    "ByteReader": "tapeseal.reader",
    "ByteWriter": "tapeseal.writer",
    "CertificateDirectory": "tapeseal.vault.certificate_directory",
    "DataKey": "tapeseal.datakey",
    "DataKeyReserve": "tapeseal.reserve",
    "DatabaseCredentials": "tapeseal.vault.lease",
    "Inspection": "tapeseal.verification",
    "Keyring": "tapeseal.datakey",
    "Kms": "tapeseal.kms",
    "LocalKeyring": "tapeseal.keyrings.local",
    "Pki": "tapeseal.vault.pki",
    "Problem": "tapeseal.header",
    "PublicKeyKeyring": "tapeseal.keyrings.public_key",
    "Quorum": "tapeseal.keyrings.quorum",
    "Recipient": "tapeseal.layout",
    "Recorder": "tapeseal.recorder",
    "ReserveCollector": "tapeseal.metrics",
    "RowDecryptor": "tapeseal.rows",
    "RowEncryptor": "tapeseal.rows",
    "Secret": "tapeseal.secret",  # tapeseal: no secret
    "Ssh": "tapeseal.vault.ssh",
    "TapeReader": "tapeseal.reader",
    "TapeWriter": "tapeseal.writer",
    "Transit": "tapeseal.vault.transit",
    "VaultSession": "tapeseal.vault.session",
    "VaultTransitKeyring": "tapeseal.keyrings.vault_transit",
    "Verification": "tapeseal.verification",
    "decrypt": "tapeseal.blob",
    "decrypt_file": "tapeseal.archive",
    "encrypt": "tapeseal.blob",
    "encrypt_file": "tapeseal.archive",
    "inspect": "tapeseal.verification",
    "keyring": "tapeseal.keyrings",
    "open": "tapeseal.tape",
    "rewrap": "tapeseal.tape",
    "sign_statement": "tapeseal.signing",
    "signer": "tapeseal.signing",
    "verify": "tapeseal.verification",
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
