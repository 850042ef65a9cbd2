"""The loss of each row: the plainest measure of suspicion, stored negated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hfdataopt.attribution.scorer import PointwiseScorer
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl


@dataclass
class Loss(PointwiseScorer):
    """Minus the loss of each row, in nats; a row without labelled tokens gets no score.

    Args:
        reduction: ``mean`` over the row's labelled tokens (rows of different lengths compare), or their ``sum``.
    """

    name: ClassVar[str] = "loss"
    meaning: ClassVar[Any] = "suspicion"
    default_when: ClassVar[Any] = "epoch"
    combine: ClassVar[Any] = "mean"

    reduction: Literal["mean", "sum"] = "mean"

    def check(self, view: View) -> None:
        view.check_labels()

    def score(self, view: View) -> torch.Tensor:
        total, tokens = view.losses("pool")
        scored = view.labelled_rows("pool", tokens) & view.finite_rows("pool", total, "the loss", self.on_nonfinite)
        losses = total / tokens if self.reduction == "mean" else total
        return torch.where(scored, -losses, torch.full_like(losses, float("nan")))


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(Loss)
