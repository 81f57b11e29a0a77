"""Envelope encryption for high-volume order and market-data records and trade archives.

A tape is an append-only, encrypted file of fixed-size records or of bytes, sealed at the speed of the cipher and read
in slices. A keyring wraps the key of each tape. Start with `keyring`, `open`, `encrypt` and `decrypt`.

What one release wrote, every later one reads.
"""

from tapeseal._core import openssl_version
from tapeseal.blob import decrypt, encrypt
from tapeseal.body import Anchor
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import (
    AnchorError,
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
from tapeseal.reader import ByteReader, TapeReader
from tapeseal.tape import open, rewrap
from tapeseal.writer import ByteWriter, TapeWriter
