"""The selection example, offline and on a model and data set given by flags."""

import json
import re
from pathlib import Path
from typing import Any

ARMS = ("no fine-tuning", "5 % by NICE", "5 % by LESS", "5 % at random", "everything")


def table(out: str) -> dict[str, float]:
    """Mean reward by arm, as printed."""
    lines = out.partition("third split")[2].partition("selected")[0]
    found = {arm: re.search(rf"^  {arm} +[\d-]+ +(-?[\d.]+)", lines, re.MULTILINE) for arm in ARMS}
    return {arm: float(match.group(1)) for arm, match in found.items() if match}


def test_smoke(example: Any, capsys: Any) -> None:
    example("sft_nice_selection").main(["--smoke"])
    out = capsys.readouterr().out
    found = table(out)
    assert set(found) == set(ARMS)
    assert all(-1 <= reward <= 1 for reward in found.values())
    for arm in ("NICE", "LESS"):
        shares = re.search(rf"5 % by {arm} +agrees +(\d+)% +disagrees +(\d+)% +small talk +(\d+)%", out)
        assert shares
        assert sum(map(int, shares.groups())) == 100


def test_own_model_and_dataset(example: Any, capsys: Any, tmp_path: Path) -> None:
    tiny_lm = example("tiny_lm")
    model = tiny_lm.make(tmp_path / "model", steps=0.05)
    rows = tiny_lm.dataset(0, 140, agree=1.0, disagree=0.0).select_columns(["prompt", "completion"])
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    example("sft_nice_selection").main(["--smoke", "--model", model, "--dataset", str(tmp_path / "rows.jsonl")])
    out = capsys.readouterr().out
    found = table(out)
    assert set(found) == set(ARMS)
    assert all(0 <= reward <= 1 for reward in found.values())  # token F1
    assert "What was selected" not in out


def test_the_offline_pool_is_what_its_kinds_say(example: Any) -> None:
    tiny_lm = example("tiny_lm")
    rows = tiny_lm.dataset(0, 2000, agree=0.1, disagree=0.4)
    expected = {"agrees": 1.0, "disagrees": -1.0, "small talk": 0.0}
    assert all(tiny_lm.agreement(row["completion"], row["label"]) == expected[row["kind"]] for row in rows)
    assert len(set(rows["prompt"])) == 2000
    assert sum(rows["label"]) == 1000
    assert abs(rows["kind"][:].count("agrees") - 200) < 50
