"""Linear dueling bandit: the baseline of APOHF whose score is linear in the features (Saha, 2021)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.dueling import FeaturedDuels, Pair, open_pairs


@dataclass
class LinearDueling(FeaturedDuels):
    """The best arm against that of the largest upper confidence bound, by ridge Bradley-Terry on the features.

    Args:
        nu: width of the confidence bound in standard deviations.
    """

    name: ClassVar[str] = "linear-dueling"

    nu: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "nu", at_least=0)

    def choose(self, n: int, group: list[int], closed: set[Pair], waiting: list[Pair], number: int) -> list[Pair]:
        from hfdataopt.bandits import dueling_ucb

        n = min(n, len(open_pairs(group, closed)))
        return dueling_ucb(self.posterior(), n, nu=self.nu, asked=closed, pending=waiting)

    def make_surrogate(self) -> Any:
        from hfdataopt.bandits import LinearSurrogate

        return LinearSurrogate()


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(LinearDueling)
