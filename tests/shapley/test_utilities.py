"""Utilities equal loops over queries; ties, empty values, the two-class form, and callables."""

from __future__ import annotations

import math

import pytest
import torch

from hfdataopt.errors import DataError, OptionError
from hfdataopt.shapley.utilities import get_utility

from ._exact import utility_values

NAMES = ["margin", "accuracy", "log-likelihood"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 4])
def test_values_equal_a_loop(name: str, classes: int) -> None:
    random = torch.Generator().manual_seed(0)
    predictions = torch.randn(2, classes, 5, 7, generator=random, dtype=torch.float64)
    labels = torch.randint(0, classes, (7,), generator=random)
    found = get_utility(name, classes, labels).of_predictions(predictions)
    for batch in range(2):
        for step in range(5):
            expected = utility_values(name, predictions[batch, :, step].T, labels)
            torch.testing.assert_close(found[batch, step], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first_wins", [False, True])
def test_the_two_class_form_equals_the_general_one(name: str, first_wins: bool) -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    predictions = torch.tensor([[2.0, -0.3, 0.5, 0.5, -1.0, 0.2], [0.1, 0.4, 0.5, 0.5, 3.0, -0.4]]).double()[
        None, :, None
    ]
    signs = 2 * labels - 1
    margins = (predictions[:, 1] - predictions[:, 0]) * signs
    utility = get_utility(name, 2, labels, first_wins=first_wins)
    assert utility.of_margins is not None
    torch.testing.assert_close(utility.of_margins(margins), utility.of_predictions(predictions))


def test_ties_are_wrong_unless_the_first_class_wins() -> None:
    labels = torch.tensor([0, 1, 2])
    tied = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.5, 0.5, 0.1]]).double().T[None, :, None]
    assert get_utility("accuracy", 3, labels).of_predictions(tied).tolist() == [[[0, 0, 0]]]
    assert get_utility("accuracy", 3, labels, first_wins=True).of_predictions(tied).tolist() == [[[1, 0, 0]]]


def test_margins_are_clipped() -> None:
    predictions = torch.tensor([[5.0, -5.0], [0.0, 0.0]]).double()[None, :, None]
    assert get_utility("margin", 2, torch.tensor([0, 0])).of_predictions(predictions).tolist() == [[[1, -1]]]


def test_empty_values() -> None:
    labels = torch.tensor([0, 3])
    assert get_utility("margin", 4, labels).empty.tolist() == [0, 0]
    assert get_utility("accuracy", 4, labels).empty.tolist() == [0.25, 0.25]
    assert get_utility("cross_entropy", 4, labels).empty.tolist() == [-math.log(4)] * 2


def test_a_callable_sees_predictions_with_the_class_last() -> None:
    labels = torch.tensor([1, 0, 2])
    seen = []

    def first_logit(predictions: torch.Tensor, query_labels: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(predictions.shape), query_labels.tolist()))
        return predictions[:, :, 0].mean(dim=1) + 7

    utility = get_utility(first_logit, 3, labels)
    predictions = torch.randn(2, 3, 5, 3, dtype=torch.float64)
    expected = predictions[:, 0].mean(dim=2, keepdim=True) + 7
    torch.testing.assert_close(utility.of_predictions(predictions), expected)
    assert utility.empty.tolist() == [7]
    assert seen == [((1, 3, 3), [1, 0, 2]), ((5, 3, 3), [1, 0, 2]), ((5, 3, 3), [1, 0, 2])]


def test_bad_utilities_are_refused() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(OptionError, match=r"'acuracy'.*'margin'"):
        get_utility("acuracy", 2, labels)
    with pytest.raises(OptionError, match=r"returned \[3\]"):
        get_utility(lambda predictions, labels: torch.zeros(3), 2, labels)
    with pytest.raises(OptionError, match="returned float"):
        get_utility(lambda predictions, labels: 0.5, 2, labels)  # type: ignore[arg-type, return-value]
    with pytest.raises(DataError, match="not finite"):
        get_utility(lambda predictions, labels: torch.full((1,), torch.nan), 2, labels)
