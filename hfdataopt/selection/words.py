"""Words and n-grams of texts in hashed buckets, the same in every process."""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal

import numpy as np

from hfdataopt.selection.keys import keys_of, mix

CACHED = 2**19  # strings, some 100 bytes each

_WORD = re.compile(r"\w+")
_WORD_OR_PUNCTUATION = re.compile(r"\w+|[^\w\s]+")


class _Cache(dict[str, int]):
    """A function of a string, kept for up to ``limit`` strings; a look-up costs no call of Python."""

    def __init__(self, function: Callable[[str], int], limit: int = CACHED):
        super().__init__()
        self.function = function
        self.limit = limit

    def __missing__(self, text: str) -> int:
        if len(self) >= self.limit:
            self.clear()
        value = self[text] = self.function(text)
        return value


_word_keys = _Cache(lambda word: int(keys_of([word])[0]))


@functools.lru_cache(maxsize=4)
def _sha256_buckets(buckets: int) -> _Cache:
    def bucket(ngram: str) -> int:
        return int.from_bytes(hashlib.sha256(ngram.encode("utf-8", "surrogatepass")).digest(), "big") % buckets

    return _Cache(bucket)


def words(text: str) -> list[str]:
    """Lower-case words."""
    return _WORD.findall(text.lower())


def words_and_punctuation(text: str) -> list[str]:
    """Lower-case words and runs of punctuation marks."""
    return _WORD_OR_PUNCTUATION.findall(text.lower())


def hashed_counts(texts: Sequence[str], buckets: int) -> np.ndarray:
    """``[texts, buckets]`` float64: how many words of each text fall into each bucket."""
    keys, lengths = _flat_keys([words(text) for text in texts])
    rows = np.repeat(np.arange(len(texts)), lengths)
    cells = rows * buckets + (keys % np.uint64(buckets)).astype(np.intp)
    return np.bincount(cells, minlength=len(texts) * buckets).reshape(len(texts), buckets).astype(np.float64)


def ngram_buckets(
    texts: Sequence[str], ngrams: int, buckets: int, hash: Literal["sha256", "vectorised"]
) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of all 1- to n-grams of words and punctuation.

    Args:
        hash: ``sha256`` of the n-gram's words with a space between, modulo the number of buckets; ``vectorised`` combines 64-bit
            hashes of the words in numpy.

    Returns:
        ``[ngrams, words of all texts]`` the bucket of the n-gram that begins with this word, or ``buckets`` where it would
        run past the end of its text; and ``[texts]``, the number of words of each.
    """
    tokens = [words_and_punctuation(text) for text in texts]
    if hash == "vectorised":
        keys, lengths = _flat_keys(tokens)
        flat: list[str] = []
    else:
        flat, lengths = list(chain.from_iterable(tokens)), _lengths(tokens)
    rows = np.repeat(np.arange(len(texts)), lengths)
    found = np.full((ngrams, len(rows)), buckets, dtype=np.intp)
    combined = np.zeros(0, dtype=np.uint64)
    for n in range(1, ngrams + 1):
        count = max(0, len(rows) - n + 1)
        if hash == "vectorised":
            combined = keys if n == 1 else mix(combined[:count]) + keys[n - 1 :]
            values = (combined % np.uint64(buckets)).astype(np.intp)
        else:
            strings = flat if n == 1 else map(" ".join, zip(*(flat[start:] for start in range(n)), strict=False))
            values = np.fromiter(map(_sha256_buckets(buckets).__getitem__, strings), dtype=np.intp, count=count)
        found[n - 1, :count] = np.where(rows[:count] == rows[n - 1 :], values, buckets)
    return found, lengths


def _lengths(tokens: list[list[str]]) -> np.ndarray:
    return np.fromiter(map(len, tokens), dtype=np.intp, count=len(tokens))


def _flat_keys(tokens: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """64-bit keys of the words of all texts, one after the other, and ``[texts]`` how many each has."""
    lengths = _lengths(tokens)
    keys = map(_word_keys.__getitem__, chain.from_iterable(tokens))
    return np.fromiter(keys, dtype=np.uint64, count=int(lengths.sum())), lengths
