"""What recognises weights that are spread over processes, on the marks that each library leaves."""

from types import SimpleNamespace

import pytest
import torch

from hfdataopt.errors import OptionError
from hfdataopt.sharded import how_sharded, refuse_sharded


def test_whole_weights_pass() -> None:
    model = torch.nn.Linear(2, 2)
    assert how_sharded(model) is None
    assert how_sharded(model, SimpleNamespace(fsdp=None, deepspeed=None, deepspeed_plugin=None)) is None
    assert how_sharded(lambda prompts: prompts) is None
    refuse_sharded("here", model)


def test_zero_3_marks_its_parameters() -> None:
    model = torch.nn.Linear(2, 2)
    model.weight.ds_id = 0
    with pytest.raises(OptionError, match=r"here: DeepSpeed ZeRO-3 spreads.*zero_to_fp32.py"):
        refuse_sharded("here", model)


@pytest.mark.parametrize(
    ("option", "how"), [("fsdp", "FSDP"), ("deepspeed", "DeepSpeed"), ("deepspeed_plugin", "DeepSpeed")]
)
def test_arguments_of_a_trainer(option: str, how: str) -> None:
    assert how_sharded(torch.nn.Linear(2, 2), SimpleNamespace(**{option: {"some": "config"}})) == how
