"""Leave-one-out in closed form: the utility of kernel regression on all rows, minus that without the row."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hfdataopt.attribution.kernels import KernelScorer
from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.shapley import loo


@dataclass
class LeaveOneOut(KernelScorer):
    """U(all) - U(all but the row) on the queries, exact for the kernel regression (no retraining).

    Args:
        utility: ``margin``, ``accuracy`` or ``log-likelihood``.
        ridge: in units of the kernel's mean diagonal; ``auto`` minimises the closed-form leave-one-out error.
    """

    name: ClassVar[str] = "loo"
    default_when: ClassVar[Any] = "train_end"

    utility: Literal["margin", "accuracy", "log-likelihood"] = "margin"
    ridge: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "ridge", at_least=0)

    def score(self, view: View) -> Result:
        task = self.build(view)

        def values() -> tuple[Any, float]:
            ridge = task.ridge(self.ridge)
            return loo(
                task.kernel,
                task.cross,
                task.labels,
                task.query_labels,
                utility=self.utility,
                ridge=ridge,
                per_query=True,
            ), ridge

        result, ridge = view.processes.run_on_main(values)
        return Result(matrix=task.scatter(result, len(view.pool)), metadata={"ridge": ridge})


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(LeaveOneOut)
