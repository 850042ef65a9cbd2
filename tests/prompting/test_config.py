"""``PromptConfig``: values are checked, and TRL's parser reads it from YAML and flags."""

import json

import pytest
import yaml
from trl import TrlParser

from hfdataopt.errors import MissingDependencyError, OptionError
from hfdataopt.prompting.config import PromptConfig
from hfdataopt.prompting.tracking import check_trackers

PRICES = {"model": [0.5, 1.5], "proposer": [3, 15]}


def parse(*flags):
    (found,) = TrlParser((PromptConfig,)).parse_args_and_config(list(flags))
    return found


def test_flags():
    found = parse(
        *(
            "--output_dir",
            "out",
            "--seed",
            "3",
            "--max_calls",
            "60",
            "--max_cost",
            "0.5",
            "--resume_from_checkpoint",
            "true",
        ),
        *("--start", "one", "two words", "--reward_weights", "1", "-0.5", "--report_to", "none"),
        *("--optimizer_options", '{"pool_size": 4}', "--prices", json.dumps(PRICES), "--max_seconds", "9.5"),
    )
    assert found == PromptConfig(
        output_dir="out",
        seed=3,
        max_calls=60,
        max_cost=0.5,
        resume_from_checkpoint=True,
        start=["one", "two words"],
        reward_weights=[1.0, -0.5],
        optimizer_options={"pool_size": 4},
        prices=PRICES,
        max_seconds=9.5,
    )


def test_yaml_and_the_command_line_wins(tmp_path):
    values = {"items": 7, "seed": 0, "start": ["a"], "optimizer_options": {"pool_size": 4}, "prices": PRICES}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
    found = parse("--config", str(tmp_path / "search.yaml"), "--seed", "2")
    assert found == PromptConfig(**{**values, "seed": 2})


def test_no_flags_are_the_defaults():
    assert parse() == PromptConfig()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_calls": -1}, "max_calls=-1 must be at least 0"),
        ({"max_calls": 2.5}, "option max_calls=2.5 is not allowed"),
        ({"seed": -1}, "seed"),
        ({"items": 0}, "items=0 must be at least 1"),
        ({"items": "5"}, "option items='5' is not allowed"),
        ({"parallel": 0}, "parallel"),
        ({"max_seconds": float("nan")}, "max_seconds"),
        ({"final_share": 1.0}, "final_share=1.0 must be at least 0 and below 1"),
        ({"temperature": -0.1}, "temperature"),
        ({"minibatch_size": 20}, "minibatch_size=20 must be below items=20"),
        ({"start": 3}, "option start=3 is not allowed"),
        ({"reward_weights": ["a"]}, "reward_weights"),
        ({"optimizer_options": "{"}, "optimizer_options='{' is not JSON"),
        ({"optimizer_options": "[1]"}, "optimizer_options"),
        ({"prices": "5"}, "prices"),
        ({"prices": {"model": 3}}, r"prices\['model'\]=3; the roles are"),
        ({"prices": {"judges": [1, 2]}}, r"prices\['judges'\]"),
        ({"prices": {"model": [1, -2]}}, r"prices\['model'\]"),
        ({"prices": {"model": [True, 2]}}, r"prices\['model'\]"),
        ({"prices": {"model": [1, float("nan")]}}, r"prices\['model'\]"),
        ({"max_cost": 1.0}, "max_cost needs prices"),
    ],
)
def test_wrong_values_are_named(options, match):
    with pytest.raises(OptionError, match=match) as caught:
        PromptConfig(**options)
    assert "\n" not in str(caught.value)
    assert "PromptConfig" in str(caught.value)


def test_trackers_are_known_and_installed():
    assert check_trackers(PromptConfig(report_to="none")) == check_trackers(PromptConfig(report_to=[])) == []
    with pytest.raises(OptionError, match=r"report_to='diary' is no tracker; there are: none, all, .*tensorboard"):
        check_trackers(PromptConfig(report_to=["none", "diary"]))


def test_a_tracker_that_is_not_installed_is_named_with_its_package():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    missing = sorted(set(LOGGER_TYPE_TO_CLASS) - set(map(str, get_available_trackers())))
    if not missing:
        pytest.skip("every tracker of accelerate is installed")
    name = "trackio" if "trackio" in missing else missing[0]
    with pytest.raises(MissingDependencyError, match=f"report_to='{name}' needs a package: pip install {name}"):
        check_trackers(PromptConfig(report_to=name))
