"""Wrapping keys in AWS KMS (docs/aws.md)."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from math import inf
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tapeseal import audit
from tapeseal._core import SecretBuffer, process_epoch
from tapeseal.datakey import DataKey, first_few, no_recipient
from tapeseal.errors import (
    AccessDeniedError,
    ForkError,
    InvalidTag,
    KeyUnavailableError,
    ServiceUnavailableError,
    TapesealError,
    WrappedKeyError,
    WrappingKeyError,
)
from tapeseal.layout import KEY_SIZE, Recipient, check_context
from tapeseal.transport import PLACEHOLDER, Exchange
from tapeseal.transport.foreign_text import plain

PROVIDER = "aws-kms"

# What sets our wraps apart from all else that is encrypted under the same key (FORMAT 3).
_MARK = {"tapeseal:v1": "wrap"}
# The most that Decrypt takes; in base64 that is the most that a header holds.
MAX_BLOB_SIZE = 6144

_ARN = re.compile(
    r"arn:(aws[a-z-]{0,24}):kms:([a-z0-9-]{1,32}):([0-9]{12}):"
    r"(key/[0-9A-Za-z-]{1,128}|alias/[0-9A-Za-z/_-]{1,250})"
)
_KEY_ID = re.compile(r"[0-9A-Za-z-]{1,128}|alias/[0-9A-Za-z/_-]{1,250}")
_ACCOUNT = re.compile(r"[0-9]{12}")


class _Arn(NamedTuple):
    partition: str
    region: str
    account: str
    resource: str

    def __str__(self) -> str:
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:{self.resource}"


class AwsKmsKeyring:
    """A keyring over keys of AWS KMS in one region: the first generates, all wrap, each unwraps.

    A tape names its keys by their ARNs. An ARN only selects one of the keys given here, or one that
    `accounts` admits; where to call is never taken from a tape. An alias is resolved by the first
    answer to it and stands for that key from then on. Threads may share a keyring, and with it one
    boto3 client; a fork makes itself a new client.

    Args:
        keys: ids, ARNs, aliases or ARNs of aliases, in the order in which tapes are to name them.
        region: where they are; None: the region of the ARNs among them, or as boto3 finds it.
        endpoint_url: another address than the region's own; https, or http on loopback.
        accounts: unwrap what any key of these accounts wrapped (discovery).
        partition: the partition of these accounts.
        multi_region: a multi-region key is the same key in every region, and the one of `region`
            unwraps what its like in another region wrapped.
        connect_timeout: seconds to connect.
        read_timeout: seconds until an answer is whole.
        max_attempts: how often a call is tried in all, in botocore's mode "standard".
        client: a boto3 KMS client to use as it is, in place of region, endpoint and timeouts. The
            secrets of this keyring's calls are kept from Python; those of your own calls are not.

    Raises:
        ValueError: a key, region, endpoint or account is none, or there is neither key nor account.
        AccessDeniedError: boto3 found credentials or a profile that cannot be used.
        ModuleNotFoundError: boto3 is not installed.
    """

    keys: tuple[str, ...]
    region: str

    def __init__(
        self,
        keys: str | Sequence[str] = (),
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        accounts: Sequence[str] = (),
        partition: str = "aws",
        multi_region: bool = False,
        connect_timeout: float = 1.0,
        read_timeout: float = 2.0,
        max_attempts: int = 3,
        client: Any = None,
    ) -> None:
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        self.accounts = frozenset(accounts)
        self.partition = partition
        self.multi_region = multi_region
        if not self.keys and not self.accounts:
            raise ValueError("an aws-kms keyring needs a key: its id, its ARN or an alias")
        arns = [arn for arn in map(_parse_arn, self.keys) if arn is not None]
        for key in self.keys:
            if not _ARN.fullmatch(key) and not _KEY_ID.fullmatch(key):
                raise ValueError("an aws-kms key is an id, alias/NAME, or the ARN of either")
        for account in self.accounts:
            if not _ACCOUNT.fullmatch(account):
                raise ValueError("accounts are given by their ids of 12 digits")
        if not (0 < connect_timeout < inf and 0 < read_timeout < inf and max_attempts >= 1):
            raise ValueError("timeouts are seconds above 0, and there is at least one attempt")
        if client is None:
            if region is None and arns:
                region = arns[0].region
            if endpoint_url is not None:
                _check_endpoint(endpoint_url)
            options = {"connect_timeout": connect_timeout, "read_timeout": read_timeout}
            self._make_client: Callable[[], Any] | None = partial(
                _make_client, region, endpoint_url, max_attempts, options
            )
            client = self._make_client()
        else:
            if region is not None or endpoint_url is not None:
                raise ValueError("a client of your own has its own region and endpoint")
            if client.meta.service_model.service_name != "kms":
                raise ValueError("the client is one of boto3's for another service than KMS")
            from tapeseal.transport.aws import protect_boto3

            self._make_client = None
            protect_boto3(client)
        self._client = client
        self._epoch = process_epoch()
        self.region = client.meta.region_name
        _check_endpoint(client.meta.endpoint_url)
        for arn in arns:
            if arn.region != self.region:
                raise ValueError(
                    f"the key {arn} is not in {self.region}: give each region a keyring of its own"
                )
        # What aliases and plain ids turned out to stand for.
        self._resolved: dict[str, str] = {}

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Have KMS make a data key under the first key (GenerateDataKey), and the other keys wrap it (Encrypt).

        Raises:
            ServiceUnavailableError: KMS cannot be reached, throttles, fails, or gave no whole answer.
            AccessDeniedError: no valid credentials, a policy forbids the call, or KMS refused it
                for a reason unknown here.
            WrappingKeyError: a key is missing, disabled, pending deletion or of another kind.
            KeyUnavailableError: this keyring has accounts alone.
            ValueError: the pairs are no encryption context.
            ForkError: this process is a fork of the one that gave the keyring a client of its own.
        """
        check_context(encryption_context)
        self._check_has_keys()
        key, *others = self.keys
        with audit.operation("key.generate", f"{PROVIDER}:{key}") as entry:
            answer, secret = self._call(
                "GenerateDataKey",
                key,
                {"KeySpec": "AES_256", "EncryptionContext": {**encryption_context, **_MARK}},
                takes=True,
            )
            data_key = self._data_key(secret, key)
            try:
                first = self._recipient(key, answer)
            except BaseException:
                data_key.close()
                raise
            entry.subject = f"{PROVIDER}:{first.key}"
        try:
            more = [self._wrap(other, data_key, encryption_context) for other in others]
        except BaseException:
            data_key.close()
            raise
        return data_key, [first, *more]

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Have every key wrap an existing data key (Encrypt); errors as generate()."""
        check_context(encryption_context)
        self._check_has_keys()
        return [self._wrap(key, data_key, encryption_context) for key in self.keys]

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Have KMS unwrap the data key (Decrypt) from the first recipient that a key of ours opens.

        Where KMS is away no further recipient is tried.

        Raises:
            WrappedKeyError: a recipient names a key of ours, and what it wraps or the encryption
                context was changed.
            KeyUnavailableError: no recipient names a key of ours; and all that generate() raises.
        """
        check_context(encryption_context)
        failures: list[WrappedKeyError | KeyUnavailableError] = []
        for recipient in recipients:
            if recipient.provider != PROVIDER or recipient.share is not None:
                continue
            arn = self._here(recipient.key)
            if arn is None or recipient.wrapped is None:
                continue
            for key in self._candidates(arn):
                try:
                    with audit.operation("key.unwrap", f"{PROVIDER}:{arn}"):
                        return self._unwrap(key, arn, recipient.wrapped, encryption_context)
                except ServiceUnavailableError:
                    raise
                except (WrappedKeyError, KeyUnavailableError) as error:
                    failures.append(error)
        try:
            # Of several, one that tells of tampering.
            raise min(
                failures,
                key=lambda error: not isinstance(error, InvalidTag),
                default=no_recipient(recipients, f"in {self.region} we have {self._ours()}"),
            )
        finally:
            del failures  # Whose tracebacks hold this frame.

    def pending(self) -> list[Recipient]:
        """Name the recipients of wrap() without asking KMS.

        Raises:
            KeyUnavailableError: of an alias or a plain id no answer has told the ARN yet; or this
                keyring has accounts alone.
        """
        self._check_has_keys()
        unknown = [key for key in self.keys if self._arn_of(key) is None]
        if unknown:
            raise KeyUnavailableError(
                f"only KMS knows the ARN of {first_few(unknown)}: give a keyring that is to wrap "
                "later the ARNs of its keys"
            )
        return [Recipient(PROVIDER, str(self._arn_of(key)), None) for key in self.keys]

    def _check_has_keys(self) -> None:
        if not self.keys:
            raise KeyUnavailableError(
                "this aws-kms keyring has accounts alone and can only unwrap; give it a key"
            )

    def _ours(self) -> str:
        accounts = [f"any key of account {account}" for account in sorted(self.accounts)]
        return first_few([*self.keys, *accounts])

    def _here(self, key: str) -> _Arn | None:
        """Return the ARN that a recipient's key has in our region."""
        arn = _parse_arn(key)
        if arn is None or not arn.resource.startswith("key/"):
            return None
        if self.multi_region and arn.resource.startswith("key/mrk-"):
            return arn._replace(region=self.region)
        return arn if arn.region == self.region else None

    def _candidates(self, arn: _Arn) -> list[str]:
        """Return which keys may be the one with that ARN, as they are to be called."""
        named = [key for key in self.keys if self._may_be(key, arn)]
        certain = [key for key in named if not self._is_open(key)]
        if certain:
            return certain[:1]
        if arn.account in self.accounts and arn.partition == self.partition:
            return [str(arn)]
        return named

    def _is_open(self, key: str) -> bool:
        """Return whether a key is an alias of which no answer has told yet what it stands for."""
        return "alias/" in key and key not in self._resolved

    def _arn_of(self, key: str) -> str | None:
        """Return the key ARN of one of our keys, None where no answer has told it yet."""
        return key if ":key/" in key else self._resolved.get(key)

    def _may_be(self, key: str, arn: _Arn) -> bool:
        """Return whether a key that we name so can be the one with that ARN."""
        known = self._arn_of(key)
        if known is not None:
            return known == str(arn)
        alias = _parse_arn(key)
        if alias is not None:
            return alias[:3] == arn[:3]
        return arn.region == self.region and (
            key.startswith("alias/") or arn.resource == f"key/{key}"
        )

    def _wrap(self, key: str, data_key: DataKey, context: Mapping[str, str]) -> Recipient:
        parameters = {"Plaintext": PLACEHOLDER, "EncryptionContext": {**context, **_MARK}}
        with audit.operation("key.wrap", f"{PROVIDER}:{key}") as entry:
            answer, _ = self._call("Encrypt", key, parameters, sends=data_key.secret)
            recipient = self._recipient(key, answer)
            entry.subject = f"{PROVIDER}:{recipient.key}"
        return recipient

    def _recipient(self, key: str, answer: Mapping[str, object]) -> Recipient:
        arn = self._answered(key, answer)
        blob = answer.get("CiphertextBlob")
        if not isinstance(blob, bytes) or not 1 <= len(blob) <= MAX_BLOB_SIZE:
            raise self._not_whole(key, "CiphertextBlob")
        return Recipient(PROVIDER, arn, base64.b64encode(blob).decode())

    def _unwrap(self, key: str, arn: _Arn, wrapped: str, context: Mapping[str, str]) -> DataKey:
        blob = _decode(wrapped)
        if blob is None:
            raise WrappedKeyError(
                f"{PROVIDER}:{arn}: what the tape holds for this recipient was changed: "
                "it is no wrapped key of KMS"
            )
        parameters = {"CiphertextBlob": blob, "EncryptionContext": {**context, **_MARK}}
        answer, secret = self._call("Decrypt", key, parameters, takes=True)
        data_key = self._data_key(secret, key)
        try:
            answered = self._answered(key, answer)
            if answered != str(arn):
                raise WrappedKeyError(
                    f"{PROVIDER}:{arn}: the tape's list of recipients was changed: "
                    f"{answered} wrapped what it holds for this one"
                )
        except BaseException:
            data_key.close()
            raise
        return data_key

    def _data_key(self, secret: SecretBuffer | None, key: str) -> DataKey:
        if secret is None or len(secret) != KEY_SIZE:
            if secret is not None:
                secret.close()
            raise self._not_whole(key, f"Plaintext of {KEY_SIZE} bytes")
        return DataKey(secret)

    def _answered(self, key: str, answer: Mapping[str, object]) -> str:
        """Return the key ARN that an answer states, where that can be the key we asked for."""
        stated = answer.get("KeyId")
        arn = _parse_arn(stated) if isinstance(stated, str) else None
        if arn is None or not arn.resource.startswith("key/"):
            raise self._not_whole(key, "KeyId")
        if not self._may_be(key, arn):
            raise ServiceUnavailableError(
                f"{PROVIDER}:{key}: the answer is that of another key, {arn}, and was not used; "
                f"is {self._endpoint()} the KMS that was meant?"
            )
        # Of two threads that are the first to ask, both are to go on with the same key.
        if self._resolved.setdefault(key, str(arn)) != str(arn):
            raise ServiceUnavailableError(
                f"{PROVIDER}:{key}: just now it was made to mean {arn}; {_LATER}"
            )
        return str(arn)

    def _not_whole(self, key: str, field: str) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"{PROVIDER}:{key}: the answer of {self._endpoint()} has no valid {field}; "
            "is it KMS, and is there a proxy in between?"
        )

    def _endpoint(self) -> str:
        return str(self._client.meta.endpoint_url)

    def _call(
        self,
        operation: str,
        key: str,
        parameters: Mapping[str, object],
        *,
        sends: SecretBuffer | None = None,
        takes: bool = False,
    ) -> tuple[Mapping[str, object], SecretBuffer | None]:
        """Call KMS for a key and return the answer without its secret, and the secret."""
        client = self._client_of_this_process()
        what = f"{PROVIDER}:{key}: {operation} at {self._endpoint()}"
        # Errors are raised outside of the handlers, so that they keep none of botocore's: these, or
        # the frames of their tracebacks, hold what was sent and answered.
        failure: TapesealError
        try:
            with Exchange(send=sends) as exchange:
                call = getattr(client, _METHODS[operation])
                answer = call(KeyId=self._resolved.get(key, key), **parameters)
                return answer, exchange.take("Plaintext") if takes else None
        except ServiceUnavailableError as error:
            failure = ServiceUnavailableError(f"{what}: {error}")
        except TapesealError:
            raise
        except Exception as error:  # whatever an answer that is none of KMS's makes of the parser
            failure = _failure(error, what, self._is_open(key))
        try:
            raise failure
        finally:
            del failure  # Whose traceback holds this frame.

    def _client_of_this_process(self) -> Any:
        epoch = process_epoch()
        if epoch != self._epoch:
            # The old one's connections, and its locks as they were at the fork, are the parent's.
            if self._make_client is None:
                raise ForkError(
                    "this keyring's boto3 client belongs to another process; make both anew here"
                )
            self._client = self._make_client()
            self._epoch = epoch
        return self._client

    def __repr__(self) -> str:
        return f"<AwsKmsKeyring {self._ours()} in {self.region}>"

    def __reduce__(self) -> str:
        raise TypeError("an AwsKmsKeyring is neither pickled nor copied")


def from_uri(key: str, parameters: Mapping[str, str]) -> AwsKmsKeyring:
    """Make the keyring of `aws-kms:KEY?NAME=VALUE&…`; without a key, of accounts alone.

    Args:
        key: an id, alias/NAME, or the ARN of either.
        parameters: region, endpoint_url, accounts (with commas between them), partition,
            multi_region (true or false), connect_timeout, read_timeout and max_attempts, all as in
            AwsKmsKeyring.

    Raises:
        ValueError: other parameters, and as AwsKmsKeyring.
        AccessDeniedError: as AwsKmsKeyring.
    """
    options: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in _PARAMETERS:
            raise ValueError(
                f"an aws-kms keyring has no parameter {name!r}, only {', '.join(_PARAMETERS)}"
            )
        try:
            options[name] = _PARAMETERS[name](value)
        except (ValueError, KeyError):
            raise ValueError(f"{name} of an aws-kms keyring: that is no value for it") from None
    return AwsKmsKeyring(key or (), **options)


_PARAMETERS: Mapping[str, Callable[[str], object]] = {
    "region": str,
    "endpoint_url": str,
    "accounts": lambda text: text.split(","),
    "partition": str,
    "multi_region": {"true": True, "false": False}.__getitem__,
    "connect_timeout": float,
    "read_timeout": float,
    "max_attempts": int,
}

_METHODS = {"GenerateDataKey": "generate_data_key", "Encrypt": "encrypt", "Decrypt": "decrypt"}


def _parse_arn(text: str) -> _Arn | None:
    found = _ARN.fullmatch(text)
    return None if found is None else _Arn(*found.groups())


def _decode(wrapped: str) -> bytes | None:
    try:
        blob = base64.b64decode(wrapped, validate=True)
    except ValueError:
        return None
    if not 1 <= len(blob) <= MAX_BLOB_SIZE or base64.b64encode(blob).decode() != wrapped:
        return None
    return blob


def _make_client(
    region: str | None,
    endpoint_url: str | None,
    max_attempts: int,
    timeouts: Mapping[str, float],
) -> Any:
    try:
        import boto3.session
        from botocore.config import Config

        from tapeseal.transport.aws import protect_boto3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "AwsKmsKeyring needs boto3: pip install 'tapeseal[aws]'", name=error.name
        ) from None
    failure: TapesealError | ValueError
    try:
        retries = {"mode": "standard", "total_max_attempts": max_attempts}
        config = Config(retries=retries, **timeouts)
        # A session of its own, for the default one is not to be used by several threads at once.
        session = boto3.session.Session()
        client = session.client("kms", region_name=region, endpoint_url=endpoint_url, config=config)
        protect_boto3(client)
        return client
    except Exception as error:
        kind = type(error).__name__
        if kind == "NoRegionError":
            failure = ValueError("an aws-kms keyring needs a region: aws-kms:KEY?region=REGION")
        elif _NO_CREDENTIALS & {each.__name__ for each in type(error).__mro__}:
            failure = _failure(error, "no client for KMS", False)
        else:
            failure = ValueError(f"no client for KMS: {kind}: {plain(str(error))}")
    raise failure


def _check_endpoint(url: str) -> None:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("an endpoint of KMS has no user or password in it")
    in_the_clear = parts.scheme == "http" and _is_loopback(parts.hostname or "")
    if parts.scheme != "https" and not in_the_clear:
        raise ValueError(
            "an endpoint of KMS is https, or http on loopback: data keys would cross the network "
            "in the clear"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


# What KMS and boto3 say, and what to do about it

_POLICY = "a policy must allow it, see docs/aws.md"
_CREDENTIALS = "check or renew the credentials of boto3"
_CHANGED = "what the tape holds for this recipient, or the encryption context, was changed"
_LATER = "try again later"
_Kind = type[WrappedKeyError | KeyUnavailableError]

_REFUSALS: Mapping[str, tuple[_Kind, str]] = {
    "AccessDeniedException": (AccessDeniedError, _POLICY),
    "AccessDenied": (AccessDeniedError, _POLICY),
    "InvalidGrantTokenException": (AccessDeniedError, _POLICY),
    "ExpiredTokenException": (AccessDeniedError, _CREDENTIALS),
    "ExpiredToken": (AccessDeniedError, _CREDENTIALS),
    "RequestExpired": (AccessDeniedError, "check the clock of this machine"),
    "UnrecognizedClientException": (AccessDeniedError, _CREDENTIALS),
    "InvalidClientTokenId": (AccessDeniedError, _CREDENTIALS),
    "InvalidSignatureException": (AccessDeniedError, f"{_CREDENTIALS}, and the clock"),
    "SignatureDoesNotMatch": (AccessDeniedError, f"{_CREDENTIALS}, and the clock"),
    "IncompleteSignatureException": (AccessDeniedError, _CREDENTIALS),
    "MissingAuthenticationTokenException": (AccessDeniedError, _CREDENTIALS),
    "OptInRequired": (AccessDeniedError, "the account is not signed up for KMS"),
    "NotFoundException": (WrappingKeyError, "check the key, the region and the account"),
    "DisabledException": (WrappingKeyError, "enable the key"),
    "KMSInvalidStateException": (
        WrappingKeyError,
        "where its deletion is pending, cancel that and enable it",
    ),
    "InvalidKeyUsageException": (WrappingKeyError, "it takes a symmetric encryption key"),
    "InvalidCiphertextException": (WrappedKeyError, _CHANGED),
    "IncorrectKeyException": (WrappedKeyError, _CHANGED),
    "ThrottlingException": (ServiceUnavailableError, f"{_LATER}, or have the quota raised"),
    "LimitExceededException": (ServiceUnavailableError, f"{_LATER}, or have the quota raised"),
    "RequestLimitExceeded": (ServiceUnavailableError, f"{_LATER}, or have the quota raised"),
    "TooManyRequestsException": (ServiceUnavailableError, f"{_LATER}, or have the quota raised"),
    "KMSInternalException": (ServiceUnavailableError, _LATER),
    "DependencyTimeoutException": (ServiceUnavailableError, _LATER),
    "KeyUnavailableException": (ServiceUnavailableError, _LATER),
}

# By name, for botocore's releases differ in which of them they have.
_NO_CREDENTIALS = {
    "CredentialRetrievalError",
    "LoginError",
    "MetadataRetrievalError",
    "NoAuthTokenError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RefreshWithMFAUnsupportedError",
    "SSOError",
    "TokenRetrievalError",
    "UnknownCredentialError",
}
_NO_CONNECTION = {"ConnectionError", "HTTPClientError", "OSError"}


def _failure(error: Exception, what: str, is_open_alias: bool) -> TapesealError:
    """Return the error of ours that says what boto3's says, without what a service must not make us repeat."""
    kind = type(error).__name__
    kinds = {each.__name__ for each in type(error).__mro__}
    if "ClientError" in kinds:
        return _refusal(error, what, is_open_alias)
    if kinds & _NO_CREDENTIALS:
        # Not its text, which may be what a credentials' program printed.
        return AccessDeniedError(f"{what}: no usable credentials ({kind}); {_CREDENTIALS}")
    if kinds & _NO_CONNECTION:
        return ServiceUnavailableError(f"{what}: no answer: {kind}: {plain(str(error))}; {_LATER}")
    return ServiceUnavailableError(f"{what}: that is no answer of KMS: {kind}; {_LATER}")


def _refusal(error: Any, what: str, is_open_alias: bool) -> TapesealError:
    said = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    if not re.fullmatch("[A-Za-z]{1,64}", code):
        # Without a code of KMS's own the message is the whole body, of a proxy say.
        code, message = f"HTTP status {status}", ""
    operation = plain(str(error.operation_name))
    if operation not in _METHODS:
        what = f"{what}: {operation}"  # such as AssumeRole, for the credentials
    kind: _Kind
    kind, advice = _REFUSALS.get(code, (AccessDeniedError, "see docs/aws.md"))
    if code == "IncorrectKeyException" and is_open_alias:
        kind, advice = (
            KeyUnavailableError,
            "the alias is not of the key that wrapped it: give the ARN of that one",
        )
    elif code not in _REFUSALS and (status >= 500 or status == 429):
        kind, advice = ServiceUnavailableError, _LATER
    elif kind is WrappedKeyError and operation != "Decrypt":
        kind, advice = ServiceUnavailableError, "that is no answer of KMS"
    # Of a signature that does not match, the further lines hold the session token.
    text = ": ".join(filter(None, [code, plain(message.partition("\n")[0])]))
    return kind(f"{what}: refused: {text}; {advice}")
