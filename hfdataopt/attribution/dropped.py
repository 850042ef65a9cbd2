"""How many rows a trainer of TRL left out while it prepared its dataset, which a callback otherwise cannot see.

The one place that reads ``_indices`` and ``_data`` of ``datasets``: where the last thing done to a dataset was a filter, the table
beneath it still holds all rows. ``tests/contracts`` checks that this is what TRL does.
"""

from typing import Any


def is_of_trl(args: Any) -> bool:
    """Whether these are the arguments of a trainer of TRL, which prepares its dataset."""
    return any(kind.__module__.partition(".")[0] == "trl" for kind in type(args).__mro__)


def rows_dropped(dataset: Any, args: Any) -> int | None:
    """Rows that were in the dataset handed over and are not in the one that is trained on; None where it cannot be told.

    Args:
        dataset: what the trainer iterates, with or without the columns that it removes for the model.
        args: the trainer's arguments; those of ``transformers`` alone mean that nothing was prepared.
    """
    if not is_of_trl(args):
        return 0
    skipped = (getattr(args, "dataset_kwargs", None) or {}).get("skip_prepare_dataset", False)
    if skipped or getattr(args, "max_length", None) is None:  # rows are dropped only for their length
        return 0
    if getattr(args, "shuffle_dataset", False) or not (hasattr(dataset, "_indices") and hasattr(dataset, "_data")):
        return None
    return 0 if dataset._indices is None else dataset._data.num_rows - len(dataset)
