"""Keyrings, one module for each provider, and keyring(), which makes one from a URI.

A provider's module is imported when a URI names it, so that what it needs may be absent.
"""

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, cast
from urllib.parse import unquote

from tapeseal.datakey import Keyring

_PROVIDERS = {
    "local": "tapeseal.keyrings.local",
    "aws-kms": "tapeseal.keyrings.aws_kms",
    "vault-transit": "tapeseal.keyrings.vault_transit",
    "public-key": "tapeseal.keyrings.public_key",
}

_PROVIDER = re.compile(r"[a-z][a-z0-9-]{0,31}")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class _ProviderModule(Protocol):
    def from_uri(self, address: str, parameters: Mapping[str, str], /) -> Keyring:
        """Make the keyring of `provider:address?name=value&…`, all of it percent-decoded."""


def keyring(uri: str | Sequence[str]) -> Keyring:
    """Make the keyring that a URI names, or AnyOf of a list of them.

    `local:PATH` is a key file, see LocalKeyring; under a passphrase it takes one of
    `?passphrase_file=PATH`, `?passphrase_fd=NUMBER` and `?passphrase_env=NAME`. `public-key:PATH`
    is either half of a key pair, see PublicKeyKeyring; its private half takes the same.
    `aws-kms:KEY?region=REGION` is a key of AWS KMS, see AwsKmsKeyring; its further settings are
    parameters too.

    Args:
        uri: `PROVIDER:ADDRESS?NAME=VALUE&NAME=VALUE`, where `%3F` is a question mark in the
            address, `%26` an ampersand in a value and `%25` a percent sign in both.

    Raises:
        ValueError: it is no such URI, or the provider has no such parameter.
        KeyUnavailableError: the key cannot be had.
    """
    if isinstance(uri, str):
        return _one(uri)
    if len(uri) == 1:
        return _one(uri[0])
    from tapeseal.keyrings.any_of import AnyOf

    return AnyOf([_one(each) for each in uri])


def _one(uri: str) -> Keyring:
    provider, address, parameters = parse_uri(uri, _PROVIDERS, "keyring")
    module = cast(_ProviderModule, importlib.import_module(_PROVIDERS[provider]))
    return module.from_uri(address, parameters)


def parse_uri(uri: str, providers: Iterable[str], what: str) -> tuple[str, str, dict[str, str]]:
    """Return provider, address and parameters of a URI, percent-decoded.

    Args:
        uri: as for keyring().
        providers: those there are.
        what: what the URI is of, in errors: "keyring".

    Raises:
        ValueError: it is no such URI.
    """
    # No error repeats more of the URI than it must: someone may have put a secret there.
    provider, colon, rest = uri.partition(":")
    known = ", ".join(f"{name}:" for name in providers)
    if not colon or not _PROVIDER.fullmatch(provider):
        example = (
            "local:PATH is that of a key file" if "local" in providers else "aws-kms:alias/NAME"
        )
        raise ValueError(f"a {what}'s URI starts with one of: {known} ({example})")
    if provider not in providers:
        raise ValueError(f"there are no {provider}: {what}s in this version, only: {known}")
    address, _, query = rest.partition("?")
    parameters: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        name = _decode(name, what)
        if not equals or name in parameters:
            raise ValueError(f"a {provider}: {what}'s parameters are NAME=VALUE, each name once")
        parameters[name] = _decode(value, what)
    return provider, _decode(address, what), parameters


def _decode(text: str, what: str) -> str:
    if _BAD_PERCENT.search(text):
        raise ValueError(f"a percent sign in a {what}'s URI is written %25")
    # Paths that are no UTF-8 keep their bytes, as os.fsdecode would have it.
    return unquote(text, errors="surrogateescape")
