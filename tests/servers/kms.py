"""AWS KMS on loopback: moto, hardened as kms_program.py says, in a process of its own.

    with kms_server(directory) as server:
        key = server.admin.create_key()["KeyMetadata"]["Arn"]
        server.environment(policy)      # what a child, or monkeypatch, needs to be a user under that policy

The fixture `kms` of conftest.py starts one once a session.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

REGION = "us-east-1"
ACCOUNT = "123456789012"
ALL = {"Statement": {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}}


_CLIENTS: dict[str, Any] = {}


def make_clients_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each boto3 client of the package made once, for that takes longer than most tests."""
    from tapeseal import kms

    make = kms._make_client

    def make_once(*settings: Any) -> Any:
        user = [value for name, value in os.environ.items() if name.startswith("AWS_")]
        key = repr((settings, user))
        if key not in _CLIENTS:
            _CLIENTS[key] = make(*settings)
        return _CLIENTS[key]

    monkeypatch.setattr(kms, "_make_client", make_once)


class KmsServer:
    """One server process; what it holds is gone when it ends.

    Attributes:
        address: its URL.
        ca_file: what its certificate is checked against; None without TLS.
    """

    def __init__(self, directory: Path, tls: tuple[str, str, str] | None) -> None:
        self.ca_file, *certificate = tls or (None,)
        program = Path(__file__).with_name("kms_program.py")
        with open(directory / "kms.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(program), *certificate],
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "HOME": str(directory)},
            )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().decode().strip()
        assert port, (directory / "kms.log").read_text()
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        self._users = 0

    def client(
        self, service: str = "kms", user: dict[str, str] | None = None, **options: Any
    ) -> Any:
        """Return a boto3 client; `user` is what environment() returned, and may be left out for IAM."""
        import boto3

        user = user or {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
        return boto3.session.Session().client(
            service,
            aws_access_key_id=user["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=user["AWS_SECRET_ACCESS_KEY"],
            verify=self.ca_file,
            **{"region_name": REGION, "endpoint_url": self.address, **options},
        )

    def environment(self, *policies: dict[str, Any]) -> dict[str, str]:
        """Make a user under these policies and return the variables that make boto3 that user, and nobody else."""
        iam = self.client("iam")
        self._users += 1
        name = f"user{self._users}"
        iam.create_user(UserName=name)
        for number, policy in enumerate(policies):
            document = json.dumps({"Version": "2012-10-17", **policy})
            iam.put_user_policy(UserName=name, PolicyName=f"p{number}", PolicyDocument=document)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        return {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            **({"AWS_CA_BUNDLE": self.ca_file} if self.ca_file else {}),
        }

    @cached_property
    def admin_user(self) -> dict[str, str]:
        """The variables of a user who may do everything."""
        return self.environment(ALL)

    @cached_property
    def admin(self) -> Any:
        """A KMS client of that user's."""
        return self.client(user=self.admin_user)

    def make_key(self, **options: Any) -> str:
        """Make a key and return its ARN; options as CreateKey has them."""
        return str(self.admin.create_key(**options)["KeyMetadata"]["Arn"])

    def faults(self, *rules: dict[str, Any]) -> None:
        """Have requests that match a rule wait or fail, see kms_program.py; without rules, none does."""
        self._control("POST", "/_faults", json.dumps(rules).encode())

    def take_calls(self) -> list[dict[str, Any]]:
        """Return the requests to KMS since the last take_calls()."""
        calls: list[dict[str, Any]] = json.loads(self._control("DELETE", "/_calls"))
        return calls

    def _control(self, method: str, path: str, data: bytes | None = None) -> bytes:
        import ssl

        context = ssl.create_default_context(cafile=self.ca_file) if self.ca_file else None
        request = urllib.request.Request(self.address + path, data, method=method)
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            return bytes(answer.read())

    def pause(self) -> None:
        """Freeze the process: its sockets still take connections, and nothing ever answers."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        with self.process:
            pass


@contextmanager
def kms_server(directory: Path, tls: tuple[str, str, str] | None = None) -> Iterator[KmsServer]:
    """Run a server.

    Args:
        directory: its log goes there.
        tls: the paths of CA, certificate and key; None: plain HTTP.
    """
    try:
        import moto.kms  # noqa: F401
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("moto is not installed")
    server = KmsServer(directory, tls)
    try:
        yield server
    finally:
        server.close()
