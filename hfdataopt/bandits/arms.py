"""Preferences among a fixed set of arms: features say what arms have in common, and each arm has an effect of its own.

Bradley-Terry-Luce with a Gaussian prior of covariance ``amplitude ((1 - own) k + own I)`` on the arms' scores; kernel,
``own`` and ``amplitude`` are those of the largest marginal likelihood (Laplace). With few votes the features carry the
ranking; with many, arms are told apart also where the features do not explain the votes.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hfdataopt.bandits.laplace import laplace, root_of
from hfdataopt.bandits.surrogates import AMPLITUDE_GRID, LENGTHSCALE_GRID, Surrogate, squared_distances
from hfdataopt.errors import DataError
from hfdataopt.options import check_range

OWN_GRID = (0.0, 0.1, 0.3, 0.6, 1.0)  # share of an arm's own effect in the prior variance


class ArmPosterior:
    """Mean ``[N]`` and covariance ``[N, N]`` of the arms' scores; a further vote has the noise variance ``ridge``."""

    def __init__(self, mean: Tensor, covariance: Tensor, ridge: float = 4.0) -> None:
        self.mean, self.ridge, self._covariance = mean, ridge, covariance

    def variance(self, reference: int | None = None) -> Tensor:
        """Variance ``[N]`` of every arm's score, or of its difference to that of arm ``reference``."""
        variance = self._covariance.diagonal()
        if reference is not None:
            variance = variance - 2 * self._covariance[reference] + variance[reference]
        return variance.clamp_min(0.0)

    def add(self, row: int, against: int | None = None) -> None:
        """Count a vote on ``row`` (beside ``against``) whose outcome is not known yet."""
        cross = self._covariance[row] if against is None else self._covariance[row] - self._covariance[against]
        own = cross[row] if against is None else cross[row] - cross[against]
        self._covariance = self._covariance - torch.outer(cross, cross) / (self.ridge + own.clamp_min(0.0))

    def sample(self, generator: torch.Generator) -> Tensor:
        """One joint draw ``[N]``."""
        values, vectors = torch.linalg.eigh(self._covariance)
        draw = torch.randn(len(values), generator=generator, dtype=torch.float64)
        return self.mean + vectors @ (values.clamp_min(0.0).sqrt() * draw)


@dataclass
class ArmSurrogate(Surrogate):
    """Scores of arms from votes, by features and an effect of each arm.

    ``fit_pairs`` takes the features of all arms, also of those not compared yet, and ``posterior`` the same rows again.

    Attributes:
        kernel: of the features, standardised: ``linear``, ``rbf``, or the likelier one for each set of votes.
        own: share of the arms' own effects in the prior variance; None = the likeliest of :data:`OWN_GRID`.
        refresh: the prior is chosen anew when there are this share more votes, by the votes there were then, and kept in
            between by a surrogate that is fitted again; 0 = by all votes at every fit.
    """

    name = "arms"
    kernel: Literal["linear", "rbf", "likelier"] = "linear"
    own: float | None = None
    refresh: float = 0.0
    _chosen_by: tuple[Tensor, ...] = field(default=(), init=False, repr=False, compare=False)
    _chosen_root: Any = field(default=None, init=False, repr=False, compare=False)
    _posterior: ArmPosterior | None = field(default=None, init=False, repr=False, compare=False)
    chosen: tuple[int, float, float] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "own", at_least=0, at_most=1)
        check_range(self, "refresh", at_least=0)

    def _fit_pairs(self, x: Tensor, left: Tensor, right: Tensor, outcomes: Tensor) -> None:
        votes = self._rung(len(outcomes))
        by = (x, left[:votes], right[:votes], outcomes[:votes])
        if len(by) != len(self._chosen_by) or not all(map(torch.equal, by, self._chosen_by)):
            self._choose_prior(*by)
            self._chosen_by = by
        assert self.chosen is not None
        root = self._chosen_root
        start = torch.zeros(root.shape[1], dtype=x.dtype)
        _, weights, precision = laplace(root[left] - root[right], outcomes, self.chosen[2], start)
        half = torch.linalg.solve_triangular(precision, root.T, upper=False)
        self._posterior = ArmPosterior(root @ weights, half.T @ half)

    def _rung(self, votes: int) -> int:
        """The largest number up to ``votes`` at which the prior is chosen."""
        rung = following = 1
        while self.refresh and following <= votes:
            rung, following = following, max(following + 1, int(following * (1 + self.refresh)))
        return rung if self.refresh else votes

    def _choose_prior(self, x: Tensor, left: Tensor, right: Tensor, outcomes: Tensor) -> None:
        best = -math.inf
        for number, kernel in enumerate(self._kernels(x)):
            for own in OWN_GRID if self.own is None else (self.own,):
                if own == 1.0 and number:
                    continue  # the kernel does not matter
                prior = (1 - own) * kernel + own * torch.eye(len(x), dtype=x.dtype)
                root = root_of(prior)
                design = root[left] - root[right]
                weights = torch.zeros(root.shape[1], dtype=x.dtype)
                for amplitude in AMPLITUDE_GRID:
                    evidence, weights, _ = laplace(design, outcomes, amplitude, weights)
                    if evidence > best:
                        best, self.chosen, self._chosen_root = evidence, (number, own, amplitude), root

    def _kernels(self, x: Tensor) -> list[Tensor]:
        kernels = []
        if self.kernel != "rbf":
            kernels.append(x @ x.T)
        if self.kernel != "linear":
            squared = squared_distances(x, x)
            distances = squared[*torch.triu_indices(len(x), len(x), 1)]
            median = float(distances.median()) if len(distances) else 0.0
            kernels += [torch.exp(-squared / (2 * factor**2 * (median or 1.0))) for factor in LENGTHSCALE_GRID[::2]]
        return [kernel / (float(kernel.diagonal().mean()) or 1.0) for kernel in kernels]

    def posterior(self, pool: Any) -> Any:
        if self._posterior is None or len(pool) != len(self._posterior.mean):
            raise DataError("ArmSurrogate: fit it first; it knows only the arms that it was fitted to")
        return ArmPosterior(self._posterior.mean, self._posterior._covariance)
