"""The GPU's benchmark runs as it stands; on the CPU with toy models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_toy_run_keeps_nothing() -> None:
    before = sorted((BENCHMARKS / "results").glob("*"))
    done = subprocess.run(
        [sys.executable, "gpu.py", "--device", "cpu", "--tiny", "--batches", "2"],
        cwd=BENCHMARKS, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("end to end") == 2
    assert "[200, 50, 20, " in done.stdout
    assert sorted((BENCHMARKS / "results").glob("*")) == before
