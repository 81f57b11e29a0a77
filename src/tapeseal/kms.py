"""AWS KMS: its keys used, rotated and listed (docs/aws.md), and the connection that the keyring uses too."""

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from ipaddress import ip_address
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from tapeseal import audit
from tapeseal._core import SecretBuffer, process_epoch
from tapeseal.errors import (
    AccessDeniedError,
    CiphertextError,
    ForkError,
    ServiceUnavailableError,
    SignatureError,
    TapesealError,
    WrappingKeyError,
)
from tapeseal.secret import in_key_memory
from tapeseal.signature import algorithm_of
from tapeseal.transport import PLACEHOLDER, Exchange
from tapeseal.transport.foreign_text import plain

if TYPE_CHECKING:
    from typing_extensions import Buffer

PROVIDER: Final = "aws-kms"

MAX_BLOB_SIZE: Final = 6144
"""The most bytes of ciphertext that Decrypt takes."""

MAX_PLAINTEXT_SIZE: Final = 4096
"""The most bytes that Encrypt takes."""

_ARN = re.compile(
    r"arn:(aws[a-z-]{0,24}):kms:([a-z0-9-]{1,32}):([0-9]{12}):"
    r"(key/[0-9A-Za-z-]{1,128}|alias/[0-9A-Za-z/_-]{1,250})"
)
_KEY_ID = re.compile(r"[0-9A-Za-z-]{1,128}|alias/[0-9A-Za-z/_-]{1,250}")
_ALIAS = re.compile(r"alias/(?!aws/)[0-9A-Za-z/_-]{1,250}")

_DAYS_TO_DELETION = range(7, 31)
_ROTATION_DAYS = range(90, 2561)

# By the kind of key: the name of the algorithm of tapeseal.signature, and that of KMS.
_ALGORITHMS: Mapping[str, tuple[str, str]] = {
    "ECC_NIST_P256": ("ecdsa-p256-sha256", "ECDSA_SHA_256"),
    "ECC_NIST_P384": ("ecdsa-p384-sha384", "ECDSA_SHA_384"),
    "RSA_2048": ("rsa-pss-sha256", "RSASSA_PSS_SHA_256"),
    "RSA_3072": ("rsa-pss-sha256", "RSASSA_PSS_SHA_256"),
    "RSA_4096": ("rsa-pss-sha256", "RSASSA_PSS_SHA_256"),
}
_SPECIFICATIONS = dict(_ALGORITHMS.values())


# Keys and their names


class Arn(NamedTuple):
    """The ARN of a key or an alias."""

    partition: str
    region: str
    account: str
    resource: str
    """key/ID or alias/NAME."""

    def __str__(self) -> str:
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:{self.resource}"

    def may_be(self, key: str, region: str) -> bool:
        """Return whether the key with this ARN can be the one that `key` names in a region."""
        named = parse_arn(key)
        if named is not None:
            return named == self if named.resource.startswith("key/") else named[:3] == self[:3]
        return self.region == region and (key.startswith("alias/") or self.resource == f"key/{key}")


def parse_arn(text: str) -> Arn | None:
    """Return an ARN of a key or an alias of KMS, None where the text is none."""
    found = _ARN.fullmatch(text)
    return None if found is None else Arn(*found.groups())


def check_key(key: str) -> None:
    """Raise ValueError unless a key is named by its id, its ARN, an alias or the ARN of one."""
    if not _ARN.fullmatch(key) and not _KEY_ID.fullmatch(key):
        raise ValueError("a key of AWS KMS is an id, alias/NAME, or the ARN of either")


# The connection


class Connection:
    """A boto3 client of KMS in one region, whose secrets stay out of Python objects and whose errors are ours.

    Threads may share it. A fork makes itself a new client.

    Args:
        region: where the keys are; None: as boto3 finds it.
        endpoint_url: another address than the region's own; https, or http on loopback.
        connect_timeout: seconds to connect.
        read_timeout: seconds until an answer is whole.
        max_attempts: how often a call is tried in all, in botocore's mode "standard".
        client: a boto3 KMS client to use as it is, in place of all these. The secrets of calls made here are kept from
            Python; those of your own calls are not.

    Raises:
        ValueError: a region, endpoint, timeout or client that cannot be used.
        AccessDeniedError: boto3 found credentials or a profile that cannot be used.
        ModuleNotFoundError: boto3 is not installed.
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        connect_timeout: float = 1.0,
        read_timeout: float = 2.0,
        max_attempts: int = 3,
        client: Any = None,
    ) -> None:
        if not (0 < connect_timeout < inf and 0 < read_timeout < inf and max_attempts >= 1):
            raise ValueError("timeouts are seconds above 0, and there is at least one attempt")
        if client is None:
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
        self.region: str = client.meta.region_name
        _check_endpoint(client.meta.endpoint_url)

    @property
    def endpoint(self) -> str:
        """The URL that is called."""
        return str(self._client.meta.endpoint_url)

    def call(
        self,
        operation: str,
        subject: str,
        parameters: Mapping[str, object],
        *,
        sends: SecretBuffer | None = None,
        takes: bool = False,
        once: bool = False,
        refusals: Mapping[str, "Refusal"] | None = None,
    ) -> tuple[Mapping[str, Any], SecretBuffer | None]:
        """Call KMS and return the answer without its secret, and the secret.

        Args:
            operation: as the API spells it: "GenerateDataKey".
            subject: what errors say that it is about.
            parameters: of the operation; PLACEHOLDER stands for the secret.
            sends: the secret of the request.
            takes: whether the answer's Plaintext is wanted.
            once: botocore's retries do not send it again; a ServiceUnavailableError may then mean that it was done.
            refusals: what codes of KMS mean for this operation, before what they mean for all.

        Raises:
            ServiceUnavailableError: KMS cannot be reached, throttles, fails, or gave no whole answer.
            AccessDeniedError: no valid credentials, a policy forbids the call, or KMS refused it for a reason unknown
                here.
            WrappingKeyError: the key is missing, disabled, pending deletion or of another kind.
            ForkError: this process is a fork of the one that gave it a client of its own.
        """
        client = self._client_of_this_process()
        what = f"{PROVIDER}:{subject}: {operation} at {self.endpoint}"
        # Errors are raised outside of the handlers, so that they keep none of botocore's: these, or
        # the frames of their tracebacks, hold what was sent and answered.
        failure: TapesealError | ValueError
        try:
            with Exchange(send=sends, once=once) as exchange:
                answer = getattr(client, _method(operation))(**parameters)
                return answer, exchange.take("Plaintext") if takes else None
        except ServiceUnavailableError as error:
            failure = ServiceUnavailableError(f"{what}: {error}")
        except TapesealError:
            raise
        except Exception as error:  # whatever an answer that is none of KMS's makes of the parser
            failure = _failure(error, what, operation, refusals or {})
        try:
            raise failure
        finally:
            del failure  # Whose traceback holds this frame.

    def not_whole(self, subject: str, field: str) -> ServiceUnavailableError:
        """Return the error of an answer without a valid field."""
        return ServiceUnavailableError(
            f"{PROVIDER}:{subject}: the answer of {self.endpoint} has no valid {field}; "
            "is it KMS, and is there a proxy in between?"
        )

    def answered(self, key: str, answer: Mapping[str, object]) -> Arn:
        """Return the ARN of the key that an answer states.

        Raises:
            ServiceUnavailableError: it states none.
        """
        stated = answer.get("KeyId")
        arn = parse_arn(stated) if isinstance(stated, str) else None
        if arn is None or not arn.resource.startswith("key/"):
            raise self.not_whole(key, "KeyId")
        return arn

    def of_another_key(self, key: str, arn: Arn) -> ServiceUnavailableError:
        """Return the error of an answer for another key than the one asked for."""
        return ServiceUnavailableError(
            f"{PROVIDER}:{key}: the answer is that of another key, {arn}, and was not used; "
            f"is {self.endpoint} the KMS that was meant?"
        )

    def _client_of_this_process(self) -> Any:
        epoch = process_epoch()
        if epoch != self._epoch:
            # The old one's connections, and its locks as they were at the fork, are the parent's.
            if self._make_client is None:
                raise ForkError(
                    "this boto3 client belongs to another process; make it anew here, and what was made with it"
                )
            self._client = self._make_client()
            self._epoch = epoch
        return self._client


def _method(operation: str) -> str:
    """Return what boto3 calls an operation: generate_data_key."""
    return re.sub("(?<!^)(?=[A-Z])", "_", operation).lower()


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
            "AWS KMS needs boto3: pip install 'tapeseal[aws]'", name=error.name
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
            failure = ValueError(
                "AWS KMS needs a region: aws-kms:KEY?region=REGION, --region or AWS_DEFAULT_REGION"
            )
        elif _NO_CREDENTIALS & {each.__name__ for each in type(error).__mro__}:
            failure = _failure(error, "no client for KMS", "", {})
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
            "an endpoint of KMS is https, or http on loopback: keys would cross the network in the clear"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


# What KMS and boto3 say, and what to do about it

Refusal: TypeAlias = tuple[type[TapesealError] | type[ValueError], str]
"""What a refusal becomes, and what to do about it."""

LATER: Final = "try again later"
_POLICY = "a policy must allow it, see docs/aws.md"
_CREDENTIALS = "check or renew the credentials of boto3"
_QUOTA = f"{LATER}, or have the quota raised"
_NO_ANSWER = "that is no answer of KMS"

_REFUSALS: Mapping[str, Refusal] = {
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
    "UnsupportedOperationException": (WrappingKeyError, "keys of this kind do not do that"),
    # What only Decrypt, which has its own words for them, can say.
    "InvalidCiphertextException": (ServiceUnavailableError, _NO_ANSWER),
    "IncorrectKeyException": (ServiceUnavailableError, _NO_ANSWER),
    "ThrottlingException": (ServiceUnavailableError, _QUOTA),
    "LimitExceededException": (ServiceUnavailableError, _QUOTA),
    "RequestLimitExceeded": (ServiceUnavailableError, _QUOTA),
    "TooManyRequestsException": (ServiceUnavailableError, _QUOTA),
    "KMSInternalException": (ServiceUnavailableError, LATER),
    "DependencyTimeoutException": (ServiceUnavailableError, LATER),
    "KeyUnavailableException": (ServiceUnavailableError, LATER),
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


def _failure(
    error: Exception, what: str, operation: str, refusals: Mapping[str, Refusal]
) -> TapesealError | ValueError:
    """Return the error of ours that says what boto3's says, without what a service must not make us repeat."""
    kind = type(error).__name__
    kinds = {each.__name__ for each in type(error).__mro__}
    if "ClientError" in kinds:
        return _refusal(error, what, operation, refusals)
    if kinds & _NO_CREDENTIALS:
        # Not its text, which may be what a credentials' program printed.
        return AccessDeniedError(f"{what}: no usable credentials ({kind}); {_CREDENTIALS}")
    if kinds & _NO_CONNECTION:
        return ServiceUnavailableError(f"{what}: no answer: {kind}: {plain(str(error))}; {LATER}")
    return ServiceUnavailableError(f"{what}: {_NO_ANSWER}: {kind}; {LATER}")


def _refusal(
    error: Any, what: str, operation: str, refusals: Mapping[str, Refusal]
) -> TapesealError | ValueError:
    said = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    if not re.fullmatch("[A-Za-z]{1,64}", code):
        # Without a code of KMS's own the message is the whole body, of a proxy say.
        code, message = f"HTTP status {status}", ""
    called = plain(str(error.operation_name))
    if called != operation:
        what, refusals = f"{what}: {called}", {}  # such as AssumeRole, for the credentials
    known = refusals.get(code) or _REFUSALS.get(code)
    kind: type[TapesealError] | type[ValueError]
    kind, advice = known or (AccessDeniedError, "see docs/aws.md")
    if known is None and (status >= 500 or status == 429):
        kind, advice = ServiceUnavailableError, LATER
    # Of a signature that does not match, the further lines hold the session token.
    text = ": ".join(filter(None, [code, plain(message.partition("\n")[0])]))
    return kind(f"{what}: refused: {text}; {advice}")


# Keys, used directly


@dataclass(frozen=True)
class PublicKey:
    """The public half of an asymmetric key."""

    key: str
    """The key's ARN."""
    specification: str
    """The kind of key, as KMS calls it: "ECC_NIST_P256"."""
    usage: str
    """"SIGN_VERIFY", "ENCRYPT_DECRYPT" or "KEY_AGREEMENT"."""
    algorithm: str | None
    """How it signs here, one of tapeseal.signature.ALGORITHMS; None: not at all."""
    pem: bytes
    """SubjectPublicKeyInfo in PEM."""


@dataclass(frozen=True)
class KeyRotation:
    """How a key's material is rotated automatically."""

    enabled: bool
    period_days: int | None
    """Days between two rotations; None where it is off, or KMS does not say."""
    next: datetime | None
    """When the next one is due."""
    on_demand_since: datetime | None
    """When a rotation on demand that is still going on was asked for."""


@dataclass(frozen=True)
class KeyInfo:
    """A key in the inventory."""

    key: str
    """Its ARN."""
    aliases: tuple[str, ...]
    state: str = ""
    """"Enabled", "Disabled", "PendingDeletion" and so on."""
    specification: str = ""
    """The kind of key: "SYMMETRIC_DEFAULT"."""
    usage: str = ""
    """"ENCRYPT_DECRYPT", "SIGN_VERIFY", "GENERATE_VERIFY_MAC" or "KEY_AGREEMENT"."""
    manager: str = ""
    """"CUSTOMER", or "AWS" for keys that a service of AWS made."""
    description: str = ""
    created: datetime | None = None
    deletion: datetime | None = None
    """When it will be deleted."""
    rotation: KeyRotation | None = None
    """None: keys of this kind do not rotate."""
    rotated: datetime | None = None
    """When its material was rotated last; None: never."""
    problem: str | None = None
    """Why no more is known of it."""


class Kms:
    """AWS KMS in one region: encrypts small secrets, signs, rotates keys and lists them.

    A key is given by its id, its ARN, an alias or the ARN of one. Errors are those of Connection.call(), and
    ValueError for what KMS would not take. Threads may share it.

    Args:
        region: where the keys are; None: as boto3 finds it.
        endpoint_url: another address than the region's own; https, or http on loopback.
        connect_timeout, read_timeout, max_attempts, client: as for AwsKmsKeyring.

    Raises:
        ValueError, AccessDeniedError, ModuleNotFoundError: as AwsKmsKeyring.
    """

    def __init__(
        self,
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        connect_timeout: float = 1.0,
        read_timeout: float = 2.0,
        max_attempts: int = 3,
        client: Any = None,
    ) -> None:
        self._connection = Connection(
            region=region,
            endpoint_url=endpoint_url,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            max_attempts=max_attempts,
            client=client,
        )
        self.region = self._connection.region

    # Encryption

    def encrypt(
        self,
        key: str,
        plaintext: "Buffer | SecretBuffer",
        encryption_context: Mapping[str, str] | None = None,
    ) -> bytes:
        """Encrypt up to 4096 bytes under a symmetric key; longer ones are what tapes and blobs are for.

        Args:
            key: as for all of Kms.
            plaintext: 1 to 4096 bytes.
            encryption_context: public pairs, needed again to decrypt, and written to CloudTrail.

        Returns:
            The ciphertext, up to 6144 bytes, which names its key.
        """
        parameters = {"Plaintext": PLACEHOLDER, "EncryptionContext": _context(encryption_context)}
        with audit.operation("kms.encrypt", key), in_key_memory(plaintext) as secret:
            del plaintext  # No traceback is to hold it.
            if not 1 <= len(secret) <= MAX_PLAINTEXT_SIZE:
                raise ValueError(
                    f"KMS encrypts 1 to {MAX_PLAINTEXT_SIZE} bytes, not {len(secret)}: make a tape or a blob"
                )
            answer, _ = self._call("Encrypt", key, parameters, sends=secret)
            return self._bytes(key, answer, "CiphertextBlob", MAX_BLOB_SIZE)

    def decrypt(
        self, key: str, ciphertext: bytes, encryption_context: Mapping[str, str] | None = None
    ) -> SecretBuffer:
        """Decrypt what encrypt() gave.

        Args:
            key: the key that it must be under: a ciphertext alone does not decide which key is used.
            ciphertext: 1 to 6144 bytes.
            encryption_context: the pairs of encrypt().

        Raises:
            CiphertextError: it does not open: it or the pairs were changed, or it is another key's.
        """
        if not 1 <= len(ciphertext) <= MAX_BLOB_SIZE:
            raise CiphertextError(
                f"{PROVIDER}:{key}: a ciphertext of KMS has 1 to {MAX_BLOB_SIZE} bytes"
            )
        parameters = {
            "CiphertextBlob": bytes(ciphertext),
            "EncryptionContext": _context(encryption_context),
        }
        with audit.operation("kms.decrypt", key):
            return self._secret("Decrypt", key, parameters, range(1, MAX_PLAINTEXT_SIZE + 1))[1]

    def generate_data_key(
        self, key: str, encryption_context: Mapping[str, str] | None = None, *, size: int = 32
    ) -> tuple[SecretBuffer, bytes]:
        """Have KMS make random bytes, and return them and their ciphertext under a key.

        Args:
            key: as for all of Kms.
            encryption_context: as for encrypt().
            size: 1 to 1024 bytes.
        """
        if not 1 <= size <= 1024:
            raise ValueError(f"KMS makes data keys of 1 to 1024 bytes, not {size}")
        parameters = {"NumberOfBytes": size, "EncryptionContext": _context(encryption_context)}
        with audit.operation("kms.generate_data_key", key):
            answer, secret = self._secret("GenerateDataKey", key, parameters, range(size, size + 1))
            try:
                return secret, self._bytes(key, answer, "CiphertextBlob", MAX_BLOB_SIZE)
            except BaseException:
                secret.close()
                raise

    # Signatures

    def public_key(self, key: str) -> PublicKey:
        """Return the public half of an asymmetric key."""
        from cryptography.hazmat.primitives import serialization

        with audit.operation("kms.public_key", key):
            answer, _ = self._call("GetPublicKey", key, {})
        raw = self._bytes(key, answer, "PublicKey", 8192)
        try:
            loaded = serialization.load_der_public_key(raw)
        except Exception:  # of a dozen kinds: whatever the bytes make of the parser
            raise self._connection.not_whole(key, "PublicKey") from None
        pem = loaded.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        specification, usage = (str(answer.get(name, "")) for name in ("KeySpec", "KeyUsage"))
        algorithm = None
        if usage == "SIGN_VERIFY" and specification in _ALGORITHMS:
            algorithm, of_kms = _ALGORITHMS[specification]
            if algorithm_of(pem) != algorithm or of_kms not in answer.get("SigningAlgorithms", ()):
                raise self._connection.not_whole(key, "KeySpec")
        return PublicKey(
            str(self._connection.answered(key, answer)), specification, usage, algorithm, pem
        )

    def sign(self, key: str, message: bytes, algorithm: str) -> bytes:
        """Sign a message of any length: its digest is computed here, and signed by KMS.

        Args:
            key: as for all of Kms.
            message: what is signed.
            algorithm: that of public_key(); Ed25519 is not among those of KMS's that take a digest.
        """
        parameters = _to_sign(message, algorithm)
        with audit.operation("kms.sign", key, algorithm=algorithm):
            answer, _ = self._call("Sign", key, parameters, refusals=_OF_SIGNATURES)
            if answer.get("SigningAlgorithm") != parameters["SigningAlgorithm"]:
                raise self._connection.not_whole(key, "SigningAlgorithm")
            return self._bytes(key, answer, "Signature", MAX_BLOB_SIZE)

    def verify(self, key: str, message: bytes, signature: bytes, algorithm: str) -> None:
        """Have KMS check a signature; tapeseal.signature.check_signature() does it without KMS.

        Raises:
            SignatureError: it is not one of this message by this key.
        """
        if not 1 <= len(signature) <= MAX_BLOB_SIZE:
            raise SignatureError(f"{PROVIDER}:{key}: a signature has 1 to {MAX_BLOB_SIZE} bytes")
        parameters = {**_to_sign(message, algorithm), "Signature": bytes(signature)}
        with audit.operation("kms.verify", key, algorithm=algorithm):
            answer, _ = self._call("Verify", key, parameters, refusals=_OF_SIGNATURES)
            if answer.get("SignatureValid") is not True:
                raise self._connection.not_whole(key, "SignatureValid")

    # Rotation

    def enable_rotation(self, key: str, *, period_days: int = 365) -> None:
        """Have KMS rotate a symmetric key's material every `period_days`, 90 to 2560."""
        if period_days not in _ROTATION_DAYS:
            raise ValueError(f"KMS rotates every 90 to 2560 days, not every {period_days}")
        with audit.operation("kms.enable_rotation", key, period_days=period_days):
            self._call("EnableKeyRotation", self._id(key), {"RotationPeriodInDays": period_days})

    def disable_rotation(self, key: str) -> None:
        """Have KMS rotate a key no more by itself."""
        with audit.operation("kms.disable_rotation", key):
            self._call("DisableKeyRotation", self._id(key), {})

    def rotation(self, key: str) -> KeyRotation:
        """Say how a key is rotated."""
        key = self._id(key)
        answer, _ = self._call("GetKeyRotationStatus", key, {})
        enabled, period = answer.get("KeyRotationEnabled"), answer.get("RotationPeriodInDays")
        if not isinstance(enabled, bool) or not isinstance(period, int | None):
            raise self._connection.not_whole(key, "KeyRotationEnabled")
        return KeyRotation(
            enabled,
            period,
            _date(answer, "NextRotationDate"),
            _date(answer, "OnDemandRotationStartDate"),
        )

    def rotate(self, key: str) -> None:
        """Have KMS make new material for a symmetric key now; what the old one encrypted still opens.

        KMS does it within seconds or minutes: rotation() says whether it is still at it, rotations() when it was done.
        A key allows a limited number of these in its life.

        Raises:
            ServiceUnavailableError: also where it is unknown whether KMS does it.
        """
        with audit.operation("kms.rotate", key):
            self._call("RotateKeyOnDemand", self._id(key), {}, once=True, refusals=_OF_ROTATIONS)

    def rotations(self, key: str) -> list[tuple[datetime, str]]:
        """Return when a key's material was rotated, the earliest first, and how: "AUTOMATIC" or "ON_DEMAND"."""
        key = self._id(key)
        found = []
        for each in self._pages("ListKeyRotations", key, {"KeyId": key}, "Rotations"):
            date = _date(each, "RotationDate")
            if date is not None:
                found.append((date, str(each.get("RotationType", ""))))
        return sorted(found)

    # Keys as such

    def enable(self, key: str) -> None:
        """Let a disabled key be used again."""
        with audit.operation("kms.enable", key):
            self._call("EnableKey", self._id(key), {})

    def disable(self, key: str) -> None:
        """Let nobody use a key until it is enabled."""
        with audit.operation("kms.disable", key):
            self._call("DisableKey", self._id(key), {})

    def schedule_deletion(self, key: str, *, days: int = 30) -> datetime:
        """Have a key deleted after 7 to 30 days, unless cancelled; return when.

        What is encrypted under it can never be opened again. Until then nobody can use it.
        """
        if days not in _DAYS_TO_DELETION:
            raise ValueError(f"KMS deletes keys after 7 to 30 days, not after {days}")
        with audit.operation("kms.schedule_deletion", key, days=days):
            key = self._id(key)
            answer, _ = self._call("ScheduleKeyDeletion", key, {"PendingWindowInDays": days})
            date = _date(answer, "DeletionDate")
            if date is None:
                raise self._connection.not_whole(key, "DeletionDate")
            return date

    def cancel_deletion(self, key: str) -> None:
        """Keep a key that was to be deleted; it is disabled then."""
        with audit.operation("kms.cancel_deletion", key):
            self._call("CancelKeyDeletion", self._id(key), {})

    def aliases(self) -> dict[str, str]:
        """Return all aliases of the account in the region, and the id of each one's key."""
        found = {}
        for each in self._pages("ListAliases", "aliases", {}, "Aliases"):
            name, target = each.get("AliasName"), each.get("TargetKeyId")
            if isinstance(name, str) and isinstance(target, str):  # AWS's own may have no key yet
                found[name] = target
        return found

    def create_alias(self, alias: str, key: str) -> None:
        """Make an alias of a key: "alias/NAME"."""
        self._alias("CreateAlias", "kms.create_alias", alias, key)

    def update_alias(self, alias: str, key: str) -> None:
        """Let an alias mean another key of the same kind and usage."""
        self._alias("UpdateAlias", "kms.update_alias", alias, key)

    def delete_alias(self, alias: str) -> None:
        """Delete an alias, not its key."""
        _check_alias(alias)
        with audit.operation("kms.delete_alias", alias):
            self._connection.call("DeleteAlias", alias, {"AliasName": alias})

    def _alias(self, operation: str, action: str, alias: str, key: str) -> None:
        _check_alias(alias)
        with audit.operation(action, alias, key=key):
            parameters = {"AliasName": alias, "TargetKeyId": self._id(key)}
            self._connection.call(operation, alias, parameters, refusals=_OF_ALIASES)

    def tags(self, key: str) -> dict[str, str]:
        """Return the tags of a key."""
        key = self._id(key)
        found = {}
        for each in self._pages("ListResourceTags", key, {"KeyId": key}, "Tags"):
            name, value = each.get("TagKey"), each.get("TagValue")
            if isinstance(name, str) and isinstance(value, str):
                found[name] = value
        return found

    def tag(self, key: str, tags: Mapping[str, str]) -> None:
        """Give a key tags, beside those it has."""
        with audit.operation("kms.tag", key, tags=", ".join(tags)):
            self._call("TagResource", self._id(key), {"Tags": _tags(tags)})

    def create_key_like(self, key: str, *, tags: Mapping[str, str]) -> str:
        """Make a key of the same kind, usage, description, policy and tags as another, and return its ARN.

        Args:
            key: the other.
            tags: beside the other's, or in place of them; they are there as soon as the key is, which they find.

        Raises:
            ServiceUnavailableError: also where it is unknown whether a key was made.
        """
        with audit.operation("kms.create_key", key) as entry:
            like = self.describe(key)
            if not like.specification or not like.usage:
                raise self._connection.not_whole(key, "KeyUsage")
            policy, _ = self._call("GetKeyPolicy", like.key, {"PolicyName": "default"})
            if not isinstance(policy.get("Policy"), str):
                raise self._connection.not_whole(key, "Policy")
            theirs = {
                name: value
                for name, value in self.tags(like.key).items()
                if not name.startswith("aws:")
            }
            answer, _ = self._connection.call(
                "CreateKey",
                key,
                {
                    "KeySpec": like.specification,
                    "KeyUsage": like.usage,
                    "Description": like.description,
                    "Policy": policy["Policy"],
                    "Tags": _tags({**theirs, **tags}),
                },
                once=True,
                refusals=_OF_PARAMETERS,
            )
            metadata = answer.get("KeyMetadata")
            arn = parse_arn(str(metadata.get("Arn"))) if isinstance(metadata, dict) else None
            if arn is None:
                raise self._connection.not_whole(key, "KeyMetadata")
            entry.version = str(arn)
        return str(arn)

    # Inventory

    def describe(self, key: str) -> KeyInfo:
        """Say everything about a key but its aliases.

        Where a policy lets its rotation not be seen, `problem` says so.
        """
        answer, _ = self._call("DescribeKey", key, {})
        metadata = answer.get("KeyMetadata")
        arn = parse_arn(str(metadata.get("Arn"))) if isinstance(metadata, dict) else None
        if not isinstance(metadata, dict) or arn is None:
            raise self._connection.not_whole(key, "KeyMetadata")
        if not arn.may_be(key, self.region):
            raise self._connection.of_another_key(key, arn)
        rotation = rotated = problem = None
        if _rotates(metadata):
            try:
                rotation = self.rotation(str(arn))
                rotated = max((date for date, _ in self.rotations(str(arn))), default=None)
            except AccessDeniedError as error:
                problem = str(error)
            except WrappingKeyError:
                pass  # Its state or its kind allows none.
        return KeyInfo(
            key=str(arn),
            aliases=(),
            state=str(metadata.get("KeyState", "")),
            specification=str(metadata.get("KeySpec", "")),
            usage=str(metadata.get("KeyUsage", "")),
            manager=str(metadata.get("KeyManager", "")),
            description=str(metadata.get("Description", "")),
            created=_date(metadata, "CreationDate"),
            deletion=_date(metadata, "DeletionDate"),
            rotation=rotation,
            rotated=rotated,
            problem=problem,
        )

    def policy(self, key: str) -> Mapping[str, Any]:
        """Return the policy of a key, as the JSON of it has it."""
        answer, _ = self._call("GetKeyPolicy", self._id(key), {"PolicyName": "default"})
        try:
            found = json.loads(str(answer.get("Policy")))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._connection.not_whole(key, "Policy")
        return found

    def inventory(self, *, threads: int = 8) -> Iterator[KeyInfo]:
        """List all keys of the account in the region with their rotation dates, in the order of KMS.

        A key that a policy hides is listed with its `problem`.

        Args:
            threads: how many keys are asked for at once.
        """
        aliases: dict[str, list[str]] = {}
        for alias, key_id in self.aliases().items():
            aliases.setdefault(key_id, []).append(alias)

        def one(entry: Mapping[str, Any]) -> KeyInfo:
            arn = parse_arn(str(entry.get("KeyArn")))
            if arn is None:
                raise self._connection.not_whole("keys", "KeyArn")
            names = tuple(sorted(aliases.get(arn.resource.removeprefix("key/"), ())))
            try:
                return replace(self.describe(str(arn)), aliases=names)
            except (AccessDeniedError, WrappingKeyError) as error:  # or deleted meanwhile
                return KeyInfo(str(arn), names, problem=str(error))

        entries = self._pages("ListKeys", "keys", {}, "Keys")
        with ThreadPoolExecutor(threads, "tapeseal-kms") as pool:
            running = deque(pool.submit(one, entry) for entry in islice(entries, 4 * threads))
            try:
                while running:
                    yield running.popleft().result()
                    running.extend(pool.submit(one, entry) for entry in islice(entries, 1))
            finally:
                for future in running:
                    future.cancel()

    # Calls

    def _call(
        self,
        operation: str,
        key: str,
        parameters: Mapping[str, object],
        *,
        sends: SecretBuffer | None = None,
        takes: bool = False,
        once: bool = False,
        refusals: Mapping[str, Refusal] | None = None,
    ) -> tuple[Mapping[str, Any], SecretBuffer | None]:
        """Call KMS for a key; what answers for another is refused."""
        check_key(key)
        answer, secret = self._connection.call(
            operation,
            key,
            {"KeyId": key, **parameters},
            sends=sends,
            takes=takes,
            once=once,
            refusals={**_OF_PARAMETERS, **(refusals or {})},
        )
        try:
            if operation in _STATE_THEIR_KEY:
                arn = self._connection.answered(key, answer)
                if not arn.may_be(key, self.region):
                    raise self._connection.of_another_key(key, arn)
        except BaseException:
            if secret is not None:
                secret.close()
            raise
        return answer, secret

    def _secret(
        self, operation: str, key: str, parameters: Mapping[str, object], sizes: range
    ) -> tuple[Mapping[str, Any], SecretBuffer]:
        refusals = _OF_CIPHERTEXTS if operation == "Decrypt" else None
        answer, secret = self._call(operation, key, parameters, takes=True, refusals=refusals)
        assert secret is not None
        if len(secret) not in sizes:
            secret.close()
            raise self._connection.not_whole(key, "Plaintext")
        return answer, secret

    def _bytes(self, key: str, answer: Mapping[str, Any], field: str, longest: int) -> bytes:
        value = answer.get(field)
        if not isinstance(value, bytes) or not 1 <= len(value) <= longest:
            raise self._connection.not_whole(key, field)
        return value

    def _id(self, key: str) -> str:
        """Return a key as operations want it that take no alias."""
        check_key(key)
        if "alias/" not in key:
            return key
        answer, _ = self._call("DescribeKey", key, {})
        metadata = answer.get("KeyMetadata")
        arn = parse_arn(str(metadata.get("Arn"))) if isinstance(metadata, dict) else None
        if arn is None or not arn.may_be(key, self.region):
            raise self._connection.not_whole(key, "KeyMetadata")
        return str(arn)

    def _pages(
        self, operation: str, subject: str, parameters: Mapping[str, object], member: str
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the entries of a list that comes in pages."""
        marker: dict[str, str] = {}
        for _ in range(_MAX_PAGES):
            answer, _ = self._connection.call(
                operation,
                subject,
                {**parameters, **marker, "Limit": _PAGE},
                refusals=_OF_PARAMETERS,
            )
            entries, following = answer.get(member), answer.get("NextMarker")
            if not isinstance(entries, list):
                raise self._connection.not_whole(subject, member)
            yield from entries
            if answer.get("Truncated") is not True:
                return
            if not isinstance(following, str) or following == marker.get("Marker"):
                break
            marker = {"Marker": following}
        raise self._connection.not_whole(subject, "NextMarker")

    def __repr__(self) -> str:
        return f"<Kms in {self.region}>"

    def __reduce__(self) -> str:
        raise TypeError("a Kms is neither pickled nor copied")


# An answer has to fit into the transport's 64 KiB: 50 aliases with the longest names do.
_PAGE = 50
_MAX_PAGES = 4000

_STATE_THEIR_KEY = {"Encrypt", "Decrypt", "GenerateDataKey", "GetPublicKey", "Sign", "Verify"}

_OF_PARAMETERS: Mapping[str, Refusal] = {
    "ValidationException": (ValueError, "KMS does not take this"),
}
_OF_CIPHERTEXTS: Mapping[str, Refusal] = {
    "InvalidCiphertextException": (
        CiphertextError,
        "the ciphertext or its encryption context was changed",
    ),
    "IncorrectKeyException": (CiphertextError, "it was encrypted under another key"),
}
_OF_SIGNATURES: Mapping[str, Refusal] = {
    "InvalidKeyUsageException": (WrappingKeyError, "it takes a key of usage SIGN_VERIFY"),
    "KMSInvalidSignatureException": (SignatureError, "it is not one of this message by this key"),
}
_OF_ROTATIONS: Mapping[str, Refusal] = {
    "ConflictException": (ServiceUnavailableError, "a rotation of this key is going on"),
    "LimitExceededException": (WrappingKeyError, "KMS rotates a key no further on demand"),
}
_OF_ALIASES: Mapping[str, Refusal] = {
    "AlreadyExistsException": (ValueError, "update the alias to move it to another key"),
    **_OF_PARAMETERS,
}


def _context(pairs: Mapping[str, str] | None) -> dict[str, str]:
    if not all(isinstance(each, str) for pair in (pairs or {}).items() for each in pair):
        raise ValueError("encryption context: keys and values must be strings")
    return dict(pairs or {})


def _to_sign(message: bytes, algorithm: str) -> dict[str, object]:
    if algorithm not in _SPECIFICATIONS:
        raise ValueError(
            f"KMS signs no digest by {algorithm!r}, only by {', '.join(_SPECIFICATIONS)}"
        )
    digest = hashlib.new(algorithm.rpartition("-")[2], message).digest()
    return {
        "Message": digest,
        "MessageType": "DIGEST",
        "SigningAlgorithm": _SPECIFICATIONS[algorithm],
    }


def _check_alias(alias: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise ValueError(
            "an alias is alias/NAME, of letters, digits, / _ and -, and not of alias/aws/"
        )


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"TagKey": name, "TagValue": value} for name, value in tags.items()]


def _date(answer: Mapping[str, Any], field: str) -> datetime | None:
    value = answer.get(field)
    return value if isinstance(value, datetime) else None


def _rotates(metadata: Mapping[str, Any]) -> bool:
    """Whether KMS makes new material for keys of this kind."""
    return metadata.get("KeySpec") == "SYMMETRIC_DEFAULT" and metadata.get("Origin") in (
        "AWS_KMS",
        "EXTERNAL",
    )


# Addresses

PARAMETERS: Mapping[str, Callable[[str], object]] = {
    "region": str,
    "endpoint_url": str,
    "connect_timeout": float,
    "read_timeout": float,
    "max_attempts": int,
}
"""What follows the question mark of an aws-kms: address, for every use of one."""


def options(
    parameters: Mapping[str, str], known: Mapping[str, Callable[[str], object]], what: str
) -> dict[str, Any]:
    """Return the parameters of an aws-kms: address as arguments.

    Args:
        parameters: their texts.
        known: what makes the value of each.
        what: what the address is of, in errors: "keyring".

    Raises:
        ValueError: another parameter, or no value for one.
    """
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in known:
            raise ValueError(
                f"an aws-kms {what} has no parameter {name!r}, only {', '.join(known)}"
            )
        try:
            found[name] = known[name](value)
        except (ValueError, KeyError):
            raise ValueError(f"{name} of an aws-kms {what}: that is no value for it") from None
    return found
