"""How long NeuralUCB's exact variance takes on one thread, and how far it is from the plain formulas.

    python benchmarks/bandit_variance.py

Seconds of the clock and of the CPU, best of the repeats. The explicit way forms the gradient of every candidate (``vmap`` of
``grad``, in chunks) and solves with the t x t matrix: the same exact numbers, and the cheapest way with explicit gradients.
The diagonal of explicit gradients is what released code of NeuralUCB computes.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from quiet import quiet_and_single_threaded
from torch import Tensor, nn

from hfdataopt.bandits import neural_variance
from hfdataopt.bandits.surrogates import mlp

RIDGE = 0.1


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


def timed(work: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float, float]:
    best = (math.inf, math.inf)
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        best = (min(best[0], time.perf_counter() - wall), min(best[1], time.process_time() - cpu))
    return result, *best


def case(
    inputs: int, widths: tuple[int, ...], pool: int, observed: int, dtype: torch.dtype
) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    network = mlp(inputs, widths, seed=0, last=1.0).to(dtype)
    rows = torch.randn(pool + observed, inputs, generator=generator, dtype=torch.float64) / inputs**0.5
    print(
        f"\n{pool:,} candidates, {sum(p.numel() for p in network.parameters()):,} parameters "
        f"({inputs}-{'-'.join(map(str, widths))}-1), {observed} observations, {str(dtype).removeprefix('torch.')}"
    )
    return network, rows[:pool].to(dtype), rows[pool:].to(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    quiet_and_single_threaded()

    network, pool, observed = case(4096, (230, 230), 10_000, 200, torch.float32)
    for diagonal in (False, True):
        ours, wall, cpu = timed(
            lambda diagonal=diagonal: neural_variance(network, pool, observed, ridge=RIDGE, diagonal=diagonal), repeats
        )
        exact = neural_variance(
            network.double(), pool[:500].double(), observed.double(), ridge=RIDGE, diagonal=diagonal
        )
        error = float(((ours[:500] - exact) / exact).abs().max())
        network.float()
        print(
            f"  {'diagonal' if diagonal else 'full':8s}  {wall:7.3f} s, CPU {cpu:7.3f} s; float64 differs by {error:.0e}"
        )

    network, pool, observed = case(1024, (100,), 1000, 100, torch.float64)
    for diagonal in (False, True):
        ours, wall, cpu = timed(
            lambda diagonal=diagonal: neural_variance(network, pool, observed, ridge=RIDGE, diagonal=diagonal), repeats
        )
        plain, slow_wall, slow_cpu = timed(
            lambda diagonal=diagonal: explicit(network, pool, observed, diagonal), max(1, repeats // 2)
        )
        error = float(((ours - plain) / plain).abs().max())
        print(
            f"  {'diagonal' if diagonal else 'full':8s}  {wall:7.4f} s, CPU {cpu:7.4f} s; explicit gradients {slow_wall:.2f} s, "
            f"CPU {slow_cpu:.2f} s: {slow_cpu / cpu:.0f} x the CPU; largest relative difference {error:.0e}"
        )


if __name__ == "__main__":
    main()
