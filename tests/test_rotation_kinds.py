"""Every kind of secret, rotated by the engine with the policies of docs/rotation-kinds.md."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kind_scenarios import SCENARIOS, Scenario, make
from support import TESTS
from tapeseal.rotation.journal import OPEN_STATES

pytestmark = pytest.mark.server


@pytest.fixture
def scenario(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scenario]:
    """A scenario with its first credential; the parameter is its name."""
    servers: dict[str, Any] = {}
    name = request.param
    for prefix, needed in (("database", "postgres"), ("kms", "kms")):
        if name.startswith(prefix):
            servers[needed] = request.getfixturevalue(needed)
    with make(name, tmp_path, request.getfixturevalue("bao"), **servers) as made:
        yield made


every = pytest.mark.parametrize("scenario", list(SCENARIOS), indirect=True)


@every
def test_rotation(scenario: Scenario) -> None:
    """A rotation waits for its consumer, and ends with the new credential accepted and the old one refused."""
    old = scenario.current()
    outcome = scenario.rotate()
    assert ("waiting", "") == (outcome.state, outcome.error)
    if scenario.retries == 0:
        assert scenario.accepts(old)
    new = scenario.current()
    assert scenario.accepts(new)
    scenario.acknowledge()
    assert "finished" == scenario.finish()
    scenario.check(old=old)
    assert scenario.name_of(new) == scenario.name_of(scenario.current())


@pytest.mark.slow
@every
def test_consumer_is_never_refused(scenario: Scenario) -> None:
    """A consumer that logs in all the time sees two rotations and no failure, and the old credentials are dead."""
    with scenario.client() as seen:
        old = []
        for _ in range(2):
            time.sleep(1)
            old.append(scenario.current())
            scenario.again()
            scenario.rotate()
            assert "finished" == scenario.finish()
        time.sleep(1)
    assert [] == seen["failures"]
    assert len(seen["versions"]) >= 3
    assert scenario.retries > 0 or seen["retries"] == 0
    for each in old:
        scenario.check(old=each)
    print(f"{seen['logins'] / seen['seconds']:.1f} logins a second, {seen['retries']} repeated")


# Crashes


class Runner:
    """Processes that run the engine of a scenario, and are killed; see kind_crash.py."""

    def __init__(self, scenario: Scenario) -> None:
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
        self._process = subprocess.Popen(
            [
                *(sys.executable, TESTS / "kind_crash.py", scenario.server.address),
                *(scenario.server.ca_file or "", scenario.token, scenario.plan_path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def __call__(self, command: str) -> dict[str, Any]:
        """Give a command and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.mark.slow
@every
def test_kill_at_every_point(scenario: Scenario) -> None:
    """After kill -9 at any point the next run ends the rotation; nothing is lost, left alive or made twice."""
    scenario.write_plan(consumers=None)
    points = []
    with Runner(scenario) as run:
        for number in range(1, 200):
            scenario.again(consumers=None)
            old, made = scenario.current(), scenario.made()
            answer = run(f"rotate {number}")
            assert answer["killed"] or answer["status"] == 0, points
            points.append(answer["point"])
            for _ in range(4):
                state = scenario.state()
                if state not in OPEN_STATES:
                    break
                assert 0 == run("due")["status"], points[-1]
            where = f"{state} after {points[-1]}"
            # Before the rotation is in the journal there is nothing to go on with.
            assert "finished" == state or "before begin" == points[-1], where
            scenario.check(
                old=old if scenario.name_of(old) != scenario.name_of(scenario.current()) else None
            )
            assert scenario.made() <= made + 1, where
            if not answer["killed"]:
                break
    assert not answer["killed"]
    print(len(points), "points:", *points, sep="\n")
