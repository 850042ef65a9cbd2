"""Several score columns as one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.errors import DataError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.filter import Filter
from hfdataopt.selection.source import Batch, Source, check_columns


@dataclass(frozen=True)
class Combine(Filter):
    """The weighted mean of several columns of numbers, of their ranks or of their values.

    Args:
        inputs: the columns, such as ``["score_dsir", "score_bm25"]``; higher = better in each.
        weights: one per column, by default equal.
        of: ``ranks`` puts every column on the same scale, the share of the fitted rows that a value beats (ties count half); ``values``
            takes the numbers as they are.
    """

    name: ClassVar[str] = "combine"
    meaning: ClassVar[str] = "a high mean of the columns it combines"

    inputs: list[str]
    weights: list[float] | None = None
    of: Literal["ranks", "values"] = "ranks"
    tables: tuple[tuple[np.ndarray, np.ndarray], ...] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.inputs:
            raise OptionError("combine: inputs is empty; name the columns to combine")
        if self.weights is not None and len(self.weights) != len(self.inputs):
            raise OptionError(f"combine: weights has {len(self.weights)} entries for {len(self.inputs)} columns")
        check_range(self, "weights", at_least=0)
        if self.weights is not None and not sum(self.weights):
            raise OptionError("combine: the weights are all zero")

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        check_columns(self.inputs, columns, self.name, what)
        return tuple(self.inputs)

    def learn(self, pool: Source, target: Source | None) -> None:
        if self.of == "values":
            return
        parts = [[batch.numbers(name) for name in self.inputs] for batch in pool.batches()]
        self.set(tables=tuple(_ranks(np.concatenate(column)) for column in zip(*parts, strict=True)))

    def score(self, batch: Batch) -> np.ndarray:
        weights = np.array(self.weights or [1.0] * len(self.inputs))
        total = np.zeros(len(batch))
        for place, (name, weight) in enumerate(zip(self.inputs, weights / weights.sum(), strict=True)):
            values = batch.numbers(name)
            if self.tables is not None:
                known, ranks = self.tables[place]
                values = np.where(np.isnan(values), np.nan, np.interp(values, known, ranks))
            total = total + weight * values
        return total


def _ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, ascending, and the share of rows below each, ties counting half."""
    known, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    if not len(known):
        raise DataError("combine: a column has no numbers")
    return known, (np.cumsum(counts) - counts / 2) / counts.sum()


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(Combine)
