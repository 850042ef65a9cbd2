"""Everything a report can be made of, by the commands themselves: a tiny model, scores, an evaluation, selections, a search."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hfdataopt import cli

from ..tiny import bert, texts, tokenizer

NAMES = ["bad", "good"]
FLIPPED = (3, 8, 21)
ROWS = 32
BEFORE = "show the word in french."
# Markup that would run, what turns a line round, what does not show, a sign of several parts, and a megabyte.
HOSTILE = (
    "<script>window.hit=1</script><img src=x onerror='window.hit=2'></div></section>{{ 7*7 }}{% raw %} &amp; \u202eright to left "
    "\u05e9\u05dc\u05d5\u05dd \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u2066x\u2069 \U0001f468\u200d\U0001f469\u200d\U0001f467 "
    "nul\x00bell\x07esc\x1b[31m\u200bzero "
)
LONG = HOSTILE + "film " * 250_000


def call(*words: Any) -> None:
    assert cli.main([str(word) for word in words]) == 0


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``pool.jsonl`` (rows 0 and 1 are hostile), ``scores/``, ``evaluation/``, two summaries, and ``search/``."""
    torch.set_num_threads(1)  # the fixture that does so is for each test
    where = tmp_path_factory.mktemp("report")
    bert().save_pretrained(where / "model")
    tokenizer().save_pretrained(where / "model")
    for name, rows, seed, flipped in (("pool", ROWS, 1, FLIPPED), ("queries", 6, 2, ()), ("test", 5, 3, ())):
        with (where / f"{name}.jsonl").open("w") as stream:
            for place, row in enumerate(texts(rows, seed, flipped)):
                text = {0: LONG, 1: HOSTILE}.get(place, row["text"]) if name == "pool" else row["text"]
                entry = {"sentence": text, "class": NAMES[row["label"]], "wrong": place in flipped}
                stream.write(json.dumps(entry) + "\n")
    columns = ("--text", "sentence", "--label", "class")
    pool, model = ("--pool", where / "pool.jsonl", *columns), ("--model", where / "model")
    for scorer in ("tracin", "loss", "random"):
        queries = ("--queries", where / "queries.jsonl") if scorer == "tracin" else ()
        out = ("--output_dir", where / "scores" / scorer, "--show", 0)
        call("score", "--scorer", scorer, *model, *pool, *queries, *out)
    folders = [where / "scores" / name for name in ("tracin", "loss", "random")]
    training = ("--epochs", 1, "--learning_rate", 0.01, "--train_batch_size", 8, "--seeds", 2, "--fractions", 0.25, 0.5)
    splits = ("--queries", where / "queries.jsonl", "--test", where / "test.jsonl")
    what = ("--flipped", "wrong", "--lds", "--subsets", 3, "--curves")
    call(
        "evaluate", "--scores", *folders, *pool, *model, *splits, *what, *training, "--output_dir", where / "evaluation"
    )
    for name in ("length", "random"):
        kept, summary = where / f"{name}.jsonl", where / f"{name}-summary.json"
        rows = ("--dataset", where / "pool.jsonl", "--text", "[sentence]", "--fraction", 0.5)
        call("select", "--filter", name, *rows, "--output", kept, "--summary", summary, "--quiet")
    search(where / "search")
    return where


def search(folder: Path) -> Any:
    """A real search of 80 calls with a small model that follows instructions; it has prices."""
    from hfdataopt import PromptConfig, PromptTrainer
    from hfdataopt.demo import follower_tasks
    from hfdataopt.generation import LocalGenerator

    model, reader = follower_tasks.load_follower()
    config = PromptConfig(
        output_dir=str(folder),
        items=8,
        max_calls=80,
        start=[BEFORE],
        leaders=2,
        logging_steps=0,
        proposer_max_new_tokens=60,
        prices={"model": [0.5, 1.5], "proposer": [2.0, 8.0]},
    )
    trainer = PromptTrainer(
        "ape",
        model=LocalGenerator(model, reader, max_new_tokens=12, temperature=0.0),
        reward_funcs=follower_tasks.exact_match,
        train_dataset=follower_tasks.rows("french", "train"),
        eval_dataset=follower_tasks.rows("french", "test"),
        args=config,
    )
    return trainer.train()
