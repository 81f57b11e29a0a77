"""PostgreSQL of Debian's package: a cluster of its own on a free port, with passwords by SCRAM.

    with postgres_server() as postgres:
        postgres.make_role("feed", "password")
        assert postgres.admits("feed", "password")
        mount = postgres.mount(bao)               # a `database` engine of the Vault over it
        mount.make_role("reader", default_ttl="5s", max_ttl="20s")
        bao.admin.adapter.get(f"/v1/{mount.name}/creds/reader")

The fixture `postgres` of conftest.py starts one once a session. Debian's packages are postgresql-15 (or newer) and
util-linux; the server refuses to run as root, so there it runs as their user `postgres`.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hvac.exceptions import InvalidPath
from psycopg import sql

from servers.bao import Server, free_ports, wait_for

ADMIN_PASSWORD = "password-of-the-admin"
SUPERUSER = "postgres"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "max_connections": "100",
    "shared_buffers": "16MB",
    "max_wal_size": "64MB",
    "autovacuum": "off",
}

# The second kind is a user that was dropped while he logged in.
_REFUSED = re.compile(
    'password authentication failed|role ".*" (does not exist|is not permitted to log in)'
)

CREATION = """CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"""


def programs() -> Path:
    """Return the directory of the server's programs, the newest; without one the test skips, in CI it fails."""
    found = [
        path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb") if path.is_file()
    ]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    if found:
        return max(found, key=lambda path: [int(part) for part in path.parts if part.isdecimal()])
    if os.environ.get("CI"):
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql")
    pytest.skip("PostgreSQL is not installed")


class Postgres:
    """One cluster. It outlasts kill() and start().

    Attributes:
        directory: its own; the log is postgres.log.
        host: the address it listens on.
        port: the port.
    """

    host = "127.0.0.1"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_ports(1)
        self._programs = programs()
        self._user: list[str] = []
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(directory, user.pw_uid, user.pw_gid)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            self._user = ["setpriv", *ids]
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "LC_ALL": "C.UTF-8",
        }
        self.process: subprocess.Popen[bytes] | None = None
        self._mounts = 0

    def initialize(self) -> None:
        """Make the files of the cluster."""
        password_file = self.directory / "password"
        password_file.write_text(ADMIN_PASSWORD)
        options = [
            "--auth=scram-sha-256",
            "--no-sync",
            "--encoding=UTF8",
            f"--username={SUPERUSER}",
        ]
        try:
            subprocess.run(
                [
                    *(*self._user, self._programs / "initdb", *options),
                    *(f"--pwfile={password_file}", self.directory / "data"),
                ],
                check=True,
                capture_output=True,
                env=self._environment,
                cwd=self.directory,
            )
        finally:
            password_file.unlink()

    def start(self) -> None:
        """Start the process and wait until it takes logins."""
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        data = self.directory / "data"
        with open(self.directory / "postgres.log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self._user, self._programs / "postgres", "-D", data),
                    *("-p", str(self.port), *settings),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=self._environment,
                cwd=self.directory,
            )
        try:
            wait_for("PostgreSQL's first login", self._is_up)
        except BaseException:
            self.kill()
            raise

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "postgres.log").read_text()
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """End the process and all its sessions at once, if it runs; start() then recovers as after a crash."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()

    def conninfo(
        self,
        user: str = SUPERUSER,
        password: str = ADMIN_PASSWORD,
        database: str = "postgres",
        **options: Any,
    ) -> str:
        """Return what psycopg.connect() takes."""
        fields = {"user": user, "password": password, "dbname": database, "sslmode": "disable"}
        return psycopg.conninfo.make_conninfo(
            "", host=self.host, port=self.port, connect_timeout=10, **{**fields, **options}
        )

    def connect(
        self, user: str = SUPERUSER, password: str = ADMIN_PASSWORD, database: str = "postgres"
    ) -> "psycopg.Connection[Any]":
        """Log in; statements take effect at once, and `with` closes the connection."""
        return psycopg.connect(self.conninfo(user, password, database), autocommit=True)

    def admits(self, user: str, password: str, database: str = "postgres") -> bool:
        """Whether a login is let in. An outage of the server is an error all the same."""
        try:
            self.connect(user, password, database).close()
        except psycopg.OperationalError as error:
            if not _REFUSED.search(str(error)):
                raise
            return False
        return True

    def execute(self, statement: str | sql.Composable, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser and return its rows."""
        with self.connect() as connection:
            cursor = connection.execute(
                sql.SQL(statement) if isinstance(statement, str) else statement, values or None
            )
            return cursor.fetchall() if cursor.description else []

    def make_role(self, name: str, password: str, options: str = "LOGIN") -> None:
        """Make a role that can log in, with the options of CREATE ROLE."""
        statement = sql.SQL("CREATE ROLE {} WITH {} PASSWORD {}")
        self.execute(
            statement.format(sql.Identifier(name), sql.SQL(options), sql.Literal(password))
        )

    def make_database(self, name: str, owner: str = SUPERUSER) -> None:
        """Make an empty database."""
        statement = sql.SQL("CREATE DATABASE {} OWNER {}")
        self.execute(statement.format(sql.Identifier(name), sql.Identifier(owner)))

    def roles(self) -> set[str]:
        """Return the names of all roles that can log in."""
        return {name for (name,) in self.execute("SELECT rolname FROM pg_roles WHERE rolcanlogin")}

    def mount(self, bao: Server, database: str = "postgres") -> "DatabaseMount":
        """Mount a `database` engine over this cluster, with a role of its own to manage others by."""
        self._mounts += 1
        name = f"database-{self._mounts}-{os.urandom(4).hex()}"
        self.make_role(f"vault-{name}", ADMIN_PASSWORD, "LOGIN SUPERUSER")
        bao.admin.sys.enable_secrets_engine("database", path=name)
        address = f"{self.host}:{self.port}/{database}"
        bao.admin.adapter.post(
            f"/v1/{name}/config/postgres",
            json={
                "plugin_name": "postgresql-database-plugin",
                "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{address}?sslmode=disable",
                "username": f"vault-{name}",
                "password": ADMIN_PASSWORD,
                "allowed_roles": "*",
            },
        )
        return DatabaseMount(bao, self, name)


class DatabaseMount:
    """A `database` engine of a Vault over a cluster; its one connection is named "postgres".

    Attributes:
        bao: the Vault.
        postgres: the cluster.
        name: where it is mounted.
    """

    def __init__(self, bao: Server, postgres: Postgres, name: str) -> None:
        self.bao = bao
        self.postgres = postgres
        self.name = name

    def make_role(
        self, name: str, *, default_ttl: str = "1h", max_ttl: str = "24h", **fields: Any
    ) -> str:
        """Make a dynamic role and return the path of its credentials."""
        self.bao.admin.adapter.post(
            f"/v1/{self.name}/roles/{name}",
            json={
                "db_name": "postgres",
                "creation_statements": [CREATION],
                "default_ttl": default_ttl,
                "max_ttl": max_ttl,
                **fields,
            },
        )
        return f"{self.name}/creds/{name}"

    def make_static_role(
        self, name: str, username: str, *, rotation_period: str = "1h", **fields: Any
    ) -> str:
        """Put a role of the cluster, which must exist, under Vault's rotation; return the path of its credentials.

        Its password is changed at once, and then each period: 5 seconds at least, up to 5 seconds late.
        """
        self.bao.admin.adapter.post(
            f"/v1/{self.name}/static-roles/{name}",
            json={
                "db_name": "postgres",
                "username": username,
                "rotation_period": rotation_period,
                **fields,
            },
        )
        return f"{self.name}/static-creds/{name}"

    def leases(self, role: str) -> list[str]:
        """Return the ids of a dynamic role's leases."""
        prefix = f"{self.name}/creds/{role}"
        try:
            answer = self.bao.admin.adapter.list(f"/v1/sys/leases/lookup/{prefix}")
        except InvalidPath:
            return []
        return [f"{prefix}/{key}" for key in answer["data"]["keys"]]


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Run a cluster, new and empty."""
    # Not under pytest's own directory, which only its user may enter.
    directory = Path(tempfile.mkdtemp(prefix="tapeseal-postgres-"))
    server = None
    try:
        server = Postgres(directory)
        server.initialize()
        server.start()
        yield server
    finally:
        if server is not None:
            server.kill()
        shutil.rmtree(directory)
