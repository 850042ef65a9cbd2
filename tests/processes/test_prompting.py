"""Prompt searches: the first process searches, and each has the result."""

import json
from pathlib import Path

from hfdataopt import PromptConfig, PromptTrainer
from hfdataopt.testing import tiny

from . import jobs, pair


def test_a_search(tmp_path: Path) -> None:
    pair.run(jobs.search, tmp_path)
    found = [json.loads((tmp_path / f"found-{index}.json").read_text()) for index in (0, 1)]
    alone = PromptTrainer(
        "random",
        model=lambda prompts: [str(prompt)[::-1] for prompt in prompts],
        args=PromptConfig(max_calls=60, items=4, logging_steps=0, start=["be kind", "be brief", "hum"]),
        reward_funcs=jobs.reward,
        train_dataset=tiny.prompts(17),
    ).train()
    wanted = json.loads(json.dumps({**alone.to_json(), "seconds": 0}, default=str))
    assert found[0] == found[1] == wanted
    assert (tmp_path / "asked-0").stat().st_size >= wanted["spent"]["calls"] > 0
    assert not (tmp_path / "asked-1").exists()


def test_a_search_while_training(tmp_path: Path) -> None:
    pair.run(jobs.search_in_training, tmp_path)
    best = [(tmp_path / f"best-{index}").read_text() for index in (0, 1)]
    assert best[0] == best[1] in ("be kind", "hum", "")
