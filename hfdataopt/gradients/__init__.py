"""The gradient engine: per-example gradients, bases to store them in, exact dot products, an on-disk store.

- :mod:`~hfdataopt.gradients.blocks`: which modules are tracked
- :mod:`~hfdataopt.gradients.capture`: hooks on one batched forward and backward
- :mod:`~hfdataopt.gradients.losses`: what is differentiated
- :mod:`~hfdataopt.gradients.factors`: arithmetic on gradient factors
- :mod:`~hfdataopt.gradients.basis`, :mod:`~hfdataopt.gradients.fit`, :mod:`~hfdataopt.gradients.second_moments`: what of
  a gradient is kept
- :mod:`~hfdataopt.gradients.precondition`: gradients changed before they are projected
- :mod:`~hfdataopt.gradients.adam`: the moments of an Adam optimizer, and its steps on single gradients
- :mod:`~hfdataopt.gradients.batches`, :mod:`~hfdataopt.gradients.runner`: running batches through a model
- :mod:`~hfdataopt.gradients.engine`: batches in, features out
- :mod:`~hfdataopt.gradients.exact`: exact dot products and norms
- :mod:`~hfdataopt.gradients.store`: features on disk
"""

from hfdataopt.gradients.adam import AdamForm, AdamMoments, AdamStep
from hfdataopt.gradients.basis import Basis
from hfdataopt.gradients.batches import choose_rows, name_rows, take_rows
from hfdataopt.gradients.blocks import Block, check_layers, find_blocks, unpeft
from hfdataopt.gradients.engine import ExampleGradients, per_example_gradients
from hfdataopt.gradients.exact import ExampleNorms, gradient_norms, gram
from hfdataopt.gradients.fit import Source, fit_basis, kept_share
from hfdataopt.gradients.losses import find_task, make_target, per_example_loss
from hfdataopt.gradients.runner import MemoryLimit, Runner
from hfdataopt.gradients.store import GradientStore, ShardedArray, weights_hash

__all__ = [
    "AdamForm",
    "AdamMoments",
    "AdamStep",
    "Basis",
    "Block",
    "ExampleGradients",
    "ExampleNorms",
    "GradientStore",
    "MemoryLimit",
    "Runner",
    "ShardedArray",
    "Source",
    "check_layers",
    "choose_rows",
    "find_blocks",
    "find_task",
    "fit_basis",
    "gradient_norms",
    "gram",
    "kept_share",
    "make_target",
    "name_rows",
    "per_example_gradients",
    "per_example_loss",
    "take_rows",
    "unpeft",
    "weights_hash",
]
