"""Rows: records sealed one by one, in batches, for tables and messages (FORMAT 8).

A `RowEncryptor` makes a header, which is kept once, and seals any number of batches under it. Each row can then be
stored, moved and opened by itself: 12 bytes of nonce, the ciphertext, 16 bytes of tag.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeAlias,
    cast,
    overload,
)

import numpy as np
from numpy import empty, ndarray
from numpy.typing import DTypeLike, NDArray

from tapeseal import audit, header, layout
from tapeseal._core import (
    ROW_OVERHEAD,
    Counter,
    RowCipher,
    check_process,
    process_epoch,
    row_offsets,
)
from tapeseal.closing import Closing
from tapeseal.datakey import Keyring
from tapeseal.errors import DamagedError, LimitError
from tapeseal.layout import Content

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_ROWS = 1 << 40
MAX_BLOCKS = 1 << 43
_BYTE = np.dtype(np.uint8)

Pair: TypeAlias = "tuple[NDArray[Any], Buffer]"
"""Rows of various lengths, as Arrow lays them out: count + 1 offsets of 4 or 8 bytes, and the bytes they cut."""
Rows: TypeAlias = "NDArray[Any] | Pair | Sequence[bytes] | Any"
"""What encrypt() and decrypt() take; Any stands for pyarrow's arrays, which the package does not import."""
AssociatedData: TypeAlias = "Buffer | NDArray[Any] | Pair | Sequence[bytes] | Any | None"


class _Various(NamedTuple):
    """A batch of rows of various lengths."""

    offsets: NDArray[Any]
    data: Buffer
    arrow: bool

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1


def _is_arrow(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "pyarrow"


def _from_arrow(array: Any, what: str) -> _Various | NDArray[Any]:
    """Return a pyarrow array's own memory: offsets and data, or of a fixed size a batch of so many bytes."""
    import pyarrow as pa

    if not isinstance(array, pa.Array):
        raise TypeError(
            f"{what} is a {type(array).__name__}: combine its chunks into one pyarrow.Array"
        )
    if array.null_count:
        raise ValueError(f"{what} holds nulls: fill or drop them, a null cannot be sealed")
    start, stop = array.offset, array.offset + len(array)
    if pa.types.is_fixed_size_binary(array.type):
        data = array.buffers()[1]
        size = array.type.byte_width
        whole = np.frombuffer(data if data is not None else b"", np.uint8)
        return whole[start * size : stop * size].reshape(len(array), size)
    if pa.types.is_binary(array.type):
        kind: np.dtype[Any] = np.dtype(np.int32)
    elif pa.types.is_large_binary(array.type):
        kind = np.dtype(np.int64)
    else:
        raise TypeError(f"{what} is a pyarrow array of {array.type}, not of binary")
    _, offsets, data = array.buffers()
    if len(array) == 0:
        return _Various(np.zeros(1, kind), b"", True)
    return _Various(
        np.frombuffer(offsets, kind)[start : stop + 1], data if data is not None else b"", True
    )


def _to_arrow(offsets: NDArray[Any], data: NDArray[np.uint8]) -> Any:
    import pyarrow as pa

    kind = pa.binary() if offsets.itemsize == 4 else pa.large_binary()
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind, len(offsets) - 1, buffers)


def _various(rows: object, what: str) -> _Various:
    """Return rows of various lengths as they were given: a pair, a pyarrow array, or a sequence of bytes."""
    if _is_arrow(rows):
        taken = _from_arrow(rows, what)
        if isinstance(taken, _Various):
            return taken
        raise TypeError(f"{what} has rows of one size; variable lengths are binary or large_binary")
    if isinstance(rows, tuple) and len(rows) == 2 and isinstance(rows[0], np.ndarray):
        offsets, data = rows
        if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 1:
            raise ValueError(f"{what}: offsets are one more whole number than there are rows")
        if offsets.dtype not in (np.int32, np.int64) or not offsets.flags.c_contiguous:
            offsets = np.ascontiguousarray(offsets, np.int64)
        return _Various(offsets, data, False)
    if isinstance(rows, Sequence) and all(isinstance(row, bytes) for row in rows):
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return _Various(offsets, b"".join(cast("Sequence[bytes]", rows)), False)
    raise TypeError(
        f"{what} of various lengths are a pair (offsets, data), a pyarrow array of binary, or a sequence of bytes"
    )


def _fixed(rows: object, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Return an array of one item a row, or of the bytes of one a row, that the core can walk."""
    if isinstance(rows, np.ndarray):
        if rows.ndim == 1 and rows.dtype == dtype:
            return rows
        if rows.ndim == 2 and rows.dtype == np.uint8 and rows.shape[1] == dtype.itemsize:
            whole = rows.strides[1] == 1 or rows.shape[1] == 1
            return rows if whole else np.ascontiguousarray(rows)
        raise ValueError(
            f"{what} is an array of {rows.dtype}, shape {rows.shape}: "
            f"one of {dtype} is needed, or of uint8 with {dtype.itemsize} a row"
        )
    raise TypeError(f"{what} must be a numpy array of {dtype}, not {type(rows).__name__}")


def _sealed(rows: object, dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Return sealed rows of one size: any plain dtype of that many bytes will do."""
    if isinstance(rows, ndarray) and rows.ndim == 1 and not rows.dtype.hasobject:
        if rows.itemsize == dtype.itemsize:
            return rows
        raise ValueError(
            f"{what} has {rows.itemsize} bytes a row; {dtype.itemsize} are needed, "
            f"{ROW_OVERHEAD} more than a record"
        )
    return _fixed(rows, dtype, what)


def _associated(data: AssociatedData) -> dict[str, Any]:
    """Return the core's arguments for associated data: none, one for all rows, or one a row."""
    if data is None:
        return {}
    if isinstance(data, bytes | bytearray | memoryview):
        return {"associated_data": data}
    if isinstance(data, np.ndarray):
        if data.dtype.hasobject:
            raise TypeError(
                "associated_data holds Python objects: give bytes, or an array of values"
            )
        if data.ndim == 2 and data.strides[1] != data.itemsize:
            data = np.ascontiguousarray(data)
        if data.ndim not in (1, 2):
            raise ValueError("associated_data is an array of one item a row, or of one row a row")
        return {"associated_rows": data}
    if _is_arrow(data):
        taken = _from_arrow(data, "associated_data")
        if not isinstance(taken, _Various):
            return {"associated_rows": taken}
    else:
        taken = _various(data, "associated_data")
    return {"associated_rows": taken.data, "associated_offsets": taken.offsets}


class _RowsBase(Closing):
    """What encryptor and decryptor share."""

    def __init__(self, found: header.Header, raw: bytes, cipher: RowCipher, threads: int) -> None:
        content: Content = found.content
        self.header = raw
        """The header's bytes, which a RowDecryptor takes. Not secret."""
        self.dtype = content.dtype
        """The records' dtype; None: rows of various lengths."""
        self.encryption_context = dict(content.encryption_context)
        """The public pairs bound to the key."""
        self._cipher: RowCipher | None = cipher
        self._threads = threads
        if content.dtype is not None:
            self._sealed_dtype = np.dtype(("V", content.dtype.itemsize + ROW_OVERHEAD))

    def close(self) -> None:
        """Wipe the key; closing again does nothing."""
        self._cipher = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is neither pickled nor copied")


class RowEncryptor(_RowsBase):
    """Seals rows, each by itself, under a data key of its own.

    Every row gets a nonce of its own from a counter, taken before it is sealed, so no nonce is ever used twice: there
    is no way to go on with an existing header, and copies, pickles and forks refuse to work. Threads may share it.

    Args:
        keyring: makes and wraps the data key.
        dtype: of the records, 1 to 2**20 bytes each; None: rows of various lengths, below 2**31 bytes each.
        encryption_context: public pairs, bound to the key and the header, readable without any key.
        threads: how many may share the work of one large batch.

    Raises:
        ValueError: a dtype or an encryption context that the format does not allow.
        KeyUnavailableError: the keyring could not make a data key.
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        dtype: DTypeLike | None = None,
        encryption_context: Mapping[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        kind = None if dtype is None else np.dtype(dtype)
        frame_size = max(layout.DEFAULT_FRAME_SIZE, 0 if kind is None else kind.itemsize)
        with audit.operation("rows.create", "rows") as entry:
            raw, data_key, made = header.create(
                keyring,
                kind="rows",
                dtype=kind,
                frame_size=frame_size,
                index_by=None,
                encryption_context=encryption_context or {},
                copies=layout.BLOB_COPIES,
            )
            entry.subject = f"rows:{made.tape_id.hex()}"
        with data_key:
            cipher = data_key.row_cipher(made.tape_id)
        super().__init__(made, raw, cipher, max(1, threads))
        self.dtype = kind
        # Rows of one size reach one of the two limits first.
        self._most = (
            MAX_ROWS if kind is None else min(MAX_ROWS, MAX_BLOCKS // _blocks(1, kind.itemsize))
        )
        # With an allowance, rows of one size are numbered as far as it was taken: a lock for each batch takes too long.
        self._allowance = data_key.allowance
        self._numbered = self._most if self._allowance is None or kind is None else 0
        self._rows = Counter(self._numbered)
        self._blocks = Counter(MAX_BLOCKS)
        self._lock = threading.Lock()
        self._epoch = process_epoch()

    @property
    def count(self) -> int:
        """Rows sealed so far, or at least numbered."""
        return self._rows.taken

    def encrypt(
        self, records: Rows, associated_data: AssociatedData = None, out: Any = None
    ) -> Any:
        """Seal a batch of rows.

        Without associated data, rows of one header can be swapped, left out or stored twice, and nobody can tell;
        an order id a row is what ties each to its place.

        Args:
            records: with a dtype, an array of it, contiguous or strided, or of uint8 with one record a row, or a
                pyarrow array of so many bytes. Without, a pair of offsets (int32 or int64, one more than rows) and
                data, a pyarrow array of binary, or a sequence of bytes. Nulls are refused.
            associated_data: authenticated, not stored, needed again to decrypt. bytes: the same for all rows. Else
                one for each: an array (its items' bytes in memory), a pair of offsets and data, a pyarrow array of
                binary, or a sequence of bytes.
            out: where the rows go: an array of as many, each 28 bytes longer than a record; without a dtype, a pair
                of an array for the offsets and one of uint8 that is long enough.

        Returns:
            An array of void, 28 bytes more than a record each; or out. Without a dtype, a pair of offsets and data.
            A pyarrow array for a pyarrow array.

        Raises:
            ValueError, TypeError: arrays of another dtype, shape or length, overlapping ones, or offsets out of order.
            LimitError: 2**40 rows or 2**43 blocks of 16 bytes are reached, or a limit of a DataKeyReserve: make a new
                encryptor.
            OverflowError: a row of 2**31 bytes, or int32 offsets for more than they can say.
            ForkError: this process is a fork of the one that made it.
        """
        dtype = self.dtype
        cipher = self._cipher
        if cipher is None:
            raise ValueError("it is closed")
        # Nothing is checked twice here: a batch of one record is to take less than a microsecond.
        if type(records) is ndarray and records.dtype is dtype and records.ndim == 1:
            source, arrow = records, False
        elif dtype is None:
            return self._encrypt_various(cipher, records, associated_data, out)
        else:
            arrow = _is_arrow(records)
            source = _fixed(_from_arrow(records, "records") if arrow else records, dtype, "records")
        count = len(source)
        if out is None:
            target = empty(count, self._sealed_dtype)
        else:
            target = _sealed(out, self._sealed_dtype, "out")
            if len(target) != count:
                raise ValueError(f"out has {len(target)} rows for {count} records")
        extra = None if associated_data is None else _associated(associated_data)
        allowance = self._allowance
        if allowance is not None and allowance.spent is not None:
            raise LimitError(allowance.spent)
        try:
            first = self._rows.take(count)
        except OverflowError:
            first = self._take_more(count, dtype.itemsize)
        if extra is None:
            cipher.seal_rows(target, source, counter=first, threads=self._threads)
        else:
            cipher.seal_rows(target, source, counter=first, threads=self._threads, **extra)
        if out is not None:
            return out
        if arrow:
            import pyarrow as pa

            kind = pa.binary(self._sealed_dtype.itemsize)
            return pa.Array.from_buffers(kind, count, [None, pa.py_buffer(target.view(np.uint8))])
        return target

    def _encrypt_various(
        self, cipher: RowCipher, records: Rows, associated_data: AssociatedData, out: Any
    ) -> Any:
        source = _various(records, "records")
        offsets, size = _new_offsets(source, ROW_OVERHEAD, out)
        data = _new_data(size, out)
        extra = _associated(associated_data)
        if self._allowance is not None:
            self._allowance.take(source.rows, size - ROW_OVERHEAD * source.rows)
        try:
            self._blocks.take(_blocks(source.rows, size - ROW_OVERHEAD * source.rows))
            first = self._rows.take(source.rows)
        except OverflowError:
            raise _limit() from None
        cipher.seal_rows(
            data,
            source.data,
            counter=first,
            target_offsets=offsets,
            source_offsets=source.offsets,
            threads=self._threads,
            **extra,
        )
        return _to_arrow(offsets, data) if source.arrow and out is None else (offsets, data)

    def _take_more(self, count: int, size: int) -> int:
        """Have the allowance give for `count` rows of `size` bytes, and more, and return the first one's number."""
        if self._allowance is None:
            raise _limit()
        check_process(
            self._epoch
        )  # Before the lock, which another thread may have held at the fork.
        with self._lock:
            start = None
            while start is None:
                try:
                    # All that are left, so that no other thread gets one of them from here on.
                    start = self._rows.take(self._numbered - self._rows.taken)
                except OverflowError:
                    continue
            left = self._numbered - start
            taken = 0
            try:
                if count > left:
                    more = self._allowance.take_more(count - left, size)
                    self._numbered = min(self._most, self._numbered + more)
                if count > self._numbered - start:
                    raise _limit()
                taken = count
                return start
            finally:
                rows = Counter(self._numbered)
                rows.take(start + taken)
                self._rows = rows


class RowDecryptor(_RowsBase):
    """Opens rows that a RowEncryptor sealed. Threads may share it; a fork may not.

    Args:
        header: that encryptor's `header`, the whole of it and nothing else.
        keyring: unwraps the data key.
        expect: pairs that the encryption context must have.
        threads: how many may share the work of one large batch.

    Raises:
        NotATapeError: no header stands there.
        DamagedError: the header was changed, cut or lengthened.
        ValueError: it is one of a tape or a blob, not of rows.
        ContextMismatchError: a pair of `expect` is missing.
        KeyUnavailableError: the keyring has no key for it.
    """

    def __init__(
        self,
        header: Buffer,
        *,
        keyring: Keyring,
        expect: Mapping[str, str] | None = None,
        threads: int = 1,
    ) -> None:
        raw = bytes(header)
        found = _read_header(raw)
        with (
            audit.operation("rows.read", f"rows:{found.tape_id.hex()}"),
            _unlock(found, keyring, expect) as data_key,
        ):
            cipher = data_key.row_cipher(found.tape_id)
        super().__init__(found, raw, cipher, max(1, threads))

    @overload
    def decrypt(
        self,
        sealed: Rows,
        associated_data: AssociatedData = None,
        out: Any = None,
        on_error: Literal["raise"] = "raise",
    ) -> Any: ...
    @overload
    def decrypt(
        self,
        sealed: Rows,
        associated_data: AssociatedData = None,
        out: Any = None,
        *,
        on_error: Literal["mask"],
    ) -> tuple[Any, NDArray[np.bool_]]: ...
    def decrypt(
        self,
        sealed: Rows,
        associated_data: AssociatedData = None,
        out: Any = None,
        on_error: str = "raise",
    ) -> Any:
        """Verify and open a batch of rows, in any order and number.

        Args:
            sealed: as encrypt() gave them, or picked from several batches: an array of the same size a row, or of
                uint8 with one sealed row a row. Without a dtype, a pair of offsets and data, a pyarrow array of
                binary, or a sequence of bytes.
            associated_data: what they were sealed with.
            out: where the records go: an array of as many, of the dtype, or of uint8 with one record a row; without
                a dtype a pair as encrypt() takes it. Where decrypt() raises, it holds the rows that are authentic,
                and zeros for those that are not.
            on_error: "raise", or "mask": bad rows become zeros (without a dtype, zeros or nothing).

        Returns:
            The records, or out; without a dtype a pair of offsets and data, or a pyarrow array for a pyarrow array.
            With on_error="mask" that and an array of bool that is true where a row is authentic.

        Raises:
            InvalidTag: a row is not one that was sealed under this header with this associated data; `index` is the
                first such row's.
            ValueError, TypeError, ForkError: as encrypt() raises them.
        """
        dtype = self.dtype
        cipher = self._cipher
        if cipher is None:
            raise ValueError("it is closed")
        if on_error == "raise":
            valid = None
        elif on_error == "mask":
            valid = np.zeros(_count(sealed), np.bool_)
        else:
            raise ValueError(f'on_error is "raise" or "mask", not {on_error!r}')
        if dtype is None:
            opened = self._decrypt_various(cipher, sealed, associated_data, out, valid)
            return opened if valid is None else (opened, valid)
        if type(sealed) is ndarray and sealed.dtype == self._sealed_dtype and sealed.ndim == 1:
            rows = sealed
        else:
            whole = _from_arrow(sealed, "sealed") if _is_arrow(sealed) else sealed
            rows = _sealed(whole, self._sealed_dtype, "sealed")
        count = len(rows)
        if out is None:
            # numpy allocates an array with fields slowly, one over bytes quickly: 0.3 us beside 0.7.
            target = ndarray(count, dtype, empty(count * dtype.itemsize, _BYTE))
        else:
            target = _fixed(out, dtype, "out")
            if len(target) != count:
                raise ValueError(f"out has {len(target)} rows for {count} sealed ones")
        if associated_data is None:
            cipher.open_rows(target, rows, valid=valid, threads=self._threads)
        else:
            extra = _associated(associated_data)
            cipher.open_rows(target, rows, valid=valid, threads=self._threads, **extra)
        opened = target if out is None else out
        return opened if valid is None else (opened, valid)

    def _decrypt_various(
        self,
        cipher: RowCipher,
        sealed: Rows,
        associated_data: AssociatedData,
        out: Any,
        valid: NDArray[np.bool_] | None,
    ) -> Any:
        source = _various(sealed, "sealed")
        offsets, size = _new_offsets(source, -ROW_OVERHEAD, out)
        data = _new_data(size, out)
        cipher.open_rows(
            data,
            source.data,
            target_offsets=offsets,
            source_offsets=source.offsets,
            valid=valid,
            threads=self._threads,
            **_associated(associated_data),
        )
        return _to_arrow(offsets, data) if source.arrow and out is None else (offsets, data)


def _count(rows: Rows) -> int:
    """Return how many rows there are in whatever decrypt() was given."""
    if isinstance(rows, tuple) and len(rows) == 2 and isinstance(rows[0], ndarray):
        return len(rows[0]) - 1
    return len(rows)


def _limit() -> LimitError:
    return LimitError(
        "one header is for at most 2**40 rows and 2**43 blocks of 16 bytes: make a new RowEncryptor"
    )


def _blocks(count: int, size: int) -> int:
    """Return how many AES blocks, at most, so many rows of so many bytes in all take: one each for the tag."""
    return (size + 15 * count) // 16 + count


def _new_offsets(source: _Various, more: int, out: Any) -> tuple[NDArray[Any], int]:
    """Return the offsets that rows get which are so much longer, and where the last one ends."""
    if out is None:
        offsets = np.empty(len(source.offsets), source.offsets.dtype)
    else:
        if not (
            isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], np.ndarray)
            and isinstance(out[1], np.ndarray) and out[1].dtype == np.uint8 and out[1].ndim == 1
        ):  # fmt: skip
            raise TypeError("out is a pair of an array for the offsets and one of uint8")
        offsets = out[0]
        if offsets.dtype != source.offsets.dtype or offsets.shape != source.offsets.shape:
            raise ValueError(
                f"out's offsets are {offsets.dtype}, shape {offsets.shape}: "
                f"{source.offsets.dtype}, shape {source.offsets.shape} is needed"
            )
    return offsets, row_offsets(offsets, source.data, source.offsets, more)


def _new_data(size: int, out: Any) -> NDArray[np.uint8]:
    if out is None:
        return np.empty(size, np.uint8)
    data = cast("NDArray[np.uint8]", out[1])
    if len(data) < size:
        raise ValueError(f"out has {len(data)} bytes for {size}")
    return data[:size]


def _read_header(raw: bytes) -> header.Header:
    found = header.read(lambda size, offset: raw[offset : offset + size], len(raw))
    if found.content.kind != "rows":
        raise ValueError(f"this is the header of {found.content.kind}, not of rows")
    if len(raw) != found.body:
        raise DamagedError("something follows the header of rows", found.body)
    return found


_unlock = header.unlock
