"""The whole Kronecker-factored eigenbasis, for models small enough to keep every entry of a gradient.

``fit_basis(kind="eigen")`` keeps the leading directions that ``floats_per_row`` has room for, and gives an ``exact`` basis
(without any rotation) where there is room for everything. EK-FAC needs the rotation also then.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hfdataopt.gradients import Basis, MemoryLimit, Runner
from hfdataopt.gradients.basis import Part, _describe
from hfdataopt.gradients.batches import Batch, nonfinite_error
from hfdataopt.gradients.blocks import Layers
from hfdataopt.gradients.fit import _groups, _Moments, _sweep
from hfdataopt.gradients.losses import CustomLoss
from hfdataopt.gradients.runner import OnNonfinite
from hfdataopt.influence.features import Features


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
    for group in _groups(blocks, 1):
        moments = _Moments(group, None)
        bad = _sweep(runner, batches, moments)
        if bad and on_nonfinite == "error":
            raise nonfinite_error(bad)
        for index in group:
            left, right = moments.take(index) if index in moments.left else (None, None)
            parts.append(Part(_eigenvectors(left), _eigenvectors(right), None, blocks[index].size))
    return Basis("eigen", _describe(blocks), parts)


def _eigenvectors(moment: Tensor | None) -> Tensor | None:
    """All of a second moment ``[size, size]``, float32; None (coordinates) for a diagonal one."""
    return None if moment is None or moment.dim() == 1 else torch.linalg.eigh(moment)[1].float()


class Rotated:
    """Exact features ``[n, P]`` seen in another basis: rows are projected when they are read, ``[b, d]`` float32."""

    def __init__(self, features: Features, basis: Basis) -> None:
        self.features, self.basis = features, basis

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: slice, /) -> Tensor:
        found = self.features[key]
        rows = (found if isinstance(found, Tensor) else torch.from_numpy(np.array(found))).float().flatten(1)
        parts = []
        start = 0
        for index, (_, left, right, _) in enumerate(self._shapes()):
            gradient = rows[:, start : start + left * right].view(-1, left, right)
            parts.append(self.basis.project_matrix(index, gradient))
            start += left * right
        return torch.cat(parts, dim=1)

    def _shapes(self) -> list[list[Any]]:
        return self.basis.layers
