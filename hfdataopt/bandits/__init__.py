"""Bandits: surrogates of a score over a pool of candidates, their exact variances, and which candidates to try next."""

from hfdataopt.bandits.acquisition import (
    double_thompson,
    dueling_ucb,
    expected_improvement,
    improvement,
    neural_ucb,
    thompson,
    upper_bound,
)
from hfdataopt.bandits.arms import ArmPosterior, ArmSurrogate
from hfdataopt.bandits.coupled import CoupledSurrogate, MaternSurrogate
from hfdataopt.bandits.gradients import LayerGradients, layer_gradients
from hfdataopt.bandits.posterior import DiagonalPosterior, Posterior, neural_variance
from hfdataopt.bandits.surrogates import (
    EnsembleSurrogate,
    LinearSurrogate,
    MLPSurrogate,
    NeuralTangentSurrogate,
    RBFSurrogate,
    Surrogate,
)

__all__ = [
    "ArmPosterior",
    "ArmSurrogate",
    "CoupledSurrogate",
    "DiagonalPosterior",
    "EnsembleSurrogate",
    "LayerGradients",
    "LinearSurrogate",
    "MLPSurrogate",
    "MaternSurrogate",
    "NeuralTangentSurrogate",
    "Posterior",
    "RBFSurrogate",
    "Surrogate",
    "double_thompson",
    "dueling_ucb",
    "expected_improvement",
    "improvement",
    "layer_gradients",
    "neural_ucb",
    "neural_variance",
    "thompson",
    "upper_bound",
]
