"""The audit log: which key and secret operations happened, never a value."""

from types import TracebackType
from typing import Self


class operation:  # noqa: N801 # reads as `with audit.operation(...)`
    """Records an operation in the process's audit log, where there is one, with how it ended.

        with audit.operation("kv.read", "secret/api-keys/binance") as entry:
            ...
            entry.version = 3

    Args:
        action: what is done: the part of tapeseal, a dot and a verb, such as "kv.read".
        subject: what it is done to: the name of a key, the path of a secret; never a value.
        details: further facts, none of them secret.
    """

    def __init__(self, action: str, subject: str, **details: str | int | None) -> None:
        self.action = action
        self.subject = subject
        self.details = details
        self.version: str | int | None = None
        """Which version of the subject was used or made."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass
