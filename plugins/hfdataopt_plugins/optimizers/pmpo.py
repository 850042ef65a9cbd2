"""PMPO: instructions are scored by how likely a local model finds the wanted answers, no answer is generated (Zhao et al., 2025)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hfdataopt.errors import DataError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.meta_prompts import Mistake
from hfdataopt.prompting.optimizer import Item, Role, Task
from hfdataopt.prompting.rounds import InducingRounds, Rounds, rewritten

UNLIMITED = 10  # rounds, where the budget does not count completions


@dataclass
class Pmpo(InducingRounds):
    """Rewriting on the rows that a local model finds least likely; what scores higher is kept.

    With columns ``chosen`` and ``rejected`` the score is the mean of log p(chosen) - log p(rejected), else the mean of
    log p(answer). The best are tried on all items at the end, as far as the budget goes.

    Args:
        pool_size: instructions to begin with.
        batch: instructions per round: half of them rewritten, half rephrased.
        rows: how many common items the likelihoods are of; None = all.
        worst: least likely rows that the proposer reads.
        finalists: how many of the best are tried on all items.
    """

    name: ClassVar[str] = "pmpo"

    pool_size: int = 4
    batch: int = 2
    rows: int | None = None
    worst: int = 3
    finalists: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("pool_size", "batch", "rows", "worst", "finalists"):
            check_range(self, option, at_least=1)

    @property
    def needs(self) -> tuple[Role, ...]:
        return (*super().needs, "likelihood")

    def start(self, task: Task) -> None:
        pairs = [item for item in task.items if {"chosen", "rejected"} <= set(item.columns)]
        wanted = pairs or [item for item in task.items if item.output is not None]
        if not wanted:
            raise DataError(
                "pmpo: no item has the columns 'chosen' and 'rejected', or an answer; likelihoods need wanted texts"
            )
        self.used, self.preferences = wanted[: self.rows], bool(pairs)
        self.margins: dict[str, np.ndarray] = {}
        super().start(task)

    @property
    def price(self) -> int:
        """Calls that one candidate's score takes."""
        return len(self.used) * (2 if self.preferences else 1)

    def least_calls(self) -> int:
        return 2 * self.price + len(self.task.items)

    def plan_in_words(self) -> str:
        return f"two candidates at {self.price} likelihoods each, and the better one on {len(self.task.items)} items"

    def search(self) -> Rounds:
        end = self.finalists * len(self.task.items)
        end = end if self.left >= 2 * self.price + end else len(self.task.items)
        affordable = (self.left - end) // self.price
        self.measure(self.pool(min(self.pool_size, affordable)))
        if all(np.isnan(values).any() for values in self.margins.values()):
            raise DataError(
                "pmpo: no instruction to begin with has a likelihood on all rows; they are too long for the model"
            )
        rounds = 0
        while self.left - end >= self.price and (self.task.calls is not None or rounds < UNLIMITED):
            count = min(self.batch, (self.left - end) // self.price)
            best = self.by_likelihood()[0]
            new = self.rewrites(best, rounds, -(-count // 2))
            new += self.vary([best], count - len(new))
            if not new:
                break
            self.measure(new)
            rounds += 1
        for one in self.by_likelihood()[: self.finalists]:
            yield from self.score([one], len(self.task.items))

    def measure(self, candidates: Sequence[Candidate]) -> None:
        """Note each candidate's log-likelihoods, or margins, of all rows."""
        assert self.services is not None
        if not candidates:
            return
        if self.preferences:
            chosen, rejected = (
                self.services.log_likelihood(
                    candidates, self.used, [text_of_answer(one.columns[name]) for one in self.used]
                )
                for name in ("chosen", "rejected")
            )
            values = chosen - rejected
        else:
            values = self.services.log_likelihood(candidates, self.used, [str(one.output) for one in self.used])
        self.paid += len(candidates) * self.price
        self.margins |= {one.key: row for one, row in zip(candidates, values, strict=True)}

    def by_likelihood(self) -> list[Candidate]:
        """Measured candidates, best first."""
        means = {key: float(np.mean(values)) for key, values in self.margins.items()}
        return [
            self.seen[key] for key in sorted(means, key=lambda key: math.inf if math.isnan(means[key]) else -means[key])
        ]

    def rewrites(self, parent: Candidate, round_: int, count: int) -> list[Candidate]:
        """The instruction rewritten after a look at its worst rows."""
        shown = self.worst_rows(parent)
        reasons = self.answers([meta_prompts.criticise(parent.instruction, shown)])
        return self.propose([rewritten(parent, reasons[0].strip(), shown)] * count) if reasons else []

    def worst_rows(self, candidate: Candidate) -> list[Mistake]:
        """Rows of the lowest margins; the rejected answer stands for what the model said."""
        order = np.argsort(self.margins[candidate.key], kind="stable")[: self.worst]
        return [self._mistake(self.used[place]) for place in order]

    def _mistake(self, item: Item) -> Mistake:
        if self.preferences:
            return Mistake(item.input, text_of_answer(item.columns["rejected"]), text_of_answer(item.columns["chosen"]))
        return Mistake(item.input, "", item.output)


def text_of_answer(value: Any) -> str:
    """An answer as text: itself, or what its last message says."""
    return value if isinstance(value, str) else str(value[-1]["content"])


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Pmpo)
