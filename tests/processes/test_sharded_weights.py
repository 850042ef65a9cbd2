"""FSDP2 and DeepSpeed: refused by name before anything is computed, and what the error advises works."""

from pathlib import Path

import pytest
from transformers import Trainer, TrainingArguments

from hfdataopt import AttributionCallback, PromptConfig
from hfdataopt.errors import OptionError
from hfdataopt.prompting.callback import PromptSearchCallback
from hfdataopt.sharded import how_sharded
from hfdataopt.testing import tiny

from . import jobs, pair


def test_fsdp2_is_refused_and_its_whole_weights_are_scored(tmp_path: Path) -> None:
    pair.run(jobs.sharded, tmp_path)


def trained(folder: Path, args: TrainingArguments, prompts: bool) -> Trainer:
    callback = (
        PromptSearchCallback("random", PromptConfig(), reward_funcs=tiny.good_words, train_dataset=tiny.prompts(9))
        if prompts
        else AttributionCallback("loss")
    )
    return Trainer(
        tiny.llama(),
        args,
        train_dataset=tiny.questions(4, 1),
        data_collator=jobs.collate,
        processing_class=tiny.reader(),
        callbacks=[callback],
    )


@pytest.mark.parametrize("option", ["deepspeed", "deepspeed_plugin", "fsdp"])  # by arguments, or by the launcher alone
@pytest.mark.parametrize("prompts", [False, True])
def test_they_are_refused_when_training_begins(tmp_path: Path, prompts: bool, option: str) -> None:
    args = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True)
    trainer = trained(tmp_path, args, prompts)
    setattr(args, option, {"zero_optimization": {"stage": 2}})  # later, since one process may not ask for them
    advice = "FSDP spreads.*accelerate merge-weights" if option == "fsdp" else "DeepSpeed spreads.*zero_to_fp32.py"
    with pytest.raises(OptionError, match=rf"Callback.*{advice}"):
        trainer.train()


def test_whole_weights_are_not_refused() -> None:
    assert how_sharded(tiny.llama(), None) is None
    assert how_sharded(lambda prompts: prompts) is None
