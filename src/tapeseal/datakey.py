"""The data key, what derives from it, and the Keyring protocol that supplies it."""

import contextlib
import struct
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

from tapeseal import _core
from tapeseal.closing import Closing
from tapeseal.errors import KeyUnavailableError
from tapeseal.layout import KEY_SIZE, SUITE, Recipient


class DataKey(Closing):
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
        self._secret: _core.SecretBuffer | None = secret
        # The open DataKeys over the secret. Without a lock, which a fork may copy: each change is atomic.
        self._sharers = {id(self)}
        self.allowance: Allowance | None = None
        """What may still be encrypted under the key; None: nobody counts."""

    @property
    def secret(self) -> _core.SecretBuffer:
        """The 32 bytes."""
        if self._secret is None:
            raise ValueError("the data key is closed")
        return self._secret

    @classmethod
    def generate(cls) -> Self:
        """Make a new random data key."""
        return cls(_core.SecretBuffer.random(KEY_SIZE))

    def header_mac(self, tape_id: bytes, signed: bytes) -> bytes:
        """Return the 32-byte MAC of a header (FORMAT 3)."""
        key = self._expand("header", tape_id, 32)
        try:
            return _core.HMAC(key).digest(signed)
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

    def split(self, threshold: int, indices: Sequence[int]) -> dict[int, Self]:
        """Return Shamir shares of the key by their indices, 1 to 255 (FORMAT 3): any `threshold` of them give it."""
        shares = _core.split_secret(self.secret, threshold, bytes(indices))
        return {index: type(self)(share) for index, share in zip(indices, shares, strict=True)}

    @classmethod
    def combine(cls, shares: Mapping[int, Self]) -> Self:
        """Make the key from as many shares as the threshold; whether it is the right one only a header's MAC tells."""
        secrets = [share.secret for share in shares.values()]
        return cls(_core.combine_shares(secrets, bytes(shares)))

    def _expand(self, label: str, rest: bytes, size: int) -> _core.SecretBuffer:
        info = f"tapeseal/v1 {label}\0".encode() + struct.pack("<H", SUITE) + rest
        return _core.hkdf_expand(self.secret, info, size)

    def share(self) -> "DataKey":
        """Return another DataKey over the same secret and allowance: the last of them to be closed wipes it."""
        shared = DataKey(self.secret)
        shared.allowance = self.allowance
        shared._sharers = self._sharers
        self._sharers.add(id(shared))
        return shared

    def charge(self, messages: int, size: int) -> None:
        """Count messages, of so many bytes in all, that are about to be encrypted; errors as Allowance.take()."""
        if self.allowance is not None:
            self.allowance.take(messages, size)

    def close(self) -> None:
        """Wipe the key, unless others share it; closing again does nothing."""
        self._sharers.discard(id(self))
        if self._sharers:
            self._secret = None
        elif self._secret is not None:
            self._secret.close()

    def __del__(self) -> None:
        # Where it was refused there is none.
        if hasattr(self, "_sharers"):
            self.close()

    def __repr__(self) -> str:
        return "<DataKey>"

    def __reduce__(self) -> str:
        raise TypeError("a DataKey is neither pickled nor copied")


class Allowance(Protocol):
    """What may still be encrypted under a data key, counted for all who share it; see DataKeyReserve."""

    spent: str | None
    """Why nothing more may be; None: it may."""

    def take(self, messages: int, size: int) -> None:
        """Count messages, of so many bytes in all, before they are encrypted.

        Raises:
            LimitError: they would go past a limit, or the key is too old; nothing is counted, and `spent` says why.
            ValueError: they are more than any data key is allowed.
            ForkError: this process is a fork of the one that made the key.
        """

    def take_more(self, messages: int, size: int) -> int:
        """Count messages of `size` bytes each, more than asked for where there is room, and return how many."""

    def give_back(self, size: int) -> None:
        """Take back bytes that were counted and not encrypted."""


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

    def pending(self) -> list[Recipient]:
        """Name the recipients that wrap() would give, without what is wrapped and without asking any service.

        Raises:
            KeyUnavailableError: only the service knows their names.
        """


def leaves(keyring: Keyring) -> list[Keyring]:
    """Return the keyrings that one over several (AnyOf, Quorum) is made of in the end; of any other that one."""
    inner: Sequence[Keyring] | None = getattr(keyring, "keyrings", None)
    if inner is None:
        return [keyring]
    return [leaf for each in inner for leaf in leaves(each)]


def wrap_pending(
    keyring: Keyring,
    data_key: DataKey,
    recipients: Sequence[Recipient],
    encryption_context: Mapping[str, str],
) -> list[Recipient]:
    """Return the recipients with the pending ones wrapped, as far as they are the keyring's.

    Of a quorum with a pending share all shares are made anew, for its polynomial is not kept; it stays as it is where
    one of its keys is not the keyring's.

    Raises:
        KeyUnavailableError: none could be wrapped, or a wrapping key could not be had.
    """
    able: dict[tuple[str, str], Keyring] = {}
    for leaf in leaves(keyring):
        with contextlib.suppress(KeyUnavailableError):
            try:
                named = leaf.pending()
            except KeyUnavailableError:
                # The service tells when it wraps: some other key, for it may be due a share alone.
                with DataKey.generate() as trial:
                    named = leaf.wrap(trial, encryption_context)
            for recipient in named:
                able.setdefault(recipient[:2], leaf)

    def wrap(secret: DataKey, recipient: Recipient) -> Recipient:
        for made in able[recipient[:2]].wrap(secret, encryption_context):
            if made[:2] == recipient[:2]:
                return made._replace(share=recipient.share)
        raise no_recipient([recipient], "its keyring wraps for another key by now")

    waiting = [each for each in recipients if each.wrapped is None]
    new = {
        each: wrap(data_key, each) for each in waiting if each.share is None and each[:2] in able
    }
    shared = [(each, *each.share) for each in recipients if each.share is not None]
    for group in {of for each, of, _, _ in shared if each.wrapped is None}:
        members = [(each, threshold, index) for each, of, threshold, index in shared if of == group]
        if all(each[:2] in able for each, _, _ in members):
            shares = data_key.split(members[0][1], sorted({index for _, _, index in members}))
            try:
                new |= {each: wrap(shares[index], each) for each, _, index in members}
            finally:
                for share in shares.values():
                    share.close()
    if waiting and not new:
        raise KeyUnavailableError(
            f"no keyring that was given wraps for a pending recipient: {named_recipients(waiting)}"
        )
    return [new.get(each, each) for each in recipients]


def no_recipient(recipients: Sequence[Recipient], ours: str) -> KeyUnavailableError:
    """Make the error of a keyring that finds none of its keys among the recipients; `ours` says what it has."""
    named = named_recipients(recipients)
    return KeyUnavailableError(f"no recipient is one of ours: the recipients are {named}; {ours}")


def named_recipients(recipients: Sequence[Recipient]) -> str:
    """Return the first recipients as text, and which of them are pending or hold a share alone."""
    return first_few(
        [
            f"{each.provider}:{each.key}"
            + (" (pending)" if each.wrapped is None else " (a share)" if each.share else "")
            for each in recipients
        ]
    )


def first_few(names: Sequence[str], most: int = 4) -> str:
    """Return the first names with commas between them, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
