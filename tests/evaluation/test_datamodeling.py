"""Linear datamodeling score: Spearman by scipy, known answers, and outcomes that are trainings by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from hfdataopt import Scores, attribute
from hfdataopt.errors import DataError, OptionError
from hfdataopt.evaluation import SubsetOutcomes, draw_subsets, linear_datamodeling_score, measure_subsets
from hfdataopt.retraining import Recipe, fine_tune, read_rows, utility

from ..tiny import bert, encoded

FAST = Recipe(epochs=1, learning_rate=1e-2, batch_size=4)


def planted(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(30, 9))
    subsets = draw_subsets(range(30), 40, 0.5, seed)
    outcomes = subsets @ scores
    return scores, subsets, outcomes + noise * outcomes.std() * random.normal(size=outcomes.shape)


def test_the_score_is_the_mean_of_spearmans() -> None:
    scores, subsets, outcomes = planted(0.5)
    found = linear_datamodeling_score(scores, subsets, outcomes)
    expected = [scipy.stats.spearmanr(subsets @ scores[:, q], outcomes[:, q]).statistic for q in range(9)]
    np.testing.assert_allclose(found.per_query, expected)
    assert found.score.value == pytest.approx(np.mean(expected))
    assert found.score.low < found.score.value < found.score.high
    assert found == linear_datamodeling_score(scores, subsets, outcomes)
    assert str(found).endswith("9 queries, 40 subsets")


def test_known_answers() -> None:
    scores, subsets, outcomes = planted(0)
    perfect = linear_datamodeling_score(scores, subsets, outcomes).score
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((1, 1, 1))
    assert linear_datamodeling_score(-scores, subsets, outcomes**3).score.value == pytest.approx(-1)
    other = planted(0, seed=5)[0]
    chance = linear_datamodeling_score(other, subsets, outcomes).score
    assert chance.low < 0 < chance.high


def test_the_interval_covers() -> None:
    """The value of 800 subsets lies in 85 % at least of the intervals of 40 of them."""
    random = np.random.default_rng(0)
    scores, subsets = random.normal(size=(30, 4)), draw_subsets(range(30), 800, 0.5)
    outcomes = subsets @ scores + 4 * random.normal(size=(800, 4))
    whole = linear_datamodeling_score(scores, subsets, outcomes).score.value
    parts = [slice(start, start + 40) for start in range(0, 800, 40)]
    found = [linear_datamodeling_score(scores, subsets[part], outcomes[part]).score for part in parts]
    assert sum(one.low <= whole <= one.high for one in found) >= 17


def test_one_score_per_row_is_compared_with_the_mean_outcome() -> None:
    scores, subsets, outcomes = planted(0.3)
    single = linear_datamodeling_score(scores.mean(1), subsets, outcomes)
    expected = scipy.stats.spearmanr(subsets @ scores.mean(1), outcomes.mean(1)).statistic
    assert single.per_query == pytest.approx([expected])
    whole = Scores(values=scores.mean(1), row_ids=list(range(30)), matrix=scores)
    assert linear_datamodeling_score(whole, subsets, outcomes) == linear_datamodeling_score(scores, subsets, outcomes)


def test_a_query_whose_outcomes_are_all_the_same_says_nothing() -> None:
    scores, subsets, outcomes = planted(0)
    outcomes[:, 4] = 1.0
    found = linear_datamodeling_score(scores, subsets, outcomes)
    assert np.isnan(found.per_query[4])
    assert found.score.value == pytest.approx(1)
    assert "8 queries" in str(found)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda s, m, o: (s[:-1], m, o), r"booleans \[subsets, rows\]"),
        (lambda s, m, o: (s, m.astype(float), o), r"subsets are float64"),
        (lambda s, m, o: (s, m[:2], o[:2]), "at least 3 subsets"),
        (lambda s, m, o: (s, m, o[:, :-1]), r"outcomes are \[40, 8\]; pass \[40 subsets, 9 queries\]"),
        (lambda s, m, o: (np.where(np.arange(30)[:, None] == 3, np.nan, s), m, o), "1 rows have no score"),
    ],
)
def test_bad_input(change: Any, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        linear_datamodeling_score(*change(*planted(0)))


def test_subsets_are_a_function_of_seed_index_and_row_id() -> None:
    ids = ["a", "b", "c", "d", "e", "f"]
    one = draw_subsets(ids, 50, 0.5, seed=1)
    assert (one.sum(1) == 3).all()
    np.testing.assert_array_equal(one[:20], draw_subsets(ids, 20, 0.5, seed=1))
    np.testing.assert_array_equal(one[:, ::-1], draw_subsets(ids[::-1], 50, 0.5, seed=1))
    assert not np.array_equal(one, draw_subsets(ids, 50, 0.5, seed=2))
    assert np.abs(one.mean(0) - 0.5).max() < 0.25
    for fraction in (0.0, 0.05, 1.0):
        with pytest.raises(OptionError, match="take one between 0 and 1"):
            draw_subsets(ids, 2, fraction)


def test_outcomes_are_trainings_on_the_subsets(tmp_path: Path) -> None:
    model, pool, queries = bert(), encoded(8, seed=1), encoded(3, seed=2)
    run: dict[str, Any] = {"subsets": 4, "seeds": 2, "seed": 3, "training": FAST, "utility": "margin"}
    found = measure_subsets(model, pool, queries, output_dir=tmp_path, **run)
    rows, asked = read_rows(pool, model), read_rows(queries, model)
    for turn in range(2):
        for subset, outcome in zip(found.subsets, found.by_seed[turn], strict=True):
            trained = fine_tune(
                model, rows, np.flatnonzero(subset), epochs=1, learning_rate=1e-2, batch_size=4, seed=3 + turn
            )
            np.testing.assert_allclose(outcome, utility(trained, asked, "margin").numpy(), atol=1e-12)
    np.testing.assert_array_equal(found.outcomes, found.by_seed.mean(0))
    before = (tmp_path / "outcomes-0.jsonl").read_text()
    again = measure_subsets(model, pool, queries, output_dir=tmp_path, **run)
    np.testing.assert_array_equal(again.by_seed, found.by_seed)
    assert (tmp_path / "outcomes-0.jsonl").read_text() == before


def test_reliability_compares_halves_of_the_seeds() -> None:
    random = np.random.default_rng(0)
    one = random.normal(size=(20, 5))
    assert SubsetOutcomes(np.ones((20, 3), bool), np.stack([one, 2 * one, one, one])).reliability == pytest.approx(1)
    assert np.isnan(SubsetOutcomes(np.ones((20, 3), bool), one[None]).reliability)


def test_real_scores_predict_real_trainings() -> None:
    """Gradient descent with small steps is what TracIn approximates."""
    model, pool, queries = (
        bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).eval(),
        encoded(24, 1),
        encoded(6, 2),
    )

    def train(positions: list[int], seed: int) -> Any:
        import copy

        import torch

        trained = copy.deepcopy(model)
        batch = read_rows(pool, model).batch(positions)
        loss = trained(**batch).loss * len(positions)
        loss.backward()
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter -= 1e-4 * parameter.grad
        return trained

    found = measure_subsets(model, pool, queries, subsets=20, training=train)
    scores = attribute(model, pool, queries, "tracin", basis="exact")
    assert linear_datamodeling_score(scores, found.subsets, found.outcomes).score.value > 0.9
