"""The store: written as rows are made, resumed, mapped, and refusing what it was not made for."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt.errors import DataError, StoreError
from hfdataopt.gradients import GradientStore, ShardedArray, store, weights_hash

MANIFEST = {
    "model": "tiny",
    "weights": "abc",
    "layers": [["a", 3, 4]],
    "basis": "f00",
    "precision": "float32",
    "of": "loss",
}


def fill(opened: GradientStore, shards: list[int] | None = None) -> torch.Tensor:
    features = torch.randn(len(opened.row_ids), 5, generator=torch.Generator().manual_seed(0))
    for shard in opened.missing_shards() if shards is None else shards:
        rows = opened.rows_of(shard)
        opened.write(
            shard,
            {
                "features": features[rows.start : rows.stop],
                "loss_sum": torch.arange(rows.start, rows.stop, dtype=torch.float32),
                "tokens": torch.arange(rows.start, rows.stop),
            },
        )
    return features


def test_written_read_and_reopened(tmp_path: Path) -> None:
    ids: list[str | int] = [f"row {i}" for i in range(23)]
    opened = GradientStore.open_or_create(tmp_path / "a" / "b", MANIFEST, ids, rows_per_shard=10)
    assert opened.shards == 3
    assert opened.missing_shards() == [0, 1, 2]
    fill(opened, [1])
    assert opened.missing_shards() == [0, 2]
    with pytest.raises(StoreError, match="2 of 3 shards are missing"):
        opened.read()
    features = fill(opened)
    again = GradientStore.open_or_create(tmp_path / "a" / "b", MANIFEST, ids, rows_per_shard=10)
    assert again.missing_shards() == []
    array = again.read()
    assert array.shape == (23, 5)
    assert array.dtype == np.float32
    assert all(isinstance(shard, np.memmap) for shard in array.shards)
    assert np.array_equal(np.asarray(array), features.numpy())
    assert again.read("tokens")[:].tolist() == list(range(23))
    looked_at = GradientStore.open(tmp_path / "a" / "b")
    assert looked_at.manifest == MANIFEST
    assert looked_at.row_ids == ids
    with pytest.raises(StoreError, match="no array 'values'"):
        again.read("values")
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "manifest.json",
        "row_ids.json",
        *(f"shard-0000{k}.safetensors" for k in range(3)),
    ]


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        slice(8, 21),
        slice(None),
        slice(0, 0),
        slice(20, 2, -3),
        [22, 0, 10, 10],
        [],
        np.arange(23) % 2 == 0,
        slice(5, 9),
    ],
    ids=str,
)
def test_indexing_across_shards_is_numpys(key: Any) -> None:
    whole = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    array = ShardedArray([whole[:10], whole[10:20], whole[20:]])
    index = np.asarray(key, dtype=int) if isinstance(key, list) and not key else key
    assert np.array_equal(array[key], whole[index])
    with pytest.raises(IndexError):
        array[[23]]


@pytest.mark.parametrize(
    ("change", "rows", "named"),
    [
        ({"weights": "abd"}, 12, "weights"),
        ({"basis": "bad"}, 12, "basis"),
        ({"of": "logit", "precision": "bfloat16"}, 12, "precision"),
        ({"extra": 1}, 12, "extra"),
        ({}, 13, "rows"),
    ],
)
def test_a_store_of_something_else_is_refused(tmp_path: Path, change: Any, rows: int, named: str) -> None:
    GradientStore.open_or_create(tmp_path, MANIFEST, 12)
    with pytest.raises(StoreError, match=named) as error:
        GradientStore.open_or_create(tmp_path, MANIFEST | change, rows)
    assert "folder" in str(error.value)


def test_other_row_ids_of_the_same_number_are_refused(tmp_path: Path) -> None:
    GradientStore.open_or_create(tmp_path, MANIFEST, ["a", "b"])
    with pytest.raises(StoreError, match="row_ids"):
        GradientStore.open_or_create(tmp_path, MANIFEST, ["b", "a"])
    with pytest.raises(DataError, match="more than once"):
        GradientStore.open_or_create(tmp_path / "new", MANIFEST, ["a", "a"])


def test_shards_of_a_wrong_length_are_refused(tmp_path: Path) -> None:
    opened = GradientStore.open_or_create(tmp_path, MANIFEST, 12, rows_per_shard=5)
    with pytest.raises(StoreError, match="has 2 rows"):
        opened.write(2, {"features": torch.zeros(5, 3)})
    assert opened.missing_shards() == [0, 1, 2]


@pytest.mark.parametrize("keep", [3, 40, -1])
def test_a_shard_cut_short_counts_as_missing(tmp_path: Path, keep: int) -> None:
    opened = GradientStore.open_or_create(tmp_path, MANIFEST, 12, rows_per_shard=5)
    fill(opened)
    path = tmp_path / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert opened.missing_shards() == [1]


WRITER = """
    import sys, time
    import torch
    from hfdataopt.gradients import GradientStore
    opened = GradientStore.open_or_create(sys.argv[1], {"of": "loss"}, 1000, rows_per_shard=10)
    for shard in opened.missing_shards():
        rows = opened.rows_of(shard)
        opened.write(shard, {"features": torch.full((len(rows), 2000), float(shard))})
        print(shard, flush=True)
        time.sleep(0.01)
"""


def test_a_killed_run_repeats_less_than_one_shard(tmp_path: Path) -> None:
    code = textwrap.dedent(WRITER)
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 12:
            process.send_signal(signal.SIGKILL)
            break
    done = [int(line) for line in process.stdout]
    process.stdout.close()
    process.wait()
    last = max(done, default=12)
    opened = GradientStore.open_or_create(tmp_path, {"of": "loss"}, 1000, rows_per_shard=10)
    missing = opened.missing_shards()
    assert missing[0] in (last + 1, last + 2)  # the shard being written when the signal came may be complete
    assert missing == list(range(missing[0], 100))
    kept = (tmp_path / "shard-00003.safetensors").stat().st_mtime_ns
    for shard in missing:
        opened.write(shard, {"features": torch.full((10, 2000), float(shard))})
    assert (tmp_path / "shard-00003.safetensors").stat().st_mtime_ns == kept
    assert opened.read()[:, 0].tolist() == [float(row // 10) for row in range(1000)]


def test_a_full_disk_leaves_what_was_finished(tmp_path: Path) -> None:
    opened = GradientStore.open_or_create(tmp_path, MANIFEST, 12, rows_per_shard=5)
    fill(opened, [0])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(StoreError, match="full"):
            opened.write(1, {"features": torch.zeros(5, 1000)})
        with pytest.raises(StoreError, match="full"):
            GradientStore.open_or_create(tmp_path / "other", MANIFEST, 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert opened.missing_shards() == [1, 2]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    fill(opened)
    assert opened.missing_shards() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            GradientStore.open_or_create(tmp_path, MANIFEST, 3)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_refused_writes_are_store_errors(tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise error

    monkeypatch.setattr(store.os, "replace", refuse)
    with pytest.raises(StoreError, match="cannot be written; choose another"):
        GradientStore.open_or_create(tmp_path, MANIFEST, 3)


def test_a_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="another output folder"):
        GradientStore.open_or_create(tmp_path / "file", MANIFEST, 3)
    with pytest.raises(StoreError, match=r"manifest\.json cannot be read"):
        GradientStore.open(tmp_path)


def test_two_processes_write_different_shards(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys
        import torch
        from hfdataopt.gradients import GradientStore
        opened = GradientStore.open_or_create(sys.argv[1], {"of": "loss"}, 95, rows_per_shard=10)
        for shard in range(int(sys.argv[2]), opened.shards, 2):
            opened.write(shard, {"values": torch.arange(opened.rows_of(shard).start, opened.rows_of(shard).stop)})
    """)
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(rank)]) for rank in (0, 1)]
    assert [process.wait() for process in processes] == [0, 0]
    assert GradientStore.open(tmp_path).read("values")[:].tolist() == list(range(95))


def test_weights_hash_sees_every_change(tools: Any) -> None:
    model = tools.build("bert-cls")
    first = weights_hash(model)
    assert weights_hash(tools.build("bert-cls")) == first
    weight = model.classifier.weight
    with torch.no_grad():
        kept = weight.clone()
        weight[0, 0] += 1e-7 * weight[0, 0].abs().clamp(min=1e-3)
        assert weights_hash(model) != first
        weight.copy_(kept)
        weight[[0, 1]] = weight[[1, 0]]  # the same numbers elsewhere
        assert weights_hash(model) != first
        weight.copy_(kept)
        weight[0], weight[1] = -kept[0], -kept[1]
        assert weights_hash(model) != first
        weight.copy_(kept)
    assert weights_hash(model) == first
    assert weights_hash(model.to(torch.bfloat16)) != first


def test_a_shard_of_another_place_or_store_is_made_again(tmp_path):
    def made(name, of):
        store = GradientStore.open_or_create(tmp_path / name, {"of": of}, 4, rows_per_shard=2)
        for shard in store.missing_shards():
            store.write(shard, {"features": torch.full((2, 3), float(shard))})
        return store

    first, second = made("a", 1), made("b", 2)
    for source in (first.folder / "shard-00000.safetensors", second.folder / "shard-00001.safetensors"):
        shutil.copy(source, first.folder / "shard-00001.safetensors")
        assert GradientStore.open(first.folder).missing_shards() == [1]
