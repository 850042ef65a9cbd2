"""Small kernels with labels that a kernel regression can and cannot learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Data:
    kernel: Tensor
    cross: Tensor
    labels: Tensor
    query_labels: Tensor
    classes: int

    @property
    def targets(self) -> Tensor:
        return torch.nn.functional.one_hot(self.labels, self.classes).double()

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.kernel, self.cross, self.labels, self.query_labels


def make_data(rows: int = 30, queries: int = 9, classes: int = 2, *, per_class: bool = False, seed: int = 0) -> Data:
    """Gaussian features whose class is the largest of a few linear scores; full-rank kernels."""
    random = torch.Generator().manual_seed(seed)

    def gram() -> Tensor:
        features = torch.randn(rows + queries, 2 * rows, generator=random, dtype=torch.float64)
        features[:, :classes] = scores
        return features @ features.T / features.shape[1]

    scores = 3 * torch.randn(rows + queries, classes, generator=random, dtype=torch.float64)
    labels = scores.argmax(dim=1)
    labels[:classes] = torch.arange(classes)
    grams = torch.stack([gram() for _ in range(classes if per_class else 1)])
    kernel, cross = grams[:, :rows, :rows], grams[:, :rows, rows:]
    if not per_class:
        kernel, cross = kernel[0], cross[0]
    return Data(kernel.contiguous(), cross.contiguous(), labels[:rows], labels[rows:], classes)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[(2, False), (3, False), (2, True), (3, True)], ids=["c2", "c3", "c2-per-class", "c3-per-class"])
def data(request: Any) -> Data:
    classes, per_class = request.param
    return make_data(classes=classes, per_class=per_class)
