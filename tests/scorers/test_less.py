"""LESS: cosines of Adam's steps on training rows with query gradients, in a training and at its checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import AttributionCallback, Checkpoint, attribute, get_scorer
from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import MemoryLimit

from ..policy import speaker
from ..tiny import llama, loss_gradients, questions
from ..training import Moments, cosines, mean_loss_gradients, trainer

RATES = [[3e-3, 2.5e-3, 2e-3], [1.5e-3, 1e-3, 0.5e-3]]  # linear decay over six steps
STEPS = (3, 6)


@pytest.fixture(scope="module")
def queries() -> Any:
    return questions(4, seed=9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any, queries: Any) -> Any:
    """A training with callbacks of every form; its folder, what Adam knew, the pool, and the callbacks."""
    torch.set_num_threads(1)
    folder, kept = tmp_path_factory.mktemp("trained"), Moments()
    options = {
        "less": {"scorer": "less"},
        "adamw": {"scorer": "less", "precondition": "adamw"},
        "inner": {"scorer": "less", "normalize": False},
        "tracin": {"scorer": "tracin", "precondition": "adamw"},
        "auto": {"scorer": "tracin", "precondition": "auto"},
        "plain": {"scorer": "tracin", "normalize": True},
    }
    callbacks = {
        name: AttributionCallback(queries=queries, basis="exact", output_dir=folder / name, batch_size=3, **given)
        for name, given in options.items()
    }
    run = trainer(folder, kept, *callbacks.values())
    run.train()
    return folder, kept, run.train_dataset, callbacks


def models(kept: Moments) -> list[Any]:
    found = []
    for weights in kept.weights:
        model = speaker()
        model.load_state_dict(weights)
        found.append(model.double().eval())
    return found


def close(found: Any, expected: Any, rtol: float = 1e-4) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=0.1 * rtol * np.abs(expected).max())


# -- truth


@pytest.mark.parametrize(
    ("name", "form", "normalize"),
    [("less", "less", True), ("adamw", "adamw", True), ("inner", "less", False), ("tracin", "adamw", False)],
)
def test_equals_autograd_with_the_moments_of_the_training(
    trained: Any, queries: Any, name: str, form: str, normalize: bool
) -> None:
    _, kept, pool, callbacks = trained
    scores = callbacks[name].scores
    total = torch.zeros(12, 4, dtype=torch.float64)
    for model, states, rates in zip(models(kept), kept.states, RATES, strict=True):
        rows = mean_loss_gradients(model, pool, states, form)
        columns = mean_loss_gradients(model, queries)
        total += np.mean(rates) * (cosines(rows, columns) if normalize else rows @ columns.T)
    close(scores.matrix, total)
    close(scores.values, total.mean(1))
    found = "adamw" if form == "adamw" else "less"
    assert [moment["precondition"] for moment in scores.metadata["moments"]] == [found, found]
    np.testing.assert_allclose([m["learning_rate"] for m in scores.metadata["moments"]], np.mean(RATES, axis=1))


def test_the_two_forms_differ(trained: Any) -> None:
    callbacks = trained[3]
    less, adamw = (callbacks[name].scores.matrix for name in ("less", "adamw"))
    assert np.abs(less - adamw).max() > 1e-3 * np.abs(less).max()


def test_the_cosine_of_tracin_equals_autograd(trained: Any, queries: Any) -> None:
    _, kept, pool, callbacks = trained
    total = sum(
        np.mean(rates) * cosines(loss_gradients(model, pool), loss_gradients(model, queries))
        for model, rates in zip(models(kept), RATES, strict=True)
    )
    close(callbacks["plain"].scores.matrix, total)


@pytest.mark.parametrize(("name", "options"), [("less", {}), ("adamw", {"precondition": "adamw"})])
def test_checkpoints_give_the_scores_of_the_training(trained: Any, queries: Any, name: str, options: Any) -> None:
    folder, _, pool, callbacks = trained
    checkpoints = [folder / f"checkpoint-{step}" for step in STEPS]
    assert all((path / "optimizer.pt").is_file() for path in checkpoints)
    scores = attribute(speaker(), pool, queries, "less", checkpoints=checkpoints, basis="exact", **options)
    close(scores.matrix, callbacks[name].scores.matrix, 1e-5)
    assert [m["precondition"] for m in scores.metadata["moments"]] == [options.get("precondition", "less")] * 2


def test_the_moments_may_lie_elsewhere(trained: Any, queries: Any, tmp_path: Path) -> None:
    folder, _, pool, callbacks = trained
    checkpoints = []
    for step, rates in zip(STEPS, RATES, strict=True):
        bare = tmp_path / str(step)
        shutil.copytree(
            folder / f"checkpoint-{step}", bare, ignore=shutil.ignore_patterns("optimizer*", "trainer_state*")
        )
        optimizer = str(folder / f"checkpoint-{step}" / "optimizer.pt")
        checkpoints.append(Checkpoint(str(bare), learning_rate=float(np.mean(rates)), optimizer=optimizer))
    scores = attribute(speaker(), pool, queries, "less", checkpoints=checkpoints, basis="exact")
    close(scores.matrix, callbacks["less"].scores.matrix, 1e-5)


@pytest.mark.parametrize("basis", ["eigen", "random", "sketch"])
def test_a_projection_is_close(trained: Any, queries: Any, basis: str) -> None:
    folder, _, pool, _ = trained
    checkpoints = [folder / "checkpoint-6"]
    exact, near = (
        attribute(
            speaker(), pool, queries, "less", checkpoints=checkpoints, basis=kind, floats_per_row=1024, batch_size=size
        )
        for kind, size in (("exact", 16), (basis, 5))
    )
    correlation = np.corrcoef(exact.matrix.ravel(), near.matrix.ravel())[0, 1]
    assert correlation > (0.9 if basis == "eigen" else 0.6)
    shares = near.metadata["moments"][0]["basis"]["mean-loss"]["kept_share"]
    assert set(shares) == {"pool", "queries"}


@pytest.mark.parametrize("batch_size", [1, 12])
def test_batches_change_nothing(trained: Any, queries: Any, batch_size: int) -> None:
    folder, _, pool, _ = trained
    scores = [
        attribute(
            speaker(),
            pool,
            queries,
            "less",
            checkpoints=[folder / "checkpoint-6"],
            basis="exact",
            batch_size=size,
        ).matrix
        for size in (5, batch_size)
    ]
    close(scores[1], scores[0], 1e-4)


def test_memory_that_does_not_suffice_changes_nothing(trained: Any, queries: Any, monkeypatch: Any) -> None:
    folder, _, pool, _ = trained
    options: dict[str, Any] = {"checkpoints": [folder / "checkpoint-6"], "basis": "exact"}
    scores = attribute(speaker(), pool, queries, "less", **options)
    original, failed = MemoryLimit.__init__, []

    def small(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self.rows = 2
        failed.append(self)

    monkeypatch.setattr(MemoryLimit, "__init__", small)
    close(attribute(speaker(), pool, queries, "less", **options).matrix, scores.matrix)
    assert failed


# -- rows without a cosine


@pytest.mark.parametrize("basis", ["exact", "eigen"])
def test_rows_and_queries_without_a_label(trained: Any, queries: Any, basis: str, capsys: Any) -> None:
    """All that Adam makes of a row without labels is its momentum, which is no score; a query without them points nowhere."""
    folder, _, pool, _ = trained

    def without(dataset: Any, place: int) -> Any:
        return dataset.map(
            lambda row, i: {"labels": [-100] * len(row["labels"]) if i == place else row["labels"]},
            with_indices=True,
            load_from_cache_file=False,
        )

    options: dict[str, Any] = {"checkpoints": [folder / "checkpoint-6"], "basis": basis, "floats_per_row": 1024}
    scores = attribute(speaker(), without(pool, 2), without(queries, 1), "less", **options)
    assert "less: 1 row(s) of the pool have no labelled tokens and get no score: 2" in capsys.readouterr().err
    assert np.isnan(scores.matrix[:, 1]).all()
    assert np.isnan(scores.matrix[2]).all()
    assert np.isfinite(np.delete(np.delete(scores.matrix, 1, axis=1), 2, axis=0)).all()
    plain = attribute(speaker(), without(pool, 2), queries, "tracin", normalize=True, **options)
    assert np.isnan(plain.matrix[2]).all()
    assert np.isfinite(np.delete(plain.matrix, 2, axis=0)).all()


@pytest.mark.parametrize("options", [{"basis": "exact"}, {"basis": "eigen", "floats_per_row": 1024}])
def test_rows_that_are_not_finite(trained: Any, queries: Any, tmp_path: Path, options: Any, capsys: Any) -> None:
    folder, _, pool, _ = trained
    shutil.copytree(folder / "checkpoint-6", tmp_path / "bad")
    model = type(speaker()).from_pretrained(tmp_path / "bad")
    word = next(t for t in range(6, 23) if any(t in r["input_ids"] for r in pool))
    with torch.no_grad():
        model.model.embed_tokens.weight[word] = float("inf")
    model.save_pretrained(tmp_path / "bad")
    bad = [i for i, row in enumerate(pool) if word in row["input_ids"]]
    asked = queries.filter(lambda row: word not in row["input_ids"])
    assert 0 < len(bad) < 12
    given = {"checkpoints": [tmp_path / "bad"], **options}
    with pytest.raises(DataError, match=f"not finite.*{bad[0]}"):
        attribute(speaker(), pool, asked, "less", **given)
    scores = attribute(speaker(), pool, asked, "less", on_nonfinite="skip", **given)
    assert np.flatnonzero(np.isnan(scores.values)).tolist() == bad
    assert scores.metadata["moments"][0]["skipped_pool"] == len(bad)
    assert f"less: the gradient of {len(bad)} row(s) of the pool is not finite" in capsys.readouterr().err


# -- which moments are at hand


def test_auto_takes_the_moments_where_they_are_and_says_what_it_took(trained: Any, queries: Any, capsys: Any) -> None:
    _, kept, pool, callbacks = trained
    assert [m["precondition"] for m in callbacks["auto"].scores.metadata["moments"]] == ["less", "less"]
    total = sum(
        np.mean(rates) * mean_loss_gradients(model, pool, states, "less") @ mean_loss_gradients(model, queries).T
        for model, states, rates in zip(models(kept), kept.states, RATES, strict=True)
    )
    close(callbacks["auto"].scores.matrix, total)
    options: dict[str, Any] = {"basis": "exact", "precondition": "auto"}
    capsys.readouterr()
    scores = attribute(speaker(), pool, queries, "tracin", **options)
    said = capsys.readouterr().err
    assert "tracin: training gradients are taken plain, without Adam's moments (there is no optimizer" in said
    assert scores.metadata["moments"][0]["precondition"] == "none"
    close(scores.matrix, attribute(speaker(), pool, queries, "tracin", basis="exact").matrix, 1e-6)


def test_auto_says_what_it_took_where_there_are_moments(trained: Any, queries: Any, capsys: Any) -> None:
    folder, _, pool, _ = trained
    options: dict[str, Any] = {"basis": "exact", "precondition": "auto", "checkpoints": [folder / "checkpoint-6"]}
    attribute(speaker(), pool, queries, "tracin", **options)
    assert "tracin: training gradients are preconditioned by Adam's moments" in capsys.readouterr().err


def test_without_an_optimizer(queries: Any) -> None:
    with pytest.raises(OptionError, match=r"less: Adam moments are needed, but there is no optimizer; score within"):
        attribute(llama(), questions(4), queries, "less")


def test_a_checkpoint_without_optimizer_state(trained: Any, queries: Any, tmp_path: Path) -> None:
    folder, _, pool, _ = trained
    shutil.copytree(folder / "checkpoint-3", tmp_path / "a", ignore=shutil.ignore_patterns("optimizer.pt"))
    with pytest.raises(
        DataError, match=r"less: .*optimizer.pt is missing; save checkpoints with save_only_model=False"
    ):
        attribute(speaker(), pool, queries, "less", checkpoints=[tmp_path / "a"])


def test_a_checkpoint_with_the_state_of_another_model(trained: Any, queries: Any, tmp_path: Path) -> None:
    folder, _, pool, _ = trained
    shutil.copytree(folder / "checkpoint-3", tmp_path / "a")
    saved = torch.load(tmp_path / "a" / "optimizer.pt", weights_only=True)
    for state in saved["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.cat([state[name], state[name]])
    torch.save(saved, tmp_path / "a" / "optimizer.pt")
    with pytest.raises(DataError, match=r"less: .*optimizer.pt .*shapes? "):
        attribute(speaker(), pool, queries, "less", checkpoints=[tmp_path / "a"])


def test_a_checkpoint_without_a_trainer_state(trained: Any, queries: Any, tmp_path: Path) -> None:
    folder, _, pool, _ = trained
    shutil.copytree(folder / "checkpoint-3", tmp_path / "a", ignore=shutil.ignore_patterns("trainer_state.json"))
    with pytest.raises(
        DataError, match=r"checkpoint .*/a' has no logged learning rate .*Checkpoint\(path, learning_rate"
    ):
        attribute(speaker(), pool, queries, "less", checkpoints=[tmp_path / "a"])


@pytest.mark.parametrize("name", ["less", "tracin"])
def test_another_optimizer_is_refused_before_training(queries: Any, tmp_path: Path, name: str) -> None:
    callback = AttributionCallback(name, queries=queries, precondition="less")
    run = trainer(tmp_path, callback, optim="sgd")
    with pytest.raises(
        OptionError, match=rf"{name}: Adam moments are needed, but torch.optim.sgd.SGD arrived; train with"
    ):
        run.train()
    assert run.state.global_step == 0


def test_auto_goes_on_with_another_optimizer(queries: Any, tmp_path: Path, capsys: Any) -> None:
    callback = AttributionCallback("tracin", queries=queries, precondition="auto", basis="exact")
    trainer(tmp_path, callback, optim="sgd", max_steps=3, save_strategy="no").train()
    assert "tracin: training gradients are taken plain, without Adam's moments" in capsys.readouterr().err
    assert callback.scores is not None
    assert np.isfinite(callback.scores.values).all()


def test_before_the_first_step_there_are_no_moments(queries: Any, tmp_path: Path) -> None:
    run = trainer(tmp_path, AttributionCallback("less", queries=queries, when="train_begin"))
    with pytest.raises(DataError, match=r"less: the optimizer has not taken a step, so there are no moments yet"):
        run.train()
    assert run.state.global_step == 0


def test_declares_helpfulness() -> None:
    scorer: Any = get_scorer("less")
    assert (scorer.meaning, scorer.default_when, scorer.combine) == ("helpfulness", "epoch", "learning-rate-sum")
    assert (scorer.precondition, scorer.normalize) == ("less", True)
    plain: Any = get_scorer("tracin")
    assert (plain.precondition, plain.normalize) == ("none", False)
