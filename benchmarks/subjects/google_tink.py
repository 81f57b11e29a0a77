"""Tink: AES256_GCM over 64 KiB messages, and its streaming AEAD over a file."""

import filecmp
import importlib.metadata
import os
import shutil

import tink
from tink import aead, streaming_aead

from benchmarks.harness import FRAME_SIZE, MIB, Job, Settings


def version() -> str:
    """The package's version."""
    return importlib.metadata.version("tink")


def frames(settings: Settings, opening: bool) -> Job:
    """Seal or open 64 KiB with each call; Tink always returns new bytes."""
    aead.register()
    handle = tink.new_keyset_handle(aead.aead_key_templates.AES256_GCM)
    key = handle.primitive(aead.Aead)
    plain = [os.urandom(FRAME_SIZE) for _ in range(settings.memory_size // FRAME_SIZE)]
    header = bytes(24)
    sealed = [key.encrypt(frame, header) for frame in plain]

    def seal() -> None:
        for frame in plain:
            key.encrypt(frame, header)

    def unseal() -> None:
        for frame in sealed:
            key.decrypt(frame, header)

    assert plain == [key.decrypt(frame, header) for frame in sealed]
    size = len(plain) * FRAME_SIZE
    return Job(unseal if opening else seal, size, calls=settings.memory_calls)


def file(settings: Settings, opening: bool) -> Job:
    """Encrypt or decrypt a smaller file as a stream with AES256_GCM_HKDF_1MB."""
    streaming_aead.register()
    template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
    key = tink.new_keyset_handle(template).primitive(streaming_aead.StreamingAead)
    name = "tink-decrypt" if opening else "tink-encrypt"
    source, sealed, back = (
        settings.slow_source,
        settings.path(f"{name}.sealed"),
        settings.path(name),
    )

    def encrypt() -> None:
        with (
            source.open("rb") as reading,
            key.new_encrypting_stream(sealed.open("wb"), b"") as writing,
        ):
            shutil.copyfileobj(reading, writing, MIB)

    def decrypt() -> None:
        with (
            key.new_decrypting_stream(sealed.open("rb"), b"") as reading,
            back.open("wb") as writing,
        ):
            shutil.copyfileobj(reading, writing, MIB)

    encrypt()
    decrypt()
    assert filecmp.cmp(source, back, shallow=False)
    back.unlink()
    if opening:
        return Job(decrypt, settings.slow_file_size, after=back.unlink)
    sealed.unlink()
    return Job(encrypt, settings.slow_file_size, after=sealed.unlink)
