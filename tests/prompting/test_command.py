import json

import pytest
from datasets import load_dataset

from hfdataopt import ApplyPrompt
from hfdataopt.cli import main
from hfdataopt.demo import follower_tasks as world

REWARD = "hfdataopt.demo.follower_tasks:exact_match"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world.rows("plural", "train").to_json("rows.jsonl")
    world.rows("plural", "test").to_json("fresh.jsonl")
    return tmp_path


def arguments(*more, optimizer="random", reward=True):
    own = ["--optimizer", optimizer, "--model", str(world.FOLDER), "--dataset", "rows.jsonl", "--items", "5"]
    goal = ["--reward_funcs", REWARD] if reward else []
    return ["optimize", *own, *goal, "--max_new_tokens", "12", "--logging_steps", "0", *more]


def test_a_search_from_the_shell(files, capsys):
    status = main(
        arguments("--max_calls", "40", "--eval_dataset", "fresh.jsonl", "--output_dir", "out", "--output", "new.jsonl")
    )
    assert status == 0
    result = json.loads((files / "out" / "result.json").read_text())
    prompt = ApplyPrompt.load(files / "out")
    assert result["spent"]["calls"] <= 40
    assert prompt.instruction == result["best"]["instruction"]
    assert prompt.instruction in capsys.readouterr().out
    rows = load_dataset("json", data_files="rows.jsonl", split="train")
    written = load_dataset("json", data_files="new.jsonl", split="train")
    assert list(written["prompt"]) == [f"{prompt.instruction}\n\n{one}" for one in rows["prompt"]]


def test_a_file_of_arguments_and_options_as_flags(files):
    (files / "search.yaml").write_text(
        f"optimizer: ape\nmodel: {world.FOLDER}\ndataset: rows.jsonl\nreward_funcs: [{REWARD}]\nitems: 5\nmax_calls: 30\n"
        "max_new_tokens: 12\nlogging_steps: 0\noutput_dir: from-file\noptimizer_options: {scoring: all, demonstrations: 2}\n"
    )
    assert main(["optimize", "--config", "search.yaml", "--output_dir", "flag", "--demonstrations", "3"]) == 0
    settings = json.loads((files / "flag" / "ledger.jsonl").read_text().splitlines()[0])["settings"]
    assert "scoring='all'" in settings["optimizer"][1]
    assert "demonstrations=3" in settings["optimizer"][1]
    assert not (files / "from-file").exists()


def test_the_help_has_the_options_of_search_and_optimizer(capsys):
    assert main(["optimize", "--optimizer", "random", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--max_judge_calls" in printed
    assert "options of optimizer random" in printed
    assert "--demonstrations" in printed


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--judge", "terminal"], "give --reward_funcs or --judge; got both"),
        (["--criterion", "politeness"], "--criterion is for --judge human"),
        (["--port", "8000"], "--port is for --judge human"),
        (["--demonstration", "3"], "accepts: demonstrations, pool_size"),
        (["--items", "many"], "--items"),
        (["--demonstrations", "many"], "random: option --demonstrations many is not allowed"),
        (["--prompt_column", "question"], "no column 'question'; it has: prompt"),
        (["--output", "rows.jsonl"], "is there already"),
        (["--max_calls", "3", "--leaders", "0"], "small for one round"),
    ],
)
def test_mistakes_are_one_line(files, capsys, more, says):
    assert main(arguments(*more)) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert said.count("hfdataopt optimize:") == 1


def test_neither_judge_nor_reward(files, capsys):
    assert main(arguments(reward=False)) == 2
    assert "got neither" in capsys.readouterr().err


def test_votes_at_the_terminal(files, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("1\n2\nt\nq\n"))
    more = ["--judge", "terminal", "--pool_size", "4", "--encoder", _encoder(), "--output_dir", "votes"]
    assert main(arguments(*more, optimizer="apohf", reward=False)) == 0
    votes = json.loads((files / "votes" / "result.json").read_text())["votes"]
    assert [vote["outcome"] for vote in votes] == ["preferred", "preferred", "tie"]


def test_a_judge_at_the_server_of_the_model(files, monkeypatch):
    from ..generation.test_endpoint import Server, said

    monkeypatch.setenv("OPENAI_API_KEY", "any")
    server = Server()

    def answer(number, body):
        text = "A" if body["model"] == "referee" else f"answer {number}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return 200, {"Content-Type": "application/json"}, json.dumps({"id": "1", "choices": [choice]}).encode()

    server.behave = answer
    try:
        own = ["--optimizer", "copeland-ts", "--model", "writer", "--dataset", "rows.jsonl", "--items", "5"]
        more = ["--judge", "referee", "--criterion", "Be short.", "--base_url", server.url, "--max_judge_calls", "4"]
        assert main(["optimize", *own, *more, "--leaders", "0", "--pool_size", "4", "--output_dir", "out"]) == 0
    finally:
        server.close()
    judged = [one["body"] for one in server.requests if one["body"]["model"] == "referee"]
    assert len(judged) == 4
    assert all("Be short." in said(body) and body["temperature"] == 0 for body in judged)
    assert {one["body"]["model"] for one in server.requests} == {"writer", "referee"}


def _encoder() -> str:
    from pathlib import Path

    import hfdataopt.demo

    return str(Path(hfdataopt.demo.__file__).parent / "encoder")
