"""The summary says what was kept and dropped, and overlaps are those of sets."""

import json

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt import select, top
from hfdataopt.errors import OptionError
from hfdataopt.selection.summary import overlap

DATA = Dataset.from_dict({"text": [f"row {'x ' * i}" for i in range(40)], "row_id": [f"r{i}" for i in range(40)]})


def test_counts_histogram_and_rows():
    kept, summary = select(DATA, "length", k=10, return_summary=True)
    assert summary.kept_ids == kept["row_id"][:] == [f"r{i}" for i in range(30, 40)]
    assert (summary.rows, summary.kept, summary.unscored) == (40, 10, 0)
    assert np.sum(summary.histogram, axis=0).tolist() == [40, 10]
    assert summary.edges[0] == 1
    assert summary.edges[-1] == 40
    shown = [
        [row.row_id for row in rows] for rows in (summary.best, summary.last_kept, summary.first_dropped, summary.worst)
    ]
    assert shown == [["r39", "r38", "r37"], ["r32", "r31", "r30"], ["r29", "r28", "r27"], ["r2", "r1", "r0"]]
    assert summary.best[0].score == 40
    assert summary.best[0].text.startswith("row x x")
    printed = str(summary)
    for part in (
        "length: kept 10 of 40 rows by top(k=10)",
        "a longer text",
        "row r39",
        "first dropped",
        " 4/4",
        " 0/4",
    ):
        assert part in printed
    assert json.loads(json.dumps(summary.as_dict()))["kept"] == 10


def test_of_the_rows_that_are_shown_only_what_was_read():
    data = Dataset.from_dict(
        {"source": ["a site"] * 4, "prompt": list("abcd"), "completion": ["x " * i for i in range(4)]}
    )
    _, summary = select(data, "length", k=2, text="completion", return_summary=True)
    assert summary.best[0].text == "x x x"
    _, summary = select(data, "length", k=2, return_summary=True)
    assert summary.best[0].text == "d | x x x"
    _, summary = select(data.add_column("n", [0, 1, 2, 3]), "n", k=2, return_summary=True)
    assert summary.best[0].text == "d | x x x", "a column of numbers has no text: the usual columns"


def test_no_row_is_shown_twice():
    for k in range(1, 7):
        _, summary = select(DATA.select(range(6)), "length", k=k, return_summary=True)
        ids = [
            row.row_id
            for rows in (summary.best, summary.last_kept, summary.first_dropped, summary.worst)
            for row in rows
        ]
        assert len(ids) == len(set(ids))
        assert {"r5", "r0"} <= set(ids)


def test_rows_without_a_score_and_equal_scores():
    data = Dataset.from_dict({"text": ["a", None, "b", "c"]})
    _, summary = select(data, "length", k=2, on_nan="drop", return_summary=True)
    assert summary.unscored == 1
    assert "1 rows have no score" in str(summary)
    assert np.sum(summary.histogram, axis=0).tolist() == [3, 2]


def test_overlap_is_that_of_sets():
    _, long = select(DATA, "length", k=10, return_summary=True)
    found = overlap({"long": long, "some": ["r30", "r31", "r0", "r1"], "none": []})
    assert found.shared.tolist() == [[10, 2, 0], [2, 4, 0], [0, 0, 0]]
    assert found.share[0, 1] == 0.5
    assert found.share[2, 2] == 0
    assert "50 %" in str(found)
    _, short = select(DATA, "length", k=20, best="shortest", return_summary=True)
    assert long.overlap(short) == 0
    assert long.overlap(long) == 1
    assert found.as_dict()["names"] == ["long", "some", "none"]


def test_a_stream_has_none():
    with pytest.raises(OptionError, match="a stream has no summary"):
        select(DATA.to_iterable_dataset(), "length", rule=top(k=2), return_summary=True)
