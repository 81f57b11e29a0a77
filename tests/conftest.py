"""Fixtures that several test modules share, and the settings of hypothesis."""

from pathlib import Path

import hypothesis
import numpy as np
import pytest

from tapeseal.keyrings.local import LocalKeyring, create_key_file

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


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a key file under no passphrase."""
    path = str(tmp_path_factory.mktemp("keys") / "archive.key")
    create_key_file(path)
    return path


@pytest.fixture(scope="session")
def keyring(key_file: str) -> LocalKeyring:
    """A keyring over key_file."""
    return LocalKeyring(key_file)


@pytest.fixture(scope="session")
def other_keyring(tmp_path_factory: pytest.TempPathFactory) -> LocalKeyring:
    """A keyring that opens nothing of `keyring`'s."""
    path = tmp_path_factory.mktemp("keys") / "other.key"
    create_key_file(path)
    return LocalKeyring(path)
