"""DatabaseCredentials against a real Vault over a real PostgreSQL: every credential is judged by a login."""

import copy
import gc
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from servers.bao import Cluster, Server, SingleServer, wait_for
from servers.fault_proxy import FaultProxy
from servers.postgres import CREATION, DatabaseMount, Postgres
from support import leaks
from tapeseal.cli import app, leases
from tapeseal.errors import (
    AccessDeniedError,
    CredentialError,
    ForkError,
    OutcomeUnknownError,
    ServiceUnavailableError,
)
from tapeseal.secret import Secret
from tapeseal.vault import AppRole, Credential, DatabaseCredentials, Token, VaultSession
from tapeseal.vault import lease as lease_module

pytestmark = pytest.mark.server

DOCS = Path(__file__).parents[1] / "docs"


def policy_for(path: str) -> str:
    """Return the least policy for a role, as the docs have it."""
    if not DOCS.exists():
        pytest.skip("docs/ is not beside these tests")
    policies = []
    for page, name in (("leases.md", "database reader"), ("vault.md", "session")):
        _, _, text = (DOCS / page).read_text().partition(f"**{name}**")
        policies.append(text.partition("```hcl\n")[2].partition("```")[0])
    return "".join(policies).replace("database/creds/reader", path)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the user's own variables and token file."""
    for name in os.environ:
        if name.startswith(("VAULT_", "BAO_", "PG", "XDG_RUNTIME_DIR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def mount(bao: Server, postgres: Postgres) -> DatabaseMount:
    """A database engine of the dev server, and the auth method that sessions log in by."""
    bao.admin.sys.enable_auth_method("approle", path="approle-for-leases")
    return postgres.mount(bao)


@pytest.fixture
def path(mount: DatabaseMount) -> str:
    """A dynamic role of this test's own."""
    return mount.make_role(f"reader-{os.urandom(3).hex()}")


@pytest.fixture
def proxy(bao: Server) -> Iterator[FaultProxy]:
    """A proxy before the dev server."""
    with FaultProxy(bao.address) as proxy:
        yield proxy


def login(bao: Server, path: str, **fields: Any) -> AppRole:
    """Make an AppRole under the least policy for a path, and return its login."""
    name = f"app-{os.urandom(3).hex()}"
    policy = bao.policy(name, policy_for(path))
    role = f"/v1/auth/approle-for-leases/role/{name}"
    fields = {"token_policies": [policy], "token_no_default_policy": True, **fields}
    bao.admin.adapter.post(role, json=fields)
    role_id = bao.admin.adapter.get(f"{role}/role-id")["data"]["role_id"]
    secret_id = bao.admin.adapter.post(f"{role}/secret-id")["data"]["secret_id"]
    return AppRole(role_id, secret_id, mount="approle-for-leases")


@pytest.fixture
def session(bao: Server, path: str, proxy: FaultProxy) -> Iterator[VaultSession]:
    """A session under the least policy for that role, through the proxy."""
    with VaultSession(proxy.address, login=login(bao, path), deadline=5) as session:
        yield session


@pytest.fixture
def credentials(session: VaultSession, path: str) -> Iterator[DatabaseCredentials]:
    """Credentials of that role."""
    with DatabaseCredentials(session, path) as credentials:
        yield credentials


def admitted(postgres: Postgres, credential: Credential | dict[str, str]) -> bool:
    """Whether the database lets a credential in."""
    if isinstance(credential, dict):
        return postgres.admits(credential["user"], credential["password"])
    return postgres.admits(credential.username, credential.password.expose())


def role_of(path: str) -> str:
    """Return the role at the end of a path."""
    return path.rpartition("/")[2]


def count(proxy: FaultProxy, part: str) -> int:
    """Return how many requests with that in their path the proxy has seen."""
    return sum(part in line for line in proxy.seen)


def renew_now(credentials: DatabaseCredentials) -> None:
    """Let the background find that it is time."""
    credentials._held.renew_at = 0.0
    credentials._news.put(None)


def revoke_now(credentials: DatabaseCredentials, before: Credential) -> None:
    """Let the overlap of what was replaced be over."""
    (held,) = [each for each in credentials._replaced if each.credential is before]
    held.revoke_at = 0.0
    credentials._news.put(None)
    wait_for("the password to be wiped", lambda: before.password.closed)


def changed(credentials: DatabaseCredentials, before: Credential) -> Credential:
    """Return the credential that takes the place of the one before."""
    wait_for("another credential", lambda: credentials._held.credential is not before)
    return credentials.current()


# A lease's life


def test_credential_logs_in(postgres: Postgres, session: VaultSession, path: str) -> None:
    """The credential is let in as long as it is held, and revoked at the end."""
    with DatabaseCredentials(session, path) as credentials:
        login = credentials.connect_kwargs()
        with psycopg.connect(postgres.conninfo(**login)) as connection:
            assert (login["user"],) == connection.execute("SELECT current_user").fetchone()
        credential = credentials.current()
        assert login["user"] == credential.username
        assert not credential.password.closed
    assert credential.password.closed
    assert not admitted(postgres, login)
    assert 0 == credentials.close()


def test_renewal(credentials: DatabaseCredentials, proxy: FaultProxy) -> None:
    """It is renewed before two thirds of its time, and stays the same credential."""
    held = credentials._held
    assert held.expires - 3600 < held.renew_at < held.expires - 1200
    before = held.expires
    renew_now(credentials)
    wait_for("the renewal", lambda: credentials.status().renewals == 1)
    assert before < held.expires
    assert held.renew_at < held.expires - 1200
    assert credentials._held is held
    assert 1 == count(proxy, "GET /v1/database")


def test_max_ttl(
    mount: DatabaseMount, postgres: Postgres, credentials: DatabaseCredentials, path: str
) -> None:
    """Where it is not renewed for as long as before there is a new one; both are valid, until the overlap is over."""
    before = credentials.current()
    mount.make_role(role_of(path), max_ttl="2h", default_ttl="10m")
    renew_now(credentials)
    after = changed(credentials, before)
    assert before.username != after.username
    assert admitted(postgres, before)
    assert admitted(postgres, after)
    (replaced,) = credentials._replaced
    assert 590 < replaced.revoke_at - time.monotonic() <= 600
    assert 290 < replaced.remind_at - time.monotonic() <= 300
    password = before.password.expose()
    revoke_now(credentials, before)
    assert not postgres.admits(before.username, password)
    assert admitted(postgres, credentials.current())


def test_not_renewable(credentials: DatabaseCredentials, proxy: FaultProxy) -> None:
    """A lease that Vault does not renew gives way when it would have been renewed."""
    before = credentials.current()
    body = {"errors": ["lease is not renewable"]}
    proxy.fault("sys/leases/renew", status=400, body=body, times=1)
    renew_now(credentials)
    changed(credentials, before)
    assert 1 == count(proxy, "sys/leases/renew")


def test_revoked_lease_is_found_by_renewal(
    bao: Server, postgres: Postgres, credentials: DatabaseCredentials
) -> None:
    """A lease that somebody has revoked gives way at the next renewal."""
    before = credentials.current()
    bao.admin.sys.revoke_lease(before.lease_id)
    renew_now(credentials)
    assert admitted(postgres, changed(credentials, before))


def test_refused_credential_is_replaced_once(
    bao: Server, postgres: Postgres, credentials: DatabaseCredentials, proxy: FaultProxy
) -> None:
    """However many threads meet a refused login, one new credential is made, and all get it."""
    before = credentials.current()
    bao.admin.sys.revoke_lease(before.lease_id)
    assert not admitted(postgres, before)
    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(credentials.replace, [before] * 200))
    assert {id(each) for each in found} == {id(credentials.current())}
    assert admitted(postgres, found[0])
    assert 2 == count(proxy, "/creds/")


def test_dropped_user_is_replaced(postgres: Postgres, credentials: DatabaseCredentials) -> None:
    """A user that was dropped behind Vault's back is replaced when the consumer says so."""
    before = credentials.current()
    postgres.execute(f'DROP ROLE "{before.username}"')
    assert admitted(postgres, credentials.replace(before))


def test_new_login_of_the_session(
    bao: Server, postgres: Postgres, session: VaultSession, credentials: DatabaseCredentials
) -> None:
    """Within a second after a new login there is a new credential before the old token takes the old one along."""
    before = credentials.current()
    old_token = session.client.token
    assert session._lease is not None
    session._log_in(session._lease, time.monotonic() + 5)
    after = changed(credentials, before)
    assert admitted(postgres, before)
    bao.admin.auth.token.revoke(old_token)
    wait_for("the old lease to end", lambda: not admitted(postgres, before))
    assert admitted(postgres, after)


def test_revoked_token(
    postgres: Postgres, session: VaultSession, credentials: DatabaseCredentials
) -> None:
    """The leases of a revoked token are gone with it; the session logs in anew, and there is a new credential."""
    before = credentials.current()
    session.client.auth.token.revoke_self()
    wait_for("the old lease to end", lambda: not admitted(postgres, before))
    assert admitted(postgres, credentials.replace(before))


def test_short_token(bao: Server, path: str, proxy: FaultProxy) -> None:
    """Halfway to the end of its token a lease is renewed, so that the session learns of another token."""
    short = login(bao, path, token_ttl="60s", token_max_ttl="60s")
    with (
        VaultSession(proxy.address, login=short) as session,
        DatabaseCredentials(session, path) as credentials,
    ):
        assert credentials._held.renew_at < time.monotonic() + 31


def test_first_login_costs_one_credential(
    credentials: DatabaseCredentials, proxy: FaultProxy
) -> None:
    """The session's first login, which comes with the first request, is no reason for a second one."""
    credentials._news.put(None)
    time.sleep(0.1)
    assert 1 == count(proxy, "/creds/")


def test_change_is_told(session: VaultSession, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever wants to know of a change is called, also after another one's failure."""
    with DatabaseCredentials(session, path) as credentials:
        told = threading.Event()
        credentials.on_change(lambda: 1 / 0)
        credentials.on_change(sys.exit)
        credentials.on_change(told.set)
        credentials.replace(credentials.current())
        assert told.wait(10)
        assert credentials._thread.is_alive()
    assert 2 == caplog.text.count("what is called on a change has failed")


def test_close_in_a_callback(session: VaultSession, path: str, postgres: Postgres) -> None:
    """Credentials can be closed by what is called on a change."""
    credentials = DatabaseCredentials(session, path)
    credentials.on_change(credentials.close)
    with pytest.raises(ValueError, match="closed"):
        credentials.replace(credentials.current())
    wait_for("the end of the thread", lambda: not credentials._thread.is_alive())


def test_forgotten_credentials(session: VaultSession, path: str) -> None:
    """What is dropped without close() leaves no thread behind."""
    credentials = DatabaseCredentials(session, path)
    thread = credentials._thread
    del credentials
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_pool(mount: DatabaseMount, postgres: Postgres, session: VaultSession, path: str) -> None:
    """A pool that is drained when it is told has no connection left whose rights end with a credential.

    Connections that are in use meanwhile, and one that is just being opened, too.
    """
    postgres.execute("CREATE TABLE quotes AS SELECT 4750 AS price")
    grant = 'GRANT SELECT ON quotes TO "{{name}}"'
    mount.make_role(role_of(path), creation_statements=[CREATION, grant])
    gate = threading.Event()
    gate.set()

    def slow_kwargs() -> dict[str, str]:
        login = credentials.connect_kwargs()
        gate.wait()
        return login

    def users() -> set[str]:
        with pool.connection() as one, pool.connection() as other:
            rows = [
                each.execute("SELECT price, current_user FROM quotes").fetchone()
                for each in (one, other)
            ]
        assert [4750, 4750] == [price for price, _ in rows]
        return {user for _, user in rows}

    with (
        DatabaseCredentials(session, path) as credentials,
        ConnectionPool(
            postgres.conninfo(user="", password=""), kwargs=slow_kwargs, min_size=1, max_size=2
        ) as pool,
    ):
        credentials.on_change(pool.drain)
        pool.wait()
        before = credentials.current()
        with pool.connection() as kept:
            assert 4750 == kept.execute("SELECT price FROM quotes").fetchone()[0]
            gate.clear()
            with ThreadPoolExecutor() as threads:
                opened = threads.submit(pool.getconn)
                wait_for("a connection that is being opened", lambda: pool._growing)
                after = credentials.replace(before)
                wait_for("the drain", lambda: pool._drained_at)
                gate.set()
                pool.putconn(opened.result())
        assert {before.username, after.username} == users()
        drained = pool._drained_at
        credentials._replaced[0].remind_at = 0.0
        credentials._news.put(None)
        wait_for("another drain", lambda: pool._drained_at > drained)
        revoke_now(credentials, before)
        assert {after.username} == users()


# Failures


def test_outage(postgres: Postgres, credentials: DatabaseCredentials, proxy: FaultProxy) -> None:
    """While Vault is away the credential is kept until it has expired; then one error says why; then all is well."""
    before = credentials.current()
    proxy.fault("", status=503, body={"errors": ["Vault is sealed"]})
    credentials._session.deadline = 0.2
    renew_now(credentials)
    wait_for("the failure", lambda: credentials.status().problem)
    assert before is credentials.current()
    assert admitted(postgres, before)
    credentials._held.expires = time.monotonic()
    with pytest.raises(ServiceUnavailableError, match=r"has expired, and .*Vault is sealed"):
        credentials.current()
    credentials._session.deadline = 5
    proxy.clear()
    after = changed(credentials, before)
    assert admitted(postgres, after)
    assert credentials.status().problem is None


def test_what_cannot_be_renewed_is_replaced(
    postgres: Postgres, credentials: DatabaseCredentials, proxy: FaultProxy
) -> None:
    """With a sixth of its time left a lease whose renewals fail gives way, and not before."""
    before = credentials.current()
    proxy.fault("sys/leases/renew", status=500, body={"errors": ["role does not exist"]})
    credentials._session.deadline = 0.2
    renew_now(credentials)
    wait_for("the failure", lambda: credentials.status().problem)
    assert before is credentials.current()
    credentials._held.expires = time.monotonic() + 599
    assert admitted(postgres, changed(credentials, before))


def test_database_down(
    bao: Server, proxy: FaultProxy, session: VaultSession, path: str, postgres: Postgres
) -> None:
    """An answer of Vault's that the database is away is no reason for a new credential."""
    with DatabaseCredentials(session, path) as credentials:
        before = credentials.current()
        body = {"errors": ["failed to renew entry: resp: nil err: failed to connect to `user=…"]}
        proxy.fault("sys/leases/renew", status=400, body=body, times=1)
        renew_now(credentials)
        wait_for("the failure", lambda: credentials.status().problem)
        wait_for("the next try", lambda: credentials.status().renewals == 1)
        assert before is credentials.current()
    assert 1 == count(proxy, "/creds/")


def test_lost_answer(
    mount: DatabaseMount, session: VaultSession, path: str, proxy: FaultProxy
) -> None:
    """An answer that is lost leaves a lease that nobody knows: it is not asked again, and the error says so."""
    proxy.fault("/creds/", reset="after")
    with pytest.raises(OutcomeUnknownError, match="is unknown"):
        DatabaseCredentials(session, path)
    assert 1 == count(proxy, "/creds/")
    (orphan,) = mount.leases(role_of(path))
    session.close(revoke=True)
    wait_for("the orphan to go with its token", lambda: orphan not in mount.leases(role_of(path)))


def test_lost_answers_are_bounded(
    mount: DatabaseMount,
    credentials: DatabaseCredentials,
    path: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where each answer is lost no more than five credentials are made at once, and each loss is logged."""
    monkeypatch.setattr(lease_module, "_LONGEST_PAUSE", 0.01)
    proxy.fault("/creds/", reset="after")
    with pytest.raises(ServiceUnavailableError, match="was refused, and there is no other"):
        credentials.replace(credentials.current(), deadline=0)
    wait_for("the cap", lambda: "too many credentials" in (credentials.status().problem or ""))
    with pytest.raises(ServiceUnavailableError, match="too many credentials were made lately"):
        credentials.replace(credentials.current(), deadline=0.1)
    assert 5 == len(mount.leases(role_of(path))) == credentials.status().made
    assert 4 == credentials.status().lost
    assert 4 == sum("the answer to a request was lost" in each for each in caplog.messages)


def test_storm(
    session: VaultSession, path: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand refused logins while Vault fails are some ten requests."""
    session.deadline = 0.5
    with DatabaseCredentials(session, path) as credentials:
        proxy.fault("", status=500, body={"errors": ["internal error"]})
        before = credentials.current()
        proxy.seen.clear()

        def refused(number: int) -> None:
            with pytest.raises(ServiceUnavailableError):
                credentials.replace(before, deadline=0.02)

        with ThreadPoolExecutor(50) as threads:
            assert 1000 == len(list(threads.map(refused, range(1000))))
        assert count(proxy, "/creds/") <= 5
        assert len(proxy.seen) <= 5
        proxy.clear()


def test_refusal(
    bao: Server, credentials: DatabaseCredentials, session: VaultSession, path: str
) -> None:
    """A policy that no longer allows it is said so once the credential has expired."""
    (policy,) = set(session.client.auth.token.lookup_self()["data"]["policies"])
    bao.policy(policy, 'path "auth/token/lookup-self" { capabilities = ["read"] }')
    renew_now(credentials)
    wait_for("the failure", lambda: credentials.status().problem)
    credentials._held.expires = time.monotonic()
    with pytest.raises(AccessDeniedError, match=r"has expired, and .*policies forbid"):
        credentials.current()


def test_revocation_that_fails(
    bao: Server, session: VaultSession, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be revoked at the end is counted and logged, and no error."""
    credentials = DatabaseCredentials(session, path)
    (policy,) = set(session.client.auth.token.lookup_self()["data"]["policies"])
    bao.policy(policy, 'path "auth/token/lookup-self" { capabilities = ["read"] }')
    username = credentials.current().username
    assert 1 == credentials.close() == credentials.close()
    assert f"the lease of {username} was not revoked, and ends in 3600 s" in caplog.text


def test_overlap_is_revoked_later(
    mount: DatabaseMount,
    credentials: DatabaseCredentials,
    path: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replaced credential whose revocation fails is revoked later."""
    monkeypatch.setattr(lease_module, "_LONGEST_PAUSE", 0.05)
    credentials._session.deadline = 0.1
    before = credentials.current()
    credentials.replace(before, deadline=5)
    proxy.fault("sys/leases/revoke", status=500, body={"errors": ["no"]})
    credentials._replaced[0].revoke_at = 0.0
    credentials._news.put(None)
    wait_for("two tries", lambda: count(proxy, "sys/leases/revoke") >= 2)
    proxy.clear()
    wait_for("the revocation", lambda: before.password.closed)
    assert [credentials.current().lease_id] == mount.leases(role_of(path))


# Static roles


@pytest.fixture
def static(mount: DatabaseMount, postgres: Postgres) -> str:
    """A static role of this test's own."""
    name = f"feed-{os.urandom(3).hex()}"
    postgres.make_role(name, "first password")
    return mount.make_static_role(name, name)


def rotate(mount: DatabaseMount, static: str) -> None:
    """Have Vault change the password now."""
    mount.bao.admin.adapter.post(f"/v1/{mount.name}/rotate-role/{role_of(static)}")


@pytest.fixture
def static_session(bao: Server, static: str, proxy: FaultProxy) -> Iterator[VaultSession]:
    """A session under the least policy for that role."""
    with VaultSession(proxy.address, login=login(bao, static), deadline=5) as session:
        yield session


def test_static_role(
    mount: DatabaseMount,
    postgres: Postgres,
    static: str,
    static_session: VaultSession,
    proxy: FaultProxy,
) -> None:
    """The password of a static role is read again when it was to change; there is nothing to revoke."""
    with DatabaseCredentials(static_session, static) as credentials:
        before = credentials.current()
        assert admitted(postgres, before)
        assert credentials.status().seconds_left is None
        assert credentials._held.renew_at <= time.monotonic() + 60
        renew_now(credentials)
        wait_for("another look", lambda: credentials.status().made == 2)
        assert before is credentials.current()
        rotate(mount, static)
        assert not admitted(postgres, before)
        assert admitted(postgres, credentials.replace(before))
        assert admitted(postgres, credentials.current())
    assert 0 == count(proxy, "sys/leases")
    assert before.password.closed


def test_static_role_refused_for_another_reason(
    static: str, static_session: VaultSession, proxy: FaultProxy
) -> None:
    """Where Vault has no other password than the one that was refused, the error says so."""
    with DatabaseCredentials(static_session, static) as credentials:
        with pytest.raises(CredentialError, match="Vault still gives the one that was refused"):
            credentials.replace(credentials.current(), deadline=0.3)
        assert count(proxy, "static-creds") <= 4


def test_static_role_outlasts_vault(
    postgres: Postgres, static: str, static_session: VaultSession, proxy: FaultProxy
) -> None:
    """While Vault is away it changes no password, so the present one stays good."""
    with DatabaseCredentials(static_session, static) as credentials:
        proxy.refuse()
        static_session.deadline = 0.1
        renew_now(credentials)
        wait_for("the failure", lambda: credentials.status().problem)
        assert admitted(postgres, credentials.current())
        proxy.accept()


# Time that really passes


class Client:
    """Logs in 50 times a second, in a thread of its own, and counts what the database refused.

    A login that is refused is tried once more, with what replace() gives, if `again` is set.
    """

    def __init__(
        self, postgres: Postgres, credentials: DatabaseCredentials, *, again: bool = False
    ) -> None:
        self.users: list[str] = []
        self.refused = 0
        self.logins = 0
        self.problems: list[Exception] = []
        self._postgres = postgres
        self._credentials = credentials
        self._again = again
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(due - time.monotonic(), 0)):
            due += 0.02
            try:
                self._log_in()
            except Exception as problem:
                self.problems.append(problem)

    def _log_in(self) -> None:
        credential = self._credentials.current()
        if not admitted(self._postgres, credential):
            self.refused += 1
            if not self._again:
                return
            credential = self._credentials.replace(credential)
            assert admitted(self._postgres, credential)
        self.logins += 1
        if credential.username not in self.users:
            self.users.append(credential.username)

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
def test_client_over_max_ttl(
    mount: DatabaseMount, postgres: Postgres, session: VaultSession, path: str
) -> None:
    """Over several max TTLs a client that logs in 50 times a second is never refused, and few credentials are made."""
    mount.make_role(role_of(path), default_ttl="4s", max_ttl="9s")
    with (
        DatabaseCredentials(session, path) as credentials,
        Client(postgres, credentials) as client,
    ):
        time.sleep(30)
        assert len(mount.leases(role_of(path))) <= 2
    assert (0, []) == (client.refused, client.problems)
    assert client.logins > 100  # how many is the machine's affair
    # In 30 s at least three are needed, and each serves for 5 s at least.
    assert 3 <= len(client.users) <= 6
    assert credentials._made == len(client.users)
    wait_for("all leases to be revoked", lambda: mount.leases(role_of(path)) == [])


@pytest.mark.slow
def test_client_over_tokens(
    bao: Server, mount: DatabaseMount, postgres: Postgres, path: str
) -> None:
    """Tokens come and go under long leases, which end with them; the client is never refused."""
    short = login(bao, path, token_ttl="4s", token_max_ttl="6s")
    with (
        VaultSession(bao.address, login=short) as session,
        DatabaseCredentials(session, path) as credentials,
        Client(postgres, credentials) as client,
    ):
        time.sleep(25)
        tokens = session.token_state.number
    assert (0, []) == (client.refused, client.problems)
    assert 3 <= tokens
    assert tokens - 1 <= len(client.users) <= tokens


@pytest.mark.slow
def test_client_without_renewal(
    mount: DatabaseMount,
    postgres: Postgres,
    session: VaultSession,
    path: str,
    proxy: FaultProxy,
) -> None:
    """Where every renewal fails by a 5xx, credentials follow each other in time."""
    mount.make_role(role_of(path), default_ttl="5s", max_ttl="1h")
    session.deadline = 0.5
    with (
        DatabaseCredentials(session, path) as credentials,
        Client(postgres, credentials) as client,
    ):
        proxy.fault("sys/leases/renew", status=500, body={"errors": ["internal error"]})
        time.sleep(20)
    assert (0, []) == (client.refused, client.problems)
    assert 4 <= len(client.users) <= 6


@pytest.mark.slow
def test_client_over_a_revoked_token(
    mount: DatabaseMount, postgres: Postgres, session: VaultSession, path: str
) -> None:
    """A client that tells of a refused login gets over a token that was revoked under it."""
    with (
        DatabaseCredentials(session, path) as credentials,
        Client(postgres, credentials, again=True) as client,
    ):
        for _ in range(3):
            time.sleep(1)
            mount.bao.admin.auth.token.revoke(session.client.token)
        time.sleep(1)
    assert [] == client.problems
    assert 3 <= client.refused <= 6
    # One for each token; and one more where a look comes in between, for which token it was made under is not known.
    assert 4 <= len(client.users) <= 7


@pytest.mark.slow
def test_client_over_static_rotations(
    mount: DatabaseMount, postgres: Postgres, static: str, static_session: VaultSession
) -> None:
    """A client that tells of a refused login gets over the rotations of a static role."""
    mount.make_static_role(role_of(static), role_of(static), rotation_period="5s")
    with (
        DatabaseCredentials(static_session, static) as credentials,
        Client(postgres, credentials, again=True) as client,
    ):
        time.sleep(25)
        made = credentials.status().made
    assert [] == client.problems
    assert client.logins > 100  # how many is the machine's affair
    assert client.refused <= 20
    assert made <= 120


@pytest.mark.slow
def test_client_while_vault_is_sealed(
    bao_tls: SingleServer, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """A seal that is shorter than the lease is not noticed; a longer one ends in one error, and then all is well."""
    mount = postgres.mount(bao_tls)
    path = mount.make_role("reader", default_ttl="6s", max_ttl="1h")
    token = Token(bao_tls.token)
    with (
        VaultSession(bao_tls.address, login=token, ca_file=bao_tls.ca_file, deadline=1) as session,
        DatabaseCredentials(session, path) as credentials,
    ):
        with Client(postgres, credentials) as client:
            bao_tls.seal()
            time.sleep(2)
            bao_tls.unseal()
            time.sleep(4)
        assert (0, []) == (client.refused, client.problems)
        assert 1 == len(client.users)
        bao_tls.seal()
        before = credentials.current()

        def has_expired() -> bool:
            try:
                credentials.current()
            except ServiceUnavailableError as error:
                return "has expired, and there is no other" in str(error)
            return False

        wait_for("the end of the credential", has_expired)
        bao_tls.unseal()
        assert admitted(postgres, changed(credentials, before))
    # The first deadline, and then growing pauses: no storm.
    assert sum("out of service" in each for each in caplog.messages) < 20


@pytest.mark.slow
def test_client_over_a_failover(bao_cluster: Cluster, postgres: Postgres) -> None:
    """Vault's active node is killed in the middle of it all, and the client is never refused."""
    mount = postgres.mount(bao_cluster.active())
    path = mount.make_role("reader", default_ttl="8s", max_ttl="20s")
    # A standby answers reads by itself, and comes to know later what another client has written.
    for node in bao_cluster.nodes:
        wait_for("the role", partial(node.admin.read, path.replace("/creds/", "/roles/")))
    with (
        VaultSession(
            bao_cluster.addresses, login=Token(bao_cluster.token), ca_file=bao_cluster.ca_file
        ) as session,
        DatabaseCredentials(session, path) as credentials,
        Client(postgres, credentials) as client,
    ):
        for _ in range(2):
            time.sleep(2)
            bao_cluster.active().kill()
            time.sleep(8)
            bao_cluster.heal()
    assert (0, []) == (client.refused, client.problems)


# What it refuses, and what it never shows


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        ("creds", ValueError, "not a path"),
        ("/database/creds/reader", ValueError, "not a path"),
        ("database/creds/../x y", ValueError, "not a path"),
        ("database/creds/reader?x=1", ValueError, "not a path"),
        ("{mount}/creds/nobody", CredentialError, "unknown role"),
        ("{mount}/static-creds/nobody", CredentialError, "unknown role"),
        ("nowhere/creds/reader", CredentialError, "no handler for route"),
        ("{mount}/config/postgres", CredentialError, "is no credential"),
        ("sys/mounts", CredentialError, "is no credential"),
    ],
)
def test_path_that_is_none(
    bao: Server, mount: DatabaseMount, path: str, error: type[Exception], match: str
) -> None:
    """A path that gives no credential is refused, with what Vault says."""
    with (
        VaultSession(bao.address, login=Token(bao.token)) as session,
        pytest.raises(error, match=match),
    ):
        DatabaseCredentials(session, path.format(mount=mount.name))


@pytest.mark.parametrize("overlap", [-1, math.nan])
def test_overlap_that_is_none(session: VaultSession, path: str, overlap: float) -> None:
    """An overlap is a time from 0 on."""
    with pytest.raises(ValueError, match="overlap must be seconds"):
        DatabaseCredentials(session, path, overlap=overlap)


def test_forbidden(bao: Server, path: str) -> None:
    """A session whose policies do not allow it gets no credential."""
    other = login(bao, "database/creds/other")
    with (
        VaultSession(bao.address, login=other) as session,
        pytest.raises(AccessDeniedError, match="policies forbid"),
    ):
        DatabaseCredentials(session, path)


def test_closed(session: VaultSession, path: str) -> None:
    """Closed credentials give nothing any more; closing them again does nothing."""
    credentials = DatabaseCredentials(session, path)
    credential = credentials.current()
    credentials.close()
    credentials.close()
    for call in (
        credentials.current,
        credentials.connect_kwargs,
        credentials.status,
        lambda: credentials.replace(credential),
    ):
        with pytest.raises(ValueError, match="the credentials are closed"):
            call()


def test_closed_session(session: VaultSession, path: str) -> None:
    """Where the session was closed before, the credential is left to end by itself."""
    credentials = DatabaseCredentials(session, path)
    session.close()
    renew_now(credentials)
    wait_for("the failure", lambda: credentials.status().problem)
    assert "the session is closed" == credentials.status().problem
    assert 1 == credentials.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork(credentials: DatabaseCredentials, proxy: FaultProxy) -> None:
    """A fork gets no credential, also with a lock held, and takes none from its parent."""
    with credentials._changed:
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for call in (credentials.current, credentials.connect_kwargs, credentials.status):
                with pytest.raises(ForkError):
                    call()
            with pytest.raises(ForkError):
                credentials.replace(credentials._held.credential)
            credentials.close()
            code = 0
        finally:
            os._exit(code)
    assert 0 == os.waitpid(pid, 0)[1]
    assert 0 == count(proxy, "revoke")
    assert not credentials.current().password.closed


def test_nothing_shows_the_password(
    credentials: DatabaseCredentials, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """No text, no copy, no log line and no error shows a password."""
    caplog.set_level(logging.DEBUG)
    credential = credentials.current()
    password = credential.password.expose()
    shown = [repr(credentials), repr(credential), str(credential), str(credentials.status())]
    assert not any(password in text for text in shown)
    for dump in (copy.deepcopy, pickle.dumps):
        for each in (credentials, credential):
            with pytest.raises(TypeError):
                dump(each)
    credentials._session.deadline = 0.1
    proxy.fault("", status=500, body={"errors": [password]})
    with pytest.raises(ServiceUnavailableError) as caught:
        credentials.replace(credential, deadline=0.5)
    credentials._held.expires = 0
    with pytest.raises(ServiceUnavailableError) as expired:
        credentials.current()
    proxy.clear()
    for error in (caught.value, expired.value):
        assert leaks(error, [password]) <= {password}  # which the server itself has said
        assert not leaks(error, [credentials._session.client.token])


# On the command line

LOGIN = """
import os, psycopg
with psycopg.connect() as connection:
    print(connection.execute("SELECT current_user").fetchone()[0])
"""


@pytest.fixture
def environment(
    bao: Server, postgres: Postgres, proxy: FaultProxy, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables that name the Vault, a token under the least policy, and the database."""
    policy = bao.policy(f"cli-{os.urandom(3).hex()}", policy_for(path))
    for name, value in {
        "VAULT_ADDR": proxy.address,
        "VAULT_TOKEN": bao.make_token(policy, no_default_policy=True),
        "PGHOST": postgres.host,
        "PGPORT": str(postgres.port),
        "PGDATABASE": "postgres",
    }.items():
        monkeypatch.setenv(name, value)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(environment: None, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command in this process, and return its exit code and what it and its child printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = app.run(["vault", "credentials", *arguments])
        printed = capfdbinary.readouterr()
        return code, printed.out.decode(), printed.err.decode()

    return run


def test_command(run: Run, mount: DatabaseMount, path: str) -> None:
    """The command logs in by its environment; when it has ended the credential is revoked."""
    code, out, err = run("--json", path, "--", sys.executable, "-c", LOGIN)
    issued, ended = map(json.loads, err.splitlines())
    assert ("issued", "ended") == (issued["event"], ended["event"])
    assert out.strip() == issued["username"] == ended["username"]
    assert (0, 0, 1, 0) == (code, ended["exit_code"], ended["made"], ended["unrevoked"])
    assert 3590 < issued["seconds_left"] <= 3600
    assert [] == mount.leases(role_of(path))
    assert out.strip() not in mount.postgres.roles()


def test_command_gets_other_variables(run: Run, path: str) -> None:
    """The variables can have other names; the password is in no argument and no output of ours."""
    script = 'echo "$DB_USER"; echo "$DB_PASSWORD"; tr "\\0" " " </proc/$PPID/cmdline'
    options = ("--user-env", "DB_USER", "--password-env", "DB_PASSWORD", "--json")
    code, out, err = run(*options, path, "--", "sh", "-c", script)
    username, password, arguments = out.splitlines()
    assert 0 == code
    assert username == json.loads(err.splitlines()[0])["username"]
    assert len(password) >= 20
    assert password not in arguments + err


def test_command_with_a_service_file(run: Run, mount: DatabaseMount, path: str) -> None:
    """The file is in memory, for its owner alone, what libpq reads, and gone in the end."""
    script = f"""{LOGIN}
file = os.environ["PGSERVICEFILE"]
print(file, oct(os.stat(file).st_mode), "PGPASSWORD" in os.environ, "PGUSER" in os.environ)
"""
    code, out, err = run("--service-file", "--json", path, "--", sys.executable, "-c", script)
    username, facts = out.splitlines()
    file, *others = facts.split()
    assert 0 == code
    assert username == json.loads(err.splitlines()[0])["username"]
    assert ["0o100600", "False", "False"] == others
    assert file.startswith("/dev/shm/tapeseal-")
    assert not Path(file).parent.exists()


@pytest.mark.parametrize(("script", "expected"), [("exit 5", 5), ("kill -9 $$", 137)])
def test_exit_code(run: Run, path: str, script: str, expected: int) -> None:
    """The exit code is the command's; 128 and the signal where one has ended it."""
    code, _, err = run(path, "--", "sh", "-c", script)
    assert (expected, "") == (code, err)


@pytest.mark.parametrize(
    ("arguments", "expected", "match"),
    [
        (["{path}", "--", "no-such-command"], 2, "no-such-command: there is no such command"),
        (["{path}"], 2, "Missing argument 'COMMAND...'"),
        (["--service-file", "{path}", "--", "true"], 2, "PGSERVICE is set"),
        (["creds", "--", "true"], 2, "not a path"),
        (["nowhere/creds/reader", "--", "true"], 3, "policies forbid"),
    ],
)
def test_command_that_is_not_run(
    run: Run,
    path: str,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: int,
    match: str,
) -> None:
    """Where the command cannot be run, or gets no credential, none is made."""
    monkeypatch.setenv("PGSERVICE", "trades")
    code, out, err = run(*(each.format(path=path) for each in arguments))
    assert (expected, "") == (code, out)
    assert match in err
    assert 0 == count(proxy, path)


@pytest.mark.parametrize(
    ("username", "password"),
    [("a\nhost=evil", "b"), ("a", "b\nhost=evil"), ("a ", "b"), ("a", "b\t"), ("a", "b\r")],
)
def test_credential_that_no_file_can_hold(tmp_path: Path, username: str, password: str) -> None:
    """A line break would add settings to the service file, and libpq cuts blanks off its lines: it is not written."""
    secret = Secret.take(bytearray(password.encode()))
    with pytest.raises(CredentialError, match="which no service file can hold"):
        leases._write(tmp_path / "file", Credential(username, secret, None))
    assert [] == list(tmp_path.iterdir())


def test_no_memory_for_the_file(
    run: Run, mount: DatabaseMount, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a place in memory for the file the command is not run, and the credential is revoked."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    code, out, err = run("--service-file", path, "--", "echo", "run")
    assert (2, "") == (code, out)
    assert "no place for a file in memory" in err
    assert [] == mount.leases(role_of(path))


def test_command_outlives_its_policy(run: Run, proxy: FaultProxy, path: str) -> None:
    """A lease that cannot be revoked is warned of; the exit code is the command's all the same."""
    proxy.fault("sys/leases/revoke", status=403, body={"errors": ["permission denied"]})
    code, _, err = run(path, "--", "true")
    assert 0 == code
    assert "1 lease not revoked" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(environment: None, mount: DatabaseMount, path: str, number: int) -> None:
    """Signals go to the command; when that has ended, in its own way, the credential is revoked."""
    script = "trap 'exit 7' TERM INT HUP; echo ready; while :; do sleep 0.02; done"
    command = [sys.executable, "-m", "tapeseal", "vault", "credentials", path, "--"]
    # A session of its own has no terminal, whose Ctrl-C would reach the command by itself.
    with subprocess.Popen(
        [*command, "sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert b"ready\n" == process.stdout.readline()
        assert 1 == len(mount.leases(role_of(path)))
        process.send_signal(number)
        assert 7 == process.wait(30)
    assert [] == mount.leases(role_of(path))


@pytest.mark.slow
def test_command_over_max_ttl(run: Run, mount: DatabaseMount, path: str) -> None:
    """A command that reads the service file at each login gets every new credential, and is never refused."""
    mount.make_role(role_of(path), default_ttl="3s", max_ttl="5s")
    script = """
import psycopg, time
end = time.monotonic() + 15
users = []
while time.monotonic() < end:
    with psycopg.connect() as connection:
        user = connection.execute("SELECT current_user").fetchone()[0]
    if user not in users: users.append(user)
    time.sleep(0.02)
print(len(users))
"""
    code, out, err = run("--service-file", "--json", path, "--", sys.executable, "-c", script)
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert 0 == code
    assert 3 <= int(out) <= 6
    assert ["issued", *["replaced"] * (int(out) - 1), "ended"] == events
    wait_for("all leases to be revoked", lambda: [] == mount.leases(role_of(path)))


@pytest.mark.slow
def test_command_keeps_its_variables(run: Run, mount: DatabaseMount, path: str) -> None:
    """What is in variables stays valid up to the max TTL, as nothing could take its place; then that is said."""
    mount.make_role(role_of(path), default_ttl="3s", max_ttl="6s")
    script = """
import psycopg, time
began = time.monotonic()
while True:
    try:
        psycopg.connect().close()
    except psycopg.OperationalError:
        break
    time.sleep(0.02)
print(time.monotonic() - began)
"""
    code, out, err = run(path, "--", sys.executable, "-c", script)
    assert 0 == code
    assert 4.5 < float(out) < 8
    assert "the command goes on with the credential before" in err
