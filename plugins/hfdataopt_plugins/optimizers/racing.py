"""Racing: candidates run over the common items together, and those that are worse than the best by a paired test drop out
(Maron and Moore, 1994; F-Race: Birattari et al., 2002; challengers: Hutter et al., 2011)."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting import paired
from hfdataopt.prompting.candidate import Candidate, Query, Trial
from hfdataopt.prompting.rounds import InducingRounds, Rounds, ranked

Race = Generator[list[Query], None, list[Candidate]]
TESTS: dict[str, Callable[[np.ndarray], float]] = {"t": paired.t_test, "sign": paired.sign_test}
SHARE = 0.5  # of the budget, at most, that the first block of the first race takes
UNLIMITED = 30  # instructions of the first race and later races, where the budget does not count completions
RACES = 10


@dataclass
class Racing(InducingRounds):
    """Races between instructions; after each, the survivors are rephrased for the next.

    Args:
        pool_size: instructions of the first race; None = what half the budget pays for one block, at most 30.
        block: items between two looks at the standings.
        alpha: a candidate drops out when a one-sided paired test against the best of the race, on the items that both have seen,
            says that it is worse at this level. One that could not reach the best by the highest rewards seen so far on all
            its other items drops out in any case.
        test: Student's t, or the sign test.
        survivors: how many of the best are rephrased and run again.
        refill: instructions of a later race.
    """

    name: ClassVar[str] = "racing"

    pool_size: int | None = None
    block: int = 2
    alpha: float = 0.3
    test: Literal["t", "sign"] = "t"
    survivors: int = 3
    refill: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("pool_size", "block", "survivors", "refill"):
            check_range(self, option, at_least=1)
        check_range(self, "alpha", above=0, below=1)

    def least_calls(self) -> int:
        return len(self.task.items) + min(self.block, len(self.task.items))

    def plan_in_words(self) -> str:
        return f"a winner on all {len(self.task.items)} items and one that drops out after {self.block}"

    def search(self) -> Rounds:
        items = len(self.task.items)
        size = self.pool_size or UNLIMITED
        if self.task.calls is not None:
            size = min(size, max(2, int(SHARE * self.task.calls / min(self.block, items))))
        alive = yield from self.race(self.pool(size))
        races = 0
        while alive and self.left >= min(self.block, items) and (self.task.calls is not None or races < RACES):
            parents = alive[: self.survivors]
            new = self.vary(parents, self.refill)
            if not new:
                break
            alive = yield from self.race([*parents, *new])
            races += 1

    def race(self, runners: list[Candidate]) -> Race:
        """Those that finish, best first."""
        items = len(self.task.items)
        for seen in [*range(self.block, items, self.block), items]:
            trials = yield from self.score(runners, seen)
            if not trials:
                break
            runners = [trial.candidate for trial in self.standing(trials)]
        return runners

    def standing(self, trials: list[Trial]) -> list[Trial]:
        """Trials of candidates that are still in the race, best first; all are of the same items."""
        best, *others = ranked(trials)
        hopeless = self.hopeless([trial.candidate for trial in trials])
        return [best, *(one for one in others if one.candidate.key not in hopeless and not self.is_worse(one, best))]

    def is_worse(self, trial: Trial, best: Trial) -> bool:
        """What the paired test says."""
        differences = trial.rewards - best.rewards
        return TESTS[self.test](differences[~np.isnan(differences)]) < self.alpha


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(Racing)
