"""Where key bytes stand in the memory of a process that uses them, and that none are left afterwards.

A child records; this process learns its keys apart from it, from what it wrote and from whoever wraps them, and looks
for them in its memory and in a core dump. docs/threat-model.md, guarantee 13.
"""

import base64
import hashlib
import hmac
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from format_reader import Reader, read_copy
from format_texts import encode, parse_recipients
from memory_scan import Hit, Scanner, child, round_keys
from support import blocks
from tapeseal import _core
from tapeseal.keyrings.local import create_key_file

if TYPE_CHECKING:
    from servers.bao import SingleServer

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/mem"),
    pytest.mark.skipif(
        not _core.KEY_SCHEDULES_PROTECTED,
        reason="the system's libcrypto, or a sanitizer, has its own memory",
    ),
]

CONTEXT = {"desk": "eq-us"}
WRAP_BINDING = b"tapeseal/v1 wrap\0" + encode(CONTEXT)

RECORDER = """
import tapeseal
from support import TICK, ticks

CONTEXT = {"desk": "eq-us"}
uri, directory = sys.argv[1], Path(sys.argv[2])
path = directory / "a.tape"
keyring = tapeseal.keyring(uri)
with tapeseal.open(
    path, "w", keyring=keyring, dtype=TICK, frame_size=4096, encryption_context=CONTEXT
) as tape:
    for start in range(0, 3000, 1000):
        tape.append(ticks(start, start + 1000))
        tape.flush()
tape = tapeseal.open(path, "a", keyring=keyring)
tape.append(ticks(3000, 9000))
tape.flush()
reader = tapeseal.open(path, keyring=keyring)
assert (reader[500:8000] == ticks(500, 8000)).all()
rows = tapeseal.RowEncryptor(keyring, dtype=TICK, encryption_context=CONTEXT)
sealed = rows.encrypt(ticks(0, 5000))
opener = tapeseal.RowDecryptor(rows.header, keyring=keyring)
assert (opener.decrypt(sealed) == ticks(0, 5000)).all()
blob = tapeseal.encrypt(b"message", keyring=keyring, encryption_context=CONTEXT)
assert tapeseal.decrypt(blob, keyring=keyring) == b"message"
(directory / "rows").write_bytes(rows.header)
(directory / "blob").write_bytes(blob)
stage("in use")

told = threading.Event()
threading.Thread(target=lambda: told.set() if sys.stdin.readline() else None, daemon=True).start()
print("busy", flush=True)
records = ticks(0, 5000)
while not told.is_set():
    reader[500:8000]
    opener.decrypt(rows.encrypt(records))

tape.append(ticks(9000, 9100))
tape.close()
reader.close()
rows.close()
opener.close()
stage("closed")
del keyring, tape, reader, rows, opener
gc.collect()
stage("dropped")
"""

CONTROL = """
import base64
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tapeseal._core import SecretBuffer

plain = sys.stdin.buffer.raw.read(32)
held = [base64.b64encode(plain), plain.hex(), AESGCM(plain)]
held[2].encrypt(bytes(12), b"", None)
secret = SecretBuffer.read(0, 32)
stage("held")
"""


# Who wraps the data keys: an address for the child, its variables, and how to unwrap without the package.


class Wrapping(NamedTuple):
    """A wrapping key: how the child names it, and how its owner unwraps an entry without the package."""

    uri: str
    variables: dict[str, str]
    unwrap: Callable[[dict[str, str]], bytes]
    own: dict[str, bytes]
    """What the child itself holds as long as its keyring lives."""


@pytest.fixture
def local(tmp_path: Path) -> Wrapping:
    """A key file."""
    path = tmp_path / "archive.key"
    create_key_file(path)
    key = bytes.fromhex(path.read_text().split("secret=")[1][:64])

    def unwrap(entry: dict[str, str]) -> bytes:
        wrapped = base64.b64decode(entry["wrapped"])
        return AESGCM(key).decrypt(wrapped[:12], wrapped[12:], WRAP_BINDING)

    return Wrapping(f"local:{path}", {}, unwrap, {"wrapping key": key})


@pytest.fixture
def aws_kms(tmp_path: Path) -> Iterator[Wrapping]:
    """A key of KMS, behind TLS."""
    from servers.certs import Authority
    from servers.kms import kms_server

    authority = Authority(tmp_path / "tls")
    with kms_server(tmp_path, (authority.ca_file, *authority.issue_server())) as server:
        key = server.make_key()

        def unwrap(entry: dict[str, str]) -> bytes:
            answer = server.admin.decrypt(
                CiphertextBlob=base64.b64decode(entry["wrapped"]),
                EncryptionContext={**CONTEXT, "tapeseal:v1": "wrap"},
            )
            return bytes(answer["Plaintext"])

        uri = f"aws-kms:{key}?endpoint_url={server.address}&read_timeout=30"
        yield Wrapping(uri, server.admin_user, unwrap, {})


def transit(server: "SingleServer", name: str, **options: object) -> Wrapping:
    """Make a key of a Transit engine, behind TLS."""
    mount = f"memory-{name}"
    server.admin.sys.enable_secrets_engine("transit", path=mount)
    server.admin.adapter.post(f"/v1/{mount}/keys/{name}", json=options)

    def unwrap(entry: dict[str, str]) -> bytes:
        bound = WRAP_BINDING
        if entry["binding"] == "context":
            bound = hashlib.sha256(bound).digest()
        parameters = {entry["binding"]: base64.b64encode(bound).decode()}
        answer = server.admin.secrets.transit.decrypt_data(
            name, entry["wrapped"], mount_point=mount, **parameters
        )
        return base64.b64decode(answer["data"]["plaintext"])

    assert server.ca_file is not None
    variables = {"ADDR": server.address, "TOKEN": server.token, "CACERT": server.ca_file}
    # The server may have been told to its own users by either name.
    variables = {
        f"{tool}_{name}": value for tool in ("BAO", "VAULT") for name, value in variables.items()
    }
    return Wrapping(f"vault-transit:{mount}/{name}", variables, unwrap, {})


@pytest.fixture
def vault_derived(bao_tls: "SingleServer") -> Wrapping:
    """A derived key: the server makes the data keys (transit/datakey)."""
    return transit(bao_tls, "derived", derived=True)


@pytest.fixture
def vault_plain(bao_tls: "SingleServer") -> Wrapping:
    """A key that is not derived: data keys are made here and wrapped there (transit/encrypt)."""
    return transit(bao_tls, "plain")


def keys_of(directory: Path, wrapping: Wrapping) -> dict[str, bytes]:
    """Derive all keys of what the child wrote, as docs/format.md says."""
    found = dict(wrapping.own)
    for name in ("a.tape", "rows", "blob"):
        data = (directory / name).read_bytes()
        copy = read_copy(data, 0)
        assert copy is not None
        (entry,) = parse_recipients(copy.recipients, 0)
        reader = Reader(data)
        reader.tape_id, reader.data_key = copy.tape_id, wrapping.unwrap(entry)
        header_key = reader.expand("header", copy.tape_id, 32)
        assert hmac.digest(header_key, copy.signed, "sha256") == copy.mac
        found |= {f"{name}: data key": reader.data_key, f"{name}: header": header_key}
        if name == "rows":
            found["rows: rows"] = reader.expand("rows", copy.tape_id, 32)
        elif name == "blob":
            found["blob: segment"], _ = reader.derive(copy.size)
        else:
            at = [block.start for block in blocks(data) if block.kind in ("segment", "index")]
            # Proves itself by the commitment.
            found |= {f"a.tape: segment {n}": reader.derive(start)[0] for n, start in enumerate(at)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "local",
        pytest.param("aws_kms", marks=pytest.mark.server),
        pytest.param("vault_derived", marks=pytest.mark.server),
        pytest.param("vault_plain", marks=pytest.mark.server),
    ],
)
def test_a_recorder(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Keys stand in locked, undumped pages alone while in use, nowhere after close(), and in no core dump."""
    wrapping: Wrapping = request.getfixturevalue(name)
    with child(RECORDER, wrapping.uri, tmp_path, **wrapping.variables) as recorder:
        recorder.wait_for("in use")
        scanner = Scanner(keys_of(tmp_path, wrapping))
        in_use = scanner.process(recorder.pid)
        assert {hit for hit in in_use if not hit.protected} == set()
        last = max(hit.key for hit in in_use if hit.key.startswith("a.tape: segment"))
        for expected in (
            *((key, "raw") for key in wrapping.own),
            ("a.tape: data key", "raw"),
            (last, "schedule"),
            ("rows: rows", "schedule"),
        ):
            assert Hit(*expected, protected=True) in in_use
        assert scanner.core(recorder.pid, tmp_path) == set()
        recorder.go_on_to("busy")
        # A core dump in the middle of AES holds what is in the registers.
        assert scanner.core(recorder.pid, tmp_path, registers=False) == set()
        recorder.go_on_to("closed")
        scanner = Scanner(keys_of(tmp_path, wrapping))
        assert {(hit.key, hit.protected) for hit in scanner.process(recorder.pid)} <= {
            (key, True) for key in wrapping.own
        }
        assert scanner.core(recorder.pid, tmp_path) == set()
        recorder.go_on_to("dropped")
        assert scanner.process(recorder.pid) == set()
        assert scanner.core(recorder.pid, tmp_path) == set()


def test_every_form_is_found(tmp_path: Path) -> None:
    """What holds a key as text, as base64, or in a context of another libcrypto is found, and found in a core dump."""
    key = os.urandom(32)
    with child(CONTROL) as control:
        control.write(key + key)
        control.wait_for("held")
        scanner = Scanner({"key": key})
        found = scanner.process(control.pid)
        dumped = scanner.core(control.pid, tmp_path)
        assert {hit.form for hit in found if not hit.protected} == {
            "raw",
            "base64",
            "hex",
            "schedule",
        }
        assert Hit("key", "raw", protected=True) in found
        assert {hit.form for hit in dumped} == {"raw", "base64", "hex", "schedule"}


def test_round_keys() -> None:
    """The expansion of a key of 32 bytes, as FIPS 197, appendix A.3 has it."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    expanded = round_keys(key)
    assert expanded[0] + expanded[1] == key
    assert expanded[2].hex() == "9ba354118e6925afa51a8b5f2067fcde"
    assert expanded[14].hex() == "fe4890d1e6188d0b046df344706c631e"
