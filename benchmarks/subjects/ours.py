"""Tapeseal itself: the core over frames in memory, and tapes."""

import os
from importlib.metadata import version as installed
from typing import Any

import numpy as np

from benchmarks.harness import FRAME_SIZE, Job, Settings
from tapeseal import _core

OVERHEAD = _core.FRAME_HEADER_SIZE + _core.TAG_SIZE


def version() -> str:
    """The package's version and its libcrypto."""
    return f"{installed('tapeseal')}, {_core.openssl_version()}"


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
