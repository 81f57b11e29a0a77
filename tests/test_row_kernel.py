"""The kernels that seal rows: published vectors, agreement with libcrypto's GCM, nothing touched outside the arrays."""

import ctypes
import hashlib
import json
import mmap
import os
import platform
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from conftest import ROOT, SHARED
from tapeseal import _core
from tapeseal.errors import ForkError, InvalidTag

KERNELS = _core.row_kernels()
FAST = [name for name in KERNELS if name != "evp"]
OVERHEAD = _core.ROW_OVERHEAD


def cipher(kernel: str, key: bytes = bytes(range(32))) -> _core.RowCipher:
    """Make a cipher whose key is known."""
    return _core.RowCipher(_core.SecretBuffer.take(bytearray(key)), kernel)


def rows_of(data: bytes | np.ndarray, size: int, count: int) -> np.ndarray:
    """Return `count` rows of `size` bytes."""
    return np.frombuffer(data, np.uint8)[: size * count].reshape(count, size)


def seal_one(kernel: str, key: bytes, nonce: bytes, plain: bytes, aad: bytes) -> bytes:
    """Return one row under any nonce."""
    target = np.zeros((1, len(plain) + OVERHEAD), np.uint8)
    target[0, :12] = np.frombuffer(nonce, np.uint8)
    source = rows_of(plain, len(plain), 1)
    cipher(kernel, key).seal_rows(target, source, counter=0, associated_data=aad, any_nonce=True)
    return target.tobytes()


def open_one(kernel: str, key: bytes, sealed: bytes, aad: bytes) -> bytes | None:
    """Return what a row holds; None: it is not authentic."""
    size = len(sealed) - OVERHEAD
    target = np.full((1, size), 0xEE, np.uint8)
    try:
        cipher(kernel, key).open_rows(
            target, rows_of(sealed, len(sealed), 1), associated_data=aad, any_nonce=True
        )
    except InvalidTag:
        assert not target.any()
        return None
    return target.tobytes()


def cavp(name: str) -> Iterator[dict[str, bytes | bool]]:
    """Yield NIST's cases of 256-bit keys, 96-bit nonces and 128-bit tags."""
    vectors = pytest.importorskip("cryptography_vectors")
    text = vectors.open_vector_file(f"ciphers/AES/GCM/{name}.rsp", "r")
    with text:
        settings: dict[str, str] = {}
        case: dict[str, bytes | bool] = {}
        for line in [*text, ""]:
            line = line.strip()
            if match := re.fullmatch(r"\[(\w+) = (\d+)\]", line):
                settings[match[1]] = match[2]
            elif line == "FAIL":
                case["FAIL"] = True
            elif " =" in line and not line.startswith("["):
                field, _, value = line.partition(" =")
                if field != "Count":
                    case[field] = bytes.fromhex(value.strip())
            elif not line and case:
                if settings["IVlen"] == "96" and settings["Taglen"] == "128":
                    yield case
                case = {}


@pytest.mark.parametrize("kernel", KERNELS)
def test_cavp_seals(kernel: str) -> None:
    """NIST's encryption vectors come out."""
    cases = list(cavp("gcmEncryptExtIV256"))
    assert len(cases) > 300
    for case in cases:
        sealed = seal_one(kernel, case["Key"], case["IV"], case["PT"], case["AAD"])
        assert case["IV"] + case["CT"] + case["Tag"] == sealed


@pytest.mark.parametrize("kernel", KERNELS)
def test_cavp_opens(kernel: str) -> None:
    """NIST's decryption vectors open, and the wrong ones among them do not."""
    cases = list(cavp("gcmDecrypt256"))
    assert len({case.get("FAIL", False) for case in cases}) == 2
    for case in cases:
        opened = open_one(kernel, case["Key"], case["IV"] + case["CT"] + case["Tag"], case["AAD"])
        assert (None if "FAIL" in case else case["PT"]) == opened


@pytest.mark.parametrize("kernel", KERNELS)
def test_wycheproof(kernel: str) -> None:
    """Project Wycheproof's cases come out, and those that must not open do not."""
    path = SHARED / "vectors" / "wycheproof-aes_gcm_test.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    done = 0
    for group in json.loads(path.read_text())["testGroups"]:
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        for case in group["tests"]:
            key, iv, aad, message, ct, tag = (
                bytes.fromhex(case[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            opened = open_one(kernel, key, iv + ct + tag, aad)
            assert (message if case["result"] == "valid" else None) == opened
            if case["result"] == "valid":
                assert iv + ct + tag == seal_one(kernel, key, iv, message, aad)
            done += 1
    assert done > 50


def known_answer() -> bytes:
    """Return what the self-test must find, from another implementation."""
    pattern = bytes(i % 256 for i in range(500))
    key, digest = AESGCM(pattern[:32]), hashlib.sha256()
    for i in range(200):
        size = i // 2
        aad_size = size % 24
        for row in range(5):
            nonce = bytes(4) + (size + row).to_bytes(8, "big")
            at = row * aad_size if i % 2 else 0
            plain = pattern[row * size : (row + 1) * size]
            digest.update(nonce + key.encrypt(nonce, plain, pattern[at : at + aad_size]))
    return digest.digest()


@pytest.mark.parametrize("kernel", KERNELS)
def test_wrong_answer_refuses(kernel: str, tmp_path: Path) -> None:
    """A kernel whose self-test finds something else than it must does not work; with what it must, it does."""
    package = Path(_core.__file__ or "").parent
    shutil.copytree(package, tmp_path / "tapeseal", ignore=shutil.ignore_patterns("__pycache__"))
    extension = tmp_path / "tapeseal" / Path(_core.__file__ or "").name
    code = (
        "from tapeseal import _core\n"
        f"assert _core.__file__ == {str(extension)!r}\n"
        f"try: _core.RowCipher(_core.SecretBuffer.random(32), {kernel!r})\n"
        "except RuntimeError as error: print(error)\n"
        "else: print('works')"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = [sys.executable, "-c", code]
    assert subprocess.check_output(run, text=True, env=environment) == "works\n"
    whole = extension.read_bytes()
    at = whole.index(known_answer())
    extension.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert "self-test" in subprocess.check_output(run, text=True, env=environment)


def random_case(rng: random.Random, pool: np.ndarray, kernel: str, key: bytes) -> None:
    """Seal and open one batch of random shape with a kernel and with libcrypto's GCM, and compare."""
    size = rng.choice([rng.randrange(80), rng.randrange(200), rng.randrange(1100)])
    count = rng.choice([1, rng.randrange(1, 9), rng.randrange(1, 12)])
    if rng.random() < 0.01:
        count = rng.randrange(1, 600)
    step = size + rng.choice([0, 0, rng.randrange(40)])
    at = rng.randrange(64)
    plain = np.lib.stride_tricks.as_strided(pool[at:], (count, size), (step, 1), writeable=False)
    kind = rng.randrange(3)
    aad_size = rng.choice([0, 8, rng.randrange(40), rng.randrange(600)])
    extra: dict[str, np.ndarray | bytes] = {}
    at = rng.randrange(64)
    if kind == 1:
        extra["associated_data"] = pool[at : at + aad_size].tobytes()
    elif kind == 2:
        extra["associated_rows"] = np.lib.stride_tricks.as_strided(
            pool[at:], (count, aad_size), (aad_size + 3, 1), writeable=False
        )
    counter = rng.choice([0, rng.randrange(1 << 40) - count if count < 1 << 39 else 0])
    counter = max(0, counter)
    expected = np.zeros((count, size + OVERHEAD), np.uint8)
    CIPHERS["evp", key].seal_rows(expected, plain, counter=counter, **extra)
    at = rng.randrange(64)
    room = np.full(count * (size + OVERHEAD) + at + 64, 0xA5, np.uint8)
    sealed = room[at : at + expected.size].reshape(expected.shape)
    CIPHERS[kernel, key].seal_rows(sealed, plain, counter=counter, **extra)
    assert expected.tobytes() == sealed.tobytes()
    assert (room[:at] == 0xA5).all()
    assert (room[at + expected.size :] == 0xA5).all()
    at = rng.randrange(64)
    room = np.full(count * size + at + 64, 0xA5, np.uint8)
    opened = room[at : at + plain.size].reshape(plain.shape)
    CIPHERS[kernel, key].open_rows(opened, sealed, **extra)
    assert plain.tobytes() == opened.tobytes()
    assert (room[:at] == 0xA5).all()
    assert (room[at + plain.size :] == 0xA5).all()
    bad = rng.randrange(count)
    bit = rng.randrange((size + OVERHEAD) * 8)
    sealed[bad, bit // 8] ^= 1 << bit % 8
    valid = np.zeros(count, np.bool_)
    CIPHERS[kernel, key].open_rows(opened, sealed, valid=valid, **extra)
    assert [bad] == np.flatnonzero(~valid).tolist()
    assert not opened[bad].any()


class Ciphers(dict[tuple[str, bytes], _core.RowCipher]):
    """Ciphers by kernel and key, each made once."""

    def __missing__(self, name: tuple[str, bytes]) -> _core.RowCipher:
        self[name] = cipher(*name)
        return self[name]


CIPHERS = Ciphers()


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("cases", [2000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_random_cases_agree_with_evp(kernel: str, cases: int) -> None:
    """Whatever the size, the associated data, the count and the alignment, a kernel gives what libcrypto gives."""
    rng = random.Random(cases)
    pool = np.frombuffer(rng.randbytes(1 << 20), np.uint8)
    keys = [rng.randbytes(32) for _ in range(8)]
    for _ in range(cases):
        random_case(rng, pool, kernel, rng.choice(keys))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [np.int32, np.int64])
def test_rows_of_various_sizes(kernel: str, threads: int, width: type) -> None:
    """Each row of a mixed batch is what that row is by itself, with its own associated data."""
    rng = random.Random(threads)
    sizes = [rng.choice([rng.randrange(70), rng.randrange(1500)]) for _ in range(3000)]
    sizes[17:19] = [0, 20_000]
    data = rng.randbytes(sum(sizes) + 5)
    offsets = np.cumsum([5, *sizes], dtype=width)
    aad_sizes = [rng.choice([0, 8, rng.randrange(30), rng.randrange(700)]) for _ in sizes]
    aad = rng.randbytes(sum(aad_sizes))
    aad_offsets = np.cumsum([0, *aad_sizes], dtype=np.int64)
    sealed_offsets = np.empty_like(offsets)
    total = _core.row_offsets(sealed_offsets, data, offsets, OVERHEAD)
    assert total == sum(sizes) + OVERHEAD * len(sizes)
    sealed = bytearray(total)
    extra = {"associated_rows": aad, "associated_offsets": aad_offsets, "threads": threads}
    key = cipher(kernel)
    key.seal_rows(
        sealed, data, counter=9, target_offsets=sealed_offsets, source_offsets=offsets, **extra
    )
    reference = AESGCM(bytes(range(32)))
    for i, size in enumerate(sizes):
        nonce = bytes(4) + (9 + i).to_bytes(8, "big")
        row = nonce + reference.encrypt(
            nonce,
            data[offsets[i] : offsets[i] + size],
            aad[aad_offsets[i] : aad_offsets[i + 1]],
        )
        assert row == sealed[sealed_offsets[i] : sealed_offsets[i + 1]]
    opened_offsets = np.empty_like(offsets)
    opened = bytearray(_core.row_offsets(opened_offsets, sealed, sealed_offsets, -OVERHEAD))
    key.open_rows(
        opened, sealed, target_offsets=opened_offsets, source_offsets=sealed_offsets, **extra
    )
    assert data[5:] == opened
    sealed[sealed_offsets[2000] + 12] ^= 4
    with pytest.raises(InvalidTag) as caught:
        key.open_rows(
            opened, sealed, target_offsets=opened_offsets, source_offsets=sealed_offsets, **extra
        )
    assert caught.value.index == 2000


@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_share_a_batch(kernel: str) -> None:
    """Several threads in one call, and several calls at once, give one thread's answer."""
    records = np.random.default_rng(1).integers(0, 256, (200_000, 56), np.uint8)
    key = cipher(kernel)
    expected = np.empty((len(records), 84), np.uint8)
    key.seal_rows(expected, records, counter=3)
    results = [np.empty_like(expected) for _ in range(4)]

    def work(result: np.ndarray) -> None:
        for _ in range(3):
            key.seal_rows(result, records, counter=3, threads=2)

    started = [threading.Thread(target=work, args=(result,)) for result in results]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    for result in results:
        assert (result == expected).all()
    expected[150_000, 30] ^= 1
    expected[199_999, 30] ^= 1
    with pytest.raises(InvalidTag) as caught:
        key.open_rows(np.empty_like(records), expected, threads=4)
    assert caught.value.index == 150_000


class Guarded:
    """Pages between two that cannot be touched."""

    def __init__(self, pages: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (
            [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        )
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        page = mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        # Never unmapped: arrays of a failed test may still point there.
        base = libc.mmap(None, (pages + 2) * page, 0, flags, -1, 0)
        assert base not in (None, ctypes.c_void_p(-1).value)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        assert libc.mprotect(base + page, pages * page, protection) == 0
        raw = (ctypes.c_uint8 * (pages * page)).from_address(base + page)
        self.whole = np.frombuffer(raw, np.uint8)

    def array(self, shape: tuple[int, int], at_end: bool) -> np.ndarray:
        """Return an array that ends at the upper guard or begins at the lower one."""
        size = shape[0] * shape[1]
        start = len(self.whole) - size if at_end else 0
        return self.whole[start : start + size].reshape(shape)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_outside_is_touched(kernel: str, at_end: bool) -> None:
    """No byte before or behind an array is read or written; a violation is a crash."""
    places = [Guarded(8) for _ in range(5)]
    key, reference = cipher(kernel), cipher("evp")
    rng = np.random.default_rng(5)
    for size in [*range(140), 255, 256, 257, 415, 417, 1023, 1024, 1025]:
        for count in (1, 2, 3, 4, 5):
            aad_size = (size * 7 + count) % 60
            source = places[0].array((count, size), at_end)
            source[:] = rng.integers(0, 256, source.shape, np.uint8)
            target = places[1].array((count, size + OVERHEAD), at_end)
            aad = places[2].array((count, aad_size), at_end)
            aad[:] = rng.integers(0, 256, aad.shape, np.uint8)
            back = places[3].array((count, size), at_end)
            one = places[4].array((1, aad_size), at_end)
            one[:] = 7
            for extra in ({"associated_rows": aad}, {"associated_data": one}, {}):
                key.seal_rows(target, source, counter=size, **extra)
                expected = np.empty_like(target)
                reference.seal_rows(expected, source, counter=size, **extra)
                assert expected.tobytes() == target.tobytes()
                key.open_rows(back, target, **extra)
                assert source.tobytes() == back.tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
def test_guarded_offsets(kernel: str) -> None:
    """Data and offsets of rows of various sizes are not left either."""
    places = [Guarded(4) for _ in range(4)]
    for sizes in ([1], [0], [15, 0, 17], [56] * 9, [64, 63, 65, 1, 2]):
        data = places[0].array((1, sum(sizes)), True)[0]
        offsets = places[1].array((len(sizes) + 1, 4), True).view(np.int32)[:, 0]
        offsets[:] = np.cumsum([0, *sizes])
        sealed_offsets = np.empty_like(offsets)
        total = _core.row_offsets(sealed_offsets, data, offsets, OVERHEAD)
        sealed = places[2].array((1, total), True)[0]
        arguments = {"target_offsets": sealed_offsets, "source_offsets": offsets}
        cipher(kernel).seal_rows(sealed, data, counter=1, **arguments)
        back = places[3].array((1, sum(sizes)), True)[0]
        arguments = {"target_offsets": offsets, "source_offsets": sealed_offsets}
        cipher(kernel).open_rows(back, sealed, **arguments)
        assert data.tobytes() == back.tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [0, 5, 56, 64, 2000])
def test_any_flipped_bit_is_refused(kernel: str, size: int) -> None:
    """A bit flipped anywhere in a row makes that row wrong, and leaves the others."""
    records = np.arange(5 * size, dtype=np.uint64).astype(np.uint8).reshape(5, size)
    sealed = np.empty((5, size + OVERHEAD), np.uint8)
    key = cipher(kernel)
    key.seal_rows(sealed, records, counter=7)
    opened = np.empty_like(records)
    for bit in range(0, 8 * (size + OVERHEAD), 1 if size < 100 else 97):
        row = bit % 5
        sealed[row, bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidTag) as caught:
            key.open_rows(opened, sealed)
        assert caught.value.index == row
        assert not opened[row].any()
        sealed[row, bit // 8] ^= 1 << bit % 8
    key.open_rows(opened, sealed)
    assert (opened == records).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_foreign_nonce_is_refused(kernel: str) -> None:
    """A row whose nonce no counter gives does not open, authentic as it may be."""
    sealed = np.frombuffer(
        bytearray(seal_one(kernel, bytes(32), b"\1" * 12, b"record", b"")), np.uint8
    )
    key = cipher(kernel, bytes(32))
    opened = np.empty((1, 6), np.uint8)
    with pytest.raises(InvalidTag):
        key.open_rows(opened, sealed.reshape(1, -1))
    key.open_rows(opened, sealed.reshape(1, -1), any_nonce=True)
    assert opened.tobytes() == b"record"


@pytest.mark.parametrize("kernel", KERNELS)
def test_environment_chooses_the_kernel(kernel: str) -> None:
    """TAPESEAL_KERNEL forces a kernel; its rows are the same."""
    code = (
        "import tapeseal._core as c, numpy as np; s = np.zeros((3, 48), np.uint8);"
        "c.RowCipher(c.SecretBuffer.take(bytearray(32))).seal_rows("
        "s, np.zeros((3, 20), np.uint8), counter=5); print(s.tobytes().hex())"
    )
    expected = np.zeros((3, 48), np.uint8)
    cipher("evp", bytes(32)).seal_rows(expected, np.zeros((3, 20), np.uint8), counter=5)
    environment = {**os.environ, "TAPESEAL_KERNEL": kernel}
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert expected.tobytes().hex() == printed.strip()


def test_unknown_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not run here is refused, not replaced."""
    with pytest.raises(ValueError, match="sse9"):
        cipher("sse9")
    monkeypatch.setenv("TAPESEAL_KERNEL", "altivec")
    with pytest.raises(ValueError, match="altivec"):
        _core.RowCipher(_core.SecretBuffer.random(32))


def test_kernels_are_those_of_the_processor() -> None:
    """What the processor has is used, the fastest first, and the portable path is there."""
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("what the processor has is read from /proc/cpuinfo")
    text = Path("/proc/cpuinfo").read_text()
    flags = set(re.findall(r"^(?:flags|Features)\s*: (.*)", text, re.MULTILINE)[0].split())
    expected = []
    if platform.machine() == "x86_64":
        if {"avx512f", "avx512bw", "avx512vl", "vpclmulqdq", "pclmulqdq", "sse4_1"} <= flags:
            expected.append("vpclmul")
        if {"pclmulqdq", "sse4_1"} <= flags:
            expected.append("pclmul")
    elif platform.machine() == "aarch64" and "pmull" in flags:
        expected.append("pmull")
    assert (*expected, "evp") == KERNELS


def test_misuse() -> None:
    """Arrays that do not fit together are refused before anything is sealed."""
    key = cipher("evp")
    plain, sealed = np.zeros((4, 10), np.uint8), np.zeros((4, 38), np.uint8)
    offsets = np.array([0, 10, 20, 30, 40])
    room = np.zeros(1000, np.uint8)
    read_only = np.zeros((4, 38), np.uint8)
    read_only.flags.writeable = False
    strides = np.lib.stride_tricks.as_strided
    wrong = [
        (sealed, plain[:3], {}),
        (sealed[:, :37], plain, {}),
        (sealed, np.zeros((4, 2, 5), np.uint8), {}),
        (sealed, np.zeros((10, 4), np.uint8).T, {}),
        (strides(room, (4, 38), (20, 1)), plain, {}),
        (strides(room, (4, 38), (38, 1)), strides(room[30:], (4, 10), (10, 1)), {}),
        (sealed, plain, {"associated_rows": plain[:2]}),
        (sealed, plain, {"associated_rows": plain, "associated_data": b"x"}),
        (sealed, plain, {"source_offsets": offsets}),
        (sealed, plain, {"source_offsets": offsets, "target_offsets": offsets}),
        (sealed, plain, {"associated_rows": bytes(9), "associated_offsets": offsets}),
        (sealed, plain, {"associated_rows": bytes(40), "associated_offsets": offsets[::-1]}),
        (sealed, plain, {"associated_rows": bytes(40), "associated_offsets": offsets.astype("i2")}),
    ]
    for target, source, extra in wrong:
        with pytest.raises(ValueError):  # noqa: PT012
            key.seal_rows(target, source, counter=0, **extra)
            pytest.fail(f"{target.shape} {source.shape} {extra}")
    with pytest.raises((ValueError, BufferError)):
        key.seal_rows(read_only, plain, counter=0)


@pytest.mark.parametrize("width", [np.int32, np.int64])
def test_offsets_are_checked(width: type) -> None:
    """Offsets that run backwards, start below 0, or leave the data are refused, and sums that do not fit."""
    target = np.empty(3, width)
    for offsets in ([0, 5, 4], [-1, 2, 3], [0, 2, 11], [0, -5, 3]):
        with pytest.raises(ValueError, match="offsets"):
            _core.row_offsets(target, bytes(10), np.array(offsets, width), OVERHEAD)
    assert _core.row_offsets(target, bytes(99), np.array([1, 30, 40], width), -OVERHEAD) == 1
    assert target.tolist() == [0, 1, 1]


def test_offsets_that_do_not_fit() -> None:
    """int32 offsets of sealed rows that would pass 2**31 - 1 are refused."""
    count = (1 << 31) // OVERHEAD + 1
    offsets = np.zeros(count + 1, np.int32)
    with pytest.raises(OverflowError):
        _core.row_offsets(np.empty_like(offsets), b"", offsets, OVERHEAD)


def test_counter() -> None:
    """Numbers are given out once, by any threads, and their end is an error that takes none."""
    counter = _core.Counter(100_010)
    taken: list[list[int]] = [[] for _ in range(4)]

    def work(mine: list[int]) -> None:
        mine.extend(counter.take(5) for _ in range(5000))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for mine in taken for number in mine) == list(range(0, 100_000, 5))
    with pytest.raises(OverflowError):
        counter.take(11)
    assert counter.take(10) == 100_000
    with pytest.raises(OverflowError):
        counter.take(1 << 63)
    assert counter.taken == 100_010


@pytest.mark.parametrize("kernel", KERNELS)
def test_fork_refuses(kernel: str) -> None:
    """A forked child cannot use its parent's key."""
    key = cipher(kernel)
    sealed = np.zeros((1, 38), np.uint8)
    plain = np.zeros((1, 10), np.uint8)
    key.seal_rows(sealed, plain, counter=0)
    child = os.fork()
    if child == 0:
        try:
            key.seal_rows(sealed, plain, counter=1)
        except ForkError:
            os._exit(42)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def driver_cases(seed: int) -> bytes:
    """Return cases for the C driver, made with libcrypto."""
    rng = random.Random(seed)
    out = []
    for size in [*range(100), 127, 128, 129, 200, 416, 1024]:
        for shared in (0, 1):
            count = rng.randrange(1, 10)
            aad_size = rng.choice([0, 8, 16, 17, rng.randrange(70)])
            key = rng.randbytes(32)
            block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update
            plain = np.frombuffer(rng.randbytes(count * size), np.uint8).reshape(count, size)
            aad = rng.randbytes(aad_size if shared else count * aad_size)
            sealed = np.zeros((count, size + OVERHEAD), np.uint8)
            sealed[:, :12] = np.frombuffer(rng.randbytes(12 * count), np.uint8).reshape(count, 12)
            each = rows_of(aad, aad_size, 0 if shared else count)
            extra = {"associated_data": aad} if shared else {"associated_rows": each}
            cipher("evp", key).seal_rows(sealed, plain, counter=0, any_nonce=True, **extra)
            stream = b"".join(
                block(sealed[row, :12].tobytes() + struct.pack(">I", number + 1))
                for row in range(count)
                for number in range(-(-size // 16) + 1)
            )
            out.append(struct.pack("<4I", size, aad_size, shared, count) + key + block(bytes(16)))
            out += [stream, plain.tobytes(), aad, sealed.tobytes()]
    return b"".join(out)


def run_driver(folder: Path, compiler: list[str], kernel: str, runner: list[str]) -> str:
    """Build the driver with a kernel's sources and return what it prints."""
    native, core = ROOT / "tests" / "native", ROOT / "_core"
    if not core.exists():
        pytest.skip("the source of the core is not beside these tests")
    include = folder / "include" / "openssl"
    include.mkdir(parents=True)
    # frames.h names two of libcrypto's types; the kernels use none.
    (include / "evp.h").write_text("typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;\n")
    program = folder / "driver"
    sources = [native / "row_kernel_driver.c", *sorted(core.glob("rows_*.c"))]
    subprocess.run(
        [*compiler, "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{core}",
         f"-I{include.parent}", "-o", str(program), *map(str, sources)],
        check=True,
    )  # fmt: skip
    cases = folder / "cases"
    cases.write_bytes(driver_cases(3))
    done = subprocess.run(
        [*runner, str(program), kernel, str(cases)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_pmull_under_emulation(tmp_path: Path) -> None:
    """The kernel for aarch64, cross-compiled, gives what libcrypto gives."""
    compiler, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    if not shutil.which(compiler) or not shutil.which(emulator):
        pytest.skip(f"{compiler} and {emulator} are needed (gcc-aarch64-linux-gnu, qemu-user)")
    out = run_driver(tmp_path, [compiler, "-static"], "pmull", [emulator, "-cpu", "max"])
    assert out.endswith("212 cases, 0 wrong\n")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [name for name in FAST if name != "vpclmul"])
def test_kernel_under_valgrind(tmp_path: Path, kernel: str) -> None:
    """No byte is used before it is set, and none outside its allocation. Valgrind knows no AVX-512."""
    if not shutil.which("valgrind") or not shutil.which("gcc"):
        pytest.skip("gcc and valgrind are needed")
    valgrind = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full"]
    out = run_driver(tmp_path, ["gcc"], kernel, valgrind)
    assert out.endswith("212 cases, 0 wrong\n")


@pytest.mark.slow
@pytest.mark.parametrize("kernel", FAST)
def test_kernel_under_sanitizers(tmp_path: Path, kernel: str) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer find nothing in a kernel."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is needed")
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    out = run_driver(tmp_path, ["gcc", *flags], kernel, [])
    assert out.endswith("212 cases, 0 wrong\n")
