"""Does kernel regression stand in for fine-tuning? Its utilities against those of real trainings on the same subsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfdataopt.attribution.rows import shuffled
from hfdataopt.errors import DataError, OptionError
from hfdataopt.evaluation.interval import REPLICATES, Interval, Report, resampled_rank_correlations, resamples
from hfdataopt.shapley._inputs import check_kernels, check_pool_labels, check_query_labels, one_hot
from hfdataopt.shapley.ridge import resolve_ridge
from hfdataopt.shapley.utilities import UserUtility, get_utility
from hfdataopt.statistics import rank_correlation


@dataclass(frozen=True)
class SurrogateFidelity(Report):
    """Kernel regression against fine-tuning.

    Attributes:
        rank_correlation: of both utilities over subsets, with a bootstrap interval over the pairs.
        sign_agreement: share of marginal contributions, U(S with more rows) - U(S), with the same sign in both.
        ceiling_correlation, ceiling_signs: the same two of one half of the training seeds against the other: what training
            noise allows; None with one seed.
        subsets, pairs: how many.
    """

    rank_correlation: Interval
    sign_agreement: Interval
    ceiling_correlation: float | None
    ceiling_signs: float | None
    subsets: int
    pairs: int

    def __str__(self) -> str:
        text = (
            f"kernel regression against fine-tuning: rank correlation {self.rank_correlation} over {self.subsets} subsets, "
            f"same sign of {self.sign_agreement} of {self.pairs} marginal contributions"
        )
        if self.ceiling_correlation is None or self.ceiling_signs is None:
            return text
        return f"{text}; between halves of the seeds {self.ceiling_correlation:.3f} and {self.ceiling_signs:.3f}"


def draw_pairs(ids: Any, count: int, sizes: Sequence[int], added: int = 1, seed: int = 0) -> np.ndarray:
    """Subsets ``[2 * count, n]`` bool: pair k is S in row 2 k and S with ``added`` more rows in row 2 k + 1.

    Sizes of S go through ``sizes`` in turn; the rows are a function of (seed, k, row id).
    """
    if added < 1 or count < 1 or not sizes or min(sizes) < 1 or max(sizes) + added > len(ids):
        raise OptionError(
            f"draw_pairs: count={count}, sizes={list(sizes)} and added={added} do not fit {len(ids)} rows; "
            "all must be at least 1, and a size with the added rows at most the rows"
        )
    subsets = np.zeros((2 * count, len(ids)), dtype=bool)
    for pair in range(count):
        order = shuffled([f"{pair}:{row!r}" for row in ids], seed)
        size = sizes[pair % len(sizes)]
        subsets[2 * pair, order[:size]] = True
        subsets[2 * pair + 1, order[: size + added]] = True
    return subsets


def kernel_utilities(
    kernel: Any,
    cross_kernel: Any,
    labels: Any,
    query_labels: Any,
    subsets: Any,
    *,
    utility: str | UserUtility = "log-likelihood",
    ridge: float | str = "auto",
) -> np.ndarray:
    """Utilities ``[m]`` of kernel regression on each of ``subsets [m, n]`` bool, one solve each.

    Kernels and labels as ``hfdataopt.shapley.shapley_values`` takes them; ``ridge="auto"`` is chosen on all rows.
    """
    pool, cross = check_kernels(kernel, cross_kernel)
    pool_labels, classes = check_pool_labels(labels, pool)
    asked = check_query_labels(query_labels, cross.shape[2], pool_labels)
    targets = one_hot(pool_labels, classes)
    measure = get_utility(utility, classes, asked)
    value = resolve_ridge(pool, targets, ridge, "error").value
    found = []
    for subset in torch.as_tensor(np.asarray(subsets, dtype=bool)):
        rows = torch.nonzero(subset).flatten()
        if not len(rows):
            found.append(float(measure.empty.mean()))
            continue
        system = pool[:, rows][:, :, rows] + value * torch.eye(len(rows), dtype=pool.dtype)
        columns = targets[rows].T[:, :, None] if len(pool) > 1 else targets[rows][None]
        predictions = cross[:, rows].mT @ torch.linalg.solve(system, columns)  # [k, t, c / k]
        by_class = predictions[:, :, 0] if len(pool) > 1 else predictions[0].T
        found.append(float(measure.of_predictions(by_class[None, :, None]).mean()))
    return np.array(found)


def surrogate_fidelity(predicted: Any, outcomes: Any, *, seed: int = 0) -> SurrogateFidelity:
    """Compare utilities of subsets that come in pairs, as :func:`draw_pairs` makes them.

    Args:
        predicted: ``[m]``, of kernel regression (:func:`kernel_utilities`).
        outcomes: ``[m]`` of real trainings, or ``[seeds, m]``.
        seed: of the bootstrap, 1,000 replicates that draw pairs.

    A pair whose marginal is exactly 0 on either side is no agreement.

    Raises:
        DataError: shapes that do not fit, or fewer than 3 pairs.
    """
    surrogate, real = np.asarray(predicted, dtype=np.float64), np.atleast_2d(np.asarray(outcomes, dtype=np.float64))
    if (
        surrogate.ndim != 1
        or real.ndim != 2
        or real.shape[1] != len(surrogate)
        or len(surrogate) % 2
        or len(surrogate) < 6
    ):
        raise DataError(
            f"surrogate_fidelity: predicted {list(surrogate.shape)} and outcomes {list(np.shape(outcomes))}; "
            "pass one number per subset, in pairs, of at least 3 pairs"
        )
    mean = real.mean(0)
    counts = np.repeat(resamples(len(mean) // 2, REPLICATES, seed), 2, axis=1)
    correlation = Interval.of_replicates(
        rank_correlation(surrogate, mean), resampled_rank_correlations(surrogate, mean, counts)
    )
    half = len(real) // 2
    ceilings: tuple[float | None, float | None] = (None, None)
    if half:
        one, other = real[:half].mean(0), real[half:].mean(0)
        ceilings = (rank_correlation(one, other), float(_agree(one, other).mean()))
    agree = _agree(surrogate, mean)
    return SurrogateFidelity(
        correlation, Interval.of_share(int(agree.sum()), len(agree)), *ceilings, len(mean), len(agree)
    )


def _agree(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether the marginal contributions of each pair have the same sign, ``[pairs]`` bool."""
    return (one[1::2] - one[::2]) * (other[1::2] - other[::2]) > 0
