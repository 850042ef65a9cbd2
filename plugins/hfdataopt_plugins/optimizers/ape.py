"""APE: instructions induced from examples, the bad ones given up early (Zhou et al., 2023; successive halving: Jamieson and
Talwalkar, 2016)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.rounds import InducingRounds, Rounds, plan_rungs, price_of, rungs_of

UNLIMITED = 50  # instructions of a pool, where the budget does not count completions


@dataclass
class Ape(InducingRounds):
    """A pool by induction, then successive halving over nested prefixes of the common items.

    Args:
        pool_size: instructions of the first pool; None = as many as the budget pays, at most 50.
        scoring: ``halving``, or ``all`` items for each candidate, which is plain APE.
        first_items: on how many items the first rung tries each; a quarter of them by default, at least 2.
        eta: each rung keeps one of ``eta`` and tries it on ``eta`` times more items.
        rounds: of resampling: instructions that rephrase the best take part in another halving (iterative APE). The budget is
            shared equally.
        parents: how many of the best are rephrased.
    """

    name: ClassVar[str] = "ape"

    pool_size: int | None = None
    scoring: Literal["halving", "all"] = "halving"
    first_items: int | None = None
    eta: float = 2.0
    rounds: int = 1
    parents: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("pool_size", "first_items", "parents"):
            check_range(self, option, at_least=1)
        check_range(self, "eta", above=1)
        check_range(self, "rounds", at_least=0)

    @property
    def first(self) -> int:
        """Items of the first rung."""
        items = len(self.task.items)
        if self.scoring == "all":
            return items
        return min(items, self.first_items or max(2, -(-items // 4)))

    def least_calls(self) -> int:
        return price_of(rungs_of(2, len(self.task.items), self.first, self.eta))

    def plan_in_words(self) -> str:
        rungs = rungs_of(2, len(self.task.items), self.first, self.eta)
        return "successive halving of " + ", then ".join(f"{count} on {items} items" for count, items in rungs)

    def search(self) -> Rounds:
        items = len(self.task.items)
        best: list[Candidate] = []
        for round_ in range(self.rounds + 1):
            calls = self.left / (self.rounds + 1 - round_)
            if round_ == 0:
                calls = max(calls, self.least_calls())
            rungs = plan_rungs(calls, items, self.first, self.eta, self.pool_size or UNLIMITED)
            if not rungs:
                break
            size = rungs[0][0]
            new = self.pool(size) if round_ == 0 else self.vary(best, size)
            yield from self.halve(new, rungs)
            best = self.leaders(self.parents)
            if not best:
                break


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Ape)
