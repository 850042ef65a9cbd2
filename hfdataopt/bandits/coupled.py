"""Matérn Gaussian processes, and InstructZero's kernel, which couples points with what their instructions scored."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hfdataopt.bandits.surrogates import LENGTHSCALE_GRID, KernelPoints, _finite, _Kernel, squared_distances
from hfdataopt.errors import DataError

JITTER = 1e-4  # InstructZero's, on the diagonal of the points' kernel


class MaternPoints(KernelPoints):
    """Rows ``[n, d]`` with the Matérn kernel of smoothness 5/2."""

    def rows(self, index: Any) -> "MaternPoints":
        return MaternPoints(self.x[index], self.lengthscale)

    def double(self) -> "MaternPoints":
        return MaternPoints(self.x.double(), self.lengthscale)

    def gram(self, other: KernelPoints) -> Tensor:
        assert self.lengthscale is not None
        # The square root has no slope at 0.
        r = math.sqrt(5) * squared_distances(self.x, other.x).clamp_min(1e-20).sqrt() / self.lengthscale
        return (1 + r + r**2 / 3) * torch.exp(-r)


def lengthscales(x: Tensor) -> list[float]:
    """Lengthscales to choose from: multiples of the median distance of rows that differ."""
    distances = squared_distances(x, x)[*torch.triu_indices(len(x), len(x), 1)].sqrt()
    distances = distances[distances > 0]
    median = float(distances.median()) if len(distances) else 1.0
    return [factor * median for factor in LENGTHSCALE_GRID]


@dataclass
class MaternSurrogate(_Kernel):
    """Gaussian process with a Matérn-5/2 kernel on standardised features."""

    def _kernels(self, x: Tensor) -> list[Callable[[Tensor], Any]]:
        return [partial(MaternPoints, lengthscale=one) for one in lengthscales(x)]


@dataclass(frozen=True)
class CoupledKernel:
    """A map to points whose inner products are the coupled kernel.

    Attributes:
        observed: points with ``k_l``.
        factor: ``[t, t]``, ``(K_l + 1e-4 I)^-1`` times a root of ``K_s``.
        lengthscale: of ``K_s``.
    """

    observed: MaternPoints
    factor: Tensor
    lengthscale: float

    def __call__(self, rows: Tensor) -> KernelPoints:
        return KernelPoints(MaternPoints(rows, self.observed.lengthscale).gram(self.observed) @ self.factor)


@dataclass
class CoupledSurrogate(_Kernel):
    """Gaussian process with InstructZero's instruction-coupled kernel (Chen et al., 2024).

    ``k(z, z') = k_l(z, Z) (K_l + 1e-4 I)^-1 K_s (K_l + 1e-4 I)^-1 k_l(Z, z')`` with Matérn-5/2 kernels: ``k_l`` of points, observed
    ones Z, and ``K_s`` of the observed instructions' rewards on the same items. The lengthscale of ``k_l`` is that of the largest
    marginal likelihood of ``k_l`` alone (coupled, it hardly shows at observed points), that of ``K_s`` the coupled kernel's own.
    """

    _rewards: Any = field(default=None, init=False, repr=False, compare=False)

    def fit_rewards(self, x: Any, y: Any, rewards: Any, noise: Any = None) -> "CoupledSurrogate":
        """Learn from scores ``y [t]`` at ``x [t, d]``; ``rewards [t, items]`` say which instructions are alike."""
        self._rewards = _finite(rewards, "rewards")
        if self._rewards.ndim != 2 or len(self._rewards) != len(x):
            raise DataError(
                f"CoupledSurrogate: rewards of shape {tuple(self._rewards.shape)} for {len(x)} rows; they must be [rows, items]"
            )
        self.fit(x, y, noise)
        return self

    def _kernels(self, x: Tensor) -> list[Callable[[Tensor], Any]]:
        if self._rewards is None:
            raise DataError("CoupledSurrogate: call fit_rewards()")
        alone = MaternSurrogate()
        alone._relative = self._relative
        alone._target = self._target
        alone._fit(x, self._scores)
        observed: MaternPoints = alone._kernel(x)
        inverse = torch.linalg.inv(observed.gram(observed) + JITTER * torch.eye(len(x), dtype=torch.float64))
        found: list[Callable[[Tensor], Any]] = []
        for lengthscale in lengthscales(self._rewards):
            points = MaternPoints(self._rewards, lengthscale)
            values, vectors = torch.linalg.eigh(points.gram(points))
            root = vectors * values.clamp_min(0.0).sqrt()  # K_s = root root^T; equal rows make it singular
            found.append(CoupledKernel(observed, inverse @ root, lengthscale))
        return found

    def _fit(self, x: Tensor, y: Tensor) -> None:
        self._scores = y
        super()._fit(x, y)
