"""Length of the text: the baseline that any other ranking has to beat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.hookspecs import hookimpl
from hfdataopt.selection.filter import TextFilter
from hfdataopt.selection.source import Batch


@dataclass(frozen=True)
class Length(TextFilter):
    """How long the text is.

    Args:
        unit: ``words`` between white space, or ``characters``.
        best: whether the ``longest`` rows score highest, or the ``shortest``.
    """

    name: ClassVar[str] = "length"
    meaning: ClassVar[str] = "a longer text (a shorter one with best='shortest')"

    unit: Literal["words", "characters"] = "words"
    best: Literal["longest", "shortest"] = "longest"

    def score(self, batch: Batch) -> np.ndarray:
        lengths = [len(text.split()) if self.unit == "words" else len(text) for text in batch.texts]
        return np.array(lengths, dtype=np.float64) * (1 if self.best == "longest" else -1)


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(Length)
