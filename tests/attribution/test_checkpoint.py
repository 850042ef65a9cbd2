"""``Checkpoint``: folders, steps and learning rates."""

import json

import pytest

from hfdataopt import Checkpoint
from hfdataopt.errors import DataError, OptionError


def folder(tmp_path, *, state=None, config="config.json"):
    (tmp_path / config).write_text("{}")
    if state is not None:
        (tmp_path / "trainer_state.json").write_text(state if isinstance(state, str) else json.dumps(state))
    return str(tmp_path)


STATE = {
    "global_step": 20,
    "log_history": [
        {"step": 5, "learning_rate": 4e-3, "loss": 1.0},
        {"step": 10, "learning_rate": 3e-3},
        {"step": 15, "learning_rate": 2e-3},
        {"step": 15, "eval_loss": 1.0},
        {"step": 20, "learning_rate": 1e-3},
    ],
}


def test_of_takes_a_path_or_a_checkpoint(tmp_path):
    path = folder(tmp_path)
    assert Checkpoint.of(path) == Checkpoint.of(tmp_path) == Checkpoint(path)
    given = Checkpoint(path, learning_rate=0.1)
    assert Checkpoint.of(given) is given
    (tmp_path / "config.json").rename(tmp_path / "adapter_config.json")
    assert Checkpoint.of(path).path == path


@pytest.mark.parametrize("value", ["nowhere", None, 3])
def test_a_folder_without_a_config_is_an_error(value):
    with pytest.raises(DataError, match=f"checkpoint '{value}' is not a folder with a config.json"):
        Checkpoint.of(value)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_learning_rate_must_be_positive(tmp_path, rate):
    with pytest.raises(OptionError, match=r"learning_rate=.* must be > 0"):
        Checkpoint.of(Checkpoint(folder(tmp_path), learning_rate=rate))


def test_the_learning_rate_is_the_mean_of_those_since_the_previous_checkpoint(tmp_path):
    checkpoint = Checkpoint.of(folder(tmp_path, state=STATE))
    assert checkpoint.step == 20
    assert checkpoint.mean_learning_rate() == pytest.approx(2.5e-3)
    assert checkpoint.mean_learning_rate(since_step=10) == pytest.approx(1.5e-3)
    assert Checkpoint(checkpoint.path, learning_rate=0.5).mean_learning_rate(10) == 0.5


def test_without_a_logged_rate_the_error_says_how_to_give_one(tmp_path):
    path = folder(tmp_path)
    assert Checkpoint(path).state is None
    assert Checkpoint(path).step is None
    with pytest.raises(
        DataError, match=r"no logged learning rate after step 0 .* pass Checkpoint\(path, learning_rate="
    ):
        Checkpoint(path).mean_learning_rate()
    folder(tmp_path, state=STATE)
    with pytest.raises(DataError, match="after step 20"):
        Checkpoint(path).mean_learning_rate(since_step=20)


def test_a_broken_trainer_state_is_named(tmp_path):
    path = folder(tmp_path, state='{"global_step": 2')
    with pytest.raises(DataError, match=r"trainer_state\.json cannot be read"):
        _ = Checkpoint(path).step


@pytest.mark.parametrize(
    "state",
    [
        "[]",
        "3",
        '{"global_step": "many"}',
        '{"global_step": -1}',
        '{"log_history": {}}',
        '{"log_history": [3]}',
        "null",
    ],
)
def test_a_state_that_is_no_trainers(tmp_path, state):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "trainer_state.json").write_text(state)
    with pytest.raises(DataError, match="is no state of a Trainer"):
        _ = Checkpoint.of(tmp_path).step


@pytest.mark.parametrize("rate", ["0.1", float("inf"), float("nan"), True, 0, [1]])
def test_a_learning_rate_that_is_no_number(tmp_path, rate):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OptionError, match="must be > 0, and finite"):
        Checkpoint.of(Checkpoint(str(tmp_path), rate))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", None])
def test_a_name_that_no_folder_has(name):
    with pytest.raises(DataError, match="is not a folder with a config"):
        Checkpoint.of(name)
