"""LESS: cosines of Adam-preconditioned training gradients with plain query gradients, summed over checkpoints.

Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", ICML 2024, equations 3 to 5. Losses are
averaged over tokens. The moments come from the live optimizer, or from the ``optimizer.pt`` of a checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from hfdataopt.attribution.checkpoint import Checkpoint
from hfdataopt.attribution.scorer import GradientScorer, Result
from hfdataopt.attribution.vectors import mean_loss
from hfdataopt.attribution.view import View
from hfdataopt.errors import DataError, OptionError
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
        if self.basis == "exact" and (self.precondition != "none" or self.query_form == "prompts"):
            view.check_whole_gradients(self.layers)

    def check_optimizer(self, view: View) -> None:
        live = view.optimizer is not None and not isinstance(view.optimizer, Checkpoint)
        if self.precondition in ("less", "adamw"):
            AdamMoments.check(view.optimizer, self.name) if live else self._moments(view)

    def _moments(self, view: View) -> AdamMoments:
        source = view.optimizer
        if isinstance(source, Checkpoint):
            source = source.optimizer or source.path
        return AdamMoments.of(source, view.model, layers=self.layers, who=self.name)

    def adam_step(self, view: View) -> AdamStep | None:
        """The preconditioner at this moment, or None.

        Raises:
            OptionError, DataError: ``less`` or ``adamw`` was asked for and there are no such moments.
        """
        if self.precondition == "none":
            return None
        form: AdamForm = "adamw" if self.precondition == "adamw" else "less"
        why = self._without_moments(view) if self.precondition == "auto" else None
        if self.precondition == "auto" and view.shared.setdefault("with moments", why is None) != (why is None):
            raise DataError(
                f"{self.name}: precondition='auto', but only some of the moments have Adam's moments ({why or 'this one has'}), and their "
                "scores cannot be added up; give every checkpoint its optimizer.pt, or precondition='none'"
            )
        if why is not None:
            view.say(f"training gradients are taken plain, without Adam's moments ({why})")
            view.facts["precondition"] = "none"
            return None
        step = self._moments(view).precondition(form)
        if self.precondition == "auto":
            view.say(
                f"training gradients are preconditioned by Adam's moments after {step.moments.step} steps (form {form!r})"
            )
        view.facts["precondition"] = form
        return step

    def _without_moments(self, view: View) -> str | None:
        """Why there are no moments of Adam to be used, or None where there are. A broken file is no such reason."""
        source = view.optimizer
        if source is None:
            return "there is no optimizer"
        if isinstance(source, Checkpoint):
            there = source.optimizer is not None or (Path(source.path) / "optimizer.pt").is_file()
            return None if there else f"{source.path!r} has no optimizer.pt"
        try:
            AdamMoments.check(source, self.name)
        except OptionError as error:
            return str(error)
        return None


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
