"""Chunks of permutations in other processes, each with one BLAS thread.

Members: `chunks_in_workers` (the parent's side) and `main` (`python -m hfdataopt.shapley.worker PROBLEM OUT NUMBER`).
Workers are fresh interpreters given a folder: a script without a main guard can use them, and nothing is pickled or
forked. They memory-map the kernel, so it is in memory once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hfdataopt
from hfdataopt.errors import DataError, HfDataOptError, StoreError
from hfdataopt.shapley._store import chunk_path, read_sums, write_sums
from hfdataopt.shapley._walk import Problem, Sums, build_problem, run_chunk
from hfdataopt.shapley.prefix import NotPositiveDefiniteError

ARRAYS = ("kernel", "cross", "labels", "query_labels")
EXIT_CODES: dict[int, type[HfDataOptError]] = {3: NotPositiveDefiniteError, 4: DataError, 5: StoreError}

Span = tuple[int, int]
"""First and last (not included) permutation of a chunk."""


def chunks_in_workers(
    problem: Problem, options: dict[str, Any], full: list[float], spans: list[Span], workers: int, output: Path | None
) -> Generator[Sums, None, None]:
    """Yields the chunk of each span, in order. Chunks found in `output` from an earlier run are not computed again.

    Raises `HfDataOptError` when a worker dies, with the end of what it printed; the others are stopped then, as they
    are when the iterator is closed.
    """
    with tempfile.TemporaryDirectory(prefix="hfdataopt-shapley-") as scratch:
        folder = Path(scratch)
        _write_problem(folder, problem, options, full)
        running = [_start(folder, output or folder, spans[first::workers], first) for first in range(workers)]
        try:
            for first, last in spans:
                path = chunk_path(output or folder, first, last)
                while not path.exists():
                    for number, process in enumerate(running):
                        if process.poll() not in (None, 0):
                            raise _failure(process.returncode, folder / f"worker-{number}.log", number)
                    time.sleep(0.02)
                yield read_sums(path)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def _write_problem(folder: Path, problem: Problem, options: dict[str, Any], full: list[float]) -> None:
    try:
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(problem, name).numpy(), allow_pickle=False)
        (folder / "problem.json").write_text(json.dumps({"options": options, "full": full}))
    except OSError as error:
        raise StoreError(
            f"cannot hand the kernel to the workers through {folder}: {error.strerror or error}; "
            "free space there, set TMPDIR, or pass workers=1"
        ) from error


def _start(folder: Path, output: Path, spans: list[Span], number: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    package = str(Path(hfdataopt.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "hfdataopt.shapley.worker", str(folder), str(output.absolute())]
    (folder / f"worker-{number}.json").write_text(json.dumps(spans))
    with open(folder / f"worker-{number}.log", "wb") as log:
        return subprocess.Popen(
            [*command, str(number)], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _failure(code: int, log: Path, number: int) -> HfDataOptError:
    said = log.read_text(errors="replace").strip().splitlines()
    if code in EXIT_CODES:
        return EXIT_CODES[code](said[-1] if said else "a worker failed")
    tail = "\n".join(said[-15:]) or "(it printed nothing; it may have been killed for memory)"
    return HfDataOptError(
        f"Shapley worker {number} died with exit status {code}; pass workers=1 to go without. It said:\n{tail}"
    )


def main(arguments: list[str]) -> int:
    """Computes the chunks listed in `worker-NUMBER.json` of the problem folder, until done or the parent is gone."""
    folder, output, number = Path(arguments[0]), Path(arguments[1]), arguments[2]
    parent = os.getppid()
    torch.set_num_threads(1)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in ARRAYS}
    problem_file = json.loads((folder / "problem.json").read_text())
    spans = json.loads((folder / f"worker-{number}.json").read_text())
    try:
        problem = build_problem(
            **{name: torch.from_numpy(array) for name, array in arrays.items()}, options=problem_file["options"]
        )
        for first, last in spans:
            path = chunk_path(output, first, last)
            if path.exists():
                continue
            if os.getppid() != parent:
                shutil.rmtree(folder, ignore_errors=True)
                return 0
            write_sums(path, run_chunk(problem, first, last, problem_file["full"]))
    except HfDataOptError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return next(code for code, kind in EXIT_CODES.items() if isinstance(error, kind))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
