"""Logistic regression on differences under a Gaussian prior (Bradley-Terry-Luce), by Laplace's approximation."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def root_of(matrix: Tensor) -> Tensor:
    """``[N, m]`` with ``root root^T`` the matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > 1e-9 * values[-1]
    kept[-1] = True  # of a matrix of zeros
    return vectors[:, kept] * values[kept].clamp_min(0.0).sqrt()


def laplace(design: Tensor, outcomes: Tensor, amplitude: float, start: Tensor) -> tuple[float, Tensor, Tensor]:
    """The most probable weights of logistic regression under a prior N(0, ``amplitude`` I), by Newton's method.

    Args:
        design: ``[p, m]``.
        outcomes: ``[p]``, from 0 to 1.

    Returns:
        The log marginal likelihood (Laplace), the weights ``[m]``, and the Cholesky factor ``[m, m]`` of their posterior
        precision.
    """
    weights, identity = start, torch.eye(design.shape[1], dtype=design.dtype)
    for _ in range(50):
        chance = torch.sigmoid(design @ weights)
        curvature = chance * (1 - chance)
        precision = torch.linalg.cholesky(identity / amplitude + design.T @ (curvature[:, None] * design))
        slope = design.T @ (outcomes - chance) - weights / amplitude
        step = torch.cholesky_solve(slope[:, None], precision)[:, 0]
        weights = weights + step * min(1.0, 5.0 / max(float((design @ step).abs().max()), 1e-12))
        if float(step.abs().max()) < 1e-6 * max(1.0, float(weights.abs().max())):
            break
    fit = -functional.binary_cross_entropy_with_logits(design @ weights, outcomes, reduction="sum")
    shrinkage = 0.5 * float(weights @ weights) / amplitude + 0.5 * len(weights) * math.log(amplitude)
    return float(fit) - shrinkage - float(precision.diagonal().log().sum()), weights, precision
