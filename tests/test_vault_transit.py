"""VaultTransitKeyring: what it opens and refuses, on a real server, under the policies of docs/vault.md."""

import base64
import copy
import functools
import hashlib
import http.server
import json
import logging
import pickle
import re
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import hvac
import pytest
import requests
from hvac.adapters import JSONAdapter

import tapeseal
from support import TICK, child, ticks
from tapeseal.datakey import DataKey
from tapeseal.errors import (
    AccessDeniedError,
    KeyUnavailableError,
    ServiceUnavailableError,
    TapesealError,
    WrappedKeyError,
    WrappingKeyError,
)
from tapeseal.keyrings import vault_transit
from tapeseal.keyrings.vault_transit import VaultTransitKeyring
from tapeseal.layout import Recipient
from tapeseal.vault.logins import Token
from tapeseal.vault.session import VaultSession

pytestmark = pytest.mark.server

DOCS = Path(__file__).parents[1] / "docs" / "vault.md"
CONTEXT = {"desk": "eq-us", "venue": "XNAS"}
MOUNT = "orders/transit"
DERIVED, PLAIN = f"{MOUNT}/derived", f"{MOUNT}/plain"
NOBODY = hvac.Client("http://127.0.0.1:1", token="", verify=False)
BOTH = pytest.mark.parametrize("key", [DERIVED, PLAIN])


def binding(context):
    """W of docs/format.md, written apart from the package."""
    pairs = sorted((key.encode(), value.encode()) for key, value in context.items())
    parts = (len(part).to_bytes(4, "little") + part for pair in pairs for part in pair)
    return b"tapeseal/v1 wrap\0" + b"".join(parts)


def secret_of(data_key):
    with data_key.secret as secret:
        return bytes(secret)


def data_key_of(raw=bytes(range(32))):
    return DataKey(tapeseal._core.SecretBuffer.take(bytearray(raw)))


def make_key(server, name, mount=MOUNT, **options):
    """Make a Transit key and return its name for a keyring."""
    server.admin.adapter.post(f"/v1/{mount}/keys/{name}", json=options)
    return f"{mount}/{name}"


def client(server, token=None, namespace="", address=None):
    made = hvac.Client(
        address or server.address,
        token=token or server.token,
        verify=server.ca_file or True,
        namespace=namespace,
        timeout=10,
    )
    made.session.trust_env = False
    return made


def post(server, operation, key, **parameters):
    """Call a Transit operation as root, past the keyring."""
    mount, _, name = key.rpartition("/")
    return server.admin.adapter.post(f"/v1/{mount}/{operation}/{name}", json=parameters)["data"]


def raised(kind, function, *arguments):
    with pytest.raises(kind) as caught:
        function(*arguments)
    assert type(caught.value) is kind
    return caught.value


def policy(title, key=DERIVED):
    """Return a policy of docs/vault.md for another key."""
    if not DOCS.exists():
        pytest.skip("docs/vault.md is not beside these tests")
    mount, _, name = key.rpartition("/")
    found = re.search(
        rf"\*\*{title}\*\*.*?```hcl\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    return found[1].replace("trading-data", name).replace('"transit/', f'"{mount}/')


def token_of(server, title, key=DERIVED):
    """Return a token with a policy of docs/vault.md and no other."""
    name = server.policy(re.sub(r"\W", "-", f"{title}-{key}"), policy(title, key))
    return server.make_token(name, no_default_policy=True)


@pytest.fixture(scope="module")
def transit(bao):
    """A server with a Transit engine under two parts of a path, a derived key and one that is not."""
    bao.admin.sys.enable_secrets_engine("transit", path=MOUNT)
    make_key(bao, "derived", derived=True)
    make_key(bao, "plain")
    return bao


@pytest.fixture(scope="module")
def session():
    """Make sessions, by default as root; they are closed in the end."""
    with ExitStack() as stack:

        def make(server, token=None, **options):
            made = VaultSession(
                options.pop("address", None) or server.address,
                login=Token(token or server.token),
                ca_file=server.ca_file,
                **{"namespace": "", "deadline": 2.0, **options},
            )
            return stack.enter_context(made)

        yield make


@pytest.fixture(scope="module")
def ring(transit, session):
    """Make keyrings, by default as root; those of one token share a session."""
    of_token = functools.cache(lambda token: session(transit, token))
    return lambda key=DERIVED, token=None: VaultTransitKeyring(key, of_token(token))


@pytest.fixture
def impatient(monkeypatch):
    """Ask but once more for what may not be there yet."""
    monkeypatch.setattr(vault_transit, "BEHIND_SECONDS", (0.01,))


# What it makes and opens


@BOTH
def test_generated_keys_open(ring, key):
    """A data key opens from its recipient, in another keyring and by the server's own answer."""
    data_key, recipients = ring(key).generate(CONTEXT)
    assert len(recipients) == 1
    assert recipients[0].provider == "vault-transit"
    assert recipients[0].key == key
    assert recipients[0].binding == ("context" if key == DERIVED else "associated_data")
    assert recipients[0].wrapped.startswith("vault:v1:")
    assert secret_of(ring(key).unwrap(recipients, CONTEXT)) == secret_of(data_key)


def test_context_is_the_hash_of_w(transit, ring):
    """A derived key derives from SHA-256(W), as the format says."""
    data_key, recipients = ring().generate(CONTEXT)
    bound = base64.b64encode(hashlib.sha256(binding(CONTEXT)).digest()).decode()
    answer = post(transit, "decrypt", DERIVED, ciphertext=recipients[0].wrapped, context=bound)
    assert base64.b64decode(answer["plaintext"]) == secret_of(data_key)


def test_associated_data_is_w(transit, ring):
    """A key that is not derived takes W for associated data, as the format says."""
    data_key, recipients = ring(PLAIN).generate(CONTEXT)
    bound = base64.b64encode(binding(CONTEXT)).decode()
    answer = post(
        transit, "decrypt", PLAIN, ciphertext=recipients[0].wrapped, associated_data=bound
    )
    assert base64.b64decode(answer["plaintext"]) == secret_of(data_key)


@BOTH
def test_wrap_takes_an_existing_key(ring, key):
    """A data key made elsewhere is wrapped and opens to the same bytes."""
    recipients = ring(key).wrap(data_key_of(), CONTEXT)
    assert secret_of(ring(key).unwrap(recipients, CONTEXT)) == bytes(range(32))


@BOTH
def test_the_largest_context(ring, key):
    """The largest encryption context that the format allows is bound as well."""
    context = {f"{number:04}": "x" * 116 for number in range(64)}
    data_key, recipients = ring(key).generate(context)
    assert secret_of(ring(key).unwrap(recipients, context)) == secret_of(data_key)
    raised(WrappedKeyError, ring(key).unwrap, recipients, context | {"0000": "y"})


def test_key_types(transit, ring):
    """Every symmetric type of key wraps, derived or not; the others are refused."""
    for kind in ("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"):
        for derived in (True, False):
            key = make_key(transit, f"{kind}-{derived}", type=kind, derived=derived)
            recipients = ring(key).wrap(data_key_of(), CONTEXT)
            assert secret_of(ring(key).unwrap(recipients, CONTEXT)) == bytes(range(32))
            raised(WrappedKeyError, ring(key).unwrap, recipients, {})
    for kind in ("rsa-2048", "ecdsa-p256", "ed25519"):
        error = raised(WrappingKeyError, ring(make_key(transit, kind, type=kind)).generate, {})
        assert "aes256-gcm96" in str(error)


def test_tapes(ring, keyring, tmp_path):
    """A tape is written, resumed, read, and moved to a key file and back."""
    path = tmp_path / "day.tape"
    with tapeseal.open(path, "w", keyring=ring(), dtype=TICK, encryption_context=CONTEXT) as tape:
        tape.append(ticks(0, 500))
    with tapeseal.open(path, "a", keyring=ring()) as tape:
        tape.append(ticks(500, 1000))
    tapeseal.rewrap(path, keyring=ring(), to=keyring)
    with pytest.raises(KeyUnavailableError):
        tapeseal.open(path, keyring=ring())
    tapeseal.rewrap(path, keyring=keyring, to=ring(PLAIN))
    with tapeseal.open(path, keyring=ring(PLAIN)) as tape:
        assert (tape[:] == ticks(0, 1000)).all()


@BOTH
def test_threads_share_a_keyring(ring, key):
    """Threads that share a keyring get what one thread gets."""
    shared = ring(key)

    def work(number):
        context = {"thread": str(number)}
        data_key, recipients = shared.generate(context)
        more = shared.wrap(data_key, context)
        return (
            secret_of(data_key)
            == secret_of(shared.unwrap(recipients, context))
            == secret_of(shared.unwrap(more, context))
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))


def test_pending_names_the_recipient(ring):
    """The pending recipient is the one that wrap() gives, without a server."""
    assert VaultTransitKeyring(DERIVED, NOBODY).pending() == [
        Recipient("vault-transit", DERIVED, None)
    ]


# What it refuses


@BOTH
def test_another_context_does_not_open(ring, key):
    """A wrapped key opens under no other encryption context, and none opens another's."""
    shared = ring(key)
    first = shared.generate(CONTEXT)[1]
    second = shared.generate({"desk": "fx"})[1]
    for recipients, context in [
        (first, {"desk": "fx"}),
        (second, CONTEXT),
        (first, {}),
        (first, {**CONTEXT, "more": ""}),
        (first, {"desk": "eq-us"}),
    ]:
        error = raised(WrappedKeyError, shared.unwrap, recipients, context)
        assert key in str(error)


@BOTH
def test_another_key_does_not_open(transit, ring, key):
    """What one key wrapped, another one does not open under its name."""
    other = make_key(transit, f"other-{key[-5:]}", derived=key == DERIVED)
    recipient = ring(key).generate(CONTEXT)[1][0]
    raised(WrappedKeyError, ring(other).unwrap, [recipient._replace(key=other)], CONTEXT)


@BOTH
def test_every_changed_byte_is_noticed(ring, key):
    """A wrapped key of which any byte was changed does not open."""
    shared = ring(key)
    recipient = shared.generate(CONTEXT)[1][0]
    prefix, sealed = recipient.wrapped.rsplit(":", 1)
    raw = base64.b64decode(sealed)
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1
        wrapped = f"{prefix}:{base64.b64encode(changed).decode()}"
        raised(WrappedKeyError, shared.unwrap, [recipient._replace(wrapped=wrapped)], CONTEXT)


def test_a_wrapped_key_has_one_form(transit, ring):
    """Forms that the server takes for the same wrapped key are refused, and never sent."""
    recipient = ring().generate(CONTEXT)[1][0]
    sealed = recipient.wrapped.removeprefix("vault:v1:")
    nobody = VaultTransitKeyring(DERIVED, NOBODY)
    for wrapped in [
        f"vault:v0:{sealed}",
        f"vault:v01:{sealed}",
        f"vault:v+1:{sealed}",
        f"vault:v1:{sealed}\n",
        f"vault:v1:{sealed[:8]}\n{sealed[8:]}",
        f"vault:v1:{sealed.replace('+', '-').replace('/', '_')}-",
        f"vault:v1:{sealed}=",
        f"vault:v9999999999:{sealed}",
        f"vault:v\u0661:{sealed}",
        "vault:v1:QQ",
        "vault:v1:QR==",
        "vault:v1:",
        "",
    ]:
        raised(WrappedKeyError, nobody.unwrap, [recipient._replace(wrapped=wrapped)], CONTEXT)
    for how in (None, "nothing"):
        raised(WrappedKeyError, nobody.unwrap, [recipient._replace(binding=how)], CONTEXT)


def test_the_other_binding_does_not_open(ring):
    """A recipient whose binding was changed does not open."""
    for key, other in [(DERIVED, "associated_data"), (PLAIN, "context")]:
        recipient = ring(key).generate(CONTEXT)[1][0]
        changed = recipient._replace(binding=other)
        raised(WrappedKeyError, ring(key).unwrap, [changed], CONTEXT)


def test_only_configured_keys_are_asked_for(ring):
    """A recipient selects no key but the keyring's own, and no server is asked about others."""
    recipient = ring().generate(CONTEXT)[1][0]
    nobody = VaultTransitKeyring(DERIVED, NOBODY)
    others = [
        recipient._replace(key=PLAIN),
        recipient._replace(key="derived"),
        recipient._replace(key=f"/{DERIVED}"),
        recipient._replace(provider="aws-kms"),
        recipient._replace(wrapped=None),
        recipient._replace(share=(0, 2, 1)),
    ]
    error = raised(KeyUnavailableError, nobody.unwrap, others, CONTEXT)
    assert PLAIN in str(error)


def test_the_first_that_opens_is_taken(ring):
    """Of several recipients of one key, one that was changed does not keep the next from opening."""
    data_key, (good,) = ring().generate(CONTEXT)
    bad = ring().generate({})[1][0]
    assert secret_of(ring().unwrap([bad, good], CONTEXT)) == secret_of(data_key)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_what_is_no_data_key_is_refused(transit, ring, size):
    """Something else that was wrapped by the same key, for the same context, is no data key."""
    bound = base64.b64encode(binding(CONTEXT)).decode()
    plaintext = base64.b64encode(bytes(size)).decode()
    made = post(transit, "encrypt", PLAIN, plaintext=plaintext, associated_data=bound)
    recipient = Recipient("vault-transit", PLAIN, made["ciphertext"], "associated_data")
    with pytest.raises((WrappedKeyError, ServiceUnavailableError)):
        ring(PLAIN).unwrap([recipient], CONTEXT)


@pytest.mark.parametrize(
    "key",
    ["", "transit", "transit/", "/transit/key", "transit//key", "../sys/key", "a/../b/key",
     "transit/a b", "transit/key?x=1", "transit/key#", "transit/ke\ny", "transit/key%2f", "transit/-a",
     "./key", "transit/kéy"],
)  # fmt: skip
def test_names_that_lead_elsewhere(key):
    """A key's name is MOUNT/NAME and nothing that a URL could take for another path."""
    with pytest.raises(ValueError):
        VaultTransitKeyring(key, NOBODY)


# The proof


def unbound(wrapped):
    return Recipient("vault-transit", PLAIN, wrapped, "context")


def test_a_context_that_is_ignored(transit, ring):
    """What a key that is not derived wrapped "under a context" opens under any, and so is refused."""
    made = post(transit, "datakey/plaintext", PLAIN, bits=256, context="AAAA")
    error = raised(WrappingKeyError, ring(PLAIN).unwrap, [unbound(made["ciphertext"])], CONTEXT)
    assert "derived=true" in str(error)


@pytest.mark.parametrize("operation", ["generate", "wrap"])
def test_a_context_that_is_ignored_by_a_key_nobody_may_read(transit, ring, operation):
    """A writer that may not see that a key is not derived does not work with it."""
    name = transit.policy(
        "unread",
        f'path "{MOUNT}/+/plain" {{ capabilities = ["update"] }}\n'
        f'path "{MOUNT}/datakey/plaintext/plain" {{ capabilities = ["update"] }}\n'
        f'path "{MOUNT}/keys/plain" {{ capabilities = ["deny"] }}',
    )
    blind = ring(PLAIN, transit.make_token(name))
    arguments = (CONTEXT,) if operation == "generate" else (data_key_of(), CONTEXT)
    error = raised(WrappingKeyError, getattr(blind, operation), *arguments)
    assert f"{MOUNT}/keys/plain" in str(error)


def test_a_key_nobody_may_read(transit, ring):
    """A derived key works unread."""
    rules = policy("recorder") + policy("rewrapper")
    rules = re.sub(r'path "[^"]*/keys/[^}]*}', "", rules)
    assert "/keys/" not in rules
    blind = ring(DERIVED, transit.make_token(transit.policy("blind", rules)))
    for recipients in (blind.generate(CONTEXT)[1], blind.wrap(data_key_of(), CONTEXT)):
        assert secret_of(ring().unwrap(recipients, CONTEXT))


def test_nothing_to_prove_it_with(transit, ring):
    """A token that may not decrypt at all cannot prove that the key binds, and does not work."""
    rules = policy("recorder").split(f'path "{MOUNT}/decrypt')[0]
    token = transit.make_token(transit.policy("no-proof", rules))
    error = raised(AccessDeniedError, ring(DERIVED, token).generate, CONTEXT)
    assert "docs/vault.md" in str(error)


def test_the_proof_is_made_once(transit, ring):
    """The proof costs a keyring calls at its first use only."""
    with tampered(transit) as proxy:
        shared = VaultTransitKeyring(DERIVED, client(transit, address=proxy.address))
        shared.generate(CONTEXT)
        assert ["keys", "datakey/plaintext", "decrypt", "decrypt"] == proxy.operations
        proxy.operations.clear()
        recipients = shared.generate(CONTEXT)[1]
        shared.unwrap(recipients, CONTEXT)
        shared.wrap(data_key_of(), CONTEXT)
        assert ["datakey/plaintext", "decrypt", "encrypt"] == proxy.operations


# A server that lies, or a gateway in its place


class Tampered(http.server.ThreadingHTTPServer):
    """Hands calls on to a real server, and changes them or the answers on the way."""

    daemon_threads = True

    def __init__(self, upstream, on_request, on_answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.upstream, self.on_request, self.on_answer = upstream, on_request, on_answer
        self.operations = []
        self.session = requests.Session()
        self.session.trust_env = False


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # so that head and body go out together

    def handle_call(self):
        server = self.server
        operation = urlsplit(self.path).path.removeprefix(f"/v1/{MOUNT}/").rpartition("/")[0]
        server.operations.append(operation)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = json.loads(body) if body else {}
        server.on_request(operation, call)
        response = server.session.request(
            self.command,
            server.upstream + self.path,
            json=call or None,
            headers={"X-Vault-Token": self.headers["X-Vault-Token"] or ""},
        )
        status, answer = response.status_code, response.json()
        changed = server.on_answer(operation, call, answer)
        if isinstance(changed, tuple):
            status, answer = changed
        elif changed is not None:
            answer = changed
        raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = handle_call  # noqa: N815

    def log_message(self, *arguments):
        pass


@contextmanager
def tampered(server, on_answer=lambda operation, call, answer: None, on_request=lambda *_: None):
    """Run a server on loopback between the keyring and the real one."""
    proxy = Tampered(server.address, on_request, on_answer)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
        proxy.session.close()


def setting(field, value):
    """Change a field of an answer's data; ... takes it out."""

    def change(answer):
        if value is ...:
            del answer["data"][field]
        else:
            answer["data"][field] = value
        return answer

    return change


def b64(size):
    return base64.b64encode(bytes(size)).decode()


NO_DATA_KEY = {
    "31 bytes": setting("plaintext", b64(31)),
    "33 bytes": setting("plaintext", b64(33)),
    "no bytes": setting("plaintext", ""),
    "no plaintext": setting("plaintext", ...),
    "null": setting("plaintext", None),
    "number": setting("plaintext", 32),
    "list": setting("plaintext", [b64(32)]),
    "no base64": setting("plaintext", "*" * 44),
    "cut base64": setting("plaintext", b64(32)[:-1]),
    "empty": lambda answer: b"",
    "null alone": lambda answer: b"null",
    "list alone": lambda answer: b"[]",
    "no data": lambda answer: {**answer, "data": None},
    "data of a list": lambda answer: {**answer, "data": [answer["data"]]},
    "cut": lambda answer: json.dumps(answer).encode()[:-20],
    "page": lambda answer: b"<html>Sign in</html>",
    "no content": lambda answer: (204, b""),
}
NO_WRAPPED_KEY = {
    "no ciphertext": setting("ciphertext", ...),
    "number for ciphertext": setting("ciphertext", 1),
    "no version": setting("key_version", ...),
    "another version": setting("key_version", 2),
    "version as text": setting("key_version", "1"),
    "version zero": lambda answer: setting(
        "ciphertext", answer["data"]["ciphertext"].replace(":v1:", ":v0:")
    )(answer),
    "something else": setting("ciphertext", "vault:v1:*"),
    "empty ciphertext": setting("ciphertext", ""),
}


@pytest.mark.parametrize("how", [*NO_DATA_KEY, *NO_WRAPPED_KEY])
def test_hostile_data_keys(transit, how):
    """A new data key is taken only if the answer is whole, and its fields are what they must be."""
    change = (NO_DATA_KEY | NO_WRAPPED_KEY)[how]

    def on_answer(operation, call, answer):
        return change(answer) if operation == "datakey/plaintext" else None

    with tampered(transit, on_answer) as proxy:
        ring = VaultTransitKeyring(DERIVED, client(transit, address=proxy.address))
        error = raised(ServiceUnavailableError, ring.generate, CONTEXT)
        assert DERIVED in str(error)


@pytest.mark.parametrize("how", list(NO_WRAPPED_KEY))
def test_hostile_wraps(transit, how):
    """A wrapped key is taken only if the answer is whole."""
    change = NO_WRAPPED_KEY[how]

    def on_answer(operation, call, answer):
        return change(answer) if operation == "encrypt" else None

    with tampered(transit, on_answer) as proxy:
        ring = VaultTransitKeyring(PLAIN, client(transit, address=proxy.address))
        raised(ServiceUnavailableError, ring.generate, CONTEXT)


@pytest.mark.parametrize("how", list(NO_DATA_KEY))
def test_hostile_unwraps(transit, ring, how):
    """An unwrapped key is taken only if the answer is whole and it has 32 bytes."""
    recipients = ring().generate(CONTEXT)[1]
    change = NO_DATA_KEY[how]

    def on_answer(operation, call, answer):
        return change(answer) if operation == "decrypt" else None

    with tampered(transit, on_answer) as proxy:
        ring = VaultTransitKeyring(DERIVED, client(transit, address=proxy.address))
        kind = WrappedKeyError if how in ("31 bytes", "33 bytes") else ServiceUnavailableError
        raised(kind, ring.unwrap, recipients, CONTEXT)


@pytest.mark.parametrize(
    "change",
    [
        setting("derived", ...),
        setting("derived", "true"),
        setting("derived", None),
        setting("name", "another"),
    ],
)
def test_what_is_no_key(transit, change):
    """A description that is not that of the key is not believed."""

    def on_answer(operation, call, answer):
        return change(answer) if operation == "keys" else None

    with tampered(transit, on_answer) as proxy:
        ring = VaultTransitKeyring(DERIVED, client(transit, address=proxy.address))
        raised(WrappingKeyError, ring.generate, CONTEXT)


@pytest.mark.parametrize("operation", ["generate", "wrap"])
def test_a_server_that_calls_a_key_derived(transit, operation):
    """A key that is said to be derived, and is not, is found out by the proof."""

    def on_answer(operation, call, answer):
        return setting("derived", True)(answer) if operation == "keys" else None

    with tampered(transit, on_answer) as proxy:
        ring = VaultTransitKeyring(PLAIN, client(transit, address=proxy.address))
        arguments = (CONTEXT,) if operation == "generate" else (data_key_of(), CONTEXT)
        raised(WrappingKeyError, getattr(ring, operation), *arguments)


@pytest.mark.parametrize("warn", [True, False])
def test_a_server_that_does_not_know_associated_data(transit, warn):
    """A server that ignores associated data is found out, whether it says so or not."""

    def on_request(operation, call):
        call.pop("associated_data", None)

    def on_answer(operation, call, answer):
        if warn and operation == "encrypt":
            ignored = "Endpoint ignored these unrecognized parameters: [associated_data]"
            return {**answer, "warnings": [ignored]}
        return None

    with tampered(transit, on_answer, on_request) as proxy:
        ring = VaultTransitKeyring(PLAIN, client(transit, address=proxy.address))
        error = raised(WrappingKeyError, ring.generate, CONTEXT)
        assert "associated_data" in str(error)
        assert warn == ("decrypt" not in proxy.operations)


def test_a_server_that_only_looks_whether_there_is_a_context(transit, ring):
    """A server that wants a context and opens under any is found out."""
    recipients = ring().generate(CONTEXT)[1]
    right = []

    def on_request(operation, call):
        if operation == "decrypt" and "context" in call:
            right.append(call["context"])
            call["context"] = right[0]

    with tampered(transit, on_request=on_request) as proxy:
        fooled = VaultTransitKeyring(DERIVED, client(transit, address=proxy.address))
        raised(WrappingKeyError, fooled.unwrap, recipients, CONTEXT)


def test_another_refusal_is_no_proof(transit, ring):
    """Only a refusal to open what is bound otherwise is a proof, not any 400."""
    recipients = ring().generate(CONTEXT)[1]
    calls = []

    def on_answer(operation, call, answer):
        calls.append(operation)
        return (400, {"errors": ["refusing to use soft-deleted key"]}) if len(calls) > 1 else None

    with tampered(transit, on_answer) as proxy:
        ring = VaultTransitKeyring(DERIVED, client(transit, address=proxy.address))
        error = raised(WrappingKeyError, ring.unwrap, recipients, CONTEXT)
        assert "soft-deleted" in str(error)


# Missing, deleted, rotated keys


@pytest.mark.parametrize("operation", ["generate", "wrap", "unwrap"])
@pytest.mark.parametrize("may_read", [True, False])
@pytest.mark.usefixtures("impatient")
def test_a_missing_key_is_never_made(transit, ring, operation, may_read):
    """A key that is not there is an error, even where the token could make it."""
    token = None
    if not may_read:
        rules = f'path "{MOUNT}/keys/*" {{ capabilities = ["deny"] }}\n' + "".join(
            f'path "{MOUNT}/{each}/*" {{ capabilities = ["create", "update"] }}\n'
            for each in ("datakey/plaintext", "encrypt", "decrypt")
        )
        token = transit.make_token(transit.policy("maker", rules))
    missing = ring(f"{MOUNT}/missing", token)
    recipient = Recipient("vault-transit", f"{MOUNT}/missing", "vault:v1:AAAA", "context")
    arguments = {
        "generate": (CONTEXT,),
        "wrap": (data_key_of(), CONTEXT),
        "unwrap": ([recipient], CONTEXT),
    }[operation]
    error = raised(WrappingKeyError, getattr(missing, operation), *arguments)
    assert "not found" in str(error)
    names = transit.admin.secrets.transit.list_keys(mount_point=MOUNT)["data"]["keys"]
    assert "missing" not in names


@pytest.mark.usefixtures("impatient")
def test_another_engine_is_no_transit(transit, ring):
    """A mount of another engine, which would store what it is sent, is sent no key."""
    transit.admin.sys.enable_secrets_engine("kv", path="not-transit", options={"version": "1"})
    rings = [ring("not-transit/key"), ring("nowhere/key")]
    for each in rings:
        raised(WrappingKeyError, each.generate, CONTEXT)
        raised(WrappingKeyError, each.wrap, data_key_of(), CONTEXT)
    with pytest.raises(hvac.exceptions.InvalidPath):
        transit.admin.secrets.kv.v1.list_secrets("", mount_point="not-transit")


@pytest.mark.parametrize("derived", [True, False])
def test_rotation(transit, ring, derived):
    """A new version wraps from then on; old ones open until they are retired, and say so then."""
    key = make_key(transit, f"rotated-{derived}", derived=derived)
    admin = transit.admin.secrets.transit
    name = key.rpartition("/")[2]
    shared = ring(key)
    data_key, old = shared.generate(CONTEXT)
    admin.rotate_key(name, mount_point=MOUNT)
    _, new = shared.generate(CONTEXT)
    assert new[0].wrapped.startswith("vault:v2:")
    assert secret_of(shared.unwrap(old, CONTEXT)) == secret_of(data_key)
    # The version is part of what is authenticated: each has a key of its own.
    forged = old[0]._replace(wrapped=old[0].wrapped.replace(":v1:", ":v2:"))
    raised(WrappedKeyError, shared.unwrap, [forged], CONTEXT)
    admin.update_key_configuration(name, min_decryption_version=2, mount_point=MOUNT)
    for each in (shared, ring(key)):
        error = raised(WrappingKeyError, each.unwrap, old, CONTEXT)
        assert "min_decryption_version" in str(error)
    shared.unwrap(new, CONTEXT)
    moved = shared.wrap(data_key, CONTEXT)
    assert secret_of(shared.unwrap(moved, CONTEXT)) == secret_of(data_key)
    admin.update_key_configuration(name, min_decryption_version=1, mount_point=MOUNT)
    assert secret_of(shared.unwrap(old, CONTEXT)) == secret_of(data_key)


@pytest.mark.usefixtures("impatient")
def test_a_version_that_is_not_there(ring):
    """A version that the server does not know in the end is told from a changed key."""
    recipient = ring().generate(CONTEXT)[1][0]
    newer = recipient._replace(wrapped=recipient.wrapped.replace(":v1:", ":v7:"))
    error = raised(WrappingKeyError, ring().unwrap, [newer], CONTEXT)
    assert "version is too new" in str(error)


def test_a_standby_that_lags(transit, ring):
    """A server that does not know a version yet is asked again."""
    data_key, recipients = ring().generate(CONTEXT)
    refusals = [{"errors": ["invalid ciphertext: version is too new"]}] * 3

    def on_answer(operation, call, answer):
        return (400, refusals.pop()) if refusals else None

    with tampered(transit, on_answer) as proxy:
        ring = VaultTransitKeyring(DERIVED, client(transit, address=proxy.address))
        assert secret_of(ring.unwrap(recipients, CONTEXT)) == secret_of(data_key)


@pytest.mark.usefixtures("impatient")
def test_many_versions_that_are_not_there(transit, ring):
    """However many recipients a forger writes, the keyring waits for a new version only once."""
    recipient = ring().generate(CONTEXT)[1][0]
    newer = recipient._replace(wrapped=recipient.wrapped.replace(":v1:", ":v7:"))
    with tampered(transit) as proxy:
        made = VaultTransitKeyring(DERIVED, client(transit, address=proxy.address))
        raised(WrappingKeyError, made.unwrap, [newer] * 64, CONTEXT)
        assert len(proxy.operations) == 64 + len(vault_transit.BEHIND_SECONDS)
        assert secret_of(made.unwrap([newer] * 63 + [recipient], CONTEXT))


def test_soft_delete(transit, ring):
    """A deleted key says so, and works again once it is restored."""
    key = make_key(transit, "deleted", derived=True)
    shared = ring(key)
    data_key, recipients = shared.generate(CONTEXT)
    transit.admin.adapter.delete(f"/v1/{MOUNT}/keys/deleted/soft-delete")
    for each in (shared, ring(key)):
        for operation, *arguments in [
            ("generate", CONTEXT),
            ("wrap", data_key_of(), CONTEXT),
            ("unwrap", recipients, CONTEXT),
        ]:
            error = raised(WrappingKeyError, getattr(each, operation), *arguments)
            assert "soft-deleted" in str(error)
    transit.admin.adapter.post(f"/v1/{MOUNT}/keys/deleted/soft-delete-restore")
    assert secret_of(shared.unwrap(recipients, CONTEXT)) == secret_of(data_key)


# Least privilege


def test_policy_of_a_recorder(transit, ring):
    """The recorder's policy makes data keys, proves that they are bound, and opens nothing."""
    recorder = ring(DERIVED, token_of(transit, "recorder"))
    data_key, recipients = recorder.generate(CONTEXT)
    recorder.generate(CONTEXT)
    raised(AccessDeniedError, recorder.unwrap, recipients, CONTEXT)
    raised(AccessDeniedError, recorder.wrap, data_key_of(), CONTEXT)
    assert secret_of(ring().unwrap(recipients, CONTEXT)) == secret_of(data_key)
    bound = base64.b64encode(hashlib.sha256(binding(CONTEXT)).digest()).decode()
    wrapped = recipients[0].wrapped
    own = client(transit, token_of(transit, "recorder"))
    for call, query in [
        ({"ciphertext": wrapped, "context": bound}, {}),
        ({"ciphertext": wrapped, "Context": bound}, {}),
        ({"batch_input": [{"ciphertext": wrapped, "context": bound}]}, {}),
        ({"ciphertext": wrapped}, {"context": bound}),
    ]:
        with pytest.raises((hvac.exceptions.Forbidden, hvac.exceptions.InvalidRequest)):
            own.adapter.post(f"/v1/{MOUNT}/decrypt/derived", json=call, params=query)


def test_policy_of_a_recorder_of_a_plain_key(transit, ring):
    """The same for a key that is not derived."""
    token = token_of(transit, "recorder of a key that is not derived", PLAIN)
    recorder = ring(PLAIN, token)
    data_key, recipients = recorder.generate(CONTEXT)
    raised(AccessDeniedError, recorder.unwrap, recipients, CONTEXT)
    assert secret_of(ring(PLAIN).unwrap(recipients, CONTEXT)) == secret_of(data_key)


def test_policy_of_a_reader(transit, ring):
    """The reader's policy opens and wraps nothing."""
    data_key, recipients = ring().generate(CONTEXT)
    reader = ring(DERIVED, token_of(transit, "reader"))
    raised(AccessDeniedError, reader.generate, CONTEXT)
    raised(AccessDeniedError, reader.wrap, data_key_of(), CONTEXT)
    assert secret_of(reader.unwrap(recipients, CONTEXT)) == secret_of(data_key)
    raised(WrappedKeyError, reader.unwrap, recipients, {})
    raised(AccessDeniedError, reader.generate, CONTEXT)


def test_policy_of_a_rewrapper(transit, ring, tmp_path):
    """The rewrapper's policies on two keys move a tape from one to the other."""
    new = make_key(transit, "next-year", derived=True)
    rewrapper = ring(DERIVED, token_of(transit, "rewrapper"))
    raised(AccessDeniedError, rewrapper.generate, CONTEXT)
    path = tmp_path / "day.tape"
    with tapeseal.open(path, "w", keyring=ring(), dtype=TICK, encryption_context=CONTEXT) as tape:
        tape.append(ticks(0, 100))
    tapeseal.rewrap(path, keyring=rewrapper, to=ring(new, token_of(transit, "rewrapper", new)))
    with tapeseal.open(path, keyring=ring(new)) as tape:
        assert len(tape) == 100


def test_policy_of_a_key_admin(transit, ring):
    """The key admin's policy makes, rotates, retires and deletes the key, and cannot use it."""
    key = f"{MOUNT}/administered"
    token = token_of(transit, "key admin", key)
    admin = client(transit, token).secrets.transit
    with pytest.raises(hvac.exceptions.Forbidden):
        admin.create_key("administered", exportable=True, derived=True, mount_point=MOUNT)
    with pytest.raises(hvac.exceptions.Forbidden):
        admin.create_key("administered", derived=False, mount_point=MOUNT)
    admin.create_key("administered", derived=True, key_type="aes256-gcm96", mount_point=MOUNT)
    recipients = ring(key).generate(CONTEXT)[1]
    admin.rotate_key("administered", mount_point=MOUNT)
    admin.update_key_configuration("administered", min_decryption_version=2, mount_point=MOUNT)
    for field in ("exportable", "deletion_allowed", "allow_plaintext_backup"):
        with pytest.raises(hvac.exceptions.Forbidden):
            admin.update_key_configuration("administered", mount_point=MOUNT, **{field: True})
    outsider = ring(key, token)
    raised(AccessDeniedError, outsider.generate, CONTEXT)
    raised(AccessDeniedError, outsider.wrap, data_key_of(), CONTEXT)
    raised(AccessDeniedError, outsider.unwrap, recipients, CONTEXT)
    for path in ("export/encryption-key/administered", "backup/administered"):
        with pytest.raises(hvac.exceptions.Forbidden):
            client(transit, token).adapter.get(f"/v1/{MOUNT}/{path}")
    client(transit, token).adapter.delete(f"/v1/{MOUNT}/keys/administered/soft-delete")
    client(transit, token).adapter.post(f"/v1/{MOUNT}/keys/administered/soft-delete-restore")


def test_namespaces(transit, session):
    """A key in a namespace opens there, and not by the key of that name in another."""
    rings = {}
    for name in ("team1", "team2"):
        transit.admin.adapter.post(f"/v1/sys/namespaces/{name}")
        inside = client(transit, namespace=name)
        inside.sys.enable_secrets_engine("transit", path=MOUNT)
        inside.secrets.transit.create_key("derived", derived=True, mount_point=MOUNT)
        rings[name] = VaultTransitKeyring(DERIVED, session(transit, namespace=name))
    data_key, recipients = rings["team1"].generate(CONTEXT)
    assert secret_of(rings["team1"].unwrap(recipients, CONTEXT)) == secret_of(data_key)
    raised(WrappedKeyError, rings["team2"].unwrap, recipients, CONTEXT)
    nowhere = VaultTransitKeyring(DERIVED, session(transit, namespace="team3"))
    with pytest.raises(KeyUnavailableError, match=DERIVED):
        nowhere.unwrap(recipients, CONTEXT)


# Sessions and clients


def test_from_uri(transit, tmp_path, monkeypatch):
    """A URI names key, server, namespace and token file; the environment says what it leaves open."""
    token = tmp_path / "token"
    token.write_text(transit.token)
    token.chmod(0o600)
    made = tapeseal.keyring(
        f"vault-transit:{DERIVED}?address={transit.address}&token_file={token}&namespace="
    )
    assert made.key == DERIVED
    recipients = made.generate(CONTEXT)[1]
    made.session.close()
    monkeypatch.setenv("VAULT_ADDR", transit.address)
    monkeypatch.setenv("VAULT_TOKEN", transit.token)
    made = tapeseal.keyring(f"vault-transit:{DERIVED}")
    made.unwrap(recipients, CONTEXT)
    made.session.close()
    assert transit.token not in repr(made) + repr(vars(made))


@pytest.mark.parametrize(
    "uri", ["vault-transit:", "vault-transit:key", "vault-transit:transit/key?region=eu"]
)
def test_bad_uris(uri):
    """A URI that names no key, or a parameter that there is not, is refused."""
    with pytest.raises(ValueError):
        tapeseal.keyring(uri)


def test_public_name():
    """The keyring is a public name, loaded when it is first used."""
    assert tapeseal.VaultTransitKeyring is VaultTransitKeyring


def test_without_hvac():
    """Without the extra that it needs, the keyring says what to install."""
    answer = child("""
        import sys
        sys.modules["hvac"] = None
        import tapeseal
        tapeseal.keyring("vault-transit:transit/key")
    """)
    assert "pip install 'tapeseal[vault]'" in answer.stderr


def test_no_copies():
    """A keyring is neither copied nor pickled."""
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            function(VaultTransitKeyring(DERIVED, NOBODY))


@BOTH
def test_a_client_of_the_users_own(transit, key):
    """An hvac.Client does, with the token that it has at the time, and stays as it is."""
    own = client(transit, "not yet")
    ring = VaultTransitKeyring(key, own)
    own.token = transit.token
    data_key, recipients = ring.generate(CONTEXT)
    assert secret_of(ring.unwrap(recipients, CONTEXT)) == secret_of(data_key)
    assert own.secrets.transit.list_keys(mount_point=MOUNT)["data"]["keys"]
    assert type(own.adapter) is JSONAdapter
    own.token = "revoked"
    raised(AccessDeniedError, ring.generate, CONTEXT)


def test_a_client_with_another_adapter():
    """A client whose own adapter would see the keys is refused."""

    class Seeing(JSONAdapter):
        pass

    for adapter in (Seeing, hvac.adapters.RawAdapter):
        with pytest.raises(TypeError):
            VaultTransitKeyring(DERIVED, hvac.Client("http://127.0.0.1:1", adapter=adapter))


@pytest.mark.parametrize("through", ["session", "client"])
def test_a_server_that_is_away(transit, session, ring, through):
    """A server that refuses connections is an error that names the recipient."""
    recipients = ring().generate(CONTEXT)[1]
    address = "http://127.0.0.1:1"
    away = (
        client(transit, address=address)
        if through == "client"
        else session(transit, address=address, deadline=0.2)
    )
    for operation, *arguments in [
        ("generate", CONTEXT),
        ("wrap", data_key_of(), CONTEXT),
        ("unwrap", recipients, CONTEXT),
    ]:
        error = raised(
            ServiceUnavailableError,
            getattr(VaultTransitKeyring(DERIVED, away), operation),
            *arguments,
        )
        assert DERIVED in str(error)


def test_a_sealed_server(bao_tls, session):
    """A sealed server, behind TLS, is unavailable and says so; unsealed it serves again."""
    bao_tls.admin.sys.enable_secrets_engine("transit", path="sealed-transit")
    key = make_key(bao_tls, "key", "sealed-transit", derived=True)
    through = [session(bao_tls, deadline=1.0), client(bao_tls)]
    rings = [VaultTransitKeyring(key, each) for each in through]
    recipients = rings[0].generate(CONTEXT)[1]
    rings[1].unwrap(recipients, CONTEXT)
    bao_tls.seal()
    try:
        for each in rings:
            error = raised(ServiceUnavailableError, each.unwrap, recipients, CONTEXT)
            assert "sealed" in str(error)
    finally:
        bao_tls.unseal()
    for each in rings:
        each.unwrap(recipients, CONTEXT)


def test_a_revoked_token(transit, session):
    """A token that is revoked meanwhile is an error that says so."""
    token = token_of(transit, "reader")
    shared = VaultTransitKeyring(DERIVED, session(transit, token))
    recipients = VaultTransitKeyring(DERIVED, session(transit)).generate(CONTEXT)[1]
    shared.unwrap(recipients, CONTEXT)
    transit.admin.auth.token.revoke(token)
    error = raised(AccessDeniedError, shared.unwrap, recipients, CONTEXT)
    assert "token" in str(error)


# Secrets


def held_by(error):
    """Return all that an exception holds: its texts, and the variables of the frames it came through."""
    texts = []
    seen = []
    pending = [error]
    while pending:
        each = pending.pop()
        if each is None or each in seen:
            continue
        seen.append(each)
        pending += [each.__context__, each.__cause__]
        texts += [str(each), repr(each), repr(each.args), repr(vars(each))]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if frame.f_code.co_filename != __file__:
                texts += [f"{name}={value!r}" for name, value in frame.f_locals.items()]
                texts += [repr(vars(v)) for v in frame.f_locals.values() if hasattr(v, "__dict__")]
    return "\n".join(texts)


def echo(call):
    return {"errors": [f"cannot parse: {json.dumps(call)}"], "data": call}


FAULTS = {
    "echo": lambda operation, call, answer: (400, echo(call)),
    "echo 500": lambda operation, call, answer: (500, echo(call)),
    "answer as error": lambda operation, call, answer: (400, {"errors": [json.dumps(answer)]}),
    "answer under a 403": lambda operation, call, answer: (403, answer),
    "no wrapped key": lambda operation, call, answer: setting("ciphertext", None)(answer),
    "cut": lambda operation, call, answer: json.dumps(answer).encode()[:-30],
    "twice": lambda operation, call, answer: (
        json.dumps(answer).replace('"data": {', '"data": {}, "data": {').encode()
    ),
}


@BOTH
@pytest.mark.parametrize("through", ["session", "client"])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_errors_hold_no_secret(transit, session, caplog, key, through, fault):
    """Whatever a server repeats, no error, frame or log line holds a key or the token."""
    caplog.set_level(logging.DEBUG)
    plaintexts = {base64.b64encode(bytes(range(32))).decode(), bytes(range(32)).hex()}

    def on_answer(operation, call, answer):
        data = answer.get("data") or {}
        if "plaintext" in data:
            plaintexts.add(data["plaintext"])
        if operation in ("datakey/plaintext", "encrypt"):
            return FAULTS[fault](operation, call, answer)
        return None

    with tampered(transit, on_answer) as proxy:
        made = (
            client(transit, address=proxy.address)
            if through == "client"
            else session(transit, address=proxy.address, deadline=0.2)
        )
        ring = VaultTransitKeyring(key, made)
        for operation, *arguments in [("generate", CONTEXT), ("wrap", data_key_of(), CONTEXT)]:
            with pytest.raises(TapesealError) as caught:
                getattr(ring, operation)(*arguments)
            held = held_by(caught.value)
            assert key in str(caught.value)
            for secret in [*plaintexts, transit.token]:
                assert secret not in held
                assert secret not in caplog.text


@pytest.mark.parametrize("token", ["two\nlines", "s.t\u014dken"])
def test_a_token_that_cannot_be_sent(transit, token):
    """A client's token that fits into no header is an error without it."""
    ring = VaultTransitKeyring(DERIVED, client(transit, token))
    error = raised(ServiceUnavailableError, ring.generate, CONTEXT)
    held = held_by(error)
    assert token not in held
    assert repr(token)[1:-1] not in held


def test_what_hvac_leaves(transit):
    """The search of the test above finds what hvac's own exceptions hold."""

    def on_answer(operation, call, answer):
        return 400, answer

    with tampered(transit, on_answer) as proxy:
        own = client(transit, address=proxy.address)
        with pytest.raises(hvac.exceptions.InvalidRequest) as caught:
            own.adapter.post(f"/v1/{MOUNT}/datakey/plaintext/derived", json={"context": "AAAA"})
        held = held_by(caught.value)
        assert transit.token in held
        assert re.search(r'"plaintext": "[A-Za-z0-9+/]{43}="', held)


@pytest.fixture(scope="module")
def nodes(session):
    """Make sessions with nodes of a cluster, patient enough for an election on a busy machine."""

    def make(cluster, address):
        return session(cluster, address=address, deadline=60.0)

    return make


def mount_in(nodes, cluster):
    """Return a session with all nodes, each of which has heard of the Transit engine that was mounted."""
    every_node = nodes(cluster, cluster.addresses)

    def mount(client):
        if f"{MOUNT}/" not in client.sys.list_mounted_secrets_engines()["data"]:
            client.sys.enable_secrets_engine("transit", path=MOUNT)

    every_node.call(mount)
    for address in cluster.addresses:
        node = nodes(cluster, address)
        for _ in range(100):
            try:
                node.call(lambda client: client.adapter.post(f"/v1/{MOUNT}/keys/heard"))
                break
            except hvac.exceptions.InvalidPath:
                time.sleep(0.1)
    return every_node


@pytest.mark.slow
def test_standbys_that_lag(bao_cluster, nodes):
    """What one node wrapped by a new version, the others open, however far behind they are."""
    every_node = mount_in(nodes, bao_cluster)
    every_node.call(
        lambda client: client.secrets.transit.create_key("derived", derived=True, mount_point=MOUNT)
    )
    writer = VaultTransitKeyring(DERIVED, nodes(bao_cluster, bao_cluster.active().address))
    readers = [
        VaultTransitKeyring(DERIVED, nodes(bao_cluster, each)) for each in bao_cluster.addresses
    ]
    for _ in range(60):
        every_node.call(
            lambda client: client.secrets.transit.rotate_key("derived", mount_point=MOUNT)
        )
        data_key, recipients = writer.generate(CONTEXT)
        for each in readers:
            assert secret_of(each.unwrap(recipients, CONTEXT)) == secret_of(data_key)


@pytest.mark.slow
def test_a_new_key_on_a_standby(bao_cluster, nodes):
    """A key that was just made is there for a standby that has not heard of it yet."""
    every_node = mount_in(nodes, bao_cluster)
    behind = nodes(bao_cluster, bao_cluster.standbys()[0].address)
    for number in range(40):
        path = f"/v1/{MOUNT}/keys/new{number}"
        every_node.call(lambda client, path=path: client.adapter.post(path, json={"derived": True}))
        VaultTransitKeyring(f"{MOUNT}/new{number}", behind).generate(CONTEXT)
