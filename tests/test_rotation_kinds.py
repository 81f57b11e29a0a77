"""Every kind of secret, rotated by the engine with the policies of docs/rotation-kinds.md."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kind_scenarios import SCENARIOS, Scenario, make

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
