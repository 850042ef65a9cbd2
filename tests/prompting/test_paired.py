"""Paired tests against scipy."""

import numpy as np
import pytest
from scipy import stats

from hfdataopt.prompting.paired import sign_test, t_below, t_test


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 18, 31])
def test_students_t(freedom):
    for t in (-40.0, -2.1, -0.3, 0.0, 1.7, 9.0):
        assert t_below(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)


def test_paired_tests_on_random_rewards():
    rng = np.random.default_rng(0)
    for size in range(2, 25):
        differences = rng.integers(-1, 2, size) * rng.choice([1.0, 0.5], size)
        if differences.std() > 0:
            expected = stats.ttest_1samp(differences, 0, alternative="less").pvalue
            assert t_test(differences) == pytest.approx(expected, abs=1e-12)
        nonzero = int((differences != 0).sum())
        if nonzero:
            expected = stats.binomtest(int((differences > 0).sum()), nonzero, alternative="less").pvalue
            assert sign_test(differences) == pytest.approx(expected, abs=1e-12)


def test_where_there_is_nothing_to_test():
    assert t_test([]) == t_test([-1.0]) == sign_test([]) == sign_test([0.0, 0.0]) == t_test([0.0, 0.0]) == 1
    assert t_test([-1.0, -1.0]) == 0.25
