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
from hfdataopt.selection.source import Batch, Source


@dataclass(frozen=True)
class FromScores(WholeFilter):
    """The score that a row was given, found by ``row_id``, else at ``fit`` by position and afterwards by the row's columns.

    Args:
        given: :class:`~hfdataopt.Scores`, or the folder that they were saved to.
        edited: whether rows may have been edited since they were scored: they keep their scores, and their number is said.
        text: columns that ``diverse`` tells rows apart by, and by which rows without ``row_id`` are found; None for all columns.
    """

    name: ClassVar[str] = "scores"
    meaning: ClassVar[str] = "what the scorer of these scores says"

    given: Any = field(repr=False)
    edited: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.given, Scores | str):
            raise OptionError(
                f"scores: given must be Scores or the folder they were saved to; got {type(self.given).__name__}"
            )

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        if self.text is not None:
            return super().reads(columns, what)
        return (ROW_ID,) if ROW_ID in columns else tuple(columns)

    def scores(self, batch: Batch) -> np.ndarray:
        batch.missing = np.zeros(len(batch), dtype=bool)  # columns only tell rows apart, and may hold None
        return super().scores(batch)

    def vectors(self, batch: Batch) -> np.ndarray:
        if self.text is None:
            raise OptionError("scores: the rule diverse tells rows apart by their text; say which columns with text=")
        return super().vectors(batch)

    def learn(self, pool: Source, target: Source | None) -> None:
        super().learn(pool, target)
        self.set(
            given=""
        )  # the fitted copy looks rows up in a table and need not carry all of the scores into each worker

    def score_all(self, pool: Source, target: Source | None) -> np.ndarray:
        if self.given == "":
            raise OptionError("scores: a fitted copy no longer holds its scores; fit the filter that it was made from")
        scores = self.given if isinstance(self.given, Scores) else Scores.load(self.given)
        return scores.align(pool.dataset, edited=self.edited)


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(FromScores)
