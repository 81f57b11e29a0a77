"""Fixtures that several test modules share, and the settings of hypothesis."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest

import tapeseal
from tapeseal.keyrings.local import LocalKeyring, create_key_file
from tapeseal.keyrings.public_key import PublicKeyKeyring, create_key_pair

if TYPE_CHECKING:
    from servers.bao import Cluster, Server, SingleServer
    from servers.kms import KmsServer
    from servers.postgres import Postgres

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


# The servers' modules are imported only here: not every run of the tests needs hvac.


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """A Vault-compatible server in dev mode; each test mounts and names what it needs."""
    from servers.bao import dev_server

    with dev_server(tmp_path_factory.mktemp("bao")) as server:
        yield server


@pytest.fixture(scope="session")
def bao_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator["SingleServer"]:
    """The same behind TLS 1.3; a test that seals it unseals it again."""
    from servers.bao import tls_server

    with tls_server(tmp_path_factory.mktemp("bao-tls")) as server:
        yield server


@pytest.fixture(scope="session")
def _bao_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    from servers.bao import cluster

    with cluster(tmp_path_factory.mktemp("bao-cluster")) as nodes:
        yield nodes


@pytest.fixture
def bao_cluster(_bao_cluster: "Cluster") -> "Cluster":
    """Three nodes that share their data, all well whatever the last test did to them; slow to start."""
    _bao_cluster.heal()
    return _bao_cluster


@pytest.fixture(scope="session")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator["KmsServer"]:
    """AWS KMS with IAM; each test makes the keys it needs."""
    from servers.kms import kms_server

    with kms_server(tmp_path_factory.mktemp("kms")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator["Postgres"]:
    """A PostgreSQL; each test makes the roles it needs, under names of its own."""
    from servers.postgres import postgres_server

    with postgres_server() as server:
        yield server


@pytest.fixture
def services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kms: "KmsServer", bao: "Server"
) -> dict[str, tapeseal.Keyring]:
    """Keyrings of KMS, of Vault and over an escrow's private half."""
    import hvac

    from servers.kms import REGION
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring
    from tapeseal.keyrings.vault_transit import VaultTransitKeyring

    for name, value in kms.admin_user.items():
        monkeypatch.setenv(name, value)
    mount = f"transit-{os.urandom(4).hex()}"
    bao.admin.sys.enable_secrets_engine("transit", path=mount)
    bao.admin.adapter.post(f"/v1/{mount}/keys/archive", json={"derived": True})
    client = hvac.Client(bao.address, token=bao.token, timeout=30)
    create_key_pair(tmp_path / "escrow")
    return {
        "kms": AwsKmsKeyring(
            kms.make_key(), region=REGION, endpoint_url=kms.address, read_timeout=30
        ),
        "vault": VaultTransitKeyring(f"{mount}/archive", client),
        "escrow": PublicKeyKeyring(tmp_path / "escrow"),
    }
