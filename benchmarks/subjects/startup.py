"""A fresh interpreter that imports numpy, or something else, and ends."""

import importlib.metadata
import subprocess
import sys

from benchmarks.harness import Job, Settings


def version() -> str:
    """The version of numpy."""
    return importlib.metadata.version("numpy")


def start(settings: Settings, module: str) -> Job:
    """Start Python and import a module."""

    def run() -> None:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)

    return Job(run, size=0, calls=max(1, settings.lookups // 20))
