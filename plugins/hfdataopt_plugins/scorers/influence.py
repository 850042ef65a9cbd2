"""Influence functions: inner products of gradients through the inverse curvature of the training loss.

Koh & Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017, equation 2, with the sign that makes
a helpful row positive. Solvers: DataInf (Kwon et al., ICLR 2024), EK-FAC (George et al., NeurIPS 2018; Grosse et al. 2023),
conjugate gradients, and LiSSA (Agarwal et al., JMLR 2017).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.influence.scorer import InfluenceScorer


@dataclass
class Influence(InfluenceScorer):
    """How much more weight on a row, trained to the end, would lower the queries' loss, to first order."""

    name: ClassVar[str] = "influence"
    default_when: ClassVar[Any] = "train_end"
    combine: ClassVar[Any] = "last"

    def score(self, view: View) -> Result:
        return self.influence(view)


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(Influence)
