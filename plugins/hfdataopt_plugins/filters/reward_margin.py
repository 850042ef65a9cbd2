"""The reward margin of a preference pair: how clearly the chosen answer is better than the rejected one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from hfdataopt.attribution.rows import ROW_ID
from hfdataopt.errors import OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.preferences import (
    TEXT,
    MarginFilter,
    other_columns,
    pair_columns,
    pairs_of,
    reward_functions,
)
from hfdataopt.selection.source import Batch


@dataclass(frozen=True)
class RewardMargin(MarginFilter):
    """``reward(chosen) - reward(rejected)``, by reward functions or by two columns that hold rewards.

    Reads TRL's preference rows, plain or conversational, with an explicit or implicit prompt. Reward functions are called as TRL
    calls them, with every other column of the dataset.

    Args:
        reward_funcs: one or several TRL reward functions or reward models, as :class:`hfdataopt.rewards.RewardFunctions` takes
            them. They must score each completion by itself.
        reward_weights: a weight per function; 1 each by default.
        reward_processing_classes: a tokenizer per reward model.
        chosen_reward, rejected_reward: columns of rewards instead of functions, e.g. ``score_chosen`` and ``score_rejected``.
        best, value: which margins score highest; see :class:`~hfdataopt.selection.preferences.MarginFilter`.
        batch_size: texts in one forward of a reward model; with more than 1, padding may change the last digits of a score.
    """

    name: ClassVar[str] = "reward-margin"
    meaning: ClassVar[str] = "a reward margin nearer to what best= asks for"

    reward_funcs: Any = None
    reward_weights: list[float] | None = None
    reward_processing_classes: Any = None
    chosen_reward: str | None = None
    rejected_reward: str | None = None
    batch_size: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "batch_size", at_least=1)
        columns = [self.chosen_reward, self.rejected_reward]
        if (self.reward_funcs is None) == (columns == [None, None]) or (columns.count(None) == 1):
            raise OptionError(
                f"{self.name}: give either reward_funcs, or both of chosen_reward and rejected_reward; got reward_funcs="
                f"{self.reward_funcs!r:.80}, chosen_reward={self.chosen_reward!r}, rejected_reward={self.rejected_reward!r}"
            )
        if self.reward_funcs is None and (
            self.reward_weights is not None or self.reward_processing_classes is not None
        ):
            raise OptionError(f"{self.name}: reward_weights and reward_processing_classes go with reward_funcs")

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        if self.reward_funcs is not None:
            others = [name for name in columns if name not in (*TEXT, ROW_ID)]
            return (*pair_columns(columns, self.name, what), *others)
        assert self.chosen_reward is not None
        assert self.rejected_reward is not None
        return self.reads_numbers((self.chosen_reward, self.rejected_reward), columns, what)

    def scores(self, batch: Batch) -> np.ndarray:
        if self.reward_funcs is None:
            return super().scores(batch)
        # A column that only reward functions read may hold None.
        own = tuple(name for name in TEXT if name in batch.read)
        return super().scores(Batch(batch.columns, own, batch.with_ids, batch.who))

    def margins(self, batch: Batch) -> np.ndarray:
        """``[rows]`` float64, NaN where a reward is missing."""
        if self.reward_funcs is None:
            assert self.chosen_reward is not None
            assert self.rejected_reward is not None
            return batch.numbers(self.chosen_reward) - batch.numbers(self.rejected_reward)
        functions = reward_functions(self)
        pairs = pairs_of(batch)
        there = [place for place, pair in enumerate(pairs) if pair is not None]
        margins = np.full(len(pairs), np.nan)
        if not there:
            return margins
        found: list[Any] = [pairs[place] for place in there]
        read = {name: batch[name] for name in [*(self.read or ()), *([ROW_ID] if batch.with_ids else [])]}
        others = other_columns(read, TEXT)
        columns = {name: 2 * [values[place] for place in there] for name, values in others.items()}
        ids: list[Any] = [batch.labels[place] for place in there]
        rewards = functions(
            2 * [prompt for prompt, _, _ in found],
            [chosen for _, chosen, _ in found] + [rejected for _, _, rejected in found],
            None,
            columns,
            row_ids=2 * ids,
        ).total
        margins[there] = rewards[: len(there)] - rewards[len(there) :]
        return margins


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(RewardMargin)
