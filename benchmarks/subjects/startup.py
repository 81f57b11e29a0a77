"""A fresh interpreter that imports something and ends."""

import subprocess
import sys

from benchmarks.harness import Job, Settings


def version() -> str:
    """The interpreter's version."""
    return sys.version.split()[0]


def start(settings: Settings, module: str) -> Job:
    """Start Python and import a module; the package's own folder is not on the path."""

    def run() -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    return Job(run, size=0, calls=max(1, settings.lookups // 20))
