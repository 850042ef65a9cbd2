"""Batches of columns: a row is the same whether its column is a list or an array."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

from hfdataopt import get_filter, sample, select
from hfdataopt.errors import DataError
from hfdataopt.selection.source import Batch

TEXTS = ["one", "two words", "", "ünïcode", "two words"]


def of_objects(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


FORMATS = {
    "numpy": np.array,
    "numpy objects": of_objects,
    "pyarrow": pa.array,
    "pyarrow chunks": lambda values: pa.chunked_array([values[:2], values[2:]]),
    "pandas": lambda values: pd.Series(values, dtype=object),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_arrays_have_the_texts_keys_and_ids_of_lists(kind):
    plain = Batch({"text": TEXTS, "number": [1, 2, 3, 4, 5]}, ("text", "number"), False, "test")
    columns = {"text": FORMATS[kind](TEXTS), "number": FORMATS[kind]([1, 2, 3, 4, 5])}
    batch = Batch(columns, ("text", "number"), False, "test")
    assert batch.keys.tolist() == plain.keys.tolist()
    assert batch.ids == plain.ids
    assert not batch.missing.any()
    texts = Batch(columns, ("text",), False, "test").texts
    assert texts == TEXTS
    assert {type(text) for text in texts} == {str}
    with_ids = Batch({"row_id": FORMATS[kind]([7, 8, 9]), "text": TEXTS[:3]}, ("text",), True, "test")
    assert with_ids.ids == [7, 8, 9]


def test_a_row_with_a_hole_is_named_by_its_place_and_column():
    holes = Dataset.from_dict({"prompt": ["a"] * 1500, "completion": ["b"] * 1200 + [None] + ["c"] * 299})
    with pytest.raises(DataError, match="length: row 1200 with prompt 'a' is None in column 'completion'; fill it"):
        select(holes, "length", k=2)
    with pytest.raises(DataError, match="length: row 1 is None in column 'text'; fill it"):
        select(Dataset.from_dict({"text": ["a", None]}), "length", k=1)
    with pytest.raises(DataError, match="length: row 'y' is None in column 'text'"):
        select(Dataset.from_dict({"text": ["a", None], "row_id": ["x", "y"]}), "length", k=1)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "numpy"])
def test_none_is_missing_in_arrays(kind):
    batch = Batch({"text": FORMATS[kind](["a", None, "c"])}, ("text",), False, "test")
    assert batch.missing.tolist() == [False, True, False]
    fitted = get_filter("length").fit(Dataset.from_dict({"text": ["a", "b"]}))
    with pytest.raises(DataError, match="length: a row is None in column 'text'"):
        fitted({"text": FORMATS[kind](["a", None, "c"])})


def test_messages_in_nested_arrays_have_the_key_of_lists():
    rows = [
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}],
        [{"role": "user", "content": "?"}],
    ]
    plain = Batch({"messages": rows}, ("messages",), False, "test")
    parts = [of_objects(row) for row in rows]
    for given in (of_objects(parts), pa.array(rows), parts, pd.Series(parts)):
        batch = Batch({"messages": given}, ("messages",), False, "test")
        assert not batch.missing.any()
        assert batch.keys.tolist() == plain.keys.tolist()
        assert batch.texts == plain.texts


def test_drawn_rows_do_not_depend_on_the_format_of_a_dataset():
    dataset = Dataset.from_dict({"text": [f"row {i}" for i in range(40)]})
    fitted = get_filter("random", keep=sample(k=10)).fit(dataset)
    kept = dataset.filter(fitted.keep, batched=True, input_columns=fitted.columns)["text"][:]
    assert len(kept) == 10
    for kind in ("numpy", "pandas", "arrow"):
        rows = dataset.with_format(kind)
        again = rows.filter(fitted.keep, batched=True, input_columns=fitted.columns).with_format(None)["text"][:]
        assert again == kept
