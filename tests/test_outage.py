"""A whole outage: a recorder appends all the time while Vault and KMS go away, one after the other and together."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tapeseal
from format_reader import Reader
from support import TICK, ticks
from tapeseal.errors import KeyUnavailableError, ReserveExhaustedError
from tapeseal.fleet import rewrap_fleet
from tapeseal.reserve import DataKeyReserve
from test_reserve import CONTEXT, Clock, full, recorder, transit_ring, until

BATCH = 10
MAX_AGE = 1400
OUTAGE = 600
THROTTLED = {"__type": "ThrottlingException", "message": "Rate exceeded"}


class Appending(threading.Thread):
    """Appends numbered records all the time; what is refused is kept and tried again, as a feed handler would."""

    def __init__(self, tapes: tapeseal.Recorder) -> None:
        super().__init__()
        self.tapes = tapes
        self.done = 0
        self.errors: list[KeyUnavailableError] = []
        self.failure: BaseException | None = None
        self._stop_it = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_it.wait(0.001):
                try:
                    self.tapes.append(ticks(self.done, self.done + BATCH))
                    self.done += BATCH
                except KeyUnavailableError as error:
                    self.errors.append(error)
        except BaseException as error:
            self.failure = error

    def go_on(self) -> None:
        """Wait until more was appended, in a new tape."""
        done, path = self.done, self.tapes.path
        until(lambda: self.failure or (self.done > done and self.tapes.path != path))
        assert self.failure is None

    def __enter__(self) -> "Appending":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_it.set()
        self.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's reserve; the services and their clients have the real one."""
    made = Clock()
    monkeypatch.setattr(DataKeyReserve, "clock", made)
    return made


@pytest.fixture
def kms_proxy(kms: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A proxy before KMS, and the variables of a user who may do everything."""
    from servers.fault_proxy import FaultProxy

    for name, value in kms.admin_user.items():
        monkeypatch.setenv(name, value)
    with FaultProxy(kms.address) as proxy:
        yield proxy


@pytest.fixture
def nodes(bao_cluster: Any) -> Iterator[Any]:
    """The cluster; what is sealed after the test is ended, for only a new start unseals it."""
    yield bao_cluster
    restart(bao_cluster)


def seal(cluster: Any) -> None:
    """Seal every node. One that stands by refuses while another one leads; the last one leads nobody."""
    for _ in cluster.nodes[1:]:
        node = cluster.active()
        node.admin.sys.seal()
        node.wait_for_status(503)
    [last] = [node for node in cluster.nodes if node.status() != 503]
    last.admin.sys.seal()
    last.wait_for_status(503)


def restart(cluster: Any) -> None:
    """End what is sealed and start what is ended, and wait until all three vote."""
    for node in cluster.nodes:
        if node.status() == 503:
            node.kill()
    cluster.heal()


def read_independently(path: str, keys: dict[str, bytes]) -> bytes:
    """Return the records of a sealed tape, by the reader that shares no code with the package."""
    found = Reader(Path(path).read_bytes()).read(keys, CONTEXT)
    assert ("sealed", 0, []) == (found.outcome, found.torn, found.rotten)
    return found.plain


def key_of(key_file: str) -> dict[str, bytes]:
    """Return the key of a key file by its id, as docs/key-file.md has it."""
    line = Path(key_file).read_text().splitlines()[-1].split()
    return {line[1]: bytes.fromhex(line[3].removeprefix("secret="))}


@pytest.mark.server
@pytest.mark.slow
def test_nothing_is_lost(
    tmp_path: Path,
    kms: Any,
    kms_proxy: Any,
    nodes: Any,
    clock: Clock,
    keyring: Any,
    key_file: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The active node dies, Vault is sealed, KMS throttles, both go away: no record is lost, and all comes back."""
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring

    caplog.set_level(logging.INFO, "tapeseal.reserve")
    kms_ring = AwsKmsKeyring(
        kms.make_key(), endpoint_url=kms_proxy.address, max_attempts=1, read_timeout=30
    )
    active = nodes.active()
    addresses = sorted(nodes.addresses, key=active.address.__ne__)
    folder = tmp_path / "tapes"

    def advance(seconds: int) -> None:
        """Let time pass, but none while a service is asked: such calls would take minutes of this clock."""
        for _ in range(seconds):
            clock.advance(keys, 1)
            until(lambda: not keys._is_due(clock.now))

    def one_away() -> None:
        """Let all keys be replaced while one service, or one node, is away, and tapes be made under them."""
        before = keys.stats()
        advance(MAX_AGE // 2)
        until(lambda: full(keys))
        after = keys.stats()
        assert after["generated"] >= before["generated"] + 3
        assert after["generate_failures"] == before["generate_failures"]
        appending.go_on()
        assert [] == appending.errors

    with (
        transit_ring(active, addresses, 1.0) as vault_ring,
        DataKeyReserve(
            both := tapeseal.AnyOf([kms_ring, vault_ring], minimum=1),
            CONTEXT,
            max_age_seconds=MAX_AGE,
        ) as keys,
    ):
        until(lambda: full(keys))
        with (
            recorder(folder / "a.tape", keys, roll_size=1 << 16) as tapes,
            Appending(tapes) as appending,
        ):
            one_away()  # Undisturbed, for comparison.

            active.kill()
            one_away()
            restart(nodes)

            seal(nodes)
            one_away()
            restart(nodes)

            kms_proxy.fault("", status=400, body=THROTTLED)
            one_away()
            assert kms_proxy.seen
            kms_proxy.clear()
            one_away()

            kms_proxy.refuse()
            for node in nodes.nodes:
                node.kill()
            budget = keys.outage_budget.seconds
            assert OUTAGE <= budget
            gone_at = clock.now
            advance(OUTAGE)
            appending.go_on()
            assert [] == appending.errors
            assert keys.stats()["generate_failures"] > OUTAGE / 60

            while keys.outage_budget.seconds:
                assert [] == appending.errors
                advance(1)
            assert budget <= clock.now - gone_at < budget + 1
            until(lambda: appending.errors)
            done = appending.done
            advance(60)
            assert done == appending.done
            assert {ReserveExhaustedError} == set(map(type, appending.errors))
            assert "it is asked again and again" in str(appending.errors[-1])

            kms_proxy.accept()
            restart(nodes)
            clock.advance(keys, 30)
            until(lambda: full(keys))
            until(lambda: appending.done > done)
            appending.errors.clear()
            one_away()
        levels = [each.levelname for each in caplog.records if each.name == "tapeseal.reserve"]
        assert ["WARNING", "ERROR", "INFO"] == list(dict.fromkeys(levels))

        paths = sorted(map(str, folder.iterdir()))
        lacking = [
            {each.provider for each in tapeseal.inspect(path).recipients if each.wrapped is None}
            for path in paths
        ]
        assert {(), ("aws-kms",), ("vault-transit",)} == set(map(tuple, lacking))
        completed = list(rewrap_fleet(paths, keyring=both, complete=True))
        assert {"rewrapped", "skipped"} == {each.state for each in completed}
        assert sum(map(bool, lacking)) == sum(each.state == "rewrapped" for each in completed)
        for ring in (kms_ring, vault_ring):
            parts = []
            for path in paths:
                with tapeseal.open(path, keyring=ring, expect=CONTEXT) as tape:
                    parts += [tape[:]] * (len(tape) > 0)
            parts.sort(key=lambda part: part["number"][0])
            assert ticks(0, appending.done).tobytes() == b"".join(map(bytes, parts))
        moved = list(rewrap_fleet(paths, keyring=vault_ring, to=keyring))
    assert {"rewrapped"} == {each.state for each in moved}
    plain = [read_independently(path, key_of(key_file)) for path in paths]
    plain.sort(key=lambda part: int.from_bytes(part[:8], "little"))
    assert ticks(0, appending.done).tobytes() == b"".join(plain)
    assert appending.done * TICK.itemsize == sum(map(len, plain))
