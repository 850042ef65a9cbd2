"""Reward functions see and give the same in TRL's GRPOTrainer and in PromptTrainer; TRL's own run unchanged.

Written against trl 1.16; reads the private ``_calculate_rewards``, the one place that shows rewards per row.
"""

import asyncio
import functools
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

from hfdataopt.errors import DataError
from hfdataopt.generation import Completion, Generator
from hfdataopt.prompting.apply import ApplyPrompt
from hfdataopt.prompting.candidate import Candidate

from ..tiny import VOCABULARY, llama, tokenizer
from .searches import Listed, trainer

TEMPLATE = (
    "{% for m in messages %}{{ '[CLS] ' + m['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS] ' }}{% endif %}"
)
QUESTIONS = ["the film was", "it was", "the plot and", "very"]
CANDIDATE = Candidate("lovely scene")
WEIGHTS = [1.0, 0.5, -2.0, 3.0, 0.25]


def text(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


class Seen:
    """Keeps the keywords it is called with, and gives nothing for one level."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, completion_ids, level, **keywords):
        keywords.pop("log_extra")("level", level)
        keywords.pop("log_metric")("rows", len(level))
        assert keywords.pop("trainer_state").global_step == 0
        lists = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, "level": level}
        self.calls.append({name: list(values) for name, values in {**lists, **keywords}.items()})
        assert all(isinstance(values, list) for values in (*lists.values(), *keywords.values()))
        return [None if value == 2 else len(text(c)) / 7 for c, value in zip(completions, level, strict=True)]


async def words(factor, completions, **_):
    await asyncio.sleep(0)
    return [factor * len(text(completion).split()) for completion in completions]


def reward_model():
    """In eval mode, as ``from_pretrained`` gives it."""
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, num_labels=1)
    return GPT2ForSequenceClassification(config).eval()


class Recorder(GRPOTrainer):
    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.seen = (prompts, completions, completion_ids_list, found.double().numpy())
        return found


class Replay(Generator):
    """Answers each prompt with what GRPO's model had answered first."""

    def __init__(self, prompts, completions, ids):
        self.answers = {}
        for prompt, completion, tokens in zip(prompts, completions, ids, strict=True):
            self.answers.setdefault(str(prompt), Completion(text(completion), list(tokens)))

    def describe(self):
        return {"kind": "replay"}

    def generate(self, prompts, n, *, keys, seed=0, have=None, on_done=None, admit=None, allowed=None):
        for index, prompt in enumerate(prompts):
            assert admit(index, 0)
            on_done(index, 0, self.answers[str(prompt)])


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "conversational"])
def test_the_same_functions_see_and_give_the_same_as_in_grpo(tmp_path, chat):
    read = tokenizer(special=False)
    read.chat_template = TEMPLATE
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": q}] for q in QUESTIONS] if chat else QUESTIONS,
            "answer": ["fine", "awful it was", "the actor great", "very very very very good"],
            "level": [1, 2, 3, 4],
        }
    )
    seen, think = Seen(), think_format_reward if chat else functools.partial(words, 2)
    functions = [seen, functools.partial(words, 0.5), get_soft_overlong_punishment(6, 4), reward_model(), think]
    args = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=2,
        max_completion_length=6,
        max_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        seed=0,
        reward_weights=WEIGHTS,
        logging_steps=1,
        disable_tqdm=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grpo = Recorder(
            model=llama(),
            reward_funcs=functions,
            args=args,
            train_dataset=rows.map(ApplyPrompt.of(CANDIDATE)),
            processing_class=read,
            reward_processing_classes=[None, None, None, read, None],
        )
        grpo.train()
    prompts, completions, ids, numbers = grpo.seen
    (theirs,) = seen.calls
    one = trainer(
        Listed([CANDIDATE]),
        Replay(prompts, completions, ids),
        rows,
        items=4,
        leaders=0,
        reward_funcs=functions,
        reward_weights=WEIGHTS,
        reward_processing_classes=[None, None, None, read, None],
    )
    (trial,) = one.train().trials
    ours = seen.calls[1]
    assert set(ours) == set(theirs)
    total = np.nansum(numbers * WEIGHTS, axis=1)
    for place, item in enumerate(trial.items):
        there = theirs["answer"].index(ours["answer"][place])
        assert {name: ours[name][place] for name in ours} == {name: theirs[name][there] for name in theirs}
        assert ours["level"][place] == rows[item]["level"]
        assert trial.rewards[place] == pytest.approx(total[there], abs=1e-6)
        assert trial.answers[place] == text(completions[there])
    assert np.isnan(numbers).any()
    assert np.ptp(trial.rewards) > 0


def answered(answers, function, **columns):
    """Rewards of a search whose model gives these answers to conversations."""
    rows = [
        {"prompt": [{"role": "user", "content": f"{i}"}], **{name: values[i] for name, values in columns.items()}}
        for i in range(len(answers))
    ]

    def model(prompts):
        return [answers[int(prompt[-1]["content"])] for prompt in prompts]

    one = trainer(Listed([Candidate("be")]), model, rows, items=len(rows), leaders=0, reward_funcs=function)
    (trial,) = one.train().trials
    return dict(zip(trial.items, trial.rewards.tolist(), strict=True))


def test_think_format_reward_runs_unchanged():
    answers = ["<think>\ntwo and two\n</think>\nfour", "four"]
    assert answered(answers, think_format_reward) == {0: 1.0, 1: 0.0}


def test_accuracy_reward_runs_unchanged():
    pytest.importorskip("math_verify", reason="trl's accuracy_reward needs math_verify")
    answers = [r"It is \boxed{\frac{1}{2}}", r"It is \boxed{3}"]
    solutions = [r"$\frac{1}{2}$", r"$4$"]
    assert answered(answers, accuracy_reward, solution=solutions) == {0: 1.0, 1: 0.0}


def test_a_function_that_needs_tokens_is_refused_where_the_model_gives_text_only():
    with pytest.raises(DataError, match=r"soft_overlong.*completion_ids"):
        answered(["four"], get_soft_overlong_punishment(6, 4))


def test_what_the_search_finds_maps_trl_rows_of_other_forms_too():
    put = ApplyPrompt("Be brief.")
    head = {"role": "system", "content": "Be brief."}
    user, good, bad = (
        {"role": role, "content": c} for role, c in (("user", "hi"), ("assistant", "yo"), ("assistant", "no"))
    )
    explicit = Dataset.from_list([{"prompt": [user], "chosen": [good], "rejected": [bad]}]).map(put)[0]
    assert explicit == {"prompt": [head, user], "chosen": [good], "rejected": [bad]}
    implicit = Dataset.from_list([{"chosen": [user, good], "rejected": [user, bad]}]).map(put)[0]
    assert implicit == {"chosen": [head, user, good], "rejected": [head, user, bad]}
    one = trainer(
        Listed([Candidate("Be brief.")]), lambda prompts: ["1"] * len(prompts), [implicit], items=1, leaders=0
    )
    assert one.split.items[0].prompt == [head, user]
    assert one.split.items[0].output == "yo"
