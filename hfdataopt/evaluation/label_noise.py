"""Known label errors among the lowest scores."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hfdataopt.errors import DataError
from hfdataopt.evaluation.interval import Interval, Report
from hfdataopt.statistics import ranks


@dataclass(frozen=True)
class LabelNoiseAuc(Report):
    """Probability that a mislabelled row scores below a correct one, ties counting half: 0.5 is chance, 1 finds all.

    Attributes:
        auc: with DeLong's interval.
        flipped, rows: among the rows that have a score.
        unscored: rows without a score, which are left out.
    """

    auc: Interval
    flipped: int
    rows: int
    unscored: int = 0

    def __str__(self) -> str:
        missing = f", {self.unscored} without a score left out" if self.unscored else ""
        return f"label-noise AUC {self.auc}: {self.flipped} of {self.rows} rows mislabelled{missing}"


def label_noise_auc(scores: Any, flipped: Any) -> LabelNoiseAuc:
    """How well low scores find mislabelled rows.

    Args:
        scores: ``Scores``, or numbers ``[rows]``; NaN where a row has none.
        flipped: ``[rows]`` bool, which labels are wrong.

    Raises:
        DataError: other lengths, values that are no booleans, or no row on one side.

    The interval is DeLong's (DeLong et al. 1988): normal, from the variance of each row's placement among the other side.
    """
    values = np.asarray(getattr(scores, "values", scores), dtype=np.float64)
    marks = np.asarray(flipped)
    if marks.dtype != bool and not np.isin(marks, (0, 1)).all():
        raise DataError(
            f"label_noise_auc: flipped must hold booleans; got {marks.dtype}, for example {marks.flat[0]!r}"
        )
    if values.ndim != 1 or marks.shape != values.shape:
        raise DataError(
            f"label_noise_auc: {list(values.shape)} scores and {list(marks.shape)} flags; one of each per row"
        )
    scored = ~np.isnan(values)
    low, high = values[scored & marks.astype(bool)], values[scored & ~marks.astype(bool)]
    if not len(low) or not len(high):
        raise DataError(
            f"label_noise_auc: of {int(scored.sum())} rows with a score {len(low)} are mislabelled; both kinds are needed"
        )
    together = ranks(np.concatenate([-low, -high]))
    # Placements: the share of the other side that lies beyond a row.
    first = (together[: len(low)] - ranks(-low)) / len(high)
    second = 1 - (together[len(low) :] - ranks(-high)) / len(low)
    auc = float(first.mean())
    variance = sum(part.var(ddof=1) / len(part) if len(part) > 1 else np.nan for part in (first, second))
    half = 1.96 * float(np.sqrt(variance))
    interval = Interval(auc, max(0.0, auc - half), min(1.0, auc + half)) if half == half else Interval(auc, half, half)
    return LabelNoiseAuc(interval, len(low), int(scored.sum()), int((~scored).sum()))
