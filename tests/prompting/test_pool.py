"""The pool of instructions: what is proposed, what is dropped, and where it stops."""

import pytest

from hfdataopt.errors import DataError
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.meta_prompts import induce, rephrase
from hfdataopt.prompting.pool import FRUITLESS, propose_pool
from tests.optimizers.search import PlainServices, task


def texts(pool):
    return [one.instruction for one in pool]


def test_duplicates_are_dropped_and_demonstrations_are_drawn_anew():
    services = PlainServices(lambda text, i: f"Instruction: number {i // 2}")
    pool = propose_pool(task(examples=30), services, 6, demonstrations=3, who="test")
    assert texts(pool) == [f"number {i}" for i in range(6)]
    assert {one.origin for one in pool} == {"induce"}
    assert len(services.asked) == 11
    assert len(set(services.asked)) > 8
    assert all(text.count("Input: ") == 3 for text in services.asked)


def test_the_same_seed_proposes_the_same_and_another_does_not():
    def asked(seed):
        services = PlainServices(lambda text, i: f"number {i}")
        propose_pool(task(examples=30, seed=seed), services, 8, rephrase=0.5, who="test")
        return services.asked

    assert asked(0) == asked(0) != asked(1)


def test_rephrasings_are_of_the_pool_and_name_their_parent():
    services = PlainServices(lambda text, i: f"number {i}")
    pool = propose_pool(task(start=("Add one.",)), services, 12, rephrase=0.5, who="test")
    assert pool[0].instruction == "Add one."
    assert pool[0].origin == "start"
    by_key = {one.key: one for one in pool}
    rephrased = [one for one in pool if one.origin == "rephrase"]
    assert 2 <= len(rephrased) <= 9
    for one in rephrased:
        shown = services.asked[int(one.instruction.split()[1])]
        assert shown == rephrase(by_key[one.parents[0]].instruction)[0]["content"]


def test_without_demonstrations_only_the_users_instruction_is_rephrased():
    services = PlainServices(lambda text, i: f"number {i}")
    pool = propose_pool(task(start=("Add one.",)), services, 4, demonstrations=0, who="test")
    assert {one.origin for one in pool[1:]} == {"rephrase"}
    with pytest.raises(DataError, match=r"test: there is nothing to make instructions from.*demonstrations \(now 0\)"):
        propose_pool(task(), services, 4, demonstrations=0, who="test")
    with pytest.raises(DataError, match="nothing to make instructions from"):
        propose_pool(task(examples=0), services, 4, who="test")


def test_a_proposer_that_repeats_itself_is_not_asked_for_ever(capfd):
    services = PlainServices(lambda text, i: f"number {min(i, 2)}")
    assert len(propose_pool(task(), services, 50, who="test")) == 3
    assert len(services.asked) == 3 + FRUITLESS
    assert "the pool has 3 instructions" in capfd.readouterr().err


def test_a_proposer_without_an_instruction_is_an_error():
    with pytest.raises(DataError, match=f"none of {FRUITLESS} proposals can be used .* the last was ''"):
        propose_pool(task(), PlainServices(lambda text, i: ""), 5, who="test")


def test_a_spent_budget_leaves_what_is_there():
    def propose(text, i):
        if i >= limit:
            raise BudgetSpent("no more")
        return f"number {i}"

    limit = 3
    assert len(propose_pool(task(), PlainServices(propose), 5, who="test")) == 3
    limit = 0
    with pytest.raises(BudgetSpent):
        propose_pool(task(), PlainServices(propose), 5, who="test")
    assert texts(propose_pool(task(start=("a", "b", "a")), PlainServices(propose), 5, who="test")) == ["a", "b"]


def test_the_induction_prompt_shows_exactly_the_demonstrations():
    of, services = task(examples=5), PlainServices(lambda text, i: "one")
    propose_pool(of, services, 1, demonstrations=2, who="test")
    assert services.asked == [induce(of.demonstrations(2, "test", "pool", 0))[0]["content"]]
