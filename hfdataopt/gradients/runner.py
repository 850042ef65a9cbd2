"""Running batches through a model under :class:`~hfdataopt.gradients.capture.Capture`.

The loop here is shared by everything that takes gradients (features, basis fit, exact dot products): it moves the
batch, sets the precision, runs one forward and backward, and halves the batch when memory runs out. Between batches the
model is as the caller left it.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hfdataopt.console import warn
from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients.batches import Batch, RowId, batch_positions, batch_size, is_per_row, name_rows
from hfdataopt.gradients.blocks import Block, Layers, find_blocks, unwrap
from hfdataopt.gradients.capture import Capture, Captured, SharedInput, refuse_reentrant
from hfdataopt.gradients.losses import CustomLoss, Logit, Target, make_target

Weights = Mapping[Any, float] | Sequence[float] | Tensor | None
OnNonfinite = Literal["error", "skip"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class MemoryLimit:
    """The largest batch that fitted into memory, None until one did not; shared by runs on the same model, so that only
    the first of them tries a larger one and says so."""

    rows: int | None = None

    def shrink(self, size: int, row_ids: Sequence[RowId], who: str) -> None:
        """Take note that ``size`` rows did not fit; ``DataError`` where that was a single row."""
        if size == 1:
            raise DataError(
                f"{who}: row {row_ids[0]!r} alone does not fit into memory; shorten the rows (truncate them when they are "
                "tokenized), choose fewer layers, or use a device with more memory"
            )
        if self.rows is None:
            warn(f"{who}: a batch of {size} rows did not run (out of memory); going on with smaller ones")
        self.rows = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Collector(Protocol):
    """Receives the factors of each block of one forward and backward."""

    def __call__(self, index: int, block: Block, captured: list[Captured]) -> None: ...


@dataclass
class Piece:
    """What one forward and backward gave: usually a whole batch, a part of it after running out of memory.

    A target with several columns gives one piece per column, from one forward and a backward each.
    """

    row_ids: list[RowId]
    loss_sum: Tensor
    tokens: Tensor
    collector: Any
    column: int = 0


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
        memory: MemoryLimit | None = None,
    ) -> None:
        self.model = unwrap(model)
        self.blocks = find_blocks(model, layers)
        self.target = make_target(model, of, logit, custom_loss)
        self.weights = weights
        self.device = next(self.model.parameters()).device
        self.dtype = _check_dtype(self.model, dtype)
        self.capture = Capture(self.model, self.blocks)
        refuse_reentrant(dict(self.model.named_modules()))
        self._absolute = counts_positions(self.model)
        self._seen = 0
        self._memory = memory or MemoryLimit()
        self._one_by_one = False  # a module that rows share an input of
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
            yield from self._split(inputs, row_ids, weights, new_collector, [])

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
        failed: list[Any],
    ) -> Iterator[Piece]:
        size = len(row_ids)
        if size <= self._step(size):
            collectors: list[Collector] = []

            def collector() -> Collector:
                column = len(collectors)
                collectors.append(new_collector(size, failed[column] if column < len(failed) else None))
                return collectors[-1]

            out_of_memory = False
            try:
                yield from self._run(inputs, row_ids, weights, collector)
                return
            except torch.OutOfMemoryError:
                out_of_memory = True  # the tensors that the error holds are freed after this block
            except SharedInput as error:
                self._one_by_one = True
                warn(f"gradients: a batch of {size} rows did not run ({error}); going on with smaller ones")
            if out_of_memory:
                self._memory.shrink(size, row_ids, "gradients")
            failed = collectors
        step = self._step(size)
        for start in range(0, size, step):
            rows = slice(start, start + step)
            part = {key: x[rows] if is_per_row(x, size) else x for key, x in inputs.items()}
            yield from self._split(
                part, row_ids[rows], None if weights is None else weights[rows], new_collector, failed
            )

    def _step(self, size: int) -> int:
        """How many of ``size`` rows to run at once."""
        return 1 if self._one_by_one else min(size, self._memory.rows or size)

    def _run(
        self,
        inputs: dict[str, Any],
        row_ids: list[RowId],
        weights: Tensor | None,
        new_collector: Callable[[], Collector],
    ) -> list[Piece]:
        with self.capture as capture:
            try:
                values, tokens, collectors = forward_backward(
                    capture, self.target, inputs, weights, self._autocast(), new_collector
                )
            except DataError as error:
                raise DataError(f"{error} (row ids of the batch: {name_rows(row_ids)})") from None
            if not self._checked:
                self._checked = True
                if never := capture.never_called():
                    warn(
                        f"gradients: the forward pass did not call {', '.join(never[:5])}"
                        f"{' ...' if len(never) > 5 else ''}; the gradient of these modules counts as 0"
                    )
        values, tokens = values.detach().float().cpu(), tokens.cpu()
        return [
            Piece(row_ids, values[:, column], tokens, collector, column) for column, collector in enumerate(collectors)
        ]

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
            warn(
                f"gradients: left padding with absolute positions ({absolute}): each row's gradient then depends "
                'on the padding of its batch; set tokenizer.padding_side = "right", or pass position_ids in the batch'
            )


def forward_backward(
    capture: Capture,
    target: Target,
    inputs: dict[str, Any],
    weights: Tensor | None,
    precision: contextlib.AbstractContextManager[Any],
    new_collector: Callable[[], Collector],
) -> tuple[Tensor, Tensor, list[Collector]]:
    """One forward, and a backward for each column of the target.

    Returns the target's values ``[b, columns]``, not weighted, its tokens ``[b]``, and a collector per column.
    """
    size = batch_size(inputs)
    with capture.forward(size, batch_positions(inputs, size)), precision:
        values, tokens = target(capture.model, inputs)
        if values.dim() not in (1, 2) or len(values) != size or tokens.shape != (size,):
            raise DataError(
                f"gradients: the target returned shapes {list(values.shape)} and {list(tokens.shape)} for {size} rows; "
                "they must be [batch] or [batch, columns], and [batch]"
            )
        values = values.unsqueeze(1) if values.dim() == 1 else values
        summed = values.float().sum(0) if weights is None else weights.to(values.device) @ values.float()
        objectives = summed.unbind()  # here, where gradients are recorded also for a caller that has turned them off
    collectors = []
    for column, objective in enumerate(objectives):
        collectors.append(new_collector())
        capture.backward(objective, collectors[-1], keep_graph=column + 1 < len(objectives))
    return values, tokens, collectors


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


def counts_positions(model: nn.Module) -> str | None:
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
