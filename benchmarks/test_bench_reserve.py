"""What does a reserve of data keys cost an append, and what an outage of the service behind it?

One recorder appends batches of 100 records of 56 bytes; percentiles of all single appends are in extra_info. Of an
outage nothing should be seen: 99.9 % of the appends take at most twice as long as undisturbed ones.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import tapeseal
from benchmarks.harness import Settings
from tapeseal.keyrings.local import create_key_file
from tapeseal.layout import Recipient

BATCH = 100
APPENDS = 20_000


class Service:
    """A key file in the place of a service, which can refuse or not answer."""

    def __init__(self, keyring: tapeseal.Keyring) -> None:
        self.keyring = keyring
        self.answer: Callable[[], None] = lambda: None

    def generate(
        self, encryption_context: Mapping[str, str]
    ) -> tuple[tapeseal.DataKey, list[Recipient]]:
        """Generate as the key file does, or do what an outage does."""
        self.answer()
        return self.keyring.generate(encryption_context)

    def wrap(
        self, data_key: tapeseal.DataKey, encryption_context: Mapping[str, str]
    ) -> list[Recipient]:
        """Wrap as the key file does."""
        return self.keyring.wrap(data_key, encryption_context)

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> tapeseal.DataKey:
        """Unwrap as the key file does."""
        return self.keyring.unwrap(recipients, encryption_context)

    def pending(self) -> list[Recipient]:
        """Name what wrap() gives."""
        return self.keyring.pending()


def refuse() -> None:
    """Fail at once, as a service that throttles."""
    raise tapeseal.ServiceUnavailableError("throttled")


def hang() -> None:
    """Fail late, as a service that does not answer within a deadline."""
    time.sleep(0.5)
    raise tapeseal.ServiceUnavailableError("no answer")


@pytest.fixture
def key_file(tmp_path: Path) -> tapeseal.Keyring:
    """A keyring over a new key file."""
    create_key_file(tmp_path / "bench.key")
    return tapeseal.LocalKeyring(tmp_path / "bench.key")


@pytest.fixture
def recorder(
    request: pytest.FixtureRequest, settings: Settings, key_file: tapeseal.Keyring
) -> Iterator[tapeseal.Recorder]:
    """A recorder without a reserve, with one, and with one whose service has gone away."""
    folder = settings.path(f"reserve-{request.param}")
    service = Service(key_file)
    keys: Any = key_file
    if request.param != "plain":
        keys = tapeseal.DataKeyReserve(service)
        while keys.stats()["ready_keys"] <= keys.ready:
            time.sleep(0.01)
    if request.param in ("refused", "hanging"):
        service.answer = {"refused": refuse, "hanging": hang}[request.param]
        keys.ready += 1  # One is missing from here on, so the service is asked again and again.
    with tapeseal.Recorder(
        folder / "%H%M%S.tape", keyring=keys, dtype="V56", roll_size=64 << 20, threads=1
    ) as made:
        yield made
    shutil.rmtree(folder)  # The fuller the memory, the slower the next recorder.
    if request.param != "plain":
        keys.close()


@pytest.mark.benchmark(group="append batches of 100 through a reserve")
@pytest.mark.parametrize("recorder", ["plain", "undisturbed", "refused", "hanging"], indirect=True)
def test_append(recorder: tapeseal.Recorder, benchmark: BenchmarkFixture) -> None:
    """All records arrive, whatever the service does."""
    records = np.zeros(BATCH, "V56")
    took: list[int] = []

    def run() -> None:
        for _ in range(APPENDS):
            start = time.perf_counter_ns()
            recorder.append(records)
            took.append(time.perf_counter_ns() - start)

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    for percent in (50, 99, 99.9):
        benchmark.extra_info[f"p{percent} ns"] = float(np.percentile(took[APPENDS:], percent))
