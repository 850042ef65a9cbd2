"""Small statistics: confidence intervals for a mean over a few seeds and for rewards, ranks, and Spearman's rank correlation."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

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


def reward_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """``(mean, low, high)``: a 95 % interval for the mean of rewards.

    Rewards that are all 0 or 1: Wilson's score interval, which stays within [0, 1] and is not empty where all are alike. Others:
    the t interval of :func:`mean_interval`, whose limits may lie where no reward does.
    """
    if not set(values) <= {0.0, 1.0}:
        return mean_interval(values)
    count, z = len(values), 1.96
    mean = sum(values) / count
    centre = (mean + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(mean * (1 - mean) / count + z**2 / (4 * count**2))
    return mean, max(centre - half, 0.0), min(centre + half, 1.0)


def ranks(values: Any) -> np.ndarray:
    """Ranks ``[m]`` of numbers, from 1; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(values).ravel(), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def rank_correlation(one: Any, other: Any) -> float:
    """Spearman's correlation of two tensors or arrays of the same shape, taken as one sequence each; NaN for a constant one."""
    centred = [rank - rank.mean() for rank in (ranks(one), ranks(other))]
    scale = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / scale if scale else math.nan
