"""Random search: induced instructions, each scored on all common items. The baseline of all others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.rounds import InducingRounds, Rounds

UNLIMITED = 50  # instructions, where the budget does not count completions


@dataclass
class RandomSearch(InducingRounds):
    """The best of instructions that are induced from examples, all tried on all items.

    Args:
        pool_size: how many; None = as many as the budget of completions pays, 50 where there is none.
    """

    name: ClassVar[str] = "random"

    pool_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "pool_size", at_least=1)

    def least_calls(self) -> int:
        return len(self.task.items)

    def plan_in_words(self) -> str:
        return f"one candidate on all {len(self.task.items)} items"

    def search(self) -> Rounds:
        items = len(self.task.items)
        affordable = UNLIMITED if self.task.calls is None else self.task.calls // items
        size = affordable if self.pool_size is None else min(self.pool_size, affordable)
        yield from self.score(self.pool(size), items)


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(RandomSearch)
