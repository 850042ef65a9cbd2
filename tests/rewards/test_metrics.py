"""Metrics of one pair."""

import pytest

from hfdataopt.rewards import accuracy, exact_match, token_f1
from hfdataopt.rewards.metrics import normalise


def test_exact_match_ignores_white_space_around_only():
    assert exact_match(" Paris\n", "Paris") == 1.0
    assert exact_match("paris", "Paris") == 0.0
    assert exact_match("Paris.", "Paris") == 0.0


def test_normalisation_is_squads():
    assert normalise("The  cat's, a dog!") == "cats dog"
    assert normalise("Theatre") == "theatre"


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("the cat sat", "A cat sat down.", 2 * 2 / (2 + 3)),
        ("cat cat cat", "cat dog", 2 * 1 / (3 + 2)),
        ("cat", "dog", 0.0),
        ("the", "", 1.0),
        ("", "dog", 0.0),
        ("Dog!", "the dog", 1.0),
    ],
)
def test_token_f1_by_hand(prediction, reference, value):
    assert token_f1(prediction, reference) == pytest.approx(value)
    assert token_f1(reference, prediction) == pytest.approx(value)


def test_accuracy_compares_labels_and_numbers():
    assert accuracy(" Positive.", "positive") == 1.0
    assert accuracy("not positive", "positive") == 0.0
    assert accuracy("7.0", 7) == accuracy("1,000", "1000") == 1.0
    assert accuracy("17", "1.7") == 0.0


@pytest.mark.parametrize("metric", [exact_match, accuracy, token_f1])
def test_the_best_of_several_references_counts(metric):
    assert metric("dog", ["cat", "dog"]) == 1.0
    assert metric("dog", ["cat", "bird"]) == 0.0
    for bad in (None, [], ["dog", None]):
        with pytest.raises(ValueError, match="a string or a list of strings"):
            metric("dog", bad)
