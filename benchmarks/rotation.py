"""How long do `rotate plan`, `rotate status` and `rotate run --due` take?

Run: python -m benchmarks.rotation [--secrets N] [--due N] [--rounds N]

Needs the development environment: the Vault is the tests' server. `plan` and `status` are whole processes over a plan
of 2,000 secrets with windows of three markets, each with a target, a check and two consumers, once with an empty
journal, for which the calendars are loaded, and then with one that knows every secret. `run --due` rotates 200 keys in
KV, each from its claim to its end with two versions alive in between, deployed to a file of its own; with 1 and with 8
at once. The rest is what a run costs per rotation: requests to Vault and writes of the journal.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from benchmarks.__main__ import machine

ROOT = Path(__file__).parents[1]
SECRET = """
[secret.key-{number:04}]
kind = "api-key"
tier = "application"
owner = "desk {desk}"
monitor = "0s"
{more}
[secret.key-{number:04}.options]
path = "secret/venues/{number}"
[[secret.key-{number:04}.deploy]]
type = "file"
path = "keys/{number}"
"""
MORE = """consumers = ["recorder-{number}", "gateway-{number}"]
window = {{ markets = ["{market}"], hours = "18:00-08:00", timezone = "America/New_York" }}
verify = [{{ type = "exec", command = ["true"] }}]
"""
MARKETS = ("XNYS", "CMES", "XETR")


def write_plan(folder: Path, count: int, *, windows: bool, parallel: int = 8) -> Path:
    """Write a plan of so many keys."""
    (folder / "keys").mkdir(parents=True)
    text = f"[rotation]\nparallel = {parallel}\n"
    for number in range(count):
        more = MORE.format(number=number, market=MARKETS[number % 3]) if windows else ""
        text += SECRET.format(number=number, desk=number % 20, more=more)
    path = folder / "rotation.toml"
    path.write_text(text)
    return path


def timed(path: Path, *arguments: str) -> float:
    """Run a command of `tapeseal rotate` and return its seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "tapeseal", "rotate", *arguments, "-p", str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    took = time.perf_counter() - start
    assert done.returncode in (0, 3), done.stdout
    return took


def fill(path: Path) -> None:
    """Have the journal know every secret, some of them due."""
    from tapeseal.rotation.journal import Journal, Known
    from tapeseal.rotation.plan import read_plan

    plan, now = read_plan(path), datetime.now(UTC)
    with Journal(plan.state) as journal:
        journal.note(
            {
                name: Known("3", now - timedelta(days=number % 100), None, now, now)
                for number, name in enumerate(plan.secrets)
            }
        )


def looks(folder: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Time `plan` and `status`."""
    times: dict[str, list[float]] = {}
    for turn in range(rounds):
        path = write_plan(folder / f"looks-{turn}", count, windows=True)
        times.setdefault("plan, calendars not loaded yet", []).append(timed(path, "plan"))
        fill(path)
        for command in ("plan", "status"):
            times.setdefault(command, []).append(timed(path, command))
            times.setdefault(f"{command} --json", []).append(timed(path, command, "--json"))
    return times


def runs(folder: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Time `run --due` of keys of which each has a version already."""
    sys.path.insert(0, str(ROOT / "tests"))
    from servers.bao import dev_server

    times: dict[str, list[float]] = {}
    for turn in range(rounds):
        for parallel in (8, 1):
            home = folder / f"runs-{turn}-{parallel}"
            path = write_plan(home, count, windows=False, parallel=parallel)
            (home / "server").mkdir()
            with dev_server(home / "server") as server:
                os.environ |= {"VAULT_ADDR": server.address, "VAULT_TOKEN": server.token}
                for number in range(count):
                    server.admin.secrets.kv.v2.create_or_update_secret(
                        f"venues/{number}", {"key": "first"}
                    )
                # They are a second old: they are due at once.
                path.write_text(path.read_text().replace("monitor =", 'schedule = "1s"\nmonitor ='))
                time.sleep(1)
                took = timed(path, "run", "--due")
                times.setdefault(f"run --due, {parallel} at once", []).append(took)
                keys = [(home / "keys" / str(number)).read_text() for number in range(count)]
                for number in range(count):
                    answer = server.admin.secrets.kv.v2.read_secret_version(
                        f"venues/{number}", raise_on_deleted_version=True
                    )["data"]
                    assert (keys[number], 2) == (
                        answer["data"]["key"],
                        answer["metadata"]["version"],
                    )
    return times


def main() -> None:
    """Time everything and print a line of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--secrets", type=int, default=2000)
    parser.add_argument("--due", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    print(f"tapeseal {version('tapeseal')}")
    folder = Path(tempfile.mkdtemp(prefix="tapeseal-bench-"))
    try:
        found = looks(folder, arguments.secrets, arguments.rounds)
        found |= runs(folder, arguments.due, arguments.rounds)
    finally:
        shutil.rmtree(folder)
    print(f"\n{'':36}{'seconds':>9}{'fastest':>9}{'slowest':>9}")
    for name, taken in found.items():
        count = arguments.due if name.startswith("run") else arguments.secrets
        values = "".join(
            f"{each:9.2f}" for each in (statistics.median(taken), min(taken), max(taken))
        )
        print(f"{f'{name}, {count:,}':36}{values}")


if __name__ == "__main__":
    main()
