"""Linear datamodeling score: do sums of scores predict what models trained on random subsets do?

Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023, definition 2.4.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hfdataopt.attribution.rows import shuffled
from hfdataopt.errors import DataError, OptionError
from hfdataopt.evaluation.interval import REPLICATES, Interval, Report, resampled_rank_correlations, resamples
from hfdataopt.retraining import Metric, Recipe, Train, read_measured, read_rows
from hfdataopt.statistics import rank_correlation
from hfdataopt.trainings import Trainings


@dataclass(frozen=True)
class LinearDatamodelingScore(Report):
    """Mean over queries of the rank correlation, over subsets, of the sum of scores and the real outcome.

    Attributes:
        score: with a bootstrap interval over subsets and queries.
        per_query: ``[queries]``; NaN where all outcomes of a query are the same.
        subsets: how many models were trained.
    """

    score: Interval
    per_query: list[float]
    subsets: int

    def __str__(self) -> str:
        queries = sum(value == value for value in self.per_query)
        return f"linear datamodeling score {self.score}: {queries} queries, {self.subsets} subsets"


def linear_datamodeling_score(scores: Any, subsets: Any, outcomes: Any, *, seed: int = 0) -> LinearDatamodelingScore:
    """How well sums of scores rank models trained on subsets.

    Args:
        scores: ``Scores`` with a matrix, or ``[n, q]``; ``[n]`` is compared with the mean outcome over the queries.
        subsets: ``[m, n]`` bool, the rows that each model was trained on.
        outcomes: ``[m, q]``, each model's utility on each query, higher = better.
        seed: of the bootstrap, 1,000 replicates that draw subsets and queries.

    Raises:
        DataError: shapes that do not fit, a row without a score, or fewer than 3 subsets.
    """
    matrix = getattr(scores, "matrix", None)
    matrix = np.asarray(getattr(scores, "values", scores) if matrix is None else matrix, dtype=np.float64)
    masks, found = np.asarray(subsets), np.asarray(outcomes, dtype=np.float64)
    if matrix.ndim == 1:
        matrix, found = matrix[:, None], found.mean(1, keepdims=True) if found.ndim == 2 else found[:, None]
    if masks.dtype != bool or masks.ndim != 2 or masks.shape[1] != len(matrix) or len(masks) < 3:
        raise DataError(
            f"linear_datamodeling_score: subsets are {masks.dtype} {list(masks.shape)} for {len(matrix)} rows; "
            "pass booleans [subsets, rows], at least 3 subsets"
        )
    if found.shape != (len(masks), matrix.shape[1]):
        raise DataError(
            f"linear_datamodeling_score: outcomes are {list(found.shape)}; pass [{len(masks)} subsets, {matrix.shape[1]} queries]"
        )
    missing = int(np.isnan(matrix).any(1).sum())
    if missing:
        raise DataError(
            f"linear_datamodeling_score: {missing} rows have no score; score all rows that the models trained on"
        )
    predicted = masks.astype(np.float64) @ matrix
    per_query = [rank_correlation(predicted[:, q], found[:, q]) for q in range(matrix.shape[1])]
    counts = resamples(len(masks), REPLICATES, seed)
    replicates = np.stack(
        [resampled_rank_correlations(predicted[:, q], found[:, q], counts) for q in range(len(per_query))]
    )
    drawn = resamples(len(per_query), REPLICATES, seed + 1).T
    usable = np.isfinite(replicates)
    total = (drawn * usable).sum(0)
    means = np.divide(
        (drawn * np.where(usable, replicates, 0)).sum(0), total, out=np.full(REPLICATES, np.nan), where=total > 0
    )
    value = float(np.nanmean(per_query)) if np.isfinite(per_query).any() else float("nan")
    return LinearDatamodelingScore(Interval.of_replicates(value, means), per_query, len(masks))


@dataclass(frozen=True)
class SubsetOutcomes:
    """Utilities of models trained on subsets.

    Attributes:
        subsets: ``[m, n]`` bool.
        by_seed: ``[seeds, m, q]``, one training seed after another.
    """

    subsets: np.ndarray
    by_seed: np.ndarray

    @property
    def outcomes(self) -> np.ndarray:
        """``[m, q]``, the mean over training seeds."""
        return self.by_seed.mean(0)

    @cached_property
    def reliability(self) -> float:
        """Mean over queries of the rank correlation of the outcomes of the first half of the seeds with those of the others:
        what scores could reach at most, about, with half as many seeds. NaN for one seed."""
        half = len(self.by_seed) // 2
        if half == 0:
            return float("nan")
        one, other = self.by_seed[:half].mean(0), self.by_seed[half:].mean(0)
        return float(np.nanmean([rank_correlation(one[:, q], other[:, q]) for q in range(one.shape[1])]))


def draw_subsets(ids: Any, count: int, fraction: float, seed: int = 0) -> np.ndarray:
    """Random subsets ``[count, n]`` bool of ``fraction`` of the rows, as a function of (seed, index, row id)."""
    size = round(fraction * len(ids))
    if not 0 < fraction < 1 or not 0 < size < len(ids):
        raise OptionError(
            f"subsets of fraction={fraction} of {len(ids)} rows have {size} rows; take one between 0 and 1"
        )
    subsets = np.zeros((count, len(ids)), dtype=bool)
    for index, subset in enumerate(subsets):
        subset[shuffled([f"{index}:{row!r}" for row in ids], seed)[:size]] = True
    return subsets


def measure_subsets(
    model: Any,
    pool: Any,
    queries: Any,
    *,
    subsets: int = 64,
    fraction: float = 0.5,
    seeds: int = 1,
    seed: int = 0,
    training: Recipe | Train | None = None,
    utility: Metric = "log-likelihood",
    processing_class: Any = None,
    data_collator: Any = None,
    batch_size: int = 32,
    output_dir: str | os.PathLike[str] | None = None,
) -> SubsetOutcomes:
    """Train a model on each of ``subsets`` random subsets, with ``seeds`` seeds, and measure it on each query.

    Args:
        model: the initial weights of every training; not changed.
        pool, queries: as for ``attribute``.
        seed: of the subsets, and the first of the training seeds.
        training: a ``Recipe``, or your own ``train(positions, seed) -> model``.
        utility: what is measured: a name, ``(model, batch) -> [b]``, or a ``RewardUtility``, for which ``queries`` are prompts.
        output_dir: every outcome is kept there as it is made; a killed call with the same arguments goes on there.
    """
    pool_rows = read_rows(pool, model, processing_class, data_collator, "pool")
    query_rows = read_measured(utility, queries, model, processing_class, data_collator, "queries")
    masks = draw_subsets(pool_rows.ids, subsets, fraction, seed)
    trainings = Trainings(
        model,
        pool_rows,
        query_rows,
        training=training,
        metric=utility,
        batch_size=batch_size,
        folder=output_dir,
        who="measure_subsets",
    )
    jobs = [(np.flatnonzero(mask), seed + turn) for turn in range(seeds) for mask in masks]
    return SubsetOutcomes(masks, trainings.of_all(jobs).reshape(seeds, subsets, -1))
