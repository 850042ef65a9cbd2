import numpy as np
import pytest
from scipy import stats

from hfdataopt.prompting.candidate import Candidate
from hfdataopt_plugins.optimizers.racing import Racing
from tests.optimizers import search
from tests.optimizers.qualities import quality, services, trying

ITEMS = 40
RUNNERS = [Candidate(f"c{i}") for i in range(8)]


class Race(Racing):
    """One race of eight, whose rewards are the rows of a table."""

    def pool(self, size):
        return RUNNERS

    def vary(self, parents, count):
        return []


def of_table(table):
    return lambda candidate, item: table[int(candidate.instruction[1:]), item.id]


@pytest.mark.parametrize("test", ["t", "sign"])
def test_who_is_in_the_race_after_each_block_is_what_the_test_says(test):
    """Noisy rewards; the standings of every block are worked out again from the whole table with scipy."""
    rng = np.random.default_rng(3)
    table = (rng.random((8, ITEMS)) < np.linspace(0.3, 0.9, 8)[:, None]).astype(float)
    optimizer, of = Race(block=5, alpha=0.1, test=test), search.task(ITEMS)
    optimizer.start(of)
    alive, width = list(range(8)), 5
    while queries := optimizer.ask(8, (), services()):
        width = queries[0].items
        assert [int(query.candidate.instruction[1:]) for query in queries] == alive
        optimizer.tell([search.trial(query, of, of_table(table)) for query in queries])
        order = sorted(alive, key=lambda i: -table[i, :width].mean())
        best = order[0]
        alive = [best]
        for i in order[1:]:
            difference = table[i, :width] - table[best, :width]
            ups, downs = int((difference > 0).sum()), int((difference < 0).sum())
            if test == "t" and difference.std():
                p = stats.ttest_1samp(difference, 0, alternative="less").pvalue
            else:
                p = stats.binomtest(ups, ups + downs, alternative="less").pvalue if ups + downs else 1.0
            if p >= 0.1 and table[i, :width].sum() + (ITEMS - width) > table[best, :width].sum():
                alive.append(i)
    assert width == ITEMS
    assert 7 in alive
    assert len(alive) < 8


def test_the_winner_is_the_best_and_costs_less_than_scoring_all():
    rng = np.random.default_rng(0)
    right = spent = 0
    for _ in range(30):
        table = (rng.random((8, ITEMS)) < np.linspace(0.1, 0.9, 8)[:, None]).astype(float)
        optimizer = Race(block=4, alpha=0.05)
        search.run(optimizer, search.task(ITEMS), of_table(table), services(), 500)
        best = optimizer.best
        right += best is not None and table[int(best.instruction[1:])].sum() == table.sum(axis=1).max()
        spent += optimizer.paid
    assert right >= 28
    assert spent < 0.6 * 30 * table.size


def test_survivors_are_rephrased():
    optimizer = Racing(pool_size=4, survivors=1)
    trying(optimizer, 300)
    made = [trial.candidate for trial in optimizer.trials if trial.candidate.origin == "rephrase"]
    assert made
    assert all(one.parents for one in made)
    induced = [trial.candidate for trial in optimizer.trials if trial.candidate.origin == "induce"]
    assert quality(optimizer.best.instruction) > max(quality(one.instruction) for one in induced)


def test_a_block_as_wide_as_the_items():
    optimizer = Racing(block=50, pool_size=3)
    search.run(optimizer, search.task(6, calls=40), lambda c, i: quality(c.instruction), services(), 100)
    assert {len(trial.items) for trial in optimizer.trials} == {6}
