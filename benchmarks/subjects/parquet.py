"""PyArrow's Parquet with modular encryption: footer and every column, 256-bit keys, defaults otherwise (snappy)."""

import base64
import os
import random
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pyarrow.parquet.encryption as encryption

from benchmarks.harness import RECORD_SIZE, Job, Settings

ROW_GROUP = 2**20


def version() -> str:
    """The package's version."""
    text: str = pyarrow.__version__
    return text


class _LocalKms(encryption.KmsClient):  # type: ignore[misc]
    """Keeps the wrapping keys in this process, so that no network is timed; wraps by XOR with them."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        super().__init__()
        self._keys = keys

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        mask = self._keys[master_key_identifier]
        return base64.b64encode(bytes(a ^ b for a, b in zip(key_bytes, mask, strict=True)))

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        mask = self._keys[master_key_identifier]
        return bytes(a ^ b for a, b in zip(base64.b64decode(wrapped_key), mask, strict=True))


class _Store:
    """An encrypted Parquet file of records."""

    def __init__(self, settings: Settings, name: str, columns: list[str]) -> None:
        self.path = settings.path(name)
        keys = {"footer": os.urandom(32), "columns": os.urandom(32)}
        self._factory = encryption.CryptoFactory(lambda _: _LocalKms(keys))
        self._connection = encryption.KmsConnectionConfig()
        self._configuration = encryption.EncryptionConfiguration(
            footer_key="footer",
            column_keys={"columns": columns},
            double_wrapping=False,
            cache_lifetime=timedelta(hours=1),
            data_key_length_bits=256,
        )

    def write(self, table: Any, times: int = 1) -> None:
        """Write the table as so many times as many rows."""
        properties = self._factory.file_encryption_properties(self._connection, self._configuration)
        with pyarrow.parquet.ParquetWriter(
            self.path, table.schema, encryption_properties=properties
        ) as writer:
            for _ in range(times):
                writer.write_table(table, row_group_size=ROW_GROUP)

    def open(self) -> Any:
        """Open the file for reading."""
        properties = self._factory.file_decryption_properties(self._connection)
        return pyarrow.parquet.ParquetFile(self.path, decryption_properties=properties)


def _table(records: npt.NDArray[np.void]) -> Any:
    columns = {name: np.ascontiguousarray(records[name]) for name in records.dtype.names or ()}
    # One letter is one byte: Arrow would otherwise make a variable-length column of it.
    return pyarrow.table(
        {
            name: column.view("u1") if column.dtype.kind == "S" else column
            for name, column in columns.items()
        }
    )


def append(settings: Settings) -> Job:
    """Write a table of records to a new file; making it from the records is not timed."""
    records = settings.load_records(settings.records)
    table = _table(records)
    store = _Store(settings, "append.parquet", table.column_names)
    store.write(table)
    assert store.open().read().equals(table)
    store.path.unlink()
    return Job(
        lambda: store.write(table),
        after=store.path.unlink,
        size=records.nbytes,
        records=len(records),
    )


def read_slice(settings: Settings) -> Job:
    """Open a file and read all of it into an Arrow table, on PyArrow's own threads."""
    records = settings.load_records(settings.slice_records)
    table = _table(records)
    store = _Store(settings, "slice.parquet", table.column_names)
    store.write(table)

    def read() -> Any:
        return store.open().read()

    assert read().equals(table)
    return Job(read, size=records.nbytes, records=len(records))


def read_one(settings: Settings) -> Job:
    """Read the row group that holds one record of a large file, which is the least that can be read."""
    table = _table(settings.load_records(ROW_GROUP))
    times = max(1, settings.tape_records // len(table))
    store = _Store(settings, "tape.parquet", table.column_names)
    store.write(table, times)
    file = store.open()
    numbers = random.Random(1)

    def read(number: int) -> Any:
        return file.read_row_group(number // len(table)).slice(number % len(table), 1)

    assert read(len(table) * times - 1).equals(table.slice(len(table) - 1, 1))
    return Job(
        lambda: read(numbers.randrange(len(table) * times)), size=RECORD_SIZE, records=1, calls=3
    )
