"""The command `tapeseal`; what it needs beyond the library comes with `tapeseal[cli]`."""

import gc
import importlib.util
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"tapeseal: error: the command line needs {' and '.join(missing)}:"
            " pip install 'tapeseal[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    # Where whoever started us ignored this one, the exit codes of commands, hooks and ssh-keygen would all be 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A plan or an inventory is a hundred thousand objects that stay: to look through them for cycles over and over
    # takes a tenth of the time of `rotate plan`.
    gc.set_threshold(100_000)
    from tapeseal.cli.app import run

    sys.exit(run())
