"""A fresh interpreter that imports numpy, or something else, and ends."""

import importlib.metadata
import os
import subprocess
import sys

from benchmarks.harness import Job, Settings


def version() -> str:
    """The version of numpy."""
    return importlib.metadata.version("numpy")


def start(settings: Settings, module: str, statement: str = "") -> Job:
    """Start Python, import a module, from byte code as an installation leaves it, and execute a statement."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(settings.path("bytecode"))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run() -> None:
        code = f"import {module}\n{statement}"
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    run()

    return Job(run, size=0, calls=max(1, settings.lookups // 20))
