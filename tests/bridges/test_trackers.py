"""Scores, selections and trials arrive in the real trackers."""

import json
import sqlite3
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from hfdataopt import attribute, select
from hfdataopt.errors import OptionError
from hfdataopt.plugins import host
from hfdataopt.prompting.candidate import Candidate, Comparison, Duel, Trial, Vote
from hfdataopt_plugins.observers import trackers
from hfdataopt_plugins.observers.trackers import FOLDER, VARIABLE, summary, track
from tests.tiny import bert, encoded

SKIP = "the package {} is not installed: tests/bridges/run.py makes an environment with it"


class Recorder:
    def __init__(self):
        self.told, self.finished = [], False

    def log(self, numbers, step):
        self.told.append((step, numbers))

    def finish(self):
        self.finished = True


@pytest.fixture
def recorder(monkeypatch):
    """In the place of a tracker; what is logged does not depend on which."""
    made = Recorder()
    monkeypatch.setattr(trackers, "tracker_names", lambda names, who: names)
    monkeypatch.setattr(trackers, "start_trackers", lambda names, **_: [made])
    return made


def use():
    """One of each event, by the library's own verbs where they are short."""
    scores = attribute(bert().eval(), encoded(12, 1), encoded(3, 2), "loss")
    select(Dataset.from_dict({"row_id": list(range(12)), "x": list(range(12))}), by=scores, k=5)
    host().hook.after_trial(trial=Trial(Candidate("a"), (1, 2), np.array([1.0, 0.0]), ("x", "y")))
    for winner in (0, None, 1):
        vote = Vote(Duel(Candidate("a"), Candidate("b")), Comparison.of(winner), ("x", "y"))
        host().hook.after_trial(trial=vote)
    return scores


def test_what_is_logged(recorder):
    with track("any"):
        scores = use()
    steps = [step for step, _ in recorder.told]
    assert steps == list(range(6))
    numbers = [found for _, found in recorder.told]
    assert numbers[0]["scores/loss/rows"] == numbers[0]["scores/loss/scored"] == 12
    assert numbers[0]["scores/loss/p50"] == np.median(scores.values)
    assert numbers[1] == {"selection/kept": 5, "selection/rows": 12, "selection/share": 5 / 12}
    assert numbers[2] == {"trial/items": 2.0, "trial/score": 0.5}
    assert numbers[5] == {"votes/preferred": 2, "votes/tie": 1}
    assert recorder.finished


def test_nothing_is_logged_when_nothing_is_switched_on(recorder):
    with track("any"):
        pass
    use()
    assert recorder.told == []


def test_the_variable_switches_on(recorder, monkeypatch):
    monkeypatch.setenv(VARIABLE, " one, two ")
    monkeypatch.setattr(trackers, "_by_variable", {})
    use()
    assert len(recorder.told) == 6


def test_scores_without_a_number_are_counted_and_left_out():
    values = np.array([1.0, np.nan, 3.0])
    assert summary(values) == {
        **{"rows": 3, "scored": 2, "mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0},
        **dict(zip(("p05", "p25", "p50", "p75", "p95"), np.percentile([1.0, 3.0], (5, 25, 50, 75, 95)), strict=True)),
    }
    assert summary(np.array([np.nan])) == {"rows": 1, "scored": 0}


def test_an_unknown_tracker_is_named():
    with pytest.raises(OptionError, match="track: name='wandbb' is no tracker"), track("wandbb"):
        pass


# -- the real ones


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason=SKIP.format("tensorboard"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with track("tensorboard", run="mine", folder=tmp_path):
        scores = use()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    (mean,) = events.Scalars("scores/loss/mean")
    assert mean.value == pytest.approx(scores.values.mean(), rel=1e-5)
    assert [one.value for one in events.Scalars("votes/preferred")] == [1, 1, 2]


def logged_by_wandb(file):
    """What an offline run's file holds: 7 bytes, then LevelDB's log (checksum, length, type, part of a record) of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts, found = file.read_bytes(), 7, b"", {}
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # the rest of a block is padding
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            found |= {"ended": True} if record.WhichOneof("record_type") == "exit" else {}
            for item in record.history.item:
                found.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    return found


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason=SKIP.format("wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    with track("wandb", project="bridges", run="mine"):
        scores = use()
    (file,) = tmp_path.rglob("run-*.wandb")
    until = time.monotonic() + 60
    while "ended" not in (found := logged_by_wandb(file)) and time.monotonic() < until:
        time.sleep(0.2)  # the package's own process writes a little longer than finish() waits
    assert found["scores/loss/mean"] == [pytest.approx(scores.values.mean())]
    assert found["selection/kept"] == [5]
    assert found["votes/preferred"] == [1, 1, 2]


def test_mlflow_in_a_local_folder(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason=SKIP.format("mlflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    mlflow.set_tracking_uri(tmp_path.as_uri())
    with track("mlflow", project="bridges", run="mine"):
        scores = use()
    (run,) = mlflow.search_runs(experiment_names=["bridges"], output_format="list")
    assert run.info.run_name == "mine"
    assert run.data.metrics["scores/loss/mean"] == pytest.approx(scores.values.mean())
    assert run.data.metrics["votes/preferred"] == 2


def test_trackio(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason=SKIP.format("trackio"))
    for name in [one for one in sys.modules if one.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    with track("trackio", project="bridges", run="mine"):
        use()
    found = {}
    for file in Path(tmp_path).rglob("*.db"):
        for (line,) in sqlite3.connect(file).execute("select metrics from metrics"):
            found |= json.loads(line)
    assert found["selection/kept"] == 5
    assert found["votes/preferred"] == 2


def test_the_process_variable_closes_its_run_at_exit(tmp_path):
    pytest.importorskip("tensorboard", reason=SKIP.format("tensorboard"))
    import os
    import subprocess

    code = (
        "from hfdataopt.plugins import host\n"
        "from hfdataopt.prompting.candidate import Candidate, Trial\n"
        "import numpy as np\n"
        "host().hook.after_trial(trial=Trial(Candidate('a'), (1,), np.array([1.0]), ('x',)))\n"
    )
    env = {**os.environ, VARIABLE: "tensorboard", FOLDER: str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert list(tmp_path.rglob("events.out.tfevents.*"))
