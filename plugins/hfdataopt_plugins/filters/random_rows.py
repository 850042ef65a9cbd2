"""A uniform draw: the baseline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hfdataopt.hookspecs import hookimpl
from hfdataopt.selection.filter import TextFilter
from hfdataopt.selection.keys import uniform
from hfdataopt.selection.source import Batch


@dataclass(frozen=True)
class Random(TextFilter):
    """A uniform number per row, a function of (seed, row id).

    Args:
        seed: of the draws.
    """

    name: ClassVar[str] = "random"
    meaning: ClassVar[str] = "chance"
    draws: ClassVar[bool] = True

    seed: int = 0

    def score(self, batch: Batch) -> np.ndarray:
        return uniform(self.seed, batch.keys)


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(Random)
