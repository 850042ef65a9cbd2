"""DSIR: importance weights of rows by hashed n-grams (Xie et al. 2023, "Data Selection for Language Models via Importance
Resampling")."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.console import say
from hfdataopt.errors import DataError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.filter import TextFilter
from hfdataopt.selection.source import Batch, Source
from hfdataopt.selection.words import ngram_buckets, portions
from hfdataopt.statistics import rank_correlation

SMOOTHING = 1e-8
LENGTH = 0.7  # the rank correlation of score and length from which on it is told
UNIT = 2.0**-30  # weights are whole multiples of it, so that their sum does not depend on its order


@dataclass(frozen=True)
class Dsir(TextFilter):
    """The log importance weight ``sum over n-grams of ln(p_target + 1e-8) - ln(p_pool + 1e-8)``, p the share of the n-gram's bucket.

    Buckets are those of the authors' package: lower-case words and punctuation, unigrams to ``ngrams``-grams, sha256. The
    rule ``top`` takes the highest weights; ``sample`` draws rows by their weights without replacement, as the paper does.

    Args:
        ngrams: the longest n-gram.
        buckets: how many.
        hash: ``sha256`` has the authors' buckets; ``vectorised`` has others, and is faster.
        reduction: ``sum``, as published, which follows the length of a row, above all where the target is small (that is said at fit);
            or ``per-token``, the mean over the n-grams, which does not.
    """

    name: ClassVar[str] = "dsir"
    meaning: ClassVar[str] = "n-grams of the text are more frequent in the target than in the dataset"
    needs_target: ClassVar[bool] = True

    ngrams: int = 2
    buckets: int = 10_000
    hash: Literal["sha256", "vectorised"] = "sha256"
    reduction: Literal["sum", "per-token"] = "sum"
    weights: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "ngrams", at_least=1)
        check_range(self, "buckets", at_least=2)

    def learn(self, pool: Source, target: Source | None) -> None:
        assert target is not None
        ratio = np.log(self._shares(target) + SMOOTHING) - np.log(self._shares(pool) + SMOOTHING)
        weights = np.rint(ratio / UNIT).astype(np.int64)
        self.set(weights=np.append(weights, 0))  # the last is that of no n-gram
        if self.reduction == "sum":
            self._tell_of_length(next(pool.batches()))

    def _tell_of_length(self, batch: Batch) -> None:
        """Where the target is small, nearly every n-gram is rarer there, and the sum is minus the length."""
        correlation = rank_correlation(self.score(batch), [len(text) for text in batch.texts])
        if abs(correlation) > LENGTH:
            say(
                f"{self.name}: the sum over n-grams ranks rows by length (rank correlation {correlation:+.2f}), as it does when the "
                "target is small; the reduction per-token takes the length out"
            )

    def _shares(self, source: Source) -> np.ndarray:
        """``[buckets]``, the share of each in all n-grams."""
        counts = np.zeros(self.buckets + 1, dtype=np.int64)
        for batch in source.batches():
            for found, _ in self._found(batch):
                counts += np.bincount(found.ravel(), minlength=len(counts))
        total = counts[:-1].sum()
        if not total:
            raise DataError(f"{self.name}: {source.what} has no words in {list(source.read)}")
        return counts[:-1] / total

    def _found(self, batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for texts in portions(batch.texts):
            yield ngram_buckets(texts, self.ngrams, self.buckets, self.hash)

    def score(self, batch: Batch) -> np.ndarray:
        assert self.weights is not None
        scores = [np.zeros(0)]
        for found, lengths in self._found(batch):
            running = np.concatenate([[0], self.weights[found].sum(axis=0).cumsum()])
            ends = lengths.cumsum()
            sums = (running[ends] - running[ends - lengths]) * UNIT
            if self.reduction == "per-token":
                sums /= np.maximum(1, sum(np.maximum(0, lengths - n) for n in range(self.ngrams)))
            scores.append(sums)
        return np.concatenate(scores)


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(Dsir)
