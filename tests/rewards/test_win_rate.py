"""Preferred to the dataset's own answer, or not."""

import asyncio
import pickle

import numpy as np
import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.rewards import RewardFunctions, win_rate

from .test_reward_model import causal, read

PROMPTS = [f"question {i}" for i in range(6)]
COMPLETIONS = ["long answer", "short", "same", "new words", "much the longest", "x"]
BASELINES = ["short", "long answer", "same", "old words", "longer", None]


def longer(prompts, completions, shuffle_order=True):
    """The longer one wins; two of the same length are beyond it."""
    return [-1 if len(a) == len(b) else int(len(b) > len(a)) for a, b in completions]


def first(prompts, completions, shuffle_order=True):
    """Prefers whatever it sees first."""
    return [0] * len(prompts)


def length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def ask(reward, prompts=PROMPTS, completions=COMPLETIONS, **columns):
    return reward(prompts=prompts, completions=completions, completion_ids=[[1]] * 6, baseline=BASELINES, **columns)


WON = [1.0, 0.0, 0.5, None, 1.0, None]


@pytest.mark.parametrize("both_orders", [False, True])
def test_a_judge_of_pairs(both_orders):
    assert ask(win_rate("baseline", longer, both_orders=both_orders)) == WON
    assert ask(win_rate("baseline", longer, both_orders=both_orders, ties=0.25))[2] == 0.25


def test_a_judge_object_and_an_async_judge():
    class Judge:
        def judge(self, prompts, completions, shuffle_order=True):
            return np.array(longer(prompts, completions))

    async def later(prompts, completions, shuffle_order=True):
        await asyncio.sleep(0)
        return longer(prompts, completions)

    for judge in (Judge(), later):
        assert ask(win_rate("baseline", judge)) == WON


def test_the_judge_is_asked_once_about_other_texts_and_not_to_shuffle():
    seen = []

    def judge(prompts, completions, shuffle_order=True):
        seen.append((prompts, [sorted(pair) for pair in completions], shuffle_order))
        return longer(prompts, completions)

    ask(win_rate("baseline", judge))
    rows = [0, 1, 3, 4]
    pairs = [sorted([COMPLETIONS[row], BASELINES[row]]) for row in rows]
    assert seen == [([PROMPTS[row] for row in rows], pairs, False)]


def many(reward, rows):
    return reward(
        prompts=[f"question {i}" for i in rows],
        completions=[f"new {i}" for i in rows],
        baseline=[f"old {i}" for i in rows],
    )


def test_a_judge_with_a_bias_of_place_wins_half_and_always_the_same_half():
    found = many(win_rate("baseline", first), range(400))
    assert set(found) == {0.0, 1.0}
    assert 150 < sum(found) < 250
    assert [many(win_rate("baseline", first), [i])[0] for i in range(399, -1, -1)] == found[::-1]
    assert many(win_rate("baseline", first, seed=1), range(400)) != found


def test_with_both_orders_it_ties():
    assert many(win_rate("baseline", first, both_orders=True), range(10)) == [0.5] * 10


def test_with_both_orders_one_undecided_abstains():
    answers = iter([[0, -1, 0], [1, 1, -1]])

    def judge(prompts, completions, shuffle_order=True):
        return next(answers)

    assert many(win_rate("baseline", judge, both_orders=True), range(3)) == [1.0, None, None]


def test_conversations_are_shown_as_texts():
    seen = []

    def judge(prompts, completions, shuffle_order=True):
        seen.extend([prompts, completions])
        return longer(prompts, completions)

    one = [{"role": "user", "content": "hello"}]
    two = [{"role": "system", "content": "be kind"}, *one]
    chat = [[{"role": "assistant", "content": text}] for text in ("yes please", "no")]
    reward = win_rate("baseline", judge, both_orders=True)
    assert reward(prompts=[one, two], completions=chat, baseline=["no", chat[0]]) == [1.0, 0.0]
    assert seen[:2] == [["hello", "system: be kind\n\nuser: hello"], [["yes please", "no"], ["no", "yes please"]]]


# -- rewards as judges


def test_the_higher_reward_wins():
    assert ask(win_rate("baseline", length)) == [1.0, 0.0, 0.5, 0.5, 1.0, None]

    def undecided(completions, **kwargs):
        return [None if "old" in completion else float(len(completion)) for completion in completions]

    assert ask(win_rate("baseline", undecided))[3] is None


def test_a_reward_as_judge_sees_the_columns_of_its_rows_and_baselines_in_the_form_of_completions():
    seen = []

    async def judge(prompts, completions, level, trainer_state, **kwargs):
        seen.append((prompts, completions, level, trainer_state, "completion_ids" in kwargs))
        return [len(completion[0]["content"]) for completion in completions]

    chat = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    state = object()
    reward = win_rate("baseline", judge)
    assert ask(reward, completions=chat, level=list(range(6)), trainer_state=state) == [1.0, 0.0, 0.5, 0.5, 1.0, None]
    rows = [0, 1, 3, 4]
    others = [[{"role": "assistant", "content": BASELINES[row]}] for row in rows]
    for (prompts, completions, level, given, ids), texts in zip(
        seen, ([chat[row] for row in rows], others), strict=True
    ):
        assert (prompts, completions, level) == ([PROMPTS[row] for row in rows], texts, rows)
        assert given is state
        assert not ids


def test_a_reward_model_as_judge():
    model = RewardFunctions(causal(), reward_processing_classes=read())
    prompts, one, other = ["the film was "] * 3, ["fine", "awful", "it"], ["awful", "fine", "it"]
    scores = model(prompts[:2], one[:2], None, {}, row_ids=[0, 1]).total
    found = win_rate("baseline", model)(prompts=prompts, completions=one, baseline=other)
    assert found == [float(scores[0] > scores[1]), float(scores[1] > scores[0]), 0.5]


def test_it_can_be_pickled_and_named():
    assert ask(pickle.loads(pickle.dumps(win_rate("baseline", longer)))) == WON
    assert win_rate("baseline", longer).__name__ == "win_rate"
    assert RewardFunctions(win_rate("baseline", longer, name="beats gold")).names == ("beats gold",)


# -- errors


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0, 1], r"one index for each of 4 pairs, got \[0, 1\]"),
        (1, "one index for each of 4 pairs, got 1"),
        ([0, 1, 2, 0], "must return 0, 1, or -1 for undecided, got 2 for row 'r3'"),
        ([0, None, 1, 0], "got None for row 'r1'"),
        ([0.5, 0, 1, 0], "got 0.5 for row 'r0'"),
    ],
)
def test_what_a_judge_may_not_return(returned, message):
    def judge(prompts, completions, shuffle_order=True):
        return returned

    functions = RewardFunctions(win_rate("baseline", judge))
    rows = [f"r{i}" for i in range(6)]
    with pytest.raises(DataError, match=f"win_rate: the judge .*{message}"):
        functions(PROMPTS, COMPLETIONS, None, {"baseline": BASELINES, "row_id": rows}, row_ids=rows)


def test_a_judge_that_raises_is_traced_to_its_row():
    def judge(prompts, completions, shuffle_order=True):
        if "question 3" in prompts:
            raise ValueError("no answer")
        return longer(prompts, completions)

    rows = [f"r{i}" for i in range(6)]
    with pytest.raises(DataError, match=r"reward function 'win_rate' raised ValueError: no answer \(row 'r3'\)"):
        RewardFunctions(win_rate("baseline", judge))(PROMPTS, COMPLETIONS, None, {"baseline": BASELINES}, row_ids=rows)


def test_a_reward_as_judge_that_fails_is_named():
    with pytest.raises(DataError, match="win_rate: reward function 'length' returned nan for row 'completion 0'"):
        ask(win_rate("baseline", _nan_for_long))


def _nan_for_long(completions, **kwargs):
    return [float("nan") if "long" in completion else 1.0 for completion in completions]


_nan_for_long.__name__ = "length"


def test_options_that_cannot_be_honoured():
    for ties in (-0.1, 1.1, float("nan")):
        with pytest.raises(OptionError, match="must be between 0 and 1"):
            win_rate("baseline", longer, ties=ties)
    with pytest.raises(OptionError, match="both_orders is for judges of pairs"):
        win_rate("baseline", length, both_orders=True)
    with pytest.raises(OptionError, match="win_rate: the dataset has no column 'gold'; its columns are baseline"):
        ask(win_rate("gold", longer))
