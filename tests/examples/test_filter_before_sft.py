"""The example that filters a mixture before fine-tuning, offline and on a model and data set given by flags."""

import json
import re
from pathlib import Path
from typing import Any

import pytest


def losses(out: str) -> dict[str, float]:
    lines = out.partition("held-out target rows")[2]
    return {name: float(value) for name, value in re.findall(r"^  (\S.*?) +([\d.]+)(?= |$)", lines, re.MULTILINE)}


@pytest.mark.parametrize(("name", "more"), [("dsir", []), ("tsds", ["--encoder", "self"])])
def test_smoke(example: Any, capsys: Any, name: str, more: list[str]) -> None:
    example("filter_before_sft").main(["--smoke", "--filter", name, *more])
    out = capsys.readouterr().out
    assert f"{name}: kept 10 of 200 rows by top(fraction=0.05)" in out
    for edge in ("highest", "last kept", "first dropped", "lowest"):
        assert f"  {edge}\n" in out
    counts = dict(re.findall(r"^  (5% \S+ \S+|everything) +(\d+) of \d+$", out, re.MULTILINE))
    assert set(counts) == {f"5% by {name}", "5% at random", "everything"}
    if name == "dsir":  # the encoder is hardly trained
        assert int(counts[f"5% by {name}"]) >= 8  # of 10; at random 1
    found = losses(out)
    assert set(found) == {*counts, "no fine-tuning"}
    assert all(0 < value < 20 for value in found.values())


def test_own_model_and_dataset(example: Any, capsys: Any, tmp_path: Path) -> None:
    tiny_tasks = example("tiny_tasks")
    model = tiny_tasks.make(tmp_path / "model", steps=2)
    lines = [
        json.dumps({"question": row["prompt"], "answer": row["completion"], "about": row["topic"]})
        for row in tiny_tasks.rows(240, seed=5)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    own = ["--model", model, "--dataset", str(tmp_path / "rows.jsonl"), "--columns", "question", "answer"]
    module = example("filter_before_sft")
    module.main(["--smoke", "--filter", "bm25", *own, "--topic", "about", "--target", "travel"])
    out = capsys.readouterr().out
    assert "Rows on travel" in out
    assert len(losses(out)) == 4

    (tmp_path / "target.jsonl").write_text("\n".join(lines[:30]))
    own += ["--columns", "question", "answer", "--topic", "none", "--target_file", str(tmp_path / "target.jsonl")]
    module.main(["--smoke", *own])
    out = capsys.readouterr().out
    assert "Rows on" not in out
    assert "Loss on 10 held-out target rows" in out


def test_flags_that_do_not_go_together(example: Any, capsys: Any) -> None:
    module = example("filter_before_sft")
    for wrong in (["--model", "x"], ["--target", "astronomy"], ["--model", "x", "--dataset", "y"]):
        with pytest.raises(SystemExit) as stop:
            module.main(wrong)
        assert stop.value.code == 2
        assert "error: " in capsys.readouterr().err


def test_generated_rows_are_what_they_say(example: Any) -> None:
    tiny_tasks = example("tiny_tasks")
    rows = list(tiny_tasks.rows(2000, seed=0, topic="cooking", share=0.1))
    assert rows == list(tiny_tasks.rows(2000, seed=0, topic="cooking", share=0.1))
    topics = [row["topic"] for row in rows]
    assert 150 < topics.count("cooking") < 250
    assert set(topics) == set(tiny_tasks.TOPICS)
    assert not any("{" in row["prompt"] + row["completion"] for row in rows)
    assert {row["topic"] for row in tiny_tasks.rows(50, seed=1, topic="cooking")} == {"cooking"}
