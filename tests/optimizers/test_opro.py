import re

import numpy as np

from hfdataopt.prompting import meta_prompts
from hfdataopt.prompting.candidate import Candidate
from hfdataopt_plugins.optimizers.opro import Opro
from tests.optimizers import search
from tests.optimizers.qualities import ITEMS, quality, reward, services, trying


def improvements(helpers):
    return [text for text in helpers.asked if "scores from 0 to 100" in text]


def test_the_proposer_reads_the_best_in_ascending_order_with_examples_drawn_anew():
    helpers, optimizer = services(), Opro(pool_size=8, history=4, items=6)
    of = search.task(ITEMS, 20, calls=200)
    search.run(optimizer, of, reward, helpers, 500)
    asked = improvements(helpers)
    assert len(asked) > 5
    for text in asked:
        scores = [int(score) for score in re.findall(r"^Score: (\d+)$", text, re.M)]
        assert 0 < len(scores) <= 4
        assert scores == sorted(scores)
    last = re.findall(r"^Instruction: (.+)\nScore: (\d+)$", asked[-1], re.M)
    for text, score in last:
        told = [t for t in optimizer.trials if t.candidate.instruction == text and len(t.items) == 6]
        assert round(100 * told[0].score) == int(score)
    seen = [t for t in optimizer.trials if len(t.items) == 6]
    before = sorted(t.score for t in seen[:-2])[-4:]  # the last question's own answers are not in its history
    assert [int(score) for _, score in last][-1] == round(100 * before[-1])
    shown = {tuple(re.findall(r"^Input: (.+)$", text, re.M)) for text in asked}
    assert len(shown) > len(asked) // 2
    assert all(len(one) == 3 for one in shown)


def test_the_history_is_the_meta_prompts_own():
    optimizer = Opro(items=4, shown=0)
    optimizer.start(search.task(ITEMS, calls=100))
    tried = [Candidate(f"text 0.{i} #{i}") for i in (5, 2, 8)]
    optimizer.tell([search.trial(search.Query(one, 4), optimizer.task, reward) for one in tried])
    scores = {one: np.mean([reward(one, item) for item in optimizer.task.items[:4]]) for one in tried}
    expected = meta_prompts.improve([(one.instruction, scores[one]) for one in sorted(tried, key=scores.get)])
    assert optimizer.better(tried, 0, 0).messages == expected


def shown(*scores):
    (message,) = meta_prompts.improve([(f"text {i}", score) for i, score in enumerate(scores)])
    return [int(score) for score in re.findall(r"^Score: (-?\d+)$", message["content"], re.M)]


def test_scores_of_any_range_are_shown_from_0_to_100():
    assert shown(0.2, 0.555, 1.0) == [20, 56, 100]  # as they are
    assert shown(-3.0, -2.0, 1.0) == [0, 25, 100]
    assert shown(0.0, 0.5, 2.0) == [0, 25, 100]
    assert shown(-2.0) == [100]
    assert shown(7.0, 7.0) == [100, 100]


def test_with_shuffled_scores_the_search_gets_worse():
    """The proposer builds on whatever is said to score highest."""

    def found(shuffle):
        best = []
        for seed in range(20):
            optimizer = Opro(shuffle_scores=shuffle)
            trying(optimizer, 200, seed)
            best.append(quality(optimizer.best.instruction))
        return np.array(best)

    difference = found(False) - found(True)
    assert difference.mean() > 2 * difference.std(ddof=1) / np.sqrt(len(difference))


def test_the_best_are_tried_on_all_items_at_the_end():
    optimizer = Opro(items=5)
    trying(optimizer, 120)
    widths = [len(trial.items) for trial in optimizer.trials]
    assert widths[-3:] == [ITEMS] * 3
    assert set(widths[:-3]) == {5}
