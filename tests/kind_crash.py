"""Runs a plan's engine in processes that are killed where they are told to be: kind_crash.py ADDRESS CA_FILE TOKEN PLAN

Each line on standard input is a command, and gets a line of JSON:

    rotate N     rotate "desk" in a process that is ended by SIGKILL at its N-th point; without N it is not
    due          go on with what is open

The points are those of the journal, before and after each write, and after each call that changes something: of Vault,
of an exchange, of KMS, of a file. The processes are forked from this one, which has loaded everything and has no
threads.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tapeseal import fleet, kms
from tapeseal.rotation import journal
from tapeseal.rotation.engine import Engine
from tapeseal.rotation.journal import Journal
from tapeseal.rotation.kinds import api_key
from tapeseal.rotation.plan import read_plan
from tapeseal.rotation.services import PlanServices
from tapeseal.transport import wire
from tapeseal.vault import Token, VaultSession

address, ca_file, token, plan_path = sys.argv[1:]

READS = ("GET", "HEAD", "LIST", "Get", "List", "Describe")


def after(owner: Any, name: str, what: Callable[..., str]) -> None:
    """Have a call be a point once it is done, unless it only reads."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        line = what(*args)
        if not line.startswith(READS):
            journal.reached(f"after {line}")
        return result

    setattr(owner, name, wrapped)


# Of KMS all calls are POSTs to one path.
after(wire, "send", lambda method, url, *_: f"{'GET' if url.endswith('/') else method} {url}")
after(kms.Connection, "call", lambda self, operation, *_: operation)
after(os, "replace", lambda source, target: f"replace {target}")
after(api_key, "run_command", lambda command: f"run {command[-1]}")
after(fleet, "rewrap", lambda path: f"rewrap {path}")


def forked(work: Callable[[], None]) -> int:
    """Run the work in a process of its own; return its status as os.waitpid has it."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def run(action: str) -> None:
    """Do what one process does."""
    plan = read_plan(plan_path)
    with (
        VaultSession(address, login=Token(token), ca_file=ca_file or None) as vault,
        Journal(plan.state) as opened,
        PlanServices(vault) as services,
        Engine(plan, opened, services) as engine,
    ):
        list(engine.rotate(["desk"]) if action == "rotate" else engine.run_due())


def killed(number: int, place: Path) -> None:
    """Rotate, and be ended at the N-th point, whose name is left in a file."""
    seen = 0

    def hook(point: str) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            place.write_text(point)
            os.kill(os.getpid(), signal.SIGKILL)

    journal.crash_hook = hook
    run("rotate")


def main() -> None:
    """Answer commands."""
    place = Path(plan_path).with_name("point")
    for line in sys.stdin:
        action, _, number = line.strip().partition(" ")
        place.unlink(missing_ok=True)
        status = forked(lambda n=number, a=action: killed(int(n), place) if n else run(a))  # type: ignore[misc]
        answer = {
            "killed": os.WIFSIGNALED(status),
            "status": status,
            "point": place.read_text() if place.exists() else "",
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
