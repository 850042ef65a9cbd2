"""EK-FAC in a whole eigenbasis against the definition, from plain hooks and autograd."""

from typing import Any

import pytest
import torch

from hfdataopt.gradients import per_example_gradients
from hfdataopt.influence import influence, kfac_basis

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


def test_the_basis_is_a_rotation() -> None:
    model, pool = build("bert"), rows_for("bert", 9, 1)
    basis = kfac_basis(model, batches(pool, 4))
    exact, rotated = (
        torch.cat([part.features for part in per_example_gradients(model, batches(pool, 4), basis=one)])
        for one in ("exact", basis)
    )
    # Nothing of the rows that it was fitted on is lost.
    torch.testing.assert_close(rotated @ rotated.T, exact @ exact.T, rtol=1e-4, atol=1e-6)
    index, (_, rows, columns, _) = next((i, x) for i, x in enumerate(basis.layers) if min(x[1:3]) > 1)
    start = sum(left * right for _, left, right, _ in basis.layers[:index])
    gradient = exact[:, start : start + rows * columns].view(-1, rows, columns)
    part = slice(basis.offsets[index], basis.offsets[index + 1])
    torch.testing.assert_close(rotated[:, part], basis.project_matrix(index, gradient), rtol=1e-4, atol=1e-6)


def test_layers_that_read_the_same_input_share_its_eigenvectors() -> None:
    model = build("llama")
    basis = kfac_basis(model, batches(rows_for("llama", 6, 1), 2))
    by_name = {layer[0]: part.right for layer, part in zip(basis.layers, basis.parts, strict=True)}
    key, value, output = (
        next(right for name, right in by_name.items() if name.endswith(f"0.self_attn.{x}_proj")) for x in "kvo"
    )
    assert key is value  # the query of a first position has no gradient, so what it reads is not counted there
    assert output is not value
