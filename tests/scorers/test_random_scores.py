"""Random scores depend on (seed, row id) only."""

from typing import Any

import numpy as np

from hfdataopt import attribute, get_scorer

from ..tiny import bert, encoded


def test_depends_on_seed_and_row_id_only(model: Any) -> None:
    pool = encoded(12, ids=True)
    scores = attribute(model, pool, None, "random", seed=3)
    order = [5, 2, 11, 0]
    again = attribute(bert(seed=4), encoded(12, seed=9, ids=True).select(order), None, "random", seed=3, batch_size=2)
    np.testing.assert_array_equal(again.values, scores.values[order])
    assert (attribute(model, pool, None, "random", seed=4).values != scores.values).all()
    assert ((scores.values >= 0) & (scores.values < 1)).all()
    assert len(set(scores.values)) == 12


def test_declares_chance() -> None:
    scorer: Any = get_scorer("random")
    assert (scorer.meaning, scorer.default_when, scorer.needs_queries) == ("chance", "train_begin", False)
