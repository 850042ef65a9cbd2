"""Products with the generalised Gauss-Newton matrix of a model's mean loss, without the matrix.

``GGN = 1/N sum over rows i and labelled positions t of J_it^T H_it J_it``: J is the Jacobian of the logits with respect to
the weights of the selected layers, H the second derivative of the loss with respect to the logits. It is positive
semi-definite, and for cross-entropy it is the Fisher information matrix (labels drawn from the model). Rows count by the
sum over their tokens, as their gradients do.

The space is that of the ``exact`` basis: block after block, each ``[rows, columns]`` row by row.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients.batches import Batch, batch_size, is_per_row
from hfdataopt.gradients.blocks import Block, Layers, find_blocks, unwrap
from hfdataopt.gradients.capture import _configs, _frozen, _without_cache
from hfdataopt.gradients.losses import IGNORED, _accepts, _check_classes, _problem, _take_labels, find_task
from hfdataopt.gradients.runner import MemoryLimit

Curvature = Callable[[Tensor], Tensor]


class GaussNewton:
    """The matrix over the rows of ``batches``, a sample of the pool. Call :meth:`product`.

    The model runs in evaluation mode, its weights stay as they are, and attention is plain matrix products: fused kernels
    have no second derivative. Precision is that of the weights (float32 or float64); only a forward that accelerate has
    patched for mixed precision keeps its own.

    Attributes:
        blocks: what the space consists of; ``offsets [blocks + 1]`` and ``size`` say where.
        rows: N.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        *,
        layers: Layers = None,
        memory: MemoryLimit | None = None,
    ) -> None:
        self.model = unwrap(model)
        self.blocks = find_blocks(model, layers)
        self.offsets = [0]
        for block in self.blocks:
            self.offsets.append(self.offsets[-1] + block.size)
        self.size = self.offsets[-1]
        self._task = check_model(model, layers)
        self._batches = [
            ({key: x for key, x in batch.items() if key not in ("row_id", "weights")}, _ids(batch)) for batch in batches
        ]
        self.rows = sum(len(ids) for _, ids in self._batches)
        if not self.rows:
            raise DataError("influence: no rows arrived for the Gauss-Newton matrix; pass batches of the pool")
        self._memory = memory or MemoryLimit()

    def product(self, vectors: Tensor) -> Tensor:
        """``GGN v`` for each of ``vectors [q, P]``: ``[q, P]`` float64 on the CPU.

        One forward and one backward of each batch serve all vectors; each vector takes two more backward passes.
        """
        total = torch.zeros(len(vectors), self.size, dtype=torch.float64)
        with _ready(self.model):
            for batch, ids in self._batches:
                self._add(batch, ids, vectors, total, 0)
        return total / self.rows

    def _add(self, batch: dict[str, Any], ids: list[Any], vectors: Tensor, total: Tensor, start: int) -> None:
        """Add the batch's products with ``vectors[start:]``; in smaller batches where memory does not suffice."""
        size = len(ids)
        step = min(size, self._memory.rows or size)
        done = start
        if step == size:
            try:
                for product in self._products(batch, vectors[start:]):
                    total[done] += product
                    done += 1
                return
            except torch.OutOfMemoryError:
                pass  # what the error holds is freed before a smaller batch is tried
            self._memory.shrink(size, ids, "influence")
            step = min(size, self._memory.rows or size)
        for first in range(0, size, step):
            rows = slice(first, first + step)
            part = {key: x[rows] if is_per_row(x, size) else x for key, x in batch.items()}
            self._add(part, ids[rows], vectors, total, done)

    def _products(self, batch: dict[str, Any], vectors: Tensor) -> Iterator[Tensor]:
        own = dict(self.model.named_parameters())
        names = [name for block in self.blocks for name in (block.weight, *block.biases)]
        parameters = {name: own[name].detach().requires_grad_() for name in names}
        device = parameters[names[0]].device
        inputs = {key: x.to(device) if isinstance(x, Tensor) else x for key, x in batch.items()}
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            logits, curvature = self._logits(parameters, inputs)
            leaves = list(parameters.values())
            # The gradient of probe . logits is linear in the probe: its own derivative is the Jacobian.
            probe = torch.zeros_like(logits, requires_grad=True)
            back = torch.autograd.grad(logits, leaves, probe, create_graph=True, allow_unused=True)
            used = [place for place, gradient in enumerate(back) if gradient is not None and gradient.requires_grad]
            for vector in vectors:
                if not used:  # no labelled position in the batch, or none that the selected layers reach
                    yield torch.zeros(self.size, dtype=torch.float64)
                    continue
                direction = list(from_flat(self.blocks, vector, parameters).values())
                (forward,) = torch.autograd.grad(
                    [back[i] for i in used], probe, [direction[i] for i in used], retain_graph=True
                )
                with torch.no_grad():
                    bent = curvature(forward)
                found = torch.autograd.grad(logits, leaves, bent, retain_graph=True, allow_unused=True)
                yield to_flat(self.blocks, dict(zip(names, found, strict=True)), parameters).double().cpu()

    def _logits(self, parameters: Mapping[str, Tensor], batch: dict[str, Any]) -> tuple[Tensor, Curvature]:
        """Logits ``[m, classes]`` at labelled places, and multiplication of such a matrix with the loss's Hessian."""
        labels, inputs = _take_labels(batch, "influence")

        def forward() -> Tensor:
            return torch.func.functional_call(self.model, dict(parameters), (), inputs).logits

        if self._task == "sequence":
            logits = forward()
            problem = _problem(self.model, logits, labels.to(logits.device))
            if problem == "regression":
                return logits, lambda x: x * (2 / logits.shape[1])
            if problem == "multi_label_classification":
                slope = torch.sigmoid(logits.detach())
                return logits, lambda x: x * slope * (1 - slope) / logits.shape[1]
            labels = labels.reshape(-1).to(logits.device)
        else:
            if self._task == "causal":
                labels = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
            if getattr(getattr(self.model, "config", None), "is_encoder_decoder", False):
                inputs.setdefault("labels", batch["labels"])  # the decoder's input is made from them
            columns = (labels != IGNORED).any(0).nonzero().flatten()
            if self._task == "causal" and len(columns) and _accepts(self.model, "logits_to_keep"):
                inputs["logits_to_keep"] = columns
                labels = labels[:, columns]
            logits = forward()
            labels = labels.to(logits.device)
        _check_classes(labels, logits.shape[-1], "influence")
        logits = logits[labels != IGNORED]
        share = logits.detach().softmax(-1)
        return logits, lambda x: share * x - share * (share * x).sum(-1, keepdim=True)


def check_model(model: nn.Module, layers: Layers = None) -> str:
    """The model's task. ``OptionError`` unless its loss is known and its precision and attention allow second
    derivatives."""
    inner = unwrap(model)
    task = find_task(model)
    if task is None:
        raise OptionError(
            f"influence: the logits and loss of {type(inner).__name__} are not known here, so it has no Gauss-Newton matrix; "
            "use solver='ekfac' or 'datainf', which need gradients only"
        )
    half = [name for name, x in inner.named_parameters() if x.dtype not in (torch.float32, torch.float64)]
    if half:
        raise OptionError(
            f"influence: {len(half)} parameters are in another precision than float32, such as {half[0]}; second derivatives "
            "need load(..., dtype=torch.float32), or use solver='ekfac' or 'datainf'"
        )
    attention = getattr(getattr(inner, "config", None), "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):
        raise OptionError(
            f"influence: attention {attention!r} has no second derivative; load the model with attn_implementation='sdpa' or "
            "'eager', or use solver='ekfac' or 'datainf'"
        )
    return task


def from_flat(blocks: Sequence[Block], flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vector ``[P]`` in the layout of the exact basis as tensors by parameter name, each like the one in ``like``."""
    found = {}
    start = 0
    for block in blocks:
        matrix = flat[start : start + block.size].view(block.rows, block.columns)
        start += block.size
        if block.vector:
            pieces = list(matrix.view(1 + len(block.biases), -1))
        else:
            weight = matrix[:, : block.inputs]
            pieces = [weight.T if block.transposed else weight, *matrix[:, block.inputs :].T]
        for name, piece in zip((block.weight, *block.biases), pieces, strict=True):
            found[name] = piece.to(like[name]).view_as(like[name]) if block.vector else piece.to(like[name])
    return found


def to_flat(blocks: Sequence[Block], tensors: Mapping[str, Tensor | None], like: Mapping[str, Tensor]) -> Tensor:
    """The inverse of :func:`from_flat`; None stands for zeros."""
    parts = []
    for block in blocks:
        weight, *biases = (
            torch.zeros_like(like[name]) if (x := tensors[name]) is None else x
            for name in (block.weight, *block.biases)
        )
        if block.vector:
            parts += [weight.flatten(), *(bias.flatten() for bias in biases)]
            continue
        weight = weight.T if block.transposed else weight
        parts.append(torch.cat([weight, *(bias.unsqueeze(1) for bias in biases)], dim=1).flatten())
    return torch.cat(parts)


@contextmanager
def _ready(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (which also turns checkpointing off), no key-value cache, frozen weights, plain attention."""
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    with ExitStack() as stack:
        stack.enter_context(_frozen(list(model.parameters())))
        stack.enter_context(_without_cache(_configs(modules)))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


def _ids(batch: Batch) -> list[Any]:
    given = batch.get("row_id")
    if given is None:
        return list(range(batch_size(batch)))
    return given.tolist() if isinstance(given, Tensor) else list(given)
