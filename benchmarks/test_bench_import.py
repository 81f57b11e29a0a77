"""How long does the import take?"""

from collections.abc import Callable

import pytest

from benchmarks.harness import Row
from benchmarks.questions import QUESTIONS


@pytest.mark.parametrize("row", QUESTIONS["import"].rows)
def test_import(row: Row, time_row: Callable[[Row], None]) -> None:
    """What went in comes out, and this is how long it takes."""
    time_row(row)
