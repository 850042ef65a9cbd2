"""What SFTTrainer does to rows and models, and what TRL asks of rewards and configs. Written against trl 1.16.

Reward functions are called by a real ``GRPOTrainer`` in ``tests/rewards/test_grpo.py``, and the reward loop is compared with it in
``tests/prompting/test_trl_contract.py``. Not relied on: ``compute_loss_func`` and ``label_smoothing_factor`` of SFT, ``with_transform`` datasets,
``trl.rewards``.
"""

import os
import warnings

import pytest
import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from hfdataopt.attribution.dropped import rows_dropped

from ..tiny import llama, tokenizer

WHO = f"trl {trl.__version__} (written against 1.16)"
PROMPTS = [" ".join(["the"] * length) for length in (2, 3, 20, 4)]
ROWS = Dataset.from_dict({"prompt": PROMPTS, "completion": [" fine"] * 4, "row_id": [f"r{i}" for i in range(4)]})


def config(folder, **changes):
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 12,
    }
    return SFTConfig(**(options | changes))


def sft(folder, callbacks=(), **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SFTTrainer(
            model=llama(),
            args=config(folder, **changes),
            train_dataset=ROWS,
            processing_class=tokenizer(special=False),
            callbacks=list(callbacks),
        )


class Loader(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        self.args, self.loader = args, kwargs["train_dataloader"]
        self.names = kwargs["train_dataloader"].dataset.column_names


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    seen = Loader()
    trainer = sft(tmp_path_factory.mktemp("sft"), [seen])
    trainer.train()
    return trainer, seen


def test_the_defaults_that_differ_from_training_arguments(tmp_path):
    defaults = SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    assert defaults.gradient_checkpointing is True, WHO
    assert defaults.bf16 is True, f"also on a CPU, {WHO}"
    assert defaults.logging_steps == 10, WHO
    assert defaults.learning_rate == 2e-5, WHO
    for option in ("packing", "padding_free", "shuffle_dataset"):
        assert getattr(defaults, option) is False, f"{option}, {WHO}"


def test_preparation_keeps_row_ids_and_drops_rows_whose_labels_are_all_masked(trained):
    trainer, _ = trained
    assert trainer.train_dataset["row_id"][:] == ["r0", "r1", "r3"], WHO
    first = trainer.train_dataset[0]
    assert first["labels"][:2] == [-100, -100], f"the prompt is not labelled, {WHO}"
    assert first["labels"][2:] == first["input_ids"][2:], WHO


def test_the_callback_sees_the_prepared_rows_without_their_ids(trained):
    _, seen = trained
    assert len(seen.loader.dataset) == 3, WHO
    assert sorted(seen.names) == ["input_ids", "labels"], WHO


def test_dropping_is_the_last_step_so_that_the_table_beneath_tells_how_many(trained, tmp_path):
    _, seen = trained
    assert rows_dropped(seen.loader.dataset, seen.args) == len(ROWS) - 3 == 1, WHO
    for changes in ({"dataset_num_proc": 2}, {"max_length": None}, {"max_length": 40}):
        trainer = sft(tmp_path, **changes)
        dataset = trainer.get_train_dataloader().dataset
        assert (
            rows_dropped(dataset, trainer.args)
            == len(ROWS) - len(dataset)
            == (1 if "dataset_num_proc" in changes else 0)
        ), WHO


def test_its_collator_drops_an_id_silently(trained):
    trainer, seen = trained
    batch = seen.loader.collate_fn(list(trainer.train_dataset))
    assert "row_id" not in batch, WHO
    assert batch["labels"].shape == batch["input_ids"].shape, WHO


def test_packing_loses_the_ids(tmp_path):
    trainer = sft(tmp_path, packing=True, max_length=32)
    assert sorted(trainer.train_dataset.column_names) == ["input_ids", "labels", "seq_lengths"], WHO
    assert max(len(lengths) for lengths in trainer.train_dataset["seq_lengths"]) > 1, f"rows are joined, {WHO}"


def test_shuffling_moves_the_rows(tmp_path):
    trainer = sft(tmp_path, shuffle_dataset=True, seed=3)
    assert sorted(trainer.train_dataset["row_id"]) == ["r0", "r1", "r3"], WHO


def test_the_fused_head_gives_no_logits_but_a_plain_call_does(trained):
    trainer, seen = trained
    model = trainer.model.eval()
    batch = {k: v for k, v in seen.loader.collate_fn(list(trainer.train_dataset)).items() if torch.is_tensor(v)}
    calls = []
    handle = model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    try:
        with torch.no_grad():
            plain = model(**batch)
            assert len(calls) == 1, WHO
            fused = model(**batch, fused_lm_head=True)
            assert len(calls) == 1, f"hooks on lm_head never fire under the fused head, {WHO}"
    finally:
        handle.remove()
    assert plain.logits is not None, WHO
    assert getattr(fused, "logits", None) is None, WHO
    losses = torch.nn.functional.cross_entropy(
        plain.logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], ignore_index=-100, reduction="none"
    )
    assert torch.allclose(-fused.log_probs.sum(1), losses.sum(1), atol=1e-4), WHO


def test_rows_that_are_tokenized_are_taken_as_they_are(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9, 10, 11]], "labels": [[-100, 6, 7], [-100, -100, 10, 11]]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(llama(), config(tmp_path), train_dataset=rows, processing_class=tokenizer(special=False))
    assert trainer.train_dataset["input_ids"][:] == rows["input_ids"][:], WHO
    assert trainer.train_dataset["labels"][:] == rows["labels"][:], WHO


def test_there_are_no_judges():
    """``TRL-compatible`` means rewards, datasets and callbacks."""
    assert not [name for name in dir(trl) if name.endswith("Judge")], WHO


def test_the_parser_reads_yaml_and_refuses_unknown_keys(tmp_path, monkeypatch):
    from hfdataopt import PromptConfig

    monkeypatch.delenv("FROM_YAML", raising=False)
    file = tmp_path / "config.yaml"
    file.write_text("env:\n  FROM_YAML: '1'\nmax_calls: 7\nitems: 3\n")
    parser = trl.TrlParser([PromptConfig])
    (found,) = parser.parse_args_and_config(["--config", str(file), "--items", "4"])
    assert (found.max_calls, found.items) == (7, 4), f"the command line wins, {WHO}"
    assert os.environ.pop("FROM_YAML") == "1", WHO
    file.write_text("max_call: 7\n")
    with pytest.raises(ValueError, match="max_call"):
        trl.TrlParser([PromptConfig]).parse_args_and_config(["--config", str(file)])
