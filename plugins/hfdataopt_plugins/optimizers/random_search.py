"""Random search: induced instructions, each scored on all common items. The baseline of all others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.prompting.optimizer import Role
from hfdataopt.prompting.rounds import Rounds, RoundsOptimizer

UNLIMITED = 50  # instructions, where the budget does not count completions


@dataclass
class RandomSearch(RoundsOptimizer):
    """The best of instructions that are induced from examples, all tried on all items.

    Args:
        pool_size: how many; None = as many as the budget of completions pays, 50 where there is none.
        demonstrations: examples that an instruction is induced from.
    """

    name: ClassVar[str] = "random"

    pool_size: int | None = None
    demonstrations: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "pool_size", at_least=1)
        check_range(self, "demonstrations", at_least=0)

    @property
    def needs(self) -> tuple[Role, ...]:
        return ("proposer", "examples") if self.demonstrations else ("proposer",)

    def least_calls(self) -> int:
        return len(self.task.items)

    def plan_in_words(self) -> str:
        return f"one candidate on all {len(self.task.items)} items"

    def search(self) -> Rounds:
        items = len(self.task.items)
        affordable = UNLIMITED if self.task.calls is None else self.task.calls // items
        size = affordable if self.pool_size is None else min(self.pool_size, affordable)
        yield from self.score(self.pool(size, self.demonstrations), items)


@hookimpl
def register_optimizers(register: Callable[..., None]) -> None:
    register(RandomSearch)
