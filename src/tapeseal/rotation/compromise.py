"""What a compromise touched: the secrets of a plan, and the tapes that a key opens."""

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from tapeseal.fleet import Condition, Exposed, blast_radius, find_tapes
from tapeseal.rotation.plan import Plan, PlannedSecret

_OF_SECRETS: Final = ("secret", "path", "host", "owner", "consumer")
_CLUE = re.compile(rf"({'|'.join(_OF_SECRETS)})\s*=\s*(.+)")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Compromise:
    """What is known of a compromise.

    Args:
        conditions: of wrapping keys, as `tapeseal inspect --where` has them: one recipient of a tape must meet all.
        clues: pairs of "secret", "path", "host", "owner" or "consumer" and a pattern; a secret is touched that meets
            any of them.
    """

    conditions: Sequence[Condition]
    clues: Sequence[tuple[str, str]]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Read `key=transit/day`, `version<3`, `path=secret/api-keys/*`, `host=db1`, `owner=…`, `secret=…`.

        Raises:
            ValueError: one is none of these.
        """
        conditions, clues = [], []
        for text in texts:
            found = _CLUE.fullmatch(text.strip())
            if found is not None:
                clues.append((found[1], found[2]))
                continue
            try:
                conditions.append(Condition.parse(text))
            except ValueError:
                raise ValueError(
                    f"{text!r} says nothing of a compromise: it is key=, provider= or version< of a wrapping key, or"
                    f" {'=, '.join(_OF_SECRETS)}= of secrets; * and ? stand for what they do in a shell"
                ) from None
        return cls(conditions, clues)

    def __str__(self) -> str:
        return " ".join(
            [
                *(f"{each.field}{each.operator}{each.value}" for each in self.conditions),
                *(f"{name}={pattern}" for name, pattern in self.clues),
            ]
        )

    def secrets(self, plan: Plan) -> list[str]:
        """Return the names of the secrets that are touched: those that a clue means, or that name the wrapping key."""
        keys = [
            each.value for each in self.conditions if each.field == "key" and each.operator == "="
        ]
        return [
            name
            for name, secret in plan.secrets.items()
            if any(_names_key(secret, key) for key in keys)
            or any(_meets(secret, clue, pattern) for clue, pattern in self.clues)
        ]

    def tapes(self, plan: Plan) -> Iterator[Exposed | tuple[str, Exception]]:
        """Yield the plan's tapes that the wrapping key opens, and those that cannot be read."""
        if not self.conditions:
            return
        for name in plan.tapes:
            try:
                yield from blast_radius(find_tapes([name]), self.conditions)
            except OSError as error:
                yield name, error.with_traceback(None)


def _meets(secret: PlannedSecret, clue: str, pattern: str) -> bool:
    match clue:
        case "secret":
            texts: Iterable[str] = [secret.name]
        case "owner":
            texts = [secret.owner]
        case "consumer":
            texts = secret.consumers
        case "host":
            found = [
                *secret.consumers,
                *(word for text in _texts(secret) for word in _WORD.findall(text)),
            ]
            # gw7 is gw7.example too; what an address begins with is no name.
            texts = {*found, *(each.partition(".")[0] for each in found if not each[0].isdigit())}
        case _:
            texts = _texts(secret)
    return any(fnmatch.fnmatchcase(text, pattern) for text in texts)


def _names_key(secret: PlannedSecret, pattern: str) -> bool:
    """Whether a key is named as it is in its service, or as the URI of a keyring, PROVIDER:KEY?OPTIONS."""
    names = set()
    for text in _texts(secret):
        names |= {text, text.partition(":")[2].partition("?")[0]}
    return any(fnmatch.fnmatchcase(name, pattern) for name in names if name)


def _texts(secret: PlannedSecret) -> list[str]:
    """Return all texts of a secret's settings."""
    found: list[str] = []
    pending: list[Any] = [secret.options, *secret.deploy, *secret.verify]
    while pending:
        each = pending.pop()
        if isinstance(each, Mapping):
            pending += each.values()
        elif isinstance(each, list | tuple):
            pending += each
        elif each is not None and not isinstance(each, bool):
            found.append(str(each))
    return found
