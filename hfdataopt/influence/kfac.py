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
from hfdataopt.gradients.basis import _describe
from hfdataopt.gradients.batches import Batch, nonfinite_error
from hfdataopt.gradients.blocks import Layers
from hfdataopt.gradients.fit import _Directions, _groups, _Moments, _sweep
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

    The moments are sums over the positions of ``batches`` that carry a gradient, with the loss of the given labels
    (the empirical Fisher), a 1 for the bias among the activations. Directions without any variance are left out: no
    row that the basis was fitted on has a gradient there.
    """
    runner = Runner(model, layers=layers, dtype=dtype, custom_loss=custom_loss, memory=memory)
    blocks = runner.blocks
    directions = _Directions(max(max(block.rows, block.columns) for block in blocks))
    parts = []
    for group in _groups(blocks, 1):
        moments = _Moments(group, None)
        bad = _sweep(runner, batches, moments)
        if bad and on_nonfinite == "error":
            raise nonfinite_error(bad)
        for index in group:
            parts.append(directions.part(blocks[index], [moments.take(index)] if index in moments.left else []))
    return Basis("eigen", _describe(blocks), parts)


class Rotated:
    """Exact features ``[n, P]`` seen in another basis: rows are projected when they are read, ``[b, d]`` float32."""

    def __init__(self, features: Features, basis: Basis) -> None:
        self.features, self.basis = features, basis

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, key: slice, /) -> Tensor:
        rows = torch.as_tensor(np.array(self.features[key])).float().flatten(1)
        parts = []
        start = 0
        for index, (_, left, right, _) in enumerate(self._shapes()):
            gradient = rows[:, start : start + left * right].view(-1, left, right)
            parts.append(self.basis.project_matrix(index, gradient))
            start += left * right
        return torch.cat(parts, dim=1)

    def _shapes(self) -> list[list[Any]]:
        return self.basis.layers
