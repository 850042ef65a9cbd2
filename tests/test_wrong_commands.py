"""Wrong command lines: each is one clear line on stderr that names what arrived and what to do, and no traceback."""

import json
import os
import subprocess
import sys
import time

import pytest
from datasets import Dataset, DatasetDict

from hfdataopt import cli

from .tiny import bert, llama, texts, tokenizer

SECONDS = 1.0  # of CPU, once the packages are imported


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a person has at hand: two models, files of every kind, saved datasets, reward functions, scores, an output."""
    where = tmp_path_factory.mktemp("wrong")
    for name, model, special in (("model", bert(), True), ("lm", llama(), False)):
        model.save_pretrained(where / name)
        tokenizer(special=special).save_pretrained(where / name)
    (where / "empty-model").mkdir()
    rows = Dataset.from_dict(texts(12, 1).to_dict())
    rows.to_json(where / "pool.jsonl")
    rows.to_csv(where / "pool.csv")
    DatasetDict(train=rows, test=rows).save_to_disk(where / "saved")
    (where / "broken.jsonl").write_text("{not json\n")
    (where / "empty.jsonl").write_text("")
    (where / "list.yaml").write_text("[1, 2]")
    (where / "typo.yaml").write_text("scorer: tracin\nmodell: model\n")
    (where / "bad.yaml").write_text("scorer: [\n")
    prompts = [{"prompt": row["text"], "completion": "fine"} for row in rows]
    (where / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (where / "own_wrong_rewards.py").write_text(
        "def narrow(completions):\n    return [1.0] * len(completions)\n"
        "def needs(completions, answer, **kwargs):\n    return [1.0] * len(completions)\n"
        "number = 3\n"
    )
    (where / "kept.jsonl").write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        words = [
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
        assert cli.main(["score", *words]) == 0  # and everything is imported
        assert cli.main(["optimize", "--optimizer", "random", "--help"]) == 0
    return where


SCORE = "score --scorer tracin --model model --pool pool.jsonl --queries pool.jsonl --output_dir out"
NICE = "score --scorer nice --model lm --pool prompts.jsonl --queries prompts.jsonl --output_dir out --max_new_tokens 4"
SELECT = "select --dataset pool.jsonl --output best.jsonl"
OPTIMIZE = (
    "optimize --optimizer ape --model lm --dataset prompts.jsonl --max_calls 100 --max_new_tokens 4 --output_dir out"
)
EVALUATE = "evaluate --scores scores --pool pool.jsonl --output_dir ev"

# What is typed, and what the line says: what arrived, then what to do.
WRONG = [
    # verbs
    ("scor", "invalid choice: 'scor' (choose from", "'hfdataopt --help' lists the arguments"),
    ("--verbose", "unrecognized arguments: --verbose", "'hfdataopt --help' lists"),
    ("score", "required: --scorer, --pool, --output_dir", "'hfdataopt score --help' lists"),
    ("evaluate --scores", "argument --scores: expected at least one argument", "--help"),
    ("demo --sed 3", "unrecognized arguments: --sed 3", "'hfdataopt demo --help' lists"),
    ("plugins extra", "unrecognized arguments: extra", "'hfdataopt plugins --help' lists"),
    # names of components
    (SCORE.replace("tracin", "tracln"), "no scorer is called 'tracln'", "did you mean 'tracin'?"),
    (f"{SELECT} --filter bm52", "no filter is called 'bm52'", "did you mean 'bm25'?"),
    (OPTIMIZE.replace("ape", "app"), "no optimizer is called 'app'", "there are: ape"),
    (SCORE.replace("tracin", "bm25"), "no scorer is called 'bm25'", "there are: "),
    # options
    (f"{SCORE} --normalise true", "unknown argument '--normalise'", "did you mean --normalize?"),
    (
        f"{SCORE} --basis eigenn",
        "option --basis eigenn is not allowed",
        "it takes 'eigen' | 'random' | 'sketch' | 'exact'",
    ),
    (f"{SCORE} --floats_per_row 0", "--floats_per_row 0", "must be at least 1"),
    (f"{SCORE} --floats_per_row many", "option --floats_per_row many", "it takes int"),
    (f"{SCORE} --batch_size 0", "--batch_size must be at least 1", "got 0"),
    (f"{SCORE} --task regression", "invalid choice: 'regression'", "classification"),
    (f"{SELECT} --filter bm25 --target pool.jsonl --k 3 --fraction 0.5", "got fraction, k", "give exactly one of"),
    (f"{SELECT} --filter length --k 30", "--k 30", "12"),
    (f"{SELECT} --filter length --fraction 1.5", "--fraction 1.5", "at most 1"),
    (f"{SELECT} --filter length --k 3 --rule balance", "--rule balance needs", "--balance_by COLUMN"),
    (f"{SELECT} --filter bm25 --k 3", "bm25: compares rows with validation data", "give --target"),
    (f"{OPTIMIZE}", "got neither", "give --reward_funcs or --judge"),
    (f"{OPTIMIZE} --judge terminal --port 80", "--port", "is for --judge human"),
    (f"{OPTIMIZE} --reward_funcs own_wrong_rewards:needs --items many", "--items", "invalid int value: 'many'"),
    (f"{EVALUATE}", "say what to measure", "--flipped COLUMN, --lds, --curves"),
    (f"{EVALUATE} --lds", "--lds trains models", "give --model and --queries"),
    (f"{EVALUATE} --flipped label --seeds 0", "--seeds must be at least 1", "got 0"),
    ("demo --flip 0.7", "--flip 0.7", "below 0.5"),
    ("demo --text body", "--text goes with --dataset", "which is missing"),
    (f"{SCORE} --batch_size 2 --batch_size 4", "--batch_size is given 2 times", "give it once"),
    (f"{SCORE} --pool pool.csv", "--pool is given 2 times", "give it once, with its values one after another"),
    ("check-plugin saved", "'saved'", "the folder saved is not installed: run pip install -e saved"),
    # files and folders
    (SCORE.replace("pool.jsonl", "poool.jsonl", 1), "'poool.jsonl'", "does not exist"),
    (SCORE.replace("pool.jsonl", "part-*.jsonl", 1), "the pattern 'part-*.jsonl'", "no file matches"),
    (SCORE.replace("pool.jsonl", "pool.jsonl pool.csv", 1), "pool.jsonl, pool.csv", "must all be of one kind"),
    (SCORE.replace("pool.jsonl", "pool.jsonl saved", 1), "'saved' is not a data file", "is given alone"),
    (SCORE.replace("pool.jsonl", "pool.jsonl:train", 1), "'pool.jsonl:train'", "a file has no splits"),
    (SCORE.replace("pool.jsonl", "saved:dev", 1), "no split 'dev'", "it has: train, test"),
    (SCORE.replace("pool.jsonl", "broken.jsonl", 1), "'broken.jsonl' could not be loaded", ""),
    (SCORE.replace("pool.jsonl", "empty.jsonl", 1), "empty", ""),
    (SCORE.replace("pool.jsonl", "./sved", 1), "the dataset './sved' does not exist", "did you mean 'saved'?"),
    (f"{SCORE} --text body", "no column 'body'", "it has: text, label"),
    (
        SCORE.replace("--model model", "--model ./modle"),
        "the model folder './modle' does not exist",
        "did you mean 'model'?",
    ),
    (
        SCORE.replace("--model model", "--model runs/a/checkpoint-5"),
        "'runs/a/checkpoint-5' does not exist",
        "no folder 'runs/a'",
    ),
    (
        SCORE.replace("--model model", "--model model/checkpoint-5"),
        "the model folder 'model/checkpoint-5' does not exist",
        "",
    ),
    (SCORE.replace("--model model", "--model empty-model"), "the folder 'empty-model'", "no Config could be loaded"),
    (SCORE.replace("--model model", ""), "give --model or --checkpoints", ""),
    (SCORE.replace("--queries pool.jsonl", ""), "needs validation data", "give --queries"),
    (
        f"{SELECT} --filter length --k 3".replace("best.jsonl", "pool.jsonl"),
        "--output pool.jsonl",
        "write to another place",
    ),
    (f"{SELECT} --filter length --k 3".replace("best.jsonl", "kept.jsonl"), "is there already", "pass --overwrite"),
    (f"{SELECT} --filter length --k 3".replace("best.jsonl", "best.xlsx"), "--output best.xlsx", "must end in .jsonl"),
    (f"{SELECT} --filter perplexity --model ./lmm --k 3", "--model ./lmm does not exist", "did you mean 'lm'?"),
    (
        f"{EVALUATE} --flipped label".replace("--scores scores", "--scores socres"),
        "'socres'",
        "does not hold readable scores",
    ),
    (f"{EVALUATE} --flipped flip", "no column 'flip'", "it has: text, label"),
    # YAML
    (f"{SCORE} --config absent.yaml", "--config absent.yaml", "No such file"),
    (f"{SCORE} --config list.yaml", "--config list.yaml", "expected a mapping of argument names to values; got list"),
    (f"{SCORE} --config typo.yaml", "unknown argument 'modell'", "did you mean 'model'?"),
    (f"{SCORE} --config bad.yaml", "--config bad.yaml", "while parsing"),
    (f"{EVALUATE} --config typo.yaml", "unknown argument 'scorer'", "did you mean 'scores'?"),
    # rewards
    (NICE, "--reward_funcs is needed", "a reward function"),
    (f"{NICE} --reward_funcs own_wrong_rewards.narrow", "'own_wrong_rewards.narrow'", "'own_wrong_rewards:narrow'"),
    (
        f"{NICE} --reward_funcs own_wrong_rewards:narow",
        "'own_wrong_rewards:narow' cannot be imported",
        "AttributeError",
    ),
    (f"{NICE} --reward_funcs own_wrong_rewards:number", "got 3", "a reward function is a callable"),
    (f"{NICE} --reward_funcs own_wrong_rewards:narrow", "'narrow' cannot be called", "should accept **kwargs"),
    (f"{NICE} --reward_funcs own_wrong_rewards:needs", "missing a required argument: 'answer'", "it gets prompts"),
    (f"{NICE} --reward_funcs ./reward-model", "'./reward-model' does not exist", "cannot be loaded"),
    (f"{OPTIMIZE} --reward_funcs own_wrong_rewards.narrow", "'own_wrong_rewards.narrow'", "'own_wrong_rewards:narrow'"),
    (
        f"{OPTIMIZE} --items 5 --reward_funcs own_wrong_rewards:narrow",
        "'narrow' cannot be called",
        "should accept **kwargs",
    ),
    (
        f"{OPTIMIZE} --reward_funcs own_wrong_rewards:needs --poolsize 3",
        "--poolsize",
        "accepts: demonstrations, pool_size",
    ),
]
LOADS_A_MODEL = ("nice", "optimize")  # its reward functions are looked at beside it


@pytest.mark.parametrize(("typed", "arrived", "to_do"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_a_wrong_command_is_one_line(folder, monkeypatch, capsys, typed, arrived, to_do):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    capsys.readouterr()
    before, started = sorted(os.listdir()), time.process_time()
    try:
        status = cli.main(typed.split())
    except SystemExit as stop:
        status = stop.code
    seconds = time.process_time() - started
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip() and "Loading weights" not in line]
    assert status == 2, err
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("hfdataopt")
    assert arrived in lines[0]
    assert to_do in lines[0]
    assert len(lines[0]) < 700
    assert "Traceback" not in err
    assert "unexpected" not in lines[0].partition("cannot be called")[0]
    assert sorted(name for name in os.listdir() if name != "__pycache__") == [n for n in before if n != "__pycache__"]
    if not any(word in typed.split()[:3] for word in LOADS_A_MODEL):
        assert seconds < SECONDS


def test_there_are_enough_and_each_is_another():
    assert len({typed for typed, _, _ in WRONG}) == len(WRONG) >= 30


def test_debug_shows_where(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for words in (["--debug", "score", "--scorer", "nothing"], ["score", "--scorer", "nothing", "--debug"]):
        assert cli.main(words) == 2
        err = capsys.readouterr().err.splitlines()
        assert err[0] == "Traceback (most recent call last):"
        assert err[-1].startswith("hfdataopt score: no scorer is called 'nothing'")


def test_what_is_unexpected_has_status_1_and_says_how_to_see_more(monkeypatch, capsys):
    monkeypatch.setattr("hfdataopt.commands.plugins.host", lambda: 1 / 0)
    assert cli.main(["plugins"]) == 1
    err = capsys.readouterr().err
    assert (
        err
        == "hfdataopt plugins: unexpected ZeroDivisionError: division by zero (--debug shows where; please report it)\n"
    )


def test_an_interruption_has_status_130(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("hfdataopt.commands.plugins.host", stop)
    assert cli.main(["plugins"]) == 130
    assert capsys.readouterr().err.startswith("hfdataopt plugins: interrupted; ")


def test_the_statuses_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {status} " in out and text in out for status, text in cli.STATUS.items())


def test_a_process_of_its_own_prints_nothing_else(folder):
    command = [sys.executable, "-m", "hfdataopt.cli", *SCORE.split(), "--text", "body"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hfdataopt score: the pool has no column 'body'; it has: text, label\n"
