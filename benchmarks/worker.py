"""The process of one subject: `python -m benchmarks.worker SUBJECT SETTINGS`, driven over its standard input."""

import gc
import json
import os
import statistics
import sys
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

from benchmarks.harness import Job, MissingError, Row, Settings, load


def one_round(job: Job) -> float:
    """Return the median time of a run in nanoseconds."""
    gc.collect()
    samples = []
    for _ in range(job.calls):
        job.before()
        start = perf_counter_ns()
        job.run()
        samples.append(perf_counter_ns() - start)
        job.after()
    return statistics.median(samples)


def serve(subject: str, settings: Settings, answer: Callable[..., None]) -> None:
    """Prepare jobs, run rounds of them and drop them, as asked."""
    try:
        answer(version=load(subject).version(), missing="")
    except MissingError as error:
        answer(version="", missing=str(error))
    jobs: dict[int, Job] = {}
    for line in sys.stdin:
        question: dict[str, Any] = json.loads(line)
        match question["do"]:
            case "prepare":
                row = Row(subject, question["job"], "", question["options"])
                job = row.prepare(settings)
                one_round(job)  # warm caches and lazy imports
                jobs[question["number"]] = job
                answer(size=job.size, records=job.records)
            case "round":
                answer(ns=one_round(jobs[question["number"]]))
            case "fact":
                fact = getattr(load(subject), question["job"])
                answer(value=fact(settings, **question["options"]))
            case "drop":
                jobs.clear()
                answer()


def main() -> None:
    """Serve until standard input ends."""
    # What a library prints goes to standard error; standard output is for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    serve(sys.argv[1], Settings(**json.loads(sys.argv[2])), answer)


if __name__ == "__main__":
    main()
