"""Tapeseal itself: the core over frames in memory, and tapes."""

import filecmp
import os
import random
import subprocess
import sys
from importlib.metadata import version as installed
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

import tapeseal
from benchmarks.batch import LARGE, Batch
from benchmarks.harness import FRAME_SIZE, RECORD_SIZE, RECORDS_FILE, Job, Settings
from benchmarks.subjects import startup
from tapeseal import _core, header
from tapeseal.keyrings.local import create_key_file

OVERHEAD = _core.FRAME_HEADER_SIZE + _core.TAG_SIZE


def version() -> str:
    """The package's version and its libcrypto."""
    return f"{installed('tapeseal')}, {tapeseal.openssl_version()}"


def frames(settings: Settings, opening: bool, threads: int, kept: int | None = None) -> Job:
    """Seal or open frames in memory in one call; with `kept` the same few, a call after the other."""
    count = settings.memory_size // FRAME_SIZE
    kept = kept or count
    plain = np.frombuffer(bytearray(os.urandom(kept * FRAME_SIZE)), np.uint8)
    sealed = np.zeros(kept * (FRAME_SIZE + OVERHEAD), np.uint8)
    expected = plain.copy()
    with _core.SecretBuffer.random(_core.KEY_SIZE) as secret:
        key = _core.AESGCM(secret)
    shape: dict[str, Any] = {
        "count": kept * FRAME_SIZE,
        "item_size": 1,
        "frame_items": FRAME_SIZE,
        "first": 0,
        "index": 0,
        "threads": threads,
    }

    def seal() -> None:
        for _ in range(count // kept):
            key.seal_frames(sealed, plain, **shape)

    def unseal() -> None:
        for _ in range(count // kept):
            key.open_frames(plain, sealed, **shape)

    seal()
    plain[:] = 0
    unseal()
    assert np.array_equal(expected, plain)
    return Job(unseal if opening else seal, size=count * FRAME_SIZE, calls=settings.memory_calls)


def _keyring(settings: Settings) -> tapeseal.Keyring:
    path = settings.path("tapeseal.key")
    if not path.exists():
        create_key_file(path)
    return tapeseal.keyring(f"local:{path}")


def append(
    settings: Settings, batch: int, threads: int | None = None, index_by: str | None = None
) -> Job:
    """Append records in batches to a new tape and flush it; opening and sealing the tape are not timed."""
    keyring = _keyring(settings)
    path = settings.path(f"append-{batch}-{threads}-{index_by}.tape")
    records = settings.load_records(settings.records)
    batches = [records[start : start + batch] for start in range(0, len(records), batch)]
    tape: tapeseal.TapeWriter

    def before() -> None:
        nonlocal tape
        tape = tapeseal.open(
            path, "w", keyring=keyring, dtype=records.dtype, threads=threads, index_by=index_by
        )

    def run() -> None:
        append = tape.append
        for part in batches:
            append(part)
        tape.flush()

    def after() -> None:
        tape.close(seal=False)
        path.unlink()

    before()
    run()
    with tapeseal.open(path, keyring=keyring) as reader:
        assert np.array_equal(records, reader[:])
    after()
    return Job(run, before=before, after=after, size=records.nbytes, records=len(records))


def _row_key(rows: tapeseal.RowEncryptor, keyring: tapeseal.Keyring) -> AESGCM:
    """Return the key of rows, for another implementation to open them with (docs/format.md, section 8)."""
    raw = rows.header
    found = header.read(lambda size, offset: raw[offset : offset + size], len(raw))
    info = b"tapeseal/v1 rows\0" + b"\1\0" + found.tape_id
    with header.unlock(found, keyring) as data_key:
        secret = _core.hkdf_expand(data_key.secret, info, _core.KEY_SIZE)
    with secret, memoryview(secret) as view:
        return AESGCM(view)


def rows(settings: Settings, size: int, opening: bool, threads: int, large: bool = False) -> Job:
    """Seal or open records, each by itself, in one call for all."""
    keyring = _keyring(settings)
    batch = Batch(settings, size, LARGE if large or threads > 1 else 1)
    records = batch.records.view(f"V{size}").ravel()
    sealed = batch.sealed.view(f"V{batch.sealed.shape[1]}").ravel()
    opened = batch.opened.view(f"V{size}").ravel()
    encryptor = tapeseal.RowEncryptor(keyring, dtype=records.dtype, threads=threads)
    decryptor = tapeseal.RowDecryptor(encryptor.header, keyring=keyring, threads=threads)
    job = batch.job(
        lambda: encryptor.encrypt(records, out=sealed),
        lambda: decryptor.decrypt(sealed, out=opened),
        opening,
    )
    batch.check(_row_key(encryptor, keyring))
    return job


def one_row(settings: Settings, opening: bool) -> Job:
    """Seal or open a batch of one record of 56 bytes, over and over."""
    keyring = _keyring(settings)
    records = settings.load_records(1)
    encryptor = tapeseal.RowEncryptor(keyring, dtype=records.dtype)
    decryptor = tapeseal.RowDecryptor(encryptor.header, keyring=keyring)
    sealed = encryptor.encrypt(records)
    assert np.array_equal(records, decryptor.decrypt(sealed))
    calls = settings.row_records

    def seal() -> None:
        encrypt = encryptor.encrypt
        for _ in range(calls):
            encrypt(records)

    def unseal() -> None:
        decrypt = decryptor.decrypt
        for _ in range(calls):
            decrypt(sealed)

    return Job(unseal if opening else seal, calls * RECORD_SIZE, calls, calls=5)


def rows_memory(settings: Settings, opening: bool) -> float:
    """Return how many MiB over its output a process takes to seal or open the records."""
    _keyring(settings)
    command = [sys.executable, "-m", "benchmarks.memory", "open" if opening else "seal"]
    paths = [settings.path("tapeseal.key"), settings.path(RECORDS_FILE)]
    answer = subprocess.run([*command, *paths], check=True, capture_output=True, text=True)
    return float(answer.stdout)


def _tape(
    settings: Settings, name: str, count: int
) -> tuple[tapeseal.TapeReader, NDArray[np.void]]:
    """Make a sealed tape of so many records and open it; also return the records that it repeats."""
    keyring = _keyring(settings)
    path = settings.path(name)
    records = settings.load_records(settings.records)
    with tapeseal.open(path, "w", keyring=keyring, dtype=records.dtype) as writer:
        for start in range(0, count, len(records)):
            writer.append(records[: count - start])
    return tapeseal.open(path, keyring=keyring, threads=2), records


def read_one(settings: Settings) -> Job:
    """Read one record, anywhere in a large tape."""
    tape, records = _tape(settings, "lookup.tape", settings.tape_records)
    numbers = random.Random(1)
    for number in (numbers.randrange(len(tape)) for _ in range(100)):
        assert records[number % len(records)] == tape[number]
    return Job(
        lambda: tape[numbers.randrange(len(tape))],
        size=RECORD_SIZE,
        records=1,
        calls=settings.lookups,
    )


def read_slice(settings: Settings, threads: int) -> Job:
    """Read a slice of a large tape, from anywhere but a frame's edge, into a new array."""
    assert threads == 2
    size = settings.slice_records
    tape, records = _tape(settings, "slice.tape", 2 * size)
    start = size // 3
    assert np.array_equal(
        np.resize(records, 2 * size)[start : start + size], tape[start : start + size]
    )
    return Job(lambda: tape[start : start + size], size=size * RECORD_SIZE, records=size)


def file(settings: Settings, opening: bool) -> Job:
    """Encrypt or decrypt a file."""
    keyring = _keyring(settings)
    name = "decrypt" if opening else "encrypt"
    sealed, back = settings.path(f"{name}.tape"), settings.path(f"{name}.out")

    def encrypt() -> None:
        tapeseal.encrypt_file(settings.source, sealed, keyring=keyring)

    def decrypt() -> None:
        tapeseal.decrypt_file(sealed, back, keyring=keyring)

    encrypt()
    decrypt()
    assert filecmp.cmp(settings.source, back, shallow=False)
    back.unlink()
    if opening:
        return Job(decrypt, settings.file_size, after=back.unlink)
    sealed.unlink()
    return Job(encrypt, settings.file_size, after=sealed.unlink)


def memory(settings: Settings, opening: bool, share: float) -> float:
    """Return how many MiB a process takes over its import to encrypt or decrypt a share of the large file."""
    _keyring(settings)
    part, sealed, back = (settings.path(f"memory.{end}") for end in ("part", "tape", "out"))
    with settings.source.open("rb") as source, part.open("wb") as target:
        os.sendfile(target.fileno(), source.fileno(), 0, round(settings.file_size * share))
    grown = 0.0
    for verb, source_path, target_path in (("encrypt", part, sealed), ("decrypt", sealed, back)):
        command = [sys.executable, "-m", "benchmarks.memory", verb]
        paths = [settings.path("tapeseal.key"), source_path, target_path]
        answer = subprocess.run([*command, *paths], check=True, capture_output=True, text=True)
        if (verb == "decrypt") == opening:
            grown = float(answer.stdout)
    assert filecmp.cmp(part, back, shallow=False)
    for path in (part, sealed, back):
        path.unlink()
    return grown


def start(settings: Settings) -> Job:
    """Start Python and import tapeseal with what a recorder needs of it, which is loaded on first use."""
    return startup.start(settings, "tapeseal", "tapeseal.keyring, tapeseal.open, tapeseal.Recorder")
