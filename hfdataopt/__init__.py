"""hfdataopt: which training examples, and which prompts, really make a Hugging Face model better.

The public names below are imported when first used, so that ``import hfdataopt`` is quick and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfdataopt.attribution.attribute import attribute
    from hfdataopt.attribution.callback import AttributionCallback
    from hfdataopt.attribution.checkpoint import Checkpoint
    from hfdataopt.attribution.rows import with_row_ids
    from hfdataopt.attribution.scorer import PointwiseScorer, Scorer
    from hfdataopt.attribution.scores import Scores
    from hfdataopt.hookspecs import hookimpl
    from hfdataopt.plugins import get_filter, get_generator, get_optimizer, get_scorer
    from hfdataopt.prompting.apply import ApplyPrompt
    from hfdataopt.prompting.candidate import Candidate
    from hfdataopt.prompting.config import PromptConfig
    from hfdataopt.prompting.optimizer import PreferenceOptimizer, PromptOptimizer
    from hfdataopt.prompting.trainer import PromptTrainer
    from hfdataopt.rewards.code_pass_rate import code_pass_rate
    from hfdataopt.rewards.metric import reward_from_metric
    from hfdataopt.rewards.win_rate import win_rate
    from hfdataopt.selection.curriculum import curriculum
    from hfdataopt.selection.filter import Filter, TextFilter
    from hfdataopt.selection.prompt_sampler import PromptSampler
    from hfdataopt.selection.rules import balance, diverse, quantile, sample, threshold, top
    from hfdataopt.selection.select import select

_HOME = {
    "ApplyPrompt": "hfdataopt.prompting.apply",
    "AttributionCallback": "hfdataopt.attribution.callback",
    "Candidate": "hfdataopt.prompting.candidate",
    "Checkpoint": "hfdataopt.attribution.checkpoint",
    "Filter": "hfdataopt.selection.filter",
    "PointwiseScorer": "hfdataopt.attribution.scorer",
    "PreferenceOptimizer": "hfdataopt.prompting.optimizer",
    "PromptConfig": "hfdataopt.prompting.config",
    "PromptOptimizer": "hfdataopt.prompting.optimizer",
    "PromptSampler": "hfdataopt.selection.prompt_sampler",
    "PromptTrainer": "hfdataopt.prompting.trainer",
    "Scorer": "hfdataopt.attribution.scorer",
    "Scores": "hfdataopt.attribution.scores",
    "TextFilter": "hfdataopt.selection.filter",
    "attribute": "hfdataopt.attribution.attribute",
    "balance": "hfdataopt.selection.rules",
    "code_pass_rate": "hfdataopt.rewards.code_pass_rate",
    "curriculum": "hfdataopt.selection.curriculum",
    "diverse": "hfdataopt.selection.rules",
    "get_filter": "hfdataopt.plugins",
    "get_generator": "hfdataopt.plugins",
    "get_optimizer": "hfdataopt.plugins",
    "get_scorer": "hfdataopt.plugins",
    "hookimpl": "hfdataopt.hookspecs",
    "quantile": "hfdataopt.selection.rules",
    "reward_from_metric": "hfdataopt.rewards.metric",
    "sample": "hfdataopt.selection.rules",
    "select": "hfdataopt.selection.select",
    "threshold": "hfdataopt.selection.rules",
    "top": "hfdataopt.selection.rules",
    "win_rate": "hfdataopt.rewards.win_rate",
    "with_row_ids": "hfdataopt.attribution.rows",
}
__all__ = [
    "ApplyPrompt",
    "AttributionCallback",
    "Candidate",
    "Checkpoint",
    "Filter",
    "PointwiseScorer",
    "PreferenceOptimizer",
    "PromptConfig",
    "PromptOptimizer",
    "PromptSampler",
    "PromptTrainer",
    "Scorer",
    "Scores",
    "TextFilter",
    "attribute",
    "balance",
    "code_pass_rate",
    "curriculum",
    "diverse",
    "get_filter",
    "get_generator",
    "get_optimizer",
    "get_scorer",
    "hookimpl",
    "quantile",
    "reward_from_metric",
    "sample",
    "select",
    "threshold",
    "top",
    "win_rate",
    "with_row_ids",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hfdataopt")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hfdataopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
