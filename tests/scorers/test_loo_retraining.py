"""loo-retraining: the difference that leaving each row out makes, by training by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfdataopt import AttributionCallback, Scores, attribute, get_scorer
from hfdataopt.errors import OptionError
from hfdataopt.retraining import fine_tune, read_rows, utility

from ..attribution.test_processes import COMMON, torchrun
from ..tiny import bert, encoded, gpt2, questions

FAST: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2, "train_batch_size": 4}


def by_hand(model: Any, pool: Any, queries: Any, seed: int, metric: Any = "log-likelihood") -> np.ndarray:
    rows, asked = read_rows(pool, model), read_rows(queries, model)

    def value(positions: list[int]) -> np.ndarray:
        trained = fine_tune(model, rows, positions, epochs=1, learning_rate=1e-2, batch_size=4, seed=seed)
        return utility(trained, asked, metric).numpy()

    everything = list(range(len(pool)))
    return np.stack([value(everything) - value([i for i in everything if i != row]) for row in everything])


@pytest.mark.parametrize("metric", ["log-likelihood", "margin"])
def test_equals_leaving_each_row_out(model: Any, metric: Any) -> None:
    pool, queries = encoded(5, seed=1), encoded(4, seed=2)
    scores = attribute(model, pool, queries, "loo-retraining", utility=metric, **FAST)
    np.testing.assert_allclose(scores.matrix, by_hand(model, pool, queries, 0, metric), atol=1e-12)
    assert scores.standard_errors is None
    assert scores.metadata["moments"][0]["trainings"] == 6


def test_seeds_are_averaged_and_give_errors(model: Any) -> None:
    pool, queries = encoded(4, seed=1), encoded(3, seed=2)
    scores = attribute(model, pool, queries, "loo-retraining", seeds=3, seed=5, **FAST)
    each = np.stack([by_hand(model, pool, queries, seed) for seed in (5, 6, 7)])
    np.testing.assert_allclose(scores.matrix, each.mean(0), atol=1e-12)
    np.testing.assert_allclose(scores.standard_errors, each.mean(2).std(0, ddof=1) / np.sqrt(3), atol=1e-12)


def test_a_language_model_and_resuming(tmp_path: Path) -> None:
    model, pool, queries = gpt2().eval(), questions(4, 1), questions(3, 2)
    run: dict[str, Any] = {"output_dir": tmp_path, **FAST}
    first = attribute(model, pool, queries, "loo-retraining", **run)
    np.testing.assert_allclose(first.matrix, by_hand(model, pool, queries, 0), atol=1e-12)
    (folder,) = tmp_path.glob("step-*")
    (folder / "result.json").unlink()
    outcomes = (folder / "trainings" / "outcomes-0.jsonl").read_text()
    again = attribute(model, pool, queries, "loo-retraining", **run)
    np.testing.assert_array_equal(again.matrix, first.matrix)
    assert (folder / "trainings" / "outcomes-0.jsonl").read_text() == outcomes


def test_options_and_the_callback() -> None:
    with pytest.raises(OptionError, match="loo-retraining: seeds=0 must be at least 1"):
        get_scorer("loo-retraining", seeds=0)
    with pytest.raises(OptionError, match="call attribute"):
        AttributionCallback("loo-retraining", queries=encoded(2))


TWO = (
    COMMON
    + """
few, run = encoded(5, seed=1), {"epochs": 1, "learning_rate": 1e-2, "train_batch_size": 4}
attribute(bert().eval(), few, queries, "loo-retraining", output_dir=f"{out}/loo", **run)
scores = attribute(bert().eval(), few, queries, "tmc-shapley", permutations=5, **run)
scores.save(f"{out}/tmc-{Processes.current().index}")
"""
)


def test_two_processes_share_the_trainings(tmp_path: Path) -> None:
    torchrun(tmp_path, TWO)
    few, queries, model = encoded(5, seed=1), encoded(5, seed=7), bert().eval()
    expected = attribute(model, few, queries, "loo-retraining", **FAST)
    np.testing.assert_allclose(Scores.load(tmp_path / "loo").matrix, expected.matrix, atol=1e-6)
    files = sorted(tmp_path.glob("loo/step-*/trainings/outcomes-*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files] == [3, 3]
    expected = attribute(model, few, queries, "tmc-shapley", permutations=5, **FAST)
    for process in (0, 1):
        found = Scores.load(tmp_path / f"tmc-{process}")
        np.testing.assert_allclose(found.matrix, expected.matrix, atol=1e-6)
        assert found.metadata["moments"] == expected.metadata["moments"]
