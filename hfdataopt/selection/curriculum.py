"""A dataset in the order in which it is learnt: from easy to hard, as a whole or in stages (Curry-DPO, Pattnaik et al. 2024)."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hfdataopt.attribution.rows import as_list, check_map_style, row_ids
from hfdataopt.attribution.scores import Scores
from hfdataopt.errors import DataError, OptionError

WHO = "curriculum"


def curriculum(
    dataset: Any,
    by: Any,
    *,
    stages: int | None = None,
    easy: Literal["high", "low"] = "high",
    within: str | None = None,
) -> Any:
    """The dataset from its easiest row to its hardest, or a list of ``stages`` datasets, the easiest first.

    A trainer shuffles what it is given unless it is told not to. For DPO, SFT, reward and plain trainers that is
    ``train_sampling_strategy="sequential"``; for GRPO and RLOO ``shuffle_dataset=False``::

        pairs = curriculum(pairs, "score_reward_margin")
        DPOTrainer(model, args=DPOConfig(..., train_sampling_strategy="sequential"), train_dataset=pairs, ...).train()

    In stages, as the paper does it: the rows of a stage are shuffled as usual, and the model that a stage ends with is the
    reference of the next::

        for stage in curriculum(pairs, "score_reward_margin", stages=3, within="prompt"):
            trainer = DPOTrainer(
                model, ref_model=copy.deepcopy(model), args=args, train_dataset=stage, processing_class=tokenizer
            )
            trainer.train()
            model = trainer.model

    Without ``ref_model`` TRL would load the model that ``model`` was loaded from, before the first stage.

    Args:
        dataset: map-style.
        by: a column of numbers, such as the score of ``reward-margin`` or ``log-ratio``, or :class:`Scores`.
        stages: number of parts, of equal size up to one row.
        easy: whether ``high`` or ``low`` numbers are easy.
        within: a column such as ``prompt``: rows are ranked among those of equal value there, so that stage s has the s-th easiest
            pair of every prompt. The rows of a prompt are spread over the stages; a prompt with fewer rows misses some.

    Returns:
        A dataset, or a list of datasets none of which is empty. Ties go by row id.

    Raises:
        OptionError: more stages than rows.
        DataError: the column is missing, or a row has no number; it is named.
    """
    check_map_style(dataset, f"{WHO}: the dataset")
    if easy not in ("high", "low"):
        raise OptionError(f"{WHO}: easy={easy!r} is unknown; it is 'high' or 'low'")
    ids = row_ids(dataset, f"{WHO}: the dataset")
    values = _values(dataset, by, ids) * (-1 if easy == "high" else 1)
    order = sorted(range(len(values)), key=lambda row: (values[row], ids[row]))
    hardness = {row: place / len(order) for place, row in enumerate(order)}
    if within is not None:
        hardness = _within(order, _column(dataset, within))
        order = sorted(order, key=lambda row: hardness[row])
    if stages is None:
        return dataset.select(order)
    if isinstance(stages, bool) or not isinstance(stages, int) or not 1 <= stages <= len(order):
        raise OptionError(f"{WHO}: stages={stages!r} must be a whole number from 1 to {len(order)}, the number of rows")
    if within is None:
        return [dataset.select(part.tolist()) for part in np.array_split(order, stages)]
    parts = [[row for row in order if math.floor(hardness[row] * stages) == stage] for stage in range(stages)]
    if not all(parts):
        raise OptionError(
            f"{WHO}: stage {[bool(part) for part in parts].index(False) + 1} of {stages} has no rows, since no value of {within!r} "
            "has that many; take fewer"
        )
    return [dataset.select(part) for part in parts]


def _within(order: Sequence[int], groups: Sequence[Any]) -> dict[int, float]:
    """Row -> the part of the rows of its group that are easier, in [0, 1)."""
    members: dict[str, list[int]] = {}
    for row in order:
        members.setdefault(repr(groups[row]), []).append(row)
    return {row: place / len(rows) for rows in members.values() for place, row in enumerate(rows)}


def _values(dataset: Any, by: Any, ids: Sequence[Any]) -> np.ndarray:
    if isinstance(by, Scores):
        values = by.align(dataset)
    elif isinstance(by, str):
        column = _column(dataset, by)
        wrong = [v for v in column if v is not None and (isinstance(v, bool) or not isinstance(v, int | float))]
        if wrong:
            raise DataError(f"{WHO}: column {by!r} must hold numbers; got {wrong[0]!r:.80}")
        values = np.array([math.nan if value is None else value for value in column], dtype=np.float64)
    else:
        raise OptionError(f"{WHO}: by must be Scores or the name of a column; got {type(by).__name__}")
    if np.isnan(values).any():
        where = int(np.isnan(values).argmax())
        raise DataError(
            f"{WHO}: {int(np.isnan(values).sum())} rows have no number, first row {ids[where]!r}; filter them out first"
        )
    return values


def _column(dataset: Any, name: str) -> list[Any]:
    if name not in dataset.column_names:
        raise DataError(f"{WHO}: the dataset has no column {name!r}; it has: {', '.join(dataset.column_names)}")
    return as_list(dataset[name])
