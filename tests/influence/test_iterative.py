"""Iterative solvers against a dense inverse."""

import pytest
import torch
from torch import Tensor

from hfdataopt.errors import DataError, OptionError
from hfdataopt.influence import conjugate_gradients, largest_eigenvalue, lissa


def matrix(size: int = 12, rank: int = 7) -> Tensor:
    """Positive semi-definite, not of full rank."""
    factor = torch.randn(rank, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return factor.T @ factor / rank


def rights() -> Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def solved(h: Tensor, b: Tensor, damping: float | Tensor) -> Tensor:
    lam = torch.as_tensor(damping, dtype=torch.float64).expand(len(h))
    return torch.linalg.solve(h + torch.diag(lam), b.T).T


@pytest.mark.parametrize("damping", [0.05, torch.linspace(0.05, 3, 12, dtype=torch.float64)])
def test_conjugate_gradients_equal_the_dense_inverse(damping: float | Tensor) -> None:
    h, b = matrix(), rights()
    found = conjugate_gradients(lambda x: x @ h, b, damping, tolerance=1e-10, max_iterations=40)
    torch.testing.assert_close(found.vectors, solved(h, b, damping), rtol=1e-8, atol=1e-8)
    assert (found.residuals <= 1e-10).all()
    assert (found.iterations <= 14).all()


def test_each_right_side_stops_by_itself_and_says_how_far_it_came() -> None:
    h, b = matrix(), rights()
    b[1] = torch.linalg.eigh(h)[1][:, -1]  # solved in one step
    b[2] = 0
    calls: list[int] = []

    def product(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x @ h

    found = conjugate_gradients(product, b, 0.1, tolerance=1e-6, max_iterations=40)
    assert found.iterations[1] == 1
    assert found.iterations[2] == 0
    assert (found.vectors[2] == 0).all()
    assert calls[:2] == [4, 3]
    assert len(calls) == found.iterations.max()
    for row in range(len(b)):
        alone = conjugate_gradients(lambda x: x @ h, b[row : row + 1], 0.1, tolerance=1e-6, max_iterations=40)
        torch.testing.assert_close(alone.vectors[0], found.vectors[row])
    short = conjugate_gradients(lambda x: x @ h, b, 0.1, tolerance=1e-6, max_iterations=2)
    left = b - short.vectors @ h - 0.1 * short.vectors
    torch.testing.assert_close(short.residuals[[0, 3, 4]], (left.norm(dim=1) / b.norm(dim=1))[[0, 3, 4]])
    assert (short.residuals[[0, 3, 4]] > 1e-6).all()


def test_lissa_equals_the_dense_inverse_and_the_truncated_series() -> None:
    h, b = matrix(), rights()
    found = lissa(lambda x: x @ h, b, 0.3, depth=400)
    torch.testing.assert_close(found.vectors, solved(h, b, 0.3), rtol=1e-6, atol=1e-6)
    assert (found.residuals < 1e-6).all()
    short = lissa(lambda x: x @ h, b, 0.3, depth=3, scale=20.0)
    a = h + 0.3 * torch.eye(12, dtype=torch.float64)
    step = torch.eye(12, dtype=torch.float64) - a / 20
    series = (torch.eye(12, dtype=torch.float64) + step + step @ step) / 20
    torch.testing.assert_close(short.vectors, b @ series)
    torch.testing.assert_close(short.residuals, (b - short.vectors @ a).norm(dim=1) / b.norm(dim=1))


def test_lissa_that_diverges_is_an_error_with_the_fix() -> None:
    h, b = matrix(), rights()
    largest = float(torch.linalg.eigvalsh(h)[-1])
    with pytest.raises(OptionError, match=r"diverges at depth \d+ with scale=.*scale"):
        lissa(lambda x: x @ h, b, 0.1, depth=100, scale=0.4 * (largest + 0.1))
    lissa(lambda x: x @ h, b, 0.1, depth=100, scale=0.6 * (largest + 0.1))  # above half of it converges


def test_largest_eigenvalue() -> None:
    h = matrix()
    assert largest_eigenvalue(lambda x: x @ h, 12) == pytest.approx(float(torch.linalg.eigvalsh(h)[-1]), rel=1e-3)
    assert largest_eigenvalue(lambda x: 0 * x, 12) == 0


@pytest.mark.parametrize("solver", [conjugate_gradients, lissa])
def test_a_right_side_that_is_not_finite_stays_alone(solver: object) -> None:
    h, b = matrix(), rights()
    broken = b.clone()
    broken[1, 3] = float("nan")
    assert callable(solver)
    found, whole = solver(lambda x: x @ h, broken, 0.3), solver(lambda x: x @ h, b, 0.3)
    assert found.vectors[1].isnan().all()
    assert found.residuals[1].isnan()
    others = [0, 2, 3, 4]
    torch.testing.assert_close(found.vectors[others], whole.vectors[others])


def test_curvature_that_is_no_number_or_negative_is_an_error() -> None:
    with pytest.raises(DataError, match="curvature"):
        conjugate_gradients(lambda x: x * float("nan"), rights(), 0.1)
    with pytest.raises(DataError, match="above 0"):
        conjugate_gradients(lambda x: -x, rights(), 0.1)
