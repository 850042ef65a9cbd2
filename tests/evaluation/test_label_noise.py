"""Label-noise AUC: all pairs by hand, the interval's size by resampling, bad input."""

from typing import Any

import numpy as np
import pytest

from hfdataopt import Scores
from hfdataopt.errors import DataError
from hfdataopt.evaluation import label_noise_auc


def pairs(scores: np.ndarray, flipped: np.ndarray) -> float:
    low, high = scores[flipped][:, None], scores[~flipped][None]
    return float(np.mean((low < high) + 0.5 * (low == high)))


@pytest.fixture
def noisy() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    flipped = random.random(300) < 0.2
    return np.round(random.normal(size=300) - 1.2 * flipped, 1), flipped  # rounded: ties


def test_auc_counts_all_pairs(noisy: Any) -> None:
    scores, flipped = noisy
    found = label_noise_auc(scores, flipped)
    assert found.auc.value == pytest.approx(pairs(scores, flipped), abs=1e-12)
    assert (found.flipped, found.rows, found.unscored) == (int(flipped.sum()), 300, 0)
    assert label_noise_auc(-scores, flipped).auc.value == pytest.approx(1 - found.auc.value)
    order = np.random.default_rng(1).permutation(300)
    shuffled = label_noise_auc(scores[order], flipped[order]).auc
    assert (shuffled.value, shuffled.low) == pytest.approx((found.auc.value, found.auc.low), abs=1e-12)


def test_the_interval_is_as_wide_as_resampling_says(noisy: Any) -> None:
    scores, flipped = noisy
    random = np.random.default_rng(1)
    low, high = scores[flipped], scores[~flipped]
    replicates = []
    for _ in range(400):
        both = random.choice(low, len(low)), random.choice(high, len(high))
        replicates.append(pairs(np.concatenate(both), np.arange(300) < len(low)))
    half = label_noise_auc(scores, flipped).auc.high - label_noise_auc(scores, flipped).auc.value
    assert half == pytest.approx(1.96 * np.std(replicates), rel=0.15)


def test_rows_without_a_score_are_left_out_and_counted() -> None:
    scores = Scores(values=np.array([0.0, np.nan, 1.0, 2.0]), row_ids=[0, 1, 2, 3])
    found = label_noise_auc(scores, [True, True, False, False])
    assert (found.auc.value, found.flipped, found.rows, found.unscored) == (1.0, 1, 3, 1)
    assert str(found).endswith("1 of 3 rows mislabelled, 1 without a score left out")


@pytest.mark.parametrize(
    ("scores", "flipped", "wanted"),
    [
        ([1.0, 2.0], [True], r"\[2\] scores and \[1\] flags"),
        ([1.0, 2.0], [0, 3], "must hold booleans"),
        ([1.0, 2.0], [False, False], "of 2 rows with a score 0 are mislabelled"),
        ([np.nan, 2.0], [True, False], "of 1 rows with a score 0 are mislabelled"),
    ],
)
def test_bad_input(scores: Any, flipped: Any, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        label_noise_auc(scores, flipped)
