"""TracIn: inner products of training and query gradients, summed over checkpoints with their learning rates.

Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", NeurIPS 2020, equation 4 (TracInCP).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hfdataopt.attribution.scorer import GradientScorer, Result
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl


@dataclass
class TracIn(GradientScorer):
    """How much a step on a row lowers the queries' loss, to first order."""

    name: ClassVar[str] = "tracin"
    default_when: ClassVar[Any] = "epoch"
    combine: ClassVar[Any] = "learning-rate-sum"

    def score(self, view: View) -> Result:
        return Result(matrix=view.gradient_products(**self.gradient_options()))


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(TracIn)
