"""Makes a dataset readable by the model: tokenized rows are taken as they are, raw text is tokenized.

Raw columns that are understood: ``text`` (and ``text_pair``), ``premise`` + ``hypothesis``, ``sentence`` /
``sentence1`` + ``sentence2`` for classifiers; ``text``, or ``prompt`` + ``completion`` (strings or messages) for causal LMs,
where only the completion is labelled.
"""

from collections.abc import Callable
from typing import Any

from hfdataopt.attribution.rows import check_map_style, pad_batch
from hfdataopt.attribution.task import is_causal
from hfdataopt.errors import DataError

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

    collate = collate or collate_by_padding
    text_like = columns is not None and any(
        set(names) <= set(columns) for names in (*TEXT_COLUMNS, ("prompt", "completion"))
    )
    if columns is None or "input_ids" in columns or not text_like:
        if (
            columns is not None
            and "input_ids" not in columns
            and processing_class is not None
            and "inputs_embeds" not in columns
        ):
            raise DataError(
                f"the {side} has neither input_ids nor text columns that are understood (text, premise + hypothesis, sentence, "
                f"prompt + completion); it has: {', '.join(columns)}. Tokenize it first"
            )
        return dataset, collate
    if processing_class is None:
        raise DataError(
            f"the {side} holds raw text ({', '.join(columns)}); pass processing_class= the tokenizer, or tokenize it first"
        )
    if "completion" in columns and "prompt" in columns:
        encode = _encode_completion(processing_class)
        return dataset.map(encode, desc=f"tokenizing the {side}", load_from_cache_file=False), collate_by_padding
    names = next(names for names in TEXT_COLUMNS if set(names) <= set(columns))
    causal = is_causal(model)

    def encode_text(row: dict[str, Any]) -> dict[str, Any]:
        encoded = dict(processing_class(*(row[name] for name in names), truncation=True))
        if causal and "labels" not in columns and "label" not in columns:
            encoded["labels"] = list(encoded["input_ids"])
        return encoded

    return dataset.map(encode_text, desc=f"tokenizing the {side}", load_from_cache_file=False), collate


def _encode_completion(tokenizer: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def encode(row: dict[str, Any]) -> dict[str, Any]:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, str):
            start = tokenizer(prompt)["input_ids"]
            whole = tokenizer(prompt + completion + (tokenizer.eos_token or ""))["input_ids"]
        else:
            start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            whole = tokenizer.apply_chat_template(prompt + completion, return_dict=True)["input_ids"]
        shared = next(
            (i for i, (a, b) in enumerate(zip(start, whole, strict=False)) if a != b), min(len(start), len(whole))
        )
        return {"input_ids": whole, "attention_mask": [1] * len(whole), "labels": [-100] * shared + whole[shared:]}

    return encode
