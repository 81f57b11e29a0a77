"""The plan: which secrets there are, and when and how each of them changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


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
