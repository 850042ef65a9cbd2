"""The verb ``evaluate``: from scores on disk to a table and its JSON; each mistake is one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hfdataopt import Scores, cli
from hfdataopt.evaluation import label_noise_auc, linear_datamodeling_score, measure_subsets
from hfdataopt.retraining import Recipe

from ..tiny import bert, encoded, texts, tokenizer

NAMES = ["bad", "good"]
FLIPPED = (3, 8)
TRAINING = ["--epochs", 1, "--learning_rate", 0.01, "--train_batch_size", 4, "--seeds", 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, three splits with labels in words, and scores of the pool by the verb ``score``."""
    where = tmp_path_factory.mktemp("evaluate")
    bert().save_pretrained(where / "model")
    tokenizer().save_pretrained(where / "model")
    for name, rows, seed, flipped in (("pool", 12, 1, FLIPPED), ("queries", 6, 2, ()), ("test", 5, 3, ())):
        with (where / f"{name}.jsonl").open("w") as stream:
            for place, row in enumerate(texts(rows, seed, flipped)):
                entry = {"sentence": row["text"], "class": NAMES[row["label"]], "wrong": place in flipped}
                stream.write(json.dumps(entry) + "\n")
    for scorer in ("tracin", "loss", "random"):
        queries = ["--queries", where / "queries.jsonl"] if scorer == "tracin" else []
        words = ["score", "--scorer", scorer, "--model", where / "model", "--output_dir", where / scorer, "--show", 0]
        assert cli.main([str(word) for word in [*words, *queries, *pool_of(where)]]) == 0
    return where


def pool_of(folder: Path) -> list[Any]:
    return ["--pool", folder / "pool.jsonl", "--text", "sentence", "--label", "class"]


def evaluate(folder: Path, out: Path, *words: Any, scores: tuple[str, ...] = ("tracin",)) -> int:
    given = ["evaluate", "--scores", *(folder / name for name in scores), *pool_of(folder), "--output_dir", out, *words]
    return cli.main([str(word) for word in given])


def retraining(folder: Path, *splits: str) -> list[Any]:
    return ["--model", folder / "model", *TRAINING, *(w for s in splits for w in (f"--{s}", folder / f"{s}.jsonl"))]


def test_label_noise(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert evaluate(folder, tmp_path, "--flipped", "wrong", scores=("tracin", "loss", "random")) == 0
    printed = capsys.readouterr().out
    flipped = [row in FLIPPED for row in range(12)]
    expected = {name: label_noise_auc(Scores.load(folder / name), flipped) for name in ("tracin", "loss", "random")}
    assert json.loads((tmp_path / "evaluation.json").read_text())["label_noise"] == {
        name: one.as_dict() for name, one in expected.items()
    }
    ordered = sorted(expected, key=lambda name: -expected[name].auc.value)
    assert printed.splitlines() == [f"{name}: {expected[name]}" for name in ordered]
    assert (tmp_path / "evaluation.txt").read_text() == printed


def test_linear_datamodeling_score(folder: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--lds", "--subsets", 4, *retraining(folder, "queries")]
    assert evaluate(folder, tmp_path, *words, scores=("tracin", "loss")) == 0
    pool, queries = encoded(12, 1, FLIPPED), encoded(6, 2)
    recipe = Recipe(epochs=1, learning_rate=0.01, batch_size=4)
    measured = measure_subsets(bert(), pool, queries, subsets=4, seeds=2, training=recipe)
    found = json.loads((tmp_path / "evaluation.json").read_text())["linear_datamodeling_score"]
    for name in ("tracin", "loss"):
        expected = linear_datamodeling_score(Scores.load(folder / name), measured.subsets, measured.outcomes)
        assert found[name]["score"]["value"] == pytest.approx(expected.score.value, abs=1e-6)
    assert found["reliability"] == pytest.approx(measured.reliability, abs=1e-6)
    assert "(of the mean over queries)" in capsys.readouterr().out
    outcomes = tmp_path / "subsets" / "outcomes-0.jsonl"
    assert len(outcomes.read_text().splitlines()) == 8
    assert evaluate(folder, tmp_path, *words, scores=("tracin",)) == 0
    assert len(outcomes.read_text().splitlines()) == 8, "the trainings are kept for other scores"


def test_curves_beside_label_noise(folder: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--curves", "--fractions", 0.25, 0.5, "--utility", "accuracy", "--flipped", "wrong"]
    assert evaluate(folder, tmp_path, *words, *retraining(folder, "test"), scores=("tracin", "random")) == 0
    document = json.loads((tmp_path / "evaluation.json").read_text())
    points = document["curves"]["points"]
    assert [(point["kind"], point["scores"], point["rows"]) for point in points] == [
        (kind, name, rows)
        for kind in ("add-highest", "remove-highest")
        for name in ("tracin", "random")
        for rows in (3, 6)
    ]
    assert set(document) == {"label_noise", "curves"}
    assert document["curves"]["metric"] == "accuracy"
    assert "remove-highest  tracin" in capsys.readouterr().out


def test_a_fresh_head_is_the_same_when_the_run_is_repeated(folder: Path, tmp_path: Path) -> None:
    bert().bert.save_pretrained(tmp_path / "body")
    tokenizer().save_pretrained(tmp_path / "body")
    words = ["--curves", "--fractions", 0.5, *TRAINING, "--model", tmp_path / "body", "--test", folder / "test.jsonl"]
    for _ in range(2):
        assert evaluate(folder, tmp_path / "out", *words) == 0


def test_rows_are_matched_by_id(folder: Path, tmp_path: Path) -> None:
    """Scores keyed by row_id, with the pool in another order."""
    pool = texts(12, 1, FLIPPED).add_column("row_id", [f"r{i}" for i in range(12)])
    marked = pool.add_column("wrong", [i in FLIPPED for i in range(12)])
    turned = [5, 3, 0, 1, 2, 11, 10, 9, 8, 7, 6, 4]
    for name, data in (("pool", pool), ("turned", marked.select(turned))):
        data.save_to_disk(tmp_path / name)
    texts(6, 2).to_json(tmp_path / "queries.jsonl")
    words = ["score", "--scorer", "tracin", "--pool", tmp_path / "pool", "--queries", tmp_path / "queries.jsonl"]
    words += ["--model", folder / "model", "--output_dir", tmp_path / "scores", "--show", 0]
    assert cli.main([str(word) for word in words]) == 0
    words = ["evaluate", "--scores", tmp_path / "scores", "--pool", tmp_path / "turned", "--flipped", "wrong", "--lds"]
    more = ["--model", folder / "model", "--queries", tmp_path / "queries.jsonl", "--subsets", 4, *TRAINING]
    assert cli.main([str(word) for word in [*words, *more, "--output_dir", tmp_path / "out"]]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    scores = Scores.load(tmp_path / "scores")
    expected = label_noise_auc(scores, [i in FLIPPED for i in range(12)])
    assert found["label_noise"]["tracin"]["auc"]["value"] == pytest.approx(expected.auc.value)
    ids = encoded(12, 1, FLIPPED, ids=True)
    recipe = Recipe(epochs=1, learning_rate=0.01, batch_size=4)
    measured = measure_subsets(bert(), ids, encoded(6, 2), subsets=4, seeds=2, training=recipe)
    lds = linear_datamodeling_score(np.asarray(scores.matrix), measured.subsets, measured.outcomes)
    assert found["linear_datamodeling_score"]["tracin"]["score"]["value"] == pytest.approx(lds.score.value, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "say what to measure: --flipped COLUMN, --lds, --curves"),
        (["--lds"], "--lds trains models: give --model and --queries"),
        (["--curves", "--model", "m"], "--curves trains models: give --test"),
        (["--flipped", "odd"], "the pool has no column 'odd'; it has: text, label, wrong"),
        (["--flipped", "text"], "column 'text' must hold true or false"),
        (["--flipped", "wrong", "--seeds", 0], "--seeds must be at least 1; got 0"),
        (["--lds", "--model", "m", "--queries", "q", "--subsets", 2], "--lds ranks models, at least 3 of them"),
        (["--lds", "--model", "m", "--queries", "q", "--epochs", 0], "Recipe: --epochs 0 must be at least 1"),
        (["--flips", "wrong"], "unrecognized arguments: --flips wrong"),
    ],
)
def test_mistakes_are_one_line(folder: Path, tmp_path: Path, capsys: Any, words: list[Any], wanted: str) -> None:
    capsys.readouterr()
    assert evaluate(folder, tmp_path / "out", *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert wanted in err


def test_other_data_is_refused(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert evaluate(folder, tmp_path, "--lds", "--model", folder / "model", "--queries", folder / "test.jsonl") == 2
    assert "tracin: the scores are of 6 queries with other row ids than the 5 of --queries" in capsys.readouterr().err
    words = [
        "evaluate",
        "--scores",
        folder / "tracin",
        "--pool",
        folder / "queries.jsonl",
        "--text",
        "sentence",
        "--flipped",
        "wrong",
    ]
    assert cli.main([str(word) for word in [*words, "--output_dir", tmp_path]]) == 2
    assert "these scores belong to 12 prepared rows identified by position" in capsys.readouterr().err
    assert evaluate(folder, tmp_path, "--flipped", "wrong", scores=("tracin", "tracin")) == 2
    assert "--scores names a folder twice" in capsys.readouterr().err
