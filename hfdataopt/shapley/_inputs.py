"""Bad input is found here, once, before any numerical work: kernels, labels and targets become float64 / int64 tensors.

Members: `check_kernels`, `check_kernel`, `check_labels`, `check_query_labels`, `check_targets`, `one_hot`.
Each raises `DataError` naming the argument, what arrived and what to do.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfdataopt.errors import DataError

SYMMETRY_TOLERANCE = 1e-5
"""Largest |K - K^T| accepted, relative to the largest |K|: float32 Gram matrices stay well below it."""


def as_float64(name: str, value: Any) -> Tensor:
    """Real numbers as a float64 tensor, sharing memory where it can; not finite or not numbers is a `DataError`."""
    if value is None:
        raise DataError(f"{name} is None; pass an array of real numbers")
    try:
        with warnings.catch_warnings():
            # torch warns about arrays that are not writable, such as memory maps; nothing here writes to them.
            warnings.simplefilter("ignore", UserWarning)
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.ascontiguousarray(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not an array of real numbers: {error}") from error
    if tensor.is_complex():
        raise DataError(f"{name} holds complex numbers ({tensor.dtype}); pass real numbers")
    # Only CPUs and CUDA devices have float64 for sure.
    tensor = (tensor if tensor.is_cuda else tensor.cpu()).detach().to(torch.float64)
    # A sum is not finite as soon as one entry is not, and needs no mask of the kernel's size; it may also overflow.
    if not torch.isfinite(tensor.sum()) and not bool(torch.isfinite(tensor).all()):
        where = [int(i) for i in torch.nonzero(~torch.isfinite(tensor))[0]]
        raise DataError(f"{name} holds {tensor[tuple(where)].item()} at {where}; every entry must be finite")
    return tensor


def check_kernel(kernel: Any) -> Tensor:
    """`[n, n]` or one per class `[c, n, n]`, as `[k, n, n]` with k = 1 or c."""
    tensor = as_float64("kernel", kernel)
    shape = list(tensor.shape)
    if tensor.ndim not in (2, 3) or shape[-1] != shape[-2]:
        raise DataError(f"kernel has shape {shape}; pass [n, n], or [c, n, n] with one kernel per class")
    if 0 in shape:
        raise DataError(f"kernel has shape {shape}: the pool is empty; pass at least two rows")
    if tensor.ndim == 2:
        tensor = tensor[None]
    scale, gap = 0.0, 0.0
    for one in tensor:
        for start in range(0, one.shape[0], 512):
            rows = one[start : start + 512]
            scale = max(scale, float(rows.abs().max()))
            gap = max(gap, float((rows - one[:, start : start + 512].T).abs().max()))
    if gap > SYMMETRY_TOLERANCE * scale:
        raise DataError(
            f"kernel of shape {shape} is not symmetric: |K - K^T| reaches {gap:.3g}; pass pool x pool products"
        )
    return tensor


def check_kernels(kernel: Any, cross_kernel: Any) -> tuple[Tensor, Tensor]:
    """The pool's kernel as `[k, n, n]` and the products with the queries as `[k, n, t]`, k = 1 or the classes."""
    pool = check_kernel(kernel)
    cross = as_float64("cross_kernel", cross_kernel)
    arrived = list(cross.shape)
    if cross.ndim == 2 and pool.shape[0] == 1:
        cross = cross[None]
    wanted = "[n, t]" if pool.shape[0] == 1 else "[c, n, t]"
    if cross.ndim != 3 or cross.shape[:2] != pool.shape[:2]:
        raise DataError(
            f"cross_kernel has shape {arrived} beside {pool.shape[0]} kernel(s) of {pool.shape[1]} rows; "
            f"pass {wanted}: one row per pool row, one column per query"
        )
    if cross.shape[2] == 0:
        raise DataError(f"cross_kernel has shape {arrived}: there are no queries; pass at least one")
    return pool, cross.to(pool.device)


def check_labels(name: str, labels: Any, rows: int, classes: int | None = None) -> Tensor:
    """Class indices `[rows]` as int64; `classes` is the number of classes where it is known."""
    if labels is None:
        raise DataError(f"{name} is None; pass {rows} class indices")
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != (rows,):
        raise DataError(f"{name} has shape {list(array.shape)}; pass one class index per row, {rows} in all")
    if array.dtype == object:
        missing = [i for i, label in enumerate(array) if label is None]
        if missing:
            raise DataError(
                f"{name} is missing (None) at row {missing[0]} and {len(missing) - 1} more; drop these rows"
            )
    if array.dtype.kind == "f" and np.isnan(array).any():
        missing = np.flatnonzero(np.isnan(array)).tolist()
        raise DataError(f"{name} is missing (NaN) at row {missing[0]} and {len(missing) - 1} more; drop these rows")
    if array.dtype.kind not in "iub":
        raise DataError(f"{name} has type {array.dtype}, for example {array[0]!r}; pass integers 0 .. c - 1")
    top = np.inf if classes is None else classes
    wrong = np.flatnonzero((array < 0) | (array >= top)).tolist()
    if wrong:
        raise DataError(f"{name} is {array[wrong[0]]} at row {wrong[0]}, out of range; pass integers 0 .. c - 1")
    return torch.as_tensor(array.astype(np.int64))


def check_query_labels(query_labels: Any, queries: int, labels: Tensor) -> Tensor:
    """Labels of the queries `[t]`, each of which some pool row has too."""
    checked = check_labels("query_labels", query_labels, queries)
    present = set(labels.tolist())
    absent = sorted(set(checked.tolist()) - present)
    if absent:
        raise DataError(
            f"query_labels holds class {absent[0]}, which no pool row has (the pool has {sorted(present)}); "
            "drop these queries or add rows of that class"
        )
    return checked


def check_pool_labels(labels: Any, kernel: Tensor) -> tuple[Tensor, int]:
    """Labels of the pool `[n]` with at least two classes, and the number of classes c."""
    kernels, rows = kernel.shape[0], kernel.shape[1]
    checked = check_labels("labels", labels, rows, kernels if kernels > 1 else None)
    present = sorted(set(checked.tolist()))
    if len(present) == 1:
        raise DataError(f"labels holds one class only ({present[0]}) in {rows} rows; attribution needs at least two")
    return checked, kernels if kernels > 1 else present[-1] + 1


def check_targets(targets: Any, kernel: Tensor) -> Tensor:
    """Regression targets `[n, c]`, on the kernel's device."""
    tensor = as_float64("targets", targets)
    kernels, rows = kernel.shape[0], kernel.shape[1]
    if tensor.ndim != 2 or tensor.shape[0] != rows or tensor.shape[1] == 0:
        raise DataError(f"targets has shape {list(tensor.shape)}; pass [n, c] with n = {rows} rows as the kernel")
    if kernels not in (1, tensor.shape[1]):
        raise DataError(f"targets has {tensor.shape[1]} columns but there are {kernels} kernels; pass one per class")
    return tensor.to(kernel.device)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """`[n, c]` of zeros and ones, the regression targets of class labels (not centred, no bias)."""
    return torch.nn.functional.one_hot(labels, classes).to(torch.float64)
