"""KNN-Shapley against the definition: marginals over all subsets."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import attribute, get_scorer
from hfdataopt.errors import OptionError

from ..tiny import mean_hidden


@pytest.mark.parametrize("cosine", [True, False])
def test_equals_the_definition(model: Any, pool: Any, queries: Any, cosine: bool) -> None:
    pool, queries, k = pool.select(range(7)), queries.select(range(2)), 2
    scores = attribute(model, pool, queries, "knn-shapley", k=k, cosine=cosine)
    a, b = mean_hidden(model, pool), mean_hidden(model, queries)
    if cosine:
        a, b = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
    distances = torch.cdist(a, b)
    labels, asked = pool["label"][:], queries["label"][:]

    def utility(rows: tuple[int, ...], query: int) -> float:
        near = sorted(rows, key=lambda i: float(distances[i, query]))[:k]
        return sum(labels[i] == asked[query] for i in near) / k

    for query in range(2):
        for row in range(7):
            others = [i for i in range(7) if i != row]
            value = sum(
                (utility((*subset, row), query) - utility(subset, query)) / (7 * math.comb(6, size))
                for size in range(7)
                for subset in itertools.combinations(others, size)
            )
            assert scores.matrix[row, query] == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(scores.values, scores.matrix.mean(1))


def test_options_and_meaning() -> None:
    with pytest.raises(OptionError, match="k=0"):
        get_scorer("knn-shapley", k=0)
    scorer = get_scorer("knn-shapley")
    assert (scorer.meaning, scorer.default_when) == ("helpfulness", "train_begin")
