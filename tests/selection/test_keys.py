"""Keys and draws: functions of the id alone, spread evenly."""

import numpy as np

from hfdataopt.selection.keys import gumbel, keys_of, uniform


def test_keys_do_not_depend_on_the_company():
    texts = [f"row {i}" for i in range(100)]
    whole = keys_of(texts)
    assert [keys_of([text])[0] for text in texts] == whole.tolist()
    assert keys_of(texts[::-1]).tolist() == whole[::-1].tolist()
    assert len(set(whole.tolist())) == 100
    assert len(keys_of([])) == 0


def test_ints_keep_apart_whatever_their_size():
    ids = [0, 1, -1, 2**62, -(2**62), 2**64 - 3, *range(10, 5000)]
    assert len(set(keys_of(ids).tolist())) == len(ids)


def test_texts_that_are_no_valid_unicode_have_a_key():
    assert len(set(keys_of(["\ud800", "\ud801", "é", "e"]).tolist())) == 4


def test_draws_are_uniform_and_differ_by_seed():
    keys = keys_of(range(20_000))
    for seed in (0, 1, -5, 2**70):
        draws = uniform(seed, keys)
        assert draws.min() > 0
        assert draws.max() < 1
        counts = np.histogram(draws, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50, "chi-squared with 19 degrees of freedom"
    assert abs(np.corrcoef(uniform(0, keys), uniform(1, keys))[0, 1]) < 0.03
    assert abs(np.corrcoef(uniform(0, keys)[1:], uniform(0, keys)[:-1])[0, 1]) < 0.03


def test_gumbel_draws_have_its_mean_and_variance():
    draws = gumbel(3, keys_of(range(50_000)))
    assert abs(draws.mean() - np.euler_gamma) < 0.03
    assert abs(draws.var() - np.pi**2 / 6) < 0.06
