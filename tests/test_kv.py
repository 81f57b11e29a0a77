"""KV version 2: what is written is read, versions and conflicts are told apart, nothing is lost or shown on the way."""

import base64
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from support import child, leaks
from tapeseal.errors import (
    AccessDeniedError,
    OutcomeUnknownError,
    SecretDeletedError,
    SecretNotFoundError,
    ServiceUnavailableError,
    VaultRefusedError,
    VersionConflictError,
)
from tapeseal.secret import Secret

pytest.importorskip("hvac")

from servers.fault_proxy import FaultProxy
from tapeseal.vault import Token, VaultSession
from tapeseal.vault.kv import KeyValue, SecretCache

if TYPE_CHECKING:
    from servers.bao import Cluster, Server

pytestmark = pytest.mark.server

CANARY = "canary-of-kv-9c41e7"


def secret(text: str) -> Secret:
    """Return a secret of a text."""
    return Secret.take(bytearray(text.encode()))


@pytest.fixture
def path() -> str:
    """A path that no other test has."""
    return f"desk-{os.urandom(6).hex()}/exchange"


@pytest.fixture
def session(bao: "Server") -> Iterator[VaultSession]:
    """A session with the server's root token."""
    with VaultSession(bao.address, login=Token(bao.token), deadline=20) as session:
        yield session


@pytest.fixture
def store(session: VaultSession) -> KeyValue:
    """The mount that every server in dev mode has."""
    return KeyValue(session)


@pytest.fixture
def proxy(bao: "Server") -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with FaultProxy(bao.address) as proxy:
        yield proxy


@pytest.fixture
def shaky(bao: "Server", proxy: FaultProxy) -> Iterator[KeyValue]:
    """The mount through the proxy, with a short deadline."""
    with VaultSession(proxy.address, login=Token(bao.token), timeout=1, deadline=10) as session:
        yield KeyValue(session)


def shown(store: KeyValue, path: str, version: int | None = None) -> dict[str, str | None]:
    """Return the members of a secret."""
    with store.read(path, version) as found:
        return {name: each and each.expose() for name, each in found.items()}


@pytest.mark.parametrize(
    "text", ["x", 'pass"word\\', "two\nlines\t\x00\x1f", "€ é 😀 </script>&", "y" * 200_000]
)
def test_any_text_comes_back(store: KeyValue, path: str, text: str) -> None:
    """What was written is read, to the byte."""
    with secret(text) as value:
        assert 1 == store.write(path, {"key": value, "user": "u"})
    assert {"key": text, "user": "u"} == shown(store, path)


def test_values_of_others(store: KeyValue, bao: "Server", path: str) -> None:
    """What others wrote as numbers, lists or nothing is there as JSON has it, or None."""
    data = {"port": 5432, "on": True, "hosts": ["a", {"b": None}], "none": None, "empty": ""}
    bao.admin.secrets.kv.v2.create_or_update_secret(path, data)
    expected = {
        "port": "5432",
        "on": "true",
        "hosts": '["a",{"b":null}]',
        "none": None,
        "empty": None,
    }
    assert expected == shown(store, path)


def test_versions(store: KeyValue, path: str) -> None:
    """Each write makes a version, and all of them can be read; a member that is not there is named."""
    assert [1, 2, 3] == [store.write(path, {"key": f"k{number}"}) for number in (1, 2, 3)]
    assert {"key": "k3"} == shown(store, path)
    assert {"key": "k1"} == shown(store, path, 1)
    with store.read(path) as found:
        assert (3, f"secret/{path}") == (found.version, found.path)
        assert "other" not in found
        with pytest.raises(SecretNotFoundError, match="no member 'other'; it has key"):
            found["other"]
    for number in (0, -1):
        with pytest.raises(ValueError, match="count from 1"):
            store.read(path, number)


def test_missing_deleted_destroyed(store: KeyValue, path: str) -> None:
    """What never was, what was deleted and what was destroyed are three different answers."""
    with pytest.raises(SecretNotFoundError, match=f"there is no secret secret/{path}$") as caught:
        store.read(path)
    assert not isinstance(caught.value, SecretDeletedError)
    store.write(path, {"key": "1"})
    store.write(path, {"key": "2"})
    with pytest.raises(SecretNotFoundError, match="of version 9"):
        store.read(path, 9)
    store.delete(path)
    with pytest.raises(SecretDeletedError, match=r"version 2 of .* was deleted") as gone:
        store.read(path)
    assert 2 == gone.value.version
    store.undelete(path, [2])
    assert {"key": "2"} == shown(store, path)
    store.destroy(path, [2])
    with pytest.raises(SecretDeletedError, match="was destroyed"):
        store.read(path)
    with pytest.raises(SecretDeletedError, match="was destroyed"):
        store.undelete(path, [2])
    assert {"key": "1"} == shown(store, path, 1)
    store.forget(path)
    with pytest.raises(SecretNotFoundError, match="there is no secret"):
        store.metadata(path)


def test_check_and_set(store: KeyValue, path: str) -> None:
    """A write that follows another version than it says is refused, and names both."""
    assert 1 == store.write(path, {"key": "1"}, cas=0)
    with pytest.raises(VersionConflictError, match="version 1 is the newest, not 0"):
        store.write(path, {"key": "other"}, cas=0)
    assert 2 == store.write(path, {"key": "2"}, cas=1)
    with pytest.raises(VersionConflictError, match="version 2 is the newest, not 1"):
        store.patch(path, {"key": "other"}, cas=1)
    store.configure(path, cas_required=True)
    with pytest.raises(VersionConflictError, match="takes no write without the version"):
        store.write(path, {"key": "3"})
    assert {"key": "2"} == shown(store, path)


def test_one_of_many_writers_wins(store: KeyValue, path: str) -> None:
    """Of writers who follow the same version one alone succeeds."""

    def write(number: int) -> int | None:
        try:
            return store.write(path, {"key": str(number)}, cas=0)
        except VersionConflictError:
            return None

    with ThreadPoolExecutor(8) as pool:
        assert [1] == [each for each in pool.map(write, range(16)) if each]


def test_patch(store: KeyValue, path: str) -> None:
    """A patch sets and removes members, and leaves others."""
    with pytest.raises(SecretNotFoundError, match="to patch"):
        store.patch(path, {"a": "1"})
    store.write(path, {"a": "1", "b": "2", "c": "3"})
    with secret("two") as two:
        assert 2 == store.patch(path, {"b": two, "c": None, "d": "4"})
    assert {"a": "1", "b": "two", "d": "4"} == shown(store, path)


def test_patch_without_the_call(shaky: KeyValue, proxy: FaultProxy, path: str) -> None:
    """Where the server has no PATCH, the secret is read and written with check-and-set."""
    shaky.write(path, {"a": "1", "b": "2", "e": ""})
    proxy.fault("PATCH", status=405, body={"errors": ["unsupported operation"]})
    assert 2 == shaky.patch(path, {"a": None, "c": "3"})
    assert {"b": "2", "c": "3", "e": None} == shown(shaky, path)
    with pytest.raises(VersionConflictError, match="version 2 is the newest, not 1"):
        shaky.patch(path, {"a": "x"}, cas=1)


def test_patch_without_the_right(bao: "Server", store: KeyValue, path: str) -> None:
    """Where a policy forbids PATCH alone, the secret is read and written; where it forbids more, nothing is."""
    store.write(path, {"a": "1", "b": "2"})
    for rights, expected in (('"read", "update"', 2), ('"update"', None), ('"read"', None)):
        rules = f'path "secret/data/{path}" {{ capabilities = [{rights}] }}'
        token = bao.make_token(bao.policy(f"kv-{os.urandom(4).hex()}", rules))
        with VaultSession(bao.address, login=Token(token)) as session:
            if expected is not None:
                assert expected == KeyValue(session).patch(path, {"a": "3"})
            else:
                with pytest.raises(AccessDeniedError):
                    KeyValue(session).patch(path, {"a": "4"})
    assert {"a": "3", "b": "2"} == shown(store, path)


def test_a_lost_answer_to_a_patch_without_the_call(
    shaky: KeyValue, proxy: FaultProxy, path: str
) -> None:
    """The write that stands for a patch is known for ours, though the caller named no version."""
    shaky.write(path, {"a": "1", "b": "2"})
    proxy.fault("PATCH", status=405, body={"errors": ["unsupported operation"]})
    proxy.fault("POST /v1/secret/data", reset="after", times=1)
    assert 2 == shaky.patch(path, {"a": "3"})
    assert {"a": "3", "b": "2"} == shown(shaky, path)


@pytest.mark.parametrize("metadata", [True, False])
def test_a_conflict_that_cannot_be_looked_at(
    bao: "Server", store: KeyValue, path: str, metadata: bool
) -> None:
    """Who may write what it cannot read is told of a conflict all the same."""
    store.write(path, {"key": "1"})
    store.write(path, {"key": "2"})
    rules = f'path "secret/data/{path}" {{ capabilities = ["create", "update", "patch"] }}\n'
    if metadata:
        rules += f'path "secret/metadata/{path}" {{ capabilities = ["read"] }}\n'
    token = bao.make_token(bao.policy(f"kv-{os.urandom(4).hex()}", rules))
    with VaultSession(bao.address, login=Token(token)) as session:
        for call in (KeyValue(session).write, KeyValue(session).patch):
            with pytest.raises(VersionConflictError, match="version 2 is" if metadata else "not"):
                call(path, {"key": "3"}, cas=1)
    assert {"key": "2"} == shown(store, path)


def test_somebody_elses_write_of_the_same_and_more(store: KeyValue, path: str) -> None:
    """A version that has what we would write, and something else beside it, is not taken for ours."""
    store.write(path, {"key": "1", "n": "1"})
    store.write(path, {"key": "2", "n": "2"})
    for call in (store.write, store.patch):
        with pytest.raises(VersionConflictError, match="version 2 is the newest, not 1"):
            call(path, {"key": "2"}, cas=1)
    assert 2 == store.write(path, {"key": "2", "n": "2"}, cas=1)
    assert 2 == store.patch(path, {"key": "2", "n": "2"}, cas=1)


def test_list(store: KeyValue) -> None:
    """Folders end with a slash; a recursive list gives whole paths of secrets."""
    top = f"list-{os.urandom(6).hex()}"
    for name in ("a", "b/c", "b/d e/f", "b"):
        store.write(f"{top}/{name}", {"key": "x"})
    assert ["a", "b", "b/"] == list(store.list(top))
    assert [f"{top}/{each}" for each in ("a", "b", "b/c", "b/d e/f")] == list(
        store.list(top, recursive=True)
    )
    assert [] == list(store.list(f"{top}/none"))
    assert f"{top}/" in list(store.list())


def test_metadata(store: KeyValue, path: str) -> None:
    """What is kept of a secret can be read and changed, and says nothing of its values."""
    store.configure(
        path,
        max_versions=3,
        custom={"owner": "desk"},
        delete_after=timedelta(hours=1, minutes=30),
    )
    for number in range(5):
        store.write(path, {"key": str(number)})
    store.delete(path, [4])
    found = store.metadata(path)
    assert (5, 3, {"owner": "desk"}, timedelta(minutes=90)) == (
        found.current,
        found.max_versions,
        found.custom,
        found.delete_after,
    )
    assert [3, 4, 5] == list(found.versions)
    assert found.versions[5].deleted is not None
    assert not found.versions[4].destroyed
    store.configure(path, cas_required=True)
    after = store.metadata(path)
    assert (True, 3) == (after.cas_required, after.max_versions)
    assert {"owner": "desk"} == store.read(path).custom


@pytest.mark.parametrize(
    "wrong", ["", "/", "a//b", "/a", "a/", "..", "a/../b", "a\n", "./a", "a/\x7f"]
)
def test_paths_that_are_none(store: KeyValue, wrong: str) -> None:
    """What could mean another path than it shows is refused before anybody is asked."""
    with pytest.raises(ValueError, match="no path"):
        store.read(wrong)
    with pytest.raises(ValueError, match="no path"):
        KeyValue(store.session, wrong)


@pytest.mark.parametrize("name", ["a?version=1", "a#b", "a%2fb", "a b", "ä", "a&b=c"])
def test_names_that_urls_would_twist(store: KeyValue, name: str) -> None:
    """A name is that name, whatever it means in a URL."""
    path = f"odd-{os.urandom(6).hex()}/{name}"
    store.write(path, {"key": name})
    assert {"key": name} == shown(store, path)
    assert [name] == list(store.list(path.partition("/")[0]))


def test_a_mount_that_is_not_there(session: VaultSession) -> None:
    """Vault's own words say that nothing is mounted there."""
    with (
        secret(CANARY) as value,
        pytest.raises(VaultRefusedError, match="no handler for route") as caught,
    ):
        KeyValue(session, "nowhere").write("a", {"key": value})
    assert 404 == caught.value.status
    assert set() == leaks(caught.value, [CANARY])


def test_a_policy_that_forbids(bao: "Server", path: str) -> None:
    """Without the right to read there is a typed error, without what was to be written."""
    token = bao.make_token(bao.policy("kv-none", 'path "sys/health" { capabilities = ["read"] }'))
    with VaultSession(bao.address, login=Token(token)) as session:
        for call in (
            lambda: KeyValue(session).read(path),
            lambda: KeyValue(session).write(path, {"key": secret(CANARY)}),
        ):
            with pytest.raises(AccessDeniedError) as caught:
                call()
            assert set() == leaks(caught.value, [CANARY, token])


@pytest.mark.parametrize(
    "body",
    [
        {"data": []},
        {"data": {"data": {"key": CANARY}}},
        {"data": {"data": {"key": CANARY}, "metadata": {}}},
        {
            "data": {
                "data": [CANARY],
                "metadata": {"version": 1, "created_time": "2026-11-27T00:00:00Z"},
            }
        },
        {"data": {"data": {"key": CANARY}, "metadata": {"version": 1, "created_time": "soon"}}},
        {"data": {"data": {"key": CANARY}, "metadata": {"version": None, "created_time": ""}}},
        {"data": {"keys": [7]}},
        {"data": {"keys": ["../sys"]}},
    ],
    ids=str,
)
def test_answers_that_are_not_whole(
    shaky: KeyValue, proxy: FaultProxy, path: str, body: dict[str, Any]
) -> None:
    """An answer that lacks what every server says, or says it in another form, is one typed error without a secret."""
    proxy.fault("/v1/secret/", status=200, body=body)
    for call in (shaky.list, shaky.metadata) if "keys" in body["data"] else (shaky.read,):
        with pytest.raises(ServiceUnavailableError, match="not whole") as caught:
            list(call(path))
        assert set() == leaks(caught.value, [CANARY])


# What a network does


def test_a_lost_answer_with_check_and_set(shaky: KeyValue, proxy: FaultProxy, path: str) -> None:
    """Where a write went through and nobody heard of it, it is found to be ours, and not done twice."""
    proxy.fault("POST /v1/secret/data", reset="after", times=1)
    with secret(CANARY) as value:
        assert 1 == shaky.write(path, {"key": value, "n": "1"}, cas=0)
        proxy.fault("PATCH /v1/secret/data", reset="after", times=1)
        assert 2 == shaky.patch(path, {"n": "2", "key": value}, cas=1)
    assert 2 == shaky.metadata(path).current
    assert {"key": CANARY, "n": "2"} == shown(shaky, path)


def test_a_lost_answer_to_a_loser(
    shaky: KeyValue, store: KeyValue, proxy: FaultProxy, path: str
) -> None:
    """Where somebody else's write came first, a lost answer makes it no success of ours."""
    store.write(path, {"key": "theirs"}, cas=0)
    proxy.fault("POST /v1/secret/data", reset="after", times=1)
    with pytest.raises(VersionConflictError):
        shaky.write(path, {"key": "ours"}, cas=0)
    assert {"key": "theirs"} == shown(store, path)


def test_a_lost_answer_without_check_and_set(shaky: KeyValue, proxy: FaultProxy, path: str) -> None:
    """Without check-and-set a write whose answer was lost is not repeated, and said to be unknown."""
    proxy.fault("POST /v1/secret/data", reset="after", times=1)
    with secret(CANARY) as value, pytest.raises(OutcomeUnknownError) as caught:
        shaky.write(path, {"key": value})
    assert set() == leaks(caught.value, [CANARY])
    assert 1 == shaky.metadata(path).current


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 503, "body": {"errors": ["Vault is sealed"]}},
        {"status": 500, "body": b"<html>proxy</html>"},
        {"hang": True},
        {"truncate": 40},
        {"reset": "before"},
    ],
)
def test_what_is_away_is_said_in_time(
    shaky: KeyValue, proxy: FaultProxy, path: str, fault: dict[str, object]
) -> None:
    """A Vault that is sealed, broken, silent or cut off ends in one error within the deadline."""
    shaky.write(path, {"key": CANARY})
    shaky.session.deadline = 0.5
    proxy.fault("GET /v1/secret/data", **fault)
    with pytest.raises(ServiceUnavailableError) as caught:
        shaky.read(path)
    assert set() == leaks(caught.value, [CANARY])


def test_errors_repeat_nothing_that_was_sent(
    shaky: KeyValue, proxy: FaultProxy, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that repeats what it was sent, in an error, does not bring it into ours, nor into a log."""
    texts = [CANARY, base64.b64encode(CANARY.encode() * 2).decode()]
    proxy.fault("POST", status=400, body={"errors": [f"cannot store {texts[0]}: {texts[1]}"]})
    with (
        caplog.at_level(logging.DEBUG),
        secret(CANARY) as value,
        secret(texts[1]) as other,
        pytest.raises(VaultRefusedError, match="cannot store") as caught,
    ):
        shaky.write(path, {"key": value, "other": other})
    assert set() == leaks(caught.value, texts)
    assert not any(text in caplog.text for text in texts)


@pytest.mark.slow
def test_reads_see_writes_in_a_cluster(bao_cluster: "Cluster") -> None:
    """From a standby that is behind, too, a read after a write gives what was written."""
    admin = bao_cluster.admin
    mount = f"kv-{os.urandom(4).hex()}"
    admin.sys.enable_secrets_engine("kv", path=mount, options={"version": "2"})
    time.sleep(1.0)
    standby = bao_cluster.standbys()[0]
    with VaultSession(
        standby.address, login=Token(bao_cluster.token), ca_file=bao_cluster.nodes[0].ca_file
    ) as session:
        store = KeyValue(session, mount)
        for number in range(100):
            store.write("k", {"n": str(number)})
            assert {"n": str(number)} == shown(store, "k")


# The cache


def test_cache_reads_once(store: KeyValue, path: str) -> None:
    """Within max_age there is one read, whoever asks; each answer is the caller's own."""
    store.write(path, {"key": CANARY})
    with SecretCache(store, max_age_seconds=60) as cache:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: cache.read(path), range(32)))
        assert (31, 1, 0, 1) == cache.statistics()
        found[0].close()
        assert all(each["key"].expose() == CANARY for each in found[1:])
        store.write(path, {"key": "new"})
        assert CANARY == cache.read(path)["key"].expose()
        cache.drop(path)
        assert "new" == cache.read(path)["key"].expose()
    assert "key" in found[1]
    with pytest.raises(ValueError, match="closed"):
        cache.read(path)


def test_cache_serves_what_is_old_while_vault_is_away(
    shaky: KeyValue, proxy: FaultProxy, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """During an outage the last value is served and said to be old; afterwards it is read again."""
    shaky.write(path, {"key": "1"})
    with SecretCache(shaky, max_age_seconds=0, max_stale_seconds=60) as cache:
        assert cache.read(path).stale_since is None
        shaky.session.deadline = 0.5
        proxy.refuse()
        with caplog.at_level(logging.INFO, "tapeseal.vault"):
            first, second = cache.read(path), cache.read(path)
            assert ("1", "1") == (first["key"].expose(), second["key"].expose())
            assert first.stale_since is not None
            assert first.stale_since == second.stale_since
            proxy.accept()
            shaky.session.deadline = 10
            shaky.write(path, {"key": "2"})
            found = cache.read(path)
        assert ("2", None) == (found["key"].expose(), found.stale_since)
        assert (0, 2, 2, 1) == cache.statistics()
    assert 1 == caplog.text.count("is served from memory")
    assert 1 == caplog.text.count("is read from Vault again")


def test_cache_waits_once_for_a_vault_that_is_away(
    shaky: KeyValue, proxy: FaultProxy, path: str
) -> None:
    """Threads that ask at the same time wait for one try together, not for one after the other."""

    class Counting(KeyValue):
        tries = 0

        def read(self, *arguments: Any, **settings: Any) -> Any:
            self.tries += 1
            return super().read(*arguments, **settings)

    store = Counting(shaky.session)
    store.write(path, {"key": "1"})
    together = threading.Barrier(8)
    with SecretCache(store, max_age_seconds=0, max_stale_seconds=60) as cache:
        cache.read(path).close()
        store.session.deadline = 1
        proxy.refuse()

        def reads(_: int) -> Any:
            together.wait()
            return cache.read(path)

        store.tries = 0
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(reads, range(8)))
        assert 1 <= store.tries < 8
        assert ["1"] * 8 == [each["key"].expose() for each in found]
        assert None not in [each.stale_since for each in found]
        assert 8 == cache.statistics().stale

        def fails(_: int) -> str:
            together.wait()
            with pytest.raises(ServiceUnavailableError) as caught:
                cache.read(f"{path}-2")
            return str(caught.value)

        store.tries = 0
        with ThreadPoolExecutor(8) as pool:
            assert "" not in pool.map(fails, range(8))
        assert 1 <= store.tries < 8


def test_cache_gives_up(shaky: KeyValue, proxy: FaultProxy, path: str) -> None:
    """What is older than max_stale is wiped, and the outage is an error."""
    shaky.write(path, {"key": "1"})
    with SecretCache(shaky, max_age_seconds=0, max_stale_seconds=0) as cache:
        cache.read(path)
        entry = cache._entries[path]
        shaky.session.deadline = 0.5
        proxy.refuse()
        with pytest.raises(ServiceUnavailableError):
            cache.read(path)
        assert entry.found is None


def test_cache_does_not_outlive_a_refusal(bao: "Server", store: KeyValue, path: str) -> None:
    """Whoever may no longer read a secret, or has it deleted, gets nothing from memory."""
    store.write(path, {"key": "1"})
    rules = f'path "secret/data/{path}" {{ capabilities = ["read"] }}'
    token = bao.make_token(bao.policy(f"kv-{os.urandom(4).hex()}", rules))
    with (
        VaultSession(bao.address, login=Token(token)) as session,
        SecretCache(KeyValue(session), max_age_seconds=0) as cache,
    ):
        cache.read(path)
        store.delete(path)
        with pytest.raises(SecretDeletedError):
            cache.read(path)
        store.undelete(path, [1])
        cache.read(path)
        bao.admin.auth.token.revoke(token)
        with pytest.raises(AccessDeniedError):
            cache.read(path)
        assert cache._entries[path].found is None


def test_cache_keeps_so_many(store: KeyValue) -> None:
    """Beyond max_entries the secret that was not used for longest is wiped."""
    top = f"many-{os.urandom(4).hex()}"
    for name in "abc":
        store.write(f"{top}/{name}", {"key": name})
    with SecretCache(store, max_entries=2) as cache:
        for name in "abac":
            cache.read(f"{top}/{name}")
        assert [f"{top}/a", f"{top}/c"] == list(cache._entries)


def test_cache_close_waits_for_nobody_and_leaves_nothing(
    shaky: KeyValue, proxy: FaultProxy, path: str
) -> None:
    """A read that is under way when the cache is closed leaves nothing in it."""
    shaky.write(path, {"key": "1"})
    cache = SecretCache(shaky)
    proxy.fault("GET /v1/secret/data", delay=0.3, times=1)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(cache.read(path)))
    thread.start()
    while path not in cache._entries:
        time.sleep(0.01)
    entry = cache._entries[path]
    cache.close()
    thread.join()
    assert entry.found is None
    assert "1" == answers[0]["key"].expose()


def test_cache_is_not_for_a_fork(bao: "Server", path: str) -> None:
    """A fork gets an error, not what its parent read."""
    done = child(
        """
        import os, signal, sys
        from tapeseal import ForkError
        from tapeseal.vault import Token, VaultSession
        from tapeseal.vault.kv import KeyValue, SecretCache

        store = KeyValue(VaultSession(sys.argv[1], login=Token(sys.argv[2])))
        store.write(sys.argv[3], {"key": "1"})
        cache = SecretCache(store)
        cache.read(sys.argv[3])
        cache._lock.acquire()  # As another thread may hold them.
        cache._entries[sys.argv[3]].lock.acquire()
        if os.fork() == 0:
            signal.alarm(10)
            for call in (cache.read, cache.drop, lambda path: cache.statistics()):
                try:
                    call(sys.argv[3])
                except ForkError:
                    continue
                os._exit(1)
            cache.close()
            os._exit(7)
        cache._lock.release()
        cache._entries[sys.argv[3]].lock.release()
        print(os.waitstatus_to_exitcode(os.wait()[1]))
        print(cache.read(sys.argv[3])["key"].expose())
        """,
        bao.address,
        bao.token,
        path,
    )
    assert ("7\n1\n", "") == (done.stdout, done.stderr)
