"""What cannot work is said in one line before anything is asked."""

from typing import ClassVar

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import LlamaConfig, LlamaForCausalLM

from hfdataopt.errors import (
    DataError,
    GenerationError,
    HfDataOptError,
    MissingDependencyError,
    OptionError,
    PluginError,
)
from hfdataopt.generation import EndpointGenerator
from hfdataopt.prompting.candidate import Candidate, Comparison
from hfdataopt.prompting.judges import Judge, RewardJudge
from hfdataopt.prompting.trainer import PromptTrainer
from hfdataopt_plugins.optimizers.copeland_ts import CopelandThompson

from ..generation.test_endpoint import Server, failing
from ..tiny import VOCABULARY, tokenizer
from .searches import CHAT_ROWS, ROWS, Duels, Listed, Model, Proposer, candidates, digit, trainer

FEW = [{"prompt": "the film was", "answer": "fine"}, {"prompt": "it was", "answer": "great"}]


def refused(make, kind, match, model=None):
    """The error, in one line, of making a trainer and running it; the model was never called."""
    model = Model() if model is None else model
    with pytest.raises(kind, match=match) as caught:
        make(model).train()
    assert isinstance(caught.value, HfDataOptError)
    assert "\n" not in str(caught.value)
    assert model.given == []
    return str(caught.value)


# -- datasets


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (None, "train_dataset must be a dataset or a list of rows; got None"),
        ([], "train_dataset has no rows"),
        (Dataset.from_dict({"prompt": []}), "train_dataset has no rows"),
        (DatasetDict({"train": Dataset.from_list(ROWS)}), "hand over one split"),
        ([{"text": "a"}] * 9, "row 0 has no prompt"),
        ([{"prompt": None}] * 9, "row 0 has no prompt"),
        (ROWS[:4], r"has 4 row\(s\), but items=5 are scored"),
    ],
)
def test_datasets(rows, match):
    refused(lambda model: trainer(Listed(candidates(2)), model, rows), DataError, match)


def test_an_empty_evaluation_dataset():
    refused(lambda model: trainer(Listed(candidates(1)), model, eval_dataset=[]), DataError, "eval_dataset has no rows")


def test_an_optimizer_that_shows_examples_needs_answers():
    bare = [{"prompt": row["prompt"]} for row in ROWS]
    refused(lambda model: trainer("random", model, bare), DataError, "no row has one .*set answer_column")


# -- rewards and judges


def test_either_rewards_or_a_judge():
    def make(model, **given):
        return PromptTrainer(Duels(candidates(2)), model=model, train_dataset=ROWS, **given)

    refused(lambda model: make(model), OptionError, "give reward_funcs or a judge; got neither")
    both = {"reward_funcs": digit, "judge": RewardJudge(digit)}
    refused(lambda model: make(model, **both), OptionError, "give reward_funcs or a judge; got both")


def test_a_judge_is_for_optimizers_of_preferences():
    refused(
        lambda model: trainer(Listed(candidates(2)), model, judge=RewardJudge(digit)),
        OptionError,
        "'listed' learns from rewards, not from a judge.*such as 'apohf'",
    )
    refused(lambda model: trainer(Duels(candidates(2)), model, judge=7), OptionError, "a judge is")
    refused(
        lambda model: trainer(Duels(candidates(2)), model, judge=RewardJudge(digit), reward_weights=[1.0]),
        OptionError,
        "reward_weights belong to reward_funcs",
    )


def needs_more(completions, colour, **_):
    return [0.0] * len(completions)


def takes_little(prompts, completions):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("given", "kind", "match"),
    [
        ({"reward_funcs": []}, OptionError, "reward_funcs is empty"),
        ({"reward_funcs": 3}, OptionError, "a reward function is a callable"),
        ({"reward_weights": [1.0, 2.0]}, OptionError, r"reward_weights=\[1.0, 2.0\] must be 1 finite number"),
        ({"reward_funcs": needs_more}, DataError, "'needs_more' cannot be called with TRL's keywords.*'colour'"),
        ({"reward_funcs": takes_little}, DataError, "'takes_little' cannot be called with TRL's keywords"),
        ({"reward_processing_classes": [None, None]}, OptionError, "reward_processing_classes has 2 entries"),
    ],
)
@pytest.mark.parametrize("optimizer", [Listed(candidates(2)), Duels(candidates(2))], ids=["rewards", "votes"])
def test_reward_functions(optimizer, given, kind, match):
    refused(lambda model: trainer(optimizer, model, **given), kind, match)


def fails(completions, answer, **_):
    if "answer 7" in answer:
        raise KeyError("seven")
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (fails, r"reward function 'fails' raised KeyError: 'seven' \(row 7\)"),
        (lambda completions, **_: [0.0], "returned 1 rewards for 40 completions"),
        (lambda completions, **_: None, "returned NoneType"),
        (lambda completions, **_: ["a"] * len(completions), "returned str 'a'"),
        (lambda completions, **_: [float("nan")] * len(completions), "return None where there is no reward"),
    ],
)
def test_reward_functions_that_fail_on_answers_are_named_and_the_answers_kept(tmp_path, function, match):
    model = Model()
    with pytest.raises(DataError, match=match):
        trainer(
            *(Listed(candidates(3)), model), reward_funcs=function, items=40, output_dir=str(tmp_path), leaders=0
        ).train()
    assert len(model.given) == 40  # of the first candidate
    assert not (tmp_path / "result.json").exists()


# -- optimizers


def test_optimizers():
    refused(lambda model: trainer("instict", model), PluginError, "instict.*instinct")
    refused(lambda model: trainer(Listed, model), OptionError, "must be a name, or an instance.*got <class")
    refused(lambda model: trainer(lambda: 1, model), OptionError, "must be a name, or an instance")
    refused(
        lambda model: trainer("random", model, optimizer_options={"pool": 3}),
        OptionError,
        "no option 'pool'.*pool_size",
    )
    refused(lambda model: trainer("random", model, optimizer_options={"pool_size": "3"}), OptionError, "pool_size='3'")
    refused(
        lambda model: trainer(Listed([]), model, optimizer_options={"pool_size": 3}),
        OptionError,
        "optimizer_options are for an optimizer that is given by name",
    )


def test_limits_that_limit_nothing():
    refused(
        lambda model: trainer(Listed(candidates(2)), model, max_judge_calls=3),
        OptionError,
        "max_judge_calls=3 limits nothing, since optimizer 'listed' learns from rewards; limit it with max_calls",
    )
    refused(lambda model: trainer(Listed([]), model, leaders=0, final_items=3), OptionError, "final_items=3.*leaders=0")


def test_options_that_nothing_reads_are_said():
    with pytest.warns(UserWarning, match="without effect here") as caught:
        trainer(
            Listed(candidates(2)), Model(), max_new_tokens=7, base_url="http://127.0.0.1:9", encoder=object(),
            proposer_temperature=0.5,
        )  # fmt: skip
    (line,) = [str(one.message) for one in caught if "without effect" in str(one.message)]
    assert line == (
        "PromptTrainer: without effect here: max_new_tokens (the model given has its own settings); "
        "base_url (no model is asked at a URL); proposer_temperature (optimizer 'listed' needs no proposer); "
        "encoder (optimizer 'listed' needs no encoder)"
    )


def test_options_that_are_read_are_not_said(recwarn):
    trainer(Listed(candidates(2)), Model(), seed=3, batch_size=2)
    trainer("random", Model(), proposer="far", base_url="http://127.0.0.1:9", concurrency=2, max_proposer_calls=9)
    trainer(Listed(candidates(2)), "far", base_url="http://127.0.0.1:9", concurrency=2, max_new_tokens=7)
    assert not [str(one.message) for one in recwarn if "without effect" in str(one.message)]


@pytest.mark.parametrize("role", ["encoder", "white_box"])
def test_a_missing_role_is_named_with_the_optimizer(role):
    refused(
        lambda model: trainer(Listed(candidates(1), roles=[role]), model),
        OptionError,
        f"optimizer 'listed' needs {role}=: an id in PromptConfig, or an object here",
    )


def test_a_white_box_of_another_kind():
    refused(
        lambda model: trainer(Listed(candidates(1), roles=["white_box"]), model, white_box=3),
        OptionError,
        "white_box is an id, a WhiteBox, or .*; got int",
    )


def test_a_search_that_finds_nothing_says_why():
    refused(lambda model: trainer(Listed([]), model), DataError, "listed ended without a candidate")

    class Mute(Proposer):
        def __call__(self, prompts):
            return [""] * len(prompts)

    refused(
        lambda model: trainer("random", model, proposer=Mute()), DataError, "none of .* can be used as an instruction"
    )


def test_a_pool_smaller_than_the_initial_design():
    """The proposer has three different instructions, and the search goes on with these."""

    class Three(Proposer):
        def __call__(self, prompts):
            self.given.extend(prompts)
            return [f"be {len(str(prompt)) % 3}" for prompt in prompts]

    for name in ("random", "ape", "racing"):
        result = trainer(name, Model(), proposer=Three(), max_calls=300).train()
        assert 1 <= len({trial.candidate.key for trial in result.trials if trial.candidate.origin == "induce"}) <= 3


# -- models


def test_models():
    for given, match in (
        (None, "model is missing"),
        (3, "model=3 is a int"),
        (Model, "model=Model is a class"),
        ("/nowhere/at/all", "'/nowhere/at/all' does not exist"),
    ):
        with pytest.raises(OptionError, match=match) as caught:
            PromptTrainer(Listed(candidates(1)), model=given, reward_funcs=digit, train_dataset=ROWS)
        assert "\n" not in str(caught.value)


def test_a_wrong_key_costs_one_request(monkeypatch, tmp_path):
    server = Server()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.behave = lambda number, body: failing(401, "invalid api key")
    try:
        for name in ("random", Listed(candidates(3))):
            server.requests.clear()
            model = EndpointGenerator("m", base_url=server.url, api_key="sk-wrong", concurrency=8)
            with pytest.raises(GenerationError, match="401") as caught:
                trainer(name, model, output_dir=str(tmp_path / str(len(server.requests) + id(name)))).train()
            assert len(server.requests) == 1
            assert "sk-wrong" not in str(caught.value)
    finally:
        server.close()


class Counted(LlamaForCausalLM):
    given: ClassVar[list[int]] = []

    def forward(self, *args, **keywords):
        self.given.append(1)
        return super().forward(*args, **keywords)


@pytest.fixture
def counted():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=24,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=5,
    )
    model = Counted(config)
    model.given.clear()
    return model


def local(model, rows=FEW, optimizer=None, **options):
    options = {"items": 1, "leaders": 0, "max_new_tokens": 4, **options}
    if "judge" not in options:
        options.setdefault("reward_funcs", lambda completions, **_: [0.0])
    read = tokenizer(special=False)
    return trainer(optimizer or Listed([Candidate("the film")]), model, rows, processing_class=read, **options)


def test_conversations_and_a_tokenizer_without_a_chat_template(counted):
    refused(lambda model: local(model, CHAT_ROWS), DataError, "chat template", counted)


def test_prompts_longer_than_the_context(counted):
    long = [*FEW, {"prompt": "very " * 30, "row_id": 2}]
    refused(
        lambda model: local(model, long, items=3), DataError, "row 2 has 30 tokens.*more than the 24 positions", counted
    )
    refused(lambda model: local(model, start=["very " * 19]), DataError, "more than the 24 positions", counted)


def test_a_candidate_that_does_not_fit_has_no_reward_and_the_search_goes_on(counted, capsys):
    two = [Candidate("very " * 30), Candidate("the film")]
    result = local(counted, optimizer=Listed(two)).train()
    assert [len(trial.items) for trial in result.trials] == [1, 1]
    assert str(result.trials[0].score) == "nan"
    assert result.best == two[1]
    assert result.spent["calls"] == 1
    assert "cannot be tried" in capsys.readouterr().err


class Longer(Judge):
    """The longer answer wins; keeps what it was shown."""

    def __init__(self, interactive):
        self.interactive, self.shown = interactive, []

    def decide(self, questions):
        self.shown += questions
        return [Comparison.of(int(len(one.answers[1]) > len(one.answers[0]))) for one in questions]


@pytest.mark.parametrize("interactive", [False, True])
def test_a_duel_that_does_not_fit_is_invalid_and_free(counted, capsys, interactive):
    long, *others = [Candidate("very " * 30), Candidate("the film"), Candidate("it was")]
    judge = Longer(interactive)
    options = {"judge": judge, "max_judge_calls": 4, "parallel": 2}
    result = local(counted, optimizer=Duels([long, *others]), **options).train()
    unread = [vote for vote in result.votes if long in (vote.duel.first, vote.duel.second)]
    assert len(unread) >= 4
    assert all(vote.unread and vote.comparison.outcome == "invalid" for vote in unread)
    assert len(judge.shown) == len(result.votes) - len(unread) == result.spent["judge_calls"] == 4
    assert capsys.readouterr().err.count("cannot be tried") == 1


@pytest.mark.parametrize("repeats", ["later", "free"])
def test_a_search_of_pairs_leaves_out_what_does_not_fit(counted, repeats):
    pool = ["very " * 30, "the film", "it was"]
    optimizer = CopelandThompson(pool=pool, repeats=repeats)
    result = local(counted, optimizer=optimizer, judge=Longer(False), max_judge_calls=6).train()
    assert [vote.unread for vote in result.votes].count(True) == 2
    assert result.spent["judge_calls"] == 6
    nothing = CopelandThompson(pool=["very " * 30, "very " * 31])
    result = local(counted, optimizer=nothing, judge=Longer(False), max_judge_calls=6).train()
    assert result.status == "finished"
    assert result.spent["judge_calls"] == 0


def test_a_missing_tracker_is_said_before_anything_is_asked(tmp_path):
    refused(
        lambda model: trainer(Listed(candidates(1)), model, report_to="diary"), OptionError, "report_to='diary' is no"
    )
    try:
        import trackio  # noqa: F401
    except ImportError:
        refused(
            lambda model: trainer(Listed(candidates(1)), model, report_to="trackio"),
            MissingDependencyError,
            "pip install trackio",
        )


def test_a_tracker_gets_the_numbers_of_each_step(tmp_path):
    pytest.importorskip("tensorboard", reason="needs a tracker that is installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = trainer(
        Listed(candidates(3)), output_dir=str(tmp_path), report_to="tensorboard", logging_steps=1, run_name="run"
    ).train()
    (folder,) = [path.parent for path in tmp_path.rglob("events.out*")][:1]
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.value for event in events.Scalars("calls")] == [entry["calls"] for entry in result.history]
    assert events.Scalars("best_score")[-1].value == pytest.approx(result.history[-1]["best_score"])
    assert events.Scalars("eval_calls")[0].value == result.spent["calls"]
