"""GEPA and MIPROv2, as their packages run them, under our budget and ledger; the inversion of control with a loop of our own."""

import gc
import json
import random
import re
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest

from hfdataopt.errors import MissingDependencyError
from hfdataopt.generation import CallableGenerator
from hfdataopt.plugins import get_optimizer
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.ledger import FILE
from hfdataopt_plugins.optimizers._driven import DrivenOptimizer
from tests.optimizers import search
from tests.optimizers.qualities import ITEMS, PlainServices, quality, reward, services, trying
from tests.prompting.searches import Model, comparable, digit_of, trainer

REAL = ("gepa", "dspy")


@pytest.fixture(params=REAL)
def name(request):
    pytest.importorskip(
        request.param, reason=f"the package {request.param} is not installed: tests/bridges/run.py makes it so"
    )
    return request.param


# -- the inversion of control, with a hill climber as the other package's loop


@dataclass
class Climber(DrivenOptimizer):
    name: ClassVar[str] = "climber"
    steps: int = 5

    def drive(self, loop):
        items = [item.id for item in loop.task.items]
        best, score = loop.first, sum(loop.score(loop.first, items).rewards)
        for step in range(self.steps):
            if step == 3 and self.steps == 4:
                raise ValueError("the loop failed")
            asked = [{"role": "user", "content": f"Write a better instruction.\nInstruction: {best.instruction}"}]
            new = Candidate(loop.propose(asked))
            found = sum(loop.score(new, items).rewards)
            if found > score:
                best, score = new, found


def threads():
    gc.collect()  # a killed search is referred to by its traceback
    return [one for one in threading.enumerate() if one.name.endswith("-search")]


def test_a_loop_is_asked_and_told_and_its_thread_ends():
    optimizer = Climber()
    trying(optimizer, 200)
    assert len(optimizer.trials) == 6
    assert [len(trial.items) for trial in optimizer.trials] == [ITEMS] * 6
    best = max(optimizer.trials, key=lambda trial: trial.score)
    assert optimizer.best == best.candidate
    assert not threads()


def test_a_loop_ends_where_the_next_request_is_over_the_budget():
    optimizer = Climber(steps=50)
    tried = trying(optimizer, 4 * ITEMS + 3)
    assert len(tried) == 4 * ITEMS
    assert not threads()


def test_what_the_loop_raises_reaches_the_asker():
    with pytest.raises(ValueError, match="the loop failed"):
        trying(Climber(steps=4), 200)
    assert not threads()


def test_a_spent_proposer_budget_passes_and_ends_the_loop():
    class Poor(PlainServices):
        def propose_each(self, messages, temperature=None):
            if len(self.asked) > 2:
                raise BudgetSpent("no more")
            return super().propose_each(messages, temperature)

    optimizer = Climber()
    optimizer.start(search.task(ITEMS, calls=500))
    helpers = Poor(services()._propose)

    def go_on():
        while asked := optimizer.ask(1, (), helpers):
            optimizer.tell([search.trial(one, optimizer.task, reward) for one in asked])

    with pytest.raises(BudgetSpent):
        go_on()
    assert not threads()
    assert optimizer.best is not None


def test_a_search_that_is_dropped_halfway_leaves_no_thread():
    optimizer = Climber()
    optimizer.start(search.task(ITEMS, calls=500))
    optimizer.ask(1, (), services())
    assert threads()
    del optimizer
    gc.collect()
    assert not threads()


def test_starting_again_ends_the_search_before():
    optimizer = Climber()
    optimizer.start(search.task(ITEMS, calls=500))
    optimizer.ask(1, (), services())
    before = threads()
    trying(optimizer, 200)
    assert not before[0].is_alive()
    assert len(optimizer.trials) == 6


@pytest.mark.parametrize("package", REAL)
def test_without_the_package_the_message_says_what_to_install(package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"pip install 'hfdataopt\[{package}\]'"):
        get_optimizer(package).start(search.task(ITEMS))


# -- with the real packages


def proposer(seed):
    """Improves a little on the best text that a question of any package shows; a first one is induced."""
    induce, rng = services(seed)._propose, random.Random(seed)

    def propose(text, number):
        if text.startswith("These outputs"):
            return induce(text, number)
        shown = [float(value) for value in re.findall(r"text (\d\.\d+)", text)]
        return f"```\ntext {min(1, max(shown, default=0.1) + rng.uniform(-0.05, 0.3)):.4f} #{number}\n```"

    return propose


def running(optimizer, calls, seed):
    """Pairs of candidate and item that were tried."""
    search.run(optimizer, search.task(ITEMS, calls=calls, seed=seed), reward, PlainServices(proposer(seed)), 500)
    return {(trial.candidate.key, item) for trial in optimizer.trials for item in trial.items}


def test_the_real_package_finds_better_instructions_within_the_budget(name):
    better = 0
    for seed in range(3):
        optimizer = get_optimizer(name)
        tried = running(optimizer, 150, seed)
        assert len(tried) <= 150
        first = optimizer.trials[0].candidate.instruction
        better += quality(optimizer.best.instruction) > quality(first)
    assert better >= 2
    assert not threads()


def test_the_same_seed_gives_the_same_search_and_another_seed_another(name):
    def found(seed):
        optimizer = get_optimizer(name)
        running(optimizer, 120, seed)
        return [(trial.candidate, trial.items) for trial in optimizer.trials]

    assert found(0) == found(0)
    assert found(0) != found(1)


class Dies(Model):
    """Answers, until it has been asked so often."""

    def __init__(self, after=10**9):
        super().__init__()
        self.after = after

    def __call__(self, prompts):
        if len(self.given) + len(prompts) > self.after:
            raise KeyboardInterrupt
        return super().__call__(prompts)


def drawn(prompts):
    return [f"```\nbe {digit_of(prompt)} {len(str(prompt))}\n```" for prompt in prompts]


def searched(name, folder, model, **more):
    return trainer(
        *(name, CallableGenerator(model, batch_size=4)),
        proposer=CallableGenerator(drawn, batch_size=4),
        output_dir=str(folder),
        max_calls=90,
        items=6,
        examples=12,
        **more,
    )


def test_calls_are_counted_and_a_killed_search_goes_on_as_if_it_had_not_been_killed(name, tmp_path):
    whole = Dies()
    expected = searched(name, tmp_path / "whole", whole).train()
    assert expected.spent["calls"] == len(whole.given) <= 90
    assert expected.spent["proposer_calls"] > 0
    kept = [json.loads(line) for line in (tmp_path / "whole" / FILE).read_text().splitlines()]
    assert sum(line["kind"] == "answer" and line["role"] == "model" for line in kept) == len(whole.given)

    for after in (10, 11, 12):
        model = Dies(after)
        with pytest.raises(KeyboardInterrupt):
            searched(name, tmp_path / "killed", model).train()
        assert not threads()
    again = Dies()
    found = searched(name, tmp_path / "killed", again).train()
    assert comparable(found) == comparable(expected)
    assert len(again.given) < len(whole.given)


def test_gepa_reflects_on_answers_and_feedback():
    pytest.importorskip("gepa", reason="the package gepa is not installed")
    asked = []

    def propose(text, number):
        asked.append(text)
        return (
            services()._propose(text, number) if text.startswith("These outputs") else f"```\ntext 0.9 #{number}\n```"
        )

    optimizer = get_optimizer("gepa")
    search.run(optimizer, search.task(ITEMS, calls=100), reward, PlainServices(propose), 500)
    reflection = next(text for text in asked if not text.startswith("These outputs"))
    assert "Reward: 0. Wanted answer: " in reflection
    assert "wrong" in reflection
    assert quality(optimizer.best.instruction) == 0.9
    assert len(next(t for t in optimizer.trials if t.candidate == optimizer.best and len(t.items) == 3).items) == 3


def test_mipro_bootstraps_demonstrations_from_right_answers():
    pytest.importorskip("dspy", reason="the package dspy is not installed")
    optimizer = get_optimizer("dspy", labeled=0, bootstrapped=2, train=6)

    def solved(candidate, item):  # what demonstrations are good for
        return float(int(item.id) % 2 == 0 or bool(candidate.exemplars))

    search.run(optimizer, search.task(ITEMS, 6, calls=200), solved, PlainServices(proposer(0)), 500)
    assert optimizer.best.exemplars
    for trial in optimizer.trials:
        for shown in trial.candidate.exemplars:
            assert shown.completion == "right"
