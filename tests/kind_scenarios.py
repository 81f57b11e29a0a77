"""For each kind of secret a scenario: a plan, the real services behind it, and what must hold after a rotation.

with make("api-key-http", directory, servers) as scenario:
    scenario.rotate()                     # by the engine, with the policy of docs/rotation-kinds.md
    scenario.check("finished")            # the current credential is accepted, and no other is alive
"""

import hashlib
import io
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import hvac

import tapeseal
from servers.fault_proxy import Fault, FaultProxy
from servers.kms import REGION
from support import TESTS
from tapeseal.errors import KeyUnavailableError
from tapeseal.keyrings.local import create_key_file
from tapeseal.rotation import paths
from tapeseal.rotation.engine import Engine, Outcome
from tapeseal.rotation.journal import Journal
from tapeseal.rotation.plan import read_plan
from tapeseal.rotation.services import PlanServices
from tapeseal.vault import Token, VaultSession

NAME = "desk"
CONSUMER = "recorder"
TRADES = b"trades" * 1000

COMMON_POLICY = """
path "secret/data/{prefix}/claims/desk" {{ capabilities = ["create", "read", "update"] }}
path "secret/metadata/{prefix}/claims/desk" {{ capabilities = ["delete"] }}
path "secret/data/{prefix}/consumers/desk/+" {{ capabilities = ["read"] }}
"""
STORED_POLICY = """
path "secret/data/{prefix}/desk" {{ capabilities = ["create", "read", "update", "patch"] }}
path "secret/metadata/{prefix}/desk" {{ capabilities = ["create", "read", "update"] }}
path "secret/destroy/{prefix}/desk" {{ capabilities = ["update"] }}
"""
CONSUMER_POLICY = """
path "secret/data/{prefix}/consumers/desk/recorder" {{ capabilities = ["create", "update"] }}
path "secret/data/{prefix}/desk" {{ capabilities = ["read"] }}
path "secret/metadata/{prefix}/desk" {{ capabilities = ["read"] }}
"""


def make_tape(path: Path, keyring: tapeseal.Keyring) -> None:
    """Make a tape of TRADES."""
    tapeseal.encrypt_file(io.BytesIO(TRADES), path, keyring=keyring)


def read_tape(path: Path, keyring: tapeseal.Keyring) -> bytes:
    """Return what is in a tape."""
    target = io.BytesIO()
    tapeseal.decrypt_file(path, target, keyring=keyring)
    return target.getvalue()


def toml(value: Any) -> str:
    """Return a value of a plan."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(str(value) if isinstance(value, Path) else value)


class NthFault(FaultProxy):
    """A proxy that lets the N-th request fail, or all from the N-th on for some time.

    Attributes:
        reached: the requests that the server has got.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._left, self._fault, self._seconds, self._until = 0, Fault(""), 0.0, 0.0
        self.reached: list[str] = []

    def arm(self, number: int, seconds: float = 0.0, **fault: Any) -> None:
        """Let the N-th request from now on fail, and those within so many seconds after it."""
        with self._lock:
            self._left, self._fault, self._seconds = number, Fault("", **fault), seconds
            self._until = 0.0
            self.seen.clear()
            self.reached.clear()

    def _take(self, line: str) -> Fault:
        with self._lock:
            self.seen.append(line)
            self._left -= 1
            if self._left == 0:
                self._until = time.monotonic() + self._seconds
            fails = self._left == 0 or time.monotonic() < self._until
            fault = self._fault if fails else Fault("")
            if fault.status is None and fault.reset != "before":
                self.reached.append(line)
            return fault


class Observed(NamedTuple):
    """The calls that a service has seen, and which of those that a dry run names are of that service."""

    pattern: str
    seen: list[str]


class Scenario:
    """One secret of a plan, named "desk", with one consumer, "recorder".

    Attributes:
        directory: its own.
        server: the Vault.
        prefix: what its paths in KV have in common.
        stored: whether the credential is in KV.
    """

    kind: ClassVar[str]
    stored: ClassVar[bool] = True
    policy: ClassVar[str] = ""
    """Of the runner, beside the common parts."""
    consumer_policy: ClassVar[str] = ""
    logins_per_second: ClassVar[float] = 50.0
    secrets: ClassVar[tuple[str, ...]] = ()
    """The members of a credential that nobody may see."""
    goes_back: ClassVar[bool] = True
    """Whether a rollback leaves nothing of the new credential."""
    retries: ClassVar[int] = 0
    """How often a consumer reads its credential again and tries once more, where it is refused."""

    once: ClassVar[Mapping[str, int]] = {}
    """Requests to Vault, by patterns, that a rotation must make just so many times, whatever happens to answers."""

    def __init__(self, directory: Path, server: Any, stack: ExitStack, **servers: Any) -> None:
        self.directory = directory
        self.server = server
        self.prefix = f"k{secrets.token_hex(4)}"
        self.deploy: list[dict[str, Any]] = []
        self.verify: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        if self.stored:
            self.options["path"] = f"secret/{self.prefix}/desk"
        self.set_up(stack, servers)
        self.token = self._token(
            "runner", COMMON_POLICY, STORED_POLICY if self.stored else "", self.policy
        )
        self.consumer_token = self._token("consumer", CONSUMER_POLICY, self.consumer_policy)
        self.write_plan()

    def _token(self, name: str, *policies: str) -> str:
        rules = "".join(policies).format(prefix=self.prefix, **self.names())
        return self.server.make_token(self.server.policy(f"{self.prefix}-{name}", rules))

    @property
    def admin(self) -> hvac.Client:
        """A client with the root token."""
        return self.server.admin

    # What each kind says

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        """Make what there must be, and fill in options, deploy and verify."""
        raise NotImplementedError

    def names(self) -> dict[str, str]:
        """Return what stands in policies by name."""
        return {}

    def accepts(self, credential: Mapping[str, str]) -> bool:
        """Try a credential at the service."""
        raise NotImplementedError

    def alive(self) -> set[str]:
        """Name the credentials that the service accepts."""
        raise NotImplementedError

    def name_of(self, credential: Mapping[str, str]) -> str:
        """Return the name of a credential in alive()."""
        raise NotImplementedError

    def consumer(self) -> dict[str, Any]:
        """Return what the consumer's program needs to know."""
        return {}

    def current(self) -> dict[str, str]:
        """Return what consumers read as the current credential."""
        found: dict[str, str] = self.kv()["data"]
        return found

    def again(self, **more: Any) -> None:
        """Make ready for one more rotation; `more` as for write_plan()."""

    def begin_observing(self) -> None:
        """Forget the calls of services other than Vault."""

    def observed(self) -> list["Observed"]:
        """Return the calls of other services since then."""
        return []

    def admin_secrets(self) -> list[str]:
        """Return further secrets that a rotation works with."""
        return []

    # What all have

    def trust_only(self, credential: Mapping[str, str]) -> None:
        """Add a check to the plan that fails for all other credentials."""
        command = [sys.executable, str(TESTS / "kind_check.py"), str(self.directory)]
        self.verify.insert(0, {"type": "exec", "command": command})
        self.write_plan(consumers=None, settle="0s")
        parts = {name: each for name, each in credential.items() if name != "rotation"}
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        (self.directory / "trusted").write_text(digest)

    def kv(self, version: int | None = None) -> dict[str, Any]:
        """Return what is in KV: data and metadata."""
        query = "" if version is None else f"?version={version}"
        answer = self.admin.adapter.get(f"/v1/secret/data/{self.prefix}/desk{query}")
        return dict(answer["data"])

    def write_plan(self, **more: Any) -> None:
        """Write the plan; `more` are settings of the secret."""
        settings = {
            "kind": self.kind,
            "tier": "application",
            "owner": "execution desk",
            "settle": "5s",
            "monitor": "0s",
            "deadline": "20s",
            "consumers": [CONSUMER],
        } | more
        settings = {name: value for name, value in settings.items() if value is not None}
        lines = [
            "[rotation]",
            f'staging = "secret/{self.prefix}/claims"',
            f'consumers = "secret/{self.prefix}/consumers"',
            f"[secret.{NAME}]",
            *(f"{name} = {toml(value)}" for name, value in settings.items()),
            f"[secret.{NAME}.options]",
            *(f"{name} = {toml(value)}" for name, value in self.options.items()),
        ]
        for part in ("deploy", "verify"):
            for table in getattr(self, part):
                lines.append(f"[[secret.{NAME}.{part}]]")
                lines += [f"{name} = {toml(value)}" for name, value in table.items()]
        self.plan_path = self.directory / "rotation.toml"
        self.plan_path.write_text("\n".join(lines) + "\n")

    @contextmanager
    def engine(self, address: Any = None) -> Iterator[Engine]:
        """Run an engine, with the least policy."""
        session = VaultSession(
            address or self.server.address, login=Token(self.token), ca_file=self.server.ca_file
        )
        plan = read_plan(self.plan_path)
        with (
            session,
            Journal(plan.state) as journal,
            PlanServices(session) as services,
            Engine(plan, journal, services) as engine,
        ):
            yield engine

    def rotate(self, address: Any = None) -> Outcome:
        """Rotate, or go on, in this process."""
        with self.engine(address) as engine:
            (outcome,) = engine.rotate([NAME])
        return outcome

    def go_on(self, address: Any = None) -> Outcome | None:
        """Go on with what is open, and begin nothing."""
        with self.engine(address) as engine:
            found = list(engine.run_due())
            return found[0] if found else None

    def finish(self, *, seconds: float = 60.0) -> str:
        """Go on, as its consumers acknowledge, until no rotation is open; return the state of the last one."""
        end = time.monotonic() + seconds
        while True:
            with Journal(read_plan(self.plan_path).state) as journal:
                record = journal.last(NAME)
            if record is None or not record.open:
                return "none" if record is None else record.state
            assert time.monotonic() < end, (record.state, record.step, record.error, record.alarm)
            self.go_on()
            time.sleep(0.05)

    def state(self) -> str:
        """Return the state of the last rotation."""
        with Journal(read_plan(self.plan_path).state) as journal:
            record = journal.last(NAME)
        return "none" if record is None else record.state

    def made(self) -> int:
        """Return how many credentials were ever made that count: none that was ended before anybody had it."""
        return 0

    def begin(self) -> None:
        """Make the first credential, with nobody to wait for."""
        self.write_plan(consumers=None)
        outcome = self.rotate()
        assert ("finished", "") == (outcome.state, outcome.error), outcome
        self.write_plan()

    def acknowledge(self) -> None:
        """Say as the consumer that it uses what is current."""
        with Journal(read_plan(self.plan_path).state) as journal:
            record = journal.last(NAME)
        if record is None or not record.open or record.facts.get("version") is None:
            return
        session = VaultSession(
            self.server.address, login=Token(self.consumer_token), ca_file=self.server.ca_file
        )
        with session:
            path = f"secret/{self.prefix}/consumers/{NAME}/{CONSUMER}"
            paths.write(session, path, {"version": str(record.facts.get("version"))}, after=None)

    @contextmanager
    def client(self) -> Iterator[dict[str, Any]]:
        """Run the consumer's program; at the end, what it has seen is in what this yields."""
        specification = {
            "name": next(name for name, each in SCENARIOS.items() if each is type(self)),
            "kind": self.kind,
            "address": self.server.address,
            "vault_ca_file": self.server.ca_file,
            "token": self.consumer_token,
            "path": f"secret/{self.prefix}/desk",
            "secret": NAME,
            "consumer": CONSUMER,
            "consumers": f"secret/{self.prefix}/consumers",
            "logins_per_second": self.logins_per_second,
            "retries": self.retries,
            **self.consumer(),
        }
        command = [sys.executable, str(TESTS / "kind_consumer.py"), json.dumps(specification)]
        path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
        seen: dict[str, Any] = {}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        ) as process:
            assert process.stdout is not None
            try:
                assert "ready\n" == process.stdout.readline()
                yield seen
                process.terminate()
                seen |= json.loads(process.stdout.read())
            finally:
                process.kill()

    def check(self, *, old: Mapping[str, str] | None = None) -> None:
        """Fail unless the current credential is accepted, `old` is not, nothing else is alive, and no claim is left."""
        current = self.current()
        assert self.accepts(current), "the current credential is refused"
        assert {self.name_of(current)} == self.alive()
        if old is not None:
            assert not self.accepts(old), "the old credential is accepted"
        assert not self.has_claim(), "a claim is left"

    def is_the_same_everywhere(self, nodes: list[Any]) -> bool:
        """Whether all nodes of a cluster have the same version of the secret, and the same of its claim."""
        seen = set()
        for node in nodes:
            found = []
            for path in ("desk", "claims/desk"):
                try:
                    answer = node.admin.adapter.get(f"/v1/secret/metadata/{self.prefix}/{path}")
                    found.append(answer["data"]["current_version"])
                except hvac.exceptions.InvalidPath:
                    found.append(0)
                except hvac.exceptions.VaultError:
                    return False
            seen.add(tuple(found))
        return len(seen) == 1

    def has_claim(self) -> bool:
        """Whether there is a claim in Vault."""
        try:
            self.admin.adapter.get(f"/v1/secret/metadata/{self.prefix}/claims/desk")
        except hvac.exceptions.InvalidPath:
            return False
        return True


SCENARIOS: dict[str, type[Scenario]] = {}


def scenario(name: str) -> Callable[[type[Scenario]], type[Scenario]]:
    """Give a scenario a name."""

    def register(made: type[Scenario]) -> type[Scenario]:
        SCENARIOS[name] = made
        return made

    return register


@contextmanager
def make(name: str, directory: Path, server: Any, **servers: Any) -> Iterator[Scenario]:
    """Set up a scenario, with its first credential.

    Args:
        name: in SCENARIOS.
        directory: for its files.
        server: the Vault.
        servers: others that run already: postgres, kms.
    """
    with ExitStack() as stack:
        made = SCENARIOS[name](directory, server, stack, **servers)
        made.begin()
        yield made


# API keys


class _ExchangeKey(Scenario):
    kind = "api-key"
    secrets = ("key",)

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        from servers.exchange import Exchange

        self.exchange = stack.enter_context(Exchange(self.directory))
        self.verify.append(self._verify())

    def _verify(self) -> dict[str, Any]:
        return {
            "type": "http",
            "url": f"{self.exchange.address}/orders",
            "header": "X-API-Key",
            "ca_file": self.exchange.ca_file,
        }

    def accepts(self, credential: Mapping[str, str]) -> bool:
        return self.exchange.accepts(credential["key"])

    def name_of(self, credential: Mapping[str, str]) -> str:
        return credential["key"]

    def alive(self) -> set[str]:
        return {key.key for key in self.exchange.alive.values()}

    def consumer(self) -> dict[str, Any]:
        return {"url": f"{self.exchange.address}/orders", "ca_file": self.exchange.ca_file}

    def admin_secrets(self) -> list[str]:
        return [self.exchange.admin_key]

    def begin_observing(self) -> None:
        self.exchange.seen.clear()


@scenario("api-key-random")
class RandomKey(_ExchangeKey):
    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        super().set_up(stack, servers)
        self.exchange.shared = self._readable

    def _readable(self) -> set[str]:
        """Return the keys of all versions that are there: what an exchange that reads KV accepts."""
        try:
            answer = self.admin.adapter.get(f"/v1/secret/metadata/{self.prefix}/desk")
        except hvac.exceptions.InvalidPath:
            return set()
        found = set()
        for version, metadata in answer["data"]["versions"].items():
            if not metadata["destroyed"] and not metadata["deletion_time"]:
                try:
                    found.add(self.kv(int(version))["data"]["key"])
                except hvac.exceptions.InvalidPath:
                    continue  # Destroyed meanwhile.
        return found

    def alive(self) -> set[str]:
        return self._readable()


@scenario("api-key-http")
class HttpKey(_ExchangeKey):
    policy = """
path "secret/data/{prefix}/exchange" {{ capabilities = ["read"] }}
"""

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        super().set_up(stack, servers)
        path = f"secret/{self.prefix}/exchange"
        self.admin.adapter.post(
            f"/v1/secret/data/{self.prefix}/exchange",
            json={"data": {"key": self.exchange.admin_key}},
        )
        self.options |= {
            "issuer": "http",
            "url": f"{self.exchange.address}/keys",
            "ca_file": self.exchange.ca_file,
            "admin": path,
        }

    def observed(self) -> list[Observed]:
        seen = [
            line.replace(" ", f" {self.exchange.address}", 1)
            for line in self.exchange.seen
            if "/keys" in line
        ]
        return [Observed(r"[A-Z]+ https:", seen)]


@scenario("api-key-exec")
class ExecKey(_ExchangeKey):
    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        super().set_up(stack, servers)
        admin = self.directory / "admin.json"
        admin.write_text(
            json.dumps(
                {
                    "address": self.exchange.address,
                    "ca_file": self.exchange.ca_file,
                    "key": self.exchange.admin_key,
                }
            )
        )
        command = [sys.executable, str(TESTS / "exchange_admin.py"), str(admin)]
        self.options |= {"issuer": "exec"} | {
            step: [*command, step] for step in ("create", "list", "revoke")
        }


# Databases


class _Database(Scenario):
    kind = ""
    secrets = ("password",)

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        self.postgres = servers["postgres"]
        self.mount = self.postgres.mount(self.server)
        self.usernames = [f"{self.prefix}_{each}" for each in ("a", "b")]
        for username in self.usernames:
            self.postgres.make_role(username, secrets.token_hex(8))
            self.mount.make_static_role(username, username, rotation_period="8760h")
        self.options |= {"database_mount": self.mount.name}
        self.verify += [
            {
                "type": "postgres",
                "host": self.postgres.host,
                "port": self.postgres.port,
                "sslmode": "disable",
            }
        ]

    def names(self) -> dict[str, str]:
        return {
            "database": self.mount.name,
            "first": self.usernames[0],
            "second": self.usernames[1],
        }

    def static(self, username: str) -> dict[str, str]:
        """Return the credential that Vault has for a user."""
        data = self.admin.adapter.get(f"/v1/{self.mount.name}/static-creds/{username}")["data"]
        return {"username": data["username"], "password": data["password"]}

    def accepts(self, credential: Mapping[str, str]) -> bool:
        return bool(self.postgres.admits(credential["username"], credential["password"]))

    def name_of(self, credential: Mapping[str, str]) -> str:
        return credential["username"]

    def consumer(self) -> dict[str, Any]:
        return {
            "conninfo": {
                "host": self.postgres.host,
                "port": self.postgres.port,
                "dbname": "postgres",
            },
            "database_mount": self.mount.name,
        }


@scenario("database-users")
class Users(_Database):
    kind = "database-users"
    once: ClassVar[Mapping[str, int]] = {"/rotate-role/": 2}
    policy = """
path "{database}/static-roles/{first}" {{ capabilities = ["read"] }}
path "{database}/static-roles/{second}" {{ capabilities = ["read"] }}
path "{database}/static-creds/{first}" {{ capabilities = ["read"] }}
path "{database}/static-creds/{second}" {{ capabilities = ["read"] }}
path "{database}/rotate-role/{first}" {{ capabilities = ["update"] }}
path "{database}/rotate-role/{second}" {{ capabilities = ["update"] }}
"""
    consumer_policy = """
path "{database}/static-creds/{first}" {{ capabilities = ["read"] }}
path "{database}/static-creds/{second}" {{ capabilities = ["read"] }}
"""

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        super().set_up(stack, servers)
        self.options["roles"] = self.usernames

    def current(self) -> dict[str, str]:
        return self.static(self.kv()["data"]["role"])

    def alive(self) -> set[str]:
        # The idle user's password is nobody's: that of before a rotation is what must be dead.
        return {self.current()["username"]}


@scenario("database-static-role")
class Static(_Database):
    kind = "database-static-role"
    stored = False
    goes_back = False
    retries = 1
    once: ClassVar[Mapping[str, int]] = {"/rotate-role/": 1}
    policy = """
path "{database}/static-roles/{first}" {{ capabilities = ["read"] }}
path "{database}/static-creds/{first}" {{ capabilities = ["read"] }}
path "{database}/rotate-role/{first}" {{ capabilities = ["update"] }}
"""
    consumer_policy = """
path "{database}/static-creds/{first}" {{ capabilities = ["read"] }}
"""

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        super().set_up(stack, servers)
        self.options["role"] = self.usernames[0]

    def consumer(self) -> dict[str, Any]:
        return {**super().consumer(), "role": self.usernames[0]}

    def current(self) -> dict[str, str]:
        return self.static(self.usernames[0])

    def alive(self) -> set[str]:
        return {self.usernames[0]}


# Service accounts


@scenario("service-account")
class Account(Scenario):
    kind = "service-account"
    secrets = ("secret_id",)
    policy = """
path "auth/{approle}/role/desk/role-id" {{ capabilities = ["read"] }}
path "auth/{approle}/role/desk/secret-id" {{ capabilities = ["update", "list"] }}
path "auth/{approle}/role/desk/secret-id/lookup" {{ capabilities = ["update"] }}
path "auth/{approle}/role/desk/secret-id-accessor/lookup" {{ capabilities = ["update"] }}
path "auth/{approle}/role/desk/secret-id-accessor/destroy" {{ capabilities = ["update"] }}
"""

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        self.mount = f"{self.prefix}-approle"
        self.admin.sys.enable_auth_method("approle", path=self.mount)
        self._role = f"/v1/auth/{self.mount}/role/desk"
        self.admin.adapter.post(
            self._role, json={"token_policies": ["default"], "token_ttl": "60s"}
        )
        self.options |= {"role": "desk", "auth_mount": self.mount}
        self.verify += [
            {"type": "vault", "address": self.server.address, "auth_mount": self.mount}
            | ({"ca_file": self.server.ca_file} if self.server.ca_file else {})
        ]

    def names(self) -> dict[str, str]:
        return {"approle": self.mount}

    def accepts(self, credential: Mapping[str, str]) -> bool:
        fields = {name: credential[name] for name in ("role_id", "secret_id")}
        try:
            self.admin.adapter.post(f"/v1/auth/{self.mount}/login", json=fields)
        except hvac.exceptions.InvalidRequest:
            return False
        return True

    def name_of(self, credential: Mapping[str, str]) -> str:
        return credential["secret_id_accessor"]

    def alive(self) -> set[str]:
        try:
            return set(self.admin.adapter.list(f"{self._role}/secret-id")["data"]["keys"])
        except hvac.exceptions.InvalidPath:
            return set()

    def consumer(self) -> dict[str, Any]:
        return {
            "login": f"{self.server.address}/v1/auth/{self.mount}/login",
            "ca_file": self.server.ca_file,
        }


# Certificates


@scenario("tls-certificate")
class Certificate(Scenario):
    kind = "tls-certificate"
    secrets = ("private_key",)
    policy = """
path "{pki}/sign/desk" {{ capabilities = ["update"] }}
path "{pki}/revoke" {{ capabilities = ["update"] }}
path "{pki}/crl/rotate" {{ capabilities = ["read"] }}
path "{pki}/cert/+" {{ capabilities = ["read"] }}
path "{pki}/certs" {{ capabilities = ["list"] }}
path "{pki}/certs/+" {{ capabilities = ["list"] }}
"""

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        from servers.tls_gate import TlsGate

        self.mount = f"{self.prefix}-pki"
        post = self.admin.adapter.post
        self.admin.sys.enable_secrets_engine(
            "pki", path=self.mount, config={"max_lease_ttl": "87600h"}
        )
        post(
            f"/v1/{self.mount}/root/generate/internal",
            json={"common_name": "desk root", "key_type": "ec", "key_bits": 256, "ttl": "87600h"},
        )
        post(
            f"/v1/{self.mount}/roles/desk",
            json={
                "allowed_domains": ["desk.test"],
                "allow_bare_domains": True,
                "allow_subdomains": True,
                "key_type": "any",
                "max_ttl": "8760h",
                "client_flag": True,
            },
        )
        self.gate = stack.enter_context(TlsGate(self.directory, self._read))
        self.options |= {
            "pki_mount": self.mount,
            "role": "desk",
            "common_name": "feed.desk.test",
            "days": 90,
        }
        self.verify += [
            {
                "type": "tls",
                "host": "127.0.0.1",
                "port": self.gate.port,
                "server_name": "localhost",
                "role": "client",
                "ca_file": self.gate.ca_file,
            }
        ]

    def _read(self) -> str:
        """Return the CA and its CRL, in PEM."""
        get = self.admin.session.get
        return "".join(
            get(
                f"{self.server.address}/v1/{self.mount}/{each}",
                verify=self.server.ca_file,
                timeout=10,
            ).text
            + "\n"
            for each in ("ca/pem", "crl/pem")
        )

    def names(self) -> dict[str, str]:
        return {"pki": self.mount}

    def accepts(self, credential: Mapping[str, str]) -> bool:
        self.gate.refresh()
        return self.gate.admits(credential["certificate"], credential["private_key"])

    def name_of(self, credential: Mapping[str, str]) -> str:
        return credential["serial_number"]

    def alive(self) -> set[str]:
        found = set()
        for serial in self.admin.adapter.list(f"/v1/{self.mount}/certs")["data"]["keys"]:
            data = self.admin.adapter.get(f"/v1/{self.mount}/cert/{serial}")["data"]
            if not data["revocation_time"] and "desk root" not in self._subject(
                data["certificate"]
            ):
                found.add(serial)
        return found

    def _subject(self, pem: str) -> str:
        from cryptography import x509

        return x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string()

    def consumer(self) -> dict[str, Any]:
        return {"port": self.gate.port, "ca_file": self.gate.ca_file}


# SSH keys


class _Ssh(Scenario):
    kind = "ssh-key"
    secrets = ("private_key",)
    logins_per_second = 4.0

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        from servers.sshd import sshd_server

        directory = self.directory / "sshd"
        directory.mkdir()
        self.sshd = stack.enter_context(sshd_server(directory))
        known_hosts = self.directory / "known_hosts"
        host_key = self.sshd.host_key.with_name("host_key.pub").read_text()
        known_hosts.write_text(f"[127.0.0.1]:{self.sshd.port} {host_key}")
        self.verify += [
            {
                "type": "ssh",
                "host": "127.0.0.1",
                "port": self.sshd.port,
                "user": self.sshd.user,
                "known_hosts": known_hosts,
            }
        ]

    def accepts(self, credential: Mapping[str, str]) -> bool:
        identity = self.directory / f"identity-{secrets.token_hex(4)}"
        identity.touch(0o600)
        identity.write_text(credential["private_key"])
        certificate = None
        if "certificate" in credential:
            certificate = identity.with_suffix(".cert")
            certificate.write_text(credential["certificate"] + "\n")
        try:
            done = self.sshd.login(identity, certificate=certificate)
        finally:
            identity.unlink()
        assert done.returncode in (0, 255), done
        assert not done.returncode or "Permission denied" in done.stderr, done.stderr
        return done.returncode == 0

    def name_of(self, credential: Mapping[str, str]) -> str:
        return credential["public_key"].split()[1]

    def consumer(self) -> dict[str, Any]:
        return {
            "port": self.sshd.port,
            "user": self.sshd.user,
            "known_hosts": str(self.directory / "known_hosts"),
            "directory": str(self.directory),
        }


@scenario("ssh-key-signed")
class SignedSshKey(_Ssh):
    policy = """
path "{ssh}/sign/desk" {{ capabilities = ["update"] }}
path "{ssh}/config/ca" {{ capabilities = ["read"] }}
"""

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        from tapeseal.vault.ssh import Ssh, user_role

        super().set_up(stack, servers)
        self.mount = f"{self.prefix}-ssh"
        with VaultSession(
            self.server.address, login=Token(self.server.token), ca_file=self.server.ca_file
        ) as session:
            engine = Ssh(session, self.mount)
            engine.set_up({"desk": {**user_role([self.sshd.user]), "max_ttl": "2400h"}})
            self.sshd.trusted_user_ca_keys.write_text(engine.ca_public_key() + "\n")
        self.options |= {
            "ssh_mount": self.mount,
            "role": "desk",
            "principals": [self.sshd.user],
            "ttl": "70d",
            "revoked_keys": self.sshd.revoked_keys,
        }

    def names(self) -> dict[str, str]:
        return {"ssh": self.mount}

    def alive(self) -> set[str]:
        # Nobody lists certificates of SSH; that an earlier one is dead is tried.
        return {self.name_of(self.current())}


@scenario("ssh-key-authorized")
class AuthorizedSshKey(_Ssh):
    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        super().set_up(stack, servers)
        self.sshd.authorized_keys.write_text("# keys of this host\n")
        self.options |= {"authorized_keys": self.sshd.authorized_keys}

    def alive(self) -> set[str]:
        lines = self.sshd.authorized_keys.read_text().splitlines()
        assert lines[0] == "# keys of this host"
        return {line.split()[2] for line in lines[1:]}


# Keys that never leave their service


@scenario("transit-key")
class TransitKey(Scenario):
    kind = "transit-key"
    stored = False
    goes_back = False
    once: ClassVar[Mapping[str, int]] = {"/keys/desk/rotate$": 1}
    policy = """
path "{transit}/keys/desk" {{ capabilities = ["read"] }}
path "{transit}/keys/desk/rotate" {{ capabilities = ["update"] }}
path "{transit}/keys/desk/config" {{ capabilities = ["update"] }}
path "{transit}/encrypt/desk" {{ capabilities = ["update"] }}
path "{transit}/decrypt/desk" {{ capabilities = ["update"] }}
path "{transit}/datakey/plaintext/desk" {{ capabilities = ["update"] }}
"""
    consumer_policy = """
path "{transit}/keys/desk" {{ capabilities = ["read"] }}
path "{transit}/encrypt/desk" {{ capabilities = ["update"] }}
path "{transit}/decrypt/desk" {{ capabilities = ["update"] }}
path "{transit}/rewrap/desk" {{ capabilities = ["update"] }}
"""

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        self.mount = f"{self.prefix}-transit"
        self.admin.sys.enable_secrets_engine("transit", path=self.mount)
        self.admin.adapter.post(f"/v1/{self.mount}/keys/desk", json={"derived": False})
        self.tape = self.directory / "tapes" / "day.tape"
        self.tape.parent.mkdir()
        make_tape(self.tape, self.keyring())
        self.options |= {"key": f"{self.mount}/desk", "tapes": [str(self.tape.parent)]}

    def keyring(self) -> tapeseal.Keyring:
        """Return a keyring over the key."""
        from tapeseal.keyrings.vault_transit import VaultTransitKeyring

        return VaultTransitKeyring(f"{self.mount}/desk", self.admin)

    def names(self) -> dict[str, str]:
        return {"transit": self.mount}

    def begin(self) -> None:
        pass

    def accepts(self, credential: Mapping[str, str]) -> bool:
        body = {"ciphertext": credential["ciphertext"]}
        try:
            self.admin.adapter.post(f"/v1/{self.mount}/decrypt/desk", json=body)
        except hvac.exceptions.InvalidRequest as error:
            if "too old" not in str(error):
                raise
            return False
        return True

    def name_of(self, credential: Mapping[str, str]) -> str:
        return credential["ciphertext"].split(":")[1]

    def alive(self) -> set[str]:
        key = self.admin.adapter.get(f"/v1/{self.mount}/keys/desk")["data"]
        return {
            f"v{each}" for each in range(key["min_decryption_version"], key["latest_version"] + 1)
        }

    def current(self) -> dict[str, str]:
        answer = self.admin.adapter.post(
            f"/v1/{self.mount}/encrypt/desk", json={"plaintext": "AAAA"}
        )
        return {"ciphertext": answer["data"]["ciphertext"]}

    def consumer(self) -> dict[str, Any]:
        return {"transit": self.mount}

    def made(self) -> int:
        return int(self.admin.adapter.get(f"/v1/{self.mount}/keys/desk")["data"]["latest_version"])

    def check(self, *, old: Mapping[str, str] | None = None) -> None:
        super().check(old=old)
        assert read_tape(self.tape, self.keyring()) == TRADES


class _Kms(Scenario):
    kind = "kms-key"
    stored = False
    live_calls: ClassVar[int]
    actions: ClassVar[list[str]]

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        self.kms = servers["kms"]
        self.key = self.kms.make_key(
            KeyUsage="ENCRYPT_DECRYPT",
            Description="the desk's",
            Tags=[{"TagKey": "desk", "TagValue": "eq"}],
        )
        self.alias = f"alias/{self.prefix}"
        self.kms.admin.create_alias(AliasName=self.alias, TargetKeyId=self.key)
        user = self.kms.environment(
            {"Statement": {"Effect": "Allow", "Action": self.actions, "Resource": "*"}}
        )
        self.proxy = stack.enter_context(NthFault(self.kms.address))
        where = {"AWS_ENDPOINT_URL_KMS": self.proxy.address, "AWS_DEFAULT_REGION": REGION}
        stack.enter_context(mock.patch.dict(os.environ, {**user, **where}))
        stack.enter_context(mock.patch("boto3.DEFAULT_SESSION", None))  # of another user
        self.consumer_user = self.kms.environment(
            {
                "Statement": {
                    "Effect": "Allow",
                    "Action": [
                        "kms:DescribeKey",
                        "kms:ListKeyRotations",
                        "kms:Encrypt",
                        "kms:Decrypt",
                    ],
                    "Resource": "*",
                }
            }
        )

    def begin(self) -> None:
        pass

    def begin_observing(self) -> None:
        self.kms.take_calls()

    def observed(self) -> list[Observed]:
        seen = [each["action"].removeprefix("kms:") for each in self.kms.take_calls()]
        # Those of a rewrap are the keyring's.
        seen = [each for each in seen if each not in ("Decrypt", "Encrypt", "GenerateDataKey")]
        # At the end it is asked once more what is in use.
        return [Observed("[A-Z]", seen[: -self.live_calls])]

    def accepts(self, credential: Mapping[str, str]) -> bool:
        try:
            self.kms.admin.decrypt(CiphertextBlob=bytes.fromhex(credential["ciphertext"]))
        except self.kms.admin.exceptions.DisabledException:
            return False
        return True

    def current(self) -> dict[str, str]:
        answer = self.kms.admin.encrypt(KeyId=self.alias, Plaintext=b"trades")
        return {"ciphertext": answer["CiphertextBlob"].hex(), "key": answer["KeyId"]}

    def name_of(self, credential: Mapping[str, str]) -> str:
        return credential["key"]

    def alive(self) -> set[str]:
        found = set()
        for page in self.kms.admin.get_paginator("list_keys").paginate():
            for each in page["Keys"]:
                metadata = self.kms.admin.describe_key(KeyId=each["KeyId"])["KeyMetadata"]
                if metadata["Enabled"] and metadata["Arn"] in self._ours():
                    found.add(metadata["Arn"])
        return found

    def _ours(self) -> set[str]:
        """Return the first key, and those that rotations made like it."""
        found = {self.key}
        for page in self.kms.admin.get_paginator("list_keys").paginate():
            for each in page["Keys"]:
                tags = self.kms.admin.list_resource_tags(KeyId=each["KeyId"])["Tags"]
                if {"TagKey": "scenario", "TagValue": self.prefix} in tags:
                    found.add(each["KeyArn"])
        return found

    def consumer(self) -> dict[str, Any]:
        return {
            "alias": self.alias,
            "aws": {
                **self.consumer_user,
                "AWS_ENDPOINT_URL_KMS": self.kms.address,
                "AWS_DEFAULT_REGION": REGION,
            },
        }


@scenario("kms-key-material")
class KmsMaterial(_Kms):
    live_calls = 4
    actions: ClassVar[list[str]] = [
        *("kms:DescribeKey", "kms:ListKeyRotations", "kms:GetKeyRotationStatus"),
        "kms:RotateKeyOnDemand",
    ]

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        super().set_up(stack, servers)
        self.options |= {"key": self.alias}

    def alive(self) -> set[str]:
        return {self.key}

    def again(self, **more: Any) -> None:
        # KMS rotates a key on demand ten times, and no further.
        if self.made() >= 8:
            self.key = self.kms.make_key(KeyUsage="ENCRYPT_DECRYPT")
            self.kms.admin.update_alias(AliasName=self.alias, TargetKeyId=self.key)

    def made(self) -> int:
        return len(self.kms.admin.list_key_rotations(KeyId=self.key)["Rotations"])

    def check(self, *, old: Mapping[str, str] | None = None) -> None:
        super().check()
        if old is not None:
            assert self.accepts(old), "what old material encrypted must open for ever"


@scenario("kms-key")
class KmsKey(_Kms):
    live_calls = 3
    actions: ClassVar[list[str]] = [
        *("kms:DescribeKey", "kms:ListKeyRotations", "kms:GetKeyRotationStatus"),
        *("kms:ListKeys", "kms:ListAliases", "kms:ListResourceTags", "kms:GetKeyPolicy"),
        *("kms:TagResource", "kms:CreateKey", "kms:UpdateAlias", "kms:DisableKey"),
        *("kms:GenerateDataKey", "kms:Encrypt", "kms:Decrypt"),  # for tapes
    ]

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        super().set_up(stack, servers)
        tags = [{"TagKey": "scenario", "TagValue": self.prefix}]
        self.kms.admin.tag_resource(KeyId=self.key, Tags=tags)
        self.tape = self.directory / "tapes" / "day.tape"
        self.tape.parent.mkdir()
        make_tape(self.tape, self.keyring())
        self.options |= {"key": self.alias, "replace": "key", "tapes": [str(self.tape.parent)]}

    def made(self) -> int:
        return len(self._ours())

    def keyring(self) -> tapeseal.Keyring:
        """Return a keyring over what is behind the alias now."""
        from tapeseal.keyrings.aws_kms import AwsKmsKeyring

        key = self.kms.admin.describe_key(KeyId=self.alias)["KeyMetadata"]["Arn"]
        return AwsKmsKeyring(key, client=self.kms.client(user=self.kms.admin_user))

    def check(self, *, old: Mapping[str, str] | None = None) -> None:
        super().check(old=old)
        assert read_tape(self.tape, self.keyring()) == TRADES


# Tapes


@scenario("tape-recipients")
class Recipients(Scenario):
    kind = "tape-recipients"

    def set_up(self, stack: ExitStack, servers: Mapping[str, Any]) -> None:
        self.keys = []
        for name in ("a", "b"):
            path = str(self.directory / f"{name}.key")
            create_key_file(path)
            self.keys.append(f"local:{path}")
        self.tapes = [self.directory / "tapes" / f"{number}.tape" for number in range(3)]
        self.tapes[0].parent.mkdir()
        for tape in self.tapes:
            make_tape(tape, tapeseal.keyring(self.keys[0]))
        self.options |= {
            "tapes": [str(self.tapes[0].parent)],
            "opens": [self.keys[0]],
            "recipients": [self.keys[1]],
        }

    def begin(self) -> None:
        pass

    def opens(self, uri: str) -> bool:
        """Whether a keyring opens all tapes."""
        try:
            for tape in self.tapes:
                assert read_tape(tape, tapeseal.keyring(uri)) == TRADES
        except KeyUnavailableError:
            return False
        return True

    def accepts(self, credential: Mapping[str, str]) -> bool:
        return self.opens(credential["keyring"])

    def name_of(self, credential: Mapping[str, str]) -> str:
        return credential["keyring"]

    def alive(self) -> set[str]:
        return {uri for uri in self.keys if self.opens(uri)}

    def current(self) -> dict[str, str]:
        # While both open them, the new one.
        order = [*self.options["recipients"], *self.options["opens"]]
        return {"keyring": next(uri for uri in order if self.opens(uri))}

    def again(self, **more: Any) -> None:
        self.options["opens"], self.options["recipients"] = (
            self.options["recipients"],
            self.options["opens"],
        )
        self.write_plan(**more)

    def consumer(self) -> dict[str, Any]:
        return {"tapes": [str(each) for each in self.tapes], "keys": self.keys}
