"""Means and variances of a pool's scores given observations, and what they become as further rows are chosen.

With gradients (or features) ``g`` and the observed ones as rows of ``G``, the variance is

    ridge g^T (ridge I + G^T G)^-1 g = k(x, x) - k_x^T (ridge I + K)^-1 k_x

(Woodbury), from inner products alone: neither a P x P nor a pool x P matrix is formed. The variance does not depend on the
outcomes, so choosing a row whose outcome is still unknown is a rank-one downdate.
"""

from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hfdataopt.bandits.gradients import LayerGradients, as_rows, scores_and_gradients
from hfdataopt.errors import DataError, OptionError

Self = TypeVar("Self", bound="Points")


class Points(Protocol):
    """Points of a space with an inner product: parameter gradients, or a kernel's features."""

    def __len__(self) -> int: ...
    def rows(self: Self, index: Any) -> Self: ...
    def double(self: Self) -> Self: ...
    def gram(self: Self, other: Self) -> Tensor: ...
    def squared_norms(self) -> Tensor: ...


class Posterior:
    """Mean and full-matrix variance of every row of a pool.

    Args:
        mean: ``[N]``.
        pool, observed: the points; ``observed`` may be None.
        ridge: the noise variance: one number, or one per observation ``[t]``, in the units of the points' inner products.
        pairs: ``[p, 2]`` rows of ``observed``; the observations are then differences, first minus second.
        scale: all variances are multiplied by it.
    """

    def __init__(
        self,
        mean: Tensor,
        pool: Any,
        observed: Any,
        ridge: float | Tensor,
        pairs: Any = None,
        scale: float = 1.0,
    ) -> None:
        self.mean = mean.double()
        self.ridge = float(torch.as_tensor(ridge, dtype=torch.float64).mean())
        self._pool, self._scale = pool, scale
        self._prior = pool.squared_norms().double()
        self._whitened = self._prior.new_zeros(0, len(pool))  # L^-1 k, L L^T = ridge I + K
        if observed is not None and len(observed):
            gram = observed.double().gram(observed.double())
            cross = observed.gram(pool).double()
            if pairs is not None:
                left, right = check_pairs(pairs, len(observed))
                gram = gram[:, left] - gram[:, right]
                gram, cross = gram[left] - gram[right], cross[left] - cross[right]
            noise = torch.as_tensor(ridge, dtype=torch.float64, device=gram.device).expand(len(gram))
            cholesky, failed = torch.linalg.cholesky_ex(gram + torch.diag(noise))
            if failed:
                raise DataError(
                    f"variance: ridge={self.ridge:.3g} is too small beside inner products of {gram.max():.3g}"
                )
            self._whitened = torch.linalg.solve_triangular(cholesky, cross, upper=False)
        self._variance = self._prior - (self._whitened**2).sum(0)

    def variance(self, reference: int | None = None) -> Tensor:
        """Variance ``[N]`` of every row's score, or of its difference to the score of row ``reference``."""
        variance = self._variance
        if reference is not None:
            prior = self._prior - 2 * self._gram_with(reference) + self._prior[reference]
            variance = prior - ((self._whitened - self._whitened[:, [reference]]) ** 2).sum(0)
            variance[reference] = 0.0
        return self._scale * variance.clamp_min(0.0)

    def prior_variance(self) -> Tensor:
        """Variance ``[N]`` of every row's score before any observation."""
        return self._scale * self._prior

    def add(self, row: int, against: int | None = None) -> None:
        """Count an observation of ``row`` (or of its difference to ``against``) whose outcome is not known yet."""
        cross, whitened = self._gram_with(row), self._whitened[:, row]
        if against is not None:
            cross, whitened = cross - self._gram_with(against), whitened - self._whitened[:, against]
        covariance = cross - whitened @ self._whitened
        own = covariance[row] if against is None else covariance[row] - covariance[against]
        new = covariance / (self.ridge + own.clamp_min(0.0)).sqrt()
        self._whitened = torch.cat([self._whitened, new[None]])
        self._variance = self._variance - new**2

    def sample(self, generator: torch.Generator) -> Tensor:
        """One joint draw ``[N]`` from the normal distribution: of O(N^3) time, for pools of up to a few thousand rows."""
        points = self._pool.double()
        covariance = points.gram(points) - self._whitened.T @ self._whitened
        values, vectors = torch.linalg.eigh(self._scale * covariance)
        draw = torch.randn(len(values), generator=generator, dtype=torch.float64)
        return self.mean + vectors @ (values.clamp_min(0.0).sqrt() * draw)

    def _gram_with(self, row: int) -> Tensor:
        return self._pool.gram(self._pool.rows([row]))[:, 0].double()


class DiagonalPosterior:
    """As :class:`Posterior`, with only the diagonal of ``ridge I + G^T G``, as released code of NeuralUCB keeps it."""

    def __init__(
        self,
        mean: Tensor,
        pool: LayerGradients,
        observed: LayerGradients | None,
        ridge: float,
        pairs: Any = None,
        scale: float = 1.0,
    ) -> None:
        self.mean, self.ridge = mean.double(), ridge
        self._pool, self._scale = pool, scale
        self._sums = [
            torch.full((d.shape[1], h.shape[1]), ridge, dtype=d.dtype, device=d.device) for h, d in _factors(pool)
        ]
        if observed is not None and len(observed):
            self._add(observed, pairs)

    def variance(self, reference: int | None = None) -> Tensor:
        """Variance ``[N]`` of every row's score, or of its difference to the score of row ``reference``."""
        total = self._pool.deltas[0].new_zeros(len(self._pool))
        for (h, delta), sums in zip(_factors(self._pool), self._sums, strict=True):
            total += torch.linalg.vecdot((delta**2) @ (1 / sums), h**2)
            if reference is not None:
                other = delta[reference][:, None] * h[reference] / sums
                total -= 2 * torch.linalg.vecdot(delta @ other, h)
                total += delta[reference] @ other @ h[reference]
        if reference is not None:
            total[reference] = 0.0
        return self._scale * self.ridge * total.clamp_min(0.0).double()

    def add(self, row: int, against: int | None = None) -> None:
        """Count an observation of ``row`` (or of its difference to ``against``) whose outcome is not known yet."""
        if against is None:
            self._add(self._pool.rows([row]), None)
        else:
            self._add(self._pool.rows([row, against]), [[0, 1]])

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw ``[N]``, independent between rows."""
        draw = torch.randn(len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + self.variance().sqrt() * draw

    def _add(self, observed: LayerGradients, pairs: Any) -> None:
        for (h, delta), sums in zip(_factors(observed), self._sums, strict=True):
            if pairs is None:
                sums += (delta**2).T @ h**2
            else:
                left, right = check_pairs(pairs, len(observed))
                for rows in (left, right):
                    sums += (delta[rows] ** 2).T @ h[rows] ** 2
                sums -= 2 * (delta[left] * delta[right]).T @ (h[left] * h[right])


def _factors(gradients: LayerGradients) -> list[tuple[Tensor, Tensor]]:
    """Per layer the input, with a last column of ones where there is a bias, and the delta."""
    return [
        (torch.cat([h, torch.ones_like(h[:, :1])], 1) if bias else h, delta)
        for h, delta, bias in zip(gradients.inputs, gradients.deltas, gradients.biases, strict=True)
    ]


def check_pairs(pairs: Any, observed: int) -> tuple[Tensor, Tensor]:
    """The two columns of ``pairs [p, 2]``, whole numbers of rows of ``observed``."""
    pairs = torch.as_tensor(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.is_floating_point() or pairs.dtype == torch.bool:
        raise DataError(f"pairs: got shape {tuple(pairs.shape)} of {pairs.dtype}; it takes whole numbers [pairs, 2]")
    if len(pairs) and not (int(pairs.min()) >= 0 and int(pairs.max()) < observed):
        raise DataError(f"pairs: rows {int(pairs.min())} to {int(pairs.max())} of {observed} observed rows")
    return pairs[:, 0].long(), pairs[:, 1].long()


def neural_variance(
    network: nn.Module,
    pool: Any,
    observed: Any,
    *,
    ridge: float,
    pairs: Any = None,
    reference: Any = None,
    diagonal: bool = False,
) -> Tensor:
    """``ridge g^T (ridge I + G^T G)^-1 g`` of every candidate: NeuralUCB's variance (Zhou et al., 2020), not its root.

    ``g`` is the gradient of the network's score in all its parameters, with no width factor.

    Args:
        network: an ``nn.Sequential`` of ``nn.Linear`` and elementwise activations with one output, float32 or float64.
        pool: ``[N, d]`` candidates.
        observed: ``[t, d]``, whose gradients at the present parameters are the rows of G; or :class:`LayerGradients`, whose
            gradients are taken as they are (INSTINCT's: each at the parameters of its own round).
        ridge: above 0.
        pairs: ``[p, 2]`` rows of ``observed``; the rows of G are then differences, first minus second.
        reference: ``[d]``; ``g`` is then the difference to this candidate's gradient.
        diagonal: keep only the diagonal of the P x P matrix.

    Returns:
        ``[N]``, in the network's dtype.
    """
    if isinstance(ridge, bool) or not isinstance(ridge, int | float) or not 0 < ridge < float("inf"):
        raise OptionError(f"neural_variance: ridge={ridge!r} must be a finite number above 0")
    points, row = as_rows(network, pool, "pool"), None
    if reference is not None:
        arm = as_rows(network, torch.as_tensor(reference)[None], "reference[None]")
        points, row = torch.cat([points, arm]), len(points)
    mean, gradients = scores_and_gradients(network, points, "pool")
    if not isinstance(observed, LayerGradients):
        observed = scores_and_gradients(network, observed, "observed")[1]
    kind = DiagonalPosterior if diagonal else Posterior
    variance = kind(mean, gradients, observed, float(ridge), pairs).variance(row)
    return (variance if row is None else variance[:row]).to(points)
