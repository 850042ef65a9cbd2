"""SPO: one instruction that is revised, and replaced by a majority of the votes alone."""

import itertools

import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, Vote
from hfdataopt_plugins.optimizers.spo import Spo
from tests.optimizers.search import PlainServices, duel, task, vote

START = task(items=8, start=("revision -1",))


def numbered() -> PlainServices:
    return PlainServices(lambda text, number: f"revision {number}")


def level(candidate: Candidate) -> int:
    return int(candidate.instruction.split()[1])


def told(optimizer: Spo, services, targets) -> list[Duel]:
    """Ask one by one and vote: 1 for the revision, 0 against it, 0.5, None = skip, "invalid"."""
    asked = []
    for target in targets:
        (one,) = optimizer.ask(1, (), services)
        asked.append(one)
        bad = Vote(one, Comparison(None, "invalid"), ("a", "b"))
        optimizer.tell([bad if target == "invalid" else vote(one, target)])
    return asked


@pytest.mark.parametrize(
    ("targets", "accepted"),
    [
        ([1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 0.0, 1.0, 1.0], True),
        ([1.0, 0.0, 1.0, 0.0], False),  # half is no majority
        ([1.0, 0.0, 0.5, 1.0], True),
        ([0.5, 0.5, 0.5, 0.5], False),
        ([0.0, 0.0, 1.0, 0.0], False),
        ([None, 1.0, "invalid", 1.0, 0.0, 1.0], True),  # neither a skip nor an invalid vote is a rejection
        ([None, 0.0, "invalid", 1.0, 0.0, 1.0], False),
        ([None] * 7 + [1.0], True),  # no item is left
        ([None] * 8, False),
    ],
)
def test_a_revision_is_accepted_by_a_majority_alone(targets, accepted):
    optimizer, services = Spo(comparisons=4), numbered()
    optimizer.start(START)
    asked = told(optimizer, services, targets)
    assert {(one.first.instruction, one.second.instruction) for one in asked} == {("revision 0", "revision -1")}
    assert len({one.item for one in asked}) == len(asked)
    assert level(optimizer.best) == (0 if accepted else -1)
    following = optimizer.ask(1, (), services)[0]
    assert (level(following.first), level(following.second)) == (1, 0 if accepted else -1)


def test_it_climbs_and_remembers_the_way():
    optimizer, services = Spo(comparisons=3), numbered()
    good = {-1: 0, 0: 1, 1: 0, 2: 3, 3: 2, 4: 5}
    duel(optimizer, START, lambda a, b: float(good[level(a)] > good[level(b)]), services, 15)
    assert [level(one) for one in optimizer.leaders(9)] == [4, 2, 0, -1]
    assert optimizer.leaders(2) == optimizer.leaders(9)[:2]
    assert optimizer.best.parents == (Candidate("revision 2").key,)


def test_the_proposer_sees_the_best_and_its_own_answers():
    optimizer, services = Spo(comparisons=2, shown=2, requirements="Be brief."), numbered()
    optimizer.start(START)
    for answers, target in zip([("new A", "old A"), ("new B", "old B"), ("new C", "old C")], (1, 1, 0), strict=True):
        (one,) = optimizer.ask(1, (), services)
        optimizer.tell([Vote(one, Comparison.of(1 - target), answers)])
    optimizer.tell([Vote(optimizer.ask(1, (), services)[0], Comparison.of(1), ("new D", "old D"))])
    optimizer.ask(1, (), services)
    first, second, third = services.asked
    assert "revision -1" in first
    assert "Answer:" not in first
    assert "Be brief." in first
    assert "new A" in second
    assert "new B" in second
    assert "old" not in second
    assert "Instruction: revision 0" in third  # revision 1 was rejected: again the best, with its latest answers
    assert "old D" in third
    assert "old C" in third
    assert "new" not in third


def test_duels_of_a_round_may_be_asked_together_but_no_more_than_are_needed():
    optimizer, services = Spo(comparisons=4), numbered()
    optimizer.start(START)
    batch = optimizer.ask(9, (), services)
    assert len(batch) == len({one.item for one in batch}) == 4
    assert optimizer.ask(9, batch, services) == []
    optimizer.tell([vote(batch[0], None)])
    more = optimizer.ask(9, batch[1:], services)
    assert len(more) == 1
    assert more[0].item not in {one.item for one in batch}
    assert len(services.asked) == 1


def test_a_vote_taken_back_reopens_its_round():
    optimizer, services = Spo(comparisons=3), numbered()
    optimizer.start(START)
    told(optimizer, services, [1.0, 0.0, 1.0])
    last = optimizer.votes[-1]
    assert level(optimizer.ask(1, (), services)[0].first) == 1
    optimizer.forget(last)
    assert level(optimizer.best) == -1
    optimizer.tell([vote(last.duel, 0.0)])
    assert level(optimizer.best) == -1
    following = optimizer.ask(1, (), services)[0]
    assert (level(following.first), level(following.second)) == (2, -1)  # the revision of what was refuted is gone


def test_the_order_of_telling_does_not_matter():
    found = []
    for order in itertools.permutations(range(3)):
        optimizer, services = Spo(comparisons=3), numbered()
        optimizer.start(START)
        batch = optimizer.ask(3, (), services)
        for place in order:
            optimizer.tell([vote(batch[place], [1.0, 0.0, 1.0][place])])
        found.append((optimizer.best, tuple(optimizer.ask(3, (), services))))
    assert len(set(found)) == 1


def test_it_ends_where_the_proposer_says_nothing_new():
    optimizer = Spo(comparisons=1)
    duel(optimizer, START, lambda a, b: 0.0, PlainServices(lambda text, number: "revision 0"), 50)
    assert len(optimizer.votes) == 1


def test_without_an_own_instruction_one_is_induced():
    optimizer = Spo()
    optimizer.start(task())
    services = PlainServices(lambda text, number: "Add one." if number == 0 else f"revision {number}")
    asked = optimizer.ask(1, (), services)[0]
    assert asked.second.instruction == "Add one."
    assert optimizer.best.instruction == "Add one."
    optimizer.start(task(examples=0))
    assert optimizer.best is None
    with pytest.raises(DataError, match="spo"):
        optimizer.ask(1, (), services)


def test_options_are_checked():
    with pytest.raises(OptionError, match="comparisons"):
        Spo(comparisons=0)
    assert Spo().needs == ("proposer",)
