"""A world in which an instruction says how good it is: ``text 0.37 #5`` solves the items whose difficulty is below 0.37."""

import random
import re
from typing import Any

from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.optimizer import Item
from tests.optimizers.search import PlainServices

ITEMS = 12


def quality(text: str) -> float:
    found = re.findall(r"text (\d\.\d+)", text)
    return float(found[0]) if found else 0.0


def reward(candidate: Candidate, item: Item) -> float:
    """Difficulties lie 0, 1/12, ... 11/12, in an order that is no order of the items."""
    return float(quality(candidate.instruction) > (5 * int(item.id) % ITEMS) / ITEMS)


def proposer(seed: int = 0) -> Any:
    """Induces qualities from 0 to 0.6; rephrases with a little noise; improves on what is said to score highest; combines."""
    rng = random.Random(seed)

    def propose(text: str, number: int) -> str:
        shown = [quality(line) for line in re.findall(r"^Instruction: (.+)$", text, re.M)]
        if text.startswith("These outputs"):
            value = rng.uniform(0, 0.6)
        elif "scores from 0 to 100" in text:
            scores = [int(score) for score in re.findall(r"^Score: (\d+)$", text, re.M)]
            value = shown[scores.index(max(scores))] + rng.uniform(-0.05, 0.1)
        elif "Give one reason" in text:
            return f"reason {number}"
        elif "Write a better instruction" in text:
            value = shown[0] + rng.uniform(0, 0.15)
        else:
            value = max(shown) + rng.uniform(-0.08, 0.08)
        return f"text {min(1, max(0, value)):.4f} #{number}"

    return propose


def services(seed: int = 0) -> PlainServices:
    return PlainServices(proposer(seed))


def trying(optimizer: Any, calls: int | None, seed: int = 0, n: int = 1, steps: int = 500, **changes: Any) -> set:
    """Run a search; what was tried: pairs of candidate key and item, which the budget counts."""
    from tests.optimizers import search

    search.run(optimizer, search.task(ITEMS, calls=calls, seed=seed, **changes), reward, services(seed), steps, n)
    return {(trial.candidate.key, item) for trial in optimizer.trials for item in trial.items}
