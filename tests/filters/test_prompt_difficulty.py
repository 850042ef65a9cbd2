"""prompt-difficulty: the Beta posterior over success rates by hand, its draws, and what is kept."""

import numpy as np
import pytest
from datasets import Dataset
from scipy import stats

from hfdataopt import get_filter, threshold, top
from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection.success_rates import beta_draws, count, gamma_draws, update

from .invariance import check_invariance


def rows(count=60):
    draws = np.random.default_rng(0)
    chance = draws.uniform(size=count)
    rewards = [[draws.binomial(1, p, size=4).astype(float).tolist() for _ in range(3)] for p in chance]
    return Dataset.from_dict(
        {"prompt": [f"q{i}" for i in range(count)], "rewards": rewards, "row_id": list(range(count))}
    )


def test_posterior_by_hand():
    alpha, beta = update(1.0, 1.0, 3, 4, (1.0, 1.0), 0.5)  # 0.5 + 0.5 + 3 and 0.5 + 0.5 + 1
    assert (alpha, beta) == (4.0, 2.0)
    alpha, beta = update(alpha, beta, 0, 4, (1.0, 1.0), 0.5)  # 2 + 0.5 and 1 + 0.5 + 4
    assert (alpha, beta) == (2.5, 5.5)
    data = Dataset.from_dict({"prompt": ["a", "b", "c"], "rewards": [[[1, 1, 1, 0], [0, 0, 0, 0.0]], [[0.5, 1.0]], []]})
    f = get_filter("prompt-difficulty", rewards="rewards", discount=0.5, estimate="mean").fit(data)
    batch = f.batch(data[:])
    np.testing.assert_allclose(f.posterior(batch), [[2.5, 2.5, 1.0], [5.5, 1.5, 1.0]])
    np.testing.assert_allclose(f.scores(batch), [-abs(2.5 / 8 - 0.5), -abs(2.5 / 4 - 0.5), 0.0])


def test_one_group_or_counts_say_the_same():
    data = Dataset.from_dict(
        {
            "prompt": ["a", "b", "c"],
            "rewards": [[2.0, -1.0, 0.0, 3.0], [0.5, None], None],
            "solved": [2.0, 0, None],
            "tried": [4, 1, None],
        }
    )
    by_rewards = get_filter("prompt-difficulty", rewards="rewards", success=1.0, prior=(2.0, 1.0), seed=4).fit(data)
    by_counts = get_filter("prompt-difficulty", successes="solved", trials="tried", prior=(2.0, 1.0), seed=4).fit(data)
    found = [np.array(f.posterior(f.batch(data[:]))) for f in (by_rewards, by_counts)]
    np.testing.assert_array_equal(found[0], [[4, 2, 2], [3, 2, 1]])
    np.testing.assert_array_equal(found[0], found[1])
    scores = [f(data[:])["score_prompt_difficulty"].tolist() for f in (by_rewards, by_counts)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("shape", [0.2, 0.9, 1.0, 2.5, 40.0])
def test_draws_are_gamma(shape):
    keys = np.arange(20_000, dtype=np.uint64)
    draws = gamma_draws(7, keys, np.full(len(keys), shape))
    assert stats.kstest(draws, stats.gamma(shape).cdf).pvalue > 0.01


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (3.0, 7.0), (0.5, 12.0)])
def test_draws_are_beta_and_belong_to_their_key(alpha, beta):
    keys = np.arange(20_000, dtype=np.uint64)
    alphas, betas = np.full(len(keys), alpha), np.full(len(keys), beta)
    draws = beta_draws(3, keys, alphas, betas)
    assert stats.kstest(draws, stats.beta(alpha, beta).cdf).pvalue > 0.01
    part = np.array([17, 4, 12_345])
    np.testing.assert_array_equal(beta_draws(3, keys[part], alphas[part], betas[part]), draws[part])
    other = beta_draws(4, keys, alphas, betas)
    assert abs(np.corrcoef(draws, other)[0, 1]) < 0.03


def test_same_rows_whatever_the_way():
    f, scores = check_invariance(get_filter("prompt-difficulty", rewards="rewards", seed=1), rows())
    other = get_filter("prompt-difficulty", rewards="rewards", seed=2).fit(rows())
    assert other(rows()[:])[f.score_column].tolist() != scores


def test_draws_go_by_the_prompt_alone_without_ids():
    data = rows().remove_columns("row_id")
    f = get_filter("prompt-difficulty", rewards="rewards").fit(data)
    later = data.add_column("more", [1] * len(data)).shuffle(seed=0)
    first = dict(zip(data["prompt"], f(data[:])["score_prompt_difficulty"], strict=True))
    second = dict(zip(later["prompt"], f(later[:])["score_prompt_difficulty"], strict=True))
    assert first == second


def test_middling_prompts_are_kept():
    rewards = [[1.0] * 8] * 10 + [[1.0, 0.0] * 4] * 10 + [[0.0] * 8] * 10
    data = Dataset.from_dict({"prompt": [f"q{i}" for i in range(30)], "rewards": rewards})
    f = get_filter("prompt-difficulty", rewards="rewards", keep=top(k=10), estimate="mean").fit(data)
    assert data.filter(f.keep, batched=True, input_columns=f.columns)["prompt"][:] == [f"q{i}" for i in range(10, 20)]
    sampled = get_filter("prompt-difficulty", rewards="rewards", keep=threshold(-0.2)).fit(data)
    kept = [int(p[1:]) for p in data.filter(sampled.keep, batched=True, input_columns=sampled.columns)["prompt"]]
    assert sum(10 <= i < 20 for i in kept) >= 5 > sum(not 10 <= i < 20 for i in kept)


def test_bad_options_and_rows():
    for options, says in [
        ({}, "either rewards="),
        ({"successes": "a"}, "either rewards="),
        ({"successes": "a", "trials": "b", "discount": 0.5}, "go with rewards"),
        ({"rewards": "r", "discount": 0.0}, "above 0"),
        ({"rewards": "r", "rate": 1.5}, "at most 1"),
    ]:
        with pytest.raises(OptionError, match=says):
            get_filter("prompt-difficulty", **options)
    with pytest.raises(DataError, match=r"reward 2, which is outside \[0, 1\]"):
        count([0.0, 2.0], None, "who", "row 1")
    data = Dataset.from_dict({"prompt": ["a"], "rewards": ["text"], "solved": [3], "tried": [2]})
    f = get_filter("prompt-difficulty", rewards="rewards").fit(data)
    with pytest.raises(DataError, match="must hold lists of rewards"):
        f(data[:])
    f = get_filter("prompt-difficulty", successes="solved", trials="tried").fit(data)
    with pytest.raises(DataError, match="from 0 to the second"):
        f(data[:])
    with pytest.raises(DataError, match="no column 'reward'"):
        get_filter("prompt-difficulty", rewards="reward").fit(data)
