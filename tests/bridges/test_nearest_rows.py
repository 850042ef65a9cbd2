"""Nearest rows of a store: brute force, and faiss against it."""

import sys

import numpy as np
import pytest

from hfdataopt.errors import DataError, MissingDependencyError, OptionError
from hfdataopt.gradients import GradientStore
from hfdataopt_plugins.bridges import nearest_rows
from hfdataopt_plugins.bridges.nearest_rows import nearest

ROWS, WIDTH = 60, 12


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(ROWS, 2, WIDTH // 2)).astype(np.float32)


@pytest.fixture
def queries():
    return np.random.default_rng(1).normal(size=(5, 2, WIDTH // 2)).astype(np.float32)


@pytest.fixture
def store(features, tmp_path):
    made = GradientStore.open_or_create(tmp_path / "store", {"kind": "test"}, [f"r{i}" for i in range(ROWS)], 17)
    for shard in range(made.shards):
        rows = made.rows_of(shard)
        made.write(shard, {"features": features[rows.start : rows.stop]})
    return made


def brute(features, queries, by):
    """Values of all pairs, one by one, and the order of rows."""
    values = np.empty((len(queries), len(features)))
    for i, query in enumerate(queries.astype(float).reshape(len(queries), -1)):
        for j, row in enumerate(features.astype(float).reshape(len(features), -1)):
            product = sum(a * b for a, b in zip(query, row, strict=True))
            norms = np.sqrt((query**2).sum() * (row**2).sum())
            distance = np.sqrt(((query - row) ** 2).sum())
            values[i, j] = {"product": product, "cosine": product / norms, "distance": distance}[by]
    order = np.argsort(values if by == "distance" else -values, axis=1, kind="stable")
    return values, order


@pytest.mark.parametrize("by", ["product", "cosine", "distance"])
@pytest.mark.parametrize("search", ["exact", "faiss"])
def test_equals_brute_force(by, search, store, features, queries, monkeypatch):
    if search == "faiss":
        pytest.importorskip("faiss", reason="the extra faiss is not installed")
    monkeypatch.setattr(nearest_rows, "BLOCK", 7)
    values, order = brute(features, queries, by)
    found = nearest(store, queries, 4, by=by, search=search)
    assert (found.positions == order[:, :4]).all()
    assert found.row_ids == [[f"r{place}" for place in row] for row in order[:, :4].tolist()]
    np.testing.assert_allclose(found.values, np.take_along_axis(values, order[:, :4], 1), rtol=1e-4, atol=1e-5)


def test_a_folder_and_an_array_are_the_same_rows(store, features, queries):
    expected = nearest(store, queries, 3)
    assert nearest(store.folder, queries, 3).row_ids == expected.row_ids
    found = nearest(features, queries, 3)
    assert (found.positions == expected.positions).all()
    assert found.row_ids == expected.positions.tolist()


def test_equals_are_in_the_order_of_rows(features, queries, monkeypatch):
    monkeypatch.setattr(nearest_rows, "BLOCK", 5)
    twice = np.concatenate([features[:8], features[:8]])
    positions = nearest(twice, queries, 16, by="product").positions
    for row in positions.tolist():
        for place in range(8):
            assert row.index(place) + 1 == row.index(place + 8)


def test_an_approximate_index_finds_most(features, queries):
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    exact = nearest(features, queries, 5)
    found = nearest(features, queries, 5, search="faiss", factory="HNSW16")
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(exact.row_ids, found.row_ids, strict=True)]
    assert np.mean(shared) >= 0.8
    with pytest.raises(OptionError, match="no index factory='nonsense'"):
        nearest(features, queries, 5, search="faiss", factory="nonsense")
    nearest(features, queries, 1, search="faiss", factory="IVF2,Flat")


def test_wrong_input_is_named(features, queries, monkeypatch):
    with pytest.raises(OptionError, match="k=61 must be a whole number from 1 to 60"):
        nearest(features, queries, 61)
    with pytest.raises(DataError, match="12 features and the queries 6"):
        nearest(features, queries[:, 0], 2)
    with pytest.raises(OptionError, match="factory"):
        nearest(features, queries, 2, factory="HNSW16")
    broken = features.copy()
    broken[3] = np.nan
    with pytest.raises(DataError, match=r"1 row\(s\) of the store are not finite"):
        nearest(broken, queries, 2)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[faiss\]'"):
        nearest(features, queries, 2, search="faiss")
