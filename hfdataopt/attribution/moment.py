"""A moment of a training run, at which a scorer looks at the model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """When a scorer looks.

    Attributes:
        step: optimizer steps taken.
        learning_rate: weight of this moment in a sum over learning rates.
        epoch: of the trainer, or None.
        fresh: whether a training begins here, so that parts of the model may be untrained.
    """

    step: int
    learning_rate: float = 1.0
    epoch: float | None = None
    fresh: bool = False
