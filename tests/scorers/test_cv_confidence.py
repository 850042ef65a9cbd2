"""Cross-validated confidence against scikit-learn on the same folds."""

from typing import Any

import numpy as np
import torch

from hfdataopt import attribute, get_scorer
from hfdataopt.attribution.rows import shuffled

from ..tiny import encoded, mean_hidden


def test_equals_scikit_learn_on_the_same_folds(model: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    pool, strength = encoded(40, seed=1, flipped=(3, 8)), 3.0
    scores = attribute(model, pool, None, "cv-confidence", inverse_penalty=strength, seed=2)
    features, labels = mean_hidden(model, pool).numpy(), np.array(pool["label"][:])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    fold = np.empty(40, int)
    fold[shuffled(list(range(40)), 2)] = np.arange(40) % 5
    expected = np.empty(40)
    for k in range(5):
        train, held = fold != k, fold == k
        regression = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
        regression.fit(features[train], labels[train])
        probabilities = regression.predict_proba(features[held])
        expected[held] = probabilities[np.arange(held.sum()), labels[held]]
    np.testing.assert_allclose(scores.values, expected, atol=1e-4)


def test_does_not_depend_on_row_order(model: Any) -> None:
    pool = encoded(20, seed=1, ids=True)
    order = torch.randperm(20).tolist()
    scores = attribute(model, pool, None, "cv-confidence")
    again = attribute(model, pool.select(order), None, "cv-confidence", batch_size=3)
    np.testing.assert_allclose(again.values, scores.values[order], atol=1e-5)


def test_declares_suspicion() -> None:
    scorer: Any = get_scorer("cv-confidence")
    assert (scorer.meaning, scorer.default_when, scorer.needs_queries) == ("suspicion", "train_begin", False)
