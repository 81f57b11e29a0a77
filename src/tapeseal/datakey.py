"""The data key, what derives from it, and the Keyring protocol that supplies it."""

import struct
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from tapeseal import _core
from tapeseal.errors import KeyUnavailableError
from tapeseal.layout import KEY_SIZE, SUITE, Recipient


class DataKey:
    """The 32 bytes from which every key of a tape derives, in a `SecretBuffer`.

    A context manager that wipes them on exit. What wiping cannot reach: key schedules inside libcrypto live on in
    its contexts until the tape is closed, and pages of a machine that was suspended or snapshotted meanwhile.

    Args:
        secret: exactly 32 bytes; the DataKey owns it from here on.

    Raises:
        ValueError: another size.
    """

    def __init__(self, secret: _core.SecretBuffer) -> None:
        if len(secret) != KEY_SIZE:
            size = len(secret)
            secret.close()
            raise ValueError(f"a data key is {KEY_SIZE} bytes, not {size}")
        self.secret = secret

    @classmethod
    def generate(cls) -> Self:
        """Make a new random data key."""
        return cls(_core.SecretBuffer.random(KEY_SIZE))

    def header_mac(self, tape_id: bytes, signed: bytes) -> bytes:
        """Return the 32-byte MAC of a header (FORMAT 3)."""
        key = self._expand("header", tape_id, 32)
        try:
            return _core.hmac_sha256(key, signed)
        finally:
            key.close()

    def segment_key(self, tape_id: bytes, fields: bytes) -> tuple[_core.AESGCM, bytes]:
        """Return a segment's key and its 32-byte commitment from the first 80 bytes of its header (FORMAT 4)."""
        derived = self._expand("segment", tape_id + fields, 64)
        try:
            with derived, memoryview(derived) as view:
                return _core.AESGCM(derived), bytes(view[32:])
        finally:
            derived.close()

    def row_cipher(self, tape_id: bytes) -> _core.RowCipher:
        """Return the key of rows (FORMAT 8)."""
        key = self._expand("rows", tape_id, KEY_SIZE)
        try:
            return _core.RowCipher(key)
        finally:
            key.close()

    def _expand(self, label: str, rest: bytes, size: int) -> _core.SecretBuffer:
        info = f"tapeseal/v1 {label}\0".encode() + struct.pack("<H", SUITE) + rest
        return _core.hkdf_expand(self.secret, info, size)

    def close(self) -> None:
        """Wipe the key; closing again does nothing."""
        self.secret.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<DataKey>"

    def __reduce__(self) -> str:
        raise TypeError("a DataKey is neither pickled nor copied")


class Keyring(Protocol):
    """What generates, wraps and unwraps data keys: a key file, a KMS, a Vault, or several of them."""

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Make a data key, wrapped for every recipient of this keyring and bound to the encryption context.

        Raises:
            KeyUnavailableError: a wrapping key could not be had.
        """

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Wrap an existing data key as generate() does; errors as there."""

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Unwrap the data key from the first recipient that this keyring can open.

        Raises:
            KeyUnavailableError: no recipient is of this keyring.
            InvalidTag: a recipient names a key of this keyring, and the wrapped key or the context was changed.
        """


def no_recipient(recipients: Sequence[Recipient], ours: str) -> KeyUnavailableError:
    """Make the error of a keyring that finds none of its keys among the recipients; `ours` says what it has."""
    named = first_few([f"{recipient.provider}:{recipient.key}" for recipient in recipients])
    return KeyUnavailableError(f"no recipient is one of ours: the recipients are {named}; {ours}")


def first_few(names: Sequence[str], most: int = 4) -> str:
    """Return the first names with commas between them, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
