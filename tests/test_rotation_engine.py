"""The engine of rotations, over a service on disk and a real KV store: steps, failures, ways back, crashes."""

import json
import logging
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hvac.exceptions import InvalidPath

import rotation_world as world
from rotation_world import CANARY, Service, write_plan
from servers.bao import Cluster, Server, SingleServer, wait_for
from servers.fault_proxy import FaultProxy
from support import TESTS
from tapeseal import audit
from tapeseal.audit_log.log import AuditLog, create_log
from tapeseal.errors import AuditError, RotationError
from tapeseal.keyrings.local import LocalKeyring
from tapeseal.rotation import acknowledge, journal, paths
from tapeseal.rotation.engine import STEPS, Engine, Outcome
from tapeseal.rotation.journal import Journal, Record
from tapeseal.rotation.kinds import Live
from tapeseal.rotation.plan import read_plan
from tapeseal.rotation.schedule import Calendars
from tapeseal.rotation.service import REQUESTS_EVERY, Daemon
from tapeseal.rotation.services import PlanServices
from tapeseal.rotation.status import statuses
from tapeseal.vault import Token, VaultSession

pytestmark = pytest.mark.server

world.register()


class World:
    """A plan, its journal and its services, with a clock that can be put forward."""

    def __init__(
        self,
        directory: Path,
        server: Any,
        *names: str,
        address: str | list[str] | None = None,
        deadline: float = 10.0,
        **plan: str,
    ) -> None:
        self.directory = directory
        self.plan = read_plan(write_plan(directory / "rotation.toml", *names, **plan))
        self.vault = VaultSession(
            address or server.address,
            login=Token(server.token),
            ca_file=server.ca_file,
            deadline=deadline,
        )
        self.journal = Journal(self.plan.state)
        self.later = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.later

    def engine(self) -> Engine:
        return Engine(self.plan, self.journal, PlanServices(self.vault), now=self.now)

    def rotate(self, name: str, reason: str = "") -> Outcome:
        with self.engine() as engine:
            (outcome,) = engine.rotate([name], reason=reason)
        return outcome

    def run_due(self) -> dict[str, Outcome]:
        with self.engine() as engine:
            return {each.secret: each for each in engine.run_due()}

    def service(self, name: str) -> Service:
        return Service(self.directory / name)

    def claim(self, name: str) -> paths.Entry | None:
        return paths.read(self.vault, f"{self.plan.staging}/{name}", secret=("new", "old"))

    def stored(self, name: str) -> str:
        entry = paths.read(self.vault, self.plan.secrets[name].options["path"])
        assert entry is not None
        return str(entry.data["account"])

    def acknowledge(self, name: str, consumer: str, version: str) -> None:
        acknowledge(self.vault, name, consumer, version, path=self.plan.consumers)

    def check(self, name: str) -> None:
        """See that one account is alive, the one that is stored and deployed, and that Vault keeps no claim."""
        service = self.service(name)
        assert [self.stored(name)] == service.alive()
        assert service.deployed() == service.password(service.alive()[0])
        assert self.claim(name) is None

    def close(self) -> None:
        self.vault.close()
        self.journal.close()


@pytest.fixture
def make(tmp_path: Path, bao: Server) -> Iterator[Callable[..., World]]:
    """Make a world with secrets of these names."""
    made = []

    def one(*names: str, server: Any = bao, **more: Any) -> World:
        made.append(World(tmp_path, server, *names, **more))
        return made[-1]

    yield one
    for each in made:
        each.close()


def record_of(outcome: Outcome) -> Record:
    assert outcome.record is not None
    return outcome.record


@pytest.fixture
def at_point(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], None]], None]:
    """Have something done when a run first comes to a point."""

    def at(wanted: str, work: Callable[[], None]) -> None:
        left = [work]

        def hook(point: str) -> None:
            if point == wanted and left:
                left.pop()()

        monkeypatch.setattr(journal, "crash_hook", hook)

    return at


# Good ends


def test_first_rotation(make: Callable[..., World]) -> None:
    """What was never there is made."""
    here = make("db")
    outcome = here.rotate("db")
    assert ("finished", "", "1") == (
        outcome.state,
        outcome.error,
        record_of(outcome).facts["version"],
    )
    here.check("db")


def test_full_rotation(make: Callable[..., World]) -> None:
    """The new credential is deployed and accepted, the old one is dead, and Vault keeps nothing."""
    here = make("db")
    here.rotate("db")
    first = here.service("db").alive()
    outcome = here.rotate("db")
    assert ("finished", "", "2") == (
        outcome.state,
        outcome.error,
        record_of(outcome).facts["version"],
    )
    assert first != here.service("db").alive()
    here.check("db")


def test_journal_has_each_step(make: Callable[..., World]) -> None:
    """Each step is journaled before and after it."""
    here = make("db")
    record = record_of(here.rotate("db"))
    assert [(step, event) for step in STEPS for event in ("begin", "end")] == [
        (step, event) for _, step, event, _ in here.journal.events(record.id)
    ]


def test_due_secrets_alone_are_rotated(make: Callable[..., World]) -> None:
    """What is younger than its schedule is left alone, until it is due."""
    here = make("db", "cache", more='schedule = "90d"')
    assert {"db": "finished", "cache": "finished"} == {
        name: each.state for name, each in here.run_due().items()
    }
    assert {} == here.run_due()
    here.later = timedelta(days=89)
    assert {} == here.run_due()
    here.later = timedelta(days=91)
    assert {"db", "cache"} == here.run_due().keys()


def test_unknown_age_is_no_reason(make: Callable[..., World]) -> None:
    """A secret whose service cannot be asked is not rotated on a guess, and the others are."""
    here = make("db", "cache")
    here.service("db").trouble("down")
    assert {"db": "failed", "cache": "finished"} == {
        name: each.state for name, each in here.run_due().items()
    }
    here.service("db").mend("down")
    assert ["db"] == list(here.run_due())


def test_look_of_another_process_is_no_news(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """What `plan --refresh` has seen before a rotation ended does not make the secret due once more."""
    here = make("db", more='schedule = "90d"')
    here.rotate("db")
    here.later = timedelta(days=91)
    with Journal(here.plan.state) as other:
        looking = Engine(here.plan, other, PlanServices(here.vault), now=here.now)
        at_point("before secrets", lambda: record_of(here.rotate("db")))
        assert [] == looking.refresh(["db"])
    assert "2" == here.journal.known()["db"].version
    assert {} == here.run_due()


# Consumers


def test_consumer_that_never_adopts(
    make: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    """The old credential lives for as long as a consumer is not on the new one; after the grace with an alarm."""
    here = make("db", more='consumers = ["recorder", "gateway"]\ngrace = "1h"')
    here.rotate("db")
    outcome = here.rotate("db")
    assert ("waiting", ["recorder", "gateway"], False) == (
        outcome.state,
        record_of(outcome).waiting,
        outcome.alarm,
    )
    here.acknowledge("db", "gateway", "2")
    here.later = timedelta(hours=2)
    for _ in range(2):
        outcome = here.run_due()["db"]
        assert ("waiting", ["recorder"], True) == (
            outcome.state,
            record_of(outcome).waiting,
            outcome.alarm,
        )
    assert 2 == len(here.service("db").alive())
    assert 1 == sum(
        each.levelno == logging.ERROR and "recorder" in each.message for each in caplog.records
    )
    here.acknowledge("db", "recorder", "2")
    outcome = here.run_due()["db"]
    assert ("finished", False) == (outcome.state, outcome.alarm)
    here.check("db")


def test_acknowledgement_from_before_counts_for_nothing(make: Callable[..., World]) -> None:
    """What a consumer said before the rotation began is no word on it, whatever the version is called."""
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    here.acknowledge("db", "recorder", "2")
    assert "waiting" == here.rotate("db").state
    here.acknowledge("db", "recorder", "1")
    assert "waiting" == here.rotate("db").state
    here.acknowledge("db", "recorder", "2")
    assert "finished" == here.rotate("db").state


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".", "a b", "x" * 101])
def test_acknowledgement_of_no_name(make: Callable[..., World], name: str) -> None:
    """A name that would be another path is refused."""
    here = make("db")
    with pytest.raises(ValueError, match="no name"):
        here.acknowledge(name, "recorder", "1")
    with pytest.raises(ValueError, match="no name"):
        here.acknowledge("db", name, "1")


def test_consumer_that_joins_before_the_revoke(make: Callable[..., World]) -> None:
    """Who came into the plan while the revoke waited for its window is waited for, too."""
    hours = window(datetime.now(UTC), -timedelta(hours=1), timedelta(hours=1))
    here = make("db", more=f'{hours}\nconsumers = ["recorder"]')
    here.rotate("db")
    here.rotate("db")
    here.acknowledge("db", "recorder", "2")
    here.later = timedelta(hours=3)
    assert ("running", "revoke") == (here.rotate("db").state, record_of(here.rotate("db")).step)
    path = here.directory / "rotation.toml"
    path.write_text(path.read_text().replace('["recorder"]', '["recorder", "gateway"]'))
    here.plan = read_plan(path)
    here.later = timedelta(days=1)
    outcome = here.run_due()["db"]
    assert ("waiting", ["gateway"]) == (outcome.state, record_of(outcome).waiting)
    assert 2 == len(here.service("db").alive())
    here.acknowledge("db", "gateway", "2")
    assert "finished" == here.run_due()["db"].state
    here.check("db")


# Failures and ways back


def test_failed_verification_goes_back(make: Callable[..., World]) -> None:
    """The old credential is deployed again, and only then the new one ended."""
    here = make("db")
    here.rotate("db")
    service = here.service("db")
    first = service.alive()
    service.trouble("trusted", first[0])
    outcome = here.rotate("db")
    assert "rolled back" == outcome.state
    assert "refused" in outcome.error
    assert CANARY not in outcome.error
    assert first == service.alive()
    here.check("db")


def test_after_a_failure_it_is_tried_later(make: Callable[..., World]) -> None:
    """A rotation that was rolled back is not begun again at once, but within the hour; each failure doubles that."""
    here = make("db")
    here.rotate("db")
    service = here.service("db")
    service.trouble("trusted", service.alive()[0])
    here.later = timedelta(days=91)
    assert "rolled back" == here.run_due()["db"].state
    assert {} == here.run_due()
    here.later += timedelta(hours=1, minutes=1)
    assert "rolled back" == here.run_due()["db"].state
    here.later += timedelta(hours=1, minutes=1)
    assert {} == here.run_due()
    service.mend("trusted")
    here.later += timedelta(hours=1)
    assert "finished" == here.run_due()["db"].state


def test_failed_first_rotation_leaves_nothing(make: Callable[..., World]) -> None:
    """Where there was nothing before, there is nothing after a failure."""
    here = make("db")
    here.service("db").trouble("trusted", "nobody")
    assert "rolled back" == here.rotate("db").state
    assert [] == here.service("db").alive()
    assert here.claim("db") is None


def test_old_credential_must_live_before_the_new_one_ends(make: Callable[..., World]) -> None:
    """Where the target takes neither, none is ended, and somebody is called."""
    here = make("db")
    here.rotate("db")
    service = here.service("db")
    first = service.alive()
    service.trouble("trusted", "nobody")
    outcome = here.rotate("db")
    assert ("rolling back", True) == (outcome.state, outcome.alarm)
    assert 2 == len(service.alive())
    service.mend("trusted")
    assert "rolled back" == here.rotate("db").state
    assert first == service.alive()
    here.check("db")


def test_no_way_back_goes_forward(make: Callable[..., World]) -> None:
    """Where the old credential is not to be had, the new one is deployed until it is accepted."""
    here = make("db")
    here.rotate("db")
    service = here.service("db")
    service.trouble("old-lost")
    service.trouble("trusted", service.alive()[0])
    outcome = here.rotate("db")
    assert ("running", "verify", True) == (outcome.state, record_of(outcome).step, outcome.alarm)
    assert 2 == len(service.alive())
    assert service.password(here.stored("db")) == service.deployed()
    service.mend("trusted")
    outcome = here.run_due()["db"]
    assert ("finished", False) == (outcome.state, outcome.alarm)
    here.check("db")


def test_revoke_that_fails_is_an_alarm(make: Callable[..., World]) -> None:
    """From the revoke on there is no way back: it is tried again by each run, and the alarm stays until it works."""
    here = make("db")
    here.rotate("db")
    here.service("db").trouble("revoke-fails")
    for _ in range(2):
        outcome = here.rotate("db")
        assert ("running", "revoke", True) == (
            outcome.state,
            record_of(outcome).step,
            outcome.alarm,
        )
    here.service("db").mend("revoke-fails")
    assert "finished" == here.rotate("db").state
    here.check("db")


@pytest.mark.parametrize(
    ("step", "state"),
    [
        ("store", "rolled back"),
        ("verify", "rolled back"),
        ("revoke", "finished"),
        ("monitor", "finished"),
    ],
)
def test_claim_that_somebody_deletes(
    make: Callable[..., World],
    at_point: Callable[[str, Callable[[], None]], None],
    step: str,
    state: str,
) -> None:
    """Without its claim a rotation goes back as long as there is a way, and on to its end from there."""
    here = make("db")
    here.rotate("db")
    with here.engine() as engine:
        at_point(f"after {step} begin", engine.stop.set)
        list(engine.rotate(["db"]))
    # The step that had begun has ended; of this one nothing is known yet.
    here.journal._database.execute("UPDATE rotations SET step = ? WHERE state = 'running'", (step,))
    paths.delete(here.vault, f"{here.plan.staging}/db")
    assert state == here.rotate("db").state
    assert 1 == len(here.service("db").alive())
    here.check("db")


def test_claim_that_somebody_deletes_softly(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """A deleted version of a claim, which could be undeleted, is in nobody's way, and goes with the others."""
    here = make("db")
    here.rotate("db")
    with here.engine() as engine:
        at_point("after deploy begin", engine.stop.set)
        list(engine.rotate(["db"]))
    claim = f"{here.plan.staging}/db"
    here.vault.request("DELETE", paths.api_path(claim, "data"))
    assert "rolled back" == here.rotate("db").state
    with pytest.raises(InvalidPath):
        here.vault.request("GET", paths.api_path(claim, "metadata"))
    paths.write(here.vault, claim, {"rotation": "of a lost host"}, after=0)
    here.vault.request("DELETE", paths.api_path(claim, "data"))
    assert ("finished", "") == ((outcome := here.rotate("db")).state, outcome.error)
    with pytest.raises(InvalidPath):
        here.vault.request("GET", paths.api_path(claim, "metadata"))
    here.check("db")


def test_stop_is_no_failed_verification(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """A stop while a target is given time to accept a credential rolls nothing back."""
    here = make("db")
    here.rotate("db")
    path = here.directory / "rotation.toml"
    path.write_text(path.read_text().replace('settle = "0s"', 'settle = "5s"'))
    here.plan = read_plan(path)
    service = here.service("db")
    service.trouble("trusted", service.alive()[0])

    def stop() -> None:
        engine.stop.set()
        threading.Timer(0.3, service.mend, ["trusted"]).start()

    with here.engine() as engine:
        at_point("after verify begin", stop)
        (outcome,) = engine.rotate(["db"])
    assert ("running", "adopt") == (outcome.state, record_of(outcome).step)


def test_stop_before_it_begins(make: Callable[..., World]) -> None:
    """What was still in line when a run was stopped is not begun."""
    names = [f"db{number}" for number in range(20)]
    here = make(*names, common="parallel = 2")
    with here.engine() as engine:
        engine.stop.set()
        assert [] == list(engine.rotate(names))
    assert {} == here.journal.records()


def test_undead_credential_is_an_alarm(make: Callable[..., World]) -> None:
    """An old credential that is accepted after its revoke keeps the rotation open."""
    here = make("db")
    here.rotate("db")
    here.service("db").trouble("undead")
    outcome = here.rotate("db")
    assert ("monitoring", True) == (outcome.state, outcome.alarm)
    assert "still accepted" in record_of(outcome).alarm
    here.service("db").mend("undead")
    outcome = here.rotate("db")
    assert ("finished", False) == (outcome.state, outcome.alarm)


def test_monitoring_takes_its_time(make: Callable[..., World]) -> None:
    """After the revoke both credentials are looked at for a while, by one run after the other."""
    here = make("db")
    here.rotate("db")
    path = here.directory / "rotation.toml"
    text = path.read_text().replace('monitor = "0s"', 'monitor = "1h"')
    path.write_text(text.replace('deadline = "5s"', 'deadline = "1s"'))
    here.plan = read_plan(path)
    assert "monitoring" == here.rotate("db").state
    here.service("db").trouble("down")
    outcome = here.rotate("db")
    assert ("monitoring", True) == (outcome.state, bool(outcome.error))
    here.service("db").mend("down")
    here.later = timedelta(hours=2)
    assert "finished" == here.rotate("db").state


def test_rollback_by_command(make: Callable[..., World]) -> None:
    """While the old credential lives a rotation can be rolled back; then there is nothing to roll back any more."""
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    first = here.service("db").alive()
    assert "waiting" == here.rotate("db").state
    with here.engine() as engine:
        assert "rolled back" == engine.rollback("db").state
        with pytest.raises(RotationError, match="no rotation is open"):
            engine.rollback("db")
    assert first == here.service("db").alive()
    here.check("db")


def test_no_rollback_after_the_revoke(make: Callable[..., World]) -> None:
    """Once the revoke has begun it says that there is no way back."""
    here = make("db")
    here.rotate("db")
    here.service("db").trouble("revoke-fails")
    here.rotate("db")
    with here.engine() as engine, pytest.raises(RotationError, match="no way back"):
        engine.rollback("db")


def test_errors_hold_no_credential(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A text of a foreign error is not taken over: only its kind and its place."""
    here = make("db")
    here.rotate("db")

    def deploy(self: object, credential: Any, rotation: object) -> None:
        raise KeyError(credential["password"].expose())

    monkeypatch.setattr(world.AccountsTarget, "deploy", deploy)
    outcome = here.rotate("db")
    assert "KeyError at test_rotation_engine.py:" in outcome.error + record_of(outcome).error
    assert CANARY not in caplog.text
    assert CANARY not in str(here.journal.events(record_of(outcome).id))


# A clock that was wrong


def test_clock_that_was_ahead(make: Callable[..., World]) -> None:
    """What was rotated, or failed, years ahead is due again by the clock that has been put right."""
    here = make("db", "cache", more='schedule = "90d"')
    here.run_due()
    here.service("db").trouble("trusted", here.service("db").alive()[0])
    here.later = timedelta(days=4000)
    assert {"db": "rolled back", "cache": "finished"} == {
        name: each.state for name, each in here.run_due().items()
    }
    here.service("db").mend("trusted")
    here.later = timedelta()
    assert {} == here.run_due()
    here.later = timedelta(days=91)
    assert {"db", "cache"} == here.run_due().keys()


def test_clock_that_was_ahead_midway(make: Callable[..., World]) -> None:
    """Neither the grace of consumers nor the monitoring lasts for years."""
    here = make("db", more='consumers = ["recorder"]')
    path = here.directory / "rotation.toml"
    path.write_text(path.read_text().replace('monitor = "0s"', 'monitor = "5m"'))
    here.plan = read_plan(path)
    assert "finished" == here.rotate("db").state
    here.later = timedelta(days=4000)
    assert "waiting" == here.rotate("db").state
    here.later = timedelta()
    assert not here.rotate("db").alarm
    here.later = timedelta(days=2)
    assert here.rotate("db").alarm
    here.acknowledge("db", "recorder", "2")
    here.later = timedelta(days=4000)
    assert "monitoring" == here.rotate("db").state
    here.later = timedelta()
    assert "monitoring" == here.rotate("db").state
    here.later = timedelta(minutes=10)
    assert "finished" == here.rotate("db").state
    here.check("db")


# Windows and pairs


def window(now: datetime, start: timedelta, end: timedelta) -> str:
    first, last = (now + start).strftime("%H:%M"), (now + end).strftime("%H:%M")
    return f'window = {{ hours = "{first}-{last}" }}'


def test_closed_window_holds(make: Callable[..., World]) -> None:
    """Nothing begins while its window is closed, or closes too soon."""
    now = datetime.now(UTC)
    here = make("db", more=window(now, timedelta(hours=2), timedelta(hours=3)))
    outcome = here.rotate("db")
    assert "held" == outcome.state
    assert outcome.held is not None
    assert timedelta(hours=1, minutes=58) < outcome.held - now <= timedelta(hours=2)
    assert {} == here.run_due()
    here.later = timedelta(hours=2, minutes=1)
    assert "finished" == here.run_due()["db"].state


def test_window_that_closes_midway(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """A rotation that outlives its window goes on looking, and changes nothing until the next one."""
    here = make("db", more=window(datetime.now(UTC), -timedelta(hours=1), timedelta(hours=1)))
    here.rotate("db")

    def stop() -> None:
        engine.stop.set()

    with here.engine() as engine:
        at_point("after deploy end", stop)
        (outcome,) = engine.rotate(["db"])
    assert ("running", "verify") == (outcome.state, record_of(outcome).step)
    here.later = timedelta(hours=3)
    outcome = here.run_due()["db"]
    assert ("running", "revoke") == (outcome.state, record_of(outcome).step)
    assert outcome.held is not None
    assert 2 == len(here.service("db").alive())
    here.later = timedelta(days=1)
    assert "finished" == here.run_due()["db"].state
    here.check("db")


def test_rollback_heeds_no_window(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """What is deployed and not accepted goes back at once, whatever the hour."""
    here = make("db", more=window(datetime.now(UTC), -timedelta(hours=1), timedelta(hours=1)))
    here.rotate("db")
    service = here.service("db")
    first = service.alive()
    service.trouble("trusted", first[0])
    with here.engine() as engine:
        at_point("after deploy end", engine.stop.set)
        list(engine.rotate(["db"]))
    here.later = timedelta(hours=3)
    assert "rolled back" == here.run_due()["db"].state
    assert first == service.alive()


def test_members_of_a_pair_keep_their_distance(make: Callable[..., World]) -> None:
    """The second member of a pair waits for the offset after the first."""
    pair = '[pair.gateways]\nmembers = ["main", "backup"]\noffset = "12h"\n'
    here = make("main", "backup", tail=pair)
    states = {name: each.state for name, each in here.run_due().items()}
    assert ["finished", "held"] == sorted(states.values())
    (second,) = [name for name, state in states.items() if state == "held"]
    outcome = here.rotate(second)
    assert "held" == outcome.state
    assert outcome.held is not None
    assert timedelta(hours=11, minutes=59) < outcome.held - here.now() <= timedelta(hours=12)
    here.later = timedelta(hours=12, minutes=1)
    assert "finished" == here.rotate(second).state


def test_open_member_of_a_pair_holds_the_other(make: Callable[..., World]) -> None:
    """While one member's rotation is open the other's does not begin, however long that takes."""
    pair = '[pair.gateways]\nmembers = ["main", "backup"]\noffset = "1m"\n'
    here = make("main", "backup", more='consumers = ["recorder"]', tail=pair)
    here.rotate("main")
    here.later = timedelta(hours=1)
    assert "waiting" == here.rotate("main").state
    here.later = timedelta(days=30)
    assert "held" == here.rotate("backup").state


# Emergencies


def test_emergency_during_an_outage(make: Callable[..., World]) -> None:
    """A secret whose rotation was open is rotated once more, also where only a later run comes to the end of it."""
    here = make("db", more='consumers = ["recorder"]')
    service = here.service("db")
    here.rotate("db")
    assert "waiting" == here.rotate("db").state
    touched = service.alive()
    service.trouble("down")
    assert here.rotate("db", reason="compromised: host=db1").error
    assert 2 == len(service.made())
    service.mend("down")
    assert "finished" == here.run_due()["db"].state
    assert (3, 1) == (len(service.made()), len(service.alive()))
    assert not set(touched) & set(service.alive())
    assert {} == here.run_due()


def test_emergency_waits_for_nobody(make: Callable[..., World]) -> None:
    """Windows, pairs and consumers do not count: the old credential is dead at once."""
    now = datetime.now(UTC)
    pair = '[pair.gateways]\nmembers = ["main", "backup"]\noffset = "12h"\n'
    more = 'consumers = ["recorder"]\n' + window(now, timedelta(hours=2), timedelta(hours=3))
    here = make("main", "backup", more=more, tail=pair)
    for _ in range(2):
        with here.engine() as engine:
            outcomes = list(engine.rotate(["main", "backup"], reason="compromised: host=db1"))
        assert ["finished", "finished"] == [each.state for each in outcomes]
    here.check("main")
    here.check("backup")


def test_emergency_rotates_what_is_open_once_more(make: Callable[..., World]) -> None:
    """The new credential of an open rotation was there during the compromise: it goes too."""
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    waiting = record_of(here.rotate("db"))
    outcome = here.rotate("db", reason="compromised: secret=db")
    assert "finished" == outcome.state
    assert waiting.id != record_of(outcome).id
    assert [] == [each for each in here.service("db").alive() if each.startswith(waiting.id)]
    here.check("db")


def test_emergency_that_does_not_end_at_once(make: Callable[..., World]) -> None:
    """A rotation that was open in an emergency is followed by another one too where it ends in a later run."""
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    first = record_of(here.rotate("db"))
    here.service("db").trouble("revoke-fails")
    assert "running" == here.rotate("db", reason="compromised: secret=db").state
    here.service("db").mend("revoke-fails")
    with here.engine() as engine:
        assert ["db"] == engine.unfinished()
        (outcome,) = engine.run_due()
    assert ("finished", True) == (outcome.state, record_of(outcome).emergency)
    assert first.id != record_of(outcome).id
    assert [] == [each for each in here.service("db").alive() if each.startswith(first.id)]
    here.check("db")
    assert {} == here.run_due()


def test_crash_between_the_two_of_an_emergency(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """The second rotation begins with the next run where the first one had just ended."""

    def crash() -> None:
        raise KeyboardInterrupt

    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    first = record_of(here.rotate("db"))
    at_point("after clean end", crash)
    with pytest.raises(KeyboardInterrupt):
        here.rotate("db", reason="compromised: secret=db")
    assert "finished" == here.run_due()["db"].state
    assert [] == [each for each in here.service("db").alive() if each.startswith(first.id)]
    here.check("db")


def test_rollback_ends_an_emergency(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """Who goes back by command has decided otherwise: no second rotation follows."""
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    first = here.service("db").alive()
    here.rotate("db")
    with here.engine() as engine:
        at_point("after adopt emergency", engine.stop.set)
        (outcome,) = engine.rotate(["db"], reason="compromised: secret=db")
    assert "waiting" == outcome.state
    with here.engine() as engine:
        assert "rolled back" == engine.rollback("db").state
    assert first == here.service("db").alive()
    assert {} == here.run_due()


def test_failed_emergency_is_an_alarm(make: Callable[..., World]) -> None:
    """A secret that is compromised and stays in use is something to look at, until it is rotated."""
    here = make("db")
    here.rotate("db")
    service = here.service("db")
    service.trouble("trusted", service.alive()[0])

    def alarm() -> str:
        (found,) = statuses(here.plan, here.journal, Calendars(here.journal), here.now())
        return found.alarm

    assert "rolled back" == here.rotate("db", reason="compromised: secret=db").state
    assert "refused" in alarm()
    service.mend("trusted")
    assert "finished" == here.rotate("db", reason="compromised: secret=db").state
    assert "" == alarm()


def test_emergency_is_not_held(make: Callable[..., World]) -> None:
    """What waited for its window waits for it no more, and is not said to."""
    now = datetime.now(UTC)
    hours = window(now, -timedelta(hours=1), timedelta(hours=1))
    here = make("db", more=f'{hours}\nconsumers = ["recorder"]')
    here.rotate("db")
    here.rotate("db")
    here.acknowledge("db", "recorder", "2")
    here.later = timedelta(hours=3)
    assert here.rotate("db").held is not None
    here.service("db").trouble("revoke-fails")
    outcome = here.rotate("db", reason="compromised: secret=db")
    assert ("running", None) == (outcome.state, outcome.held)


# Several runners


def test_one_runner_for_a_journal(make: Callable[..., World]) -> None:
    """A second runner is refused, and one that was killed holds nothing."""
    here = make("db")
    with here.engine(), pytest.raises(BlockingIOError, match="another runner"), here.engine():
        pass
    with here.engine():
        pass


def test_two_hosts_do_not_rotate_one_secret(make: Callable[..., World]) -> None:
    """A runner with a journal of its own finds the claim of the first, and leaves everything as it is."""
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    first = record_of(here.rotate("db"))
    here.journal.close()
    here.journal = Journal(here.directory / "other.db")
    outcome = here.rotate("db")
    assert "rolled back" == outcome.state
    assert f"is at the rotation {first.id}" in outcome.error
    assert 2 == len(here.service("db").alive())
    assert here.claim("db") is not None


def test_take_over_of_a_lost_journal(make: Callable[..., World]) -> None:
    """What Vault keeps of a rotation is enough to end it, or to roll it back."""
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    for number, back in enumerate((False, True)):
        first = record_of(here.rotate("db"))
        here.journal.close()
        here.journal = Journal(here.directory / f"other-{number}.db")
        with here.engine() as engine:
            outcome = engine.take_over("db")
            assert ("waiting", first.id) == (outcome.state, record_of(outcome).id)
            with pytest.raises(RotationError, match="open rotation"):
                engine.take_over("db")
            if back:
                assert "rolled back" == engine.rollback("db").state
        if not back:
            here.acknowledge("db", "recorder", str(first.facts["version"]))
            assert "finished" == here.rotate("db").state
        here.check("db")
    with here.engine() as engine, pytest.raises(RotationError, match="nothing at"):
        engine.take_over("db")


def test_take_over_at_the_revoke(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version and age come along, also where the old credential is lost and the service tells no age."""

    def lost(*_: object) -> None:
        raise RotationError("the old credential is lost")

    live = world.Accounts.live

    def ageless(*arguments: Any) -> Live | None:
        found = live(*arguments)
        return None if found is None else Live(found.version)

    monkeypatch.setattr(world.Accounts, "old", lost)
    monkeypatch.setattr(world.Accounts, "live", ageless)
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    here.rotate("db")
    here.acknowledge("db", "recorder", "2")
    here.service("db").trouble("revoke-fails")
    assert "running" == here.rotate("db").state
    here.service("db").mend("revoke-fails")
    here.journal.close()
    here.journal = Journal(here.directory / "other.db")
    with here.engine() as engine:
        outcome = engine.take_over("db")
    assert ("finished", "2") == (outcome.state, record_of(outcome).facts["version"])
    assert {} == here.run_due()
    here.check("db")


def test_take_over_of_a_way_back(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """What was ended by a host that is lost is not deployed by the one that takes over."""
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    first = here.service("db").alive()
    here.rotate("db")
    with here.engine() as engine:
        at_point("after discard end", engine.stop.set)
        assert "rolling back" == engine.rollback("db").state
    here.journal.close()
    here.journal = Journal(here.directory / "other.db")
    with here.engine() as engine:
        outcome = engine.take_over("db")
    assert "rolled back" == outcome.state
    events = here.journal.events(record_of(outcome).id)
    assert not [each for each in events if each[1:3] == ("deploy", "end")]
    assert first == here.service("db").alive()
    here.check("db")


def test_requests_of_others(make: Callable[..., World]) -> None:
    """What other processes ask for is done by the next run of whoever has the journal."""
    here = make("db", "cache", more='consumers = ["recorder"]')
    here.run_due()
    with Journal(here.plan.state) as other:
        other.ask(journal.ROTATE, "db", "", 0.0)
        other.ask(journal.EMERGENCY, "cache", "compromised: secret=cache", 0.0)
        other.ask(journal.ROTATE, "gone", "", 0.0)
    outcomes = here.run_due()
    assert {"db": "waiting", "cache": "finished", "gone": "failed"} == {
        name: each.state for name, each in outcomes.items()
    }
    with Journal(here.plan.state) as other:
        other.ask(journal.ROLLBACK, "db", "", 0.0)
    assert "rolled back" == here.run_due()["db"].state
    assert [] == here.journal.requests(time.time())


def test_emergency_of_what_the_daemon_does_not_know(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """It is answered first: for as long as it is there every run is cut short, and what was asked is done again."""
    here = make("db")
    here.rotate("db")
    here.journal.ask(journal.ROTATE, "db", "", 0.0)
    here.journal.ask(journal.EMERGENCY, "new", "compromised: secret=new", 0.0)
    with here.engine() as engine:
        at_point("after deploy begin", engine.stop.set)
        outcomes = {each.secret: each.state for each in engine.run_due()}
    assert {"db": "running", "new": "failed"} == outcomes
    assert [journal.ROTATE] == [each.action for each in here.journal.requests(time.time())]


def test_daemon_does_an_emergency_first(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None]
) -> None:
    """What the daemon is at ends with its step, the emergency comes, and then the rest."""
    here = make("db", "cache")
    here.rotate("cache")

    def ask() -> None:
        here.journal.ask(journal.EMERGENCY, "cache", "compromised: secret=cache", 0.0)
        time.sleep(4 * REQUESTS_EVERY)

    at_point("after deploy begin", ask)
    path = here.directory / "rotation.toml"
    with Daemon(path, services=PlanServices(here.vault), metrics="127.0.0.1:0") as daemon:
        thread = threading.Thread(target=daemon.run)
        thread.start()
        try:
            wait_for(
                "both",
                lambda: "db" in here.journal.known() and here.journal.known()["db"].succeeded,
            )
        finally:
            daemon.stop()
            thread.join()
    records = here.journal.records()
    assert "compromised: secret=cache" == records["cache"].reason
    (verified,) = [
        at
        for at, step, event, _ in here.journal.events(records["db"].id)
        if (step, event) == ("verify", "begin")
    ]
    assert records["cache"].updated < verified


def test_a_request_for_later(tmp_path: Path) -> None:
    """A request is taken up at its time; one for a time that nobody could mean was left by a wrong clock."""
    with Journal(tmp_path / "journal.db") as here:
        later = here.ask(journal.EMERGENCY, "db", "opened", 1000.0)
        assert [] == here.requests(999.0)
        assert [later] == here.requests(1000.0)
        by_wrong_clock = here.ask(journal.EMERGENCY, "cache", "opened", 1000.0 + 365 * 86400)
        assert [later, by_wrong_clock] == here.requests(1000.0)


def test_daemon_outlives_any_plan(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A plan that cannot be read, for whatever reason, is reported, and what the old one says goes on."""
    here = make("db")
    path = here.directory / "rotation.toml"
    with Daemon(path, services=PlanServices(here.vault), metrics="127.0.0.1:0") as daemon:
        thread = threading.Thread(target=daemon.run)
        thread.start()
        try:
            wait_for("the first", lambda: (last := here.journal.last("db")) and not last.open)
            plan = path.read_text()
            market = 'window = { markets = ["XNYS"] }'
            path.write_text(plan.replace("[secret.db]", f"[secret.db]\n{market}"))
            monkeypatch.setitem(sys.modules, "exchange_calendars", None)
            daemon.reload()
            wait_for("the report", lambda: "the plan stays as it was" in caplog.text)
            here.journal.ask(journal.ROTATE, "db", "", 0.0)
            wait_for("the next", lambda: here.journal.known()["db"].version == "2")
        finally:
            daemon.stop()
            thread.join()
    here.check("db")


# Interruptions


@pytest.mark.parametrize("step", [step for step in STEPS if step != "adopt"])
def test_stop_at_each_step(
    make: Callable[..., World], at_point: Callable[[str, Callable[[], None]], None], step: str
) -> None:
    """A run that is stopped ends with the step that it is at, and the next one goes on."""
    here = make("db")
    here.rotate("db")
    with here.engine() as engine:
        at_point(f"after {step} begin", engine.stop.set)
        (outcome,) = engine.rotate(["db"])
    after = (*STEPS, "clean")[STEPS.index(step) + 1]
    assert ("finished" if step == "clean" else "running", after) == (
        outcome.state,
        record_of(outcome).step,
    )
    if step != "clean":
        assert "finished" == here.rotate("db").state
    here.check("db")


TROUBLES: dict[str, dict[str, Any]] = {
    "sealed": {"status": 503, "body": {"errors": ["Vault is sealed"]}},
    "error": {"status": 500, "body": {"errors": ["internal error"]}},
    "reset": {"reset": "before"},
    "lost": {"reset": "after"},
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "trouble",
    [pytest.param(name, marks=pytest.mark.slow) if name != "lost" else name for name in TROUBLES],
)
def test_vault_fails_in_the_middle(
    make: Callable[..., World],
    bao: Server,
    at_point: Callable[[str, Callable[[], None]], None],
    step: str,
    trouble: str,
) -> None:
    """A step during which Vault is away, or loses its answers, is done when it is back, and nothing twice."""
    with FaultProxy(bao.address) as proxy:
        here = make("db", more='consumers = ["recorder"]', address=proxy.address, deadline=1.0)
        here.rotate("db")

        def fail() -> None:
            proxy.fault("", times=3, **TROUBLES[trouble])

        at_point(f"after {step} begin", fail)
        outcome = here.rotate("db")
        assert "waiting" == here.rotate("db").state or "adopt" != record_of(outcome).step
        here.acknowledge("db", "recorder", "2")
        assert "finished" == here.rotate("db").state
        assert 2 == len(here.service("db").made())
        here.check("db")


@pytest.mark.parametrize(
    "step",
    [pytest.param(step, marks=pytest.mark.slow) if step != "generate" else step for step in STEPS],
)
def test_vault_is_away_for_longer(
    make: Callable[..., World],
    bao: Server,
    monkeypatch: pytest.MonkeyPatch,
    at_point: Callable[[str, Callable[[], None]], None],
    step: str,
) -> None:
    """What cannot be done by the deadline is neither rolled back nor lost: a later run ends it."""
    with FaultProxy(bao.address) as proxy:
        here = make("db", address=proxy.address, deadline=0.05)
        here.rotate("db")
        path = here.directory / "rotation.toml"
        path.write_text(path.read_text().replace('deadline = "5s"', 'deadline = "1s"'))
        here.plan = read_plan(path)
        at_point(f"after {step} begin", lambda: proxy.fault("", status=503))
        outcome = here.rotate("db")
        needs_vault = step not in ("deploy", "verify", "adopt", "monitor")
        if needs_vault:
            assert ("running", step) == (outcome.state, record_of(outcome).step)
        assert outcome.state in ("running", "finished")
        assert outcome.error
        proxy.clear()
        assert "finished" == here.rotate("db").state
        # A credential that could not be kept anywhere was ended, and another made.
        assert 2 + (step == "generate") == len(here.service("db").made())
        here.check("db")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_vault_is_sealed_in_the_middle(
    make: Callable[..., World],
    bao_tls: SingleServer,
    at_point: Callable[[str, Callable[[], None]], None],
    step: str,
) -> None:
    """The same with a server that is truly sealed for a second."""
    if "secret/" not in bao_tls.admin.sys.list_mounted_secrets_engines()["data"]:
        bao_tls.admin.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
    here = make("db", server=bao_tls)
    here.rotate("db")
    unsealed = threading.Timer(1.0, bao_tls.unseal)

    def seal() -> None:
        bao_tls.seal()
        unsealed.start()

    at_point(f"after {step} begin", seal)
    outcome = here.rotate("db")
    unsealed.join()
    assert "finished" == outcome.state
    assert 2 == len(here.service("db").made())
    here.check("db")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_vault_fails_over_in_the_middle(
    make: Callable[..., World],
    bao_cluster: Cluster,
    at_point: Callable[[str, Callable[[], None]], None],
    step: str,
) -> None:
    """The same with a cluster that loses its active node."""
    if "secret/" not in bao_cluster.admin.sys.list_mounted_secrets_engines()["data"]:
        bao_cluster.admin.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
    here = make("db", server=bao_cluster, address=bao_cluster.addresses)
    path = here.directory / "rotation.toml"
    path.write_text(path.read_text().replace('deadline = "5s"', 'deadline = "60s"'))
    here.plan = read_plan(path)
    here.rotate("db")
    at_point(f"after {step} begin", lambda: bao_cluster.active().kill())
    outcome = here.rotate("db")
    assert "finished" == outcome.state
    assert 2 == len(here.service("db").made())
    here.check("db")


def test_broken_journal_stops_everything(make: Callable[..., World]) -> None:
    """Where the journal cannot be written to any more nothing goes on, and nothing is lost."""
    here = make("db")
    here.rotate("db")
    pages = here.journal._database.execute("PRAGMA page_count").fetchone()[0]
    here.journal._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="journal cannot be used"):
        here.journal.ask(journal.ROTATE, "db", "x" * 10_000, 0.0)

    def rotate_often() -> None:
        for _ in range(100):
            here.rotate("db")

    with pytest.raises(OSError, match="journal cannot be used"):
        rotate_often()
    here.journal.close()
    here.journal = Journal(here.plan.state)
    for request in here.journal.requests(time.time()):
        here.journal.answer(request)
    assert "finished" == here.rotate("db").state
    here.check("db")


def test_secret_that_left_the_plan(make: Callable[..., World]) -> None:
    """An open rotation of what the plan lost is not forgotten."""
    here = make("db", "cache", more='consumers = ["recorder"]')
    here.run_due()
    here.rotate("db")
    path = here.directory / "rotation.toml"
    path.write_text(path.read_text().replace("secret.db", "secret.db2"))
    here.plan = read_plan(path)
    outcome = here.run_due()["db"]
    assert outcome.alarm
    assert "not in the plan any more" in outcome.error


def test_unknown_secret(make: Callable[..., World]) -> None:
    """A name that the plan has not is a ValueError."""
    here = make("db")
    with here.engine() as engine, pytest.raises(ValueError, match="no secret 'dv'"):
        list(engine.rotate(["dv"]))


# Secrets stay secret


def test_canary_is_nowhere(make: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    """No password is in the journal, its log, in logs or in what a run returns."""
    caplog.set_level(logging.DEBUG)
    here = make("db", more='consumers = ["recorder"]')
    here.rotate("db")
    here.service("db").trouble("trusted", here.service("db").alive()[0])
    outcomes = [here.rotate("db")]
    here.service("db").mend("trusted")
    outcomes.append(here.rotate("db"))
    files = list(here.directory.glob("rotation.db*"))
    assert {"rotation.db", "rotation.db-wal", "rotation.db-shm", "rotation.db.lock"} == {
        each.name for each in files
    }
    assert [] == [each.name for each in files if CANARY.encode() in each.read_bytes()]
    assert [] == [each.name for each in files if stat.S_IMODE(each.stat().st_mode) != 0o600]
    assert CANARY not in caplog.text
    assert CANARY not in repr(outcomes)


# Audit


@pytest.fixture
def audit_log(tmp_path: Path, keyring: LocalKeyring) -> Iterator[Path]:
    """An audit log of this process."""
    path = tmp_path / "audit.log"
    create_log(path, keyring=keyring)
    with AuditLog(path, keyring=keyring) as log:
        audit.start(log)
        yield path
        audit.stop()


def test_audit_of_each_step(make: Callable[..., World], audit_log: Path) -> None:
    """The audit log has each step of a rotation and how it ended, an alarm too, and no password."""
    here = make("db", more='consumers = ["recorder"]\ngrace = "0s"')
    here.rotate("db")
    record = record_of(here.rotate("db"))
    here.acknowledge("db", "recorder", "2")
    here.rotate("db")
    entries = [json.loads(line) for line in audit_log.read_text().splitlines()]
    found = [
        each["action"].removeprefix("rotation.")
        for each in entries
        if each.get("details", {}).get("rotation") == record.id
    ]
    assert [*STEPS[:5], "alarm", *STEPS[5:]] == found
    assert ["rotation.acknowledge"] == [
        each["action"] for each in entries if each.get("details", {}).get("consumer") == "recorder"
    ]
    assert CANARY not in audit_log.read_text()


class BrokenLog:
    """An audit log that cannot take the entries of a step, so many times."""

    def __init__(self, action: str, times: int) -> None:
        self.action = action
        self.left = times

    def check(self) -> None:
        """Say nothing."""

    def append(self, entry: audit.operation) -> None:
        """Take an entry, or not."""
        if entry.action == self.action and self.left:
            self.left -= 1
            raise AuditError("the disk is full")


@pytest.mark.parametrize("step", ["generate", "store", "deploy", "revoke"])
def test_step_without_an_entry_is_done_again(make: Callable[..., World], step: str) -> None:
    """Where the audit log has no room, a rotation is not rolled back: the step is done, and recorded, later."""
    here = make("db")
    here.rotate("db")
    audit.start(BrokenLog(f"rotation.{step}", 2))
    try:
        assert "finished" == here.rotate("db").state
    finally:
        audit.stop()
    assert 2 == len(here.service("db").made())
    here.check("db")


# Crashes


def crashes(server: Server, directory: Path, scenario: str, stride: int) -> list[dict[str, Any]]:
    done = subprocess.run(
        [
            *(sys.executable, TESTS / "rotation_crash.py", server.address, server.token),
            *(directory, scenario, str(stride)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_crashes(found: list[dict[str, Any]], scenario: str) -> None:
    for each in found:
        # One account is alive, and it is the stored and the deployed one; nothing is left in Vault.
        assert [each["stored"]] == each["alive"], each
        assert [True] == each["is_deployed"], each
        assert not each["claim"], each
        ends = {"failure": {"rolled back"}, "rollback": {"rolled back", "finished"}}
        assert each["state"] in ends.get(scenario, {"finished"}) | (
            {"finished"} if each["point"] == "before begin" else set()
        ), each
        assert "" == each["alarm"], each
        # Two accounts only where nobody ever had the first, and that one is dead.
        assert each["made"].count(each["rotation"]) <= 1 + (each["point"] == "generated"), each
        if each["state"] == "rolled back":
            assert each["first"] == each["alive"], each


def test_crash_at_some_points(bao: Server, tmp_path: Path) -> None:
    """`kill -9` at every sixth point: the next run ends the rotation; nothing is lost, left alive or made twice."""
    found = crashes(bao, tmp_path, "plain", 6)
    check_crashes(found, "plain")
    assert len(found) >= 7


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["plain", "consumer", "failure", "rollback"])
def test_crash_at_every_point(bao: Server, tmp_path: Path, scenario: str) -> None:
    """`kill -9` before and after every step, and between a new credential and its claim, forwards and back."""
    found = crashes(bao, tmp_path, scenario, 1)
    check_crashes(found, scenario)
    points = {each["point"] for each in found}
    steps = [
        "claim",
        "generate",
        "store",
        "deploy",
        "verify",
        "adopt",
        "revoke",
        "monitor",
        "clean",
    ]
    if scenario == "failure":
        steps = ["claim", "generate", "store", "deploy", "restore", "recheck", "discard", "clean"]
    wanted = {
        f"{when} {step} {event}"
        for step in steps
        for when in ("before", "after")
        for event in ("begin", "end")
    }
    assert set() == {*wanted, "generated"} - points
