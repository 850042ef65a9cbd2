"""Choosing rows that differ: facility location and farthest-first, over rows that are given best first."""

import heapq

import numpy as np

from hfdataopt.errors import DataError

BLOCK = 1024  # rows of similarities made at a time
MOST = 40_000  # candidates: 6.4 GB of similarities


def facility_location(vectors: np.ndarray, count: int) -> np.ndarray:
    """Positions of ``count`` rows that cover all rows best by cosine, in the order they were chosen.

    The objective is the sum over all rows of the largest similarity ``(1 + cosine) / 2`` to a chosen row. Each step takes the row
    that raises it most, the first of several that raise it equally; gains are looked up lazily (Minoux 1978), which changes nothing.

    Args:
        vectors: ``[rows, d]``; a vector of zeros is orthogonal to all others and similar to itself.

    Raises:
        DataError: there are too many rows for the matrix of similarities, or a vector is not finite.
    """
    if len(vectors) > MOST:
        raise DataError(
            f"diverse: {len(vectors)} candidates are too many for facility-location, whose memory grows with their square "
            f"(at most {MOST}); lower candidates=, or take method='farthest-first'"
        )
    similarity = _similarities(_unit(vectors))
    covered = np.zeros(len(similarity), dtype=np.float32)

    def gain(position: int) -> float:
        return float(np.maximum(similarity[position] - covered, 0).sum(dtype=np.float64))

    waiting = [(-gain(position), position) for position in range(len(similarity))]
    heapq.heapify(waiting)
    chosen: list[int] = []
    while len(chosen) < count:
        _, position = heapq.heappop(waiting)
        now = (-gain(position), position)
        if waiting and now > waiting[0]:  # gains only shrink: what was first may not be it any more
            heapq.heappush(waiting, now)
            continue
        chosen.append(position)
        np.maximum(covered, similarity[position], out=covered)
    return np.array(chosen)


def farthest_first(vectors: np.ndarray, count: int) -> np.ndarray:
    """Positions of ``count`` rows: the first one, then always the row farthest (by cosine) from all chosen ones.

    Of several rows equally far the first is taken.

    Args:
        vectors: ``[rows, d]``; a vector of zeros is orthogonal to all others.

    Raises:
        DataError: a vector is not finite.
    """
    unit = _unit(vectors)
    closest = np.full(len(unit), -np.inf, dtype=np.float32)
    chosen = [0]
    while len(chosen) < count:
        np.maximum(closest, (unit @ unit[chosen[-1]]).astype(np.float32), out=closest)
        closest[chosen[-1]] = np.inf
        chosen.append(int(closest.argmin()))
    return np.array(chosen)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, or of zeros."""
    exact = np.asarray(vectors, dtype=np.float64)
    if not np.isfinite(exact).all():
        broken = int((~np.isfinite(exact).all(axis=1)).sum())
        raise DataError(f"diverse: the representations of {broken} of {len(exact)} candidates are not finite numbers")
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(norms > 0, norms, 1)


def _similarities(unit: np.ndarray) -> np.ndarray:
    """``[rows, rows]`` float32 ``(1 + cosine) / 2``, rounded from float64 so that equal rows have equal similarities."""
    similarity = np.empty((len(unit), len(unit)), dtype=np.float32)
    for start in range(0, len(unit), BLOCK):
        similarity[start : start + BLOCK] = (1 + unit[start : start + BLOCK] @ unit.T) / 2
    np.fill_diagonal(similarity, 1)
    return np.clip(similarity, 0, 1, out=similarity)
