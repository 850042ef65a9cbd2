"""Worker processes give the same bits, need no main guard, and a dead one is an error that says what it printed."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt.errors import DataError, HfDataOptError, StoreError
from hfdataopt.shapley import shapley_values, worker

from .conftest import make_data


def test_any_number_of_workers_gives_the_same_bits_and_stops_at_the_same_permutation() -> None:
    data = make_data(rows=230, queries=40, classes=3)
    options: dict[str, Any] = {"ridge": 0.05, "per_query": True, "truncation": 0.02}
    torch.set_num_threads(2)
    first = shapley_values(*data.arguments, **options, permutations=40, workers=1)
    options |= {"permutations": 70, "tolerance": float(first.standard_errors.max())}
    alone = shapley_values(*data.arguments, **options, workers=1)
    shared = shapley_values(*data.arguments, **options, workers=2)
    for name in ("values", "standard_errors", "matrix", "out_of_bag"):
        assert np.array_equal(getattr(alone, name), getattr(shared, name), equal_nan=True)
    assert alone.permutations == shared.permutations == 40


def test_a_script_without_a_main_guard_can_use_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from hfdataopt.shapley import shapley_values\n"
        "x = np.random.default_rng(0).normal(size=(40, 50))\n"
        "k = x @ x.T\n"
        "r = shapley_values(k[:30, :30], k[:30, 30:], [0, 1] * 15, [0, 1] * 5, permutations=40, workers=2)\n"
        "print('sum', abs(r.values.sum() - r.full_utility) < 1e-12)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("sum True", "")


def test_a_worker_that_dies_is_reported_with_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = make_data()
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nkill -9 $$\n")
    broken.chmod(0o700)
    monkeypatch.setattr(worker.sys, "executable", str(broken))
    with pytest.raises(HfDataOptError, match=r"(?s)worker \d died with exit status -9; pass workers=1.*out of luck"):
        shapley_values(*data.arguments, permutations=40, workers=2)


def test_errors_of_workers_keep_their_kind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("noise\nkernel is bad\n")
    for code, kind in ((4, DataError), (5, StoreError)):
        error = worker._failure(code, log, 0)
        assert type(error) is kind
        assert str(error) == "kernel is bad"


def test_a_full_disk_in_a_worker_is_a_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    plain = subprocess.Popen
    monkeypatch.setattr(worker.subprocess, "Popen", lambda *a, **options: plain(*a, preexec_fn=limit, **options))
    data = make_data(rows=200)
    with pytest.raises(StoreError, match=r"cannot write .*chunk-.*File too large"):
        shapley_values(*data.arguments, permutations=40, workers=2, ridge=0.1)
