"""RDS: cosines of a model's representations of rows and of the target's rows (Zhang et al. 2018; as in Xia et al. 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np

from hfdataopt.errors import DataError, OptionError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.selection.encoders import TextPooling, encode, open_encoder, rows_times
from hfdataopt.selection.local_models import LocalModel
from hfdataopt.selection.model_filter import ModelFilter
from hfdataopt.selection.source import Batch, Source, check_columns


@dataclass(frozen=True)
class RDS(ModelFilter):
    """How like a row is to the target's rows, as a model represents them: the cosine, averaged.

    Args:
        model: hub id or folder of an encoder or causal LM of transformers or of a model of sentence-transformers, or a live model
            (the one in training, say).
        embeddings: in its place, a column of vectors in the dataset and the target, e.g. from an earlier pass.
        pooling: where the last hidden state is read: at the ``last`` token as the authors do, the ``mean`` over tokens, the
            ``first``; ``auto`` is the model's own way (sentence-transformers), else ``last`` for a causal model and ``mean`` for others.
        query_group: a column of the target; cosines are averaged over the rows of a group.
        aggregate: over groups, or over the target's rows where they are not grouped; None for the ``max`` over groups (Xia et al.
            2024, section 4.2) and the ``mean`` over rows.
    """

    name: ClassVar[str] = "rds"
    meaning: ClassVar[str] = "like the target, as the model represents texts"
    needs_target: ClassVar[bool] = True

    model: Any = field(default="sentence-transformers/all-MiniLM-L6-v2", kw_only=True, repr=False)
    embeddings: str | None = None
    pooling: TextPooling = "auto"
    query_group: str | None = None
    aggregate: Literal["mean", "max"] | None = None
    directions: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embeddings is None:
            return
        defaults = {f.name: f.default for f in fields(self)}
        options = ("text", "model", "processing_class", "pooling", "max_length", "device", "dtype")
        unread = [name for name in options if getattr(self, name) != defaults[name]]
        if unread:
            raise OptionError(f"{self.name}: {unread[0]}= is not read when embeddings= are given; drop one")

    def reads(self, columns: Sequence[str], what: str) -> tuple[str, ...]:
        if self.embeddings is None:
            return super().reads(columns, what)
        check_columns((self.embeddings,), columns, self.name, what)
        return (self.embeddings,)

    def open_model(self, device: str | None) -> LocalModel:
        return open_encoder(
            self.model,
            pooling=self.pooling,
            processing_class=self.processing_class,
            device=device,
            dtype=self.dtype,
            who=self.name,
        )

    def learn(self, pool: Source, target: Source | None) -> None:
        """Sets ``directions [d, groups]``: the mean unit vector of each group, whose product with a row's is the mean cosine."""
        if self.embeddings is None:
            super().learn(pool, target)
        assert target is not None
        if self.query_group is not None and self.query_group not in target.columns:
            raise DataError(
                f"{self.name}: query_group={self.query_group!r} is no column of target; it has: {', '.join(target.columns)}"
            )
        members: dict[Any, list[np.ndarray]] = {}
        number = 0
        for batch in target.batches([self.query_group] if self.query_group else []):
            found = self.vectors(batch)
            bad = batch.missing | ~np.isfinite(found).all(axis=1)
            if bad.any():
                raise DataError(
                    f"{self.name}: in target, {batch.name_of(int(bad.argmax()))} has no text or no representation; leave it out"
                )
            aggregate = self.aggregate or ("max" if self.query_group else "mean")
            for place, vector in enumerate(found):
                number += 1
                group = batch[self.query_group][place] if self.query_group else number if aggregate == "max" else 0
                members.setdefault(str(group), []).append(vector)
        means = [np.mean(vectors, axis=0) for vectors in members.values()]
        if self.query_group and self.aggregate == "mean":
            means = [np.mean(means, axis=0)]
        self.set(directions=np.stack(means, axis=1))

    def score(self, batch: Batch) -> np.ndarray:
        assert self.directions is not None
        vectors = self.vectors(batch)
        if vectors.shape[1] != len(self.directions):  # no text of the batch has tokens
            return np.full(len(batch), np.nan)
        return rows_times(vectors, self.directions).max(axis=1)

    def vectors(self, batch: Batch) -> np.ndarray:
        """``[rows, d]`` float64, unit length; NaN for a row without tokens or vector."""
        found = (self._encode(batch.texts) if self.embeddings is None else batch.vectors(self.embeddings)).astype(float)
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.where(norms > 0, norms, 1)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        self.local_model()
        return encode(
            texts,
            self.model,
            pooling=self.pooling,
            batch_size=self.batch_size,
            max_length=self.max_length,
            processing_class=self.processing_class,
            device=self.place,
            dtype=self.dtype,
            who=self.name,
        )


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(RDS)
