"""Optimal transport from queries to candidates with a penalty on crowding: the engine of ``tsds`` (Liu et al. 2024).

Nearest candidates per query, a kernel density that tells how crowded each of them is, and the spread of mass over them.
"""

import heapq
from typing import Literal

import numpy as np

from hfdataopt.errors import DataError, MissingDependencyError

BLOCK = 2**23  # squared distances in memory at a time: 64 MB


def nearest(
    queries: np.ndarray, candidates: np.ndarray, count: int, search: Literal["exact", "faiss"] = "exact"
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (Euclidean, ascending) and positions ``[queries, count]`` of the nearest candidates of each query.

    Args:
        queries: ``[queries, d]``.
        candidates: ``[candidates, d]``.
        search: ``exact`` compares all pairs in float64, equal distances in the order of candidates; ``faiss`` takes a flat index,
            which compares all pairs too, in float32, so that distances below some 1e-3 of the norm are noise.
    """
    if search == "faiss":
        return _nearest_faiss(queries, candidates, count)
    distances = np.empty((len(queries), count))
    positions = np.empty((len(queries), count), dtype=np.int64)
    step = max(1, BLOCK // len(candidates))
    for start in range(0, len(queries), step):
        squares = _squares(queries[start : start + step], candidates)
        for row, square in enumerate(squares, start):
            limit = np.partition(square, count - 1)[count - 1]
            found = np.flatnonzero(square <= limit)
            positions[row] = found[np.argsort(square[found], kind="stable")[:count]]
            distances[row] = np.sqrt(square[positions[row]])
    return distances, positions


def nearest_distance(candidates: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """``[candidates]``, the distance from each candidate to its nearest query."""
    step = max(1, BLOCK // len(queries))
    blocks = [_squares(candidates[i : i + step], queries).min(axis=1) for i in range(0, len(candidates), step)]
    return np.sqrt(np.concatenate(blocks))


def kernel_density(
    points: np.ndarray, sigma: float, count: int, search: Literal["exact", "faiss"] = "exact"
) -> np.ndarray:
    """``[points]``, the sum over the ``count`` nearest points, itself among them, of ``max(0, 1 - d^2 / sigma^2)``.

    It is 1 for a point with none within ``sigma``, and n for each of n copies; ``sigma=0`` makes it 1 everywhere.
    """
    if sigma == 0:
        return np.ones(len(points))
    count = min(count, len(points))
    if search == "faiss":
        squares = _nearest_faiss(points, points, count)[0] ** 2
        return np.maximum(np.maximum(1 - squares / sigma**2, 0).sum(axis=1), 1)
    density = np.empty(len(points))
    step = max(1, BLOCK // len(points))
    for start in range(0, len(points), step):
        block = points[start : start + step]
        squares = _squares(block, points)
        squares[np.arange(len(block)), np.arange(start, start + len(block))] = 0
        kernel = np.maximum(1 - squares / sigma**2, 0)
        if count < len(points):
            kernel = -np.partition(-kernel, count - 1, axis=1)[:, :count]
        density[start : start + step] = kernel.sum(axis=1)
    return density


def spread(distances: np.ndarray, density: np.ndarray, alpha: float, scale: float) -> np.ndarray:
    """``[queries, K]``, the mass that each query puts on its K nearest candidates; ``1 / M`` per query.

    An exact solution of the linear program ::

        minimise    alpha / scale * sum_jk mass_jk * distance_jk  +  (1 - alpha) * M * t
        subject to  sum_k mass_jk = 1 / M,   mass_jk >= 0,   density_jk * mass_jk <= t  for all k but the last,
                    t >= 1 / (M * S),   S = max_j sum_k 1 / density_jk

    in the masses and ``t``. The last of the K neighbours has no limit: it stands for all that lie farther. With K = N, all
    candidates, the limit holds for it as well and this is the problem over all pairs. Its objective is then the paper's, whose
    second term is ``(1 - alpha) * M * max |density * mass - 1 / (M * S)|``, but for the constant ``(1 - alpha) / S``, as long as
    ``t >= 2 / (M * S)``: unless mass is spread over more than half of all candidates.

    With ``t = 1 / (M * s)`` the slope of the transport cost is constant between moments at which a neighbour fills up: a query
    whose first k neighbours are full moves mass on to the next at the rate ``sum_(i<=k) (d_(k+1) - d_i) / density_i``. So ``s``
    grows from one such moment to the next (a heap over queries) until ``alpha / scale`` times the rates reaches ``(1 - alpha) * M``.

    Args:
        distances: ``[queries, K]`` ascending.
        density: ``[queries, K]`` of those candidates.
        alpha: weight of the transport cost; 1 gives all mass to the nearest neighbours, 0 spreads it as evenly as it goes.
        scale: what the transport cost is divided by (C in the paper).
    """
    queries, width = distances.shape
    share = 1 / density
    if width == 1:
        return np.full((queries, 1), 1 / queries)
    filling = [0] * queries  # which neighbour of each query fills up next
    rates = np.zeros(queries)
    weighted = distances[:, 0] * share[:, 0]  # sum of d_i / density_i over the full ones and the one that is filling
    waiting = [(float(share[j, 0]), j) for j in range(queries)]
    heapq.heapify(waiting)
    total = 0.0
    while waiting:
        s, j = heapq.heappop(waiting)
        k = filling[j]
        total -= rates[j]
        rates[j] = distances[j, k + 1] * s - weighted[j]
        total += rates[j]
        if alpha * total >= (1 - alpha) * queries * scale:
            break
        if k + 2 < width:
            filling[j] = k + 1
            heapq.heappush(waiting, (s + float(share[j, k + 1]), j))
            weighted[j] += distances[j, k + 1] * share[j, k + 1]
    else:
        s = float(share.sum(axis=1).max())
    room = share / (queries * s)
    room[:, -1] = np.inf
    before = np.cumsum(room[:, :-1], axis=1)
    left = 1 / queries - np.concatenate([np.zeros((queries, 1)), before], axis=1)
    mass = np.minimum(np.maximum(left, 0), room)
    mass[mass < 1e-12 / queries] = 0  # rounding of a neighbour that is exactly full
    return mass


def _squares(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``[left, right]`` float64, squared Euclidean distances."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    squares = (left * left).sum(axis=1)[:, None] + (right * right).sum(axis=1) - 2 * (left @ right.T)
    return np.maximum(squares, 0, out=squares)


def _nearest_faiss(queries: np.ndarray, candidates: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "tsds: search='faiss' needs faiss; pip install 'hfdataopt[faiss]', or leave search='exact'"
        ) from error
    index = faiss.IndexFlatL2(candidates.shape[1])
    index.add(np.ascontiguousarray(candidates, dtype=np.float32))
    squares, positions = index.search(np.ascontiguousarray(queries, dtype=np.float32), count)
    if (positions < 0).any():
        raise DataError("tsds: faiss found fewer neighbours than there are; are the vectors finite?")
    return np.sqrt(np.maximum(squares.astype(np.float64), 0)), positions
