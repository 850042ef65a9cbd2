"""``attribute``: a model in memory, or saved checkpoints; results do not depend on how rows are batched."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hfdataopt import AttributionCallback, Checkpoint, attribute, get_scorer
from hfdataopt.attribution import view
from hfdataopt.attribution.rows import pad_batch
from hfdataopt.errors import DataError, OptionError, StoreError

from ..tiny import bert, encoded, gpt2, llama, loss_gradients, plain_texts, questions, texts, tokenizer

ALL = [
    "freeshap",
    "label-consistency",
    "tracin",
    "self-influence",
    "loss",
    "grad-norm",
    "loo",
    "knn-shapley",
    "representer",
    "cv-confidence",
    "random",
]
FEW = {"freeshap": {"permutations": 3}}


def train(folder: Path, callbacks: Any = None, **changes: Any) -> Trainer:
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "save_strategy": "epoch",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **changes,
        }
    )
    run = Trainer(bert(), args, train_dataset=encoded(12), processing_class=tokenizer(), callbacks=callbacks)
    run.train()
    return run


@pytest.mark.parametrize("name", ALL)
def test_equals_the_callback_at_train_begin(tmp_path: Path, name: str) -> None:
    queries = encoded(5, seed=7)
    callback = AttributionCallback(name, queries=queries, when="train_begin", **FEW.get(name, {}))
    train(tmp_path, [callback], max_steps=1, save_strategy="no")
    scores = attribute(bert(), encoded(12), queries, name, batch_size=8, **FEW.get(name, {}))
    assert callback.scores is not None
    np.testing.assert_array_equal(scores.values, callback.scores.values)


@pytest.mark.parametrize("name", ALL)
def test_the_model_stays_as_it_was(name: str) -> None:
    model = bert().train()
    model.classifier.bias.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    attribute(model, encoded(10), encoded(4, seed=7), name, **FEW.get(name, {}))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["classifier.bias"]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


# -- batch size, order and padding


def wide(rows: list[Any]) -> dict[str, Any]:
    """Pads every batch to 30 tokens."""
    batch = pad_batch(rows)
    missing = 30 - batch["input_ids"].shape[1]
    fill = {"labels": -100}
    return {
        name: torch.nn.functional.pad(x, (0, missing), value=fill.get(name, 0)) if x.ndim == 2 else x
        for name, x in batch.items()
    }


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("name", ["tracin", "self-influence", "loss"])
@pytest.mark.parametrize("make", ["bert", "gpt2", "llama"])
def test_exact_scores_do_not_depend_on_batches(make: str, name: str) -> None:
    model = {"bert": bert, "gpt2": gpt2, "llama": llama}[make]().eval()
    pool = (encoded if make == "bert" else plain_texts)(9)
    pool = pool.add_column("row_id", [f"r{i}" for i in range(9)])
    queries = (encoded if make == "bert" else questions)(4, seed=7)
    options: dict[str, Any] = {} if name == "loss" else {"basis": "exact"}
    scores = attribute(model, pool, queries, name, batch_size=4, **options)
    close(attribute(model, pool, queries, name, batch_size=1, **options).values, scores.values)
    close(attribute(model, pool, queries, name, batch_size=9, data_collator=wide, **options).values, scores.values)
    order = [4, 0, 8, 2, 7, 1, 3, 6, 5]
    again = attribute(model, pool.select(order), queries, name, batch_size=3, **options)
    assert again.row_ids == [f"r{i}" for i in order]
    close(again.values, scores.values[order])


@pytest.mark.parametrize("basis", ["eigen", "random", "sketch"])
def test_projected_scores_with_a_stored_basis_do_not_depend_on_batches(tmp_path: Path, basis: str) -> None:
    model, pool, queries = bert().eval(), encoded(9, ids=True), encoded(4, seed=7, ids=True)
    options: dict[str, Any] = {"basis": basis, "floats_per_row": 200, "output_dir": tmp_path / "run"}
    scores = attribute(model, pool, queries, "tracin", batch_size=4, **options)
    facts = scores.metadata["moments"][0]["basis"]["loss"]
    (moment,) = (tmp_path / "run").glob("step-*")
    for batch_size, collate in ((1, None), (9, wide)):
        for path in [*moment.glob("gradients-*"), moment / "result.json"]:  # all but the basis is made again
            for file in [path] if path.is_file() else path.iterdir():
                file.unlink()
        again = attribute(model, pool, queries, "tracin", batch_size=batch_size, data_collator=collate, **options)
        assert again.metadata["moments"][0]["basis"]["loss"] == facts
        close(again.matrix, scores.matrix)


def test_the_basis_does_not_depend_on_row_order() -> None:
    model, pool, queries = bert().eval(), encoded(9, ids=True), encoded(4, seed=7, ids=True)
    order = [4, 0, 8, 2, 7, 1, 3, 6, 5]
    scores = attribute(model, pool, queries, "tracin", floats_per_row=200)
    again = attribute(model, pool.select(order), queries, "tracin", floats_per_row=200)
    np.testing.assert_allclose(again.values, scores.values[order], rtol=1e-3)


# -- checkpoints


def test_checkpoints_are_weighed_by_their_learning_rates(tmp_path: Path) -> None:
    callback = AttributionCallback("tracin", queries=encoded(5, seed=7), basis="exact")
    run = train(tmp_path, [callback])
    folders = [tmp_path / "checkpoint-3", tmp_path / "checkpoint-6"]
    pool, queries = encoded(12), encoded(5, seed=7)
    scores = attribute(bert(), pool, queries, "tracin", checkpoints=folders, basis="exact")
    logged = {e["step"]: e["learning_rate"] for e in run.state.log_history if "learning_rate" in e}
    rates = [np.mean([logged[s] for s in steps]) for steps in ((1, 2, 3), (4, 5, 6))]
    expected = sum(
        rate * (loss_gradients(model, pool) @ loss_gradients(model, queries).T).mean(1)
        for rate, model in zip(rates, (type(run.model).from_pretrained(f) for f in folders), strict=True)
    )
    np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-6)
    assert callback.scores is not None
    np.testing.assert_allclose(callback.scores.values, scores.values, rtol=1e-4, atol=1e-7)
    assert [m["step"] for m in scores.metadata["moments"]] == [3, 6]


def test_learning_rates_can_be_given(tmp_path: Path) -> None:
    model = bert().eval()
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
    given = [Checkpoint(str(tmp_path / name), learning_rate=rate) for name, rate in (("a", 0.5), ("b", 0.25))]
    pool, queries = encoded(6), encoded(3, seed=7)
    options: dict[str, Any] = {"basis": "exact"}
    scores = attribute(bert(seed=9), pool, queries, "tracin", checkpoints=given, **options)
    alone = attribute(model, pool, queries, "tracin", **options)
    np.testing.assert_allclose(scores.values, 0.75 * alone.values, rtol=1e-5)
    with pytest.raises(DataError, match=r"no logged learning rate.*Checkpoint\(path, learning_rate=...\)"):
        attribute(model, pool, queries, "tracin", checkpoints=[tmp_path / "a"])
    last = attribute(bert(seed=9), pool, queries, "loo", checkpoints=[tmp_path / "a"])
    np.testing.assert_allclose(last.values, attribute(model, pool, queries, "loo").values, rtol=1e-5)


def test_fewer_checkpoints_in_the_same_folder_are_not_added_to_the_earlier(tmp_path: Path) -> None:
    model = bert().eval()
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
        model = bert(seed=1)
    pool, given = encoded(6), [Checkpoint(str(tmp_path / name), learning_rate=1.0) for name in ("a", "b")]
    options: dict[str, Any] = {"output_dir": tmp_path / "out", "basis": "exact"}
    both = attribute(model, pool, pool, "tracin", checkpoints=given, **options)
    one = attribute(model, pool, pool, "tracin", checkpoints=given[:1], **options)
    again = attribute(model, pool, pool, "tracin", checkpoints=given[:1], basis="exact")
    np.testing.assert_array_equal(one.values, again.values)
    assert not np.allclose(one.values, both.values)


def test_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    model, pool = bert(), encoded(4)
    with pytest.raises(DataError, match=r"nowhere.*is not a folder with a config.json"):
        attribute(model, pool, None, "loss", checkpoints=[tmp_path / "nowhere"])
    with pytest.raises(OptionError, match=r"checkpoints= is empty"):
        attribute(model, pool, None, "loss", checkpoints=[])
    with pytest.raises(OptionError, match=r"must be a list of folders"):
        attribute(model, pool, None, "loss", checkpoints=str(tmp_path))
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(OptionError, match=r"learning_rate=-1.0 must be > 0"):
        attribute(model, pool, pool, "tracin", checkpoints=[Checkpoint(str(tmp_path / "a"), learning_rate=-1.0)])
    train(tmp_path, max_steps=3, save_steps=3, save_strategy="steps")
    twice = [tmp_path / "checkpoint-3"] * 2
    with pytest.raises(OptionError, match=r"two checkpoints are of the same step"):
        attribute(model, pool, None, "loss", checkpoints=twice)


def test_checkpoints_of_which_some_have_no_step_are_taken_in_list_order(tmp_path: Path, capsys: Any) -> None:
    models = {name: bert(seed=seed) for seed, name in enumerate(("a", "b", "c"))}
    for (name, model), step in zip(models.items(), (1, None, 300), strict=True):
        model.save_pretrained(tmp_path / name)
        if step is not None:
            (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    pool, queries = encoded(6), encoded(3, seed=7)
    alone = {name: attribute(model, pool, queries, "loss").values for name, model in models.items()}
    # the second of these has no step: its place in the list is the step of the first
    folders = [tmp_path / name for name in ("a", "b")]
    both = attribute(bert(), pool, queries, "loss", checkpoints=folders, output_dir=tmp_path / "out")
    np.testing.assert_allclose(both.values, (alone["a"] + alone["b"]) / 2, rtol=1e-6)
    assert [m["step"] for m in both.metadata["moments"]] == [0, 1]
    capsys.readouterr()
    last = attribute(bert(), pool, queries, "loo", checkpoints=[tmp_path / name for name in ("c", "a", "b")])
    np.testing.assert_allclose(last.values, attribute(models["b"], pool, queries, "loo").values, rtol=1e-6)
    said = capsys.readouterr().err
    assert f"loo: scores one checkpoint, '{tmp_path / 'b'}' (last in the list); the other 2 are not used" in said
    last = attribute(bert(), pool, queries, "loo", checkpoints=[tmp_path / name for name in ("c", "a")])
    np.testing.assert_allclose(last.values, attribute(models["c"], pool, queries, "loo").values, rtol=1e-6)
    assert "(of the last step, 300); the other 1 are not used" in capsys.readouterr().err


def test_adapters_are_loaded(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=2, task_type="CAUSAL_LM")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "a")
    expected = attribute(model, plain_texts(5), None, "loss")
    fresh = get_peft_model(llama(), LoraConfig(r=2, task_type="CAUSAL_LM"))
    scores = attribute(fresh, plain_texts(5), None, "loss", checkpoints=[tmp_path / "a"])
    np.testing.assert_allclose(scores.values, expected.values, rtol=1e-6)
    assert not np.allclose(attribute(fresh, plain_texts(5), None, "loss").values, expected.values)


# -- input


def test_raw_text_is_tokenized() -> None:
    scores = attribute(bert(), texts(8), texts(4, 7), "knn-shapley", processing_class=tokenizer())
    ready = attribute(bert(), encoded(8), encoded(4, 7), "knn-shapley")
    np.testing.assert_allclose(scores.values, ready.values, rtol=1e-5)
    assert scores.join(texts(8)).column_names[-1] == "score_knn_shapley"
    with pytest.raises(DataError, match=r"the pool holds raw text.*pass processing_class="):
        attribute(bert(), texts(8), texts(4), "knn-shapley")


def test_positions_or_row_ids() -> None:
    assert attribute(bert(), encoded(4), None, "random").row_ids == [0, 1, 2, 3]
    named = attribute(bert(), encoded(4, ids=True), None, "random")
    assert named.row_ids == ["r0", "r1", "r2", "r3"]
    assert not named.by_position


def test_a_half_precision_model_is_scored_as_it_is() -> None:
    model = bert().to(torch.bfloat16)
    scores = attribute(model, encoded(6), encoded(3, 7), "tracin", basis="exact")
    exact = attribute(bert(), encoded(6), encoded(3, 7), "tracin", basis="exact")
    assert scores.metadata["moments"][0]["precision"] == "bfloat16"
    assert np.corrcoef(scores.values, exact.values)[0, 1] > 0.95
    with pytest.raises(OptionError, match=r"dtype='float32' arrived, but \d+ parameters .* half precision"):
        attribute(model, encoded(6), encoded(3, 7), "tracin", dtype="float32")


@pytest.mark.parametrize("name", ["freeshap", "tracin", "loo", "knn-shapley", "representer"])
def test_queries_are_needed(name: str) -> None:
    with pytest.raises(DataError, match=f"scorer '{name}' needs queries"):
        attribute(bert(), encoded(4), None, name)


@pytest.mark.parametrize("name", [name for name in ALL if not get_scorer(name).needs_queries])
def test_queries_are_not_read_where_they_are_not_needed(name: str) -> None:
    scores = attribute(bert(), encoded(10), object(), name)
    assert np.isfinite(scores.values).all()


@pytest.mark.parametrize(("pool", "queries", "message"), [(0, 3, "the pool is empty"), (3, 0, "queries= is empty")])
def test_nothing_to_score(pool: int, queries: int, message: str) -> None:
    data = encoded(4)
    with pytest.raises(DataError, match=message):
        attribute(bert(), data.select(range(pool)), data.select(range(queries)), "tracin")


def test_streams_dicts_and_none() -> None:
    with pytest.raises(DataError, match=r"the pool: IterableDataset is a stream"):
        attribute(bert(), encoded(4).to_iterable_dataset(), None, "loss")
    with pytest.raises(DataError, match=r"the pool is None"):
        attribute(bert(), None, None, "loss")
    with pytest.raises(DataError, match=r"dict of datasets \(train, test\)"):
        attribute(bert(), {"train": encoded(4), "test": encoded(4)}, None, "loss")


def test_a_model_is_loaded_from_its_folder(tmp_path: Path) -> None:
    model, pool = bert().eval(), texts(6)
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    expected = attribute(model, pool, None, "loss", processing_class=tokenizer()).values
    for where in (tmp_path / "model", str(tmp_path / "model")):
        np.testing.assert_array_equal(attribute(where, pool, None, "loss").values, expected)
    with pytest.raises(OptionError, match=r"attribute: the folder model=.*modle' does not exist .did you mean"):
        attribute(tmp_path / "modle", pool, None, "loss")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(OptionError, match="holds an adapter only; load it on its model"):
        attribute(tmp_path / "adapter", pool, None, "loss")
    with pytest.raises(OptionError, match=r"cannot load model='nobody/nothing': .*a local folder can be given too"):
        attribute("nobody/nothing", pool, None, "loss")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(OptionError, match=r"names no class of transformers to load it as .architectures: None"):
        attribute(tmp_path / "model", pool, None, "loss")


def test_options_that_cannot_be() -> None:
    with pytest.raises(OptionError, match=r"'loss'.*no option 'floats'"):
        attribute(bert(), encoded(4), None, "loss", floats=3)
    with pytest.raises(OptionError, match=r"given as an instance"):
        attribute(bert(), encoded(4), None, get_scorer("loss"), reduction="sum")
    with pytest.raises(OptionError, match=r"batch_size=True must be a whole number"):
        attribute(bert(), encoded(4), None, "loss", batch_size=True)
    with pytest.raises(OptionError, match=r"tracin: option basis='pca' is not allowed; it takes 'eigen'"):
        attribute(bert(), encoded(4), encoded(4), "tracin", basis="pca")


@pytest.mark.parametrize("name", ["tracin", "grad-norm", "label-consistency"])
def test_no_layer_is_left(name: str) -> None:
    with pytest.raises(OptionError, match=r"layers"):
        attribute(bert(), encoded(4), encoded(4, 7), name, layers=[])
    with pytest.raises(OptionError, match=r"nothing-like-it"):
        attribute(bert(), encoded(4), encoded(4, 7), name, layers="nothing-like-it")


def test_a_folder_of_another_model_or_basis(tmp_path: Path) -> None:
    pool = encoded(4)
    attribute(bert(), pool, pool, "tracin", output_dir=tmp_path)
    attribute(bert(), pool, pool, "tracin", output_dir=tmp_path)
    with pytest.raises(StoreError, match=r"weights differ.*choose another output_dir"):
        attribute(bert(seed=1), pool, pool, "tracin", output_dir=tmp_path)
    with pytest.raises(StoreError, match=r"options differ"):
        attribute(bert(), pool, pool, "tracin", output_dir=tmp_path, basis="random")
    with pytest.raises(StoreError, match=r"pool and queries differ"):
        attribute(bert(), encoded(4, 5), encoded(4, 5), "tracin", output_dir=tmp_path)


@pytest.mark.parametrize("basis", ["eigen", "exact"])
def test_half_precision_is_compared_with_float32(basis, capsys):
    model, pool, queries = bert(), encoded(24, seed=1), encoded(6, seed=2)
    exact = attribute(model, pool, queries, "tracin", basis=basis, dtype="float32")
    assert "half_precision" not in exact.metadata["moments"][0]
    half = attribute(model, pool, queries, "tracin", basis=basis, dtype="bfloat16")
    found = half.metadata["moments"][0]["half_precision"]["loss"]
    assert 0 < found["relative_difference"] < 0.1
    assert 0.9 < found["rank_correlation"] <= 1
    assert "rank correlation" in capsys.readouterr().err


@pytest.mark.parametrize("basis", ["eigen", "exact"])
def test_half_precision_is_compared_at_the_first_moment_only(
    tmp_path: Path, basis: str, capsys: Any, monkeypatch: Any
) -> None:
    calls: list[str] = []
    compare = view.View._precision_against_float32

    def counted(self: Any, *args: Any) -> Any:
        calls.append(args[0])
        return compare(self, *args)

    monkeypatch.setattr(view.View, "_precision_against_float32", counted)
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        bert(seed=seed).save_pretrained(folder)
    options: dict[str, Any] = {
        "checkpoints": folders,
        "basis": basis,
        "dtype": "bfloat16",
        "output_dir": tmp_path / "o",
    }
    pool = encoded(24, seed=1)
    scores = attribute(bert(), pool, None, "grad-norm", **options)
    assert len(calls) == 1
    assert capsys.readouterr().err.count("differ from float32") == 1
    facts = [moment["half_precision"] for moment in scores.metadata["moments"]]
    assert facts[0] == facts[1]
    # resumed with the first moment finished; then with its shards, but no result
    (first,) = (tmp_path / "o").glob("step-000000-*")
    (second,) = (tmp_path / "o").glob("step-000001-*")
    for damaged in ([second / "result.json"], [first / "result.json", second / "result.json"]):
        for file in damaged:
            file.unlink()
        monkeypatch.setattr(view, "gram", lambda *_, **__: pytest.fail("compared again"))
        again = attribute(bert(), pool, None, "grad-norm", **options)
        np.testing.assert_array_equal(again.values, scores.values)
        assert [moment["half_precision"] for moment in again.metadata["moments"]] == facts
    assert "differ from float32" not in capsys.readouterr().err


def test_a_rank_correlation_that_is_not_defined_is_none(capsys: Any) -> None:
    scores = attribute(bert(), encoded(1), None, "grad-norm", dtype="bfloat16")
    assert scores.metadata["moments"][0]["half_precision"]["loss"]["rank_correlation"] is None
    said = capsys.readouterr().err
    assert "differ from float32" in said
    assert "rank correlation" not in said


@pytest.mark.parametrize("folder", ["", 0, True, [], b""])
def test_an_output_folder_that_is_no_path(folder):
    with pytest.raises(OptionError, match=r"output_dir=.* must be the path of a folder, or None"):
        attribute(bert(), encoded(3), None, "random", output_dir=folder)
