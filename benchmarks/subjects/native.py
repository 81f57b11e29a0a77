"""The bare C loops of `benchmarks/native`, built against the libcrypto that tapeseal links."""

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.batch import LARGE, Batch, reference
from benchmarks.harness import FRAME_RECORDS, FRAME_SIZE, RECORD_SIZE, Job, Settings

OVERHEAD = 24 + 16

ROOT = Path(__file__).parents[2]


def build(source: str, *flags: str) -> ctypes.CDLL:
    """Compile a file of `benchmarks/native` and load it."""
    with tempfile.TemporaryDirectory() as directory:
        library = f"{directory}/{source}.so"
        command = ["gcc", "-O2", "-shared", "-fPIC", "-pthread", "-o", library]
        path = str(Path(__file__).parents[1] / "native" / source)
        subprocess.run([*command, path, *flags], check=True)
        return ctypes.CDLL(library)


def build_rows(source: str, *flags: str) -> ctypes.CDLL:
    """Compile a loop over rows and load it."""
    loop = build(source, *flags)
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    loop.rows.argtypes = [
        ctypes.c_int, pointer, pointer, number, ctypes.c_size_t, ctypes.c_uint,
    ]  # fmt: skip
    loop.library.restype = ctypes.c_char_p
    return loop


def has_header(name: str) -> bool:
    """Whether the compiler finds a header."""
    command = ["gcc", "-E", "-include", name, "-x", "c", os.devnull]
    return subprocess.run(command, capture_output=True).returncode == 0


def _libcrypto() -> list[str]:
    """The flags that link what tapeseal links."""
    prefix = os.environ.get("TAPESEAL_OPENSSL")
    if not prefix:
        where = ["bash", str(ROOT / "_core/build-openssl.sh"), "--where"]
        prefix = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    archive = Path(prefix, "lib/libcrypto.a")
    return [f"-I{prefix}/include", str(archive)] if archive.exists() else ["-lcrypto"]


@functools.cache
def _loops() -> ctypes.CDLL:
    loops = build("loops.c", *_libcrypto())
    size, number = ctypes.c_size_t, ctypes.c_uint64
    pointer, threads = ctypes.c_void_p, ctypes.c_uint
    loops.loop_memory.argtypes = [ctypes.c_int, pointer, pointer, number, number, size, threads]
    loops.loop_file.argtypes = [ctypes.c_int, ctypes.c_int, pointer, number, size, threads]
    loops.loop_openssl.restype = ctypes.c_char_p
    return loops


@functools.cache
def evp_rows() -> ctypes.CDLL:
    """The loop over rows, and the floor, with the libcrypto that tapeseal links."""
    loop = build_rows("rows_evp.c", *_libcrypto())
    pointer = ctypes.c_void_p
    loop.blocks.argtypes = [pointer, pointer, ctypes.c_uint64, ctypes.c_uint]
    return loop


def version() -> str:
    """The libcrypto of the loops."""
    text: bytes = _loops().loop_openssl()
    return text.decode()


def checked(function: Callable[..., int], *arguments: Any) -> None:
    """Call a loop.

    Raises:
        RuntimeError: it failed.
    """
    line = function(*arguments)
    if line:
        raise RuntimeError(f"the C loop failed in line {line}")


def frames(settings: Settings, opening: bool, threads: int, kept: int | None = None) -> Job:
    """Seal or open frames in memory; with `kept` the same few again and again."""
    count = settings.memory_size // FRAME_SIZE
    kept = kept or count
    plain = np.frombuffer(bytearray(os.urandom(kept * FRAME_SIZE)), np.uint8)
    sealed = np.zeros(kept * (FRAME_SIZE + OVERHEAD), np.uint8)
    expected = plain.copy()

    def loop(sealing: bool, turns: int) -> None:
        checked(
            _loops().loop_memory,
            sealing, plain.ctypes.data, sealed.ctypes.data, turns, kept, FRAME_SIZE, threads,
        )  # fmt: skip

    loop(True, kept)
    plain[:] = 0
    loop(False, kept)
    assert np.array_equal(expected, plain)
    return Job(
        lambda: loop(not opening, count), size=count * FRAME_SIZE, calls=settings.memory_calls
    )


def _file(settings: Settings, name: str, records: int) -> tuple[int, int]:
    """Return a new file's descriptor, and how many whole frames that many records make."""
    descriptor = os.open(settings.path(name), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    return descriptor, records // FRAME_RECORDS


def _loop_file(sealing: bool, file: int, array: Any, count: int, threads: int) -> None:
    size = FRAME_RECORDS * RECORD_SIZE
    checked(_loops().loop_file, sealing, file, array.ctypes.data, count, size, threads)


def append(settings: Settings, threads: int = 1) -> Job:
    """Seal records frame by frame and write each frame to a new file."""
    file, count = _file(settings, f"loop-append-{threads}", settings.records)
    records = settings.load_records(count * FRAME_RECORDS)
    _loop_file(True, file, records, count, threads)
    back = np.empty_like(records)
    _loop_file(False, file, back, count, threads)
    assert np.array_equal(records, back)
    os.truncate(file, 0)
    return Job(
        lambda: _loop_file(True, file, records, count, threads),
        after=lambda: os.truncate(file, 0),
        size=records.nbytes,
        records=len(records),
    )


def read_slice(settings: Settings, threads: int) -> Job:
    """Read frames and open them into a new array."""
    file, count = _file(settings, f"loop-slice-{threads}", settings.slice_records)
    records = settings.load_records(count * FRAME_RECORDS)
    _loop_file(True, file, records, count, threads)

    def read() -> Any:
        array = np.empty_like(records)
        _loop_file(False, file, array, count, threads)
        return array

    assert np.array_equal(records, read())
    return Job(read, size=records.nbytes, records=len(records))


def rows(
    settings: Settings,
    size: int,
    opening: bool,
    threads: int,
    loop: Callable[[], ctypes.CDLL] = evp_rows,
    large: bool = False,
    ahead: int = 32,
) -> Job:
    """Seal or open each record by itself, by a loop of this or another library, which writes so many nonces at once."""
    batch = Batch(settings, size, LARGE if large or threads > 1 else 1)
    call = loop().rows

    def run(sealing: bool, plain: NDArray[np.uint8]) -> None:
        into = batch.sealed.ctypes.data
        checked(call, sealing, plain.ctypes.data, into, batch.count, size, ahead, threads)

    def unseal() -> None:
        run(False, batch.opened)

    job = batch.job(lambda: run(True, batch.records), unseal, opening)
    batch.check(reference())
    batch.sealed[0, -1] ^= 1
    try:
        unseal()
    except RuntimeError:
        batch.sealed[0, -1] ^= 1
        return job
    raise AssertionError("a changed row was opened")
