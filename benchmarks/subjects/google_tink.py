"""Tink: AES256_GCM over 64 KiB messages, and its streaming AEAD over a file."""

import base64
import filecmp
import importlib.metadata
import json
import os
import shutil
from itertools import repeat

import tink
from tink import aead, secret_key_access, streaming_aead

from benchmarks.batch import KEY, Batch, reference
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


def rows(settings: Settings, size: int, opening: bool, threads: int) -> Job:
    """Seal or open each record by a call of its own; Tink puts a random nonce before the ciphertext."""
    aead.register()
    proto = base64.b64encode(b"\x1a\x20" + KEY).decode()  # field 3 of an AesGcmKey: 32 bytes
    keyset = {
        "primaryKeyId": 1,
        "key": [
            {
                "keyData": {
                    "typeUrl": aead.aead_key_templates.AES256_GCM_RAW.type_url,
                    "value": proto,
                    "keyMaterialType": "SYMMETRIC",
                },
                "status": "ENABLED",
                "keyId": 1,
                "outputPrefixType": "RAW",
            }
        ],
    }
    handle = tink.json_proto_keyset_format.parse(json.dumps(keyset), secret_key_access.TOKEN)
    batch = Batch(settings, size)
    key = handle.primitive(aead.Aead)

    def seal(part: slice) -> None:
        batch.store(part, map(key.encrypt, batch.plain(part), repeat(b"")))

    def unseal(part: slice) -> None:
        batch.store_opened(part, map(key.decrypt, batch.whole(part), repeat(b"")))

    return batch.job_by_parts(seal, unseal, opening=opening, threads=threads, key=reference())


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
