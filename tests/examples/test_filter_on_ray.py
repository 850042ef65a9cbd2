"""The example on Ray Data, on a real Ray of two processes: the slow target."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset

from hfdataopt import get_filter, quantile

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the example in a process of its own, which ends whatever Ray does; what it prints."""
    pytest.importorskip("ray.data", reason="needs Ray Data: pip install 'hfdataopt[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    def call(*arguments: str) -> str:
        command = [sys.executable, str(EXAMPLES / "filter_on_ray.py"), *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout

    return call


@pytest.mark.slow
def test_the_same_rows_as_without_ray(run: Any) -> None:
    out = run("--rows", "4000", "--fit_rows", "1000")
    found = re.search(r"([\d,]+) of 4,000 rows kept on Ray", out)
    assert found
    assert 100 < int(found[1]) < 300
    share = re.search(r"([\d.]+)% of those kept", out)
    assert share
    assert float(share[1]) > 80
    assert "kept by one of the two only: 0 rows; kept by both, with different scores: 0\n" in out


@pytest.mark.slow
def test_own_data_without_row_ids_and_with_batches_that_lose_all_rows(run: Any, example: Any, tmp_path: Path) -> None:
    tiny_tasks = example("tiny_tasks")

    def text(topic: str, count: int, seed: int) -> list[dict[str, str]]:
        return [{"body": row["prompt"] + row["completion"]} for row in tiny_tasks.rows(count, seed=seed, topic=topic)]

    parts = [text("music", 30, 1) + text("travel", 570, 2), text("travel", 600, 3)]
    (tmp_path / "rows").mkdir()
    for number, rows in enumerate(parts):
        Dataset.from_list(rows).to_parquet(tmp_path / "rows" / f"{number}.parquet")
    (tmp_path / "target.jsonl").write_text("\n".join(map(json.dumps, text("music", 10, 4))))
    own = ["--input", str(tmp_path / "rows"), "--target_file", str(tmp_path / "target.jsonl"), "--text", "body"]
    run(*own, "--output", str(tmp_path / "kept"), "--fraction", "0.025", "--fit_rows", "1200", "--filter", "bm25")
    files = sorted((tmp_path / "kept").glob("*.json*"))
    kept = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    whole = Dataset.from_list([row for rows in parts for row in rows])
    target = load_dataset("json", data_files=str(tmp_path / "target.jsonl"), split="train")
    best = get_filter("bm25", keep=quantile(0.975), text="body").fit(whole, target=target)
    expected = whole.filter(best.keep, batched=True, input_columns=best.columns).map(best, batched=True)
    expected = sorted(zip(expected["body"], expected["score_bm25"], strict=True))
    kept = sorted((row["body"], row["score_bm25"]) for row in kept)
    assert [text for text, _ in kept] == [text for text, _ in expected]
    assert [score for _, score in kept] == pytest.approx(
        [score for _, score in expected], abs=1e-9
    )  # Ray writes 10 digits
    assert 25 <= len(kept) <= 35


def test_without_ray_the_message_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('not here')")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(EXAMPLES)!r}]; import filter_on_ray"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    assert "MissingDependencyError: filter_on_ray: needs Ray Data; run: pip install 'hfdataopt[ray]'" in ended.stderr
