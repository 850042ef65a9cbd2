"""Leave-one-out by retraining: the utility of a model trained on all rows, minus that of one trained without the row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.trainings import RetrainingScorer


@dataclass
class LeaveOneOutRetraining(RetrainingScorer):
    """U(all) - U(all but the row) by rows + 1 trainings: slow, and the truth that ``loo`` and influence approximate.

    Args:
        seeds: how many trainings with seeds of their own each utility is averaged over; with 2 or more there are standard
            errors of what the seed changes, which is often more than one row does.
    """

    name: ClassVar[str] = "loo-retraining"

    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "seeds", at_least=1)

    def workload(self, rows: int) -> tuple[int, int]:
        return self.seeds * (rows + 1), self.seeds * rows * rows

    def score(self, view: View) -> Result:
        trainings, rows = self.trainings(view), len(view.pool)
        everything = range(rows)
        seeds = range(self.seed, self.seed + self.seeds)
        jobs = [
            ([row for row in everything if row != left_out], seed) for seed in seeds for left_out in (None, *everything)
        ]
        outcomes = trainings.of_all(jobs).reshape(self.seeds, rows + 1, -1)
        differences = outcomes[:, :1] - outcomes[:, 1:]
        errors = differences.mean(2).std(axis=0, ddof=1) / np.sqrt(self.seeds) if self.seeds > 1 else None
        return Result(
            matrix=differences.mean(0),
            standard_errors=errors,
            metadata={"trainings": len(jobs), "full_utility": float(outcomes[:, 0].mean())},
        )


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(LeaveOneOutRetraining)
