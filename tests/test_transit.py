"""Transit as a service, on a real server: batches, contexts, versions, the policies of docs/transit.md, its command."""

import base64
import copy
import json
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
from servers.fault_proxy import FaultProxy
from support import leaks
from tapeseal import _core, audit
from tapeseal._core import SecretBuffer
from tapeseal.cli import app
from tapeseal.errors import (
    AccessDeniedError,
    CiphertextError,
    ServiceUnavailableError,
    SignatureError,
    TapesealError,
    WrappingKeyError,
)
from tapeseal.secret import Secret
from tapeseal.signature import check_signature
from tapeseal.signing import TransitSigner
from tapeseal.vault import Token, VaultSession, transit
from tapeseal.vault.transit import MAX_ITEM_SIZE, Signature, Transit, split_key, version_of

DOCS = Path(__file__).parents[1] / "docs" / "transit.md"
PASSWORD = b"correct horse battery staple: a canary"


@pytest.fixture(scope="module")
def session(bao):
    with VaultSession(bao.address, login=Token(bao.token)) as session:
        yield session


@pytest.fixture(scope="module")
def engine(bao, session):
    """An engine under two parts of a path, with a key of each kind, as root."""
    bao.admin.sys.enable_secrets_engine("transit", path="services/transit")
    engine = Transit(session, "services/transit")
    engine.create_key("plain")
    engine.create_key("derived", derived=True)
    engine.create_key("sign", type="ecdsa-p256")
    return engine


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    """Do not wait long for a single server to catch up with itself."""
    monkeypatch.setattr(transit, "BEHIND_SECONDS", (0.01,))


def content(secret):
    with secret, memoryview(secret) as view:
        return bytes(view)


def as_root(bao, method, path, **body):
    return bao.admin.adapter.request(method, f"/v1/services/transit/{path}", json=body)


# Encryption


@pytest.mark.server
@pytest.mark.parametrize("size", [1, 31, 4096, MAX_ITEM_SIZE])
def test_what_is_encrypted_opens(engine, size):
    """Up to 32 KiB, given as bytes, a Secret or a SecretBuffer, come back in key memory."""
    plaintext = os.urandom(size)
    for given in (
        plaintext,
        Secret.take(bytearray(plaintext)),
        SecretBuffer.take(bytearray(plaintext)),
    ):
        ciphertext = engine.encrypt("plain", given)
        assert plaintext == content(engine.decrypt("plain", ciphertext))


@pytest.mark.server
def test_a_plaintext_nobody_asked_for(engine, session):
    """A plain request that decrypts returns the plaintext as a Secret, and never something else in its place."""
    ciphertext = engine.encrypt("plain", PASSWORD)
    path = "services/transit/decrypt/plain"
    answer = session.request("POST", path, {"ciphertext": ciphertext})
    with answer["data"]["plaintext"] as plaintext:
        assert PASSWORD == base64.b64decode(plaintext.expose())


@pytest.mark.server
@pytest.mark.parametrize("given", [5, "text", [1, 2]])
def test_what_is_no_bytes_is_refused(engine, given):
    """A number is no plaintext: not as many zeros as it says are encrypted in its place."""
    for work in (engine.encrypt, engine.hmac):
        with pytest.raises(TypeError, match="bytes-like object is required"):
            work("plain", given)


@pytest.mark.server
def test_what_the_engine_itself_holds(bao, engine):
    """What is encrypted here any other client of the engine decrypts, and the other way round."""
    ciphertext = engine.encrypt("plain", PASSWORD)
    theirs = as_root(bao, "POST", "decrypt/plain", ciphertext=ciphertext)["data"]["plaintext"]
    assert PASSWORD == base64.b64decode(theirs)
    plaintext = base64.b64encode(PASSWORD).decode()
    theirs = as_root(bao, "POST", "encrypt/plain", plaintext=plaintext)["data"]["ciphertext"]
    assert PASSWORD == content(engine.decrypt("plain", theirs))


@pytest.mark.server
def test_contexts(engine):
    """A derived key opens with the same context alone, other keys with the same associated data alone."""
    ciphertext = engine.encrypt("derived", PASSWORD, context=b"desk")
    assert PASSWORD == content(engine.decrypt("derived", ciphertext, context=b"desk"))
    assert engine.rewrap("derived", ciphertext, context=b"desk") != ciphertext
    with pytest.raises(CiphertextError, match="message authentication failed"):
        engine.decrypt("derived", ciphertext, context=b"other")
    with pytest.raises(ValueError, match="takes a context in every call"):
        engine.decrypt("derived", ciphertext)
    with pytest.raises(ValueError, match="takes a context in every call"):
        engine.encrypt("derived", PASSWORD)
    bound = engine.encrypt("plain", PASSWORD, associated_data=b"desk")
    assert PASSWORD == content(engine.decrypt("plain", bound, associated_data=b"desk"))
    for other in (b"", b"other"):
        with pytest.raises(CiphertextError, match="message authentication failed"):
            engine.decrypt("plain", bound, associated_data=other)


@pytest.mark.server
def test_a_context_that_would_be_ignored(engine):
    """A context with a key that is not derived, which servers ignore, is refused before anything is sent."""
    with pytest.raises(ValueError, match="not derived, and the server would ignore the context"):
        engine.encrypt("plain", PASSWORD, context=b"desk")


@pytest.mark.server
def test_a_missing_key_is_not_made(bao, engine):
    """To encrypt under a key that is not there makes none, though root may."""
    with pytest.raises(WrappingKeyError, match=r"services/transit/none.*not found"):
        engine.encrypt("none", PASSWORD)
    assert "none" not in engine.key_names()


@pytest.mark.server
def test_what_does_not_open(engine):
    """A changed ciphertext, one of another key and what is none are CiphertextErrors that name the key."""
    ciphertext = engine.encrypt("plain", PASSWORD)
    other = engine.encrypt("derived", PASSWORD, context=b"x")
    flipped = bytearray(base64.b64decode(ciphertext[9:]))
    flipped[20] ^= 1
    for each in (
        f"vault:v1:{base64.b64encode(flipped).decode()}",
        other,
        "vault:v1:AAAA",
        "",
        "hello",
        ciphertext.replace(":v1:", ":v0:"),
        ciphertext.replace(":v1:", ":v01:"),
        ciphertext + "\n",
    ):
        with pytest.raises(CiphertextError, match="vault-transit:services/transit/plain"):
            engine.decrypt("plain", each)
    with pytest.raises(WrappingKeyError, match="no such version"):
        engine.decrypt("plain", ciphertext.replace(":v1:", ":v9:"))


@pytest.mark.server
@pytest.mark.parametrize(
    ("use", "says"),
    [
        (
            lambda engine: engine.encrypt("plain", bytes(MAX_ITEM_SIZE + 1)),
            "32768 bytes, not 32769",
        ),
        (lambda engine: engine.hmac("plain", bytes(MAX_ITEM_SIZE + 1)), "32768 bytes, not 32769"),
        (lambda engine: engine.encrypt("plain", b""), "bytes, not 0"),
        (lambda engine: engine.encrypt("../x", b"x"), "MOUNT/NAME"),
        (lambda engine: engine.decrypt("a/../b", "vault:v1:AAAA"), "MOUNT/NAME"),
        (lambda engine: engine.sign("sign", b"m", "rsa-pkcs1"), "not asked to sign by"),
        (lambda engine: engine.random(0), "1 to 32768"),
        (lambda engine: engine.configure_key("plain"), "no setting"),
        (lambda engine: engine.configure_key("plain", min_decryption_version=99), "does not take"),
        (lambda engine: engine.create_key("x", type="aes"), "does not take|do not do that"),
        (
            lambda engine: engine.sign("sign", bytes((16 << 20) + 1), "ed25519"),
            "up to 16777216 bytes",
        ),
        (lambda engine: Transit(engine.session, "../transit"), "MOUNT/NAME"),
    ],
)
def test_what_is_not_taken(engine, use, says):
    """What the engine would not take is an error that says so."""
    with pytest.raises((ValueError, WrappingKeyError), match=says):
        use(engine)


# Batches


@pytest.mark.server
def test_a_long_batch(engine, monkeypatch):
    """A batch of any length goes out in requests that the server takes, and comes back in its order."""
    plaintexts = [b"number %d" % number for number in range(501)]
    requests = []
    request = engine.session.request

    def counted(method, path, body=None, **more):
        requests.append(len((body or {}).get("batch_input", ())))
        return request(method, path, body, **more)

    monkeypatch.setattr(engine.session, "request", counted)
    ciphertexts = engine.encrypt_batch("plain", plaintexts)
    assert [200, 200, 101] == [count for count in requests if count]
    assert plaintexts == [content(each) for each in engine.decrypt_batch("plain", ciphertexts)]
    rewrapped = engine.rewrap_batch("plain", ciphertexts)
    assert plaintexts == [content(each) for each in engine.decrypt_batch("plain", rewrapped)]
    assert [] == engine.encrypt_batch("plain", [])


@pytest.mark.server
def test_a_batch_of_large_items(engine):
    """Items of up to 32 KiB go out as few as an answer has room for."""
    plaintexts = [os.urandom(size) for size in (MAX_ITEM_SIZE, 1, 20_000, 20_000, MAX_ITEM_SIZE)]
    ciphertexts = engine.encrypt_batch("plain", plaintexts)
    assert plaintexts == [content(each) for each in engine.decrypt_batch("plain", ciphertexts)]
    macs = engine.hmac_batch("plain", plaintexts)
    assert macs == [engine.hmac("plain", each) for each in plaintexts]


@pytest.mark.slow
@pytest.mark.server
def test_a_batch_of_long_messages(engine):
    """What a server takes in one request counts what is signed and what is bound, not the answer alone."""
    engine.create_key("long", type="ed25519")
    messages = [bytes([number]) * (13 << 20) for number in range(3)]
    signatures = engine.sign_batch("long", messages, "ed25519")
    signed = list(zip(messages, signatures, strict=True))
    assert [None] * 3 == engine.verify_batch("long", signed, "ed25519")
    bound = b"a" * (1 << 20)
    ciphertexts = engine.encrypt_batch("plain", [b"x"] * 30, associated_data=bound)
    opened = engine.decrypt_batch("plain", ciphertexts, associated_data=bound)
    assert [b"x"] * 30 == [content(each) for each in opened]


@pytest.mark.server
@pytest.mark.parametrize("bad", [[0], [1], [0, 2], [0, 1, 2]])
def test_a_batch_with_bad_items(engine, bad):
    """Those that do not open are errors in their places, and leave the others alone."""
    good = engine.encrypt_batch("plain", [b"zero", b"one", b"two"])
    items = [
        ("hello", "vault:v1:AAAA", engine.encrypt("derived", b"x", context=b"x"))[number]
        if number in bad
        else good[number]
        for number in range(3)
    ]
    for results in (engine.decrypt_batch("plain", items), engine.rewrap_batch("plain", items)):
        assert bad == [number for number, each in enumerate(results) if isinstance(each, Exception)]
        for number, each in enumerate(results):
            if number in bad:
                assert type(each) is CiphertextError
                assert set() == leaks(each, ["zero", "one", "two"])
            elif not isinstance(each, str):
                assert (b"zero", b"one", b"two")[number] == content(each)


@pytest.mark.server
def test_a_batch_of_signatures(engine):
    """Each message is signed, and checked, alone."""
    messages = [b"message %d" % number for number in range(130)]
    signatures = engine.sign_batch("sign", messages, "ecdsa-p256-sha256")
    pem = engine.read_key("sign").public_keys[1]
    for message, each in zip(messages, signatures, strict=True):
        check_signature(pem, "ecdsa-p256-sha256", message, each.signature)
    signed = list(zip(messages, signatures, strict=True))
    signed[7] = (b"another", signed[7][1])
    signed[8] = (signed[8][0], Signature(b"\x30\x00", 1))
    signed[9] = (signed[9][0], signed[9][1]._replace(version=9))
    results = engine.verify_batch("sign", signed, "ecdsa-p256-sha256")
    assert [7, 8, 9] == [number for number, each in enumerate(results) if each is not None]
    assert {SignatureError} == {type(results[number]) for number in (7, 8, 9)}


class Log:
    """Takes entries of the audit log."""

    def __init__(self):
        self.entries = []

    def check(self):
        pass

    def append(self, entry):
        details = {name: value for name, value in entry.details.items() if name != "sha256"}
        self.entries.append((entry.action, entry.subject, entry.result, details))


@pytest.fixture
def log():
    log = Log()
    audit.start(log)
    yield log
    audit.stop()


@pytest.mark.server
def test_the_audit_log(engine, log):
    """Each operation is noted with what became of it: an item that fails is a failed attempt."""
    key = "vault-transit:services/transit/plain"
    ciphertext = engine.encrypt("plain", PASSWORD)
    engine.decrypt_batch("plain", [ciphertext, "hello"])
    with pytest.raises(CiphertextError):
        engine.decrypt("plain", "hello")
    with pytest.raises(WrappingKeyError):
        engine.encrypt("none", PASSWORD)
    assert [
        ("transit.encrypt", key, "done", {"items": 1}),
        ("transit.decrypt", key, "done", {"items": 2, "failed": 1}),
        ("transit.decrypt", key, "CiphertextError", {"items": 1, "failed": 1}),
        ("transit.encrypt", f"{key[:-5]}none", "WrappingKeyError", {"items": 1}),
    ] == log.entries


# Signatures, HMACs, random bytes


@pytest.mark.server
@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("ecdsa-p256", "ecdsa-p256-sha256"),
        ("ecdsa-p384", "ecdsa-p384-sha384"),
        ("ed25519", "ed25519"),
        ("rsa-2048", "rsa-pss-sha256"),
        ("rsa-3072", "rsa-pss-sha256"),
    ],
)
def test_signatures(engine, kind, algorithm):
    """The engine takes what it signed, and so does anybody with the public key; of another message neither does."""
    engine.create_key(kind, type=kind)
    found = engine.read_key(kind)
    assert (kind, algorithm) == (found.type, found.algorithm)
    for message in (b"", b"m", bytes(1 << 20)):
        made = engine.sign(kind, message, algorithm)
        engine.verify(kind, message, made, algorithm)
        check_signature(found.public_keys[made.version], algorithm, message, made.signature)
        assert made == Signature.parse(str(made))
        with pytest.raises(SignatureError, match=f"services/transit/{kind}"):
            engine.verify(kind, message + b"x", made, algorithm)


@pytest.mark.server
def test_hmacs(engine):
    """An HMAC is checked by the key that made it, for secrets too."""
    mac = engine.hmac("plain", Secret.take(bytearray(PASSWORD)))
    engine.verify_hmac("plain", PASSWORD, mac)
    for message, false in (
        (b"another", mac),
        (PASSWORD, engine.hmac("derived", PASSWORD)),
        (PASSWORD, mac.replace(":v1:", ":v9:")),
        (PASSWORD, "hello"),
    ):
        with pytest.raises(SignatureError, match="services/transit/plain"):
            engine.verify_hmac("plain", message, false)


@pytest.mark.server
def test_random_bytes(engine):
    """They are of the size asked for, and others each time."""
    found = [content(engine.random(size)) for size in (1, 32, 32, MAX_ITEM_SIZE)]
    assert [1, 32, 32, MAX_ITEM_SIZE] == [len(each) for each in found]
    assert found[1] != found[2]


@pytest.mark.server
def test_keys_that_do_not_do_that(engine):
    """A key of another type says so."""
    with pytest.raises(WrappingKeyError, match="keys of this type do not do that"):
        engine.sign("plain", b"m", "ed25519")
    with pytest.raises(WrappingKeyError, match="keys of this type do not do that"):
        engine.encrypt("sign", PASSWORD)
    with pytest.raises(WrappingKeyError, match="check mount, key and namespace"):
        Transit(engine.session, "nowhere").read_key("plain")
    with pytest.raises((WrappingKeyError, ServiceUnavailableError)):
        Transit(engine.session, "secret").read_key("plain")


# Keys


@pytest.mark.server
def test_versions(engine):
    """A key is rotated, its old versions open until they are retired, and rewrapping moves on before that."""
    engine.create_key("versions")
    old = engine.encrypt("versions", PASSWORD)
    assert 2 == engine.rotate_key("versions")
    found = engine.read_key("versions")
    assert (2, 1, [1, 2]) == (
        found.latest_version,
        found.min_decryption_version,
        sorted(found.created),
    )
    assert found.created[1] <= found.created[2]
    new = engine.rewrap("versions", old)
    assert (1, 2) == (version_of(old), version_of(new))
    assert PASSWORD == content(engine.decrypt("versions", old))
    engine.configure_key("versions", min_decryption_version=2, auto_rotate_seconds=86400)
    assert 86400 == engine.read_key("versions").auto_rotate_seconds
    assert PASSWORD == content(engine.decrypt("versions", new))
    with pytest.raises(WrappingKeyError, match="retired"):
        engine.decrypt("versions", old)


@pytest.mark.server
def test_deletion(engine):
    """A key is deleted when that was allowed, and not before."""
    engine.create_key("gone")
    engine.encrypt("gone", PASSWORD)
    with pytest.raises(WrappingKeyError, match="allow its deletion first"):
        engine.delete_key("gone")
    engine.configure_key("gone", deletion_allowed=True)
    engine.delete_key("gone")
    assert "gone" not in engine.key_names()
    with pytest.raises(WrappingKeyError, match="not found"):
        engine.encrypt("gone", PASSWORD)


@pytest.mark.server
def test_a_key_that_exists(engine):
    """To make a key again leaves it as it is; one of another kind is an error."""
    engine.create_key("twice")
    ciphertext = engine.encrypt("twice", PASSWORD)
    engine.create_key("twice")
    assert PASSWORD == content(engine.decrypt("twice", ciphertext))
    with pytest.raises(WrappingKeyError, match="there is one already, of type aes256-gcm96"):
        engine.create_key("twice", type="ed25519")
    with pytest.raises(WrappingKeyError, match="there is one already"):
        engine.create_key("twice", derived=True)


@pytest.mark.server
def test_an_empty_engine(bao, session):
    """An engine without keys has no names."""
    bao.admin.sys.enable_secrets_engine("transit", path="empty")
    assert [] == Transit(session, "empty").key_names()


# Who may do what


@pytest.fixture
def as_role(bao, engine):
    """Make engines of a token with a policy of docs/transit.md for one key, and no other."""
    sessions = []

    def as_role(title, key):
        text = DOCS.read_text(encoding="utf-8")
        rules = re.search(rf"\*\*{title}\*\*.*?```hcl\n(.*?)```", text, re.DOTALL)[1]
        rules = rules.replace('"transit/', '"services/transit/')
        rules = re.sub(
            r"(keys|encrypt|decrypt|rewrap|sign|hmac|verify)/config", rf"\1/{key}", rules
        )
        token = bao.make_token(bao.policy(f"{title}-{key}", rules))
        sessions.append(VaultSession(bao.address, login=Token(token)))
        return Transit(sessions[-1], "services/transit")

    if not DOCS.exists():
        pytest.skip("docs/transit.md is not beside these tests")
    yield as_role
    for each in sessions:
        each.close()


def refused(*uses):
    for use in uses:
        with pytest.raises(AccessDeniedError, match="its policies forbid this"):
            use()


@pytest.mark.server
def test_the_policies_of_ciphertexts(engine, as_role):
    """Who encrypts opens nothing, who decrypts makes nothing, who rewraps does neither; each with one key alone."""
    encryptor, decryptor, rewrapper = (
        as_role(title, "plain") for title in ("encryptor", "decryptor", "rewrapper")
    )
    ciphertext = encryptor.encrypt("plain", PASSWORD)
    again = rewrapper.rewrap("plain", ciphertext)
    assert PASSWORD == content(decryptor.decrypt("plain", again))
    refused(
        lambda: encryptor.decrypt("plain", ciphertext),
        lambda: encryptor.encrypt("derived", PASSWORD, context=b"x"),
        lambda: encryptor.rotate_key("plain"),
        lambda: decryptor.encrypt("plain", PASSWORD),
        lambda: decryptor.rewrap("plain", ciphertext),
        lambda: decryptor.read_key("plain"),
        lambda: rewrapper.decrypt("plain", ciphertext),
        lambda: rewrapper.encrypt("plain", PASSWORD),
        rewrapper.key_names,
    )


@pytest.mark.server
def test_the_policies_of_signatures(engine, as_role):
    """A signer signs by one key and changes nothing; an authenticator makes HMACs alone."""
    signer, authenticator = as_role("signer", "sign"), as_role("authenticator", "sign")
    made = TransitSigner(signer, "sign")
    check_signature(made.public_key(), made.algorithm, b"m", made.sign(b"m"))
    authenticator.verify_hmac("sign", b"m", authenticator.hmac("sign", b"m"))
    refused(
        lambda: signer.sign("plain", b"m", "ed25519"),
        lambda: signer.rotate_key("sign"),
        lambda: signer.hmac("sign", b"m"),
        lambda: signer.configure_key("sign", min_encryption_version=0),
        lambda: authenticator.sign("sign", b"m", "ecdsa-p256-sha256"),
        lambda: authenticator.hmac("plain", b"m"),
    )


@pytest.mark.server
def test_the_rotators_policy(engine, as_role):
    """A rotator rotates and retires, and can neither use the key nor have it deleted or exported."""
    engine.create_key("rotated")
    ciphertext = engine.encrypt("rotated", PASSWORD)
    rotator = as_role("rotator", "rotated")
    assert 2 == rotator.rotate_key("rotated")
    rotator.configure_key("rotated", min_decryption_version=2)
    refused(
        lambda: rotator.configure_key("rotated", deletion_allowed=True),
        lambda: rotator.delete_key("rotated"),
        lambda: rotator.encrypt("rotated", PASSWORD),
        lambda: rotator.decrypt("rotated", ciphertext),
        lambda: rotator.rotate_key("plain"),
    )


# Faults


@pytest.fixture
def faulty(bao):
    """An engine behind a proxy that fails as a test says, and the proxy."""
    with (
        FaultProxy(bao.address) as proxy,
        VaultSession(proxy.address, login=Token(bao.token), deadline=1.5, timeout=0.5) as session,
    ):
        yield Transit(session, "services/transit"), proxy


@pytest.mark.server
def test_a_server_that_comes_back(engine, faulty):
    """What may be repeated is, over answers that were lost; a rotation is not, for that might make two."""
    through, proxy = faulty
    proxy.fault("POST .*encrypt/plain", times=1, status=503)
    ciphertext = through.encrypt("plain", PASSWORD)
    assert PASSWORD == content(engine.decrypt("plain", ciphertext))
    engine.create_key("once")
    proxy.fault("POST .*once/rotate", times=1, reset="after")
    with pytest.raises(ServiceUnavailableError, match="whether it has done what it was asked"):
        through.rotate_key("once")
    assert 2 == engine.read_key("once").latest_version


@pytest.mark.server
def test_a_standby_that_lags_behind(engine, faulty, monkeypatch):
    """Items that a standby does not know yet are asked for again, and those alone."""
    through, proxy = faulty
    monkeypatch.setattr(transit, "BEHIND_SECONDS", (0.01,) * 3)
    new = {"error": "invalid ciphertext: version is too new", "plaintext": ""}
    old = {"plaintext": base64.b64encode(b"one").decode()}
    ciphertexts = engine.encrypt_batch("plain", [b"one", b"two"])
    for status, results in ((400, [new]), (200, [old, new])):  # the one told last goes first
        body = {"data": {"batch_results": results}}
        proxy.fault("POST .*decrypt/plain", times=1, status=status, body=body)
    assert [b"one", b"two"] == [
        content(each) for each in through.decrypt_batch("plain", ciphertexts)
    ]
    proxy.fault("POST .*decrypt/plain", status=400, body={"data": {"batch_results": [new]}})
    with pytest.raises(WrappingKeyError, match="no such version"):
        through.decrypt("plain", ciphertexts[0])


@pytest.mark.server
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": {}},
        {"data": {"batch_results": []}},
        {"data": {"batch_results": [{}]}},
        {"data": {"batch_results": [7]}},
        {"data": {"batch_results": [{"plaintext": "!", "ciphertext": "x"}]}},
        {"data": {"batch_results": [{"plaintext": "", "ciphertext": ""}]}},
        {"data": {"batch_results": [{"plaintext": "AAAA", "ciphertext": "vault:v1:AAAA"}] * 2}},
    ],
)
def test_answers_that_are_none(engine, faulty, body):
    """An answer that is empty, of another form or for another number of items is none, and nothing of it is used."""
    through, proxy = faulty
    ciphertext = engine.encrypt("plain", PASSWORD)
    through.encrypt("plain", PASSWORD)
    proxy.fault("POST .*(encrypt|decrypt|rewrap)/plain", status=200, body=body)
    for use in (
        lambda: through.encrypt("plain", PASSWORD),
        lambda: through.decrypt("plain", ciphertext),
        lambda: through.rewrap("plain", ciphertext),
    ):
        with pytest.raises(ServiceUnavailableError):
            use()


@pytest.mark.server
def test_no_secret_is_shown(engine, faulty):
    """A server that repeats plaintexts in refusals, of a request or an item, has them not raised."""
    through, proxy = faulty
    through.encrypt("plain", PASSWORD)
    text = base64.b64encode(PASSWORD).decode()
    item = {"error": f"no {text}", "plaintext": text}
    for fault in (
        {"status": 400, "body": {"errors": [f"no {text}"]}},
        {"status": 400, "body": {"data": {"batch_results": [item]}}},
        {"status": 200, "body": {"data": {"batch_results": [item]}}},
    ):
        proxy.clear()
        proxy.fault("POST .*/plain", **fault)
        for use in (
            lambda: through.encrypt("plain", SecretBuffer.take(bytearray(PASSWORD))),
            lambda: through.encrypt("plain", PASSWORD),
            lambda: through.decrypt("plain", "vault:v1:AAAA"),
            lambda: through.hmac("plain", PASSWORD),
        ):
            with pytest.raises(TapesealError) as caught:
                use()
            assert set() == leaks(caught.value, [text, PASSWORD.decode()])


USER = """
from tapeseal._core import SecretBuffer
from tapeseal.vault import Token, VaultSession
from tapeseal.vault.transit import Transit

address, token, *ciphertexts = sys.argv[1:]
with VaultSession(address, login=Token(token)) as session:
    engine = Transit(session, "services/transit")
    secrets = [engine.decrypt("plain", ciphertexts[0]), *engine.decrypt_batch("plain", ciphertexts[1:])]
    engine.encrypt_batch("plain", secrets)
    engine.hmac("plain", secrets[0])
stage("in use")
for each in secrets:
    each.close()
stage("closed")
"""


@pytest.mark.server
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/mem")
@pytest.mark.skipif(
    not _core.KEY_SCHEDULES_PROTECTED,
    reason="the system's libcrypto, or a sanitizer, has its own memory",
)
@pytest.mark.slow
def test_where_plaintexts_stand(bao, engine):
    """What is decrypted and encrypted, in batches too, stands in locked pages alone, and nowhere once it is closed."""
    plaintexts = {f"{number}": os.urandom(32) for number in range(5)}
    ciphertexts = engine.encrypt_batch("plain", list(plaintexts.values()))
    scanner = Scanner(plaintexts)
    with memory_child(USER, bao.address, bao.token, *ciphertexts) as process:
        process.wait_for("in use")
        expected = {Hit(number, "raw", protected=True) for number in plaintexts}
        assert expected == scanner.process(process.pid)
        process.go_on_to("closed")
        assert set() == scanner.process(process.pid)


# Small things


@pytest.mark.parametrize(
    "key", ["", "key", "/key", "mount/", "a//b", "../b", "a/../b", "a/b c", "a/b\n", "a/.b", "./b"]
)
def test_names_that_are_none(key):
    """What is no MOUNT/NAME is refused."""
    with pytest.raises(ValueError, match="named MOUNT/NAME"):
        split_key(key)


def test_names():
    """A mount may have several parts."""
    assert ("transit", "orders") == split_key("transit/orders")
    assert ("a/b.c", "d-e_f") == split_key("a/b.c/d-e_f")


@pytest.mark.server
def test_no_copies(engine):
    """An engine is neither pickled nor copied."""
    for way in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            way(engine)
    assert tapeseal.Transit is Transit


# The command line


@pytest.fixture
def run(bao, engine, monkeypatch, capfdbinary, tmp_path):
    monkeypatch.setenv("VAULT_ADDR", bao.address)
    monkeypatch.setenv("VAULT_TOKEN", bao.token)
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capfdbinary.readouterr()
        code = app.run(["vault", "transit", *map(str, arguments)])
        printed = capfdbinary.readouterr()
        return code, printed.out, printed.err.decode()

    return run


BINARY = bytes(range(256)) + b"\r\n\x00"


@pytest.mark.server
def test_encrypting_commands(run):
    """What goes in, of any bytes, comes out; a plaintext's file is its owner's alone, and none is replaced."""
    key = "services/transit/plain"
    Path("p").write_bytes(BINARY)
    assert (0, b"") == run("encrypt", key, "p", "-o", "c")[:2]
    assert (0, BINARY, "") == run("decrypt", key, "c")
    code, out, _ = run("decrypt", key, "c", "-o", "q", "--json")
    assert {"key": key, "output": "q", "bytes": len(BINARY)} == json.loads(out)
    assert (BINARY, 0o600) == (Path("q").read_bytes(), stat.S_IMODE(Path("q").stat().st_mode))
    code, out, err = run("decrypt", key, "c", "-o", "q")
    assert (2, b"", True) == (code, out, "the file exists" in err)
    report = json.loads(run("encrypt", key, "p", "--associated-data", "desk", "--json")[1])
    Path("bound").write_text(report["ciphertext"])
    assert (1, b"") == run("decrypt", key, "bound")[:2]
    assert BINARY == run("decrypt", key, "bound", "--associated-data", "desk")[1]
    derived = "services/transit/derived"
    assert 2 == run("encrypt", derived, "p")[0]
    assert 0 == run("encrypt", derived, "p", "--context", "desk", "-o", "d")[0]
    assert BINARY == run("decrypt", derived, "d", "--context", "desk")[1]


@pytest.mark.server
def test_the_rewrapping_command(run, engine):
    """Each line is rewrapped; one that does not open stays, and has exit code 1."""
    key = "services/transit/lines"
    assert 0 == run("create", key)[0]
    lines = engine.encrypt_batch("lines", [b"one", b"two"])
    assert (0, f"{key}: version 2 is the latest now\n".encode()) == run("rotate", key)[:2]
    Path("old").write_text("\n".join(lines) + "\n")
    code, out, err = run("rewrap", key, "old")
    assert (0, "") == (code, err)
    assert [2, 2] == [version_of(line) for line in out.decode().splitlines()]
    Path("old").write_text(f"{lines[0]}\nhello\n")
    code, out, err = run("rewrap", key, "old", "-o", "new", "--json")
    assert (1, 1, 1) == (code, json.loads(out)["rewrapped"], json.loads(out)["failed"])
    assert "tapeseal: error: old, line 2: " in err
    assert "hello" == Path("new").read_text().splitlines()[1]


@pytest.mark.server
def test_signing_commands(run):
    """A signature and an HMAC are written as the engine does, and checked: exit code 1 for another file's."""
    key = "services/transit/sign"
    Path("m").write_bytes(BINARY)
    Path("other").write_bytes(b"other")
    assert 0 == run("sign", key, "m", "-o", "s")[0]
    assert 0 == run("public-key", key, "-o", "day.pem")[0]
    made = Signature.parse(Path("s").read_text().strip())
    check_signature(Path("day.pem").read_bytes(), "ecdsa-p256-sha256", BINARY, made.signature)
    code, out, _ = run("verify", key, "m", "--signature", "s")
    assert (0, f"m: signed by version 1 of {key} (ecdsa-p256-sha256)\n".encode()) == (code, out)
    assert 1 == run("verify", key, "other", "--signature", "s")[0]
    assert 0 == run("hmac", key, "m", "-o", "h")[0]
    assert 0 == run("verify-hmac", key, "m", "--hmac", "h")[0]
    assert 1 == run("verify-hmac", key, "other", "--hmac", "h")[0]
    assert 2 == run("sign", "services/transit/plain", "m")[0]
    assert 2 == run("public-key", key, "--version", 9)[0]


@pytest.mark.server
def test_key_commands(run, engine):
    """A key is made, shown, configured and listed."""
    key = "services/transit/made"
    code, out, _ = run("create", key, "--type", "ed25519", "--json")
    report = json.loads(out)
    assert (0, "ed25519", 1, ["1"]) == (
        code,
        report["type"],
        report["latest_version"],
        list(report["public_keys"]),
    )
    assert 0 == run("rotate", key, "--json")[0]
    code, out, _ = run("configure", key, "--min-decryption-version", 2, "--auto-rotate-days", 30)
    assert (0, True) == (code, re.search(rb"rotated +every 30 days", out) is not None)
    assert re.search(rb"latest version +2\n", run("show", key)[1])
    assert f"{key}\n".encode() in run("keys", "services/transit")[1]
    code, out, err = run("show", "services/transit/none")
    assert (3, b"", True) == (code, out, "not found" in err)
