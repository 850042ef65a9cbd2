"""What all searches in rounds have in common, on each of them."""

import contextlib
import random

import numpy as np
import pytest

from hfdataopt.errors import OptionError
from hfdataopt.prompting.budget import BudgetSpent
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.rounds import plan_rungs, price_of, rungs_of
from hfdataopt_plugins.optimizers.ape import Ape
from hfdataopt_plugins.optimizers.evolution import Evolution
from hfdataopt_plugins.optimizers.exemplars import Exemplars
from hfdataopt_plugins.optimizers.opro import Opro
from hfdataopt_plugins.optimizers.pmpo import Pmpo
from hfdataopt_plugins.optimizers.protegi import ProTeGi
from hfdataopt_plugins.optimizers.racing import Racing
from hfdataopt_plugins.optimizers.random_search import RandomSearch
from tests.optimizers import search
from tests.optimizers.qualities import ITEMS, quality, reward, services, trying

MAKERS = {
    "random": RandomSearch,
    "ape": Ape,
    "ape-all": lambda: Ape(scoring="all", rounds=0),
    "racing": Racing,
    "opro": Opro,
    "protegi": ProTeGi,
    "protegi-ucb": lambda: ProTeGi(selection="ucb", beam=3, gradients=2, rephrasings=1),
    "exemplars": lambda: Exemplars(base="ape"),
    "exemplars-alone": lambda: Exemplars(instruction="text 0.5 #0"),
    "genetic": Evolution,
    "hill-climbing": lambda: Evolution(strategy="hill-climbing"),
    "annealing": lambda: Evolution(strategy="annealing"),
}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def told(optimizer):
    return [(t.candidate.key, t.items, t.rewards.tolist()) for t in optimizer.trials]


@each
@pytest.mark.parametrize("calls", [60, 120])
def test_the_budget_is_used_and_never_exceeded(make, calls):
    spent = trying(make(), calls)
    assert ITEMS < len(spent) <= calls


@each
def test_without_a_budget_it_ends(make):
    optimizer = make()
    trying(optimizer, None, steps=5000)
    assert optimizer.best is not None
    assert not optimizer.ask(1, (), services())


@each
def test_a_seed_reproduces_a_search_and_one_instance_can_run_several(make):
    optimizer = make()
    trying(optimizer, 100, seed=0)
    first = told(optimizer)
    trying(optimizer, 100, seed=1)
    assert told(optimizer) != first
    trying(optimizer, 100, seed=0)
    assert told(optimizer) == first


@each
def test_four_at_a_time_and_any_order_of_telling_try_the_same(make):
    one, four = make(), make()
    trying(one, 100)
    of, helpers, rng = search.task(ITEMS, calls=100), services(), random.Random(5)
    four.start(of)
    pending = []
    while True:
        asked = list(four.ask(4, tuple(pending), helpers))
        assert len({query.candidate.key for query in [*asked, *pending]}) == len(asked) + len(pending)
        pending += asked
        if not pending:
            break
        rng.shuffle(pending)
        cut = rng.randint(1, len(pending))
        four.tell([search.trial(query, of, reward) for query in pending[:cut]])
        pending = pending[cut:]
    assert sorted(told(one)) == sorted(told(four))
    assert one.best == four.best


@each
def test_a_budget_too_small_for_one_round_is_refused_at_the_start(make):
    optimizer = make()
    with pytest.raises(OptionError, match=rf"{optimizer.name}: a budget of 1 completions.*at least \d+"):
        optimizer.start(search.task(ITEMS, calls=1))


@each
def test_at_the_least_budget_there_is_a_round(make):
    optimizer = make()
    optimizer.start(search.task(ITEMS))
    assert trying(make(), optimizer.least_calls())


@pytest.mark.parametrize("after", [0, 3, 7])
@pytest.mark.parametrize("name", ["ape", "racing", "opro", "protegi", "genetic", "annealing", "exemplars"])
def test_the_end_of_the_proposers_budget_passes_through_and_leaves_the_best(name, after):
    helpers = services()
    inner = helpers._propose

    def propose(text, number):
        if number >= after:
            raise BudgetSpent("max_proposer_calls")
        return inner(text, number)

    helpers._propose = propose
    optimizer, of = MAKERS[name](), search.task(ITEMS, calls=120)
    with contextlib.suppress(BudgetSpent):
        search.run(optimizer, of, reward, helpers, 500)
    assert (optimizer.best is None) == (after == 0)
    made = set(optimizer.seen)
    assert made <= {trial.candidate.key for trial in optimizer.trials} or name == "exemplars"


@each
def test_a_proposer_that_says_nothing_new_ends_the_search(make):
    optimizer, helpers = make(), search.PlainServices(lambda text, number: "text 0.5 always")
    search.run(optimizer, search.task(ITEMS, calls=500), reward, helpers, 500)
    assert optimizer.best is not None
    assert len(helpers.asked) < 400


def test_unreadable_answers_are_left_out():
    optimizer = Racing(pool_size=2, refill=2)
    helpers = search.PlainServices(lambda text, number: "" if number % 2 else f"text 0.{number} #{number}")
    search.run(optimizer, search.task(ITEMS, calls=60), reward, helpers, 500)
    assert all(trial.candidate.instruction for trial in optimizer.trials)
    assert len({trial.candidate.key for trial in optimizer.trials}) > 3


def test_rungs_are_priced_as_nested_prefixes():
    rungs = rungs_of(8, 12, 3, 2)
    assert rungs == [(8, 3), (4, 6), (2, 12)]
    assert price_of(rungs) == 8 * 3 + 4 * 3 + 2 * 6
    best = plan_rungs(100, 12, 3, 2, 50)
    assert price_of(best) <= 100 < price_of(rungs_of(best[0][0] + 1, 12, 3, 2))


def test_halving_drops_only_those_that_cannot_win():
    """Against the best by brute force, on random rewards: who is called hopeless never has a higher total than the leader."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        table = rng.integers(0, 2, (6, ITEMS)).astype(float)
        seen = rng.integers(1, ITEMS + 1, 6)
        optimizer = RandomSearch()
        optimizer.start(search.task(ITEMS))
        candidates = [search.Candidate(f"c{i}") for i in range(6)]
        for i, one in enumerate(candidates):
            optimizer.tell([search.Trial(one, tuple(range(seen[i])), table[i, : seen[i]], ("",) * seen[i])])
        keys = [one.key for one in candidates]
        hopeless = [keys.index(key) for key in optimizer.hopeless(candidates)]
        rest = [i for i in range(6) if i not in hopeless]
        assert rest
        assert max(table[i].sum() for i in rest) == max(table.sum(axis=1))


def test_no_item_of_a_known_candidate_is_asked_again():
    optimizer = Racing()
    asked = []
    of, helpers = search.task(ITEMS, calls=120), services()
    optimizer.start(of)
    while queries := optimizer.ask(1, (), helpers):
        known = {item for t in optimizer.trials if t.candidate == queries[0].candidate for item in t.items}
        new = {item.id for item in of.items[: queries[0].items]} - known
        assert new
        asked += [(queries[0].candidate.key, item) for item in new]
        optimizer.tell([search.trial(queries[0], of, reward)])
    assert len(asked) == len(set(asked)) == optimizer.paid


@each
def test_the_users_own_instruction_that_is_told_before_all_is_not_paid_twice(make):
    """The host tries it first; without a reward for any other it is the best."""
    of = search.task(ITEMS, calls=60, start=("text 0.9 mine",))
    optimizer, mine = make(), Candidate("text 0.9 mine", origin="start")
    optimizer.start(of)
    optimizer.tell([search.trial(mine, of, reward)])
    assert optimizer.best == mine
    while queries := optimizer.ask(2, (), services()):
        optimizer.tell([search.trial(query, of, lambda c, i: reward(c, i) if c == mine else 0.0) for query in queries])
    spent = {(trial.candidate.key, item) for trial in optimizer.trials for item in trial.items}
    assert ITEMS < len(spent) <= 60
    assert optimizer.best.instruction == mine.instruction or "exemplars" in optimizer.name


@each
def test_candidates_without_a_reward_are_never_the_best(make):
    optimizer, of = make(), search.task(ITEMS, calls=120)

    def sometimes(candidate, item):
        return float("nan") if quality(candidate.instruction) > 0.4 else reward(candidate, item)

    search.run(optimizer, of, sometimes, services(), 500)
    assert optimizer.best is None or quality(optimizer.best.instruction) <= 0.4


def test_pmpo_needs_a_likelihood():
    assert "likelihood" in Pmpo().needs
