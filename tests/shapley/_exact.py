"""Plain references: direct solves, utilities by loops, semivalues over all subsets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def predict(kernel: Tensor, cross: Tensor, targets: Tensor, held: list[int], ridge: float) -> Tensor:
    """`[t, c]` from the rows held, by one solve per class."""
    classes = targets.shape[1]
    out = torch.zeros(cross.shape[-1], classes, dtype=torch.float64)
    if not held:
        return out
    for k in range(classes):
        own = kernel if kernel.ndim == 2 else kernel[k]
        products = cross if cross.ndim == 2 else cross[k]
        system = own[held][:, held] + ridge * torch.eye(len(held), dtype=torch.float64)
        out[:, k] = products[held].T @ torch.linalg.solve(system, targets[held, k])
    return out


def utility_values(name: str, predictions: Tensor, labels: Tensor) -> list[float]:
    """Per query, for a set that holds at least one row."""
    values = []
    for outputs, label in zip(predictions.tolist(), labels.tolist(), strict=True):
        others = max(value for k, value in enumerate(outputs) if k != label)
        if name == "margin":
            values.append(min(1.0, max(-1.0, outputs[label] - others)))
        elif name == "accuracy":
            values.append(float(outputs[label] > others))
        else:
            values.append(outputs[label] - math.log(sum(math.exp(value) for value in outputs)))
    return values


def empty_value(name: str, classes: int) -> float:
    return {"margin": 0.0, "accuracy": 1 / classes}.get(name, -math.log(classes))


def semivalues(
    rows: int, utility: Callable[[tuple[int, ...]], np.ndarray], size_weight: Callable[[int], float]
) -> np.ndarray:
    """sum over S without i of size_weight(|S|) (U(S + i) - U(S)), by all subsets."""
    table = {
        subset: utility(subset) for size in range(rows + 1) for subset in itertools.combinations(range(rows), size)
    }
    values = []
    for row in range(rows):
        others = [other for other in range(rows) if other != row]
        value = 0.0
        for size in range(rows):
            for subset in itertools.combinations(others, size):
                joined = tuple(sorted((*subset, row)))
                value = value + size_weight(size) * (table[joined] - table[subset])
        values.append(value)
    return np.array(values)
