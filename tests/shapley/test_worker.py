"""Worker processes give the same bits, need no main guard, and a dead one is an error that says what it printed."""

from __future__ import annotations

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


@pytest.mark.parametrize("classes", [2, 3])
def test_any_number_of_workers_gives_the_same_bits(classes: int) -> None:
    data = make_data(rows=230, queries=40, classes=classes)
    options: dict[str, Any] = {"permutations": 50, "ridge": 0.05, "per_query": True, "truncation": 0.02}
    torch.set_num_threads(2)
    alone = shapley_values(*data.arguments, **options, workers=1)
    shared = shapley_values(*data.arguments, **options, workers=2)
    for name in ("values", "standard_errors", "matrix", "out_of_bag"):
        assert np.array_equal(getattr(alone, name), getattr(shared, name), equal_nan=True)
    assert alone.permutations == shared.permutations == 50


def test_a_tolerance_stops_workers_at_the_same_permutation() -> None:
    data = make_data()
    alone = shapley_values(*data.arguments, ridge=0.05, permutations=300, tolerance=0.02, workers=1)
    shared = shapley_values(*data.arguments, ridge=0.05, permutations=300, tolerance=0.02, workers=2)
    assert alone.permutations == shared.permutations < 300
    assert np.array_equal(alone.values, shared.values)


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


def test_a_full_disk_in_a_worker_is_a_store_error(tmp_path: Path) -> None:
    data = make_data(rows=200)
    script = tmp_path / "script.py"
    for name, array in zip(("kernel", "cross", "labels", "query_labels"), data.arguments, strict=True):
        np.save(tmp_path / f"{name}.npy", array.numpy())
    script.write_text(
        "import resource, subprocess, sys\n"
        "import numpy as np\n"
        "from hfdataopt.shapley import shapley_values, worker\n"
        "limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "plain = subprocess.Popen\n"
        "worker.subprocess.Popen = lambda *a, **k: plain(*a, preexec_fn=limit, **k)\n"
        f"arrays = [np.load(r'{tmp_path}/' + n + '.npy') for n in ('kernel', 'cross', 'labels', 'query_labels')]\n"
        "shapley_values(*arrays, permutations=40, workers=2, ridge=0.1)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1].startswith("hfdataopt.errors.StoreError: cannot write")
    assert "File too large" in done.stderr
