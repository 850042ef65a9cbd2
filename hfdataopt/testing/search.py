"""A search without models: a task of numbered items, services from plain functions, and the loop of asking and telling."""

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
