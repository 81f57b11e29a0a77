from types import TracebackType
from typing import Final, Self, final

from typing_extensions import Buffer

KEY_SIZE: Final = 32
NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
FRAME_HEADER_SIZE: Final = 24
KEY_SCHEDULES_PROTECTED: Final[bool]
ROW_OVERHEAD: Final = 28

def openssl_version() -> str: ...
def process_epoch() -> int: ...
def check_process(epoch: int) -> int: ...
def wipe(buffer: Buffer) -> None: ...
def copy_into(target: Buffer, offset: int, source: Buffer) -> int: ...
def row_kernels() -> tuple[str, ...]: ...
def row_offsets(target: Buffer, data: Buffer, offsets: Buffer, more: int) -> int: ...
def hkdf_expand(key: SecretBuffer, info: Buffer, size: int) -> SecretBuffer: ...
def hmac_sha256(key: SecretBuffer, data: Buffer) -> bytes: ...

@final
class SecretBuffer:
    def __new__(cls, size: int) -> Self: ...
    @staticmethod
    def random(size: int) -> SecretBuffer: ...
    @staticmethod
    def take(source: Buffer) -> SecretBuffer: ...
    @staticmethod
    def read(fd: int, size: int) -> SecretBuffer: ...
    @staticmethod
    def from_hex(text: SecretBuffer, start: int, stop: int) -> SecretBuffer: ...
    def to_hex(self) -> SecretBuffer: ...
    @property
    def closed(self) -> bool: ...
    @property
    def locked(self) -> bool: ...
    def close(self) -> None: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class AESGCM:
    def __new__(cls, key: SecretBuffer, offset: int = 0) -> Self: ...
    def encrypt(
        self, nonce: Buffer, plaintext: Buffer | SecretBuffer, associated_data: Buffer = b""
    ) -> bytes: ...
    def decrypt(self, nonce: Buffer, sealed: Buffer, associated_data: Buffer = b"") -> bytes: ...
    def decrypt_secret(
        self, nonce: Buffer, sealed: Buffer, associated_data: Buffer = b""
    ) -> SecretBuffer: ...
    def seal_frames(
        self,
        target: Buffer,
        source: Buffer | None,
        *,
        count: int,
        item_size: int,
        frame_items: int,
        first: int,
        index: int,
        final: bool = False,
        threads: int = 1,
    ) -> int: ...
    def open_frames(
        self,
        target: Buffer | None,
        source: Buffer,
        *,
        count: int,
        item_size: int,
        frame_items: int,
        first: int,
        index: int,
        final: bool = False,
        threads: int = 1,
    ) -> int: ...

@final
class Counter:
    def __new__(cls, limit: int) -> Self: ...
    @property
    def taken(self) -> int: ...
    def take(self, count: int) -> int: ...

@final
class RowCipher:
    def __new__(cls, key: SecretBuffer, kernel: str | None = None) -> Self: ...
    def seal_rows(
        self,
        target: Buffer,
        source: Buffer,
        *,
        counter: int,
        target_offsets: Buffer | None = None,
        source_offsets: Buffer | None = None,
        associated_data: Buffer | None = None,
        associated_rows: Buffer | None = None,
        associated_offsets: Buffer | None = None,
        threads: int = 1,
        any_nonce: bool = False,
    ) -> None: ...
    def open_rows(
        self,
        target: Buffer,
        source: Buffer,
        *,
        target_offsets: Buffer | None = None,
        source_offsets: Buffer | None = None,
        associated_data: Buffer | None = None,
        associated_rows: Buffer | None = None,
        associated_offsets: Buffer | None = None,
        valid: Buffer | None = None,
        threads: int = 1,
        any_nonce: bool = False,
    ) -> None: ...
