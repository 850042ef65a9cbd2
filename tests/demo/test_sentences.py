import re

import numpy as np
import pytest

from hfdataopt.demo.sentences import LABEL_NAMES, demo_dataset, flip_labels, generate


def test_rows_are_balanced_different_and_reproducible():
    rows = generate(400, seed=3)
    assert rows == generate(400, seed=3)
    assert rows != generate(400, seed=4)
    assert sum(row["label"] for row in rows) == 200
    assert len({row["text"] for row in rows}) == 400
    assert all(re.fullmatch(r"[A-Z][\w ,.]+\.", row["text"]) for row in rows)


def test_unlabelled_text_has_no_label_and_shares_no_judgement_with_labelled_text():
    unlabelled = generate(2000, seed=5, labelled=False)
    assert all(set(row) == {"text"} for row in unlabelled)

    def sentences(rows):
        return {sentence for row in rows for sentence in re.split(r"(?<=\.) ", row["text"])}

    asides = re.compile(r" (told me about|tried) it |^(I came across|We found) it |^It was a present ")
    shared = sentences(unlabelled) & sentences(generate(2000, seed=5))
    assert shared
    assert all(asides.search(sentence) for sentence in shared)


def test_demo_splits_are_disjoint_and_typed():
    splits = demo_dataset(train=60, validation=30, test=40)
    assert {name: len(split) for name, split in splits.items()} == {"train": 60, "validation": 30, "test": 40}
    texts = [text for split in splits.values() for text in split["text"]]
    assert len(set(texts)) == 130
    assert splits["train"].column_names == ["text", "label"]
    assert tuple(splits["test"].features["label"].names) == LABEL_NAMES


@pytest.mark.parametrize("classes", [2, 6])
def test_flips_are_counted_marked_and_go_to_another_class(classes):
    labels = [i % classes for i in range(150)]
    flipped, mask = flip_labels(labels, 0.1, seed=1)
    assert sum(mask) == 15
    assert [a != b for a, b in zip(labels, flipped, strict=True)] == mask
    assert set(flipped) <= set(range(classes))
    assert (flipped, mask) == flip_labels(labels, 0.1, seed=1)
    assert mask != flip_labels(labels, 0.1, seed=2)[1]


def test_flips_refuse_what_cannot_be_flipped():
    assert flip_labels([], 0.5, seed=0) == ([], [])
    with pytest.raises(ValueError, match="fraction"):
        flip_labels([0, 1], 1.5, seed=0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        flip_labels([0, 0], 0.5, seed=0)


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 2)])
def test_no_bag_of_words_solves_it(ngrams):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    splits = demo_dataset()
    words = CountVectorizer(ngram_range=ngrams, token_pattern=r"\w+")
    train = words.fit_transform(splits["train"]["text"])
    test = words.transform(splits["test"]["text"])
    accuracy = max(
        LogisticRegression(C=c, max_iter=2000)
        .fit(train, np.array(splits["train"]["label"]))
        .score(test, np.array(splits["test"]["label"]))
        for c in (0.1, 1.0, 10.0)
    )
    assert accuracy < 0.9
