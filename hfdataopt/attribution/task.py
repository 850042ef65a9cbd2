"""Classification as the kernel scorers see it: class labels of pool and queries, and one scalar per class and row.

Three heads give the scalar that is differentiated:

- ``model``: the model's own classification head
- ``probe``: a linear probe fitted on the pool's pooled features; the model's head, often untrained, is not used
- ``prompt``: for masked and causal LMs, the logits of the label words at the position of the answer, as FreeShap's paper
  does. The label words are the tokens that occur there as labels in the pool.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from hfdataopt.attribution.probe import LinearProbe
from hfdataopt.attribution.rows import Rows
from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import find_task, name_rows, unpeft
from hfdataopt.gradients.losses import answer, is_pairs
from hfdataopt.gradients.runner import counts_positions

MAX_LABEL_WORDS = 64
Pooling = Literal["auto", "mean", "first", "last", "answer"]


@dataclass(frozen=True)
class ClassLabels:
    """Labels of pool and queries as indices into ``classes``.

    Attributes:
        classes: the label values that occur in the pool, ascending: class ids, or token ids of label words.
        pool: ``[n]`` long. queries: ``[t]`` long, or None without queries.
        words: whether the labels are tokens predicted by a language model.
    """

    classes: list[int]
    pool: torch.Tensor
    queries: torch.Tensor | None
    words: bool

    @property
    def count(self) -> int:
        return len(self.classes)


def read_labels(model: Any, pool: Rows, queries: Rows | None, who: str, batch_size: int = 64) -> ClassLabels:
    """Class labels of every row, checked.

    Raises:
        DataError: labels that are missing, not whole numbers, NaN, out of range, of one class only, or a query label that
            no pool row has. The message names scorer, side and row ids.
    """
    pool_values, words = _labels_of(model, pool, who, batch_size)
    classes = sorted(set(pool_values))
    if len(classes) < 2:
        raise DataError(
            f"{who}: all {len(pool)} pool rows have the label {classes[0]}; at least two classes are needed{_of_words(words)}"
        )
    if words and len(classes) > MAX_LABEL_WORDS:
        raise DataError(
            f"{who} is for classification, but the answers of the pool begin with {len(classes)} different tokens (at most "
            f"{MAX_LABEL_WORDS} are taken for label words); for free text use tracin, loss or another gradient scorer"
        )
    index = {value: position for position, value in enumerate(classes)}
    query_labels = None
    if queries is not None:
        query_values, _ = _labels_of(model, queries, who, batch_size)
        unknown = [(queries.ids[i], value) for i, value in enumerate(query_values) if value not in index]
        if unknown:
            raise DataError(
                f"{who}: query row {unknown[0][0]!r} has the label {unknown[0][1]}, which no pool row has ({len(unknown)} such "
                f"queries){_of_words(words)}"
            )
        query_labels = torch.tensor([index[value] for value in query_values])
    return ClassLabels(classes, torch.tensor([index[value] for value in pool_values]), query_labels, words)


def _of_words(words: bool) -> str:
    """What to add where labels are the tokens that a language model's answers begin with."""
    return (
        "; labels are the first tokens of the answers here: for free text use tracin, influence or loss"
        if words
        else ""
    )


def _labels_of(model: Any, rows: Rows, who: str, batch_size: int) -> tuple[list[int], bool]:
    side = f"{who}: the {rows.side}"
    if rows.pairs:
        raise DataError(
            f"{side} holds preference pairs (chosen_ids, rejected_ids), which have no classes; for pairs use cv-confidence, "
            "loss, self-influence, tracin or another gradient scorer"
        )
    values: list[int] = []
    words = is_language_model(model)
    for ids, labels in _label_batches(rows, side, batch_size):
        if labels.ndim == 2 and words:
            values += _answer_tokens(model, labels, ids, side)[1].tolist()
            continue
        if labels.ndim != 1:
            raise DataError(
                f"{side}: one class per row is needed, but the labels have shape [rows, {', '.join(map(str, labels.shape[1:]))}]; "
                "for several labels per row use loss, tracin or another gradient scorer"
            )
        _check_classes(labels, ids, side, model)
        values += labels.tolist()
    return values, words


def _label_batches(rows: Rows, side: str, batch_size: int) -> Iterator[tuple[list[Any], torch.Tensor]]:
    """``(row ids, labels)`` of every collated batch."""
    batches = rows.batches(batch_size)
    while True:
        try:
            positions, batch = next(batches)
        except StopIteration:
            return
        except DataError:  # the collator failed: perhaps on a label that is None
            _refuse_none(rows, side)
            raise
        labels = batch.get("labels", batch.get("label"))
        if labels is None:
            raw = _refuse_none(rows, side)
            if raw and isinstance(raw[0], str):
                raise DataError(
                    f"{side} has labels that are strings, such as {raw[0]!r}; map them to class numbers "
                    "(dataset.class_encode_column)"
                )
            raise DataError(
                f"{side} has no labels after collation (columns {sorted(batch)}); a column 'label' or 'labels' is needed"
            )
        if not isinstance(labels, torch.Tensor):
            raise DataError(f"{side}: labels must be collated to a tensor; got {type(labels).__name__}")
        yield [rows.ids[p] for p in positions], labels


def _refuse_none(rows: Rows, side: str) -> list[Any] | None:
    """The column of labels before collation, if there is one; raises where a row's label is None."""
    raw = next((column for name in ("label", "labels") if (column := rows.column(name)) is not None), None)
    missing = [rows.ids[position] for position, value in enumerate(raw or []) if value is None]
    if missing:
        raise DataError(
            f"{side}: the label of {len(missing)} row(s) is None: {name_rows(missing)}; give them a label or leave them out"
        )
    return raw


def _check_classes(labels: torch.Tensor, ids: list[Any], side: str, model: Any, ignored: int | None = None) -> None:
    """Class numbers ``[b]`` in the model's range, or ``ignored``."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        bad = torch.nonzero(torch.isnan(labels)).flatten().tolist()
        where = f"row {ids[bad[0]]!r} is NaN" if bad else f"row {ids[0]!r} is {labels[0].item()!r}"
        raise DataError(f"{side}: class labels must be whole numbers, but {where} ({labels.dtype})")
    count = getattr(model.config, "num_labels", None)
    for row, value in zip(ids, labels.tolist(), strict=True):
        if value != ignored and (value < 0 or (count is not None and value >= count)):
            raise DataError(
                f"{side}: row {row!r} has the label {value}, but the model has classes 0 to {(count or 0) - 1}"
            )


def check_inputs(model: Any, batch: dict[str, Any], ids: list[Any], what: str) -> None:
    """Raise where the tokens of a collated batch are none of this model's: a GPU would only tell of it much later.

    Raises:
        DataError: tokens that are no whole numbers or outside of the vocabulary, or masks and labels of another shape; with the row.
    """
    tokens = batch.get("input_ids")
    inner = unpeft(model)
    if not hasattr(inner, "get_input_embeddings"):
        return
    if "input_ids" not in batch:
        if (
            getattr(inner, "main_input_name", "") == "input_ids"
            and not {"inputs_embeds", "decoder_input_ids"} & batch.keys()
        ):
            raise DataError(
                f"{what}: rows {name_rows(ids)} were collated to {', '.join(sorted(batch)) or 'nothing'}, without input_ids, which this "
                "model reads"
            )
        return
    if not isinstance(tokens, torch.Tensor):
        raise DataError(
            f"{what}: input_ids must be collated to a tensor; got {type(tokens).__name__} (rows {name_rows(ids)})"
        )
    if (
        (tokens.ndim != 2 and not is_pairs(batch))
        or tokens.is_floating_point()
        or tokens.dtype == torch.bool
        or not tokens.shape[-1]
    ):
        raise DataError(
            f"{what}: input_ids must be token ids, whole numbers, some in each row; rows {name_rows(ids)} were collated to "
            f"{str(tokens.dtype).removeprefix('torch.')} of shape {list(tokens.shape)}"
        )
    config = getattr(inner, "config", None)
    for name, size in (
        ("input_ids", getattr(inner.get_input_embeddings(), "num_embeddings", None)),
        ("token_type_ids", getattr(config, "type_vocab_size", None)),
    ):
        values = batch.get(name)
        if not isinstance(values, torch.Tensor) or not size:
            continue
        if values.is_floating_point():
            raise DataError(f"{what}: {name} must be whole numbers; got {values.dtype} (rows {name_rows(ids)})")
        outside = ((values < 0) | (values >= size)).reshape(len(ids), -1)
        if outside.any():
            row = int(outside.any(1).nonzero()[0])
            raise DataError(
                f"{what}: {name} of row {ids[row]!r} hold {int(values[row].reshape(-1)[outside[row]][0])}; this model knows 0 to {size - 1}"
            )
    single = not getattr(config, "is_encoder_decoder", False)
    for name in ("attention_mask", "token_type_ids", *(("labels",) if single else ())):
        values = batch.get(name)
        if isinstance(values, torch.Tensor) and values.ndim == 2 and values.shape != tokens.shape:
            if name == "labels" and find_task(model) == "sequence":  # several labels of a row
                continue
            raise DataError(
                f"{what}: {name} of shape {list(values.shape)} arrived for input_ids of shape {list(tokens.shape)} (rows {name_rows(ids)}); "
                "they must be as long as the tokens"
            )


def check_targets(model: Any, rows: Rows, who: str, batch_size: int = 64) -> None:
    """Raise where the labels of any row do not fit the loss of the model, for scorers that read losses or gradients.

    Models whose loss is not known here (a plugin gives it) are not checked.
    """
    task = find_task(model)
    if task is None:
        return
    side = f"{who}: the {rows.side}"
    config = unpeft(model).config
    if rows.pairs:
        if task != "sequence" or config.num_labels != 1:
            raise DataError(
                f"{side} holds preference pairs (chosen_ids, rejected_ids), which a reward model reads: one for sequence classification "
                f"with num_labels=1; got {type(unpeft(model)).__name__}"
            )
        return
    for ids, labels in _label_batches(rows, side, batch_size):
        if task == "sequence":
            stated = getattr(config, "problem_type", None)
            regression = stated == "regression" or (stated is None and config.num_labels == 1)
            if labels.ndim == 1 and not regression:
                _check_classes(labels, ids, side, model, ignored=-100)
                continue
            finite = torch.isfinite(labels.float().reshape(len(labels), -1)).all(1)
        else:
            if labels.is_floating_point():
                raise DataError(f"{side}: labels must be token ids (whole numbers); row {ids[0]!r} has {labels.dtype}")
            size = (
                config.num_labels if _is_kind(model, "ForTokenClassification") else config.get_text_config().vocab_size
            )
            outside = (labels != -100) & ((labels < 0) | (labels >= size))
            finite = ~outside.reshape(len(labels), -1).any(1)
        if not bool(finite.all()):
            row = ids[int(torch.nonzero(~finite)[0])]
            what = "is not finite" if task == "sequence" else f"lies outside 0 to {size - 1}"
            raise DataError(f"{side}: a label of row {row!r} {what}")


def _answer_tokens(model: Any, labels: torch.Tensor, ids: Any, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Position and token id ``[b]`` of the first labelled token of each row; for a causal LM of the first after position 0."""
    labelled = labels != -100
    if is_causal(model):
        labelled = labelled.clone()
        labelled[:, 0] = False
    empty = torch.nonzero(~labelled.any(1)).flatten().tolist()
    if empty:
        raise DataError(f"{side}: row {ids[empty[0]]!r} has no labelled token (all labels are -100)")
    position = labelled.long().argmax(1)
    return position, labels.gather(1, position[:, None])[:, 0]


def _predicting_position(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Where the first labelled token is predicted ``[b]``: at its position (masked LM), or one before (causal LM)."""
    if "labels" not in batch:
        raise DataError(f"the answer of {type(model).__name__} is found by its labels; got columns {sorted(batch)}")
    position, _ = _answer_tokens(model, batch["labels"], range(len(batch["labels"])), "answer position")
    return position - 1 if is_causal(model) else position


def is_causal(model: Any) -> bool:
    """Whether the model's labels are shifted by one: a causal LM, also inside a PEFT wrapper."""
    return find_task(model) == "causal"


def is_language_model(model: Any) -> bool:
    """Whether the model is a causal or a masked LM."""
    return is_causal(model) or _is_kind(model, "ForMaskedLM")


def _is_kind(model: Any, name: str) -> bool:
    """Whether the model's class, or one that it inherits from, is called so."""
    return any(name in kind.__name__ for kind in type(unpeft(model)).__mro__)


# -- features


def body_of(model: Any) -> Any:
    """The transformer without its head: ``base_model`` of a ``PreTrainedModel``, seen through a PEFT wrapper."""
    inner = unpeft(model)
    return getattr(inner, "base_model", inner)


def pooled_features(model: Any, batch: dict[str, Any], pooling: Pooling = "auto") -> torch.Tensor:
    """Last hidden state of each row, pooled: ``[b, d]`` float32.

    ``answer`` is where a language model predicts the first labelled token: there a causal one has not seen the row's own
    label yet, which ``mean`` and ``last`` give away. ``auto`` is ``answer`` for language models, the last real token for
    other models that attend causally, and the mean over real tokens for the rest. Of a preference pair it is the difference, chosen less
    rejected.
    """
    if is_pairs(batch):
        return pooled_features(model, answer(batch, 0), pooling) - pooled_features(model, answer(batch, 1), pooling)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "label", "row_id")}
    mask, body = batch.get("attention_mask"), body_of(model)
    told = counts_positions(model) is not None and "position_ids" in inspect.signature(body.forward).parameters
    if told and mask is not None and bool((mask[:, 0] == 0).any()):  # padded on the left
        inputs.setdefault("position_ids", (mask.cumsum(1) - 1).clamp_min(0))
    hidden = body(**inputs).last_hidden_state.float()
    mask = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.to(hidden)
    if pooling == "auto":
        answers = is_language_model(model) and "labels" in batch
        pooling = "answer" if answers else "last" if attends_causally(model) else "mean"
    if pooling == "mean":
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
    index = mask.argmax(1)
    if pooling == "answer":
        index = _predicting_position(model, batch)
    elif pooling == "last":
        index = (torch.arange(hidden.shape[1], device=hidden.device) * mask).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def attends_causally(model: Any) -> bool:
    """Whether tokens see only those before them."""
    inner = unpeft(model)
    if getattr(inner.config, "is_encoder_decoder", False):
        return False
    return any(getattr(module, "is_causal", False) is True for module in inner.modules())


# -- heads: callables (model, batch) -> logits [b, c]

Head = Callable[[Any, dict[str, Any]], torch.Tensor]


def model_head(classes: list[int]) -> Head:
    """The model's own class logits, restricted to the classes of the pool."""

    def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "label", "row_id")}
        return model(**inputs).logits[:, classes].float()

    return logits


def probe_head(probe: LinearProbe, pooling: Pooling) -> Head:
    """Logits of a linear probe on the pooled last hidden state."""

    def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        features = pooled_features(model, batch, pooling)
        return features @ probe.weight.to(features).T + probe.bias.to(features)

    return logits


def prompt_head(classes: list[int]) -> Head:
    """Logits of the label words where the answer stands: at its position (masked LM), or one before (causal LM)."""

    def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "label", "row_id")}
        position = _predicting_position(model, batch)
        out = model(**inputs).logits
        return out[torch.arange(len(out), device=out.device), position][:, classes].float()

    return logits


def combinations_of(head: Head, coefficients: torch.Tensor) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """The engine's target: ``(logits @ coefficients.T [b, columns], ones [b])`` for ``coefficients [columns, c]``."""

    def target(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = head(model, batch)
        return logits @ coefficients.to(logits).T, torch.ones(len(logits), dtype=torch.long, device=logits.device)

    return target


def resolve_head(name: str, model: Any, labels: ClassLabels, who: str) -> str:
    """``auto`` decided: ``prompt`` for language models, else ``probe``; a head that does not fit the model is an error."""
    language = is_language_model(model)
    if name == "auto":
        return "prompt" if language else "probe"
    if (name == "prompt") != language or labels.words != language:
        kind = "language model" if language else "classifier"
        raise OptionError(f"{who}: head={name!r} does not fit the {kind} {type(model).__name__}; use head='auto'")
    return name
