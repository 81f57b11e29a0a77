"""tapeseal demo, and the order flow it records."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tapeseal
from tapeseal.cli.orderflow import MBO, SESSION_SECONDS, SESSION_START, generate

DEMO = (sys.executable, "-m", "tapeseal", "demo", "--records", "100000")


@pytest.fixture(scope="module")
def flow() -> np.ndarray:
    """A session of 200,000 records."""
    return generate(3, 200_000)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo prints into a pipe, and the directory whose files it leaves."""
    place = tmp_path_factory.mktemp("demo") / "a directory"
    done = subprocess.run(
        [*DEMO, "--directory", place], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    return done.stdout, place


def test_the_demo_holds_what_it_shows(tmp_path: Path) -> None:
    """Every flushed record survives the kill, the tape resumes, the body outlives the key, a bit flip is found."""
    done = subprocess.run(
        [*DEMO, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    report = json.loads(done.stdout)
    crash, resume, rotation = report["crash"], report["resume"], report["rotation"]
    assert 50_000 <= crash["flushed"] <= crash["found"] < 100_000
    assert crash["equal"] is True
    assert resume["resumed_at"] == crash["found"]
    assert (resume["items"], resume["equal"], resume["segments"]) == (100_000, True, 2)
    assert rotation["body_sha256_before"] == rotation["body_sha256_after"]
    assert rotation["recipients"] == [rotation["key"]]
    assert rotation["key"] != report["key"]
    assert report["forgery"]["state"] == "damaged"
    (problem,) = report["forgery"]["problems"]
    assert problem["offset"] <= report["forgery"]["flipped"] < problem["offset"] + 65_600
    assert report["verification"]["state"] == "sealed"
    assert report["directory"] is None
    assert list(tmp_path.iterdir()) == []


def test_the_demo_reads_well_in_a_pipe(shown: tuple[str, Path]) -> None:
    """In a pipe there are no colours, no spinner, no line over 80 columns and no key."""
    text, place = shown
    steps, try_next = text.split("try next")
    assert "\x1b" not in text
    assert "\r" not in text
    assert max(map(len, steps.splitlines())) <= 80
    for secret in (place / "orders.key").read_text().split("secret=")[1:]:
        assert secret[:16] not in text
    assert f"'{place}/orders.tape'" in try_next


def test_the_demo_leaves_its_files(shown: tuple[str, Path]) -> None:
    """With --directory the tape and its key stay, and what they hold is the order flow."""
    _, place = shown
    assert sorted(os.listdir(place)) == ["orders.key", "orders.tape"]
    keyring = tapeseal.LocalKeyring(place / "orders.key")
    with tapeseal.open(place / "orders.tape", keyring=keyring) as tape:
        assert tape.sealed
        assert tape[:].tobytes() == generate(20261124, 100_000).tobytes()


def test_the_demo_overwrites_nothing(shown: tuple[str, Path]) -> None:
    """Where an earlier demo left its files another one is refused."""
    _, place = shown
    before = (place / "orders.key").read_bytes()
    done = subprocess.run(
        [*DEMO, "--directory", place], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "orders.key: " in done.stderr
    assert "exists" in done.stderr
    assert (place / "orders.key").read_bytes() == before


def test_the_flow_is_the_same_for_the_same_seed(flow: np.ndarray) -> None:
    """A seed is a session; another seed is another, and `start` only moves it in time."""
    assert generate(3, 200_000).tobytes() == flow.tobytes()
    assert generate(4, 200_000).tobytes() != flow.tobytes()
    later = generate(3, 200_000, SESSION_START + 5)
    assert (later["ts_event"] - flow["ts_event"] == 5).all()
    assert later["price"].tobytes() == flow["price"].tobytes()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 4097])
def test_the_flow_has_as_many_records_as_asked_for(count: int) -> None:
    """Any number of records can be had."""
    assert len(generate(1, count)) == count


def test_the_dtype_is_that_of_real_records(order_records: np.ndarray) -> None:
    """The made-up records have the dtype of the real ones."""
    assert order_records.dtype == MBO
    assert MBO.itemsize == 56


def test_times_never_fall(flow: np.ndarray) -> None:
    """Records are in the order of time, inside the session, and received after they happened."""
    assert (np.diff(flow["ts_event"].astype("i8")) >= 0).all()
    assert (np.diff(flow["ts_recv"].astype("i8")) >= 0).all()
    assert (flow["ts_recv"] > flow["ts_event"]).all()
    assert flow["ts_event"][0] >= SESSION_START
    assert flow["ts_event"][-1] <= SESSION_START + SESSION_SECONDS * 10**9


def test_the_day_is_shaped_like_a_u(flow: np.ndarray) -> None:
    """The open and the close are busier than midday, and most gaps are bursts."""
    counts, _ = np.histogram(flow["ts_event"] - np.uint64(SESSION_START), bins=13)
    assert min(counts[0], counts[-1]) > 3 * counts[6]
    gaps = np.diff(flow["ts_event"].astype("i8"))
    assert np.median(gaps) < 100_000 < np.mean(gaps)


def test_orders_live_as_orders_do(flow: np.ndarray) -> None:
    """An order is added once, at first, and removed at most once, at last; fills follow their trade at once."""
    resting = flow[flow["action"] != b"T"]
    order = np.argsort(resting["order_id"], kind="stable")
    ids, actions = resting["order_id"][order], resting["action"][order]
    first = np.append(True, ids[1:] != ids[:-1])
    last = np.append(first[1:], True)
    assert ((actions == b"A") == first).all()
    assert not (actions[~last] == b"C").any()
    trades = np.flatnonzero(flow["action"] == b"T")
    trades = trades[trades < len(flow) - 2]
    assert len(trades) > 1000
    for step, action in ((1, b"F"), (2, b"C")):
        assert (flow["action"][trades + step] == action).all()
        assert (flow["ts_event"][trades + step] == flow["ts_event"][trades]).all()
        assert (flow["price"][trades + step] == flow["price"][trades]).all()
    assert (flow["side"][trades] != flow["side"][trades + 1]).all()


def test_prices_are_on_the_tick(flow: np.ndarray) -> None:
    """There are several instruments; each stays on its tick and moves."""
    instruments = np.unique(flow["instrument_id"])
    assert len(instruments) == 4
    for instrument in instruments:
        prices = flow["price"][flow["instrument_id"] == instrument]
        assert (prices % 50_000_000 == 0).all()
        assert (prices > 0).all()
        assert len(np.unique(prices)) > 10
