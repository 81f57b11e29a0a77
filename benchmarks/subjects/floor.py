"""AES alone: the blocks that rows take, by one EVP call in C; no GCM over the same cipher call takes less.

That call works on 128 bits at a time, so libraries with wider AES can take less for large records.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.batch import KEY, LARGE, Batch
from benchmarks.harness import Job, Settings
from benchmarks.subjects import native


def version() -> str:
    """The libcrypto of the call."""
    text: bytes = native.evp_rows().library()
    return text.decode()


def rows(settings: Settings, size: int, opening: bool, threads: int) -> Job:
    """Encrypt for each record the counter blocks of its bytes and of its tag."""
    batch = Batch(settings, size, LARGE if threads > 1 else 1)
    count = batch.count * (-(-size // 16) + 1)
    plain = np.zeros((count, 16), np.uint8)
    plain[:, 8:] = np.arange(count, dtype=">u8").view(np.uint8).reshape(-1, 8)
    sealed = np.zeros_like(plain)

    def run() -> None:
        blocks = native.evp_rows().blocks
        native.checked(blocks, plain.ctypes.data, sealed.ctypes.data, count, threads)

    run()
    cipher = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    assert sealed.tobytes() == cipher.update(plain.tobytes())
    return Job(run, batch.records.nbytes, batch.count, calls=batch.calls)
