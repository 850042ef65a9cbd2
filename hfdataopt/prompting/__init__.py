"""Search for a better prompt.

- :mod:`~hfdataopt.prompting.trainer`: ``PromptTrainer``, which runs an optimizer on a model, a dataset and a reward or a judge
- :mod:`~hfdataopt.prompting.config`, :mod:`~hfdataopt.prompting.result`: its arguments, and what it found
- :mod:`~hfdataopt.prompting.optimizer`, :mod:`~hfdataopt.prompting.candidate`: what an optimizer is, asks and is told
- :mod:`~hfdataopt.prompting.judges`, :mod:`~hfdataopt.prompting.page`: who says which of two answers is better
- :mod:`~hfdataopt.prompting.apply`, :mod:`~hfdataopt.prompting.callback`: the prompt in a dataset; a search while training
- :mod:`~hfdataopt.prompting.ledger`, :mod:`~hfdataopt.prompting.budget`, :mod:`~hfdataopt.prompting.services`: every request,
  kept, counted and paid for
- :mod:`~hfdataopt.prompting.items`, :mod:`~hfdataopt.prompting.tasks`: rows to score on; the papers' tasks
- :mod:`~hfdataopt.prompting.meta_prompts`, :mod:`~hfdataopt.prompting.pool`, :mod:`~hfdataopt.prompting.white_box`,
  :mod:`~hfdataopt.prompting.likelihood`: what optimizers share
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, Query, Trial, Vote
    from hfdataopt.prompting.optimizer import Item, PreferenceOptimizer, PromptOptimizer, Services, Task

_FROM = {
    "candidate": ("Candidate", "Comparison", "Duel", "Query", "Trial", "Vote"),
    "optimizer": ("Item", "PreferenceOptimizer", "PromptOptimizer", "Services", "Task"),
}

__all__ = [
    "Candidate",
    "Comparison",
    "Duel",
    "Item",
    "PreferenceOptimizer",
    "PromptOptimizer",
    "Query",
    "Services",
    "Task",
    "Trial",
    "Vote",
]


def __getattr__(name: str) -> Any:
    for module, names in _FROM.items():
        if name in names:
            return getattr(importlib.import_module(f"hfdataopt.prompting.{module}"), name)
    raise AttributeError(f"module 'hfdataopt.prompting' has no attribute {name!r}")
