"""Feature stores, checkpoints and folders of runs that were changed, cut or mixed: refused, or the very same numbers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.numpy import save

from hfdataopt import attribute
from hfdataopt.attribution.checkpoint import Checkpoint
from hfdataopt.gradients import GradientStore
from hfdataopt.gradients.store import ShardedArray
from hfdataopt.shapley._store import RunFolder
from hfdataopt.sharing.store import read_store, write_store
from hfdataopt.testing.tiny import bert, encoded

from .inputs import anything, awkward_texts, nested, objects, odd_numbers, scalars, words
from .kinds import folder, kind, outcome, refused

FEATURES = np.arange(15, dtype=np.float32).reshape(5, 3)
IDS = ["a", "b", "c", "d", "e"]
OF = {"model": "tiny", "layers": None, "dtype": "float32"}


def made(where: Path) -> GradientStore:
    """A store of five rows in three shards."""
    store = GradientStore.open_or_create(where, OF, IDS, rows_per_shard=2)
    for shard in store.missing_shards():
        rows = store.rows_of(shard)
        store.write(shard, {"features": FEATURES[rows.start : rows.stop]})
    return store


def read(where: Path) -> np.ndarray:
    """The features, as a scorer that takes the folder up reads them: what is missing is made again."""
    return np.asarray(made(where).read("features"))


def check(where: Path) -> None:
    """Taken up or opened, the store is refused or holds what was written."""
    for call in (lambda: np.asarray(GradientStore.open(where).read("features")), lambda: read(where)):
        found = outcome(call)
        if not refused(found):
            np.testing.assert_array_equal(found, FEATURES)


def changed(file: Path, key: str, value: Any, drop: bool) -> None:
    document = json.loads(file.read_text())
    inside = document if key in document else document["of"]
    inside.pop(key, None)
    if not drop:
        inside[key] = value
    file.write_text(json.dumps(document))


@kind(
    30,
    key=st.sampled_from(["format", "rows", "rows_per_shard", "row_ids", "of", "model", "layers", "new"]),
    value=nested,
    drop=st.booleans(),
)
def test_manifests_that_were_changed(key, value, drop):
    with folder() as where:
        made(where)
        changed(where / "manifest.json", key, value, drop)
        check(where)


@kind(
    20,
    name=st.sampled_from(["manifest.json", "row_ids.json"]),
    content=st.binary(max_size=30) | nested.map(lambda x: json.dumps(x).encode()),
)
def test_documents_of_a_store_that_are_something_else(name, content):
    with folder() as where:
        made(where)
        (where / name).write_bytes(content)
        check(where)


@kind(
    40,
    at=st.floats(0, 1),
    bit=st.integers(0, 7),
    how=st.sampled_from(["cut", "flip", "more", "empty", "swap", "remove"]),
)
def test_shards_that_were_cut_or_changed(at, bit, how):
    with folder() as where:
        made(where)
        file = where / "shard-00001.safetensors"
        content = bytearray(file.read_bytes())
        place = int(at * (len(content) - 1))
        if how == "flip":
            content[place] ^= 1 << bit
        elif how == "swap":
            content = bytearray((where / "shard-00000.safetensors").read_bytes())
        elif how == "remove":
            file.unlink()
        else:
            content = {"cut": content[:place], "more": content + b"\0" * (1 + bit), "empty": bytearray()}[how]
        if how != "remove":
            file.write_bytes(bytes(content))
        check(where)


@kind(
    30,
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from(["float32", "float64", "int32", "bool", "uint16"]),
    name=st.sampled_from(["features", "other", ""]),
)
def test_shards_of_another_shape(shape, dtype, name):
    """A shard of another store, whole in itself."""
    with folder() as where:
        made(where)
        (where / "shard-00001.safetensors").write_bytes(save({name: np.ones(shape, dtype)}))
        check(where)


@kind(30, header=nested, length=st.none() | st.integers(0, 2**63))
def test_headers_of_any_kind(header, length):
    with folder() as where:
        made(where)
        text = json.dumps({"features": header} if length is None else header).encode()
        size = len(text) if length is None else length
        (where / "shard-00001.safetensors").write_bytes(size.to_bytes(8, "little") + text + b"\0" * 24)
        check(where)


@kind(
    30,
    key=st.sampled_from(["rows", "rows_per_shard", "ids", "model", "new"]),
    value=words | st.integers(1, 9),
)
def test_another_run_in_the_folder(key, value):
    """What was made of something else is never taken for one's own."""
    with folder() as where:
        made(where)
        ids = [value if isinstance(value, str) else "x", *IDS[1:]] if key == "ids" else IDS[: 4 if key == "rows" else 5]
        shards = value if key == "rows_per_shard" and type(value) is int and value > 0 else 2
        of = {**OF, **({key: value} if key in ("model", "new") else {})}
        found = outcome(lambda: GradientStore.open_or_create(where, of, ids, rows_per_shard=shards))
        if (of, ids, shards) != (OF, IDS, 2):
            assert refused(found)


@kind(
    25,
    manifest=anything | st.dictionaries(awkward_texts, anything, max_size=2),
    ids=objects | st.lists(scalars, max_size=4) | st.integers(0, 5),
)
def test_stores_made_of_anything(manifest, ids):
    with folder() as where:
        outcome(lambda: GradientStore.open_or_create(where / "store", manifest, ids))


@kind(
    30,
    arrays=st.dictionaries(
        awkward_texts | st.just("features"),
        st.sampled_from(
            [
                np.zeros(2),
                np.zeros((2, 3), np.float16),
                np.zeros(3),
                np.float32(1),
                torch.zeros(2, dtype=torch.bfloat16),
                torch.zeros(2, 0),
                np.array(["a", "b"]),
                np.array([None, 1]),
                np.zeros(2, complex),
                torch.zeros(2, dtype=torch.complex64),
                [1.0, 2.0],
                3,
                "ab",
                None,
            ]
        ),
        max_size=2,
    ),
    shard=st.sampled_from([0, 0, 0, 1, 2, 5, -1]),
)
def test_arrays_of_any_kind_are_written_or_refused(arrays, shard):
    with folder() as where:
        store = GradientStore.open_or_create(where, OF, IDS, rows_per_shard=2)
        found = outcome(lambda: store.write(shard, arrays))
        if refused(found) or shard != 0:
            return
        for name in arrays:
            part = outcome(lambda name=name: store._map(0, name))
            if not refused(part):
                np.testing.assert_array_equal(np.array(part), np.array(arrays[name]))


@kind(
    40,
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    key=st.integers(-9, 9)
    | st.slices(8)
    | st.lists(st.integers(-3, 3), max_size=4)
    | st.tuples(st.slices(8), st.integers(0, 1))
    | st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_indexing_shards_as_numpy_would(sizes, key):
    whole = np.arange(2 * sum(sizes)).reshape(-1, 2)
    array = ShardedArray(np.split(whole, np.cumsum(sizes)[:-1]))
    key = np.array(key, bool if key and isinstance(key[0], bool) else int) if isinstance(key, list) else key
    try:
        expected: Any = whole[key]
    except IndexError:
        expected = None
    try:
        found = array[key]
    except IndexError:  # as of any array
        assert expected is None
        return
    assert expected is not None
    np.testing.assert_array_equal(found, expected)


@kind(
    20,
    key=st.sampled_from(["rows", "rows_per_shard", "arrays", "sha256", "of", "kind", "format"]),
    value=nested | odd_numbers,
    drop=st.booleans(),
)
def test_copies_of_repositories_that_were_changed(key, value, drop):
    with folder() as where:
        write_store(made(where / "store"), where / "copy")
        file = where / "copy" / "store.json"
        document = json.loads(file.read_text())
        document.pop(key)
        file.write_text(json.dumps(document if drop else {**document, key: value}))
        found = outcome(lambda: np.asarray(read_store(where / "copy", where / "new").read("features")))
        if not refused(found):
            np.testing.assert_array_equal(found, FEATURES)


@kind(20, manifest=nested, theirs=st.binary(max_size=20) | nested.map(lambda x: json.dumps(x).encode()))
def test_folders_of_permutations_that_hold_something_else(manifest, theirs):
    with folder() as where:
        (where / "manifest.json").write_bytes(theirs)
        found = outcome(lambda: RunFolder(where, {"rows": manifest}))
        assert refused(found)


@kind(
    25,
    state=nested
    | st.fixed_dictionaries(
        {
            "global_step": nested,
            "log_history": nested
            | st.lists(
                st.dictionaries(st.sampled_from(["learning_rate", "step", "loss"]), scalars, max_size=3), max_size=3
            ),
        }
    ),
    raw=st.none() | st.binary(max_size=20),
)
def test_states_of_trainers_of_any_kind(state, raw):
    with folder() as where:
        (where / "config.json").write_text("{}")
        (where / "trainer_state.json").write_bytes(json.dumps(state).encode() if raw is None else raw)

        def run() -> tuple[Any, Any]:
            one = Checkpoint.of(where)
            return one.step, one.mean_learning_rate()

        found = outcome(run)
        if not refused(found):
            step, rate = found
            assert step is None or (isinstance(step, int) and step >= 0)
            assert 0 < rate < float("inf")


@kind(25, value=anything, rate=anything | odd_numbers)
def test_checkpoints_that_are_none(value, rate):
    assert refused(outcome(lambda: Checkpoint.of(value)))
    with folder() as where:
        (where / "config.json").write_text("{}")
        found = outcome(lambda: Checkpoint.of(Checkpoint(str(where), rate)).mean_learning_rate())
        if not refused(found):
            assert found == rate
            assert 0 < found < float("inf")


# -- a whole run


def score(where: Any) -> Any:
    return attribute(bert(), encoded(6), encoded(3, 1), "tracin", output_dir=where, floats_per_row=16, basis="random")


class Finished:
    """A finished run on disk, made once; and its scores."""

    _kept: Any = None

    @classmethod
    def copy(cls, where: Path) -> np.ndarray:
        if cls._kept is None:
            import atexit
            import tempfile

            place = tempfile.mkdtemp(prefix="hfdataopt-properties-")
            atexit.register(shutil.rmtree, place, ignore_errors=True)
            cls._kept = (place, score(place).values)
        shutil.copytree(cls._kept[0], where, dirs_exist_ok=True)
        return cls._kept[1]


@kind(
    24,
    which=st.integers(0, 40),
    how=st.sampled_from(["cut", "json", "flip", "empty", "remove"]),
    at=st.floats(0, 1),
    value=nested,
)
def test_files_of_a_run_that_were_changed(which, how, at, value):
    """A run that is started again ends with the same scores, or says which file is in the way."""
    with folder() as where:
        expected = Finished.copy(where)
        files = sorted(path for path in where.rglob("*") if path.is_file())
        file = files[which % len(files)]
        content = bytearray(file.read_bytes())
        if how == "flip" and content:
            content[int(at * (len(content) - 1))] ^= 4
        elif how in ("cut", "empty"):
            content = content[: int(at * len(content)) if how == "cut" else 0]
        elif how == "json":
            content = bytearray(json.dumps(value).encode())
        if how == "remove":
            file.unlink()
        else:
            file.write_bytes(bytes(content))
        found = outcome(lambda: score(where))
        if not refused(found):
            np.testing.assert_allclose(found.values, expected, rtol=1e-6, err_msg=str(file.relative_to(where)))
