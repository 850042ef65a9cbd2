"""ZOPO: localised search along the gradient of a neural-tangent Gaussian process (Hu et al., NeurIPS 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.bandits import NeuralTangentSurrogate
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.optimizer import Services, Task
from hfdataopt.prompting.pool_optimizer import PoolOptimizer

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's


@dataclass
class Zopo(PoolOptimizer):
    """An Adam step along the gradient of the surrogate's mean in feature space, then the nearest candidate that is untried.

    Attributes:
        learning_rate: length of a step, where the median distance of a candidate to its nearest one counts as 1.
        threshold: share of the prior's standard deviation above which the surrogate is uncertain at the present place.
        patience: steps in a row of uncertainty before the neighbourhood is explored.
        neighbours: candidates that are tried then.
        tolerance: candidates without an improvement before the search starts again at the best.
    """

    name: ClassVar[str] = "zopo"
    lookahead: ClassVar[int] = 0  # a step is taken from the one before

    pool: Literal["soft", "text"] = "text"
    learning_rate: float = 1.0
    threshold: float = 0.7
    patience: int = 3
    neighbours: int = 3
    tolerance: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patience", "neighbours", "tolerance"):
            check_range(self, name, at_least=1)
        for name in ("learning_rate", "threshold"):
            check_range(self, name, above=0)

    def start(self, task: Task) -> None:
        super().start(task)
        self._fitted: tuple[Any, Any] | None = None
        self._standard: np.ndarray | None = None
        self._at: int | None = None  # the row where the search is
        self._moments = [np.zeros(0), np.zeros(0)]
        self._steps = self._uncertain = self._since_best = 0
        self._counted: set[int] = set()

    def soft_features(self, points: np.ndarray, soft_prompts: np.ndarray, services: Services) -> np.ndarray:
        return services.hidden(soft_prompts, self.messages)

    def choose(self, n: int, available: np.ndarray, pending: Sequence[int]) -> list[int]:
        model, places = self._fit(), self._places()
        self._note_improvement()
        available = available.copy()
        available[list(pending)] = False
        unit = spacing(places)
        chosen: list[int] = []
        while len(chosen) < n and available.any():
            if self._at is None or self._since_best >= self.tolerance:
                self._restart(places.shape[1])
            assert self._at is not None
            here = places[[self._at]]
            posterior = model.posterior(here)
            share = float((posterior.variance() / posterior.prior_variance()).sqrt())
            self._uncertain = self._uncertain + 1 if share > self.threshold else 0
            if self._uncertain >= self.patience:
                self._uncertain = 0
                new = nearest(places, here[0], available, min(self.neighbours, n - len(chosen)))
            else:
                goal = here[0] + self._step(model.gradient(here)[0].numpy(), unit)
                new = nearest(places, goal, available, 1)
                self._at = new[0]
            available[new] = False
            chosen += new
        return chosen

    def believed(self, rows: Sequence[int]) -> np.ndarray:
        return self._fit().predict(self._places()[list(rows)])[0].numpy()

    def _step(self, gradient: np.ndarray, unit: float) -> np.ndarray:
        """Adam's step uphill; the moments are kept."""
        self._steps += 1
        size = self.learning_rate * unit / np.sqrt(len(gradient))
        gradient = gradient / max(float(np.linalg.norm(gradient)), 1e-300)  # only its direction counts for Adam
        for moment, beta, value in zip(self._moments, BETAS, (gradient, gradient**2), strict=True):
            moment *= beta
            moment += (1 - beta) * value
        first, second = (m / (1 - beta**self._steps) for m, beta in zip(self._moments, BETAS, strict=True))
        return size * first / (np.sqrt(second) + EPSILON)

    def _restart(self, width: int) -> None:
        """To the best row that was told, at rest."""
        self._at = self._best_row()
        self._moments = [np.zeros(width), np.zeros(width)]
        self._steps = self._uncertain = self._since_best = 0

    def _note_improvement(self) -> None:
        """Count candidates since the best one was told."""
        observed = self.observed()
        new = {one.row for one in observed} - self._counted
        self._since_best = 0 if self._best_row() in new else self._since_best + len(new)
        self._counted |= new

    def _best_row(self) -> int:
        return max(self.observed(), key=lambda one: (one.score, -one.row)).row

    def _places(self) -> np.ndarray:
        """Features ``[N, d]``, standardised over the pool."""
        assert self.features is not None
        if self._standard is None or len(self._standard) != len(self.features):
            spread = self.features.std(0, dtype=np.float64)
            centred = self.features - self.features.mean(0, dtype=np.float64)
            self._standard = centred / np.where(spread > 0, spread, 1.0)
        return self._standard

    def _fit(self) -> NeuralTangentSurrogate:
        observed = self.observed()
        if self._fitted is None or self._fitted[0] != (observed, len(self._candidates)):
            places = self._places()[[one.row for one in observed]]
            model = NeuralTangentSurrogate()
            model.fit(places, np.array([one.score for one in observed]), noise=self.relative_noise(observed))
            self._fitted = (observed, len(self._candidates)), model
        return self._fitted[1]


def nearest(places: np.ndarray, goal: np.ndarray, available: np.ndarray, n: int) -> list[int]:
    """Up to ``n`` available rows, the nearest to ``goal`` first."""
    distances = np.where(available, ((places - goal) ** 2).sum(1), np.inf)
    order = np.argsort(distances, kind="stable")[:n]
    return [int(row) for row in order if available[row]]


def spacing(places: np.ndarray, most: int = 200) -> float:
    """The median distance of up to ``most`` places to the nearest of the others."""
    some = places[:most]
    squares = (some**2).sum(1)[:, None] + (places**2).sum(1) - 2 * some @ places.T
    squares[squares < 1e-9] = np.inf
    near = np.sqrt(squares.min(1))
    return float(np.median(near[np.isfinite(near)])) if np.isfinite(near).any() else 1.0


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Zopo)
