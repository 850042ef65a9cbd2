import math
import re

import numpy as np
import pytest

from hfdataopt.prompting.candidate import Candidate, Trial
from hfdataopt_plugins.optimizers.protegi import ProTeGi
from tests.optimizers import search
from tests.optimizers.qualities import ITEMS, quality, reward, services, trying


def test_proposals_hold_mistakes_of_the_instruction_and_no_right_answers():
    helpers, optimizer = services(), ProTeGi(gradients=2, errors=3)
    of = search.task(ITEMS, calls=150)
    search.run(optimizer, of, reward, helpers, 500)
    criticisms = [text for text in helpers.asked if "Give one reason" in text]
    rewrites = [text for text in helpers.asked if "Write a better instruction" in text]
    assert len(criticisms) > 4
    assert len(rewrites) == len(criticisms)
    for text in criticisms + rewrites:
        told = re.search(r"^Instruction: (.+)$", text, re.M).group(1)
        shown = re.findall(r"^Input: (\d+)\nOutput: (\w+)\nExpected: (\d+)$", text, re.M)
        assert 0 < len(shown) <= 3
        for number, answer, expected in shown:
            assert reward(Candidate(told), of.item(int(number))) == 0
            assert answer == "wrong"
            assert int(expected) == int(number) + 1
    assert all(re.search(r"Reason: reason \d+", rewrite) for rewrite in rewrites)


def test_each_rewrite_is_of_its_own_reason_and_mistakes():
    helpers, optimizer = services(), ProTeGi(beam=1, gradients=3, rewrites=2, pool_size=2)
    search.run(optimizer, search.task(ITEMS, calls=60), reward, helpers, 500)
    first = next(i for i, text in enumerate(helpers.asked) if "Give one reason" in text)
    criticisms, rewrites = helpers.asked[first : first + 3], helpers.asked[first + 3 : first + 9]

    def inputs(text):
        return re.findall(r"^Input: (\d+)$", text, re.M)

    for i, text in enumerate(criticisms):
        for rewrite in rewrites[2 * i : 2 * i + 2]:
            assert inputs(rewrite) == inputs(text)
            assert f"Reason: reason {first + i}" in rewrite


def test_what_is_rewritten_names_its_parent_and_is_better():
    optimizer = ProTeGi()
    trying(optimizer, 200)
    made = [trial.candidate for trial in optimizer.trials if trial.candidate.origin == "rewrite"]
    keys = {trial.candidate.key for trial in optimizer.trials}
    assert made
    assert all(set(one.parents) <= keys for one in made)
    induced = [quality(t.candidate.instruction) for t in optimizer.trials if t.candidate.origin == "induce"]
    assert quality(optimizer.best.instruction) > max(induced) + 0.1


def test_an_instruction_without_mistakes_is_rephrased():
    helpers, optimizer = services(), ProTeGi(pool_size=2)
    search.run(optimizer, search.task(6, calls=40), lambda candidate, item: 1.0, helpers, 100)
    assert not any("Give one reason" in text for text in helpers.asked)
    assert any("in other words" in text for text in helpers.asked)


def test_the_bound_is_the_formula():
    optimizer = ProTeGi(confidence=0.7)
    trial = Trial(Candidate("a"), (0, 1, 2, 3), np.array([1.0, 0, 1, 1]), ("",) * 4)
    assert optimizer.bound(trial, 20) == pytest.approx(0.75 + 0.7 * math.sqrt(math.log(20) / 4))
    assert optimizer.bound(Trial(Candidate("b"), (), np.zeros(0), ()), 20) == math.inf


def test_ucb_pulls_the_largest_bound_and_all_once_first():
    rng = np.random.default_rng(1)
    items = 30
    table = (rng.random((5, items)) < np.array([0.2, 0.4, 0.5, 0.7, 0.9])[:, None]).astype(float)
    arms = [Candidate(f"c{i}") for i in range(5)]
    optimizer = ProTeGi(selection="ucb", block=3)
    of = search.task(items)
    optimizer.start(of)
    seen = np.zeros(5, int)
    for queries in optimizer.ucb(arms):
        assert len(queries) == 1
        arm = arms.index(queries[0].candidate)
        means = np.array([table[i, : seen[i]].mean() if seen[i] else np.inf for i in range(5)])
        with np.errstate(divide="ignore"):
            bounds = means + np.where(seen, np.sqrt(np.log(max(seen.sum(), 1)) / np.maximum(seen, 1)), np.inf)
        bounds[seen == items] = -np.inf
        assert bounds[arm] == bounds.max()
        seen[arm] = min(items, seen[arm] + 3)
        assert queries[0].items == seen[arm]
        optimizer.tell([search.trial(queries[0], of, lambda c, item: table[int(c.instruction[1:]), item.id])])
    assert seen.sum() >= 5 * items / 2
    assert seen[4] == items
    assert seen[0] < items / 2
