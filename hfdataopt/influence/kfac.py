"""The whole Kronecker-factored eigenbasis, for models small enough to keep every entry of a gradient.

``fit_basis(kind="eigen")`` keeps the leading directions that ``floats_per_row`` has room for, and gives an ``exact`` basis
(without any rotation) where there is room for everything. EK-FAC needs the rotation also then.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hfdataopt.gradients import Basis, MemoryLimit, Runner
from hfdataopt.gradients.basis import Part, _describe
from hfdataopt.gradients.batches import Batch, nonfinite_error
from hfdataopt.gradients.blocks import Layers
from hfdataopt.gradients.fit import _groups, _Moments, _sweep
from hfdataopt.gradients.losses import CustomLoss
from hfdataopt.gradients.runner import OnNonfinite


def kfac_basis(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Layers = None,
    dtype: str | torch.dtype | None = None,
    on_nonfinite: OnNonfinite = "error",
    custom_loss: CustomLoss | None = None,
    memory: MemoryLimit | None = None,
) -> Basis:
    """All eigenvectors of the second moments of each block's output gradients and of its activations.

    The moments are sums over the positions of ``batches`` that carry a gradient, of the loss of the given labels (the
    empirical Fisher), with a 1 for the bias among the activations. Embeddings, and sides longer than
    ``hfdataopt.gradients.fit.LONGEST_SIDE``, keep their coordinates. Directions without any variance are there too: the mean
    eigenvalue of a block is one over all entries.
    """
    runner = Runner(model, layers=layers, dtype=dtype, custom_loss=custom_loss, memory=memory)
    blocks = runner.blocks
    parts = []
    last: tuple[Tensor | None, Tensor | None] = (None, None)  # query, key and value layers read the same activations
    for group in _groups(blocks, 1):
        moments = _Moments(group, None)
        bad = _sweep(runner, batches, moments)
        if bad and on_nonfinite == "error":
            raise nonfinite_error(bad)
        for index in group:
            left, right = moments.take(index) if index in moments.left else (None, None)
            if last[0] is None or right is None or not torch.equal(last[0], right):
                last = right, _eigenvectors(right)
            parts.append(Part(_eigenvectors(left), last[1], None, blocks[index].size))
    return Basis("eigen", _describe(blocks), parts)


def _eigenvectors(moment: Tensor | None) -> Tensor | None:
    """All of a second moment ``[size, size]``, float32; None (coordinates) for a diagonal one."""
    return None if moment is None or moment.dim() == 1 else torch.linalg.eigh(moment)[1].float()
