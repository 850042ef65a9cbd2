"""The same reward objects give the same numbers here and inside one real step of TRL's GRPOTrainer.

Written against trl 1.16; reads the private ``_calculate_rewards``, the one place that shows rewards per row and function.
"""

import asyncio
import functools
import warnings

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

from hfdataopt.rewards import RewardFunctions, reward_from_metric, token_f1, win_rate

from ..tiny import VOCABULARY, llama, tokenizer

WHO = f"trl {trl.__version__} (written against 1.16)"
TEMPLATE = (
    "{% for m in messages %}{{ '[CLS] ' + m['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[CLS] ' }}{% endif %}"
)
QUESTIONS = ["the film was", "it was", "the plot and", "very"]
WEIGHTS = [1.0, -0.5, 2.0, 0.25, 3.0, 1.5, 0.7]


def text(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


def letters(completions, level, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("letters", [len(text(completion)) for completion in completions])
    log_metric("step", trainer_state.global_step)
    return [
        None if value == 2 else len(text(completion)) / 7 for completion, value in zip(completions, level, strict=True)
    ]


async def words(factor, completions, **kwargs):
    await asyncio.sleep(0)
    return [factor * len(text(completion).split()) for completion in completions]


class Shared:
    """Words shared with the prompt."""

    def __call__(self, prompts, completions, **kwargs):
        asked = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        return [float(len(set(p.split()) & set(text(c).split()))) for p, c in zip(asked, completions, strict=True)]


def longer(prompts, completions, shuffle_order=True):
    return [-1 if len(a) == len(b) else int(len(b) > len(a)) for a, b in completions]


def reward_model():
    """In eval mode, as ``from_pretrained`` gives it: TRL leaves dropout on in a model that is not."""
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, num_labels=1)
    return GPT2ForSequenceClassification(config).eval()


def reward_funcs():
    return [
        letters,
        functools.partial(words, 0.5),
        Shared(),
        get_soft_overlong_punishment(6, 4),
        reward_from_metric(token_f1, reference_column="answer"),
        win_rate("answer", longer),
        reward_model(),
    ]


class Recorder(GRPOTrainer):
    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.seen = (inputs, prompts, completions, completion_ids_list, found.double().numpy())
        self.extra = {name: list(values) for name, values in self._pending_extra_logs.items()}
        return found


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "conversational"])
def test_rewards_are_those_of_grpo(tmp_path, chat):
    read = tokenizer(special=False)
    read.chat_template = TEMPLATE
    rows = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": q}] for q in QUESTIONS] if chat else QUESTIONS,
            "answer": ["fine", "awful it was", "the actor great", "very very very very good"],
            "level": [1, 2, 3, 4],
        }
    )
    args = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        max_steps=1,
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=6,
        logging_steps=1,
        save_strategy="no",
        gradient_checkpointing=False,
        reward_weights=WEIGHTS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Recorder(
            model=llama(),
            args=args,
            train_dataset=rows,
            processing_class=read,
            reward_funcs=reward_funcs(),
            reward_processing_classes=[None] * 6 + [read],
        )
        trainer.train()
    inputs, prompts, completions, ids, expected = trainer.seen
    assert len(set(map(text, completions))) > 8, "the samples differ"

    mine = RewardFunctions(reward_funcs(), reward_weights=WEIGHTS, reward_processing_classes=[None] * 6 + [read])
    assert list(mine.names[:6]) == trainer.reward_func_names[:6], WHO
    columns = {name: [row[name] for row in inputs] for name in inputs[0]}
    found = mine(prompts, completions, ids, columns, row_ids=list(range(len(prompts))))
    np.testing.assert_allclose(found.per_function, expected, rtol=1e-5, atol=1e-6, err_msg=WHO)
    assert np.isnan(expected).any(axis=0).tolist()[:2] == [True, False]
    assert found.extra == trainer.extra
    assert found.metrics == {"step": 0.0}
    (logged,) = [line for line in trainer.state.log_history if "reward" in line]
    assert np.nanmean(found.total) == pytest.approx(logged["reward"], rel=1e-5), WHO
    for i, name in enumerate(trainer.reward_func_names):
        assert np.nanmean(found.per_function[:, i]) == pytest.approx(logged[f"rewards/{name}/mean"], rel=1e-4), WHO
