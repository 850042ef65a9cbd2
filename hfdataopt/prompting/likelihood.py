"""How likely a local language model finds given completions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hfdataopt.errors import DataError
from hfdataopt.generation.completion import Completion
from hfdataopt.generation.prompts import completion_ids, prompt_ids
from hfdataopt.selection.language_models import Tokens, open_language_model, token_losses

WHO = "log_likelihoods"


def log_likelihoods(
    model: Any, processing_class: Any, prompts: Sequence[Any], completions: Sequence[str], batch_size: int = 16
) -> np.ndarray:
    """Log-probability in nats ``[n]`` float64 of each completion given its prompt, text or messages; no end token is added.

    Bit for bit the same for a pair whatever pairs come with it.

    Raises:
        DataError: a completion without tokens, or a pair longer than the model can read; it is named by its position.
    """
    lm = open_language_model(model, processing_class=processing_class, who=WHO)
    limit, rows = lm.limit(None), []
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        before = prompt_ids(prompt, lm.tokenizer, WHO, place)
        after = completion_ids(Completion(completion), prompt, lm.tokenizer, eos=False, row_id=place)
        if not after:
            raise DataError(f"{WHO}: completion {place} has no tokens (got {completion!r})")
        if limit is not None and len(before) + len(after) > limit:
            raise DataError(
                f"{WHO}: prompt and completion {place} have {len(before)} + {len(after)} tokens; the model reads {limit}: shorten "
                "the prompt or its exemplars"
            )
        rows.append(Tokens(before, after, True))
    with lm.running():
        losses = token_losses(lm, rows, batch_size)
    return np.array([-one.sum() for one in losses], np.float64)
