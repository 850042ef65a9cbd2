"""Closed forms equal refits, brute force and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from hfdataopt.errors import DataError, OptionError
from hfdataopt.shapley import closed_form, kernel_distances, knn_shapley, leave_one_out_margin, loo, out_of_bag_margin
from hfdataopt.shapley import shapley_values as sampled

from ._exact import predict, semivalues, utility_values
from .conftest import Data, make_data


@pytest.mark.parametrize("utility", ["margin", "accuracy", "log-likelihood"])
def test_loo_equals_refits(data: Data, utility: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "BLOCK_NUMBERS", 100)  # several blocks of rows, the last one shorter
    found = loo(*data.arguments, utility=utility, ridge=0.05, per_query=True)
    everyone = list(range(30))
    full = utility_values(utility, predict(data.kernel, data.cross, data.targets, everyone, 0.05), data.query_labels)
    for row in everyone:
        held = [other for other in everyone if other != row]
        outputs = predict(data.kernel, data.cross, data.targets, held, 0.05)
        expected = np.array(full) - utility_values(utility, outputs, data.query_labels)
        np.testing.assert_allclose(found[row], expected, atol=1e-10)
    np.testing.assert_allclose(loo(*data.arguments, utility=utility, ridge=0.05), found.mean(axis=1), atol=1e-14)


def test_leave_one_out_margin_equals_refits(data: Data) -> None:
    found = leave_one_out_margin(data.kernel, data.labels, ridge=0.5)
    for row in range(30):
        held = [other for other in range(30) if other != row]
        own = data.kernel[..., row : row + 1]
        outputs = predict(data.kernel, own, data.targets, held, 0.5)[0]
        label = int(data.labels[row])
        others = max(float(value) for k, value in enumerate(outputs) if k != label)
        assert found[row] == pytest.approx(float(outputs[label]) - others, abs=1e-10)


def test_out_of_bag_margin_is_that_of_the_estimator(data: Data) -> None:
    found = out_of_bag_margin(data.kernel, data.labels, permutations=4, seed=5, ridge=0.05)
    result = sampled(*data.arguments, permutations=4, seed=5, ridge=0.05)
    np.testing.assert_allclose(found, result.out_of_bag, atol=1e-12)


def test_margins_find_flipped_labels_without_queries() -> None:
    data = make_data(rows=150, seed=6)
    flipped = np.arange(0, 150, 10)
    labels = data.labels.clone()
    labels[flipped] = 1 - labels[flipped]
    for margins in (leave_one_out_margin(data.kernel, labels), out_of_bag_margin(data.kernel, labels, permutations=20)):
        assert (margins[flipped][:, None] < np.delete(margins, flipped)).mean() > 0.9


@pytest.mark.parametrize("k", [1, 3, 7, 12])
def test_knn_shapley_equals_enumeration(k: int) -> None:
    random = np.random.default_rng(0)
    distances = random.random((7, 4))
    labels, asked = np.array([0, 1, 1, 0, 2, 0, 1]), np.array([0, 1, 2, 0])

    def value(held: tuple[int, ...]) -> np.ndarray:
        return np.array([
            sum(labels[row] == asked[query] for row in sorted(held, key=lambda row: distances[row, query])[:k]) / k
            for query in range(4)
        ])  # fmt: skip

    exact = semivalues(7, value, lambda size: 1 / (7 * math.comb(6, size)))
    np.testing.assert_allclose(knn_shapley(distances, labels, asked, k=k, per_query=True), exact, atol=1e-12)
    np.testing.assert_allclose(knn_shapley(distances, labels, asked, k=k), exact.mean(axis=1), atol=1e-12)


def test_knn_shapley_orders_equal_distances_by_row_and_blocks_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 1, 0, 1]
    tied = knn_shapley(np.ones((4, 3)), labels, [0, 1, 0], k=1, per_query=True)
    spread = knn_shapley(np.arange(4.0)[:, None].repeat(3, axis=1), labels, [0, 1, 0], k=1, per_query=True)
    assert np.array_equal(tied, spread)
    monkeypatch.setattr(closed_form, "BLOCK_NUMBERS", 8)
    assert np.array_equal(tied, knn_shapley(np.ones((4, 3)), labels, [0, 1, 0], k=1, per_query=True))


def test_kernel_distances_are_those_of_the_features() -> None:
    random = np.random.default_rng(1)
    rows, queries = random.normal(size=(6, 3)), random.normal(size=(4, 3))
    found = kernel_distances(rows @ rows.T, rows @ queries.T, (queries**2).sum(axis=1))
    expected = [[((row - query) ** 2).sum() for query in queries] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    with pytest.raises(DataError, match="query_diagonal"):
        kernel_distances(rows @ rows.T, rows @ queries.T, np.ones(3))


def test_bad_input_is_refused() -> None:
    data = make_data(rows=10, queries=2)
    with pytest.raises(OptionError, match="k is 0"):
        knn_shapley(data.cross, data.labels, data.query_labels, k=0)
    with pytest.raises(DataError, match="distances"):
        knn_shapley(np.ones(10), data.labels, data.query_labels)
    with pytest.raises(DataError, match="one class only"):
        knn_shapley(data.cross, [1] * 10, data.query_labels)
    with pytest.raises(DataError, match="which no pool row has"):
        knn_shapley(data.cross, data.labels, [0, 7])
    with pytest.raises(DataError, match="one class only"):
        leave_one_out_margin(data.kernel, [0] * 10)
    with pytest.raises(OptionError, match="permutations is 0"):
        out_of_bag_margin(data.kernel, data.labels, permutations=0)
    singular = torch.ones(10, 10)
    for call in (
        lambda: loo(singular, data.cross, data.labels, data.query_labels, ridge=0.0),
        lambda: leave_one_out_margin(singular, data.labels, ridge=0.0),
        lambda: out_of_bag_margin(singular, data.labels, ridge=0.0),
    ):
        with pytest.raises(DataError, match="not positive definite"):
            call()
    with pytest.raises(OptionError, match="one value per query"):
        loo(*data.arguments, utility=lambda f, y: f.sum(dim=(1, 2)), per_query=True)
    assert len(list(itertools.chain(loo(*data.arguments)))) == 10
