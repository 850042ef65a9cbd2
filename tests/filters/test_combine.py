"""Several columns as one: ranks and values by their definitions, row by row after fit."""

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt import get_filter, top
from hfdataopt.errors import DataError, OptionError

A, B = [3.0, 1.0, 1.0, 7.0, -2.0], [0.1, 0.2, 0.3, 0.4, 90.0]
DATA = Dataset.from_dict({"a": A, "b": B, "row_id": list("vwxyz")})


def scores(data=DATA, **options):
    return np.array(data.map(get_filter("combine", **options).fit(data), batched=True)["score_combine"][:], float)


def rank(values):
    return np.array([(sum(o < v for o in values) + sum(o == v for o in values) / 2) / len(values) for v in values])


def test_the_mean_of_ranks_puts_columns_on_one_scale():
    assert np.allclose(scores(inputs=["a", "b"]), (rank(A) + rank(B)) / 2)
    assert np.allclose(scores(inputs=["a", "b"], weights=[3, 1]), (3 * rank(A) + rank(B)) / 4)


def test_the_mean_of_values_takes_them_as_they_are():
    assert np.allclose(scores(inputs=["a", "b"], of="values", weights=[1, 3]), (np.array(A) + 3 * np.array(B)) / 4)


def test_unseen_values_lie_between_those_that_were_fitted():
    fitted = get_filter("combine", inputs=["a"]).fit(DATA)
    got = fitted({"a": [-9.0, -2.0, 0.0, 2.0, 7.0, 99.0], "row_id": list("abcdef")})["score_combine"]
    assert (np.diff(got) >= 0).all()
    assert got[0] == got[1]
    assert got[4] == got[5]


def test_the_same_rows_by_map_filter_and_stream():
    fitted = get_filter("combine", keep=top(k=2), inputs=["a", "b"]).fit(DATA)
    expected = {DATA["row_id"][i] for i in np.argsort(-(rank(A) + rank(B)), kind="stable")[:2]}
    for data in (DATA, DATA.to_iterable_dataset()):
        for size in (2, 1000):
            kept = data.filter(fitted.keep, batched=True, batch_size=size, input_columns=fitted.columns)
            assert {row["row_id"] for row in kept} == expected


def test_holes_are_an_error_or_dropped():
    data = Dataset.from_dict({"a": [1.0, None, 3.0], "b": [1.0, 2.0, float("nan")]})
    with pytest.raises(DataError, match=r"combine: the row with b '2.0' is None in column 'a'"):
        data.map(get_filter("combine", inputs=["a", "b"]).fit(data), batched=True)
    dropped = data.map(get_filter("combine", inputs=["a", "b"], on_nan="drop").fit(data), batched=True)[
        "score_combine"
    ][:]
    assert np.isnan(dropped).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inputs": []}, OptionError, "combine: inputs is empty"),
        ({"inputs": ["a"], "weights": [1, 2]}, OptionError, "weights has 2 entries for 1 columns"),
        ({"inputs": ["a"], "weights": [0]}, OptionError, "the weights are all zero"),
        ({"inputs": ["a"], "weights": [-1]}, OptionError, "must be at least 0"),
        ({"inputs": ["c"]}, DataError, "combine: the dataset has no column 'c'; it has: a, b, row_id"),
        ({"inputs": ["row_id"]}, DataError, "combine: column 'row_id' must hold numbers"),
        ({}, OptionError, "needs the option 'inputs'"),
    ],
)
def test_one_clear_line(options, error, message):
    with pytest.raises(error, match=message):
        get_filter("combine", **options).fit(DATA)
