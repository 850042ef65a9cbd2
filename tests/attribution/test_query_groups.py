"""Queries in groups: the mean within a group, then the mean or the maximum over groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hfdataopt import AttributionCallback, Checkpoint, Scores, attribute
from hfdataopt.attribution.scorer import Scorer
from hfdataopt.errors import DataError, OptionError

from ..policy import good_words, prompts, reader, speaker
from ..tiny import bert, encoded, questions
from ..training import trainer

GROUPS = ["b", "a", "b", "b", "c"]
WITH_MATRIX: dict[str, dict[str, Any]] = {
    "tracin": {"basis": "exact"},
    "rds": {},
    "loo": {},
    "freeshap": {"permutations": 3, "per_query": True},
    "knn-shapley": {},
    "representer": {},
}


def expected(matrix: np.ndarray, aggregate: str, groups: list[Any] = GROUPS) -> np.ndarray:
    """From the definition, group by group; queries without any score are left out."""
    means = []
    for group in sorted(set(groups)):
        members = [q for q, of in enumerate(groups) if of == group and not np.isnan(matrix[:, q]).all()]
        if members:
            means.append(sum(matrix[:, q] for q in members) / len(members))
    return np.mean(means, axis=0) if aggregate == "mean" else np.max(means, axis=0)


def grouped(queries: Any, groups: list[Any] = GROUPS) -> Any:
    return queries.add_column("subtask", groups)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
@pytest.mark.parametrize("name", list(WITH_MATRIX))
def test_scorers_with_a_score_for_each_query(name: str, aggregate: Any, tmp_path: Path) -> None:
    model, pool, queries = bert().eval(), encoded(9), grouped(encoded(5, seed=7))
    options: dict[str, Any] = {**WITH_MATRIX[name], "query_group": "subtask", "aggregate": aggregate}
    scores = attribute(model, pool, queries, name, output_dir=tmp_path, **options)
    assert scores.matrix.shape == (9, 5)
    np.testing.assert_allclose(scores.values, expected(scores.matrix, aggregate))
    assert not np.allclose(scores.values, scores.matrix.mean(1))
    assert (scores.metadata["query_group"], scores.metadata["aggregate"]) == ("subtask", aggregate)
    plain = attribute(model, pool, queries, name, **WITH_MATRIX[name])
    np.testing.assert_allclose(plain.matrix, scores.matrix, rtol=1e-6)
    assert "query_group" not in plain.metadata
    loaded = Scores.load(tmp_path)
    np.testing.assert_array_equal(loaded.values, scores.values)


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_checkpoints_are_summed_before_groups_are_formed(aggregate: Any, tmp_path: Path) -> None:
    queries, pool = grouped(encoded(5, seed=7)), encoded(9)
    for seed in (0, 1):
        bert(seed=seed).save_pretrained(tmp_path / str(seed))
    checkpoints = [Checkpoint(str(tmp_path / str(seed)), learning_rate=rate) for seed, rate in ((0, 0.5), (1, 2.0))]
    options: dict[str, Any] = {"basis": "exact", "query_group": "subtask", "aggregate": aggregate}
    scores = attribute(bert(), pool, queries, "tracin", checkpoints=checkpoints, **options)
    matrix = sum(
        rate * attribute(bert(seed=seed), pool, queries, "tracin", basis="exact").matrix
        for seed, rate in ((0, 0.5), (1, 2.0))
    )
    np.testing.assert_allclose(scores.values, expected(matrix, aggregate), rtol=1e-4, atol=1e-6)


def silent(row_id: Any, completion_ids: Any, **_: Any) -> list[float]:
    """No signal for the first of group b and for the only one of group c."""
    return [0.0 if row in ("q0", "q4") else r for row, r in zip(row_id, good_words(completion_ids), strict=True)]


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_a_query_without_signal_is_left_out_of_its_group(aggregate: Any) -> None:
    model, pool, queries = speaker().double(), questions(6, 1), grouped(prompts(5, 3))
    options: dict[str, Any] = {
        "processing_class": reader(),
        "reward_funcs": silent,
        "samples": 6,
        "max_new_tokens": 6,
        "basis": "exact",
        "precondition": "none",
    }
    scores = attribute(model, pool, queries, "nice", query_group="subtask", aggregate=aggregate, **options)
    assert np.isnan(scores.matrix[:, [0, 4]]).all()
    of_b, of_a = scores.matrix[:, [2, 3]].mean(1), scores.matrix[:, 1]
    means = np.stack([of_b, of_a])
    np.testing.assert_allclose(scores.values, means.mean(0) if aggregate == "mean" else means.max(0))


def test_a_query_that_speaks_at_one_moment_only(tmp_path: Path) -> None:
    """It counts with what it says there; where nothing speaks nothing is added."""
    queries, pool = grouped(prompts(5, 3)), questions(6, 1)
    for seed in (0, 1):
        speaker(seed).save_pretrained(tmp_path / str(seed))
    checkpoints = [Checkpoint(str(tmp_path / str(seed)), learning_rate=rate) for seed, rate in ((0, 0.5), (1, 2.0))]
    calls = 0

    def later_only(row_id: Any, completion_ids: Any, **_: Any) -> list[float]:
        """Query q1 is silent at the first checkpoint."""
        nonlocal calls
        calls += 1
        given = good_words(completion_ids)
        return [0.0 if row == "q1" and calls == 1 else r for row, r in zip(row_id, given, strict=True)]

    options: dict[str, Any] = {
        "processing_class": reader(),
        "samples": 6,
        "max_new_tokens": 6,
        "basis": "exact",
        "precondition": "none",
    }
    scores = attribute(
        speaker(),
        pool,
        queries,
        "nice",
        checkpoints=checkpoints,
        reward_funcs=later_only,
        query_group="subtask",
        **options,
    )
    both = attribute(
        speaker(), pool, queries, "nice", checkpoints=checkpoints, reward_funcs=good_words, **options
    ).matrix
    first = attribute(speaker(), pool, queries, "nice", reward_funcs=good_words, **options).matrix
    matrix = both.copy()
    matrix[:, 1] -= 0.5 * first[:, 1]
    np.testing.assert_allclose(scores.matrix, matrix, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scores.values, expected(scores.matrix, "mean"))


def test_in_a_callback(tmp_path: Path) -> None:
    queries = grouped(prompts(5, 3))
    callback = AttributionCallback(
        "nice",
        queries=queries,
        query_group="subtask",
        aggregate="max",
        reward_funcs=good_words,
        samples=4,
        max_new_tokens=4,
        floats_per_row=1024,
    )
    trainer(tmp_path, callback, save_strategy="no").train()
    assert callback.scores is not None
    np.testing.assert_allclose(callback.scores.values, expected(callback.scores.matrix, "max"))


def test_groups_may_be_numbers() -> None:
    numbers = [2, 1, 2, 2, 3]
    scores = attribute(bert(), encoded(6), grouped(encoded(5, seed=7), numbers), "rds", query_group="subtask")
    np.testing.assert_allclose(scores.values, expected(scores.matrix, "mean", numbers))


# -- what cannot be grouped


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "loss",
            {"query_group": "subtask"},
            r"loss: query_group='subtask' needs a score for each query; this scorer reads",
        ),
        ("freeshap", {"query_group": "subtask"}, r"freeshap: query_group='subtask' needs .*; set per_query=True"),
        (
            "tracin",
            {"query_group": "task"},
            r"tracin: query_group='task' is no column of the queries; they have .*subtask",
        ),
        (
            "tracin",
            {"query_group": "input_ids"},
            r"tracin: query_group='input_ids' holds \[\d.* for query 0; a group is",
        ),
        ("tracin", {"aggregate": "max"}, r"tracin: aggregate='max' is over groups of queries; give query_group= too"),
        (
            "tracin",
            {"query_group": "subtask", "aggregate": "sum"},
            r"tracin: aggregate='sum' is unknown; it is 'mean' or",
        ),
    ],
)
def test_groups_that_cannot_be(name: str, options: Any, message: str, tmp_path: Path) -> None:
    queries = grouped(encoded(5, seed=7))
    with pytest.raises((OptionError, DataError), match=message):
        attribute(bert(), encoded(6), queries, name, **options)


@dataclass
class OneForAll(Scorer):
    """Reads queries and gives one score for all of them."""

    name: ClassVar[str] = "one-for-all"

    def score(self, view: Any) -> Any:
        return np.arange(float(len(view.pool)))


def test_a_scorer_that_turns_out_to_give_one_score_for_all() -> None:
    queries = grouped(encoded(5, seed=7))
    assert attribute(bert(), encoded(6), queries, OneForAll()).values.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r"one-for-all: query_group='subtask' needs a score for each query, and this"):
        attribute(bert(), encoded(6), queries, OneForAll(), query_group="subtask")


def test_another_group_in_the_same_folder_is_formed_anew(tmp_path: Path) -> None:
    queries = grouped(encoded(5, seed=7)).add_column("other", list("xyxyx"))
    given: dict[str, Any] = {"basis": "exact", "output_dir": tmp_path}
    for column, groups in (("subtask", GROUPS), ("other", list("xyxyx"))):
        scores = attribute(bert(), encoded(6), queries, "tracin", query_group=column, **given)
        np.testing.assert_allclose(scores.values, expected(scores.matrix, "mean", groups))
