"""Kms against KMS over HTTP: what it does, what the policies of docs/aws.md allow, what it does not believe."""

import base64
import contextlib
import copy
import datetime
import io
import json
import logging
import os
import pickle
import re
import stat
import sys
from pathlib import Path

import pytest

import tapeseal
from memory_scan import Hit, Scanner
from memory_scan import child as memory_child
from servers.answers import Answers
from servers.kms import ACCOUNT, REGION, make_clients_once
from support import leaks
from tapeseal import _core
from tapeseal._core import SecretBuffer
from tapeseal.cli import app
from tapeseal.errors import (
    AccessDeniedError,
    CiphertextError,
    ServiceUnavailableError,
    SignatureError,
    WrappingKeyError,
)
from tapeseal.kms import KeyRotation, Kms
from tapeseal.signature import check_signature
from tapeseal.signing import KmsSigner

pytestmark = pytest.mark.server

DOCS = Path(__file__).parents[1] / "docs" / "aws.md"
PASSWORD = b"correct horse battery staple: a canary"
CONTEXT = {"app": "recorder"}
ECDSA = {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}


def of(kms, user, **options):
    """Return a Kms that is a user and tries once."""
    client = kms.client(user=user, config=_config(**options))
    return Kms(client=client)


def _config(**options):
    from botocore.config import Config

    settings = {
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "read_timeout": 30,
        **options,
    }
    return Config(**settings)


@pytest.fixture(scope="module")
def admin(kms):
    """A Kms of a user who may do everything."""
    return of(kms, kms.admin_user)


@pytest.fixture(autouse=True)
def _well(kms):
    """Have each test find and leave a server without faults, and without calls to count."""
    kms.take_calls()
    yield
    kms.faults()


@pytest.fixture(scope="module")
def key(kms):
    return kms.make_key()


@pytest.fixture(scope="module")
def signing_key(kms):
    return kms.make_key(**ECDSA)


def content(secret):
    with secret, memoryview(secret) as view:
        return bytes(view)


# Encryption


@pytest.mark.parametrize("size", [1, 31, 4096])
def test_what_is_encrypted_opens(admin, key, size):
    """Up to 4096 bytes, given as bytes or in key memory, come back in key memory."""
    plaintext = os.urandom(size)
    for given in (plaintext, bytearray(plaintext), SecretBuffer.take(bytearray(plaintext))):
        ciphertext = admin.encrypt(key, given, CONTEXT)
        assert plaintext == content(admin.decrypt(key, ciphertext, CONTEXT))


def test_the_callers_buffers_stay(admin, key):
    """What the caller gave is neither wiped nor closed."""
    given, secret = bytearray(PASSWORD), SecretBuffer.take(bytearray(PASSWORD))
    admin.encrypt(key, given)
    admin.encrypt(key, secret)
    assert PASSWORD == given == content(secret)


def test_data_keys(admin, key):
    """A data key is of the size asked for, and its ciphertext opens to it."""
    for size in (1, 32, 1024):
        secret, ciphertext = admin.generate_data_key(key, CONTEXT, size=size)
        assert size == len(secret)
        assert content(secret) == content(admin.decrypt(key, ciphertext, CONTEXT))


def test_what_does_not_open(admin, kms, key):
    """A changed ciphertext, another context and another key's ciphertext are CiphertextErrors."""
    ciphertext = admin.encrypt(key, PASSWORD, CONTEXT)
    changed = bytearray(ciphertext)
    changed[-1] ^= 1
    other = kms.make_key()
    for each, context, by in (
        (bytes(changed), CONTEXT, key),
        (ciphertext, {}, key),
        (ciphertext, {"app": "another"}, key),
        (ciphertext, CONTEXT, other),
        (b"", CONTEXT, key),
        (bytes(6145), CONTEXT, key),
    ):
        with pytest.raises(CiphertextError, match=f"aws-kms:{by}"):
            admin.decrypt(by, each, context)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda kms, key: kms.encrypt(key, b""), "bytes, not 0"),
        (lambda kms, key: kms.encrypt(key, bytes(4097)), "1 to 4096 bytes, not 4097"),
        (lambda kms, key: kms.encrypt(key, b"x", {"a": 1}), "must be strings"),
        (lambda kms, key: kms.encrypt("a/b", b"x"), "an id, alias/NAME"),
        (lambda kms, key: kms.generate_data_key(key, size=0), "1 to 1024 bytes"),
        (lambda kms, key: kms.generate_data_key(key, size=1025), "1 to 1024 bytes"),
        (lambda kms, key: kms.sign(key, b"x", "ed25519"), "signs no digest by 'ed25519'"),
        (
            lambda kms, key: kms.enable_rotation(key, period_days=89),
            "90 to 2560 days, not every 89",
        ),
        (lambda kms, key: kms.schedule_deletion(key, days=6), "7 to 30 days"),
        (lambda kms, key: kms.create_alias("x", key), "an alias is alias/NAME"),
        (lambda kms, key: kms.create_alias("alias/aws/x", key), "not of alias/aws/"),
        (lambda kms, key: kms.delete_alias("alias/a b"), "an alias is alias/NAME"),
    ],
)
def test_what_is_not_asked(admin, kms, key, use, says):
    """What KMS would not take is refused here, and KMS is not called."""
    with pytest.raises(ValueError, match=says):
        use(admin, key)
    assert [] == kms.take_calls()


# Signatures


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("ECC_NIST_P256", "ecdsa-p256-sha256"),
        ("ECC_NIST_P384", "ecdsa-p384-sha384"),
        ("RSA_2048", "rsa-pss-sha256"),
        ("RSA_3072", "rsa-pss-sha256"),
    ],
)
def test_signatures(admin, kms, kind, algorithm):
    """KMS takes what it signed, and so does anybody with the public key; of another message neither does."""
    key = kms.make_key(KeySpec=kind, KeyUsage="SIGN_VERIFY")
    found = admin.public_key(key)
    assert (key, kind, "SIGN_VERIFY", algorithm) == (
        found.key,
        found.specification,
        found.usage,
        found.algorithm,
    )
    message = os.urandom(100_000)
    signature = admin.sign(key, message, algorithm)
    admin.verify(key, message, signature, algorithm)
    check_signature(found.pem, algorithm, message, signature)
    for false in (signature[:-1], signature[::-1], b""):
        with pytest.raises(SignatureError):
            admin.verify(key, message, false, algorithm)
    with pytest.raises(SignatureError, match="KMSInvalidSignatureException"):
        admin.verify(key, message + b"x", signature, algorithm)


def test_keys_of_another_kind(admin, key, signing_key):
    """A key that does not do what is asked of it says so."""
    with pytest.raises(WrappingKeyError, match="a key of usage SIGN_VERIFY"):
        admin.sign(key, b"m", "ecdsa-p256-sha256")
    with pytest.raises(WrappingKeyError, match="InvalidKeyUsageException"):
        admin.sign(signing_key, b"m", "rsa-pss-sha256")
    with pytest.raises(WrappingKeyError, match="InvalidKeyUsageException"):
        admin.encrypt(signing_key, b"x")
    for use in (admin.rotate, admin.rotation, admin.enable_rotation, admin.rotations):
        with pytest.raises(WrappingKeyError, match="keys of this kind do not do that"):
            use(signing_key)
    with pytest.raises(WrappingKeyError, match="NotFoundException"):
        admin.public_key("alias/none")


# Rotation


def test_rotation(admin, kms):
    """A rotation is enabled with its period, made on demand, listed and disabled; what was encrypted before opens."""
    key = kms.make_key()
    assert KeyRotation(False, None, None, None) == admin.rotation(key)
    before = datetime.datetime.now(datetime.UTC)
    admin.enable_rotation(key, period_days=90)
    found = admin.rotation(key)
    assert (True, 90) == (found.enabled, found.period_days)
    assert datetime.timedelta(90, -60) < found.next - before < datetime.timedelta(90, 60)
    ciphertext = admin.encrypt(key, PASSWORD)
    assert [] == admin.rotations(key)
    admin.rotate(key)
    admin.rotate(key)
    (first, kind), (second, _) = admin.rotations(key)
    assert "ON_DEMAND" == kind
    assert first <= second
    assert PASSWORD == content(admin.decrypt(key, ciphertext))
    admin.disable_rotation(key)
    assert not admin.rotation(key).enabled


def test_rotations_come_to_an_end(admin, kms):
    """Where KMS rotates a key no further, that is said; the pages of a long list are read to the end."""
    key = kms.make_key()
    for _ in range(25):
        admin.rotate(key)
    with pytest.raises(WrappingKeyError, match="rotates a key no further on demand"):
        admin.rotate(key)
    assert 25 == len(admin.rotations(key))


def test_aliases_are_resolved_for_what_takes_none(admin, kms):
    """Rotation and states are for ids, so that an alias is looked up first."""
    key, alias = kms.make_key(), f"alias/kms-{os.urandom(4).hex()}"
    admin.create_alias(alias, key)
    kms.take_calls()
    admin.enable_rotation(alias)
    admin.rotate(alias)
    assert admin.rotation(alias).enabled
    admin.disable(alias)
    assert {key, alias} == {call["KeyId"] for call in kms.take_calls()}
    assert "Disabled" == admin.describe(alias).state


# Keys as such


def test_states(admin, kms):
    """A key is disabled, enabled, to be deleted and kept; meanwhile it encrypts or says why not."""
    key = kms.make_key()
    admin.disable(key)
    with pytest.raises(WrappingKeyError, match=r"DisabledException.*enable the key"):
        admin.encrypt(key, PASSWORD)
    admin.enable(key)
    admin.encrypt(key, PASSWORD)
    date = admin.schedule_deletion(key, days=7)
    assert (
        datetime.timedelta(6) < date - datetime.datetime.now(datetime.UTC) < datetime.timedelta(8)
    )
    found = admin.describe(key)
    assert ("PendingDeletion", date, None) == (found.state, found.deletion, found.rotation)
    with pytest.raises(WrappingKeyError, match="cancel that"):
        admin.encrypt(key, PASSWORD)
    admin.cancel_deletion(key)
    assert "Disabled" == admin.describe(key).state


def test_aliases(admin, kms, key):
    """An alias is made, moved and deleted; one that exists is not made again."""
    other, alias = kms.make_key(), f"alias/kms-{os.urandom(4).hex()}"
    admin.create_alias(alias, key)
    assert key.endswith(admin.aliases()[alias])
    with pytest.raises(ValueError, match=r"AlreadyExistsException.*update the alias"):
        admin.create_alias(alias, other)
    admin.update_alias(alias, other)
    assert other.endswith(admin.aliases()[alias])
    admin.delete_alias(alias)
    assert alias not in admin.aliases()
    with pytest.raises(WrappingKeyError, match="NotFoundException"):
        admin.delete_alias(alias)


def test_inventory(admin, kms, monkeypatch):
    """All keys are listed, over several pages, with aliases, states and rotation dates, in the order of KMS."""
    made = [kms.make_key(Description=f"number {number}") for number in range(16)]
    monkeypatch.setattr(tapeseal.kms, "_PAGE", 7)
    signing = kms.make_key(**ECDSA)
    alias = f"alias/kms-{os.urandom(4).hex()}"
    admin.create_alias(alias, made[7])
    admin.enable_rotation(made[7], period_days=180)
    admin.rotate(made[7])
    admin.disable(made[8])
    found = list(admin.inventory(threads=4))
    assert [entry["KeyArn"] for entry in kms.admin.list_keys(Limit=1000)["Keys"]] == [
        each.key for each in found
    ]
    by_key = {each.key: each for each in found}
    rotated = by_key[made[7]]
    assert ((alias,), True, 180, None) == (
        rotated.aliases,
        rotated.rotation.enabled,
        rotated.rotation.period_days,
        rotated.problem,
    )
    assert admin.rotations(made[7])[-1][0] == rotated.rotated
    assert ("Disabled", False, None) == (
        by_key[made[8]].state,
        by_key[made[8]].rotation.enabled,
        by_key[made[8]].rotated,
    )
    assert "number 9" == by_key[made[9]].description
    assert ("ECC_NIST_P256", "SIGN_VERIFY", None) == (
        by_key[signing].specification,
        by_key[signing].usage,
        by_key[signing].rotation,
    )


@pytest.mark.slow
def test_a_thousand_keys(tmp_path):
    """An account with a thousand keys is listed whole, each of them once."""
    from servers.kms import kms_server

    with kms_server(tmp_path) as server:
        made = {server.make_key() for _ in range(1000)}
        found = [each.key for each in of(server, server.admin_user).inventory(threads=16)]
        assert (1000, made) == (len(found), set(found))


def test_an_inventory_that_is_given_up(admin, kms):
    """Who stops in the middle of a listing leaves no threads behind that go on asking."""
    for _ in range(12):
        kms.make_key()
    listing = admin.inventory(threads=2)
    next(listing)
    listing.close()
    kms.take_calls()
    assert [] == kms.take_calls()


def test_a_hidden_key(kms):
    """A key that a policy hides is listed with the reason, and one whose rotation is hidden with the rest."""
    hidden, half = kms.make_key(), kms.make_key()
    everything = {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}
    no = [
        {"Effect": "Deny", "Action": "kms:DescribeKey", "Resource": hidden},
        {"Effect": "Deny", "Action": "kms:GetKeyRotationStatus", "Resource": half},
    ]
    found = {
        each.key: each
        for each in of(kms, kms.environment({"Statement": [everything, *no]})).inventory()
    }
    assert ("", True) == (found[hidden].state, "AccessDeniedException" in found[hidden].problem)
    assert ("Enabled", True) == (found[half].state, "AccessDeniedException" in found[half].problem)


# Who may do what


def policy(name, *keys):
    """Return a policy of the documentation, with its keys replaced by others in their order."""
    if not DOCS.exists():
        pytest.skip("docs/aws.md is not beside these tests")
    section = DOCS.read_text().partition(f"### {name}\n")[2].partition("\n##")[0]
    text = re.search(r"```json\n(.*?)```", section, re.DOTALL)[1]
    stated = re.findall(r"arn:aws:kms:[a-z0-9-]+:\d+:key/[0-9a-z-]+", text)
    assert len(keys) == len(set(stated))
    for old, new in zip(dict.fromkeys(stated), keys, strict=True):
        text = text.replace(old, new)
    return json.loads(text.replace("111122223333", ACCOUNT))


def refused(*uses):
    for use in uses:
        with pytest.raises(AccessDeniedError, match="AccessDeniedException"):
            use()


def test_the_signers_policy(kms, admin, signing_key):
    """A signer signs with its key alone, and changes nothing about it."""
    other = kms.make_key(**ECDSA)
    service = of(kms, kms.environment(policy("Signer", signing_key)))
    made = KmsSigner(service, signing_key)
    signature = made.sign(b"m")
    admin.verify(signing_key, b"m", signature, made.algorithm)
    refused(
        lambda: service.sign(other, b"m", made.algorithm),
        lambda: service.public_key(other),
        lambda: service.verify(signing_key, b"m", signature, made.algorithm),
        lambda: service.disable(signing_key),
        lambda: service.schedule_deletion(signing_key),
        service.aliases,
    )


def test_the_encryptors_policy(kms, admin, key):
    """An encryptor encrypts for its pair alone, and opens nothing."""
    service = of(kms, kms.environment(policy("Encryptor", key)))
    ciphertext = service.encrypt(key, PASSWORD, CONTEXT)
    assert PASSWORD == content(admin.decrypt(key, ciphertext, CONTEXT))
    refused(
        lambda: service.encrypt(key, PASSWORD),
        lambda: service.encrypt(key, PASSWORD, {"app": "another"}),
        lambda: service.decrypt(key, ciphertext, CONTEXT),
        lambda: service.generate_data_key(key, CONTEXT),
    )


def test_the_administrators_policy(kms, admin, key):
    """An administrator rotates and disables its key, and can neither use it nor have it deleted."""
    own, other = kms.make_key(), kms.make_key()
    service = of(kms, kms.environment(policy("Key administrator", own)))
    ciphertext = admin.encrypt(own, PASSWORD)
    service.enable_rotation(own)
    service.rotate(own)
    assert 1 == len(service.rotations(own))
    service.disable_rotation(own)
    service.disable(own)
    service.enable(own)
    assert "Enabled" == service.describe(own).state
    refused(
        lambda: service.encrypt(own, PASSWORD),
        lambda: service.decrypt(own, ciphertext),
        lambda: service.generate_data_key(own),
        lambda: service.schedule_deletion(own),
        lambda: service.rotate(other),
        lambda: service.disable(other),
        lambda: list(service.inventory()),
    )


def test_the_inventorys_policy(kms, key):
    """An inventory sees every key, and uses none."""
    service = of(kms, kms.environment(policy("Inventory")))
    found = list(service.inventory())
    assert key in {each.key for each in found}
    assert {None} == {each.problem for each in found}
    refused(
        lambda: service.encrypt(key, PASSWORD),
        lambda: service.rotate(key),
        lambda: service.disable(key),
    )


# What is not believed


ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
OTHER = ARN.replace("1234", "4321")
SECRET = base64.b64encode(PASSWORD).decode()
WHOLE = {
    "encrypt": {"KeyId": ARN, "CiphertextBlob": "AAAA"},
    "decrypt": {"KeyId": ARN, "Plaintext": SECRET},
    "generate": {
        "KeyId": ARN,
        "CiphertextBlob": "AAAA",
        "Plaintext": base64.b64encode(bytes(32)).decode(),
    },
    "sign": {"KeyId": ARN, "Signature": "AAAA", "SigningAlgorithm": "ECDSA_SHA_256"},
    "verify": {"KeyId": ARN, "SignatureValid": True, "SigningAlgorithm": "ECDSA_SHA_256"},
    "describe": {"KeyMetadata": {"Arn": ARN, "KeyId": ARN[-36:], "KeyState": "Enabled"}},
    "rotation": {"KeyRotationEnabled": False},
    "rotations": {"Rotations": []},
    "aliases": {"Aliases": []},
    "keys": {"Keys": [], "Aliases": []},
}
USES = {
    "encrypt": lambda kms: kms.encrypt(ARN, PASSWORD),
    "decrypt": lambda kms: kms.decrypt(ARN, b"x"),
    "generate": lambda kms: kms.generate_data_key(ARN),
    "sign": lambda kms: kms.sign(ARN, b"m", "ecdsa-p256-sha256"),
    "verify": lambda kms: kms.verify(ARN, b"m", b"s", "ecdsa-p256-sha256"),
    "public_key": lambda kms: kms.public_key(ARN),
    "describe": lambda kms: kms.describe(ARN),
    "rotation": lambda kms: kms.rotation(ARN),
    "rotations": lambda kms: kms.rotations(ARN),
    "aliases": lambda kms: kms.aliases(),
    "keys": lambda kms: list(kms.inventory()),
}


@pytest.fixture(scope="module")
def answers():
    with Answers() as server:
        yield server


@pytest.fixture(scope="module")
def believing(kms, answers):
    """A Kms whose service answers whatever a test says."""
    return Kms(
        client=kms.client(user=kms.admin_user, endpoint_url=answers.address, config=_config())
    )


@pytest.mark.parametrize("name", WHOLE)
def test_whole_answers_are_taken(believing, answers, name):
    """The answers of which those below are spoiled copies are taken."""
    answers.set(WHOLE[name])
    USES[name](believing)


FALSE_ANSWERS = [
    *((name, {}) for name in USES),
    *((name, b"<html>Welcome to this hotel</html>") for name in USES),
    *(
        (name, {**WHOLE[name], "KeyId": value})
        for name in ("encrypt", "decrypt", "generate", "sign", "verify")
        for value in (OTHER, None, "1234", ARN.replace("key/", "alias/"))
    ),
    ("encrypt", {**WHOLE["encrypt"], "CiphertextBlob": ""}),
    ("encrypt", {**WHOLE["encrypt"], "CiphertextBlob": "AAAA" * 2049}),
    ("decrypt", {**WHOLE["decrypt"], "Plaintext": ""}),
    ("decrypt", {**WHOLE["decrypt"], "Plaintext": base64.b64encode(bytes(4097)).decode()}),
    ("generate", {**WHOLE["generate"], "Plaintext": base64.b64encode(bytes(31)).decode()}),
    ("generate", {**WHOLE["generate"], "CiphertextBlob": None}),
    ("sign", {**WHOLE["sign"], "Signature": ""}),
    ("sign", {**WHOLE["sign"], "Signature": "AAAA" * 2049}),
    ("sign", {**WHOLE["sign"], "SigningAlgorithm": "RSASSA_PKCS1_V1_5_SHA_256"}),
    ("verify", {**WHOLE["verify"], "SignatureValid": False}),
    ("verify", {**WHOLE["verify"], "SignatureValid": "true"}),
    ("public_key", {"KeyId": ARN, "PublicKey": "AAAA", "KeySpec": "ECC_NIST_P256"}),
    ("describe", {"KeyMetadata": {"Arn": OTHER}}),
    ("describe", {"KeyMetadata": {"Arn": ""}}),
    ("rotation", {"KeyRotationEnabled": "yes"}),
    ("rotations", {"Rotations": [], "Truncated": True}),
    ("rotations", {"Rotations": [], "Truncated": True, "NextMarker": "again"}),
    ("keys", {"Keys": [{"KeyArn": "x"}], "Aliases": []}),
]


@pytest.mark.parametrize(("name", "answer"), FALSE_ANSWERS)
def test_an_answer_that_is_none(believing, answers, name, answer):
    """An answer that is empty, of another form or for another key is an error, and none of it is used or repeated."""
    answers.set(answer)
    with pytest.raises(ServiceUnavailableError) as caught:
        USES[name](believing)
    assert set() == leaks(caught.value, [SECRET, PASSWORD.decode(), "hotel"])


def test_a_public_key_of_another_kind(believing, answers, admin, kms):
    """A public key that is not of the kind that the answer states is not taken."""
    found = admin.public_key(kms.make_key(KeySpec="ECC_NIST_P384", KeyUsage="SIGN_VERIFY"))
    der = base64.b64decode("".join(found.pem.decode().splitlines()[1:-1]))
    answer = {
        "KeyId": ARN,
        "PublicKey": base64.b64encode(der).decode(),
        "KeySpec": "ECC_NIST_P256",
        "KeyUsage": "SIGN_VERIFY",
        "SigningAlgorithms": ["ECDSA_SHA_256"],
    }
    answers.set(answer)
    with pytest.raises(ServiceUnavailableError, match="no valid KeySpec"):
        believing.public_key(ARN)


@pytest.mark.parametrize("operation", ["encrypt", "decrypt"])
def test_no_secret_is_shown(believing, answers, operation):
    """A service that repeats the plaintext in a refusal has it neither logged nor raised."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    try:
        answers.set({"__type": "AccessDeniedException", "message": f"no {SECRET}"}, 400)
        with pytest.raises(AccessDeniedError) as caught:
            USES[operation](believing)
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(logging.WARNING)
    assert set() == leaks(caught.value, [SECRET, PASSWORD.decode()])
    assert PASSWORD.decode() not in log.getvalue()
    if operation == "encrypt":  # What it was not sent, a service may show to whomever it likes.
        assert SECRET not in log.getvalue()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"code": "ThrottlingException"}, ServiceUnavailableError),
        ({"code": "KMSInternalException", "status": 500}, ServiceUnavailableError),
        ({"code": "ExpiredTokenException"}, AccessDeniedError),
        ({"code": "ConflictException"}, ServiceUnavailableError),
        ({"code": "SomethingNewException"}, AccessDeniedError),
        ({"code": "ValidationException"}, ValueError),
    ],
)
def test_refusals(admin, kms, key, fault, error):
    """Each refusal is one typed error, of an operation that changes something too."""
    kms.faults({"action": "RotateKeyOnDemand", **fault})
    with pytest.raises(error, match=rf"aws-kms:{key}: RotateKeyOnDemand at .*{fault['code']}"):
        admin.rotate(key)


def test_a_service_that_hangs(kms, key):
    """A service that never answers is given up."""
    service = of(kms, kms.admin_user, read_timeout=0.2)
    kms.faults({"action": "ListKeys", "delay": 1})
    with pytest.raises(ServiceUnavailableError, match="ReadTimeoutError"):
        list(service.inventory())


def test_no_copies(admin):
    """A Kms is neither pickled nor copied."""
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            way(admin)


def test_the_name_of_the_package():
    """The class is the package's own."""
    assert tapeseal.Kms is Kms


USER = """
from tapeseal.cli import data
from tapeseal.kms import Kms

key, address, ciphertext = sys.argv[1:]
kms = Kms(region="us-east-1", endpoint_url=address, read_timeout=30)
secret = kms.decrypt(key, bytes.fromhex(ciphertext))
kms.encrypt(key, secret)
data.write_secret("plain", secret)
secret = data.read_secret("plain", 4096)
kms.encrypt(key, secret)
stage("in use")
secret.close()
stage("closed")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/mem")
@pytest.mark.skipif(
    not _core.KEY_SCHEDULES_PROTECTED,
    reason="the system's libcrypto, or a sanitizer, has its own memory",
)
def test_where_a_plaintext_stands(admin, kms, key, tmp_path, monkeypatch):
    """What is decrypted, written, read and encrypted stands in locked pages alone, and nowhere once it is closed."""
    monkeypatch.chdir(tmp_path)
    plaintext = os.urandom(32)
    ciphertext = admin.encrypt(key, plaintext)
    scanner = Scanner({"plaintext": plaintext})
    with memory_child(USER, key, kms.address, ciphertext.hex(), **kms.admin_user) as process:
        process.wait_for("in use")
        assert {Hit("plaintext", "raw", protected=True)} == scanner.process(process.pid)
        process.go_on_to("closed")
        assert set() == scanner.process(process.pid)


# The command line


@pytest.fixture
def run(kms, monkeypatch, capfdbinary, tmp_path):
    """Run a command as a user who may do everything, its standard input a file."""
    make_clients_once(monkeypatch)
    for name, value in kms.admin_user.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, data=b""):
        capfdbinary.readouterr()
        Path("stdin").write_bytes(data)
        service = ["--endpoint-url", kms.address]
        with open("stdin", "rb") as file, _standard_input(file.fileno()):
            code = app.run(["kms", *map(str, arguments), *service])
        printed = capfdbinary.readouterr()
        return code, printed.out, printed.err.decode()

    return run


@contextlib.contextmanager
def _standard_input(fd):
    kept = os.dup(0)
    os.dup2(fd, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


BINARY = bytes(range(256)) + b"\r\n\x00"


def test_encrypting_commands(run, key):
    """What goes in, of any bytes, comes out; a plaintext's file is its owner's alone, and none is replaced."""
    code, ciphertext, err = run("encrypt", key, "-c", "app=recorder", data=BINARY)
    assert (0, "") == (code, err)
    Path("c").write_bytes(ciphertext)
    assert (0, BINARY, "") == run("decrypt", key, "c", "-c", "app=recorder")
    code, out, _ = run("decrypt", key, "c", "-c", "app=recorder", "-o", "p", "--json")
    assert {"key": key, "output": "p", "bytes": len(BINARY)} == json.loads(out)
    assert (BINARY, 0o600) == (Path("p").read_bytes(), stat.S_IMODE(Path("p").stat().st_mode))
    code, out, err = run("decrypt", key, "c", "-c", "app=recorder", "-o", "p")
    assert (2, b"", True) == (code, out, "the file exists" in err)
    code, out, err = run("decrypt", key, "c")
    assert (1, b"", True) == (code, out, "InvalidCiphertextException" in err)
    code, out, err = run("encrypt", key, data=bytes(5000))
    assert (2, b"", True) == (code, out, "more than 4,096 bytes" in err)


def test_signing_commands(run, signing_key):
    """A signature is written in bytes, and KMS checks it: exit code 1 where it is of another file."""
    Path("m").write_bytes(BINARY)
    assert (0, b"") == run("sign", signing_key, "m", "-o", "s")[:2]
    code, out, _ = run("sign", signing_key, "m", "--json")
    report = json.loads(out)
    pem = run("public-key", signing_key)[1]
    for signature in (Path("s").read_bytes(), base64.b64decode(report["signature"])):
        check_signature(pem, report["algorithm"], BINARY, signature)
    code, out, _ = run("verify", signing_key, "m", "--signature", "s")
    assert (0, f"m: signed by {signing_key} (ecdsa-p256-sha256)\n".encode()) == (code, out)
    code, out, err = run("verify", signing_key, "--signature", "s", data=b"other")
    assert (1, b"", True) == (code, out, "KMSInvalidSignatureException" in err)


def test_rotating_commands(run, kms):
    """A rotation is enabled, made, seen and disabled."""
    key = kms.make_key()
    assert (0, f"{key}: no automatic rotation\n".encode()) == run("rotation", key)[:2]
    code, out, _ = run("rotation", key, "--enable", 90)
    assert (0, True) == (code, f"{key}: rotated every 90 days, next 20".encode() in out)
    assert 0 == run("rotate", key)[0]
    code, out, _ = run("rotation", key, "--json")
    report = json.loads(out)
    assert (True, 90, "ON_DEMAND") == (
        report["enabled"],
        report["period_days"],
        report["rotations"][0]["type"],
    )
    assert b"no automatic rotation" in run("rotation", key, "--disable")[1]
    assert 2 == run("rotation", key, "--disable", "--enable", 90)[0]
    assert 2 == run("rotation", key, "--enable", 89)[0]


def test_the_listing_command(run, kms, key):
    """Each key has its line, or its object; what is hidden has exit code 3."""
    code, out, err = run("keys", "--json")
    reports = {report["key"]: report for report in map(json.loads, out.splitlines())}
    assert (0, "Enabled", "SYMMETRIC_DEFAULT") == (
        code,
        reports[key]["state"],
        reports[key]["specification"],
    )
    code, out, err = run("keys", "--jobs", 2)
    assert (0, len(reports)) == (code, len(out.splitlines()))
    assert f"tapeseal: {len(reports)} keys\n" == err
    kms.faults({"action": "DescribeKey", "code": "AccessDeniedException", "times": 1})
    code, out, err = run("keys")
    assert (3, True) == (code, "of 1 key not all could be seen" in err)
