"""The examples run as their docstrings say, and show what they claim."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tapeseal
from tapeseal.keyrings.local import create_key_file

if TYPE_CHECKING:
    from servers.bao import Server
    from servers.postgres import Postgres

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = str(tmp_path / "archive.key")
    create_key_file(path)
    return path


def run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / program, *map(str, arguments)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_a_recorded_feed_reads_back_into_pandas(key_file: str, tmp_path: Path) -> None:
    """What the recorder wrote is sealed, its anchors hold, and pandas sees all of it."""
    pytest.importorskip("pandas")
    out = run("record_feed.py", key_file, tmp_path / "recordings")
    tapes = sorted((tmp_path / "recordings").glob("*/*.tape"))
    anchors = [
        tapeseal.Anchor.parse(line) for line in out.splitlines() if not line.startswith("sealed")
    ]
    keyring = tapeseal.keyring(f"local:{key_file}")
    found = {tapeseal.inspect(path).tape_id: path for path in tapes}
    assert sorted(found) == sorted(anchor.tape_id for anchor in anchors)
    for anchor in anchors:
        assert tapeseal.verify(found[anchor.tape_id], keyring=keyring, anchor=anchor).ok
    for directory in {path.parent for path in tapes}:
        table = run("day_to_pandas.py", key_file, directory, "2000-01-01", "2100-01-01")
        total = sum(anchor.items for anchor in anchors if found[anchor.tape_id].parent == directory)
        assert table.splitlines()[0] == f"{total} records"


def test_packets_are_read_from_an_encrypted_capture(key_file: str, tmp_path: Path) -> None:
    """The sizes that the example reads from the tape are those of the capture's packets."""
    sizes = [60 + 97 * n for n in range(12)]
    packets = b"".join(
        struct.pack("<IIII", n, 0, size, size) + bytes(size) for n, size in enumerate(sizes)
    )
    capture = tmp_path / "capture.pcap"
    capture.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + packets)
    assert str(sizes[:10]) in run("encrypt_pcap.py", key_file, capture)


@pytest.mark.slow
@pytest.mark.server
def test_a_pool_under_changing_credentials(
    bao: "Server", postgres: "Postgres", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials of a few seconds follow each other under the pool, and none is left in the end."""
    mount = postgres.mount(bao)
    path = mount.make_role("pool", default_ttl="2s", max_ttl="4s")
    monkeypatch.setenv("VAULT_ADDR", bao.address)
    monkeypatch.setenv("VAULT_TOKEN", bao.token)
    conninfo = f"host={postgres.host} port={postgres.port} dbname=postgres"
    users = run("database_pool.py", path, conninfo, 8).split()
    assert 3 <= len(users) <= 6
    assert set() == postgres.roles() & set(users)
