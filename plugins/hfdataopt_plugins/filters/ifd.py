"""IFD, instruction-following difficulty: how little the prompt helps the model to the answer (Li et al. 2023, "From Quantity to
Quality").
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hfdataopt.hookspecs import hookimpl
from hfdataopt.selection.language_models import Tokens, encode_rows, start_ids, token_losses
from hfdataopt.selection.model_filter import LanguageModelFilter
from hfdataopt.selection.source import Batch


@dataclass(frozen=True)
class IFD(LanguageModelFilter):
    """The mean negative log-likelihood of the completion given its prompt, divided by that of the completion alone.

    Both means are over the same tokens. Below 1 the prompt helps, and the higher the ratio the harder the row and the more
    there is to learn from it. From 1 on the prompt does not help: the authors take such a row for misaligned and leave it out;
    here it scores minus its ratio, below all others, so that ``threshold(0.0)`` drops exactly these.

    Rows are read as by the filter ``perplexity``. A row without a prompt, or without a completion that fits, has no score (NaN).

    Args:
        model: hub id or folder of a causal LM, or a live one. Required. The authors take the model that is to be trained,
            after a short training on a few varied rows.
    """

    name: ClassVar[str] = "ifd"
    meaning: ClassVar[str] = "an answer that the prompt makes little easier; negative where it makes it harder"
    no_score: ClassVar[str] = "no prompt or no answer, or a prompt that leaves no room for it in what the model reads"

    def score(self, batch: Batch) -> np.ndarray:
        lm = self.local_model()
        with lm.running():
            rows = encode_rows(batch, lm, self.max_length, self.name)
            rows = [row if row is not None and row.prompted else None for row in rows]
            start = start_ids(lm.tokenizer)
            alone = [None if row is None else Tokens(start, row.completion, False) for row in rows]
            given, without = (token_losses(lm, part, self.batch_size) for part in (rows, alone))
        first = 0 if start else 1  # a token with nothing before it has no probability
        ratios = np.array([_ratio(a[first:], b[first:]) for a, b in zip(given, without, strict=True)])
        return np.where(ratios < 1, ratios, -ratios)


def _ratio(given: np.ndarray, alone: np.ndarray) -> float:
    if not len(alone) or alone.sum() == 0:
        return float("nan")
    return float(given.mean() / alone.mean())


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(IFD)
