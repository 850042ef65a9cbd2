"""The promises of every filter, and what this one computes."""

import pytest
from datasets import Dataset
from hfdataopt_repetition import Repetition

from hfdataopt import select, threshold
from hfdataopt.errors import OptionError
from hfdataopt.testing import conformance


@conformance(Repetition(ngram=2))
def test_contract(check):
    check()


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a bb ccc dddd", 0.0),
        ("a bb a bb ccc", 6 / 9),  # `a bb` twice
        ("go go go", 1.0),  # overlapping
        ("A bb, a BB.", 1.0),
        ("word", 0.0),
        ("", 0.0),
    ],
)
def test_the_share_of_characters_in_repeated_ngrams(text, share):
    assert Repetition(ngram=2).repeated(text) == pytest.approx(share)


def test_it_drops_what_repeats():
    texts = ["buy now " * 8, "the cat sat on the mat while it rained outside", "we say it once and we say it twice"]
    kept = select(Dataset.from_dict({"text": texts}), Repetition(rule=threshold(-0.15)))
    assert kept["text"][:] == texts[1:]


def test_an_ngram_has_a_word():
    with pytest.raises(OptionError, match="ngram=0 must be at least 1"):
        Repetition(ngram=0)
