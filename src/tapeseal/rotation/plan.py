"""The plan: which secrets there are, and when and how each of them changes."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tapeseal.errors import PlanError
from tapeseal.files import StrPath
from tapeseal.rotation.checks import CHECKS, make_check
from tapeseal.rotation.kinds import KINDS, make_kind
from tapeseal.rotation.schedule import ANY_TIME, SCHEDULES, Calendars, Window, read_window
from tapeseal.rotation.settings import (
    Setting,
    duration_text,
    expanded,
    load_class,
    read_settings,
)
from tapeseal.rotation.targets import TARGETS, make_target

try:
    # The same, compiled: a plan may have thousands of secrets.
    import tomli as tomllib
except ModuleNotFoundError:
    import tomllib  # type: ignore[no-redef]

TIERS: Final = ("root", "application", "configuration")

STAGING: Final = "secret/tapeseal-rotation"
"""Where in KV a rotation under way keeps its new credential, where the plan does not say."""
CONSUMERS: Final = "secret/tapeseal-consumers"
"""Where in KV consumers say which version they use, where the plan does not."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What secrets and consumers may be called: a part of a path."""
_KV_PATH = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)+")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):(\d{1,5})")


@dataclass(frozen=True)
class PlannedSecret:
    """One secret of a plan."""

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """The settings of its kind, checked, with the defaults filled in."""
    deploy: Sequence[Mapping[str, Any]] = ()
    """The settings of each target, checked, with the defaults filled in; `type` among them."""
    verify: Sequence[Mapping[str, Any]] = ()
    """The settings of each check, checked, with the defaults filled in; `type` among them."""
    consumers: Sequence[str] = ()
    """Who must be seen on a new version before the old one ends."""
    tier: str = "application"
    owner: str = ""
    schedule: timedelta = timedelta(days=90)
    """How old it gets."""
    before: timedelta | None = None
    """How long before its own end it changes; None: as schedule.BEFORE_END has it."""
    window: Window = ANY_TIME
    grace: timedelta = timedelta(days=1)
    """How long consumers have after the verification, before their absence is an alarm."""
    settle: timedelta = timedelta(seconds=10)
    """How long a target may take to accept a new credential."""
    monitor: timedelta = timedelta(minutes=5)
    """How long after the revoke the new credential and the old one are looked at."""
    deadline: timedelta = timedelta(minutes=5)
    """How long a run works on a rotation before it leaves it to the next one; a window must be open for as long."""


@dataclass(frozen=True)
class Pair:
    """Secrets of which one alone changes at a time, such as those of a gateway and of its backup."""

    members: Sequence[str]
    offset: timedelta
    """How long after the last change of the one the other may change."""


@dataclass(frozen=True)
class Plan:
    """A plan as it was read."""

    path: str
    secrets: Mapping[str, PlannedSecret]
    pairs: Mapping[str, Pair]
    state: Path
    """The journal."""
    staging: str
    consumers: str
    parallel: int
    """How many rotations at once."""
    metrics: str
    """HOST:PORT where the daemon serves them."""
    tapes: Sequence[str]
    """Tapes, folders and patterns that a compromise may have exposed."""

    def pairs_of(self, name: str) -> list[Pair]:
        """Return the pairs that a secret is a member of."""
        return [pair for pair in self.pairs.values() if name in pair.members]


_ROTATION: Final[Mapping[str, Setting]] = {
    "state": Setting(Path, default="rotation.db"),
    "staging": Setting(str, default=STAGING),
    "consumers": Setting(str, default=CONSUMERS),
    "parallel": Setting(int, default=8, least=1),
    "metrics": Setting(str, default="127.0.0.1:9464"),
    "tapes": Setting(list, default=[]),
}
_SECRET: Final[Mapping[str, Setting]] = {
    "kind": Setting(str),
    "tier": Setting(str, choices=TIERS),
    "owner": Setting(str),
    "schedule": Setting(timedelta, default=None),
    "before": Setting(timedelta, default=None),
    "consumers": Setting(list, default=[]),
    "grace": Setting(timedelta, default=PlannedSecret.grace, zero=True),
    "settle": Setting(timedelta, default=PlannedSecret.settle, zero=True),
    "monitor": Setting(timedelta, default=PlannedSecret.monitor, zero=True),
    "deadline": Setting(timedelta, default=PlannedSecret.deadline),
}
_PAIR: Final[Mapping[str, Setting]] = {"members": Setting(list), "offset": Setting(timedelta)}
_PARTS: Final = ("options", "window", "deploy", "verify")


def read_plan(path: StrPath) -> Plan:
    """Read a plan and check all of it but what check_windows() does.

    Args:
        path: a file in TOML, as docs/rotation.md has it.

    Raises:
        FileNotFoundError: there is no such file.
        PlanError: it is no plan.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanError(name, [f"it is no TOML: {error}"]) from None
    problems: list[str] = []
    directory = Path(name).resolve().parent
    problems += [
        f"{each}: a plan has the tables rotation, secret and pair"
        for each in sorted(document.keys() - {"rotation", "secret", "pair"})
    ]
    common = read_settings(
        _table(document, "rotation", "", problems),
        _ROTATION,
        place="rotation",
        directory=directory,
        problems=problems,
    )
    for setting in ("staging", "consumers"):
        if setting in common and not _KV_PATH.fullmatch(common[setting]):
            problems.append(
                f"rotation: {setting} is the path of a KV secret, MOUNT/PATH, not {common[setting]!r}"
            )
    tapes = []
    for each in common.get("tapes", ()):
        try:
            tapes.append(str(directory / expanded(each)))
        except ValueError as error:
            problems.append(f"rotation: one of tapes {error}")
    if "metrics" in common and not _ADDRESS.fullmatch(common["metrics"]):
        problems.append(f"rotation: metrics is HOST:PORT, not {common['metrics']!r}")
    reader = _Reader(directory, problems)
    secrets = {
        each: reader.secret(each, table)
        for each, table in _tables(document, "secret", problems).items()
    }
    pairs = {
        each: reader.pair(each, table, secrets)
        for each, table in _tables(document, "pair", problems).items()
    }
    if problems:
        raise PlanError(name, problems)
    return Plan(
        path=name,
        secrets=secrets,
        pairs=pairs,
        state=directory / common["state"],
        staging=common["staging"],
        consumers=common["consumers"],
        parallel=common["parallel"],
        metrics=common["metrics"],
        tapes=tapes,
    )


def check_windows(plan: Plan, calendars: Calendars) -> None:
    """Check that each window of a plan is open at some time.

    Raises:
        PlanError: one is not, or names no market.
        ModuleNotFoundError: a window names a market, and exchange_calendars is not installed.
    """
    now = datetime.now(UTC)
    problems: dict[tuple[Window, timedelta], str] = {}
    found = []
    for secret in plan.secrets.values():
        key = secret.window, secret.deadline
        if key not in problems:
            problems[key] = ""
            try:
                if calendars.opening(secret.window, now, secret.deadline) is None:
                    length = duration_text(secret.deadline)
                    problems[key] = f"it is never open for as long as the deadline, {length}"
            except ValueError as error:
                problems[key] = str(error)
        if problems[key]:
            found.append(f"secret.{secret.name}.window: {problems[key]}")
    if found:
        raise PlanError(plan.path, found)


def _table(
    parent: Mapping[str, Any], name: str, place: str, problems: list[str]
) -> Mapping[str, Any]:
    value = parent.get(name, {})
    if isinstance(value, dict):
        return value
    problems.append(f"{place}{name} is a table")
    return {}


def _tables(
    document: Mapping[str, Any], name: str, problems: list[str]
) -> dict[str, Mapping[str, Any]]:
    parent = _table(document, name, "", problems)
    found = {each: _table(parent, each, f"{name}.", problems) for each in parent}
    problems += [
        f"{name}.{each}: a name is letters, digits, and . _ - after the first"
        for each in found
        if not NAME.fullmatch(each)
    ]
    return found


class _Reader:
    """Reads the tables of secrets and pairs."""

    def __init__(self, directory: Path, problems: list[str]) -> None:
        self._directory = directory
        self._problems = problems

    def secret(self, name: str, table: Mapping[str, Any]) -> PlannedSecret:
        """Read the table of a secret."""
        place = f"secret.{name}"
        before = len(self._problems)
        plain = {key: value for key, value in table.items() if key not in _PARTS}
        found = self._settings(plain, _SECRET, place)
        for consumer in found.get("consumers", ()):
            if not NAME.fullmatch(consumer):
                self._problems.append(f"{place}: the consumer {consumer!r} has no usable name")
        kind = found.get("kind")
        if kind is not None and kind not in KINDS:
            self._problems.append(f"{place}: kind is one of {', '.join(KINDS)}, not {kind!r}")
            kind = None
        options: Mapping[str, Any] = _table(table, "options", f"{place}.", self._problems)
        if kind is not None:
            settings = load_class(KINDS, kind, "kind").settings
            options = self._settings(options, settings, f"{place}.options")
        window = read_window(
            _table(table, "window", f"{place}.", self._problems), f"{place}.window", self._problems
        )
        found["schedule"] = found.get("schedule") or SCHEDULES.get(kind or "", timedelta(days=90))
        found["kind"] = kind or ""
        secret = PlannedSecret(
            name=name,
            options=options,
            deploy=self._parts(table, "deploy", place, TARGETS, "type of target"),
            verify=self._parts(table, "verify", place, CHECKS, "type of check"),
            window=window,
            **found,
        )
        if len(self._problems) == before:
            self._make_parts(secret, place)
        return secret

    def pair(
        self, name: str, table: Mapping[str, Any], secrets: Mapping[str, PlannedSecret]
    ) -> Pair:
        """Read the table of a pair."""
        place = f"pair.{name}"
        found = self._settings(table, _PAIR, place)
        members = found.get("members", ())
        self._problems += [
            f"{place}: there is no secret {each!r} in the plan"
            for each in members
            if each not in secrets
        ]
        if "members" in found and len(set(members)) < 2:
            self._problems.append(f"{place}: a pair has two members or more")
        return Pair(tuple(members), found.get("offset", timedelta()))

    def _settings(
        self, table: Mapping[str, Any], settings: Mapping[str, Setting], place: str
    ) -> dict[str, Any]:
        return read_settings(
            table, settings, place=place, directory=self._directory, problems=self._problems
        )

    def _parts(
        self,
        table: Mapping[str, Any],
        name: str,
        place: str,
        registry: Mapping[str, str],
        what: str,
    ) -> Sequence[Mapping[str, Any]]:
        parts = table.get(name, [])
        if not isinstance(parts, list) or not all(isinstance(each, dict) for each in parts):
            self._problems.append(f"{place}: {name} is a list of tables: [[{place}.{name}]]")
            return []
        found = []
        for number, part in enumerate(parts):
            where = f"{place}.{name}[{number}]"
            settings = {"type": Setting(str, choices=tuple(registry))}
            if part.get("type") in registry:
                settings |= load_class(registry, part["type"], what).settings
            else:
                part = {"type": part["type"]} if "type" in part else {}
            found.append(self._settings(part, settings, where))
        return found

    def _make_parts(self, secret: PlannedSecret, place: str) -> None:
        """Have kind, targets and checks look at what only they can judge."""
        try:
            make_kind(secret.kind).calls(secret)
        except ValueError as error:
            self._problems.append(f"{place}.options: {error}")
        for name, parts, make in (
            ("deploy", secret.deploy, make_target),
            ("verify", secret.verify, make_check),
        ):
            for number, settings in enumerate(parts):
                try:
                    make(settings, secret)
                except ValueError as error:
                    self._problems.append(f"{place}.{name}[{number}]: {error}")
