"""D-optimal design: plain greedy exactly, and within its bound of the best of all subsets."""

import itertools
import math

import numpy as np
import pytest

from hfdataopt.errors import DataError
from hfdataopt.selection.design import d_optimal, log_det


def rows(count=12, width=4, seed=0):
    draws = np.random.default_rng(seed)
    return draws.normal(size=(count, width)) * draws.uniform(0.1, 2, size=width)


def gain(chosen, ridge):
    return log_det(chosen, ridge) - log_det(chosen[:0], ridge)


def plain_greedy(features, count, ridge):
    taken, gains = [], []
    for _ in range(count):
        tries = {i: gain(features[[*taken, i]], ridge) for i in range(len(features)) if i not in taken}
        best = max(tries, key=tries.get)
        gains.append(tries[best] - gain(features[taken], ridge))
        taken.append(best)
    return taken, gains


@pytest.mark.parametrize("ridge", [1.0, 1e-3])
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("seed", range(4))
def test_is_plain_greedy(seed, batch, ridge):
    features = rows(40, 5, seed)
    weights = np.random.default_rng(seed + 100).uniform(0, 0.25, size=40)
    order, gains = d_optimal(features, 15, weights=weights, ridge=ridge, batch=batch)
    weighted = features * np.sqrt(weights)[:, None]
    taken, expected = plain_greedy(weighted, 15, ridge)
    assert order.tolist() == taken
    np.testing.assert_allclose(gains[order], expected, rtol=1e-7)
    for row in set(range(40)) - set(taken):
        left = gain(weighted[[*taken, row]], ridge) - gain(weighted[taken], ridge)
        assert gains[row] == pytest.approx(left, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_against_every_subset_of_12_rows(seed):
    features = rows(seed=seed)
    for count in (2, 4, 6):
        best = max(gain(features[list(part)], 0.1) for part in itertools.combinations(range(12), count))
        order, gains = d_optimal(features, count, ridge=0.1)
        found = gain(features[order], 0.1)
        assert gains[order].sum() == pytest.approx(found, rel=1e-9)
        assert best * (1 - 1 / math.e) <= found <= best + 1e-9


def test_new_directions_come_before_repetition():
    features = np.array([[3.0, 0, 0], [2.9, 0, 0], [0, 1.0, 0], [0, 0, 0.5]])
    order, _ = d_optimal(features, 3, ridge=0.01)
    assert set(order.tolist()) == {0, 2, 3}


def test_many_steps_stay_exact():
    """Rank-one updates do not drift: 300 steps in 20 dimensions, against determinants from scratch."""
    features = rows(400, 20, seed=1)
    order, gains = d_optimal(features, 300, ridge=1e-2)
    assert len(set(order.tolist())) == 300
    assert gains[order].sum() == pytest.approx(gain(features[order], 1e-2), rel=1e-9)
    assert (np.diff(gains[order]) <= 1e-9).all()


def test_features_must_be_numbers():
    with pytest.raises(DataError, match="row 1 of the features is not finite"):
        d_optimal(np.array([[1.0], [np.nan]]), 1)
