"""The contract of a filter: a frozen dataclass that is fitted once and then is a pure function of single rows.

``fit(dataset, target)`` returns a fitted copy. That copy is a ``datasets`` map function which adds a score column, and with
a keep rule has a function for ``filter``::

    f = get_filter("dsir", keep=top(fraction=0.05)).fit(dataset, target=task)
    dataset.map(f, batched=True)
    dataset.filter(f.keep, batched=True, input_columns=f.columns)

Both work under ``num_proc``, on a ``DatasetDict`` and on a stream, and give the same rows whatever the batch size. To write
one, implement ``reads``, ``learn`` and ``score`` (or inherit from :class:`TextFilter`); state set by ``learn`` goes into
fields declared ``field(init=False, repr=False, compare=False)``.

``datasets`` caches a transform by the function's *name* and its state, so a filter whose code changes must look different:
``version`` says so, and ``code``, a hash of the source of the module and of this package, notices what the author forgot.
"""

import copy
import functools
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from hfdataopt.attribution.rows import ROW_ID
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError
from hfdataopt.options import check_options, check_range
from hfdataopt.selection.fit_rule import Members, fit_rule, say_once_that_text_is_the_key
from hfdataopt.selection.rules import Rule, check_streams
from hfdataopt.selection.source import Batch, Source, text_columns
from hfdataopt.selection.words import word_vectors


@dataclass(frozen=True)
class Filter:
    """Base of every filter. Higher scores = more helpful.

    Class attributes:
        name: lower-case words joined by dashes.
        meaning: what a high score says, or ``suspicion`` or ``chance`` (as for scorers).
        needs_target: whether it compares rows with validation data.
        streams: whether it can be fitted on a stream.
        draws: whether it draws random numbers.
        no_score: why a row may have no score, for the message that says so.

    Args:
        rule: a keep rule (:mod:`hfdataopt.selection.rules`); ``get_filter(name, keep=rule)`` sets it.
        on_nan: a row that has no text or no score is an ``error``, or is ``drop``-ped (its score is NaN).
        fit_rows: how many rows ``fit`` reads of a stream.
        column: name of the score column; None for ``score_NAME``.
    """

    name: ClassVar[str]
    meaning: ClassVar[str] = "helpfulness"
    needs_target: ClassVar[bool] = False
    streams: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    no_score: ClassVar[str] = ""

    rule: Rule | None = field(default=None, kw_only=True)
    on_nan: Literal["error", "drop"] = field(default="error", kw_only=True)
    fit_rows: int = field(default=100_000, kw_only=True)
    column: str | None = field(default=None, kw_only=True)
    version: int = field(default=1, init=False)
    code: str = field(default="", init=False, repr=False, compare=False)
    read: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)
    with_ids: bool = field(default=False, init=False, repr=False, compare=False)
    cut: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, "fit_rows", at_least=1)
        if "\0" in self.score_column:  # Arrow cuts a name there
            raise OptionError(f"{self.name}: column={self.column!r} is no name of a column")

    # -- to be implemented

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        """Which of the columns the score is computed from; :class:`DataError` where they are not there."""
        raise NotImplementedError(f"{type(self).__name__} must implement reads(columns, what)")

    def learn(self, pool: Source, target: Source | None) -> None:
        """Set the fitted state, by ``self.set(name=value)``. A filter that learns nothing leaves this out."""

    def score(self, batch: Batch) -> np.ndarray:
        """``[rows]`` float64 of one batch, NaN where there is none; a function of each row alone."""
        raise NotImplementedError(f"{type(self).__name__} must implement score(batch)")

    def vectors(self, batch: Batch) -> np.ndarray:
        """``[rows, d]``, representations by which ``diverse`` tells rows apart."""
        raise OptionError(
            f"{self.name}: has no representations of rows, which the rule diverse needs; take rds, or a text filter"
        )

    # -- the host's part

    def fit(self, dataset: Any, target: Any = None) -> Self:
        """A fitted copy.

        Args:
            dataset: what is to be filtered, a ``Dataset`` or a stream (of which the first ``fit_rows`` rows are read).
            target: validation data, for a filter that compares rows with it.

        Raises:
            OptionError: a target is missing or of no use.
            DataError: columns are missing or hold no text, ``row_id`` repeats, no row has a score, or the filter or its rule
                cannot be fitted on a stream.
        """
        fitted, pool = self.learned(dataset, target)
        if self.rule is not None:
            fitted.set(cut=fit_rule(fitted, pool))
        if pool.streaming:
            say(f"{self.name}: {_rows_used(pool)}")
        return fitted

    def learned(self, dataset: Any, target: Any = None) -> tuple[Self, Source]:
        """``fit`` without its last step, the fitting of the keep rule; and the dataset as it is read."""
        if self.needs_target and target is None:
            raise OptionError(f"{self.name}: compares rows with validation data; give target=")
        if not self.needs_target and target is not None:
            raise OptionError(f"{self.name}: has no use for target=; leave it out")
        pool = Source(dataset, self.name, "the dataset", limit=self.fit_rows)
        if pool.streaming and not self.streams:
            raise DataError(
                f"{self.name}: must see the whole dataset, which a stream does not have; filters for streams: {_streaming_filters()}"
            )
        if pool.streaming and self.rule is not None:
            check_streams(self.rule, self.name)
        if not pool.with_ids and (self.draws or (self.rule is not None and self.rule.draws)):
            say_once_that_text_is_the_key()
        fitted = copy.copy(self)
        fitted.set(
            version=self.version,  # into the state of the instance, which is what datasets hashes
            code=_code(type(self).__mro__) + _code_given(self),
            with_ids=pool.with_ids,
            read=self.reads(pool.columns, "the dataset"),
        )
        pool.read = fitted.read or ()
        queries = None
        if target is not None:
            queries = Source(target, self.name, "target")
            queries.read = self.reads(queries.columns, "target")
        fitted.learn(pool, queries)
        return fitted, pool

    def set(self, **state: Any) -> None:
        """Set fitted state; only for ``fit`` and ``learn``, which work on a copy."""
        for name, value in state.items():
            object.__setattr__(self, name, value)

    @property
    def fitted(self) -> bool:
        return self.read is not None

    @property
    def score_column(self) -> str:
        """The column that the map function adds."""
        return self.column or f"score_{self.name}".replace("-", "_")

    @property
    def columns(self) -> list[str]:
        """The columns that ``keep`` takes, for ``input_columns``."""
        self._check_fitted("columns")
        group = self.rule.group_column if self.rule else None
        ids = [ROW_ID] if self.with_ids else []
        return list(dict.fromkeys([*(self.read or ()), *ids, *([group] if group else [])]))

    def __call__(self, batch: Mapping[str, Any], *more: Any) -> dict[str, Any]:
        """The score column of a batch of columns, for ``map(..., batched=True)``: ``[rows]`` float64, NaN for a dropped row.

        Not None: ``datasets`` takes the type of a column from its first rows, and a column of None has none.
        """
        self._check_fitted("the filter")
        if more or not hasattr(batch, "__getitem__") or isinstance(batch, list):
            raise OptionError(
                f"{self.name}: the map function takes whole batches; write map(f, batched=True) without input_columns"
            )
        return {self.score_column: self.scores(self.batch(batch))}

    @property
    def keep(self) -> Any:
        """The function for ``filter(f.keep, batched=True, input_columns=f.columns)``.

        Raises:
            OptionError: there is no keep rule, or the filter is not fitted.
        """
        if self.rule is None:
            raise OptionError(
                f"{self.name}: has no keep rule; give one, e.g. get_filter({self.name!r}, keep=top(fraction=0.1))"
            )
        self._check_fitted("keep")
        return self._keep

    def _keep(self, *columns: Any) -> list[bool]:
        if len(columns) == 1 and (isinstance(columns[0], Mapping) or hasattr(columns[0], "columns")):
            # without input_columns: a dict, or a table of pyarrow or pandas
            given: Any = columns[0]
        elif len(columns) == len(self.columns):
            given = dict(zip(self.columns, columns, strict=True))
        else:
            raise OptionError(f"{self.name}: keep takes the columns {self.columns}; write input_columns=f.columns")
        batch = self.batch(given)
        if isinstance(self.cut, Members):
            return self.cut(batch.keys).tolist()
        assert self.rule is not None
        values = self.rule.values(self.scores(batch), lambda: batch.keys)
        groups = None if self.rule.group_column is None else list(batch[self.rule.group_column])
        return self.cut(values, lambda positions: [batch.ids[i] for i in positions], groups).tolist()

    def batch(self, columns: Mapping[str, Any]) -> Batch:
        """A batch as this fitted filter reads it."""
        batch = Batch(columns, self.read or (), self.with_ids, self.name)
        first = next(iter([*(self.read or ()), *([ROW_ID] if self.with_ids else [])]), None)
        if first is not None and isinstance(batch[first], str | int | float):
            raise OptionError(f"{self.name}: got a single row; write batched=True")
        return batch

    def scores(self, batch: Batch) -> np.ndarray:
        """``[rows]`` float64, checked; NaN only with ``on_nan="drop"``."""
        if batch.missing.any() and self.on_nan == "error":
            where = int(batch.missing.argmax())
            raise DataError(
                f"{self.name}: {batch.name_of(where)} is None in column {' and '.join(map(repr, batch.empty_in(where)))}; fill it, or pass "
                "on_nan='drop'"
            )
        scores = np.asarray(self.score(batch), dtype=np.float64)
        if scores.shape != (len(batch),):
            raise DataError(f"{self.name}: score returned shape {list(scores.shape)} for {len(batch)} rows")
        if batch.missing.any():
            scores = np.where(batch.missing, np.nan, scores)
        if self.on_nan == "error" and np.isnan(scores).any():
            where = int(np.isnan(scores).argmax())
            raise DataError(
                f"{self.name}: {batch.name_of(where)} has no score (NaN{': ' * bool(self.no_score)}{self.no_score}); drop such rows "
                "with on_nan='drop'"
            )
        return scores

    def _check_fitted(self, what: str) -> None:
        if not self.fitted:
            raise OptionError(
                f"{self.name}: {what} was used before fit; call fitted = f.fit(dataset, ...) and use the copy it returns"
            )


@dataclass(frozen=True)
class TextFilter(Filter):
    """A filter that reads the text of a row.

    Args:
        text: the column, or the columns, whose text is read; None for TRL's: ``messages``, ``prompt`` + ``completion``, ``prompt`` +
            ``chosen``, ``text``, ``prompt``.
    """

    text: str | list[str] | None = field(default=None, kw_only=True)

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        if what == "target" and self.text is not None:  # the target may be of another format
            names = [self.text] if isinstance(self.text, str) else self.text
            if not set(names) <= set(columns):
                return text_columns(columns, None, self.name, what)
        return text_columns(columns, self.text, self.name, what)

    def vectors(self, batch: Batch) -> np.ndarray:
        """``[rows, 256]``, by the words of the text."""
        return word_vectors(batch.texts)


@dataclass(frozen=True)
class WholeFilter(TextFilter):
    """A filter whose score of a row depends on the other rows: it knows the rows it was fitted on and no others.

    To implement: ``score_all``. Rows are found again by ``row_id``, else by their text.
    """

    streams: ClassVar[bool] = False

    row_keys: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)
    row_scores: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def score_all(self, pool: Source, target: Source | None) -> np.ndarray:
        """``[rows]`` float64 of all rows of the dataset, in its order."""
        raise NotImplementedError(f"{type(self).__name__} must implement score_all(pool, target)")

    def learn(self, pool: Source, target: Source | None) -> None:
        keys = np.concatenate([batch.keys for batch in pool.batches()])
        scores = np.asarray(self.score_all(pool, target), dtype=np.float64)
        if scores.shape != keys.shape:
            raise DataError(f"{self.name}: score_all returned shape {list(scores.shape)} for {len(keys)} rows")
        order = np.argsort(keys, kind="stable")
        keys, scores = keys[order], scores[order]
        same = keys[1:] == keys[:-1]
        if (same & (scores[1:] != scores[:-1]) & ~(np.isnan(scores[1:]) & np.isnan(scores[:-1]))).any():
            raise DataError(
                f"{self.name}: rows of equal text have different scores and cannot be told apart; fit on with_row_ids(dataset)"
            )
        first = np.concatenate([[True], ~same])
        self.set(row_keys=keys[first], row_scores=scores[first])

    def score(self, batch: Batch) -> np.ndarray:
        assert self.row_keys is not None
        assert self.row_scores is not None
        where = np.minimum(np.searchsorted(self.row_keys, batch.keys), len(self.row_keys) - 1)
        strange = np.flatnonzero(self.row_keys[where] != batch.keys)
        if len(strange):
            raise DataError(
                f"{self.name}: {batch.name_of(int(strange[0]))} was not in the dataset the filter was fitted on; its scores hold "
                "only for that dataset, so fit it again"
            )
        return self.row_scores[where]


@functools.cache
def _code(bases: tuple[type, ...]) -> str:
    """A hash of the source of the modules that define a filter's class and its bases, and of the engines in this package."""
    modules = {inspect.getmodule(base) for base in bases if base is not object}
    engines = [file.read_text() for file in Path(__file__).parent.glob("*.py")]
    sources = sorted([_source(module) for module in modules] + engines)
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def _code_given(filter: Filter) -> str:
    """A hash of the source of the modules of functions that are options, such as rewards; empty where there are none."""
    values = [getattr(filter, f.name) for f in fields(filter) if f.init]
    each = [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
    found = {inspect.getmodule(one if inspect.isroutine(one) else type(one)) for one in each if callable(one)}
    sources = sorted(
        _source(module) for module in found if getattr(module, "__name__", "") != "__main__"
    )  # hashed by value
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16] if sources else ""


def _source(module: Any) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):  # typed at a prompt
        return getattr(module, "__name__", "")


def _rows_used(stream: Source) -> str:
    """How many rows of a stream ``fit`` used."""
    parts = [f"fitted on the first {stream.most} rows of the stream"] if stream.most else []
    parts += [f"keep rule fitted on all {stream.most_whole} rows"] if stream.most_whole else []
    return ", ".join(parts) or "needed no row of the stream"


def _streaming_filters() -> str:
    from hfdataopt.plugins import host

    components = host().components["filter"].values()
    return ", ".join(sorted(component.name for component in components if getattr(component.cls, "streams", False)))
