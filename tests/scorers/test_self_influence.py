"""Self-influence and gradient norm: minus the (squared) norm of each row's loss gradient."""

from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import attribute, get_scorer
from hfdataopt.errors import DataError

from ..tiny import GOOD, WORDS, bert, encoded, loss_gradients


def test_equals_autograd(model: Any, pool: Any) -> None:
    norms = loss_gradients(model, pool).square().sum(1)
    scores = attribute(model, pool, None, "self-influence", batch_size=4)
    np.testing.assert_allclose(scores.values, -norms, rtol=1e-4)
    np.testing.assert_allclose(attribute(model, pool, None, "grad-norm").values, -norms.sqrt(), rtol=1e-4)


def test_a_basis_can_be_asked_for(model: Any, pool: Any) -> None:
    exact = attribute(model, pool, None, "self-influence").values
    eigen = attribute(model, pool, None, "self-influence", basis="eigen", floats_per_row=512).values
    assert (eigen >= exact).all()  # a projection keeps less, and the score is negated
    assert np.corrcoef(exact, eigen)[0, 1] > 0.9


@pytest.mark.parametrize("name", ["self-influence", "grad-norm"])
def test_declares_suspicion(name: str) -> None:
    scorer = get_scorer(name)
    assert (scorer.meaning, scorer.default_when, scorer.combine) == ("suspicion", "epoch", "mean")
    assert not scorer.needs_queries


def poisoned() -> tuple[Any, Any, list[int]]:
    """A model that gives NaN for rows with one word, and which rows hold it."""
    model, pool = bert().eval(), encoded(12, seed=1, ids=True)
    word = WORDS.index(GOOD[0])
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[word] = float("inf")
    return model, pool, [i for i, row in enumerate(pool) if word in row["input_ids"]]


@pytest.mark.parametrize("options", [{"basis": "exact"}, {"basis": "eigen", "floats_per_row": 256}])
@pytest.mark.parametrize("name", ["self-influence", "tracin"])
def test_nonfinite_rows(name: str, options: dict[str, Any], capsys: Any) -> None:
    model, pool, bad = poisoned()
    assert 0 < len(bad) < 12
    queries = pool.select([i for i in range(12) if i not in bad][:3])
    with pytest.raises(DataError, match=f"not finite.*r{bad[0]}'"):
        attribute(model, pool, queries, name, **options)
    scores = attribute(model, pool, queries, name, on_nonfinite="skip", batch_size=5, **options)
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == bad
    assert scores.metadata["moments"][0]["skipped_pool"] == len(bad)
    assert f"r{bad[0]}" in capsys.readouterr().err
    assert pool[bad[0]]["row_id"] not in scores.top(k=12 - len(bad))


def test_nonfinite_query_is_left_out_by_choice() -> None:
    model, pool, bad = poisoned()
    good = [i for i in range(12) if i not in bad]
    scores = attribute(
        model, pool.select(good), pool.select([bad[0], good[0]]), "tracin", basis="exact", on_nonfinite="skip"
    )
    assert np.isnan(scores.matrix[:, 0]).all()
    np.testing.assert_allclose(scores.values, scores.matrix[:, 1])


@pytest.mark.parametrize("name", ["loss", "knn-shapley", "cv-confidence", "freeshap", "representer"])
def test_other_scorers_name_the_rows(name: str) -> None:
    model, pool, bad = poisoned()
    queries = pool.select([i for i in range(12) if i not in bad])
    with pytest.raises(DataError, match=f"{name}.*not finite.*'r{bad[0]}'"):
        attribute(model, pool, queries, name)


@pytest.mark.parametrize("options", [{}, {"kernel": "hidden"}, {"kernel": "entk"}])
def test_kernel_scorers_skip_by_choice(options: dict[str, Any]) -> None:
    model, pool, bad = poisoned()
    scores = attribute(model, pool, None, "label-consistency", on_nonfinite="skip", **options)
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == bad
    rest = pool.select([i for i in range(12) if i not in bad])
    alone = attribute(model, rest, None, "label-consistency", **options)
    np.testing.assert_allclose(np.delete(scores.values, bad), alone.values, atol=1e-4)


def test_loss_skips_by_choice() -> None:
    model, pool, bad = poisoned()
    scores = attribute(model, pool, None, "loss", on_nonfinite="skip")
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == bad
