"""Fixtures that several test modules share, and the settings of hypothesis."""

from pathlib import Path

import hypothesis
import numpy as np
import pytest

# A deadline would make a verdict out of how busy the machine is.
hypothesis.settings.register_profile("tapeseal", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tapeseal")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def order_records() -> np.ndarray:
    """Real order records of one trading day, 56 bytes each; read-only."""
    path = SHARED / "data" / "esh4-20231225-mbo.npy"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return np.load(path, mmap_mode="r")
