"""Envelope encryption for high-volume order and market-data records and trade archives.

A tape is an append-only, encrypted file of fixed-size records or of bytes, sealed at the speed of the cipher and read
in slices. A keyring wraps the key of each tape. Start with `keyring`, `open`, `encrypt` and `decrypt`.

What one release wrote, every later one reads.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tapeseal._core import openssl_version
from tapeseal.archive import decrypt_file, encrypt_file
from tapeseal.blob import decrypt, encrypt
from tapeseal.body import Anchor
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import (
    AccessDeniedError,
    CiphertextError,
    ContextMismatchError,
    DamagedError,
    ForkError,
    InvalidTag,
    IrreversibleError,
    KeyUnavailableError,
    LimitError,
    NotATapeError,
    PassphraseError,
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
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring
    from tapeseal.keyrings.public_key import PublicKeyKeyring
    from tapeseal.keyrings.vault_transit import VaultTransitKeyring
    from tapeseal.vault.session import VaultSession

# Loaded on first use, for what they need is an extra or takes long to load; the same names stand
# above for type checkers.
_LAZY = {
    "AwsKmsKeyring": "tapeseal.keyrings.aws_kms",
    "PublicKeyKeyring": "tapeseal.keyrings.public_key",
    "VaultSession": "tapeseal.vault.session",
    "VaultTransitKeyring": "tapeseal.keyrings.vault_transit",
}

__all__ = [
    "AccessDeniedError",
    "Anchor",
    "AnyOf",
    "AwsKmsKeyring",
    "ByteReader",
    "ByteWriter",
    "CiphertextError",
    "ContextMismatchError",
    "DamagedError",
    "DataKey",
    "DataKeyReserve",
    "ForkError",
    "Inspection",
    "InvalidTag",
    "IrreversibleError",
    "KeyUnavailableError",
    "Keyring",
    "LimitError",
    "LocalKeyring",
    "NotATapeError",
    "PassphraseError",
    "Problem",
    "PublicKeyKeyring",
    "Quorum",
    "Recipient",
    "Recorder",
    "ReserveExhaustedError",
    "RotationError",
    "RowDecryptor",
    "RowEncryptor",
    "Secret",
    "ServiceUnavailableError",
    "SignatureError",
    "TapeChangedError",
    "TapeLockedError",
    "TapeReader",
    "TapeWriter",
    "TapesealError",
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
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
