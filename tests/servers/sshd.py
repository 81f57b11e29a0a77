"""An sshd on loopback with its own host key and configuration, and ssh clients that use none of the user's files.

    with sshd_server(directory) as server:
        server.authorized_keys.write_text(public_key)
        assert server.login(identity).returncode == 0

It runs as whoever runs the tests, root or not, and lets in that user alone. The keys, CAs and revoked keys that it
trusts are read anew for each connection; after a change of `settings` restart it.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servers.bao import free_ports, wait_for

HOST = "recorder.example"
"""The name under which clients know the server, whatever its address."""


def program(name: str) -> str:
    """Return the path of a program of OpenSSH; without it the test skips, in CI it fails."""
    # sshd refuses to start by a relative name, and is not on the path of ordinary users.
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if path is None:
        assert not os.environ.get("CI"), f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    return path


def make_key(path: Path) -> str:
    """Make an ed25519 key pair, PATH and PATH.pub, and return the public line."""
    arguments = ["-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run([program("ssh-keygen"), *arguments], check=True, stdin=subprocess.DEVNULL)
    return path.with_name(path.name + ".pub").read_text()


class Sshd:
    """One sshd process.

    Attributes:
        port: on 127.0.0.1.
        user: who may log in.
        host_key: the path of the private host key; its public half is beside, with .pub.
        authorized_keys: public keys that may log in; empty at first.
        trusted_user_ca_keys: CAs whose certificates of users may log in; empty at first.
        revoked_keys: public keys, or a KRL, that may not; empty at first.
        settings: further lines of sshd_config, by their keyword.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_ports(1)
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.host_key = directory / "host_key"
        self.authorized_keys = directory / "authorized_keys"
        self.trusted_user_ca_keys = directory / "trusted_user_ca_keys"
        self.revoked_keys = directory / "revoked_keys"
        self.settings: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        make_key(self.host_key)
        for path in (self.authorized_keys, self.trusted_user_ca_keys, self.revoked_keys):
            path.touch()  # Without its file of revoked keys sshd lets nobody in.

    def start(self) -> None:
        """Start the process and wait until it takes connections."""
        settings = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": str(self.host_key),
            "AuthorizedKeysFile": str(self.authorized_keys),
            "TrustedUserCAKeys": str(self.trusted_user_ca_keys),
            "RevokedKeys": str(self.revoked_keys),
            "AuthenticationMethods": "publickey",
            "PermitRootLogin": "prohibit-password",
            "AllowUsers": self.user,
            "MaxStartups": "1000",
            "UsePAM": "no",
            "StrictModes": "no",  # The directories of tests are under /tmp, where others may write.
            "PidFile": "none",
            "LogLevel": "VERBOSE",
            **self.settings,
        }
        path = self.directory / "sshd_config"
        path.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        if os.geteuid() == 0:
            # A compiled-in path, which the system's service makes at boot.
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        with open(self.directory / "sshd.log", "ab") as log:
            self._process = subprocess.Popen(
                [program("sshd"), "-D", "-e", "-f", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_for("sshd's first answer", self._answers)
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        return f"listening on 127.0.0.1 port {self.port}" in self.log

    @property
    def log(self) -> str:
        """What it has said since it was first started."""
        return (self.directory / "sshd.log").read_text(errors="replace")

    def stop(self) -> None:
        """End the process, if it runs; open connections stay."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def restart(self) -> None:
        """Start it anew with the present settings."""
        self.stop()
        (self.directory / "sshd.log").unlink()
        self.start()

    def login(
        self,
        identity: Path,
        command: str = "true",
        *,
        certificate: Path | None = None,
        known_hosts: str | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command over ssh; its exit code, or 255 where there was no login.

        Args:
            identity: path of the private key; IDENTITY-cert.pub beside it is offered too.
            command: for the user's shell.
            certificate: path of another certificate of the key.
            known_hosts: a text that names what HOST is trusted by; None: its present host key.
        """
        if known_hosts is None:
            known_hosts = f"{HOST} {self.host_key.with_name('host_key.pub').read_text()}"
        hosts = self.directory / f"known_hosts.{os.urandom(4).hex()}"
        hosts.write_text(known_hosts)
        options = {
            "User": self.user,
            "Port": str(self.port),
            "HostKeyAlias": HOST,
            "UserKnownHostsFile": str(hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
            "IdentityFile": str(identity),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PreferredAuthentications": "publickey",
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            # A quarter faster than the post-quantum default.
            "KexAlgorithms": "curve25519-sha256",
        }
        if certificate is not None:
            options["CertificateFile"] = str(certificate)
        arguments = [f"-o{name}={value}" for name, value in options.items()]
        try:
            return subprocess.run(
                [program("ssh"), "-F", "none", *arguments, "127.0.0.1", command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        finally:
            hosts.unlink()


@contextmanager
def sshd_server(directory: Path) -> Iterator[Sshd]:
    """Run an sshd whose files are in this directory."""
    server = Sshd(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()
