"""A consumer of a rotated secret, which follows docs/rotation-kinds.md: kind_consumer.py SPECIFICATION

It logs in so many times a second, each time anew, with the credential that it read last; looks five times a second for
a new version, and acknowledges one as soon as it uses it and nothing older. It prints "ready" after its first login. At
SIGTERM it prints what it has seen as JSON: how many logins, which failed and why, how many were repeated once with a
credential that was read again, and the versions.
"""

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tapeseal.rotation import acknowledge
from tapeseal.vault import Token, VaultSession

LOOKS_PER_SECOND = 5.0


class RefusedError(Exception):
    """The service does not take the credential."""


class Consumer:
    """One consumer.

    Attributes:
        specification: what it was told, as JSON.
        vault: its session.
    """

    def __init__(self, specification: dict[str, Any]) -> None:
        self.specification = specification
        self.vault = VaultSession(
            specification["address"],
            login=Token(specification["token"]),
            ca_file=specification["vault_ca_file"],
        )

    def version(self) -> str:
        """Return the version that is current."""
        mount, _, path = self.specification["path"].partition("/")
        metadata = self.vault.request("GET", f"{mount}/metadata/{path}")["data"]
        return str(metadata["current_version"])

    def read(self) -> tuple[str, dict[str, Any]]:
        """Return the current version and its credential."""
        mount, _, path = self.specification["path"].partition("/")
        answer = self.vault.request("GET", f"{mount}/data/{path}")["data"]
        return str(answer["metadata"]["version"]), answer["data"]

    def news(self, version: str) -> tuple[str, dict[str, Any]] | None:
        """Return what is current where it is another version."""
        return self.read() if self.version() != version else None

    def log_in(self, credential: dict[str, Any]) -> None:
        """Log in; RefusedError where the service refuses."""
        raise NotImplementedError

    def adopt(self, credential: dict[str, Any]) -> None:
        """Do what must be done before an older version may end."""


class ApiKey(Consumer):
    def __init__(self, specification: dict[str, Any]) -> None:
        super().__init__(specification)
        self._tls = ssl.create_default_context(cafile=specification["ca_file"])

    def log_in(self, credential: dict[str, Any]) -> None:
        url = self.specification["url"]
        request = urllib.request.Request(url, headers={"X-API-Key": credential["key"]})
        try:
            urllib.request.urlopen(request, context=self._tls, timeout=10).close()
        except urllib.error.HTTPError as error:
            raise RefusedError(f"{error.code}") from None


class Database(Consumer):
    def static(self, role: str) -> dict[str, Any]:
        """Return what Vault has for a role."""
        mount = self.specification["database_mount"]
        found: dict[str, Any] = self.vault.request("GET", f"{mount}/static-creds/{role}")["data"]
        return found

    def log_in(self, credential: dict[str, Any]) -> None:
        import psycopg

        try:
            psycopg.connect(
                user=credential["username"],
                password=credential["password"],
                sslmode="disable",
                connect_timeout=10,
                **self.specification["conninfo"],
            ).close()
        except psycopg.OperationalError as error:
            raise RefusedError(str(error)) from None


class Users(Database):
    def read(self) -> tuple[str, dict[str, Any]]:
        version, found = super().read()
        return version, self.static(found["role"])


class StaticRole(Database):
    def version(self) -> str:
        return str(self.static(self.specification["role"])["last_vault_rotation"])

    def read(self) -> tuple[str, dict[str, Any]]:
        found = self.static(self.specification["role"])
        return str(found["last_vault_rotation"]), found


class ServiceAccount(Consumer):
    def __init__(self, specification: dict[str, Any]) -> None:
        super().__init__(specification)
        ca_file = specification["ca_file"]
        self._tls = ssl.create_default_context(cafile=ca_file) if ca_file else None

    def log_in(self, credential: dict[str, Any]) -> None:
        body = {name: credential[name] for name in ("role_id", "secret_id")}
        request = urllib.request.Request(
            self.specification["login"], json.dumps(body).encode(), method="POST"
        )
        try:
            urllib.request.urlopen(request, context=self._tls, timeout=10).close()
        except urllib.error.HTTPError as error:
            raise RefusedError(f"{error.code}") from None


class TlsCertificate(Consumer):
    _known: tuple[str, ssl.SSLContext] | None = None

    def log_in(self, credential: dict[str, Any]) -> None:
        from servers.tls_gate import enter

        try:
            enter(self._context(credential), self.specification["port"])
        except ssl.SSLError as error:
            raise RefusedError(error.reason) from None

    def _context(self, credential: dict[str, Any]) -> ssl.SSLContext:
        if self._known is None or self._known[0] != credential["serial_number"]:
            context = ssl.create_default_context(cafile=self.specification["ca_file"])
            with tempfile.NamedTemporaryFile("w") as file:
                file.write(f"{credential['private_key']}\n{credential['certificate']}\n")
                file.flush()
                context.load_cert_chain(file.name)
            self._known = credential["serial_number"], context
        return self._known[1]


class SshKey(Consumer):
    def log_in(self, credential: dict[str, Any]) -> None:
        name = hashlib.sha256(credential["private_key"].encode()).hexdigest()[:16]
        identity = Path(self.specification["directory"], f"consumer-{name}")
        if not identity.exists():
            certificate = identity.with_name(f"{identity.name}-cert.pub")
            if "certificate" in credential:
                certificate.write_text(credential["certificate"] + "\n")
            fd = os.open(
                identity.with_suffix(".part"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
            )
            with open(fd, "w") as file:
                file.write(credential["private_key"])
            identity.with_suffix(".part").rename(identity)
        options = {
            "Port": self.specification["port"],
            "User": self.specification["user"],
            "UserKnownHostsFile": self.specification["known_hosts"],
            "GlobalKnownHostsFile": "none",
            "IdentityFile": identity,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PreferredAuthentications": "publickey",
            "BatchMode": "yes",
            "ConnectTimeout": "20",
        }
        arguments = [f"-o{option}={value}" for option, value in options.items()]
        done = subprocess.run(
            ["ssh", "-F", "none", *arguments, "127.0.0.1", "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RefusedError(done.stderr)


class TransitKey(Consumer):
    def __init__(self, specification: dict[str, Any]) -> None:
        super().__init__(specification)
        self._kept: list[str] = []
        self._turn = 0

    def _call(self, what: str, **body: Any) -> dict[str, Any]:
        mount = self.specification["transit"]
        found: dict[str, Any] = self.vault.request("POST", f"{mount}/{what}/desk", body)["data"]
        return found

    def version(self) -> str:
        mount = self.specification["transit"]
        return str(self.vault.request("GET", f"{mount}/keys/desk")["data"]["latest_version"])

    def read(self) -> tuple[str, dict[str, Any]]:
        return self.version(), {}

    def adopt(self, credential: dict[str, Any]) -> None:
        self._kept = [self._call("rewrap", ciphertext=each)["ciphertext"] for each in self._kept]

    def log_in(self, credential: dict[str, Any]) -> None:
        from hvac.exceptions import InvalidRequest

        self._turn += 1
        try:
            if len(self._kept) < 50:
                self._kept.append(self._call("encrypt", plaintext="dHJhZGVz")["ciphertext"])
            kept = self._kept[self._turn % len(self._kept)]
            with self._call("decrypt", ciphertext=kept)["plaintext"] as plaintext:
                if plaintext.expose() != "dHJhZGVz":
                    raise RefusedError("another plaintext")
        except InvalidRequest as error:
            raise RefusedError(str(error)) from None


class KmsKey(Consumer):
    def __init__(self, specification: dict[str, Any]) -> None:
        import boto3

        super().__init__(specification)
        os.environ |= specification["aws"]
        self._client = boto3.client("kms")
        self._kept: list[bytes] = []
        self._turn = 0

    def version(self) -> str:
        alias = self.specification["alias"]
        if self.specification["name"] == "kms-key":
            return str(self._client.describe_key(KeyId=alias)["KeyMetadata"]["Arn"])
        key = self._client.describe_key(KeyId=alias)["KeyMetadata"]["KeyId"]
        return str(len(self._client.list_key_rotations(KeyId=key)["Rotations"]) + 1)

    def read(self) -> tuple[str, dict[str, Any]]:
        return self.version(), {}

    def adopt(self, credential: dict[str, Any]) -> None:
        self._kept = [
            self._encrypt(self._client.decrypt(CiphertextBlob=each)["Plaintext"])
            for each in self._kept
        ]

    def _encrypt(self, plaintext: bytes) -> bytes:
        answer = self._client.encrypt(KeyId=self.specification["alias"], Plaintext=plaintext)
        return bytes(answer["CiphertextBlob"])

    def log_in(self, credential: dict[str, Any]) -> None:
        from botocore.exceptions import ClientError

        self._turn += 1
        try:
            if len(self._kept) < 20:
                self._kept.append(self._encrypt(b"trades"))
            kept = self._kept[self._turn % len(self._kept)]
            if self._client.decrypt(CiphertextBlob=kept)["Plaintext"] != b"trades":
                raise RefusedError("another plaintext")
        except ClientError as error:
            raise RefusedError(str(error)) from None


class TapeRecipients(Consumer):
    """Has both key files, and reads with the one that KV names."""

    def version(self) -> str:
        from hvac.exceptions import InvalidPath

        try:
            return super().version()
        except InvalidPath:
            return "0"

    def read(self) -> tuple[str, dict[str, Any]]:
        import tapeseal

        if self.version() == "0":
            return "0", {"keyring": self.specification["keys"][0]}
        version, found = super().read()
        for uri in self.specification["keys"]:
            (key,) = tapeseal.keyring(uri).pending()
            if f"{key.provider}:{key.key}" in found["recipients"].split():
                return version, {"keyring": uri}
        raise AssertionError(found)

    def log_in(self, credential: dict[str, Any]) -> None:
        import tapeseal
        from tapeseal.errors import KeyUnavailableError

        for tape in self.specification["tapes"]:
            try:
                tapeseal.open(tape, "rb", keyring=tapeseal.keyring(credential["keyring"])).close()
            except KeyUnavailableError as error:
                raise RefusedError(str(error)) from None


CONSUMERS: dict[str, type[Consumer]] = {
    "api-key": ApiKey,
    "database-users": Users,
    "database-static-role": StaticRole,
    "service-account": ServiceAccount,
    "tls-certificate": TlsCertificate,
    "ssh-key": SshKey,
    "transit-key": TransitKey,
    "kms-key": KmsKey,
    "tape-recipients": TapeRecipients,
}


def main() -> None:
    """Log in until SIGTERM."""
    specification = json.loads(sys.argv[1])
    consumer = CONSUMERS[specification["kind"]](specification)
    seen: dict[str, Any] = {"logins": 0, "failures": [], "retries": 0, "versions": []}
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    version, credential = consumer.read()
    looked = 0.0
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        # Logins go on while it looks for a new version.
        look = None
        while not stopped:
            if look is None and time.monotonic() - looked > 1 / LOOKS_PER_SECOND:
                looked = time.monotonic()
                look = pool.submit(consumer.news, version)
            if look is not None and look.done():
                found = look.result()
                look = None
                if found is not None:
                    version, credential = found
            for left in range(specification["retries"], -1, -1):
                try:
                    consumer.log_in(credential)
                except RefusedError as error:
                    if left:
                        seen["retries"] += 1
                        # Vault writes a password down some milliseconds after the database has it.
                        time.sleep(0.1)
                        version, credential = consumer.read()
                        continue
                    seen["failures"].append([version, str(error)])
                break
            seen["logins"] += 1
            if [version] != seen["versions"][-1:]:
                consumer.adopt(credential)
                acknowledge(
                    consumer.vault,
                    specification["secret"],
                    specification["consumer"],
                    version,
                    path=specification["consumers"],
                )
                seen["versions"].append(version)
                if len(seen["versions"]) == 1:
                    print("ready", flush=True)
            due = start + seen["logins"] / specification["logins_per_second"]
            time.sleep(max(due - time.monotonic(), 0))
    seen["seconds"] = time.monotonic() - start
    consumer.vault.close()
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
