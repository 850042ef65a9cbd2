"""KNN-Shapley: exact Shapley values of a k-nearest-neighbour classifier on the pooled features.

Jia et al., "Efficient Task-Specific Data Valuation for Nearest Neighbor Algorithms", VLDB 2019, theorem 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hfdataopt.attribution.scorer import Result, Scorer
from hfdataopt.attribution.task import Pooling, read_labels
from hfdataopt.attribution.view import View
from hfdataopt.hookspecs import hookimpl
from hfdataopt.options import check_range
from hfdataopt.shapley import knn_shapley


@dataclass
class KnnShapley(Scorer):
    """Shapley value of each row for the k-nearest-neighbour vote on the queries.

    Args:
        k: neighbours that vote.
        pooling: how hidden states become one vector.
        cosine: distances between unit vectors rather than raw features.
    """

    name: ClassVar[str] = "knn-shapley"
    default_when: ClassVar[Any] = "train_begin"

    k: int = 10
    pooling: Pooling = "auto"
    cosine: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "k", at_least=1)

    def check(self, view: View) -> None:
        read_labels(view.model, view.pool, view.queries, self.name)

    def score(self, view: View) -> Result:
        labels = read_labels(view.model, view.pool, view.queries, self.name)
        pool, queries = (view.embeddings(side, self.pooling).double() for side in ("pool", "queries"))
        if self.cosine:
            pool, queries = (torch.nn.functional.normalize(x, dim=1) for x in (pool, queries))
        distances = torch.cdist(pool, queries)
        return Result(matrix=knn_shapley(distances, labels.pool, labels.queries, k=self.k, per_query=True))


@hookimpl
def register_scorers(register: Callable[..., None]) -> None:
    register(KnnShapley)
