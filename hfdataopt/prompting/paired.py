"""Paired one-sided tests: whether a candidate is worse than another on the items that both were tried on."""

import math
from typing import Any

import numpy as np


def sign_test(differences: Any) -> float:
    """Chance of so few positive differences ``[k]`` if both signs are alike; zeros are left out. 1 where none is left."""
    values = np.asarray(differences, float)
    positive, count = int((values > 0).sum()), int((values != 0).sum())
    return sum(math.comb(count, k) for k in range(positive + 1)) / 2**count


def t_test(differences: Any) -> float:
    """Chance of so low a mean of differences ``[k]`` under Student's t with k - 1 degrees of freedom; 1 below two of them.

    Where all differences are equal and negative the statistic does not exist; the sign test answers.
    """
    values = np.asarray(differences, float)
    if len(values) < 2:
        return 1.0
    deviation = float(values.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return sign_test(values)
    return t_below(float(values.mean()) / deviation * math.sqrt(len(values)), len(values) - 1)


def t_below(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t; the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    total, term = 0.0, 1.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k - 1 + odd) / (2 * k + odd)
    total *= math.sin(angle)
    inside = 2 / math.pi * (angle + math.cos(angle) * total) if odd else total
    return 0.5 + inside / 2
