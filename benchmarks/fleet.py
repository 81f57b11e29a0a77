"""How many small tapes a second does a fleet's rewrap do, and how much does it write?

Run: python -m benchmarks.fleet [--tapes N] [--rounds N] [--threads N ...] [--directory DIRECTORY]

All in memory (tmpfs), with key files: what is measured is ours, not a disk's or a service's. The peers, round by round
in turns, are a loop of one `rewrap` call a tape, which looks for no tapes, proves nothing and keeps no journal, and
`cp -r` of the same files, as a backup would. After each run every body is compared byte by byte, untimed.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

import tapeseal
from benchmarks.__main__ import machine
from tapeseal.fleet import find_tapes, rewrap_fleet
from tapeseal.keyrings.local import create_key_file

RECORDS = np.zeros(100, "V56")
HEADER = 8192


def written() -> int:
    """Return how many bytes this process has given to the system to write, to whatever."""
    with open("/proc/self/io") as file:
        return int(dict(line.split(": ") for line in file)["wchar"])


def bodies(paths: list[str]) -> str:
    """Return a digest of all bytes behind the header copies."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(Path(path).read_bytes()[HEADER:])
    return digest.hexdigest()


class Fleet:
    """Tapes, and the key files between which they are moved to and fro."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.tapes = folder / "tapes"
        for name in ("a.key", "b.key"):
            create_key_file(folder / name)
        self.now, self.next = (tapeseal.LocalKeyring(folder / name) for name in ("a.key", "b.key"))
        for number in range(count):
            path = self.tapes / f"{number // 1000}" / f"{number}.tape"
            path.parent.mkdir(parents=True, exist_ok=True)
            with tapeseal.open(path, "x", keyring=self.now, dtype=RECORDS.dtype, threads=1) as tape:
                tape.append(RECORDS)
        self.paths = list(find_tapes([self.tapes]))
        assert count == len(self.paths)
        self.size = sum(os.path.getsize(path) for path in self.paths)

    def rewrap_all(self, threads: int) -> None:
        """Move the fleet, with journal and proof, as a user does."""
        journal = self.folder / "journal"
        journal.unlink(missing_ok=True)
        found = rewrap_fleet(
            find_tapes([self.tapes]),
            keyring=self.now,
            to=self.next,
            journal=journal,
            threads=threads,
        )
        assert all(each.state == "rewrapped" for each in found)
        self.now, self.next = self.next, self.now

    def loop(self) -> None:
        """Move the fleet by a call for each tape, with nothing else."""
        for path in self.paths:
            tapeseal.rewrap(path, keyring=self.now, to=self.next)
        self.now, self.next = self.next, self.now

    def copy(self) -> None:
        """Copy the fleet by `cp`."""
        subprocess.run(["cp", "-r", self.tapes, self.folder / "copy"], check=True)

    def check(self, expected: str) -> None:
        """See that the present keyring alone opens a tape in a hundred, and that no body changed."""
        shutil.rmtree(self.folder / "copy", ignore_errors=True)
        assert expected == bodies(self.paths)
        for path in self.paths[::100]:
            with tapeseal.open(path, keyring=self.now) as tape:
                assert RECORDS.tobytes() == tape[:].tobytes()


def main() -> None:
    """Time everything and print a line of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tapes", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[4, 2, 1])
    parser.add_argument("--directory", default="/dev/shm")
    arguments = parser.parse_args()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(tapeseal.openssl_version(), f"tapeseal {version('tapeseal')}", sep="\n")
    folder = Path(tempfile.mkdtemp(prefix="tapeseal-bench-", dir=arguments.directory))
    try:
        fleet = Fleet(folder, arguments.tapes)
        expected = bodies(fleet.paths)
        subjects: dict[str, Callable[[], None]] = {
            f"rewrap_fleet, {threads} threads": lambda threads=threads: fleet.rewrap_all(threads)
            for threads in arguments.threads
        }
        subjects |= {"loop of rewrap": fleet.loop, "cp -r": fleet.copy}
        times: dict[str, list[float]] = {name: [] for name in subjects}
        sizes = dict.fromkeys(subjects, 0)
        for turn in range(arguments.rounds + 1):
            for name, run in subjects.items():
                before, start = written(), time.perf_counter()
                run()
                took = time.perf_counter() - start
                sizes[name] = fleet.size if run == fleet.copy else written() - before
                if turn:  # The first is there to warm up.
                    times[name].append(took)
                fleet.check(expected)
    finally:
        shutil.rmtree(folder)
    print(
        f"\n{arguments.tapes} tapes of {fleet.size / arguments.tapes:.0f} bytes in {folder.parent}"
    )
    print(f"{'':26}{'tapes/s':>9}{'slowest':>9}{'fastest':>9}{'bytes a tape':>14}{'x loop':>8}")
    loop = statistics.median(times["loop of rewrap"])
    for name, taken in times.items():
        typical = statistics.median(taken)
        speeds = (arguments.tapes / each for each in (typical, max(taken), min(taken)))
        print(
            f"{name:26}{''.join(f'{speed:9.0f}' for speed in speeds)}"
            f"{sizes[name] / arguments.tapes:14.0f}{loop / typical:8.2f}"
        )


if __name__ == "__main__":
    main()
