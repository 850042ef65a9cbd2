"""The label-error example, offline and on a model and data set given by flags."""

import json
import re
from pathlib import Path
from typing import Any

from hfdataopt.demo import sentences


def accuracies(out: str) -> dict[str, float]:
    found = re.findall(r"^  (nothing dropped|dropped [a-z ]+?)  +([\d.]+)", out, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_smoke(example: Any, capsys: Any) -> None:
    example("find_label_errors").main(["--smoke", "--show", "4"])
    out = capsys.readouterr().out
    assert "The 4 most suspicious of 120 rows" in out
    listed = out.partition("row  label")[2].partition("\n\n")[0].strip().splitlines()
    assert len(listed) == 4
    assert sum(" WRONG " in line for line in listed) >= 3
    dropped = re.search(
        r"Wrong labels among the 12 rows dropped \(12 of all 120 are wrong\):\n  all three +(\d+)\n", out
    )
    assert dropped
    assert int(dropped[1]) >= 9
    found = accuracies(out)
    assert set(found) == {"nothing dropped", "dropped by all three", "dropped by freeshap", "dropped at random"}
    assert all(0.5 < value <= 1 for value in found.values())


def test_own_model_and_dataset(example: Any, capsys: Any, tmp_path: Path) -> None:
    rows = sentences.generate(150, seed=3)
    lines = [json.dumps({"review": row["text"], "stars": ("bad", "good")[row["label"]]}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    module = example("find_label_errors")
    encoder = str(Path(sentences.__file__).parent / "encoder")
    own = ["--dataset", str(tmp_path / "rows.jsonl"), "--text", "review", "--label", "stars", "--model", encoder]
    module.main(["--smoke", *own, "--learning_rate", "1e-3", "--show", "2"])
    out = capsys.readouterr().out
    assert "The 2 most suspicious of 60 rows" in out
    assert "WRONG" not in out
    assert re.search(r"^ +\d+ +\d+ +\d+ +\d+  (bad|good)  \w", out, re.MULTILINE)
    assert len(accuracies(out)) == 4
