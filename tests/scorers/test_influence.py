"""Influence: every solver against autograd, and what a scorer owes its user."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from torch import Tensor
from transformers import Trainer, TrainingArguments

from hfdataopt import AttributionCallback, attribute, get_scorer
from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import find_blocks
from hfdataopt.influence import scorer as module

from ..influence.models import build, ekfac_influence, gauss_newton_matrix, loss_gradients, rows_for
from ..tiny import GOOD, WORDS, bert, encoded, tokenizer

FEW: dict[str, dict[str, Any]] = {"lissa": {"iterations": 20}, "cg": {"tolerance": 1e-6}}  # products
SOLVERS = ["identity", "datainf", "ekfac", "cg", "lissa"]
TWO = ["*.1.attention.output.dense", "classifier"]  # small enough for a dense matrix


def close(found: Any, wanted: Tensor, tolerance: float = 1e-4) -> bool:
    difference = torch.as_tensor(found).double() - wanted
    return float(difference.norm() / wanted.norm()) < tolerance


def datainf(model: Any, pool: Any, queries: Any, layers: Any) -> Tensor:
    """Row by row and layer by layer, from autograd."""
    g, v = loss_gradients(model, pool, layers), loss_gradients(model, queries, layers)
    total = torch.zeros(len(g), len(v), dtype=torch.float64)
    start = 0
    for block in find_blocks(model, layers):
        span = slice(start, start + block.size)
        start += block.size
        lam = 0.1 * float(torch.stack([row[span].square().mean() for row in g]).mean())
        for column, query in enumerate(v):
            product = torch.zeros(block.size, dtype=torch.float64)
            for row in g:
                along = (query[span] @ row[span]) / (lam + row[span].square().sum())
                product += (query[span] - along * row[span]) / (len(g) * lam)
            total[:, column] += g[:, span] @ product
    return total


def dense(model: Any, pool: Any, queries: Any, layers: Any, damping: float = 0.1) -> Tensor:
    h = gauss_newton_matrix(model, pool, layers)
    h += damping * torch.linalg.eigvalsh(h)[-1] * torch.eye(len(h), dtype=torch.float64)
    return loss_gradients(model, pool, layers) @ torch.linalg.solve(h, loss_gradients(model, queries, layers).T)


@pytest.mark.parametrize("options", [{"basis": "exact"}, {"basis": "eigen", "floats_per_row": 512}])
def test_identity_is_tracin(model: Any, pool: Any, queries: Any, options: dict[str, Any]) -> None:
    found = attribute(model, pool, queries, "influence", solver="identity", **options)
    np.testing.assert_array_equal(found.matrix, attribute(model, pool, queries, "tracin", **options).matrix)


@pytest.mark.parametrize("name", ["bert", "gpt2", "lora"])
def test_datainf_and_ekfac_equal_autograd(name: str) -> None:
    model, pool, queries = build(name).eval(), rows_for(name, 9, 1), rows_for(name, 4, 2)
    layers = None if name == "lora" else "last:1"
    for size in (2, 16):
        found = attribute(
            model, pool, queries, "influence", solver="datainf", layers=layers, basis="exact", batch_size=size
        )
        assert close(found.matrix, datainf(model, pool, queries, layers))
        # The whole gradient fits into floats_per_row: the basis is exact, and turned into the whole eigenbasis.
        found = attribute(model, pool, queries, "influence", layers=layers, batch_size=size)
        assert close(found.matrix, ekfac_influence(model, pool, queries, layers, 0.1))


@pytest.mark.parametrize("name", ["bert", "lora"])
def test_cg_and_lissa_equal_the_dense_inverse(name: str) -> None:
    model, pool, queries = build(name).eval(), rows_for(name, 5, 1), rows_for(name, 2, 2)
    layers = TWO[:1] if name == "bert" else "*.1.*q_proj.lora_B*"
    wanted = dense(model, pool, queries, layers)
    exact = float(torch.linalg.eigvalsh(gauss_newton_matrix(model, pool, layers))[-1])
    for solver, options in (("cg", {"tolerance": 1e-6}), ("lissa", {"iterations": 120})):
        found = attribute(model, pool, queries, "influence", solver=solver, layers=layers, batch_size=4, **options)
        # Damping is relative to a power-iteration estimate of the largest eigenvalue.
        largest = found.metadata["moments"][0]["largest_eigenvalue"]
        assert largest == pytest.approx(exact, rel=1e-3)
        assert close(found.matrix, dense(model, pool, queries, layers, 0.1 * largest / exact))
        assert close(found.matrix, wanted, 1e-2)


def test_a_cut_eigenbasis_is_close_to_the_whole_one(model: Any, pool: Any, queries: Any) -> None:
    whole = attribute(model, pool, queries, "influence", damping=10.0).matrix
    cut = attribute(model, pool, queries, "influence", damping=10.0, floats_per_row=1500).matrix
    assert np.corrcoef(whole.ravel(), cut.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("solver", SOLVERS)
def test_row_order_and_batches_do_not_matter(model: Any, queries: Any, solver: str) -> None:
    pool = encoded(15, seed=1, ids=True)
    order = [7, 2, 14, 0, 3, 1, 12, 4, 5, 6, 8, 13, 9, 10, 11]
    options = {"solver": solver, "layers": TWO, **FEW.get(solver, {})}
    options |= {"curvature_rows": 9} if solver in FEW else {}
    one = attribute(model, pool, queries, "influence", batch_size=15, **options)
    other = attribute(model, pool.select(order), queries.select([1, 0]), "influence", batch_size=2, **options)
    assert close(other.matrix, torch.as_tensor(one.matrix)[order][:, [1, 0]], 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_query_in_the_pool_helps_itself_most(model: Any, solver: str) -> None:
    # A mislabelled query: no right row can make up by length for a wrong direction.
    queries = encoded(3, seed=2, flipped=(1,))
    opposite = queries.select([1]).map(lambda row: {"label": 1 - row["label"]})
    pool = concatenate_datasets([encoded(12, seed=1), queries.select([1]), opposite])
    matrix = attribute(model, pool, queries, "influence", layers=TWO, solver=solver, **FEW.get(solver, {})).matrix
    if solver != "identity":  # all gradients of this model have one main direction, which curvature takes out
        assert matrix[:, 1].argmax() == 12
    assert matrix[12, 1] > 0 > matrix[13, 1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_mean_query_alone_gives_the_mean_score(model: Any, pool: Any, queries: Any, solver: str) -> None:
    options = {"solver": solver, "layers": TWO, **FEW.get(solver, {})}
    each = attribute(model, pool, queries, "influence", **options)
    mean = attribute(model, pool, queries, "influence", per_query=False, **options)
    assert mean.matrix is None
    assert close(mean.values, torch.as_tensor(each.values))


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_that_are_not_finite(solver: str) -> None:
    model, pool = bert().eval(), encoded(12, seed=1, ids=True)
    word = WORDS.index(GOOD[0])
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[word] = float("inf")
    bad = [i for i, row in enumerate(pool) if word in row["input_ids"]]
    good = [i for i in range(12) if i not in bad]
    options: dict[str, Any] = {"solver": solver, "layers": TWO, **FEW.get(solver, {})}
    with pytest.raises(DataError, match=f"not finite.*r{bad[0]}'"):
        attribute(model, pool, pool.select(good[:2]), "influence", **options)
    queries = pool.select([good[0], bad[0], good[1]])
    scores = attribute(model, pool, queries, "influence", on_nonfinite="skip", batch_size=5, **options)
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == bad
    assert np.isnan(scores.matrix[:, 1]).all()
    clean = attribute(model, pool.select(good), queries.select([0, 2]), "influence", batch_size=5, **options)
    assert close(scores.matrix[good][:, [0, 2]], torch.as_tensor(clean.matrix), 1e-3)
    np.testing.assert_allclose(scores.values[good], scores.matrix[good][:, [0, 2]].mean(1))


def test_iterations_are_reported_and_a_system_not_solved_is_said(
    model: Any, pool: Any, queries: Any, capsys: Any
) -> None:
    scores = attribute(model, pool, queries, "influence", solver="cg", layers=TWO, curvature_rows=5)
    facts = scores.metadata["moments"][0]
    assert len(facts["iterations"]) == len(facts["residuals"]) == 7
    assert max(facts["residuals"]) <= 1e-3
    assert (facts["solver"], facts["damping"], facts["curvature_rows"]) == ("cg", 0.1, 5)
    assert "did not reach" not in capsys.readouterr().err
    attribute(model, pool, queries, "influence", solver="cg", layers=TWO, iterations=1)
    said = capsys.readouterr().err
    assert "7 of 7 systems did not reach tolerance=0.001 in 1 iterations" in said
    assert "raise iterations or damping: 0, 1, 2" in said
    attribute(build("gpt2"), rows_for("gpt2", 4, 1), rows_for("gpt2", 2, 2), "influence", solver="lissa", iterations=1)
    assert "LiSSA of depth 1 left a residual" in capsys.readouterr().err


@pytest.mark.parametrize("solver", ["cg", "lissa"])
def test_a_killed_run_does_not_solve_again(
    model: Any, pool: Any, queries: Any, solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"solver": solver, "layers": TWO, "output_dir": tmp_path, **FEW[solver]}
    whole = attribute(model, pool, queries, "influence", **{**options, "output_dir": None})

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hfdataopt.attribution.view.View._streamed_products", killed)
        with pytest.raises(KeyboardInterrupt):
            attribute(model, pool, queries, "influence", **options)
    monkeypatch.setattr(module.GaussNewton, "product", killed)
    resumed = attribute(model, pool, queries, "influence", **options)
    np.testing.assert_array_equal(resumed.matrix, whole.matrix)
    assert resumed.metadata["moments"][0]["iterations"] == whole.metadata["moments"][0]["iterations"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "newton"}, "'ekfac'"),
        ({"damping": 0.0}, "above 0"),
        ({"solver": "cg", "iterations": 0}, "at least 1"),
        ({"solver": "cg", "tolerance": 1.0}, "below 1"),
        ({"solver": "lissa", "curvature_rows": 0}, "at least 1"),
        ({"memory_gib": 0.0}, "above 0"),
        ({"solver": "identity", "damping": 0.1}, "damping is not an option of solver='identity'"),
        ({"iterations": 10}, "iterations is not an option of solver='ekfac'"),
        ({"solver": "lissa", "tolerance": 0.1}, "tolerance is not an option of solver='lissa'"),
        ({"solver": "datainf", "curvature_rows": 10}, "curvature_rows is not an option"),
        ({"solver": "cg", "basis": "eigen"}, "whole gradients"),
        ({"solver": "ekfac", "basis": "random"}, "only in the eigenbasis"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        get_scorer("influence", **options)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"solver": "cg"}, 7 * 60),
        ({"solver": "lissa", "per_query": False}, 7 * 4 + 56),
        ({"basis": "exact"}, 7 * 36 + 60),
    ],
)
def test_too_little_memory_is_said_before_training(
    model: Any, pool: Any, queries: Any, options: dict[str, Any], limit: int
) -> None:
    size = sum(block.size for block in find_blocks(model, TWO))
    given = {"layers": TWO, **options}
    with pytest.raises(OptionError, match=rf"7 queries with gradients of {size:,} entries need about .*fewer layers"):
        attribute(model, pool, queries, "influence", memory_gib=0.99 * limit * size / 2**30, **given)
    get_scorer("influence", memory_gib=1.01 * limit * size / 2**30, **given)
    attribute(model, pool, queries, "influence", memory_gib=1.01 * limit * size / 2**30, **given)


@pytest.mark.parametrize(("memory_gib", "kind"), [(8.0, "exact"), (1e-6, "eigen")])
def test_whole_gradients_where_they_fit(model: Any, pool: Any, queries: Any, memory_gib: float, kind: str) -> None:
    options: dict[str, Any] = {"solver": "ekfac", "floats_per_row": 512, "layers": TWO}
    chosen = attribute(model, pool, queries, "influence", memory_gib=memory_gib, **options)
    assert chosen.metadata["moments"][0]["basis_kind"] == kind
    asked = attribute(model, pool, queries, "influence", basis=kind, **options)
    np.testing.assert_allclose(chosen.values, asked.values, rtol=1e-9)


def test_in_a_trainer(pool: Any, queries: Any, tmp_path: Path) -> None:
    scorer = get_scorer("influence")
    assert (scorer.meaning, scorer.default_when, scorer.combine) == ("helpfulness", "train_end", "last")
    model = bert()
    callbacks = [
        AttributionCallback("influence", queries=queries, solver="datainf"),
        AttributionCallback("influence", queries=queries, solver="cg", layers=TWO, output_dir=tmp_path / "cg"),
    ]
    args = TrainingArguments(
        str(tmp_path),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
    )
    trainer = Trainer(model, args, train_dataset=pool, processing_class=tokenizer(), callbacks=callbacks)
    trainer.train()
    for callback, options in zip(callbacks, ({"solver": "datainf"}, {"solver": "cg", "layers": TWO}), strict=True):
        after = attribute(model.eval(), pool, queries, "influence", **options)
        assert close(callback.scores.matrix, torch.as_tensor(after.matrix), 1e-3)


def test_a_loss_that_only_a_plugin_knows_has_no_products(
    model: Any, pool: Any, queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own_loss(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits = model(**{k: x for k, x in batch.items() if k != "labels"}).logits
        return logits.square().sum(1), torch.ones(len(logits), dtype=torch.long)

    monkeypatch.setattr(module, "custom_loss", own_loss)
    with pytest.raises(OptionError, match="a plugin computes the loss"):
        attribute(model, pool, queries, "influence", solver="cg")
