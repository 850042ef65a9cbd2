"""What a search may spend, and what it has spent."""

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from hfdataopt.errors import HfDataOptError

MILLION = 1_000_000


class BudgetSpent(HfDataOptError):
    """The next step would go over the budget; the search ends here with what it has."""


@dataclass
class Spent:
    """Completions (``calls`` of the scored model), tokens, money and what was asked of others."""

    calls: int = 0
    proposer_calls: int = 0
    judge_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    embedded: int = 0
    decoded: int = 0
    uncertain: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_json(self) -> dict[str, float]:
        return asdict(self) | {"tokens": self.tokens}


def calls_of(model: Any) -> int:
    """Calls that one completion of a generator costs."""
    return getattr(model, "calls_per_completion", None) or 1


COUNTER = {"model": "calls", "proposer": "proposer_calls", "judge": "judge_calls"}


@dataclass
class Budget:
    """Limits, None = none. Nothing is sent that could go over one.

    Tokens and money of a request are known only when its answer is there, so each reserves its most (prompt and
    ``max_new_tokens``) while it is under way. A request without a whole answer (the run was killed, the connection broke)
    is sent again and counted as ``uncertain`` beside the budget.

    Attributes:
        kept: requests per role that are set aside for the end of a search.
        timed_out: the next request would go out after ``seconds``; from then on none does.
        prices: role -> money per million prompt tokens and per million completion tokens.
    """

    calls: int | None = None
    proposer_calls: int | None = None
    judge_calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    cost: float | None = None
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    before: float = 0.0
    kept: dict[str, int] = field(default_factory=dict)
    timed_out: bool = False
    _reserved_tokens: int = 0
    _reserved_cost: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Seconds of this run and of those it goes on from."""
        return self.before + time.monotonic() - self._started

    def in_time(self, wait: float = 0.0) -> bool:
        """Whether a request may go out ``wait`` seconds from now. After a no, none may."""
        self.timed_out |= self.seconds is not None and self.elapsed() + wait >= self.seconds
        return not self.timed_out

    def left(self, role: str) -> float:
        """Requests that the role's own limit still allows, beside those that are kept."""
        limit = getattr(self, COUNTER[role])
        return math.inf if limit is None else limit - getattr(self.spent, COUNTER[role]) - self.kept.get(role, 0)

    def price(self, role: str, prompt_tokens: int, completion_tokens: int) -> float:
        into, out = self.prices.get(role, (0.0, 0.0))
        return (into * prompt_tokens + out * completion_tokens) / MILLION

    def reserve(self, role: str, prompt_tokens: int, completion_tokens: int) -> bool:
        """Set aside what a request may use at most; False where that would go over the tokens, the money or the time."""
        tokens, cost = prompt_tokens + completion_tokens, self.price(role, prompt_tokens, completion_tokens)
        over = (
            (self.tokens is not None and self.spent.tokens + self._reserved_tokens + tokens > self.tokens)
            or (self.cost is not None and self.spent.cost + self._reserved_cost + cost > self.cost)
            or not self.in_time()
        )
        if not over:
            self._reserved_tokens += tokens
            self._reserved_cost += cost
        return not over

    def release(self, role: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Give back what :meth:`reserve` set aside."""
        self._reserved_tokens -= prompt_tokens + completion_tokens
        self._reserved_cost -= self.price(role, prompt_tokens, completion_tokens)

    def book(self, role: str, prompt_tokens: int, completion_tokens: int, requests: int = 1) -> None:
        """Count an answer that has arrived, or one kept from before."""
        counter = COUNTER[role]
        setattr(self.spent, counter, getattr(self.spent, counter) + requests)
        self.spent.prompt_tokens += prompt_tokens
        self.spent.completion_tokens += completion_tokens
        self.spent.cost += self.price(role, prompt_tokens, completion_tokens)

    def out_of(self, time: bool = True) -> str:
        """What is used up, in words; empty where something is left of everything. ``time``: look at the clock too."""
        if time and not self.in_time():
            return f"max_seconds={self.seconds:g}"
        if self.tokens is not None and self.spent.tokens >= self.tokens:
            return f"max_tokens={self.tokens}"
        if self.cost is not None and self.spent.cost >= self.cost:
            return f"max_cost={self.cost:g}"
        return ""
