"""Gradients changed before they are projected, such as by the moments of an optimizer.

A row's weight multiplies its gradient first: where the change is not linear, it changes more than the length.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from hfdataopt.errors import OptionError
from hfdataopt.gradients.blocks import Block
from hfdataopt.gradients.capture import Captured, complete
from hfdataopt.gradients.factors import materialise

Precondition = Mapping[str, Tensor] | Callable[[str, Tensor], Tensor] | None


def preconditioned(block: Block, captured: Sequence[Captured], precondition: Precondition) -> Tensor:
    """The gradients ``[b, rows, columns]`` of a block after ``precondition``; a callable may change its argument in
    place."""
    gradient = materialise(complete(block, captured), block.rows, block.columns)
    for name, part in _named(block, gradient):
        if callable(precondition):
            result = precondition(name, part)
            if result.shape != part.shape:
                raise OptionError(
                    f"precondition: {list(result.shape)} came back for a gradient of {name} of shape {list(part.shape)}"
                )
            if result is not part:
                part.copy_(result)
        elif precondition is not None and (factor := precondition.get(name)) is not None:
            if factor.shape != part.shape[1:]:
                raise OptionError(
                    f"precondition[{name!r}] has shape {list(factor.shape)}, the parameter {list(part.shape[1:])}"
                )
            part.mul_(factor.to(part))
    return gradient


def _named(block: Block, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The block's parameters with their gradients ``[b, *shape]``, views of ``gradient``."""
    if block.vector:
        width = block.rows // (1 + len(block.biases))
        for number, name in enumerate((block.weight, *block.biases)):
            yield name, gradient[:, number * width : (number + 1) * width, 0]
        return
    weight = gradient[:, :, : block.inputs]
    yield block.weight, weight.transpose(1, 2) if block.transposed else weight
    for number, name in enumerate(block.biases):
        yield name, gradient[:, :, block.inputs + number]
