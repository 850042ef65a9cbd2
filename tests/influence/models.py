"""Models of the tests here, with the rows that fit them, and explicit Jacobians."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hfdataopt.attribution.rows import pad_batch
from hfdataopt.gradients import find_blocks, make_target
from hfdataopt.influence.gauss_newton import to_flat

from ..tiny import bert, encoded, gpt2, llama, masked_lm, plain_texts, questions

NAMES = ["bert", "masked-lm", "gpt2", "llama", "lora"]


def build(name: str) -> Any:
    """A tiny model; ``lora`` is a Llama whose adapters have been moved away from 0."""
    if name == "bert":
        return bert()
    if name == "masked-lm":
        return masked_lm()
    if name == "gpt2":
        return gpt2()
    if name == "llama":
        return llama()
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        llama(), LoraConfig(r=3, lora_alpha=6, lora_dropout=0.2, target_modules=["q_proj", "down_proj"])
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def rows_for(name: str, rows: int, seed: int) -> Any:
    """Rows of unequal length: classes, plain text, or prompts of which only the answer is labelled (LoRA)."""
    if name == "bert":
        return encoded(rows, seed)
    return questions(rows, seed, answers=3) if name == "lora" else plain_texts(rows, seed)


def batches(dataset: Any, size: int) -> list[dict[str, Any]]:
    rows = [dataset[i] for i in range(len(dataset))]
    return [
        pad_batch(rows[start : start + size]) | {"row_id": list(range(start, min(start + size, len(rows))))}
        for start in range(0, len(rows), size)
    ]


def parameters_of(model: Any, layers: Any = None) -> dict[str, Tensor]:
    own = dict(model.named_parameters())
    return {name: own[name] for block in find_blocks(model, layers) for name in (block.weight, *block.biases)}


def flat_gradient(model: Any, value: Tensor, layers: Any = None) -> Tensor:
    """Gradient of a scalar by autograd, in the layout of the exact basis, ``[P]`` float64."""
    chosen = parameters_of(model, layers)
    found = torch.autograd.grad(value, list(chosen.values()), retain_graph=True, allow_unused=True)
    return to_flat(find_blocks(model, layers), dict(zip(chosen, found, strict=True)), chosen).double()


def loss_gradients(model: Any, dataset: Any, layers: Any = None) -> Tensor:
    """Gradients of the loss of each row alone, summed over tokens, ``[n, P]``."""
    target = make_target(model, "loss")
    found = []
    with evaluating(model):
        for batch in batches(dataset, 1):
            del batch["row_id"]
            found.append(flat_gradient(model, target(model, batch)[0].sum(), layers))
    return torch.stack(found)


def jacobian_and_hessian(model: Any, row: dict[str, Any], layers: Any = None) -> tuple[Tensor, Tensor]:
    """Of one row: logits at labelled places by parameters ``[m * c, P]``, and the loss's Hessian in these logits."""
    batch = {key: x for key, x in pad_batch([row]).items() if key != "row_id"}
    labels = batch.pop("labels")
    with evaluating(model):
        logits = model(**batch).logits
        if labels.dim() == 2:
            if "BertForMaskedLM" not in type(model).__name__:
                logits, labels = logits[:, :-1], labels[:, 1:]
            logits, labels = logits[labels != -100], labels[labels != -100]
        jacobian = torch.stack([flat_gradient(model, value, layers) for value in logits.flatten()])

        def loss(x: Tensor) -> Tensor:
            return F.cross_entropy(x.view_as(logits), labels, reduction="sum")

        hessian = torch.autograd.functional.hessian(loss, logits.detach().flatten().double())
    return jacobian, hessian


def gauss_newton_matrix(model: Any, dataset: Any, layers: Any = None) -> Tensor:
    """The dense matrix, ``[P, P]`` float64."""
    total: Any = 0.0
    for i in range(len(dataset)):
        jacobian, hessian = jacobian_and_hessian(model, dataset[i], layers)
        total = total + jacobian.T @ hessian @ jacobian
    return total / len(dataset)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, and the mode before on leaving."""
    mode = model.training
    model.eval()
    yield
    model.train(mode)


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


def ekfac_influence(model: Any, pool: Any, queries: Any, layers: Any, damping: float) -> Tensor:
    """EK-FAC by its definition, ``[n, q]``: eigenvectors of both moments, mean squares of the pool's rows there."""
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
