"""The automatic ridge has the least leave-one-out error, and a ridge is raised only when asked."""

from __future__ import annotations

import pytest
import torch

from hfdataopt.errors import DataError, OptionError
from hfdataopt.shapley import loo_ridge, relative_ridge, shapley_values
from hfdataopt.shapley.ridge import loo_errors

from ._exact import predict
from .conftest import Data, make_data


def brute_force(data: Data, ridge: float) -> float:
    rows = len(data.labels)
    total = 0.0
    for row in range(rows):
        held = [other for other in range(rows) if other != row]
        own = data.kernel[..., row : row + 1]
        total += float((predict(data.kernel, own, data.targets, held, ridge)[0] - data.targets[row]).square().sum())
    return total / rows


def test_closed_form_errors_equal_refits(data: Data) -> None:
    kernel = data.kernel if data.kernel.ndim == 3 else data.kernel[None]
    ridges = torch.tensor([1e-3, 0.1, 10.0], dtype=torch.float64)
    expected = torch.tensor([brute_force(data, ridge) for ridge in ridges.tolist()], dtype=torch.float64)
    torch.testing.assert_close(loo_errors(kernel, data.targets, ridges), expected, rtol=1e-9, atol=0)


def test_no_ridge_of_a_fine_grid_is_better() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=random, dtype=torch.float64)
    labels = (features[:, 0] + 0.7 * torch.randn(60, generator=random, dtype=torch.float64) > 0).long()
    data = Data(features @ features.T, features @ features[:5].T, labels, labels[:5], 2)
    best = loo_ridge(data.kernel, data.targets)
    grid = torch.logspace(-4, 3, 400, dtype=torch.float64)
    errors = loo_errors(data.kernel[None], data.targets, grid)
    assert 0 < int(errors.argmin()) < 399
    assert best == pytest.approx(float(grid[errors.argmin()]), rel=0.05)
    assert brute_force(data, best) <= float(errors.min()) * (1 + 1e-6)
    assert shapley_values(*data.arguments, permutations=1).ridge == best


def test_the_automatic_ridge_scales_with_the_kernel() -> None:
    data = make_data()
    assert loo_ridge(1e4 * data.kernel, data.targets) == pytest.approx(
        1e4 * loo_ridge(data.kernel, data.targets), rel=1e-6
    )


def test_relative_ridge_is_a_share_of_the_mean_diagonal() -> None:
    kernel = torch.diag(torch.tensor([1.0, 2.0, 6.0]))
    assert relative_ridge(kernel, 0.1) == pytest.approx(0.3)
    assert relative_ridge(kernel.numpy(), 1e-3) == pytest.approx(3e-3)
    with pytest.raises(OptionError, match="factor"):
        relative_ridge(kernel, -1)


def not_positive(least: float = -0.05) -> Data:
    data = make_data()
    values, vectors = torch.linalg.eigh(data.kernel)
    values[0] = least
    return Data(vectors @ torch.diag(values) @ vectors.T, data.cross, data.labels, data.query_labels, 2)


def test_a_kernel_that_is_not_positive_definite_is_an_error_with_numbers() -> None:
    data = not_positive()
    with pytest.raises(DataError, match=r"ridge is 0\.001, the kernel's smallest eigenvalue -0\.05"):
        shapley_values(*data.arguments, ridge=1e-3, permutations=1)
    with pytest.raises(DataError, match=r"eigenvalues from -0\.05"):
        shapley_values(*data.arguments, ridge="auto", permutations=1)


def test_the_ridge_is_raised_by_tens_when_asked_and_reported() -> None:
    data = not_positive()
    result = shapley_values(*data.arguments, ridge=1e-3, permutations=3, on_not_positive_definite="raise-ridge")
    assert result.ridge == pytest.approx(0.1)
    assert result.metadata["ridge_raised"] is True
    enough = shapley_values(*data.arguments, ridge=0.1, permutations=3, on_not_positive_definite="raise-ridge")
    assert enough.metadata["ridge_raised"] is False
    assert (enough.values == result.values).all()


def test_bad_ridges_are_refused() -> None:
    data = make_data()
    for ridge in (-1.0, float("nan"), "Auto", True):
        with pytest.raises(OptionError, match="ridge"):
            shapley_values(*data.arguments, ridge=ridge, permutations=1)
    with pytest.raises(OptionError, match="on_not_positive_definite"):
        shapley_values(*data.arguments, permutations=1, on_not_positive_definite="raise")
