"""Speed of the Shapley engine against the least that its algebra can cost, in one run: `python
benchmarks/shapley_speed.py`.

One un-truncated permutation, one thread, CPU seconds (`time.process_time`), medians of interleaved repeats, random
data.
- bare floor: `torch.linalg.cholesky` of a kernel that is already in order, `solve_triangular` for the queries and
  targets, and a blocked cumulative sum of the difference of two classes. No gather of the permuted kernel, no utility,
  no bookkeeping.
- ours: everything `shapley_values` does per permutation: drawing the order, gathering the kernel, factor, predictions,
  utility, marginals, and (stated) out-of-bag margins and values per query.
- plain reference: one solve per prefix, on fewer rows.
Peak memory is that of a child process that runs `shapley_values` on 5,000 rows and 872 queries.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfdataopt.shapley import prefix_predictions, prefix_predictions_reference
from hfdataopt.shapley._walk import Problem, build_problem, run_chunk

OPTIONS: dict[str, Any] = {
    "utility": "margin", "guards": [], "first_wins": False, "ridge": 1e-2, "seed": 0, "truncation": None,
    "weights": "shapley", "beta": (1, 1), "per_query": False, "out_of_bag": True, "batch_size": 1,
}  # fmt: skip

MEMORY_SCRIPT = """
import resource, time
import torch
from hfdataopt.shapley import shapley_values
torch.set_num_threads(1)
torch.manual_seed(0)
features = torch.randn({rows} + {queries}, 100, dtype=torch.float64)
kernel, cross = features[:{rows}] @ features[:{rows}].T, features[:{rows}] @ features[{rows}:].T
labels = (features[:, 0] > 0).long()
start = time.process_time()
shapley_values(kernel, cross, labels[:{rows}], labels[{rows}:], ridge={ridge}, permutations=1)
seconds = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(f"{{peak:.0f}} {{seconds:.2f}}")
"""


def make(rows: int, queries: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows + queries, 400, generator=generator, dtype=torch.float64)
    labels = features[:, :classes].argmax(dim=1)
    gram = features @ features[:rows].T / 400
    return gram[:rows].contiguous(), gram[rows:].T.contiguous(), labels[:rows], labels[rows:]


def bare_floor(kernel: Tensor, right: Tensor, queries: int, ridge: float) -> Callable[[], None]:
    classes = right.shape[1] - queries
    system = kernel.clone()
    system.diagonal().add_(ridge)

    def run() -> None:
        factor = torch.linalg.cholesky(system)
        solved = torch.linalg.solve_triangular(factor, right, upper=False)
        columns = solved[:, queries:].T
        columns = columns[1:] - columns[:1] if classes == 2 else columns
        carry = torch.zeros(len(columns), queries, dtype=torch.float64)
        for start in range(0, len(solved), 256):
            part = solved[start : start + 256, :queries] * columns[:, start : start + 256, None]
            part[:, 0] += carry
            carry = part.cumsum_(dim=1)[:, -1]

    return run


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def shuffled_medians(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    shuffle = random.Random(0)
    for _ in range(repeats):
        # Who runs after whom decides whose memory is still mapped, which is worth several per cent.
        for name in shuffle.sample(sorted(runs), len(runs)):
            times[name].append(seconds(runs[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def compare(rows: int, queries: int, classes: int, repeats: int) -> None:
    kernel, cross, labels, query_labels = make(rows, queries, classes)

    def problem(**changes: Any) -> Problem:
        made = build_problem(kernel[None], cross[None], labels, query_labels, OPTIONS | {"classes": classes} | changes)
        _ = made.right  # built once per chunk of permutations
        return made

    right = torch.cat([cross, torch.nn.functional.one_hot(labels, classes).double()], dim=1)
    index = iter(range(10**6))

    def ours(made: Problem) -> Callable[[], Any]:
        def run() -> Any:
            at = next(index)
            return run_chunk(made, at, at + 1, [0.0])

        return run

    runs = {
        "bare floor": bare_floor(kernel, right, queries, 1e-2),
        "ours": ours(problem(out_of_bag=False)),
        "ours + out-of-bag (the default)": ours(problem()),
        "ours + out-of-bag + per query": ours(problem(per_query=True)),
        "ours, log-likelihood": ours(problem(utility="log-likelihood")),
    }
    medians = shuffled_medians(runs, repeats)
    print(f"\nn = {rows}, t = {queries}, c = {classes}: one permutation, median of {repeats}")
    for name, value in medians.items():
        print(f"  {name:32s} {value:8.4f} s   {value / medians['bare floor']:5.2f} x the floor")


def compare_reference(rows: int, queries: int) -> None:
    kernel, cross, labels, _ = make(rows, queries, 2)
    targets = torch.nn.functional.one_hot(labels, 2).double()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    medians = shuffled_medians(
        {
            "ours": lambda: prefix_predictions(kernel, cross, targets, order, ridge=1e-2),
            "plain reference": lambda: prefix_predictions_reference(kernel, cross, targets, order, ridge=1e-2),
        },
        3,
    )
    print(f"\nn = {rows}, t = {queries}, c = 2: predictions of all prefixes")
    print(f"  ours {medians['ours']:.4f} s, plain reference {medians['plain reference']:.2f} s", end="")
    print(f" ({medians['plain reference'] / medians['ours']:.0f} x)")


def measure_memory(rows: int, queries: int, ridge: str) -> None:
    script = MEMORY_SCRIPT.format(rows=rows, queries=queries, ridge=ridge)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    peak, spent = done.stdout.split()
    print(f"\nn = {rows}, t = {queries}, ridge = {ridge}: shapley_values, 1 permutation, in a process of its own")
    print(f"  peak {peak} MiB, {spent} CPU s with the utility of all rows and the ridge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare(500 if options.quick else 2000, 500, 2, options.repeats)
    compare(500 if options.quick else 1000, 500, 6, options.repeats)
    compare_reference(200 if options.quick else 400, 100)
    if not options.quick:
        measure_memory(5000, 872, "1.0")
        measure_memory(5000, 872, "'auto'")


if __name__ == "__main__":
    main()
