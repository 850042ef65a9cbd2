"""What is chosen next, against brute force."""

import math

import pytest
import torch

from hfdataopt.bandits import (
    EnsembleSurrogate,
    LinearSurrogate,
    RBFSurrogate,
    double_thompson,
    dueling_ucb,
    expected_improvement,
    neural_ucb,
    thompson,
    upper_bound,
)
from hfdataopt.errors import OptionError

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.sin(X[:, 0]) + 0.5 * X[:, 1]
PAIRS, OUTCOMES = [[0, 1], [2, 3], [4, 5], [1, 6]], [1, 0, 0.5, 1]


def scored() -> RBFSurrogate:
    return RBFSurrogate().fit(X[:8], Y[:8])


def compared() -> RBFSurrogate:
    return RBFSurrogate().fit_pairs(X[:8], PAIRS, OUTCOMES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nu_outside_and_inside_the_root():
    mean, variance = torch.tensor([1.0]), torch.tensor([4.0])
    assert float(upper_bound(mean, variance, 9.0)) == 1 + 9 * 2
    assert float(upper_bound(mean, variance, 9.0, papers=True)) == 1 + 3 * 2
    mean, variance = scored().predict(X)
    for nu in (0.1, 25.0):
        assert neural_ucb(scored().posterior(X), nu=nu) == [int((mean + nu * variance.sqrt()).argmax())]
        inside = (mean + (nu * variance).sqrt()).argmax()
        assert neural_ucb(scored().posterior(X), nu=nu, papers=True) == [int(inside)]


def test_a_batch_is_chosen_as_if_what_was_chosen_had_been_observed():
    surrogate, nu = scored(), 3.0
    chosen = neural_ucb(surrogate.posterior(X), 4, nu=nu)
    greedy = neural_ucb(surrogate.posterior(X), 1, nu=nu)
    for row in chosen[1:]:
        posterior = surrogate.posterior(X)
        for before in greedy:
            posterior.add(before)
        bound = posterior.mean + nu * posterior.variance().sqrt()
        bound[greedy] = -math.inf
        assert int(bound.argmax()) == row
        greedy.append(row)
    one, other = neural_ucb(surrogate.posterior(torch.cat([X, X])), 2, nu=nu)
    assert one % 30 != other % 30


def test_pending_rows_count_as_observed_and_asked_rows_never_come_again():
    surrogate = scored()
    first, *rest = neural_ucb(surrogate.posterior(X), 4, nu=3.0)
    assert neural_ucb(surrogate.posterior(X), 3, nu=3.0, pending=[first]) == rest
    available = torch.ones(30, dtype=torch.bool)
    asked: set[int] = set()
    for pick in range(10):
        posterior = surrogate.posterior(X)
        rows = (
            neural_ucb(posterior, 3, available=available),
            expected_improvement(posterior, 3, best=1.0, available=available),
            thompson(posterior, 3, generator=generator(pick), available=available),
        )[pick % 3]
        assert len(set(rows)) == 3
        assert not asked & set(rows)
        asked |= set(rows)
        available[rows] = False
    with pytest.raises(OptionError, match="1 candidates were asked for, but 0 are left"):
        neural_ucb(surrogate.posterior(X), available=available)
    with pytest.raises(OptionError, match="booleans"):
        neural_ucb(surrogate.posterior(X), available=[1] * 30)


def test_expected_improvement_is_the_expectation():
    mean, variance = scored().predict(X)
    draws = mean + variance.sqrt() * torch.randn(20_000, 30, generator=generator(), dtype=torch.float64)
    improvement = (draws - 0.5).clamp_min(0).mean(0)
    (row,) = expected_improvement(scored().posterior(X), best=0.5)
    assert float(improvement[row]) > float(improvement.max()) - 0.01


def test_posterior_draws_have_the_covariance():
    posterior = scored().posterior(X)
    source = generator()
    draws = torch.stack([posterior.sample(source) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), posterior.mean, rtol=0, atol=0.06)
    for row in (0, 20):
        torch.testing.assert_close(draws.var(0), posterior.variance(), rtol=0.15, atol=0.01)
        difference = draws - draws[:, [row]]
        torch.testing.assert_close(difference.var(0), posterior.variance(row), rtol=0.15, atol=0.01)


def test_dueling_takes_the_best_mean_and_then_the_bound_of_the_difference():
    posterior = compared().posterior(X)
    first = int(posterior.mean.argmax())
    bound = posterior.mean + 2.0 * posterior.variance(first).sqrt()
    bound[first] = -math.inf
    assert dueling_ucb(compared().posterior(X), nu=2.0) == [(first, int(bound.argmax()))]


def test_dueling_batches_count_what_was_chosen_and_never_repeat_a_pair():
    first, *rest = dueling_ucb(compared().posterior(X), 5, nu=2.0)
    assert len({frozenset(pair) for pair in [first, *rest]}) == 5
    assert dueling_ucb(compared().posterior(X), 4, nu=2.0, pending=[first]) == rest
    reverse = [(b, a) for a, b in [first, *rest]]
    again = dueling_ucb(compared().posterior(X), 5, nu=2.0, asked=reverse)
    assert not {frozenset(pair) for pair in again} & {frozenset(pair) for pair in reverse}


@pytest.mark.parametrize("kind", ["ucb", "thompson"])
def test_every_pair_of_the_available_arms_can_be_asked_and_no_more(kind: str):
    available = torch.zeros(30, dtype=torch.bool)
    available[[2, 5, 7, 11]] = True

    def ask(n: int, asked: list[tuple[int, int]]) -> list[tuple[int, int]]:
        posterior = compared().posterior(X)
        if kind == "ucb":
            return dueling_ucb(posterior, n, available=available, asked=asked)
        return double_thompson(posterior, n, generator=generator(), available=available, asked=asked)

    pairs = ask(6, [])
    assert {frozenset(pair) for pair in pairs} == {
        frozenset(pair) for pair in [(2, 5), (2, 7), (2, 11), (5, 7), (5, 11), (7, 11)]
    }
    assert {frozenset(p) for p in ask(2, pairs[:4])} == {frozenset(p) for p in pairs[4:]}
    with pytest.raises(OptionError, match="2 pairs were asked for, but 1 are left"):
        ask(2, pairs[:5])


def test_an_ensemble_draws_its_members():
    surrogate = EnsembleSurrogate(member=LinearSurrogate(), size=4).fit(X[:12], Y[:12])
    posterior = surrogate.posterior(X)
    members = torch.stack([member.predict(surrogate._inputs(X))[0] for member in surrogate._members])
    torch.testing.assert_close(posterior.mean, members.mean(0))
    torch.testing.assert_close(posterior.variance(), members.var(0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(posterior.variance(3), (members - members[:, [3]]).var(0), rtol=1e-6, atol=1e-12)
    source = generator()
    for _ in range(5):
        draw = posterior.sample(source)
        assert any(torch.equal(draw, member) for member in members)
