"""Shapley values of pool rows by random permutations of kernel regression.

Members: `shapley_values`, `ShapleyResult`. The work of one chunk of permutations is in `_walk`, processes in `worker`,
files in `_store`. Whatever the number of workers, chunks are the same and are added in the same order, so results are
bit-identical.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hfdataopt.errors import OptionError
from hfdataopt.shapley._inputs import check_kernels, check_pool_labels, check_query_labels
from hfdataopt.shapley._store import RunFolder, digest
from hfdataopt.shapley._walk import Problem, Sums, build_problem, full_utilities, run_chunk
from hfdataopt.shapley.prefix import NotPositiveDefiniteError
from hfdataopt.shapley.ridge import not_positive_definite, resolve_ridge
from hfdataopt.shapley.semivalues import check_beta
from hfdataopt.shapley.utilities import UserUtility
from hfdataopt.shapley.worker import Span, chunks_in_workers

ROUND = 20
"""Permutations between two looks at the standard errors; a multiple of every chunk size."""

CHUNK_SECONDS = 10.0
PARALLEL_SECONDS = 30.0
FLOPS_PER_SECOND = 2e10
"""Rough speed of one core, only to size chunks and to choose the number of workers."""

PAPER: dict[str, Any] = {"utility": "accuracy", "ridge": 1e-6, "truncation": 0.05}
DEFAULTS: dict[str, Any] = {"utility": "margin", "ridge": "auto", "truncation": None}


@dataclass(frozen=True)
class ShapleyResult:
    """Values of n pool rows, higher = more helpful."""

    values: np.ndarray
    """`[n]`, in units of the utility; for Shapley weights without truncation they sum to `full_utility -
    empty_utility`."""
    standard_errors: np.ndarray
    """`[n]`, over permutations; NaN where only one was run."""
    matrix: np.ndarray | None
    """`[n, t]`: the value of each row for each query, its mean over queries is `values`; None unless `per_query`."""
    permutations: int
    """How many were run."""
    ridge: float
    """The absolute ridge used."""
    empty_utility: float
    full_utility: float
    out_of_bag: np.ndarray | None
    """`[n]`: mean margin of each row's own label over non-empty prefixes that do not hold it; no query has a part in
    it. NaN for a row that came first in every permutation; None unless `out_of_bag`."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Options as used, whether the ridge was raised, and the mean number of prefixes evaluated per permutation."""


def shapley_values(
    kernel: Any,
    cross_kernel: Any,
    labels: Any,
    query_labels: Any,
    *,
    utility: str | UserUtility = "margin",
    permutations: int = 200,
    seed: int = 0,
    ridge: float | str = "auto",
    truncation: float | None = None,
    per_query: bool = False,
    weights: str = "shapley",
    beta: tuple[float, float] = (16.0, 1.0),
    tolerance: float | None = None,
    workers: int | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    out_of_bag: bool = True,
    on_not_positive_definite: str = "error",
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShapleyResult:
    """Shapley values of the pool's rows for the queries, under kernel regression onto one-hot labels.

    `kernel [n, n]` and `cross_kernel [n, t]` (pool x queries), or one kernel per class `[c, n, n]` and `[c, n, t]`;
    `labels [n]` and `query_labels [t]` in 0 .. c - 1; arrays or tensors. A tensor on a GPU is worked on there. Numbers
    are float64.

    - `utility`: `"margin"`, `"accuracy"`, `"log-likelihood"` (`"cross_entropy"`) or `f(predictions [b, t, c],
      query_labels [t]) -> [b]` or `[b, t]`; see `utilities`.
    - `permutations`: how many, or at most how many with `tolerance`: then it stops as soon as the largest standard
      error is no more than `tolerance`, looked at after every 20. Permutation i depends on `(seed, i)` and n alone.
    - `ridge`: absolute; `"auto"` has the least leave-one-out error. With `on_not_positive_definite="raise-ridge"` it is
      multiplied by 10 until kernel + ridge I is positive definite (`metadata["ridge_raised"]`).
    - `truncation`: a permutation stops at the second of two consecutive prefixes within `truncation * |U(all) -
      U(none)|` of U(all); its later marginals count as 0, so values are biased towards 0 and no longer sum to U(all) -
      U(none).
    - `per_query`: also the values for each query.
    - `weights`: `"shapley"`, `"beta"` with `beta=(a, b)`, or `"banzhaf"`; see `semivalues`. Weights that favour large
      sets (Banzhaf, and Beta with b > a) are refused with `truncation`.
    - `workers`: processes of one BLAS thread each; None takes one per core where the work is estimated above 30 s, and
      none otherwise. Every number of workers gives the same bits. In this process one thread is used, too.
    - `output_dir`: finished chunks are kept there; the same call goes on from them, or extends them to more
      `permutations`. A callable utility is known there by its name only.
    - `preset="paper"`: FreeShap as published (Wang et al. 2024) in its set-level form: accuracy with ties going to the
      first class, ridge 1e-6, truncation 0.05 where both accuracy and log-likelihood are near. An option given with
      another value than its default stays as given.
    - `batch_size`: permutations factored together, by default 1 on a CPU and what fits into memory on a GPU.
    - `progress(done, at_most)` is called after each chunk.

    Raises `DataError` (labels, shapes, not finite, kernel not positive definite), `OptionError`, `StoreError`
    (`output_dir` of another run, full, or read-only). Source: one Cholesky factor per permutation gives all prefixes,
    see `prefix`.
    """
    options = _options(preset, utility, ridge, truncation, weights, beta)
    ridge_option = options["ridge"]
    _check_counts(permutations, seed, tolerance, workers, batch_size)
    pool, cross = check_kernels(kernel, cross_kernel)
    pool_labels, classes = check_pool_labels(labels, pool)
    asked_labels = check_query_labels(query_labels, cross.shape[2], pool_labels)
    options |= {
        "classes": classes,
        "ridge": math.nan,
        "seed": int(seed),
        "per_query": per_query,
        "out_of_bag": out_of_bag,
        "batch_size": batch_size or _batch_size(pool, cross),
    }
    problem = build_problem(pool, cross, pool_labels.to(pool.device), asked_labels.to(pool.device), options)
    if per_query and len(problem.utility.empty) != cross.shape[2]:
        raise OptionError(f"per_query needs one value per query, utility {problem.utility.name} returns one in all")
    chosen = resolve_ridge(pool, problem.targets, ridge_option, on_not_positive_definite)
    options["ridge"] = chosen.value
    problem = replace(problem, ridge=chosen.value)
    chunk = _chunk_size(problem)
    folder = None
    if output_dir is not None:
        folder = RunFolder(output_dir, _manifest(problem, options, chunk, tolerance))
    with _one_thread(pool.device):
        try:
            full = full_utilities(problem)
            sums = _run(problem, options, full, permutations, chunk, tolerance, workers, folder, progress)
        except NotPositiveDefiniteError as error:
            raise not_positive_definite(pool, chosen.value) from error
    return _result(problem, options, sums, full[0], chosen.raised)


def _options(
    preset: str | None,
    utility: str | UserUtility,
    ridge: float | str,
    truncation: float | None,
    weights: str,
    beta: tuple[float, float],
) -> dict[str, Any]:
    options: dict[str, Any] = {"utility": utility, "ridge": ridge, "truncation": truncation}
    if preset not in (None, "paper"):
        raise OptionError(f"preset is {preset!r}; pass 'paper' or None")
    if preset == "paper":
        # An explicit default cannot be told from an absent one; any other value is the user's.
        options = {name: PAPER[name] if options[name] == DEFAULTS[name] else options[name] for name in options}
    beta_a, beta_b = check_beta(beta)
    truncation = options["truncation"]
    if truncation is not None:
        if isinstance(truncation, bool) or not 0 < truncation < 1:
            raise OptionError(f"truncation is {truncation!r}; pass a number between 0 and 1, or None for exact values")
        if weights == "banzhaf" or (weights == "beta" and beta_b > beta_a):
            raise OptionError(
                f"truncation={truncation} drops the late positions, which weights={weights!r} counts most; "
                "pass truncation=None"
            )
    guards = ["log-likelihood"] if preset == "paper" and options["utility"] == "accuracy" else []
    return options | {"guards": guards, "first_wins": preset == "paper", "weights": weights, "beta": [beta_a, beta_b]}


def _check_counts(
    permutations: int, seed: int, tolerance: float | None, workers: int | None, batch_size: int | None
) -> None:
    for name, value, least in (
        ("permutations", permutations, 1),
        ("seed", seed, 0),
        ("workers", 1 if workers is None else workers, 1),
        ("batch_size", 1 if batch_size is None else batch_size, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise OptionError(f"{name} is {value!r}; pass an integer >= {least}")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise OptionError(
            f"tolerance is {tolerance!r}; pass a positive standard error in units of the utility, or None"
        )


def _batch_size(kernel: torch.Tensor, cross: torch.Tensor) -> int:
    if kernel.device.type != "cuda":
        return 1
    kernels, rows, queries = cross.shape
    free, _ = torch.cuda.mem_get_info(kernel.device)
    return max(1, min(ROUND, int(0.4 * free / (8 * kernels * rows * (rows + 4 * queries)))))


def _seconds(problem: Problem) -> float:
    kernels, rows, queries = problem.cross.shape
    algebra = kernels * (rows**3 / 3 + rows**2 * queries)
    return (algebra + 40 * rows * (queries + rows) * problem.regressed.shape[1]) / FLOPS_PER_SECOND


def _chunk_size(problem: Problem) -> int:
    """Permutations per chunk: a function of the shapes alone, so that a run can be resumed by any number of workers."""
    if problem.kernel.device.type != "cpu":
        return ROUND
    fitting = [size for size in (20, 10, 5, 4, 2) if size * _seconds(problem) <= CHUNK_SECONDS]
    return fitting[0] if fitting else 1


def _worker_count(workers: int | None, problem: Problem, permutations: int, chunks: int) -> int:
    if problem.kernel.device.type != "cpu" or problem.has_callable:
        if workers not in (None, 1):
            reason = "a callable utility" if problem.has_callable else f"a kernel on {problem.kernel.device}"
            raise OptionError(f"workers={workers} cannot be had with {reason}; pass workers=None")
        return 1
    if workers is None:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = available if permutations * _seconds(problem) > PARALLEL_SECONDS else 1
    return min(workers, chunks)


def _manifest(problem: Problem, options: dict[str, Any], chunk: int, tolerance: float | None) -> dict[str, Any]:
    arrays = {name: digest(getattr(problem, name)) for name in ("kernel", "cross", "labels", "query_labels")}
    return {**arrays, **options, "utility": problem.utility.name, "chunk": chunk, "tolerance": tolerance}


@contextlib.contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """BLAS results depend on the number of threads, so workers and this process both use one."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run(
    problem: Problem,
    options: dict[str, Any],
    full: list[float],
    permutations: int,
    chunk: int,
    tolerance: float | None,
    workers: int | None,
    folder: RunFolder | None,
    progress: Callable[[int, int], None] | None,
) -> Sums:
    sums = Sums.zeros(problem.rows, problem.cross.shape[2], problem.per_query)
    if folder is not None:
        sums = folder.load(sums, permutations)
    spans: list[Span] = [(at, min(at + chunk, permutations)) for at in range(sums.count, permutations, chunk)]
    count = _worker_count(workers, problem, permutations - sums.count, len(spans))
    if count > 1:
        chunks = chunks_in_workers(problem, options, full, spans, count, folder.path if folder else None)
    else:
        chunks = (run_chunk(problem, first, last, full) for first, last in spans)
    with contextlib.closing(chunks):
        while sums.count < permutations and not _precise(sums, tolerance):
            done = next(chunks)
            sums.add(done)
            # An incomplete last chunk is not kept: a longer run would have it as part of a whole one.
            if folder is not None and sums.count % chunk == 0:
                folder.save(sums)
            if progress is not None:
                progress(sums.count, permutations)
    return sums


def _precise(sums: Sums, tolerance: float | None) -> bool:
    if tolerance is None or sums.count == 0 or sums.count % ROUND:
        return False
    return float(sums.standard_errors().max()) <= tolerance


def _result(problem: Problem, options: dict[str, Any], sums: Sums, full: float, raised: bool) -> ShapleyResult:
    bag = None
    if problem.out_of_bag:
        bag = np.divide(sums.bag, sums.bag_count, out=np.full(problem.rows, np.nan), where=sums.bag_count > 0)
    metadata = {
        **options,
        "utility": problem.utility.name,
        "ridge_raised": raised,
        "prefixes_per_permutation": float(sums.steps[0]) / sums.count,
    }
    return ShapleyResult(
        values=sums.values / sums.count,
        standard_errors=sums.standard_errors(),
        matrix=sums.matrix / sums.count if problem.per_query else None,
        permutations=sums.count,
        ridge=problem.ridge,
        empty_utility=float(problem.utility.empty.mean()),
        full_utility=full,
        out_of_bag=bag,
        metadata=metadata,
    )
