"""Fitting a keep rule to the scores of a dataset or a stream: what the map function will compare single rows with."""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection.rules import Candidates, Cut, balance, sample, threshold, top
from hfdataopt.selection.source import Source

if TYPE_CHECKING:
    from hfdataopt.selection.filter import Filter


@dataclass(frozen=True)
class Members:
    """The rows that a rule without a limit keeps, ``keys [kept]`` uint64."""

    keys: np.ndarray

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """``[rows]`` bool."""
        return np.isin(keys, self.keys)


def rank_rows(fitted: "Filter", pool: Source) -> tuple[np.ndarray, list[Any] | None]:
    """What the filter's rule ranks the rows by, ``[rows]``, and their groups where the rule has them."""
    rule = fitted.rule
    group = rule.group_column_of(pool.columns, fitted.name) if rule else None
    values: list[np.ndarray] = []
    groups: list[Any] = []
    for batch in pool.batches([group] if group else []):
        scores = fitted.scores(batch)
        values.append(rule.values(scores, lambda batch=batch: batch.keys) if rule else scores)  # type: ignore[misc]
        groups.extend(batch[group] if group else [])
    whole = np.concatenate(values)
    if np.isnan(whole).all():
        raise DataError(f"{fitted.name}: none of the {len(whole)} rows has a score")
    return whole, groups if group else None


def candidates(fitted: "Filter", pool: Source) -> Candidates:
    """The scored rows of a map-style dataset, as a rule chooses from them."""
    values, groups = rank_rows(fitted, pool)
    return Candidates(
        values,
        lambda positions: [value for batch in pool.at(positions) for value in batch.ids],
        groups,
        lambda positions: np.concatenate([fitted.vectors(batch) for batch in pool.at(positions)]),
        fitted.name,
    )


def fit_rule(fitted: "Filter", pool: Source) -> "Cut | Members":
    """The filter's rule, fitted to this dataset or stream."""
    rule = fitted.rule
    assert rule is not None
    if isinstance(rule, threshold):
        return Cut({None: (float(rule.value), None)})
    if pool.streaming:
        return _fit_on_stream(fitted, pool)
    rows = candidates(fitted, pool)
    chosen = rule.choose(rows)
    if not rule.streams:
        members = np.concatenate([batch.keys for batch in pool.at(chosen)])
        if not pool.with_ids:
            _tell(fitted, sum(int(Members(members)(batch.keys).sum()) for batch in pool.batches()) - len(chosen))
        return Members(np.sort(members))
    cut = rule.cut(rows, chosen)
    if not pool.with_ids:
        _tell(fitted, int(cut(rows.values, rows.ids, rows.groups).sum()) - len(chosen))
    return cut


def _tell(fitted: "Filter", more: int) -> None:
    if more:
        say(
            f"{fitted.name}: keep holds {more} more rows than asked for, whose text equals that of kept rows; "
            "with_row_ids(dataset) tells them apart"
        )


def _fit_on_stream(fitted: "Filter", pool: Source) -> Cut:
    """Limits from the rows that are read; all rows at a limit are kept, since a stream cannot be asked which came first."""
    rule = fitted.rule
    if isinstance(rule, top | sample) and rule.k is not None:
        limit, ties = _kth_best(fitted, pool, rule.k)
        cut = Cut({None: (limit, None)})
    else:
        if isinstance(rule, balance) and rule.k is not None:
            raise OptionError(
                f"{fitted.name}: balance takes fraction= on a stream; k={rule.k} would need the whole of it"
            )
        values, groups = rank_rows(fitted, pool)
        assert rule is not None
        rows = Candidates(values, lambda positions: positions.tolist(), groups, None, fitted.name)
        chosen = rule.choose(rows)
        exact = rule.cut(rows, chosen)
        cut = Cut({group: (limit, None) for group, (limit, _) in exact.limits.items()}, unseen="dropped")
        ties = int(cut(values, rows.ids, groups).sum()) - len(chosen)
    if ties:
        say(f"{fitted.name}: {ties} more rows tie at the lowest score that is kept, and are kept as well")
    return cut


def _kth_best(fitted: "Filter", pool: Source, k: int) -> tuple[float, int]:
    """The k-th best value of a whole stream and how many more rows have it, in memory of 8 k bytes and a batch."""
    best, dropped, rows = np.zeros(0), 0, 0
    rule = fitted.rule
    assert rule is not None
    for batch in pool.batches(whole=True):
        values = rule.values(fitted.scores(batch), lambda batch=batch: batch.keys)  # type: ignore[misc]
        best, rows = np.concatenate([best, values[~np.isnan(values)]]), rows + len(values)
        if len(best) > 2 * k + 10_000:
            best, dropped = _compress(best, k, dropped)
    if len(best) < k:
        raise OptionError(f"{fitted.name}: {rule.name} asks for {k} rows but only {len(best)} of {rows} have a score")
    best, dropped = _compress(best, k, dropped)
    return float(best.min()), dropped


def _compress(best: np.ndarray, k: int, dropped: int) -> tuple[np.ndarray, int]:
    """The k best values, and how many equal to the last of them were left out, now or before."""
    before = best[:k].min() if dropped else None
    kept = np.partition(best, len(best) - k)[len(best) - k :]
    limit = kept.min()
    ties = int((best == limit).sum() - (kept == limit).sum())
    return kept, ties + (dropped if before == limit else 0)


@functools.cache
def say_once_that_text_is_the_key() -> None:
    """Random draws without row ids."""
    say(
        "the dataset has no column row_id, so draws go by the text of a row and rows of equal text are drawn alike; see with_row_ids"
    )
