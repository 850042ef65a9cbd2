"""Makes a dataset readable by the model: tokenized rows are taken as they are, raw text is tokenized.

Raw columns that are understood: ``text`` (and ``text_pair``), ``premise`` + ``hypothesis``, ``sentence`` /
``sentence1`` + ``sentence2`` for classifiers; ``text``, or ``prompt`` + ``completion`` (strings or messages) for causal LMs,
where only the completion is labelled. As in ``SFTTrainer`` an end of sequence follows the text or the completion, and what
is longer than the model can read is cut at the end.
"""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from hfdataopt.attribution.rows import PAIR, ROW_ID, Rows, check_map_style, pad_batch
from hfdataopt.attribution.task import is_causal
from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import unpeft

TEXT_COLUMNS = (("text", "text_pair"), ("premise", "hypothesis"), ("sentence1", "sentence2"), ("text",), ("sentence",))


def prepare_dataset(
    dataset: Any, model: Any, processing_class: Any, collate: Callable[..., Any] | None, side: str
) -> tuple[Any, Any]:
    """``(dataset with model inputs, collator)``; the dataset is returned unchanged where it has ``input_ids``.

    Raises:
        DataError: no ``input_ids`` and no text column that is understood, or no tokenizer to read it with.
    """
    check_map_style(dataset, "queries=" if side == "queries" else f"the {side}")
    columns = getattr(dataset, "column_names", None)
    inner = getattr(processing_class, "pad_token_id", None)
    pad = inner if inner is not None else getattr(getattr(model, "config", None), "pad_token_id", None) or 0

    def collate_by_padding(rows: list[Any]) -> dict[str, Any]:
        return pad_batch(rows, pad)

    if collate is not None and not callable(collate):
        raise OptionError(f"data_collator={collate!r:.80} must be a function of a list of rows, or None")
    collate = collate or collate_by_padding
    text_like = columns is not None and any(
        set(names) <= set(columns) for names in (*TEXT_COLUMNS, ("prompt", "completion"))
    )
    pairs = columns is not None and set(columns) >= PAIR
    if columns is None or "input_ids" in columns or pairs or not text_like:
        if columns is not None and "input_ids" not in columns and not pairs and not _has_inputs(columns, model):
            if {"chosen", "rejected"} <= set(columns):
                raise DataError(
                    f"the {side} holds pairs as text; a RewardTrainer tokenizes them: give them to it as eval_dataset, and itself to "
                    "AttributionCallback(trainer=...) without queries="
                )
            raise DataError(
                f"the {side} has neither input_ids nor text columns that are understood (text, premise + hypothesis, sentence, "
                f"prompt + completion); it has: {', '.join(columns)}. Tokenize it first"
            )
        return dataset, collate
    if processing_class is None:
        raise DataError(
            f"the {side} holds raw text ({', '.join(columns)}); pass processing_class= the tokenizer (to attribute or the Trainer), or tokenize it"
        )
    if "completion" in columns and "prompt" in columns:
        encode = _encode_completion(processing_class, longest_input(model, processing_class), side)
        return dataset.map(encode, desc=f"tokenizing the {side}", load_from_cache_file=False), collate_by_padding
    names = next(names for names in TEXT_COLUMNS if set(names) <= set(columns))
    own_labels = is_causal(model) and "labels" not in columns and "label" not in columns
    end = _end_of_text(processing_class) if own_labels else ""
    limit = longest_input(model, processing_class)

    def encode_text(row: dict[str, Any]) -> dict[str, Any]:
        texts = [_text_of(row, name, side) for name in names]
        if not texts[-1].endswith(end):
            texts[-1] += end
        encoded = dict(processing_class(*texts, truncation=limit is not None, max_length=limit))
        if own_labels:
            encoded["labels"] = list(encoded["input_ids"])
        return encoded

    return dataset.map(encode_text, desc=f"tokenizing the {side}", load_from_cache_file=False), collate


def query_rows(
    scorer: Any, queries: Any, model: Any, processing_class: Any, collate: Callable[..., Any] | None, keep: Any = None
) -> Rows:
    """The queries as the scorer reads them: tokenized with their labels, or as they are where only prompts are needed.

    ``keep``: the columns that the collator takes; None finds out from the model.
    """
    if scorer.query_form == "prompts":
        return Rows(queries, _no_batch, side="queries", prompts=True)
    prepared, collate = prepare_dataset(queries, model, processing_class, collate, "queries")
    return Rows(prepared, collate, side="queries", keep=model_columns(prepared, model) if keep is None else keep)


def _no_batch(rows: list[Any]) -> dict[str, Any]:
    raise DataError("these queries are prompts to be completed; they have no labelled examples")


def model_columns(dataset: Any, model: Any) -> list[str] | None:
    """The columns that the model's forward takes, and labels: the others (texts, ids) a padding collator could not take."""
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        return None
    accepted = {
        *inspect.signature(unpeft(model).forward).parameters,
        "label",
        "labels",
        "label_ids",
        "input_ids",
        "attention_mask",
        *((*PAIR, "margin") if set(columns) >= PAIR else ()),
    }
    return [name for name in columns if name in accepted]


def _has_inputs(columns: list[str], model: Any) -> bool:
    """Whether a column is something that the model's forward takes, other than labels and masks."""
    inner = unpeft(model)
    parameters = inspect.signature(getattr(inner, "forward", inner)).parameters
    if not any(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters.values()):
        return True  # forward(**batch) takes anything
    return bool((set(columns) & set(parameters)) - {"label", "labels", "label_ids", "attention_mask"})


def longest_input(model: Any, tokenizer: Any) -> int | None:
    """Tokens that the model can read: the tokenizer's limit where it knows one, else the model's number of positions."""
    known = getattr(tokenizer, "model_max_length", None)
    if known is not None and known < 10**9:  # transformers writes 10**30 for "unknown"
        return int(known)
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def _end_of_text(tokenizer: Any) -> str:
    """The end of sequence that a text needs: none where the tokenizer has none, or adds it itself."""
    end = getattr(tokenizer, "eos_token", None) or ""
    return "" if end and tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id] else end


def _text_of(row: dict[str, Any], name: str, side: str) -> str:
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"the {side}: column {name!r} must hold text, but in {_row_name(row)} it is {text!r}")
    return text


def _row_name(row: dict[str, Any]) -> str:
    return f"row {row[ROW_ID]!r}" if ROW_ID in row else f"a row ({textwrap.shorten(str(row), 80)})"


def _encode_completion(tokenizer: Any, limit: int | None, side: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    end = _end_of_text(tokenizer)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str) or not isinstance(completion, list) or not isinstance(prompt, list):
            prompt, completion = _text_of(row, "prompt", side), _text_of(row, "completion", side)
            start = tokenizer(prompt)["input_ids"]
            whole = tokenizer(prompt + completion + ("" if completion.endswith(end) else end))["input_ids"]
        else:
            try:
                start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
                whole = tokenizer.apply_chat_template(prompt + completion, return_dict=True)["input_ids"]
            except Exception as error:  # of the template, which is a program, on messages of any kind
                raise DataError(
                    f"the {side}: the messages of {_row_name(row)} could not be written by the tokenizer's chat template: "
                    f"{type(error).__name__}: {error}"
                ) from error
        shared = next(
            (i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), min(len(start), len(whole))
        )
        labels = [-100] * shared + whole[shared:]
        return {"input_ids": whole[:limit], "attention_mask": [1] * len(whole[:limit]), "labels": labels[:limit]}

    return encode
