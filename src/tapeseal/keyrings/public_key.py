"""Wrapping under a public key: the post-quantum hybrid by HPKE, or RSA-OAEP (docs/public-key.md)."""

import base64
import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self, cast

from cryptography import x509
from cryptography.exceptions import InvalidTag as NotOpenedError
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from tapeseal import audit
from tapeseal._core import TAG_SIZE, SecretBuffer
from tapeseal.datakey import DataKey, no_recipient
from tapeseal.errors import (
    ForkError,
    InvalidTag,
    KeyUnavailableError,
    PassphraseError,
    WrappedKeyError,
    WrappingKeyError,
)
from tapeseal.files import new_file, sync_directory, write_all
from tapeseal.keyrings.passphrase import (
    LOG2_N,
    P,
    Passphrase,
    PassphraseHolder,
    R,
    passphrase_from_parameters,
    stretch,
)
from tapeseal.keyrings.private import PRIVATE_HALF, PUBLIC_HALF, check_private, open_private
from tapeseal.layout import KEY_SIZE, Recipient, wrap_binding

PROVIDER = "public-key"

MAX_FILE_SIZE = 1 << 16
MIN_RSA_BITS, MAX_RSA_BITS = 3072, 16384

_HPKE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_HPKE_SIZE = hpke.KEM.MLKEM768_X25519.enc_length() + KEY_SIZE + TAG_SIZE

_BLOCK = re.compile(
    rb"-----BEGIN (?P<label>[A-Z0-9 ]{1,40})-----\r?\n[A-Za-z0-9+/=\r\n]+-----END (?P=label)-----"
)
_DASHES = re.compile(rb"-----")
_SEALED = "ENCRYPTED PRIVATE KEY"
_SALT_SIZE = 16

# Object identifiers in DER.
_OID_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_OID_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_OID_AES_256_CBC = bytes.fromhex("060960864801650304012a")

_Public = hpke.MLKEM768X25519PublicKey | RSAPublicKey
_Private = hpke.MLKEM768X25519PrivateKey | RSAPrivateKey


class PublicKeyKeyring:
    """A keyring over a public key, which wraps, and where its private half is at hand, unwraps.

    The file holds a hybrid key, as `tapeseal keygen --public` makes it: two PEM blocks, ML-KEM-768
    and then X25519; or an RSA key of 3072 bits and more as PEM, or a certificate of one. The file
    is read once, here. Threads may share the keyring; a fork can wrap with it, and not unwrap.

    Args:
        path: the file of either half.
        passphrase: what the private half is under; or a function that returns it, called here if
            it is needed; or None: the terminal is asked, if the file needs one.

    Raises:
        KeyUnavailableError: there is no such file, it holds no such key, others can change it, or
            it holds the private half and is not the user's alone.
        PassphraseError: the passphrase does not open the file, or the file is under none.
    """

    path: str
    key_id: str
    """What names the key in a tape's header."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        passphrase: Passphrase | Callable[[], Passphrase] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        try:
            holder = PassphraseHolder(passphrase, path)
        finally:
            del passphrase  # So that no traceback that shows variables shows it.
        try:
            self.key_id, self._public, self._private = _read(self.path, holder)
        finally:
            holder.close()
        self._process = os.getpid()

    @classmethod
    def of_public_half(cls, text: bytes, name: str) -> Self:
        """Make a keyring that only encrypts, from the text of a public half; `name` stands for a path.

        Raises:
            KeyUnavailableError: it holds no public key of those that a file may.
        """
        keyring = cls.__new__(cls)
        keyring.path = name
        with memoryview(text) as view:
            keyring.key_id, keyring._public, keyring._private = _parse(
                view, name, PassphraseHolder(None, name)
            )
        if keyring._private is not None:
            raise KeyUnavailableError(f"{name} holds the private half, which belongs nowhere else")
        keyring._process = os.getpid()
        return keyring

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Make a data key and wrap it."""
        with audit.operation("key.generate", f"{PROVIDER}:{self.key_id}", file=self.path):
            data_key = DataKey.generate()
            try:
                return data_key, self._wrap(data_key, encryption_context)
            except BaseException:
                data_key.close()
                raise

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Wrap an existing data key."""
        with audit.operation("key.wrap", f"{PROVIDER}:{self.key_id}", file=self.path):
            return self._wrap(data_key, encryption_context)

    def _wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        wrapped = _wrap(self._public, data_key.secret, wrap_binding(encryption_context))
        return [Recipient(PROVIDER, self.key_id, base64.b64encode(wrapped).decode())]

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Unwrap the data key from the first recipient that the private half opens.

        Raises:
            KeyUnavailableError: no recipient is of this key; a WrappingKeyError: one is, and only the
                public half is here.
            InvalidTag: one is, and what it wraps or the encryption context was changed.
            ForkError: this process is a fork of the one that made the keyring.
        """
        if os.getpid() != self._process:
            raise ForkError(
                "this keyring belongs to the process that made it; make one in the fork"
            )
        failure: InvalidTag | None = None
        for recipient in recipients:
            if (recipient.provider, recipient.key) != (PROVIDER, self.key_id):
                continue
            if recipient.wrapped is None or recipient.share is not None:
                continue
            if self._private is None:
                raise WrappingKeyError(
                    f"{self.path} is the public half of {PROVIDER}:{self.key_id}, which only "
                    "encrypts; the file of its private half opens"
                )
            try:
                with audit.operation("key.unwrap", f"{PROVIDER}:{self.key_id}", file=self.path):
                    return _unwrap(self._private, recipient, wrap_binding(encryption_context))
            except InvalidTag as error:
                failure = failure or error
        try:
            raise failure or no_recipient(recipients, f"{self.path} is {self.key_id}")
        finally:
            del failure  # Whose traceback holds this frame.

    def pending(self) -> list[Recipient]:
        """Name the recipient of wrap(): the key."""
        return [Recipient(PROVIDER, self.key_id, None)]

    def __repr__(self) -> str:
        return f"<PublicKeyKeyring {self.path}>"

    def __reduce__(self) -> str:
        raise TypeError("a PublicKeyKeyring is neither pickled nor copied")


def from_uri(path: str, parameters: Mapping[str, str]) -> PublicKeyKeyring:
    """Make the keyring of `public-key:PATH?NAME=VALUE`; a passphrase is read from its source now.

    Args:
        path: the file of either half.
        parameters: nothing, or one of passphrase_file, passphrase_fd and passphrase_env.

    Raises:
        ValueError: other parameters, or no path.
        KeyUnavailableError: as PublicKeyKeyring, or the passphrase could not be read.
    """
    if not path:
        raise ValueError("a public-key keyring needs the path of a file: public-key:PATH")
    return PublicKeyKeyring(path, passphrase_from_parameters(parameters, PROVIDER))


# Wrapping


def _oaep(binding: bytes) -> padding.OAEP:
    sha256 = hashes.SHA256()
    return padding.OAEP(padding.MGF1(sha256), sha256, hashlib.sha256(binding).digest())


def _wrap(public: _Public, secret: SecretBuffer, binding: bytes) -> bytes:
    with secret, memoryview(secret) as view:
        if not isinstance(public, RSAPublicKey):
            return _HPKE.encrypt(view, public, binding)
        # It takes bytes alone. They have one holder, and are wiped.
        plain = [bytes(view)]
        try:
            return public.encrypt(plain[0], _oaep(binding))
        finally:
            SecretBuffer.take_bytes(plain.pop()).close()


def _unwrap(private: _Private, recipient: Recipient, binding: bytes) -> DataKey:
    wrapped = cast(str, recipient.wrapped)
    try:
        sealed = base64.b64decode(wrapped, validate=True)
        if base64.b64encode(sealed).decode() != wrapped:
            raise ValueError
        # What they hand back is wiped at once. Nobody else holds it.
        if isinstance(private, RSAPrivateKey):
            secret = SecretBuffer.take_bytes(private.decrypt(sealed, _oaep(binding)))
        elif len(sealed) != _HPKE_SIZE:
            raise ValueError
        else:
            secret = SecretBuffer.take_bytes(_HPKE.decrypt(sealed, private, binding))
        return DataKey(secret)
    except (NotOpenedError, ValueError):
        # One error for all: which step failed is what an attacker of RSA wants to know.
        raise WrappedKeyError(
            f"{PROVIDER}:{recipient.key} does not open: what is wrapped for it, or the encryption "
            "context, was changed"
        ) from None


# Reading the files


class _Keys(NamedTuple):
    key_id: str
    public: _Public
    private: _Private | None


def _read(path: str, holder: PassphraseHolder) -> _Keys:
    """Return the key that a file holds, and its private half if that is what it holds."""

    def refuse(problem: str) -> KeyUnavailableError:
        return KeyUnavailableError(f"the key file {path}: {problem}")

    with open_private(path, PUBLIC_HALF) as fd:
        size = os.fstat(fd).st_size
        if not 1 <= size <= MAX_FILE_SIZE:
            raise refuse(f"it has {size} bytes; 1 to {MAX_FILE_SIZE} are allowed")
        try:
            text = SecretBuffer.read(fd, size)
        except OSError as error:
            raise refuse(f"it could not be read: {error.strerror}") from None
        except EOFError:
            raise refuse("it was cut while it was read") from None
        with contextlib.closing(text), text, memoryview(text) as view:
            if any("PRIVATE" in label for label, _ in _blocks(view)):
                check_private(fd, path, PRIVATE_HALF)
            return _parse(view, path, holder)


def _parse(text: memoryview, path: str, holder: PassphraseHolder) -> _Keys:
    """Return the key that a text in PEM holds; `path` is for errors."""

    def refuse(problem: str) -> KeyUnavailableError:
        return KeyUnavailableError(f"the key file {path}: {problem}")

    blocks = _blocks(text)
    if not blocks:
        raise refuse("it is not made of PEM blocks, or one of them is not whole")
    holder.check_fits(any(label == _SEALED for label, _ in blocks), path)
    keys: list[object] = []
    for number, (label, block) in enumerate(blocks, 1):
        passphrase = holder.get() if label == _SEALED else None
        try:
            keys.append(_load(label, block, passphrase))
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            if passphrase is not None and isinstance(error, ValueError):
                raise PassphraseError(
                    f"the passphrase does not open the key file {path}, or it was changed"
                ) from None
            raise refuse(f"no key can be read from its block {number}, {label}") from None
    match keys:
        case [MLKEM768PrivateKey() as kem, X25519PrivateKey() as dh]:
            public = _hybrid(kem.public_key(), dh.public_key())
            return public._replace(private=hpke.MLKEM768X25519PrivateKey(kem, dh))
        case [MLKEM768PublicKey() as kem_public, X25519PublicKey() as dh_public]:
            return _hybrid(kem_public, dh_public)
        case [RSAPrivateKey() | RSAPublicKey() as rsa]:
            if not MIN_RSA_BITS <= rsa.key_size <= MAX_RSA_BITS:
                raise refuse(
                    f"its RSA key has {rsa.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are allowed"
                )
            if isinstance(rsa, RSAPrivateKey):
                return _rsa(rsa.public_key())._replace(private=rsa)
            return _rsa(rsa)
    raise refuse(
        "it holds neither two blocks, ML-KEM-768 and then X25519, of one half, nor one RSA key"
    )


def _blocks(text: memoryview) -> list[tuple[str, memoryview]]:
    """Return the PEM blocks of a text by their labels; nothing where it holds what looks like one and is none."""
    blocks = []
    at = 0
    for found in _BLOCK.finditer(text):
        if _DASHES.search(text, at, found.start()):
            return []
        at = found.end()
        blocks.append((found["label"].decode(), text[found.start() : at]))
    return [] if _DASHES.search(text, at) else blocks


def _load(label: str, block: memoryview, passphrase: SecretBuffer | None) -> object:
    if label in ("PUBLIC KEY", "RSA PUBLIC KEY"):
        return load_pem_public_key(bytes(block))
    if label == "CERTIFICATE":
        return x509.load_pem_x509_certificate(bytes(block)).public_key()
    if label in ("PRIVATE KEY", "RSA PRIVATE KEY"):
        return load_pem_private_key(block, None)
    if passphrase is None:
        raise ValueError
    with passphrase, memoryview(passphrase) as view:
        # It takes any buffer, whatever its type annotation says.
        return load_pem_private_key(block, cast(bytes, view))


def _hybrid(kem: MLKEM768PublicKey, dh: X25519PublicKey) -> _Keys:
    key_id = hashlib.sha256(kem.public_bytes_raw() + dh.public_bytes_raw()).hexdigest()
    return _Keys(f"hpke:{key_id}", hpke.MLKEM768X25519PublicKey(kem, dh), None)


def _rsa(public: RSAPublicKey) -> _Keys:
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return _Keys(f"rsa:{hashlib.sha256(der).hexdigest()}", public, None)


# Making key files


def create_key_pair(
    path: str | os.PathLike[str],
    passphrase: Passphrase | Callable[[], Passphrase] | None = None,
) -> str:
    """Make a new hybrid key, the private half in a file of its owner's alone, and return the key's id.

    The public half goes to the file of that name with .pub behind it. Each appears when it is
    complete and on disk, the private half first.

    Args:
        path: where there is nothing yet, nor at path.pub.
        passphrase: to put the private half under, or a function that returns it; None: under none.

    Raises:
        FileExistsError: something stands at one of the paths; it is left as it is.
        PassphraseError: the passphrase is empty or too long.
        OSError: a file could not be written.
    """
    try:
        holder = None if passphrase is None else PassphraseHolder(passphrase, path)
    finally:
        del passphrase
    private = os.fspath(path)
    public = f"{private}.pub"
    if os.path.lexists(public):
        raise FileExistsError(errno.EEXIST, "the file exists", public)
    with audit.operation("key_file.create", os.path.abspath(private)) as entry:
        entry.version = key_id = _create_key_pair(private, public, holder)
    return key_id


def _create_key_pair(private: str, public: str, holder: PassphraseHolder | None) -> str:
    keys = (MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())
    with new_file(private, 0o600, replace=False) as fd:
        os.fchmod(fd, 0o600)  # Whatever the umask took away.
        secret = None if holder is None else holder.get()
        for key in keys:
            with contextlib.closing(_private_block(key, secret)) as block, block:
                write_all(fd, block)
        if holder is not None:
            holder.close()
        os.fsync(fd)
    try:
        with new_file(public, 0o644, replace=False) as fd:
            os.fchmod(fd, 0o644)
            for key in keys:
                public_key = key.public_key()
                write_all(
                    fd, public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                )
            os.fsync(fd)
    except BaseException:
        os.unlink(private)  # Nothing was encrypted to it yet.
        raise
    sync_directory(private)
    return _hybrid(keys[0].public_key(), keys[1].public_key()).key_id


def _private_block(
    key: MLKEM768PrivateKey | X25519PrivateKey, passphrase: SecretBuffer | None
) -> SecretBuffer:
    """Return a key as a PEM block, under the passphrase if there is one."""
    if passphrase is None:
        return SecretBuffer.take_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
    plain = SecretBuffer.take_bytes(
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    )
    with contextlib.closing(plain):
        return SecretBuffer.take(bytearray(_encrypted(plain, passphrase)))


def _encrypted(plain: SecretBuffer, passphrase: SecretBuffer) -> bytes:
    """Return the PEM block of a PKCS #8 key under a passphrase, by PBES2 with scrypt (RFC 8018, RFC 7914).

    Not by `cryptography`: it would stretch the passphrase with 2048 rounds of PBKDF2.
    """
    salt, iv = os.urandom(_SALT_SIZE), os.urandom(16)
    key = stretch(passphrase, salt, LOG2_N, R, P)
    with (
        contextlib.closing(key),
        key,
        memoryview(key) as key_view,
        plain,
        memoryview(plain) as view,
    ):
        encryptor = Cipher(algorithms.AES256(key_view), modes.CBC(iv)).encryptor()
        fill = 16 - len(view) % 16
        sealed = encryptor.update(view) + encryptor.update(bytes([fill]) * fill)
    numbers = [_der(2, n.to_bytes(n.bit_length() // 8 + 1)) for n in (1 << LOG2_N, R, P)]
    scrypt = _der(0x30, _OID_SCRYPT, _der(0x30, _der(4, salt), *numbers))
    aes = _der(0x30, _OID_AES_256_CBC, _der(4, iv))
    scheme = _der(0x30, _OID_PBES2, _der(0x30, scrypt, aes))
    text = base64.b64encode(_der(0x30, scheme, _der(4, sealed))).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(
        [f"-----BEGIN {_SEALED}-----", *lines, f"-----END {_SEALED}-----", ""]
    ).encode()


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content
