"""What `pytest benchmarks` needs: quick settings, and one way to time a row."""

import warnings
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.harness import SUBJECTS, MissingError, Row, Settings, scratch_settings


@pytest.fixture(scope="session")
def settings() -> Iterator[Settings]:
    """Small sizes: these runs show that every job still works, and roughly how fast."""
    with scratch_settings(quick=True) as made:
        yield made


@pytest.fixture
def time_row(benchmark: BenchmarkFixture, settings: Settings) -> Callable[[Row], None]:
    """Check a row's round trip, then time it."""

    def time_row(row: Row) -> None:
        with warnings.catch_warnings():
            if SUBJECTS[row.subject].optional:
                warnings.simplefilter("ignore")  # What a peer warns of is not ours to mend.
            try:
                job = row.prepare(settings)
            except MissingError as error:
                pytest.skip(str(error))
            benchmark.group = row.label
            benchmark.extra_info.update(bytes=job.size, records=job.records)
            benchmark.pedantic(  # type: ignore[no-untyped-call]
                job.run,
                setup=job.before,
                teardown=job.after,
                rounds=max(settings.rounds, job.calls),
            )

    return time_row


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a row by its subject and what it does."""
    return f"{val.subject}: {val.label}" if isinstance(val, Row) else None
