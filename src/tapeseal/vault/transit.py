"""The Transit engine of Vault or OpenBao as a service: it encrypts, signs and computes HMACs (docs/transit.md)."""

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar

from hvac.exceptions import InvalidPath, InvalidRequest, VaultError

from tapeseal import audit
from tapeseal._core import SecretBuffer
from tapeseal.errors import (
    CiphertextError,
    ServiceUnavailableError,
    SignatureError,
    TapesealError,
    WrappingKeyError,
)
from tapeseal.secret import Secret, in_key_memory
from tapeseal.transport.foreign_text import plain
from tapeseal.vault.connection import said_by
from tapeseal.vault.session import VaultSession

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

PROVIDER: Final = "vault-transit"

# The engine's own rule for a key's name. A mount may have several parts, and none leads elsewhere.
_KEY = re.compile(
    r"((?:(?!\.+/)[A-Za-z0-9_.~-]+/)*(?!\.+/)[A-Za-z0-9_.~-]+)/([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)"
)
# Servers take more: version 0 for 1, leading zeros, line feeds, the other alphabet of base64.
_VERSIONED = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]+={0,2})")

MAX_ITEM_SIZE: Final = 32768
"""The most bytes of one plaintext: an answer has to fit into the transport's 64 KiB."""

# A server's listener takes 1000 strings in a request, and an answer has to fit as above.
_BATCH_ITEMS = 200
_BATCH_SIZE = MAX_ITEM_SIZE
_SIGNATURE_SIZE = 1024
# Nor more than 32 MiB, of which the longest message takes 22.
_REQUEST_SIZE = 24 << 20

_MAX_MESSAGE = 16 << 20

# By the type of key, how it signs here.
_ALGORITHMS = {
    "ecdsa-p256": "ecdsa-p256-sha256",
    "ecdsa-p384": "ecdsa-p384-sha384",
    "rsa-2048": "rsa-pss-sha256",
    "rsa-3072": "rsa-pss-sha256",
    "rsa-4096": "rsa-pss-sha256",
    "ed25519": "ed25519",
}

# What a standby says for a while after a key was made or rotated: up to 0.1 s where it is not busy.
BEHIND: Final = re.compile(r"version is too new|key not found|higher than the latest key version")
BEHIND_SECONDS: Final = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)

# What a server says in a 400 or 404 is all that tells one refusal from another: a pattern, the error, what to do.
KEY_REFUSALS: Final[tuple[tuple[str, type[WrappingKeyError], str], ...]] = (
    (
        r"version is too new|higher than the latest",
        WrappingKeyError,
        "the server has no such version of the key: it was restored from an older state, lags far "
        "behind a rotation, or what it was given was changed",
    ),
    (
        r"too old|less than the minimum",
        WrappingKeyError,
        "this version of the key is retired; lower its min_decryption_version to open once more",
    ),
    (r"soft-deleted", WrappingKeyError, "whoever administers the key can restore it"),
    (r"not found", WrappingKeyError, "check mount, key and namespace; docs/vault.md sets one up"),
)
_REFUSALS: tuple[tuple[str, type[TapesealError | ValueError], str], ...] = (
    (
        r"message authentication failed|unable to decrypt",
        CiphertextError,
        "it or what is bound to it was changed, or another key made it",
    ),
    (
        r"missing 'context'",
        ValueError,
        "the key is a derived one, which takes a context in every call",
    ),
    *KEY_REFUSALS,
    (r"invalid ciphertext", CiphertextError, "it was changed"),
    (r"deletion is not allowed", WrappingKeyError, "configure the key to allow its deletion first"),
    (r"not support|unsupported|non-AEAD", WrappingKeyError, "keys of this type do not do that"),
    (
        r"cannot set|must be|unknown key type|base64|input|parameter",
        ValueError,
        "it does not take this",
    ),
)


def split_key(key: str) -> tuple[str, str]:
    """Return mount and name of a key that is written MOUNT/NAME.

    Raises:
        ValueError: it is not.
    """
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError("a Transit key is named MOUNT/NAME, as in transit/trading-data")
    return found[1], found[2]


def version_of(text: str) -> int:
    """Return which version of a key made a ciphertext, signature or HMAC; 0 where it is not of the one form we take."""
    found = _VERSIONED.fullmatch(text)
    if found is None:
        return 0
    try:
        sealed = base64.b64decode(found[2], validate=True)
    except ValueError:
        return 0
    return int(found[1]) if base64.b64encode(sealed).decode() == found[2] else 0


@dataclass(frozen=True)
class TransitKey:
    """What a server says of a key."""

    name: str
    type: str
    """As the engine calls it: "aes256-gcm96", "ecdsa-p256"."""
    derived: bool
    """Whether each call needs a context, from which the key in use is derived."""
    latest_version: int
    min_decryption_version: int
    min_encryption_version: int
    """0: the latest one."""
    deletion_allowed: bool
    exportable: bool
    auto_rotate_seconds: int
    """Seconds between two rotations; 0: it is rotated by hand."""
    created: dict[int, datetime]
    """When each version was made."""
    public_keys: dict[int, bytes]
    """Of a key that signs, each version's public half in PEM."""

    @property
    def algorithm(self) -> str | None:
        """How it signs here, one of tapeseal.signature.ALGORITHMS; None: not at all."""
        return None if self.derived else _ALGORITHMS.get(self.type)


class Signature(NamedTuple):
    """A signature, and which version of the key made it."""

    signature: bytes
    version: int

    def __str__(self) -> str:
        """Return it as the engine writes it: "vault:v1:…"."""
        return f"vault:v{self.version}:{base64.b64encode(self.signature).decode()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what the engine writes as "vault:v1:…".

        Raises:
            ValueError: it is no such text.
        """
        version = version_of(text)
        if not version:
            raise ValueError("a signature of Transit is written vault:vN:…")
        return cls(base64.b64decode(text.rpartition(":")[2]), version)


class Transit:
    """The keys of one Transit engine.

    Methods of one item raise what goes wrong. Those of a batch return a list with a result or an error for each item,
    in the order of the items; they raise only what concerns all of them. A batch may be of any length: it goes out in
    requests that a server takes.

    Errors of all methods:

    - ServiceUnavailableError: no server gave a whole answer;
    - AccessDeniedError: the token is not valid, or its policies forbid it;
    - WrappingKeyError: the key, or this version of it, is missing, retired, deleted or of another type;
    - ValueError: what the server does not take, such as a derived key without its context.

    Args:
        session: what calls the server. Threads may share both.
        mount: the path of the engine.

    Raises:
        ValueError: it is no path.
    """

    def __init__(self, session: VaultSession, mount: str = "transit") -> None:
        split_key(f"{mount}/key")
        self.session = session
        self.mount = mount
        # Whether keys are derived, which never changes.
        self._derived: dict[str, bool] = {}

    # Encryption

    def encrypt(
        self,
        name: str,
        plaintext: "Buffer | Secret | SecretBuffer",
        *,
        context: bytes = b"",
        associated_data: bytes = b"",
    ) -> str:
        """Encrypt up to 32 KiB under the latest version of a key; longer ones are what tapes and blobs are for.

        The key is looked up first, for a server makes one that is missing, and ignores a context where the key is not
        derived.

        Args:
            name: of the key.
            plaintext: 1 to 32768 bytes.
            context: of a derived key, needed again to decrypt.
            associated_data: bound to the ciphertext, and needed again to decrypt; not in Vault before 1.9.

        Returns:
            The ciphertext: "vault:v1:…".
        """
        with in_key_memory(plaintext) as secret:
            del plaintext  # No traceback is to hold it.
            bound = {"context": context, "associated_data": associated_data}
            return _only(self.encrypt_batch(name, [secret], **bound))

    def encrypt_batch(
        self,
        name: str,
        plaintexts: "Sequence[Buffer | Secret | SecretBuffer]",
        *,
        context: bytes = b"",
        associated_data: bytes = b"",
    ) -> list[str | TapesealError]:
        """Encrypt many plaintexts, in requests of up to 200; see encrypt()."""
        with (
            audit.operation("transit.encrypt", self._label(name), items=len(plaintexts)) as entry,
            ExitStack() as stack,
        ):
            self._check_key(name, context)
            bound = _bound(context=context, associated_data=associated_data)
            items = []
            for each in plaintexts:
                secret = stack.enter_context(in_key_memory(each))
                del each
                if len(secret) > MAX_ITEM_SIZE:
                    raise ValueError(
                        f"Transit is given up to {MAX_ITEM_SIZE} bytes, not {len(secret)}: make a tape or a blob"
                    )
                text = stack.enter_context(Secret(secret.to_base64()))
                items.append(_Item({"plaintext": text, **bound}, len(secret)))
            del plaintexts  # No traceback is to hold them.
            return _noted(
                entry,
                self._batch(
                    "encrypt", name, items, lambda result: _versioned(result, "ciphertext")
                ),
            )

    def decrypt(
        self, name: str, ciphertext: str, *, context: bytes = b"", associated_data: bytes = b""
    ) -> SecretBuffer:
        """Decrypt what encrypt() gave.

        Raises:
            CiphertextError: it does not open: it or what is bound to it was changed, or another key made it.
        """
        return _only(
            self.decrypt_batch(name, [ciphertext], context=context, associated_data=associated_data)
        )

    def decrypt_batch(
        self,
        name: str,
        ciphertexts: Sequence[str],
        *,
        context: bytes = b"",
        associated_data: bytes = b"",
    ) -> list[SecretBuffer | TapesealError]:
        """Decrypt many ciphertexts; see decrypt()."""
        bound = _bound(context=context, associated_data=associated_data)
        with audit.operation("transit.decrypt", self._label(name), items=len(ciphertexts)) as entry:
            items = self._ciphertexts(name, ciphertexts, bound)
            return _noted(
                entry,
                self._batch(
                    "decrypt", name, items, _plaintext, secret=("data.batch_results.*.plaintext",)
                ),
            )

    def rewrap(self, name: str, ciphertext: str, *, context: bytes = b"") -> str:
        """Encrypt by the latest version what an earlier one encrypted, without seeing it; errors as decrypt().

        The engine does not take associated data here: what is bound to some is decrypted and encrypted anew.
        """
        return _only(self.rewrap_batch(name, [ciphertext], context=context))

    def rewrap_batch(
        self, name: str, ciphertexts: Sequence[str], *, context: bytes = b""
    ) -> list[str | TapesealError]:
        """Rewrap many ciphertexts; see rewrap()."""
        with audit.operation("transit.rewrap", self._label(name), items=len(ciphertexts)) as entry:
            items = self._ciphertexts(name, ciphertexts, _bound(context=context))
            return _noted(
                entry,
                self._batch("rewrap", name, items, lambda result: _versioned(result, "ciphertext")),
            )

    # Signatures and HMACs

    def sign(self, name: str, message: bytes, algorithm: str, *, version: int = 0) -> Signature:
        """Sign a message of any length (Ed25519: up to 16 MiB); other than for Ed25519 it is hashed here.

        Args:
            name: of the key.
            message: what is signed.
            algorithm: of the key, see TransitKey.algorithm.
            version: of the key; 0: the latest.
        """
        return _only(self.sign_batch(name, [message], algorithm, version=version))

    def sign_batch(
        self, name: str, messages: Sequence[bytes], algorithm: str, *, version: int = 0
    ) -> list[Signature | TapesealError]:
        """Sign many messages; see sign()."""
        settings = {**_signing(algorithm), **({"key_version": version} if version else {})}
        with audit.operation(
            "transit.sign", self._label(name), items=len(messages), algorithm=algorithm
        ) as entry:
            items = [
                _Item({"input": _to_sign(each, algorithm)}, _SIGNATURE_SIZE) for each in messages
            ]
            return _noted(entry, self._batch("sign", name, items, _signature, settings))

    def verify(self, name: str, message: bytes, signature: Signature, algorithm: str) -> None:
        """Have the server check a signature; tapeseal.signature.check_signature() does it without.

        Raises:
            SignatureError: it is not one of this message by this version of the key.
        """
        _only(self.verify_batch(name, [(message, signature)], algorithm))

    def verify_batch(
        self, name: str, signed: Sequence[tuple[bytes, Signature]], algorithm: str
    ) -> list[TapesealError | None]:
        """Check many signatures, given as messages and signatures; see verify()."""
        with audit.operation(
            "transit.verify", self._label(name), items=len(signed), algorithm=algorithm
        ) as entry:
            items = [
                _Item(
                    {
                        "input": _to_sign(message, algorithm),
                        "signature": str(each),
                    },
                    _SIGNATURE_SIZE,
                )
                for message, each in signed
            ]
            return _noted(
                entry, self._batch("verify", name, items, self._valid(name), _signing(algorithm))
            )

    def hmac(self, name: str, message: "Buffer | Secret | SecretBuffer") -> str:
        """Return the HMAC-SHA-256 of up to 32 KiB by the latest version of a key: "vault:v1:…"."""
        with in_key_memory(message) as secret:
            del message  # No traceback is to hold it.
            return _only(self.hmac_batch(name, [secret]))

    def hmac_batch(
        self, name: str, messages: "Sequence[Buffer | Secret | SecretBuffer]"
    ) -> list[str | TapesealError]:
        """Return the HMACs of many messages; see hmac()."""
        with (
            audit.operation("transit.hmac", self._label(name), items=len(messages)) as entry,
            ExitStack() as stack,
        ):
            items = [self._to_mac(stack, each) for each in messages]
            del messages  # No traceback is to hold them.
            return _noted(
                entry,
                self._batch(
                    "hmac",
                    name,
                    items,
                    lambda result: _versioned(result, "hmac"),
                    {"algorithm": "sha2-256"},
                ),
            )

    def verify_hmac(self, name: str, message: "Buffer | Secret | SecretBuffer", mac: str) -> None:
        """Check an HMAC that hmac() gave.

        Raises:
            SignatureError: it is not one of this message by this key.
        """
        with audit.operation("transit.verify_hmac", self._label(name)), ExitStack() as stack:
            if not version_of(mac):
                raise SignatureError(
                    f"{self._label(name)}: an HMAC of Transit is written vault:vN:…"
                )
            item = self._to_mac(stack, message)
            del message  # No traceback is to hold it.
            item.fields["hmac"] = mac
            _only(self._batch("verify", name, [item], self._valid(name), {"algorithm": "sha2-256"}))

    def random(self, size: int) -> SecretBuffer:
        """Return random bytes from the server.

        Args:
            size: 1 to 32768.
        """
        if not 1 <= size <= MAX_ITEM_SIZE:
            raise ValueError(
                f"the server is asked for 1 to {MAX_ITEM_SIZE} random bytes, not {size}"
            )
        label = f"{self.mount}/random"
        with audit.operation("transit.random", label):
            body = {"bytes": size, "format": "base64"}
            answer = self._request("POST", "random", label, body, secret=("data.random_bytes",))
            return _decoded(_data(answer, label).get("random_bytes"), size)

    # Keys

    def create_key(self, name: str, *, type: str = "aes256-gcm96", derived: bool = False) -> None:
        """Make a key; one that exists stays as it is.

        Args:
            name: letters, digits, "_", "-" and ".".
            type: as the engine calls it.
            derived: each call then needs a context; cannot be changed later.

        Raises:
            WrappingKeyError: it exists, and is of another type.
        """
        with audit.operation("transit.create_key", self._label(name), type=type):
            self._key("POST", name, "", {"type": type, "derived": derived})
            made = self._read(name)
            if (made.type, made.derived) != (type, derived):
                raise WrappingKeyError(
                    f"{self._label(name)}: there is one already, of type {made.type}"
                    f"{' and derived' if made.derived else ''}"
                )

    def read_key(self, name: str) -> TransitKey:
        """Say everything about a key."""
        with audit.operation("transit.read_key", self._label(name)):
            return self._read(name)

    def key_names(self) -> list[str]:
        """Return the names of all keys."""
        label = f"{self.mount}/keys"
        try:
            answer = self._request("LIST", "keys", label)
        except WrappingKeyError:  # a 404 says that there are none
            return []
        return [each for each in _data(answer, label).get("keys") or [] if isinstance(each, str)]

    def rotate_key(self, name: str) -> int:
        """Make a new version of a key and return its number.

        Raises:
            ServiceUnavailableError: also where it is unknown whether it was made; read_key() tells.
        """
        with audit.operation("transit.rotate_key", self._label(name)) as entry:
            before = self._read(name).latest_version
            answer = self._key("POST", name, "/rotate", {}, idempotent=False)
            data = answer.get("data")
            if isinstance(data, dict) and data.get("latest_version"):
                entry.version = version = _parse_key(data, name, self._label(name)).latest_version
                return version
            # Older servers do not say, and a standby that lags behind says the version before.
            for pause in (*BEHIND_SECONDS, None):
                entry.version = version = self._read(name).latest_version
                if version > before:
                    return version
                if pause is not None:
                    time.sleep(pause)
        raise ServiceUnavailableError(
            f"{self._label(name)}: rotated, but its latest version is still {before}"
        )

    def configure_key(
        self,
        name: str,
        *,
        min_decryption_version: int | None = None,
        min_encryption_version: int | None = None,
        deletion_allowed: bool | None = None,
        auto_rotate_seconds: int | None = None,
    ) -> None:
        """Change settings of a key; what is None stays.

        Args:
            name: of the key.
            min_decryption_version: earlier versions open and verify nothing any more.
            min_encryption_version: earlier versions encrypt and sign nothing; 0: only the latest does.
            deletion_allowed: whether delete_key() works.
            auto_rotate_seconds: 3600 or more; 0: never.
        """
        settings = {
            "min_decryption_version": min_decryption_version,
            "min_encryption_version": min_encryption_version,
            "deletion_allowed": deletion_allowed,
            "auto_rotate_period": None
            if auto_rotate_seconds is None
            else f"{auto_rotate_seconds}s",
        }
        changes = {setting: value for setting, value in settings.items() if value is not None}
        if not changes:
            raise ValueError("there is no setting to change")
        with audit.operation("transit.configure_key", self._label(name), **changes):
            self._key("POST", name, "/config", changes)

    def delete_key(self, name: str) -> None:
        """Delete a key with all its versions: what it encrypted can never be opened again."""
        with audit.operation("transit.delete_key", self._label(name)):
            self._key("DELETE", name, "")
            self._derived.pop(name, None)

    # Requests

    def _label(self, name: str) -> str:
        return f"{PROVIDER}:{self.mount}/{name}"

    def _check_key(self, name: str, context: bytes) -> None:
        """See that a key is there, and derived where there is a context."""
        if name not in self._derived:
            self._read(name)
        if context and not self._derived[name]:
            raise ValueError(
                f"{self._label(name)}: the key is not derived, and the server would ignore the context; "
                "give it as associated data"
            )

    def _read(self, name: str) -> TransitKey:
        answer = self._key("GET", name, "")
        key = _parse_key(_data(answer, self._label(name)), name, self._label(name))
        self._derived[name] = key.derived
        return key

    def _key(
        self,
        method: str,
        name: str,
        what: str,
        body: Mapping[str, Any] | None = None,
        *,
        idempotent: bool = True,
    ) -> Mapping[str, Any]:
        split_key(f"{self.mount}/{name}")
        return self._request(
            method, f"keys/{name}{what}", self._label(name), body, idempotent=idempotent
        )

    def _ciphertexts(
        self, name: str, texts: Sequence[str], bound: Mapping[str, str]
    ) -> list["_Item"]:
        return [
            _Item({"ciphertext": text, **bound}, len(text))
            if version_of(text)
            else _Item(
                {},
                0,
                CiphertextError(
                    f"{self._label(name)}: a ciphertext of Transit is written vault:vN:…"
                ),
            )
            for text in texts
        ]

    def _to_mac(self, stack: ExitStack, message: "Buffer | Secret | SecretBuffer") -> "_Item":
        secret = stack.enter_context(in_key_memory(message))
        if len(secret) > MAX_ITEM_SIZE:
            raise ValueError(f"Transit is given up to {MAX_ITEM_SIZE} bytes, not {len(secret)}")
        text = stack.enter_context(Secret(secret.to_base64()))
        return _Item({"input": text}, len(secret))

    def _valid(self, name: str) -> Callable[[Mapping[str, Any]], None]:
        def check(result: Mapping[str, Any]) -> None:
            if result.get("valid") is not True:
                raise SignatureError(
                    f"{self._label(name)}: it is not one of this message by this key"
                )

        return check

    def _batch(
        self,
        operation: str,
        name: str,
        items: "Sequence[_Item]",
        take: Callable[[Mapping[str, Any]], T],
        settings: Mapping[str, Any] | None = None,
        *,
        secret: Sequence[str] = (),
    ) -> list[T | TapesealError]:
        """Have the server do an operation with each item, and return what `take` makes of each result, or its error."""
        split_key(f"{self.mount}/{name}")
        found: list[T | TapesealError] = []
        try:
            for chunk in _chunks(items):
                fields = [item.fields for item in chunk if item.error is None]
                more = dict(settings or {})
                if operation in ("encrypt", "decrypt"):
                    # Otherwise one bad item makes all of the answer an error.
                    more["partial_failure_response_code"] = 200
                results = iter(
                    self._results(operation, name, more, fields, secret) if fields else ()
                )
                found.extend(
                    self._result(operation, name, next(results), take)
                    if item.error is None
                    else item.error
                    for item in chunk
                )
        except BaseException:
            for each in found:
                if isinstance(each, SecretBuffer):
                    each.close()
            raise
        return found

    def _result(
        self,
        operation: str,
        name: str,
        result: Mapping[str, Any],
        take: Callable[[Mapping[str, Any]], T],
    ) -> T | TapesealError:
        try:
            refusal = result.get("error")
            if not refusal:
                return take(result)
            if operation == "verify":
                return SignatureError(f"{self._label(name)}: {plain(str(refusal))}")
            error = _refused(self._label(name), plain(str(refusal)))
        except TapesealError as problem:
            return problem
        if isinstance(error, ValueError) and not isinstance(error, TapesealError):
            raise error
        return error

    def _results(
        self,
        operation: str,
        name: str,
        settings: Mapping[str, Any],
        items: Sequence[Mapping[str, Any]],
        secret: Sequence[str],
    ) -> list[Mapping[str, Any]]:
        """Return what the server answers for each item, of a standby that lags behind what it answers later."""
        results: list[Mapping[str, Any]] = [{}] * len(items)
        left = list(range(len(items)))
        for pause in (*BEHIND_SECONDS, None):
            body = {**settings, "batch_input": [items[number] for number in left]}
            for number, result in zip(left, self._ask(operation, name, body, secret), strict=True):
                results[number] = result
            left = [n for n in left if BEHIND.search(str(results[n].get("error") or ""))]
            if not left or pause is None:
                break
            time.sleep(pause)
        return results

    def _ask(
        self, operation: str, name: str, body: Mapping[str, Any], secret: Sequence[str]
    ) -> list[Mapping[str, Any]]:
        label, count = self._label(name), len(body["batch_input"])
        answer = self._request("POST", f"{operation}/{name}", label, body, secret=secret)
        said = plain(str(answer.get("warnings") or ""))
        if "unrecognized" in said and "associated_data" in said:
            raise WrappingKeyError(f"{label}: the server does not know associated_data: {said!r}")
        results = _data(answer, label).get("batch_results")
        if (
            not isinstance(results, list)
            or len(results) != count
            or not all(isinstance(each, dict) for each in results)
        ):
            raise ServiceUnavailableError(
                f"{label}: the answer has not a result for each of {count} items"
            )
        return results

    def _request(
        self,
        method: str,
        path: str,
        label: str,
        body: Mapping[str, Any] | None = None,
        *,
        secret: Sequence[str] = (),
        idempotent: bool = True,
    ) -> Mapping[str, Any]:
        """Make a request, for a while again where it may be a standby that lags behind."""
        for pause in (*BEHIND_SECONDS, None):
            failure: Exception
            try:
                return self.session.request(
                    method, f"{self.mount}/{path}", body, secret=secret, idempotent=idempotent
                )
            except (InvalidRequest, InvalidPath) as error:
                results = _batch_results(error)
                if results is not None:  # each of them a refusal
                    return {"data": {"batch_results": results}}
                missing = isinstance(error, InvalidPath) and not error.errors
                refusal = "key not found" if missing else said_by(error)
                failure = _refused(label, refusal)
            except VaultError as error:
                refusal = said_by(error)
                unsupported = "unsupported" in refusal
                failure = (
                    _refused(label, refusal)
                    if unsupported
                    else ServiceUnavailableError(
                        f"{label}: the server answered {refusal!r} ({type(error).__name__})"
                    )
                )
            if pause is None or method == "LIST" or not BEHIND.search(refusal):
                break
            time.sleep(pause)
        # Raised here, so that it keeps no exception of hvac's.
        try:
            raise failure
        finally:
            del failure  # Whose traceback holds this frame.

    def __repr__(self) -> str:
        return f"<Transit {self.mount}>"

    def __reduce__(self) -> str:
        raise TypeError("a Transit is neither pickled nor copied")


class _Item(NamedTuple):
    """One item of a batch."""

    fields: dict[str, Any]
    size: int
    """What it counts towards the size of an answer, and of the secrets in a request."""
    error: TapesealError | None = None
    """Why it is not sent."""

    @property
    def sent(self) -> int:
        """The characters that are sent, but for those of a secret."""
        return sum(len(each) for each in self.fields.values() if isinstance(each, str))


def _chunks(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    chunk: list[_Item] = []
    size = sent = 0
    for item in items:
        if chunk and (
            len(chunk) == _BATCH_ITEMS
            or size + item.size > _BATCH_SIZE
            or sent + item.sent > _REQUEST_SIZE
        ):
            yield chunk
            chunk, size, sent = [], 0, 0
        chunk.append(item)
        size += item.size
        sent += item.sent
    if chunk:
        yield chunk


def _noted(entry: audit.operation, results: list[T | TapesealError]) -> list[T | TapesealError]:
    """Return the results of a batch, with those that failed noted in the audit log."""
    failed = [each for each in results if isinstance(each, TapesealError)]
    if failed:
        entry.details["failed"] = len(failed)
        if len(failed) == len(results):
            entry.result = type(failed[0]).__name__
    return results


def _only(results: list[T | TapesealError]) -> T:
    (result,) = results
    if isinstance(result, TapesealError):
        try:
            raise result
        finally:
            del result, results  # The traceback holds this frame.
    return result


def _refused(label: str, refusal: str) -> TapesealError | ValueError:
    said = f"{label}: the server answered {refusal!r}"
    for pattern, kind, advice in _REFUSALS:
        if re.search(pattern, refusal):
            return kind(f"{said}: {advice}")
    return WrappingKeyError(said)


def _batch_results(error: VaultError) -> list[Any] | None:
    """Return the results in the answer of a server that refused all items of a batch."""
    document = getattr(error, "json", None)
    data = document.get("data") if isinstance(document, dict) else None
    results = data.get("batch_results") if isinstance(data, dict) else None
    if not isinstance(results, list):
        return None
    refused = [each for each in results if isinstance(each, dict) and each.get("error")]
    return refused if len(refused) == len(results) else None


def _bound(**parameters: bytes) -> dict[str, str]:
    return {name: base64.b64encode(value).decode() for name, value in parameters.items() if value}


def _data(answer: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    data = answer.get("data")
    if not isinstance(data, dict):
        raise ServiceUnavailableError(
            f"{label}: the answer is empty, or not one of a Transit engine"
        )
    return data


def _versioned(result: Mapping[str, Any], member: str) -> str:
    text = result.get(member)
    if not isinstance(text, str) or not version_of(text):
        raise ServiceUnavailableError(f"the answer holds no whole {member}")
    return text


def _plaintext(result: Mapping[str, Any]) -> SecretBuffer:
    return _decoded(result.get("plaintext"))


def _decoded(text: object, size: int | None = None) -> SecretBuffer:
    """Return the bytes of a secret in base64, which is wiped."""
    if isinstance(text, Secret):
        with text:
            try:
                found = SecretBuffer.from_base64(text.buffer, 0, len(text.buffer))
            except ValueError:
                found = None
        if found is not None and size in (None, len(found)):
            return found
        if found is not None:
            found.close()
    raise ServiceUnavailableError("the answer holds no secret in base64, or one of another size")


def _signing(algorithm: str) -> dict[str, Any]:
    """Return the engine's parameters for an algorithm."""
    match algorithm:
        case "ed25519":
            return {}
        case "ecdsa-p256-sha256" | "ecdsa-p384-sha384":
            hashed = "sha2-" + algorithm[-3:]
            return {"prehashed": True, "hash_algorithm": hashed, "marshaling_algorithm": "asn1"}
        case "rsa-pss-sha256":
            return {
                "prehashed": True,
                "hash_algorithm": "sha2-256",
                "signature_algorithm": "pss",
                "salt_length": "hash",
            }
    raise ValueError(f"Transit is not asked to sign by {algorithm!r}")


def _to_sign(message: bytes, algorithm: str) -> str:
    if algorithm == "ed25519":
        if len(message) > _MAX_MESSAGE:
            raise ValueError(f"Ed25519 signs up to {_MAX_MESSAGE} bytes here, not {len(message)}")
        signed = message
    else:
        signed = hashlib.new(algorithm.rpartition("-")[2], message).digest()
    return base64.b64encode(signed).decode()


def _signature(result: Mapping[str, Any]) -> Signature:
    return Signature.parse(_versioned(result, "signature"))


def _parse_key(data: Mapping[str, Any], name: str, label: str) -> TransitKey:
    created: dict[int, datetime] = {}
    public_keys: dict[int, bytes] = {}
    try:
        for number, version in (data.get("keys") or {}).items():
            if isinstance(version, dict):
                created[int(number)] = datetime.fromisoformat(version["creation_time"])
                if version.get("public_key"):
                    public_keys[int(number)] = _pem(version["public_key"])
            else:
                created[int(number)] = datetime.fromtimestamp(version, UTC)
        key = TransitKey(
            name=str(data["name"]),
            type=str(data["type"]),
            derived=data["derived"],
            latest_version=data["latest_version"],
            min_decryption_version=data["min_decryption_version"],
            min_encryption_version=data["min_encryption_version"],
            deletion_allowed=data["deletion_allowed"],
            exportable=data["exportable"],
            auto_rotate_seconds=data.get("auto_rotate_period") or 0,
            created=created,
            public_keys=public_keys,
        )
        numbers = (key.latest_version, key.min_decryption_version, key.min_encryption_version)
        if (
            key.name != name
            or not isinstance(key.derived, bool)
            or not all(type(each) is int for each in numbers)
        ):
            raise ValueError
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        pass
    else:
        return key
    raise ServiceUnavailableError(f"{label}: what is there is no key of a Transit engine")


def _pem(public_key: str) -> bytes:
    """Return a public key in PEM; an Ed25519 key is given in base64."""
    if public_key.startswith("-----"):
        pem = public_key.encode()
    else:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key, validate=True))
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return pem
