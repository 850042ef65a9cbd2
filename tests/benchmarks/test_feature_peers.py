"""The harness of benchmarks/feature_peers: our side and the bare loop at toy size, and what the table takes from them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER = Path(__file__).parents[2] / "benchmarks" / "feature_peers"


@pytest.fixture(scope="module")
def modules() -> Any:
    """run.py and the drivers that need no peer, imported as their scripts are."""
    before, names = list(sys.path), set(sys.modules)
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    import bare_driver
    import harness
    import ours_driver
    import run

    yield {"bare": bare_driver, "harness": harness, "ours": ours_driver, "run": run}
    sys.path[:] = before
    for name in set(sys.modules) - names:
        if str(FOLDER.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def job(modules: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two lengths, so that padding is part of it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    rows = [torch.randint(0, 40, (length,)).tolist() for length in (9, 6, 9, 7, 5, 8, 9, 6, 7, 9, 8, 5)]
    sides = [[{"input_ids": row, "labels": row} for row in part] for part in (rows[:8], rows[8:])]
    folder = tmp_path_factory.mktemp("job")
    modules["run"].save_job(folder, model, *sides, 3)
    return folder


def measured(modules: Any, driver: str, job: Path, method: str) -> tuple[np.ndarray, dict[str, Any]]:
    name, *words = method.split(":")
    task = modules["harness"].Job(job)
    return modules["harness"].measure(task, getattr(modules[driver], name), words, 1)


def test_both_sides_make_the_same_exact_products(modules: Any, job: Path) -> None:
    bare, _ = measured(modules, "bare", job, "exact")
    assert bare.shape == (8, 4)
    for method in ("exact", "scorer:tracin:basis=exact"):
        ours, figures = measured(modules, "ours", job, method)
        np.testing.assert_allclose(ours, bare, rtol=1e-3, atol=1e-4 * np.abs(bare).max())
        assert figures["features"] > 0
        assert figures["over floor"] == pytest.approx(
            (figures["set-up"] + figures["features"] + figures["scores"]) / figures["floor"]
        )
    run = modules["run"]
    assert run.correlation(ours, bare) > 0.999
    assert run.overlap(ours, bare) == 1


def test_the_batch_loss_is_the_sum_over_rows_whatever_the_padding(modules: Any, job: Path) -> None:
    task = modules["harness"].Job(job)
    model = task.model()
    alone = sum(float(task.loss(model, row).detach()) for row in task.batches("pool", 1))
    together = sum(float(task.loss(model, batch).detach()) for batch in task.batches("pool"))
    padded = modules["harness"].collate(task.rows("pool", task.width))
    assert together == pytest.approx(alone, rel=1e-5)
    assert float(task.loss(model, padded).detach()) == pytest.approx(alone, rel=1e-5)


def test_our_features_keep_the_floats_they_say(modules: Any, job: Path) -> None:
    scores, figures = measured(modules, "ours", job, "features:eigen:200:6")
    assert scores.shape == (8, 4)
    assert figures["floats"] <= 200
    assert figures["set-up"] > 0
    dense, _ = measured(modules, "bare", job, "dense:4096")
    bare, _ = measured(modules, "bare", job, "exact")
    assert modules["run"].correlation(dense, bare) > 0.6


def test_a_process_that_fails_is_a_row_with_the_reason(modules: Any, job: Path) -> None:
    run = modules["run"]
    runner = run.Runner(None, job.parent, timeout=600)
    sides = [run.Side("none", None, "bare", "dense:many"), run.Side("bare", None, "bare", "exact")]
    (_, scores, figures), (_, exact, _) = runner.run(sides, job, together=True)
    assert exact.shape == (8, 4)
    assert scores is None
    assert figures["failed"].startswith("ValueError: invalid literal")
    kept = json.loads((job / "bare-dense-many.json").read_text())
    assert kept == figures


def test_overlap_counts_the_common_best_rows(modules: Any) -> None:
    wanted = np.arange(20.0)[:, None]
    found = wanted.copy()
    found[0] = 100  # one of the two best by the other order
    assert modules["run"].overlap(found, wanted) == 0.5
    assert modules["run"].overlap(-wanted, wanted) == 0
