"""How fast are records sealed and opened, each by itself?"""

from collections.abc import Callable

import pytest

from benchmarks.harness import Row
from benchmarks.questions import QUESTIONS

SIZES = (None, 56, 4096)  # None: where the question has but one size


@pytest.mark.parametrize(
    "row", [row for row in QUESTIONS["rows"].rows if row.options.get("size") in SIZES]
)
def test_rows(row: Row, time_row: Callable[[Row], None]) -> None:
    """What went in comes out, and this is how long it takes."""
    time_row(row)
