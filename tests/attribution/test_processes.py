"""Two processes give one process's scores, and an error on one of them stops both."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hfdataopt import Scores, attribute
from hfdataopt.attribution.processes import Processes

from ..policy import good_words, prompts, reader, speaker
from ..tiny import bert, encoded, questions

ROOT = Path(__file__).parents[2]

COMMON = """
import os, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, os.environ["TESTED_ROOT"])
from hfdataopt import AttributionCallback, attribute
from hfdataopt.attribution import reader, view
from hfdataopt.attribution.processes import Processes
from hfdataopt.errors import DataError, StoreError
from tests.tiny import bert, encoded, tokenizer
reader.ROWS_PER_SHARD = 4
out = sys.argv[1]
pool, queries = encoded(13), encoded(5, seed=7)
OPTIONS = {"tracin": {"floats_per_row": 300}, "freeshap": {"permutations": 4}}
"""

ATTRIBUTE = (
    COMMON
    + """
state = Processes.current()
assert state.count == torch.distributed.get_world_size() == 2
for name in ("tracin", "freeshap", "loss", "random", "self-influence", "knn-shapley"):
    for kept in (True, False):
        folder = f"{out}/{name}-kept" if kept else None
        scores = attribute(bert().eval(), pool, queries, name, output_dir=folder, batch_size=3, **OPTIONS.get(name, {}))
        scores.save(f"{out}/{name}-{kept}-{state.index}")
again = attribute(bert().eval(), pool, queries, "tracin", output_dir=f"{out}/tracin-kept", **OPTIONS["tracin"])
again.save(f"{out}/again-{state.index}")

def write(self, shard, arrays):
    if state.index == 1:
        raise DataError("only here")
    original(self, shard, arrays)

original, reader.GradientStore.write = reader.GradientStore.write, write
for folder in (f"{out}/broken", None):
    try:
        attribute(bert().eval(), pool, queries, "loss", output_dir=folder)
    except DataError as error:
        assert "only here" in str(error)
        open(f"{out}/raised-{folder is None}-{state.index}", "w").close()
try:
    attribute(bert().eval(), pool, queries, "loss", output_dir="/proc/hfdataopt")
except StoreError as error:
    open(f"{out}/refused-{state.index}", "w").close()
"""
)

TRAINER = (
    COMMON
    + """
from transformers import Trainer, TrainingArguments
names = ["tracin", "freeshap", "loss"]
callbacks = [AttributionCallback(n, queries=queries, when="train_begin", **OPTIONS.get(n, {})) for n in names]
epochs = AttributionCallback("loss", output_dir=f"{out}/epochs")
args = TrainingArguments(out, num_train_epochs=2, per_device_train_batch_size=2, report_to="none", disable_tqdm=True,
                         use_cpu=True, save_strategy="no")
trainer = Trainer(bert(), args, train_dataset=pool, processing_class=tokenizer(), callbacks=[*callbacks, epochs])
trainer.train()
assert args.world_size == 2 and Processes.current().count == 2
for name, callback in zip(names, callbacks):
    callback.scores.save(f"{out}/{name}-scores-{args.process_index}")
assert len(epochs.scores) == 13
torch.save(trainer.model.state_dict(), f"{out}/weights-{args.process_index}")
"""
)

POLICY = (
    COMMON
    + """
from hfdataopt.attribution import completions
from transformers import Trainer, TrainingArguments
from tests.attribution.test_processes import NICE, rewarded
from tests.policy import prompts, reader as read, speaker
from tests.tiny import questions
completions.QUERIES_AT_ONCE = 2
state = Processes.current()
pool, asked = questions(13, 1), prompts(5, 3)
for name, options in NICE.items():
    for kept in (True, False):
        folder = f"{out}/{name}-kept" if kept else None
        given = {"processing_class": read(), "batch_size": 3, "output_dir": folder, **options}
        if "reward_funcs" in given:
            given["reward_funcs"] = rewarded(f"{out}/{name}-{kept}-calls-{state.index}")
        scores = attribute(speaker().eval(), pool, asked, name, **given)
        scores.save(f"{out}/{name}-{kept}-{state.index}")

def fails(prompts, row_id, **_):
    if "q1" in row_id:
        raise ZeroDivisionError("only where q1 is")
    return [0.0] * len(prompts)

try:
    attribute(speaker(), pool, asked, "nice", processing_class=read(), **{**NICE["nice"], "reward_funcs": fails})
except DataError as error:
    assert "only where q1 is" in str(error), error
    open(f"{out}/raised-{state.index}", "w").close()

options = {name: value for name, value in NICE["nice"].items() if name != "precondition"}
options["reward_funcs"] = rewarded(f"{out}/trained-calls-{state.index}")
callback = AttributionCallback("nice", queries=asked, batch_size=3, output_dir=f"{out}/trained", **options)
args = TrainingArguments(out, num_train_epochs=2, per_device_train_batch_size=2, report_to="none", disable_tqdm=True,
                         use_cpu=True, save_strategy="epoch", logging_steps=1)
from hfdataopt.attribution.rows import pad_batch
Trainer(speaker(), args, train_dataset=pool, data_collator=pad_batch, processing_class=read(), callbacks=[callback]).train()
callback.scores.save(f"{out}/trained-{state.index}")
"""
)


def torchrun(tmp_path: Path, code: str) -> str:
    script = tmp_path / "script.py"
    (tmp_path / "temporary").mkdir()
    script.write_text(code)
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path / "temporary"),
        "HF_HUB_OFFLINE": "1",
        "TESTED_ROOT": str(ROOT),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=270
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


OPTIONS: dict[str, dict[str, Any]] = {"tracin": {"floats_per_row": 300}, "freeshap": {"permutations": 4}}


def alone(name: str) -> Scores:
    pool, queries = encoded(13), encoded(5, seed=7)
    return attribute(bert().eval(), pool, queries, name, batch_size=3, **OPTIONS.get(name, {}))


def close(scores: Scores, expected: Scores) -> None:
    assert len(scores) == len(expected) == 13
    np.testing.assert_allclose(scores.values, expected.values, rtol=1e-5, atol=1e-5 * np.abs(expected.values).max())


def test_attribute_in_two_processes(tmp_path: Path) -> None:
    torchrun(tmp_path, ATTRIBUTE)
    for name in ("tracin", "freeshap", "loss", "random", "self-influence", "knn-shapley"):
        expected = alone(name)
        for kept in (True, False):
            for process in (0, 1):
                close(Scores.load(tmp_path / f"{name}-{kept}-{process}"), expected)
    close(Scores.load(tmp_path / "again-1"), alone("tracin"))
    # An error on one process is raised on both, so that neither waits for the other.
    assert len(list(tmp_path.glob("raised-*"))) == 4
    assert len(list(tmp_path.glob("refused-*"))) == 2
    assert not list((tmp_path / "temporary").glob("hfdataopt-*"))


def test_the_callback_in_two_processes(tmp_path: Path) -> None:
    torchrun(tmp_path, TRAINER)
    weights = [torch.load(tmp_path / f"weights-{process}", weights_only=True) for process in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ("tracin", "freeshap", "loss"):
        for process in (0, 1):
            close(Scores.load(tmp_path / f"{name}-scores-{process}"), alone(name))


NICE: dict[str, dict[str, Any]] = {
    "nice": {
        "reward_funcs": good_words,
        "samples": 5,
        "max_new_tokens": 5,
        "basis": "exact",
        "precondition": "none",
    },
    "nice-amc": {"reward_funcs": good_words, "column": "completion", "floats_per_row": 1024, "precondition": "none"},
}


def rewarded(file: str) -> Any:
    """A reward function that writes down the queries it was asked about."""

    def reward(row_id: Any, **keywords: Any) -> Any:
        with open(file, "a") as stream:
            stream.write("".join(f"{row}\n" for row in row_id))
        return good_words(**keywords)

    return reward


def test_policy_gradients_in_two_processes(tmp_path: Path) -> None:
    torchrun(tmp_path, POLICY)
    pool, queries = questions(13, 1), prompts(5, 3)
    for name, options in NICE.items():
        expected = attribute(speaker().eval(), pool, queries, name, processing_class=reader(), batch_size=3, **options)
        for kept in (True, False):
            for process in (0, 1):
                close(Scores.load(tmp_path / f"{name}-{kept}-{process}"), expected)
            # each completion is rewarded once, by one of the two
            asked = [(tmp_path / f"{name}-{kept}-calls-{process}").read_text().split() for process in (0, 1)]
            assert not set(asked[0]) & set(asked[1])
            assert sorted(asked[0] + asked[1]) == sorted(list(queries["row_id"]) * options.get("samples", 1))
    assert len(list(tmp_path.glob("raised-*"))) == 2
    # the callback: both processes have the scores of one process at the checkpoints that were saved
    saved = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    options = {name: value for name, value in NICE["nice"].items() if name != "precondition"}
    expected = attribute(
        speaker(), pool, queries, "nice", processing_class=reader(), checkpoints=saved, batch_size=3, **options
    )
    for process in (0, 1):
        scores = Scores.load(tmp_path / f"trained-{process}")
        assert [m["precondition"] for m in scores.metadata["moments"]] == ["less", "less"]
        close(scores, expected)


# -- one process


def fail() -> None:
    raise ZeroDivisionError


def test_one_process_needs_nothing_of_accelerate() -> None:
    processes = Processes.current()
    assert (processes.index, processes.count, processes.is_main) == (0, 1, True)
    assert processes.run_on_main(lambda: 3) == 3
    assert processes.broadcast("x") == "x"
    with pytest.raises(ZeroDivisionError):
        processes.together(fail)
