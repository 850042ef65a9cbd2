"""The demo verb: what it prints and writes, on the embedded data and on one's own; each mistake is one line."""

import csv
import json
import math

import pytest
import scipy.stats
import torch
from datasets import Dataset

from hfdataopt import Scores, with_row_ids
from hfdataopt.cli import main
from hfdataopt.commands import demo
from hfdataopt.demo.sentences import generate
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.statistics import mean_interval, rank_correlation, ranks

ENCODER = str(demo.Path(demo.__file__).parent.parent / "demo" / "encoder")


def test_smoke_run_writes_table_plot_and_scores_and_leaves_other_folders_alone(tmp_path, capsys):
    mine = tmp_path / "random-forest"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    assert main(["demo", "--smoke", "--output_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "most suspicious rows by freeshap" in out
    assert "Flipped labels among the lowest 12 rows (all: 12):" in out
    assert all(f"\n  {name} " in out for name in ("freeshap", "label-consistency", "loss", "cv-confidence", "random"))
    assert "Held-out accuracy on 200 rows, 2 seeds" in out
    assert (mine / "notes.txt").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("freeshap.png", "prompt", "random-forest", "report.html", "rows.csv", "scores"),
    ]
    with (tmp_path / "rows.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 120
    assert sum(int(row["flipped"]) for row in rows) == 12
    assert sum(int(row["suspicious"]) for row in rows) == 12
    scores = Scores.load(tmp_path / "scores" / "freeshap")
    lowest = {str(row) for row in scores.bottom(k=12)}
    assert {row["row"] for row in rows if row["suspicious"] == "1"} == lowest
    found = sum(int(row["flipped"]) for row in rows if row["row"] in lowest)
    assert f"  freeshap           {found:>4}  " in out
    assert found >= 8
    prompt = ApplyPrompt.load(tmp_path / "prompt").instruction
    spent = json.loads((tmp_path / "prompt" / "result.json").read_text())["spent"]
    assert spent["calls"] <= 60
    assert f"{prompt!r}" in out.partition("  found ")[2]


@pytest.fixture
def own(tmp_path):
    rows = generate(90, seed=5)
    for name, part in (("train", rows[:60]), ("clean", rows[60:])):
        lines = [json.dumps({"review": row["text"], "stars": ("bad", "good")[row["label"]]}) for row in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return [
        *("--dataset", str(tmp_path / "train.jsonl"), "--queries", str(tmp_path / "clean.jsonl")),
        *("--text", "review", "--label", "stars", "--model", ENCODER, "--epochs", "1", "--learning_rate", "1e-3"),
        *("--output_dir", str(tmp_path / "out")),
    ]


def test_own_data_prints_nothing_about_flips(own, tmp_path, capsys):
    assert main(["demo", *own, "--seeds", "1", "--show", "3"]) == 0
    out = capsys.readouterr().out
    assert "flip" not in out.lower()
    assert "The 3 most suspicious rows" in out
    assert "good" in out or "bad" in out
    with (tmp_path / "out" / "rows.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 60
    assert set(rows[0]) == {"row", "freeshap", "suspicious", "label", "text"}


def test_rows_are_those_of_the_file_also_when_it_is_sampled(own, tmp_path, capsys):
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert main(["demo", *own, "--seeds", "0", "--limit", "40"]) == 0
    with (tmp_path / "out" / "rows.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 40
    assert len({row["row"] for row in rows}) == 40
    assert all(lines[int(row["row"])]["review"] == row["text"] for row in rows)
    scores = Scores.load(tmp_path / "out" / "scores" / "freeshap")
    joined = scores.join(with_row_ids(Dataset.from_list(lines)))
    assert sum(value is not None for value in joined["score_freeshap"][:]) == 40


def test_own_data_with_injected_flips(own, capsys):
    assert main(["demo", *own, "--seeds", "0", "--flip", "0.2"]) == 0
    assert "(all: 12)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--text", "x"], "--text goes with --dataset"),
        (["--epochs", "0"], "--epochs 0.0: must be above 0"),
        (["--learning_rate", "-1"], "--learning_rate -1.0: must be above 0"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--flip", "0.7"], "--flip 0.7"),
        (["--dataset", "nowhere.jsonl", "--model", ENCODER], "nowhere.jsonl"),
        (["--dataset", "nowhere.jsonl"], "--dataset needs --model"),
        (["--smoke", "--model", "/no/such/model"], "/no/such/model"),
        (["--smoke", "--output_dir", "/proc/no"], "--output_dir /proc/no"),
    ],
)
def test_mistakes_are_one_line(arguments, wanted, capsys):
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert wanted in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "wanted"),
    [({"review": None, "stars": "bad"}, "row 60 has the text None"), ({"review": "x", "stars": None}, "label")],
)
def test_rows_that_cannot_be_read_are_named(own, tmp_path, row, wanted, capsys):
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps(row))
    assert main(["demo", *own]) == 2
    assert wanted in capsys.readouterr().err


def test_mean_interval():
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    half = 3.182 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half))
    assert math.isnan(mean_interval([1.0])[1])


def test_rank_correlation():
    one = torch.tensor([1.0, 5.0, 2.0, 9.0])
    assert rank_correlation(one, one.exp()) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert math.isnan(rank_correlation(one[:1], one[:1]))


def test_ranks_of_ties_are_shared():
    assert ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1, 3.5, 2]
    one, other = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]), torch.tensor([2.0, 3.0, 0.0, 1.0, 1.0])
    expected = scipy.stats.spearmanr(one, other).statistic
    assert rank_correlation(one, other) == pytest.approx(expected)
