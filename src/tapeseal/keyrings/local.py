"""Wrapping keys in a file of one's own, optionally under a passphrase (docs/key-file.md)."""

import base64
import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tapeseal import audit
from tapeseal._core import AESGCM, KEY_SIZE, NONCE_SIZE, TAG_SIZE, SecretBuffer, hkdf_expand
from tapeseal.datakey import DataKey, first_few, no_recipient
from tapeseal.errors import (
    ForkError,
    InvalidTag,
    KeyUnavailableError,
    LimitError,
    PassphraseError,
)
from tapeseal.files import has_name, new_file, sync_directory, write_all
from tapeseal.keyrings.passphrase import (
    LOG2_N,
    P,
    Passphrase,
    PassphraseHolder,
    R,
    passphrase_from_parameters,
    stretch,
)
from tapeseal.keyrings.private import KEY_FILE, open_private
from tapeseal.layout import Recipient, wrap_binding

PROVIDER = "local"

MAX_FILE_SIZE = 1 << 20
MAX_LINES = 4096
MAX_KEYS = 1024

SALT_SIZE = 16
# What a file may demand of the machine that opens it.
MIN_LOG2_N, MAX_LOG2_N, MAX_R, MAX_P = 10, 20, 32, 16
MAX_KDF_MEMORY = 1 << 30

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
    rb"|scrypt=(?P<log2_n>[1-9]\d?):(?P<r>[1-9]\d?):(?P<p>[1-9]\d?)"
    rb":(?P<salt>[0-9a-f]{%d}) sealed=(?P<sealed>[0-9a-f]{%d}))"
    % (2 * ID_SIZE, 2 * KEY_SIZE, 2 * SALT_SIZE, 2 * _SEALED_SIZE)
)


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
            self._passphrase = PassphraseHolder(passphrase, path)
        finally:
            del passphrase  # So that no traceback that shows variables shows it.
        with open_private(self.path, KEY_FILE) as fd, _read(fd, self.path) as text:
            keys = _parse(text, self.path)
        self._passphrase.check_fits(bool(keys.sealed), self.path)
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
        with audit.operation("key.generate", f"{PROVIDER}:{self.key_ids[-1]}", file=self.path):
            data_key = DataKey.generate()
            try:
                return data_key, self._wrap(data_key, encryption_context)
            except BaseException:
                data_key.close()
                raise

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Wrap an existing data key under the current key; errors as generate()."""
        with audit.operation("key.wrap", f"{PROVIDER}:{self.key_ids[-1]}", file=self.path):
            return self._wrap(data_key, encryption_context)

    def _wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
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
                with audit.operation("key.unwrap", f"{PROVIDER}:{recipient.key}", file=self.path):
                    cipher = self._cipher(recipient.key)
                    return _unwrap(cipher, recipient.wrapped, wrap_binding(encryption_context))
            except (InvalidTag, PassphraseError) as error:
                failure = failure or error
        try:
            raise failure or no_recipient(
                recipients, f"the key file {self.path} has {first_few(self.key_ids)}"
            )
        finally:
            del failure  # Whose traceback holds this frame: the two would outlive their use.

    def pending(self) -> list[Recipient]:
        """Name the recipient of wrap(): the current key."""
        return [Recipient(PROVIDER, self.key_ids[-1], None)]

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
    if not path:
        raise ValueError("a local keyring needs the path of a key file: local:PATH")
    return LocalKeyring(path, passphrase_from_parameters(parameters, PROVIDER))


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
        holder = None if passphrase is None else PassphraseHolder(passphrase, path)
    finally:
        del passphrase
    with audit.operation("key_file.create", os.path.abspath(path)) as entry:
        with new_file(path, 0o600, replace=False) as fd:
            key_id, line = _new_key(None if holder is None else holder.get())
            if holder is not None:
                holder.close()
            _write(fd, [_FIRST_LINE, _COMMENT, *line])
        sync_directory(path)
        entry.version = key_id
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
        holder = PassphraseHolder(passphrase, path)
    finally:
        del passphrase
    # Where the path is a symlink, what it points to is replaced, not the symlink.
    name = os.path.realpath(path)
    with (
        audit.operation("key_file.add", name) as entry,
        _lock_key_file(name) as fd,
        _read(fd, name) as text,
    ):
        keys = _parse(text, name)
        holder.check_fits(bool(keys.sealed), name)
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
        temporary = Path(name).with_name(f".{os.path.basename(name)}.tapeseal-new")
        temporary.unlink(missing_ok=True)
        with new_file(name, 0o600, replace=True, temporary=temporary) as new_fd:
            _write(new_fd, [text, *line])
        sync_directory(name)
        entry.version = key_id
    return key_id


def _new_key(passphrase: SecretBuffer | None) -> tuple[str, list[bytes | SecretBuffer]]:
    """Return a new key's id and the parts of its line."""
    with contextlib.closing(SecretBuffer.random(KEY_SIZE)) as key:
        key_id = _key_id(key)
        start = f"key {key_id} created={datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} "
        if passphrase is None:
            return key_id, [f"{start}secret=".encode(), key.to_hex(), b"\n"]
        salt = os.urandom(SALT_SIZE)
        start += f"scrypt={LOG2_N}:{R}:{P}:{salt.hex()} sealed="
        cipher = _derive(passphrase, salt, LOG2_N, R, P)
        nonce = os.urandom(NONCE_SIZE)
        with key:
            sealed = nonce + cipher.encrypt(nonce, key, _FIRST_LINE + start.encode())
        return key_id, [f"{start}{sealed.hex()}\n".encode()]


def _write(fd: int, parts: Sequence[bytes | SecretBuffer]) -> None:
    """Write a new file to disk, for its owner alone."""
    os.fchmod(fd, 0o600)  # Whatever the umask took away.
    for part in parts:
        with part if isinstance(part, SecretBuffer) else contextlib.nullcontext():
            write_all(fd, part)
    os.fsync(fd)


@contextlib.contextmanager
def _lock_key_file(path: str) -> Iterator[int]:
    """Open a key file and wait until no other process adds a key to it."""
    while True:
        with open_private(path, KEY_FILE) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Who held the lock before may have put a new file in this one's place.
            if has_name(fd, path):
                yield fd
                return


# Reading key files


class _SealedKey(NamedTuple):
    """A key under a passphrase, as its line says it."""

    id: str
    line: int
    log2_n: int
    r: int
    p: int
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
                        int(found["log2_n"]),
                        int(found["r"]),
                        int(found["p"]),
                        bytes.fromhex(found["salt"].decode()),
                        bytes.fromhex(found["sealed"].decode()),
                        _FIRST_LINE + bytes(view[start : found.start("sealed")]),
                    )
                    if not _is_affordable(sealed[key_id]):
                        raise refuse("its scrypt parameters are out of range")
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
    return (
        # RFC 7914, 2: N is less than 2**(16 * r).
        MIN_LOG2_N <= key.log2_n <= min(MAX_LOG2_N, 16 * key.r - 1)
        and key.r <= MAX_R
        and key.p <= MAX_P
        and 128 * key.r << key.log2_n <= MAX_KDF_MEMORY
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
    cipher = _derive(passphrase, key.salt, key.log2_n, key.r, key.p)
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


def _derive(passphrase: SecretBuffer, salt: bytes, log2_n: int, r: int, p: int) -> AESGCM:
    """Return the key that scrypt makes of a passphrase."""
    with contextlib.closing(stretch(passphrase, salt, log2_n, r, p)) as key:
        return AESGCM(key)
