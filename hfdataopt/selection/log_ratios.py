"""Log-probabilities of the answers of preference pairs, token for token as TRL's ``DPOTrainer`` has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfdataopt.attribution.task import is_causal
from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation.prompts import tokenizer_of
from hfdataopt.selection.local_models import LocalModel, fixed_batches, say_once_that_rows_are_cut
from hfdataopt.selection.preferences import Pair

Tokens = tuple[list[int], list[int], list[int]]  # of prompt, chosen, rejected


def pair_tokens(pair: Pair, processing_class: Any, who: str, row: str) -> Tokens:
    """Token ids of a pair: plain answers end with the end token, conversations as the chat template has it.

    The prompt ends where the three tokenizations (alone, with chosen, with rejected) cease to agree.

    Raises:
        OptionError: messages, but the tokenizer has no chat template.
        DataError: the template refuses them.
    """
    tokenizer = tokenizer_of(processing_class, who)
    prompt, *answers = pair
    if isinstance(prompt, str):
        end = tokenizer.eos_token or ""
        texts = [answer if answer.endswith(end) else answer + end for answer in answers]
        alone, *whole = ([*tokenizer(text)["input_ids"]] for text in (prompt, *(prompt + text for text in texts)))
    else:
        if getattr(tokenizer, "chat_template", None) is None:
            raise OptionError(f"{who}: {row} holds messages, but the tokenizer has no chat template; set one")
        try:
            alone = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            whole = [tokenizer.apply_chat_template(prompt + a, return_dict=True)["input_ids"] for a in answers]
        except Exception as error:
            raise DataError(f"{who}: the chat template cannot read {row}: {type(error).__name__}: {error}") from error
    common = min(_agreement(alone, ids) for ids in whole)
    return alone[:common], whole[0][common:], whole[1][common:]


def _agreement(first: Sequence[int], second: Sequence[int]) -> int:
    shorter = min(len(first), len(second))
    return next((place for place in range(shorter) if first[place] != second[place]), shorter)


def answer_logps(
    lm: LocalModel, pairs: Sequence[Tokens], *, batch_size: int, max_length: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """``[pairs]`` float64 each: log-probability of chosen and of rejected after the prompt, summed over tokens, in nats.

    Tokens beyond ``max_length``, or what the model can read, do not count; NaN where no token of an answer is left.
    """
    limit = lm.limit(max_length)
    rows = [prompt + answer for prompt, *answers in pairs for answer in answers]
    starts = [max(len(prompt), 1) for prompt, *_ in pairs for _ in range(2)]  # nothing stands before a first token
    if limit is not None and any(len(row) > limit for row in rows):
        say_once_that_rows_are_cut(lm.name, limit)
        rows = [row[:limit] for row in rows]
    found = np.full(len(rows), np.nan)
    pad = getattr(lm.tokenizer, "pad_token_id", None) or 0
    with lm.running():
        for positions, ids, mask in fixed_batches(rows, batch_size, limit, pad):
            logits = lm.model(input_ids=ids.to(lm.device), attention_mask=mask.to(lm.device)).logits
            for place, row in enumerate(positions):
                start, end = starts[row], len(rows[row])
                if start < end:
                    scores = logits[place, start - 1 : end - 1].float().log_softmax(-1)
                    tokens = ids[place, start:end].to(scores.device)
                    found[row] = float(scores.gather(1, tokens[:, None]).double().sum())
    return found[::2], found[1::2]


def check_causal(lm: LocalModel, who: str) -> None:
    """Raise :class:`OptionError` unless the model predicts each token from those before."""
    if not is_causal(lm.model):
        raise OptionError(f"{who}: {type(lm.model).__name__} is not a causal language model")
