"""Any scores as a filter: the values that ``join`` would add, in the idiom of map functions."""

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt import Scores, diverse, get_filter, select, top
from hfdataopt.attribution.rows import sample_hashes
from hfdataopt.errors import DataError, OptionError

VALUES = [0.1, 0.9, 0.5, float("nan"), -0.2, 0.7]
WITH_IDS = Dataset.from_dict({"text": list("abcdef"), "row_id": list("uvwxyz")})
PLAIN = Dataset.from_dict({"text": list("abcdef"), "length": [1, 2, 3, 4, 5, 6]})


def scores(data):
    by_position = "row_id" not in data.column_names
    ids = list(range(len(data))) if by_position else data["row_id"][:]
    metadata = {
        "scorer": "toy",
        "meaning": "helpfulness",
        "by_position": by_position,
        "sample": sample_hashes(data, ids),
    }
    return Scores(np.array(VALUES), ids, metadata=metadata)


@pytest.mark.parametrize("data", [WITH_IDS, PLAIN], ids=["row_id", "position"])
def test_the_values_of_join(data, tmp_path):
    scores(data).save(tmp_path)
    for given in (scores(data), str(tmp_path)):
        fitted = get_filter("scores", keep=top(k=2), given=given, on_nan="drop").fit(data)
        joined = scores(data).join(data)
        found = data.map(fitted, batched=True, batch_size=2)["score_scores"][:]
        np.testing.assert_array_equal(found, np.array(joined["score_toy"][:], dtype=float))
        assert data.filter(fitted.keep, batched=True, input_columns=fitted.columns)["text"][:] == ["b", "f"]
        assert [
            row["text"]
            for row in data.to_iterable_dataset().filter(fitted.keep, batched=True, input_columns=fitted.columns)
        ] == ["b", "f"]


def test_with_ids_the_order_may_change():
    moved = WITH_IDS.select([4, 2, 0, 5, 1])
    fitted = get_filter("scores", given=scores(WITH_IDS)).fit(moved)
    assert moved.map(fitted, batched=True)["score_scores"][:] == [-0.2, 0.5, 0.1, 0.7, 0.9]


def test_select_by_it_is_select_by_the_scores():
    assert (
        select(WITH_IDS, "scores", given=scores(WITH_IDS), on_nan="drop", k=3)["text"][:]
        == select(WITH_IDS, scores(WITH_IDS), k=3)["text"][:]
    )


def test_other_columns_may_hold_none():
    data = PLAIN.add_column("note", [None, "a", None, "b", None, None])
    fitted = get_filter("scores", given=scores(data), on_nan="drop", keep=top(k=2)).fit(data)
    assert data.filter(fitted.keep, batched=True, input_columns=fitted.columns)["text"][:] == ["b", "f"]


@pytest.mark.parametrize("data", [WITH_IDS, PLAIN], ids=["row_id", "position"])
def test_diverse_reads_the_text(data):
    texts = ["one two", "one two", "three", "four", "one two three", "one two"]
    data = data.remove_columns("text").add_column("text", [f"{text} {i}" for i, text in enumerate(texts)])
    found = select(data, get_filter("scores", given=scores(data), text="text", on_nan="drop"), rule=diverse(k=2))
    assert found["text"][:] == select(data, scores(data), rule=diverse(k=2))["text"][:]
    with pytest.raises(OptionError, match=r"scores: the rule diverse .* say which columns with text="):
        select(data, get_filter("scores", given=scores(data), on_nan="drop"), rule=diverse(k=2))


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda: get_filter("scores", given=[1.0]),
            OptionError,
            "given must be Scores or the folder they were saved to; got list",
        ),
        (
            lambda: get_filter("scores", given=scores(PLAIN)).fit(PLAIN.select([1, 0, 2, 3, 4, 5])),
            DataError,
            "another order",
        ),
        (lambda: get_filter("scores", given=scores(PLAIN), keep=top(k=1)).fit(PLAIN), DataError, "has no score"),
        (
            lambda: get_filter("scores", given=scores(WITH_IDS), on_nan="drop").fit(WITH_IDS).fit(WITH_IDS),
            OptionError,
            "scores: a fitted copy no longer holds its scores",
        ),
        (
            lambda: get_filter("scores", given=scores(PLAIN)).fit(PLAIN.to_iterable_dataset()),
            DataError,
            "must see the whole dataset",
        ),
    ],
)
def test_one_clear_line(act, error, message):
    with pytest.raises(error, match=message):
        act()
