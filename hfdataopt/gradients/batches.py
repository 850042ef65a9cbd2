"""Batches and the rows in them: sizes, row ids, and samples of rows that do not depend on how rows are batched."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from hfdataopt.errors import DataError

RowId = str | int
Batch = Mapping[str, Any]


def batch_size(inputs: Batch) -> int:
    """Rows of a batch: the first dimension of ``input_ids``, else of the first tensor that has one."""
    tensors = [inputs.get("input_ids"), inputs.get("inputs_embeds"), *inputs.values()]
    for x in tensors:
        if isinstance(x, Tensor) and x.dim() > 0:
            return x.shape[0]
    raise DataError(
        f"gradients: the batch holds no tensor (its keys: {', '.join(inputs)}); pass what a data collator returns"
    )


def batch_positions(inputs: Batch, size: int) -> int:
    """Rows times sequence length, the leading dimension of inputs that a model flattened."""
    for name in ("input_ids", "inputs_embeds"):
        x = inputs.get(name)
        if isinstance(x, Tensor) and x.dim() >= 2:
            return x.shape[0] * x.shape[1]
    return size


def choose_rows(row_ids: Sequence[RowId], count: int, *, seed: int = 0, exclude: Iterable[RowId] = ()) -> list[RowId]:
    """``count`` of the row ids (all, if there are fewer) chosen by a hash of (seed, id), in the order given.

    The choice does not depend on order or batching. ``exclude``: ids not to choose.
    """
    barred = set(exclude)
    open_rows = [row for row in row_ids if row not in barred]

    def key(row: RowId) -> bytes:
        return hashlib.sha256(f"{seed}/{type(row).__name__}/{row}".encode()).digest()

    chosen = set(sorted(open_rows, key=key)[:count])
    return [row for row in open_rows if row in chosen]


def take_rows(batches: Iterable[Batch], rows: Iterable[RowId] | None) -> Iterable[dict[str, Any]]:
    """The batches with only the given rows in them, each with its ``row_id``; None = all rows."""
    wanted = None if rows is None else set(rows)
    seen = 0
    for batch in batches:
        size = batch_size({key: x for key, x in batch.items() if key != "row_id"})
        ids = _ids(batch, seen, size)
        seen += size
        places = [place for place, row in enumerate(ids) if wanted is None or row in wanted]
        if places:
            taken = {key: _take(x, places, size) for key, x in batch.items() if key != "row_id"}
            yield taken | {"row_id": [ids[place] for place in places]}


def name_rows(rows: Sequence[RowId]) -> str:
    """Row ids for a message: the first ten."""
    return ", ".join(map(repr, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")


def nonfinite_error(rows: list[RowId]) -> DataError:
    """The error for rows whose gradient is not finite."""
    return DataError(
        f"gradients: the gradient or loss of {len(rows)} row(s) is not finite: {name_rows(rows)}; look at these "
        f"rows (and at "
        'the precision: dtype="float32"), or pass on_nonfinite="skip" to leave them out'
    )


def is_per_row(x: Any, size: int) -> bool:
    """Whether a value of a batch has one entry per row."""
    return isinstance(x, Tensor | list | tuple) and (x.dim() > 0 if isinstance(x, Tensor) else True) and len(x) == size


def _ids(batch: Batch, seen: int, size: int) -> list[RowId]:
    given = batch.get("row_id")
    if given is None:
        return list(range(seen, seen + size))
    return given.tolist() if isinstance(given, Tensor) else list(given)


def _take(value: Any, places: list[int], size: int) -> Any:
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == size:
        return value[places]
    if isinstance(value, list) and len(value) == size:
        return [value[place] for place in places]
    return value
