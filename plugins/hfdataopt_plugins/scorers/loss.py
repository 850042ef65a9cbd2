"""The loss of each row: the plainest measure of suspicion, stored negated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from hfdataopt.attribution.scorer import PointwiseScorer
from hfdataopt.attribution.view import View, custom_loss
from hfdataopt.gradients import make_target
from hfdataopt.hookspecs import hookimpl


@dataclass
class Loss(PointwiseScorer):
    """Minus the loss of each row, in nats.

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

    def score_batch(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        total, tokens = make_target(model, "loss", custom_loss=custom_loss)(model, batch)
        return -(total / tokens.clamp_min(1) if self.reduction == "mean" else total)


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(Loss)
