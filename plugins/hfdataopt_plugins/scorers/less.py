"""LESS: cosines of Adam-preconditioned training gradients with plain query gradients, summed over checkpoints.

Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", ICML 2024, equations 3 to 5. Losses are
averaged over tokens. The moments come from the live optimizer, or from the ``optimizer.pt`` of a checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from hfdataopt.attribution.checkpoint import Checkpoint
from hfdataopt.attribution.scorer import GradientScorer, Result
from hfdataopt.attribution.vectors import mean_loss
from hfdataopt.attribution.view import View
from hfdataopt.errors import HfDataOptError
from hfdataopt.gradients import AdamForm, AdamMoments, AdamStep
from hfdataopt.hookspecs import hookimpl


@dataclass
class AdamScorer(GradientScorer):
    """How training gradients are changed before they are multiplied with those of the queries.

    Args:
        precondition: ``less`` and ``adamw`` turn each into the step that Adam would take on it alone (as the authors of LESS
            compute it, and as torch's AdamW does); ``none`` leaves it; ``auto`` is ``less`` where the optimizer's moments are
            at hand, else ``none``, and says which.
        normalize: take cosines instead of inner products.
    """

    precondition: Literal["auto", "less", "adamw", "none"] = field(default="auto", kw_only=True)
    normalize: bool = field(default=True, kw_only=True)

    def check(self, view: View) -> None:
        super().check(view)
        live = view.optimizer is not None and not isinstance(view.optimizer, Checkpoint)
        if live and self.precondition in ("less", "adamw"):
            AdamMoments.check(view.optimizer, self.name)

    def adam_step(self, view: View) -> AdamStep | None:
        """The preconditioner at this moment, or None.

        Raises:
            OptionError, DataError: ``less`` or ``adamw`` was asked for and there are no such moments.
        """
        if self.precondition == "none":
            return None
        source = view.optimizer
        if isinstance(source, Checkpoint):
            source = source.optimizer or source.path
        form: AdamForm = "adamw" if self.precondition == "adamw" else "less"
        try:
            step = AdamMoments.of(source, view.model, layers=self.layers, who=self.name).precondition(form)
        except HfDataOptError as error:
            if self.precondition != "auto":
                raise
            view.say(f"training gradients are taken plain, without Adam's moments ({error})")
            view.facts["precondition"] = "none"
            return None
        if self.precondition == "auto":
            view.say(
                f"training gradients are preconditioned by Adam's moments after {step.moments.step} steps (form {form!r})"
            )
        view.facts["precondition"] = form
        return step


@dataclass
class LESS(AdamScorer):
    """How a step that Adam takes on a row lowers the queries' loss, by direction only."""

    name: ClassVar[str] = "less"
    default_when: ClassVar[Any] = "epoch"
    combine: ClassVar[Any] = "learning-rate-sum"

    precondition: Literal["auto", "less", "adamw", "none"] = field(default="less", kw_only=True)

    def score(self, view: View) -> Result:
        matrix = view.gradient_products(
            of=mean_loss,
            target="mean-loss",
            normalize=self.normalize,
            precondition=self.adam_step(view),
            **self.gradient_options(),
        )
        return Result(matrix=matrix)


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(LESS)
