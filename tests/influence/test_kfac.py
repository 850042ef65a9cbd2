"""EK-FAC in a whole eigenbasis against the definition, from plain hooks and autograd."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hfdataopt.gradients import find_blocks, make_target, per_example_gradients
from hfdataopt.influence import Rotated, influence, kfac_basis

from .models import NAMES, batches, build, evaluating, loss_gradients, rows_for


def keep(seen: dict[str, Any], name: str, module: Any, args: Any, output: Tensor) -> None:
    seen[name] = (args[0].detach(), output)


def second_moments(model: Any, dataset: Any, layers: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """For each linear layer the sums over rows and positions of ``d d^T`` (output gradients) and ``a a^T`` (inputs and a 1
    for the bias), over positions with a gradient; one row at a time, without padding."""
    target = make_target(model, "loss")
    modules = dict(model.named_modules())
    found: dict[str, Any] = {}
    for block in find_blocks(model, layers):
        found[block.name] = [0.0, 0.0]
    with evaluating(model):
        for batch in batches(dataset, 1):
            del batch["row_id"]
            seen: dict[str, Any] = {}

            handles = [modules[name].register_forward_hook(partial(keep, seen, name)) for name in found]
            value = target(model, batch)[0].sum()
            for handle in handles:
                handle.remove()
            gradients = torch.autograd.grad(value, [output for _, output in seen.values()], allow_unused=True)
            for (name, (given, _)), gradient in zip(seen.items(), gradients, strict=True):
                assert gradient is not None
                d = gradient.reshape(-1, gradient.shape[-1]).double()
                a = given.reshape(-1, given.shape[-1]).double()
                if getattr(modules[name], "bias", None) is not None:
                    a = torch.cat([a, torch.ones(len(a), 1, dtype=torch.float64)], 1)
                largest = d.abs().amax(1)
                d, a = d[largest > 1e-6 * largest.max()], a[largest > 1e-6 * largest.max()]
                found[name][0] = found[name][0] + d.T @ d
                found[name][1] = found[name][1] + a.T @ a
    return {name: (left, right) for name, (left, right) in found.items()}


def brute_force(model: Any, pool: Any, queries: Any, layers: Any, damping: float) -> Tensor:
    moments = second_moments(model, pool, layers)
    gradients = [loss_gradients(model, side, layers) for side in (pool, queries)]
    total = torch.zeros(len(pool), len(queries), dtype=torch.float64)
    start = 0
    for block in find_blocks(model, layers):
        left, right = (torch.linalg.eigh(moment)[1] for moment in moments[block.name])
        g, q = (
            left.T @ side[:, start : start + block.size].view(-1, block.rows, block.columns) @ right
            for side in gradients
        )
        start += block.size
        eigenvalues = g.square().mean(0)
        q = q / (eigenvalues + damping * eigenvalues.mean())
        total += torch.einsum("nij,qij->nq", g, q)
    return total


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
    wanted = brute_force(model, pool, queries, layers, 0.1)
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
