"""Scores of arms from votes: Laplace's approximation against plain optimisation, its downdate, and what the arm effect is for."""

import math

import pytest
import torch
from torch.nn import functional

from hfdataopt.bandits import dueling_ucb
from hfdataopt.bandits.arms import AMPLITUDE_GRID, OWN_GRID, ArmPosterior, ArmSurrogate
from hfdataopt.errors import DataError, OptionError
from hfdataopt.statistics import rank_correlation

ARMS, WIDTH = 12, 5


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(ARMS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def votes(count: int, scores: torch.Tensor, seed: int = 0) -> tuple[list[list[int]], list[float]]:
    generator = torch.Generator().manual_seed(100 + seed)
    pairs = [torch.randperm(len(scores), generator=generator)[:2].tolist() for _ in range(count)]
    draws = torch.rand(count, generator=generator).tolist()
    return pairs, [float(u < torch.sigmoid(scores[i] - scores[j])) for u, (i, j) in zip(draws, pairs, strict=True)]


def reference(x: torch.Tensor, pairs, outcomes, own: float, amplitude: float):
    """Mode, covariance and evidence over the arms' scores themselves, by plain Newton steps with dense inverses."""
    x = (x - x.mean(0)) / x.std(0, correction=0)
    kernel = x @ x.T
    kernel = kernel / kernel.diagonal().mean()
    prior = amplitude * ((1 - own) * kernel + own * torch.eye(len(x), dtype=x.dtype)) + 1e-10 * torch.eye(len(x))
    differences = torch.zeros(len(pairs), len(x), dtype=x.dtype)
    for row, (i, j) in enumerate(pairs):
        differences[row, i], differences[row, j] = 1.0, -1.0
    y, scores = torch.tensor(outcomes, dtype=x.dtype), torch.zeros(len(x), dtype=x.dtype)

    def loss(f: torch.Tensor) -> torch.Tensor:
        data = functional.binary_cross_entropy_with_logits(differences @ f, y, reduction="sum")
        return data + 0.5 * f @ torch.linalg.solve(prior, f)

    for _ in range(100):
        gradient = torch.func.grad(loss)(scores)
        hessian = torch.func.hessian(loss)(scores)
        scores = scores - 0.5 * torch.linalg.solve(hessian, gradient)
    covariance = torch.linalg.inv(torch.func.hessian(loss)(scores))
    evidence = -loss(scores) - 0.5 * torch.logdet(prior) + 0.5 * torch.logdet(covariance)
    return scores, covariance, float(evidence)


@pytest.mark.parametrize("own", [0.3, 1.0])
def test_mean_and_covariance_are_laplaces(own):
    x = features()
    pairs, outcomes = votes(30, 2 * x[:, 0])
    outcomes[3] = 0.5
    surrogate = ArmSurrogate(own=own).fit_pairs(x, pairs, outcomes)
    _, _, amplitude = surrogate.chosen
    mean, covariance, _ = reference(x, pairs, outcomes, own, amplitude)
    posterior = surrogate.posterior(x)
    assert torch.allclose(posterior.mean, mean, atol=1e-5)
    assert torch.allclose(posterior.variance(), covariance.diagonal(), atol=1e-5)
    contrast = covariance.diagonal() - 2 * covariance[4] + covariance[4, 4]
    assert torch.allclose(posterior.variance(4), contrast, atol=1e-5)


def test_the_prior_is_that_of_the_largest_evidence():
    x = features()
    pairs, outcomes = votes(40, 2 * x[:, 0] - x[:, 1])
    surrogate = ArmSurrogate().fit_pairs(x, pairs, outcomes)
    evidence = {
        (own, amplitude): reference(x, pairs, outcomes, own, amplitude)[2]
        for own in OWN_GRID[1:]
        for amplitude in AMPLITUDE_GRID
    }
    best = max(evidence, key=evidence.__getitem__)
    assert surrogate.chosen[1:] == best or surrogate.chosen[1] == 0.0  # the reference cannot invert own=0
    if surrogate.chosen[1] == 0.0:
        near = reference(x, pairs, outcomes, 1e-6, surrogate.chosen[2])[2]
        assert near >= evidence[best] - 0.01


def test_a_downdate_is_a_further_normal_observation():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    covariance, mean = root @ root.T, torch.zeros(6, dtype=torch.float64)
    direction = torch.zeros(6, dtype=torch.float64)
    direction[1], direction[4] = 1.0, -1.0
    expected = torch.linalg.inv(torch.linalg.inv(covariance) + torch.outer(direction, direction) / 4.0)
    posterior = ArmPosterior(mean, covariance)
    posterior.add(1, against=4)
    assert torch.allclose(posterior.variance(), expected.diagonal())
    assert torch.allclose(posterior.variance(2)[5], expected[5, 5] - 2 * expected[2, 5] + expected[2, 2])
    alone = ArmPosterior(mean, covariance)
    alone.add(3)
    assert float(alone.variance()[3]) == pytest.approx(float(1 / (1 / covariance[3, 3] + 1 / 4.0)))


def test_draws_have_the_covariance():
    x = features()
    pairs, outcomes = votes(20, x[:, 0])
    posterior = ArmSurrogate().fit_pairs(x, pairs, outcomes).posterior(x)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([posterior.sample(generator) for _ in range(4000)])
    assert torch.allclose(draws.mean(0), posterior.mean, atol=0.15)
    assert torch.allclose(draws.var(0), posterior.variance(), rtol=0.15, atol=0.01)


def test_choosing_does_not_use_up_the_surrogate():
    x = features()
    pairs, outcomes = votes(10, x[:, 0])
    surrogate = ArmSurrogate().fit_pairs(x, pairs, outcomes)
    before = surrogate.posterior(x).variance()
    batch = dueling_ucb(surrogate.posterior(x), 5)
    assert len({tuple(sorted(pair)) for pair in batch}) == 5
    assert torch.equal(surrogate.posterior(x).variance(), before)


def test_arms_are_told_apart_where_features_explain_nothing():
    found: dict[float | None, list[float]] = {0.0: [], None: []}
    for seed in range(6):
        x, scores = features(seed), 2 * torch.randn(ARMS, generator=torch.Generator().manual_seed(50 + seed)).double()
        pairs, outcomes = votes(400, scores, seed)
        for own, rhos in found.items():
            mean = ArmSurrogate(own=own).fit_pairs(x, pairs, outcomes).posterior(x).mean
            rhos.append(float(rank_correlation(mean.numpy(), scores.numpy())))
    assert sum(found[None]) / 6 > 0.95
    assert sum(found[0.0]) / 6 < 0.8


@pytest.mark.parametrize("kernel", ["linear", "rbf", "likelier"])
def test_every_kernel_ranks(kernel):
    x = features()
    pairs, outcomes = votes(60, 3 * x[:, 0])
    mean = ArmSurrogate(kernel=kernel).fit_pairs(x, pairs, outcomes).posterior(x).mean
    assert rank_correlation(mean.numpy(), x[:, 0].numpy()) > 0.7


def test_features_that_are_all_alike_do_no_harm():
    x = torch.zeros(3, 1)
    mean = ArmSurrogate().fit_pairs(x, [[0, 1], [0, 2], [0, 1]], [1.0, 1.0, 1.0]).posterior(x).mean
    assert int(mean.argmax()) == 0
    assert all(math.isfinite(value) for value in mean.tolist())


def test_other_arms_and_options_are_refused():
    with pytest.raises(OptionError, match="own"):
        ArmSurrogate(own=1.5)
    surrogate = ArmSurrogate().fit_pairs(features(), [[0, 1]], [1.0])
    with pytest.raises(DataError, match="only the arms"):
        surrogate.posterior(features()[:3])
