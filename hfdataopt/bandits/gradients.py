"""Inner products of an MLP's parameter gradients without the gradients.

With ``h`` the input of a linear layer and ``delta`` the derivative of the network's output in the layer's output, the
gradient in its weight is ``delta h^T`` and in its bias ``delta``. So over all parameters

    <g(x), g(x')> = sum over layers of <delta(x), delta(x')> (<h(x), h(x')> + 1),

without the 1 where a layer has no bias: the empirical neural tangent kernel. A row needs the widths of the layers, not the
number of parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfdataopt.errors import DataError, OptionError

ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
)


@dataclass(frozen=True)
class LayerGradients:
    """Gradients of a network's output in all its parameters, at ``n`` points, as the factors of each linear layer.

    They stay those of the parameters the network had when they were taken ("stale" once it is trained further).

    Attributes:
        inputs: per layer ``[n, in]``.
        deltas: per layer ``[n, out]``.
        biases: per layer, whether it has a bias.
    """

    inputs: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    biases: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.deltas[0])

    def rows(self, index: Any) -> "LayerGradients":
        """The points of an index (a slice, or whole numbers)."""
        return LayerGradients(tuple(h[index] for h in self.inputs), tuple(d[index] for d in self.deltas), self.biases)

    def double(self) -> "LayerGradients":
        """The same in float64."""
        return LayerGradients(
            tuple(h.double() for h in self.inputs), tuple(d.double() for d in self.deltas), self.biases
        )

    def append(self, other: "LayerGradients") -> "LayerGradients":
        """These points and then those, which may have been taken at other parameters of a network of the same shape."""
        self._check_same_network(other)
        return LayerGradients(
            tuple(torch.cat(both) for both in zip(self.inputs, other.inputs, strict=True)),
            tuple(torch.cat(both) for both in zip(self.deltas, other.deltas, strict=True)),
            self.biases,
        )

    def gram(self, other: "LayerGradients") -> Tensor:
        """Inner products ``[n, m]`` of the gradients."""
        self._check_same_network(other)
        total = self.deltas[0].new_zeros(len(self), len(other))
        for h, delta, h_other, delta_other, bias in zip(
            self.inputs, self.deltas, other.inputs, other.deltas, self.biases, strict=True
        ):
            total += (delta @ delta_other.T) * (h @ h_other.T + float(bias))
        return total

    def squared_norms(self) -> Tensor:
        """Squared norms ``[n]`` of the gradients: the diagonal of their Gram matrix."""
        total = self.deltas[0].new_zeros(len(self))
        for h, delta, bias in zip(self.inputs, self.deltas, self.biases, strict=True):
            total += torch.linalg.vecdot(delta, delta) * (torch.linalg.vecdot(h, h) + float(bias))
        return total

    def _check_same_network(self, other: "LayerGradients") -> None:
        shapes, theirs = (
            [(h.shape[1], d.shape[1], b) for h, d, b in zip(g.inputs, g.deltas, g.biases, strict=True)]
            for g in (self, other)
        )
        if shapes != theirs:
            raise OptionError(
                f"neural_variance: gradients of networks of different shapes, (in, out, bias) per layer {shapes} and {theirs}"
            )
        if self.deltas[0].dtype != other.deltas[0].dtype:
            raise OptionError(
                f"neural_variance: gradients in {self.deltas[0].dtype} and {other.deltas[0].dtype}; bring them to one dtype"
            )


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The linear layers and activations of an MLP in order, or :class:`OptionError` for a network of another kind."""
    modules = list(_flat(network))
    linears = [module for module in modules if type(module) is nn.Linear]
    for module in modules:
        if type(module) is not nn.Linear and type(module) not in ELEMENTWISE:
            raise OptionError(
                f"neural_variance: the network holds a {type(module).__name__}; it takes an nn.Sequential of nn.Linear and "
                f"elementwise activations without parameters ({', '.join(kind.__name__ for kind in ELEMENTWISE)})"
            )
    if not linears:
        raise OptionError("neural_variance: the network has no nn.Linear layer")
    tensors = [tensor for linear in linears for tensor in (linear.weight, linear.bias) if tensor is not None]
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        raise OptionError("neural_variance: a layer or a parameter of the network is used twice; give each its own")
    if linears[-1].out_features != 1:
        raise OptionError(
            f"neural_variance: the network has {linears[-1].out_features} outputs; it must have one, the score"
        )
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise OptionError(
            f"neural_variance: parameters in {sorted(map(str, dtypes))}; use one of torch.float32 and torch.float64"
        )
    return modules


def _flat(module: nn.Module) -> Any:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _flat(child)
    else:
        yield module


def as_rows(network: nn.Module, points: Any, name: str) -> Tensor:
    """Points as ``[n, d]`` in the network's dtype."""
    first = next(module for module in layers_of(network) if type(module) is nn.Linear)
    points = torch.as_tensor(points).detach().to(first.weight)
    if points.ndim != 2 or points.shape[1] != first.in_features:
        raise DataError(
            f"neural_variance: {name} has shape {tuple(points.shape)}; the network takes [rows, {first.in_features}]"
        )
    return points


def layer_gradients(network: nn.Module, points: Any) -> LayerGradients:
    """Gradients of ``network`` (an ``nn.Sequential`` of linear layers and activations, one output) at ``points [n, d]``.

    One forward pass and one backward pass that stops at the layers' outputs. Raises :class:`OptionError` for a network it
    does not know and :class:`DataError` where the score of a point is not finite.
    """
    return scores_and_gradients(network, points)[1]


def scores_and_gradients(network: nn.Module, points: Any, name: str = "points") -> tuple[Tensor, LayerGradients]:
    """The network's scores ``[n]`` with their gradients."""
    hidden = as_rows(network, points, name)
    inputs, outputs, biases = [], [], []
    with torch.enable_grad():
        for module in layers_of(network):
            if isinstance(module, nn.Linear):
                inputs.append(hidden.detach())
                biases.append(module.bias is not None)
                hidden = functional.linear(
                    hidden, module.weight.detach(), None if module.bias is None else module.bias.detach()
                )
                if not hidden.requires_grad:
                    hidden.requires_grad_()
                outputs.append(hidden)
            else:
                hidden = module(hidden.clone() if getattr(module, "inplace", False) else hidden)
        deltas: Sequence[Tensor] = torch.autograd.grad(hidden.sum(), outputs)
    scores = hidden.detach()[:, 0]
    bad = torch.nonzero(~torch.isfinite(scores)).flatten().tolist()
    if bad:
        raise DataError(
            f"neural_variance: {name}: the network's score of {len(bad)} rows is not finite, first row {bad[0]}"
        )
    return scores, LayerGradients(tuple(inputs), tuple(deltas), tuple(biases))
