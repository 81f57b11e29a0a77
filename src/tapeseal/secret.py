"""Secret: a value such as a password, in key memory, that shows itself only where that is asked for."""

import contextlib
import hmac
import string
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

from tapeseal import _core
from tapeseal.closing import Closing

_ALPHABET = (string.ascii_letters + string.digits).encode()
if TYPE_CHECKING:
    from typing_extensions import Buffer


class Secret(Closing):
    """A secret text in a `SecretBuffer`: a password, an API key, a private key in PEM.

    It is redacted in repr, str and format, and neither pickled nor copied nor written by json. A context manager that
    wipes it on exit.

    Args:
        buffer: the text in UTF-8; the Secret owns it from here on.
    """

    __slots__ = ("_buffer",)

    def __init__(self, buffer: _core.SecretBuffer) -> None:
        self._buffer = buffer

    @classmethod
    def take(cls, source: bytearray | memoryview) -> Self:
        """Move a secret out of a writable buffer, which is wiped."""
        return cls(_core.SecretBuffer.take(source))

    @classmethod
    def generate(cls, length: int = 40) -> Self:
        """Make a random text of ASCII letters and digits; each is worth 5.95 bits, 40 of them 238.

        Args:
            length: characters, at least 16.
        """
        if length < 16:
            raise ValueError(f"a generated secret has 16 characters and more, not {length}")
        text = _core.SecretBuffer(length, writable=True)
        done = 0
        with text, memoryview(text) as target:
            while done < length:
                with (
                    contextlib.closing(_core.SecretBuffer.random(length)) as random,
                    random,
                    memoryview(random) as view,
                ):
                    for byte in view:
                        # 248 is the largest multiple of 62 that a byte has: every character is as likely.
                        if byte < 248 and done < length:
                            target[done] = _ALPHABET[byte % 62]
                            done += 1
        return cls(text)

    @property
    def buffer(self) -> _core.SecretBuffer:
        """The text in UTF-8; `with secret.buffer, memoryview(secret.buffer) as view:` reads it without a copy."""
        return self._buffer

    def expose(self) -> str:
        """Return the text as a Python string, for a library that takes nothing else.

        A string cannot be wiped: a copy of the secret stays in memory until that is used again.

        Raises:
            ValueError: it is closed, or no UTF-8.
        """
        text = None
        with self._buffer, memoryview(self._buffer) as view:
            with contextlib.suppress(UnicodeDecodeError):
                text = str(view, "utf-8")
            self._check_open()
        if text is None:
            raise ValueError("the secret is no text in UTF-8")
        return text

    def copy(self) -> Self:
        """Return another Secret of the same text, in memory of its own."""
        with self._buffer, memoryview(self._buffer) as view:
            copy = _core.SecretBuffer(len(view), writable=True)
            with copy:
                _core.copy_into(copy, 0, view)
            self._check_open()
        return type(self)(copy)

    def _check_open(self) -> None:
        """Refuse what was read while another thread closed the secret: it may be zeros."""
        if self._buffer.closed:
            raise ValueError("the secret is closed")

    @property
    def closed(self) -> bool:
        """Whether it was wiped."""
        return self._buffer.closed

    def close(self) -> None:
        """Wipe the secret; closing again does nothing."""
        self._buffer.close()

    def __eq__(self, other: object) -> bool:
        """Compare two secrets in constant time."""
        if not isinstance(other, Secret):
            return NotImplemented
        with (
            self._buffer,
            other._buffer,
            memoryview(self._buffer) as mine,
            memoryview(other._buffer) as its,
        ):
            return hmac.compare_digest(mine, its)

    __hash__ = None  # type: ignore[assignment] # A hash would tell equal ones apart from others.

    def __repr__(self) -> str:
        return "<Secret>"

    def __format__(self, specification: str) -> str:
        return "<Secret>"

    def __copy__(self) -> Self:
        raise TypeError("a Secret is copied by copy() alone, which gives another one to close")

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


@contextlib.contextmanager
def in_key_memory(data: "Buffer | Secret | _core.SecretBuffer") -> Iterator[_core.SecretBuffer]:
    """Give what is to be sent as a SecretBuffer: the caller's own, or of other bytes a copy, wiped at the end."""
    if isinstance(data, Secret):
        yield data.buffer
    elif isinstance(data, _core.SecretBuffer):
        yield data
    else:
        # bytearray() alone would take a number for a length, and make that many zeros of it.
        with memoryview(data) as view:
            copy = _core.SecretBuffer.take(bytearray(view))
        del data  # No traceback is to hold it.
        try:
            yield copy
        finally:
            copy.close()
