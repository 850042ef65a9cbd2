"""Log-probabilities of the answers of preference pairs, token for token as TRL's ``DPOTrainer`` has them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation.prompts import tokenizer_of
from hfdataopt.selection.language_models import Tokens, token_losses
from hfdataopt.selection.local_models import LocalModel, say_once_that_rows_are_cut
from hfdataopt.selection.preferences import Pair

PairTokens = tuple[list[int], list[int], list[int]]  # of prompt, chosen, rejected


def pair_tokens(pair: Pair, processing_class: Any, who: str, row: str) -> PairTokens:
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
    lm: LocalModel, pairs: Sequence[PairTokens], *, batch_size: int, max_length: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """``[pairs]`` float64 each: log-probability of chosen and of rejected after the prompt, summed over tokens, in nats.

    Tokens beyond ``max_length``, or what the model can read, do not count, nor does a token with nothing before it; NaN where
    no token of an answer is left.
    """
    limit = lm.limit(max_length)
    rows: list[Tokens | None] = []
    for prompt, *answers in pairs:
        for answer in answers:
            if limit is not None and len(prompt) + len(answer) > limit:
                say_once_that_rows_are_cut(lm.name, limit)
                answer = answer[: max(0, limit - len(prompt))]
            rows.append(Tokens(prompt, answer, True) if answer else None)
    with lm.running():
        losses = token_losses(lm, rows, batch_size)
    known = [row[~np.isnan(row)] for row in losses]
    found = np.array([-row.sum() if len(row) else np.nan for row in known])
    return found[::2], found[1::2]
