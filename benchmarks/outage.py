"""What does a recorder notice when Vault and KMS go away, one after the other and together?

Run: python -m benchmarks.outage [--seconds N] [--batch N] [--pause MICROSECONDS]

Needs the development environment: the services are the tests' servers, three Vault-compatible nodes that share their
data, and KMS behind a proxy that fails as it is told to. One process appends batches of 56-byte records all the time,
through a reserve of data keys that either service can wrap; this one takes the services away. Each step lasts ten
minutes by the reserve's clock, which is so many times faster than ours and stands still between the steps. A step
is compared with the undisturbed ones of the same run, which come in between. Every tape that was closed is counted,
and deleted.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tapeseal

ROOT = Path(__file__).parents[1]
CONTEXT = {"desk": "bench"}
STEP_SECONDS = 600
"""Of the reserve's clock."""
MAX_AGE = 1600
"""Likewise; more than twice a step, so that the budget lasts for one."""
PERCENTS = (50, 99, 99.9)


# The recorder's process


class StepClock:
    """A fast clock that goes only during a step."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        # Its time at an instant, and that instant; None: it stands still. Both at once, for other threads read them.
        self._state: tuple[float, float | None] = (0.0, None)

    def __call__(self) -> float:
        now, since = self._state
        return now if since is None else now + (time.monotonic() - since) * self._speed

    def start(self) -> None:
        """Go on."""
        self._state = self._state[0], time.monotonic()

    def stop(self) -> None:
        """Stand still."""
        self._state = self(), None


def record() -> None:
    """Append for the time that each line of standard input says, and answer each with a line of JSON."""
    settings = json.loads(sys.argv[2])
    logging.disable()
    clock = StepClock(STEP_SECONDS / settings["seconds"])
    tapeseal.DataKeyReserve.clock = clock
    kms = tapeseal.keyring(settings["kms"])
    from tapeseal.keyrings.vault_transit import VaultTransitKeyring
    from tapeseal.vault.session import VaultSession

    folder = Path(settings["folder"])
    counted = appended = 0

    def count(path: str, anchor: tapeseal.Anchor) -> None:
        nonlocal counted
        with tapeseal.open(path, keyring=keys) as tape:
            assert len(tape) == anchor.items
        counted += anchor.items
        os.unlink(path)

    # Read from the environment: address, CA and token.
    with VaultSession(deadline=settings["deadline"]) as session:
        vault = VaultTransitKeyring(settings["vault"], session)
        both = tapeseal.AnyOf([kms, vault], minimum=1)
        with (
            tapeseal.DataKeyReserve(both, CONTEXT, max_age_seconds=MAX_AGE) as keys,
            tapeseal.Recorder(
                folder / "%H%M%S.tape",
                keyring=keys,
                dtype="V56",
                encryption_context=CONTEXT,
                roll_size=64 << 20,
                threads=1,
                on_close=count,
            ) as tapes,
        ):
            records = np.zeros(settings["batch"], "V56")
            append, watch, pause = tapes.append, time.perf_counter_ns, settings["pause"] * 1e-6
            for line in sys.stdin:
                before, took = keys.stats(), []
                clock.start()
                end = watch() + int(float(line) * 1e9)
                start = 0
                while start < end:
                    start = watch()
                    append(records)
                    took.append(watch() - start)
                    if pause:
                        time.sleep(pause)
                clock.stop()
                appended += len(took) * len(records)
                after = keys.stats()
                found = {
                    "appends": len(took),
                    "generated": after["generated"] - before["generated"],
                    "failed": after["generate_failures"] - before["generate_failures"],
                    "budget": after["outage_budget_seconds"],
                    "max": max(took),
                    **{str(each): float(np.percentile(took, each)) for each in PERCENTS},
                }
                print(json.dumps(found), flush=True)
    assert counted == appended, (counted, appended)
    print(json.dumps({"counted": counted}), flush=True)


# The services' process


class Recording:
    """The recorder's process."""

    def __init__(self, settings: dict[str, Any], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.outage", "record", json.dumps(settings)],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self, seconds: float, disturb: Callable[[], object]) -> dict[str, float]:
        """Append for so long, disturbed after a tenth of it, and return what was measured."""
        assert self._process.stdin is not None
        timer = threading.Timer(seconds / 10, disturb)
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        timer.start()
        found = self._answer()
        timer.join()
        return found

    def close(self) -> int:
        """End it and return how many records all its tapes held; it fails unless that is what was appended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        counted = int(self._answer()["counted"])
        assert self._process.wait() == 0
        return counted

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the recorder failed"
        found: dict[str, float] = json.loads(line)
        return found


def seal(cluster: Any) -> None:
    """Seal one active node after the other; the last leads nobody, and lets itself be sealed."""
    for _ in cluster.nodes[1:]:
        node = cluster.active()
        node.admin.sys.seal()
        node.wait_for_status(503)
    for node in cluster.nodes:
        if node.status() != 503:
            node.admin.sys.seal()


def restart(cluster: Any) -> None:
    """Start what is sealed or ended anew, and wait until all is as it was."""
    for node in cluster.nodes:
        if node.status() == 503:
            node.kill()
    cluster.heal()


def run(folder: Path, arguments: argparse.Namespace) -> None:
    """Start everything, take it away step by step, and print a line of each."""
    sys.path.insert(0, str(ROOT / "tests"))
    from servers.bao import cluster
    from servers.fault_proxy import FaultProxy
    from servers.kms import kms_server

    for name in ("bao", "kms", "tapes"):
        (folder / name).mkdir()
    with (
        cluster(folder / "bao") as vault,
        kms_server(folder / "kms") as kms,
        FaultProxy(kms.address) as proxy,
    ):
        active = vault.active()
        active.admin.sys.enable_secrets_engine("transit", path="bench")
        active.admin.adapter.post("/v1/bench/keys/data", json={"derived": True})
        addresses = sorted(vault.addresses, key=active.address.__ne__)
        settings = {
            "seconds": arguments.seconds,
            "batch": arguments.batch,
            "pause": arguments.pause,
            "deadline": 2.0,
            "folder": str(folder / "tapes"),
            "kms": f"aws-kms:{kms.make_key()}?endpoint_url={proxy.address}",
            "vault": "bench/data",
        }
        environment = {
            **kms.admin_user,
            "VAULT_ADDR": ",".join(addresses),
            "VAULT_CACERT": vault.ca_file,
            "VAULT_TOKEN": vault.token,
            "VAULT_NAMESPACE": "",
        }

        def throttle() -> None:
            body = {"__type": "ThrottlingException", "message": "Rate exceeded"}
            proxy.fault("", status=400, body=body)

        def all_away() -> None:
            proxy.refuse()
            for node in vault.nodes:
                node.kill()

        def all_back() -> None:
            proxy.accept()
            restart(vault)

        nothing: Callable[[], object] = lambda: None  # noqa: E731
        steps: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            ("undisturbed", nothing, nothing),
            ("active node killed", active.kill, lambda: restart(vault)),
            ("undisturbed", nothing, nothing),
            ("Vault sealed", lambda: seal(vault), lambda: restart(vault)),
            ("undisturbed", nothing, nothing),
            ("KMS throttles all", throttle, proxy.clear),
            ("undisturbed", nothing, nothing),
            ("both away", all_away, all_back),
            ("undisturbed", nothing, nothing),
        ]
        recording = Recording(settings, environment)
        recording.step(arguments.seconds / 4, nothing)  # To warm up.
        measured = []
        for name, disturb, mend in steps:
            measured.append((name, recording.step(arguments.seconds, disturb)))
            mend()
            # The clock has gone on, and keys may be due: let the reserve fill up.
            recording.step(arguments.seconds / 10, nothing)
        counted = recording.close()
    report(measured, arguments)
    print(f"{counted} records appended, and counted in the tapes")


def report(measured: list[tuple[str, dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Print a line of each step, with ratios to the median of the undisturbed ones."""
    print(
        f"\n{arguments.batch} records of 56 bytes an append, {arguments.pause} µs between them; microseconds, "
        f"and times the median of the undisturbed steps\n{'':20}{'appends':>9}{'keys':>6}{'failed':>8}{'budget s':>10}"
        + "".join(f"{each:>16}" for each in (*(f"p{each}" for each in PERCENTS), "max"))
    )
    names = [*map(str, PERCENTS), "max"]
    calm = {
        each: statistics.median(found[each] for name, found in measured if name == "undisturbed")
        for each in names
    }
    for name, found in measured:
        cells = "".join(
            f"{found[each] / 1000:9.1f}{found[each] / calm[each]:6.2f}x" for each in names
        )
        print(
            f"{name:20}{found['appends']:9.0f}{found['generated']:6.0f}{found['failed']:8.0f}{found['budget']:10.0f}{cells}"
        )


def main() -> None:
    """Run the benchmark, or be its recorder."""
    if sys.argv[1:2] == ["record"]:
        record()
        return
    from benchmarks.__main__ import machine

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20, help="of each step")
    parser.add_argument("--batch", type=int, default=100, help="records an append")
    parser.add_argument("--pause", type=int, default=200, help="microseconds between appends")
    arguments = parser.parse_args()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(tapeseal.openssl_version(), flush=True)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = Path(tempfile.mkdtemp(prefix="tapeseal-bench-", dir=memory))
    try:
        run(folder, arguments)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
