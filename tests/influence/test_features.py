"""Closed-form solvers on features: against the formulas row by row, and what must not change them."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hfdataopt.errors import DataError, OptionError
from hfdataopt.gradients import ShardedArray
from hfdataopt.influence import features as module
from hfdataopt.influence import influence, inverse_products, mean_squares

OFFSETS = [0, 5, 6, 14]


def draw(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([1.0] * 5 + [30.0] + [0.02] * 8)
    return torch.randn(rows, 14, generator=generator) * scales


def dense(pool: Tensor, queries: Tensor, solver: str, damping: float) -> Tensor:
    """The definition: for each block an explicit inverse, for DataInf the mean of one inverse per row."""
    pool, queries = pool.double(), queries.double()
    total = torch.zeros(len(pool), len(queries), dtype=torch.float64)
    for start, stop in itertools.pairwise(OFFSETS):
        g, v = pool[:, start:stop], queries[:, start:stop]
        lam = damping * (g**2).mean(1).mean()
        eye = torch.eye(stop - start, dtype=torch.float64)
        if solver == "datainf":
            inverse = torch.stack([torch.linalg.inv(torch.outer(row, row) + lam * eye) for row in g]).mean(0)
        else:
            inverse = torch.linalg.inv(torch.diag((g**2).mean(0)) + lam * eye)
        total += g @ inverse @ v.T
    return total


@pytest.mark.parametrize("solver", ["datainf", "ekfac"])
@pytest.mark.parametrize("queries", [1, 4, 40])  # below and above the sizes of the blocks
@pytest.mark.parametrize("damping", [0.1, 3.0])
def test_equals_the_definition(solver: Any, queries: int, damping: float) -> None:
    pool, wanted = draw(30, 0), draw(queries, 1)
    found = influence(pool, wanted, OFFSETS, solver, damping)
    torch.testing.assert_close(found, dense(pool, wanted, solver, damping), rtol=1e-9, atol=1e-9)


def test_identity_is_the_inner_product() -> None:
    pool, queries = draw(30, 0), draw(4, 1)
    torch.testing.assert_close(influence(pool, queries, OFFSETS, "identity"), pool.double() @ queries.double().T)


@pytest.mark.parametrize("solver", ["identity", "datainf", "ekfac"])
def test_shards_on_disk_and_small_blocks_change_nothing(
    solver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    pool, queries = draw(30, 0), draw(20, 1)
    whole = influence(pool, queries, OFFSETS, solver)
    np.save(tmp_path / "a.npy", pool[:13, None].numpy())
    np.save(tmp_path / "b.npy", pool[13:, None].numpy())
    shards = ShardedArray([np.load(tmp_path / name, mmap_mode="r") for name in ("a.npy", "b.npy")])
    monkeypatch.setattr(module, "ROW_BLOCK_BYTES", 3 * 8 * 14)
    torch.testing.assert_close(influence(shards, queries.numpy(), OFFSETS, solver), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["identity", "datainf", "ekfac"])
def test_order_of_rows_and_queries_does_not_matter(solver: Any) -> None:
    pool, queries = draw(30, 0), draw(4, 1)
    rows, columns = torch.randperm(30), torch.randperm(4)
    found = influence(pool[rows], queries[columns], OFFSETS, solver)
    torch.testing.assert_close(found, influence(pool, queries, OFFSETS, solver)[rows][:, columns])


@pytest.mark.parametrize("solver", ["datainf", "ekfac"])
def test_scale_of_the_loss_and_doubled_rows(solver: Any) -> None:
    """H is a mean of squares: 8 times all losses leaves the influence as it is, and so does a pool given twice."""
    pool, queries = draw(30, 0), draw(4, 1)
    found = influence(pool, queries, OFFSETS, solver)
    torch.testing.assert_close(influence(8 * pool, 8 * queries, OFFSETS, solver), found)
    torch.testing.assert_close(influence(torch.cat([pool, pool]), queries, OFFSETS, solver), torch.cat([found, found]))


@pytest.mark.parametrize("solver", ["identity", "datainf", "ekfac"])
def test_a_row_that_is_not_finite_has_no_score_and_no_weight(solver: Any) -> None:
    pool, queries = draw(30, 0), draw(4, 1)
    broken, strange = pool.clone(), queries.clone()
    broken[[0, 7], 3] = torch.tensor([float("nan"), float("inf")])
    strange[2, 0] = float("nan")
    found = influence(broken, strange, OFFSETS, solver)
    rows = [row for row in range(30) if row not in (0, 7)]
    columns = [0, 1, 3]
    assert found[[0, 7]].isnan().all()
    assert found[:, 2].isnan().all()
    wanted = influence(pool[rows], queries[columns], OFFSETS, solver)
    torch.testing.assert_close(found[rows][:, columns], wanted)


@pytest.mark.parametrize("solver", ["datainf", "ekfac"])
def test_a_block_that_the_pool_never_reaches_adds_nothing(solver: Any) -> None:
    pool, queries = draw(30, 0), draw(4, 1)
    pool[:, 5] = 0
    found = influence(pool, queries, OFFSETS, solver)
    keep = [0, 1, 2, 3, 4, *range(6, 14)]
    torch.testing.assert_close(found, influence(pool[:, keep], queries[:, keep], [0, 5, 13], solver))


@pytest.mark.parametrize("solver", ["datainf", "ekfac"])
def test_much_damping_gives_inner_products(solver: Any) -> None:
    pool, queries = draw(30, 0)[:, :5], draw(4, 1)[:, :5]
    found = influence(pool, queries, [0, 5], solver, 1e8)
    plain = pool.double() @ queries.double().T
    torch.testing.assert_close(found / found.norm(), plain / plain.norm(), rtol=1e-5, atol=1e-8)


def test_what_arrives_wrong_is_said() -> None:
    pool, queries = draw(30, 0), draw(4, 1)
    with pytest.raises(OptionError, match="solver='newton'"):
        inverse_products(pool, queries, OFFSETS, "newton")  # type: ignore[arg-type]
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="damping"):
            inverse_products(pool, queries, OFFSETS, "ekfac", damping)
    with pytest.raises(DataError, match="offsets"):
        inverse_products(pool, queries, [0, 5], "ekfac")
    with pytest.raises(DataError, match="finite"):
        mean_squares(pool * float("nan"))
