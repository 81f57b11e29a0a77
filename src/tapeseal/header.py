"""Header copies in a file: making them, choosing and authenticating one, replacing the recipients (FORMAT 3)."""

import datetime
import functools
import hmac
import os
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tapeseal import files, layout
from tapeseal.datakey import DataKey, Keyring, wrap_pending
from tapeseal.errors import (
    ContextMismatchError,
    DamagedError,
    InvalidTag,
    LimitError,
    NotATapeError,
    WrappedKeyError,
)
from tapeseal.layout import Content, HeaderCopy, Recipient

Pread = Callable[[int, int], bytes]


class Problem(NamedTuple):
    """Something wrong with a tape."""

    offset: int
    """Byte of the file where it starts."""
    text: str
    """What is wrong there."""


class Header(NamedTuple):
    """The header of one tape or blob, not yet authenticated."""

    copy: HeaderCopy
    """The copy that was taken."""
    offset: int
    """Where that copy stands."""
    other: HeaderCopy | None
    """The other copy, where it is intact."""
    content: Content
    recipients: list[Recipient]
    body: int
    """Where the segments start."""
    problems: list[Problem]

    @property
    def tape_id(self) -> bytes:
        """The 16 random bytes that name the tape."""
        return self.copy.tape_id


def read(pread: Pread, size: int) -> Header:
    """Read and check the header of a file or blob of `size` bytes.

    Args:
        pread: gives so many bytes from an offset on, fewer where the file ends.
        size: bytes of the file.

    Raises:
        NotATapeError: no header stands there.
        DamagedError: one does, and it is damaged, or says what this version does not know.
    """
    problems = []
    offset = 0
    copy = _read_copy(pread, 0)
    if copy is None:
        offset = _find_second(pread)
        copy = _read_copy(pread, offset) if offset else None
        if copy is None:
            if offset or pread(8, 0) == layout.MAGIC:
                raise DamagedError("no header copy is readable", 0)
            raise NotATapeError("not a tape: no header is found")
        problems.append(Problem(0, "the first header copy is rotten; a rewrap repairs it"))
    content_at = offset + layout.HEADER_PREFIX_SIZE
    content = layout.parse_content(copy.content, content_at)
    recipients = layout.parse_recipients(copy.recipients, content_at + len(copy.content))
    if copy.copies == layout.BLOB_COPIES:
        if content.kind == "records":
            raise DamagedError("a blob holds bytes or rows, not records", content_at)
        return Header(copy, 0, None, content, recipients, copy.copy_size, problems)

    if content.kind == "rows":
        raise DamagedError("a file holds records or bytes, not rows", content_at)
    body = 2 * copy.copy_size
    if size < body:
        raise DamagedError("the file is shorter than its two header copies", size)
    other = None
    if offset == 0:
        other = _read_copy(pread, copy.copy_size)
        if other is None:
            problems.append(
                Problem(copy.copy_size, "the second header copy is rotten; a rewrap repairs it")
            )
        elif _lasting(other) != _lasting(copy):
            raise DamagedError("the two header copies are of different tapes", copy.copy_size)
    return Header(copy, offset, other, content, recipients, body, problems)


def _read_copy(pread: Pread, offset: int) -> HeaderCopy | None:
    size = layout.stated_copy_size(pread(layout.HEADER_PREFIX_SIZE, offset))
    return layout.parse_header(pread(size, offset), offset) if size else None


def _find_second(pread: Pread) -> int:
    """Return where the second copy's prefix stands, 0 if nowhere. Only the first that claims to be it is tried."""
    for offset in range(layout.HEADER_ALIGNMENT, layout.MAX_COPY_SIZE + 1, layout.HEADER_ALIGNMENT):
        prefix = pread(layout.HEADER_PREFIX_SIZE, offset)
        if layout.stated_copy_size(prefix) == offset and prefix[48] == layout.FILE_COPIES:
            return offset
    return 0


def _lasting(copy: HeaderCopy) -> tuple[Any, ...]:
    """What a rewrap never changes."""
    return copy.copy_size, copy.tape_id, copy.copies, copy.content


def read_file(fd: int) -> Header:
    """Read and check the header of an open file; errors as read()."""
    return read(functools.partial(files.pread_exact, fd), os.fstat(fd).st_size)


def unlock(header: Header, keyring: Keyring, expect: Mapping[str, str] | None = None) -> DataKey:
    """Unwrap the data key and authenticate the header copy that was taken.

    Raises:
        ContextMismatchError: the encryption context lacks a pair of `expect`.
        KeyUnavailableError: the keyring holds no key for any recipient.
        DamagedError: header or wrapped key were changed.
    """
    context = header.content.encryption_context
    for key, value in (expect or {}).items():
        if context.get(key) != value:
            have = "another value" if key in context else "nothing"
            raise ContextMismatchError(
                f"expected {key}={value} in the encryption context, which has {have} there"
            )
    try:
        data_key = keyring.unwrap(header.recipients, context)
    except InvalidTag as error:
        said = "the wrapped key does not open: it or the encryption context was changed"
        if isinstance(error, WrappedKeyError):  # which says which recipient's
            said = str(error)
        raise DamagedError(said, header.offset) from None
    try:
        check_mac(data_key, header.copy, header.offset)
    except BaseException:
        data_key.close()
        raise
    return data_key


def check_mac(data_key: DataKey, copy: HeaderCopy, offset: int) -> None:
    """Raise DamagedError where a header copy's MAC is not the data key's."""
    if not hmac.compare_digest(data_key.header_mac(copy.tape_id, copy.signed), copy.mac):
        raise DamagedError("the header is forged: its MAC is wrong", offset)


def build(data_key: DataKey, copy: HeaderCopy, recipients: bytes, generation: int) -> bytes:
    """Return a new copy of the header with other recipients, of the same size."""
    signed = layout.build_header(
        copy.tape_id, generation, copy.content, recipients, copy.copies, copy.copy_size
    )
    return layout.seal_header(signed, data_key.header_mac(copy.tape_id, signed))


def create(
    keyring: Keyring,
    *,
    kind: str,
    dtype: np.dtype[Any] | None,
    frame_size: int,
    index_by: str | None,
    encryption_context: Mapping[str, str],
    copies: int,
) -> tuple[bytes, DataKey, Header]:
    """Make the header of a new tape or blob under a new data key.

    Returns:
        What the file starts with (all copies), the data key, and the header as read() would give it.

    Raises:
        ValueError: a dtype, frame size, index_by or encryption context that the format does not allow.
        KeyUnavailableError: the keyring could not make a data key.
    """
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    content = Content(created, kind, dtype, frame_size, index_by, dict(encryption_context))
    content_text = layout.build_content(content)
    data_key, recipients = keyring.generate(content.encryption_context)
    try:
        recipients_text = layout.build_recipients(recipients)
        size = layout.HEADER_PREFIX_SIZE + len(content_text) + len(recipients_text)
        if copies == layout.FILE_COPIES:
            size = layout.file_copy_size(content_text, recipients_text)
        tape_id = secrets.token_bytes(16)
        signed = layout.build_header(tape_id, 1, content_text, recipients_text, copies, size)
        raw = layout.seal_header(signed, data_key.header_mac(tape_id, signed))
        copy = layout.parse_header(raw, 0)
        assert copy is not None
    except BaseException:
        data_key.close()
        raise
    return raw * copies, data_key, Header(copy, 0, copy, content, recipients, copies * size, [])


def replace_recipients(fd: int, keyring: Keyring, to: Keyring | None) -> int:
    """Rewrap in place: write both header copies anew, for new_recipients(). See tapeseal.rewrap().

    The caller has locked them. A crash at any instant leaves copy 0 or, where that is torn, copy 1 intact and
    authentic.

    Raises:
        LimitError: the new recipients do not fit into the header's copies.
    """
    header = read_file(fd)
    if header.copy.copies != layout.FILE_COPIES:
        raise ValueError(
            "a blob has one header copy and cannot be rewrapped in place: decrypt and encrypt it"
        )
    with unlock(header, keyring) as data_key:
        size = header.copy.copy_size
        generation = next_generation(data_key, header)
        recipients = new_recipients(data_key, header, keyring, to)
        if recipients is None:
            return generation - 1
        used = layout.HEADER_PREFIX_SIZE + len(header.copy.content) + len(recipients)
        if used > size:
            raise LimitError(
                f"the new recipients need {used} bytes and a header copy has {size}: rewrap into a copy of the file"
            )
        if header.offset != 0:
            files.pwrite_all(fd, files.pread_exact(fd, size, size), 0)
            os.fsync(fd)
        raw = build(data_key, header.copy, recipients, generation)
        for offset in (size, 0):
            files.pwrite_all(fd, raw, offset)
            os.fsync(fd)
    return generation


def new_recipients(
    data_key: DataKey, header: Header, keyring: Keyring, to: Keyring | None
) -> bytes | None:
    """Return the recipients that a rewrap writes: those of `to`, or where that is None the present ones, completed.

    None: there is nothing to complete. Errors are those of wrap() and wrap_pending().
    """
    context = header.content.encryption_context
    if to is not None:
        return layout.build_recipients(to.wrap(data_key, context))
    if all(each.wrapped is not None for each in header.recipients):
        return None
    return layout.build_recipients(wrap_pending(keyring, data_key, header.recipients, context))


def next_generation(data_key: DataKey, header: Header) -> int:
    """Authenticate the other header copy too, and return the generation that a rewrap gives.

    Raises:
        DamagedError: the other copy is forged.
        LimitError: there is no further generation.
    """
    generation = header.copy.generation
    if header.other is not None:
        check_mac(data_key, header.other, header.copy.copy_size)
        generation = max(generation, header.other.generation)
    if generation + 1 >= layout.MAX_GENERATION:
        raise LimitError("the header's generation has reached its limit")
    return generation + 1
