"""What went wrong in other libraries, each with a report of its own, must not go wrong here."""

from typing import Any

import pytest
import torch

from hfdataopt import attribute
from hfdataopt.attribution.vectors import Vectors
from hfdataopt.errors import DataError
from hfdataopt.gradients import Basis, find_blocks, fit_basis, per_example_gradients

from ..tiny import bert, encoded, llama


def test_what_stands_at_padded_positions_adds_nothing(tools: Any) -> None:
    """Gradients at padded positions, not masked, turned the cosine of a score with the exact one into 0.84."""
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batch = tools.collate(rows)
    garbage = dict(batch)
    padded = batch["attention_mask"] == 0
    assert padded.any()
    garbage["input_ids"] = batch["input_ids"].masked_fill(padded, 7)
    for basis in ("exact", fit_basis(model, [batch], floats_per_row=300)):
        clean, filled = (
            tools.features(per_example_gradients(model, [which], basis=basis)) for which in (batch, garbage)
        )
        assert tools.close(clean, filled, 1e-6)


def test_a_projector_that_returns_zeros_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA projector returned zeros without a word."""
    real = Basis.random

    def broken(*arguments: Any) -> Basis:
        basis = real(*arguments)
        for part in basis.parts:
            for matrix in (part.left, part.right):
                if matrix is not None:
                    matrix.zero_()
        return basis

    monkeypatch.setattr(Basis, "random", broken)
    with pytest.raises(DataError, match="random projection keeps 0 of the squared gradient norm of the pool"):
        attribute(bert().eval(), encoded(9), encoded(4, seed=2), "tracin", basis="random", floats_per_row=100)


def test_the_target_that_was_given_is_what_is_differentiated(tools: Any) -> None:
    """A target function for queries was accepted, and ``outputs.loss`` differentiated."""
    model, rows = tools.build("llama"), tools.make_rows("llama")
    batch = tools.collate(rows)

    def last_logit(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(**{name: x for name, x in inputs.items() if name != "labels"}).logits
        return logits[:, 0, 3], torch.ones(len(logits), dtype=torch.long)

    found = tools.features(per_example_gradients(model, [batch], of=last_logit, basis="exact"))
    wanted = tools.reference(model, rows, of=last_logit)
    assert tools.close(found, wanted, 1e-5)
    loss = tools.features(per_example_gradients(model, [batch], basis="exact"))
    assert not tools.close(found, loss, 0.1)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
        ),
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_kernels_do_not_make_gradients_depend_on_the_batch(device: str, attention: str) -> None:
    """Fused attention gave other per-example gradients for another batch size (rank correlation 0.73)."""
    model = llama().eval().to(device)
    model.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 25, (8, 48), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def features(size: int) -> torch.Tensor:
        parts = [{name: x[i : i + size] for name, x in batch.items()} for i in range(0, 8, size)]
        return torch.cat([part.features for part in per_example_gradients(model, parts, basis="exact")])

    alone, together = features(1), features(8)
    assert float((alone - together).norm() / alone.norm()) < 1e-4


def test_vectors_of_queries_without_samples_are_zero() -> None:
    """Empty completions made NaN gradients, and the query was dropped without a word."""
    from hfdataopt.attribution.samples import Sample, Samples

    samples = Samples([[Sample([1, 2], [], 1.0)], [Sample([1, 2], [3, 4], 0.0)], [Sample([1, 2], [3], 0.5)]])
    assert samples.skipped == 2
    assert samples.of([0, 1]) == []
    assert [samples.owner(row) for row in samples.of([0, 1, 2])] == [2]

    class Reader:
        model, batch_size, device, queries = llama().eval(), 4, torch.device("cpu"), None

        def engine_options(self, layers: Any, dtype: Any) -> dict[str, Any]:
            return {"layers": layers, "dtype": dtype}

    basis = Basis.exact(find_blocks(Reader.model))
    found = Vectors(Reader(), "queries", "loss", None, samples).features(basis, [0, 1, 2], None, None, "error")  # type: ignore[arg-type]
    assert found["features"][:2].abs().max() == 0
    assert found["features"][2].abs().max() > 0
