"""How many rows a trainer of TRL dropped, by what it does to a dataset: maps, then one filter, then columns are removed."""

from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainingArguments
from trl import SFTConfig

from hfdataopt.attribution.dropped import is_of_trl, rows_dropped

DATA = Dataset.from_dict({"prompt": list("abcdef"), "n": list(range(6))})


def prepared(data: Dataset, keep: Any = lambda row: row["n"] % 3) -> Dataset:
    return data.map(lambda row: {"input_ids": [row["n"]]}).filter(keep).remove_columns(["prompt", "n"])


def config(folder: Any, **changes: Any) -> SFTConfig:
    return SFTConfig(str(folder), use_cpu=True, report_to="none", bf16=False, **changes)


@pytest.mark.parametrize("data", [DATA, DATA.shuffle(seed=1), DATA.select([5, 0, 4, 3]), DATA.select(range(2, 5))])
def test_rows_that_were_filtered_out_are_counted(tmp_path: Any, data: Dataset) -> None:
    left = prepared(data)
    assert rows_dropped(left, config(tmp_path)) == len(data) - len(left) > 0
    assert rows_dropped(prepared(data, lambda row: True), config(tmp_path)) == 0
    assert rows_dropped(data.map(lambda row: {"input_ids": [row["n"]]}), config(tmp_path)) == 0


def test_what_was_not_prepared_has_lost_nothing(tmp_path: Any) -> None:
    part = DATA.select([5, 0, 4, 3])
    assert is_of_trl(config(tmp_path))
    assert not is_of_trl(TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    assert rows_dropped(part, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")) == 0
    assert rows_dropped(part, config(tmp_path, dataset_kwargs={"skip_prepare_dataset": True})) == 0
    assert rows_dropped(part, config(tmp_path, max_length=None)) == 0


def test_what_cannot_be_told_is_none(tmp_path: Any) -> None:
    assert rows_dropped(prepared(DATA).shuffle(seed=0), config(tmp_path, shuffle_dataset=True)) is None
    assert rows_dropped([{"input_ids": [1]}], config(tmp_path)) is None
