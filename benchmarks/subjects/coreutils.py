"""`cp`: what it costs to copy a file at all."""

import filecmp
import subprocess

from benchmarks.harness import Job, Settings


def version() -> str:
    """The first line of `cp --version`."""
    answer = subprocess.run(["cp", "--version"], check=True, capture_output=True, text=True)
    return answer.stdout.splitlines()[0]


def copy_file(settings: Settings) -> Job:
    """Copy a file."""
    source, target = settings.source, settings.path("copy")

    def run() -> None:
        subprocess.run(["cp", source, target], check=True)

    run()
    assert filecmp.cmp(source, target, shallow=False)
    target.unlink()
    return Job(run, settings.file_size, after=target.unlink)
