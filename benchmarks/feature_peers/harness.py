"""What every driver has: a job's model and rows, clocks, the floor, and a place for the scores.

A job is a folder with ``model/`` as ``save_pretrained`` leaves it and ``job.json``: token ids and labels of pool and queries,
batch size, names of the linear modules that are tracked. A method is called with the job, a clock and the words after its
name's colons, and returns scores ``[rows, queries]`` (or ``[rows]``) and how many floats it keeps of a row. Before each call
the floor is timed in the same process, so that their ratio holds on a busy machine.

Nothing of the host's library is imported here: drivers of peers run it in the peers' environments.
"""

import argparse
import contextlib
import json
import os
import re
import resource
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

Batch = dict[str, Tensor]
Method = Callable[..., tuple[Any, int | None]]
IGNORED = -100


class Job:
    """A folder's model and rows; ``rows`` and ``queries`` cut both sides short."""

    def __init__(self, folder: Path, rows: int | None = None, queries: int | None = None) -> None:
        self.folder = folder
        self.options: dict[str, Any] = json.loads((folder / "job.json").read_text())
        self.sides: dict[str, list[dict[str, Any]]] = {
            "pool": self.options["pool"][:rows],
            "queries": self.options["queries"][:queries],
        }
        self.batch: int = self.options["batch"]
        self.modules: list[str] = self.options["modules"]
        self.causal: bool = self.options["causal"]

    @cached_property
    def width(self) -> int:
        """The longest row of both sides."""
        return max(len(row["input_ids"]) for side in self.sides.values() for row in side)

    def model(self) -> Any:
        """The model, loaded again: methods change theirs."""
        kind = "AutoModelForCausalLM" if self.causal else "AutoModelForSequenceClassification"
        return getattr(transformers, kind).from_pretrained(self.folder / "model").eval()

    def rows(self, side: str, width: int | None = None) -> list[Batch]:
        """Rows of a side as tensors, padded on the right to ``width``."""
        made = []
        for row in self.sides[side]:
            ids = torch.tensor(row["input_ids"])
            empty = (width or len(ids)) - len(ids)
            one = {
                "input_ids": functional.pad(ids, (0, empty)),
                "attention_mask": functional.pad(torch.ones_like(ids), (0, empty)),
            }
            labels = torch.tensor(row["labels"])
            made.append(one | {"labels": functional.pad(labels, (0, empty), value=IGNORED) if self.causal else labels})
        return made

    def batches(self, side: str, size: int | None = None) -> list[Batch]:
        """Batches of a side in its order, each padded to its longest row."""
        size, made = size or self.batch, []
        for start in range(0, len(self.sides[side]), size):
            width = max(len(row["input_ids"]) for row in self.sides[side][start : start + size])
            made.append(collate(self.rows(side, width)[start : start + size]))
        return made

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum over the batch's rows of the loss, which is summed over tokens."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return self.loss_of(logits, batch["labels"])

    def loss_of(self, logits: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
        if self.causal:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)


def collate(rows: list[Batch]) -> Batch:
    """Rows of one width as a batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def cpu_seconds() -> float:
    """Of all threads, and of processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_mebibytes() -> int:
    """Largest resident memory since ``reset_peak``. (``ru_maxrss`` is no less than that of the process that started this one.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024  # type: ignore[index]


class Clock:
    """CPU seconds by phase: ``set-up`` does not grow with the rows, ``features`` and ``scores`` do."""

    def __init__(self) -> None:
        self.seconds = {"set-up": 0.0, "features": 0.0, "scores": 0.0}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = cpu_seconds()
        try:
            yield
        finally:
            self.seconds[phase] += cpu_seconds() - started


def freeze(model: Any) -> Any:
    """The model with frozen weights, but for the token embeddings: they keep the graph alive."""
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    return model


def floor(job: Job, batches: list[Batch]) -> float:
    """CPU seconds of a forward and a backward pass of these batches with frozen weights."""
    model = freeze(job.model())
    embeddings = model.get_input_embeddings().weight
    started = time.process_time()
    for batch in batches:
        torch.autograd.grad(job.loss(model, batch), embeddings)
    return time.process_time() - started


def measure(
    job: Job, method: Method, words: list[str], repeats: int, side_by_side: bool = True
) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores of a method, and its medians over interleaved repeats; without the floor where not ``side_by_side``."""
    batches = job.batches("pool") + job.batches("queries") if side_by_side else job.batches("pool")[:1]
    floor(job, batches[:2])
    floors, clocks = [], []
    scores, floats = np.empty(0), None
    for _ in range(repeats):
        floors.append(floor(job, batches))
        reset_peak()
        clocks.append(Clock())
        scores, floats = method(job, clocks[-1], *words)
    phases = {name: statistics.median(clock.seconds[name] for clock in clocks) for name in clocks[0].seconds}

    def over(names: list[str]) -> float:
        return statistics.median(
            sum(clock.seconds[name] for name in names) / one for clock, one in zip(clocks, floors, strict=True)
        )

    facts = {
        "floats": floats,
        **phases,
        "over floor": over(["set-up", "features", "scores"]) if side_by_side else None,
        "over floor, set-up apart": over(["features", "scores"]) if side_by_side else None,
        "floor": statistics.median(floors),
        "peak MiB": peak_mebibytes(),
        "repeats": repeats,
        "rows": [len(job.sides["pool"]), len(job.sides["queries"])],
    }
    return np.asarray(scores, dtype=np.float64), facts


def main(methods: dict[str, Method]) -> None:
    """Run methods of a driver in turn. One that fails leaves the reason in the place of the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--method", nargs="+", required=True, help="name:word:word")
    parser.add_argument("--out", nargs="+", type=Path, required=True, help="a .json for each; the scores beside it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--no-floor", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    job = Job(arguments.job, arguments.rows, arguments.queries)
    for method, out in zip(arguments.method, arguments.out, strict=True):
        name, *words = method.split(":")
        torch.manual_seed(0)
        try:
            scores, facts = measure(job, methods[name], words, arguments.repeats, not arguments.no_floor)
            np.save(out.with_suffix(".npy"), scores)
        except Exception as error:
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            facts = {"failed": f"{type(error).__name__}: {lines[0]}"[:300]}
        out.with_suffix(".json").write_text(json.dumps(facts))
