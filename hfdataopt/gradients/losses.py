"""Per-example scalars to differentiate: the loss, or a logit.

Each target is a function ``(model, batch) -> (value [b], tokens [b])`` with the graph attached to ``value``. It calls
the model without labels and computes in float32 from the logits, so it does not depend on what a trainer patched into
the model's loss (transformers averages over the batch; TRL's fused head returns no logits, but only when asked for).

====================== ================================ =================================== ====================
model                  ``of="loss"``                    ``of="logit"``                      tokens
====================== ================================ =================================== ====================
causal LM              NLL of the labels, shifted by 1  logit of the labels, summed         labelled positions
masked LM, token cls,  NLL of the labels                logit of the labels, summed         labelled positions
encoder-decoder
sequence cls           NLL; squared error; mean BCE     logit of the label                  1, or 0 if ignored
reward model, pairs    Bradley-Terry NLL                                                    1
====================== ================================ =================================== ====================

Losses are in nats, summed over tokens: the mean is ``value / tokens``. Label -100 is ignored; a row all of whose labels
are ignored has value 0, tokens 0 and gradient 0.

A reward model (one logit) reads a preference pair as a row ``[b, 2, positions]``, chosen and rejected, without labels. Its loss is that
of TRL's ``RewardTrainer``, ``-log sigmoid(chosen - rejected - margin)``, without the term of ``center_rewards_coefficient``.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients.blocks import unpeft, unwrap

IGNORED = -100
Target = Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Tensor]]
Logit = int | tuple[int, int] | Literal["difference"] | None
CustomLoss = Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Tensor] | None]


def make_target(
    model: nn.Module, of: str | Target, logit: Logit = None, custom_loss: CustomLoss | None = None
) -> Target:
    """The target that ``of`` names.

    ``of``: ``"loss"``, ``"logit"``, or a callable ``(model, batch) -> (value [b], tokens [b])``; ``value [b,
    columns]`` differentiates several scalars of one forward pass, each with a backward of its own.
    ``logit``, with ``of="logit"``: None = the logit of the row's own label (summed over labelled positions in a
    language model); an int = that class or vocabulary entry at the same places; a pair ``(k, l)`` = logit k less
    logit l; ``"difference"`` = ``(1, 0)``, for two classes.
    ``custom_loss``: asked first where ``of="loss"``; it may return None to decline.

    Raises ``OptionError`` for anything else and for a model whose loss is not known.
    """
    if callable(of):
        return of
    if of not in ("loss", "logit"):
        raise OptionError(
            f"of: {of!r} arrived; it must be 'loss', 'logit' or a callable (model, batch) -> (value, tokens)"
        )
    if of == "loss" and logit is not None:
        raise OptionError(f"logit={logit!r} goes with of='logit', but of='loss' arrived")
    task = find_task(model)

    def target(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if of == "loss" and custom_loss is not None:
            answer = custom_loss(model, batch)
            if answer is not None:
                return answer
        if task is None:
            raise OptionError(
                f"of={of!r}: the loss of {type(unwrap(model)).__name__} is not known here; pass of=callable, or let a "
                "plugin implement the hook per_example_loss(model, batch)"
            )
        if is_pairs(batch):
            return _pairs(model, batch, of)
        if task == "sequence":
            return _sequence(model, batch, of, logit)
        return _tokens(model, batch, of, logit, shift=task == "causal")

    return target


def per_example_loss(
    model: nn.Module, batch: dict[str, Any], *, custom_loss: CustomLoss | None = None
) -> tuple[Tensor, Tensor]:
    """Loss of each row of a collated batch: ``(loss_sum [b] in nats, tokens [b])``, in the mode the model is in.

    Keys ``row_id`` and ``weights`` are left out. Gradients are recorded unless the caller turned them off.
    """
    inputs = {key: value for key, value in batch.items() if key not in ("row_id", "weights")}
    return make_target(model, "loss", custom_loss=custom_loss)(model, inputs)


def find_task(model: nn.Module) -> Literal["causal", "tokens", "sequence"] | None:
    """How the model's labels relate to its logits, from the names of its classes; None if they do not tell."""
    inner = unpeft(unwrap(model))
    for name in (kind.__name__ for kind in type(inner).__mro__):
        if "ForSequenceClassification" in name:
            return "sequence"
        if "ForMaskedLM" in name or "ForTokenClassification" in name:
            return "tokens"
        if "ForCausalLM" in name or "LMHeadModel" in name:
            return "causal"
        if "ForConditionalGeneration" in name:
            config = getattr(inner, "config", None)
            return "tokens" if getattr(config, "is_encoder_decoder", False) else "causal"
    return None


def _take_labels(batch: dict[str, Any], what: str) -> tuple[Tensor, dict[str, Any]]:
    labels = batch.get("labels")
    if labels is None:
        raise DataError(
            f"{what}: the batch has no 'labels' (its keys: {', '.join(batch)}); keep them in the data collator"
        )
    return torch.as_tensor(labels), {key: value for key, value in batch.items() if key != "labels"}


def _rows(bad: Tensor) -> str:
    places = bad.reshape(bad.shape[0], -1).any(1).nonzero().flatten().tolist()
    return ", ".join(map(str, places[:10])) + (", ..." if len(places) > 10 else "")


def _check_classes(labels: Tensor, count: int, what: str) -> None:
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{what}: labels of type {labels.dtype} arrived where class numbers are needed; convert them to integers"
        )
    bad = (labels != IGNORED) & ((labels < 0) | (labels >= count))
    if bad.any():
        raise DataError(
            f"{what}: label {labels[bad][0].item()} lies outside 0..{count - 1} in rows {_rows(bad)} of the batch; "
            f"use {IGNORED} for positions to ignore"
        )


def _pick(logits: Tensor, labels: Tensor, logit: Logit) -> Tensor:
    """The chosen logit of each row of ``logits [n, classes]``: ``[n]``."""
    count = logits.shape[-1]
    if logit is None:
        return logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    if logit == "difference":
        if count != 2:
            raise OptionError(f"logit='difference' is for two classes, the model has {count}; pass a pair (k, l)")
        logit = (1, 0)
    pair = logit if isinstance(logit, tuple) else (logit,)
    if not all(isinstance(k, int) and 0 <= k < count for k in pair) or len(pair) > 2:
        raise OptionError(f"logit={logit!r}: the model has logits 0..{count - 1}; pass one number, or a pair of them")
    return logits[:, pair[0]] if len(pair) == 1 else logits[:, pair[0]] - logits[:, pair[1]]


def _tokens(model: nn.Module, batch: dict[str, Any], of: str, logit: Logit, *, shift: bool) -> tuple[Tensor, Tensor]:
    labels, inputs = _take_labels(batch, f"of={of!r}")
    if labels.dim() != 2:
        raise DataError(
            f"of={of!r}: labels of shape {list(labels.shape)} arrived; a language model needs [batch, positions]"
        )
    if shift:
        labels = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    # Encoder-decoders make the decoder's input from the labels.
    config = getattr(unwrap(model), "config", None)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
        inputs["labels"] = batch["labels"]
    if shift and "logits_to_keep" not in inputs:
        columns = (labels != IGNORED).any(0).nonzero().flatten()
        # The head over a large vocabulary is the dearest layer: leave out positions that no row is labelled at.
        if 0 < len(columns) < 0.8 * labels.shape[1] and _accepts(model, "logits_to_keep"):
            inputs["logits_to_keep"] = columns
            labels = labels[:, columns]
    logits = model(**inputs).logits
    labels = labels.to(logits.device)
    _check_classes(labels, logits.shape[-1], f"of={of!r}")
    mask = labels != IGNORED
    if of == "loss" and mask.sum() * 2 > mask.numel():  # few to leave out: a gather would cost more than it saves
        values = _NegativeLogLikelihood.apply(logits.flatten(0, 1).float(), labels.flatten())
        return values.view(labels.shape).sum(1), mask.sum(1)
    chosen, kept = logits[mask].float(), labels[mask]
    values = F.cross_entropy(chosen, kept, reduction="none") if of == "loss" else _pick(chosen, kept, logit)
    rows = torch.arange(len(labels), device=labels.device).unsqueeze(1).expand_as(labels)[mask]
    return values.new_zeros(len(labels)).index_add(0, rows, values), mask.sum(1)


class _NegativeLogLikelihood(torch.autograd.Function):
    """``cross_entropy(logits [n, classes], labels [n], reduction="none")``, whose own backward takes twice as long on a
    CPU (torch 2.13) as that of the mean."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ignored = labels == IGNORED
        places = labels.masked_fill(ignored, 0).unsqueeze(1)
        log_probabilities = torch.log_softmax(logits, dim=1)
        ctx.save_for_backward(log_probabilities, places, ignored)
        return log_probabilities.gather(1, places).squeeze(1).neg().masked_fill(ignored, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_probabilities, places, ignored = ctx.saved_tensors
        factor = gradients[0].masked_fill(ignored, 0).unsqueeze(1)
        return log_probabilities.exp().mul_(factor).scatter_add_(1, places, -factor), None


def _accepts(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(unwrap(model).forward).parameters


def _sequence(model: nn.Module, batch: dict[str, Any], of: str, logit: Logit) -> tuple[Tensor, Tensor]:
    if of == "logit" and logit is not None:
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits.float()
        return _pick(logits, logits, logit), torch.ones(len(logits), dtype=torch.long, device=logits.device)
    labels, inputs = _take_labels(batch, f"of={of!r}")
    logits = model(**inputs).logits.float()
    labels = labels.to(logits.device)
    problem = _problem(model, logits, labels)
    if problem != "single_label_classification":
        labels = labels.reshape(logits.shape) if labels.numel() == logits.numel() else labels
        if labels.shape != logits.shape or not torch.isfinite(labels.float()).all():
            bad = ~torch.isfinite(labels.float())
            where = f"not finite in rows {_rows(bad)}" if bad.any() else f"of shape {list(labels.shape)}"
            raise DataError(f"of={of!r}: labels {where} for logits of shape {list(logits.shape)} ({problem})")
        if of == "logit":
            raise OptionError(
                "of='logit' without logit= takes the row's own class, which this model's labels do not name"
            )
        loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        values = loss(logits, labels.float(), reduction="none").mean(1)
        return values, torch.ones(len(logits), dtype=torch.long, device=logits.device)
    labels = labels.reshape(-1)
    _check_classes(labels, logits.shape[-1], f"of={of!r}")
    mask = labels != IGNORED
    safe = labels.masked_fill(~mask, 0)
    values = F.cross_entropy(logits, safe, reduction="none") if of == "loss" else _pick(logits, safe, None)
    return torch.where(mask, values, torch.zeros_like(values)), mask.long()


def is_pairs(batch: dict[str, Any]) -> bool:
    """Whether each row of the batch is a preference pair, ``input_ids [b, 2, positions]``."""
    tokens = batch.get("input_ids")
    return isinstance(tokens, Tensor) and tokens.dim() == 3 and tokens.shape[1] == 2 and "labels" not in batch


def answer(batch: dict[str, Any], which: int) -> dict[str, Any]:
    """The model's inputs of the chosen (0) or rejected (1) answers of a batch of pairs."""
    return {name: x[:, which] for name, x in batch.items() if isinstance(x, Tensor) and x.dim() == 3}


def _pairs(model: nn.Module, batch: dict[str, Any], of: str) -> tuple[Tensor, Tensor]:
    chosen, rejected = (model(**answer(batch, which)).logits.float() for which in range(2))
    if of != "loss" or chosen.dim() != 2 or chosen.shape[1] != 1:
        raise OptionError(
            f"of={of!r}: rows of chosen_ids and rejected_ids have a loss, and that for a model of one logit (num_labels=1); "
            f"{type(unwrap(model)).__name__} gave logits of shape {list(chosen.shape)}"
        )
    margin = (chosen - rejected).squeeze(1)
    if "margin" in batch:
        margin = margin - batch["margin"].to(margin)
    return -F.logsigmoid(margin), torch.ones(len(margin), dtype=torch.long, device=margin.device)


def _problem(model: nn.Module, logits: Tensor, labels: Tensor) -> str:
    """transformers' own rule (loss_utils.ForSequenceClassificationLoss), without writing it into the config."""
    config = getattr(unwrap(model), "config", None)
    stated = getattr(config, "problem_type", None)
    if stated is not None:
        return str(stated)
    if logits.shape[-1] == 1:
        return "regression"
    per_class = labels.dim() == 2 and labels.shape == logits.shape
    return "multi_label_classification" if labels.is_floating_point() and per_class else "single_label_classification"
