"""What tells one option from another: kept results belong to the very reward, metric or training that made them."""

import functools
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hfdataopt import attribute, reward_from_metric, win_rate
from hfdataopt.attribution.identity import fingerprint
from hfdataopt.errors import StoreError
from hfdataopt.rewards import RewardFunctions, exact_match, token_f1

from ..policy import prompts, reader, speaker
from ..tiny import bert, questions


def counts(word: str, times: float = 1.0) -> Any:
    def reward(completions: Any, **_: Any) -> list[float]:
        return [times * text.count(word) for text in completions]

    return reward


def told(completions: Any, word: str = "film", **_: Any) -> list[float]:
    return [float(word in text) for text in completions]


def judge(prompts: Any, completions: Any, shuffle_order: bool = True) -> list[int]:
    return [0 for _ in completions]


def harsh(prompts: Any, completions: Any, shuffle_order: bool = True) -> list[int]:
    return [1 for _ in completions]


class Judge:
    def __init__(self, word: str, api_key: str = "sk-secret"):
        self.word, self.api_key = word, api_key
        self.calls: list[Any] = []

    def __call__(self, completions: Any, **_: Any) -> list[float]:
        self.calls.append(completions)
        return [float(self.word in text) for text in completions]


@dataclass
class Asking:
    word: str
    api_key: str = field(default="sk-secret", repr=False)
    shown_key: str = "sk-shown"


PAIRS: dict[str, tuple[Any, Any]] = {
    "closure": (counts("film"), counts("plot")),
    "default": (counts("film"), counts("film", 2.0)),
    "partial": (functools.partial(told, word="film"), functools.partial(told, word="plot")),
    "function": (told, judge),
    "lambda": (lambda a, b: 1.0, lambda a, b: 2.0),
    "object": (Judge("film"), Judge("plot")),
    "method": (Judge("film").__call__, Judge("plot").__call__),
    "dataclass": (Asking("film"), Asking("plot")),
    "metric": (
        reward_from_metric(exact_match, reference_column="a"),
        reward_from_metric(token_f1, reference_column="a"),
    ),
    "column": (
        reward_from_metric(exact_match, reference_column="a"),
        reward_from_metric(exact_match, reference_column="b"),
    ),
    "id": (
        reward_from_metric("rouge", reference_column="a", trust_remote_code=True),
        reward_from_metric("bleu", reference_column="a", trust_remote_code=True),
    ),
    "judge": (win_rate("a", judge), win_rate("a", harsh)),
    "baseline": (win_rate("a", judge), win_rate("b", judge)),
    "rewards": (win_rate("a", counts("film")), win_rate("a", counts("plot"))),
    "weights": (RewardFunctions(told, reward_weights=[1]), RewardFunctions(told, reward_weights=[2])),
    "model": (bert(1, 0), bert(1, 1)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_others_are_told_apart(kind: str) -> None:
    one, other = PAIRS[kind]
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one)


def test_what_is_made_again_is_the_same() -> None:
    for make in (
        lambda: counts("film"),
        lambda: Judge("film"),
        lambda: Asking("film"),
        lambda: functools.partial(told, word="film"),
        lambda: reward_from_metric(token_f1, reference_column="a"),
        lambda: win_rate("a", Judge("film")),
        lambda: bert(1, 0),
    ):
        assert fingerprint(make()) == fingerprint(make())


def test_use_does_not_change_it_and_no_key_can_be_read() -> None:
    one = Judge("film")
    before = fingerprint(one)
    one(["a film"])
    assert fingerprint(one) == before
    assert fingerprint(Asking("film", api_key="sk-renewed")) == fingerprint(Asking("film"))
    for value in (one, Asking("film"), functools.partial(told, word="sk-shown")):
        assert "sk-" not in fingerprint(value)


def test_another_process_finds_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "def make(word):\n    def reward(completions, **_):\n        return [text.count(word) for text in completions]\n"
        "    return reward\n"
    )
    code = (
        "from mine import make; from hfdataopt.attribution.identity import fingerprint as f\n"
        "print(f(make('film')), f(make('plot')), f(make({'a', 'b', 'c'})), sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    monkeypatch.syspath_prepend(tmp_path)
    make = importlib.import_module("mine").make
    here = [fingerprint(make(word)) for word in ("film", "plot", {"a", "b", "c"})]
    assert found.stdout.split("\n")[:3] == here
    assert len(set(here)) == 3


def test_results_of_another_reward_are_not_taken(tmp_path: Path) -> None:
    def run(reward: Any) -> Any:
        return attribute(
            speaker(),
            questions(4),
            prompts(3),
            "nice",
            processing_class=reader(),
            reward_funcs=reward,
            precondition="none",
            samples=2,
            max_new_tokens=3,
            output_dir=tmp_path,
        )

    run(reward_from_metric(token_f1, reference_column="answer"))
    run(reward_from_metric(token_f1, reference_column="answer"))
    options = json.loads((tmp_path / "run.json").read_text())["options"]
    assert options["reward_funcs"].startswith("MetricReward ")
    with pytest.raises(StoreError, match="options differ"):
        run(reward_from_metric(exact_match, reference_column="answer"))
