"""The rows of a feature store that are nearest to a query: all pairs in numpy, or an index of faiss."""

import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from hfdataopt.errors import DataError, MissingDependencyError, OptionError
from hfdataopt.gradients import GradientStore

BLOCK = 4096  # rows read at a time


class Neighbours(NamedTuple):
    """Per query the nearest rows, nearest first: ids ``[queries][k]``, positions ``[queries, k]`` and values ``[queries, k]``."""

    row_ids: list[list[Any]]
    positions: np.ndarray
    values: np.ndarray


def nearest(
    store: "GradientStore | str | os.PathLike[str] | np.ndarray",
    queries: np.ndarray,
    k: int,
    *,
    by: Literal["product", "cosine", "distance"] = "cosine",
    search: Literal["exact", "faiss"] = "exact",
    factory: str = "Flat",
    array: str = "features",
) -> Neighbours:
    """The ``k`` rows with the largest inner product or cosine, or the least Euclidean distance, of each query.

    Args:
        store: a store or its folder (gradient features, embeddings), read in blocks; or an array ``[rows, ...]``.
        queries: ``[queries, ...]`` of the same features, such as another store's.
        search: ``exact`` compares all pairs in float64, equals in the order of rows. ``faiss`` works in float32 and holds the
            features in memory.
        factory: what faiss builds, ``Flat`` (all pairs too) or an approximate index such as ``IVF64,Flat`` or ``HNSW32``.
        array: of the store.

    Raises:
        OptionError: ``k`` is not from 1 to the number of rows. DataError: features differ in size, or are not finite.
    """
    if isinstance(store, str | os.PathLike):
        store = GradientStore.open(store)
    ids: Any = store.row_ids if isinstance(store, GradientStore) else None
    features = store.read(array) if isinstance(store, GradientStore) else np.asarray(store)
    rows = len(features)
    if isinstance(k, bool) or not 1 <= k <= rows:
        raise OptionError(f"nearest: k={k} must be a whole number from 1 to {rows}, the number of rows")
    if search == "exact" and factory != "Flat":
        raise OptionError(f"nearest: factory={factory!r} is of search='faiss'; leave it out")
    wanted = _vectors(np.asarray(queries), by, "queries")
    blocks = (
        (start, _vectors(np.asarray(features[start : start + BLOCK]), by, "store")) for start in range(0, rows, BLOCK)
    )
    positions, values = (_exact if search == "exact" else _faiss)(blocks, wanted, k, by, factory)
    named = [[place if ids is None else ids[place] for place in row] for row in positions.tolist()]
    return Neighbours(named, positions, values)


def _vectors(features: np.ndarray, by: str, what: str) -> np.ndarray:
    """``[n, d]`` float64, of norm 1 for cosines (0 where the features are 0)."""
    flat = features.reshape(len(features), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        bad = int((~np.isfinite(flat).all(axis=1)).sum())
        raise DataError(f"nearest: {bad} row(s) of the {what} are not finite; leave them out")
    if by == "cosine":
        norms = np.linalg.norm(flat, axis=1, keepdims=True)
        flat = flat / np.where(norms > 0, norms, 1)
    return flat


def _check_width(rows: np.ndarray, wanted: np.ndarray) -> None:
    if rows.shape[1] != wanted.shape[1]:
        raise DataError(
            f"nearest: rows of the store have {rows.shape[1]} features and the queries {wanted.shape[1]}; both must come from the "
            "same model, layers and basis"
        )


def _exact(
    blocks: Iterator[tuple[int, np.ndarray]], wanted: np.ndarray, k: int, by: str, factory: str
) -> tuple[np.ndarray, np.ndarray]:
    sign = -1.0 if by == "distance" else 1.0
    best = np.empty((len(wanted), 0))
    places = np.empty((len(wanted), 0), dtype=np.int64)
    for start, rows in blocks:
        _check_width(rows, wanted)
        values = wanted @ rows.T
        if by == "distance":
            squares = (wanted**2).sum(1)[:, None] + (rows**2).sum(1) - 2 * values
            values = np.sqrt(np.maximum(squares, 0))
        here = np.broadcast_to(np.arange(start, start + len(rows)), values.shape)
        best, places = np.concatenate([best, sign * values], 1), np.concatenate([places, here], 1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, places = np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)
    return places, sign * best


def _faiss(
    blocks: Iterator[tuple[int, np.ndarray]], wanted: np.ndarray, k: int, by: str, factory: str
) -> tuple[np.ndarray, np.ndarray]:
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "nearest: search='faiss' needs faiss; pip install 'hfdataopt[faiss]', or leave search='exact'"
        ) from error
    metric = faiss.METRIC_L2 if by == "distance" else faiss.METRIC_INNER_PRODUCT
    try:
        index = faiss.index_factory(wanted.shape[1], factory, metric)
    except RuntimeError as error:
        raise OptionError(f"nearest: faiss knows no index factory={factory!r}") from error
    parts = []
    for _, rows in blocks:
        _check_width(rows, wanted)
        part = np.ascontiguousarray(rows, dtype=np.float32)
        if index.is_trained:
            index.add(part)
        else:
            parts.append(part)
    if parts:
        whole = np.concatenate(parts)
        index.train(whole)
        index.add(whole)
    values, places = index.search(np.ascontiguousarray(wanted, dtype=np.float32), k)
    if (places < 0).any():
        raise DataError(
            f"nearest: factory={factory!r} found fewer than {k} rows for a query; take a smaller k or 'Flat'"
        )
    values = values.astype(np.float64)
    return places, np.sqrt(np.maximum(values, 0)) if by == "distance" else values
