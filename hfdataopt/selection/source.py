"""What a filter reads: a dataset or a stream in batches of columns, and the text and key of each row."""

import copy
import functools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hfdataopt.attribution.rows import ROW_ID
from hfdataopt.errors import DataError
from hfdataopt.selection.keys import keys_of

BATCH = 1000
# Columns that make up the text of a row, in TRL's formats; the first of these that a dataset has is taken.
CONVENTIONS = (("messages",), ("prompt", "completion"), ("prompt", "chosen"), ("chosen",), ("text",), ("prompt",))


def check_columns(names: Iterable[str], columns: Sequence[str], who: str, what: str) -> None:
    """Raise :class:`DataError` for the first of these names that is no column."""
    for name in names:
        if name not in columns:
            raise DataError(f"{who}: {what} has no column {name!r}; it has: {', '.join(columns)}")


def text_columns(columns: Sequence[str], given: str | Sequence[str] | None, who: str, what: str) -> tuple[str, ...]:
    """The columns whose text is read: those given, else those of TRL's formats.

    Raises:
        DataError: a given column is not there, or none of the usual ones is.
    """
    if given is not None:
        wanted = (given,) if isinstance(given, str) else tuple(given)
        check_columns(wanted or ("",), columns, who, what)
        return wanted
    for names in CONVENTIONS:
        if all(name in columns for name in names):
            return names
    raise DataError(
        f"{who}: {what} has none of the usual text columns ({', '.join('+'.join(names) for names in CONVENTIONS)}); "
        f"say which with text=; it has: {', '.join(columns)}"
    )


def as_text(value: Any) -> str:
    """A cell as text: a string, or the contents of a list of messages, one line each.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return as_text(value.get("content", value.get("text")))
    if isinstance(value, list | tuple | np.ndarray):
        return "\n".join(map(as_text, (part for part in value if not isinstance(part, Mapping) or _has_text(part))))
    raise TypeError(type(value).__name__)


def _has_text(part: Mapping[str, Any]) -> bool:
    """Whether a message or a part of its content holds text: not an image, nor a call of a tool."""
    return part.get("content", part.get("text")) is not None


def _plain(value: Any) -> str:
    """A cell that is no string, such as messages or a number, as JSON; floats in the 32 bits that numpy's format leaves."""
    return json.dumps(_in_32_bits(value), sort_keys=True, default=str)


def _in_32_bits(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, Mapping):
        return {name: _in_32_bits(part) for name, part in value.items()}
    return [_in_32_bits(part) for part in value] if isinstance(value, list | tuple) else value


class Batch:
    """Some rows, column by column.

    Attributes:
        columns: name -> values, a list or an array of numpy, pyarrow, pandas or torch; only what is looked up is decoded.
        read: the names of the columns that the score is computed from.
        with_ids: whether rows are known by the column ``row_id``, else by their text.
        start: where the first row stands in the dataset, for messages; None where that is not known.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        read: tuple[str, ...],
        with_ids: bool,
        who: str,
        start: int | None = None,
    ):
        self.start = start
        self.columns = columns
        self.read = read
        self.with_ids = with_ids
        self.who = who
        self._lists: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self[self.read[0] if self.read else next(iter(self.columns))])

    def __getitem__(self, name: str) -> Any:
        """A column as a list, so that a row is the same to a filter whatever the format of the batch."""
        if name not in self._lists:
            try:
                column = self.columns[name]
            except KeyError as error:
                raise DataError(f"{self.who}: the rows have no column {name!r}, which was there at fit") from error
            if column is None or isinstance(column, str | int | float):  # a single row; the filter says so
                return column
            to_list = getattr(column, "to_pylist", None) or getattr(column, "tolist", None)
            values = to_list() if to_list else column
            if any(isinstance(value, np.generic) for value in values):  # a stream of numpy's format
                values = [value.item() if isinstance(value, np.generic) else value for value in values]
            self._lists[name] = values
        return self._lists[name]

    @functools.cached_property
    def missing(self) -> np.ndarray:
        """``[rows]`` bool: whether one of the columns that are read is None."""
        found = np.zeros(len(self), dtype=bool)
        for name in self.read:
            found |= np.array([value is None for value in self[name]], dtype=bool)
        return found

    @functools.cached_property
    def texts(self) -> list[str]:
        """``[rows]``: the text of each row, its columns one after the other on lines of their own; empty where one is None."""
        parts = [self._texts_of(name) for name in self.read]
        return parts[0] if len(parts) == 1 else ["\n".join(row) for row in zip(*parts, strict=True)]

    def _texts_of(self, name: str) -> list[str]:
        column = list(self[name])
        if all(type(value) is str for value in column):
            return column
        try:
            return ["" if value is None else as_text(value) for value in column]
        except TypeError as error:
            raise DataError(f"{self.who}: column {name!r} must hold text or messages; got {error}") from error

    def numbers(self, name: str) -> np.ndarray:
        """``[rows]`` float64 of a column of numbers, NaN for None; floats in the 32 bits that numpy's format leaves."""
        values = self[name]
        for value in values:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise DataError(f"{self.who}: column {name!r} must hold numbers; got {value!r:.80}")
        return np.array(
            [np.nan if v is None else float(np.float32(v)) if type(v) is float else v for v in values], dtype=np.float64
        )

    def vectors(self, name: str) -> np.ndarray:
        """``[rows, d]`` float32 of a column of equally long lists of numbers, NaN for None."""
        values = list(self[name])
        first: Any = next((value for value in values if value is not None), [])
        width = len(first) if hasattr(first, "__len__") else 0
        try:
            found = np.array([[np.nan] * width if value is None else value for value in values], dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.who}: column {name!r} must hold lists of equally many numbers") from error
        if found.ndim != 2:
            raise DataError(f"{self.who}: column {name!r} must hold a list of numbers per row; got {first!r}")
        return found

    @functools.cached_property
    def ids(self) -> list[Any]:
        """``[rows]``: what ties go by, the column ``row_id``, else the keys of the texts."""
        if not self.with_ids:
            return self.keys.tolist()
        ids = list(self[ROW_ID])
        if {type(value) for value in ids} not in ({int}, {str}):
            wrong = next(value for value in ids if type(value) not in (int, str) or type(value) is not type(ids[0]))
            raise DataError(f"{self.who}: column 'row_id' must hold only ints or only strings; got {wrong!r}")
        return ids

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """``[rows]`` uint64, a function of the row's id or else of its text."""
        if self.with_ids:
            return keys_of(self.ids)
        parts = [[value if type(value) is str else _plain(value) for value in self[name]] for name in self.read]
        return keys_of(parts[0] if len(parts) == 1 else ["\n".join(row) for row in zip(*parts, strict=True)])

    @property
    def labels(self) -> list[Any]:
        """``[rows]``: how rows are called in messages of others: by id, else by the beginning of what is read first."""
        return (
            self.ids
            if self.with_ids
            else [_plain(value)[:60] if type(value) is not str else value[:60] for value in self[self.read[0]]]
        )

    def name_of(self, position: int) -> str:
        """A row for a message."""
        if self.with_ids:
            return f"row {self.ids[position]!r}"
        shown = next((name for name in self.read if self[name][position] is not None), None)
        where = "a row" if self.start is None else f"row {self.start + position}"
        if not shown:
            return where
        value = self[shown][position]
        text = value if type(value) is str else _plain(value)
        return f"{where if self.start is not None else 'the row'} with {shown} {text[:60]!r}"

    def empty_in(self, position: int) -> list[str]:
        """The columns that are read and are None in this row."""
        return [name for name in self.read if self[name][position] is None]


class Source:
    """A dataset or a stream, read from the start in batches as often as needed, in constant memory.

    Attributes:
        streaming: whether it is a ``datasets.IterableDataset``.
        columns: the names of its columns.
        read: those that the score is computed from; set by the filter.
        limit: how many rows are read of a stream; None for all.
        most, most_whole: how many rows were read in the longest pass, up to the limit and without one.
    """

    def __init__(self, dataset: Any, who: str, what: str, *, limit: int | None = None):
        import datasets

        if isinstance(dataset, Mapping):
            raise DataError(f"{who}: {what} is a dict of datasets ({', '.join(map(str, dataset))}); pass one of them")
        if not isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
            raise DataError(
                f"{who}: {what} is a {type(dataset).__name__}; it must be a datasets.Dataset or a stream of datasets"
            )
        self.dataset, self.who, self.what = dataset, who, what
        self.streaming = isinstance(dataset, datasets.IterableDataset)
        self.limit = limit if self.streaming else None
        self.most = self.most_whole = 0
        self.from_start = True  # whether positions are those of the dataset that was handed over
        columns = dataset.column_names
        if columns is None:  # a stream after a map function
            columns = list(next(iter(dataset.take(1)), {}))
        self.columns: list[str] = list(columns)
        if not self.columns or (not self.streaming and len(dataset) == 0):
            raise DataError(f"{who}: {what} is empty")
        self.with_ids = ROW_ID in self.columns
        self.read: tuple[str, ...] = ()
        self._ids_checked = not self.with_ids
        if not self.streaming:
            self.check_ids()

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, more: Sequence[str] = (), *, whole: bool = False) -> Iterator[Batch]:
        """Batches of the columns that are read, ``row_id`` and ``more``, in order; up to ``limit`` rows unless ``whole``."""
        names = list(dict.fromkeys([*self.read, *([ROW_ID] if self.with_ids else []), *more]))
        left = None if whole else self.limit
        part = self.dataset.select_columns(names)
        if left is not None:
            part = part.take(left)
        if not self.streaming:
            part = part.with_format("arrow")
        seen: list[np.ndarray] = []
        count = 0
        for rows in part.iter(BATCH):
            columns = rows if self.streaming else {name: rows[name].to_pylist() for name in names}
            start = count if self.from_start else None
            batch = Batch({name: columns[name] for name in names}, self.read, self.with_ids, self.who, start)
            if not self._ids_checked:
                seen.append(batch.keys)
            count += len(batch)
            yield batch
        if whole:
            self.most_whole = max(self.most_whole, count)
        else:
            self.most = max(self.most, count)
        if not count:
            raise DataError(f"{self.who}: {self.what} is empty")
        if not self._ids_checked:
            self._check_unique(np.concatenate(seen))

    def at(self, positions: np.ndarray) -> Iterator[Batch]:
        """Batches of these rows of a map-style dataset."""
        part = copy.copy(self)
        part.dataset, part._ids_checked, part.from_start = self.dataset.select(positions), True, False
        return part.batches()

    def check_ids(self) -> None:
        """Raise :class:`DataError` unless the row ids of a map-style dataset are unique, and all int or all str."""
        if not self._ids_checked:
            read, self.read = self.read, (ROW_ID,)
            for _ in self.batches():
                pass
            self.read = read

    def _check_unique(self, keys: np.ndarray) -> None:
        self._ids_checked = True
        if len(np.unique(keys)) < len(keys):
            ids = [value for batch in self.batches() for value in batch.ids]
            twice = [value for value, count in Counter(ids).items() if count > 1]
            raise DataError(
                f"{self.who}: column 'row_id' of {self.what} has {len(twice)} values more than once, for example {twice[:5]}; ids must be unique"
            )

    def texts(self) -> Iterator[str]:
        """The texts of all rows that are read."""
        for batch in self.batches():
            yield from batch.texts
