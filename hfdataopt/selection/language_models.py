"""What a causal LM makes of texts: the negative log-likelihood of each token of a completion, given what stands before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hfdataopt.attribution.task import attends_causally, is_causal
from hfdataopt.errors import OptionError
from hfdataopt.generation.completion import Completion
from hfdataopt.generation.prompts import completion_ids, prompt_ids
from hfdataopt.selection.local_models import (
    Dtype,
    LocalModel,
    Pass,
    fixed_batches,
    open_model,
    say_once_that_rows_are_cut,
)
from hfdataopt.selection.source import Batch, as_text


def open_language_model(
    model: Any,
    *,
    processing_class: Any = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    who: str,
) -> LocalModel:
    """A causal LM by hub id or folder, or a live one with its tokenizer; arguments as of ``local_models.open_model``.

    Raises:
        OptionError: it is none.
    """
    if model is None:
        raise OptionError(f"{who}: give model=, the hub id or folder of a causal language model, or a live one")
    opened = open_model(model, "causal-lm", processing_class=processing_class, device=device, dtype=dtype, who=who)
    if not is_causal(opened.model) or not attends_causally(opened.model):
        raise OptionError(f"{who}: {type(opened.model).__name__} is not a causal language model")
    return opened


@dataclass(frozen=True)
class Parts:
    """A row as prompt and completion; the prompt is None where the row is one text."""

    prompt: Any
    completion: str


def parts_of(batch: Batch) -> list[Parts | None]:
    """Prompt and completion of each row; None where there is nothing to predict.

    ``prompt`` + ``completion`` (or ``chosen``): as TRL reads them. One column of messages: the last message of the assistant
    is the completion, those before it are the prompt. Several other columns: the last is the completion, the others, each on a
    line, are the prompt. One column of text has no prompt.

    Raises:
        DataError: a cell is neither text nor messages.
    """
    written = [bool(text.strip()) for text in batch.texts]  # which also checks the cells
    usual = batch.read in (("prompt", "completion"), ("prompt", "chosen"))
    columns = [list(batch[name]) for name in batch.read]
    rows = zip(written, batch.missing, zip(*columns, strict=True), strict=True)
    return [_parts(cells, usual) if some and not missing else None for some, missing, cells in rows]


def _parts(cells: tuple[Any, ...], usual: bool) -> Parts | None:
    if len(cells) == 1:
        return Parts(None, cells[0]) if isinstance(cells[0], str) else _last_turn(list(cells[0]))
    if usual:
        prompt, completion = cells[0], as_text(cells[1])
    else:
        prompt = "".join(f"{text}\n" for text in map(as_text, cells[:-1]) if text.strip())
        completion = as_text(cells[-1])
    blank = not prompt.strip() if isinstance(prompt, str) else len(prompt) == 0
    return Parts(None if blank else prompt, completion) if completion.strip() else None


def _last_turn(messages: list[Mapping[str, Any]]) -> Parts | None:
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if message.get("role") == "assistant" and message.get("content") is not None:
            completion = as_text(message)
            return Parts(messages[:place] or None, completion) if completion.strip() else None
    return None


@dataclass(frozen=True)
class Tokens:
    """A row as token ids.

    Attributes:
        prompt: what stands before the completion, the first token of a sequence included.
        completion: without an end token; not empty.
        prompted: whether the row has a prompt of its own.
    """

    prompt: list[int]
    completion: list[int]
    prompted: bool


def encode_rows(batch: Batch, lm: LocalModel, max_length: int | None, who: str) -> list[Tokens | None]:
    """The rows of a batch, cut at the end to what the model can read; None where no completion is left.

    In front stands the tokenizer's first token (beginning or else end of sequence), so that the first token of a text has a
    probability too.
    """
    limit = lm.limit(max_length)
    start = start_ids(lm.tokenizer)
    rows: list[Tokens | None] = []
    for place, parts in enumerate(parts_of(batch)):
        row = None if parts is None else _encode(parts, start, lm.tokenizer, who, batch.labels[place])
        if row is not None and limit is not None and len(row.prompt) + len(row.completion) > limit:
            say_once_that_rows_are_cut(lm.name, limit)
            row = Tokens(row.prompt, row.completion[: max(0, limit - len(row.prompt))], row.prompted)
        rows.append(row if row is not None and row.completion else None)
    return rows


def start_ids(tokenizer: Any) -> list[int]:
    """The token that begins a sequence: the tokenizer's own, else what it puts in front, else the end of the one before."""
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    front = list(tokenizer("a")["input_ids"])[:1]
    if front and _is_special(front[0], tokenizer):
        return front
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _encode(parts: Parts, start: list[int], tokenizer: Any, who: str, row_id: Any) -> Tokens:
    if parts.prompt is None:
        ids = prompt_ids(parts.completion, tokenizer, who, row_id)
        if not start or _is_special(ids[0], tokenizer):
            return Tokens(ids[:1], ids[1:], False)
        return Tokens(start, ids, False)
    prompt = prompt_ids(parts.prompt, tokenizer, who, row_id)
    more = completion_ids(Completion(parts.completion), parts.prompt, tokenizer, eos=False, row_id=row_id)
    return Tokens(prompt if _is_special(prompt[0], tokenizer) else start + prompt, more, True)


def _is_special(token: int, tokenizer: Any) -> bool:
    return token in tokenizer.all_special_ids and token != tokenizer.unk_token_id


def token_losses(lm: LocalModel, rows: Sequence[Tokens | None], batch_size: int) -> list[np.ndarray]:
    """Per row ``[completion tokens]`` float64, negative log-likelihoods in nats; to be called inside ``lm.running()``.

    Bit for bit the same for a row whatever rows come with it. NaN for a token with nothing before it; empty for None. Memory is
    ``batch_size`` times tokens times vocabulary, on a CPU for each of its threads.
    """
    limit = lm.limit(None)
    whole = [[] if row is None else row.prompt + row.completion for row in rows]
    pad = getattr(lm.tokenizer, "pad_token_id", None) or 0
    found = [np.zeros(0) for _ in rows]

    def run(one: Pass) -> None:
        positions, ids, mask = one
        ids = ids.to(lm.device)
        logits = lm.model(input_ids=ids, attention_mask=mask.to(lm.device), use_cache=False).logits
        for place, position in enumerate(positions):
            row = rows[position]
            assert row is not None
            losses = torch.nn.functional.cross_entropy(logits[place, :-1].float(), ids[place, 1:], reduction="none")
            known = np.concatenate([[np.nan], losses.double().cpu().numpy()])
            found[position] = known[len(row.prompt) : len(whole[position])]

    for _ in lm.each(run, fixed_batches(whole, batch_size, limit, pad)):
        pass
    return found
