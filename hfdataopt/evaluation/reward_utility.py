"""The mean reward of a model's completions as a utility: what a model trained on a subset is worth where nothing has a gradient."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hfdataopt.attribution.rows import Rows, check_map_style
from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation import LocalGenerator, as_messages
from hfdataopt.gradients import name_rows
from hfdataopt.options import check_options, check_range
from hfdataopt.retraining import RowsMetric
from hfdataopt.rewards import RewardFunctions

WHO = "reward utility"
NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # a reward function gets these under its own names


@dataclass
class RewardUtility(RowsMetric):
    """The mean reward of completions of each held-out prompt, for ``removal_curves`` and ``measure_subsets``.

    Draws depend on (seed, prompt's row id, sample) alone, so models are compared on common random numbers.

    Args:
        reward_funcs: what ``GRPOTrainer(reward_funcs=...)`` takes (:class:`hfdataopt.rewards.RewardFunctions`); rewards of several are
            summed.
        processing_class: the model's tokenizer.
        samples: completions of each prompt.
        max_new_tokens: the most tokens of a completion.
        temperature: of the sampling; 0 takes the most probable token, with samples=1.
        batch_size: completions at a time.
        seed: of the draws.
    """

    reward_funcs: Any
    processing_class: Any = field(default=None, repr=False)
    samples: int = field(default=4, kw_only=True)
    max_new_tokens: int = field(default=256, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    batch_size: int = field(default=32, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_options(self)
        for option in ("samples", "max_new_tokens", "batch_size"):
            check_range(self, option, at_least=1)
        check_range(self, "temperature", at_least=0)
        if self.temperature == 0 and self.samples > 1:
            raise OptionError(
                f"{WHO}: temperature=0 always gives the same completion; pass samples=1, not samples={self.samples}"
            )

    @functools.cached_property
    def functions(self) -> RewardFunctions:
        return RewardFunctions(self.reward_funcs, who=WHO)

    @property
    def settings(self) -> tuple[Any, ...]:
        """What tells it from others (:mod:`hfdataopt.attribution.identity`)."""
        return self.functions.settings, self.samples, self.max_new_tokens, float(self.temperature), self.seed

    @property
    def __name__(self) -> str:
        return f"reward {' + '.join(self.functions.names)}"

    def read(self, dataset: Any, model: Any, side: str) -> Rows:
        """The prompts, after all that can be wrong without a completion was looked at.

        Raises:
            DataError: no column ``prompt`` or ``messages``, a row without a prompt or with one that is too long, or rewards
                that cannot be called with the other columns.
            OptionError: the model is no causal language model, or a reward model cannot be loaded.
        """
        check_map_style(dataset, f"the {side}")
        rows = Rows(dataset, _no_batch, side=side, prompts=True)
        prompts = prompts_of(rows)
        self._generator(model).check(prompts, rows.ids)
        self.functions.check_columns(self._columns(rows), completion_ids=True)
        self.functions.load()
        return rows

    def __call__(self, model: Any, rows: Rows) -> torch.Tensor:
        """``[rows]`` float64: the mean over the completions of each prompt to which a function gave a reward.

        Raises:
            DataError: no completion of a prompt has a reward.
        """
        prompts, columns = prompts_of(rows), self._columns(rows)
        made = self._generator(model).generate(prompts, self.samples, keys=rows.ids, seed=self.seed)
        flat = [(place, completion) for place, completions in enumerate(made) for completion in completions]
        rewards = self.functions(
            [prompts[place] for place, _ in flat],
            [as_messages(completion, prompts[place]) for place, completion in flat],
            [completion.token_ids or [] for _, completion in flat],
            {name: [values[place] for place, _ in flat] for name, values in columns.items()},
            row_ids=[rows.ids[place] for place, _ in flat],
        ).total.reshape(len(prompts), self.samples)
        ids: list[int | str] = list(rows.ids)
        none = [row for row, missing in zip(ids, np.isnan(rewards).all(1), strict=True) if missing]
        if none:
            raise DataError(
                f"{WHO}: no function gave a reward to any of the {self.samples} completions of {len(none)} rows of the {rows.side}: "
                f"{name_rows(none)}; leave them out"
            )
        return torch.from_numpy(np.nanmean(rewards, axis=1))

    def _generator(self, model: Any) -> LocalGenerator:
        return LocalGenerator(
            model,
            self.processing_class,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            batch_size=self.batch_size,
        )

    @staticmethod
    def _columns(rows: Rows) -> dict[str, list[Any]]:
        """Every other column, as reward functions get them."""
        return {name: rows.column(name) or [] for name in rows.source.column_names if name not in NOT_COLUMNS}


def prompts_of(rows: Rows) -> Sequence[Any]:
    """The prompt of each row: the column ``prompt``, or ``messages`` without a last answer."""
    prompts = rows.column("prompt")
    if prompts is None:
        messages = rows.column("messages")
        if messages is None:
            raise DataError(
                f"{WHO}: the {rows.side} needs a column 'prompt' (text or messages) to complete; it has: "
                f"{', '.join(rows.source.column_names)}"
            )
        prompts = [row[:-1] if row and row[-1]["role"] == "assistant" else row for row in messages]
    return prompts


def _no_batch(rows: list[Any]) -> dict[str, Any]:
    raise DataError("these rows are prompts to be completed; they have no labelled examples")
