"""RDS: cosines of representations, the last hidden state at the last token, of training rows and queries.

The representation-based selection that LESS compares with (Xia et al. 2024, section 5.1; after Zhang et al. 2018). It looks
at the whole example, prompt and answer, and needs no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from hfdataopt.attribution.scorer import Result, Scorer
from hfdataopt.attribution.task import Pooling
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl


@dataclass
class RDS(Scorer):
    """How like a row is to the queries, as the model represents them.

    Args:
        pooling: where the hidden state is read: ``last`` token as the authors do, ``mean`` over tokens, ``first``, or ``auto``.
        on_nonfinite: what to do with a row whose hidden state is not finite: ``error``, or ``skip`` it.
        dtype: precision of the forward pass; None takes the trainer's autocast.
    """

    name: ClassVar[str] = "rds"

    pooling: Pooling = field(default="last", kw_only=True)
    on_nonfinite: Literal["error", "skip"] = field(default="error", kw_only=True)
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(default=None, kw_only=True)

    def check(self, view: View) -> None:
        next(view.batches("pool", range(min(2, len(view.pool)))))  # raises where its collator makes other rows

    def score(self, view: View) -> Result:
        pool, queries = (
            torch.nn.functional.normalize(
                view.embeddings(side, self.pooling, self.on_nonfinite, self.dtype).double(), dim=1
            )
            for side in ("pool", "queries")
        )
        return Result(matrix=pool @ queries.T)


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(RDS)
