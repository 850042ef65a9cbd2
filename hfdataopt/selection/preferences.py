"""Preference rows in TRL's formats: plain or conversational, with the prompt in a column of its own or inside both answers.

- :func:`pair_columns`: the columns that hold a pair
- :func:`pairs_of`: each row as (prompt, chosen, rejected)
- :class:`MarginFilter`: what filters by a margin of chosen over rejected have in common
- :func:`reward_functions`: TRL reward functions, made ready once per process
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from hfdataopt.attribution.rows import ROW_ID
from hfdataopt.errors import DataError, OptionError
from hfdataopt.options import check_range
from hfdataopt.rewards import RewardFunctions
from hfdataopt.rewards.texts import is_messages
from hfdataopt.selection.filter import Filter
from hfdataopt.selection.source import Batch, check_columns

Pair = tuple[Any, Any, Any]
TEXT = ("prompt", "chosen", "rejected")


def pair_columns(columns: Sequence[str], who: str, what: str) -> tuple[str, ...]:
    """``prompt`` where there is one, ``chosen`` and ``rejected``; :class:`DataError` where one of the last two is missing."""
    missing = [name for name in ("chosen", "rejected") if name not in columns]
    if missing:
        raise DataError(
            f"{who}: {what} has no column {missing[0]!r}; preference rows have chosen, rejected and, unless both begin with it, "
            f"prompt; it has: {', '.join(columns)}"
        )
    return tuple(name for name in TEXT if name in columns)


def pairs_of(batch: Batch) -> list[Pair | None]:
    """``[rows]`` of (prompt, chosen, rejected), None for a row that lacks one.

    Where there is no prompt, or a plain one beside conversations, the prompt is what chosen and rejected begin with, as TRL's
    ``maybe_extract_prompt`` has it.

    Raises:
        DataError: a row is neither text nor messages, or mixes them; it is named.
    """
    chosen, rejected = batch["chosen"], batch["rejected"]
    prompts = batch["prompt"] if "prompt" in batch.columns else [None] * len(batch)
    explicit = "prompt" in batch.columns
    return [
        None
        if (explicit and prompt is None) or good is None or bad is None
        else _pair(prompt if explicit else None, good, bad, batch, place)
        for place, (prompt, good, bad) in enumerate(zip(prompts, chosen, rejected, strict=True))
    ]


def _pair(prompt: Any, chosen: Any, rejected: Any, batch: Batch, place: int) -> Pair:
    plain = isinstance(chosen, str) and isinstance(rejected, str)
    if not plain and not (is_messages(chosen) and is_messages(rejected)):
        raise DataError(
            f"{batch.who}: chosen and rejected of {batch.name_of(place)} must both be text, or both lists of messages with role "
            f"and content; got {str(chosen)[:60]!r} and {str(rejected)[:60]!r}"
        )
    if prompt is not None and isinstance(prompt, str) == plain:
        return prompt, chosen, rejected
    if prompt is not None and plain:
        raise DataError(f"{batch.who}: {batch.name_of(place)} has messages as its prompt but text as its answers")
    return split_prompt(chosen, rejected)


def split_prompt(chosen: Any, rejected: Any) -> Pair:
    """What both answers begin with, characters or turns, and the rest of each; at least the last one stays in the shorter."""
    shorter = min(len(chosen), len(rejected))
    common = next((place for place in range(shorter) if chosen[place] != rejected[place]), max(shorter - 1, 0))
    differs = common < shorter and chosen[common] != rejected[common]
    if differs and common and chosen[common - 1] == " ":  # the space belongs to the answers' first word
        common -= 1
    return chosen[:common], chosen[common:], rejected[common:]


@dataclass(frozen=True)
class MarginFilter(Filter):
    """A filter whose score says how near the margin of chosen over rejected is to what is asked for.

    To implement: ``margins``, ``reads``.

    Args:
        best: whether the ``largest`` margins score highest, the ``smallest`` (negative ones first: pairs that are contradicted),
            or those ``nearest`` to ``value``.
        value: what ``best="nearest"`` is near to; 0 asks for the pairs that are hardest to tell apart.
    """

    best: Literal["largest", "smallest", "nearest"] = field(default="largest", kw_only=True)
    value: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "value")
        if (self.best == "nearest") != (self.value is not None):
            raise OptionError(
                f"{self.name}: best='nearest' and value= go together; got best={self.best!r}, value={self.value}"
            )

    def margins(self, batch: Batch) -> np.ndarray:
        """``[rows]`` float64, NaN where there is none."""
        raise NotImplementedError(f"{type(self).__name__} must implement margins(batch)")

    def score(self, batch: Batch) -> np.ndarray:
        margins = self.margins(batch)
        if self.value is not None:
            return -np.abs(margins - self.value)
        return margins if self.best == "largest" else -margins

    def reads_numbers(self, names: Sequence[str], columns: Sequence[str], what: str) -> tuple[str, ...]:
        """These columns, and the text where rows are known by nothing else; :class:`DataError` where one is missing."""
        check_columns(names, columns, self.name, what)
        return (*names, *(name for name in TEXT if name in columns and ROW_ID not in columns))


_IMPORTED_IN = os.getpid()
_READY: list[tuple[tuple[Any, ...], RewardFunctions]] = []
_MOST = 4


def reward_functions(owner: Any) -> RewardFunctions:
    """The :class:`RewardFunctions` of a filter's options, kept between batches so that a reward model is loaded once per process."""
    given, weights, tokenizers = owner.reward_funcs, owner.reward_weights, owner.reward_processing_classes
    batch_size, who = owner.batch_size, owner.name
    if os.getpid() != _IMPORTED_IN:  # in a fork a pool of OpenMP threads would hang, and workers share the cores
        torch.set_num_threads(1)
    key = (given, tokenizers, tuple(weights or ()), batch_size, who)
    for known, functions in _READY:
        if known[0] is given and known[1] is tokenizers and known[2:] == key[2:]:
            return functions
    functions = RewardFunctions(
        given, reward_weights=weights, reward_processing_classes=tokenizers, batch_size=batch_size, who=who
    )
    _READY.append((key, functions))
    del _READY[:-_MOST]
    return functions


def other_columns(columns: Mapping[str, Any], without: Sequence[str]) -> dict[str, Any]:
    """The columns that TRL hands to reward functions beside prompt and completion."""
    return {name: values for name, values in columns.items() if name not in without}
