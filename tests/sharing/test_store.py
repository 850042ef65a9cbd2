"""A feature store on the hub: shard by shard, resumable, an ordinary dataset, and checked when it is a stranger's."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfdataopt.errors import DataError, StoreError
from hfdataopt.gradients import GradientStore

from .conftest import load

DTYPES = ["float64", "float32", "float16", "int64", "int32", "int16", "uint8", "bool"]


def store_in(folder, rows=7, per_shard=3, names=("features", "norms")):
    store = GradientStore.open_or_create(
        folder, {"model": "M", "of": ["<b>", 1]}, [f"r{i}" for i in range(rows)], per_shard
    )
    generator = np.random.default_rng(0)
    for shard in range(store.shards):
        count = len(store.rows_of(shard))
        arrays = {"features": generator.normal(size=(count, 2, 4)).astype(np.float32), "norms": generator.random(count)}
        store.write(shard, {name: arrays[name] if name in arrays else np.ones(count) for name in names})
    return store


def test_what_comes_back_is_what_went_there(hub, tmp_path):
    store = store_in(tmp_path / "here")
    assert store.push_to_hub("me/store", private=True) == "https://hub.example/datasets/me/store"
    found = GradientStore.from_hub("me/store", tmp_path / "there", token="t", revision=None)
    assert (found.manifest, found.row_ids, found.rows_per_shard) == (store.manifest, store.row_ids, 3)
    for name in ("features", "norms"):
        np.testing.assert_array_equal(np.asarray(found.read(name)), np.asarray(store.read(name)))
        assert found.read(name).dtype == store.read(name).dtype
    for shard in range(3):
        name = f"shard-{shard:05d}.safetensors"
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(hub, tmp_path, dtype):
    store = GradientStore.open_or_create(tmp_path / "here", {}, 2)
    values = np.array([[0, 1, 2], [3, 0, 1]]).astype(dtype)
    store.write(0, {"a": values})
    store.push_to_hub("me/store")
    found = GradientStore.from_hub("me/store", tmp_path / "there").read("a")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(np.asarray(found), values)
    assert load(str(hub.folder("me/store")))["a"][:] == values.tolist()


def test_the_repository_is_an_ordinary_dataset(hub, tmp_path):
    store = store_in(tmp_path / "here")
    store.push_to_hub("me/store")
    table = load(str(hub.folder("me/store")))
    assert table["row_id"][:] == store.row_ids
    np.testing.assert_array_equal(np.array(table["features"][:]).reshape(7, 2, 4), np.asarray(store.read()))
    card = (hub.folder("me/store") / "README.md").read_text()
    assert "<b>" not in card
    assert "float32 &#91;7, 2, 4&#93;" in card


def test_a_download_that_was_stopped_goes_on(hub, tmp_path):
    store_in(tmp_path / "here").push_to_hub("me/store")
    GradientStore.from_hub("me/store", tmp_path / "there")
    kept, lost = (tmp_path / "there" / f"shard-0000{i}.safetensors" for i in (0, 2))
    lost.unlink()
    before = kept.stat().st_mtime_ns
    assert GradientStore.from_hub("me/store", tmp_path / "there").missing_shards() == []
    assert kept.stat().st_mtime_ns == before
    other = GradientStore.open_or_create(tmp_path / "other", {"model": "N"}, 7, 3)
    with pytest.raises(StoreError, match=r"it was made for something else: .*model"):
        GradientStore.from_hub("me/store", other.folder)


def test_what_cannot_be_uploaded(hub, tmp_path):
    store = store_in(tmp_path / "here")
    (tmp_path / "here" / "shard-00001.safetensors").unlink()
    with pytest.raises(StoreError, match="1 of 3 shards are missing"):
        store.push_to_hub("me/store")
    (tmp_path / "here" / "shard-00000.safetensors").unlink()
    with pytest.raises(StoreError, match="the first shard is missing"):
        store.push_to_hub("me/store")
    with pytest.raises(DataError, match="an array is called 'row_id'"):
        store_in(tmp_path / "again", names=("row_id",)).push_to_hub("me/store")
    assert hub.calls == []


@pytest.fixture
def broken(hub, tmp_path):
    """Change the document, then say what ``from_hub`` makes of it."""
    store_in(tmp_path / "here").push_to_hub("a/b")
    file = hub.folder("a/b") / "store.json"

    def change(**values):
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
        with pytest.raises((StoreError, DataError)) as caught:
            GradientStore.from_hub("a/b", tmp_path / "there")
        assert not (tmp_path / "there").exists()
        return str(caught.value)

    return change


FEATURES = {"dtype": "float32", "shape": [2, 4]}
NORMS = {"dtype": "float64", "shape": []}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "hfdataopt-scores"}, "is not of the kind"),
        ({"rows": -1}, "do not fit the files"),
        ({"rows": 10**15}, "do not fit the files"),
        ({"rows_per_shard": 0}, "do not fit the files"),
        ({"rows_per_shard": 10}, "do not fit the files"),
        ({"rows": 8}, "has 1 rows; the document says 2"),
        ({"sha256": {"../x": "", "../y": "", "../z": ""}}, "is not the file that the document was written with"),
        ({"arrays": {}}, "it names the arrays none"),
        ({"arrays": {"row_id": NORMS}}, "it names the arrays row_id"),
        ({"arrays": {"features": FEATURES}}, "has the columns"),
        ({"arrays": {"features": {"dtype": "object", "shape": [8]}, "norms": NORMS}}, "expected a shape and a dtype"),
        ({"arrays": {"features": {"dtype": "float32", "shape": [-8]}, "norms": NORMS}}, "expected a shape and a dtype"),
        ({"arrays": {"features": {"dtype": "float32", "shape": "8"}, "norms": NORMS}}, "expected a shape and a dtype"),
        ({"arrays": {"features": "x", "norms": NORMS}}, "expected a shape and a dtype"),
    ],
)
def test_a_document_that_is_wrong(broken, values, says):
    assert says in broken(**values)


def test_arrays_of_another_type_or_length_than_said(hub, broken, tmp_path):
    file = hub.folder("a/b") / "store.json"
    for one in ({"dtype": "float16", "shape": [2, 4]}, {"dtype": "float32", "shape": [9]}):
        document = json.loads(file.read_text())
        document["arrays"]["features"] = one
        file.write_text(json.dumps(document))
        with pytest.raises(StoreError, match="column 'features' has the type"):
            GradientStore.from_hub("a/b", tmp_path / f"there-{one['dtype']}")


@pytest.mark.parametrize(
    ("ids", "says"), [(["r0", "r0", "x"], "has an id twice"), ([1, 2, 3], "numbers, and of others text")]
)
def test_ids_that_are_wrong(hub, broken, ids, says):
    file = hub.folder("a/b") / "data" / "shard-00000.parquet"
    pq.write_table(pq.read_table(file).set_column(0, "row_id", pa.array(ids)), file)
    hashes = json.loads((hub.folder("a/b") / "store.json").read_text())["sha256"]
    assert says in broken(sha256={**hashes, "data/shard-00000.parquet": hashlib.sha256(file.read_bytes()).hexdigest()})
