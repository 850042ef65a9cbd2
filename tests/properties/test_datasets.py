"""Any dataset as pool or queries of a scorer: a finite score for each row that can have one, in its order, or a named error."""

import functools
import math
import os
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from hypothesis import strategies as st

from hfdataopt import attribute
from hfdataopt.testing.tiny import VOCABULARY, bert, encoded, llama, reader, texts, tokenizer

from ..tiny import row_batch
from .inputs import (
    any_text,
    anything,
    awkward_texts,
    dataset_of,
    messages,
    nested,
    objects,
    odd_numbers,
    rectangular,
    scalars,
    words,
)
from .kinds import folder, kind, outcome, refused

classifier = functools.cache(bert)
language_model = functools.cache(llama)
words_tokenizer = functools.cache(tokenizer)
CHEAP = ["loss", "random", "label-consistency", "knn-shapley", "rds"]
QUERIES = texts(3, 7)


def scored(data: Any, scorer: str = "loss", model: Any = None, queries: Any = None, **options: Any) -> Any:
    """The outcome of scoring a dataset: ``(row ids, values)``."""

    def run() -> Any:
        read = options.pop("processing_class", words_tokenizer())
        found = attribute(model or classifier(), data, queries, scorer, processing_class=read, **options)
        return found.row_ids, found.values

    return outcome(run)


def check(found: Any, rows: int, *, missing: bool = False) -> None:
    """A number per row, finite (or NaN where rows may have none), in the order of the rows."""
    if refused(found):
        return
    ids, values = found
    assert ids == list(range(rows))
    assert values.shape == (rows,)
    assert values.dtype == np.float64
    assert np.isfinite(values[~np.isnan(values)]).all()
    assert missing or not np.isnan(values).any()


@kind(25, cells=st.lists(any_text, min_size=1, max_size=5), scorer=st.sampled_from(CHEAP))
def test_texts_of_any_kind(cells, scorer):
    data = dataset_of({"text": cells, "label": [i % 2 for i in range(len(cells))]})
    queries = QUERIES if scorer in ("knn-shapley", "rds") else None
    options = {"k": 1} if scorer == "knn-shapley" else {}
    check(scored(data, scorer, queries=queries, **options), len(cells))


@kind(
    15,
    rows=st.integers(1, 6),
    seed=st.integers(0, 99),
    size=st.integers(1, 4),
    form=st.sampled_from([None, "numpy", "torch"]),
)
def test_losses_are_those_of_the_model_row_by_row(rows, seed, size, form):
    data = encoded(rows, seed)
    found = scored(data.with_format(form), batch_size=size)
    assert not refused(found), str(found)
    model = classifier().eval()
    with torch.no_grad():
        expected = [float(model(**row_batch(row)).loss) for row in data]
    np.testing.assert_allclose(-found[1], expected, rtol=2e-4, atol=1e-6)


@kind(
    15,
    order=st.permutations(range(6)),
    seed=st.integers(0, 20),
    scorer=st.sampled_from(["loss", "random", "self-influence", "label-consistency"]),
)
def test_scores_follow_their_rows(order, seed, scorer):
    data = encoded(6, seed, ids=True)
    first, second = scored(data, scorer), scored(data.select(order), scorer)
    assert not refused(first), str(first)
    assert not refused(second), str(second)
    found = dict(zip(*second, strict=True))
    np.testing.assert_allclose([found[row] for row in first[0]], first[1], rtol=1e-4, atol=1e-6)


@kind(
    30,
    labels=st.lists(scalars | st.integers(0, 1) | st.lists(st.integers(0, 1), max_size=2), min_size=3, max_size=3),
    scorer=st.sampled_from(CHEAP),
    side=st.sampled_from(["pool", "queries"]),
)
def test_labels_of_any_kind(labels, scorer, side):
    data = dataset_of({"text": ["the film", "was fine", "a plot"], "label": labels})
    if data is None:
        return
    needs = scorer in ("knn-shapley", "rds")
    pool, queries = (data, QUERIES) if side == "pool" else (texts(3), data)
    found = scored(pool, scorer, queries=queries if needs else None)
    check(found, 3, missing=True)
    stored = data["label"][:]
    if (
        side == "pool"
        and scorer in ("loss", "label-consistency")
        and not all(type(x) is int and x in (0, 1) for x in stored)
    ):
        good = [type(x) in (int, bool, float) and x in (0, 1) for x in stored]
        assert refused(found) or all(good) or np.isnan(found[1][[not one for one in good]]).all()


@kind(
    12,
    names=st.lists(awkward_texts.filter(lambda x: "\0" not in x), min_size=1, max_size=3, unique=True),
    labels=st.lists(st.integers(-1, 3), min_size=3, max_size=3),
)
def test_class_labels_and_whole_numbers_agree(names, labels):
    data = Dataset.from_dict({"text": ["the film", "was fine", "a plot"], "label": labels})
    try:
        named = data.cast_column("label", ClassLabel(names=names))
    except ValueError:
        return
    plain, found = scored(data), scored(named)
    assert refused(plain) == refused(found)
    if not refused(plain):
        np.testing.assert_array_equal(plain[1], found[1])


token = st.integers(0, VOCABULARY - 1)
rows_of_tokens = st.lists(token, min_size=1, max_size=5)


@kind(
    30,
    ids=st.lists(
        rows_of_tokens | st.lists(token | st.integers(-3, 2**40), max_size=4) | st.lists(scalars, max_size=3) | nested,
        min_size=2,
        max_size=3,
    ),
    column=st.sampled_from(["input_ids", "attention_mask", "token_type_ids"]),
)
def test_tokens_of_any_kind(ids, column):
    rows = len(ids)
    columns: dict[str, Any] = {
        "input_ids": [[2, 7, 3]] * rows,
        "label": [0] * rows,
        "row_id": list(range(rows)),
        column: ids,
    }
    data = dataset_of(columns)
    if data is not None:
        found = scored(data)
        check(found, rows)
        if column == "input_ids" and not all(
            isinstance(x, list) and x and all(type(t) is int and 0 <= t < VOCABULARY for t in x)
            for x in data[column][:]
        ):
            assert refused(found)


@kind(
    25,
    labels=st.lists(
        st.lists(token | st.just(-100) | st.integers(-200, 99), max_size=5) | nested, min_size=2, max_size=3
    ),
)
def test_labelled_tokens_of_any_kind(labels):
    """Of a language model; a row whose labels are all -100 has no score, never the best one."""
    data = dataset_of({"input_ids": [[2, 7, 8, 3]] * len(labels), "labels": labels})
    if data is None:
        return
    found = scored(data, model=language_model(), processing_class=reader())
    check(found, len(labels), missing=True)
    if not refused(found):
        for row, value in zip(labels, found[1], strict=True):
            assert math.isnan(value) == all(one == -100 for one in row[1:])


@kind(25, prompt=messages | any_text | st.none(), completion=messages | any_text | st.none() | odd_numbers)
def test_prompts_and_completions_of_any_kind(prompt, completion):
    data = rectangular([{"prompt": prompt, "completion": completion}] * 2)
    if data is not None:
        found = scored(data, model=language_model(), processing_class=reader())
        check(found, 2, missing=True)
        if not refused(found):
            assert found[1][0] == found[1][1] or np.isnan(found[1]).all()


@kind(
    30,
    pool=anything | st.sampled_from([[], [{}], [{"text": "a"}], {"text": ["a"]}, "train.jsonl", [[1, 2]], [None]]),
    side=st.sampled_from(["pool", "queries", "model"]),
)
def test_what_is_no_dataset_and_no_model(pool, side):
    given: dict[str, Any] = {"pool": texts(3), "queries": QUERIES, "model": classifier(), side: pool}
    found = outcome(
        lambda: attribute(
            given["model"], given["pool"], given["queries"], "knn-shapley", processing_class=words_tokenizer()
        )
    )
    assert refused(found)


@kind(30, ids=st.lists(scalars | st.integers(0, 3) | st.sampled_from(["a", "b"]), min_size=3, max_size=3))
def test_ids_of_any_kind(ids):
    data = dataset_of({"text": ["the film", "was fine", "a plot"], "label": [0, 1, 0], "row_id": ids})
    if data is None:
        return
    found, stored = scored(data), data["row_id"][:]
    good = len(set(stored)) == 3 and {type(x) for x in stored} in ({int}, {str})
    assert refused(found) == (not good)
    if good:
        assert found[0] == stored


@kind(
    25,
    columns=st.dictionaries(
        st.sampled_from(
            [
                "text",
                "text_pair",
                "premise",
                "sentence",
                "sentence1",
                "label",
                "labels",
                "input_ids",
                "image",
                "pixel_values",
                "a b",
                "",
            ]
        ),
        scalars | st.lists(st.integers(0, 9), max_size=3),
        max_size=4,
    ),
    scorer=st.sampled_from(["loss", "knn-shapley"]),
)
def test_columns_that_are_missing_or_strange(columns, scorer):
    data = rectangular([columns] * 3)
    if data is not None and len(data):
        check(scored(data, scorer, queries=QUERIES if scorer == "knn-shapley" else None), 3, missing=True)


@kind(
    12,
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    mode=st.sampled_from(["RGB", "L"]),
    with_text=st.booleans(),
)
def test_columns_of_images(sizes, mode, with_text):
    from PIL import Image

    columns: dict[str, Any] = {"image": [Image.new(mode, (n, n)) for n in sizes], "label": [0] * len(sizes)}
    if with_text:
        columns["text"] = ["the film"] * len(sizes)
    found = scored(Dataset.from_dict(columns))
    check(found, len(sizes))
    assert refused(found) == (not with_text)


@kind(
    30,
    options=st.dictionaries(
        st.sampled_from(["batch_size", "query_group", "aggregate", "checkpoints", "data_collator", "output_dir", "k"]),
        (anything | odd_numbers).filter(lambda x: not isinstance(x, str) or "/" not in x),
        min_size=1,
        max_size=2,
    ),
)
def test_arguments_of_attribute(options):
    before = os.getcwd()
    with folder() as where:
        os.chdir(where)
        try:
            check(scored(texts(3), "knn-shapley", queries=QUERIES, **options), 3)
        finally:
            os.chdir(before)
        assert "output_dir" in options or not list(where.iterdir())


@kind(
    20,
    group=st.lists(scalars | st.sampled_from(["a", "b"]) | nested, min_size=3, max_size=3),
    aggregate=st.sampled_from(["mean", "max"]),
)
def test_groups_of_queries_of_any_kind(group, aggregate):
    queries = dataset_of({"text": ["the film", "was fine", "a plot"], "label": [0, 1, 0], "group": group})
    if queries is not None:
        found = scored(texts(4), "knn-shapley", queries=queries, query_group="group", aggregate=aggregate, k=2)
        check(found, 4)


class Rows(torch.utils.data.Dataset):
    """A dataset of torch, of rows of any kind."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Any:
        return self.rows[position]


GOOD = {"input_ids": [2, 7, 3], "attention_mask": [1, 1, 1], "labels": 1}


@kind(
    25,
    rows=st.lists(
        st.just(GOOD) | objects | st.dictionaries(st.sampled_from(sorted(GOOD)), nested | objects, max_size=3) | words,
        min_size=1,
        max_size=3,
    ),
)
def test_datasets_of_torch_of_any_kind(rows):
    found = scored(Rows(rows))
    check(found, len(rows))
    if all(row is GOOD for row in rows):
        assert not refused(found)


@kind(
    12,
    k=odd_numbers | st.integers(1, 5),
    rows=st.integers(1, 4),
    queries=st.integers(0, 3),
    scorer=st.sampled_from(["knn-shapley", "cv-confidence"]),
)
def test_sizes_beyond_the_data(k, rows, queries, scorer):
    option = {"knn-shapley": "k", "cv-confidence": "folds"}[scorer]
    asked = QUERIES.select(range(queries)) if scorer == "knn-shapley" else None
    found = scored(texts(rows), scorer, queries=asked, **{option: k})
    check(found, rows)
    if asked is not None and queries == 0:
        assert refused(found)
