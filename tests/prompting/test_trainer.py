"""The loop with rewards: what is scored, told, kept apart and exported."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from transformers import TrainerCallback

from hfdataopt.errors import DataError, OptionError
from hfdataopt.generation import CallableGenerator
from hfdataopt.plugins import host
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.candidate import Candidate, Exemplar, Query
from hfdataopt.prompting.items import read_items
from hfdataopt.prompting.result import Leader, PromptResult
from hfdataopt.statistics import mean_interval, reward_interval

from .searches import CHAT_ROWS, ROWS, Listed, Model, Proposer, candidates, comparable, digit, digit_of, trainer

SHOTS = (Exemplar("two", "2"), Exemplar("three ", "3"))


def mean(candidate, items):
    put = ApplyPrompt.of(candidate)
    return sum(digit_of(put.render(item.prompt)) / 10 for item in items) / len(items)


# -- what is scored


@pytest.mark.parametrize("exemplars", [(), SHOTS], ids=["zero-shot", "exemplars"])
@pytest.mark.parametrize("rows", [ROWS, CHAT_ROWS, "system"], ids=["plain", "conversational", "system"])
def test_the_messages_that_were_scored_are_those_that_are_exported(rows, exemplars):
    if rows == "system":
        rows = [{**r, "prompt": [{"role": "system", "content": "Own rules."}, *r["prompt"]]} for r in CHAT_ROWS]
    model = Model()
    best = Candidate("Answer with a digit.", exemplars)
    one = trainer(Listed([best]), model, Dataset.from_list(rows), leaders=0)
    result = one.train()
    ids = [item.id for item in one.split.items]
    exported = Dataset.from_list([rows[id_] for id_ in ids]).map(one.apply_prompt)
    assert model.given == exported["prompt"][:]
    assert exported["answer"][:] == [rows[id_]["answer"] for id_ in ids]
    assert result.best == best
    assert result.leaders[0].score == pytest.approx(mean(best, one.split.items))
    assert one.best_prompt == "Answer with a digit."


def test_all_candidates_meet_the_same_items_in_the_same_order():
    model, three = Model(), candidates(3)
    one = trainer(Listed(three), model, leaders=0)
    result = one.train()
    items = [item.id for item in one.split.items]
    assert [list(trial.items) for trial in result.trials] == [items] * 3
    expected = [ApplyPrompt.of(c).render(item.prompt) for c in three for item in one.split.items]
    assert model.given == expected
    for trial in result.trials:
        put = ApplyPrompt.of(trial.candidate)
        assert trial.rewards.tolist() == [digit_of(put.render(item.prompt)) / 10 for item in one.split.items]
        assert trial.answers == tuple(str(digit_of(put.render(item.prompt))) for item in one.split.items)


def test_items_that_were_scored_are_not_paid_twice():
    model, (one_, two) = Model(), candidates(2)
    asks = [Query(one_, 2), one_, one_, Query(two, 5), two, Query(two, 3)]
    result = trainer(Listed(asks), model, leaders=0).train()
    assert [len(trial.items) for trial in result.trials] == [2, 5, 5, 5, 5, 3]
    assert len(model.given) == result.spent["calls"] == 10
    assert len({json.dumps(prompt) for prompt in model.given}) == 10


def test_candidates_that_are_sent_alike_are_paid_once():
    model = Model()
    same = [Candidate("be", origin="a"), Candidate("be", origin="b")]
    twice = [{**row, "prompt": "the same"} for row in ROWS]
    assert trainer(Listed(same), model, leaders=0, parallel=2).train().spent["calls"] == 5
    model = Model()
    assert trainer(Listed(same), model, twice, leaders=0).train().spent["calls"] == 1
    assert model.given == ["be\n\nthe same"]


def test_items_may_be_asked_for_by_id_also_those_of_examples():
    def ids(rows):
        return [f"row {i}" for i in range(len(rows))]

    rows = [{**row, "row_id": name} for row, name in zip(ROWS, ids(ROWS), strict=True)]
    one = trainer(Listed([], roles=["examples"]), rows=rows, leaders=0)
    shown = one.split.examples[0]
    one.optimizer.asks = [Query(Candidate("be"), (shown.id, one.split.items[3].id)), Candidate("be")]
    result = one.train()
    assert result.trials[0].items == (shown.id, one.split.items[3].id)
    assert result.spent["calls"] == 6
    assert result.leaders[0].items == 5  # an example does not count towards the score
    assert result.leaders[0].score == pytest.approx(mean(Candidate("be"), one.split.items))


# -- minibatch, then all


def test_a_minibatch_first_and_the_rest_only_for_those_that_hold_up_against_the_best():
    many = candidates(12)
    one = trainer(Listed(many), leaders=0, items=8, minibatch_size=3)
    result = one.train()
    head = one.split.items[:3]
    best, expected = None, []
    for candidate in many:
        whole = best is None or mean(candidate, head) >= mean(best, head)
        expected.append(8 if whole else 3)
        if whole and (best is None or mean(candidate, one.split.items) > mean(best, one.split.items)):
            best = candidate
    assert [len(trial.items) for trial in result.trials] == expected
    assert set(expected) == {3, 8}
    assert result.spent["calls"] == sum(expected)
    assert result.best == best


def test_a_minibatch_is_refused_where_the_optimizer_chooses_the_items():
    names = [one.name for one in host().all_components() if one.kind == "optimizer"]
    assert {"random", "instinct", "apohf"} <= set(names)
    for name in names:
        with pytest.raises(
            OptionError, match=f"minibatch_size=2 has no effect, since optimizer '{name}' chooses the items"
        ):
            trainer(name, minibatch_size=2)


def test_a_query_with_its_own_items_is_not_cut_to_the_minibatch():
    (one_,) = candidates(1)
    result = trainer(Listed([Query(one_, 4)]), leaders=0, minibatch_size=2).train()
    assert len(result.trials[0].items) == 4


# -- the end


def test_the_leaders_are_scored_again_on_fresh_items_with_an_interval():
    one = trainer(Listed(candidates(6)), max_calls=60, leaders=3, final_share=0.5)
    result = one.train()
    assert [leader.fresh_items for leader in result.leaders] == [10, 10, 10]
    assert result.spent["calls"] == 6 * 5 + 30
    fresh = one.split.fresh[:10]
    for leader in result.leaders:
        put = ApplyPrompt.of(leader.candidate)
        rewards = np.array([digit_of(put.render(item.prompt)) / 10 for item in fresh])
        assert leader.fresh == pytest.approx(rewards.mean())
        half = 2.262 * rewards.std(ddof=1) / np.sqrt(10)
        assert (leader.low, leader.high) == pytest.approx((rewards.mean() - half, rewards.mean() + half), abs=1e-3)
    pooled = [(leader.score * 5 + leader.fresh * 10) / 15 for leader in result.leaders]
    assert pooled == sorted(pooled, reverse=True)
    assert result.best == result.leaders[0].candidate
    top = sorted(candidates(6), key=lambda c: -mean(c, one.split.items))[:3]
    assert {leader.candidate for leader in result.leaders} == set(top)


@pytest.mark.parametrize("wrong", [0, 1, 4, 12])
def test_the_interval_of_rewards_that_are_0_or_1_stays_within_them(wrong):
    """Wilson's limits p are those that solve (mean - p)^2 = z^2 p (1 - p) / n."""
    rewards = [0.0] * wrong + [1.0] * (12 - wrong)
    mean, low, high = reward_interval(rewards)
    assert mean == (12 - wrong) / 12
    z = 1.96**2 / 12
    expected = np.roots([1 + z, -(2 * mean + z), mean**2])
    assert (low, high) == pytest.approx(sorted(np.clip(expected.real, 0, 1)), abs=1e-9)
    assert 0 <= low < high <= 1
    graded = [0.5, *rewards]
    assert reward_interval(graded) == mean_interval(graded)
    result = trainer(
        Listed(candidates(1)), max_calls=25, leaders=1, final_items=12,
        reward_funcs=lambda completions, **_: [1.0] * len(completions),
    ).train()  # fmt: skip
    assert (result.leaders[0].fresh, result.leaders[0].high) == (1, 1)
    assert result.leaders[0].low == pytest.approx(12 / (12 + 1.96**2))


def test_leaders_that_the_budget_does_not_score_again_are_said_and_come_last(capsys):
    def search(**limits):
        model = CallableGenerator(Model(), max_new_tokens=1)
        return trainer(Listed(candidates(6)), model=model, **limits).train()

    spent = search(leaders=0).spent["tokens"]
    result = search(
        final_items=4, max_tokens=int(spent) + 250
    )  # one leader's four items take about 200, set aside with their most
    again = [leader.fresh_items for leader in result.leaders]
    assert again == [4] * again.count(4) + [0] * again.count(0)
    assert 0 < again.count(4) < 3
    assert result.spent["tokens"] <= spent + 250
    assert f"{again.count(4)} of 3 leaders were scored again on fresh items" in capsys.readouterr().err


def test_fresh_items_are_those_of_the_evaluation_dataset_where_there_is_one():
    model = Model()
    other = [{"prompt": f"other {i}"} for i in range(9)]
    one = trainer(Listed(candidates(2)), model, leaders=2, final_items=4, eval_dataset=other)
    result = one.train()
    fresh = model.given[10:]
    assert len(fresh) == 8
    assert all("other" in prompt for prompt in fresh)
    assert [leader.fresh_items for leader in result.leaders] == [4, 4]
    assert not any("other" in prompt for prompt in model.given[:10])


def test_rows_of_both_datasets_keep_apart_though_their_positions_are_the_same():
    one = trainer(Listed(candidates(1)), eval_dataset=ROWS)
    ids = [item.id for item in (*one.split.items, *one.split.examples, *one.split.fresh)]
    assert len(set(ids)) == len(ids)


def test_without_fresh_rows_the_scores_stand_alone():
    one = trainer(Listed(candidates(2)), rows=ROWS[:5], max_calls=10)
    result = one.train()
    assert [leader.fresh for leader in result.leaders] == [None, None]
    assert result.spent["calls"] == 10


def test_start_instructions_are_tried_first_and_none_is_a_start_too():
    model = Model()
    one = trainer(Listed(candidates(1)), model, start=["mine", "yours"], leaders=0)
    result = one.train()
    assert [trial.candidate.instruction for trial in result.trials] == ["mine", "yours", "instruction 0"]
    assert [trial.candidate.origin for trial in result.trials] == ["start", "start", ""]
    assert one.optimizer.told[0] == result.trials[:2]


# -- order and seeds


@pytest.mark.parametrize("name", ["random", "ape", "racing"])
def test_a_seed_gives_the_same_calls_and_another_one_others(name):
    def run(seed):
        model, proposer = Model(), Proposer()
        one = trainer(name, model, proposer=proposer, seed=seed, max_calls=60)
        return model.given, proposer.given, comparable(one.train())

    first = run(0)
    assert run(0) == first
    assert run(1)[0] != first[0]
    assert run(1)[1] != first[1]


def test_parallel_changes_the_batches_not_the_outcome():
    results, models = [], []
    for parallel in (1, 4):
        models.append(Model())
        results.append(trainer(Listed(candidates(9)), models[-1], parallel=parallel, max_calls=70).train())

    assert models[0].given == models[1].given
    assert [t.score for t in results[0].trials] == [t.score for t in results[1].trials]
    assert results[0].leaders == results[1].leaders
    assert len(results[0].history) == 9
    assert len(results[1].history) == 3


def test_results_reach_the_optimizer_in_the_order_in_which_it_asked():
    import asyncio

    async def slow(prompts):
        """Later calls come back earlier."""
        slow.calls += 1
        await asyncio.sleep(0.05 / slow.calls)
        return [str(digit_of(prompt)) for prompt in prompts]

    slow.calls = 0
    from hfdataopt.generation import CallableGenerator

    model = CallableGenerator(slow, batch_size=1, concurrency=8)
    optimizer = Listed(candidates(8))
    trainer(optimizer, model, parallel=4, leaders=0).train()
    told = [[trial.candidate.instruction for trial in trials] for trials in optimizer.told]
    assert told == [[f"instruction {i}" for i in range(4)], [f"instruction {i}" for i in range(4, 8)]]


# -- rewards


def test_several_functions_with_weights_none_and_async():
    import asyncio

    async def later(completions, **_):
        await asyncio.sleep(0)
        return [1.0 for _ in completions]

    def sometimes(completions, level, **_):
        return [None if value == 0 else float(value) for value in level]

    one = trainer(
        Listed(candidates(1)), reward_funcs=[digit, later, sometimes], reward_weights=[1.0, 0.5, -2.0], leaders=0
    )
    (trial,) = one.train().trials
    put = ApplyPrompt("instruction 0")
    expected = [digit_of(put.render(i.prompt)) / 10 + 0.5 - 2 * (i.columns["level"] or 0) for i in one.split.items]
    assert trial.rewards.tolist() == pytest.approx(expected)


def test_items_without_any_reward_do_not_count():
    def picky(completions, level, **_):
        return [None if value == 0 else 0.5 for value in level]

    one = trainer(Listed(candidates(2)), reward_funcs=picky, max_calls=40, items=9)
    result = one.train()
    levels = [item.columns["level"] for item in one.split.items]
    assert np.isnan(result.trials[0].rewards).tolist() == [level == 0 for level in levels]
    assert result.leaders[0].score == 0.5
    assert result.leaders[0].items == sum(level != 0 for level in levels)
    json.loads(json.dumps(result.to_json(), allow_nan=False))


def test_a_candidate_that_no_function_has_an_opinion_on_is_told_and_is_no_leader(tmp_path):
    def never(prompts, completions, **_):
        return [None if "0" in prompt.split("\n")[0] else 1.0 for prompt in prompts]

    one = trainer(Listed(candidates(2)), reward_funcs=never, output_dir=str(tmp_path))
    result = one.train()
    assert np.isnan(result.trials[0].score)
    assert [leader.candidate.instruction for leader in result.leaders] == ["instruction 1"]
    json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_no_opinion_at_all_is_said():
    with pytest.raises(DataError, match=r"none of the 2 trials has a reward .*returned None for every answer"):
        trainer(Listed(candidates(2)), reward_funcs=lambda completions, **_: [None] * len(completions)).train()


# -- what is written and told


class Watch(TrainerCallback):
    def __init__(self, stop_at=None):
        self.events, self.stop_at = [], stop_at

    def _note(self, name, args, state, control, **keywords):
        self.events.append((name, state.global_step, sorted(keywords)))
        return control

    def on_train_begin(self, args, state, control, **keywords):
        self._note("begin", args, state, control, **keywords)

    def on_log(self, args, state, control, logs=None, **keywords):
        self.events.append(("log", state.global_step, logs["calls"]))

    def on_step_end(self, args, state, control, trials=None, best_prompt=None, **keywords):
        self.events.append(("step", state.global_step, [t.candidate.instruction for t in trials], best_prompt))
        if state.global_step == self.stop_at:
            control.should_training_stop = True
        return control

    def on_evaluate(self, args, state, control, metrics=None, **keywords):
        self.events.append(("evaluate", state.global_step, metrics["eval_calls"]))

    def on_train_end(self, args, state, control, **keywords):
        self._note("end", args, state, control, **keywords)


def test_callbacks_hear_of_each_step_and_may_stop_the_search():
    watch = Watch(stop_at=2)
    one = trainer(Listed(candidates(5)), callbacks=[watch], logging_steps=1, leaders=0)
    result = one.train()
    names = [event[0] for event in watch.events]
    assert names == ["begin", "log", "step", "log", "step", "evaluate", "end"]
    assert watch.events[2][2] == ["instruction 0"]
    assert watch.events[4][2] == ["instruction 1"]
    assert watch.events[4][3] == one.best_prompt
    assert watch.events[-2][2] == 10
    assert (result.status, result.reason) == ("finished", "a callback stopped it")
    assert trainer(Listed(candidates(1)), callbacks=[Watch]).callbacks[0].events == []


def test_the_hook_hears_of_each_trial():
    heard = []

    class Listener:
        from hfdataopt.hookspecs import hookimpl

        @hookimpl
        def after_trial(self, trial):
            heard.append(trial.candidate.instruction)

    listener = Listener()
    host().manager.register(listener)
    try:
        trainer(Listed(candidates(3)), leaders=0).train()
    finally:
        host().manager.unregister(listener)
    assert heard == [f"instruction {i}" for i in range(3)]


def test_a_table_of_prompts_per_step(tmp_path):
    one = trainer(Listed(candidates(3)), output_dir=str(tmp_path), parallel=2, leaders=0)
    result = one.train()
    files = sorted((tmp_path / "prompts").iterdir())
    assert [file.name for file in files] == ["prompts_00001.parquet", "prompts_00002.parquet"]
    table = load_dataset("parquet", data_files=[str(f) for f in files], split="train", cache_dir=str(tmp_path / "c"))
    assert table["instruction"][:] == [f"instruction {i}" for i in range(3)]
    assert table["score"][:] == [trial.score for trial in result.trials]
    assert table["step"][:] == [1, 1, 2]


def test_the_prompt_is_kept_beside_the_result(tmp_path):
    best = Candidate("Answer with a digit.", SHOTS)
    one = trainer(Listed([best]), output_dir=str(tmp_path / "a"))
    result = one.train()
    assert ApplyPrompt.load(tmp_path / "a") == one.apply_prompt == ApplyPrompt.of(best)
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == json.loads(json.dumps(result.to_json()))
    assert one.save_model(str(tmp_path / "b")) == tmp_path / "b" / "prompt.json"
    assert ApplyPrompt.load(tmp_path / "b") == one.apply_prompt


def test_before_the_search_there_is_no_prompt(tmp_path):
    one = trainer(Listed(candidates(1)))
    for ask in (
        lambda: one.best_prompt,
        lambda: one.apply_prompt,
        lambda: one.save_model(str(tmp_path)),
        one.preferences,
    ):
        with pytest.raises(OptionError, match="call train"):
            ask()
    one.train()
    with pytest.raises(OptionError, match="needs a folder"):
        one.save_model()


def test_it_writes_nothing_without_an_output_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(Listed(candidates(2))).train()
    assert list(tmp_path.iterdir()) == []


def test_one_optimizer_and_one_trainer_run_several_searches():
    optimizer = Listed(candidates(3))
    one = trainer(optimizer)
    first = comparable(one.train())
    assert comparable(one.train()) == first
    assert optimizer.starts == 2


def test_items_of_a_large_dataset_are_a_sample_of_it():
    from hfdataopt.prompting import items
    from hfdataopt.prompting.config import PromptConfig

    data = Dataset.from_dict({"prompt": [f"p{i}" for i in range(items.MOST_ROWS + 5000)]})
    found = read_items(data, PromptConfig(), "train_dataset")
    assert len(found) == items.MOST_ROWS
    assert max(one.id for one in found) > items.MOST_ROWS + 4000
    assert all(one.prompt == f"p{one.id}" for one in found[::997])


# -- results that mean less than they seem to


def test_an_optimizer_that_forgets_what_it_was_told_is_named():
    class Forgets(Listed):
        def tell(self, trials):
            pass

    with pytest.raises(DataError, match=r"Forgets was told 2 trials and remembers none: its tell\(\) must call super"):
        trainer(Forgets(candidates(2))).train()


def test_rewards_that_are_all_the_same_are_said():
    result = trainer(Listed(candidates(3)), reward_funcs=lambda completions, **_: [1.0] * len(completions)).train()
    assert result.caveats() == ["every answer was rewarded with 1, so nothing tells one prompt from another"]
    assert "note: every answer" in str(result)
    assert trainer(Listed(candidates(3))).train().caveats() == []


def test_a_best_that_is_no_better_than_the_prompt_of_before_is_said():
    found = {}
    for score in (0.9, 0.5, 0.1):
        before, better = Leader(Candidate("before", origin="start"), 0.5, 5, 0.5, 0.4, 0.6, 5), Candidate("better")
        best = Leader(better, 0.9, 5, score, score - 0.1, score + 0.1, 5)
        found[score] = PromptResult(better, "budget", "", [best, before]).caveats()
    assert found[0.9] == []
    assert found[0.5] == found[0.1] == ["on the fresh items the best is no better than the prompt of before"]
    near = Leader(better, 0.9, 5, 0.55, 0.45, 0.65, 5)
    assert "within the interval" in PromptResult(better, "budget", "", [near, before]).caveats()[0]


def test_the_prompt_of_before_may_be_one_text():
    one = trainer(Listed([]), start="Answer.")
    assert one.args.start == ["Answer."]
    one.train()
    assert one.best_prompt == "Answer."


def test_no_fresh_row_is_said():
    assert "no row is left to score the leaders on again" in trainer(Listed(candidates(1)), rows=ROWS[:5]).plan()
    assert "no row is left" not in trainer(Listed(candidates(1))).plan()


def test_rewards_without_an_opinion_are_said_at_the_first(capsys):
    with pytest.raises(DataError, match="none of the 2 trials has a reward"):
        trainer(Listed(candidates(2)), reward_funcs=lambda completions, **_: [None] * len(completions)).train()
    assert "had no opinion (None) on any of the first answers" in capsys.readouterr().err
