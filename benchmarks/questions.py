"""What is asked: the rows that are compared, and the measures that have a target."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from benchmarks.harness import RECORD_SIZE, MissingError, Result, Row

SEAL, OPEN = "seal 64 KiB frames", "open 64 KiB frames"
ONE, TWO, CACHED = ", 1 thread", ", 2 threads", ", 1 thread, in the L2 cache"
SMALL, LARGE = "append batches of 100", "append batches of 100,000"
INDEXED = LARGE + ONE + ", index_by"
ENCRYPT, DECRYPT = "encrypt a file on tmpfs", "decrypt a file on tmpfs"
LOOKUP, SLICE = "read one record of a large tape", "read a slice of records, 2 threads"
IMPORT = "start Python and import"
MEMORY = "memory"
ROW_SIZES = (16, 36, 48, 56, 80, 128, 368, 1024, 4096, 65536)
ONE_ROW = "a batch of one record"
PLAIN = ", each nonce written with its row"
ONE_LARGE = ", 1 thread, a large batch"  # what two threads are given


class Results:
    """What came out, by subject and label; times are medians or minima."""

    def __init__(self, results: list[Result], facts: dict[str, float], statistic: str) -> None:
        self._by_row = {(result.row.subject, result.row.label): result for result in results}
        self._statistic = statistic
        self.facts = facts

    def ns(self, subject: str, label: str) -> float:
        """Nanoseconds a run.

        Raises:
            MissingError: the subject is not installed.
        """
        result = self._by_row[subject, label]
        if result.missing:
            raise MissingError(result.missing)
        time: float = getattr(result, self._statistic)
        return time

    def ns_per_record(self, subject: str, label: str) -> float:
        """Nanoseconds a record."""
        return self.ns(subject, label) / self._by_row[subject, label].records

    def ns_per_byte(self, subject: str, label: str) -> float:
        """Nanoseconds a byte of plaintext."""
        return self.ns(subject, label) / self._by_row[subject, label].size

    def speed(self, label: str, base: str = "native") -> float:
        """Our speed as a share of that of the base."""
        return self.ns_per_byte(base, label) / self.ns_per_byte("ours", label)

    def gain(self, subject: str, label: str) -> float:
        """How many times as fast two threads are as one."""
        return self.ns(subject, label + ONE) / self.ns(subject, label + TWO)


@dataclass(frozen=True)
class Measure:
    """A number that the project wants to be at least, or at most, so much; it is printed, never enforced."""

    text: str
    compute: Callable[[Results], float]
    target: float
    at_least: bool = True
    unit: str = ""

    def met(self, value: float) -> bool:
        """Whether the target is reached."""
        return value >= self.target if self.at_least else value <= self.target


@dataclass(frozen=True)
class Question:
    """Rows of one label are compared with one another; the first of them is the base of the ratios."""

    name: str
    rows: list[Row]
    measures: list[Measure]
    facts: dict[str, tuple[str, str, dict[str, Any]]] = field(default_factory=dict)

    @property
    def parts(self) -> list[list[Row]]:
        """Rows that take turns: those of one record size, so that not all sizes are in memory at once."""
        return [list(part) for _, part in groupby(self.rows, lambda row: row.options.get("size"))]


def _rows(label: str, *rows: tuple[str, str, dict[str, Any]]) -> list[Row]:
    return [Row(subject, job, label, options) for subject, job, options in rows]


def _frames() -> Question:
    rows, measures = [], []
    for opening, verb in ((False, SEAL), (True, OPEN)):
        for label, options in (
            (verb + ONE, {"threads": 1}),
            (verb + TWO, {"threads": 2}),
            (verb + CACHED, {"threads": 1, "kept": 4}),
        ):
            both = {"opening": opening, **options}
            rows += _rows(label, ("native", "frames", both), ("ours", "frames", both))
            if label == verb + ONE:
                peer = {"opening": opening}
                rows += _rows(label, ("pyca", "frames", peer), ("google_tink", "frames", peer))
        measures += [
            Measure(
                f"{verb}{threads}: share of the C loop's speed",
                lambda results, label=verb + threads: results.speed(label),  # type: ignore[misc]
                0.95,
            )
            for threads in (ONE, CACHED)
        ]
        measures.append(
            Measure(
                f"{verb}: share of what the C loop gains from a second thread",
                lambda results, verb=verb: (  # type: ignore[misc]
                    results.gain("ours", verb) / results.gain("native", verb)
                ),
                0.95,
            )
        )
    return Question("frames", rows, measures)


def _append() -> Question:
    def microseconds_over_the_loop(results: Results) -> float:
        over = results.ns_per_byte("ours", SMALL) - results.ns_per_byte("native", SMALL)
        return over * 100 * RECORD_SIZE / 1000

    large = LARGE + ONE
    return Question(
        "append",
        [
            *_rows(SMALL, ("native", "append", {}), ("ours", "append", {"batch": 100})),
            *_rows(
                large,
                ("native", "append", {}),
                ("ours", "append", {"batch": 100_000, "threads": 1}),
                ("parquet", "append", {}),
                ("pyca", "one_record_each", {}),
            ),
            *_rows(
                LARGE + TWO,
                ("native", "append", {"threads": 2}),
                ("ours", "append", {"batch": 100_000, "threads": 2}),
            ),
            *_rows(
                INDEXED,
                ("native", "append", {}),
                ("ours", "append", {"batch": 100_000, "threads": 1, "index_by": "ts_event"}),
            ),
        ],
        [
            Measure(
                f"{SMALL}: a call, over seal and pwrite in C",
                microseconds_over_the_loop,
                3,
                at_least=False,
                unit="µs",
            ),
            Measure(
                f"{large}: share of the C loop's speed", lambda results: results.speed(large), 0.85
            ),
        ],
    )


def _file() -> Question:
    rows, measures, facts = [], [], {}
    for opening, label in ((False, ENCRYPT), (True, DECRYPT)):
        options = {"opening": opening}
        peers = ("ours", "age", "pyca", "esdk", "google_tink")
        rows += _rows(
            label, ("coreutils", "copy_file", {}), *((peer, "file", options) for peer in peers)
        )
        for share in (1, 0.25):
            facts[f"{label}: {MEMORY} {share}"] = ("ours", "memory", {**options, "share": share})
        measures += [
            Measure(
                f"{label}: times cp",
                lambda results, label=label: 1 / results.speed(label, "coreutils"),  # type: ignore[misc]
                1.5,
                at_least=False,
            ),
            Measure(
                f"{label}: resident memory over the import",
                lambda results, label=label: results.facts[f"{label}: {MEMORY} 1"],  # type: ignore[misc]
                100,
                at_least=False,
                unit="MiB",
            ),
            Measure(
                f"{label}: of that, more than for a file a quarter as large",
                lambda results, label=label: (  # type: ignore[misc]
                    results.facts[f"{label}: {MEMORY} 1"] - results.facts[f"{label}: {MEMORY} 0.25"]
                ),
                10,
                at_least=False,
                unit="MiB",
            ),
        ]
    return Question("file", rows, measures, facts)


def _read() -> Question:
    return Question(
        "read",
        [
            *_rows(LOOKUP, ("ours", "read_one", {}), ("parquet", "read_one", {})),
            *_rows(
                SLICE,
                ("native", "read_slice", {"threads": 2}),
                ("ours", "read_slice", {"threads": 2}),
                ("parquet", "read_slice", {}),
            ),
        ],
        [
            Measure(
                LOOKUP,
                lambda results: results.ns("ours", LOOKUP) / 1000,
                40,
                at_least=False,
                unit="µs",
            ),
            Measure(
                f"{SLICE}: share of the C loop's speed", lambda results: results.speed(SLICE), 0.8
            ),
        ],
    )


def _import() -> Question:
    return Question(
        "import",
        _rows(IMPORT, ("startup", "start", {"module": "numpy"}), ("ours", "start", {})),
        [
            Measure(
                "import tapeseal and what a recorder uses, over import numpy",
                lambda results: (results.ns("ours", IMPORT) - results.ns("startup", IMPORT)) / 1e6,
                60,
                at_least=False,
                unit="ms",
            )
        ],
    )


def _rows_label(opening: bool, size: int = RECORD_SIZE) -> str:
    return f"{'open' if opening else 'seal'} rows of {size} bytes"


def _one_by_one() -> Question:
    peers = (
        "floor", "ours", "native", "system", "ipsec_mb", "pyca", "google_tink", "pycryptodome", "esdk",
    )  # fmt: skip
    rows: list[Row] = []
    for size in ROW_SIZES:
        for opening in (False, True):
            for threads, end in ((1, ONE), (2, TWO)):
                options = {"size": size, "opening": opening, "threads": threads}
                label = _rows_label(opening, size) + end
                rows += _rows(label, *((peer, "rows", options) for peer in peers))
            if size == RECORD_SIZE:
                base = {"size": size, "opening": opening, "threads": 1, "large": True}
                label = _rows_label(opening) + ONE_LARGE
                rows += _rows(label, ("native", "rows", base), ("ours", "rows", base))
    plain = {"size": RECORD_SIZE, "opening": False, "threads": 1, "ahead": 1}
    rows += _rows(_rows_label(False) + PLAIN, ("ipsec_mb", "rows", plain))
    for opening, verb in ((False, "seal"), (True, "open")):
        rows += _rows(f"{verb} {ONE_ROW}", ("ours", "one_row", {"opening": opening}))

    def gain(results: Results, subject: str, label: str) -> float:
        alone, shared = (results.ns(subject, label + end) for end in (ONE_LARGE, TWO))
        return alone / shared

    def times_ours(results: Results, subject: str, label: str) -> float:
        return results.ns_per_record(subject, label) / results.ns_per_record("ours", label)

    sealing, opened = (_rows_label(opening) + ONE for opening in (False, True))
    measures = [
        Measure(
            f"{_rows_label(False)}: times as fast as intel-ipsec-mb{PLAIN}",
            lambda results: (
                results.ns_per_record("ipsec_mb", _rows_label(False) + PLAIN)
                / results.ns_per_record("ours", sealing)
            ),
            2.5,
        ),
        Measure(
            f"{sealing}: times AES alone",
            lambda results: 1 / times_ours(results, "floor", sealing),
            2,
            at_least=False,
        ),
        *(
            Measure(
                f"{sealing}: times as fast as {name}",
                lambda results, peer=peer: times_ours(results, peer, sealing),  # type: ignore[misc]
                target,
            )
            for peer, name, target in (
                ("native", "the C loop", 4),
                ("system", "the C loop with the system's libcrypto", 8),
                ("ipsec_mb", "intel-ipsec-mb, nonces ahead", 2),
                ("pyca", "cryptography", 30),
            )
        ),
        Measure(
            f"{opened}: time beside sealing",
            lambda results: results.ns("ours", opened) / results.ns("ours", sealing),
            1.15,
            at_least=False,
        ),
    ]
    facts = {}
    for opening, verb in ((False, "seal"), (True, "open")):
        label, one = _rows_label(opening), f"{verb} {ONE_ROW}"
        memory = f"{verb} rows: memory over the output"
        facts[memory] = ("ours", "rows_memory", {"opening": opening})
        measures += [
            Measure(
                f"{label}: share of what the C loop gains from a second thread",
                lambda results, label=label: (  # type: ignore[misc]
                    gain(results, "ours", label) / gain(results, "native", label)
                ),
                0.95,
            ),
            Measure(
                one,
                lambda results, one=one: results.ns_per_record("ours", one) / 1000,  # type: ignore[misc]
                1,
                at_least=False,
                unit="µs",
            ),
            Measure(
                memory,
                lambda results, memory=memory: results.facts[memory],  # type: ignore[misc]
                1,
                at_least=False,
                unit="MiB",
            ),
        ]
    return Question("rows", rows, measures, facts)


QUESTIONS = {
    question.name: question
    for question in (_frames(), _append(), _file(), _read(), _import(), _one_by_one())
}
