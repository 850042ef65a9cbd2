"""Sign consistency: both methods called by hand on each pool, and answers that are known."""

from typing import Any

import numpy as np
import pytest

from hfdataopt.errors import OptionError
from hfdataopt.evaluation import sign_consistency
from hfdataopt.shapley import loo, loo_ridge, shapley_values


@pytest.fixture(scope="module")
def task() -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    asked = np.arange(14) % 2
    pool = random.normal(size=(40, 5)) + 0.8 * labels[:, None]
    queries = random.normal(size=(14, 5)) + 0.8 * asked[:, None]
    return pool @ pool.T, pool @ queries.T, labels, asked


def test_signs_are_those_of_both_methods_on_each_pool(task: Any) -> None:
    kernel, cross, labels, asked = task
    rows = [1, 5, 8, 20, 33]
    found = sign_consistency(*task, rows=rows, pool_size=15, pools=3, permutations=20, seed=4)
    random = np.random.default_rng(4)
    for pool in range(3):
        others = np.setdiff1d(np.arange(40), rows)
        members = np.concatenate([rows, random.choice(others, 10, replace=False)])
        problem = kernel[np.ix_(members, members)], cross[members], labels[members], asked
        ridge = loo_ridge(problem[0], np.eye(2)[labels[members]])
        values = shapley_values(*problem, utility="margin", ridge=ridge, permutations=20, seed=4 + pool).values
        assert found.signs["shapley"][pool] == np.sign(values[:5]).tolist()
        left_out = loo(*problem, utility="margin", ridge=ridge)
        assert found.signs["leave-one-out"][pool] == np.sign(left_out[:5]).tolist()
    for name, share in (("shapley", found.shapley), ("leave-one-out", found.leave_one_out)):
        kept = [abs(sum(column)) == 3 for column in zip(*found.signs[name], strict=True)]
        assert share.value == np.mean(kept)
    assert found.difference.value == pytest.approx(found.shapley.value - found.leave_one_out.value)


def test_the_same_pool_gives_the_same_sign_and_a_zero_is_no_sign(task: Any) -> None:
    whole = sign_consistency(*task, rows=range(39), pool_size=40, pools=2, permutations=10, ridge=0.1)
    assert whole.leave_one_out.value == 1
    still = sign_consistency(
        *task, rows=range(39), pool_size=40, pools=2, permutations=10, ridge=0.1, utility="accuracy"
    )
    zeros = np.mean(np.array(still.signs["leave-one-out"][0]) == 0)
    assert zeros > 0
    assert still.leave_one_out.value == pytest.approx(1 - zeros)
    assert "rows that keep their sign in 2 pools, of 39" in str(still)


@pytest.mark.parametrize("change", [{"pools": 1}, {"pool_size": 3}, {"pool_size": 41}, {"rows": []}])
def test_bad_input(task: Any, change: Any) -> None:
    with pytest.raises(OptionError, match="take at least 2 pools, larger than the fixed rows"):
        sign_consistency(*task, **{"rows": [0, 1, 2], "pool_size": 10, **change})
