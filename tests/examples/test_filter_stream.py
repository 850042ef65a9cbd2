"""The example that filters a stream, offline and on a data set given by flags."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from hfdataopt import get_filter, quantile


def kept(out: str) -> tuple[int, int]:
    found = re.search(r"([\d,]+) of ([\d,]+) rows kept", out)
    assert found
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_smoke(example: Any, capsys: Any, tmp_path: Path, workers: str) -> None:
    module = example("filter_stream")
    output = tmp_path / "kept.jsonl"
    module.main(["--smoke", "--workers", workers, "--output", str(output), "--shards", "3"])
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert kept(out) == (len(rows), 2000)
    assert 0.02 < len(rows) / 2000 < 0.1
    share = re.search(r"on cooking: 5.0% of all rows, ([\d.]+)% of those kept", out)
    assert share
    assert float(share[1]) == pytest.approx(100 * sum(row["topic"] == "cooking" for row in rows) / len(rows), abs=0.06)
    assert float(share[1]) > 80
    assert ("largest worker" in out) == (workers != "0")

    # The rows that the same filter keeps of the same data in memory.
    tiny_tasks = example("tiny_tasks")
    whole = [
        row
        for shard, count in enumerate((667, 667, 666))
        for row in tiny_tasks.rows(count, seed=1000 + shard, topic="cooking", share=0.05)
    ]
    dataset = datasets.Dataset.from_list(whole)
    target = tiny_tasks.dataset(10, seed=1, topic="cooking")
    best = get_filter("dsir", keep=quantile(0.95), fit_rows=500).fit(dataset.to_iterable_dataset(), target=target)
    expected = dataset.filter(best.keep, batched=True, input_columns=best.columns).to_list()
    assert sorted(map(str, rows)) == sorted(map(str, expected))


def test_own_dataset(example: Any, capsys: Any, tmp_path: Path) -> None:
    tiny_tasks = example("tiny_tasks")
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"body": row["prompt"] + row["completion"]} for row in tiny_tasks.rows(300, seed=3, topic="music", share=0.2)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    target = [{"body": row["prompt"] + row["completion"]} for row in tiny_tasks.rows(10, seed=4, topic="music")]
    (tmp_path / "target.jsonl").write_text("\n".join(map(json.dumps, target)))
    own = ["--dataset", str(folder), "--text", "body", "--target_file", str(tmp_path / "target.jsonl")]
    output = tmp_path / "kept.jsonl"
    module = example("filter_stream")
    module.main([*own, "--filter", "bm25", "--fraction", "0.1", "--workers", "1", "--output", str(output)])
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert kept(capsys.readouterr().out) == (len(written), 300)
    assert 25 <= len(written) <= 35
    assert all(row in rows for row in written)


def test_flags_that_do_not_go_together(example: Any, capsys: Any) -> None:
    for wrong in (["--dataset", "x"], ["--target_file", "x"]):
        with pytest.raises(SystemExit):
            example("filter_stream").main(wrong)
        assert "--target_file" in capsys.readouterr().err
