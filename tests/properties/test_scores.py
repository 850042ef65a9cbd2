"""``Scores``: ranking, joining, explaining and files, whatever is asked of them or done to them."""

import hashlib
import json
import math
import random
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hfdataopt.attribution.rows import sample_hashes, with_row_ids
from hfdataopt.attribution.scores import Scores

from .inputs import any_text, anything, awkward_texts, dataset_of, nested, odd_numbers, scalars, words
from .kinds import folder, kind, outcome, refused

numbers = st.floats(-10, 10) | st.just(math.nan) | st.sampled_from([0.0, 1.0])
sizes = st.integers(1, 8)


def texts_and_scores(rows: int, seed: int, with_ids: bool = False) -> tuple[Any, Scores]:
    """A dataset and scores of it, some equal, one missing."""
    draw = random.Random(seed)
    data = dataset_of({"text": [f"the film was {draw.choice('abc')}" for _ in range(rows)], "label": list(range(rows))})
    if with_ids:
        data = data.add_column("row_id", [f"r{i}" for i in draw.sample(range(rows), rows)])
    ids = data["row_id"][:] if with_ids else list(range(rows))
    values = np.array([float(draw.randrange(3)) for _ in range(rows)])
    values[draw.randrange(rows)] = math.nan
    metadata = {"scorer": "loss", "by_position": not with_ids, "sample": sample_hashes(data, ids)}
    return data, Scores(values, ids, np.outer(values, [1.0, -1.0]), np.abs(values), metadata)


@kind(40, values=st.lists(numbers, min_size=1, max_size=8), k=anything | st.integers(-1, 9), worst=st.booleans())
def test_best_and_worst_rows(values, k, worst):
    scores = Scores(np.array(values), list(range(len(values))))
    found = outcome(lambda: scores.bottom(k=k) if worst else scores.top(k=k))
    scored = [i for i, value in enumerate(values) if not math.isnan(value)]
    asked = type(k) is int or isinstance(k, np.integer)
    if asked and 1 <= int(k) <= len(scored):
        assert found == sorted(scored, key=lambda i: (values[i] if worst else -values[i], i))[: int(k)]
    else:
        assert refused(found)


@kind(25, rows=sizes, fraction=anything | st.floats(-0.5, 1.5))
def test_fractions(rows, fraction):
    scores = Scores(np.arange(float(rows)), [f"{i:02d}" for i in range(rows)])
    found = outcome(lambda: scores.top(fraction=fraction))
    if type(fraction) in (int, float) and 0 < fraction <= 1:
        assert found == [f"{rows - 1 - i:02d}" for i in range(max(1, round(fraction * rows)))]
    elif not isinstance(fraction, np.floating | np.integer):
        assert refused(found)


@kind(
    40,
    rows=st.integers(2, 8),
    seed=st.integers(0, 99),
    with_ids=st.booleans(),
    change=st.sampled_from(["none", "order", "text", "less", "more", "column", "ids", "twice", "formats", "label"]),
)
def test_joining_another_dataset(rows, seed, with_ids, change):
    """Scores reach the row they belong to, or nobody."""
    data, scores = texts_and_scores(rows, seed, with_ids)
    expected = dict(zip(data["label"][:], scores.values.tolist(), strict=True))
    other = {
        "none": lambda: data,
        "order": lambda: data.select(list(range(rows))[::-1]),
        "text": lambda: data.map(lambda row: {"text": row["text"] + "!"}),
        "less": lambda: data.select(range(rows - 1)),
        "more": lambda: data.select([*range(rows), 0]),
        "column": lambda: data.remove_columns("text"),
        "ids": lambda: with_row_ids(data.remove_columns("row_id") if with_ids else data),
        "twice": lambda: data.select([0] * rows),
        "formats": lambda: data.with_format("numpy"),
        "label": lambda: data.rename_column("text", "row_id" if not with_ids else "content"),
    }[change]()
    found = outcome(lambda: scores.join(other))
    if refused(found):
        assert change not in ("none", "formats", "column")
        return
    assert change != "text"
    for label, value in zip(found.with_format(None)["label"][:], found.with_format(None)["score_loss"][:], strict=True):
        assert value is None if math.isnan(expected[label]) else value == expected[label]


@kind(25, given=anything)
def test_joining_what_is_no_dataset(given):
    _, scores = texts_and_scores(3, 0)
    assert refused(outcome(lambda: scores.join(given)))


@kind(25, column=scalars | awkward_texts)
def test_names_of_the_score_column(column):
    data, scores = texts_and_scores(3, 0)
    found = outcome(lambda: scores.join(data, column=column))
    if not refused(found):
        assert (column or "score_loss") in found.column_names


@kind(40, query=anything | st.integers(-2, 3), k=anything | st.integers(-1, 9))
def test_explaining(query, k):
    data, scores = texts_and_scores(5, 1)
    found = outcome(lambda: scores.explain(query, k, dataset=data))
    good = type(query) is int and 0 <= query < 2 and type(k) is int and k >= 1
    if good:
        column = scores.matrix[:, query]
        best = [row.row_id for row in found.helpful]
        assert best == sorted((i for i in range(5) if not math.isnan(column[i])), key=lambda i: (-column[i], i))[:k]
    elif not isinstance(query, np.integer) and not isinstance(k, np.integer):
        assert refused(found)


@kind(
    25,
    metadata=st.dictionaries(awkward_texts, nested, max_size=3),
    ids=st.sampled_from(["int", "str"]),
    rows=st.integers(0, 4),
)
def test_saved_scores_are_read_back(metadata, ids, rows):
    scores = Scores(
        np.arange(float(rows)) - 1, [i if ids == "int" else f"r\u2028{i}" for i in range(rows)], metadata=metadata
    )
    with folder() as where:
        scores.save(where)
        found = outcome(lambda: Scores.load(where))
    if refused(found):  # `metadata` is the scorer's, and is checked
        assert "metadata" in str(found)
        return
    assert found.row_ids == scores.row_ids
    np.testing.assert_array_equal(found.values, scores.values)


@kind(30, metadata=anything | st.dictionaries(st.just("x"), st.sampled_from([{1, 2}, object(), b"a"])))
def test_metadata_that_json_cannot_hold(metadata):
    with folder() as where:
        found = outcome(lambda: Scores(np.zeros(2), [0, 1], metadata=metadata).save(where))
        if not refused(found):
            assert not refused(outcome(lambda: Scores.load(where))) or not isinstance(metadata, dict)


def tampered(where: Any, change: Any) -> None:
    """``scores.json`` with another document, which still tells the hash of the numbers."""
    file = where / "scores.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def use(scores: Scores, data: Any) -> None:
    """All that a report, a selection and a join ask of scores."""
    assert len(str(scores)) > 5
    values = scores.align(data)
    assert len(values) == len(data)
    assert not np.isinf(values).any()
    scores.top(k=1)
    assert isinstance(scores.meaning, str)
    if scores.matrix is not None:
        assert str(scores.explain(0, 2))


@kind(
    50,
    key=st.sampled_from(
        [
            "format",
            "row_ids",
            "metadata",
            "numbers",
            "sample",
            "scorer",
            "meaning",
            "by_position",
            "options",
            "query_ids",
        ]
    ),
    value=nested,
    drop=st.booleans(),
)
def test_documents_of_scores_that_were_changed(key, value, drop):
    """What is loaded is used without a traceback, and another row's score is never taken for this one's."""
    data, scores = texts_and_scores(4, 2, with_ids=True)

    def change(document: dict[str, Any]) -> dict[str, Any]:
        inside = document if key in document else document["metadata"]
        inside.pop(key, None)
        return document if drop else (inside.__setitem__(key, value) or document)

    with folder() as where:
        scores.save(where)
        tampered(where, change)
        found = outcome(lambda: Scores.load(where))
    if not refused(found):
        outcome(lambda: use(found, data))


@kind(25, document=st.binary(max_size=40) | nested.map(lambda x: json.dumps(x).encode()))
def test_documents_of_scores_that_are_something_else(document):
    _, scores = texts_and_scores(4, 2)
    with folder() as where:
        scores.save(where)
        (where / "scores.json").write_bytes(document)
        assert refused(outcome(lambda: Scores.load(where)))


@kind(25, cut=st.floats(0, 1), at=st.floats(0, 1), flip=st.booleans())
def test_numbers_of_scores_that_were_cut_or_changed(cut, at, flip):
    _, scores = texts_and_scores(4, 2)
    with folder() as where:
        scores.save(where)
        file = where / "scores.safetensors"
        content = bytearray(file.read_bytes())
        if flip:
            content[int(at * (len(content) - 1))] ^= 1 << int(cut * 7)
        else:
            content = content[: int(cut * (len(content) - 1))]
        file.write_bytes(bytes(content))
        assert refused(outcome(lambda: Scores.load(where)))


@kind(
    40,
    name=st.sampled_from(["values", "matrix", "standard_errors", "pool_tokens", "pool_tokens_lengths"]),
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from(["float64", "float32", "int64", "bool", "uint8"]),
    drop=st.booleans(),
)
def test_arrays_of_other_shapes_and_types(name, shape, dtype, drop):
    """A folder that was made with care by somebody else, with the right hash."""
    data, scores = texts_and_scores(4, 2, with_ids=True)
    scores.pool_tokens = [[1, 2], [3], [], [4]]
    arrays = {"values": scores.values, "matrix": scores.matrix, "standard_errors": scores.standard_errors}
    arrays |= {"pool_tokens": np.array([1, 2, 3, 4], np.int32), "pool_tokens_lengths": np.array([2, 1, 0, 1])}
    arrays[name] = np.ones(shape, dtype)
    if drop:
        del arrays[name]
    with folder() as where:
        scores.save(where)
        save_file(arrays, where / "scores.safetensors")
        digest = hashlib.sha256((where / "scores.safetensors").read_bytes()).hexdigest()
        tampered(where, lambda document: {**document, "numbers": digest})
        found = outcome(lambda: Scores.load(where))
    if not refused(found):
        outcome(lambda: use(found, data))
        assert found.values.shape == (4,)
        assert found.matrix is None or found.matrix.shape[:1] == (4,)
        assert found.standard_errors is None or found.standard_errors.shape == (4,)


@kind(20, highlight=anything, rows=sizes)
def test_rows_to_mark_in_a_plot(highlight, rows):
    _, scores = texts_and_scores(rows + 1, 0)
    outcome(lambda: scores.plot(highlight=highlight))


@kind(
    25,
    texts=st.lists(any_text, min_size=1, max_size=4),
    ids=st.lists(st.integers(-5, 5) | words | st.none() | st.booleans() | odd_numbers, min_size=1, max_size=4),
)
def test_row_ids(texts, ids):
    texts = (texts * 4)[: len(ids)]
    data = dataset_of({"text": texts, "row_id": ids})
    if data is None:
        return
    found = outcome(lambda: with_row_ids(data))
    stored = data["row_id"][:]
    good = len(set(stored)) == len(stored) and ({type(x) for x in stored} in ({int}, {str}))
    assert refused(found) == (not good)
