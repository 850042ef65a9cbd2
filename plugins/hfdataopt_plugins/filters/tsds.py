"""TSDS: mass carried from the target's rows to those of the dataset by optimal transport, kept from crowding (Liu et al. 2024)."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.errors import DataError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.selection.filter import WholeFilter
from hfdataopt.selection.source import Batch, Source, check_columns
from hfdataopt.selection.transport import kernel_density, nearest, nearest_distance, spread

NO_MASS = -100.0  # below the logarithm of any mass


@dataclass(frozen=True)
class TSDS(WholeFilter):
    """The logarithm of the mass that a row receives from the target's rows, which spread equal masses over their neighbours.

    So ``sample(k=...)`` at temperature 1 draws rows in proportion to their mass, without replacement and seeded (the authors draw
    with replacement), and ``top`` keeps those of largest mass. A row without mass scores -100 minus its distance to the nearest
    row of the target: it comes after all others, and ``sample`` takes it only when these are used up.

    Rows of equal vectors share their mass evenly. Memory is that of the vectors, and of ``max_k`` neighbours per row of the target.

    Args:
        model: encoder of the texts: hub id or folder of an encoder or causal LM of transformers, or of a model of
            sentence-transformers.
        embeddings: in its place, the column that holds a vector per row, in the dataset and the target.
        pooling: where the encoder's last hidden state is read (``hfdataopt.selection.encoders.encode``).
        max_length: tokens of a text that are read; None for as many as the model can.
        alpha: weight of the transport cost against spreading: 1 gives all mass to nearest neighbours.
        scale: what the cost is divided by (C in the paper).
        sigma: distance below which rows count as near-duplicates, which share one place; 0 for none.
        max_k: neighbours of a row of the target that are looked at; None for 5,000, but at most a tenth of the rows.
        kde_k: near-duplicates of a row that are looked at; None for 1,000, but at most a tenth of the rows.
        search: ``exact`` compares all pairs in float64; ``faiss`` takes its flat index, which also compares all, in float32.
        normalize: bring vectors to length one, so that ``sigma`` and ``scale`` mean the same for every encoder.
    """

    name: ClassVar[str] = "tsds"
    meaning: ClassVar[str] = "more mass from the target by optimal transport (its logarithm)"
    needs_target: ClassVar[bool] = True

    model: str | os.PathLike[str] | None = None
    embeddings: str | None = None
    pooling: Literal["auto", "mean", "first", "last"] = "auto"
    max_length: int | None = None
    alpha: float = 0.5
    scale: float = 5.0
    sigma: float = 0.75
    max_k: int | None = None
    kde_k: int | None = None
    search: Literal["exact", "faiss"] = "exact"
    normalize: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", at_least=0, at_most=1)
        check_range(self, "scale", above=0)
        check_range(self, "sigma", at_least=0)
        check_range(self, "max_k", at_least=2)
        check_range(self, "kde_k", at_least=1)
        check_range(self, "max_length", at_least=1)
        if (self.model is None) == (self.embeddings is None):
            raise OptionError(
                f"{self.name}: give model=, an encoder of texts, or embeddings=, a column of vectors; got model={self.model!r}, "
                f"embeddings={self.embeddings!r}"
            )
        unread = [name for name in ("text", "max_length") if getattr(self, name) is not None]
        unread += ["pooling"] if self.pooling != "auto" else []
        if self.embeddings is not None and unread:
            raise OptionError(f"{self.name}: {unread[0]}= is not read when embeddings= are given; drop one")

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        if self.embeddings is None:
            return super().reads(columns, what)
        check_columns((self.embeddings,), columns, self.name, what)
        return (self.embeddings,)

    def vectors(self, batch: Batch) -> np.ndarray:
        """``[rows, d]`` float32, of length one with ``normalize``; NaN for a row without text, tokens or vector."""
        if self.model is not None:
            from hfdataopt.selection.encoders import encode

            found = encode(batch.texts, self.model, pooling=self.pooling, max_length=self.max_length, who=self.name)
        else:
            assert self.embeddings is not None
            found = batch.vectors(self.embeddings)
        found = np.where(batch.missing[:, None], np.float32(np.nan), found)
        if not self.normalize:
            return found
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.where(lengths > 0, lengths, 1)

    def score_all(self, pool: Source, target: Source | None) -> np.ndarray:
        assert target is not None
        queries, candidates = self._read(target), self._read(pool)
        usable = np.isfinite(candidates).all(axis=1)
        if not np.isfinite(queries).all():
            bad = int((~np.isfinite(queries).all(axis=1)).sum())
            raise DataError(
                f"{self.name}: {bad} of {len(queries)} rows of the target have no text or vector; leave them out"
            )
        if queries.shape[1] != candidates.shape[1]:
            raise DataError(
                f"{self.name}: vectors of the target have length {queries.shape[1]}, those of the dataset {candidates.shape[1]}"
            )
        scores = np.full(len(candidates), np.nan)
        if usable.any():
            scores[usable] = self._log_mass(queries, candidates[usable])
        return scores

    def _read(self, source: Source) -> np.ndarray:
        blocks = [self.vectors(batch) for batch in source.batches()]
        width = max(block.shape[1] for block in blocks)  # a batch without any vector does not know its width
        blocks = [block if np.isfinite(block).any() else np.full((len(block), width), np.nan) for block in blocks]
        if len({block.shape[1] for block in blocks}) > 1:
            raise DataError(f"{self.name}: vectors of {source.what} differ in length; they must all have the same")
        return np.concatenate(blocks).astype(np.float32, copy=False)

    def _log_mass(self, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """``[candidates]`` float64."""
        rows = len(candidates)
        width = min(rows, max(2, min(5000, rows // 10)) if self.max_k is None else self.max_k)
        distances, positions = nearest(queries, candidates, width, self.search)
        reached, where = np.unique(positions, return_inverse=True)
        crowd = max(1, min(1000, rows // 10)) if self.kde_k is None else self.kde_k
        density = kernel_density(candidates[reached], self.sigma, crowd, self.search)
        plan = spread(distances, density[where.reshape(positions.shape)], self.alpha, self.scale)
        apart = np.bincount(positions.ravel(), weights=plan.ravel(), minlength=rows)
        _, kind, copies = np.unique(candidates, axis=0, return_inverse=True, return_counts=True)
        mass = (np.bincount(kind.ravel(), weights=apart) / copies)[kind.ravel()]
        without = mass == 0
        scores = np.log(np.where(without, 1, mass))
        if without.any():
            scores[without] = NO_MASS - nearest_distance(candidates[without], queries)
        return scores


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(TSDS)
