"""Training again: models fine-tuned on subsets of the pool from the same initial weights, and their utility on queries.

- :func:`fine_tune`, :class:`Recipe`: one training
- :func:`utility`: how good a model is on each query

Many of them, kept on disk: :mod:`hfdataopt.trainings`.
"""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hfdataopt.attribution.prepare import model_columns, prepare_dataset
from hfdataopt.attribution.quiet import reseed, untouched
from hfdataopt.attribution.reader import custom_loss, in_order
from hfdataopt.attribution.rows import Rows
from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import find_task, name_rows, per_example_loss
from hfdataopt.options import check_options, check_range

Train = Callable[[list[int], int], Any]
"""``train(positions, seed) -> model``: the user's own training on these rows of the pool, from the initial weights."""
UtilityName = Literal["log-likelihood", "margin", "accuracy"]


class RowsMetric(ABC):
    """A metric that reads a dataset itself, rather than batches of labelled rows."""

    @abstractmethod
    def read(self, dataset: Any, model: Any, side: str) -> Rows:
        """The rows to measure on; an error where they cannot be."""

    @abstractmethod
    def __call__(self, model: Any, rows: Rows) -> torch.Tensor:
        """``[rows]`` float64, higher = better."""


Metric = UtilityName | Callable[[Any, dict[str, Any]], torch.Tensor] | RowsMetric
"""A name, ``(model, batch) -> [b]``, or a :class:`RowsMetric`; higher = better."""
LARGEST_GRADIENT_NORM = 1.0  # the Trainer's default


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned on a subset; the numbers are the Trainer's defaults."""

    epochs: int = 3
    learning_rate: float = 5e-5
    batch_size: int = 8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_options(self)
        check_range(self, "epochs", at_least=1)
        check_range(self, "batch_size", at_least=1)
        check_range(self, "learning_rate", above=0)
        check_range(self, "weight_decay", at_least=0)


def read_rows(
    dataset: Any, model: Any, processing_class: Any = None, data_collator: Any = None, side: str = "pool"
) -> Rows:
    """A dataset, tokenized or raw text, as rows that the model can read."""
    if isinstance(dataset, Rows):
        return dataset
    prepared, collate = prepare_dataset(dataset, model, processing_class, data_collator, side)
    return Rows(prepared, collate, side=side, keep=model_columns(prepared, model))


def read_measured(
    metric: Metric,
    dataset: Any,
    model: Any,
    processing_class: Any = None,
    data_collator: Any = None,
    side: str = "queries",
) -> Rows:
    """The rows that a metric is measured on."""
    if isinstance(metric, RowsMetric) and not isinstance(dataset, Rows):
        return metric.read(dataset, model, side)
    return read_rows(dataset, model, processing_class, data_collator, side)


def fine_tune(
    model: Any,
    rows: Rows,
    positions: Iterable[int] | None = None,
    *,
    epochs: int = 3,
    learning_rate: float = 5e-5,
    batch_size: int = 8,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> Any:
    """A copy of ``model`` trained on these rows (None: all), in eval mode; the model and the random states stay as they are.

    AdamW as the Trainer runs it by default: a learning rate that falls linearly to 0, gradients clipped at norm 1, no
    weight decay of biases and norms, the mean loss over the labelled tokens of a batch. An epoch's order is a function of
    (seed, epoch, row id), dropout and a drawing collator of the seed. Without rows it is the copy.

    Raises:
        DataError: the loss is not finite.
        OptionError: no parameter requires a gradient.
    """
    where = list(range(len(rows)) if positions is None else positions)
    with untouched(model, seed), torch.enable_grad():
        trained = copy.deepcopy(model)
        parameters = [p for p in trained.parameters() if p.requires_grad]
        if not parameters:
            raise OptionError(
                f"fine_tune: no parameter of {type(model).__name__} requires a gradient; nothing can be trained"
            )
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=learning_rate)
        steps = epochs * -(-len(where) // batch_size)
        trained.train()
        batches = (batch for epoch in range(epochs) for batch in _epoch(trained, rows, where, batch_size, seed, epoch))
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (steps - step) / steps
            total, tokens = per_example_loss(trained, batch, custom_loss=custom_loss)
            loss = total.sum() / tokens.sum().clamp_min(1)
            if not torch.isfinite(loss):
                raise DataError(
                    f"fine_tune: the loss on {len(where)} rows became {loss.item()} at step {step + 1} of {steps}; lower learning_rate="
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
    return trained.eval()


def _epoch(model: Any, rows: Rows, positions: list[int], batch_size: int, seed: int, epoch: int) -> Iterator[Any]:
    """The batches of one epoch, on the model's device."""
    order = sorted(positions, key=lambda p: hashlib.sha256(f"{seed}:{epoch}:{rows.ids[p]!r}".encode()).digest())
    for _, batch in rows.batches(batch_size, order):
        yield _moved(batch, model)


def _moved(batch: dict[str, Any], model: Any) -> dict[str, Any]:
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def utility(model: Any, rows: Rows, metric: Metric = "log-likelihood", batch_size: int = 32) -> torch.Tensor:
    """How good the model is on each row, higher = better: ``[rows]`` float64 on the CPU.

    - ``log-likelihood``: minus the mean loss over the labelled tokens (nats)
    - ``margin``: log odds of the label, log p / (1 - p) (Park et al. 2023), mean over the labelled tokens
    - ``accuracy``: share of labelled tokens, or 0 or 1 for a class, that the largest logit is right about
    - a callable ``(model, batch) -> [b]``, or a :class:`RowsMetric`

    Raises:
        DataError: a value that is not finite, or a row without labelled tokens.
    """
    if isinstance(metric, RowsMetric):
        return metric(model, rows)
    order = rows.by_length(range(len(rows)))
    parts = []
    with untouched(model), torch.no_grad():
        for chunk, batch in rows.batches(batch_size, order):
            ids = [rows.ids[position] for position in chunk]
            reseed(int.from_bytes(hashlib.sha256(json.dumps(ids).encode()).digest()[:7], "big"))
            values = _measure(model, _moved(batch, model), metric).double().cpu()
            if values.shape != (len(chunk),):
                raise OptionError(
                    f"utility: {name_of(metric)} returned shape {list(values.shape)} for {len(chunk)} rows"
                )
            parts.append(values)
    values = in_order(torch.cat(parts), order, list(range(len(rows))))
    bad = [rows.ids[position] for position in torch.nonzero(~torch.isfinite(values)).flatten().tolist()]
    if bad:
        raise DataError(
            f"utility: {name_of(metric)} of {len(bad)} row(s) of the {rows.side} is not finite, or they have no labelled tokens: "
            f"{name_rows(bad)}; leave them out"
        )
    return values


def name_of(function: Any) -> str:
    """A word for a metric or training: itself, or the name that a callable was defined by."""
    if isinstance(function, str):
        return function
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"


def _measure(
    model: Any, batch: dict[str, Any], metric: "UtilityName | Callable[[Any, dict[str, Any]], torch.Tensor]"
) -> torch.Tensor:
    if callable(metric):
        return torch.as_tensor(metric(model, batch))
    if metric == "log-likelihood":
        total, tokens = per_example_loss(model, batch, custom_loss=custom_loss)
        return -total.double() / tokens  # NaN for a row without labelled tokens
    logits, labels = _logits_and_labels(model, batch, metric)
    labelled = labels != -100
    safe = labels.masked_fill(~labelled, 0).unsqueeze(-1)
    if metric == "accuracy":
        values = (logits.argmax(-1, keepdim=True) == safe).squeeze(-1).double()
    else:
        others = logits.scatter(-1, safe, -torch.inf).logsumexp(-1)
        values = (logits.gather(-1, safe).squeeze(-1) - others).double()
    return values.where(labelled, 0.0).sum(1) / labelled.sum(1)


def _logits_and_labels(model: Any, batch: dict[str, Any], metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[b, positions, c]`` float32, and the labels that they predict ``[b, positions]``; one position for classes."""
    task, labels = find_task(model), batch.get("labels")
    if labels is None:
        raise DataError(f"utility={metric!r} needs labels; the batch has {', '.join(batch)}")
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    inputs = batch if encoder_decoder else {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits.float()
    if task == "sequence" and logits.shape[-1] > 1 and labels.ndim == 1 and not labels.is_floating_point():
        return logits[:, None], labels[:, None]
    if task in ("causal", "tokens"):
        return (logits[:, :-1], labels[:, 1:]) if task == "causal" else (logits, labels)
    raise OptionError(
        f"utility={metric!r} is for one class per row or token, which {type(model).__name__} does not predict here; "
        "use 'log-likelihood', or a callable (model, batch) -> [b]"
    )
