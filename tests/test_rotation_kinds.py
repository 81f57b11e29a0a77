"""Every kind of secret, rotated by the engine with the policies of docs/rotation-kinds.md."""

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
