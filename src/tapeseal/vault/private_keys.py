"""Private keys for TLS and SSH, made and written out in key memory.

No Python object holds a key, and OpenSSL, under `cryptography`, clears its copy when it frees it. What is left behind:
`cryptography` parses an elliptic-curve key by way of a number that it frees without clearing it, so that one copy stays
until its piece of memory is used again. RSA keys are made by OpenSSL and written out by `cryptography`, with several
such copies. An Ed25519 key leaves nothing.
"""

import contextlib
from typing import Final, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tapeseal._core import SecretBuffer, copy_into
from tapeseal.secret import Secret

TlsKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

TLS_KEY_TYPES: Final = ("ec-256", "ec-384", "rsa-2048", "rsa-3072", "rsa-4096")
"""The types of keys for certificates, as KIND-BITS; Vault calls them key_type and key_bits."""

_ATTEMPTS = 8
_LINE = 64  # RFC 7468, 2: characters of a line.
_SSH_LINE = 70  # As ssh-keygen has them.
_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_CURVES = {
    "ec-256": (32, bytes.fromhex("06082a8648ce3d030107")),
    "ec-384": (48, bytes.fromhex("06052b81040022")),
}
_SSH_MAGIC = b"openssh-key-v1\0"


def make_tls_key(key_type: str) -> tuple[Secret, TlsKey]:
    """Make a private key.

    Args:
        key_type: one of TLS_KEY_TYPES.

    Returns:
        The key as PKCS #8 in PEM, and the same key to sign with.

    Raises:
        ValueError: it is another type.
    """
    if key_type in _CURVES:
        return _make_ec_key(*_CURVES[key_type])
    if key_type not in TLS_KEY_TYPES:
        raise ValueError(f"{key_type!r} is no type of key: {', '.join(TLS_KEY_TYPES)}")
    key = rsa.generate_private_key(65537, int(key_type.removeprefix("rsa-")))
    text = SecretBuffer.take_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Secret(text), key


def load_tls_key(pem: Secret) -> TlsKey:
    """Parse an unencrypted private key in PEM.

    Raises:
        ValueError: it is none, or of no type in TLS_KEY_TYPES.
    """
    with contextlib.closing(_from_pem(pem.buffer)) as data, data, memoryview(data) as view:
        try:
            # It does not keep the view, and takes any buffer.
            key = serialization.load_der_private_key(view, None)
        except (ValueError, TypeError):
            raise ValueError("the private key cannot be parsed") from None
    if not isinstance(key, TlsKey):
        raise ValueError("the private key is neither of an elliptic curve nor RSA")
    return key


def key_type_of(key: object) -> str | None:
    """Return which of TLS_KEY_TYPES a private or public key is, None for others."""
    found = None
    if isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        found = f"ec-{key.key_size}"
    elif isinstance(key, rsa.RSAPrivateKey | rsa.RSAPublicKey):
        found = f"rsa-{key.key_size}"
    return found if found in TLS_KEY_TYPES else None


def _make_ec_key(size: int, curve: bytes) -> tuple[Secret, TlsKey]:
    for _ in range(_ATTEMPTS):
        with contextlib.closing(SecretBuffer.random(size)) as scalar:
            with (
                contextlib.closing(_ec_der(curve, scalar)) as short,
                short,
                memoryview(short) as view,
            ):
                try:
                    key = serialization.load_der_private_key(view, None)
                except ValueError:
                    continue  # FIPS 186-5, A.2.2: not below the order of the curve; one in 2**32 is not.
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            public = key.public_key().public_bytes(
                serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
            )
            with contextlib.closing(_ec_der(curve, scalar, public)) as whole:
                return Secret(_to_pem(whole, "PRIVATE KEY", _LINE)), key
    raise RuntimeError("the system's random numbers are all alike")


def _ec_der(curve: bytes, scalar: SecretBuffer, public: bytes = b"") -> SecretBuffer:
    """Return an elliptic-curve key as PKCS #8 in DER (RFC 5915, 3; RFC 5208, 5)."""
    size = len(scalar)
    hole = _der(0x04, bytes(size))
    point = _der(0xA1, _der(0x03, b"\0", public)) if public else b""
    head = _der(0x30, b"\x02\x01\x01", hole, point)
    algorithm = _der(0x30, _EC_PUBLIC_KEY, curve)
    frame = _der(0x30, b"\x02\x01\x00", algorithm, _der(0x04, head))
    at = frame.index(hole) + len(hole) - size
    made = SecretBuffer(len(frame), writable=True)
    with made, memoryview(made) as view, scalar, memoryview(scalar) as source:
        copy_into(view, 0, frame)
        copy_into(view, at, source)
    return made


class SshKeyPair(NamedTuple):
    """A key pair of ssh's."""

    private: Secret
    """In OpenSSH's own format, under no passphrase."""
    public: str
    """The line of the .pub file, without a line break."""


def make_ssh_key_pair(comment: str = "") -> SshKeyPair:
    """Make an Ed25519 key pair.

    Args:
        comment: stands in both halves; printable.

    Raises:
        ValueError: the comment is not printable.
    """
    if not comment.isprintable():
        raise ValueError("the comment of a key is printable")
    with contextlib.closing(SecretBuffer.random(32)) as seed:
        with seed, memoryview(seed) as view:
            key = Ed25519PrivateKey.from_private_bytes(view)
        line = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        raw = key.public_key().public_bytes_raw()
        with contextlib.closing(_ssh_blob(seed, raw, comment.encode())) as blob:
            private = Secret(_to_pem(blob, "OPENSSH PRIVATE KEY", _SSH_LINE))
    return SshKeyPair(private, f"{line.decode()} {comment}".rstrip())


def _ssh_blob(seed: SecretBuffer, public: bytes, comment: bytes) -> SecretBuffer:
    """Return the contents of a private key file (OpenSSH, PROTOCOL.key)."""
    kind = _text(b"ssh-ed25519")
    hole = bytes(32)
    # Two equal numbers show that a passphrase was the right one; without one they may be any.
    secret_part = bytes(8) + kind + _text(public) + _text(hole + public) + _text(comment)
    secret_part += bytes(range(1, 1 + -len(secret_part) % 8))
    head = _SSH_MAGIC + _text(b"none") + _text(b"none") + _text(b"") + (1).to_bytes(4)
    frame = head + _text(kind + _text(public)) + _text(secret_part)
    at = len(frame) - len(secret_part) + secret_part.index(hole + public)
    made = SecretBuffer(len(frame), writable=True)
    with made, memoryview(made) as view, seed, memoryview(seed) as source:
        copy_into(view, 0, frame)
        copy_into(view, at, source)
    return made


def _text(data: bytes) -> bytes:
    """Return a string as ssh encodes it (RFC 4251, 5)."""
    return len(data).to_bytes(4) + data


def _der(tag: int, *parts: bytes) -> bytes:
    """Return an element in DER."""
    content = b"".join(parts)
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content


def _to_pem(data: SecretBuffer, label: str, line: int) -> SecretBuffer:
    """Return bytes as a PEM block, in lines of so many characters."""
    with contextlib.closing(data.to_base64()) as text, text, memoryview(text) as source:
        begin, end = f"-----BEGIN {label}-----\n".encode(), f"-----END {label}-----\n".encode()
        lines = range(0, len(source), line)
        made = SecretBuffer(
            len(begin) + len(source) + len(lines) + len(end),
            writable=True,
        )
        with made, memoryview(made) as view:
            at = copy_into(view, 0, begin)
            for start in lines:
                at += copy_into(view, at, source[start : start + line])
                at += copy_into(view, at, b"\n")
            copy_into(view, at, end)
    return made


def _from_pem(text: SecretBuffer) -> SecretBuffer:
    """Return the contents of the only PEM block of a private key."""
    with text, memoryview(text) as view:
        marks = [at for at in range(len(view) - 4) if bytes(view[at : at + 5]) == b"-----"]
        breaks = [at for at in range(len(view)) if view[at] in b"\r\n"]
        # BEGIN, a mark at either end, then END likewise.
        if len(marks) != 4:
            raise ValueError("there is not one private key in PEM")
        start, stop = marks[1] + 5, marks[2]
        inside = [at for at in breaks if start <= at < stop]
        size = stop - start - len(inside)
        if size < 4:
            raise ValueError("there is not one private key in PEM")
        with contextlib.closing(SecretBuffer(size, writable=True)) as base64:
            with base64, memoryview(base64) as target:
                at = 0
                for edge in [*inside, stop]:
                    at += copy_into(target, at, view[start:edge])
                    start = edge + 1
            try:
                return SecretBuffer.from_base64(base64, 0, size)
            except ValueError:
                raise ValueError("the private key is no PEM") from None
