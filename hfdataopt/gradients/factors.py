"""Arithmetic on the factors of per-example gradients.

A **use** is a pair ``(left, right)`` with ``G = sum over positions t of left[:, t] (x) right[:, t]``. Each side is a
dense tensor ``[batch, positions, size]``, or a tensor of indices ``[batch, positions]`` that stands for one-hot
vectors. The functions here never loop over positions, and work in float32 whatever dtype the model ran in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Uses = Sequence[tuple[Tensor, Tensor]]


def is_index(side: Tensor) -> bool:
    """Whether a side holds indices of one-hot vectors instead of dense vectors."""
    return not side.is_floating_point()


def materialise(uses: Uses, rows: int, columns: int) -> Tensor:
    """The per-example gradients ``[batch, rows, columns]``, summed over uses."""
    total: Tensor | None = None
    for left, right in uses:
        if is_index(left):
            part = right.new_zeros((left.shape[0], rows, columns), dtype=torch.float32)
            part.scatter_add_(1, left.unsqueeze(-1).expand(-1, -1, columns), right.float())
        else:
            part = torch.bmm(left.float().transpose(1, 2), right.float())
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def pair_products(uses: Uses, others: Uses) -> Tensor:
    """``<G_i, G_j>`` for all examples of ``uses`` ``[n]`` against all of ``others`` ``[m]``, without making any G.

    ``<G_i, G_j> = sum over t, u of (left_it . left_ju)(right_it . right_ju)``; memory ``n m T U`` floats.
    """
    total: Tensor | None = None
    for left, right in uses:
        for other_left, other_right in others:
            inner = _all_inner(left, other_left)
            part = inner.mul_(_all_inner(right, other_right)).sum(dim=(1, 3))
            total = part if total is None else total.add_(part)
    assert total is not None
    return total


def squared_norms(uses: Uses, rows: int, columns: int) -> Tensor:
    """``|G_i|^2 [batch]`` in float64, by the cheaper of materialising G and of inner products between positions."""
    positions = sum(left.shape[1] for left, _ in uses)
    if len(uses) > 1 or positions * (rows + columns) > rows * columns:
        return materialise(uses, rows, columns).flatten(1).double().square().sum(1)
    left, right = uses[0]
    return _own_inner(left).mul_(_own_inner(right)).sum(dim=(1, 2), dtype=torch.float64).clamp_(min=0)


def used_positions(left: Tensor, right: Tensor) -> Tensor:
    """Which positions ``[batch, positions]`` carry any gradient; padding does not, nor anything the loss cannot see.

    Entries below 1e-6 of the example's largest are rounding: a query that sees one key has a gradient of 0 or of 1e-9.
    """
    gradient = right if is_index(left) else left
    largest = gradient.abs().amax(dim=-1).float()
    return largest > 1e-6 * largest.amax(dim=1, keepdim=True)


def finite_rows(uses: Uses) -> Tensor:
    """Which examples ``[batch]`` have only finite factors."""
    ok: Tensor | None = None
    for side in (side for use in uses for side in use if not is_index(side)):
        # One reduction: a sum is non-finite if any term is (an overflow of finite terms is as unusable).
        finite = torch.isfinite(side.float().abs().flatten(1).sum(1))
        ok = finite if ok is None else ok & finite
    assert ok is not None
    return ok


def _all_inner(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of all positions of all examples: ``[n, T, m, U]``."""
    if is_index(one) and is_index(other):
        return (one[:, :, None, None] == other[None, None]).float()
    if is_index(one):
        return other.float()[:, :, one].permute(2, 3, 0, 1).contiguous()
    if is_index(other):
        return one.float()[:, :, other].contiguous()
    n, t, size = one.shape
    m, u, _ = other.shape
    return (one.reshape(n * t, size).float() @ other.reshape(m * u, size).float().T).view(n, t, m, u)


def _own_inner(side: Tensor) -> Tensor:
    """Inner products between the positions of each example: ``[batch, T, T]``."""
    if is_index(side):
        return (side.unsqueeze(1) == side.unsqueeze(2)).float()
    side = side.float()
    return torch.bmm(side, side.transpose(1, 2))
