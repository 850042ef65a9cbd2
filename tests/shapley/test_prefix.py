"""Prefix predictions equal direct solves, whatever the block size, the batch and the kind of kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hfdataopt.errors import DataError, OptionError
from hfdataopt.shapley import prefix_predictions, prefix_predictions_reference
from hfdataopt.shapley.prefix import BLOCK, factor_blocks, running_predictions, stack_right

from ._exact import predict
from .conftest import Data, make_data


def test_reference_is_a_direct_solve_per_prefix(data: Data) -> None:
    order = [4, 0, 7, 2]
    found = prefix_predictions_reference(data.kernel, data.cross, data.targets, order, ridge=0.1)
    for size in range(1, 5):
        expected = predict(data.kernel, data.cross, data.targets, order[:size], 0.1)
        torch.testing.assert_close(found[size - 1], expected, rtol=0, atol=1e-12)


def test_equals_direct_solves(data: Data) -> None:
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(1))
    fast = prefix_predictions(data.kernel, data.cross, data.targets, order, ridge=1e-3)
    plain = prefix_predictions_reference(data.kernel, data.cross, data.targets, order, ridge=1e-3)
    assert fast.shape == (len(order), 9, data.classes)
    assert (fast - plain).abs().max() < 1e-8


def test_equals_direct_solves_where_the_kernel_has_low_rank() -> None:
    random = torch.Generator().manual_seed(2)
    features = torch.randn(220, 60, generator=random, dtype=torch.float64)
    gram = features @ features.T / 60
    targets = torch.randn(200, 3, generator=random, dtype=torch.float64)
    order = torch.randperm(200, generator=random)
    fast = prefix_predictions(gram[:200, :200], gram[:200, 200:], targets, order, ridge=1e-4)
    plain = prefix_predictions_reference(gram[:200, :200], gram[:200, 200:], targets, order, ridge=1e-4)
    assert (fast - plain).abs().max() < 1e-8


def test_orders_of_a_part_of_the_rows_and_more_rows_than_a_block() -> None:
    data = make_data(rows=BLOCK + 60, queries=3)
    order = torch.randperm(BLOCK + 60, generator=torch.Generator().manual_seed(3))[: BLOCK + 20]
    fast = prefix_predictions(data.kernel, data.cross, data.targets, order, ridge=1e-2)
    assert len(fast) == BLOCK + 20
    for size in (1, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 20):
        expected = predict(data.kernel, data.cross, data.targets, order[:size].tolist(), 1e-2)
        assert (fast[size - 1] - expected).abs().max() < 1e-8


@pytest.mark.parametrize("block", [1, 7, 30, 64])
def test_blocks_of_any_size_and_batches_give_the_same(data: Data, block: int) -> None:
    kernel, cross = (x if x.ndim == 3 else x[None] for x in (data.kernel, data.cross))
    random = torch.Generator().manual_seed(4)
    orders = torch.stack([torch.randperm(30, generator=random) for _ in range(3)])
    carry = torch.zeros(3, data.classes, 9, dtype=torch.float64)
    found = [
        running_predictions(one, carry, 3)
        for one in factor_blocks(kernel, stack_right(cross, data.targets), orders, 0.01, block)
    ]
    together = torch.cat(found, dim=2)
    for index, order in enumerate(orders):
        expected = prefix_predictions_reference(data.kernel, data.cross, data.targets, order, ridge=0.01)
        assert (together[index].movedim(0, 2) - expected).abs().max() < 1e-8


def test_rows_of_the_factor_predict_the_rows_that_come_later() -> None:
    data = make_data()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    *_, block = factor_blocks(data.kernel[None], data.targets[None], order[None], 0.05)
    for size, later in ((1, 2), (10, 10), (10, 29)):
        found = block.panel[0, later, :size] @ block.solved[0, :size]
        own = data.kernel[:, order[later : later + 1]]
        expected = predict(data.kernel, own, data.targets, order[:size].tolist(), 0.05)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_it_is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    blocks = factor_blocks(data.kernel[None], data.targets[None], torch.arange(30)[None], 0.05, 10)
    first = next(blocks)
    assert (first.start, first.stop) == (0, 10)
    data.kernel[20, 20] = -1e6  # not seen before the third block
    next(blocks)
    with pytest.raises(DataError, match="not positive definite"):
        next(blocks)


def test_arrays_give_arrays_and_float32_is_computed_in_float64() -> None:
    data = make_data()
    order = np.arange(30)
    kernel, cross = data.kernel.float().numpy(), data.cross.float().numpy()
    found = prefix_predictions(kernel, cross, data.targets.numpy(), order, ridge=1e-2)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    wide = prefix_predictions(
        kernel.astype(np.float64), cross.astype(np.float64), data.targets.numpy(), order, ridge=1e-2
    )
    assert np.array_equal(found, wide)


def test_bad_orders_targets_and_ridges_are_refused() -> None:
    data = make_data(rows=10, queries=2)
    for order in ([], [0, 0], [10], [-1], [0.5], [[0, 1]], [True, False]):
        with pytest.raises(DataError, match="order"):
            prefix_predictions(data.kernel, data.cross, data.targets, order, ridge=0.1)
    with pytest.raises(DataError, match="targets"):
        prefix_predictions(data.kernel, data.cross, data.targets[:9], range(3), ridge=0.1)
    with pytest.raises(DataError, match=r"3 columns but there are 2 kernels"):
        prefix_predictions(
            data.kernel.expand(2, 10, 10), data.cross.expand(2, 10, 2), torch.ones(10, 3), [0], ridge=0.1
        )
    for ridge in (-1.0, float("nan"), float("inf"), "auto"):
        with pytest.raises(OptionError, match="ridge"):
            prefix_predictions(data.kernel, data.cross, data.targets, [0], ridge=ridge)  # type: ignore[arg-type]
