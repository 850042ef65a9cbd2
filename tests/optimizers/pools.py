"""Pools of instructions and of soft prompts whose score is known, for tests of optimizers that choose from a pool."""

from typing import Any

import numpy as np

from tests.optimizers.search import PlainServices

WIDTH, DIM = 6, 4


def vector(text: str) -> np.ndarray:
    """The number in a text, ``say 17``, as a point in ``[0, 1]^4``."""
    return np.random.default_rng(int(text.split()[-1])).uniform(size=DIM)


def quality(text: str) -> float:
    """A smooth score between 0 and 1."""
    first, second = vector(text)[:2]
    return float(np.exp(-3 * ((first - 0.8) ** 2 + (second - 0.3) ** 2)))


def reward(candidate: Any, item: Any) -> float:
    """1 where the quality is above the item's difficulty; 8 items of difficulties 1/9 to 8/9."""
    return float(quality(candidate.instruction) > (item.id * 5 % 8 + 1) / 9)


def text_services() -> PlainServices:
    return PlainServices(lambda text, i: f"say {i}", lambda text: vector(text))


class SoftServices(PlainServices):
    """A white-box model whose instruction is one of 40, by the soft prompt's direction; its hidden state is the soft prompt."""

    soft_prompt_width = WIDTH
    soft_prompt_scale = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.messages: list[str] = []

    def decode(self, soft_prompts: np.ndarray, messages: Any) -> list[str]:
        self.messages.append(messages[-1]["content"])
        flat = soft_prompts.reshape(len(soft_prompts), -1).astype(float)
        directions = np.random.default_rng(0).normal(size=(40, flat.shape[1]))
        answers = [f"say {int(row)}" for row in np.argmax(flat @ directions.T, 1)]
        self.decoded += answers
        return answers

    def hidden(self, soft_prompts: np.ndarray, messages: Any) -> np.ndarray:
        self.messages.append(messages[-1]["content"])
        self.shapes.append(soft_prompts.shape)
        return np.tanh(soft_prompts.reshape(len(soft_prompts), -1))
