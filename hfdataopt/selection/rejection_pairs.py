"""Pairs (chosen, rejected) from several completions of a prompt and their rewards.

- :func:`best_worst`, :func:`all_pairs`: RS-DPO (Khaki et al. 2024)
- :func:`rejection_sample`, :func:`paired`: RSO (Liu et al. 2023)
- :func:`with_completions`: a dataset of prompts with sampled completions
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hfdataopt.attribution.rows import check_map_style
from hfdataopt.errors import DataError
from hfdataopt.generation import Generator, as_messages
from hfdataopt.selection.source import Source

Pairs = list[tuple[int, int]]  # (chosen, rejected)


def best_worst(rewards: np.ndarray, min_gap: float) -> Pairs:
    """The completion of the highest reward against that of the lowest, where they are more than ``min_gap`` apart; else none.

    ``rewards [k]``; of equal rewards the first counts.
    """
    best, worst = int(np.argmax(rewards)), int(np.argmin(rewards))
    return [(best, worst)] if rewards[best] - rewards[worst] > min_gap else []


def all_pairs(rewards: np.ndarray, min_gap: float) -> Pairs:
    """Every pair whose rewards are more than ``min_gap`` apart, in order of (chosen, rejected)."""
    apart = rewards[:, None] - rewards[None, :] > min_gap
    return [(int(i), int(j)) for i, j in np.argwhere(apart)]


def rejection_sample(rewards: np.ndarray, count: int, beta: float, uniform: Callable[[int], np.ndarray]) -> list[int]:
    """Completions drawn as if from the policy that is optimal for these rewards (Liu et al. 2023, algorithm 1).

    In rounds over those that are left, each is accepted with probability ``exp((r - r_max) / beta)``, r_max being the highest
    reward that is left, until ``count`` are accepted or none is left.

    Args:
        uniform: number of the round -> ``[k]`` numbers in (0, 1).

    Returns:
        Positions in the order of acceptance, each at most once.
    """
    left = np.ones(len(rewards), dtype=bool)
    accepted: list[int] = []
    turn = 0
    while left.any() and len(accepted) < count:
        chance = np.exp((rewards - rewards[left].max()) / beta, where=left, out=np.zeros(len(rewards)))
        found = np.flatnonzero(left & (uniform(turn) < chance))[: count - len(accepted)]
        accepted.extend(found.tolist())
        left[found] = False
        turn += 1
    return accepted


def paired(positions: Sequence[int], rewards: np.ndarray, min_gap: float) -> Pairs:
    """The first against the second, the third against the fourth, and so on; the higher reward is chosen.

    Pairs that are not more than ``min_gap`` apart are left out, as is a last one without a partner.
    """
    pairs: Pairs = []
    for i, j in zip(positions[::2], positions[1::2], strict=False):
        better, worse = (i, j) if rewards[i] >= rewards[j] else (j, i)
        if rewards[better] - rewards[worse] > min_gap:
            pairs.append((better, worse))
    return pairs


def with_completions(
    dataset: Any, generator: Generator, n: int, *, seed: int = 0, column: str = "completions", batch_size: int = 64
) -> Any:
    """The dataset with a column of ``n`` completions per prompt: strings, or one message of the assistant each.

    Args:
        dataset: map-style, with a column ``prompt``.
        generator: e.g. :class:`hfdataopt.generation.LocalGenerator`.
        seed: draws are a function of (seed, row id); without a column ``row_id`` equal prompts share their completions.
        batch_size: prompts handed to the generator together.

    Raises:
        DataError: no prompts, or the column is there already.
    """
    who = "with_completions"
    check_map_style(dataset, f"{who}: the dataset")
    if "prompt" not in dataset.column_names or column in dataset.column_names:
        raise DataError(
            f"{who}: the dataset must have a column 'prompt' and none named {column!r}; it has: {', '.join(dataset.column_names)}"
        )
    source = Source(dataset, who, "the dataset")
    source.read = ("prompt",)
    keys = [key if source.with_ids else str(key) for batch in source.batches() for key in batch.ids]
    prompts = list(dataset["prompt"][:])
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    names = list(dict.fromkeys(keys))
    made: dict[Any, list[Any]] = {}
    for start in range(0, len(names), batch_size):
        part = names[start : start + batch_size]
        asked = [prompts[first[key]] for key in part]
        for key, prompt, found in zip(part, asked, generator.generate(asked, n, keys=part, seed=seed), strict=True):
            made[key] = [as_messages(completion, prompt) for completion in found]
    return dataset.add_column(column, [made[key] for key in keys])
