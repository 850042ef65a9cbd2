"""Surrogate fidelity: kernel utilities by plain solves, pairs as drawn, known answers."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from hfdataopt.errors import DataError, OptionError
from hfdataopt.evaluation import draw_pairs, kernel_utilities, surrogate_fidelity
from hfdataopt.shapley import prefix_predictions_reference, shapley_values

NAMES = ("margin", "accuracy", "log-likelihood")


def task(classes: int, stacked: bool = False) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    labels, asked = np.arange(18) % classes, np.arange(8) % classes
    features = (
        random.normal(size=(classes if stacked else 1, 18, 6)),
        random.normal(size=(classes if stacked else 1, 8, 6)),
    )
    kernel, cross = features[0] @ features[0].swapaxes(1, 2), features[0] @ features[1].swapaxes(1, 2)
    return (kernel, cross, labels, asked) if stacked else (kernel[0], cross[0], labels, asked)


@pytest.mark.parametrize("utility", NAMES)
@pytest.mark.parametrize(("classes", "stacked"), [(2, False), (3, False), (3, True)])
def test_utilities_are_those_of_prefixes_and_of_the_estimator(utility: str, classes: int, stacked: bool) -> None:
    kernel, cross, labels, asked = task(classes, stacked)
    order = np.random.default_rng(1).permutation(18)
    subsets = np.zeros((18, 18), dtype=bool)
    for length in range(18):
        subsets[length, order[: length + 1]] = True
    found = kernel_utilities(*task(classes, stacked), subsets, utility=utility, ridge=0.3)
    targets = np.eye(classes)[labels]
    prefixes = prefix_predictions_reference(kernel, cross, targets, order.tolist(), ridge=0.3)
    predicted = torch.as_tensor(prefixes)  # [18, t, c]
    own = predicted[:, torch.arange(8), asked]
    rest = predicted.clone()
    rest[:, torch.arange(8), asked] = -torch.inf
    margin = own - rest.amax(2)
    wanted = {
        "margin": margin.clamp(-1, 1),
        "accuracy": (margin > 0).double(),
        "log-likelihood": predicted.log_softmax(2)[:, torch.arange(8), asked],
    }[utility]
    np.testing.assert_allclose(found, wanted.mean(1).numpy(), atol=1e-9)
    whole = shapley_values(kernel, cross, labels, asked, utility=utility, ridge=0.3, permutations=1)
    assert found[-1] == pytest.approx(whole.full_utility)
    none = kernel_utilities(*task(classes, stacked), np.zeros((1, 18), bool), utility=utility, ridge=0.3)
    assert none[0] == pytest.approx(whole.empty_utility)


def test_pairs_differ_by_the_added_rows() -> None:
    ids = list("abcdefghij")
    subsets = draw_pairs(ids, 6, sizes=(2, 5), added=3, seed=1)
    assert subsets.sum(1).tolist() == [2, 5, 5, 8] * 3
    assert (subsets[1::2] >= subsets[::2]).all()
    np.testing.assert_array_equal(subsets[:4], draw_pairs(ids, 2, sizes=(2, 5), added=3, seed=1))
    np.testing.assert_array_equal(subsets[:, ::-1], draw_pairs(ids[::-1], 6, sizes=(2, 5), added=3, seed=1))
    for change in ({"added": 0}, {"sizes": (8,)}, {"sizes": ()}, {"sizes": (0,)}):
        with pytest.raises(OptionError, match="do not fit 10 rows"):
            draw_pairs(ids, **{"count": 2, "sizes": (2,), "added": 3, **change})


def test_known_answers() -> None:
    random = np.random.default_rng(0)
    real = random.normal(size=40)
    same = surrogate_fidelity(np.exp(real), real)
    assert (same.rank_correlation.value, same.sign_agreement.value) == (pytest.approx(1), 1)
    assert (same.ceiling_correlation, same.ceiling_signs) == (None, None)
    turned = surrogate_fidelity(-real, real)
    assert (turned.rank_correlation.value, turned.sign_agreement.value) == (pytest.approx(-1), 0)
    flat = surrogate_fidelity(np.repeat(real[::2], 2), real)
    assert flat.sign_agreement.value == 0, "no marginal contribution, no agreement"
    chance = surrogate_fidelity(random.normal(size=40), real)
    assert chance.rank_correlation.low < 0 < chance.rank_correlation.high
    assert chance.sign_agreement.low < 0.5 < chance.sign_agreement.high


def test_seeds_are_averaged_and_show_what_noise_allows() -> None:
    random = np.random.default_rng(0)
    signal = random.normal(size=60)
    seeds = signal + random.normal(size=(4, 60))
    found = surrogate_fidelity(signal, seeds)
    assert found.rank_correlation.value == pytest.approx(scipy.stats.spearmanr(signal, seeds.mean(0)).statistic)
    halves = seeds[:2].mean(0), seeds[2:].mean(0)
    assert found.ceiling_correlation == pytest.approx(scipy.stats.spearmanr(*halves).statistic)
    agree = np.sign(np.diff(halves[0].reshape(-1, 2))) == np.sign(np.diff(halves[1].reshape(-1, 2)))
    assert found.ceiling_signs == pytest.approx(agree.mean())
    assert "30 marginal contributions; between halves of the seeds" in str(found)


@pytest.mark.parametrize(("predicted", "outcomes"), [(4, (4,)), (7, (7,)), (8, (6,)), (8, (2, 2, 8))])
def test_bad_input(predicted: int, outcomes: Any) -> None:
    with pytest.raises(DataError, match="one number per subset, in pairs, of at least 3 pairs"):
        surrogate_fidelity(np.arange(predicted), np.zeros(outcomes))
