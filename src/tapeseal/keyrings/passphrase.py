"""Passphrases of key files: where they come from, and how they are kept until they are wiped."""

import contextlib
import getpass
import os
import re
from collections.abc import Callable, Mapping
from functools import partial

from tapeseal._core import KEY_SIZE, SecretBuffer, wipe
from tapeseal.errors import KeyUnavailableError, PassphraseError
from tapeseal.keyrings.private import PASSPHRASE_FILE, open_private

MAX_PASSPHRASE_SIZE = 4096

# Of scrypt; OWASP's first choice: 128 MiB.
LOG2_N, R, P = 17, 8, 1

Passphrase = bytes | bytearray | SecretBuffer
"""1 to 4096 bytes. A SecretBuffer is taken over by the function it is given to, which closes it."""


class PassphraseHolder:
    """The passphrase of a key file, given or asked for when it is first needed."""

    def __init__(
        self,
        passphrase: Passphrase | Callable[[], Passphrase] | None,
        path: str | os.PathLike[str],
    ) -> None:
        self._secret: SecretBuffer | None = None
        self._ask: Callable[[], Passphrase] | None = None
        try:
            if passphrase is None:
                self._ask = partial(passphrase_from_terminal, f"Passphrase of {os.fspath(path)}: ")
            elif callable(passphrase):
                self._ask = passphrase
            else:
                self._secret = _as_secret(passphrase)
        finally:
            del passphrase

    def check_fits(self, sealed: bool, path: str) -> None:
        """Refuse a passphrase for a file without: another file may have taken its place."""
        if self._ask is None and not sealed:
            self.close()
            raise PassphraseError(f"a passphrase was given, but the key file {path} is under none")

    def get(self) -> SecretBuffer:
        if self._secret is None and self._ask is not None:
            self._secret = _as_secret(self._ask())
        if self._secret is None:
            raise PassphraseError("the passphrase was already wiped")
        return self._secret

    def forget(self) -> None:
        """Have the next get() ask again, where this one was asked for."""
        if self._ask is not None:
            self.close()

    def close(self) -> None:
        if self._secret is not None:
            self._secret.close()
            self._secret = None


def _as_secret(passphrase: object) -> SecretBuffer:
    if isinstance(passphrase, SecretBuffer):
        return passphrase
    if not isinstance(passphrase, bytes | bytearray):
        kind = type(passphrase).__name__
        del passphrase
        raise TypeError(f"a passphrase is bytes, not {kind}")
    size = len(passphrase)
    if not 1 <= size <= MAX_PASSPHRASE_SIZE:
        del passphrase
        raise _wrong_size(size)
    return SecretBuffer.take(bytearray(passphrase))


def _wrong_size(size: int) -> PassphraseError:
    return PassphraseError(f"a passphrase has 1 to {MAX_PASSPHRASE_SIZE} bytes, not {size}")


def has_terminal() -> bool:
    """Whether there is a terminal to ask on."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def passphrase_from_terminal(prompt: str, *, confirm: bool = False) -> SecretBuffer:
    """Ask for a passphrase on the terminal, unseen; with `confirm` twice.

    A terminal gives text, of which copies stay in Python's memory until that is used again.

    Raises:
        PassphraseError: there is no terminal, or what was typed is empty, too long or not the same.
    """
    if not has_terminal():
        raise PassphraseError(
            "a passphrase is needed, and there is no terminal to ask: give it in the keyring's "
            "address as ?passphrase_file=PATH, ?passphrase_fd=NUMBER or ?passphrase_env=NAME"
        )
    typed = _typed(prompt)
    if typed is None:
        raise PassphraseError(f"a passphrase has 1 to {MAX_PASSPHRASE_SIZE} bytes of text")
    if confirm:
        again = _typed("The same again: ")
        if again is None or not _same(typed, again):
            raise PassphraseError("the two passphrases are not the same")
    return typed


def _typed(prompt: str) -> SecretBuffer | None:
    # No error leaves this frame: that of text that does not decode holds what was typed.
    with contextlib.suppress(EOFError, UnicodeError):
        text = bytearray(getpass.getpass(prompt).encode())
        if 1 <= len(text) <= MAX_PASSPHRASE_SIZE:
            return SecretBuffer.take(text)
    return None


def _same(one: SecretBuffer, other: SecretBuffer) -> bool:
    with one, other, memoryview(one) as a, memoryview(other) as b:
        return a == b


def passphrase_from_file(path: str) -> SecretBuffer:
    """Read a passphrase from a file, or a named pipe, that is its owner's alone.

    One newline at the end is not part of it.

    Raises:
        KeyUnavailableError: the file cannot be read, or others have access to it.
        PassphraseError: it holds nothing, or over 4096 bytes.
    """
    with open_private(path, PASSPHRASE_FILE) as fd:
        return passphrase_from_fd(fd)


def passphrase_from_fd(fd: int) -> SecretBuffer:
    """Read a passphrase from a file descriptor to its end; it stays open.

    One newline at the end is not part of it.

    Raises:
        PassphraseError: it cannot be read, or gives nothing, or over 4096 bytes.
    """
    buffer = bytearray(MAX_PASSPHRASE_SIZE + 2)
    try:
        with memoryview(buffer) as view:
            size = 0
            # A byte more than is allowed, and its newline, tell what is too long.
            while size < len(buffer) and (got := os.readv(fd, [view[size:]])):
                size += got
            if size and view[size - 1] == ord("\n"):
                size -= 1
            if not 1 <= size <= MAX_PASSPHRASE_SIZE:
                raise _wrong_size(size)
            return SecretBuffer.take(view[:size])
    except OSError as error:
        raise PassphraseError(
            f"no passphrase from file descriptor {fd}: {error.strerror}"
        ) from None
    finally:
        wipe(buffer)


def passphrase_from_env(name: str) -> SecretBuffer:
    """Take a passphrase from an environment variable, which other programs may be able to see.

    Raises:
        PassphraseError: it is not set, empty, or has over 4096 bytes.
    """
    value = os.environb.get(os.fsencode(name))
    if value is None:
        raise PassphraseError(f"the environment variable {name} of the passphrase is not set")
    return _as_secret(value)


def _passphrase_from_fd_text(text: str) -> SecretBuffer:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError("passphrase_fd is not the number of a file descriptor")
    return passphrase_from_fd(int(text))


PASSPHRASE_SOURCES: Mapping[str, Callable[[str], SecretBuffer]] = {
    "passphrase_file": passphrase_from_file,
    "passphrase_fd": _passphrase_from_fd_text,
    "passphrase_env": passphrase_from_env,
}


def passphrase_from_parameters(parameters: Mapping[str, str], provider: str) -> SecretBuffer | None:
    """Read the passphrase that the parameters of a keyring's URI lead to; None: they are none.

    Raises:
        ValueError: other parameters, or more than one.
        KeyUnavailableError: it could not be read.
    """
    unknown = sorted(parameters.keys() - PASSPHRASE_SOURCES.keys())
    if unknown:
        raise ValueError(
            f"a {provider} keyring has no parameter {unknown[0]!r}, "
            f"only {', '.join(PASSPHRASE_SOURCES)}"
        )
    if len(parameters) > 1:
        raise ValueError(f"only one of {', '.join(PASSPHRASE_SOURCES)} can be given")
    for name, value in parameters.items():
        return PASSPHRASE_SOURCES[name](value)
    return None


def stretch(passphrase: SecretBuffer, salt: bytes, log2_n: int, r: int, p: int) -> SecretBuffer:
    """Return the 32 bytes that scrypt (RFC 7914) makes of a passphrase."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    try:
        scrypt = Scrypt(salt=salt, length=KEY_SIZE, n=1 << log2_n, r=r, p=p)
    except UnsupportedAlgorithm:
        raise KeyUnavailableError(
            "the installed cryptography has no scrypt, which passphrases need; "
            "its wheels from PyPI have it"
        ) from None
    derived = bytearray(KEY_SIZE)
    # Not Argon2id: cryptography's leaves a copy of the passphrase in freed memory.
    with passphrase, memoryview(passphrase) as view:
        scrypt.derive_into(view, derived)
    return SecretBuffer.take(derived)
