"""NICE-IF: influence functions on policy gradients, at the end of training.

The label gradient of the queries in :mod:`hfdataopt_plugins.scorers.influence` is replaced by the policy gradient of
:mod:`hfdataopt_plugins.scorers.nice`; the curvature stays that of the training loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hfdataopt.attribution.scorer import Result
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.influence.scorer import InfluenceScorer
from hfdataopt_plugins.scorers.nice import PolicyOptions, without_signal


@dataclass
class NICEIF(PolicyOptions, InfluenceScorer):
    """How much more weight on a row, trained to the end, would raise the expected reward of the queries, to first order."""

    name: ClassVar[str] = "nice-if"
    default_when: ClassVar[Any] = "train_end"
    combine: ClassVar[Any] = "last"
    query_form: ClassVar[Any] = "prompts"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_policy()

    def check(self, view: View) -> None:
        super().check(view)
        self.check_prompts(view)

    def score(self, view: View) -> Result:
        samples = self.policy_samples(view, self.seed)
        result = self.influence(view, target="policy", samples=samples)
        if result.matrix is not None:
            result.matrix = without_signal(view, samples, torch.as_tensor(result.matrix))
        elif not samples.ids:
            result.values = without_signal(view, samples, torch.zeros(len(view.pool), len(view.rows("queries"))))[:, 0]
        return result


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(NICEIF)
