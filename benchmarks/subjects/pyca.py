"""The package `cryptography`: AESGCM, and Cobblestone-256 (C2SP's chunked encryption)."""

import filecmp
import importlib.metadata
import os
import struct
from itertools import count as counter
from itertools import repeat

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.hazmat.backends.openssl.backend import backend
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.batch import KEY, Batch
from benchmarks.harness import FRAME_SIZE, MIB, RECORD_SIZE, Job, Settings

TAG_SIZE = 16


def version() -> str:
    """The package's version and that of the OpenSSL in its wheel."""
    return f"{importlib.metadata.version('cryptography')}, {backend.openssl_version_text()}"


def _nonce(index: int) -> bytes:
    return struct.pack(">4xQ", index)


def frames(settings: Settings, opening: bool) -> Job:
    """Seal or open 64 KiB with each call, from one buffer into another."""
    count = settings.memory_size // FRAME_SIZE
    size = count * FRAME_SIZE
    key = AESGCM(AESGCM.generate_key(256))
    expected = os.urandom(size)
    plain = bytearray(expected)
    sealed = bytearray(count * (FRAME_SIZE + TAG_SIZE))
    header = bytes(24)

    def plain_frame(i: int) -> memoryview:
        return memoryview(plain)[i * FRAME_SIZE :][:FRAME_SIZE]

    def sealed_frame(i: int) -> memoryview:
        return memoryview(sealed)[i * (FRAME_SIZE + TAG_SIZE) :][: FRAME_SIZE + TAG_SIZE]

    def seal() -> None:
        for i in range(count):
            key.encrypt_into(_nonce(i), plain_frame(i), header, sealed_frame(i))

    def unseal() -> None:
        for i in range(count):
            key.decrypt_into(_nonce(i), sealed_frame(i), header, plain_frame(i))

    seal()
    plain[:] = bytes(size)
    unseal()
    assert expected == plain
    return Job(unseal if opening else seal, size, calls=settings.memory_calls)


def one_record_each(settings: Settings) -> Job:
    """Seal each record by a call of its own."""
    records = settings.load_records(100_000)
    key = AESGCM(AESGCM.generate_key(256))
    messages = [record.tobytes() for record in records]

    def seal() -> list[bytes]:
        indices = counter()
        return [key.encrypt(_nonce(next(indices)), message, None) for message in messages]

    opened = [key.decrypt(_nonce(i), sealed, None) for i, sealed in enumerate(seal())]
    assert messages == opened
    return Job(seal, len(messages) * RECORD_SIZE, len(messages))


def rows(settings: Settings, size: int, opening: bool, threads: int) -> Job:
    """Seal or open each record by a call of its own: `encrypt`, and one join for all; `encrypt_into` takes longer."""
    # Imported here: what checks the others is this library, so tapeseal's binding of libcrypto's GCM checks it.
    from tapeseal import _core

    batch = Batch(settings, size)
    key = AESGCM(KEY)

    def seal(part: slice) -> None:
        nonces = batch.number(part)
        batch.store(part, map(key.encrypt, nonces, batch.plain(part), repeat(None)))

    def unseal(part: slice) -> None:
        nonces = batch.nonces(part)
        batch.store_opened(part, map(key.decrypt, nonces, batch.rest(part), repeat(None)))

    other = _core.AESGCM(_core.SecretBuffer.take(bytearray(KEY)))
    return batch.job_by_parts(seal, unseal, opening=opening, threads=threads, key=other)


def file(settings: Settings, opening: bool) -> Job:
    """Encrypt or decrypt a file with Cobblestone-256, a mebibyte at a time."""
    key = Cobblestone256Encryptor.generate_key()
    name = "cobblestone-decrypt" if opening else "cobblestone-encrypt"
    sealed, back = settings.path(f"{name}.sealed"), settings.path(f"{name}.out")
    buffer = bytearray(2 * MIB)

    def encrypt() -> None:
        _pipe(Cobblestone256Encryptor(key, b"benchmark"), settings.source, sealed, buffer)

    def decrypt() -> None:
        _pipe(Cobblestone256Decryptor(key, b"benchmark"), sealed, back, buffer)

    encrypt()
    decrypt()
    assert filecmp.cmp(settings.source, back, shallow=False)
    back.unlink()
    if opening:
        return Job(decrypt, settings.file_size, after=back.unlink)
    sealed.unlink()
    return Job(encrypt, settings.file_size, after=sealed.unlink)


def _pipe(
    cipher: Cobblestone256Encryptor | Cobblestone256Decryptor,
    source: os.PathLike[str],
    target: os.PathLike[str],
    buffer: bytearray,
) -> None:
    piece = bytearray(MIB)
    view, out = memoryview(piece), memoryview(buffer)
    with open(source, "rb", buffering=0) as reading, open(target, "wb", buffering=0) as writing:
        while size := reading.readinto(piece):
            writing.write(out[: cipher.update_into(view[:size], buffer)])
        writing.write(cipher.finalize())
