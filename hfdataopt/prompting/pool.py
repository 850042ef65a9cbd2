"""A pool of instructions for optimizers that choose among candidates that are there already."""

from hfdataopt.console import say
from hfdataopt.errors import DataError
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.optimizer import Services, Task

FRUITLESS = 25  # proposals in a row without a new instruction
TOGETHER = 16  # proposals that are asked for at a time


def propose_pool(
    task: Task, services: Services, size: int, *, demonstrations: int = 5, rephrase: float = 0.0, who: str
) -> list[Candidate]:
    """Up to ``size`` different instructions, the user's own (``task.start``) first.

    Fewer where :data:`FRUITLESS` proposals in a row brought nothing new, or where the budget ended; one that is spent before
    the first instruction lets :class:`~hfdataopt.prompting.budget.BudgetSpent` pass.

    Args:
        demonstrations: examples that an instruction is induced from, drawn anew for each proposal; 0 = rephrasings only.
        rephrase: share of proposals that say an instruction of the pool in other words.
        who: the optimizer, for messages and draws.

    Raises:
        DataError: there are neither examples nor an instruction to begin with, or no proposal can be used.
    """
    pool = {one.key: one for one in (Candidate(text, origin="start") for text in task.start)}
    number = since_new = 0
    answer = ""
    while len(pool) < size and since_new < FRUITLESS:
        count = min(size - len(pool), TOGETHER, FRUITLESS - since_new)
        asked = [_question(task, pool, demonstrations, rephrase, who, number + place) for place in range(count)]
        number += count
        try:
            answers = services.propose_each([messages for messages, _ in asked])
        except BudgetSpent:
            if not pool:
                raise
            say(f"{who}: the budget ended the pool at {len(pool)} instructions; the search goes on with these")
            break
        for answer, (_, parents) in zip(answers, asked, strict=False):
            text = meta_prompts.read_instruction(answer)
            origin = "rephrase" if parents else "induce"
            found = None if text is None else Candidate(text, parents=parents, origin=origin)
            since_new = since_new + 1 if found is None or found.key in pool else 0
            if found is not None:
                pool.setdefault(found.key, found)
    if not pool:
        raise DataError(
            f"{who}: none of {number} proposals can be used as an instruction; the last was {answer!r:.200}"
        )
    if since_new >= FRUITLESS:
        say(f"{who}: {FRUITLESS} proposals in a row were not new; the pool has {len(pool)} instructions")
    return list(pool.values())[:size]


def _question(
    task: Task, pool: dict[str, Candidate], demonstrations: int, rephrase: float, who: str, number: int
) -> tuple[meta_prompts.Messages, tuple[str, ...]]:
    """What proposal ``number`` asks, and the keys of what it says in other words."""
    rng = task.rng(who, "pool", number)
    shown = task.demonstrations(demonstrations, who, "pool", number)
    if pool and (not shown or rng.random() < rephrase):
        parent = rng.choice(list(pool.values()))
        return meta_prompts.rephrase(parent.instruction), (parent.key,)
    if shown:
        return meta_prompts.induce(shown), ()
    raise DataError(
        f"{who}: there is nothing to make instructions from; give rows with answers as examples and demonstrations (now "
        f"{demonstrations}) above 0, or an instruction to begin with"
    )
