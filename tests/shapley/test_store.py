"""A run on disk goes on where it was killed, belongs to one call only, and says why it cannot be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfdataopt.errors import StoreError
from hfdataopt.shapley import ShapleyResult, _store, estimator, shapley_values

from .conftest import make_data

OPTIONS: dict[str, Any] = {"ridge": 0.05, "per_query": True}

SCRIPT = """
import sys, time
import numpy as np
from hfdataopt.shapley import estimator
folder, pause, workers = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
arrays = [np.load(f"{folder}/{name}.npy") for name in ("kernel", "cross", "labels", "query_labels")]
plain = estimator.run_chunk
def slow(*arguments):
    done = plain(*arguments)
    print("computed", arguments[1], flush=True)
    time.sleep(pause)
    return done
estimator.run_chunk = slow
estimator.CHUNK_SECONDS = 0
result = estimator.shapley_values(
    *arrays, ridge=0.05, per_query=True, permutations=15, output_dir=folder + "/run", workers=workers,
    progress=lambda done, most: print("done", done, flush=True))
np.save(folder + "/values.npy", np.concatenate([result.values, result.standard_errors, result.out_of_bag]))
np.save(folder + "/matrix.npy", result.matrix)
"""


def write_arrays(folder: Path, rows: int = 30) -> None:
    data = make_data(rows=rows)
    for name, array in zip(("kernel", "cross", "labels", "query_labels"), data.arguments, strict=True):
        np.save(folder / f"{name}.npy", array.numpy())


def start(folder: Path, pause: float, workers: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(pause), str(workers)], stdout=subprocess.PIPE, text=True
    )


def same(one: ShapleyResult, other: ShapleyResult) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
        for name in ("values", "standard_errors", "matrix", "out_of_bag")
    )


def test_a_killed_run_goes_on_and_repeats_less_than_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arrays(tmp_path)
    killed = start(tmp_path, 0.2)
    assert killed.stdout is not None
    lines = []
    for line in killed.stdout:
        lines.append(line.strip())
        if line.startswith("computed 6"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    kept = max(int(line.split()[1]) for line in lines if line.startswith("done"))
    assert kept == 6
    resumed = start(tmp_path, 0)
    output, _ = resumed.communicate()
    assert resumed.returncode == 0
    computed = [int(line.split()[1]) for line in output.splitlines() if line.startswith("computed")]
    assert computed == list(range(kept, 15))
    monkeypatch.setattr(estimator, "CHUNK_SECONDS", 0)
    check_saved(tmp_path, shapley_values(*make_data().arguments, **OPTIONS, permutations=15))


def check_saved(folder: Path, whole: ShapleyResult) -> None:
    """What the script saved is, to the bit, what a run that was never killed gives."""
    vectors = np.concatenate([whole.values, whole.standard_errors, whole.out_of_bag])
    assert np.array_equal(np.load(folder / "values.npy"), vectors, equal_nan=True)
    assert np.array_equal(np.load(folder / "matrix.npy"), whole.matrix)


def test_a_finished_run_is_read_back_and_can_be_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    computed: list[tuple[int, int]] = []
    plain = estimator.run_chunk

    def counted(problem: Any, first: int, last: int, full: list[float]) -> Any:
        computed.append((first, last))
        return plain(problem, first, last, full)

    monkeypatch.setattr(estimator, "run_chunk", counted)
    first = shapley_values(*data.arguments, **OPTIONS, permutations=40, output_dir=tmp_path)
    assert computed == [(0, 20), (20, 40)]
    computed.clear()
    assert same(first, shapley_values(*data.arguments, **OPTIONS, permutations=40, output_dir=tmp_path))
    assert computed == []
    longer = shapley_values(*data.arguments, **OPTIONS, permutations=50, output_dir=tmp_path)
    assert computed == [(40, 50)]
    longest = shapley_values(*data.arguments, **OPTIONS, permutations=80, output_dir=tmp_path)
    assert computed == [(40, 50), (40, 60), (60, 80)]
    assert same(longer, shapley_values(*data.arguments, **OPTIONS, permutations=50))
    assert same(longest, shapley_values(*data.arguments, **OPTIONS, permutations=80))
    with pytest.raises(StoreError, match="holds 80 permutations, 60 were asked"):
        shapley_values(*data.arguments, **OPTIONS, permutations=60, output_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"utility": "accuracy"}, "utility"),
        ({"ridge": 0.06}, "ridge"),
        ({"weights": "banzhaf"}, "weights"),
        ({"truncation": 0.1}, "truncation"),
        ({"per_query": False}, "per_query"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    data = make_data()
    shapley_values(*data.arguments, **OPTIONS, permutations=2, output_dir=tmp_path)
    with pytest.raises(StoreError, match=f"holds another run: .*{named}"):
        shapley_values(*data.arguments, **(OPTIONS | change), permutations=2, output_dir=tmp_path)


def test_a_folder_of_other_data_is_refused(tmp_path: Path) -> None:
    data, other = make_data(), make_data(seed=1)
    shapley_values(*data.arguments, **OPTIONS, permutations=2, output_dir=tmp_path)
    with pytest.raises(StoreError, match="cross, kernel, labels, query_labels differ"):
        shapley_values(*other.arguments, **OPTIONS, permutations=2, output_dir=tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    data = make_data()
    shapley_values(*data.arguments, **OPTIONS, permutations=20, output_dir=tmp_path)
    (tmp_path / "sums.safetensors").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"cannot read .*sums\.safetensors.*delete it"):
        shapley_values(*data.arguments, **OPTIONS, permutations=20, output_dir=tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json is not JSON"):
        shapley_values(*data.arguments, **OPTIONS, permutations=20, output_dir=tmp_path)


def test_only_json_and_safetensors_are_written(tmp_path: Path) -> None:
    data = make_data()
    shapley_values(*data.arguments, **OPTIONS, permutations=25, output_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "sums.safetensors"]
    assert json.loads((tmp_path / "manifest.json").read_text())["ridge"] == 0.05


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = make_data()
    with pytest.raises(StoreError, match="cannot be used"):
        shapley_values(*data.arguments, permutations=1, output_dir=tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be used"):
        shapley_values(*data.arguments, permutations=1, output_dir=tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    data = make_data()
    with pytest.raises(StoreError, match=r"cannot write .*manifest\.json"):
        shapley_values(*data.arguments, permutations=1, output_dir=tmp_path)


def test_a_read_only_file_system_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(_store.os, "replace", read_only)
    with pytest.raises(StoreError, match=r"cannot write .*: Read-only file system; free space or rights"):
        _store.write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error_and_leaves_no_partial_file(tmp_path: Path) -> None:
    write_arrays(tmp_path, rows=200)
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + SCRIPT
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "0", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "StoreError: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["manifest.json"]


def test_a_killed_run_of_workers_goes_on_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_arrays(tmp_path)
    killed = start(tmp_path, 0, workers=2)
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith("done 2"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    monkeypatch.setattr(estimator, "CHUNK_SECONDS", 0)
    data, done = make_data(), []
    resumed = shapley_values(
        *data.arguments, **OPTIONS, permutations=15, output_dir=tmp_path / "run", progress=lambda at, _: done.append(at)
    )
    assert done[0] >= 3
    assert same(resumed, shapley_values(*data.arguments, **OPTIONS, permutations=15))
