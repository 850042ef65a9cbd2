"""Policy gradients and the TracIn callback against bare forward and backward passes, in one run.

    python benchmarks/policy_gradients.py --part policy      # 16 samples x 32 queries
    python benchmarks/policy_gradients.py --part callback    # training with and without the callback

The floor runs the same tokens (prompts included) in the same batches through forward and backward with frozen weights.
Generation is not timed. One thread, CPU seconds, medians of interleaved repeats.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from gradient_features import BATCH, LENGTH, VOCABULARY, Batches, as_batches, make_model, make_text, plain
from quiet import quiet_and_single_threaded
from results import Results
from timing import cpu_seconds, in_turn, ratio
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hfdataopt import AttributionCallback
from hfdataopt.attribution.samples import Sample, Samples
from hfdataopt.attribution.view import View
from hfdataopt.gradients import Basis, fit_basis, per_example_gradients

QUERIES, SAMPLES, PROMPT = 32, 16, 24


def make_samples(longest: int) -> Samples:
    """Completions of up to ``longest`` tokens: a quarter ends earlier, at an even spread."""
    generator = torch.Generator().manual_seed(longest)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    of_queries = []
    for _ in range(QUERIES):
        prompt = tokens(PROMPT)
        lengths = [longest if k % 4 else max(1, longest * (k + 1) // SAMPLES) for k in range(SAMPLES)]
        weights = torch.randn(SAMPLES, generator=generator).tolist()
        of_queries.append([Sample(prompt, tokens(n), w) for n, w in zip(lengths, weights, strict=True)])
    return Samples(of_queries)


def policy_vectors(model: nn.Module, batches: Batches, samples: Samples, basis: Basis) -> Tensor:
    """What ``nice`` computes for its queries: ``[queries, d]``."""
    vectors = torch.zeros(QUERIES, basis.size)
    for part in per_example_gradients(model, batches, basis=basis):
        vectors.index_add_(0, torch.tensor([samples.owner(str(row)) for row in part.row_ids]), part.features)
    return vectors


def policy(results: Results, longest_of: Sequence[int], repeats: int) -> None:
    """A table of completions of several lengths."""
    lines: list[list[Any]] = []
    model = make_model(0, "cpu").eval()
    for longest in longest_of:
        samples = make_samples(longest)
        batches = list(samples.batches(samples.of(range(QUERIES)), BATCH, torch.device("cpu")))
        floor_batches = [{name: x for name, x in batch.items() if name != "weights"} for batch in batches]
        one_by_one = list(samples.batches(samples.ids, 1, torch.device("cpu")))[:: QUERIES * SAMPLES // 64]
        basis = fit_basis(model, batches, rows=128)
        runs: dict[str, Any] = {
            "floor": lambda b=floor_batches: plain(model, b),
            "policy gradients": lambda b=batches, s=samples, f=basis: policy_vectors(model, b, s, f),
        }
        times, _ = in_turn(runs, repeats, warm=False)
        alone, _ = cpu_seconds(lambda b=one_by_one, s=samples, f=basis: policy_vectors(model, b, s, f))
        alone *= QUERIES * SAMPLES / len(one_by_one)
        floor, ours = (statistics.median(taken) for taken in times.values())
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        lines.append(
            [longest, tokens, floor, ours, ratio(times["policy gradients"], times["floor"]), alone, alone / floor]
        )
    results.table(
        f"{QUERIES} queries x {SAMPLES} samples, features of {basis.size:,} floats; medians of {repeats}",
        [
            "completion tokens",
            "tokens in all",
            "floor, CPU s",
            "policy gradients, CPU s",
            "x floor",
            "one by one, CPU s",
            "x floor",
        ],
        lines,
        f"One by one: {len(one_by_one)} of the rows, once, scaled to all.",
    )


def callback(results: Results, rows: int, queries: int, repeats: int) -> None:
    """A table of a training with and without."""
    epochs = 2
    pool, asked = make_text(rows, 1), make_text(queries, 2)
    columns = [{"input_ids": row, "labels": row} for row in pool.tolist()]
    query_columns = [{"input_ids": row, "labels": row} for row in asked.tolist()]
    train, validation = Dataset.from_list(columns), Dataset.from_list(query_columns)
    fitting: list[float] = []
    inner = View._basis

    def timed(self: View, *arguments: Any, **named: Any) -> Any:
        spent, basis = cpu_seconds(lambda: inner(self, *arguments, **named))
        fitting.append(spent)
        return basis

    def run(scored: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            callbacks = [AttributionCallback("tracin", queries=validation)] if scored else []
            arguments = TrainingArguments(
                folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=BATCH,
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
            )
            Trainer(make_model(0, "cpu").eval(), arguments, train_dataset=train, callbacks=callbacks).train()

    model = make_model(0, "cpu").eval()
    passes = as_batches(pool, "p") + as_batches(asked, "q")
    taken: dict[str, list[float]] = {"without": [], "with": [], "bare": []}
    fits = []
    View._basis = timed  # type: ignore[method-assign]
    try:
        for _ in range(repeats):
            taken["without"].append(cpu_seconds(lambda: run(False))[0])
            fitting.clear()
            taken["with"].append(cpu_seconds(lambda: run(True))[0])
            fits.append(sum(fitting))
            taken["bare"].append(epochs * cpu_seconds(lambda: plain(model, passes))[0])
    finally:
        View._basis = inner  # type: ignore[method-assign]
    added = [b - a - fit for a, b, fit in zip(taken["without"], taken["with"], fits, strict=True)]
    results.table(
        f"{rows} rows and {queries} queries of {LENGTH} tokens, {epochs} checkpoints; medians of {repeats}",
        ["", "CPU s", "x bare passes"],
        [
            [name, statistics.median(values), ratio(values, taken["bare"])]
            for name, values in (
                ("bare forward and backward at the checkpoints", taken["bare"]),
                ("training without the callback", taken["without"]),
                ("training with `tracin`", taken["with"]),
                ("fits of a basis in it", fits),
                ("what it adds, fits apart", added),
            )
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("policy", "callback")
    parser.add_argument("--part", choices=parts, nargs="+", default=list(parts))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    quiet_and_single_threaded()

    def kept(part: str) -> Results:
        command = f"python benchmarks/policy_gradients.py --part {part} --repeats {options.repeats}"
        return Results(f"policy_gradients_{part}", command)

    if "policy" in options.part:
        policy(kept("policy"), (16, 64, 128), options.repeats)
    if "callback" in options.part:
        callback(kept("callback"), 512, 64, options.repeats)


if __name__ == "__main__":
    main()
