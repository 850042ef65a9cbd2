"""What datasets does with columns, fingerprints, filters and streams. Written against datasets 5.2."""

import dataclasses
import math

import datasets
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher

WHO = f"datasets {datasets.__version__} (written against 5.2)"
DATA = Dataset.from_dict({"x": [1, 2, 3], "text": ["a", "b", "c"]})


def test_a_column_is_lazy_and_a_slice_of_it_is_a_list():
    assert not isinstance(DATA["x"], list), WHO
    assert DATA["x"][:] == [1, 2, 3], WHO
    assert isinstance(DATA.with_format("torch")["x"][:], torch.Tensor), WHO


def test_add_column_refuses_a_name_that_is_taken():
    with pytest.raises(ValueError, match="x"):
        DATA.add_column("x", [1, 2, 3])


def test_a_column_with_none_is_kept_as_none():
    assert DATA.add_column("score", [0.5, None, 0.0])["score"][:] == [0.5, None, 0.0], WHO


def test_select():
    assert DATA.select([2, 0])["text"][:] == ["c", "a"], WHO
    assert len(DATA.select([])) == 0, WHO
    with pytest.raises(IndexError):
        DATA.select([3])


def test_row_ids_survive_shuffle_filter_and_map():
    named = DATA.add_column("row_id", ["r0", "r1", "r2"])
    moved = named.shuffle(seed=1).filter(lambda row: row["x"] != 2).map(lambda row: {"y": row["x"]})
    assert {(row["row_id"], row["y"]) for row in moved} == {("r0", 1), ("r2", 3)}, WHO


def test_indices_of_map_are_no_identity():
    kept = DATA.filter(lambda row: row["x"] > 1).map(lambda row, i: {"i": i}, with_indices=True)
    assert kept["i"][:] == [0, 1], WHO


def test_map_that_returns_none_changes_nothing():
    seen = []
    mapped = DATA.map(lambda row: seen.append(row["x"]), load_from_cache_file=False)
    assert mapped.to_dict() == DATA.to_dict(), WHO
    assert seen, WHO


def test_a_row_filter_goes_by_truth_so_nan_stays():
    scores = Dataset.from_dict({"s": [math.nan, None, 0.0, 1.0]})
    kept = scores.filter(lambda row: row["s"])["s"][:]
    assert len(kept) == 2, WHO
    assert math.isnan(kept[0]), WHO
    assert kept[1] == 1.0, WHO


@pytest.mark.parametrize("reverse", [False, True])
def test_sort_puts_nan_last_both_ways(reverse):
    ordered = Dataset.from_dict({"s": [1.0, math.nan, 2.0]}).sort("s", reverse=reverse)["s"][:]
    assert math.isnan(ordered[-1]), WHO
    assert ordered[:2] == ([2.0, 1.0] if reverse else [1.0, 2.0]), WHO


@dataclasses.dataclass(frozen=True)
class Filter:
    version: int = 1

    def __call__(self, row):
        return True


def test_instance_state_is_hashed_so_a_version_field_changes_the_fingerprint():
    assert Hasher.hash(Filter(1)) == Hasher.hash(Filter(1)), WHO
    assert Hasher.hash(Filter(1)) != Hasher.hash(Filter(2)), WHO


def test_a_stream_has_no_length():
    """By this hfdataopt tells a stream, whose rows have no identity, from a dataset."""
    stream = DATA.to_iterable_dataset()
    assert not hasattr(stream, "__len__"), WHO
    assert not isinstance(stream["x"], list), WHO  # __getitem__ exists, for columns
    assert stream.map(lambda row: {"y": 1}).column_names is None, WHO
    for name in ("select", "sort"):
        assert not hasattr(stream, name), WHO


def test_remove_columns_and_class_labels():
    assert DATA.remove_columns(["x"]).column_names == ["text"], WHO
    labelled = DATA.add_column("label", ["no", "yes", "no"]).class_encode_column("label")
    assert labelled.features["label"].names == ["no", "yes"], WHO
    assert labelled["label"][:] == [0, 1, 0], WHO
