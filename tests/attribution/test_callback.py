"""The callback inside Trainer and SFTTrainer: looking must not touch, rows keep their identity, bad input stops early."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, DataCollatorWithPadding, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from hfdataopt import AttributionCallback, Scores, attribute, get_scorer, with_row_ids
from hfdataopt.attribution.rows import pad_batch, sample_hashes
from hfdataopt.attribution.scorer import PointwiseScorer, Scorer
from hfdataopt.errors import DataError, OptionError, PluginError, StoreError

from ..tiny import bert, encoded, llama, masked_lm, plain_texts, texts, tokenizer

FAST: dict[str, dict[str, Any]] = {
    "loss": {},
    "tracin": {"floats_per_row": 128},
    "freeshap": {"permutations": 2, "floats_per_row": 128},
    "random": {},
}


def arguments(folder: Any, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 3,
            **changes,
        }
    )


def trainer(folder: Any, callbacks: Any = None, model: Any = None, pool: Any = None, **changes: Any) -> Trainer:
    parts = {name: changes.pop(name) for name in ("data_collator", "eval_dataset") if name in changes}
    return Trainer(
        model=bert() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=encoded(12, flipped=(3,)) if pool is None else pool,
        callbacks=callbacks,
        processing_class=tokenizer(),
        **{"data_collator": DataCollatorWithPadding(tokenizer()), **parts},
    )


def sft(folder: Any, pool: Any, callbacks: Any = None, model: Any = None, **changes: Any) -> SFTTrainer:
    parts = {name: changes.pop(name) for name in ("eval_dataset", "peft_config") if name in changes}
    args = SFTConfig(
        **{
            "output_dir": str(folder),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "max_length": 16,
            **changes,
        }
    )
    return SFTTrainer(
        model=llama() if model is None else model,
        args=args,
        train_dataset=pool,
        processing_class=tokenizer(special=False),
        callbacks=callbacks,
        **parts,
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


# -- looking must not touch


@pytest.mark.parametrize("when", ["train_begin", "epoch", "save", "train_end"])
@pytest.mark.parametrize("name", list(FAST))
def test_training_is_bit_identical(tmp_path: Path, name: str, when: Any) -> None:
    plain = trainer(tmp_path / "plain")
    plain.train()
    queries = encoded(5, seed=7)
    callback = AttributionCallback(name, queries=queries, when=when, **FAST[name])
    watched = trainer(tmp_path / "watched", [callback], save_strategy="steps" if when == "save" else "no", save_steps=2)
    modes = [module.training for module in watched.model.modules()]
    watched.train()
    assert_same_weights(weights(plain.model), weights(watched.model))
    assert [module.training for module in watched.model.modules()].count(True) == modes.count(True)
    assert all(parameter.requires_grad for parameter in watched.model.parameters())
    assert plain.state.global_step == watched.state.global_step
    scores = callback.scores
    assert scores is not None
    assert len(scores) == 12
    assert np.isfinite(scores.values).all()
    taken = {moment["step"] for moment in scores.metadata["moments"]}
    every = {"train_begin": {0}, "epoch": {3, 6}, "save": {2, 4, 6}, "train_end": {6}}[when]
    assert taken == (every if get_scorer(name).combine != "last" else {max(every)})
    assert str(Scores.load(tmp_path / "watched" / "attribution" / name)) == str(scores)


def test_dropout_is_on_in_these_tests(tmp_path: Path) -> None:
    runs = []
    for dropout in (0.1, 0.0):
        run = trainer(tmp_path, model=bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout))
        run.train()
        runs.append(weights(run.model)["classifier.weight"])
    assert not torch.equal(*runs)


@dataclass
class Careless(Scorer):
    """Draws, switches modes and touches gradients; the host must put everything back."""

    name: ClassVar[str] = "careless"
    needs_queries: ClassVar[bool] = False

    def score(self, view: Any) -> Any:
        torch.rand(5)
        np.random.rand(3)  # noqa: NPY002
        view.model.train()
        for parameter in view.model.parameters():
            parameter.requires_grad_(False)
        return torch.rand(len(view.pool))


@dataclass
class Doubled(PointwiseScorer):
    """Reads the model's own output, in whatever precision it runs."""

    name: ClassVar[str] = "doubled"

    def score_batch(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        return 2 * model(**batch).logits[:, 0]


def test_a_careless_scorer_changes_nothing_either(tmp_path: Path) -> None:
    plain = trainer(tmp_path / "a")
    plain.train()
    callback = AttributionCallback(Careless(), when="epoch")
    watched = trainer(tmp_path / "b", [callback])
    watched.train()
    assert_same_weights(weights(plain.model), weights(watched.model))


def test_a_collator_that_draws(tmp_path: Path) -> None:
    collate = DataCollatorForLanguageModeling(tokenizer(), mlm_probability=0.4)
    pool = encoded(12).remove_columns(["label"])
    results = []
    for folder, names in (("plain", []), ("watched", ["loss", "tracin"]), ("again", ["loss"])):
        callbacks = [AttributionCallback(name, queries=pool.select(range(4)), **FAST[name]) for name in names]
        run = trainer(tmp_path / folder, callbacks, masked_lm(), pool, data_collator=collate)
        run.train()
        results.append((weights(run.model), callbacks))
    assert_same_weights(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[1][1][0].scores.values, results[2][1][0].scores.values)


def test_gradient_checkpointing(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    plain = trainer(tmp_path / "a", **changes)
    plain.train()
    callback = AttributionCallback("tracin", queries=encoded(5, seed=7), when="epoch", basis="exact")
    watched = trainer(tmp_path / "b", [callback], **changes)
    watched.train()
    assert_same_weights(weights(plain.model), weights(watched.model))
    without = AttributionCallback("tracin", queries=encoded(5, seed=7), when="epoch", basis="exact")
    trainer(tmp_path / "c", [without]).train()
    assert callback.scores is not None
    assert without.scores is not None
    np.testing.assert_allclose(callback.scores.values, without.scores.values, rtol=1e-4, atol=1e-7)


def test_reentrant_checkpointing_is_refused_before_training(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        [AttributionCallback("self-influence")],
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": True},
    )
    with pytest.raises(OptionError, match="use_reentrant"):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("name", ["loss", "tracin", "grad-norm"])
def test_sft_trainer(tmp_path: Path, name: str) -> None:
    pool = texts(8).remove_columns(["label"])
    plain = sft(tmp_path / "a", pool)
    plain.train()
    options = {"floats_per_row": 128} if name == "tracin" else {}
    callback = AttributionCallback(name, queries=plain_texts(4, seed=5), when="epoch", **options)
    watched = sft(tmp_path / "b", pool, [callback])
    assert watched.args.bf16
    assert watched.args.gradient_checkpointing
    watched.train()
    assert_same_weights(weights(plain.model), weights(watched.model))
    assert callback.scores is not None
    assert np.isfinite(callback.scores.values).all()
    assert callback.scores.metadata["moments"][0]["precision"] == "bfloat16"


def test_sft_scores_equal_those_outside_of_it(tmp_path: Path) -> None:
    callback = AttributionCallback("loss", when="train_begin", batch_size=3)
    run = sft(tmp_path, texts(8).remove_columns(["label"]), [callback], bf16=False)
    prepared = run.train_dataset
    run.train()
    alone = attribute(llama(), prepared, None, "loss")
    assert callback.scores is not None
    np.testing.assert_allclose(callback.scores.values, alone.values, rtol=1e-5)


def test_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, task_type="CAUSAL_LM", lora_dropout=0.1)
    pool = texts(8).remove_columns(["label"])
    runs = []
    for folder, names in (("a", []), ("b", ["tracin", "loss"])):
        callbacks = [AttributionCallback(n, queries=plain_texts(4, seed=5), when="epoch") for n in names]
        torch.manual_seed(0)
        run = sft(tmp_path / folder, pool, callbacks, peft_config=lora)
        run.train()
        runs.append(weights(run.model))
        for callback in callbacks:
            assert callback.scores is not None
            assert np.isfinite(callback.scores.values).all()
    assert_same_weights(*runs)
    classifier = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query", "value"])
    shap = AttributionCallback("freeshap", queries=encoded(5, seed=7), permutations=2)
    trainer(tmp_path / "c", [shap], get_peft_model(bert(), classifier)).train()
    assert shap.scores is not None
    assert np.isfinite(shap.scores.values).all()


# -- moments and scores


def test_own_moments() -> None:
    expected = {
        "train_begin": ["freeshap", "knn-shapley", "label-consistency", "random", "cv-confidence"],
        "epoch": ["tracin", "loss", "grad-norm", "self-influence"],
        "train_end": ["loo", "representer"],
    }
    for when, names in expected.items():
        for name in names:
            assert AttributionCallback(name).when == when
    assert AttributionCallback("freeshap", when="epoch").when == "epoch"


def test_learning_rates_weigh_the_moments(tmp_path: Path) -> None:
    queries = encoded(5, seed=7)
    callback = AttributionCallback("tracin", queries=queries, basis="exact")
    run = trainer(
        tmp_path, [callback], save_strategy="epoch", logging_strategy="steps", logging_steps=1, save_total_limit=5
    )
    run.train()
    assert callback.scores is not None
    logged = [e["learning_rate"] for e in run.state.log_history if "learning_rate" in e]
    rates = [np.mean(logged[:3]), np.mean(logged[3:])]
    np.testing.assert_allclose([m["learning_rate"] for m in callback.scores.metadata["moments"]], rates)
    total = 0.0
    for rate, step in zip(rates, (3, 6), strict=True):
        model = type(run.model).from_pretrained(tmp_path / f"checkpoint-{step}")
        total = total + rate * attribute(model, encoded(12, flipped=(3,)), queries, "tracin", basis="exact").values
    np.testing.assert_allclose(callback.scores.values, total, rtol=1e-4, atol=1e-7)


def test_loss_is_averaged_over_epochs(tmp_path: Path) -> None:
    callback = AttributionCallback("loss")
    run = trainer(tmp_path, [callback], save_strategy="epoch")
    run.train()
    means = [
        attribute(type(run.model).from_pretrained(tmp_path / f"checkpoint-{step}"), run.train_dataset, None, "loss")
        for step in (3, 6)
    ]
    assert callback.scores is not None
    np.testing.assert_allclose(callback.scores.values, (means[0].values + means[1].values) / 2, rtol=1e-5)


def test_a_second_call_of_train_scores_again(tmp_path: Path, capsys: Any) -> None:
    callback = AttributionCallback("knn-shapley", queries=encoded(5, seed=7))
    run = trainer(tmp_path, [callback])
    run.train()
    first = callback.scores
    run.train()
    second = callback.scores
    assert first is not None
    assert second is not None
    assert first.metadata["moments"][0]["step"] == second.metadata["moments"][0]["step"] == 0
    assert not np.array_equal(first.values, second.values)  # the weights have moved on
    moments = [path.name for path in (tmp_path / "attribution" / "knn-shapley").glob("step-*")]
    assert len(moments) == 1


def test_another_run_in_the_default_folder_is_replaced_with_a_line(tmp_path: Path, capsys: Any) -> None:
    trainer(tmp_path, [AttributionCallback("random")]).train()
    callback = AttributionCallback("random", seed=1)
    trainer(tmp_path, [callback]).train()
    assert "random: replacing the scores of an earlier run with other options" in capsys.readouterr().err
    assert callback.scores is not None
    assert callback.scores.metadata["options"]["seed"] == 1
    with pytest.raises(StoreError, match=r"random.*options differ.*choose another output_dir"):
        trainer(tmp_path / "b", [AttributionCallback("random", output_dir=tmp_path / "attribution" / "random")]).train()


def test_a_training_from_other_weights_replaces_scores_with_a_line_or_is_refused(tmp_path: Path, capsys: Any) -> None:
    moved = bert()
    with torch.no_grad():
        moved.classifier.weight.add_(0.1)
    for output_dir in (None, tmp_path / "mine"):
        run = {"scorer": "loss", "output_dir": output_dir}
        first, again, other = (AttributionCallback(**run) for _ in range(3))
        trainer(tmp_path, [first]).train()
        trainer(tmp_path, [again]).train()
        np.testing.assert_array_equal(again.scores.values, first.scores.values)
        assert "replacing" not in capsys.readouterr().err
        if output_dir is None:
            trainer(tmp_path, [other], model=moved).train()
            told = capsys.readouterr().err
            assert told.count("loss: replacing the scores of an earlier run with other initial weights in") == 1
            assert "output_dir= of the callback keeps both" in told
        else:
            with pytest.raises(
                StoreError, match=r"whose initial weights differ .*; choose another output_dir or remove"
            ):
                trainer(tmp_path, [other], model=moved).train()
            np.testing.assert_array_equal(Scores.load(output_dir).values, first.scores.values)


def test_scores_that_are_not_there_say_what_to_do(tmp_path: Path) -> None:
    callback = AttributionCallback("loss", when="epoch")
    with pytest.raises(DataError, match=r"'loss'. has no scores yet: .* \(epoch\); call trainer.train\(\) first"):
        _ = callback.scores
    run = trainer(tmp_path)
    callback.on_train_end(run.args, run.state, run.control)
    with pytest.raises(DataError, match=r"training ended before the first moment \(epoch\)"):
        _ = callback.scores


def test_a_label_changed_anywhere_is_another_run(tmp_path: Path) -> None:
    pool = encoded(300)
    labels = pool["label"][:]
    before = AttributionCallback("loss", when="train_begin")
    trainer(tmp_path, [before], pool=pool, max_steps=1).train()
    sampled = {sample["row_id"] for sample in sample_hashes(pool, list(range(300)))}
    for row in [row for row in range(300) if row not in sampled][:2]:
        values = list(labels)
        values[row] = 1 - values[row]
        changed = pool.remove_columns(["label"]).add_column("label", values)
        after = AttributionCallback("loss", when="train_begin")
        trainer(tmp_path, [after], pool=changed, max_steps=1).train()
        assert before.scores is not None
        assert after.scores is not None
        assert np.flatnonzero(before.scores.values != after.scores.values).tolist() == [row]


def test_bf16_is_recorded_and_close(tmp_path: Path) -> None:
    scores = {}
    for bf16 in (False, True):
        callback = AttributionCallback("tracin", queries=encoded(5, seed=7), when="train_begin", basis="exact")
        trainer(tmp_path / str(bf16), [callback], bf16=bf16).train()
        assert callback.scores is not None
        scores[bf16] = callback.scores
    assert scores[True].metadata["moments"][0]["precision"] == "bfloat16"
    assert scores[False].metadata["moments"][0]["precision"] == "float32"
    assert not np.array_equal(scores[True].values, scores[False].values)
    assert np.corrcoef(scores[True].values, scores[False].values)[0, 1] > 0.99
    forced = AttributionCallback(
        "tracin", queries=encoded(5, seed=7), when="train_begin", basis="exact", dtype="float32"
    )
    trainer(tmp_path / "forced", [forced], bf16=True).train()
    assert forced.scores is not None
    np.testing.assert_allclose(forced.scores.values, scores[False].values, rtol=1e-6)
    loss = [AttributionCallback(Doubled(), when="train_begin") for _ in range(2)]
    for callback, bf16 in zip(loss, (False, True), strict=True):
        trainer(tmp_path / f"loss-{bf16}", [callback], bf16=bf16).train()
    assert loss[0].scores is not None
    assert loss[1].scores is not None
    assert 0 < np.abs(loss[0].scores.values - loss[1].scores.values).max() < 0.05


def test_metrics_reach_the_trainer(tmp_path: Path) -> None:
    with_trainer = trainer(tmp_path / "a")
    with_trainer.add_callback(AttributionCallback("random", trainer=with_trainer))
    without = trainer(tmp_path / "b", [AttributionCallback("random")])
    for run in (with_trainer, without):
        run.train()
        entries = [entry for entry in run.state.log_history if "attribution/random/mean" in entry]
        assert len(entries) == 1
        assert entries[0]["attribution/random/rows"] == 12
        assert entries[0]["step"] == 0


# -- queries


@pytest.mark.parametrize("name", ["freeshap", "tracin", "loo", "knn-shapley", "representer"])
def test_missing_queries_show_both_calls(tmp_path: Path, name: str) -> None:
    run = trainer(tmp_path, [AttributionCallback(name)], eval_dataset=encoded(4))
    with pytest.raises(DataError) as raised:
        run.train()
    assert f"AttributionCallback('{name}', queries=val_dataset)" in str(raised.value)
    assert f"trainer.add_callback(AttributionCallback('{name}', trainer=trainer))" in str(raised.value)
    assert run.state.global_step == 0


@pytest.mark.parametrize(
    "name", ["label-consistency", "loss", "grad-norm", "self-influence", "random", "cv-confidence"]
)
def test_scorers_that_need_no_queries(tmp_path: Path, name: str) -> None:
    callback = AttributionCallback(name)
    trainer(tmp_path, [callback]).train()
    assert callback.scores is not None
    assert callback.scores.matrix is None
    assert callback.scores.metadata["queries"] is None


def test_eval_dataset_of_the_trainer_is_the_default(tmp_path: Path) -> None:
    queries = encoded(5, seed=7)
    run = trainer(tmp_path / "a", eval_dataset=queries)
    callback = AttributionCallback("knn-shapley", trainer=run)
    run.add_callback(callback)
    run.train()
    given = AttributionCallback("knn-shapley", queries=queries)
    trainer(tmp_path / "b", [given]).train()
    assert callback.scores is not None
    assert given.scores is not None
    np.testing.assert_array_equal(callback.scores.matrix, given.scores.matrix)
    assert callback.scores.matrix is not None
    assert callback.scores.matrix.shape == (12, 5)


def test_several_eval_datasets_need_a_choice(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_dataset={"a": encoded(5), "b": encoded(4)})
    run.add_callback(AttributionCallback("knn-shapley", trainer=run))
    with pytest.raises(DataError, match=r"dict of datasets \(a, b\); pass one"):
        run.train()


def test_raw_text_queries_are_tokenized(tmp_path: Path) -> None:
    raw, ready = (AttributionCallback("knn-shapley", queries=data(5, 7)) for data in (texts, encoded))
    trainer(tmp_path / "a", [raw]).train()
    trainer(tmp_path / "b", [ready]).train()
    assert raw.scores is not None
    assert ready.scores is not None
    np.testing.assert_allclose(raw.scores.values, ready.scores.values, rtol=1e-5)


# -- row identity


def rows_with_one_dropped() -> Any:
    """Prompt and completion; the prompt of the third row fills the whole length, so its labels are cut away."""
    data = texts(8)
    prompts = [row["text"] if i != 2 else " ".join(["the film was very"] * 6) for i, row in enumerate(data)]
    return Dataset.from_dict({"prompt": prompts, "completion": [" yes" if i % 2 else " no" for i in range(8)]})


def test_dropped_and_shuffled_rows_keep_their_ids_with_trainer(tmp_path: Path) -> None:
    raw = with_row_ids(rows_with_one_dropped())
    run = sft(tmp_path, raw, shuffle_dataset=True, bf16=False, completion_only_loss=True)
    callback = AttributionCallback("loss", trainer=run, when="train_begin")
    run.add_callback(callback)
    assert len(run.train_dataset) == 7
    run.train()
    scores = callback.scores
    assert scores is not None
    assert sorted(scores.row_ids) == [0, 1, 3, 4, 5, 6, 7]
    assert scores.row_ids != sorted(scores.row_ids)
    joined = scores.join(raw)
    assert scores.metadata["join_check"] == "hash of columns ['prompt']"  # the trainer added an end to completions
    with pytest.raises(DataError, match=r"row 4 has another value in column 'prompt'"):
        scores.join(raw.map(lambda row: {"prompt": "why?"} if row["row_id"] == 4 else {}))
    assert joined["score_loss"][:][2] is None
    for row in joined:
        if row["row_id"] != 2:
            (alone,) = [r for r in run.train_dataset if r["row_id"] == row["row_id"]]
            assert alone["prompt"] == row["prompt"]
            one = attribute(llama(), Dataset.from_list([alone]), None, "loss").values[0]
            assert row["score_loss"] == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("give_trainer", [False, True])
def test_dropped_rows_are_said_before_training_where_there_are_no_ids(
    tmp_path: Path, capsys: Any, give_trainer: bool
) -> None:
    run = sft(tmp_path, rows_with_one_dropped(), completion_only_loss=True)
    callback = AttributionCallback("loss", trainer=run if give_trainer else None, when="train_end")
    run.add_callback(callback)
    run.train()
    told = "the trainer dropped 1 row(s) while it prepared the data"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if told in line]
    assert "positions among the 7 rows that are left" in line
    assert "train_dataset=with_row_ids(dataset)" in line
    assert ("trainer=trainer" in line) != give_trainer
    assert callback.scores.dropped == 1
    assert "(1 dropped)" in str(Scores.load(tmp_path / "attribution" / "loss"))
    named = sft(tmp_path / "b", with_row_ids(rows_with_one_dropped()), completion_only_loss=True)
    named.add_callback(AttributionCallback("loss", trainer=named))
    named.train()
    whole = sft(tmp_path / "c", texts(8).remove_columns(["label"]), [AttributionCallback("loss")])
    whole.train()
    assert "the trainer dropped" not in capsys.readouterr().err


def test_dropped_rows_are_refused_at_join_without_trainer(tmp_path: Path) -> None:
    raw = with_row_ids(rows_with_one_dropped())
    callback = AttributionCallback("loss", when="train_begin")
    sft(tmp_path, raw, [callback], completion_only_loss=True).train()
    assert len(callback.scores) == 7
    with pytest.raises(DataError, match="no column in common"):  # as many rows as are left, but others
        callback.scores.join(raw.select(range(7)))
    with pytest.raises(DataError) as raised:
        callback.scores.join(raw)
    for hint in ("7 prepared rows", "has 8", "trainer=", "pool=", "with_row_ids"):
        assert hint in str(raised.value)


@pytest.mark.parametrize("give_trainer", [False, True])
def test_shuffling_without_ids_is_refused_before_training(tmp_path: Path, give_trainer: bool) -> None:
    run = sft(tmp_path, texts(8).remove_columns(["label"]), shuffle_dataset=True)
    run.add_callback(AttributionCallback("loss", trainer=run if give_trainer else None))
    with pytest.raises(OptionError, match=r"shuffle_dataset=True reorders.*with_row_ids.*trainer=trainer.*pool="):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("option", ["packing", "padding_free"])
@pytest.mark.filterwarnings("ignore")
def test_rows_merged_into_one_are_refused_before_training(tmp_path: Path, option: str) -> None:
    class Arguments:
        def __init__(self, args: Any) -> None:
            self.__dict__.update(vars(args), **{option: True})

    run = sft(tmp_path, texts(8).remove_columns(["label"]))
    callback = AttributionCallback("loss", trainer=run)
    with pytest.raises(OptionError, match=rf"{option}=True puts several rows into one.*{option}=False.*pool="):
        callback.on_train_begin(
            Arguments(run.args),
            run.state,
            run.control,
            model=run.model,
            train_dataloader=run.get_train_dataloader(),
        )


def test_packing_in_a_real_trainer_is_refused(tmp_path: Path) -> None:
    run = sft(tmp_path, texts(8).remove_columns(["label"]), packing=True, packing_strategy="wrapped")
    run.add_callback(AttributionCallback("loss"))
    with pytest.raises(OptionError, match=r"AttributionCallback.'loss'.: packing=True"):
        run.train()
    unpacked = plain_texts(8)
    callback = AttributionCallback("loss", pool=unpacked, when="train_begin")
    run = sft(tmp_path / "b", texts(8).remove_columns(["label"]), [callback], packing=True, packing_strategy="wrapped")
    run.train()
    assert callback.scores is not None
    assert len(callback.scores) == 8


def test_a_streaming_pool_is_refused_before_training(tmp_path: Path) -> None:
    stream = encoded(12).to_iterable_dataset()
    run = trainer(tmp_path, [AttributionCallback("loss")], pool=stream, max_steps=2)
    with pytest.raises(DataError, match=r"stream, whose rows have no identity; load it as a map-style dataset"):
        run.train()
    assert run.state.global_step == 0


def test_ids_reach_the_scores_of_a_plain_trainer(tmp_path: Path) -> None:
    pool = encoded(12, ids=True)
    run = trainer(tmp_path, pool=pool)
    callback = AttributionCallback("random", trainer=run)
    run.add_callback(callback)
    run.train()
    assert callback.scores is not None
    assert callback.scores.row_ids == pool["row_id"][:]
    assert not callback.scores.by_position
    assert callback.scores.join(pool).column_names[-1] == "score_random"
    other = pool.remove_columns("label").add_column("label", [1 - label for label in pool["label"]])
    with pytest.raises(DataError, match=r"row .* .and 11 more of 12 rows. has another value in column 'label'"):
        callback.scores.join(other)


def test_duplicate_ids_are_refused_before_training(tmp_path: Path) -> None:
    pool = encoded(4).add_column("row_id", ["a", "b", "a", "c"])
    run = trainer(tmp_path, pool=pool)
    run.add_callback(AttributionCallback("random", trainer=run))
    with pytest.raises(DataError, match=r"'row_id' has 1 duplicates, for example \['a'\]"):
        run.train()


def test_a_pool_of_its_own(tmp_path: Path) -> None:
    callback = AttributionCallback("loss", pool=encoded(5, seed=9, ids=True), when="train_begin")
    trainer(tmp_path, [callback]).train()
    assert callback.scores is not None
    assert callback.scores.row_ids == [f"r{i}" for i in range(5)]
    alone = attribute(bert(), encoded(5, seed=9), None, "loss")
    np.testing.assert_allclose(callback.scores.values, alone.values, rtol=1e-5)


# -- bad input


def test_unknown_scorer_lists_what_exists() -> None:
    with pytest.raises(PluginError, match=r"no scorer is called 'freeshapp' .did you mean 'freeshap'.*loss"):
        AttributionCallback("freeshapp")


def test_unknown_option_names_the_plugin_and_what_it_accepts() -> None:
    with pytest.raises(OptionError, match=r"'freeshap'.*no option 'permutation'.*'permutations'.*accepts: .*utility"):
        AttributionCallback("freeshap", permutation=3)
    with pytest.raises(OptionError, match=r"freeshap: option permutations='3' is not allowed; it takes int"):
        AttributionCallback("freeshap", permutations="3")


def test_instance_with_options_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"'random' was given as an instance.*got seed"):
        AttributionCallback(get_scorer("random"), seed=1)
    with pytest.raises(OptionError, match=r"is a class; pass an instance, Careless\(...\)"):
        AttributionCallback(Careless)
    with pytest.raises(OptionError, match="neither a name nor a Scorer"):
        AttributionCallback(42)


def test_unknown_moment_and_batch_size() -> None:
    with pytest.raises(OptionError, match="when='never' is unknown; it is one of train_begin, epoch, save, train_end"):
        AttributionCallback("random", when="never")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="batch_size=0 must be a whole number of at least 1"):
        AttributionCallback("random", batch_size=0)


def test_a_moment_that_never_comes(tmp_path: Path) -> None:
    run = trainer(tmp_path, [AttributionCallback("random", when="save")])
    with pytest.raises(OptionError, match="when='save', but save_strategy='no' never saves"):
        run.train()


@pytest.mark.parametrize(
    ("pool", "queries", "message"),
    [
        (encoded(4).select([]), encoded(4), "the pool is empty"),
        (encoded(4), encoded(4).select([]), "queries= is empty"),
        (encoded(4).remove_columns(["label"]), encoded(4), "the pool has no labels"),
        (encoded(4), encoded(4).remove_columns(["label"]), "the queries has no labels"),
    ],
)
@pytest.mark.parametrize("name", ["tracin", "freeshap"])
def test_data_that_cannot_be_scored_stops_before_training(
    tmp_path: Path, name: str, pool: Any, queries: Any, message: str
) -> None:
    run = trainer(tmp_path, [AttributionCallback(name, pool=pool, queries=queries)])
    with pytest.raises(DataError, match=message):
        run.train()
    assert run.state.global_step == 0


@pytest.mark.parametrize("name", ["tracin", "self-influence", "freeshap"])
def test_layers_that_select_nothing_stop_before_training(tmp_path: Path, name: str) -> None:
    run = trainer(tmp_path, [AttributionCallback(name, queries=encoded(4), layers="*.nothing")])
    with pytest.raises(OptionError, match=r"nothing"):
        run.train()
    assert run.state.global_step == 0


def test_only_the_head_under_a_probe_stops_before_training(tmp_path: Path) -> None:
    run = trainer(tmp_path, [AttributionCallback("freeshap", queries=encoded(4), layers="classifier")])
    with pytest.raises(OptionError, match="selects only the head, which head='probe' replaces"):
        run.train()
    assert run.state.global_step == 0


def test_an_untrained_head_is_questioned_once(tmp_path: Path, capsys: Any) -> None:
    callback = AttributionCallback("freeshap", queries=encoded(5, seed=7), head="model", permutations=2)
    trainer(tmp_path, [callback]).train()
    assert capsys.readouterr().err.count("classification head is fresh") == 1


def test_two_callbacks_may_not_share_a_folder(tmp_path):
    pool, queries = encoded(24, seed=1), encoded(6, seed=2)

    def train(**folders):
        callbacks = [
            AttributionCallback("knn-shapley", queries=queries, k=k, when="epoch", output_dir=folders.get(f"k{k}"))
            for k in (3, 20)
        ]
        arguments = TrainingArguments(
            str(tmp_path / "out"), num_train_epochs=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True
        )
        Trainer(bert(), arguments, train_dataset=pool, data_collator=pad_batch, callbacks=callbacks).train()
        return [callback.scores.values for callback in callbacks]

    with pytest.raises(OptionError, match="two callbacks with the scorer 'knn-shapley'"):
        train()
    first, second = train(k3=str(tmp_path / "a"), k20=str(tmp_path / "b"))
    assert not np.allclose(first, second)
    train(k3=str(tmp_path / "a"), k20=str(tmp_path / "b"))  # a new training may use the folders again
