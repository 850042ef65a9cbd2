"""``--dry-run``: what is said is true of the data, nothing is written, and estimates are of the right size."""

import json
import time

import pytest

from hfdataopt import cli
from hfdataopt.commands import estimate
from hfdataopt.demo import follower_tasks

from .tiny import bert, llama, texts, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models, rows, and scores of them."""
    where = tmp_path_factory.mktemp("dry")
    for name, model, special in (("model", bert(), True), ("lm", llama(), False)):
        model.save_pretrained(where / name)
        tokenizer(special=special).save_pretrained(where / name)
    for name, rows, seed in (("pool", 100, 1), ("queries", 10, 2), ("test", 8, 3)):
        data = [{**row, "wrong": False} for row in texts(rows, seed)]
        (where / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
        prompts = [{"prompt": row["text"], "completion": "fine"} for row in data]
        (where / f"{name}-prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (where / "own_dry_rewards.py").write_text(
        "def short(completions, **_):\n    return [-len(c) for c in completions]\n"
    )
    words = [
        "score",
        "--scorer",
        "loss",
        "--model",
        "model",
        "--pool",
        "pool.jsonl",
        "--output_dir",
        "scores",
        "--show",
        "0",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert cli.main(words) == 0
    return where


@pytest.fixture
def said(folder, monkeypatch, capsys):
    """The lines that a dry run prints; it leaves no file behind."""
    monkeypatch.chdir(folder)

    def run(*words):
        before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
        capsys.readouterr()
        assert cli.main([*words, "--dry-run"]) == 0, capsys.readouterr().err
        assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before
        out = capsys.readouterr().out.splitlines()
        assert out[0].startswith("dry run, nothing is written: ")
        return "\n".join(out)

    return run


SCORE = [
    "score",
    "--model",
    "model",
    "--pool",
    "pool.jsonl",
    "--queries",
    "queries.jsonl",
    "--output_dir",
    "out",
    "--scorer",
]


def test_score(said):
    text = said(*SCORE, "tracin", "--floats_per_row", "100")
    tokens = sum(len(tokenizer()(row["text"])["input_ids"]) for row in texts(10, 2))
    assert "pool: 100 rows, about " in text
    assert f"queries: 10 rows, about {tokens} tokens" in text
    assert f"model: BertForSequenceClassification, {sum(p.numel() for p in bert().parameters()):,} parameters" in text
    assert "to read 110 rows with gradients once" in text
    assert f"up to {estimate.size(4 * 100 * 110)} of features" in text


def test_a_scorer_that_reads_no_queries(said):
    text = said(*SCORE, "loss")
    assert "queries" not in text
    assert "to read 100 rows once" in text


def test_trainings_are_counted_as_they_are_done(said, folder):
    assert "trainings: at most 202, on 99 rows each on average, 3 epochs" in said(
        *SCORE, "loo-retraining", "--seeds", "2"
    )
    assert "trainings: at most 500, on 50 rows each on average, 1 epochs" in said(
        *SCORE, "tmc-shapley", "--permutations", "5", "--epochs", "1"
    )


def test_completions_are_counted(said):
    words = ["score", "--scorer", "nice", "--model", "lm", "--pool", "pool-prompts.jsonl", "--output_dir", "out"]
    words += ["--queries", "queries-prompts.jsonl", "--reward_funcs", "own_dry_rewards:short", "--max_new_tokens", "12"]
    text = said(*words, "--samples", "3")
    assert "calls: 30 completions of at most 12 tokens" in text
    assert "to read 100 rows with gradients once" in text
    at = said(*words, "--samples", "3", "--checkpoints", "lm", "lm")
    assert "calls: 60 completions" in at
    assert "once at 2 checkpoints" in at


def test_select(said):
    text = said(
        "select",
        "--filter",
        "bm25",
        "--dataset",
        "pool.jsonl",
        "--target",
        "queries.jsonl",
        "--fraction",
        "0.2",
        "--output",
        "o.jsonl",
    )
    assert "dataset: 100 rows" in text
    assert "target: 10 rows" in text
    assert "output: about 20 rows" in text
    assert "measured: fitting and scoring 16 and 64 rows" in text
    assert "output: 100 rows" in said("select", "--filter", "length", "--dataset", "pool.jsonl", "--output", "o.jsonl")
    stream = said(
        "select", "--filter", "length", "--dataset", "pool.jsonl", "--k", "2", "--output", "o.jsonl", "--streaming"
    )
    assert "a stream, whose rows are not counted" in stream
    missing = said(
        "select",
        "--filter",
        "scores",
        "--given",
        "scores",
        "--dataset",
        "pool.jsonl",
        "--k",
        "2",
        "--output",
        "o.jsonl",
    )
    assert "time: not measured, since the sample of 64 rows alone does not do: " in missing


def test_select_tells_of_rows_at_which_it_would_stop(said, folder):
    rows = [{"prompt": "the film " * (30 if place % 4 == 0 else 2), "completion": " was fine"} for place in range(100)]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "select",
        "--filter",
        "perplexity",
        "--model",
        "lm",
        "--dataset",
        "long.jsonl",
        "--output",
        "o.jsonl",
        "--k",
        "2",
    ]
    text = said(*words)
    assert "it would stop with an error: 16 of the 64 rows looked at have no score (no answer, or a prompt" in text
    assert "--on_nan drop leaves such rows out" in text
    assert "measured: fitting and scoring 16 and 64 rows" in text
    assert "would stop" not in said(*words, "--on_nan", "drop")


def test_the_hint_of_a_filter_is_said_once(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    (folder / "few.jsonl").write_text('{"text": "something else"}\n')
    words = [
        "select",
        "--filter",
        "dsir",
        "--dataset",
        "pool.jsonl",
        "--target",
        "few.jsonl",
        "--k",
        "2",
        "--output",
        "o.jsonl",
    ]
    assert cli.main([*words, "--dry-run"]) == 0
    assert capfd.readouterr().err.count("the reduction per-token takes the length out") == 1


def test_optimize(said):
    words = [
        "optimize",
        "--optimizer",
        "ape",
        "--dataset",
        "pool-prompts.jsonl",
        "--max_calls",
        "200",
        "--max_new_tokens",
        "4",
    ]
    text = said(*words, "--model", str(follower_tasks.FOLDER), "--reward_funcs", "own_dry_rewards:short")
    assert "max_calls=200 buys " in text
    assert "calls: max_calls=200; none is made now" in text
    assert "completions of 4 tokens take" in text


def test_optimize_with_people_opens_no_page(said, folder):
    words = [
        "optimize",
        "--optimizer",
        "copeland-ts",
        "--dataset",
        "pool-prompts.jsonl",
        "--model",
        str(follower_tasks.FOLDER),
    ]
    assert "max_judge_calls=20 buys 20 votes" in said(
        *words, "--judge", "human", "--max_judge_calls", "20", "--max_new_tokens", "4"
    )
    (folder / "search.yaml").write_text(
        "reward_funcs: [own_dry_rewards:short]\nmax_judge_calls: 20\nmax_new_tokens: 4\n"
    )
    assert "buys 20 votes" in said(*words, "--config", "search.yaml", "--judge", "human"), "the command line wins"


def test_evaluate_counts_the_trainings_that_are_done(said, folder, monkeypatch):
    words = ["evaluate", "--scores", "scores", "--pool", "pool.jsonl", "--output_dir", "ev", "--model", "model"]
    words += ["--queries", "queries.jsonl", "--test", "test.jsonl", "--epochs", "1", "--fractions", "0.1", "0.2"]
    text = said(*words, "--lds", "--curves", "--flipped", "wrong", "--subsets", "5", "--seeds", "2")
    assert "label noise: no training; AUC of 1 rankings" in text
    assert "trainings: at most 10, on 50 rows each on average" in text
    assert "trainings: at most 18, on 56 rows each on average" in text
    asked = []
    monkeypatch.setattr(
        "hfdataopt.trainings.Trainings.announce", lambda self, count, rows, at_most=False: asked.append((count, rows))
    )
    monkeypatch.setattr("hfdataopt.trainings.fine_tune", lambda model, *_, **__: model)
    assert cli.main([*words, "--lds", "--curves", "--subsets", "5", "--seeds", "2"]) == 0
    assert asked == [(10, 500), (18, 1000)]


def test_the_estimate_is_of_the_size_of_the_real_thing(folder, monkeypatch):
    """Within a factor of 10, on a busy machine; one of 100 is a wrong unit."""
    monkeypatch.chdir(folder)
    from hfdataopt.retraining import fine_tune, read_rows

    rows = read_rows(texts(100, 1), bert(), tokenizer())
    speed = estimate.measure(bert(), rows, 16)
    said = estimate.trainings_lines((1, 100), bert(), rows, speed, 0, type("R", (), {"batch_size": 8, "epochs": 1}))
    started = time.perf_counter()
    fine_tune(bert(), rows, range(100), epochs=1, batch_size=8)
    real = time.perf_counter() - started
    predicted = float(said[-1].split("about ")[1].split(" s")[0])
    assert predicted / 10 < real < predicted * 10


def test_a_mistake_is_found_by_a_dry_run_too(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = [
        "select",
        "--filter",
        "bm25",
        "--dataset",
        "pool.jsonl",
        "--k",
        "2",
        "--output",
        "o.jsonl",
        "--text",
        "body",
    ]
    assert cli.main([*words, "--target", "queries.jsonl", "--dry-run"]) == 2
    assert "body" in capsys.readouterr().err


def test_words():
    assert [estimate.size(x) for x in (5, 5e3, 5e6, 5e9)] == ["5 bytes", "5.0 kB", "5.0 MB", "5.0 GB"]
    assert [estimate.duration(x) for x in (0.0123, 61, 180, 9000, 400_000)] == [
        "0.012 s",
        "61 s",
        "3.0 minutes",
        "2.5 hours",
        "4.6 days",
    ]
