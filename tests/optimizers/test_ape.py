import itertools

import numpy as np
import pytest

from hfdataopt.errors import OptionError
from hfdataopt_plugins.optimizers.ape import Ape
from hfdataopt_plugins.optimizers.random_search import RandomSearch
from tests.optimizers.qualities import ITEMS, quality, trying


def test_halving_keeps_the_best_half_of_each_rung_on_nested_items():
    optimizer = Ape(rounds=0, pool_size=8, first_items=3)
    trying(optimizer, None)
    by_width = {}
    for trial in optimizer.trials:
        assert trial.items == tuple(range(len(trial.items)))
        by_width.setdefault(len(trial.items), []).append(trial)
    widths = sorted(by_width)
    assert widths == [3, 6, 12]
    assert len(by_width[3]) == 8
    for narrow, wide in itertools.pairwise(widths):
        scores = {trial.candidate.key: trial.score for trial in by_width[narrow]}
        kept = {trial.candidate.key for trial in by_width[wide]}
        assert len(kept) <= -(-len(scores) // 2)
        assert min(scores[key] for key in kept) >= max([scores[key] for key in scores if key not in kept], default=0)


def test_plain_ape_scores_all_of_the_pool_on_all_items():
    optimizer = Ape(scoring="all", rounds=0)
    trying(optimizer, 60)
    assert [len(trial.items) for trial in optimizer.trials] == [ITEMS] * 5


def test_resampling_rephrases_the_best():
    optimizer = Ape(rounds=2, parents=2)
    trying(optimizer, 300)
    again = [trial.candidate for trial in optimizer.trials if trial.candidate.origin == "rephrase"]
    assert again
    first = {t.candidate.key: t for t in optimizer.trials if t.candidate.origin == "induce" and len(t.items) == ITEMS}
    two = sorted(first.values(), key=lambda trial: -trial.score)[:2]
    parents = {key for one in again for key in one.parents}
    assert parents & {trial.candidate.key for trial in two}
    assert parents <= {one.key for one in again} | set(first)


def test_halving_finds_better_instructions_than_scoring_all():
    def found(make):
        best = []
        for seed in range(20):
            optimizer = make()
            trying(optimizer, 60, seed)
            best.append(quality(optimizer.best.instruction))
        return np.mean(best)

    assert found(lambda: Ape(rounds=0)) > found(RandomSearch) + 0.02


def test_options_are_checked():
    with pytest.raises(OptionError, match="eta"):
        Ape(eta=1.0)
    assert Ape(demonstrations=0).needs == ("proposer",)
