"""Custody of a Vault: shares that only custodians can read, made once, and unsealing by a quorum of them."""

import base64
import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support import leaks
from tapeseal.keyrings.public_key import PublicKeyKeyring, create_key_pair

hvac = pytest.importorskip("hvac")

from servers.bao import Server, free_ports, wait_for  # noqa: E402
from servers.certs import Authority  # noqa: E402
from servers.fault_proxy import FaultProxy  # noqa: E402
from tapeseal import AnyOf, audit, blob, break_glass, custody  # noqa: E402
from tapeseal.custody import initialise, seal_status, unseal  # noqa: E402
from tapeseal.errors import (  # noqa: E402
    AccessDeniedError,
    AuditError,
    DamagedError,
    KeyUnavailableError,
    OutcomeUnknownError,
    ServiceUnavailableError,
)
from tapeseal.vault import Token, VaultSession  # noqa: E402

pytestmark = pytest.mark.server

NAMES = ("alice", "bob", "carol")


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the keys of three custodians: NAME and NAME.pub."""
    directory = tmp_path_factory.mktemp("custody")
    for name in NAMES:
        create_key_pair(directory / name)
    return directory


@pytest.fixture
def publics(halves: Path) -> dict[str, PublicKeyKeyring]:
    """The custodians' public keys."""
    return {name: PublicKeyKeyring(halves / f"{name}.pub") for name in NAMES}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server behind TLS that nobody has initialised, with its data in memory."""
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue_server()
    port = free_ports(1)
    config = tmp_path / "bao.hcl"
    config.write_text(
        f'api_addr = "https://127.0.0.1:{port}"\nlistener "tcp" {{\n  address = "127.0.0.1:{port}"\n'
        f'  tls_cert_file = "{certificate}"\n  tls_key_file = "{key}"\n  tls_min_version = "tls13"\n}}\n'
        'storage "inmem" {}\n'
    )
    made = Server(tmp_path, f"https://127.0.0.1:{port}", [f"-config={config}"], authority.ca_file)
    try:
        made.start()
        yield made
    finally:
        made.close()


Session = Callable[..., VaultSession]


@pytest.fixture
def session(server: Server) -> Iterator[VaultSession]:
    """A session with the server, without a token."""
    with VaultSession(
        server.address, login=Token("none"), ca_file=server.ca_file, deadline=10
    ) as session:
        yield session


def test_initialise_and_unseal(
    server: Server,
    session: VaultSession,
    publics: dict[str, PublicKeyKeyring],
    halves: Path,
    tmp_path: Path,
) -> None:
    """Any two custodians unseal, one after the other; the root token opens for two of them together."""
    folder = tmp_path / "shares"
    made = initialise(session, publics, 2, folder)
    assert ({name: folder / f"{name}.share" for name in NAMES}, False) == (
        made.shares,
        made.recovery,
    )
    expected = {*(f"{name}.share" for name in NAMES), "root.glass", "root.glass.drill"}
    assert expected == {path.name for path in folder.iterdir()}
    assert {0o600} == {path.stat().st_mode & 0o777 for path in made.shares.values()}
    assert (True, True, 2, 0, False) == seal_status(session)
    first = unseal(session, made.shares["carol"], PublicKeyKeyring(halves / "carol"))
    assert (True, 1) == (first.sealed, first.progress)
    assert not unseal(session, made.shares["alice"], PublicKeyKeyring(halves / "alice")).sealed
    server.wait_for_status(200)

    request = tmp_path / "root.request"
    fingerprint = break_glass.request(made.root, request, reason="set up")
    approvals = [tmp_path / f"{name}.approval" for name in ("bob", "carol")]
    for path in approvals:
        keyring = PublicKeyKeyring(halves / path.stem)
        break_glass.approve(made.root, request, keyring, path, fingerprint=fingerprint)
    with break_glass.open_package(made.root, request, approvals) as opened:
        token = opened["root-token"].expose()
    client = hvac.Client(server.address, token=token, verify=server.ca_file)
    assert ["root"] == client.auth.token.lookup_self()["data"]["policies"]
    client.adapter.close()


@pytest.mark.slow
def test_nodes_that_join(
    publics: dict[str, PublicKeyKeyring],
    halves: Path,
    tmp_path: Path,
) -> None:
    """A further node, which takes the last share before it has joined its cluster, is waited for."""
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue_server()
    ports = [free_ports(2), free_ports(2)]
    nodes = []
    for number, port in enumerate(ports):
        home = tmp_path / f"node{number}"
        (home / "raft").mkdir(parents=True)
        (home / "bao.hcl").write_text(
            f'api_addr = "https://127.0.0.1:{port}"\ncluster_addr = "https://127.0.0.1:{port + 1}"\n'
            f'listener "tcp" {{\n  address = "127.0.0.1:{port}"\n  cluster_address = "127.0.0.1:{port + 1}"\n'
            f'  tls_cert_file = "{certificate}"\n  tls_key_file = "{key}"\n  tls_min_version = "tls13"\n}}\n'
            f'storage "raft" {{\n  path = "{home / "raft"}"\n  node_id = "{number}"\n'
            f'  retry_join {{\n    leader_api_addr = "https://127.0.0.1:{ports[0]}"\n'
            f'    leader_ca_cert_file = "{authority.ca_file}"\n  }}\n}}\n'
        )
        address = f"https://127.0.0.1:{port}"
        nodes.append(Server(home, address, [f"-config={home / 'bao.hcl'}"], authority.ca_file))
    try:
        for number, node in enumerate(nodes):
            node.start()
            login = Token("none")
            with VaultSession(node.address, login=login, ca_file=node.ca_file) as session:
                if number == 0:
                    initialise(session, publics, 2, tmp_path / "shares")
                else:
                    wait_for("the first node found", lambda: seal_status(session).initialised)
                for name in ("alice", "bob"):
                    share = tmp_path / "shares" / f"{name}.share"
                    status = unseal(session, share, PublicKeyKeyring(halves / name))
                assert not status.sealed
    finally:
        for node in nodes:
            node.close()


def test_a_share_is_for_its_custodian(
    session: VaultSession, publics: dict[str, PublicKeyKeyring], halves: Path, tmp_path: Path
) -> None:
    """Another custodian's key opens nothing; a changed file, or one that is something else, is refused."""
    made = initialise(session, publics, 2, tmp_path / "shares")
    share = made.shares["alice"]
    with pytest.raises(KeyUnavailableError, match="no recipient is one of ours"):
        unseal(session, share, PublicKeyKeyring(halves / "bob"))
    raw = bytearray(share.read_bytes())
    raw[-1] ^= 1
    share.write_bytes(raw)
    with pytest.raises(DamagedError):
        unseal(session, share, PublicKeyKeyring(halves / "alice"))
    share.write_bytes(blob.encrypt(b"x", keyring=publics["alice"]))
    with pytest.raises(ValueError, match="is no share of a Vault"):
        unseal(session, share, PublicKeyKeyring(halves / "alice"))
    assert 0 == seal_status(session).progress


def test_shares_of_another_vault(
    session: VaultSession, publics: dict[str, PublicKeyKeyring], halves: Path, tmp_path: Path
) -> None:
    """Shares that do not belong to it are refused in the end, and the true ones still unseal."""
    made = initialise(session, publics, 2, tmp_path / "shares")
    with (
        VaultSession(
            session.addresses[0], login=Token("none"), ca_file=str(tmp_path / "tls" / "ca.pem")
        ) as again,
        pytest.raises(ValueError, match="initialised already"),
    ):
        initialise(again, publics, 2, tmp_path / "others")
    assert not (tmp_path / "others").exists()
    for name in ("alice", "bob"):
        foreign = blob.encrypt(
            base64.b64encode(name[:1].encode() * 33),
            keyring=publics[name],
            encryption_context={"purpose": "vault share", "custodian": name},
        )
        (tmp_path / name).write_bytes(foreign)
    unseal(session, tmp_path / "alice", PublicKeyKeyring(halves / "alice"))
    with pytest.raises(AccessDeniedError, match="all of them have to be given again"):
        unseal(session, tmp_path / "bob", PublicKeyKeyring(halves / "bob"))
    for name in ("alice", "bob"):
        status = unseal(session, made.shares[name], PublicKeyKeyring(halves / name))
    assert not status.sealed


@pytest.mark.parametrize(
    ("custodians", "threshold", "problem"),
    [
        (("alice",), 2, "quorum of 2 of 1"),
        (NAMES, 1, "quorum of 1"),
        (NAMES, 4, "quorum of 4 of 3"),
        (("alice", "../bob"), 2, "no name"),
        (("alice", "root"), 2, "no name"),
    ],
)
def test_what_cannot_be_is_found_before(
    session: VaultSession,
    publics: dict[str, PublicKeyKeyring],
    tmp_path: Path,
    custodians: tuple[str, ...],
    threshold: int,
    problem: str,
) -> None:
    """Numbers and names that cannot be are refused before Vault is asked."""
    keyrings = {name: publics.get(name, publics["bob"]) for name in custodians}
    with pytest.raises(ValueError, match=problem):
        initialise(session, keyrings, threshold, tmp_path / "shares")
    assert not seal_status(session).initialised


def test_obstacles_are_found_before(
    session: VaultSession,
    publics: dict[str, PublicKeyKeyring],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that is there, or a disk without room, is found before Vault is asked, and leaves nothing behind."""
    folder = tmp_path / "shares"
    folder.mkdir()
    (folder / "bob.share").write_text("old")
    with pytest.raises(FileExistsError):
        initialise(session, publics, 2, folder)
    (folder / "bob.share").unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space"):
            initialise(session, publics, 2, folder)
    assert ([], False) == (list(folder.iterdir()), seal_status(session).initialised)


def test_a_quorum_that_no_package_can_have(
    session: VaultSession, publics: dict[str, PublicKeyKeyring], tmp_path: Path
) -> None:
    """One with two shares, a share of two and more custodians than a package takes are found before Vault is asked."""
    alice, bob, carol = publics.values()
    for keyrings, problem in (
        ({"alice": alice, "bob": bob, "alias": alice}, "two shares"),
        ({"alice": AnyOf([alice, bob]), "carol": carol}, "a custodian has one key"),
        ({f"c{number}": alice for number in range(33)}, "32 are possible"),
    ):
        with pytest.raises(ValueError, match=problem):
            initialise(session, keyrings, 2, tmp_path / "shares")
    assert not (tmp_path / "shares").exists()
    assert not seal_status(session).initialised


def test_a_file_that_comes_between(
    session: VaultSession,
    publics: dict[str, PublicKeyKeyring],
    halves: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that somebody makes while Vault is asked keeps no share from the disk."""
    folder, allocate = tmp_path / "shares", os.posix_fallocate

    def come_between(fd: int, offset: int, size: int) -> None:
        allocate(fd, offset, size)
        if size == 4 * custody._ROOM:  # The last that is done before.
            with contextlib.suppress(FileExistsError):
                (folder / "bob.share").touch(exist_ok=False)

    monkeypatch.setattr(os, "posix_fallocate", come_between)
    initialise(session, publics, 2, folder)
    for name in ("alice", "bob"):
        status = unseal(session, folder / f"{name}.share", PublicKeyKeyring(halves / name))
    assert not status.sealed


class WhenAnswered(dict[bytes, bytes]):
    """What a proxy replaces in an answer: nothing, but something is done before the answer goes on."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act = act

    def items(self) -> Any:
        """Do it."""
        self.act()
        return super().items()


def test_who_gives_up_on_a_slow_answer(
    server: Server, publics: dict[str, PublicKeyKeyring], halves: Path, tmp_path: Path
) -> None:
    """Ctrl-C between what Vault did and its answer waits until all shares are on the disk."""
    tls = (str(tmp_path / "tls" / "server.pem"), str(tmp_path / "tls" / "server.key"))
    folder = tmp_path / "shares"
    with (
        FaultProxy(server.address, ca_file=server.ca_file, certificate=tls) as proxy,
        VaultSession(proxy.address, login=Token("none"), ca_file=server.ca_file) as session,
    ):
        interrupt = WhenAnswered(lambda: os.kill(os.getpid(), signal.SIGINT))
        proxy.fault("POST /v1/sys/init", replace=interrupt, times=1)
        with pytest.raises(KeyboardInterrupt):
            initialise(session, publics, 2, folder)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        for name in ("alice", "bob"):
            status = unseal(session, folder / f"{name}.share", PublicKeyKeyring(halves / name))
    assert not status.sealed
    assert break_glass.Package.read(folder / "root.glass").custodians == NAMES


def test_an_audit_log_that_becomes_full(
    server: Server, publics: dict[str, PublicKeyKeyring], halves: Path, tmp_path: Path
) -> None:
    """Where the log takes no entries any more once Vault has spoken, that is said, and all shares are on the disk."""

    class Log:
        full = False
        entries = 0

        def check(self) -> None:
            if self.full:
                raise AuditError("no space")

        def append(self, entry: audit.operation) -> None:
            self.entries += 1
            self.check()

    tls = (str(tmp_path / "tls" / "server.pem"), str(tmp_path / "tls" / "server.key"))
    folder, log = tmp_path / "shares", Log()
    with (
        FaultProxy(server.address, ca_file=server.ca_file, certificate=tls) as proxy,
        VaultSession(proxy.address, login=Token("none"), ca_file=server.ca_file) as session,
    ):
        filled = WhenAnswered(lambda: setattr(log, "full", True))
        proxy.fault("POST /v1/sys/init", replace=filled, times=1)
        audit.start(log)
        try:
            with pytest.raises(AuditError):
                initialise(session, publics, 2, folder)
        finally:
            audit.stop()
        for name in ("alice", "bob"):
            status = unseal(session, folder / f"{name}.share", PublicKeyKeyring(halves / name))
    assert not status.sealed
    assert break_glass.Package.read(folder / "root.glass").custodians == NAMES


def test_one_share_that_cannot_be_written_keeps_the_others(
    session: VaultSession,
    publics: dict[str, PublicKeyKeyring],
    halves: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once Vault has spoken, what can be written is: two shares of three still unseal."""
    sync = os.fsync

    def fail_for_bob(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("bob.share"):
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fsync", fail_for_bob)
    with pytest.raises(OSError, match=r"bob\.share: .*Input/output error"):
        initialise(session, publics, 2, tmp_path / "shares")
    for name in ("alice", "carol"):
        path = tmp_path / "shares" / f"{name}.share"
        status = unseal(session, path, PublicKeyKeyring(halves / name))
    assert not status.sealed
    assert break_glass.Package.read(tmp_path / "shares" / "root.glass").custodians == NAMES


def test_a_slow_answer_is_waited_for(
    server: Server, publics: dict[str, PublicKeyKeyring], tmp_path: Path
) -> None:
    """However soon the session gives up a node otherwise: the answer with the shares comes once."""
    tls = (str(tmp_path / "tls" / "server.pem"), str(tmp_path / "tls" / "server.key"))
    with (
        FaultProxy(server.address, ca_file=server.ca_file, certificate=tls) as proxy,
        VaultSession(
            proxy.address, login=Token("none"), ca_file=server.ca_file, timeout=0.5
        ) as session,
    ):
        proxy.fault("POST /v1/sys/init", delay=1.0, times=1)
        assert set(NAMES) == set(initialise(session, publics, 2, tmp_path / "shares").shares)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_answer(
    server: Server, publics: dict[str, PublicKeyKeyring], tmp_path: Path, when: str
) -> None:
    """Where the answer was lost, it is said whether that was harmless or fatal, and no file is left."""
    tls = (str(tmp_path / "tls" / "server.pem"), str(tmp_path / "tls" / "server.key"))
    with (
        FaultProxy(server.address, ca_file=server.ca_file, certificate=tls) as proxy,
        VaultSession(proxy.address, login=Token("none"), ca_file=server.ca_file) as session,
    ):
        proxy.fault("POST /v1/sys/init", reset=when, times=1)
        wanted = ServiceUnavailableError if when == "before" else OutcomeUnknownError
        with pytest.raises(wanted, match=r"nothing is lost|wipe its storage") as caught:
            initialise(session, publics, 2, tmp_path / "shares")
        assert wanted is type(caught.value)
        assert [] == list((tmp_path / "shares").iterdir())
        if when == "before":
            initialise(session, publics, 2, tmp_path / "shares")


def test_no_share_is_shown(
    server: Server,
    publics: dict[str, PublicKeyKeyring],
    tmp_path: Path,
    halves: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the server said is in no file, log or error in the clear."""
    tls = (str(tmp_path / "tls" / "server.pem"), str(tmp_path / "tls" / "server.key"))
    with (
        caplog.at_level(0),
        FaultProxy(server.address, ca_file=server.ca_file, certificate=tls) as proxy,
        VaultSession(proxy.address, login=Token("none"), ca_file=server.ca_file) as session,
    ):
        made = initialise(session, publics, 2, tmp_path / "shares")
        key = blob.decrypt(
            made.shares["bob"].read_bytes(), keyring=PublicKeyKeyring(halves / "bob")
        )
        text = key.decode()
        proxy.fault("PUT /v1/sys/unseal", status=400, body={"errors": [f"bad key {text}"]})
        with pytest.raises(AccessDeniedError) as caught:
            unseal(session, made.shares["bob"], PublicKeyKeyring(halves / "bob"))
    assert set() == leaks(caught.value, [text])
    assert text not in caplog.text
    assert not any(key in path.read_bytes() for path in (tmp_path / "shares").iterdir())


def test_a_vault_that_unseals_itself(tmp_path: Path, publics: dict[str, PublicKeyKeyring]) -> None:
    """Of a Vault with a seal of its own the shares are for recovery, and it serves at once."""
    authority = Authority(tmp_path / "tls")
    certificate, key = authority.issue_server()
    port = free_ports(1)
    config = tmp_path / "bao.hcl"
    config.write_text(
        f'listener "tcp" {{\n  address = "127.0.0.1:{port}"\n  tls_cert_file = "{certificate}"\n'
        f'  tls_key_file = "{key}"\n}}\nstorage "inmem" {{}}\n'
        'seal "static" {\n  current_key_id = "1"\n'
        '  current_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="\n}\n'
    )
    server = Server(tmp_path, f"https://127.0.0.1:{port}", [f"-config={config}"], authority.ca_file)
    try:
        server.start()
        with VaultSession(server.address, login=Token("none"), ca_file=server.ca_file) as session:
            made = initialise(session, publics, 2, tmp_path / "shares")
            assert made.recovery
            wait_for("serving", lambda: not seal_status(session).sealed)
            assert seal_status(session).automatic
    finally:
        server.close()
    shutil.rmtree(tmp_path / "shares")
