"""Choosing rows that differ: facility location and farthest-first, over rows that are given best first."""

import heapq

import numpy as np

from hfdataopt.errors import DataError

BLOCK = 1024  # rows of similarities in memory at a time, beside the n x n matrix of float32
MOST = 40_000  # candidates: 6.4 GB of similarities


def facility_location(vectors: np.ndarray, count: int) -> np.ndarray:
    """Positions of ``count`` rows that cover all rows best by cosine, chosen greedily with lazy evaluation (Minoux 1978).

    The objective is the sum over all rows of the largest similarity ``(1 + cosine) / 2`` to a chosen row.
    """
    if len(vectors) > MOST:
        raise DataError(
            f"diverse: {len(vectors)} candidates are too many for facility-location ({MOST}); lower candidates="
        )
    unit = _unit(vectors).astype(np.float32)
    similarity = (unit @ unit.T + 1) / 2
    covered = np.zeros(len(unit), dtype=np.float32)
    waiting = [(-float(gain), position) for position, gain in enumerate(similarity.sum(axis=1, dtype=np.float64))]
    heapq.heapify(waiting)
    chosen: list[int] = []
    while len(chosen) < count:
        _, position = heapq.heappop(waiting)
        gain = float(np.maximum(similarity[position] - covered, 0).sum(dtype=np.float64))
        if waiting and (-gain, position) > waiting[0]:  # gains only shrink: what was first may not be it any more
            heapq.heappush(waiting, (-gain, position))
            continue
        chosen.append(position)
        np.maximum(covered, similarity[position], out=covered)
    return np.array(chosen)


def farthest_first(vectors: np.ndarray, count: int) -> np.ndarray:
    """Positions of ``count`` rows: the first one, then always the row farthest (by cosine) from all chosen ones."""
    unit = _unit(vectors)
    nearest = np.full(len(unit), -np.inf)
    chosen = [0]
    while len(chosen) < count:
        np.maximum(nearest, unit @ unit[chosen[-1]], out=nearest)
        nearest[chosen[-1]] = np.inf
        chosen.append(int(nearest.argmin()))
    return np.array(chosen)


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, dtype=np.float64) / np.where(norms > 0, norms, 1)
