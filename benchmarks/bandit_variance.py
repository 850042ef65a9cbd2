"""How long NeuralUCB's exact variance takes on one thread, and how far it is from the plain formulas.

    python benchmarks/bandit_variance.py

CPU seconds, medians of repeats that take turns. The explicit way forms the gradient of every candidate (``vmap`` of
``grad``, in chunks) and solves with the t x t matrix: the same exact numbers, and the cheapest way with explicit gradients.
The diagonal of explicit gradients is what released code of NeuralUCB computes.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from quiet import quiet_and_single_threaded
from results import Results
from timing import in_turn, ratio
from torch import Tensor, nn

from hfdataopt.bandits import neural_variance
from hfdataopt.bandits.surrogates import mlp

RIDGE = 0.1
MATRICES = {"full": False, "diagonal": True}


def explicit_gradients(network: nn.Module, points: Tensor) -> Tensor:
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def score(weights: dict[str, Tensor], point: Tensor) -> Tensor:
        return torch.func.functional_call(network, weights, (point[None],))[0, 0]

    found = torch.func.vmap(torch.func.grad(score), (None, 0))(parameters, points)
    return torch.cat([found[name].flatten(1) for name in parameters], 1)


def explicit(network: nn.Module, pool: Tensor, observed: Tensor, diagonal: bool, chunk: int = 100) -> Tensor:
    history, parts = explicit_gradients(network, observed), []
    sums = RIDGE + (history**2).sum(0)
    cholesky = torch.linalg.cholesky(history @ history.T + RIDGE * torch.eye(len(history), dtype=history.dtype))
    for start in range(0, len(pool), chunk):
        g = explicit_gradients(network, pool[start : start + chunk])
        if diagonal:
            parts.append(RIDGE * (g**2) @ (1 / sums))
        else:
            solved = torch.linalg.solve_triangular(cholesky, history @ g.T, upper=False)
            parts.append((g**2).sum(1) - (solved**2).sum(0))
    return torch.cat(parts)


def case(
    inputs: int, widths: tuple[int, ...], pool: int, observed: int, dtype: torch.dtype
) -> tuple[nn.Module, Tensor, Tensor, str]:
    """Network, candidates, observations and a caption."""
    generator = torch.Generator().manual_seed(0)
    network = mlp(inputs, widths, seed=0, last=1.0).to(dtype)
    rows = torch.randn(pool + observed, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
    caption = (
        f"{pool:,} candidates, {sum(p.numel() for p in network.parameters()):,} parameters "
        f"({inputs}-{'-'.join(map(str, widths))}-1), {observed} observations, {str(dtype).removeprefix('torch.')}"
    )
    return network, rows[:pool].to(dtype), rows[pool:].to(dtype), caption


def largest_difference(found: Tensor, wanted: Tensor) -> str:
    """Relative, to one digit."""
    return f"{float(((found - wanted) / wanted).abs().max()):.0e}"


def against_float64(
    results: Results, inputs: int, widths: tuple[int, ...], candidates: int, observations: int, repeats: int
) -> None:
    """A table of a large network, beside float64."""
    network, pool, observed, caption = case(inputs, widths, candidates, observations, torch.float32)
    runs: dict[str, Callable[[], Tensor]] = {
        name: lambda diagonal=diagonal: neural_variance(network, pool, observed, ridge=RIDGE, diagonal=diagonal)
        for name, diagonal in MATRICES.items()
    }
    times, found = in_turn(runs, repeats)
    network.double()
    rows = pool[: candidates // 20].double()
    exact = {
        name: neural_variance(network, rows, observed.double(), ridge=RIDGE, diagonal=diagonal)
        for name, diagonal in MATRICES.items()
    }
    results.table(
        f"{caption}; medians of {repeats}",
        ["matrix", "CPU s", f"largest relative difference from float64, {len(rows)} candidates"],
        [
            [name, statistics.median(times[name]), largest_difference(found[name][: len(rows)], exact[name])]
            for name in runs
        ],
    )


def against_explicit(
    results: Results, inputs: int, widths: tuple[int, ...], candidates: int, observations: int, repeats: int
) -> None:
    """A table of a small network beside explicit gradients."""
    network, pool, observed, caption = case(inputs, widths, candidates, observations, torch.float64)
    lines = []
    for name, diagonal in MATRICES.items():
        runs: dict[str, Callable[[], Tensor]] = {
            "ours": lambda diagonal=diagonal: neural_variance(network, pool, observed, ridge=RIDGE, diagonal=diagonal),
            "explicit": lambda diagonal=diagonal: explicit(network, pool, observed, diagonal),
        }
        times, found = in_turn(runs, repeats)
        medians = [statistics.median(times[side]) for side in runs]
        error = largest_difference(found["ours"], found["explicit"])
        lines.append([name, *medians, ratio(times["explicit"], times["ours"]), error])
    results.table(
        f"{caption}; medians of {repeats}",
        ["matrix", "CPU s", "explicit gradients, CPU s", "times as fast", "largest relative difference"],
        lines,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    quiet_and_single_threaded()
    results = Results("bandit_variance", f"python benchmarks/bandit_variance.py --repeats {repeats}")
    against_float64(results, 4096, (230, 230), 10_000, 200, repeats)
    against_explicit(results, 1024, (100,), 1000, 100, repeats)


if __name__ == "__main__":
    main()
