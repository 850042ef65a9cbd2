"""Nothing is lost: killed and resumed runs end with the same scores; a disk that cannot be written is one clear error."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments

from hfdataopt import AttributionCallback, Scores, attribute
from hfdataopt.attribution import reader as row_reader
from hfdataopt.attribution import view
from hfdataopt.errors import StoreError
from hfdataopt.generation import LocalGenerator

from ..policy import good_words, prompts, reader, speaker
from ..tiny import bert, encoded, questions, tokenizer
from ..training import trainer as policy_trainer

ROOT = Path(__file__).parents[2]
ROWS = 40
SHARD = 5


def run_python(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


SCORE = """
import json, sys, time, torch
torch.set_num_threads(1)
from hfdataopt import attribute
from hfdataopt.attribution import reader, view
from hfdataopt.gradients import GradientStore
from tests.tiny import bert, encoded
folder, name, options, pause = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
reader.ROWS_PER_SHARD = 5
write = GradientStore.write
def slow(self, shard, arrays):
    write(self, shard, arrays)
    print("wrote", self.folder.name, shard, flush=True)
    time.sleep(pause)
GradientStore.write = slow
attribute(bert().eval(), encoded(40, ids=True), encoded(6, seed=7), name, output_dir=folder, **options)
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tracin", {"floats_per_row": 300}),
        ("freeshap", {"permutations": 4, "floats_per_row": 300}),
    ],
)
def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: Any, name: str, options: dict[str, Any]) -> None:
    monkeypatch.setattr(row_reader, "ROWS_PER_SHARD", SHARD)
    pool, queries = encoded(ROWS, ids=True), encoded(6, seed=7)
    undisturbed = attribute(bert().eval(), pool, queries, name, **options)
    process = run_python(SCORE, str(tmp_path), name, json.dumps(options), "0.2")
    assert process.stdout is not None
    written: list[str] = []
    for line in process.stdout:
        written.append(line.strip())
        if len([entry for entry in written if "pool" in entry]) == 3:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL, process.stderr.read() if process.stderr else ""
    assert not list(tmp_path.glob("scores.*"))
    again: list[tuple[str, int]] = []
    original = row_reader.GradientStore.write

    def counted(self: Any, shard: int, arrays: Any) -> None:
        again.append((self.folder.name, shard))
        original(self, shard, arrays)

    monkeypatch.setattr(row_reader.GradientStore, "write", counted)
    scores = attribute(bert().eval(), pool, queries, name, output_dir=tmp_path, **options)
    np.testing.assert_array_equal(scores.values, undisturbed.values)
    finished = {tuple(entry.split()[1:]) for entry in written}
    assert finished
    assert not finished & {(folder, str(shard)) for folder, shard in again}  # no finished shard is made again
    assert all(str(folder) for folder, _ in again)
    np.testing.assert_array_equal(Scores.load(tmp_path).values, undisturbed.values)


SAMPLE = """
import sys, time, torch
torch.set_num_threads(1)
from hfdataopt import attribute
from hfdataopt.attribution import completions
from tests.policy import good_words, prompts, reader, speaker
from tests.tiny import questions
completions.QUERIES_AT_ONCE = 2
folder, where = sys.argv[1:]
append = completions._Lines.append
def slow(self, document):
    append(self, document)
    if where in self.name:
        print("wrote", document["query"], document.get("number", ""), flush=True)
        time.sleep(0.1)
completions._Lines.append = slow
attribute(speaker().eval(), questions(9, 1), prompts(6, 3), "nice", output_dir=folder, processing_class=reader(),
          reward_funcs=good_words, samples=4, max_new_tokens=5, basis="exact", precondition="none", batch_size=4)
"""


@pytest.mark.parametrize(("where", "count"), [("completions", 7), ("rewards", 3)])
def test_completions_and_rewards_of_a_killed_run_are_taken_up(
    tmp_path: Path, monkeypatch: Any, where: str, count: int
) -> None:
    pool, queries = questions(9, 1), prompts(6, 3)
    options: dict[str, Any] = {
        "processing_class": reader(),
        "samples": 4,
        "max_new_tokens": 5,
        "basis": "exact",
        "precondition": "none",
        "batch_size": 4,
    }
    undisturbed = attribute(speaker().eval(), pool, queries, "nice", reward_funcs=good_words, **options)
    process = run_python(SAMPLE, str(tmp_path), where)
    assert process.stdout is not None
    written = []
    for line in process.stdout:
        if line.startswith("wrote"):
            written.append(line.split()[1:])
        if len(written) == count:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL, process.stderr.read() if process.stderr else ""
    (file,) = tmp_path.glob(f"step-*/{where}-*.jsonl")
    kept = len(file.read_bytes().splitlines())
    with file.open("ab") as stream:
        stream.write(b'{"query": 5, "num')  # the line that was being written
    made: list[Any] = []
    sample = LocalGenerator._sample

    def counted(self: Any, model: Any, prefixes: Any, prompts: Any, *rest: Any) -> Any:
        made.extend(prompts)
        return sample(self, model, prefixes, prompts, *rest)

    monkeypatch.setattr(LocalGenerator, "_sample", counted)
    scores = attribute(speaker().eval(), pool, queries, "nice", reward_funcs=good_words, output_dir=tmp_path, **options)
    assert len(made) == (24 - kept if where == "completions" else 0)
    np.testing.assert_array_equal(scores.values, undisturbed.values)
    lines = [json.loads(line) for line in file.read_bytes().splitlines() if line.endswith(b"}")]
    keys = [(line["query"], line.get("number")) for line in lines]
    assert len(keys) == len(set(keys)) == (24 if where == "completions" else 6)


class Crash(TrainerCallback):
    """Stops the training in the middle of the second epoch."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


def training(folder: Path, *callbacks: Any, **changes: Any) -> Trainer:
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "save_strategy": "epoch",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            **changes,
        }
    )
    return Trainer(bert(), args, train_dataset=encoded(12), processing_class=tokenizer(), callbacks=list(callbacks))


@pytest.mark.parametrize(
    ("name", "when", "saves"),
    [
        ("tracin", None, {"save_strategy": "epoch"}),
        ("tracin", None, {"save_strategy": "steps", "save_steps": 2}),
        ("loss", "save", {"save_strategy": "steps", "save_steps": 2}),
        ("knn-shapley", None, {"save_strategy": "epoch"}),
        ("loo", None, {"save_strategy": "epoch"}),
    ],
)
def test_a_resumed_training_ends_with_the_same_scores(tmp_path: Path, name: str, when: Any, saves: Any) -> None:
    queries = encoded(5, seed=7)
    undisturbed = AttributionCallback(name, queries=queries, when=when)
    training(tmp_path / "a", undisturbed, **saves).train()
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "b", AttributionCallback(name, queries=queries, when=when), Crash(), **saves).train()
    resumed = AttributionCallback(name, queries=queries, when=when)
    run = training(tmp_path / "b", resumed, **saves)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 9
    assert undisturbed.scores is not None
    assert resumed.scores is not None
    np.testing.assert_array_equal(resumed.scores.values, undisturbed.scores.values)
    steps = [[m["step"] for m in s.metadata["moments"]] for s in (undisturbed.scores, resumed.scores)]
    assert steps[0] == steps[1]
    rates = [[m["learning_rate"] for m in s.metadata["moments"]] for s in (undisturbed.scores, resumed.scores)]
    np.testing.assert_allclose(*rates)


@pytest.mark.parametrize(
    ("name", "when", "saves", "kill_at"),
    [
        ("loss", "save", {"save_strategy": "steps", "save_steps": 2}, 4),
        ("loss", "save", {"save_strategy": "epoch"}, 6),
        ("tracin", "epoch", {"save_strategy": "steps", "save_steps": 3}, 6),
        ("tracin", "epoch", {"save_strategy": "epoch"}, 6),
        ("loo", "save", {"save_strategy": "steps", "save_steps": 9}, 9),
        ("loo", "train_end", {"save_strategy": "steps", "save_steps": 3}, 9),
    ],
)
def test_a_moment_killed_while_scoring_is_made_up_for(
    tmp_path: Path, monkeypatch: Any, name: str, when: Any, saves: Any, kill_at: int
) -> None:
    queries = encoded(5, seed=7)
    undisturbed = AttributionCallback(name, queries=queries, when=when)
    training(tmp_path / "a", undisturbed, **saves).train()
    killed = AttributionCallback(name, queries=queries, when=when)
    score = type(killed.scorer).score

    def stop(self: Any, view: Any) -> Any:
        if view.moment.step == kill_at:
            raise KeyboardInterrupt
        return score(self, view)

    with monkeypatch.context() as patch:
        patch.setattr(type(killed.scorer), "score", stop)
        with pytest.raises(KeyboardInterrupt):
            training(tmp_path / "b", killed, **saves).train()
    resumed = AttributionCallback(name, queries=queries, when=when)
    training(tmp_path / "b", resumed, **saves).train(resume_from_checkpoint=True)
    assert undisturbed.scores is not None
    assert resumed.scores is not None
    np.testing.assert_array_equal(resumed.scores.values, undisturbed.scores.values)
    moments = [
        [(m["step"], m["epoch"], m["learning_rate"]) for m in s.metadata["moments"]]
        for s in (undisturbed.scores, resumed.scores)
    ]
    assert moments[0] == moments[1]


@pytest.mark.parametrize("when", ["save", "epoch"])
def test_a_moment_killed_while_another_callback_works_is_made_up_for(tmp_path: Path, when: Any) -> None:
    class Killed(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 6:
                raise KeyboardInterrupt

    saves = {"save_strategy": "steps", "save_steps": 3}
    undisturbed = AttributionCallback("loss", when=when)
    training(tmp_path / "a", undisturbed, **saves).train()
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "b", Killed(), AttributionCallback("loss", when=when), **saves).train()
    resumed = AttributionCallback("loss", when=when)
    training(tmp_path / "b", resumed, **saves).train(resume_from_checkpoint=True)
    assert undisturbed.scores is not None
    assert resumed.scores is not None
    np.testing.assert_array_equal(resumed.scores.values, undisturbed.scores.values)
    assert [m["step"] for m in resumed.scores.metadata["moments"]] == [3, 6, 9]


@pytest.mark.parametrize("name", ["nice", "less"])
def test_a_resumed_training_has_the_same_policy_gradients(tmp_path: Path, name: str) -> None:
    """Completions of the moment that was being scored are reused; Adam's moments are the resumed optimizer's."""

    def make(reward: Any) -> AttributionCallback:
        if name == "less":
            return AttributionCallback(name, queries=questions(4, 9), basis="exact")
        options = {"samples": 4, "max_new_tokens": 4, "basis": "exact", "reward_funcs": reward}
        return AttributionCallback(name, queries=prompts(4, 3), **options)

    def reward(**keywords: Any) -> list[float]:
        asked.append(keywords["trainer_state"].global_step)
        if stop and asked[-1] == 6:
            raise KeyboardInterrupt
        return good_words(**keywords)

    asked: list[int] = []
    stop: list[bool] = []  # no constant of the reward's closure, which would make it another reward
    undisturbed = make(reward)
    policy_trainer(tmp_path / "a", undisturbed, num_train_epochs=3).train()
    stop.append(True)
    with pytest.raises(KeyboardInterrupt):
        policy_trainer(tmp_path / "b", make(reward), *([Crash()] if name == "less" else []), num_train_epochs=3).train()
    asked = []
    stop.clear()
    resumed = make(reward)
    sampled = len(list((tmp_path / "b").rglob("completions-*.jsonl")))
    policy_trainer(tmp_path / "b", resumed, num_train_epochs=3).train(resume_from_checkpoint=True)
    assert undisturbed.scores is not None
    assert resumed.scores is not None
    np.testing.assert_array_equal(resumed.scores.values, undisturbed.scores.values)
    assert [m["step"] for m in resumed.scores.metadata["moments"]] == [3, 6, 9]
    if name == "nice":
        assert sampled == 2
        assert set(asked) == {6, 9}  # the first epoch's rewards were on disk


def test_a_training_resumed_without_earlier_scores_says_so(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path, Crash()).train()
    late = AttributionCallback("loss")
    early = AttributionCallback("random")
    training(tmp_path, late, early).train(resume_from_checkpoint=True)
    said = capsys.readouterr().err
    assert "loss: training resumes at step 3" in said
    assert "random: training resumes at step 3 and no scores from its beginning" in said
    assert late.scores is not None
    assert [m["step"] for m in late.scores.metadata["moments"]] == [6, 9]


def test_a_finished_run_is_not_repeated(tmp_path: Path, monkeypatch: Any) -> None:
    scores = attribute(bert(), encoded(6), None, "loss", output_dir=tmp_path)
    monkeypatch.setattr(view.View, "per_row", lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(
        attribute(bert(), encoded(6), None, "loss", output_dir=tmp_path).values, scores.values
    )


# -- disks that cannot be written

FULL = """
import json, resource, shutil, sys, torch
torch.set_num_threads(1)
from hfdataopt import attribute
from hfdataopt.errors import StoreError
from tests.tiny import bert, encoded
folder = sys.argv[1]
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
pool, queries = encoded(40, ids=True), encoded(6, seed=7)
for name, options in (("tracin", {"floats_per_row": 300}), ("freeshap", {"permutations": 4}), ("random", {}), ("loss", {})):
    outcomes = []
    for limit in (10, 900, 4000, 30_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        try:
            attribute(bert().eval(), pool, queries, name, output_dir=folder + "/" + name, **options)
            outcomes.append("")
        except StoreError as error:
            outcomes.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    attribute(bert().eval(), pool, queries, name, output_dir=folder + "/" + name, **options)
    print(json.dumps([name, outcomes]), flush=True)
"""


def test_a_full_disk_is_one_clear_error_and_the_next_run_goes_on(tmp_path: Path) -> None:
    process = run_python(FULL, str(tmp_path))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    assert [name for name, _ in lines] == ["tracin", "freeshap", "random", "loss"]
    for name, outcomes in lines:
        assert outcomes[0], f"{name} wrote into 10 bytes"
        assert all(str(tmp_path) in message for message in outcomes if message), outcomes
        options = {"tracin": {"floats_per_row": 300}, "freeshap": {"permutations": 4}}.get(name, {})
        again = attribute(bert().eval(), encoded(40, ids=True), encoded(6, seed=7), name, **options)
        np.testing.assert_array_equal(Scores.load(tmp_path / name).values, again.values)


def folders_that_cannot_be_written(tmp_path: Path) -> list[Path]:
    (tmp_path / "file").write_text("")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    found = [tmp_path / "file" / "inside"]
    if Path("/proc/self").is_dir():
        found.append(Path("/proc/hfdataopt"))
    if not os.access(locked, os.W_OK):
        found.append(locked / "inside")
    return found


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    for folder in folders_that_cannot_be_written(tmp_path):
        with pytest.raises(StoreError, match=f"loss: the folder '{folder}' cannot be used"):
            attribute(bert(), encoded(4), None, "loss", output_dir=folder)
        run = training(tmp_path / "out", AttributionCallback("loss", output_dir=folder))
        with pytest.raises(StoreError, match="cannot be used"):
            run.train()
        assert run.state.global_step == 0


def test_a_folder_whose_record_is_damaged(tmp_path: Path) -> None:
    attribute(bert(), encoded(4), None, "loss", output_dir=tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"loss: the folder .* cannot be used"):
        attribute(bert(), encoded(4), None, "loss", output_dir=tmp_path)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    training(tmp_path, AttributionCallback("freeshap", queries=encoded(4, 7), permutations=3), max_steps=1).train()
    kinds = {path.suffix for path in (tmp_path / "attribution").rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".jinja"}
