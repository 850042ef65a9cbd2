"""The loss of each row, stored negated."""

from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import attribute, get_scorer

from ..tiny import bert, cloze, gpt2, masked_lm, plain_texts, questions, row_batch


def hugging_face_loss(model: Any, dataset: Any) -> np.ndarray:
    with torch.no_grad():
        return np.array([model(**row_batch(row)).loss.item() for row in dataset])


def test_classifier(model: Any, pool: Any) -> None:
    scores = attribute(model, pool, None, "loss", batch_size=4)
    np.testing.assert_allclose(scores.values, -hugging_face_loss(model, pool), rtol=1e-5)
    assert scores.matrix is None


@pytest.mark.parametrize(
    ("make_model", "make_rows"), [(gpt2, plain_texts), (gpt2, questions), (masked_lm, cloze)], ids=["lm", "qa", "mlm"]
)
def test_language_models(make_model: Any, make_rows: Any) -> None:
    model, pool = make_model().eval(), make_rows(6)
    mean = attribute(model, pool, None, "loss", batch_size=4).values
    np.testing.assert_allclose(mean, -hugging_face_loss(model, pool), rtol=1e-5)
    total = attribute(model, pool, None, "loss", reduction="sum").values
    shift = make_model is gpt2
    tokens = [sum(label != -100 for label in row["labels"][shift:]) for row in pool]
    np.testing.assert_allclose(total, mean * tokens, rtol=1e-5)


def test_regression(pool: Any) -> None:
    model = bert(labels=1).eval()
    values = pool.map(lambda row: {"label": row["label"] * 0.7})
    scores = attribute(model, values, None, "loss")
    np.testing.assert_allclose(scores.values, -hugging_face_loss(model, values), rtol=1e-5)


def test_declares_suspicion() -> None:
    scorer = get_scorer("loss")
    assert (scorer.meaning, scorer.default_when, scorer.combine) == ("suspicion", "epoch", "mean")
    assert not scorer.needs_queries
