"""Gradients changed before they are projected, such as by the moments of an optimizer."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hfdataopt.errors import OptionError
from hfdataopt.gradients.blocks import Block
from hfdataopt.gradients.capture import Captured, complete
from hfdataopt.gradients.factors import materialise

Precondition = Mapping[str, Tensor] | Callable[[str, Tensor], Tensor] | None


def preconditioned(block: Block, captured: Sequence[Captured], precondition: Precondition) -> Tensor:
    """The gradients ``[b, rows, columns]`` of a block after ``precondition``."""
    gradient = materialise(complete(block, captured), block.rows, block.columns)
    if precondition is None:
        return gradient
    if block.vector:
        width = block.rows // (1 + len(block.biases))
        named = [
            (name, gradient[:, i * width : (i + 1) * width, 0]) for i, name in enumerate((block.weight, *block.biases))
        ]
        return torch.cat([_apply(precondition, name, part) for name, part in named], dim=1).unsqueeze(-1)
    weight = gradient[:, :, : block.inputs]
    weight = _apply(precondition, block.weight, weight.transpose(1, 2) if block.transposed else weight)
    parts = [weight.transpose(1, 2) if block.transposed else weight]
    for number, name in enumerate(block.biases):
        parts.append(_apply(precondition, name, gradient[:, :, block.inputs + number]).unsqueeze(-1))
    return torch.cat(parts, dim=-1)


def _apply(precondition: Precondition, name: str, gradient: Tensor) -> Tensor:
    if callable(precondition):
        return precondition(name, gradient)
    assert precondition is not None
    factor = precondition.get(name)
    if factor is None:
        return gradient
    if factor.shape != gradient.shape[1:]:
        raise OptionError(
            f"precondition[{name!r}] has shape {list(factor.shape)}, the parameter {list(gradient.shape[1:])}"
        )
    return gradient * factor.to(gradient)
