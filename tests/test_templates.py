"""`tapeseal init`: real servers start from what it writes, and each role can do its work and nothing else."""

import configparser
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hvac
import pytest
import requests
import yaml

import tapeseal
from servers.bao import Server, dev_server, free_ports, program, wait_for
from servers.certs import Authority
from tapeseal.cli import app
from tapeseal.doctor import SetUp as DoctorSetUp
from tapeseal.doctor import examine
from tapeseal.keyrings.aws_kms import AwsKmsKeyring
from tapeseal.keyrings.vault_transit import VaultTransitKeyring
from tapeseal.rotation.kinds import make_kind
from tapeseal.rotation.plan import read_plan
from tapeseal.rotation.schedule import SCHEDULES
from tapeseal.templates import Node, SetUp, write_set_up

KEY_ARN = SetUp().key_arn


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set-up as `tapeseal init` writes it by default."""
    directory = tmp_path_factory.mktemp("init") / "set-up"
    write_set_up(directory, SetUp())
    return directory


def set_up(server: Server, directory: Path, home: Path) -> str:
    """Run set-up.sh with the server's own command line, as root; return what it says."""
    (home / "bin").mkdir(exist_ok=True)
    if not (home / "bin" / "bao").exists():
        (home / "bin" / "bao").symlink_to(program())
    environment = {
        "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "BAO_ADDR": server.address,
        "BAO_TOKEN": server.token,
    }
    if server.ca_file is not None:
        environment["BAO_CACERT"] = server.ca_file
    done = subprocess.run(
        [directory / "set-up.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def server(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the policies, mounts and roles of the set-up."""
    home = tmp_path_factory.mktemp("templates-bao")
    with dev_server(home) as running:
        set_up(running, written, home)
        for environment in ("prod", "staging"):
            for role in ("trading", "risk"):
                running.admin.secrets.kv.v2.create_or_update_secret(
                    f"{environment}/{role}/exchange", {"key": "k"}
                )
        yield running


@pytest.fixture(scope="module")
def log_in(server: Server) -> Callable[[str], hvac.Client]:
    """Log in as one of the roles, by its AppRole and a wrapped secret id."""
    clients: dict[str, hvac.Client] = {}

    def log_in(role: str) -> hvac.Client:
        if role not in clients:
            path = f"/v1/auth/approle/role/{role}"
            role_id = server.admin.adapter.get(f"{path}/role-id")["data"]["role_id"]
            secret_id = server.admin.adapter.post(f"{path}/secret-id")["data"]["secret_id"]
            client = hvac.Client(server.address, token="")
            client.session.trust_env = False
            client.auth.approle.login(role_id, secret_id)
            clients[role] = client
        return clients[role]

    return log_in


@pytest.mark.server
@pytest.mark.slow
def test_set_up_can_be_run_again(server: Server, written: Path) -> None:
    """A second run of the script changes nothing and fails at nothing; keys keep their versions."""
    before = server.admin.adapter.get("/v1/transit/keys/prod-tapes")["data"]["keys"]
    assert "Set up:" in set_up(server, written, server.directory)
    assert before == server.admin.adapter.get("/v1/transit/keys/prod-tapes")["data"]["keys"]


# Role, method, path, body, and whether it is allowed.
CALLS: list[tuple[str, str, str, dict[str, Any] | None, bool]] = [
    ("trading-prod", "GET", "secret/data/prod/trading/exchange", None, True),
    ("trading-prod", "LIST", "secret/metadata/prod/trading", None, True),
    ("trading-prod", "POST", "secret/data/prod/trading/exchange", {"data": {}}, False),
    ("trading-prod", "GET", "secret/data/prod/risk/exchange", None, False),
    ("trading-prod", "GET", "secret/data/staging/trading/exchange", None, False),
    ("trading-prod", "LIST", "secret/metadata", None, False),
    ("trading-prod", "POST", "transit/keys/prod-tapes/rotate", {}, False),
    ("trading-prod", "GET", "transit/keys/staging-tapes", None, False),
    ("trading-prod", "POST", "transit/encrypt/prod-tapes", {"plaintext": "", "context": "AA=="}, False),
    ("trading-prod", "POST", "auth/approle/role/admin/secret-id", {}, False),
    ("trading-prod", "PUT", "sys/policies/acl/trading-prod", {"policy": ""}, False),
    ("trading-prod", "POST", "secret/data/tapeseal-consumers/prod-key/gateway", {"data": {}}, True),
    ("trading-prod", "POST", "secret/data/tapeseal-consumers/staging-key/gateway", {"data": {}}, False),
    ("risk-prod", "GET", "secret/data/prod/risk/exchange", None, True),
    ("risk-prod", "GET", "secret/data/prod/trading/exchange", None, False),
    ("risk-prod", "POST", "transit/datakey/plaintext/prod-tapes", {"context": "AA=="}, False),
    ("risk-prod", "POST", "pki/issue/prod-trading", {"common_name": "x"}, False),
    ("risk-prod", "GET", "secret/data/staging/risk/exchange", None, False),
    ("risk-staging", "GET", "secret/data/staging/risk/exchange", None, True),
    ("risk-staging", "GET", "secret/data/prod/risk/exchange", None, False),
    ("admin", "POST", "secret/data/prod/trading/new", {"data": {"key": "x"}}, True),
    ("admin", "GET", "secret/data/prod/trading/exchange", None, False),
    ("admin", "GET", "secret/metadata/prod/trading/exchange", None, True),
    ("admin", "POST", "transit/keys/staging-tapes/rotate", {}, True),
    ("admin", "POST", "transit/keys/prod-tapes/config", {"deletion_allowed": True}, False),
    ("admin", "DELETE", "transit/keys/prod-tapes", None, False),
    ("admin", "POST", "transit/decrypt/prod-tapes", {"ciphertext": "vault:v1:AA=="}, False),
    ("admin", "GET", "transit/export/encryption-key/prod-tapes", None, False),
    ("admin", "PUT", "sys/policies/acl/admin", {"policy": 'path "*" { capabilities = ["sudo"] }'}, False),
    ("admin", "POST", "auth/approle/role/other", {"token_policies": "root"}, False),
    ("admin", "POST", "auth/approle/role/trading-prod/secret-id", {}, False),
    ("admin", "POST", "auth/token/create", {"policies": ["root"]}, False),
    ("admin", "POST", "sys/leases/revoke-prefix/database/creds/prod-trading", {}, True),
    ("admin", "GET", "sys/policies/acl/trading-prod", None, True),
    ("admin", "LIST", "auth/token/accessors", None, True),
    ("admin", "POST", "identity/entity/name/alice", {"disabled": True}, True),
    ("admin", "POST", "identity/entity/name/alice", {"policies": ["root"]}, False),
    ("admin", "POST", "identity/entity/name/alice", {"disabled": False, "policies": ["root"]}, False),
    ("admin", "LIST", "pki/certs/revoked", None, True),
    ("admin", "GET", "pki/crl/rotate", None, True),
    ("admin", "GET", "ssh/config/ca", None, True),
    ("admin", "POST", "sys/seal", {}, False),
    ("rotation-prod", "POST", "secret/data/prod/trading/exchange", {"data": {"key": "l"}}, True),
    ("rotation-prod", "GET", "secret/data/prod/trading/exchange", None, True),
    ("rotation-prod", "GET", "secret/data/staging/trading/exchange", None, False),
    ("rotation-prod", "POST", "auth/approle/role/trading-prod/secret-id", {}, True),
    ("rotation-prod", "POST", "auth/approle/role/trading-staging/secret-id", {}, False),
    ("rotation-prod", "POST", "auth/approle/role/admin/secret-id", {}, False),
    ("rotation-prod", "POST", "auth/approle/role/break-glass/secret-id", {}, False),
    ("rotation-prod", "POST", "auth/approle/role/rotation-prod", {"token_policies": "admin"}, False),
    ("rotation-prod", "POST", "auth/approle/role/trading-prod/secret-id/lookup", {"secret_id": "x"}, True),
    ("rotation-prod", "GET", "pki/crl/rotate", None, True),
    ("rotation-prod", "LIST", "pki/certs/revoked", None, True),
    ("rotation-prod", "LIST", "pki/certs/detailed", None, True),
    ("rotation-prod", "POST", "transit/keys/prod-tapes/rotate", {}, True),
    ("rotation-prod", "POST", "transit/keys/staging-tapes/rotate", {}, False),
    ("rotation-prod", "PUT", "sys/policies/acl/trading-prod", {"policy": ""}, False),
    ("doctor", "GET", "sys/policies/acl/admin", None, True),
    ("doctor", "GET", "secret/data/prod/trading/exchange", None, False),
    ("doctor", "GET", "secret/metadata/prod/trading/exchange", None, False),
    ("doctor", "GET", "database/creds/prod-trading", None, False),
    ("doctor", "POST", "auth/approle/role/doctor/secret-id", {}, False),
    ("doctor", "PUT", "sys/policies/acl/doctor", {"policy": ""}, False),
    ("doctor", "POST", "transit/decrypt/prod-tapes", {"ciphertext": "vault:v1:AA=="}, False),
    ("doctor", "POST", "transit/keys/prod-tapes/config", {"exportable": True}, False),
    ("break-glass", "GET", "sys/policies/acl/admin", None, True),
    ("break-glass", "GET", "secret/data/prod/trading/exchange", None, True),
]  # fmt: skip


@pytest.mark.server
@pytest.mark.parametrize(
    ("role", "method", "path", "body", "allowed"),
    CALLS,
    ids=[f"{role} {method} {path}" for role, method, path, _, _ in CALLS],
)
def test_what_each_role_can_do(
    log_in: Callable[[str], hvac.Client],
    role: str,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    allowed: bool,
) -> None:
    """A role is refused what is not its work: another environment's, another role's, or more power."""
    client = log_in(role)
    answer = client.session.request(
        method,
        f"{client.url}/v1/{path}",
        headers={"X-Vault-Token": client.token},
        json=body,
        timeout=30,
    )
    assert allowed == (answer.status_code not in (403, 405)), answer.text


@pytest.mark.server
def test_admin_hands_out_wrapped_logins_alone(log_in: Callable[[str], hvac.Client]) -> None:
    """What an administrator gets of a secret id is a token that unwraps it once, elsewhere; of break-glass nothing."""
    client = log_in("admin")
    answer = client.session.post(
        f"{client.url}/v1/auth/approle/role/trading-prod/secret-id",
        headers={"X-Vault-Token": client.token, "X-Vault-Wrap-TTL": "60s"},
        timeout=30,
    )
    assert (200, None) == (answer.status_code, answer.json()["data"])
    for path in ("secret-id", "role-id", "secret-id-accessor/destroy"):
        refused = client.session.post(
            f"{client.url}/v1/auth/approle/role/break-glass/{path}",
            headers={"X-Vault-Token": client.token, "X-Vault-Wrap-TTL": "60s"},
            json={"secret_id_accessor": "any"},
            timeout=30,
        )
        assert 403 == refused.status_code, path


@pytest.mark.server
def test_break_glass_lasts_an_hour(log_in: Callable[[str], hvac.Client]) -> None:
    """The token of the emergency ends after an hour, whoever renews it."""
    data = log_in("break-glass").auth.token.lookup_self()["data"]
    assert 0 < data["ttl"] <= 3600
    assert 3600 == data["explicit_max_ttl"] or data["creation_ttl"] <= 3600


@pytest.mark.server
def test_trading_records_and_risk_reads(
    log_in: Callable[[str], hvac.Client], server: Server, tmp_path: Path
) -> None:
    """Under its policy trading makes tapes that it cannot open, and risk opens them."""
    log_in("trading-prod")
    log_in("risk-prod")

    def keyring(role: str, environment: str = "prod") -> VaultTransitKeyring:
        client = hvac.Client(server.address, token=log_in(role).token, timeout=30)
        return VaultTransitKeyring(f"transit/{environment}-tapes", client)

    blob = tapeseal.encrypt(b"order", keyring=keyring("trading-prod"))
    with pytest.raises(tapeseal.AccessDeniedError):
        tapeseal.decrypt(blob, keyring=keyring("trading-prod"))
    assert b"order" == tapeseal.decrypt(blob, keyring=keyring("risk-prod"))
    with pytest.raises(tapeseal.KeyUnavailableError):
        tapeseal.decrypt(blob, keyring=keyring("risk-staging", "staging"))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Three servers that run on the configuration as it was written, unsealed and joined."""
    root = tmp_path_factory.mktemp("written-cluster")
    authority = Authority(root / "tls")
    authority.issue_server()
    ports = [free_ports(2) for _ in range(3)]
    made = SetUp(
        nodes=[Node("localhost", port) for port in ports],
        configuration_directory=str(root),
        data_directory=str(root / "data"),
        log_directory=str(root / "log"),
    )
    (root / "log").mkdir()
    write_set_up(root / "set-up", made)
    servers = []
    for number, port in enumerate(ports, 1):
        (root / "data" / f"trading-{number}").mkdir(parents=True)
        config = root / "set-up" / "vault" / f"trading-{number}.hcl"
        address = f"https://localhost:{port}"
        servers.append(Server(root, address, [f"-config={config}"], authority.ca_file))
    try:
        first = servers[0]
        first.start()
        keys = first.admin.sys.initialize(secret_shares=3, secret_threshold=2)
        for each in servers:
            each.admin.token = keys["root_token"]
        for each in servers:
            if each is not first:
                each.start()
                wait_for("joining", lambda: each.admin.sys.read_seal_status()["initialized"])  # noqa: B023
            for key in keys["keys"][:2]:
                each.admin.sys.submit_unseal_key(key)
            each.wait_for_status(200, 429)
        yield servers
    finally:
        for each in servers:
            each.close()


@pytest.mark.slow
@pytest.mark.server
def test_three_nodes_run_as_written(nodes: list[Server]) -> None:
    """The servers form one cluster, over TLS 1.3 alone, and write their audit logs for nobody else to read."""
    first = nodes[0]
    found = first.admin.adapter.get("/v1/sys/storage/raft/configuration")["data"]["config"]
    assert {"trading-1", "trading-2", "trading-3"} == {each["node_id"] for each in found["servers"]}
    log = first.directory / "log" / "audit.log"
    assert 0o600 == log.stat().st_mode & 0o777
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert "sys/storage/raft/configuration" in {each["request"]["path"] for each in entries}
    host, port = "localhost", first.address.rpartition(":")[2]
    handshake = subprocess.run(
        ["openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_2", "-CAfile", first.ca_file],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "alert protocol version" in handshake.stderr


@pytest.mark.slow
@pytest.mark.server
def test_metrics_are_for_who_may(nodes: list[Server]) -> None:
    """Telemetry answers in Prometheus' format, and not to strangers."""
    client = nodes[0].admin
    url = f"{client.url}/v1/sys/metrics?format=prometheus"
    stranger = requests.get(url, verify=nodes[0].ca_file, timeout=30)
    assert stranger.status_code in (400, 403)
    found = client.session.get(
        url, headers={"X-Vault-Token": client.token}, verify=nodes[0].ca_file, timeout=30
    )
    assert "# TYPE vault_" in found.text


@pytest.mark.slow
@pytest.mark.server
def test_set_up_works_on_the_cluster(nodes: list[Server]) -> None:
    """The script sets up the cluster that was written with it."""
    assert "Set up:" in set_up(nodes[0], nodes[0].directory / "set-up", nodes[0].directory)


@pytest.mark.slow
@pytest.mark.server
def test_another_node_takes_over(nodes: list[Server]) -> None:
    """Where the active node steps down, another one serves: all nodes have one audit device, the same."""

    def active() -> Server | None:
        return next((each for each in nodes if each.status() == 200), None)

    def voters() -> bool:
        found = nodes[0].admin.adapter.get("/v1/sys/storage/raft/configuration")
        return all(each["voter"] for each in found["data"]["config"]["servers"])

    wait_for("three voters", voters)
    before = wait_for("an active node", active)
    before.admin.sys.step_down()
    wait_for("another active node", lambda: active() not in (None, before))


def hcl(text: str) -> dict[str, Any]:
    """Parse a configuration in HCL."""
    import hcl2

    parsed: dict[str, Any] = hcl2.loads(text)
    return parsed


def test_consul_is_valid_hcl(tmp_path: Path) -> None:
    """The variant for HashiCorp's server, which is not to be had here, is at least well-formed and complete."""
    write_set_up(tmp_path, SetUp(server="vault", storage="consul"))
    for number in (1, 2, 3):
        parsed = hcl((tmp_path / "vault" / f"trading-{number}.hcl").read_text())
        (storage,) = parsed["storage"]
        assert ["consul"] == [each.strip('"') for each in storage]
        (listener,) = parsed["listener"]
        (settings,) = listener.values()
        assert "tls13" == settings["tls_min_version"].strip('"')
        assert {"api_addr", "cluster_addr", "telemetry"} <= parsed.keys()
    assert "audit enable file" in (tmp_path / "set-up.sh").read_text()


def test_scripts_are_valid_shell(written: Path) -> None:
    """The shell takes the script, whatever server it is for."""
    assert b"" == subprocess.check_output(["bash", "-n", written / "set-up.sh"])


@pytest.mark.server
def test_iam_policies_are_enough_and_no_more(
    written: Path, kms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder under its policy makes what a reader under its own opens, and neither does the other's work."""
    key = kms.make_key()

    def ring(name: str) -> AwsKmsKeyring:
        text = (written / "aws" / f"{name}.json").read_text().replace(KEY_ARN, key)
        for variable, value in kms.environment(json.loads(text)).items():
            monkeypatch.setenv(variable, value)
        region = key.split(":")[3]
        return AwsKmsKeyring(key, region=region, endpoint_url=kms.address, read_timeout=30)

    recorder = ring("recorder")
    blob = tapeseal.encrypt(b"order", keyring=recorder)
    with pytest.raises(tapeseal.AccessDeniedError):
        tapeseal.decrypt(blob, keyring=recorder)
    reader = ring("reader")
    assert b"order" == tapeseal.decrypt(blob, keyring=reader)
    with pytest.raises(tapeseal.AccessDeniedError):
        tapeseal.encrypt(b"order", keyring=reader)


@pytest.mark.parametrize("unit", ["tapeseal-rotate.service", "tapeseal-recorder@.service"])
def test_units_are_valid(written: Path, unit: str, tmp_path: Path) -> None:
    """systemd takes the units, and they keep keys out of core dumps and swap."""
    text = (written / "systemd" / unit).read_text()
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(text)
    assert ("0", "yes") == (parsed["Service"]["LimitCORE"], parsed["Service"]["NoNewPrivileges"])
    assert parsed["Service"]["LimitMEMLOCK"].endswith("M")
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is needed to verify units")
    # The programs of the units are not here; something that runs stands for them.
    path = tmp_path / unit
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
    )
    assert [] == [line for line in done.stderr.splitlines() if unit in line]


def test_kubernetes_manifests_are_valid(written: Path) -> None:
    """The CronJob has the members that the API's own model has, and runs as nobody in particular."""
    from kubernetes import client

    documents = list(yaml.safe_load_all((written / "kubernetes" / "rotate.yaml").read_text()))
    assert ["ServiceAccount", "PersistentVolumeClaim", "CronJob"] == [
        each["kind"] for each in documents
    ]
    api = client.ApiClient()
    for each, model in zip(
        documents, ("V1ServiceAccount", "V1PersistentVolumeClaim", "V1CronJob"), strict=True
    ):

        class Answer:
            data = json.dumps(each)

        made = api.deserialize(Answer, model)
        assert each == json.loads(json.dumps(api.sanitize_for_serialization(made)))
    job = documents[2]["spec"]
    assert "Forbid" == job["concurrencyPolicy"]
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]


def test_nothing_is_replaced(tmp_path: Path) -> None:
    """Where one of the files is there already, none is written."""
    (tmp_path / "rotation.toml").write_text("mine")
    with pytest.raises(FileExistsError, match=r"rotation\.toml"):
        write_set_up(tmp_path, SetUp())
    assert ["rotation.toml"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    "kind", ["api-key", "database-users", "service-account", "tls-certificate", "ssh-key"]
)
def test_the_plan_is_one(written: Path, kind: str) -> None:
    """The plan is valid, keeps to the default schedules, and every kind in it says its calls."""
    plan = read_plan(written / "rotation.toml")
    found = [each for each in plan.secrets.values() if each.kind == kind]
    assert 1 == len(found)
    assert SCHEDULES[kind] == found[0].schedule
    assert make_kind(kind).calls(found[0]) != []
    assert {"root", "application", "configuration"} == {each.tier for each in plan.secrets.values()}


def test_nothing_is_left_to_fill_in(written: Path) -> None:
    """No file has a place where a value was forgotten."""
    for path in written.rglob("*"):
        if path.is_file():
            assert "@{" not in path.read_text(), path


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a b"},
        {"name": "../x"},
        {"nodes": [Node("a"), Node("b")]},
        {"nodes": [Node("a")] * 3},
        {"storage": "consul"},
        {"environments": []},
        {"environments": ["prod", "prod"]},
        {"environments": ['prod" { capabilities']},
        {"key_arn": "alias/x"},
        {"cidrs": ["10.0.0.0/33"]},
        {"domain": "a\nb"},
        {"data_directory": 'x"'},
        {"secret_id_days": 0},
    ],
)
def test_set_ups_that_cannot_be(wrong: dict[str, Any]) -> None:
    """What would make no valid configuration, or another one than meant, is refused."""
    with pytest.raises(ValueError):
        SetUp(**wrong)


@pytest.mark.parametrize("text", ["", "a:0", "a:99999", "a:b", "-a", "a b", "a:1:2"])
def test_nodes_that_cannot_be(text: str) -> None:
    """An address that no server could have is refused."""
    with pytest.raises(ValueError, match="HOST"):
        Node.parse(text)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes what its options say, and reports the files."""
    target = tmp_path / "new"
    arguments = ["init", str(target), "--name", "hft", "--environment", "live", "--json"]
    for number in (1, 2, 3):
        arguments += ["--node", f"10.0.0.{number}:8300"]
    assert 0 == app.run(arguments)
    report = json.loads(capsys.readouterr().out)
    assert sorted(str(path) for path in target.rglob("*") if path.is_file()) == sorted(
        report["files"]
    )
    assert 'api_addr     = "https://10.0.0.2:8300"' in (target / "vault/hft-2.hcl").read_text()
    assert (target / "policies/trading-live.hcl").exists()
    assert 2 == app.run(arguments)


@pytest.mark.server
def test_doctor_finds_nothing(
    server: Server, log_in: Callable[[str], hvac.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the policies, roles, keys and mounts of a set-up the doctor's role sees all, and finds nothing to mend."""
    monkeypatch.setenv("BAO_ADDR", server.address)
    monkeypatch.setenv("BAO_TOKEN", log_in("doctor").token)
    names = ("policies", "own-token", "approles", "auth-ttl", "transit", "kv", "database", "pki")
    report = examine(DoctorSetUp(), only=[f"vault.{name}" for name in names])
    assert {} == report.not_looked_at
    assert len(names) == len(report.looked_at)
    assert [] == report.at_least("warning")
