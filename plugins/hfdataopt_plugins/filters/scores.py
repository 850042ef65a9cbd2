"""Scores of any scorer as a filter: what a callback or ``attribute`` computed, used in the ``datasets`` idiom."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from hfdataopt.attribution.rows import ROW_ID
from hfdataopt.attribution.scores import Scores
from hfdataopt.errors import OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.selection.filter import WholeFilter
from hfdataopt.selection.source import Source


@dataclass(frozen=True)
class FromScores(WholeFilter):
    """The score that a row was given, found by ``row_id``, else at ``fit`` by position and afterwards by the row's columns.

    Args:
        given: :class:`~hfdataopt.Scores`, or the folder that they were saved to.
    """

    name: ClassVar[str] = "scores"
    meaning: ClassVar[str] = "what the scorer of these scores says"

    given: Any = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.given, Scores | str):
            raise OptionError(
                f"scores: given must be Scores or the folder they were saved to; got {type(self.given).__name__}"
            )

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        if ROW_ID in columns:
            return (ROW_ID,)
        return super().reads(columns, what) if self.text is not None else tuple(columns)

    def learn(self, pool: Source, target: Source | None) -> None:
        super().learn(pool, target)
        self.set(
            given=""
        )  # the fitted copy looks rows up in a table and need not carry all of the scores into each worker

    def score_all(self, pool: Source, target: Source | None) -> np.ndarray:
        scores = self.given if isinstance(self.given, Scores) else Scores.load(self.given)
        return scores.align(pool.dataset)


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(FromScores)
