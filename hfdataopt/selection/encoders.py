"""Texts as vectors, by any encoder or causal LM of transformers, or of sentence-transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from hfdataopt.attribution.task import pooled_features
from hfdataopt.selection.local_models import (
    Dtype,
    LocalModel,
    Pass,
    fixed_batches,
    has_sentence_transformer,
    open_model,
    say_once_that_rows_are_cut,
)

TextPooling = Literal["auto", "mean", "first", "last"]
_BLOCK = 64


def open_encoder(
    model: Any,
    *,
    pooling: TextPooling = "auto",
    processing_class: Any = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    who: str = "encode",
) -> LocalModel:
    """The encoder that ``encode`` takes, for its ``weights``; arguments as there."""
    own = pooling == "auto" and has_sentence_transformer(model, who)
    kind: Any = "sentence-transformer" if own else "encoder"
    return open_model(model, kind, processing_class=processing_class, device=device, dtype=dtype, who=who)


def encode(
    texts: Sequence[str],
    model: Any,
    *,
    pooling: TextPooling = "auto",
    batch_size: int = 8,
    max_length: int | None = None,
    processing_class: Any = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    who: str = "encode",
) -> np.ndarray:
    """``[texts, d]`` float32, bit for bit the same for a text whatever other texts it comes with; NaN for one without tokens.

    Args:
        model: hub id or folder of an encoder or a causal LM of transformers or of a model of sentence-transformers, or a live
            model of either, which is left as it was.
        pooling: where the last hidden state is read; ``auto`` is the model's own way (sentence-transformers), the last token
            of a causal model, the mean over tokens of any other.
        batch_size: texts of one forward pass. It is part of the computation: another one changes the last bits.
        max_length: tokens of a text that are read; None for as many as the model can.
        processing_class: tokenizer of a live model.
        device: of a model that is loaded; None takes the GPU where there is one. In forked worker processes it must be ``cpu``.
        dtype: of a model that is loaded; None for float32.
        who: begins each message.

    Raises:
        OptionError: the model cannot be loaded or used so.
        MissingDependencyError: a model of sentence-transformers without that package.
    """
    encoder = open_encoder(
        model, pooling=pooling, processing_class=processing_class, device=device, dtype=dtype, who=who
    )
    limit = encoder.limit(max_length)
    found: dict[int, np.ndarray] = {}
    with encoder.running():
        rows, shared = _tokens(encoder, list(texts), limit)
        if rows is None:
            with torch.no_grad():
                found = {place: _alone(encoder, text) for place, text in enumerate(texts)}
        else:

            def forward(one: Pass) -> Iterator[tuple[int, np.ndarray]]:
                positions, ids, mask = one
                batch = {"input_ids": ids.to(encoder.device), "attention_mask": mask.to(encoder.device), **shared}
                return zip(positions, _forward(encoder, batch, pooling), strict=False)

            pad = getattr(encoder.tokenizer, "pad_token_id", None) or 0
            for part in encoder.each(forward, fixed_batches(rows, batch_size, limit, pad)):
                found.update(part)
    width = len(next(iter(found.values()))) if found else 1
    vectors = np.full((len(texts), width), np.nan, dtype=np.float32)
    for place, vector in found.items():
        vectors[place] = vector
    return vectors


def _tokens(encoder: LocalModel, texts: list[str], limit: int | None) -> tuple[list[list[int]] | None, dict[str, Any]]:
    """Token ids of each text, and what else the forward pass takes; None where texts are not read as padded rows."""
    shared: dict[str, Any] = {}
    if not texts:
        return [], shared
    if encoder.kind == "sentence-transformer":
        with _cut_at(encoder.model, limit):
            features = _features(encoder.model, texts)
        if "attention_mask" not in features:
            return None, shared
        mask = features["attention_mask"].bool()
        rows = [ids[real].tolist() for ids, real in zip(features["input_ids"], mask, strict=True)]
        shared = {name: value for name, value in features.items() if not isinstance(value, torch.Tensor)}
    else:
        rows = encoder.tokenizer(texts, truncation=limit is not None, max_length=limit)["input_ids"]
    if limit is not None and any(len(row) >= limit for row in rows):
        say_once_that_rows_are_cut(encoder.name, limit)
    return rows, shared


def _features(model: Any, texts: list[str]) -> dict[str, Any]:
    """What a model of sentence-transformers makes of texts, with the prompt that it puts before each by default."""
    prompt = model.prompts.get(model.default_prompt_name) if model.default_prompt_name else None
    return model.preprocess(texts, prompt=prompt or None)


@contextmanager
def _cut_at(model: Any, limit: int | None) -> Iterator[None]:
    before = model.max_seq_length
    if limit is None or limit == before:
        yield
        return
    try:
        model.max_seq_length = limit
        yield
    finally:
        model.max_seq_length = before


def _alone(encoder: LocalModel, text: str) -> np.ndarray:
    features = {
        name: value.to(encoder.device) if isinstance(value, torch.Tensor) else value
        for name, value in _features(encoder.model, [text]).items()
    }
    return encoder.model(features)["sentence_embedding"][0].float().cpu().numpy()


def _forward(encoder: LocalModel, batch: dict[str, Any], pooling: TextPooling) -> np.ndarray:
    """``[batch_size, d]`` float32."""
    own = encoder.kind == "sentence-transformer"
    found = encoder.model(batch)["sentence_embedding"] if own else pooled_features(encoder.model, batch, pooling)
    return found.float().cpu().numpy()


def rows_times(vectors: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``vectors [rows, d] @ matrix [d, columns]`` in float64, bit for bit the same for a row whatever rows come with it."""
    found = np.empty((len(vectors), matrix.shape[1]))
    block = np.zeros((_BLOCK, len(matrix)))
    for start in range(0, len(vectors), _BLOCK):
        part = vectors[start : start + _BLOCK]
        block[: len(part)], block[len(part) :] = part, 0
        found[start : start + len(part)] = (block @ matrix)[: len(part)]
    return found
