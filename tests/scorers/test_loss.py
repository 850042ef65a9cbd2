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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("loss", {}),
        ("loss", {"reduction": "sum"}),
        ("grad-norm", {}),
        ("self-influence", {}),
        ("grad-norm", {"basis": "eigen", "floats_per_row": 256}),
    ],
)
def test_a_row_without_labelled_tokens_has_no_score(name: str, options: dict[str, Any], capsys: Any) -> None:
    model, pool = gpt2().eval(), questions(6).add_column("row_id", [f"r{i}" for i in range(6)])
    empty = pool.map(
        lambda row: {"labels": [-100] * len(row["labels"]) if row["row_id"] in ("r1", "r4") else row["labels"]}
    )
    scores = attribute(model, empty, None, name, **options)
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == [1, 4]
    assert scores.metadata["moments"][0]["unlabelled_pool"] == 2
    assert "skipped_pool" not in scores.metadata["moments"][0]
    said = capsys.readouterr().err
    assert f"{name}: 2 row(s) of the pool have no labelled tokens and get no score: 'r1', 'r4'" in said
    if not options.get("basis"):
        np.testing.assert_allclose(
            np.delete(scores.values, [1, 4]),
            attribute(model, pool, None, name, **options).values[[0, 2, 3, 5]],
            rtol=1e-5,
        )


def test_an_ignored_class_has_no_score_and_a_zero_product(pool: Any, queries: Any) -> None:
    model, labels = bert().eval(), list(pool["label"])
    labels[2] = -100
    ignored = pool.remove_columns("label").add_column("label", labels)
    assert np.flatnonzero(np.isnan(attribute(model, ignored, None, "loss").values)).tolist() == [2]
    scores = attribute(model, ignored, queries, "tracin", basis="exact")
    assert scores.values[2] == 0  # training on it changes nothing
    assert np.isfinite(scores.values).all()
