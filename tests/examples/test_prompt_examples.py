"""The examples that search prompts: rewards, votes, pictures, and a training in between."""

import re
from typing import Any

import pytest

from hfdataopt.demo import follower_tasks


def test_optimize_prompt(example: Any, capsys: Any) -> None:
    example("optimize_prompt").main(["--smoke"])
    out = capsys.readouterr().out
    found = re.search(r"^  1\. ([\d.]+) on \d items; .*'(.+)'$", out, re.MULTILINE)
    assert found
    assert 0 <= float(found[1]) <= 1
    first = follower_tasks.rows("french", "train")[0]["prompt"]
    assert out.endswith(f"First row of the dataset with the prompt:\n{found[2]}\n\n{first}\n")


def test_human_preference(example: Any, capsys: Any, tmp_path: Any) -> None:
    example("human_preference").main(["--smoke", "--output_dir", str(tmp_path / "search")])
    out = capsys.readouterr().out
    assert "12 votes" in out
    rows = re.search(r"^(\d+) rows of prompt, chosen, rejected", out, re.MULTILINE)
    assert rows
    assert 0 < int(rows[1]) <= 12
    right = re.search(r"that was found (\d+) of (\d+) answers", out)
    assert right
    assert 0 <= int(right[1]) <= int(right[2]) == len(follower_tasks.rows("german", "test"))
    assert (tmp_path / "search" / "prompt.json").exists()


def test_text_to_image_preference(example: Any, capsys: Any, tmp_path: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    example("text_to_image_preference").main(["--smoke", "--output_dir", str(tmp_path)])
    out = capsys.readouterr().out
    found = re.search(r"closeness ([\d.]+); of the pool's texts the mean is ([\d.]+), the best ([\d.]+)", out)
    assert found
    assert float(found[1]) <= float(found[3]) <= 1
    with image.open(tmp_path / "best.png") as picture:
        assert picture.size[0] > 0


def test_prompt_then_weights(example: Any, capsys: Any) -> None:
    example("prompt_then_weights").main(["--smoke"])
    out = capsys.readouterr().out
    assert len(re.findall(r"^60 calls|^5\d calls", out, re.MULTILINE)) == 2
    table = re.findall(r"^  (no|first|second) prompt +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
    assert [name for name, _, _ in table] == ["no", "first", "second"]
    assert all(0 <= float(value) <= 1 for row in table for value in row[1:])
