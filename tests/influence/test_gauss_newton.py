"""Gauss-Newton products against explicit Jacobians; the iterative solvers on them against the dense inverse."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import MemoryLimit, find_blocks, per_example_gradients
from hfdataopt.influence import GaussNewton, conjugate_gradients, lissa
from hfdataopt.influence.gauss_newton import check_model, from_flat, to_flat

from .models import NAMES, batches, build, gauss_newton_matrix, parameters_of, rows_for

# Small enough for a dense matrix; embeddings tied to the head, norms, transposed weights and adapters among them.
LAYERS: dict[str, Any] = {
    "bert": ["*.1.attention.self.*", "classifier", "*.0.output.LayerNorm"],
    "masked-lm": ["*.1.attention.output.*", "*.word_embeddings"],
    "gpt2": ["*.1.attn.c_proj", "head", "*.ln_f"],
    "llama": ["*.1.self_attn.v_proj", "norms"],
    "lora": None,
}


def vectors(count: int, size: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", NAMES)
def test_products_and_solutions_equal_the_dense_matrix(name: str) -> None:
    model, pool = build(name).double(), rows_for(name, 3, 1)
    h = gauss_newton_matrix(model, pool, LAYERS[name])
    operator = GaussNewton(model, batches(pool, 3), layers=LAYERS[name])
    assert (operator.rows, operator.size) == (3, len(h))
    right = vectors(2, len(h)) @ h  # as gradients are, where the curvature is
    assert distance(operator.product(right), right @ h) < 1e-6

    eigenvalues, directions = torch.linalg.eigh(h)
    damping = 0.1 * float(eigenvalues[-1])
    wanted = right @ directions / (eigenvalues + damping) @ directions.T
    solved = conjugate_gradients(operator.product, right, damping, tolerance=1e-5)
    assert distance(solved.vectors, wanted) < 1e-4
    assert (solved.residuals <= 1e-5).all()
    if name in ("bert", "lora"):
        assert distance(lissa(operator.product, right, damping, depth=120).vectors, wanted) < 1e-4


def test_float32_is_close_and_batches_and_padding_do_not_matter() -> None:
    model, pool = build("gpt2"), rows_for("gpt2", 5, 1)
    layers = ["*.1.mlp.*", "*.0.attn.*"]
    alone = GaussNewton(model, batches(pool, 1), layers=layers)
    right = vectors(2, alone.size)
    wanted = GaussNewton(build("gpt2").double(), batches(pool, 5), layers=layers).product(right)
    padded = batches(pool, 3)
    for key, value in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        padded[0][key] = nn.functional.pad(padded[0][key], (0, 4), value=value)
    for operator in (alone, GaussNewton(model, padded, layers=layers), GaussNewton(model, iter(padded), layers=layers)):
        assert distance(operator.product(right), wanted) < 1e-5
    assert distance(alone.product(right[1:]), wanted[1:]) < 1e-5


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
def test_losses_of_sequence_classifiers(problem: str) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=3
    )
    model = BertForSequenceClassification(config).double()
    model.config.problem_type = problem
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    ids = torch.randint(1, 30, (4, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2, 1, 1]) if problem.startswith("single") else torch.rand(4, 3).round()
    operator = GaussNewton(model, [{"input_ids": ids, "labels": labels}], layers="classifier")
    # The model is linear in its last layer: there the Gauss-Newton matrix is the Hessian of the loss.
    head = (model.classifier.weight, model.classifier.bias)
    model.eval()
    with torch.no_grad():
        features = model.bert(ids).pooler_output

    def loss(flat: Tensor) -> Tensor:
        logits = features @ flat.view(3, 9)[:, :8].T + flat.view(3, 9)[:, 8]
        if problem == "regression":
            return nn.functional.mse_loss(logits, labels.double())
        if problem.startswith("multi"):
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.double())
        return nn.functional.cross_entropy(logits, labels)

    flat = torch.cat([head[0], head[1].unsqueeze(1)], 1).detach().flatten()
    h = torch.autograd.functional.hessian(loss, flat)
    right = vectors(2, 27)
    assert distance(operator.product(right), right @ h) < 1e-10


def test_rows_without_labels_count_as_rows_of_no_curvature() -> None:
    model, pool = build("gpt2").double(), rows_for("gpt2", 4, 1)
    (batch,) = batches(pool, 4)
    operator = GaussNewton(model, batches(pool, 2), layers="*.1.mlp.*")
    right = vectors(2, operator.size)
    wanted = GaussNewton(model, [{k: x[2:] for k, x in batch.items()}], layers="*.1.mlp.*").product(right) / 2
    batch["labels"][:2] = -100
    first = {k: x[:2] for k, x in batch.items()}  # one batch has no label at all
    for parts in ([batch], [first, {k: x[2:] for k, x in batch.items()}]):
        assert distance(GaussNewton(model, parts, layers="*.1.mlp.*").product(right), wanted) < 1e-10


def test_the_model_is_left_as_it_was() -> None:
    model, pool = build("llama").train(), rows_for("llama", 4, 1)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    before = {name: (x.clone(), x.requires_grad) for name, x in model.named_parameters()}
    state = torch.get_rng_state()
    operator = GaussNewton(model, batches(pool, 2))
    right = vectors(1, operator.size)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = operator.product(right)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert model.config.use_cache
    for name, x in model.named_parameters():
        assert torch.equal(x, before[name][0])
        assert x.requires_grad == before[name][1]
        assert x.grad is None
    plain = GaussNewton(build("llama").eval(), batches(pool, 2)).product(right)
    assert distance(found, plain) < 1e-6


def test_a_batch_too_large_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pool = build("gpt2"), rows_for("gpt2", 5, 1)
    memory = MemoryLimit()
    operator = GaussNewton(model, batches(pool, 5), layers="*.1.mlp.*", memory=memory)
    right = vectors(3, operator.size)
    wanted = operator.product(right)
    inner = GaussNewton._products

    def scarce(self: GaussNewton, batch: dict[str, Any], given: Tensor) -> Any:
        for number, product in enumerate(inner(self, batch, given)):
            if len(batch["input_ids"]) > 2 and number == 1:  # after one vector was done
                raise torch.OutOfMemoryError
            yield product

    monkeypatch.setattr(GaussNewton, "_products", scarce)
    with pytest.warns(UserWarning, match="5 rows did not run"):
        found = operator.product(right)
    assert distance(found, wanted) < 1e-6
    assert memory.rows == 2
    assert distance(operator.product(right), wanted) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_space_is_that_of_the_exact_basis(name: str) -> None:
    model, pool = build(name), rows_for(name, 2, 1)
    blocks, like = find_blocks(model, LAYERS[name]), parameters_of(model, LAYERS[name])
    flat = vectors(1, sum(block.size for block in blocks))[0].float()
    assert torch.equal(to_flat(blocks, from_flat(blocks, flat, like), like), flat)
    (part,) = per_example_gradients(model, batches(pool, 2), basis="exact", layers=LAYERS[name])
    assert part.features.shape[1] == len(flat)


def test_what_has_no_second_derivative_is_said() -> None:
    with pytest.raises(OptionError, match=r"not known.*ekfac"):
        check_model(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(OptionError, match=r"dtype=torch.float32"):
        check_model(build("gpt2").bfloat16())
    model = build("gpt2")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(OptionError, match="attn_implementation"):
        check_model(model)
    with pytest.raises(DataError, match="no rows"):
        GaussNewton(build("gpt2"), [])
