"""How fast are 64 KiB frames sealed and opened in memory?"""

from collections.abc import Callable

import pytest

from benchmarks.harness import Row
from benchmarks.questions import QUESTIONS


@pytest.mark.parametrize("row", QUESTIONS["frames"].rows)
def test_frames(row: Row, time_row: Callable[[Row], None]) -> None:
    """What went in comes out, and this is how long it takes."""
    time_row(row)
