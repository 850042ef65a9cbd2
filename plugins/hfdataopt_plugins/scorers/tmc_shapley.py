"""Shapley values by real retraining: truncated Monte Carlo over random orders, or every subset of a few rows.

Ghorbani and Zou, "Data Shapley: Equitable Valuation of Data for Machine Learning", ICML 2019, algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.errors import OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.shapley._walk import permutation
from hfdataopt.trainings import RetrainingScorer, Trainings

LARGEST_EXACT = 12
LAG = 100
"""Permutations over which the relative change of the values is taken (the paper's convergence rule)."""


@dataclass
class TmcShapley(RetrainingScorer):
    """Shapley value of each pool row for fine-tuning, the model being trained on every prefix of random orders.

    The utility of no rows is that of the initial weights. Up to ``permutations`` x rows trainings: for small pools, and as
    the truth that ``freeshap`` approximates.

    Args:
        permutations: how many random orders are averaged (with ``convergence`` the most); ``all`` is exact, by training on
            every subset of at most 12 rows, without truncation.
        truncation: an order ends once two prefixes in a row are near the utility of all rows: within its standard error over
            the queries (``noise``, as the bootstrap of the paper), or within this share of its distance from the utility of
            no rows; None never ends one.
        convergence: stop when the values changed by less than this over the last 100 permutations, on average over the rows
            and relative to the value (the paper: 0.05).
    """

    name: ClassVar[str] = "tmc-shapley"

    permutations: int | Literal["all"] = 200
    truncation: float | Literal["noise"] | None = "noise"
    convergence: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "permutations", at_least=1)
        check_range(self, "truncation", above=0, below=1)
        check_range(self, "convergence", above=0)
        if self.permutations == "all" and (self.convergence is not None or self.truncation not in ("noise", None)):
            raise OptionError(
                f"{self.name}: permutations='all' is exact; truncation={self.truncation!r} and convergence={self.convergence!r} "
                "have no use there"
            )

    def check(self, view: View) -> None:
        super().check(view)
        if self.permutations == "all" and len(view.pool) > LARGEST_EXACT:
            raise OptionError(
                f"{self.name}: permutations='all' trains on every subset, which {len(view.pool)} rows have 2^{len(view.pool)} of; "
                f"it takes at most {LARGEST_EXACT} rows, so give a number"
            )

    def workload(self, rows: int) -> tuple[int, int]:
        if self.permutations == "all":
            return 2**rows, rows * 2 ** (rows - 1)
        return self.permutations * rows, self.permutations * rows * (rows + 1) // 2

    def score(self, view: View) -> Result:
        trainings = self.trainings(view)
        return self._exact(len(view.pool), trainings) if self.permutations == "all" else self._sampled(view, trainings)

    def _exact(self, rows: int, trainings: Trainings) -> Result:
        masks = range(2**rows)
        utilities = trainings.of_all([(_members(mask), self.seed) for mask in masks])
        sizes = np.array([mask.bit_count() for mask in masks])
        weights = np.array([1 / (rows * comb(rows - 1, size)) if size < rows else 0.0 for size in sizes])
        matrix = np.empty((rows, utilities.shape[1]))
        for row in range(rows):
            without = np.array([mask for mask in masks if not mask >> row & 1])
            matrix[row] = weights[without] @ (utilities[without | 1 << row] - utilities[without])
        facts = {"trainings": len(masks) - 1, "exact": True}
        return Result(matrix=matrix, metadata={**facts, **_ends(utilities[0], utilities[-1])})

    def _sampled(self, view: View, trainings: Trainings) -> Result:
        assert isinstance(self.permutations, int)
        rows = len(view.pool)
        ranked = sorted(range(rows), key=view.pool.ids.__getitem__)  # so that the order of the rows cannot matter
        trainings.announce(self.permutations * (rows - 1) + 1, self.permutations * rows * (rows - 1) // 2 + rows, True)
        empty, full = trainings.of((), self.seed), trainings.of(range(rows), self.seed)
        tolerance = self._tolerance(empty, full)

        def walk(index: int) -> tuple[np.ndarray, int]:
            order = [ranked[place] for place in permutation(rows, self.seed, index).tolist()]
            return _marginals(lambda prefix: trainings.of(prefix, self.seed), order, empty, full, tolerance)

        matrix, squares, prefixes = np.zeros((rows, len(full))), np.zeros(rows), 0
        history: list[np.ndarray] = []
        bar = view.progress("permutations", self.permutations, unit="permutation")
        shared = 0
        for index in range(self.permutations):
            if index == shared:
                shared = min(shared + LAG, self.permutations)
                trainings.share(walk, range(index, shared))
            found, length = walk(index)
            matrix += found
            squares += found.mean(1) ** 2
            prefixes += length
            history.append(matrix.mean(1) / (index + 1))
            bar.update()
            if self._converged(history):
                break
        bar.close()
        count = len(history)
        variance = (squares / count - history[-1] ** 2) * count / max(count - 1, 1)
        errors = np.sqrt(np.maximum(variance, 0) / count) if count > 1 else np.full(rows, np.nan)
        facts = {
            "permutations": count,
            "prefixes_per_permutation": prefixes / count,
            "tolerance": tolerance,
            "converged": self._converged(history) if self.convergence is not None else None,
        }
        return Result(matrix=matrix / count, standard_errors=errors, metadata={**facts, **_ends(empty, full)})

    def _tolerance(self, empty: np.ndarray, full: np.ndarray) -> float | None:
        if self.truncation == "noise":
            return float(full.std() / np.sqrt(len(full)))
        return None if self.truncation is None else self.truncation * abs(float(full.mean() - empty.mean()))

    def _converged(self, history: list[np.ndarray]) -> bool:
        if self.convergence is None or len(history) <= LAG:
            return False
        now, before = history[-1], history[-1 - LAG]
        changes = np.abs(now - before) / np.maximum(np.abs(now), np.finfo(float).tiny)
        return float(changes.mean()) < self.convergence


def _marginals(
    utility: Callable[[list[int]], np.ndarray],
    order: list[int],
    empty: np.ndarray,
    full: np.ndarray,
    tolerance: float | None,
) -> tuple[np.ndarray, int]:
    """Marginal contributions ``[rows, queries]`` along one order, and the number of prefixes looked at."""
    marginals = np.zeros((len(order), len(full)))
    before, near_before = empty, False
    for length, row in enumerate(order, 1):
        value = utility(order[:length])
        marginals[row] = value - before
        near = tolerance is not None and abs(float(value.mean() - full.mean())) <= tolerance
        if near and near_before:
            return marginals, length
        before, near_before = value, near
    return marginals, len(order)


def _members(mask: int) -> list[int]:
    return [row for row in range(mask.bit_length()) if mask >> row & 1]


def _ends(empty: np.ndarray, full: np.ndarray) -> dict[str, float]:
    return {"empty_utility": float(empty.mean()), "full_utility": float(full.mean())}


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(TmcShapley)
