import math
import random

import numpy as np
import pytest

from hfdataopt.errors import OptionError
from hfdataopt_plugins.optimizers.evolution import Evolution, crossed, split
from tests.optimizers import search
from tests.optimizers.qualities import ITEMS, quality, services, trying

PARTS = ["Be brief.", "Think first.", "Answer in French.", "Use capitals.", "Be rude."]
WORTH = [0.3, 0.2, 0.3, -0.1, -0.3]
LOCAL = ["delete", "swap", "add"]


def phrase_reward(candidate, item):
    """Each part adds its worth; Think first. is worth more in front."""
    worth = sum(w for part, w in zip(PARTS, WORTH, strict=True) if part in candidate.instruction)
    worth += 0.15 * candidate.instruction.startswith(PARTS[1])
    return float(worth + 0.1 > (5 * int(item.id) % ITEMS) / ITEMS)


def test_phrases():
    assert split("Be brief. Think first, then answer!") == ("Be brief.", "Think first,", "then answer!")
    assert split("Be brief") == ("Be", "brief")
    assert split("Be brief. Now", "word") == ("Be", "brief.", "Now")


def test_edits_are_what_they_say():
    optimizer = Evolution(edits=LOCAL, components=PARTS)
    optimizer.start(search.task(ITEMS))
    phrases = ("a", "b", "c", "d")
    for seed in range(50):
        rng = random.Random(seed)
        shorter = optimizer.edited(phrases, "delete", [], rng)
        assert len(shorter) == 3
        assert [one for one in phrases if one in shorter] == list(shorter)
        swapped = optimizer.edited(phrases, "swap", [], rng)
        assert sorted(swapped) == sorted(phrases)
        assert sum(one != other for one, other in zip(phrases, swapped, strict=True)) == 2
        longer = optimizer.edited(phrases, "add", [], rng)
        assert [one for one in longer if one in phrases] == list(phrases)
        assert len([one for one in longer if one in PARTS]) == 1
    assert optimizer.edited(("a",), "delete", [], random.Random(0)) is None
    assert optimizer.edited(tuple(PARTS), "add", [], random.Random(0)) is None


def test_a_crossover_is_the_beginning_of_one_and_the_end_of_the_other():
    first, second = tuple("abcd"), tuple("wxyz")
    seen = {crossed(first, second, random.Random(seed)) for seed in range(100)}
    assert seen == {tuple("abcd"[:k] + "wxyz"[k:]) for k in range(1, 5)}
    assert crossed(("a", "b"), ("a", "b"), random.Random(0)) == ("a", "b")


@pytest.mark.parametrize("strategy", ["genetic", "hill-climbing", "annealing"])
def test_local_edits_need_no_proposer_and_find_the_good_components(strategy):
    best = []
    for seed in range(5):
        optimizer = Evolution(strategy=strategy, edits=LOCAL, components=PARTS, pool_size=0)
        assert optimizer.needs == ()
        of = search.task(ITEMS, calls=600, seed=seed)
        search.run(optimizer, of, phrase_reward, search.PlainServices(), 2000)
        best.append(np.mean([phrase_reward(optimizer.best, item) for item in of.items]))
        made = [trial.candidate for trial in optimizer.trials if trial.candidate.origin != "start"]
        assert {one.origin for one in made} <= {"delete", "swap", "add", "crossover"}
        assert all(part in PARTS for one in made for part in optimizer.phrases(one))
    assert np.mean(best) > 0.85
    assert max(np.mean([phrase_reward(search.Candidate(part), item) for item in of.items]) for part in PARTS) <= 0.5


def test_the_users_own_instruction_alone_can_be_edited():
    optimizer = Evolution(strategy="hill-climbing", edits=LOCAL, pool_size=0)
    of = search.task(ITEMS, calls=300, start=("Be rude. Be brief. Use capitals. Answer in French.",))
    search.run(optimizer, of, phrase_reward, search.PlainServices(), 1000)
    assert "Be rude." not in optimizer.best.instruction
    assert "Be brief." in optimizer.best.instruction


def test_hill_climbing_never_goes_down():
    optimizer = Evolution(strategy="hill-climbing")
    places = []
    climb = optimizer.climb

    def note(population, number):
        places.append(population[0])
        return climb(population, number)

    optimizer.climb = note
    trying(optimizer, 300)
    scores = [optimizer.known(one).score for one in places]
    assert len(scores) > 3
    assert scores == sorted(scores)


def worse_by_one(candidate, item):
    return float(item.id > (candidate.instruction != "one two"))


def test_annealing_accepts_as_metropolis_does():
    """A neighbour that is worse by 1 of 12 items, at temperature 0.1: accepted with chance exp(-(1/12)/0.1)."""
    accepted, asked, runs = 0, 0, 400
    for seed in range(runs):
        optimizer = Evolution(strategy="annealing", edits=["swap"], pool_size=0, temperature=0.1, block=3)
        of = search.task(ITEMS, seed=seed, start=("one two",))
        optimizer.start(of)
        optimizer.services = search.PlainServices()
        present = optimizer.beginning()[0]
        step = optimizer.anneal([present], 0)
        try:
            queries = next(step)
            while True:
                optimizer.tell([search.trial(q, of, worse_by_one) for q in queries])
                queries = next(step)
        except StopIteration as end:
            accepted += end.value != [present]
        asked += optimizer.paid
    chance = math.exp(-(1 / 12) / 0.1)
    assert abs(accepted / runs - chance) < 3 * math.sqrt(chance * (1 - chance) / runs)
    assert asked < 2 * ITEMS * runs  # those that cannot be accepted any more are given up


def test_annealing_at_temperature_0_is_a_climb():
    optimizer = Evolution(strategy="annealing", temperature=0)
    trying(optimizer, 200)
    induced = [quality(t.candidate.instruction) for t in optimizer.trials if t.candidate.origin == "induce"]
    assert quality(optimizer.best.instruction) >= max(induced)


def test_annealing_without_a_single_reward_ends():
    optimizer = Evolution(strategy="annealing", edits=LOCAL, components=PARTS, pool_size=0)
    search.run(optimizer, search.task(ITEMS, calls=60), lambda *_: math.nan, search.PlainServices(), 100)
    assert optimizer.best is None
    assert optimizer.paid <= 60


def test_a_component_is_rephrased_in_its_place():
    optimizer = Evolution(edits=["rephrase"], components=PARTS, pool_size=0, strategy="hill-climbing")
    helpers = search.PlainServices(lambda text, number: f"other words {number}")
    search.run(optimizer, search.task(ITEMS, calls=100, start=("Be brief. Be rude.",)), phrase_reward, helpers, 500)
    assert optimizer.needs == ("proposer",)
    first = next(t.candidate for t in optimizer.trials if t.candidate.origin == "rephrase")
    assert first.instruction in ("other words 0 Be rude.", "Be brief. other words 0")


def test_two_are_combined_by_the_proposer():
    helpers, optimizer = services(), Evolution(edits=["combine"], crossover=0.0)
    search.run(optimizer, search.task(ITEMS, calls=150), phrase_reward, helpers, 500)
    asked = [text for text in helpers.asked if "out of these two" in text]
    made = [trial.candidate for trial in optimizer.trials if trial.candidate.origin == "combine"]
    assert asked
    assert all(len(set(one.parents)) == 2 for one in made)


def test_nothing_to_begin_with_is_said():
    with pytest.raises(OptionError, match="pool_size=0 needs an instruction"):
        Evolution(pool_size=0).start(search.task(ITEMS))
    with pytest.raises(OptionError, match=r"edits=\[\]"):
        Evolution(edits=[])
    with pytest.raises(OptionError, match="edits"):
        Evolution(edits=["mutate"])
