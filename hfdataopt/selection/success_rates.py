"""What past rewards say about how often a prompt is solved: a Beta posterior per prompt (MoPPS, Qu et al. 2025).

- :func:`count`: successes and trials of a group of rewards
- :func:`update`: the posterior after a group
- :func:`beta_draws`: a draw per prompt that is a function of (seed, key)
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hfdataopt.errors import DataError
from hfdataopt.selection.keys import uniform

LEAST_PRIOR, MOST_PRIOR = 1e-3, 1e9  # of alpha and beta; beyond, a draw is 0/0 or a sum is infinite


def count(rewards: Sequence[Any], success: float | None, who: str, row: str) -> tuple[float, int]:
    """``(successes, trials)`` of the rewards of one group; those that are None or NaN are no trials.

    Args:
        success: a reward of at least this is a success; None: rewards lie in [0, 1] and are successes in parts.

    Raises:
        DataError: a reward is not a number, or outside [0, 1] with ``success=None``.
    """
    values = np.array([np.nan if value is None else value for value in rewards], dtype=np.float64)
    values = values[~np.isnan(values)]
    if success is not None:
        return float((values >= success).sum()), len(values)
    if len(values) and (values.min() < 0 or values.max() > 1):
        wrong = values[(values < 0) | (values > 1)][0]
        raise DataError(
            f"{who}: {row} has the reward {wrong:g}, which is outside [0, 1]; say from which reward on a completion is a success, "
            "with success="
        )
    return float(values.sum()), len(values)


def update(
    alpha: Any, beta: Any, successes: Any, trials: Any, prior: tuple[float, float], discount: float
) -> tuple[Any, Any]:
    """Alpha and beta after a group: what was known is drawn back to the prior by ``1 - discount`` first.

    ``alpha' = discount * alpha + (1 - discount) * alpha_0 + successes``; beta the same with failures. Numbers or arrays.
    """
    return (
        discount * alpha + (1 - discount) * prior[0] + successes,
        discount * beta + (1 - discount) * prior[1] + (trials - successes),
    )


def beta_draws(seed: int, keys: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """``[rows]`` draws from Beta(alpha, beta), each a function of (seed, key)."""
    first, second = gamma_draws(stream(seed, "alpha"), keys, alpha), gamma_draws(stream(seed, "beta"), keys, beta)
    return first / (first + second)


def gamma_draws(seed: int, keys: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """``[rows]`` draws from Gamma(shape, 1), by rejection (Marsaglia and Tsang 2000)."""
    low = shape < 1
    d = np.where(low, shape + 1, shape) - 1 / 3
    c = 1 / np.sqrt(9 * d)
    draws, left, turn = np.zeros(len(keys)), np.arange(len(keys)), 0
    while len(left):
        radius, angle, u = (uniform(stream(seed, f"{turn}/{part}"), keys[left]) for part in range(3))
        x = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
        v = (1 + c[left] * x) ** 3
        with np.errstate(invalid="ignore", divide="ignore"):
            accepted = (v > 0) & (np.log(u) < x**2 / 2 + d[left] * (1 - v + np.log(v)))
        draws[left[accepted]] = (d[left] * v)[accepted]
        left, turn = left[~accepted], turn + 1
    exponent = 1 / np.where(low, shape, np.inf)
    return draws * uniform(stream(seed, "low"), keys) ** exponent


def stream(seed: int, name: str) -> int:
    """A seed of its own for each use of random numbers."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
