"""Wrapping keys in AWS KMS (docs/aws.md)."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tapeseal import audit
from tapeseal._core import SecretBuffer
from tapeseal.datakey import DataKey, first_few, no_recipient
from tapeseal.errors import (
    InvalidTag,
    KeyUnavailableError,
    ServiceUnavailableError,
    WrappedKeyError,
)
from tapeseal.kms import (
    LATER,
    MAX_BLOB_SIZE,
    PARAMETERS,
    PROVIDER,
    Arn,
    Connection,
    Refusal,
    check_key,
    options,
    parse_arn,
)
from tapeseal.layout import KEY_SIZE, Recipient, check_context
from tapeseal.transport import PLACEHOLDER

# What sets our wraps apart from all else that is encrypted under the same key (FORMAT 3).
_MARK = {"tapeseal:v1": "wrap"}

_ACCOUNT = re.compile(r"[0-9]{12}")

_CHANGED: Refusal = (
    WrappedKeyError,
    "what the tape holds for this recipient, or the encryption context, was changed",
)
_OTHER_ALIAS: Refusal = (
    KeyUnavailableError,
    "the alias is not of the key that wrapped it: give the ARN of that one",
)


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
        arns = [arn for arn in map(parse_arn, self.keys) if arn is not None]
        for key in self.keys:
            check_key(key)
        for account in self.accounts:
            if not _ACCOUNT.fullmatch(account):
                raise ValueError("accounts are given by their ids of 12 digits")
        if client is None and region is None and arns:
            region = arns[0].region
        self._connection = Connection(
            region=region,
            endpoint_url=endpoint_url,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            max_attempts=max_attempts,
            client=client,
        )
        self.region = self._connection.region
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

    def _here(self, key: str) -> Arn | None:
        """Return the ARN that a recipient's key has in our region."""
        arn = parse_arn(key)
        if arn is None or not arn.resource.startswith("key/"):
            return None
        if self.multi_region and arn.resource.startswith("key/mrk-"):
            return arn._replace(region=self.region)
        return arn if arn.region == self.region else None

    def _candidates(self, arn: Arn) -> list[str]:
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

    def _may_be(self, key: str, arn: Arn) -> bool:
        """Return whether a key that we name so can be the one with that ARN."""
        return arn.may_be(self._arn_of(key) or key, self.region)

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
            raise self._connection.not_whole(key, "CiphertextBlob")
        return Recipient(PROVIDER, arn, base64.b64encode(blob).decode())

    def _unwrap(self, key: str, arn: Arn, wrapped: str, context: Mapping[str, str]) -> DataKey:
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
            raise self._connection.not_whole(key, f"Plaintext of {KEY_SIZE} bytes")
        return DataKey(secret)

    def _answered(self, key: str, answer: Mapping[str, object]) -> str:
        """Return the key ARN that an answer states, where that can be the key we asked for."""
        arn = self._connection.answered(key, answer)
        if not self._may_be(key, arn):
            raise self._connection.of_another_key(key, arn)
        # Of two threads that are the first to ask, both are to go on with the same key.
        if self._resolved.setdefault(key, str(arn)) != str(arn):
            raise ServiceUnavailableError(
                f"{PROVIDER}:{key}: just now it was made to mean {arn}; {LATER}"
            )
        return str(arn)

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
        refusals: dict[str, Refusal] = {}
        if operation == "Decrypt":
            refusals["InvalidCiphertextException"] = _CHANGED
            refusals["IncorrectKeyException"] = _OTHER_ALIAS if self._is_open(key) else _CHANGED
        return self._connection.call(
            operation,
            key,
            {"KeyId": self._resolved.get(key, key), **parameters},
            sends=sends,
            takes=takes,
            refusals=refusals,
        )

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
    return AwsKmsKeyring(key or (), **options(parameters, _PARAMETERS, "keyring"))


_PARAMETERS: Mapping[str, Callable[[str], object]] = {
    **PARAMETERS,
    "accounts": lambda text: text.split(","),
    "partition": str,
    "multi_region": {"true": True, "false": False}.__getitem__,
}


def _decode(wrapped: str) -> bytes | None:
    try:
        blob = base64.b64decode(wrapped, validate=True)
    except ValueError:
        return None
    if not 1 <= len(blob) <= MAX_BLOB_SIZE or base64.b64encode(blob).decode() != wrapped:
        return None
    return blob
