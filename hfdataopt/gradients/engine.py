"""Running batches through a model and giving each row its gradient feature.

The loop here is shared by everything that takes gradients (features, basis fit, exact dot products): it moves the
batch, sets the precision, runs one forward and backward under :class:`~hfdataopt.gradients.capture.Capture`, and halves
the batch when memory runs out. Between batches the model is as the caller left it.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients.basis import KINDS, Basis, SharedRight
from hfdataopt.gradients.blocks import Block, Layers, find_blocks, unwrap
from hfdataopt.gradients.capture import Capture, Captured, SharedInput, complete, refuse_reentrant
from hfdataopt.gradients.factors import materialise
from hfdataopt.gradients.losses import CustomLoss, Logit, Target, make_target

RowId = str | int
Batch = Mapping[str, Any]
Weights = Mapping[Any, float] | Sequence[float] | Tensor | None
Precondition = Mapping[str, Tensor] | Callable[[str, Tensor], Tensor] | None
OnNonfinite = Literal["error", "skip"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ExampleGradients:
    """Gradient features of the rows of one batch.

    ``features [b, d]`` float32; ``loss_sum [b]`` in nats summed over tokens (or the logit), not weighted; ``tokens
    [b]``. ``skipped`` are the ids of rows left out by ``on_nonfinite="skip"``. All tensors are on the CPU.
    """

    row_ids: list[RowId]
    features: Tensor
    loss_sum: Tensor
    tokens: Tensor
    skipped: list[RowId] = field(default_factory=list)


class Collector(Protocol):
    """Receives the factors of each block of one forward and backward."""

    def __call__(self, index: int, block: Block, captured: list[Captured]) -> None: ...


@dataclass
class Piece:
    """What one forward and backward gave: usually a whole batch, a part of it after running out of memory."""

    row_ids: list[RowId]
    loss_sum: Tensor
    tokens: Tensor
    collector: Any


class Runner:
    """One model, one target, one precision: runs batches and hands factors to collectors."""

    def __init__(
        self,
        model: nn.Module,
        *,
        of: str | Target = "loss",
        logit: Logit = None,
        layers: Layers = None,
        weights: Weights = None,
        dtype: str | torch.dtype | None = None,
        custom_loss: CustomLoss | None = None,
    ) -> None:
        self.model = unwrap(model)
        self.blocks = find_blocks(model, layers)
        self.target = make_target(model, of, logit, custom_loss)
        self.weights = weights
        self.device = next(self.model.parameters()).device
        self.dtype = _check_dtype(self.model, dtype)
        self.capture = Capture(self.model, self.blocks)
        refuse_reentrant(dict(self.model.named_modules()))
        self._absolute = _absolute_positions(self.model)
        self._seen = 0
        self._largest: int | None = None
        self._checked = False

    @property
    def precision(self) -> str:
        """The dtype that forward and backward run in, for a manifest."""
        kind = self.device.type
        if self.dtype is not None:
            return str(self.dtype).removeprefix("torch.")
        if torch.is_autocast_enabled(kind):
            return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def pieces(self, batches: Iterable[Batch], new_collector: Callable[[int, Any], Collector]) -> Iterator[Piece]:
        """Run all batches. ``new_collector(size, failed)`` makes the collector of each piece; ``failed`` is the
        collector of the larger piece that ran out of memory, else None."""
        for batch in batches:
            inputs, row_ids, weights = self._prepare(batch)
            yield from self._split(inputs, row_ids, weights, new_collector, None)

    def _prepare(self, batch: Batch) -> tuple[dict[str, Any], list[RowId], Tensor | None]:
        inputs = dict(batch)
        # Modern forwards swallow unknown keyword arguments without a word: nothing of ours may stay in the batch.
        given_ids, given_weights = inputs.pop("row_id", None), inputs.pop("weights", None)
        size = batch_size(inputs)
        if given_ids is None:
            row_ids: list[RowId] = list(range(self._seen, self._seen + size))
        else:
            row_ids = given_ids.tolist() if isinstance(given_ids, Tensor) else list(given_ids)
        if len(row_ids) != size:
            raise DataError(f"gradients: a batch of {size} rows arrived with {len(row_ids)} row ids")
        if given_weights is None and self.weights is not None:
            given_weights = _look_up(self.weights, row_ids, self._seen)
        self._seen += size
        weights = None if given_weights is None else torch.as_tensor(given_weights, dtype=torch.float32)
        if weights is not None and weights.shape != (size,):
            raise DataError(f"gradients: weights of shape {list(weights.shape)} arrived for a batch of {size} rows")
        inputs = {key: x.to(self.device) if isinstance(x, Tensor) else x for key, x in inputs.items()}
        self._warn_left_padding(inputs)
        return inputs, row_ids, weights

    def _split(
        self,
        inputs: dict[str, Any],
        row_ids: list[RowId],
        weights: Tensor | None,
        new_collector: Callable[[int, Any], Collector],
        failed: Any,
    ) -> Iterator[Piece]:
        size = len(row_ids)
        if self._largest is None or size <= self._largest:
            collector = new_collector(size, failed)
            try:
                yield self._run(inputs, row_ids, weights, collector)
                return
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                reason, self._largest = "out of memory", (size + 1) // 2
            except SharedInput as error:
                reason, self._largest = str(error), 1
            failed = collector
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            warnings.warn(
                f"gradients: a batch of {size} rows did not run ({reason}); going on with at most {self._largest} rows "
                "at once",
                stacklevel=2,
            )
        step = self._largest
        for start in range(0, size, step):
            rows = slice(start, start + step)
            part = {key: x[rows] if _per_row(x, size) else x for key, x in inputs.items()}
            yield from self._split(
                part, row_ids[rows], None if weights is None else weights[rows], new_collector, failed
            )

    def _run(self, inputs: dict[str, Any], row_ids: list[RowId], weights: Tensor | None, collector: Collector) -> Piece:
        with self.capture as capture:
            try:
                values, tokens = forward_backward(capture, self.target, inputs, weights, self._autocast(), collector)
            except DataError as error:
                raise DataError(f"{error} (row ids of the batch: {name_rows(row_ids)})") from None
            if not self._checked:
                self._checked = True
                if never := capture.never_called():
                    warnings.warn(
                        f"gradients: the forward pass did not call {', '.join(never[:5])}"
                        f"{' ...' if len(never) > 5 else ''}; the gradient of these modules counts as 0",
                        stacklevel=2,
                    )
        return Piece(row_ids, values.detach().float().cpu(), tokens.cpu(), collector)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _warn_left_padding(self, inputs: dict[str, Any]) -> None:
        mask = inputs.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.dim() != 2 or "position_ids" in inputs:
            return
        absolute = self._absolute
        if absolute and bool(((mask[:, 0] == 0) & (mask[:, -1] != 0)).any()):
            warnings.warn(
                f"gradients: left padding with absolute positions ({absolute}): each row's gradient then depends "
                f"on the "
                'padding of its batch; set tokenizer.padding_side = "right", or pass position_ids in the batch',
                stacklevel=2,
            )


def forward_backward(
    capture: Capture,
    target: Target,
    inputs: dict[str, Any],
    weights: Tensor | None,
    precision: contextlib.AbstractContextManager[Any],
    collector: Collector,
) -> tuple[Tensor, Tensor]:
    """One forward and backward; returns the target's ``(value [b], tokens [b])``, not weighted."""
    size = batch_size(inputs)
    with capture.forward(size, batch_positions(inputs, size)), precision:
        values, tokens = target(capture.model, inputs)
        if values.shape != (size,) or tokens.shape != (size,):
            raise DataError(
                f"gradients: the target returned shapes {list(values.shape)} and {list(tokens.shape)} for {size} rows; "
                "both must be [batch]"
            )
        objective = values.float().sum() if weights is None else values.float() @ weights.to(values.device)
    capture.backward(objective, collector)
    return values, tokens


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
) -> Iterator[ExampleGradients]:
    """Gradient features of every row, batch by batch.

    ``batches``: dicts as a data collator makes them (``labels`` included). The key ``row_id`` (list or tensor ``[b]``)
    names the rows, else their position does; the key ``weights`` ``[b]`` weighs them. With ``basis="eigen"`` the
    batches are read twice: pass a list or a data loader (with a generator of its own, so that iterating it draws
    nothing). ``of``, ``logit``, ``custom_loss``: see :func:`hfdataopt.gradients.losses.make_target`.
    ``weights``: factor on each row's gradient, by row id (mapping) or by position over all batches (sequence).
    ``precondition``: a mapping from parameter name to a tensor of the parameter's shape, multiplied elementwise onto
    each gradient (a parameter that it lacks keeps its gradient); or a callable ``(parameter name, gradient [b,
    *shape]) -> gradient``. Gradients are then made whole, one block at a time.
    ``basis``: ``"exact"``, ``"eigen"``, ``"random"`` or a fitted :class:`Basis`; ``floats_per_row``: upper bound of d
    for the last two names. ``layers``: see :func:`hfdataopt.gradients.blocks.find_blocks`. ``seed``: of the fit
    sample and of the random basis.
    ``dtype``: ``"float32"``, ``"bfloat16"`` or ``"float16"`` for forward and backward; None leaves the caller's
    autocast in force. Sums and projections are float32.
    ``on_nonfinite``: what to do with a row whose gradient or loss is not finite.

    Yields one :class:`ExampleGradients` per batch, or per part of a batch where memory did not suffice for all of it.
    """
    from hfdataopt.gradients.fit import fit_basis  # fit runs batches with the Runner of this module

    if on_nonfinite not in ("error", "skip"):
        raise OptionError(f"on_nonfinite={on_nonfinite!r} arrived; it must be 'error' or 'skip'")
    runner = Runner(model, of=of, logit=logit, layers=layers, weights=weights, dtype=dtype, custom_loss=custom_loss)
    if isinstance(basis, Basis):
        basis.check(runner.blocks)
    elif basis not in KINDS:
        raise OptionError(f"basis={basis!r} arrived; it must be one of {', '.join(KINDS)}, or a fitted Basis")
    elif basis == "eigen" and iter(batches) is batches:
        raise OptionError(
            "basis='eigen' reads the batches twice, but an iterator that can be read once arrived; pass a list or "
            "a data "
            "loader, or a Basis from fit_basis"
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
        self.size = size
        self.seen = SharedRight()

    def __call__(self, index: int, block: Block, captured: list[Captured]) -> None:
        if self.precondition is None:
            part = self.basis.project(index, block, captured, self.seen)
        else:
            part = self.basis.project_matrix(index, preconditioned(block, captured, self.precondition))
        if self.features is None:
            self.features = part.new_zeros((self.size, self.basis.size))
        self.features[:, self.basis.offsets[index] : self.basis.offsets[index + 1]] = part


def preconditioned(block: Block, captured: Sequence[Captured], precondition: Precondition) -> Tensor:
    """The gradients ``[b, rows, columns]`` of a block after ``precondition``."""
    gradient = materialise(complete(block, captured), block.rows, block.columns)
    if precondition is None:
        return gradient
    if block.vector:
        width = block.rows // (1 + len(block.biases))
        named = [
            (name, gradient[:, i * width : (i + 1) * width, 0]) for i, name in enumerate((block.weight, *block.biases))
        ]
        return torch.cat([_apply(precondition, name, part) for name, part in named], dim=1).unsqueeze(-1)
    weight = gradient[:, :, : block.inputs]
    weight = _apply(precondition, block.weight, weight.transpose(1, 2) if block.transposed else weight)
    parts = [weight.transpose(1, 2) if block.transposed else weight]
    for number, name in enumerate(block.biases):
        parts.append(_apply(precondition, name, gradient[:, :, block.inputs + number]).unsqueeze(-1))
    return torch.cat(parts, dim=-1)


def _apply(precondition: Precondition, name: str, gradient: Tensor) -> Tensor:
    if callable(precondition):
        return precondition(name, gradient)
    assert precondition is not None
    factor = precondition.get(name)
    if factor is None:
        return gradient
    if factor.shape != gradient.shape[1:]:
        raise OptionError(
            f"precondition[{name!r}] has shape {list(factor.shape)}, the parameter {list(gradient.shape[1:])}"
        )
    return gradient * factor.to(gradient)


def _finish(piece: Piece, on_nonfinite: OnNonfinite) -> ExampleGradients:
    collected: _Features = piece.collector
    features = collected.features
    if features is None:  # no row of the batch has a gradient
        features = torch.zeros(collected.size, collected.basis.size)
    features = features.cpu()
    ok = torch.isfinite(features.abs().sum(1)) & torch.isfinite(piece.loss_sum)
    if ok.all():
        return ExampleGradients(piece.row_ids, features, piece.loss_sum, piece.tokens)
    bad = [row for row, good in zip(piece.row_ids, ok.tolist(), strict=True) if not good]
    if on_nonfinite == "error":
        raise nonfinite_error(bad)
    kept = [row for row, good in zip(piece.row_ids, ok.tolist(), strict=True) if good]
    return ExampleGradients(kept, features[ok], piece.loss_sum[ok], piece.tokens[ok], bad)


def nonfinite_error(rows: list[RowId]) -> DataError:
    """The error for rows whose gradient is not finite."""
    return DataError(
        f"gradients: the gradient or loss of {len(rows)} row(s) is not finite: {name_rows(rows)}; look at these "
        f"rows (and at "
        'the precision: dtype="float32"), or pass on_nonfinite="skip" to leave them out'
    )


def name_rows(rows: Sequence[RowId]) -> str:
    """Row ids for a message: the first ten."""
    return ", ".join(map(repr, rows[:10])) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")


def batch_size(inputs: Batch) -> int:
    """Rows of a batch: the first dimension of ``input_ids``, else of the first tensor that has one."""
    tensors = [inputs.get("input_ids"), inputs.get("inputs_embeds"), *inputs.values()]
    for x in tensors:
        if isinstance(x, Tensor) and x.dim() > 0:
            return x.shape[0]
    raise DataError(
        f"gradients: the batch holds no tensor (its keys: {', '.join(inputs)}); pass what a data collator returns"
    )


def batch_positions(inputs: Batch, size: int) -> int:
    """Rows times sequence length, the leading dimension of inputs that a model flattened."""
    for name in ("input_ids", "inputs_embeds"):
        x = inputs.get(name)
        if isinstance(x, Tensor) and x.dim() >= 2:
            return x.shape[0] * x.shape[1]
    return size


def _per_row(x: Any, size: int) -> bool:
    return isinstance(x, Tensor | list | tuple) and (x.dim() > 0 if isinstance(x, Tensor) else True) and len(x) == size


def _look_up(weights: Mapping[Any, float] | Sequence[float] | Tensor, row_ids: list[RowId], start: int) -> Any:
    if isinstance(weights, Mapping):
        missing = [row for row in row_ids if row not in weights]
        if missing:
            raise DataError(f"gradients: weights has no entry for row ids {name_rows(missing)}")
        return [float(weights[row]) for row in row_ids]
    if len(weights) < start + len(row_ids):
        raise DataError(f"gradients: {len(weights)} weights arrived for at least {start + len(row_ids)} rows")
    return weights[start : start + len(row_ids)]


def _check_dtype(model: nn.Module, dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted not in DTYPES.values():
        raise OptionError(f"dtype={dtype!r} arrived; it must be None or one of {', '.join(DTYPES)}")
    if wanted == torch.float32:
        half = [name for name, p in model.named_parameters() if p.dtype in (torch.bfloat16, torch.float16)]
        if half:
            raise OptionError(
                f"dtype='float32' arrived, but {len(half)} parameters of the model are in half precision, such as "
                f"{half[0]}; load the model with dtype=torch.float32, or pass dtype=None"
            )
    return wanted


def _absolute_positions(model: nn.Module) -> str | None:
    """Name of a learned position embedding that counts from the left edge of the batch, None if there is none."""
    config = getattr(model, "config", None)
    # These models number positions from the attention mask or from the padding token: padding does not move them.
    if getattr(config, "model_type", "") in (
        "roberta",
        "xlm-roberta",
        "camembert",
        "roberta-prelayernorm",
        "opt",
        "mpnet",
    ):
        return None
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if isinstance(module, nn.Embedding) and (last == "wpe" or "position" in last):
            return name
    return None
