"""Rewards that remember their calls, and policy gradients one by one."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hfdataopt.testing.tiny import EOS, good_words, prompts, reader, speaker  # noqa: F401 - for the tests

from .tiny import row_gradient


def opinionated(completion_ids: Any, **_: Any) -> list[float | None]:
    """None for completions that begin with a word of an odd id."""
    return [None if ids and ids[0] % 2 else len(set(ids)) / 4 for ids in completion_ids]


async def later(completions: Any, **_: Any) -> list[float]:
    """An async reward."""
    return [float(text.count("film")) for text in completions]


def constant(completions: Any, **_: Any) -> list[float]:
    return [0.3] * len(completions)


class Recorder:
    """A reward function that keeps what it was asked: ``asked[row id]`` is the list of its completions' token ids."""

    def __init__(self, function: Any = good_words):
        self.function = function
        self.__name__ = "recorder"
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **keywords: Any) -> Any:
        self.calls.append(keywords)
        return self.function(**keywords)

    @property
    def asked(self) -> dict[Any, list[list[int]]]:
        found: dict[Any, list[list[int]]] = {}
        for call in self.calls:
            for row, ids in zip(call["row_id"], call["completion_ids"], strict=True):
                found.setdefault(row, []).append(ids)
        return found

    @property
    def completions(self) -> int:
        return sum(len(call["completions"]) for call in self.calls)


def weights_of(
    rewards: Sequence[float | None], baseline: str = "leave-one-out", kept: Sequence[bool] | None = None
) -> list[float]:
    """Weight of each completion, from the definition."""
    rewarded = [k for k, r in enumerate(rewards) if r is not None]
    counted = [k for k in rewarded if kept is None or kept[k]]
    weights = [0.0] * len(rewards)
    for k in counted:
        value = rewards[k]
        assert value is not None
        others = [r for j, r in enumerate(rewards) if j != k and r is not None]
        if baseline == "leave-one-out":
            if not others:
                continue
            value -= math.fsum(others) / len(others)
        weights[k] = value / len(counted)
    return weights


def negative_log_likelihood(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """``-log p(completion | prompt)`` of one sequence, summed over tokens, without padding."""
    ids = torch.tensor([prompt + completion])
    logits = model(input_ids=ids).logits.double().log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return -sum(logits[0, place, ids[0, place + 1]] for place in places)


def policy_gradients(
    model: Any, queries: Any, asked: dict[Any, list[list[int]]], weights: dict[Any, list[float]]
) -> torch.Tensor:
    """``[queries, d]`` float64: the weighted sum of the gradients of the completions' losses, one backward each."""
    read, rows = reader(), []
    for row in queries:
        prompt = read(row["prompt"])["input_ids"]
        total = row_gradient(model, negative_log_likelihood(model, prompt, [EOS])) * 0
        for completion, weight in zip(asked[row["row_id"]], weights[row["row_id"]], strict=True):
            if completion and weight:
                total = total + weight * row_gradient(model, negative_log_likelihood(model, prompt, completion))
        rows.append(total)
    return torch.stack(rows)
