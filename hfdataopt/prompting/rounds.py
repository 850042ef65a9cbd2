"""Searches in rounds: the method is written as one loop, and the asking and telling is done here.

A method yields the queries of a round and goes on when all of them are told, so the order of telling never matters. What is
known already is not asked again, and nothing is asked that the budget of completions cannot pay.
"""

import copy
import math
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hfdataopt.errors import OptionError
from hfdataopt.options import check_range
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate, Query, RowId, Trial
from hfdataopt.prompting.meta_prompts import Messages, Mistake, read_instruction
from hfdataopt.prompting.optimizer import PromptOptimizer, Role, Services, Task
from hfdataopt.prompting.pool import propose_pool

FRUITLESS = 12  # proposals in a row without a new instruction, after which a round goes on with what it has


class Ask(NamedTuple):
    """What the proposer is asked for a candidate, and what it is made from."""

    messages: Messages
    origin: str
    parents: tuple[Candidate, ...] = ()


def rephrased(parent: Candidate) -> Ask:
    """For the same in other words."""
    return Ask(meta_prompts.rephrase(parent.instruction), "rephrase", (parent,))


def combined(first: Candidate, second: Candidate) -> Ask:
    """For one made of two."""
    return Ask(meta_prompts.combine(first.instruction, second.instruction), "combine", (first, second))


def rewritten(parent: Candidate, reason: str, mistakes: Sequence[Mistake]) -> Ask:
    """For one without the fault that the reason names."""
    return Ask(meta_prompts.rewrite(parent.instruction, reason, mistakes), "rewrite", (parent,))


Rounds = Generator[list[Query], None, None]
Scored = Generator[list[Query], None, list[Trial]]


@dataclass
class RoundsOptimizer(PromptOptimizer):
    """Base of optimizers whose loop is a generator, :meth:`search`, that yields the queries of a round."""

    chooses_items: ClassVar[bool] = True
    services: Services | None = field(init=False, repr=False, compare=False)
    seen: dict[str, Candidate] = field(init=False, repr=False, compare=False)
    paid: int = field(init=False, repr=False, compare=False)

    def start(self, task: Task) -> None:
        super().start(task)
        self.services, self.seen, self.paid = None, {}, 0
        self._known: dict[str, dict[RowId, tuple[float, str]]] = {}
        self._order: dict[str, Candidate] = {}
        self._queue: list[Query] = []
        self._asked: dict[str, Query] = {}
        self._search = self.search()
        least = self.least_calls()
        if task.calls is not None and task.calls < least:
            raise OptionError(
                f"{self.name}: a budget of {task.calls} completions is too small for one round, which takes at least {least} "
                f"({self.plan_in_words()}); raise max_calls or score on fewer items"
            )

    def search(self) -> Rounds:
        """The loop of the method."""
        raise NotImplementedError

    def plan(self, task: Task) -> str:
        before = copy.copy(self)
        before.start(task)
        return f"a first round takes at least {before.least_calls()} calls: {before.plan_in_words()}"

    def least_calls(self) -> int:
        """Completions without which there is no round at all."""
        return 2 * min(2, len(self.task.items))

    def plan_in_words(self) -> str:
        """What :meth:`least_calls` is made of."""
        return f"two candidates on {min(2, len(self.task.items))} of {len(self.task.items)} items"

    # -- asking and telling

    def ask(self, n: int, pending: Sequence[Query] = (), services: Services | None = None) -> Sequence[Query]:
        """Up to ``n`` queries; none while a round waits for its last answers, or when the search is over."""
        self.services = services
        waiting = {query.candidate.key for query in pending} & set(self._asked)
        while not self._queue and not waiting:
            self._asked = {}  # what nobody is at work on any more will not be told
            round_ = next(self._search, None)
            if round_ is None:
                return []
            self._queue = list(round_)
        asked, self._queue = self._queue[:n], self._queue[n:]
        self._asked |= {query.candidate.key: query for query in asked}
        for query in asked:
            self._order.setdefault(query.candidate.key, query.candidate)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in trials:
            self._asked.pop(trial.candidate.key, None)
            self._order.setdefault(trial.candidate.key, trial.candidate)  # told unasked: the user's own
            known = self._known.setdefault(trial.candidate.key, {})
            for item, reward, answer in zip(trial.items, trial.rewards, trial.answers, strict=True):
                self.paid += item not in known
                known[item] = (float(reward), answer)

    def leaders(self, n: int) -> list[Candidate]:
        """The ``n`` best, best first. More common items go before a higher mean; ties to the one that was asked earlier."""
        trials = [trial for trial in map(self.known, self._order.values()) if not math.isnan(trial.score)]
        trials.sort(key=lambda trial: (-len(trial.items), -trial.score))
        return [trial.candidate for trial in trials[:n]]

    # -- for the methods

    @property
    def left(self) -> int:
        """Completions that the budget still allows; very many where it does not count them."""
        return sys.maxsize if self.task.calls is None else self.task.calls - self.paid

    def known(self, candidate: Candidate, items: int | None = None) -> Trial:
        """All that was told of a candidate on the first ``items`` common items (None = on all)."""
        told = self._known.get(candidate.key, {})
        ids = tuple(item.id for item in self.task.items[:items] if item.id in told)
        rewards = np.array([told[id_][0] for id_ in ids], float)
        return Trial(candidate, ids, rewards, tuple(told[id_][1] for id_ in ids))

    def cost(self, candidate: Candidate, items: int | Sequence[RowId]) -> int:
        """Completions it takes to know a candidate on the first ``items`` common items, or on these ids."""
        told = self._known.get(candidate.key, {})
        ids = [item.id for item in self.task.items[:items]] if isinstance(items, int) else items
        return sum(item not in told for item in ids)

    def score(self, candidates: Sequence[Candidate], items: int) -> Scored:
        """The candidates on the first ``items`` common items, in their order; those that the budget cannot pay are left out."""
        queries, left = [], self.left
        for candidate in {one.key: one for one in candidates}.values():
            price = self.cost(candidate, items)
            if 0 < price <= left:
                left -= price
                queries.append(Query(candidate, items))
        if queries:
            yield queries
        trials = [self.known(candidate, items) for candidate in candidates]
        return [trial for trial in trials if not self.cost(trial.candidate, items)]

    def halve(self, candidates: Sequence[Candidate], rungs: Sequence[tuple[int, int]]) -> Scored:
        """Successive halving: per rung ``(candidates, items)`` the best of the rung before on more items.

        Those that are known on the items of a rung already cost nothing there and stay; those that can no longer overtake the
        leader drop out before. Returns what is known of each candidate, the last to drop out first.
        """
        contenders, dropped = list(candidates), list[Candidate]()
        for count, items in rungs:
            runners = [one for place, one in enumerate(contenders) if place < count or not self.cost(one, items)]
            found = [trial.candidate for trial in ranked((yield from self.score(runners, items)))]
            if not found:
                break
            hopeless = self.hopeless(found)
            staying = [one for one in found if one.key not in hopeless]
            dropped = [one for one in [*found, *contenders, *dropped] if one not in staying]
            contenders = staying
        order = dict.fromkeys([*contenders, *dropped])
        return [trial for trial in map(self.known, order) if trial.items]

    def hopeless(self, candidates: Sequence[Candidate]) -> set[str]:
        """Keys of those that would not overtake the leader if all their other items had the highest reward seen so far."""
        rewards = np.concatenate([trial.rewards for trial in self.trials])
        if np.isnan(rewards).all():
            return set()
        low, high = np.nanmin(rewards), np.nanmax(rewards)
        items, total = len(self.task.items), {}
        for one in candidates:
            trial = self.known(one)
            total[one.key] = np.nansum(trial.rewards), items - len(trial.items)
        leader = max(total, key=lambda key: total[key][0] + low * total[key][1])
        least = total[leader][0] + low * total[leader][1]
        return {key for key, (known, left) in total.items() if key != leader and known + high * left <= least + 1e-12}

    def answers(self, messages: Sequence[Messages]) -> list[str]:
        """An answer of the proposer to each; fewer where its budget ends."""
        assert self.services is not None
        return self.services.propose_each(messages) if messages else []

    def propose(self, asks: Sequence[Ask]) -> list[Candidate]:
        """An answer of the proposer to each, as candidates; those that cannot be read, or were seen before, are left out.

        Exemplars are those of the first parent.
        """
        found = []
        for answer, ask in zip(self.answers([ask.messages for ask in asks]), asks, strict=False):
            text = read_instruction(answer)
            if text is not None:
                exemplars = ask.parents[0].exemplars if ask.parents else ()
                keys = tuple(parent.key for parent in ask.parents)
                found.append(Candidate(text, exemplars, parents=keys, origin=ask.origin))
        return [one for one in found if self.is_new(one)]

    def collect(self, count: int, ask: Callable[[int], Ask]) -> list[Candidate]:
        """``count`` new candidates from ``ask(attempt)``; fewer after :data:`FRUITLESS` attempts in a row without one."""
        found: list[Candidate] = []
        attempt = fruitless = 0
        while len(found) < count and fruitless < FRUITLESS:
            asks = [ask(attempt + i) for i in range(min(count - len(found), FRUITLESS - fruitless))]
            try:
                new = self.propose(asks)
            except BudgetSpent:
                if not found:
                    raise
                break  # those that are paid for are tried
            found += new
            attempt += len(asks)
            fruitless = 0 if new else fruitless + len(asks)
        return found

    def vary(self, parents: Sequence[Candidate], count: int) -> list[Candidate]:
        """New candidates that say ``parents`` in other words, each of them equally often."""
        if not parents or not count:
            return []
        return self.collect(count, lambda attempt: rephrased(parents[attempt % len(parents)]))

    def is_new(self, candidate: Candidate) -> bool:
        """Whether the candidate was never seen before; it is from now on."""
        return self.seen.setdefault(candidate.key, candidate) is candidate

    def rng(self, *names: Any) -> Any:
        """A random generator of this optimizer's own."""
        return self.task.rng(self.name, *names)


@dataclass
class InducingRounds(RoundsOptimizer):
    """Base of those that begin with induced instructions.

    Args:
        demonstrations: examples that an instruction is induced from; 0 = the user's own in other words.
    """

    demonstrations: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "demonstrations", at_least=0)

    @property
    def needs(self) -> tuple[Role, ...]:
        return ("proposer", "examples") if self.demonstrations else ("proposer",)

    def pool(self, size: int) -> list[Candidate]:
        """The user's own instructions and induced ones, ``size`` in all."""
        assert self.services is not None
        found = propose_pool(self.task, self.services, size, demonstrations=self.demonstrations, who=self.name)
        return [one for one in found if self.is_new(one)]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Best mean first, the earlier of equals first, NaN last."""
    return sorted(trials, key=lambda trial: -math.inf if math.isnan(trial.score) else trial.score, reverse=True)


def rungs_of(size: int, items: int, first: int, eta: float) -> list[tuple[int, int]]:
    """Rungs ``(candidates, items)`` of successive halving: ``eta`` times fewer candidates on ``eta`` times more items."""
    rungs = [(size, min(first, items))]
    while rungs[-1][1] < items:
        count, seen = rungs[-1]
        rungs.append((max(1, math.ceil(count / eta)), min(items, math.ceil(seen * eta))))
    return rungs


def price_of(rungs: Sequence[tuple[int, int]]) -> int:
    """Completions that successive halving takes when items are nested and no candidate is known yet."""
    before = [0, *[items for _, items in rungs]]
    return sum(count * (items - seen) for (count, items), seen in zip(rungs, before, strict=False))


def plan_rungs(calls: float, items: int, first: int, eta: float, most: int) -> list[tuple[int, int]]:
    """The rungs with the most candidates, up to ``most``, that ``calls`` completions pay; none where they pay not even one."""
    best: list[tuple[int, int]] = []
    for size in range(1, most + 1):
        rungs = rungs_of(size, items, first, eta)
        if price_of(rungs) > calls:
            break
        best = rungs
    return best
