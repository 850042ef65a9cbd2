"""Is a ranking of training rows any good? Measures of scores, each with an interval.

- :func:`label_noise_auc`: known label errors among the lowest scores
- :func:`linear_datamodeling_score`, :func:`measure_subsets`: sums of scores against models trained on random subsets
- :func:`removal_curves`: models trained on, and without, the highest rows, against random rows, on a third split
- :class:`RewardUtility`: the mean reward of a trained model's completions, as the utility of both
- :func:`sign_consistency`: whether a row's score keeps its sign in other pools, Shapley beside leave-one-out
- :func:`surrogate_fidelity`, :func:`kernel_utilities`, :func:`draw_pairs`: kernel regression against real fine-tuning

Every result prints as a line or a small table, and ``as_dict()`` is JSON.
"""

from hfdataopt.evaluation.curves import CurvePoint, RemovalCurves, removal_curves
from hfdataopt.evaluation.datamodeling import (
    LinearDatamodelingScore,
    SubsetOutcomes,
    draw_subsets,
    linear_datamodeling_score,
    measure_subsets,
)
from hfdataopt.evaluation.interval import Interval
from hfdataopt.evaluation.label_noise import LabelNoiseAuc, label_noise_auc
from hfdataopt.evaluation.reward_utility import RewardUtility
from hfdataopt.evaluation.signs import SignConsistency, sign_consistency
from hfdataopt.evaluation.surrogate import SurrogateFidelity, draw_pairs, kernel_utilities, surrogate_fidelity

__all__ = [
    "CurvePoint",
    "Interval",
    "LabelNoiseAuc",
    "LinearDatamodelingScore",
    "RemovalCurves",
    "RewardUtility",
    "SignConsistency",
    "SubsetOutcomes",
    "SurrogateFidelity",
    "draw_pairs",
    "draw_subsets",
    "kernel_utilities",
    "label_noise_auc",
    "linear_datamodeling_score",
    "measure_subsets",
    "removal_curves",
    "sign_consistency",
    "surrogate_fidelity",
]
