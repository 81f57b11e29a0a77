"""Whole files: what encrypt_file seals, from a file in parallel or from a stream, decrypt_file gives back."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tapeseal
from support import order_stream
from tapeseal import writer
from tapeseal.datakey import Keyring
from tapeseal.keyrings.local import create_key_file

FRAME = 65536


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    path = tmp_path / "archive.key"
    create_key_file(path)
    return tapeseal.keyring(f"local:{path}")


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("size", [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 40 * FRAME + 77])
def test_a_file_comes_back_and_verifies(
    keyring: Keyring, tmp_path: Path, size: int, threads: int
) -> None:
    """Sizes round the frame's, sealed by one thread and by several, give the same bytes again."""
    plain = os.urandom(size)
    source, sealed, back = (tmp_path / name for name in ("plain", "sealed", "back"))
    source.write_bytes(plain)
    seen: list[tuple[int, int | None]] = []
    anchor = tapeseal.encrypt_file(
        source, sealed, keyring=keyring, threads=threads, progress=lambda *done: seen.append(done)
    )
    found = tapeseal.verify(sealed, keyring=keyring, anchor=anchor)
    assert ("sealed", [], size) == (found.state, found.problems, found.items)
    assert [size] == [done for done, _ in seen[-1:]] or size == 0
    tapeseal.decrypt_file(sealed, back, keyring=keyring, threads=threads)
    assert plain == back.read_bytes()
    assert 0o600 == back.stat().st_mode & 0o777


def test_a_file_and_a_stream_give_tapes_of_the_same_frames(
    keyring: Keyring, tmp_path: Path
) -> None:
    """What is sealed in parallel is laid out as what a writer appends."""
    plain = os.urandom(37 * FRAME + 5)
    source = tmp_path / "plain"
    source.write_bytes(plain)
    one = tapeseal.encrypt_file(source, tmp_path / "one", keyring=keyring)
    two = tapeseal.encrypt_file(io.BytesIO(plain), tmp_path / "two", keyring=keyring)
    target = io.BytesIO()
    three = tapeseal.encrypt_file(source, target, keyring=keyring)
    shape = (one.segments, one.frames, one.items)
    assert (
        shape
        == (two.segments, two.frames, two.items)
        == (three.segments, three.frames, three.items)
    )
    back = io.BytesIO()
    tapeseal.decrypt_file(io.BytesIO(target.getvalue()), back, keyring=keyring)
    assert plain == back.getvalue()


def test_an_array_file_keeps_its_index_in_the_order_of_the_frames(
    keyring: Keyring, tmp_path: Path
) -> None:
    """Bounds that several threads compute stand with their own frames: verify compares every one."""
    records = np.tile(order_stream(), 4)
    np.save(tmp_path / "day.npy", records)
    tapeseal.encrypt_file(
        tmp_path / "day.npy", tmp_path / "day.tape", keyring=keyring, index_by="order_id", threads=4
    )
    assert tapeseal.verify(tmp_path / "day.tape", keyring=keyring).ok
    low, high = np.sort(records["order_id"])[[1000, 5000]]
    wanted = records[(records["order_id"] >= low) & (records["order_id"] < high)]
    with tapeseal.open(tmp_path / "day.tape", keyring=keyring) as tape:
        assert wanted.tobytes() == tape.between("order_id", low, high).tobytes()
    tapeseal.decrypt_file(tmp_path / "day.tape", tmp_path / "back.npy", keyring=keyring)
    assert (tmp_path / "day.npy").read_bytes() == (tmp_path / "back.npy").read_bytes()


def test_no_nonce_is_used_twice(
    keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each frame that is sealed in parallel has a number of its own."""
    used: list[tuple[bytes, int]] = []

    def count(commitment: bytes, first: int, frames: int) -> None:
        used.extend((commitment, number) for number in range(first, first + frames))

    monkeypatch.setattr(writer, "seal_hook", count)
    (tmp_path / "plain").write_bytes(bytes(20 * FRAME + 1))
    anchor = tapeseal.encrypt_file(tmp_path / "plain", tmp_path / "sealed", keyring=keyring)
    assert len(used) == len(set(used))
    assert {(anchor.commitment, number) for number in range(21)} <= set(used)
    assert tapeseal.inspect(tmp_path / "sealed").frames == 21


def test_a_source_that_is_cut_meanwhile_leaves_nothing(keyring: Keyring, tmp_path: Path) -> None:
    """A file that shrinks while it is read is an error, and no output stands under the name."""
    source, sealed = tmp_path / "plain", tmp_path / "sealed"
    source.write_bytes(bytes(64 * FRAME))

    def cut(done: int, total: int | None) -> None:
        os.truncate(source, FRAME)

    with pytest.raises(OSError, match="cut while it was read"):
        tapeseal.encrypt_file(source, sealed, keyring=keyring, threads=1, progress=cut)
    assert ["archive.key", "plain"] == sorted(os.listdir(tmp_path))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no /proc")
def test_a_file_that_the_kernel_makes_up_is_read_to_its_end(
    keyring: Keyring, tmp_path: Path
) -> None:
    """Its size is said to be 0."""
    tapeseal.encrypt_file("/proc/version", tmp_path / "sealed", keyring=keyring)
    with tapeseal.open(tmp_path / "sealed", "rb", keyring=keyring) as file:
        assert Path("/proc/version").read_bytes() == file.read()


def test_array_files_that_are_no_records_are_refused(keyring: Keyring, tmp_path: Path) -> None:
    """Two dimensions, objects, a header that promises more than there is, and no header at all."""
    np.save(tmp_path / "square.npy", np.zeros((3, 3)))
    np.save(tmp_path / "objects.npy", np.array([None]), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros(1000))
    os.truncate(tmp_path / "cut.npy", 1000)
    (tmp_path / "text.npy").write_text("no array")
    for name in ("square", "objects", "cut", "text"):
        with pytest.raises(ValueError):
            tapeseal.encrypt_file(tmp_path / f"{name}.npy", tmp_path / "sealed", keyring=keyring)
        assert not (tmp_path / "sealed").exists()


def test_a_killed_run_leaves_nothing_under_the_final_name(keyring: Keyring, tmp_path: Path) -> None:
    """A process that is killed in the midst of its frames leaves a file under another name at most."""
    (tmp_path / "plain").write_bytes(bytes(200 * FRAME))
    program = (
        "import os, signal, sys, tapeseal\n"
        "def kill(done, total):\n"
        "    if done > total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "tapeseal.encrypt_file(sys.argv[2], sys.argv[3], keyring=tapeseal.keyring('local:' + sys.argv[1]),"
        " progress=kill)\n"
    )
    names = [tmp_path / name for name in ("archive.key", "plain", "sealed")]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, timeout=60)
    assert -9 == done.returncode
    assert not (tmp_path / "sealed").exists()
