"""What a benchmark is made of, and how its rounds are run: one process per library, taking turns."""

import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

MIB = 2**20
FRAME_SIZE = 65536
RECORD_SIZE = 56
FRAME_RECORDS = FRAME_SIZE // RECORD_SIZE

RECORDS_FILE = "records.npy"


@dataclass(frozen=True)
class Settings:
    """The sizes of everything, in bytes or in records, and where files go."""

    directory: str
    rounds: int = 9
    memory_size: int = 64 * MIB
    memory_calls: int = 20  # the first after another process ran finds cold caches
    file_size: int = 1024 * MIB
    slow_file_size: int = 64 * MIB  # for peers that need ten times as long
    records: int = 4_000_000
    slice_records: int = 1_000_000
    lookups: int = 500
    row_records: int = 10_000  # of a batch, or as many as make row_bytes
    row_bytes: int = MIB  # larger ones measure the memory too, which other work shares

    @classmethod
    def quick(cls, directory: str) -> Self:
        """Sizes that show only that everything runs and comes back right."""
        return cls(
            directory,
            rounds=2,
            memory_size=8 * MIB,
            memory_calls=5,
            file_size=16 * MIB,
            slow_file_size=16 * MIB,
            records=200_000,
            slice_records=200_000,
            lookups=20,
            row_records=1000,
            row_bytes=MIB // 4,
        )

    def path(self, name: str) -> Path:
        """Return where a file of this name goes; each job makes names of its own."""
        return Path(self.directory, name)

    @property
    def tape_records(self) -> int:
        """As many records as make a tape of `file_size`."""
        return self.file_size // RECORD_SIZE

    def load_records(self, count: int) -> NDArray[np.void]:
        """Return the first records of the seeded order flow, at most `records` of them."""
        records: NDArray[np.void] = np.load(self.path(RECORDS_FILE), mmap_mode="r")
        return np.array(records[:count])

    @property
    def source(self) -> Path:
        """The file of `file_size` bytes of records that the file jobs read; the first to ask makes it."""
        return self._records_file("source.bin", self.file_size)

    @property
    def slow_source(self) -> Path:
        """The file of `slow_file_size` bytes."""
        return self._records_file("slow-source.bin", self.slow_file_size)

    def _records_file(self, name: str, size: int) -> Path:
        path = self.path(name)
        if not path.exists():
            data = self.load_records(self.records).tobytes()
            with path.open("wb") as file:
                for start in range(0, size, len(data)):
                    file.write(data[: size - start])
        return path


def nothing() -> None:
    """Prepare nothing, clear nothing away."""


@dataclass
class Job:
    """Something to time: `run` is timed, `calls` times a round; `before` and `after` each of them are not."""

    run: Callable[[], object]
    size: int  # plaintext bytes that one run handles
    records: int = 0  # records that one run handles
    before: Callable[[], None] = nothing
    after: Callable[[], None] = nothing
    calls: int = 1


class MissingError(Exception):
    """A peer is not installed; the text says how to install it."""


@dataclass(frozen=True)
class Subject:
    """A library, or a program, with jobs in a module of this package."""

    title: str
    install: str = ""

    @property
    def optional(self) -> bool:
        """Whether a comparison goes on without it."""
        return bool(self.install)


SUBJECTS = {
    "ours": Subject("tapeseal"),
    "native": Subject("C loop"),
    "floor": Subject("AES alone"),
    "system": Subject("C loop, system's OpenSSL", "apt-get install libssl-dev"),
    "ipsec_mb": Subject("intel-ipsec-mb", "apt-get install libipsec-mb-dev (x86-64 only)"),
    "startup": Subject("numpy"),
    "coreutils": Subject("cp"),
    "age": Subject("age", "apt-get install age"),
    "pyca": Subject("cryptography", "pip install 'cryptography>=50'"),
    "esdk": Subject("aws-encryption-sdk", "pip install 'aws-encryption-sdk[MPL]'"),
    "parquet": Subject("pyarrow", "pip install pyarrow"),
    "google_tink": Subject("tink", "pip install tink"),
    "pycryptodome": Subject("pycryptodome", "pip install pycryptodome"),
}


def load(subject: str) -> Any:
    """Import the module of a subject.

    Raises:
        MissingError: the library or program is not there.
    """
    try:
        module = importlib.import_module(f"benchmarks.subjects.{subject}")
        module.version()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        if not SUBJECTS[subject].optional:
            raise
        raise MissingError(f"not installed: {SUBJECTS[subject].install}") from error
    return module


@dataclass(frozen=True)
class Row:
    """One line of a table: a job of a subject, with options."""

    subject: str
    job: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)

    def prepare(self, settings: Settings) -> Job:
        """Check the round trip and return what is to be timed."""
        job: Job = getattr(load(self.subject), self.job)(settings, **self.options)
        return job


@dataclass
class Result:
    """The rounds of one row, in nanoseconds a run."""

    row: Row
    size: int = 0
    records: int = 0
    rounds: list[float] = field(default_factory=list)
    missing: str = ""

    @property
    def median(self) -> float:
        """The typical round."""
        return statistics.median(self.rounds)

    @property
    def minimum(self) -> float:
        """The least disturbed round."""
        return min(self.rounds)

    @property
    def unsteady(self) -> bool:
        """Whether minimum and median differ by over 10 %."""
        return self.median > 1.1 * self.minimum


class Worker:
    """The process of one subject. It answers each line of JSON with one."""

    def __init__(self, subject: str, settings: Settings) -> None:
        self.subject = subject
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", subject, json.dumps(asdict(settings))],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version: str = ""
        self.missing: str = ""
        hello = self._answer()
        self.version, self.missing = hello["version"], hello["missing"]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.subject} ended with {self._process.wait()}")
        return json.loads(line)

    def ask(self, **question: Any) -> Any:
        """Have it do something and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Workers:
    """The processes of all subjects, each started when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._started: dict[str, Worker] = {}

    def __getitem__(self, subject: str) -> Worker:
        if subject not in self._started:
            self._started[subject] = Worker(subject, self.settings)
        return self._started[subject]

    @property
    def versions(self) -> dict[str, str]:
        """What each subject that is there says of itself."""
        return {
            SUBJECTS[name].title: worker.version
            for name, worker in self._started.items()
            if not worker.missing
        }

    @property
    def missing(self) -> dict[str, str]:
        """How to get each subject that is not there."""
        return {
            SUBJECTS[name].title: worker.missing
            for name, worker in self._started.items()
            if worker.missing
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._started.values():
            worker.close()


def measure(rows: list[Row], workers: Workers, progress: Callable[[str], None]) -> list[Result]:
    """Run the rows in turns, round after round, so that what disturbs the machine disturbs all alike."""
    results = []
    for number, row in enumerate(rows):
        worker = workers[row.subject]
        result = Result(row, missing=worker.missing)
        results.append(result)
        if not worker.missing:
            progress(f"{SUBJECTS[row.subject].title}: {row.label}: round trip")
            sizes = worker.ask(do="prepare", number=number, job=row.job, options=row.options)
            result.size, result.records = sizes["size"], sizes["records"]
    present = [(number, result) for number, result in enumerate(results) if not result.missing]
    for turn in range(workers.settings.rounds):
        for number, result in present:
            row = result.row
            progress(f"{SUBJECTS[row.subject].title}: {row.label}: round {turn + 1}")
            result.rounds.append(workers[row.subject].ask(do="round", number=number)["ns"])
    for subject in {result.row.subject for _, result in present}:
        workers[subject].ask(do="drop")
    for file in Path(workers.settings.directory).iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name != RECORDS_FILE:
            file.unlink()
    return results


@contextmanager
def scratch_settings(quick: bool) -> Iterator[Settings]:
    """Settings with a directory in memory (tmpfs) where there is one, removed with all files at the end."""
    # The peers' processes import this module too, and not tapeseal.
    from tapeseal.cli.orderflow import generate

    memory = "/dev/shm"
    parent = memory if os.path.isdir(memory) and os.access(memory, os.W_OK) else None
    directory = tempfile.mkdtemp(prefix="tapeseal-bench-", dir=parent)
    try:
        settings = Settings.quick(directory) if quick else Settings(directory)
        np.save(settings.path(RECORDS_FILE), generate(seed=1, count=settings.records))
        yield settings
    finally:
        shutil.rmtree(directory)
