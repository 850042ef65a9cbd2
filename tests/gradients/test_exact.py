"""Per-example gradients from hooks equal autograd one row at a time."""

from typing import Any

import pytest
import torch
from torch import nn

from hfdataopt.gradients import exact as exact_module
from hfdataopt.gradients import gradient_norms, gram, per_example_gradients

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


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", [None, "all"])
def test_gram_equals_products_of_reference_gradients(tools: Any, name: str, layers: Any) -> None:
    model, rows = tools.build(name), tools.make_rows(name)
    whole = tools.reference(model, rows, layers).double()
    wanted = whole @ whole.T
    batches = tools.batches_of(rows, 4)
    # Plenty of memory; then so little that columns, and blocks within them, have to be divided.
    for memory in (2**30, 200_000, 20_000):
        for columns in (None, tools.batches_of(rows[:3], 2)):
            found = gram(model, batches, columns, layers=layers, memory_bytes=memory)
            assert torch.allclose(found, wanted if columns is None else wanted[:, :3], rtol=1e-5, atol=1e-5)


def test_gram_of_short_inputs_goes_through_factors(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tools.build("bert-cls")
    rows = tools.make_rows("bert-cls", [1, 2, 2, 1])
    calls = []
    plain = exact_module.pair_products
    monkeypatch.setattr(exact_module, "pair_products", lambda *uses: calls.append(1) or plain(*uses))
    whole = tools.reference(model, rows).double()
    found = gram(model, tools.batches_of(rows, 2), dtype="float32")
    assert calls
    assert torch.allclose(found, whole @ whole.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [None, "all"])
def test_norms_without_gradients(tools: Any, layers: Any) -> None:
    for name in MODELS:
        model, rows = tools.build(name), tools.make_rows(name)
        wanted = tools.reference(model, rows, layers).double().square().sum(1)
        found = torch.cat([x.squared_norm for x in gradient_norms(model, tools.batches_of(rows, 4), layers=layers)])
        assert torch.allclose(found, wanted, rtol=1e-5)
