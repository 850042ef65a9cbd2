"""What datasets does with columns, fingerprints, filters and streams. Written against datasets 5.2.

Not relied on: ``with_indices`` on a stream that several workers read (ids are a column), async functions in ``map``, speed of ``filter``
against ``select``.
"""

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


class Same:
    def __call__(self, rows):
        return rows


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


def test_a_function_of_a_module_is_hashed_by_its_name(tmp_path, monkeypatch):
    """So an upgrade of it finds the old rows in the cache: filters are instances with a version instead."""
    import importlib
    import sys

    monkeypatch.syspath_prepend(str(tmp_path))
    hashes = []
    for body in ("True", "False  # changed"):
        (tmp_path / "module_that_changes.py").write_text(f"def keep(row):\n    return {body}\n")
        sys.modules.pop("module_that_changes", None)
        importlib.invalidate_caches()
        hashes.append(Hasher.hash(importlib.import_module("module_that_changes").keep))
    assert hashes[0] == hashes[1], WHO


def test_a_closure_is_hashed_by_what_it_captures():
    def made(value):
        return lambda row: row["x"] > value

    assert Hasher.hash(made(1)) == Hasher.hash(made(1)), WHO
    assert Hasher.hash(made(1)) != Hasher.hash(made(2)), WHO


def test_state_that_changes_by_use_changes_the_hash():
    class Counting:
        calls = 0

    one = Counting()
    before = Hasher.hash(one)
    one.calls = 1
    assert Hasher.hash(one) != before, WHO


def test_the_batch_size_is_part_of_the_fingerprint_and_the_description_is_not():
    def fingerprint(**options):
        return DATA.map(Same(), batched=True, load_from_cache_file=False, **options)._fingerprint

    assert fingerprint(batch_size=1) != fingerprint(batch_size=2), WHO
    assert fingerprint(batch_size=2) == fingerprint(batch_size=2, desc="other"), WHO


def test_a_dataset_in_memory_has_no_cache():
    assert DATA.map(lambda row: {"y": 1}).cache_files == [], WHO


def test_a_filtered_dataset_reads_by_an_indices_mapping():
    kept = DATA.filter(lambda row: row["x"] > 1)
    assert kept._indices is not None, WHO
    assert kept.flatten_indices()._indices is None, WHO
    assert DATA.select(range(1, 3))._indices is None, WHO


def test_a_batched_map_may_change_the_number_of_rows_only_without_the_old_columns():
    with pytest.raises(Exception, match=r"(?i)length"):
        DATA.map(lambda rows: {"y": [1]}, batched=True, load_from_cache_file=False)
    assert len(DATA.map(lambda rows: {"y": [1]}, batched=True, remove_columns=DATA.column_names)) == 1, WHO


def test_the_same_predicate_works_on_a_stream_and_a_dict_of_splits():
    assert len(list(DATA.to_iterable_dataset().filter(Filter()))) == 3, WHO
    assert len(datasets.DatasetDict(train=DATA).filter(Filter())["train"]) == 3, WHO
