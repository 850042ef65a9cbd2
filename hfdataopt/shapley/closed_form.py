"""Values of pool rows that need no sampling, or only the factor of a permutation.

Members: `loo` (leave-one-out for queries), `leave_one_out_margin` and `out_of_bag_margin` (does the rest of the pool
agree with a row's label; no queries), `knn_shapley` with `kernel_distances`. Higher = more helpful, or more trusted
label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfdataopt.errors import DataError, OptionError
from hfdataopt.shapley._inputs import (
    as_float64,
    check_kernel,
    check_kernels,
    check_labels,
    check_pool_labels,
    check_query_labels,
    one_hot,
)
from hfdataopt.shapley._walk import out_of_bag_sums, permutation
from hfdataopt.shapley.prefix import NotPositiveDefiniteError, factor_blocks, stack_right
from hfdataopt.shapley.ridge import not_positive_definite, resolve_ridge
from hfdataopt.shapley.utilities import UserUtility, get_utility, label_margins

BLOCK_NUMBERS = 4_000_000
"""Numbers held at once by the blocked loops, 32 MB."""


def loo(
    kernel: Any,
    cross_kernel: Any,
    labels: Any,
    query_labels: Any,
    *,
    utility: str | UserUtility = "margin",
    ridge: float | str = "auto",
    per_query: bool = False,
) -> np.ndarray:
    """U(all rows) - U(all but row i) for every row: `[n]`, or `[n, t]` with `per_query`.

    Arguments as for `shapley_values`. With Q = (K + ridge I)^-1 and beta = Q Y, leaving row i out changes the
    prediction at x by
    - (k_x^T Q)_i beta_i / Q_ii, exactly; O(n^3 + n^2 t) in all. Raises `DataError`, `OptionError`.
    """
    pool, cross = check_kernels(kernel, cross_kernel)
    pool_labels, classes = check_pool_labels(labels, pool)
    asked = check_query_labels(query_labels, cross.shape[2], pool_labels).to(pool.device)
    score = get_utility(utility, classes, asked)
    if per_query and len(score.empty) != cross.shape[2]:
        raise OptionError(f"per_query needs one value per query, utility {score.name} returns one in all")
    targets = one_hot(pool_labels, classes).to(pool.device)
    value = resolve_ridge(pool, targets, ridge, "error").value
    full = pool.new_empty(classes, cross.shape[2])
    reach, change = torch.empty_like(cross), torch.empty_like(targets)
    for index, inverse in enumerate(_inverses(pool, value)):
        columns = slice(index, index + 1) if len(pool) > 1 else slice(None)
        solution = inverse @ targets[:, columns]
        full[columns] = (cross[index].T @ solution).T
        reach[index] = inverse @ cross[index]
        change[:, columns] = solution / inverse.diagonal()[:, None]
    best = score.of_predictions(full[None, :, None])[0]
    values = pool.new_empty(pool.shape[1], best.shape[1])
    step = max(1, BLOCK_NUMBERS // full.numel())
    for start in range(0, pool.shape[1], step):
        rows = slice(start, start + step)
        without = full[:, None] - reach[:, rows] * change[rows].T[:, :, None]
        values[rows] = best - score.of_predictions(without[None])[0]
    return (values if per_query else values.mean(dim=1)).cpu().numpy()


def leave_one_out_margin(kernel: Any, labels: Any, *, ridge: float | str = "auto") -> np.ndarray:
    """Margin of each row's own label as predicted from all other rows, f_label - max of the others: `[n]`, not clipped.

    `kernel [n, n]` or `[c, n, n]`, `labels [n]`. The prediction at row i is Y_i - (Q Y)_i / Q_ii with Q = (K + ridge
    I)^-1. Low = the label disagrees with the rest of the pool. Raises `DataError`, `OptionError`.
    """
    pool = check_kernel(kernel)
    pool_labels, classes = check_pool_labels(labels, pool)
    targets = one_hot(pool_labels, classes).to(pool.device)
    value = resolve_ridge(pool, targets, ridge, "error").value
    predictions = targets.clone()
    for index, inverse in enumerate(_inverses(pool, value)):
        columns = slice(index, index + 1) if len(pool) > 1 else slice(None)
        predictions[:, columns] -= (inverse @ targets[:, columns]) / inverse.diagonal()[:, None]
    return label_margins(predictions.T[:, None], pool_labels.to(pool.device))[0].cpu().numpy()


def out_of_bag_margin(
    kernel: Any, labels: Any, *, permutations: int = 50, seed: int = 0, ridge: float | str = "auto"
) -> np.ndarray:
    """Mean margin of each row's own label over non-empty prefixes of random orders that do not hold the row: `[n]`.

    As `ShapleyResult.out_of_bag` without queries: margins are clipped to [-1, 1], every such prefix counts alike, and a
    row that came first in every permutation has NaN. n^3 / 3 flop per permutation and kernel. Raises `DataError`,
    `OptionError`.
    """
    pool = check_kernel(kernel)
    pool_labels, classes = check_pool_labels(labels, pool)
    if isinstance(permutations, bool) or not isinstance(permutations, (int, np.integer)) or permutations < 1:
        raise OptionError(f"permutations is {permutations!r}; pass an integer >= 1")
    targets = one_hot(pool_labels, classes).to(pool.device)
    value = resolve_ridge(pool, targets, ridge, "error").value
    if classes == 2 and len(pool) == 1:
        targets = targets[:, 1:] - targets[:, :1]
    rows, columns = pool.shape[1], targets.shape[1] if len(pool) == 1 else 1
    right = stack_right(pool.new_empty(len(pool), rows, 0), targets)
    pool_labels = pool_labels.to(pool.device)
    total, count = pool.new_zeros(rows), pool.new_zeros(rows)
    positions = torch.arange(rows, dtype=torch.float64, device=pool.device)
    try:
        for index in range(permutations):
            order = permutation(rows, seed, index).to(pool.device)[None]
            for block in factor_blocks(pool, right, order, value):
                held = order[:, block.start : block.stop]
                total[held[0]] += out_of_bag_sums(block, pool_labels[held], columns)[0]
            count[order[0]] += positions
    except NotPositiveDefiniteError as error:
        raise not_positive_definite(pool, value) from error
    return (total / count).cpu().numpy()


def kernel_distances(kernel: Any, cross_kernel: Any, query_diagonal: Any) -> np.ndarray:
    """Squared distances `[n, t]` in the kernel's feature space, k_ii + k_jj - 2 k_ij.

    `kernel [n, n]`, `cross_kernel [n, t]`, `query_diagonal [t]` (each query's product with itself). Raises `DataError`.
    """
    pool, cross = check_kernels(kernel, cross_kernel)
    if len(pool) > 1:
        raise DataError(f"kernel has shape {list(pool.shape)}; distances need one kernel [n, n]")
    own = as_float64("query_diagonal", query_diagonal)
    if own.shape != cross.shape[2:]:
        raise DataError(f"query_diagonal has shape {list(own.shape)}; pass [{cross.shape[2]}], one number per query")
    return (pool[0].diagonal()[:, None] + own.to(pool.device) - 2 * cross[0]).clamp_(min=0).cpu().numpy()


def knn_shapley(distances: Any, labels: Any, query_labels: Any, *, k: int = 10, per_query: bool = False) -> np.ndarray:
    """Exact Shapley values of the k-nearest-neighbour utility: `[n]`, or `[n, t]` with `per_query`.

    `distances [n, t]` (any monotone form; `kernel_distances` makes them from kernels; equal ones are ordered by row).
    The utility of a set is the share of k votes that its (up to) k nearest rows give the query's label, 0 for no rows;
    its mean over queries. Jia et al. 2019, theorem 1: with rows sorted by distance and a_i = 1 where row i has the
    query's label, s_n = a_n min(k, n) / (n k) and s_i = s_{i+1} + (a_i - a_{i+1}) min(k, i) / (i k). Raises
    `DataError`, `OptionError`.
    """
    table = as_float64("distances", distances)
    if table.ndim != 2 or 0 in table.shape:
        raise DataError(f"distances has shape {list(table.shape)}; pass [n, t] with n >= 1 rows and t >= 1 queries")
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise OptionError(f"k is {k!r}; pass an integer >= 1")
    rows, queries = table.shape
    pool_labels = check_labels("labels", labels, rows)
    if len(pool_labels.unique()) == 1:
        raise DataError(f"labels holds one class only ({int(pool_labels[0])}) in {rows} rows; pass at least two")
    asked = check_query_labels(query_labels, queries, pool_labels).to(table.device)
    pool_labels = pool_labels.to(table.device)
    rank = torch.arange(1, rows + 1, dtype=torch.float64, device=table.device)
    share = rank.clamp(max=min(k, rows)) / (rank * float(min(k, 2**1000)))
    values = torch.empty_like(table)
    step = max(1, BLOCK_NUMBERS // rows)
    for start in range(0, queries, step):
        columns = slice(start, start + step)
        order = table[:, columns].argsort(dim=0, stable=True)
        agrees = (pool_labels[order] == asked[columns]).double()
        change = agrees - torch.cat([agrees[1:], torch.zeros_like(agrees[:1])])
        # The recursion runs from the farthest row to the nearest: a running sum from the end.
        ranked = (change * share[:, None]).flip(0).cumsum(dim=0).flip(0)
        values[:, columns] = torch.empty_like(ranked).scatter_(0, order, ranked)
    return (values if per_query else values.mean(dim=1)).cpu().numpy()


def _inverses(kernel: Tensor, ridge: float) -> Iterator[Tensor]:
    """(K + ridge I)^-1 of each kernel `[k, n, n]`, one at a time."""
    for one in kernel:
        system = one.clone()
        system.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(system)
        if bool(info):
            raise not_positive_definite(kernel, ridge)
        yield torch.cholesky_inverse(factor)
