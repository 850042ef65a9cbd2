"""How much ridge kernel regression gets, always as an absolute number added to the kernel's diagonal.

Members: `loo_ridge` (`ridge="auto"`: least leave-one-out error), `relative_ridge` (a share of the mean diagonal),
`resolve_ridge` (option to number, and what happens when the kernel is not positive definite).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hfdataopt.errors import DataError, OptionError
from hfdataopt.shapley._inputs import check_kernel, check_targets

SMALLEST_SHARE = 1e-8
"""Least ridge searched, as a share of the largest eigenvalue: below it float64 rounding decides the predictions."""

INDEFINITE_SHARE = 1e-5
"""A negative eigenvalue beyond this share of the largest is no rounding error of a float32 Gram matrix."""


@dataclass(frozen=True)
class Ridge:
    """The ridge used, and whether it had to be raised above what was asked."""

    value: float
    raised: bool = False


def relative_ridge(kernel: Any, factor: float) -> float:
    """`factor` times the mean of the diagonal of `kernel [n, n]` or `[c, n, n]`."""
    if not 0 <= factor < float("inf"):
        raise OptionError(f"factor is {factor!r}; pass a finite number >= 0")
    return factor * float(check_kernel(kernel).diagonal(dim1=1, dim2=2).mean())


def loo_ridge(kernel: Any, targets: Any) -> float:
    """The ridge with the least squared leave-one-out error of kernel regression onto `targets [n, c]`.

    With Q = (K + ridge I)^-1 the error at row i is (Q Y)_i / Q_ii (closed form, see Rifkin and Lippert 2007), and Q for
    every ridge follows from one eigendecomposition: O(n^3) once, O(n^2 c) per ridge tried. Targets are not centred, as
    in the regression itself. With one kernel per class the errors are summed over the classes and all share one ridge.
    Searched on a logarithmic grid from `SMALLEST_SHARE` of the largest eigenvalue to that eigenvalue, twice refined (to
    1 %). Raises `DataError`.
    """
    pool = check_kernel(kernel)
    return _least_error(pool, check_targets(targets, pool))


def loo_errors(kernel: Tensor, targets: Tensor, ridges: Tensor) -> Tensor:
    """Mean squared leave-one-out error `[g]` of each ridge, for `kernel [k, n, n]` and `targets [n, c]`."""
    return _errors(_spectra(kernel, targets), ridges)


@dataclass(frozen=True)
class _Spectrum:
    values: Tensor
    vectors: Tensor
    squares: Tensor
    targets: Tensor
    """The targets in the eigenbasis `[n, c]`."""


def _spectra(kernel: Tensor, targets: Tensor) -> list[_Spectrum]:
    spectra = []
    for index, one in enumerate(kernel):
        values, vectors = torch.linalg.eigh(one)
        columns = targets if len(kernel) == 1 else targets[:, index : index + 1]
        spectra.append(_Spectrum(values, vectors, vectors.square(), vectors.T @ columns))
    return spectra


def _errors(spectra: list[_Spectrum], ridges: Tensor) -> Tensor:
    total = torch.zeros_like(ridges)
    for spectrum in spectra:
        inverse = 1 / (spectrum.values[:, None] + ridges)
        diagonal = spectrum.squares @ inverse
        for column in spectrum.targets.T:
            residual = (spectrum.vectors @ (inverse * column[:, None])) / diagonal
            total += residual.square().mean(dim=0)
    return total


def _least_error(kernel: Tensor, targets: Tensor) -> float:
    spectra = _spectra(kernel, targets)
    least = min(float(spectrum.values[0]) for spectrum in spectra)
    largest = max(float(spectrum.values[-1]) for spectrum in spectra)
    if largest <= 0 or least < -INDEFINITE_SHARE * largest:
        raise DataError(
            f"kernel has eigenvalues from {least:.3g} to {largest:.3g}, so it is no kernel of products; "
            "recompute it, or pass ridge as a number well above the negative part"
        )
    lowest = max(SMALLEST_SHARE * largest, -2 * least)
    low, high, points = np.log10(lowest), np.log10(largest), 33
    best = low
    for _ in range(3):
        grid = torch.logspace(low, high, points, dtype=torch.float64, device=kernel.device)
        errors = _errors(spectra, grid)
        place = int(errors.argmin())
        step = (high - low) / (points - 1)
        best = low + step * place
        low, high, points = max(best - step, np.log10(lowest)), min(best + step, np.log10(largest)), 17
    return float(10**best)


def resolve_ridge(kernel: Tensor, targets: Tensor, ridge: float | str, on_not_positive_definite: str) -> Ridge:
    """The number to use for `ridge`: itself, or `loo_ridge` for `"auto"`.

    With `on_not_positive_definite="raise-ridge"` it is multiplied by 10 until the smallest eigenvalue of kernel + ridge
    I is above rounding, which then holds for every subset of rows. Raises `OptionError`.
    """
    if on_not_positive_definite not in ("error", "raise-ridge"):
        raise OptionError(f"on_not_positive_definite is {on_not_positive_definite!r}; pass 'error' or 'raise-ridge'")
    if isinstance(ridge, str):
        if ridge != "auto":
            raise OptionError(f"ridge is {ridge!r}; pass 'auto' or a number >= 0")
        return Ridge(_least_error(kernel, targets))
    if isinstance(ridge, bool) or not 0 <= ridge < float("inf"):
        raise OptionError(f"ridge is {ridge!r}; pass 'auto' or a finite number >= 0")
    if on_not_positive_definite == "error":
        return Ridge(float(ridge))
    spectra = [torch.linalg.eigvalsh(one) for one in kernel]
    least = min(float(values[0]) for values in spectra)
    largest = max(float(values[-1]) for values in spectra)
    needed = kernel.shape[1] * torch.finfo(torch.float64).eps * largest - least
    raised = float(ridge) if ridge > 0 or needed <= 0 else SMALLEST_SHARE * largest
    while raised < needed:
        raised *= 10
    return Ridge(raised, raised != ridge)


def not_positive_definite(kernel: Tensor, ridge: float) -> DataError:
    """The error to raise where kernel + ridge I has no Cholesky factor, with the smallest eigenvalue."""
    least = min(float(torch.linalg.eigvalsh(one)[0]) for one in kernel)
    return DataError(
        f"kernel + ridge I is not positive definite: ridge is {ridge:.3g}, the kernel's smallest eigenvalue {least:.3g}; "
        "pass a larger ridge (relative_ridge(kernel, 1e-3) is robust), ridge='auto', or "
        "on_not_positive_definite='raise-ridge'"
    )
