"""Rows: what goes in comes out, what was changed does not, and no counter is used twice."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

import tapeseal
from tapeseal import RowDecryptor, RowEncryptor, _core, header, layout, rows
from tapeseal.errors import (
    ContextMismatchError,
    DamagedError,
    ForkError,
    InvalidTag,
    LimitError,
    NotATapeError,
)
from tapeseal.keyrings.local import create_key_file

ORDER = np.dtype(
    [
        ("ts_event", "<u8"),
        ("order_id", "<u8"),
        ("price", "<i8"),
        ("size", "<u4"),
        ("side", "S1"),
        ("flags", "u1"),
        ("when", "<M8[ns]"),
    ]
)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> tapeseal.LocalKeyring:
    """A keyring over a new key file."""
    path = tmp_path_factory.mktemp("keys") / "rows.key"
    create_key_file(path)
    return tapeseal.LocalKeyring(path)


def orders(count: int, dtype: np.dtype = ORDER) -> np.ndarray:
    """Return records of random bytes."""
    data = np.random.default_rng(count).integers(0, 256, count * dtype.itemsize, np.uint8)
    return data.view(dtype)


def pair(keyring: Any, dtype: Any = ORDER, **more: Any) -> tuple[RowEncryptor, RowDecryptor]:
    """Return an encryptor and its decryptor."""
    made = RowEncryptor(keyring, dtype=dtype, **more)
    return made, RowDecryptor(made.header, keyring=keyring)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are of one type and hold the same bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 255, 1000])
@pytest.mark.parametrize(
    "dtype", [ORDER, np.dtype("<f8"), np.dtype("<M8[us]"), np.dtype("V56"), np.dtype("<U3")]
)
def test_round_trip(keyring: Any, dtype: np.dtype, count: int) -> None:
    """Records of any dtype come back as they were, 28 bytes longer in between."""
    encryptor, decryptor = pair(keyring, dtype)
    records = orders(count, dtype)
    sealed = encryptor.encrypt(records)
    assert sealed.shape == (count,)
    assert sealed.dtype == np.dtype(f"V{dtype.itemsize + 28}")
    assert same(records, decryptor.decrypt(sealed))
    assert decryptor.dtype == dtype


def test_real_records(keyring: Any, order_records: np.ndarray) -> None:
    """A day of real order records comes back, straight from a mapped file."""
    encryptor, decryptor = pair(keyring, order_records.dtype)
    assert same(np.asarray(order_records), decryptor.decrypt(encryptor.encrypt(order_records)))


def test_strided_and_bytes(keyring: Any) -> None:
    """Strided, reversed, two-dimensional and column-wise input gives what contiguous records give."""
    records = orders(50)
    raw = records.view(np.uint8).reshape(50, -1)
    for given_, expected in [
        (records[::3], records[::3]),
        (records[::-1], records[::-1]),
        (raw, records),
        (np.hstack([raw, raw])[:, : raw.shape[1]], records),
        (np.asfortranarray(raw), records),
        (raw[::-2], records[::-2]),
    ]:
        encryptor, decryptor = pair(keyring)
        assert same(expected, decryptor.decrypt(encryptor.encrypt(given_)))


def test_row_is_plain_aes_gcm(keyring: Any) -> None:
    """Another implementation opens a row, given the derived key (FORMAT 8)."""
    encryptor = RowEncryptor(keyring, dtype=ORDER)
    records = orders(10)
    sealed = [row.tobytes() for row in encryptor.encrypt(records, b"desk 7")]
    found = header.read(lambda size, at: encryptor.header[at : at + size], len(encryptor.header))
    assert (found.content.kind, found.copy.copies) == ("rows", layout.BLOB_COPIES)
    info = b"tapeseal/v1 rows\0" + b"\1\0" + found.tape_id
    with header.unlock(found, keyring) as data_key:
        secret = _core.hkdf_expand(data_key.secret, info, 32)
    with secret, memoryview(secret) as view:
        key = AESGCM(view)
    for number, (row, record) in enumerate(zip(sealed, records, strict=True)):
        assert row[:12] == bytes(4) + number.to_bytes(8, "big")
        assert record.tobytes() == key.decrypt(row[:12], row[12:], b"desk 7")


def test_counters_go_on(keyring: Any) -> None:
    """No two rows of an encryptor have one nonce, whatever the batches and threads."""
    encryptor = RowEncryptor(keyring, dtype=ORDER)
    records = orders(7)
    nonces: list[bytes] = []

    def work() -> None:
        for _ in range(200):
            nonces.extend(row.tobytes()[:12] for row in encryptor.encrypt(records))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(nonces)) == len(nonces) == encryptor.count == 5600


def test_rows_open_in_any_order(keyring: Any) -> None:
    """Rows of several batches open together, picked and mixed."""
    encryptor, decryptor = pair(keyring)
    first, second = orders(10), orders(20)
    sealed = np.concatenate([encryptor.encrypt(first), encryptor.encrypt(second)])
    chosen = np.array([25, 3, 3, 17])
    assert same(np.concatenate([first, second])[chosen], decryptor.decrypt(sealed[chosen]))
    assert same(first[1::4], decryptor.decrypt(sealed[1:10:4]))
    raw = sealed.view(np.uint8).reshape(30, -1)
    assert same(second, decryptor.decrypt(raw[10:]))


@pytest.mark.parametrize(
    "associated",
    [
        b"for all",
        np.arange(30, dtype=np.uint64),
        np.arange(90, dtype=np.uint8).reshape(30, 3),
        np.asfortranarray(np.arange(90, dtype=np.uint8).reshape(30, 3)),
        orders(30)["order_id"],
        [b"x" * i for i in range(30)],
        (np.arange(0, 62, 2), bytes(range(60))),
        (np.arange(0, 62, 2, dtype=np.uint16), np.arange(60, dtype=np.uint8)),
    ],
    ids=["bytes", "array", "2-D", "columns", "field", "list", "pair", "narrow pair"],
)
def test_associated_data(keyring: Any, associated: Any) -> None:
    """Rows open with the associated data they were sealed with, and with no other."""
    encryptor, decryptor = pair(keyring)
    records = orders(30)
    sealed = encryptor.encrypt(records, associated)
    assert same(records, decryptor.decrypt(sealed, associated))
    for other in (None, b"other", np.arange(1, 31, dtype=np.uint64)):
        with pytest.raises(InvalidTag):
            decryptor.decrypt(sealed, other)


def test_associated_data_ties_a_row_to_its_place(keyring: Any) -> None:
    """Swapped rows, and swapped associated data, are named by the first one's index."""
    encryptor, decryptor = pair(keyring)
    ids = np.arange(100, 120, dtype=np.uint64)
    sealed = encryptor.encrypt(orders(20), ids)
    swapped = sealed.copy()
    swapped[[4, 9]] = swapped[[9, 4]]
    with pytest.raises(InvalidTag) as caught:
        decryptor.decrypt(swapped, ids)
    assert caught.value.index == 4
    ids[[6, 7]] = ids[[7, 6]]
    with pytest.raises(InvalidTag) as caught:
        decryptor.decrypt(sealed, ids)
    assert caught.value.index == 6


def test_row_of_another_encryptor(keyring: Any) -> None:
    """A row sealed under another header is refused."""
    encryptor, decryptor = pair(keyring)
    sealed = encryptor.encrypt(orders(5))
    sealed[3] = RowEncryptor(keyring, dtype=ORDER).encrypt(orders(5))[3]
    with pytest.raises(InvalidTag) as caught:
        decryptor.decrypt(sealed)
    assert caught.value.index == 3


@given(data=st.data())
def test_changed_rows_are_masked(keyring: Any, data: st.DataObject) -> None:
    """With on_error="mask" the changed rows, and no others, are false and zero."""
    encryptor, decryptor = pair(keyring, np.dtype("V11"))
    records = orders(12, np.dtype("V11"))
    sealed = encryptor.encrypt(records)
    raw = sealed.view(np.uint8).reshape(12, -1)
    changed = data.draw(st.dictionaries(st.integers(0, 11), st.integers(0, 39 * 8 - 1)))
    for row, bit in changed.items():
        raw[row, bit // 8] ^= 1 << bit % 8
    opened, valid = decryptor.decrypt(sealed, on_error="mask")
    assert [row not in changed for row in range(12)] == valid.tolist()
    assert same(records[valid], opened[valid])
    assert not opened[~valid].tobytes().strip(b"\0")


def test_out(keyring: Any) -> None:
    """out takes the rows, and the records, and is what comes back; where rows are bad it has zeros there."""
    encryptor, decryptor = pair(keyring)
    records = orders(9)
    target = np.empty((9, ORDER.itemsize + 28), np.uint8)
    assert encryptor.encrypt(records, out=target) is target
    back = np.empty(18, ORDER)[::2]
    assert decryptor.decrypt(target, out=back) is back
    assert same(records, back)
    target[2, 20] ^= 1
    with pytest.raises(InvalidTag):
        decryptor.decrypt(target, out=back)
    assert not back[2].tobytes().strip(b"\0")
    assert same(records[3:], back[3:])
    for wrong in (target[:8], np.empty(9, "V12"), np.empty((9, 3), np.uint8)):
        with pytest.raises(ValueError):
            encryptor.encrypt(records, out=wrong)


def test_wrong_records(keyring: Any) -> None:
    """What is no array of the records is refused, and takes no counter."""
    encryptor, decryptor = pair(keyring)
    for wrong in (
        np.zeros(3), np.zeros((3, 5), np.uint8), orders(4).reshape(2, 2), np.zeros(2, "V38")
    ):  # fmt: skip
        with pytest.raises(ValueError):
            encryptor.encrypt(wrong)
        with pytest.raises(ValueError):
            decryptor.decrypt(wrong)
    for wrong in ([1, 2], b"bytes", None, (np.arange(3), b"ab")):
        with pytest.raises(TypeError):
            encryptor.encrypt(wrong)
        with pytest.raises(TypeError):
            decryptor.decrypt(wrong)
    with pytest.raises(TypeError):
        encryptor.encrypt(orders(2), np.array([object(), None]))
    with pytest.raises(ValueError):
        encryptor.encrypt(orders(2), np.arange(3))
    with pytest.raises(ValueError):
        decryptor.decrypt(encryptor.encrypt(orders(1)), on_error="ignore")
    with pytest.raises(ValueError):
        RowEncryptor(keyring, dtype=object)


def test_various_lengths(keyring: Any) -> None:
    """Rows of various lengths go in and out as offsets and data."""
    encryptor, decryptor = pair(keyring, None)
    texts = [b"", b"a", b"some order" * 20, b"x" * 5000, bytes(16)]
    offsets = np.cumsum([0, *map(len, texts)])
    for given_ in (texts, (offsets, b"".join(texts)), (offsets.astype("i4"), b"".join(texts))):
        sealed = encryptor.encrypt(given_, [b"1", b"", b"22", b"x" * 600, b"5"])
        assert sealed[0].dtype == (
            np.int32 if given_[0] is not offsets and given_ is not texts else np.int64
        )
        opened_offsets, opened = decryptor.decrypt(sealed, [b"1", b"", b"22", b"x" * 600, b"5"])
        assert offsets.tolist() == opened_offsets.tolist()
        assert b"".join(texts) == opened.tobytes()
        rows_ = [sealed[1][a:b].tobytes() for a, b in zip(sealed[0], sealed[0][1:], strict=False)]
        with pytest.raises(InvalidTag) as caught:
            decryptor.decrypt([rows_[0], rows_[1], b"short", rows_[3]])
        assert caught.value.index == 0
        short = [*rows_[:2], b"short", *rows_[3:]]
        (opened_offsets, opened), valid = decryptor.decrypt(
            short, [b"1", b"", b"22", b"x" * 600, b"5"], on_error="mask"
        )
        assert valid.tolist() == [True, True, False, True, True]
        assert opened_offsets.tolist() == [0, 0, 1, 1, 5001, 5017]


def test_various_lengths_out(keyring: Any) -> None:
    """A pair of arrays takes the offsets and the data."""
    encryptor, decryptor = pair(keyring, None)
    texts = [b"one", b"", b"three"]
    room = (np.empty(4, np.int64), np.empty(200, np.uint8))
    offsets, data = encryptor.encrypt(texts, out=room)
    assert offsets is room[0]
    assert data.base is room[1]
    assert offsets.tolist() == [0, 31, 59, 92]
    assert decryptor.decrypt((offsets, data))[1].tobytes() == b"onethree"
    for wrong in ((np.empty(3, np.int64), room[1]), (room[0], np.empty(91, np.uint8))):
        with pytest.raises(ValueError):
            encryptor.encrypt(texts, out=wrong)
    with pytest.raises(TypeError):
        encryptor.encrypt(texts, out=room[1])
    with pytest.raises(ValueError):
        encryptor.encrypt((np.array([0, 9, 3]), bytes(9)))


def test_arrow(keyring: Any) -> None:
    """pyarrow's arrays are taken and given, slices too, without copying their data."""
    pa = pytest.importorskip("pyarrow")
    encryptor, decryptor = pair(keyring, None)
    texts = [b"one", b"", b"three", b"four" * 300]
    for kind in (pa.binary(), pa.large_binary()):
        whole = pa.array(texts, kind)
        for array in (whole, whole[1:3], whole[:0], whole[3:]):
            sealed = encryptor.encrypt(array, array)
            assert sealed.type == kind
            sealed.validate(full=True)
            opened = decryptor.decrypt(sealed, array)
            assert array.equals(opened)
    fixed = pa.array([b"abcd", b"efgh", b"ijkl"], pa.binary(4))
    encryptor, decryptor = pair(keyring, np.dtype("S4"))
    sealed = encryptor.encrypt(fixed[1:], fixed[1:])
    assert sealed.type == pa.binary(32)
    assert decryptor.decrypt(sealed, fixed[1:]).tolist() == [b"efgh", b"ijkl"]
    encryptor = RowEncryptor(keyring)
    with pytest.raises(ValueError, match="nulls"):
        encryptor.encrypt(pa.array([b"a", None]))
    for wrong in (pa.array(["text"]), pa.chunked_array([[b"a"]]), fixed):
        with pytest.raises(TypeError):
            encryptor.encrypt(wrong)


@pytest.mark.parametrize("dtype", [ORDER, None])
def test_the_counters_end(keyring: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of rows sealing is an error, and goes on being one."""
    monkeypatch.setattr(rows, "MAX_ROWS", 10)
    encryptor = RowEncryptor(keyring, dtype=dtype)
    batch = orders(6) if dtype else [b"x"] * 6
    encryptor.encrypt(batch)
    for _ in range(2):
        with pytest.raises(LimitError):
            encryptor.encrypt(batch)
    encryptor.encrypt(batch[:4])
    with pytest.raises(LimitError):
        encryptor.encrypt(batch[:1])
    assert encryptor.count == 10


@pytest.mark.parametrize("dtype", [np.dtype("V56"), None])
def test_the_blocks_end(keyring: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is at the limit of AES blocks, of which a row of 56 bytes takes five."""
    monkeypatch.setattr(rows, "MAX_BLOCKS", 50)
    encryptor = RowEncryptor(keyring, dtype=dtype)
    batch = orders(10, np.dtype("V56"))
    whole = batch if dtype else [row.tobytes() for row in batch]
    encryptor.encrypt(whole[:8])
    with pytest.raises(LimitError):
        encryptor.encrypt(whole)


def test_limits_are_the_formats() -> None:
    """2**40 rows and 2**43 AES blocks (FORMAT 8)."""
    assert (rows.MAX_ROWS, rows.MAX_BLOCKS) == (1 << 40, 1 << 43)


def test_fork(keyring: Any) -> None:
    """Neither side works in a forked child; the parent goes on."""
    encryptor, decryptor = pair(keyring)
    sealed = encryptor.encrypt(orders(2))
    child = os.fork()
    if child == 0:
        code = 0
        for call in (lambda: encryptor.encrypt(orders(1)), lambda: decryptor.decrypt(sealed)):
            try:
                call()
            except ForkError:
                code += 1
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert same(orders(2), decryptor.decrypt(sealed))


@pytest.mark.parametrize("which", [0, 1])
def test_no_copies(keyring: Any, which: int) -> None:
    """Neither can be copied or pickled."""
    subject = pair(keyring)[which]
    for action in (
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        multiprocessing.reduction.ForkingPickler.dumps,
    ):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            action(subject)


def test_nothing_seals_from_a_header(keyring: Any) -> None:
    """Each encryptor makes a header of its own, and no name here takes one to seal under."""
    first, second = (RowEncryptor(keyring, dtype=ORDER) for _ in range(2))
    assert first.header != second.header
    assert not hasattr(RowDecryptor, "encrypt")
    with pytest.raises(TypeError):
        RowEncryptor(keyring, dtype=ORDER, header=first.header)  # type: ignore[call-arg]


def test_close(keyring: Any) -> None:
    """A closed one says so; closing is what `with` does."""
    encryptor, decryptor = pair(keyring)
    with encryptor, decryptor:
        sealed = encryptor.encrypt(orders(1))
    with pytest.raises(ValueError, match="closed"):
        encryptor.encrypt(orders(1))
    with pytest.raises(ValueError, match="closed"):
        decryptor.decrypt(sealed)


def test_header_context(keyring: Any) -> None:
    """The encryption context is bound, shown, and can be demanded."""
    encryptor = RowEncryptor(keyring, dtype=ORDER, encryption_context={"desk": "eq-us"})
    decryptor = RowDecryptor(encryptor.header, keyring=keyring, expect={"desk": "eq-us"})
    assert decryptor.encryption_context == encryptor.encryption_context == {"desk": "eq-us"}
    with pytest.raises(ContextMismatchError):
        RowDecryptor(encryptor.header, keyring=keyring, expect={"desk": "fx"})


def test_damaged_headers(keyring: Any) -> None:
    """A header that was changed, cut or lengthened anywhere is refused."""
    whole = RowEncryptor(keyring, dtype="<f8").header
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        with pytest.raises((DamagedError, NotATapeError)):
            RowDecryptor(changed, keyring=keyring)
    for wrong in (whole[:-1], whole + b"\0"):
        with pytest.raises((DamagedError, NotATapeError)):
            RowDecryptor(wrong, keyring=keyring)
    with pytest.raises(ValueError, match="bytes, not of rows"):
        RowDecryptor(tapeseal.encrypt(b"blob", keyring=keyring), keyring=keyring)
    with pytest.raises(ValueError):
        tapeseal.decrypt(whole, keyring=keyring)


@pytest.mark.parametrize("threads", [1, 4])
def test_large_batches(keyring: Any, threads: int) -> None:
    """A batch that several threads share comes back, and its bad rows are found."""
    encryptor = RowEncryptor(keyring, dtype=ORDER, threads=threads)
    decryptor = RowDecryptor(encryptor.header, keyring=keyring, threads=threads)
    records = orders(100_000)
    sealed = encryptor.encrypt(records, records["order_id"])
    assert same(records, decryptor.decrypt(sealed, records["order_id"]))
    sealed.view(np.uint8).reshape(len(records), -1)[[77, 60_000, 99_999], 50] ^= 1
    _, valid = decryptor.decrypt(sealed, records["order_id"], on_error="mask")
    assert np.flatnonzero(~valid).tolist() == [77, 60_000, 99_999]


def test_peak_memory(tmp_path: Path) -> None:
    """A batch takes its output and less than 1 MiB more."""
    code = f"""if True:
        import resource, numpy as np, tapeseal
        from tapeseal.keyrings.local import create_key_file
        create_key_file({str(tmp_path / "k")!r})
        rows = tapeseal.RowEncryptor(tapeseal.LocalKeyring({str(tmp_path / "k")!r}), dtype="V56")
        reader = tapeseal.RowDecryptor(rows.header, keyring=tapeseal.LocalKeyring({str(tmp_path / "k")!r}))
        records = np.ones(1_000_000 * 56, np.uint8).view("V56")
        reader.decrypt(rows.encrypt(records[:1000]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sealed = rows.encrypt(records)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reader.decrypt(sealed)
        end = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((after - before) * 1024 - 84_000_000, (end - after) * 1024 - 56_000_000)
    """
    if sys.platform != "linux":
        pytest.skip("ru_maxrss is in KiB on Linux alone")
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert all(int(more) < 1 << 20 for more in printed), printed
