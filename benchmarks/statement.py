"""How fast is the SHA-256 tree of a statement, beside `sha256sum`, `openssl dgst` and one thread of hashlib?

Run: python -m benchmarks.statement [--size MIB] [--rounds N] [--threads N ...] [--directory DIRECTORY]

All in memory (tmpfs), one file: what is measured is hashing, not a disk. The subjects are run round by round in turns.
The tree's root is checked against one that is computed leaf by leaf, the digests of the others against each other.
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

import tapeseal
from benchmarks.__main__ import machine
from tapeseal.signing.tree import LEAF_SIZE, Part, hash_trees, root


def hash_tree(path: Path, threads: int) -> str:
    """Hash a whole file as a statement does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        [(_, roots)] = hash_trees([(None, [Part(fd, 0, os.fstat(fd).st_size)])], threads)
    finally:
        os.close(fd)
    assert not isinstance(roots, Exception)
    return roots[0].hex()


def hash_plainly(path: Path) -> str:
    """Hash a file by one thread of hashlib."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(*command: object) -> str:
    """Return the digest that a program prints."""
    printed = subprocess.check_output([str(each) for each in command], text=True)
    return printed.split("= ")[-1].split()[0]


def expected_root(path: Path) -> str:
    """Compute the root without threads and without the code under test, but for the joining of leaves."""
    leaves = []
    with path.open("rb") as file:
        while leaf := file.read(LEAF_SIZE):
            leaves.append(hashlib.sha256(b"\0" + leaf).digest())
    return root(leaves).hex()


def main() -> None:
    """Time everything and print a line of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--directory", default="/dev/shm")
    arguments = parser.parse_args()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(tapeseal.openssl_version(), f"tapeseal {version('tapeseal')}", sep="\n")
    folder = Path(tempfile.mkdtemp(prefix="tapeseal-bench-", dir=arguments.directory))
    try:
        path = folder / "file"
        with path.open("wb") as file:
            for _ in range(arguments.size):
                file.write(os.urandom(LEAF_SIZE))
        size = path.stat().st_size
        tree, plain = expected_root(path), hash_plainly(path)
        subjects: dict[str, tuple[Callable[[], str], str]] = {
            f"tree, {threads} threads": (lambda threads=threads: hash_tree(path, threads), tree)
            for threads in arguments.threads
        }
        subjects["hashlib, one thread"] = lambda: hash_plainly(path), plain
        for name, command in (
            ("sha256sum", ["sha256sum"]),
            ("openssl dgst", ["openssl", "dgst", "-sha256"]),
        ):
            if shutil.which(command[0]):
                subjects[name] = lambda command=command: run(*command, path), plain
        times: dict[str, list[float]] = {name: [] for name in subjects}
        for _ in range(arguments.rounds):
            for name, (subject, expected) in subjects.items():
                start = time.perf_counter()
                found = subject()
                times[name].append(time.perf_counter() - start)
                assert expected == found, name
    finally:
        shutil.rmtree(folder)
    print(f"\n{arguments.size} MiB in {arguments.directory}, {arguments.rounds} rounds")
    print(f"{'':22}{'GB/s':>8}{'slowest':>9}{'fastest':>9}{'x hashlib':>11}")
    one = statistics.median(times["hashlib, one thread"])
    for name, taken in times.items():
        typical = statistics.median(taken)
        speeds = (size / each / 1e9 for each in (typical, max(taken), min(taken)))
        print(f"{name:22}{'{:8.2f}{:9.2f}{:9.2f}'.format(*speeds)}{one / typical:11.2f}")


if __name__ == "__main__":
    main()
