"""Checks of the machine and of this process on it: whether memory with keys can end on a disk."""

import contextlib
import os
import resource
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tapeseal.doctor.findings import Checks, Look, Problem, SetUp, registrar

LEAST_LOCKED: Final = 1 << 20
"""Bytes that a process should be able to lock: 256 secrets, each on a page of its own."""
LEAST_OPENSSL: Final = (3, 5)
"""The LTS release; the one before, 3.0, has had no fixes since September 2026."""

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)

_CAP_IPC_LOCK: Final = 1 << 14


@dataclass(frozen=True)
class Machine:
    """What is known of machine and process. The paths may be those of another root."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")

    def swaps(self) -> Iterator[str]:
        """Yield the areas of swap space on a disk that is not encrypted."""
        lines = (self.proc / "swaps").read_text().splitlines()[1:]
        for name in (line.split()[0] for line in lines if line.strip()):
            device = os.path.basename(os.path.realpath(name))
            if device.startswith("zram"):
                continue  # in memory
            uuid = self.sys / "block" / device / "dm" / "uuid"
            if not (uuid.exists() and uuid.read_text().startswith("CRYPT-")):
                yield name

    def locks_any(self) -> bool:
        """Whether this process may lock memory without a limit."""
        for line in (self.proc / "self" / "status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _CAP_IPC_LOCK)
        return False


class MachineLook(Look):
    """The machine; everything about it can be seen on Linux."""

    def __init__(self, machine: Machine, version: str, linked: bool) -> None:
        super().__init__("the machine", 10.0)
        self.machine = machine
        self.openssl_version = version
        """As OpenSSL says it: "OpenSSL 3.5.7 9 Jun 2026"."""
        self.openssl_linked = linked
        """Whether it is the system's, and not the one that is part of the package."""

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Note what the system does not show."""
        try:
            yield
            self.seen += 1
        except (OSError, ValueError, IndexError) as error:
            said = getattr(error, "strerror", None) or str(error)
            self.not_seen(
                "machine",
                "this machine",
                f"could not be looked at: {said}",
                "Run it where /proc and /sys are.",
            )


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[MachineLook | None]:
    """Look at this machine."""
    from tapeseal import _core

    assert _core.__file__ is not None
    linked = b"libcrypto.so" in Path(_core.__file__).read_bytes()
    yield MachineLook(Machine(), _core.openssl_version(), linked)


@check(
    "machine.locked-memory",
    "A limit on locked memory of under 1 MiB (RLIMIT_MEMLOCK).",
    "Key memory that cannot be locked may be swapped out to a disk.",
)
def _locked_memory(look: MachineLook) -> Iterator[Problem]:
    with look.looking():
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if (
            limit != resource.RLIM_INFINITY
            and limit < LEAST_LOCKED
            and not look.machine.locks_any()
        ):
            yield Problem(
                "warning",
                "this process",
                f"it may lock {limit:,} bytes of memory",
                "For a service: LimitMEMLOCK=8M in its unit.",
                "ulimit -l 8192",
            )


@check(
    "machine.core-dumps",
    "Core dumps that are enabled (RLIMIT_CORE).",
    "Key memory is kept out of them; what other libraries hold for a moment is not.",
)
def _core_dumps(look: MachineLook) -> Iterator[Problem]:
    with look.looking():
        limit = resource.getrlimit(resource.RLIMIT_CORE)[0]
        if limit != 0:
            size = "any size" if limit == resource.RLIM_INFINITY else f"{limit:,} bytes"
            yield Problem(
                "warning",
                "this process",
                f"it may dump core, of {size}",
                "For a service: LimitCORE=0 in its unit.",
                "ulimit -c 0",
            )


@check(
    "machine.swap",
    "Swap space on a disk that is not encrypted.",
    "What is swapped out stays on the disk, and leaves the house with it.",
)
def _swap(look: MachineLook) -> Iterator[Problem]:
    with look.looking():
        for name in look.machine.swaps():
            yield Problem(
                "info",
                name,
                "it is in use, and not encrypted",
                "Encrypt it (option swap in /etc/crypttab), or do without.",
                f"swapoff {shlex.quote(name)}",
            )


@check(
    "machine.openssl",
    "An OpenSSL of the system's that is older than 3.5.",
    "Releases before the LTS release 3.5 get no fixes any more.",
)
def _openssl(look: MachineLook) -> Iterator[Problem]:
    with look.looking():
        numbers = look.openssl_version.split()[1].split(".")
        if (int(numbers[0]), int(numbers[1])) < LEAST_OPENSSL:
            whose = "the system's" if look.openssl_linked else "the one in the package"
            yield Problem(
                "warning",
                look.openssl_version,
                f"it is {whose}, and older than 3.5",
                "The wheel has its own.",
                "pip install --force-reinstall --only-binary=tapeseal tapeseal",
            )
