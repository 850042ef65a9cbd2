"""Influence from stored gradient features: closed forms of ``(H + damping)^{-1}``, block by block.

Everything here reads the pool row block by row block, so that its features ``[n, d]`` may be memory-mapped, and turns
the query vectors ``[q, d]`` into ``(H + damping)^{-1} query``; influence is then an inner product with each pool row.
Rows of the pool that are not finite do not enter H.

- ``identity``: H = I, plain inner products
- ``datainf``: per block the mean over rows of ``(g g^T + lambda I)^{-1}`` (Kwon et al. 2024, equation 5)
- ``ekfac``: a diagonal H in the Kronecker-factored eigenbasis, each entry the pool's mean square of that feature (George
  et al. 2018, equation 10; Grosse et al. 2023); right only for features in an ``eigen`` basis

With a basis that was cut to fewer floats, H and influence are those of the kept directions; what lies outside is left
out, and the mean that the damping is relative to is one over kept entries, larger than over all.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from hfdataopt.errors import DataError, OptionError

FeatureSolver = Literal["identity", "datainf", "ekfac"]
FEATURE_SOLVERS = ("identity", "datainf", "ekfac")
# Bytes of the pool's features that are read at once, and entries of them that are in float64 at once: few enough for a cache.
ROW_BLOCK_BYTES = 2**27
CACHED_ENTRIES = 2**20


class Features(Protocol):
    """``[rows, d]`` or ``[rows, columns, d]`` (laid side by side): an array, a tensor, or a memory-mapped array."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: slice, /) -> Any: ...


def influence(
    pool: Features, queries: Features, offsets: Sequence[int], solver: FeatureSolver = "ekfac", damping: float = 0.1
) -> Tensor:
    """``query^T (H + damping)^{-1} row`` for every pool row and query, ``[n, q]`` float64; higher = more helpful.

    Arguments as in :func:`inverse_products`. NaN for a row or a query that is not finite.
    """
    return inner_products(pool, inverse_products(pool, queries, offsets, solver, damping))


def inner_products(pool: Features, vectors: Tensor) -> Tensor:
    """Inner products of all pool rows with ``vectors [q, d]``: ``[n, q]`` float64."""
    products = [vectors.new_zeros(0, len(vectors))]
    for block in _blocks(pool):
        step = max(1, CACHED_ENTRIES // len(block))
        total = vectors.new_zeros(len(block), len(vectors))
        for start in range(0, block.shape[1], step):
            columns = slice(start, start + step)
            total.addmm_(block[:, columns].double(), vectors[:, columns].T)
        products.append(total)
    result = torch.cat(products)
    return result.masked_fill(~torch.isfinite(result), float("nan"))


def inverse_products(
    pool: Features, queries: Features, offsets: Sequence[int], solver: FeatureSolver = "ekfac", damping: float = 0.1
) -> Tensor:
    """``(H + damping)^{-1} query`` for every query, ``[q, d]`` float64.

    Args:
        pool: gradients of the loss of the pool's rows, ``[n, d]``: H is made of them.
        queries: ``[q, d]``, whatever is to be explained, in the same basis.
        offsets: where blocks (layers) begin and end, ``[blocks + 1]``, from 0 to d: ``Basis.offsets``.
        damping: in units of each block's mean eigenvalue, which is the mean over pool rows and entries of the squared
            gradient. 0.1 in the papers.
    """
    if solver not in FEATURE_SOLVERS:
        raise OptionError(
            f"influence: solver={solver!r} arrived; on features it is one of {', '.join(FEATURE_SOLVERS)}"
        )
    if not damping > 0:
        raise OptionError(f"influence: damping={damping!r} arrived; it must be above 0, or H has no inverse")
    vectors = torch.cat(list(row_blocks(queries)))
    if offsets[0] != 0 or offsets[-1] != vectors.shape[1]:
        raise DataError(
            f"influence: block offsets from {offsets[0]} to {offsets[-1]} arrived for vectors of {vectors.shape[1]} "
            "entries; pass the offsets of the basis that made them"
        )
    if solver == "identity":
        return vectors
    squares, count = mean_squares(pool)
    lambdas = block_damping(squares, offsets, damping)
    if solver == "datainf":
        return _datainf(pool, count, vectors, offsets, lambdas)
    return _divide(vectors, squares + spread(lambdas, offsets))


def mean_squares(pool: Features) -> tuple[Tensor, int]:
    """Mean over finite rows of each squared feature, ``[d]`` float64, and the number of these rows.

    Raises ``DataError`` where there is none.
    """
    total: Tensor | float = 0.0
    count = 0
    for block in _finite_blocks(pool):
        for rows in block.split(max(1, CACHED_ENTRIES // block.shape[1])):
            total = total + rows.double().square_().sum(0)
        count += len(block)
    if not isinstance(total, Tensor) or not count:
        raise DataError(
            "influence: no pool row has a finite gradient, so there is no curvature; look at the pool's rows"
        )
    return total / count, count


def block_damping(squares: Tensor, offsets: Sequence[int], damping: float) -> Tensor:
    """``damping`` times the mean of ``squares [d]`` over each block: ``[blocks]``."""
    return torch.stack([damping * squares[a:b].mean() for a, b in spans(offsets)])


def spread(per_block: Tensor, offsets: Sequence[int]) -> Tensor:
    """One number per block as one per entry: ``[d]``."""
    sizes = torch.tensor([b - a for a, b in spans(offsets)])
    return per_block.repeat_interleave(sizes)


def spans(offsets: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of each block."""
    return list(pairwise(offsets))


def row_blocks(features: Features) -> Iterator[Tensor]:
    """The features in blocks of rows, ``[b, d]`` float64."""
    for block in _blocks(features):
        yield block.double()


def _blocks(features: Features) -> Iterator[Tensor]:
    """The features in blocks of rows, ``[b, d]``, in their own precision."""
    start = 0
    step = 1  # the first row tells how long the rows are
    while start < len(features):
        rows = features[start : start + step]
        part = (rows if isinstance(rows, Tensor) else _in_memory(rows)).flatten(1)
        yield part
        start += step
        step = max(1, ROW_BLOCK_BYTES // (part.element_size() * max(1, part.shape[1])))


def _in_memory(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(rows) if isinstance(rows, np.memmap) or not rows.flags.writeable else rows)


def _finite_blocks(features: Features) -> Iterator[Tensor]:
    for block in _blocks(features):
        if torch.isfinite(block.sum()):
            yield block
        else:
            yield block[torch.isfinite(block).all(1)]


def _datainf(pool: Features, count: int, vectors: Tensor, offsets: Sequence[int], lambdas: Tensor) -> Tensor:
    """``1 / lambda (v - mean_i (v . g_i) / (lambda + |g_i|^2) g_i)`` in each block.

    The mean is summed as ``(V G^T) G [q, d]`` or as ``V (G^T G)`` with ``[d, d]``, whichever is smaller; no ``[n, n]``.
    """
    blocks = spans(offsets)
    sums = [torch.zeros(min(len(vectors), b - a), b - a, dtype=torch.float64) for a, b in blocks]
    for part in _finite_blocks(pool):
        for (a, b), lam, total in zip(blocks, lambdas, sums, strict=True):
            rows = part[:, a:b].double()
            scaled = _divide(rows, (lam + rows.square().sum(1, keepdim=True)).expand_as(rows))
            if len(vectors) <= b - a:
                total += (vectors[:, a:b] @ scaled.T) @ rows
            else:
                total += scaled.T @ rows
    result = torch.empty_like(vectors)
    for (a, b), lam, total in zip(blocks, lambdas, sums, strict=True):
        projected = total if len(vectors) <= b - a else vectors[:, a:b] @ total
        result[:, a:b] = _divide(vectors[:, a:b] - projected / count, lam.expand(b - a))
    return result


def _divide(vectors: Tensor, by: Tensor) -> Tensor:
    """Elementwise; 0 where the divisor is 0: no pool row has a gradient in that block, so none has influence there."""
    return torch.where(by > 0, vectors / by, torch.zeros_like(vectors))
