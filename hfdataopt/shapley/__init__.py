"""Shapley values of training rows under kernel regression, and what else follows from the same factorisation.

The estimator: `shapley_values` (`ShapleyResult`), with `position_weights` for other semivalues.
The regression: `prefix_predictions`, its plain `prefix_predictions_reference`, and its ridge: `loo_ridge`,
`relative_ridge`. Without sampling: `loo`, `knn_shapley` (`kernel_distances`), `leave_one_out_margin`; from sampled
orders `out_of_bag_margin`.
"""

from hfdataopt.shapley.closed_form import kernel_distances, knn_shapley, leave_one_out_margin, loo, out_of_bag_margin
from hfdataopt.shapley.estimator import ShapleyResult, shapley_values
from hfdataopt.shapley.prefix import prefix_predictions, prefix_predictions_reference
from hfdataopt.shapley.ridge import loo_ridge, relative_ridge
from hfdataopt.shapley.semivalues import position_weights

__all__ = [
    "ShapleyResult",
    "kernel_distances",
    "knn_shapley",
    "leave_one_out_margin",
    "loo",
    "loo_ridge",
    "out_of_bag_margin",
    "position_weights",
    "prefix_predictions",
    "prefix_predictions_reference",
    "relative_ridge",
    "shapley_values",
]
