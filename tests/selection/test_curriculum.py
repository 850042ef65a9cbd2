"""curriculum: the order, the stages, and that TRL's trainers keep it (written against trl 1.16, transformers 5.23)."""

import copy
import warnings

import numpy as np
import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from hfdataopt.errors import DataError, OptionError
from hfdataopt.selection.curriculum import curriculum

from ..tiny import PLAIN, llama, tokenizer


def pairs():
    """Three pairs of each of four prompts, in no order."""
    draws = np.random.default_rng(0)
    rows = [
        {
            "prompt": f"the {PLAIN[p]} ",
            "chosen": f"fine {PLAIN[p + r]}",
            "rejected": f"poor {PLAIN[r]}",
            "pair": 3 * p + r,
        }
        for p in range(4)
        for r in range(3)
    ]
    data = Dataset.from_list([rows[i] for i in draws.permutation(12)])
    return data.add_column("margin", draws.permutation(12).astype(float).tolist())


def test_from_easy_to_hard():
    data = pairs()
    assert curriculum(data, "margin")["margin"][:] == list(range(11, -1, -1))
    assert curriculum(data, "margin", easy="low")["margin"][:] == list(range(12))
    parts = curriculum(data, "margin", stages=5)
    assert [len(part) for part in parts] == [3, 3, 2, 2, 2]
    assert [m for part in parts for m in part["margin"]] == list(range(11, -1, -1))


def test_ties_go_by_row_id():
    data = Dataset.from_dict({"s": [1.0, 2.0, 1.0, 2.0], "row_id": ["b", "d", "a", "c"]})
    assert curriculum(data, "s")["row_id"][:] == ["c", "d", "a", "b"]


def test_each_stage_has_a_pair_of_every_prompt():
    data = pairs()
    stages = curriculum(data, "margin", stages=3, within="prompt")
    for place, stage in enumerate(stages):
        assert sorted(stage["prompt"][:]) == sorted(set(data["prompt"][:]))
        for row in stage:
            mine = sorted(
                (m for p, m in zip(data["prompt"], data["margin"], strict=True) if p == row["prompt"]), reverse=True
            )
            assert row["margin"] == mine[place]
    whole = curriculum(data, "margin", within="prompt")
    assert whole["pair"][:] == [pair for stage in stages for pair in stage["pair"]]


def test_bad_input():
    data = pairs()
    with pytest.raises(DataError, match="no column 'gap'"):
        curriculum(data, "gap")
    with pytest.raises(DataError, match="must hold numbers"):
        curriculum(data, "prompt")
    with pytest.raises(OptionError, match="from 1 to 12"):
        curriculum(data, "margin", stages=13)
    with pytest.raises(OptionError, match="stage 4 of 4 has no rows"):
        curriculum(data, "margin", stages=4, within="prompt")
    with pytest.raises(OptionError, match="'high' or 'low'"):
        curriculum(data, "margin", easy="most")
    with pytest.raises(DataError, match="no number, first row 1"):
        curriculum(Dataset.from_dict({"s": [1.0, None]}), "s")
    with pytest.raises(DataError, match="a stream"):
        curriculum(data.to_iterable_dataset(), "margin")


SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "num_train_epochs": 1,
}


@pytest.mark.parametrize("strategy", ["sequential", "random"])
def test_dpo_sees_the_order(tmp_path, strategy):
    data, read = curriculum(pairs(), "margin"), tokenizer(special=False)
    seen = []
    args = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, train_sampling_strategy=strategy, **SETTINGS
    )
    trainer = DPOTrainer(model=llama(), ref_model=llama(), args=args, train_dataset=data, processing_class=read)
    collate = trainer.data_collator

    def collated(rows):
        seen.extend(read.decode(row["prompt_ids"] + row["chosen_ids"], skip_special_tokens=True) for row in rows)
        return collate(rows)

    trainer.data_collator = collated
    trainer.train()
    expected = [(p + c).split() for p, c in zip(data["prompt"], data["chosen"], strict=True)]
    found = [row.split() for row in seen]
    assert sorted(found) == sorted(expected)
    assert (found == expected) == (strategy == "sequential")


def test_dpo_in_stages_starts_each_from_its_own_reference(tmp_path):
    model, losses = llama(), []
    args = DPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, logging_steps=1, learning_rate=1e-2, **SETTINGS
    )
    for stage in curriculum(pairs(), "margin", stages=3, within="prompt"):
        trainer = DPOTrainer(
            model=model,
            ref_model=copy.deepcopy(model),
            args=args,
            train_dataset=stage,
            processing_class=tokenizer(special=False),
        )
        trainer.train()
        model = trainer.model
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert [len(found) for found in losses] == [2, 2, 2]
    np.testing.assert_allclose([found[0] for found in losses], np.log(2), atol=1e-4)
    assert all(abs(found[1] - np.log(2)) > 1e-3 for found in losses)


def test_grpo_sees_the_order(tmp_path):
    data = curriculum(pairs(), "margin").remove_columns(["chosen", "rejected"])
    seen = []

    def reward(pair, **kwargs):
        seen.extend(pair)
        return [float(p % 2) for p in pair]

    args = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        num_generations=2,
        max_completion_length=2,
        shuffle_dataset=False,
        **SETTINGS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = GRPOTrainer(
            model=llama(),
            args=args,
            train_dataset=data,
            processing_class=tokenizer(special=False),
            reward_funcs=[reward],
        )
        trainer.train()
    assert seen[::2] == data["pair"][:]
