"""AwsKmsKeyring against KMS over HTTP: what it opens, what it refuses, what each failure says, what it keeps."""

import base64
import contextlib
import copy
import json
import logging
import os
import pickle
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tapeseal
from servers.answers import Answers
from servers.certs import Authority
from servers.kms import ACCOUNT, REGION, kms_server, make_clients_once
from support import TICK, child, leaks, ticks
from tapeseal._core import SecretBuffer
from tapeseal.datakey import DataKey
from tapeseal.errors import (
    AccessDeniedError,
    KeyUnavailableError,
    ServiceUnavailableError,
    TapesealError,
    WrappedKeyError,
    WrappingKeyError,
)
from tapeseal.keyrings.any_of import AnyOf
from tapeseal.keyrings.aws_kms import AwsKmsKeyring
from tapeseal.layout import Recipient

pytestmark = pytest.mark.server

CONTEXT = {"desk": "eq-us"}
DATA_KEY = bytes(range(32, 64))
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(autouse=True)
def _well(kms):
    """Have each test find and leave a server without faults, and without calls to count."""
    kms.take_calls()
    yield
    kms.faults()


@pytest.fixture(autouse=True)
def _nobody(monkeypatch):
    """Have boto3 find no credentials, settings or region but those of a test."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def become(monkeypatch):
    """Have boto3 be a user from here on."""

    def become(user):
        for name, value in user.items():
            monkeypatch.setenv(name, value)

    return become


@pytest.fixture(autouse=True)
def _clients(monkeypatch):
    """Make each boto3 client once; the keyrings are new ones."""
    make_clients_once(monkeypatch)


@pytest.fixture
def ring(kms, become):
    """Make keyrings of a user who may do everything, which try each call once."""
    become(kms.admin_user)

    def ring(*keys, **options):
        options = {
            "region": REGION,
            "endpoint_url": kms.address,
            "max_attempts": 1,
            "read_timeout": 30,  # of a machine with much else to do
            **options,
        }
        return AwsKmsKeyring(keys, **options)

    return ring


@pytest.fixture(scope="session")
def key(kms):
    return kms.make_key()


@pytest.fixture(scope="session")
def other_key(kms):
    return kms.make_key()


@pytest.fixture
def alias(kms, key):
    name = f"alias/hft-{os.urandom(4).hex()}"
    kms.admin.create_alias(AliasName=name, TargetKeyId=key)
    return name


def given(secret=DATA_KEY):
    return DataKey(SecretBuffer.take(bytearray(secret)))


def mark(data_key):
    """Return what tells one data key from another."""
    return data_key.header_mac(b"t" * 16, b"")


def blob(recipient):
    return base64.b64decode(recipient.wrapped)


def altered(recipient, content):
    return recipient._replace(wrapped=base64.b64encode(content).decode())


# What opens


@pytest.mark.parametrize("form", ["id", "arn", "alias", "alias_arn"])
def test_a_key_may_be_named_in_every_way(kms, ring, key, alias, form):
    """By id, ARN, alias or its ARN a key wraps for its ARN, and opens that in another process's keyring."""
    name = {
        "id": key.rpartition("/")[2],
        "arn": key,
        "alias": alias,
        "alias_arn": key.partition("key/")[0] + alias,
    }[form]
    made, [recipient] = ring(name).generate(CONTEXT)
    assert Recipient("aws-kms", key, recipient.wrapped) == recipient
    assert mark(made) == mark(ring(name).unwrap([recipient], CONTEXT))
    [again] = ring(name).wrap(made, CONTEXT)
    assert mark(made) == mark(ring(key).unwrap([again], CONTEXT))


def test_every_call_binds_the_context(kms, ring, key, other_key):
    """The pairs and our mark are in each call, and Decrypt states its key."""
    keyring = ring(key, other_key)
    made, recipients = keyring.generate(CONTEXT)
    keyring.wrap(made, {})
    keyring.unwrap(recipients[1:], CONTEXT)
    bound = {"desk": "eq-us", "tapeseal:v1": "wrap"}
    expected = [
        ("GenerateDataKey", key, bound),
        ("Encrypt", other_key, bound),
        ("Encrypt", key, {"tapeseal:v1": "wrap"}),
        ("Encrypt", other_key, {"tapeseal:v1": "wrap"}),
        ("Decrypt", other_key, bound),
    ]
    assert expected == [
        (call["action"], call["KeyId"], call["EncryptionContext"]) for call in kms.take_calls()
    ]


def test_each_of_several_keys_opens_alone(ring, key, other_key):
    """All keys wrap one data key, in their order, and any one of them opens it."""
    made, recipients = ring(key, other_key).generate(CONTEXT)
    assert [key, other_key] == [recipient.key for recipient in recipients]
    for each in (key, other_key):
        assert mark(made) == mark(ring(each).unwrap(recipients, CONTEXT))
    given_key = given()
    recipients = ring(key, other_key).wrap(given_key, CONTEXT)
    assert mark(given_key) == mark(ring(other_key).unwrap(recipients, CONTEXT))


def test_what_kms_itself_holds(kms, ring, key):
    """What Encrypt wrapped is the data key itself: 32 bytes, as any other client of KMS decrypts them."""
    [recipient] = ring(key).wrap(given(), CONTEXT)
    answer = kms.admin.decrypt(
        KeyId=key,
        CiphertextBlob=blob(recipient),
        EncryptionContext={**CONTEXT, "tapeseal:v1": "wrap"},
    )
    assert answer["Plaintext"] == DATA_KEY


def test_pending(ring, key, alias):
    """Recipients to be added later are named without a call, once their ARNs are known."""
    keyring = ring(alias)
    with pytest.raises(KeyUnavailableError, match="only KMS knows the ARN of alias/hft-"):
        keyring.pending()
    keyring.generate(CONTEXT)
    assert [Recipient("aws-kms", key, None)] == keyring.pending() == ring(key).pending()


def test_an_alias_means_one_key(kms, ring, key, other_key, alias):
    """An alias that is moved stays what it was for a keyring that used it, and is new for the next one."""
    keyring = ring(alias)
    _, [before] = keyring.generate(CONTEXT)
    kms.admin.update_alias(AliasName=alias, TargetKeyId=other_key)
    made, [after] = keyring.generate(CONTEXT)
    assert [key, key] == [before.key, after.key]
    assert mark(made) == mark(keyring.unwrap([after], CONTEXT))
    assert other_key == ring(alias).generate(CONTEXT)[1][0].key


def test_an_alias_finds_its_recipient(ring, key, other_key, alias):
    """A reader that has an alias alone passes over the recipients of other keys, and says so where all are."""
    made, recipients = ring(other_key, key).generate(CONTEXT)
    assert mark(made) == mark(ring(alias).unwrap(recipients, CONTEXT))
    with pytest.raises(KeyUnavailableError, match="the alias is not of the key") as caught:
        ring(alias).unwrap(recipients[:1], CONTEXT)
    assert type(caught.value) is KeyUnavailableError


def test_multi_region(kms, ring):
    """A replica opens what the primary wrapped where the keyring was told so, by a call to its own region."""
    primary = kms.make_key(MultiRegion=True)
    kms.admin.replicate_key(KeyId=primary, ReplicaRegion="eu-west-1")
    replica = primary.replace(REGION, "eu-west-1")
    made, recipients = ring(primary).generate(CONTEXT)
    kms.take_calls()
    ways = [ring(replica, region=None, multi_region=True)]
    ways.append(ring(replica.rpartition("/")[2], region="eu-west-1", multi_region=True))
    ways.append(ring(region="eu-west-1", multi_region=True, accounts=[ACCOUNT]))
    for keyring in ways:
        assert mark(made) == mark(keyring.unwrap(recipients, CONTEXT))
    called = {call["KeyId"] for call in kms.take_calls()}
    assert {replica, replica.rpartition("/")[2]} == called
    with pytest.raises(KeyUnavailableError, match="no recipient is one of ours"):
        ring(replica, region=None).unwrap(recipients, CONTEXT)
    assert [] == kms.take_calls()


def test_discovery(kms, ring, key, other_key):
    """With accounts alone a keyring opens whatever their keys wrapped, and wraps nothing."""
    made, recipients = ring(other_key).generate(CONTEXT)
    kms.take_calls()
    keyring = ring(accounts=[ACCOUNT])
    assert mark(made) == mark(keyring.unwrap(recipients, CONTEXT))
    assert [other_key] == [call["KeyId"] for call in kms.take_calls()]
    for use in (
        lambda: keyring.generate(CONTEXT),
        lambda: keyring.wrap(made, CONTEXT),
        keyring.pending,
    ):
        with pytest.raises(KeyUnavailableError, match="can only unwrap"):
            use()


def test_rotation(kms, ring):
    """After a rotation the old wraps open, and so do the new ones."""
    key = kms.make_key()
    keyring = ring(key)
    made, old = keyring.generate(CONTEXT)
    kms.admin.rotate_key_on_demand(KeyId=key)
    new = keyring.wrap(made, CONTEXT)
    for recipients in (old, new):
        assert mark(made) == mark(ring(key).unwrap(recipients, CONTEXT))


def test_a_tape(kms, ring, key, key_file, tmp_path):
    """A tape is written, sliced and moved from a key file to KMS and back by the URIs of the keyrings."""
    ring(key)  # who the process is
    uri = f"aws-kms:{key}?region={REGION}&endpoint_url={kms.address}&read_timeout=30"
    path = tmp_path / "day.tape"
    remote, local = tapeseal.keyring(uri), tapeseal.keyring(f"local:{key_file}")
    with tapeseal.open(path, "w", keyring=remote, dtype=TICK, encryption_context=CONTEXT) as tape:
        tape.append(ticks(0, 1000))
    for keyring, to in ((remote, local), (local, remote)):
        tapeseal.rewrap(path, keyring=keyring, to=to)
        with tapeseal.open(path, keyring=to, expect=CONTEXT) as tape:
            assert (tape[5:700] == ticks(5, 700)).all()


def test_threads(ring, key):
    """Threads that share a keyring each get their own data key."""
    keyring = ring(key)

    def one(number):
        context = {"number": str(number)}
        made, recipients = keyring.generate(context)
        wrapped = keyring.wrap(made, context)
        return mark(made) == mark(keyring.unwrap(recipients, context)) == mark(
            keyring.unwrap(wrapped, context)
        ) and mark(made)

    with ThreadPoolExecutor(8) as pool:
        marks = list(pool.map(one, range(32)))
    assert 32 == len(set(marks) - {False})


# What does not open


def test_what_is_not_ours_is_not_asked_for(kms, ring, key, other_key):
    """For recipients of other keys, regions, accounts, partitions and providers no call is made."""
    _, [recipient] = ring(other_key).generate(CONTEXT)
    kms.take_calls()
    id_ = other_key.rpartition("/")[2]
    names = [
        other_key,
        f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/{id_}",
        f"arn:aws:kms:{REGION}:999999999999:key/{id_}",
        f"arn:aws-cn:kms:{REGION}:{ACCOUNT}:key/{id_}",
        f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/x",
        f"arn:aws:s3:{REGION}:{ACCOUNT}:key/{id_}",
        f"{key}\n",
        id_,
        "",
        "http://127.0.0.1:1/",
    ]
    recipients = [recipient._replace(key=name) for name in names]
    recipients += [
        recipient._replace(provider="vault-transit", key=key),
        recipient._replace(key=key, wrapped=None),
        recipient._replace(key=key, share=(0, 2, 1)),
    ]
    for keyring in (ring(key), ring(key, accounts=["999999999998"])):
        with pytest.raises(KeyUnavailableError, match="no recipient is one of ours") as caught:
            keyring.unwrap(recipients, CONTEXT)
        assert type(caught.value) is KeyUnavailableError
    with pytest.raises(KeyUnavailableError, match="no recipient is one of ours"):
        ring(accounts=["999999999999"], partition="aws-cn").unwrap(recipients[:4], CONTEXT)
    with pytest.raises(KeyUnavailableError, match="no recipient is one of ours"):
        ring(accounts=[ACCOUNT]).unwrap(recipients[1:2], CONTEXT)
    assert [] == kms.take_calls()


@pytest.mark.parametrize(
    ("wrapped_with", "opened_with"),
    [
        (CONTEXT, {}),
        ({}, CONTEXT),
        (CONTEXT, {"desk": "eq-eu"}),
        (CONTEXT, {"Desk": "eq-us"}),
        (CONTEXT, {**CONTEXT, "day": "1"}),
        ({"ab": "c"}, {"a": "bc"}),
    ],
)
def test_another_context_does_not_open(ring, key, wrapped_with, opened_with):
    """The pairs are bound exactly, to the character, with their keys."""
    keyring = ring(key)
    _, recipients = keyring.generate(wrapped_with)
    with pytest.raises(WrappedKeyError, match=f"{key}.*InvalidCiphertextException"):
        keyring.unwrap(recipients, opened_with)


def test_what_somebody_else_encrypted_does_not_open(kms, ring, key):
    """What was encrypted under the key without our mark is no wrapped key."""
    sealed = kms.admin.encrypt(KeyId=key, Plaintext=DATA_KEY, EncryptionContext=CONTEXT)
    recipient = altered(Recipient("aws-kms", key, ""), sealed["CiphertextBlob"])
    with pytest.raises(WrappedKeyError):
        ring(key).unwrap([recipient], CONTEXT)


def test_our_mark_cannot_be_given(ring, key):
    """A context that holds a reserved key is refused before anything is called."""
    keyring = ring(key)
    for use in (keyring.generate, lambda context: keyring.unwrap([], context)):
        with pytest.raises(ValueError, match="must not begin with 'tapeseal:'"):
            use({"tapeseal:v1": "other"})


def test_a_changed_blob_does_not_open(ring, key):
    """A wrapped key with a bit changed at either end or in the middle, cut or lengthened, is known as changed."""
    keyring = ring(key)
    _, [recipient] = keyring.generate(CONTEXT)
    good = blob(recipient)
    bad = [good[:-1], good + b"\0", good[:20], b"\0", good[:100] + good]
    for place in (0, 1, 30, 37, 40, 60, -1):
        changed = bytearray(good)
        changed[place] ^= 1
        bad.append(bytes(changed))
    for content in bad:
        with pytest.raises(WrappedKeyError, match=key):
            keyring.unwrap([altered(recipient, content)], CONTEXT)


def test_a_blob_that_is_none_is_not_sent(kms, ring, key):
    """What is no base64, not in its one form, empty or too long for KMS is known as changed without a call."""
    keyring = ring(key)
    for wrapped in ("", "AAA", "AAA=\n", "AAB=", "AA-_", "é", "A" * 8196):
        with pytest.raises(WrappedKeyError, match="it is no wrapped key of KMS"):
            keyring.unwrap([Recipient("aws-kms", key, wrapped)], CONTEXT)
    assert [] == kms.take_calls()


def test_swapped_wraps_do_not_open(ring, key, other_key):
    """Wraps that changed places under the names of two keys do not open, though both keys are ours."""
    _, [one, other] = ring(key, other_key).generate(CONTEXT)
    swapped = [one._replace(wrapped=other.wrapped), other._replace(wrapped=one.wrapped)]
    for keyring in (ring(key, other_key), ring(accounts=[ACCOUNT])):
        with pytest.raises(WrappedKeyError, match=f"{key}.*IncorrectKeyException"):
            keyring.unwrap(swapped, CONTEXT)


def test_a_recipient_under_a_false_name_does_not_open(ring, key, other_key, alias):
    """An alias or a plain id opens a wrap only under the ARN of the key that made it."""
    _, [recipient] = ring(key).generate(CONTEXT)
    with pytest.raises(WrappedKeyError, match="list of recipients was changed"):
        ring(alias).unwrap([recipient._replace(key=other_key)], CONTEXT)
    elsewhere = recipient._replace(key=key.replace(ACCOUNT, "999999999999"))
    with pytest.raises(WrappedKeyError, match="list of recipients was changed"):
        ring(key.rpartition("/")[2]).unwrap([elsewhere], CONTEXT)


def test_a_good_recipient_after_a_bad_one_opens(kms, ring, key, other_key):
    """A changed recipient does not keep another from opening; where none opens the change is told."""
    keyring = ring(key, other_key)
    made, [one, other] = keyring.generate(CONTEXT)
    bad = altered(one, blob(one)[:-1])
    assert mark(made) == mark(keyring.unwrap([bad, other], CONTEXT))
    gone = kms.make_key()
    _, [disabled] = ring(gone).generate(CONTEXT)
    kms.admin.disable_key(KeyId=gone)
    with pytest.raises(WrappedKeyError, match=key):
        ring(gone, key).unwrap([disabled, bad], CONTEXT)


# The wrapping key


def disable(kms, key):
    kms.admin.disable_key(KeyId=key)


def delete(kms, key):
    kms.admin.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (disable, "DisabledException: .* is disabled.; enable the key"),
        (delete, "KMSInvalidStateException: .* pending deletion.; .*cancel that"),
    ],
)
def test_a_key_that_may_not_be_used(kms, ring, end, says):
    """A key that is disabled or pending deletion neither wraps nor opens, and does both when it is back."""
    key = kms.make_key()
    keyring = ring(key)
    made, recipients = keyring.generate(CONTEXT)
    end(kms, key)
    for use in (
        lambda: keyring.generate(CONTEXT),
        lambda: keyring.wrap(made, CONTEXT),
        lambda: keyring.unwrap(recipients, CONTEXT),
    ):
        with pytest.raises(WrappingKeyError, match=f"aws-kms:{key}.*{says}"):
            use()
    if end is delete:
        kms.admin.cancel_key_deletion(KeyId=key)
    kms.admin.enable_key(KeyId=key)
    assert mark(made) == mark(keyring.unwrap(recipients, CONTEXT))


def test_a_key_that_is_not_there(ring, key):
    """A key, or an alias, that does not exist is named."""
    missing = key[:-4] + "0000"
    for name in (missing, "alias/none"):
        with pytest.raises(WrappingKeyError, match=f"aws-kms:{name}.*NotFoundException"):
            ring(name).generate(CONTEXT)
    with pytest.raises(WrappingKeyError, match="NotFoundException"):
        ring(missing).unwrap([Recipient("aws-kms", missing, "AAAA")], CONTEXT)


def test_a_key_of_another_kind(kms, ring):
    """A key that signs is refused, with what is wanted instead."""
    key = kms.make_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")
    with pytest.raises(WrappingKeyError, match="takes a symmetric encryption key"):
        ring(key).generate(CONTEXT)


def test_a_key_that_is_not_handed_out_is_wiped(ring, key, other_key, alias, monkeypatch):
    """Where a further key cannot wrap, or a tape's recipient is not what it says, the data key is closed."""
    _, [recipient] = ring(key).generate(CONTEXT)
    made = []
    init = DataKey.__init__
    monkeypatch.setattr(
        DataKey, "__init__", lambda self, secret: (made.append(self), init(self, secret))[1]
    )
    with pytest.raises(WrappingKeyError, match="alias/none"):
        ring(key, "alias/none").generate(CONTEXT)
    with pytest.raises(WrappedKeyError):
        ring(alias).unwrap([recipient._replace(key=other_key)], CONTEXT)
    assert [True, True] == [data_key.secret.closed for data_key in made]


# Who may do what


def policy(name, *keys):
    """Return a policy of the documentation, with its keys replaced by others in their order."""
    section = (DOCS / "aws.md").read_text().partition(f"### {name}\n")[2].partition("\n##")[0]
    text = re.search(r"```json\n(.*?)```", section, re.DOTALL)[1]
    stated = re.findall(r"arn:aws:kms:[a-z0-9-]+:\d+:key/[0-9a-z-]+", text)
    assert len(keys) == len(set(stated))
    for old, new in zip(dict.fromkeys(stated), keys, strict=True):
        text = text.replace(old, new)
    return json.loads(text)


def test_the_recorders_policy(kms, become, ring, key, other_key):
    """A recorder makes keys in its own context under its own key, and cannot open even those.

    Resources and the conditions on the context are evaluated by tests/servers/kms_program.py, for moto
    does neither for KMS. Key policies, grants, endpoint policies and organisations are not evaluated.
    """
    become(kms.environment(policy("Recorder", key)))
    recorder = ring(key)
    made, recipients = recorder.generate(CONTEXT)
    recorder.wrap(made, CONTEXT)
    refused = [
        lambda: recorder.unwrap(recipients, CONTEXT),
        lambda: recorder.generate({}),
        lambda: recorder.generate({"desk": "eq-eu"}),
        lambda: recorder.generate({**CONTEXT, "more": "pairs"}),
        lambda: recorder.wrap(made, {"desk": "eq-eu"}),
        lambda: ring(other_key).generate(CONTEXT),
    ]
    for use in refused:
        with pytest.raises(AccessDeniedError, match=r"AccessDeniedException: User: .* kms:"):
            use()


def test_the_readers_policy(kms, become, ring, key):
    """A reader opens the tapes of its desk and makes none; as there, the program evaluates conditions."""
    made, recipients = ring(key).generate(CONTEXT)
    _, of_another = ring(key).generate({"desk": "eq-eu"})
    become(kms.environment(policy("Reader", key)))
    reader = ring(key)
    assert mark(made) == mark(reader.unwrap(recipients, CONTEXT))
    for use in (
        lambda: reader.unwrap(of_another, {"desk": "eq-eu"}),
        lambda: reader.generate(CONTEXT),
        lambda: reader.wrap(made, CONTEXT),
    ):
        with pytest.raises(AccessDeniedError, match="a policy must allow it"):
            use()


def test_the_rewrappers_policy(kms, become, ring, key, other_key, tmp_path):
    """A rewrapper moves a tape from the old key to the new one, and not back, and makes no keys."""
    path = tmp_path / "day.tape"
    with tapeseal.open(
        path, "w", keyring=ring(key), encryption_context=CONTEXT, dtype=TICK
    ) as tape:
        tape.append(ticks(0, 10))
    become(kms.environment(policy("Rewrapper", key, other_key)))
    old, new = ring(key), ring(other_key)
    tapeseal.rewrap(path, keyring=old, to=new)
    assert [other_key] == [each.key for each in tapeseal.inspect(path).recipients]
    for use in (
        lambda: tapeseal.rewrap(path, keyring=new, to=old),
        lambda: old.generate(CONTEXT),
        lambda: new.generate(CONTEXT),
        lambda: old.wrap(given(), CONTEXT),
    ):
        with pytest.raises(AccessDeniedError):
            use()


def test_the_inspector_needs_none(kms, ring, key, tmp_path):
    """Which key a tape is wrapped under is told without a call to KMS."""
    path = tmp_path / "day.tape"
    with tapeseal.open(path, "w", keyring=ring(key), dtype=TICK) as tape:
        tape.append(ticks(0, 10))
    kms.take_calls()
    assert [("aws-kms", key)] == [each[:2] for each in tapeseal.inspect(path).recipients]
    assert [] == kms.take_calls()


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ({}, "no usable credentials .NoCredentialsError"),
        ({"AWS_ACCESS_KEY_ID": "AKIANONE"}, "no usable credentials .PartialCredentialsError"),
        (
            {"AWS_ACCESS_KEY_ID": "AKIANONE", "AWS_SECRET_ACCESS_KEY": "x"},
            "UnrecognizedClientException: .*renew the credentials",
        ),
        ({"AWS_PROFILE": "none"}, "no usable credentials .ProfileNotFound"),
    ],
)
def test_credentials(kms, become, key, user, says):
    """Credentials that are missing, in part or unknown are told apart from policies."""
    become(user)
    with pytest.raises(AccessDeniedError, match=says):
        AwsKmsKeyring(key, endpoint_url=kms.address, max_attempts=1).generate(CONTEXT)


def test_a_false_secret(kms, become, ring, key):
    """A signature by another secret is refused as such."""
    keyring = ring(key)
    become({"AWS_SECRET_ACCESS_KEY": "another"})
    with pytest.raises(AccessDeniedError, match=r"InvalidSignatureException.*and the clock"):
        ring(key).generate(CONTEXT)
    keyring.generate(CONTEXT)


# The service


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("ThrottlingException", 400, ServiceUnavailableError),
        ("LimitExceededException", 400, ServiceUnavailableError),
        ("KMSInternalException", 500, ServiceUnavailableError),
        ("DependencyTimeoutException", 500, ServiceUnavailableError),
        ("KeyUnavailableException", 500, ServiceUnavailableError),
        ("NobodyKnowsException", 503, ServiceUnavailableError),
        ("NobodyKnowsException", 429, ServiceUnavailableError),
        ("ExpiredTokenException", 400, AccessDeniedError),
        ("NobodyKnowsException", 400, AccessDeniedError),
        ("NotFoundException", 400, WrappingKeyError),
        ("DisabledException", 400, WrappingKeyError),
        ("KMSInvalidStateException", 400, WrappingKeyError),
        ("InvalidKeyUsageException", 400, WrappingKeyError),
    ],
)
def test_what_kms_says(kms, ring, key, code, status, error):
    """Each refusal is the error of its kind, and names recipient, operation, code and message."""
    kms.faults({"code": code, "message": "so it is", "status": status})
    for use, operation in (
        (lambda keyring: keyring.generate(CONTEXT), "GenerateDataKey"),
        (lambda keyring: keyring.wrap(given(), CONTEXT), "Encrypt"),
        (lambda keyring: keyring.unwrap([Recipient("aws-kms", key, "AAAA")], {}), "Decrypt"),
    ):
        says = f"^aws-kms:{key}: {operation} at {kms.address}: refused: {code}: so it is; ."
        with pytest.raises(error, match=says) as caught:
            use(ring(key))
        assert type(caught.value) is error


def test_throttling_is_tried_again(kms, ring, key):
    """As many failures as there are attempts are one error, one less is none, and an answer is not asked for twice."""
    keyring = ring(key, max_attempts=2)
    kms.faults({"code": "ThrottlingException", "times": 1})
    keyring.generate(CONTEXT)
    assert ["GenerateDataKey"] == [call["action"] for call in kms.take_calls()]
    kms.faults({"code": "ThrottlingException", "times": 2})
    with pytest.raises(ServiceUnavailableError, match=r"ThrottlingException; .*quota"):
        keyring.wrap(given(), CONTEXT)
    keyring.wrap(given(), CONTEXT)


def test_an_outage_is_met_once(kms, ring, key, other_key):
    """Where KMS is away, the other recipients are not tried in vain."""
    keyring = ring(key, other_key)
    _, recipients = keyring.generate(CONTEXT)
    kms.faults({"code": "KMSInternalException", "status": 500, "times": 1})
    with pytest.raises(ServiceUnavailableError):
        keyring.unwrap(recipients, CONTEXT)
    keyring.unwrap(recipients, CONTEXT)


def test_nobody_listens(ring, key):
    """A port where nothing listens, before or in the middle of its life, is an outage."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServiceUnavailableError, match=f"{url}: no answer: .*try again later"):
            ring(key, endpoint_url=url).generate(CONTEXT)


def test_an_unknown_host(ring, key):
    """A host that there is not is an outage too."""
    with pytest.raises(ServiceUnavailableError, match="no answer: EndpointConnectionError"):
        ring(key, endpoint_url="https://kms.invalid").generate(CONTEXT)


def test_tls(become, tmp_path):
    """Over TLS a server whose CA is known is used, and another one is not."""
    authority, other = Authority(tmp_path / "tls"), Authority(tmp_path / "other")
    with kms_server(tmp_path, (authority.ca_file, *authority.issue_server())) as server:
        key = server.make_key()
        become(server.admin_user)
        options = {"endpoint_url": server.address, "read_timeout": 30, "max_attempts": 1}
        made, recipients = AwsKmsKeyring(key, **options).generate(CONTEXT)
        assert mark(made) == mark(AwsKmsKeyring(key, **options).unwrap(recipients, CONTEXT))
        become({"AWS_CA_BUNDLE": other.ca_file})
        with pytest.raises(ServiceUnavailableError, match=r"SSLError: .*CERTIFICATE_VERIFY_FAILED"):
            AwsKmsKeyring(key, **options).generate(CONTEXT)


def test_nothing_answers(kms, ring, key):
    """A server that hangs is given up after the read timeout of each attempt."""
    keyring = ring(key, read_timeout=0.2, max_attempts=2)
    kms.pause()
    try:
        with pytest.raises(ServiceUnavailableError, match="no answer: ReadTimeoutError"):
            keyring.generate(CONTEXT)
    finally:
        kms.resume()


@pytest.fixture(scope="module")
def answers():
    with Answers() as server:
        yield server


ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
SECRET = base64.b64encode(DATA_KEY).decode()
WHOLE = {"KeyId": ARN, "CiphertextBlob": "AAAA", "Plaintext": SECRET}
FALSE_ANSWERS = {
    "empty": b"",
    "no_object": b"[]",
    "null": b"null",
    "a_string": b'"KeyId"',
    "html": b"<html><body>Welcome to this hotel</body></html>",
    "nothing": {},
    "cut": json.dumps(WHOLE).encode()[:-9],
    "no_utf8": json.dumps(WHOLE).encode() + b"\xff",
    "twice": json.dumps(WHOLE).encode() * 2,
    "deep": b"[" * 100_000,
    "no_key_id": {**WHOLE, "KeyId": None},
    "key_id_number": {**WHOLE, "KeyId": 7},
    "key_id_empty": {**WHOLE, "KeyId": ""},
    "key_id_alias": {**WHOLE, "KeyId": ARN.replace("key/", "alias/")},
    "key_id_newline": {**WHOLE, "KeyId": ARN + "\n"},
    "another_key": {**WHOLE, "KeyId": ARN.replace("1234", "4321")},
    "another_region": {**WHOLE, "KeyId": ARN.replace(REGION, "eu-west-1")},
    "another_account": {**WHOLE, "KeyId": ARN.replace(ACCOUNT, "999999999999")},
    "no_plaintext": {**WHOLE, "Plaintext": None},
    "plaintext_empty": {**WHOLE, "Plaintext": ""},
    "plaintext_number": {**WHOLE, "Plaintext": 7},
    "plaintext_31": {**WHOLE, "Plaintext": base64.b64encode(DATA_KEY[:31]).decode()},
    "plaintext_33": {**WHOLE, "Plaintext": base64.b64encode(DATA_KEY + b"3").decode()},
    "plaintext_no_base64": {**WHOLE, "Plaintext": SECRET[:-2] + "!="},
}
FALSE_BLOBS = {
    "no_blob": {**WHOLE, "CiphertextBlob": None},
    "blob_empty": {**WHOLE, "CiphertextBlob": ""},
    "blob_number": {**WHOLE, "CiphertextBlob": 7},
    "blob_list": {**WHOLE, "CiphertextBlob": ["AAAA"]},
    "blob_too_long": {**WHOLE, "CiphertextBlob": "AAAA" * 2049},
    "blob_no_base64": {**WHOLE, "CiphertextBlob": "A"},
}


@pytest.mark.parametrize("name", [*FALSE_ANSWERS, *FALSE_BLOBS])
def test_an_answer_that_is_none(ring, answers, name):
    """An answer that is empty, cut, of another form or for another key gives no data key, and is not repeated."""
    answers.set({**FALSE_ANSWERS, **FALSE_BLOBS}[name])
    keyring = ring(ARN, endpoint_url=answers.address)
    uses = [lambda: keyring.generate(CONTEXT)]
    if name in FALSE_ANSWERS:
        uses.append(lambda: keyring.unwrap([Recipient("aws-kms", ARN, "AAAA")], CONTEXT))
    if "plaintext" not in name:
        uses.append(lambda: keyring.wrap(given(), CONTEXT))
    for use in uses:
        with pytest.raises(ServiceUnavailableError, match=f"aws-kms:{ARN}") as caught:
            use()
        assert "hotel" not in str(caught.value)
        assert len(str(caught.value)) < 700


def test_the_whole_answer_is_taken(ring, answers):
    """The answer of which the others above are spoiled copies is taken."""
    answers.set(WHOLE)
    keyring = ring(ARN, endpoint_url=answers.address)
    made, recipients = keyring.generate(CONTEXT)
    assert mark(given()) == mark(made) == mark(keyring.unwrap(recipients, CONTEXT))
    assert [Recipient("aws-kms", ARN, "AAAA")] == recipients == keyring.wrap(made, CONTEXT)


def test_a_cut_connection(ring, answers):
    """An answer that ends before its stated length, or without a head, is not taken."""
    keyring = ring(ARN, endpoint_url=answers.address)
    answers.set(json.dumps(WHOLE).encode(), size=1000)
    with pytest.raises(ServiceUnavailableError):
        keyring.generate(CONTEXT)
    for start in (b"", b"HTTP/1.1 200", b"220 smtp ready\r\n"):
        answers.answer = start
        with pytest.raises(ServiceUnavailableError):
            keyring.generate(CONTEXT)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"<html>Welcome to this hotel</html>", 403),
        (b"<html>Welcome to this hotel</html>", 404),
        (b"<html>Welcome to this hotel</html>", 502),
        (b"Welcome to this hotel", 302),
        ({"message": "Welcome to this hotel"}, 400),
        ({"__type": 7, "message": "Welcome to this hotel"}, 400),
        ({"__type": ["Welcome to this hotel"]}, 400),
        ({"__type": "Welcome to this hotel"}, 400),
        (b"", 400),
        (b"[" * 100_000, 400),
    ],
)
def test_a_refusal_that_is_none_of_kmss(ring, answers, body, status):
    """Of what is no error of KMS's only the status is repeated."""
    answers.set(body, status)
    with pytest.raises(KeyUnavailableError, match=f"aws-kms:{ARN}") as caught:
        ring(ARN, endpoint_url=answers.address).generate(CONTEXT)
    assert type(caught.value) in (ServiceUnavailableError, AccessDeniedError)
    assert "hotel" not in str(caught.value)


def test_a_redirect_is_not_followed(kms, ring, answers, key):
    """An answer that sends us elsewhere is an error, and nobody is called there."""
    answers.set(b"", 307, headers=f"Location: {kms.address}/\r\n")
    with pytest.raises(KeyUnavailableError):
        ring(key, endpoint_url=answers.address).generate(CONTEXT)
    assert [] == kms.take_calls()


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"no \x1b[31m {SECRET} {DATA_KEY.hex()} is", "no [31m … … is"),
        ("not so\nThe Canonical String is 'token'", "not so"),
        ("see https://user:password@host/", "see https://…@host/"),
        (
            f"User: arn:aws:sts::{ACCOUNT}:assumed-role/AnEspeciallyLongNameOfTheRecorder/i123",
            f"User: arn:aws:sts::{ACCOUNT}:assumed-role/AnEspeciallyLongNameOfTheRecorder/i123",
        ),
        ("so on " * 1000, "so on " * 40 + "…"),
    ],
)
def test_a_refusal_is_repeated_in_part(ring, answers, message, shown):
    """Of a message comes its first line, in printable characters and capped, without what may be a secret."""
    answers.set({"__type": "AccessDeniedException", "message": message}, 400)
    with pytest.raises(AccessDeniedError) as caught:
        ring(ARN, endpoint_url=answers.address).generate(CONTEXT)
    expected = f"AccessDeniedException: {shown}; a policy must allow it, see docs/aws.md"
    assert expected == str(caught.value).partition("refused: ")[2]


def test_only_what_was_sent_can_have_been_changed(ring, answers):
    """A service that finds fault with a wrapped key where none was sent is no KMS, and no sign of tampering."""
    answers.set({"__type": "InvalidCiphertextException"}, 400)
    with pytest.raises(ServiceUnavailableError, match="that is no answer of KMS"):
        ring(ARN, endpoint_url=answers.address).generate(CONTEXT)


# What is kept


TOKEN = "IQoJb3JpZ2luX2VjECAaCXVzLWVhc3QtMSJHMEUCIQDcanary"
SECRETS = [
    SECRET[:-4],
    DATA_KEY.hex(),
    repr(DATA_KEY)[2:-1],
    TOKEN,
    "secret-access-key-of-a-canary",
]


@pytest.fixture
def logged(caplog):
    """Everything that boto3 and we log."""
    for name in ("", "boto3", "botocore", "urllib3", "tapeseal"):
        caplog.set_level(logging.DEBUG, name)
    return caplog


def log_leaks(logged):
    """Return which secrets a log record shows, but for the session token: boto3 logs what it signs."""
    texts = [logged.text, *(repr(vars(record)) for record in logged.records)]
    return {secret for secret in set(SECRETS) - {TOKEN} for text in texts if secret in text}


def test_no_error_shows_a_secret(become, ring, answers):
    """Data key, token and secret key are in no error, its causes, or their frames, whatever KMS repeats."""
    canonical = f"The Canonical String is 'x-amz-security-token:{TOKEN}\n{SECRET}'"
    echo = f"the value {SECRET} and {DATA_KEY.hex()} of {TOKEN}"
    refusals = [
        (WHOLE | {"KeyId": ARN.replace("1234", "4321")}, 200),
        (WHOLE | {"Plaintext": SECRET + "AAAA"}, 200),
        (WHOLE | {"CiphertextBlob": 7}, 200),
        (json.dumps(WHOLE).encode()[:-2], 200),
        ({"__type": "SignatureDoesNotMatch", "message": canonical}, 403),
        ({"__type": "ValidationException", "message": echo}, 400),
        (echo.encode(), 500),
        ({"__type": echo}, 400),
    ]
    ring(ARN)
    become(
        {
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_SECRET_ACCESS_KEY": "secret-access-key-of-a-canary",
        }
    )
    keyring = ring(ARN, endpoint_url=answers.address)
    data_key = given()
    recipient = Recipient("aws-kms", ARN, "AAAA")
    found = []
    for body, status in refusals:
        answers.set(body, status)
        for use in (
            lambda: keyring.generate(CONTEXT),
            lambda: keyring.wrap(data_key, CONTEXT),
            lambda: keyring.unwrap([recipient], CONTEXT),
        ):
            with contextlib.suppress(TapesealError):
                try:
                    use()
                except TapesealError as error:
                    found.append(leaks(error, SECRETS))
                    raise
    assert len(found) > 18
    assert [set()] * len(found) == found


def test_no_data_key_is_logged(kms, ring, key, logged):
    """boto3's own log at its most verbose holds no data key, neither sent nor received."""
    keyring = ring(key)
    recipients = keyring.wrap(given(), CONTEXT)
    keyring.unwrap(recipients, CONTEXT)
    kms.faults({"code": "DisabledException"})
    with pytest.raises(WrappingKeyError):
        keyring.wrap(given(), CONTEXT)
    assert "Encrypt" in logged.text
    assert "Decrypt" in logged.text
    assert set() == log_leaks(logged)


def test_a_keyring_is_not_copied(ring, key):
    """Pickles and copies are refused, and the repr shows what is public."""
    keyring = ring(key)
    for take in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            take(keyring)
    assert f"<AwsKmsKeyring {key} in {REGION}>" == repr(keyring)
    both = ring(key, accounts=[ACCOUNT])
    assert f"<AwsKmsKeyring {key}, any key of account {ACCOUNT} in {REGION}>" == repr(both)


# Clients, forks and settings


def test_a_client_of_ones_own(kms, key, logged):
    """It is used as it is, and the keyring's calls with it are protected."""
    client = kms.client(user=kms.admin_user)
    keyring = AwsKmsKeyring(key, client=client)
    keyring.unwrap(keyring.wrap(given(), CONTEXT), CONTEXT)
    assert REGION == keyring.region
    assert set() == log_leaks(logged)
    sealed = client.encrypt(KeyId=key, Plaintext=b"its own use")
    assert b"its own use" == client.decrypt(CiphertextBlob=sealed["CiphertextBlob"])["Plaintext"]


FORKING = """
    import json, os, sys, warnings
    from tapeseal._core import process_epoch
    from tapeseal.errors import ForkError
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring

    url, key, own = sys.argv[1:]
    options = dict(region="us-east-1", endpoint_url=url, read_timeout=30)
    if own == "own":
        import boto3
        client = boto3.session.Session().client("kms", region_name="us-east-1", endpoint_url=url)
        options = dict(client=client)
    keyring = AwsKmsKeyring(key, **options)
    made, recipients = keyring.generate({})
    mark = made.header_mac(b"t" * 16, b"")
    child = os.fork()
    if child == 0:
        try:
            print(mark == keyring.unwrap(recipients, {}).header_mac(b"t" * 16, b""), flush=True)
        except ForkError as error:
            print("ForkError", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print(mark == keyring.unwrap(recipients, {}).header_mac(b"t" * 16, b""))
"""


@pytest.mark.parametrize(("own", "in_fork"), [("made", "True"), ("own", "ForkError")])
def test_a_fork(kms, become, key, own, in_fork):
    """A fork makes itself a new client, or refuses where it cannot, and the parent goes on with the old one."""
    become(kms.admin_user)
    done = child(FORKING, kms.address, key, own)
    assert (f"{in_fork}\nTrue\n", "") == (done.stdout, done.stderr)


def test_region_and_client_have_to_agree(kms, ring, key):
    """The region comes from the keys' ARNs where it is not given, and none of them may be of another one."""
    assert REGION == ring(key, region=None).region
    elsewhere = key.replace(REGION, "eu-west-1")
    client = kms.client()
    wrong = [
        lambda: ring(elsewhere),
        lambda: ring(key, elsewhere, region=None),
        lambda: AwsKmsKeyring(elsewhere, client=client),
        lambda: AwsKmsKeyring(key, region=REGION, client=client),
        lambda: AwsKmsKeyring(key, endpoint_url=kms.address, client=client),
        lambda: ring("alias/x", region=None),
    ]
    with pytest.raises(ValueError, match="another service"):
        AwsKmsKeyring(key, client=kms.client("iam"))
    for make in wrong:
        with pytest.raises(ValueError, match="region"):
            make()


@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("",),
        ("alias/",),
        ("key/1",),
        ("arn:aws:kms:us-east-1:1:key/1",),
        ("arn:aws:s3:us-east-1:123456789012:key/1",),
        ("1\n",),
        ("a" * 2000,),
        ("http://127.0.0.1/",),
    ],
)
def test_what_is_no_key(ring, keys):
    """What KMS has no name like is refused before a client is made."""
    with pytest.raises(ValueError, match="key"):
        ring(*keys)


@pytest.mark.parametrize("account", ["", "1", "1" * 13, "\u0661" * 12, "aws"])
def test_what_is_no_account(ring, account):
    """An account is its 12 digits, and a filter is never empty."""
    with pytest.raises(ValueError, match="12 digits"):
        ring(accounts=[account])


@pytest.mark.parametrize(
    "url",
    [
        "http://kms.example.com",
        "http://10.0.0.1:4566",
        "http://localhost.example.com",
        "https://user:password@kms.example.com",
        "ftp://localhost",
        "nonsense",
    ],
)
def test_where_a_data_key_would_be_in_the_clear(ring, key, url):
    """Without TLS only loopback is an endpoint, and none carries a password; no error repeats it."""
    with pytest.raises(ValueError, match=r"KMS|clear") as caught:
        ring(key, endpoint_url=url)
    assert "password@" not in str(caught.value)


def test_endpoints_that_are_taken(ring, key):
    """TLS anywhere, and plain HTTP on loopback, are endpoints."""
    for url in ("https://kms.example.com", "http://[::1]:1"):
        ring(key, endpoint_url=url)


def test_uris(kms, become, key, alias, answers):
    """A URI says all that a keyring can be told."""
    become(kms.admin_user)
    start = f"aws-kms:{alias}?region={REGION}&endpoint_url={kms.address}"
    keyring = tapeseal.keyring(start)
    _, recipients = keyring.generate(CONTEXT)
    discovery = tapeseal.keyring(
        f"aws-kms:?region={REGION}&endpoint_url={kms.address}&accounts=999999999999,{ACCOUNT}"
        "&partition=aws&multi_region=true&connect_timeout=5&read_timeout=30&max_attempts=1"
    )
    discovery.unwrap(recipients, CONTEXT)
    assert {"999999999999", ACCOUNT} == discovery.accounts
    settings = discovery._connection._client.meta.config
    assert (5.0, 30.0) == (settings.connect_timeout, settings.read_timeout)
    assert 1 == settings.retries["total_max_attempts"]
    settings = keyring._connection._client.meta.config
    assert (1.0, 2.0) == (settings.connect_timeout, settings.read_timeout)
    assert {"total_max_attempts": 3, "mode": "standard"} == settings.retries
    several = tapeseal.keyring([start, f"aws-kms:{key}?endpoint_url={kms.address}"])
    assert isinstance(several, AnyOf)


@pytest.mark.parametrize(
    "query",
    [
        "password=x",
        "multi_region=yes",
        "read_timeout=soon",
        "read_timeout=nan",
        "connect_timeout=0",
        "max_attempts=1.5",
        "max_attempts=0",
        "accounts=x",
        "region=us%20east",
        "region=us-east-1&endpoint_url=https://:x",
    ],
)
def test_uris_that_are_none(kms, query):
    """A parameter that is unknown, or has no such value, is refused."""
    with pytest.raises(ValueError, match=r"parameter|no value|12 digits|seconds|no client|KMS"):
        tapeseal.keyring(f"aws-kms:alias/x?{query}")


def test_without_boto3():
    """Without boto3 the name is there, and its use says what to install."""
    code = """
        import sys
        sys.modules["boto3"] = None
        import tapeseal
        assert "AwsKmsKeyring" in dir(tapeseal)
        try:
            tapeseal.keyring("aws-kms:alias/x?region=us-east-1")
        except ModuleNotFoundError as error:
            print(error)
    """
    done = child(code)
    assert ("AWS KMS needs boto3: pip install 'tapeseal[aws]'\n", "") == (
        done.stdout,
        done.stderr,
    )
