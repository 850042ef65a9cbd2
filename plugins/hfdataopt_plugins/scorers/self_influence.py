"""Self-influence and gradient norm: rows that the model must bend far to fit. Suspicion, stored negated.

Self-influence is TracIn of a row on itself, the squared norm of its loss gradient (Pruthi et al. 2020, section 4.1).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from hfdataopt.attribution.scorer import GradientScorer, Result
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl


@dataclass
class SelfInfluence(GradientScorer):
    """Minus the squared norm of each row's loss gradient (token sum); exact unless a basis is asked for."""

    name: ClassVar[str] = "self-influence"
    meaning: ClassVar[Any] = "suspicion"
    default_when: ClassVar[Any] = "epoch"
    combine: ClassVar[Any] = "mean"
    needs_queries: ClassVar[bool] = False

    basis: Literal["eigen", "random", "sketch", "exact"] = field(default="exact", kw_only=True)

    def score(self, view: View) -> Result:
        return Result(-view.squared_gradient_norms("pool", **self.gradient_options()))


@dataclass
class GradNorm(SelfInfluence):
    """Minus the norm of each row's loss gradient (token sum)."""

    name: ClassVar[str] = "grad-norm"

    def score(self, view: View) -> Result:
        return Result(-view.squared_gradient_norms("pool", **self.gradient_options()).sqrt())


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(SelfInfluence)
    register(GradNorm)
