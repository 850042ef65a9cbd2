"""Pairs (chosen, rejected) from several completions of a prompt and their rewards.

- :func:`best_worst`, :func:`all_pairs`: RS-DPO (Khaki et al. 2024)
- :func:`rejection_sample`, :func:`paired`: RSO (Liu et al. 2023)
- :func:`with_completions`: a dataset of prompts with sampled completions
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfdataopt.attribution.rows import check_map_style
from hfdataopt.errors import DataError, StoreError
from hfdataopt.files import JsonLines
from hfdataopt.generation import Completion, Generator, as_messages
from hfdataopt.gradients import weights_hash
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
    dataset: Any,
    generator: Generator,
    n: int,
    *,
    seed: int = 0,
    column: str = "completions",
    batch_size: int = 64,
    path: str | Path | None = None,
) -> Any:
    """The dataset with a column of ``n`` completions per prompt: strings, or one message of the assistant each.

    Args:
        dataset: map-style, with a column ``prompt``.
        generator: e.g. :class:`hfdataopt.generation.LocalGenerator`.
        seed: draws are a function of (seed, row id); without a column ``row_id`` equal prompts share their completions.
        batch_size: prompts handed to the generator together.
        path: a file (JSON lines) that completions are written to as they come; a run that was killed goes on from it.

    Raises:
        DataError: no prompts, or the column is there already.
        StoreError: the file was written by another generator or seed or for other prompts, or cannot be written.
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
    prompts = dict(zip(reversed(keys), reversed(dataset["prompt"][:]), strict=True))
    names = list(prompts)[::-1]
    contents = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()[:16]
    made = _Made(generator, seed, contents, None if path is None else Path(path), who)
    for start in range(0, len(names), batch_size):
        made.complete({key: prompts[key] for key in names[start : start + batch_size]}, n)
    return dataset.add_column(
        column, [[as_messages(made.found[key, k], prompts[key]) for k in range(n)] for key in keys]
    )


class _Made:
    """Completions by (key, number), kept in a file where there is one."""

    def __init__(self, generator: Generator, seed: int, contents: str, path: Path | None, who: str):
        self.generator, self.seed, self.found = generator, seed, dict[tuple[Any, int], Completion]()
        self.lines = None if path is None else JsonLines(path, who)
        if self.lines is None:
            return
        model = getattr(generator, "model", None)
        weights = weights_hash(model) if isinstance(model, torch.nn.Module) else None
        described = {"generator": generator.describe(), "seed": seed, "weights": weights, "prompts": contents}
        records = list(self.lines.read())
        if not records:
            self.lines.append(described)
            return
        header = records.pop(0)
        if header != json.loads(json.dumps(described)):
            raise StoreError(
                f"{who}: {str(path)!r} holds completions of another generator, seed or prompts ({str(header)[:120]}); give another path"
            )
        self.found |= {(line["key"], line["number"]): Completion.from_json(line["completion"]) for line in records}

    def complete(self, prompts: dict[Any, Any], n: int) -> None:
        """Make what is missing of ``n`` completions of each prompt."""
        names = list(prompts)

        def done(index: int, number: int, completion: Completion) -> None:
            if self.lines is not None:
                self.lines.append({"key": names[index], "number": number, "completion": completion.to_json()})

        have = {(i, k): self.found[key, k] for i, key in enumerate(names) for k in range(n) if (key, k) in self.found}
        made = self.generator.generate(list(prompts.values()), n, keys=names, seed=self.seed, have=have, on_done=done)
        self.found |= {(key, k): made[i][k] for i, key in enumerate(names) for k in range(n)}
