"""Kills a run of the engine at each point in turn, and has the next run end what it left.

Run: python rotation_crash.py ADDRESS TOKEN DIRECTORY SCENARIO STRIDE

Each run is a process forked from this one, which has loaded everything and has no threads. The first is ended by
SIGKILL at its N-th point: before and after each write of the journal, and after the service made something. A line of
JSON says of each N, in strides, where that was and what is there after the next runs.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rotation_world as world
from rotation_world import Service, write_plan
from tapeseal.rotation import journal, paths
from tapeseal.rotation.consumers import acknowledge
from tapeseal.rotation.engine import Engine
from tapeseal.rotation.journal import Journal
from tapeseal.rotation.plan import Plan, read_plan
from tapeseal.rotation.services import PlanServices
from tapeseal.vault import Token, VaultSession

address, token, directory, scenario, stride = sys.argv[1:]
world.register()


def forked(work: Callable[[], None]) -> int:
    """Run the work in a process of its own; return its status as os.waitpid has it."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def run(plan: Plan, name: str, action: str, consumer: bool = False) -> None:
    """Do what one process does with the plan."""
    with (
        VaultSession(address, login=Token(token)) as vault,
        Journal(plan.state) as opened,
        Engine(plan, opened, PlanServices(vault)) as engine,
    ):
        if action == "rotate":
            list(engine.rotate([name]))
        elif action == "due":
            list(engine.run_due())
        elif action == "rollback":
            engine.rollback(name)
        if consumer:
            record = opened.last(name)
            if record is not None and record.open and record.facts.get("version"):
                acknowledge(
                    vault, name, "recorder", str(record.facts["version"]), path=plan.consumers
                )


def kill_at(number: int, place: Path) -> None:
    """End this process at the N-th point, whose name is left in a file."""
    seen = 0

    def hook(point: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            place.write_text(point)
            os.kill(os.getpid(), signal.SIGKILL)

    journal.crash_hook = hook


def state(plan: Plan, name: str, service: Service) -> dict[str, Any]:
    """Return what there is."""
    with VaultSession(address, login=Token(token)) as vault, Journal(plan.state) as opened:
        record = opened.last(name)
        assert record is not None
        path = plan.secrets[name].options["path"]
        entry = paths.read(vault, path, secret=("password",))
        alive = service.alive()
        return {
            "state": record.state,
            "alarm": record.alarm,
            "alive": alive,
            "stored": entry and entry.data["account"],
            "is_deployed": [service.password(each) == service.deployed() for each in alive],
            "claim": paths.read(vault, f"{plan.staging}/{name}") is not None,
            "made": service.made(),
            "rotation": record.id,
        }


def one(number: int) -> bool:
    """Kill a run at its N-th point, and report what the next runs make of it; return whether it came to its end."""
    home = Path(directory) / f"{scenario}-{number}"
    home.mkdir()
    more = 'consumers = ["recorder"]' if scenario == "consumer" else ""
    plan = read_plan(write_plan(home / "rotation.toml", "db", more=more))
    service, place = Service(home / "db"), home / "point"
    for _ in range(2):
        assert forked(lambda: run(plan, "db", "rotate", True)) == 0
    first = service.alive()
    if scenario == "failure":
        service.trouble("trusted", first[0])

    def killed() -> None:
        kill_at(number, place)
        for _ in range(2 if scenario == "consumer" else 1):
            run(plan, "db", "rotate", True)

    status = forked(killed)
    whole = not os.WIFSIGNALED(status)
    assert whole or os.WTERMSIG(status) == signal.SIGKILL
    if scenario == "rollback" and not whole:
        with Journal(plan.state) as opened:
            record = opened.last("db")
            back = record is not None and record.open and "revoke" not in opened.begun(record.id)
        if back:
            assert forked(lambda: run(plan, "db", "rollback")) == 0
    for _ in range(3):
        # Again, for consumers have something to say in between.
        assert forked(lambda: run(plan, "db", "due", True)) == 0
    found = state(plan, "db", service)
    found["first"] = first
    found["point"] = place.read_text() if place.exists() else ""
    print(json.dumps(found), flush=True)
    return whole


def main() -> None:
    """Go through the points until a run comes to its end."""
    logging.disable()
    number = 1
    while not one(number):
        number += int(stride)


if __name__ == "__main__":
    main()
