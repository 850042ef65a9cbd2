"""The benchmarks of speed at toy size: what their tables hold, and that both sides of a ratio do the same work."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfdataopt.statistics import rank_correlation
from hfdataopt.testing.tiny import reader, speaker

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a benchmark; its figures go to a folder of the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(importlib.import_module("results"), "FOLDER", tmp_path)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def results(load: Callable[[str], Any]) -> Any:
    return load("results").Results("toy", "python benchmarks/toy.py")


def column(results: Any, name: str, table: int = -1) -> dict[str, Any]:
    """Of the last table: cells by the first of their row."""
    found = results.document["tables"][table]
    return {row[0]: row[found["columns"].index(name)] for row in found["rows"]}


def test_shapley(load: Callable[[str], Any], results: Any) -> None:
    benchmark = load("shapley_speed")
    benchmark.compare(results, 60, 20, 3, 2)
    assert column(results, "x floor")["bare floor"] == 1
    assert len(column(results, "x floor")) == 5
    benchmark.compare_reference(results, 60, 20, 1)
    assert column(results, "x ours")["one solve per prefix"][0] > 2


def test_gradient_features(load: Callable[[str], Any], results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("gradient_features")
    monkeypatch.setattr(benchmark, "FORMS", ("less",))
    found, wanted = torch.randn(20, 3), torch.randn(20, 3)
    mean, low, high = benchmark.rank_correlation(found, wanted)
    assert mean == pytest.approx(np.mean([rank_correlation(found[:, k], wanted[:, k]) for k in range(3)]))
    assert low < mean < high
    model = benchmark.make_model(0, "cpu")
    _, optimizer = benchmark.train(model, 2, 0, "cpu")
    text = benchmark.make_text(32, 1, 16)
    pool, asked = benchmark.as_batches(text, "p"), benchmark.as_batches(text, "q")
    benchmark.speed(results, model, pool, 1)
    assert next(iter(column(results, "x floor").values())) == 1
    moments = benchmark.AdamMoments.of(optimizer, model)
    benchmark.adam_fidelity(results, model, moments, *map(benchmark.mean_loss, (pool, asked)), 2)
    shares = column(results, "share of the norm")
    assert 0 < shares["`less`, eigen"] <= 1


def test_policy_gradients_add_up_to_those_one_by_one(
    load: Callable[[str], Any], results: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load("policy_gradients")
    monkeypatch.setattr(benchmark, "QUERIES", 2)
    monkeypatch.setattr(benchmark, "SAMPLES", 32)
    samples, model = benchmark.make_samples(6), benchmark.make_model(0, "cpu").eval()
    cpu = torch.device("cpu")
    batches, alone = (list(samples.batches(samples.ids, size, cpu)) for size in (16, 1))
    basis = benchmark.fit_basis(model, batches, rows=16)
    short = benchmark.make_samples(2).batches(samples.ids, 16, cpu)
    vectors = [benchmark.policy_vectors(model, part, samples, basis) for part in (batches, alone)]
    torch.testing.assert_close(*vectors, rtol=1e-3, atol=1e-4 * float(vectors[0].abs().max()))
    benchmark.policy(results, (2,), 1)
    assert column(results, "tokens in all") == {2: sum(int(batch["attention_mask"].sum()) for batch in short)}


@pytest.mark.slow
def test_callback(load: Callable[[str], Any], results: Any) -> None:
    benchmark = load("policy_gradients")
    before = benchmark.View._basis
    benchmark.callback(results, 32, 4, 1)
    assert benchmark.View._basis is before
    assert column(results, "x bare passes")["training with `tracin`"][0] > 1


def test_bm25_beside_the_peers(load: Callable[[str], Any], results: Any) -> None:
    pytest.importorskip("bm25s")
    benchmark = load("filter_speed")
    texts = benchmark.made_up(120, 60)
    pool = Dataset.from_dict({"text": texts[5:]})
    benchmark.compare_bm25(results, texts[5:], texts[:5], "made-up rows", pool, 1)
    gaps = column(results, "largest difference over the largest score")
    assert float(gaps["bm25s"]) < 1e-5
    if gaps["rank_bm25"] is None:
        assert results.document["tables"][-1]["notes"] == ["rank_bm25 was not installed: pip install rank-bm25."]
    else:
        assert float(gaps["rank_bm25"]) > 1e-3
        assert float(gaps["rank_bm25 with our idf"]) < 1e-12


def test_dsir_and_rules(load: Callable[[str], Any], results: Any, tmp_path: Path) -> None:
    benchmark = load("filter_speed")
    texts = benchmark.made_up(60, 40)
    pool = Dataset.from_dict({"text": texts[5:]})
    benchmark.compare_dsir(results, texts[5:], texts[:5], "made-up rows", pool, 1, tmp_path)
    assert set(column(results, "CPU s")) == {"authors' package", "`dsir`, sha256", "`dsir`, vectorised"}
    notes = " ".join(results.document["tables"][-1]["notes"])
    assert "are identical" in notes or "pip install data-selection" in notes
    benchmark.time_top(results, 2000, 1)
    assert set(column(results, "x argsort")) == {"all different", "1,000 different"}


@pytest.mark.slow
def test_endpoint(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = load("endpoint_overhead")
    monkeypatch.setattr(benchmark, "EVALUATIONS", 40)
    for line in (benchmark.measure(8, 0), benchmark.measure_search(8, 0)):
        cells = dict(zip(benchmark.COLUMNS, line, strict=True))
        assert cells["agrees"] == "yes"
        assert cells["ratio"] > 1
        assert cells["requests"] == 40 + cells["429"] + cells["500"] + cells["stalls"]


def test_shared_prefix(load: Callable[[str], Any], results: Any) -> None:
    benchmark = load("shared_prefix")
    benchmark.compare(results, speaker(positions=128), reader(longest=128), [40], [2], 1)
    assert column(results, "completions") == {40: "the same"}


def test_bandits(load: Callable[[str], Any], results: Any) -> None:
    benchmark = load("bandit_variance")
    benchmark.against_explicit(results, 8, (4,), 30, 10, 1)
    assert max(map(float, column(results, "largest relative difference").values())) < 1e-11
    benchmark.against_float64(results, 8, (4,), 40, 10, 1)
    assert [max(map(float, row[2:])) < 1e-3 for row in results.document["tables"][-1]["rows"]] == [True, True]


def test_surrogates(load: Callable[[str], Any], results: Any) -> None:
    benchmark = load("surrogates")
    worlds = [benchmark.world(seed, 20) for seed in (7, 8)]
    linear = next(iter(benchmark.SURROGATES.values()))
    scores, _ = benchmark.from_scores(linear, worlds)
    (x, y), seen = worlds[0], benchmark.OBSERVED
    mean, _ = linear.fit(x[:seen], y[:seen]).predict(x[seen:])
    assert scores[0] == pytest.approx(rank_correlation(mean, y[seen:]))
    asked = benchmark.from_votes(linear, worlds, (7, 8), 25)
    benchmark.tables(results, {"linear": [(scores, 0.1)] * 2 + [asked] * 4}, (7, 8))
    middle, low, high = column(results, "40 scores, 384 features", 0)["linear"]
    assert low < middle < high
    assert column(results, "25 votes", 1) == {"linear": min(asked[0])}
