"""Which pairs of answers to have labelled next for DPO: a D-optimal design in the last layer's features, or APL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.attribution.scores import count_of
from hfdataopt.errors import DataError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.rewards.texts import transcript
from hfdataopt.selection.design import d_optimal
from hfdataopt.selection.encoders import encode
from hfdataopt.selection.filter import WholeFilter
from hfdataopt.selection.local_models import Dtype
from hfdataopt.selection.preferences import pair_columns, pairs_of
from hfdataopt.selection.source import Batch, Source, check_columns


@dataclass(frozen=True)
class ActiveDPO(WholeFilter):
    """Reads pairs of answers (columns ``chosen`` and ``rejected``, in any order: they need no label yet).

    ``d-optimal`` (ADPO, Kveton et al. 2025): rows are taken one after the other, each the one that adds most to ``log det(ridge * I +
    sum of sigma(m) sigma(-m) phi phi')``, where ``phi = h(chosen) - h(rejected)`` and m is the margin of the current policy. The score
    is what a row added when it was taken, strictly falling, so that ``top`` keeps the design.

    ``certainty`` (APL, Muldrew et al. 2024): the score is ``|m|``; with ``entropy``, only rows in the upper ``shortlist`` of that column
    come first.

    Args:
        method: one of these.
        model: whose last hidden state is h, read over prompt and answer: the policy itself (hub id, folder, live model), or an
            encoder; conversations are read as lines ``role: content``.
        features: instead, two columns of lists, h of chosen and h of rejected.
        margins: a column of m, such as the score of ``log-ratio``; None: no policy yet, so all 0.
        entropy: a column of the policy's predictive entropy of the prompt, for ``certainty``.
        shortlist: the part of rows that the entropy lets through.
        design: rows to take; None for as many as the keep rule keeps, or all. The others' scores are what they would add.
        ridge: of the prior, in units of squared features; the smaller, the more directions come before repetition.
        pooling: where the hidden state is read: the ``last`` token, the ``mean``, ...
        processing_class: tokenizer of a live model.
        max_length, batch_size, device, dtype: of the forward passes.
    """

    name: ClassVar[str] = "active-dpo"
    meaning: ClassVar[str] = "more to learn from the label of a pair"

    method: Literal["d-optimal", "certainty"] = "d-optimal"
    model: Any = None
    features: tuple[str, str] | None = None
    margins: str | None = None
    entropy: str | None = None
    shortlist: float | None = None
    design: int | None = None
    ridge: float = 1.0
    pooling: Literal["auto", "mean", "first", "last"] = "last"
    processing_class: Any = None
    max_length: int | None = field(default=None, kw_only=True)
    batch_size: int = field(default=8, kw_only=True)
    device: str | None = field(default=None, kw_only=True)
    dtype: Dtype | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "ridge", above=0)
        check_range(self, "design", at_least=1)
        check_range(self, "shortlist", above=0, below=1)
        check_range(self, "max_length", at_least=1)
        check_range(self, "batch_size", at_least=1)
        if self.text is not None:
            raise OptionError(f"{self.name}: reads chosen and rejected; it has no use for text={self.text!r}")
        if self.method == "d-optimal":
            if (self.model is None) == (self.features is None):
                raise OptionError(
                    f"{self.name}: give either model= or features=, the columns of h(chosen) and h(rejected)"
                )
            if self.entropy is not None or self.shortlist is not None:
                raise OptionError(f"{self.name}: entropy= and shortlist= go with method='certainty'")
        elif self.margins is None or (self.entropy is None) != (self.shortlist is None):
            raise OptionError(
                f"{self.name}: method='certainty' needs margins=, and entropy= and shortlist= together or neither; got "
                f"margins={self.margins!r}, entropy={self.entropy!r}, shortlist={self.shortlist}"
            )
        elif self.model is not None or self.features is not None or self.design is not None:
            raise OptionError(f"{self.name}: model=, features= and design= go with method='d-optimal'")

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        more = [name for name in (*(self.features or ()), self.margins, self.entropy) if name is not None]
        check_columns(more, columns, self.name, what)
        return (*pair_columns(columns, self.name, what), *more)

    def score_all(self, pool: Source, target: Source | None) -> np.ndarray:
        batches = list(pool.batches())
        margins = _numbers(batches, self.margins)
        if self.method == "certainty":
            return self._certainty(np.abs(margins), batches)
        features = np.concatenate([self.vectors(batch) for batch in batches])
        known = ~np.isnan(features).any(axis=1) & ~np.isnan(margins)
        if not known.any():
            raise DataError(f"{self.name}: none of the {len(known)} rows has features and a margin")
        # In the order of keys, so that ties do not depend on the order of rows.
        keys = np.concatenate([batch.keys for batch in batches])
        places = np.flatnonzero(known)[np.argsort(keys[known], kind="stable")]
        weights = 1 / (2 + np.exp(margins[places]) + np.exp(-margins[places]))  # sigma(m) sigma(-m)
        order, gains = d_optimal(
            features[places], self._size(len(keys), len(places)), weights=weights, ridge=self.ridge
        )
        scores = np.full(len(known), np.nan)
        scores[places] = _falling(gains, order)
        return scores

    def hidden(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """``[rows, d]`` of the chosen and of the rejected answers; NaN for a row that lacks one."""
        if self.features is not None:
            first, second = (batch.vectors(name).astype(np.float64) for name in self.features)
            if first.shape != second.shape:
                raise DataError(
                    f"{self.name}: {self.features[0]} has {first.shape[1]} numbers, {self.features[1]} {second.shape[1]}"
                )
            return first, second
        pairs = pairs_of(batch)
        texts = [_text(pair[0], answer) for pair in pairs if pair is not None for answer in pair[1:]]
        found = encode(
            texts,
            self.model,
            pooling=self.pooling,
            batch_size=self.batch_size,
            max_length=self.max_length,
            processing_class=self.processing_class,
            device=self.device,
            dtype=self.dtype,
            who=self.name,
        )
        there = [place for place, pair in enumerate(pairs) if pair is not None]
        both = np.full((2, len(pairs), found.shape[1]), np.nan)
        both[0, there], both[1, there] = found[::2], found[1::2]
        return both[0], both[1]

    def vectors(self, batch: Batch) -> np.ndarray:
        """``[rows, d]`` float64: phi."""
        chosen, rejected = self.hidden(batch)
        return chosen.astype(np.float64) - rejected

    def _size(self, rows: int, known: int) -> int:
        size = self.design
        if size is None:
            k, fraction = getattr(self.rule, "k", None), getattr(self.rule, "fraction", None)
            size = known if k is None and fraction is None else count_of(k, fraction, rows)
        if size > known:
            raise OptionError(f"{self.name}: a design of {size} rows was asked for, but only {known} have features")
        return size

    def _certainty(self, certainty: np.ndarray, batches: list[Batch]) -> np.ndarray:
        if self.entropy is None:
            return certainty
        entropy = _numbers(batches, self.entropy)
        known = ~np.isnan(entropy) & ~np.isnan(certainty)
        if not known.any():
            return np.full(len(certainty), np.nan)
        assert self.shortlist is not None
        limit = np.sort(entropy[known])[-count_of(None, self.shortlist, int(known.sum()))]
        below = np.where(entropy >= limit, 0.0, certainty[known].max() + 1)
        return np.where(known, certainty - below, np.nan)


def _numbers(batches: Sequence[Batch], column: str | None) -> np.ndarray:
    """``[rows]`` of a column; zeros where there is none."""
    return np.concatenate([np.zeros(len(batch)) if column is None else batch.numbers(column) for batch in batches])


def _text(prompt: Any, answer: Any) -> str:
    return prompt + answer if isinstance(prompt, str) else transcript([*prompt, *answer])


def _falling(gains: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The gains with those that were taken strictly falling, and all others below them, so that no tie hides the order."""
    scores = gains.copy()
    last = np.inf
    for row in order:
        last = min(scores[row], np.nextafter(last, -np.inf))
        scores[row] = last
    others = np.ones(len(scores), dtype=bool)
    others[order] = False
    scores[others] = np.minimum(scores[others], np.nextafter(last, -np.inf))
    return scores


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(ActiveDPO)
