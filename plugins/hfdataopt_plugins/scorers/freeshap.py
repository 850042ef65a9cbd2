"""FreeShap: Shapley values of training rows without fine-tuning, by kernel regression on the empirical NTK.

Wang et al., "Helpful or Harmful Data? Fine-tuning-free Shapley Attribution for Explaining Language Model Predictions",
ICML 2024. The defaults differ from the paper where measurements say so; ``preset="paper"`` is the paper.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hfdataopt.attribution.kernels import KernelScorer, TaskKernel
from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.errors import OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import apply_preset, check_range
from hfdataopt.shapley import shapley_values

PAPER = {
    "utility": "accuracy",
    "ridge": 1e-6,
    "truncation": 0.05,
    "logit": 0,
    "per_class": False,
    "kernel": "entk",
    "normalize": False,
}


@dataclass
class FreeShap(KernelScorer):
    """Shapley value of each pool row for kernel regression on the queries.

    Args:
        utility: ``log-likelihood`` (alias ``cross_entropy``), ``margin``, ``accuracy``, or a callable on prefix predictions.
            On the development data (dolly's categories) ``margin`` was as good with two classes and worse with eight.
        permutations: how many random orders are averaged; with ``tolerance``, the most.
        ridge: ridge of the regression, in units of the kernel's mean diagonal; ``auto`` minimises the closed-form leave-one-out error.
        truncation: stop an order once two prefixes in a row are this close (relative) to the full utility; None never stops.
        tolerance: stop when the largest standard error is below this.
        weights: ``shapley``, ``beta`` or ``banzhaf`` weighting of the prefix lengths.
        beta: (alpha, beta) of Beta-Shapley; (16, 1) favours small prefixes.
        per_query: keep the values of each query, for ``Scores.explain``.
        preset: ``paper`` takes the authors' settings: the raw kernel of the logit of class 0, accuracy,
            ridge 1e-6 (of a mean diagonal of 1), truncation 0.05; layers and head stay as given.
        workers: processes on a CPU; None decides by the amount of work.
        on_not_positive_definite: a kernel that has no Cholesky factor with the ridge given is an ``error``, or
            ``raise-ridge`` multiplies the ridge by 10 until it has one; the metadata says so.
    """

    name: ClassVar[str] = "freeshap"

    utility: Literal["margin", "accuracy", "log-likelihood", "cross_entropy"] | Callable[..., Any] = "log-likelihood"
    permutations: int = 200
    ridge: float | Literal["auto"] = "auto"
    truncation: float | None = None
    tolerance: float | None = None
    weights: Literal["shapley", "beta", "banzhaf"] = "shapley"
    beta: tuple[float, float] = (16.0, 1.0)
    per_query: bool = False
    preset: Literal["paper"] | None = None
    workers: int | None = None
    on_not_positive_definite: Literal["error", "raise-ridge"] = "error"

    def __post_init__(self) -> None:
        if self.preset == "paper":
            apply_preset(self, "paper", PAPER)
        super().__post_init__()
        check_range(self, "permutations", at_least=1)
        check_range(self, "ridge", at_least=0)
        check_range(self, "truncation", above=0, below=1)
        check_range(self, "tolerance", above=0)
        check_range(self, "beta", above=0)
        check_range(self, "workers", at_least=1)
        if self.weights == "banzhaf" and self.truncation is not None:
            raise OptionError(
                f"{self.name}: truncation={self.truncation} biases Banzhaf values, whose weight lies on large prefixes; drop it"
            )

    @property
    def scores_each_query(self) -> bool:
        return self.per_query

    def score(self, view: View) -> Result:
        task = self.build(view)
        assert task.cross is not None and task.query_labels is not None
        bar = view.progress("permutations", self.permutations, unit="permutation")
        result = view.processes.run_on_main(
            lambda: shapley_values(
                task.kernel,
                task.cross,
                task.labels,
                task.query_labels,
                utility=self.utility,
                permutations=self.permutations,
                seed=self.seed,
                ridge=self.ridge,
                truncation=self.truncation,
                per_query=self.per_query,
                weights=self.weights,
                beta=self.beta,
                tolerance=self.tolerance,
                workers=self.workers,
                preset=self.preset,
                on_not_positive_definite=self.on_not_positive_definite,
                output_dir=None if view.folder is None else view.folder / f"permutations-{self._key(task)}",
                out_of_bag=False,
                progress=lambda done, _: bar.update(done - bar.n),
            )
        )
        bar.close()
        rows = len(view.pool)
        return Result(
            task.scatter(result.values, rows),
            task.scatter(result.matrix, rows),
            task.scatter(result.standard_errors, rows),
            {
                "permutations": result.permutations,
                "ridge": float(result.ridge),
                "ridge_raised": bool(result.metadata["ridge_raised"]),
                "empty_utility": float(result.empty_utility),
                "full_utility": float(result.full_utility),
            },
        )

    def _key(self, task: TaskKernel) -> str:
        """Of the kernel's bits and the options: another number of BLAS threads gives other bits, and then a new folder."""
        utility = self.utility if isinstance(self.utility, str) else getattr(self.utility, "__qualname__", "callable")
        options = (
            utility,
            self.ridge,
            self.truncation,
            self.weights,
            self.beta,
            self.per_query,
            self.preset,
            self.seed,
        )
        return hashlib.sha256(task.kernel.numpy().tobytes() + repr(options).encode()).hexdigest()[:8]


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(FreeShap)
