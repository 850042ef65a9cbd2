"""TracIn: inner products of training and query gradients, summed over checkpoints with their learning rates.

Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020, equation 4 (TracInCP).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.vectors import mean_loss
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt_plugins.scorers.less import AdamScorer


@dataclass
class TracIn(AdamScorer):
    """How much a step on a row lowers the queries' loss, to first order."""

    name: ClassVar[str] = "tracin"
    default_when: ClassVar[Any] = "epoch"
    combine: ClassVar[Any] = "learning-rate-sum"

    precondition: Literal["auto", "less", "adamw", "none"] = field(default="none", kw_only=True)
    normalize: bool = field(default=False, kw_only=True)

    def score(self, view: View) -> Result:
        step = self.adam_step(view)
        matrix = view.gradient_products(
            of="loss" if step is None else mean_loss,
            target="loss" if step is None else "mean-loss",
            normalize=self.normalize,
            precondition=step,
            **self.gradient_options(),
        )
        return Result(matrix=matrix)


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(TracIn)
