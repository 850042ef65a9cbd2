"""Judges: both orders, ties, what cannot be read, and a person at the terminal."""

import io
import json
import math

import pytest

from hfdataopt.errors import DataError, OptionError
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges import (
    CallableJudge,
    Judge,
    ModelJudge,
    Question,
    RewardJudge,
    SimulatedJudge,
    TerminalJudge,
    as_judge,
)
from hfdataopt.prompting.judges.model import read_verdict
from hfdataopt.prompting.judges.terminal import visible

FIRST, SECOND = Comparison(0, "preferred"), Comparison(1, "preferred")
TIE, SKIP, INVALID = (Comparison(None, outcome) for outcome in ("tie", "skip", "invalid"))
CHAT = [{"role": "user", "content": "Say a number."}]


def question(number: int, first: str, second: str, prompt="Say a number.", **columns) -> Question:
    return Question(f"q{number}", prompt, (first, second), number, columns)


def begun(judge: Judge, complete=None) -> Judge:
    judge.begin(complete, dict)
    return judge


def words(judge: Judge, *questions: Question) -> list[Comparison]:
    judge.submit(questions)
    found = judge.collect()
    assert [decision.question for decision in found] == [one.id for one in questions]
    return [decision.comparison for decision in found]


def number(completions, **_):
    """A TRL reward function for text and messages: the number that stands there, None for no number."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [float(text) if text.lstrip("-").isdigit() else None for text in texts]


# -- rewards


@pytest.mark.parametrize("prompt", ["Say a number.", CHAT])
def test_the_higher_reward_wins_and_a_missing_one_is_a_skip(prompt):
    judge = begun(RewardJudge(number, ties=1))
    pairs = [("5", "3"), ("3", "5"), ("4", "5"), ("none", "3")]
    assert words(judge, *[question(i, *pair, prompt=prompt) for i, pair in enumerate(pairs)]) == [
        FIRST,
        SECOND,
        TIE,
        SKIP,
    ]


def test_rewards_get_the_rows_columns_and_weights():
    def distance(completions, target, **_):
        return [-abs(float(text) - goal) for text, goal in zip(completions, target, strict=True)]

    judge = begun(RewardJudge([number, distance], [1.0, 10.0]))
    assert words(judge, question(0, "5", "3", target=3), question(1, "5", "3", target=6)) == [SECOND, FIRST]


def test_builtin_rewards_of_trl_run_unchanged():
    from trl.rewards import think_format_reward

    good, bad = "<think>two and two</think>four", "four"
    assert words(begun(RewardJudge(think_format_reward)), question(0, bad, good, prompt=CHAT)) == [SECOND]


def test_reward_judges_check_their_options():
    from hfdataopt.rewards import RewardFunctions

    for ties in (-1, math.nan):
        with pytest.raises(OptionError, match="ties"):
            RewardJudge(number, ties=ties)
    with pytest.raises(OptionError, match="drop reward_weights"):
        RewardJudge(RewardFunctions(number), [1.0])
    with pytest.raises(OptionError, match="scale"):
        SimulatedJudge(number, scale=0)


# -- simulated


def test_a_simulated_user_votes_by_bradley_terry_with_ties():
    judge, n = begun(SimulatedJudge(number, scale=0.5, ties=0.4)), 4000
    found = words(judge, *[question(i, "2", "0") for i in range(n)])
    first, second = 1 / (1 + math.exp(-1 + 0.4)), 1 / (1 + math.exp(1 + 0.4))
    for word, chance in ((FIRST, first), (SECOND, second), (TIE, 1 - first - second)):
        assert found.count(word) / n == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / n))


def test_a_simulated_vote_depends_on_the_question_and_the_seed_alone():
    asked = [question(i, "1", "0") for i in range(50)]
    judge = begun(SimulatedJudge(number, scale=1.0, seed=3))
    together, one_by_one = words(judge, *asked), [words(judge, one)[0] for one in reversed(asked)]
    assert together == one_by_one[::-1]
    assert together != words(begun(SimulatedJudge(number, scale=1.0, seed=4)), *asked)


# -- older TRL


class OlderJudge:
    def judge(self, prompts, completions, shuffle_order=True):
        assert shuffle_order is False
        assert all(isinstance(prompt, str) for prompt in prompts)
        return [-1 if "?" in first else int(float(first) < float(second)) for first, second in completions]


def test_an_older_judge_keeps_its_minus_one():
    judge = begun(as_judge(OlderJudge()))
    asked = [question(0, "2", "1"), question(1, "1", "2", prompt=CHAT), question(2, "?", "2")]
    found = words(judge, *asked)
    assert found == [FIRST, SECOND, INVALID]
    assert [word.flipped() for word in found] == [SECOND, FIRST, INVALID]  # TRL's own flip made 2 of -1
    assert found[2].target is None


@pytest.mark.parametrize("returned", [[2], [True], [0.5], [0, 1], None, "0"])
def test_an_older_judge_that_returns_something_else_is_refused(returned):
    judge = begun(CallableJudge(lambda prompts, completions, shuffle_order=True: returned))
    judge.submit([question(0, "1", "2")])
    with pytest.raises(DataError, match="judge: returned"):
        judge.collect()


def test_what_is_no_judge_is_refused():
    for wrong in (OlderJudge, 3, "judge"):
        with pytest.raises(OptionError, match="a judge is"):
            as_judge(wrong)
    assert isinstance(as_judge(judge := RewardJudge(number)), RewardJudge)
    assert as_judge(judge) is judge


# -- a language model


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", "first"),
        ("B", "second"),
        ("b.", "second"),
        ("\n\n**A**\nbecause B is long", "first"),
        ("[[B]]", "second"),
        ("(A)", "first"),
        ("Answer A", "first"),
        ("Answer: B", "second"),
        ('{"winner": "B"}', "second"),
        ("The better answer is A.", "first"),
        ("A is better, because B rambles", "first"),
        ("B: it is shorter than A", "second"),
        ("tie", "tie"),
        ("It's a tie.", "tie"),
        ("Draw", "tie"),
        ("<think>A? no, B? yes B</think>\nA", "first"),
        ("A is worse than B", None),
        ("A better answer would be B", None),
        ("A and B are alike", None),
        ("Apples", None),
        ("neither", None),
        ("", None),
    ],
)
def test_a_reply_is_read_in_its_first_line_or_not_at_all(reply, verdict):
    assert read_verdict(reply) == verdict


class Calls:
    """``complete`` as the loop gives it, without a ledger."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def __call__(self, generator, messages, keys) -> list[str]:
        self.keys += keys
        return [made[0].text for made in generator.generate(messages, 1, keys=keys)]


def shown(messages) -> list[str]:
    """The two answers in the order in which the model sees them."""
    text = messages[-1]["content"]
    return [text.split(f"Answer {letter}: ")[1].split("\n")[0] for letter in "AB"]


def replies(reply):
    return lambda prompts: [reply(*shown(messages)) for messages in prompts]


def larger(first: str, second: str) -> str:
    if "?" in (first, second):
        return "I cannot say"
    return "tie" if first == second else "A" if float(first) > float(second) else "B"


def test_a_model_is_asked_in_both_orders_and_only_agreement_counts():
    calls, pairs = Calls(), [("2", "1"), ("1", "2"), ("2", "2"), ("?", "1")]
    asked = [question(i, *pair) for i, pair in enumerate(pairs)]
    judge = begun(ModelJudge(replies(larger), "Larger is better."), calls)
    assert words(judge, *asked) == [FIRST, SECOND, TIE, INVALID]
    assert calls.keys == [f"q{i}/{order}" for i in range(4) for order in ("AB", "BA")]
    assert (judge.invalid, judge.calls_per_question) == (2, 2)
    always = begun(ModelJudge(replies(lambda first, second: "A")), Calls())
    assert words(always, *asked[:2]) == [TIE, TIE]  # it likes a place, not an answer
    half = begun(ModelJudge(replies(lambda first, second: "A" if first == "2" else "mumble")), Calls())
    assert words(half, asked[0]) == [INVALID]


def test_a_model_may_be_asked_once():
    calls = Calls()
    judge = begun(ModelJudge(replies(larger), both_orders=False), calls)
    assert words(judge, question(0, "2", "1"), question(1, "?", "1")) == [FIRST, INVALID]
    assert (calls.keys, judge.calls_per_question, judge.invalid) == (["q0/AB", "q1/AB"], 1, 1)


def test_a_judge_that_starts_again_counts_anew():
    judge = begun(ModelJudge(replies(larger)), Calls())
    words(judge, question(0, "?", "1"))
    assert begun(judge, Calls()).invalid == 0


def test_a_model_judge_refuses_images():
    judge = begun(ModelJudge(replies(larger)), Calls())
    judge.submit([Question("q", "a cat", (object(), object()), 0)])
    with pytest.raises(DataError, match="ModelJudge: the answers to item 0 must be text"):
        judge.collect()


@pytest.mark.parametrize(
    "judges",
    [
        (RewardJudge(number), RewardJudge(number, ties=1), RewardJudge(len)),
        (SimulatedJudge(number, scale=1), SimulatedJudge(number, scale=2), SimulatedJudge(number, scale=1, seed=1)),
        (ModelJudge(len), ModelJudge(len, "Short."), ModelJudge(len, both_orders=False)),
        (TerminalJudge(), CallableJudge(OlderJudge()), CallableJudge(print)),
    ],
)
def test_what_a_judge_is_can_be_written_down(judges):
    described = [json.dumps(judge.describe()) for judge in judges]
    assert len(set(described)) == len(judges)


# -- a person


def at_terminal(keys: str) -> tuple[TerminalJudge, io.StringIO]:
    output = io.StringIO()
    return begun(TerminalJudge(io.StringIO(keys), output)), output


def test_a_person_answers_one_question_at_a_time():
    judge, output = at_terminal("1\n2\nt\nS\n")
    judge.submit([question(i, "one", "other") for i in range(4)])
    found = [judge.collect() for _ in range(4)]
    assert [[decision.comparison for decision in part] for part in found] == [[FIRST], [SECOND], [TIE], [SKIP]]
    assert [part[0].question for part in found] == ["q0", "q1", "q2", "q3"]
    assert judge.collect() == []
    assert judge.interactive
    assert output.getvalue().count("Say a number.") == 4


def test_undo_takes_votes_back_one_by_one_and_asks_again():
    judge, output = at_terminal("u\n1\n2\nu\nu\n2\n1\n")
    judge.submit([question(0, "a", "b"), question(1, "c", "d"), question(2, "e", "f")])
    found = [judge.collect()[0] for _ in range(4)]
    judge.submit([question(1, "c", "d"), question(0, "a", "b")])  # the loop hands them over again
    found += [judge.collect()[0] for _ in range(2)]
    assert "nothing to undo" in output.getvalue()
    assert [(one.question, one.comparison, one.undo) for one in found] == [
        ("q0", FIRST, False),
        ("q1", SECOND, False),
        ("q1", SECOND, True),
        ("q0", FIRST, True),
        ("q0", SECOND, False),
        ("q1", FIRST, False),
    ]


@pytest.mark.parametrize("keys", ["1\nq\n2\n", "1\n"])
def test_q_or_the_end_of_the_input_is_the_end(keys):
    judge, _ = at_terminal(keys)
    judge.submit([question(i, "one", "other") for i in range(3)])
    assert len(judge.collect()) == 1
    assert judge.collect() == judge.collect() == []


def test_other_keys_are_asked_again():
    judge, output = at_terminal("x\n\n\x1b[2J\n2\n")
    judge.submit([question(0, "one", "other")])
    assert judge.collect()[0].comparison == SECOND
    assert output.getvalue().count("is no answer") == 3
    assert "\x1b" not in output.getvalue()


def test_hostile_text_cannot_drive_the_terminal_or_pass_for_ours():
    hostile = "\x1b[2J\x07\x9b31m\rAnswer 2\nAnswer 2\n\u202egnirts\u2028\U000e0041 \udcff fine 👩‍👩‍👧\tend"
    judge, output = at_terminal("1\n")
    judge.submit([question(0, hostile, "plain", prompt=[{"role": "user", "content": hostile}])])
    judge.collect()
    text = output.getvalue()
    for character in "\x1b\x07\x9b\r\u202e\u2028\U000e0041\udcff":
        assert character not in text
    assert "\\x1b[2J" in text
    assert "fine 👩‍👩‍👧\tend" in text
    assert [line for line in text.split("\n") if line.startswith("Answer 2")] == ["Answer 2"]


def test_plain_text_is_shown_as_it_is():
    assert visible("Zwölf Boxkämpfer\n\tनमस्ते 😀") == "Zwölf Boxkämpfer\n\tनमस्ते 😀"


def test_a_function_without_shuffle_order_is_a_judge():
    judge = begun(as_judge(lambda prompts, completions: [int(len(b) > len(a)) for a, b in completions]))
    assert words(judge, question(0, "1", "22"), question(1, "22", "1")) == [SECOND, FIRST]


def test_a_function_of_another_form_is_refused_before_the_search():
    with pytest.raises(OptionError, match=r"the judge 'longest' cannot be called as judge\(prompts, completions\)"):
        as_judge(longest)


def longest(completion):
    return 0
