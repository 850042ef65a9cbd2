"""A pool of instructions for optimizers that choose among candidates that are there already."""

from hfdataopt.console import say
from hfdataopt.errors import DataError
from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.optimizer import Services, Task

FRUITLESS = 25  # proposals in a row without a new instruction


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
    while len(pool) < size and since_new < FRUITLESS:
        rng = task.rng(who, "pool", number)
        shown = task.demonstrations(demonstrations, who, "pool", number)
        parents: tuple[str, ...] = ()
        if pool and (not shown or rng.random() < rephrase):
            parent = rng.choice(list(pool.values()))
            messages, parents = meta_prompts.rephrase(parent.instruction), (parent.key,)
        elif shown:
            messages = meta_prompts.induce(shown)
        else:
            raise DataError(
                f"{who}: there is nothing to make instructions from; give rows with answers as examples and "
                f"demonstrations (now {demonstrations}) above 0, or an instruction to begin with"
            )
        try:
            answer = services.propose(messages, 1)[0]
        except BudgetSpent:
            if not pool:
                raise
            say(f"{who}: the budget ended the pool at {len(pool)} instructions; the search goes on with these")
            break
        text = meta_prompts.read_instruction(answer)
        origin = "rephrase" if parents else "induce"
        found = None if text is None else Candidate(text, parents=parents, origin=origin)
        since_new = since_new + 1 if found is None or found.key in pool else 0
        if found is not None:
            pool.setdefault(found.key, found)
        number += 1
    if not pool:
        raise DataError(
            f"{who}: none of {number} proposals can be used as an instruction; the last was {answer!r:.200}"
        )
    if since_new >= FRUITLESS:
        say(f"{who}: {FRUITLESS} proposals in a row were not new; the pool has {len(pool)} instructions")
    return list(pool.values())[:size]
