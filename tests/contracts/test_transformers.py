"""What the Trainer tells a callback, and what it does to rows, losses and gradients. Written against transformers 5.23.

Not relied on: ``vmap`` over ``functional_call`` (features are read by hooks), ``loss_is_scaled_for_ga`` and ``compute_loss_func`` (losses are
computed anew), ``_signature_columns`` (ids are read from the dataset), a callback that is given twice. What two processes see is in
``tests/attribution/test_processes.py``.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..tiny import bert, encoded, llama, plain_texts, tokenizer

WHO = f"transformers {transformers.__version__} (written against 5.23)"
SIX = {"model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader"}


def arguments(folder, **changes):
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-3,
    }
    return TrainingArguments(**(options | changes))


def classifier_trainer(folder, callbacks=(), **changes):
    return Trainer(
        model=changes.pop("model", None) or bert(),
        args=arguments(folder, **changes),
        train_dataset=encoded(8, ids=True),
        eval_dataset=encoded(4),
        data_collator=DataCollatorWithPadding(tokenizer()),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
    )


class Recorder(TrainerCallback):
    """Every event with its keyword arguments, and the gradients at that moment."""

    def __init__(self):
        self.events = []
        self.seen = {}

    def on_event(self, event, args, state, control, **kwargs):
        model = kwargs["model"]
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.sqrt(sum(g.square().sum() for g in grads)).item() if grads else None
        self.events.append((event, norm))
        self.seen.setdefault(event, (kwargs, state.global_step))


for _name in [name for name in dir(TrainerCallback) if name.startswith("on_") and name != "on_event"]:

    def _make(name):
        def handler(self, args, state, control, **kwargs):
            self.on_event(name, args, state, control, **kwargs)

        return handler

    setattr(Recorder, _name, _make(_name))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of two steps of two micro-batches, with every event recorded."""
    recorder = Recorder()
    trainer = classifier_trainer(
        tmp_path_factory.mktemp("run"),
        [recorder],
        gradient_accumulation_steps=2,
        max_grad_norm=1e-3,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="epoch",
    )
    trainer.train()
    return trainer, recorder


def test_every_event_gets_the_same_six_objects(recorded):
    _, recorder = recorded
    assert {"on_train_begin", "on_epoch_end", "on_step_begin", "on_save", "on_evaluate", "on_train_end"} <= set(
        recorder.seen
    )
    for event, (kwargs, _) in recorder.seen.items():
        assert set(kwargs) >= SIX - ({"processing_class"} if event == "on_init_end" else set()), f"{event}, {WHO}"
        assert not {"trainer", "inputs", "batch"} & set(kwargs), f"{event}, {WHO}"


def test_what_is_there_when_training_begins(recorded):
    """The eval loader is not, so queries cannot be taken from a callback's arguments."""
    trainer, recorder = recorded
    kwargs, step = recorder.seen["on_train_begin"]
    assert step == 0
    assert kwargs["eval_dataloader"] is None, WHO
    assert kwargs["model"] is trainer.model, WHO
    assert type(kwargs["optimizer"]).__name__ == "AcceleratedOptimizer", WHO
    assert kwargs["optimizer"].param_groups[0]["initial_lr"] == 1e-3, WHO
    loader = kwargs["train_dataloader"]
    assert type(loader).__name__ == "DataLoaderShard", WHO
    assert len(loader.dataset) == 8, WHO
    assert recorder.seen["on_init_end"][0]["optimizer"] is None, WHO


def test_the_loaders_dataset_has_lost_its_row_ids_and_the_trainers_has_not(recorded):
    trainer, recorder = recorded
    loader = recorder.seen["on_train_begin"][0]["train_dataloader"]
    assert sorted(loader.dataset.column_names) == ["attention_mask", "input_ids", "label"], WHO
    assert "row_id" in trainer.train_dataset.column_names, WHO
    row = loader.dataset[0]
    assert loader.collate_fn([row])["input_ids"][0].tolist() == row["input_ids"], WHO


def test_gradients_are_there_before_the_step_and_clipped(recorded):
    trainer, recorder = recorded
    norms = {}
    for event, norm in recorder.events:
        norms.setdefault(event, norm)
    assert norms["on_step_begin"] is None, WHO
    assert norms["on_substep_end"] > 1e-2, WHO
    assert norms["on_pre_optimizer_step"] == pytest.approx(1e-3, rel=0.01), WHO
    assert norms["on_optimizer_step"] == pytest.approx(1e-3, rel=0.01), WHO
    assert norms["on_step_end"] is None, WHO
    logged = next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry)
    assert float(logged) > 1e-2, f"the logged norm is the one before clipping, {WHO}"


def test_the_last_micro_batch_has_no_substep_end(recorded):
    _, recorder = recorded
    events = [event for event, _ in recorder.events]
    first = events[events.index("on_step_begin") : events.index("on_step_end")]
    assert first.count("on_substep_end") == 1, WHO


def test_a_checkpoint_records_steps_and_learning_rates(recorded):
    """What ``Checkpoint`` reads."""
    trainer, _ = recorded
    state = json.loads((Path(trainer.args.output_dir) / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2, WHO
    rates = [(entry["step"], entry["learning_rate"]) for entry in state["log_history"] if "learning_rate" in entry]
    assert [step for step, _ in rates] == [1, 2], WHO
    assert all(rate > 0 for _, rate in rates), WHO


def test_a_callback_class_is_constructed(tmp_path):
    trainer = classifier_trainer(tmp_path, [Recorder])
    assert any(type(callback) is Recorder for callback in trainer.callback_handler.callbacks), WHO


def test_iterating_a_loader_draws_from_the_global_random_state():
    """Why rows are read without a DataLoader: later dropout would shift."""
    for generator, touched in ((None, True), (torch.Generator(), False)):
        before = torch.get_rng_state()
        next(iter(DataLoader([1, 2], generator=generator)))
        assert (not torch.equal(before, torch.get_rng_state())) is touched, WHO


class Counter(TrainerCallback, ExportableState):
    def __init__(self):
        self.total = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.total += 1

    def state(self):
        return {"args": {}, "attributes": {"total": self.total}}


def test_resuming_may_replace_the_callback_object(tmp_path):
    """So results live on disk, not on the object alone."""
    classifier_trainer(tmp_path, [Counter()], max_steps=1, save_strategy="steps", save_steps=1).train()
    given = Counter()
    trainer = classifier_trainer(tmp_path, [given], restore_callback_states_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=True)
    used = next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Counter))
    assert used is not given, WHO
    assert (used.total, given.total) == (2, 0), WHO


# -- losses


def token_losses(model, batch):
    """Summed loss and labelled tokens of each row, by plain shifted cross-entropy."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return losses.sum(1), (labels != -100).sum(1)


def padded(rows):
    length = max(len(row["input_ids"]) for row in rows)

    def pad(values, fill):
        return values + [fill] * (length - len(values))

    return {
        "input_ids": torch.tensor([pad(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([pad(row["labels"], -100) for row in rows]),
    }


class Gradient(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.flat = torch.cat([p.grad.flatten() for p in kwargs["model"].parameters()])


@pytest.mark.parametrize(("batch", "accumulation"), [(2, 2), (1, 4), (4, 1)])
def test_the_trainers_gradient_is_that_of_summed_losses_over_all_tokens(tmp_path, batch, accumulation):
    rows = plain_texts(4)
    gradient = Gradient()
    model = llama()
    reference = llama()
    trainer = Trainer(
        model=model,
        args=arguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0,
        ),
        train_dataset=rows,
        data_collator=padded,
        callbacks=[gradient],
    )
    trainer.train()
    losses, tokens = token_losses(reference, padded(list(rows)))
    (losses.sum() / tokens.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in reference.parameters()])
    assert (gradient.flat - expected).abs().max() < 1e-6, WHO


def test_right_padding_is_exact():
    model, rows = llama().eval(), list(plain_texts(4))
    with torch.no_grad():
        together, _ = token_losses(model, padded(rows))
        alone = torch.cat([token_losses(model, padded([row]))[0] for row in rows])
    assert (together - alone).abs().max() < 1e-5, WHO


def test_sequence_classification_under_accumulation_is_twice_too_large(tmp_path):
    """A scorer must not read ``p.grad`` of such models. When this fails, the note in the docs can go."""
    losses = {}
    for accumulation in (1, 2):
        trainer = classifier_trainer(
            tmp_path / str(accumulation),
            model=bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
            max_steps=1,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        losses[accumulation] = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert float(losses[2]) == pytest.approx(2 * float(losses[1]), rel=1e-2), WHO


def test_an_unknown_input_is_swallowed_without_an_error():
    """So a row id that is left in a batch is not noticed."""
    rows = padded(list(plain_texts(2)))
    with torch.no_grad():
        assert llama()(**rows, row_id=torch.tensor([0, 1])).loss is not None, WHO


def test_hooks_under_checkpointing_fire_twice_forward_and_once_backward():
    model = llama().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = {"forward": 0, "backward": 0}
    linear = model.model.layers[0].mlp.up_proj
    linear.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    linear.register_full_backward_hook(lambda *_: calls.update(backward=calls["backward"] + 1))
    model(**padded(list(plain_texts(2)))).loss.backward()
    assert calls == {"forward": 2, "backward": 1}, WHO


def test_a_tokenizer_without_a_limit_has_a_very_large_one():
    """By this preparation knows that the model's number of positions is the limit."""
    inner = tokenizer().backend_tokenizer
    assert transformers.PreTrainedTokenizerFast(tokenizer_object=inner).model_max_length >= 10**9, WHO


def test_regex_comes_with_transformers():
    """The words of ``dsir`` are split by it, and it is no requirement of ours."""
    from importlib.metadata import requires

    assert any(
        requirement.startswith("regex") and "extra" not in requirement for requirement in requires("transformers")
    )


def test_logs_and_metrics_come_with_their_events(recorded):
    _, recorder = recorded
    assert "logs" in recorder.seen["on_log"][0], WHO
    assert "metrics" in recorder.seen["on_evaluate"][0], WHO


def test_reentrant_checkpointing_has_no_gradients_for_autograd_grad():
    """The parameters are not in the graph that ``torch.autograd.grad`` walks."""
    model = llama().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    loss = model(**padded(list(plain_texts(2)))).loss
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(loss, list(model.model.layers[0].mlp.up_proj.parameters()))


def test_parse_dict_does_not_check_types(tmp_path):
    """So our configs check their own in ``__post_init__``."""
    import dataclasses

    @dataclasses.dataclass
    class Config:
        keep: float = 0.5

    (found,) = transformers.HfArgumentParser(Config).parse_dict({"keep": "abc"})
    assert found.keep == "abc", WHO
