"""InstructZero: Bayesian optimisation of soft prompts with an instruction-coupled kernel (Chen et al., ICML 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from hfdataopt.bandits import CoupledSurrogate, expected_improvement, improvement
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.optimizer import Task
from hfdataopt.prompting.pool_optimizer import PoolOptimizer


@dataclass
class InstructZero(PoolOptimizer):
    """Expected improvement over a pool of soft prompts, with a kernel of their points and of what their instructions scored.

    Instructions are compared by their rewards on the first items, which all candidates meet.

    Attributes:
        refine: steps of gradient ascent on the expected improvement from the best point of a soft pool, inside the unit cube.
            The point that it reaches joins the pool.
    """

    name: ClassVar[str] = "instructzero"
    experimental: ClassVar[str] = "below random search on the shipped model (8 tasks, 60 to 400 calls)"

    refine: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "refine", at_least=0)

    def start(self, task: Task) -> None:
        super().start(task)
        self._fitted: tuple[Any, Any] | None = None

    def choose(self, n: int, available: np.ndarray, pending: Sequence[int]) -> list[int]:
        model = self._fit()
        best = float(model.predict(self._observed_features())[0].max())
        rows = expected_improvement(model.posterior(self.features), n, best=best, available=available, pending=pending)
        if self.refine and self.points is not None:
            rows = [*self.add_points(self._climb(model, self.points[rows[:1]], best)), *rows][:n]
        return rows

    def believed(self, rows: Sequence[int]) -> np.ndarray:
        assert self.features is not None
        return self._fit().predict(self.features[list(rows)])[0].numpy()

    def _observed_features(self) -> np.ndarray:
        assert self.features is not None
        return self.features[[one.row for one in self.observed()]]

    def _fit(self) -> CoupledSurrogate:
        observed = self.observed()
        if self._fitted is None or self._fitted[0] != observed:
            common = [item.id for item in self.task.items[: self.items_of_new()]]
            told = [self.rewards_of(one.row) for one in observed]
            scores = np.array([one.score for one in observed])
            rewards = np.array([[one.get(item, np.nan) for item in common] for one in told])
            # Where a reward function had no opinion, the candidate's mean stands in.
            rewards = np.where(np.isnan(rewards), scores[:, None], rewards)
            model = CoupledSurrogate()
            model.fit_rewards(self._observed_features(), scores, rewards, noise=self.relative_noise(observed))
            self._fitted = observed, model
        return self._fitted[1]

    def _climb(self, model: CoupledSurrogate, points: np.ndarray, best: float) -> np.ndarray:
        at = torch.tensor(points, dtype=torch.float64)
        for step in range(self.refine):
            at.requires_grad_()
            posterior = model.posterior(at)
            (slope,) = torch.autograd.grad(improvement(posterior.mean, posterior.variance(), best).sum(), at)
            length = 0.1 * (1 - step / self.refine)
            norm = slope.norm(dim=1, keepdim=True)
            at = (at + length * slope / norm.clamp_min(1e-300)).detach().clamp(0, 1)
        return at.detach().numpy()


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(InstructZero)
