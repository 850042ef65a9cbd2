"""Vectors of a side: weighted sums of single gradients, preconditioned or not, through the view."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hfdataopt.attribution.moment import Moment
from hfdataopt.attribution.rows import Rows, pad_batch
from hfdataopt.attribution.run import ScoringRun
from hfdataopt.attribution.samples import Sample, Samples
from hfdataopt.attribution.vectors import Vectors, mean_loss
from hfdataopt.plugins import get_scorer

from ..policy import negative_log_likelihood, speaker
from ..tiny import questions, row_batch, row_gradient
from ..training import mean_loss_gradients


def view(model: Any, pool: Any, queries: Any, folder: Path | None = None, batch_size: int = 3) -> Any:
    run = ScoringRun(
        get_scorer("tracin"),
        Rows(pool, pad_batch, side="pool"),
        Rows(queries, pad_batch, side="queries"),
        folder=folder,
        batch_size=batch_size,
    )
    return run.view(model, Moment(0), folder=folder)


def samples(first: float = 0.7) -> Samples:
    """Of four queries; the second has none that weigh, the last one only one."""
    return Samples(
        [
            [Sample([10, 11, 12], [6, 5], first), Sample([10, 11, 12], [7, 13, 14, 5], -0.4)],
            [Sample([9], [8], 0.0)],
            [Sample([15, 16], [17, 18], 0.2), Sample([15, 16], [6], 1.5), Sample([15, 16], [8, 8, 8, 8, 8, 5], -2.0)],
            [Sample([21, 22, 23, 9], [5], -1.0)],
        ]
    )


def expected(model: Any, of: Samples) -> torch.Tensor:
    rows = []
    for position in range(4):
        total = row_gradient(model, negative_log_likelihood(model, [9], [5])) * 0
        for row in of.of([position]):
            sample = of._samples[row]
            value = negative_log_likelihood(model, sample.prompt, sample.completion)
            total = total + sample.weight * row_gradient(model, value)
        rows.append(total)
    return torch.stack(rows)


def close(found: Any, wanted: torch.Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found).double(), wanted, rtol=rtol, atol=0.1 * rtol * float(wanted.abs().max())
    )


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("kept", [True, False])
def test_the_vector_of_a_query_is_the_weighted_sum_over_its_samples(
    tmp_path: Path, batch_size: int, kept: bool
) -> None:
    model, of = speaker().double(), samples()
    seen = view(model, questions(5), questions(4, 9), tmp_path if kept else None, batch_size)
    found = seen.gradients("queries", target="policy", basis="exact", samples=of)
    close(found.whole(), expected(model, of))
    assert (found.whole()[1] == 0).all()
    losses = [
        sum(
            of._samples[row].weight
            * negative_log_likelihood(model, of._samples[row].prompt, of._samples[row].completion).item()
            for row in of.of([position])
        )
        for position in range(4)
    ]
    close(found.loss_sum[:, 0], torch.tensor(losses, dtype=torch.float64))
    assert found.tokens.tolist() == [6, 0, 9, 1]


def test_the_pool_is_not_touched_by_samples() -> None:
    model = speaker().double()
    seen = view(model, questions(5), questions(4, 9))
    pool = seen.gradients("pool", target="policy", basis="exact", samples=samples()).whole()
    close(pool, seen.gradients("pool", basis="exact").whole(), 1e-6)


def test_other_samples_are_other_vectors_in_the_same_folder(tmp_path: Path) -> None:
    model = speaker().double()
    for of in (samples(), samples(first=-3.0), samples()):
        seen = view(model, questions(5), questions(4, 9), tmp_path)
        found = seen.gradients("queries", target="policy", basis="exact", samples=of)
        close(found.whole(), expected(model, of))


def test_mean_loss() -> None:
    model, rows = speaker().double(), questions(5)
    found = view(model, rows, rows).gradients("pool", of=mean_loss, target="mean-loss", basis="exact")
    close(found.whole(), mean_loss_gradients(model, rows))
    with torch.no_grad():
        losses = torch.stack([model(**row_batch(row)).loss for row in rows])
    close(found.loss_sum[:, 0], losses.double())
    empty = rows.map(lambda row: {"labels": [-100] * len(row["labels"])})
    value, tokens = mean_loss(model, pad_batch([dict(row) for row in empty.select_columns(["input_ids", "labels"])]))
    assert value.tolist() == [0.0] * 5
    assert tokens.tolist() == [0] * 5


class Scaled:
    """A precondition that multiplies by a factor."""

    def __init__(self, factor: float):
        self.factor = factor
        self.key = ["scaled", factor]

    def __call__(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self.factor


def test_only_the_pool_is_preconditioned_and_kept_under_its_key(tmp_path: Path) -> None:
    model = speaker().double()
    plain = view(model, questions(5), questions(4, 9))
    for factor in (2.0, -3.0, 2.0):
        seen = view(model, questions(5), questions(4, 9), tmp_path)
        pool, queries = (
            seen.gradients(side, basis="exact", precondition=Scaled(factor)).whole() for side in ("pool", "queries")
        )
        close(pool, factor * plain.gradients("pool", basis="exact").whole(), 1e-6)
        close(queries, plain.gradients("queries", basis="exact").whole(), 1e-6)


@pytest.mark.parametrize("basis", ["exact", "eigen"])
@pytest.mark.parametrize("normalize", [True, False])
def test_products(tmp_path: Path, basis: str, normalize: bool) -> None:
    model, of = speaker().double(), samples()
    options: dict[str, Any] = {"basis": basis, "floats_per_row": 100_000, "normalize": normalize, "target": "policy"}
    rows = 2 * view(model, questions(5), questions(4, 9)).gradients("pool", basis="exact").whole()
    columns = expected(model, of)
    wanted = rows @ columns.T
    if normalize:
        wanted = wanted / rows.norm(dim=1, keepdim=True) / columns.norm(dim=1)
    for _ in range(2):  # made, then read
        seen = view(model, questions(5), questions(4, 9), tmp_path)
        found = seen.gradient_products(precondition=Scaled(2.0), samples=of, **options)
        speaking = [0, 2, 3]
        close(found[:, speaking], wanted[:, speaking])
        assert torch.isnan(found[:, 1]).all() == normalize


def test_a_sample_that_is_not_finite() -> None:
    model, of = speaker().double(), samples()
    with torch.no_grad():
        model.model.embed_tokens.weight[17] = float("inf")  # only in the completions of the third query
    seen = view(model, questions(5).filter(lambda row: 17 not in row["input_ids"]), questions(4, 9))
    options: dict[str, Any] = {"basis": "exact", "samples": of, "target": "policy"}
    found = seen.gradients("queries", on_nonfinite="skip", **options).whole()
    assert torch.isnan(found[2]).all()
    assert torch.isfinite(found[[0, 1, 3]]).all()
    assert seen.facts["skipped_queries"] == 1


def test_a_sample_is_drawn_by_the_ids_of_rows() -> None:
    model = speaker()
    ids = [f"r{i}" for i in range(9)]
    pool = questions(9).add_column("row_id", ids)
    turned = pool.select([4, 0, 8, 2, 7, 1, 3, 6, 5])

    def drawn(rows: Any, count: int, after: int = 0) -> set[str]:
        source = Vectors(view(model, rows, questions(4, 9)), "pool", "loss").sample(count, 3, after)
        return {row for batch in source.batches for row in batch["row_id"]}

    assert drawn(pool, 4) == drawn(turned, 4)
    assert not drawn(pool, 4) & drawn(pool, 4, after=4)
    assert drawn(pool, 20, after=20) == {f"pool:{row}" for row in ids}  # all were taken: the same again
