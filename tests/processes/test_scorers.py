"""Every scorer gives in two processes what it gives in one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfdataopt import Scores, attribute
from hfdataopt.plugins import host

from . import jobs, pair

TOLERANCE = 1e-5  # of the largest number
ONE_PROCESS = (
    "bergson",
    "kronfluence",
)  # packages that hook and change a model of their own, and know of no other process
# One way for each scorer; all ways are in the slow tests.
QUICK = [
    *("cv-confidence", "freeshap", "grad-norm", "influence-datainf", "knn-shapley", "label-consistency", "less", "loo"),
    *("loo-retraining", "loss", "nice", "nice-amc", "nice-if", "random", "rds", "representer", "self-influence"),
    *("tmc-shapley", "tracin"),
]
ALL = [way for way in jobs.WAYS if way != "less-adam"]  # which needs the moments of an optimizer
IN_TRAINING = [way for way in ALL if jobs.WAYS[way][0] not in jobs.RETRAINS]


def difference(folder: Path, way: str, expected: Scores) -> float:
    """The largest difference of both processes' numbers from those of one process, relative to the largest of them."""
    found = 0.0
    parts = {"values": expected.values, "matrix": expected.matrix, "errors": expected.standard_errors}
    told = [(folder / f"{way}.{index}.json").read_text() for index in (0, 1)]
    assert told[0] == told[1]
    for index in (0, 1):
        with np.load(folder / f"{way}.{index}.npz") as kept:
            assert set(kept) == {part for part, value in parts.items() if value is not None}
            for part, value in kept.items():
                wanted = np.asarray(parts[part])
                assert value.shape == wanted.shape
                np.testing.assert_array_equal(np.isnan(value), np.isnan(wanted))
                scale = max(float(np.nanmax(np.abs(wanted), initial=0.0)), 1e-300)
                found = max(found, float(np.nanmax(np.abs(value - wanted), initial=0.0)) / scale)
    return found


def check(folder: Path, ways: list[str]) -> None:
    differences = {way: difference(folder, way, jobs.by_attribute(way, None)) for way in ways}
    assert max(differences.values()) <= TOLERANCE, differences


def test_every_scorer_is_tested() -> None:
    shipped = {name for name, one in host().components["scorer"].items() if one.source.distribution == "hfdataopt"}
    assert {scorer for scorer, _ in jobs.WAYS.values()} | set(ONE_PROCESS) == shipped
    assert {jobs.WAYS[way][0] for way in QUICK} | set(ONE_PROCESS) == shipped


def test_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.reader, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(jobs.completions, "QUERIES_AT_ONCE", 2)
    pair.run(jobs.score, tmp_path, QUICK, True)
    check(tmp_path, QUICK)
    assert '"reward_metrics": {"tokens":' in (tmp_path / "nice.0.json").read_text()
    # the shards were divided: 13 rows are four shards
    (store,) = tmp_path.glob("tracin/step-*/gradients-loss-pool-*")
    assert len(list(store.glob("shard-*"))) == 4


def test_the_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [way for way in QUICK if way in IN_TRAINING]
    monkeypatch.setattr(jobs.reader, "ROWS_PER_SHARD", 4)
    pair.run(jobs.train, tmp_path, ways)
    check(tmp_path, ways)


def test_scorers_of_one_process_say_so(tmp_path: Path) -> None:
    pair.run(jobs.refused, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_every_way_by_attribute(tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.reader, "ROWS_PER_SHARD", 4)
    pair.run(jobs.score, tmp_path, ALL, kept, seconds=1800)
    check(tmp_path, ALL)


@pytest.mark.slow
def test_every_way_by_the_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.reader, "ROWS_PER_SHARD", 4)
    pair.run(jobs.train, tmp_path, IN_TRAINING, seconds=1800)
    check(tmp_path, IN_TRAINING)


@pytest.mark.slow
def test_moments_of_a_training(tmp_path: Path) -> None:
    """Two epochs, with the moments of the live Adam: as one process finds it on the checkpoints that were saved."""
    ways = ["freeshap", "less-adam", "loss", "nice", "tracin"]
    arguments: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch", "logging_steps": 1}
    pair.run(jobs.train, tmp_path, ways, "save", seconds=1800, keywords=arguments)
    for way in ways:
        scorer, options = jobs.WAYS[way]
        model, pool, queries, tokenizer = jobs.data(scorer)
        folder = tmp_path / f"trainer-{scorer in jobs.PROMPTED}"
        expected = attribute(
            model,
            pool,
            queries,
            scorer,
            processing_class=tokenizer,
            batch_size=jobs.BATCH,
            checkpoints=sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])),
            **options,
        )
        assert len(expected.metadata["moments"]) == (2 if way not in ("freeshap",) else 1)
        assert difference(tmp_path, way, expected) <= TOLERANCE, way
