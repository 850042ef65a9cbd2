"""InstructZero: the coupled kernel by its formula on common items, expected improvement, and the ascent inside the cube."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from hfdataopt.bandits import CoupledSurrogate, improvement
from hfdataopt_plugins.optimizers.instructzero import InstructZero
from tests.optimizers.pools import DIM, SoftServices, quality, reward, text_services
from tests.optimizers.search import run, task, trial


def small(pool="soft", **options):
    return InstructZero(**{"pool": pool, "pool_size": 200 if pool == "soft" else 50, "intrinsic_dim": DIM, **options})


def matern(a, b, lengthscale):
    """Matérn-5/2 by its textbook form."""
    found = np.zeros((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            r = math.sqrt(5) * np.linalg.norm(x - y) / lengthscale
            found[i, j] = (1 + r + r * r / 3) * math.exp(-r)
    return found


def by_formula(model, observed, rewards, rows, others):
    """k(z, z') = k_l(z, Z) (K_l + 1e-4 I)^-1 K_s (K_l + 1e-4 I)^-1 k_l(Z, z'), with the model's lengthscales."""
    centre, spread = observed.mean(0), observed.std(0)
    observed, rows, others = ((x - centre) / spread for x in (observed, rows, others))
    points = model._kernel.observed
    inner = np.linalg.inv(matern(observed, observed, points.lengthscale) + 1e-4 * np.eye(len(observed)))
    k_s = matern(rewards, rewards, model._kernel.lengthscale)
    left, right = (matern(x, observed, points.lengthscale) for x in (rows, others))
    return left @ inner @ k_s @ inner @ right.T


def test_the_kernel_is_the_formula_and_the_posterior_is_its_gaussian_process():
    rng = np.random.default_rng(0)
    z, pool = rng.uniform(size=(12, 3)), rng.uniform(size=(7, 3))
    rewards = (rng.uniform(size=(12, 8)) < z[:, :1]).astype(float)
    rewards[5] = rewards[4]  # two points of one instruction
    y, noise = rewards.mean(1), np.linspace(1, 2, 12)
    model = CoupledSurrogate().fit_rewards(z, y, rewards, noise)
    points = [model._kernel(model._inputs(x)) for x in (z, pool)]
    for a, x in zip(points, (z, pool), strict=True):
        for b, other in zip(points, (z, pool), strict=True):
            np.testing.assert_allclose(a.gram(b), by_formula(model, z, rewards, x, other), atol=1e-8)
    k = by_formula(model, z, rewards, z, z) + np.diag(model._noise)
    cross = by_formula(model, z, rewards, pool, z)
    mean, variance = model.predict(pool)
    np.testing.assert_allclose(mean, y.mean() + cross @ np.linalg.solve(k, y - y.mean()), atol=1e-7)
    left = by_formula(model, z, rewards, pool, pool) - cross @ np.linalg.solve(k, cross.T)
    np.testing.assert_allclose(variance, np.diag(left) * model._scale * y.var(), atol=1e-7)


def test_the_row_is_that_of_the_largest_expected_improvement():
    optimizer, of, services = small("text", initial=6, first_items=4, kept=0.0), task(), text_services()
    run(optimizer, of, reward, services, 9)
    model = optimizer._fit()
    observed = optimizer.observed()
    common = [item.id for item in of.items[:4]]
    by_row = {optimizer._rows[t.candidate.key][0]: dict(zip(t.items, t.rewards, strict=True)) for t in optimizer.trials}
    rewards = np.array([[by_row[one.row][item] for item in common] for one in observed])
    np.testing.assert_array_equal(model._rewards, rewards)  # on the items that all met
    mean, variance = (x.numpy() for x in model.predict(optimizer.features))
    best = mean[[one.row for one in observed]].max()
    deviation = np.sqrt(variance)
    z = (mean - best) / np.maximum(deviation, 1e-12)
    gain = deviation * (z * norm.cdf(z) + norm.pdf(z))
    gain[[one.row for one in observed]] = -1
    (query,) = optimizer.ask(1, (), services)
    assert query.items == 4
    assert optimizer._rows[query.candidate.key] == [int(np.argmax(gain))]


def test_the_ascent_reaches_a_higher_improvement_and_stays_in_the_cube():
    optimizer = small(initial=6, first_items=8)
    run(optimizer, task(), lambda c, item: quality(c.instruction), SoftServices(), 9)
    model = optimizer._fit()
    start = optimizer.points[:20]
    optimizer.refine = 30
    end = optimizer._climb(model, start, 0.5)
    before, after = (improvement(*model.predict(x), 0.5) for x in (start, end))
    assert (after >= before - 1e-9).all()
    assert (after > before + 1e-6).float().mean() > 0.5
    assert end.min() >= 0
    assert end.max() <= 1


@pytest.mark.parametrize(("pool", "refine"), [("soft", 0), ("soft", 5), ("text", 0)])
@pytest.mark.parametrize("n", [1, 4])
def test_a_search_is_reproducible_and_repeats_nothing(pool, refine, n):
    def asked(seed):
        optimizer, of, found = small(pool, refine=refine), task(calls=48, seed=seed), []
        services = SoftServices() if pool == "soft" else text_services()
        optimizer.start(of)
        while queries := optimizer.ask(n, (), services):
            found += [(query.candidate.instruction, query.items) for query in queries]
            optimizer.tell([trial(query, of, reward) for query in reversed(queries)])
        return found, optimizer

    (first, optimizer), (second, _), (third, _) = asked(0), asked(0), asked(1)
    assert first == second != third
    assert len(set(first)) == len(first)
    assert optimizer._spent() <= 48
    assert optimizer.needs == (("white_box", "examples") if pool == "soft" else ("proposer", "encoder", "examples"))
    if refine:
        assert len(optimizer.points) > 200
    assert len(optimizer.features) == len(optimizer._candidates)


def test_missing_rewards_take_the_candidates_mean():
    def partial(candidate, item):
        return float("nan") if item.id == 1 else reward(candidate, item)

    optimizer = small("text", first_items=4)
    run(optimizer, task(), partial, text_services(), 10)
    assert torch.isfinite(optimizer._fit()._rewards).all()
