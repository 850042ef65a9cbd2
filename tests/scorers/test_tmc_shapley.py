"""tmc-shapley: the Shapley formula by brute force, what holds along an order, truncation, convergence, resuming."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfdataopt import AttributionCallback, attribute, get_scorer
from hfdataopt.errors import OptionError
from hfdataopt.retraining import fine_tune, read_rows, utility

from ..tiny import bert, encoded

FAST: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2, "train_batch_size": 4}


def facts(scores: Any) -> dict[str, Any]:
    return scores.metadata["moments"][0]


def brute_force(model: Any, pool: Any, queries: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shapley values over all orders ``[n, q]``, and the utilities of none and all."""
    rows, asked = read_rows(pool, model), read_rows(queries, model)
    known: dict[frozenset[int], np.ndarray] = {}

    def value(subset: frozenset[int]) -> np.ndarray:
        if subset not in known:
            trained = fine_tune(model, rows, subset, epochs=1, learning_rate=1e-2, batch_size=4)
            known[subset] = utility(trained, asked).numpy()
        return known[subset]

    total = np.zeros((len(pool), len(queries)))
    for order in itertools.permutations(range(len(pool))):
        for place, row in enumerate(order):
            total[row] += value(frozenset(order[: place + 1])) - value(frozenset(order[:place]))
    return total / math.factorial(len(pool)), value(frozenset()), value(frozenset(range(len(pool))))


def test_all_subsets_equal_all_orders(model: Any) -> None:
    pool, queries = encoded(4, seed=1), encoded(5, seed=2)
    expected, empty, full = brute_force(model, pool, queries)
    scores = attribute(model, pool, queries, "tmc-shapley", permutations="all", **FAST)
    np.testing.assert_allclose(scores.matrix, expected, atol=1e-12)
    np.testing.assert_allclose(scores.values, expected.mean(1), atol=1e-12)
    assert scores.standard_errors is None
    assert facts(scores)["empty_utility"] == pytest.approx(empty.mean())
    assert facts(scores)["full_utility"] == pytest.approx(full.mean())
    assert facts(scores)["trainings"] == 15


def test_sampled_orders_agree_with_the_exact_values_within_their_errors(model: Any) -> None:
    pool, queries = encoded(5, seed=1), encoded(5, seed=2)
    exact = attribute(model, pool, queries, "tmc-shapley", permutations="all", **FAST)
    sampled = attribute(model, pool, queries, "tmc-shapley", permutations=150, truncation=None, **FAST)
    off = (sampled.values - exact.values) / sampled.standard_errors
    assert np.abs(off).max() < 3.5
    assert 0.2 < np.sqrt((off**2).mean()) < 2, "the errors are of the size of the deviations"
    total = facts(sampled)["full_utility"] - facts(sampled)["empty_utility"]
    assert sampled.values.sum() == pytest.approx(total, abs=1e-12)
    assert facts(sampled)["prefixes_per_permutation"] == 5


def test_neither_the_order_of_rows_nor_the_batch_size_matters(model: Any) -> None:
    pool, queries = encoded(5, seed=1, ids=True), encoded(5, seed=2)
    options: dict[str, Any] = {"permutations": 3, **FAST}
    one = attribute(model, pool, queries, "tmc-shapley", batch_size=2, **options)
    turned = attribute(model, pool.select([3, 0, 4, 1, 2]), queries, "tmc-shapley", batch_size=16, **options)
    where = [turned.row_ids.index(row) for row in one.row_ids]
    np.testing.assert_allclose(turned.values[where], one.values, atol=1e-6)
    other = attribute(model, pool, queries, "tmc-shapley", seed=1, **options)
    assert not np.allclose(other.values, one.values)


def test_equal_rows_have_equal_values(model: Any) -> None:
    """Full batches and no dropout, so that swapping two equal rows is no change of the training."""
    still = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    pool = encoded(3, seed=1).select([0, 1, 2, 1])
    scores = attribute(still, pool, encoded(4, seed=2), "tmc-shapley", permutations="all", **FAST)
    assert scores.values[1] == pytest.approx(scores.values[3], abs=1e-6)
    assert abs(scores.values[1] - scores.values[0]) > 1e-4


class Countdown:
    """A utility that rises by one per row up to three rows: the model returned says how many rows it saw."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def train(self, positions: list[int], seed: int) -> Any:
        self.asked.append(positions)
        model = bert()
        model.rows = len(positions)
        return model

    @staticmethod
    def measure(model: Any, batch: dict[str, Any]) -> Any:
        import torch

        reached = min(getattr(model, "rows", 0), 3)
        return torch.linspace(-0.1, 0.1, len(batch["labels"])) + reached


@pytest.mark.parametrize(("truncation", "prefixes"), [(0.1, 4), ("noise", 4), (None, 6), (0.34, 3)])
def test_an_order_ends_at_the_second_prefix_near_the_utility_of_all(truncation: Any, prefixes: int) -> None:
    task = Countdown()
    scores = attribute(
        bert(),
        encoded(6),
        encoded(4, seed=2),
        "tmc-shapley",
        permutations=7,
        truncation=truncation,
        train=task.train,
        utility=task.measure,
    )
    assert facts(scores)["prefixes_per_permutation"] == prefixes
    assert max(len(asked) for asked in task.asked[1:]) <= max(prefixes, 5)
    assert scores.values.sum() == pytest.approx(3)
    orders = 7
    assert np.allclose(scores.values * orders, np.round(scores.values * orders)), "each order adds 0 or 1 to a row"


def test_convergence_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from hfdataopt_plugins.scorers import tmc_shapley

    monkeypatch.setattr(tmc_shapley, "LAG", 10)
    task = Countdown()
    run: dict[str, Any] = {"truncation": None, "train": task.train, "utility": task.measure}
    args = (bert(), encoded(4), encoded(2, seed=2), "tmc-shapley")
    scores = attribute(*args, permutations=500, convergence=0.1, **run)
    count = facts(scores)["permutations"]
    assert 10 < count < 500
    assert facts(scores)["converged"] is True
    plain = attribute(*args, permutations=count, **run)
    np.testing.assert_array_equal(plain.values, scores.values)
    assert facts(plain)["converged"] is None
    before = attribute(*args, permutations=count - 10, **run)
    changes = np.abs(plain.values - before.values) / np.abs(plain.values)
    assert changes.mean() < 0.1
    short = attribute(*args, permutations=11, convergence=1e-9, **run)
    assert facts(short)["converged"] is False


def test_a_killed_run_goes_on(tmp_path: Path, capsys: Any) -> None:
    pool, queries = encoded(4, seed=1), encoded(3, seed=2)
    expected = attribute(bert(), pool, queries, "tmc-shapley", permutations=4, truncation=None, **FAST)
    stop_after = 6

    from hfdataopt import trainings

    real, done = trainings.fine_tune, []

    def counted(*args: Any, **options: Any) -> Any:
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(args[2])
        return real(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "fine_tune", counted)
        run: dict[str, Any] = {"permutations": 4, "truncation": None, "output_dir": tmp_path, **FAST}
        with pytest.raises(KeyboardInterrupt):
            attribute(bert(), pool, queries, "tmc-shapley", **run)
        stop_after = 1000
        capsys.readouterr()
        scores = attribute(bert(), pool, queries, "tmc-shapley", **run)
    np.testing.assert_array_equal(scores.matrix, expected.matrix)
    np.testing.assert_array_equal(scores.standard_errors, expected.standard_errors)
    assert len({tuple(sorted(subset)) for subset in done}) == len(done), "nothing was trained twice"
    assert "utilities are in" in capsys.readouterr().err
    (file,) = tmp_path.glob("step-*/trainings/outcomes-0.jsonl")
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == len(done) + 1


def test_what_cannot_be(model: Any) -> None:
    with pytest.raises(
        OptionError, match=r"trains on every subset, which 13 rows have 2\^13 of; it takes at most 12 rows"
    ):
        attribute(model, encoded(13), encoded(2), "tmc-shapley", permutations="all")
    for options in ({"convergence": 0.05}, {"truncation": 0.1}):
        with pytest.raises(OptionError, match="permutations='all' is exact"):
            get_scorer("tmc-shapley", permutations="all", **options)
    with pytest.raises(OptionError, match=r"train= does its own training, so learning_rate=0\.1 has no use"):
        get_scorer("tmc-shapley", train=fine_tune, learning_rate=0.1)
    with pytest.raises(
        OptionError,
        match=r"AttributionCallback: scorer 'tmc-shapley' trains the model many times itself; call attribute\(",
    ):
        AttributionCallback("tmc-shapley", queries=encoded(2))


def test_the_model_stays_as_it_is(model: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attribute(model, encoded(3), encoded(2, seed=4), "tmc-shapley", permutations=2, **FAST)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert not model.training
