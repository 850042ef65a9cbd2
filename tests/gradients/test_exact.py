"""Per-example gradients from hooks equal autograd one row at a time."""

from typing import Any

import pytest
import torch
from torch import nn

from hfdataopt.gradients import per_example_gradients

MODELS = ["bert-cls", "bert-mlm", "gpt2", "llama"]


def exact(tools: Any, model: nn.Module, batches: Any, **options: Any) -> torch.Tensor:
    return tools.features(per_example_gradients(model, batches, basis="exact", **options))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("of", ["loss", "logit"])
def test_equal_to_autograd_with_ragged_padding(tools: Any, name: str, of: str) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    found = exact(tools, model, tools.batches_of(rows, 4), of=of)
    assert tools.close(found, tools.reference(model, rows, of=of))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", ["all", ["embeddings", "norms"], ["head"], ["norms", "last:1"]])
def test_embeddings_norms_and_tied_heads_by_option(tools: Any, name: str, layers: Any) -> None:
    if name == "bert-cls" and layers == ["head"]:
        pytest.skip("a classifier has no LM head")
    model, rows = tools.build(name), tools.make_rows(name)
    found = exact(tools, model, tools.batches_of(rows, 4), layers=layers)
    assert tools.close(found, tools.reference(model, rows, layers))
