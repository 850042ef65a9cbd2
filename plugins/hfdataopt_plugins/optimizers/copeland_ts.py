"""Double Thompson sampling on counts of wins (Wu and Liu, 2016), with which PDO finds prompts (arXiv 2510.13907)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.dueling import DuelingOptimizer, Pair


@dataclass
class CopelandThompson(DuelingOptimizer):
    """Pairs by double Thompson sampling on each pair's wins; the best arm beat the most others (Copeland).

    It takes no features and learns nothing of an arm from others. PDO also rephrases the best arms now and then, which is
    left out here: the arms stay what they are.

    Args:
        alpha: width of the confidence bounds, ``sqrt(alpha ln t / n)``.
    """

    name: ClassVar[str] = "copeland-ts"
    experimental: ClassVar[str] = "no better than random pairs on the shipped model (8 tasks, 50 to 400 votes)"

    initial: int = 1
    repeats: Literal["no", "later", "free"] = "free"
    alpha: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", above=0.5)

    def choose(self, n: int, group: list[int], closed: set[Pair], waiting: list[Pair], number: int) -> list[Pair]:
        arms = len(self.candidates)
        blocked = np.eye(arms, dtype=bool)
        for first, second in closed:
            blocked[first, second] = blocked[second, first] = True
        wins = self.wins()
        return [double_thompson_pair(wins, blocked, self.alpha, number + 1, self.task.numpy_rng(self.name, number))]

    def wins(self) -> np.ndarray:
        """``[arms, arms]``: how often the row's arm beat the column's; a tie is half a win for each."""
        wins = np.zeros((len(self.candidates), len(self.candidates)))
        for (first, second), target in zip(*self.trained(), strict=True):
            wins[first, second] += target
            wins[second, first] += 1 - target
        return wins

    def ranking(self) -> list[float]:
        """Arms beaten minus arms lost to, then the mean share of wins over opponents."""
        wins = self.wins()
        votes = wins + wins.T
        score = (wins > wins.T).sum(1) - (wins < wins.T).sum(1)
        share = np.divide(wins, votes, out=np.zeros_like(wins), where=votes > 0).sum(1)
        return (score + 0.5 * share / np.maximum((votes > 0).sum(1), 1)).tolist()


def double_thompson_pair(wins: np.ndarray, blocked: np.ndarray, alpha: float, t: int, rng: np.random.Generator) -> Pair:
    """Wu and Liu's algorithm 1.

    First: among the arms that may have beaten the most others by their upper bounds, that which beats the most in a draw of
    all pairs' chances. Second: the arm of the largest drawn chance against it, of those that do not surely lose.

    Args:
        wins: ``[k, k]``.
        blocked: ``[k, k]`` symmetric, pairs that must not be chosen; at least one is not.
        t: number of this question, from 1.
    """
    votes = wins + wins.T
    with np.errstate(divide="ignore", invalid="ignore"):
        rate, width = wins / votes, np.sqrt(alpha * math.log(t) / votes)
    upper = np.where(votes > 0, rate + width, 1.0)
    lower = np.where(votes > 0, rate - width, 0.0)
    others = ~np.eye(len(wins), dtype=bool)
    free = ~blocked.all(axis=1)
    hoped = np.where(free, ((upper > 0.5) & others).sum(1), -1)
    draw = np.triu(rng.beta(wins + 1, wins.T + 1), 1)
    draw += np.tril(1 - draw.T, -1)
    beaten = np.where(hoped == hoped.max(), ((draw > 0.5) & others).sum(1), -1)
    first = int(rng.choice(np.flatnonzero(beaten == beaten.max())))
    chance = rng.beta(wins[:, first] + 1, wins[first] + 1)
    open_ = ~blocked[first]
    if (open_ & (lower[:, first] <= 0.5)).any():
        open_ &= lower[:, first] <= 0.5
    return first, int(np.where(open_, chance, -1.0).argmax())


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(CopelandThompson)
