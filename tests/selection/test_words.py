"""Words and hashed n-grams, against counting them one by one."""

import hashlib
import subprocess
import sys
import unicodedata
from itertools import groupby, product

import numpy as np
import pytest

from hfdataopt.selection import words as module
from hfdataopt.selection.words import hashed_counts, ngram_buckets, portions, words, words_and_punctuation

TEXTS = [
    "Don't stop: naïve CAFÉ_3 ... 你好!",
    "",
    "a a a",
    "one",
    "?! x",
    " \n\t",
    "Σίσυφος\u2028tab\tend",
    "เพชรรุ่ง, السَّلَام",
]


def kind(character):
    if character.isspace():
        return "space"
    return "word" if character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M" else "mark"


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
    assert words(text) == runs(text, {"word"})
    assert words_and_punctuation(text) == runs(text, {"word", "mark"})


@pytest.mark.parametrize("ngrams", [1, 2, 3])
def test_sha256_buckets_are_those_of_each_ngram(ngrams):
    found, lengths = ngram_buckets(TEXTS, ngrams, 97, "sha256")
    assert found.shape == (ngrams, lengths.sum())
    start = 0
    for text, length in zip(TEXTS, lengths, strict=True):
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
    names = [f"w{i}" for i in range(4000)]
    found, _ = ngram_buckets([" ".join(names)], 2, 10, "vectorised")
    for row in found:
        counts = np.bincount(row, minlength=11)[:10]
        assert ((counts - 400) ** 2 / 400).sum() < 27.9, "chi-squared with 9 degrees of freedom, p = 0.001"


def test_keys_of_different_words_differ():
    letters = "abcdefghij\x00é你"
    names = (
        [f"w{i}" for i in range(4000)] + ["".join(pair) for pair in product(letters, letters)] + ["a" * 99, "a" * 98]
    )
    names = sorted({word for name in names for word in words_and_punctuation(name)})
    found = module._Words(names, (1, 2))
    assert (found.lengths == 1).all()
    assert len(set(found.keys.tolist())) == len(names) > 4100


@pytest.mark.parametrize("hash", ["sha256", "vectorised"])
def test_no_text_and_no_words(hash):
    for texts in ([], [""], ["", " "]):
        found, lengths = ngram_buckets(texts, 2, 10, hash)
        assert found.shape == (2, 0)
        assert lengths.tolist() == [0] * len(texts)


def test_hashed_counts_are_the_sum_over_words():
    counts = hashed_counts(TEXTS, 16)
    assert counts.shape == (len(TEXTS), 16)
    for row, text in zip(counts, TEXTS, strict=True):
        each = hashed_counts(runs(text, {"word"}), 16)
        assert (each.sum(axis=1) == 1).all()
        assert row.tolist() == each.sum(axis=0).tolist()
    assert hashed_counts([], 16).shape == (0, 16)
    assert hashed_counts(["Word wORD", "word"], 16).tolist() == (hashed_counts(["word"], 16) * [[2], [1]]).tolist()


@pytest.mark.parametrize("slots", [1, 5, 1000])
def test_a_cache_of_any_size_changes_nothing(monkeypatch, slots):
    module._sha256_cache.cache_clear()
    expected = [ngram_buckets([text], 2, 97, "sha256")[0].tolist() for text in TEXTS]
    module._sha256_cache.cache_clear()
    monkeypatch.setattr(module, "SLOTS", slots)
    for _ in range(2):
        for text, buckets in zip(TEXTS, expected, strict=True):
            assert ngram_buckets([text], 2, 97, "sha256")[0].tolist() == buckets
    module._sha256_cache.cache_clear()


def test_the_cache_knows_only_the_last_key_of_a_slot():
    cache = module._Cache(10)
    cache.put(np.array([3, 13, 4, 23], dtype=np.uint64), np.array([30, 130, 0, 230]))
    assert cache.get(np.array([3, 13, 23, 4, 14, 0], dtype=np.uint64)).tolist() == [-1, -1, 230, 0, -1, -1]


def test_portions_are_all_texts_in_order_and_of_few_characters():
    texts = ["aaa", "bb", "", "cccccccc", "d", "e", "fff"]
    found = list(portions(texts, 5))
    assert found == [["aaa", "bb", ""], ["cccccccc"], ["d", "e", "fff"]]
    assert list(portions([])) == []


def test_buckets_are_the_same_in_another_process():
    code = "from hfdataopt.selection.words import ngram_buckets; print(ngram_buckets(['a b c a b'], 2, 1000, 'vectorised')[0].tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ngram_buckets(["a b c a b"], 2, 1000, "vectorised")[0].tolist())
