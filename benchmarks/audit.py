"""How many entries a second does the audit log take, and how many does it verify?

Run: python -m benchmarks.audit [--entries N] [--rounds N] [--processes N ...] [--directory DIRECTORY]

Each entry is one `with audit.operation(…)`, in the file for every reader when it ends, chained, and counted by the
head. The peer is Python's `logging` to one file with the same members as JSON, which chains and counts nothing, and
whose processes do not wait for each other. Nobody waits for the disk: the log makes its entries durable within a
second, behind. After each run the log is verified, and what it holds is counted.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import tapeseal
from benchmarks.__main__ import machine
from tapeseal import audit
from tapeseal.audit_log.check import verify_log
from tapeseal.audit_log.log import AuditLog, create_log
from tapeseal.keyrings.local import LocalKeyring, create_key_file

WORKER = """
import sys
from benchmarks.audit import SUBJECTS
write = SUBJECTS[sys.argv[1]]
run = write(sys.argv[2], sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
run(int(sys.argv[4]), int(sys.argv[5]))
"""


def operations(count: int) -> None:
    """Record operations that do nothing."""
    for number in range(count):
        with audit.operation("kv.read", "secret/api-keys/binance") as entry:
            entry.version = number


def in_threads(work, count: int, threads: int) -> None:
    """Share the work among threads."""
    if threads == 1:
        work(count)
        return
    running = [threading.Thread(target=work, args=(count // threads,)) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def audit_log(path: str, key_file: str):
    """Write to an audit log."""
    log = AuditLog(path, keyring=f"local:{key_file}")
    audit.start(log)

    def run(count: int, threads: int) -> None:
        in_threads(operations, count, threads)

    return run


def python_logging(path: str, key_file: str):
    """Write the same members by Python's logging."""
    logger = logging.getLogger("audit")
    handler = logging.FileHandler(f"{path}.plain")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    who = {"host": os.uname().nodename, "pid": os.getpid(), "user": "root", "program": "bench"}

    def work(count: int) -> None:
        for number in range(count):
            moment = time.time_ns()
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // 10**9))
            entry = {
                "time": f"{text}.{moment % 10**9:09d}Z",
                **who,
                "action": "kv.read",
                "subject": "secret/api-keys/binance",
                "version": number,
                "result": "done",
            }
            logger.info(json.dumps(entry))

    return lambda count, threads: in_threads(work, count, threads)


SUBJECTS = {"audit log": audit_log, "logging": python_logging}


def measure(subject: str, folder: Path, processes: int, threads: int, entries: int) -> float:
    """Return the seconds that so many processes take for so many entries in all."""
    share = entries // processes
    arguments = [subject, folder / "audit.log", folder / "key", share, threads]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    start = time.perf_counter()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    codes = [worker.wait() for worker in workers]
    seconds = time.perf_counter() - start
    assert codes == [0] * processes
    return seconds


def main() -> None:
    """Time everything and print a line of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--directory", default=None, help="the system's for temporary files")
    arguments = parser.parse_args()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(tapeseal.openssl_version(), f"tapeseal {version('tapeseal')}", sep="\n")
    folder = Path(tempfile.mkdtemp(prefix="tapeseal-bench-", dir=arguments.directory))
    cases = [(each, 1) for each in arguments.processes] + [(1, 8)]
    times: dict[tuple[str, int, int], list[float]] = {}
    verifying: list[float] = []
    try:
        create_key_file(folder / "key")
        keyring = LocalKeyring(folder / "key")
        for turn in range(arguments.rounds + 1):
            for processes, threads in cases:
                for subject in SUBJECTS:
                    for each in folder.glob("audit.log*"):
                        each.unlink()
                    create_log(folder / "audit.log", keyring=keyring)
                    took = measure(subject, folder, processes, threads, arguments.entries)
                    share = arguments.entries // processes // threads * threads * processes
                    if turn:  # The first is there to warm up.
                        times.setdefault((subject, processes, threads), []).append(took)
                    if subject == "logging":
                        plain = (folder / "audit.log.plain").read_bytes()
                        assert plain.count(b"\n") == share
                        continue
                    start = time.perf_counter()
                    found = verify_log(folder / "audit.log", keyring=keyring)
                    verifying.append(time.perf_counter() - start)
                    assert found.ok
                    assert found.entries == share + processes
                    size = (folder / "audit.log").stat().st_size / found.entries
        audit.stop()
        start = time.perf_counter()
        operations(200_000)
        idle = (time.perf_counter() - start) / 200_000
    finally:
        shutil.rmtree(folder)
    print(f"\n{arguments.entries} entries of {size:.0f} bytes in {folder.parent}")
    print(f"{'':34}{'entries/s':>11}{'slowest':>10}{'fastest':>10}")
    for (subject, processes, threads), taken in times.items():
        speeds = [
            arguments.entries / each for each in (statistics.median(taken), max(taken), min(taken))
        ]
        name = f"{subject}, {processes} processes of {threads} threads"
        print(f"{name:34}{''.join(f'{speed:{11 - (n > 0)}.0f}' for n, speed in enumerate(speeds))}")
    speed = arguments.entries / statistics.median(verifying)
    print(f"verified: {speed:,.0f} entries a second, {speed * size / 1e6:.0f} MB/s")
    print(f"an operation without a log: {idle * 1e9:.0f} ns")


if __name__ == "__main__":
    main()
