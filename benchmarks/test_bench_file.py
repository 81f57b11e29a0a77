"""How fast are whole files encrypted and decrypted?"""

from collections.abc import Callable

import pytest

from benchmarks.harness import Row
from benchmarks.questions import QUESTIONS


@pytest.mark.parametrize("row", QUESTIONS["file"].rows)
def test_file(row: Row, time_row: Callable[[Row], None]) -> None:
    """What went in comes out, and this is how long it takes."""
    time_row(row)
