"""No limit is ever gone over, not even by one; the plan that is printed is what is made."""

import asyncio
import itertools
import json
import math
import re
import time

import pytest

from hfdataopt.errors import DataError, MissingDependencyError, OptionError
from hfdataopt.generation import CallableGenerator, EndpointGenerator, endpoint
from hfdataopt.plugins import host
from hfdataopt.prompting.budget import Budget
from hfdataopt.prompting.candidate import Candidate
from hfdataopt.prompting.judges import ModelJudge, RewardJudge
from hfdataopt.prompting.ledger import FILE
from hfdataopt.prompting.optimizer import Task
from hfdataopt.prompting.pool_optimizer import PoolOptimizer
from hfdataopt.prompting.rounds import RoundsOptimizer
from hfdataopt.prompting.tasks.chain_of_thought import ChainOfThought
from hfdataopt.prompting.white_box import WhiteBox
from hfdataopt_plugins.optimizers.apohf import Apohf

from ..generation.test_endpoint import Server
from ..tiny import llama, tokenizer
from .searches import Duels, Listed, Model, Proposer, candidates, comparable, digit, digit_of, trainer

TOO_SMALL = (OptionError, DataError)


class Asynchronous:
    """As the model, eight calls at a time; keeps what was asked for and when."""

    def __init__(self, seconds=0.0):
        self.given, self.began, self.seconds, self.now, self.most = [], [], seconds, 0, 0

    async def __call__(self, prompt):
        self.began.append(time.monotonic())
        self.given.append(prompt)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        return str(digit_of(prompt))


def many(function, most=4):
    return CallableGenerator(function, batched=False, concurrency=8, max_new_tokens=most)


# -- calls


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("minibatch", [None, 2])
def test_calls(parallel, minibatch):
    fewest = 2 if minibatch else 5
    for limit in range(0, 64, 3):
        model = Model()
        one = trainer(
            Listed(candidates(20)), model, max_calls=limit, parallel=parallel, minibatch_size=minibatch, leaders=2
        )
        try:
            result = one.train()
        except TOO_SMALL:
            assert limit < fewest
            assert len(model.given) == 0
            continue
        assert len(model.given) == result.spent["calls"] <= limit
        assert limit - len(model.given) < 5 + 2  # and what is left does not pay for another
        assert result.status == "budget" or len(result.trials) == 20


@pytest.mark.parametrize("name", ["random", "ape", "racing"])
def test_calls_and_proposer_calls(name):
    for limit, proposals in [(c, p) for c in range(0, 50, 3) for p in (0, 1, 4, 9, None)]:
        model, proposer = Model(), Proposer()
        one = trainer(name, model, proposer=proposer, max_calls=limit, max_proposer_calls=proposals)
        try:
            spent = one.train().spent
        except TOO_SMALL:
            assert len(model.given) == 0
            continue
        assert len(model.given) == spent["calls"] <= limit
        assert len(proposer.given) == spent["proposer_calls"] <= (math.inf if proposals is None else proposals)


def test_the_model_counts_apart_when_it_proposes_too():
    model = Model()
    one = trainer(Listed([3, *candidates(2)], roles=["proposer"]), model, max_calls=12, max_proposer_calls=2, leaders=0)
    spent = one.train().spent
    assert (spent["calls"], spent["proposer_calls"]) == (10, 2)
    assert len(model.given) == 12


def test_a_completion_that_takes_two_calls_counts_as_two():
    def length(completions, **_):
        return [float(len(completion)) for completion in completions]

    for limit in range(0, 34):
        model = Model()
        thinking = ChainOfThought(CallableGenerator(model))
        one = trainer(Listed(candidates(4)), thinking, max_calls=limit, leaders=1, reward_funcs=length)
        try:
            spent = one.train().spent
        except TOO_SMALL:
            assert not model.given
            continue
        assert len(model.given) == spent["calls"] <= limit


def test_many_requests_at_a_time():
    for limit in range(5, 40, 3):
        model = Asynchronous()
        spent = trainer(Listed(candidates(9)), many(model), max_calls=limit, parallel=4, leaders=1).train().spent
        assert len(model.given) == spent["calls"] <= limit
        assert model.most > 1


def test_the_plan_is_what_is_made():
    for limit in range(9, 80, 7):
        one = trainer(Listed(candidates(40)), max_calls=limit, leaders=2)
        buys = re.search(r"max_calls=(\d+) buys (\d+) candidates on all 5 items(?:, (\d+) calls are kept)?", one.plan())
        result = one.train()
        assert int(buys[1]) == limit
        assert len(result.trials) == int(buys[2])
        assert sum(leader.fresh_items for leader in result.leaders) <= int(buys[3] or 0)
        if buys[3] and len(result.leaders) == 2:
            assert sum(leader.fresh_items for leader in result.leaders) == int(buys[3])


@pytest.mark.parametrize("limits", [{}, {"max_proposer_calls": 30}])
@pytest.mark.parametrize("name", [one.name for one in host().all_components() if one.kind == "optimizer"])
def test_the_plan_of_every_optimizer(name, limits):
    """What is asked of the proposer is said where there is one, and what methods in rounds and over pools know themselves."""
    kind = next(one.cls for one in host().all_components() if (one.kind, one.name) == ("optimizer", name))
    parts = {"proposer": Proposer(), "encoder": len, "white_box": WhiteBox(llama(), tokenizer(special=False))}
    try:
        one = trainer(name, **parts, max_calls=100, **limits)
        lines = one.plan().splitlines()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    proposals = "max_proposer_calls=30 buys 30 proposals" if limits else "no limit of proposals"
    assert (proposals in lines[1]) == ("proposer" in one.optimizer.needs)
    if issubclass(kind, RoundsOptimizer):
        least = int(re.match(r"a first round takes at least (\d+) calls: .", lines[2])[1])
        assert not hasattr(one.optimizer, "task")  # asking for the plan begins nothing
        one.optimizer.start(Task(one.split.items, one.split.examples, calls=least))
        assert one.optimizer.least_calls() <= least <= 100
    elif issubclass(kind, PoolOptimizer):
        assert re.match(
            r"new candidates are tried on \d of 5 items, at most about \d+ of them; \d+ calls take", lines[2]
        )
    else:
        assert len(lines) == 2


def test_the_plan_counts_the_answers_that_are_sampled():
    def search(limit):
        options = {"judge": RewardJudge(digit), "encoder": lambda texts: [[len(text), 1] for text in texts]}
        model = CallableGenerator(lambda prompts: [str(next(numbers) % 10) for _ in prompts])
        return trainer(Apohf(arms="responses", samples=3), model, max_calls=limit, max_judge_calls=12, **options)

    numbers = itertools.count()
    assert "15 calls sample the answers to choose among" in search(15).plan()
    assert search(15).train().spent["calls"] == 15
    with pytest.raises(OptionError, match=r"max_calls=14 is too small for one round.* needs at least 15"):
        search(14).train()
    assert next(numbers) == 15


def test_the_plan_is_printed_before_anything_is_asked(capsys):
    def model(prompts):
        said.append(capsys.readouterr().err)
        return ["1"] * len(prompts)

    said = []
    one = trainer(Listed(candidates(1)), model, max_calls=10, max_tokens=None, max_seconds=60)
    one.train()
    assert all(line in said[0] for line in one.plan().splitlines())
    assert "max_seconds=60" in said[0]
    assert "; 1 candidates tried, " in str(one.result)


@pytest.mark.parametrize("start", [[], ["mine"]])
def test_a_budget_too_small_for_a_round_says_so(start):
    model = Model()
    with pytest.raises(TOO_SMALL, match=r"max_calls=4 is too small for one round.*least 5|budget was too small"):
        trainer(Listed(candidates(2)), model, max_calls=4, start=start, leaders=0).train()
    assert model.given == []
    with pytest.raises(OptionError, match=r"max_judge_calls=1 is too small.*one vote needs at least 2"):
        trainer(Duels(candidates(2)), model, judge=ModelJudge(model), max_judge_calls=1).train()
    assert model.given == []


# -- tokens, money, time


def tokens_of(prompts, answers=1):
    """What a function's calls cost: bytes and 16 per prompt, bytes per answer."""
    return sum(len(prompt.encode()) + 16 + answers for prompt in prompts)


@pytest.mark.parametrize("limited", ["max_tokens", "max_cost"])
@pytest.mark.parametrize("parallel", [1, 4])
def test_tokens_and_money(limited, parallel):
    for limit in range(0, 1500, 97):
        model = Asynchronous()
        limits = {"max_tokens": limit} if limited == "max_tokens" else {"max_cost": limit / 1e6}
        one = trainer(
            *(Listed(candidates(9)), many(model, most=30)),
            **limits,
            prices={"model": [1, 1]},
            parallel=parallel,
            leaders=1,
        )
        try:
            result = one.train()
        except DataError:
            assert limit < 5 * (tokens_of(["instruction 0\n\nquestion 10"]) + 30)
            assert tokens_of(model.given) <= limit
            continue
        assert result.spent["tokens"] == tokens_of(model.given) <= limit
        assert result.spent["cost"] == pytest.approx(tokens_of(model.given) / 1e6)
        if result.status == "budget":  # what is left does not pay for a longest answer
            assert limit - result.spent["tokens"] < tokens_of(["instruction 0\n\nquestion 10"]) + 30


def test_what_was_paid_for_in_full_is_told_though_the_tokens_end_in_the_same_round():
    model = Asynchronous()
    one = trainer(Listed(candidates(4)), many(model), max_tokens=600, parallel=4, leaders=0)
    result = one.train()
    assert result.status == "budget"
    assert 1 <= len(result.trials) < 4
    assert all(len(trial.items) == 5 for trial in result.trials)


def test_a_limit_of_tokens_needs_a_model_that_says_how_long_answers_are():
    model = Model()
    for limits in ({"max_tokens": 1000}, {"max_cost": 1.0, "prices": {"model": [1, 1]}}):
        with pytest.raises(OptionError, match=r"the model does not say.*CallableGenerator"):
            trainer(Listed(candidates(1)), model, **limits)
    bounded = CallableGenerator(model, max_new_tokens=4)
    with pytest.raises(OptionError, match="the proposer does not say"):
        trainer(Listed([1], roles=["proposer"]), bounded, proposer=Proposer(), max_tokens=1000)
    with pytest.raises(OptionError, match="the judge does not say"):
        trainer(Duels(candidates(2)), bounded, judge=ModelJudge(Model()), max_tokens=1000)
    assert model.given == []


def test_money_counts_what_the_model_writes_as_a_proposer_and_every_role_needs_a_price():
    model = CallableGenerator(Model(), max_new_tokens=4)
    limits = {"max_cost": 0.01, "prices": {"model": [10, 10]}, "leaders": 0}
    result = trainer(Listed([4, *candidates(2)], roles=["proposer"]), model, **limits).train()
    assert result.spent["proposer_calls"] == 4
    assert result.spent["cost"] == pytest.approx(result.spent["tokens"] * 10 / 1e6)
    other = CallableGenerator(Proposer(), max_new_tokens=4)
    with pytest.raises(OptionError, match=r"max_cost needs prices\['proposer'\]; \[0, 0\] where"):
        trainer(Listed([1], roles=["proposer"]), model, proposer=other, **limits)
    with pytest.raises(OptionError, match=r"max_cost needs prices\['judge'\]"):
        trainer(Duels(candidates(2)), model, judge=ModelJudge(model), **limits)


def test_nothing_is_sent_after_the_time_is_up_and_a_restart_finds_the_same(tmp_path):
    def run(model):
        options = {"max_seconds": 0.4, "leaders": 1, "output_dir": str(tmp_path)}
        return trainer(Listed(candidates(400)), many(model), **options).train()

    model = Asynchronous(seconds=0.02)
    began = time.monotonic()
    result = run(model)
    assert (result.status, result.reason) == ("budget", "max_seconds=0.4")
    assert 0 < len(result.trials) < 400
    assert max(model.began) < began + 0.4 + 2  # a busy machine is late; all of them would take 8 s or more
    again = Asynchronous()
    assert [t.candidate for t in run(again).trials] == [t.candidate for t in result.trials]
    assert again.given == []
    # A killed run leaves no line about its time.
    file = tmp_path / FILE
    file.write_text("".join(line for line in file.open() if '"kind": "seconds"' not in line))
    assert run(again).seconds > 0.35
    assert again.given == []


# -- an endpoint


def counted(body):
    said = body["messages"][-1]["content"]
    usage = {"prompt_tokens": len(said.split()) + 3, "completion_tokens": 2}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": str(digit_of(said))}}
    return 200, {"Content-Type": "application/json"}, json.dumps({"choices": [choice], "usage": usage}).encode()


@pytest.fixture
def server(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()

    def behave(number, body):
        time.sleep(0.01)
        return counted(body)

    made.behave = behave
    yield made
    made.close()


@pytest.mark.parametrize("limits", [{"max_calls": 23}, {"max_calls": 24, "max_tokens": 500}, {"max_tokens": 300}])
def test_a_server_gets_no_request_too_many(server, limits):
    model = EndpointGenerator("m", base_url=server.url, concurrency=6, max_new_tokens=8, temperature=0.0)
    result = trainer(Listed(candidates(9)), model, **limits, parallel=3, leaders=1).train()
    assert server.most > 1
    assert len(server.requests) == result.spent["calls"] <= limits.get("max_calls", math.inf)
    said = [request["body"]["messages"][-1]["content"] for request in server.requests]
    assert result.spent["prompt_tokens"] == sum(len(text.split()) + 3 for text in said)
    assert result.spent["completion_tokens"] == 2 * len(said)
    assert result.spent["tokens"] <= limits.get("max_tokens", math.inf)
    assert result.status == "budget"


@pytest.mark.parametrize("retry_after", [None, "0.2", "3"])
def test_no_request_is_tried_again_after_the_time_is_up(server, monkeypatch, retry_after):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.05)
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    server.behave = lambda number, body: counted(body) if number < 10 else (429, headers, b"{}")
    model = EndpointGenerator("m", base_url=server.url, concurrency=4, max_new_tokens=8, temperature=0.0, retries=20)
    began = time.monotonic()
    result = trainer(Listed(candidates(9)), model, max_seconds=1.0, parallel=3, leaders=1).train()
    assert (result.status, result.reason) == ("budget", "max_seconds=1")
    assert len(server.requests) > 10
    assert max(request["at"] for request in server.requests) < began + 1.0 + 0.1
    assert time.monotonic() < began + 1.5  # nor is waited for what may not be sent
    assert 1 <= len(result.trials) <= 2


# -- votes


@pytest.mark.parametrize("parallel", [1, 3])
def test_judge_calls(parallel):
    for limit in range(0, 22):
        judge = Model()
        one = trainer(
            *(Duels(candidates(3)), Model()),
            judge=ModelJudge(CallableGenerator(lambda prompts, judge=judge: ["A"] * len(judge(prompts)))),
            max_judge_calls=limit,
            parallel=parallel,
        )
        try:
            result = one.train()
        except OptionError:
            assert limit < 2
            assert judge.given == []
            continue
        buys = re.search(r"buys (\d+) votes of the search(?:, (\d+) calls are kept)?", one.plan())
        assert len(result.votes) == int(buys[1])
        assert len(judge.given) == result.spent["judge_calls"] <= limit
        assert len(judge.given) <= 2 * len(result.votes) + int(
            buys[2] or 0
        )  # nobody is asked about the same answer twice


@pytest.mark.parametrize("parallel", [1, 4])
def test_answers_of_duels(parallel):
    for limit in range(0, 30):
        model = Model()
        one = trainer(
            Duels(candidates(4), rounds=20), model, judge=RewardJudge(digit), max_calls=limit, parallel=parallel
        )
        result = one.train()
        assert len(model.given) == result.spent["calls"] <= limit
        assert limit - len(model.given) < 2 or len(result.votes) == 20


def test_judges_that_are_models_stay_within_the_tokens():
    def verdicts(prompts):
        given.extend(prompts)
        return ["A"] * len(prompts)

    for limit in range(1000, 9000, 900):
        given, model = [], Asynchronous()
        judge = ModelJudge(CallableGenerator(verdicts, max_new_tokens=3))
        result = trainer(
            Duels(candidates(3)), many(model), judge=judge, max_tokens=limit, max_judge_calls=50, parallel=2
        ).train()
        asked = sum(16 + len(message["content"].encode()) for prompt in given for message in prompt) + len(given)
        assert result.spent["tokens"] == tokens_of(model.given) + asked <= limit
        assert result.spent["judge_calls"] == len(given)


# -- the counter itself


def test_what_is_under_way_counts_with_its_most():
    budget = Budget(tokens=100, cost=1.0, prices={"model": (10_000, 20_000)})
    assert budget.reserve("model", 10, 20)  # 0.1 + 0.4
    assert not budget.reserve("model", 10, 61)
    assert not budget.reserve("model", 11, 20)  # 0.51 more
    assert budget.reserve("proposer", 30, 40)  # has no price
    assert not budget.reserve("proposer", 1, 0)
    budget.release("proposer", 30, 40)
    budget.release("model", 10, 20)
    budget.book("model", 10, 5)
    assert (budget.spent.tokens, budget.spent.cost, budget.spent.calls) == (15, pytest.approx(0.2), 1)
    assert budget.reserve("model", 10, 35)
    assert budget.out_of() == ""
    budget.book("model", 85, 0)
    assert budget.out_of() == "max_tokens=100"
    assert Budget(seconds=0.0).out_of() == "max_seconds=0"
    assert Budget(seconds=0.0).out_of(time=False) == ""
    assert Budget(seconds=10, before=11).out_of() == "max_seconds=10"
    assert Budget(calls=3).left("model") == 3
    assert Budget().left("judge") == math.inf


@pytest.mark.parametrize("limits", [{"max_tokens": 36}, {"max_calls": 7}, {"max_seconds": 0.0}, {}])
def test_likelihoods_of_a_local_model_stay_within_the_limits_and_are_kept(tmp_path, limits):
    rows = [{"prompt": text, "answer": "fine"} for text in ("the film was", "it was", "the plot", "very", "and it")]
    found = []

    class Likely(Listed):
        def ask(self, n, pending=(), services=None):
            asked = super().ask(n, pending, services)
            if asked:
                outputs = [item.output for item in self.task.items]
                found.append(services.log_likelihood(asked, self.task.items, outputs).tolist())
            return asked

    def run():
        options = {"items": 3, "leaders": 0, "max_new_tokens": 2, "output_dir": str(tmp_path), **limits}
        one = trainer(
            *(Likely([Candidate("the scene"), Candidate("lovely")]), llama(), rows),
            processing_class=tokenizer(special=False),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            **options,
        )
        return one.train()

    try:
        result = run()
    except DataError:
        assert "max_seconds" in limits
        return
    assert result.spent["tokens"] <= limits.get("max_tokens", math.inf)
    assert result.spent["calls"] <= limits.get("max_calls", math.inf)
    first = list(found)
    assert (len(first) == 2) == (not limits)
    again = run()
    assert found == first * 2
    assert comparable(again) == comparable(result)
