"""Option values that no run can honour are refused when the scorer is made, or before training."""

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

from hfdataopt import AttributionCallback, attribute, get_scorer
from hfdataopt.errors import OptionError

from ..tiny import bert, encoded, tokenizer


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("freeshap", "ridge", -0.1, "at least 0"),
        ("freeshap", "ridge", float("inf"), "at least 0"),
        ("freeshap", "permutations", 0, "at least 1"),
        ("freeshap", "workers", 0, "at least 1"),
        ("freeshap", "tolerance", 0.0, "above 0"),
        ("freeshap", "truncation", 0.0, "above 0 and below 1"),
        ("freeshap", "truncation", 1, "above 0 and below 1"),
        ("freeshap", "beta", (0.0, 1.0), "above 0"),
        ("freeshap", "seed", -1, "at least 0"),
        ("freeshap", "floats_per_row", 0, "at least 1"),
        ("label-consistency", "permutations", 0, "at least 1"),
        ("label-consistency", "ridge", -1, "at least 0"),
        ("loo", "ridge", -1.0, "at least 0"),
        ("tracin", "seed", -3, "at least 0"),
        ("tracin", "floats_per_row", -8, "at least 1"),
        ("self-influence", "floats_per_row", 0, "at least 1"),
        ("cv-confidence", "folds", 1, "at least 2"),
        ("cv-confidence", "inverse_penalty", 0.0, "above 0"),
        ("cv-confidence", "seed", -1, "at least 0"),
        ("representer", "l2", 0.0, "above 0"),
        ("knn-shapley", "k", 0, "at least 1"),
        ("random", "seed", -1, "at least 0"),
    ],
)
def test_numbers_out_of_range(name: str, option: str, value: Any, wanted: str) -> None:
    with pytest.raises(OptionError) as caught:
        get_scorer(name, **{option: value})
    assert str(caught.value) == f"{name}: {option}={value!r} must be {wanted}"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("freeshap", {"ridge": 0.0, "truncation": 0.5, "workers": None, "tolerance": None, "beta": (1, 4.0)}),
        ("freeshap", {"ridge": "auto", "seed": 0, "workers": 1, "truncation": None}),
        ("cv-confidence", {"folds": 2, "inverse_penalty": 0.1}),
        ("knn-shapley", {"k": 1}),
    ],
)
def test_numbers_at_the_edge(name: str, options: dict[str, Any]) -> None:
    assert get_scorer(name, **options)


@pytest.mark.parametrize("name", ["tracin", "grad-norm"])
def test_fewer_floats_than_layers_stop_before_training(tmp_path: Path, name: str) -> None:
    queries = encoded(4, seed=7)
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    callback = AttributionCallback(name, queries=queries, floats_per_row=3, basis="eigen")
    run = Trainer(bert(), args, train_dataset=encoded(8), processing_class=tokenizer(), callbacks=[callback])
    with pytest.raises(
        OptionError, match=rf"{name}: floats_per_row=3 is less than one float for each of the \d+ layers"
    ):
        run.train()
    assert run.state.global_step == 0
    assert attribute(bert(), encoded(4), queries, name, floats_per_row=3, basis="exact").values.shape == (4,)
