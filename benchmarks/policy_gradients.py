"""Policy gradients and the TracIn callback against bare forward and backward passes, in one run.

    python benchmarks/policy_gradients.py --part policy      # 16 samples x 32 queries
    python benchmarks/policy_gradients.py --part callback    # training with and without the callback

The floor runs the same tokens (prompts included) in the same batches through forward and backward with frozen weights.
Generation is not timed. One thread, CPU seconds, medians of interleaved repeats.
"""

import argparse
import statistics
import tempfile
from typing import Any

import torch
from gradient_features import BATCH, VOCABULARY, Batches, as_batches, make_model, make_text, plain, seconds
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


def policy(repeats: int) -> None:
    model = make_model(0, "cpu").eval()
    for longest in (16, 64, 128):
        samples = make_samples(longest)
        batches = list(samples.batches(samples.of(range(QUERIES)), BATCH, torch.device("cpu")))
        floor_batches = [{name: x for name, x in batch.items() if name != "weights"} for batch in batches]
        one_by_one = list(samples.batches(samples.ids, 1, torch.device("cpu")))[:: QUERIES * SAMPLES // 64]
        basis = fit_basis(model, batches, rows=128)
        runs: dict[str, Any] = {
            "floor": lambda b=floor_batches: plain(model, b),
            "policy gradients": lambda b=batches, s=samples, f=basis: policy_vectors(model, b, s, f),
        }
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                taken[name].append(seconds(run, "cpu"))
        floor = statistics.median(taken["floor"])
        alone = seconds(lambda b=one_by_one, s=samples, f=basis: policy_vectors(model, b, s, f), "cpu")
        alone *= QUERIES * SAMPLES / len(one_by_one)
        ours = statistics.median(taken["policy gradients"])
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        print(f"\ncompletions of {longest} tokens: {QUERIES} queries x {SAMPLES} samples, {tokens} tokens")
        print(f"  bare forward+backward, frozen      {floor:7.2f} s    1.00 x")
        print(f"  policy gradients, {basis.size} floats       {ours:7.2f} s    {ours / floor:.2f} x")
        print(f"  one by one (of {len(one_by_one)} rows)            {alone:7.2f} s    {alone / floor:.2f} x")


def callback(repeats: int) -> None:
    rows, queries, epochs = 512, 64, 2
    pool, asked = make_text(rows, 1), make_text(queries, 2)
    columns = [{"input_ids": row, "labels": row} for row in pool.tolist()]
    query_columns = [{"input_ids": row, "labels": row} for row in asked.tolist()]
    from datasets import Dataset

    train, validation = Dataset.from_list(columns), Dataset.from_list(query_columns)
    fitting: list[float] = []
    inner = View._basis

    def timed(self: View, *arguments: Any, **named: Any) -> Any:
        result: list[Any] = []
        spent = seconds(lambda: result.append(inner(self, *arguments, **named)), "cpu")
        fitting.append(spent)
        return result[0]

    View._basis = timed  # type: ignore[method-assign]

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
    for _ in range(repeats):
        taken["without"].append(seconds(lambda: run(False), "cpu"))
        fitting.clear()
        taken["with"].append(seconds(lambda: run(True), "cpu"))
        fits.append(sum(fitting))
        taken["bare"].append(epochs * seconds(lambda: plain(model, passes), "cpu"))
    without, scored, bare, fit = (statistics.median(x) for x in (taken["without"], taken["with"], taken["bare"], fits))
    print(f"\n{rows} rows and {queries} queries of 128 tokens, {epochs} checkpoints")
    print(f"  training without the callback            {without:7.2f} s")
    print(f"  training with tracin                     {scored:7.2f} s, of which the basis fits {fit:.2f} s")
    print(f"  bare forward+backward at the checkpoints {bare:7.2f} s")
    print(f"  (with - without - fits) / bare           {(scored - without - fit) / bare:7.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("policy", "callback", "all"), default="all")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part in ("policy", "all"):
        policy(arguments.repeats)
    if arguments.part in ("callback", "all"):
        callback(arguments.repeats)


if __name__ == "__main__":
    main()
