"""Checks of the keys of AWS KMS that keyrings and the rotation plan name."""

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from tapeseal.doctor.findings import Checks, GoneError, Look, Problem, SetUp, registrar

if TYPE_CHECKING:
    from tapeseal.kms import KeyInfo, Kms

SECONDS: Final = 30.0
"""For all questions to KMS together."""

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)

_ACTIONS: Final = "kms:DescribeKey, kms:GetKeyRotationStatus, kms:ListKeyRotations"


class Named(NamedTuple):
    """A key as it is named, and where."""

    key: str
    region: str | None
    endpoint_url: str | None


class KmsLook(Look):
    """The keys, each asked for once."""

    def __init__(self, keys: Iterable[Named]) -> None:
        super().__init__("AWS KMS", SECONDS)
        self.keys = list(dict.fromkeys(keys))
        self._clients: dict[tuple[str | None, str | None], Kms] = {}

    def endpoints(self) -> list[str]:
        """Return the addresses that keys name, or the environment does."""
        named = [each.endpoint_url for each in self.keys]
        named += [os.environ.get(name) for name in ("AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL")]
        return list(dict.fromkeys(each for each in named if each))

    def infos(self) -> Iterator[tuple[Named, "KeyInfo"]]:
        """Yield what KMS says of each key that may be seen."""
        for each in self.keys:
            info = self.once(each, partial(self._describe, each))
            if info is not None:
                yield each, info

    def _describe(self, each: Named) -> "KeyInfo | None":
        from tapeseal.errors import AccessDeniedError, ServiceUnavailableError, WrappingKeyError
        from tapeseal.kms import KeyInfo

        self.left()
        try:
            found = self._client(each).describe(each.key)
        except WrappingKeyError as error:
            found = KeyInfo(each.key, (), problem=str(error))
        except (AccessDeniedError, ServiceUnavailableError) as error:
            self._hidden(each.key, _ACTIONS, error)
            return None
        self.seen += 1
        return found

    def policy(self, each: Named) -> Mapping[str, Any] | None:
        """Return a key's policy; None where it may not be seen."""
        from tapeseal.errors import KeyUnavailableError

        self.left()
        try:
            found = self._client(each).policy(each.key)
        except KeyUnavailableError as error:
            self._hidden(each.key, "kms:GetKeyPolicy", error)
            return None
        self.seen += 1
        return found

    def _hidden(self, key: str, actions: str, error: Exception) -> None:
        from tapeseal.errors import ServiceUnavailableError

        fix = f"Allow {actions} on the key, in its policy or in that of IAM."
        if isinstance(error, ServiceUnavailableError):
            fix = "See that AWS KMS can be reached from here."
        self.not_seen(f"{key} {actions}", f"aws-kms:{key}", f"could not be looked at: {error}", fix)

    def _client(self, each: Named) -> "Kms":
        from tapeseal.kms import Kms

        where = each.region, each.endpoint_url
        if where not in self._clients:
            try:
                self._clients[where] = Kms(region=each.region, endpoint_url=each.endpoint_url)
            except ValueError as error:
                raise GoneError(
                    str(error), "Give such a keyring: aws-kms:KEY?region=REGION"
                ) from None
            except ModuleNotFoundError as error:
                raise GoneError(str(error), command="pip install 'tapeseal[aws]'") from None
        return self._clients[where]


def _keys(set_up: SetUp) -> Iterator[Named]:
    from tapeseal.keyrings import parse_uri
    from tapeseal.kms import parse_arn

    uris = list(set_up.keyrings)
    for secret in set_up.planned:
        if secret.kind == "kms-key":
            key = str(secret.options["key"])
            arn = parse_arn(key)
            yield Named(key, None if arn is None else arn.region, None)
        elif secret.kind == "tape-recipients":
            uris += [*secret.options["opens"], *secret.options["recipients"]]
    for uri in uris:
        if uri.startswith("aws-kms:"):
            _, key, parameters = parse_uri(uri, ("aws-kms",), "keyring")
            arn = parse_arn(key)
            region = parameters.get("region", None if arn is None else arn.region)
            yield Named(key, region, parameters.get("endpoint_url"))


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[KmsLook | None]:
    """Look at the keys of AWS KMS that keyrings and plan name."""
    found = KmsLook(_keys(set_up))
    yield found if found.keys else None


@check(
    "kms.endpoint",
    "An address of KMS that is http://.",
    "Data keys cross the network in the clear.",
)
def _endpoint(kms: KmsLook) -> Iterator[Problem]:
    kms.seen += 1
    for url in kms.endpoints():
        parts = urlsplit(url)
        if parts.scheme != "https":
            here = parts.hostname in ("localhost", "127.0.0.1", "::1")
            yield Problem(
                "info" if here else "serious",
                url,
                "it is http://" + (", to this machine itself" if here else ""),
                "Leave endpoint_url out, or give one of https://",
            )


@check(
    "kms.state",
    "Keys that are missing, disabled or about to be deleted.",
    "What is encrypted under such a key does not open, or soon never will.",
)
def _state(kms: KmsLook) -> Iterator[Problem]:
    for each, info in kms.infos():
        key, where = shlex.quote(info.key), _where(each)
        if not info.state:
            yield Problem(
                "serious",
                f"aws-kms:{each.key}",
                info.problem or "it says no state",
                "Name a key that is there.",
                "tapeseal kms keys" + where,
            )
        elif info.state == "PendingDeletion":
            when = "" if info.deletion is None else f" on {info.deletion:%Y-%m-%d}"
            yield Problem(
                "serious",
                f"aws-kms:{each.key}",
                f"it will be deleted{when}",
                command=f"aws kms cancel-key-deletion --key-id {key} && aws kms enable-key --key-id {key}",
            )
        elif info.state != "Enabled":
            yield Problem(
                "serious",
                f"aws-kms:{each.key}",
                f"its state is {info.state}",
                command=f"aws kms enable-key --key-id {key}",
            )


def _where(each: Named) -> str:
    """Return the options of `tapeseal kms` for where a key is."""
    text = "" if each.region is None else f" --region {shlex.quote(each.region)}"
    return text + (
        "" if each.endpoint_url is None else f" --endpoint-url {shlex.quote(each.endpoint_url)}"
    )


@check(
    "kms.rotation",
    "Keys that KMS does not rotate.",
    "The older the material of a key, the more is lost with it.",
)
def _rotation(kms: KmsLook) -> Iterator[Problem]:
    for each, info in kms.infos():
        if info.state and info.problem is not None:
            kms._hidden(each.key, _ACTIONS, PermissionError(info.problem))
        if info.rotation is not None and not info.rotation.enabled:
            yield Problem(
                "warning",
                f"aws-kms:{each.key}",
                "KMS does not rotate it" + _since(info.rotated or info.created),
                command=f"tapeseal kms rotation {shlex.quote(info.key)} --enable 365{_where(each)}",
            )


def _since(made: datetime | None) -> str:
    return "" if made is None else f"; its material is of {made:%Y-%m-%d}"


@check(
    "kms.policy",
    "Key policies that let anybody in.",
    "A principal of * without a condition is every account of AWS.",
)
def _policy(kms: KmsLook) -> Iterator[Problem]:
    for each, info in kms.infos():
        policy = kms.policy(each) if info.state else None
        if policy is None:
            continue
        statements = policy.get("Statement", [])
        for statement in statements if isinstance(statements, list) else [statements]:
            if (
                isinstance(statement, dict)
                and statement.get("Effect") == "Allow"
                and not statement.get("Condition")
                and _anybody(statement.get("Principal"))
            ):
                yield Problem(
                    "serious",
                    f"aws-kms:{each.key}",
                    f"its policy allows {_listed(statement.get('Action'))} to everybody",
                    "Name the roles that need it as Principal.",
                    f"aws kms put-key-policy --key-id {shlex.quote(info.key)} --policy-name default --policy"
                    " file://POLICY.json",
                )


def _anybody(principal: object) -> bool:
    named = principal.get("AWS") if isinstance(principal, dict) else principal
    return "*" in (named if isinstance(named, list) else [named])


def _listed(actions: object) -> str:
    return ", ".join(map(str, actions)) if isinstance(actions, list) else str(actions)
