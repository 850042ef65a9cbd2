"""What the two processes are given to do, and the same for one process."""

import copy
import functools
import json
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import AttributionCallback, Scores, attribute
from hfdataopt.attribution import completions, reader
from hfdataopt.attribution.checkpoint import Checkpoint
from hfdataopt.attribution.processes import Processes
from hfdataopt.attribution.rows import pad_batch
from hfdataopt.errors import DataError, HfDataOptError, OptionError, StoreError
from hfdataopt.testing import tiny

POOL, QUERIES, BATCH, FEW = 13, 5, 3, 5  # neither is divided by the other, nor by two
QUICK: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-2, "train_batch_size": 4}


def logging_words(completion_ids: Any, log_metric: Any = None, **_: Any) -> list[float]:
    """A reward that logs something which differs from call to call."""
    log_metric("tokens", float(np.mean([len(ids) for ids in completion_ids])))
    return tiny.good_words(completion_ids)


REWARDED: dict[str, Any] = {"reward_funcs": logging_words, "samples": 3, "max_new_tokens": 4}
# Every way of computing that a scorer has, by the name of its results.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "cv-confidence": ("cv-confidence", {"folds": 3}),
    "freeshap": ("freeshap", {"permutations": 4}),
    "freeshap-features": ("freeshap", {"permutations": 4, "kernel": "hidden", "per_query": True}),
    "grad-norm": ("grad-norm", {}),
    "influence": ("influence", {}),
    "influence-eigen": ("influence", {"basis": "eigen", "floats_per_row": 300}),
    "influence-datainf": ("influence", {"solver": "datainf", "basis": "random", "floats_per_row": 300}),
    "influence-cg": ("influence", {"solver": "cg", "iterations": 8}),
    "influence-lissa": ("influence", {"solver": "lissa", "iterations": 8, "per_query": False}),
    "knn-shapley": ("knn-shapley", {}),
    "label-consistency": ("label-consistency", {}),
    "less": ("less", {"precondition": "none", "floats_per_row": 300}),
    "less-adam": ("less", {"precondition": "less", "floats_per_row": 300}),
    "loo": ("loo", {}),
    "loo-retraining": ("loo-retraining", QUICK),
    "loss": ("loss", {}),
    "nice": ("nice", {**REWARDED, "floats_per_row": 300, "precondition": "none"}),
    "nice-exact": ("nice", {**REWARDED, "basis": "exact", "precondition": "none"}),
    "nice-amc": (
        "nice-amc",
        {"reward_funcs": tiny.good_words, "column": "completion", "floats_per_row": 300, "precondition": "none"},
    ),
    "nice-if": ("nice-if", {**REWARDED, "solver": "ekfac", "basis": "eigen", "floats_per_row": 300}),
    "random": ("random", {}),
    "rds": ("rds", {}),
    "representer": ("representer", {}),
    "self-influence": ("self-influence", {}),
    "self-influence-random": ("self-influence", {"basis": "random", "floats_per_row": 300}),
    "tmc-shapley": ("tmc-shapley", {"permutations": 3, **QUICK}),
    "tracin": ("tracin", {"floats_per_row": 300}),
    "tracin-sketch": ("tracin", {"basis": "sketch", "floats_per_row": 300}),
    "tracin-exact": ("tracin", {"basis": "exact"}),
}
RETRAINS = ("loo-retraining", "tmc-shapley")
PROMPTED = ("nice", "nice-amc", "nice-if")


def small_pieces() -> None:
    """Several shards for each process."""
    reader.ROWS_PER_SHARD, completions.QUERIES_AT_ONCE = 4, 2


@functools.cache
def data(scorer: str) -> tuple[Any, Any, Any, Any]:
    """Model, pool, queries and tokenizer that a scorer can read."""
    if scorer in PROMPTED:
        return tiny.speaker(), tiny.questions(POOL, 1), tiny.prompts(QUERIES, 3), tiny.reader()
    rows = FEW if scorer in RETRAINS else POOL
    return tiny.bert().eval(), tiny.encoded(rows, flipped=(3,)), tiny.encoded(QUERIES, seed=7), tiny.tokenizer()


def by_attribute(way: str, folder: Path | None) -> Scores:
    scorer, options = WAYS[way]
    model, pool, queries, tokenizer = data(scorer)
    return attribute(
        model, pool, queries, scorer, processing_class=tokenizer, batch_size=BATCH, output_dir=folder, **options
    )


def keep(scores: Scores, folder: Path, name: str) -> None:
    """What this process has, to be compared by the test."""
    parts = {"values": scores.values, "matrix": scores.matrix, "errors": scores.standard_errors}
    found = {part: value for part, value in parts.items() if value is not None}
    index = Processes.current().index
    np.savez(folder / f"{name}.{index}.npz", **found)
    (folder / f"{name}.{index}.json").write_text(json.dumps(scores.metadata, sort_keys=True))


def score(folder: Path, ways: list[str], kept: bool | str) -> None:
    """``attribute`` with each of the ways, in folders of their own, in the one that is named, or in none."""
    small_pieces()
    for way in ways:
        where = Path(kept) if isinstance(kept, str) else folder / way if kept else None
        keep(by_attribute(way, where), folder, way)
    assert Processes.current().count == torch.distributed.get_world_size() == 2


def collate(rows: list[Any]) -> dict[str, Any]:
    return pad_batch(rows)


def train(folder: Path, ways: list[str], when: str = "train_begin", **arguments: Any) -> None:
    """A ``Trainer`` with a callback for each of the ways."""
    from transformers import Trainer, TrainingArguments

    small_pieces()
    for prompted in (False, True):
        callbacks: dict[str, AttributionCallback] = {}
        for way in ways:
            scorer, options = WAYS[way]
            if (scorer in PROMPTED) == prompted:
                model, pool, queries, tokenizer = data(scorer)
                where = folder / f"kept-{way}"
                callbacks[way] = AttributionCallback(
                    scorer, queries=queries, when=when, batch_size=BATCH, output_dir=where, **options
                )
        if not callbacks:
            continue
        args = TrainingArguments(
            str(folder / f"trainer-{prompted}"),
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **{"max_steps": 1, "save_strategy": "no", **arguments},
        )
        trainer = Trainer(
            copy.deepcopy(model),
            args,
            train_dataset=pool,
            data_collator=collate,
            processing_class=tokenizer,
            callbacks=list(callbacks.values()),
        )
        trainer.train()
        assert args.world_size == Processes.current().count == 2
        for way, callback in callbacks.items():
            keep(callback.scores, folder, way)


def finetune(folder: Path, kind: str) -> None:
    """TRL's trainers with callbacks; the rows are prepared by the trainer."""
    callbacks = {"tracin": {"floats_per_row": 300}, "loss": {}, "rds": {}}
    made = {
        name: AttributionCallback(
            name,
            queries=sft_queries() if kind == "sft" else tokenized_preferences(QUERIES, 7),
            when="train_begin",
            batch_size=BATCH,
            output_dir=folder / f"kept-{name}",
            **options,
        )
        for name, options in callbacks.items()
    }
    trl_trainer(folder, kind, list(made.values())).train()
    for name, callback in made.items():
        keep(callback.scores, folder, name)


def sft_rows(rows: int, seed: int = 0) -> Any:
    return tiny.prompts(rows, seed).select_columns(["prompt", "completion"])


def sft_queries() -> Any:
    return tiny.questions(QUERIES, 7)


def trl_trainer(folder: Path, kind: str, callbacks: list[Any]) -> Any:
    import trl

    shared: dict[str, Any] = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "max_length": 24,
    }
    rest: dict[str, Any] = {"model": tiny.llama(), "processing_class": tiny.reader(), "callbacks": callbacks}
    if kind == "sft":
        return trl.SFTTrainer(args=trl.SFTConfig(str(folder / "sft"), **shared), train_dataset=sft_rows(POOL), **rest)
    if kind == "reward":
        args = trl.RewardConfig(str(folder / "reward"), gradient_checkpointing=False, **shared)
        rest |= {"model": tiny.bert(labels=1), "processing_class": tiny.tokenizer()}
        return trl.RewardTrainer(args=args, train_dataset=preferences(POOL), **rest)
    args = trl.DPOConfig(str(folder / "dpo"), **shared)
    return trl.DPOTrainer(args=args, ref_model=tiny.llama(), train_dataset=preferences(POOL), **rest)


def tokenized_preferences(rows: int, seed: int = 0) -> Any:
    read, found = tiny.tokenizer(), preferences(rows, seed)
    return found.map(
        lambda row: {f"{x}_ids": read(row["prompt"] + row[x])["input_ids"] for x in ("chosen", "rejected")}
    )


def preferences(rows: int, seed: int = 0) -> Any:
    return tiny.rows(rows, seed).select_columns(["prompt", "chosen", "rejected"])


# -- death and long work


def score_and_die(folder: Path, way: str, rank: int, writes: int) -> None:
    """As ``score``, but process ``rank`` is killed when it is to write for the ``writes``-th time."""
    from hfdataopt.gradients import store

    small_pieces()
    made = 0
    original = store.write_whole

    def write(path: Path, content: bytes) -> None:
        nonlocal made
        made += path.name.startswith("shard-")
        if made == writes and Processes.current().index == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, content)

    store.write_whole = write
    try:
        by_attribute(way, folder / "kept")
    except HfDataOptError as error:
        print(f"ended by: {error}", flush=True)
        raise


def patience(folder: Path, limit: float, work: float) -> None:
    """One process works for longer than the training's group would wait."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=limit))
    state = Processes.current()

    def slow() -> int:
        time.sleep(work)
        return 7

    assert state.run_on_main(slow) == 7
    state.together(lambda: time.sleep(0.0 if state.is_main else work))
    assert state.gather(state.index) == [0, 1]


def unshared(folder: Path) -> None:
    """The processes are given folders of their own, as on machines that share no file system."""
    state = Processes.current()
    model, pool, queries, _ = data("tracin")
    with pytest.raises(StoreError, match=r"loss: process 1 of 2 does not see what process 0 writes"):
        attribute(model, pool, queries, "loss", output_dir=folder / f"machine-{state.index}")
    assert not list(folder.glob("machine-*/step-*"))


def refused(folder: Path) -> None:
    """Scorers of other packages run in one process."""
    model, pool = tiny.llama(), tiny.plain_texts(POOL)
    for name in ("bergson", "kronfluence"):
        with pytest.raises(OptionError, match=f"{name}: runs in one process, and there are 2"):
            attribute(model, pool, pool.select(range(2)), name)


def observed(folder: Path) -> None:
    """The hook that observers have is called once, not in every process."""
    from hfdataopt.hookspecs import hookimpl
    from hfdataopt.plugins import host

    class Observer:
        @hookimpl
        def after_scoring(self, scores: Scores) -> None:
            (folder / f"told-{Processes.current().index}").touch()

    host().manager.register(Observer())
    model, pool, _, _ = data("loss")
    attribute(model, pool, None, "random")


# -- weights that are spread over processes


def sharded(folder: Path) -> None:
    """FSDP2 on gloo: refused everywhere, and the whole weights that are saved are scored as ever."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.utils.data import DataLoader
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from hfdataopt import PromptConfig
    from hfdataopt.generation import LocalGenerator
    from hfdataopt.prompting.callback import PromptSearchCallback

    small_pieces()
    state = Processes.current()
    model, pool, queries = tiny.llama().eval(), tiny.questions(POOL, 1), tiny.questions(QUERIES, 2)
    expected = attribute(model, pool, queries, "tracin", floats_per_row=300, batch_size=BATCH)
    mesh = init_device_mesh("cpu", (state.count,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    advice = "FSDP2 or tensor parallelism spreads the weights over processes.*merge-weights.*checkpoints="
    with pytest.raises(OptionError, match=f"attribute: {advice}"):
        attribute(model, pool, queries, "loss")
    with pytest.raises(OptionError, match=f"generation: {advice}"):
        LocalGenerator(model, tiny.reader())
    parts = {"model": model, "train_dataloader": DataLoader(pool, collate_fn=pad_batch)}
    args = TrainingArguments(str(folder), report_to="none", use_cpu=True)
    search = PromptSearchCallback("random", PromptConfig(), reward_funcs=tiny.good_words, train_dataset=pool)
    for callback in (AttributionCallback("loss"), search):
        with pytest.raises(OptionError, match=advice):
            callback.on_train_begin(args, TrainerState(), TrainerControl(), **parts)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state.is_main:
        tiny.llama().save_pretrained(folder / "merged", state_dict=whole)
    state.wait()
    merged = Checkpoint(folder / "merged", learning_rate=1.0)
    options: dict[str, Any] = {"floats_per_row": 300, "batch_size": BATCH, "checkpoints": [merged]}
    found = attribute(tiny.llama(), pool, queries, "tracin", **options)
    np.testing.assert_array_equal(found.matrix, expected.matrix)


# -- prompts


def reward(completions: list[str], **_: Any) -> list[float]:
    return [len(set(text)) / 10 for text in completions]


def broken(completions: list[str], **_: Any) -> list[float]:
    raise ZeroDivisionError("in the reward")


def search(folder: Path) -> None:
    """A prompt search: the first process asks the model, both have the result, an error is raised in both."""
    from hfdataopt import PromptConfig, PromptTrainer

    state = Processes.current()
    config = PromptConfig(
        max_calls=60, items=4, logging_steps=0, output_dir=str(folder / "search"), start=["be kind", "be brief", "hum"]
    )
    rows = tiny.prompts(17)

    def model(prompts: list[Any]) -> list[str]:
        with open(folder / f"asked-{state.index}", "a") as file:
            file.write("\n" * len(prompts))
        return [str(prompt)[::-1] for prompt in prompts]

    trainer = PromptTrainer("random", model=model, args=config, reward_funcs=reward, train_dataset=rows)
    result = trainer.train()
    assert trainer.best_prompt == result.prompt.instruction
    (folder / f"found-{state.index}.json").write_text(json.dumps({**result.to_json(), "seconds": 0}, default=str))
    with pytest.raises(DataError, match="in the reward"):
        PromptTrainer(
            "random", model=model, args=PromptConfig(max_calls=60, items=4), reward_funcs=broken, train_dataset=rows
        ).train()


def search_in_training(folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from hfdataopt import PromptConfig
    from hfdataopt.prompting.callback import PromptSearchCallback

    config = PromptConfig(max_calls=8, items=2, leaders=0, max_new_tokens=3, logging_steps=0, start=["be kind", "hum"])
    looking = PromptSearchCallback("random", config, reward_funcs=tiny.good_words, train_dataset=tiny.prompts(9))
    args = TrainingArguments(
        str(folder),
        max_steps=2,
        num_train_epochs=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    Trainer(
        tiny.speaker(positions=512),
        args,
        train_dataset=tiny.questions(POOL, 1),
        data_collator=collate,
        processing_class=tiny.reader(),
        callbacks=[looking],
    ).train()
    (folder / f"best-{Processes.current().index}").write_text(looking.best_prompt)


def command(folder: Path) -> None:
    """``hfdataopt score`` under a launcher."""
    from hfdataopt.cli import main

    files = [
        "--model",
        str(folder / "model"),
        "--pool",
        str(folder / "pool.jsonl"),
        "--output_dir",
        str(folder / "kept"),
    ]
    assert main(["score", "--scorer", "loss", *files, "--show", "2"]) == 0
