"""Checks of this process's environment: secrets in variables, and switches that make TLS worth nothing."""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from tapeseal.doctor.findings import Checks, Look, Problem, SetUp, registrar

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)

_TRUE: Final = ("1", "t", "true")


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[Look | None]:
    """Look at the variables of this process."""
    found = Look("the environment", 10.0)
    found.seen = 1
    yield found


@check(
    "environment.token",
    "A token of Vault in a variable.",
    "Every child process inherits it, and /proc shows it to every process of this user.",
)
def _token(look: Look) -> Iterator[Problem]:
    for name in ("BAO_TOKEN", "VAULT_TOKEN"):
        if os.environ.get(name):
            yield Problem(
                "info",
                name,
                "it is set",
                "People log in by `vault login`, services as docs/vault.md has it.",
                f"unset {name}",
            )


@check(
    "environment.aws-key",
    "A long-lived access key of AWS in a variable.",
    "It has no end, and every child process inherits it.",
)
def _aws_key(look: Look) -> Iterator[Problem]:
    if os.environ.get("AWS_SECRET_ACCESS_KEY") and not os.environ.get("AWS_SESSION_TOKEN"):
        yield Problem(
            "info",
            "AWS_SECRET_ACCESS_KEY",
            "it is set, without a session's token",
            "People log in by `aws sso login`, services have a role.",
            "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY",
        )


@check(
    "environment.skip-verify",
    "VAULT_SKIP_VERIFY or BAO_SKIP_VERIFY.",
    "Whoever stands in between reads every token and secret; Tapeseal refuses to run with it.",
)
def _skip_verify(look: Look) -> Iterator[Problem]:
    for name in ("BAO_SKIP_VERIFY", "VAULT_SKIP_VERIFY"):
        if os.environ.get(name, "").lower() in _TRUE:
            yield Problem(
                "serious",
                name,
                "it is set: certificates are not checked",
                "Name the CA by VAULT_CACERT.",
                f"unset {name}",
            )
