"""Data keys from the Transit engine of Vault or OpenBao (docs/vault.md)."""

import base64
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    import hvac
    from hvac.adapters import JSONAdapter
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "VaultTransitKeyring needs hvac: pip install 'tapeseal[vault]'", name=error.name
    ) from None

from tapeseal import audit
from tapeseal._core import KEY_SIZE, SecretBuffer
from tapeseal.datakey import DataKey, no_recipient
from tapeseal.errors import (
    AccessDeniedError,
    KeyUnavailableError,
    ServiceUnavailableError,
    WrappedKeyError,
    WrappingKeyError,
)
from tapeseal.layout import Recipient, wrap_binding
from tapeseal.transport import PLACEHOLDER_TEXT, Exchange
from tapeseal.transport.foreign_text import plain
from tapeseal.transport.vault import SecretAdapter
from tapeseal.vault.connection import said_by
from tapeseal.vault.logins import TokenFile
from tapeseal.vault.session import VaultSession
from tapeseal.vault.transit import (
    BEHIND,
    BEHIND_SECONDS,
    KEY_REFUSALS,
    PROVIDER,
    split_key,
    version_of,
)

# How the encryption context is bound (FORMAT 3); both are parameters of the engine by these names.
CONTEXT = "context"
ASSOCIATED_DATA = "associated_data"

_POLICIES = "docs/vault.md states the policies that it takes"

_UNOPENED = r"message authentication failed|unable to decrypt|missing 'context' for key derivation"
# What a server says in a 400 or 404 is all that tells one from another.
_REFUSALS: tuple[tuple[str, type[WrappedKeyError | WrappingKeyError], str], ...] = (
    (
        _UNOPENED,
        WrappedKeyError,
        "the wrapped key or the encryption context was changed, or another key wrapped it",
    ),
    *KEY_REFUSALS,
    (r"invalid ciphertext", WrappedKeyError, "the wrapped key was changed"),
    (
        r"not supported|unsupported|non-AEAD",
        WrappingKeyError,
        "use a Transit key of type aes256-gcm96 with derived=true",
    ),
)


class _Answer(NamedTuple):
    """What the server answered: data, or why it will not."""

    data: Mapping[str, Any]
    warnings: str = ""
    plaintext: SecretBuffer | None = None
    refusal: str = ""


class VaultTransitKeyring:
    """A keyring over one key of a Transit engine of Vault or OpenBao.

    Where the key is derived, the server makes the data keys, and the encryption context goes into
    the derivation; where it is not, they are made here, and it goes along as associated data.
    Servers ignore parameters that they do not know, so at first use the keyring has the server
    refuse to open a wrapped key without its encryption context, and does not work where it opens
    it. What the token must be allowed to do is stated in docs/vault.md. Threads may share it.

    Args:
        key: MOUNT/NAME, as in "transit/trading-data".
        session: what calls the server; None: a VaultSession as the environment says. It may also be
            an hvac.Client: then nothing is tried again, and its timeout is the deadline.

    Raises:
        ValueError: the key is no MOUNT/NAME.
        TypeError: the client has another adapter than hvac's own.
        KeyUnavailableError: no session could be made.
    """

    key: str
    session: VaultSession | hvac.Client

    def __init__(self, key: str, session: VaultSession | hvac.Client | None = None) -> None:
        self._mount, self._name = split_key(key)
        self.key = key
        self.session = VaultSession() if session is None else session
        self._adapter: Any = None
        if not isinstance(self.session, VaultSession):
            self._adapter = _secret_adapter(self.session)
        # How the key binds, once that is proved. Threads that both come first both prove it.
        self._binding: str | None = None

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Make a data key, wrapped by the latest version of the Transit key.

        Raises:
            ServiceUnavailableError: no server gave a whole answer.
            AccessDeniedError: the token is not valid, or its policies forbid it.
            WrappingKeyError: the Transit key is missing, deleted or of a type that cannot wrap, or
                the server does not bind the encryption context.
        """
        with audit.operation("key.generate", self._label) as entry:
            binding = self._binding or self._read_binding() or CONTEXT
            data_key, recipients = self._generate(binding, encryption_context)
            entry.version = version_of(recipients[0].wrapped or "")
        return data_key, recipients

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Wrap an existing data key by the latest version of the Transit key; errors as generate()."""
        with audit.operation("key.wrap", self._label) as entry:
            binding = self._binding or self._read_binding()
            if binding is None:
                # It may not be read, so it may be missing: encrypt would make it, datakey never does.
                trial, _ = self._generate(CONTEXT, encryption_context)
                trial.close()
                binding = CONTEXT
            recipients = self._wrap(data_key, binding, encryption_context)
            entry.version = version_of(recipients[0].wrapped or "")
        return recipients

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Unwrap the data key from the first recipient that the Transit key opens.

        Raises:
            KeyUnavailableError: no recipient names the key.
            WrappedKeyError: one does, and what it wraps or the encryption context was changed.
            ServiceUnavailableError: as generate().
            AccessDeniedError: as generate().
            WrappingKeyError: as generate(), or the version of the key that wrapped it is retired.
        """
        failure: WrappedKeyError | WrappingKeyError | None = None
        for recipient in recipients:
            if recipient.provider != PROVIDER or recipient.key != self.key:
                continue
            if recipient.wrapped is None or recipient.share is not None:
                continue
            try:
                # To wait once is enough: a forger may have written many recipients.
                waits = BEHIND_SECONDS if failure is None else ()
                with audit.operation("key.unwrap", self._label) as entry:
                    entry.version = version_of(recipient.wrapped) or None  # None: it was changed.
                    return self._unwrap(
                        recipient.wrapped, recipient.binding, encryption_context, waits
                    )
            except (WrappedKeyError, WrappingKeyError) as error:
                failure = failure or error
        try:
            raise failure or no_recipient(recipients, f"this keyring has {self._label}")
        finally:
            del failure  # Whose traceback holds this frame.

    def pending(self) -> list[Recipient]:
        """Name the recipient of wrap()."""
        return [Recipient(PROVIDER, self.key, None)]

    def _generate(
        self, binding: str, encryption_context: Mapping[str, str]
    ) -> tuple[DataKey, list[Recipient]]:
        if binding == ASSOCIATED_DATA:
            data_key = DataKey.generate()
            try:
                return data_key, self._wrap(data_key, binding, encryption_context)
            except BaseException:
                data_key.close()
                raise
        bound = _bound(binding, encryption_context)
        answer = self._post("datakey/plaintext", {"bits": 8 * KEY_SIZE, binding: bound})
        data_key = self._data_key(answer, ServiceUnavailableError)
        try:
            return data_key, [self._recipient(answer, binding)]
        except BaseException:
            data_key.close()
            raise

    def _wrap(
        self, data_key: DataKey, binding: str, encryption_context: Mapping[str, str]
    ) -> list[Recipient]:
        parameters = {"plaintext": PLACEHOLDER_TEXT, binding: _bound(binding, encryption_context)}
        return [self._recipient(self._post("encrypt", parameters, data_key.secret), binding)]

    def _unwrap(
        self,
        wrapped: str,
        binding: str | None,
        encryption_context: Mapping[str, str],
        waits: Sequence[float],
    ) -> DataKey:
        if binding not in (CONTEXT, ASSOCIATED_DATA) or not version_of(wrapped):
            raise WrappedKeyError(
                f"{self._label}: the wrapped key was changed: it is not vault:vN:…"
            )
        bound = _bound(binding, encryption_context)
        answer = self._post("decrypt", {"ciphertext": wrapped, binding: bound}, waits=waits)
        # Whoever may encrypt with the key can have other things wrapped as well.
        data_key = self._data_key(answer, WrappedKeyError)
        try:
            self._prove(wrapped, binding)
        except BaseException:
            data_key.close()
            raise
        return data_key

    def _read_binding(self) -> str | None:
        """Return how the key could bind an encryption context; None where it may not be read."""
        path = f"/v1/{self._mount}/keys/{self._name}"
        try:
            answer = self._ask(lambda adapter: _checked(adapter.get(path)))
        except AccessDeniedError:
            return None
        if answer.refusal:
            raise self._refused(answer.refusal)
        derived = answer.data.get("derived")
        if not isinstance(derived, bool) or answer.data.get("name") != self._name:
            raise WrappingKeyError(f"{self._label}: what is there is no key of a Transit engine")
        return CONTEXT if derived else ASSOCIATED_DATA

    def _prove(self, wrapped: str, binding: str) -> None:
        """Have the server refuse to open a wrap without an encryption context, and with another."""
        if self._binding == binding:
            return
        another = base64.b64encode(os.urandom(32)).decode()
        refused = False
        for parameters in ({}, {binding: another}):
            try:
                answer = self._try("decrypt", {"ciphertext": wrapped, **parameters})
            except AccessDeniedError:
                # A writer may be allowed the first alone, which opens nothing that is bound.
                if parameters and not refused:
                    raise
                continue
            if answer.plaintext is not None:
                answer.plaintext.close()
                raise WrappingKeyError(
                    f"{self._label}: the server opens what it wrapped under another encryption "
                    "context too; use a key made with derived=true, or let the token read "
                    f"{self._mount}/keys/{self._name} on a server that knows {ASSOCIATED_DATA}"
                )
            if not re.search(_UNOPENED, answer.refusal):
                raise self._refused(answer.refusal)
            refused = True
        self._binding = binding

    def _recipient(self, answer: _Answer, binding: str) -> Recipient:
        """Check what the server says that it wrapped."""
        wrapped = answer.data.get("ciphertext")
        version = answer.data.get("key_version")
        if not isinstance(wrapped, str) or not version or version != version_of(wrapped):
            raise ServiceUnavailableError(f"{self._label}: the answer holds no whole wrapped key")
        if "unrecognized" in answer.warnings and binding in answer.warnings:
            raise WrappingKeyError(
                f"{self._label}: the server does not know {binding}: {answer.warnings!r}"
            )
        self._prove(wrapped, binding)
        return Recipient(PROVIDER, self.key, wrapped, binding)

    def _data_key(
        self, answer: _Answer, otherwise: type[ServiceUnavailableError | WrappedKeyError]
    ) -> DataKey:
        assert answer.plaintext is not None
        size = len(answer.plaintext)
        if size != KEY_SIZE:
            answer.plaintext.close()
            raise otherwise(f"{self._label}: a data key has {KEY_SIZE} bytes, the server's {size}")
        return DataKey(answer.plaintext)

    def _post(
        self,
        operation: str,
        parameters: Mapping[str, Any],
        secret: SecretBuffer | None = None,
        waits: Sequence[float] | None = None,
    ) -> _Answer:
        """Have the server do an operation with the key."""
        answer = self._try(operation, parameters, secret, waits)
        if answer.refusal:
            raise self._refused(answer.refusal)
        return answer

    def _try(
        self,
        operation: str,
        parameters: Mapping[str, Any],
        secret: SecretBuffer | None = None,
        waits: Sequence[float] | None = None,
    ) -> _Answer:
        path = f"/v1/{self._mount}/{operation}/{self._name}"

        def call(adapter: JSONAdapter) -> _Answer:
            with Exchange(send=secret) as exchange:
                answer = _checked(adapter.post(path, json=dict(parameters)))
                if operation == "encrypt":
                    return answer
                return answer._replace(plaintext=exchange.take("plaintext"))

        return self._ask(call, waits)

    def _ask(
        self, call: Callable[[JSONAdapter], _Answer], waits: Sequence[float] | None = None
    ) -> _Answer:
        """Call the server, for a while again where it may be a standby that lags behind."""
        answer = self._ask_once(call)
        for seconds in BEHIND_SECONDS if waits is None else waits:
            if not BEHIND.search(answer.refusal):
                break
            time.sleep(seconds)
            answer = self._ask_once(call)
        return answer

    def _ask_once(self, call: Callable[[JSONAdapter], _Answer]) -> _Answer:
        # Errors are raised outside of the handlers, so that they keep no exception of hvac's or
        # requests', in whose frames the token is.
        failure: KeyUnavailableError
        try:
            if isinstance(self.session, VaultSession):
                return self.session.call(lambda client: call(client.adapter))
            self._adapter.token = self.session.token
            return call(self._adapter)
        except AccessDeniedError as error:
            failure = AccessDeniedError(f"{self._label}: {error}; {_POLICIES}")
        except KeyUnavailableError as error:
            failure = type(error)(f"{self._label}: {error}")
        except hvac.exceptions.Forbidden as error:
            failure = AccessDeniedError(
                f"{self._label}: the server answered {said_by(error)!r}: the token is not valid, "
                f"or its policies forbid this; {_POLICIES}"
            )
        except hvac.exceptions.InvalidPath as error:
            return _Answer({}, refusal=said_by(error) if error.errors else "key not found")
        except hvac.exceptions.VaultError as error:
            said = said_by(error)
            if isinstance(error, hvac.exceptions.InvalidRequest) or "unsupported" in said:
                return _Answer({}, refusal=said)
            failure = ServiceUnavailableError(
                f"{self._label}: the server answered {said!r} ({type(error).__name__})"
            )
        except (OSError, UnicodeError) as error:  # requests' own are OSErrors
            # Those that are ValueErrors too may repeat a token that does not fit into a header.
            said = "" if isinstance(error, ValueError) else f": {plain(str(error))}"
            failure = ServiceUnavailableError(f"{self._label}: {type(error).__name__}{said}")
        try:
            raise failure
        finally:
            del failure  # Whose traceback holds this frame.

    def _refused(self, refusal: str) -> WrappedKeyError | WrappingKeyError:
        said = f"{self._label}: the server answered {refusal!r}"
        for pattern, kind, advice in _REFUSALS:
            if re.search(pattern, refusal):
                return kind(f"{said}: {advice}")
        return WrappingKeyError(said)

    @property
    def _label(self) -> str:
        return f"{PROVIDER}:{self.key}"

    def __repr__(self) -> str:
        return f"<VaultTransitKeyring {self.key}>"

    def __reduce__(self) -> str:
        raise TypeError("a VaultTransitKeyring is neither pickled nor copied")


def from_uri(key: str, parameters: Mapping[str, str]) -> VaultTransitKeyring:
    """Make the keyring of `vault-transit:MOUNT/NAME?NAME=VALUE`, with a session of its own.

    Args:
        key: MOUNT/NAME.
        parameters: any of address (several with commas between them), namespace, ca_file and
            token_file; the environment says what they leave open.

    Raises:
        ValueError: other parameters, or one, or a variable of the environment, that cannot be used.
    """
    return VaultTransitKeyring(key, session_of(parameters, "keyring"))


def session_of(parameters: Mapping[str, str], what: str) -> VaultSession:
    """Make the session of what follows the question mark of a vault-transit: address; errors as from_uri().

    Args:
        parameters: as from_uri().
        what: what the address is of, in errors: "keyring".
    """
    known = ("address", "namespace", "ca_file", "token_file")
    unknown = sorted(parameters.keys() - set(known))
    if unknown:
        raise ValueError(
            f"a vault-transit {what} has no parameter {unknown[0]!r}, only {', '.join(known)}"
        )
    address, token_file = parameters.get("address"), parameters.get("token_file")
    return VaultSession(
        None if address is None else address.split(","),
        login=None if token_file is None else TokenFile(Path(token_file)),
        namespace=parameters.get("namespace"),
        ca_file=parameters.get("ca_file"),
    )


def _bound(binding: str, encryption_context: Mapping[str, str]) -> str:
    """Return what binds an encryption context: the value of the engine's parameter of that name."""
    value = wrap_binding(encryption_context)
    if binding == CONTEXT:
        value = hashlib.sha256(value).digest()
    return base64.b64encode(value).decode()


def _secret_adapter(client: hvac.Client) -> SecretAdapter:
    """Return an adapter with the client's settings that keeps keys out of Python objects."""
    theirs = client.adapter
    if isinstance(theirs, SecretAdapter):
        return theirs
    if type(theirs) is not JSONAdapter:
        raise TypeError("the hvac.Client of a keyring has hvac's JSONAdapter, and this one has not")
    # Not from_adapter(), which would change the client's own connections too.
    ours = SecretAdapter(theirs.base_uri, namespace=theirs.namespace, **theirs._kwargs)
    ours.session.trust_env = theirs.session.trust_env
    return ours


def _checked(response: Any) -> _Answer:
    """Check that hvac gave an answer with data; it gives a Response where the body is not JSON."""
    if isinstance(response, dict) and isinstance(response.get("data"), dict):
        return _Answer(response["data"], plain(str(response.get("warnings") or "")))
    raise ServiceUnavailableError("the answer is empty, or not one of a Transit engine")
