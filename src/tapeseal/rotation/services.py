"""The services of a plan: opened at first use, shared by all rotations."""

import threading
from typing import TYPE_CHECKING, Any

from tapeseal.closing import Closing

if TYPE_CHECKING:
    from tapeseal.vault.session import VaultSession


class PlanServices(Closing):
    """Vault as the variables of its command line have it, and AWS as boto3 finds it.

    Args:
        vault: a session to use instead; it stays its owner's.
    """

    def __init__(self, vault: "VaultSession | None" = None) -> None:
        self._vault = vault
        self._own: VaultSession | None = None
        self._aws: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def vault(self) -> "VaultSession":
        """The session with the Vault."""
        with self._lock:
            if self._vault is None:
                from tapeseal.vault.session import VaultSession

                self._vault = self._own = VaultSession()
            return self._vault

    def aws(self, service: str) -> Any:
        """Return a boto3 client; its calls end within some seconds.

        Raises:
            ModuleNotFoundError: boto3 is not installed.
        """
        with self._lock:
            if service not in self._aws:
                import boto3
                from botocore.config import Config

                config = Config(
                    connect_timeout=2.0,
                    read_timeout=10.0,
                    retries={"total_max_attempts": 3, "mode": "standard"},
                )
                self._aws[service] = boto3.client(service, config=config)
            return self._aws[service]

    def close(self) -> None:
        """Close what was opened here."""
        with self._lock:
            if self._own is not None:
                self._own.close()
                self._vault = self._own = None
            for client in self._aws.values():
                client.close()
            self._aws.clear()
