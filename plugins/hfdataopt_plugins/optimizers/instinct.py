"""INSTINCT: NeuralUCB over soft prompts known by a white-box model's hidden states (Lin et al., ICML 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.bandits import LayerGradients, MLPSurrogate, NeuralTangentSurrogate, neural_ucb
from hfdataopt.errors import OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import apply_preset, check_range
from hfdataopt.prompting.optimizer import Services, Task
from hfdataopt.prompting.pool_optimizer import Observation, PoolOptimizer

SUBPOOL = 1000  # rows that the papers' rule looks at per choice


@dataclass
class Instinct(PoolOptimizer):
    """The candidates of the largest upper confidence bounds by a neural surrogate of the score.

    The whole pool is scored before each choice, with the exact variance. A soft prompt that decodes to a known instruction
    costs no trial and counts as an observation.

    Attributes:
        nu: ``mean + nu sqrt(variance)``.
        surrogate: ``ntk`` = Gaussian process of a network's tangent kernel; ``mlp`` = the network itself, refitted each time.
        preset: ``papers`` is the rule of the released code: all items for each, 40 random ones first, an MLP from N(0, 1) on raw
            scores, the diagonal of the matrix with gradients as they were when a row was chosen and without the first 40, nu
            inside the root, 1,000 random rows of the pool per choice, soft prompts as projected. (Unlike there, the network is
            fitted before the first choice.)
    """

    name: ClassVar[str] = "instinct"
    experimental: ClassVar[str] = (
        "soft prompts are below random search on the shipped model; pool='text' is above it (8 tasks, 120 and 400 calls)"
    )

    nu: float = 1.0
    surrogate: Literal["ntk", "mlp"] = "ntk"
    preset: Literal["papers"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "nu", at_least=0)
        if self.preset is not None:
            apply_preset(self, self.preset, {"surrogate": "mlp", "initial": 40, "kept": 0.0, "scale": "none"})
            if self.first_items is not None:
                raise OptionError(f"{self.name}: preset='papers' scores on all items; drop first_items")

    def start(self, task: Task) -> None:
        super().start(task)
        self._stale: LayerGradients | None = None
        self._fitted: tuple[Any, Any] | None = None
        self._choices = 0

    def soft_features(self, points: np.ndarray, soft_prompts: np.ndarray, services: Services) -> np.ndarray:
        return services.hidden(soft_prompts, self.messages)

    def choose(self, n: int, available: np.ndarray, pending: Sequence[int]) -> list[int]:
        if self.preset == "papers":
            return self._choose_as_papers(n, available)
        posterior = self._fit().posterior(self.features)
        return neural_ucb(posterior, n, nu=self.nu, available=available, pending=pending)

    def believed(self, rows: Sequence[int]) -> np.ndarray:
        assert self.features is not None
        return self._fit().predict(self.features[list(rows)])[0].numpy()

    def merits(self, observed: Sequence[Observation]) -> np.ndarray:
        if self.preset == "papers":
            return np.array([one.score for one in observed])
        return super().merits(observed)

    def items_of_new(self) -> int:
        return len(self.task.items) if self.preset == "papers" else super().items_of_new()

    def _fit(self) -> Any:
        """The surrogate of all that was told, fitted once for each state of it."""
        assert self.features is not None
        observed = self.observed()
        if self._fitted is None or self._fitted[0] != observed:
            x = self.features[[one.row for one in observed]]
            scores = np.array([one.score for one in observed])
            if self.preset == "papers" or self.surrogate == "mlp":
                model: Any = MLPSurrogate(preset=self.preset, diagonal=self.preset == "papers").fit(x, scores)
            else:
                model = NeuralTangentSurrogate().fit(x, scores, noise=self.relative_noise(observed))
            self._fitted = observed, model
        return self._fitted[1]

    def _choose_as_papers(self, n: int, available: np.ndarray) -> list[int]:
        assert self.features is not None
        self._choices += 1
        rows = np.flatnonzero(available)
        rng = self.task.numpy_rng(self.name, "subpool", self._choices)
        rows = rng.choice(rows, min(SUBPOOL, len(rows)), replace=False)
        model = self._fit()
        if self._stale is None:
            self._stale = model.gradients(self.features[:1]).rows(slice(0, 0))
        posterior = model.posterior(self.features[rows], observed=self._stale)
        return [int(rows[i]) for i in neural_ucb(posterior, min(n, len(rows)), nu=self.nu, papers=True)]

    def chosen(self, rows: Sequence[int]) -> None:
        if self.preset == "papers" and self._stale is not None:
            assert self.features is not None
            self._stale = self._stale.append(self._fit().gradients(self.features[list(rows)]))


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Instinct)
