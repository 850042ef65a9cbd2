"""Semivalues: averages of a row's marginal contribution with other weights on the size of the set it joins.

Members: Shapley (every size alike), Beta(a, b)-Shapley (Kwon and Zou 2022), Banzhaf (every subset alike; Wang and Jia
2023).

In a random order a row's position, and so the number of rows before it, is uniform over 0 .. n - 1. A semivalue is
sum over j of p_j E[marginal | j rows before it], with p summing to 1, so weighting each marginal by n p_j makes the
mean over orders its unbiased estimate. Weights far from 1 make it noisy: Banzhaf keeps only about sqrt(n) positions
near n / 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hfdataopt.errors import OptionError


def position_weights(rows: int, weights: str, beta: tuple[float, float] = (16.0, 1.0)) -> Tensor:
    """n p_j for j = 0 .. n - 1 rows before: `[n]`, mean 1.

    `weights`: `"shapley"`, `"banzhaf"` or `"beta"` with parameters `beta = (a, b)`; a > b favours small sets, (1, 1) is
    Shapley. Raises `OptionError`.
    """
    if weights == "shapley":
        return torch.ones(rows, dtype=torch.float64)
    before = torch.arange(rows, dtype=torch.float64)
    after = rows - 1 - before
    log_subsets = math.lgamma(rows) - torch.lgamma(before + 1) - torch.lgamma(after + 1)
    if weights == "banzhaf":
        return rows * torch.exp(log_subsets - (rows - 1) * math.log(2))
    if weights != "beta":
        raise OptionError(f"weights is {weights!r}; pass 'shapley', 'beta' or 'banzhaf'")
    a, b = check_beta(beta)
    log_beta = torch.lgamma(before + b) + torch.lgamma(after + a) - math.lgamma(rows - 1 + a + b)
    log_norm = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return rows * torch.exp(log_subsets + log_beta - log_norm)


def check_beta(beta: Any) -> tuple[float, float]:
    """The parameters (a, b) of a Beta semivalue as floats. Raises `OptionError`."""
    try:
        a, b = (float(parameter) for parameter in beta)
    except (TypeError, ValueError):
        a = b = math.nan
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise OptionError(f"beta is {beta!r}; pass two positive numbers (a, b), for example (16, 1)")
    return a, b
