"""The package `pycryptodome`."""

import importlib.metadata

from Crypto.Cipher import AES

from benchmarks.batch import KEY, TAG_SIZE, Batch, reference
from benchmarks.harness import Job, Settings


def version() -> str:
    """The package's version."""
    return importlib.metadata.version("pycryptodome")


def _seal(nonce: bytes, record: bytes) -> bytes:
    return b"".join(AES.new(KEY, AES.MODE_GCM, nonce=nonce).encrypt_and_digest(record))


def _open(nonce: bytes, sealed: bytes) -> bytes:
    cipher = AES.new(KEY, AES.MODE_GCM, nonce=nonce)
    return cipher.decrypt_and_verify(sealed[:-TAG_SIZE], sealed[-TAG_SIZE:])


def rows(settings: Settings, size: int, opening: bool, threads: int) -> Job:
    """Seal or open each record by an object of its own, which is how this package takes a nonce; fewer of them."""
    batch = Batch(settings, size, share=0.02)

    def seal(part: slice) -> None:
        batch.store(part, map(_seal, batch.number(part), batch.plain(part)))

    def unseal(part: slice) -> None:
        batch.store_opened(part, map(_open, batch.nonces(part), batch.rest(part)))

    return batch.job_by_parts(seal, unseal, opening=opening, threads=threads, key=reference())
