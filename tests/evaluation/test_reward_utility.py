"""The mean reward of completions as a utility: by hand, in a training that moves it, and from the shell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from hfdataopt import cli
from hfdataopt.errors import DataError, OptionError
from hfdataopt.evaluation import RewardUtility, measure_subsets, removal_curves
from hfdataopt.generation import LocalGenerator
from hfdataopt.retraining import Recipe, utility
from hfdataopt.testing.tiny import BAD, GOOD, good_words, prompts, reader, speaker

from ..words import replaced

RECIPE = Recipe(epochs=8, learning_rate=0.02, batch_size=4)
OPTIONS: dict[str, Any] = {"samples": 3, "max_new_tokens": 4}


def praise(rows: int = 12) -> Dataset:
    """Rows whose answers are good words in the first half, bad words in the second."""
    found = prompts(rows, 1).remove_columns("completion")
    half = rows // 2
    return found.add_column(
        "completion",
        [f" {(GOOD if row < half else BAD)[row % 4]} {(GOOD if row < half else BAD)[0]}" for row in range(rows)],
    )


def test_it_is_the_mean_reward_of_the_same_draws() -> None:
    model, test = speaker(), prompts(5, 2)
    metric = RewardUtility(good_words, reader(), seed=3, **OPTIONS)
    rows = metric.read(test, model, "test")
    found = utility(model, rows, metric)
    made = LocalGenerator(model, reader(), max_new_tokens=4).generate(test["prompt"], 3, keys=test["row_id"], seed=3)
    expected = [np.mean(good_words([one.token_ids for one in completions])) for completions in made]
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected)
    order = [3, 0, 4, 2, 1]
    turned = utility(model, metric.read(test.select(order), model, "test"), metric)
    assert turned.tolist() == pytest.approx([expected[place] for place in order])
    assert metric.__name__ == "reward good_words"


def test_functions_are_called_as_trl_calls_them_and_none_is_no_opinion() -> None:
    def right(completions: Any, answer: Any, prompts: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        assert len(completions) == len(answer) == len(prompts) == len(completion_ids) == 6
        return [None, 1.0, 3.0, None, None, 5.0]

    model, test = speaker(), prompts(2)
    metric = RewardUtility(right, reader(), **OPTIONS)
    assert metric(model, metric.read(test, model, "test")).tolist() == [2.0, 5.0]
    silent = RewardUtility(lambda completions, **_: [None] * len(completions), reader(), **OPTIONS)
    with pytest.raises(
        DataError, match="no function gave a reward to any of the 3 completions of 2 rows of the test: 'q0'"
    ):
        silent(model, silent.read(test, model, "test"))


def test_rows_that_raise_the_reward_raise_the_curve(tmp_path: Path) -> None:
    pool = praise()
    metric = RewardUtility(good_words, reader(), **OPTIONS)
    scores = {"planted": np.arange(12)[::-1].astype(float)}
    given: dict[str, Any] = {
        "training": RECIPE,
        "utility": metric,
        "fractions": (0.5,),
        "seeds": 2,
        "processing_class": reader(),
        "output_dir": tmp_path,
    }
    found = removal_curves(scores, speaker(), pool, prompts(4, 2), **given)
    points = {(point.kind, point.scores): point.utility.value for point in found.points}
    assert points["add-highest", "planted"] > found.none + 0.5
    assert points["add-highest", "planted"] > points["add-highest", "random"]
    assert points["remove-highest", "planted"] < points["remove-highest", "random"]
    assert found.metric == "reward good_words"
    lines = len((tmp_path / "outcomes-0.jsonl").read_text().splitlines())
    again = removal_curves(scores, speaker(), pool, prompts(4, 2), **given)
    assert again == found
    assert len((tmp_path / "outcomes-0.jsonl").read_text().splitlines()) == lines, "kept, and not trained again"


def test_subsets_are_measured_on_each_prompt() -> None:
    metric = RewardUtility(good_words, reader(), **OPTIONS)
    found = measure_subsets(
        speaker(), praise(), prompts(4, 2), subsets=3, training=RECIPE, utility=metric, processing_class=reader()
    )
    assert found.outcomes.shape == (3, 4)
    good = found.subsets[:, :6].sum(1) - found.subsets[:, 6:].sum(1)
    assert found.outcomes.mean(1)[good.argmax()] > found.outcomes.mean(1)[good.argmin()] or np.ptp(good) == 0


@pytest.mark.parametrize(
    ("function", "data", "options", "says"),
    [
        (good_words, Dataset.from_dict({"text": ["a"]}), {}, "the test needs a column 'prompt' .* it has: text"),
        (good_words, Dataset.from_dict({"prompt": ["it was", ""]}), {}, "row 1 has no prompt"),
        (good_words, Dataset.from_dict({"prompt": ["it was"]}), {"max_new_tokens": 99}, "more than the 64 positions"),
        (
            lambda completions, label: [],
            prompts(2),
            {},
            "missing a required argument: 'label'|got an unexpected keyword",
        ),
    ],
)
def test_what_cannot_work_is_told_before_a_training(function: Any, data: Any, options: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        RewardUtility(function, reader(), **{**OPTIONS, **options}).read(data, speaker(), "test")
    with pytest.raises(OptionError, match="temperature=0 always gives the same completion"):
        RewardUtility(function, reader(), temperature=0.0)


# -- from the shell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model, its data, a reward in a module, and scores of the rows by it."""
    where = tmp_path_factory.mktemp("reward")
    speaker().save_pretrained(where / "model")
    reader().save_pretrained(where / "model")
    praise().to_json(where / "pool.jsonl")
    for name, seed in (("queries", 3), ("test", 2)):
        prompts(4, seed).remove_columns("completion").to_json(where / f"{name}.jsonl")
    (where / "praise_rewards.py").write_text("from hfdataopt.testing.tiny import good_words  # noqa: F401\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        words = "score --scorer loss --model model --pool pool.jsonl --output_dir scores --show 0"
        assert cli.main(words.split()) == 0
    return where


EVALUATE = (
    "evaluate --scores scores --pool pool.jsonl --model model --reward_funcs praise_rewards:good_words --samples 2 "
    "--max_new_tokens 4 --epochs 1 --learning_rate 0.02 --train_batch_size 4 --seeds 2"
)


def test_both_measures_from_the_shell(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    words = f"{EVALUATE} --curves --test test.jsonl --fractions 0.5 --lds --queries queries.jsonl --subsets 3 --output_dir out"
    assert cli.main(f"{words} --dry-run".split()) == 0
    said = capsys.readouterr().out
    assert "calls: 48 completions of at most 4 tokens, each rewarded once" in said  # 6 models, 4 prompts, 2 samples
    assert not (folder / "out").exists()
    assert cli.main(words.split()) == 0
    said = capsys.readouterr().out
    assert "reward good_words on the third split, 2 seeds" in said
    document = json.loads((folder / "out" / "evaluation.json").read_text())
    assert document["curves"]["metric"] == "reward good_words"
    assert (
        len(document["linear_datamodeling_score"]["loss"]["per_query"]) == 1
    )  # scores without queries: the mean reward
    outcomes = [json.loads(line) for line in (folder / "out" / "subsets" / "outcomes-0.jsonl").read_text().splitlines()]
    assert [len(one["values"]) for one in outcomes] == [4] * 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--curves --test test.jsonl --utility margin", "give --utility or --reward_funcs; got both"),
        ("--flipped row_id", "--reward_funcs measures models that are trained: give --lds or --curves"),
        ("--curves --test test.jsonl --reward_funcs praise_rewards:bad_words", "cannot be imported"),
        (
            "--curves --test test.jsonl --reward_funcs hfdataopt.rewards:exact_match",
            "it is a metric of one prediction; reward_from_metric(exact_match, reference_column=...) makes a reward of it",
        ),
        (
            "--curves --test test.jsonl --temperature 0",
            "--temperature 0 always gives the same completion; pass --samples 1",
        ),
        ("--curves --test test.jsonl --max_new_tokens 90", "more than the 64 positions"),
    ],
)
def test_mistakes_are_one_line(folder: Path, monkeypatch: Any, capsys: Any, words: str, says: str) -> None:
    monkeypatch.chdir(folder)
    assert cli.main([*replaced(EVALUATE.split(), words.split()), "--output_dir", "never"]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip() and "Loading weights" not in line]
    assert (out, len(lines)) == ("", 1), err
    assert says in lines[0]
    assert not (folder / "never").exists()
