"""Representer points: contributions add up to the logits of the refit layer."""

from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import attribute, get_scorer
from hfdataopt.errors import OptionError

from ..tiny import gpt2, mean_hidden, questions


@pytest.mark.parametrize("targets", ["labels", "model"])
def test_contributions_add_up_to_the_refit_logits(model: Any, pool: Any, queries: Any, targets: str) -> None:
    l2 = 0.01
    scores = attribute(model, pool, queries, "representer", l2=l2, targets=targets)
    features, asked = (
        torch.cat([x, torch.ones(len(x), 1)], 1) for x in (mean_hidden(model, d) for d in (pool, queries))
    )
    wanted = torch.nn.functional.one_hot(torch.tensor(pool["label"][:]), 2).double()
    if targets == "model":
        with torch.no_grad():
            wanted = torch.stack(
                [model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().softmax(0) for row in pool]
            )
    weight = torch.zeros(2, features.shape[1], dtype=torch.float64, requires_grad=True)
    for _ in range(60):  # Newton steps on the same objective: another way to the same minimum
        loss = torch.nn.functional.cross_entropy(features @ weight.T, wanted) + l2 * weight.square().sum()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        hessian = torch.stack(
            [torch.autograd.grad(entry, weight, retain_graph=True)[0].flatten() for entry in gradient.flatten()]
        )
        step = torch.linalg.solve(hessian, gradient.detach().flatten()).view_as(weight)
        weight = (weight - step).detach().requires_grad_()
    logits = (asked @ weight.detach().T).gather(1, torch.tensor(queries["label"][:])[:, None])[:, 0]
    np.testing.assert_allclose(scores.matrix.sum(0), logits, rtol=1e-4, atol=1e-6)
    assert scores.metadata["moments"][0]["stationarity"] < 1e-5


def test_language_model_is_read_where_it_answers() -> None:
    model, pool, queries = gpt2().eval(), questions(8, 1), questions(4, 2)
    scores = attribute(model, pool, queries, "representer")
    assert scores.matrix.shape == (8, 4)
    assert scores.metadata["moments"][0]["stationarity"] < 1e-5


def test_needs_a_penalty() -> None:
    with pytest.raises(OptionError, match=r"l2=0.*above 0"):
        get_scorer("representer", l2=0.0)


def test_declares_helpfulness() -> None:
    scorer = get_scorer("representer")
    assert (scorer.meaning, scorer.default_when) == ("helpfulness", "train_end")
