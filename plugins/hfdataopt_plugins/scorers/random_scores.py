"""Random scores: the baseline every ranking must beat. A row's score depends only on (seed, row id)."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hfdataopt.attribution.scorer import Scorer
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range


@dataclass
class Random(Scorer):
    """Uniform draws from [0, 1).

    Args:
        seed: of the draws.
    """

    name: ClassVar[str] = "random"
    meaning: ClassVar[Any] = "chance"
    default_when: ClassVar[Any] = "train_begin"
    needs_queries: ClassVar[bool] = False

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "seed", at_least=0)

    def score(self, view: View) -> torch.Tensor:
        digests = [hashlib.sha256(f"{self.seed}:{value!r}".encode()).digest() for value in view.pool.ids]
        return torch.tensor([int.from_bytes(digest[:8], "big") / 2**64 for digest in digests], dtype=torch.float64)


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(Random)
