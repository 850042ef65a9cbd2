"""Linear dueling, double Thompson sampling and the Copeland rule: each step against brute force, and the contract of all."""

import math

import numpy as np
import pytest

from hfdataopt.bandits import LinearSurrogate
from hfdataopt.errors import OptionError
from hfdataopt.prompting.candidate import Candidate
from hfdataopt_plugins.optimizers.apohf import Apohf
from hfdataopt_plugins.optimizers.copeland_ts import CopelandThompson, double_thompson_pair
from hfdataopt_plugins.optimizers.double_ts import DoubleThompson
from hfdataopt_plugins.optimizers.linear_dueling import LinearDueling
from tests.optimizers.search import PlainServices, duel, task, vote

TEXTS = [f"instruction {i}" for i in range(8)]
VECTORS = np.random.default_rng(0).normal(size=(len(TEXTS), 4)).astype(np.float32)
ALL = [Apohf, LinearDueling, DoubleThompson, CopelandThompson]


def services() -> PlainServices:
    return PlainServices(embed=lambda text: VECTORS[TEXTS.index(text)].tolist())


def quality(candidate: Candidate) -> float:
    return float(VECTORS[TEXTS.index(candidate.instruction)] @ [2.0, -1.0, 0.5, 0.0])


def better(first: Candidate, second: Candidate) -> float:
    return float(quality(first) > quality(second))


def searched(kind, votes: int, **options):
    optimizer = kind(pool=TEXTS, **options)
    duel(optimizer, task(), better, services(), votes)
    return optimizer


def indices(duels) -> list[tuple[int, int]]:
    return [(TEXTS.index(one.first.instruction), TEXTS.index(one.second.instruction)) for one in duels]


# -- what holds for all


@pytest.mark.parametrize("kind", ALL)
def test_they_find_the_best_by_clear_votes(kind):
    assert searched(kind, 25).best.instruction == max(TEXTS, key=lambda text: quality(Candidate(text)))


@pytest.mark.parametrize("kind", ALL)
def test_nothing_pending_or_skipped_comes_again_and_a_replay_is_the_same(kind):
    optimizer = searched(kind, 9)
    batch = optimizer.ask(5, (), services())
    more = optimizer.ask(5, batch, services())
    pairs = [frozenset(pair) for pair in indices([*batch, *more])]
    assert len(set(pairs)) == len(pairs) == 10
    optimizer.tell([vote(one, None) for one in batch])
    later = indices(optimizer.ask(99, (), services()))
    assert not {frozenset(pair) for pair in later} & set(pairs[:5])
    again = searched(kind, 9)
    assert list(again.ask(5, (), services())) == list(batch)


@pytest.mark.parametrize("kind", ALL)
def test_a_vote_taken_back_leaves_no_trace(kind):
    optimizer, other = searched(kind, 9), searched(kind, 9)
    asked = optimizer.ask(1, (), services())
    wrong = vote(asked[0], 1.0)
    optimizer.tell([wrong])
    optimizer.forget(wrong)
    assert optimizer.ranking() == other.ranking()
    assert list(optimizer.ask(1, (), services())) == list(asked)


def test_what_each_needs():
    assert [kind(pool=TEXTS).needs for kind in ALL] == [("encoder",), ("encoder",), ("encoder",), ()]
    assert CopelandThompson().needs == ("proposer", "examples")


@pytest.mark.parametrize(
    ("kind", "options"),
    [(LinearDueling, {"nu": -1}), (DoubleThompson, {"members": 1}), (CopelandThompson, {"alpha": 0.5})],
)
def test_options_are_checked(kind, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        kind(**options)


# -- linear dueling


def test_linear_duels_are_the_best_mean_against_the_bound_by_explicit_features():
    optimizer = searched(LinearDueling, 8, nu=0.7)
    pairs = indices(one.duel for one in optimizer.votes)
    rows = sorted({arm for pair in pairs for arm in pair})
    local = [[rows.index(i), rows.index(j)] for i, j in pairs]
    x = VECTORS.astype(float)
    fit = LinearSurrogate().fit_pairs(x[rows], local, [one.comparison.target for one in optimizer.votes])
    z = (x - x[rows].mean(0)) / x[rows].std(0)
    mean, noise, scale = fit.posterior(x).mean.numpy(), np.asarray(fit._noise), fit._scale
    differences = np.stack([z[i] - z[j] for i, j in pairs])
    covariance = scale * np.linalg.inv(np.eye(4) + differences.T @ (differences / noise[:, None]))
    first = int(mean.argmax())
    asked = {frozenset(pair) for pair in pairs}
    bound = {
        arm: mean[arm] + 0.7 * math.sqrt((z[arm] - z[first]) @ covariance @ (z[arm] - z[first]))
        for arm in range(len(TEXTS))
        if arm != first and frozenset((arm, first)) not in asked
    }
    assert indices(optimizer.ask(1, (), services())) == [(first, max(bound, key=bound.__getitem__))]


# -- double Thompson sampling


def test_double_thompson_pairs_are_the_best_arms_of_members():
    optimizer = DoubleThompson(pool=TEXTS, members=4, initial=6)
    flips = iter([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    duel(optimizer, task(), lambda first, second: next(flips), services(), 6)
    tops = {int(member.argmax()) for member in optimizer.posterior().scores}
    draws = [optimizer.choose(1, list(range(8)), set(), [], number)[0] for number in range(60)]
    assert len(tops) > 1
    assert {first for first, _ in draws} == tops
    assert tops <= {second for _, second in draws}
    assert sum(second in tops for _, second in draws) > 50  # at random only after five draws of the same arm


def test_networks_may_be_members():
    assert quality(searched(DoubleThompson, 12, members=2, member="mlp").best) > 0


# -- the Copeland rule


def brute(wins: np.ndarray, alpha: float, t: int, rng: np.random.Generator) -> tuple[int, int]:
    """Algorithm 1 of Wu and Liu (2016) arm by arm, with the draws in the same order."""
    k = len(wins)

    def bound(i: int, j: int, sign: int) -> float:
        n = wins[i, j] + wins[j, i]
        if n == 0:
            return 1.0 if sign > 0 else 0.0
        return wins[i, j] / n + sign * math.sqrt(alpha * math.log(t) / n)

    hoped = [sum(bound(i, j, 1) > 0.5 for j in range(k) if j != i) for i in range(k)]
    champions = [i for i in range(k) if hoped[i] == max(hoped)]
    draws = np.array([[rng.beta(wins[i, j] + 1, wins[j, i] + 1) for j in range(k)] for i in range(k)])
    beats = [
        sum((draws[i, j] if i < j else 1 - draws[j, i]) > 0.5 for j in range(k) if j != i) if i in champions else -1
        for i in range(k)
    ]
    first = int(rng.choice([i for i in range(k) if beats[i] == max(beats)]))
    chances = [rng.beta(wins[j, first] + 1, wins[first, j] + 1) for j in range(k)]
    may = [j for j in range(k) if j != first and bound(j, first, -1) <= 0.5] or [j for j in range(k) if j != first]
    return first, max(may, key=lambda j: chances[j])


@pytest.mark.parametrize("seed", range(25))
def test_the_pair_is_that_of_the_published_rule(seed):
    rng = np.random.default_rng(seed)
    wins = rng.integers(0, 4 if seed % 2 else 30, size=(6, 6)) * (rng.random((6, 6)) < 0.7).astype(float)
    np.fill_diagonal(wins, 0)
    wins += 0.5 * (seed % 3 == 0) * (1 - np.eye(6))
    t = int(wins.sum()) + 1
    pair = double_thompson_pair(wins, np.eye(6, dtype=bool), 1.2, t, np.random.default_rng(seed))
    assert pair == brute(wins, 1.2, t, np.random.default_rng(seed))


def test_closed_pairs_are_left_out():
    wins = np.random.default_rng(0).integers(0, 9, (5, 5)).astype(float)
    blocked = np.ones((5, 5), dtype=bool)
    blocked[1, 3] = blocked[3, 1] = False
    for seed in range(10):
        pair = double_thompson_pair(wins, blocked, 1.2, 50, np.random.default_rng(seed))
        assert sorted(pair) == [1, 3]


def test_the_best_beats_the_most_others_then_has_the_larger_share():
    optimizer = CopelandThompson(pool=TEXTS[:4])
    optimizer.start(task())
    optimizer.ask(1, (), services())
    outcomes = [(0, 1, 1.0), (0, 1, 1.0), (0, 1, 0.0), (2, 1, 1.0), (2, 1, 1.0), (3, 0, 0.5), (2, 3, 0.5)]
    arms = optimizer.candidates
    for i, j, target in outcomes:
        asked = optimizer.ask(1, (), services())[0]
        optimizer.tell([vote(type(asked)(arms[i], arms[j], asked.item), target)])
    wins = np.zeros((4, 4))
    for i, j, target in outcomes:
        wins[i, j] += target
        wins[j, i] += 1 - target
    expected = []
    for i in range(4):
        others = [j for j in range(4) if j != i and wins[i, j] + wins[j, i] > 0]
        net = sum(np.sign(wins[i, j] - wins[j, i]) for j in others)
        share = np.mean([wins[i, j] / (wins[i, j] + wins[j, i]) for j in others])
        expected.append((net, share))
    order = sorted(range(4), key=lambda i: expected[i], reverse=True)
    assert [one.instruction for one in optimizer.leaders(4)] == [TEXTS[i] for i in order]
    assert np.array_equal(optimizer.wins(), wins)
    assert order[:2] == [2, 0]
