"""TRL's trainers in two processes."""

from pathlib import Path

import numpy as np
import pytest

from hfdataopt import AttributionCallback
from hfdataopt.errors import DataError

from . import jobs, pair


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_two_processes_score_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The rows that ``SFTTrainer`` prepared from texts, and the pairs of ``RewardTrainer``."""
    monkeypatch.setattr(jobs.reader, "ROWS_PER_SHARD", 4)
    both, alone = tmp_path / "both", tmp_path / "alone"
    both.mkdir()
    alone.mkdir()
    pair.run(jobs.finetune, both, kind, seconds=600)
    jobs.finetune(alone, kind)
    for name in ("tracin", "loss", "rds"):
        with np.load(alone / f"{name}.0.npz") as kept:
            expected = dict(kept)
        for index in (0, 1):
            with np.load(both / f"{name}.{index}.npz") as found:
                for part, value in expected.items():
                    assert len(value) == jobs.POOL
                    np.testing.assert_allclose(found[part], value, rtol=0, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("scorer", ["loss", "rds", "tracin"])
def test_pairs_of_dpo_are_refused_when_training_begins(tmp_path: Path, scorer: str) -> None:
    """Its collator makes two rows of each; such a score would be that of another row."""
    callback = AttributionCallback(scorer, queries=jobs.sft_queries())
    with pytest.raises(DataError, match=r"the pool: the collator DataCollatorForPreference makes \d+ rows of \d+"):
        jobs.trl_trainer(tmp_path, "dpo", [callback]).train()
