"""The native core: published vectors, frames against another implementation, misuse, and key memory."""

import base64
import copy
import ctypes
import hashlib
import hmac
import json
import mmap
import os
import pickle
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cryptography_vectors
import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM as REFERENCE
from hypothesis import given
from hypothesis import strategies as st

from support import SHARED, child
from tapeseal import _core
from tapeseal._core import AESGCM, HMAC, SecretBuffer
from tapeseal.datakey import DataKey
from tapeseal.errors import InvalidTag

KEY = bytes(range(32))
NONCE = b"\x01" * 12
FRAME = 4096
LENGTHS = [0, 1, 15, 16, 17, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME]
OVERHEAD = _core.FRAME_HEADER_SIZE + _core.TAG_SIZE

without_sanitizers = pytest.mark.skipif(
    "TAPESEAL_SANITIZE" in os.environ,
    reason="AddressSanitizer ignores mlock() and handles faults itself",
)


def secret(data: bytes) -> SecretBuffer:
    """Return a secret of these bytes."""
    return SecretBuffer.take(bytearray(data))


def revealed(buffer: SecretBuffer) -> bytes:
    """Return a secret's bytes."""
    with buffer:
        return bytes(memoryview(buffer))


@pytest.fixture(scope="module")
def key() -> AESGCM:
    """A key object of KEY."""
    return AESGCM(secret(KEY))


@pytest.fixture(scope="module")
def huge() -> Iterator[mmap.mmap]:
    """2**31 bytes that take no memory, read-only."""
    with mmap.mmap(
        -1, 1 << 31, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ
    ) as pages:
        yield pages


# Published vectors


def cavp(name: str) -> list[dict[str, Any]]:
    """Return the vectors of a CAVP response file with our nonce and tag sizes."""
    vectors: list[dict[str, Any]] = []
    sizes: dict[str, int] = {}
    with cryptography_vectors.open_vector_file(f"ciphers/AES/GCM/{name}", "r") as lines:
        for line in map(str.strip, lines):
            if found := re.fullmatch(r"\[(\w+) = (\d+)\]", line):
                sizes[found[1]] = int(found[2])
            elif line.startswith("Count"):
                vectors.append({"sizes": dict(sizes), "fail": False})
            elif line == "FAIL":
                vectors[-1]["fail"] = True
            elif found := re.fullmatch(r"(Key|IV|CT|AAD|Tag|PT) =\s*([0-9a-f]*)", line):
                vectors[-1][found[1]] = bytes.fromhex(found[2])
    return [v for v in vectors if (v["sizes"]["IVlen"], v["sizes"]["Taglen"]) == (96, 128)]


def test_cavp_encrypt() -> None:
    """Encrypting gives the ciphertexts and tags of NIST's vectors."""
    vectors = cavp("gcmEncryptExtIV256.rsp")
    assert len(vectors) == 375
    for v in vectors:
        assert v["CT"] + v["Tag"] == AESGCM(secret(v["Key"])).encrypt(v["IV"], v["PT"], v["AAD"])


def test_cavp_encrypt_a_secret() -> None:
    """A plaintext in key memory is encrypted like any other."""
    for v in cavp("gcmEncryptExtIV256.rsp"):
        if v["PT"]:
            with secret(v["PT"]) as plaintext:
                sealed = AESGCM(secret(v["Key"])).encrypt(v["IV"], plaintext, v["AAD"])
            assert v["CT"] + v["Tag"] == sealed


@pytest.mark.parametrize("name", ["gcmDecrypt256.rsp", "gcmEncryptExtIV256.rsp"])
def test_cavp_decrypt(name: str) -> None:
    """Decrypting gives the plaintexts of NIST's vectors, and InvalidTag where those say FAIL."""
    failed = 0
    for v in cavp(name):
        cipher = AESGCM(secret(v["Key"]))
        if v["fail"]:
            failed += 1
            with pytest.raises(InvalidTag):
                cipher.decrypt(v["IV"], v["CT"] + v["Tag"], v["AAD"])
        else:
            assert v["PT"] == cipher.decrypt(v["IV"], v["CT"] + v["Tag"], v["AAD"])
    assert (failed > 100) == (name == "gcmDecrypt256.rsp")


@pytest.mark.parametrize("name", ["gcmDecrypt256.rsp", "gcmEncryptExtIV256.rsp"])
def test_cavp_decrypt_into_a_secret(name: str) -> None:
    """Decrypting into key memory gives the same."""
    for v in cavp(name):
        cipher = AESGCM(secret(v["Key"]))
        if v["CT"] and v["fail"]:
            with pytest.raises(InvalidTag):
                cipher.decrypt_secret(v["IV"], v["CT"] + v["Tag"], v["AAD"])
        elif v["CT"]:
            assert v["PT"] == revealed(cipher.decrypt_secret(v["IV"], v["CT"] + v["Tag"], v["AAD"]))


def test_cavp_key_inside_a_larger_secret() -> None:
    """A key that starts at an offset of its secret is that key."""
    for v in cavp("gcmEncryptExtIV256.rsp")[::15]:
        cipher = AESGCM(secret(b"other" + v["Key"] + b"bytes"), 5)
        assert v["CT"] + v["Tag"] == cipher.encrypt(v["IV"], v["PT"], v["AAD"])


def wycheproof(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return (group, test) of each test of a Wycheproof file, or skip."""
    path = SHARED / "vectors" / f"wycheproof-{name}_test.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    groups = json.loads(path.read_text())["testGroups"]
    return [(group, test) for group in groups for test in group["tests"]]


def test_wycheproof_aes_gcm() -> None:
    """Valid AES-256-GCM vectors open, and are what encrypting gives; the others raise InvalidTag."""
    results = []
    for group, v in wycheproof("aes_gcm"):
        if (group["keySize"], group["tagSize"]) != (256, 128):
            continue
        cipher = AESGCM(secret(bytes.fromhex(v["key"])))
        nonce, aad, message = (bytes.fromhex(v[name]) for name in ("iv", "aad", "msg"))
        sealed = bytes.fromhex(v["ct"] + v["tag"])
        if group["ivSize"] != 96:
            with pytest.raises(ValueError, match="12 bytes"):
                cipher.decrypt(nonce, sealed, aad)
        elif v["result"] == "valid":
            assert message == cipher.decrypt(nonce, sealed, aad)
            assert sealed == cipher.encrypt(nonce, message, aad)
        else:
            with pytest.raises(InvalidTag):
                cipher.decrypt(nonce, sealed, aad)
        results.append(v["result"])
    assert {"valid", "invalid"} == set(results)


def test_wycheproof_hkdf_sha512() -> None:
    """HKDF-Expand after an extraction by hashlib gives the vectors' output; sizes over the limit are refused."""
    tests = wycheproof("hkdf_sha512")
    for _, v in tests:
        salt = bytes.fromhex(v["salt"]) or bytes(64)
        extracted = hmac.digest(salt, bytes.fromhex(v["ikm"]), "sha512")
        if v["result"] == "valid":
            derived = _core.hkdf_expand(secret(extracted), bytes.fromhex(v["info"]), v["size"])
            assert bytes.fromhex(v["okm"]) == revealed(derived)
        else:
            with pytest.raises(ValueError, match="16320"):
                _core.hkdf_expand(secret(extracted), bytes.fromhex(v["info"]), v["size"])
    assert len(tests) > 50


def test_wycheproof_hmac_sha256() -> None:
    """HMAC-SHA-256 gives the valid vectors' tags and none of the others'."""
    for group, v in wycheproof("hmac_sha256"):
        mac = HMAC(secret(bytes.fromhex(v["key"]))).digest(bytes.fromhex(v["msg"]))
        same = mac[: group["tagSize"] // 8] == bytes.fromhex(v["tag"])
        assert (v["result"] == "valid") == same


@given(
    st.binary(min_size=1, max_size=200),
    st.lists(st.one_of(st.binary(max_size=300), st.integers(0, 5000).map(bytes)), max_size=8),
)
def test_hmac_of_many_messages(key: bytes, messages: list[bytes]) -> None:
    """One key gives each of its messages the MAC that hmac gives it, whatever came before."""
    mac = HMAC(secret(key))
    assert [mac.digest(each) for each in messages] == [
        hmac.digest(key, each, "sha256") for each in messages
    ]


def test_hmac_from_threads() -> None:
    """Threads that share a key do not get into each other's messages."""
    mac = HMAC(secret(KEY))

    def work(start: int) -> bool:
        texts = [b"%d" % number * (number % 97) for number in range(start, start + 2000)]
        return all(mac.digest(each) == hmac.digest(KEY, each, "sha256") for each in texts)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(0, 8000, 2000)))


def test_a_closed_hmac() -> None:
    """A closed key computes nothing; closing it again does nothing, and closing its secret is no matter."""
    buffer = secret(KEY)
    mac = HMAC(buffer)
    buffer.close()
    assert mac.digest(b"x") == hmac.digest(KEY, b"x", "sha256")
    mac.close()
    mac.close()
    with pytest.raises(ValueError, match="the key is closed"):
        mac.digest(b"x")


@given(st.binary(min_size=1, max_size=80), st.binary(max_size=200), st.integers(1, 700))
def test_hkdf_expand_is_rfc_5869(prk: bytes, info: bytes, size: int) -> None:
    """HKDF-Expand is the chain of HMACs that RFC 5869, 2.3 defines, for any key, info and size."""
    expected, block, counter = b"", b"", 0
    while len(expected) < size:
        counter += 1
        block = hmac.digest(prk, block + info + bytes([counter]), "sha512")
        expected += block
    assert expected[:size] == revealed(_core.hkdf_expand(secret(prk), info, size))


# One message


@pytest.mark.parametrize("size", [*LENGTHS, 65537, 1 << 20])
@pytest.mark.parametrize("aad_size", [0, 1, 24, 1000])
def test_encrypt_agrees(key: AESGCM, size: int, aad_size: int) -> None:
    """A message of any length is sealed as `cryptography` seals it, and opens."""
    plaintext, aad = os.urandom(size), os.urandom(aad_size)
    sealed = key.encrypt(NONCE, plaintext, aad)
    assert REFERENCE(KEY).encrypt(NONCE, plaintext, aad) == sealed
    assert plaintext == key.decrypt(NONCE, sealed, aad)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 32, 4096, 5000])
def test_decrypt_secret_agrees(key: AESGCM, size: int) -> None:
    """A message opens into key memory of just its size."""
    plaintext = os.urandom(size)
    opened = key.decrypt_secret(NONCE, key.encrypt(NONCE, plaintext))
    assert (size, plaintext) == (len(opened), revealed(opened))


@pytest.mark.parametrize("method", ["decrypt", "decrypt_secret"])
@pytest.mark.parametrize("size", [1, 16, 33])
def test_every_changed_bit_is_refused(key: AESGCM, method: str, size: int) -> None:
    """A flipped bit of ciphertext, tag, nonce or associated data raises InvalidTag."""
    sealed = key.encrypt(NONCE, bytes(size), b"aad")
    parts = [NONCE, sealed, b"aad"]
    for number, part in enumerate(parts):
        for bit in range(8 * len(part)):
            changed = bytearray(part)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(InvalidTag):
                getattr(key, method)(*parts[:number], changed, *parts[number + 1 :])


@pytest.mark.parametrize("size", range(16))
def test_shorter_than_a_tag(key: AESGCM, size: int) -> None:
    """What is too short to hold a tag is InvalidTag, not an error of another kind."""
    with pytest.raises(InvalidTag):
        key.decrypt(NONCE, bytes(size))


def test_no_secret_of_nothing(key: AESGCM) -> None:
    """An empty message cannot go to key memory."""
    with pytest.raises(ValueError, match="1 to"):
        key.decrypt_secret(NONCE, key.encrypt(NONCE, b""))


@pytest.mark.parametrize("size", [0, 1, 11, 13, 16])
def test_nonce_size(key: AESGCM, size: int) -> None:
    """A nonce of another size is refused."""
    sealed = key.encrypt(NONCE, b"x")
    for call in (key.encrypt, key.decrypt, key.decrypt_secret):
        with pytest.raises(ValueError, match="12 bytes"):
            call(bytes(size), sealed)


def test_over_the_limit(key: AESGCM, huge: mmap.mmap) -> None:
    """Messages and associated data that libcrypto's int cannot count are OverflowErrors."""
    with memoryview(huge) as view:
        for plaintext in (view, view[: (1 << 31) - 16]):
            with pytest.raises(OverflowError, match="17"):
                key.encrypt(NONCE, plaintext)
        for call in (key.decrypt, key.decrypt_secret):
            with pytest.raises(OverflowError, match="17"):
                call(NONCE, view)
        for call in (key.encrypt, key.decrypt, key.decrypt_secret):
            with pytest.raises(OverflowError, match="associated_data"):
                call(NONCE, bytes(17), view)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("method", ["encrypt", "decrypt", "decrypt_secret"])
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (None, TypeError),
        ("text" * 3, TypeError),
        (12, TypeError),
        (memoryview(bytes(24))[::2], BufferError),
    ],
)
def test_wrong_message_arguments(
    key: AESGCM, position: int, method: str, bad: Any, error: type[Exception]
) -> None:
    """Each argument of a message must be a contiguous buffer."""
    arguments: list[Any] = [NONCE, bytes(32), b""]
    arguments[position] = bad
    with pytest.raises(error):
        getattr(key, method)(*arguments)


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, np.uint8)]
)
def test_any_buffer(key: AESGCM, kind: Any) -> None:
    """Every kind of contiguous buffer is taken."""
    sealed = key.encrypt(kind(NONCE), kind(b"message"), kind(b"aad"))
    assert key.decrypt(kind(NONCE), kind(sealed), kind(b"aad")) == b"message"


# Runs of frames


def reference_frames(
    plain: bytes, item_size: int, frame_items: int, first: int, index: int, final: bool
) -> bytes:
    """Seal frames one by one as FORMAT 5 has it."""
    full = item_size * frame_items
    pieces = [plain[start : start + full] for start in range(0, len(plain), full)] or [b""]
    sealed = b""
    for number, piece in enumerate(pieces):
        kind = 3 if final and number == len(pieces) - 1 else 2
        header = (
            bytes([kind, 0, 0, 0])
            + (len(piece) // item_size).to_bytes(4, "little")
            + (first + number * frame_items).to_bytes(8, "little")
            + len(piece).to_bytes(4, "little")
            + bytes(4)
        )
        nonce = bytes(4) + (index + number).to_bytes(8, "big")
        sealed += header + REFERENCE(KEY).encrypt(nonce, piece, header)
    return sealed


RUNS = [
    # count, item_size, frame_items, first, index, final
    *((size, 1, FRAME, 0, 0, False) for size in LENGTHS if size),
    *((size, 1, FRAME, 7, 3, True) for size in LENGTHS),
    (73, 56, 73, 0, 0, False),
    (74, 56, 73, 1 << 40, (1 << 32) - 2, False),
    (1000, 56, 73, (1 << 64) - 1000, 12345, True),
    (5, 1 << 20, 2, 0, 0, False),
    (13, 65536, 1, 0, 0, False),
    (16000, 56, 1170, 99, 1, False),
    (900_001, 1, 65536, 0, 0, True),
]


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("count", "item_size", "frame_items", "first", "index", "final"), RUNS)
def test_frames_agree(
    key: AESGCM,
    count: int,
    item_size: int,
    frame_items: int,
    first: int,
    index: int,
    final: bool,
    threads: int,
) -> None:
    """A run of frames, out of place and in place, is what `cryptography` seals one by one, and opens again."""
    plain = os.urandom(count * item_size)
    expected = reference_frames(plain, item_size, frame_items, first, index, final)
    numbers = {
        "count": count, "item_size": item_size, "frame_items": frame_items, "first": first, "index": index,
        "final": final, "threads": threads,
    }  # fmt: skip

    sealed = bytearray(len(expected) + 5)
    assert len(expected) == key.seal_frames(sealed, plain, **numbers)
    assert (expected, bytes(5)) == (sealed[: len(expected)], sealed[len(expected) :])

    opened = bytearray(len(plain))
    assert len(expected) == key.open_frames(opened, sealed, **numbers)
    assert plain == opened

    step = item_size * frame_items + OVERHEAD
    assert len(expected) == key.open_frames(None, sealed, **numbers)
    starts = range(0, len(expected), step)
    in_place = b"".join(sealed[s + 24 : min(s + step, len(expected)) - 16] for s in starts)
    assert plain == in_place

    assert len(expected) == key.seal_frames(sealed, None, **numbers)
    assert expected == sealed[: len(expected)]


NUMBERS = {"count": 200, "item_size": 16, "frame_items": 64, "first": 10, "index": 5}
"""Three full frames and one of 8 items."""


@pytest.fixture
def frames(key: AESGCM) -> bytearray:
    """The frames of NUMBERS, of items of ones."""
    sealed = bytearray(200 * 16 + 4 * OVERHEAD)
    key.seal_frames(sealed, b"\x01" * 3200, **NUMBERS)
    return sealed


@pytest.mark.parametrize("threads", [1, 2])
def test_frames_that_fail_are_wiped(key: AESGCM, threads: int) -> None:
    """The first frame that fails is named, and no plaintext of any failed frame stays in the target."""
    numbers = {
        "count": 20 * 4096,
        "item_size": 16,
        "frame_items": 4096,
        "first": 0,
        "index": 0,
        "threads": threads,
    }
    step = 65536 + OVERHEAD
    sealed = bytearray(20 * step)
    key.seal_frames(sealed, b"\x01" * (20 * 65536), **numbers)
    # A tag, a ciphertext and a header.
    for frame, offset in ((7, step - 1), (12, 5000), (19, 9)):
        sealed[frame * step + offset] ^= 1
    target = bytearray(b"\x02" * (20 * 65536))
    with pytest.raises(InvalidTag) as caught:
        key.open_frames(target, sealed, **numbers)
    assert caught.value.index == 7
    whole = [set(target[n * 65536 : (n + 1) * 65536]) for n in range(20)]
    assert {7: {0}, 12: {0}, 19: {0}} == {n: whole[n] for n in (7, 12, 19)}
    assert [{1}] * 17 == [values for n, values in enumerate(whole) if n not in (7, 12, 19)]


def test_frames_that_fail_in_place_are_wiped(key: AESGCM, frames: bytearray) -> None:
    """In place a failed frame's bytes are zeros afterwards."""
    step = 64 * 16 + OVERHEAD
    frames[step - 1] ^= 1
    with pytest.raises(InvalidTag) as caught:
        key.open_frames(None, frames, **NUMBERS)
    assert caught.value.index == 0
    assert bytes(1024) == frames[24 : step - 16]


@pytest.mark.parametrize("name", ["count", "item_size", "frame_items", "first", "index", "final"])
def test_frames_sealed_otherwise(key: AESGCM, frames: bytearray, name: str) -> None:
    """Frames open only under the numbers they were sealed with."""
    other = {
        "count": {"count": 199}, "item_size": {"item_size": 8, "count": 400, "frame_items": 128},
        "frame_items": {"frame_items": 63}, "first": {"first": 11}, "index": {"index": 6}, "final": {"final": True},
    }[name]  # fmt: skip
    numbers = {**NUMBERS, **other}
    sealed = frames + bytes(1000)
    with pytest.raises(InvalidTag):
        key.open_frames(bytearray(numbers["count"] * numbers["item_size"]), sealed, **numbers)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_changed_bit_of_a_frame_is_refused(key: AESGCM, threads: int) -> None:
    """A flipped bit anywhere in a frame, its header included, raises InvalidTag and leaves zeros."""
    numbers = {
        "count": 3,
        "item_size": 16,
        "frame_items": 3,
        "first": 1,
        "index": 1,
        "threads": threads,
    }
    sealed = bytearray(48 + OVERHEAD)
    key.seal_frames(sealed, b"\x01" * 48, **numbers)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        target = bytearray(b"\x02" * 48)
        with pytest.raises(InvalidTag):
            key.open_frames(target, changed, **numbers)
        assert bytes(48) == target


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"count": 0}, ValueError),
        ({"count": 201}, ValueError),
        ({"count": -1}, OverflowError),
        ({"count": 1 << 64}, OverflowError),
        ({"count": (1 << 36) + 1}, ValueError),
        ({"count": None}, TypeError),
        ({"count": "200"}, TypeError),
        ({"item_size": 0}, ValueError),
        ({"item_size": -1}, OverflowError),
        ({"item_size": 1 << 32}, OverflowError),
        ({"item_size": (1 << 20) + 1}, ValueError),
        ({"frame_items": 0}, ValueError),
        ({"frame_items": 1 << 32}, OverflowError),
        ({"frame_items": (1 << 22) + 1}, ValueError),
        ({"first": -1}, OverflowError),
        ({"first": 1 << 64}, OverflowError),
        ({"index": -1}, OverflowError),
        ({"index": (1 << 32) - 3}, ValueError),
        ({"index": 1 << 63}, ValueError),
        ({"threads": -1}, OverflowError),
        ({"threads": "2"}, TypeError),
    ],
)
def test_wrong_frame_numbers(
    key: AESGCM, frames: bytearray, change: dict[str, Any], error: type[Exception]
) -> None:
    """Numbers that do not fit each other, the buffers or the format's limits are refused."""
    before = bytes(frames)
    with pytest.raises(error):
        key.open_frames(bytearray(3200), frames, **{**NUMBERS, **change})
    with pytest.raises(error):
        key.seal_frames(frames, bytes(3200), **{**NUMBERS, **change})
    assert before == frames


def test_wrong_frame_buffers(key: AESGCM, frames: bytearray, huge: mmap.mmap) -> None:
    """Buffers must be contiguous, writable where written to, of the right size, and apart from each other."""
    plain = bytearray(3200)
    joint = bytearray(10000)
    view = memoryview(joint)
    size = len(frames)
    with memoryview(huge) as pages:
        for target, source, error in (
            (None, plain, TypeError),
            (bytes(frames), plain, BufferError),
            (pages[:size], plain, BufferError),
            (view[: 2 * size : 2], plain, BufferError),
            (bytearray(size - 1), plain, ValueError),
            (frames, view[: 2 * 3200 : 2], BufferError),
            (frames, plain[:-1], ValueError),
            (frames, plain + b"x", ValueError),
            (frames, "text", TypeError),
            (frames, pages, ValueError),
            (view[:size], view[size - 1 : size + 3199], ValueError),
            (view[3199 : 3199 + size], view[:3200], ValueError),
            (view[:size], view[24:3224], ValueError),
            (bytes(frames), None, BufferError),
        ):
            with pytest.raises(error):
                key.seal_frames(target, source, **NUMBERS)
        for target, source, error in (
            (plain, None, TypeError),
            (None, None, TypeError),
            (None, bytes(frames), BufferError),
            (bytes(plain), frames, BufferError),
            (pages[:3200], frames, BufferError),
            (plain[:-1], frames, ValueError),
            (bytearray(3201), frames, ValueError),
            (view[:6400:2], frames, BufferError),
            (plain, frames[:-1], ValueError),
            (view[24:3224], view[:size], ValueError),
        ):
            with pytest.raises(error):
                key.open_frames(target, source, **NUMBERS)
    assert not any(joint)


def test_frames_beside_each_other(key: AESGCM) -> None:
    """Plaintext and frames may be neighbours in one buffer."""
    joint = bytearray(3200) + bytearray(3200 + 4 * OVERHEAD)
    view = memoryview(joint)
    key.seal_frames(view[3200:], view[:3200], **NUMBERS)
    view[:3200] = b"\x01" * 3200
    key.open_frames(view[:3200], view[3200:], **NUMBERS)
    assert bytes(3200) == view[:3200]


# Small helpers


def test_copy_into() -> None:
    """Bytes land at their offset and nowhere else; what does not fit is refused."""
    target = bytearray(8)
    assert _core.copy_into(target, 3, b"abc") == 3
    assert target == b"\0\0\0abc\0\0"
    assert _core.copy_into(target, 8, b"") == 0
    for offset, data in ((6, b"abc"), (-1, b"a"), (9, b""), (0, bytes(9)), ((1 << 63) - 1, b"ab")):
        with pytest.raises(ValueError, match="do not fit"):
            _core.copy_into(target, offset, data)
    for wrong_target, data, error in (
        (b"12345678", b"a", BufferError),
        (target, memoryview(b"abcd")[::2], BufferError),
        (memoryview(target)[::2], b"a", BufferError),
        (None, b"a", TypeError),
        (target, None, TypeError),
    ):
        with pytest.raises(error):
            _core.copy_into(wrong_target, 0, data)
    assert target == b"\0\0\0abc\0\0"


def test_wipe() -> None:
    """wipe() zeroes a writable contiguous buffer and refuses others."""
    data = bytearray(b"secret")
    _core.wipe(data)
    assert bytes(6) == data
    for wrong, error in (
        (b"bytes", BufferError),
        (memoryview(data)[::2], BufferError),
        (None, TypeError),
    ):
        with pytest.raises(error):
            _core.wipe(wrong)


def test_openssl_version() -> None:
    """The libcrypto in use names itself."""
    assert re.match(r"OpenSSL 3\.\d+\.\d+", _core.openssl_version())


# Key memory


def address(view: memoryview) -> int:
    """Return where a buffer's first byte lies."""
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


@pytest.mark.parametrize("size", [1, 15, 16, 17, 32, 64, 4095, 4096, 4097, 100_000])
def test_secret_ends_at_a_guard_page(size: int) -> None:
    """A secret is zeroed, aligned to 16 bytes, and its pages end within 16 bytes of its own end."""
    with SecretBuffer(size) as buffer, memoryview(buffer) as view:
        start = address(view)
        assert (size, True, bytes(size)) == (len(view), view.readonly, bytes(view))
        assert start % 16 == 0
        assert (start + (size + 15) // 16 * 16) % mmap.PAGESIZE == 0


@without_sanitizers
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="no /proc/self/smaps here")
@pytest.mark.parametrize("size", [1, 32, 10_000])
def test_secret_pages_are_locked_not_dumped_and_wiped_on_fork(size: int) -> None:
    """The kernel's flags of the pages: lo (locked), dd (not dumped), wf (wiped on fork); guards have no access."""
    with SecretBuffer(size) as buffer, memoryview(buffer) as view:
        assert buffer.locked
        start = address(view)
        with open("/proc/self/smaps") as lines:
            text = lines.read()
    found = {}
    ranges = []
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
        low, high, access = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", entry).groups()
        ranges.append((int(low, 16), int(high, 16), access))
        if int(low, 16) <= start < int(high, 16):
            found = set(re.search(r"VmFlags: (.*)", entry)[1].split())
            here = ranges[-1]
    assert {"lo", "dd", "wf"} <= found
    neighbours = {
        access for low, high, access in ranges if here[0] in (low, high) or here[1] in (low, high)
    }
    assert "---p" in neighbours
    assert here[2] == "rw-p"


@without_sanitizers
@pytest.mark.parametrize("size", [1, 32, 4096, 5000])
@pytest.mark.parametrize("side", ["above", "below"])
def test_access_past_a_secret_kills_the_process(size: int, side: str) -> None:
    """A read at the first byte behind or before a secret's pages is a segmentation fault."""
    done = child(
        """
        import ctypes, mmap, sys
        import numpy as np
        from tapeseal._core import SecretBuffer
        size = int(sys.argv[1])
        with SecretBuffer(size) as secret, memoryview(secret) as view:
            start = int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])
            padded = (size + 15) // 16 * 16
            if sys.argv[2] == "above":
                inside, outside = start + padded - 1, start + padded
            else:
                inside = start // mmap.PAGESIZE * mmap.PAGESIZE
                outside = inside - 1
            ctypes.string_at(inside, 1)
            print("inside", flush=True)
            ctypes.string_at(outside, 1)
            print("outside", flush=True)
        """,
        size,
        side,
    )
    assert (-signal.SIGSEGV, "inside\n") == (done.returncode, done.stdout)


def test_close_wipes_what_is_still_viewed() -> None:
    """A view held across close() reads zeros, and the secret takes no other."""
    buffer = secret(b"secret bytes")
    with buffer:
        view = memoryview(buffer)
    assert view == b"secret bytes"
    buffer.close()
    assert bytes(12) == view
    assert buffer.closed
    view.release()
    buffer.close()
    assert buffer.closed


def test_close_wipes_inside_with() -> None:
    """close() inside `with` ends it: no view can be had any more."""
    buffer = SecretBuffer(4)
    with buffer:
        buffer.close()
        with pytest.raises(ValueError, match="closed"):
            memoryview(buffer)
    with pytest.raises(ValueError, match="closed"), buffer:
        pass


def test_dropping_a_viewed_secret_keeps_the_view_whole() -> None:
    """A view keeps its secret's pages mapped."""
    buffer = secret(b"abc")
    with buffer:
        view = memoryview(buffer)
    del buffer
    assert view == b"abc"


def test_buffer_only_inside_with() -> None:
    """The bytes can be had inside `with` alone, also when `with` blocks are nested."""
    buffer = secret(b"abc")
    for take in (memoryview, bytes, bytearray, hashlib.sha256, lambda b: b"".join([b])):
        with pytest.raises((BufferError, TypeError)):
            take(buffer)
    with buffer, buffer:
        assert bytes(memoryview(buffer)) == b"abc"
    with buffer:
        with buffer:
            pass
        assert bytes(memoryview(buffer)) == b"abc"
    with pytest.raises(BufferError, match="inside"):
        memoryview(buffer)


def test_secret_is_read_only() -> None:
    """Nobody can write through the buffer."""
    with secret(b"abc") as buffer:
        with pytest.raises(TypeError), memoryview(buffer) as view:
            view[0] = 1
        for write in (_core.wipe, SecretBuffer.take, lambda b: _core.copy_into(b, 0, b"x")):
            with pytest.raises(BufferError):
                write(buffer)
        with open(os.devnull, "rb") as null, pytest.raises(TypeError):
            null.readinto(buffer)
        assert bytes(memoryview(buffer)) == b"abc"


def test_take_moves() -> None:
    """take() leaves zeros behind, also where it refuses."""
    source = bytearray(b"secret")
    assert revealed(SecretBuffer.take(source)) == b"secret"
    assert bytes(6) == source
    array = np.full(4, 7, np.uint16)
    assert revealed(SecretBuffer.take(array)) == b"\7\0" * 4
    assert not array.any()
    for wrong, error in ((b"bytes", BufferError), (None, TypeError), (bytearray(), ValueError)):
        with pytest.raises(error):
            SecretBuffer.take(wrong)


@pytest.mark.parametrize("size", [0, -1, (1 << 30) + 1, (1 << 63) - 1])
def test_secret_sizes(size: int) -> None:
    """A secret has 1 to 2**30 bytes."""
    for make in (SecretBuffer, SecretBuffer.random, lambda n: SecretBuffer.read(0, n)):
        with pytest.raises(ValueError, match="1 to 2"):
            make(size)


def test_secret_from_a_file(tmp_path: Any) -> None:
    """read() takes just its bytes from a descriptor, and says where the file ends before."""
    path = tmp_path / "secret"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDONLY)
    try:
        assert revealed(SecretBuffer.read(fd, 4)) == b"0123"
        assert revealed(SecretBuffer.read(fd, 4)) == b"4567"
        with pytest.raises(EOFError, match="2 of 4"):
            SecretBuffer.read(fd, 4)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="descriptor"):
        SecretBuffer.read(fd, 4)


def test_secret_from_a_pipe() -> None:
    """read() goes on after short reads."""
    out, into = os.pipe()
    os.write(into, b"abc")
    if os.fork() == 0:
        os.write(into, b"def")
        os._exit(0)
    os.close(into)
    os.wait()
    assert revealed(SecretBuffer.read(out, 6)) == b"abcdef"
    os.close(out)


@given(st.binary(min_size=1, max_size=70))
def test_hex_round_trip(data: bytes) -> None:
    """to_hex() and from_hex() are Python's hex() and fromhex()."""
    buffer = secret(data)
    digits = buffer.to_hex()
    assert data.hex().encode() == revealed(digits)
    assert data == revealed(SecretBuffer.from_hex(digits, 0, len(digits)))
    assert data == revealed(
        SecretBuffer.from_hex(secret(data.hex().upper().encode()), 0, 2 * len(data))
    )


@pytest.mark.parametrize("digit", range(256))
def test_hex_digits(digit: int) -> None:
    """Just the characters 0-9, a-f and A-F are digits, in either place."""
    allowed = digit in b"0123456789abcdefABCDEF"
    for text in (bytes([digit, 0x30]), bytes([0x30, digit])):
        if allowed:
            assert bytes.fromhex(text.decode()) == revealed(
                SecretBuffer.from_hex(secret(text), 0, 2)
            )
        else:
            with pytest.raises(ValueError, match="no hexadecimal"):
                SecretBuffer.from_hex(secret(text), 0, 2)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (0, 1), (-2, 2), (2, 0), (0, 6), (4, 6), (3, 4)]
)
def test_hex_ranges(start: int, stop: int) -> None:
    """A range outside the text, odd or empty is refused."""
    with pytest.raises(ValueError, match="no range"):
        SecretBuffer.from_hex(secret(b"abcd"), start, stop)


@given(st.binary(min_size=1, max_size=70), st.binary(max_size=9), st.binary(max_size=9))
def test_base64_round_trip(data: bytes, before: bytes, after: bytes) -> None:
    """to_base64() and from_base64() are Python's b64encode() and b64decode()."""
    text = secret(data).to_base64()
    encoded = base64.b64encode(data)
    assert encoded == revealed(text)
    inside = secret(before + encoded + after)
    stop = len(before) + len(encoded)
    assert data == revealed(SecretBuffer.from_base64(inside, len(before), stop))


@pytest.mark.parametrize("digit", range(256))
def test_base64_digits(digit: int) -> None:
    """Just the 64 characters of the alphabet are digits, at any place, and = is padding alone."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for place in range(4):
        text = bytearray(b"AAAAAAAA")
        text[place] = digit
        if digit in alphabet:
            assert base64.b64decode(text) == revealed(SecretBuffer.from_base64(secret(text), 0, 8))
        else:
            with pytest.raises(ValueError, match="canonical base64"):
                SecretBuffer.from_base64(secret(text), 0, 8)


@pytest.mark.parametrize(
    "text", [b"AB==", b"AAB=", b"A===", b"====", b"=AAA", b"AA=A", b"AA==AAAA", b"AAA\n"]
)
def test_base64_that_is_not_canonical(text: bytes) -> None:
    """Padding belongs to the end, and what it leaves over is zero: each secret has one text."""
    with pytest.raises(ValueError, match="canonical base64"):
        SecretBuffer.from_base64(secret(text), 0, len(text))


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (0, 1), (0, 3), (-4, 4), (4, 0), (0, 12), (5, 9), (8, 12)]
)
def test_base64_ranges(start: int, stop: int) -> None:
    """A range outside the text, of no whole groups or empty is refused."""
    with pytest.raises(ValueError, match="no range"):
        SecretBuffer.from_base64(secret(b"AAAAAAAA"), start, stop)


def test_writable_secret() -> None:
    """A secret made writable takes what is written to its view, and is otherwise as any other."""
    buffer = SecretBuffer(5, writable=True)
    with buffer, memoryview(buffer) as view:
        assert (False, bytes(5)) == (view.readonly, bytes(view))
        view[1:3] = b"ab"
    assert b"\0ab\0\0" == revealed(buffer)
    with pytest.raises(BufferError):
        memoryview(buffer)
    with secret(b"abc") as fixed, memoryview(fixed) as view, pytest.raises(TypeError):
        view[0] = 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: secret(KEY),
        lambda: AESGCM(secret(KEY)),
        lambda: HMAC(secret(KEY)),
        lambda: DataKey(secret(KEY)),
    ],
)
def test_no_copies_of_keys(make: Any) -> None:
    """A key is not copied, pickled, shown, compared, subclassed or given attributes."""
    held = make()
    for leak in (copy.copy, copy.deepcopy, *(lambda k, p=p: pickle.dumps(k, p) for p in range(6))):
        with pytest.raises(TypeError):
            leak(held)
    assert held != make()
    assert held != KEY
    assert len({held, held}) == 1
    with pytest.raises(TypeError):
        held < make()  # noqa: B015
    for text in (repr(held), str(held), f"{held}"):
        assert any(name in text for name in ("Secret", "AESGCM", "HMAC", "DataKey"))
        assert KEY.hex() not in text
        assert repr(KEY)[2:-1] not in text


@pytest.mark.parametrize("base", [SecretBuffer, AESGCM, HMAC])
def test_key_classes_are_final(base: type) -> None:
    """No subclass sees the inside, and no attribute is added."""
    with pytest.raises(TypeError):
        type("Sub", (base,), {})
    held = secret(KEY) if base is SecretBuffer else base(secret(KEY))
    with pytest.raises(AttributeError):
        held.note = 1


def test_key_sizes() -> None:
    """A key is 32 bytes inside its secret, a data key just 32 bytes."""
    for size, offset in ((31, 0), (32, 1), (32, -1), (64, 33), (32, 1 << 62)):
        with pytest.raises(ValueError, match="32 bytes"):
            AESGCM(SecretBuffer(size), offset)
    for wrong in (None, KEY, bytearray(KEY)):
        with pytest.raises(TypeError):
            AESGCM(wrong)
    for size in (31, 33):
        buffer = SecretBuffer(size)
        with pytest.raises(ValueError, match="32 bytes"):
            DataKey(buffer)
        assert buffer.closed


def test_closed_secrets_make_nothing() -> None:
    """A closed secret is no key for anything; keys made before go on."""
    buffer = secret(KEY)
    made = AESGCM(buffer)
    buffer.close()
    for use in (
        AESGCM,
        lambda b: _core.hkdf_expand(b, b"", 32),
        HMAC,
        lambda b: SecretBuffer.from_hex(b, 0, 2),
        SecretBuffer.to_hex,
        lambda b: SecretBuffer.from_base64(b, 0, 4),
        SecretBuffer.to_base64,
    ):
        with pytest.raises(ValueError):
            use(buffer)
    assert REFERENCE(KEY).encrypt(NONCE, b"x", b"") == made.encrypt(NONCE, b"x")


def test_helpers_take_secrets_alone() -> None:
    """Derivations refuse anything but a SecretBuffer, and sizes out of range."""
    for wrong in (None, KEY, "text"):
        with pytest.raises(TypeError):
            _core.hkdf_expand(wrong, b"", 32)
        with pytest.raises(TypeError):
            HMAC(wrong)
    for wrong, error in (
        (None, TypeError),
        ("text", TypeError),
        (memoryview(b"abcd")[::2], BufferError),
    ):
        with pytest.raises(error):
            _core.hkdf_expand(secret(KEY), wrong, 32)
        with pytest.raises(error):
            HMAC(secret(KEY)).digest(wrong)
    for size in (0, -1, 255 * 64 + 1):
        with pytest.raises(ValueError, match="16320"):
            _core.hkdf_expand(secret(KEY), b"", size)


def test_file_state(tmp_path: Path) -> None:
    """It says of files what os.lstat() does, of links too, and raises what that raises."""
    (tmp_path / "grüße").write_bytes(bytes(12345))
    (tmp_path / "link").symlink_to("grüße")
    for name in ("grüße", "link", "."):
        status = os.lstat(tmp_path / name)
        state = _core.file_state(os.fsencode(tmp_path / name))
        assert state == (status.st_dev, status.st_ino, status.st_size)
    with pytest.raises(FileNotFoundError) as missing:
        _core.file_state(os.fsencode(tmp_path / "nothing"))
    assert missing.value.filename == str(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError):
        _core.file_state(os.fsencode(tmp_path / "grüße" / "x"))
    for wrong in (None, str(tmp_path)):
        with pytest.raises(TypeError):
            _core.file_state(wrong)


def test_memory_is_given_back() -> None:
    """Many secrets after each other hold no memory, locked or not."""

    def locked() -> int:
        with open("/proc/self/status") as lines:
            return int(re.search(r"VmLck:\s*(\d+)", lines.read())[1])

    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc/self/status here")
    before = locked()
    for _ in range(1000):
        AESGCM(secret(KEY)).decrypt_secret(NONCE, REFERENCE(KEY).encrypt(NONCE, KEY, b""))
        HMAC(secret(KEY)).digest(KEY)
    assert locked() - before <= 16


@without_sanitizers
def test_without_the_right_to_lock() -> None:
    """Where RLIMIT_MEMLOCK is 0 and no capability lifts it, a secret warns and works."""
    done = child(
        """
        import os, resource, warnings
        from tapeseal._core import AESGCM, SecretBuffer
        from tapeseal import UnlockedMemoryWarning
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        if os.geteuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            secret = SecretBuffer.random(32)
        print([w.category.__name__ for w in caught], secret.locked, len(AESGCM(secret).encrypt(bytes(12), b"abc")))
        warnings.simplefilter("error")
        try:
            SecretBuffer.take(source := bytearray(b"abc"))
        except UnlockedMemoryWarning as warning:
            print("RLIMIT_MEMLOCK" in str(warning), source)
        """
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout == (
        "['UnlockedMemoryWarning'] False 19\nTrue bytearray(b'\\x00\\x00\\x00')\n"
    )


def test_failed_constructors_leave_nothing_to_free() -> None:
    """Objects whose construction failed are freed without a word."""
    done = child(
        """
        import gc
        from tapeseal._core import AESGCM, HMAC, SecretBuffer
        secret = SecretBuffer(16)
        closed = SecretBuffer(32)
        closed.close()
        for make in (
            lambda: SecretBuffer(), lambda: SecretBuffer(0), lambda: SecretBuffer(-1), lambda: SecretBuffer("x"),
            lambda: SecretBuffer(1 << 31), lambda: SecretBuffer.__new__(SecretBuffer),
            lambda: SecretBuffer.random(0), lambda: SecretBuffer.take(bytearray()), lambda: SecretBuffer.read(-1, 5),
            lambda: AESGCM(), lambda: AESGCM(None), lambda: AESGCM(secret), lambda: AESGCM(closed),
            lambda: AESGCM(SecretBuffer(32), -1), lambda: AESGCM(SecretBuffer(32), 1), lambda: AESGCM.__new__(AESGCM),
            lambda: HMAC(), lambda: HMAC(None), lambda: HMAC(closed), lambda: HMAC.__new__(HMAC),
        ):
            try:
                make()
            except (TypeError, ValueError, OSError) as error:
                del error
            else:
                print("made")
            gc.collect()
        """,
        flags=["-X", "dev", "-W", "error"],
    )
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


# Forks


FORK = """
    import json, os, sys, warnings
    import numpy as np
    import tapeseal
    from support import ticks
    from tapeseal import _core
    from tapeseal._core import AESGCM, HMAC, SecretBuffer
    from tapeseal.datakey import DataKey

    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks with threads.
    key_file, folder = sys.argv[1:]
    keyring = tapeseal.keyring("local:" + key_file)

    secret = SecretBuffer.random(32)
    held = SecretBuffer.take(bytearray(b"held bytes"))
    held.__enter__()
    view = memoryview(held)
    key = AESGCM(secret)
    mac = HMAC(secret)
    data_key = DataKey.generate()
    sealed = key.encrypt(bytes(12), bytes(32))
    frame = bytearray(56)
    key.seal_frames(frame, bytes(16), count=1, item_size=16, frame_items=1, first=0, index=0)

    names = {name: os.path.join(folder, name) for name in ("writer", "bytes", "dropped", "reader")}
    writer = tapeseal.open(names["writer"], "w", keyring=keyring, dtype=ticks(0, 0).dtype, frame_size=4096)
    writer.append(ticks(0, 300)); writer.flush(); writer.append(ticks(300, 310))
    dropped = tapeseal.open(names["dropped"], "w", keyring=keyring, dtype=ticks(0, 0).dtype, frame_size=4096)
    dropped.append(ticks(0, 300)); dropped.flush(); dropped.append(ticks(300, 310))
    byte_writer = tapeseal.open(names["bytes"], "wb", keyring=keyring)
    byte_writer.write(b"abc")
    with tapeseal.open(names["reader"], "w", keyring=keyring, dtype=ticks(0, 0).dtype, index_by="number") as tape:
        tape.append(ticks(0, 1000))
    reader = tapeseal.open(names["reader"], keyring=keyring)
    live = tapeseal.open(names["writer"], keyring=keyring)
    live_bytes = tapeseal.open(names["bytes"], "rb", keyring=keyring)
    byte_writer.flush()
    numbers = dict(count=1, item_size=16, frame_items=1, first=0, index=0)

    def leave(tape):
        with tape:
            pass

    uses = {
        "SecretBuffer.__enter__": lambda: secret.__enter__(),
        "memoryview": lambda: memoryview(held),
        "SecretBuffer.to_hex": lambda: secret.to_hex(),
        "SecretBuffer.from_hex": lambda: SecretBuffer.from_hex(secret, 0, 2),
        "SecretBuffer.to_base64": lambda: secret.to_base64(),
        "SecretBuffer.from_base64": lambda: SecretBuffer.from_base64(secret, 0, 4),
        "hkdf_expand": lambda: _core.hkdf_expand(secret, b"", 32),
        "HMAC": lambda: HMAC(secret),
        "HMAC.digest": lambda: mac.digest(b""),
        "AESGCM": lambda: AESGCM(secret),
        "AESGCM.encrypt": lambda: key.encrypt(bytes(12), b"x"),
        "AESGCM.decrypt": lambda: key.decrypt(bytes(12), sealed),
        "AESGCM.decrypt_secret": lambda: key.decrypt_secret(bytes(12), sealed),
        "AESGCM.seal_frames": lambda: key.seal_frames(frame, bytes(16), **numbers),
        "AESGCM.open_frames": lambda: key.open_frames(bytearray(16), frame, **numbers),
        "DataKey.header_mac": lambda: data_key.header_mac(bytes(16), b""),
        "DataKey.segment_key": lambda: data_key.segment_key(bytes(16), bytes(80)),
        "keyring.generate": lambda: keyring.generate({}),
        "TapeWriter.append": lambda: writer.append(ticks(310, 311)),
        "TapeWriter.append many": lambda: writer.append(ticks(310, 1000)),
        "TapeWriter.append none": lambda: writer.append(ticks(0, 0)),
        "TapeWriter.flush": lambda: writer.flush(),
        "TapeWriter.flush sync": lambda: writer.flush(sync=True),
        "TapeWriter.close": lambda: writer.close(),
        "TapeWriter.close unsealed": lambda: writer.close(seal=False),
        "TapeWriter.__exit__": lambda: leave(writer),
        "ByteWriter.write": lambda: byte_writer.write(b"x"),
        "ByteWriter.flush": lambda: byte_writer.flush(),
        "ByteWriter.close": lambda: byte_writer.close(),
        "TapeReader item": lambda: reader[0],
        "TapeReader slice": lambda: reader[5:10],
        "TapeReader step": lambda: reader[::-7],
        "TapeReader.between": lambda: reader.between("number", 3, 5),
        "TapeReader.batches": lambda: next(reader.batches()),
        "TapeReader.__iter__": lambda: next(iter(reader)),
        "TapeReader.follow": lambda: next(live.follow()),
        "ByteReader.read": lambda: live_bytes.raw.tape._refresh() or live_bytes.read(1),
    }

    def content():
        found = {}
        for name in names.values():
            with open(name, "rb") as file:
                found[name] = file.read()
        return found

    before = content()
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        results = {"the held view": str(bytes(view) == bytes(10))}
        for name, use in uses.items():
            try:
                use()
                results[name] = "nothing"
            except BaseException as error:
                results[name] = type(error).__name__
        os.write(into, json.dumps(results).encode())
        del writer, dropped, byte_writer
        sys.exit(0)
    os.close(into)
    text = b""
    while piece := os.read(out, 65536):
        text += piece
    _, status = os.waitpid(child, 0)
    results = json.loads(text)
    results["the child's exit"] = str(status)
    results["the files are as they were"] = str(content() == before)
    # The parent goes on as if nothing had been.
    for tape in (writer, dropped):
        tape.append(ticks(310, 400))
        tape.close()
        with tapeseal.open(tape.path, keyring=keyring) as back:
            results["the parent goes on"] = str(bool((back[:] == ticks(0, 400)).all()) and back.sealed)
    results["the parent's view"] = str(bytes(view) == b"held bytes")
    print(json.dumps(results))
"""

FORK_ERRORS = re.findall(r'^        "([^"]+)": lambda', FORK, re.M)


@pytest.fixture(scope="module")
def fork(key_file: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each use of an inherited object did in a forked child."""
    done = child(FORK, key_file, tmp_path_factory.mktemp("fork"))
    assert (0, "") == (done.returncode, done.stderr)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("use", FORK_ERRORS)
def test_fork(fork: dict[str, str], use: str) -> None:
    """In a forked child whatever needs a key of the parent raises ForkError."""
    assert fork[use] == "ForkError"


def test_fork_leaves_the_parent_alone(fork: dict[str, str]) -> None:
    """The child sees zeros for key memory and changes no file; the parent goes on."""
    assert {name: result for name, result in fork.items() if name not in FORK_ERRORS} == {
        "the held view": "True",
        "the child's exit": "0",
        "the files are as they were": "True",
        "the parent goes on": "True",
        "the parent's view": "True",
    }


def test_a_fork_of_a_fork_has_another_epoch() -> None:
    """Every process of a chain of forks has an epoch of its own."""
    done = child(
        """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from tapeseal._core import process_epoch
        epochs = [process_epoch()]
        for _ in range(5):
            if os.fork():
                _, status = os.wait()
                os._exit(os.waitstatus_to_exitcode(status))
            epochs.append(process_epoch())
        print(len(set(epochs)), all(epochs))
        """
    )
    assert (0, "6 True\n") == (done.returncode, done.stdout)


def test_ctypes_view_of_a_wiped_secret() -> None:
    """take() and close() leave no copy at the secret's own address while its pages are mapped."""
    buffer = secret(b"\xa5" * 64)
    with buffer:
        view = memoryview(buffer)
    start = address(view)
    buffer.close()
    assert bytes(64) == ctypes.string_at(start, 64)
    view.release()
