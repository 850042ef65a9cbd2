"""The loop with a judge: orders shuffled once and turned back, people who answer as they like, images, preferences."""

import json
import math
import random
from itertools import cycle

import pytest
from datasets import Dataset

from hfdataopt.errors import OptionError
from hfdataopt.generation import CallableGenerator, CallableImages
from hfdataopt.plugins import host
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel
from hfdataopt.prompting.judges import Decision, Judge, RewardJudge, TerminalJudge
from hfdataopt.prompting.ledger import FILE
from hfdataopt.prompting.tasks.text_to_image import SimulatedUser, render

from .searches import CHAT_ROWS, Duels, Listed, Model, candidates, comparable, digit, digit_of, trainer

FIRST, SECOND = Comparison(0, "preferred"), Comparison(1, "preferred")


class Fixed(Judge):
    """Says the same words over and over; keeps what it was shown."""

    def __init__(self, *words):
        self.words, self.shown = cycle(words), []

    def decide(self, questions):
        self.shown += questions
        return [next(self.words) for _ in questions]


def answer_of(candidate, item):
    return digit_of(ApplyPrompt.of(candidate).render(item.prompt))


def truth(vote, items):
    """The word of one who prefers the higher digit."""
    one, two = (answer_of(c, items[vote.duel.item]) for c in (vote.duel.first, vote.duel.second))
    return Comparison.of(None if one == two else int(two > one))


def items_of(one):
    return {item.id: item for item in (*one.split.items, *one.split.fresh)}


# -- order


def test_a_judge_that_always_says_first_favours_nobody():
    for seed in (0, 1):
        judge = Fixed(FIRST)
        one = trainer(Duels(candidates(2)), judge=judge, max_judge_calls=500, leaders=0, seed=seed)
        votes = one.train().votes
        wins = sum(vote.comparison.winner == 0 for vote in votes)
        assert len(votes) == 500
        assert abs(wins - 250) < 4 * (500 / 4) ** 0.5
        of_one = sum((v.duel.first if v.comparison.winner == 0 else v.duel.second) == candidates(1)[0] for v in votes)
        assert abs(of_one - 250) < 4 * (500 / 4) ** 0.5


@pytest.mark.parametrize("parallel", [1, 5])
def test_a_judge_of_the_content_is_right_in_the_order_of_the_duel(parallel):
    shown = []

    class Watched(RewardJudge):
        def decide(self, questions):
            shown.extend(questions)
            return super().decide(questions)

    one = trainer(Duels(candidates(5)), judge=Watched(digit), max_judge_calls=80, parallel=parallel, leaders=0)
    result = one.train()
    assert len(result.votes) == 80
    assert all(vote.comparison == truth(vote, items_of(one)) for vote in result.votes)
    assert all(
        vote.answers
        == tuple(str(answer_of(c, items_of(one)[vote.duel.item])) for c in (vote.duel.first, vote.duel.second))
        for vote in result.votes
    )
    turned = [question.answers != vote.answers for question, vote in zip(shown, result.votes, strict=True)]
    assert 20 < sum(turned) < 60
    assert all(question.prompt == items_of(one)[question.item].prompt for question in shown)
    assert all(question.columns["answer"] == f"answer {question.item}" for question in shown)
    assert result.best == max(candidates(5), key=one.optimizer.share)


def test_the_seed_turns_other_orders():
    def orders(seed):
        judge = Fixed(FIRST)
        trainer(Duels(candidates(2), rounds=40), judge=judge, seed=seed, leaders=0).train()
        return [question.answers for question in judge.shown], {question.id for question in judge.shown}

    assert orders(0) == orders(0)
    assert not orders(0)[1] & orders(1)[1]


def test_ties_skips_and_invalid_words_are_told_as_they_are():
    words = [Comparison(None, "tie"), Comparison(None, "skip"), Comparison(None, "invalid")]
    one = trainer(Duels(candidates(3), rounds=6), judge=Fixed(*words), leaders=0)
    result = one.train()
    assert [vote.comparison for vote in result.votes] == words * 2
    assert [vote.comparison.target for vote in one.optimizer.votes] == [0.5, None, None] * 2
    assert result.spent["judge_calls"] == 6


def test_a_judge_written_for_older_trl():
    given = []

    def judge(prompts, completions, shuffle_order=True):
        assert shuffle_order is False
        given.extend(zip(prompts, completions, strict=True))
        return [-1 if a == b else int(b > a) for a, b in completions]

    one = trainer(Duels(candidates(3), rounds=30), judge=judge, leaders=0, rows=CHAT_ROWS, max_calls=200)
    result = one.train()
    for vote in result.votes:
        word = truth(vote, items_of(one))
        assert vote.comparison == (word if word.winner is not None else Comparison(None, "invalid"))
    assert given[0][0].startswith("question")


# -- answers


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "conversational"])
def test_both_answers_are_to_the_same_item_and_paid_once(chat):
    model, one = Model(), None
    rows = CHAT_ROWS if chat else None
    one = trainer(
        *(Duels(candidates(3), rounds=30), model), judge=Fixed(FIRST), leaders=0, **({"rows": rows} if chat else {})
    )
    result = one.train()
    expected = {
        json.dumps(ApplyPrompt.of(c).render(items_of(one)[vote.duel.item].prompt))
        for vote in result.votes
        for c in (vote.duel.first, vote.duel.second)
    }
    given = [json.dumps(prompt) for prompt in model.given]
    assert expected <= set(given)
    assert len(given) == len(set(given)) == result.spent["calls"] <= 15


def test_a_duel_may_name_its_item_and_a_candidate_may_be_an_answer_already():
    model = Model()
    answers = [Candidate(item=3, completion=text) for text in ("1", "2")]

    class Asks(Duels):
        def ask(self, n, pending=(), services=None):
            self.asked += 1
            return [Duel(*answers, item=3)] if self.asked < 4 else []

    for rows in (None, CHAT_ROWS):
        options = {"rows": rows} if rows else {}
        one = trainer(Asks(answers), model, judge=RewardJudge(digit), items=40, leaders=0, **options)
        votes = one.train().votes
        assert model.given == []
        assert [vote.comparison for vote in votes] == [SECOND] * 3
        assert {vote.answers for vote in votes} == {("1", "2")}


def test_reward_functions_with_weights_are_a_judge_for_an_optimizer_of_preferences():
    def constant(completions, **_):
        return [5.0] * len(completions)

    one = trainer(
        Duels(candidates(3), rounds=20),
        reward_funcs=[digit, constant],
        reward_weights=[-1.0, 2.0],
        leaders=0,
        max_calls=99,
    )
    for vote in one.train().votes:
        word = truth(vote, items_of(one))
        assert vote.comparison == word.flipped()


def test_the_best_is_compared_with_the_prompt_of_before_on_fresh_items():
    one = trainer(
        Duels(candidates(3)), judge=RewardJudge(digit), max_judge_calls=40, start=["mine"], final_share=0.4, parallel=2
    )
    result = one.train()
    assert len(result.votes) == 24
    assert one.optimizer.votes == result.votes
    fresh = one.split.fresh[:16]
    targets = []
    for item in fresh:
        ours, theirs = answer_of(result.best, item), answer_of(Candidate("mine"), item)
        targets.append(0.5 if ours == theirs else float(ours > theirs))
    rate, low, high, count = result.win_rate
    assert (rate, count) == (sum(targets) / 16, 16)
    assert 0 <= low <= rate <= high <= 1
    assert result.spent["judge_calls"] <= 40


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({"max_calls": 60, "max_judge_calls": 100}, 6),  # a fifth of the calls, two for each item
        ({"max_calls": 200, "max_judge_calls": 20}, 4),
        ({"max_calls": 60}, 6),
        ({"max_calls": 60, "final_items": 10}, 10),
        ({"final_items": 7}, 7),
        ({"max_calls": 60, "leaders": 0}, 0),
    ],
)
def test_what_the_comparison_at_the_end_takes_is_kept(limits, count):
    duels = Duels([Candidate(f"{number}") for number in range(30)], rounds=60)
    model = Model()
    one = trainer(duels, model, judge=RewardJudge(digit), start=["mine"], parallel=3, **limits)
    result = one.train()
    assert result.spent["calls"] == len(model.given) <= limits.get("max_calls", math.inf)
    assert result.spent["judge_calls"] <= limits.get("max_judge_calls", math.inf)
    assert (result.win_rate or [0])[-1] == count
    assert result.status == ("finished" if set(limits) == {"final_items"} else "budget")


def test_more_final_items_than_the_calls_pay_are_an_error():
    one = trainer(Duels(candidates(3)), judge=RewardJudge(digit), max_calls=20, final_items=10)
    with pytest.raises(
        OptionError, match=r"max_calls=20 is too small for one round: 20 are kept .* one duel needs at least 2"
    ):
        one.train()


def test_callbacks_and_the_hook_hear_of_votes():
    from transformers import TrainerCallback

    from hfdataopt.hookspecs import hookimpl

    heard = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, votes=None, best_prompt=None, **_):
            heard.append((state.global_step, len(votes), best_prompt))
            control.should_training_stop = state.global_step == 3
            return control

    class Listener:
        @hookimpl
        def after_trial(self, trial):
            told.append(trial)

    told, listener = [], Listener()
    host().manager.register(listener)
    try:
        one = trainer(Duels(candidates(2)), judge=Fixed(FIRST), parallel=2, callbacks=[Watch()], leaders=0)
        result = one.train()
    finally:
        host().manager.unregister(listener)
    assert [entry[:2] for entry in heard] == [(1, 2), (2, 2), (3, 2)]
    assert heard[-1][2] == one.best_prompt
    assert told == result.votes
    assert result.reason == "a callback stopped it"


# -- preferences


@pytest.mark.parametrize("rows", [None, CHAT_ROWS], ids=["plain", "conversational"])
def test_the_votes_come_out_as_a_preference_dataset(rows):
    options = {"rows": rows} if rows else {}
    one = trainer(Duels(candidates(4), rounds=30), judge=RewardJudge(digit), leaders=0, **options)
    result = one.train()
    data = one.preferences()
    assert isinstance(data, Dataset)
    assert data.column_names == ["prompt", "chosen", "rejected"]
    decided = [vote for vote in result.votes if vote.comparison.winner is not None]
    assert 0 < len(data) == len(decided) <= 30
    for row, vote in zip(data, decided, strict=True):
        assert row["prompt"] == items_of(one)[vote.duel.item].prompt
        chosen, rejected = (
            (row["chosen"], row["rejected"])
            if rows is None
            else (row["chosen"][0]["content"], row["rejected"][0]["content"])
        )
        assert int(chosen) > int(rejected)
        assert rows is None or row["chosen"][0]["role"] == "assistant"


# -- people


class Crowd(Judge):
    """People who answer open questions in any order, take words back, and sometimes tie or skip.

    What they do next depends only on how many words are on disk and on what is open, so a restart finds them as they were.
    """

    interactive = True

    def __init__(self, leave_after=10**9, batch=1, undo=0.2):
        self.leave_after, self.batch, self.undo = leave_after, batch, undo
        self.seen = []

    def begin(self, complete, state):
        self.open, self.given, self.count, self.state = {}, {}, 0, state

    def submit(self, questions):
        for question in questions:
            assert question.id not in self.open
            self.open[question.id] = question
            self.seen.append(question)

    def kept(self, decision):
        there, to = (self.given, self.open) if decision.undo else (self.open, self.given)
        to[decision.question] = there.pop(decision.question)
        self.count += 1

    def word(self, question, rng):
        if rng.random() < 0.1:
            return Comparison(None, "skip")
        one, two = map(int, question.answers)
        return Comparison.of(None if one == two else int(two > one))

    def collect(self):
        if self.count >= self.leave_after or not self.open:
            return []
        rng = random.Random(self.count)
        if self.given and rng.random() < self.undo:
            question = self.given[rng.choice(sorted(self.given))]
            return [Decision(question.id, FIRST, "ann", undo=True)]
        names = rng.sample(sorted(self.open), min(self.batch, len(self.open)))
        found = [Decision(name, self.word(self.open[name], rng), f"person {rng.randrange(3)}") for name in names]
        if self.batch > 1 and rng.random() < 0.5:  # and at once takes one back and decides again
            found += [found[0]._replace(undo=True), found[0]]
        return [*found, Decision("of another search", FIRST), found[0]]  # the last two count for nothing

    def describe(self):
        return {"kind": "crowd"}


def crowded(judge, folder=None, **options):
    options = {"max_judge_calls": 25, "parallel": 4, "max_calls": 500, **options}
    return trainer(Duels(candidates(5)), judge=judge, output_dir=None if folder is None else str(folder), **options)


@pytest.mark.parametrize("batch", [1, 3])
def test_people_answer_out_of_order_and_take_words_back(batch):
    judge = Crowd(batch=batch)
    one = crowded(judge)
    result = one.train()
    assert len(result.votes) == 25 == result.spent["judge_calls"]
    assert result.status == "budget"
    assert sorted(map(repr, one.optimizer.votes)) == sorted(map(repr, result.votes))
    assert one.optimizer.forgotten
    for vote in result.votes:
        assert vote.comparison in (truth(vote, items_of(one)), Comparison(None, "skip"))
        assert vote.by.startswith("person")
    assert len({question.id for question in judge.seen}) == len(judge.seen) == 25
    assert result.win_rate is None  # people are not asked for more than the search


@pytest.mark.parametrize("leave_after", [0, 1, 7, 16, 30])
def test_people_leave_and_come_back_to_the_same_search(tmp_path, leave_after):
    whole = crowded(Crowd(), tmp_path / "whole").train()
    model = Model()
    first = crowded(Crowd(leave_after=leave_after), tmp_path / "search")
    first.model = CallableGenerator(model)
    result = first.train()
    assert result.reason == ("the judge stopped" if len(result.votes) < 25 else "max_judge_calls=25")
    judge = Crowd()
    again = crowded(judge, tmp_path / "search").train()
    assert comparable(again) == comparable(whole)
    assert [vote.by for vote in again.votes] == [vote.by for vote in whole.votes]
    assert len({question.id for question in judge.seen}) == len(judge.seen)


def test_any_beginning_of_the_ledger_keeps_the_votes_in_it(tmp_path):
    crowded(Crowd(batch=3), tmp_path / "whole").train()
    lines = (tmp_path / "whole" / FILE).read_bytes().splitlines(keepends=True)
    for number, end in enumerate(random.Random(0).sample(range(1, len(lines)), 8)):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / FILE).write_bytes(b"".join(lines[:end]))
        one = crowded(Crowd(batch=2), folder)
        result = one.train()
        assert len(result.votes) == 25
        kept = [json.loads(line) for line in lines[:end] if b'"event"' in line]
        now = [json.loads(line) for line in (folder / FILE).read_bytes().splitlines() if b'"event"' in line]
        assert now[: len(kept)] == kept
        undone = {}
        for event in now:
            undone[event["question"]] = not event["undo"]
        assert sum(undone.values()) == 25


def test_at_most_parallel_questions_are_open_and_pending_ones_are_said():
    pending = []

    class Asks(Duels):
        def ask(self, n, pending_=(), services=None):
            pending.append((n, len(pending_)))
            return super().ask(n, pending_, services)

    class Counting(Crowd):
        def collect(self):
            most.append(len(self.open))
            return super().collect()

    most = []
    one = trainer(Asks(candidates(4)), judge=Counting(undo=0), max_judge_calls=12, parallel=3, leaders=0)
    assert len(one.train().votes) == 12
    assert max(most) == 3
    assert pending[0] == (3, 0)
    assert set(pending[1:]) == {(1, 2)}


def test_the_search_ends_when_nothing_is_open_and_nothing_more_asked_for():
    result = crowded(Crowd(), max_judge_calls=None, max_steps=None, parallel=2)
    result.optimizer.rounds = 9
    found = result.train()
    assert (len(found.votes), found.reason) == (9, "the optimizer has nothing more to ask")
    crowd = Crowd(undo=0)
    steps = trainer(Duels(candidates(3)), judge=crowd, max_steps=5, parallel=4).train()
    assert (len(steps.votes), steps.reason) == (5, "max_steps=5")
    assert len(crowd.seen) == 5  # nobody is asked for what no step is left for


def test_a_person_at_the_terminal_leaves_undoes_and_comes_back(tmp_path):
    import io

    def run(keys):
        screen = io.StringIO()
        judge = TerminalJudge(io.StringIO("\n".join(keys) + "\n"), screen)
        options = {"max_judge_calls": 5, "output_dir": str(tmp_path), "max_calls": 100}
        return trainer(Duels(candidates(4)), judge=judge, **options).train(), screen.getvalue()

    first, _ = run(["1", "2", "u", "1", "q"])
    assert (len(first.votes), first.reason) == (2, "the judge stopped")
    second, screen = run(["u", "t", "s", "1", "2"])  # a word of before can be taken back
    assert len(second.votes) == 5
    assert second.votes[0] == first.votes[0]
    assert second.votes[1].comparison == Comparison(None, "tie")
    assert screen.count("Answer 1") == 5


# -- images


def test_images_are_drawn_once_kept_as_png_and_not_drawn_again(tmp_path):
    drawn, target = [], "a large red circle left of a small blue square"
    user = SimulatedUser(target)

    def draw(text, seed):
        drawn.append(text)
        return render(text, seed % 1000)

    def like(completions, **_):
        return [user.score(image) for image in completions]

    texts = ["a large red circle left of a small blue square", "two green stars", "a black cross on yellow"]

    def run(**options):
        optimizer = Duels([Candidate(text) for text in texts])
        rows = [{"prompt": f"{i}"} for i in range(8)]
        return trainer(
            *(optimizer, CallableImages(draw), rows),
            **{"judge": RewardJudge(like), "output_dir": str(tmp_path), "items": 4, "max_judge_calls": 15, **options},
        ).train()

    result = run(leaders=0)
    assert result.best.instruction == texts[0]
    assert len(drawn) == len(set(drawn)) == result.spent["calls"]
    files = sorted((tmp_path / "images").glob("*.png"))
    assert 0 < len(files) <= len(drawn)
    assert {path for vote in result.votes for path in vote.answers} <= {str(path) for path in files}
    before = list(drawn)
    assert comparable(run(leaders=0)) == comparable(result)
    assert drawn == before
    limited = run(leaders=0, max_calls=7, output_dir=None)
    assert limited.spent["calls"] <= 7


def test_images_cannot_write_prompts():
    def like(completions, **_):
        return [0.0] * len(completions)

    class Proposes(Duels):
        needs = ("proposer",)

    with pytest.raises(OptionError, match="needs proposer=: the model draws images"):
        trainer(Proposes(candidates(2)), CallableImages(render), judge=RewardJudge(like))
    with pytest.raises(OptionError, match="take an optimizer of preferences"):
        trainer(Listed(candidates(2)), CallableImages(render), reward_funcs=like)
