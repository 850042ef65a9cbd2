"""What processes do together: long work, folders that are not shared, a process that is killed, observers."""

import time
from pathlib import Path

import numpy as np
import pytest

from hfdataopt import Scores
from hfdataopt.testing import tiny

from . import jobs, pair

SECONDS_TO_NOTICE = 60  # of a loaded machine; on an idle one it is well under a second


def test_one_may_work_for_longer_than_the_training_would_wait(tmp_path: Path) -> None:
    pair.run(jobs.patience, tmp_path, 10.0, 14.0)


def test_a_folder_that_the_other_does_not_see_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    pair.run(jobs.unshared, tmp_path)


def test_observers_are_told_once(tmp_path: Path) -> None:
    pair.run(jobs.observed, tmp_path)
    assert [file.name for file in tmp_path.glob("told-*")] == ["told-0"]


def test_the_command_line_prints_once(tmp_path: Path) -> None:
    tiny.bert().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.texts(jobs.POOL).to_json(tmp_path / "pool.jsonl")
    pair.run(jobs.command, tmp_path)
    printed = [(tmp_path / f"rank-{index}.txt").read_text() for index in (0, 1)]
    assert "lowest 2:" in printed[0]
    assert "lowest" not in printed[1]
    assert len(Scores.load(tmp_path / "kept")) == jobs.POOL


def kill(folder: Path, way: str, rank: int, writes: int) -> None:
    """Process ``rank`` dies before its ``writes``-th shard; the other ends with an error, and a restart has the scores."""
    processes = pair.start(jobs.score_and_die, folder, way, rank, writes)
    processes[rank].join(240)
    assert processes[rank].exitcode == -9, pair.printed(folder)
    died = time.monotonic()
    assert pair.wait([processes[1 - rank]], SECONDS_TO_NOTICE) == [1], pair.printed(folder)
    print(f"noticed after {time.monotonic() - died:.1f} s")
    assert "ended by: another process of this run ended" in (folder / f"rank-{1 - rank}.txt").read_text()
    there = {file: file.stat().st_mtime_ns for file in (folder / "kept").glob("step-*/*/shard-*")}
    assert there
    pair.run(jobs.score, folder, [way], str(folder / "kept"))
    assert {file: file.stat().st_mtime_ns for file in there} == there  # none was made again
    expected = jobs.by_attribute(way, None)
    for index in (0, 1):
        with np.load(folder / f"{way}.{index}.npz") as kept:
            np.testing.assert_allclose(
                kept["values"], expected.values, rtol=1e-5, atol=1e-5 * abs(expected.values).max()
            )


def test_a_process_is_killed(tmp_path: Path) -> None:
    kill(tmp_path, "tracin", rank=1, writes=2)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("way", ["freeshap", "influence-cg", "nice", "self-influence", "tracin-exact"])
def test_either_process_is_killed(tmp_path: Path, way: str, rank: int) -> None:
    kill(tmp_path, way, rank, writes=1 if rank else 2)
