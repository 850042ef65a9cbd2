"""Speed of the Shapley engine against the least that its algebra can cost, in one run.

    python benchmarks/shapley_speed.py

One un-truncated permutation, one thread, CPU seconds, random data.
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
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from quiet import quiet_and_single_threaded
from results import Results
from timing import in_turn, ratio
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


def compare(results: Results, rows: int, queries: int, classes: int, repeats: int) -> None:
    """A table of one permutation."""
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
    times, _ = in_turn(runs, repeats)
    floor = times["bare floor"]
    results.table(
        f"One permutation, {rows:,} rows, {queries} queries, {classes} classes; medians of {repeats}",
        ["", "CPU s", "x floor"],
        [[name, statistics.median(taken), ratio(taken, floor)] for name, taken in times.items()],
    )


def compare_reference(results: Results, rows: int, queries: int, repeats: int) -> None:
    """A table of the predictions of all prefixes."""
    kernel, cross, labels, _ = make(rows, queries, 2)
    targets = torch.nn.functional.one_hot(labels, 2).double()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    runs = {
        "ours": lambda: prefix_predictions(kernel, cross, targets, order, ridge=1e-2),
        "one solve per prefix": lambda: prefix_predictions_reference(kernel, cross, targets, order, ridge=1e-2),
    }
    times, _ = in_turn(runs, repeats)
    results.table(
        f"Predictions of all prefixes, {rows} rows, {queries} queries, 2 classes; medians of {repeats}",
        ["", "CPU s", "x ours"],
        [[name, statistics.median(taken), ratio(taken, times["ours"])] for name, taken in times.items()],
    )


def measure_memory(results: Results, rows: int, queries: int) -> None:
    """A table of the peak memory of processes of their own."""
    lines: list[list[Any]] = []
    for ridge in ("1.0", "'auto'"):
        script = MEMORY_SCRIPT.format(rows=rows, queries=queries, ridge=ridge)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        lines.append([f"`ridge={ridge}`", *map(float, done.stdout.split())])
    results.table(
        f"`shapley_values`, 1 permutation of {rows:,} rows and {queries} queries, with the utility of all rows and the ridge",
        ["", "peak MiB", "CPU s"],
        lines,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    quiet_and_single_threaded()
    results = Results("shapley_speed", f"python benchmarks/shapley_speed.py --repeats {options.repeats}")
    compare(results, 2000, 500, 2, options.repeats)
    compare(results, 1000, 500, 6, options.repeats)
    compare_reference(results, 400, 100, 3)
    measure_memory(results, 5000, 872)


if __name__ == "__main__":
    main()
