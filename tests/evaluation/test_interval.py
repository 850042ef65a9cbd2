"""Intervals: ranks with ties in a resample, coverage of a share, and numbers that JSON lacks."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from hfdataopt.evaluation import Interval, label_noise_auc
from hfdataopt.evaluation.interval import resampled_rank_correlations, resamples


def test_resampled_correlations_are_those_of_the_drawn_pairs() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=12), random.integers(0, 4, size=12).astype(float)
    counts = resamples(12, 20, seed=1)
    assert (counts.sum(1) == 12).all()
    found = resampled_rank_correlations(one, other, counts)
    for count, value in zip(counts, found, strict=True):
        drawn = np.repeat(np.arange(12), count)
        assert value == pytest.approx(scipy.stats.spearmanr(one[drawn], other[drawn]).statistic)
    assert np.isnan(resampled_rank_correlations(one, np.ones(12), counts)).all()


def test_a_share_is_wilsons() -> None:
    found = Interval.of_share(9, 10)
    expected = scipy.stats.binomtest(9, 10).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((0.9, expected.low, expected.high), abs=1e-4)
    assert Interval.of_share(0, 5).low == pytest.approx(0, abs=1e-12)
    assert math.isnan(Interval.of_share(0, 0).value)


def test_reading() -> None:
    assert str(Interval(0.5, 0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert str(Interval.of_mean([0.5])) == "0.500"
    document = label_noise_auc([1.0, 2.0], [True, False]).as_dict()
    assert document["auc"] == {"value": 1.0, "low": None, "high": None}
    json.dumps(document, allow_nan=False)
