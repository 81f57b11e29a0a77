"""What is closed at the end of a `with` statement."""

from typing import Self


class Closing:
    """A context manager that closes itself, whatever happened inside."""

    __slots__ = ()

    def close(self) -> object:
        """Give back what this holds; closing again does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
