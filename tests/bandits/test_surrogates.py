"""Surrogates against closed forms, and what they must all do."""

import math

import numpy as np
import pytest
import torch

from hfdataopt.bandits import (
    EnsembleSurrogate,
    LinearSurrogate,
    MLPSurrogate,
    NeuralTangentSurrogate,
    RBFSurrogate,
    Surrogate,
    layer_gradients,
    neural_variance,
)
from hfdataopt.bandits.coupled import MaternSurrogate
from hfdataopt.bandits.surrogates import mlp
from hfdataopt.errors import DataError, OptionError
from hfdataopt.statistics import rank_correlation

KERNELS = [LinearSurrogate(), RBFSurrogate(), NeuralTangentSurrogate(widths=(64,))]
ALL = [
    *KERNELS,
    MLPSurrogate(widths=(16,)),
    EnsembleSurrogate(member=MLPSurrogate(widths=(8,), learning_rate=1e-2), size=3),
]


def world(n: int = 120, d: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, torch.tanh(x[:, 0] - 0.5 * x[:, 1]) + 0.3 * x[:, 2]


def votes(y: torch.Tensor, n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randint(len(y), (n, 2), generator=generator)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    chance = torch.sigmoid(4 * (y[pairs[:, 0]] - y[pairs[:, 1]]))
    return pairs, (torch.rand(len(pairs), generator=generator, dtype=torch.float64) < chance).double()


def named(surrogate: Surrogate) -> str:
    return type(surrogate).__name__


@pytest.mark.parametrize("surrogate", ALL, ids=named)
def test_ranks_a_pool_it_has_not_seen(surrogate: Surrogate):
    x, y = world()
    mean, variance = surrogate.fit(x[:40], y[:40]).predict(x[40:])
    assert rank_correlation(mean.numpy(), y[40:].numpy()) > 0.85
    assert mean.shape == variance.shape == (80,)
    assert (variance >= 0).all()
    pairs, outcomes = votes(y[:40], 150)
    mean, _ = surrogate.fit_pairs(x[:40], pairs, outcomes).predict(x[40:])
    assert rank_correlation(mean.numpy(), y[40:].numpy()) > 0.75


@pytest.mark.parametrize("surrogate", ALL, ids=named)
def test_the_same_seed_gives_the_same_numbers_and_leaves_the_global_random_state(surrogate: Surrogate):
    x, y = world()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = surrogate.fit(x[:20], y[:20]).predict(x)
    torch.rand(3)
    second = surrogate.fit(x[:20], y[:20]).predict(x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.set_rng_state(state)
    surrogate.fit(x[:20], y[:20]).predict(x)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("surrogate", ALL, ids=named)
def test_scores_may_be_scaled_and_shifted(surrogate: Surrogate):
    x, y = world()
    mean, variance = surrogate.fit(x[:30], y[:30]).predict(x)
    scaled, wide = surrogate.fit(x[:30], 100 + 10 * y[:30]).predict(x)
    torch.testing.assert_close(scaled, 100 + 10 * mean, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(wide, 100 * variance, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("surrogate", KERNELS, ids=named)
def test_mean_and_variance_are_the_gaussian_process(surrogate):
    x, y = world()
    seen, rest = x[:25], x[25:]
    mean, variance = surrogate.fit(seen, y[:25]).predict(rest)
    centre, spread = seen.mean(0), seen.std(0, correction=0)
    mine, theirs = (surrogate._kernel((rows - centre) / spread) for rows in (seen, rest))
    k, cross = (surrogate._scale * mine.gram(other) for other in (mine, theirs))
    noisy = k + surrogate._scale * torch.diag(surrogate._noise)
    factor = y[:25].std(correction=0)
    expected = y[:25].mean() + cross.T @ torch.linalg.inv(noisy) @ (y[:25] - y[:25].mean())
    torch.testing.assert_close(mean, expected, rtol=1e-7, atol=1e-9)
    left = surrogate._scale * theirs.squared_norms() - (cross * (torch.linalg.inv(noisy) @ cross)).sum(0)
    torch.testing.assert_close(variance, factor**2 * left, rtol=1e-6, atol=1e-10)


def test_the_lengthscale_has_the_largest_marginal_likelihood():
    x, y = world()
    surrogate = RBFSurrogate().fit(x[:40], y[:40])
    target = (y[:40] - y[:40].mean()) / y[:40].std(correction=0)
    rows = (x[:40] - x[:40].mean(0)) / x[:40].std(0, correction=0)

    def likelihood(factor: float) -> float:
        scale = surrogate._kernel(rows).lengthscale * factor
        k = torch.exp(-(torch.cdist(rows, rows) ** 2) / (2 * scale**2)) + torch.diag(surrogate._noise)
        normal = torch.distributions.MultivariateNormal(torch.zeros(40).double(), surrogate._scale * k)
        return float(normal.log_prob(target))

    assert likelihood(1.0) > max(likelihood(2**0.5), likelihood(2**-0.5), likelihood(4.0))


def test_the_pairs_of_a_linear_surrogate_are_ridge_logistic_regression():
    x, y = world()
    pairs, outcomes = votes(y[:40], 60)
    outcomes[:5] = 0.5
    surrogate = LinearSurrogate().fit_pairs(x[:40], pairs, outcomes)
    rows = (x[:40] - x[:40].mean(0)) / x[:40].std(0, correction=0)
    differences = rows[pairs[:, 0]] - rows[pairs[:, 1]]
    weights = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = differences @ weights
        loss = -(outcomes * torch.nn.functional.logsigmoid(logits)).sum()
        loss = loss - ((1 - outcomes) * torch.nn.functional.logsigmoid(-logits)).sum()
        loss = loss + weights @ weights / (2 * surrogate._scale)
        loss.backward()
        return loss

    optimizer.step(closure)
    mean, variance = surrogate.predict(x)
    inputs = (x - x[:40].mean(0)) / x[:40].std(0, correction=0)
    torch.testing.assert_close(mean, inputs @ weights.detach(), rtol=1e-5, atol=1e-6)
    chance = torch.sigmoid(differences @ weights.detach())
    precision = torch.eye(5) / surrogate._scale + differences.T @ torch.diag(chance * (1 - chance)) @ differences
    torch.testing.assert_close(variance, (inputs @ torch.linalg.inv(precision) * inputs).sum(1), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("surrogate", ALL[:4], ids=named)
def test_ties_alone_make_all_equal(surrogate: Surrogate):
    x, _ = world()
    surrogate.fit_pairs(x[:4], [[0, 1], [2, 3], [1, 2]], [0.5, 0.5, 0.5])
    posterior = surrogate.posterior(x[:4])
    assert float(posterior.mean.max() - posterior.mean.min()) < 0.2  # the network's initialisation is not quite 0


def test_mlp_variance_is_neural_variance_of_its_network():
    x, y = world()
    surrogate = MLPSurrogate(widths=(16,), ridge=0.2).fit(x[:30], y[:30])
    rows = surrogate._inputs(x)
    unit = float(layer_gradients(surrogate.network, rows[:30]).squared_norms().mean())
    expected = neural_variance(surrogate.network, rows, rows[:30], ridge=0.2 * unit) / unit
    _, variance = surrogate.predict(x)
    torch.testing.assert_close(variance, y[:30].var(correction=0) * expected.double(), rtol=1e-3, atol=1e-6)


def test_the_papers_preset_is_their_initialisation_and_raw_targets():
    x, y = world()
    surrogate = MLPSurrogate(preset="papers", widths=(64,))
    assert (surrogate.steps, surrogate.ridge, surrogate.activation) == (1000, 0.1, "relu")
    mean, variance = surrogate.fit(x[:30], y[:30]).predict(x[:30])
    assert surrogate._target == (0.0, 1.0)
    rows = surrogate._inputs(x[:30])
    plain = neural_variance(surrogate.network, rows, rows, ridge=0.1)
    torch.testing.assert_close(variance, plain.double(), rtol=1e-6, atol=1e-6)
    assert surrogate.network[0].weight.detach().std().item() == pytest.approx(1, abs=0.15)
    assert math.isfinite(float(mean.sum()))
    with pytest.raises(OptionError, match="steps=5 was given"):
        MLPSurrogate(preset="papers", steps=5)


def test_the_papers_preset_fits_votes_by_torchs_own_adam():
    x, _ = world()
    pairs, outcomes = torch.randint(30, (20, 2), generator=torch.Generator().manual_seed(0)), torch.rand(20)
    surrogate = MLPSurrogate(preset="papers", widths=(8,)).fit_pairs(x[:30], pairs, outcomes)
    rows = surrogate._inputs(x[:30]).float()
    network = mlp(5, (8,), seed=0, normal=True)
    adam = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=0.1 / (20 + 50))
    for _ in range(1000):
        adam.zero_grad()
        scores = network(rows)[:, 0]
        chance = torch.sigmoid(scores[pairs[:, 0]] - scores[pairs[:, 1]])
        (-(outcomes * chance.log() + (1 - outcomes) * (1 - chance).log()).mean()).backward()
        adam.step()
    for mine, own in zip(surrogate.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-3, atol=1e-4)


def test_one_observation_and_constant_scores_and_columns():
    x, _ = world()
    x[:, 3] = 7.0
    for surrogate in ALL:
        for rows in (x[:1], x[:6]):
            mean, variance = surrogate.fit(rows, torch.full((len(rows),), 0.4)).predict(x)
            torch.testing.assert_close(mean, torch.full_like(mean, 0.4), rtol=0, atol=0.2)
            assert torch.isfinite(variance).all()


def test_errors():
    x, y = world()
    surrogate = RBFSurrogate()
    with pytest.raises(DataError, match="fit it before"):
        surrogate.predict(x)
    with pytest.raises(DataError, match="at least one row"):
        surrogate.fit(x[:0], y[:0])
    with pytest.raises(DataError, match="2 rows of x and 3 of y"):
        surrogate.fit(x[:2], y[:3])
    with pytest.raises(DataError, match="y: 1 values are not finite"):
        surrogate.fit(x[:2], [1.0, float("nan")])
    with pytest.raises(DataError, match="outcomes must be between 0 and 1"):
        surrogate.fit_pairs(x, [[0, 1]], [-1])
    with pytest.raises(DataError, match="2 pairs and 1 outcomes"):
        surrogate.fit_pairs(x, [[0, 1], [1, 2]], [1])
    with pytest.raises(DataError, match="it takes"):
        surrogate.fit(x, y).predict(x[:, :3])
    for bad in ({"steps": 0}, {"ridge": 0.0}, {"widths": (0,)}, {"activation": "sine"}, {"seed": -1}):
        with pytest.raises(OptionError):
            MLPSurrogate(**bad)


@pytest.mark.parametrize("surrogate", KERNELS, ids=named)
def test_noise_of_different_sizes(surrogate):
    x, y = world()
    noise = torch.linspace(1, 9, 25)
    surrogate.fit(x[:25], y[:25], noise=noise)
    torch.testing.assert_close(surrogate._noise / surrogate._noise[0], noise.double())
    mean, variance = surrogate.predict(x[25:])
    points = surrogate._kernel((x - x[:25].mean(0)) / x[:25].std(0, correction=0))
    k = points.gram(points) * surrogate._scale
    inverse = torch.linalg.inv(k[:25, :25] + surrogate._scale * torch.diag(surrogate._noise))
    spread = y[:25].std(correction=0)
    expected = y[:25].mean() + k[25:, :25] @ inverse @ (y[:25] - y[:25].mean())
    torch.testing.assert_close(mean, expected, rtol=1e-7, atol=1e-9)
    left = spread**2 * (k - k[:, :25] @ inverse @ k[:25]).diagonal()[25:]
    torch.testing.assert_close(variance, left, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(surrogate.fit(x[:25], y[:25], noise=7 * noise).predict(x[25:])[0], mean)
    plain = surrogate.fit(x[:25], y[:25]).predict(x[25:])[0]
    torch.testing.assert_close(surrogate.fit(x[:25], y[:25], noise=torch.full((25,), 3)).predict(x[25:])[0], plain)


@pytest.mark.parametrize("surrogate", KERNELS, ids=named)
def test_the_gradient_of_the_mean_is_its_slope(surrogate):
    x, y = world()
    surrogate.fit(3 * x[:25] + 1, 5 * y[:25], noise=torch.linspace(1, 9, 25))
    rows, step = 3 * x[25:30] + 1, 1e-5
    slopes = [
        (surrogate.predict(rows + step * side)[0] - surrogate.predict(rows - step * side)[0]) / (2 * step)
        for side in torch.eye(x.shape[1], dtype=torch.float64)
    ]
    gradient = surrogate.gradient(rows)
    torch.testing.assert_close(gradient, torch.stack(slopes, 1), rtol=1e-6, atol=1e-8)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize("surrogate", [LinearSurrogate(), RBFSurrogate(), MaternSurrogate()], ids=named)
def test_the_posterior_can_be_differentiated_in_its_points(surrogate):
    x, y = world()
    surrogate.fit(3 * x[:25] + 1, 5 * y[:25])
    rows, step = 3 * x[25:28] + 1, 1e-5

    def bound(points):
        posterior = surrogate.posterior(points)
        return posterior.mean + posterior.variance().sqrt()

    slopes = [
        (bound(rows + step * side) - bound(rows - step * side)) / (2 * step)
        for side in torch.eye(x.shape[1], dtype=torch.float64)
    ]
    points = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(bound(points).sum(), points)
    torch.testing.assert_close(gradient, torch.stack(slopes, 1), rtol=1e-4, atol=1e-6)


def test_wrong_noise_is_refused():
    x, y = world()
    for noise in (torch.ones(3), torch.zeros(10)):
        with pytest.raises(DataError, match="noise must be 10 numbers above 0"):
            RBFSurrogate().fit(x[:10], y[:10], noise=noise)
    with pytest.raises(OptionError, match="only Gaussian processes know noise of different sizes"):
        MLPSurrogate().fit(x[:10], y[:10], noise=torch.ones(10))
