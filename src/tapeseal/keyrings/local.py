"""Wrapping keys in a file of one's own, optionally under a passphrase (docs/key-file.md)."""

import base64
import contextlib
import errno
import fcntl
import getpass
import os
import re
import shlex
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from tapeseal._core import (
    AESGCM,
    KEY_SIZE,
    NONCE_SIZE,
    TAG_SIZE,
    SecretBuffer,
    hkdf_expand,
    wipe,
)
from tapeseal.datakey import DataKey, no_recipient
from tapeseal.errors import (
    ForkError,
    InvalidTag,
    KeyUnavailableError,
    LimitError,
    PassphraseError,
)
from tapeseal.layout import Recipient, wrap_binding

PROVIDER = "local"

MAX_FILE_SIZE = 1 << 20
MAX_LINES = 4096
MAX_KEYS = 1024
MAX_PASSPHRASE_SIZE = 4096

SALT_SIZE = 16
# RFC 9106, 4: the second recommended option, for where 2 GiB are too much to ask.
MEMORY_KIB, ITERATIONS, LANES = 65536, 3, 4
# What a file may demand of the machine that opens it.
MAX_MEMORY_KIB, MAX_ITERATIONS, MAX_LANES = 1 << 20, 16, 16

ID_SIZE = 8
_ID_INFO = b"tapeseal/v1 key id\0"
_SEALED_SIZE = NONCE_SIZE + KEY_SIZE + TAG_SIZE

_FIRST_LINE = b"tapeseal-keys v1\n"
_COMMENT = (
    b"# The last key wraps, all of them unwrap. Whoever has a key can decrypt: keep this secret.\n"
)
_LINE = re.compile(rb"[^\n]*\n")
_IGNORED = re.compile(rb"|#.*")
# The secret's characters are left to from_hex, which takes the same time for any of them.
_KEY = re.compile(
    rb"key (?P<id>[0-9a-f]{%d}) created=(?P<created>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) "
    rb"(?:secret=(?P<secret>.{%d})"
    rb"|argon2id=(?P<memory_kib>[1-9]\d{0,6}):(?P<iterations>[1-9]\d?):(?P<lanes>[1-9]\d?)"
    rb":(?P<salt>[0-9a-f]{%d}) sealed=(?P<sealed>[0-9a-f]{%d}))"
    % (2 * ID_SIZE, 2 * KEY_SIZE, 2 * SALT_SIZE, 2 * _SEALED_SIZE)
)

Passphrase = bytes | bytearray | SecretBuffer
"""1 to 4096 bytes. A SecretBuffer belongs to whoever it was given to, and is closed there."""


class LocalKeyring:
    """A keyring over a key file: the file's last key wraps, each of its keys unwraps.

    The file is read once, here: a key added to it later is for keyrings made later. Keys under a
    passphrase are opened when first needed. Threads may share it; a fork may not.

    Args:
        path: a key file, as `tapeseal keygen` and create_key_file() make it.
        passphrase: what the file's keys are under; or a function that returns it, called when it
            is first needed; or None: the terminal is asked, if the file needs one.

    Raises:
        KeyUnavailableError: there is no such file, it is not the user's alone, or it is no key file.
        PassphraseError: a passphrase was given, and the file is under none.
    """

    path: str
    key_ids: tuple[str, ...]
    """The ids of the file's keys; the last is the current one."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        passphrase: Passphrase | Callable[[], Passphrase] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        try:
            self._passphrase = _PassphraseHolder(passphrase, path)
        finally:
            del passphrase  # So that no traceback that shows variables shows it.
        with _open_private(self.path, _KEY_FILE) as fd, _read(fd, self.path) as text:
            keys = _parse(text, self.path)
        self._passphrase.check_fits(keys, self.path)
        self.key_ids = keys.ids
        self._opened = keys.opened
        self._sealed = keys.sealed
        self._lock = threading.Lock()
        self._process = os.getpid()

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Make a data key and wrap it under the current key.

        Raises:
            PassphraseError: the passphrase is missing, or does not open the current key.
            ForkError: this process is a fork of the one that made the keyring.
        """
        data_key = DataKey.generate()
        try:
            return data_key, self.wrap(data_key, encryption_context)
        except BaseException:
            data_key.close()
            raise

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Wrap an existing data key under the current key; errors as generate()."""
        key_id = self.key_ids[-1]
        cipher = self._cipher(key_id)
        # SP 800-38D, 8.3: random nonces allow 2**32 wraps under one key.
        nonce = os.urandom(NONCE_SIZE)
        with data_key.secret as secret:
            sealed = cipher.encrypt(nonce, secret, wrap_binding(encryption_context))
        return [Recipient(PROVIDER, key_id, base64.b64encode(nonce + sealed).decode())]

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Unwrap the data key from the first recipient that a key of the file opens.

        Raises:
            KeyUnavailableError: no recipient names a key of the file.
            InvalidTag: one does, and what it wraps or the encryption context was changed.
            PassphraseError: the passphrase is missing, or does not open a key that one names.
            ForkError: this process is a fork of the one that made the keyring.
        """
        failure: InvalidTag | PassphraseError | None = None
        for recipient in recipients:
            if recipient.provider != PROVIDER or recipient.key not in self.key_ids:
                continue
            if recipient.wrapped is None or recipient.share is not None:
                continue
            try:
                cipher = self._cipher(recipient.key)
                return _unwrap(cipher, recipient.wrapped, wrap_binding(encryption_context))
            except (InvalidTag, PassphraseError) as error:
                failure = failure or error
        try:
            raise failure or no_recipient(
                recipients, f"the key file {self.path} has {', '.join(self.key_ids)}"
            )
        finally:
            del failure  # Whose traceback holds this frame: the two would outlive their use.

    def _cipher(self, key_id: str) -> AESGCM:
        # Before the lock, which another thread may have held at the moment of the fork.
        if os.getpid() != self._process:
            raise ForkError(
                "this keyring belongs to the process that made it; make one in the fork"
            )
        with self._lock:
            cipher = self._opened.get(key_id)
            if cipher is None:
                try:
                    cipher = _unseal(self._sealed[key_id], self._passphrase.get(), self.path)
                except PassphraseError:
                    self._passphrase.forget()
                    raise
                self._opened[key_id] = cipher
                if len(self._opened) == len(self.key_ids):
                    self._passphrase.close()
            return cipher

    def __repr__(self) -> str:
        return f"<LocalKeyring {self.path}>"

    def __reduce__(self) -> str:
        raise TypeError("a LocalKeyring is neither pickled nor copied")


def from_uri(path: str, parameters: Mapping[str, str]) -> LocalKeyring:
    """Make the keyring of `local:PATH?NAME=VALUE`; a passphrase is read from its source now.

    Args:
        path: the key file.
        parameters: nothing, or one of passphrase_file, passphrase_fd and passphrase_env.

    Raises:
        ValueError: other parameters, or no path.
        KeyUnavailableError: as LocalKeyring, or the passphrase could not be read.
    """
    unknown = sorted(parameters.keys() - _PASSPHRASE_SOURCES.keys())
    if unknown:
        raise ValueError(
            f"a local keyring has no parameter {unknown[0]!r}, only {', '.join(_PASSPHRASE_SOURCES)}"
        )
    if len(parameters) > 1:
        raise ValueError(f"only one of {', '.join(_PASSPHRASE_SOURCES)} can be given")
    if not path:
        raise ValueError("a local keyring needs the path of a key file: local:PATH")
    passphrase = None
    for name, value in parameters.items():
        passphrase = _PASSPHRASE_SOURCES[name](value)
    return LocalKeyring(path, passphrase)


# Making key files


def create_key_file(
    path: str | os.PathLike[str],
    passphrase: Passphrase | Callable[[], Passphrase] | None = None,
) -> str:
    """Make a key file with one new key, for its owner alone (mode 0600), and return the key's id.

    The file appears under its name when it is complete and on disk.

    Args:
        path: where there is nothing yet.
        passphrase: to put the key under, or a function that returns it; None: under none.

    Raises:
        FileExistsError: something stands at the path; it is left as it is.
        PassphraseError: the passphrase is empty or too long.
        OSError: the file could not be written.
    """
    try:
        holder = None if passphrase is None else _PassphraseHolder(passphrase, path)
    finally:
        del passphrase
    name = os.fspath(path)
    if os.path.lexists(name):
        # Said before a passphrase is asked for; os.link() below says it for good.
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    secret = None if holder is None else holder.get()
    key_id, line = _new_key(secret)
    if holder is not None:
        holder.close()
    temporary = _beside(name, os.urandom(8).hex())
    try:
        _write(temporary, [_FIRST_LINE, _COMMENT, *line])
        os.link(temporary, name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_directory(name)
    return key_id


def add_key(
    path: str | os.PathLike[str],
    passphrase: Passphrase | Callable[[], Passphrase] | None = None,
) -> str:
    """Add a new key to a key file, make it the current one, and return its id.

    The file is replaced in one step, by one process at a time; at every instant it is either the
    old one or the new one. Where the keys are under a passphrase, so is the new one.

    Args:
        path: a key file.
        passphrase: as for LocalKeyring; it must open the key that is the current one now.

    Raises:
        KeyUnavailableError: as LocalKeyring.
        PassphraseError: the passphrase is missing, does not open the current key, or the file is
            under none.
        LimitError: the file has 1024 keys, or is too long to take another.
        OSError: the new file could not be written; the old one is as it was.
    """
    try:
        holder = _PassphraseHolder(passphrase, path)
    finally:
        del passphrase
    # Where the path is a symlink, what it points to is replaced, not the symlink.
    name = os.path.realpath(path)
    with _lock_key_file(name) as fd, _read(fd, name) as text:
        keys = _parse(text, name)
        holder.check_fits(keys, name)
        if len(keys.ids) == MAX_KEYS:
            raise LimitError(f"the key file {name} has {MAX_KEYS} keys, as many as it can")
        secret = None
        if keys.sealed:
            secret = holder.get()
            _unseal(keys.sealed[keys.ids[-1]], secret, name)
        key_id, line = _new_key(secret)
        holder.close()
        if len(text) + sum(map(len, line)) > MAX_FILE_SIZE or keys.lines == MAX_LINES:
            raise LimitError(f"the key file {name} is too long for another key: remove comments")
        # One name suffices under the lock: what stands there is of a process that was killed.
        temporary = _beside(name, "new")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        _write(temporary, [text, *line])
        try:
            os.replace(temporary, name)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_directory(name)
    return key_id


def _new_key(passphrase: SecretBuffer | None) -> tuple[str, list[bytes | SecretBuffer]]:
    """Return a new key's id and the parts of its line."""
    with contextlib.closing(SecretBuffer.random(KEY_SIZE)) as key:
        key_id = _key_id(key)
        start = f"key {key_id} created={datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} "
        if passphrase is None:
            return key_id, [f"{start}secret=".encode(), key.to_hex(), b"\n"]
        salt = os.urandom(SALT_SIZE)
        start += f"argon2id={MEMORY_KIB}:{ITERATIONS}:{LANES}:{salt.hex()} sealed="
        cipher = _derive(passphrase, salt, MEMORY_KIB, ITERATIONS, LANES)
        nonce = os.urandom(NONCE_SIZE)
        with key:
            sealed = nonce + cipher.encrypt(nonce, key, _FIRST_LINE + start.encode())
        return key_id, [f"{start}{sealed.hex()}\n".encode()]


def _beside(path: str, suffix: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.tapeseal-{suffix}")


def _write(path: str, parts: Sequence[bytes | SecretBuffer]) -> None:
    """Write a new file of mode 0600 to disk, or leave none."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(fd, 0o600)  # Whatever the umask took away.
        for part in parts:
            with part if isinstance(part, SecretBuffer) else contextlib.nullcontext():
                view = memoryview(part)
                while view:
                    view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def _sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _lock_key_file(path: str) -> Iterator[int]:
    """Open a key file and wait until no other process adds a key to it."""
    while True:
        with _open_private(path, _KEY_FILE) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Who held the lock before may have put a new file in this one's place.
            try:
                current = os.path.samestat(os.fstat(fd), os.stat(path))
            except FileNotFoundError:
                current = False
            if current:
                yield fd
                return


# Reading key files


class _SealedKey(NamedTuple):
    """A key under a passphrase, as its line says it."""

    id: str
    line: int
    memory_kib: int
    iterations: int
    lanes: int
    salt: bytes
    sealed: bytes
    bound: bytes
    """The first line and this key's up to the sealed bytes: what cannot be changed unnoticed."""


class _Keys(NamedTuple):
    """What a key file holds: its keys are all open, or all under a passphrase."""

    ids: tuple[str, ...]
    opened: dict[str, AESGCM]
    sealed: dict[str, _SealedKey]
    lines: int


class _Private(NamedTuple):
    """A kind of file that nobody but its owner may have access to."""

    name: str
    flags: int
    kinds: tuple[Callable[[int], bool], ...]
    kinds_text: str
    if_missing: str


# Opened without waiting, so that a pipe is refused and not waited for.
_KEY_FILE = _Private(
    "key file",
    os.O_NONBLOCK,
    (stat.S_ISREG,),
    "regular file",
    "make one with: tapeseal keygen {path}",
)
# A pipe is what a shell gives for <(command).
_PASSPHRASE_FILE = _Private(
    "passphrase file",
    0,
    (stat.S_ISREG, stat.S_ISFIFO),
    "regular file or pipe",
    "is the path right?",
)


@contextlib.contextmanager
def _open_private(path: str, kind: _Private) -> Iterator[int]:
    """Open a file for reading that belongs to this user, or root, and is closed to all others."""
    quoted = shlex.quote(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | kind.flags)
    except FileNotFoundError:
        hint = kind.if_missing.format(path=quoted)
        raise KeyUnavailableError(f"there is no {kind.name} {path}; {hint}") from None
    except OSError as error:
        raise KeyUnavailableError(
            f"the {kind.name} {path} could not be opened: {error.strerror}"
        ) from None
    try:
        # Of the file itself, wherever symlinks led: Kubernetes mounts secrets behind some.
        status = os.fstat(fd)
        if not any(is_kind(status.st_mode) for is_kind in kind.kinds):
            raise KeyUnavailableError(f"the {kind.name} {path} is no {kind.kinds_text}")
        if status.st_uid not in (os.geteuid(), 0):
            raise KeyUnavailableError(
                f"the {kind.name} {path} belongs to another user (uid {status.st_uid}), who could "
                f"change it; run as that user, or: chown {os.geteuid()} {quoted}"
            )
        if status.st_mode & 0o077:
            raise KeyUnavailableError(
                f"the {kind.name} {path} is not its owner's alone "
                f"(mode {stat.S_IMODE(status.st_mode):04o}); run: chmod 600 {quoted}"
            )
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _read(fd: int, path: str) -> Iterator[SecretBuffer]:
    """Read a key file into memory that is wiped in the end."""
    size = os.fstat(fd).st_size
    if not 1 <= size <= MAX_FILE_SIZE:
        raise KeyUnavailableError(
            f"the key file {path} has {size} bytes; 1 to {MAX_FILE_SIZE} are allowed"
        )
    try:
        text = SecretBuffer.read(fd, size)
    except OSError as error:
        raise KeyUnavailableError(
            f"the key file {path} could not be read: {error.strerror}"
        ) from None
    except EOFError:
        raise KeyUnavailableError(f"the key file {path} was cut while it was read") from None
    with contextlib.closing(text):
        yield text


def _parse(text: SecretBuffer, path: str) -> _Keys:
    """Check each line of a key file; open its keys, or note how to open those under a passphrase.

    Of the match objects only groups that are no secret may be asked for: a group is a bytes object.
    """
    opened: dict[str, AESGCM] = {}
    sealed: dict[str, _SealedKey] = {}
    number = start = 0

    def refuse(problem: str) -> KeyUnavailableError:
        return KeyUnavailableError(f"the key file {path}, line {number}: {problem}")

    with text, memoryview(text) as view:
        while start < len(view):
            number += 1
            if number > MAX_LINES:
                raise refuse(f"{MAX_LINES} lines are allowed")
            line = _LINE.match(view, start)
            if line is None:
                raise refuse("the file ends in the middle of it")
            end = line.end() - 1
            if number == 1:
                if view[start : end + 1] != _FIRST_LINE:
                    raise refuse(f"a key file starts with {_FIRST_LINE.decode().rstrip()!r}")
            elif not _IGNORED.fullmatch(view, start, end):
                found = _KEY.fullmatch(view, start, end)
                if found is None:
                    raise refuse("it is not a key in the layout that the documentation states")
                key_id, created = found["id"].decode(), found["created"].decode()
                if key_id in opened or key_id in sealed:
                    raise refuse(f"the key {key_id} is there twice")
                if len(opened) + len(sealed) == MAX_KEYS:
                    raise refuse(f"{MAX_KEYS} keys are allowed")
                if not _is_time(created):
                    raise refuse("there is no such time as it was created")
                secret_start, secret_stop = found.span("secret")
                if secret_start >= 0:
                    cipher = _open_plain(text, secret_start, secret_stop, key_id)
                    if cipher is None:
                        raise refuse(f"the secret is not that of the key {key_id}; it was changed")
                    opened[key_id] = cipher
                else:
                    sealed[key_id] = _SealedKey(
                        key_id,
                        number,
                        int(found["memory_kib"]),
                        int(found["iterations"]),
                        int(found["lanes"]),
                        bytes.fromhex(found["salt"].decode()),
                        bytes.fromhex(found["sealed"].decode()),
                        _FIRST_LINE + bytes(view[start : found.start("sealed")]),
                    )
                    if not _is_affordable(sealed[key_id]):
                        raise refuse("its argon2id parameters are out of range")
                if opened and sealed:
                    raise refuse("either all keys of a file are under its passphrase or none is")
            start = end + 1
    ids = (*opened, *sealed)
    if not ids:
        raise KeyUnavailableError(f"the key file {path} holds no key")
    return _Keys(ids, opened, sealed, number)


def _open_plain(text: SecretBuffer, start: int, stop: int, key_id: str) -> AESGCM | None:
    try:
        key = SecretBuffer.from_hex(text, start, stop)
    except ValueError:
        return None
    with contextlib.closing(key):
        return AESGCM(key) if _key_id(key) == key_id else None


def _key_id(key: SecretBuffer) -> str:
    """Return the id of a wrapping key: 8 bytes that derive from it, in hexadecimal digits."""
    derived = hkdf_expand(key, _ID_INFO, ID_SIZE)
    with derived, memoryview(derived) as view:
        return view.hex()


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_affordable(key: _SealedKey) -> bool:
    # RFC 9106, 3.1: at least 8 KiB for each lane.
    return (
        key.lanes <= MAX_LANES
        and key.iterations <= MAX_ITERATIONS
        and 8 * key.lanes <= key.memory_kib <= MAX_MEMORY_KIB
    )


def _unwrap(cipher: AESGCM, wrapped: str, binding: bytes) -> DataKey:
    try:
        sealed = base64.b64decode(wrapped, validate=True)
    except ValueError:
        sealed = b""
    # The size is checked first, so that what opens is always a data key's 32 bytes.
    if len(sealed) != _SEALED_SIZE or base64.b64encode(sealed).decode() != wrapped:
        raise InvalidTag()
    return DataKey(cipher.decrypt_secret(sealed[:NONCE_SIZE], sealed[NONCE_SIZE:], binding))


def _unseal(key: _SealedKey, passphrase: SecretBuffer, path: str) -> AESGCM:
    """Open a key under a passphrase."""
    cipher = _derive(passphrase, key.salt, key.memory_kib, key.iterations, key.lanes)
    wrong = PassphraseError(
        f"the passphrase does not open the key {key.id} of {path}, or line {key.line} was changed"
    )
    try:
        secret = cipher.decrypt_secret(key.sealed[:NONCE_SIZE], key.sealed[NONCE_SIZE:], key.bound)
    except InvalidTag:
        raise wrong from None
    with contextlib.closing(secret):
        if _key_id(secret) != key.id:
            raise wrong
        return AESGCM(secret)


def _derive(
    passphrase: SecretBuffer, salt: bytes, memory_kib: int, iterations: int, lanes: int
) -> AESGCM:
    """Return the key that Argon2id (RFC 9106) makes of a passphrase."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    derived = bytearray(KEY_SIZE)
    try:
        argon2id = Argon2id(
            salt=salt, length=KEY_SIZE, iterations=iterations, lanes=lanes, memory_cost=memory_kib
        )
    except UnsupportedAlgorithm:
        raise KeyUnavailableError(
            "the installed cryptography has no Argon2id, which passphrases need; "
            "its wheels from PyPI have it"
        ) from None
    # OpenSSL copies the passphrase into the parameters that cryptography makes, and does not wipe it.
    with passphrase, memoryview(passphrase) as view:
        argon2id.derive_into(view, derived)  # type: ignore[arg-type]  # It takes any buffer.
    with contextlib.closing(SecretBuffer.take(derived)) as key:
        return AESGCM(key)


# Passphrases


class _PassphraseHolder:
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

    def check_fits(self, keys: _Keys, path: str) -> None:
        """Refuse a passphrase for a file without: another file may have taken its place."""
        if self._ask is None and not keys.sealed:
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


def passphrase_from_terminal(prompt: str, *, confirm: bool = False) -> SecretBuffer:
    """Ask for a passphrase on the terminal, unseen; with `confirm` twice.

    A terminal gives text, of which copies stay in Python's memory until that is used again.

    Raises:
        PassphraseError: there is no terminal, or what was typed is empty, too long or not the same.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise PassphraseError(
            "a passphrase is needed, and there is no terminal to ask: give it as "
            "local:FILE?passphrase_file=PATH, ?passphrase_fd=NUMBER or ?passphrase_env=NAME"
        ) from None
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
    with _open_private(path, _PASSPHRASE_FILE) as fd:
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


_PASSPHRASE_SOURCES: dict[str, Callable[[str], SecretBuffer]] = {
    "passphrase_file": passphrase_from_file,
    "passphrase_fd": _passphrase_from_fd_text,
    "passphrase_env": passphrase_from_env,
}
