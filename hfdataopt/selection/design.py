"""D-optimal design: which observations of a linear model say most together about all its weights."""

import heapq

import numpy as np

from hfdataopt.errors import DataError


def d_optimal(
    features: np.ndarray, count: int, *, weights: np.ndarray | None = None, ridge: float = 1.0, batch: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy maximisation of ``log det(ridge * I + sum of w_i phi_i phi_i')`` over the rows that are taken.

    Within 1 - 1/e of the best gain over no rows (Nemhauser et al. 1978: it is monotone and submodular). A gain is ``log(1 + w phi'
    V^-1 phi)`` and only falls as rows are taken, so old gains bound new ones and only rows at the head of the queue are
    computed again, ``batch`` at a time; V^-1 follows by rank-one updates (Sherman and Morrison 1950).

    Args:
        features: ``[rows, d]``.
        count: rows to take.
        weights: ``[rows]``, not negative; None for 1.
        ridge: of the prior, above 0.

    Returns:
        ``order [count]``, the rows as they were taken, of equal ones the first; and ``gains [rows]``: of a row that was taken
        its gain then, of any other its gain now.

    Raises:
        DataError: features that are not numbers.
    """
    rows = np.asarray(features, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise DataError(f"d_optimal: row {int((~np.isfinite(rows)).any(1).argmax())} of the features is not finite")
    if weights is not None:
        rows = rows * np.sqrt(np.asarray(weights, dtype=np.float64))[:, None]
    inverse = np.eye(rows.shape[1]) / ridge
    gains = np.log1p(np.einsum("ij,ij->i", rows, rows) / ridge)
    computed = np.zeros(len(rows), dtype=np.int64)  # how many rows had been taken
    queue = [(-gain, row) for row, gain in enumerate(gains.tolist())]
    heapq.heapify(queue)
    order: list[int] = []
    while len(order) < count:
        row = queue[0][1]
        if computed[row] < len(order):
            stale: list[int] = []
            while queue and len(stale) < batch and computed[queue[0][1]] < len(order):
                stale.append(heapq.heappop(queue)[1])
            gains[stale] = _gains(rows[stale], inverse)
            computed[stale] = len(order)
            for again in stale:
                heapq.heappush(queue, (-float(gains[again]), again))
            continue
        heapq.heappop(queue)
        order.append(row)
        step = inverse @ rows[row]
        inverse -= np.outer(step, step) / (1 + rows[row] @ step)
    left = np.array([row for _, row in queue if computed[row] < len(order)], dtype=np.int64)
    for start in range(0, len(left), 4096):
        part = left[start : start + 4096]
        gains[part] = _gains(rows[part], inverse)
    return np.array(order, dtype=np.int64), gains


def _gains(rows: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """``[rows]``: what each would add now."""
    return np.log1p(np.einsum("ij,ij->i", rows @ inverse, rows))


def log_det(features: np.ndarray, ridge: float) -> float:
    """``log det(ridge * I + features' features)``, from scratch."""
    return float(np.linalg.slogdet(ridge * np.eye(features.shape[1]) + features.T @ features)[1])
