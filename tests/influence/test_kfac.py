"""EK-FAC in a whole eigenbasis against the definition, from plain hooks and autograd."""

from typing import Any

import pytest
import torch

from hfdataopt.gradients import per_example_gradients
from hfdataopt.influence import Rotated, influence, kfac_basis

from .models import NAMES, batches, build, ekfac_influence, rows_for

# A few layers each, biases, GPT-2's transposed weights and adapters among them.
LAYERS: dict[str, Any] = {
    "bert": None,
    "masked-lm": ["*.1.attention.self.query", "*.1.output.dense"],
    "gpt2": ["*.1.mlp.c_fc", "*.0.attn.c_proj"],
    "llama": ["linear", "head"],
    "lora": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_ekfac_equals_brute_force(name: str) -> None:
    model = build(name)
    pool, queries = rows_for(name, 9, 1), rows_for(name, 4, 2)
    layers = LAYERS[name]
    wanted = ekfac_influence(model, pool, queries, layers, 0.1)
    for size in (1, 4):
        basis = kfac_basis(model, batches(pool, size), layers=layers)
        sides = [
            torch.cat(
                [
                    part.features
                    for part in per_example_gradients(model, batches(side, size), basis=basis, layers=layers)
                ]
            )
            for side in (pool, queries)
        ]
        found = influence(*sides, basis.offsets, "ekfac", 0.1)
        assert float((found - wanted).norm() / wanted.norm()) < 1e-4


def test_exact_features_seen_in_the_eigenbasis() -> None:
    model, pool = build("bert"), rows_for("bert", 9, 1)
    basis = kfac_basis(model, batches(pool, 4))
    exact = torch.cat([part.features for part in per_example_gradients(model, batches(pool, 4), basis="exact")])
    wanted = torch.cat([part.features for part in per_example_gradients(model, batches(pool, 4), basis=basis)])
    rotated = Rotated(exact.unsqueeze(1), basis)
    assert len(rotated) == 9
    torch.testing.assert_close(rotated[2:7], wanted[2:7], rtol=1e-4, atol=1e-6)
    # Nothing of the rows that it was fitted on is lost.
    torch.testing.assert_close(rotated[0:9].norm(dim=1), exact.norm(dim=1), rtol=1e-4, atol=0)
