"""The target "kubernetes": a Secret of a Kubernetes cluster."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.errors import RotationError
from tapeseal.rotation.commands import no_part
from tapeseal.rotation.isolated import run_isolated
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential, Rotation
    from tapeseal.rotation.plan import PlannedSecret


class KubernetesTarget:
    """Applies keys of a Secret, which keeps its others (server-side apply, field manager "tapeseal").

    `keys` says by the keys of the Secret which part of the credential each gets; without it, all of them by their own
    names. Keys that somebody else manages are a conflict, unless `force` takes them over. The cluster is that of
    `kubeconfig` (or of KUBECONFIG) and its `context`, or the one that this process runs in.

    The `kubernetes` client holds what it sends in Python strings, so it runs in a process of its own.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "namespace": Setting(str),
        "name": Setting(str),
        "keys": Setting(dict, default=None),
        "force": Setting(bool, default=False),
        "kubeconfig": Setting(Path, default=None),
        "context": Setting(str, default=None),
        "timeout": Setting(timedelta, default=timedelta(seconds=30)),
    }

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        self._settings = settings
        self._kubeconfig: Path | None = settings["kubeconfig"]
        self._keys: Mapping[str, str] | None = settings["keys"]
        if self._keys is not None and not self._keys:
            raise ValueError("keys names no part of the credential")

    def deploy(self, credential: "Credential", rotation: "Rotation") -> None:
        """Apply the keys."""
        keys = self._keys or {name: name for name in credential}
        for part in keys.values():
            if part not in credential:
                raise RotationError(f"{self._name}: {no_part(part, credential)}")
        settings = {
            "namespace": self._settings["namespace"],
            "name": self._settings["name"],
            "keys": keys,
            "force": self._settings["force"],
            "kubeconfig": None if self._kubeconfig is None else str(self._kubeconfig),
            "context": self._settings["context"],
        }
        run_isolated(
            "kubernetes",
            settings,
            {part: credential[part] for part in keys.values()},
            self._settings["timeout"].total_seconds(),
        )

    @property
    def _name(self) -> str:
        return f"{self._settings['namespace']}/{self._settings['name']}"

    def calls(self) -> list[str]:
        """Name the request."""
        namespace, name = self._settings["namespace"], self._settings["name"]
        return [f"PATCH Kubernetes /api/v1/namespaces/{namespace}/secrets/{name}"]
