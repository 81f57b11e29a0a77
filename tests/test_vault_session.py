"""VaultSession against real servers: logins, renewal, failover, what it refuses, what it never shows."""

import contextlib
import copy
import gc
import logging
import os
import pickle
import re
import socketserver
import ssl
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hvac
import pytest
from hvac.exceptions import InvalidPath, InvalidRequest

from servers import bao as servers
from servers.bao import Cluster, Server, SingleServer, program, wait_for
from servers.certs import Authority
from servers.fault_proxy import FaultProxy
from servers.jwt import Signer
from servers.kubernetes import TokenReviews
from support import child
from tapeseal.errors import AccessDeniedError, OutcomeUnknownError, ServiceUnavailableError
from tapeseal.transport import Exchange
from tapeseal.vault import (
    AppRole,
    Certificate,
    Jwt,
    Kubernetes,
    Ldap,
    Token,
    TokenFile,
    Userpass,
    VaultSession,
)
from tapeseal.vault.environment import from_environment

PASSWORD = "Tr0ub4dor-and-3"
READER = """
path "secret/data/desk" { capabilities = ["read", "update", "create"] }
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the user's own variables and token file."""
    for name in os.environ:
        if name.startswith(("VAULT_", "BAO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="session")
def server(bao: Server) -> Server:
    """The dev server with a secret, a policy that allows reading it, and the auth methods mounted."""
    bao.admin.secrets.kv.v2.create_or_update_secret("desk", {"book": "eq-us"})
    bao.policy("reader", READER)
    for path, method in {
        "approle": "approle",
        "userpass": "userpass",
        "ldap": "userpass",  # there is no ldap in this server; its face to a client is this one
        "jwt": "jwt",
        "kubernetes": "kubernetes",
    }.items():
        bao.admin.sys.enable_auth_method(method, path=path)
    return bao


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """A proxy before the dev server."""
    with FaultProxy(server.address) as proxy:
        yield proxy


def post(server: Server, path: str, **fields: Any) -> Any:
    """Post with the root token."""
    return server.admin.adapter.post(f"/v1/{path}", json=fields)


def make_user(server: Server, name: str, mount: str = "userpass", **fields: Any) -> Userpass:
    """Make a user whose tokens may read the secret, and return the login."""
    fields = {"password": PASSWORD, "token_policies": ["reader"], **fields}
    post(server, f"auth/{mount}/users/{name}", **fields)
    return Userpass(name, PASSWORD, mount=mount)


def make_role(server: Server, name: str, **fields: Any) -> str:
    """Make an AppRole whose tokens may read the secret, and return its id."""
    post(server, f"auth/approle/role/{name}", **{"token_policies": ["reader"], **fields})
    answer = server.admin.adapter.get(f"/v1/auth/approle/role/{name}/role-id")
    return str(answer["data"]["role_id"])


def make_login(server: Server, name: str, **fields: Any) -> AppRole:
    """Make an AppRole and return its login; it costs the server less than a password."""
    return AppRole(make_role(server, name, **fields), make_secret_id(server, name))


def make_secret_id(server: Server, name: str) -> str:
    """Make a secret id of an AppRole."""
    return str(post(server, f"auth/approle/role/{name}/secret-id")["data"]["secret_id"])


def wrap_secret_id(server: Server, name: str) -> str:
    """Make a secret id of an AppRole, and return the token that wraps it."""
    path = f"/v1/auth/approle/role/{name}/secret-id"
    return str(server.admin.adapter.post(path, wrap_ttl="60s")["wrap_info"]["token"])


def read(client: hvac.Client) -> Any:
    """Read the secret."""
    return client.adapter.get("/v1/secret/data/desk")["data"]["data"]


def accessor(client: hvac.Client) -> str:
    """Return what names the token without being it."""
    return str(client.auth.token.lookup_self()["data"]["accessor"])


def count(proxy: FaultProxy, part: str) -> int:
    """Return how many requests with that in their path the proxy has seen."""
    return sum(part in line for line in proxy.seen)


def renew_now(session: VaultSession) -> None:
    """Let the background find that it is time."""
    assert session._lease is not None
    session._lease.renew_at = 0.0
    session._news.put(None)


# Logins


def by_token(server: Server, directory: Path) -> Any:
    return Token(server.make_token("reader"))


def by_token_file(server: Server, directory: Path) -> Any:
    path = directory / "token"
    path.write_text(f"{server.make_token('reader')}\n")
    return TokenFile(path)


def by_approle(server: Server, directory: Path) -> Any:
    return AppRole(make_role(server, "plain"), make_secret_id(server, "plain"))


def by_approle_file(server: Server, directory: Path) -> Any:
    path = directory / "secret-id"
    role_id = make_role(server, "file")
    path.write_text(make_secret_id(server, "file"))
    return AppRole(role_id, path)


def by_approle_wrapped(server: Server, directory: Path) -> Any:
    role_id = make_role(server, "wrapped")
    return AppRole(role_id, wrap_secret_id(server, "wrapped"), wrapped=True)


def by_approle_alone(server: Server, directory: Path) -> Any:
    return AppRole(make_role(server, "alone", bind_secret_id=False, token_bound_cidrs="127.0.0.1"))


def by_userpass(server: Server, directory: Path) -> Any:
    return make_user(server, "joe")


def by_password_file(server: Server, directory: Path) -> Any:
    make_user(server, "jane.doe")
    path = directory / "password"
    path.write_text(f"{PASSWORD}\n")
    return Userpass("jane.doe", path)


def by_ldap(server: Server, directory: Path) -> Any:
    """A double stands for the method: one of user names and passwords, mounted as ldap, that takes the same request."""
    make_user(server, "jim", "ldap")
    return Ldap("jim", PASSWORD)


def by_jwt(server: Server, directory: Path) -> Any:
    signer = Signer()
    post(server, "auth/jwt/config", jwt_validation_pubkeys=[signer.public_key])
    fields = {"role_type": "jwt", "bound_audiences": ["vault"], "user_claim": "sub"}
    post(server, "auth/jwt/role/recorder", token_policies=["reader"], **fields)
    return Jwt("recorder", signer.sign(sub="recorder", aud=["vault"]))


LOGINS = [
    by_token,
    by_token_file,
    by_approle,
    by_approle_file,
    by_approle_wrapped,
    by_approle_alone,
    by_userpass,
    by_password_file,
    by_ldap,
    by_jwt,
]


@pytest.mark.server
@pytest.mark.parametrize("make", LOGINS)
def test_login(server: Server, tmp_path: Path, make: Callable[..., Any]) -> None:
    """Each login gets a token with the policies of its role, and no others."""
    with VaultSession(server.address, login=make(server, tmp_path)) as session:
        assert {"book": "eq-us"} == session.call(read)
        token = session.call(lambda client: client.auth.token.lookup_self())
        assert {"default", "reader"} == set(token["data"]["policies"])


@pytest.fixture
def cluster_api(server: Server, tmp_path: Path) -> Iterator[tuple[TokenReviews, Path]]:
    """The API of a Kubernetes cluster, and the file of a token of its service account hft/recorder."""
    signer = Signer()
    Authority(tmp_path / "kubernetes")
    with TokenReviews() as reviews:
        path = tmp_path / "service-account"
        token = signer.service_account("hft", "recorder")
        path.write_text(reviews.issue("hft", "recorder", token))
        post(
            server,
            "auth/kubernetes/config",
            kubernetes_host=reviews.address,
            kubernetes_ca_cert=(tmp_path / "kubernetes" / "ca.pem").read_text(),
            token_reviewer_jwt=signer.service_account("kube-system", "vault"),
            disable_local_ca_jwt=True,
        )
        post(
            server,
            "auth/kubernetes/role/recorder",
            bound_service_account_names=["recorder"],
            bound_service_account_namespaces=["hft"],
            token_policies=["reader"],
        )
        yield reviews, path


@pytest.mark.server
def test_login_by_kubernetes(server: Server, cluster_api: tuple[TokenReviews, Path]) -> None:
    """A pod logs in by its service account's token, also after Kubernetes has replaced that in its file."""
    reviews, path = cluster_api
    with VaultSession(server.address, login=Kubernetes("recorder", path)) as session:
        assert {"book": "eq-us"} == session.call(read)
        reviews.withdraw(path.read_text())
        path.write_text(
            reviews.issue("hft", "recorder", Signer().service_account("hft", "recorder"))
        )
        session.client.auth.token.revoke_self()
        assert {"book": "eq-us"} == session.call(read)


@pytest.mark.server
def test_kubernetes_api_down(server: Server, cluster_api: tuple[TokenReviews, Path]) -> None:
    """Vault cannot tell an outage of Kubernetes from a refusal; when it is over, the next call logs in."""
    reviews, path = cluster_api
    with VaultSession(server.address, login=Kubernetes("recorder", path)) as session:
        reviews.down = True
        with pytest.raises(AccessDeniedError, match="auth/kubernetes/login was refused"):
            session.call(read)
        reviews.down = False
        assert {"book": "eq-us"} == session.call(read)


@pytest.fixture(scope="session")
def certificates(bao_tls: SingleServer) -> Path:
    """The TLS server's directory of certificates, where it knows its client's."""
    directory = bao_tls.directory / "tls"
    bao_tls.admin.sys.enable_auth_method("cert")
    bao_tls.policy("reader", READER)
    post(
        bao_tls,
        "auth/cert/certs/recorder",
        certificate=(directory / "ca.pem").read_text(),
        allowed_common_names=["client"],
        token_policies=["reader"],
    )
    return directory


def tls_session(server: Server, login: Any, **options: Any) -> VaultSession:
    """Open a session with the TLS server."""
    return VaultSession(server.address, login=login, **{"ca_file": server.ca_file, **options})


@pytest.mark.server
@pytest.mark.parametrize("role", [None, "recorder"])
def test_login_by_certificate(bao_tls: SingleServer, certificates: Path, role: str | None) -> None:
    """The client certificate of the session is a login too."""
    pair = (certificates / "client.pem", certificates / "client.key")
    with tls_session(bao_tls, Certificate(role), client_certificate=pair) as session:
        token = session.call(lambda client: client.auth.token.lookup_self())
        assert ["default", "reader"] == token["data"]["policies"]


@pytest.mark.server
def test_login_without_certificate(bao_tls: SingleServer, certificates: Path) -> None:
    """Without the certificate the login is refused."""
    with (
        tls_session(bao_tls, Certificate()) as session,
        pytest.raises(AccessDeniedError, match="auth/cert/login was refused"),
    ):
        session.call(read)


@pytest.mark.server
def test_wrapped_secret_id_is_kept(server: Server) -> None:
    """What was unwrapped serves for later logins."""
    login = AppRole(make_role(server, "kept"), wrap_secret_id(server, "kept"), wrapped=True)
    with VaultSession(server.address, login=login) as session:
        session.client.auth.token.revoke_self()
        assert {"book": "eq-us"} == session.call(read)


@pytest.mark.server
def test_new_wrapped_secret_id(server: Server, tmp_path: Path) -> None:
    """A new wrapping token in the file is unwrapped at the next login."""
    path = tmp_path / "wrapped"
    login = AppRole(make_role(server, "renewed"), path, wrapped=True)
    path.write_text(wrap_secret_id(server, "renewed"))
    with VaultSession(server.address, login=login) as session:
        assert {"book": "eq-us"} == session.call(read)
        secret_ids = "/v1/auth/approle/role/renewed/secret-id"
        for name in server.admin.adapter.list(secret_ids)["data"]["keys"]:
            post(
                server,
                "auth/approle/role/renewed/secret-id-accessor/destroy",
                secret_id_accessor=name,
            )
        session.client.auth.token.revoke_self()
        with pytest.raises(AccessDeniedError, match="auth/approle/login was refused"):
            session.call(read)
        path.write_text(wrap_secret_id(server, "renewed"))
        assert {"book": "eq-us"} == session.call(read)


@pytest.mark.server
def test_intercepted_secret_id(server: Server) -> None:
    """A wrapping token that somebody else has used raises the alarm."""
    role_id, token = make_role(server, "stolen"), wrap_secret_id(server, "stolen")
    thief = hvac.Client(server.address, token=token)
    assert thief.sys.unwrap()["data"]["secret_id"]
    thief.adapter.close()
    with (
        VaultSession(server.address, login=AppRole(role_id, token, wrapped=True)) as session,
        pytest.raises(AccessDeniedError, match=r"ALARM: the wrapping token .* is spent or expired"),
    ):
        session.call(read)


@pytest.mark.server
def test_replaced_wrapping_token(server: Server) -> None:
    """A wrapping token that was made by anything but the role's secret id is refused, unopened."""
    role_id = make_role(server, "replaced")
    answer = server.admin.adapter.post(
        "/v1/sys/wrapping/wrap", json={"secret_id": "forged"}, wrap_ttl="60s"
    )
    token = answer["wrap_info"]["token"]
    with (
        VaultSession(server.address, login=AppRole(role_id, token, wrapped=True)) as session,
        pytest.raises(AccessDeniedError, match=r"ALARM: .* somebody has replaced it"),
    ):
        session.call(read)
    assert {"secret_id": "forged"} == server.admin.sys.unwrap(token)["data"]


@pytest.mark.server
def test_lost_answer_to_unwrapping(server: Server, proxy: FaultProxy) -> None:
    """An unwrapping whose answer was lost is no alarm, and is not asked for twice in one call."""
    role_id, token = make_role(server, "lost"), wrap_secret_id(server, "lost")
    proxy.fault("wrapping/unwrap", reset="after", times=1)
    with (
        VaultSession(proxy.address, login=AppRole(role_id, token, wrapped=True)) as session,
        pytest.raises(ServiceUnavailableError, match="unknown, so it is not asked again"),
    ):
        session.call(read)
    assert 1 == count(proxy, "wrapping/unwrap")


@pytest.mark.server
def test_token_file_changes(server: Server, tmp_path: Path) -> None:
    """The next call after a token file was written uses what is in it."""
    path = tmp_path / "token"
    path.write_text(server.make_token("reader"))
    with VaultSession(server.address, login=TokenFile(path)) as session:
        first = session.call(accessor)
        path.write_text(server.make_token("reader"))
        assert first != session.call(accessor)
        assert session.call(accessor) == accessor(session.client)


@pytest.mark.server
def test_token_file_is_written(server: Server, tmp_path: Path) -> None:
    """A token file that is empty for a moment, gone, or written again with the same token, changes nothing."""
    path = tmp_path / "token"
    path.write_text(token := server.make_token("reader"))
    with VaultSession(server.address, login=TokenFile(path)) as session:
        first = session.call(accessor)
        path.write_text("")
        assert first == session.call(accessor)
        path.write_text(f"{token}\n")
        assert first == session.call(accessor)
        path.unlink()
        assert first == session.call(accessor)


@pytest.mark.server
@pytest.mark.parametrize("content", [None, "", " \n", b"\xff\xfe", "hvs.one\nhvs.two"])
def test_bad_token_file(server: Server, tmp_path: Path, content: str | bytes | None) -> None:
    """A token file that is absent, empty, binary or has several lines is named, and its content is not."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with (
        VaultSession(server.address, login=TokenFile(path)) as session,
        pytest.raises(AccessDeniedError) as caught,
    ):
        session.call(read)
    assert str(path) in str(caught.value)
    assert "hvs." not in str(caught.value)


@pytest.mark.server
def test_token_without_a_right_to_look_at_itself(server: Server) -> None:
    """A token that may do its work and nothing else is enough."""
    token = server.make_token("reader", no_default_policy=True)
    with VaultSession(server.address, login=Token(token)) as session:
        assert {"book": "eq-us"} == session.call(read)


@pytest.mark.server
def test_namespace(server: Server) -> None:
    """Login and calls go to the session's namespace."""
    post(server, "sys/namespaces/team1")
    team = hvac.Client(server.address, token=server.token, namespace="team1")
    team.sys.enable_auth_method("approle")
    team.sys.enable_secrets_engine("kv", path="own", options={"version": "1"})
    team.secrets.kv.v1.create_or_update_secret("desk", {"book": "team1"}, mount_point="own")
    team.sys.create_or_update_policy("own", 'path "own/desk" { capabilities = ["read"] }')
    path = "/v1/auth/approle/role/recorder"
    team.adapter.post(path, json={"token_policies": ["own"]})
    role_id = team.adapter.get(f"{path}/role-id")["data"]["role_id"]
    token = team.adapter.post(f"{path}/secret-id", wrap_ttl="60s")["wrap_info"]["token"]
    team.adapter.close()
    login = AppRole(role_id, token, wrapped=True)
    with VaultSession(server.address, login=login, namespace="team1") as session:
        assert {"book": "team1"} == session.call(lambda c: c.adapter.get("/v1/own/desk")["data"])


# Renewal


@pytest.mark.server
def test_renewal(server: Server, proxy: FaultProxy) -> None:
    """The background renews a token for as long as its server does."""
    with VaultSession(
        proxy.address, login=make_login(server, "renewing", token_ttl="1s")
    ) as session:
        first = session.call(accessor)
        wait_for("two renewals", lambda: count(proxy, "renew-self") >= 2)
        assert first == session.call(accessor)
    assert 1 == count(proxy, "login")


@pytest.mark.server
def test_new_login_at_max_ttl(server: Server, proxy: FaultProxy) -> None:
    """Where a token is renewed for less than before, the session logs in anew, before it has expired."""
    login = make_login(server, "ageing", token_ttl="2s", token_max_ttl="2s")
    with VaultSession(proxy.address, login=login) as session:
        first = session.call(accessor)
        wait_for("a new login", lambda: count(proxy, "login") >= 2)
        wait_for("its token", lambda: session.call(accessor) != first)
    assert 0 < count(proxy, "renew-self") <= count(proxy, "login")


@pytest.mark.server
def test_renewal_that_fails(server: Server, proxy: FaultProxy) -> None:
    """A renewal that the server cannot do, as at the end of the max TTL, is made up for by a new login at once."""
    with VaultSession(proxy.address, login=make_login(server, "old", token_ttl="1h")) as session:
        first = session.call(accessor)
        ended = {"errors": ["1 error occurred: past the max TTL, cannot renew"]}
        proxy.fault("renew-self", status=500, body=ended)
        renew_now(session)
        wait_for("a new login", lambda: session.call(accessor) != first)
    assert 1 == count(proxy, "renew-self")


@pytest.mark.server
def test_batch_tokens(server: Server, proxy: FaultProxy) -> None:
    """A batch token, which cannot be renewed, is replaced by a new login in time."""
    login = make_login(server, "batch", token_ttl="1s", token_type="batch")
    with VaultSession(proxy.address, login=login) as session:
        assert {"book": "eq-us"} == session.call(read)
        wait_for("new logins", lambda: count(proxy, "login") >= 2)
        assert {"book": "eq-us"} == session.call(read)
    assert 0 == count(proxy, "renew-self")


@pytest.mark.server
def test_token_is_kept_while_vault_is_away(
    server: Server, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that fails does not cost the token, is logged, and is made up for."""
    login = make_login(server, "waiting", token_ttl="1h")
    with VaultSession(proxy.address, login=login) as session:
        first = session.call(accessor)
        session.deadline = 0.2
        proxy.fault("renew-self|login", status=503, body={"errors": ["Vault is sealed"]})
        renew_now(session)
        wait_for("a log line", lambda: "the present token has" in caplog.text)
        assert first == session.call(accessor, deadline=10)
        proxy.clear()
        session.deadline = 10
        wait_for("the renewal", lambda: session._lease and session._lease.renew_at > 0)
        assert first == session.call(accessor)


@pytest.mark.server
def test_expired_while_vault_was_away(server: Server, proxy: FaultProxy) -> None:
    """Once the token has expired, calls fail as Vault is away, and log in when it is back."""
    login = make_login(server, "expiring", token_ttl="1h")
    with VaultSession(proxy.address, login=login) as session:
        session.call(read)
        proxy.refuse()
        assert session._lease is not None
        session._lease.expires = 0.0
        with pytest.raises(ServiceUnavailableError, match="refuses connections"):
            session.call(read, deadline=1.0)
        proxy.accept()
        assert {"book": "eq-us"} == session.call(read)
    assert 2 == count(proxy, "login")


@pytest.mark.server
@pytest.mark.parametrize("renewable", [True, False])
def test_token_that_ends(server: Server, caplog: pytest.LogCaptureFixture, renewable: bool) -> None:
    """A token that cannot be replaced is used to its end, which is announced and then said."""
    token = server.make_token("reader", ttl="1s", explicit_max_ttl="1s", renewable=renewable)
    with VaultSession(server.address, login=Token(token)) as session:
        assert {"book": "eq-us"} == session.call(read)

        def ended() -> bool:
            try:
                session.call(read)
            except AccessDeniedError as error:
                return "the token is no longer valid" in str(error)
            return False

        wait_for("the end of the token", ended)
        wait_for("the log line", lambda: "cannot be renewed any further" in caplog.text)


# Policies, and tokens that end


def documented(role: str) -> str:
    """Return the policy that docs/vault.md gives for a role."""
    path = Path(__file__).parents[1] / "docs" / "vault.md"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside these tests")
    found = re.search(rf"\*\*{role}\*\*.*?```hcl\n(.*?)```", path.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.server
def test_least_policy_of_a_session(server: Server, proxy: FaultProxy) -> None:
    """The documented policy suffices for all that a session does by itself."""
    server.policy("session", documented("session"))
    login = make_login(
        server,
        "least",
        token_ttl="1h",
        token_no_default_policy=True,
        token_policies=["reader", "session"],
    )
    with VaultSession(proxy.address, login=login) as session:
        name = session.call(accessor)
        renew_now(session)
        wait_for("the renewal", lambda: session._lease and session._lease.renew_at > 0)
        with pytest.raises(AccessDeniedError, match="its policies forbid this"):
            session.call(lambda client: client.sys.list_mounted_secrets_engines())
        assert name == session.call(accessor)
        session.close(revoke=True)
    assert ["login", "renew-self"] == [p for p in ("login", "renew-self") if count(proxy, p) == 1]
    with pytest.raises(InvalidRequest, match="invalid accessor"):
        server.admin.auth.token.lookup_accessor(name)


@pytest.mark.server
def test_least_policy_of_a_deployer(server: Server) -> None:
    """The documented policy lets wrapped secret ids be made, and none be seen."""
    role_id = make_role(server, "recorder")
    token = server.make_token(server.policy("deployer", documented("deployer")))
    with VaultSession(server.address, login=Token(token)) as session:
        path = "/v1/auth/approle/role/recorder"
        assert (
            role_id == session.call(lambda c: c.adapter.get(f"{path}/role-id"))["data"]["role_id"]
        )
        with pytest.raises(AccessDeniedError, match="its policies forbid this"):
            session.call(lambda c: c.adapter.post(f"{path}/secret-id"))
        wrapped = session.call(lambda c: c.adapter.post(f"{path}/secret-id", wrap_ttl="60s"))
    login = AppRole(role_id, wrapped["wrap_info"]["token"], wrapped=True)
    with VaultSession(server.address, login=login) as session:
        assert {"book": "eq-us"} == session.call(read)


@pytest.mark.server
def test_policy_without_lookup(server: Server, proxy: FaultProxy) -> None:
    """A token that may not look at itself is taken for a dead one, once in a call."""
    login = make_login(server, "blind", token_no_default_policy=True)
    with VaultSession(proxy.address, login=login) as session:
        session.call(read)
        with pytest.raises(AccessDeniedError, match="its policies forbid this"):
            session.call(lambda client: client.sys.list_mounted_secrets_engines())
    assert 2 == count(proxy, "login")


@pytest.mark.server
def test_revoked_token_is_replaced(server: Server) -> None:
    """A call with a token that was revoked succeeds, by a new login."""
    tries = []

    def counted(client: hvac.Client) -> Any:
        tries.append(client.token)
        return read(client)

    with VaultSession(server.address, login=make_login(server, "revoked")) as session:
        server.admin.auth.token.revoke_accessor(session.call(accessor))
        assert {"book": "eq-us"} == session.call(counted, idempotent=False)
    assert 2 == len(set(tries))


@pytest.mark.server
def test_used_up_token_is_replaced(server: Server) -> None:
    """So does one with a token that may be used only so often."""
    with VaultSession(server.address, login=make_login(server, "few", token_num_uses=2)) as session:
        assert [{"book": "eq-us"}] * 7 == [session.call(read) for _ in range(7)]


@pytest.mark.server
def test_policy(server: Server, proxy: FaultProxy) -> None:
    """What a policy forbids is said to be that, and costs no new login."""
    with VaultSession(proxy.address, login=make_login(server, "curious")) as session:
        with pytest.raises(AccessDeniedError, match=r"GET sys/mounts .* its policies forbid this"):
            session.call(lambda client: client.sys.list_mounted_secrets_engines())
        assert {"book": "eq-us"} == session.call(read)
    assert 1 == count(proxy, "login")


@pytest.mark.server
def test_many_threads_log_in_once(server: Server, proxy: FaultProxy) -> None:
    """Threads that find a token revoked at the same time cause one login."""
    with (
        VaultSession(proxy.address, login=make_login(server, "crowd")) as session,
        ThreadPoolExecutor(8) as pool,
    ):
        server.admin.auth.token.revoke_accessor(session.call(accessor))
        answers = list(pool.map(lambda _: session.call(read), range(40)))
    assert [{"book": "eq-us"}] * 40 == answers
    assert 2 == count(proxy, "login")


# Failures and failover


FAULTS = {
    "standby": {"status": 429, "body": {"errors": []}},
    "recovery standby": {"status": 472, "body": {}},
    "performance standby": {"status": 473, "body": {}},
    "behind": {"status": 412, "body": {"errors": ["required index state not present"]}},
    "sealed": {"status": 503, "body": {"errors": ["Vault is sealed"]}},
    "new": {"status": 501, "body": {"errors": ["not initialized"]}},
    "no leader": {
        "status": 500,
        "body": {"errors": ["local node not active but active cluster node not found"]},
    },
}
BROKEN = {
    "reset": {"reset": "before"},
    "lost": {"reset": "after"},
    "cut": {"truncate": 20},
    "silent": {"hang": True},
    "failed": {"status": 500, "body": {"errors": ["leadership lost while committing log"]}},
    "gateway": {"status": 502, "body": b"<html>bad gateway</html>"},
    "no backend": {"status": 503, "body": b"upstream connect error"},
    "gateway timeout": {"status": 504, "body": b""},
}


@pytest.mark.server
@pytest.mark.parametrize("fault", [*FAULTS, *BROKEN])
def test_failover(server: Server, proxy: FaultProxy, fault: str) -> None:
    """Whatever is wrong with one node, the next one serves the call."""
    login = Token(server.make_token("reader"))
    addresses = [proxy.address, server.address]
    timeout = 0.3 if fault == "silent" else None
    with VaultSession(addresses, login=login, timeout=timeout) as session:
        proxy.fault("secret/data", **{**FAULTS, **BROKEN}[fault])
        assert {"book": "eq-us"} == session.call(read)
        seen = list(proxy.seen)
        assert {"book": "eq-us"} == session.call(read)
        assert seen == proxy.seen
        assert server.address == session.client.url


@pytest.mark.server
@pytest.mark.parametrize("fault", FAULTS)
def test_failover_of_what_must_not_happen_twice(
    server: Server, proxy: FaultProxy, fault: str
) -> None:
    """A node that certainly did nothing is passed over for any call."""
    login = Token(server.make_token("reader"))
    with VaultSession([proxy.address, server.address], login=login) as session:
        proxy.fault("secret/data", **FAULTS[fault])
        assert {"book": "eq-us"} == session.call(read, idempotent=False)


@pytest.mark.server
@pytest.mark.parametrize("fault", BROKEN)
def test_unknown_outcome(server: Server, proxy: FaultProxy, fault: str) -> None:
    """Where a node may have done what must not happen twice, no other is asked to."""
    login = Token(server.make_token("reader"))
    version = server.admin.secrets.kv.v2.read_secret_metadata("desk")["data"]["current_version"]
    proxy.fault("secret/data", **BROKEN[fault])
    timeout = 0.3 if fault == "silent" else None
    with (
        VaultSession([proxy.address, server.address], login=login, timeout=timeout) as session,
        pytest.raises(ServiceUnavailableError, match="unknown, so it is not asked again"),
    ):
        session.call(
            lambda client: client.adapter.post(
                "/v1/secret/data/desk", json={"data": {"book": "eq-us"}}
            ),
            idempotent=False,
        )
    after = server.admin.secrets.kv.v2.read_secret_metadata("desk")["data"]["current_version"]
    assert after - version <= 1
    assert 1 == count(proxy, "POST /v1/secret")


@pytest.mark.server
def test_unknown_outcome_outside_of_an_exception(server: Server, proxy: FaultProxy) -> None:
    """That the caller is handling a refused connection says nothing about the call made meanwhile."""
    login = Token(server.make_token("reader"))
    proxy.fault("secret/data", reset="after")
    with VaultSession([proxy.address, server.address], login=login) as session:
        try:
            raise ConnectionRefusedError
        except ConnectionRefusedError:
            with pytest.raises(ServiceUnavailableError, match="it is not asked again"):
                session.call(read, idempotent=False)


@pytest.mark.server
def test_refused_connection(server: Server) -> None:
    """A node that is down is passed over, for any call."""
    down = f"http://127.0.0.1:{servers.free_ports(1)}"
    login = Token(server.make_token("reader"))
    with VaultSession([down, server.address], login=login) as session:
        assert {"book": "eq-us"} == session.call(read, idempotent=False)


@pytest.mark.server
def test_redirect_to_a_node_of_ours(server: Server, proxy: FaultProxy) -> None:
    """A redirect to one of the addresses is followed, with what was posted."""
    with VaultSession([proxy.address, server.address], login=Token(server.token)) as session:
        where = {"Location": f"{server.address}/v1/sys/wrapping/wrap"}
        proxy.fault("wrapping/wrap", status=307, headers=where)
        answer = session.call(
            lambda c: c.adapter.post("/v1/sys/wrapping/wrap", json={"a": "b"}, wrap_ttl="10s"),
            idempotent=False,
        )
        assert {"a": "b"} == session.call(lambda c: c.sys.unwrap(answer["wrap_info"]["token"]))[
            "data"
        ]


@pytest.mark.server
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_elsewhere(server: Server, proxy: FaultProxy, status: int) -> None:
    """A redirect to anywhere else is not followed: it would take the token along."""
    with FaultProxy(server.address) as stranger:
        where = {"Location": f"{stranger.address}/v1/secret/data/desk"}
        proxy.fault("secret/data", status=status, headers=where)
        with VaultSession(proxy.address, login=Token(server.token)) as session:
            session.call(accessor)
            with pytest.raises(ServiceUnavailableError, match="sends us elsewhere"):
                session.call(read, deadline=1.0)
            with pytest.raises(hvac.exceptions.VaultError):
                read(session.client)
        assert [] == stranger.seen


@pytest.mark.server
def test_deadline(server: Server, proxy: FaultProxy) -> None:
    """A call is repeated until its deadline, and then says what every node's trouble was."""
    down = f"http://127.0.0.1:{servers.free_ports(1)}"
    with VaultSession([proxy.address, down], login=Token(server.token)) as session:
        session.call(read)
        proxy.clear()
        proxy.fault("secret/data", status=503, body={"errors": ["Vault is sealed"]})
        with pytest.raises(ServiceUnavailableError) as caught:
            session.call(read, deadline=0.5)
    assert count(proxy, "secret/data") > 2
    text = str(caught.value)
    assert f"{proxy.address} is out of service (503): Vault is sealed" in text
    assert f"{down} refuses connections" in text


@pytest.mark.server
def test_deadline_during_a_try(server: Server, proxy: FaultProxy) -> None:
    """Where the time runs out while a node is silent, what it said before is the trouble that is told."""
    with VaultSession(proxy.address, login=Token(server.token)) as session:
        session.call(read)
        proxy.fault("secret/data", hang=True)
        proxy.fault("secret/data", status=503, body={"errors": ["Vault is sealed"]}, times=1)
        with pytest.raises(ServiceUnavailableError, match=r"\(503\): Vault is sealed"):
            session.call(read, deadline=1.0)


@pytest.fixture
def drip() -> Iterator[str]:
    """The address of a server that never ends its answer, and never stops sending."""
    stop = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(1 << 16)
                self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n{")
                while not stop.wait(0.05):
                    self.request.sendall(b" ")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as service:
        service.daemon_threads = True
        threading.Thread(target=service.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{service.server_address[1]}"
        stop.set()
        service.shutdown()


@pytest.mark.parametrize("login", [Token("s.x"), Userpass("u", "p")], ids=["look up", "log in"])
@pytest.mark.parametrize("secret", [True, False])
def test_an_answer_without_end(drip: str, login: Any, secret: bool) -> None:
    """A server that sends a byte now and then keeps nobody past the deadline, with secrets in the answer or without."""
    with VaultSession(drip, login=login, deadline=0.5) as session:

        def get() -> object:
            if secret:
                return session.request("GET", "secret/data/desk", secret=["data.data.*"])
            return session.call(read)

        with pytest.raises(ServiceUnavailableError, match="gives no answer in time"):
            get()


@pytest.mark.server
def test_what_must_not_happen_twice_on_a_kept_connection(server: Server, proxy: FaultProxy) -> None:
    """Where a kept connection breaks under a write, it is not sent again on another one."""
    login = Token(server.make_token("reader"))

    def write(client: hvac.Client) -> object:
        return client.adapter.post("/v1/secret/data/desk", json={"data": {"book": "eq-us"}})

    with VaultSession(proxy.address, login=login) as session:
        session.call(write)
        proxy.fault("POST /v1/secret/data", reset="after", times=1)
        seen = count(proxy, "POST /v1/secret")
        with pytest.raises(OutcomeUnknownError):
            session.call(write, idempotent=False)
        assert seen + 1 == count(proxy, "POST /v1/secret")


@pytest.mark.server
def test_overload_passes(server: Server, proxy: FaultProxy) -> None:
    """A call that is one too many is repeated a little later, be there one address only."""
    with VaultSession(proxy.address, login=Token(server.token)) as session:
        limit = {"errors": ["rate limit quota exceeded"]}
        proxy.fault("secret/data", status=429, body=limit, headers={"Retry-After": "0"}, times=3)
        assert {"book": "eq-us"} == session.call(read, idempotent=False)


@pytest.mark.server
def test_sealed(bao_tls: SingleServer) -> None:
    """A sealed Vault is out of service until it is unsealed."""
    with tls_session(bao_tls, Token(bao_tls.token)) as session:
        assert accessor(session.client)
        bao_tls.seal()
        try:
            with pytest.raises(ServiceUnavailableError, match="is sealed"):
                session.call(accessor, deadline=1.0)
        finally:
            bao_tls.unseal()
        assert session.call(accessor)


@pytest.mark.server
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"auth": null}', b'{"auth": {}}'])
def test_answer_without_a_token(server: Server, proxy: FaultProxy, body: bytes) -> None:
    """A login that is answered by something else is no login."""
    proxy.fault("login", status=200, body=body)
    with (
        VaultSession(proxy.address, login=make_login(server, "answered")) as session,
        pytest.raises(ServiceUnavailableError, match="answer"),
    ):
        session.call(read)


@pytest.mark.server
@pytest.mark.parametrize("duration", ["null", '"1h"', "-1", "1e300", "true"])
def test_answer_with_a_strange_duration(server: Server, proxy: FaultProxy, duration: str) -> None:
    """Nor is one whose token lasts for no time that there is."""
    body = b'{"auth": {"client_token": "s.x", "renewable": true, "lease_duration": %s}}'
    proxy.fault("login", status=200, body=body % duration.encode())
    with (
        VaultSession(proxy.address, login=make_login(server, "strange")) as session,
        pytest.raises(ServiceUnavailableError, match="no time to live"),
    ):
        session.call(read)


@pytest.mark.server
def test_second_factor(server: Server, proxy: FaultProxy) -> None:
    """A login that asks for a second factor is refused as such."""
    proxy.fault(
        "login",
        status=200,
        body={"auth": {"client_token": "", "mfa_requirement": {"mfa_request_id": "1"}}},
    )
    with (
        VaultSession(proxy.address, login=make_login(server, "factor")) as session,
        pytest.raises(AccessDeniedError, match="second factor"),
    ):
        session.call(read)


@pytest.mark.server
def test_answers_are_the_callers(server: Server) -> None:
    """What is wrong with the request itself comes as hvac's exception, without the body of the answer."""
    with VaultSession(server.address, login=Token(server.token)) as session:
        with pytest.raises(InvalidPath) as missing:
            session.call(lambda client: client.adapter.get("/v1/secret/data/none"))
        with pytest.raises(InvalidRequest, match="is not valid") as invalid:
            session.call(lambda client: client.adapter.post("/v1/sys/wrapping/lookup"))
    assert [None, None] == [missing.value.text, invalid.value.text]


# TLS


@pytest.mark.server
def test_certificate_of_another_authority(
    bao_tls: SingleServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that the CA file does not vouch for is not talked to, whatever the environment trusts."""
    other = Authority(tmp_path / "other").ca_file
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(bao_tls.ca_file))
    with (
        tls_session(bao_tls, Token(bao_tls.token), ca_file=other) as session,
        pytest.raises(ServiceUnavailableError, match="certificate that is not trusted"),
    ):
        session.call(accessor)


@pytest.fixture
def elsewhere(bao_tls: SingleServer, tmp_path: Path) -> Iterator[tuple[FaultProxy, str]]:
    """The TLS server behind a certificate that is right, but of the host vault.test; and its CA."""
    authority = Authority(tmp_path / "elsewhere")
    pair = authority.issue_server("vault.test")
    with FaultProxy(bao_tls.address, bao_tls.ca_file, pair) as proxy:
        yield proxy, authority.ca_file


@pytest.mark.server
def test_certificate_of_another_host(elsewhere: tuple[FaultProxy, str]) -> None:
    """Nor is one whose certificate is another host's."""
    proxy, ca_file = elsewhere
    with (
        VaultSession(proxy.address, login=Token("s.x"), ca_file=ca_file) as session,
        pytest.raises(
            ServiceUnavailableError, match=r"not trusted: .* certificate is not valid for"
        ),
    ):
        session.call(accessor)
    assert [] == proxy.seen


@pytest.mark.server
@pytest.mark.parametrize("protected", [False, True])
def test_server_name(
    bao_tls: SingleServer,
    elsewhere: tuple[FaultProxy, str],
    monkeypatch: pytest.MonkeyPatch,
    protected: bool,
) -> None:
    """The host that certificates must hold may be said to be another than the address's."""
    proxy, ca_file = elsewhere
    monkeypatch.setenv("VAULT_TLS_SERVER_NAME", "vault.test")
    with (
        VaultSession(proxy.address, login=Token(bao_tls.token), ca_file=ca_file) as session,
    ):
        session.call(in_exchange(accessor) if protected else accessor)


def in_exchange(function: Callable[[hvac.Client], Any]) -> Callable[[hvac.Client], Any]:
    """Have a call go the way of those with secrets in them."""

    def protected(client: hvac.Client) -> Any:
        with Exchange():
            return function(client)

    return protected


@pytest.mark.server
@pytest.mark.parametrize("fault", [None, "refused", "not trusted", *FAULTS, *BROKEN])
def test_calls_with_secrets(bao_tls: SingleServer, tmp_path: Path, fault: str | None) -> None:
    """Calls in an Exchange, which have their own HTTP, are checked and fail over like the others."""
    tls = bao_tls.directory / "tls"
    pair = (str(tls / "server.pem"), str(tls / "server.key"))
    other = Authority(tmp_path / "other").issue_server()
    proxy_pair = other if fault == "not trusted" else pair
    with FaultProxy(bao_tls.address, bao_tls.ca_file, proxy_pair) as proxy:
        addresses = [proxy.address, bao_tls.address]
        timeout = 0.3 if fault == "silent" else None
        with tls_session(bao_tls, Token(bao_tls.token), timeout=timeout) as session:
            session.call(accessor)
            session.addresses = tuple(addresses)
            if fault == "refused":
                proxy.refuse()
            elif fault in FAULTS or fault in BROKEN:
                proxy.fault("lookup-self", **{**FAULTS, **BROKEN}[str(fault)])
            if fault in BROKEN:
                with pytest.raises(ServiceUnavailableError, match="it is not asked again"):
                    session.call(in_exchange(accessor), idempotent=False)
                session._preferred = 0
                assert session.call(in_exchange(accessor))
            else:
                assert session.call(in_exchange(accessor), idempotent=False)
        assert fault in ("refused", "not trusted") or 0 < len(proxy.seen)


@pytest.mark.server
def test_ca_directory(bao_tls: SingleServer, tmp_path: Path) -> None:
    """A directory of CA files need not be one that OpenSSL has hashed."""
    directory = tmp_path / "authorities"
    directory.mkdir()
    (directory / "first.pem").write_bytes(Path(Authority(tmp_path / "other").ca_file).read_bytes())
    (directory / "second.pem").write_bytes(Path(str(bao_tls.ca_file)).read_bytes())
    with tls_session(bao_tls, Token(bao_tls.token), ca_file=directory) as session:
        assert session.call(accessor)


@pytest.mark.server
def test_old_tls(tmp_path: Path) -> None:
    """A server without TLS 1.3 is not talked to, unless that is wished."""
    with servers.tls_server(tmp_path, tls="tls12") as old:
        with (
            tls_session(old, Token(old.token), deadline=1.0) as session,
            pytest.raises(ServiceUnavailableError, match="does not agree on TLS"),
        ):
            session.call(accessor)
        with tls_session(old, Token(old.token), minimum_tls=ssl.TLSVersion.TLSv1_2) as session:
            assert session.call(accessor)


@pytest.mark.server
def test_unknown_host() -> None:
    """A host that does not exist is said to be that."""
    with (
        VaultSession("https://vault.invalid:8200", login=Token("s.x"), deadline=1.0) as session,
        pytest.raises(
            ServiceUnavailableError, match=r"https://vault\.invalid:8200 is no known host"
        ),
    ):
        session.call(accessor)


@pytest.mark.parametrize(
    "address",
    [
        "http://vault.example:8200",
        "http://127.0.0.1.example:8200",
        "vault.example:8200",
        "unix:///run/vault.sock",
        "https://",
        "https://user:password@vault.example",
    ],
)
def test_bad_address(address: str) -> None:
    """An address must be one of https://, or of this machine itself; an error does not repeat it."""
    with pytest.raises(ValueError, match="the address of") as caught:
        VaultSession(address, login=Token("s.x"))
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("what", ["ca_file", "client_certificate"])
@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_bad_certificate_file(tmp_path: Path, what: str, content: bytes | None) -> None:
    """A file that holds no certificate is named."""
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pem cannot be used"):
        VaultSession("https://vault.example", login=Token("s.x"), **{what: path})


# The environment


ENVIRONMENTS = {
    "defaults": ({}, {"addresses": ["https://127.0.0.1:8200"], "login": TokenFile()}),
    "vault": (
        {"VAULT_ADDR": "https://v:8200", "VAULT_TOKEN": "s.v", "VAULT_NAMESPACE": "team1"},
        {"addresses": ["https://v:8200"], "login": Token("s.v"), "namespace": "team1"},
    ),
    "bao first": (
        {"VAULT_ADDR": "https://v", "BAO_ADDR": "https://b", "VAULT_TOKEN": "v", "BAO_TOKEN": "b"},
        {"addresses": ["https://b"], "login": Token("b")},
    ),
    "empty bao counts": (
        {"VAULT_NAMESPACE": "team1", "BAO_NAMESPACE": ""},
        {"namespace": ""},
    ),
    "agent": (
        {"VAULT_ADDR": "https://v:8200", "VAULT_AGENT_ADDR": "http://127.0.0.1:8100"},
        {"addresses": ["http://127.0.0.1:8100"]},
    ),
    "several addresses": (
        {"VAULT_ADDR": "https://a:8200,https://b:8200"},
        {"addresses": ["https://a:8200", "https://b:8200"]},
    ),
    "file before directory": (
        {"VAULT_CACERT": "/ca.pem", "VAULT_CAPATH": "/ca"},
        {"ca_file": "/ca.pem", "ca_data": None},
    ),
    "text before directory": (
        {"VAULT_CACERT_BYTES": "-----BEGIN", "VAULT_CAPATH": "/ca"},
        {"ca_file": None, "ca_data": "-----BEGIN"},
    ),
    "directory": ({"VAULT_CAPATH": "/ca"}, {"ca_file": "/ca", "ca_data": None}),
    "certificate": (
        {"VAULT_CLIENT_CERT": "/c.pem", "VAULT_CLIENT_KEY": "/c.key"},
        {"client_certificate": ("/c.pem", "/c.key")},
    ),
    "seconds": ({"VAULT_CLIENT_TIMEOUT": "30"}, {"timeout": 30.0}),
    "days": ({"VAULT_CLIENT_TIMEOUT": "1d"}, {"timeout": 86400.0}),
    "duration": ({"VAULT_CLIENT_TIMEOUT": "1m30s500ms"}, {"timeout": 90.5}),
    "proxy": (
        {"VAULT_HTTP_PROXY": "http://p:1", "VAULT_PROXY_ADDR": "http://q:1"},
        {"proxy": "http://q:1"},
    ),
    "verifying": ({"VAULT_SKIP_VERIFY": "false"}, {}),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment(name: str) -> None:
    """The variables mean what they mean to the command lines of Vault and OpenBao."""
    variables, expected = ENVIRONMENTS[name]
    found = from_environment(variables)._asdict()
    assert expected == {name: found[name] for name in expected}


@pytest.mark.server
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"VAULT_ADDR": "http://127.0.0.1:1"},
        {"VAULT_ADDR": "http://127.0.0.1:1", "BAO_ADDR": "http://127.0.0.1:2"},
        {"VAULT_ADDR": "http://127.0.0.1:1", "BAO_ADDR": ""},
        {"BAO_ADDR": "http://127.0.0.1:1", "VAULT_AGENT_ADDR": "http://127.0.0.1:3"},
        {"VAULT_CLIENT_TIMEOUT": "1d"},
        {"VAULT_CLIENT_TIMEOUT": "1.5"},
        {"VAULT_CACERT": "/none/ca.pem", "VAULT_CACERT_BYTES": "no certificate"},
        {"VAULT_CACERT_BYTES": "no certificate", "VAULT_CAPATH": "/none"},
    ],
    ids=str,
)
def test_the_official_command_line_agrees(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenBao's command line asks the same address, and refuses for the same variable."""
    command = [program(), "token", "lookup"]
    environment = {"HOME": "/nonexistent", "VAULT_MAX_RETRIES": "0", **variables}
    said = subprocess.run(command, env=environment, capture_output=True, text=True).stderr
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if "Error looking up token" not in said:
        with pytest.raises(ValueError) as caught:
            VaultSession(login=Token("s.x"))
        assert ("/none/ca.pem" in said) == ("/none/ca.pem" in str(caught.value))
    else:
        with VaultSession(login=Token("s.x")) as session:
            assert f'Get "{session.addresses[0]}/v1/' in said


@pytest.mark.parametrize(
    "variables",
    [
        {"VAULT_SKIP_VERIFY": "true"},
        {"BAO_SKIP_VERIFY": "1"},
        {"VAULT_CLIENT_TIMEOUT": "soon"},
        {"VAULT_CLIENT_TIMEOUT": "0"},
    ],
)
def test_refused_environment(variables: dict[str, str]) -> None:
    """A variable that would switch off the check of certificates, or makes no sense, is refused."""
    with pytest.raises(ValueError, match="VAULT_"):
        from_environment(variables)


@pytest.mark.server
def test_session_of_the_environment(
    bao_tls: SingleServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A session without arguments is that of the environment, down to ~/.vault-token."""
    monkeypatch.setenv("VAULT_ADDR", bao_tls.address)
    monkeypatch.setenv("VAULT_CACERT", str(bao_tls.ca_file))
    with VaultSession() as session:
        with pytest.raises(AccessDeniedError, match=r"\.vault-token"):
            session.call(accessor)
        (tmp_path / ".vault-token").write_text(bao_tls.token)
        assert accessor(bao_tls.admin) == session.call(accessor)


@pytest.mark.server
def test_arguments_go_before_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said in code counts more than the environment."""
    for name, value in {
        "ADDR": "https://vault.invalid",
        "TOKEN": "s.none",
        "NAMESPACE": "none",
    }.items():
        monkeypatch.setenv(f"VAULT_{name}", value)
    with VaultSession(server.address, login=Token(server.token), namespace="") as session:
        assert {"book": "eq-us"} == session.call(read)


# Secrets


def shown(error: BaseException, records: list[logging.LogRecord]) -> str:
    """Return all that an error, what led to it, its frames' variables and the log show."""
    seen = []
    assert error.__traceback__ is not None
    # The first frame is the test's own.
    error = error.with_traceback(error.__traceback__.tb_next)
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is not None:
            trace = traceback.TracebackException.from_exception(each, capture_locals=True)
            seen += [*trace.format(), repr(each), repr(vars(each)), repr(each.args)]
            pending += [each.__cause__, each.__context__]
    return "".join([*seen, *[record.getMessage() + repr(vars(record)) for record in records]])


@pytest.mark.server
@pytest.mark.parametrize(
    "case", ["bad login", "echo", "dead token", "policy", "caller's", "away", "alarm", "renewal"]
)
def test_secrets_are_not_shown(
    server: Server, proxy: FaultProxy, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """No error, frame or log line holds a token, a password or the body of an answer."""
    caplog.set_level(logging.DEBUG)
    secrets = [PASSWORD, server.token, "body-of-the-answer"]
    login: Any = make_user(server, "discreet")
    function: Callable[[hvac.Client], Any] = read
    if case == "bad login":
        login = Userpass("discreet", secret := "not-the-password")
        secrets.append(secret)
    elif case == "echo":
        secrets.append(token := server.make_token("reader"))
        echo = {"errors": [f"no: {PASSWORD} {token} {server.token * 9}"], "data": secrets}
        proxy.fault("login", status=400, body=echo)
    elif case == "dead token":
        login = Token(token := server.make_token("reader"))
        server.admin.auth.token.revoke(token)
        secrets.append(token)
    elif case == "policy":
        function = lambda client: client.sys.list_mounted_secrets_engines()  # noqa: E731
    elif case == "caller's":
        body = {"data": {"batch_results": [{"plaintext": "body-of-the-answer"}]}}
        proxy.fault("secret/data", status=400, body=body)
    elif case == "away":
        proxy.fault("secret/data", status=502, body=b"body-of-the-answer " + PASSWORD.encode())
    elif case == "alarm":
        login = AppRole(make_role(server, "quiet"), token := wrap_secret_id(server, "quiet"), True)
        server.admin.sys.unwrap(token)
        secrets.append(token)
    elif case == "renewal":
        proxy.fault("renew-self", status=400, body={"errors": [f"no: {server.token * 3}"]})
        proxy.fault("secret/data", status=400)
    session = VaultSession(proxy.address, login=login)
    if case == "renewal":
        secrets.append(session.client.token)
        renew_now(session)
        wait_for("the log line", lambda: "the token is not renewed" in caplog.text)
    with pytest.raises(Exception) as caught:
        session.call(function, deadline=1.0 if case == "away" else None)
    if session._lease is not None:
        secrets.append(session._lease.token)
    text = shown(caught.value, caplog.records) + repr(session) + repr(login)
    session.close()
    assert [] == [secret for secret in secrets if secret in text]


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize(
    "holder",
    [
        Token("s.x"),
        TokenFile(Path("x")),
        AppRole("r", "s"),
        Kubernetes("r"),
        Jwt("r", "s"),
        Ldap("u", "p"),
        Userpass("u", "p"),
    ],
    ids=lambda holder: type(holder).__name__,
)
def test_no_copies(holder: Any, copying: Callable[[Any], Any]) -> None:
    """What holds a secret is neither copied nor pickled."""
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        copying(holder)


@pytest.mark.parametrize("copying", [copy.copy, copy.deepcopy, pickle.dumps])
def test_no_copies_of_a_session(copying: Callable[[Any], Any]) -> None:
    """Nor is a session."""
    with (
        VaultSession("https://vault.example", login=Token("s.x")) as session,
        pytest.raises(TypeError, match="neither pickled nor copied"),
    ):
        copying(session)


# The end


@pytest.mark.server
@pytest.mark.parametrize("revoke", [False, True])
def test_close(server: Server, revoke: bool) -> None:
    """close() ends the background, the token where asked to, and all further calls."""
    session = VaultSession(server.address, login=make_login(server, "leaving", token_ttl="1h"))
    name = session.call(accessor)
    thread = session._thread
    assert thread is not None
    session.close(revoke=revoke)
    session.close(revoke=True)
    assert not thread.is_alive()
    gone = pytest.raises(InvalidRequest, match="invalid accessor")
    with gone if revoke else contextlib.nullcontext():
        server.admin.auth.token.lookup_accessor(name)
    with pytest.raises(ValueError, match="the session is closed"):
        session.call(read)
    with pytest.raises(ValueError, match="the session is closed"):
        _ = session.client


@pytest.mark.server
def test_close_while_vault_is_away(server: Server, proxy: FaultProxy) -> None:
    """close() does not wait for a renewal that is tried again and again, and says what was not revoked."""
    login = make_login(server, "hurried", token_ttl="1h")
    session = VaultSession(proxy.address, login=login, deadline=600)
    session.call(read)
    proxy.refuse()
    renew_now(session)
    thread = session._thread
    assert thread is not None
    session.close()
    assert not thread.is_alive()


@pytest.mark.server
def test_dropped_session(server: Server) -> None:
    """The background of a session that nobody has any more ends by itself."""
    session = VaultSession(server.address, login=make_login(server, "dropped", token_ttl="1h"))
    session.call(read)
    thread = session._thread
    assert thread is not None
    del session
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.server
def test_fork(server: Server) -> None:
    """A process that was forked is told to open its own session, and leaves its parent's token alone."""
    login = make_user(server, "parent", token_ttl="1h")
    done = child(
        """
        import os, sys
        from tapeseal.errors import ForkError
        from tapeseal.vault import Userpass, VaultSession

        def name(client):
            return client.auth.token.lookup_self()["data"]["accessor"]

        address, user, password = sys.argv[1:]
        session = VaultSession(address, login=Userpass(user, password))
        first = session.call(name)
        pid = os.fork()
        if pid == 0:
            for use in (lambda: session.call(name), lambda: session.client):
                try:
                    use()
                except ForkError:
                    continue
                os._exit(1)
            session.close(revoke=True)
            with VaultSession(address, login=Userpass(user, password)) as own:
                os._exit(0 if own.call(name) != first else 2)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), session.call(name) == first)
        session.close()
        """,
        server.address,
        login.username,
        PASSWORD,
        flags=["-Wignore::DeprecationWarning"],
    )
    assert ("0 True\n", "") == (done.stdout, done.stderr)


# A cluster


def storm(session: VaultSession, stop: threading.Event) -> list[str]:
    """Write and read until told to stop; return what failed."""
    failures = []
    while not stop.is_set():
        try:
            session.call(
                lambda c: c.adapter.post("/v1/cubbyhole/storm", json={"a": "b"}), deadline=30
            )
            session.call(accessor, deadline=30)
        except Exception as error:
            failures.append(repr(error))
    return failures


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("event", ["kill", "pause", "step down", "kill a standby"])
def test_cluster(bao_cluster: Cluster, event: str) -> None:
    """Calls go on whatever becomes of the active node, and none of them fails."""
    stop = threading.Event()
    active = bao_cluster.active()
    standby = bao_cluster.standbys()[0]
    # The one that will go is the one that is asked first.
    first = standby if event == "kill a standby" else active
    addresses = sorted(bao_cluster.addresses, key=first.address.__ne__)
    login = Token(bao_cluster.token)
    with (
        VaultSession(addresses, login=login, ca_file=bao_cluster.ca_file, timeout=1.0) as session,
        ThreadPoolExecutor(3) as pool,
    ):
        storms = [pool.submit(storm, session, stop) for _ in range(3)]
        try:
            if event == "kill":
                active.kill()
            elif event == "pause":
                active.pause()
            elif event == "step down":
                active.admin.sys.step_down()
            else:
                standby.kill()
            others = [node for node in bao_cluster.nodes if node is not active]
            if event in ("kill", "pause"):
                wait_for("a new leader", lambda: any(n.status() == 200 for n in others))
            session.call(lambda c: c.adapter.post("/v1/cubbyhole/x", json={"a": "b"}), deadline=30)
        finally:
            stop.set()
        assert [[]] * 3 == [each.result() for each in storms]


@pytest.mark.server
@pytest.mark.slow
def test_session_reads_what_it_wrote(bao_cluster: Cluster) -> None:
    """A standby that lags behind passes a read on, in a session that has written."""
    standby = bao_cluster.standbys()[0].address
    login = Token(bao_cluster.token)
    with VaultSession(standby, login=login, ca_file=bao_cluster.ca_file) as session:
        for number in range(100):
            session.request("POST", "cubbyhole/number", {"number": number})
            assert number == session.request("GET", "cubbyhole/number")["data"]["number"]
