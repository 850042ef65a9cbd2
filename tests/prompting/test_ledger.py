"""The ledger: written before anything is sent and before anything is used; one search per folder, one process per search."""

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from hfdataopt.errors import GenerationError, OptionError, StoreError
from hfdataopt.generation import CallableGenerator
from hfdataopt.prompting.candidate import Comparison
from hfdataopt.prompting.judges import Judge, RewardJudge
from hfdataopt.prompting.ledger import FILE, Ledger, key_of

from ..tiny import llama, tokenizer
from .searches import ROWS, Duels, Listed, Model, Proposer, candidates, comparable, digit, trainer


def lines(folder, kind=None):
    found = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    return [line for line in found if kind in (None, line["kind"])]


# -- before it is sent, before it is used


def test_a_request_is_on_disk_before_it_is_sent_and_its_answer_before_it_is_used(tmp_path):
    model, seen = Model(), []

    def asked(prompts):
        requests = [line["content"] for line in lines(tmp_path, "request")]
        assert requests[-len(prompts) :] == prompts
        assert len(lines(tmp_path, "answer")) == 2 * len(seen)  # of each a completion and a reward
        return model(prompts)

    def rewarded(completions, prompts, **_):
        kept = [line for line in lines(tmp_path, "answer") if line["role"] == "model"]
        assert [line["completion"]["text"] for line in kept[-len(completions) :]] == completions
        seen.extend(completions)
        return digit(completions)

    @dataclass
    class Reads(Listed):
        name: ClassVar[str] = "reads"

        def tell(self, trials):
            kept = [line["reward"] for line in lines(tmp_path, "answer") if line["role"] == "reward"]
            assert kept[-5:] == trials[-1].rewards.tolist()
            super().tell(trials)

    result = trainer(Reads(candidates(3)), asked, reward_funcs=rewarded, output_dir=str(tmp_path), leaders=0).train()
    assert len(lines(tmp_path, "request")) == result.spent["calls"] == 15
    roles = [line["role"] for line in lines(tmp_path, "answer")]
    assert (roles.count("model"), roles.count("reward")) == (15, 15)


def test_proposals_and_features_are_kept_too(tmp_path):
    @dataclass
    class Embeds(Listed):
        name: ClassVar[str] = "embeds"

        def ask(self, n, pending=(), services=None):
            found = super().ask(n, pending, services)
            if found:
                self.features = services.embed([one.instruction for one in found])
            return found

    def encoder(texts):
        assert len(lines(tmp_path, "answer")) >= 2
        encoded.extend(texts)
        return np.arange(2 * len(texts), dtype=float).reshape(-1, 2) / 3

    encoded, features, spent = [], [], []
    proposer = Proposer()
    for _ in range(2):
        one = trainer(
            *(Embeds([2], roles=["proposer", "encoder"]), Model()),
            proposer=proposer,
            encoder=encoder,
            output_dir=str(tmp_path),
            leaders=0,
        )
        spent.append(one.train().spent)
        features.append(one.optimizer.features)
    assert len(encoded) == len(proposer.given) == 2
    assert features[0].tolist() == features[1].tolist() == [[0, np.float32(1 / 3)], [np.float32(2 / 3), 1]]
    assert spent[0] == spent[1]
    assert spent[0]["embedded"] == 2


def test_a_vote_is_on_disk_before_the_optimizer_hears_of_it(tmp_path):
    @dataclass
    class Reads(Duels):
        name: ClassVar[str] = "reads duels"

        def tell(self, votes):
            (event,) = lines(tmp_path, "event")[-1:]
            assert (event["winner"], event["outcome"]) == (votes[-1].comparison.winner, votes[-1].comparison.outcome)
            super().tell(votes)

    optimizer = Reads(candidates(3), rounds=6)
    trainer(optimizer, judge=RewardJudge(digit), output_dir=str(tmp_path)).train()
    assert len(optimizer.votes) == 6


# -- one search per folder


class Second(Model):
    pass


def other_reward(completions, **_):
    return [0.5 for _ in completions]


def test_another_search_in_the_folder_is_refused_and_named(tmp_path):
    base = {"output_dir": str(tmp_path), "leaders": 0}
    trainer(Listed(candidates(2)), **base).train()
    kept = (tmp_path / FILE).read_bytes()
    changed_row = [{**ROWS[0], "level": 7}, *ROWS[1:]]
    for what, one in {
        "seed": trainer(Listed(candidates(2)), **base, seed=1),
        "optimizer": trainer(Listed(candidates(3)), **base),
        "model": trainer(Listed(candidates(2)), Second(), **base),
        "rewards": trainer(Listed(candidates(2)), **base, reward_funcs=other_reward),
        "dataset": trainer(Listed(candidates(2)), rows=changed_row, **base),
        "items": trainer(Listed(candidates(2)), **base | {"items": 6}),
        "start": trainer(Listed(candidates(2)), **base, start=["mine"]),
        "parallel": trainer(Listed(candidates(2)), **base, parallel=2),
    }.items():
        with pytest.raises(StoreError, match=f"holds another search \\({what} (was|has)") as caught:
            one.train()
        assert "\n" not in str(caught.value)
        assert one.model.function.given == []
        assert (tmp_path / FILE).read_bytes() == kept


def test_other_weights_are_another_model_and_another_judge_another_search(tmp_path):
    def local(seed):
        rows = [{"prompt": "the film"}, {"prompt": "it was"}]
        options = {"output_dir": str(tmp_path / "a"), "items": 1, "leaders": 0, "max_new_tokens": 2}
        return trainer(
            *(Listed(candidates(1)), llama(seed), rows),
            processing_class=tokenizer(special=False),
            reward_funcs=other_reward,
            **options,
        )

    local(0).train()
    local(0).train()
    with pytest.raises(StoreError, match="model was"):
        local(1).train()

    def judged(ties):
        judge = RewardJudge(digit, ties=ties)
        return trainer(Duels(candidates(2), rounds=2), judge=judge, output_dir=str(tmp_path / "b"))

    judged(0).train()
    with pytest.raises(StoreError, match="judge was"):
        judged(0.1).train()


def test_the_budget_may_change_and_what_was_paid_stays_paid(tmp_path):
    model = Model()
    small = trainer(Listed(candidates(6)), model, output_dir=str(tmp_path), max_calls=12, leaders=0).train()
    assert (small.status, len(model.given)) == ("budget", 10)
    large = trainer(Listed(candidates(6)), model, output_dir=str(tmp_path), max_calls=100, leaders=0).train()
    assert (large.status, len(model.given)) == ("finished", 30)
    assert large.spent["calls"] == 30


def test_resume_from_checkpoint(tmp_path):
    folder = tmp_path / "search"

    def run(model, **options):
        return trainer(Listed(candidates(2)), model, output_dir=str(folder), leaders=0, **options).train()

    with pytest.raises(StoreError, match="nothing to resume from"):
        run(Model(), resume_from_checkpoint=True)
    with pytest.raises(OptionError, match="needs output_dir"):
        trainer(Listed(candidates(1)), resume_from_checkpoint=True)
    first = Model()
    kept = run(first)
    for choice in (True, None):
        model = Model()
        assert comparable(run(model, resume_from_checkpoint=choice)) == comparable(kept)
        assert model.given == []
    (folder / "prompts" / "prompts_00009.parquet").write_text("of the search before")
    fresh = Model()
    run(fresh, resume_from_checkpoint=False, seed=3)
    assert len(fresh.given) == 10
    assert sorted(path.name for path in (folder / "search-1").iterdir()) == [
        *("ledger.jsonl", "prompt.json", "prompts", "result.json")
    ]
    assert len(list((folder / "prompts").iterdir())) == 2
    run(Model(), resume_from_checkpoint=False)
    assert (folder / "search-2" / FILE).is_file()


def test_two_runs_in_one_folder_are_refused(tmp_path):
    def inner(prompts):
        with pytest.raises(StoreError, match="another search is running in"):
            trainer(Listed(candidates(1)), output_dir=str(tmp_path), leaders=0).train()
        tried.append(1)
        return ["1"] * len(prompts)

    tried = []
    trainer(Listed(candidates(1)), inner, output_dir=str(tmp_path), leaders=0).train()
    assert tried == [1]
    Ledger(tmp_path / "b", {}).close()
    held = Ledger(tmp_path / "b", {})
    code = f"""
        from pathlib import Path
        from hfdataopt.errors import StoreError
        from hfdataopt.prompting.ledger import Ledger
        try:
            Ledger(Path({str(tmp_path / "b")!r}), {{}})
        except StoreError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "another search is running in" in said.stdout
    held.close()
    Ledger(tmp_path / "b", {}).close()


# -- a provider that fails


def test_a_provider_error_keeps_everything_and_the_search_goes_on(tmp_path):
    class Failing(Model):
        broken = 3  # calls until it fails

        def __call__(self, prompts):
            self.broken -= 1
            if self.broken < 0:
                raise ConnectionError("the provider is down")
            return super().__call__(prompts)

    whole = trainer(Listed(candidates(6)), leaders=0, output_dir=str(tmp_path / "whole")).train()
    folder = tmp_path / "search"
    model = Failing()
    model.__class__.__qualname__ = Model.__qualname__
    one = trainer(Listed(candidates(6)), model, leaders=0, output_dir=str(folder))
    with pytest.raises(GenerationError, match="the provider is down"):
        one.train()
    assert one.result is None
    assert sorted(path.name for path in folder.iterdir()) == [".lock", FILE, "prompts"]
    model.broken = 1
    with pytest.raises(GenerationError):
        one.train()
    assert len(model.given) == 20
    model.broken = 100
    result = one.train()
    assert len(model.given) == 30
    assert comparable(result) == comparable(whole)
    # The five of the first failure, and those of the second, may have been answered at the provider.
    assert result.spent["uncertain"] == 10


def test_a_result_from_before_does_not_say_finished_while_the_search_goes_on(tmp_path):
    class Down(Model):
        def __call__(self, prompts):
            raise ConnectionError("down")

    Down.__qualname__ = Model.__qualname__
    trainer(Listed(candidates(3)), max_calls=12, output_dir=str(tmp_path), leaders=0).train()
    assert (tmp_path / "result.json").is_file()
    with pytest.raises(GenerationError):
        trainer(Listed(candidates(3)), Down(), max_calls=50, output_dir=str(tmp_path), leaders=0).train()
    assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "prompt.json").is_file()


def test_a_judge_that_leaves_questions_open_ends_the_search_with_an_error():
    class Silent(Judge):
        def collect(self):
            return super().collect()[:1] if self._waiting else []

        def decide(self, questions):
            return [Comparison(0, "preferred")] * len(questions)

    with pytest.raises(Exception, match="Silent left 1 of 2 questions open"):
        trainer(Duels(candidates(3), rounds=4), judge=Silent(), parallel=2).train()


# -- the file


def test_what_is_written_is_read_again(tmp_path):
    ledger = Ledger(tmp_path, {"seed": 0, "path": tmp_path})
    ledger.request("a", "model", [{"role": "user", "content": "ü\u2028"}])
    ledger.request("b", "model", "q")
    ledger.answer("a", "model", completion={"text": "x\n"}, tokens=[1, 2])
    vector = np.array([1.5, -2.25, 1e-30], np.float32)
    ledger.note_vector("v", "encoder", vector)
    ledger.event(question="q", winner=0)
    ledger.time(3.5)
    ledger.close()
    again = Ledger(tmp_path, {"path": str(tmp_path), "seed": 0})
    assert again.answers["a"]["completion"] == {"text": "x\n"}
    assert again.vectors(["v", "none"])["v"].tolist() == vector.tolist()
    assert (again.sent, again.kept, again.seconds, again.uncertain) == ({"b"}, 2, 3.5, 0)
    assert [event["question"] for event in again.events] == ["q"]
    again.request("b", "model", "q")
    assert again.uncertain == 1
    again.close()
    assert Ledger(tmp_path, {"path": str(tmp_path), "seed": 0}).uncertain == 1


def test_names_are_the_same_in_every_process_and_differ_with_each_part():
    assert key_of("a", {"x": 1, "y": [2]}) == key_of("a", {"y": [2], "x": 1}) == "e418fabe83fabb9d3101602b"
    assert len({key_of("a", "b"), key_of("ab"), key_of(["a", "b"]), key_of("a", "b", "")}) == 4


def test_without_a_folder_nothing_is_kept():
    ledger = Ledger(None, {})
    ledger.request("a", "model", "q")
    ledger.answer("a", "model", text="x")
    assert ledger.answers["a"]["text"] == "x"
    assert CallableGenerator(Model()).describe() == CallableGenerator(Model()).describe()


def test_a_search_that_was_never_answered_leaves_the_folder_free(tmp_path):
    def refuses(prompts):
        raise RuntimeError("no key")

    base = {"output_dir": str(tmp_path), "leaders": 0}
    with pytest.raises(Exception, match="no key"):
        trainer(Listed(candidates(2)), refuses, **base).train()
    assert lines(tmp_path, "request")
    assert not lines(tmp_path, "answer")
    result = trainer(Listed(candidates(2)), **base, seed=1).train()
    assert result.spent["uncertain"] == 0
    assert lines(tmp_path, "search")[0]["settings"]["seed"] == 1
    assert len(lines(tmp_path, "search")) == 1


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"kind": "answer"},
        {"kind": "answer", "key": "a"},
        {"kind": "answer", "key": ["a"], "text": "x"},
        {"kind": "answer", "key": "a", "completion": {}, "tokens": None},
        {"kind": "answer", "key": "a", "reward": "high"},
        {"kind": "request"},
        {"kind": "seconds", "seconds": "long"},
        {"kind": "seconds", "seconds": -1},
        {"kind": "unanswered", "requests": True},
        {"kind": "search", "settings": 3},
        {"kind": []},
    ],
)
def test_lines_of_somebody_else_are_passed_over(tmp_path, line):
    Ledger(tmp_path, {"items": 5}).close()
    with (tmp_path / "ledger.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    ledger = Ledger(tmp_path, {"items": 5})
    assert (ledger.answers, ledger.sent, ledger.uncertain, ledger.seconds) == ({}, set(), 0, 0.0)
    ledger.close()
