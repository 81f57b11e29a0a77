"""The engine of rotations, over a service on disk and a real KV store."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import rotation_world as world
from rotation_world import Service, write_plan
from servers.bao import Server
from tapeseal.rotation import acknowledge, paths
from tapeseal.rotation.engine import Engine, Outcome
from tapeseal.rotation.journal import Journal
from tapeseal.rotation.plan import read_plan
from tapeseal.rotation.services import PlanServices
from tapeseal.vault import Token, VaultSession

pytestmark = pytest.mark.server

world.register()


class World:
    """A plan, its journal and its services, with a clock that can be put forward."""

    def __init__(self, directory: Path, server: Server, *names: str, **plan: str) -> None:
        self.directory = directory
        self.plan = read_plan(write_plan(directory / "rotation.toml", *names, **plan))
        self.vault = VaultSession(server.address, login=Token(server.token))
        self.later = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.later

    def engine(self) -> Engine:
        return Engine(self.plan, self.journal(), PlanServices(self.vault), now=self.now)

    def journal(self) -> Journal:
        return Journal(self.plan.state)

    def rotate(self, *names: str, reason: str = "") -> dict[str, Outcome]:
        with self.engine() as engine:
            return {each.secret: each for each in engine.rotate(names, reason=reason)}

    def run_due(self) -> dict[str, Outcome]:
        with self.engine() as engine:
            return {each.secret: each for each in engine.run_due()}

    def service(self, name: str) -> Service:
        return Service(self.directory / name)

    def claim(self, name: str) -> paths.Entry | None:
        return paths.read(self.vault, f"{self.plan.staging}/{name}")

    def acknowledge(self, name: str, consumer: str, version: str) -> None:
        acknowledge(self.vault, name, consumer, version, path=self.plan.consumers)


@pytest.fixture
def make(tmp_path: Path, bao: Server) -> Iterator[Callable[..., World]]:
    """Make a world with secrets of these names."""
    made = []

    def one(*names: str, **plan: str) -> World:
        made.append(World(tmp_path, bao, *names, **plan))
        return made[-1]

    yield one
    for each in made:
        each.vault.close()


def test_full_rotation(make: Callable[..., World]) -> None:
    """The new credential is deployed and accepted, the old one refused, and Vault keeps nothing."""
    here = make("db")
    here.rotate("db")
    first = here.service("db").alive()
    outcome = here.rotate("db")["db"]
    service = here.service("db")
    assert ("finished", "", "2") == (
        outcome.state,
        outcome.error,
        outcome.record and outcome.record.facts["version"],
    )
    assert 1 == len(service.alive())
    assert first != service.alive()
    assert service.deployed() == service.password(service.alive()[0])
    assert here.claim("db") is None
