"""SSH certificates of a real SSH engine, checked by ssh-keygen and by a real sshd, which refuses the revoked ones."""

import base64
import dataclasses
import datetime
import json
import math
import re
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memory_scan import Scanner, child
from servers.bao import Server
from servers.fault_proxy import FaultProxy
from servers.sshd import HOST, Sshd, make_key, program, sshd_server
from support import leaks
from tapeseal.cli import app
from tapeseal.errors import AccessDeniedError, CertificateError, ServiceUnavailableError
from tapeseal.vault import Token, VaultSession
from tapeseal.vault.private_keys import make_ssh_key_pair
from tapeseal.vault.reload import Reload
from tapeseal.vault.ssh import (
    Krl,
    SignedKey,
    Ssh,
    _is_due,
    certificate_path,
    host_role,
    known_hosts_line,
    parse_certificate,
    sign_host_keys,
    sshd_lines,
    user_role,
    write_certificate,
    write_key_pair,
)

USERS, HOSTS, ROLE = "desk/ssh-users", "desk/ssh-hosts", "operators"
USER = subprocess.check_output(["id", "-un"], text=True).strip()
DOCS = Path(__file__).parents[1] / "docs" / "ssh.md"

pytestmark = pytest.mark.server


def token_of(server: Server, title: str, mount: str) -> str:
    """Return a token with a policy of docs/ssh.md for another mount, and no other."""
    if not DOCS.exists():
        pytest.skip(f"{DOCS.name} is not beside these tests")
    found = re.search(rf"\*\*{title}\*\*.*?```hcl\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    rules = re.sub(r'(path "(?:sys/mounts/)?)ssh\b', rf"\g<1>{mount}", found[1])
    name = server.policy(f"{mount}-{title}".replace("/", "-").replace(" ", "-"), rules)
    return server.make_token(name, no_default_policy=True)


@pytest.fixture(scope="module")
def server(bao: Server) -> Server:
    """A server with an engine for users and one for hosts."""
    with VaultSession(bao.address, login=Token(bao.token)) as session:
        extensions = ["permit-pty", "permit-port-forwarding"]
        limits = ["force-command", "source-address"]
        desk = user_role([USER, "ops"], extensions=extensions, critical_options=limits)
        Ssh(session, USERS).set_up({ROLE: user_role([USER, "ops"]), "desk": desk})
        Ssh(session, HOSTS).set_up({"recorders": host_role(["example"])})
    return bao


def engine(server: Server, mount: str, token: str) -> Iterator[Ssh]:
    """Open an engine."""
    with VaultSession(server.address, login=Token(token), deadline=2) as session:
        yield Ssh(session, mount)


@pytest.fixture
def users(server: Server) -> Iterator[Ssh]:
    """The engine for users, with the root token."""
    yield from engine(server, USERS, server.token)


@pytest.fixture
def hosts(server: Server) -> Iterator[Ssh]:
    """The engine for hosts, with the root token."""
    yield from engine(server, HOSTS, server.token)


@pytest.fixture
def signer(server: Server) -> Iterator[Ssh]:
    """The engine for users, under the policy of a signer."""
    yield from engine(server, USERS, token_of(server, "signer", USERS))


@pytest.fixture(scope="module")
def _sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def sshd(_sshd: Sshd, users: Ssh) -> Sshd:
    """A real sshd that trusts the CA of users; nothing is revoked."""
    _sshd.authorized_keys.write_text("")
    _sshd.revoked_keys.write_bytes(b"")
    _sshd.trusted_user_ca_keys.write_text(f"{users.ca_public_key()}\n")
    return _sshd


def make_identity(directory: Path) -> Path:
    """Make a key pair of our own and return the path of the private half."""
    pair = make_ssh_key_pair("desk")
    with pair.private:
        write_key_pair(directory / "id", pair)
    return directory / "id"


def sign(ssh: Ssh, identity: Path, role: str = ROLE, **more: Any) -> SignedKey:
    """Have an identity signed for the user of the sshd, and write the certificate."""
    public = identity.with_name("id.pub")
    signed = ssh.sign(role, public.read_text(), **{"principals": [USER], **more})
    write_certificate(public, signed)
    return signed


def keygen(*arguments: object) -> str:
    """Return what ssh-keygen says."""
    command = [program("ssh-keygen"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


# Keys


def test_key_pair(tmp_path: Path) -> None:
    """A key pair that is made here is one to ssh-keygen, its owner's alone, and never overwritten."""
    identity = make_identity(tmp_path)
    public = identity.with_name("id.pub").read_text()
    assert public == keygen("-y", "-f", identity)
    assert re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/]{68} desk\n", public)
    assert 0o600 == stat.S_IMODE(identity.stat().st_mode)
    # ssh-keygen writes it anew only if it has read all of it.
    keygen("-p", "-N", "", "-f", identity)
    before = identity.read_bytes()
    with pytest.raises(FileExistsError):
        make_identity(tmp_path)
    (tmp_path / "id.pub").unlink()
    with pytest.raises(FileExistsError):
        make_identity(tmp_path)
    assert (["id"], before) == ([path.name for path in tmp_path.iterdir()], identity.read_bytes())


@pytest.mark.parametrize("length", range(9))
def test_comments(tmp_path: Path, length: int) -> None:
    """Whatever the length of the comment, the private half is padded as OpenSSH wants it."""
    pair = make_ssh_key_pair("x" * length)
    with pair.private:
        write_key_pair(tmp_path / "id", pair)
    assert pair.public.split()[:2] == keygen("-y", "-f", tmp_path / "id").split()[:2]
    with pytest.raises(ValueError, match="printable"):
        make_ssh_key_pair("a\nb")


def test_keys_leave_nothing_behind(tmp_path: Path) -> None:
    """Once it is closed, no piece of a key is left in the process that made and wrote it."""
    code = """
        from tapeseal.vault.private_keys import make_ssh_key_pair
        from tapeseal.vault.ssh import write_key_pair
        pair = make_ssh_key_pair("desk")
        write_key_pair(sys.argv[1], pair)
        stage("written")
        pair.private.close()
        gc.collect()
        stage("closed")
    """
    with child(code, tmp_path / "id") as looked_at:
        looked_at.wait_for("written")
        blob = base64.b64decode("".join((tmp_path / "id").read_text().splitlines()[1:-1]))
        public = base64.b64decode((tmp_path / "id.pub").read_text().split()[1])[-32:]
        at = blob.rindex(public) - 32
        # The text of the file shows it in groups of three bytes, counted from the start of the blob.
        group = -(-at // 3) * 3
        found = Scanner({"seed": blob[at : at + 32], "text": blob[group : group + 32]})
        assert {("text", True)} == {
            (hit.key, hit.protected) for hit in found.process(looked_at.pid)
        }
        looked_at.go_on_to("closed")
        assert set() == found.process(looked_at.pid)


# Certificates


def test_user_certificate(tmp_path: Path, users: Ssh) -> None:
    """A certificate says to ssh-keygen what it says to us."""
    identity = make_identity(tmp_path)
    signed = sign(
        users,
        identity,
        "desk",
        principals=[USER, "ops"],
        seconds=3600,
        key_id="rotation-7",
        extensions={"permit-pty": ""},
        critical_options={"source-address": "127.0.0.1/32"},
    )
    text = keygen("-L", "-f", tmp_path / "id-cert.pub")
    assert "ssh-ed25519-cert-v01@openssh.com user certificate" in text
    assert 'Key ID: "rotation-7"' in text
    assert f"Serial: {signed.serial}\n" in text
    lines = [line.strip() for line in text.splitlines()]
    start = lines.index("Principals:")
    assert {USER, "ops"} == set(lines[start + 1 : start + 3])
    assert "source-address 127.0.0.1/32" in lines
    assert "permit-pty" == lines[-1]
    assert (["ops", USER], {"permit-pty": ""}) == (sorted(signed.principals), signed.extensions)
    seconds = (signed.valid_before - signed.valid_after).total_seconds()
    assert (3630, []) == (seconds, signed.warnings)


@pytest.mark.parametrize(
    ("role", "more", "problem"),
    [
        (ROLE, {"principals": ["root-of-all"]}, "not a valid value"),
        (ROLE, {"seconds": 9 * 3600}, "larger than maximum"),
        (ROLE, {"extensions": {"permit-pty": ""}}, "not on allowed list"),
        (ROLE, {"critical_options": {"force-command": "ls"}}, "not on allowed list"),
        (ROLE, {"host": True}, "not allowed by role"),
        ("nobody", {}, "Unknown role"),
    ],
)
def test_refusals(tmp_path: Path, users: Ssh, role: str, more: Any, problem: str) -> None:
    """What a role does not allow is a CertificateError with the server's reason, and nothing is written."""
    identity = make_identity(tmp_path)
    with pytest.raises(CertificateError, match=problem) as caught:
        sign(users, identity, role, **more)
    assert set() == leaks(caught.value, identity.read_text().splitlines()[1:-1])
    assert not (tmp_path / "id-cert.pub").exists()


def test_a_name_given_twice(tmp_path: Path, users: Ssh, hosts: Ssh) -> None:
    """Vault names each principal once, and so does who asks for one twice."""
    assert [USER] == sign(users, make_identity(tmp_path), principals=[USER, USER]).principals
    make_key(tmp_path / "ssh_host_ed25519_key")
    states = [
        found.state
        for _ in range(2)
        for found in sign_host_keys(hosts, "recorders", [HOST, HOST], directory=tmp_path)
    ]
    assert ["signed", "current"] == states


@pytest.mark.parametrize("principals", [[], [""], ["a,root"], [f" {USER}"], [f"{USER}\n"]])
def test_no_principals(users: Ssh, principals: list[str]) -> None:
    """A certificate for everybody is never asked for, nor one for a user in another's name."""
    with make_ssh_key_pair().private, pytest.raises(ValueError, match="principals"):
        users.sign(ROLE, make_ssh_key_pair().public, principals=principals)


@pytest.mark.parametrize("seconds", [0, -5, math.inf, math.nan])
def test_validity_that_is_none(tmp_path: Path, hosts: Ssh, seconds: float) -> None:
    """A time that is none is refused, never taken for that of the role or of the mount."""
    with pytest.raises(ValueError, match="positive number of seconds"):
        sign(hosts, make_identity(tmp_path), "recorders", host=True, seconds=seconds)


def test_part_of_a_second(tmp_path: Path, hosts: Ssh) -> None:
    """Less than a second is a second, not what Vault makes of 0: a month."""
    signed = sign(
        hosts, make_identity(tmp_path), "recorders", host=True, principals=[HOST], seconds=0.5
    )
    assert signed.valid_before - signed.valid_after < datetime.timedelta(hours=1)


def test_lines_of_sshd_config(tmp_path: Path) -> None:
    """sshd reads each name as it is, also one with blanks; what its file cannot hold is refused."""
    folder = tmp_path / "it's a # folder"
    folder.mkdir()
    make_key(folder / "key")
    lines = sshd_lines(
        [folder / "key-cert.pub"],
        trusted_user_ca_keys=folder / "ca keys",
        revoked_keys=tmp_path / "revoked",
    )
    config = tmp_path / "sshd_config"
    config.write_text(f'HostKey "{folder}/key"\n{lines}')
    done = subprocess.run(
        [program("sshd"), "-T", "-f", config], capture_output=True, text=True, check=True
    )
    for line in (
        f"hostcertificate {folder}/key-cert.pub",
        f"trustedusercakeys {folder}/ca keys",
        f"revokedkeys {tmp_path}/revoked",
    ):
        assert line in done.stdout.splitlines()
    for name in ('a"b', "a\\b", "a\nPermitRootLogin yes", "a\0"):
        with pytest.raises(ValueError, match="rename the file"):
            sshd_lines([name])


@pytest.mark.parametrize("line", ["", "x", "ssh-ed25519 AAAA", "sk-ssh-ed25519@openssh.com AAAA"])
def test_bad_public_keys(users: Ssh, line: str) -> None:
    """What is no public key of a kind that we can check is never sent."""
    with pytest.raises(ValueError, match="no public key"):
        users.sign(ROLE, line, principals=[USER])


@pytest.mark.parametrize("kind", [pytest.param("rsa", marks=pytest.mark.slow), "ecdsa"])
def test_other_kinds_of_keys(tmp_path: Path, hosts: Ssh, kind: str) -> None:
    """The keys that sshd makes for a host can be signed, whatever their kind."""
    keygen("-q", "-t", kind, "-N", "", "-f", tmp_path / f"ssh_host_{kind}_key")
    (found,) = sign_host_keys(hosts, "recorders", [HOST], directory=tmp_path)
    assert "host certificate" in keygen("-L", "-f", found.certificate)


def test_least_policies(server: Server, signer: Ssh) -> None:
    """A signer can neither use other roles nor change them; who reads the CA can do no more."""
    with pytest.raises(AccessDeniedError):
        signer.sign("recorders", make_ssh_key_pair().public, principals=[USER])
    with pytest.raises(AccessDeniedError):
        signer.write("roles/operators", user_role(["root"]), [])
    for reader in engine(server, USERS, token_of(server, "ca reader", USERS)):
        assert reader.ca_public_key().startswith("ssh-ed25519 ")
        with pytest.raises(AccessDeniedError):
            reader.sign(ROLE, make_ssh_key_pair().public, principals=[USER])


def test_set_up_again(server: Server, users: Ssh) -> None:
    """A set-up that is there is left alone, above all its CA; the documented policy is enough for it."""
    key = users.ca_public_key()
    assert [] == users.set_up({ROLE: user_role([USER, "ops"])})
    assert [f"wrote {USERS}/roles/new"] == users.set_up({"new": user_role(["ops"])})
    assert [f"wrote {USERS}/roles/new"] == users.set_up({"new": user_role(["ops", "feed"])})
    assert key == users.ca_public_key()
    for own in engine(server, "own/ssh", token_of(server, "ssh authority", "own/ssh")):
        assert 3 == len(own.set_up({"r": host_role(["example"])}))
        assert [] == own.set_up({"r": host_role(["example"])})
    with pytest.raises(CertificateError, match="of the type kv"):
        Ssh(users.session, "secret").set_up()


@pytest.mark.parametrize("lost", ["/sys/mounts/", "/config/ca", "/roles/"])
def test_set_up_goes_on(server: Server, lost: str) -> None:
    """Whichever answer is lost, the same call goes on, and no second CA is made."""
    with FaultProxy(server.address) as proxy:
        login = Token(server.token)
        with VaultSession(proxy.address, login=login, deadline=1) as session:
            ssh = Ssh(session, f"lost-ssh{lost.strip('/').replace('/', '-')}")
            proxy.fault(f"POST .*{lost}", reset="after", times=1)
            try:
                ssh.set_up({"r": host_role(["example"])})
            except ServiceUnavailableError:
                key = ssh.ca_public_key() if lost != "/sys/mounts/" else None
                ssh.set_up({"r": host_role(["example"])})
                assert key in (None, ssh.ca_public_key())
            assert [] == ssh.set_up({"r": host_role(["example"])})
            assert 1 == len(ssh.names("issuers"))


def test_a_forged_answer(server: Server, hosts: Ssh) -> None:
    """A certificate of another key, of other users or of a host in the answer is refused."""
    pair, other = make_ssh_key_pair(), make_ssh_key_pair()
    real = Ssh(hosts.session, USERS)
    answers = [
        real.sign(ROLE, other.public, principals=[USER]),
        real.sign(ROLE, pair.public, principals=["ops"]),
        hosts.sign("recorders", pair.public, principals=["a.example"], host=True),
    ]
    with FaultProxy(server.address) as proxy:
        for answer in answers:
            proxy.clear()
            proxy.fault("/sign/", status=200, body={"data": {"signed_key": answer.text}})
            for ssh in engine_at(proxy.address, server.token):
                with pytest.raises(CertificateError, match="that Vault has signed is of"):
                    ssh.sign(ROLE, pair.public, principals=[USER])
        blob = bytearray(base64.b64decode(answers[0].text.split()[1]))
        blob[-1] ^= 1
        text = f"ssh-ed25519-cert-v01@openssh.com {base64.b64encode(blob).decode()}"
        with pytest.raises(CertificateError, match="its signature is wrong"):
            parse_certificate(text)


def engine_at(address: str, token: str) -> Iterator[Ssh]:
    """Open the engine for users at an address."""
    with VaultSession(address, login=Token(token)) as session:
        yield Ssh(session, USERS)


# Logins


def test_login(tmp_path: Path, sshd: Sshd, signer: Ssh) -> None:
    """sshd lets in who has a certificate of its CA, for the user that it names, and nobody else.

    It is signed under the policy of a signer.
    """
    identity = make_identity(tmp_path)
    assert 255 == sshd.login(identity).returncode
    sign(signer, identity, principals=["ops"])
    assert 255 == sshd.login(identity).returncode
    sign(signer, identity)
    done = sshd.login(identity, "id -un")
    assert (0, USER) == (done.returncode, done.stdout.strip()), done.stderr
    sshd.trusted_user_ca_keys.write_text(make_key(tmp_path / "other_ca"))
    assert 255 == sshd.login(identity).returncode


def test_limits_of_a_login(tmp_path: Path, sshd: Sshd, users: Ssh) -> None:
    """Critical options hold: another command is not run, another address is refused."""
    identity = make_identity(tmp_path)
    sign(users, identity, "desk", critical_options={"force-command": "echo forced"})
    assert "forced\n" == sshd.login(identity, "echo free").stdout
    sign(users, identity, "desk", critical_options={"source-address": "10.0.0.0/8"})
    assert 255 == sshd.login(identity).returncode


@pytest.mark.parametrize(
    "by",
    [
        "certificate",
        "key id",
        pytest.param("serial", marks=pytest.mark.slow),
        pytest.param("key", marks=pytest.mark.slow),
    ],
)
def test_revoked_login(tmp_path: Path, sshd: Sshd, users: Ssh, by: str) -> None:
    """Whatever a KRL names it by, sshd refuses a revoked certificate at the next login, and lets others in."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    revoked, kept = make_identity(tmp_path / "a"), make_identity(tmp_path / "b")
    certificate = sign(users, revoked, key_id=f"a-{by}")
    sign(users, kept, key_id=f"b-{by}")
    krl = Krl(sshd.revoked_keys)
    assert 1 == krl.revoke()
    assert 0 == sshd.login(revoked).returncode
    arguments: dict[str, Any] = {
        "certificate": {"public_keys": [certificate.text]},
        "serial": {"serials": [certificate.serial]},
        "key id": {"key_ids": [certificate.key_id]},
        "key": {"public_keys": [revoked.with_name("id.pub").read_text()]},
    }[by]
    assert 2 == krl.revoke(ca_public_key=users.ca_public_key(), **arguments)
    assert [255, 0] == [sshd.login(each).returncode for each in (revoked, kept)]
    assert (True, False) == (
        krl.revokes(certificate.text),
        krl.revokes((tmp_path / "b" / "id-cert.pub").read_text()),
    )


@pytest.mark.slow
def test_expired_login(tmp_path: Path, sshd: Sshd, users: Ssh) -> None:
    """A login ends with its certificate."""
    identity = make_identity(tmp_path)
    signed = sign(users, identity, seconds=2)
    assert 0 == sshd.login(identity).returncode
    left = (signed.valid_before - datetime.datetime.now(datetime.UTC)).total_seconds()
    threading.Event().wait(left + 0.1)
    assert 255 == sshd.login(identity).returncode


# Hosts


def test_host_certificates(tmp_path: Path, sshd: Sshd, users: Ssh, hosts: Ssh) -> None:
    """A client that trusts the CA of hosts takes a host with a certificate for its name, and no other."""
    identity = make_identity(tmp_path)
    sign(users, identity)
    key = tmp_path / "etc" / "ssh_host_ed25519_key"
    key.parent.mkdir()
    make_key(key)
    known = known_hosts_line(hosts.ca_public_key(), ["*.example"])
    hook = Reload(["touch", str(tmp_path / "hook")])

    def sign_keys(*names: str, **more: Any) -> list[str]:
        found = sign_host_keys(hosts, "recorders", names, directory=key.parent, reload=hook, **more)
        return [each.state for each in found]

    sshd.settings = {"HostKey": str(key)}
    try:
        sshd.restart()
        assert 255 == sshd.login(identity, known_hosts=known).returncode
        assert ["signed"] == sign_keys(HOST)
        sshd.settings["HostCertificate"] = f"{key}-cert.pub"
        sshd.restart()
        assert 0 == sshd.login(identity, known_hosts=known).returncode
        assert ["signed"] == sign_keys("other.example")
        sshd.restart()
        assert 255 == sshd.login(identity, known_hosts=known).returncode
    finally:
        sshd.settings = {}
        sshd.restart()
    assert ["current"] == sign_keys("other.example")
    assert ["signed"] == sign_keys("other.example", force=True)
    assert "host certificate" in keygen("-L", "-f", f"{key}-cert.pub")


@pytest.mark.parametrize(
    ("valid", "left", "due"),
    [(365, 31, False), (365, 29, True), (365, -1, True), (9, 3.1, False), (9, 2.9, True)],
)
def test_due(hosts: Ssh, valid: float, left: float, due: bool) -> None:
    """A certificate is due 30 days before its end, or when a third of a short life is left."""
    public = make_ssh_key_pair().public
    signed = hosts.sign("recorders", public, principals=[HOST], host=True)
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=left)
    start = end - datetime.timedelta(days=valid)
    shifted = dataclasses.replace(signed, valid_after=start, valid_before=end)
    assert due == _is_due(shifted, 30 * 86400)


def test_hook_of_host_keys(tmp_path: Path, hosts: Ssh) -> None:
    """A hook that failed is run by the next call, though nothing is signed then."""
    make_key(tmp_path / "ssh_host_ed25519_key")
    make_key(tmp_path / "ssh_host_other_key")

    def sign_keys(*command: str) -> list[str]:
        found = sign_host_keys(
            hosts, "recorders", [HOST], directory=tmp_path, reload=Reload(command)
        )
        return [each.state for each in found]

    touch = ("touch", str(tmp_path / "hook"))
    with pytest.raises(CertificateError, match="failed with 1"):
        sign_keys("false")
    assert ["current"] * 2 == sign_keys(*touch)
    assert (tmp_path / "hook").exists()
    (tmp_path / "hook").unlink()
    assert ["current"] * 2 == sign_keys(*touch)
    assert not (tmp_path / "hook").exists()


def test_no_host_keys(tmp_path: Path, hosts: Ssh) -> None:
    """A directory without keys of a host is an error, and no silent success."""
    with pytest.raises(FileNotFoundError, match="no keys of a host"):
        sign_host_keys(hosts, "recorders", [HOST], directory=tmp_path)


# The list of what is revoked


def test_krl_grows(tmp_path: Path) -> None:
    """What was revoked stays so, each version has a number of its own, and the file is replaced whole."""
    krl = Krl(tmp_path / "krl")
    lines = [make_key(tmp_path / f"key{number}") for number in range(3)]
    assert [1, 2, 3] == [krl.revoke(public_keys=[line]) for line in lines]
    assert [True] * 3 == [krl.revokes(line) for line in lines]
    assert not krl.revokes(make_key(tmp_path / "kept"))
    assert (
        "KRL version 3"
        in subprocess.run(
            [program("ssh-keygen"), "-Q", "-l", "-f", krl.path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"serials": [1]}, "name it"),
        ({"key_ids": ["a"]}, "name it"),
        ({"serials": [0], "ca_public_key": "x"}, "1 to"),
        ({"serials": [1 << 64], "ca_public_key": "x"}, "1 to"),
        ({"key_ids": ["a\nserial: 5"], "ca_public_key": "x"}, "one line"),
        ({"key_ids": ["desk#2"], "ca_public_key": "x"}, "cannot revoke a key id with '#'"),
        ({"public_keys": ["serial: 5"]}, "no public key"),
        ({"public_keys": ["id: x"]}, "no public key"),
    ],
)
def test_bad_revocations(tmp_path: Path, arguments: Any, problem: str) -> None:
    """What would revoke something else, or everything, is refused, and no file is made."""
    with pytest.raises(ValueError, match=problem):
        Krl(tmp_path / "krl").revoke(**arguments)
    assert [] == list(tmp_path.iterdir())


def test_a_file_that_is_no_krl(tmp_path: Path) -> None:
    """A file that is no KRL is not overwritten."""
    path = tmp_path / "authorized_keys"
    path.write_text(make_key(tmp_path / "key"))
    before = path.read_text()
    with pytest.raises(CertificateError, match="could not be added to"):
        Krl(path).revoke(public_keys=[before])
    assert before == path.read_text()


def test_a_krl_that_is_not_there(tmp_path: Path) -> None:
    """A list that cannot be read is an error, whatever its name is."""
    with pytest.raises(CertificateError, match="could not be asked"):
        Krl(tmp_path / "REVOKED").revokes(make_key(tmp_path / "key"))


def test_two_runs_lose_nothing(tmp_path: Path) -> None:
    """Runs beside each other are refused or wait for nothing: what was said to be revoked is."""
    krl = Krl(tmp_path / "krl")
    krl.revoke()
    lines = [make_key(tmp_path / f"key{number}") for number in range(8)]
    added = []

    def add(line: str) -> None:
        try:
            krl.revoke(public_keys=[line])
        except BlockingIOError:
            return
        added.append(line)

    threads = [threading.Thread(target=add, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] != added
    assert [True] * len(added) == [krl.revokes(line) for line in added]


# The command line


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: Server
) -> Callable[..., tuple[int, list[str], str]]:
    """Run a command of `tapeseal vault ssh` with the root token; return its code, lines and errors."""
    monkeypatch.setenv("VAULT_ADDR", server.address)
    monkeypatch.setenv("VAULT_TOKEN", server.token)

    def run(*arguments: object) -> tuple[int, list[str], str]:
        code = app.run(["vault", "ssh", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return run


def test_commands(tmp_path: Path, run: Any, sshd: Sshd) -> None:
    """A CA is set up, a new key signed and let in, a host signed, and the certificate revoked and refused."""
    (tmp_path / "roles.toml").write_text(
        '[desk]\nkey_type = "ca"\nallow_user_certificates = true\nallowed_users = "ops"\nmax_ttl = "8h"\n'
    )
    setup = ["setup", "--mount", "cli-ssh", "--users", f"operators={USER}"]
    setup += ["--hosts", "recorders=example", "--roles", tmp_path / "roles.toml"]
    code, lines, errors = run(*setup)
    assert (0, 5, "") == (code, len(lines), errors)
    assert (0, [json.dumps({"mount": "cli-ssh", "done": []})], "") == run(*setup, "--json")
    assert 0 == run("ca", "--mount", "cli-ssh", "--out", sshd.trusted_user_ca_keys)[0]
    key = run("ca", "--mount", "cli-ssh")[1][0]
    assert key == sshd.trusted_user_ca_keys.read_text().strip()
    assert [f"@cert-authority *.example {key}"] == run(
        "ca", "--mount", "cli-ssh", "--known-hosts", "*.example"
    )[1]
    code, lines, _ = run(
        *("sign", tmp_path / "id.pub", "--new", "--role", "operators", "--principal", USER),
        *("--mount", "cli-ssh", "--key-id", "k1", "--hours", "1", "--json"),
    )
    report = json.loads(lines[0])
    assert (0, "k1", [USER]) == (code, report["key_id"], report["principals"])
    assert 0 == sshd.login(tmp_path / "id").returncode
    make_key(tmp_path / "ssh_host_ed25519_key")
    host = [
        "host",
        "--mount",
        "cli-ssh",
        "--role",
        "recorders",
        "--name",
        HOST,
        "--directory",
        tmp_path,
    ]
    code, lines, _ = run(*host, "--reload", f"touch {tmp_path}/hook")
    certificate = tmp_path / "ssh_host_ed25519_key-cert.pub"
    assert (0, f"HostCertificate {certificate}") == (code, lines[-1])
    assert (True, True) == (certificate.exists(), (tmp_path / "hook").exists())
    assert ["current"] == [json.loads(line)["state"] for line in run(*host, "--json")[1]]
    code, lines, _ = run("revoke", sshd.revoked_keys, tmp_path / "id-cert.pub", "--json")
    assert (0, 1) == (code, json.loads(lines[0])["version"])
    assert 255 == sshd.login(tmp_path / "id").returncode
    code, lines, _ = run("revoke", sshd.revoked_keys, "--key-id", "k2", "--mount", "cli-ssh")
    assert (0, [f"{sshd.revoked_keys}: version 2, 1 added"]) == (code, lines)
    assert (
        0 == run("revoke", sshd.revoked_keys, "--serial", 7, "--ca", sshd.trusted_user_ca_keys)[0]
    )


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["sign", "{}/id", "--role", ROLE, "--principal", "ops"], 2, "KEY.pub"),
        (["sign", "{}/id-cert.pub", "--role", ROLE, "--principal", "ops"], 2, "KEY.pub"),
        (["sign", "{}/id.pub", "--role", ROLE, "--principal", "ops"], 2, "No such file"),
        (["host", "--role", "r", "--name", HOST, "--directory", "{}"], 2, "no keys of a host"),
        (["revoke", "{}/krl", "{}/none.pub"], 2, "No such file"),
        (["ca", "--mount", "none"], 3, "nothing at"),
        (["setup", "--users", "operators"], 2, "not ROLE=NAME"),
    ],
)
def test_command_errors(
    tmp_path: Path, run: Any, arguments: list[str], code: int, problem: str
) -> None:
    """What fails says why, with the exit codes of the command line."""
    found, _, errors = run(*(each.format(tmp_path) for each in arguments))
    assert (code, True) == (found, problem in errors), errors


@pytest.mark.parametrize("arguments", [["{}/none.pub"], ["--ca", "{}/none.pub", "--key-id", "k"]])
def test_a_file_that_is_no_public_key(tmp_path: Path, run: Any, arguments: list[str]) -> None:
    """A file that holds no public key is named, be it to be revoked or said to be the CA's."""
    (tmp_path / "none.pub").write_text("hello\n")
    code, _, errors = run(
        "revoke", tmp_path / "krl", *(each.format(tmp_path) for each in arguments)
    )
    assert (2, True) == (code, f"{tmp_path}/none.pub: this is no public key" in errors), errors


def test_names_of_certificates() -> None:
    """The certificate of a key stands where ssh looks for it."""
    assert Path("/a/id-cert.pub") == certificate_path("/a/id.pub")
