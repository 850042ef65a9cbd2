"""How likely a local language model finds given completions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfdataopt.console import say
from hfdataopt.errors import DataError
from hfdataopt.generation.completion import Completion
from hfdataopt.generation.prompts import completion_ids, prompt_ids
from hfdataopt.selection.language_models import Tokens, open_language_model, token_losses

WHO = "log_likelihoods"


def log_likelihoods(
    model: Any, processing_class: Any, prompts: Sequence[Any], completions: Sequence[str], batch_size: int = 16
) -> np.ndarray:
    """Log-probability in nats ``[n]`` float64 of each completion given its prompt, text or messages; no end token is added.

    Bit for bit the same for a pair whatever pairs come with it. NaN for a pair longer than the model can read, which is said.

    Raises:
        DataError: a completion without tokens; it is named by its position.
    """
    lm = open_language_model(model, processing_class=processing_class, who=WHO)
    limit, rows, long = lm.limit(None), [], dict[int, int]()
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        before = prompt_ids(prompt, lm.tokenizer, WHO, place)
        after = completion_ids(Completion(completion), prompt, lm.tokenizer, eos=False, row_id=place)
        if not after:
            raise DataError(f"{WHO}: completion {place} has no tokens (got {completion!r})")
        if limit is not None and len(before) + len(after) > limit:
            long[place] = len(before) + len(after)
            continue
        rows.append(Tokens(before, after, True))
    if long:
        say(
            f"{WHO}: {len(long)} of {len(prompts)} pairs of prompt and completion have up to {max(long.values())} tokens; the model "
            f"reads {limit}, and they have no likelihood"
        )
    found = np.full(len(prompts), np.nan)
    if rows:
        with lm.running():
            losses = token_losses(lm, rows, batch_size)
        found[[place for place in range(len(prompts)) if place not in long]] = [-one.sum() for one in losses]
    return found
