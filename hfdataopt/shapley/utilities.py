"""Utilities: how good the predictions of a subset of rows are, higher = better, one number per query.

Members: `margin` (default), `accuracy`, `log-likelihood` (alias `cross_entropy`, the paper's name), a user's callable.
A utility has a value at each query, and its value on a set of rows is the mean over the queries. `empty` is its value
where no row is held. Predictions come class first, `[..., c, rows, t]`; where two classes share one kernel only the
margin f_label - f_other `[..., rows, t]` is computed, from which each built-in follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hfdataopt.errors import DataError, OptionError

UserUtility = Callable[[Tensor, Tensor], Tensor]
"""`f(predictions [b, t, c], query_labels [t]) -> [b]` or `[b, t]`."""


@dataclass(frozen=True)
class Utility:
    """One utility in the two forms that the walk over prefixes asks for."""

    name: str
    empty: Tensor
    """`[q]`: the value at each query where no row is held; q = 1 for a callable that returns no value per query."""
    of_predictions: Callable[[Tensor], Tensor]
    """Predictions `[p, c, b, t]` to values `[p, b, q]`."""
    of_margins: Callable[[Tensor], Tensor] | None
    """f_label - f_other `[p, b, t]` to values `[p, b, q]`, or None when the predictions themselves are needed."""
    is_callable: bool = False
    """Whether it is the user's function."""


def get_utility(utility: str | UserUtility, classes: int, query_labels: Tensor, *, first_wins: bool = False) -> Utility:
    """The utility of that name for c classes and these queries.

    - `margin`: f_label - max of the others, clipped to [-1, 1]; empty 0.
    - `accuracy`: 1 where the label's output is above all others, so a tie counts as wrong; empty 1/c. With `first_wins`
      the first class of a tie is predicted, as argmax does.
    - `log-likelihood`: the regression outputs taken as logits, log softmax at the label (nats); empty -ln c.
    - a callable `f(predictions [b, t, c], query_labels [t]) -> [b]` or `[b, t]`; its empty value is its value on zeros.

    Raises `OptionError` for an unknown name or a callable that returns something else.
    """
    y = query_labels
    if callable(utility):
        return _from_callable(utility, classes, y)
    if utility == "margin":
        return Utility(
            "margin",
            torch.zeros(len(y), dtype=torch.float64),
            lambda predictions: label_margins(predictions, y).clamp_(-1, 1),
            lambda margins: margins.clamp(-1, 1),
        )
    if utility == "accuracy":
        chance = torch.full((len(y),), 1 / classes, dtype=torch.float64)
        if first_wins:
            return Utility(
                "accuracy, the first class wins ties",
                chance,
                lambda predictions: (predictions.argmax(dim=-3) == y).double(),
                lambda margins: ((margins > 0) | ((margins == 0) & (y == 0))).double(),
            )
        return Utility(
            "accuracy",
            chance,
            lambda predictions: (label_margins(predictions, y) > 0).double(),
            lambda margins: (margins > 0).double(),
        )
    if utility in ("log-likelihood", "cross_entropy"):
        return Utility(
            "log-likelihood",
            torch.full((len(y),), -math.log(classes), dtype=torch.float64),
            lambda predictions: _log_likelihood(predictions, y),
            lambda margins: -torch.nn.functional.softplus(-margins, threshold=40),
        )
    raise OptionError(
        f"utility is {utility!r}; pass 'margin', 'accuracy', 'log-likelihood' ('cross_entropy') or a callable"
    )


def label_margins(predictions: Tensor, labels: Tensor) -> Tensor:
    """f_label - max of the others `[..., b, t]` of predictions `[..., c, b, t]`; labels `[t]` or `[b, 1]`."""
    own = predictions.gather(-3, labels.expand_as(predictions[..., :1, :, :])).squeeze(-3)
    others = torch.full_like(own, -math.inf)
    # A running maximum over the classes reads each number once; amax over a masked copy takes twice as long.
    for index, outputs in enumerate(predictions.unbind(-3)):
        torch.maximum(others, outputs + torch.where(labels == index, -math.inf, 0.0), out=others)
    return own - others


def _log_likelihood(predictions: Tensor, labels: Tensor) -> Tensor:
    index = labels.expand_as(predictions[..., :1, :, :])
    return torch.log_softmax(predictions, dim=-3).gather(-3, index).squeeze(-3)


def _from_callable(function: UserUtility, classes: int, query_labels: Tensor) -> Utility:
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
    queries = len(query_labels)

    def call(predictions: Tensor) -> Tensor:
        """`[c, b, t]` to `[b, q]`."""
        steps = predictions.shape[1]
        value = function(predictions.permute(1, 2, 0), query_labels)
        if not isinstance(value, Tensor) or tuple(value.shape) not in {(steps,), (steps, queries)}:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OptionError(f"utility {name} returned {found}; return a tensor [{steps}] or [{steps}, {queries}]")
        if not bool(torch.isfinite(value).all()):
            raise DataError(f"utility {name} returned a value that is not finite; every prefix needs a number")
        return value.double().reshape(steps, -1)

    empty = call(torch.zeros(classes, 1, queries, dtype=torch.float64, device=query_labels.device))[0]
    return Utility(name, empty, lambda predictions: torch.stack([call(one) for one in predictions]), None, True)
