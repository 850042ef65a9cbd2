"""A search without models: a task of numbered items, services from plain functions, and the loop of asking and telling."""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Comparison, Query, Trial, Vote
from hfdataopt.prompting.optimizer import Item, Task


def task(items: int = 8, examples: int = 6, **changes: Any) -> Task:
    rows = [Item(i, f"Input: {i}\nOutput:", str(i), str(i + 1)) for i in range(items + examples)]
    return Task(**{"items": tuple(rows[:items]), "examples": tuple(rows[items:]), **changes})


class PlainServices:
    """Services by functions; ``asked`` keeps the text of every proposal that was asked for."""

    def __init__(
        self, propose: Callable[[str, int], str] | None = None, embed: Callable[[str], Sequence[float]] | None = None
    ) -> None:
        self._propose, self._embed = propose, embed
        self.asked: list[str] = []

    def propose(self, messages: Any, n: int = 1, temperature: float | None = None) -> list[str]:
        assert self._propose is not None
        answers = []
        for _ in range(n):
            self.asked.append(messages[-1]["content"])
            answers.append(self._propose(messages[-1]["content"], len(self.asked) - 1))
        return answers

    def propose_each(self, messages: Sequence[Any], temperature: float | None = None) -> list[str]:
        answers: list[str] = []
        for one in messages:
            try:
                answers += self.propose(one)
            except BudgetSpent:
                if not answers:
                    raise
                break
        return answers

    def embed(self, texts: Sequence[Any]) -> np.ndarray:
        assert self._embed is not None
        return np.array([self._embed(text) for text in texts], np.float32)


def run(
    optimizer: Any, of: Task, reward: Callable[[Candidate, Item], float], services: Any, steps: int, n: int = 1
) -> None:
    """Ask and tell; the reward is of a candidate on an item, the answer ``right`` where it is at least 1, else ``wrong``."""
    optimizer.start(of)
    for _ in range(steps):
        asked = optimizer.ask(n, (), services)
        if not asked:
            return
        optimizer.tell([trial(one, of, reward) for one in asked])


def trial(asked: Candidate | Query, of: Task, reward: Callable[[Candidate, Item], float]) -> Trial:
    query = asked if isinstance(asked, Query) else Query(asked)
    ids = query.items if isinstance(query.items, tuple) else [item.id for item in of.items][: query.items]
    rewards = np.array([reward(query.candidate, of.item(id_)) for id_ in ids], float)
    return Trial(query.candidate, tuple(ids), rewards, tuple("right" if r >= 1 else "wrong" for r in rewards))


def duel(
    optimizer: Any, of: Task, prefers: Callable[[Candidate, Candidate], float | None], services: Any, votes: int
) -> None:
    """Ask for duels one by one and vote: 1 = the first, 0 = the second, 0.5 = a tie, None = a skip."""
    optimizer.start(of)
    for _ in range(votes):
        asked = optimizer.ask(1, (), services)
        if not asked:
            return
        optimizer.tell([vote(asked[0], prefers(asked[0].first, asked[0].second))])


def vote(asked: Any, target: float | None) -> Vote:
    word = Comparison(None, "skip") if target is None else Comparison.of({1.0: 0, 0.0: 1}.get(target))
    return Vote(asked, word, ("one", "other"))


# -- a scripted world, in which a text says how good it is: `aim 0.37 #5` solves the items whose difficulty is below 0.37

ITEMS = 8
WIDTH = 4  # of features and of token embeddings


def quality(text: str) -> float:
    """The first number after ``aim``; 0 where there is none."""
    found = re.search(r"aim (\d\.\d+)", text)
    return float(found[1]) if found else 0.0


def quality_of(candidate: Candidate) -> float:
    """That of the instruction, or of a fixed answer."""
    return quality(candidate.instruction if candidate.completion is None else candidate.completion)


def scripted_reward(candidate: Candidate, item: Item) -> float:
    """1 where the candidate is good enough for the item; difficulties lie from 0 to 1 in an order that is no order of items."""
    place = int(str(item.id).rpartition(" ")[2])
    return float(quality_of(candidate) > (3 * place % ITEMS) / ITEMS)


def scripted_task(items: int = ITEMS, examples: int = 6, **changes: Any) -> Task:
    """A task of numbered items, with a start that is not good."""
    rows = [
        Item(f"item {i}", f"Input: {i}\nOutput:", str(i), str(i + 1), {"chosen": f"good {i}", "rejected": f"bad {i}"})
        for i in range(items + examples)
    ]
    return Task(**{"items": tuple(rows[:items]), "examples": tuple(rows[items:]), "start": ("aim 0.15 #0",), **changes})


def draws(*names: Any) -> random.Random:
    """Random numbers that are a function of these names."""
    return random.Random("/".join(map(str, names)))


class ScriptedServices:
    """All services of a host, by a script: what comes back depends on the question and on how often it was asked.

    The proposer aims near the best quality that its question shows, or anywhere below 0.6 where it shows none.

    Args:
        proposals: after so many the budget is spent; None = never.
    """

    soft_prompt_width = WIDTH
    soft_prompt_scale = 0.5

    def __init__(self, proposals: int | None = None) -> None:
        self.proposals, self.refused = proposals, 0
        self._asked: dict[str, int] = {}

    def propose(self, messages: Any, n: int = 1, temperature: float | None = None) -> list[str]:
        return self.propose_each([messages] * n, temperature)

    def propose_each(self, messages: Sequence[Any], temperature: float | None = None) -> list[str]:
        answers: list[str] = []
        for one in messages:
            if self.proposals is not None and sum(self._asked.values()) >= self.proposals:
                self.refused += 1
                if answers:
                    break
                raise BudgetSpent("max_proposer_calls are used up")
            text = "\n".join(str(message["content"]) for message in one)
            number = self._asked[text] = self._asked.get(text, -1) + 1
            answers.append(scripted_proposal(text, number))
        return answers

    def embed(self, texts: Sequence[Any]) -> np.ndarray:
        return np.array(
            [[quality(str(one)), *draws(one).choices([-0.3, 0.3], k=WIDTH - 1)] for one in texts], np.float32
        )

    def decode(self, soft_prompts: np.ndarray, messages: Any) -> list[str]:
        return [_decoded(one) for one in soft_prompts]

    def hidden(self, soft_prompts: np.ndarray, messages: Any) -> np.ndarray:
        return np.tanh(soft_prompts.reshape(len(soft_prompts), -1)).astype(np.float32)

    def sample(self, item: Any, n: int) -> list[str]:
        return [f"aim {draws('sample', item, number).uniform(0, 1):.3f} #{number}" for number in range(n)]

    def log_likelihood(
        self, candidates: Sequence[Candidate], items: Sequence[Item], outputs: Sequence[str]
    ) -> np.ndarray:
        """A wanted answer is the likelier the better the instruction, a rejected one the less."""
        sign = [-1.0 if output.startswith("bad") else 1.0 for output in outputs]
        return np.array([[one * quality_of(candidate) - 1 for one in sign] for candidate in candidates])


def scripted_proposal(text: str, number: int) -> str:
    """The ``number``-th answer of the proposer to a question."""
    rng, shown = draws(text, number), [float(found) for found in re.findall(r"aim (\d\.\d+)", text)]
    aim = max(shown) + rng.uniform(-0.1, 0.15) if shown else rng.uniform(0, 0.6)
    return f"aim {min(1.0, max(0.0, aim)):.3f} #{rng.randrange(1000)}"


def _decoded(soft_prompt: np.ndarray) -> str:
    place = int(np.argmax(soft_prompt.ravel())) % 12
    return f"aim {(place * 5 % 12) / 12:.3f} #{place}"
