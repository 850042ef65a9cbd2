"""The tiny models of ``hfdataopt.testing``, and plain references on them."""

from typing import Any

import torch

from hfdataopt.testing.tiny import (  # noqa: F401 - for the tests
    ANSWERS,
    BAD,
    GOOD,
    PLAIN,
    SPECIAL,
    VOCABULARY,
    WORDS,
    _spread,
    bert,
    cloze,
    encoded,
    gpt2,
    llama,
    masked_lm,
    plain_texts,
    questions,
    texts,
    tokenizer,
    word_ids,
)

# -- plain references: one row at a time, by autograd


def row_batch(row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One row as a batch, without padding."""
    names = {"label": "labels"}
    return {names.get(k, k): torch.tensor([v]) for k, v in row.items() if k != "row_id"}


def row_gradient(model: Any, value: torch.Tensor, layers: Any = None) -> torch.Tensor:
    """Gradient of a scalar over the weights and biases that ``layers`` selects, laid end to end, float64."""
    from hfdataopt.gradients import find_blocks

    parameters = dict(model.named_parameters())
    chosen = [parameters[name] for block in find_blocks(model, layers) for name in (block.weight, *block.biases)]
    found = torch.autograd.grad(value, chosen, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten().double() for p, g in zip(chosen, found, strict=True)]
    )


def loss_gradients(model: Any, dataset: Any, layers: Any = None) -> torch.Tensor:
    """``[rows, d]``: gradient of each row's loss as transformers computes it, times its tokens for a language model."""
    model.eval()
    rows = []
    for row in dataset:
        batch = row_batch(row)
        loss = model(**batch).loss
        if batch["labels"].ndim == 2:
            shifted = (
                batch["labels"][:, 1:] if type(model).__name__.endswith(("CausalLM", "HeadModel")) else batch["labels"]
            )
            loss = loss * (shifted != -100).sum()
        rows.append(row_gradient(model, loss, layers))
    return torch.stack(rows)


def mean_hidden(model: Any, dataset: Any) -> torch.Tensor:
    """``[rows, d]`` float64: mean last hidden state of a BERT classifier, row by row."""
    model.eval()
    with torch.no_grad():
        states = [model.bert(**{k: v for k, v in row_batch(r).items() if k != "labels"})[0] for r in dataset]
    return torch.stack([state[0].mean(0).double() for state in states])
