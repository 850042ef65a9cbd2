"""A search that is killed at any moment and begun again ends as one that was never killed, and asks for no answer twice."""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter

import pytest

from hfdataopt.errors import GenerationError, HfDataOptError
from hfdataopt.generation import CallableGenerator, EndpointGenerator, endpoint
from hfdataopt.prompting.judges import ModelJudge, SimulatedJudge
from hfdataopt.prompting.ledger import FILE
from hfdataopt.prompting.result import FILE as RESULT
from hfdataopt.prompting.tasks.chain_of_thought import NUMBER, ChainOfThought

from ..generation.test_endpoint import Server, failing
from .searches import Duels, Listed, Model, Proposer, candidates, comparable, digit, digit_of, trainer

BATCH = 4  # requests under way at a time
KILLS = 8


class Logged(Model):
    """A model of which each call is a line in a file, and takes a moment."""

    def __init__(self, file, seconds=0.004):
        super().__init__()
        self.file, self.seconds = file, seconds

    def __call__(self, prompts):
        with self.file.open("a") as stream:
            stream.write("".join(f"{prompt!r}\n" for prompt in prompts))
        time.sleep(self.seconds)
        return super().__call__(prompts)


class LoggedProposer(Proposer):
    """Proposals that depend on how often the same was asked, as draws do, and not on the process."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def __call__(self, prompts):
        with self.file.open("a") as stream:
            stream.write("".join(f"proposal {prompt!r}\n" for prompt in prompts))
        time.sleep(0.004)
        return [f"<instruction>be {digit_of(prompt)} {len(str(prompt))}</instruction>" for prompt in prompts]


def verdict(prompts):
    """A model as a judge: the answer of more characters in reverse order, whatever that is; it depends on the texts only."""
    return ["A" if digit_of(prompt) < 5 else "tie" if digit_of(prompt) == 5 else "B" for prompt in prompts]


class LoggedJudge:
    def __init__(self, file):
        self.file = file

    def __call__(self, prompts):
        with self.file.open("a") as stream:
            stream.write("".join(f"verdict {prompt!r}\n" for prompt in prompts))
        time.sleep(0.004)
        return verdict(prompts)


def with_rewards(folder, log):
    model = CallableGenerator(Logged(log), batch_size=BATCH)
    return trainer(
        *(Listed(candidates(12)), model),
        output_dir=str(folder),
        max_calls=80,
        minibatch_size=2,
        start=["mine"],
        parallel=2,
    )


def with_proposals(folder, log):
    return trainer(
        "ape",
        CallableGenerator(Logged(log), batch_size=BATCH),
        proposer=CallableGenerator(LoggedProposer(log), batch_size=BATCH),
        output_dir=str(folder),
        max_calls=70,
    )


def with_a_simulated_user(folder, log):
    return trainer(
        *(Duels(candidates(5)), CallableGenerator(Logged(log), batch_size=BATCH)),
        judge=SimulatedJudge(digit, scale=3.0, ties=0.2),
        output_dir=str(folder),
        max_judge_calls=30,
        parallel=2,
    )


def with_a_model_as_judge(folder, log):
    return trainer(
        *(Duels(candidates(4)), CallableGenerator(Logged(log), batch_size=BATCH, max_new_tokens=4)),
        judge=ModelJudge(CallableGenerator(LoggedJudge(log), batch_size=BATCH, max_new_tokens=4)),
        output_dir=str(folder),
        max_judge_calls=40,
        max_tokens=100_000,
        parallel=2,
    )


def with_two_calls(folder, log):
    return trainer(
        *(Listed(candidates(6)), ChainOfThought(CallableGenerator(Logged(log), batch_size=BATCH))),
        reward_funcs=lambda completions, **_: [int(one[0]) / 10 for one in completions],
        output_dir=str(folder),
        max_calls=80,
    )


SEARCHES = [with_rewards, with_two_calls, with_proposals, with_a_simulated_user, with_a_model_as_judge]


def asked(log):
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def killed(search, folder, log, more, seconds):
    """Run the search in a process of its own that gets SIGKILL a moment after so many more calls; whether it came to its end."""
    before = asked(log).total()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            search(folder, log).train()
            code = 0
        finally:
            os._exit(code)
    ended, status = 0, 0
    while not ended and asked(log).total() < before + more:
        time.sleep(0.001)
        ended, status = os.waitpid(process, os.WNOHANG)
    if not ended:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("search", SEARCHES)
def test_killed_at_random_moments(tmp_path, search):
    whole = search(tmp_path / "whole", tmp_path / "whole.log").train()
    once = asked(tmp_path / "whole.log")
    folder, log = tmp_path / "search", tmp_path / "search.log"
    rng = random.Random(search.__name__)
    kills = 0
    for _ in range(KILLS):
        ended = killed(search, folder, log, rng.randint(1, once.total() // KILLS), rng.uniform(0, 0.006))
        assert (folder / RESULT).exists() or not ended
        kills += not ended
    result = search(folder, log).train()
    assert kills >= 6
    assert comparable(result) == comparable(whole)
    found = asked(log)
    assert set(found) == set(once)
    again = sum((found - once).values())
    assert again <= result.spent["uncertain"] <= kills * BATCH
    assert whole.spent["uncertain"] == 0
    end = asked(log)
    assert comparable(search(folder, log).train()) == comparable(whole)
    assert asked(log) == end


def serve(log, tell):
    """Be a server that answers after 10 ms, and one request in ten first with 500; what it answered is a line each."""
    made, tried, lock = Server(), Counter(), threading.Lock()

    def behave(number, body):
        said = body["messages"][-1]["content"]
        with lock:
            tried[said] += 1
            if tried[said] == 1 and digit_of(f"{said}?") == 0:
                return failing(500)
            with log.open("a") as stream:
                stream.write(f"{said!r}\n")
        time.sleep(0.01)
        message = {"role": "assistant", "content": str(digit_of(said))}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return 200, {"Content-Type": "application/json"}, json.dumps({"choices": [choice]}).encode()

    made.behave = behave
    os.write(tell, made.url.encode())
    while True:
        signal.pause()


@pytest.fixture
def served(tmp_path):
    """URL and log of a server in a process of its own."""
    hear, tell = os.pipe()
    process = os.fork()
    if process == 0:
        serve(tmp_path / "server.log", tell)
    yield os.read(hear, 100).decode(), tmp_path / "server.log"
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(hear)
    os.close(tell)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_with_an_endpoint(tmp_path, served, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.02)
    url, log = served

    def search(folder, _):
        model = EndpointGenerator("m", base_url=url, api_key="none", concurrency=BATCH, temperature=0.0)
        return trainer(Listed(candidates(12)), model, output_dir=str(folder), max_calls=80, parallel=2)

    whole = search(tmp_path / "whole", log).train()
    once = asked(log)
    log.unlink()
    folder, rng, kills = tmp_path / "search", random.Random(5), 0
    for _ in range(KILLS):
        kills += not killed(search, folder, log, rng.randint(1, once.total() // KILLS), rng.uniform(0, 0.02))
        noted = [json.loads(line) for line in (folder / FILE).read_bytes().split(b"\n")[:-1]]
        keys = {kind: [line["key"] for line in noted if line["kind"] == kind] for kind in ("request", "answer")}
        assert len(set(keys["request"]) - set(keys["answer"])) <= BATCH
    result = search(folder, log).train()
    assert kills >= 6
    assert comparable(result) == comparable(whole)
    found = asked(log)
    assert set(found) == set(once)
    assert sum((found - once).values()) <= result.spent["uncertain"] <= kills * BATCH
    assert (whole.spent["uncertain"], once.total()) == (0, whole.spent["calls"])


@pytest.mark.parametrize("search", SEARCHES)
def test_every_beginning_of_the_ledger_leads_to_the_same_end(tmp_path, search):
    """What a kill leaves is the ledger up to some byte."""
    whole = search(tmp_path / "whole", tmp_path / "whole.log").train()
    once, kept = asked(tmp_path / "whole.log"), (tmp_path / "whole" / FILE).read_bytes()
    rng = random.Random(search.__name__)
    ends = [0, 1, len(kept) - 1, len(kept), *(rng.randrange(len(kept)) for _ in range(6))]
    ends.append(kept.index(b"\n", len(kept) // 2) + 1)
    for number, end in enumerate(ends):
        folder, log = tmp_path / f"{number}", tmp_path / f"{number}.log"
        folder.mkdir()
        (folder / FILE).write_bytes(kept[:end])
        result = search(folder, log).train()
        assert comparable(result) == comparable(whole)
        assert not asked(log) - once
        if end == len(kept):
            assert not asked(log)
        shutil.rmtree(folder)


def test_first_answers_of_two_calls_are_kept_though_the_second_ones_fail(tmp_path):
    given, broken = [], [True]

    def model(prompts):
        if broken[0] and any(NUMBER in prompt for prompt in prompts):
            raise ConnectionError
        given.extend(prompts)
        return ["7"] * len(prompts)

    def search():
        thinking = ChainOfThought(CallableGenerator(model, batch_size=BATCH))
        return trainer(Listed(candidates(1)), thinking, reward_funcs=ones, output_dir=str(tmp_path), leaders=0)

    def ones(completions, **_):
        return [1.0] * len(completions)

    with pytest.raises(GenerationError):
        search().train()
    assert len(given) == 5
    broken[0] = False
    spent = search().train().spent
    assert len(given) == len(set(given)) == spent["calls"] == 10
    assert spent["uncertain"] == BATCH  # of the second calls


class Stop(HfDataOptError):
    pass


class Bomb:
    """Raises the third time (``left`` is a list, since it is no setting of the reward)."""

    def __init__(self, at):
        self.left = [at]

    def tick(self):
        self.left[0] -= 1
        if self.left[0] == 0:
            raise Stop


class Rewarded(Bomb):
    def __call__(self, completions, **_):
        self.tick()
        return [int(completion) / 10 for completion in completions]


@pytest.mark.parametrize("moment", ["reward", "tell", "leaders"])
def test_stopped_between_the_calls(tmp_path, moment):
    def search(folder, at):
        model, bomb = Model(), Bomb(at)
        rewarded = Rewarded(at if moment == "reward" else 0)
        one = trainer(Listed(candidates(4)), model, reward_funcs=rewarded, output_dir=str(folder), max_calls=40)
        told, leaders = one.optimizer.tell, one.optimizer.leaders

        def tell(trials):
            told(trials)
            if moment == "tell":
                bomb.tick()

        def last(n):
            if moment == "leaders" and n > 1:
                bomb.tick()
            return leaders(n)

        one.optimizer.tell, one.optimizer.leaders = tell, last
        return one, model

    whole, model = search(tmp_path / "whole", 0)
    expected, once = comparable(whole.train()), len(model.given)
    one, first = search(tmp_path / "search", 1 if moment == "leaders" else 3)
    with pytest.raises(Stop):
        one.train()
    one, second = search(tmp_path / "search", 0)
    assert comparable(one.train()) == expected
    assert len(first.given) + len(second.given) == once
