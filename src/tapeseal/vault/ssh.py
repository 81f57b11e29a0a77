"""SSH certificates of users and hosts, signed by an SSH engine, and the list of those that no longer count (KRL)."""

import contextlib
import datetime
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
)

from tapeseal import audit
from tapeseal.errors import CertificateError
from tapeseal.files import StrPath, new_file, sync_directory, write_all
from tapeseal.transport.foreign_text import plain
from tapeseal.vault.engine import Engine, member, warnings_in
from tapeseal.vault.pki import public_bytes
from tapeseal.vault.private_keys import SshKeyPair
from tapeseal.vault.reload import Reload
from tapeseal.vault.session import VaultSession

USER_SECONDS: Final = 8 * 3600
"""A certificate of a user is valid for a working day."""
HOST_SECONDS: Final = 365 * 86400

_KRL_VERSION = slice(12, 20)  # OpenSSH, PROTOCOL.krl: behind the magic and the format's version.
_KEYGEN_SECONDS = 30
_MOST_SECONDS = 1e10
_UNTOLD = ".ssh_host_certificates.untold"


@dataclass(frozen=True)
class SignedKey:
    """A public key with a certificate of OpenSSH's."""

    text: str
    """The line of the -cert.pub file, without a line break."""
    serial: int
    key_id: str
    """What sshd writes to its log at a login."""
    host: bool
    principals: list[str]
    """The users, or the names of a host, that it is for."""
    valid_after: datetime.datetime
    valid_before: datetime.datetime
    critical_options: dict[str, str]
    extensions: dict[str, str]
    warnings: list[str] = field(default_factory=list)
    """What the server said beside its answer."""


class Ssh(Engine):
    """An SSH engine. Each method raises what VaultSession.request() raises, and CertificateError for a refusal.

    Args:
        session: its token needs the policies that docs/ssh.md names.
        mount: the path of the engine.
    """

    def __init__(self, session: VaultSession, mount: str = "ssh") -> None:
        super().__init__(session, mount)

    def set_up(self, roles: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
        """Mount the engine, make its CA and write roles; what is there already stays.

        Args:
            roles: by their names the parameters of roles, as Vault's API has them, such as user_role() and host_role()
                return; one that differs is written anew.

        Returns:
            What was done, a line each; nothing where all was as it should be.

        Raises:
            CertificateError: at that path there is another engine, or this one refuses.
        """
        done: list[str] = []
        with audit.operation("ssh.setup", self.mount):
            self.mounted("ssh", {}, done)
            try:
                self.ca_public_key()
            except CertificateError:
                # Where there is a CA this would make another one, which no host trusts yet.
                body = {"generate_signing_key": True, "key_type": "ed25519"}
                self.request("POST", "config/ca", body)
                done.append(f"made the CA of {self.mount}")
            for name, parameters in (roles or {}).items():
                self.write(f"roles/{name}", parameters, done)
        return done

    def ca_public_key(self) -> str:
        """Return the line that hosts and clients trust, such as "ssh-ed25519 AAAA…"."""
        return str(member(self.request("GET", "config/ca"), "public_key", str)).strip()

    def sign(
        self,
        role: str,
        public_key: str,
        *,
        principals: Sequence[str],
        seconds: float | None = None,
        host: bool = False,
        key_id: str | None = None,
        extensions: Mapping[str, str] | None = None,
        critical_options: Mapping[str, str] | None = None,
    ) -> SignedKey:
        """Have a public key signed.

        An answer that is lost leaves a certificate that Vault does not list; it is of use to nobody but who has the
        private key, and a Krl names it by its key id.

        Args:
            role: of the engine; it says which principals, validity, extensions and options are allowed.
            public_key: a line of OpenSSH's.
            principals: users, or names of a host; at least one, for none stands for all.
            seconds: how long it is valid, from now on; None: 8 hours for a user, 365 days for a host.
            host: the key is that of a host.
            key_id: what names it in logs and in a Krl; None: what the role makes of the token and the key.
            extensions: such as {"permit-pty": ""}; None: those of the role.
            critical_options: such as {"source-address": "10.0.0.0/8"} or {"force-command": "/usr/bin/feed"}.

        Raises:
            CertificateError: the role does not allow it or is not there, or what came is not what was asked for.
            ValueError: the public key or a principal cannot be used.
        """
        key = _public_key(public_key)
        # Vault cuts blanks off, and names each once: another certificate than was asked for.
        principals = [*dict.fromkeys(principals)]
        if not principals or any(
            not each or "," in each or each != each.strip() for each in principals
        ):
            raise ValueError(
                "a certificate names its principals, none of them empty, with a comma or with blanks around it"
            )
        if seconds is None:
            seconds = HOST_SECONDS if host else USER_SECONDS
        if not 0 < seconds < _MOST_SECONDS:
            raise ValueError(
                f"a certificate is valid for a positive number of seconds, not {seconds}"
            )
        valid = max(int(seconds), 1)  # To Vault 0 means as long as the mount allows.
        body: dict[str, Any] = {
            "public_key": public_key,
            "cert_type": "host" if host else "user",
            "valid_principals": ",".join(principals),
            "ttl": f"{valid}s",
        }
        optional = {
            "key_id": key_id,
            "extensions": extensions,
            "critical_options": critical_options,
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        with audit.operation(
            "ssh.sign", f"{self.mount}/{role}", principals=",".join(principals)
        ) as entry:
            answer = self.request("POST", f"sign/{role}", body)
            signed = parse_certificate(member(answer, "signed_key", str))
            entry.version = signed.serial
            _check(signed, key, principals, host)
            warnings = warnings_in(answer)
            if (signed.valid_before - signed.valid_after).total_seconds() < valid:
                warnings.append(
                    f"the certificate ends sooner than asked for: {signed.valid_before}"
                )
        return replace(signed, warnings=warnings)


def user_role(
    users: Sequence[str], *, extensions: Sequence[str] = (), critical_options: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the parameters of a role for certificates of users.

    Args:
        users: who may be a principal.
        extensions: what a certificate may allow, and does if nothing else is asked for: none means that a login can
            run commands, and has neither a terminal nor forwarding.
        critical_options: what a certificate may be limited by.
    """
    return {
        "key_type": "ca",
        "allow_user_certificates": True,
        "allowed_users": ",".join(users),
        # The name of no extension: to HashiCorp's server an empty list means all of them.
        "allowed_extensions": ",".join(extensions) or "none",
        "default_extensions": dict.fromkeys(extensions, ""),
        "allowed_critical_options": ",".join(critical_options) or "none",
        "allow_user_key_ids": True,
        "ttl": f"{USER_SECONDS}s",
        "max_ttl": f"{USER_SECONDS}s",
    }


def host_role(domains: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of a role for certificates of hosts in some domains."""
    return {
        "key_type": "ca",
        "allow_host_certificates": True,
        "allowed_domains": ",".join(domains),
        "allow_subdomains": True,
        "allow_user_key_ids": True,
        "ttl": f"{HOST_SECONDS}s",
        "max_ttl": f"{HOST_SECONDS}s",
    }


def parse_certificate(line: str) -> SignedKey:
    """Read the line of a -cert.pub file, whose signature is checked to be that of the CA that it names.

    Raises:
        CertificateError: it is no certificate, or the signature is not that.
    """
    try:
        found = load_ssh_public_identity(line.encode())
        if not isinstance(found, SSHCertificate):
            raise ValueError
        found.verify_cert_signature()
        return SignedKey(
            text=line.strip(),
            serial=found.serial,
            key_id=found.key_id.decode(errors="replace"),
            host=found.type is SSHCertificateType.HOST,
            principals=[each.decode() for each in found.valid_principals],
            valid_after=_time(found.valid_after),
            valid_before=_time(found.valid_before),
            critical_options=_texts(found.critical_options),
            extensions=_texts(found.extensions),
        )
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        raise CertificateError(
            "this is no certificate of OpenSSH's, or its signature is wrong"
        ) from None


def _time(seconds: int) -> datetime.datetime:
    # All ones stand for ever.
    return datetime.datetime.fromtimestamp(min(seconds, 253402300799), datetime.UTC)


def _texts(options: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode(errors="replace") for name, value in options.items()}


def _public_key(line: str) -> bytes:
    """Return a public key of OpenSSH's in DER.

    Raises:
        ValueError: it is none, or one that is not supported.
    """
    try:
        if line.lstrip().startswith("sk-"):
            raise UnsupportedAlgorithm("certificates of security keys are not read")
        key = load_ssh_public_identity(line.strip().encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"this is no public key of OpenSSH's that can be used: {error}") from None
    return public_bytes(key.public_key() if isinstance(key, SSHCertificate) else key)


def _check(signed: SignedKey, key: bytes, principals: Sequence[str], host: bool) -> None:
    """Refuse a certificate that is not what was asked for."""
    if _public_key(signed.text) != key:
        raise CertificateError("the certificate that Vault has signed is of another key")
    if signed.host != host or sorted(signed.principals) != sorted(principals):
        kind = "host" if signed.host else "user"
        raise CertificateError(
            f"the certificate that Vault has signed is of the {kind} {', '.join(signed.principals)}"
        )
    now = datetime.datetime.now(datetime.UTC)
    if not signed.valid_after <= now < signed.valid_before:
        raise CertificateError(
            f"the certificate that Vault has signed is valid from {signed.valid_after} to {signed.valid_before}: "
            "the clocks of this machine and Vault's disagree"
        )


def write_key_pair(path: StrPath, pair: SshKeyPair) -> None:
    """Write a key pair to PATH, mode 0600, and PATH.pub; neither may exist.

    Raises:
        FileExistsError: one does.
    """
    public = Path(f"{os.fspath(path)}.pub")
    with new_file(public, 0o644, replace=False) as fd:
        write_all(fd, f"{pair.public}\n".encode())
        os.fsync(fd)
        # Before the public half has its name: who sees that finds the private one.
        with new_file(path, 0o600, replace=False) as private_fd:
            with pair.private.buffer as buffer:
                write_all(private_fd, buffer)
            os.fsync(private_fd)
    sync_directory(public)


def certificate_path(public_key: StrPath) -> Path:
    """Return where ssh and sshd look for the certificate of a key: beside KEY.pub, KEY-cert.pub."""
    path = Path(public_key)
    if path.suffix != ".pub" or path.stem.endswith("-cert"):
        raise ValueError(f"{path} is not the name of a public key: KEY.pub")
    return path.with_name(f"{path.stem}-cert.pub")


def write_certificate(public_key: StrPath, signed: SignedKey) -> Path:
    """Write a certificate beside its KEY.pub, in place of the one before, and return its path."""
    path = certificate_path(public_key)
    with new_file(path, 0o644, replace=True) as fd:
        write_all(fd, f"{signed.text}\n".encode())
        os.fsync(fd)
    sync_directory(path)
    return path


@dataclass(frozen=True)
class HostKey:
    """A key of this host and its certificate."""

    certificate: str
    """The path."""
    state: str
    """"signed" or "current": the one that is there does."""
    signed: SignedKey


def sign_host_keys(
    ssh: Ssh,
    role: str,
    names: Sequence[str],
    *,
    directory: StrPath = "/etc/ssh",
    seconds: float = HOST_SECONDS,
    renew_before_seconds: float = 30 * 86400,
    force: bool = False,
    reload: Reload | None = None,
) -> list[HostKey]:
    """Have the keys of this host signed whose certificate is due: it ends soon, has other names, or is not there.

    Args:
        ssh: the engine.
        role: of the engine, one for hosts.
        names: under which clients reach the host.
        directory: where sshd has ssh_host_*_key.pub.
        seconds: how long a certificate is valid.
        renew_before_seconds: so long before its end it is due, or when a third of its time is left, if that is later.
        force: sign those too that are not due.
        reload: how sshd is told; a run that was killed before that leaves it to the next.

    Raises:
        FileNotFoundError: there are no keys of a host.
        CertificateError: as Ssh.sign(), or the hook failed.
    """
    untold = Path(directory, _UNTOLD)
    paths = sorted(Path(directory).glob("ssh_host_*_key.pub"))
    if not paths:
        raise FileNotFoundError(errno.ENOENT, "there are no keys of a host", str(directory))
    found = []
    for path in paths:
        public_key = path.read_text()
        have = _read_certificate(path)
        if (
            not force
            and have is not None
            and {*have.principals} == {*names}
            and _is_of(have, public_key)
            and not _is_due(have, renew_before_seconds)
        ):
            found.append(HostKey(str(certificate_path(path)), "current", have))
            continue
        signed = ssh.sign(role, public_key, principals=names, seconds=seconds, host=True)
        if reload is not None:
            untold.touch(mode=0o600)
            sync_directory(untold)
        found.append(HostKey(str(write_certificate(path, signed)), "signed", signed))
    if reload is not None and untold.exists():
        reload.run()
        untold.unlink()
    return found


def _read_certificate(public_key: Path) -> SignedKey | None:
    try:
        return parse_certificate(certificate_path(public_key).read_text())
    except (OSError, UnicodeDecodeError, CertificateError):
        return None


def _is_of(signed: SignedKey, public_key: str) -> bool:
    try:
        _check(signed, _public_key(public_key), signed.principals, True)
    except (CertificateError, ValueError):
        return False
    return True


def _is_due(signed: SignedKey, before: float) -> bool:
    left = (signed.valid_before - datetime.datetime.now(datetime.UTC)).total_seconds()
    return left <= min(before, (signed.valid_before - signed.valid_after).total_seconds() / 3)


class Krl:
    """A list of revoked keys and certificates, as RevokedKeys in sshd_config and RevokedHostKeys in ssh_config take it.

    It needs ssh-keygen. A file that sshd cannot read lets nobody in, so it is made before sshd_config names it.

    Args:
        path: of the file.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(os.path.abspath(path))

    def revoke(
        self,
        *,
        ca_public_key: str | None = None,
        serials: Sequence[int] = (),
        key_ids: Sequence[str] = (),
        public_keys: Sequence[str] = (),
    ) -> int:
        """Add to the list, which is replaced as a whole, and return its new version. With nothing to add, make it.

        Args:
            ca_public_key: the CA of the certificates that serial numbers and key ids are of.
            serials: of certificates.
            key_ids: of certificates: all with one of these, known or not.
            public_keys: keys themselves, and so every certificate of them; or certificates, which say whose they are.
                Lines of OpenSSH's.

        Raises:
            ValueError: something cannot be revoked like that.
            CertificateError: the file is no KRL, or ssh-keygen is not there.
            BlockingIOError: another run is at it.
        """
        if (serials or key_ids) and ca_public_key is None:
            raise ValueError("serial numbers and key ids are of certificates of a CA: name it")
        if any(not 0 < each < 1 << 64 for each in serials):
            raise ValueError("a serial number is 1 to 2**64 - 1")
        if any(not each or not each.isprintable() or each != each.strip() for each in key_ids):
            raise ValueError("a key id is one line, without blanks around it")
        if any("#" in each for each in key_ids):
            # ssh-keygen takes what follows for a comment, and would revoke another one.
            raise ValueError(
                "ssh-keygen cannot revoke a key id with '#': revoke the serial number or the public key"
            )
        lines = [f"serial: {each}" for each in serials]
        lines += [f"id: {each}" for each in key_ids]
        lines += [checked_line(each) for each in public_keys]
        with (
            audit.operation("ssh.revoke", str(self.path), entries=len(lines)) as entry,
            self._lock(),
        ):
            entry.version = version = self._write(lines, ca_public_key)
        return version

    def revokes(self, public_key: str) -> bool:
        """Whether it names a key or a certificate, given as a line of OpenSSH's."""
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "key.pub")
            path.write_text(f"{public_key.strip()}\n")
            code, said = _keygen("-Q", "-f", str(self.path), str(path))
        if code not in (0, 1) or (code and "REVOKED" not in said):
            raise CertificateError(f"{self.path} could not be asked: {plain(said)}")
        return code != 0

    def _write(self, lines: Sequence[str], ca_public_key: str | None) -> int:
        # A name in a directory of its own: ssh-keygen writes in place, and a list must never be seen half written.
        with tempfile.TemporaryDirectory() as name:
            made, specification, authority = (Path(name, each) for each in ("krl", "list", "ca"))
            version, arguments = 1, []
            if self.path.exists():
                before = self.path.read_bytes()
                made.write_bytes(before)
                version = int.from_bytes(before[_KRL_VERSION]) + 1
                arguments = ["-u"] if before else []
            specification.write_text("".join(f"{line}\n" for line in lines))
            if ca_public_key is not None:
                authority.write_text(f"{ca_public_key}\n")
                arguments += ["-s", str(authority)]
            arguments += ["-z", str(version), "-f", str(made), str(specification)]
            code, said = _keygen("-k", *arguments)
            if code:
                raise CertificateError(f"{self.path} could not be added to: {plain(said)}")
            with new_file(self.path, 0o644, replace=True) as fd:
                write_all(fd, made.read_bytes())
                os.fsync(fd)
        sync_directory(self.path)
        return version

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep two runs from losing what one of them adds."""
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    error.errno, "another run is at work on it", str(self.path)
                ) from None
            yield
        finally:
            os.close(fd)


def checked_line(line: str) -> str:
    """Return a public key or a certificate as one line, which ssh-keygen takes for nothing else.

    Raises:
        ValueError: it is neither.
    """
    text = line.strip()
    try:
        load_ssh_public_identity(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("this is no public key or certificate of OpenSSH's") from None
    if not text.isprintable():
        raise ValueError("a public key is one line")
    return text


def _keygen(*arguments: str) -> tuple[int, str]:
    """Run ssh-keygen; return its exit code and what it said."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise CertificateError("ssh-keygen is not installed: it is part of the OpenSSH client")
    done = subprocess.run(
        [program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_KEYGEN_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace").strip()


def sshd_lines(
    certificates: Sequence[StrPath] = (),
    *,
    trusted_user_ca_keys: StrPath | None = None,
    revoked_keys: StrPath | None = None,
) -> str:
    """Return lines of sshd_config: which certificates the host shows, which CA of users it trusts, what is revoked.

    Raises:
        ValueError: sshd_config cannot have such a name: with a quotation mark, a backslash or a control character.
    """
    settings = [("HostCertificate", path) for path in certificates]
    if trusted_user_ca_keys is not None:
        settings.append(("TrustedUserCAKeys", trusted_user_ca_keys))
    if revoked_keys is not None:
        settings.append(("RevokedKeys", revoked_keys))
    return "".join(f"{name} {_sshd_argument(path)}\n" for name, path in settings)


def _sshd_argument(path: StrPath) -> str:
    text = os.fspath(path)
    if not text.isprintable() or set(text) & set('"\\'):
        raise ValueError(f"sshd_config cannot have the name {text!r}: rename the file")
    return f'"{text}"' if set(text) & set(" #'") else text


def known_hosts_line(ca_public_key: str, patterns: Sequence[str]) -> str:
    """Return the line of known_hosts that trusts hosts with certificates of a CA.

    Args:
        ca_public_key: as Ssh.ca_public_key() gives it.
        patterns: the names of hosts, such as "*.example".
    """
    return f"@cert-authority {','.join(patterns)} {ca_public_key.strip()}\n"
