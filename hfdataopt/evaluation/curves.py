"""Add-highest and remove-highest curves: models trained on the best rows by score, and without them, against random rows."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hfdataopt.errors import DataError, OptionError
from hfdataopt.evaluation.datamodeling import draw_subsets
from hfdataopt.evaluation.interval import Interval, Report
from hfdataopt.retraining import Metric, Recipe, Train, read_measured, read_rows
from hfdataopt.trainings import Trainings

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.5)
Kind = Literal["add-highest", "remove-highest"]
RANDOM = "random"


@dataclass(frozen=True)
class CurvePoint(Report):
    """Models trained on (``add-highest``) or without (``remove-highest``) a fraction of the rows.

    Attributes:
        scores: whose ranking, or ``random``.
        rows: how many were added or removed.
        utility: mean on the third split, with an interval over seeds.
        gain: the same less random rows of the same number, paired by seed; None for ``random``.
    """

    kind: Kind
    scores: str
    fraction: float
    rows: int
    utility: Interval
    gain: Interval | None


@dataclass(frozen=True)
class RemovalCurves(Report):
    """Both curves of every ranking. A good one adds more than random rows do, and its removal costs more.

    Attributes:
        none, everything: utility of the initial weights, and of a model trained on all rows.
        metric: what the utility is. seeds: trainings behind each point.
    """

    points: list[CurvePoint]
    none: float
    everything: Interval
    metric: str
    seeds: int

    def __str__(self) -> str:
        lines = [
            f"{self.metric} on the third split, {self.seeds} seeds: no training {self.none:.3f}, all rows {self.everything}"
        ]
        width = max(len(point.scores) for point in self.points)
        for point in self.points:
            gain = "" if point.gain is None else f"   less random {point.gain}"
            lines.append(
                f"  {point.kind:<14}  {point.scores:<{width}}  {point.fraction:>5.0%} ({point.rows} rows)  {point.utility}{gain}"
            )
        return "\n".join(lines)


def removal_curves(
    scores: Mapping[str, Any],
    model: Any,
    pool: Any,
    test: Any,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: int = 3,
    seed: int = 0,
    training: Recipe | Train | None = None,
    utility: Metric = "accuracy",
    processing_class: Any = None,
    data_collator: Any = None,
    batch_size: int = 32,
    output_dir: str | os.PathLike[str] | None = None,
) -> RemovalCurves:
    """Train on, and without, the highest rows of each ranking and of random ones.

    Args:
        scores: by name, ``Scores`` or numbers ``[rows]`` in the order of the pool; higher = better.
        model: the initial weights of every training; not changed.
        test: a third split: neither trained on, nor the queries that the scores were made with.
        fractions: of the pool, added or removed.
        seeds: trainings of every point, each with a random set of its own for the control.
        seed: the first seed, of trainings and random rows.
        training: a ``Recipe``, or your own ``train(positions, seed) -> model``.
        utility: what is measured: a name, ``(model, batch) -> [b]``, or a ``RewardUtility``, for which ``test`` holds prompts.
        output_dir: every outcome is kept there as it is made; a killed call with the same arguments goes on there.

    Raises:
        DataError: a row without a score. OptionError: a fraction that leaves no row, or all.
    """
    pool_rows = read_rows(pool, model, processing_class, data_collator, "pool")
    test_rows = read_measured(utility, test, model, processing_class, data_collator, "test")
    count = len(pool_rows)
    rankings = {name: _ranking(name, values, pool_rows.ids) for name, values in scores.items()}
    if RANDOM in rankings:
        raise OptionError(f"removal_curves: {RANDOM!r} is the name of the control; give these scores another")
    if not rankings or seeds < 1:
        raise OptionError(f"removal_curves: {len(rankings)} rankings and seeds={seeds}; at least one of each is needed")
    trainings = Trainings(
        model,
        pool_rows,
        test_rows,
        training=training,
        metric=utility,
        batch_size=batch_size,
        folder=output_dir,
        who="removal_curves",
    )
    turns = range(seed, seed + seeds)
    jobs: list[tuple[Any, int]] = [(range(count), turn) for turn in turns]
    keys: list[tuple[Kind, str, float]] = []
    for fraction in fractions:
        controls = draw_subsets(pool_rows.ids, seeds, fraction, seed)
        size = int(controls[0].sum())
        for kind in ("add-highest", "remove-highest"):
            for name in (*rankings, RANDOM):
                keys.append((kind, name, fraction))
                for control, turn in zip(controls, turns, strict=True):
                    chosen = control if name == RANDOM else _highest(rankings[name], size)
                    jobs.append((np.flatnonzero(chosen if kind == "add-highest" else ~chosen), turn))
    outcomes = trainings.of_all(jobs).mean(1).reshape(-1, seeds)
    found = dict(zip(keys, outcomes[1:], strict=True))
    points = []
    for kind, name, fraction in sorted(keys, key=lambda key: (key[0], [*rankings, RANDOM].index(key[1]), key[2])):
        values = found[kind, name, fraction]
        gain = None if name == RANDOM else Interval.of_mean(values - found[kind, RANDOM, fraction])
        points.append(CurvePoint(kind, name, fraction, round(fraction * count), Interval.of_mean(values), gain))
    return RemovalCurves(
        points, float(trainings.of(()).mean()), Interval.of_mean(outcomes[0]), _metric_name(utility), seeds
    )


def _metric_name(metric: Metric) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def _ranking(name: str, scores: Any, ids: Sequence[Any]) -> list[int]:
    """Positions, best first; ties by row id."""
    values = np.asarray(getattr(scores, "values", scores), dtype=np.float64)
    if values.shape != (len(ids),) or np.isnan(values).any():
        raise DataError(
            f"removal_curves: {name!r} has shape {list(values.shape)} and {int(np.isnan(values).sum())} rows without a score; "
            f"pass one number for each of the {len(ids)} rows of the pool"
        )
    return sorted(range(len(ids)), key=lambda row: (-values[row], ids[row]))


def _highest(ranking: list[int], size: int) -> np.ndarray:
    chosen = np.zeros(len(ranking), dtype=bool)
    chosen[ranking[:size]] = True
    return chosen
