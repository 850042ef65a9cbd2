"""All filters that ship keep the promises of the kit."""

from typing import Any

import numpy as np
import pytest

from hfdataopt import Scores
from hfdataopt.attribution.rows import sample_hashes
from hfdataopt.plugins import host
from hfdataopt.testing import tiny
from hfdataopt.testing.filters import FLIPPED, ROWS
from hfdataopt.testing.kit import NotChecked, make_case, run_check
from tests.testing.test_own_scorers import parameters

EXPECTED = {
    "rejection-pairs": {
        "one-score-per-row": "its map function makes pairs, which are other rows than those it was given"
    }
}
NAMES = [name for name, one in host().components["filter"].items() if one.source.distribution == "hfdataopt"]
CASES: dict[str, Any] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> str:
    root = tmp_path_factory.mktemp("llama")
    tiny.llama().save_pretrained(root)
    tiny.reader().save_pretrained(root)
    return str(root)


def given_scores() -> Scores:
    rows = tiny.rows(ROWS, 1, FLIPPED)
    ids = rows["row_id"][:]
    facts = {"scorer": "given", "meaning": "helpfulness", "by_position": False, "sample": sample_hashes(rows, ids)}
    return Scores(np.arange(ROWS) / 3, ids, metadata=facts)


def options_of(name: str, folder: str) -> dict[str, Any]:
    return {
        "active-dpo": {"features": ("vector", "rejected_vector")},
        "combine": {"inputs": ["number", "chosen_number"]},
        "ifd": {"model": folder},
        "log-ratio": {"model": folder},
        "perplexity": {"model": folder},
        "prompt-difficulty": {"rewards": "rewards", "success": 0.5},
        "rds": {"embeddings": "vector"},
        "rejection-pairs": {"rewards": "completion_rewards"},
        "reward-margin": {"chosen_reward": "chosen_number", "rejected_reward": "rejected_number"},
        "scores": {"given": given_scores()},
        "tsds": {"embeddings": "vector"},
    }.get(name, {})


@pytest.mark.parametrize(("name", "check"), parameters("filter", NAMES, EXPECTED))
def test_contract(name: str, check: Any, folder: str) -> None:
    if name not in CASES:
        CASES.clear()
        CASES[name] = make_case(name, "filter", **options_of(name, folder))
    try:
        run_check(check, CASES[name])
    except NotChecked as reason:
        pytest.skip(str(reason))
