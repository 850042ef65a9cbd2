"""Words and n-grams of texts in hashed buckets, the same in every process."""

import functools
import hashlib
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import regex  # has Unicode's own \w, which holds combining marks together; transformers depends on it

from hfdataopt.selection.keys import mix

SLOTS = 2**21  # n-grams whose sha256 is kept, 12 bytes each

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


def portions(texts: Sequence[str], characters: int = 2**17) -> Iterator[Sequence[str]]:
    """Consecutive texts of so many characters together, or one that is longer, so that little is held in memory at a time."""
    start = size = 0
    for end, text in enumerate(texts):
        if end > start and size + len(text) > characters:
            yield texts[start:end]
            start, size = end, 0
        size += len(text)
    if start < len(texts):
        yield texts[start:]


def hashed_counts(texts: Sequence[str], buckets: int) -> np.ndarray:
    """``[texts, buckets]`` float64: how many words of each text fall into each bucket; punctuation is left out."""
    found = _Words(texts, (1,))
    cells = np.repeat(np.arange(len(texts)), found.lengths) * buckets + (found.keys % np.uint64(buckets)).astype(
        np.intp
    )
    return np.bincount(cells, minlength=len(texts) * buckets).reshape(len(texts), buckets).astype(np.float64)


def ngram_buckets(
    texts: Sequence[str], ngrams: int, buckets: int, hash: Literal["sha256", "vectorised"]
) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of all 1- to n-grams of words and punctuation.

    Args:
        hash: ``sha256`` of the n-gram's words with a space between, modulo the number of buckets; ``vectorised`` is a 64-bit key
            computed from the characters in numpy, modulo the number of buckets.

    Returns:
        ``[ngrams, words of all texts]`` the bucket of the n-gram that begins with this word, or ``buckets`` where it would
        run past the end of its text; and ``[texts]``, the number of words of each.
    """
    words = _Words(texts, (1, 2))
    rows = np.repeat(np.arange(len(texts)), words.lengths)
    found = np.full((ngrams, len(rows)), buckets, dtype=np.intp)
    keys = words.keys
    for n in range(1, min(ngrams, len(rows)) + 1):
        if n > 1:
            keys = mix(keys[:-1]) + words.keys[n - 1 :]
        inside = np.flatnonzero(rows[: len(keys)] == rows[n - 1 :])
        if hash == "vectorised":
            found[n - 1, inside] = keys[inside] % np.uint64(buckets)
        else:
            found[n - 1, inside] = _sha256_buckets(words, inside, keys[inside], n, buckets)
    return found, words.lengths


class _Cache:
    """The bucket of an n-gram by its key, where the last n-gram of its slot had that key: constant memory, look-ups in numpy.

    Of a million n-grams, two have the same key, and so would share a bucket, with a chance of 3e-8.
    """

    def __init__(self, slots: int):
        self.keys = np.zeros(slots, dtype=np.uint64)
        self.values = np.zeros(slots, dtype=np.int32)  # bucket + 1; 0 for none

    def get(self, keys: np.ndarray) -> np.ndarray:
        """``[keys]``: buckets, or -1."""
        slots = keys % np.uint64(len(self.keys))
        return np.where(self.keys[slots] == keys, self.values[slots], 0).astype(np.intp) - 1

    def put(self, keys: np.ndarray, buckets: np.ndarray) -> None:
        slots = keys % np.uint64(len(self.keys))
        _, last = np.unique(slots[::-1], return_index=True)  # one key for each slot
        last = len(slots) - 1 - last
        self.keys[slots[last]], self.values[slots[last]] = keys[last], buckets[last] + 1


@functools.lru_cache(maxsize=2)
def _sha256_cache(buckets: int, thread: int) -> _Cache:
    return _Cache(SLOTS)


def _sha256_buckets(words: "_Words", places: np.ndarray, keys: np.ndarray, n: int, buckets: int) -> np.ndarray:
    """``[places]``: the buckets of the n-grams that begin there and have these keys."""
    cache = _sha256_cache(buckets, threading.get_ident())
    values = cache.get(keys)
    unknown = np.flatnonzero(values < 0)
    new, first, inverse = np.unique(keys[unknown], return_index=True, return_inverse=True)
    firsts = places[unknown[first]]
    parts = [
        [words.text[start:end] for start, end in zip(words.starts[at].tolist(), words.ends[at].tolist(), strict=True)]
        for at in (firsts + place for place in range(n))
    ]
    ngrams = map(" ".join, zip(*parts, strict=True))
    digests = (hashlib.sha256(ngram.encode("utf-8", "surrogatepass")).digest() for ngram in ngrams)
    found = np.array([int.from_bytes(digest, "big") % buckets for digest in digests], dtype=np.intp)
    cache.put(new, found)
    values[unknown] = found[inverse]
    return values


class _Words:
    """The lower-case words of several texts, found in numpy as ``words_and_punctuation`` finds them.

    Args:
        kinds: 1 for words, 2 for runs of punctuation marks.

    Attributes:
        text: all texts, in lower case, on lines of their own.
        starts, ends: ``[words]``, where in ``text`` each is.
        keys: ``[words]`` uint64, a hash of the word: a sum over its characters of code times a number that goes with the place
            (multilinear hashing), mixed.
        lengths: ``[texts]``, how many words each has.
    """

    def __init__(self, texts: Sequence[str], kinds: tuple[int, ...]):
        lower = [text.lower() for text in texts]
        self.text = "\n".join([*lower, ""])
        codes = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        found = _kinds()[codes]
        starts = np.flatnonzero(np.diff(found, prepend=255 if len(codes) else 0))
        sizes = np.diff(starts, append=len(codes))
        places = np.arange(len(codes)) - np.repeat(starts, sizes)
        factors = mix(np.arange(sizes.max(initial=0), dtype=np.uint64))
        sums = (
            np.add.reduceat(factors[places] * (codes + np.uint64(1)), starts) if len(codes) else codes.astype(np.uint64)
        )
        kept = np.isin(found[starts], kinds)
        self.starts = starts[kept]
        self.ends = self.starts + sizes[kept]
        self.keys = mix(sums[kept])
        stops = np.cumsum([len(text) + 1 for text in lower], dtype=np.intp)
        self.lengths = np.diff(np.searchsorted(self.starts, stops), prepend=0)


@functools.cache
def _kinds() -> np.ndarray:
    """``[code points]``: 1 for a character of words, 2 for a mark, 0 for white space."""
    kinds = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    characters = np.arange(len(kinds), dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    for kind, pattern in ((1, _WORD), (2, _MARK)):
        for run in regex.finditer(pattern, characters):
            kinds[run.start() : run.end()] = kind
    return kinds


def word_vectors(texts: Sequence[str]) -> np.ndarray:
    """``[texts, 256]``: counts of words in hashed buckets, damped by a square root; by them ``diverse`` tells texts apart."""
    return np.sqrt(hashed_counts(texts, 256))
