"""Every kind of secret, rotated by the engine with the policies of docs/rotation-kinds.md."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kind_scenarios import SCENARIOS, NthFault, Scenario, make
from servers.bao import SingleServer, wait_for
from servers.fault_proxy import FaultProxy
from support import TESTS
from tapeseal.rotation import acknowledge, journal
from tapeseal.rotation.engine import STEPS
from tapeseal.rotation.journal import OPEN_STATES
from tapeseal.rotation.kinds import make_kind
from tapeseal.rotation.plan import read_plan
from tapeseal.rotation.services import PlanServices
from tapeseal.vault import Token, VaultSession
from test_checks import memory_of

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


def scenarios(names: Iterable[str] = SCENARIOS, *, fast: Iterable[str] = ()) -> Any:
    """Run a test with these scenarios; those that are not `fast` are slow."""
    fast = list(fast)
    marked = [
        pytest.param(each, marks=[] if each in fast else [pytest.mark.slow]) for each in names
    ]
    return pytest.mark.parametrize("scenario", marked, indirect=True)


every = pytest.mark.parametrize("scenario", list(SCENARIOS), indirect=True)


@scenarios(
    fast=SCENARIOS.keys()
    - {"api-key-exec", "ssh-key-authorized", "kms-key-material", "kms-key", "database-static-role"}
)
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


# Services that fail

FAULTS: dict[str, dict[str, Any]] = {
    "lost": {"reset": "after"},
    "broken": {"status": 500, "body": {"errors": ["internal error"]}},
    "sealed": {"status": 503, "body": {"errors": ["Vault is sealed"]}, "seconds": 0.7},
    "cut": {"truncate": 20},
}


@pytest.mark.slow
@every
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_at_every_request(scenario: Scenario, fault: str) -> None:
    """Whichever request to Vault, or to KMS, fails, and however: the rotation ends, and nothing is made twice."""
    scenario.write_plan(consumers=None)
    with NthFault(scenario.server.address) as vault:
        proxy = getattr(scenario, "proxy", vault)
        number = 0
        while True:
            number += 1
            scenario.again(consumers=None)
            old, made = scenario.current(), scenario.made()
            proxy.arm(number, **FAULTS[fault])
            outcome = scenario.rotate(vault.address)
            where = f"{number}: {proxy.seen[number - 1 : number]}: {outcome.error}"
            assert "finished" == outcome.state, where
            is_new = scenario.name_of(old) != scenario.name_of(scenario.current())
            scenario.check(old=old if is_new else None)
            assert scenario.made() <= made + 1, where
            for pattern, times in scenario.once.items():
                assert times == sum(bool(re.search(pattern, line)) for line in proxy.reached), where
            if len(proxy.seen) < number:
                break
    print(number - 1, "requests")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["api-key-http", "api-key-exec"], indirect=True)
@pytest.mark.parametrize("how", ["before", "after", 503])
def test_fault_of_the_exchange(scenario: Any, how: str | int) -> None:
    """Whichever request to the exchange fails, one key is alive in the end, and it is the one in KV."""
    scenario.write_plan(consumers=None)
    for pattern in ("GET /keys", "POST /keys", "DELETE /keys", "GET /orders"):
        old = scenario.current()
        scenario.exchange.fail(pattern, how)
        assert "finished" == scenario.rotate().state, pattern
        scenario.check(old=old)


# Verification


@scenarios([name for name, each in SCENARIOS.items() if each.goes_back], fast=["api-key-http"])
def test_failed_verification(scenario: Scenario) -> None:
    """A new credential that is not taken goes, and the old one is the current one again."""
    before = scenario.current()
    scenario.trust_only(before)
    outcome = scenario.rotate()
    assert "rolled back" == outcome.state, outcome.error
    assert "ended with code 1" in outcome.error
    scenario.check()
    assert scenario.name_of(before) == scenario.name_of(scenario.current())
    new = (scenario.directory / "tried").read_text().splitlines()[0]
    if new:
        assert not scenario.accepts(json.loads(new))


@scenarios(
    [name for name, each in SCENARIOS.items() if each.goes_back and each.stored],
    fast=["api-key-random"],
)
def test_rotation_after_a_rollback(scenario: Scenario) -> None:
    """The old credential, which a rollback has put back as a version of its own, ends in both of its versions."""
    before = scenario.current()
    scenario.trust_only(before)
    assert "rolled back" == scenario.rotate().state
    scenario.verify.pop(0)
    scenario.write_plan(consumers=None)
    outcome = scenario.rotate()
    assert ("finished", "") == (outcome.state, outcome.error)
    scenario.check(old=before)


@pytest.mark.parametrize("scenario", ["transit-key"], indirect=True)
def test_failed_verification_of_transit(scenario: Scenario) -> None:
    """A version of a Transit key cannot be taken back: both open what they made, and the next rotation goes on."""
    before = scenario.current()
    scenario.trust_only(before)
    assert "rolled back" == scenario.rotate().state
    assert {"v1", "v2"} == scenario.alive()
    assert scenario.accepts(before)
    assert "finished" == scenario.rotate().state
    scenario.check(old=before)


@scenarios(["database-static-role"])
def test_static_role_goes_forward(scenario: Scenario) -> None:
    """Where the old password is dead there is no way back: it stays an alarm until the target takes the new one."""
    old = scenario.current()
    scenario.trust_only(old)
    outcome = scenario.rotate()
    assert outcome.record is not None
    assert "running" == outcome.state
    assert "ended with code 1" in outcome.record.alarm
    scenario.verify.pop(0)
    scenario.write_plan(consumers=None)
    assert "finished" == scenario.finish()
    scenario.check(old=old)


@pytest.mark.parametrize("scenario", ["api-key-http"], indirect=True)
def test_path_that_changes_midway(scenario: Scenario) -> None:
    """Where the plan names another secret now, nothing of that is ended in the place of the old one."""
    scenario.token = scenario.server.token
    old = scenario.current()
    other = f"{scenario.prefix}/other"
    key_id, key = scenario.exchange.issue("of somebody else")
    scenario.admin.adapter.post(
        f"/v1/secret/data/{other}", json={"data": {"key": key, "id": key_id}}
    )
    assert "waiting" == scenario.rotate().state
    path, scenario.options["path"] = scenario.options["path"], f"secret/{other}"
    scenario.write_plan(consumers=None)
    outcome = scenario.rotate()
    assert "waiting" == outcome.state
    assert "another path now: put that back" in outcome.error
    with scenario.engine() as engine:
        assert "another path" in engine.rollback("desk").error
    assert scenario.exchange.accepts(key)
    assert not (scenario.admin.adapter.get(f"/v1/secret/data/{other}"))["data"]["metadata"][
        "destroyed"
    ]
    scenario.options["path"] = path
    scenario.write_plan(consumers=None)
    assert "rolled back" == scenario.finish()
    assert scenario.accepts(old)


@scenarios(["database-static-role"], fast=["database-static-role"])
def test_consumer_that_is_faster_than_the_claim(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password is there before the claim has it: who goes over to it at once need not say so again after a crash."""

    def crash(point: str) -> None:
        if point == "generated":
            raise KeyboardInterrupt

    monkeypatch.setattr(journal, "crash_hook", crash)
    with pytest.raises(KeyboardInterrupt):
        scenario.rotate()
    monkeypatch.undo()
    role = f"{scenario.mount.name}/static-roles/{scenario.usernames[0]}"
    version = scenario.admin.adapter.get(f"/v1/{role}")["data"]["last_vault_rotation"]
    with VaultSession(scenario.server.address, login=Token(scenario.consumer_token)) as vault:
        consumers = read_plan(scenario.plan_path).consumers
        acknowledge(vault, "desk", "recorder", version, path=consumers)
    assert "finished" == scenario.rotate().state
    scenario.check()


# What a dry run says


@scenarios(fast=["api-key-http", "transit-key"])
def test_dry_run_names_every_call(scenario: Scenario) -> None:
    """The calls that a dry run names are those that Vault, the exchange and KMS see, in their order."""
    scenario.write_plan(consumers=None)
    if scenario.kind == "tape-recipients":
        # Its first version in KV is not what a scenario begins with.
        scenario.rotate()
        scenario.again(consumers=None)
    secret = read_plan(scenario.plan_path).secrets["desk"]
    with FaultProxy(scenario.server.address) as proxy:
        session = VaultSession(proxy.address, login=Token(scenario.token))
        with session, PlanServices(session) as services:
            make_kind(secret.kind).live(secret, services)
        # It is asked once more at the end, for what is in use then.
        live = len(vault_calls(proxy.seen))
        proxy.clear()
        scenario.begin_observing()
        assert "finished" == scenario.rotate(proxy.address).state
        seen = vault_calls(proxy.seen)
    calls = make_kind(secret.kind).calls(secret)
    named = [
        each for each in calls if re.match(r"(GET|LIST|POST|PUT|PATCH|DELETE) (?!https?:)", each)
    ]
    assert [*named, *named[:live]] == as_named(seen, [*named, *named[:live]])
    for others in scenario.observed():
        wanted = [each for each in calls if re.match(others.pattern, each)]
        assert wanted == as_named(others.seen, wanted)


def vault_calls(seen: list[str]) -> list[str]:
    """Return the requests to Vault that are a kind's: neither the session's, nor about claims."""
    lines = [line.replace(" /v1/", " ", 1) for line in seen]
    others = (
        "/claims/|token/lookup-self|/datakey/|/(en|de)crypt/"  # the last ones those of a rewrap
    )
    return [line for line in lines if not re.search(others, line)]


def as_named(seen: list[str], named: list[str]) -> list[str]:
    """Return requests as a dry run names them, as far as they fit: … stands for what only the server knows."""
    found = list(seen)
    for at, (line, name) in enumerate(zip(seen, named, strict=False)):
        if re.fullmatch(re.escape(name).replace("…", ".+"), line):
            found[at] = name
    return found


# No secret anywhere

ROTATE = """
import sys
sys.path.insert(0, sys.argv[1])
from tapeseal.rotation.engine import Engine
from tapeseal.rotation.journal import Journal
from tapeseal.rotation.plan import read_plan
from tapeseal.rotation.services import PlanServices
from tapeseal.vault import Token, VaultSession

plan = read_plan(sys.argv[4])
with (
    VaultSession(sys.argv[2], login=Token(sys.argv[3])) as vault,
    Journal(plan.state) as journal,
    PlanServices(vault) as services,
    Engine(plan, journal, services) as engine,
):
    (outcome,) = engine.rotate(["desk"])
print(outcome.state, flush=True)
sys.stdin.read()
"""


@scenarios([name for name, each in SCENARIOS.items() if each.secrets], fast=["service-account"])
def test_no_secret_is_left(scenario: Scenario, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the memory of the process that rotated, nor its output, journal and files hold an old or new secret."""
    scenario.write_plan(consumers=None)
    credentials = [scenario.current()]
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            ROTATE,
            TESTS,
            scenario.server.address,
            scenario.token,
            scenario.plan_path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert b"finished\n" == process.stdout.readline()
            memory = memory_of(process.pid)
            process.kill()
            said = process.stderr.read()
        finally:
            process.kill()
    credentials.append(scenario.current())
    texts = [each[name] for each in credentials for name in scenario.secrets]
    texts += scenario.admin_secrets()
    # Of a private key a line in its middle, which no other key has.
    canaries = [text.splitlines()[len(text.splitlines()) // 2].encode() for text in texts]
    assert [] == [canary for canary in canaries if memory.find(canary) >= 0]
    files = [path for path in scenario.directory.rglob("*") if path.is_file()]
    assert scenario.directory / "rotation.db" in files
    assert [] == [
        (path.name, canary)
        for path in files
        if path.name not in ("admin.json", "gate-client.pem")
        for canary in canaries
        if canary in path.read_bytes()
    ]
    assert not any(canary in said for canary in canaries)


# Failing over, and sealed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["api-key-http", "database-users"])
def test_failover_in_each_step(
    name: str, bao_cluster: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whenever the active node of a cluster is killed, the rotation ends on the next one."""
    servers = {}
    if name.startswith("database"):
        servers["postgres"] = request.getfixturevalue("postgres")
    server = ClusterAsServer(bao_cluster)
    mount_kv(server)
    with make(name, tmp_path, server, **servers) as scenario:
        scenario.write_plan(consumers=None)
        for step in STEPS:
            # A standby may lag, and one that comes back serves for a moment what was there when it went.
            wait_for(
                "all nodes to agree", lambda: scenario.is_the_same_everywhere(bao_cluster.nodes)
            )
            old = scenario.current()
            with at_point(f"after {step} begin", lambda: bao_cluster.active().kill()) as reached:
                outcome = scenario.rotate()
            bao_cluster.heal()
            assert [1] == reached, step
            assert "finished" == (
                outcome.state if outcome.state == "finished" else scenario.finish()
            )
            scenario.check(old=old)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["api-key-http", "service-account"])
def test_sealed_in_each_step(name: str, bao_tls: SingleServer, tmp_path: Path) -> None:
    """Whenever the server is sealed, the rotation goes on when it is unsealed, in the same run or the next."""
    mount_kv(bao_tls)
    with make(name, tmp_path, bao_tls) as scenario:
        scenario.write_plan(consumers=None, deadline="3s")
        for step in STEPS:
            old = scenario.current()
            with at_point(f"after {step} begin", bao_tls.seal) as reached:
                if step in ("generate", "revoke"):
                    # Longer than the run goes on.
                    assert scenario.rotate().state in OPEN_STATES
                    bao_tls.unseal()
                else:
                    timer = threading.Timer(1, bao_tls.unseal)
                    timer.start()
                    scenario.rotate()
                    timer.join()
            assert [1] == reached, step
            assert "finished" == scenario.finish()
            scenario.check(old=old)


def mount_kv(server: Any) -> None:
    """Mount a KV store, where there is none yet; in dev mode there is."""
    if "secret/" not in server.admin.sys.list_mounted_secrets_engines()["data"]:
        server.admin.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})


class ClusterAsServer:
    """A cluster, as scenarios want a server."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address = cluster.addresses
        self.ca_file = cluster.ca_file
        self.token = cluster.token

    @property
    def admin(self) -> Any:
        """A client of the active node."""
        return self._cluster.admin

    def policy(self, name: str, rules: str) -> str:
        """Write a policy and return its name."""
        return str(self._cluster.active().policy(name, rules))

    def make_token(self, *policies: str) -> str:
        """Create a token with these policies."""
        return str(self._cluster.active().make_token(*policies))


@contextmanager
def at_point(point: str, work: Callable[[], None]) -> Iterator[list[int]]:
    """Do something when a rotation of this process comes to a point, once."""
    reached: list[int] = []

    def hook(name: str) -> None:
        if name == point and not reached:
            reached.append(1)
            work()

    journal.crash_hook = hook
    try:
        yield reached
    finally:
        journal.crash_hook = None
