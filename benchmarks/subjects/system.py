"""The bare C loop over rows with the system's libcrypto."""

import ctypes
import functools

from benchmarks.harness import Job, Settings
from benchmarks.subjects import native


@functools.cache
def _loop() -> ctypes.CDLL:
    if not native.has_header("openssl/evp.h"):
        raise FileNotFoundError("openssl/evp.h")
    return native.build_rows("rows_evp.c", "-lcrypto")


def version() -> str:
    """The libcrypto of the loop."""
    text: bytes = _loop().library()
    return text.decode()


def rows(settings: Settings, size: int, opening: bool, threads: int) -> Job:
    """Seal or open each record by itself."""
    return native.rows(settings, size, opening, threads, _loop)
