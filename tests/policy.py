"""Prompts, a tiny model that ends its answers, rewards that remember their calls, and policy gradients one by one."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from .tiny import ANSWERS, BAD, GOOD, WORDS, llama, row_gradient, texts, tokenizer

GOOD_IDS, BAD_IDS = ({WORDS.index(word) for word in words} for words in (GOOD, BAD))
EOS = 5


def speaker(seed: int = 0) -> Any:
    """A tiny Llama whose next tokens differ in probability, and which ends now and then."""
    model = llama(seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3)
        model.get_output_embeddings().weight[EOS].mul_(2)
    return model.eval()


def reader() -> Any:
    """The words' tokenizer, without special tokens around a text."""
    return tokenizer(special=False)


def prompts(rows: int, seed: int = 0, *, ids: bool = True) -> Dataset:
    """``prompt``, a reference ``completion``, a column ``answer`` for rewards, and ids that are no positions."""
    data = texts(rows, seed)
    columns: dict[str, Any] = {
        "prompt": data["text"][:],
        "completion": [" " + GOOD[row % len(GOOD)] + " plot" for row in range(rows)],
        "answer": [ANSWERS[row % len(ANSWERS)] for row in range(rows)],
    }
    if ids:
        columns["row_id"] = [f"q{row}" for row in range(rows)]
    return Dataset.from_dict(columns)


def good_words(completion_ids: Any, **_: Any) -> list[float]:
    """Good words less bad ones, with a zero that is not in the middle."""
    return [float(0.5 + sum((t in GOOD_IDS) - (t in BAD_IDS) for t in ids)) for ids in completion_ids]


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
