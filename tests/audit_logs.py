"""What the tests of the audit log share: making logs, writing entries, reading them as docs/audit.md has them."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

import tapeseal
from tapeseal import audit
from tapeseal.audit_log.check import LogVerification, verify_log
from tapeseal.audit_log.log import AuditLog, create_log, head_path
from tapeseal.layout import Recipient


@contextmanager
def recording(path: Path, keyring: Any, **more: Any) -> Iterator[AuditLog]:
    """Record this process's operations in a log, which is made where it is not there."""
    if not Path(head_path(path)).exists() and not path.exists():
        create_log(path, keyring=keyring)
    with AuditLog(path, keyring=keyring, **more) as log:
        audit.start(log)
        try:
            yield log
        finally:
            audit.stop()


def record(count: int, action: str = "kv.read", subject: str = "secret/api-keys/binance") -> None:
    """Record operations that do nothing."""
    for number in range(count):
        with audit.operation(action, subject) as entry:
            entry.version = number


def make_log(path: Path, keyring: Any, count: int) -> Path:
    """Write a log of that many entries, that of its opening among them."""
    with recording(path, keyring):
        record(count - 1)
    return path


def entries(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a file, without its header."""
    return [json.loads(line) for line in path.read_bytes().splitlines()[1:]]


def verified(path: Path, keyring: Any, **more: Any) -> LogVerification:
    """Verify a log, its entries and the number of its last one, and return what was found."""
    found = verify_log(path, keyring=keyring, **more)
    assert [] == found.problems[:3]
    assert found.entries == found.last
    return found


def kinds(path: Path, keyring: Any, **more: Any) -> list[str]:
    """Return the kinds of all problems of a log."""
    return [each.kind for each in verify_log(path, keyring=keyring, **more).problems]


def save(path: Path) -> tuple[bytes, bytes]:
    """Return the bytes of a log and of its head."""
    return path.read_bytes(), Path(head_path(path)).read_bytes()


def put_back(path: Path, saved: tuple[bytes, bytes]) -> None:
    """Put a log and its head back as they were."""
    path.write_bytes(saved[0])
    Path(head_path(path)).write_bytes(saved[1])


def check_as_documented(path: Path, keyring: tapeseal.Keyring) -> int:
    """Check the MACs of a file of a log by docs/audit.md alone, and return how many entries it has."""
    lines = path.read_bytes().split(b"\n")
    assert b"" == lines.pop()
    header = json.loads(lines[0])
    recipients = [
        Recipient(each["provider"], each["key"], each["wrapped"]) for each in header["recipients"]
    ]
    context = {"purpose": "audit log", "log": header["log"]}
    info = b"tapeseal/v1 audit\0" + bytes.fromhex(header["log"])
    with (
        keyring.unwrap(recipients, context) as data_key,
        data_key.secret as secret,
        memoryview(secret) as view,
    ):
        key = HKDFExpand(SHA512(), 32, info).derive(bytes(view))

    def mac(*parts: bytes) -> str:
        return hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest()

    before = ""
    for number, line in enumerate(lines):
        body, text = line[:-74], line[-74:]
        before = mac(b"entry\0", bytes.fromhex(before), body) if number else mac(b"header\0", body)
        assert f',"mac":"{before}"}}'.encode() == text
        assert json.loads(line).get("sequence") == (
            header["sequence"] + number if number else header["sequence"]
        )
    head = Path(head_path(path)).read_text()
    stated = dict(each.split("=") for each in head.split()[2:])
    signed = head[: head.index("head-mac=") + len("head-mac=")].encode()
    assert mac(b"head\0", signed) == stated["head-mac"]
    assert (before, header["log"]) == (stated["mac"], stated["log"])
    assert path.stat().st_size == int(stated["size"])
    return len(lines) - 1
