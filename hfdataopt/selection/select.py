"""``select``: the rows of a dataset to keep, by scores or by a column of numbers."""

import hashlib
import math
import warnings
from typing import Any

import numpy as np

from hfdataopt.attribution.rows import as_list, check_map_style, row_ids
from hfdataopt.attribution.scores import Scores, count_of
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError
from hfdataopt.plugins import host

RULES = ("top", "sample")


def select(
    dataset: Any,
    by: Any,
    *,
    target: Any = None,
    fraction: float | None = None,
    k: int | None = None,
    threshold: float | None = None,
    rule: str = "top",
    seed: int = 0,
) -> Any:
    """The dataset reduced to its best rows, in their original order.

    Args:
        dataset: a map-style ``datasets.Dataset``.
        by: :class:`Scores`, or the name of a column of numbers. Higher is better.
        target: validation data, for filters that compare with it; scores and columns have no use for it.
        fraction, k, threshold: exactly one. ``threshold`` keeps every row at or above it.
        rule: ``top`` keeps the best, ties by row id; ``sample`` draws k rows without replacement with probability
            proportional to exp(score) (Gumbel top-k), as a function of (seed, row id).
        seed: of ``sample``.

    Raises:
        OptionError: not exactly one size, or one out of range, or an unknown rule.
        DataError: the scores belong to another dataset, or the column is missing or holds NaN.
    """
    check_map_style(dataset, "select: the dataset")
    if not hasattr(dataset, "column_names"):
        raise DataError(
            f"select: the dataset is a {type(dataset).__name__}; make it a datasets.Dataset, for example with Dataset.from_list"
        )
    sizes = {"fraction": fraction, "k": k, "threshold": threshold}
    given = [name for name, value in sizes.items() if value is not None]
    if len(given) != 1:
        raise OptionError(f"select: give exactly one of fraction, k and threshold; got {', '.join(given) or 'none'}")
    if rule not in RULES:
        raise OptionError(f"select: rule={rule!r} is unknown; there are: {', '.join(RULES)}")
    if target is not None:
        raise OptionError(f"select: target= is used only by a filter; {_describe(by)} has no use for it")
    values = _values(dataset, by)
    ids = row_ids(dataset, "select: the dataset")
    scored = np.flatnonzero(~np.isnan(values))
    if not len(scored):
        raise DataError(f"select: no row has a score by {_describe(by)}")
    if len(scored) < len(values):
        say(f"select: {len(values) - len(scored)} of {len(values)} rows have no score and are not kept")
    if threshold is not None:
        if rule != "top" or not isinstance(threshold, int | float) or math.isnan(threshold):
            raise OptionError(f"select: threshold={threshold!r} must be a number, and goes with rule='top' only")
        kept = [int(i) for i in scored if values[i] >= threshold]
    else:
        count = count_of(k, fraction, len(values))
        if count > len(scored):
            raise OptionError(f"select: {count} rows were asked for but only {len(scored)} have a score")
        keys = values if rule == "top" else values + np.array([_gumbel(seed, value) for value in ids])
        kept = sorted(sorted((int(i) for i in scored), key=lambda i: (-keys[i], ids[i]))[:count])
    if isinstance(by, Scores) and by.metadata.get("meaning") == "suspicion" and len(kept) <= len(values) / 2:
        warnings.warn(
            f"select: {by.scorer!r} measures suspicion, so its top {len(kept)} of {len(values)} rows are the least suspicious "
            "(the easiest), not the most helpful; use it to drop the lowest rows, e.g. fraction=0.9",
            stacklevel=2,
        )
    say(f"select: kept {len(kept)} of {len(values)} rows by {_describe(by)}")
    host().hook.after_selection(dataset=dataset, kept=[ids[i] for i in kept], by=_describe(by))
    return dataset.select(kept)


def _describe(by: Any) -> str:
    return f"{by.scorer} ({by.meaning})" if isinstance(by, Scores) else f"column {by!r}"


def _values(dataset: Any, by: Any) -> np.ndarray:
    if isinstance(by, Scores):
        return by.align(dataset)
    if not isinstance(by, str):
        raise OptionError(f"select: by must be Scores or the name of a column; got {type(by).__name__}")
    if by not in dataset.column_names:
        raise DataError(f"select: the dataset has no column {by!r}; it has: {', '.join(dataset.column_names)}")
    column = as_list(dataset[by])
    wrong = [value for value in column if value is not None and not isinstance(value, int | float)]
    if wrong:
        raise DataError(f"select: column {by!r} must hold numbers; got {wrong[0]!r}")
    values = np.array([math.nan if value is None else value for value in column], dtype=np.float64)
    if np.isnan(values).any():
        count, first = int(np.isnan(values).sum()), row_ids(dataset)[int(np.isnan(values).argmax())]
        raise DataError(
            f"select: column {by!r} is NaN or None in {count} rows, first in row {first!r}; drop or fill them first"
        )
    return values


def _gumbel(seed: int, row_id: Any) -> float:
    digest = hashlib.sha256(f"{seed}:{row_id!r}".encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64
    return -math.log(-math.log(uniform))
