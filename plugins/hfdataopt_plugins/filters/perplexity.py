"""Perplexity of the text, or of the answer given its prompt, under a causal language model on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from hfdataopt.errors import DataError
from hfdataopt.hookspecs import hookimpl
from hfdataopt.selection.language_models import encode_rows, token_losses
from hfdataopt.selection.model_filter import LanguageModelFilter
from hfdataopt.selection.source import Batch, Source


@dataclass(frozen=True)
class Perplexity(LanguageModelFilter):
    """Exp of the mean negative log-likelihood of a row's tokens, in nats; negated where the lowest is best.

    Of ``prompt`` + ``completion`` and of messages it is the perplexity of the completion (the last message of the assistant) given
    what stands before it; of several columns named in ``text``, of the last given the others. The end of sequence does not
    count. A row with nothing to predict, or whose prompt leaves no room for it, has no score (NaN); ``fit`` looks for such rows first.

    Args:
        model: hub id or folder of a causal LM, or a live one (in training, say). Required.
        best: whether a row that the model expects scores highest (``lowest`` perplexity), or one that surprises it.
    """

    name: ClassVar[str] = "perplexity"
    meaning: ClassVar[str] = "a text that the model expects (one that surprises it with best='highest')"
    no_score: ClassVar[str] = "no answer, or a prompt that leaves no room for it in what the model reads"

    best: Literal["lowest", "highest"] = "lowest"

    def learn(self, pool: Source, target: Source | None) -> None:
        super().learn(pool, target)
        if self.on_nan == "error" and not pool.streaming:
            self._check_room(pool)

    def _check_room(self, pool: Source) -> None:
        """Tell of rows without a score by a pass of the tokenizer, rather than when the model comes to them."""
        lm, without, first = self.local_model(), 0, ""
        with lm.running():
            for batch in pool.batches():
                for place, row in enumerate(encode_rows(batch, lm, self.max_length, self.name)):
                    if row is None and not batch.missing[place]:
                        without += 1
                        first = first or batch.name_of(place)
        if without:
            others = f", nor have {without - 1:,} other rows" if without > 1 else ""
            raise DataError(
                f"{self.name}: {first} has no score (NaN: {self.no_score}){others}; drop such rows with on_nan='drop', or "
                "shorten their prompts"
            )

    def score(self, batch: Batch) -> np.ndarray:
        lm = self.local_model()
        with lm.running():
            rows = encode_rows(batch, lm, self.max_length, self.name)
            losses = token_losses(lm, rows, self.batch_size)
        found = np.array([np.exp(loss.mean()) if len(loss) else np.nan for loss in losses])
        return -found if self.best == "lowest" else found


@hookimpl
def register_filters(register: Callable[..., None]) -> None:
    register(Perplexity)
