"""Signers, the tree, and statements: what they cover, what a forger tries, how a third party checks them."""

import base64
import copy
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

import tapeseal
from servers.kms import REGION, make_clients_once
from support import TICK, child, ticks
from tapeseal import audit
from tapeseal.cli import app
from tapeseal.errors import (
    DamagedError,
    KeyUnavailableError,
    NotATapeError,
    SignatureError,
    TapeChangedError,
    UnsealedError,
    WrappingKeyError,
)
from tapeseal.keyrings.local import LocalKeyring, create_key_file
from tapeseal.signature import check_signature, fingerprint
from tapeseal.signing import TransitSigner, open_statement, sign_statement, signer, verify_statement
from tapeseal.signing import statement as statements
from tapeseal.signing.tree import LEAF_SIZE, Part, hash_trees, root
from tapeseal.vault import Token, VaultSession, transit
from tapeseal.vault.transit import Transit

DOCS = Path(__file__).parents[1] / "docs" / "signing.md"
MESSAGES = (b"", b"m", b"m" * 4097, b"m" * (1 << 20))


class LocalSigner:
    """A signer whose key is here: for what does not depend on who signs."""

    key = "local:of-the-tests"
    algorithm = "ecdsa-p256-sha256"

    def __init__(self):
        self._key = ec.generate_private_key(ec.SECP256R1())

    def sign(self, message):
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def public_key(self):
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


LOCAL = LocalSigner()


def make_tape(path, keyring, records=1000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tapeseal.open(path, "x", keyring=keyring, dtype=TICK, **options) as tape:
        tape.append(ticks(0, records))
    return path


@pytest.fixture
def day(tmp_path, keyring):
    """A directory with three tapes: one with several leaves, a small one and an empty one."""
    folder = tmp_path / "day"
    make_tape(folder / "XNAS" / "large.tape", keyring, 200_000)
    make_tape(folder / "small.tape", keyring, 10)
    make_tape(folder / "empty.tape", keyring, 0)
    return folder


def states(found):
    """Return the states of findings by the name signed, or the file's name where there is none."""
    return {each.name or Path(each.path).name: each.state for each in found.findings}


def check(statement, *paths, **options):
    return verify_statement(statement, paths, LOCAL.public_key(), **options)


# Signers


@pytest.fixture
def vault(bao, monkeypatch):
    """The server with a Transit engine of its own, which the environment leads to; its mount."""
    mount = f"transit-{os.urandom(4).hex()}"
    bao.admin.sys.enable_secrets_engine("transit", path=mount)
    monkeypatch.setenv("VAULT_ADDR", bao.address)
    monkeypatch.setenv("VAULT_TOKEN", bao.token)
    return mount


@pytest.fixture
def aws(kms, monkeypatch):
    """KMS as a user who may do everything."""
    make_clients_once(monkeypatch)
    for name, value in kms.admin_user.items():
        monkeypatch.setenv(name, value)
    return kms


def openssl_accepts(folder, algorithm, public_key, message, signature):
    """Have openssl check a signature as docs/signing.md says."""
    for name, content in (("day.pem", public_key), ("message", message), ("signature", signature)):
        (folder / name).write_bytes(content)
    command = recipe_line(algorithm)
    done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, check=False)
    return done.returncode == 0


def recipe_line(algorithm):
    text = DOCS.read_text(encoding="utf-8")
    if algorithm == "ecdsa-p256-sha256":
        return re.search(r"^openssl dgst -sha256 -verify .*$", text, re.MULTILINE)[0]
    return re.search(rf"^\| `{algorithm}` \| `(openssl .*)` \|$", text, re.MULTILINE)[1]


def check_signer(made, algorithm, folder):
    assert algorithm == made.algorithm
    for message in MESSAGES:
        signature = made.sign(message)
        check_signature(made.public_key(), algorithm, message, signature)
        if message:  # of none, openssl 3.0 checks no Ed25519 signature
            assert openssl_accepts(folder, algorithm, made.public_key(), message, signature)
        with pytest.raises(SignatureError):
            check_signature(made.public_key(), algorithm, message + b"x", signature)
        assert not openssl_accepts(folder, algorithm, made.public_key(), message + b"x", signature)


@pytest.mark.server
@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("ecdsa-p256", "ecdsa-p256-sha256"),
        ("ecdsa-p384", "ecdsa-p384-sha384"),
        ("rsa-2048", "rsa-pss-sha256"),
        ("ed25519", "ed25519"),
    ],
)
def test_transit_signs(bao, vault, tmp_path, kind, algorithm):
    """What Transit signs, this package and openssl accept, for messages of any length."""
    bao.admin.adapter.post(f"/v1/{vault}/keys/day", json={"type": kind})
    made = signer(f"vault-transit:{vault}/day")
    assert f"vault-transit:{vault}/day" == made.key
    check_signer(made, algorithm, tmp_path)


@pytest.mark.server
@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("ECC_NIST_P256", "ecdsa-p256-sha256"),
        ("ECC_NIST_P384", "ecdsa-p384-sha384"),
        ("RSA_2048", "rsa-pss-sha256"),
    ],
)
def test_kms_signs(aws, tmp_path, kind, algorithm):
    """What KMS signs, this package and openssl accept; only digests are sent."""
    key = aws.make_key(KeySpec=kind, KeyUsage="SIGN_VERIFY")
    aws.take_calls()
    made = signer(f"aws-kms:{key}?endpoint_url={aws.address}&read_timeout=30")
    assert f"aws-kms:{key}" == made.key
    check_signer(made, algorithm, tmp_path)
    calls = [call for call in aws.take_calls() if call["action"] == "Sign"]
    assert {"DIGEST"} == {call["MessageType"] for call in calls}
    assert {32 if algorithm.endswith("256") else 48} == {
        len(base64.b64decode(call["Message"])) for call in calls
    }


@pytest.mark.server
def test_an_alias_means_one_key(aws):
    """A signer goes on with the key that its alias meant, and names it by its ARN."""
    first, second = (
        aws.make_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY") for _ in range(2)
    )
    alias = f"alias/day-{os.urandom(4).hex()}"
    aws.admin.create_alias(AliasName=alias, TargetKeyId=first)
    uri = f"aws-kms:{alias}?region={REGION}&endpoint_url={aws.address}&read_timeout=30"
    made = signer(uri)
    aws.admin.update_alias(AliasName=alias, TargetKeyId=second)
    check_signature(made.public_key(), made.algorithm, b"m", made.sign(b"m"))
    assert (f"aws-kms:{first}", f"aws-kms:{second}") == (made.key, signer(uri).key)


@pytest.mark.server
def test_versions_of_a_transit_key(bao, vault, monkeypatch):
    """A signer keeps to its version through a rotation, and goes on with the latest where it is retired."""
    with VaultSession(bao.address, login=Token(bao.token)) as session:
        engine = Transit(session, vault)
        engine.create_key("day", type="ecdsa-p256")
        made = TransitSigner(engine, "day")
        first = made.public_key()
        engine.rotate_key("day")
        check_signature(first, made.algorithm, b"m", made.sign(b"m"))
        assert first == made.public_key()
        engine.configure_key("day", min_encryption_version=2, min_decryption_version=2)
        signature = made.sign(b"m")
        assert first != made.public_key() == engine.read_key("day").public_keys[2]
        check_signature(made.public_key(), made.algorithm, b"m", signature)
        engine.configure_key("day", deletion_allowed=True)
        engine.delete_key("day")
        monkeypatch.setattr(transit, "BEHIND_SECONDS", (0.01,))
        with pytest.raises(WrappingKeyError, match="not found"):
            made.sign(b"m")


@pytest.mark.server
@pytest.mark.parametrize(
    "options",
    [{"type": "aes256-gcm96"}, {"type": "ed25519", "derived": True}, {"type": "ecdsa-p521"}],
)
def test_transit_keys_that_do_not_sign_here(bao, vault, options):
    """A key that encrypts, is derived or is of another curve is refused at once."""
    bao.admin.adapter.post(f"/v1/{vault}/keys/day", json=options)
    with pytest.raises(WrappingKeyError, match=f"{vault}/day.*this one is {options['type']}"):
        signer(f"vault-transit:{vault}/day")


@pytest.mark.server
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "UnsupportedOperationException"),
        ({"KeySpec": "ECC_NIST_P521", "KeyUsage": "SIGN_VERIFY"}, "this one is ECC_NIST_P521"),
        ({"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}, "for ENCRYPT_DECRYPT"),
    ],
)
def test_kms_keys_that_do_not_sign_here(aws, options, says):
    """A key that encrypts, or of another curve, is refused at once."""
    key = aws.make_key(**options)
    with pytest.raises(WrappingKeyError, match=says):
        signer(f"aws-kms:{key}?endpoint_url={aws.address}&read_timeout=30")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "starts with one of: aws-kms:, vault-transit:"),
        ("local:my.key", "there are no local: signers"),
        ("aws-kms:alias/x?accounts=123456789012", "no parameter 'accounts'"),
        ("aws-kms:alias/x?region=a&region=b", "each name once"),
        ("aws-kms:http://elsewhere?region=us-east-1", "an id, alias/NAME"),
        ("vault-transit:day", "named MOUNT/NAME"),
        ("vault-transit:transit/../day", "named MOUNT/NAME"),
        ("vault-transit:transit/day?region=x", "no parameter 'region'"),
        ("vault-transit:transit/%zz", "percent sign in a signer's URI"),
    ],
)
def test_uris_that_are_none(uri, says):
    """What is no signer's URI says so, and nobody is called."""
    with pytest.raises(ValueError, match=says):
        signer(uri)


@pytest.mark.server
def test_an_answer_that_was_swapped(bao, vault, aws, monkeypatch):
    """A service's signature of another message is an error, and is not handed out."""
    bao.admin.adapter.post(f"/v1/{vault}/keys/day", json={"type": "ecdsa-p256"})
    of_vault = signer(f"vault-transit:{vault}/day")
    key = aws.make_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")
    of_kms = signer(f"aws-kms:{key}?endpoint_url={aws.address}&read_timeout=30")
    kms_sign, transit_sign = type(of_kms._kms).sign, Transit.sign
    monkeypatch.setattr(
        type(of_kms._kms),
        "sign",
        lambda self, key, message, *rest: kms_sign(self, key, b"x", *rest),
    )
    monkeypatch.setattr(
        Transit,
        "sign",
        lambda self, name, message, *rest, **more: transit_sign(self, name, b"x", *rest, **more),
    )
    for made in (of_vault, of_kms):
        with pytest.raises(KeyUnavailableError, match="is no signature of this message by its key"):
            made.sign(b"m")


# The tree

# The vectors of RFC 6962's reference implementation (certificate-transparency, merkletree): leaves and roots.
LEAVES = (
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
)
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


@pytest.mark.parametrize("count", range(9))
def test_published_roots(count):
    """The tree is the one of RFC 6962."""
    leaves = [hashlib.sha256(b"\0" + bytes.fromhex(leaf)).digest() for leaf in LEAVES[:count]]
    expected = ROOTS[count - 1] if count else hashlib.sha256().hexdigest()
    assert expected == root(leaves).hex()


def definition(data):
    """The definition of RFC 6962, section 2.1, over leaves of 1 MiB."""
    leaves = [data[at : at + LEAF_SIZE] for at in range(0, len(data), LEAF_SIZE)]

    def mth(of):
        if not of:
            return hashlib.sha256().digest()
        if len(of) == 1:
            return hashlib.sha256(b"\0" + of[0]).digest()
        half = 1
        while 2 * half < len(of):
            half *= 2
        return hashlib.sha256(b"\1" + mth(of[:half]) + mth(of[half:])).digest()

    return mth(leaves)


@pytest.fixture(scope="module")
def random_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tree") / "file"
    path.write_bytes(np.random.default_rng(6962).bytes(35 * LEAF_SIZE + 5))
    return path


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_parts_of_a_file(random_file, threads):
    """Each part's root is that of the definition, whatever its size and the number of threads, in the order given."""
    data = random_file.read_bytes()
    sizes = [
        0,
        1,
        LEAF_SIZE - 1,
        LEAF_SIZE,
        LEAF_SIZE + 1,
        3 * LEAF_SIZE,
        17 * LEAF_SIZE + 3,
        35 * LEAF_SIZE,
    ]
    done = []
    with random_file.open("rb") as file:
        items = [
            (size, [Part(file.fileno(), 5, size), Part(file.fileno(), 0, 1)]) for size in sizes
        ]
        found = list(hash_trees([(-1, []), *items], threads, done.append))
    one = hashlib.sha256(b"\0" + data[:1]).digest()
    assert [(-1, []), *((size, [definition(data[5 : 5 + size]), one]) for size in sizes)] == found
    assert sorted(done) == done


def test_leaves_are_no_nodes(tmp_path):
    """A leaf that holds the hashes of two others is not taken for the node above them."""
    two = definition(bytes(2 * LEAF_SIZE))
    leaf = hashlib.sha256(b"\0" + bytes(LEAF_SIZE)).digest()
    path = tmp_path / "file"
    path.write_bytes(leaf + leaf)
    with path.open("rb") as file:
        [(_, [found])] = hash_trees([(None, [Part(file.fileno(), 0, 64)])], 1)
    assert two != found
    assert two == hashlib.sha256(b"\1" + path.read_bytes()).digest()


def test_a_file_that_ends_early(tmp_path):
    """A part that is not all there is an error of that item alone."""
    path = tmp_path / "file"
    path.write_bytes(bytes(LEAF_SIZE))
    with path.open("rb") as file:
        items = [(size, [Part(file.fileno(), 0, size)]) for size in (LEAF_SIZE + 1, LEAF_SIZE)]
        [(_, error), (_, roots)] = hash_trees(items, 2)
    assert isinstance(error, TapeChangedError)
    assert [definition(bytes(LEAF_SIZE))] == roots


# Statements


def test_a_statement(day):
    """It says names, identities, sizes and counts, when and by whom, and holds."""
    statement = sign_statement([day], LOCAL)
    made = open_statement(statement, LOCAL.public_key())
    assert ["XNAS/large.tape", "empty.tape", "small.tape"] == [tape.name for tape in made.tapes]
    assert [200_000, 0, 10] == [tape.items for tape in made.tapes]
    for tape in made.tapes:
        file = day / tape.name
        assert tapeseal.inspect(file).tape_id == tape.tape_id
        assert tape.index is not None
        size = 2 * tape.copy_size + tape.data.size + tape.index.size
        assert file.stat().st_size == size
    assert (LOCAL.key, LOCAL.algorithm) == (made.key, made.algorithm)
    assert fingerprint(LOCAL.public_key()) == made.public_key
    found = check(statement, day)
    assert found.ok
    assert {"same"} == {each.state for each in found.findings}
    assert made == found.statement


def test_one_path_is_no_list_of_paths(day):
    """A path in the place of a list is refused, by whoever signs and by whoever verifies."""
    statement = sign_statement([day], LOCAL)
    with pytest.raises(TypeError, match="a list of names"):
        sign_statement(str(day), LOCAL)
    with pytest.raises(TypeError, match="a list of names"):
        verify_statement(statement, str(day), LOCAL.public_key())


def test_the_text_is_canonical(day):
    """Whoever builds the same statement builds the same bytes, which stand on the first of two lines."""
    text, signature, rest = sign_statement([day], LOCAL).split(b"\n")
    document = json.loads(text)
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert base64.b64encode(base64.b64decode(signature)) == signature
    assert rest == b""


def test_a_signer_that_goes_on_to_another_key(day):
    """Where the key of the signature is not the one in the text, the statement is made anew."""

    class Moving(LocalSigner):
        signed = 0

        def sign(self, message):
            if not self.signed:
                self._key = ec.generate_private_key(ec.SECP256R1())
            self.signed += 1
            return super().sign(message)

    made = Moving()
    statement = sign_statement([day], made)
    assert 2 == made.signed
    assert fingerprint(made.public_key()) == open_statement(statement, made.public_key()).public_key


def test_the_audit_log(day):
    """Signing and checking are noted, with the digest of the statement, and what was found."""
    entries = []

    class Log:
        def check(self):
            pass

        def append(self, entry):
            entries.append((entry.action, entry.subject, entry.result, entry.details))

    audit.start(Log())
    try:
        statement = sign_statement([day], LOCAL)
        os.unlink(day / "small.tape")
        check(statement, day)
        with pytest.raises(SignatureError):
            check(statement[:-2], day)
    finally:
        audit.stop()
    digest = hashlib.sha256(statement).hexdigest()
    checker = fingerprint(LOCAL.public_key())
    assert [
        ("statement.sign", LOCAL.key, "done", {"tapes": 3, "sha256": digest}),
        ("statement.verify", checker, "mismatch", {"sha256": digest, "wrong": 1}),
    ] == entries[:2]
    assert ("statement.verify", checker, "SignatureError") == entries[2][:3]


def test_names_are_relative(day, monkeypatch):
    """A tape goes by the path below what was named: a directory, what stands before a pattern, or its own directory."""

    def names(*paths):
        made = open_statement(sign_statement(paths, LOCAL), LOCAL.public_key())
        return [tape.name for tape in made.tapes]

    assert ["XNAS/large.tape", "empty.tape", "small.tape"] == names(f"{day}/**/*.tape")
    assert ["XNAS/large.tape"] == names(f"{day}/X*/*.tape")
    assert ["large.tape", "small.tape"] == names(day / "small.tape", day / "XNAS")
    assert ["large.tape"] == names(day / "XNAS" / "large.tape", day / "XNAS")
    monkeypatch.chdir(day)
    assert ["small.tape"] == names("small.tape")
    assert ["XNAS/large.tape", "empty.tape", "small.tape"] == names(".")


def test_a_rewrap_leaves_it_valid(day, other_keyring, keyring):
    """New recipients, in place or in a copy of the same layout, are not what was signed."""
    statement = sign_statement([day], LOCAL)
    large = day / "XNAS" / "large.tape"
    tapeseal.rewrap(large, keyring=keyring, to=other_keyring)
    tapeseal.rewrap(day / "small.tape", keyring=keyring, to=other_keyring, copy=True)
    for path, records in ((large, 200_000), (day / "small.tape", 10)):
        assert tapeseal.verify(path, keyring=other_keyring).state == "sealed"
        with tapeseal.open(path, keyring=other_keyring) as tape:
            assert (tape[:] == ticks(0, records)).all()
    found = check(statement, day)
    assert found.ok
    assert {"same"} == set(states(found).values())


def test_a_larger_header(day, keyring, tmp_path):
    """A rewrap into a copy with a larger header writes the index anew: the data still holds, and that is said."""
    statement = sign_statement([day], LOCAL)
    path = day / "small.tape"
    before = body(path)
    rings = []
    for number in range(40):
        create_key_file(tmp_path / f"{number}.key")
        rings.append(LocalKeyring(tmp_path / f"{number}.key"))
    tapeseal.rewrap(path, keyring=keyring, to=tapeseal.AnyOf(rings), copy=True)
    assert before < body(path)
    found = check(statement, day)
    assert found.ok
    [noted] = [each for each in found.findings if each.notes]
    assert "whose index is new and not covered" in noted.notes[0]
    data = bytearray(path.read_bytes())
    data[-400] ^= 1
    path.write_bytes(data)
    assert "changed" == states(check(statement, day))["small.tape"]


def flip(offset):
    def change(path):
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    return change


def cut(size):
    return lambda path: os.truncate(path, path.stat().st_size - size)


def drop_index(path):
    index = int.from_bytes(path.read_bytes()[-16:-8], "little")
    os.truncate(path, index)


def body(path):
    return 2 * int.from_bytes(path.read_bytes()[12:16], "little")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: flip(body(path))(path), "its data is not what was signed"),
        (lambda path: flip(path.stat().st_size // 2)(path), "its data is not what was signed"),
        (lambda path: flip(-350)(path), "its data is not what was signed"),
        (flip(-100), "its index is not what was signed"),
        (flip(-17), "its index is not what was signed"),
        (cut(1), "its index is gone"),
        (drop_index, "its index is gone"),
        (cut(100_000), "bytes of its data are missing"),
        (lambda path: path.write_bytes(path.read_bytes() + bytes(16)), "its index is gone"),
    ],
)
def test_changes_of_a_tape(day, change, says):
    """Every change behind the header is found, named, and of that tape alone."""
    statement = sign_statement([day], LOCAL)
    change(day / "XNAS" / "large.tape")
    found = check(statement, day)
    assert not found.ok
    assert {"XNAS/large.tape": "changed", "empty.tape": "same", "small.tape": "same"} == states(
        found
    )
    [wrong] = [each for each in found.findings if not each.ok]
    assert says in "; ".join(wrong.notes)


def test_each_bit_of_a_small_tape(day):
    """Of every third byte behind the header one bit is flipped, and each time it is found."""
    statement = sign_statement([day], LOCAL)
    path = day / "small.tape"
    data = bytearray(path.read_bytes())
    for at in range(body(path), len(data), 3):
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        assert not check(statement, path, partial=True, threads=1).ok
        data[at] ^= 1 << at % 8
    path.write_bytes(data)
    assert check(statement, path, partial=True).ok


def test_another_header_text(day, keyring, tmp_path):
    """The content text is covered: another encryption context over the same identity is found."""
    statement = sign_statement([day], LOCAL)
    path = day / "small.tape"
    data = path.read_bytes()
    with path.open("rb") as file:
        found = tapeseal.header.read_file(file.fileno())
    content = found.copy.content.replace(b"{}", b'{"a":"b"}')
    signed = tapeseal.layout.build_header(
        found.tape_id, 1, content, found.copy.recipients, 2, found.copy.copy_size
    )
    raw = tapeseal.layout.seal_header(signed, found.copy.mac)
    path.write_bytes(raw + raw + data[found.body :])
    [wrong] = [each for each in check(statement, day).findings if not each.ok]
    assert ("changed", ("its header says other things",)) == (wrong.state, wrong.notes)


def test_sets(day, keyring, tmp_path):
    """What is missing, new, renamed, swapped or there twice is named; with partial, what is missing is let pass."""
    statement = sign_statement([day], LOCAL)
    small, large, empty = day / "small.tape", day / "XNAS" / "large.tape", day / "empty.tape"
    os.rename(small, tmp_path / "x")
    os.rename(empty, small)
    os.rename(tmp_path / "x", empty)
    found = check(statement, day)
    assert {"XNAS/large.tape": "same", "empty.tape": "renamed", "small.tape": "renamed"} == states(
        found
    )
    assert ("it was signed as empty.tape",) == found.findings[1].notes
    os.unlink(large)
    make_tape(day / "new.tape", keyring)
    (day / "copy.tape").write_bytes(small.read_bytes())
    found = check(statement, day)
    assert ["missing", "renamed", "renamed", "extra", "extra"] == [
        each.state for each in found.findings
    ]
    assert [day / "new.tape", small] == [Path(each.path) for each in found.findings[3:]]
    assert ("it is another copy of empty.tape",) == found.findings[4].notes
    assert not check(statement, day, partial=True).ok
    os.unlink(day / "new.tape")
    os.unlink(day / "copy.tape")
    os.unlink(small)
    os.rename(empty, small)
    found = check(statement, day, partial=True)
    assert {"small.tape": "same"} == states(found)
    assert found.ok


def test_what_is_no_tape(day, tmp_path):
    """A file that is none, or that cannot be read, is named, and the others are checked."""
    statement = sign_statement([day], LOCAL)
    (tmp_path / "note").write_text("hello")
    found = check(statement, day, tmp_path / "note", tmp_path / "gone")
    assert ["unreadable"] * 2 == [each.state for each in found.findings[3:]]
    assert {"same"} == {each.state for each in found.findings[:3]}
    flip(13)(day / "small.tape")
    flip(body(day / "XNAS" / "large.tape") // 2 + 13)(day / "small.tape")
    found = check(statement, day)
    assert ["same", "same", "missing", "unreadable"] == [each.state for each in found.findings]
    assert "no header copy is readable" in found.findings[3].notes[0]


def test_open_tapes(tmp_path, keyring):
    """An open tape is signed when that is asked for, may grow and be sealed, and may not lose what it had."""
    path = tmp_path / "live.tape"
    tape = tapeseal.open(path, "x", keyring=keyring, dtype=TICK, frame_size=4096)
    tape.append(ticks(0, 1000))
    tape.flush()
    with pytest.raises(UnsealedError, match=f"{path}: the tape was never closed"):
        sign_statement([path], LOCAL)
    statement = sign_statement([path], LOCAL, unsealed=True)
    [signed] = open_statement(statement, LOCAL.public_key()).tapes
    assert (1000, None) == (signed.items, signed.index)
    assert {"live.tape": "same"} == states(check(statement, path))
    tape.append(ticks(1000, 3000))
    tape.flush()
    found = check(statement, path)
    assert ("grown", True) == (found.findings[0].state, found.ok)
    assert "it has grown by" in found.findings[0].notes[0]
    tape.close()
    assert {"live.tape": "grown"} == states(check(statement, path))
    sealed = sign_statement([path], LOCAL)
    os.truncate(path, 2 * signed.copy_size + signed.data.size - 1)
    found = check(statement, path)
    assert {"live.tape": "changed"} == states(found)
    assert "1 bytes of its data are missing" in found.findings[0].notes[0]
    assert not check(sealed, path).ok


def test_a_torn_end_is_not_signed(tmp_path, keyring):
    """Of an open tape that ends in the middle of a frame what is whole is signed."""
    path = make_tape(tmp_path / "torn.tape", keyring, 1000, frame_size=4096)
    drop_index(path)
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\x02" + bytes(16) + b"\x10" + bytes(33))
    statement = sign_statement([path], LOCAL, unsealed=True)
    [signed] = open_statement(statement, LOCAL.public_key()).tapes
    assert whole == 2 * signed.copy_size + signed.data.size
    os.truncate(path, whole)
    assert {"torn.tape": "same"} == states(check(statement, path))


def test_a_sealed_tape_that_goes_on(day, keyring):
    """What was signed sealed may not grow."""
    statement = sign_statement([day], LOCAL)
    with tapeseal.open(day / "small.tape", "a", keyring=keyring) as tape:
        tape.append(ticks(10, 20))
    found = check(statement, day)
    assert "changed" == states(found)["small.tape"]
    [wrong] = [each for each in found.findings if not each.ok]
    assert "more than when it was sealed" in wrong.notes[0]


def test_what_is_not_signed(day, keyring, tmp_path):
    """A blob, what is no tape, a missing file, two of one name, copies of one tape and no tape at all are refused."""
    with pytest.raises(ValueError, match="no tape to sign"):
        sign_statement([], LOCAL)
    blob = tmp_path / "blob"
    blob.write_bytes(tapeseal.encrypt(b"hello", keyring=keyring))
    note = tmp_path / "note"
    note.write_text("hello")
    with pytest.raises(ValueError, match=f"{blob}: a blob"):
        sign_statement([day, blob], LOCAL)
    with pytest.raises(NotATapeError, match=f"{note}: not a tape"):
        sign_statement([day, note], LOCAL)
    with pytest.raises(FileNotFoundError, match="gone"):
        sign_statement([day, tmp_path / "gone"], LOCAL)
    make_tape(tmp_path / "other" / "small.tape", keyring)
    with pytest.raises(ValueError, match=r"two tapes go by the name small\.tape"):
        sign_statement([day, tmp_path / "other"], LOCAL)
    (tmp_path / "copy.tape").write_bytes((day / "small.tape").read_bytes())
    with pytest.raises(ValueError, match="are copies of one tape"):
        sign_statement([day, tmp_path / "copy.tape"], LOCAL)
    odd = make_tape(tmp_path / os.fsdecode(b"odd\xff.tape"), keyring)
    with pytest.raises(ValueError, match="is no UTF-8"):
        sign_statement([odd], LOCAL)


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (112 + 4, (11).to_bytes(4, "little"), "hold other sizes than their counts say"),
        (112 + 16, (1 << 31).to_bytes(4, "little"), "its data ends before the index"),
        (112 + 16, (32).to_bytes(4, "little"), "its data ends before|other sizes"),
    ],
)
def test_sizes_that_lie(tmp_path, keyring, at, value, says):
    """A frame whose header states another count or size is not signed."""
    path = make_tape(tmp_path / "lies.tape", keyring, 10)
    data = bytearray(path.read_bytes())
    at += body(path)
    data[at : at + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=says):
        sign_statement([path], LOCAL)


@pytest.mark.parametrize("offset", [0, 1, 1 << 62, (1 << 64) - 1])
def test_a_trailer_that_lies(tmp_path, keyring, offset):
    """A trailer that points out of the data is damage, and no reason to read there."""
    path = make_tape(tmp_path / "lies.tape", keyring, 10)
    statement = sign_statement([path], LOCAL)
    data = path.read_bytes()
    path.write_bytes(data[:-16] + offset.to_bytes(8, "little") + data[-8:])
    with pytest.raises(DamagedError, match="the trailer says that the index is where it cannot be"):
        sign_statement([path], LOCAL)
    assert not check(statement, path).ok


@pytest.fixture
def large_tape(random_file, tmp_path, keyring):
    """A tape of 35 MiB."""
    path = tmp_path / "bytes.tape"
    tapeseal.encrypt_file(random_file, path, keyring=keyring)
    return path


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something done when a file is read beyond its first MiB, once."""
    read = tapeseal.files.pread_into

    def meanwhile(do):
        pending = [do]

        def reading(fd, target, offset):
            if offset > LEAF_SIZE and pending:
                pending.pop()()
            return read(fd, target, offset)

        monkeypatch.setattr(tapeseal.files, "pread_into", reading)

    return meanwhile


def test_a_file_that_changes_meanwhile(large_tape, meanwhile):
    """A sealed tape that is written while it is hashed is not signed; in checking, that is said."""
    statement = sign_statement([large_tape], LOCAL)

    def write():
        with large_tape.open("r+b") as file:
            file.seek(33 << 20)
            file.write(b"changed")

    meanwhile(write)
    with pytest.raises(TapeChangedError, match=f"{large_tape}: the file changed while it was read"):
        sign_statement([large_tape], LOCAL, threads=1)
    meanwhile(write)
    [wrong] = check(statement, large_tape, threads=1).findings
    assert ("changed", "it changed while it was read") == (wrong.state, wrong.notes[-1])


def test_a_file_that_is_cut_meanwhile(large_tape, meanwhile):
    """A tape that becomes shorter while it is hashed is an error, and no short read is taken for its end."""
    statement = sign_statement([large_tape], LOCAL)
    data = large_tape.read_bytes()

    def cut():
        os.truncate(large_tape, 20 << 20)

    meanwhile(cut)
    found = check(statement, large_tape, threads=1)
    assert ["unreadable"] == [each.state for each in found.findings]
    large_tape.write_bytes(data)
    meanwhile(cut)
    with pytest.raises(TapeChangedError, match=f"{large_tape}: the file became shorter"):
        sign_statement([large_tape], LOCAL, threads=1)


def test_many_tapes_take_few_descriptors(tmp_path, key_file):
    """No more files are open than are being hashed."""
    done = child(
        """
        import resource, sys
        from pathlib import Path
        import tapeseal
        from support import TICK, ticks
        from tapeseal.signing import sign_statement, verify_statement
        from test_signing import LOCAL
        folder = Path(sys.argv[1])
        keyring = tapeseal.LocalKeyring(sys.argv[2])
        for number in range(60):
            with tapeseal.open(folder / f"{number}.tape", "x", keyring=keyring, dtype=TICK, threads=1) as tape:
                tape.append(ticks(0, 10))
        resource.setrlimit(resource.RLIMIT_NOFILE, (36, 36))
        statement = sign_statement([folder], LOCAL, threads=2)
        assert verify_statement(statement, [folder], LOCAL.public_key(), threads=2).ok
        for path in folder.iterdir():
            data = path.read_bytes()
            path.write_bytes(data[:-400])
        found = verify_statement(statement, [folder], LOCAL.public_key(), threads=2)
        assert {"changed"} == {each.state for each in found.findings}
        """,
        tmp_path,
        key_file,
    )
    assert ("", 0) == (done.stderr, done.returncode)


# Forgers


def signed(document, key=LOCAL):
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    signature = base64.b64encode(key.sign(statements.PREFIX + text))
    return b"%b\n%b\n" % (text, signature)


def test_another_key(day):
    """A statement by another key, of the same kind or not, is refused, whatever it says of itself."""
    other = LocalSigner()
    statement = sign_statement([day], other)
    with pytest.raises(SignatureError, match="is not one of this message by this key"):
        check(statement, day)
    document = json.loads(statement.split(b"\n")[0])
    document["signer"]["public_key"] = fingerprint(LOCAL.public_key())
    with pytest.raises(SignatureError, match="is not one of this message by this key"):
        check(signed(document, other), day)
    with pytest.raises(SignatureError, match="names another key or algorithm"):
        check(signed(json.loads(statement.split(b"\n")[0])), day)


def test_another_algorithm(day):
    """The algorithm is that of the verifier's key: a statement that names another is refused."""
    document = json.loads(sign_statement([day], LOCAL).split(b"\n")[0])
    for algorithm in ("ed25519", "ecdsa-p384-sha384", "none", ""):
        document["signer"]["algorithm"] = algorithm
        with pytest.raises(SignatureError, match="names another key or algorithm"):
            check(signed(document), day)


def test_another_scheme_of_the_same_key(day):
    """Of an RSA key only PSS with SHA-256 throughout and a salt of 32 bytes counts, of P-256 only SHA-256."""
    key = rsa.generate_private_key(65537, 2048)
    sha256, sha512 = hashes.SHA256(), hashes.SHA512()

    class RsaSigner(LocalSigner):
        algorithm = "rsa-pss-sha256"

        def __init__(self):
            self._key = key

        def sign(self, message):
            return key.sign(message, padding.PSS(padding.MGF1(sha256), 32), sha256)

    pem = RsaSigner().public_key()
    statement = sign_statement([day], RsaSigner())
    assert verify_statement(statement, [day], pem).ok
    text = statement.split(b"\n")[0]
    for scheme, digest in (
        (padding.PKCS1v15(), sha256),
        (padding.PSS(padding.MGF1(sha256), 0), sha256),
        (padding.PSS(padding.MGF1(sha512), 32), sha256),
        (padding.PSS(padding.MGF1(sha512), 64), sha512),
    ):
        signature = base64.b64encode(key.sign(statements.PREFIX + text, scheme, digest))
        with pytest.raises(SignatureError, match="is not one of this message"):
            verify_statement(b"%b\n%b\n" % (text, signature), [day], pem)
    text = sign_statement([day], LOCAL).split(b"\n")[0]
    signature = LOCAL._key.sign(statements.PREFIX + text, ec.ECDSA(hashes.SHA384()))
    with pytest.raises(SignatureError, match="is not one of this message"):
        check(b"%b\n%b\n" % (text, base64.b64encode(signature)), day)


def test_names_that_look_alike(day, keyring):
    """Names are bytes: another case, or another normal form of the same letters, is another name."""
    make_tape(day / "caf\u00e9.tape", keyring)
    make_tape(day / "two\nlines.tape", keyring)
    statement = sign_statement([day], LOCAL)
    assert check(statement, day).ok
    (day / "caf\u00e9.tape").rename(day / "cafe\u0301.tape")
    (day / "small.tape").rename(day / "Small.tape")
    found = states(check(statement, day))
    assert {"caf\u00e9.tape", "small.tape"} == {
        name for name, state in found.items() if state == "renamed"
    }


def test_a_link_in_the_place_of_a_tape(day, tmp_path):
    """In a directory a symbolic link is no tape, whatever it leads to; named itself it is what it leads to."""
    statement = sign_statement([day], LOCAL)
    (day / "small.tape").rename(tmp_path / "elsewhere")
    (day / "small.tape").symlink_to(tmp_path / "elsewhere")
    assert "missing" == states(check(statement, day))["small.tape"]
    assert check(statement, day, day / "small.tape").ok


def test_a_signature_of_something_else(day):
    """A signature of the text alone, or of another statement, is none of this one."""
    statement = sign_statement([day], LOCAL)
    text, signature, _ = statement.split(b"\n")
    bare = base64.b64encode(LOCAL.sign(text))
    [other] = sign_statement([day / "small.tape"], LOCAL).split(b"\n")[1:2]
    for false in (bare, other):
        with pytest.raises(SignatureError, match="is not one of this message"):
            check(b"%b\n%b\n" % (text, false), day)
    assert check(b"%b\n%b\n" % (text, signature), day).ok


@pytest.mark.parametrize(
    "change",
    [
        lambda text, signature: b"",
        lambda text, signature: text,
        lambda text, signature: b"%b\n%b" % (text, signature),
        lambda text, signature: b"%b\n%b\n\n" % (text, signature),
        lambda text, signature: b"%b\r\n%b\n" % (text, signature),
        lambda text, signature: b" %b\n%b\n" % (text, signature),
        lambda text, signature: b"%b\n%b\n" % (text, signature[:-4]),
        lambda text, signature: b"%b\n%b\n" % (text, signature + b"===="),
        lambda text, signature: b"%b\n%b\n" % (text, b""),
        lambda text, signature: b"%b\n %b\n" % (text, signature),
        lambda text, signature: b"%b\n%b\n" % (text.replace(b":10,", b":11,"), signature),
        lambda text, signature: b"%b\n%b\n" % (text.replace(b"small", b"Small"), signature),
        lambda text, signature: b"%b\n%b\n" % (text[:-1], signature),
    ],
)
def test_a_changed_statement(day, change):
    """Whatever is changed in the file of a statement makes it none."""
    text, signature, _ = sign_statement([day], LOCAL).split(b"\n")
    with pytest.raises(SignatureError):
        check(change(text, signature), day)


def edited(path, value):
    def edit(document):
        *parents, last = path
        for each in parents:
            document = document[each]
        document[last] = value

    return edit


def repeat_tape(document):
    document["tapes"].append(copy.deepcopy(document["tapes"][0]))


def repeat_name(document):
    repeat_tape(document)
    document["tapes"][-1]["tape_id"] = "00" * 16


def repeat_id(document):
    repeat_tape(document)
    document["tapes"][-1]["name"] = "another.tape"


FORGERIES = {
    "type": edited(["type"], "something else"),
    "version": edited(["version"], 2),
    "version true": edited(["version"], True),
    "created": edited(["created"], "yesterday"),
    "more": edited(["more"], 1),
    "signer": edited(["signer"], None),
    "tapes": edited(["tapes"], {}),
    "tape": edited(["tapes", 0], []),
    "absolute": edited(["tapes", 0, "name"], "/etc/passwd"),
    "above": edited(["tapes", 0, "name"], "../../etc/passwd"),
    "above within": edited(["tapes", 0, "name"], "a/../../b"),
    "dot": edited(["tapes", 0, "name"], "./a"),
    "empty part": edited(["tapes", 0, "name"], "a//b"),
    "empty": edited(["tapes", 0, "name"], ""),
    "zero": edited(["tapes", 0, "name"], "a\0b"),
    "long": edited(["tapes", 0, "name"], "a" * 4097),
    "surrogate": edited(["tapes", 0, "name"], "\ud800"),
    "no name": edited(["tapes", 0, "name"], None),
    "id": edited(["tapes", 0, "tape_id"], "00"),
    "id in capitals": edited(["tapes", 0, "tape_id"], "AB" * 16),
    "kind": edited(["tapes", 0, "kind"], "rows"),
    "negative": edited(["tapes", 0, "data", "size"], -1),
    "huge": edited(["tapes", 0, "data", "size"], 1 << 63),
    "fraction": edited(["tapes", 0, "items"], 1.5),
    "true": edited(["tapes", 0, "items"], True),
    "root": edited(["tapes", 0, "data", "root"], "00" * 31),
    "index": edited(["tapes", 0, "index"], []),
    "same tape": repeat_tape,
    "same name": repeat_name,
    "same id": repeat_id,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_signer_who_lies(day, name):
    """However well it is signed, what is no statement of this version is refused, and no file is opened for it."""
    document = json.loads(sign_statement([day], LOCAL).split(b"\n")[0])
    FORGERIES[name](document)
    with pytest.raises(SignatureError, match="is signed, and is none that this version knows"):
        check(signed(document), day)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 1_000_000,
        b'{"type":NaN}',
        b'{"a":1,"a":1}',
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_signed_text_that_is_no_json_of_ours(day, text):
    """A parser that is led on is no crash."""
    with pytest.raises(SignatureError):
        check(signed(text), day)


def test_a_huge_statement(day, tmp_path):
    """A statement over the limit is refused before it is parsed, by the command before it is read."""
    with pytest.raises(SignatureError, match="bytes at most"):
        check(bytes(statements.MAX_STATEMENT_SIZE + 1), day)
    path, pem = tmp_path / "huge.statement", tmp_path / "day.pem"
    path.touch()
    os.truncate(path, 1 << 40)
    pem.write_bytes(LOCAL.public_key())
    arguments = ["verify-signature", path, day, "--public-key", pem]
    assert 2 == app.run([str(each) for each in arguments])


@pytest.mark.parametrize("public_key", [b"", b"hello", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_public_key_that_is_none(day, public_key):
    """What is no public key says so."""
    with pytest.raises(ValueError, match="neither a key nor a certificate in PEM"):
        verify_statement(sign_statement([day], LOCAL), [day], public_key)


# A third party


def recipes():
    """Return the shell and the Python program of docs/signing.md."""
    text = DOCS.read_text(encoding="utf-8").partition("## Checking without Tapeseal")[2]
    return [re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("sh", "python")]


def test_checking_without_this_package(day, tmp_path):
    """The recipes of docs/signing.md accept a statement and its tapes, and refuse each where it was changed."""
    if not DOCS.exists():
        pytest.skip("docs/signing.md is not beside these tests")
    shell, program = recipes()
    statement = day / "day.statement"
    statement.write_bytes(sign_statement([day], LOCAL))
    (day / "day.pem").write_bytes(LOCAL.public_key())

    def run(*command):
        done = subprocess.run(
            command,
            cwd=day,
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"]},
        )
        return done.returncode, done.stdout

    def tapes():
        return run(sys.executable, "-I", "-c", program)

    assert (0, "Verified OK\n") == run("sh", "-c", shell)
    assert (0, "XNAS/large.tape same\nempty.tape same\nsmall.tape same\n") == tapes()
    flip(-100)(day / "small.tape")
    assert 1 == tapes()[0]
    flip(-100)(day / "small.tape")
    flip(body(day / "XNAS" / "large.tape") + 1_500_000)(day / "XNAS" / "large.tape")
    assert (1, "XNAS/large.tape NOT THE SAME\n") == tapes()
    statement.write_bytes(statement.read_bytes().replace(b"small", b"Small"))
    assert 0 != run("sh", "-c", shell)[0]


# The command line


@pytest.fixture
def run(capfdbinary):
    def run(*arguments):
        capfdbinary.readouterr()
        code = app.run([str(argument) for argument in arguments])
        printed = capfdbinary.readouterr()
        return code, printed.out, printed.err.decode()

    return run


@pytest.mark.server
def test_the_commands(bao, vault, day, tmp_path, run):
    """A day is signed, its statement checked, and each change has exit code 1 and a line."""
    bao.admin.adapter.post(f"/v1/{vault}/keys/day", json={"type": "ecdsa-p256"})
    statement, pem = tmp_path / "day.statement", tmp_path / "day.pem"
    key = f"vault-transit:{vault}/day"
    code, out, err = run("sign", day, "-k", key, "-o", statement)
    assert (0, "") == (code, err)
    assert f"{statement}: 3 tapes of 3.2 MB, signed 20".encode() in out
    code, out, _ = run("vault", "transit", "public-key", f"{vault}/day", "-o", pem)
    assert (0, b"") == (code, out)
    code, out, err = run("verify-signature", statement, day, "--public-key", pem)
    assert (0, "") == (code, err)
    assert b"  3 tapes checked: all as signed\n" in out
    code, out, err = run("sign", day, "-k", key, "-o", statement)
    assert (2, b"") == (code, out)
    assert "the file exists" in err
    code, _, err = run("verify-signature", statement, day, "--public-key", statement)
    assert (2, True) == (code, f"error: {statement}: the public key is neither" in err)
    code, _, err = run("verify-signature", pem, day, "--public-key", pem)
    assert (1, True) == (code, f"error: {pem}: this is no statement" in err)
    code, out, err = run("sign", day, "-k", key, "-o", "-", "--json")
    assert 0 == code
    assert open_statement(out, pem.read_bytes()).tapes[0].name == "XNAS/large.tape"
    assert 200_010 == json.loads(err)["records"]

    os.unlink(day / "empty.tape")
    flip(-100)(day / "small.tape")
    code, out, err = run("verify-signature", statement, day, "--public-key", pem)
    assert 1 == code
    assert f"{day}/small.tape: changed: its index is not what was signed\n".encode() in out
    assert b"empty.tape: missing: it is not there\n" in out
    assert f"tapeseal: error: {statement}: 2 problems\n" == err
    code, out, _ = run("verify-signature", statement, day, "--public-key", pem, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (1, 4) == (code, len(lines))
    assert [True, False, False] == [line["ok"] for line in lines[:3]]
    assert (False, 2, 3) == (lines[3]["ok"], lines[3]["wrong"], lines[3]["tapes"])
    code, out, err = run(
        "verify-signature", statement, day / "XNAS", "--public-key", pem, "--partial"
    )
    assert (0, "") == (code, err)
    pem.write_bytes(LOCAL.public_key())
    code, out, err = run("verify-signature", statement, day, "--public-key", pem)
    assert (1, b"") == (code, out)
    assert "is not one of this message by this key" in err


def test_a_name_that_acts_on_a_terminal(tmp_path, keyring, run):
    """What a name in a statement would do to a terminal is shown and not done."""
    path = make_tape(tmp_path / "a\x1b[31m.tape", keyring)
    statement, pem = tmp_path / "day.statement", tmp_path / "day.pem"
    statement.write_bytes(sign_statement([path], LOCAL))
    pem.write_bytes(LOCAL.public_key())
    os.rename(path, tmp_path / "b.tape")
    code, out, _ = run("verify-signature", statement, tmp_path / "b.tape", "--public-key", pem)
    assert 1 == code
    assert b"\x1b" not in out
    assert b"it was signed as a\\x1b[31m.tape" in out


@pytest.mark.server
def test_signers_are_not_pickled(bao, vault):
    """A signer holds a session, and is neither pickled nor copied."""
    bao.admin.adapter.post(f"/v1/{vault}/keys/day", json={"type": "ed25519"})
    made = signer(f"vault-transit:{vault}/day")
    for way in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            way(made)
