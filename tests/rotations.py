"""What tests of rotations share: secrets with their settings filled in, services of a server, secrets from texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servers.bao import Server
from tapeseal.rotation.checks import CHECKS, Check, make_check
from tapeseal.rotation.kinds import KINDS, Rotation
from tapeseal.rotation.plan import PlannedSecret
from tapeseal.rotation.settings import load_class, read_settings
from tapeseal.rotation.targets import TARGETS, Target, make_target
from tapeseal.secret import Secret
from tapeseal.vault import Token, VaultSession


def credential(**parts: str) -> dict[str, Secret]:
    """Return a credential of these parts."""
    return {name: Secret.take(bytearray(text.encode())) for name, text in parts.items()}


def exposed(parts: Mapping[str, Secret] | None) -> dict[str, str] | None:
    """Return a credential in the clear."""
    return None if parts is None else {name: each.expose() for name, each in parts.items()}


def filled(table: Mapping[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a plan has them, checked and with the defaults filled in."""
    problems: list[str] = []
    found = read_settings(table, declared, place="test", directory=Path("/"), problems=problems)
    assert problems == []
    return found


def planned(kind: str, name: str = "desk", **options: Any) -> PlannedSecret:
    """Return a secret of a plan."""
    declared = load_class(KINDS, kind, "kind").settings
    return PlannedSecret(name, kind, options=filled(options, declared))


def target(type: str, **settings: Any) -> Target:
    """Return a target as a plan makes it."""
    declared = load_class(TARGETS, type, "target").settings
    return make_target({**filled(settings, declared), "type": type}, planned("exec", **NOTHING))


def check(type: str, **settings: Any) -> Check:
    """Return a check as a plan makes it."""
    declared = load_class(CHECKS, type, "check").settings
    return make_check({**filled(settings, declared), "type": type}, planned("exec", **NOTHING))


NOTHING = {"live": ["true"], "generate": ["true"], "discard": ["true"], "revoke": ["true"]}


class TestServices:
    """Services of a plan, with a token of a server's."""

    __test__ = False

    def __init__(self, server: Server | None = None, token: str | None = None, **aws: Any) -> None:
        self._aws = aws
        if server is not None:
            self.vault = VaultSession(server.address, login=Token(token or server.token))

    def aws(self, service: str) -> Any:
        """Return the client that was given for a service."""
        return self._aws[service]


def rotation(
    secret: PlannedSecret | None = None,
    services: Any = None,
    id: str = "0123456789abcdef",
    **facts: Any,
) -> Rotation:
    """Return a rotation of a secret."""
    return Rotation(
        id, secret or planned("exec", **NOTHING), services or TestServices(), dict(facts)
    )
