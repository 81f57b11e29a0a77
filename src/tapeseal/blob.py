"""Blobs: one message, or one database cell, under its own data key (FORMAT 5: one segment, no index)."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tapeseal import audit, header, layout
from tapeseal._core import SecretBuffer
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import DamagedError, InvalidTag, LimitError
from tapeseal.header import Header
from tapeseal.layout import FRAME_OVERHEAD, SEGMENT_HEADER_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer


def encrypt(
    data: Buffer, *, keyring: Keyring, encryption_context: Mapping[str, str] | None = None
) -> bytes:
    """Encrypt a message under a data key of its own.

    Args:
        data: contiguous buffer of 0 to 2**40 bytes.
        keyring: makes and wraps the data key.
        encryption_context: public pairs, bound to the key and the header, readable without any key.

    Returns:
        The blob: some 500 bytes, more with each recipient, and the data; decrypt() opens it.

    Raises:
        ValueError: an encryption context that the format does not allow.
        KeyUnavailableError: the keyring could not make a data key.
    """
    with audit.operation("blob.encrypt", "blob") as entry:
        try:
            sealed, tape_id = _encrypt(data, keyring, encryption_context or {})
        except LimitError:
            # The key that a reserve gave was nearly used up; after this it gives the next.
            sealed, tape_id = _encrypt(data, keyring, encryption_context or {})
        entry.subject = f"blob:{tape_id.hex()}"
    return sealed


def _encrypt(
    data: Buffer, keyring: Keyring, encryption_context: Mapping[str, str]
) -> tuple[bytes, bytes]:
    """Return the blob and its id."""
    frame_size = layout.DEFAULT_FRAME_SIZE
    with memoryview(data).cast("B") as plain:
        raw, data_key, made = header.create(
            keyring,
            kind="bytes",
            dtype=None,
            frame_size=frame_size,
            index_by=None,
            encryption_context=encryption_context,
            copies=layout.BLOB_COPIES,
        )
        frames = max(1, -(-len(plain) // frame_size))
        with data_key:
            data_key.charge(frames, len(plain))
            prev = hashlib.sha256(made.copy.content).digest()
            fields = layout.build_segment_fields(
                layout.DATA_SEGMENT, 0, 0, prev, secrets.token_bytes(32)
            )
            key, commitment = data_key.segment_key(made.tape_id, fields)
        start = len(raw) + SEGMENT_HEADER_SIZE
        blob = bytearray(start + len(plain) + frames * FRAME_OVERHEAD)
        blob[:start] = raw + fields + commitment
        with memoryview(blob) as view:
            key.seal_frames(
                view[start:],
                plain,
                count=len(plain),
                item_size=1,
                frame_items=frame_size,
                first=0,
                index=0,
                final=True,
            )
    return bytes(blob), made.tape_id


def decrypt(blob: Buffer, *, keyring: Keyring, expect: Mapping[str, str] | None = None) -> bytes:
    """Authenticate and decrypt a blob that encrypt() gave.

    Args:
        blob: contiguous buffer, the whole blob and nothing else.
        keyring: unwraps the data key.
        expect: pairs that the blob's encryption context must have.

    Raises:
        NotATapeError: no header stands there.
        DamagedError: the blob was changed, cut or lengthened; nothing of it is released.
        ContextMismatchError: a pair of `expect` is missing.
        KeyUnavailableError: the keyring has no key for it.
    """
    with memoryview(blob).cast("B") as view:
        found = read_header(view)
        with (
            audit.operation("blob.decrypt", f"blob:{found.tape_id.hex()}"),
            header.unlock(found, keyring, expect) as data_key,
        ):
            return open_body(view, found, data_key)


def decrypt_secret(
    blob: Buffer, *, keyring: Keyring, expect: Mapping[str, str] | None = None
) -> SecretBuffer:
    """Authenticate and decrypt a blob of at least one byte into key memory; arguments and errors as decrypt()."""
    with memoryview(blob).cast("B") as view:
        found = read_header(view)
        with (
            audit.operation("blob.decrypt", f"blob:{found.tape_id.hex()}"),
            header.unlock(found, keyring, expect) as data_key,
            contextlib.closing(SecretBuffer(len(view), writable=True)) as room,
            room,
            memoryview(room) as target,
        ):
            size = _open_into(target, view, found, data_key)
            return SecretBuffer.take(target[:size])


def read_header(view: memoryview) -> Header:
    """Read a blob's header, which is not yet authenticated; errors as decrypt()."""
    found = header.read(lambda size, offset: bytes(view[offset : offset + size]), len(view))
    if found.copy.copies != layout.BLOB_COPIES:
        raise ValueError("this is a tape, not a blob: tapeseal.open() reads it")
    if found.content.kind != "bytes":
        raise ValueError(f"this is the header of {found.content.kind}, not a blob of bytes")
    return found


def open_body(view: memoryview, found: Header, data_key: DataKey) -> bytes:
    """Authenticate and open what follows a blob's authenticated header; errors as decrypt()."""
    plain = bytearray(len(view) - found.body)
    with memoryview(plain) as target:
        return bytes(target[: _open_into(target, view, found, data_key)])


def _open_into(target: memoryview, view: memoryview, found: Header, data_key: DataKey) -> int:
    """Open a blob's body into memory at least as large, and return how many bytes it has."""
    at = found.body
    if len(view) < at + SEGMENT_HEADER_SIZE:
        raise DamagedError("the blob ends inside its segment header", at)
    segment = layout.parse_segment(view[at : at + SEGMENT_HEADER_SIZE].tobytes(), at)
    prev = hashlib.sha256(found.copy.content).digest()
    if (segment.type, segment.number, segment.prev_frames, segment.prev) != (
        layout.DATA_SEGMENT,
        0,
        0,
        prev,
    ):
        raise DamagedError("the blob's segment is not the first of this blob", at)
    key, commitment = data_key.segment_key(found.tape_id, segment.fields)
    if not hmac.compare_digest(commitment, segment.commitment):
        raise DamagedError("the segment's commitment is wrong", at)
    # Frames are opened run by run: `frames` of `count` bytes each that start at `run_at` with byte `run_first`.
    at += SEGMENT_HEADER_SIZE
    done = opened = 0
    while True:
        frame_at, index, start = at, opened, done
        size, frames, final = _next_run(view, at, found.content.frame_size)
        total = size * frames
        step = size + FRAME_OVERHEAD
        try:
            at += key.open_frames(
                target[done : done + total], view[at:], count=total, item_size=1,
                frame_items=max(1, size), first=start, index=index, final=final,
            )  # fmt: skip
        except InvalidTag as error:
            raise DamagedError("a frame is not authentic", frame_at + error.index * step) from None
        done += total
        opened += frames
        if final:
            break
    if at != len(view):
        raise DamagedError("something follows the final frame", at)
    return done


def _next_run(view: memoryview, at: int, frame_size: int) -> tuple[int, int, bool]:
    """Return (bytes of each, how many, final) of the next frames of one size; a final frame stands alone."""
    size, frames = -1, 0
    while True:
        if len(view) < at + layout.FRAME_HEADER_SIZE:
            if frames:
                return size, frames, False
            raise DamagedError("the blob ends without a final frame", at)
        type, count, _, sealed_size, clean = layout.parse_frame(view, at)
        final = type == layout.FINAL_FRAME
        if (
            not clean
            or type not in (layout.FRAME, layout.FINAL_FRAME)
            or count != sealed_size
            or not (0 if final else 1) <= count <= frame_size
        ):
            raise DamagedError("a frame header is wrong", at)
        if len(view) < at + FRAME_OVERHEAD + count:
            raise DamagedError("the blob ends inside a frame", at)
        if frames and (final or count != size):
            return size, frames, False
        size, frames = count, frames + 1
        if final:
            return size, frames, True
        at += FRAME_OVERHEAD + count
