"""Targets of rotations against real files, programs and a real Vault; Kubernetes against a double of its API."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rotations import TestServices, credential, rotation, target
from servers.bao import Server
from servers.kubernetes_api import KubernetesApi
from support import leaks
from tapeseal.errors import RotationError, ServiceUnavailableError, VaultRefusedError

PASSWORD = 'p4ss"w\\rd\n-of-the-desk-é'
LOGIN = {"username": "desk", "password": PASSWORD}


# Files


@pytest.mark.parametrize(
    ("parts", "content", "expected"),
    [
        ({"key": "k-123"}, None, "k-123"),
        (LOGIN, None, json.dumps(LOGIN)),
        (LOGIN, "user={username}\npass={password}\n", f"user=desk\npass={PASSWORD}\n"),
        (LOGIN, '{{"{username}": "{username}"}}', '{"desk": "desk"}'),
    ],
)
def test_file_content(
    tmp_path: Path, parts: dict[str, str], content: str | None, expected: str
) -> None:
    """A file holds the one part of a credential, all of them as JSON, or what its template says."""
    path = tmp_path / "credential"
    settings = {} if content is None else {"content": content}
    target("file", path=str(path), **settings).deploy(credential(**parts), rotation())
    found = path.read_text()
    assert expected == (json.dumps(json.loads(found)) if expected.startswith('{"user') else found)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ["credential"] == os.listdir(tmp_path)


def test_file_keeps_its_access(tmp_path: Path) -> None:
    """A file that is replaced keeps its permission bits, owner and group, and a symlink stays one."""
    path, link = tmp_path / "credential", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 4242, 4343)
    link.symlink_to(path)
    before = path.stat()
    target("file", path=str(link)).deploy(credential(key="new"), rotation())
    after = path.stat()
    assert ("new", True) == (path.read_text(), link.is_symlink())
    assert (before.st_mode, before.st_uid, before.st_gid) == (
        after.st_mode,
        after.st_uid,
        after.st_gid,
    )
    assert before.st_ino != after.st_ino


@pytest.mark.parametrize("content", ["{password", "{0}", "{password!r}", "{password:>9}", "{}"])
def test_file_template_is_none(tmp_path: Path, content: str) -> None:
    """A template that is none is refused when the plan is read."""
    with pytest.raises(ValueError, match="content: "):
        target("file", path=str(tmp_path / "file"), content=content)


def test_file_part_is_missing(tmp_path: Path) -> None:
    """A template that names a part that the credential lacks leaves the file as it is."""
    path = tmp_path / "credential"
    path.write_text("old")
    with pytest.raises(RotationError, match="no part 'token', only: password, username") as caught:
        target("file", path=str(path), content="{token}").deploy(credential(**LOGIN), rotation())
    assert set() == leaks(caught.value, [PASSWORD])
    assert ("old", ["credential"]) == (path.read_text(), os.listdir(tmp_path))


def test_file_without_directory(tmp_path: Path) -> None:
    """A directory that is not there is named."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        target("file", path=str(tmp_path / "nowhere" / "f")).deploy(credential(key="k"), rotation())


# Commands


WRITER = """
import os, sys
from pathlib import Path
Path(sys.argv[1]).write_bytes(sys.stdin.buffer.read())
seen = [open(f"/proc/self/{each}").read() for each in ("cmdline", "environ")]
Path(sys.argv[1]).with_suffix(".seen").write_text("".join(seen))
print(f"no {os.environ['TAPESEAL_SECRET']} in", os.environ["TAPESEAL_ROTATION"], file=sys.stderr)
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("part", [None, "password"])
def test_exec(tmp_path: Path, part: str | None) -> None:
    """A command gets the credential on its standard input, as JSON or one part of it as it is."""
    path = tmp_path / "got"
    settings = {} if part is None else {"part": part}
    made = target("exec", command=[sys.executable, "-c", WRITER, str(path), "0"], **settings)
    made.deploy(credential(**LOGIN), rotation())
    assert (LOGIN if part is None else PASSWORD) == (
        json.loads(path.read_text()) if part is None else path.read_text()
    )
    assert "p4ss" not in path.with_suffix(".seen").read_text()


@pytest.mark.parametrize(
    ("code", "error"), [(75, ServiceUnavailableError), (1, RotationError), (255, RotationError)]
)
def test_exec_fails(tmp_path: Path, code: int, error: type[Exception]) -> None:
    """How a command ends says whether to try again, and the error what it said."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "got"), str(code)]
    with pytest.raises(
        error, match=f"ended with code {code}: no desk in 0123456789abcdef"
    ) as caught:
        target("exec", command=command).deploy(credential(**LOGIN), rotation())
    assert set() == leaks(caught.value, [PASSWORD, "p4ss"])


def test_exec_hangs() -> None:
    """A command that does not end is killed."""
    made = target("exec", command=["sleep", "600"], timeout="1s")
    with pytest.raises(ServiceUnavailableError, match="did not end within 1 seconds"):
        made.deploy(credential(**LOGIN), rotation())


# Vault


@pytest.mark.server
def test_vault(bao: Server) -> None:
    """Members of a secret in KV are set beside its others, and where nothing changes no version is written."""
    path = f"targets-{os.urandom(4).hex()}"
    made = target("vault", path=f"secret/{path}", members={"api_key": "password"})
    with_services = rotation(services=TestServices(bao))
    made.deploy(credential(**LOGIN), with_services)
    assert {"api_key": PASSWORD} == _data(bao, path)
    others = {"api_key": PASSWORD, "url": "https://exchange.example", "n": 5}
    bao.admin.adapter.post(f"/v1/secret/data/{path}", json={"data": others})
    made.deploy(credential(**LOGIN), with_services)
    made.deploy(credential(username="desk", password="new"), with_services)
    made.deploy(credential(username="desk", password="new"), with_services)
    assert {"api_key": "new", "url": "https://exchange.example", "n": 5} == _data(bao, path)
    metadata = bao.admin.adapter.get(f"/v1/secret/metadata/{path}")["data"]
    assert 3 == metadata["current_version"]


def _data(bao: Server, path: str) -> object:
    return bao.admin.adapter.get(f"/v1/secret/data/{path}")["data"]["data"]


@pytest.mark.server
def test_vault_refuses(bao: Server) -> None:
    """What is no KV store is named, and the credential is not."""
    with pytest.raises(VaultRefusedError, match="no handler for route") as caught:
        target("vault", path="nowhere/desk").deploy(
            credential(**LOGIN), rotation(services=TestServices(bao))
        )
    assert set() == leaks(caught.value, [PASSWORD])


# Kubernetes


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[KubernetesApi]:
    """A double of a Kubernetes API."""
    with KubernetesApi(tmp_path) as api:
        yield api


def deploy(api: KubernetesApi, parts: dict[str, str], **settings: object) -> None:
    """Deploy a credential to the Secret hft/feed."""
    made = target(
        "kubernetes", namespace="hft", name="feed", kubeconfig=str(api.kubeconfig), **settings
    )
    made.deploy(credential(**parts), rotation())


def test_kubernetes(kubernetes: KubernetesApi) -> None:
    """Keys of a Secret are applied beside those of others, and made where there is no Secret yet."""
    deploy(kubernetes, LOGIN)
    assert {("hft", "feed"): LOGIN} == kubernetes.secrets
    kubernetes.secrets["hft", "feed"]["url"] = "https://exchange.example"
    deploy(kubernetes, {"username": "desk", "password": "new"}, keys={"api_key": "password"})
    assert {"api_key": "new", "url": "https://exchange.example"} == kubernetes.secrets[
        "hft", "feed"
    ]


def test_kubernetes_conflict(kubernetes: KubernetesApi) -> None:
    """A key that somebody else manages is left to them, unless the plan takes it over."""
    kubernetes.secrets["hft", "feed"] = {"password": "theirs"}
    kubernetes.managers["hft", "feed"] = {"password": "kubectl-edit"}
    with pytest.raises(
        RotationError, match=r'conflicts with "kubectl-edit": - .data.password \(409\); force'
    ) as caught:
        deploy(kubernetes, LOGIN)
    assert set() == leaks(caught.value, [PASSWORD])
    assert {"password": "theirs"} == kubernetes.secrets["hft", "feed"]
    deploy(kubernetes, LOGIN, force=True)
    assert LOGIN == kubernetes.secrets["hft", "feed"]


@pytest.mark.slow
def test_kubernetes_is_down(kubernetes: KubernetesApi) -> None:
    """An API server that is out of service is asked again later."""
    kubernetes.down = True
    with pytest.raises(ServiceUnavailableError, match=r"hft/feed of Kubernetes: .* \(503\)"):
        deploy(kubernetes, LOGIN)


@pytest.mark.slow
def test_kubernetes_without_namespace(kubernetes: KubernetesApi) -> None:
    """What the API server refuses for good is said in its words."""
    kubernetes.namespaces.clear()
    with pytest.raises(RotationError, match=r'namespaces "hft" not found \(404\)'):
        deploy(kubernetes, LOGIN)
