import dataclasses

import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.candidate import Candidate, Query
from hfdataopt_plugins.optimizers.ape import Ape
from hfdataopt_plugins.optimizers.exemplars import Exemplars
from hfdataopt_plugins.optimizers.racing import Racing
from tests.optimizers import search
from tests.optimizers.qualities import ITEMS, quality, services
from tests.prompting.searches import trainer

GOOD = "text 0.5 mine"


def reward(candidate, item):
    """The instruction's quality and what good exemplars (those of inputs divisible by 3) add, the first one twice."""
    shown = [int(one.prompt.split()[1]) % 3 == 0 for one in candidate.exemplars]
    clarity = quality(candidate.instruction) + 0.1 * sum(shown) + 0.1 * (bool(shown) and shown[0])
    return float(clarity > (5 * int(item.id) % ITEMS) / ITEMS)


def run(optimizer, calls=150, examples=12, n=1, **changes):
    of = search.task(ITEMS, examples, calls=calls, **changes)
    search.run(optimizer, of, reward, services(), 500, n)
    return of


def shown(optimizer):
    return [trial.candidate for trial in optimizer.trials if trial.candidate.exemplars]


def test_only_answers_with_full_reward_to_example_rows_are_shown():
    optimizer = Exemplars(instruction=GOOD, count=2)
    of = run(optimizer)
    right = {example.prompt for example in of.examples if reward(Candidate(GOOD), example) == 1}
    wrong = {example.prompt for example in of.examples} - right
    assert right
    assert wrong
    assert shown(optimizer)
    for candidate in shown(optimizer):
        assert candidate.instruction == GOOD
        assert len(candidate.exemplars) == len(set(candidate.exemplars)) == 2
        for one in candidate.exemplars:
            assert one.prompt in right
            assert one.completion == "right"  # the model's own words, not the dataset's answer


def test_the_best_set_and_order_are_found():
    optimizer = Exemplars(instruction=GOOD, count=2)
    of = run(optimizer, calls=400)
    usable = [example for example in of.examples if reward(Candidate(GOOD), example) == 1]
    good = sum(int(example.input) % 3 == 0 for example in usable)
    found = [int(one.prompt.split()[1]) % 3 == 0 for one in optimizer.best.exemplars]
    assert good >= 1
    assert found[0]


def test_no_item_is_its_own_exemplar():
    of = search.task(ITEMS, 12, calls=150)
    twin = dataclasses.replace(of.examples[0], prompt=of.items[3].prompt, input=of.items[3].input)
    of = dataclasses.replace(of, examples=(twin, *of.examples[1:]))
    optimizer = Exemplars(instruction="text 1.0 perfect", count=3)
    search.run(optimizer, of, lambda candidate, item: 1.0, services(), 500)
    assert shown(optimizer)
    assert not {one.prompt for candidate in shown(optimizer) for one in candidate.exemplars} & {
        i.prompt for i in of.items
    }
    scored = {id_ for trial in optimizer.trials if trial.candidate.exemplars for id_ in trial.items}
    assert scored <= {item.id for item in of.items}


def test_zero_exemplars_are_none():
    optimizer = Exemplars(count=0, instruction=GOOD)
    of = run(optimizer)
    assert not shown(optimizer)
    assert {id_ for trial in optimizer.trials for id_ in trial.items} == {item.id for item in of.items}
    assert optimizer.best == Candidate(GOOD)
    assert optimizer.needs == ()


def test_a_base_looks_for_the_instruction_with_its_share_of_the_budget():
    alone = Ape()
    of = search.task(ITEMS, 12, calls=100)
    search.run(alone, dataclasses.replace(of, calls=60), reward, services(), 500)
    for base in ("ape", Ape()):
        optimizer = Exemplars(base=base, share=0.6, count=2)
        search.run(optimizer, of, reward, services(), 500)
        first = [(t.candidate.key, t.items) for t in optimizer.trials][: len(alone.trials)]
        assert first == [(t.candidate.key, t.items) for t in alone.trials]
        assert {one.instruction for one in shown(optimizer)} == {alone.best.instruction}
        assert shown(optimizer)


def test_zero_exemplars_leave_the_whole_budget_to_the_base():
    alone, optimizer = Racing(), Exemplars(base="racing", count=0)
    of = search.task(ITEMS, 12, calls=100)
    search.run(alone, of, reward, services(), 500)
    search.run(optimizer, of, reward, services(), 500)
    assert optimizer.best == alone.best


def test_options_of_a_base_and_what_it_needs():
    optimizer = Exemplars(base="ape", base_options={"rounds": 0})
    assert optimizer._base.rounds == 0
    assert set(optimizer.needs) == {"rows", "proposer", "examples"}
    assert Exemplars().needs == ("rows",)
    with pytest.raises(OptionError, match="not both"):
        Exemplars(base="ape", instruction="x")
    with pytest.raises(OptionError, match="base_options"):
        Exemplars(base=Ape(), base_options={"rounds": 0})


def test_a_dataset_of_prompts_alone_will_do():
    bare = [{"prompt": f"question {i}"} for i in range(30)]

    def reward(prompts, completions, **_):  # answers are right, and better behind exemplars
        return [1.0 + 0.5 * prompt.count("answer to") for prompt in prompts]

    one = trainer(
        "exemplars",
        lambda prompts: [f"answer to {prompt[-2:].strip()}" for prompt in prompts],
        bare,
        reward_funcs=reward,
        max_calls=60,
    )
    shown = one.train().best.exemplars
    assert len(shown) == 3
    assert all(exemplar.completion == f"answer to {exemplar.prompt[-2:].strip()}" for exemplar in shown)
    with pytest.raises(DataError, match="examples=0"):
        trainer("exemplars", None, bare, examples=0)
    with pytest.raises(DataError, match="no row has one"):  # the base induces from answers
        trainer("exemplars", None, bare, optimizer_options={"base": "ape"})


def test_messages_are_shown_as_what_the_user_says():
    of = search.task(ITEMS, 12, calls=100)

    def chat(item):
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": item.prompt}]
        return dataclasses.replace(item, prompt=turns)

    of = dataclasses.replace(of, items=tuple(map(chat, of.items)), examples=tuple(map(chat, of.examples)))
    optimizer = Exemplars(instruction=GOOD)
    search.run(optimizer, of, reward, services(), 500)
    assert all(one.prompt.startswith("Input: ") for candidate in shown(optimizer) for one in candidate.exemplars)


def test_examples_are_asked_with_the_instruction_and_by_id():
    optimizer = Exemplars(instruction=GOOD, count=1)
    of = search.task(ITEMS, 12, calls=100)
    optimizer.start(of)
    asked = []
    while queries := optimizer.ask(1, (), services()):
        asked += [query for query in queries if isinstance(query.items, tuple)]
        optimizer.tell([search.trial(query, of, reward) for query in queries])
    assert asked
    assert all(isinstance(query, Query) and query.candidate == Candidate(GOOD) for query in asked)
    ids = [id_ for query in asked for id_ in query.items]
    assert len(ids) == len(set(ids))
    assert set(ids) <= {example.id for example in of.examples}
