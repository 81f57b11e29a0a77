"""Envelope encryption for high-volume order and market-data records and trade archives.

A tape is an append-only, encrypted file of fixed-size records or of bytes, sealed at the speed of the cipher and read
in slices. A keyring wraps the key of each tape. Start with `keyring`, `open`, `encrypt` and `decrypt`.

What one release wrote, every later one reads.
"""

from tapeseal._core import openssl_version
from tapeseal.archive import decrypt_file, encrypt_file
from tapeseal.blob import decrypt, encrypt
from tapeseal.body import Anchor
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import (
    ContextMismatchError,
    DamagedError,
    ForkError,
    InvalidTag,
    KeyUnavailableError,
    LimitError,
    NotATapeError,
    PassphraseError,
    TapeChangedError,
    TapeLockedError,
    TapesealError,
    UnlockedMemoryWarning,
    UnsealedError,
)
from tapeseal.header import Problem
from tapeseal.keyrings import keyring
from tapeseal.keyrings.any_of import AnyOf
from tapeseal.keyrings.local import LocalKeyring
from tapeseal.layout import Recipient
from tapeseal.reader import ByteReader, TapeReader
from tapeseal.recorder import Recorder
from tapeseal.rows import RowDecryptor, RowEncryptor
from tapeseal.tape import open, rewrap
from tapeseal.verification import Inspection, Verification, inspect, verify
from tapeseal.writer import ByteWriter, TapeWriter

__all__ = [
    "Anchor",
    "AnyOf",
    "ByteReader",
    "ByteWriter",
    "ContextMismatchError",
    "DamagedError",
    "DataKey",
    "ForkError",
    "Inspection",
    "InvalidTag",
    "KeyUnavailableError",
    "Keyring",
    "LimitError",
    "LocalKeyring",
    "NotATapeError",
    "PassphraseError",
    "Problem",
    "Recipient",
    "Recorder",
    "RowDecryptor",
    "RowEncryptor",
    "TapeChangedError",
    "TapeLockedError",
    "TapeReader",
    "TapeWriter",
    "TapesealError",
    "UnlockedMemoryWarning",
    "UnsealedError",
    "Verification",
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
