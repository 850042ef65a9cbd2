"""Bandits: surrogates of a score over a pool of candidates, their exact variances, and which candidates to try next."""

from hfdataopt.bandits.gradients import LayerGradients, layer_gradients
from hfdataopt.bandits.posterior import DiagonalPosterior, Posterior, neural_variance

__all__ = ["DiagonalPosterior", "LayerGradients", "Posterior", "layer_gradients", "neural_variance"]
