"""nice, less and rds inside Trainer and SFTTrainer: looking must not touch, and what rewards and Adam know is right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import SFTConfig, SFTTrainer

from hfdataopt import AttributionCallback, attribute
from hfdataopt.errors import HfDataOptError

from ..policy import Recorder, good_words, negative_log_likelihood, prompts, reader, speaker, weights_of
from ..tiny import questions, row_gradient
from ..training import Moments, adam_step, cosines, mean_loss_gradients, trainer

SHORT: dict[str, Any] = {"samples": 4, "max_new_tokens": 4}
QUICK: dict[str, dict[str, Any]] = {
    "nice": {"reward_funcs": good_words, "floats_per_row": 1024, **SHORT},
    "nice-amc": {"reward_funcs": good_words, "floats_per_row": 1024, "column": "completion"},
    "less": {"floats_per_row": 1024},
    "rds": {},
}
BF16: dict[str, Any] = {
    "bf16": True,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def with_dropout() -> Any:
    model = speaker()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    return model


def with_lora() -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(
        speaker(), LoraConfig(r=2, task_type="CAUSAL_LM", lora_dropout=0.1, target_modules=["q_proj", "down_proj"])
    )


def callbacks(names: Any = QUICK) -> dict[str, AttributionCallback]:
    made = {}
    for name in names:
        queries = questions(4, seed=9) if name in ("less", "rds") else prompts(4, seed=3)
        made[name] = AttributionCallback(name, queries=queries, batch_size=3, **QUICK[name])
    return made


@pytest.mark.parametrize(
    ("make", "options"),
    [(with_dropout, {}), (with_lora, {"gradient_accumulation_steps": 2, **BF16})],
    ids=["full", "lora-bf16-checkpointing-accumulation"],
)
def test_training_is_bit_identical(tmp_path: Path, make: Any, options: dict[str, Any]) -> None:
    options = {"save_strategy": "no", **options}
    plain = trainer(tmp_path / "plain", model=make(), **options)
    plain.train()
    made = callbacks()
    watched = trainer(tmp_path / "watched", *made.values(), model=make(), **options)
    watched.train()
    assert_same(weights(plain.model), weights(watched.model))
    assert plain.state.global_step == watched.state.global_step > 0
    for name, callback in made.items():
        assert callback.scores is not None
        assert np.isfinite(callback.scores.values).all()
        moments = callback.scores.metadata["moments"]
        assert len(moments) == (1 if name == "rds" else 2)
        assert moments[0]["precision"] == ("bfloat16" if "bf16" in options else "float32")
        if name != "rds":
            assert [moment["precondition"] for moment in moments] == ["less", "less"]


def test_dropout_is_on_in_these_tests(tmp_path: Path) -> None:
    runs = []
    for make in (with_dropout, speaker):
        run = trainer(tmp_path, model=make(), save_strategy="no", max_steps=1)
        run.train()
        runs.append(weights(run.model)["lm_head.weight"])
    assert not torch.equal(*runs)


def test_the_authors_settings_equal_autograd(tmp_path: Path) -> None:
    """Raw rewards, truncated sampling, no end token, Adam's steps, cosines, learning rates: all of it, one by one."""
    kept, reward, queries = Moments(), Recorder(), prompts(4, seed=3)
    callback = AttributionCallback(
        "nice", queries=queries, reward_funcs=reward, preset="paper", max_new_tokens=4, basis="exact", batch_size=7
    )
    run = trainer(tmp_path, kept, callback, save_strategy="no")
    run.train()
    assert callback.scores is not None
    read, total = reader(), np.zeros((12, 4))
    half = len(reward.calls) // 2
    for at, (values, states) in enumerate(zip(kept.weights, kept.states, strict=True)):
        model = speaker()
        model.load_state_dict(values)
        model = model.double().eval()
        seen = Recorder()
        seen.calls = reward.calls[:half] if at == 0 else reward.calls[half:]
        columns = []
        for row in queries:
            asked = seen.asked[row["row_id"]]
            assert len(asked) == 20
            given = zip(asked, weights_of(good_words(asked), "none"), strict=True)
            start = read(row["prompt"])["input_ids"]
            columns.append(
                sum(
                    w * row_gradient(model, negative_log_likelihood(model, start, ids)) for ids, w in given if ids and w
                )
            )
        rows = mean_loss_gradients(model, run.train_dataset, states, "less")
        rate = np.mean([3e-3, 2.5e-3, 2e-3] if at == 0 else [1.5e-3, 1e-3, 0.5e-3])
        total += rate * cosines(rows, torch.stack(columns)).numpy()
    np.testing.assert_allclose(callback.scores.matrix, total, rtol=1e-4, atol=1e-5 * np.abs(total).max())


def test_rewards_get_the_state_of_the_training(tmp_path: Path) -> None:
    reward = Recorder()
    callback = AttributionCallback(
        "nice", queries=prompts(4, 3), reward_funcs=reward, **{**SHORT, "floats_per_row": 1024}
    )
    trainer(tmp_path, callback, save_strategy="no").train()
    states = [(call["trainer_state"].global_step, call["trainer_state"].epoch) for call in reward.calls]
    assert sorted(set(states)) == [(3, 1.0), (6, 2.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_new_tokens": 60},
            r"the prompt of row 'q\d' has \d+ tokens; with max_new_tokens=60 that is more than the 64",
        ),
        ({"reward_weights": [1.0, 2.0]}, r"nice: reward_weights="),
        ({"keep": "hard-rejection"}, r"nice: keep='hard-rejection' compares with a reference answer"),
        ({"reward_funcs": "/nowhere/judge"}, r"nice: reward model 'judge' cannot be loaded"),
    ],
)
def test_what_cannot_work_stops_before_training(tmp_path: Path, options: Any, message: str) -> None:
    queries, given = prompts(4, 3).remove_columns("completion"), {"reward_funcs": good_words, **SHORT, **options}
    run = trainer(tmp_path, AttributionCallback("nice", queries=queries, **given))
    with pytest.raises(HfDataOptError, match=message):
        run.train()
    assert run.state.global_step == 0


def test_a_step_by_lora_equals_autograd(tmp_path: Path) -> None:
    """Only adapters are differentiated, and their moments are found under their names."""
    kept = Moments()
    callback = AttributionCallback("less", queries=questions(4, seed=9), basis="exact")
    run = trainer(tmp_path, kept, callback, model=with_lora(), save_strategy="no", max_steps=3)
    run.train()
    assert callback.scores is not None
    model = with_lora()
    model.load_state_dict(kept.weights[0])
    model = model.double().eval()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    parameters, found = dict(model.named_parameters()), []
    for dataset, states in ((run.train_dataset, kept.states[0]), (questions(4, seed=9), None)):
        rows = []
        for row in dataset:
            batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
            gradients = torch.autograd.grad(model(**batch).loss, [parameters[name] for name in names])
            steps = [
                g.double() if states is None else adam_step(states[name], g.double(), "less")
                for name, g in zip(names, gradients, strict=True)
            ]
            rows.append(torch.cat([step.flatten() for step in steps]))
        found.append(torch.stack(rows))
    rate = callback.scores.metadata["moments"][0]["learning_rate"]
    expected = rate * cosines(*found).numpy()
    np.testing.assert_allclose(callback.scores.matrix, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_saved_adapters_give_the_scores_of_the_training(tmp_path: Path) -> None:
    options = {"reward_funcs": good_words, "basis": "exact", **SHORT}
    callback = AttributionCallback("nice", queries=prompts(4, 3), **options)
    run = trainer(tmp_path, callback, model=with_lora())
    run.train()
    assert callback.scores is not None
    saved = [tmp_path / f"checkpoint-{step}" for step in (3, 6)]
    scores = attribute(
        with_lora(), run.train_dataset, prompts(4, 3), "nice", checkpoints=saved, processing_class=reader(), **options
    )
    size = np.nanmax(np.abs(callback.scores.matrix))
    np.testing.assert_allclose(scores.matrix, callback.scores.matrix, rtol=1e-4, atol=1e-5 * size)
    assert [moment["precondition"] for moment in scores.metadata["moments"]] == ["less", "less"]


# -- SFTTrainer

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}the {{ m['content'] }} <eos>{% else %}{{ m['content'] }} "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}the{% endif %}"
)


def spoken(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"].strip()}],
    }


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("form", ["text", "conversation"])
def test_sft_trainer_with_prompts_and_completions(tmp_path: Path, form: str, lora: bool) -> None:
    from peft import LoraConfig

    read = reader()
    read.chat_template = TEMPLATE
    pool, queries = prompts(8, 1, ids=False).remove_columns("answer"), prompts(4, 3)
    if form == "conversation":
        pool, queries = (data.map(spoken, load_from_cache_file=False) for data in (pool, queries))
    runs, reward = [], Recorder()
    for folder in ("plain", "watched"):
        callback = AttributionCallback(
            "nice", queries=queries, reward_funcs=[reward], **{**SHORT, "floats_per_row": 1024}
        )
        args = SFTConfig(
            str(tmp_path / folder),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            max_length=32,
        )
        torch.manual_seed(0)
        run = SFTTrainer(
            model=speaker(),
            args=args,
            train_dataset=pool,
            processing_class=read,
            peft_config=LoraConfig(r=2, task_type="CAUSAL_LM") if lora else None,
            callbacks=[callback] if folder == "watched" else [],
        )
        run.train()
        runs.append(weights(run.model))
    assert_same(*runs)
    scores = callback.scores
    assert scores is not None
    assert scores.matrix.shape == (8, 4)
    assert np.isfinite(scores.values).all()
    assert [moment["step"] for moment in scores.metadata["moments"]] == [2, 4]
    assert [moment["precondition"] for moment in scores.metadata["moments"]] == ["less", "less"]
    call = reward.calls[0]
    assert isinstance(call["completions"][0], str if form == "text" else list)
    assert set(call) >= {"prompts", "completions", "completion_ids", "trainer_state", "answer"}
    joined = scores.join(pool)
    assert joined.column_names[-1] == "score_nice"
