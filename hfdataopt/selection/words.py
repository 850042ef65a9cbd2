"""Words and n-grams of texts in hashed buckets, the same in every process."""

import functools
import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np
import regex  # has Unicode's own \w, which holds combining marks together; transformers depends on it

from hfdataopt.selection.keys import mix

CACHED = 2**19  # n-grams, some 100 bytes each

_WORD = r"\w+"
_MARK = r"[^\w\s]+"
_BOTH = f"{_WORD}|{_MARK}"
_ASCII = {pattern: re.compile(pattern, re.ASCII).findall for pattern in (_WORD, _BOTH)}  # take half the time
_UNICODE = {pattern: regex.compile(pattern).findall for pattern in (_WORD, _BOTH)}


def words(text: str) -> list[str]:
    """Lower-case words."""
    return _find(_WORD, text.lower())


def words_and_punctuation(text: str) -> list[str]:
    """Lower-case words and runs of punctuation marks, as nltk 3.10 splits them; before, it split words at combining marks."""
    return _find(_BOTH, text.lower())


def _find(pattern: str, text: str) -> list[str]:
    return (_ASCII if text.isascii() else _UNICODE)[pattern](text)


def hashed_counts(texts: Sequence[str], buckets: int) -> np.ndarray:
    """``[texts, buckets]`` float64: how many words of each text fall into each bucket; punctuation is left out."""
    keys, lengths = _keys(texts, punctuation=False)
    cells = np.repeat(np.arange(len(texts)), lengths) * buckets + (keys % np.uint64(buckets)).astype(np.intp)
    return np.bincount(cells, minlength=len(texts) * buckets).reshape(len(texts), buckets).astype(np.float64)


def ngram_buckets(
    texts: Sequence[str], ngrams: int, buckets: int, hash: Literal["sha256", "vectorised"]
) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of all 1- to n-grams of words and punctuation.

    Args:
        hash: ``sha256`` of the n-gram's words with a space between, modulo the number of buckets; ``vectorised`` is computed
            from the characters in numpy.

    Returns:
        ``[ngrams, words of all texts]`` the bucket of the n-gram that begins with this word, or ``buckets`` where it would
        run past the end of its text; and ``[texts]``, the number of words of each.
    """
    if hash == "sha256":
        values, lengths = _sha256_values(texts, ngrams, buckets)
    else:
        keys, lengths = _keys(texts)
        values = _combined(keys, ngrams, buckets)
    rows = np.repeat(np.arange(len(texts)), lengths)
    found = np.full((ngrams, len(rows)), buckets, dtype=np.intp)
    for start, value in enumerate(values):
        count = len(value)
        found[start, :count] = np.where(rows[:count] == rows[start:], value, buckets)
    return found, lengths


# -- sha256


class _Sha256Buckets(dict[str, int]):
    """sha256 of a string modulo the number of buckets, kept for up to ``limit`` strings: a look-up of one runs no Python."""

    def __init__(self, buckets: int, limit: int = CACHED):
        super().__init__()
        self.buckets = buckets
        self.limit = limit

    def __missing__(self, text: str) -> int:
        if len(self) >= self.limit:
            self.clear()
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        value = self[text] = int.from_bytes(digest, "big") % self.buckets
        return value


_sha256_buckets = functools.lru_cache(maxsize=2)(_Sha256Buckets)


def _sha256_values(texts: Sequence[str], ngrams: int, buckets: int) -> tuple[Iterable[np.ndarray], np.ndarray]:
    """Per n ``[words - n + 1]`` buckets of the n-grams of the words of all texts, and ``[texts]`` how many words each has."""
    tokens = [words_and_punctuation(text) for text in texts]
    flat = list(chain.from_iterable(tokens))
    bucket = _sha256_buckets(buckets).__getitem__
    joined = (map(" ".join, zip(*(flat[start:] for start in range(n)), strict=False)) for n in range(2, ngrams + 1))
    values = (np.fromiter(map(bucket, strings), dtype=np.intp) for strings in chain([flat], joined))
    return values, np.array([len(found) for found in tokens], dtype=np.intp)


# -- vectorised


def _combined(keys: np.ndarray, ngrams: int, buckets: int) -> Iterable[np.ndarray]:
    """Per n ``[words - n + 1]`` buckets of the n-grams of words with these keys."""
    combined = keys
    for start in range(ngrams):
        if start:
            combined = mix(combined[:-1]) + keys[start:]
        yield (combined % np.uint64(buckets)).astype(np.intp)


def _keys(texts: Sequence[str], punctuation: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """``[words of all texts]`` uint64, a key of each, and ``[texts]`` how many each has.

    The key is a sum over characters of code times a number that goes with the place in the word (multilinear hashing), mixed.
    """
    lower = [text.lower() for text in texts]
    codes = np.frombuffer("\n".join(lower).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = _kinds()[codes]
    starts = np.concatenate([np.zeros(min(1, len(codes)), dtype=np.intp), np.flatnonzero(kinds[1:] != kinds[:-1]) + 1])
    sizes = np.diff(starts, append=len(codes))
    places = np.arange(len(codes)) - np.repeat(starts, sizes)
    factors = mix(np.arange(sizes.max(initial=0), dtype=np.uint64))
    sums = np.add.reduceat(factors[places] * (codes + np.uint64(1)), starts) if len(codes) else np.zeros(0, np.uint64)
    kept = kinds[starts] == 1 if not punctuation else kinds[starts] > 0
    ends = np.cumsum([len(text) + 1 for text in lower])
    return mix(sums[kept]), np.diff(np.searchsorted(starts[kept], ends), prepend=0)


@functools.cache
def _kinds() -> np.ndarray:
    """``[code points]``: 1 for a character of words, 2 for a mark, 0 for white space."""
    kinds = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    characters = "".join(map(chr, range(len(kinds))))
    for kind, pattern in ((1, _WORD), (2, _MARK)):
        for run in regex.finditer(pattern, characters):
            kinds[run.start() : run.end()] = kind
    return kinds
