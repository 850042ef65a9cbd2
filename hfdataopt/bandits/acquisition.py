"""Which candidates, or pairs of candidates, to try next.

All functions take the posterior of the whole pool and choose ``n`` at once: after each choice the posterior is downdated as
if it had been observed, which changes the variances of its neighbours; so the posterior given is used up. ``available [N]``
is False for rows that must not be chosen (already asked). ``pending`` are choices whose outcomes are still under way: they are
downdated first and not chosen again.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hfdataopt.bandits.posterior import DiagonalPosterior, Posterior
from hfdataopt.errors import OptionError

AnyPosterior = Posterior | DiagonalPosterior
Pair = tuple[int, int]


def upper_bound(mean: Tensor, variance: Tensor, nu: float, papers: bool = False) -> Tensor:
    """NeuralUCB's ``mean + nu sqrt(variance)``; with ``papers``, as released code has it, ``mean + sqrt(nu variance)``."""
    return mean + ((nu * variance).sqrt() if papers else nu * variance.sqrt())


def improvement(mean: Tensor, variance: Tensor, best: float) -> Tensor:
    """Expected improvement over ``best`` of normal scores."""
    deviation = variance.clamp_min(1e-24).sqrt()
    z = (mean - best) / deviation
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return deviation * (z * torch.special.ndtr(z) + density)


def neural_ucb(
    posterior: AnyPosterior,
    n: int = 1,
    *,
    nu: float = 1.0,
    papers: bool = False,
    available: Any = None,
    pending: Iterable[int] = (),
) -> list[int]:
    """Rows of the largest upper confidence bounds (Zhou et al., 2020; INSTINCT)."""
    return _greedy(
        posterior, n, lambda: upper_bound(posterior.mean, posterior.variance(), nu, papers), available, pending
    )


def expected_improvement(
    posterior: AnyPosterior,
    n: int = 1,
    *,
    best: float,
    available: Any = None,
    pending: Iterable[int] = (),
) -> list[int]:
    """Rows of the largest expected improvement over ``best`` (Jones et al., 1998)."""

    return _greedy(posterior, n, lambda: improvement(posterior.mean, posterior.variance(), best), available, pending)


def thompson(
    posterior: AnyPosterior,
    n: int = 1,
    *,
    generator: torch.Generator,
    available: Any = None,
    pending: Iterable[int] = (),
) -> list[int]:
    """Best rows of ``n`` draws from the posterior, one each."""
    return _greedy(posterior, n, lambda: posterior.sample(generator), available, pending, downdate=False)


def dueling_ucb(
    posterior: AnyPosterior,
    n: int = 1,
    *,
    nu: float = 1.0,
    papers: bool = False,
    available: Any = None,
    asked: Iterable[Pair] = (),
    pending: Iterable[Pair] = (),
) -> list[Pair]:
    """Pairs: first the best mean, second the largest upper bound by the variance of the difference to the first (APOHF).

    No pair of ``asked`` or ``pending`` comes again, in either order. With ``papers`` the variance is not divided by the
    ridge; APOHF's code does so, which is ``nu`` divided by ``posterior.ridge``.
    """
    duels = _Duels(posterior, n, available, asked, pending)
    for first, second in duels.pending:
        posterior.add(second, against=first)
    chosen = []
    for _ in range(n):
        first = duels.best_first(posterior.mean)
        bound = upper_bound(posterior.mean, posterior.variance(first), nu, papers)
        second = _argmax(bound, duels.opponents(first))
        posterior.add(second, against=first)
        chosen.append(duels.take(first, second))
    return chosen


def double_thompson(
    posterior: AnyPosterior,
    n: int = 1,
    *,
    generator: torch.Generator,
    available: Any = None,
    asked: Iterable[Pair] = (),
    pending: Iterable[Pair] = (),
    tries: int = 5,
) -> list[Pair]:
    """Pairs of the best rows of two draws (Wu & Liu, 2016); after ``tries`` draws with no new pair, a second at random."""
    duels = _Duels(posterior, n, available, asked, pending)
    chosen = []
    for _ in range(n):
        first = duels.best_first(posterior.sample(generator))
        opponents = duels.opponents(first)
        for _ in range(tries):
            second = _argmax(posterior.sample(generator), duels.available)
            if opponents[second]:
                break
        else:
            second = _argmax(torch.rand(len(opponents), generator=generator), opponents)
        chosen.append(duels.take(first, second))
    return chosen


class _Duels:
    """Which pairs may still be asked."""

    def __init__(
        self, posterior: AnyPosterior, n: int, available: Any, asked: Iterable[Pair], pending: Iterable[Pair]
    ) -> None:
        self.available = _mask(posterior, available)
        self.pending = list(pending)
        self._opponents: dict[int, set[int]] = {}
        for first, second in [*asked, *self.pending]:
            self._note(first, second)
        rows = torch.nonzero(self.available).flatten().tolist()
        taken = sum(len(self._opponents.get(row, set()).intersection(rows)) for row in rows) // 2
        left = len(rows) * (len(rows) - 1) // 2 - taken
        if n > left:
            raise OptionError(f"acquisition: {n} pairs were asked for, but {left} are left")

    def opponents(self, first: int) -> Tensor:
        allowed = self.available.clone()
        allowed[[first, *self._opponents.get(first, ())]] = False
        return allowed

    def best_first(self, scores: Tensor) -> int:
        """The best row that still has an opponent."""
        for row in torch.argsort(scores, descending=True, stable=True).tolist():
            if self.available[row] and self.opponents(row).any():
                return int(row)
        raise AssertionError("the number of pairs left was checked")

    def take(self, first: int, second: int) -> Pair:
        self._note(first, second)
        return first, second

    def _note(self, first: int, second: int) -> None:
        self._opponents.setdefault(first, set()).add(second)
        self._opponents.setdefault(second, set()).add(first)


def _greedy(
    posterior: AnyPosterior,
    n: int,
    score: Callable[[], Tensor],
    available: Any,
    pending: Iterable[int],
    downdate: bool = True,
) -> list[int]:
    allowed = _mask(posterior, available)
    for row in pending:
        allowed[row] = False
        if downdate:
            posterior.add(row)
    if n > int(allowed.sum()):
        raise OptionError(f"acquisition: {n} candidates were asked for, but {int(allowed.sum())} are left")
    chosen: list[int] = []
    for i in range(n):
        row = _argmax(score(), allowed)
        allowed[row] = False
        chosen.append(row)
        if downdate and i < n - 1:
            posterior.add(row)
    return chosen


def _mask(posterior: AnyPosterior, available: Any) -> Tensor:
    rows = len(posterior.mean)
    mask = torch.ones(rows, dtype=torch.bool) if available is None else torch.as_tensor(available).clone()
    if mask.shape != (rows,) or mask.dtype != torch.bool:
        raise OptionError(f"acquisition: available is {mask.dtype} {tuple(mask.shape)}; it takes booleans [{rows}]")
    return mask


def _argmax(scores: Tensor, allowed: Tensor) -> int:
    return int(torch.where(allowed, scores, -math.inf).argmax())
