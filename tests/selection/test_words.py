"""Words and hashed n-grams, against counting them one by one."""

import hashlib
import subprocess
import sys
from itertools import groupby

import numpy as np
import pytest

from hfdataopt.selection import words as module
from hfdataopt.selection.keys import keys_of
from hfdataopt.selection.words import hashed_counts, ngram_buckets, words, words_and_punctuation

TEXTS = ["Don't stop: naïve CAFÉ_3 ... 你好!", "", "a a a", "one", "?! x", " \n\t", "Σίσυφος\u2028tab\tİstanbul"]


def kind(character):
    return "space" if character.isspace() else "word" if character.isalnum() or character == "_" else "mark"


def runs(text, kinds):
    return ["".join(run) for name, run in groupby(text.lower(), kind) if name in kinds]


def grams(text, ngrams):
    """The n-grams that begin with each word, by n."""
    found = runs(text, {"word", "mark"})
    return [[" ".join(found[i : i + n]) for i in range(len(found) - n + 1)] for n in range(1, ngrams + 1)]


def sha256(text, buckets):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % buckets


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_runs_of_one_kind_of_character(text):
    combining = "\u0307"  # İ in lower case is i and a combining dot, no letter by itself
    assert words(text) == [word for word in runs(text.replace("İ", "I"), {"word"})] or combining in text.lower()
    assert words_and_punctuation(text.replace("İ", "I")) == runs(text.replace("İ", "I"), {"word", "mark"})


@pytest.mark.parametrize("ngrams", [1, 2, 3])
def test_sha256_buckets_are_those_of_each_ngram(ngrams):
    texts = [text.replace("İ", "I") for text in TEXTS]
    found, lengths = ngram_buckets(texts, ngrams, 97, "sha256")
    assert found.shape == (ngrams, lengths.sum())
    start = 0
    for text, length in zip(texts, lengths, strict=True):
        for row, expected in zip(found[:, start : start + length], grams(text, ngrams), strict=True):
            assert row[: len(expected)].tolist() == [sha256(gram, 97) for gram in expected]
            assert (row[len(expected) :] == 97).all(), "an n-gram never reaches into the next text"
        start += length


def test_buckets_of_the_authors_package():
    """Found by ``get_ngram_counts(text, 2, 10000)`` of data-selection 1.0.3."""
    authors = [348, 360, 1331, 2986, 3020, 4028, 4396, 4818, 5771, 6297, 6338, 7023, 8184, 8502, 8561, 8935, 9214]
    found, _ = ngram_buckets(TEXTS[:1], 2, 10_000, "sha256")
    assert sorted(found.ravel()) == [*authors, 9440, 9959, 10_000]


def test_vectorised_buckets_depend_on_the_ngram_and_on_its_order_alone():
    texts = ["x y z", "y z x", "y x", "x y", "", "x"]
    found, lengths = ngram_buckets(texts, 3, 10**9, "vectorised")
    seen = {}
    start = 0
    for text, length in zip(texts, lengths, strict=True):
        for row, expected in zip(found[:, start : start + length], grams(text, 3), strict=True):
            for bucket, gram in zip(row, expected, strict=False):
                assert seen.setdefault(gram, bucket) == bucket
            assert (row[len(expected) :] == 10**9).all()
        start += length
    assert len(seen) == len(set(seen.values())) == 9, "x, y, z, xy, yz, zx, yx, xyz, yzx"


def test_vectorised_buckets_are_spread_evenly():
    text = " ".join(f"w{i}" for i in range(4000))
    found, _ = ngram_buckets([text], 2, 10, "vectorised")
    for row in found:
        counts = np.bincount(row, minlength=11)[:10]
        assert ((counts - 400) ** 2 / 400).sum() < 27.9, "chi-squared with 9 degrees of freedom, p = 0.001"


@pytest.mark.parametrize("hash", ["sha256", "vectorised"])
def test_no_text_and_no_words(hash):
    for texts in ([], [""], ["", " "]):
        found, lengths = ngram_buckets(texts, 2, 10, hash)
        assert found.shape == (2, 0)
        assert lengths.tolist() == [0] * len(texts)


def test_hashed_counts_against_counting():
    counts = hashed_counts(TEXTS, 16)
    assert counts.shape == (len(TEXTS), 16)
    for row, text in zip(counts, TEXTS, strict=True):
        expected = np.zeros(16)
        for word in words(text):
            expected[int(keys_of([word])[0]) % 16] += 1
        assert row.tolist() == expected.tolist()
    assert hashed_counts([], 16).shape == (0, 16)


def test_the_cache_is_bounded_and_changes_nothing():
    cache = module._Cache(len, 3)
    texts = ["a", "bb", "a", "ccc", "dddd", "a", "bb", "", "bb"]
    sizes = []
    for text in texts:
        assert cache[text] == len(text)
        sizes.append(len(cache))
    assert max(sizes) == 3
    assert list(map(cache.__getitem__, texts)) == list(map(len, texts))


def test_buckets_are_the_same_in_another_process():
    code = "from hfdataopt.selection.words import *; print(ngram_buckets(['a b c a b'], 2, 1000, 'vectorised')[0].tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ngram_buckets(["a b c a b"], 2, 1000, "vectorised")[0].tolist())
