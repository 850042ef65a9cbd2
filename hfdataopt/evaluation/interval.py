"""A number with a 95 % interval, and the bootstrap of a rank correlation."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hfdataopt.statistics import mean_interval

REPLICATES = 1000


@dataclass(frozen=True)
class Interval:
    """An estimate with the limits of its 95 % interval; NaN limits where there is nothing to take one from."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> "Interval":
        """The mean of independent values, by Student's t."""
        return cls(*mean_interval([float(value) for value in values]))

    @classmethod
    def of_replicates(cls, value: float, replicates: Any) -> "Interval":
        """A value with the 2.5 % and 97.5 % points of its bootstrap replicates."""
        low, high = np.nanpercentile(replicates, (2.5, 97.5)) if np.isfinite(replicates).any() else (math.nan, math.nan)
        return cls(float(value), float(low), float(high))

    @classmethod
    def of_share(cls, hits: int, count: int) -> "Interval":
        """A share of independent trials, by Wilson's score interval."""
        if count == 0:
            return cls(math.nan, math.nan, math.nan)
        share, z = hits / count, 1.96
        middle = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        return cls(share, middle - half, middle + half)


class Report:
    """Base of the results: ``as_dict`` for JSON."""

    def as_dict(self) -> dict[str, Any]:
        return _plain(asdict(self))  # type: ignore[call-overload]


def _plain(value: Any) -> Any:
    """The same document in JSON's types; numbers that JSON lacks become None."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def resampled_rank_correlations(one: np.ndarray, other: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman's correlation of ``one`` and ``other [m]`` in each resample ``[replicates]``; NaN where one is constant.

    ``counts [replicates, m]`` says how often each pair is drawn. Equal values share the mean of their ranks.
    """
    weights = counts.T.astype(np.float64)  # [m, replicates]
    ranks = []
    for values in (one, other):
        below = (values[None, :] < values[:, None]) + 0.5 * (values[None, :] == values[:, None])
        ranks.append(below @ weights)  # [m, replicates], up to a constant
    total = weights.sum(0)
    centred = [rank - (rank * weights).sum(0) / total for rank in ranks]
    covariance, *variances = (
        (a * b * weights).sum(0)
        for a, b in ((centred[0], centred[1]), (centred[0], centred[0]), (centred[1], centred[1]))
    )
    scale = np.sqrt(variances[0] * variances[1])
    return np.divide(covariance, scale, out=np.full(len(scale), np.nan), where=scale > 1e-9)


def resamples(count: int, replicates: int, seed: int) -> np.ndarray:
    """How often each of ``count`` things is drawn in each bootstrap replicate: ``[replicates, count]``."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=replicates)
