"""Batches in, gradient features out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hfdataopt.errors import OptionError
from hfdataopt.gradients.basis import KINDS, Basis, SharedRight
from hfdataopt.gradients.batches import Batch, RowId, nonfinite_error
from hfdataopt.gradients.batches import name_rows as name_rows
from hfdataopt.gradients.blocks import Block, Layers
from hfdataopt.gradients.capture import Captured
from hfdataopt.gradients.fit import fit_basis
from hfdataopt.gradients.losses import CustomLoss, Logit, Target
from hfdataopt.gradients.precondition import Precondition, preconditioned
from hfdataopt.gradients.runner import MemoryLimit, OnNonfinite, Piece, Runner, Weights


@dataclass
class ExampleGradients:
    """Gradient features of the rows of one batch.

    ``features [b, d]`` float32; ``loss_sum [b]`` in nats summed over tokens (or the logit), not weighted; ``tokens
    [b]``. ``skipped`` are the ids of rows left out by ``on_nonfinite="skip"``. ``column`` is the target's column that was
    differentiated, where it has several. ``squared_norm [b]`` float64, with a precondition: that of the whole preconditioned
    gradient, of which the features keep a part; None without. All tensors are on the CPU.
    """

    row_ids: list[RowId]
    features: Tensor
    loss_sum: Tensor
    tokens: Tensor
    skipped: list[RowId] = field(default_factory=list)
    column: int = 0
    squared_norm: Tensor | None = None


def per_example_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    of: str | Target = "loss",
    logit: Logit = None,
    weights: Weights = None,
    precondition: Precondition = None,
    basis: str | Basis = "eigen",
    floats_per_row: int = 8192,
    layers: Layers = None,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    on_nonfinite: OnNonfinite = "error",
    custom_loss: CustomLoss | None = None,
    memory: MemoryLimit | None = None,
) -> Iterator[ExampleGradients]:
    """Gradient features of every row, batch by batch.

    ``batches``: dicts as a data collator makes them (``labels`` included). The key ``row_id`` (list or tensor ``[b]``)
    names the rows, else their position does; the key ``weights`` ``[b]`` weighs them. With ``basis="eigen"`` or ``"sketch"`` the
    batches are read twice: pass a list or a data loader (with a generator of its own, so that iterating it draws
    nothing). ``of``, ``logit``, ``custom_loss``: see :func:`hfdataopt.gradients.losses.make_target`.
    ``weights``: factor on each row's gradient, by row id (mapping) or by position over all batches (sequence).
    ``precondition``: a mapping from parameter name to a tensor of the parameter's shape, multiplied elementwise onto
    each gradient (a parameter that it lacks keeps its gradient); or a callable ``(parameter name, gradient [b,
    *shape]) -> gradient``, which may overwrite its argument. Weights apply before it. Gradients are then made whole, one
    block at a time. For Adam see :class:`hfdataopt.gradients.adam.AdamMoments`.
    ``basis``: ``"exact"``, ``"eigen"``, ``"random"``, ``"sketch"`` or a fitted :class:`Basis`; ``floats_per_row``: upper bound of d
    for the last three names. ``layers``: see :func:`hfdataopt.gradients.blocks.find_blocks`. ``seed``: of the fit
    sample and of the random basis.
    ``dtype``: ``"float32"``, ``"bfloat16"`` or ``"float16"`` for forward and backward; None leaves the caller's
    autocast in force. Sums and projections are float32.
    ``on_nonfinite``: what to do with a row whose gradient or loss is not finite. ``memory``: shared by several calls on one
    model, it keeps the batch size that fits into memory.

    Yields one :class:`ExampleGradients` per batch (and column of the target), or per part of a batch where memory did not
    suffice for all of it.
    """
    if on_nonfinite not in ("error", "skip"):
        raise OptionError(f"on_nonfinite={on_nonfinite!r} arrived; it must be 'error' or 'skip'")
    memory = memory or MemoryLimit()
    runner = Runner(
        model, of=of, logit=logit, layers=layers, weights=weights, dtype=dtype, custom_loss=custom_loss, memory=memory
    )
    if isinstance(basis, Basis):
        basis.check(runner.blocks)
    elif basis not in KINDS:
        raise OptionError(f"basis={basis!r} arrived; it must be one of {', '.join(KINDS)}, or a fitted Basis")
    elif basis in ("eigen", "sketch") and iter(batches) is batches:
        raise OptionError(
            f"basis={basis!r} reads the batches twice, but an iterator that can be read once arrived; pass a list or "
            "a data loader, or a Basis from fit_basis"
        )

    def generate() -> Iterator[ExampleGradients]:
        if isinstance(basis, Basis):
            fitted = basis
        else:
            fitted = fit_basis(
                model,
                batches,
                of=of,
                logit=logit,
                layers=layers,
                floats_per_row=floats_per_row,
                kind=basis,  # type: ignore[arg-type]
                seed=seed,
                dtype=dtype,
                weights=weights,
                precondition=precondition,
                on_nonfinite=on_nonfinite,
                custom_loss=custom_loss,
                memory=memory,
            )

        def collector(size: int, failed: Any) -> _Features:
            return _Features(fitted, size, precondition)

        for piece in runner.pieces(batches, collector):
            yield _finish(piece, on_nonfinite)

    return generate()


class _Features:
    def __init__(self, basis: Basis, size: int, precondition: Precondition) -> None:
        self.basis = basis
        self.precondition = precondition
        self.features: Tensor | None = None
        self.squared_norm: Tensor | None = None
        self.size = size
        self.seen = SharedRight()

    def __call__(self, index: int, block: Block, captured: list[Captured]) -> None:
        if self.precondition is None:
            part = self.basis.project(index, block, captured, self.seen)
        else:
            gradient = preconditioned(block, captured, self.precondition)
            part = self.basis.project_matrix(index, gradient)
            norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1).double().square()
            self.squared_norm = norm if self.squared_norm is None else self.squared_norm + norm
        if self.features is None:
            self.features = part.new_zeros((self.size, self.basis.size))
        self.features[:, self.basis.offsets[index] : self.basis.offsets[index + 1]] = part


def _finish(piece: Piece, on_nonfinite: OnNonfinite) -> ExampleGradients:
    collected: _Features = piece.collector
    features = collected.features
    if features is None:  # no row of the batch has a gradient
        features = torch.zeros(collected.size, collected.basis.size)
    features, norm = features.cpu(), collected.squared_norm
    if collected.precondition is not None:
        norm = torch.zeros(collected.size, dtype=torch.float64) if norm is None else norm.cpu()
    ok = torch.isfinite(features.sum(1)) & torch.isfinite(piece.loss_sum)
    bad = [row for row, good in zip(piece.row_ids, ok.tolist(), strict=True) if not good]
    if not bad:
        return ExampleGradients(
            piece.row_ids, features, piece.loss_sum, piece.tokens, column=piece.column, squared_norm=norm
        )
    if on_nonfinite == "error":
        raise nonfinite_error(bad)
    kept = [row for row, good in zip(piece.row_ids, ok.tolist(), strict=True) if good]
    norm = None if norm is None else norm[ok]
    return ExampleGradients(kept, features[ok], piece.loss_sum[ok], piece.tokens[ok], bad, piece.column, norm)
