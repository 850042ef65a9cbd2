"""The hooks a plugin may implement. This module imports only pluggy, so that a plugin's import stays light.

Registration hooks get a ``register`` callable and call it once per component, as often as they like:

- ``register_scorers``: attribution scorers, which become ``transformers`` Trainer callbacks
- ``register_filters``: dataset filters, which become ``datasets`` map functions
- ``register_optimizers``: prompt optimizers, which become TRL-style components
- ``register_generators``: text generators

``per_example_loss`` answers for model architectures that the host does not know. The ``after_*`` hooks observe.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch

    from hfdataopt.attribution.scores import Scores

PROJECT = "hfdataopt"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_scorers(register: Callable[..., None]) -> None:
    """Call ``register(ScorerClass, name=None)`` for each scorer; the name defaults to the class attribute ``name``."""


@hookspec
def register_filters(register: Callable[..., None]) -> None:
    """Call ``register(FilterClass, name=None)`` for each dataset filter."""


@hookspec
def register_optimizers(register: Callable[..., None]) -> None:
    """Call ``register(OptimizerClass, name=None)`` for each prompt optimizer."""


@hookspec
def register_generators(register: Callable[..., None]) -> None:
    """Call ``register(GeneratorClass, name=None)`` for each text generator."""


@hookspec(firstresult=True)
def per_example_loss(model: Any, batch: dict[str, Any]) -> "tuple[torch.Tensor, torch.Tensor] | None":
    """Loss of each row of a collated batch, for a model whose loss the host does not know how to take apart.

    Returns ``(loss_sum [b], tokens [b])`` in nats, with the graph attached, or None to let another plugin answer.
    """


@hookspec
def after_scoring(scores: "Scores") -> None:
    """Called once when a scorer has finished; ``scores`` is the combined result."""


@hookspec
def after_selection(dataset: Any, kept: list[Any], by: str) -> None:
    """Called after ``select``: the dataset handed in, the row ids (or positions) kept, and what they were ranked by."""


@hookspec
def after_trial(trial: Any) -> None:
    """Called after each trial of a prompt search."""
