"""Row identity, reading rows in order, and what is drawn from them."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from hfdataopt import with_row_ids
from hfdataopt.attribution.rows import (
    Rows,
    as_list,
    check_map_style,
    draw,
    pad_batch,
    row_hashes,
    row_ids,
    sample_hashes,
    shuffled,
)
from hfdataopt.errors import DataError

TEXTS = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})


def with_ids(*ids):
    return Dataset.from_dict({"row_id": list(ids), "text": [str(value) for value in ids]})


# -- ids


def test_ids_are_positions_or_the_column():
    assert row_ids(TEXTS) == [0, 1, 2]
    assert row_ids(with_ids(7, 5, 6)) == [7, 5, 6]
    assert row_ids(with_ids("x", "y")) == ["x", "y"]
    assert row_ids([{"text": "a"}, {"text": "b"}]) == [0, 1]


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_ids_are_plain_values_in_a_formatted_dataset(kind):
    ids = row_ids(with_ids(7, 5).with_format(kind))
    assert ids == [7, 5]
    assert all(type(value) is int for value in ids)


def test_with_row_ids_adds_positions_once():
    added = with_row_ids(TEXTS)
    assert added["row_id"][:] == [0, 1, 2]
    shuffled_rows = added.shuffle(seed=3).select([2, 0])
    assert with_row_ids(shuffled_rows) is shuffled_rows
    assert row_ids(shuffled_rows) == shuffled_rows["row_id"][:]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 1, 2, 3], r"'row_id' has 2 duplicates, for example \[1, 2\]; ids must be unique"),
        ([1.5, 2.5], r"must hold only ints or only strings; got 1\.5"),
        ([True, False], "must hold only ints or only strings; got True"),
        (["a", None], "must hold only ints or only strings; got None"),
        ([1, None], "must hold only ints or only strings; got None"),
    ],
)
def test_bad_ids_are_named(ids, message):
    dataset = Dataset.from_dict({"row_id": ids})
    with pytest.raises(DataError, match=message):
        row_ids(dataset)
    with pytest.raises(DataError, match=message):
        with_row_ids(dataset)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(TEXTS)


class Measured(Endless):
    """A stream that states a length."""

    def __len__(self):
        return 3


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Endless(), "the pool: Endless is a stream, whose rows have no identity"),
        (Measured(), "the pool: Measured is a stream, whose rows have no identity"),
        (None, "the pool is None; pass a dataset"),
        (TEXTS.select([]), "the pool is empty"),
        (TEXTS.to_iterable_dataset(), "the pool: IterableDataset is a stream, whose rows have no identity"),
        (DatasetDict(train=TEXTS, test=TEXTS), r"the pool is a dict of datasets \(train, test\); pass one of them"),
    ],
)
def test_what_is_no_map_style_dataset_is_refused(dataset, message):
    with pytest.raises(DataError, match=message):
        check_map_style(dataset, "the pool")


@pytest.mark.parametrize(
    "dataset", [TEXTS.to_iterable_dataset(), DatasetDict(train=TEXTS), [{"text": "a"}]], ids=["stream", "dict", "list"]
)
def test_with_row_ids_refuses_them_too(dataset):
    with pytest.raises(DataError, match="with_row_ids"):
        with_row_ids(dataset)


# -- draws


@pytest.mark.parametrize("ids", [list(range(50)), [f"r{i}" for i in range(50)]])
def test_draws_do_not_depend_on_the_order_of_the_rows(ids):
    other = random.Random(0).sample(ids, len(ids))
    assert other != ids
    assert [ids[i] for i in shuffled(ids, 3)] == [other[i] for i in shuffled(other, 3)]
    assert {ids[i] for i in draw(ids, 10, 3)} == {other[i] for i in draw(other, 10, 3)}
    assert [ids[i] for i in shuffled(ids, 4)] != [ids[i] for i in shuffled(ids, 3)]


def test_a_draw_is_sorted_positions_without_repeats():
    drawn = draw(list(range(20)), 8, 0)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 8
    assert draw(["a", "b"], 5, 0) == [0, 1]


def test_a_growing_pool_keeps_earlier_draws_in_order():
    """The order of the old rows among themselves is the same after rows were added."""
    small, large = list(range(10)), list(range(30))
    assert [i for i in shuffled(large, 1) if i < 10] == shuffled(small, 1)


# -- the fingerprint


def test_the_fingerprint_is_of_contents_by_column():
    one = sample_hashes(TEXTS, [0, 1, 2])
    assert {entry["row_id"] for entry in one} == {0, 1, 2}
    assert set(one[0]["columns"]) == {"text", "label"}
    changed = sample_hashes(Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 1, 1]}), [0, 1, 2])
    by_row = {entry["row_id"]: entry["columns"] for entry in one}
    for entry in changed:
        assert entry["columns"]["text"] == by_row[entry["row_id"]]["text"]
        assert (entry["columns"]["label"] == by_row[entry["row_id"]]["label"]) == (entry["row_id"] == 1)


def test_the_fingerprint_does_not_depend_on_the_format():
    tokens = Dataset.from_dict({"input_ids": [[1, 2], [3]], "score": [0.1, 0.2]})
    assert sample_hashes(tokens, [0, 1]) == sample_hashes(tokens.with_format("numpy"), [0, 1])
    ids = tokens.remove_columns("score")
    assert sample_hashes(ids, [0, 1]) == sample_hashes(ids.with_format("torch"), [0, 1])


@pytest.mark.parametrize("kind", ["numpy", "torch", "arrow", "pandas"])
def test_every_row_has_a_hash_per_column_whatever_the_format(kind):
    data = Dataset.from_dict({"row_id": [3, 1], "text": ["a", "b"], "ids": [[1, 2], [1]], "x": [0.5, None]})
    plain = row_hashes(data)
    assert {name: (values.dtype, len(values)) for name, values in plain.items()} == {
        name: (np.uint64, 2) for name in ("text", "ids", "x")
    }
    formatted = row_hashes(data.with_format(kind))
    moved = row_hashes(data.select([1, 0]))
    for name, values in plain.items():
        np.testing.assert_array_equal(values, formatted[name])
        np.testing.assert_array_equal(values, moved[name][::-1])
        assert values[0] != values[1]


def test_what_json_lacks_has_no_hash():
    rows = [{"a": 1, "b": object()}, {"a": 2, "b": object()}]
    assert list(row_hashes(rows)) == ["a"]
    assert row_hashes([(1, 2)]) == {}
    blobs = Dataset.from_dict({"a": [b"1", b"2"], "t": ["x", "y"]})
    assert list(row_hashes(blobs)) == ["t"]


def test_the_fingerprint_takes_at_most_64_rows():
    assert len(sample_hashes(Dataset.from_dict({"x": list(range(100))}), list(range(100)))) == 64


# -- reading


def test_padding_goes_right_with_the_right_value():
    batch = pad_batch(
        [
            {
                "input_ids": [5, 6, 7],
                "labels": [1, 2, 3],
                "token_type_ids": [1, 1, 1],
                "text": "left out",
                "weight": 0.5,
            },
            {"input_ids": [8], "labels": [4], "token_type_ids": [1], "text": "", "weight": 1.5},
        ],
        pad_token_id=9,
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["weight"].tolist() == [0.5, 1.5]
    assert "text" not in batch


def test_a_given_mask_is_kept_and_label_becomes_labels():
    batch = pad_batch(
        [
            {"input_ids": [1, 2], "attention_mask": [0, 1], "label": 1},
            {"input_ids": [3], "attention_mask": [1], "label": 0},
        ]
    )
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("kind", [None, "numpy", "torch"])
def test_padding_reads_every_format(kind):
    dataset = Dataset.from_dict({"input_ids": [[1, 2], [3]], "label": [1, 0]}).with_format(kind)
    batch = pad_batch([dataset[0], dataset[1]])
    assert batch["input_ids"].tolist() == [[1, 2], [3, 0]]
    assert batch["labels"].dtype == torch.int64


def test_batches_come_in_order_and_cover_every_row():
    rows = Rows(Dataset.from_dict({"input_ids": [[i] * (i + 1) for i in range(5)]}), pad_batch, side="pool")
    batches = list(rows.batches(2))
    assert [positions for positions, _ in batches] == [[0, 1], [2, 3], [4]]
    assert torch.cat([batch["input_ids"][:, 0] for _, batch in batches]).tolist() == [0, 1, 2, 3, 4]
    assert [positions for positions, _ in rows.batches(2, [4, 1, 0])] == [[4, 1], [0]]


def test_reading_draws_no_random_number():
    rows = Rows(Dataset.from_dict({"input_ids": [[1], [2], [3]]}), pad_batch, side="pool")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    list(rows.batches(2))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_the_collator_never_sees_ids_or_columns_that_are_not_kept():
    seen = []
    dataset = Dataset.from_dict({"row_id": ["a", "b"], "text": ["x", "y"], "input_ids": [[1], [2]], "label": [0, 1]})
    rows = Rows(dataset, lambda batch: seen.extend(batch) or {}, side="pool", keep=["input_ids", "label"])
    rows.batch([0, 1])
    assert [set(row) for row in seen] == [{"input_ids", "label"}] * 2
    assert rows.ids == ["a", "b"]
    assert rows.column("text") == ["x", "y"]
    assert rows.column("absent") is None


def test_a_failing_collator_is_named_with_rows_and_columns():
    def collate_badly(rows):
        raise KeyError("labels")

    rows = Rows(with_ids("a", "b"), collate_badly, side="queries")
    with pytest.raises(
        DataError, match=r"the queries: the collator collate_badly failed on rows \['a', 'b'\] .*KeyError: 'labels'"
    ):
        rows.batch([0, 1])


def test_a_collator_that_makes_other_rows_is_refused():
    """Pairs of answers as DPO's collator makes them; a score of a row of such a batch would be that of another row."""
    dataset = Dataset.from_dict({"input_ids": [[1], [2], [3]]})
    rows = Rows(dataset, lambda batch: pad_batch([*batch, *batch]), side="pool")
    with pytest.raises(DataError, match=r"the pool: the collator <lambda> makes 4 rows of 2 \(pairs of answers"):
        rows.batch([0, 1])


def test_contents_change_with_the_data_and_with_the_ids():
    def contents(dataset):
        return Rows(dataset, pad_batch, side="pool").contents

    assert contents(with_ids("a", "b")) == contents(with_ids("a", "b"))
    assert contents(with_ids("a", "b")) != contents(with_ids("a", "c"))


def test_a_column_is_plain_values_in_every_format():
    dataset = Dataset.from_dict({"x": [1, 2]})
    for kind in (None, "numpy", "torch"):
        values = as_list(dataset.with_format(kind)["x"])
        assert values == [1, 2]
        assert all(type(value) is int for value in values)
