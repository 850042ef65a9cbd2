"""Keep rules: which rows stay, given their scores. A rule is a dataclass; ``Filter.fit`` turns it into a :class:`Cut`.

``top``, ``threshold``, ``quantile``, ``sample`` and ``balance`` become limits on the score, which a map function can compare
with row by row; ``diverse`` depends on the other rows that are kept, and becomes the set of those rows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.attribution.scores import count_of
from hfdataopt.console import say
from hfdataopt.errors import DataError, OptionError
from hfdataopt.options import check_options, check_range
from hfdataopt.selection.keys import gumbel

Ids = Callable[[np.ndarray], Sequence[Any]]  # positions -> row ids, by which ties go


@dataclass(frozen=True)
class Candidates:
    """The rows that a rule chooses from.

    Attributes:
        values: ``[rows]`` float64, what the rule ranks by (:meth:`Rule.values`); NaN for a row that cannot be kept.
        ids: positions -> row ids; asked only for rows that tie.
        groups: ``[rows]``, the class of each row, for ``balance``.
        vectors: positions -> ``[positions, d]`` representations, for ``diverse``.
        who: begins each message.
    """

    values: np.ndarray
    ids: Ids
    groups: Sequence[Any] | None = None
    vectors: Callable[[np.ndarray], np.ndarray] | None = None
    who: str = "select"


@dataclass(frozen=True)
class Cut:
    """What a map function needs to keep the rows a rule chose: per group the lowest value, and the last id at that value.

    Attributes:
        limits: group (None where rows are not grouped) -> ``(value, last id)``; None as the id keeps every tie.
        unseen: what a group without limits is: an ``error``, or ``dropped`` (which is said), where only the first rows of a stream
            were seen.
    """

    limits: dict[Any, tuple[float, Any]]
    unseen: Literal["error", "dropped"] = "error"

    def __call__(self, values: np.ndarray, ids: Ids, groups: Sequence[Any] | None = None) -> np.ndarray:
        """``[rows]`` bool."""
        kept = np.zeros(len(values), dtype=bool)
        strange = set(groups or ()) - self.limits.keys()
        if strange and self.unseen == "error":
            raise DataError(f"balance: the class {strange.pop()!r} was not among the rows that the rule was fitted on")
        for group in strange:
            _say_that_it_is_dropped(group)
        for group, (limit, last) in self.limits.items():
            mine = True if groups is None else np.array([value == group for value in groups], dtype=bool)
            kept |= mine & (values > limit if last is not None else values >= limit)
            tied = np.flatnonzero(mine & (values == limit))
            if last is not None and len(tied):
                kept[tied] = [value <= last for value in ids(tied)]
        return kept


@functools.cache
def _say_that_it_is_dropped(group: Any) -> None:
    say(f"balance: the class {group!r} was not among the first rows of the stream (fit_rows=); its rows are dropped")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of the keep rules.

    Class attributes:
        name: the class's own.
        streams: whether it can be fitted on the first rows of a stream.
        draws: whether it adds random numbers to the scores.
    """

    name: ClassVar[str]
    streams: ClassVar[bool] = True
    draws: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__

    def __str__(self) -> str:
        """The rule with what differs from the defaults, as it would be written."""
        given = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{self.name}({', '.join(given)})"

    @property
    def group_column(self) -> str | None:
        """The column by which rows are grouped."""
        return None

    def group_column_of(self, columns: Sequence[str], who: str) -> str | None:
        """``group_column``; :class:`DataError` where a dataset with these columns lacks it."""
        group = self.group_column
        if group is not None and group not in columns:
            raise DataError(f"{who}: the dataset has no column {group!r} to {self.name}; it has: {', '.join(columns)}")
        return group

    def __post_init__(self) -> None:
        check_options(self)

    def values(self, scores: np.ndarray, row_keys: Callable[[], np.ndarray]) -> np.ndarray:
        """``[rows]``, what rows are ranked by; ``row_keys()`` gives their 64-bit keys."""
        return scores

    def choose(self, rows: Candidates) -> np.ndarray:
        """Positions of the rows to keep, ascending."""
        raise NotImplementedError

    def cut(self, rows: Candidates, chosen: np.ndarray) -> Cut:
        """The limits that keep these rows."""
        groups = [None] * len(chosen) if rows.groups is None else [rows.groups[i] for i in chosen]
        members: dict[Any, list[int]] = {}
        for position, group in zip(chosen.tolist(), groups, strict=True):
            members.setdefault(group, []).append(position)
        nothing = (math.inf, None)
        limits: dict[Any, tuple[float, Any]] = dict.fromkeys(rows.groups or (), nothing)
        for group, positions in members.items():
            values = rows.values[positions]
            limit = values.min()
            limits[group] = (float(limit), max(rows.ids(np.array(positions)[values == limit])))
        return Cut(limits)


@dataclass(frozen=True, kw_only=True)
class _Sized(Rule):
    """A rule that keeps ``k`` rows, or a ``fraction`` of those that have a score; exactly one."""

    k: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.k is None) == (self.fraction is None):
            raise OptionError(
                f"{self.name}: give exactly one of k and fraction; got k={self.k}, fraction={self.fraction}"
            )
        check_range(self, "k", at_least=1)
        check_range(self, "fraction", above=0, at_most=1)

    def size(self, rows: Candidates) -> int:
        """How many to keep of these rows."""
        scored = int((~np.isnan(rows.values)).sum())
        try:
            count = count_of(self.k, self.fraction, len(rows.values) if self.k is not None else scored)
        except OptionError as error:
            raise OptionError(f"{rows.who}: {self.name}: {error}") from error
        if count > scored:
            raise OptionError(f"{rows.who}: {self.name} asks for {count} rows but only {scored} have a score")
        return count


@dataclass(frozen=True, kw_only=True)
class top(_Sized):
    """The best ``k`` rows, or the best ``fraction`` of those with a score: exactly that many, ties by row id.

    On a stream, ties at the lowest score are all kept, and their number is said.
    """

    def choose(self, rows: Candidates) -> np.ndarray:
        return _best(rows, np.flatnonzero(~np.isnan(rows.values)), self.size(rows))


@dataclass(frozen=True)
class threshold(Rule):
    """Every row whose score is at least ``value``."""

    value: float

    def choose(self, rows: Candidates) -> np.ndarray:
        return np.flatnonzero(rows.values >= self.value)

    def cut(self, rows: Candidates, chosen: np.ndarray) -> Cut:
        return Cut({None: (float(self.value), None)})


@dataclass(frozen=True)
class quantile(Rule):
    """Every row whose score is at least the ``q``-quantile of all scores: ``quantile(0.9)`` keeps about a tenth."""

    q: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "q", at_least=0, at_most=1)

    def limit(self, values: np.ndarray) -> float:
        return float(np.nanquantile(values, self.q))

    def choose(self, rows: Candidates) -> np.ndarray:
        return np.flatnonzero(rows.values >= self.limit(rows.values))

    def cut(self, rows: Candidates, chosen: np.ndarray) -> Cut:
        return Cut({None: (self.limit(rows.values), None)})


@dataclass(frozen=True, kw_only=True)
class sample(_Sized):
    """A draw without replacement with probabilities proportional to ``exp(score / temperature)`` (Gumbel top-k; Kool et al. 2019).

    Args:
        temperature: low values come close to ``top``, high ones to a uniform draw.
        seed: draws are a function of (seed, row id).
    """

    draws: ClassVar[bool] = True

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "temperature", above=0)

    def values(self, scores: np.ndarray, row_keys: Callable[[], np.ndarray]) -> np.ndarray:
        return scores / self.temperature + gumbel(self.seed, row_keys())

    def choose(self, rows: Candidates) -> np.ndarray:
        return _best(rows, np.flatnonzero(~np.isnan(rows.values)), self.size(rows))


@dataclass(frozen=True)
class balance(_Sized):
    """The best rows of each class, as equally many as there are: ``k`` (or ``fraction``) is the number over all classes.

    A class with too few rows gives all it has, and the others share the rest.

    Args:
        column: what rows are grouped by, such as ``label`` or ``category``.
    """

    column: str

    @property
    def group_column(self) -> str | None:
        return self.column

    def choose(self, rows: Candidates) -> np.ndarray:
        assert rows.groups is not None
        wrong = next((group for group in rows.groups if isinstance(group, list | dict)), None)
        if wrong is not None:
            raise DataError(f"{rows.who}: column {self.column!r} must hold classes, one per row; got {wrong!r:.80}")
        members: dict[Any, list[int]] = {}
        for position in np.flatnonzero(~np.isnan(rows.values)).tolist():
            members.setdefault(rows.groups[position], []).append(position)
        sizes = even_sizes({group: len(positions) for group, positions in members.items()}, self.size(rows))
        return np.sort(
            np.concatenate([_best(rows, np.array(members[group]), size) for group, size in sizes.items() if size])
        )


@dataclass(frozen=True, kw_only=True)
class diverse(_Sized):
    """Of the best rows, those that cover them best, by the filter's representations of rows.

    Args:
        method: ``facility-location`` maximises the sum over candidates of the similarity to the nearest kept row (greedily,
            within 1 - 1/e of the best; Nemhauser et al. 1978); ``farthest-first`` takes the best row, then always the row that is
            farthest from all kept ones (Gonzalez 1985).
        candidates: how many times the number to keep are the best rows that are chosen from; 1 would be ``top``.
    """

    streams: ClassVar[bool] = False

    method: Literal["facility-location", "farthest-first"] = "facility-location"
    candidates: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "candidates", at_least=1)

    def choose(self, rows: Candidates) -> np.ndarray:
        from hfdataopt.selection.diversity import facility_location, farthest_first

        if rows.vectors is None:
            raise OptionError(f"{rows.who}: diverse needs representations of rows; take it as keep= of a filter")
        size, scored = self.size(rows), np.flatnonzero(~np.isnan(rows.values))
        best = _best(rows, scored, min(len(scored), math.ceil(size * self.candidates)))
        ids = rows.ids(best)
        best = best[sorted(range(len(best)), key=lambda i: (-rows.values[best[i]], ids[i]))]
        choose = facility_location if self.method == "facility-location" else farthest_first
        return np.sort(best[choose(rows.vectors(best), size)])


def even_sizes(available: dict[Any, int], total: int) -> dict[Any, int]:
    """How many to take of each group, as equal as its size allows; the first groups (by name) get what does not divide."""
    sizes: dict[Any, int] = {}
    left = total
    smallest_first = sorted(available, key=lambda group: (available[group], str(group)))
    for place, group in enumerate(smallest_first):
        others = smallest_first[place:]
        share, rest = divmod(left, len(others))
        if available[group] > share:  # the smallest can give its share and one more, so all can
            return sizes | {name: share + (i < rest) for i, name in enumerate(sorted(others, key=str))}
        sizes[group] = available[group]
        left -= available[group]
    return sizes


def _best(rows: Candidates, positions: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` of these positions with the highest values, ties by id; ascending."""
    values = rows.values[positions]
    limit = np.partition(values, len(values) - count)[len(values) - count]
    above, tied = positions[values > limit], positions[values == limit]
    need = count - len(above)
    if need < len(tied):
        ids = rows.ids(tied)
        tied = tied[sorted(range(len(tied)), key=ids.__getitem__)[:need]]
    return np.sort(np.concatenate([above, tied]))


RULES: dict[str, type[Rule]] = {rule.__name__: rule for rule in (top, threshold, quantile, sample, balance, diverse)}


def check_streams(rule: Rule, who: str) -> None:
    """Raise :class:`DataError` for a rule that has to see every row at once."""
    if not rule.streams:
        raise DataError(
            f"{who}: the rule {rule.name} needs the whole dataset, which a stream does not have; rules for streams: "
            f"{', '.join(name for name, kind in RULES.items() if kind.streams)}"
        )
