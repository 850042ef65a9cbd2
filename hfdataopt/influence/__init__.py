"""The influence engine: ``g_q^T (H + damping)^{-1} g_z`` of a pool row z on a query q; higher = more helpful.

A step of descent on z, and to first order giving z more weight and training on, lowers the loss of q by a positive amount
times the influence. Gradients are of losses summed over tokens; a query vector may be any other, such as a policy gradient.

- :mod:`~hfdataopt.influence.features`: ``identity``, ``datainf``, ``ekfac`` on stored gradient features
- :mod:`~hfdataopt.influence.kfac`: the whole Kronecker-factored eigenbasis of a small model
- :mod:`~hfdataopt.influence.gauss_newton`: products with the generalised Gauss-Newton matrix of a model
- :mod:`~hfdataopt.influence.iterative`: ``cg`` and ``lissa``, on such products
- :mod:`~hfdataopt.influence.scorer`: these as a scorer, on any query vectors
"""

from hfdataopt.influence.features import influence, inner_products, inverse_products, mean_squares
from hfdataopt.influence.gauss_newton import GaussNewton
from hfdataopt.influence.iterative import Solution, conjugate_gradients, largest_eigenvalue, lissa
from hfdataopt.influence.kfac import kfac_basis

__all__ = [
    "GaussNewton",
    "Solution",
    "conjugate_gradients",
    "influence",
    "inner_products",
    "inverse_products",
    "kfac_basis",
    "largest_eigenvalue",
    "lissa",
    "mean_squares",
]
