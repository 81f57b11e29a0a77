"""The library intel-ipsec-mb, as Debian packages it, called from C."""

import ctypes
import functools

from benchmarks.harness import Job, Settings
from benchmarks.subjects import native


@functools.cache
def _loop() -> ctypes.CDLL:
    if not native.has_header("intel-ipsec-mb.h"):
        raise FileNotFoundError("intel-ipsec-mb.h")
    return native.build_rows("rows_ipsec_mb.c", "-lIPSec_MB")


def version() -> str:
    """What the library says of itself."""
    text: bytes = _loop().library()
    return text.decode()


def rows(settings: Settings, size: int, opening: bool, threads: int, ahead: int = 32) -> Job:
    """Seal or open each record by itself."""
    return native.rows(settings, size, opening, threads, _loop, ahead=ahead)
