"""Values satisfy the axioms, equal exact enumeration on few rows, and do not depend on how the work is cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt.errors import OptionError
from hfdataopt.shapley import position_weights, prefix_predictions_reference, shapley_values
from hfdataopt.shapley._walk import build_problem, permutation, run_chunk

from ._exact import empty_value, predict, semivalues, utility_values
from .conftest import Data, make_data

NAMES = ["margin", "accuracy", "log-likelihood"]


def soft_accuracy(predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.softmax(4 * predictions, dim=-1)[:, torch.arange(len(labels)), labels]


@pytest.mark.parametrize("utility", [*NAMES, soft_accuracy])
def test_values_sum_to_full_minus_empty(data: Data, utility: Any) -> None:
    result = shapley_values(*data.arguments, utility=utility, permutations=7, ridge=0.05)
    assert result.values.sum() == pytest.approx(result.full_utility - result.empty_utility, abs=1e-10)
    if utility in NAMES:
        outputs = predict(data.kernel, data.cross, data.targets, list(range(30)), 0.05)
        assert result.full_utility == pytest.approx(
            np.mean(utility_values(utility, outputs, data.query_labels)), abs=1e-10
        )
        assert result.empty_utility == pytest.approx(empty_value(utility, data.classes))
    assert result.permutations == 7
    assert result.ridge == 0.05


@pytest.mark.parametrize("utility", NAMES)
def test_one_permutation_equals_differences_of_direct_solves(data: Data, utility: str) -> None:
    result = shapley_values(*data.arguments, utility=utility, permutations=1, ridge=0.05, seed=3, per_query=True)
    order = permutation(30, 3, 0)
    predictions = prefix_predictions_reference(data.kernel, data.cross, data.targets, order, ridge=0.05)
    steps = [[empty_value(utility, data.classes)] * 9]
    steps += [utility_values(utility, outputs, data.query_labels) for outputs in predictions]
    expected = np.zeros((30, 9))
    expected[order] = np.diff(np.array(steps), axis=0)
    assert result.matrix is not None
    np.testing.assert_allclose(result.matrix, expected, atol=1e-9)
    np.testing.assert_allclose(result.values, expected.mean(axis=1), atol=1e-9)
    assert np.isnan(result.standard_errors).all()


@pytest.mark.parametrize("utility", NAMES)
def test_the_matrix_has_the_values_as_its_mean(data: Data, utility: str) -> None:
    result = shapley_values(*data.arguments, utility=utility, permutations=5, ridge=0.05, per_query=True)
    assert result.matrix is not None
    assert result.matrix.shape == (30, 9)
    np.testing.assert_allclose(result.matrix.mean(axis=1), result.values, atol=1e-12)
    assert shapley_values(*data.arguments, permutations=1).matrix is None


WEIGHTS: list[tuple[dict[str, Any], Callable[[int, int], float]]] = [
    ({}, lambda n, s: 1 / (n * math.comb(n - 1, s))),
    ({"weights": "banzhaf"}, lambda n, s: 2.0 ** (1 - n)),
    (
        {"weights": "beta", "beta": (4, 1)},
        lambda n, s: math.gamma(s + 1) * math.gamma(n - 1 - s + 4) / math.gamma(n + 4) / math.gamma(4) * math.gamma(5),
    ),
    (
        {"weights": "beta", "beta": (1, 3)},
        lambda n, s: math.gamma(s + 3) * math.gamma(n - 1 - s + 1) / math.gamma(n + 3) / math.gamma(3) * math.gamma(4),
    ),
]


@pytest.mark.parametrize(("options", "size_weight"), WEIGHTS, ids=["shapley", "banzhaf", "beta-4-1", "beta-1-3"])
@pytest.mark.parametrize("utility", ["margin", "accuracy"])
def test_estimates_the_exact_semivalue(
    options: dict[str, Any], size_weight: Callable[[int, int], float], utility: str
) -> None:
    data = make_data(rows=7, queries=6, seed=2)

    def value(held: tuple[int, ...]) -> np.ndarray:
        if not held:
            return np.array(empty_value(utility, 2))
        outputs = predict(data.kernel, data.cross, data.targets, list(held), 0.1)
        return np.array(np.mean(utility_values(utility, outputs, data.query_labels)))

    exact = semivalues(7, value, lambda size: size_weight(7, size))
    result = shapley_values(*data.arguments, utility=utility, permutations=1500, ridge=0.1, out_of_bag=False, **options)
    misses = np.abs(result.values - exact) / result.standard_errors
    assert misses.max() < 4
    assert result.standard_errors.max() < 0.15 * np.abs(exact).max()


def test_position_weights_are_an_average_and_beta_one_one_is_shapley() -> None:
    for rows in (1, 2, 9, 3000):
        for weights, beta in (("shapley", (1, 1)), ("beta", (16, 1)), ("beta", (1, 4)), ("banzhaf", (1, 1))):
            assert float(position_weights(rows, weights, beta).mean()) == pytest.approx(1, rel=1e-9)
        assert position_weights(rows, "beta", (1, 1)).tolist() == pytest.approx([1.0] * rows)
    assert position_weights(50, "beta", (16, 1))[0] > position_weights(50, "beta", (16, 1))[-1]


def test_equal_rows_have_equal_values_within_error() -> None:
    data = make_data(rows=25, queries=20, seed=1)
    index = torch.tensor([*range(25), 4])
    kernel, cross, labels = data.kernel[index][:, index], data.cross[index], data.labels[index]
    result = shapley_values(kernel, cross, labels, data.query_labels, permutations=400, ridge=0.1)
    gap = abs(result.values[4] - result.values[25])
    error = math.hypot(result.standard_errors[4], result.standard_errors[25])
    assert 0 < gap < 4 * error
    assert error < 0.5 * np.abs(result.values).max()


def test_standard_errors_are_those_of_a_mean_over_permutations() -> None:
    data = make_data()
    singles = []
    problem = build_problem(*[x[None] if x.ndim == 2 else x for x in data.arguments], options=plain_options())
    for index in range(12):
        singles.append(run_chunk(problem, index, index + 1, [0.0]).values)
    result = shapley_values(*data.arguments, permutations=12, ridge=0.05)
    np.testing.assert_allclose(result.values, np.mean(singles, axis=0), atol=1e-14)
    np.testing.assert_allclose(result.standard_errors, np.std(singles, axis=0, ddof=1) / math.sqrt(12), rtol=1e-6)


def plain_options(**changes: Any) -> dict[str, Any]:
    return {
        "utility": "margin",
        "guards": [],
        "first_wins": False,
        "classes": 2,
        "ridge": 0.05,
        "seed": 0,
        "truncation": None,
        "weights": "shapley",
        "beta": (1, 1),
        "per_query": False,
        "out_of_bag": True,
        "batch_size": 1,
    } | changes


@pytest.mark.parametrize("truncation", [None, 0.2])
def test_a_batch_of_permutations_equals_one_by_one(data: Data, truncation: float | None) -> None:
    options: dict[str, Any] = {"permutations": 7, "ridge": 0.05, "truncation": truncation, "per_query": True}
    one = shapley_values(*data.arguments, **options)
    batch = shapley_values(*data.arguments, **options, batch_size=3)
    for name in ("values", "standard_errors", "matrix", "out_of_bag"):
        np.testing.assert_allclose(getattr(one, name), getattr(batch, name), atol=1e-12)
    assert one.metadata["prefixes_per_permutation"] == batch.metadata["prefixes_per_permutation"]


@pytest.mark.parametrize("utility", ["accuracy", "margin"])
@pytest.mark.parametrize("rows", [30, 420])
def test_truncation_stops_after_two_near_prefixes_and_changes_nothing_before(utility: str, rows: int) -> None:
    data = make_data(rows=rows, queries=15)
    options: dict[str, Any] = {"utility": utility, "permutations": 1, "ridge": 0.05}
    exact = shapley_values(*data.arguments, **options)
    cut = shapley_values(*data.arguments, **options, truncation=0.1)
    order = permutation(rows, 0, 0)
    path = exact.empty_utility + np.cumsum(exact.values[order])
    near = np.abs(path - exact.full_utility) <= 0.1 * abs(exact.full_utility - exact.empty_utility)
    stop = next(m for m in range(1, rows) if near[m] and near[m - 1])
    assert stop < rows - 1
    assert cut.metadata["prefixes_per_permutation"] == stop + 1
    assert np.array_equal(cut.values[order][: stop + 1], exact.values[order][: stop + 1])
    assert not cut.values[order][stop + 1 :].any()
    assert exact.metadata["prefixes_per_permutation"] == rows


def test_out_of_bag_equals_direct_solves(data: Data) -> None:
    result = shapley_values(*data.arguments, permutations=3, ridge=0.05)
    total, count = np.zeros(30), np.zeros(30)
    for index in range(3):
        order = permutation(30, 0, index).tolist()
        for size in range(1, 30):
            later = order[size:]
            outputs = predict(data.kernel, data.kernel[..., later], data.targets, order[:size], 0.05)
            total[later] += utility_values("margin", outputs, data.labels[later])
            count[later] += 1
    assert result.out_of_bag is not None
    np.testing.assert_allclose(result.out_of_bag, total / count, atol=1e-9)
    with_callable = shapley_values(*data.arguments, permutations=3, ridge=0.05, utility=soft_accuracy)
    np.testing.assert_allclose(result.out_of_bag, with_callable.out_of_bag, atol=1e-12)
    assert shapley_values(*data.arguments, permutations=1, out_of_bag=False).out_of_bag is None


def test_a_row_that_always_came_first_has_no_out_of_bag_margin() -> None:
    data = make_data()
    result = shapley_values(*data.arguments, permutations=1)
    assert result.out_of_bag is not None
    assert np.flatnonzero(np.isnan(result.out_of_bag)).tolist() == [int(permutation(30, 0, 0)[0])]


def test_permutations_depend_on_seed_and_index_alone() -> None:
    assert permutation(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert len({tuple(permutation(20, seed, index).tolist()) for seed in (0, 1) for index in range(50)}) == 100
    first = np.stack([permutation(6, 9, index).numpy() for index in range(3000)])
    shares = np.stack([(first == row).mean(axis=0) for row in range(6)])
    assert np.abs(shares - 1 / 6).max() < 0.035


def test_tolerance_stops_early_at_a_whole_round() -> None:
    data = make_data()
    loose = shapley_values(*data.arguments, ridge=0.05, permutations=300, tolerance=0.02)
    assert loose.permutations % 20 == 0
    assert 20 <= loose.permutations < 300
    assert loose.standard_errors.max() <= 0.02
    same = shapley_values(*data.arguments, ridge=0.05, permutations=loose.permutations)
    assert np.array_equal(same.values, loose.values)
    before = shapley_values(*data.arguments, ridge=0.05, permutations=max(2, loose.permutations - 20))
    assert loose.permutations == 20 or before.standard_errors.max() > 0.02
    capped = shapley_values(*data.arguments, ridge=0.05, permutations=30, tolerance=1e-9)
    assert capped.permutations == 30


def test_the_paper_preset() -> None:
    data = make_data(rows=60, queries=15)
    paper = shapley_values(*data.arguments, preset="paper", permutations=4)
    assert paper.ridge == 1e-6
    assert paper.metadata["utility"] == "accuracy, the first class wins ties"
    assert paper.metadata["truncation"] == 0.05
    assert paper.metadata["guards"] == ["log-likelihood"]
    assert paper.empty_utility == 0.5
    changed = shapley_values(*data.arguments, preset="paper", permutations=4, ridge=0.5, utility="log-likelihood")
    assert changed.ridge == 0.5
    assert changed.metadata["utility"] == "log-likelihood"


def test_the_paper_preset_stops_only_where_both_metrics_are_near() -> None:
    data = make_data(rows=120, queries=15)
    options: dict[str, Any] = {"permutations": 1, "ridge": 1e-6}
    order = permutation(120, 0, 0)
    near = []
    for utility in ("accuracy", "log-likelihood"):
        exact = shapley_values(*data.arguments, utility=utility, **options)
        path = exact.empty_utility + np.cumsum(exact.values[order])
        near.append(np.abs(path - exact.full_utility) <= 0.05 * abs(exact.full_utility - exact.empty_utility))

    def stop(hits: np.ndarray) -> int:
        return next(m for m in range(1, 120) if hits[m] and hits[m - 1])

    assert stop(near[0] & near[1]) != stop(near[0])
    paper = shapley_values(*data.arguments, preset="paper", permutations=1)
    assert paper.metadata["prefixes_per_permutation"] == stop(near[0] & near[1]) + 1


def test_scores_find_flipped_labels() -> None:
    data = make_data(rows=150, queries=80, seed=4)
    flipped = torch.arange(0, 150, 10)
    labels = data.labels.clone()
    labels[flipped] = 1 - labels[flipped]
    result = shapley_values(data.kernel, data.cross, labels, data.query_labels, permutations=40)
    for scores in (result.values, result.out_of_bag):
        assert scores is not None
        clean = np.delete(scores, flipped.numpy())
        assert (scores[flipped.numpy()][:, None] < clean).mean() > 0.9


def test_progress_is_told_and_threads_are_given_back() -> None:
    data = make_data()
    seen = []
    torch.set_num_threads(2)
    shapley_values(*data.arguments, permutations=45, progress=lambda done, most: seen.append((done, most)))
    assert seen == [(20, 45), (40, 45), (45, 45)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"utility": "f1"}, "utility is 'f1'"),
        ({"permutations": 0}, "permutations is 0"),
        ({"permutations": 2.0}, "permutations is 2.0"),
        ({"seed": -1}, "seed is -1"),
        ({"truncation": 0.0}, "truncation is 0.0"),
        ({"truncation": 1.5}, "truncation is 1.5"),
        ({"weights": "owen"}, "weights is 'owen'"),
        ({"weights": "beta", "beta": (0, 1)}, "beta is"),
        ({"weights": "beta", "beta": 3}, "beta is"),
        ({"weights": "banzhaf", "truncation": 0.1}, "weights='banzhaf'"),
        ({"weights": "beta", "beta": (1, 4), "truncation": 0.1}, "late positions"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"workers": 0}, "workers is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"preset": "Paper"}, "preset is 'Paper'"),
        ({"per_query": True, "utility": lambda f, y: f.sum(dim=(1, 2))}, "one value per query"),
        ({"workers": 2, "utility": soft_accuracy}, "callable"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    data = make_data()
    with pytest.raises(OptionError, match=message):
        shapley_values(*data.arguments, **{"permutations": 2, **options})
