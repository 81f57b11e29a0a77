"""The parsers under a coverage-guided fuzzer; tests/fuzz_parsers.py is what runs, and says what must hold."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fuzz_parsers.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("header", 40_000),
        ("content", 400_000),
        ("recipients", 400_000),
        ("index", 600_000),
        ("tape", 12_000),
        ("blob", 40_000),
        ("keyfile", 300_000),
    ],
)
def test_fuzzer_finds_nothing(target: str, runs: int, tmp_path: Path) -> None:
    """Inputs that a fuzzer makes up neither break a parser nor make it slow, large, or wrong."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: dependency group fuzz")
    if not hasattr(os, "memfd_create"):
        pytest.skip("the program keeps its files in memory as Linux does")
    done = subprocess.run(
        [
            sys.executable,
            PROGRAM,
            target,
            tmp_path / "corpus",
            f"-runs={runs}",
            "-seed=1",
            "-timeout=20",
            "-rss_limit_mb=512",
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {runs} runs" in done.stderr
