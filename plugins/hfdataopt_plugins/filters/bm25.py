"""BM25: how well a row answers the target's rows as queries (Robertson and Zaragoza 2009; tokens and stop words of bm25s)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.errors import DataError, MissingDependencyError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.filter import TextFilter
from hfdataopt.selection.source import Batch, Source
from hfdataopt.selection.words import portions

_TOKEN = re.compile(r"\w\w+")  # finds what bm25s' \b\w\w+\b finds, in less time


@dataclass(frozen=True)
class Postings:
    """The queries by word.

    Attributes:
        starts: ``[words + 1]``, where the postings of each word begin.
        query: ``[postings]``, which query holds the word.
        weight: ``[postings]`` float64, what the word adds to the score of the query in a row that is full of it.
        queries: how many.
    """

    starts: np.ndarray
    query: np.ndarray
    weight: np.ndarray
    queries: int

    @classmethod
    def of(cls, queries: list[list[int]], idf: np.ndarray) -> "Postings":
        """Of each query's words, ``idf [words]`` times how often it holds them."""
        query = np.repeat(np.arange(len(queries)), [len(words) for words in queries])
        words = np.fromiter(chain.from_iterable(queries), dtype=np.intp)
        cells, counts = np.unique(words * len(queries) + query, return_counts=True)
        words, query = np.divmod(cells, len(queries))
        starts = np.searchsorted(words, np.arange(len(idf) + 1))
        return cls(starts, query, counts * idf[words], len(queries))

    def scores(self, rows: np.ndarray, words: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
        """``[count, queries]``: the sum over a row's words of value times weight, added in the order of the words."""
        sizes = self.starts[words + 1] - self.starts[words]
        firsts = self.starts[words] - (sizes.cumsum() - sizes)
        where = np.repeat(firsts, sizes) + np.arange(sizes.sum())
        cells = np.repeat(rows, sizes) * self.queries + self.query[where]
        parts = np.repeat(values, sizes) * self.weight[where]
        return np.bincount(cells, parts, count * self.queries).reshape(count, self.queries)


@dataclass(frozen=True)
class Bm25(TextFilter):
    """Okapi BM25 of each row for the target's rows as queries, their mean or maximum.

    ``sum over words w of the query of idf(w) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|))``, f the frequency of w in the row and
    ``idf(w) = ln((N - df + 0.5) / (df + 0.5) + 1)``; N, df and the mean length are those of the rows that ``fit`` reads.

    Args:
        k1: how slowly a word's weight saturates with its frequency.
        b: how much a long row is marked down, 0 to 1.
        aggregate: over queries.
        stopwords: a language that bm25s has stop words of, such as ``english``; None keeps all words.
    """

    name: ClassVar[str] = "bm25"
    meaning: ClassVar[str] = "the text shares rare words with the target"
    needs_target: ClassVar[bool] = True

    k1: float = 1.5
    b: float = 0.75
    aggregate: Literal["mean", "max"] = "mean"
    stopwords: str | None = "english"
    vocabulary: dict[str, int] | None = field(default=None, init=False, repr=False, compare=False)
    words: int = field(default=0, init=False, repr=False, compare=False)
    mean_length: float = field(default=0.0, init=False, repr=False, compare=False)
    postings: Postings | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "k1", at_least=0)
        check_range(self, "b", at_least=0, at_most=1)

    def learn(self, pool: Source, target: Source | None) -> None:
        assert target is not None
        tokenizer = self._tokenizer()
        queries = tokenizer.tokenize(list(target.texts()), return_as="ids", show_progress=False, allow_empty=False)
        vocabulary = tokenizer.get_vocab_dict()
        count = len(vocabulary)
        if not count:
            raise DataError(f"{self.name}: target has no words in {list(target.read)} but stop words or single letters")
        self.set(words=count, vocabulary=vocabulary | dict.fromkeys(tokenizer.stopwords, count + 1))
        rows, length, frequency = 0, 0, np.zeros(count)
        for batch in pool.batches():
            for _, words, _, lengths in self._found(batch):
                frequency += np.bincount(words, minlength=count)
                rows, length = rows + len(lengths), length + int(lengths.sum())
        if not length:
            raise DataError(f"{self.name}: {pool.what} has no words in {list(pool.read)}")
        idf = np.log((rows - frequency + 0.5) / (frequency + 0.5) + 1)
        if self.aggregate == "mean":  # linear in the query, so that of all queries as one
            queries, idf = [list(chain.from_iterable(queries))], idf / len(queries)
        self.set(mean_length=length / rows, postings=Postings.of(queries, idf))

    def _tokenizer(self) -> Any:
        try:
            from bm25s.tokenization import Tokenizer
        except ImportError as error:
            raise MissingDependencyError("bm25: needs bm25s; pip install 'hfdataopt[filters]'") from error
        try:
            return Tokenizer(stopwords=self.stopwords)
        except ValueError as error:
            raise OptionError(f"bm25: stopwords={self.stopwords!r} is unknown to bm25s: {error}") from error

    def _found(self, batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Of a few rows at a time: row, word and frequency of each word that a query holds, and ``[rows]`` lengths."""
        assert self.vocabulary is not None
        other, stop = self.words, self.words + 1
        for texts in portions(batch.texts):
            tokens = [_TOKEN.findall(text.lower()) for text in texts]
            sizes = np.fromiter(map(len, tokens), dtype=np.intp, count=len(tokens))
            known = map(self.vocabulary.get, chain.from_iterable(tokens), repeat(other))
            words = np.fromiter(known, dtype=np.intp, count=int(sizes.sum()))
            rows = np.repeat(np.arange(len(tokens)), sizes)
            lengths = np.bincount(rows[words != stop], minlength=len(tokens))
            asked = words < other
            cells, frequency = np.unique(rows[asked] * self.words + words[asked], return_counts=True)
            yield cells // self.words, cells % self.words, frequency, lengths

    def score(self, batch: Batch) -> np.ndarray:
        assert self.postings is not None
        scores = [np.zeros(0)]
        for rows, words, frequency, lengths in self._found(batch):
            damping = self.k1 * (1 - self.b + self.b * lengths / self.mean_length)
            values = frequency * (self.k1 + 1) / (frequency + damping[rows])
            scores.append(self.postings.scores(rows, words, values, len(lengths)).max(axis=1))
        return np.concatenate(scores)


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(Bm25)
