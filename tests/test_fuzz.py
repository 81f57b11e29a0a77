"""The parsers under a coverage-guided fuzzer; tests/fuzz_parsers.py is what runs, and says what must hold."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("fuzz_parsers.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("header", 60_000),
        ("content", 100_000),
        ("recipients", 100_000),
        ("index", 40_000),
        ("tape", 10_000),
        ("blob", 20_000),
        ("keyfile", 100_000),
    ],
)
def test_fuzzer_finds_nothing(target: str, runs: int, tmp_path: Path) -> None:
    """Inputs that a fuzzer makes up neither break a parser nor make it slow, large, or wrong."""
    pytest.importorskip("atheris", reason="atheris is not installed: dependency group fuzz")
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
