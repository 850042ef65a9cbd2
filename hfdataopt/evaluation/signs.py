"""Does a row's score keep its sign when the rest of the pool changes? Shapley values beside leave-one-out.

The protocol of FreeShap's robustness study (Wang et al. 2024): the same rows in resampled pools.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hfdataopt.errors import OptionError
from hfdataopt.evaluation.interval import Interval, Report
from hfdataopt.shapley import loo, loo_ridge, shapley_values


@dataclass(frozen=True)
class SignConsistency(Report):
    """Share of rows whose score has the same sign, not 0, in all pools; intervals over the rows.

    Attributes:
        shapley, leave_one_out: that share.
        difference: of the two, paired by row.
        signs: ``{method: [pools, rows]}``, -1, 0 or 1.
    """

    shapley: Interval
    leave_one_out: Interval
    difference: Interval
    pools: int
    rows: int
    signs: dict[str, list[list[int]]]

    def __str__(self) -> str:
        return (
            f"rows that keep their sign in {self.pools} pools, of {self.rows}: Shapley {self.shapley}, "
            f"leave-one-out {self.leave_one_out}, difference {self.difference}"
        )


def sign_consistency(
    kernel: Any,
    cross_kernel: Any,
    labels: Any,
    query_labels: Any,
    *,
    rows: Sequence[int],
    pool_size: int,
    pools: int = 5,
    utility: str = "margin",
    ridge: float | Literal["auto"] = "auto",
    permutations: int = 200,
    seed: int = 0,
) -> SignConsistency:
    """Score ``rows`` in ``pools`` pools, each of them and of other rows drawn anew, by both methods on one kernel.

    Args:
        kernel, cross_kernel, labels, query_labels: of all rows to draw from, as ``hfdataopt.shapley.shapley_values`` takes
            them: ``[n, n]``, ``[n, t]``, ``[n]``, ``[t]``.
        rows: positions of the rows that are in every pool.
        pool_size: rows of a pool.
        ridge: absolute; ``auto`` minimises each pool's closed-form leave-one-out error. Both methods have the same.

    Raises:
        OptionError: a pool size that does not fit, or fewer than 2 pools.
    """
    kernel, cross, labels = np.asarray(kernel), np.asarray(cross_kernel), np.asarray(labels)
    kept = np.asarray(sorted(set(rows)))
    others = np.setdiff1d(np.arange(len(labels)), kept)
    if pools < 2 or not len(kept) < pool_size <= len(labels) or not len(kept):
        raise OptionError(
            f"sign_consistency: pools={pools} of pool_size={pool_size} with {len(kept)} fixed rows out of {len(labels)}; "
            "take at least 2 pools, larger than the fixed rows and no larger than all"
        )
    random = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {"shapley": [], "leave-one-out": []}
    for pool in range(pools):
        members = np.concatenate([kept, random.choice(others, pool_size - len(kept), replace=False)])
        problem = (kernel[np.ix_(members, members)], cross[members], labels[members], query_labels)
        targets = np.eye(int(labels.max()) + 1)[problem[2]]
        options: dict[str, Any] = {
            "utility": utility,
            "ridge": loo_ridge(problem[0], targets) if ridge == "auto" else ridge,
        }
        sampled = shapley_values(*problem, permutations=permutations, seed=seed + pool, out_of_bag=False, **options)
        found["shapley"].append(np.sign(sampled.values[: len(kept)]))
        found["leave-one-out"].append(np.sign(loo(*problem, **options)[: len(kept)]))
    signs = {name: np.stack(values).astype(int) for name, values in found.items()}
    keeps = {name: (np.abs(sign.sum(0)) == pools).astype(float) for name, sign in signs.items()}
    share = {name: Interval.of_share(int(keep.sum()), len(kept)) for name, keep in keeps.items()}
    return SignConsistency(
        shapley=share["shapley"],
        leave_one_out=share["leave-one-out"],
        difference=Interval.of_mean(keeps["shapley"] - keeps["leave-one-out"]),
        pools=pools,
        rows=len(kept),
        signs={name: sign.tolist() for name, sign in signs.items()},
    )
