"""The protocol beside cleanlab: both sides rank the same rows, and sets are counted as they should be."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("cleanlab")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("label_peers")


def test_precision_and_recall_of_as_many_rows(peers: ModuleType) -> None:
    flipped = np.array([True, False, True, False, False])
    found = peers.found_set(np.array([True, True, False, False, False]), flipped, {"x": np.array([0, 3, 1, 4, 5.0])})
    assert found == {"size": 2, "flipped": 2, "hits": {"cleanlab": 1, "x": 2}}


def test_pairs_of_development_are_not_reported(peers: ModuleType) -> None:
    for seed in range(3):
        rows, swapped = peers.pairs_of(seed, development=False)
        other, _ = peers.pairs_of(seed, development=True)
        assert len(set(rows)) == len(rows) == peers.PAIRS
        assert not set(rows) & set(other)
        assert swapped.sum() == len(rows) // 10
    assert not np.array_equal(peers.pairs_of(0, False)[0], peers.pairs_of(1, False)[0])


def test_cleanlab_finds_flips_in_two_clouds(peers: ModuleType) -> None:
    rng = np.random.default_rng(0)
    true = np.arange(200) % 2
    x = rng.standard_normal((200, 8)) + 3 * true[:, None]
    flipped = np.zeros(200, bool)
    flipped[:20] = True
    values, found, seconds = peers.by_cleanlab(x, np.where(flipped, 1 - true, true), (1.0,))
    assert set(values) == {"cleanlab, CleanLearning()", *(f"cleanlab, {method}" for method in peers.METHODS)}
    assert set(seconds) == set(values)
    for name, scores in values.items():
        assert peers.auc(scores, flipped) > 0.99, name
    for rule, mask in found.items():
        assert (mask & flipped).sum() >= 18, rule
