"""Kernel regression on every prefix of an order of rows, from one Cholesky factorisation.

With K + ridge I = L L^T in the given order, the leading m x m block of L is the factor of the first m rows alone. So
with A = L^-1 K_cross `[n, t]` and B = L^-1 Y `[n, c]`, the prediction after m rows is sum over i < m of A[i] B[i]^T: a
running sum. The rows of L are themselves the A of pool rows: L[p, :m] B[:m] predicts the p-th row from the first m <=
p.

Members, from plainest to fastest: `prefix_predictions_reference` (one solve per prefix), `prefix_predictions`,
`factor_blocks` (lazy: factors `BLOCK` rows at a time and so can stop early; what the estimator walks).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfdataopt.errors import DataError, OptionError
from hfdataopt.shapley._inputs import check_kernels, check_targets

BLOCK = 192
"""Rows factored at a time; at 2,000 rows the time is flat from 128 to 384."""


class NotPositiveDefiniteError(DataError):
    """A pivot of the factorisation was not positive."""


@dataclass(frozen=True)
class FactorBlock:
    """Positions `start` to `stop` of the order. The leading axis g runs over permutations x kernels, kernels
    fastest."""

    start: int
    stop: int
    panel: Tensor
    """`[g, stop - start, stop]`: these rows of L."""
    solved: Tensor
    """`[g, stop, q]`: L^-1 applied to the right-hand sides, up to and with these rows."""


def factor_blocks(
    kernel: Tensor, right: Tensor, orders: Tensor, ridge: float, block: int = BLOCK
) -> Iterator[FactorBlock]:
    """Extends L and L^-1 [right] by one block of rows per step, never further than it is asked.

    `kernel [k, n, n]`, `right [k, n, q]`, `orders [p, m]` (each a list of distinct rows). Memory is p k m (m + q)
    numbers; the cost up to position s is p k (s^3 / 3 + s^2 q) flop. Raises `NotPositiveDefiniteError`.
    """
    kernels, (permutations, length) = kernel.shape[0], orders.shape
    factor = kernel.new_empty(permutations * kernels, length, length)
    solved = kernel.new_empty(permutations * kernels, length, right.shape[2])
    corners: list[Tensor] = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        panel, rows = factor[:, start:stop, :stop], solved[:, start:stop]
        for permutation, order in enumerate(orders):
            for index in range(kernels):
                place = permutation * kernels + index
                drawn = kernel[index].index_select(0, order[start:stop])
                # gather along a row is twice as fast as index_select of columns (torch 2.13, CPU).
                panel[place] = drawn.gather(1, order[:stop].expand(stop - start, stop))
                rows[place] = right[index].index_select(0, order[start:stop])
        for left, corner in zip(range(0, start, block), corners, strict=True):
            part = panel[:, :, left : left + block]
            if left:
                _subtract_product(part, panel[:, :, :left], factor[:, left : left + block, :left].mT)
            part.copy_(torch.linalg.solve_triangular(corner, part.mT, upper=False).mT)
        square = panel[:, :, start:]
        square.diagonal(dim1=1, dim2=2).add_(ridge)
        if start:
            _subtract_product(square, panel[:, :, :start], panel[:, :, :start].mT)
            _subtract_product(rows, panel[:, :, :start], solved[:, :start])
        corner, info = torch.linalg.cholesky_ex(square)
        if bool(info.any()):
            raise NotPositiveDefiniteError(
                f"kernel + {ridge:.3g} I is not positive definite (found after {start} to {stop} of {length} rows)"
            )
        square.copy_(corner)
        corners.append(corner)
        rows.copy_(torch.linalg.solve_triangular(corner, rows, upper=False))
        yield FactorBlock(start, stop, panel, solved[:, :stop])


def _subtract_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out -= left @ right, `[g, a, b]`, in place."""
    if out.is_cuda:
        out.baddbmm_(left, right, alpha=-1)
        return
    # On a CPU a batched product is a loop too, and a slower one: it does not write into a view in place.
    for one, first, second in zip(out, left, right, strict=True):
        one.addmm_(first, second, alpha=-1)


def stack_right(cross: Tensor, targets: Tensor) -> Tensor:
    """Right-hand sides `[k, n, q]`: the queries' columns, then all targets (k = 1) or the target of kernel k."""
    own = targets[None] if cross.shape[0] == 1 else targets.T[:, :, None]
    return torch.cat([cross, own], dim=2)


def running_predictions(block: FactorBlock, carry: Tensor, permutations: int) -> Tensor:
    """Predictions `[p, c, stop - start, t]` after each row of the block; `carry [p, c, t]` is those before it,
    updated."""
    queries = carry.shape[2]
    new = block.solved[:, block.start :].unflatten(0, (permutations, -1))
    # [p, k, rows, t] * [p, c, rows, 1]: with one kernel the queries' part is shared by the classes.
    weights = new[..., queries:]
    weights = weights.movedim(3, 1).flatten(1, 2) if weights.shape[1] == 1 else weights.squeeze(3)
    predictions = new[..., :queries] * weights.unsqueeze(3)
    predictions[:, :, 0] += carry
    predictions.cumsum_(dim=2)
    carry.copy_(predictions[:, :, -1])
    return predictions


def prefix_predictions(kernel: Any, cross_kernel: Any, targets: Any, order: Any, *, ridge: float) -> Any:
    """Predictions of kernel regression from the first 1, 2, ..., m rows of `order`: `[m, t, c]`, float64.

    `kernel [n, n]`, `cross_kernel [n, t]`, `targets [n, c]`, `order [m]` (distinct rows, m <= n). With `kernel [c, n,
    n]` and `cross_kernel [c, n, t]` class k is regressed by kernel k. `ridge` is absolute. The result is an array or a
    tensor as `kernel` is. One factorisation, m^3 / 3 + m^2 (t + c) flop in all. Raises `DataError` (shapes, not finite,
    not positive definite) and `OptionError` (ridge).
    """
    pool, cross, values, rows = _checked(kernel, cross_kernel, targets, order, ridge)
    out = pool.new_empty(len(rows), cross.shape[2], values.shape[1])
    carry = pool.new_zeros(1, values.shape[1], cross.shape[2])
    for block in factor_blocks(pool, stack_right(cross, values), rows[None], ridge):
        out[block.start : block.stop] = running_predictions(block, carry, 1)[0].movedim(0, 2)
    return out if isinstance(kernel, Tensor) else out.numpy()


def prefix_predictions_reference(kernel: Any, cross_kernel: Any, targets: Any, order: Any, *, ridge: float) -> Any:
    """As `prefix_predictions`, by one solve per prefix and class: m^4 / 6 flop per class. For tests and small m."""
    pool, cross, values, rows = _checked(kernel, cross_kernel, targets, order, ridge)
    out = pool.new_empty(len(rows), cross.shape[2], values.shape[1])
    for size in range(1, len(rows) + 1):
        held = rows[:size]
        for column in range(values.shape[1]):
            index = column if pool.shape[0] > 1 else 0
            system = pool[index][held][:, held] + ridge * torch.eye(size, dtype=pool.dtype, device=pool.device)
            out[size - 1, :, column] = torch.linalg.solve(system, values[held, column]) @ cross[index][held]
    return out if isinstance(kernel, Tensor) else out.numpy()


def _checked(
    kernel: Any, cross_kernel: Any, targets: Any, order: Any, ridge: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pool, cross = check_kernels(kernel, cross_kernel)
    values = check_targets(targets, pool)
    if isinstance(ridge, str) or not 0 <= ridge < float("inf"):
        raise OptionError(f"ridge is {ridge!r}; pass a finite number >= 0 (`loo_ridge` and `relative_ridge` give one)")
    rows = torch.as_tensor(np.asarray(order) if not isinstance(order, Tensor) else order, device=pool.device)
    if rows.ndim != 1 or rows.numel() == 0 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise DataError(f"order has shape {list(rows.shape)} and type {rows.dtype}; pass m >= 1 row positions")
    if int(rows.min()) < 0 or int(rows.max()) >= pool.shape[1] or len(rows.unique()) != len(rows):
        raise DataError(
            f"order must hold distinct rows of 0 .. {pool.shape[1] - 1}; it repeats one or leaves this range"
        )
    return pool, cross, values, rows.long()
