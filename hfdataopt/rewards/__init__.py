"""Rewards as TRL's ``GRPOTrainer(reward_funcs=...)`` takes them, called and checked without TRL.

- ``functions.RewardFunctions``: one or several reward functions and models, called together -> ``functions.Rewards``
- ``reward_model``: a sequence-classification model as a reward; ``background``: where async functions run
- ``metric.reward_from_metric``: an ``evaluate`` metric or a plain function as a reward function
- ``metrics``: ``exact_match``, ``token_f1``, ``accuracy``
- ``code_pass_rate.code_pass_rate``: programs against tests, in a :mod:`sandbox <hfdataopt.rewards.sandbox>`
- ``win_rate.win_rate``: how often a judge prefers a completion to the dataset's own

What ``reward_from_metric``, ``code_pass_rate`` and ``win_rate`` return also works in TRL's trainers. Only ``RewardFunctions`` needs torch,
so it is imported when first used.
"""

from typing import TYPE_CHECKING, Any

from hfdataopt.rewards.code_pass_rate import code_pass_rate
from hfdataopt.rewards.metric import reward_from_metric
from hfdataopt.rewards.metrics import accuracy, exact_match, token_f1
from hfdataopt.rewards.win_rate import win_rate

if TYPE_CHECKING:
    from hfdataopt.rewards.functions import RewardFunctions, Rewards

__all__ = [
    "RewardFunctions",
    "Rewards",
    "accuracy",
    "code_pass_rate",
    "exact_match",
    "reward_from_metric",
    "token_f1",
    "win_rate",
]


def __getattr__(name: str) -> Any:
    if name in ("RewardFunctions", "Rewards"):
        from hfdataopt.rewards import functions

        return getattr(functions, name)
    raise AttributeError(f"module 'hfdataopt.rewards' has no attribute {name!r}")
