from hfdataopt_plugins.optimizers.random_search import RandomSearch
from tests.optimizers.qualities import ITEMS, quality, trying


def test_each_is_scored_on_all_items_and_the_best_mean_wins():
    optimizer = RandomSearch()
    trying(optimizer, 5 * ITEMS + 7, start=("text 0.1 mine",))
    assert [len(trial.items) for trial in optimizer.trials] == [ITEMS] * 5
    assert optimizer.trials[0].candidate.instruction == "text 0.1 mine"
    assert [trial.candidate.origin for trial in optimizer.trials] == ["start", *["induce"] * 4]
    scores = [trial.score for trial in optimizer.trials]
    assert optimizer.best == optimizer.trials[scores.index(max(scores))].candidate
    assert quality(optimizer.best.instruction) > 0.1


def test_a_pool_size_is_kept():
    optimizer = RandomSearch(pool_size=3)
    trying(optimizer, None)
    assert len(optimizer.trials) == 3
