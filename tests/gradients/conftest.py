"""Tiny random models with ragged batches, and the plain reference: autograd at batch size 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hfdataopt.gradients import find_blocks, make_target

LENGTHS = [9, 4, 12, 7, 5, 11]
VOCABULARY = 37


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str, **changes: Any) -> nn.Module:
    """A tiny model with random weights, dropout on, in training mode."""
    torch.manual_seed(0)
    if name.startswith("bert"):
        bert = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
            num_labels=changes.pop("num_labels", 3),
            **changes,
        )
        model: nn.Module = BertForSequenceClassification(bert) if name == "bert-cls" else BertForMaskedLM(bert)
    elif name == "gpt2":
        gpt2 = GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
        )
        model = GPT2LMHeadModel(gpt2)
    else:
        llama = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_bias=True,
            **changes,
        )
        model = LlamaForCausalLM(llama)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual initialisation, with nonzero biases, so that no gradient is nearly zero.
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def make_rows(name: str, lengths: list[int] = LENGTHS) -> list[dict[str, Any]]:
    """Unpadded rows: token ids, and labels of which the first third is ignored (token models) or a class."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator)
        if name == "bert-cls":
            labels: Any = number % 3
        else:
            labels = ids.clone() if name != "bert-mlm" else torch.randint(3, VOCABULARY, (length,), generator=generator)
            labels[: length // 3] = -100
        rows.append({"row_id": f"r{number}", "input_ids": ids, "labels": labels})
    return rows


def collate(rows: list[dict[str, Any]], *, length: int | None = None, left: bool = False) -> dict[str, Any]:
    """A padded batch."""
    length = length or max(len(row["input_ids"]) for row in rows)

    def pad(x: Tensor, value: int) -> Tensor:
        more = x.new_full((length - len(x),), value)
        return torch.cat([more, x] if left else [x, more])

    batch = {
        "row_id": [row["row_id"] for row in rows],
        "input_ids": torch.stack([pad(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(row["input_ids"]), 0) for row in rows]),
    }
    if isinstance(rows[0]["labels"], int):
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    else:
        batch["labels"] = torch.stack([pad(row["labels"], -100) for row in rows])
    return batch


def batches_of(rows: list[dict[str, Any]], size: int, **options: Any) -> list[dict[str, Any]]:
    return [collate(rows[start : start + size], **options) for start in range(0, len(rows), size)]


def reference(model: nn.Module, rows: list[dict[str, Any]], layers: Any = None, **target: Any) -> Tensor:
    """Exact features by ``autograd.grad`` one row at a time, in the layout of the exact basis: ``[n, P]``."""
    blocks = find_blocks(model, layers)
    function = make_target(model, target.pop("of", "loss"), **target)
    required = [parameter.requires_grad for parameter in model.parameters()]
    mode = model.training
    model.eval().requires_grad_(True)
    parameters = dict(model.named_parameters())
    features = []
    for row in rows:
        batch = collate([row])
        del batch["row_id"]
        value, _ = function(model, batch)
        names = [name for block in blocks for name in (block.weight, *block.biases)]
        found = torch.autograd.grad(value.sum(), [parameters[name] for name in names], allow_unused=True)
        gradients = {
            name: torch.zeros_like(parameters[name]) if gradient is None else gradient
            for name, gradient in zip(names, found, strict=True)
        }
        flat = []
        for block in blocks:
            weight = gradients[block.weight]
            if block.vector:
                flat.append(torch.cat([weight, *(gradients[name] for name in block.biases)]))
                continue
            weight = weight.T if block.transposed else weight
            flat.append(torch.cat([weight, *(gradients[name].unsqueeze(1) for name in block.biases)], dim=1).flatten())
        features.append(torch.cat(flat))
    for parameter, flag in zip(model.parameters(), required, strict=True):
        parameter.requires_grad_(flag)
    model.train(mode)
    return torch.stack(features)


class Tools:
    """The functions above, for tests (a conftest cannot be imported)."""

    build = staticmethod(build)
    make_rows = staticmethod(make_rows)
    collate = staticmethod(collate)
    batches_of = staticmethod(batches_of)
    reference = staticmethod(reference)

    @staticmethod
    def features(results: Any) -> Tensor:
        return torch.cat([result.features for result in results])

    @staticmethod
    def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
        """Whether rows agree relative to the norm of each."""
        error = (one.double() - other.double()).norm(dim=1) / other.double().norm(dim=1)
        return bool(one.shape == other.shape and (error <= tolerance).all())


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools


@pytest.fixture(scope="session")
def stories() -> Callable[[], nn.Module]:
    """A small Llama with trained weights, where the shared folder has it."""
    path = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
    if not path.exists():
        pytest.skip("needs the trained model shared/models/stories260K beside the checkout")
    return lambda: LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
