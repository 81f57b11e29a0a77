"""The configuration of a new set-up: what `tapeseal init` writes, from the files beside this one."""

import ipaddress
import os
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from tapeseal.files import StrPath, new_file, sync_directory, write_all

SERVERS: Final = ("openbao", "vault")
STORAGES: Final = ("raft", "consul")

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")
_KEY_ARN = re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+")


class Node(NamedTuple):
    """One server of the cluster."""

    host: str
    """Name or address, as the others and the clients reach it and its certificate has it."""
    port: int = 8200

    @classmethod
    def parse(cls, text: str) -> "Node":
        """Read HOST or HOST:PORT.

        Raises:
            ValueError: it is neither.
        """
        host, colon, port = text.partition(":")
        number = int(port) if re.fullmatch(r"\d{1,5}", port) else 0
        if not _HOST.fullmatch(host) or (colon and not 1 <= number <= 65534):
            raise ValueError(f"{text!r} is not HOST or HOST:PORT")
        return cls(host, number) if colon else cls(host)


@dataclass(frozen=True)
class SetUp:
    """What a set-up is made for.

    Raises:
        ValueError: something that cannot be.
    """

    name: str = "trading"
    """Of the cluster."""
    nodes: Sequence[Node] = (Node("vault1.example"), Node("vault2.example"), Node("vault3.example"))
    server: str = "openbao"
    """One of SERVERS."""
    storage: str = "raft"
    """One of STORAGES; consul is for HashiCorp's server alone."""
    environments: Sequence[str] = ("prod", "staging")
    """Each has secrets, keys and roles of its own."""
    domain: str = "example"
    key_arn: str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    """Of the KMS key that wraps data keys."""
    cidrs: Sequence[str] = ()
    """Networks that secret ids can be used from; none: any."""
    secret_id_days: int = 35
    """How long a secret id lasts; longer than the rotation of service accounts takes to make the next."""
    configuration_directory: str = ""
    """Of the servers; empty: /etc/openbao or /etc/vault.d."""
    data_directory: str = ""
    log_directory: str = ""

    def __post_init__(self) -> None:
        for each in (self.name, *self.environments):
            if not _NAME.fullmatch(each):
                raise ValueError(
                    f"{each!r} is no name: lower-case letters, digits and '-', at most 40"
                )
        if self.server not in SERVERS or self.storage not in STORAGES:
            raise ValueError(f"there is no server {self.server!r} with storage {self.storage!r}")
        if self.storage == "consul" and self.server != "vault":
            raise ValueError("OpenBao has no Consul storage: take raft, or HashiCorp's server")
        if not self.environments or len(set(self.environments)) < len(self.environments):
            raise ValueError("there is at least one environment, each with a name of its own")
        if len(self.nodes) not in (1, 3, 5) or len(set(self.nodes)) < len(self.nodes):
            raise ValueError(
                f"a cluster has 1, 3 or 5 nodes, not {len(self.nodes)}: the others have to be more than half"
            )
        for directory in (self.configuration_directory, self.data_directory, self.log_directory):
            if directory and not re.fullmatch(r"/[A-Za-z0-9._/-]+", directory):
                raise ValueError(f"{directory!r} is no absolute path of plain characters")
        if not _HOST.fullmatch(self.domain):
            raise ValueError(f"{self.domain!r} is no domain")
        if not _KEY_ARN.fullmatch(self.key_arn):
            raise ValueError(f"{self.key_arn!r} is not the ARN of a KMS key")
        for cidr in self.cidrs:
            ipaddress.ip_network(cidr)
        if not 1 <= self.secret_id_days <= 365:
            raise ValueError("a secret id lasts a day to a year")


def write_set_up(directory: StrPath, set_up: SetUp) -> list[Path]:
    """Write the files of a set-up into a directory, which is made where there is none.

    Returns:
        The files, in the order in which they are read.

    Raises:
        FileExistsError: one of them is there; then none is written.
        OSError: one could not be written.
    """
    root = Path(directory)
    files = dict(_files(set_up))
    for name in files:
        if os.path.lexists(root / name):
            raise FileExistsError(17, "the file exists", str(root / name))
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path, 0o755 if name.endswith(".sh") else 0o644, replace=False) as fd:
            write_all(fd, text.encode())
            os.fsync(fd)
        sync_directory(path)
    return [root / name for name in files]


class _Template(string.Template):
    """Text in which `@{name}` stands for a value, and nothing else for anything: `$` is the shell's."""

    pattern = r"(?P<escaped>(?!))(?P<named>(?!))|@\{(?P<braced>[a-z_]+)\}|(?P<invalid>@\{)"  # type: ignore[assignment]


def _files(set_up: SetUp) -> Iterator[tuple[str, str]]:
    openbao = set_up.server == "openbao"
    configuration = set_up.configuration_directory or (
        "/etc/openbao" if openbao else "/etc/vault.d"
    )
    values = {
        "name": set_up.name,
        "command": "bao" if openbao else "vault",
        "tls_directory": f"{configuration}/tls",
        "data_directory": set_up.data_directory or f"/var/lib/{set_up.server}",
        "log_directory": set_up.log_directory or f"/var/log/{set_up.server}",
        "region": set_up.key_arn.split(":")[3],
        "key_arn": set_up.key_arn,
        "domain": set_up.domain,
        "namespace": set_up.name,
        "image": f"registry.{set_up.domain}/tapeseal:0.1",
        "environment": set_up.environments[0],
        "environments": " ".join(set_up.environments),
        "first_host": set_up.nodes[0].host,
        "first_port": set_up.nodes[0].port,
        "vault_addresses": ",".join(f"https://{node.host}:{node.port}" for node in set_up.nodes),
        "secret_id_ttl": f"{set_up.secret_id_days * 24}h",
        "cidrs": f"secret_id_bound_cidrs={','.join(set_up.cidrs)} " if set_up.cidrs else "",
        "hardening": _read("systemd/hardening.conf"),
    }

    def fill(template: str, **more: str | int) -> str:
        return _Template(_read(template)).substitute({**values, **more})

    yield "README.md", fill("README.md")
    names = [f"{set_up.name}-{number}" for number in range(1, len(set_up.nodes) + 1)]
    for name, node in zip(names, set_up.nodes, strict=True):
        joins = "".join(
            fill("vault/join.hcl", host=other.host, port=other.port)
            for other in set_up.nodes
            if other != node
        )
        loopback = node.host == "localhost" or node.host.startswith("127.")
        here: dict[str, str | int] = {"node": name, "host": node.host}
        yield (
            f"vault/{name}.hcl",
            fill(
                "vault/server.hcl",
                **here,
                port=node.port,
                cluster_port=node.port + 1,
                listen="127.0.0.1" if loopback else "0.0.0.0",
                storage_note=fill(f"vault/note-{set_up.storage}.hcl", **here).rstrip(),
                storage_block=fill(f"vault/storage-{set_up.storage}.hcl", **here, joins=joins),
                audit=fill(f"vault/audit-{set_up.server}.hcl", **here),
                seal=fill("vault/seal.hcl"),
            ),
        )
    for role in ("trading", "risk", "rotation"):
        for environment in set_up.environments:
            yield (
                f"policies/{role}-{environment}.hcl",
                fill(f"policies/{role}.hcl", environment=environment),
            )
    environments = "".join(
        fill("policies/admin-environment.hcl", environment=each) for each in set_up.environments
    )
    yield "policies/admin.hcl", fill("policies/admin.hcl", admin_environments=environments)
    yield "policies/break-glass.hcl", fill("policies/break-glass.hcl")
    yield "policies/doctor.hcl", fill("policies/doctor.hcl")
    audit = ""
    if not openbao:
        audit = (
            '[[ $("$vault" audit list -format=json) == *"\\"file/\\":"* ]] || '
            f'"$vault" audit enable file file_path={values["log_directory"]}/audit.log mode=0600\n'
        )
    yield "set-up.sh", fill("set-up.sh", enable_audit=audit)
    for name in (
        "rotation.toml",
        "aws/recorder.json",
        "aws/reader.json",
        "aws/rotation.json",
        "aws/doctor.json",
        "systemd/tapeseal-rotate.service",
        "systemd/tapeseal-recorder@.service",
        "kubernetes/rotate.yaml",
    ):
        yield name, fill(name)
    yield ".pre-commit-config.yaml", fill("pre-commit-config.yaml")


def _read(name: str) -> str:
    return (resources.files(__package__) / "files" / name).read_text(encoding="utf-8")
