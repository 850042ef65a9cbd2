"""The example from completions to DPO, offline and on a model and data set given by flags."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ARMS = ("no training", "shuffled", "easy first", "hard first")


def table(out: str) -> dict[str, float]:
    """Mean reward by arm, as printed."""
    lines = out.partition("Mean reward on")[2]
    return {arm: float(value) for arm, value in re.findall(r"^  (\S.*?)  +(-?[\d.]+)", lines, re.MULTILINE)}


def easiness(out: str) -> list[float]:
    lines = out.partition("the easiest and the hardest:\n")[2].partition("\n\n")[0].splitlines()
    return [float(line.split()[0]) for line in lines]


def test_smoke(example: Any, capsys: Any) -> None:
    example("preference_pairs").main(["--smoke"])
    out = capsys.readouterr().out
    assert re.search(r"^\d+ pairs by log-ratio", out, re.MULTILINE)
    found = easiness(out)
    assert len(found) == 4
    assert found == sorted(found, reverse=True)
    means = table(out)
    assert tuple(means) == ARMS
    assert all(-1 <= mean <= 1 for mean in means.values())


def test_own_model_and_completions(example: Any, capsys: Any, tmp_path: Path) -> None:
    """Every reward is known: a full stop counts 1, a word -0.01."""
    tiny_lm = example("tiny_lm")
    model = tiny_lm.make(tmp_path / "model", steps=0.05)
    answers = ["I recommend it.", "I recommend it", "a clear no from me .", "no"]  # 0.97, -0.03, 0.94, -0.01
    rows = [{"prompt": row["prompt"], "answers": answers} for row in tiny_lm.dataset(0, 32, agree=1.0, disagree=0.0)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = ["--model", model, "--dataset", str(tmp_path / "rows.jsonl"), "--completions", "answers"]
    own += ["--learning_rate", "1e-3", "--order", "reward-margin"]
    example("preference_pairs").main(["--smoke", "--pairs_by", "all-pairs", *own])
    out = capsys.readouterr().out
    assert "144 pairs by reward-margin" in out  # 24 prompts, 6 pairs of 4 different rewards
    found = easiness(out)
    assert found[0] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(0.02)
    assert tuple(table(out)) == ARMS
