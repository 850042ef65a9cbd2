"""BM25 against the formula on lists of words and against the library, and the same whatever the batches."""

import math
import sys

import bm25s
import numpy as np
import pytest
from datasets import Dataset

from hfdataopt import get_filter, top
from hfdataopt.errors import DataError, MissingDependencyError, OptionError

from .invariance import check_invariance

RNG = np.random.default_rng(1)
WORDS = [f"word{i}" for i in range(40)] + ["the", "of", "a", "x", "naïve", "你好", "don't", "snake_case", "3.5"]
CHANCES = 1 / np.arange(1, len(WORDS) + 1) / sum(1 / np.arange(1, len(WORDS) + 1))


def text(length):
    return ", ".join(RNG.choice(WORDS, length, p=CHANCES[::-1])).title()


ROWS = [text(length) for length in RNG.integers(0, 60, 300)]
QUERIES = [text(length) for length in (3, 12, 30)] + ["", "word1 word1 word1", "unheard words"]
DATA = Dataset.from_dict({"text": ROWS, "row_id": list(range(300))})
TARGET = Dataset.from_dict({"text": QUERIES})


def tokens(texts, stopwords="english"):
    return bm25s.tokenize(texts, stopwords=stopwords, return_ids=False, show_progress=False)


def by_hand(rows, queries, k1, b):
    """``[rows, queries]``."""
    frequency = {word: sum(word in row for row in rows) for row in rows for word in row}
    mean = sum(map(len, rows)) / len(rows)

    def score(row, query):
        total = 0.0
        for word in query:
            df, f = frequency.get(word, 0), row.count(word)
            idf = math.log((len(rows) - df + 0.5) / (df + 0.5) + 1)
            total += 0.0 if not f else idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(row) / mean))
        return total

    return np.array([[score(row, query) for query in queries] for row in rows])


def scored(**options):
    return np.array(DATA.map(get_filter("bm25", **options).fit(DATA, TARGET), batched=True)["score_bm25"])


@pytest.mark.parametrize(
    "options", [{}, {"k1": 0.9, "b": 0.4}, {"b": 0.0}, {"b": 1.0}, {"stopwords": None}, {"stopwords": "german"}]
)
def test_the_score_is_the_formula(options):
    stopwords = options.get("stopwords", "english")
    table = by_hand(tokens(ROWS, stopwords), tokens(QUERIES, stopwords), options.get("k1", 1.5), options.get("b", 0.75))
    np.testing.assert_allclose(scored(**options), table.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(scored(aggregate="max", **options), table.max(axis=1), rtol=1e-12)


def test_the_score_is_that_of_the_library():
    index = bm25s.BM25(method="atire", idf_method="lucene", k1=1.5, b=0.75, dtype="float64")
    index.index(tokens(ROWS), show_progress=False)
    zero = np.zeros(len(ROWS))
    table = np.array([index.get_scores(query) if query else zero for query in tokens(QUERIES)])
    np.testing.assert_allclose(scored(), table.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scored(aggregate="max"), table.max(axis=0), rtol=1e-12)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_scores_are_the_same_everywhere(aggregate):
    texts = [f"{text} only{i}" for i, text in enumerate(ROWS)]  # no two of equal score
    data = Dataset.from_dict({"text": texts, "row_id": list(range(300))})
    target = Dataset.from_dict({"text": [*QUERIES, " ".join(f"only{i} " * (i + 1) for i in range(300))]})
    check_invariance(get_filter("bm25", aggregate=aggregate), data, target)


def test_a_row_that_fit_never_saw_is_scored_with_the_fitted_statistics():
    f = get_filter("bm25").fit(DATA, TARGET)
    whole = f({"text": ROWS, "row_id": list(range(300))})["score_bm25"]
    assert f({"text": ROWS[7:8], "row_id": [999]})["score_bm25"][0] == whole[7]
    assert f({"text": ["", "nothing in common", "the of"], "row_id": [0, 1, 2]})["score_bm25"].tolist() == [0.0] * 3
    rare = f({"text": ["unheard", "word1"], "row_id": [0, 1]})["score_bm25"]
    assert rare[0] > 0, "a word of the target that the dataset never held has the highest idf"


def test_many_queries_are_scored_as_one_by_one():
    """Each query's scores do not depend on the other queries, also over the edge of the rows scored at a time."""
    target = Dataset.from_dict({"text": [text(5) + " word2" for _ in range(40)]})
    each = [get_filter("bm25").fit(DATA, target.select([i])) for i in range(40)]
    table = np.array([f({"text": ROWS, "row_id": list(range(300))})["score_bm25"] for f in each])
    together = get_filter("bm25", aggregate="max").fit(DATA, target)
    np.testing.assert_allclose(together({"text": ROWS, "row_id": list(range(300))})["score_bm25"], table.max(axis=0))


def test_prompt_and_completion_are_the_document_and_the_best_is_kept():
    data = Dataset.from_dict(
        {"prompt": ["Boil soup", "Sue a neighbour", "Bake"], "completion": ["salt", "court", "oven"]}
    )
    target = Dataset.from_dict({"text": ["the court of appeal"]})
    f = get_filter("bm25", keep=top(k=1)).fit(data, target)
    assert data.filter(f.keep, batched=True, input_columns=f.columns)["prompt"][:] == ["Sue a neighbour"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": -1.0}, "k1=-1.0 must be at least 0"),
        ({"b": 1.5}, "b=1.5 must be at least 0 and at most 1"),
        ({"aggregate": "sum"}, "aggregate='sum' is not allowed"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(OptionError, match=message):
        get_filter("bm25", **options)


def test_bad_input(monkeypatch):
    with pytest.raises(OptionError, match="bm25: stopwords='klingon' is unknown to bm25s"):
        get_filter("bm25", stopwords="klingon").fit(DATA, TARGET)
    with pytest.raises(DataError, match=r"bm25: target has no words in \['text'\] but stop words"):
        get_filter("bm25").fit(DATA, Dataset.from_dict({"text": ["the of a", ""]}))
    with pytest.raises(DataError, match=r"bm25: the dataset has no words in \['text'\]"):
        get_filter("bm25").fit(Dataset.from_dict({"text": ["the of a", ""]}), TARGET)
    monkeypatch.setitem(sys.modules, "bm25s.tokenization", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[filters\]'"):
        get_filter("bm25").fit(DATA, TARGET)
