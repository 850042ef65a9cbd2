"""The reward-model example, offline and on models and a data set given by flags."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def test_smoke(example: Any, capsys: Any) -> None:
    example("reward_model_nice").main(["--smoke", "--show", "2"])
    out = capsys.readouterr().out
    accuracy = re.search(r"prefers the chosen completion in ([\d.]+)% of 200 held-out pairs", out)
    assert accuracy
    assert float(accuracy[1]) > 70
    for verb in ("help", "harm"):
        listed = out.partition(f"The rows that {verb} most:\n")[2].partition("\n\n")[0].splitlines()
        assert len(listed) == 2
    best, worst = (float(re.findall(rf"that {verb} most:\n  ([-+][\d.]+)  row", out)[0]) for verb in ("help", "harm"))
    assert best > worst
    variances = [float(x) for x in re.findall(r"^ +([\d.]+)  query +\d+  \w", out, re.MULTILINE)]
    assert len(variances) == 6
    assert variances == sorted(variances, reverse=True)
    assert "most helpful" in out
    assert "lowest 5 %" in out


def test_own_models_and_dataset(example: Any, capsys: Any, tmp_path: Path) -> None:
    tiny_lm = example("tiny_lm")
    model = tiny_lm.make(tmp_path / "model", steps=0.05)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(tiny_lm.ENCODER, num_labels=1).save_pretrained(
        tmp_path / "judge"
    )
    AutoTokenizer.from_pretrained(tiny_lm.ENCODER).save_pretrained(tmp_path / "judge")
    rows = tiny_lm.dataset(0, 60, agree=0.5, disagree=0.0).select_columns(["prompt", "completion"])
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = ["--model", model, "--dataset", str(tmp_path / "rows.jsonl"), "--reward_model", str(tmp_path / "judge")]
    example("reward_model_nice").main(["--smoke", "--show", "3", *own])
    out = capsys.readouterr().out
    assert "held-out pairs" not in out
    assert len(re.findall(r"^  [-+][\d.]+  row +\d+  \w", out, re.MULTILINE)) == 6
