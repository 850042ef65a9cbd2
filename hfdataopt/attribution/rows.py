"""Row identity, and reading a dataset row by row in a fixed order.

A row's id is its value in the column ``row_id`` where there is one (str or int, unique), else its position in the dataset
handed over. Ids are never made under ``num_proc`` or on a stream, where positions are not identities.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hfdataopt.errors import DataError

ROW_ID = "row_id"
PAIR = {"chosen_ids", "rejected_ids"}  # columns of a tokenized preference pair, as TRL's RewardTrainer makes them
RowIds = list[int] | list[str]


def with_row_ids(dataset: Any) -> Any:
    """The dataset with a column ``row_id`` holding each row's position; returned as it is when it has (valid) ids."""
    check_map_style(dataset, "with_row_ids: the dataset")
    if not hasattr(dataset, "add_column"):
        raise DataError(f"with_row_ids needs a datasets.Dataset; got {type(dataset).__name__}")
    if ROW_ID in dataset.column_names:
        row_ids(dataset)
        return dataset
    return dataset.add_column(ROW_ID, list(range(len(dataset))))


def row_ids(dataset: Any, who: str = "the dataset") -> RowIds:
    """The ids of a map-style dataset's rows: its ``row_id`` column, else positions.

    Raises:
        DataError: ids that are neither all int nor all str, or not unique; the first duplicates are named.
    """
    columns = getattr(dataset, "column_names", None)
    if not columns or ROW_ID not in columns:
        return list(range(len(dataset)))
    ids = as_list(dataset[ROW_ID])
    for kind in (int, str):
        if all(isinstance(value, kind) and not isinstance(value, bool) for value in ids):
            break
    else:
        wrong = next(
            value
            for value in ids
            if not isinstance(value, int | str) or isinstance(value, bool) or type(value) is not type(ids[0])
        )
        raise DataError(f"{who}: column 'row_id' must hold only ints or only strings; got {wrong!r}")
    if len(set(ids)) != len(ids):
        seen: set[Any] = set()
        twice = [value for value in ids if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
        raise DataError(
            f"{who}: column 'row_id' has {len(twice)} duplicates, for example {twice[:5]}; ids must be unique"
        )
    return ids


def as_list(column: Any) -> list[Any]:
    """A dataset's column as plain Python values, also where ``set_format`` makes it a tensor or an array."""
    column = column[:]
    return column.tolist() if isinstance(column, torch.Tensor | np.ndarray) else list(column)


def check_map_style(dataset: Any, who: str) -> None:
    """Raise :class:`DataError` unless the dataset has a length and rows that can be read by position."""
    if isinstance(dataset, str | os.PathLike):
        raise DataError(f"{who} is the path {str(dataset)!r}; load it first, for example with datasets.load_dataset")
    if dataset is None:
        raise DataError(f"{who} is None; pass a dataset")
    _refuse_stream(dataset, who)
    try:
        rows = len(dataset)
    except TypeError:  # a class, an array without dimensions
        raise DataError(f"{who} is {dataset!r:.80}, which has no rows; pass a dataset") from None
    if rows == 0:
        raise DataError(f"{who} is empty; there is nothing to score")


def _refuse_stream(dataset: Any, who: str) -> None:
    import datasets

    if isinstance(dataset, Mapping):
        raise DataError(f"{who} is a dict of datasets ({', '.join(map(str, dataset))}); pass one of them")
    # torch's class has a __getitem__ that raises, and a subclass may state a length
    streams = (torch.utils.data.IterableDataset, datasets.IterableDataset)
    if isinstance(dataset, streams) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"{who}: {type(dataset).__name__} is a stream, whose rows have no identity; load it as a map-style dataset "
            "(for example Dataset.from_list(list(stream.take(10_000))))"
        )


def draw(ids: Sequence[Any], count: int, seed: int) -> list[int]:
    """Positions of ``count`` rows drawn without replacement as a function of (seed, row id): row order cannot matter."""
    return sorted(shuffled(ids, seed)[:count])


def shuffled(ids: Sequence[Any], seed: int) -> list[int]:
    """All positions in an order that is a function of (seed, row id)."""
    keys = [hashlib.sha256(f"{seed}:{value!r}".encode()).digest() for value in ids]
    return sorted(range(len(ids)), key=keys.__getitem__)


# -- the fingerprint by which Scores recognise their dataset

SAMPLED_ROWS = 64


def sample_hashes(dataset: Any, ids: RowIds) -> list[dict[str, Any]]:
    """One hash per column for up to 64 rows: ``[{"row_id": ..., "columns": {name: sha256}}]``; the ids are not hashed."""
    sample = []
    for position in draw(ids, SAMPLED_ROWS, seed=0):
        row = dataset[position]
        if not isinstance(row, Mapping):
            return []
        hashes = {name: _hash_value(value) for name, value in row.items() if name != ROW_ID}
        sample.append({"row_id": ids[position], "columns": {k: v for k, v in hashes.items() if v is not None}})
    return sample


def row_hashes(dataset: Any) -> dict[str, np.ndarray]:
    """Column -> ``[rows]`` uint64, a hash of each row's value, whatever the format; no column whose values JSON cannot hold."""
    columns = getattr(dataset, "column_names", None)
    found: dict[str, list[str | None]]
    if columns is None:
        rows = [dataset[position] for position in range(len(dataset))]
        if not all(isinstance(row, Mapping) for row in rows):
            return {}
        shared = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
        found = {name: [_hash_value(row[name]) for row in rows] for name in shared}
    else:
        found = {name: [] for name in columns}
        for table in dataset.with_format("arrow").iter(1000) if columns else ():
            for name in columns:
                if None not in found[name][-1:]:  # one value that JSON lacks, and the column is left out
                    found[name] += [_hash_value(value) for value in table[name].to_pylist()]
    return {
        name: np.array([int(value, 16) for value in values], dtype=np.uint64)  # type: ignore[arg-type]
        for name, values in found.items()
        if name != ROW_ID and None not in values
    }


def _hash_value(value: Any) -> str | None:
    if isinstance(value, torch.Tensor | np.ndarray):
        value = value.tolist()
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    except TypeError:
        return None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A tensor or array as numbers; of anything else that JSON lacks only its type."""
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray | np.generic) else type(value).__name__


# -- reading rows


def pad_batch(rows: Sequence[Mapping[str, Any]], pad_token_id: int = 0) -> dict[str, Any]:
    """Collate tokenized rows without a tokenizer: sequences are padded on the right, numbers become one tensor.

    ``labels`` are padded with -100, ``attention_mask`` with 0 (and made where absent), all else with ``pad_token_id``.
    Preference pairs become twice as many rows, first all that are chosen, as by TRL's own collator.
    """
    if rows[0].keys() >= PAIR:
        answers = [{"input_ids": row[name]} for name in sorted(PAIR) for row in rows]
        margins = [row["margin"] for row in rows if "margin" in row]
        padded = pad_batch(answers, pad_token_id)
        return padded | ({"margin": torch.tensor(margins, dtype=torch.float)} if margins else {})
    batch: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], list | tuple | np.ndarray | torch.Tensor) and np.ndim(values[0]) == 1:
            tensors = [torch.as_tensor(value) for value in values]
            fill = {"labels": -100, "attention_mask": 0, "token_type_ids": 0}.get(name, pad_token_id)
            batch[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)
        elif isinstance(values[0], bool | int | float | np.number | torch.Tensor):
            batch["labels" if name == "label" else name] = torch.as_tensor(np.asarray(values))
    if "input_ids" in batch and "attention_mask" not in batch:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
    return batch


def side_by_side(batch: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """A batch of all chosen and then all rejected answers ``[2 * pairs, ...]`` with each pair in one row, ``[pairs, 2, ...]``."""
    return {
        name: torch.stack([value[:pairs], value[pairs:]], 1)
        if isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == 2 * pairs
        else value
        for name, value in batch.items()
    }


class Rows:
    """A dataset with row ids and a collator: what a scorer reads, always in dataset order.

    Attributes:
        dataset: map-style, without the columns that the collator could not take.
        ids: the row ids, ``[rows]``.
        side: ``"pool"`` or ``"queries"``, for messages.
        prompts: whether they are prompts to be completed, which have no batches.
        dropped: how many rows a trainer left out before these were counted; None where that is not known.
        pairs: whether a row is a preference pair, whose answers stand side by side in its batches: ``[b, 2, tokens]``.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        *,
        side: str,
        keep: Sequence[str] | None = None,
        prompts: bool = False,
        dropped: int | None = 0,
    ):
        check_map_style(dataset, f"the {side}" if side != "queries" else "queries=")
        self.side = side
        self.ids = row_ids(dataset, f"the {side}")
        self.source = dataset
        columns = getattr(dataset, "column_names", None)
        drop = [c for c in columns if c == ROW_ID or (keep is not None and c not in keep)] if columns else []
        self.dataset = dataset.remove_columns(drop) if drop else dataset
        self.collate = collate
        self.prompts = prompts
        self.dropped = dropped
        left = set(getattr(self.dataset, "column_names", None) or [])
        self.pairs = left >= PAIR and "prompt_ids" not in left  # which DPO has: its loss is another

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def contents(self) -> str:
        """A hash of everything that the collator gets; of sampled rows where the dataset has no columns to read."""
        if not getattr(self.dataset, "column_names", None):
            return hashlib.sha256(json.dumps(sample_hashes(self.source, self.ids)).encode()).hexdigest()[:16]
        digest = hashlib.sha256()
        for start in range(0, len(self), 1000):
            digest.update(json.dumps(self.dataset[start : start + 1000], sort_keys=True, default=_plain).encode())
        return digest.hexdigest()[:16]

    def batch(self, positions: Sequence[int]) -> dict[str, Any]:
        """The collated batch of these rows.

        Raises:
            DataError: the collator failed, or made another number of rows.
        """
        rows = [self.dataset[int(position)] for position in positions]
        try:
            batch = self.collate(rows)
        except Exception as error:
            raise DataError(
                f"the {self.side}: the collator {getattr(self.collate, '__name__', type(self.collate).__name__)} failed on rows "
                f"{[self.ids[p] for p in positions][:3]} with columns {sorted(rows[0]) if isinstance(rows[0], Mapping) else type(rows[0])}: "
                f"{type(error).__name__}: {error}"
            ) from error
        tokens = batch.get("input_ids")
        if self.pairs and isinstance(tokens, torch.Tensor) and len(tokens) == 2 * len(rows):
            return side_by_side(batch, len(rows))
        if isinstance(tokens, torch.Tensor) and len(tokens) != len(rows):
            raise DataError(
                f"the {self.side}: the collator {getattr(self.collate, '__name__', type(self.collate).__name__)} makes {len(tokens)} rows "
                f"of {len(rows)} (pairs of answers, or rows packed into one), so no row of its batches can be scored by itself; hand over "
                f"rows of one text each, for example attribute(model, {self.side} of prompt and completion, ...)"
            )
        return dict(batch)

    def batches(
        self, batch_size: int, positions: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """``(positions, batch)`` in order. No DataLoader: iterating one draws from the global random state."""
        positions = range(len(self)) if positions is None else positions
        for start in range(0, len(positions), batch_size):
            chunk = [int(p) for p in positions[start : start + batch_size]]
            yield chunk, self.batch(chunk)

    @functools.cached_property
    def positions(self) -> dict[Any, int]:
        """Where each row id stands."""
        return {row: position for position, row in enumerate(self.ids)}

    @functools.cached_property
    def lengths(self) -> list[int] | None:
        """Tokens of each row, or None where rows hold no ``input_ids``."""
        tokens = self.column("input_ids")
        if tokens is None:
            return None
        for row, given in zip(self.ids, tokens, strict=True):
            if not hasattr(given, "__len__") or isinstance(given, str) or not len(given):
                raise DataError(
                    f"the {self.side}: input_ids of row {row!r} must be a list of token ids; got {given!r:.80}"
                )
        return [len(row) for row in tokens]

    def by_length(self, positions: Sequence[int]) -> list[int]:
        """These positions, shortest row first, so that batches hold little padding; in order where lengths are unknown."""
        lengths = self.lengths
        return list(positions) if lengths is None else sorted(positions, key=lengths.__getitem__)

    def column(self, name: str) -> list[Any] | None:
        """One column of the dataset as a list, or None where there is no such column."""
        columns = getattr(self.source, "column_names", None)
        if columns is not None:
            return as_list(self.source[name]) if name in columns else None
        rows = [self.source[position] for position in range(len(self))]
        if not isinstance(rows[0], Mapping) or name not in rows[0]:
            return None
        for row, given in zip(self.ids, rows, strict=True):
            if not isinstance(given, Mapping) or name not in given:
                raise DataError(
                    f"the {self.side}: row {row!r} has no {name!r}, which the first row has; got {given!r:.80}"
                )
        return [row[name] for row in rows]
