"""The engine of ``tsds`` against linear programs, brute force and numbers worked out by hand."""

import numpy as np
import pytest
from scipy.optimize import linprog

from hfdataopt.selection import transport
from hfdataopt.selection.transport import kernel_density, nearest, nearest_distance, spread


def points(queries=6, candidates=30, seed=0, dimensions=3):
    draws = np.random.default_rng(seed)
    return draws.standard_normal((queries, dimensions)), draws.standard_normal((candidates, dimensions))


def all_distances(left, right):
    return np.linalg.norm(left[:, None] - right[None], axis=2)


def solve(distances, density, alpha, scale, capped, lower):
    """Masses and least objective of: transport cost + (1 - alpha) M t, with density * mass <= t where ``capped``, t >= lower."""
    rows, columns = distances.shape
    cost = np.append(alpha / scale * distances.ravel(), (1 - alpha) * rows)
    limits = np.zeros((capped.sum(), cost.size))
    limits[np.arange(capped.sum()), np.flatnonzero(capped)] = density.ravel()[capped.ravel()]
    limits[:, -1] = -1
    sums = np.hstack([np.kron(np.eye(rows), np.ones(columns)), np.zeros((rows, 1))])
    bounds = [(0, None)] * distances.size + [(lower, None)]
    found = linprog(cost, limits, np.zeros(len(limits)), sums, np.full(rows, 1 / rows), bounds, method="highs")
    assert found.status == 0
    return found.x[:-1].reshape(distances.shape), found.fun


def objective(mass, distances, density, alpha, scale, t):
    return alpha / scale * (mass * distances).sum() + (1 - alpha) * len(mass) * t


def check_feasible(mass):
    assert (mass >= 0).all()
    np.testing.assert_allclose(mass.sum(axis=1), 1 / len(mass), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_over_all_pairs_the_cost_is_that_of_the_linear_program(alpha, seed):
    queries, candidates = points(seed=seed)
    densities = kernel_density(candidates, 1.5, 30)
    assert densities.max() > 1.5
    distances, positions = nearest(queries, candidates, 30)
    density = densities[positions]
    mass = spread(distances, density, alpha, 5.0)
    check_feasible(mass)
    _, least = solve(distances, density, alpha, 5.0, np.ones_like(distances, dtype=bool), 0)
    found = objective(mass, distances, density, alpha, 5.0, (density * mass).max())
    np.testing.assert_allclose(found, least, rtol=1e-9, atol=1e-12)


def test_no_mass_moves_without_raising_the_cost():
    """The plan itself, where the program has only one solution."""
    queries, candidates = points(seed=4)
    distances, positions = nearest(queries, candidates, 30)
    density = kernel_density(candidates, 1.5, 30)[positions]
    expected, _ = solve(distances, density, 0.8, 5.0, np.ones_like(distances, dtype=bool), 0)
    mass = spread(distances, density, 0.8, 5.0)
    assert 1 < (mass > 0).sum(axis=1).mean() < 25
    np.testing.assert_allclose(mass, expected, atol=1e-9)


@pytest.mark.parametrize(("alpha", "width"), [(0.5, 4), (0.8, 4), (0.8, 12), (0.3, 12)])
def test_with_few_neighbours_the_last_has_no_limit(alpha, width):
    queries, candidates = points(seed=1)
    distances, positions = nearest(queries, candidates, width)
    density = kernel_density(candidates, 1.5, 30)[positions]
    mass = spread(distances, density, alpha, 5.0)
    check_feasible(mass)
    capped = np.ones_like(distances, dtype=bool)
    capped[:, -1] = False
    lower = 1 / (len(queries) * (1 / density).sum(axis=1).max())
    _, least = solve(distances, density, alpha, 5.0, capped, lower)
    t = max((density * mass)[:, :-1].max(), lower)
    np.testing.assert_allclose(objective(mass, distances, density, alpha, 5.0, t), least, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.8, 0.9, 0.95])
def test_it_is_the_papers_objective(alpha):
    """Its second term, ``M max |density * mass - 1 / (M S)|``, as a linear program of its own; they differ by a constant."""
    queries, candidates = points(seed=2)
    distances, positions = nearest(queries, candidates, 30)
    densities = kernel_density(candidates, 1.5, 30)
    density, total, m = densities[positions], (1 / densities).sum(), len(queries)
    mass = spread(distances, density, alpha, 5.0)
    t = (density * mass).max()
    assert t >= 2 / (m * total)
    cost = np.append(alpha / 5.0 * distances.ravel(), (1 - alpha) * m)
    both = np.vstack([np.diag(density.ravel()), -np.diag(density.ravel())])
    both = np.hstack([both, -np.ones((len(both), 1))])
    ends = np.concatenate([np.full(distances.size, 1.0), np.full(distances.size, -1.0)]) / (m * total)
    sums = np.hstack([np.kron(np.eye(m), np.ones(30)), np.zeros((m, 1))])
    paper = linprog(cost, both, ends, sums, np.full(m, 1 / m), method="highs")
    found = alpha / 5.0 * (mass * distances).sum() + (1 - alpha) * m * np.abs(density * mass - 1 / (m * total)).max()
    np.testing.assert_allclose(found, paper.fun, rtol=1e-9)
    ours = objective(mass, distances, density, alpha, 5.0, t)
    np.testing.assert_allclose(ours - paper.fun, (1 - alpha) / total, rtol=1e-9)


def test_one_query_by_hand():
    """Distances 1, 2, 4: after two neighbours are full the rate is (4 - 1) + (4 - 2) = 5, after one it is 2 - 1 = 1."""
    distances, density = np.array([[1.0, 2.0, 4.0]]), np.ones((1, 3))
    np.testing.assert_allclose(spread(distances, density, 0.5, 0.9), [[1, 0, 0]])  # 1 >= 0.9: stops at once
    np.testing.assert_allclose(spread(distances, density, 0.5, 4.0), [[0.5, 0.5, 0]])  # 5 >= 4 > 1
    np.testing.assert_allclose(spread(distances, density, 0.5, 6.0), [[1 / 3, 1 / 3, 1 / 3]])  # never
    np.testing.assert_allclose(spread(distances, np.array([[1.0, 2.0, 2.0]]), 0.5, 2.4), [[2 / 3, 1 / 3, 0]])


def test_copies_of_a_candidate_get_its_mass_together():
    """Three copies have density 3, and together the limit of one row."""
    candidates = np.array([[1.0, 0], [1, 0], [1, 0], [0, 2], [0, 3], [0, -4]])
    density = kernel_density(candidates, 0.5, 6)
    np.testing.assert_allclose(density, [3, 3, 3, 1, 1, 1])
    distances, positions = nearest(np.zeros((1, 2)), candidates, 6)
    mass = np.zeros(6)
    mass[positions[0]] = spread(distances, density[positions], 0.5, 2.9)[0]
    np.testing.assert_allclose(mass, [1 / 6, 1 / 6, 1 / 6, 1 / 2, 0, 0])


def test_density_by_hand():
    """On a line: 0, 0.3, 0.5 and 3 with sigma 0.5, so kernel(0.3) = 0.64, kernel(0.2) = 0.84, kernel(0.5) = 0."""
    line = np.array([[0.0], [0.3], [0.5], [3.0]])
    np.testing.assert_allclose(kernel_density(line, 0.5, 4), [1.64, 2.48, 1.84, 1])
    np.testing.assert_allclose(kernel_density(line, 0.5, 2), [1.64, 1.84, 1.84, 1])
    np.testing.assert_allclose(kernel_density(line, 0.5, 1), [1, 1, 1, 1])
    np.testing.assert_allclose(kernel_density(line, 0, 4), [1, 1, 1, 1])


@pytest.mark.parametrize("block", [1, 100, 2**23])
def test_neighbours_are_those_of_brute_force(block, monkeypatch):
    monkeypatch.setattr(transport, "BLOCK", block)
    queries, candidates = points(7, 50)
    expected = all_distances(queries, candidates)
    distances, positions = nearest(queries, candidates, 9)
    np.testing.assert_array_equal(positions, np.argsort(expected, axis=1)[:, :9])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :9])
    np.testing.assert_allclose(nearest_distance(candidates, queries), expected.min(axis=0))
    squares = all_distances(candidates, candidates) ** 2
    np.testing.assert_allclose(kernel_density(candidates, 1.2, 50), np.maximum(1 - squares / 1.44, 0).sum(axis=1))


def test_faiss_finds_the_same_neighbours():
    pytest.importorskip("faiss")
    queries, candidates = (part.astype(np.float32) for part in points(40, 300, dimensions=16))
    distances, positions = nearest(queries, candidates, 30)
    found_distances, found = nearest(queries, candidates, 30, "faiss")
    np.testing.assert_array_equal(found, positions)
    np.testing.assert_allclose(found_distances, distances, rtol=1e-5)
    exact = kernel_density(candidates, 4.0, 40)
    assert exact.max() > 2
    np.testing.assert_allclose(kernel_density(candidates, 4.0, 40, "faiss"), exact, rtol=1e-4)


def test_a_single_candidate_takes_all():
    distances, positions = nearest(np.zeros((2, 2)), np.ones((1, 2)), 1)
    np.testing.assert_array_equal(positions, [[0], [0]])
    np.testing.assert_array_equal(spread(distances, np.ones((2, 1)), 0.5, 5.0), [[0.5], [0.5]])
