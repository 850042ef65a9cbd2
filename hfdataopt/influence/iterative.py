"""Solving ``(H + damping) x = b`` for several right sides at once, with products only.

- :func:`conjugate_gradients`: the fewest products for an accuracy asked for
- :func:`lissa`: a Neumann series of a given depth (Agarwal et al. 2017); with products over the whole sample instead of
  one row a step, so it has no sampling noise and does not depend on batches
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hfdataopt.errors import DataError, OptionError

Product = Callable[[Tensor], Tensor]
POWER_STEPS = 20


@dataclass
class Solution:
    """``vectors [q, P]`` float64; per right side the iterations made and the relative residual ``|b - A x| / |b|``.

    NaN for a right side that is not finite.
    """

    vectors: Tensor
    iterations: Tensor
    residuals: Tensor


def conjugate_gradients(
    product: Product,
    right: Tensor,
    damping: Tensor | float,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> Solution:
    """Conjugate gradients (Hestenes & Stiefel 1952), each right side until its relative residual is below ``tolerance``.

    ``product [k, P] -> [k, P]`` multiplies with a positive semi-definite H; ``damping``, a number or ``[P]``, is above 0.
    Right sides that ``max_iterations`` did not suffice for are returned as they are: look at the residuals.
    """
    right = right.double()
    x = torch.zeros_like(right)
    residual = right.clone()
    direction = right.clone()
    wanted = right.norm(dim=1)
    squared = residual.square().sum(1)
    iterations = torch.zeros(len(right), dtype=torch.long)
    for _ in range(max_iterations):
        active = (torch.isfinite(squared) & (squared.sqrt() > tolerance * wanted)).nonzero().flatten()
        if not len(active):
            break
        along = direction[active]
        image = product(along) + damping * along
        bend = (along * image).sum(1)
        if not (torch.isfinite(bend) & (bend > 0)).all():
            raise DataError(
                f"influence: the curvature along a direction is {float(bend.min()):.3g}, but must be above 0; a product is not "
                "finite or the damping is lost in rounding: raise damping, or look at the sampled rows"
            )
        step = (squared[active] / bend).unsqueeze(1)
        x[active] += step * along
        residual[active] -= step * image
        new = residual[active].square().sum(1)
        direction[active] = residual[active] + (new / squared[active]).unsqueeze(1) * along
        squared[active] = new
        iterations[active] += 1
    x[~torch.isfinite(wanted)] = float("nan")
    return Solution(x, iterations, squared.sqrt() / wanted.clamp_min(1e-300))


def lissa(
    product: Product,
    right: Tensor,
    damping: Tensor | float,
    *,
    depth: int = 100,
    scale: float | None = None,
    seed: int = 0,
) -> Solution:
    """``1/scale * sum over j < depth of (I - A/scale)^j b`` with ``A = H + damping``; ``depth`` products.

    It converges for every ``scale`` above half the largest eigenvalue of A, at a rate of 1 - smallest / scale. None takes
    1.1 times a power-iteration estimate of the largest.

    Raises ``OptionError`` when the terms grow, which they do only with a scale too small.
    """
    right = right.double()
    finite = torch.isfinite(right).all(1)
    term = right[finite]
    if scale is None:
        scale = 1.1 * largest_eigenvalue(lambda x: product(x) + damping * x, right.shape[1], seed)
    total = torch.zeros_like(term)
    wanted = term.norm(dim=1)
    smallest = wanted.clone()
    for number in range(depth):
        total += term
        term = term - (product(term) + damping * term) / scale
        norm = term.norm(dim=1)
        # Up to a scale of half the largest eigenvalue no term is longer than the one before; 1 % is left to rounding.
        if not (norm <= 1.01 * smallest).all():
            raise OptionError(
                f"influence: the LiSSA series diverges at depth {number + 1} with scale={scale:.3g}; leave scale at None or pass a "
                "larger one (above half the largest eigenvalue of H + damping), or use conjugate gradients"
            )
        smallest = torch.minimum(smallest, norm)
    vectors = torch.full_like(right, float("nan"))
    vectors[finite] = total / scale
    residuals = torch.full((len(right),), float("nan"), dtype=torch.float64)
    residuals[finite] = term.norm(dim=1) / wanted.clamp_min(1e-300)  # the term left out is b - A x
    return Solution(vectors, torch.full((len(right),), depth), residuals)


def largest_eigenvalue(product: Product, size: int, seed: int = 0, steps: int = POWER_STEPS) -> float:
    """Estimate, from below, of the largest eigenvalue of a positive semi-definite matrix by power iteration."""
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(1, size, generator=generator, dtype=torch.float64)
    value = 0.0
    for _ in range(steps):
        vector = vector / vector.norm().clamp_min(1e-300)
        vector = product(vector)
        value = float(vector.norm())
    return value
