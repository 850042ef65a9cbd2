"""TracIn: inner products of loss gradients."""

from typing import Any

import numpy as np
import pytest

from hfdataopt import attribute, get_scorer
from hfdataopt.errors import OptionError

from ..tiny import gpt2, loss_gradients, plain_texts


def test_exact_basis_equals_autograd(model: Any, pool: Any, queries: Any) -> None:
    scores = attribute(model, pool, queries, "tracin", basis="exact", batch_size=4)
    expected = loss_gradients(model, pool) @ loss_gradients(model, queries).T
    np.testing.assert_allclose(scores.matrix, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    np.testing.assert_allclose(scores.values, scores.matrix.mean(1))


def test_language_model_sums_over_tokens() -> None:
    model, pool, queries = gpt2().eval(), plain_texts(5, 1), plain_texts(3, 2)
    scores = attribute(model, pool, queries, "tracin", basis="exact", batch_size=2)
    expected = loss_gradients(model, pool) @ loss_gradients(model, queries).T
    np.testing.assert_allclose(scores.matrix, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_layers_choose_what_is_compared(model: Any, pool: Any, queries: Any) -> None:
    scores = attribute(model, pool, queries, "tracin", basis="exact", layers="*.1.*")
    expected = loss_gradients(model, pool, "*.1.*") @ loss_gradients(model, queries, "*.1.*").T
    np.testing.assert_allclose(scores.matrix, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("basis", ["eigen", "random", "sketch"])
def test_projection_is_close_and_its_share_is_reported(model: Any, pool: Any, queries: Any, basis: str) -> None:
    scores = attribute(model, pool, queries, "tracin", basis=basis, floats_per_row=512)
    exact = loss_gradients(model, pool) @ loss_gradients(model, queries).T
    assert np.corrcoef(scores.matrix.ravel(), exact.numpy().ravel())[0, 1] > (0.95 if basis == "eigen" else 0.7)
    facts = scores.metadata["moments"][0]["basis"]["loss"]
    assert facts["floats"] <= 512
    assert set(facts["kept_share"]) == {"pool", "queries"}
    assert scores.metadata["moments"][0]["precision"] == "float32"


def test_declares_helpfulness() -> None:
    scorer = get_scorer("tracin")
    assert (scorer.meaning, scorer.default_when, scorer.combine) == ("helpfulness", "epoch", "learning-rate-sum")


@pytest.mark.parametrize("basis", ["exact", "eigen"])
def test_cosines(model: Any, pool: Any, queries: Any, basis: str) -> None:
    scores = attribute(model, pool, queries, "tracin", basis=basis, normalize=True, floats_per_row=100_000)
    rows, columns = loss_gradients(model, pool), loss_gradients(model, queries)
    expected = (rows @ columns.T) / rows.norm(dim=1, keepdim=True) / columns.norm(dim=1)
    np.testing.assert_allclose(scores.matrix, expected, rtol=1e-4, atol=1e-5)


def test_plain_gradients_are_the_default_and_need_no_optimizer(model: Any, pool: Any, queries: Any) -> None:
    scores = attribute(model, pool, queries, "tracin", basis="exact")
    assert "precondition" not in scores.metadata["moments"][0]
    with pytest.raises(OptionError, match=r"tracin: Adam moments are needed, but there is no optimizer"):
        attribute(model, pool, queries, "tracin", precondition="adamw")
    with pytest.raises(OptionError, match=r"tracin: option precondition='adam' is not allowed"):
        get_scorer("tracin", precondition="adam")
