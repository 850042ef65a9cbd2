"""Small statistics: a confidence interval for a mean over a few seeds, and Spearman's rank correlation."""

import math
from collections.abc import Sequence
from typing import Any

# 97.5 % quantiles of Student's t with 1 to 30 degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """``(mean, low, high)``: a 95 % t interval; NaN limits for a single value."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    quantile = _T[count - 2] if count - 1 <= len(_T) else 1.96 + 2.4 / (count - 1)
    half = quantile * deviation / math.sqrt(count)
    return mean, mean - half, mean + half


def rank_correlation(one: Any, other: Any) -> float:
    """Spearman's correlation of two tensors of the same shape, taken as one sequence each; ties are ranked in order."""
    import torch

    ranks = [torch.argsort(torch.argsort(x.flatten(), stable=True), stable=True).double() for x in (one, other)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = (centred[0].norm() * centred[1].norm()).item()
    return float(centred[0] @ centred[1]) / scale if scale else math.nan
