"""Label consistency: does a row's own label agree with what the other rows predict for it? No clean queries are needed.

Two closed forms on the kernel that FreeShap regresses on: the leave-one-out margin of each row's label, and its
out-of-bag form, the mean margin over random subsets (prefixes of permutations) that do not hold the row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hfdataopt.attribution.kernels import KernelScorer
from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.shapley import leave_one_out_margin, out_of_bag_margin


@dataclass
class LabelConsistency(KernelScorer):
    """Margin of each row's label by the others; low = probably mislabelled.

    Args:
        form: ``out-of-bag`` or ``leave-one-out``.
        permutations: random orders that ``out-of-bag`` averages.
        ridge: in units of the kernel's mean diagonal; ``auto`` minimises the closed-form leave-one-out error.
    """

    name: ClassVar[str] = "label-consistency"
    meaning: ClassVar[Any] = "suspicion"
    needs_queries: ClassVar[bool] = False

    form: Literal["out-of-bag", "leave-one-out"] = "out-of-bag"
    permutations: int = 20
    ridge: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "permutations", at_least=1)
        check_range(self, "ridge", at_least=0)

    def score(self, view: View) -> Result:
        task = self.build(view)

        def margins() -> tuple[Any, float]:
            ridge = task.ridge(self.ridge)
            if self.form == "leave-one-out":
                return leave_one_out_margin(task.kernel, task.labels, ridge=ridge), ridge
            return (
                out_of_bag_margin(
                    task.kernel, task.labels, permutations=self.permutations, seed=self.seed, ridge=ridge
                ),
                ridge,
            )

        values, ridge = view.processes.run_on_main(margins)
        return Result(task.scatter(values, len(view.pool)), metadata={"form": self.form, "ridge": ridge})


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(LabelConsistency)
